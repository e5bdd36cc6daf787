"""Scenes: rasters read with bands, missing pixels, units, place and date, and places of the synthetic Earth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from einops import rearrange
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.warp import transform as reproject
from rasterio.windows import Window

from clay_lib.data.bands import (
    OFFSET,
    Bands,
    has_offset,
    header_date,
    looks_like_decibel,
    measured,
    missing_pixels,
    product_name,
    radar_holes,
)
from clay_lib.data.chips import Chips, shared_world
from clay_lib.data.georeference import crs_text, locate
from clay_lib.data.rasters import (
    OpenLayer,
    alpha_band,
    has_mask,
    north_up,
    open_layers,
    read_band,
    read_header,
    write_raster,
)
from clay_lib.errors import ContractError, first_line, number, warn
from clay_lib.sensors import SENSORS, Sensor

DEGREES_A_PIXEL = 1e-4  # where a scene without a CRS is drawn on a map


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
        return measured(self.pixels, self.missing)

    def filled(self) -> np.ndarray:
        """Pixels float32 [C, H, W] whose missing ones hold their band's mean, for a file that can hold no NaN."""
        pixels = self.pixels.astype(np.float32)
        if not self.valid.any():
            cause = f"{self.path} holds only fill here: take another window"
            raise ContractError("pixels", "no valid pixel", "at least one", cause)
        means = pixels[:, self.valid].mean(axis=1, dtype=np.float64).astype(np.float32)
        return np.where(self.valid, pixels, means[:, None, None])


def read_scene(
    path: str | Path | Sequence[str | Path],
    sensor: str | Sensor,
    *,
    bands: Bands = None,
    when: str | None = None,
    in_decibel: bool | None = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    window: tuple[int, int, int, int] | None = None,
) -> Scene:
    """A GeoTIFF, VRT, JPEG or PNG, or a folder or list of single-band files, as a Scene of `sensor`.

    bands: as `bands.match_bands` takes them. Without it, in this order: the bands' descriptions (or single-band files'
    names), the sensor's own band count in its own order, a known product's layout (12- and 13-band Sentinel-2 in
    ESA's order, or with B8A last by their spectra; Landsat from band 1). Bands may be a subset of the sensor's.
    scale, offset: native = value * scale + offset, for files in other units; missing pixels are found before it. None:
    as the file's header says (`bands.header_units`), 1 and 0 where it is silent; given ones replace the header's.
    nodata: the stored number of missing pixels, instead of the header's; zero in every band is missing too.
    when: ISO 8601, UTC; None: as a product's name says, or its header. Of a .SAFE folder, level and baseline count too:
    its offset of 1000 is removed. in_decibel: radar in dB; None goes by the sign of the median. window: (column, row,
    width, height) in pixels.
    Numbered Landsat bands are read as Landsat 8's, or as Landsat 4-7's where the file's name begins so (LE07, LT05).
    Files of coarser bands over the same footprint are resampled to the finest grid, bilinear. Rows go from north to
    south: those of a south-up file are flipped.
    Raises ContractError for anything that cannot be read or named.
    """
    sensor = SENSORS.resolve(sensor)
    given = None
    if scale is not None or offset is not None:
        given = number("scale", 1.0 if scale is None else scale), number("offset", 0.0 if offset is None else offset)
    with open_layers(path, sensor, bands, when) as (paths, layers):
        files = list(dict.fromkeys(layer.file for layer in layers.values()))
        finest = max(files, key=lambda file: file.width * file.height)
        box = _window(window, finest)
        hidden = [OpenLayer(file, i, "") for file in files if (i := alpha_band(file, sensor)) or has_mask(file)]
        try:
            if len(files) == len({*finest.dtypes}) == 1:
                pixels = read_band(finest, [layer.index for layer in layers.values()], box)  # [C, H, W]
            else:
                pixels = np.stack([layer.read(finest, box) for layer in layers.values()])
            masks = [layer.read(finest, box) for layer in hidden]
        except (RasterioError, ValueError) as error:
            cause = "a truncated download, or a VRT whose sources moved"
            found = f"{paths[0]}: {first_line(error)}"
            raise ContractError("path", found, "a raster that can be read to its end", cause) from None
        fills = [layer.nodata if nodata is None else nodata for layer in layers.values()]
        several_sizes = len({file.shape for file in files}) > 1
        units = np.array([layer.units(sensor) for layer in layers.values()], np.float32)  # [C, 2]: scale, offset
        stated = any(set(file.scales) != {1.0} or any(file.offsets) for file in files)
        crs = finest.crs
        dated = header_date(finest.tags())
        georeferenced = crs is not None or not finest.transform.is_identity
        corner = Affine.translation(box.col_off, box.row_off)
        transform = north_up(finest) @ corner if georeferenced else None

    missing = missing_pixels(pixels, fills, sensor)
    if several_sizes:  # at the scene's edge, fill ends elsewhere in coarser bands
        missing |= (pixels == 0) & np.array([not fill for fill in fills])[:, None, None]
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
                f"{paths[0]}: its name gives a baseline that adds an offset of 1000, and no pixel is below 1000: "
                f"pass offset={OFFSET} if it is still in the numbers, offset=0 if it was removed"
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


