"""Scenes: raster files to arrays and back, with the band names, ground distance, place and missing pixels Clay needs."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window, from_bounds

from clay_lib.contract import ContractError
from clay_lib.sensors import SENSORS, Sensor

MODIS_FILL = 32767
METRES_PER_DEGREE = 111_320.0  # along a meridian, and along the equator
RASTER_ENDINGS = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".img")

# A file's band number -> Clay's band. Where a sensor is not listed, band n is the n-th of its native order.
_SENTINEL_2 = {"2": "blue", "3": "green", "4": "red", "5": "rededge1", "6": "rededge2", "7": "rededge3"}
_SENTINEL_2 |= {"8": "nir", "8a": "nir08", "11": "swir16", "12": "swir22"}
_LANDSAT_8 = {"2": "blue", "3": "green", "4": "red", "5": "nir08", "6": "swir16", "7": "swir22"}
_LANDSAT_4_7 = {"1": "blue", "2": "green", "3": "red", "4": "nir08", "5": "swir16", "7": "swir22"}
# Products whose bands come without names: sensor -> band numbers in file order.
_LAYOUTS = {
    "sentinel-2-l2a": ("1 2 3 4 5 6 7 8 8a 9 11 12", "1 2 3 4 5 6 7 8 8a 9 10 11 12"),
    "landsat-c2l1": ("1 2 3 4 5 6 7", "1 2 3 4 5 6 7 8 9 10 11"),
    "landsat-c2l2-sr": ("1 2 3 4 5 6 7",),
    "linz": ("1 2 3 4",),  # the fourth is near infrared
}


@dataclass(frozen=True, eq=False)
class Scene:
    """One raster of one sensor. pixels [C, H, W]: native numbers, in the file's dtype unless scaled, fill included.

    transform: (a, b, c, d, e, f) from pixel corner to CRS; gsd: metres; lat, lon: centre in WGS84 degrees;
    valid [H, W]: True where every band was measured; in_decibel: radar that is in dB already.
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
    valid: np.ndarray
    in_decibel: bool = False
    path: str = ""

    def filled(self) -> np.ndarray:
        """Pixels float32 [C, H, W] whose missing ones hold their band's mean: fit for a model that knows no NaN."""
        pixels = self.pixels.astype(np.float32)
        if not self.valid.any():
            raise ContractError("pixels", found="no valid pixel", expected="at least one", cause=f"{self.path} holds only fill here: take another window")
        means = pixels[:, self.valid].mean(axis=1, dtype=np.float64).astype(np.float32)
        return np.where(self.valid, pixels, means[:, None, None])


