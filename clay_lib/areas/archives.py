"""Archives of satellite images: from an area and dates to acquisitions, the least cloudy first, by STAC.

    >>> acquisitions = find_acquisitions("sentinel-2-l2a", (14.0, 50.0, 14.2, 50.1), "2023-06-01/2023-08-31")
    >>> pixels = read_acquisition(acquisitions[0], geobox)  # reading.py: native numbers, an xarray Dataset

archives.yaml holds the profiles of the public archives; a raster file becomes an acquisition by `acquisition_from_file`.
Static catalogs have no search. Their surveys are skipped by the years in their path, then by their extents, and tiles
by their names: LINZ, New Zealand, names its tiles after the sheets of its 1:50 000 map (data.linz.govt.nz, layer 104687).
"""

import functools
import glob
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from string import ascii_uppercase

import pystac
import requests
import shapely
import shapely.geometry
from pyproj import Transformer
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3 import Retry

from clay_lib.areas.items import Acquisition, Archive, mean_cloud_cover, moment_of, solar_day
from clay_lib.data.bands import MODIS_FILL, has_offset, product_name
from clay_lib.data.georeference import bounds_wgs84, boxes, check_polygons, crs_text, outline
from clay_lib.data.rasters import find_layers
from clay_lib.data.scenes import read_scene
from clay_lib.datacube import parse_when
from clay_lib.errors import ContractError, number
from clay_lib.files import read_yaml
from clay_lib.sensors import SENSORS, Sensor

RETRIES, BACKOFF = 5, 0.5  # of a request after a 429, a 5xx or a truncated response, after 0, 1, 2, 4, 8 s
RECONNECTS = 2  # of a server that cannot be reached at all, so that a missing network is reported within seconds
TIMEOUT = (5, 60)  # s to connect, s to answer
PAGE = 250  # items a request
WORKERS = 10  # requests at once to a static catalog, as many as the session keeps connections
SHEET = (24_000, 36_000)  # m, width and height of a sheet of LINZ's map
ORIGIN = (988_000, 6_234_000)  # NZTM (EPSG:2193), upper left corner of sheet AS00
ROWS = [first + second for first in "ABC" for second in ascii_uppercase]
ROWS = [row for row in ROWS[ROWS.index("AS") : ROWS.index("CK") + 1] if row not in ("BI", "BO", "CI")]  # as mapped


# ---- profiles ----


@functools.cache
def _profiles() -> dict[str, tuple[Archive, ...]]:
    entries = read_yaml(Path(__file__).with_name("archives.yaml"))
    return {
        sensor: tuple(Archive(name=name, sensor=sensor, **entry) for name, entry in archives.items())
        for sensor, archives in entries.items()
    }


def archives_of(sensor: str | Sensor) -> list[Archive]:
    """The archives of a sensor, the default first."""
    sensor = SENSORS.resolve(sensor)
    archives = _profiles().get(sensor.name)
    if not archives:
        cause = "a sensor without a public archive: open its files with acquisition_from_file"
        raise ContractError("sensor", sensor.name, f"one of {list(_profiles())}", cause)
    return list(archives)


def choose_archive(sensor: Sensor, archive: str | Archive | None) -> Archive:
    """An archive of the sensor by its name; None: the default."""
    if isinstance(archive, Archive):
        return archive
    by_name = {profile.name: profile for profile in archives_of(sensor)}
    archive = next(iter(by_name)) if archive is None else archive
    if archive not in by_name:
        raise ContractError("archive", repr(archive), f"one of {list(by_name)} for {sensor.name}", "a misspelled name")
    return by_name[archive]


# ---- search ----


