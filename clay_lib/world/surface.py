"""The surface of the mini-world on one date: sun, weather, season, soil and snow, as rows of the spectral table.

A point's reflectance is shade * ((1 - mix) * table[a] + mix * table[b]). covers.py: the appearance of each land cover.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from clay_lib.world.covers import PAINTERS, SOIL
from clay_lib.world.land import Land
from clay_lib.world.noise import smoothstep, uniform
from clay_lib.world.spectra import OTHER, canopy_row, snow_row


@dataclass(frozen=True)
class Sun:
    elevation: float  # degrees, at least 8
    east: float  # unit vector on the ground towards the sun
    north: float

    @property
    def shadow(self) -> float:
        """Meters of shadow per meter of height."""
        return float(1 / np.tan(np.radians(self.elevation)))


def sun_at(lat: float, when: dt.datetime) -> Sun:
    """The sun over `lat` at local solar time `when` (Cooper's declination, good to a degree)."""
    phi, hour = np.radians(lat), np.radians(15 * (when.hour + when.minute / 60 - 12))
    delta = np.radians(-23.44 * np.cos(2 * np.pi * (when.timetuple().tm_yday + 10) / 365.25))
    up = np.sin(phi) * np.sin(delta) + np.cos(phi) * np.cos(delta) * np.cos(hour)
    east = -np.cos(delta) * np.sin(hour)
    north = np.cos(phi) * np.sin(delta) - np.sin(phi) * np.cos(delta) * np.cos(hour)
    flat = np.hypot(east, north) or 1.0
    return Sun(max(8.0, float(np.degrees(np.arcsin(np.clip(up, -1, 1))))), float(east / flat), float(north / flat))


@dataclass(frozen=True)
class Weather:
    """The weather at a place on a date, the same for all sensors."""

    year_warm: float  # K above the mean year
    year_wet: float
    rain: float  # soil moisture 0..1 after the last days


def weather_at(x: float, y: float, when: dt.datetime, seed: int) -> Weather:
    i, j = int(x // 150_000), int(y // 150_000)
    day = when.toordinal() // 4
    r = [float(uniform(i, j, k, key, seed=seed + 900)[0]) for k, key in enumerate((when.year, when.year, day))]
    return Weather(2.4 * (r[0] - 0.5), 0.6 * (r[1] - 0.5), r[2] ** 2)


@dataclass
class Surface:
    """Arrays [H, W] on the points of a Land."""

    a: np.ndarray  # int32 rows of the spectral table
    b: np.ndarray
    mix: np.ndarray
    shade: np.ndarray
    leaf_area: np.ndarray  # m2/m2
    built: np.ndarray  # share of roofs
    frozen: np.ndarray  # share of snow
    slope: np.ndarray | None = None  # [2, H, W] dz/dx (east), dz/dy (north)

    def put(self, where, **fields):
        """Overwrite fields where a mask [H, W] is true."""
        for name, value in fields.items():
            np.copyto(getattr(self, name), value, where=where, casting="unsafe")


def paint(land: Land, when: dt.datetime, sun: Sun, weather: Weather) -> Surface:
    """The surface of `land` on the day `when`, lit by `sun`."""
    zero, (soil, brightness) = np.zeros(land.shape, np.float32), _soil(land)
    a, b = canopy_row(0, soil, zero), canopy_row(0, soil, zero)
    out = Surface(a, b, zero.copy(), np.ones_like(zero), zero.copy(), zero.copy(), zero.copy())
    season = _Season(land, when, weather)
    present = set(np.unique(land.labels).tolist())
    height = land.elevation
    for code, painter in PAINTERS.items():
        if code in present:
            bump = painter(out, land.labels == code, land, season, sun, soil, brightness)
            height = height if bump is None else height + bump
    _highways(out, land)
    _snow(out, land, season)
    dy, dx = np.gradient(np.asarray(height, np.float32), land.step)
    out.slope = np.stack([dx, -dy])  # rows run south
    lit = np.sin(np.radians(sun.elevation))
    tilt = np.cos(np.radians(sun.elevation)) * (-out.slope[0] * sun.east - out.slope[1] * sun.north)
    facing = (lit + tilt) / np.sqrt(1 + out.slope[0] ** 2 + out.slope[1] ** 2) / lit
    out.shade *= np.where(land.labels == 80, 1, np.clip(facing, 0.25, 1.9))
    return out


class _Season:
    """Temperature [H, W] (also that of some weeks ago), water supply [H, W], and the phase of the year."""

    def __init__(self, land: Land, when: dt.datetime, weather: Weather):
        day = when.timetuple().tm_yday
        lat = float(np.mean(land.lat))
        side = float(np.tanh(lat / 4))  # hemisphere, smooth over the equator
        wave = lambda late: float(np.cos(2 * np.pi * (day - late) / 365.25)) * side  # noqa: E731
        self.now = land.temperature + land.swing * wave(205) + weather.year_warm
        self.lagged = land.temperature + land.swing * wave(222) + weather.year_warm
        self.falling = float(smoothstep(0.0, 0.5, np.sin(2 * np.pi * (day - 205) / 365.25) * side))
        tropic = float(np.exp(-((lat / 24) ** 4)))
        self.water = land.moisture + weather.year_wet + 0.75 * tropic * wave(220) - 0.35 * (1 - tropic) * wave(205)
        self.phase = (day / 365.25 + 0.5 * (lat < 0)) % 1.0  # of the local year, 0 in midwinter
        self.tropic, self.weather = tropic, weather


def _soil(land: Land):
    """Soil kind [H, W] (a position in SOILS) and its brightness."""
    drift = land.noise(38000, 100, 3) + 0.35 * land.noise(3000, 101, 7, 0.65)
    humid = np.where(drift > 0.2, SOIL["humic"], SOIL["loam"])
    hot = np.where(drift > -0.3, SOIL["laterite"], SOIL["loam"])
    dry = np.where(drift > 0.3, SOIL["grey"], np.where(drift > -0.9, SOIL["sand"], SOIL["laterite"]))
    kind = np.where(land.moisture < -0.55, dry, np.where(land.temperature > 18, hot, humid))
    return kind.astype(np.int32), np.clip(1 + 0.12 * land.noise(600, 102, 7, 0.62), 0.5, 1.6)


def _highways(out: Surface, land: Land) -> None:
    """Roads along the zero lines of a noise field, across all land cover but water, ice and wetland."""
    if land.pixel > 30 or min(land.shape) < 3:
        return
    line = land.noise(8000, 195, 4, 0.4, sharp=True)
    dy, dx = np.gradient(line, land.step)
    away = np.abs(line) / np.maximum(np.hypot(dx, dy), 1e-5)
    drivable = np.isin(land.labels, (10, 20, 30, 40, 50, 60)) & (land.vigor < 1.6)
    at = (away < np.maximum(6.0, 0.4 * land.pixel)) & drivable
    stripe = (away < 0.4) * 1.2 * (land.pixel <= 1)
    out.put(at, a=np.int32(OTHER["asphalt"]), mix=0.0, shade=1 + stripe, leaf_area=0.0)


def _snow(out: Surface, land: Land, season: _Season) -> None:
    """Seasonal snow on land and ice on still water; trees rise above it, roads are cleared late."""
    cold = smoothstep(1.0, -4.0, season.now + 1.3 * land.noise(1500, 197, 5, 0.6))
    cold = cold * smoothstep(-1.6, -0.2, season.water)
    if cold.max() <= 0.02:
        return
    canopy = 0.8 * (1 - np.exp(-0.9 * out.leaf_area)) * np.isin(land.labels, (10, 95))
    ice = np.where(land.elevation < 0, smoothstep(-4, -12, season.now), smoothstep(0, -6, season.now))
    open_ground = np.where(land.labels == 80, ice, 1 - canopy - 0.35 * (land.labels == 20))
    open_ground = open_ground * np.where(out.a == OTHER["asphalt"], 0.35, 1)
    share = np.where(land.labels == 70, 0, cold * open_ground).astype(np.float32)
    at = share > 0.02
    out.put(at & (out.mix > 0.5) & (land.labels != 10), a=out.b)
    out.put(at, b=snow_row(0.15), mix=share, frozen=np.maximum(out.frozen, share))
