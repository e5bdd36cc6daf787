"""Rules of the image check: what the numbers of an image reveal about units, fill values and band order.

Each rule reads the same sample of an image and yields its findings: errors for what cannot be right, warnings for what
is unlikely. The sensors' mean and std give the range of a band's numbers; FACTS adds what no statistic holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import combinations

import numpy as np

from clay_lib.data.bands import FACTS, Facts
from clay_lib.sensors import POWER_FLOOR, Sensor

FEW = 256  # pixels; fewer say nothing about constancy, dark pixels or order
CODES = (-9999, -32768, -28672, -999, -3.4028234663852886e38, 32767, 65535)  # usual fills; 0 has a rule of its own
PERCENTS = (0, 1, 5, 10, 50, 90, 95, 99, 100)
CAMERA_GAMMA = 1.4  # 8-bit cameras: reflectance is about 0.6 (x / 255) ** 1.4


@dataclass(frozen=True)
class Finding:
    """level: "error" cannot be right, "warning" is unlikely. The rest as in ContractError."""

    level: str
    field: str
    found: str
    expected: str
    cause: str

    def __str__(self) -> str:
        if not self.expected:  # what a reader reported
            return f"{self.field}: {self.found}"
        return f"{self.field}: found {self.found}; expected {self.expected}. Likely cause: {self.cause}"


error, warning = partial(Finding, "error"), partial(Finding, "warning")


@dataclass(frozen=True)
class ImageSample:
    """values [C, N]: float64, NaN where missing, some thousand pixels of all chips, chip by chip.

    dtype: as stored; low, high: of all valid numbers, not of the sample alone; in_decibel: as the caller says.
    """

    sensor: Sensor
    names: tuple[str, ...]
    values: np.ndarray
    dtype: np.dtype
    low: float
    high: float
    in_decibel: bool = False

    @cached_property
    def facts(self) -> Facts:
        return FACTS.get(self.sensor.name, Facts())

    @cached_property
    def mean(self) -> np.ndarray:
        """[C]: the sensor's mean of each band."""
        return self.sensor.statistics(self.names)[0].astype(float)

    @cached_property
    def waves(self) -> np.ndarray:
        return self.sensor.waves(self.names)

    @cached_property
    def count(self) -> np.ndarray:
        """[C]: measured pixels of each band."""
        return (~np.isnan(self.values)).sum(1)

    @property
    def pixels(self) -> int:
        return int(self.count.min(initial=self.values.shape[1]))

    @cached_property
    def percentiles(self) -> dict[int, np.ndarray]:
        """{per cent: [C]}; NaN in a band without numbers."""
        ordered = np.sort(self.values, axis=1)  # NaN goes last
        last = np.maximum(self.count - 1, 0)
        return {p: ordered[np.arange(len(last)), np.rint(last * p / 100).astype(int)] for p in PERCENTS}

    @property
    def limit(self) -> float:
        """No number lies beyond: those of satellites and cameras are stored in 16 bits; power and custom units may not be."""
        return 99_998 if self.facts.one or self.facts.bits else 1e9

    @cached_property
    def integers(self) -> bool:
        numbers = self.values[~np.isnan(self.values)]
        return bool((numbers == np.rint(numbers)).all())

    def without(self, mask: np.ndarray) -> ImageSample:
        """The same without some of its numbers, which another rule has reported."""
        values = np.where(mask, np.nan, self.values)
        rest = values[~np.isnan(values)]
        low, high = (rest.min(), rest.max()) if rest.size else (np.nan, np.nan)
        return replace(self, values=values, low=float(low), high=float(high))

    def describe(self, band: int, percent: int = 50) -> str:
        """Such as "median of band nir is 0.21, the sensor's mean is 2743"."""
        what = "median" if percent == 50 else f"percentile {percent}"
        numbers = short(self.percentiles[percent][band]), short(self.mean[band]) + " dB" * self.sensor.decibel
        return f"{what} of band {self.names[band]} is {numbers[0]}, the sensor's mean is {numbers[1]}"


