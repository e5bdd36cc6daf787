"""A local archive: the mini-world, or files of one's own, as COGs and STAC items behind real servers on this machine.

Items and files are laid out as the public archive of each sensor lays them out, so that its profile in archives.yaml
reads them: only the address differs.

    >>> write_archive("data/cache/archive", dates=("2023-05-20", "2023-08-20"), events=(Event("2023-07-01"),))
    >>> with serve_archive("data/cache/archive") as url:
    ...     looks = find_looks("sentinel-2-l2a", area, "2023-05-01/2023-09-30", url=url)
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import numpy as np

from clay_lib.archive_profiles import Archive, choose_archive
from clay_lib.contract import ContractError
from clay_lib.datacube import parse_when
from clay_lib.files import write_json
from clay_lib.local_items import write_item
from clay_lib.local_server import serve_archive
from clay_lib.miniworld import Chip, MiniWorld, Place
from clay_lib.scenes import Scene, read_scene
from clay_lib.sensors import SENSORS

__all__ = ["Event", "archive", "serve_archive", "write_archive"]

FEWEST, MOST = 64, 2048  # pixels a side of one sensor's scene
STATIC = "nz-imagery"
SUMMER = (38.0, 52.0)  # degrees of latitude
NEAR = 6  # places among which an event looks for its land


@dataclass(frozen=True)
class Event:
    """A change of the land from one day on: a round patch becomes `land_cover` (60: bare ground, a cleared forest).

    east, north: metres of the patch's middle from the archive's middle; radius: metres.
    """

    day: str
    land_cover: int = 60
    east: float = 0.0
    north: float = 0.0
    radius: float = 600.0


def write_archive(
    folder: str | Path,
    *,
    sensors: Sequence[str] = ("sentinel-2-l2a", "sentinel-1-rtc", "landsat-c2l2-sr"),
    place: Place | None = None,
    extent: float | Mapping[str, float] = 5120.0,
    dates: Sequence[str] = ("2023-05-20", "2023-06-10", "2023-08-20"),
    events: Sequence[Event] = (),
    clouds: Sequence[float] = (),
    rasters: Mapping[str, Iterable[str | Path | Scene]] | None = None,
    archives: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """COGs and items of the mini-world around a place, and of raster files, in a folder that `serve_archive` serves.

    place: by default a northern forest. extent: metres a side, or {sensor: metres}, within 64 to 2048 pixels of each sensor.
    clouds: a share for each date, radar sees through. rasters: {sensor: files or Scenes} beside it.
    archives: {sensor: name} where another than the first archive of a sensor is to be imitated.
    Returns the folder; items.json is written last.
    """
    folder, earth = Path(folder), MiniWorld(seed)
    place = place or _forest(earth)
    items: list[dict] = []
    for sensor in sensors:
        known = choose_archive(SENSORS.resolve(sensor), (archives or {}).get(sensor))
        side = extent[sensor] if isinstance(extent, Mapping) else extent
        size = int(np.clip(round(side / SENSORS[sensor].gsd), FEWEST, MOST)) // 2 * 2
        for number, day in enumerate(dates):
            cover = clouds[number] if number < len(clouds) else 0.0
            items.append(_observe(folder, known, earth, place, day, size, cover, events))
    for sensor, sources in (rasters or {}).items():
        known = choose_archive(SENSORS.resolve(sensor), (archives or {}).get(sensor))
        items += [_take(folder, known, source) for source in sources]
    if not items:
        raise ContractError("archive", found="no sensors and no rasters", expected="at least one", cause="empty lists")
    _write_catalogue(folder, [item for item in items if item["collection"] == STATIC])
    found = [item for item in items if item["collection"] != STATIC]
    write_json(folder / "items.json", {"type": "FeatureCollection", "features": found})
    return folder


def archive(
    folder: str,
    *,
    sensors: str = "sentinel-2-l2a,sentinel-1-rtc,landsat-c2l2-sr",
    dates: str = "2023-05-20,2023-06-10,2023-08-20",
    event: str = "2023-07-15",
    lat: float | None = None,
    lon: float | None = None,
    extent: float = 5120.0,
    port: int = 7822,
    serve: bool = True,
    seed: int = 0,
) -> int:
    """Write an archive of the mini-world, unless the folder holds one, and serve it until interrupted: for work offline.

    Example: clay archive data/cache/archive

    Args:
        folder: where the archive is, or is to be
        sensors: separated by commas
        dates: days, separated by commas
        event: the day on which a forest is cleared in the middle; empty: none
        lat: degrees of the middle; by default a forest
        lon: degrees
        extent: metres a side
        port: of the address on this machine; 0: a free one
        serve: false writes alone
        seed: the Earth's
    """
    if (lat is None) != (lon is None):
        raise ContractError("lat, lon", found=(lat, lon), expected="both, or neither", cause="half a place")
    place = None if lat is None else Place(lat, lon)
    if not (Path(folder) / "items.json").is_file():
        parts = {"sensors": sensors.split(","), "dates": dates.split(","), "events": [Event(event)] if event else []}
        write_archive(folder, place=place, extent=extent, seed=seed, **parts)
    held: dict[str, list] = defaultdict(list)
    for item in json.loads((Path(folder) / "items.json").read_text())["features"]:
        held[item["collection"]].append(item)
    for collection, items in held.items():
        west, south, east, north = items[0]["bbox"]
        print(f"{collection}: {len(items)} items at {west:.4f},{south:.4f},{east:.4f},{north:.4f}")
    if serve:
        with serve_archive(folder, port=port) as url:
            print(f"serving at {url}, which url= takes; Ctrl-C ends it", flush=True)
            while True:
                time.sleep(3600)
    return 0


# ---- scenes ----


def _forest(earth: MiniWorld) -> Place:
    """The first forest where the days of `dates` are summer."""
    places = (earth.place(10, n, "test") for n in count())
    return next(place for place in places if SUMMER[0] < place.lat < SUMMER[1])


def _observe(folder, archive: Archive, earth: MiniWorld, place, day, size, cover, events) -> dict:
    when = day if "T" in day else f"{day}T10:30"
    chip = earth.observe(place, archive.sensor, when, size, cover)
    pixels, labels = chip.pixels.copy(), chip.labels.copy()
    for event in events:
        if day >= event.day:
            _paint(pixels, labels, chip, event, earth)
    utc = (chip.when - timedelta(hours=chip.lon / 15)).replace(tzinfo=UTC, microsecond=0)
    (a, b, c, d, e, f), crs = chip.transform, chip.crs
    if archive.crs == "utm-north" and crs.startswith("EPSG:327"):
        crs, f = (
            crs.replace("EPSG:327", "EPSG:326"),
            f - 10_000_000.0,
        )  # Landsat's southern scenes lie below the equator
    return write_item(
        folder,
        archive,
        f"{archive.sensor}_{place.lat:.3f}_{place.lon:.3f}_{utc:%Y%m%d}",
        pixels,
        missing=np.zeros(pixels.shape, bool),
        labels=labels,
        cloud=np.zeros_like(chip.cloud) if SENSORS[archive.sensor].decibel else chip.cloud,
        crs=crs,
        transform=(a, b, c + archive.anchor, d, e, f - archive.anchor),  # the archive's own grid, half a pixel off
        when=utc,
    )


def _paint(pixels, labels, chip: Chip, event: Event, earth: MiniWorld) -> None:
    """Another class where the event is, as the same sensor sees it on the same day, at the nearest latitude."""
    height, width = labels.shape
    rows, columns = np.mgrid[:height, :width]
    east = (columns - width / 2 + 0.5) * chip.gsd - event.east
    north = (height / 2 - rows - 0.5) * chip.gsd - event.north
    angle = np.arctan2(north, east)
    inside = np.hypot(east, north) < event.radius * (1 + 0.12 * np.sin(3 * angle + 1) + 0.07 * np.sin(7 * angle))
    if not inside.any():
        return
    there = min((earth.place(event.land_cover, n, "train") for n in range(NEAR)), key=lambda p: abs(p.lat - chip.lat))
    other = earth.observe(there, chip.sensor, chip.when, (height, width))
    same = (other.labels == event.land_cover).ravel()
    rng = np.random.default_rng([earth.seed, int(same.sum())])
    source = np.where(same, np.arange(same.size), rng.choice(np.flatnonzero(same), same.size)).reshape(height, width)
    pixels[:, inside] = other.pixels.reshape(len(pixels), -1)[:, source[inside]]
    labels[inside] = event.land_cover


def _take(folder: Path, archive: Archive, source: str | Path | Scene) -> dict:
    """A raster file, or what `read_scene` made of one; all bands of the sensor, sides even for Sentinel-2's 20 m."""
    scene = source if isinstance(source, Scene) else read_scene(source, archive.sensor)
    if scene.crs is None or set(scene.bands) != set(scene.sensor.band_names):
        raise ContractError(
            "rasters",
            found=f"{scene.path}: bands {list(scene.bands)}, CRS {scene.crs}",
            expected=f"all bands of {scene.sensor.name}, with a place on Earth",
            cause="a picture, or another product",
        )
    order = np.argsort(scene.sensor.indices(scene.bands))
    height, width = (side // 2 * 2 for side in scene.pixels.shape[1:])
    pixels, missing = scene.pixels[order, :height, :width], scene.missing[order, :height, :width]
    if scene.in_decibel:
        pixels = (10 ** (pixels.astype(np.float64) / 10)).astype(np.float32)
    when = parse_when(scene.when) or datetime(2020, 6, 15, 10, 30)
    return write_item(
        folder,
        archive,
        f"{archive.sensor}_{Path(scene.path).stem}",
        pixels,
        missing=missing,
        labels=None,
        cloud=np.zeros((height, width), bool),
        crs=scene.crs,
        transform=scene.transform,
        when=when.replace(tzinfo=UTC),
    )


# ---- catalogues ----


def _write_catalogue(folder: Path, items: list[dict]) -> None:
    """A static catalogue, as LINZ has it: a survey is a collection, beside whose links the tiles lie."""
    surveys: dict[str, list[dict]] = defaultdict(list)
    for item in items:
        item["assets"] = {
            key: {"href": f"../../{asset['href']}", "type": asset["type"]} for key, asset in item["assets"].items()
        }
        item["properties"] = {k: v for k, v in item["properties"].items() if "datetime" in k}
        surveys[item["properties"]["start_datetime"][:10]].append(item)
    children = []
    for day, tiles in surveys.items():
        name = f"survey_{day[:4]}_0.5m/{day}"
        for tile in tiles:
            tile["collection"] = day
            write_json(folder / name / f"{tile['id']}.json", tile)
        boxes = np.array([tile["bbox"] for tile in tiles])
        extent = {
            "spatial": {"bbox": [[*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]]},
            "temporal": {
                "interval": [[tiles[0]["properties"]["start_datetime"], tiles[-1]["properties"]["end_datetime"]]]
            },
        }
        links = [{"rel": "item", "href": f"./{tile['id']}.json"} for tile in tiles]
        said = {"type": "Collection", "stac_version": "1.0.0", "id": day, "description": "aerial", "license": "CC0-1.0"}
        write_json(folder / name / "collection.json", said | {"extent": extent, "links": links})
        children.append({"rel": "child", "href": f"./{name}/collection.json"})
    said = {"type": "Catalog", "stac_version": "1.0.0", "id": "static", "description": "aerial surveys"}
    write_json(folder / "catalog.json", said | {"links": children})
