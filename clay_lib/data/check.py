"""Image check: what an image is taken for, and whether its pixels, bands, place and date fit the sensor.

    >>> print(inspect_image("scene.tif", "sentinel-2-l2a"))  # the same as `clay check scene.tif` and `clay.check(...)`
    >>> check_image(pixels, "sentinel-2-l2a", when="2023-06-10", lat=-3.4, lon=34.1)
    ContractError: pixels: found median of band nir08 is 0.28, the sensor's mean is 2785; expected Sentinel-2 L2A,
    surface reflectance x 10000. Likely cause: looks like reflectance or an image scaled to 0..1; multiply by 10000

Errors are what cannot be right, warnings what is unlikely. The rules for numbers and band order are in check_rules.py.
"""

from __future__ import annotations

import base64
import html
import math
import os
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from clay_lib.data import check_rules as rules
from clay_lib.data.bands import FACTS, Facts
from clay_lib.data.check_rules import Finding, ImageSample, error, short, warning
from clay_lib.data.images import Image, as_batch, open_image, with_metadata
from clay_lib.datacube import latlon_code, parse_when, per_chip
from clay_lib.errors import ContractError, number, warn
from clay_lib.sensors import METERS_PER_DEGREE, SENSORS, Sensor

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SAMPLE = 4096  # pixels in the sample, of all chips together
PER_CHIP = 16  # at least
COLUMNS = 100  # of the terminal
UNKNOWN, SENSORS_OWN = "unknown, and coded as such", "the sensor's own"


