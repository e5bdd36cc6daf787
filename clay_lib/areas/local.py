"""A local archive: the mini-world, or raster files, as COGs and STAC items behind real servers on this machine.

Items and files follow the layout of each sensor's public archive, so its profile in archives.yaml reads them and only
the address differs.

    >>> write_archive("data/cache/archive", dates=("2023-05-20", "2023-08-20"), events=(Event("2023-07-01"),))
    >>> with serve_archive("data/cache/archive") as url:
    ...     acquisitions = find_acquisitions("sentinel-2-l2a", area, "2023-05-01/2023-09-30", url=url)
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import numpy as np
import rasterio
import requests
import shapely
import shapely.geometry
import uvicorn
from rasterio.crs import CRS
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from clay_lib.areas.archives import choose_archive
from clay_lib.areas.items import BASELINE_OFFSET, Archive
from clay_lib.data.georeference import bounds_wgs84, coarser
from clay_lib.data.scenes import Scene, read_scene
from clay_lib.datacube import parse_when
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, write_json
from clay_lib.sensors import SENSORS
from clay_lib.world.earth import Chip, MiniWorld, Place

FEWEST, MOST = 64, 2048  # pixels a side of one sensor's scene
STATIC = "nz-imagery"
SUMMER = (38.0, 52.0)  # degrees of latitude where the default dates are summer: the first forest there is the place
NEAREST_OF = 6  # places that an event chooses its new land from
SCL = {10: 4, 20: 4, 30: 4, 40: 4, 50: 5, 60: 5, 70: 11, 80: 6, 90: 4, 95: 4, 100: 4}  # of WorldCover's classes
SCL_SHADOW, SCL_BARE, SCL_CLOUD = 3, 5, 9
QA_FILL, QA_CLOUD, QA_SHADOW, QA_CLEAR = 1, 8, 16, 64  # of Landsat's QA_PIXEL
COARSE = ("rededge1", "rededge2", "rededge3", "nir08", "swir16", "swir22")  # Sentinel-2's bands of 20 m
EXTENSIONS = ["eo/v1.1.0", "raster/v1.1.0", "projection/v1.1.0", "file/v2.1.0"]
STARTUP = 60.0  # s until both servers answer


@dataclass(frozen=True)
class Event:
    """A change of the land from one day on: a round patch becomes `land_cover` (60: bare ground, a cleared forest).

    east, north: meters of the patch's center from the archive's center; radius: meters.
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
    """COGs and items of the mini-world around a place, and of raster files, in a folder for `serve_archive`.

    place: by default a northern forest. extent: meters a side, or {sensor: meters}; at least 64, at most 2048 pixels.
    clouds: a share for each date; radar is not affected. rasters: {sensor: files or Scenes}, added to the mini-world.
    archives: {sensor: name} where another than a sensor's first archive is to be imitated.
    Returns the folder; items.json is written last.
    """
    folder, earth = Path(folder), MiniWorld(seed)
    if place is None:
        forests = (earth.place(10, n, "test") for n in count())
        place = next(forest for forest in forests if SUMMER[0] < forest.lat < SUMMER[1])
    items: list[dict] = []
    for sensor in sensors:
        archive = choose_archive(SENSORS.resolve(sensor), (archives or {}).get(sensor))
        side = extent[sensor] if isinstance(extent, Mapping) else extent
        size = int(np.clip(round(side / SENSORS[sensor].gsd), FEWEST, MOST)) // 2 * 2
        for number, day in enumerate(dates):
            cover = clouds[number] if number < len(clouds) else 0.0
            items.append(_observe(folder, archive, earth, place, day, size, cover, events))
    for sensor, sources in (rasters or {}).items():
        archive = choose_archive(SENSORS.resolve(sensor), (archives or {}).get(sensor))
        items += [_add_raster(folder, archive, source) for source in sources]
    if not items:
        raise ContractError("archive", "no sensors and no rasters", "at least one", "empty lists")
    _write_catalog(folder, [item for item in items if item["collection"] == STATIC])
    searchable = [item for item in items if item["collection"] != STATIC]
    write_json(folder / "items.json", {"type": "FeatureCollection", "features": searchable})
    return folder


