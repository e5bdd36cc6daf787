"""STAC items of an archive: which asset holds each band, and how its stored numbers become native ones."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import pystac
import shapely
import shapely.geometry
from odc.geo.geobox import GeoBox

from clay_lib.data.georeference import center_longitude, cut_at_antimeridian
from clay_lib.errors import ContractError
from clay_lib.sensors import METERS_PER_DEGREE, SENSORS, Sensor

OFFSET_BASELINE = 4.0  # Sentinel-2's processing baseline of January 2022: since then 1000 is added to every number
BASELINE_OFFSET = -0.1  # the reflectance that undoes it
BLOCK, HEADER, PACKED = 512, 32_768, 0.7  # px, bytes, compressed share: as in the public archives' files
ITEM_SIZES = {"uint8": 1, "int8": 1, "float32": 4, "float64": 8, "uint32": 4}  # bytes; others: 2


@dataclass(frozen=True)
class Archive:
    """One archive of one sensor.

    assets: {band: asset key, or key.n for the n-th band of a file}. kind: "api", "static" (a catalog without a search)
    or "files". crs: "utm"; "utm-north", northern zones on both hemispheres (Landsat); or the one of all its tiles.
    Pixel corners lie at anchor modulo gsd, a pair where x and y differ.
    native, scaling: {scale, offset}, see archives.yaml. baseline: Sentinel-2's offset follows the processing baseline.
    nodata: used where neither item nor file gives one; shared_fill: a fill that counts only where all bands hold it,
    since single bands may measure that value. alpha: files may have an alpha band, or GDAL's mask.
    mask, mask_bits: the asset that classifies pixels, and the classes that hide the ground; mask_fill: those of its
    values that are fill and no clouds, beside which nothing is hidden by a dilation.
    alternate: which of an asset's alternate addresses to read; signing: "", "planetary-computer" or "requester-pays".
    """

    name: str
    sensor: str
    url: str
    assets: Mapping[str, str]
    collection: str = ""
    kind: str = "api"
    crs: str = "utm"
    anchor: float | tuple[float, float] = 0.0  # m
    gsd: float = 0.0  # m; 0: the sensor's own
    native: Mapping[str, float] | None = None
    scaling: Mapping[str, float] = field(default_factory=dict)
    baseline: bool = False
    nodata: float | None = None
    shared_fill: float | None = None
    mask: str = ""
    mask_bits: tuple = ()
    mask_fill: tuple = ()
    alpha: bool = False
    alternate: str = ""
    signing: str = ""

    def __post_init__(self):
        own = SENSORS[self.sensor].gsd if self.sensor in SENSORS else 0.0
        object.__setattr__(self, "gsd", float(self.gsd or own))


@dataclass(frozen=True, eq=False)
class Acquisition:
    """The items of one sensor and one solar day over an area.

    when: UTC, of the first item; cloud_cover: percent, mean of the items that state it.
    """

    sensor: Sensor
    archive: Archive
    when: datetime | None
    items: tuple[pystac.Item, ...]
    cloud_cover: float | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(item.id for item in self.items)

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the sensor that the archive has, in the sensor's order."""
        return tuple(band for band in self.sensor.band_names if band in self.archive.assets)

    @property
    def footprint(self) -> shapely.Geometry:
        """Union of the items' outlines, WGS84."""
        return shapely.union_all([shapely.geometry.shape(item.geometry) for item in self.items])


@dataclass(frozen=True)
class Source:
    """One band of one file: native = stored * gain + bias."""

    href: str
    index: int  # 1-based
    gain: float = 1.0
    bias: float = 0.0
    nodata: float | None = None  # as the item states it
    gsd: float = 0.0  # m; 0: not stated
    size: float = 0.0  # bytes of this band in the file; 0: not stated
    itemsize: int = 2  # bytes of a number


def sources_of(item: pystac.Item, archive: Archive, bands: Sequence[str]) -> dict[str, Source]:
    """{band: Source} of one item. Raises ContractError where a band or the scaling of its numbers is missing."""
    return {band: _source(item, archive, archive.assets[band]) for band in bands}


def mask_of(item: pystac.Item, archive: Archive) -> Source | None:
    """The classified pixels of one item; None where the archive has none."""
    return _source(item, archive, archive.mask, scaled=False) if archive.mask else None


def mean_cloud_cover(items: Sequence[pystac.Item]) -> float | None:
    """Percent, the mean over the items that state it."""
    covers = [cover for item in items if (cover := item.properties.get("eo:cloud_cover")) is not None]
    return sum(covers) / len(covers) if covers else None


def moment_of(item: pystac.Item) -> datetime | None:
    """Time of acquisition, UTC; of a composite, the first of its days."""
    when = item.datetime or item.common_metadata.start_datetime
    return None if when is None else when.replace(tzinfo=when.tzinfo or UTC).astimezone(UTC)