class ContractWarning(UserWarning):
    """An image that is unlikely to be what its caller says it is."""


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """What an image is taken for and what is wrong with it. It displays itself, in a terminal and in a notebook.

    findings: errors first. image: native numbers and metadata as the model gets them; None where it cannot be read.
    """

    source: str
    sensor: Sensor | None
    findings: list[Finding]
    image: Image | None = None

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    def raise_errors(self) -> None:
        """ContractError for the first error, which names the others too."""
        if self.errors:
            first, *rest = self.errors
            more = "".join(f"; also {f.field}: {f.found}" for f in rest)
            raise ContractError(first.field, first.found, first.expected, first.cause + more)

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.image is None else self.image.bands or self.sensor.band_names

    @cached_property
    def bands(self) -> pd.DataFrame:
        """A row a band: percentiles 5, 50 and 95 in native numbers and normalized, share of holes, what decided it."""
        import pandas as pd

        rows = []
        for i, name in enumerate(self.names):
            values = self.image.pixels[:, i]
            sample = values.ravel()[:: max(1, values.size // 2**20)]
            sample = sample[np.isfinite(sample)]
            native = np.percentile(sample, (5, 50, 95)) if sample.size else np.full(3, np.nan)
            normalized = self.sensor.normalize(native[None, None], [name], in_decibel=self.image.in_decibel)[0, 0]
            reason = self.image.origin.get(name) or f"the sensor's order, band {i + 1} of {len(self.names)}"
            rows.append([name, *native, *normalized, np.isnan(values).mean(), reason])
        numbers = [(units, share) for units in ("native", "normalized") for share in ("5 %", "median", "95 %")]
        columns = [("", "band"), *numbers, ("", "holes"), ("", "decided by")]
        return pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(columns))

    @property
    def facts(self) -> dict[str, str]:
        """{"place": "-25.3160, -48.1060 (EPSG:32722)"} and the like, each with where it comes from."""
        if self.image is None:
            return {}
        image, origin = self.image, {"gsd": self.image.origin.get("lat"), **self.image.origin}
        (lat, *others), (lon, *_), (when, *_), (gsd, *_) = map(_list, (image.lat, image.lon, image.when, image.gsd))
        more = f" and {len(others)} more" if others else ""
        facts = {
            "source": f"{origin.get('source', 'image')}, read as {' x '.join(map(str, image.pixels.shape))}",
            "place": UNKNOWN if lat is None else f"{lat:.4f}, {lon:.4f}{more} ({origin.get('lat')})",
            "date": UNKNOWN if when is None else f"{when}{more} ({origin.get('when')})",
            "ground": f"{self.sensor.gsd if gsd is None else gsd:g} m a pixel ({origin['gsd'] if gsd else SENSORS_OWN})",
            "holes": f"{np.isnan(image.pixels).any(1).mean():.1%} of the pixels lack a band",
        }
        if self.sensor.decibel:
            sign = f"the median is {'negative' if image.in_decibel else 'positive'}"
            units = "decibel" if image.in_decibel else "linear power, converted to decibel"
            facts["units"] = f"{units} ({origin.get('in_decibel', sign)})"
        elif origin.get("units"):
            facts["units"] = origin["units"]
        if absent := [name for name in self.sensor.band_names if name not in self.names]:
            facts["absent"] = f"{', '.join(absent)} (the model takes any subset)"
        return facts

    @property
    def title(self) -> str:
        """Such as "scene.tif as sentinel-2-l2a: 1 error, 2 warnings"."""
        counts = (len(self.errors), "error"), (len(self.findings) - len(self.errors), "warning")
        verdict = ", ".join(f"{n} {word}{'s' * (n > 1)}" for n, word in counts if n) or "as expected"
        return f"{self.source}{f' as {self.sensor.name}' if self.sensor else ''}: {verdict}"

    def __repr__(self) -> str:
        lines = [self.title, *(f"  {k:<8}{v}"[:COLUMNS] for k, v in self.facts.items())]
        if self.image is not None:
            table = self.bands.to_string(index=False, formatters=FORMATTERS).splitlines()
            lines += ["", *(f"  {row}".rstrip()[:COLUMNS] for row in table)]
        for finding in self.findings:
            lines += ["", *textwrap.wrap(f"{finding.level}: {finding}", COLUMNS, subsequent_indent="  ")]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from clay_lib.figures.style import png  # matplotlib

        rows = [*self.facts.items(), *((f.level, str(f)) for f in self.findings)]
        cells = ("".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in row) for row in rows)
        parts = [f"<b>{html.escape(self.title)}</b><table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"]
        if self.image is not None:
            parts.append(self.bands.to_html(index=False, border=0, formatters=FORMATTERS))
            image = base64.b64encode(png(self.figure())).decode()
            parts.append(f"<img src='data:image/png;base64,{image}' style='max-width:100%'>")
        return "".join(parts)

    def figure(self) -> Figure:
        """The datacube that the model gets: image, holes, histograms against the sensor's range, place."""
        from clay_lib.figures.inspection import datacube  # matplotlib

        if self.image is None:
            self.raise_errors()
        metadata = {name: getattr(self.image, name) for name in ("lat", "lon", "in_decibel")}
        metadata |= {"gsd": _list(self.image.gsd)[0], "title": self.title}
        return datacube(self.image.pixels, self.sensor, self.names, **metadata)


FORMATTERS = ["{:<12}".format, *[short] * 3, *["{:.2f}".format] * 3, "{:.1%}".format, "{:<34}".format]


def check_image(source, sensor: str | Sensor, **metadata) -> list[Finding]:
    """The findings of `inspect_image`, raised and warned: ContractError for errors, one ContractWarning a warning."""
    inspection = inspect_image(source, sensor, **metadata)
    for finding in inspection.findings:
        if finding.level == "warning":
            warn(str(finding), ContractWarning)
    inspection.raise_errors()
    return inspection.findings