def archive(
    folder: str,
    *,
    sensors: str = "sentinel-2-l2a,sentinel-1-rtc,landsat-c2l2-sr",
    dates: str = "2023-05-20,2023-06-10,2023-08-20",
    clouds: str = "",
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
        folder: of the archive
        sensors: separated by commas
        dates: days, separated by commas
        clouds: share of each date's image that clouds cover, separated by commas; empty: none
        event: the day on which a forest is cleared in the center; empty: none
        lat: degrees of the center; by default a forest
        lon: degrees
        extent: meters a side
        port: of the address on this machine; 0: a free one
        serve: false only writes
        seed: of the mini-world
    """
    if (lat is None) != (lon is None):
        raise ContractError("lat, lon", (lat, lon), "both, or neither", "one of the two options is missing")
    place = None if lat is None else Place(lat, lon)
    if not (Path(folder) / "items.json").is_file():
        world = dict(place=place, extent=extent, events=[Event(event)] if event else [], seed=seed)
        world["clouds"] = [float(share) for share in clouds.split(",") if share]
        write_archive(folder, sensors=sensors.split(","), dates=dates.split(","), **world)
    features = json.loads((Path(folder) / "items.json").read_text())["features"]
    for collection in dict.fromkeys(item["collection"] for item in features):
        items = [item for item in features if item["collection"] == collection]
        west, south, east, north = items[0]["bbox"]
        print(f"{collection}: {len(items)} items at {west:.4f},{south:.4f},{east:.4f},{north:.4f}")
    if serve:
        with serve_archive(folder, port=port) as url:
            print(f"serving at {url}, for url= and --url; stop with Ctrl-C", flush=True)
            while True:
                time.sleep(3600)
    return 0


# ---- scenes ----


def _observe(folder, archive: Archive, earth: MiniWorld, place, day, size, cover, events) -> dict:
    chip = earth.observe(place, archive.sensor, day if "T" in day else f"{day}T10:30", size, cover)
    pixels, labels = chip.pixels.copy(), chip.labels.copy()
    for event in events:
        if day >= event.day:
            _apply_event(pixels, labels, chip, event, earth)
    utc = (chip.when - timedelta(hours=chip.lon / 15)).replace(tzinfo=UTC, microsecond=0)
    (a, b, c, d, e, f), crs = chip.transform, chip.crs
    if archive.crs == "utm-north" and crs.startswith("EPSG:327"):  # Landsat: southern scenes in northern zones
        crs, f = crs.replace("EPSG:327", "EPSG:326"), f - 10_000_000.0
    transform = (a, b, c + archive.anchor, d, e, f - archive.anchor)  # the archive's own grid, half a pixel off
    name = f"{archive.sensor}_{place.lat:.3f}_{place.lon:.3f}_{utc:%Y%m%d}"
    return write_item(folder, archive, name, pixels, crs, transform, utc, labels=labels, cloud=chip.cloud,
                      shadow=chip.shadow)  # fmt: skip


def _apply_event(pixels, labels, chip: Chip, event: Event, earth: MiniWorld) -> None:
    """Paint another class into the chip, as the same sensor sees it on the same day, at the nearest latitude."""
    height, width = labels.shape
    rows, columns = np.mgrid[:height, :width]
    east = (columns - width / 2 + 0.5) * chip.gsd - event.east
    north = (height / 2 - rows - 0.5) * chip.gsd - event.north
    angle = np.arctan2(north, east)
    inside = np.hypot(east, north) < event.radius * (1 + 0.12 * np.sin(3 * angle + 1) + 0.07 * np.sin(7 * angle))
    if not inside.any():
        return
    places = (earth.place(event.land_cover, n, "train") for n in range(NEAREST_OF))
    other = earth.observe(min(places, key=lambda p: abs(p.lat - chip.lat)), chip.sensor, chip.when, (height, width))
    same = (other.labels == event.land_cover).ravel()
    rng = np.random.default_rng([earth.seed, int(same.sum())])
    source = np.where(same, np.arange(same.size), rng.choice(np.flatnonzero(same), same.size)).reshape(height, width)
    pixels[:, inside] = other.pixels.reshape(len(pixels), -1)[:, source[inside]]
    labels[inside] = event.land_cover


def _add_raster(folder: Path, archive: Archive, source: str | Path | Scene) -> dict:
    """A raster file or Scene with all bands of the sensor; sides are cut to even numbers, for Sentinel-2's 20 m."""
    scene = source if isinstance(source, Scene) else read_scene(source, archive.sensor)
    if scene.crs is None or set(scene.bands) != set(scene.sensor.band_names):
        found = f"{scene.path}: bands {list(scene.bands)}, CRS {scene.crs}"
        expected = f"all bands of {scene.sensor.name}, with a place on Earth"
        raise ContractError("rasters", found, expected, "a plain image, or another product")
    order = np.argsort(scene.sensor.indices(scene.bands))
    height, width = (side // 2 * 2 for side in scene.pixels.shape[1:])
    pixels, missing = scene.pixels[order, :height, :width], scene.missing[order, :height, :width]
    if scene.in_decibel:
        pixels = (10 ** (pixels.astype(np.float64) / 10)).astype(np.float32)
    when = (parse_when(scene.when) or datetime(2020, 6, 15, 10, 30)).replace(tzinfo=UTC)
    name = f"{archive.sensor}_{Path(scene.path).stem}"
    return write_item(folder, archive, name, pixels, scene.crs, scene.transform, when, missing=missing)


# ---- items ----


def write_item(
    folder: Path, archive: Archive, name: str, pixels, crs: str, transform, when: datetime, *,
    labels=None, missing=False, cloud=False, shadow=False,
) -> dict:  # fmt: skip
    """Write the files of one scene below a folder -> its STAC item, with addresses relative to the folder.

    pixels [C, H, W]: native numbers, all bands of the sensor in its order; transform: (a, b, c, d, e, f); when: UTC;
    labels [H, W]: WorldCover codes. bool, False for nowhere: missing [C, H, W], cloud and its shadow [H, W].
    """
    missing = np.broadcast_to(missing, pixels.shape)
    cloud, shadow = (np.broadcast_to(mask, pixels.shape[1:]) for mask in (cloud, shadow))
    bands, root = SENSORS[archive.sensor].band_names, Path(archive.sensor) / name
    epsg = CRS.from_user_input(crs).to_epsg()
    properties = {"gsd": SENSORS[archive.sensor].gsd, "proj:epsg": epsg} | _times(archive, when)
    if not epsg:
        properties["proj:wkt2"] = CRS.from_user_input(crs).to_wkt()
    scaling, stored = {}, pixels
    if archive.baseline:
        properties["s2:processing_baseline"] = "05.09"
        if archive.name == "earth-search":  # which removes the offset before it publishes
            properties["earthsearch:boa_offset_applied"] = True
            scaling = {"scale": archive.native["scale"], "offset": 0.0}
        else:
            stored = pixels.astype(np.int64) - round(BASELINE_OFFSET / archive.native["scale"])
        stored = np.clip(stored, 1, 65535).astype(np.uint16)
    elif archive.native is not None and not archive.scaling:
        scaling = {key: value for key, value in archive.native.items() if value or key == "scale"}
    if archive.shared_fill is not None:
        stored = np.where(missing.all(0), archive.shared_fill, stored).astype(stored.dtype)
    elif archive.nodata is not None:
        stored = np.where(missing, archive.nodata, stored).astype(stored.dtype)
    if archive.mask:
        properties["eo:cloud_cover"] = round(100 * float(cloud.mean()), 2)
    metadata = scaling | ({} if archive.nodata is None else {"nodata": archive.nodata})
    assets, coarse = {}, coarser(transform, 2)
    for key in dict.fromkeys(entry.partition(".")[0] for entry in archive.assets.values()):
        inside = [band for band, entry in archive.assets.items() if entry.partition(".")[0] == key]
        values, grid = np.stack([stored[bands.index(band)] for band in inside]), transform
        if archive.baseline and inside[0] in COARSE:
            values, grid = _halve(values), coarse
        assets[key] = _write_asset(folder, root / f"{key}.tif", values, crs, grid, archive.nodata, metadata)
    if archive.mask:
        classes, grid = _classify(archive, labels, cloud, shadow, missing.all(0)), transform
        if archive.baseline:
            classes, grid = classes[::2, ::2], coarse
        assets[archive.mask] = _write_asset(folder, root / f"{archive.mask}.tif", classes[None], crs, grid, None, {})
    box = bounds_wgs84(crs, transform, *cloud.shape)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in EXTENSIONS],
        "id": name,
        "collection": archive.collection or archive.name,
        "bbox": list(box),
        "geometry": shapely.geometry.mapping(shapely.box(*box)),
        "properties": properties,
        "links": [],
        "assets": assets,
    }


