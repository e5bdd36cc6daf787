"""Archives: from an area and dates to looks, the least cloudy first, by STAC.

    >>> looks = find_looks("sentinel-2-l2a", (14.0, 50.0, 14.2, 50.1), "2023-06-01/2023-08-31")
    >>> pixels = read_look(looks[0], geobox)  # native numbers, an xarray Dataset

archive_profiles.py: the archives; archive_items.py: what an item says; archive_reading.py: pixels onto a grid;
archive_access.py: servers that fail; archive_measured.py: where files measured;
archive_files.py: local files the same way; static_catalogue.py: an archive without a search.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from string import ascii_uppercase
from urllib.parse import urljoin

import pystac
import requests
import shapely
import shapely.geometry
import yaml
from pyproj import Transformer
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS, Sensor


@dataclass(frozen=True)
class Archive:
    """One archive of one sensor. assets: {band: asset key, or key.n for the n-th band of a file}.

    crs: "utm"; "utm-north", as Landsat has it: northern zones on both hemispheres; or the one of all its tiles. anchor,
    gsd: metres; pixel corners lie at anchor modulo gsd, a pair where x and y differ.
    native, stated: {scale, offset}, see archives.yaml. baseline: Sentinel-2's offset follows the processing baseline.
    nodata: where neither item nor file says it; together: a fill that counts where all bands hold it, since one band
    may measure it. mask, masks: the asset that classifies pixels, and what hides the ground. alpha: files may have an
    alpha band, or GDAL's mask, inside or beside them.
    alternate: which of an asset's other addresses to read; signing: "", "planetary-computer" or "requester-pays".
    """

    name: str
    sensor: str
    url: str
    assets: Mapping[str, str]
    collection: str = ""
    kind: str = "api"  # or static: a catalogue to walk
    crs: str = "utm"
    anchor: float | tuple[float, float] = 0.0  # m
    gsd: float = 0.0  # m; 0: the sensor's own
    native: Mapping[str, float] | None = None
    stated: Mapping[str, float] = field(default_factory=dict)
    baseline: bool = False
    nodata: float | None = None
    together: float | None = None
    mask: str = ""
    masks: tuple = ()
    alpha: bool = False
    alternate: str = ""
    signing: str = ""

    def __post_init__(self):
        object.__setattr__(
            self, "gsd", float(self.gsd or SENSORS[self.sensor].gsd if self.sensor in SENSORS else self.gsd)
        )
        object.__setattr__(self, "masks", tuple((low, high, tuple(values)) for low, high, values in self.masks))


@dataclass(frozen=True, eq=False)
class Look:
    """What one sensor saw on one solar day. when: UTC, of the first item; cloud_cover: per cent, mean of the items."""

    sensor: Sensor
    archive: Archive
    when: datetime | None
    items: tuple[pystac.Item, ...]
    cloud_cover: float | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(item.id for item in self.items)

    @property
    def footprint(self) -> shapely.Geometry:
        """Where the items are, WGS84."""
        return shapely.union_all([shapely.geometry.shape(item.geometry) for item in self.items])


@functools.cache
def _profiles() -> dict[str, tuple[Archive, ...]]:
    entries = yaml.safe_load(resources.files("clay_lib.areas").joinpath("archives.yaml").read_text())
    return {
        sensor: tuple(Archive(name=name, sensor=sensor, **entry) for name, entry in archives.items())
        for sensor, archives in entries.items()
    }


def archives_of(sensor: str | Sensor) -> list[Archive]:
    """The archives of a sensor, the default first."""
    sensor = SENSORS.resolve(sensor)
    found = _profiles().get(sensor.name)
    if not found:
        raise ContractError(
            "sensor",
            sensor.name,
            f"one of {list(_profiles())}",
            "no public archive of it is known: hand in files instead, with file_look",
        )
    return list(found)


def choose_archive(sensor: Sensor, archive: str | Archive | None) -> Archive:
    """An archive of the sensor by its name; None: the default."""
    if isinstance(archive, Archive):
        return archive
    known = {known.name: known for known in archives_of(sensor)}
    if archive is None:
        return next(iter(known.values()))
    if archive not in known:
        raise ContractError("archive", repr(archive), f"one of {list(known)} for {sensor.name}", "a misspelt name")
    return known[archive]


NEW_BASELINE = 4.0  # of Sentinel-2, January 2022: since then 1000 is added to every number


WIDTHS = {"uint8": 1, "int8": 1, "float32": 4, "float64": 8, "uint32": 4}


BASELINE_OFFSET = -0.1  # reflectance that takes it off again


@dataclass(frozen=True)
class Source:
    """One band of one file, and how its numbers become native: native = stored * gain + bias."""

    href: str
    index: int  # 1-based
    gain: float = 1.0
    bias: float = 0.0
    nodata: float | None = None  # as the item states it
    gsd: float = 0.0  # m; 0: it does not say
    size: float = 0.0  # bytes of this band in the file; 0: it does not say
    width: int = 2  # bytes of a number


def sources_of(item: pystac.Item, archive: Archive, bands) -> dict[str, Source]:
    """{band: Source} of one item. Raises ContractError where it lacks a band, or says too little of its numbers."""
    return {band: _source(item, archive, archive.assets[band]) for band in bands}


def mask_of(item: pystac.Item, archive: Archive) -> Source | None:
    """The classified pixels of one item; None where the archive has none."""
    return _source(item, replace(archive, native=None), archive.mask) if archive.mask else None


def moment_of(item: pystac.Item) -> datetime | None:
    """When it was seen, UTC; of a composite, when its days begin."""
    when = item.datetime or item.common_metadata.start_datetime
    return None if when is None else when.replace(tzinfo=when.tzinfo or UTC).astimezone(UTC)


def solar_day(item: pystac.Item):
    """The local date of an item: scenes of one pass share it, wherever midnight UTC falls."""
    west, _, east, _ = shapely.geometry.shape(item.geometry).bounds
    return (moment_of(item) + timedelta(hours=(west + east) / 2 / 15)).date()


def href_of(asset: pystac.Asset, archive: Archive, item: pystac.Item) -> str:
    alternate = asset.extra_fields.get("alternate", {}).get(archive.alternate, {}) if archive.alternate else {}
    href = alternate.get("href") or asset.get_absolute_href() or asset.href
    if "://" not in href and not href.startswith("/"):
        raise ContractError("item", f"{item.id}: {href}", "an address", "a relative link in an item without a place")
    return href


def _asset(item: pystac.Item, archive: Archive, key: str) -> pystac.Asset:
    if key not in item.assets:
        raise ContractError(
            "item",
            f"{item.id}, which has {sorted(item.assets)}",
            f"the asset {key!r}",
            f"another product than {archive.collection or archive.name} of {archive.sensor}, or an item that was "
            "published without this band",
        )
    return item.assets[key]


def _source(item: pystac.Item, archive: Archive, key: str) -> Source:
    name, _, number = key.partition(".")
    asset, index = _asset(item, archive, name), int(number or 1)
    said = (asset.extra_fields.get("raster:bands") or asset.extra_fields.get("bands") or [{}] * index)[index - 1 :]
    said = said[0] if said else {}
    nodata = said.get("nodata")
    gain, bias = 1.0, 0.0
    if archive.native is not None:
        scale = _stated(item, archive, said, "scale")
        offset = _baseline_offset(item, said) if archive.baseline else _stated(item, archive, said, "offset", 0.0)
        gain = scale / archive.native["scale"]
        bias = (offset - archive.native["offset"]) / archive.native["scale"]
        gain, bias = (round(value, 6) for value in (gain, bias))  # 0.0001 / 0.0001 and 0.1 / 0.0001, without dust
    bands = asset.extra_fields.get("raster:bands") or asset.extra_fields.get("eo:bands") or [{}]
    return Source(
        href_of(asset, archive, item),
        index,
        gain,
        bias,
        None if nodata is None else float(nodata),
        gsd=float(said.get("spatial_resolution") or asset.extra_fields.get("gsd") or 0),
        size=asset.extra_fields.get("file:size", 0) / len(bands),
        width=WIDTHS.get(said.get("data_type"), 1 if archive.together is not None else 2),
    )


def _stated(item: pystac.Item, archive: Archive, said: dict, key: str, default: float | None = None) -> float:
    value = said.get(f"raster:{key}", said.get(key, archive.stated.get(key, default)))
    if value is None:
        raise ContractError(
            "item",
            f"{item.id}, without {key} in its raster:bands",
            f"{key}, since {archive.sensor} is stored in more than one unit",
            "an item of another archive, or of an older catalogue",
        )
    return float(value)


def _baseline_offset(item: pystac.Item, said: dict) -> float:
    """Reflectance to add to Sentinel-2's scaled numbers. Some archives have taken the offset off already and say so."""
    properties = item.properties
    if properties.get("earthsearch:boa_offset_applied") is True:
        return 0.0
    baseline = properties.get("s2:processing_baseline", properties.get("processing:version"))
    stated = said.get("raster:offset", said.get("offset"))
    try:
        baseline = None if baseline is None else float(baseline)
    except ValueError:
        baseline = None
    if baseline is None and stated is None:
        raise ContractError(
            "item",
            f"{item.id}, without s2:processing_baseline",
            f"the processing baseline: since {NEW_BASELINE:05.2f} the numbers carry an offset of 1000",
            "an item of another archive; hand its files to file_look, and take the offset off beforehand",
        )
    if baseline is not None and baseline < NEW_BASELINE:
        return 0.0
    return float(stated) if stated else BASELINE_OFFSET if baseline is not None else 0.0


