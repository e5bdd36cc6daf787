"""What chips are made from: the mini-world, sampled by land cover, and scenes of one's own."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clay_lib.data.chips import Chips, shared_world, world_version
from clay_lib.data.splits import LAND_TILES, RELEASED, cover_fractions, sample_tiles
from clay_lib.data.store import (
    ALL,
    INDEX,
    ChipStore,
    Made,
    Maker,
    encode,
    filesystem,
    kind_of,
    native,
    pending,
    write_chips,
)
from clay_lib.errors import ContractError
from clay_lib.sensors import METERS_PER_DEGREE, SENSORS, WORLD_SENSORS

if TYPE_CHECKING:
    pass


# ---- What chips are made from: the mini-world, sampled by land cover, and scenes of one's own ----

TILE = 6000.0  # m, side of a tile of the mini-world: its chips keep away from the borders of the splits' blocks
TILES = 64  # chosen at a time, of some six hundred


@dataclass(frozen=True)
class WorldMaker:
    """`count` chips of the mini-world: tiles sampled by land cover as the release was, places in them, dates of each.

    All sensors of one seed and split see the same places on the same dates.
    """

    sensor: str
    count: int
    size: int = 128
    split: str = "train"
    seed: int = 0
    places: int = 4  # in a tile
    dates: int = 2  # of a place
    cloud_cover: float = 0.0

    def __len__(self) -> int:
        return self.count

    @property
    def recipe(self) -> str:
        spec = [self.seed, self.split, self.places, self.dates, self.cloud_cover, world_version(), _source_version()]
        return f"world{self.seed}-{self.split}-{_short_hash(spec)}"

    def part(self, numbers: range) -> Callable[[], Made]:
        return partial(_observe_world, self, numbers)

    def look(self, number: int) -> tuple[float, float, str]:
        """Lat, lon and date of a chip."""
        turn, n = divmod(number, TILES * self.places * self.dates)
        return _turn(self.split, self.seed, self.places, self.dates, turn)[n]


def world_tiles(seed: int, split: str, turn: int, candidates: int = 2000):
    """Some hundred random tiles of a split, TILE metres a side, with the fractions of their land cover; no open sea."""
    import geopandas
    import shapely

    world = shared_world(seed)
    lat, lon = world.scatter(split, turn, candidates)
    steps = (np.arange(8) + 0.5) / 8 * TILE - TILE / 2
    north, east = (d.ravel() / METERS_PER_DEGREE for d in np.meshgrid(steps, steps, indexing="ij"))
    narrow = np.cos(np.radians(lat))
    cover = cover_fractions(world.land_cover(lat[:, None] + north, lon[:, None] + east / narrow[:, None]))
    high, wide = TILE / 2 / METERS_PER_DEGREE, TILE / 2 / METERS_PER_DEGREE / narrow
    boxes = shapely.box(lon - wide, lat - high, lon + wide, lat + high)
    tiles = geopandas.GeoDataFrame({"lat": lat, "lon": lon, **cover}, geometry=boxes, crs="EPSG:4326")
    return tiles[tiles["cover_80"] < 0.98]


@lru_cache(maxsize=16)
def _turn(split: str, seed: int, places: int, dates: int, turn: int) -> list[tuple[float, float, str]]:
    """Lat, lon and date of the TILES * places * dates chips of a turn: a fresh sample of tiles, so that any chip of the
    series is found without those before it. One place of every tile comes before the second place of any."""
    tiles = world_tiles(seed, split, turn)
    chosen = sample_tiles(tiles, RELEASED, seed=seed * 1009 + turn, scale=len(tiles) / LAND_TILES)
    rng = np.random.default_rng([seed, turn, *split.encode()])
    chosen = chosen.iloc[np.resize(rng.permutation(len(chosen)), TILES)]
    lat, lon = chosen["lat"].to_numpy(), chosen["lon"].to_numpy()
    reach, looks = TILE / 2 / METERS_PER_DEGREE, []
    for _ in range(places):
        here = lat + rng.uniform(-reach, reach, TILES)
        there = lon + rng.uniform(-reach, reach, TILES) / np.cos(np.radians(lat))
        for _ in range(dates):
            days = rng.integers(0, 6 * 365, TILES).astype("timedelta64[D]")
            when = np.datetime_as_string(np.datetime64("2018-01-01T10:30") + days, unit="m")
            looks += zip(here.round(5).tolist(), there.round(5).tolist(), when.tolist(), strict=True)
    return looks


def _observe_world(maker: WorldMaker, numbers: range) -> Made:
    from clay_lib.world.earth import Place

    looks = [maker.look(n) for n in numbers]
    seen = [
        shared_world(maker.seed).observe(Place(lat, lon), maker.sensor, when, maker.size, maker.cloud_cover)
        for lat, lon, when in looks
    ]
    lat, lon, when = (np.array(column) for column in zip(*looks, strict=True))
    chips = Chips(maker.sensor, np.stack([s.pixels for s in seen]), np.stack([s.labels for s in seen]), lat, lon, when)
    footprints = [footprint(s.crs, s.transform, maker.size, maker.size) for s in seen]
    return Made(chips, footprints, [maker.split] * len(looks), f"mini-world {maker.seed}")


@dataclass(frozen=True)
class SceneMaker:
    """A scene cut into chips, row by row. Left out: windows with too little measured, and those across two splits.

    path: a raster, or a folder of single-band files of one scene. when: None reads a date in the file's name. degrees: side of the blocks of the split.
    """

    path: str
    sensor: str
    size: int = 128
    when: str | None = None
    max_missing: float = 0.05  # share of values
    degrees: float = 1.0
    scale: float = 1.0
    offset: float = 0.0
    seed: int = 0
    shape: tuple[int, int] = field(init=False)  # rows and columns of chips

    def __post_init__(self):
        height, width, _ = max(map(_shape, self.files))  # coarser bands are read on the finest grid
        object.__setattr__(self, "shape", (height // self.size, width // self.size))
        if self.when is None:
            object.__setattr__(self, "when", date_in_name(self.files[0].name))

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def files(self) -> list[Path]:
        return _rasters(Path(self.path)) if Path(self.path).is_dir() else [Path(self.path)]

    @property
    def source(self) -> str:
        return Path(self.path).name

    @property
    def recipe(self) -> str:
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        spec = [files, self.when, self.max_missing, self.degrees, self.scale, self.offset, self.seed, _source_version()]
        return f"{re.sub('[^A-Za-z0-9_.]+', '_', self.source)[:60]}-{_short_hash(spec)}"

    def part(self, numbers: range) -> Callable[[], Made | None]:
        return partial(_cut_scene, self, numbers)


def _cut_scene(maker: SceneMaker, numbers: range) -> Made | None:
    from clay_lib.data.rasters import read_scene

    kept, footprints, splits = [], [], []
    for n in numbers:
        row, column = divmod(n, maker.shape[1])
        window = (column * maker.size, row * maker.size, maker.size, maker.size)
        scene = read_scene(
            maker.path, maker.sensor, window=window, when=maker.when, scale=maker.scale, offset=maker.offset
        )
        if scene.bands != SENSORS[maker.sensor].band_names:
            raise ContractError(
                "bands",
                f"{scene.bands} in {scene.path}",
                f"all of {maker.sensor}: {SENSORS[maker.sensor].band_names}",
                "chips hold every band of their sensor, so that they can be batched",
            )
        shape = footprint(scene.crs, scene.transform, maker.size, maker.size)
        split = _split_of(maker, shape)
        if split is None or scene.missing.mean() > maker.max_missing or not scene.valid.any():
            continue
        pixels = scene.filled() if scene.missing.any() else scene.pixels
        pixels = 10.0 ** (pixels.astype(np.float64) / 10) if scene.in_decibel else pixels
        kept.append((pixels, _or_nan(scene.lat), _or_nan(scene.lon), scene.when or ""))
        footprints.append(shape)
        splits.append(split)
    if not kept:
        return None
    pixels, lat, lon, when = (np.stack(column) for column in zip(*kept, strict=True))
    labels = np.zeros((len(pixels), maker.size, maker.size), np.uint8)  # 0: unknown
    return Made(Chips(maker.sensor, pixels, labels, lat, lon, when), footprints, splits, maker.source)


def _split_of(maker: SceneMaker, shape) -> str | None:
    """The split of a window's block; None if its corners lie in blocks of two splits. Without a place: by the name."""
    from clay_lib.data.splits import block_split

    if shape is None:
        lat, lon = [0.0], [int(_short_hash(maker.source), 16) % 360 - 180.0]
    else:
        import shapely

        lon, lat = shapely.get_coordinates(shape).T
    splits = set(block_split(lat, lon, maker.degrees, seed=maker.seed).tolist())
    return splits.pop() if len(splits) == 1 else None


