"""What the rules of the contract check read and write: facts of the sensors, evidence of one image, findings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from clay_lib.contract import ContractError
from clay_lib.sensors import Sensor

PERCENTS = (0, 1, 5, 10, 50, 90, 95, 99, 100)


@dataclass(frozen=True)
class Finding:
    """level: "error" cannot be right, "warning" is unlikely. The rest in the words of ContractError."""

    level: str
    field: str
    found: str
    expected: str
    cause: str

    def __str__(self) -> str:
        return f"{self.field}: found {self.found}; expected {self.expected}. Likely cause: {self.cause}"


@dataclass(frozen=True)
class Facts:
    """zero, one: native numbers of reflectance 0 and 1; top: at the top of the atmosphere; floor: no median lies below;
    bits: of an aerial camera's file; since: first image, ISO date; lands: boxes (west, south, east, north) that all images lie in.
    """

    zero: float = 0.0
    one: float | None = None
    top: bool = False
    floor: float = -1000.0
    bits: int | None = None
    since: str = ""
    lands: tuple[tuple[float, float, float, float], ...] = ()
    mend: str = "multiply by 10000"  # reflectance 0 to 1 -> native numbers


UNITED_STATES = ((-125.5, 24.0, -66.0, 49.5), (-180.0, 51.0, -129.0, 72.0), (-161.0, 18.5, -154.0, 22.5))
# Sources: USGS Landsat Collection 2 level 1 and 2 product guides (scale and offset), ESA Sentinel-2 L2A and MODIS
# MCD43A4/MOD09 product pages (x 10000); launches: ESA, NASA/USGS, Planet, Satellogic. C2 L2 reaches back to Landsat 4.
FACTS = {
    "sentinel-2-l2a": Facts(one=10_000, since="2015-06-23"),
    "planetscope-sr": Facts(one=10_000, since="2014-01-09"),
    "landsat-c2l1": Facts(5000, 55_000, True, 4000, since="2013-02-11", mend="native = (value + 0.1) / 0.00002"),
    "landsat-c2l2-sr": Facts(7273, 43_636, False, 5500, since="1982-07-16", mend="native = (value + 0.2) / 0.0000275"),
    "naip": Facts(bits=8, since="2002-01-01", lands=UNITED_STATES, mend="multiply by 255"),
    "linz": Facts(bits=8, lands=((166.0, -48.0, 179.0, -34.0),), mend="multiply by 255"),
    "sentinel-1-rtc": Facts(since="2014-04-03"),
    "modis": Facts(one=10_000, since="1999-12-18"),
    "satellogic-MSI-L1D": Facts(one=10_000, top=True, since="2016-05-30"),
}


@dataclass(frozen=True)
class Evidence:
    """sample [C, N]: float64, NaN where missing, some thousand pixels of all chips, chip by chip.

    low, high: of all valid numbers, not of the sample alone; whole: they are whole numbers; in_decibel: as claimed.
    """

    sensor: Sensor
    names: tuple[str, ...]
    sample: np.ndarray
    chips: int
    dtype: np.dtype
    low: float
    high: float
    in_decibel: bool = False

    @cached_property
    def facts(self) -> Facts:
        return FACTS.get(self.sensor.name, Facts())

    @cached_property
    def mean(self) -> np.ndarray:
        return self.sensor.statistics(self.names)[0].astype(float)

    @cached_property
    def count(self) -> np.ndarray:
        return (~np.isnan(self.sample)).sum(1)

    @property
    def pixels(self) -> int:
        return int(self.count.min(initial=self.sample.shape[1]))

    @cached_property
    def percentiles(self) -> dict[int, np.ndarray]:
        """{per cent: [C]}; NaN in a band without numbers."""
        ordered = np.sort(self.sample, axis=1)  # NaN goes last
        at = np.maximum(self.count - 1, 0)
        return {p: ordered[np.arange(len(at)), np.rint(at * p / 100).astype(int)] for p in PERCENTS}

    @cached_property
    def whole(self) -> bool:
        numbers = self.sample[~np.isnan(self.sample)]
        return bool(self.dtype.kind in "iub" or (numbers == np.rint(numbers)).all())

    def without(self, blank: np.ndarray) -> Evidence:
        """The same without some of its numbers, which another rule has told about."""
        sample = np.where(blank, np.nan, self.sample)
        rest = sample[~np.isnan(sample)]
        low, high = (rest.min(), rest.max()) if rest.size else (np.nan, np.nan)
        return replace(self, sample=sample, low=float(low), high=float(high))

    def said(self, band: int, percent: int = 50) -> str:
        """ "median of band nir is 0.21, the registry's mean is 2743" """
        what = "median" if percent == 50 else f"percentile {percent}"
        unit = " dB" if self.sensor.decibel else ""
        return (
            f"{what} of band {self.names[band]} is {short(self.percentiles[percent][band])}, "
            f"the registry's mean is {short(self.mean[band])}{unit}"
        )


def short(value: float) -> str:
    """Three figures below a thousand, whole numbers above."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def told(error: ContractError) -> Finding:
    return Finding("error", error.field, str(error.found), str(error.expected), error.cause)


def failed(field: str, value, expected: str, error: Exception) -> Finding:
    return Finding("error", field, f"{type(value).__name__}: {error}"[:200], expected, "another type of object")
