"""The mini-world: a procedural Earth that every sensor of the registry can observe, offline.

It replaces an archive: `MiniWorld().place(...)` chooses a place, `observe(...)` images it with one sensor on one date.
land.py: relief and land cover; surface.py and covers.py: the appearance of the land on a date; spectra.py: its
reflectance and backscatter.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from clay_lib.errors import ContractError, number
from clay_lib.sensors import SENSORS
from clay_lib.world.land import MODIS_RADIUS, ZONE_STRIDE, survey, to_world, utm_zone
from clay_lib.world.noise import fbm, smoothstep, uniform
from clay_lib.world.spectra import backscatter, table
from clay_lib.world.surface import paint, sun_at, weather_at

CLASSES: dict[int, str] = {
    10: "tree cover", 20: "shrubland", 30: "grassland", 40: "cropland", 50: "built-up", 60: "bare / sparse vegetation",
    70: "snow and ice", 80: "permanent water bodies", 90: "herbaceous wetland", 95: "mangroves", 100: "moss and lichen",
}  # fmt: skip
CLASS_COLORS: dict[int, str] = {  # as ESA WorldCover publishes them
    10: "#006400", 20: "#ffbb22", 30: "#ffff4c", 40: "#f096ff", 50: "#fa0000", 60: "#b4b4b4",
    70: "#f0f0f0", 80: "#0064c8", 90: "#0096a0", 95: "#00cf75", 100: "#fae6a0",
}  # fmt: skip
SPLITS = {"train": 0.6, "val": 0.15, "test": 0.25}
BLOCK = (3.0, 6.0)  # degrees of latitude and longitude: the unit of the spatial split, a UTM zone wide
MARGIN = 50_000.0  # m from a place to the border of its block: more than half the diagonal of a 128 px MODIS chip
LOOKS = 6  # of the radar's speckle

SHADOW = 0.08  # least share of the light that a shadow takes away

# Optical sensors: reflectance -> gain * reflectance + haze, at the top of the atmosphere with `top` -> native numbers
_OPTICAL = {
    "sentinel-2-l2a": dict(scale=10000, dtype=np.uint16, haze=0.012),
    "planetscope-sr": dict(scale=10000, dtype=np.uint16, haze=0.030, gain=1.15),
    "landsat-c2l1": dict(scale=50000, offset=0.1, dtype=np.uint16, haze=0.02, top=True),
    "landsat-c2l2-sr": dict(scale=1 / 0.0000275, offset=0.2, dtype=np.uint16, haze=0.012),
    "naip": dict(dtype=np.uint8, haze=0.02, exposure=800.0),
    "linz": dict(dtype=np.uint8, haze=0.015, exposure=580.0),
    "satellogic-MSI-L1D": dict(scale=10000, dtype=np.uint16, haze=0.02, top=True),
    "modis": dict(scale=10000, dtype=np.int16, haze=0.008),
}


@dataclass(frozen=True)
class Place:
    """The center of a chip, degrees WGS84."""

    lat: float
    lon: float


@dataclass(frozen=True)
class Chip:
    """An image of one sensor at one place on one date."""

    pixels: np.ndarray  # [C, H, W] native numbers in their native dtype (linear power for Sentinel-1)
    labels: np.ndarray  # [H, W] uint8 WorldCover codes
    cloud: np.ndarray  # [H, W] bool
    shadow: np.ndarray  # [H, W] bool, ground that a cloud's shadow darkens by more than SHADOW
    leaf_area: np.ndarray  # [H, W] float32, m2/m2
    sensor: str
    when: dt.datetime  # local solar time
    lat: float  # of the center, degrees
    lon: float
    gsd: float  # m
    crs: str
    transform: tuple[float, float, float, float, float, float]  # x = a col + b row + c, y = d col + e row + f


class MiniWorld:
    """A procedural Earth; the same seed and request give the same bits."""

    def __init__(self, seed: int = 0):
        self.seed = int(number("seed", seed)) & 0xFFFF
        self._candidates: dict[tuple[str, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._places: dict[tuple[str, int], tuple[list[Place], Iterator[int]]] = {}

    def land_cover(self, lat, lon) -> np.ndarray:
        """WorldCover codes uint8 at degrees lat, lon (scalars or arrays of one shape)."""
        lat, lon = np.broadcast_arrays(np.asarray(lat, float), np.asarray(lon, float))
        if not (np.isfinite(lat).all() and np.isfinite(lon).all() and (np.abs(lat) <= 84).all()):
            raise ContractError("lat, lon", f"lat {lat.min()}..{lat.max()}", "finite degrees, |lat| <= 84",
                                "longitude before latitude, or meters instead of degrees")  # fmt: skip
        x, y = to_world(lat.ravel(), lon.ravel())
        return survey(x, y, seed=self.seed).labels.reshape(lat.shape)

    def place(self, land_cover: int, index: int, split: str = "train") -> Place:
        """The index-th place of a split whose square kilometer is mostly of one class, including its center.

        Splits are sets of blocks of 3 x 6 degrees; a place keeps 50 km from its block's border, so that no chip of
        up to 64 km a side reaches a block of another split.
        """
        if land_cover not in CLASSES:
            raise ContractError(
                "land_cover", land_cover, f"one of {CLASSES}", "a class number, not its WorldCover code"
            )
        if index != int(index) or index < 0:
            raise ContractError("index", index, "0, 1, 2, ...", "a negative or fractional index")
        places, draws = self._places.setdefault((split, land_cover), ([], count()))
        while len(places) <= index:
            places += self._places_of(land_cover, split, next(draws))
        return places[index]

    def scatter(self, split: str, turn: int, candidates: int = 3000) -> tuple[np.ndarray, np.ndarray]:
        """(lat, lon) of those of `candidates` random points that lie in a split, 50 km inside its blocks.

        turn: number of the draw.
        """
        if split not in SPLITS:
            raise ContractError("split", repr(split), f"one of {list(SPLITS)}", "a misspelled split")
        rng = np.random.default_rng([self.seed, 77, list(SPLITS).index(split), turn])
        lat = np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(-57)), np.sin(np.radians(78)), candidates)))
        lon = rng.uniform(-180, 180, candidates)
        keep = (self._split_of(lat, lon) == list(SPLITS).index(split)) & _inside_block(lat, lon)
        return lat[keep].round(5), lon[keep].round(5)

    def _places_of(self, land_cover: int, split: str, turn: int) -> list[Place]:
        """The places of one draw that are surrounded by a class; all classes share the draws."""
        if (split, turn) not in self._candidates:
            lat, lon = self.scatter(split, turn)
            self._candidates[split, turn] = lat, lon, survey(*to_world(lat, lon), seed=self.seed).labels
        lat, lon, labels = self._candidates[split, turn]
        lat, lon = lat[labels == land_cover], lon[labels == land_cover]
        x, y = (v[:, None] for v in to_world(lat, lon))
        dx, dy = (d.ravel() for d in np.meshgrid(*2 * [np.linspace(-500, 500, 5)]))
        near = survey(x + dx[::4] / 12, y + dy[::4] / 12, seed=self.seed).labels  # [n, 7] within 60 m
        around = survey(x + dx, y + dy, seed=self.seed, pixel=60.0).labels  # [n, 25] within 700 m
        chosen = ((around == land_cover).mean(1) >= 0.6) & ((near == land_cover).mean(1) >= 0.8)
        if land_cover == 80:  # water with a shore: open sea has no structure
            chosen &= (around != 80).any(1)
        return [Place(float(lat[n]), float(lon[n])) for n in np.flatnonzero(chosen)]

    def _split_of(self, lat, lon):
        r = uniform(np.floor(lat / BLOCK[0]), np.floor(lon / BLOCK[1]), seed=self.seed + 4000)
        return np.searchsorted(np.cumsum(list(SPLITS.values()))[:-1], r, side="right")

    def observe(
        self,
        place: Place,
        sensor: str = "sentinel-2-l2a",
        when: dt.datetime | str = "2023-06-10T10:30",
        size: int | tuple[int, int] = 128,
        cloud_cover: float = 0.0,
        noise: bool = True,
    ) -> Chip:
        """The image of `place` by `sensor` at local solar time `when`, `size` pixels (H, W) large.

        cloud_cover: target share of the chip under clouds, 0..1 (none in radar). noise: sensor noise, speckle.
        """
        spec = SENSORS[sensor]
        if sensor not in _OPTICAL and not spec.decibel:
            expected = f"one of {[*_OPTICAL, 'sentinel-1-rtc']}"
            raise ContractError("sensor", sensor, expected, "a sensor that the mini-world does not simulate")
        when, (height, width), cover = _date(when), _size(size), number("cloud_cover", cloud_cover)
        if not 0 <= cover <= 1:
            raise ContractError("cloud_cover", cover, "a share, 0 to 1", "percent instead of a share")
        lat, lon = number("place.lat", place.lat), number("place.lon", place.lon)
        if not (abs(lat) <= 80 and abs(lon) <= 180):
            raise ContractError("place", place, "|lat| <= 80, |lon| <= 180", "longitude before latitude")
        grid = _grid(sensor, lat, lon, spec.gsd, height, width)
        center = to_world(lat, lon)
        rng = np.random.default_rng([self.seed, _hash(f"{sensor} {when.isoformat()} {lat:.6f} {lon:.6f}")])
        fold = grid.fold if grid.source is None else 1
        land = survey(grid.x, grid.y, seed=self.seed, pixel=min(spec.gsd, 300.0), step=grid.step, fold=fold)
        sun, weather = sun_at(lat, when), weather_at(*center, when, self.seed)
        surface = paint(land, when, sun, weather)
        labels, leaf_area = _mode(grid.gather(land.labels), grid.fold), grid.mean(surface.leaf_area)
        cloud = shadow = np.zeros((height, width), bool)
        if spec.decibel:
            pixels = self._radar(land, surface, weather, when, grid, rng if noise else None)
        else:
            reflectance = grid.mean(_reflect(surface, weather, tuple(b.wavelength for b in spec.bands)))  # [H, W, C]
            if cover > 0:
                reflectance, cloud, shadow = self._clouds(reflectance, grid, when, sun, cover)
            x, y = (int(v // 40_000) for v in center)
            scene = uniform(x, y, when.toordinal(), np.arange(4), _hash(sensor), seed=self.seed + 7)
            pixels = _record(reflectance, spec, sun, scene, rng if noise else None)
        layers = pixels, labels, cloud, shadow, leaf_area
        return Chip(*layers, sensor, when, lat, lon, float(spec.gsd), grid.crs, grid.transform)

    def _radar(self, land, surface, weather, when, grid, rng):
        """Linear gamma0 power [2, H, W]: class backscatter, slopes towards and away from the radar, speckle."""
        rough = 0.7 * land.noise(260, 300, 5, 0.6) + 0.5 * land.noise(30, 301, 3)
        db = backscatter(land.labels, surface.leaf_area, weather.rain, rough, surface.built, surface.frozen)
        east = 1.0 if when.hour >= 12 else -1.0  # ascending passes look east, descending ones west
        toward = -east * surface.slope[0] * np.where(land.labels == 80, 0, 1)
        wind = 1.5 * land.noise(3000, 302, 3) + 5.0 * (uniform(when.toordinal() // 2, seed=self.seed + 11)[0] - 0.5)
        db = db + np.clip(9.0 * toward, -6, 6) + np.where(land.labels == 80, wind, 0)
        power = grid.mean(np.moveaxis(10 ** (db / 10), 0, -1))
        if rng is not None:
            power = power * (rng.standard_gamma(LOOKS, power.shape, dtype=np.float32) / LOOKS)
        return np.ascontiguousarray(np.moveaxis(power, -1, 0), dtype=np.float32)

    def _clouds(self, image, grid, when, sun, cover):
        """Clouds over the target share of pixels, with their shadows. image [H, W, C] -> (image, cloud, shadow)."""
        x, y = grid.centers
        extent = max(np.ptp(x), np.ptp(y), 1.0)
        size = min(4000.0, extent / 1.5)
        seed, drift = self.seed * 97 + 500 + when.toordinal() % 9973, when.toordinal() % 811 * 977.0

        def density(dx, dy):
            return fbm(x + drift + dx, y + dy, size, seed=seed, octaves=6, gain=0.55, pixel=grid.step)

        field = density(0, 0)
        level = np.quantile(field, 1 - cover) if cover < 1 else field.min() - 1
        reach = min(1400.0, 0.25 * extent) * min(sun.shadow, 3)
        shadow = smoothstep(level - 0.1, level + 0.25, density(sun.east * reach, sun.north * reach))
        opacity = (0.55 + 0.45 * smoothstep(level, level + 0.5, field)) * (field >= level)
        white = np.clip(0.42 + 0.22 * np.maximum(field - level, 0), 0, 0.85)
        dark, cloud = 0.55 * shadow * (1 - opacity), field >= level
        image = image * (1 - dark)[..., None]
        image = (image * (1 - opacity[..., None]) + (white * opacity)[..., None]).astype(np.float32)
        return image, cloud, (dark > SHADOW) & ~cloud


@dataclass(frozen=True)
class _Grid:
    """Sample points of a chip on world axes, and how they are gathered into pixels [H, W]."""

    x: np.ndarray  # [1, w] of the samples, m in world coordinates
    y: np.ndarray  # [h, 1]
    step: float  # m between samples
    fold: int  # samples in a pixel along each side
    source: np.ndarray | None  # [H fold, W fold] flat positions of the samples; None: the samples are in place
    centers: tuple[np.ndarray, np.ndarray]  # world x, y of the pixels
    crs: str
    transform: tuple

    def gather(self, values):
        """[h, w, ...] -> [H fold, W fold, ...]."""
        return values if self.source is None else values.reshape(-1, *values.shape[2:])[self.source]

    def mean(self, values):
        return _mean(self.gather(values), self.fold)


def _grid(sensor, lat, lon, gsd, height, width) -> _Grid:
    """Pixels aligned to multiples of the gsd; the place lies within a pixel of the chip's center."""
    fold = 1 if gsd <= 5 else 2
    zone = int(utm_zone(lon))
    if sensor == "modis":
        east, north = MODIS_RADIUS * np.radians(lon) * np.cos(np.radians(lat)), MODIS_RADIUS * np.radians(lat)
        crs, false_north = f"+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R={MODIS_RADIUS} +units=m +no_defs", 0.0
    else:
        x, north = to_world(lat, lon)
        east, false_north = x - ZONE_STRIDE * zone, 0.0 if lat >= 0 else 10_000_000.0
        crs = f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"
    left, top = round((east - width * gsd / 2) / gsd) * gsd, round((north + height * gsd / 2) / gsd) * gsd
    transform = (float(gsd), 0.0, float(left), 0.0, -float(gsd), float(top + false_north))

    def axes(parts):  # x [1, width parts], y [height parts, 1] in the CRS
        x = left + (np.arange(width * parts) + 0.5)[None, :] * (gsd / parts)
        return x, top - (np.arange(height * parts) + 0.5)[:, None] * (gsd / parts)

    step = gsd / fold
    xs, ys = axes(fold)
    if sensor != "modis":
        centers = tuple(t + shift for t, shift in zip(axes(1), (ZONE_STRIDE * zone, 0.0), strict=True))
        return _Grid(xs + ZONE_STRIDE * zone, ys, step, fold, None, centers, crs, transform)

    def world(xs, ys):
        phi = ys / MODIS_RADIUS
        return to_world(np.degrees(phi) + 0 * xs, np.degrees(xs / (MODIS_RADIUS * np.cos(phi))), zone)

    x, y = world(xs, ys)  # oblique to the world's axes: sample upright rows there, and take the nearest samples
    centers = world(*axes(1))
    west, north = np.floor(x.min() / step) * step, np.ceil(y.max() / step) * step
    columns, rows = ((x - west) / step).astype(np.int64), ((north - y) / step).astype(np.int64)
    width = int(columns.max()) + 1
    xs = west + (np.arange(width) + 0.5)[None, :] * step
    ys = north - (np.arange(int(rows.max()) + 1) + 0.5)[:, None] * step
    return _Grid(xs, ys, step, fold, rows * width + columns, centers, crs, transform)


