"""What the numbers of an image give away: a rule a function, each reads the same evidence and yields its findings.

An error is what cannot be right, a warning what is unlikely. The registry's mean and std say what a band's numbers look
like; FACTS adds what no statistic tells: which number stands for zero reflectance, and since when there are images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import cached_property, lru_cache
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from clay_lib.datacube import Datacube, latlon_code, parse_when, per_chip
from clay_lib.errors import ContractError, number
from clay_lib.sensors import POWER_FLOOR, SENSORS, Sensor, check_wavelength

SPECTRA = 128  # pixels held against the materials
CAMERA_GAMMA = 1.4  # 8-bit cameras: reflectance is about 0.6 (x / 255) ** 1.4
FIT, GAIN = 0.6, 0.03  # another order must fit this many times better, and by so many radians
CAMERA_FIT, CAMERA_GAIN = 0.5, 0.05  # stretched by hand, so with more room

_AT = (0.44, 0.49, 0.56, 0.665, 0.705, 0.74, 0.78, 0.865, 1.24, 1.61, 2.2)  # um
_MATERIALS = {  # reflectance in per cent at _AT, round numbers after published spectral libraries
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
    """Where in [C, N] the band of each of the waves [C] (um) seems to lie, or None: the order as named is credible.

    top: seen through the whole atmosphere, so with blue haze. camera: the numbers are a stretched picture's.
    """
    fit, gain = (CAMERA_FIT, CAMERA_GAIN) if camera else (FIT, GAIN)
    seen = _unit(reflectance[:, :: max(1, reflectance.shape[1] // SPECTRA)].T)
    library = _library(tuple(np.round(waves.tolist(), 3)), top)
    named = _misfit(seen, library)
    if named < gain:
        return None
    orders = _orders(waves)
    few = seen[::8][:, np.array(orders)]  # [n, orders, C]
    best = orders[int(_angles(few, library).mean(0).argmin())]
    other = _misfit(seen[:, best], library)
    return best if other < fit * named and named - other > gain else None


def red_is_blue(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> bool:
    """Whether "red" behaves as blue does. Each [N], 0 to 255 as a picture would show it.

    On land what is bright is warm (soil, roofs, sand) and red varies more than blue, which haze fills up. All three
    signs must be plainly the other way round, and the bright not green: leaves say nothing of red and blue.
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


def _orders(waves: np.ndarray) -> list[list[int]]:
    """The slips people make: reversed, sorted by wavelength, one too far, two exchanged."""
    own = list(range(len(waves)))
    slips = [own[::-1], np.argsort(waves).tolist(), np.argsort(np.argsort(waves)).tolist()]
    slips += [own[1:] + own[:1], own[-1:] + own[:-1]]
    for i, j in combinations(own, 2):
        swapped = own.copy()
        swapped[i], swapped[j] = j, i
        slips.append(swapped)
    return [order for n, order in enumerate(slips) if order != own and order not in slips[:n]]


def _misfit(seen: np.ndarray, library: np.ndarray) -> float:
    return float(_angles(seen, library).mean())


