"""Dense features: patch vectors of many tiles as one georeferenced raster, with blended seams.

    OUT/dense/SENSOR/run=CONFIGURATION-oOVERLAP/parts/JOB.npy     patch vectors of one tile, float16 [h, w, D]
    .../DATE-CRS.tif or .zarr, pca-N.npz                                  what is made from the parts

A tile is embedded together with `overlap` pixels around it, so that two neighbours both know the strip between them.
There a pixel of the raster is the mean of both, weighted by linear ramps that fall to nothing at the edge of what each
has seen and sum to one: a vector changes over smoothly from one tile's context to the next one's. The raster is a pure
function of the parts: made block by block, from at most nine parts each, the same whichever order they came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from clay_lib.files import write_whole
from clay_lib.tiles import Tile, crs_name

TILES = 400  # of which the mean at every place is taken, at most


def folder(out: str | Path, about: dict, overlap: int) -> Path:
    return Path(out) / "dense" / about["sensor"] / f"run={about['configuration']}-o{overlap}"


def part_path(home: Path, job_id: str) -> Path:
    return home / "parts" / f"{job_id}.npy"


def write_part(home: Path, job, patches: np.ndarray) -> Path:
    """Patch vectors [h, w, D] of a job's tile with its overlap; NaN where a patch was left out."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.save(file, np.asarray(patches, np.float16))

    return write_whole(part_path(home, job.id), write)


# ---- blending ----


@lru_cache(maxsize=8)
def ramp(cells: int, overlap: int) -> np.ndarray:
    """[cells + 2 overlap] weights of a tile and its surroundings along one side, in patches.

    One in the middle, linear over the 2 overlap patches that it shares with each neighbour. A tile's ramp and its
    neighbours' sum to one everywhere.
    """
    from_edge = np.arange(cells + 2 * overlap) + 0.5
    if overlap == 0:
        return np.ones(cells, np.float32)
    return np.minimum(1, np.minimum(from_edge, from_edge[::-1]) / (2 * overlap)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Mosaic:
    """The parts of one sensor, date and CRS on one grid of tiles. cells, overlap: patches; patch: pixels.

    parts: {(column, row): path}, columns eastwards and rows northwards, as in tiles.py.
    """

    home: Path
    name: str
    tile: Tile  # any one of them: it says grid and CRS
    parts: dict[tuple[int, int], Path]
    cells: int
    overlap: int
    patch: int
    places: np.ndarray | float = 0.0  # [h, w, D], subtracted from every part: see `place_means`

    @property
    def corner(self) -> tuple[int, int]:
        """(column, row) of the north-western tile of the raster."""
        return min(c for c, _ in self.parts), max(r for _, r in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the raster, in patches."""
        west, north = self.corner
        east, south = max(c for c, _ in self.parts), min(r for _, r in self.parts)
        return (north - south + 1) * self.cells, (east - west + 1) * self.cells

    @property
    def geobox(self):
        from odc.geo.geobox import GeoBox
        from rasterio.transform import Affine

        west, _, _, north = replace(self.tile, column=self.corner[0], row=self.corner[1]).bounds
        step = self.patch * self.tile.gsd
        return GeoBox(self.shape, Affine(step, 0, west, 0, -step, north), self.tile.crs)

    def blocks(self, *, everywhere: bool = False):
        """((column, row), slice of rows, slice of columns) of every tile's place in the raster, row by row.

        everywhere: of the places without a tile as well.
        """
        west, north = self.corner
        places = list(self.parts)
        if everywhere:
            down, across = (side // self.cells for side in self.shape)
            places = [(west + x, north - y) for y in range(down) for x in range(across)]
        for column, row in sorted(places, key=lambda place: (-place[1], place[0])):
            y, x = (north - row) * self.cells, (column - west) * self.cells
            yield (column, row), slice(y, y + self.cells), slice(x, x + self.cells)

    def read(self, place: tuple[int, int]) -> np.ndarray:
        """[cells, cells, D] float32, blended; NaN where no tile saw a patch."""
        n, o = self.cells, self.overlap
        total = weight = None
        for dx in (-1, 0, 1) if o else (0,):
            for dy in (-1, 0, 1) if o else (0,):
                path = self.parts.get((place[0] + dx, place[1] + dy))
                if path is None:
                    continue
                # Rows of the raster run southwards, so a neighbour to the north has its southern overlap here.
                rows, columns = _shared(-dy, n, o), _shared(dx, n, o)
                part = np.load(path, mmap_mode="r")[rows[1], columns[1]].astype(np.float32)
                part -= self.places if np.isscalar(self.places) else self.places[rows[1], columns[1]]
                w = ramp(n, o)[rows[1], None] * ramp(n, o)[None, columns[1]]
                w = np.where(np.isfinite(part[..., 0]), w, 0)[..., None]
                if total is None:
                    total, weight = np.zeros((n, n, part.shape[-1]), np.float32), np.zeros((n, n, 1), np.float32)
                total[rows[0], columns[0]] += np.where(w > 0, part, 0) * w
                weight[rows[0], columns[0]] += w
        return np.where(weight > 0, total / np.maximum(weight, 1e-9), np.nan)


def _shared(step: int, n: int, o: int) -> tuple[slice, slice]:
    """(where in the block, where in the part) of what a part `step` tiles further along one side knows of the block."""
    if step == 0:
        return slice(0, n), slice(o, o + n)
    return (slice(n - o, n), slice(0, o)) if step > 0 else (slice(0, o), slice(o + n, 2 * o + n))


def mosaics(home: Path, jobs: Sequence, *, dated: bool, overlap: int, patch: int) -> list[Mosaic]:
    """One a CRS, and one a date where `dated`: of the jobs whose parts are there."""
    groups: dict[str, list] = {}
    for job in jobs:
        if part_path(home, job.id).is_file():
            day = job.id.split("_")[2]
            groups.setdefault(f"{day if dated else 'best'}-{crs_name(job.tile.crs)}", []).append(job)
    made = []
    for name, some in sorted(groups.items()):
        parts = {(job.tile.column, job.tile.row): part_path(home, job.id) for job in some}
        made.append(Mosaic(home, name, some[0].tile, parts, some[0].tile.size // patch, overlap // patch, patch))
    return made


def place_means(parts: Sequence[Path]) -> np.ndarray:
    """[h, w, D]: what a patch's vector owes to its place in the tile, from the means over many tiles at every place.

    The model codes where in its image a patch lies, and part of that code stays in the vector: as a grid over the whole
    raster. Over many tiles the ground at a place is any ground, so the mean there less the mean of all is that part. It
    is shrunk by what so many tiles would give by chance (James and Stein 1961): of one tile nothing is left.
    """
    paths = [parts[k] for k in np.unique(np.linspace(0, len(parts) - 1, min(len(parts), TILES)).round().astype(int))]
    total = squares = count = 0.0
    for path in paths:
        values = np.load(path).astype(np.float64)
        held = np.isfinite(values[..., :1])
        values = np.where(held, values, 0)
        total, squares, count = total + values, squares + values**2, count + held
    if np.max(count) < 2:
        return np.zeros(total.shape, np.float32)
    some = np.maximum(count, 1)
    means = total / some
    everywhere = total.sum((0, 1)) / max(count.sum(), 1)
    owed = np.where(count > 0, means - everywhere, 0)
    spread = (squares - some * means**2).sum() / max((count - 1).clip(min=0).sum(), 1)  # of a vector at its place
    chance = (spread / some * (count > 0)).sum()
    return (max(0.0, 1 - chance / max((owed**2).sum(), 1e-30)) * owed).astype(np.float32)
