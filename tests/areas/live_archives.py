"""Public archives as they answer today; no part of the test suite: `python -m pytest -ra tests/areas/live_archives.py`.

The first test asks each archive by plain HTTP for what its profile in archives.yaml names: if it fails, the archive has
changed. The second reads through the library, only where the first passes: if it fails, the library is wrong. Archives
that do not answer are skipped with their reason.
"""

from functools import cache

import pytest
import requests
import shapely

from clay_lib.areas.archives import archives_of, find_acquisitions
from clay_lib.areas.items import Archive
from clay_lib.areas.reading import read_acquisition, sign
from clay_lib.areas.tiles import grid_of, tiles_of
from clay_lib.data.check import inspect_image

SUMMER, YEARS = "2023-06-01/2023-08-31", "2012-01-01/2024-12-31"
PLACES = {"naip": (-93.6, 41.6, YEARS), "linz": (174.78, -41.29, YEARS)}  # lon, lat, dates
CENTRAL_EUROPE = (14.4, 50.1, SUMMER)
SENSORS = ("sentinel-2-l2a", "landsat-c2l2-sr", "landsat-c2l1", "sentinel-1-rtc", "naip", "modis", "linz")
ARCHIVES = [
    pytest.param(archive, id=f"{sensor}-{archive.name}") for sensor in SENSORS for archive in archives_of(sensor)
]
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def area_of(lon: float, lat: float) -> shapely.Geometry:
    return shapely.box(lon - 0.01, lat - 0.01, lon + 0.01, lat + 0.01)


def differences(archive: Archive, area: shapely.Geometry, dates: str) -> list[str]:
    """What an archive no longer offers of what its profile names; requests.RequestException if it does not answer."""
    if archive.kind == "static":
        links = _answer(requests.get(archive.url, timeout=60)).json()["links"]
        return [] if any(link["rel"] == "child" for link in links) else [f"{archive.url} links no surveys"]
    start, end = dates.split("/")
    query = dict(collections=[archive.collection], bbox=area.bounds, limit=1)
    query |= dict(datetime=f"{start}T00:00:00Z/{end}T23:59:59Z")
    response = _answer(requests.post(f"{archive.url}/search", json=query, timeout=60))
    items = response.json().get("features") if response.ok else None
    if not items:
        return [f"no items of {archive.collection}: {response.status_code} {response.text[:200]}"]
    (item,) = items
    changed = []
    for key in {key.partition(".")[0] for key in (*archive.assets.values(), archive.mask) if key}:
        if not (asset := item["assets"].get(key)):
            changed.append(f"{item['id']}: no asset {key} among {sorted(item['assets'])}")
            continue
        metadata = (asset.get("raster:bands") or asset.get("bands") or [{}])[0]
        if archive.native and not archive.scaling and key != archive.mask and not _scaled(metadata):
            changed.append(f"{item['id']}: {key} without its scale")
        if archive.signing != "requester-pays":
            head = _answer(requests.get(sign(asset["href"], archive), headers={"Range": "bytes=0-3"}, timeout=60))
            if head.status_code != 206 or head.content not in TIFF:
                changed.append(f"{asset['href']}: {head.status_code}, no part of a GeoTIFF")
    return changed


def _scaled(metadata: dict) -> bool:
    return "scale" in metadata or "raster:scale" in metadata


def _answer(response: requests.Response) -> requests.Response:
    """The response, unless the server reports a failure of its own or asks to wait."""
    if response.status_code == 429 or response.status_code >= 500:
        response.raise_for_status()
    return response


@cache
def differences_today(archive_name: str, sensor: str) -> list[str] | str:
    lon, lat, dates = PLACES.get(sensor, CENTRAL_EUROPE)
    archive = next(archive for archive in archives_of(sensor) if archive.name == archive_name)
    try:
        return differences(archive, area_of(lon, lat), dates)
    except requests.RequestException as error:
        return f"no answer: {error}"


@pytest.mark.parametrize("archive", ARCHIVES)
def test_archive_is_as_its_profile_says(archive):
    changed = differences_today(archive.name, archive.sensor)
    if isinstance(changed, str):
        pytest.skip(changed)
    assert not changed, "THE ARCHIVE HAS CHANGED: adapt archives.yaml"


@pytest.mark.parametrize("archive", ARCHIVES)
def test_library_reads_the_archive(archive):
    if archive.signing == "requester-pays" or differences_today(archive.name, archive.sensor):
        pytest.skip("needs keys of an account that pays, or see the first test")
    lon, lat, dates = PLACES.get(archive.sensor, CENTRAL_EUROPE)
    acquisition = find_acquisitions(archive.sensor, area_of(lon, lat), dates, archive=archive.name, limit=1)[0]
    (tile,) = tiles_of(shapely.Point(lon, lat), grid_of(archive, 64))
    pixels = read_acquisition(acquisition, tile.geobox(), clouds="keep")
    errors = [f for f in inspect_image(pixels, archive.sensor, when=acquisition.when).findings if f.level == "error"]
    assert not errors, "THE LIBRARY IS WRONG: the archive offers what its profile names"