def find_acquisitions(
    sensor: str | Sensor,
    area,
    dates,
    *,
    archive: str | Archive | None = None,
    url: str | None = None,
    max_cloud: float = 100.0,
    limit: int | None = None,
) -> list[Acquisition]:
    """Acquisitions of an area, the least cloudy first, then by date: one a solar day, or one an aerial survey.

    area: as in `parse_area`. dates: "2023-06-01/2023-08-31", one day, or a pair of dates, both included. archive: a
    name in archives_of(sensor), its first by default; url: another server with the same collections, such as that of
    `local.serve_archive`. max_cloud: percent; items above are left out, items without a figure stay.
    Raises ContractError where nothing is found, and for a server that does not answer after all retries.
    """
    sensor = SENSORS.resolve(sensor)
    archive = choose_archive(sensor, archive)
    if url:
        complete = archive.kind == "api" or url.endswith(".json")
        archive = replace(archive, url=url if complete else f"{url.rstrip('/')}/catalog.json")
    shape, (start, end) = parse_area(area), parse_dates(dates)
    max_cloud = number("max_cloud", max_cloud)
    items = _search(archive, shape, start, end)
    items = [item for item in items if shapely.geometry.shape(item.geometry).intersects(shape)]
    clear = [item for item in items if (item.properties.get("eo:cloud_cover") or 0) <= max_cloud]
    if not clear:
        found, cause = "no items", f"another area or date (longitude comes first), or no {archive.collection} there"
        if items:
            found, cause = f"{len(items)} items, none with at most {max_cloud:g} % of clouds", "clouds: allow more"
        where = f"{sensor.name} in {archive.name} ({archive.url}) around {shape.centroid.y:.3f}, {shape.centroid.x:.3f}"
        raise ContractError("search", found, f"{where}, {start:%Y-%m-%d} to {end:%Y-%m-%d}", cause)
    groups: dict = {}
    for item in sorted(clear, key=lambda item: (moment_of(item), item.id)):
        key = item.collection_id if archive.kind == "static" else solar_day(item)  # an aerial survey takes a season
        groups.setdefault(key, []).append(item)
    acquisitions = [
        Acquisition(sensor, archive, moment_of(items[0]), tuple(items), mean_cloud_cover(items))
        for items in groups.values()
    ]
    acquisitions.sort(key=lambda a: (100.0 if a.cloud_cover is None else a.cloud_cover, a.when))
    return acquisitions[:limit]


def _search(archive: Archive, shape: shapely.Geometry, start: datetime, end: datetime) -> list[pystac.Item]:
    """All items in a box and time; the caller filters by clouds, since not every archive can."""
    retry = Retry(RETRIES, connect=RECONNECTS, backoff_factor=BACKOFF, status_forcelist=[429, 500, 502, 503, 504],
                  allowed_methods=None)  # fmt: skip
    stac_io = StacApiIO(max_retries=retry, timeout=TIMEOUT)
    try:
        if archive.kind == "static":
            return read_catalog(archive.url, shape, start, end, stac_io)
        client = Client.open(archive.url, stac_io=stac_io)
        options = dict(collections=[archive.collection], datetime=[start, end], limit=PAGE)
        found = (item for box in boxes(shape) for item in client.search(bbox=box, **options).items())
        return list({item.id: item for item in found}.values())
    except (APIError, requests.RequestException, pystac.STACError, ValueError, KeyError) as error:
        found = f"{archive.url}: {type(error).__name__} {' '.join(str(error).split())[:300]}"
        cause = f"no network, a wrong address, or {RETRIES + 1} failed requests: `clay archive` works offline"
        raise ContractError("archive", found, "a STAC catalog that answers", cause) from None


def parse_dates(dates) -> tuple[datetime, datetime]:
    """First and last moment, UTC, of one day, "first/last" or a pair of days; the last is included to its end."""
    try:
        ends = dates.split("/") if isinstance(dates, str) else [dates] if isinstance(dates, date) else list(dates)
        ends = [end if isinstance(end, date) else datetime.fromisoformat(end.strip()) for end in ends]
        start, end = ends * 2 if len(ends) == 1 else ends
    except (ValueError, TypeError, AttributeError):
        expected = "'2023-06-01/2023-08-31', one day, or a pair of dates"
        raise ContractError("dates", repr(dates), expected, "day and month swapped, or a third date") from None
    start, end = (day if isinstance(day, datetime) else datetime(day.year, day.month, day.day) for day in (start, end))
    if (end.hour, end.minute, end.second) == (0, 0, 0):
        end = end.replace(hour=23, minute=59, second=59)
    if end < start:
        raise ContractError("dates", repr(dates), "the earlier date first", "swapped dates")
    return tuple(moment.replace(tzinfo=moment.tzinfo or UTC) for moment in (start, end))


# ---- static catalogs ----