def _classify(archive: Archive, labels, cloud, shadow, missing) -> np.ndarray:
    """The archive's own pixel classes: SCL, QA_PIXEL, or MODIS's state bits."""
    if archive.baseline:
        table = np.full(256, SCL_BARE, np.uint8)
        table[list(SCL)] = list(SCL.values())
        ground = table[np.zeros(cloud.shape, np.uint8) if labels is None else labels]
        ground = np.where(shadow, SCL_SHADOW, ground)
        return np.where(missing, 0, np.where(cloud, SCL_CLOUD, ground)).astype(np.uint8)
    if archive.sensor == "modis":
        return (cloud + 4 * shadow).astype(np.uint16)
    ground = np.where(shadow, QA_SHADOW, QA_CLEAR)
    return np.where(missing, QA_FILL, np.where(cloud, QA_CLOUD, ground)).astype(np.uint16)


def _write_asset(folder: Path, path: Path, values: np.ndarray, crs, transform, nodata, metadata: dict) -> dict:
    """Write values [C, H, W] as a COG -> its asset."""
    bands, height, width = values.shape
    profile = dict(driver="COG", count=bands, height=height, width=width, dtype=values.dtype.name, crs=crs)
    profile |= dict(transform=rasterio.Affine(*transform[:6]), compress="deflate", blocksize=256, predictor="YES")
    profile |= dict(nodata=nodata, overview_resampling="nearest")

    def write(partial: Path) -> None:
        with rasterio.open(partial, "w", **profile) as target:
            target.write(values)

    atomic_write(folder / path, write)
    band = {"data_type": values.dtype.name, "spatial_resolution": abs(transform[0])} | metadata
    return {
        "href": path.as_posix(),
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "proj:shape": [height, width],
        "proj:transform": list(transform[:6]),
        "raster:bands": [band] * bands,
        "file:size": (folder / path).stat().st_size,
    }


