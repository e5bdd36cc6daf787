"""A static catalogue: STAC files on a web server without a search, walked so that as little as may be is fetched.

Surveys are left out by the years in their path, then by their extents; tiles by their names, where those tell the place:
LINZ, New Zealand, names its tiles after the sheets of its 1:50 000 map (tile index: data.linz.govt.nz, layer 104687).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from string import ascii_uppercase
from urllib.parse import urljoin

import pystac
import requests
import shapely
from pyproj import Transformer
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from clay_lib.archive_profiles import Archive

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
