"""Items of a local archive: COGs, and what is said of them, laid out as the public archive of the sensor has it.

Its asset names, its units and fills, its coarser bands, its classes: so that one profile reads both.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import rasterio
import shapely.geometry
from rasterio.crs import CRS

from clay_lib.archive_items import BASELINE_OFFSET
from clay_lib.archive_profiles import Archive
from clay_lib.files import write_whole
from clay_lib.georeference import bounds_wgs84
from clay_lib.sensors import SENSORS

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

    write_whole(folder / path, fill)
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
