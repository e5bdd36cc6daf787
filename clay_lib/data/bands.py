"""Bands of an image: names, fill values and decibel, without a raster library.

Every reader (arrays, xarray, raster files, labeled sets) decides here which band is which (`match_bands`), which
pixels were measured (`missing_pixels`, `radar_holes`), in which units (`header_units`, with FACTS of each sensor) and
whether radar is in decibel already (`looks_like_decibel`).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from clay_lib.errors import ContractError, warn
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
ALIASES = {  # other names of bands -> those of the sensors, of which each sensor has one or none
    "rededge1": "re1 redge1 vre1 rededge705 rededge071", "rededge2": "re2 redge2 vre2 rededge740 rededge075",
    "rededge3": "re3 redge3 vre3 rededge783 rededge078",
    "nir": "nir1 nearinfrared nir842 nirbroad", "nir08": "nir2 nir8a nearinfrared narrownir nirnarrow nir865 nir rededge4 re4",
    "swir16": "swir1 shortwaveinfrared1 swir1610", "swir22": "swir2 shortwaveinfrared2 swir2190",
}  # fmt: skip
# Layers of a product that are no band of any sensor here: left out silently.
AUXILIARY = re.compile(
    r"scl|cloud|snow|aot|wvp|qa|mask|tci|alpha|coastal|aerosol|cirrus|water|thermal|lwir|tir|pan|angle"
)
MODIS_FILL = 32767
OFFSET = -1000  # which Sentinel-2's numbers need since processing baseline 04.00
SENTINEL_2_NAME = re.compile(r"S2[A-D]_MSIL(?P<level>1C|2A)_(?P<when>\d{8}T\d{6})_N(?P<baseline>\d{4})_")
PRODUCT_NAMES = (  # (first word of the sensors' names, pattern of their files' names)
    ("sentinel-2", SENTINEL_2_NAME),
    ("sentinel-2", re.compile(r"T\d{2}[A-Z]{3}_(?P<when>\d{8}T\d{6})_")),
    ("sentinel-2", re.compile(r"HLS\.S30\.T\w{5}\.(?P<when>\d{7}T\d{6})")),  # by the day of the year
    ("landsat", re.compile(r"L[COTEM]0[4-9]_L(?P<level>[12])[A-Z]{2}P?_\d{6}_(?P<when>\d{8})_")),
    ("landsat", re.compile(r"HLS\.L30\.T\w{5}\.(?P<when>\d{7}T\d{6})")),
    ("landsat", re.compile(r"L[COTEM][4-8]\d{6}(?P<when>\d{7})[A-Z]{3}")),  # before the collections
    ("sentinel-1", re.compile(r"S1[A-D]_[A-Z0-9]{2}_\w{4}_\w{4}_(?P<when>\d{8}T\d{6})_")),
    ("naip", re.compile(r"m_\d{7}_[ns][ew]_\d{2}_\w{1,3}_(?P<when>\d{8})(?!\d)")),
    ("modis", re.compile(r"M[COY]D\w+\.A(?P<when>\d{7})\.")),
)
LEVELS = {"sentinel-2-l2a": "2A", "landsat-c2l1": "1", "landsat-c2l2-sr": "2"}


@dataclass(frozen=True)
class Facts:
    """zero, one: native numbers of reflectance 0 and 1; top: at the top of the atmosphere; least: no median lies below;
    bits: of an aerial camera's file; since: first image, ISO date; lands: boxes (west, south, east, north) of all images.
    """

    zero: float = 0.0
    one: float | None = None
    top: bool = False
    least: float = -1000.0
    bits: int | None = None
    since: str = ""
    lands: tuple[tuple[float, float, float, float], ...] = ()
    fix: str = "multiply by 10000"  # reflectance 0 to 1 -> native numbers


UNITED_STATES = ((-125.5, 24.0, -66.0, 49.5), (-180.0, 51.0, -129.0, 72.0), (-161.0, 18.5, -154.0, 22.5))
# Sources: USGS Landsat Collection 2 level 1 and 2 product guides (scale and offset), ESA Sentinel-2 L2A and MODIS
# MCD43A4/MOD09 product pages (x 10000); launches: ESA, NASA/USGS, Planet, Satellogic. C2 L2 reaches back to Landsat 4.
FACTS = {
    "sentinel-2-l2a": Facts(one=10_000, since="2015-06-23"),
    "planetscope-sr": Facts(one=10_000, since="2014-01-09"),
    "landsat-c2l1": Facts(5000, 55_000, True, 4000, since="2013-02-11", fix="native = (value + 0.1) / 0.00002"),
    "landsat-c2l2-sr": Facts(7273, 43_636, False, 5500, since="1982-07-16", fix="native = (value + 0.2) / 0.0000275"),
    "naip": Facts(bits=8, since="2002-01-01", lands=UNITED_STATES, fix="multiply by 255"),
    "linz": Facts(bits=8, lands=((166.0, -48.0, 179.0, -34.0),), fix="multiply by 255"),
    "sentinel-1-rtc": Facts(since="2014-04-03"),
    "modis": Facts(one=10_000, since="1999-12-18"),
    "satellogic-MSI-L1D": Facts(one=10_000, top=True, since="2016-05-30"),
}


class Matched(dict):
    """{sensor band: position in the source}. reasons: {sensor band: what decided it}."""

    def __init__(self, positions: Mapping[str, int], reasons: Sequence[str]):
        super().__init__(positions)
        self.reasons = {name: reasons[i] for name, i in positions.items()}


def match_bands(
    labels: Sequence[str],
    sensor: Sensor,
    bands: Bands,
    source: str,
    sample: Callable[[], np.ndarray] | None = None,
    when=None,
) -> Matched:
    """{sensor band: position in labels}, in the caller's order, else in the sensor's, with what decided each.

    labels: the description of each band in the source, "" where there is none. bands: {sensor band: 1-based number}; or
    names: those to take if the labels hold all of them, else one for each band in the source's order, None to leave it
    out; or None: the labels decide, else the number of bands. source: its name, for the mission and for messages.
    sample: returns some pixels [C, ...] of the source; called only where the number of bands fits two layouts.
    Raises ContractError where nothing names the bands, or two labels mean the same band.
    """
    product, level = product_name(source), LEVELS.get(sensor.name)
    own = sensor.name.startswith(product.get("mission", "")) or sensor.name not in FACTS
    if not own and bands is None:
        found, cause = f"{source}, by its name of {product['mission']}", "another sensor; bands=[...] takes it as it is"
        raise ContractError("sensor", found, f"a product of {sensor.name}", cause)
    if own and level and product.get("level", level) != level:
        found, expected = f"level {product['level']} in the name of {source}", f"level {level}, as {sensor.name}"
        cause = "another product: download the other level, or convert it (sen2cor)"
        raise ContractError("sensor", found, expected, cause)
    labels = [""] * len(labels) if _uninformative(labels) else labels
    numbers = band_numbers(sensor, source, labels, _first_date(when) or product.get("when", ""))
    names = [recognize_band(label, sensor, numbers) for label in labels]
    requested = set(bands) if isinstance(bands, (list, tuple)) else set()
    places = range(1, len(labels) + 1)
    if bands is not None and not (requested and requested <= set(names) - {None}):
        return Matched(_explicit_bands(len(labels), sensor, bands), [f"bands=[...], band {i}" for i in places])
    reasons = [f"its name, {label!r}" for label in labels]
    if not any(names):
        names, order = _layout(labels, sensor, numbers, source, sample)
        reasons = [f"{order}, band {i} of {len(labels)}" for i in places]
    elif lost := [label for label, name in zip(labels, names, strict=True) if name is None and not _auxiliary(label)]:
        missing = [name for name in sensor.band_names if name not in names]
        if missing:
            warn(
                f"bands {lost} of {source} are unknown and left out; {missing} of {sensor.name} are missing: name them with bands=[...]"
            )
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        claims = [label for label, name in zip(labels, names, strict=True) if name in repeated]
        cause = "two scenes or two resolutions in one folder: hand in a list of files, or bands="
        raise ContractError("bands", f"{claims}, all read as {repeated}", "one layer a band", cause)
    if bands is not None:
        sensor.indices(bands)
    taken = bands or [name for name in sensor.band_names if name in names]  # the caller's are all labeled
    return Matched({name: names.index(name) for name in taken}, reasons)


def recognize_band(label: str, sensor: Sensor, numbers: Mapping[str, str]) -> str | None:
    """The one band that a label means ("B8A", "SR_B4", "band 3 reflectance", "vv", "nir08"), or None."""
    if label in sensor.band_names:
        return label
    text = re.sub(r"red_edge_?", "rededge", "_".join(words(label)))
    by_name = {
        name for name in sensor.band_names if re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", text)
    }
    by_name = {name for name in by_name if not any(name != other and name in other for other in by_name)}
    by_number = re.findall(r"(?<![a-z0-9])b(?:and)?_?0*([1-9][0-9]?a?)(?![a-z0-9])", text)
    matches = by_name or {numbers[number] for number in by_number if number in numbers} or _by_alias(text, sensor)
    return matches.pop() if len(matches) == 1 else None


def product_name(source: str) -> dict[str, str]:
    """What a product's own name says, as far as it does: mission, when (ISO 8601, UTC), level, Sentinel-2's baseline.

    source: a path; the innermost file or folder that has a product's name counts.
    """
    for part in reversed(re.split(r"[/\\]", source)):
        for mission, pattern in PRODUCT_NAMES:
            if match := pattern.search(part):
                day, at, hour = match["when"].partition("T")
                try:
                    moment = datetime.strptime(
                        day + hour, ("%Y%j" if len(day) == 7 else "%Y%m%d") + "%H%M%S" * bool(at)
                    )
                except ValueError:
                    continue
                text = moment.isoformat() if at else moment.date().isoformat()
                own = match.groupdict() | {"mission": mission, "when": text}
                # the level and baseline of a .SAFE folder around a file T36MXE_20230610T074621_B02_10m.jp2
                outer = [*SENTINEL_2_NAME.finditer(source.rpartition(part)[0])]
                return outer[-1].groupdict() | own if outer else own
    return {}


def header_date(tags: Mapping) -> str | None:
    """The acquisition date in tags or attributes, as xarray writes it; TIFF's DateTime is when the file was written."""
    text = str(tags.get("datetime"))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.isoformat() if ":" in text else moment.date().isoformat()  # a date alone has no hour


