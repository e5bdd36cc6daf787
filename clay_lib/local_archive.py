"""A local archive: the mini-world, or files of one's own, as COGs and STAC items behind real servers on this machine.

Items and files are laid out as the public archive of each sensor lays them out, so that its profile in archives.yaml
reads them: only the address differs.

    >>> write_archive("data/cache/archive", dates=("2023-05-20", "2023-08-20"), events=(Event("2023-07-01"),))
    >>> with serve_archive("data/cache/archive") as url:
    ...     looks = find_looks("sentinel-2-l2a", area, "2023-05-01/2023-09-30", url=url)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import rasterio
import shapely.geometry

from clay_lib.archive_profiles import Archive, choose_archive
from clay_lib.contract import ContractError
from clay_lib.files import write_whole
from clay_lib.local_server import serve_archive
from clay_lib.miniworld import Chip, MiniWorld, Place
from clay_lib.scenes import Scene, bounds_wgs84, read_scene
from clay_lib.sensors import SENSORS

__all__ = ["Event", "serve_archive", "write_archive"]

SCL = {10: 4, 20: 4, 30: 4, 40: 4, 50: 5, 60: 5, 70: 11, 80: 6, 90: 4, 95: 4, 100: 4}  # of WorldCover's classes
SCL_CLOUD, SCL_LAND, QA_CLEAR, QA_CLOUD = 9, 5, 64, 8
COARSE = ("rededge1", "rededge2", "rededge3", "nir08", "swir16", "swir22")  # Sentinel-2's bands of 20 m
FEWEST, MOST = 64, 2048  # pixels a side of one sensor's scene


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
    extent: float = 5120.0,
    dates: Sequence[str] = ("2023-05-20", "2023-06-10", "2023-08-20"),
    events: Sequence[Event] = (),
    clouds: Sequence[float] = (),
    rasters: Mapping[str, Iterable[str | Path | Scene]] | None = None,
    archives: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """COGs and items of the mini-world around a place, and of raster files, in a folder that `serve_archive` serves.

    place: by default a forest. extent: metres a side, within 64 to 2048 pixels of each sensor. clouds: a share for each
    date, from Sentinel-2's SCL to Landsat's QA; radar sees through. rasters: {sensor: files or Scenes} beside it.
    archives: {sensor: name} where another than the first archive of a sensor is to be imitated.
    Returns the folder; items.json is written last.
    """
    folder, earth = Path(folder), MiniWorld(seed)
    place = place or earth.place(10, 0, "test")
    items: list[dict] = []
    for sensor in sensors:
        known = choose_archive(SENSORS[sensor], (archives or {}).get(sensor))
        size = int(np.clip(round(extent / SENSORS[sensor].gsd), FEWEST, MOST)) // 2 * 2
        for number, day in enumerate(dates):
            cover = clouds[number] if number < len(clouds) else 0.0
            items.append(_observed(folder, known, earth, place, day, size, cover, events))
    for sensor, sources in (rasters or {}).items():
        known = choose_archive(SENSORS[sensor], (archives or {}).get(sensor))
        items += [_of_scene(folder, known, source) for source in sources]
    if not items:
        raise ContractError("archive", found="no sensors and no rasters", expected="at least one", cause="empty lists")
    write_whole(folder / "items.json", lambda path: path.write_text(json.dumps(_collection(items), indent=1)))
    return folder


# ---- the mini-world ----


def _observed(folder, archive: Archive, earth: MiniWorld, place, day, size, cover, events) -> dict:
    when = day if "T" in day else f"{day}T10:30"
    chip = earth.observe(place, archive.sensor, when, size, cover)
    pixels, labels = chip.pixels.copy(), chip.labels.copy()
    for event in events:
        if day >= event.day:
            _paint(pixels, labels, chip, event, earth)
    clouds = chip.cloud if archive.sensor != "sentinel-1-rtc" else np.zeros_like(chip.cloud)
    utc = (chip.when - timedelta(hours=chip.lon / 15)).replace(tzinfo=UTC, microsecond=0)
    name = f"{archive.sensor}_{place.lat:.3f}_{place.lon:.3f}_{utc:%Y%m%d}".replace("-", "m" if False else "-")
    missing = np.zeros(pixels.shape, bool)
    return _write_item(folder, archive, name, pixels, missing, labels, clouds, chip.crs, chip.transform, utc)


def _paint(pixels, labels, chip: Chip, event: Event, earth: MiniWorld) -> None:
    """Another class where the event is, as the same sensor sees it on the same day at the nearest latitude."""
    height, width = labels.shape
    y, x = np.mgrid[:height, :width]
    east = (x - width / 2 + 0.5) * chip.gsd - event.east
    north = (height / 2 - y - 0.5) * chip.gsd - event.north
    angle = np.arctan2(north, east)
    edge = event.radius * (1 + 0.12 * np.sin(3 * angle + 1) + 0.07 * np.sin(7 * angle))
    inside = np.hypot(east, north) < edge
    if not inside.any():
        return
    places = [earth.place(event.land_cover, n, "train") for n in range(8)]
    there = min(places, key=lambda p: abs(p.lat - chip.lat))
    other = earth.observe(there, chip.sensor, chip.when, (height, width))
    same = other.labels == event.land_cover
    cells = np.flatnonzero(same.ravel())
    rng = np.random.default_rng([earth.seed, len(cells)])
    take = np.where(same.ravel(), np.arange(same.size), rng.choice(cells, same.size)).reshape(same.shape)
    pixels[:, inside] = other.pixels.reshape(len(pixels), -1)[:, take[inside]]
    labels[inside] = event.land_cover


# ---- files ----


def _of_scene(folder: Path, archive: Archive, source: str | Path | Scene) -> dict:
    scene = source if isinstance(source, Scene) else read_scene(source, archive.sensor)
    if scene.crs is None:
        raise ContractError("rasters", found=f"{scene.path}, without a CRS", expected="a place", cause="a picture")
    when = datetime.fromisoformat(scene.when) if scene.when else datetime(2020, 6, 15, 10, 30)
    pixels = scene.pixels
    if scene.in_decibel:
        pixels = (10 ** (pixels.astype(np.float64) / 10)).astype(np.float32)
    order = scene.sensor.indices(scene.bands)
    pixels = pixels[np.argsort(order)]
    missing = scene.missing[np.argsort(order)]
    name = f"{archive.sensor}_{Path(scene.path).stem}"
    nothing = np.zeros(pixels.shape[1:], bool)
    return _write_item(
        folder, archive, name, pixels, missing, None, nothing, scene.crs, scene.transform, when.replace(tzinfo=UTC)
    )


# ---- items ----


def _write_item(folder, archive, name, pixels, missing, labels, cloud, crs, transform, when) -> dict:
    bands = SENSORS[archive.sensor].band_names
    root = Path(archive.sensor) / name
    west, south, east, north = bounds_wgs84(crs, transform, *cloud.shape)
    properties = {"datetime": when.isoformat().replace("+00:00", "Z"), "gsd": SENSORS[archive.sensor].gsd}
    properties |= _crs_said(crs)
    if archive.mask:
        properties["eo:cloud_cover"] = round(100 * float(cloud.mean()), 2)
    fill = archive.together if archive.together is not None else archive.nodata
    extra, stored, kind = {}, pixels, {}
    if archive.baseline:
        kept = archive.name == "planetary-computer"
        properties["s2:processing_baseline"] = "05.09"
        if kept:
            stored = np.where(missing, 0, np.clip(pixels.astype(np.int64) + 1000, 1, 65535))
        else:
            properties["earthsearch:boa_offset_applied"] = True
            kind = {"scale": 0.0001, "offset": 0.0}
        stored = stored.astype(np.uint16)
    elif archive.native is not None:
        kind = {"scale": archive.native["scale"]} | (
            {"offset": archive.native["offset"]} if archive.native["offset"] else {}
        )
    if fill is not None:
        stored = np.where(missing, fill, stored).astype(stored.dtype)
    if archive.sensor == "modis":
        properties["start_datetime"] = properties["datetime"]
        properties["end_datetime"] = (when + timedelta(days=8, seconds=-1)).isoformat().replace("+00:00", "Z")
        properties["datetime"] = None
    assets = {}
    for key in dict.fromkeys(entry.partition(".")[0] for entry in archive.assets.values()):
        inside = [band for band, entry in archive.assets.items() if entry.partition(".")[0] == key]
        values = np.stack([stored[bands.index(band)] for band in inside])
        place = transform
        if archive.sensor == "sentinel-2-l2a" and inside[0] in COARSE:
            values, place = _halved(values), _doubled(transform)
        said = {"data_type": values.dtype.name} | kind | ({} if archive.nodata is None else {"nodata": archive.nodata})
        assets[key] = _write_asset(folder, root / f"{key}.tif", values, crs, place, archive.nodata, said)
    if archive.mask:
        classes, place = _classes(archive, labels, cloud, missing.all(0)), transform
        if archive.sensor == "sentinel-2-l2a":
            classes, place = classes[::2, ::2], _doubled(transform)
        assets[archive.mask] = _write_asset(folder, root / f"{archive.mask}.tif", classes[None], crs, place, None, {})
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
        ],
        "id": name,
        "collection": archive.collection or archive.name,
        "bbox": [west, south, east, north],
        "geometry": shapely.geometry.mapping(shapely.geometry.box(west, south, east, north)),
        "properties": properties,
        "links": [],
        "assets": assets,
    }


def _classes(archive: Archive, labels, cloud, missing) -> np.ndarray:
    """What the archive's own classification would say: SCL, QA_PIXEL, or MODIS's state bits."""
    if archive.sensor == "sentinel-2-l2a":
        table = np.full(256, SCL_LAND, np.uint8)
        for code, value in SCL.items():
            table[code] = value
        ground = np.full(cloud.shape, SCL_LAND, np.uint8) if labels is None else table[labels]
        return np.where(missing, 0, np.where(cloud, SCL_CLOUD, ground)).astype(np.uint8)
    if archive.sensor == "modis":
        return np.where(cloud, 1, 0).astype(np.uint16)
    return np.where(missing, 1, np.where(cloud, QA_CLOUD, QA_CLEAR)).astype(np.uint16)


def _write_asset(folder, path, values, crs, transform, nodata, said) -> dict:
    count, height, width = values.shape
    profile = dict(driver="COG", count=count, height=height, width=width, dtype=values.dtype.name, nodata=nodata)
    profile |= dict(crs=crs, transform=rasterio.Affine(*transform[:6]), compress="deflate", blocksize=256)
    profile |= dict(predictor="YES", overview_resampling="nearest")

    def fill(unfinished: Path) -> None:
        with rasterio.open(unfinished, "w", **profile) as target:
            target.write(values)

    write_whole(folder / path, fill)
    return {
        "href": str(path),
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "proj:shape": [height, width],
        "proj:transform": list(transform[:6]),
        "raster:bands": [said | {"spatial_resolution": abs(transform[0])}] * count,
        "file:size": (folder / path).stat().st_size,
    }


def _halved(values: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, [C, H, W] -> [C, H/2, W/2]; zero, Sentinel-2's fill, where one of them is."""
    count, height, width = values.shape
    cells = values[:, : height // 2 * 2, : width // 2 * 2].reshape(count, height // 2, 2, width // 2, 2)
    mean = np.rint(cells.mean(axis=(2, 4))).astype(values.dtype)
    return np.where((cells == 0).any(axis=(2, 4)), 0, mean).astype(values.dtype)


def _doubled(transform) -> tuple[float, ...]:
    a, b, c, d, e, f = transform[:6]
    return 2 * a, b, c, d, 2 * e, f


def _crs_said(crs: str) -> dict:
    parsed = rasterio.crs.CRS.from_user_input(crs)
    epsg = parsed.to_epsg()
    return {"proj:epsg": epsg} if epsg else {"proj:epsg": None, "proj:wkt2": parsed.to_wkt()}


def _collection(items) -> dict:
    return {"type": "FeatureCollection", "features": list(items)}
