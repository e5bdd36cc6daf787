"""xarray: bands by name, holes, place and date from the coordinates and attributes of a DataArray or Dataset."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pyproj
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from clay_lib.bandnames import choose, numbering, recognise
from clay_lib.contract import ContractError
from clay_lib.georeference import centre, ground_distance
from clay_lib.sensors import Sensor

if TYPE_CHECKING:
    import xarray

AXES = {  # lower-case names of a dimension -> what it is; any other one is the batch
    **dict.fromkeys(("band", "bands", "channel", "channels", "variable"), "band"),
    **dict.fromkeys(("y", "lat", "latitude", "northing", "row", "rows"), "y"),
    **dict.fromkeys(("x", "lon", "longitude", "easting", "column", "columns"), "x"),
}
FILLS = ("_FillValue", "missing_value", "nodata", "nodatavals")  # as netCDF, rioxarray, odc and old xarray say it

Bands = Mapping[str, int] | Sequence[str | None] | None


@dataclass(frozen=True, eq=False)
class Labelled:
    """What xarray holds, as it is stored. values [C, H, W] or [B, C, H, W], a fill and a name for each of the C bands.

    gsd: metres; lat, lon: WGS84 degrees of the middle; when: one date, or one a chip. None: the labels do not tell.
    """

    values: np.ndarray
    fills: list[float | None]
    bands: tuple[str, ...]
    gsd: float | None = None
    lat: float | None = None
    lon: float | None = None
    when: datetime | tuple[datetime | None, ...] | None = None


def read_dataarray(array: xarray.DataArray, sensor: Sensor, bands: Bands) -> Labelled:
    """From dimensions for bands, y and x in any order, and at most one more, the batch."""
    axes = _axes(array)
    if "band" not in axes:
        raise ContractError(
            "pixels",
            found=f"dimensions {array.dims}",
            expected="one named band, beside y and x",
            cause="a single band was taken out: array.expand_dims('band'), or array.sel(band=['red'])",
        )
    chosen = _choose(_labels(array, axes["band"]), sensor, bands, _name(array))
    array = array.isel({axes["band"]: list(chosen.values())})
    order = [axes[axis] for axis in ("batch", "band", "y", "x") if axis in axes]
    values = array.transpose(*order).values
    return Labelled(values, [_own_fill(array)] * len(chosen), tuple(chosen), **_whereabouts(array, axes))


def read_dataset(data: xarray.Dataset, sensor: Sensor, bands: Bands) -> Labelled:
    """From one variable a band, or from the only variable with y and x."""
    data = data.set_coords([name for name, v in data.data_vars.items() if v.ndim == 0])  # a grid mapping of a netCDF
    layers = [v for v in data.data_vars.values() if {"y", "x"} <= {AXES.get(str(d).lower()) for d in v.dims}]
    if len(layers) == 1 and "band" in _axes(layers[0]):
        return read_dataarray(layers[0], sensor, bands)
    if not layers or any("band" in _axes(layer) for layer in layers):
        raise ContractError(
            "pixels",
            found=f"variables { {str(name): v.dims for name, v in data.data_vars.items()} }",
            expected="one variable a band, with dimensions y and x and perhaps time",
            cause="several variables that hold bands themselves: hand in one of them",
        )
    labels = [str(layer.name) for layer in layers]
    if labels == [f"band_{n}" for n in range(1, len(layers) + 1)]:  # rioxarray's, by the place in the file
        labels = [str(layer.attrs.get("long_name") or "") for layer in layers]
    chosen = _choose(labels, sensor, bands, _name(data))
    layers = [layers[i] for i in chosen.values()]
    axes = _axes(layers[0])
    order = [axes[axis] for axis in ("batch", "y", "x") if axis in axes]
    if any(set(layer.dims) != set(order) for layer in layers):
        raise ContractError(
            "pixels",
            found=f"dimensions { {str(layer.name): layer.dims for layer in layers} }",
            expected="the same for every band",
            cause="bands of different resolution or dates: bring them to one grid first",
        )
    values = np.stack([layer.transpose(*order).values for layer in layers], axis=-3)
    fills = [_own_fill(layer, data.attrs) for layer in layers]
    return Labelled(values, fills, tuple(chosen), **_whereabouts(layers[0], axes))


def _axes(array: xarray.DataArray) -> dict[str, Hashable]:
    """{"band", "y", "x", "batch": dimension}, those that there are."""
    found = [(AXES.get(str(dim).lower(), "batch"), dim) for dim in array.dims]
    axes = dict(found)
    if not {"y", "x"} <= axes.keys() or len(axes) < len(found):
        raise ContractError(
            "pixels",
            found=f"dimensions {array.dims}",
            expected="band, y and x, and at most one more, the batch",
            cause="axes under other names, array.rename(...), or more than a batch of images",
        )
    return axes


def _labels(array: xarray.DataArray, dim: Hashable) -> list[str]:
    """What each band says of itself; "" for the bands of a whole file that say nothing."""
    count, names = array.sizes[dim], array.attrs.get("long_name")
    names = [str(name or "") for name in names] if isinstance(names, (list, tuple, np.ndarray)) else []
    coordinate = array.coords[dim].values.tolist() if dim in array.coords else []
    if not all(isinstance(label, int) for label in coordinate):
        return [str(label) for label in coordinate]
    if coordinate and names:  # numbers of a file's bands, kept by a selection that leaves long_name as it was
        return [names[n - 1] if 1 <= n <= len(names) else "" for n in coordinate]
    if coordinate and coordinate != list(range(1, count + 1)):  # a selection, of which the order alone says nothing
        return [f"number {n}" for n in coordinate]
    return names if len(names) == count else [""] * count


def _choose(labels: list[str], sensor: Sensor, bands: Bands, name: str) -> dict[str, int]:
    """{sensor band: position}; names that mean nothing to the sensor are an error, as their order is unknown."""
    if bands is None and any(labels) and not any(recognise(label, sensor, numbering(sensor, name)) for label in labels):
        raise ContractError(
            "bands",
            found=f"{labels} in {name}",
            expected=f"names of {sensor.name}: {list(sensor.band_names)}",
            cause="another sensor, or names of one's own: say bands=[...], one a band, None for one to leave out",
        )
    return choose(labels, sensor, bands, name)


def _name(data) -> str:
    """For messages, and for the mission that a file's name tells."""
    return str(data.encoding.get("source") or getattr(data, "name", None) or f"the {type(data).__name__}")