def inspect_image(
    source, sensor: str | Sensor, *, bands=None, valid=None, nodata=None, scale=None, offset=None, **given
) -> Inspection:
    """What an image of any kind is taken for and what is wrong with it; nothing is raised.

    source, bands, nodata: as for `open_image`, or an Image. valid: True where something was measured, [H, W],
    [B, H, W] or [B, C, H, W]. scale, offset: native = value * scale + offset, for files in other units.
    given: gsd (meters), lat and lon (degrees), when (one for all or one a chip, as in `make_datacube`) and in_decibel
    take precedence over the image's own. A place is compared to the image's own too.
    """
    name, texts = _name(source), []
    try:
        sensor, own = SENSORS.resolve(sensor), source
        if not isinstance(source, Image):  # an Image may come from a thread, which must not change warning filters
            with warnings.catch_warnings(record=True) as messages:
                warnings.simplefilter("always")
                reading = dict(when=given.get("when"), in_decibel=given.get("in_decibel"), scale=scale, offset=offset)
                own = open_image(source, sensor, bands=bands, nodata=nodata, **reading)
            texts = dict.fromkeys(str(m.message) for m in messages if issubclass(m.category, UserWarning))
        image = with_metadata(own, valid=valid, **given)
        names = image.bands or sensor.band_names
        array = as_batch(image.pixels, sensor, names)
    except Exception as problem:
        return Inspection(name, sensor if isinstance(sensor, Sensor) else None, [_caught("pixels", source, problem)])
    findings = [warning("reading", message, "", "") for message in texts]
    findings += _inspect_pixels(array, names, sensor, image.in_decibel, image.stored)
    refused = {}
    place = image.lon if image.lat is None else image.lat
    for field, value, rule in (("gsd", image.gsd, _distance), ("lat", place, _place), ("when", image.when, _date)):
        if value is not None:
            try:
                findings += rule(image, own, sensor)
            except Exception as problem:  # such as text or a list of another length, which cannot be shown
                findings.append(_caught(field, value, problem))
                refused |= {"lat": None, "lon": None} if field == "lat" else {field: None}
    return Inspection(name, sensor, sorted(findings, key=lambda f: f.level), replace(image, **refused))


def check(
    path: str,
    *,
    sensor: str = "",
    bands: str = "",
    when: str = "",
    lat: float | None = None,
    lon: float | None = None,
    in_decibel: bool | None = None,
    scale: float | None = None,
    offset: float | None = None,
    figure: str = "",
) -> int:
    """Check an image against its sensor: bands, units, missing pixels, place and date, as the model will get them.

    Example: clay check scene.tif --sensor sentinel-2-l2a --when 2023-06-10 --figure check.png

    Args:
        path: a GeoTIFF or another raster, or a folder of single-band files
        sensor: the sensor of the image, such as sentinel-2-l2a; without it, those that the bands could be of are listed
        bands: its bands in file order, separated by commas, - for one to leave out: blue,green,red,-,nir
        when: date of the image, such as 2023-06-10T10:30
        lat: degrees, to be compared to the file's own place
        lon: degrees
        in_decibel: radar in dB; by default decided by the sign of the numbers
        scale: native = value * scale + offset, for files in other units; by default what the header says
        offset: see scale
        figure: a PNG to draw: the image, its holes, each band's histogram against the sensor's, the place
    """
    if not sensor:
        found, cause = "none given", "bands alone do not tell the units of a sensor's numbers"
        raise ContractError("sensor", found, f"--sensor with one of {possible_sensors(path)}", cause)
    names = [None if name.strip() in ("-", "") else name.strip() for name in bands.split(",")] if bands else None
    given = dict(when=when or None, lat=lat, lon=lon, in_decibel=in_decibel, scale=scale, offset=offset)
    inspection = inspect_image(os.path.expanduser(path), sensor, bands=names, **given)
    if inspection.image is None:
        inspection.raise_errors()
    print(inspection)
    if figure:
        from clay_lib.figures.style import save  # matplotlib

        print(f"\n{save(inspection.figure(), figure)}")
    return 2 if inspection.errors else 0


