"""Image check: do pixels, bands, place and date fit the sensor? Done before the model sees an image.

    >>> check_image(pixels, "sentinel-2-l2a", when="2023-06-10", lat=-3.4, lon=34.1)
    ContractError: pixels: found median of band nir08 is 0.28, the sensor's mean is 2785; expected Sentinel-2 L2A,
    surface reflectance x 10000. Likely cause: looks like reflectance or an image scaled to 0..1; multiply by 10000

Errors are what cannot be right, warnings what is unlikely. The rules for numbers and band order are in check_rules.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from clay_lib.data import check_rules as rules
from clay_lib.data.bands import FACTS, Facts
from clay_lib.data.check_rules import FEW, Finding, ImageSample, error, short, warning
from clay_lib.data.images import as_batch
from clay_lib.datacube import Datacube, as_numpy, as_valid, latlon_code, parse_when, per_chip
from clay_lib.errors import ContractError, number, warn
from clay_lib.sensors import METERS_PER_DEGREE, SENSORS, Sensor, check_wavelength

SAMPLE = 4096  # pixels in the sample, of all chips together
PER_CHIP = 16  # at least


class ContractWarning(UserWarning):
    """An image that is unlikely to be what its caller says it is."""


def check_image(pixels, sensor: str | Sensor, **metadata) -> list[Finding]:
    """`inspect_image`, raised and warned: ContractError for the first error, one ContractWarning a warning."""
    findings = inspect_image(pixels, sensor, **metadata)
    for finding in findings:
        if finding.level == "warning":
            warn(str(finding), ContractWarning)
    errors = [f for f in findings if f.level == "error"]
    if errors:
        first, *rest = errors
        more = "".join(f"; also {f.field}: {f.found}" for f in rest)
        raise ContractError(first.field, first.found, first.expected, first.cause + more)
    return findings


def inspect_image(
    pixels,
    sensor: str | Sensor,
    *,
    bands: Sequence[str] | None = None,
    gsd=None,
    lat=None,
    lon=None,
    when=None,
    in_decibel: bool = False,
    valid=None,
) -> list[Finding]:
    """What is wrong with an image and its metadata, errors first; nothing is raised.

    pixels: native numbers [C, H, W] or [B, C, H, W], NaN where missing; valid: bool [H, W] or [B, H, W], False where
    missing. gsd: meters; lat, lon: degrees; when: one for all or one a chip, as in `make_datacube`.
    """
    try:
        sensor = SENSORS.resolve(sensor)
        names = tuple(sensor.band_names[i] for i in sensor.indices(bands))
    except Exception as problem:
        return [_caught("bands", bands, "names of bands", problem)]
    try:
        array = as_batch(as_numpy(pixels), sensor, names)
        valid = None if valid is None else as_valid(valid, array.shape)
    except Exception as problem:
        chips, findings = None, [_caught("pixels", pixels, "numbers", problem)]
    else:
        chips, findings = len(array), _inspect_pixels(array, names, sensor, in_decibel, valid)
    findings += [*_distance(gsd, sensor), *_place(lat, lon, chips, sensor), *_date(when, chips, sensor)]
    return sorted(findings, key=lambda f: f.level)


def inspect_scene(scene, *, lat: float | None = None, lon: float | None = None, when=None) -> list[Finding]:
    """The same for a Scene of `read_scene`; a lat and lon given with it are compared to those of its CRS."""
    findings = inspect_image(
        scene.pixels,
        scene.sensor,
        bands=scene.bands,
        gsd=scene.gsd,
        lat=scene.lat if lat is None else lat,
        lon=scene.lon if lon is None else lon,
        when=scene.when if when is None else when,
        in_decibel=scene.in_decibel,
        valid=scene.valid,
    )
    if None in (lat, lon, scene.lat, scene.lon) or any(f.field in ("lat", "lon") for f in findings):
        return findings

    def degrees(lat, lon):  # the greater of the two differences, across the antimeridian
        return max(abs(lat - scene.lat), abs((lon - scene.lon + 180) % 360 - 180))

    if degrees(lat, lon) > 1:
        found = f"{lat:.4f}, {lon:.4f}, {degrees(lat, lon):.0f} degrees from the scene"
        expected = f"near {scene.lat:.4f}, {scene.lon:.4f}, which its CRS gives"
        if degrees(lon, lat) < 1:
            return [error("lat", found, expected, "lat and lon are swapped"), *findings]
        findings.append(warning("lat", found, expected, "another scene's place"))
    return findings


def check(
    path: str,
    *,
    sensor: str,
    bands: str = "",
    when: str = "",
    lat: float | None = None,
    lon: float | None = None,
    in_decibel: bool | None = None,
    scale: float | None = None,
    offset: float | None = None,
) -> int:
    """Check a scene against its sensor: units, bands, missing pixels, place and date.

    Example: clay check scene.tif --sensor sentinel-2-l2a --when 2023-06-10

    Args:
        path: a GeoTIFF or another raster, or a folder of single-band files
        sensor: the sensor of the scene, such as sentinel-2-l2a
        bands: its bands in file order, separated by commas, - for one to leave out: blue,green,red,-,nir
        when: date of the image, such as 2023-06-10T10:30
        lat: degrees, to be compared to the file's own place
        lon: degrees
        in_decibel: radar in dB; by default decided by the sign of the numbers
        scale: native = value * scale + offset, for files in other units; by default what the header says
        offset: see scale
    """
    from clay_lib.data.rasters import read_scene

    if (lat is None) != (lon is None):
        raise ContractError("lat, lon", (lat, lon), "both, or neither", "one of the two is missing")
    names = [None if name.strip() in ("-", "") else name.strip() for name in bands.split(",")] if bands else None
    source, units = Path(path).expanduser(), dict(in_decibel=in_decibel, scale=scale, offset=offset)
    scene = read_scene(source, sensor, bands=names, when=when or None, **units)
    findings = inspect_scene(scene, lat=lat, lon=lon)
    shape = " x ".join(map(str, scene.pixels.shape))
    place = "no place" if scene.lat is None else f"{scene.lat:.4f}, {scene.lon:.4f}"
    print(f"{source.name}: {shape}, {', '.join(scene.bands)}, {scene.gsd:g} m, {place}")
    for f in findings:
        print(f"\n{f.level}: {f.field}\n  found     {f.found}\n  expected  {f.expected}\n  cause     {f.cause}")
    errors = sum(f.level == "error" for f in findings)
    print(f"\n{errors} errors, {len(findings) - errors} warnings" if findings else "as expected")
    return 2 if errors else 0


def _caught(field: str, value, expected: str, problem: Exception) -> Finding:
    """The finding of an exception; other ones than ContractError come from objects of a wrong type."""
    if isinstance(problem, ContractError):
        return error(problem.field, str(problem.found), str(problem.expected), problem.cause)
    return error(field, f"{type(value).__name__}: {problem}"[:200], expected, "another type of object")


# ---- pixels ----


def _inspect_pixels(array: np.ndarray, names, sensor: Sensor, in_decibel: bool, valid) -> list[Finding]:
    """A regular sample carries the statistics; the extremes are of all numbers. array, valid [B, C, H, W]."""
    B, C, H, W = array.shape
    step = max(1, min(H * W * B // SAMPLE, H * W // PER_CHIP))
    while step > 1 and math.gcd(step, W) > 1:  # else the sample would be a few columns
        step += 1
    sample = array.reshape(B, C, H * W)[..., ::step].astype(np.float64)  # [B, C, n]
    if valid is not None:
        sample[~valid.reshape(B, C, H * W)[..., ::step]] = np.nan
    every = array if valid is None else array[valid]
    missing = np.isnan(sample)
    findings = [*_missing(missing, array, valid, names)]
    if missing.all():
        return findings
    low, high = (float(least.reduce(every, axis=None)) for least in (np.fmin, np.fmax))
    pooled = sample.transpose(1, 0, 2).reshape(C, -1)
    image = ImageSample(sensor, tuple(names), pooled, array.dtype, low, high, bool(in_decibel))
    return findings + ([*_mixed_units(sample, image)] or _inspect_numbers(image))


def _inspect_numbers(s: ImageSample) -> list[Finding]:
    """All findings about the numbers; a finding about units silences those that would only follow from it."""
    findings = []
    if not -900 < s.low <= s.high < 32767:  # where codes and infinities lie
        findings = [*rules.infinite(s), *rules.nodata_codes(s)]
        s = s.without(np.isin(s.values, rules.CODES) | np.isinf(s.values))
    findings += rules.zeros(s)
    least, most = s.percentiles[0], s.percentiles[100]
    if not ((s.count > 0) & ((least != most) | (most != 0))).any():
        return findings
    filled = (s.values == 0).all(0)
    s = s.without(filled) if filled.any() and not s.facts.bits else s
    units = [*(rules.radar_units(s) if s.sensor.decibel else rules.optical_units(s))]
    rest = [rules.alpha_band, rules.constant, rules.negative, rules.repeated]
    rest += [rules.offset_kept, rules.out_of_order, rules.far_from_mean]
    return findings + (units or [finding for rule in rest for finding in rule(s)])


def _missing(missing: np.ndarray, array: np.ndarray, valid, names) -> Iterator[Finding]:
    """missing: [B, C, n] of the sample."""
    shares = missing.any(1).mean(1)  # a pixel is missing where any band is
    empty = []
    for chip in np.flatnonzero(shares == 1):  # the sample may have skipped the few measured pixels
        holes = np.isnan(array[chip]).any(0)
        if valid is not None:
            holes |= ~valid[chip].all(0)
        if holes.all():
            empty.append(int(chip))
    chips = empty or [*np.flatnonzero(shares > 0.5)]
    where = f" in {len(chips)} of {len(shares)} chips, the first is number {chips[0]}" if chips else ""
    where = where if len(shares) > 1 else ""
    lost = np.isnan(array[empty[0]]).all((1, 2)) if empty else np.zeros(len(names), bool)  # [C]
    if lost.any() and not lost.all():
        found = f"not one measured pixel of band {', '.join(np.array(names)[lost])}{where}"
        cause = "a band that the file lacks: leave it out and name the others in bands=[...]"
        yield error("pixels", found, "measurements in every band", cause)
    elif empty:
        cause = "an area outside the scene, a band that is missing everywhere, or an inverted mask"
        yield error("pixels", f"not one valid pixel{where}", "at least one", cause)
    elif chips:
        cause = "the scene's edge, clouds, or an inverted mask"
        found = f"{shares.max():.0%} of the pixels missing{where}"
        yield warning("pixels", found, "at least half of the pixels measured", cause)


def _mixed_units(sample: np.ndarray, image: ImageSample) -> Iterator[Finding]:
    """Chips of one batch in different units: the pooled numbers would hide them. sample [B, C, n]."""
    if len(sample) < 2 or image.sensor.decibel or image.mean.min() < 20:
        return
    tops = np.nanmax(np.where(np.isnan(sample), -np.inf, sample), axis=(1, 2))
    low = np.flatnonzero((tops <= 2) & (tops > 0) & (sample % 1 > 0).any((1, 2)))
    if len(low) and tops.max() > 20:
        dark = f"nothing above {short(tops[low].max())} in {len(low)} of {len(sample)} chips"
        found = f"{dark}, the first is number {low[0]}; up to {short(tops.max())} in the others"
        cause = f"some chips in reflectance or scaled to 0..1: {image.facts.fix}"
        yield error("pixels", found, "one unit in all chips", cause)


# ---- ground distance, place and date ----


def _list(value) -> list:
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _distance(gsd, sensor: Sensor | None) -> Iterator[Finding]:
    if gsd is None:
        return
    try:
        meters = [number("gsd", one) for one in _list(gsd)]
    except ContractError as problem:
        yield _caught("gsd", gsd, "", problem)
        return
    usual = f"{sensor.gsd:g} meters for {sensor.name}" if sensor else "meters"
    for value in {min(meters, default=1.0), max(meters, default=1.0)}:
        ratio = value / sensor.gsd if sensor else 1
        if value <= 0:
            yield error("gsd", f"{value:g}", "meters, > 0", "the negative pixel height of a transform")
        elif value < 0.01:
            factor = f"times {METERS_PER_DEGREE:.0f} it is {value * METERS_PER_DEGREE:.3g} m"
            yield error("gsd", f"{value:g}", usual, f"degrees: {factor} (less along a parallel)")
        elif not 0.1 < ratio < 10:
            found = f"{value:g}, {max(ratio, 1 / ratio):.3g} times {'more' if ratio > 1 else 'less'}"
            cause = "kilometers, centimeters, the chip's side instead of a pixel's, or another sensor"
            yield warning("gsd", found, usual, cause)


def _place(lat, lon, chips: int | None, sensor: Sensor) -> Iterator[Finding]:
    if lat is None and lon is None:
        return
    swapped = "lat and lon are swapped"
    try:
        lats, lons = (per_chip(n, v, chips or len(_list(v))) for n, v in (("lat", lat), ("lon", lon)))
        latlon_code(lats, lons, len(lats))
        places = [(float(a), float(o)) for a, o in zip(lats, lons, strict=True) if a is not None]
    except Exception as problem:
        finding = _caught("lat", lat, "degrees", problem)
        valid = next((o for o in _list(lon) if isinstance(o, (int, float)) and abs(o) <= 90), None)
        if finding.field == "lat" and "swapped" in finding.cause and valid is not None:
            finding = error("lat", f"{finding.found} with lon {valid}", finding.expected, swapped)
        yield finding
        return
    if (0.0, 0.0) in places:
        cause = "a missing place that was stored as zeros"
        yield warning("lat", "latitude 0, longitude 0", "a place, or None where it is unknown", cause)
    lands = FACTS.get(sensor.name, Facts()).lands

    def inside(lat, lon):
        return any(w <= lon <= e and s <= lat <= n for w, s, e, n in lands)

    outside = next(((a, o) for a, o in places if not inside(a, o) and inside(o, a)), None)
    polar = next(((a, o) for a, o in places if abs(a) > 84 and abs(o) <= 84), None)
    if outside or polar:
        lat, lon = outside or polar
        where = f"where {sensor.name} is flown; {lon:g}, {lat:g} is" if outside else "within 84 degrees of the equator"
        yield warning("lat", f"latitude {lat:g}, longitude {lon:g}", f"a place {where}", swapped)


def _date(when, chips: int | None, sensor: Sensor) -> Iterator[Finding]:
    if when is None:
        return
    try:
        dates = [parse_when(w) for w in per_chip("when", when, chips or len(_list(when)))]
        days = sorted({d.date() for d in dates if d is not None})
    except Exception as problem:
        yield _caught("when", when, "ISO 8601, for example 2023-06-10T10:30", problem)
        return
    since, order = FACTS.get(sensor.name, Facts()).since, "day, month and year in another order"
    if days and since and days[0] < date.fromisoformat(since):
        expected = f"{since} or later, when the images of {sensor.name} begin"
        yield error("when", f"{days[0]}", expected, f"{order}, a placeholder such as 1970-01-01, or another sensor")
    if days and days[-1] > (datetime.now() + timedelta(days=1)).date():
        yield warning("when", f"{days[-1]}", "a day in the past", f"{order}, or this computer's clock")


# ---- normalized batches ----


def inspect_datacube(cube: Datacube | Mapping, sensor: str | Sensor | None = None) -> list[Finding]:
    """What is wrong with a normalized batch: a Datacube, or the mapping that other Clay code builds."""
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
    except Exception as problem:
        return [_caught("cube", cube, "pixels [B, C, H, W], time and latlon [B, 4], gsd, waves [C]", problem)]
    findings = [*_waves(waves.tolist(), sensor), *_distance(getattr(cube, "gsd", None), sensor)]
    findings += [*_normalized(pixels, waves), *_codes(time.numpy(), latlon.numpy())]
    return sorted(findings, key=lambda f: f.level)


def _waves(waves: list[float], sensor: Sensor | None) -> Iterator[Finding]:
    for wave in waves:
        try:
            check_wavelength("waves", wave)
        except ContractError as problem:
            yield _caught("waves", waves, "", problem)
            return
    usual = sensor.waves().tolist() if sensor else []
    if sensor and len(waves) == len(usual) and not np.allclose(waves, usual, rtol=0.05):
        reordered = np.allclose(sorted(waves), sorted(usual), rtol=0.05)
        cause = "another order than the sensor's: right only if the pixels follow it" if reordered else "another sensor"
        found, expected = (", ".join(f"{w:g}" for w in row) for row in (waves, usual))
        yield warning("waves", found, f"{expected} um", cause)


def _normalized(pixels: Tensor, waves: Tensor) -> Iterator[Finding]:
    """pixels [B, C, H, W]."""
    B, C, H, W = pixels.shape
    expected = "mean near 0 and spread near 1: (native - mean) / std"
    broken = ~pixels.isfinite()
    if broken.any():
        found = f"NaN or infinite in {float(broken.double().mean()):.1%} of the numbers"
        yield error("pixels", found, "finite numbers", "missing pixels: set them to 0, the band's mean")
        pixels = pixels.nan_to_num(0, 0, 0)
    mean, spread = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    zero, enough = (pixels == 0).all(0).all(-1).all(-1), B * H * W >= FEW
    found = f"mean {float(mean[mean.abs().argmax()]):.3g} and spread {float(spread.max()):.3g} in a band"
    low, high = float(pixels.min()), float(pixels.max())
    if zero.all() and enough:
        yield error("pixels", "zero in every pixel of every band", expected, "a batch that was never filled")
    elif mean.abs().max() > 30 or spread.max() > 30:
        yield error("pixels", found, expected, "native numbers that were not normalized")
    elif mean.abs().median() > 10:
        yield warning("pixels", found, expected, "statistics of another sensor")
    elif enough and spread.max() < 2e-3 and mean.abs().max() > 0.05:
        cause = "reflectance 0..1 normalized with the statistics of x 10000: 1 is tiny"
        yield error("pixels", found, expected, cause)
    elif enough and C > 1 and low >= 0 and high <= 1 and mean.max() < 0.9:
        cause = "reflectance or an image scaled to 0..1 instead of normalized"
        yield warning("pixels", f"all numbers from {low:.3g} to {high:.3g}", expected, cause)
    if zero.any() and not zero.all() and enough:
        band = int(zero.nonzero()[0])
        found = f"zero in every pixel of band {band} ({float(waves[band]):g} um)"
        cause = "a band that is missing: leave it out of pixels and waves"
        yield warning("pixels", found, "measurements in every band", cause)


def _codes(time: np.ndarray, latlon: np.ndarray) -> Iterator[Finding]:
    """Sines and cosines [B, 4] of week and hour, latitude and longitude; zeros: unknown."""
    for name, code in (("time", time), ("latlon", latlon)):
        known = code[(code != 0).any(1)]
        length = np.hypot(known[:, ::2], known[:, 1::2])
        if not np.allclose(length, 1, atol=0.02):
            worst = np.array2string(known[np.abs(length - 1).max(1).argmax()], precision=3)
            cause = "raw numbers instead of their codes: see time_code and latlon_code"
            yield error(name, worst, "sine and cosine pairs of length 1, or four zeros", cause)
            continue
        turns = np.arctan2(known[:, ::2], known[:, 1::2]) / (2 * np.pi)
        if name == "latlon" and (known[:, 1] < -0.01).any():
            found, expected = f"cos(lat) = {known[:, 1].min():.3g}", "latitudes within 90 degrees"
            if (known[:, 3] < -0.01).any():
                yield error(name, found, expected, "sines and cosines in another order")
            else:
                yield warning(name, found, expected, "lon before lat: swapped, unless reading='as_trained'")
        if name == "time":
            exact = {n: np.abs(turns * n - np.rint(turns * n)) < 0.02 for n in (52, 24)}
            if len(turns) and not exact[52][:, 0].all() and exact[24][:, 0].all() and exact[52][:, 1].all():
                expected, cause = "sin week, cos week, sin hour, cos hour", "the two codes are swapped"
                yield warning(name, "an hour in the place of the week", expected, cause)
