"""Chip makers: numbered series of chips for a store, from the mini-world by land cover or cut from scenes."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from clay_lib.data.chips import Chips, shared_world, world_version
from clay_lib.data.splits import LAND_TILES, RELEASED, block_split, cover_fractions, sample_tiles
from clay_lib.errors import ContractError
from clay_lib.sensors import METERS_PER_DEGREE, SENSORS

TILE = 6000.0  # m, side of a tile of the mini-world: its chips keep away from the borders of the splits' blocks
TILES = 64  # sampled at a time, from about six hundred


@dataclass(frozen=True)
class MakerOutput:
    """Chips of a maker, with their footprints, splits and source."""

    chips: Chips
    footprints: Sequence  # [n] shapely geometries in WGS84, or None
    splits: Sequence[str]  # [n]
    source: str


class Maker(Protocol):
    """A numbered series of chips of one sensor and size; a chip depends on its number and the recipe alone."""

    sensor: str
    size: int
    recipe: str  # a short name of everything that determines its chips, except their number

    def __len__(self) -> int: ...

    def part(self, numbers: range) -> Callable[[], MakerOutput | None]:
        """A picklable function that returns these chips, or those of them that are kept."""


@dataclass(frozen=True)
class Part:
    """Chips of a maker that are written together."""

    kind: str  # SENSOR-SIZE
    name: str  # RECIPE-FIRST-LAST
    numbers: range
    make: Callable[[], MakerOutput | None]


def missing_parts(makers: Sequence[Maker], existing: Sequence[str], chips_per_part: int) -> list[Part]:
    """The parts that a store lacks. existing: SENSOR-SIZE/RECIPE-FIRST-LAST of those that it has."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for name in existing:
        series, first, last = name.rsplit("-", 2)
        ranges.setdefault(series, []).append((int(first), int(last)))
    parts = []
    for maker in makers:
        kind, recipe, missing = f"{maker.sensor}-{maker.size}", maker.recipe, np.ones(len(maker), bool)
        for first, last in ranges.get(f"{kind}/{recipe}", ()):
            missing[first : last + 1] = False
        for run in _runs(missing, chips_per_part):
            parts.append(Part(kind, f"{recipe}-{run[0]:08d}-{run[-1]:08d}", run, maker.part(run)))
    return parts


def _runs(missing: np.ndarray, most: int) -> Iterator[range]:
    """Unbroken runs of missing chips, none across a multiple of `most`, so that all writers cut the same parts."""
    for start in range(0, len(missing), most):
        numbers = start + np.flatnonzero(missing[start : start + most])
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
            if len(run):
                yield range(int(run[0]), int(run[-1]) + 1)


# ---- the mini-world ----


