"""Embedding an area: from a place, dates and a sensor to vectors of its tiles, and to a raster of its patches.

    >>> embed_area("clay-mini.safetensors", "sentinel-2-l2a", (14.4, 50.0, 14.6, 50.1), "2023-06-01/2023-08-31", "prague")

archives.py: where pixels come from; tiles.py: the grid; jobs.py: the plan and the work; vectors.py, rasters.py:
the results; search.py: similar places among them.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clay_lib.areas import jobs as work
from clay_lib.areas import rasters, vectors
from clay_lib.areas.tiles import grid_of, tiles_of
from clay_lib.clay import Clay
from clay_lib.cluster import dask_client, forecast_lines, timed
from clay_lib.errors import ContractError
from clay_lib.files import locked, write_json
from clay_lib.model import ClayConfig
from clay_lib.sensors import SENSORS, Sensor

NETWORK = 12.5  # MB/s that a forecast assumes of reading: 100 Mbit/s
ROW_BYTES = 700  # of a row beside its vectors, about
SAMPLE_BLOCKS = 64  # of which a forecast asks how many bytes reading takes


@dataclass(frozen=True)
class AreaResult:
    """What `embed_area` has left in `out`."""

    out: Path
    configuration: str  # 16 hex digits, as in the rows
    jobs: int  # tiles times dates of the area
    rows: int  # vectors written by this call
    empty: int  # tiles in which this call found nothing to embed
    skipped: int  # done by an earlier call
    rasters: tuple[Path, ...] = ()
    measures: dict[str, dict[str, float]] | None = None  # {raster: {measure: how visible tiles and patches are}}
    seconds: float = 0.0
    model_seconds: float = 0.0
    waited_seconds: float = 0.0  # that the model waited for pixels

    def vectors(self):
        """The vectors as a geopandas GeoDataFrame."""
        return vectors.read_frame(self.out, configuration=self.configuration)

    def __str__(self) -> str:
        lines = [
            f"{self.rows} vectors written, {self.skipped} tiles were done before, {self.empty} hold nothing to embed",
            f"{self.out / 'vectors'}: configuration {self.configuration}",
            *map(str, self.rasters),
        ]
        for name, m in (self.measures or {}).items():
            lines.append(
                f"{name}: steps across seams {m['seam_step']:.3f} times those elsewhere; checkerboard: energy at the "
                f"tiles' period {m['tiles']:.2f} and at two patches {m['patches']:.2f} times that beside it"
            )
        times = f"{self.model_seconds:.1f} s the model and {self.waited_seconds:.1f} s waiting for pixels"
        return "\n".join([*lines, f"{self.seconds:.1f} s, of which {times}"])


@dataclass(frozen=True)
class AreaForecast:
    """What `embed_area` would take, before anything is fetched."""

    jobs: int
    done: int
    dates: int
    read: int  # bytes
    write: int  # bytes
    model_seconds: float  # measured on random chips
    network: float = NETWORK  # MB/s, assumed

    @property
    def seconds(self) -> float:
        """Reading runs beside the model, so the slower of the two."""
        return max(self.model_seconds, self.read / (self.network * 1e6))

    def __str__(self) -> str:
        reading = f"reading {self.read / self.network / 6e7:,.1f} (at {self.network:g} MB/s, assumed)"
        model = f"the model {self.model_seconds / 60:,.1f} (measured on random chips)"
        lines = {
            "tiles": f"{self.jobs - self.done:,} to embed, {self.done:,} done before, from {self.dates} dates",
            "to read": f"{self.read / 1e6:,.0f} MB",
            "to write": f"{self.write / 1e6:,.1f} MB",
            "minutes": f"{self.seconds / 60:,.1f}: {model}, {reading}, side by side",
        }
        return forecast_lines(lines)


def embed_area(
    clay: Clay | str | Path,
    sensor: str | Sensor,
    area,
    dates,
    out: str | Path,
    *,
    scene: str | Path | None = None,
    archive: str | None = None,
    url: str | None = None,
    pick: str = "best",
    max_cloud: float = 100.0,
    clouds: str = "mask",
    size: int = 256,
    min_valid: float = 0.5,
    store: str = "float16",
    dense: str = "",
    overlap: int | None = None,
    components: int = 0,
    level: bool = True,
    batch_size: int = 8,
    scheduler: str = "",
    workers: int = 0,
    processes: bool = False,
    forecast: bool = False,
    network: float = NETWORK,
    name: str = "",
    progress: bool = True,
) -> AreaResult | AreaForecast:
    """Embed the images of an area, tile by tile; the same call resumes after a kill at any point.

    Vectors: see vectors.py; raster: see rasters.py; what shaped them: OUT/configuration-*.json.
    Raises ContractError for an area without images, tiles that cannot be read, and a full disk.

    Args:
        clay: a model, or a file of weights
        sensor: one of the registered sensors
        area: (west, south, east, north) in WGS84 degrees, shapely, a GeoDataFrame or a file of one; None with a scene:
            all of it
        dates: such as 2023-06-01/2023-08-31; of a scene: when it was taken, or None
        out: folder of the results
        scene: a raster file or a folder of single bands of your own, instead of an archive; zero in all bands is nodata
        archive: another public archive of the sensor than the first
        url: another STAC API with the same collections
        pick: best (a tile's clearest date) or all dates
        max_cloud: percent; images with more are left out
        clouds: mask or keep what the archive classifies as clouds
        size: pixels a side of a tile
        min_valid: share of a patch that must have been measured
        store: float16, or int8 with a scale a vector
        dense: cog or zarr for patch vectors as a raster
        overlap: pixels around a tile that dense features are embedded with; by default an eighth of its size
        components: bands of the raster by principal components; 0: the vectors as they are
        level: subtract from the raster the part of vectors that depends on their position in the tile
        batch_size: tiles the model embeds at once
        scheduler: address of a Dask scheduler, or slurm; by default a cluster of this machine
        workers: reading threads, or processes, or SLURM jobs
        processes: read in processes rather than threads
        forecast: report what it would take, and stop
        network: MB/s that the forecast assumes of reading
        name: of the model in the rows; by default the file's
        progress: show a progress bar
    """
    from tqdm.auto import tqdm

    from clay_lib.areas.archives import acquisition_from_file, find_acquisitions, parse_area

    start, out = time.perf_counter(), Path(out)
    if not name and isinstance(clay, (str, Path)):
        name = Path(clay).stem
    clay = clay if isinstance(clay, Clay) else Clay.load(clay)
    config, sensor = clay.model.config, SENSORS.resolve(sensor)
    overlap = _check_layout(size, config.patch_size, dense, overlap, components)
    settings = work.Settings(size=size, clouds=clouds, min_valid=min_valid, store=store)
    vectors.schema(4, store)  # refuses an unknown store
    acquisitions = [acquisition_from_file(scene, sensor, when=dates)] if scene else []
    shape = acquisitions[0].footprint if area is None and scene else parse_area(area)
    search = dict(archive=archive, url=url, max_cloud=max_cloud)
    acquisitions = acquisitions or find_acquisitions(sensor, shape, dates, **search)
    tiles = tiles_of(shape, grid_of(acquisitions[0].archive, size))
    blocks = work.plan(tiles, acquisitions, pick)
    jobs = [job for block in blocks for job in block.jobs]
    if not jobs:
        raise ContractError("area", f"{len(tiles)} tiles, none under an image", "an area that the images meet",
                            "an area beside the scene, or latitude before longitude")  # fmt: skip
    metadata = work.configuration_of(clay, sensor, acquisitions[0].archive, settings)
    metadata["model"] = name or f"clay-{config.dim}x{config.depth}"
    folder = rasters.dense_folder(out, metadata, overlap or 0)
    rows, empty = vectors.done_ids(out, sensor.name, metadata["configuration"])
    todo = {job.id for job in jobs} - rows - empty
    if dense:
        todo |= {job.id for job in jobs if job.id in rows and not rasters.part_path(folder, job.id).is_file()}
    if forecast:
        wanted = [block for block in blocks if any(job.id in todo for job in block.jobs)]
        read, write = (
            _bytes_to_read(wanted, overlap),
            len(todo) * _bytes_per_tile(config, settings, overlap, components),
        )
        sides = ([size, size + 2 * overlap] if overlap else [size]) if todo else []  # tiles are embedded twice
        seconds = len(todo) * sum(_seconds_per_chip(clay, sensor, side, batch_size) for side in sides)
        return AreaForecast(len(jobs), len(jobs) - len(todo), len(acquisitions), read, write, seconds, network)
    with locked(out / ".lock", "embed"), _disk_errors(out):
        about = out / f"configuration-{metadata['configuration']}.json"
        if not about.is_file():
            write_json(about, metadata)
        if others := sorted({*vectors.runs_of(out)} - {metadata["configuration"]}):
            print(f"{out} also holds vectors of other configurations, which stay apart: {', '.join(others)}")
        if outdated := work.outdated(rows, jobs):
            print(f"{out} also holds {len(outdated)} vectors of these tiles and days from other or earlier versions of "
                  "the files, or of another hour; they stay beside the new ones: use an empty folder to avoid that")  # fmt: skip
        skipped, tally = len(jobs) - len(todo), work.Tally()
        if todo:
            bar = tqdm(total=len(jobs), initial=skipped, unit="tile", desc=sensor.name, disable=not progress)
            with bar, _interruptible(), dask_client(scheduler, workers=workers, processes=processes) as client:
                tally = work.embed_jobs(clay, client, blocks, out, metadata, settings, todo=todo, rows=rows,
                                        overlap=overlap, batch_size=batch_size, bar=bar)  # fmt: skip
        work.check_failures(tally, len(todo))
        paths, measures = (), None
        if dense:
            layout = dict(overlap=overlap, patch=config.patch_size, level=level, metadata=metadata)
            paths, measures = rasters.write_rasters(folder, jobs, dense, components, dated=pick == "all", **layout)
    return AreaResult(out, metadata["configuration"], len(jobs), tally.rows, tally.empty, skipped, paths, measures,
                      time.perf_counter() - start, tally.model_seconds, tally.waited_seconds)  # fmt: skip


def embed(
    out: str,
    area: str = "",
    dates: str = "",
    *,
    weights: str = "clay-mini.safetensors",
    sensor: str = "sentinel-2-l2a",
    device: str = "auto",
    precision: str = "float32",
    **options: Any,
) -> int:
    """Embed an area: vectors of its tiles as GeoParquet, and patch vectors as a raster. The same command resumes.

    Example: clay embed prague "14.4,50.0,14.6,50.1" 2023-06-01/2023-08-31 --dense cog --components 3 --forecast

    Args:
        out: folder of the results
        area: west,south,east,north in degrees, or a GeoJSON, GeoPackage or GeoParquet file; a scene needs none
        dates: such as 2023-06-01/2023-08-31; of a scene: when it was taken
        weights: a file of weights, a shipped one, or hub:owner/name/path
        sensor: one of the registered sensors
        device: auto, cpu or cuda
        precision: of the weights: float32, bfloat16 or float16
        options: see `embed_area`
    """
    if precision not in ("float32", "bfloat16", "float16"):
        raise ContractError("precision", precision, "float32, bfloat16 or float16", "a misspelling")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    clay = Clay.load(weights, device=device, dtype=getattr(torch, precision))
    options["name"] = options.get("name") or Path(weights).stem
    print(embed_area(clay, sensor, area or None, dates or None, out, **options))
    return 0


def _check_layout(size: int, patch: int, dense: str, overlap: int | None, components: int) -> int | None:
    """The overlap in pixels, None without dense features; sizes must be multiples of the patch."""
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
    """SIGTERM, which a cluster sends before it kills, ends the work as Ctrl-C does: finished batches are published."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk, or a folder that cannot be written to, as a ContractError; published parts are complete."""
    try:
        yield
    except OSError as error:
        raise ContractError("out", f"{out}: {error.strerror or error}",
                            "room for the results (see --forecast), in a folder that can be written to",
                            "the disk or a quota is full: make room and repeat the command, which resumes") from error  # fmt: skip


# ---- forecast ----


def _bytes_to_read(blocks: list[work.Block], overlap: int | None) -> int:
    from clay_lib.areas.reading import estimate_bytes

    sample = blocks[:: max(1, len(blocks) // SAMPLE_BLOCKS)]
    read = sum(estimate_bytes(block.acquisition, block.geobox(overlap or 0)) for block in sample)
    return round(read * len(blocks) / max(1, len(sample)))


def _bytes_per_tile(config: ClayConfig, settings: work.Settings, overlap: int | None, components: int) -> int:
    total = 2 * config.dim * np.dtype(settings.store).itemsize + ROW_BYTES
    if overlap is not None:
        patches, wide = settings.size // config.patch_size, (settings.size + 2 * overlap) // config.patch_size
        total += wide**2 * config.dim * 2 + patches**2 * 4 * (components or config.dim)  # the part, and the raster
    return total


def _seconds_per_chip(clay: Clay, sensor: Sensor, size: int, batch_size: int) -> float:
    """Of embedding random chips."""
    noise = np.random.default_rng(0).normal(size=(batch_size, len(sensor.bands), size, size)).astype(np.float32)
    pixels, options = sensor.denormalize(noise), dict(when="2023-06-10T10:30", lat=10.0, lon=20.0, check=False)

    def embed(chips: np.ndarray) -> None:
        clay.embed(chips, sensor, **options).chip.cpu()

    return timed(lambda: embed(pixels), warm_up=lambda: embed(pixels[:1])) / batch_size
