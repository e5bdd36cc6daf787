"""Raster files: open them, find their bands, read their headers, write arrays, burn features onto their grids.

Rows of an opened file count from north to south: those of a south-up file are flipped on reading.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import rasterize
from rasterio.transform import Affine, array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window, from_bounds

from clay_lib.data.bands import (
    OFFSET,
    SENTINEL_2,
    Bands,
    has_offset,
    header_date,
    header_units,
    match_bands,
    product_name,
    words,
)
from clay_lib.data.georeference import NO_CRS, lat_lon, locate, warn_of_points
from clay_lib.errors import ContractError, first_line, warn
from clay_lib.files import atomic_write
from clay_lib.sensors import SENSORS, Sensor

if TYPE_CHECKING:
    import geopandas

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")  # quicklooks, where another raster of the same name lies beside them
DATASET_ENDINGS = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".hdf", ".zarr")
RASTER_ENDINGS = (".tif", ".tiff", ".vrt", ".jp2", ".img", *IMAGE_ENDINGS)


class OpenLayer(NamedTuple):
    """One band of an open file, and the text that may name it."""

    file: rasterio.DatasetReader
    index: int  # 1-based; 0: the file's mask
    label: str
    reason: str = ""  # why it was taken for its band

    @property
    def nodata(self) -> float | None:
        """The header's; if none, 0 in Sentinel-2's own files and where an offset turns stored zeros into numbers."""
        fill = self.file.nodatavals[self.index - 1]
        return 0.0 if fill is None and (_is_original(self.file) or self.file.offsets[self.index - 1]) else fill

    def units(self, sensor: Sensor) -> tuple[float, float]:
        """(scale, offset) from the stored numbers to native ones, by the header."""
        scale, offset = self.file.scales[self.index - 1], self.file.offsets[self.index - 1]
        if _is_original(self.file) and has_offset(self.file.name) and (scale, offset) == (1, 0):
            return 1.0, float(OFFSET)
        return header_units(scale, offset, sensor)

    def read(self, finest: rasterio.DatasetReader, box: Window) -> np.ndarray:
        """[H, W] on a window of the finest file's grid, to which coarser files are resampled."""
        file = self.file
        if file is finest or (file.shape == finest.shape and file.transform.almost_equals(finest.transform, 1e-6)):
            return read_band(file, self.index, box)
        slack = max(abs(file.transform.a), abs(file.transform.e))
        same_footprint = file.crs == finest.crs and np.allclose(file.bounds, finest.bounds, atol=slack, rtol=0)
        if not same_footprint or finest.crs is None or _south_up(file) or _south_up(finest):
            cause = "files of two scenes in one folder, or a band cropped, flipped or reprojected differently"
            raise ContractError("path", str(_header(file)), f"the footprint of {_header(finest)}", cause)
        if self.index and file.nodatavals[self.index - 1] is None:
            # GDAL does not know of a fill of zeros, and would interpolate between it and its neighbors
            grid = dict(crs=finest.crs, transform=finest.transform, width=finest.width, height=finest.height)
            with WarpedVRT(file, src_nodata=0, nodata=0, resampling=Resampling.bilinear, **grid) as warped:
                return warped.read(self.index, window=box)
        read = partial(file.read, self.index) if self.index else partial(file.read_masks, 1)
        part = from_bounds(*finest.window_bounds(box), transform=file.transform)
        shape = (int(box.height), int(box.width))
        return read(window=part, out_shape=shape, resampling=Resampling.bilinear, boundless=False)


# ---- headers ----


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
    """The header of a raster file; never cached, since in a notebook the file may have been rewritten."""
    with open_raster(path) as file:
        return _header(file)


def _header(file: rasterio.DatasetReader) -> Header:
    when = product_name(file.name).get("when") or header_date(file.tags())
    return Header(file.name, file.height, file.width, file.crs, tuple(north_up(file))[:6], when)


def find_layers(path, sensor: str | Sensor, bands: Bands = None, when=None) -> dict[str, Layer]:
    """{band: Layer} of a file, a folder of single-band files or a list of them: as `read_scene`, headers alone."""
    sensor, found = SENSORS.resolve(sensor), {}
    with open_layers(path, sensor, bands, when) as (_, layers):
        for name, layer in layers.items():
            file, i, (scale, offset) = layer.file, layer.index, layer.units(sensor)
            stored = dict(index=i, dtype=file.dtypes[i - 1], nodata=layer.nodata, scale=scale, offset=offset)
            masked = bool(alpha_band(file, sensor)) or has_mask(file)
            found[name] = Layer(**vars(_header(file)), **stored, masked=masked)
    return found


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


# ---- vector features ----


