"""Images of any kind (arrays, tensors, xarray, raster files) as native numbers with NaN for missing pixels."""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from clay_lib.data.bands import (
    Bands,
    has_layout,
    header_date,
    header_units,
    looks_like_decibel,
    match_bands,
    measured,
    missing_pixels,
    product_name,
    radar_holes,
)
from clay_lib.datacube import as_valid
from clay_lib.errors import ContractError, warn
from clay_lib.sensors import SENSORS, Sensor

if TYPE_CHECKING:
    import xarray

    from clay_lib.data.scenes import Scene

SHAPES = "[C, H, W] or [B, C, H, W]"
URL_SCHEMES = ("file", "http", "https", "s3", "gs", "az", "zip", "tar")
AXES = {  # lower-case name of an xarray dimension -> its axis; any other one is the batch
    **dict.fromkeys(("band", "bands", "channel", "channels", "variable"), "band"),
    **dict.fromkeys(("y", "lat", "latitude", "northing", "row", "rows"), "y"),
    **dict.fromkeys(("x", "lon", "longitude", "easting", "column", "columns"), "x"),
}
FILL_ATTRIBUTES = ("_FillValue", "missing_value", "nodata", "nodatavals")  # of netCDF, rioxarray, odc and old xarray


@dataclass(frozen=True, eq=False)
class Image:
    """One chip or a batch of one sensor, with its own metadata.

    pixels [B, C, H, W]: native numbers, float32; NaN where a band was not measured, each band for itself.
    bands: the sensor's names of the C bands; None: the image names none, and holds all of them in the sensor's order.
    gsd: meters; lat, lon: WGS84 degrees of the center; when: one date, or one a chip. None: unknown.
    in_decibel: radar whose median is negative, so in dB already. stored: the dtype in the source. origin: what decided
    {a band's name, "when", "lat", "gsd", "in_decibel" or "units": "EPSG:32736"}, and the kind of "source".
    """

    pixels: np.ndarray
    bands: tuple[str, ...] | None = None
    gsd: float | None = None
    lat: float | None = None
    lon: float | None = None
    when: datetime | tuple[datetime | None, ...] | None = None
    in_decibel: bool = False
    stored: np.dtype = np.dtype(np.float32)
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def metadata(self) -> dict:
        """What `make_datacube` takes beside the pixels and the sensor."""
        return {name: getattr(self, name) for name in ("bands", "when", "lat", "lon", "gsd", "in_decibel")}


def with_metadata(image: Image, *, valid=None, **given) -> Image:
    """The image with a caller's mask, when, lat, lon, gsd and in_decibel in place of its own; None keeps its own."""
    given = {name: value for name, value in given.items() if value is not None}
    if "in_decibel" in given:
        given["in_decibel"] = bool(given["in_decibel"])
    if "lat" in given or "lon" in given:  # a place is taken from one source
        given = {"lat": None, "lon": None} | given
    pixels = image.pixels
    if valid is not None:
        pixels = np.where(as_valid(valid, pixels.shape), pixels, np.float32(np.nan))
    return replace(image, pixels=pixels, **given, origin={**image.origin, **dict.fromkeys(given, "given")})


def open_image(source, sensor: str | Sensor, *, bands: Bands = None, nodata: float | None = None, **reading) -> Image:
    """A NumPy array, torch tensor, xarray DataArray or Dataset, a raster file or folder, or a Scene, as an Image.

    source: numbers of any dtype and device, [C, H, W] or [B, C, H, W]; a DataArray with a band, a y and an x dimension
    in any order and at most one more (the batch, such as time); a Dataset with a variable a band; or what
    `scenes.read_scene` reads. CRS and pixel size of xarray come from its grid mapping coordinate (rioxarray, odc-stac,
    CF) and its x and y; rows from south to north and columns from east to west are flipped. A scale factor and offset
    in xarray's attributes, or undone on opening (its encoding), count as a raster header's do (`bands.header_units`).
    bands: if the source names its bands, those to take, in that order; if not, the names of all its bands in order,
    None to leave one out, or {name: 1-based number}. Without it, bands that carry names are matched to
    the sensor's and the others left out; bands without names must be all the sensor's in its order.
    nodata: the fill value, instead of the source's own; where it could be a measurement (0, or 255 in 8 bit), it
    counts only where every band holds it. NaN, infinities, masked elements and zero in every band are missing too.
    reading: when (which tells Landsat 4 to 7 from 8 and 9), and in_decibel, scale and offset of `read_scene`, for files.
    An Image is returned as it is. Raises ContractError for anything that cannot be read or named.
    """
    if isinstance(source, Image):
        return source
    if hasattr(source, "missing"):
        return _from_scene(source, SENSORS.resolve(sensor), bands, _fill_value(nodata))
    sensor, fill = SENSORS.resolve(sensor), _fill_value(nodata)
    if isinstance(source, (str, os.PathLike)) or _is_path_list(source):
        return _from_files(source, sensor, bands, fill, reading)
    if any(reading.get(name) is not None for name in ("scale", "offset")):
        raise ContractError("scale, offset", "numbers in memory", "a file", "convert them to native numbers first")
    xarray = sys.modules.get("xarray")  # imported already if the source is one of its types
    if xarray and isinstance(source, (xarray.DataArray, xarray.Dataset)):
        return _from_xarray(source, sensor, bands, fill, reading.get("when"))
    return _from_array(source, sensor, bands, fill, reading.get("when"))


