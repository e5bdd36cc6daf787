"""Embedding jobs: pairs of a tile and an acquisition, planned, read ahead of the model, embedded and published.

    plan -> read_ahead (Dask, a bounded number of blocks) -> Clay.embed -> vectors and dense parts

Published parts are never redone, and a killed job resumes in the same batches, so that its results are bit-identical.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pystac
import rasterio
import shapely
import shapely.geometry
from odc.geo.geobox import GeoBox

from clay_lib.areas import composites, rasters, reading, vectors
from clay_lib.areas.composites import Composite
from clay_lib.areas.items import Acquisition, Archive, mean_cloud_cover, moment_of
from clay_lib.areas.tiles import Tile, extent
from clay_lib.clay import Clay
from clay_lib.data.rasters import RASTER_ENDINGS
from clay_lib.errors import ContractError, first_line, warn
from clay_lib.files import PartBuffer, hash_tensors
from clay_lib.sensors import Sensor

BLOCK = 768  # largest side of a read request in pixels, unless a single tile is larger
VERSION = 2  # of the processing between a file's pixels and a vector
PART_ROWS, PART_SECONDS = 1024, 60.0  # rows and age at which a part is published; a kill loses no more than that
# Common at the edges of scenes and under clouds; the column valid_share has the numbers.
EXPECTED_WARNINGS = "(?s).*(their result is NaN|of the pixels missing)"
EFFECT_TILES = 4  # tiles on which the effect of place and date is measured
MAX_FAILURES = 20  # failed tiles after which the job stops, if they are the majority


@dataclass(frozen=True, eq=False)
class Job:
    """One tile of one acquisition. items: those that intersect the tile; time: of the earliest, UTC.

    Of a composite, time is the middle of what was used and clear_count the mean over the pixels, once they are read.
    """

    id: str
    tile: Tile
    acquisition: Acquisition
    items: tuple[pystac.Item, ...]
    time: datetime | None
    clear_count: float | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """Neighboring tiles of one acquisition, read in one request, so that shared parts of files are read once.

    jobs: all of them, finished or not, so that a block is always read with the same window.
    """

    jobs: tuple[Job, ...]

    @property
    def acquisition(self) -> Acquisition:
        """Restricted to the items of the jobs."""
        ids = {item.id for job in self.jobs for item in job.items}
        full = self.jobs[0].acquisition
        return replace(full, items=tuple(item for item in full.items if item.id in ids))

    def geobox(self, overlap: int):
        """odc.geo GeoBox around all tiles and `overlap` pixels."""
        corner, rows, columns = extent([job.tile for job in self.jobs])
        shape = rows * corner.size + 2 * overlap, columns * corner.size + 2 * overlap
        return GeoBox(shape, corner.geobox(overlap).affine, corner.crs)

    def window(self, job: Job, overlap: int) -> tuple[slice, slice]:
        """(rows, columns) of a job's tile with its overlap in the pixels of `geobox`."""
        corner, _, _ = extent([job.tile for job in self.jobs])
        y, x = (corner.row - job.tile.row) * job.tile.size, (job.tile.column - corner.column) * job.tile.size
        side = job.tile.size + 2 * overlap
        return slice(y, y + side), slice(x, x + side)


@dataclass(frozen=True)
class Settings:
    """Options of `embed_area` that affect vectors."""

    size: int = 256
    clouds: str = "mask"
    min_valid: float = 0.5
    store: str = "float16"
    without: str = ""  # what the model is not given, of place and date, separated by a comma
    composite: str = ""  # method, period and options of composites