def solar_day(item: pystac.Item) -> date:
    """The local date of an item: scenes of one pass share it, wherever midnight UTC falls."""
    longitude = center_longitude(shapely.geometry.shape(item.geometry))
    return (moment_of(item) + timedelta(hours=longitude / 15)).date()


def estimate_bytes(acquisition: Acquisition, geobox: GeoBox) -> int:
    """Bytes that reading the grid would fetch, estimated from the items' metadata: no file is opened.

    Complete internal tiles are fetched, BLOCK pixels a side. Files whose size is not stated count PACKED bytes a byte.
    """
    total, archive = 0.0, acquisition.archive

    @functools.cache
    def fetched(gsd: float) -> shapely.Geometry:
        return cut_at_antimeridian(geobox.buffered(BLOCK / 2 * gsd).footprint("EPSG:4326").geom)

    for item in acquisition.items:
        shape = shapely.geometry.shape(item.geometry)
        item_area = shape.area * METERS_PER_DEGREE**2 * math.cos(math.radians(shape.centroid.y))
        for source in filter(None, [*sources_of(item, archive, acquisition.bands).values(), mask_of(item, archive)]):
            gsd = source.gsd or archive.gsd
            size = source.size or item_area / gsd**2 * source.itemsize * PACKED
            share = shape.intersection(fetched(gsd)).area / shape.area
            total += size * share + min(HEADER, size) * (share > 0)
    return round(total)


def _source(item: pystac.Item, archive: Archive, key: str, *, scaled: bool = True) -> Source:
    name, _, number = key.partition(".")
    if name not in item.assets:
        found, product = f"{item.id}, which has {sorted(item.assets)}", archive.collection or archive.name
        cause = f"another product than {product}, or an item published without this band"
        raise ContractError("item", found, f"the asset {name!r}", cause)
    asset, index = item.assets[name], int(number or 1)
    extra = asset.extra_fields
    bands = extra.get("raster:bands") or extra.get("bands") or []
    metadata = bands[index - 1] if index <= len(bands) else {}
    gain, bias = 1.0, 0.0
    if scaled and archive.native is not None:
        scale = _scaling(item, archive, metadata, "scale")
        offset = (
            _baseline_offset(item, metadata) if archive.baseline else _scaling(item, archive, metadata, "offset", 0.0)
        )
        gain = round(scale / archive.native["scale"], 10)  # rounded: 0.0001 / 0.0001 is 1
        bias = round((offset - archive.native["offset"]) / archive.native["scale"], 6)
    nodata = metadata.get("nodata")
    in_file = len(extra.get("raster:bands") or extra.get("eo:bands") or [{}])
    return Source(
        _href(asset, archive, item),
        index,
        gain,
        bias,
        None if nodata is None else float(nodata),
        gsd=float(metadata.get("spatial_resolution") or extra.get("gsd") or 0),
        size=extra.get("file:size", 0) / in_file,
        itemsize=ITEM_SIZES.get(metadata.get("data_type"), 1 if archive.shared_fill is not None else 2),
    )


def _href(asset: pystac.Asset, archive: Archive, item: pystac.Item) -> str:
    alternate = asset.extra_fields.get("alternate", {}).get(archive.alternate, {})
    href = alternate.get("href") or asset.get_absolute_href() or asset.href
    if "://" not in href and not href.startswith("/"):
        raise ContractError("item", f"{item.id}: {href}", "an absolute address", "an item without its own address")
    return href


def _scaling(item: pystac.Item, archive: Archive, metadata: dict, key: str, default: float | None = None) -> float:
    """scale or offset from an item's metadata, else from the archive's profile."""
    value = metadata.get(f"raster:{key}", metadata.get(key, archive.scaling.get(key, default)))
    if value is None:
        found, cause = f"{item.id}, without {key} in its raster:bands", "another archive's item, or an older catalog"
        raise ContractError("item", found, f"{key}, since {archive.sensor} is stored in several units", cause)
    return float(value)


def _baseline_offset(item: pystac.Item, metadata: dict) -> float:
    """Reflectance to add to Sentinel-2's scaled numbers; 0 where the archive removed the offset and says so."""
    properties = item.properties
    if properties.get("earthsearch:boa_offset_applied") is True:
        return 0.0
    offset = metadata.get("raster:offset", metadata.get("offset"))
    try:
        baseline = float(properties.get("s2:processing_baseline", properties.get("processing:version")))
    except (TypeError, ValueError):
        baseline = None
    if baseline is None and offset is None:
        expected = f"the processing baseline: since {OFFSET_BASELINE:05.2f} the numbers carry an offset of 1000"
        cause = "another archive: subtract the offset from its files and open them with acquisition_from_file"
        raise ContractError("item", f"{item.id}, without s2:processing_baseline", expected, cause)
    if baseline is not None and baseline < OFFSET_BASELINE:
        return 0.0
    return float(offset) if offset else BASELINE_OFFSET if baseline is not None else 0.0
