"""Archives: from an area and dates to looks, the least cloudy first, by STAC.

    >>> looks = find_looks("sentinel-2-l2a", (14.0, 50.0, 14.2, 50.1), "2023-06-01/2023-08-31")
    >>> pixels = read_look(looks[0], geobox)  # native numbers, an xarray Dataset

archive_profiles.py: the archives; archive_items.py: what an item says; archive_reading.py: pixels onto a grid;
archive_access.py: servers that fail; archive_measured.py: where files measured;
archive_files.py: local files the same way; static_catalogue.py: an archive without a search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pystac
import requests
import shapely
import shapely.geometry
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3 import Retry

from clay_lib.areas.items import Archive, Look, choose_archive, moment_of, solar_day, walk
from clay_lib.data.bands import MODIS_FILL
from clay_lib.data.rasters import bounds_wgs84, crs_text, cut_at_antimeridian, find_layers
from clay_lib.datacube import parse_when
from clay_lib.errors import ContractError, number
from clay_lib.sensors import SENSORS, Sensor

# ---- Archive items: what an item says of its numbers, and which file and band holds each of ours ----


# ---- A static catalogue: STAC files on a web server without a search, walked so that as little as may be  ----


# ---- Files as an archive: a GeoTIFF, COG, VRT or folder of single-band files becomes a look, read by the  ----


def file_look(path, sensor: str | Sensor, *, when: str | datetime | None = None, bands=None) -> Look:
    """A raster file, a folder of single-band files or a list of them as a Look of `sensor`, in native numbers.

    bands: as in `scenes.read_scene`. Nothing but headers is read. Raises ContractError for what cannot be named or
    has no place on Earth.
    """
    sensor = SENSORS.resolve(sensor)
    layers = find_layers(path, sensor, bands)
    finest = max(layers.values(), key=lambda layer: layer.height * layer.width)
    if finest.crs is None:
        raise ContractError(
            "path",
            f"{path}, without a CRS",
            "a raster with its place on Earth",
            "a picture, or an export that left the georeference out: embed it with clay_lib.clay instead",
        )
    when = parse_when(when)
    when = when if when is None or when.tzinfo else when.replace(tzinfo=UTC)
    shape = _outline(*bounds_wgs84(finest.crs, finest.transform, finest.height, finest.width))
    item = pystac.Item(
        Path(finest.path).stem,
        shapely.geometry.mapping(shape),
        list(shape.bounds),
        when or datetime(2000, 1, 1, tzinfo=UTC),
        {},
    )
    for band, layer in layers.items():
        said = {"data_type": layer.dtype} | ({} if layer.nodata is None else {"nodata": layer.nodata})
        href = layer.path if "://" in layer.path or layer.path.startswith("/vsi") else str(Path(layer.path).resolve())
        item.add_asset(band, pystac.Asset(href, extra_fields={"raster:bands": [said] * layer.index}))
    fills = {layer.nodata for layer in layers.values()} - {None}
    shared = [fill for fill in fills if fill == 0 or (fill == 255 and finest.dtype == "uint8")]
    a, b, left, d, e, top = finest.transform
    gsd = abs(a)
    own = finest.crs.is_projected and b == d == 0 and math.isclose(gsd, abs(e), rel_tol=1e-6)
    grid = (
        dict(crs=crs_text(finest.crs), gsd=gsd, anchor=(left % gsd, top % gsd)) if own else {}
    )  # else squares of the sensor's
    archive = Archive(
        name="files",
        sensor=sensor.name,
        url=str(path),
        kind="files",
        assets={band: f"{band}.{layer.index}" for band, layer in layers.items()},
        nodata=MODIS_FILL if sensor.name == "modis" else None,
        together=shared[0] if shared else None,
        alpha=any(layer.alpha or layer.masked for layer in layers.values()),
        **(grid or {"gsd": sensor.gsd}),
    )
    return Look(sensor, archive, when, (item,))


def _outline(west: float, south: float, east: float, north: float) -> shapely.Geometry:
    """A box in WGS84; two where west > east, across the antimeridian."""
    if west < -180.001 or east > 180.001:
        raise ContractError(
            "path",
            f"longitudes {west:.6g} to {east:.6g}",
            "-180 to 180 in a raster in degrees",
            "a raster across the antimeridian, or one that counts to 360: bring it to UTM (gdalwarp -t_srs), or cut it",
        )
    box = shapely.box(west, south, east, north)
    return box if west <= east else cut_at_antimeridian(box)


# ---- Archives: from an area and dates to looks, the least cloudy first, by STAC ----

RETRIES, BACKOFF = 5, 0.5  # of a request that met a 429, a 5xx or no answer, after 0.5, 1, 2, ... s
TIMEOUT = (10, 60)  # s to connect, s to answer
PAGE = 250  # items a request


def find_looks(
    sensor: str | Sensor,
    area,
    dates,
    *,
    archive: str | Archive | None = None,
    url: str | None = None,
    max_cloud: float = 100.0,
    limit: int | None = None,
) -> list[Look]:
    """What an archive holds of an area: one Look a solar day (an aerial survey), the least cloudy first, then by date.

    area: as in `parse_area`. dates: "2023-06-01/2023-08-31", one day, or a pair of dates, both included. archive: a
    name in archives_of(sensor), its first by default; url: another server with the same collections, such as
    `local_archive.serve_archive` gives. max_cloud: per cent, items above are left out, those without a figure stay.
    Raises ContractError for an empty search, and for a server that does not answer after all retries.
    """
    sensor = SENSORS.resolve(sensor)
    archive = choose_archive(sensor, archive)
    if url:
        whole = archive.kind == "api" or url.endswith(".json")
        archive = replace(archive, url=url if whole else f"{url.rstrip('/')}/catalog.json")
    shape, (start, end) = parse_area(area), _dates(dates)
    max_cloud = number("max_cloud", max_cloud)
    items = _fetch(archive, shape, start, end)
    items = [item for item in items if shapely.geometry.shape(item.geometry).intersects(shape)]
    clear = [item for item in items if (item.properties.get("eo:cloud_cover") or 0) <= max_cloud]
    if not clear:
        raise ContractError(
            "search",
            f"{len(items)} items, none with at most {max_cloud:g} % of clouds" if items else "no items",
            f"{sensor.name} in {archive.name} ({archive.url}), {start:%Y-%m-%d} to {end:%Y-%m-%d}, "
            f"around {shape.centroid.y:.3f}, {shape.centroid.x:.3f}",
            "clouds: allow more, or a longer time" if items else _nothing(archive),
        )
    days: dict = {}
    for item in sorted(clear, key=lambda item: (moment_of(item), item.id)):
        key = item.collection_id if archive.kind == "static" else solar_day(item)  # a survey takes a season
        days.setdefault(key, []).append(item)
    looks = [_look(sensor, archive, items) for items in days.values()]
    looks.sort(key=lambda look: (100.0 if look.cloud_cover is None else look.cloud_cover, look.when))
    return looks[:limit]


def parse_area(area) -> shapely.Geometry:
    """An area in WGS84: (west, south, east, north), a shapely geometry, a GeoDataFrame or GeoSeries, or a file.

    Files: GeoJSON, GeoPackage, GeoParquet. Frames and files are brought to WGS84 by their CRS.
    """
    if isinstance(area, (str, Path)):
        area = _area_file(Path(area))
    if hasattr(area, "to_crs"):
        area = (area.to_crs("EPSG:4326") if area.crs is not None else area).geometry.union_all()
    elif not isinstance(area, shapely.Geometry):
        try:
            west, south, east, north = (number("area", value) for value in area)
        except TypeError:
            west = south = east = north = 0.0
        except ValueError as error:
            if isinstance(error, ContractError):
                raise
            west = south = east = north = 0.0
        if not (west < east and south < north):
            raise ContractError(
                "area",
                repr(area),
                "(west, south, east, north) in degrees, a geometry, or a file of one",
                "another order of the four numbers, or an area across the antimeridian: cut it in two",
            )
        area = shapely.geometry.box(west, south, east, north)
    west, south, east, north = area.bounds
    if area.is_empty or not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        raise ContractError(
            "area",
            "an empty geometry" if area.is_empty else f"bounds {tuple(round(v, 3) for v in area.bounds)}",
            "degrees, longitude -180 to 180, latitude -90 to 90",
            "metres of a projection: hand in a GeoDataFrame with its CRS, or degrees",
        )
    return area


def _area_file(path: Path):
    import geopandas

    if not path.is_file():
        raise ContractError("area", str(path), "a file", "a misspelt name, or another folder")
    try:
        parquet = path.suffix.lower() in (".parquet", ".geoparquet")
        return geopandas.read_parquet(path) if parquet else geopandas.read_file(path)
    except Exception as error:  # of three libraries
        raise ContractError("area", f"{path}: {error}", "GeoJSON, GeoPackage or GeoParquet", "another format") from None


def _look(sensor: Sensor, archive: Archive, items: Sequence[pystac.Item]) -> Look:
    covers = [cover for item in items if (cover := item.properties.get("eo:cloud_cover")) is not None]
    return Look(sensor, archive, moment_of(items[0]), tuple(items), sum(covers) / len(covers) if covers else None)


def _dates(dates) -> tuple[datetime, datetime]:
    """First and last moment, UTC."""
    try:
        parts = dates.split("/") if isinstance(dates, str) else [dates] if isinstance(dates, date) else list(dates)
        start, end = (p if isinstance(p, date) else datetime.fromisoformat(p.strip()) for p in (parts[0], parts[-1]))
        if len(parts) > 2:
            raise ValueError
    except (ValueError, TypeError, AttributeError, IndexError):
        raise ContractError(
            "dates", repr(dates), "'2023-06-01/2023-08-31', one day, or a pair of dates", "another order"
        ) from None
    start, end = (value if isinstance(value, datetime) else datetime(*value.timetuple()[:3]) for value in (start, end))
    if (end.hour, end.minute, end.second) == (0, 0, 0):
        end = end.replace(hour=23, minute=59, second=59)
    if end < start:
        raise ContractError("dates", repr(dates), "the earlier date first", "swapped dates")
    return tuple(value.replace(tzinfo=value.tzinfo or UTC) for value in (start, end))


def _fetch(archive: Archive, shape, start: datetime, end: datetime) -> list[pystac.Item]:
    """All items in a box and time; clouds are filtered by the caller, since not every archive can."""
    retry = Retry(
        total=RETRIES, backoff_factor=BACKOFF, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None
    )
    try:
        if archive.kind == "static":
            return walk(archive, shape, start, end, retry=retry, timeout=TIMEOUT)
        client = Client.open(archive.url, stac_io=StacApiIO(max_retries=retry, timeout=TIMEOUT))
        found = client.search(collections=[archive.collection], bbox=shape.bounds, datetime=[start, end], limit=PAGE)
        return list(found.items())
    except (APIError, requests.RequestException, pystac.STACError, ValueError, KeyError) as error:
        raise ContractError(
            "archive",
            f"{archive.url}: {type(error).__name__} {' '.join(str(error).split())[:300]}",
            "a STAC catalogue that answers",
            f"no network, a wrong address, or a server that failed {RETRIES + 1} times: try again, or work with "
            "`clay archive` and url=",
        ) from None


def _nothing(archive: Archive) -> str:
    return (
        "another area or date (longitude comes first), or a server without the collection "
        f"{archive.collection or archive.name!r}"
    )