def plan(tiles: Sequence[Tile], acquisitions: Sequence[Acquisition], pick: str) -> list[Block]:
    """Blocks of jobs. pick: "all" acquisitions of a tile, or the "best", with the largest clear share of the tile.

    The clear share is estimated as the share of the tile inside the footprint times one minus the items' cloud cover;
    among equals the first acquisition is taken. Tiles outside of all acquisitions have no job.
    """
    if pick not in ("best", "all"):
        raise ContractError("pick", repr(pick), "best or all", "a misspelling")
    if not tiles or not acquisitions:
        return []
    outlines = np.array([tile.polygon for tile in tiles])
    areas, clear = shapely.area(outlines), np.zeros((len(acquisitions), len(tiles)))
    for k, acquisition in enumerate(acquisitions):
        covered = shapely.area(shapely.intersection(outlines, acquisition.footprint)) / areas
        clear[k] = np.round(covered, 3) * (1 - (acquisition.cloud_cover or 0) / 100 + 1e-6)
    side = max(1, BLOCK // tiles[0].size)
    blocks: dict[tuple, list[Job]] = {}
    best = clear.argmax(axis=0)
    for k, acquisition in enumerate(acquisitions):
        selected = np.flatnonzero((clear[k] > 0) & ((best == k) | (pick == "all")))
        for job in _jobs_of(acquisition, [tiles[n] for n in selected]):
            tile = job.tile
            blocks.setdefault((tile.crs, -(tile.row // side), tile.column // side, k), []).append(job)
    return [Block(tuple(jobs)) for _, jobs in sorted(blocks.items(), key=lambda entry: entry[0])]


def _jobs_of(acquisition: Acquisition, tiles: Sequence[Tile]) -> list[Job]:
    items = [(item, shapely.geometry.shape(item.geometry), moment_of(item)) for item in acquisition.items]
    jobs, versions = [], {}
    for tile in tiles:
        intersecting = [(item, time) for item, shape, time in items if shape.intersects(tile.polygon)]
        read = tuple(item for item, _ in intersecting)
        times = [time for _, time in intersecting if time and acquisition.when]
        when = min(times, default=None)
        # The solar day at the tile depends neither on UTC midnight nor on the rest of the area.
        day = f"{when + timedelta(hours=tile.center[1] / 15):%Y%m%d}" if when else "undated"
        if isinstance(acquisition, Composite):
            day = acquisition.label
        if _versioned(acquisition) and read not in versions:
            versions[read] = _version(acquisition, read, when)
        version = versions.get(read, "")
        name = "_".join(filter(None, [tile.id, acquisition.sensor.name, day, version]))
        jobs.append(Job(name, tile, acquisition, read, when))
    return jobs


def _versioned(acquisition: Acquisition) -> bool:
    """Whether the ids of jobs tell versions of the same tile and date apart: other files, or other images of a period."""
    return acquisition.archive.kind == "files" or isinstance(acquisition, Composite)


def _version(acquisition: Acquisition, items: Sequence[pystac.Item], when: datetime | None) -> str:
    """Eight hex digits of the given date, bands and units, and names, sizes and modification times of local files.

    Of an archive's composite: of the ids of its items.
    """
    if acquisition.archive.kind != "files":
        return hashlib.sha256(repr(sorted(item.id for item in items)).encode()).hexdigest()[:8]
    hrefs = sorted({asset.href for item in items for asset in item.assets.values()})
    # All files that GDAL reads for them: sidecar masks and, recursively, the sources of a VRT.
    files, pending = set(), [*hrefs]
    while pending:
        name = pending.pop()
        if name not in files and Path(name).is_file():
            files.add(name)
            if Path(name).suffix.lower() in RASTER_ENDINGS or name in hrefs:
                with rasterio.open(name) as file:
                    pending += file.files
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(map(Path, files))]
    identity = repr((hrefs, when and when.isoformat(), stats))
    identity += "".join(item.properties.get("given", "") for item in items)
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def outdated(ids: set[str], jobs: Sequence[Job]) -> set[str]:
    """Ids of the same tiles and days as the jobs, but of other versions of their files or images."""
    current = {job.id for job in jobs}
    places = {job.id.rpartition("_")[0] for job in jobs if _versioned(job.acquisition)}
    return {name for name in ids - current if name.rpartition("_")[0] in places}


def configuration_of(clay, sensor: Sensor, archive: Archive, settings: Settings, precision: str = "exact") -> dict:
    """All settings that affect a vector, apart from the pixels, and their hash under "configuration".

    precision: one of precision.NAMES; exact is not hashed, nor is an empty `without` or `composite`, so that areas of
    earlier versions resume.
    """
    model = clay.model
    layout = repr([model.config.frequencies, model.config.patch_size, model.config.heads])
    metadata = {
        "version": VERSION,
        "weights": hash_tensors(model.encoder.state_dict(), layout)[:16],  # the same with or without a decoder
        "reading": clay.reading,
        "sensor": sensor.name,
        "bands": {b.name: [b.wavelength, b.mean, b.std] for b in sensor.bands if b.name in archive.assets},
        "archive": f"{archive.name} {archive.collection}".strip(),
        "gsd": archive.gsd,
        **vars(settings),
    }
    hashed = metadata if precision == "exact" else metadata | {"precision": precision}
    hashed = {k: v for k, v in hashed.items() if v or k not in ("without", "composite")}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]
    return metadata | {"precision": precision, "configuration": digest}


# ---- embedding ----


@dataclass
class Tally:
    """Counts, errors and times of embedding."""

    rows: int = 0  # written
    empty: int = 0  # tiles without valid pixels
    unread: list[tuple[str, Exception]] = field(default_factory=list)  # (id, error) of tiles that could not be read
    refused: list[tuple[str, Exception]] = field(default_factory=list)  # (id, error) of tiles with implausible pixels
    bytes_read: int = 0  # of pixels, uncompressed
    model_seconds: float = 0.0
    waited_seconds: float = 0.0  # the model idle, waiting for pixels
    effect: dict[str, tuple[float, float]] | None = None  # of place and date, see `position_effect`


def pace(times) -> str:
    """What limits a job, from its model_seconds and waited_seconds (pixels are read while the model computes)."""
    slower = "reading" if times.waited_seconds > times.model_seconds else "the model"
    return f"{slower} sets the pace"


def embed_jobs(
    clay: Clay,
    client,
    blocks: Sequence[Block],
    out: Path,
    metadata: dict,
    settings: Settings,
    *,
    todo: set[str],
    rows: set[str],
    overlap: int | None,
    batch_size: int,
    bar,
) -> Tally:
    """Embed the jobs whose id is in todo, batch by batch, publishing rows and dense parts along the way.

    rows: ids that already have a row and lack only the dense part. overlap: None for no dense features.
    Batches are cut from all jobs, finished or not, so that they and the rounding of their results are always the same.
    """
    names = ("sensor", "gsd", "model", "weights", "configuration") + ("composite",) * bool(settings.composite)
    shared = {name: metadata[name] for name in names}
    folder, tally = rasters.dense_folder(out, metadata, overlap or 0), Tally()

    def publish(results: list) -> None:
        new, empty = [row for _, row in results if row], [name for name, row in results if row is None]
        vectors.write_part(out, new, empty, shared, clay.model.config.dim, settings.store, metadata["precision"])

    buffer = PartBuffer(publish, rows=PART_ROWS, seconds=PART_SECONDS)
    jobs = [job for block in blocks for job in block.jobs]
    batches = [[job for job in jobs[k : k + batch_size] if job.id in todo] for k in range(0, len(jobs), batch_size)]
    blocks = [block for block in blocks if any(job.id in todo for job in block.jobs)]
    read_block = composites.read_block if settings.composite else reading.read_block
    reads = reading.read_ahead(client, blocks, read_block, overlap=overlap or 0, clouds=settings.clouds)
    pixels = ((job, read) for job, read in reads if job.id in todo)
    if settings.composite:
        pixels = (composites.dated(job, read, settings.size) for job, read in pixels)
    reported: set[str] = set()
    with closing(reads), closing(pixels):
        try:
            for batch in filter(None, batches):
                start = time.perf_counter()
                read = [next(pixels) for _ in batch]
                tally.waited_seconds += time.perf_counter() - start
                tally.bytes_read += sum(pair[0].nbytes for _, pair in read if not isinstance(pair, Exception))
                start = time.perf_counter()
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", UserWarning)
                    warnings.filterwarnings("ignore", EXPECTED_WARNINGS)
                    results = embed_batch(clay, read, settings, overlap)
                tally.model_seconds += time.perf_counter() - start
                for warning in caught:
                    cause = str(warning.message).rpartition("Likely cause: ")[2]
                    if cause not in reported:
                        reported.add(cause)
                        bar.clear()
                        once = f"(reported once, first in the batch of tile {batch[0].tile.id})"
                        warn(f"{warning.message} {once}", warning.category)
                known = [(*pair, row) for pair, row in zip(read, results, strict=True) if isinstance(row, dict)]
                if tally.effect is None and len(known) > 1:
                    tally.effect = position_effect(clay, known, settings)
                done = []
                for (job, pair), row in zip(read, results, strict=True):
                    if isinstance(row, Exception):
                        (tally.unread if row is pair else tally.refused).append((job.id, row))
                        continue
                    if row is not None and overlap is not None:
                        rasters.write_patches(folder, job, row.pop("patches"))
                    if job.id not in rows:
                        done.append((job.id, row))
                tally.rows += sum(row is not None for _, row in done)
                tally.empty += sum(row is None for _, row in done)
                buffer.add(*done)  # complete batches, even if interrupted: rounding depends on the batch
                bar.update(len(batch))
                bar.set_postfix_str(f"{tally.bytes_read / 1e6:,.0f} MB of pixels, {pace(tally)}")
                failed = len(tally.unread) + len(tally.refused)
                if failed >= MAX_FAILURES and failed > tally.rows + tally.empty:
                    break
        finally:
            buffer.flush()
    return tally


def embed_batch(clay: Clay, read: Sequence[tuple], settings: Settings, overlap: int | None) -> list:
    """A row for each (job, (pixels, bands) or exception), as in `vectors.write_part`, with "patches" [h, w, D].

    None: no valid pixels; an exception: pixels unreadable, or implausible for the sensor.
    The tile's vector never includes the overlap that dense features are embedded with.
    """
    o = overlap or 0
    core = slice(o, o + settings.size)
    results: list = [pair if isinstance(pair, Exception) else None for _, pair in read]
    valid = [k for k, (_, pair) in enumerate(read) if results[k] is None and np.isfinite(pair[0][:, core, core]).any()]
    if not valid:
        return results
    padded = np.stack([read[k][1][0] for k in valid])  # [B, C, size + 2 o, size + 2 o]
    pixels, jobs = padded[..., core, core], [read[k][0] for k in valid]
    options = _options(jobs, read[valid[0]][1][1], settings)
    try:
        chips = clay.embed(pixels, jobs[0].acquisition.sensor, **options)
        patches = (clay.embed(padded, jobs[0].acquisition.sensor, **options) if o else chips).patches  # [B, h, w, D]
    except ContractError as error:
        if len(valid) == 1:
            results[valid[0]] = error
        else:  # retry one by one, so that one bad tile does not lose the others
            for k in valid:
                (results[k],) = embed_batch(clay, [read[k]], settings, overlap)
        return results
    chip_vectors, means = chips.chip.cpu().numpy(), chips.mean.cpu().numpy()  # [B, D] each
    for n, (k, job) in enumerate(zip(valid, jobs, strict=True)):
        if np.isfinite(chip_vectors[n]).all():
            results[k] = dict(
                id=job.id,
                tile=job.tile.id,
                geometry=job.tile.polygon,
                time=job.time,
                items=[item.id for item in job.items],
                cloud_cover=mean_cloud_cover(job.items),  # percent
                clear_count=job.clear_count,
                valid_share=float(np.isfinite(pixels[n]).mean()),
                vector=chip_vectors[n],
                patch_mean=means[n],
                patches=None if overlap is None else patches[n].cpu().numpy().astype(np.float16),
            )
    return results


def _options(jobs: Sequence[Job], bands: Sequence[str], settings: Settings) -> dict:
    """What `Clay.embed` takes beside the pixels of the jobs."""
    lat, lon = map(list, zip(*(job.tile.center for job in jobs), strict=True))
    place = {} if "place" in settings.without else dict(lat=lat, lon=lon)
    place |= {} if "date" in settings.without else dict(when=[job.time for job in jobs])
    return dict(bands=bands, min_valid=settings.min_valid, gsd=jobs[0].tile.gsd, **place)


def position_effect(clay: Clay, batch: Sequence[tuple], settings: Settings) -> dict[str, tuple[float, float]]:
    """How much of the vectors is the code of place or date: {"place", "date": (cosine, share)}.

    batch: (job, (pixels, bands), row) of tiles. The same pixels are given the antipode, or a date half a year later.
    cosine: mean between the vectors with the true and the other one. share: their mean squared distance over that between
    different tiles; NaN for a single tile.
    """
    jobs, read, rows = zip(*batch[:EFFECT_TILES], strict=True)
    vectors = np.stack([row["vector"] for row in rows])  # [B, D]
    between = np.square(vectors[:, None] - vectors).sum(-1).sum() / max(len(jobs) * (len(jobs) - 1), 1)
    core = slice((read[0][0].shape[-1] - settings.size) // 2, (read[0][0].shape[-1] + settings.size) // 2)
    pixels, options, effect = np.stack([p[:, core, core] for p, _ in read]), _options(jobs, read[0][1], settings), {}
    others = {"place": {}, "date": {}}
    if "lat" in options:
        others["place"] = dict(lat=[-lat for lat in options["lat"]], lon=[(lon % 360) - 180 for lon in options["lon"]])
    if all(options.get("when") or [None]):
        others["date"] = dict(when=[when + timedelta(days=182) for when in options["when"]])
    for name, other in others.items():
        if other:
            moved = clay.embed(pixels, jobs[0].acquisition.sensor, **options | other, check=False).chip.cpu().numpy()
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(moved, axis=1)
            share = np.square(vectors - moved).sum(-1).mean() / between if between > 0 else np.nan
            effect[name] = float(np.mean((vectors * moved).sum(-1) / lengths)), float(share)
    return effect


def check_failures(tally: Tally, total: int) -> None:
    """Raise ContractError for the first tile that could not be read or, if there is none, had implausible pixels."""
    failures = tally.unread or tally.refused
    if not failures:
        return
    name, error = failures[0]
    if not isinstance(error, ContractError):
        cause = "a server or file that fails repeatedly"
        error = ContractError("reading", first_line(error), "pixels of every tile", cause)
    found = f"{error.found} ({len(failures)} of {total} tiles failed, the first {name})"
    cause = f"{error.cause}; all other tiles are kept"
    if tally.unread:
        cause += ": repeat the command to retry the failed tiles"
    raise ContractError(error.field, found, error.expected, cause)
