"""Images: what someone has in hand (an array, a tensor, xarray, a file) as native numbers with NaN for holes."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pyproj
import torch
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from clay_lib.data.rasters import (
    SENTINEL_2,
    centre,
    choose,
    ground_distance,
    looks_like_decibel,
    missing_pixels,
    numbering,
    recognise,
)
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS, Sensor

# ---- Band names: which band of a file, or which file of a folder, is which band of a sensor ----

SENTINEL_2 |= {"8": "nir", "8a": "nir08", "11": "swir16", "12": "swir22"}


# ---- xarray: bands by name, holes, place and date from the coordinates and attributes of a DataArray or D ----

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
            f"dimensions {array.dims}",
            "one named band, beside y and x",
            "a single band was taken out: array.expand_dims('band'), or array.sel(band=['red'])",
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
            f"variables { {str(name): v.dims for name, v in data.data_vars.items()} }",
            "one variable a band, with dimensions y and x and perhaps time",
            "several variables that hold bands themselves: hand in one of them",
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
            f"dimensions { {str(layer.name): layer.dims for layer in layers} }",
            "the same for every band",
            "bands of different resolution or dates: bring them to one grid first",
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
            f"dimensions {array.dims}",
            "band, y and x, and at most one more, the batch",
            "axes under other names, array.rename(...), or more than a batch of images",
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
            f"{labels} in {name}",
            f"names of {sensor.name}: {list(sensor.band_names)}",
            "another sensor, or names of one's own: say bands=[...], one a band, None for one to leave out",
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
            f"{str(text or said)[:80]}: {str(error).splitlines()[0]}",
            "WKT, an EPSG code or CF's parameters in the grid mapping coordinate",
            "a coordinate written by hand, or cut off",
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
            f"steps from {steps.min():g} to {steps.max():g}",
            "evenly spaced coordinates",
            "tiles put together with a gap or out of order, or a curvilinear grid: bring it to one grid first",
        )
    return step


def _when(array: xarray.DataArray, batch: Hashable | None) -> datetime | tuple[datetime | None, ...] | None:
    for name in (batch, "time", "t", "datetime"):
        if name in array.coords and array.coords[name].dtype.kind == "M" and set(array.coords[name].dims) <= {batch}:
            dates = array.coords[name].values.astype("datetime64[us]").tolist()  # NaT becomes None
            return tuple(dates) if isinstance(dates, list) else dates
    return None


# ---- Images: what someone has in hand (an array, a tensor, xarray, a file) as native numbers with NaN for ----

URLS = ("file", "http", "https", "s3", "gs", "az", "zip", "tar")


@dataclass(frozen=True, eq=False)
class Image:
    """One chip or a batch of one sensor, and what it knows of itself.

    pixels [B, C, H, W]: native numbers, float32; NaN where a band was not measured, each band for itself.
    bands: the sensor's names of the C bands; None: the image names none, and holds all of them in the sensor's order.
    gsd: metres; lat, lon: WGS84 degrees of the middle; when: one date, or one a chip. None: the image does not know.
    in_decibel: radar whose median is negative, so in dB already.
    """

    pixels: np.ndarray
    bands: tuple[str, ...] | None = None
    gsd: float | None = None
    lat: float | None = None
    lon: float | None = None
    when: datetime | tuple[datetime | None, ...] | None = None
    in_decibel: bool = False


def open_image(source, sensor: str | Sensor, *, bands: Bands = None, nodata: float | None = None) -> Image:
    """A NumPy array, torch tensor, xarray DataArray or Dataset, or a raster file or folder, as an Image of `sensor`.

    source: numbers of any dtype and device, [C, H, W] or [B, C, H, W]; a DataArray with a band, a y and an x dimension
    in any order and at most one more (the batch, such as time); a Dataset with a variable a band; or what
    `scenes.read_scene` reads. CRS and pixel size of xarray come from its grid mapping coordinate (rioxarray, odc-stac,
    CF) and its x and y; rows and columns stay in their order. xarray's numbers are taken as they are: a scale factor
    beside them is neither applied nor undone.
    bands: of a source that names its bands, those to take, in that order; of one that does not, the names of its bands
    in order, None for one to leave out, or {name: 1-based number}. Without it, bands that carry names are matched to
    the sensor's and the others left out; bands without names must be all the sensor's in its order.
    nodata: the fill, beside what the source says itself; where it could be a measurement (0, or 255 in 8 bit), it
    counts only where every band holds it. NaN, infinities and masked elements are missing too.
    An Image is returned as it is. Raises ContractError for anything that cannot be read or named.
    """
    if isinstance(source, Image):
        return source
    sensor, fill = SENSORS.resolve(sensor), _fill(nodata)
    if isinstance(source, (str, os.PathLike)) or _is_paths(source):
        return _from_files(source, sensor, bands, fill)
    xarray = sys.modules.get("xarray")  # whoever hands in xarray has imported it
    if xarray and isinstance(source, (xarray.DataArray, xarray.Dataset)):
        return _from_xarray(source, sensor, bands, fill)
    return _from_array(source, sensor, bands, fill)


# ---- arrays and files ----


def _from_array(source, sensor: Sensor, bands: Bands, fill: float | None) -> Image:
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        if source.dtype == torch.bfloat16:  # which NumPy lacks; the fill is rounded as the pixels were
            fill = None if fill is None else torch.tensor(fill, dtype=source.dtype).item()
            source = source.float()
        source = source.numpy()
    masked = np.ma.getmaskarray(source) if isinstance(source, np.ma.MaskedArray) else None
    try:
        values = np.asarray(source)
    except ValueError:
        raise ContractError("pixels", "lists of unequal lengths", "[C, H, W] or [B, C, H, W]", "images of different sizes: hand them in one by one, or cut them to one size") from None  # fmt: skip
    values = _batch(values, sensor)
    if bands is None:
        if values.shape[1] != len(sensor.bands):
            last = values.shape[-1] == len(sensor.bands)
            raise ContractError(
                "pixels",
                f"shape {np.shape(source)}",
                f"[C, H, W] or [B, C, H, W] with C = {len(sensor.bands)} bands {list(sensor.band_names)} "
                f"of {sensor.name}",
                "bands last: move them with np.moveaxis(pixels, -1, -3)" if last else "name them with bands=[...]",
            )
        chosen = None
    else:
        chosen = choose([""] * values.shape[1], sensor, bands, "the array")
        values = values[:, list(chosen.values())]
        masked = None if masked is None else masked.reshape(-1, *masked.shape[-3:])[:, list(chosen.values())]
    pixels = _native(values, [fill] * values.shape[1], sensor)
    if masked is not None:
        pixels[masked.reshape(pixels.shape)] = np.nan
    return _image(pixels, sensor, bands=chosen)


def _from_files(source, sensor: Sensor, bands: Bands, fill: float | None) -> Image:
    for path in [source] if isinstance(source, (str, os.PathLike)) else source:
        scheme = re.match(r"([a-z][a-z0-9+.-]*)://", str(path), re.IGNORECASE)
        if scheme and not set(scheme[1].lower().split("+")) <= set(URLS):
            raise ContractError(
                "path",
                str(path),
                f"a file, a folder, or an address that begins with one of {', '.join(URLS)}",
                f"{scheme[1]} is not among them: download the file first",
            )
    from clay_lib.data.rasters import read_scene  # an array is embedded where no raster library is installed

    scene = read_scene(source, sensor, bands=bands)
    pixels = _native(scene.pixels[None], [fill] * len(scene.bands), sensor)
    pixels[:, scene.missing] = np.nan
    placed = scene.crs is not None
    return _image(
        pixels,
        sensor,
        bands=scene.bands,
        gsd=scene.gsd if placed else None,
        lat=scene.lat,
        lon=scene.lon,
        when=scene.when,
    )


def _from_xarray(source, sensor: Sensor, bands: Bands, fill: float | None) -> Image:

    found = (read_dataset if hasattr(source, "data_vars") else read_dataarray)(source, sensor, bands)
    fills = [_fill(own) if fill is None else fill for own in found.fills]
    pixels = _native(_batch(found.values, sensor), fills, sensor)
    return _image(pixels, sensor, bands=found.bands, gsd=found.gsd, lat=found.lat, lon=found.lon, when=found.when)


def _is_paths(source) -> bool:
    return isinstance(source, (list, tuple)) and any(isinstance(part, (str, os.PathLike)) for part in source)


def _fill(nodata) -> float | None:
    try:
        return None if nodata is None or math.isnan(float(nodata)) else float(nodata)
    except (TypeError, ValueError):
        raise ContractError(
            "nodata", repr(nodata), "one number, or None", "one fill a band: set them to NaN first"
        ) from None


def _batch(values: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Numbers [C, H, W] or [B, C, H, W] -> [B, C, H, W]."""
    if values.dtype.kind not in "iufb":
        raise ContractError(
            "pixels",
            f"dtype {values.dtype}",
            "an array or tensor of real numbers, xarray, or a path",
            "text, objects or complex numbers in the array",
        )
    if values.ndim not in (3, 4) or 0 in values.shape:
        raise ContractError(
            "pixels",
            f"shape {values.shape}",
            "[C, H, W] or [B, C, H, W]",
            f"a single band without its axis: pixels[None], and bands=[...] of {sensor.name}"
            if values.ndim == 2
            else "an empty window, or axes too many",
        )
    return values.reshape(-1, *values.shape[-3:])


def _native(values: np.ndarray, fills: Sequence[float | None], sensor: Sensor) -> np.ndarray:
    """Stored numbers [B, C, H, W] and a fill a band -> float32 with NaN where not measured."""
    missing = np.stack([missing_pixels(chip, fills, sensor) for chip in values])  # before a cast rounds the fill
    with np.errstate(over="ignore"):
        pixels = values.astype(np.float32)
    pixels[missing | ~np.isfinite(pixels)] = np.nan
    return pixels


def _image(pixels: np.ndarray, sensor: Sensor, *, bands, **known) -> Image:
    bands = None if bands is None else tuple(bands)
    return Image(pixels, bands, **known, in_decibel=sensor.decibel and looks_like_decibel(pixels))