def _angles(seen: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Radians [...] between unit spectra [..., C] and the nearest of the library [M, C]."""
    return np.arccos(np.clip((seen @ library.T).max(-1), -1, 1))


def _unit(spectra: np.ndarray) -> np.ndarray:
    root = np.sqrt(np.clip(spectra, 1e-3, None)).astype(np.float32)  # so that dark bands count too
    return root / np.linalg.norm(root, axis=1, keepdims=True)


@lru_cache(maxsize=16)
def _library(waves: tuple[float, ...], top: bool) -> np.ndarray:
    """Unit vectors [M, C]: mixtures of two materials under three strengths of haze."""
    pure = np.array([np.interp(waves, _AT, np.array(row) / 100) for row in _MATERIALS.values()])
    i, j = np.array([*combinations(range(len(pure)), 2)]).T
    share = np.linspace(0.2, 0.8, 4)[:, None, None]
    mixed = np.concatenate([pure, (share * pure[i] + (1 - share) * pure[j]).reshape(-1, len(waves))])
    haze = 0.02 * (np.array(waves) / 0.5) ** -4.0
    return np.concatenate([_unit(mixed * (1 - 0.05 * h) + h * haze) for h in ((2, 4, 6) if top else (0, 1, 3))])


# ---- What the numbers of an image give away: a rule a function, each reads the same evidence and yields i ----

FEW = 256  # pixels; fewer say nothing about constancy, dark pixels or order
CODES = (-9999, -32768, -28672, -999, -3.4028234663852886e38, 32767, 65535)  # usual fills; 0 has a rule of its own


def of_images(e: Evidence) -> list[Finding]:
    """All that the numbers of an image give away; a finding about units silences what would only follow from it."""
    found = [*infinite(e)]
    if not -900 < e.low <= e.high < 32767:  # where codes and infinities lie
        found += nodata_codes(e)
        e = e.without(np.isin(e.sample, CODES) | np.isinf(e.sample))
    found += empty(e)
    live = (e.count > 0) & ((e.percentiles[100] != e.percentiles[0]) | (e.percentiles[100] != 0))
    if not live.any():
        return found
    e = e.without((e.sample == 0).all(0)) if (e.sample == 0).all(0).any() and not e.facts.bits else e
    units = [*(radar(e) if e.sensor.decibel else optical(e))]
    return found + (
        units or [f for rule in (constant, negative, repeated, offset_kept, out_of_order, far_off) for f in rule(e)]
    )


# ---- missing ----


def infinite(e: Evidence) -> Iterator[Finding]:
    if np.isinf(e.low) or np.isinf(e.high):
        yield Finding(
            "error",
            "pixels",
            f"infinite numbers, {np.isinf(e.sample).mean():.1%} of a sample",
            "finite numbers, or NaN where there is no measurement",
            "a division by zero, or the logarithm of a power of zero: set them to NaN",
        )


def nodata_codes(e: Evidence) -> Iterator[Finding]:
    """Fills that no sensor measures are errors. Saturated pixels hold 32767 or 65535 too, but then others come near."""
    for code in CODES:
        at = e.sample == code
        share = float(at.mean())
        rest = e.sample[at.any(1)][~np.isin(e.sample[at.any(1)], CODES)]
        alone = e.pixels < FEW and not at.all(0).any()  # a fill is in all bands, a saturated pixel in some
        if code > 0 and share and (alone or np.nanmax(rest, initial=-np.inf) > 0.8 * code):
            continue
        impossible = code < 0
        if share >= 0.01 or (impossible and (share > 0 or e.low == code)):
            yield Finding(
                "error" if impossible or share >= 0.05 else "warning",
                "pixels",
                f"{code:g} in {share:.1%} of a sample",
                f"measurements of {e.sensor.name}, or NaN where there are none",
                "a nodata code that was left in: set it to NaN, or hand in valid=pixels[0] != code",
            )


def empty(e: Evidence) -> Iterator[Finding]:
    """Zero filling. Zero is Landsat's and Sentinel-2's fill, and no radar power."""
    zero = e.sample == 0
    none = zero.all(1) & (e.count > 0)
    if e.count.any() and none[e.count > 0].all() and (e.pixels >= 16 or not e.facts.bits):
        yield Finding(
            "error", "pixels", "zero in every pixel of every band", "measurements",
            "an area outside the scene, or a file that was made but never filled",
        )  # fmt: skip
        return
    filled = float(zero.all(0).mean())
    limit = 0.3 if e.facts.bits else 0.05
    if filled > limit and not (e.sensor.decibel and e.in_decibel):
        yield Finding(
            "warning", "pixels", f"zero in all bands in {filled:.0%} of the pixels", f"at most {limit:.0%}",
            "fill outside the scene's edge that counts as measured: hand in valid=(pixels != 0).any(0), or set it to NaN",
        )  # fmt: skip
    if e.pixels >= FEW:
        for name in (name for name, nothing in zip(e.names, none, strict=True) if nothing):
            yield Finding(
                "error", "pixels", f"zero in every pixel of band {name}", "measurements in every band",
                f"a band that the file lacks: leave {name} out and name the others in bands=[...]",
            )  # fmt: skip


def constant(e: Evidence) -> Iterator[Finding]:
    least, most = e.percentiles[0], e.percentiles[100]
    if e.pixels < FEW:
        return
    white = (most == 255) & bool(e.facts.bits)  # snow and sand saturate a camera
    if (least == most).all() and not white.any():
        numbers = ", ".join(dict.fromkeys(short(value) for value in least))
        yield Finding(
            "warning", "pixels", f"one number a band and no other: {numbers}", "more than one number",
            "a placeholder instead of an image",
        )  # fmt: skip
        return
    for band in np.flatnonzero((least == most) & (most != 0) & ~white):
        yield Finding(
            "warning", "pixels", f"{short(most[band])} in every pixel of band {e.names[band]}", "more than one number",
            "a fill or a saturated band: leave it out and name the others in bands=[...]",
        )  # fmt: skip


# ---- units ----


def optical(e: Evidence) -> Iterator[Finding]:
    """At most one finding: the units that the numbers seem to be in."""
    p, facts = e.percentiles, e.facts
    brightest = int(np.nanargmax(np.where(e.count > 0, e.mean, np.nan)))
    evidence, top = e.said(brightest), float(np.nanmax(p[99]))
    high, low = float(np.nanmax(p[100])), float(np.nanmin(p[0]))
    native = "the camera's 0 to 255" if facts.bits else e.sensor.description or "the sensor's native numbers"
    thousands = float(np.median(e.mean)) > 500
    hundreds = float(np.median(e.mean)) > 20

    def error(cause, level="error"):
        return Finding(level, "pixels", evidence, native, cause)

    if hundreds and not e.whole and low < -0.05 and high < 15 and low > -15 and np.nanmax(np.abs(p[50])) < 6:
        yield error("already normalised: hand in the native numbers, or build a Datacube of what is normalised")
    elif hundreds and not e.whole and -0.5 <= low and top <= 2 and high <= 20:
        yield error(f"looks like reflectance or a picture scaled to 0..1; {facts.mend}")
    elif thousands and e.dtype == np.uint8:
        yield error("looks like an 8-bit picture, made to be looked at: its stretch is lost, take the original file")
    elif facts.bits and top > 2**facts.bits and high > 1.2 * 2**facts.bits:
        yield error("16-bit numbers for an 8-bit camera: divide by 257 where 65535 is white, else take the 8-bit file")
    elif thousands and facts.floor > 0 and np.nanmin(p[50]) < facts.floor:
        evidence = e.said(int(np.nanargmin(p[50])))
        if high <= 255:
            yield error("looks like per cent or an 8-bit picture: native numbers are needed, see sensors.yaml")
        else:
            rest = facts.mend.removeprefix("native = ").replace("value", "value / 10000")
            yield error(f"looks like reflectance x 10000, as Landsat products before Collection 2 had: native = {rest}")
    elif thousands and not e.whole and 2 < top <= 130 and low >= -10 and high <= 255:
        yield error("looks like reflectance in per cent; multiply by 100", "warning")
    elif thousands and e.whole and 200 <= high <= 255 and low >= 0 and top > 100:
        yield error("looks like an 8-bit picture in a wider type: its stretch is lost, take the original", "warning")
    elif facts.one == 10_000 and np.nanmax(p[50]) > 25_000:
        evidence = e.said(int(np.nanargmax(p[50])))
        yield error("a reflectance above 2.5: numbers of another product, such as raw counts or a 16-bit stretch")
    elif facts.one == 10_000 and e.pixels >= FEW and np.nanmin(p[1]) > 6500 and max(_waves(e)) > 1.5:
        evidence = e.said(int(np.nanargmin(p[1])), 1)
        yield error("no dark pixel in any band: Landsat Collection 2 numbers? They start at 7273", "warning")
    elif facts.one is None and not facts.bits and hundreds is False and np.nanmax(np.abs(e.mean)) < 2 and top > 50:
        yield error("integers for a sensor whose statistics are reflectance 0..1; divide, usually by 10000")


def radar(e: Evidence) -> Iterator[Finding]:
    """Power and decibel told apart by their sign and size."""
    p = e.percentiles
    band = 0
    median, evidence = p[50], e.said(band)
    normalised = not e.whole and np.nanmax(np.abs(median)) < 3 and e.low > -15 and e.high < 15

    def finding(expected, cause, level="error"):
        return Finding(level, "pixels", evidence, expected, cause)

    if e.in_decibel:
        if np.nanmin(p[1]) >= 0 and np.nanmax(median) < 10 and e.pixels >= 16:
            yield finding("decibel, mostly negative", "linear power: leave in_decibel out, dB is taken here")
        elif np.nanmax(median) < -60:
            yield finding("decibel, -40 to 10", "dB taken twice, dB x 100, or a fill that was floored")
        elif np.nanmin(median) > 15:
            yield finding("decibel, -40 to 10", "uncalibrated counts or a picture: take calibrated gamma0")
        elif normalised and e.pixels >= FEW and np.nanmean(median) > -3 and np.nanmin(p[1]) > -6:
            yield finding("decibel, -40 to 10", "already normalised: hand in dB, or build a Datacube", "warning")
    elif np.nanmax(median) < 0:
        normal = normalised and np.nanmean(median) > -3 and np.nanmin(p[1]) > -6
        yield finding(
            "linear power, never negative",
            "already normalised: hand in the native numbers" if normal else "decibel already: say in_decibel=True",
        )
    elif np.nanmedian(median) > 10:
        yield finding("linear power, 0.001 to 2", "uncalibrated counts or amplitude: take calibrated gamma0")
    elif e.pixels >= FEW and np.nanmin(p[1]) > 0.9 and np.nanmax(p[99]) < 3:
        yield finding("linear power, 0.001 to 2", "dB undone twice: 10 ** (x / 10) was taken of power", "warning")
    else:
        below = float((e.sample <= POWER_FLOOR).sum() / max(e.count.sum(), 1))
        if below > 0.05:
            yield Finding(
                "warning", "pixels", f"{below:.0%} of the numbers at or below zero", "linear power above zero",
                "border or thermal noise was subtracted, or decibel mixed in: set them to NaN, or say in_decibel=True",
            )  # fmt: skip


def negative(e: Evidence) -> Iterator[Finding]:
    if e.sensor.decibel or e.mean.min() < 0:
        return
    below = float((e.sample < min(e.facts.zero - 200, 0)).sum() / max(e.count.sum(), 1))
    if below > (0.01 if e.facts.bits or e.facts.zero else 0.05):
        hard = bool(e.facts.bits or e.facts.zero or below > 0.5)
        cause = "signed numbers read from unsigned ones, or a nodata value"
        if e.sensor.name.startswith("sentinel-2"):
            cause = "the offset of 1000 subtracted twice, or from a scene before it: leave it out"
        yield Finding(
            "error" if hard else "warning", "pixels", f"{below:.0%} of the numbers far below zero, least {short(e.low)}",
            "reflectance, hardly ever negative", cause,
        )  # fmt: skip


# ---- bands ----


def _waves(e: Evidence) -> np.ndarray:
    return e.sensor.waves(e.names)


def repeated(e: Evidence) -> Iterator[Finding]:
    """Two bands with the same numbers in every pixel; a grey photograph has that too."""
    if e.pixels < FEW:
        return
    for i, j in combinations(range(len(e.names)), 2):
        same = e.percentiles[50][i] == e.percentiles[50][j] and e.percentiles[0][i] != e.percentiles[100][i]
        if same and np.array_equal(e.sample[i], e.sample[j], equal_nan=True):
            yield Finding(
                "warning" if e.facts.bits else "error", "bands",
                f"the same numbers in {e.names[i]} and {e.names[j]}, in every pixel", "a measurement of its own in each",
                "one file read for two bands" + (", or a grey photograph" if e.facts.bits else ""),
            )  # fmt: skip


def out_of_order(e: Evidence) -> Iterator[Finding]:
    facts, waves = e.facts, _waves(e)
    if e.pixels < FEW or not (facts.one or facts.bits):
        return
    numbers = e.sample[:, ~np.isnan(e.sample).any(0)]
    numbers = numbers[:, :: max(1, numbers.shape[1] // 1024)]
    if facts.one:
        reflectance = (numbers - facts.zero) / (facts.one - facts.zero)
    else:
        reflectance = 0.6 * np.clip(numbers / 255, 0, 1) ** CAMERA_GAMMA
    order = None
    if len(waves) > 3 and waves.max() > 0.74:
        order = better_order(reflectance, waves, top=facts.top, camera=bool(facts.bits))
    if order is not None:
        true = dict(zip(order, e.names, strict=True))
        yield Finding(
            "warning", "bands", f"spectra like no land, water, snow or cloud for {', '.join(e.names)}",
            "the bands in the order they are named in",
            f"another order: {', '.join(true[i] for i in range(len(true)))} fits; hand that in as bands=[...]",
        )  # fmt: skip
    elif {"red", "green", "blue"} <= set(e.names):
        if facts.top:
            reflectance = reflectance - 0.05 * (waves[:, None] / 0.48) ** -4
        picture = numbers if facts.bits else 255 * np.clip(reflectance / 0.6, 0, 1) ** (1 / CAMERA_GAMMA)
        if red_is_blue(*(picture[e.names.index(name)] for name in ("red", "green", "blue"))):
            yield Finding(
                "warning", "bands", "what is bright is bluish, and red varies less than blue", "soil, sand and roofs: "
                "warm, and red varying more", "red and blue are swapped (BGR)",
            )  # fmt: skip


def offset_kept(e: Evidence) -> Iterator[Finding]:
    """Sentinel-2's offset since baseline 04.00: the darkest pixels of all bands stand just above 1000.

    Bright scenes have no dark pixels either, but not in the same place in the visible and beyond 1.5 um: sand is bright
    there, snow and water are dark there, and haze is bright in the blue alone.
    """
    waves = _waves(e)
    far, blue = waves > 1.5, waves < 0.6
    if not e.sensor.name.startswith("sentinel-2") or e.pixels < 4 * FEW or not (far.any() and blue.any()):
        return
    dark = e.percentiles[1]
    if dark.min() >= 980 and dark[waves < 0.68].max() < 1450 and dark[far].min() < 1450:
        yield Finding(
            "warning",
            "pixels",
            f"no dark pixel: percentile 1 is {short(dark[blue][0])} in {e.names[int(blue.argmax())]} and "
            f"{short(dark[far].min())} in {e.names[int(np.where(far, dark, np.inf).argmin())]}",
            "shadow, water or leaves below 1000 in some band",
            "the offset of 1000 was not removed: subtract it. Baseline 04.00 and later adds it, in old dates that were "
            "processed again too; if haze or bright ground without a shadow fills the image, leave the numbers as they are",
        )


def far_off(e: Evidence) -> Iterator[Finding]:
    """The last resort, and all there is for a sensor of one's own. Snow may be 26 deviations bright, so not for all."""
    if e.facts.one:
        return
    std = e.sensor.statistics(e.names)[1]
    middle = e.percentiles[50]
    if e.sensor.decibel and not e.in_decibel:
        middle = 10 * np.log10(np.maximum(middle, POWER_FLOOR))
    away = np.abs(middle - e.mean) / std
    if np.nanmedian(away) > 12:
        band = int(np.nanargmax(away))
        yield Finding(
            "warning", "pixels", f"{e.said(band)}: {away[band]:.0f} standard deviations away",
            "numbers in the units of the sensor's statistics", "another unit, another product or another sensor",
        )  # fmt: skip


# ---- What is said beside an image: ground distance, place and date, each held against what can be ----


def _numbers(value) -> list:
    value = value.detach().cpu().tolist() if isinstance(value, Tensor) else value
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return list(value) if isinstance(value, (list, tuple)) else [value]


def of_distance(gsd, sensor: Sensor | None, unit: str = "metres") -> Iterator[Finding]:
    if gsd is None:
        return
    try:
        metres = [number("gsd", one) for one in _numbers(gsd)]
    except ContractError as error:
        yield told(error)
        return
    usual = f"{sensor.gsd:g} {unit} for {sensor.name}" if sensor else unit
    for one in {min(metres, default=1.0), max(metres, default=1.0)}:
        if one <= 0:
            yield Finding("error", "gsd", f"{one:g}", f"{unit}, > 0", "the negative pixel height of a transform")
        elif one < 0.01:
            yield Finding(
                "error", "gsd", f"{one:g}", usual,
                f"degrees: times 111320 it is {one * 111_320:.3g} m (less along a parallel)",
            )  # fmt: skip
        elif sensor and not 0.1 < one / sensor.gsd < 10:
            ratio = one / sensor.gsd
            yield Finding(
                "warning", "gsd", f"{one:g}, {max(ratio, 1 / ratio):.3g} times {'more' if ratio > 1 else 'less'}", usual,
                "kilometres, centimetres, the chip's side instead of a pixel's, or another sensor",
            )  # fmt: skip


def of_place(lat, lon, chips: int | None, sensor: Sensor) -> Iterator[Finding]:
    if lat is None and lon is None:
        return
    try:
        lats, lons = (per_chip(n, v, chips or len(_numbers(v))) for n, v in (("lat", lat), ("lon", lon)))
        latlon_code(lats, lons, len(lats))
        places = [(float(a), float(o)) for a, o in zip(lats, lons, strict=True) if a is not None]
    except ContractError as error:
        one = told(error)
        first = next((o for o in _numbers(lon) if isinstance(o, (int, float)) and abs(o) <= 90), None)
        if one.field == "lat" and "swapped" in one.cause and first is not None:
            one = Finding("error", "lat", f"{one.found} with lon {first}", one.expected, "lat and lon are swapped")
        yield one
        return
    except Exception as error:
        yield failed("lat", lat, "degrees", error)
        return
    if (0.0, 0.0) in places:
        yield Finding(
            "warning", "lat", "latitude 0, longitude 0", "a place, or None where it is unknown",
            "a missing place that was stored as zeros",
        )  # fmt: skip
    lands = FACTS.get(sensor.name, Facts()).lands

    def inside(lat, lon):
        return any(w <= lon <= e and s <= lat <= n for w, s, e, n in lands)

    swapped = next(((a, o) for a, o in places if not inside(a, o) and inside(o, a)), None)
    polar = next(((a, o) for a, o in places if abs(a) > 84 and abs(o) <= 84), None)
    if swapped or polar:
        lat, lon = swapped or polar
        where = f"where {sensor.name} is flown; {lon:g}, {lat:g} is" if swapped else "within 84 degrees of the equator"
        yield Finding(
            "warning", "lat", f"latitude {lat:g}, longitude {lon:g}", f"a place {where}", "lat and lon are swapped"
        )


def degrees(lat, lon, other_lat, other_lon) -> float:
    """The greater of the two differences, across the date line."""
    return max(abs(lat - other_lat), abs((lon - other_lon + 180) % 360 - 180))


def of_date(when, chips: int | None, sensor: Sensor) -> Iterator[Finding]:
    if when is None:
        return
    try:
        days = [parse_when(w) for w in per_chip("when", when, chips or len(_numbers(when)))]
        days = sorted({d.date() for d in days if d is not None})
    except ContractError as error:
        yield told(error)
        return
    except Exception as error:
        yield failed("when", when, "ISO 8601, for example 2023-06-10T10:30", error)
        return
    since = FACTS.get(sensor.name, Facts()).since
    if days and since and days[0] < date.fromisoformat(since):
        yield Finding(
            "error", "when", f"{days[0]}", f"{since} or later, when the images of {sensor.name} begin",
            "day, month and year in another order, a placeholder such as 1970-01-01, or another sensor",
        )  # fmt: skip
    if days and days[-1] > (datetime.now() + timedelta(days=1)).date():
        yield Finding(
            "warning", "when", f"{days[-1]}", "a day in the past",
            "day, month and year in another order, or this computer's clock",
        )  # fmt: skip


# ---- What is wrong with a batch that is normalised already: wavelengths, numbers, codes of place and time ----


def inspect_datacube(cube: Datacube | Mapping, sensor: str | Sensor | None = None) -> list[Finding]:
    """What is wrong with a batch that is normalised already: a Datacube, or the mapping that other Clay code makes."""
    if isinstance(cube, Mapping):
        cube = SimpleNamespace(**{str(k): v for k, v in cube.items()})
    try:
        sensor = None if sensor is None else SENSORS.resolve(sensor)
        pixels, time, latlon, waves = (
            torch.as_tensor(getattr(cube, name)).detach().cpu().double()
            for name in ("pixels", "time", "latlon", "waves")
        )
        Datacube(pixels, time, latlon, 1.0, torch.full((pixels.shape[1],) if pixels.ndim == 4 else (1,), 0.5))
        if waves.shape != (pixels.shape[1],):
            raise ContractError("waves", tuple(waves.shape), f"[{pixels.shape[1]}]", "bands dropped on one side")
    except ContractError as error:
        return [told(error)]
    except Exception as error:
        return [failed("cube", cube, "pixels [B, C, H, W], time and latlon [B, 4], gsd, waves [C]", error)]
    found = [*_of_waves(waves.tolist(), sensor), *of_distance(getattr(cube, "gsd", None), sensor)]
    found += [*_of_normalised(pixels, waves, sensor), *_of_codes(time.numpy(), latlon.numpy())]
    return sorted(found, key=lambda f: f.level)


def _of_waves(waves: list[float], sensor: Sensor | None) -> Iterator[Finding]:
    for wave in waves:
        try:
            check_wavelength("waves", wave)
        except ContractError as error:
            yield told(error)
            return
    own = sensor.waves().tolist() if sensor else []
    if sensor and len(waves) == len(own) and not np.allclose(waves, own, rtol=0.05):
        order = np.allclose(sorted(waves), sorted(own), rtol=0.05)
        yield Finding(
            "warning", "waves", ", ".join(f"{w:g}" for w in waves), f"{', '.join(f'{w:g}' for w in own)} um",
            "another order than the sensor's: right only if the pixels follow it" if order else "another sensor's",
        )  # fmt: skip


def _of_normalised(pixels: Tensor, waves: Tensor, sensor: Sensor | None) -> Iterator[Finding]:
    """pixels [B, C, H, W]."""
    B, C, H, W = pixels.shape
    expected = "mean near 0 and spread near 1: (native - mean) / std"
    broken = ~pixels.isfinite()
    if broken.any():
        yield Finding(
            "error", "pixels", f"NaN or infinite in {float(broken.double().mean()):.1%} of the numbers", "finite numbers",
            "missing pixels: set them to 0, the band's mean",
        )  # fmt: skip
        pixels = pixels.nan_to_num(0, 0, 0)
    mean, spread = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    zero = (pixels == 0).all(0).all(-1).all(-1)
    numbers = f"mean {float(mean[mean.abs().argmax()]):.3g} and spread {float(spread.max()):.3g} in a band"
    if zero.all() and B * H * W >= FEW:
        yield Finding("error", "pixels", "zero in every pixel of every band", expected, "a batch that was never filled")
    elif mean.abs().max() > 30 or spread.max() > 30:
        yield Finding("error", "pixels", numbers, expected, "native numbers that were not normalised")
    elif mean.abs().median() > 10:
        yield Finding("warning", "pixels", numbers, expected, "statistics of another sensor")
    elif B * H * W >= FEW and spread.max() < 2e-3 and mean.abs().max() > 0.05:
        yield Finding(
            "error",
            "pixels",
            numbers,
            expected,
            "reflectance 0..1 normalised with the statistics of x 10000: 1 is tiny",
        )
    elif B * H * W >= FEW and C > 1 and pixels.min() >= 0 and pixels.max() <= 1 and mean.max() < 0.9:
        yield Finding(
            "warning", "pixels", f"all numbers from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}", expected,
            "reflectance or a picture scaled to 0..1 instead of normalised",
        )  # fmt: skip
    if zero.any() and not zero.all() and B * H * W >= FEW:
        band = int(zero.nonzero()[0])
        name = f"{band} ({float(waves[band]):g} um)"
        yield Finding(
            "warning", "pixels", f"zero in every pixel of band {name}", "measurements in every band",
            "a band that is missing: leave it out of pixels and waves",
        )  # fmt: skip


def _of_codes(time: np.ndarray, latlon: np.ndarray) -> Iterator[Finding]:
    """Sines and cosines [B, 4] of week and hour, latitude and longitude; zeros: unknown."""
    for name, code in (("time", time), ("latlon", latlon)):
        known = code[(code != 0).any(1)]
        length = np.hypot(known[:, ::2], known[:, 1::2])
        if not np.allclose(length, 1, atol=0.02):
            worst = known[np.abs(length - 1).max(1).argmax()]
            yield Finding(
                "error", name, np.array2string(worst, precision=3), "sine and cosine pairs of length 1, or four zeros",
                "raw numbers instead of their codes: see time_code and latlon_code",
            )  # fmt: skip
            continue
        turns = np.arctan2(known[:, ::2], known[:, 1::2]) / (2 * np.pi)
        if name == "latlon" and (known[:, 1] < -0.01).any():
            both = (known[:, 3] < -0.01).any()
            yield Finding(
                "error" if both else "warning", name, f"cos(lat) = {known[:, 1].min():.3g}", "latitudes within 90 degrees",
                "sines and cosines in another order" if both else "lon before lat: swapped, unless reading='as_trained'",
            )  # fmt: skip
        if name == "time":
            whole = {n: np.abs(turns * n - np.rint(turns * n)) < 0.02 for n in (52, 24)}
            if len(turns) and not whole[52][:, 0].all() and whole[24][:, 0].all() and whole[52][:, 1].all():
                yield Finding(
                    "warning", name, "an hour in the place of the week", "sin week, cos week, sin hour, cos hour",
                    "the two codes are swapped",
                )  # fmt: skip


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