def footprint(crs: str | None, transform: Sequence[float] | None, height: int, width: int):
    """The outline of a raster in WGS84, in two pieces across the antimeridian; None if it is nowhere."""
    import shapely

    from clay_lib.data.rasters import cut_at_antimeridian

    if crs is None or transform is None:
        return None
    a, b, c, d, e, f = tuple(transform)[:6]
    columns, rows = np.array([0, width, width, 0]), np.array([0, 0, height, height])
    lon, lat = _to_degrees(crs).transform(a * columns + b * rows + c, d * columns + e * rows + f)
    return cut_at_antimeridian(shapely.Polygon(np.stack([lon, lat], 1)))


@lru_cache(maxsize=128)
def _to_degrees(crs: str):
    from pyproj import Transformer

    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def date_in_name(name: str) -> str | None:
    """The first plausible date in a file's name: 20230610, 2023-06-10, 20230610T103021, or A2018185 (day of the year)."""
    for year, rest, clock in re.findall(r"(?<!\d)((?:19|20)\d\d)(-\d\d-\d\d|\d{4}|\d{3})(T\d{6})?(?!\d)", name):
        text = year + rest.replace("-", "")
        try:
            day = dt.datetime.strptime(
                text + clock, ("%Y%j" if len(text) == 7 else "%Y%m%d") + ("T%H%M%S" if clock else "")
            )
        except ValueError:
            continue
        return day.isoformat() if clock else day.date().isoformat()
    return None


