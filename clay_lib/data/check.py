"""The contract check: is this image what its caller says it is? Asked before anything runs, answered in plain words.

    >>> check_image(pixels, "sentinel-2-l2a", when="2023-06-10", lat=-3.4, lon=34.1)
    ContractError: pixels: found median of band nir08 is 0.28, the registry's mean is 2785; expected Sentinel-2 L2A,
    surface reflectance x 10000. Likely cause: looks like reflectance or a picture scaled to 0..1; multiply by 10000

Errors are what cannot be right, warnings what is unlikely. Rules: contract_rules.py (numbers), contract_order.py
(bands), contract_said.py (distance, place, date), contract_cube.py (ready batches).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clay_lib.data.check_rules import (
    Evidence,
    Finding,
    degrees,
    failed,
    inspect_datacube,
    of_date,
    of_distance,
    of_images,
    of_place,
    short,
    told,
)
from clay_lib.datacube import as_numpy
from clay_lib.errors import ContractError, warn
from clay_lib.sensors import SENSORS, Sensor

# ---- The contract check: is this image what its caller says it is? Asked before anything runs, answered i ----

SAMPLE = 4096  # pixels looked at, of all chips together
PER_CHIP = 16  # at least

__all__ = ["ContractWarning", "Finding", "check_image", "inspect_image", "inspect_datacube", "inspect_scene"]


class ContractWarning(UserWarning):
    """An image that is unlikely to be what it is said to be."""


def check_image(pixels, sensor: str | Sensor, **said) -> list[Finding]:
    """`inspect_image`, raised and warned: ContractError for the first error, one ContractWarning a warning."""
    findings = inspect_image(pixels, sensor, **said)
    errors = [f for f in findings if f.level == "error"]
    for finding in findings:
        if finding.level == "warning":
            warn(str(finding), ContractWarning)
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
    """What is wrong with an image and with what is said of it, errors first; nothing is raised.

    pixels: native numbers [C, H, W] or [B, C, H, W], NaN where missing; valid: bool [H, W] or [B, H, W], False where
    missing. gsd: metres; lat, lon: degrees; when: one for all or one a chip, as in `make_datacube`.
    """
    try:
        sensor = SENSORS.resolve(sensor)
        names = tuple(sensor.band_names[i] for i in sensor.indices(bands))
    except ContractError as error:
        return [told(error)]
    except Exception as error:  # whatever stands where names belong
        return [failed("bands", bands, "names of bands", error)]
    try:
        array = _array(pixels, names, sensor)
        chips, found = len(array), _of_pixels(array, names, sensor, in_decibel, valid)
    except ContractError as error:
        chips, found = None, [told(error)]
    found += [*of_distance(gsd, sensor), *of_place(lat, lon, chips, sensor), *of_date(when, chips, sensor)]
    return sorted(found, key=lambda f: f.level)


def inspect_scene(scene, *, lat: float | None = None, lon: float | None = None, when=None) -> list[Finding]:
    """The same of what `read_scene` returns; a lat and lon that are told beside it are held against its CRS."""
    place = dict(lat=scene.lat if lat is None else lat, lon=scene.lon if lon is None else lon)
    found = inspect_image(
        scene.pixels,
        scene.sensor,
        bands=scene.bands,
        gsd=scene.gsd,
        when=scene.when if when is None else when,
        in_decibel=scene.in_decibel,
        valid=scene.valid,
        **place,
    )
    if None in (lat, lon, scene.lat, scene.lon) or any(f.field in ("lat", "lon") for f in found):
        return found
    off, swapped = degrees(lat, lon, scene.lat, scene.lon), degrees(lon, lat, scene.lat, scene.lon)
    if off > 1:
        slip = swapped < 1
        found.insert(0 if slip else len(found), Finding(
            "error" if slip else "warning", "lat", f"{lat:.4f}, {lon:.4f}, {off:.0f} degrees from the scene",
            f"near {scene.lat:.4f}, {scene.lon:.4f}, which its CRS gives",
            "lat and lon are swapped" if slip else "another scene's place",
        ))  # fmt: skip
    return found


def check(
    path: str,
    *,
    sensor: str,
    bands: str = "",
    when: str = "",
    lat: float | None = None,
    lon: float | None = None,
    in_decibel: bool | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
) -> int:
    """Tell whether a scene holds what the sensor's files hold: units, bands, missing pixels, place and date.

    Example: clay check scene.tif --sensor sentinel-2-l2a --when 2023-06-10

    Args:
        path: a GeoTIFF or another raster, or a folder of single-band files
        sensor: the sensor that took it, such as sentinel-2-l2a
        bands: its bands in file order, separated by commas, - for one to leave out: blue,green,red,-,nir
        when: date of the image, such as 2023-06-10T10:30
        lat: degrees, to be held against the file's own place
        lon: degrees
        in_decibel: radar in dB; by default the sign of the numbers tells
        scale: native = value * scale + offset, for files in other units
        offset: see scale
    """
    from clay_lib.data.rasters import read_scene

    if (lat is None) != (lon is None):
        raise ContractError("lat, lon", (lat, lon), "both, or neither", "half a place")
    named = [None if name.strip() in ("-", "") else name.strip() for name in bands.split(",")] if bands else None
    source = Path(path).expanduser()
    scene = read_scene(
        source, sensor, bands=named, when=when or None, in_decibel=in_decibel, scale=scale, offset=offset
    )
    found = inspect_scene(scene, lat=lat, lon=lon)
    shape = " x ".join(map(str, scene.pixels.shape))
    place = "no place" if scene.lat is None else f"{scene.lat:.4f}, {scene.lon:.4f}"
    print(f"{source.name}: {shape}, {', '.join(scene.bands)}, {scene.gsd:g} m, {place}")
    for finding in found:
        print(
            f"\n{finding.level}: {finding.field}\n  found     {finding.found}\n  expected  {finding.expected}\n  cause     {finding.cause}"
        )
    errors = sum(f.level == "error" for f in found)
    print(f"\n{errors} errors, {len(found) - errors} warnings" if found else "as expected")
    return 2 if errors else 0


# ---- arrays ----


def _array(pixels, names: tuple[str, ...], sensor: Sensor) -> np.ndarray:
    """[B, C, H, W], or a ContractError about its shape."""
    try:
        array = as_numpy(pixels)
    except Exception as error:
        array = np.array(f"{type(pixels).__name__} ({error})"[:120])
    if array.dtype.kind not in "iufb":
        raise ContractError("pixels", f"dtype {array.dtype}", "numbers", "text, complex numbers or objects")
    shape, C = array.shape, len(names)
    wanted = f"[C, H, W] or [B, C, H, W] with C = {C} bands {list(names)} of {sensor.name}"
    if array.ndim not in (3, 4) or 0 in shape or shape[-3] != C:
        cause = "bands left out of the array, or without bands=[...]"
        if array.ndim == 2:
            cause = "a single band without its axis: pixels[None]"
        elif array.ndim in (3, 4) and shape[-1] == C:
            cause = "bands last instead of first: numpy.moveaxis(pixels, -1, -3)"
        elif array.ndim == 4 and shape[0] == C:
            cause = "bands before chips: numpy.swapaxes(pixels, 0, 1)"
        elif array.ndim not in (3, 4) or 0 in shape:
            cause = "an empty or flat array"
        raise ContractError("pixels", f"shape {shape}", wanted, cause)
    return array.reshape(-1, *shape[-3:])


def _mask(valid, shape: tuple[int, ...]) -> np.ndarray | None:
    """[B, H, W] or [1, H, W] bool."""
    if valid is None:
        return None
    mask = as_numpy(valid)
    B, _, H, W = shape
    if mask.dtype.kind not in "iufb" or mask.shape not in ((H, W), (1, H, W), (B, H, W)):
        raise ContractError(
            "valid",
            f"shape {mask.shape}, {mask.dtype}",
            f"bool [{H}, {W}] or [{B}, {H}, {W}], True where measured",
            "the mask of another window, or one mask a band",
        )
    return (mask if mask.ndim == 3 else mask[None]) != 0


def _of_pixels(array: np.ndarray, names, sensor: Sensor, in_decibel: bool, valid) -> list[Finding]:
    """Findings about numbers. A regular sample carries the statistics; the extremes are of all numbers."""
    B, C, H, W = array.shape
    mask = _mask(valid, array.shape)
    step = max(1, min(H * W * B // SAMPLE, H * W // PER_CHIP))
    while step > 1 and math.gcd(step, W) > 1:  # else the sample would be a few columns
        step += 1
    flat = array.reshape(B, C, H * W)[..., ::step]
    sample = flat.astype(np.float64)
    if mask is not None:
        here = np.broadcast_to(mask.reshape(len(mask), 1, H * W)[..., ::step], sample.shape)
        sample = np.where(here, sample, np.nan)
    missing = np.isnan(sample)
    found = [*_missing(missing, array, mask, names)]
    if missing.all():
        return found
    low, high = _extremes(array, mask)
    pooled = sample.transpose(1, 0, 2).reshape(C, -1)
    evidence = Evidence(sensor, tuple(names), pooled, B, array.dtype, low, high, bool(in_decibel))
    return found + ([*_of_single_chips(sample, evidence)] or of_images(evidence))


def _extremes(array: np.ndarray, mask) -> tuple[float, float]:
    """Least and greatest of all valid numbers, NaN left out."""
    if mask is None:
        return float(np.fmin.reduce(array, axis=None)), float(np.fmax.reduce(array, axis=None))
    numbers = array.transpose(0, 2, 3, 1)[np.broadcast_to(mask, (len(array), *mask.shape[1:]))]
    return (float(np.fmin.reduce(numbers, axis=None)), float(np.fmax.reduce(numbers, axis=None)))


def _missing(missing: np.ndarray, array: np.ndarray, mask, names) -> Iterator[Finding]:
    """missing: [B, C, n] of the sample."""
    gone = missing.any(1)  # a pixel is missing where any band is
    shares = gone.mean(1)
    empty = []
    for chip in np.flatnonzero(shares == 1):  # the sample may have missed what little there is
        whole = np.isnan(array[chip]).any(0)
        if mask is not None:
            whole = whole | ~mask[min(chip, len(mask) - 1)]
        if whole.all():
            empty.append(int(chip))
    many = np.flatnonzero(shares > 0.5)
    of = f" in {len(empty) or len(many)} of {len(shares)} chips, the first is number {(empty or [*many, 0])[0]}"
    of = of if len(shares) > 1 else ""
    expected = "at least half of the pixels measured"
    lost = (
        [name for name, gone in zip(names, np.isnan(array[empty[0]]).all((1, 2)), strict=True) if gone] if empty else []
    )
    if 0 < len(lost) < len(names):
        yield Finding(
            "error", "pixels", f"not one measured pixel of band {', '.join(lost)}{of}", "measurements in every band",
            "a band that the file lacks: leave it out and name the others in bands=[...]",
        )  # fmt: skip
    elif empty:
        yield Finding(
            "error", "pixels", f"not one valid pixel{of}", "at least one",
            "an area outside the scene, a band that is missing everywhere, or a mask that is upside down",
        )  # fmt: skip
    elif len(many):
        yield Finding(
            "warning", "pixels", f"{shares.max():.0%} of the pixels missing{of}", expected,
            "the scene's edge, clouds, or a mask with True for the wrong side",
        )  # fmt: skip


def _of_single_chips(sample: np.ndarray, e: Evidence) -> Iterator[Finding]:
    """Chips of one batch in different units: the pooled numbers would hide them. sample [B, C, n]."""
    if len(sample) < 2 or e.sensor.decibel or e.mean.min() < 20:
        return
    tops = np.nanmax(np.where(np.isnan(sample), -np.inf, sample), axis=(1, 2))
    low = np.flatnonzero((tops <= 2) & (tops > 0) & (sample % 1 > 0).any((1, 2)))
    if len(low) and tops.max() > 20:
        yield Finding(
            "error", "pixels", f"nothing above {short(tops[low].max())} in {len(low)} of {len(sample)} chips, "
            f"the first is number {low[0]}; up to {short(tops.max())} in the others", "one unit in all chips",
            f"some chips in reflectance or scaled to 0..1: {e.facts.mend}",
        )  # fmt: skip