def short(value: float) -> str:
    """Three figures below a thousand, integers above."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


# ---- missing pixels ----


def nodata_codes(s: ImageSample) -> Iterator[Finding]:
    """Fill values that no sensor measures. Saturated pixels hold 32767 or 65535 too, but then others come near."""
    for code in CODES:
        match = s.values == code
        share = float(match.mean())
        rest = s.values[match.any(1)][~np.isin(s.values[match.any(1)], CODES)]
        saturated = s.pixels < FEW and not match.all(0).any()  # a fill is in all bands, a saturated pixel in some
        if code > 0 and share and (saturated or np.nanmax(rest, initial=-np.inf) > 0.8 * code):
            continue
        if share >= 0.01 or (code < 0 and (share > 0 or s.low == code)):
            level = "error" if code < 0 or share >= 0.05 else "warning"
            expected = f"measurements of {s.sensor.name}, or NaN where there are none"
            cause = "a nodata code that was left in: set it to NaN, or pass valid=pixels[0] != code"
            yield Finding(level, "pixels", f"{code:g} in {share:.1%} of a sample", expected, cause)
    for extreme in sorted({s.low, s.high} - {*CODES}):
        if abs(extreme) > s.limit:
            expected = f"measurements of {s.sensor.name}, none beyond {s.limit:g}, or NaN where there are none"
            cause = "a nodata code that was left in, such as 1e20 or -99999: set it to NaN, or pass nodata="
            yield error("pixels", f"{extreme:g}", expected, cause)


def one_number(s: ImageSample) -> Iterator[Finding]:
    """The same number in all bands of many pixels: a fill that is no usual code. White saturates cameras so."""
    if len(s.names) < 2 or s.pixels < FEW or s.facts.bits or s.dtype == np.uint8:
        return
    numbers, counts = np.unique(s.values[0, (s.values == s.values[0]).all(0)], return_counts=True)
    if 0.01 <= (share := counts.max(initial=0) / s.values.shape[1]) < 1:
        code = numbers[counts.argmax()]
        cause = f"a nodata code that was left in: pass nodata={code:g}"
        found = f"{code:g} in every band of {share:.1%} of a sample"
        yield warning("pixels", found, "a measurement of its own in each band", cause)


def zeros(s: ImageSample) -> Iterator[Finding]:
    """Bands of zeros; zero in every band is missing already (`bands.missing_pixels`)."""
    empty = (s.values == 0).sum(1) == s.count
    for band in np.flatnonzero(empty & (s.count > 0)) if s.pixels >= FEW else ():
        name = s.names[band]
        cause = f"a band that the file lacks: leave {name} out and name the others in bands=[...]"
        yield error("pixels", f"zero in every pixel of band {name}", "measurements in every band", cause)


def constant(s: ImageSample) -> Iterator[Finding]:
    least, most = s.percentiles[0], s.percentiles[100]
    white = (most == 255) & bool(s.facts.bits)  # snow and sand saturate a camera
    flat = np.flatnonzero((least == most) & (most != 0) & ~white) if s.pixels >= FEW else []
    cause = "a fill or a saturated band: leave it out and name the others in bands=[...]"
    if len(flat) == len(most):
        cause = "a placeholder instead of an image"
    if len(flat):
        found = ", ".join(f"{short(most[band])} in every pixel of band {s.names[band]}" for band in flat)
        yield warning("pixels", found, "more than one number", cause)


def alpha_band(s: ImageSample) -> Iterator[Finding]:
    """A camera's fourth band that is a mask: 255 or 0 and nothing between, where the other bands have many numbers."""
    mask = np.isin(s.values, (0, 255)) | np.isnan(s.values)
    for band in np.flatnonzero(mask.all(1)) if s.facts.bits and s.pixels >= FEW and not mask.all() else ():
        name = s.names[band]
        cause = f"an alpha band, not {name}: name the others in bands=[...] with None in its place"
        yield error("bands", f"nothing but 0 and 255 in band {name}", "measurements in every band", cause)


# ---- units ----


