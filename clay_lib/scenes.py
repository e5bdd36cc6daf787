"""Scenes: raster files to arrays and back, with their band names, ground distance, place and missing pixels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window, from_bounds

from clay_lib.bandnames import choose, words
from clay_lib.contract import ContractError, number
from clay_lib.files import write_whole
from clay_lib.georeference import centre, crs_text, ground_distance
from clay_lib.missing import looks_like_decibel, missing_pixels
from clay_lib.sensors import SENSORS, Sensor

RASTER_ENDINGS = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".img")


@dataclass(frozen=True, eq=False)
class Scene:
    """One raster of one sensor. pixels [C, H, W]: native numbers, in the file's dtype unless scaled, fill included.

    transform: (a, b, c, d, e, f) from pixel corner to CRS; gsd: metres; lat, lon: centre in WGS84 degrees;
    missing [C, H, W]: True where a band was not measured; in_decibel: radar that is in dB already.
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
            raise ContractError(
                "pixels",
                found="no valid pixel",
                expected="at least one",
                cause=f"{self.path} holds only fill here: take another window",
            )
        means = pixels[:, self.valid].mean(axis=1, dtype=np.float64).astype(np.float32)
        return np.where(self.valid, pixels, means[:, None, None])


@dataclass(frozen=True)
class _Layer:
    """One band of one open file, and the text it may be recognised by."""

    source: rasterio.DatasetReader
    index: int  # 1-based; 0: the file's mask
    label: str


def read_scene(
    path: str | Path | Sequence[str | Path],
    sensor: str | Sensor,
    *,
    bands: Mapping[str, int] | Sequence[str | None] | None = None,
    when: str | None = None,
    in_decibel: bool | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
    window: tuple[int, int, int, int] | None = None,
) -> Scene:
    """A GeoTIFF, VRT, JPEG or PNG, or a folder or list of single-band files, as a Scene of `sensor`.

    bands: {sensor band: 1-based number}, or names: those to take where the file describes its bands, else in file
    order with None for a band to leave out. Without it, in this order: the bands' descriptions (or single-band files'
    names), the sensor's own band count in its own order, a known product's layout (12- and 13-band Sentinel-2, Landsat
    from band 1). Bands may be a subset of the sensor's.
    scale, offset: native = value * scale + offset, for files in other units; missing pixels are found before it.
    in_decibel: radar in dB; None looks at the sign of the median. window: (column, row, width, height) in pixels.
    Numbered Landsat bands are read as Landsat 8's, or as Landsat 4-7's where the file's name begins so (LE07, LT05).
    Files of coarser bands over the same footprint are resampled to the finest grid, bilinear.
    Raises ContractError for anything that cannot be read or named.
    """
    sensor = SENSORS.resolve(sensor)
    scale, offset = number("scale", scale), number("offset", offset)
    paths, many = _files(path)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        sources = [_open(stack, p) for p in paths]
        layers = _layers(sources, many, sensor)
        chosen = {
            name: layers[i] for name, i in choose([layer.label for layer in layers], sensor, bands, paths[0]).items()
        }
        reference = max({layer.source for layer in chosen.values()}, key=lambda s: s.width * s.height)
        box = _window(window, reference)
        try:
            read = [_read(layer, reference, box) for layer in chosen.values()]
            alpha = [
                _read(_Layer(s, a, ""), reference, box)
                for s in {layer.source for layer in chosen.values()}
                if (a := _alpha(s, sensor)) or has_mask(s)
            ]
        except (RasterioError, ValueError) as error:
            raise ContractError(
                "path",
                found=f"{paths[0]}: {_short(error)}",
                expected="a raster that can be read to its end",
                cause="a truncated download, or a VRT whose sources moved",
            ) from None
        nodata = [layer.source.nodatavals[layer.index - 1] for layer in chosen.values()]
        crs = reference.crs
        georeferenced = crs is not None or not reference.transform.is_identity
        matrix = reference.window_transform(box) if georeferenced else None

    pixels = np.stack(read)
    missing = missing_pixels(pixels, nodata, sensor)
    for mask in alpha:
        missing |= mask == 0
    if (scale, offset) != (1.0, 0.0):
        pixels = pixels.astype(np.float32) * np.float32(scale) + np.float32(offset)
    if sensor.decibel and in_decibel is None:
        in_decibel = looks_like_decibel(np.where(missing, np.nan, pixels))

    height, width = pixels.shape[1:]
    lat = lon = None
    if crs is not None:
        lon, lat = centre(crs, matrix, height, width)
    return Scene(
        pixels=pixels,
        bands=tuple(chosen),
        sensor=sensor,
        crs=None if crs is None else crs_text(crs),
        transform=None if matrix is None else tuple(matrix)[:6],
        gsd=sensor.gsd if crs is None else ground_distance(crs, matrix, lon, lat),
        lat=lat,
        lon=lon,
        when=when,
        missing=missing,
        in_decibel=bool(in_decibel) and sensor.decibel,
        path=str(paths[0])
        if len(paths) == 1
        else str(path if isinstance(path, (str, Path)) else Path(paths[0]).parent),
    )