def has_offset(source: str) -> bool:
    """Whether Sentinel-2's numbers carry an offset of 1000, by the baseline in the product's name."""
    return product_name(source).get("baseline", "") >= "0400"


def _by_alias(text: str, sensor: Sensor) -> set[str]:
    known = {name for name, aliases in ALIASES.items() if text.replace("_", "") in aliases.split()}
    return {min(known & {*sensor.band_names})} if known & {*sensor.band_names} else set()


def _uninformative(labels: Sequence[str]) -> bool:
    """Whether the labels are all the same, or "Band 1", "Band 2" and so on: no more than the order in the file."""
    counted = (rf"(?:band|layer)?[ _-]?0*{n}" for n in range(1, len(labels) + 1))
    same = len(labels) > 1 and len(set(labels)) == 1
    return same or all(re.fullmatch(n, label.strip().lower()) for n, label in zip(counted, labels, strict=True))


def _auxiliary(label: str) -> bool:
    text = "_".join(words(label))
    return not text or bool(AUXILIARY.search(text) or re.search(r"(?<![a-z0-9])b(?:and)?_?0*[1-9]", text))


def words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def _first_date(when) -> str:
    """ISO text of the earliest known date of one or many, as `Clay.embed` takes them."""
    dates = when if isinstance(when, (list, tuple, np.ndarray)) else [when]
    return min((str(date) for date in dates if date is not None and str(date) != "NaT"), default="")


