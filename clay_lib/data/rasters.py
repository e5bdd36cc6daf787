"""Raster files to arrays and back: bands, missing pixels, ground distance and place."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window, from_bounds

from clay_lib.data.bands import (
    OFFSET,
    SENTINEL_2,
    Bands,
    has_offset,
    header_date,
    header_units,
    looks_like_decibel,
    match_bands,
    missing_pixels,
    product_name,
    radar_holes,
    words,
)
from clay_lib.data.georeference import NO_CRS, crs_text, lat_lon, locate, warn_of_points
from clay_lib.errors import ContractError, first_line, number, warn
from clay_lib.files import atomic_write
from clay_lib.sensors import SENSORS, Sensor

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")  # quicklooks, where another raster of the same name lies beside them
DATASET_ENDINGS = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".hdf", ".zarr")
RASTER_ENDINGS = (".tif", ".tiff", ".vrt", ".jp2", ".img", *IMAGE_ENDINGS)


@dataclass(frozen=True, eq=False)
class Scene:
    """One raster of one sensor. pixels [C, H, W]: native numbers, in the file's dtype unless scaled, fill included.

    transform: (a, b, c, d, e, f) from pixel corner to CRS; gsd: meters; lat, lon: center in WGS84 degrees;
    missing [C, H, W]: True where a band was not measured; in_decibel: radar that is in dB already; labels [H, W]: land
    cover, where it is known; origin: where the file says what, as in images.Image.
    """

    pixels: np.ndarray
    bands: tuple[str, ...]
    sensor: Sensor
    crs: str | None
    transform: tuple[float, ...] | None
    gsd: float
    lat: float | None
    lon: float | None
    when: str | None
    missing: np.ndarray
    in_decibel: bool = False
    path: str = ""
    labels: np.ndarray | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def metadata(self) -> dict:
        """What `Clay.embed` and `Clay.reconstruct` take beside the pixels and the sensor."""
        return {name: getattr(self, name) for name in ("bands", "gsd", "when", "lat", "lon", "in_decibel")}

    @property
    def valid(self) -> np.ndarray:
        """[H, W]: True where every band was measured."""
        return ~self.missing.any(axis=0)

    def measured(self) -> np.ndarray:
        """Pixels float32 [C, H, W], NaN where nothing was measured: what `Clay` takes."""
        return np.where(self.missing, np.float32(np.nan), self.pixels.astype(np.float32))

    def filled(self) -> np.ndarray:
        """Pixels float32 [C, H, W] whose missing ones hold their band's mean, for a file that can hold no NaN."""
        pixels = self.pixels.astype(np.float32)
        if not self.valid.any():
            cause = f"{self.path} holds only fill here: take another window"
            raise ContractError("pixels", "no valid pixel", "at least one", cause)
        means = pixels[:, self.valid].mean(axis=1, dtype=np.float64).astype(np.float32)
        return np.where(self.valid, pixels, means[:, None, None])


class _OpenLayer(NamedTuple):
    """One band of an open file, and the text that may name it."""

    file: rasterio.DatasetReader
    index: int  # 1-based; 0: the file's mask
    label: str
    reason: str = ""  # why it was taken for its band