def place_features(frame: geopandas.GeoDataFrame, header: Header, path: Path, fill: float) -> geopandas.GeoDataFrame:
    """The features in an image's CRS, with a warning where features of different numbers share a pixel."""
    if header.crs is None:
        cause = "a PNG, or a lost header"
        raise ContractError("images", f"{header.path} without a CRS", "a georeferenced image", cause)
    frame = frame.to_crs(header.crs)
    last, first = (burn(part, header, fill) for part in (frame, frame.iloc[::-1]))
    if overlap := int(((last != first) & ~np.isnan(last)).sum()):
        warn(f"{overlap} pixels lie in features of several classes: the last feature in {path.name} counts")
    return frame


def burn(
    frame: geopandas.GeoDataFrame, header: Header, fill: float, box: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """[H, W] of a box (column, row, width, height) of an image: the features' "number", fill where there is none.

    A pixel belongs to the last polygon that holds its center, or point that lies in it. Float32 if fill is NaN, else int32.
    """
    left, top, width, height = box or (0, 0, header.width, header.height)
    transform = Affine(*header.transform) @ Affine.translation(left, top)
    inside = shapely.box(*array_bounds(height, width, transform))
    frame = frame.iloc[np.sort(frame.sindex.query(inside))]
    dtype = np.float32 if np.isnan(fill) else np.int32
    if not len(frame):
        return np.full((height, width), fill, dtype)
    features = zip(frame.geometry, frame["number"], strict=True)
    return rasterize(features, (height, width), fill=fill, transform=transform, dtype=dtype)


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
    if not str(path).strip():  # Path("") is the working folder
        raise ContractError("path", "an empty text", "a raster file, or a folder of them", "a variable that is not set")
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
        if "://" in path:
            expected = "a raster that can be read"
            cause = "no network, a wrong address, or an archive that needs a login"
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
    code = f'import xarray; xarray.open_dataset("{path}"{engine})'
    cause = f"open it in xarray and pass that, with variables named as the bands: {code}"
    return ContractError("path", f"{path}: a data set{held}", "a raster file with bands", cause)


@contextmanager
def open_layers(path, sensor: Sensor, bands: Bands, when) -> Iterator[tuple[list[str], dict[str, OpenLayer]]]:
    """(paths, {sensor band: open layer}) of a file, a folder or a list of files."""
    paths, many = _raster_paths(path)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        files = [stack.enter_context(open_raster(p)) for p in paths]
        if ColorInterp.palette in files[0].colorinterp:
            cause = "an image for display, or labels; colors: gdal_translate -expand rgb in.tif out.tif"
            raise ContractError("path", f"{paths[0]}: numbers of a palette", "measurements", cause)
        for file in files:
            if any("complex" in dtype for dtype in file.dtypes):  # a cast would keep the real part alone
                cause = "single-look complex radar: make calibrated gamma0 of it"
                raise ContractError("pixels", f"{file.name}: {file.dtypes[0]}", "real numbers", cause)
        grid, fix = north_up(files[0]), f"gdalwarp {files[0].name} out.tif"
        if files[0].crs is not None and grid.determinant > 0:
            expected, cause = "columns from west to east", f"a flipped export, which this makes north-up: {fix}"
            raise ContractError("transform", f"{files[0].name}, mirrored", expected, cause)
        if abs(grid.d) > 0.1 * abs(grid.a):  # 6 degrees
            warn(f"{files[0].name} is rotated, and read in its own orientation; this makes it north-up: {fix}")
        layers = _layers(files, many, sensor)
        for file in [file for file in files if file.crs is None][:1]:
            if file.gcps[0] or file.rpcs:
                warn_of_points(file.name, rpcs=not file.gcps[0])
            elif _ascends(file.transform):
                warn(f"{file.name}: {NO_CRS}")
        labels = [layer.label for layer in layers]
        matched = match_bands(labels, sensor, bands, paths[0], partial(_sample, layers), when)
        yield paths, {name: layers[i]._replace(reason=matched.reasons[name]) for name, i in matched.items()}


def _layers(files, many: bool, sensor: Sensor) -> list[OpenLayer]:
    """All bands of all files in order, alpha left out."""
    stems = [Path(file.name).stem for file in files]
    shared = set.intersection(*({*words(stem)} for stem in stems)) if len(stems) > 1 else set()
    layers = []
    for file, stem in zip(files, stems, strict=True):
        own = " ".join(word for word in words(stem) if word not in shared)  # words in every file name identify no band
        alpha = alpha_band(file, sensor)
        for index in file.indexes:
            if index != alpha:
                text = file.descriptions[index - 1] or ""
                if alpha and file.count == len(sensor.bands):  # what is left cannot go by its number of bands
                    text = text or sensor.band_names[index - 1]
                layers.append(OpenLayer(file, index, f"{text} {own}".strip() if many and file.count == 1 else text))
    return layers


def _sample(layers: Sequence[OpenLayer]) -> np.ndarray:
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


def alpha_band(file, sensor: Sensor) -> int:
    """The 1-based alpha band, or 0. GDAL calls the last of four 8-bit bands alpha by itself; for a 4-band sensor it is
    near infrared, unless it holds only 0 and 255."""
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