# ---- the steps that all sources share ----


def _fill_value(nodata) -> float | None:
    try:
        return None if nodata is None or math.isnan(float(nodata)) else float(nodata)
    except (TypeError, ValueError):
        cause = "one fill value a band: set them to NaN first"
        raise ContractError("nodata", repr(nodata), "one number, or None", cause) from None


def as_batch(values: np.ndarray, sensor: Sensor, names: Sequence[str] | None = None) -> np.ndarray:
    """Numbers [C, H, W] or [B, C, H, W] -> [B, C, H, W]. names: of the C bands to expect; None: any number."""
    if values.dtype.kind not in "iufb":
        expected = "an array or tensor of real numbers, xarray, or a path"
        cause = "text, objects or complex numbers in the array"
        raise ContractError("pixels", f"dtype {values.dtype}", expected, cause)
    shape, C = values.shape, values.shape[-3] if names is None and values.ndim > 2 else len(names or sensor.bands)
    if values.ndim not in (3, 4) or 0 in shape or shape[-3] != C:
        cause = "an empty window, or too many axes"
        if values.ndim == 2:
            cause = f"a single band without its axis: pixels[None], and bands=[...] of {sensor.name}"
        elif values.ndim in (3, 4) and 0 not in shape:
            cause = "bands left out of the array, or other ones: name them with bands=[...]"
            if shape[-1] == C:
                cause = "bands last instead of first: numpy.moveaxis(pixels, -1, -3)"
            elif values.ndim == 4 and shape[0] == C:
                cause = "bands before chips: numpy.swapaxes(pixels, 0, 1)"
        expected = SHAPES if names is None else f"{SHAPES} with C = {C} bands {list(names)} of {sensor.name}"
        raise ContractError("pixels", f"shape {shape}", expected, cause)
    return values.reshape(-1, *shape[-3:])


def _native(values: np.ndarray, fills: Sequence[float | None], sensor: Sensor, zero: float = 0.0) -> np.ndarray:
    """Stored numbers [B, C, H, W] and a fill value a band -> float32 with NaN where not measured."""
    missing = np.stack([missing_pixels(chip, fills, sensor, zero) for chip in values])  # before a cast rounds the fill
    return measured(values, missing)


def _image(
    pixels: np.ndarray, sensor: Sensor, bands, origin: Mapping[str, str], in_decibel: bool | None = None, **metadata
) -> Image:
    bands = None if bands is None else tuple(bands)
    if in_decibel is None:
        in_decibel = sensor.decibel and looks_like_decibel(pixels)
    if sensor.decibel:
        pixels[radar_holes(pixels, in_decibel)] = np.nan
    return Image(pixels, bands, **metadata, in_decibel=in_decibel, origin=origin)


# ---- arrays and files ----


def _from_array(source, sensor: Sensor, bands: Bands, fill: float | None, when) -> Image:
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
        cause = "images of different sizes: hand them in one by one, or crop them to one size"
        raise ContractError("pixels", "lists of unequal lengths", SHAPES, cause) from None
    count = values.shape[-3] if values.ndim in (3, 4) else 0
    bands_last = count and values.shape[-1] == len(sensor.bands)
    known = count != len(sensor.bands) and not bands_last and has_layout(sensor, count)  # such as Sentinel-2's 13
    values = as_batch(values, sensor, sensor.band_names if bands is None and not known else None)
    matched, order, reasons = None, slice(None), {}
    if bands is not None or known:
        matched = match_bands([""] * count, sensor, bands, "the array", lambda: _center(values), when)
        order, reasons = list(matched.values()), matched.reasons
    taken = values[:, order]
    pixels = _native(taken, [fill] * taken.shape[1], sensor)
    if masked is not None:
        pixels[masked.reshape(values.shape)[:, order]] = np.nan
    kind = f"array of {values.dtype}, {pixels.shape[1]} bands"
    return _image(pixels, sensor, matched, reasons | {"source": kind}, stored=values.dtype)


