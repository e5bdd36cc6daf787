"""Images: what someone has in hand (an array, a tensor, xarray, a file) as native numbers with NaN for holes."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import torch

from clay_lib.bandnames import choose
from clay_lib.contract import ContractError
from clay_lib.missing import looks_like_decibel, missing_pixels
from clay_lib.sensors import SENSORS, Sensor

if TYPE_CHECKING:
    from clay_lib.labelled import Bands

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
        raise ContractError(
            "pixels", found="lists of unequal lengths", expected="[C, H, W] or [B, C, H, W]",
            cause="images of different sizes: hand them in one by one, or cut them to one size",
        ) from None  # fmt: skip
    values = _batch(values, sensor)
    if bands is None:
        if values.shape[1] != len(sensor.bands):
            last = values.shape[-1] == len(sensor.bands)
            raise ContractError(
                "pixels",
                found=f"shape {np.shape(source)}",
                expected=f"[C, H, W] or [B, C, H, W] with C = {len(sensor.bands)} bands {list(sensor.band_names)} "
                f"of {sensor.name}",
                cause="bands last: move them with np.moveaxis(pixels, -1, -3)"
                if last
                else "name them with bands=[...]",
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
                found=str(path),
                expected=f"a file, a folder, or an address that begins with one of {', '.join(URLS)}",
                cause=f"{scheme[1]} is not among them: download the file first",
            )
    from clay_lib.scenes import read_scene  # an array is embedded where no raster library is installed

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
    from clay_lib.labelled import read_dataarray, read_dataset

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
            "nodata", found=repr(nodata), expected="one number, or None", cause="one fill a band: set them to NaN first"
        ) from None


def _batch(values: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Numbers [C, H, W] or [B, C, H, W] -> [B, C, H, W]."""
    if values.dtype.kind not in "iufb":
        raise ContractError(
            "pixels",
            found=f"dtype {values.dtype}",
            expected="an array or tensor of real numbers, xarray, or a path",
            cause="text, objects or complex numbers in the array",
        )
    if values.ndim not in (3, 4) or 0 in values.shape:
        raise ContractError(
            "pixels",
            found=f"shape {values.shape}",
            expected="[C, H, W] or [B, C, H, W]",
            cause=f"a single band without its axis: pixels[None], and bands=[...] of {sensor.name}"
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
