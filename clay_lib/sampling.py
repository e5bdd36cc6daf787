"""Sampling by land cover: which tiles of the Earth a training set is cut from, so that rare land is not drowned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clay_lib.contract import ContractError, number

if TYPE_CHECKING:
    import geopandas

COVER = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)  # ESA WorldCover codes
LAND_TILES = 19_000  # about as many MGRS tiles hold land: what RELEASED was drawn from, and what `scale` refers to


@dataclass(frozen=True)
class Rule:
    """Draw `take` tiles at random from the `among` with the highest fraction of a class, or with the most classes."""

    cover: int | None  # WorldCover code; None: diversity, the number of classes present
    take: int
    among: int


RELEASED = (  # as Clay v1 chose its places; 2,728 tiles once those chosen twice are counted once
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
    """WorldCover codes [N, ...] -> {"cover_10": [N] float32, ...}, fractions of what is known (0 is not)."""
    flat = np.asarray(labels).reshape(len(labels), -1)
    known = np.maximum((flat > 0).sum(1), 1)
    return {f"cover_{code}": ((flat == code).sum(1) / known).astype(np.float32) for code in COVER}


def sample_tiles(
    tiles: geopandas.GeoDataFrame, rules: Sequence[Rule] = RELEASED, *, seed: int = 0, scale: float = 1.0
) -> geopandas.GeoDataFrame:
    """The chosen tiles, each once, with `chosen_for`: the code of the rule that chose it first, 0 for diversity.

    tiles: any frame with the columns cover_10 ... cover_100 and one label a tile in its index. scale: factor on every
    rule's numbers, for example len(tiles) / LAND_TILES for a small Earth; rounded up. A tile that has nothing of a
    class is never drawn for it. The same tiles are chosen in whatever order the rows come.
    """
    fractions = _checked(tiles)
    scale = number("scale", scale)
    if scale <= 0:
        raise ContractError("scale", found=scale, expected="> 0", cause="an empty frame of tiles")
    canonical = np.argsort(np.asarray([str(label) for label in tiles.index]), kind="stable")
    chosen: dict[int, int] = {}
    for k, rule in enumerate(rules):
        rank = (fractions > 0).sum(1) if rule.cover is None else fractions[:, COVER.index(rule.cover)]
        rng = np.random.default_rng([seed, k])
        shuffled = rng.permutation(canonical)  # so that ties do not fall to whoever is named first
        order = shuffled[np.argsort(-rank[shuffled], kind="stable")]
        best = order[rank[order] > 0][: int(np.ceil(rule.among * scale))]
        for row in rng.permutation(best)[: int(np.ceil(rule.take * scale))]:
            chosen.setdefault(int(row), rule.cover or 0)
    return tiles.iloc[list(chosen)].assign(chosen_for=list(chosen.values()))


def split_tiles(
    tiles: geopandas.GeoDataFrame, *, degrees: float = 3.0, fractions=(0.7, 0.1, 0.2), seed: int = 0
) -> geopandas.GeoDataFrame:
    """The tiles with a column `split`: train, val or test by the block of land that a tile's middle lies in."""
    from clay_lib.splits import block_split

    box = tiles.geometry if tiles.crs is None else tiles.geometry.to_crs("EPSG:4326")
    west, south, east, north = box.bounds.to_numpy().T
    return tiles.assign(split=block_split((south + north) / 2, (west + east) / 2, degrees, fractions, seed))


def _checked(tiles) -> np.ndarray:
    """[N, 11] fractions in the order of COVER."""
    missing = [f"cover_{code}" for code in COVER if f"cover_{code}" not in tiles]
    if missing or not tiles.index.is_unique:
        raise ContractError(
            "tiles",
            found=f"no column {missing[0]}" if missing else "two tiles with one label in the index",
            expected="a row a tile, columns cover_10 ... cover_100",
            cause="classes that do not occur still need a column of zeros" if missing else "frames put together",
        )
    fractions = tiles[[f"cover_{code}" for code in COVER]].to_numpy(np.float64)
    if not ((fractions >= 0) & (fractions <= 1.0001)).all():
        raise ContractError(
            "tiles",
            found=f"{fractions.min()} to {fractions.max()}",
            expected="fractions, 0 to 1",
            cause="per cent, or NaN",
        )
    return fractions
