"""Scenes: raster files to arrays and back, with their band names, ground distance, place and missing pixels."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from pyproj import Proj
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform as reproject
from rasterio.warp import transform_bounds
from rasterio.windows import Window, from_bounds

from clay_lib.errors import ContractError, number
from clay_lib.files import atomic_write
from clay_lib.sensors import SENSORS, Sensor

METRES_PER_DEGREE = 111_320.0  # along a meridian, and along the equator


def centre(crs: CRS, matrix: Affine, height: int, width: int) -> tuple[float, float]:
    """(lon, lat) of the raster's middle, WGS84 degrees. Raises ContractError for a CRS that is not of the Earth."""
    if not (crs.is_geographic or crs.is_projected):
        raise ContractError(
            "crs",
            crs.to_wkt()[:60],
            "a CRS that says where on Earth",
            "a survey's own system: give the file its real CRS (gdal_edit.py -a_srs), or none (-a_srs '')",
        )
    x = matrix.a * width / 2 + matrix.b * height / 2 + matrix.c
    y = matrix.d * width / 2 + matrix.e * height / 2 + matrix.f
    (lon,), (lat,) = reproject(crs, "EPSG:4326", [x], [y])
    return float(lon), float(lat)


def ground_distance(crs: CRS, matrix: Affine, lon: float, lat: float) -> float:
    """Metres per pixel: the root of the pixel's area on the ground at the scene's centre (lon, lat, degrees).

    Where the projection keeps areas within 2 %, as UTM and national grids do, the pixel's nominal size; the web's
    Mercator draws everything larger by 1 / cos(lat), which is taken back.
    """
    if crs.is_geographic:
        east, north = METRES_PER_DEGREE * math.cos(math.radians(lat)), METRES_PER_DEGREE
    else:
        larger = Proj(crs.to_wkt()).get_factors(lon, lat).areal_scale
        unit = crs.linear_units_factor[1]
        east = north = unit if abs(larger - 1) < 0.02 else unit / math.sqrt(larger)
    across = math.hypot(matrix.a * east, matrix.d * north)
    down = math.hypot(matrix.b * east, matrix.e * north)
    return round(math.sqrt(across * down), 6)


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
        raise ContractError(
            "crs",
            repr(crs),
            'an EPSG code ("EPSG:32633"), WKT or PROJ text',
            str(error).strip() or type(error).__name__,
        ) from None


