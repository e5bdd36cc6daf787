"""Jobs: which tiles of which acquisitions an area asks for, how each is called, and what shapes its vector."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pystac
import rasterio
import shapely
import shapely.geometry
from odc.geo.geobox import GeoBox

from clay_lib.areas.items import Acquisition, Archive, moment_of
from clay_lib.areas.tiles import Tile
from clay_lib.clay import Clay
from clay_lib.data.rasters import RASTER_ENDINGS
from clay_lib.errors import ContractError
from clay_lib.files import hash_tensors
from clay_lib.sensors import Sensor

BLOCK = 768  # pixels a side that are read in one go, at most, where a tile is smaller
VERSION = 2  # of all that happens between a file's pixels and a vector


@dataclass(frozen=True, eq=False)
class Job:
    """One tile in one acquisition. items: those of the acquisition that meet the tile; time: of the first of them, UTC."""

    id: str
    tile: Tile
    acquisition: Acquisition
    items: tuple[pystac.Item, ...]
    time: datetime | None

    @property
    def cloud_cover(self) -> float | None:
        """Percent, the mean over the items that tell it."""
        told = [cover for i in self.items if (cover := i.properties.get("eo:cloud_cover")) is not None]
        return sum(told) / len(told) if told else None


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring tiles of one acquisition, read in one go: fewer requests, and shared parts of a file fetched once.

    jobs: all that the plan has there, done or not, so that a block is always read with the same window.
    """

    jobs: tuple[Job, ...]

    @property
    def acquisition(self) -> Acquisition:
        wanted = {item.id for job in self.jobs for item in job.items}
        return replace(
            self.jobs[0].acquisition, items=tuple(i for i in self.jobs[0].acquisition.items if i.id in wanted)
        )

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """(first column, last column, first row, last row) on the grid of tiles, rows northwards."""
        columns, rows = ([getattr(job.tile, which) for job in self.jobs] for which in ("column", "row"))
        return min(columns), max(columns), min(rows), max(rows)

    def geobox(self, overlap: int):
        """odc.geo GeoBox around all tiles and `overlap` pixels."""

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


