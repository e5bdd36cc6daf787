"""A local archive: the mini-world, or files of one's own, as COGs and STAC items behind real servers on this machine.

Items and files are laid out as the public archive of each sensor lays them out, so that its profile in archives.yaml
reads them: only the address differs.

    >>> write_archive("data/cache/archive", dates=("2023-05-20", "2023-08-20"), events=(Event("2023-07-01"),))
    >>> with serve_archive("data/cache/archive") as url:
    ...     looks = find_looks("sentinel-2-l2a", area, "2023-05-01/2023-09-30", url=url)
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import numpy as np
import rasterio
import shapely.geometry
import uvicorn
from rasterio.crs import CRS
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from clay_lib.areas.items import BASELINE_OFFSET, Archive, choose_archive
from clay_lib.data.rasters import Scene, bounds_wgs84, read_scene
from clay_lib.datacube import parse_when
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, write_json
from clay_lib.sensors import SENSORS
from clay_lib.world.earth import Chip, MiniWorld, Place

SCL = {10: 4, 20: 4, 30: 4, 40: 4, 50: 5, 60: 5, 70: 11, 80: 6, 90: 4, 95: 4, 100: 4}  # of WorldCover's classes
SCL_CLOUD, SCL_BARE = 9, 5
QA_FILL, QA_CLOUD, QA_CLEAR = 1, 8, 64  # of Landsat's QA_PIXEL
COARSE = ("rededge1", "rededge2", "rededge3", "nir08", "swir16", "swir22")  # Sentinel-2's bands of 20 m
EXTENSIONS = ["eo/v1.1.0", "raster/v1.1.0", "projection/v1.1.0", "file/v2.1.0"]


def write_item(
    folder: Path,
    archive: Archive,
    name: str,
    pixels: np.ndarray,
    *,
    missing: np.ndarray,
    labels: np.ndarray | None,
    cloud: np.ndarray,
    crs: str,
    transform: tuple[float, ...],
    when: datetime,
) -> dict:
    """Write the files of one scene below a folder -> its STAC item, with addresses relative to the folder.

    pixels [C, H, W]: native numbers, all bands of the sensor in its order; missing [C, H, W]; labels [H, W]: WorldCover
    codes; cloud [H, W]; when: UTC.
    """
    bands, root = SENSORS[archive.sensor].band_names, Path(archive.sensor) / name
    properties, said = {"gsd": SENSORS[archive.sensor].gsd} | _crs_said(crs) | _times(archive, when), {}
    stored = pixels
    if archive.baseline:
        properties["s2:processing_baseline"] = "05.09"
        if archive.name == "earth-search":  # which takes the offset off before it publishes
            properties["earthsearch:boa_offset_applied"] = True
            said = {"scale": archive.native["scale"], "offset": 0.0}
        else:
            stored = pixels.astype(np.int64) - round(BASELINE_OFFSET / archive.native["scale"])
        stored = np.clip(stored, 1, 65535).astype(np.uint16)
    elif archive.native is not None and not archive.stated:
        said = {key: value for key, value in archive.native.items() if value or key == "scale"}
    fill = archive.nodata if archive.together is None else archive.together
    if fill is not None:
        stored = np.where(missing if archive.together is None else missing.all(0), fill, stored).astype(stored.dtype)
    if archive.mask:
        properties["eo:cloud_cover"] = round(100 * float(cloud.mean()), 2)
    assets = {}
    for key in dict.fromkeys(entry.partition(".")[0] for entry in archive.assets.values()):
        inside = [band for band, entry in archive.assets.items() if entry.partition(".")[0] == key]
        values, grid = np.stack([stored[bands.index(band)] for band in inside]), transform
        if archive.baseline and inside[0] in COARSE:
            values, grid = _halved(values), _doubled(transform)
        told = said | ({} if archive.nodata is None else {"nodata": archive.nodata})
        assets[key] = _write_asset(folder, root / f"{key}.tif", values, crs, grid, archive, told)
    if archive.mask:
        classes, grid = _classes(archive, labels, cloud, missing.all(0)), transform
        if archive.baseline:
            classes, grid = classes[::2, ::2], _doubled(transform)
        assets[archive.mask] = _write_asset(folder, root / f"{archive.mask}.tif", classes[None], crs, grid, None, {})
    box = bounds_wgs84(crs, transform, *cloud.shape)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in EXTENSIONS],
        "id": name,
        "collection": archive.collection or archive.name,
        "bbox": list(box),
        "geometry": shapely.geometry.mapping(shapely.geometry.box(*box)),
        "properties": properties,
        "links": [],
        "assets": assets,
    }


def _classes(archive: Archive, labels, cloud, missing) -> np.ndarray:
    """What the archive's own classification would say: SCL, QA_PIXEL, or MODIS's state bits."""
    if archive.baseline:
        table = np.full(256, SCL_BARE, np.uint8)
        table[list(SCL)] = list(SCL.values())
        ground = table[np.zeros(cloud.shape, np.uint8) if labels is None else labels]
        return np.where(missing, 0, np.where(cloud, SCL_CLOUD, ground)).astype(np.uint8)
    if archive.sensor == "modis":
        return cloud.astype(np.uint16)
    return np.where(missing, QA_FILL, np.where(cloud, QA_CLOUD, QA_CLEAR)).astype(np.uint16)


def _write_asset(folder: Path, path: Path, values, crs, transform, archive: Archive | None, said) -> dict:
    count, height, width = values.shape
    profile = dict(driver="COG", count=count, height=height, width=width, dtype=values.dtype.name, crs=crs)
    profile |= dict(transform=rasterio.Affine(*transform[:6]), compress="deflate", blocksize=256, predictor="YES")
    profile |= dict(nodata=archive.nodata if archive else None, overview_resampling="nearest")

    def fill(unfinished: Path) -> None:
        with rasterio.open(unfinished, "w", **profile) as target:
            target.write(values)

    atomic_write(folder / path, fill)
    one = {"data_type": values.dtype.name, "spatial_resolution": abs(transform[0])} | said
    return {
        "href": path.as_posix(),
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "proj:shape": [height, width],
        "proj:transform": list(transform[:6]),
        "raster:bands": [one] * count,
        "file:size": (folder / path).stat().st_size,
    }


def _halved(values: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, [C, H, W] -> [C, H/2, W/2]; zero, Sentinel-2's fill, where one of them is."""
    cells = values.reshape(len(values), values.shape[1] // 2, 2, values.shape[2] // 2, 2)
    return np.where((cells == 0).any(axis=(2, 4)), 0, np.rint(cells.mean(axis=(2, 4)))).astype(values.dtype)


def _doubled(transform) -> tuple[float, ...]:
    a, b, c, d, e, f = transform[:6]
    return 2 * a, b, c, d, 2 * e, f


def _crs_said(crs: str) -> dict:
    parsed = CRS.from_user_input(crs)
    epsg = parsed.to_epsg()
    return {"proj:epsg": epsg} if epsg else {"proj:epsg": None, "proj:wkt2": parsed.to_wkt()}


def _times(archive: Archive, when: datetime) -> dict:
    """One moment; of MODIS eight days, and of a flight a day, which have no moment of their own."""
    span = {"modis": 8, "linz": 1}.get(archive.sensor)
    if not span:
        return {"datetime": _utc(when)}
    last = when + timedelta(days=span, seconds=-1)
    return {"datetime": None, "start_datetime": _utc(when), "end_datetime": _utc(last)}


def _utc(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")


# ---- Serving a local archive: `rustac serve` answers searches, Starlette the ranges of files, behind one  ----

PATIENCE = 60.0  # s until both servers answer


@contextlib.contextmanager
def serve_archive(folder: str | Path, *, port: int = 0) -> Iterator[str]:
    """The address of a STAC API over what `write_archive` wrote, while the block runs; files are below it, in ranges.

    port: 0 takes a free one. Static catalogues, such as LINZ's, hang below its /catalog.json.
    """
    folder = Path(folder)
    items = folder / "items.json"
    if not items.is_file():
        raise ContractError("archive", str(items), "a folder that write_archive finished", "another folder")
    program = rustac()
    if program is None:
        raise ContractError("archive", "no rustac", "the package rustac", "pip install rustac")
    port, inner = port or _free_port(), _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as ends:
        listed = Path(scratch) / "items.json"
        listed.write_text(json.dumps(_placed(json.loads(items.read_text()), f"{url}/files")))
        log = ends.enter_context(open(Path(scratch) / "log", "w+"))
        command = [program, "serve", "--use-duckdb", "false", "--create-collections"]
        command += ["--addr", url, "--bind", f"127.0.0.1:{inner}", str(listed)]
        api = subprocess.Popen(command, stdout=log, stderr=log)
        ends.callback(_end, api)
        config = uvicorn.Config(
            _app(folder, inner), host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        ends.callback(thread.join, 10)
        ends.callback(setattr, server, "should_exit", True)
        _wait(url, api, thread, log)
        yield url


def rustac() -> str | None:
    """Where the program is: beside this Python, else on the path."""
    beside = Path(sys.executable).parent / "rustac"
    return str(beside) if beside.is_file() else shutil.which("rustac")


def _placed(items: dict, root: str) -> dict:
    """Items whose relative addresses lie below root."""
    for item in items["features"]:
        for asset in item["assets"].values():
            asset["href"] = f"{root}/{asset['href']}"
    return items


def _app(folder: Path, inner: int) -> Starlette:
    """Files of the folder, and everything else from the API behind."""

    async def search(request: Request) -> Response:
        body = await request.body()
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return await run_in_threadpool(_forward, f"http://127.0.0.1:{inner}{path}", request.method, body)

    async def catalogue(request: Request) -> Response:
        return RedirectResponse("/files/catalog.json")

    files = Mount("/files", StaticFiles(directory=folder))
    return Starlette(
        routes=[files, Route("/catalog.json", catalogue), Route("/{path:path}", search, methods=["GET", "POST"])]
    )


def _forward(address: str, method: str, body: bytes) -> Response:
    headers = {"content-type": "application/json"} if body else {}
    request = urllib.request.Request(address, data=body or None, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Response(answer.read(), answer.status, media_type=answer.headers.get_content_type())
    except urllib.error.HTTPError as error:
        return Response(error.read(), error.code, media_type=error.headers.get_content_type())
    except OSError as error:
        return Response(str(error), 502)


def _wait(url: str, api: subprocess.Popen, thread: threading.Thread, log) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and api.poll() is None and thread.is_alive():
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{url}/collections", timeout=5) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.1)
    log.seek(0)
    told = " ".join(log.read().split())[-300:]
    raise ContractError(
        "archive",
        f"no answer at {url}: {told or 'no message'}",
        f"rustac and the file server within {PATIENCE:g} s",
        "the port was taken in between, or items.json is broken: write the archive again",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- A local archive: the mini-world, or files of one's own, as COGs and STAC items behind real servers o ----

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
        raise ContractError("archive", "no sensors and no rasters", "at least one", "empty lists")
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
        raise ContractError("lat, lon", (lat, lon), "both, or neither", "half a place")
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
            f"{scene.path}: bands {list(scene.bands)}, CRS {scene.crs}",
            f"all bands of {scene.sensor.name}, with a place on Earth",
            "a picture, or another product",
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
