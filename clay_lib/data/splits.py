"""Splits and sampling: tiles to cut a training set from, and chips to train, validate and test on.

Splits are by blocks of land, since neighbors are similar; a random split shows how far that overestimates a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clay_lib.errors import ContractError, number, warn

if TYPE_CHECKING:
    import geopandas

COVER = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)  # ESA WorldCover codes
LAND_TILES = 19_000  # about the number of MGRS tiles with land, from which RELEASED draws


def spatial_blocks(lat, lon, degrees: float) -> np.ndarray:
    """The number of the degrees x degrees cell that each place lies in: [N], [N] in degrees -> [N] int64.

    Cells are counted from (-90, -180), so a place's number does not depend on other places. They narrow towards the
    poles; -180 and 180 are the same meridian.
    """
    lat, lon = np.atleast_1d(np.asarray(lat, np.float64)), np.atleast_1d(np.asarray(lon, np.float64))
    if lon.shape != lat.shape:
        raise ContractError("lon", lon.shape, lat.shape, "lat and lon were selected or sorted separately")
    if not degrees > 0:
        raise ContractError("degrees", degrees, "> 0", "a block's side in degrees is missing")
    if not (np.all(np.abs(lat) <= 90) and np.all(np.abs(lon) <= 360)):
        found = f"lat {lat.min()} to {lat.max()}, lon {lon.min()} to {lon.max()}"
        cause = "lat and lon are swapped, NaN, or in the meters of a projection"
        raise ContractError("lat, lon", found, "degrees: -90 to 90, -180 to 180 or 0 to 360", cause)
    columns = int(np.ceil(360 / degrees))
    row = np.floor((lat + 90) / degrees).astype(np.int64)
    return row * columns + np.floor(((lon + 180) % 360) / degrees).astype(np.int64)


def split_by_blocks(blocks, fractions: Sequence[float] = (0.7, 0.3), seed: int = 0) -> tuple[np.ndarray, ...]:
    """Sorted index arrays, one per fraction, such that no block is in two of them.

    Blocks are drawn in random order, each to the split that is furthest behind its share of the chips, so the
    fractions hold to within a block and no split is empty.
    """
    blocks, fractions = np.asarray(blocks), _fractions(fractions)
    names, member, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    if len(names) < len(fractions):
        cause = "the blocks are larger than the area: use fewer degrees"
        raise ContractError("blocks", f"{len(names)} block(s)", f"at least {len(fractions)}, one per split", cause)
    owner, filled = np.empty(len(names), int), np.zeros(len(fractions))
    for block in np.random.default_rng(seed).permutation(len(names)):
        owner[block] = np.argmin(filled / fractions)
        filled[owner[block]] += sizes[block]
    return tuple(np.flatnonzero(owner[member] == split) for split in range(len(fractions)))


def block_split(lat, lon, degrees: float, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0) -> np.ndarray:
    """[N] "train", "val" or "test" by the block that a place lies in, independent of other places.

    For growing sets: a block's split is drawn from its number alone, so the fractions hold only on average.
    """
    fractions = _fractions(fractions)
    if len(fractions) != 3:
        raise ContractError("fractions", fractions, "train, val, test", "one share too few or many")
    names, member = np.unique(spatial_blocks(lat, lon, degrees), return_inverse=True)
    drawn = np.array([np.random.default_rng([seed, int(block)]).random() for block in names])
    return np.array(["train", "val", "test"])[np.searchsorted(np.cumsum(fractions)[:-1], drawn, side="right")][member]


def random_split(n: int, fractions: Sequence[float] = (0.7, 0.3), seed: int = 0) -> tuple[np.ndarray, ...]:
    """Sorted index arrays, one per fraction, chip by chip: neighbors fall on both sides, which overestimates a score.

    Only to show the gap to `split_by_blocks`.
    """
    edges = np.round(np.cumsum(_fractions(fractions))[:-1] * n).astype(int)
    return tuple(np.sort(part) for part in np.split(np.random.default_rng(seed).permutation(n), edges))


def drop_overlaps(parts: Sequence[np.ndarray], corners: np.ndarray) -> list[np.ndarray]:
    """Row numbers of parts, less those of chips that share pixels with a chip of a later part. corners [N, 2]: x, y."""
    from scipy.spatial import cKDTree

    kept, later, dropped = [], np.empty((0, 2)), 0
    for part in reversed(parts):
        placed = np.isfinite(corners[part]).all(1)
        distance = np.full(len(part), np.inf)
        distance[placed] = cKDTree(later).query(corners[part[placed]], p=np.inf)[0]
        apart = distance > 1 - 1e-6
        kept.insert(0, part[apart])
        later = np.concatenate([later, corners[part][placed & apart]])
        dropped += int((~apart).sum())
    if not all(map(len, kept)):
        found = "a part whose every chip shares pixels with a later part"
        cause = "blocks hardly larger than a chip: more degrees, or a smaller size="
        raise ContractError("blocks", found, "chips in every part", cause)
    if dropped:
        total = sum(map(len, parts))
        shared = f"{dropped} of {total} chips share pixels with a chip of a later part and are left out"
        warn(f"{shared}: larger blocks lose fewer")
    return kept


def _fractions(fractions: Sequence[float]) -> np.ndarray:
    parts = np.asarray(fractions, np.float64)
    if parts.ndim != 1 or len(parts) < 2 or not (parts > 0).all() or not np.isclose(parts.sum(), 1):
        cause = "the last share was left out, or given in percent"
        raise ContractError("fractions", fractions, "two or more, > 0, that sum to 1", cause)
    return parts


@dataclass(frozen=True)
class Rule:
    """Draw `take` tiles at random from the `among` with the highest fraction of a class, or with the most classes."""

    cover: int | None  # WorldCover code; None: diversity, the number of classes present
    take: int
    among: int


RELEASED = (  # the sampling of Clay v1; 2,728 distinct tiles
    Rule(None, 400, 2000),
    Rule(50, 300, 300),
    Rule(50, 1000, 1500),
    Rule(90, 50, 500),
    Rule(95, 50, 500),
    Rule(100, 50, 500),
    Rule(40, 800, 3600),
    Rule(10, 150, 750),
    Rule(20, 100, 500),
    Rule(30, 200, 500),
    Rule(60, 50, 500),
    Rule(70, 25, 500),
    Rule(80, 50, 1000),
)


def cover_fractions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """WorldCover codes [N, ...] -> {"cover_10": [N] float32, ...}, fractions of the known pixels (0 is unknown)."""
    flat = np.asarray(labels).reshape(len(labels), -1)
    known = np.maximum((flat > 0).sum(1), 1)
    return {f"cover_{code}": ((flat == code).sum(1) / known).astype(np.float32) for code in COVER}


def sample_tiles(
    tiles: geopandas.GeoDataFrame, rules: Sequence[Rule] = RELEASED, *, seed: int = 0, scale: float = 1.0
) -> geopandas.GeoDataFrame:
    """The sampled tiles, each once, with `chosen_for`: the code of the rule that chose it first, 0 for diversity.

    tiles: any frame with the columns cover_10 ... cover_100 and one label a tile in its index. scale: factor on every
    rule's numbers, for example len(tiles) / LAND_TILES for a small Earth; rounded up. A tile without a class is never
    drawn for it. The choice does not depend on the order of the rows.
    """
    fractions = _checked(tiles)
    scale = number("scale", scale)
    if scale <= 0:
        raise ContractError("scale", scale, "> 0", "an empty frame of tiles")
    canonical = np.argsort(np.asarray([str(label) for label in tiles.index]), kind="stable")
    chosen: dict[int, int] = {}
    for k, rule in enumerate(rules):
        rank = (fractions > 0).sum(1) if rule.cover is None else fractions[:, COVER.index(rule.cover)]
        rng = np.random.default_rng([seed, k])
        shuffled = rng.permutation(canonical)  # random order of ties
        order = shuffled[np.argsort(-rank[shuffled], kind="stable")]
        best = order[rank[order] > 0][: int(np.ceil(rule.among * scale))]
        for row in rng.permutation(best)[: int(np.ceil(rule.take * scale))]:
            chosen.setdefault(int(row), rule.cover or 0)
    return tiles.iloc[list(chosen)].assign(chosen_for=list(chosen.values()))


def _checked(tiles) -> np.ndarray:
    """[N, 11] fractions in the order of COVER."""
    missing = [f"cover_{code}" for code in COVER if f"cover_{code}" not in tiles]
    if missing or not tiles.index.is_unique:
        found = f"no column {missing[0]}" if missing else "two tiles with one label in the index"
        cause = "absent classes need a column of zeros" if missing else "concatenated frames"
        raise ContractError("tiles", found, "a row a tile, columns cover_10 ... cover_100", cause)
    fractions = tiles[[f"cover_{code}" for code in COVER]].to_numpy(np.float64)
    if not ((fractions >= 0) & (fractions <= 1.0001)).all():
        found = f"{fractions.min()} to {fractions.max()}"
        raise ContractError("tiles", found, "fractions, 0 to 1", "percent, or NaN")
    return fractions
