"""Scenes for the notebooks: your own raster or a place of the synthetic Earth, and chips cut from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from einops import rearrange
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform

from clay_lib.data.chips import Chips, shared_world
from clay_lib.data.georeference import locate
from clay_lib.data.label_files import raster_pairs
from clay_lib.data.labels import LabeledSet, world_set
from clay_lib.data.rasters import Scene, read_header, read_scene, write_raster
from clay_lib.data.splits import spatial_blocks
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS

DEGREES_A_PIXEL = 1e-4  # where a scene without a CRS is drawn on a map


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
    """(chips, corners, numbers) of the N complete tiles of a scene of which at least min_valid was measured.

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
        places = transform(scene.crs, "EPSG:4326", (a * x + b * y + c).ravel(), (d * x + e * y + f).ravel())
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


def segmentation_sets(
    images: str | Path = "",
    labels: str | Path = "",
    sensor: str = "sentinel-2-l2a",
    *,
    classes: str = "",
    ignore: int | None = 0,
    column: str | None = None,
    chips: int = 440,
    test_chips: int = 220,
    size: int = 64,
    seed: int = 0,
) -> tuple[LabeledSet, LabeledSet, LabeledSet]:
    """Train, val and test of your own rasters and their labels; without a path, of the synthetic Earth's land cover.

    labels, ignore and column: as for `raster_pairs`. classes: such as "1 water, 2 forest"; of vector labels, by default
    those in the file. chips: train and val together, and test_chips,
    of the synthetic Earth. Parts lie in different places, and the groups of test may be resampled for intervals: places,
    rasters, or blocks of about 2 km where there are fewer than six rasters.
    """
    if not images:
        from clay_lib.world.earth import CLASSES

        pool, test = (
            replace(world_set(sensor, count, split=split, size=size, seed=seed), codes=tuple(CLASSES))
            for count, split in ((chips, "train"), (test_chips, "test"))
        )
        return *pool.split((0.85, 0.15), degrees=6.0, seed=seed), test
    names = dict(part.strip().split(" ", 1) for part in classes.split(",")) if classes else None
    names = names and {int(code): name for code, name in names.items()}
    pool = raster_pairs(images, labels, sensor, classes=names, ignore=ignore, column=column, size=size)
    if not pool.classes:
        cause = 'label rasters without classes="1 water, 2 forest"'
        raise ContractError("classes", "values", "the number and the name of each class", cause)
    by = "groups" if pool.places["group"].nunique() >= 6 else "blocks"
    train, val, test = pool.split((0.6, 0.15, 0.25), by=by, degrees=0.02, seed=seed)
    if by == "blocks":
        blocks = spatial_blocks(test.places["lat"], test.places["lon"], 0.02)
        test = replace(test, places=test.places.assign(group=blocks))
    return train, val, test


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
