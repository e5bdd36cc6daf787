"""Sensors: bands with their wavelengths and statistics, ground sampling distance, normalization.

`SENSORS` holds the sensors that Clay v1.5 was published with (sensors.yaml, package data). A new sensor is one
`Sensor(...)` passed to any function that takes a sensor, or a few lines of YAML read by `read_sensors`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clay_lib.errors import ContractError, number
from clay_lib.files import read_yaml

# The sensors of the mini-world, on which the shipped weights were trained; models fitted on all use this order.
WORLD_SENSORS = ("sentinel-2-l2a", "landsat-c2l1", "landsat-c2l2-sr", "naip", "linz", "modis", "sentinel-1-rtc")
METERS_PER_DEGREE = 111_320.0  # along a meridian, and along the equator
POWER_FLOOR = 1e-10  # linear backscatter at or below zero is floored here, so -100 dB


@dataclass(frozen=True)
class Band:
    """One band. wavelength: center in micrometers. mean, std: of the native numbers (dB for radar)."""

    name: str
    wavelength: float  # um
    mean: float
    std: float

    def __post_init__(self):
        where = f"band {self.name!r}"
        for field in ("wavelength", "mean", "std"):
            object.__setattr__(self, field, number(f"{where}: {field}", getattr(self, field)))
        check_wavelength(f"{where}: wavelength", self.wavelength)
        if self.std <= 0:
            raise ContractError(f"{where}: std", self.std, "> 0", "statistics of a constant or empty sample")


@dataclass(frozen=True)
class Sensor:
    """A sensor's bands in their native order. gsd: meters per pixel. rgb: three band names to show.

    decibel: the native numbers are linear power, and the bands' statistics are in dB.
    """

    name: str
    bands: tuple[Band, ...]
    gsd: float  # m
    rgb: tuple[str, ...] = ()
    description: str = ""
    decibel: bool = False

    def __post_init__(self):
        where = f"sensor {self.name!r}"
        object.__setattr__(self, "bands", tuple(self.bands))
        object.__setattr__(self, "rgb", tuple(self.rgb))
        object.__setattr__(self, "gsd", number(f"{where}: gsd", self.gsd))
        names = self.band_names
        if not names or len(set(names)) != len(names):
            raise ContractError(f"{where}: bands", names, "at least one band, each once", "none, or one listed twice")
        if self.gsd <= 0:
            raise ContractError(f"{where}: gsd", self.gsd, "meters per pixel, > 0", "a missing or negative pixel size")
        if self.rgb:
            self.indices(self.rgb)

    @classmethod
    def custom(
        cls,
        wavelengths: Mapping[str, float] | Sequence[float],
        *,
        gsd: float,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pixels: np.ndarray | None = None,
        name: str = "custom",
        **kwargs,
    ) -> Sensor:
        """A sensor that is not in the registry, from its wavelengths (um, {band: wavelength} or a list) and statistics.

        mean, std: of the native numbers, one a band; or pixels [..., C, H, W] to compute them from, without NaN: many
        images of different land, since one image would be normalized by itself. kwargs: rgb, description, decibel.

        >>> doves = Sensor.custom({"blue": 0.49, "green": 0.565, "red": 0.665, "nir": 0.865}, gsd=3, pixels=images)
        """
        if not isinstance(wavelengths, Mapping):
            wavelengths = {f"band{k}": wave for k, wave in enumerate(wavelengths, start=1)}
        C = len(wavelengths)
        if pixels is not None:
            pixels = np.asarray(pixels)
            if pixels.ndim < 3 or pixels.shape[-3] != C:
                raise ContractError("pixels", f"shape {pixels.shape}", f"[..., {C}, H, W]", "bands last, or others")
            values = np.moveaxis(pixels.astype(np.float64), -3, 0).reshape(C, -1)  # [C, N]
            values = to_decibel(values) if kwargs.get("decibel") else values
            mean = np.nanmean(values, axis=1) if mean is None else mean
            std = np.nanstd(values, axis=1) if std is None else std
        if mean is None or std is None or not len(mean) == len(std) == C:
            found = [None if v is None else f"{len(v)} numbers" for v in (mean, std)]
            expected = f"{C} numbers each, one a band, or pixels to compute them from"
            raise ContractError("mean, std", found, expected, "statistics of other bands, or none")
        bands = (Band(*row) for row in zip(wavelengths, wavelengths.values(), mean, std, strict=True))
        return cls(name, tuple(bands), gsd, **kwargs)

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    def indices(self, names: Sequence[str] | None = None) -> list[int]:
        """Positions of the named bands in the sensor's own order; None means all of them."""
        if names is None:
            return list(range(len(self.bands)))
        names = [names] if isinstance(names, str) else list(names)
        known = {name: i for i, name in enumerate(self.band_names)}
        unknown = [name for name in names if name not in known]
        if unknown or not names or len(set(names)) != len(names):
            cause = f"unknown name {unknown[0]!r}" if unknown else "an empty list or a band named twice"
            raise ContractError("bands", names, f"a subset of {list(known)} of {self.name}, each once", cause)
        return [known[name] for name in names]

    def waves(self, bands: Sequence[str] | None = None) -> np.ndarray:
        """Central wavelengths [C], um."""
        return np.array([self.bands[i].wavelength for i in self.indices(bands)], dtype=np.float32)

    def statistics(self, bands: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(mean [C], std [C]) of the native numbers, in dB for radar."""
        chosen = [self.bands[i] for i in self.indices(bands)]
        return np.array([b.mean for b in chosen], np.float32), np.array([b.std for b in chosen], np.float32)

    def normalize(
        self, pixels: np.ndarray, bands: Sequence[str] | None = None, *, in_decibel: bool = False
    ) -> np.ndarray:
        """Native numbers [..., C, H, W] -> float32 with about zero mean and unit spread; NaN stays NaN.

        Radar power is converted to dB here, once; in_decibel: the pixels are in dB already.
        """
        mean, std = self.statistics(bands)
        pixels = np.asarray(pixels)
        if pixels.ndim < 3 or pixels.shape[-3] != len(mean):
            names = list(bands or self.band_names)
            expected = f"[C, H, W] or [B, C, H, W] with C = {len(mean)} bands {names} of {self.name}"
            cause = "bands last instead of first, or bands left out without bands=[...]"
            raise ContractError("pixels", f"shape {pixels.shape}", expected, cause)
        values = pixels.astype(np.float32)
        if self.decibel and not in_decibel:
            values = to_decibel(values)
        values -= mean[:, None, None]  # in place: astype made a copy
        values /= std[:, None, None]
        return values

    def denormalize(
        self, values: np.ndarray, bands: Sequence[str] | None = None, *, in_decibel: bool = False
    ) -> np.ndarray:
        """The inverse of `normalize`, back to native numbers, float32 [..., C, H, W]."""
        mean, std = self.statistics(bands)
        native = np.asarray(values, dtype=np.float32) * std[:, None, None] + mean[:, None, None]
        return 10.0 ** (native / 10.0) if self.decibel and not in_decibel else native


def to_decibel(power: np.ndarray) -> np.ndarray:
    """10 log10 of linear backscatter, floored at POWER_FLOOR; NaN stays NaN."""
    return 10.0 * np.log10(np.where(power > POWER_FLOOR, power, np.where(np.isnan(power), np.nan, POWER_FLOOR)))


def check_wavelength(field: str, wavelength: float) -> None:
    """Micrometers: 0.1 um (ultraviolet) to 100 um; nanometers and meters fall outside."""
    if not 0.1 <= wavelength <= 100:
        cause = "nanometers: divide by 1000" if wavelength > 100 else "meters, or a missing value"
        expected = "micrometers, 0.1 to 100 (blue is 0.49; Clay codes C-band radar as 3.5 and 4.0)"
        raise ContractError(field, wavelength, expected, cause)


class _Registry(dict):
    """Sensors by name; an unknown name is a ContractError that suggests the nearest ones."""

    def __missing__(self, name):
        near = difflib.get_close_matches(str(name), self, n=2, cutoff=0.3)
        cause = f"did you mean {' or '.join(near)}?" if near else "not in the registry: pass a Sensor(...) instead"
        raise ContractError("sensor", repr(name), f"one of {list(self)}", cause)

    def resolve(self, sensor: str | Sensor) -> Sensor:
        """A Sensor from itself or from its name."""
        return sensor if isinstance(sensor, Sensor) else self[str(sensor)]


def read_sensors(path: str | Path) -> Mapping[str, Sensor]:
    """Sensors from a YAML file laid out like clay_lib/sensors.yaml."""
    try:
        registry = _Registry()
        for name, entry in read_yaml(path, "sensors file").items():
            bands = tuple(Band(band, **numbers) for band, numbers in entry["bands"].items())
            kwargs = {key: entry[key] for key in ("gsd", "rgb", "description", "decibel") if key in entry}
            registry[name] = Sensor(name, bands, **kwargs)
        return registry
    except (OSError, KeyError, TypeError, AttributeError) as error:
        found = f"{path}: {type(error).__name__} {error}"
        expected = "name: {gsd, rgb, bands: {band: {wavelength, mean, std}}}"
        cause = "a wrong path, a missing key or a wrong indent; clay_lib/sensors.yaml is an example"
        raise ContractError("sensors file", found, expected, cause) from None


SENSORS = read_sensors(Path(__file__).with_name("sensors.yaml"))