@dataclass(frozen=True)
class WorldMaker:
    """`count` chips of the mini-world: tiles sampled by land cover as for the release, places in them, dates of each.

    All sensors of one seed and split have the same places on the same dates.
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

    def part(self, numbers: range) -> Callable[[], MakerOutput]:
        return partial(_observe_world, self, numbers)

    def acquisition(self, number: int) -> tuple[float, float, str]:
        """Lat, lon and date of a chip."""
        turn, n = divmod(number, TILES * self.places * self.dates)
        return _acquisitions(self.split, self.seed, self.places, self.dates, turn)[n]


def world_tiles(seed: int, split: str, turn: int, candidates: int = 2000):
    """A GeoDataFrame of several hundred random tiles of a split, TILE meters a side, with land-cover fractions.

    Tiles of open sea are left out.
    """
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
def _acquisitions(split: str, seed: int, places: int, dates: int, turn: int) -> list[tuple[float, float, str]]:
    """Lat, lon and date of the TILES * places * dates chips of a turn. Each turn samples its own tiles, so that any chip
    is computed without those before it. The first places of all tiles come before the second places."""
    tiles = world_tiles(seed, split, turn)
    chosen = sample_tiles(tiles, RELEASED, seed=seed * 1009 + turn, scale=len(tiles) / LAND_TILES)
    rng = np.random.default_rng([seed, turn, *split.encode()])
    chosen = chosen.iloc[np.resize(rng.permutation(len(chosen)), TILES)]
    lat, lon = chosen["lat"].to_numpy(), chosen["lon"].to_numpy()
    reach, acquisitions = TILE / 2 / METERS_PER_DEGREE, []
    for _ in range(places):
        place_lat = (lat + rng.uniform(-reach, reach, TILES)).round(5)
        place_lon = (lon + rng.uniform(-reach, reach, TILES) / np.cos(np.radians(lat))).round(5)
        for _ in range(dates):
            days = rng.integers(0, 6 * 365, TILES).astype("timedelta64[D]")
            when = np.datetime_as_string(np.datetime64("2018-01-01T10:30") + days, unit="m")
            acquisitions += zip(place_lat.tolist(), place_lon.tolist(), when.tolist(), strict=True)
    return acquisitions


def _observe_world(maker: WorldMaker, numbers: range) -> MakerOutput:
    from clay_lib.world.earth import Place

    world, acquisitions = shared_world(maker.seed), [maker.acquisition(n) for n in numbers]
    images = [
        world.observe(Place(lat, lon), maker.sensor, when, maker.size, maker.cloud_cover)
        for lat, lon, when in acquisitions
    ]
    pixels, labels = np.stack([image.pixels for image in images]), np.stack([image.labels for image in images])
    lat, lon, when = (np.array(column) for column in zip(*acquisitions, strict=True))
    footprints = [footprint(image.crs, image.transform, maker.size, maker.size) for image in images]
    chips = Chips(maker.sensor, pixels, labels, lat, lon, when)
    return MakerOutput(chips, footprints, [maker.split] * len(chips), f"mini-world {maker.seed}")


# ---- scenes ----


@dataclass(frozen=True)
class SceneMaker:
    """A scene cut into chips, row by row, without windows with too many missing pixels or across two splits.

    path: a raster, or a folder of single-band files of one scene. when: None reads a date in the file's name. degrees:
    side of the blocks of the split.
    """

    path: str
    sensor: str
    size: int = 128
    when: str | None = None
    max_missing: float = 0.05  # share of values
    degrees: float = 1.0
    scale: float | None = None  # native = value * scale + offset; None: as header and name say
    offset: float | None = None
    seed: int = 0
    shape: tuple[int, int] = field(init=False)  # rows and columns of chips

    def __post_init__(self):
        from clay_lib.data.rasters import read_header

        headers = map(read_header, self.files)  # coarser bands are read on the finest grid
        height, width = max((header.height, header.width) for header in headers)
        object.__setattr__(self, "shape", (height // self.size, width // self.size))
        if self.when is None:
            object.__setattr__(self, "when", date_in_name(self.files[0].name))

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def files(self) -> list[Path]:
        from clay_lib.data.rasters import list_rasters

        return list_rasters(self.path) if Path(self.path).is_dir() else [Path(self.path)]

    @property
    def source(self) -> str:
        return Path(self.path).name

    @property
    def recipe(self) -> str:
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        spec = [files, self.when, self.max_missing, self.degrees, self.scale, self.offset, self.seed, _source_version()]
        return f"{re.sub('[^A-Za-z0-9_.]+', '_', self.source)[:60]}-{_short_hash(spec)}"

    def part(self, numbers: range) -> Callable[[], MakerOutput | None]:
        return partial(_cut_scene, self, numbers)


def _cut_scene(maker: SceneMaker, numbers: range) -> MakerOutput | None:
    from clay_lib.data.scenes import read_scene

    kept, footprints, splits = [], [], []
    for n in numbers:
        row, column = divmod(n, maker.shape[1])
        window = (column * maker.size, row * maker.size, maker.size, maker.size)
        options = dict(when=maker.when, scale=maker.scale, offset=maker.offset)
        scene = read_scene(maker.path, maker.sensor, window=window, **options)
        if scene.bands != (names := SENSORS[maker.sensor].band_names):
            cause = "chips hold every band of their sensor, so that they can be batched"
            raise ContractError("bands", f"{scene.bands} in {scene.path}", f"all of {maker.sensor}: {names}", cause)
        shape = footprint(scene.crs, scene.transform, maker.size, maker.size)
        split = _split_of(maker, shape)
        if split is None or scene.missing.mean() > maker.max_missing or not scene.valid.any():
            continue
        pixels = scene.filled() if scene.missing.any() else scene.pixels
        pixels = 10.0 ** (pixels.astype(np.float64) / 10) if scene.in_decibel else pixels
        place = [np.nan if degrees is None else degrees for degrees in (scene.lat, scene.lon)]
        kept.append((pixels, *place, scene.when or ""))
        footprints.append(shape)
        splits.append(split)
    if not kept:
        return None
    pixels, lat, lon, when = (np.stack(column) for column in zip(*kept, strict=True))
    labels = np.zeros((len(pixels), maker.size, maker.size), np.uint8)  # 0: unknown
    return MakerOutput(Chips(maker.sensor, pixels, labels, lat, lon, when), footprints, splits, maker.source)


def _split_of(maker: SceneMaker, shape) -> str | None:
    """The split of a window's block; None if its corners lie in two splits. Without a place: by the file's name."""
    if shape is None:
        lat, lon = [0.0], [int(_short_hash(maker.source), 16) % 360 - 180.0]
    else:
        import shapely

        lon, lat = shapely.get_coordinates(shape).T
    splits = set(block_split(lat, lon, maker.degrees, seed=maker.seed).tolist())
    return splits.pop() if len(splits) == 1 else None


def footprint(crs: str | None, transform: Sequence[float] | None, height: int, width: int):
    """The outline of a raster in WGS84, in two pieces across the antimeridian; None if it is not georeferenced."""
    import shapely

    from clay_lib.data.georeference import cut_at_antimeridian

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
        form = ("%Y%j" if len(text) == 7 else "%Y%m%d") + ("T%H%M%S" if clock else "")
        try:
            day = dt.datetime.strptime(text + clock, form)
        except ValueError:
            continue
        return day.isoformat() if clock else day.date().isoformat()
    return None


def scenes_in(path: str | Path, sensor: str, **options) -> list[SceneMaker]:
    """A raster file, or a folder: of single-band files of one scene, or of such files and folders, a scene each."""
    import rasterio

    from clay_lib.data.rasters import list_rasters

    path = Path(path).expanduser()
    if not path.is_dir():
        return [SceneMaker(str(path), sensor, **options)]
    files = list_rasters(path)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and list_rasters(p))
    if not files + folders:
        raise ContractError("scenes", f"{path}, without rasters", "scenes", "another folder")
    paths = files + folders
    if files and not folders and len(SENSORS[sensor].bands) > 1:
        with warnings.catch_warnings(), rasterio.open(files[0]) as file:
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            paths = [path] if file.count == 1 else paths
    return [SceneMaker(str(p), sensor, **options) for p in paths]


@lru_cache(maxsize=1)
def _source_version() -> str:
    """A hash of the code that chooses places and cuts scenes."""
    files = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("makers", "splits")]
    return hashlib.sha256(b"".join(files)).hexdigest()[:16]


def _short_hash(spec) -> str:
    return hashlib.sha256(json.dumps(spec, default=str).encode()).hexdigest()[:8]