# ---- scenes for the notebooks, and chips cut from them ----


def open_scene(
    path: str | Path = "",
    sensor: str = "sentinel-2-l2a",
    *,
    when: str | None = None,
    largest: int = 512,
    size: int = 192,
    land_cover: int = 50,
    index: int = 2,
    split: str = "test",
    seed: int = 0,
) -> Scene:
    """The center of your own raster, at most `largest` pixels a side; without a path, a place of the synthetic Earth.

    when: date and time, ISO 8601; None: unknown for a raster, 2023-06-10T10:30 for the synthetic Earth.
    size, land_cover (WorldCover code), index, split, seed: the place of the synthetic Earth, and its side in pixels.
    Its `labels` [H, W] hold the land cover of every pixel; those of a raster are None.
    Raises ContractError for a file that cannot be read as this sensor's.
    """
    if path:
        path = Path(path).expanduser()
        return read_scene(path, sensor, when=when or None, window=center_window(path, largest))
    world, spec = shared_world(seed), SENSORS.resolve(sensor)
    chip = world.observe(world.place(land_cover, index, split), spec.name, when or "2023-06-10T10:30", size)
    return Scene(
        pixels=chip.pixels,
        bands=spec.band_names,
        sensor=spec,
        crs=chip.crs,
        transform=tuple(chip.transform)[:6],
        gsd=spec.gsd,
        lat=chip.lat,
        lon=chip.lon,
        when=f"{chip.when:%Y-%m-%dT%H:%M}",
        missing=np.zeros(chip.pixels.shape, bool),
        in_decibel=False,
        path="the synthetic Earth",
        labels=chip.labels,
    )