def scenes_in(path: str | Path, sensor: str, **options) -> list[SceneMaker]:
    """A raster file, or a folder: of single-band files of one scene, or of such files and folders, a scene each."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return [SceneMaker(str(path), sensor, **options)]
    files = _rasters(path)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and _rasters(p))
    if not files + folders:
        raise ContractError("scenes", f"{path}, without rasters", "scenes", "another folder")
    single = files and not folders and len(SENSORS[sensor].bands) > 1 and _shape(files[0])[2] == 1
    return [SceneMaker(str(p), sensor, **options) for p in ([path] if single else files + folders)]


def _rasters(folder: Path) -> list[Path]:
    from clay_lib.data.rasters import RASTER_ENDINGS

    return sorted(p for p in folder.iterdir() if p.suffix.lower() in RASTER_ENDINGS and not p.name.startswith("."))


def _shape(path: Path) -> tuple[int, int, int]:
    """(height, width, bands) of a raster."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                return source.height, source.width, source.count
    except RasterioError as error:
        raise ContractError("scenes", str(error), "a raster that GDAL reads", "a misspelt path, or no image") from None


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


@lru_cache(maxsize=1)
def _source_version() -> str:
    """Of the code that chooses places and cuts scenes."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _short_hash(spec) -> str:
    return hashlib.sha256(json.dumps(spec, default=str).encode()).hexdigest()[:8]


# ---- The commands of the chip store: `chips` writes one, tells beforehand what that takes, and checks it ----


def chips(
    out: str,
    *,
    sensors: str = "sentinel-2-l2a",
    count: int = 1000,
    size: int = 128,
    split: str = "train",
    places: int = 4,
    dates: int = 2,
    cloud_cover: float = 0.0,
    seed: int = 0,
    scenes: str = "",
    sensor: str = "",
    when: str = "",
    scale: float = 1.0,
    offset: float = 0.0,
    max_missing: float = 0.05,
    block_degrees: float = 1.0,
    chips_per_part: int = 256,
    jobs: int = -1,
    forecast: bool = False,
    check: bool = False,
    mend: bool = False,
) -> int:
    """Add chips to a store: of the mini-world, sampled by land cover, or cut from scenes. The same command resumes.

    Args:
        out: the store: a folder, or a URL such as s3://bucket/chips
        sensors: of the mini-world, by name, separated by commas, or "all"
        count: chips of each sensor, what the store has already included
        size: pixels a side
        split: train, val or test, separated by commas; `count` chips of each. Scenes are split by blocks of land
        places: in a tile of the mini-world
        dates: of a place
        cloud_cover: share under clouds, 0 to 1
        seed: of the mini-world, its sample, and the scenes' split
        scenes: a raster, or a folder of them, to cut instead; bands in single files: a folder a scene
        sensor: that took the scenes
        when: the scenes' date; without it, the date in each file's name
        scale: native = value * scale + offset, for scenes in other units
        offset: see scale
        max_missing: share of missing values from which on a chip of a scene is left out
        block_degrees: side of the blocks of land that the scenes' split goes by
        chips_per_part: chips in a shard, and what a killed process loses
        jobs: processes; -1: one a core
        forecast: say what it would take, and stop
        check: read the whole store against its checksums and stop; 1 if something is damaged
        mend: with check: forget the damaged shards, so that the commands that wrote them make them anew
    """
    if check or mend:
        return _check(out, mend)
    if scenes:
        options = dict(when=when or None, scale=scale, offset=offset, max_missing=max_missing, degrees=block_degrees)
        makers: list[Maker] = list(scenes_in(scenes, SENSORS[sensor].name, size=size, seed=seed, **options))
    else:
        options = dict(size=size, seed=seed, places=places, dates=dates, cloud_cover=cloud_cover)
        names = WORLD_SENSORS if sensors == "all" else sensors.split(",")
        makers = [WorldMaker(SENSORS[s].name, count, split=part, **options) for part in split.split(",") for s in names]
    if count < 1 or size < 8 or chips_per_part < 1:
        raise ContractError("count, size, chips_per_part", (count, size, chips_per_part), ">= 1, 8, 1", "a slip")
    say_forecast(out, makers, chips_per_part, jobs)
    if not forecast:
        new = write_chips(out, makers, chips_per_part=chips_per_part, jobs=jobs)
        store = ChipStore.open(out)
        print(f"{new} new chips; {out} holds {len(store)}")
        for (name, side, part), held in store.table.groupby(["sensor", "size", "split"]).size().items():
            print(f"  {f'{name}-{side}, {part}':<30}{held:>9}")
    return 0


def say_forecast(out: str, makers: Sequence[Maker], chips_per_part: int, jobs: int) -> None:
    """Print chips, bytes and minutes of what is still to be made, from a few chips of each kind."""
    fs, root = filesystem(out)
    parts = pending(fs, root, makers, chips_per_part)
    processes = min(jobs if jobs > 0 else os.cpu_count() or 1, len(parts)) or 1
    print(f"{'to be made':<32}{'chips':>9}{'MB':>10}{'minutes':>9}")
    total = np.zeros(3)
    for kind in dict.fromkeys(part.kind for part in parts):
        numbers = [part for part in parts if part.kind == kind]
        left = sum(len(part.numbers) for part in numbers)
        bytes_, seconds = _measure(next(m for m in makers if kind_of(m) == kind), numbers[0].numbers)
        row = np.array([left, left * bytes_ / 1e6, left * seconds / processes / 60])
        print(f"{kind:<32}{row[0]:>9.0f}{row[1]:>10.1f}{row[2]:>9.2f}")
        total += row
    print(f"{f'all, with {processes} processes':<32}{total[0]:>9.0f}{total[1]:>10.1f}{total[2]:>9.2f}", flush=True)


def _measure(maker: Maker, numbers: range, most: int = 6) -> tuple[float, float]:
    """(stored bytes, seconds) a chip, from up to `most`, after one that warms up. Nothing made: nothing to tell."""
    maker.part(numbers[:1])()
    start = time.perf_counter()
    made = maker.part(numbers[:most])()
    if made is None:
        return 0.0, (time.perf_counter() - start) / len(numbers[:most])
    stored = sum(map(len, encode({"pixels": native(made.chips), "labels": made.chips.labels}).values()))
    return stored / len(numbers[:most]), (time.perf_counter() - start) / len(numbers[:most])


def _check(out: str, mend: bool) -> int:
    store = ChipStore.open(out)
    damaged = store.check()
    for damage in damaged:
        print(f"{out}/{damage.shard}: {damage.reason}; {len(damage.hashes)} chips lost")
    print(f"{len(store) - sum(len(d.hashes) for d in damaged)} of {len(store)} chips are whole")
    if mend and damaged:
        fs, root = filesystem(out)
        for path in [f"{root}/{ALL}"] * fs.exists(f"{root}/{ALL}") + [
            f"{root}/{INDEX}/{damage.shard.rsplit('-', 1)[0]}.parquet" for damage in damaged
        ]:
            fs.rm(path)
        print(f"{len(damaged)} shards are forgotten: run the commands that wrote them again")
    return 1 if damaged else 0