WORKERS = 12  # requests at once


SHEET = (24_000, 36_000)  # m, width and height of a sheet


ORIGIN = (988_000, 6_234_000)  # NZTM (EPSG:2193), upper left corner of sheet AS00


ROWS = [first + second for first in "ABC" for second in ascii_uppercase]


ROWS = [row for row in ROWS[ROWS.index("AS") : ROWS.index("CK") + 1] if row not in ("BI", "BO", "CI")]  # as the map has


def walk(archive: Archive, shape: shapely.Geometry, start: datetime, end: datetime, *, retry: Retry, timeout) -> list:
    """Items of a catalogue in an area (WGS84) and time."""
    with requests.Session() as session, ThreadPoolExecutor(WORKERS) as pool:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=WORKERS))

        def fetch(address: str) -> tuple[str, dict]:
            answer = session.get(address, timeout=timeout)
            answer.raise_for_status()
            return answer.url, answer.json()

        wanted, level = [], [archive.url]
        while level:  # catalogues hold catalogues or collections, collections hold items
            below: list[str] = []
            for address, content in pool.map(fetch, level):
                if content.get("type") == "Collection":
                    if _meets(content, shape, start, end):
                        wanted += [link for link in _links(address, content, "item") if _may_meet(link, shape)]
                else:
                    below += [link for link in _links(address, content, "child") if _years_meet(link, start, end)]
            level = below
        items = []
        for address, content in pool.map(fetch, wanted):
            item = pystac.Item.from_dict(content)
            item.set_self_href(address)
            first, last = _span(content["properties"])
            if first <= end and last >= start:
                items.append(item)
    return items