def band_numbers(sensor: Sensor, source: str, labels: Sequence[str] = (), when: str = "") -> dict[str, str]:
    """{a product's band number: the sensor's band}; Landsat 4 to 7 by the name (LT05..., LE07...), by a missing B6 or by
    a date before 2013, when Landsat 8 began."""
    if sensor.name.startswith("sentinel-2"):
        return SENTINEL_2
    if sensor.name.startswith("landsat"):
        older = re.search(r"(?:^|[^a-z0-9])l[etm]?0?[457]", re.split(r"[/\\]", source)[-1].lower())
        numbers = {number for label in labels for number in re.findall(r"b(?:and)?_?0*(\d+)$", "_".join(words(label)))}
        older = older or "1900" < when[:4] < "2013"
        return LANDSAT_4_TO_7 if older or set("123457") <= numbers and "6" not in numbers else LANDSAT_8
    return {str(i): name for i, name in enumerate(sensor.band_names, start=1)}


def has_layout(sensor: Sensor, count: int) -> bool:
    """Whether `count` bands without names are a known product of the sensor."""
    return count == len(sensor.bands) or any(count == len(text.split()) for text in LAYOUTS.get(sensor.name, ()))


def _layout(
    labels: Sequence[str], sensor: Sensor, numbers: Mapping[str, str], source: str, sample
) -> tuple[list[str | None], str]:
    """(bands of a source without labels, by how many there are; the order that is assumed)."""
    all_bands = f"{sensor.name}: {list(sensor.band_names)}"
    if len(labels) == 1 and len(sensor.bands) > 1:
        cause = "a label raster, or one band of several: hand in the folder of all, or name it, bands=['red']"
        raise ContractError("bands", f"one band in {source}", f"the {len(sensor.bands)} of {all_bands}", cause)
    if any(labels):
        cause = "another sensor, or custom names: give bands=[...], one name per band, None to leave a band out"
        raise ContractError("bands", f"{list(labels)} in {source}", f"names of {all_bands}", cause)
    if len(labels) == len(sensor.bands):
        return list(sensor.band_names), "the sensor's order"
    layouts = [text.split() for text in LAYOUTS.get(sensor.name, ())]
    layout = next((layout for layout in layouts if len(layout) == len(labels)), None)
    if layout is None:
        raise ContractError(
            "bands", f"{len(labels)} bands without descriptions in {source}", f"the {len(sensor.bands)} of {all_bands}",
            "another sensor, several scenes at once, or more bands than it has: name them in file order, "
            "bands=['blue', None, ...], or by number, bands={'red': 3, ...}",
        )  # fmt: skip
    names = [numbers.get(number) for number in layout]
    if "8a" not in layout or sample is None:
        return names, "the product's order"
    last = [numbers.get(number) for number in layout if number != "8a"] + ["nir08"]
    evidence = _b8a_last(sample())
    if evidence > 0.5:
        warn(f"{source}: {len(labels)} bands without names, B8A last by their spectra, as in EuroSAT: bands={last}")
        return last, "the spectra: B8A last"
    if evidence > -0.5:
        warn(
            f"{source}: {len(labels)} bands without names, read in ESA's order, bands={names}; the spectra cannot tell "
            f"this from the order with B8A last (EuroSAT): bands={last}. Pass the right one"
        )
    return names, "ESA's order"


