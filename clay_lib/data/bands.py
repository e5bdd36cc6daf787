"""Bands of an image: names, fill values and decibel, without a raster library.

Every reader (arrays, xarray, raster files, labelled sets) decides here which band is which (`match_bands`), which
pixels were measured (`missing_pixels`) and whether radar is in decibel already (`looks_like_decibel`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from clay_lib.errors import ContractError
from clay_lib.sensors import Sensor

Bands = Mapping[str, int] | Sequence[str | None] | None  # as `match_bands` takes them

# A product's band number -> Clay's band. Where a sensor is not listed, band n is the n-th of its native order.
SENTINEL_2 = {"2": "blue", "3": "green", "4": "red", "5": "rededge1", "6": "rededge2", "7": "rededge3"}
SENTINEL_2 |= {"8": "nir", "8a": "nir08", "11": "swir16", "12": "swir22"}
LANDSAT_8 = {"2": "blue", "3": "green", "4": "red", "5": "nir08", "6": "swir16", "7": "swir22"}
LANDSAT_4_TO_7 = {"1": "blue", "2": "green", "3": "red", "4": "nir08", "5": "swir16", "7": "swir22"}
# Products whose bands come without names: sensor -> band numbers in file order.
LAYOUTS = {
    "sentinel-2-l2a": ("1 2 3 4 5 6 7 8 8a 9 11 12", "1 2 3 4 5 6 7 8 8a 9 10 11 12"),
    "landsat-c2l1": ("1 2 3 4 5 6 7", "1 2 3 4 5 6 7 8 9 10 11"),
    "landsat-c2l2-sr": ("1 2 3 4 5 6 7",),
    "linz": ("1 2 3 4",),  # the fourth is near infrared
}
MODIS_FILL = 32767


def match_bands(labels: Sequence[str], sensor: Sensor, bands: Bands, source: str) -> dict[str, int]:
    """{sensor band: position in labels}, in the caller's order, else in the sensor's.

    labels: the description of each band in the source, "" where there is none. bands: {sensor band: 1-based number}; or
    names: those to take where the labels hold all of them, else one a band in the source's order, None for a band to
    leave out; or None: by the labels, else by the number of bands. source: its name, for the mission and for messages.
    Raises ContractError where nothing names the bands, or two labels mean the same band.
    """
    numbers = band_numbers(sensor, source)
    names = [recognize_band(label, sensor, numbers) for label in labels]
    requested = set(bands) if isinstance(bands, (list, tuple)) else set()
    if bands is not None and not (requested and requested <= set(names) - {None}):
        return _explicit_bands(len(labels), sensor, bands)
    if not any(names):
        names = _layout(labels, sensor, numbers, source)
    elif repeated := sorted({name for name in names if name and names.count(name) > 1}):
        claims = [label for label, name in zip(labels, names, strict=True) if name in repeated]
        cause = "two scenes or two resolutions in one folder: hand in a list of files, or bands="
        raise ContractError("bands", f"{claims}, all read as {repeated}", "one layer a band", cause)
    if bands is not None:  # all of them are labelled
        sensor.indices(bands)
        return {name: names.index(name) for name in bands}
    return {name: names.index(name) for name in sensor.band_names if name in names}


def recognize_band(label: str, sensor: Sensor, numbers: Mapping[str, str]) -> str | None:
    """The one band that a label means ("B8A", "SR_B4", "band 3 reflectance", "vv", "nir08"), or None."""
    text = re.sub(r"red_edge_?", "rededge", "_".join(words(label)))
    by_name = {
        name for name in sensor.band_names if re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", text)
    }
    by_name = {name for name in by_name if not any(name != other and name in other for other in by_name)}
    by_number = re.findall(r"(?<![a-z0-9])b(?:and)?_?0*([1-9][0-9]?a?)(?![a-z0-9])", text)
    matches = by_name or {numbers[number] for number in by_number if number in numbers}
    return matches.pop() if len(matches) == 1 else None


def words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def band_numbers(sensor: Sensor, source: str) -> dict[str, str]:
    """{a product's band number: the sensor's band}; source tells Landsat 4 to 7 (LT05..., LE07...) from 8 and 9."""
    if sensor.name.startswith("sentinel-2"):
        return SENTINEL_2
    if sensor.name.startswith("landsat"):
        older = re.search(r"(?:^|[^a-z0-9])l[etm]?0?[457]", re.split(r"[/\\]", source)[-1].lower())
        return LANDSAT_4_TO_7 if older else LANDSAT_8
    return {str(i): name for i, name in enumerate(sensor.band_names, start=1)}


def _layout(labels: Sequence[str], sensor: Sensor, numbers: Mapping[str, str], source: str) -> list[str | None]:
    """The bands of a source whose labels mean nothing, from how many there are."""
    if len(labels) == len(sensor.bands):
        return list(sensor.band_names)
    layouts = [text.split() for text in LAYOUTS.get(sensor.name, ())]
    layout = next((layout for layout in layouts if len(layout) == len(labels)), None)
    if layout is None:
        described = f"described as {list(labels)}" if any(labels) else "without descriptions"
        raise ContractError(
            "bands", f"{len(labels)} bands {described} in {source}",
            f"the {len(sensor.bands)} of {sensor.name}: {list(sensor.band_names)}",
            "another sensor, several scenes at once, or more bands than it has: name them in file order, "
            "bands=['blue', None, ...], or by number, bands={'red': 3, ...}",
        )  # fmt: skip
    return [numbers.get(number) for number in layout]


def _explicit_bands(count: int, sensor: Sensor, bands: Bands) -> dict[str, int]:
    """bands as the caller numbers them, for a source of `count` bands without names."""
    if isinstance(bands, Mapping):
        numbers = dict(bands)
    else:
        bands = list(bands) if isinstance(bands, Sequence) and not isinstance(bands, str) else [bands]
        if len(bands) != count:
            raise ContractError(
                "bands", f"{len(bands)} {'name' if len(bands) == 1 else 'names'}: {bands}",
                f"{count}, one for each band in the source, in its order, None for those to leave out",
                "a choice among bands that carry no names: choose by number, from 1, as in bands={'red': 3}",
            )  # fmt: skip
        sensor.indices([name for name in bands if name is not None])  # refuses repeats, which a dict would swallow
        numbers = {name: i for i, name in enumerate(bands, start=1) if name is not None}
    sensor.indices(list(numbers))
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 1 <= number <= count:
            expected = f"a band number from 1 to {count}"
            raise ContractError(f"bands[{name!r}]", repr(number), expected, "numbers count from 1, as in GDAL")
    return {name: number - 1 for name, number in numbers.items()}


def missing_pixels(pixels: np.ndarray, nodata: Sequence[float | None], sensor: Sensor) -> np.ndarray:
    """Pixels [C, H, W] in the dtype they were stored in, nodata one a band -> bool [C, H, W], True where not measured.

    A fill inside the range of measurements (0; 255 in 8 bit) counts only where every band holds it.
    """
    missing = np.isnan(pixels) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, bool)
    ambiguous = missing.copy()
    for band, fill in enumerate(nodata):
        if fill is not None and not math.isnan(fill):
            measurable = fill == 0 or (fill == 255 and pixels.dtype == np.uint8)
            (ambiguous if measurable else missing)[band] |= pixels[band] == fill
    if sensor.name == "modis":
        missing |= pixels == MODIS_FILL
    return missing | ambiguous.all(axis=0)


def looks_like_decibel(pixels: np.ndarray) -> bool:
    """Whether the median is negative, which linear power cannot be. NaN: missing."""
    return bool(np.nanmedian(pixels) < 0) if np.isfinite(pixels).any() else False
