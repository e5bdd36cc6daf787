"""Embedding an area: from a place, dates and a sensor to vectors of its tiles, and to a raster of its patches.

    >>> embed_area("clay-mini.safetensors", "sentinel-2-l2a", (14.4, 50.0, 14.6, 50.1), "2023-06-01/2023-08-31", "prague")

archives.py: sources of pixels; tiles.py: the grid; jobs.py: planning and embedding; vectors.py, rasters.py: results;
search.py: similarity search among them.
"""

import atexit
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapely import union_all

from clay_lib.areas import jobs as work
from clay_lib.areas import rasters, vectors
from clay_lib.areas.archives import find_acquisitions, open_scenes, parse_area
from clay_lib.areas.composites import composites_of
from clay_lib.areas.items import estimate_bytes
from clay_lib.areas.tiles import grid_around, grid_of, tiles_of
from clay_lib.clay import Clay
from clay_lib.cluster import dask_client, forecast_lines, progress_bar, timed
from clay_lib.datamodule import noise_batch
from clay_lib.errors import ContractError
from clay_lib.files import locked, read_json, remove_leftovers, write_json
from clay_lib.model import ClayConfig
from clay_lib.precision import NAMES, choose
from clay_lib.sensors import SENSORS, Sensor

NETWORK = 12.5  # MB/s, reading speed that a forecast assumes: 100 Mbit/s
ROW_BYTES = 700  # approximate size of a row without its vectors
SEAMS = {
    "seam_step": "steps across seams {:.3f} times those elsewhere",
    "tiles": "checkerboard energy at the period of tiles {:.2f} times that of neighboring frequencies",
    "patches": "at the period of two patches {:.2f} times",
}
FORMER_BATCH = 8  # tiles, of areas that were begun when their batch size was not recorded
SAMPLE_BLOCKS = 64  # blocks from which a forecast extrapolates the bytes to read


@dataclass(frozen=True)
class AreaResult:
    """Results of `embed_area`: files, counts and times."""

    out: Path
    configuration: str  # 16 hex digits, as in the column of that name
    jobs: int  # tiles times dates of the area
    rows: int  # vectors written by this call
    empty: int  # tiles without valid pixels in this call
    skipped: int  # finished by an earlier call
    rasters: tuple[Path, ...] = ()
    seams: dict[str, dict[str, float]] | None = None  # {raster: {measure of visible tiles and patches: value}}
    seconds: float = 0.0
    model_seconds: float = 0.0
    waited_seconds: float = 0.0  # the model idle, waiting for pixels
    effect: dict[str, tuple[float, float]] | None = None  # of place and date, see `jobs.position_effect`

    def vectors(self):
        """The vectors as a geopandas GeoDataFrame."""
        return vectors.read_frame(self.out, configuration=self.configuration)

    def effect_sentences(self) -> list[str]:
        """How much of the vectors is the code of place and of date; none where nothing was embedded."""
        others = {"place": "the antipode", "date": "a date half a year later"}
        return [
            f"{name}: the same pixels given {others[name]} have a cosine of {cosine:.3f}; squared, the difference "
            f"is {share:.1%} of that between tiles (--without {name} embeds without it)"
            for name, (cosine, share) in (self.effect or {}).items()
        ]

    def __str__(self) -> str:
        lines = [
            f"{self.rows} vectors written, {self.skipped} tiles already finished, {self.empty} without valid pixels",
            f"{self.out / 'vectors'}: configuration {self.configuration}",
            *map(str, self.rasters),
        ]
        for name, seams in (self.seams or {}).items():  # NaN: the area is too small to measure it
            measured = [SEAMS[key].format(value) for key, value in seams.items() if math.isfinite(value)]
            lines += [f"{name}: {'; '.join(measured)}"] if measured else []
        lines += self.effect_sentences()
        rate = f" ({self.rows / self.seconds:.1f} tiles/s, {work.pace(self)})" if self.rows else ""
        times = f"{self.model_seconds:.1f} s in the model and {self.waited_seconds:.1f} s waiting for pixels"
        return "\n".join([*lines, f"{self.seconds:.1f} s{rate}, of which {times}"])


