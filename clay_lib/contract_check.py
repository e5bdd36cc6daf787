"""The contract check: is this image what its caller says it is? Asked before anything runs, answered in plain words.

    >>> check_contract(pixels, "sentinel-2-l2a", when="2023-06-10", lat=-3.4, lon=34.1)
    ContractError: pixels: found median of band nir08 is 0.28, the registry's mean is 2785; expected Sentinel-2 L2A,
    surface reflectance x 10000. Likely cause: looks like reflectance or a picture scaled to 0..1; multiply by 10000

Errors are what cannot be right, warnings what is unlikely. The rules about numbers are in contract_rules.py.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from clay_lib.contract import ContractError, number
from clay_lib.contract_rules import FACTS, FEW, Evidence, Facts, Finding, of_images, short
from clay_lib.datacube import Datacube, _parse_when, _per_chip, latlon_code
from clay_lib.sensors import SENSORS, Sensor, check_wavelength

SAMPLE = 4096  # pixels looked at, of all chips together
PER_CHIP = 16  # at least

__all__ = ["ContractWarning", "Finding", "check_contract", "inspect_contract", "inspect_cube", "inspect_scene"]


class ContractWarning(UserWarning):
    """An image that is unlikely to be what it is said to be."""


def check_contract(pixels, sensor: str | Sensor, **said) -> list[Finding]:
    """`inspect_contract`, raised and warned: ContractError for the first error, one ContractWarning a warning."""
    findings = inspect_contract(pixels, sensor, **said)
    errors = [f for f in findings if f.level == "error"]
    for finding in findings:
        if finding.level == "warning":
            warnings.warn(str(finding), ContractWarning, stacklevel=2)
    if errors:
        first, *rest = errors
        more = "".join(f"; also {f.field}: {f.found}" for f in rest)
        raise ContractError(first.field, found=first.found, expected=first.expected, cause=first.cause + more)
    return findings


def inspect_contract(
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
        return [_told(error)]
    except Exception as error:  # whatever stands where names belong
        return [_failed("bands", bands, "names of bands", error)]
    try:
        array = _array(pixels, names, sensor)
        chips, found = len(array), _of_pixels(array, names, sensor, in_decibel, valid)
    except ContractError as error:
        chips, found = None, [_told(error)]
    found += [*_of_distance(gsd, sensor), *_of_place(lat, lon, chips, sensor), *_of_date(when, chips, sensor)]
    return sorted(found, key=lambda f: f.level)


def inspect_scene(scene, *, lat: float | None = None, lon: float | None = None, when=None) -> list[Finding]:
    """The same of what `read_scene` returns; a lat and lon that are told beside it are held against its CRS."""
    place = dict(lat=scene.lat if lat is None else lat, lon=scene.lon if lon is None else lon)
    found = inspect_contract(
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
    off, swapped = _degrees(lat, lon, scene.lat, scene.lon), _degrees(lon, lat, scene.lat, scene.lon)
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
    from clay_lib.scenes import read_scene

    if (lat is None) != (lon is None):
        raise ContractError("lat, lon", found=(lat, lon), expected="both, or neither", cause="half a place")
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


def _told(error: ContractError, level: str = "error") -> Finding:
    return Finding(level, error.field, str(error.found), str(error.expected), error.cause)


def _failed(field: str, value, expected: str, error: Exception) -> Finding:
    return Finding("error", field, f"{type(value).__name__}: {error}"[:200], expected, "another type of object")


def _array(pixels, names: tuple[str, ...], sensor: Sensor) -> np.ndarray:
    """[B, C, H, W], or a ContractError about its shape."""
    if isinstance(pixels, Tensor):
        pixels = pixels.detach().cpu()
        pixels = (pixels.float() if pixels.dtype == torch.bfloat16 else pixels).numpy()
    try:
        array = np.asarray(pixels)
    except Exception as error:
        array = np.array(f"{type(pixels).__name__} ({error})"[:120])
    if array.dtype.kind not in "iufb":
        raise ContractError(
            "pixels", found=f"dtype {array.dtype}", expected="numbers", cause="text, complex numbers or objects"
        )
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
        raise ContractError("pixels", found=f"shape {shape}", expected=wanted, cause=cause)
    return array.reshape(-1, *shape[-3:])


def _mask(valid, shape: tuple[int, ...]) -> np.ndarray | None:
    """[B, H, W] or [1, H, W] bool."""
    if valid is None:
        return None
    mask = np.asarray(valid.detach().cpu() if isinstance(valid, Tensor) else valid)
    B, _, H, W = shape
    if mask.dtype.kind not in "iufb" or mask.shape not in ((H, W), (1, H, W), (B, H, W)):
        raise ContractError(
            "valid",
            found=f"shape {mask.shape}, {mask.dtype}",
            expected=f"bool [{H}, {W}] or [{B}, {H}, {W}], True where measured",
            cause="the mask of another window, or one mask a band",
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
    found = [*_missing(missing, array, mask)]
    if missing.all():
        return found
    low, high = _extremes(array, mask)
    pooled = sample.transpose(1, 0, 2).reshape(C, -1)
    evidence = Evidence(sensor, tuple(names), pooled, B, array.dtype, low, high, bool(in_decibel))
    found += of_images(evidence)
    return found + [*_of_single_chips(sample, evidence, found)]


def _extremes(array: np.ndarray, mask) -> tuple[float, float]:
    """Least and greatest of all valid numbers, NaN left out."""
    if mask is None:
        return float(np.fmin.reduce(array, axis=None)), float(np.fmax.reduce(array, axis=None))
    numbers = array.transpose(0, 2, 3, 1)[np.broadcast_to(mask, (len(array), *mask.shape[1:]))]
    return (float(np.fmin.reduce(numbers, axis=None)), float(np.fmax.reduce(numbers, axis=None)))


def _missing(missing: np.ndarray, array: np.ndarray, mask) -> Iterator[Finding]:
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
    if empty:
        yield Finding(
            "error", "pixels", f"not one valid pixel{of}", "at least one",
            "an area outside the scene, a band that is missing everywhere, or a mask that is upside down",
        )  # fmt: skip
    elif len(many):
        yield Finding(
            "warning", "pixels", f"{shares.max():.0%} of the pixels missing{of}", expected,
            "the scene's edge, clouds, or a mask with True for the wrong side",
        )  # fmt: skip


def _of_single_chips(sample: np.ndarray, e: Evidence, found: list[Finding]) -> Iterator[Finding]:
    """Chips of one batch in different units: the pooled numbers would hide them. sample [B, C, n]."""
    if len(sample) < 2 or any(f.level == "error" for f in found) or e.sensor.decibel or e.mean.min() < 20:
        return
    tops = np.nanmax(np.where(np.isnan(sample), -np.inf, sample), axis=(1, 2))
    low = np.flatnonzero((tops <= 2) & (tops > 0) & (sample % 1 > 0).any((1, 2)))
    if len(low) and tops.max() > 20:
        yield Finding(
            "error", "pixels", f"nothing above {short(tops[low].max())} in {len(low)} of {len(sample)} chips, "
            f"the first is number {low[0]}; up to {short(tops.max())} in the others", "one unit in all chips",
            f"some chips in reflectance or scaled to 0..1: {e.facts.mend}",
        )  # fmt: skip


# ---- distance, place, date ----


def _numbers(value) -> list:
    value = value.detach().cpu().tolist() if isinstance(value, Tensor) else value
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _of_distance(gsd, sensor: Sensor | None, unit: str = "metres") -> Iterator[Finding]:
    if gsd is None:
        return
    try:
        metres = [number("gsd", one) for one in _numbers(gsd)]
    except ContractError as error:
        yield _told(error)
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


def _of_place(lat, lon, chips: int | None, sensor: Sensor) -> Iterator[Finding]:
    if lat is None and lon is None:
        return
    try:
        lats, lons = (_per_chip(n, v, chips or len(_numbers(v))) for n, v in (("lat", lat), ("lon", lon)))
        latlon_code(lats, lons, len(lats))
        places = [(float(a), float(o)) for a, o in zip(lats, lons, strict=True) if a is not None]
    except ContractError as error:
        told = _told(error)
        first = next((o for o in _numbers(lon) if isinstance(o, (int, float)) and abs(o) <= 90), None)
        if told.field == "lat" and "swapped" in told.cause and first is not None:
            told = Finding("error", "lat", f"{told.found} with lon {first}", told.expected, "lat and lon are swapped")
        yield told
        return
    except Exception as error:
        yield _failed("lat", lat, "degrees", error)
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


def _degrees(lat, lon, other_lat, other_lon) -> float:
    """The greater of the two differences, across the date line."""
    return max(abs(lat - other_lat), abs((lon - other_lon + 180) % 360 - 180))


def _of_date(when, chips: int | None, sensor: Sensor) -> Iterator[Finding]:
    if when is None:
        return
    try:
        days = [_parse_when(w) for w in _per_chip("when", when, chips or len(_numbers(when)))]
        days = sorted({d.date() for d in days if d is not None})
    except ContractError as error:
        yield _told(error)
        return
    except Exception as error:
        yield _failed("when", when, "ISO 8601, for example 2023-06-10T10:30", error)
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


# ---- ready batches ----


def inspect_cube(cube: Datacube | Mapping, sensor: str | Sensor | None = None) -> list[Finding]:
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
            raise ContractError(
                "waves", found=tuple(waves.shape), expected=f"[{pixels.shape[1]}]", cause="bands dropped on one side"
            )
    except ContractError as error:
        return [_told(error)]
    except Exception as error:
        return [_failed("cube", cube, "pixels [B, C, H, W], time and latlon [B, 4], gsd, waves [C]", error)]
    found = [*_of_waves(waves.tolist(), sensor), *_of_distance(getattr(cube, "gsd", None), sensor)]
    found += [*_of_normalised(pixels, waves, sensor), *_of_codes(time.numpy(), latlon.numpy())]
    return sorted(found, key=lambda f: f.level)


def _of_waves(waves: list[float], sensor: Sensor | None) -> Iterator[Finding]:
    for wave in waves:
        try:
            check_wavelength("waves", wave)
        except ContractError as error:
            yield _told(error)
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
