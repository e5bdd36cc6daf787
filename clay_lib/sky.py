"""What a date brings: where the sun stands, and the weather that all sensors share on that day."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from clay_lib.noise import uniform


@dataclass(frozen=True)
class Sun:
    elevation: float  # degrees, never below 8: nobody images in the dark
    east: float  # unit vector on the ground towards the sun
    north: float

    @property
    def shadow(self) -> float:
        """Metres of shadow a metre of height."""
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
    """What a date brings to a place, shared by all sensors that look on that day."""

    year_warm: float  # K above the mean year
    year_wet: float
    rain: float  # soil moisture 0..1 after the last days


def weather_at(x: float, y: float, when: dt.datetime, seed: int) -> Weather:
    i, j = int(x // 150_000), int(y // 150_000)
    day = when.toordinal() // 4
    r = [
        float(uniform(i, j, k, *key, seed=seed + 900)[0]) for k, key in enumerate(((when.year,), (when.year,), (day,)))
    ]
    return Weather(2.4 * (r[0] - 0.5), 0.6 * (r[1] - 0.5), r[2] ** 2)