def read_scene(
    path: str | Path | Sequence[str | Path],
    sensor: str | Sensor,
    *,
    bands: Bands = None,
    when: str | None = None,
    in_decibel: bool | None = None,
    scale: float | None = None,
    offset: float | None = None,
    window: tuple[int, int, int, int] | None = None,
) -> Scene:
    """A GeoTIFF, VRT, JPEG or PNG, or a folder or list of single-band files, as a Scene of `sensor`.

    bands: {sensor band: 1-based number}, or names: those to take where the file describes its bands, else in file
    order with None for a band to leave out. Without it, in this order: the bands' descriptions (or single-band files'
    names), the sensor's own band count in its own order, a known product's layout (12- and 13-band Sentinel-2 in
    ESA's order, or with B8A last by their spectra; Landsat from band 1). Bands may be a subset of the sensor's.
    scale, offset: native = value * scale + offset, for files in other units; missing pixels are found before it. None:
    as the file's header says (`bands.header_units`), 1 and 0 where it is silent; given ones replace the header's.
    when: ISO 8601, UTC; None: as a product's name says, or its header. Of a .SAFE folder, level and baseline count too: its offset of
    1000 is removed. in_decibel: radar in dB; None goes by the sign of the median. window: (column, row, width, height) in pixels.
    Numbered Landsat bands are read as Landsat 8's, or as Landsat 4-7's where the file's name begins so (LE07, LT05).
    Files of coarser bands over the same footprint are resampled to the finest grid, bilinear. Rows go from north to
    south: those of a south-up file are flipped.
    Raises ContractError for anything that cannot be read or named.
    """
    sensor = SENSORS.resolve(sensor)
    given = None
    if scale is not None or offset is not None:
        given = number("scale", 1.0 if scale is None else scale), number("offset", 0.0 if offset is None else offset)
    with _open_layers(path, sensor, bands, when) as (paths, layers):
        files = list(dict.fromkeys(layer.file for layer in layers.values()))
        finest = max(files, key=lambda file: file.width * file.height)
        box = _window(window, finest)
        hidden = [_OpenLayer(file, i, "") for file in files if (i := _alpha(file, sensor)) or has_mask(file)]
        try:
            if len(files) == 1:
                pixels = read_band(finest, [layer.index for layer in layers.values()], box)  # [C, H, W]
            else:
                pixels = np.stack([_read(layer, finest, box) for layer in layers.values()])
            masks = [_read(layer, finest, box) for layer in hidden]
        except (RasterioError, ValueError) as error:
            cause = "a truncated download, or a VRT whose sources moved"
            found = f"{paths[0]}: {first_line(error)}"
            raise ContractError("path", found, "a raster that can be read to its end", cause) from None
        nodata = [_nodata(layer.file, layer.index) for layer in layers.values()]
        units = np.array([_units(layer, sensor) for layer in layers.values()], np.float32)  # [C, 2]: scale, offset
        stated = any(set(file.scales) != {1.0} or any(file.offsets) for file in files)
        crs = finest.crs
        dated = header_date(finest.tags())
        georeferenced = crs is not None or not finest.transform.is_identity
        corner = Affine.translation(box.col_off, box.row_off)
        transform = north_up(finest) @ corner if georeferenced else None

    missing = missing_pixels(pixels, nodata, sensor) | (pixels == 0).all(axis=0)  # untagged fill, as in `clay embed`
    for mask in masks:
        missing |= mask == 0
    if given is not None:
        if stated and not np.allclose(units, given, rtol=1e-4):
            header = "native = value * {:g} + {:g}".format(*units[0])
            warn(f"{paths[0]}: its header gives {header}, replaced by the given {given[0]:g} and {given[1]:g}")
        units[:] = given
    elif not stated and (units == (1, 0)).all() and sensor.name.startswith("sentinel-2") and has_offset(paths[0]):
        if missing.all() or pixels[~missing].min() >= -OFFSET:
            warn(
                f"{paths[0]}: its name says a baseline whose numbers carry an offset of 1000, and no pixel is below 1000: "
                f"pass offset={OFFSET} where it is still in, offset=0 where it was removed"
            )
    if (units != (1, 0)).any():
        pixels = pixels.astype(np.float32) * units[:, :1, None] + units[:, 1:, None]
    if sensor.decibel and in_decibel is None:
        in_decibel = looks_like_decibel(np.where(missing, np.nan, pixels))
    if sensor.decibel:
        missing |= radar_holes(pixels, bool(in_decibel))
    lat, lon, gsd = (None, None, sensor.gsd) if crs is None else locate(crs, transform, *pixels.shape[1:])
    folder = path if isinstance(path, (str, Path)) else Path(paths[0]).parent
    named = product_name(paths[0]).get("when")
    count = f"{len(paths)} files" if len(paths) > 1 else f"{finest.count} bands"
    origin = {name: layer.reason for name, layer in layers.items()} | {
        "source": f"{finest.driver}, {count} of {finest.dtypes[0]}",
        "when": "given" if when else "the product's name" if named else "its header",
        "lat": "" if crs is None else crs_text(crs) if crs.to_epsg() else "its CRS",
        "units": "" if (units == (1, 0)).all() else "native = stored * {:g} + {:g}".format(*units[0]),
    }
    return Scene(
        pixels=pixels,
        bands=tuple(layers),
        sensor=sensor,
        crs=None if crs is None else crs_text(crs),
        transform=None if transform is None else tuple(transform)[:6],
        gsd=gsd,
        lat=lat,
        lon=lon,
        when=when or named or dated,
        missing=missing,
        in_decibel=bool(in_decibel) and sensor.decibel,
        path=str(paths[0] if len(paths) == 1 else folder),
        origin=origin,
    )