def optical_units(s: ImageSample) -> Iterator[Finding]:
    """At most one finding: the units that the numbers seem to be in."""
    p, facts = s.percentiles, s.facts
    band = int(np.nanargmax(np.where(s.count > 0, s.mean, np.nan)))  # the brightest
    top, high, low = float(np.nanmax(p[99])), float(np.nanmax(p[100])), float(np.nanmin(p[0]))
    native = "the camera's 0 to 255" if facts.bits else s.sensor.description or "the sensor's native numbers"
    hundreds, thousands = np.median(s.mean) > 20, np.median(s.mean) > 500  # where the sensor's own numbers lie
    darkest = int(np.nanargmin(p[50]))

    def finding(cause, level="error", found=""):
        return Finding(level, "pixels", found or s.describe(band), native, cause)

    if hundreds and not s.integers and low < -0.05 and high < 15 and low > -15 and np.nanmax(np.abs(p[50])) < 6:
        yield finding("already normalized: pass the native numbers, or build a Datacube of normalized ones")
    elif hundreds and not s.integers and -0.5 <= low and top <= 2 and high <= 20:
        yield finding(f"looks like reflectance or an image scaled to 0..1; {facts.fix}")
    elif thousands and s.dtype == np.uint8:
        yield finding("looks like an 8-bit image, made for display: its stretch is lost, use the original file")
    elif facts.bits and top > 2**facts.bits and high > 1.2 * 2**facts.bits:
        yield finding("16-bit numbers for an 8-bit camera: divide by 257 where 65535 is white, else use the 8-bit file")
    elif thousands and facts.least > 0 and np.nanmin(p[50]) < facts.least:
        rest = facts.fix.removeprefix("native = ").replace("value", "value / 10000")
        cause = f"looks like reflectance x 10000, as Landsat products before Collection 2 had: native = {rest}"
        if high <= 255:
            cause = "looks like per cent or an 8-bit image: native numbers are needed, see sensors.yaml"
        yield finding(cause, found=s.describe(darkest))
    elif thousands and not s.integers and 2 < top <= 130 and low >= -10 and high <= 255:
        yield finding("looks like reflectance in per cent; multiply by 100", "warning")
    elif thousands and s.integers and 200 <= high <= 255 and low >= 0 and top > 100:
        yield finding("looks like an 8-bit image in a wider type: its stretch is lost, use the original", "warning")
    elif facts.one == 10_000 and np.nanmax(p[50]) > 25_000:
        cause = "a reflectance above 2.5: numbers of another product, such as raw counts or a 16-bit stretch"
        yield finding(cause, found=s.describe(int(np.nanargmax(p[50]))))
    elif facts.one == 10_000 and s.pixels >= FEW and np.nanmin(p[1]) > 6500 and max(s.waves) > 1.5:
        cause = "no dark pixel in any band: Landsat Collection 2 numbers? They start at 7273"
        yield finding(cause, "warning", s.describe(int(np.nanargmin(p[1])), 1))
    elif facts.one is None and not facts.bits and not hundreds and np.nanmax(np.abs(s.mean)) < 2 and top > 50:
        yield finding("integers for a sensor whose statistics are reflectance 0..1; divide, usually by 10000")


def radar_units(s: ImageSample) -> Iterator[Finding]:
    """Power or decibel, distinguished by sign and size."""
    p, median = s.percentiles, s.percentiles[50]
    centered = not s.integers and np.nanmax(np.abs(median)) < 3 and s.low > -15 and s.high < 15
    centered = centered and np.nanmean(median) > -3 and np.nanmin(p[1]) > -6
    decibel, power = "decibel, -40 to 10", "linear power, 0.001 to 2"

    def finding(expected, cause, level="error"):
        return Finding(level, "pixels", s.describe(0), expected, cause)

    if s.in_decibel:
        if np.nanmin(p[1]) >= 0 and np.nanmax(median) < 10 and s.pixels >= 16:
            yield finding("decibel, mostly negative", "linear power: leave in_decibel out, the conversion is done here")
        elif np.nanmax(median) < -60:
            yield finding(decibel, "converted to dB twice, dB x 100, or a fill value that was floored")
        elif np.nanmin(median) > 15:
            yield finding(decibel, "uncalibrated counts or an image for display: use calibrated gamma0")
        elif centered and s.pixels >= FEW:
            yield finding(decibel, "already normalized: pass dB, or build a Datacube", "warning")
    elif np.nanmax(median) < 0:
        cause = "already normalized: pass the native numbers" if centered else "decibel already: say in_decibel=True"
        yield finding("linear power, never negative", cause)
    elif np.nanmedian(median) > 10:
        yield finding(power, "uncalibrated counts or amplitude: use calibrated gamma0")
    elif s.pixels >= FEW and np.nanmin(p[1]) > 0.9 and np.nanmax(p[99]) < 3:
        yield finding(power, "dB undone twice: 10 ** (x / 10) was taken of power", "warning")


