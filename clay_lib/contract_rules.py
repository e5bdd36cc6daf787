"""What the numbers of an image give away: a rule a function, each reads the same evidence and yields its findings.

An error is what cannot be right, a warning what is unlikely. The registry's mean and std say what a band's numbers look
like; FACTS adds what no statistic tells: which number stands for zero reflectance, and since when there are images.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from clay_lib.contract_evidence import Evidence, Finding, short
from clay_lib.contract_order import CAMERA_GAMMA, better_order, red_is_blue
from clay_lib.sensors import POWER_FLOOR

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
    native = "the camera's 0 to 255" if facts.bits else e.sensor.what or "the sensor's native numbers"
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