# ---- headers and windows ----


@dataclass(frozen=True)
class Header:
    """Size, place and date of a raster file. transform, when: as in Scene."""

    path: str
    height: int
    width: int
    crs: CRS | None
    transform: tuple[float, ...]
    when: str | None

    def __str__(self) -> str:
        (a, _, c, _, _, f), crs = self.transform, self.crs or "no CRS"
        size = f"{self.height} x {self.width} pixels of {a:g}"
        return f"{Path(self.path).name}: {size} from {c:.7g}, {f:.7g}, {crs}"

    def at(self, column: float, row: float) -> tuple[float, float]:
        """(lat, lon) of a position in pixels from the upper left corner; NaN without a CRS."""
        return (math.nan, math.nan) if self.crs is None else lat_lon(self.crs, Affine(*self.transform), column, row)

    @property
    def gsd(self) -> float:
        """Ground distance in meters per pixel, of a raster with a CRS."""
        return locate(self.crs, Affine(*self.transform), self.height, self.width)[2]

    def clip(self, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """The part of a box (column, row, width, height) that lies on the raster."""
        left, top, width, height = box
        right, bottom = min(left + width, self.width), min(top + height, self.height)
        left, top = max(left, 0), max(top, 0)
        return left, top, right - left, bottom - top


@dataclass(frozen=True)
class Layer(Header):
    """One band of a file, as its header describes it."""

    index: int  # 1-based
    dtype: str
    nodata: float | None
    scale: float  # native = value * scale + offset
    offset: float
    masked: bool  # by an alpha band, or by GDAL's mask in the file or beside it


def read_header(path: str | Path) -> Header:
    """Never cached, since in a notebook the file may have been rewritten."""
    with open_raster(path) as file:
        return _header(file)


def _header(file: rasterio.DatasetReader) -> Header:
    when = product_name(file.name).get("when") or header_date(file.tags())
    return Header(file.name, file.height, file.width, file.crs, tuple(north_up(file))[:6], when)


def find_layers(path, sensor: str | Sensor, bands: Bands = None, when=None) -> dict[str, Layer]:
    """{band: Layer} of a file, a folder of single-band files or a list of them: as `read_scene`, headers alone."""
    sensor, found = SENSORS.resolve(sensor), {}
    with _open_layers(path, sensor, bands, when) as (_, layers):
        for name, layer in layers.items():
            file, i, (scale, offset) = layer.file, layer.index, _units(layer, sensor)
            stored = dict(index=i, dtype=file.dtypes[i - 1], nodata=_nodata(file, i), scale=scale, offset=offset)
            found[name] = Layer(**vars(_header(file)), **stored, masked=bool(_alpha(file, sensor)) or has_mask(file))
    return found


def read_padded(
    path: str | Path, box: tuple[int, int, int, int], sensor: str | Sensor, bands: Bands = None, when=None
) -> Scene:
    """A box (column, row, width, height) that may extend past the raster: float32, NaN where not measured or beyond.

    lat, lon and gsd are of the part that lies on the raster.
    """
    header, (left, top, width, height) = read_header(path), box
    x, y, w, h = header.clip(box)
    scene = read_scene(path, sensor, bands=bands, when=when, window=(x, y, w, h))
    around = ((0, 0), (y - top, top + height - y - h), (x - left, left + width - x - w))
    transform = scene.transform and tuple(Affine(*header.transform) @ Affine.translation(left, top))[:6]
    missing = np.pad(scene.missing, around, constant_values=True)
    pixels = np.pad(scene.measured(), around, constant_values=np.nan)
    return replace(scene, pixels=pixels, missing=missing, transform=transform)


# ---- writing ----


def write_raster(
    path: str | Path,
    values: np.ndarray,
    *,
    crs: str | None,
    transform: Sequence[float] | None,
    nodata: float | None = None,
    descriptions: Sequence[str] | None = None,
) -> Path:
    """Values [C, H, W] or [H, W] as a tiled, deflated GeoTIFF; written atomically."""
    path, values = Path(path), np.asarray(values)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape:
        cause = "a batch axis is left: write one image a file"
        raise ContractError("values", f"shape {values.shape}", "[C, H, W] or [H, W]", cause)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    if descriptions is not None and (isinstance(descriptions, str) or len(descriptions) != len(values)):
        cause = "bands were added or dropped after the names were listed"
        raise ContractError("descriptions", descriptions, f"{len(values)} names, one a band", cause)
    count, height, width = values.shape
    profile = dict(driver="GTiff", count=count, height=height, width=width, dtype=values.dtype.name, nodata=nodata)
    profile |= dict(tiled=True, blockxsize=256, blockysize=256, compress="deflate", BIGTIFF="IF_SAFER")
    profile |= dict(predictor=3 if values.dtype.kind == "f" else 2, crs=crs, photometric="MINISBLACK", alpha="NO")
    if transform is not None:
        profile["transform"] = Affine(*tuple(transform)[:6])

    def fill(partial_path: Path) -> None:
        with rasterio.open(partial_path, "w", **profile) as target:
            target.write(values)
            for index, text in enumerate(descriptions or (), start=1):
                target.set_band_description(index, text)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return atomic_write(path, fill)
    except ContractError:  # of the path
        raise
    except (RasterioError, TypeError, ValueError) as error:
        expected = "a folder that can be written to, and a dtype, nodata and CRS that GeoTIFF knows"
        cause = f"dtype {values.dtype}, nodata {nodata!r} or CRS {crs!r}"
        raise ContractError("raster", f"{path}: {first_line(error)}", expected, cause) from None


# ---- opening ----


def list_rasters(folder: str | Path) -> list[Path]:
    """The raster files of a folder, by name; hidden ones and quicklooks (a.png beside a.tif) left out."""
    paths = [p for p in Path(folder).iterdir() if p.suffix.lower() in RASTER_ENDINGS and not p.name.startswith(".")]
    rasters = {p.stem for p in paths if p.suffix.lower() not in IMAGE_ENDINGS}
    return sorted(p for p in paths if p.suffix.lower() not in IMAGE_ENDINGS or p.stem not in rasters)


def _raster_paths(path) -> tuple[list[str], bool]:
    """(files, whether they came as a folder or list)."""
    if not isinstance(path, (str, Path)):
        paths = [str(p) for p in path] if isinstance(path, Sequence) else []
        if not paths:
            raise ContractError("path", repr(path), "at least one raster file", "a pattern that matched nothing")
        return paths, True
    if not Path(path).is_dir():
        return [str(path)], False
    if Path(path).suffix == ".zarr" or any((Path(path) / name).is_file() for name in (".zgroup", "zarr.json")):
        raise _dataset(path)
    paths = [str(p) for p in (_safe_bands(path) if str(path).endswith(".SAFE") else list_rasters(path))]
    if not paths:
        expected, cause = f"files ending in {', '.join(RASTER_ENDINGS)}", "the rasters lie in a folder below or above"
        raise ContractError("path", f"{path}, without rasters", expected, cause)
    return paths, True


def _safe_bands(folder: str | Path) -> list[Path]:
    """The file of each band in a .SAFE folder of Sentinel-2, at its finest resolution."""
    finest = {}
    for path in sorted(Path(folder).glob("GRANULE/*/IMG_DATA/**/*.jp2"), reverse=True):  # _60m, _20m, _10m
        if match := re.search(r"_B0?(\d+A?)(?:_\d+m)?$", path.stem):
            finest[match[1].lower()] = path
    return [path for number, path in finest.items() if number in SENTINEL_2]


def open_raster(path: str | Path) -> rasterio.DatasetReader:
    path = str(path)
    if not ("://" in path or path.startswith("/vsi")) and not Path(path).is_file():
        cause = "a misspelled name, or a path relative to another folder"
        raise ContractError("path", f"{path}, which does not exist", "a raster file, or a folder of them", cause)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = rasterio.open(path)
    except RasterioError as error:
        if Path(path).suffix.lower() in DATASET_ENDINGS:
            raise _dataset(path) from None
        expected = "a GeoTIFF, VRT, JPEG 2000, JPEG or PNG"
        cause = "not a raster, a broken download, or an archive that must be unpacked"
        raise ContractError("path", f"{path}: {first_line(error)}", expected, cause) from None
    if file.count == 0:
        variables = [name.rsplit(":", 1)[-1].strip("/") for name in file.subdatasets]
        file.close()
        raise _dataset(path, variables)
    return file


def _dataset(path, variables: Sequence[str] = ()) -> ContractError:
    """The error for NetCDF, HDF and Zarr, which hold variables instead of bands."""
    engine = ', engine="zarr"' if Path(path).suffix == ".zarr" else ""
    held = f", with variables {list(variables)}" if variables else ""
    cause = f'hand in xarray\'s: import xarray; xarray.open_dataset("{path}"{engine}), the variables named as the bands'
    return ContractError("path", f"{path}: a data set{held}", "a raster file with bands", cause)


@contextmanager
def _open_layers(path, sensor: Sensor, bands: Bands, when) -> Iterator[tuple[list[str], dict[str, _OpenLayer]]]:
    """(paths, {sensor band: open layer}) of a file, a folder or a list of files."""
    paths, many = _raster_paths(path)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        files = [stack.enter_context(open_raster(p)) for p in paths]
        layers = _layers(files, many, sensor)
        for file in [file for file in files if file.crs is None][:1]:
            if file.gcps[0] or file.rpcs:
                warn_of_points(file.name, rpcs=not file.gcps[0])
            elif _ascends(file.transform):
                warn(f"{file.name}: {NO_CRS}")
        matched = match_bands(
            [layer.label for layer in layers], sensor, bands, paths[0], partial(_sample, layers), when
        )
        reasons = dict(zip(matched, matched.reasons, strict=True))
        yield paths, {name: layers[i]._replace(reason=reasons[name]) for name, i in matched.items()}


def _layers(files, many: bool, sensor: Sensor) -> list[_OpenLayer]:
    """All bands of all files in order, alpha left out."""
    stems = [Path(file.name).stem for file in files]
    shared = set.intersection(*({*words(stem)} for stem in stems)) if len(stems) > 1 else set()
    layers = []
    for file, stem in zip(files, stems, strict=True):
        own = " ".join(word for word in words(stem) if word not in shared)  # words in every file name identify no band
        alpha = _alpha(file, sensor)
        for index in file.indexes:
            if index != alpha:
                text = file.descriptions[index - 1] or ""
                if alpha and file.count == len(sensor.bands):  # what is left cannot go by its number of bands
                    text = text or sensor.band_names[index - 1]
                layers.append(_OpenLayer(file, index, f"{text} {own}".strip() if many and file.count == 1 else text))
    return layers


def _sample(layers: Sequence[_OpenLayer]) -> np.ndarray:
    """[C, n, n]: at most 64 x 64 pixels of each layer's center, the same whatever window is read later."""
    side = min(64, *(min(layer.file.shape) for layer in layers))
    return np.stack([_center(layer.file, layer.index, side) for layer in layers])


def _center(file: rasterio.DatasetReader, index: int, side: int = 64) -> np.ndarray:
    """[n, n] of a band's center."""
    side = min(side, *file.shape)
    return read_band(file, index, Window((file.width - side) // 2, (file.height - side) // 2, side, side))


def _is_original(file) -> bool:
    """Whether it is Sentinel-2's own file of a .SAFE folder: JPEG 2000, whose fill, 0, is in no header."""
    return file.driver.startswith("JP2") and bool(product_name(file.name).get("baseline"))


def _nodata(file, index: int) -> float | None:
    """The header's, or 0 where an offset is added to the stored numbers, after which the fill is no longer 0."""
    fill = file.nodatavals[index - 1]
    return 0.0 if fill is None and (_is_original(file) or file.offsets[index - 1]) else fill


def _units(layer: _OpenLayer, sensor: Sensor) -> tuple[float, float]:
    """(scale, offset) from the stored numbers to native ones, by the header."""
    file, i = layer.file, layer.index - 1
    if _is_original(file) and has_offset(file.name) and (file.scales[i], file.offsets[i]) == (1, 0):
        return 1.0, float(OFFSET)
    return header_units(file.scales[i], file.offsets[i], sensor)


def _alpha(file, sensor: Sensor) -> int:
    """The 1-based alpha band, or 0. GDAL calls the last of four 8-bit bands alpha unasked: near infrared to a 4-band
    sensor, unless it holds nothing but 0 and 255."""
    bands = [i for i, meaning in enumerate(file.colorinterp, start=1) if meaning == ColorInterp.alpha]
    if not bands or file.descriptions[bands[0] - 1]:
        return 0
    if file.count == len(sensor.bands):
        numbers = {*np.unique(_center(file, bands[0]))}
        return bands[0] if 255 in numbers <= {0, 255} else 0
    return bands[0]


def has_mask(file) -> bool:
    """Whether an open file has GDAL's own mask (internal, or a .msk beside it), which is no band of it."""
    flags = file.mask_flag_enums[0]
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def north_up(file: rasterio.DatasetReader) -> Affine:
    """The file's transform; of a south-up raster (y ascends with the rows, as from NetCDF), that of its flipped rows."""
    a, b, c, d, e, f = tuple(file.transform)[:6]
    return Affine(a, b, c, d, -e, f + e * file.height) if _south_up(file) else file.transform


def _south_up(file: rasterio.DatasetReader) -> bool:
    return file.crs is not None and _ascends(file.transform)


def _ascends(transform: Affine) -> bool:
    """Whether y ascends with the rows; the identity stands for no transform."""
    return transform.e > 0 and transform.b == transform.d == 0 and not transform.is_identity


def read_band(file: rasterio.DatasetReader, index: int | list[int], box: Window | None = None) -> np.ndarray:
    """[H, W] of a 1-based band (0: the file's mask), [C, H, W] of several, on a window of rows from north to south."""
    read = partial(file.read, index) if index else partial(file.read_masks, 1)
    if not _south_up(file):
        return read(window=box)
    if box is not None:
        box = Window(box.col_off, file.height - box.row_off - box.height, box.width, box.height)
    return read(window=box)[..., ::-1, :]


def _read(layer: _OpenLayer, finest, box: Window) -> np.ndarray:
    """[H, W] of one layer on the window of the finest file's grid."""
    file = layer.file
    if file is finest or (file.shape == finest.shape and file.transform.almost_equals(finest.transform, 1e-6)):
        return read_band(file, layer.index, box)
    slack = max(abs(file.transform.a), abs(file.transform.e))
    same_footprint = file.crs == finest.crs and np.allclose(file.bounds, finest.bounds, atol=slack, rtol=0)
    if not same_footprint or finest.crs is None or _south_up(file) or _south_up(finest):
        cause = "files of two scenes in one folder, or a band cropped, flipped or reprojected differently"
        raise ContractError("path", str(_header(file)), f"the footprint of {_header(finest)}", cause)
    fill = _nodata(file, layer.index) if layer.index else None
    if fill is not None and file.nodatavals[layer.index - 1] is None:  # unknown to GDAL, which would interpolate it
        grid = dict(crs=finest.crs, transform=finest.transform, width=finest.width, height=finest.height)
        with WarpedVRT(file, src_nodata=fill, nodata=fill, resampling=Resampling.bilinear, **grid) as warped:
            return warped.read(layer.index, window=box)
    read = partial(file.read, layer.index) if layer.index else partial(file.read_masks, 1)
    part = from_bounds(*finest.window_bounds(box), transform=file.transform)
    shape = (int(box.height), int(box.width))
    return read(window=part, out_shape=shape, resampling=Resampling.bilinear, boundless=False)


def _window(window, file) -> Window:
    if window is None:
        return Window(0, 0, file.width, file.height)
    try:
        column, row, width, height = (int(v) for v in window)
        inside = 0 <= column < column + width <= file.width and 0 <= row < row + height <= file.height
    except (TypeError, ValueError):
        inside = False
    if not inside:
        expected = f"(column, row, width, height) within {file.width} columns x {file.height} rows"
        raise ContractError("window", repr(window), expected, "rows and columns swapped, or a window past the edge")
    return Window(column, row, width, height)
