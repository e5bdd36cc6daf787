"""Embedding an area: from a place, dates and a sensor to vectors of its tiles, and to a raster of its patches.

    >>> embed_area("clay-mini.safetensors", "sentinel-2-l2a", (14.4, 50.0, 14.6, 50.1), "2023-06-01/2023-08-31", "prague")

archives.py: where pixels come from; tiles.py: the grid; area_jobs.py: what is to be done; area_reading.py,
area_work.py: doing it; vectors.py and dense.py: what it leaves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from clay_lib.area_forecast import NETWORK, AreaForecast, forecast_area
from clay_lib.contract import ContractError
from clay_lib.model import Clay
from clay_lib.sensors import SENSORS, Sensor


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
        from clay_lib.vectors import read_frame

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

    from clay_lib import area_jobs, area_work, rasters, vectors
    from clay_lib import dense as features
    from clay_lib.archives import file_look, find_looks, parse_area
    from clay_lib.cluster import dask_client
    from clay_lib.tiles import grid_of, tiles_of

    began, out = time.perf_counter(), Path(out)
    if not name and isinstance(clay, (str, Path)):
        name = Path(clay).stem
    clay = clay if isinstance(clay, Clay) else Clay.load(clay)
    sensor = SENSORS.resolve(sensor)
    patch = clay.model.config.patch_size
    overlap = check_layout(size, patch, dense, overlap, components)
    settings = area_jobs.Settings(size=size, clouds=clouds, min_valid=min_valid, store=store)
    vectors.schema(4, store)  # refuses a store that is none
    looks = [file_look(scene, sensor, when=dates)] if scene else None
    shape = looks[0].footprint if area is None and looks else parse_area(area)
    looks = looks or find_looks(sensor, shape, dates, archive=archive, url=url, max_cloud=max_cloud)
    tiles = tiles_of(shape, grid_of(looks[0].archive, size))
    blocks = area_jobs.plan(tiles, looks, pick)
    jobs = [job for block in blocks for job in block.jobs]
    if not jobs:
        raise ContractError(
            "area", found=f"{len(tiles)} tiles, none under an image", expected="an area that the images meet",
            cause="an area beside the scene, or latitude before longitude",
        )  # fmt: skip
    about = area_jobs.configuration_of(clay, sensor, looks[0].archive, settings) | {
        "model": name or f"clay-{clay.model.config.dim}x{clay.model.config.depth}"
    }
    home = features.folder(out, about, overlap or 0)
    rows, empty = vectors.done_ids(out, sensor.name, about["configuration"])
    lacking = {j.id for j in jobs} - rows - empty
    if dense:
        lacking |= {j.id for j in jobs if j.id in rows and not features.part_path(home, j.id).is_file()}
    if forecast:
        return forecast_area(clay, sensor, blocks, lacking, looks, settings, overlap, components, batch_size, network)
    with area_work.only_one(out):
        area_work.write_about(out, about)
        others = [c for c in vectors.runs_of(out) if c != about["configuration"]]
        if others:
            print(f"{out} also holds vectors of other configurations, which stay apart: {', '.join(others)}")
        older = area_jobs.of_other_files(rows, jobs)
        if older:
            print(f"{out} also holds {len(older)} vectors of these tiles and days, of other files, of these before they "
                  "changed, or of another hour: they stay beside the new ones, in an empty folder they would not be")  # fmt: skip
        skipped, tally = len(jobs) - len(lacking), area_work.Tally()
        if lacking:
            bar = tqdm(total=len(jobs), initial=skipped, unit="tile", desc=sensor.name, disable=not progress)
            with bar, area_work.ended_gently(), dask_client(scheduler, workers=workers, processes=processes) as client:
                tally = area_work.embed_jobs(
                    clay, client, blocks, out, about, settings, lacking=lacking, rows_there=rows, overlap=overlap,
                    batch_size=batch_size, bar=bar,
                )  # fmt: skip
        area_work.check_failures(tally, len(lacking))
        paths, measures = (), None
        if dense:
            with area_work.writing(out):
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
            found=(dense, components),
            expected="cog or zarr, and a number of bands or 0 for the vectors themselves",
            cause="components without dense features" if components and not dense else "a misspelling",
        )
    overlap = (size // 8 // patch * patch if overlap is None else overlap) if dense else None
    if size < patch or size % patch or (overlap or 0) % patch or not 0 <= (overlap or 0) <= size // 2:
        raise ContractError(
            "size, overlap",
            found=(size, overlap),
            expected=f"whole patches of {patch} pixels, the overlap at most half the size",
            cause="a size of another model",
        )
    return overlap