def crs_text(crs) -> str:
    """EPSG:CODE where the CRS has one, else WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt()


# ---- Scenes: raster files to arrays and back, with their band names, ground distance, place and missing p ----

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
                "pixels", "no valid pixel", "at least one", f"{self.path} holds only fill here: take another window"
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
                f"{paths[0]}: {_short(error)}",
                "a raster that can be read to its end",
                "a truncated download, or a VRT whose sources moved",
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
            f"shape {values.shape}",
            "[C, H, W] or [H, W]",
            "a batch axis is still there: write one image a file",
        )
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    if descriptions is not None and (isinstance(descriptions, str) or len(descriptions) != len(values)):
        raise ContractError(
            "descriptions",
            descriptions,
            f"{len(values)} names, one a band",
            "bands were added or dropped after the names were listed",
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
            return atomic_write(path, fill)
    except (RasterioError, TypeError, ValueError) as error:
        raise ContractError(
            "raster",
            f"{path}: {_short(error)}",
            "a folder that can be written to, and a dtype, nodata and CRS that GeoTIFF knows",
            f"dtype {values.dtype}, nodata {nodata!r} or CRS {crs!r}",
        ) from None


# ---- files ----


def _files(path) -> tuple[list[str], bool]:
    """(files, whether they came as a folder or list)."""
    if not isinstance(path, (str, Path)):
        paths = [str(p) for p in path] if isinstance(path, Sequence) else []
        if not paths:
            raise ContractError("path", repr(path), "at least one raster file", "a pattern that matched nothing")
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
            f"{folder}, without rasters",
            f"files ending in {', '.join(RASTER_ENDINGS)}",
            "the rasters lie in a folder below or above",
        )
    return paths, True


def _open(stack: ExitStack, path: str) -> rasterio.DatasetReader:
    remote = "://" in path or path.startswith("/vsi")
    if not remote and not Path(path).is_file():
        raise ContractError(
            "path",
            f"{path}, which does not exist",
            "a raster file, or a folder of them",
            "a misspelt name, or a path relative to another folder",
        )
    try:
        return stack.enter_context(rasterio.open(path))
    except RasterioError as error:
        raise ContractError(
            "path",
            f"{path}: {_short(error)}",
            "a GeoTIFF, VRT, JPEG 2000, JPEG or PNG",
            "not a raster, a broken download, or an archive that must be unpacked",
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
            _footprint(source),
            f"the footprint of {_footprint(reference)}",
            "files of two scenes in one folder, or a band cut or reprojected differently",
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
            repr(window),
            f"(column, row, width, height) within {reference.width} columns x {reference.height} rows",
            "rows and columns swapped, or a window past the edge",
        )
    return Window(column, row, width, height)


def _footprint(source) -> str:
    return f"{Path(source.name).name}: {source.shape} at {tuple(round(v, 1) for v in source.bounds)}"


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


MODIS_FILL = 32767


def missing_pixels(pixels: np.ndarray, nodata: Sequence[float | None], sensor: Sensor) -> np.ndarray:
    """Pixels [C, H, W] in the dtype they were stored in, nodata one a band -> bool [C, H, W], True where not measured.

    A fill inside the range of measurements (0; 255 in 8 bit) counts only where every band holds it.
    """
    missing = np.isnan(pixels) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, bool)
    ordinary = missing.copy()
    for band, fill in enumerate(nodata):
        if fill is not None and not math.isnan(fill):
            measurable = fill == 0 or (fill == 255 and pixels.dtype == np.uint8)
            (ordinary if measurable else missing)[band] |= pixels[band] == fill
    if sensor.name == "modis":
        missing |= pixels == MODIS_FILL
    return missing | ordinary.all(axis=0)


def looks_like_decibel(pixels: np.ndarray) -> bool:
    """Backscatter whose median is negative cannot be linear power. NaN: missing."""
    return bool(np.nanmedian(pixels) < 0) if np.isfinite(pixels).any() else False


# A product's band number -> Clay's band. Where a sensor is not listed, band n is the n-th of its native order.
SENTINEL_2 = {"2": "blue", "3": "green", "4": "red", "5": "rededge1", "6": "rededge2", "7": "rededge3"}


LANDSAT_8 = {"2": "blue", "3": "green", "4": "red", "5": "nir08", "6": "swir16", "7": "swir22"}


LANDSAT_4_TO_7 = {"1": "blue", "2": "green", "3": "red", "4": "nir08", "5": "swir16", "7": "swir22"}


# Products whose bands come without names: sensor -> band numbers in file order.
LAYOUTS = {
    "sentinel-2-l2a": ("1 2 3 4 5 6 7 8 8a 9 11 12", "1 2 3 4 5 6 7 8 8a 9 10 11 12"),
    "landsat-c2l1": ("1 2 3 4 5 6 7", "1 2 3 4 5 6 7 8 9 10 11"),
    "landsat-c2l2-sr": ("1 2 3 4 5 6 7",),
    "linz": ("1 2 3 4",),  # the fourth is near infrared
}


def choose(
    labels: Sequence[str], sensor: Sensor, bands: Mapping[str, int] | Sequence[str | None] | None, file: str
) -> dict[str, int]:
    """{sensor band: position in labels}, in the caller's order, else in the sensor's.

    labels: what each band of the file says of itself, "" where it says nothing; file: its name, for the mission and for
    messages; bands: as in `read_scene`. Raises ContractError where nothing names the bands, or two claim one name.
    """
    numbers = numbering(sensor, file)
    names = [recognise(label, sensor, numbers) for label in labels]
    asked = set(bands) if isinstance(bands, (list, tuple)) else set()
    if bands is not None and not (asked and asked <= set(names) - {None}):
        return _as_told(len(labels), sensor, bands)
    if any(names):
        twice = {name for name in names if name and names.count(name) > 1}
        if twice:
            claims = [label for label, name in zip(labels, names, strict=True) if name in twice]
            raise ContractError(
                "bands",
                f"{claims}, all read as {sorted(twice)}",
                "one layer a band",
                "two scenes or two resolutions in one folder: hand in a list of files, or bands=",
            )
    elif len(labels) == len(sensor.bands):
        names = list(sensor.band_names)
    else:
        layouts = [text.split() for text in LAYOUTS.get(sensor.name, ())]
        layout = next((layout for layout in layouts if len(layout) == len(labels)), None)
        if layout is None:
            said = f"described as {list(labels)}" if any(labels) else "without descriptions"
            raise ContractError(
                "bands",
                f"{len(labels)} bands {said} in {file}",
                f"the {len(sensor.bands)} of {sensor.name}: {list(sensor.band_names)}",
                "another sensor, several scenes at once, or more bands than it has: name them in file order, bands=['blue', None, ...], "
                "or by number, bands={'red': 3, ...}",
            )
        names = [numbers.get(number) for number in layout]
    if bands is not None:  # all of them are labelled
        sensor.indices(bands)
        return {name: names.index(name) for name in bands}
    return {name: names.index(name) for name in sensor.band_names if name in names}


def recognise(label: str, sensor: Sensor, numbers: Mapping[str, str]) -> str | None:
    """The one band that a label speaks of ("B8A", "SR_B4", "band 3 reflectance", "vv", "nir08"), or None."""
    text = re.sub(r"red_edge_?", "rededge", "_".join(words(label)))
    by_name = {
        name for name in sensor.band_names if re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", text)
    }
    by_name = {name for name in by_name if not any(name != other and name in other for other in by_name)}
    by_number = re.findall(r"(?<![a-z0-9])b(?:and)?_?0*([1-9][0-9]?a?)(?![a-z0-9])", text)
    found = by_name or {numbers[number] for number in by_number if number in numbers}
    return found.pop() if len(found) == 1 else None


def words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def _as_told(count: int, sensor: Sensor, bands) -> dict[str, int]:
    if isinstance(bands, Mapping):
        numbers = dict(bands)
    else:
        bands = list(bands) if isinstance(bands, Sequence) and not isinstance(bands, str) else [bands]
        if len(bands) != count:
            raise ContractError(
                "bands",
                f"{len(bands)} {'name' if len(bands) == 1 else 'names'}: {bands}",
                f"{count}, one for each band that is there, in its order, None for those to leave out",
                "a choice among bands that carry no names: choose by number, from 1, as in bands={'red': 3}",
            )
        sensor.indices([name for name in bands if name is not None])  # refuses repeats, which a dict would swallow
        numbers = {name: i for i, name in enumerate(bands, start=1) if name is not None}
    sensor.indices(list(numbers))
    for name, position in numbers.items():
        if isinstance(position, bool) or not isinstance(position, (int, np.integer)) or not 1 <= position <= count:
            raise ContractError(
                f"bands[{name!r}]",
                repr(position),
                f"a file band number from 1 to {count}",
                "numbers count from 1, as in GDAL",
            )
    return {name: number - 1 for name, number in numbers.items()}


def numbering(sensor: Sensor, file: str) -> dict[str, str]:
    if sensor.name.startswith("sentinel-2"):
        return SENTINEL_2
    if sensor.name.startswith("landsat"):
        older = re.search(r"(?:^|[^a-z0-9])l[etm]?0?[457]", re.split(r"[/\\]", file)[-1].lower())  # LE07..., LT05...
        return LANDSAT_4_TO_7 if older else LANDSAT_8
    return {str(i): name for i, name in enumerate(sensor.band_names, start=1)}