def negative(s: ImageSample) -> Iterator[Finding]:
    if s.sensor.decibel or s.mean.min() < 0:
        return
    below = float((s.values < min(s.facts.zero - 200, 0)).sum() / max(s.count.sum(), 1))
    if below > (0.01 if s.facts.bits or s.facts.zero else 0.05):
        impossible = bool(s.facts.bits or s.facts.zero or below > 0.5)
        cause = "unsigned numbers read as signed, or a nodata value"
        if s.sensor.name.startswith("sentinel-2"):
            cause = "the offset of 1000 subtracted twice, or from a scene that never had it: do not subtract it"
        found = f"{below:.0%} of the numbers far below zero, least {short(s.low)}"
        yield Finding("error" if impossible else "warning", "pixels", found, "reflectance, hardly ever negative", cause)


def offset_kept(s: ImageSample) -> Iterator[Finding]:
    """Sentinel-2's offset since baseline 04.00: the darkest pixels of all bands stand just above 1000.

    Bright scenes have no dark pixels either, but are brighter in the visible or beyond 1.5 um, not in both: sand is
    bright there, snow and water are dark there, and haze is bright in the blue alone.
    """
    swir, blue = s.waves > 1.5, s.waves < 0.6
    if not s.sensor.name.startswith("sentinel-2") or s.pixels < 4 * FEW or not (swir.any() and blue.any()):
        return
    dark = s.percentiles[1]
    if dark.min() >= 980 and dark[s.waves < 0.68].max() < 1450 and dark[swir].min() < 1450:
        bands = int(blue.argmax()), int(np.where(swir, dark, np.inf).argmin())
        found = " and ".join(f"{short(dark[band])} in {s.names[band]}" for band in bands)
        yield warning(
            "pixels", f"no dark pixel: percentile 1 is {found}", "shadow, water or leaves below 1000 in some band",
            "the offset of 1000 was not removed: subtract it. Baseline 04.00 and later adds it, also to old dates "
            "processed again; if haze or bright ground without a shadow fills the image, leave the numbers as they are",
        )  # fmt: skip


def far_from_mean(s: ImageSample) -> Iterator[Finding]:
    """The last resort, the only one for a custom sensor. Skips known reflectance: snow may be 26 deviations bright."""
    if s.facts.one:
        return
    median = s.percentiles[50]
    if s.sensor.decibel and not s.in_decibel:
        median = 10 * np.log10(np.maximum(median, POWER_FLOOR))
    deviations = np.abs(median - s.mean) / s.sensor.statistics(s.names)[1]
    if np.nanmedian(deviations) > 12:
        band = int(np.nanargmax(deviations))
        found = f"{s.describe(band)}: {deviations[band]:.0f} standard deviations away"
        cause = "another unit, another product or another sensor"
        yield warning("pixels", found, "numbers in the units of the sensor's statistics", cause)


# ---- band order ----


def repeated(s: ImageSample) -> Iterator[Finding]:
    """Two bands with the same numbers in every pixel; a gray photograph has that too."""
    least, median, most = (s.percentiles[k] for k in (0, 50, 100))
    for i, j in combinations(range(len(s.names)), 2) if s.pixels >= FEW else ():
        same = median[i] == median[j] and least[i] != most[i]
        if same and np.array_equal(s.values[i], s.values[j], equal_nan=True):
            found = f"the same numbers in {s.names[i]} and {s.names[j]}, in every pixel"
            cause = "one file read for two bands" + (", or a gray photograph" if s.facts.bits else "")
            level = "warning" if s.facts.bits else "error"
            yield Finding(level, "bands", found, "a measurement of its own in each", cause)