def _b8a_last(sample: np.ndarray) -> float:
    """Evidence on where B8A is among 12 or 13 bands of Sentinel-2 [C, ...]: last if positive, else after B8.

    B8A resembles B8 on every surface, in its level and from pixel to pixel. B10 (of 13) sees no ground and is the darkest; B9 (of 12) resembles B8 too.
    """
    C = len(sample)
    pixels = sample.reshape(C, -1).astype(np.float64)
    known = np.isfinite(pixels) & (pixels > 0)
    pixels = pixels[:, known.all(axis=0) if C == 12 else known.any(axis=0)]
    if not pixels.size:
        return 0.0
    distance = np.median(np.abs(pixels - pixels[7]), axis=1) / max(np.median(pixels[7]), 1e-9) + 0.01  # [C]
    with np.errstate(all="ignore"):
        unlike = 1.01 - np.nan_to_num(np.corrcoef(pixels)[7])  # [C]; a flat image correlates with nothing
    evidence = np.log(distance[8] / distance[-1]) + np.log(unlike[8] / unlike[-1])
    if C == 12:
        return float(evidence + np.log(distance[9] / distance[-1]))
    ninth, tenth = np.median(pixels[9]), np.median(pixels[10])
    return float(evidence + np.log((tenth + 1) / (ninth + 1)))


