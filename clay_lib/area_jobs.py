"""Jobs: which tiles of which looks an area asks for, how each is called, and what shapes its vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pystac
import rasterio
import shapely
import shapely.geometry

from clay_lib.archive_items import moment_of
from clay_lib.archive_profiles import Archive, Look
from clay_lib.contract import ContractError
from clay_lib.files import hash_tensors
from clay_lib.scenes import RASTER_ENDINGS
from clay_lib.sensors import Sensor
from clay_lib.tiles import Tile

BLOCK = 768  # pixels a side that are read in one go, at most, where a tile is smaller
VERSION = 2  # of all that happens between a file's pixels and a vector


@dataclass(frozen=True, eq=False)
class Job:
    """One tile in one look. items: those of the look that meet the tile; time: of the first of them, UTC."""

    id: str
    tile: Tile
    look: Look
    items: tuple[pystac.Item, ...]
    time: datetime | None

    @property
    def cloud_cover(self) -> float | None:
        """Percent, the mean over the items that tell it."""
        told = [cover for i in self.items if (cover := i.properties.get("eo:cloud_cover")) is not None]
        return sum(told) / len(told) if told else None


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring tiles of one look, read in one go: fewer requests, and shared parts of a file fetched once.

    jobs: all that the plan has there, done or not, so that a block is always read with the same window.
    """

    jobs: tuple[Job, ...]

    @property
    def look(self) -> Look:
        wanted = {item.id for job in self.jobs for item in job.items}
        return replace(self.jobs[0].look, items=tuple(i for i in self.jobs[0].look.items if i.id in wanted))

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """(first column, last column, first row, last row) on the grid of tiles, rows northwards."""
        columns, rows = ([getattr(job.tile, which) for job in self.jobs] for which in ("column", "row"))
        return min(columns), max(columns), min(rows), max(rows)

    def geobox(self, overlap: int):
        """odc.geo GeoBox around all tiles and `overlap` pixels."""
        from odc.geo.geobox import GeoBox

        west, east, south, north = self.corners
        first = replace(self.jobs[0].tile, column=west, row=north)
        shape = [many * first.size + 2 * overlap for many in (north - south + 1, east - west + 1)]
        return GeoBox(tuple(shape), first.geobox(overlap).affine, first.crs)

    def window(self, job: Job, overlap: int) -> tuple[slice, slice]:
        """(rows, columns) of a job's tile with its overlap in what `geobox` reads."""
        west, _, _, north = self.corners
        y, x = (north - job.tile.row) * job.tile.size, (job.tile.column - west) * job.tile.size
        side = job.tile.size + 2 * overlap
        return slice(y, y + side), slice(x, x + side)


@dataclass(frozen=True)
class Settings:
    """All that shapes a vector, beside weights and pixels; see `embed.embed_area`."""

    size: int = 256
    clouds: str = "mask"
    min_valid: float = 0.5
    store: str = "float16"


def plan(tiles: Sequence[Tile], looks: Sequence[Look], pick: str) -> list[Block]:
    """Blocks of jobs. pick: "all" looks at a tile, or the "best", whose clear share promises most.

    The promise is the share of the tile under the look's footprint times one minus its items' cloud cover; of equal
    ones the first look wins. Tiles that no look meets have no job.
    """
    if pick not in ("best", "all"):
        raise ContractError("pick", found=repr(pick), expected="best or all", cause="a misspelling")
    if not tiles or not looks:
        return []
    outlines = np.array([tile.polygon for tile in tiles])
    areas, promise = shapely.area(outlines), np.zeros((len(looks), len(tiles)))
    for k, look in enumerate(looks):
        covered = shapely.area(shapely.intersection(outlines, look.footprint)) / areas
        promise[k] = np.round(covered, 3) * (1 - (look.cloud_cover or 0) / 100 + 1e-6)
    side = max(1, BLOCK // tiles[0].size)
    blocks: dict[tuple, list[Job]] = {}
    best = promise.argmax(axis=0)
    for k, look in enumerate(looks):
        chosen = np.flatnonzero((promise[k] > 0) & ((best == k) | (pick == "all")))
        for job in _jobs_of(look, [tiles[n] for n in chosen]):
            tile = job.tile
            blocks.setdefault((tile.crs, -(tile.row // side), tile.column // side, k), []).append(job)
    return [Block(tuple(jobs)) for _, jobs in sorted(blocks.items(), key=lambda entry: entry[0])]


def _jobs_of(look: Look, tiles: Sequence[Tile]) -> list[Job]:
    shapes = [shapely.geometry.shape(item.geometry) for item in look.items]
    moments = [moment_of(item) for item in look.items]
    stamp = _file_stamp(look)
    jobs = []
    for tile in tiles:
        meets = [k for k, shape in enumerate(shapes) if shape.intersects(tile.polygon)]
        times = [moments[k] for k in meets if moments[k]]
        when = min(times) if times and look.when else None
        # The solar day at the tile: the same wherever UTC's midnight falls, and whatever else the area meets.
        day = f"{when + timedelta(hours=tile.centre[1] / 15):%Y%m%d}" if when else "undated"
        name = "_".join(filter(None, [tile.id, look.sensor.name, day, stamp]))
        jobs.append(Job(name, tile, look, tuple(look.items[k] for k in meets), when))
    return jobs


def _file_stamp(look: Look) -> str:
    """Eight digits of which local files these are, as they stand, and of the moment that was told of them; "" for
    archives, whose items do not change."""
    if look.archive.kind != "files":
        return ""
    hrefs = sorted({asset.href for item in look.items for asset in item.assets.values()})
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _files_behind(hrefs)]
    told = hrefs, look.when and look.when.isoformat(), files
    return hashlib.sha256(repr(told).encode()).hexdigest()[:8]


def _files_behind(hrefs: Sequence[str]) -> list[Path]:
    """All local files that GDAL reads for these: masks and notes beside them, the sources of a VRT and theirs."""
    found: set[str] = set()
    ask = [*hrefs]
    while ask:
        name = ask.pop()
        if name not in found and Path(name).is_file():
            found.add(name)
            if Path(name).suffix.lower() in RASTER_ENDINGS or name in hrefs:
                with rasterio.open(name) as file:
                    ask += file.files
    return sorted(map(Path, found))


def of_other_files(ids: set[str], jobs: Sequence[Job]) -> set[str]:
    """Those of some ids that are of the jobs' tiles and days by another stamp of local files."""
    asked = {job.id.rpartition("_")[0] for job in jobs if job.look.archive.kind == "files"}
    return {one for one in ids - {job.id for job in jobs} if one.rpartition("_")[0] in asked}


def weights_hash(model) -> str:
    """16 hex digits of the encoder's tensors: the same for every file that holds them, with or without a decoder."""
    told = repr([model.config.ladder, model.config.patch_size, model.config.heads])
    return hash_tensors(model.encoder.state_dict(), told)[:16]


def configuration_of(clay, sensor: Sensor, archive: Archive, settings: Settings) -> dict:
    """All that shapes a vector beside the pixels themselves, in words, and its hash under "configuration"."""
    about = {
        "version": VERSION,
        "weights": weights_hash(clay.model),
        "reading": clay.reading,
        "sensor": sensor.name,
        "bands": {b.name: [b.wavelength, b.mean, b.std] for b in sensor.bands if b.name in archive.assets},
        "archive": f"{archive.name} {archive.collection}".strip(),
        "gsd": archive.gsd,
        **vars(settings),
    }
    return about | {"configuration": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]}