def cut_chips(scene: Scene, side: int, *, min_valid: float = 0.5) -> tuple[Chips, np.ndarray, np.ndarray]:
    """(chips, corners, numbers) of the N complete tiles of a scene with a measured share of at least min_valid.

    Chips [N, C, side, side] are NaN where nothing was measured. Corners [N, 4, 2] are lon and lat in degrees; without a
    CRS, pixels x DEGREES_A_PIXEL east and south of 0, 0. Numbers [N] count all tiles row by row. ContractError if none
    is left.
    """
    rows, columns = (n // side for n in scene.pixels.shape[1:])
    pixels = scene.measured()[:, : rows * side, : columns * side]
    tiles = rearrange(pixels, "C (h p) (w q) -> (h w) C p q", p=side, q=side)
    kept = np.flatnonzero(np.isfinite(tiles).mean((1, 2, 3)) >= min_valid)
    if not len(kept):
        size = " x ".join(map(str, scene.pixels.shape[1:]))
        found, cause = f"{scene.valid.mean():.0%} of {size} pixels measured", "an image of nodata, or tiles too large"
        raise ContractError("scene", found, f"a measured tile of {side} x {side} pixels", cause)
    labels = np.zeros((len(kept), side, side), np.uint8)
    if scene.labels is not None:
        cover = rearrange(scene.labels[: rows * side, : columns * side], "(h p) (w q) -> (h w) p q", p=side, q=side)
        labels = cover[kept]
    top, left = side * np.stack(np.divmod(kept, columns)).astype(float)
    x = left + side * np.array([[0], [1], [1], [0], [0.5]])  # [5, N]: four corners and the center
    y = top + side * np.array([[0], [0], [1], [1], [0.5]])
    if scene.crs is None:
        corners = np.stack([x[:4], -y[:4]], axis=-1) * DEGREES_A_PIXEL
        lat = lon = np.full((5, len(kept)), np.nan)
    else:
        a, b, c, d, e, f = scene.transform
        places = reproject(scene.crs, "EPSG:4326", (a * x + b * y + c).ravel(), (d * x + e * y + f).ravel())
        lon, lat = (np.reshape(v, x.shape) for v in places)
        corners = np.stack([lon[:4], lat[:4]], axis=-1)
    chips = Chips(scene.sensor.name, tiles[kept], labels, lat[4], lon[4], np.full(len(kept), scene.when or ""))
    return chips, corners.transpose(1, 0, 2), kept


def crop(scene: Scene, side: int) -> Scene:
    """The window of at most `side` pixels a side with the most measured pixels, nearest to the center among equals."""
    height, width = (min(side, n) for n in scene.pixels.shape[1:])
    top, left = most_measured(scene.valid, height, width)
    rows, columns = slice(top, top + height), slice(left, left + width)
    part = dict(pixels=scene.pixels[:, rows, columns], missing=scene.missing[:, rows, columns])
    if scene.labels is not None:
        part["labels"] = scene.labels[rows, columns]
    if scene.crs:
        matrix = Affine(*scene.transform) @ Affine.translation(left, top)
        part["transform"] = tuple(matrix)[:6]
        part["lat"], part["lon"], _ = locate(CRS.from_user_input(scene.crs), matrix, height, width)
    return replace(scene, **part)


def center_window(path: str | Path, most: int) -> tuple[int, int, int, int] | None:
    """(column, row, width, height) of at most `most` pixels a side in a file's center; None: it is no larger."""
    if not Path(path).is_file() and not str(path).startswith("/vsi") and "://" not in str(path):
        return None  # a folder of single bands is read completely, and `read_scene` reports what is missing
    header = read_header(path)
    width, height = min(most, header.width), min(most, header.height)
    if (width, height) == (header.width, header.height):
        return None
    return (header.width - width) // 2, (header.height - height) // 2, width, height


def most_measured(valid: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """(top, left) of the height x width window of valid [H, W] with the most measured pixels, nearest the center."""
    counts = np.pad(valid.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = counts[height:, width:] - counts[:-height, width:] - counts[height:, :-width] + counts[:-height, :-width]
    rows, columns = np.nonzero(inside == inside.max())
    distance = np.hypot(rows - (inside.shape[0] - 1) / 2, columns - (inside.shape[1] - 1) / 2)
    return int(rows[distance.argmin()]), int(columns[distance.argmin()])


def world(
    out: str,
    *,
    land_cover: int = 40,
    index: int = 0,
    split: str = "test",
    sensor: str = "sentinel-2-l2a",
    when: str = "2023-06-10T10:30",
    size: int = 256,
    cloud_cover: float = 0.0,
    seed: int = 0,
) -> int:
    """Write a place in the mini-world as a GeoTIFF in the sensor's native numbers.

    Example: clay world data/cache/field.tif --sensor landsat-c2l2-sr --land_cover 40

    Args:
        out: the file to write, such as data/cache/field.tif
        land_cover: WorldCover code of the place's center, such as 10 (trees), 40 (crops), 50 (built-up)
        index: number of the place among those of this class
        split: train, val or test
        sensor: one of the registered sensors
        when: local solar time
        size: side in pixels
        cloud_cover: share of clouds, 0 to 1
        seed: of the mini-world
    """
    earth = shared_world(seed)
    chip = earth.observe(earth.place(land_cover, index, split), sensor, when, size, cloud_cover)
    names = SENSORS[sensor].band_names
    path = write_raster(out, chip.pixels, crs=chip.crs, transform=chip.transform, descriptions=names)
    shape = " x ".join(map(str, chip.pixels.shape))
    print(f"{path}: {shape} at {chip.lat:.4f}, {chip.lon:.4f}, {chip.crs}, {chip.when:%Y-%m-%d %H:%M}")
    return 0