def _own_fill(array: xarray.DataArray, shared: Mapping | None = None):
    """The fill that these numbers still hold, by the variable or, shared, by its Dataset; unpacked ones hold NaN."""
    unpacked = array.dtype.kind == "f" and {"scale_factor", "add_offset"} & array.encoding.keys()
    said = {**(shared or {}), **({} if unpacked else array.encoding), **array.attrs}
    found = [np.ravel(said[key])[0] for key in FILLS if said.get(key) is not None and np.size(said[key])]
    return found[0] if found else None


def _whereabouts(array: xarray.DataArray, axes: Mapping[str, Hashable]) -> dict:
    """gsd, lat, lon and when, as far as the coordinates tell."""
    known = {"when": _when(array, axes.get("batch"))}
    crs, matrix = _crs(array, axes), _transform(array, axes)
    if crs is None or matrix is None:
        return known
    lon, lat = centre(crs, matrix, array.sizes[axes["y"]], array.sizes[axes["x"]])
    gsd = ground_distance(crs, matrix, lon, lat) or None
    return known | {"gsd": gsd, "lat": lat, "lon": lon}


def _crs(array: xarray.DataArray, axes: Mapping[str, Hashable]) -> CRS | None:
    name = array.attrs.get("grid_mapping") or array.encoding.get("grid_mapping") or "spatial_ref"
    said = array.coords[name].attrs if name in array.coords else {}
    code = next((array.coords[key].values for key in ("epsg", "proj:epsg", name) if key in array.coords), None)
    text = said.get("crs_wkt") or said.get("spatial_ref") or array.attrs.get("crs")
    try:
        if not text and "grid_mapping_name" in said:  # CF's parameters alone
            text = pyproj.CRS.from_cf(said).to_wkt()
        if not text and np.size(code) == 1 and np.asarray(code).dtype.kind in "iu" and code > 0:
            text = f"EPSG:{int(code)}"
        if not text and str(axes["y"]).lower() in ("lat", "latitude"):
            text = "EPSG:4326"
        return CRS.from_user_input(text) if text else None
    except (CRSError, pyproj.exceptions.CRSError, KeyError) as error:
        raise ContractError(
            "crs",
            found=f"{str(text or said)[:80]}: {str(error).splitlines()[0]}",
            expected="WKT, an EPSG code or CF's parameters in the grid mapping coordinate",
            cause="a coordinate written by hand, or cut off",
        ) from None


def _transform(array: xarray.DataArray, axes: Mapping[str, Hashable]) -> Affine | None:
    """From pixel corner to CRS. x and y come first: a GeoTransform stays behind when a window is cut."""
    name = array.attrs.get("grid_mapping") or array.encoding.get("grid_mapping") or "spatial_ref"
    text = array.coords[name].attrs.get("GeoTransform") if name in array.coords else None
    said = Affine.from_gdal(*(float(v) for v in text.split())) if text else None
    x, y = (array.coords[axes[axis]].values if axes[axis] in array.coords else None for axis in ("x", "y"))
    if x is None or y is None or x.dtype.kind not in "iuf" or y.dtype.kind not in "iuf":
        return said
    dx = _step("x", x) if len(x) > 1 else said.a if said else None
    dy = _step("y", y) if len(y) > 1 else said.e if said else None
    dx, dy = dx or abs(dy or 0.0), dy or -abs(dx or 0.0)  # one row or column: as wide as it is high
    return Affine(dx, 0.0, float(x[0]) - dx / 2, 0.0, dy, float(y[0]) - dy / 2)


def _step(axis: str, values: np.ndarray) -> float:
    step = (float(values[-1]) - float(values[0])) / (len(values) - 1)
    steps = np.diff(values.astype(np.float64))
    if not step or (steps / step).max() > 2 or (steps / step).min() <= 0:  # float32 degrees jitter by much, but less
        raise ContractError(
            axis,
            found=f"steps from {steps.min():g} to {steps.max():g}",
            expected="evenly spaced coordinates",
            cause="tiles put together with a gap or out of order, or a curvilinear grid: bring it to one grid first",
        )
    return step


def _when(array: xarray.DataArray, batch: Hashable | None) -> datetime | tuple[datetime | None, ...] | None:
    for name in (batch, "time", "t", "datetime"):
        if name in array.coords and array.coords[name].dtype.kind == "M" and set(array.coords[name].dims) <= {batch}:
            dates = array.coords[name].values.astype("datetime64[us]").tolist()  # NaT becomes None
            return tuple(dates) if isinstance(dates, list) else dates
    return None