@dataclass(frozen=True)
class _Layer:
    """One band of one open file, and the text it may be recognised by."""

    source: rasterio.DatasetReader
    index: int  # 1-based
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

    bands: {sensor band: 1-based number}, or names in file order with None for a band to leave out. Without it, in
    this order: the bands' descriptions (or single-band files' names), the sensor's own band count in its own order,
    a known product's layout (12- and 13-band Sentinel-2, Landsat from band 1). Bands may be a subset of the sensor's.
    scale, offset: native = value * scale + offset, for files in other units; missing pixels are found before it.
    in_decibel: radar in dB; None looks at the sign of the median. window: (column, row, width, height) in pixels.
    Numbered Landsat bands are read as Landsat 8's, or as Landsat 4-7's where the file's name begins so (LE07, LT05).
    Files of coarser bands over the same footprint are resampled to the finest grid, bilinear.
    Raises ContractError for anything that cannot be read or named.
    """
    sensor = SENSORS.resolve(sensor)
    paths, many = _files(path)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        sources = [_open(stack, p) for p in paths]
        chosen = _choose(_layers(sources, many, sensor), sensor, bands, paths)
        reference = max({layer.source for layer in chosen.values()}, key=lambda s: s.width * s.height)
        box = _window(window, reference)
        try:
            read = [_read(layer, reference, box) for layer in chosen.values()]
            alpha = [_read(_Layer(s, a, ""), reference, box) for s in {layer.source for layer in chosen.values()} if (a := _alpha(s, sensor))]
        except (RasterioError, ValueError) as error:
            raise ContractError("path", found=f"{paths[0]}: {_short(error)}", expected="a raster that can be read to its end", cause="a truncated download, or a VRT whose sources moved") from None
        nodata = [layer.source.nodatavals[layer.index - 1] for layer in chosen.values()]
        crs = reference.crs
        georeferenced = crs is not None or not reference.transform.is_identity
        matrix = reference.window_transform(box) if georeferenced else None

    pixels = np.stack(read)
    valid = _valid(pixels, nodata, sensor)
    for mask in alpha:
        valid &= mask > 0
    if (scale, offset) != (1.0, 0.0):
        pixels = pixels.astype(np.float32) * np.float32(scale) + np.float32(offset)
    if sensor.decibel and in_decibel is None:
        in_decibel = bool(valid.any() and np.median(pixels[:, valid]) < 0)

    height, width = valid.shape
    lat = lon = None
    if crs is not None:
        lon, lat = _centre(crs, matrix, height, width)
    return Scene(
        pixels=pixels,
        bands=tuple(chosen),
        sensor=sensor,
        crs=None if crs is None else _crs_text(crs),
        transform=None if matrix is None else tuple(matrix)[:6],
        gsd=sensor.gsd if crs is None else _ground_distance(crs, matrix, lat),
        lat=lat,
        lon=lon,
        when=when,
        valid=valid,
        in_decibel=bool(in_decibel) and sensor.decibel,
        path=str(paths[0]) if len(paths) == 1 else str(path if isinstance(path, (str, Path)) else Path(paths[0]).parent),
    )


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
        raise ContractError("values", found=f"shape {values.shape}", expected="[C, H, W] or [H, W]", cause="a batch axis is still there: write one image a file")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    if descriptions is not None and (isinstance(descriptions, str) or len(descriptions) != len(values)):
        raise ContractError("descriptions", found=descriptions, expected=f"{len(values)} names, one a band", cause="bands were added or dropped after the names were listed")
    count, height, width = values.shape
    profile = dict(driver="GTiff", count=count, height=height, width=width, dtype=values.dtype.name, nodata=nodata)
    profile |= dict(tiled=True, blockxsize=256, blockysize=256, compress="deflate", BIGTIFF="IF_SAFER")
    profile |= dict(predictor=3 if values.dtype.kind == "f" else 2, crs=crs, photometric="MINISBLACK", alpha="NO")
    if transform is not None:
        profile["transform"] = Affine(*tuple(transform)[:6])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(unfinished, "w", **profile) as target:
                target.write(values)
                for index, text in enumerate(descriptions or (), start=1):
                    target.set_band_description(index, text)
        os.replace(unfinished, path)
    except (RasterioError, TypeError, ValueError) as error:
        raise ContractError("raster", found=f"{path}: {_short(error)}", expected="a dtype and CRS that GeoTIFF knows", cause=f"dtype {values.dtype}, nodata {nodata!r} or CRS {crs!r}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def coarser(transform: Sequence[float], patch: int) -> tuple[float, ...]:
    """The transform of a grid whose cells are patch x patch pixels, with the same upper left corner."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * patch, b * patch, c, d * patch, e * patch, f