def _reflect(surface, weather, waves) -> np.ndarray:
    """Surface reflectance [H, W, C]."""
    dry, wet = table(waves)
    rows = dry + np.float32(0.9 * weather.rain) * (wet - dry)
    first = rows.take(surface.a, axis=0)
    second = rows.take(surface.b, axis=0)
    second -= first
    second *= surface.mix[..., None]
    first += second
    first *= surface.shade[..., None].astype(np.float32)
    return first


def _record(reflectance, spec, sun, scene, rng) -> np.ndarray:
    """Reflectance [H, W, C] -> native numbers [C, H, W]. scene: four uniform numbers of the flight or overpass."""
    camera = _OPTICAL[spec.name]
    waves = np.array([band.wavelength for band in spec.bands], np.float32)
    scene = scene.tolist()
    lit = float(np.sin(np.radians(sun.elevation)))
    aerosol = camera["haze"] * (0.3 + 2.2 * scene[0] ** 2) * (waves / 0.55) ** -1.4
    value = reflectance * (camera.get("gain", 1.0) * (1 - 1.2 * aerosol) * (1 + 0.06 * (scene[1] - 0.5)))
    value += aerosol - 0.3 * camera["haze"] * (waves / 0.55) ** -1.4
    if camera.get("top"):
        rayleigh = 0.052 * (waves / 0.48) ** -4.0
        value = value * (0.93 - 1.1 * rayleigh) + rayleigh
        value *= lit if spec.name == "landsat-c2l1" else 1.0
    if rng is not None:
        sigma = 0.0010 + 0.010 * np.maximum(value, 0)
        value = value + sigma * rng.standard_normal(value.shape, dtype=np.float32)
    if "exposure" in camera:
        metered = 0.7 * (0.10 / max(float(value.mean()), 0.02)) ** 0.6 + 0.3  # exposure by mean brightness
        exposure = camera["exposure"] * (0.8 + 0.4 * scene[2]) * (0.55 + 0.6 * lit) * metered
        tint = 1 + 0.10 * (np.array(scene[::-1], np.float32)[: len(waves)] - 0.5)
        tint[waves > 0.75] *= 0.7  # exposure of infrared for vegetation
        code = 255 * (np.clip(value, 0, None) * exposure * tint / 255) ** 0.72
    else:
        code = (value + camera.get("offset", 0.0)) * camera["scale"]
    limits = np.iinfo(camera["dtype"])
    code = np.clip(np.rint(code), 1 if limits.min == 0 else -100, limits.max)
    return np.ascontiguousarray(np.moveaxis(code, -1, 0).astype(camera["dtype"]))


