"""Splits: which chips train and which test. By blocks of land, or, to show what that saves one from, at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clay_lib.contract import ContractError


def spatial_blocks(lat, lon, degrees: float) -> np.ndarray:
    """The number of the degrees x degrees cell that each place lies in: [N], [N] in degrees -> [N] int64.

    Cells are counted from (-90, -180), so a place keeps its number whatever other places stand beside it.
    They narrow towards the poles; -180 and 180 are the same meridian.
    """
    lat, lon = np.atleast_1d(np.asarray(lat, np.float64)), np.atleast_1d(np.asarray(lon, np.float64))
    if lon.shape != lat.shape:
        raise ContractError("lon", found=lon.shape, expected=lat.shape, cause="places were selected or sorted apart")
    if not degrees > 0:
        raise ContractError("degrees", found=degrees, expected="> 0", cause="the block's edge in degrees is missing")
    if not (np.all(np.abs(lat) <= 90) and np.all(np.abs(lon) <= 360)):
        found = f"lat {lat.min()} to {lat.max()}, lon {lon.min()} to {lon.max()}"
        cause = "lat and lon are swapped, NaN, or in the metres of a projection"
        raise ContractError(
            "lat, lon", found=found, expected="degrees: -90 to 90, -180 to 180 or 0 to 360", cause=cause
        )
    columns = int(np.ceil(360 / degrees))
    row = np.floor((lat + 90) / degrees).astype(np.int64)
    return row * columns + np.floor(((lon + 180) % 360) / degrees).astype(np.int64)


def split_by_blocks(blocks, fractions: Sequence[float] = (0.7, 0.3), seed: int = 0) -> tuple[np.ndarray, ...]:
    """Sorted index arrays, one per fraction, such that no block is in two of them: the score of a place never seen.

    Blocks are drawn in random order, each to the split that is furthest behind its share of the chips, so the
    fractions hold to within a block and no split is empty.
    """
    blocks, fractions = np.asarray(blocks), _fractions(fractions)
    names, member, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    if len(names) < len(fractions):
        raise ContractError(
            "blocks",
            found=f"{len(names)} block(s)",
            expected=f"at least {len(fractions)}, one per split",
            cause="the blocks are larger than the area: use fewer degrees",
        )
    owner, filled = np.empty(len(names), int), np.zeros(len(fractions))
    for block in np.random.default_rng(seed).permutation(len(names)):
        owner[block] = np.argmin(filled / fractions)
        filled[owner[block]] += sizes[block]
    return tuple(np.flatnonzero(owner[member] == split) for split in range(len(fractions)))


def block_split(lat, lon, degrees: float, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0) -> np.ndarray:
    """[N] "train", "val" or "test" by the block that a place lies in, whatever other places there are or come later.

    For sets that grow: a block's side is drawn from its number alone, so the fractions hold only on average.
    """
    fractions = _fractions(fractions)
    if len(fractions) != 3:
        raise ContractError(
            "fractions", found=fractions, expected="train, val, test", cause="one share too few or many"
        )
    names, member = np.unique(spatial_blocks(lat, lon, degrees), return_inverse=True)
    drawn = np.array([np.random.default_rng([seed, int(block)]).random() for block in names])
    return np.array(["train", "val", "test"])[np.searchsorted(np.cumsum(fractions)[:-1], drawn, side="right")][member]


def random_split(n: int, fractions: Sequence[float] = (0.7, 0.3), seed: int = 0) -> tuple[np.ndarray, ...]:
    """Sorted index arrays, one per fraction, chip by chip: neighbours fall on both sides, which flatters a score.

    Here only so that the gap to `split_by_blocks` can be shown.
    """
    edges = np.round(np.cumsum(_fractions(fractions))[:-1] * n).astype(int)
    return tuple(np.sort(part) for part in np.split(np.random.default_rng(seed).permutation(n), edges))


def _fractions(fractions: Sequence[float]) -> np.ndarray:
    parts = np.asarray(fractions, np.float64)
    if parts.ndim != 1 or len(parts) < 2 or not (parts > 0).all() or not np.isclose(parts.sum(), 1):
        raise ContractError(
            "fractions",
            found=fractions,
            expected="two or more, > 0, that sum to 1",
            cause="the last share was left out, or given in percent",
        )
    return parts