def plan(tiles: Sequence[Tile], acquisitions: Sequence[Acquisition], pick: str) -> list[Block]:
    """Blocks of jobs. pick: "all" acquisitions at a tile, or the "best", whose clear share promises most.

    The promise is the share of the tile under the acquisition's footprint times one minus its items' cloud cover; of equal
    ones the first acquisition wins. Tiles that no acquisition meets have no job.
    """
    if pick not in ("best", "all"):
        raise ContractError("pick", repr(pick), "best or all", "a misspelling")
    if not tiles or not acquisitions:
        return []
    outlines = np.array([tile.polygon for tile in tiles])
    areas, promise = shapely.area(outlines), np.zeros((len(acquisitions), len(tiles)))
    for k, acquisition in enumerate(acquisitions):
        covered = shapely.area(shapely.intersection(outlines, acquisition.footprint)) / areas
        promise[k] = np.round(covered, 3) * (1 - (acquisition.cloud_cover or 0) / 100 + 1e-6)
    side = max(1, BLOCK // tiles[0].size)
    blocks: dict[tuple, list[Job]] = {}
    best = promise.argmax(axis=0)
    for k, acquisition in enumerate(acquisitions):
        chosen = np.flatnonzero((promise[k] > 0) & ((best == k) | (pick == "all")))
        for job in _jobs_of(acquisition, [tiles[n] for n in chosen]):
            tile = job.tile
            blocks.setdefault((tile.crs, -(tile.row // side), tile.column // side, k), []).append(job)
    return [Block(tuple(jobs)) for _, jobs in sorted(blocks.items(), key=lambda entry: entry[0])]


def _jobs_of(acquisition: Acquisition, tiles: Sequence[Tile]) -> list[Job]:
    shapes = [shapely.geometry.shape(item.geometry) for item in acquisition.items]
    moments = [moment_of(item) for item in acquisition.items]
    stamp = _file_stamp(acquisition)
    jobs = []
    for tile in tiles:
        meets = [k for k, shape in enumerate(shapes) if shape.intersects(tile.polygon)]
        times = [moments[k] for k in meets if moments[k]]
        when = min(times) if times and acquisition.when else None
        # The solar day at the tile: the same wherever UTC's midnight falls, and whatever else the area meets.
        day = f"{when + timedelta(hours=tile.center[1] / 15):%Y%m%d}" if when else "undated"
        name = "_".join(filter(None, [tile.id, acquisition.sensor.name, day, stamp]))
        jobs.append(Job(name, tile, acquisition, tuple(acquisition.items[k] for k in meets), when))
    return jobs


def _file_stamp(acquisition: Acquisition) -> str:
    """Eight digits of which local files these are, as they stand, and of the moment that was told of them; "" for
    archives, whose items do not change."""
    if acquisition.archive.kind != "files":
        return ""
    hrefs = sorted({asset.href for item in acquisition.items for asset in item.assets.values()})
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _files_behind(hrefs)]
    told = hrefs, acquisition.when and acquisition.when.isoformat(), files
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
    asked = {job.id.rpartition("_")[0] for job in jobs if job.acquisition.archive.kind == "files"}
    return {one for one in ids - {job.id for job in jobs} if one.rpartition("_")[0] in asked}


def weights_hash(model) -> str:
    """16 hex digits of the encoder's tensors: the same for every file that holds them, with or without a decoder."""
    told = repr([model.config.frequencies, model.config.patch_size, model.config.heads])
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


# ---- Forecast of embedding an area: tiles, bytes and minutes, before anything is fetched ----

NETWORK = 12.5  # MB/s that a forecast assumes of reading: 100 Mbit/s


@dataclass(frozen=True)
class AreaForecast:
    """What `embed_area` would take, before anything is fetched."""

    jobs: int
    done: int
    acquisitions: int
    read: int  # bytes
    write: int  # bytes
    model_seconds: float  # measured on made-up chips
    network: float = NETWORK  # MB/s, assumed

    @property
    def seconds(self) -> float:
        """Reading runs beside the model, so the slower of the two."""
        return max(self.model_seconds, self.read / (self.network * 1e6))

    def __str__(self) -> str:
        lines = {
            "tiles": f"{self.jobs - self.done:,} to embed, {self.done:,} done before, from {self.acquisitions} dates",
            "to read": f"{self.read / 1e6:,.0f} MB",
            "to write": f"{self.write / 1e6:,.1f} MB",
            "minutes": f"{self.seconds / 60:,.1f}: the model {self.model_seconds / 60:,.1f} (measured on made-up chips), "
            f"reading {self.read / self.network / 6e7:,.1f} (at {self.network:g} MB/s, assumed), side by side",
        }
        return "\n".join(f"{what:<10}{value}" for what, value in lines.items())


def forecast_area(
    clay, sensor, blocks, lacking, acquisitions, settings, overlap, components, batch_size, network
) -> AreaForecast:
    from clay_lib.areas.reading import estimate_bytes

    jobs = [job for block in blocks for job in block.jobs]
    todo = [job for job in jobs if job.id in lacking]
    fetched = [block for block in blocks if any(job.id in lacking for job in block.jobs)]
    asked = fetched[:: max(1, len(fetched) // 64)]  # of many blocks, evenly spaced ones tell enough
    read = (
        sum(estimate_bytes(block.acquisition, block.geobox(overlap or 0)) for block in asked)
        * len(fetched)
        / max(1, len(asked))
    )
    dim, number = clay.model.config.dim, 2 if settings.store == "float16" else 1
    write = len(todo) * (2 * dim * number + 700)
    wide = settings.size + 2 * (overlap or 0)
    if overlap is not None:
        patch = clay.model.config.patch_size
        write += len(todo) * ((wide // patch) ** 2 * dim * 2 + (settings.size // patch) ** 2 * 4 * (components or dim))
    sides = [settings.size] + ([wide] if overlap else [])
    seconds = sum(seconds_a_chip(clay, sensor, side, batch_size) for side in sides) if todo else 0.0
    return AreaForecast(
        len(jobs), len(jobs) - len(todo), len(acquisitions), round(read), write, seconds * len(todo), network
    )


def seconds_a_chip(clay: Clay, sensor: Sensor, size: int, batch_size: int) -> float:
    """Of embedding made-up chips of a sensor, after one batch that warms up."""
    noise = np.random.default_rng(0).normal(size=(batch_size, len(sensor.bands), size, size)).astype(np.float32)
    pixels = sensor.denormalize(noise)
    told = dict(when="2023-06-10T10:30", lat=10.0, lon=20.0, check=False)
    clay.embed(pixels[:1], sensor, **told).chip.cpu()
    began = time.perf_counter()
    clay.embed(pixels, sensor, **told).chip.cpu()
    return (time.perf_counter() - began) / batch_size