def possible_sensors(path: str) -> list[str]:
    """The sensors that a file's header fits best: by ground distance, then by having all bands, then the most bands."""
    from clay_lib.data.rasters import find_layers  # arrays need no raster library

    held = {}
    for name, sensor in SENSORS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                layers = [*find_layers(os.path.expanduser(path), name).values()]
            near = layers[0].crs is None or 0.25 < layers[0].gsd / sensor.gsd < 4
            held[name] = near, len(layers) == len(sensor.bands), len(layers)
        except ContractError as problem:
            refused = problem
    if not held:
        raise refused
    return [name for name, score in held.items() if score == max(held.values())]


def _name(source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name or str(source)
    if isinstance(source, (list, tuple)) and source and isinstance(source[0], (str, os.PathLike)):
        return f"{Path(source[0]).name} and {len(source) - 1} more"
    return "the image" if isinstance(source, Image) else f"the {type(source).__name__}"


def _caught(field: str, value, problem: Exception) -> Finding:
    """An exception as a finding; any other than a ContractError comes from an object of the wrong type."""
    if isinstance(problem, ContractError):
        return error(problem.field, str(problem.found), str(problem.expected), problem.cause)
    return error(field, f"{type(value).__name__}: {problem}"[:200], "numbers", "another type of object")


def _inspect_pixels(array: np.ndarray, names, sensor: Sensor, in_decibel: bool, stored: np.dtype) -> list[Finding]:
    """A regular sample of array [B, C, H, W] carries the statistics; the extremes are of all numbers. NaN: a hole."""
    B, C, H, W = array.shape
    step = max(1, min(H * W * B // SAMPLE, H * W // PER_CHIP))
    while step > 1 and math.gcd(step, W) > 1:  # else the sample would be a few columns
        step += 1
    sample = array.reshape(B, C, H * W)[..., ::step].astype(np.float64)  # [B, C, n]
    missing = np.isnan(sample)
    findings = [*_missing(missing, array, names)]
    if missing.all():
        return findings
    low, high = (float(least.reduce(array, axis=None)) for least in (np.fmin, np.fmax))
    pooled = sample.transpose(1, 0, 2).reshape(C, -1)
    image = ImageSample(sensor, tuple(names), pooled, stored, low, high, bool(in_decibel))
    return findings + ([*_mixed_units(sample, image)] or _inspect_numbers(image))


def _inspect_numbers(s: ImageSample) -> list[Finding]:
    """All findings about the numbers; a finding about units silences those that would only follow from it."""
    findings = []
    if not -900 < s.low <= s.high < 32767:  # where codes lie
        findings = [*rules.nodata_codes(s)]
        s = s.without(np.isin(s.values, rules.CODES) | (np.abs(s.values) > s.limit))
        if not s.count.any():
            return findings
    findings += rules.zeros(s)
    units = [*(rules.radar_units(s) if s.sensor.decibel else rules.optical_units(s))]
    rest = [rules.alpha_band, rules.constant, rules.one_number, rules.negative, rules.repeated]
    rest += [rules.offset_kept, rules.out_of_order, rules.far_from_mean]
    return findings + (units or [finding for rule in rest for finding in rule(s)])


def _missing(missing: np.ndarray, array: np.ndarray, names) -> Iterator[Finding]:
    """missing: [B, C, n] of the sample."""
    shares = missing.any(1).mean(1)  # a pixel is missing where any band is
    # the sample may have skipped the few measured pixels
    empty = [int(chip) for chip in np.flatnonzero(shares == 1) if np.isnan(array[chip]).any(0).all()]
    chips = empty or [*np.flatnonzero(shares > 0.5)]
    several = chips and len(shares) > 1
    where = f" in {len(chips)} of {len(shares)} chips, the first is number {chips[0]}" if several else ""
    lost = np.isnan(array[empty[0]]).all((1, 2)) if empty else np.zeros(len(names), bool)  # [C]
    if lost.any() and not lost.all():
        found = f"not one measured pixel of band {', '.join(np.array(names)[lost])}{where}"
        cause = "a band that the file lacks: leave it out and name the others in bands=[...]"
        yield error("pixels", found, "measurements in every band", cause)
    elif empty:
        cause = "zeros or fill outside the scene, a band that is missing everywhere, or an inverted mask"
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


def _list(value) -> list:
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _distance(image: Image, own: Image, sensor: Sensor) -> list[Finding]:
    meters = [number("gsd", one) for one in _list(image.gsd) or [None]]
    usual, findings = f"{sensor.gsd:g} meters for {sensor.name}", []
    for value in {min(meters), max(meters)}:
        ratio = value / sensor.gsd
        if value <= 0:
            raise ContractError("gsd", f"{value:g}", "meters, > 0", "the negative pixel height of a transform")
        elif value < 0.01:
            factor = f"times {METERS_PER_DEGREE:.0f} it is {value * METERS_PER_DEGREE:.3g} m"
            findings.append(error("gsd", f"{value:g}", usual, f"degrees: {factor} (less along a parallel)"))
        elif not 0.1 < ratio < 10:
            found = f"{value:g}, {max(ratio, 1 / ratio):.3g} times {'more' if ratio > 1 else 'less'}"
            cause = "kilometers, centimeters, the chip's side instead of a pixel's, or another sensor"
            findings.append(warning("gsd", found, usual, cause))
    return findings


def _place(image: Image, own: Image, sensor: Sensor) -> list[Finding]:
    B, swapped = len(image.pixels), "lat and lon are swapped"
    lats, lons = per_chip("lat", image.lat, B), per_chip("lon", image.lon, B)
    latlon_code(lats, lons, B)
    places = [(float(a), float(o)) for a, o in zip(lats, lons, strict=True) if a is not None]
    lands = FACTS.get(sensor.name, Facts()).lands

    def inside(lat, lon):
        return any(w <= lon <= e and s <= lat <= n for w, s, e, n in lands)

    def away(lat, lon):  # degrees from the image's own place, the greater of the two, across the antimeridian
        return max(abs(lat - own.lat), abs((lon - own.lon + 180) % 360 - 180))

    for lat, lon in places[:1] if isinstance(own.lat, float) else ():
        if away(lat, lon) > 1:
            found = f"{lat:.4f}, {lon:.4f}, {away(lat, lon):.0f} degrees from the image"
            expected = f"near {own.lat:.4f}, {own.lon:.4f}, which its CRS gives"
            if away(lon, lat) < 1:
                return [error("lat", found, expected, swapped)]
            return [warning("lat", found, expected, "another scene's place")]
    if (0.0, 0.0) in places:
        cause = "a missing place that was stored as zeros"
        return [warning("lat", "latitude 0, longitude 0", "a place, or None where it is unknown", cause)]
    outside = next(((a, o) for a, o in places if not inside(a, o) and inside(o, a)), None)
    polar = next(((a, o) for a, o in places if abs(a) > 84 and abs(o) <= 84), None)
    if not (outside or polar):
        return []
    lat, lon = outside or polar
    where = f"where {sensor.name} is flown; {lon:g}, {lat:g} is" if outside else "within 84 degrees of the equator"
    return [warning("lat", f"latitude {lat:g}, longitude {lon:g}", f"a place {where}", swapped)]


def _date(image: Image, own: Image, sensor: Sensor) -> list[Finding]:
    days = sorted(d.date() for d in map(parse_when, per_chip("when", image.when, len(image.pixels))) if d is not None)
    since, order = FACTS.get(sensor.name, Facts()).since, "day, month and year in another order"
    if days and since and days[0] < date.fromisoformat(since):
        expected = f"{since} or later, when the images of {sensor.name} begin"
        cause = f"{order}, a placeholder such as 1970-01-01, or another sensor"
        return [error("when", f"{days[0]}", expected, cause)]
    if days and days[-1] > (datetime.now() + timedelta(days=1)).date():
        return [warning("when", f"{days[-1]}", "a day in the past", f"{order}, or this computer's clock")]
    return []