def tile_bounds(name: str) -> tuple[float, float, float, float] | None:
    """(left, bottom, right, top) in NZTM of a tile such as BN28_2000_1225: sheet, scale, row and column from 1.

    None for other names.
    """
    found = re.search(r"([A-Z]{2})(\d{2})_(\d+)_(\d{4}|\d{6})(?!\d)", name)
    if not found or found[1] not in ROWS or not 0 < int(found[3]) <= 50_000:
        return None
    half = len(found[4]) // 2
    row, column = int(found[4][:half]), int(found[4][half:])
    width, height = (side * int(found[3]) / 50_000 for side in SHEET)
    left = ORIGIN[0] + SHEET[0] * int(found[2]) + width * (column - 1)
    top = ORIGIN[1] - SHEET[1] * ROWS.index(found[1]) - height * (row - 1)
    return left, top - height, left + width, top


def _links(address: str, content: dict, relation: str) -> Iterator[str]:
    return (urljoin(address, link["href"]) for link in content.get("links", ()) if link.get("rel") == relation)


def _may_meet(address: str, shape) -> bool:
    bounds = tile_bounds(address.rpartition("/")[2])
    if bounds is None:
        return True
    there = Transformer.from_crs("EPSG:4326", "EPSG:2193", always_xy=True).transform_bounds(*shape.bounds)
    return there[0] <= bounds[2] and bounds[0] <= there[2] and there[1] <= bounds[3] and bounds[1] <= there[3]


def _years_meet(address: str, start: datetime, end: datetime) -> bool:
    """Surveys carry their years in the path, .../marlborough_2011-2012_0.4m/...; a season may begin the year before."""
    years = re.search(r"_(\d{4})(?:-(\d{4}))?_[\d.]+m/", address)
    return years is None or int(years[1]) - 1 <= end.year and start.year <= int(years[2] or years[1]) + 1


def _meets(collection: dict, shape, start: datetime, end: datetime) -> bool:
    extent = collection["extent"]
    boxes = [shapely.box(*box[:2], *box[len(box) // 2 :][:2]) for box in extent["spatial"]["bbox"]]  # of 4 or 6 numbers
    spans = [(_moment(a, datetime.min), _moment(b, datetime.max)) for a, b in extent["temporal"]["interval"]]
    return any(box.intersects(shape) for box in boxes) and any(a <= end and b >= start for a, b in spans)


def _span(properties: dict) -> tuple[datetime, datetime]:
    at = properties.get("datetime")
    return (
        _moment(properties.get("start_datetime") or at, datetime.min),
        _moment(properties.get("end_datetime") or at, datetime.max),
    )


def _moment(text: str | None, otherwise: datetime) -> datetime:
    return otherwise.replace(tzinfo=UTC) if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))