def bounds_wgs84(crs: str, transform: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """(west, south, east, north) in degrees of the box around the raster; west > east across the antimeridian."""
    box = array_bounds(height, width, Affine(*tuple(transform)[:6]))
    try:
        return tuple(float(v) for v in transform_bounds(crs, "EPSG:4326", *box, densify_pts=21))
    except (RasterioError, ValueError, AttributeError) as error:
        raise ContractError("crs", found=repr(crs), expected='an EPSG code ("EPSG:32633"), WKT or PROJ text', cause=_short(error)) from None


# ---- files ----


def _files(path) -> tuple[list[str], bool]:
    """(files, whether they came as a folder or list)."""
    if not isinstance(path, (str, Path)):
        paths = [str(p) for p in path]
        if not paths:
            raise ContractError("path", found="an empty list", expected="at least one raster file", cause="a pattern that matched nothing")
        return paths, True
    folder = Path(path)
    if not folder.is_dir():
        return [str(path)], False
    paths = sorted(str(p) for p in folder.iterdir() if p.suffix.lower() in RASTER_ENDINGS and not p.name.startswith("."))
    if not paths:
        raise ContractError("path", found=f"{folder}, without rasters", expected=f"files ending in {', '.join(RASTER_ENDINGS)}", cause="the rasters lie in a folder below or above")
    return paths, True


def _open(stack: ExitStack, path: str) -> rasterio.DatasetReader:
    remote = "://" in path or path.startswith("/vsi")
    if not remote and not Path(path).is_file():
        raise ContractError("path", found=f"{path}, which does not exist", expected="a raster file, or a folder of them", cause="a misspelt name, or a path relative to another folder")
    try:
        return stack.enter_context(rasterio.open(path))
    except RasterioError as error:
        raise ContractError("path", found=f"{path}: {_short(error)}", expected="a GeoTIFF, VRT, JPEG 2000, JPEG or PNG", cause="not a raster, a broken download, or an archive that must be unpacked") from None


def _alpha(source, sensor: Sensor) -> int:
    """The 1-based alpha band, or 0. GDAL calls the fourth of four 8-bit bands alpha unasked: if the sensor has four, it is one."""
    bands = [i for i, meaning in enumerate(source.colorinterp, start=1) if meaning == ColorInterp.alpha]
    return bands[0] if bands and source.count != len(sensor.bands) and not source.descriptions[bands[0] - 1] else 0


def _layers(sources, many: bool, sensor: Sensor) -> list[_Layer]:
    """All bands of all files in order, alpha left out."""
    stems = [Path(s.name).stem for s in sources]
    shared = set.intersection(*({*_words(stem)} for stem in stems)) if len(stems) > 1 else set()
    layers = []
    for source, stem in zip(sources, stems, strict=True):
        words = " ".join(word for word in _words(stem) if word not in shared)  # what all names share names no band
        for index in source.indexes:
            if index != _alpha(source, sensor):
                text = source.descriptions[index - 1] or ""
                layers.append(_Layer(source, index, f"{text} {words}".strip() if many and source.count == 1 else text))
    return layers


def _read(layer: _Layer, reference, box: Window) -> np.ndarray:
    """[H, W] of one layer on the window of the reference's grid."""
    source = layer.source
    if source.shape == reference.shape and source.transform.almost_equals(reference.transform, 1e-6):
        return source.read(layer.index, window=box)
    slack = max(abs(source.transform.a), abs(source.transform.e))
    together = source.crs == reference.crs and np.allclose(source.bounds, reference.bounds, atol=slack, rtol=0)
    if not together or reference.crs is None:
        raise ContractError(
            "path",
            found=f"{Path(source.name).name}: {source.shape} at {tuple(round(v, 1) for v in source.bounds)}",
            expected=f"the footprint of {Path(reference.name).name}: {reference.shape} at {tuple(round(v, 1) for v in reference.bounds)}",
            cause="files of two scenes in one folder, or a band cut or reprojected differently",
        )
    part = from_bounds(*reference.window_bounds(box), transform=source.transform)
    shape = (int(box.height), int(box.width))
    return source.read(layer.index, window=part, out_shape=shape, resampling=Resampling.bilinear, boundless=False)


def _window(window, reference) -> Window:
    if window is None:
        return Window(0, 0, reference.width, reference.height)
    column, row, width, height = (int(v) for v in window)
    if column < 0 or row < 0 or width < 1 or height < 1 or column + width > reference.width or row + height > reference.height:
        raise ContractError("window", found=tuple(window), expected=f"(column, row, width, height) within {reference.width} columns x {reference.height} rows", cause="rows and columns swapped, or a window past the edge")
    return Window(column, row, width, height)


# ---- which file band is which ----


def _choose(layers: list[_Layer], sensor: Sensor, bands, paths) -> dict[str, _Layer]:
    """{sensor band: layer} in the sensor's native order, or in the caller's."""
    if bands is not None:
        return _named(layers, sensor, bands)
    numbers = _numbers(sensor, paths)
    names = [_recognise(layer.label, sensor, numbers) for layer in layers]
    if any(names):
        twice = {name for name in names if name and names.count(name) > 1}
        if twice:
            claims = [layer.label or Path(layer.source.name).name for layer, name in zip(layers, names, strict=True) if name in twice]
            raise ContractError("bands", found=f"{claims}, all read as {sorted(twice)}", expected="one layer a band", cause="two scenes or two resolutions in one folder: hand in a list of files, or bands=")
    elif len(layers) == len(sensor.bands):
        names = list(sensor.band_names)
    else:
        layouts = [text.split() for text in _LAYOUTS.get(sensor.name, ())]
        layout = next((numbers_ for numbers_ in layouts if len(numbers_) == len(layers)), None)
        if layout is None:
            labels = [layer.label for layer in layers]
            raise ContractError(
                "bands",
                found=f"{len(layers)} bands" + (f" described as {labels}" if any(labels) else " without descriptions") + f" in {paths[0]}",
                expected=f"the {len(sensor.bands)} of {sensor.name}: {list(sensor.band_names)}",
                cause="another sensor, or more bands than Clay takes: name them in file order, bands=['blue', None, ...], or by number, bands={'red': 3, ...}",
            )
        names = [numbers.get(number) for number in layout]
    found = {name: layer for name, layer in zip(names, layers, strict=True) if name}
    return {name: found[name] for name in sensor.band_names if name in found}


def _named(layers, sensor, bands) -> dict[str, _Layer]:
    if isinstance(bands, Mapping):
        pairs = list(bands.items())
    else:
        bands = [bands] if isinstance(bands, str) else list(bands)
        if len(bands) != len(layers):
            raise ContractError("bands", found=f"{len(bands)} names", expected=f"{len(layers)}, one a file band, None for those to leave out", cause="a list names every band of the file in order; a dict {name: number} may name a few")
        pairs = [(name, i) for i, name in enumerate(bands, start=1) if name is not None]
    sensor.indices([name for name, _ in pairs])  # refuses unknown names, repeats and none at all
    for name, number in pairs:
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 1 <= number <= len(layers):
            raise ContractError(f"bands[{name!r}]", found=repr(number), expected=f"a file band number from 1 to {len(layers)}", cause="numbers count from 1, as in GDAL")
    return {name: layers[number - 1] for name, number in pairs}


def _numbers(sensor: Sensor, paths) -> dict[str, str]:
    if sensor.name.startswith("sentinel-2"):
        return _SENTINEL_2
    if sensor.name.startswith("landsat"):
        older = re.search(r"(?:^|[^a-z0-9])l[etm]?0?[457]", Path(paths[0]).name.lower())  # LE07..., LT05..., L7-...
        return _LANDSAT_4_7 if older else _LANDSAT_8
    return {str(i): name for i, name in enumerate(sensor.band_names, start=1)}


def _recognise(label: str, sensor: Sensor, numbers: Mapping[str, str]) -> str | None:
    """The one band that a label speaks of ("B8A", "SR_B4", "band 3 reflectance", "vv", "nir08"), or None."""
    text = re.sub(r"red_edge_?", "rededge", "_".join(_words(label)))
    by_name = {name for name in sensor.band_names if re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", text)}
    by_name = {name for name in by_name if not any(name != other and name in other for other in by_name)}
    by_number = {numbers[n] for n in re.findall(r"(?<![a-z0-9])b(?:and)?_?0*([1-9][0-9]?a?)(?![a-z0-9])", text) if n in numbers}
    found = by_name or by_number
    return found.pop() if len(found) == 1 else None


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


# ---- missing pixels, place, distance ----


def _valid(pixels: np.ndarray, nodata, sensor: Sensor) -> np.ndarray:
    """[H, W] bool. A fill inside the range of measurements (0; 255 in 8 bit) counts only where every band holds it."""
    missing = np.isnan(pixels) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, bool)
    ordinary = missing.copy()
    for band, fill in enumerate(nodata):
        if fill is not None and not math.isnan(fill):
            measurable = fill == 0 or (fill == 255 and pixels.dtype == np.uint8)
            (ordinary if measurable else missing)[band] |= pixels[band] == fill
    if sensor.name == "modis":
        missing |= pixels == MODIS_FILL
    return ~(missing.any(axis=0) | ordinary.all(axis=0))


def _centre(crs, matrix: Affine, height: int, width: int) -> tuple[float, float]:
    x = matrix.a * width / 2 + matrix.b * height / 2 + matrix.c
    y = matrix.d * width / 2 + matrix.e * height / 2 + matrix.f
    (lon,), (lat,) = transform(crs, "EPSG:4326", [x], [y])
    return float(lon), float(lat)


def _ground_distance(crs, matrix: Affine, lat: float) -> float:
    """Metres per pixel: the root of the pixel's area at the scene's centre."""
    if crs.is_geographic:
        east, north = METRES_PER_DEGREE * math.cos(math.radians(lat)), METRES_PER_DEGREE
    else:
        east = north = crs.linear_units_factor[1]
    across = math.hypot(matrix.a * east, matrix.d * north)
    down = math.hypot(matrix.b * east, matrix.e * north)
    return round(math.sqrt(across * down), 6)


def _crs_text(crs) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt()


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
