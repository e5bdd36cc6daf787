"""Files as an archive: a GeoTIFF, COG, VRT or folder of single-band files becomes a look, read by the same code."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pystac
import shapely
import shapely.geometry
from rasterio.crs import CRS

from clay_lib.archive_profiles import Archive, Look
from clay_lib.contract import ContractError
from clay_lib.datacube import parse_when
from clay_lib.georeference import bounds_wgs84
from clay_lib.missing import MODIS_FILL
from clay_lib.scenes import find_layers
from clay_lib.sensors import SENSORS, Sensor
from clay_lib.tiles import cut_at_antimeridian


def file_look(path, sensor: str | Sensor, *, when: str | datetime | None = None, bands=None) -> Look:
    """A raster file, a folder of single-band files or a list of them as a Look of `sensor`, in native numbers.

    bands: as in `scenes.read_scene`. Nothing but headers is read. Raises ContractError for what cannot be named or
    has no place on Earth.
    """
    sensor = SENSORS.resolve(sensor)
    layers = find_layers(path, sensor, bands)
    finest = max(layers.values(), key=lambda layer: layer.height * layer.width)
    if finest.crs is None:
        raise ContractError(
            "path",
            found=f"{path}, without a CRS",
            expected="a raster with its place on Earth",
            cause="a picture, or an export that left the georeference out: embed it with clay_lib.embed instead",
        )
    when = parse_when(when)
    when = when if when is None or when.tzinfo else when.replace(tzinfo=UTC)
    shape = _outline(*bounds_wgs84(finest.crs, finest.transform, finest.height, finest.width))
    item = pystac.Item(
        Path(finest.path).stem,
        shapely.geometry.mapping(shape),
        list(shape.bounds),
        when or datetime(2000, 1, 1, tzinfo=UTC),
        {},
    )
    for band, layer in layers.items():
        said = {"data_type": layer.dtype} | ({} if layer.nodata is None else {"nodata": layer.nodata})
        href = layer.path if "://" in layer.path or layer.path.startswith("/vsi") else str(Path(layer.path).resolve())
        item.add_asset(band, pystac.Asset(href, extra_fields={"raster:bands": [said] * layer.index}))
    fills = {layer.nodata for layer in layers.values()} - {None}
    shared = [fill for fill in fills if fill == 0 or (fill == 255 and finest.dtype == "uint8")]
    a, b, left, d, e, top = finest.transform
    gsd = abs(a)
    own = CRS.from_user_input(finest.crs).is_projected and b == d == 0 and math.isclose(gsd, abs(e), rel_tol=1e-6)
    grid = dict(crs=finest.crs, gsd=gsd, anchor=(left % gsd, top % gsd)) if own else {}  # else squares of the sensor's
    archive = Archive(
        name="files",
        sensor=sensor.name,
        url=str(path),
        kind="files",
        assets={band: f"{band}.{layer.index}" for band, layer in layers.items()},
        nodata=MODIS_FILL if sensor.name == "modis" else None,
        together=shared[0] if shared else None,
        alpha=any(layer.alpha or layer.masked for layer in layers.values()),
        **(grid or {"gsd": sensor.gsd}),
    )
    return Look(sensor, archive, when, (item,))


def _outline(west: float, south: float, east: float, north: float) -> shapely.Geometry:
    """A box in WGS84; two where west > east, across the antimeridian."""
    if west < -180.001 or east > 180.001:
        raise ContractError(
            "path",
            found=f"longitudes {west:.6g} to {east:.6g}",
            expected="-180 to 180 in a raster in degrees",
            cause="a raster across the antimeridian, or one that counts to 360: bring it to UTM (gdalwarp -t_srs), or cut it",
        )
    box = shapely.box(west, south, east, north)
    return box if west <= east else cut_at_antimeridian(box)