def _mean(values, fold):
    """Mean over fold x fold samples: [H f, W f, ...] -> [H, W, ...]."""
    if fold == 1:
        return values
    rows = sum(values[n::fold] for n in range(fold))
    return sum(rows[:, n::fold] for n in range(fold)) * np.float32(1 / fold**2)


def _mode(labels, fold):
    """The most frequent code of every pixel's samples."""
    codes = np.unique(labels)
    if fold == 1 or len(codes) == 1:
        return labels[::fold, ::fold].copy()
    share = np.stack([_mean((labels == code).astype(np.float32), fold) for code in codes])
    return codes[share.argmax(0)]


def _inside_block(lat, lon):
    """Whether a circle of MARGIN meters lies inside the point's block."""
    south, west = lat % BLOCK[0], lon % BLOCK[1]
    dlat, dlon = MARGIN / 111_000, MARGIN / (111_000 * np.cos(np.radians(np.abs(lat) + 0.5)))
    return (south > dlat) & (south < BLOCK[0] - dlat) & (west > dlon) & (west < BLOCK[1] - dlon)


def _hash(text: str) -> int:
    """31 bits of a text, the same in every process."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


def _date(when) -> dt.datetime:
    if isinstance(when, dt.datetime):
        return when
    try:
        return dt.datetime.fromisoformat(when)
    except (TypeError, ValueError):
        expected = "a datetime or ISO text such as '2023-06-10T10:30'"
        raise ContractError("when", repr(when), expected, "another order of day and month, or no date") from None


def _size(size) -> tuple[int, int]:
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    try:
        height, width = (int(n) for n in pair)
        if (height, width) != tuple(pair) or min(height, width) < 2 or max(height, width) > 4096:
            raise ValueError
    except (TypeError, ValueError):
        raise ContractError("size", size, "pixels, an integer or (H, W), 2 to 4096", "meters, not pixels") from None
    return height, width