def out_of_order(s: ImageSample) -> Iterator[Finding]:
    facts, waves = s.facts, s.waves
    if s.pixels < FEW or not (facts.one or facts.bits):
        return
    numbers = s.values[:, ~np.isnan(s.values).any(0)]
    numbers = numbers[:, :: max(1, numbers.shape[1] // 1024)]
    if facts.one:
        reflectance = (numbers - facts.zero) / (facts.one - facts.zero)
    else:
        reflectance = 0.6 * np.clip(numbers / 255, 0, 1) ** CAMERA_GAMMA
    order = None
    if len(waves) > 3 and waves.max() > 0.74:
        order = better_order(reflectance, waves, top=facts.top, camera=bool(facts.bits))
    if order is not None:
        names = dict(zip(order, s.names, strict=True))
        better = ", ".join(names[i] for i in range(len(names)))
        found = f"spectra that match no land, water, snow or cloud for {', '.join(s.names)}"
        cause = f"another order: {better} fits; pass that as bands=[...]"
        yield warning("bands", found, "the bands in the order they are named in", cause)
    elif {"red", "green", "blue"} <= set(s.names):
        if facts.top:
            reflectance = reflectance - 0.05 * (waves[:, None] / 0.48) ** -4
        image = numbers if facts.bits else 255 * np.clip(reflectance / 0.6, 0, 1) ** (1 / CAMERA_GAMMA)
        if red_is_blue(*(image[s.names.index(name)] for name in ("red", "green", "blue"))):
            found = "bright surfaces are bluish, and red varies less than blue"
            expected = "warm soil, sand and roofs, and red varying more than blue"
            yield warning("bands", found, expected, "red and blue are swapped (BGR)")


# Each pixel's spectrum is compared to mixtures of a few materials at the named wavelengths. Where it fits badly, and
# another order of the same bands fits far better, the names are wrong. Three visible bands alone hold too little for
# that: there only red and blue are distinguished, by what is bright and what varies.
# Thresholds: chosen so that no right image of 11 satellite and aerial files, 500 aerial images and 900 chips of the
# mini-world raises a warning. The price: a wrong order goes unnoticed over water, cloud or gray towns, BGR in most
# aerial images.
SPECTRA = 128  # pixels compared to the materials
FIT, GAIN = 0.6, 0.03  # another order must fit this many times better, and by so many radians
CAMERA_FIT, CAMERA_GAIN = 0.5, 0.05  # stretched by hand, so with more tolerance
MATERIAL_WAVES = (0.44, 0.49, 0.56, 0.665, 0.705, 0.74, 0.78, 0.865, 1.24, 1.61, 2.2)  # um
MATERIALS = {  # reflectance in per cent at MATERIAL_WAVES, round numbers after published spectral libraries
    "leaves": (2, 2.5, 6, 2.5, 9, 25, 38, 45, 42, 20, 9),
    "grass": (4, 5, 10, 7, 14, 24, 32, 38, 40, 28, 15),
    "needles": (1.5, 2, 3.5, 2.2, 5, 13, 20, 24, 20, 11, 4.5),
    "straw": (6, 8, 14, 20, 24, 27, 29, 33, 42, 42, 30),
    "red soil": (5, 7, 11, 18, 20, 22, 24, 27, 36, 42, 36),
    "sand": (12, 16, 23, 32, 34, 36, 38, 41, 48, 53, 47),
    "dark soil": (3.5, 4.5, 6, 8.5, 10, 11, 12, 15, 22, 28, 24),
    "concrete": (14, 17, 20, 22, 22.5, 23, 23.5, 24, 26, 28, 26),
    "clear water": (5, 4.5, 3.5, 1.2, 0.8, 0.6, 0.5, 0.4, 0.1, 0.1, 0.1),
    "green water": (3, 4, 7, 3.5, 2.5, 1.5, 1.2, 0.8, 0.2, 0.1, 0.1),
    "silty water": (6, 8, 12, 14, 12, 8, 7, 5, 1, 0.6, 0.5),
    "snow": (95, 95, 95, 93, 92, 91, 90, 86, 55, 12, 10),
    "cloud": (55, 55, 55, 56, 56, 56, 56, 57, 55, 45, 35),
}


def better_order(reflectance: np.ndarray, waves: np.ndarray, *, top: bool, camera: bool) -> list[int] | None:
    """Which band of reflectance [C, N] seems to belong to each of the waves [C] (um); None: the order is credible.

    top: seen through the whole atmosphere, so with blue haze. camera: the numbers are those of a stretched image.
    """
    fit, gain = (CAMERA_FIT, CAMERA_GAIN) if camera else (FIT, GAIN)
    spectra = _unit_vectors(reflectance[:, :: max(1, reflectance.shape[1] // SPECTRA)].T)  # [n, C]
    library = _library(tuple(np.round(waves.tolist(), 3)), top)  # [M, C]
    misfit = _angles(spectra, library).mean()
    if misfit < gain:
        return None
    orders = _likely_orders(waves)
    reordered = spectra[::8][:, np.array(orders)]  # [n / 8, orders, C]
    best = orders[int(_angles(reordered, library).mean(0).argmin())]
    other = _angles(spectra[:, best], library).mean()
    return best if other < fit * misfit and misfit - other > gain else None


def red_is_blue(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> bool:
    """Whether "red" behaves as blue does. Each [N], 0 to 255 as an image would show it.

    On land what is bright is warm (soil, roofs, sand) and red varies more than blue, which haze fills up. All three
    signs must be clearly reversed, and the bright not green: leaves say nothing of red and blue.
    """
    light = (red + green + blue) / 3
    bright = light >= np.percentile(light, 80)
    if np.ptp(np.percentile(green, (5, 95))) < 20:
        return False
    warmth = np.log((np.median(red[bright]) + 8) / (np.median(blue[bright]) + 8))
    slope = np.mean((light - light.mean()) * (red - blue)) / light.var()
    spread = np.log((np.ptp(np.percentile(red, (5, 95))) + 8) / (np.ptp(np.percentile(blue, (5, 95))) + 8))
    green_most = np.median(green[bright]) >= np.median(blue[bright])
    return bool(not green_most and warmth < -0.07 and slope < -0.07 and spread < -0.11)


def _likely_orders(waves: np.ndarray) -> list[list[int]]:
    """The common mistakes: reversed, sorted by wavelength, shifted by one, one (B8A) moved to the end, two exchanged."""
    right = list(range(len(waves)))
    orders = [right[::-1], np.argsort(waves).tolist(), np.argsort(np.argsort(waves)).tolist()]
    orders += [right[1:] + right[:1]]
    orders += [right[:i] + right[-1:] + right[i:-1] for i in right[:-2]]  # one moved to the end
    for i, j in combinations(right, 2):
        swapped = right.copy()
        swapped[i], swapped[j] = j, i
        orders.append(swapped)
    return [order for n, order in enumerate(orders) if order != right and order not in orders[:n]]


def _angles(spectra: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Radians [...] between unit spectra [..., C] and the nearest of the library [M, C]."""
    return np.arccos(np.clip((spectra @ library.T).max(-1), -1, 1))


def _unit_vectors(spectra: np.ndarray) -> np.ndarray:
    root = np.sqrt(np.clip(spectra, 1e-3, None)).astype(np.float32)  # so that dark bands count too
    return root / np.linalg.norm(root, axis=1, keepdims=True)


@lru_cache(maxsize=16)
def _library(waves: tuple[float, ...], top: bool) -> np.ndarray:
    """Unit vectors [M, C]: mixtures of two materials under three strengths of haze."""
    pure = np.array([np.interp(waves, MATERIAL_WAVES, np.array(row) / 100) for row in MATERIALS.values()])
    i, j = np.array([*combinations(range(len(pure)), 2)]).T
    share = np.linspace(0.2, 0.8, 4)[:, None, None]
    mixed = np.concatenate([pure, (share * pure[i] + (1 - share) * pure[j]).reshape(-1, len(waves))])
    haze = 0.02 * (np.array(waves) / 0.5) ** -4.0
    return np.concatenate([_unit_vectors(mixed * (1 - 0.05 * h) + h * haze) for h in ((2, 4, 6) if top else (0, 1, 3))])