def read_catalog(
    url: str, area: shapely.Geometry, start: datetime, end: datetime, stac_io: StacApiIO
) -> list[pystac.Item]:
    """Items of a static catalog in an area (WGS84) and time."""

    def fetch(address: str) -> pystac.STACObject:
        response = stac_io.session.get(address, timeout=stac_io.timeout)
        response.raise_for_status()
        content = response.json()
        content["links"] = [link for link in content.get("links", ()) if link.get("rel") != "self"]  # often relative
        node = pystac.read_dict(content)
        node.set_self_href(response.url)  # after redirects, so that relative links are right
        return node

    with ThreadPoolExecutor(WORKERS) as pool:
        tiles, level = [], [url]
        while level:  # catalogs hold catalogs or collections, collections hold items
            children: list[str] = []
            for node in pool.map(fetch, level):
                if not isinstance(node, pystac.Collection):
                    links = [link.absolute_href for link in node.get_links("child")]
                    children += [link for link in links if _years_meet(link, start, end)]
                elif _extent_meets(node.extent, area, start, end):
                    links = [link.absolute_href for link in node.get_links("item")]
                    tiles += [link for link in links if _tile_meets(link, area)]
            level = children
        found = [(item, item.common_metadata) for item in pool.map(fetch, tiles)]
    spans = [(times.start_datetime or item.datetime, times.end_datetime or item.datetime) for item, times in found]
    return [item for (item, _), span in zip(found, spans, strict=True) if _overlaps(*span, start, end)]


def tile_bounds(name: str) -> tuple[float, float, float, float] | None:
    """(left, bottom, right, top) in NZTM of a tile such as BN28_2000_1225: sheet, scale, row and column from 1.

    None for other names.
    """
    parts = re.search(r"([A-Z]{2})(\d{2})_(\d+)_(\d{4}|\d{6})(?!\d)", name)
    if not parts or parts[1] not in ROWS or not 0 < int(parts[3]) <= 50_000:
        return None
    half = len(parts[4]) // 2
    row, column = int(parts[4][:half]), int(parts[4][half:])
    width, height = (side * int(parts[3]) / 50_000 for side in SHEET)
    left = ORIGIN[0] + SHEET[0] * int(parts[2]) + width * (column - 1)
    top = ORIGIN[1] - SHEET[1] * ROWS.index(parts[1]) - height * (row - 1)
    return left, top - height, left + width, top


def _tile_meets(address: str, area: shapely.Geometry) -> bool:
    bounds = tile_bounds(address.rpartition("/")[2])
    if bounds is None:
        return True
    to_nztm = Transformer.from_crs("EPSG:4326", "EPSG:2193", always_xy=True)
    return shapely.box(*bounds).intersects(shapely.box(*to_nztm.transform_bounds(*area.bounds)))


def _years_meet(address: str, start: datetime, end: datetime) -> bool:
    """Surveys have their years in the path, .../marlborough_2011-2012_0.4m/...; a season may begin the year before."""
    years = re.search(r"_(\d{4})(?:-(\d{4}))?_[\d.]+m/", address)
    return years is None or int(years[1]) - 1 <= end.year and start.year <= int(years[2] or years[1]) + 1