@dataclass(frozen=True)
class AreaForecast:
    """Estimated bytes and time of `embed_area`, before any pixel is read."""

    jobs: int
    done: int
    dates: int
    read: int  # bytes
    write: int  # bytes
    model_seconds: float  # measured on random chips

    @property
    def seconds(self) -> float:
        """Reading and embedding run in parallel, so the slower of the two."""
        return max(self.model_seconds, self.read / (NETWORK * 1e6))

    def __str__(self) -> str:
        reading = f"reading {self.read / NETWORK / 6e7:,.1f} (at {NETWORK:g} MB/s, assumed)"
        model = f"the model {self.model_seconds / 60:,.1f} (measured on random chips)"
        lines = {
            "tiles": f"{self.jobs - self.done:,} to embed, {self.done:,} already finished, from {self.dates} dates",
            "to read": f"{self.read / 1e6:,.0f} MB",
            "to write": f"{self.write / 1e6:,.1f} MB",
            "minutes": f"{self.seconds / 60:,.1f}: {model}, {reading}, in parallel",
        }
        return forecast_lines(lines)


def embed_area(
    clay: Clay | str | Path,
    sensor: str | Sensor,
    area,
    dates,
    out: str | Path,
    *,
    scene: Sequence[str] | str | Path | None = None,
    bands: Sequence[str] | Mapping[str, int] | None = None,
    scale: float | None = None,
    offset: float | None = None,
    archive: str | None = None,
    url: str | None = None,
    pick: str = "best",
    max_cloud: float = 100.0,
    clouds: str = "mask",
    composite: str = "",
    period: str = "quarter",
    dilation: int = 3,
    min_clear: int = 1,
    combine: str = "",
    size: int = 256,
    min_valid: float = 0.5,
    store: str = "float16",
    without: str = "",
    dense: str = "",
    overlap: int | None = None,
    components: int = 0,
    level: bool = True,
    like: str = "",
    crs: str = "",
    resolution: float = 0.0,
    bounds: Sequence[float] | str = "",
    normalize: bool = False,
    batch_size: int = 0,
    scheduler: str = "",
    workers: int = 0,
    processes: bool = False,
    forecast: bool = False,
    name: str = "",
    progress: bool = True,
) -> AreaResult | AreaForecast:
    """Embed the images of an area, tile by tile; the same call resumes after a kill at any point.

    Formats of the results: vectors.py, rasters.py; their settings: OUT/configuration-*.json.
    Raises ContractError for an area without images, tiles that cannot be read, and a full disk.

    Args:
        clay: a model, or a file of weights
        sensor: one of the registered sensors
        area: (west, south, east, north) in WGS84 degrees, a shapely geometry, a GeoDataFrame or a vector file; None:
            the complete scene
        dates: such as 2023-06-01/2023-08-31; of a scene: its acquisition time, or None
        out: folder of the results
        scene: your own raster file or folder of single bands, instead of an archive; zero in all bands is nodata.
            Several, also of several CRS: a list, or a pattern such as "scenes/*.tif"
        bands: of a scene: its bands in file order, or {name: number}, where the file does not name them
        scale: of a scene: native numbers are the stored ones times scale plus offset; by default as its header says
        offset: see scale
        archive: name of one of the sensor's archives; by default the first
        url: address of another STAC API with the same collections; on the command line also a folder of `clay archive`
        pick: best (the clearest date of each tile) or all dates
        max_cloud: cloud cover in percent above which images are skipped
        clouds: mask or keep pixels that the archive classifies as clouds
        composite: median, medoid or best-pixel of all dates of each period, instead of single dates
        period: of composites: month, quarter or year
        dilation: of composites: pixels around clouds and shadows that are masked too
        min_clear: of composites: clear observations of a pixel below which it is a hole
        combine: mean or concat of the vectors of all dates or periods, as one more table with a row a tile; the raster
            is the mean, or one each
        size: side of a tile in pixels
        min_valid: least share of valid pixels in a patch
        store: float16, or int8 with one scale per vector
        without: place, date or place,date: what the model is not given
        dense: cog or zarr to write patch vectors as a raster
        overlap: pixels read around a tile for dense features; by default an eighth of its size
        components: number of principal components in the raster; 0: the complete vectors
        level: subtract from the raster the part of each vector that depends on its position in the tile
        like: a raster file whose grid the raster gets, across all zones of UTM; and the tiles are written in its CRS
        crs: the same for a grid in this CRS, such as EPSG:3035
        resolution: of this grid, in the units of the CRS; by default the side of a patch
        bounds: of this grid, left,bottom,right,top in the CRS; by default around all tiles
        normalize: vectors of length one in this grid
        batch_size: tiles per forward pass; 0: as many as the model takes at once, from one block that is read, or as
            many as the area was begun with
        scheduler: address of a Dask scheduler, or slurm; by default a local cluster
        workers: number of reading threads, processes, or SLURM jobs
        processes: read in processes rather than threads
        forecast: report the estimated bytes and time, and stop
        name: model name in the results; by default the file's
        progress: show a progress bar
    """

    start, out = time.perf_counter(), Path(out)
    if not name and isinstance(clay, (str, Path)):
        name = Path(clay).stem
    clay = clay if isinstance(clay, Clay) else Clay.load(clay)
    config, sensor = clay.model.config, SENSORS.resolve(sensor)
    overlap = _check_layout(size, config.patch_size, dense, overlap, components)
    if combine not in ("", "mean", "concat") or (combine and pick != "all" and not composite):
        raise ContractError("combine", combine, "mean or concat, with pick='all' or composites", "one date per tile")
    recipe = f"{composite} a {period}, dilation {dilation}, min_clear {min_clear}" if composite else ""
    settings = work.Settings(size, clouds, min_valid, store, _unknowns(without), recipe)
    vectors.schema(4, store)  # raises for an unknown store
    file_options = dict(bands=bands, scale=scale, offset=offset)
    if not scene and any(value is not None for value in file_options.values()):
        raise ContractError("bands, scale, offset", file_options, "a scene", "an archive states its own")
    acquisitions = open_scenes(scene, sensor, when=dates, **file_options) if scene else []
    shape = parse_area(area) if area is not None or not scene else union_all([a.footprint for a in acquisitions])
    search = dict(archive=archive, url=url, max_cloud=max_cloud)
    acquisitions = acquisitions or find_acquisitions(sensor, shape, dates, **search)
    if composite:
        pick, options = "all", dict(dilation=dilation, min_clear=min_clear)
        acquisitions = composites_of(acquisitions, composite, period, **options)
    tiles = tiles_of(shape, grid_of(acquisitions[0].archive, size))
    blocks = work.plan(tiles, acquisitions, pick)
    jobs = [job for block in blocks for job in block.jobs]
    if not jobs:
        raise ContractError("area", f"{len(tiles)} tiles, none covered by an image", "an area with images",
                            "an area outside the scene, or latitude before longitude")  # fmt: skip
    grid = None
    if own_grid := like or crs or resolution or bounds:
        cell = config.patch_size * jobs[0].tile.gsd
        grid = grid_around([job.tile for job in jobs], cell, like=like, crs=crs, resolution=resolution, bounds=bounds)
    if normalize and (components or not (own_grid and dense)):
        found, expected = f"components {components}, dense {dense!r}", "complete vectors in a grid of your own"
        raise ContractError("normalize", found, expected, "principal components have no length of one, or no --crs")
    given, batch_size = batch_size, batch_size or min(clay.chips_at_once(size, size), max(1, work.BLOCK // size) ** 2)
    clay, metadata = _fix_precision(clay, sensor, acquisitions[0].archive, settings, out, min(batch_size, len(jobs)))
    metadata["model"] = name or f"clay-{config.dim}x{config.depth}"
    folder = rasters.dense_folder(out, metadata, overlap or 0)

    def remaining() -> tuple[set[str], set[str]]:
        """(ids with a row, ids of jobs that lack their row or their dense part)."""
        rows, empty = vectors.done_ids(out, sensor.name, metadata["configuration"])
        todo = {job.id for job in jobs} - rows - empty
        if dense:
            todo |= {job.id for job in jobs if job.id in rows and not rasters.part_path(folder, job.id).is_file()}
        return rows, todo

    if forecast:
        _, todo = remaining()
        read = _bytes_to_read([block for block in blocks if any(job.id in todo for job in block.jobs)], overlap)
        write = len(todo) * _bytes_per_tile(config, settings, overlap, components)
        sides = ([size, size + 2 * overlap] if overlap else [size]) if todo else []  # with overlap, embedded twice
        seconds = len(todo) * sum(_seconds_per_chip(clay, sensor, side, batch_size) for side in sides)
        return AreaForecast(len(jobs), len(jobs) - len(todo), len(acquisitions), read, write, seconds)
    with locked(out / ".lock", "embed"), _disk_errors(out):
        remove_leftovers(out)
        rows, todo = remaining()  # under the lock: another process may have finished a moment ago
        description = out / f"configuration-{metadata['configuration']}.json"
        if not description.is_file():
            _refuse_mixed(out, metadata)
            write_json(description, metadata | {"batch_size": batch_size})
        elif not given:
            batch_size = read_json(description).get("batch_size", FORMER_BATCH)
        if others := sorted({*vectors.runs_of(out)} - {metadata["configuration"]}):
            print(f"{out} also holds vectors of other configurations, stored separately: {', '.join(others)}")
        if outdated := work.outdated(rows, jobs):
            print(f"{out} also holds {len(outdated)} vectors of these tiles and days from other versions of the files "
                  "or another hour; they are kept alongside the new ones: to separate them, use an empty folder")  # fmt: skip
        skipped, tally = len(jobs) - len(todo), work.Tally()
        if todo:
            bar = progress_bar(total=len(jobs), initial=skipped, unit="tile", desc=sensor.name, disable=not progress)
            with bar, _interruptible(), dask_client(scheduler, workers=workers, processes=processes) as client:
                tally = work.embed_jobs(clay, client, blocks, out, metadata, settings, todo=todo, rows=rows,
                                        overlap=overlap, batch_size=batch_size, bar=bar)  # fmt: skip
        work.check_failures(tally, len(todo))
        paths, seams = (), None
        if dense:
            layout = dict(overlap=overlap, patch=config.patch_size, level=level, metadata=metadata)
            layout |= dict(dates="mean" if combine == "mean" else pick, grid=grid, normalize=normalize)
            paths, seams = rasters.write_rasters(folder, jobs, dense, components, **layout)
        if combine:
            ids = [job.id for job in jobs]
            paths += (vectors.write_combined(out, metadata["configuration"], ids, combine),)
        if grid is not None:
            paths += (vectors.write_in_crs(out, metadata["configuration"], str(grid.crs)),)
    return AreaResult(out, metadata["configuration"], len(jobs), tally.rows, tally.empty, skipped, paths, seams,
                      time.perf_counter() - start, tally.model_seconds, tally.waited_seconds, tally.effect)  # fmt: skip


def embed(
    out: str,
    area: str = "",
    dates: str = "",
    *,
    weights: str = "clay-mini.safetensors",
    sensor: str = "sentinel-2-l2a",
    device: str = "auto",
    precision: str = "auto",
    **options: Any,
) -> int:
    """Embed an area: tile vectors as GeoParquet and patch vectors as a raster. The same command resumes.

    Example: clay embed prague "14.4,50.0,14.6,50.1" 2023-06-01/2023-08-31 --dense cog --components 3 --forecast

    Args:
        out: folder of the results
        area: west,south,east,north in degrees, or a GeoJSON, GeoPackage or GeoParquet file; optional with a scene
        dates: such as 2023-06-01/2023-08-31; of a scene: its acquisition time
        weights: a file of weights, the name of shipped ones, or hub:owner/name/path
        sensor: one of the registered sensors
        device: auto, cpu or cuda
        precision: auto, the fastest on this machine that agrees with float32; exact, float32; fast, which may also
            be int8; or medium, bfloat16, float16, int8. An area is finished in the precision that it was begun in
        options: see `embed_area`
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    clay = Clay.load(weights, device=device, precision=precision)
    options["name"] = options.get("name") or Path(weights).stem
    options["url"] = _served(options.get("url"))
    print(embed_area(clay, sensor, area or None, dates or None, out, **options))
    return 0


def _served(url: str | None) -> str | None:
    """The address of a folder of `clay archive`, served until this process ends; any other url unchanged."""
    if not url or not Path(url).is_dir():
        return url
    from clay_lib.areas.local import serve_archive

    server = ExitStack()
    atexit.register(server.close)
    return server.enter_context(serve_archive(url))


def _fix_precision(clay: Clay, sensor: Sensor, archive, settings, out: Path, batch_size: int) -> tuple[Clay, dict]:
    """The model in one precision for all batches, and the configuration; begun areas keep theirs, unless one is named.

    The trial runs on noise, since no pixel has been read yet.
    """
    if clay.precision in ("auto", "fast"):
        configurations = {name: work.configuration_of(clay, sensor, archive, settings, name) for name in NAMES}
        begun = [k for k, c in configurations.items() if (out / f"configuration-{c['configuration']}.json").is_file()]
        cube = noise_batch(sensor, batch_size, settings.size).cube.to(clay.model.encoder.cls_token.device)
        precision = begun[0] if begun else choose(clay.model.encoder, cube, clay.precision)
        clay = Clay(clay.model, reading=clay.reading, precision=precision)
    return clay, work.configuration_of(clay, sensor, archive, settings, clay.precision)


def _unknowns(without: str) -> str:
    names = {name.strip() for name in without.split(",")} - {""}
    if not names <= {"place", "date"}:
        raise ContractError("without", repr(without), "place, date or place,date", "a misspelling")
    return ",".join(sorted(names))


def _refuse_mixed(out: Path, metadata: dict) -> None:
    """ContractError if the folder was begun with the same settings except for `without`: one cannot see which map is which."""
    for path in out.glob("configuration-*.json"):
        begun = read_json(path)
        same = all(begun.get(key, "") == metadata[key] for key in metadata if key not in ("without", "configuration"))
        if same:
            found, expected = (f"without={settings.get('without', '')!r}" for settings in (metadata, begun))
            cause = f"{out} is finished as it was begun: take another folder"
            raise ContractError("without", found, f"{expected}, as it was begun", cause)


def _check_layout(size: int, patch: int, dense: str, overlap: int | None, components: int) -> int | None:
    """The overlap in pixels, None without dense features. ContractError for sizes that do not fit the patches."""
    if dense not in ("", "cog", "zarr") or components < 0 or (components and not dense):
        raise ContractError("dense, components", (dense, components), "cog or zarr, and a number of bands or 0",
                            "components without dense features" if components and not dense else "a misspelling")  # fmt: skip
    default = overlap is None or overlap < 0
    overlap = (size // 8 // patch * patch if default else overlap) if dense else None
    if size < patch or size % patch or (overlap or 0) % patch or (overlap or 0) > size // 2:
        raise ContractError("size, overlap", (size, overlap), f"multiples of the patch of {patch} pixels, the overlap at "
                            "most half the size", "a size of another model")  # fmt: skip
    return overlap


@contextmanager
def _interruptible() -> Iterator[None]:
    """Handle SIGTERM, sent by clusters before they kill, like Ctrl-C: finished batches are published."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into a ContractError; published parts are complete."""
    try:
        yield
    except OSError as error:
        raise ContractError("out", f"{out}: {error.strerror or error}",
                            "a writable folder with room for the results (see --forecast)",
                            "the disk or a quota is full: make room and repeat the command, which resumes") from error  # fmt: skip


# ---- forecast ----


def _bytes_to_read(blocks: list[work.Block], overlap: int | None) -> int:
    sample = blocks[:: max(1, len(blocks) // SAMPLE_BLOCKS)]
    read = sum(estimate_bytes(block.acquisition, block.geobox(overlap or 0)) for block in sample)
    return round(read * len(blocks) / max(1, len(sample)))


def _bytes_per_tile(config: ClayConfig, settings: work.Settings, overlap: int | None, components: int) -> int:
    total = 2 * config.dim * np.dtype(settings.store).itemsize + ROW_BYTES
    if overlap is not None:
        cells, padded = settings.size // config.patch_size, (settings.size + 2 * overlap) // config.patch_size
        total += padded**2 * config.dim * 2 + cells**2 * 4 * (components or config.dim)  # the part, and the raster
    return total


def _seconds_per_chip(clay: Clay, sensor: Sensor, size: int, batch_size: int) -> float:
    """Measured on random pixels."""
    noise = np.random.default_rng(0).normal(size=(batch_size, len(sensor.bands), size, size)).astype(np.float32)
    pixels, options = sensor.denormalize(noise), dict(when="2023-06-10T10:30", lat=10.0, lon=20.0, check=False)

    def embed(chips: np.ndarray) -> None:
        clay.embed(chips, sensor, **options).chip.cpu()

    return timed(lambda: embed(pixels), warm_up=lambda: embed(pixels[:1])) / batch_size