def _explicit_bands(count: int, sensor: Sensor, bands: Bands) -> dict[str, int]:
    """{sensor band: position} from the caller's `bands`, for a source of `count` bands without names."""
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


def header_units(scale: float, offset: float, sensor: Sensor) -> tuple[float, float]:
    """(scale, offset) of a file's header -> (scale, offset) from stored to the sensor's native numbers.

    A header turns stored numbers into physical ones. If the sensor measures reflectance and the scale is below 0.01,
    as in Landsat (0.0000275) and Sentinel-2 (0.0001), these are reflectance 0 to 1; else native numbers or decibel.
    """
    facts = FACTS.get(sensor.name, Facts())
    if (scale, offset) == (1, 0) or not scale or facts.one is None or abs(scale) >= 0.01:
        return (scale, offset) if scale else (1.0, 0.0)
    span = facts.one - facts.zero
    return round(scale * span, 4), round(offset * span + facts.zero)


def missing_pixels(pixels: np.ndarray, nodata: Sequence[float | None], sensor: Sensor, zero: float = 0.0) -> np.ndarray:
    """Pixels [C, H, W] in the dtype they were stored in, nodata one a band -> bool [C, H, W], True where not measured.

    NaN and infinities are missing too, and zero in every band, which products leave outside the scene, tagged or not.
    A fill inside the range of measurements (0; 255 in 8 bit) counts only where every band holds it.
    zero: what a stored zero has become, of numbers that were converted on opening.
    """
    missing = np.zeros(pixels.shape, bool)
    if pixels.dtype.kind == "f":
        with np.errstate(over="ignore"):
            missing = ~np.isfinite(pixels.astype(np.float32, copy=False))
        if infinite := int(missing.sum() - np.isnan(pixels).sum()):
            warn(f"{infinite} infinite numbers count as missing: a division by zero, or the logarithm of zero")
    empty = missing | (pixels == np.asarray(zero, pixels.dtype))
    for band, fill in enumerate(nodata):
        if fill is not None and not math.isnan(fill):
            measurable = fill == 0 or (fill == 255 and pixels.dtype == np.uint8)
            (empty if measurable else missing)[band] |= pixels[band] == fill
    if sensor.name == "modis":
        missing |= pixels == MODIS_FILL
    return missing | empty.all(axis=0)


def measured(pixels: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Pixels of any dtype as float32, NaN where `missing`, of the same shape, is True."""
    with np.errstate(over="ignore"):
        out = pixels.astype(np.float32)
    out[missing] = np.nan
    return out


def looks_like_decibel(pixels: np.ndarray) -> bool:
    """Whether the median is negative, which linear power cannot be. NaN: missing; 0 is the usual fill of both."""
    measured = pixels[np.isfinite(pixels) & (pixels != 0)]
    return bool(measured.size and np.median(measured) < 0)


def radar_holes(pixels: np.ndarray, in_decibel: bool) -> np.ndarray:
    """Radar [..., C, H, W] -> bool, True where nothing was measured: power at or below zero, or 0 dB in every band."""
    if in_decibel:
        return np.broadcast_to((pixels == 0).all(axis=-3, keepdims=True), pixels.shape)
    return pixels <= 0