@dataclass(frozen=True)
class Layer:
    """Where one band lies: file and 1-based band, and what the file's header says of it. transform: as in Scene."""

    path: str
    index: int
    crs: str | None
    transform: tuple[float, ...]
    height: int
    width: int
    dtype: str
    nodata: float | None
    alpha: int  # 1-based; 0: none
    masked: bool = False  # GDAL's mask, in the file or beside it


def find_layers(path, sensor: str | Sensor, bands=None) -> dict[str, Layer]:
    """{band: Layer} of a file, a folder of single-band files or a list of them: as `read_scene`, headers alone."""
    sensor = SENSORS.resolve(sensor)
    paths, many = _files(path)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        layers = _layers([_open(stack, p) for p in paths], many, sensor)
        chosen = choose([layer.label for layer in layers], sensor, bands, paths[0])
        return {name: _header(layers[i], sensor) for name, i in chosen.items()}


def _header(layer: _Layer, sensor: Sensor) -> Layer:
    source, place = layer.source, layer.index - 1
    crs = None if source.crs is None else crs_text(source.crs)
    size = (source.height, source.width)
    said = (source.dtypes[place], source.nodatavals[place])
    opaque = (_alpha(source, sensor), has_mask(source))
    return Layer(source.name, layer.index, crs, tuple(source.transform)[:6], *size, *said, *opaque)