def _extent_meets(extent: pystac.Extent, area: shapely.Geometry, start: datetime, end: datetime) -> bool:
    near = [shapely.box(*box[:2], *box[len(box) // 2 :][:2]) for box in extent.spatial.bboxes]  # of 4 or 6 numbers
    inside = any(_overlaps(*span, start, end) for span in extent.temporal.intervals)
    return inside and any(box.intersects(area) for box in near)


def _overlaps(first: datetime | None, last: datetime | None, start: datetime, end: datetime) -> bool:
    """Whether two intervals overlap; None: open to that side. Times without a zone are UTC."""
    first, last = (when and when.replace(tzinfo=when.tzinfo or UTC) for when in (first, last))
    return (first is None or first <= end) and (last is None or last >= start)


# ---- areas ----


def parse_area(area) -> shapely.Geometry:
    """An area in WGS84: (west, south, east, north), "west,south,east,north", shapely, a GeoDataFrame, or a file.

    Files: GeoJSON, GeoPackage, GeoParquet. Frames and files are reprojected to WGS84 from their CRS.
    """
    if isinstance(area, (str, Path)):
        text = str(area)
        area = text.split(",") if text.count(",") == 3 and not Path(text).exists() else _read_area(Path(text))
    if hasattr(area, "to_crs"):
        check_polygons(area.geometry, "area")
        area = (area.to_crs("EPSG:4326") if area.crs is not None else area).geometry.union_all()
    elif not isinstance(area, shapely.Geometry):
        try:
            west, south, east, north = (float(value) for value in area)
            # west > east: across the antimeridian, as in RFC 7946; the wider way round is a swapped order
            valid = (west < east or (west > 0 > east and east + 360 - west <= 180)) and south < north
        except (TypeError, ValueError):
            valid = False
        if not valid:
            expected = "(west, south, east, north) in degrees, a geometry, or a file of one"
            cause = "another order of the four numbers; only a box across the antimeridian has west > east"
            raise ContractError("area", repr(area), expected, cause)
        area = outline(west, south, east, north)
    west, south, east, north = area.bounds
    if area.is_empty or not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        found = "an empty geometry" if area.is_empty else f"bounds {tuple(round(v, 3) for v in area.bounds)}"
        cause = "meters of a projection: pass a GeoDataFrame with its CRS, or degrees"
        raise ContractError("area", found, "degrees, longitude -180 to 180, latitude -90 to 90", cause)
    return area


def _read_area(path: Path):
    import geopandas

    if not path.is_file():
        raise ContractError("area", path, "a file", "a misspelled name, or another folder")
    try:
        parquet = path.suffix.lower() in (".parquet", ".geoparquet")
        return geopandas.read_parquet(path) if parquet else geopandas.read_file(path)
    except Exception as error:  # of three libraries
        raise ContractError("area", f"{path}: {error}", "GeoJSON, GeoPackage or GeoParquet", "another format") from None


# ---- files ----


def open_scenes(scenes, sensor: str | Sensor, **options) -> list[Acquisition]:
    """Local scenes as acquisitions, those of one solar day together, also of several CRS: as items of an archive are.

    scenes: a raster file or a folder of single bands; a list of these; or a pattern such as "scenes/*.tif".
    options: of `acquisition_from_file`. Scenes in several zones of UTM are embedded each in its own.
    """
    if isinstance(scenes, (str, Path)):
        pattern = "*" in str(scenes) and "://" not in str(scenes)  # a signed address may have a question mark
        scenes = sorted(glob.glob(str(scenes))) if pattern else [scenes]
    if not scenes:
        raise ContractError("scene", "no files", "at least one scene", "a pattern that matched nothing")
    opened = [acquisition_from_file(path, sensor, **options) for path in scenes]
    archive, days = _shared_archive(opened), {}
    for scene in opened:
        days.setdefault(scene.when and solar_day(scene.items[0]), []).extend(scene.items)
    return [
        replace(opened[0], archive=archive, when=day and min(map(moment_of, items)), items=tuple(items))
        for day, items in days.items()
    ]


def _shared_archive(scenes: Sequence[Acquisition]) -> Archive:
    """The profile that all scenes are read by. Raises ContractError where their bands or pixels differ."""
    archives = [scene.archive for scene in scenes]
    first, crs = archives[0], {archive.crs for archive in archives}
    for other in archives[1:]:
        if other.assets != first.assets or not math.isclose(other.gsd, first.gsd, rel_tol=1e-6):
            found = f"{other.url}: {dict(other.assets)}, {other.gsd:g} m"
            expected = f"bands and pixels as in {first.url}: {dict(first.assets)}, {first.gsd:g} m"
            raise ContractError("scene", found, expected, "scenes of two products: embed each into its own folder")
    if len(crs) > 1:
        south = all(scene.footprint.bounds[3] <= 0 for scene in scenes)
        northern = south and all(name.startswith("EPSG:326") for name in crs)  # as Landsat's
        first = replace(first, crs="utm-north" if northern else "utm")
    fills = [archive.shared_fill for archive in archives if archive.shared_fill is not None]
    return replace(first, shared_fill=fills[0] if fills else None, alpha=any(archive.alpha for archive in archives))


def acquisition_from_file(
    path,
    sensor: str | Sensor,
    *,
    when: str | datetime | None = None,
    bands=None,
    scale: float | None = None,
    offset: float | None = None,
) -> Acquisition:
    """A raster file, a folder of single-band files or a list of them as an acquisition of `sensor`, in native numbers.

    bands, scale, offset: as in `data.scenes.read_scene`. Hardly more than headers are read. Raises ContractError for
    bands that cannot be named and for files without a place on Earth.
    """
    sensor = SENSORS.resolve(sensor)
    layers = find_layers(path, sensor, bands, when)
    finest = max(layers.values(), key=lambda layer: layer.height * layer.width)
    if finest.crs is None:
        cause = "a plain image, or an export without georeference: embed it with Clay.embed instead"
        raise ContractError("path", f"{path}, without a CRS", "a raster with its place on Earth", cause)
    when = parse_when(when or product_name(finest.path).get("when"))
    when = when if when is None or when.tzinfo else when.replace(tzinfo=UTC)
    west, south, east, north = bounds_wgs84(finest.crs, finest.transform, finest.height, finest.width)
    if west < -180.001 or east > 180.001:
        found, expected = f"longitudes {west:.6g} to {east:.6g}", "-180 to 180 in a raster in degrees"
        cause = "a raster across the antimeridian, or longitudes to 360: reproject it (gdalwarp -t_srs), or cut it"
        raise ContractError("path", found, expected, cause)
    shape = outline(west, south, east, north)
    geometry, unknown = shapely.geometry.mapping(shape), datetime(2000, 1, 1, tzinfo=UTC)
    given = None
    if scale is not None or offset is not None:
        given = number("scale", 1.0 if scale is None else scale), number("offset", 0.0 if offset is None else offset)
    # What a caller says of the file is a part of a job's name, beside the file's version.
    properties = {"given": repr((bands, given))} if bands or given else {}
    item = pystac.Item(Path(finest.path).stem, geometry, list(shape.bounds), when or unknown, properties)
    several_sizes = len({(layer.height, layer.width) for layer in layers.values()}) > 1
    for band, layer in layers.items():
        units = given or (layer.scale, layer.offset)
        metadata = {"data_type": layer.dtype, "scale": units[0], "offset": units[1]}
        fill = 0.0 if layer.nodata is None and several_sizes else layer.nodata
        metadata |= {} if fill is None else {"nodata": fill}
        href = layer.path if "://" in layer.path or layer.path.startswith("/vsi") else str(Path(layer.path).resolve())
        item.add_asset(band, pystac.Asset(href, extra_fields={"raster:bands": [metadata] * layer.index}))
    if given is None and has_offset(finest.path):  # the reader warns where it may be in the numbers
        side = min(256, finest.height, finest.width)
        corner = ((finest.width - side) // 2, (finest.height - side) // 2)
        read_scene(path, sensor, bands=bands, when=when and when.isoformat(), window=(*corner, side, side))
    fills = {layer.nodata for layer in layers.values()} - {None}
    shared = [fill for fill in fills if fill == 255 and finest.dtype == "uint8" or fill == 0 and not several_sizes]
    a, b, left, d, e, top = finest.transform
    gsd = abs(a)
    grid: dict = {"gsd": sensor.gsd}  # of another raster, in degrees or rotated, the sensor's own pixels in UTM
    square = finest.crs.is_projected and b == d == 0 and math.isclose(gsd, abs(e), rel_tol=1e-6)
    ground = finest.gsd if square else gsd
    if square and abs(ground / (gsd * finest.crs.linear_units_factor[1]) - 1) > 0.02:  # web Mercator far north
        grid = {"gsd": sensor.gsd if abs(ground / sensor.gsd - 1) < 0.05 else ground}
    elif square:
        grid = {"crs": crs_text(finest.crs), "gsd": gsd, "anchor": (left % gsd, top % gsd)}
    archive = Archive(
        name="files",
        sensor=sensor.name,
        url=str(path),
        kind="files",
        assets={band: f"{band}.{layer.index}" for band, layer in layers.items()},
        nodata=MODIS_FILL if sensor.name == "modis" else None,
        native={"scale": 1.0, "offset": 0.0},
        shared_fill=shared[0] if shared else None,
        alpha=any(layer.masked for layer in layers.values()),
        **grid,
    )
    return Acquisition(sensor, archive, when, (item,))