def _halve(values: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, [C, H, W] -> [C, H/2, W/2]; zero, Sentinel-2's fill, where one of them is zero."""
    cells = values.reshape(len(values), values.shape[1] // 2, 2, values.shape[2] // 2, 2)
    return np.where((cells == 0).any(axis=(2, 4)), 0, np.rint(cells.mean(axis=(2, 4)))).astype(values.dtype)


def _times(archive: Archive, when: datetime) -> dict:
    """One moment; MODIS composites have eight days and aerial surveys one, without a moment of their own."""
    days = {"modis": 8, "linz": 1}.get(archive.sensor)
    first, last = (f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (when, when + timedelta(days=days or 0, seconds=-1)))
    return {"datetime": None, "start_datetime": first, "end_datetime": last} if days else {"datetime": first}


def _write_catalog(folder: Path, items: list[dict]) -> None:
    """A static catalog in LINZ's layout: a survey is a collection, with its tiles in the same folder."""
    surveys: dict[str, list[dict]] = defaultdict(list)
    for item in items:
        surveys[item["properties"]["start_datetime"][:10]].append(item)
    common, children = {"stac_version": "1.0.0", "description": "aerial surveys"}, []
    for day, tiles in surveys.items():
        name = f"survey_{day[:4]}_0.5m/{day}"
        for tile in tiles:
            assets = {k: {"href": f"../../{v['href']}", "type": v["type"]} for k, v in tile["assets"].items()}
            times = {key: value for key, value in tile["properties"].items() if "datetime" in key}
            content = tile | {"collection": day, "assets": assets, "properties": times}
            write_json(folder / name / f"{tile['id']}.json", content)
        boxes = np.array([tile["bbox"] for tile in tiles])
        bbox = [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]
        interval = [tiles[0]["properties"]["start_datetime"], tiles[-1]["properties"]["end_datetime"]]
        extent = {"spatial": {"bbox": [bbox]}, "temporal": {"interval": [interval]}}
        links = [{"rel": "item", "href": f"./{tile['id']}.json"} for tile in tiles]
        survey = {"type": "Collection", "id": day, "license": "CC0-1.0", "extent": extent, "links": links}
        write_json(folder / name / "collection.json", common | survey)
        children.append({"rel": "child", "href": f"./{name}/collection.json"})
    write_json(folder / "catalog.json", common | {"type": "Catalog", "id": "static", "links": children})


# ---- servers ----


@contextlib.contextmanager
def serve_archive(folder: str | Path, *, port: int = 0) -> Iterator[str]:
    """The address of a STAC API over what `write_archive` wrote, while the block runs.

    `rustac serve` answers searches, Starlette serves ranges of files below /files, behind one loopback address.
    port: 0 takes a free one. Static catalogs, such as LINZ's, are at its /catalog.json.
    """
    folder, program = Path(folder), rustac()
    if not (folder / "items.json").is_file():
        found, expected = folder / "items.json", "a folder that write_archive finished"
        raise ContractError("archive", found, expected, "another folder")
    if program is None:
        raise ContractError("archive", "no rustac", "the package rustac", "pip install rustac")
    port, inner = port or _free_port(), _free_port()
    url = f"http://127.0.0.1:{port}"
    items = json.loads((folder / "items.json").read_text())
    for item in items["features"]:
        for asset in item["assets"].values():
            asset["href"] = f"{url}/files/{asset['href']}"
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        absolute = Path(scratch) / "items.json"
        absolute.write_text(json.dumps(items))
        log = stack.enter_context(open(Path(scratch) / "log", "w+"))
        command = [program, "serve", "--use-duckdb", "false", "--create-collections"]
        command += ["--addr", url, "--bind", f"127.0.0.1:{inner}", str(absolute)]
        api = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        stack.callback(api.kill)
        config = uvicorn.Config(_app(folder, inner), port=port, log_level="error", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(setattr, server, "should_exit", True)
        _wait(url, api, thread, log)
        yield url


def rustac() -> str | None:
    """Path of the program: beside this Python, else on the PATH."""
    return shutil.which("rustac", path=Path(sys.executable).parent) or shutil.which("rustac")


def _app(folder: Path, inner: int) -> Starlette:
    """Files of the folder, and everything else from the API at the inner port."""

    async def search(request: Request) -> Response:
        address = str(request.url.replace(netloc=f"127.0.0.1:{inner}"))
        headers = {key: value for key, value in request.headers.items() if key == "content-type"}
        options = dict(data=await request.body(), headers=headers, timeout=60)
        try:
            answer = await run_in_threadpool(requests.request, request.method, address, **options)
        except requests.ConnectionError:  # it has not started yet
            return Response(status_code=503)
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    files = Mount("/files", StaticFiles(directory=folder))
    catalog = Route("/catalog.json", lambda request: RedirectResponse("/files/catalog.json"))
    return Starlette(routes=[files, catalog, Route("/{path:path}", search, methods=["GET", "POST"])])


def _wait(url: str, api: subprocess.Popen, thread: threading.Thread, log) -> None:
    end = time.monotonic() + STARTUP
    while time.monotonic() < end and api.poll() is None and thread.is_alive():
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/collections", timeout=5).ok:
                return
        time.sleep(0.1)
    log.seek(0)
    message = " ".join(log.read().split())[-300:] or "no message"
    expected, cause = f"rustac and the file server within {STARTUP:g} s", "the port was taken, or items.json is broken"
    raise ContractError("archive", f"no answer at {url}: {message}", expected, cause)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