def middle_window(path: str | Path, most: int) -> tuple[int, int, int, int] | None:
    """(column, row, width, height) of at most `most` pixels a side in a file's middle; None: it is no larger."""
    if not Path(path).is_file() and not str(path).startswith("/vsi") and "://" not in str(path):
        return None  # a folder of single bands is read whole, and `read_scene` tells what is missing
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        source = _open(stack, str(path))
        wide, high = min(most, source.width), min(most, source.height)
        whole = (wide, high) == (source.width, source.height)
        return None if whole else ((source.width - wide) // 2, (source.height - high) // 2, wide, high)


def most_measured(valid: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """(top, left) of the height x width window of valid [H, W] with the most measured pixels, nearest the middle."""
    counts = np.pad(valid.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = counts[height:, width:] - counts[:-height, width:] - counts[height:, :-width] + counts[:-height, :-width]
    rows, columns = np.nonzero(inside == inside.max())
    away = np.hypot(rows - (inside.shape[0] - 1) / 2, columns - (inside.shape[1] - 1) / 2)
    return int(rows[away.argmin()]), int(columns[away.argmin()])


def write_raster(
    path: str | Path,
    values: np.ndarray,
    *,
    crs: str | None,
    transform: Sequence[float] | None,
    nodata: float | None = None,
    descriptions: Sequence[str] | None = None,
) -> Path:
    """Values [C, H, W] or [H, W] as a tiled, deflated GeoTIFF; the name appears only once the file is whole."""
    path, values = Path(path), np.asarray(values)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape:
        raise ContractError(
            "values",
            found=f"shape {values.shape}",
            expected="[C, H, W] or [H, W]",
            cause="a batch axis is still there: write one image a file",
        )
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    if descriptions is not None and (isinstance(descriptions, str) or len(descriptions) != len(values)):
        raise ContractError(
            "descriptions",
            found=descriptions,
            expected=f"{len(values)} names, one a band",
            cause="bands were added or dropped after the names were listed",
        )
    count, height, width = values.shape
    profile = dict(driver="GTiff", count=count, height=height, width=width, dtype=values.dtype.name, nodata=nodata)
    profile |= dict(tiled=True, blockxsize=256, blockysize=256, compress="deflate", BIGTIFF="IF_SAFER")
    profile |= dict(predictor=3 if values.dtype.kind == "f" else 2, crs=crs, photometric="MINISBLACK", alpha="NO")
    if transform is not None:
        profile["transform"] = Affine(*tuple(transform)[:6])

    def fill(unfinished: Path) -> None:
        with rasterio.open(unfinished, "w", **profile) as target:
            target.write(values)
            for index, text in enumerate(descriptions or (), start=1):
                target.set_band_description(index, text)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return write_whole(path, fill)
    except (RasterioError, TypeError, ValueError) as error:
        raise ContractError(
            "raster",
            found=f"{path}: {_short(error)}",
            expected="a folder that can be written to, and a dtype, nodata and CRS that GeoTIFF knows",
            cause=f"dtype {values.dtype}, nodata {nodata!r} or CRS {crs!r}",
        ) from None


# ---- files ----


def _files(path) -> tuple[list[str], bool]:
    """(files, whether they came as a folder or list)."""
    if not isinstance(path, (str, Path)):
        paths = [str(p) for p in path] if isinstance(path, Sequence) else []
        if not paths:
            raise ContractError(
                "path",
                found=repr(path),
                expected="at least one raster file",
                cause="a pattern that matched nothing",
            )
        return paths, True
    folder = Path(path)
    if not folder.is_dir():
        return [str(path)], False
    paths = sorted(
        str(p) for p in folder.iterdir() if p.suffix.lower() in RASTER_ENDINGS and not p.name.startswith(".")
    )
    if not paths:
        raise ContractError(
            "path",
            found=f"{folder}, without rasters",
            expected=f"files ending in {', '.join(RASTER_ENDINGS)}",
            cause="the rasters lie in a folder below or above",
        )
    return paths, True


def _open(stack: ExitStack, path: str) -> rasterio.DatasetReader:
    remote = "://" in path or path.startswith("/vsi")
    if not remote and not Path(path).is_file():
        raise ContractError(
            "path",
            found=f"{path}, which does not exist",
            expected="a raster file, or a folder of them",
            cause="a misspelt name, or a path relative to another folder",
        )
    try:
        return stack.enter_context(rasterio.open(path))
    except RasterioError as error:
        raise ContractError(
            "path",
            found=f"{path}: {_short(error)}",
            expected="a GeoTIFF, VRT, JPEG 2000, JPEG or PNG",
            cause="not a raster, a broken download, or an archive that must be unpacked",
        ) from None


def _alpha(source, sensor: Sensor) -> int:
    """The 1-based alpha band, or 0. GDAL calls the last of four 8-bit bands alpha unasked: not for a 4-band sensor."""
    bands = [i for i, meaning in enumerate(source.colorinterp, start=1) if meaning == ColorInterp.alpha]
    return bands[0] if bands and source.count != len(sensor.bands) and not source.descriptions[bands[0] - 1] else 0


def has_mask(source) -> bool:
    """Whether an open file has GDAL's own mask (internal, or a .msk beside it), which is no band of it."""
    flags = source.mask_flag_enums[0]
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def _layers(sources, many: bool, sensor: Sensor) -> list[_Layer]:
    """All bands of all files in order, alpha left out."""
    stems = [Path(s.name).stem for s in sources]
    shared = set.intersection(*({*words(stem)} for stem in stems)) if len(stems) > 1 else set()
    layers = []
    for source, stem in zip(sources, stems, strict=True):
        own = " ".join(word for word in words(stem) if word not in shared)  # what all names share names no band
        for index in source.indexes:
            if index != _alpha(source, sensor):
                text = source.descriptions[index - 1] or ""
                layers.append(_Layer(source, index, f"{text} {own}".strip() if many and source.count == 1 else text))
    return layers


def _read(layer: _Layer, reference, box: Window) -> np.ndarray:
    """[H, W] of one layer on the window of the reference's grid."""
    source = layer.source
    read = partial(source.read, layer.index) if layer.index else partial(source.read_masks, 1)
    if source.shape == reference.shape and source.transform.almost_equals(reference.transform, 1e-6):
        return read(window=box)
    slack = max(abs(source.transform.a), abs(source.transform.e))
    together = source.crs == reference.crs and np.allclose(source.bounds, reference.bounds, atol=slack, rtol=0)
    if not together or reference.crs is None:
        raise ContractError(
            "path",
            found=_footprint(source),
            expected=f"the footprint of {_footprint(reference)}",
            cause="files of two scenes in one folder, or a band cut or reprojected differently",
        )
    part = from_bounds(*reference.window_bounds(box), transform=source.transform)
    shape = (int(box.height), int(box.width))
    return read(window=part, out_shape=shape, resampling=Resampling.bilinear, boundless=False)


def _window(window, reference) -> Window:
    if window is None:
        return Window(0, 0, reference.width, reference.height)
    try:
        column, row, width, height = (int(v) for v in window)
    except (TypeError, ValueError):
        column = row = width = height = -1
    if (
        column < 0
        or row < 0
        or width < 1
        or height < 1
        or column + width > reference.width
        or row + height > reference.height
    ):
        raise ContractError(
            "window",
            found=repr(window),
            expected=f"(column, row, width, height) within {reference.width} columns x {reference.height} rows",
            cause="rows and columns swapped, or a window past the edge",
        )
    return Window(column, row, width, height)


def _footprint(source) -> str:
    return f"{Path(source.name).name}: {source.shape} at {tuple(round(v, 1) for v in source.bounds)}"


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
