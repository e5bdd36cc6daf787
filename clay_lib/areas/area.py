"""Embedding an area: from a place, dates and a sensor to vectors of its tiles, and to a raster of its patches.

    >>> embed_area("clay-mini.safetensors", "sentinel-2-l2a", (14.4, 50.0, 14.6, 50.1), "2023-06-01/2023-08-31", "prague")

archives.py: where pixels come from; tiles.py: the grid; area_jobs.py: what is to be done; area_reading.py,
area_work.py: doing it; vectors.py and dense.py: what it leaves.
"""

from __future__ import annotations

import fcntl
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clay_lib.areas import rasters, vectors
from clay_lib.areas.jobs import NETWORK, AreaForecast, Block, Job, Settings, forecast_area
from clay_lib.areas.reading import read_ahead
from clay_lib.clay import Clay
from clay_lib.errors import ContractError, warn
from clay_lib.files import write_json
from clay_lib.sensors import SENSORS, Sensor

PART_ROWS, PART_SECONDS = 1024, 60.0  # rows are published when so many or so old: what a killed job computes again
# Warnings that say nothing here: tiles reach over the edges of scenes and into clouds; valid_share says how far.
USUAL = "their outcome is NaN|of the pixels missing"
FAILURES = 20  # so many tiles that fail, and most of those tried, end the job early


