"""Scenes, areas and grids for the tests of archives."""

import contextlib

import numpy as np
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox

from clay_lib.areas.archives import find_acquisitions
from clay_lib.areas.local import serve_archive, write_archive
from clay_lib.data.scenes import Scene
from clay_lib.sensors import SENSORS
from clay_lib.world.earth import Place

PLACE, ALWAYS, DAY = Place(48.2, 15.3), "2023-01-01/2023-12-31", "2023-06-10"


def around(degrees=0.02):
    return PLACE.lon - degrees, PLACE.lat - degrees, PLACE.lon + degrees, PLACE.lat + degrees


def file_of(acquisition, folder, url, key):
    """Path of an asset behind its address."""
    asset = acquisition.items[0].assets[key]
    return folder / (asset.get_absolute_href() or asset.href).removeprefix(f"{url}/files/")


def grid_of(path) -> GeoBox:
    with rasterio.open(path) as file:
        return GeoBox(file.shape, file.transform, file.crs)


def array_of(data: xr.Dataset) -> np.ndarray:
    return np.stack([data[band].values for band in data.data_vars])


def scene_of(sensor, pixels, missing=None, *, crs="EPSG:32633", transform=None, name="scene") -> Scene:
    sensor = SENSORS[sensor]
    transform = transform or (sensor.gsd, 0.0, 480000.0, 0.0, -sensor.gsd, 5320000.0)
    missing = np.zeros(pixels.shape, bool) if missing is None else missing
    return Scene(
        pixels, sensor.band_names, sensor, crs, transform, sensor.gsd, 48, 15, f"{DAY}T10:30", missing, path=name
    )


def grid_of_scene(scene: Scene) -> GeoBox:
    return GeoBox(scene.pixels.shape[1:], rasterio.Affine(*scene.transform), scene.crs)


@contextlib.contextmanager
def served(folder, *scenes, archive=None):
    """(acquisition of the scenes in a served archive, address)."""
    sensor = scenes[0].sensor
    archives = {sensor.name: archive} if archive else None
    write_archive(folder, sensors=(), rasters={sensor.name: scenes}, archives=archives)
    boxes = np.array([grid_of_scene(scene).footprint("EPSG:4326").boundingbox.bbox for scene in scenes])
    area = (*boxes[:, :2].min(0), *boxes[:, 2:].max(0))
    with serve_archive(folder) as address:
        (acquisition,) = find_acquisitions(sensor, area, DAY, url=address, archive=archive)
        yield acquisition, address