def _center(values: np.ndarray) -> np.ndarray:
    """[B, C, H, W] -> [C, ...]: at most 64 x 64 pixels of the center of 16 chips."""
    y, x = (max(n // 2 - 32, 0) for n in values.shape[-2:])
    return np.moveaxis(values[:: max(1, len(values) // 16), :, y : y + 64, x : x + 64], 1, 0)


def _is_path_list(source) -> bool:
    return isinstance(source, (list, tuple)) and any(isinstance(part, (str, os.PathLike)) for part in source)


def _from_files(source, sensor: Sensor, bands: Bands, fill: float | None, reading: Mapping) -> Image:
    for path in [source] if isinstance(source, (str, os.PathLike)) else source:
        scheme = re.match(r"([a-z][a-z0-9+.-]*)://", str(path), re.IGNORECASE)
        if scheme and not set(scheme[1].lower().split("+")) <= set(URL_SCHEMES):
            expected = f"a file, a folder, or an address that begins with one of {', '.join(URL_SCHEMES)}"
            cause = f"{scheme[1]} is not supported: download the file first"
            raise ContractError("path", str(path), expected, cause)
    from clay_lib.data.scenes import read_scene  # arrays need no raster library

    return _from_scene(read_scene(source, sensor, bands=bands, nodata=fill, **reading), sensor, None, None)


def _from_scene(scene: Scene, sensor: Sensor, bands: Bands, fill: float | None) -> Image:
    names = list(bands or scene.bands)
    if scene.sensor != sensor or not {*names} <= {*scene.bands}:
        found, expected = f"{names} of {sensor.name}", f"some of {list(scene.bands)} of {scene.sensor.name}"
        raise ContractError("bands", found, expected, "a scene that was read as another sensor, or with other bands")
    taken = slice(None) if bands is None else [scene.bands.index(name) for name in names]  # a slice copies nothing
    stored, missing = scene.pixels[taken], scene.missing[taken]
    if fill is not None:
        missing = missing | missing_pixels(stored, [fill] * len(names), sensor)
    pixels = measured(stored, missing)[None]
    metadata = dict(gsd=scene.gsd if scene.crs else None, in_decibel=scene.in_decibel, stored=scene.pixels.dtype)
    metadata |= dict(lat=scene.lat, lon=scene.lon, when=scene.when)
    return _image(pixels, sensor, names, scene.origin, **metadata)


def decode_image(value) -> np.ndarray:
    """An encoded image of a table, {"bytes"} or {"path"} of PNG, JPEG or TIFF, as [C, H, W]; arrays as they are."""
    if not isinstance(value, dict):
        return np.asarray(value)
    from rasterio.io import MemoryFile

    data = value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
    with warnings.catch_warnings(), MemoryFile(data) as file:
        warnings.simplefilter("ignore")  # of the missing georeference
        with file.open() as source:
            return source.read()


# ---- xarray ----


def _from_xarray(source, sensor: Sensor, bands: Bands, fill: float | None, when) -> Image:
    from clay_lib.data.georeference import NO_CRS, position  # arrays need no raster library

    read = _read_dataset if hasattr(source, "data_vars") else _read_dataarray
    values, fills, units, names, first, axes = read(source, sensor, bands, when)
    place = position(first, axes)
    south_up, east_first = _step_of(first, axes["y"]) > 0, _step_of(first, axes["x"]) < 0
    if south_up and not place and not _counts(first.coords[axes["y"]].values):
        warn(f"{_source_name(source)}: {NO_CRS}")
    for flipped, axis, dim in ((south_up, -2, axes["y"]), (east_first, -1, axes["x"])):
        if flipped and place:  # as from NetCDF
            values, first = np.flip(values, axis), first.isel({dim: slice(None, None, -1)})
    place = place and position(first, axes)
    fills = [_fill_value(own) if fill is None else fill for own in fills]
    pixels = _native(as_batch(values, sensor), fills, sensor, _own_zero(first))
    if any(pair != (1.0, 0.0) for pair in units):
        scale, offset = np.array(units, np.float32).T[:, :, None, None]  # [C, 1, 1]
        pixels = pixels * scale + offset
    dated, named = _dates(first, axes.get("batch")), product_name(_source_name(source)).get("when")
    origin = names.reasons | {
        "source": f"{type(source).__name__} of {values.dtype}",
        "when": "the coordinates" if dated else "the product's name" if named else "the attributes",
        "lat": "the coordinates",
        "units": "the attributes' scale and offset" if any(pair != (1.0, 0.0) for pair in units) else "",
    }
    when = dated or named or header_date(first.attrs)
    return _image(pixels, sensor, names, origin, when=when, stored=values.dtype, **place)


def _read_dataarray(array: xarray.DataArray, sensor: Sensor, bands: Bands, when) -> tuple:
    """(values [C, H, W] or [B, C, H, W] as stored, C fill values, C (scale, offset), the bands' names, array, axes)."""
    axes = _axes(array)
    if "band" not in axes:
        cause = "a single band was taken out: array.expand_dims('band'), or array.sel(band=['red'])"
        raise ContractError("pixels", f"dimensions {array.dims}", "one named band, beside y and x", cause)
    labels, when = _band_labels(array, axes["band"]), when or _dates(array, axes.get("batch"))
    sample = partial(_xarray_center, array.transpose(axes["band"], ...))
    chosen = match_bands(labels, sensor, bands, _source_name(array), sample, when)
    array = array.isel({axes["band"]: list(chosen.values())})
    order = [axes[axis] for axis in ("batch", "band", "y", "x") if axis in axes]
    fills, units = [_own_fill(array)] * len(chosen), [_own_units(array, sensor)] * len(chosen)
    return array.transpose(*order).values, fills, units, chosen, array, axes


def _read_dataset(data: xarray.Dataset, sensor: Sensor, bands: Bands, when) -> tuple:
    """The same, from one variable a band, or from the only variable with y and x."""
    data = data.set_coords([name for name, v in data.data_vars.items() if v.ndim == 0])  # a grid mapping of a netCDF
    layers = [v for v in data.data_vars.values() if {"y", "x"} <= {AXES.get(str(d).lower()) for d in v.dims}]
    if len(layers) == 1 and "band" in _axes(layers[0]):
        return _read_dataarray(layers[0], sensor, bands, when)
    if not layers or any("band" in _axes(layer) for layer in layers):
        raise ContractError(
            "pixels", f"variables { {str(name): v.dims for name, v in data.data_vars.items()} }",
            "one variable a band, with dimensions y and x and perhaps time",
            "several variables that hold bands themselves: hand in one of them",
        )  # fmt: skip
    labels = [str(layer.name) for layer in layers]
    if labels == [f"band_{n}" for n in range(1, len(layers) + 1)]:  # rioxarray's, by the position in the file
        labels = [str(layer.attrs.get("long_name") or "") for layer in layers]
    name, when = _source_name(data), when or _dates(layers[0], _axes(layers[0]).get("batch"))
    chosen = match_bands(labels, sensor, bands, name, lambda: np.stack([*map(_xarray_center, layers)]), when)
    layers = [layers[i] for i in chosen.values()]
    axes = _axes(layers[0])
    order = [axes[axis] for axis in ("batch", "y", "x") if axis in axes]
    if any(set(layer.dims) != set(order) for layer in layers):
        dims = {str(layer.name): layer.dims for layer in layers}
        cause = "bands of different resolution or dates: bring them to one grid first"
        raise ContractError("pixels", f"dimensions {dims}", "the same for every band", cause)
    values = np.stack([layer.transpose(*order).values for layer in layers], axis=-3)
    fills = [_own_fill(layer, data.attrs) for layer in layers]
    units = [_own_units(layer, sensor, data.attrs) for layer in layers]
    return values, fills, units, chosen, layers[0], axes


def _xarray_center(array: xarray.DataArray) -> np.ndarray:
    """At most 64 x 64 pixels of the center, by which `match_bands` distinguishes layouts."""
    axes = _axes(array)
    middle = {axes[axis]: array.sizes[axes[axis]] // 2 for axis in ("y", "x")}
    return array.isel({dim: slice(max(n - 32, 0), n + 32) for dim, n in middle.items()}).values


def _axes(array: xarray.DataArray) -> dict[str, Hashable]:
    """{"band", "y", "x", "batch": dimension}, those that exist."""
    pairs = [(AXES.get(str(dim).lower(), "batch"), dim) for dim in array.dims]
    axes = dict(pairs)
    if not {"y", "x"} <= axes.keys() or len(axes) < len(pairs):
        expected = "band, y and x, and at most one more, the batch"
        cause = "axes under other names, array.rename(...), or more than a batch of images"
        raise ContractError("pixels", f"dimensions {array.dims}", expected, cause)
    return axes


def _band_labels(array: xarray.DataArray, dim: Hashable) -> list[str]:
    """A label for each band; "" for the bands of a complete file without descriptions."""
    count, names = array.sizes[dim], array.attrs.get("long_name")
    names = [str(name or "") for name in names] if isinstance(names, (list, tuple, np.ndarray)) else []
    coordinate = array.coords[dim].values.tolist() if dim in array.coords else []
    if not all(isinstance(label, int) for label in coordinate):
        return [str(label) for label in coordinate]
    if coordinate and names:  # numbers of a file's bands, kept by a selection that leaves long_name as it was
        return [names[n - 1] if 1 <= n <= len(names) else "" for n in coordinate]
    if coordinate and coordinate != list(range(1, count + 1)):  # a selection, whose order alone tells nothing
        return [f"number {n}" for n in coordinate]
    return names if len(names) == count else [""] * count


def _source_name(data) -> str:
    """Name of the source, for messages and for the mission in a file's name."""
    return str(data.encoding.get("source") or getattr(data, "name", None) or f"the {type(data).__name__}")


def _own_fill(array: xarray.DataArray, shared: Mapping | None = None):
    """The fill value still in these numbers, by the variable or its Dataset (shared); unpacked ones hold NaN."""
    unpacked = array.dtype.kind == "f" and {"scale_factor", "add_offset"} & array.encoding.keys()
    attrs = {**(shared or {}), **({} if unpacked else array.encoding), **array.attrs}
    fills = [np.ravel(attrs[key])[0] for key in FILL_ATTRIBUTES if attrs.get(key) is not None and np.size(attrs[key])]
    return fills[0] if fills else None


def _own_zero(array: xarray.DataArray) -> float:
    """What a stored zero has become: the offset, where xarray unpacked the numbers on opening."""
    return float(array.encoding.get("add_offset", 0)) if array.dtype.kind == "f" else 0.0


def _own_units(array: xarray.DataArray, sensor: Sensor, shared: Mapping | None = None) -> tuple[float, float]:
    """(scale, offset) from the array's numbers to native ones, by its attributes, or its encoding where it is unpacked."""
    own = {**(shared or {}), **array.attrs}
    attrs = own if {"scale_factor", "add_offset"} & own.keys() else array.encoding
    scale, offset = (np.ravel(attrs.get(k, d)).astype(float) for k, d in (("scale_factor", 1), ("add_offset", 0)))
    if scale.size != 1 or offset.size != 1:
        return 1.0, 0.0
    native_scale, native_offset = header_units(float(scale[0]), float(offset[0]), sensor)
    if attrs is own:
        return native_scale, native_offset
    if array.dtype.kind != "f" or not scale[0]:
        return 1.0, 0.0
    unpacked = native_scale / float(scale[0])
    return (1.0, 0.0) if math.isclose(unpacked, 1) else (unpacked, native_offset - float(offset[0]) * unpacked)


def _dates(array: xarray.DataArray, batch: Hashable | None) -> datetime | tuple[datetime | None, ...] | None:
    for name in (batch, "time", "t", "datetime"):
        if name in array.coords and array.coords[name].dtype.kind == "M" and set(array.coords[name].dims) <= {batch}:
            dates = array.coords[name].values.astype("datetime64[us]").tolist()  # NaT becomes None
            return tuple(dates) if isinstance(dates, list) else dates
    return None


def _step_of(array: xarray.DataArray, dim: Hashable) -> float:
    """Last coordinate minus the first; 0 without coordinates."""
    values = array.coords[dim].values if dim in array.coords else np.empty(0)
    return float(values[-1]) - float(values[0]) if len(values) > 1 and values.dtype.kind in "iuf" else 0.0


def _counts(values: np.ndarray) -> bool:
    """Whether coordinates only count the rows, from 0 or 1, or their centers, from 0.5."""
    return float(values[0]) in (0.0, 0.5, 1.0) and float(values[1] - values[0]) == 1.0


@lru_cache(maxsize=8)
def blend_ramp(cells: int, overlap: int) -> np.ndarray:
    """[cells + 2 overlap] weights along one side of a tile of `cells` that overlaps its neighbors.

    One in the middle, linear over the 2 overlap cells shared with each neighbor. A tile's ramp and its neighbors' sum
    to one everywhere.
    """
    from_edge = np.arange(cells + 2 * overlap) + 0.5
    if overlap == 0:
        return np.ones(cells, np.float32)
    return np.minimum(1, np.minimum(from_edge, from_edge[::-1]) / (2 * overlap)).astype(np.float32)