@dataclass
class Tally:
    """What a job did: rows written, tiles with nothing to embed, tiles that failed, seconds of the model's own work."""

    rows: int = 0
    empty: int = 0
    failed: tuple[tuple[str, Exception], ...] = ()  # (id, error) of tiles that could not be read
    refused: tuple[tuple[str, Exception], ...] = ()  # of those that are not what their sensor's images are
    pixels_read: int = 0  # bytes of pixels that came back from reading
    model_seconds: float = 0.0
    waited_seconds: float = 0.0  # that the model waited for pixels


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """One job at a time writes under a folder; the lock goes with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ContractError(
                "out",
                f"another job at work in {out}",
                "one job a folder at a time",
                "the same command runs in another window",
            ) from None
        yield


@contextmanager
def ended_gently() -> Iterator[None]:
    """SIGTERM, which a cluster sends before it kills, ends the work as Ctrl-C does: what is whole is published."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """A disk that is full, or a folder that cannot be written, told once; what was published is whole."""
    try:
        yield
    except OSError as error:
        raise ContractError(
            "out",
            f"{out}: {error.strerror or error}",
            "room for the results (--forecast tells how much), in a folder that can be written to",
            "the disk or a quota is full: make room and give the same command again, it goes on from what is there",
        ) from error


def embed_jobs(
    clay,
    client,
    blocks: Sequence[Block],
    out: Path,
    about: dict,
    settings: Settings,
    *,
    lacking: set[str],
    rows_there: set[str],
    overlap: int | None,
    batch_size: int,
    bar,
) -> Tally:
    """Embed the jobs whose id is lacking, batch by batch; publish rows and dense parts as they come.

    rows_there: ids whose row is there already, and only the dense part is not. overlap: None for no dense features.
    Batches are cut from all jobs, lacking or not, so that they are always the same.
    """
    writer, tally = Writer(out, about, settings.store, clay.model.config.dim), Tally()
    home = rasters.folder(out, about, overlap or 0)
    jobs = [job for block in blocks for job in block.jobs]
    batches = [[job for job in jobs[k : k + batch_size] if job.id in lacking] for k in range(0, len(jobs), batch_size)]
    asked = [block for block in blocks if any(job.id in lacking for job in block.jobs)]
    ahead = read_ahead(client, asked, overlap=overlap or 0, clouds=settings.clouds)
    pixels = ((job, got) for job, got in ahead if job.id in lacking)
    seen: set[str] = set()
    with closing(ahead), closing(pixels):
        try:
            for batch in filter(None, batches):
                start = time.perf_counter()
                read = [next(pixels) for _ in batch]
                tally.waited_seconds += time.perf_counter() - start
                start = time.perf_counter()
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always", UserWarning)
                    made = embed_batch(clay, read, settings, overlap)
                tally.model_seconds += time.perf_counter() - start
                tally.pixels_read += sum(got[0].nbytes for _, got in read if not isinstance(got, Exception))
                _warn_once(told, seen, batch[0], bar)
                done = {}
                for (job, got), row in zip(read, made, strict=True):
                    if isinstance(got, Exception):
                        tally.failed += ((job.id, got),)
                    elif isinstance(row, Exception):
                        tally.refused += ((job.id, row),)
                    else:
                        if row is not None and overlap is not None:
                            with writing(out):
                                rasters.write_part(home, job, row["patches"])
                        if job.id not in rows_there:
                            done[job.id] = row
                writer.add(done)
                writer.publish(now=False)
                bar.update(len(batch))
                bar.set_postfix_str(f"{tally.pixels_read / 1e6:,.0f} MB of pixels")
                bad = len(tally.failed) + len(tally.refused)
                if bad >= FAILURES and bad > writer.rows + writer.empty:
                    break
        finally:  # interrupted as well
            writer.publish()
    tally.rows, tally.empty = writer.rows, writer.empty
    return tally


class Writer:
    """Rows in memory until they are published together."""

    def __init__(self, out: Path, about: dict, store: str, dim: int):
        self.out, self.store, self.dim = out, store, dim
        self.shared = {name: about[name] for name in ("sensor", "gsd", "model", "weights", "configuration")}
        self.waiting: dict[str, dict | None] = {}
        self.rows = self.empty = 0
        self.began = time.monotonic()

    def add(self, batch: dict[str, dict | None]) -> None:
        """{id: row, or None for a tile that holds nothing to embed}, all at once: an interruption leaves whole batches,
        since a batch cut in two would have other numbers in its last digits."""
        self.waiting |= batch
        empty = sum(row is None for row in batch.values())
        self.rows, self.empty = self.rows + len(batch) - empty, self.empty + empty

    def publish(self, *, now: bool = True) -> None:
        """Now, or when there is enough of it or it is old."""
        due = len(self.waiting) >= PART_ROWS or time.monotonic() - self.began > PART_SECONDS
        if not self.waiting or not (now or due):
            return
        rows = [row for row in self.waiting.values() if row is not None]
        empty = [job_id for job_id, row in self.waiting.items() if row is None]
        with writing(self.out):
            vectors.write_part(self.out, rows, empty, self.shared, self.dim, self.store)
        self.waiting, self.began = {}, time.monotonic()


def embed_batch(clay, read: Sequence[tuple], settings: Settings, overlap: int | None) -> list:
    """A row for each (job, (pixels, bands) or exception): as `vectors.write_part` takes it, with "patches" [h, w, D].

    None: nothing there to embed; an exception: could not be read, or is not what its sensor's images are.
    The chip's vector is that of the tile alone, whether or not dense features want a wider look at it.
    """
    wide = overlap or 0
    core = slice(wide, wide + settings.size)
    out: list = [got if isinstance(got, Exception) else None for _, got in read]
    held = [k for k, (_, got) in enumerate(read) if out[k] is None and np.isfinite(got[0][:, core, core]).any()]
    if not held:
        return out
    whole = np.stack([read[k][1][0] for k in held])
    pixels, jobs, bands = whole[..., core, core], [read[k][0] for k in held], read[held[0]][1][1]
    try:
        made = _embed(clay, pixels, jobs, bands, settings)
        wider = _embed(clay, whole, jobs, bands, settings) if wide else made
    except ContractError as error:
        if len(held) == 1:
            out[held[0]] = error
        else:  # one bad tile must not lose the others
            for k in held:
                (out[k],) = embed_batch(clay, [read[k]], settings, overlap)
        return out
    chips, means = made.chip.cpu().numpy(), made.mean.cpu().numpy()
    for n, k in enumerate(held):
        if np.isfinite(chips[n]).all():
            out[k] = dict(
                id=jobs[n].id,
                tile=jobs[n].tile.id,
                geometry=jobs[n].tile.polygon,
                time=jobs[n].time,
                items=[item.id for item in jobs[n].items],
                cloud_cover=jobs[n].cloud_cover,
                valid_share=float(np.isfinite(pixels[n]).mean()),
                vector=chips[n],
                patch_mean=means[n],
                patches=None if overlap is None else wider.patches[n].cpu().numpy().astype(np.float16),
            )
    return out


def _embed(clay, pixels: np.ndarray, jobs: Sequence[Job], bands: Sequence[str], settings: Settings):
    lat, lon = zip(*(job.tile.center for job in jobs), strict=True)
    return clay.embed(
        pixels,
        jobs[0].acquisition.sensor,
        bands=bands,
        when=[job.time for job in jobs],
        lat=list(lat),
        lon=list(lon),
        gsd=jobs[0].tile.gsd,
        min_valid=settings.min_valid,
    )


def write_about(out: Path, about: dict) -> Path:
    """OUT/configuration-HASH.json: what the hash stands for."""
    path = out / f"configuration-{about['configuration']}.json"
    if not path.is_file():
        with writing(out):
            write_json(path, about)
    return path


def _warn_once(told, seen: set[str], first: Job, bar) -> None:
    """What a batch was warned of, unless a batch before was for the same cause."""
    for warning in told:
        text = str(warning.message)
        cause = text.rpartition("Likely cause: ")[2]
        if cause not in seen and not re.search(USUAL, text):
            seen.add(cause)
            bar.clear()
            warn(f"{text} (told once, of the batch from tile {first.tile.id} on)", warning.category)


def check_failures(tally: Tally, asked: int) -> None:
    """ContractError in the words of the first tile that could not be read, or else was refused by the contract check."""
    some = tally.failed or tally.refused
    if not some:
        return
    first, error = some[0]
    if not isinstance(error, ContractError):
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        cause = "a server or file that fails again and again"
        error = ContractError("reading", line, "pixels of every tile", cause)
    kept = "all other tiles are kept"
    raise ContractError(
        error.field,
        f"{error.found} ({len(some)} of {asked} tiles failed, the first {first})",
        error.expected,
        f"{error.cause}; {kept}" + (": the same command asks again for those that failed" if tally.failed else ""),
    )


# ---- Embedding an area: from a place, dates and a sensor to vectors of its tiles, and to a raster of its  ----


@dataclass(frozen=True)
class AreaResult:
    """What lies in `out` after `embed_area`."""

    out: Path
    configuration: str  # 16 hex digits, as in the rows
    jobs: int  # tiles times dates that were asked for
    rows: int  # vectors written by this call
    empty: int  # tiles that this call found to hold nothing to embed
    skipped: int  # done by an earlier call
    rasters: tuple[Path, ...] = ()
    measures: dict[str, dict[str, float]] | None = None  # {raster: how much of tiles and patches shows, see seams.py}
    seconds: float = 0.0
    model_seconds: float = 0.0
    waited_seconds: float = 0.0  # that the model waited for pixels

    def vectors(self):
        """The vectors as a geopandas GeoDataFrame."""
        from clay_lib.areas.vectors import read_frame

        return read_frame(self.out, configuration=self.configuration)

    def __str__(self) -> str:
        lines = [
            f"{self.rows} vectors written, {self.skipped} tiles were done before, {self.empty} hold nothing to embed",
            f"{self.out / 'vectors'}: configuration {self.configuration}",
            *(f"{path}" for path in self.rasters),
            *(
                f"{name}: steps across seams {m['seam_step']:.3f} times those elsewhere; checkerboard: energy at the tiles' "
                f"period {m['tiles']:.2f} and at two patches {m['patches']:.2f} times that beside it"
                for name, m in (self.measures or {}).items()
            ),
            f"{self.seconds:.1f} s, of which the model worked {self.model_seconds:.1f} and waited for pixels {self.waited_seconds:.1f}",
        ]  # fmt: skip
        return "\n".join(lines)


def embed_area(
    clay: Clay | str | Path,
    sensor: str | Sensor,
    area,
    dates,
    out: str | Path,
    *,
    scene=None,
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
    """Embed what a sensor saw of an area, tile by tile; killed at any moment, the same call goes on.

    area: (west, south, east, north) in WGS84 degrees, shapely, a GeoDataFrame or a file of one; None with a scene: all
    of it. dates: "2023-06-01/2023-08-31". scene: a file or folder of your own instead of an archive, of the date
    `dates` (one date, or None), in which zero in all bands is no measurement. archive, url: another archive of the
    sensor than the first, another server for it.
    pick: "best", for each tile the date that promises most clear pixels of it, or "all" dates. max_cloud: percent.
    clouds: "mask" what the archive calls cloudy, or "keep". size: pixels a side of a tile. min_valid: see `Clay.embed`.
    store: "float16", or "int8" with a scale a vector. dense: "cog" or "zarr" also writes patch vectors as a raster, of
    `components` principal components where that is not 0; overlap: pixels that a tile is read and embedded beyond its
    edges for them, by default an eighth of its size; level: subtract what vectors owe to their place in the tile.
    scheduler, workers, processes: see `cluster.dask_client`. forecast: only say what it would take; network: MB/s.
    name: of the model, as the rows tell it; by default the file's.
    Vectors: see vectors.py; raster: see dense.py; what shaped them: OUT/configuration-*.json.
    """
    from tqdm.auto import tqdm

    from clay_lib.areas import jobs as area_jobs
    from clay_lib.areas import rasters, vectors
    from clay_lib.areas import rasters as features
    from clay_lib.areas.archives import acquisition_from_file, find_acquisitions, parse_area
    from clay_lib.areas.tiles import grid_of, tiles_of
    from clay_lib.cluster import dask_client

    began, out = time.perf_counter(), Path(out)
    if not name and isinstance(clay, (str, Path)):
        name = Path(clay).stem
    clay = clay if isinstance(clay, Clay) else Clay.load(clay)
    sensor = SENSORS.resolve(sensor)
    patch = clay.model.config.patch_size
    overlap = check_layout(size, patch, dense, overlap, components)
    settings = area_jobs.Settings(size=size, clouds=clouds, min_valid=min_valid, store=store)
    vectors.schema(4, store)  # refuses a store that is none
    acquisitions = [acquisition_from_file(scene, sensor, when=dates)] if scene else None
    shape = acquisitions[0].footprint if area is None and acquisitions else parse_area(area)
    acquisitions = acquisitions or find_acquisitions(
        sensor, shape, dates, archive=archive, url=url, max_cloud=max_cloud
    )
    tiles = tiles_of(shape, grid_of(acquisitions[0].archive, size))
    blocks = area_jobs.plan(tiles, acquisitions, pick)
    jobs = [job for block in blocks for job in block.jobs]
    if not jobs:
        raise ContractError("area", f"{len(tiles)} tiles, none under an image", "an area that the images meet", "an area beside the scene, or latitude before longitude")  # fmt: skip
    about = area_jobs.configuration_of(clay, sensor, acquisitions[0].archive, settings) | {
        "model": name or f"clay-{clay.model.config.dim}x{clay.model.config.depth}"
    }
    home = features.folder(out, about, overlap or 0)
    rows, empty = vectors.done_ids(out, sensor.name, about["configuration"])
    lacking = {j.id for j in jobs} - rows - empty
    if dense:
        lacking |= {j.id for j in jobs if j.id in rows and not features.part_path(home, j.id).is_file()}
    if forecast:
        return forecast_area(
            clay, sensor, blocks, lacking, acquisitions, settings, overlap, components, batch_size, network
        )
    with only_one(out):
        write_about(out, about)
        others = [c for c in vectors.runs_of(out) if c != about["configuration"]]
        if others:
            print(f"{out} also holds vectors of other configurations, which stay apart: {', '.join(others)}")
        older = area_jobs.of_other_files(rows, jobs)
        if older:
            print(f"{out} also holds {len(older)} vectors of these tiles and days, of other files, of these before they "
                  "changed, or of another hour: they stay beside the new ones, in an empty folder they would not be")  # fmt: skip
        skipped, tally = len(jobs) - len(lacking), Tally()
        if lacking:
            bar = tqdm(total=len(jobs), initial=skipped, unit="tile", desc=sensor.name, disable=not progress)
            with bar, ended_gently(), dask_client(scheduler, workers=workers, processes=processes) as client:
                tally = embed_jobs(
                    clay, client, blocks, out, about, settings, lacking=lacking, rows_there=rows, overlap=overlap,
                    batch_size=batch_size, bar=bar,
                )  # fmt: skip
        check_failures(tally, len(lacking))
        paths, measures = (), None
        if dense:
            with writing(out):
                paths, measures = rasters.write_rasters(
                    home, jobs, dense, components, dated=pick == "all", overlap=overlap, patch=patch, level=level,
                    about=about,
                )  # fmt: skip
    return AreaResult(
        out, about["configuration"], len(jobs), tally.rows, tally.empty, skipped, paths, measures,
        time.perf_counter() - began, tally.model_seconds, tally.waited_seconds,
    )  # fmt: skip


def check_layout(size: int, patch: int, dense: str, overlap: int | None, components: int) -> int | None:
    """The overlap in pixels, None without dense features; sizes must be whole patches."""
    if dense not in ("", "cog", "zarr") or components < 0 or (components and not dense):
        raise ContractError(
            "dense, components",
            (dense, components),
            "cog or zarr, and a number of bands or 0 for the vectors themselves",
            "components without dense features" if components and not dense else "a misspelling",
        )
    overlap = (size // 8 // patch * patch if overlap is None else overlap) if dense else None
    if size < patch or size % patch or (overlap or 0) % patch or not 0 <= (overlap or 0) <= size // 2:
        raise ContractError(
            "size, overlap",
            (size, overlap),
            f"whole patches of {patch} pixels, the overlap at most half the size",
            "a size of another model",
        )
    return overlap


# ---- The command ----


def embed(
    out: str,
    area: str = "",
    dates: str = "",
    *,
    weights: str = "clay-mini.safetensors",
    sensor: str = "sentinel-2-l2a",
    scene: str = "",
    archive: str = "",
    url: str = "",
    pick: str = "best",
    max_cloud: float = 100.0,
    clouds: str = "mask",
    size: int = 256,
    min_valid: float = 0.5,
    store: str = "float16",
    dense: str = "",
    overlap: int = -1,
    components: int = 0,
    level: bool = True,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "float32",
    scheduler: str = "",
    workers: int = 0,
    processes: bool = False,
    forecast: bool = False,
    network: float = 12.5,
) -> int:
    """Embed an area: vectors of its tiles as GeoParquet, and patch vectors as a raster. The same command resumes.

    Example: clay embed prague "14.4,50.0,14.6,50.1" 2023-06-01/2023-08-31 --dense cog --components 3 --forecast

    Args:
        out: folder of the results
        area: west,south,east,north in degrees, or a GeoJSON, GeoPackage or GeoParquet file; a scene needs none
        dates: such as 2023-06-01/2023-08-31; of a scene: when it was taken
        weights: a file of weights, a shipped one, or hub:owner/name/path
        sensor: one of the registered sensors
        scene: a raster file or a folder of single bands of your own, instead of an archive
        archive: another public archive of the sensor than the first
        url: another STAC API with the same collections
        pick: best (a tile's clearest date) or all dates
        max_cloud: percent; images with more are left out
        clouds: mask or keep what the archive calls clouds
        size: pixels a side of a tile
        min_valid: share of a patch that must have been measured
        store: float16 or int8
        dense: cog or zarr for patch vectors as a raster
        overlap: pixels around a tile that dense features see; -1: an eighth of its size
        components: bands of the raster by principal components; 0: the vectors as they are
        level: subtract from the raster what vectors owe to their place in the tile
        batch_size: tiles the model sees at once
        device: auto, cpu or cuda
        precision: of the weights: float32, bfloat16 or float16
        scheduler: address of a Dask scheduler, or slurm; by default a cluster of this machine
        workers: reading threads, or processes, or SLURM jobs
        processes: read in processes rather than threads
        forecast: say what it would take, and stop
        network: MB/s that the forecast assumes of reading
    """

    if precision not in ("float32", "bfloat16", "float16"):
        raise ContractError("precision", precision, "float32, bfloat16 or float16", "a misspelling")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    clay = Clay.load(weights, device=device, dtype=getattr(torch, precision))
    options: dict[str, Any] = dict(
        scene=scene or None, archive=archive or None, url=url or None, pick=pick, max_cloud=max_cloud, clouds=clouds,
        size=size, min_valid=min_valid, store=store, dense=dense, overlap=None if overlap < 0 else overlap,
        components=components, level=level, batch_size=batch_size, scheduler=scheduler, workers=workers, processes=processes,
        forecast=forecast, network=network, name=Path(weights).stem,
    )  # fmt: skip
    where = None if scene and not area else _place(area)
    print(embed_area(clay, sensor, where, dates or None, out, **options))
    return 0


def _place(area: str):
    """ "14.4,50.0,14.6,50.1" as four numbers, anything else as a file's name."""
    try:
        return tuple(float(part) for part in area.split(","))
    except ValueError:
        return area
