"""Band names: which band of a file, or which file of a folder, is which band of a sensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from clay_lib.contract import ContractError
from clay_lib.sensors import Sensor

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


def choose(
    labels: Sequence[str], sensor: Sensor, bands: Mapping[str, int] | Sequence[str | None] | None, file: str
) -> dict[str, int]:
    """{sensor band: position in labels}, in the caller's order, else in the sensor's.

    labels: what each band of the file says of itself, "" where it says nothing; file: its name, for the mission and for
    messages; bands: as in `read_scene`. Raises ContractError where nothing names the bands, or two claim one name.
    """
    numbers = numbering(sensor, file)
    names = [recognise(label, sensor, numbers) for label in labels]
    asked = set(bands) if isinstance(bands, (list, tuple)) else set()
    if bands is not None and not (asked and asked <= set(names) - {None}):
        return _as_told(len(labels), sensor, bands)
    if any(names):
        twice = {name for name in names if name and names.count(name) > 1}
        if twice:
            claims = [label for label, name in zip(labels, names, strict=True) if name in twice]
            raise ContractError(
                "bands",
                found=f"{claims}, all read as {sorted(twice)}",
                expected="one layer a band",
                cause="two scenes or two resolutions in one folder: hand in a list of files, or bands=",
            )
    elif len(labels) == len(sensor.bands):
        names = list(sensor.band_names)
    else:
        layouts = [text.split() for text in LAYOUTS.get(sensor.name, ())]
        layout = next((layout for layout in layouts if len(layout) == len(labels)), None)
        if layout is None:
            said = f"described as {list(labels)}" if any(labels) else "without descriptions"
            raise ContractError(
                "bands",
                found=f"{len(labels)} bands {said} in {file}",
                expected=f"the {len(sensor.bands)} of {sensor.name}: {list(sensor.band_names)}",
                cause="another sensor, several scenes at once, or more bands than it has: name them in file order, bands=['blue', None, ...], "
                "or by number, bands={'red': 3, ...}",
            )
        names = [numbers.get(number) for number in layout]
    if bands is not None:  # all of them are labelled
        sensor.indices(bands)
        return {name: names.index(name) for name in bands}
    return {name: names.index(name) for name in sensor.band_names if name in names}


def recognise(label: str, sensor: Sensor, numbers: Mapping[str, str]) -> str | None:
    """The one band that a label speaks of ("B8A", "SR_B4", "band 3 reflectance", "vv", "nir08"), or None."""
    text = re.sub(r"red_edge_?", "rededge", "_".join(words(label)))
    by_name = {
        name for name in sensor.band_names if re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", text)
    }
    by_name = {name for name in by_name if not any(name != other and name in other for other in by_name)}
    by_number = re.findall(r"(?<![a-z0-9])b(?:and)?_?0*([1-9][0-9]?a?)(?![a-z0-9])", text)
    found = by_name or {numbers[number] for number in by_number if number in numbers}
    return found.pop() if len(found) == 1 else None


def words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def _as_told(count: int, sensor: Sensor, bands) -> dict[str, int]:
    if isinstance(bands, Mapping):
        numbers = dict(bands)
    else:
        bands = list(bands) if isinstance(bands, Sequence) and not isinstance(bands, str) else [bands]
        if len(bands) != count:
            raise ContractError(
                "bands",
                found=f"{len(bands)} {'name' if len(bands) == 1 else 'names'}: {bands}",
                expected=f"{count}, one for each band that is there, in its order, None for those to leave out",
                cause="a choice among bands that carry no names: choose by number, from 1, as in bands={'red': 3}",
            )
        sensor.indices([name for name in bands if name is not None])  # refuses repeats, which a dict would swallow
        numbers = {name: i for i, name in enumerate(bands, start=1) if name is not None}
    sensor.indices(list(numbers))
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 1 <= number <= count:
            raise ContractError(
                f"bands[{name!r}]",
                found=repr(number),
                expected=f"a file band number from 1 to {count}",
                cause="numbers count from 1, as in GDAL",
            )
    return {name: number - 1 for name, number in numbers.items()}


def numbering(sensor: Sensor, file: str) -> dict[str, str]:
    if sensor.name.startswith("sentinel-2"):
        return SENTINEL_2
    if sensor.name.startswith("landsat"):
        older = re.search(r"(?:^|[^a-z0-9])l[etm]?0?[457]", re.split(r"[/\\]", file)[-1].lower())  # LE07..., LT05...
        return LANDSAT_4_TO_7 if older else LANDSAT_8
    return {str(i): name for i, name in enumerate(sensor.band_names, start=1)}
