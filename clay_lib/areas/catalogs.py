"""Static STAC catalogs: archives without a search, read with as few requests as possible.

Surveys are skipped by the years in their path, then by their extents; tiles by their names where those give the place:
LINZ, New Zealand, names its tiles after the sheets of its 1:50 000 map (tile index: data.linz.govt.nz, layer 104687).
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from string import ascii_uppercase

import pystac
import shapely
from pyproj import Transformer
from pystac_client.stac_api_io import StacApiIO

WORKERS = 10  # requests at once, as many as the session keeps connections
SHEET = (24_000, 36_000)  # m, width and height of a sheet
ORIGIN = (988_000, 6_234_000)  # NZTM (EPSG:2193), upper left corner of sheet AS00
ROWS = [first + second for first in "ABC" for second in ascii_uppercase]
ROWS = [row for row in ROWS[ROWS.index("AS") : ROWS.index("CK") + 1] if row not in ("BI", "BO", "CI")]  # as mapped


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
        return [item for item in pool.map(fetch, tiles) if _overlaps(*_interval(item), start, end)]


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
    boxes = [shapely.box(*box[:2], *box[len(box) // 2 :][:2]) for box in extent.spatial.bboxes]  # of 4 or 6 numbers
    intervals = extent.temporal.intervals
    return any(box.intersects(area) for box in boxes) and any(_overlaps(*span, start, end) for span in intervals)


def _interval(item: pystac.Item) -> tuple[datetime | None, datetime | None]:
    metadata = item.common_metadata
    return metadata.start_datetime or item.datetime, metadata.end_datetime or item.datetime


def _overlaps(first: datetime | None, last: datetime | None, start: datetime, end: datetime) -> bool:
    """Whether two intervals overlap; None: open to that side. Times without a zone are UTC."""
    first, last = (when and when.replace(tzinfo=when.tzinfo or UTC) for when in (first, last))
    return (first is None or first <= end) and (last is None or last >= start)
