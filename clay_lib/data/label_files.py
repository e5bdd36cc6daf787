"""Labeled sets from files: class folders, rasters with label rasters or vector labels, and points on a scene.

Vector labels are polygons or points of a GeoJSON, GeoPackage or shapefile with a column of classes or values. A pixel
has the label of the polygon that holds its center, or of the point that lies in it.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, rowcol
from rasterio.windows import Window

from clay_lib.data.bands import Bands
from clay_lib.data.georeference import check_polygons, integers_with_gaps, read_features
from clay_lib.data.labels import IGNORE, LabeledSet, Sample, place_table, whole_numbers, world_set
from clay_lib.data.rasters import (
    Header,
    burn,
    find_layers,
    list_rasters,
    open_raster,
    place_features,
    read_band,
    read_header,
)
from clay_lib.data.scenes import Scene, read_padded, read_scene
from clay_lib.data.splits import spatial_blocks
from clay_lib.errors import ContractError, warn
from clay_lib.sensors import SENSORS, Sensor

VECTOR_ENDINGS = (".geojson", ".json", ".gpkg", ".shp")


def class_folders(
    folder: str | Path,
    sensor: str | Sensor,
    *,
    classes: Sequence[str] | None = None,
    bands: Bands = None,
    size: int | None = None,
    when: str | None = None,
) -> LabeledSet:
    """folder/CLASS/image: the name of a subfolder is the class of every raster in it (EuroSAT, UC Merced).

    classes: names in the order of their numbers; of a test folder those of training, train.classes, some of which it
    may lack. None: the names of the subfolders, sorted.
    size: pixels a side, of the center of larger images; smaller ones are missing at their border. None: the first
    image's longer side. bands: as `scenes.read_scene` takes them.
    """
    sensor, folder = SENSORS.resolve(sensor), Path(folder)
    subfolders = sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith("."))
    paths = [path for subfolder in subfolders for path in list_rasters(subfolder)]
    present = sorted({path.parent.name for path in paths})
    classes = present if classes is None else list(classes)
    if unknown := sorted({*present} - {*classes}):
        cause = "a misspelled folder, or a class that training lacks"
        raise ContractError("classes", f"{folder}: {unknown}", f"some of {classes}", cause)
    if len(classes) < 2 or not paths:
        found = f"{folder}: images in {len(present)} subfolder(s)"
        raise ContractError("folder", found, "two or more classes", "the class folders lie one folder below or above")
    headers, bands = [read_header(path) for path in paths], bands or _common_layout(paths, sensor, when)
    first = read_scene(paths[0], sensor, bands=bands, when=when)
    size = size or max(first.pixels.shape[1:])
    boxes = [((h.width - size) // 2, (h.height - size) // 2, size, size) for h in headers]
    labels = [classes.index(path.parent.name) for path in paths]
    _check_ground_distance(headers, first)
    lat, lon = np.array([h.at(h.width / 2, h.height / 2) for h in headers], float).T
    places = place_table(
        [f"{p.parent.name}/{p.name}" for p in paths], lat, lon, [when or h.when or "" for h in headers]
    )
    return _scene_set(first, classes, places, partial(_chip_sample, paths, boxes, labels, sensor, bands, when))


def raster_pairs(
    images: str | Path | Sequence,
    labels: str | Path | Sequence,
    sensor: str | Sensor,
    *,
    classes: Mapping[int, str] | Sequence[str] | None,
    ignore: int | None = None,
    column: str | None = None,
    size: int = 64,
    bands: Bands = None,
    when: str | None = None,
) -> LabeledSet:
    """Rasters with label rasters or vector labels, cut into windows of size x size pixels.

    images, labels: files, or folders of them, paired by name without ending; or one vector file for all images. Label
    rasters have their image's grid. classes: {number in the files: name}, or the names of 0, 1, 2 and so on; None: the
    labels of rasters are values (dense regression), those of vectors the classes that the column holds, or its values
    if they are floats. ignore, and the label file's nodata: unlabeled. column: of vector labels, by default the only one
    of text or integers. Windows at a border are filled up with missing pixels; those without one label are left out.
    """
    sensor = SENSORS.resolve(sensor)
    pairs = _pair_files(images, labels)
    bands = bands or _common_layout([image for image, _ in pairs], sensor, when)
    codes = None if classes is None else dict(classes) if isinstance(classes, Mapping) else dict(enumerate(classes))
    vectors = [label for _, label in pairs if _is_vector(label)]
    if vectors:
        frames, codes = read_vectors(vectors, column, codes)
    windows, names, positions, dates = [], [], [], []
    for image, label in pairs:
        header = read_header(image)
        if _is_vector(label):
            fill = np.nan if codes is None else IGNORE
            read_label = partial(burn, place_features(frames[label], header, label, fill), header, fill)
        else:
            _check_same_grid(header, read_header(label))
            read_label = partial(_read_labels, label, codes, ignore)
        values = read_label()
        for top in range(0, header.height, size):
            for left in range(0, header.width, size):
                part = values[top : top + size, left : left + size]
                if (np.isfinite(part) if codes is None else part != IGNORE).any():
                    windows.append((image, read_label, (left, top, size, size)))
                    names.append(f"{image.stem} row {top} column {left}")
                    dates.append(when or header.when or "")
                    positions.append(header.at(left + part.shape[1] / 2, top + part.shape[0] / 2))
    if not windows:
        cause = "ignore= or nodata is the number of the only class, or the features lie outside the images"
        raise ContractError("labels", f"{len(pairs)} pair(s), every pixel ignored", "labeled pixels", cause)
    image, _, box = windows[0]
    first = read_scene(image, sensor, bands=bands, when=when, window=read_header(image).clip(box))
    _check_ground_distance([read_header(image) for image, _ in pairs], first)
    places = place_table(names, *np.array(positions).T, dates, [image.stem for image, _, _ in windows])
    classified = codes is not None
    data = _scene_set(
        first, (codes or {}).values(), places, partial(_pair_sample, windows, sensor, bands, when, classified)
    )
    return replace(data, dense=True, codes=tuple(int(code) for code in codes or ()))


def label_grids(pairs: Sequence[tuple[Path, Path]], column: str | None = None) -> list[np.ndarray]:
    """Labels of every pixel of images, [H, W] each: class numbers, 0 where unlabeled.

    pairs: (image, label raster or vector labels). Numbers are those of the label raster, whose nodata is unlabeled;
    classes of vector labels are numbered from 1, by name over all files together. column: as for `raster_pairs`.
    """
    vectors = [label for _, label in pairs if _is_vector(label)]
    frames, codes = read_vectors(vectors, column)
    if vectors and codes is None:
        raise ContractError("labels", f"{column}: values", "classes", "another column")
    grids = []
    for image, label in pairs:
        header = read_header(image)
        if _is_vector(label):
            grids.append(burn(place_features(frames[label], header, label, IGNORE), header, IGNORE) + 1)
            continue
        _check_same_grid(header, read_header(label))
        values, blank, fill = read_codes(label)
        grids.append(whole_numbers(np.where(blank | (values == fill), 0, values), label.name))
    return grids


def points_on_scene(
    points,
    scene: str | Path,
    sensor: str | Sensor,
    *,
    label: str,
    size: int = 32,
    bands: Bands = None,
    when: str | None = None,
) -> LabeledSet:
    """Chips of size x size pixels around the points of a GeoDataFrame; its column `label` holds classes or values.

    Text, categories, bools and integers are classes; floats are values, unless they are integers that gaps alone
    made floats. Points without a label or outside the scene are left out with a warning; a chip that extends
    past the scene's border is missing there. Chips that share pixels, directly or through others, are one group.
    """
    from sklearn.cluster import DBSCAN

    sensor, header = SENSORS.resolve(sensor), read_header(scene)
    points = _labeled_points(points, label, header)
    placed = points.to_crs(header.crs).geometry
    rows, columns = rowcol(Affine(*header.transform), placed.x.to_numpy(), placed.y.to_numpy(), op=np.asarray)
    inside = (columns >= 0) & (columns < header.width) & (rows >= 0) & (rows < header.height)
    if not inside.any():
        cause = "another place, or latitude and longitude swapped"
        raise ContractError("points", f"none of {len(points)} on {scene}", "points on the scene", cause)
    if not inside.all():
        warn(f"{(~inside).sum()} of {len(points)} points lie outside the scene and are left out")
    values = points[label][inside]
    numeric = values.dtype.kind == "f"
    classes = () if numeric else tuple(sorted(values.unique(), key=str))
    labels = [float(v) if numeric else classes.index(v) for v in values]
    boxes = [
        (math.floor(c) - size // 2, math.floor(r) - size // 2, size, size)
        for c, r in zip(columns[inside], rows[inside], strict=True)
    ]
    corners = np.array([box[:2] for box in boxes])
    groups = DBSCAN(eps=size - 0.5, min_samples=1, metric="chebyshev").fit_predict(corners)
    first = read_scene(scene, sensor, bands=bands, when=when, window=header.clip(boxes[0]))
    lonlat = points.to_crs("EPSG:4326").geometry[inside]
    names = [f"point {i}" for i in values.index]
    lat, lon = lonlat.y.to_numpy(), lonlat.x.to_numpy()
    places = place_table(names, lat, lon, when or header.when or "", groups, corners / size)
    read = partial(_chip_sample, [scene] * len(boxes), boxes, labels, sensor, bands, when)
    return _scene_set(first, map(str, classes), places, read)


def _scene_set(first: Scene, classes, places: pd.DataFrame, read) -> LabeledSet:
    """A set of labeled chips with the sensor, bands and ground distance of the scene `first`."""
    files = dict(sensor=first.sensor, bands=first.bands, gsd=first.gsd, in_decibel=first.in_decibel)
    return LabeledSet(**files, classes=tuple(classes), dense=False, places=places, read=read)


def _common_layout(paths: Sequence[Path], sensor: Sensor, when) -> dict[str, int] | None:
    """{band: number} for images that name no bands: the layout of most of 32; None: each names its own bands."""
    with open_raster(paths[0]) as file:
        if any(file.descriptions) or file.count <= len(sensor.bands):
            return None
    orders = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths[:: math.ceil(len(paths) / 32)]:
            order = {name: layer.index for name, layer in find_layers(path, sensor, when=when).items()}
            orders.setdefault(tuple(order.items()), []).append(path)
    order, examples = max(orders.items(), key=lambda item: len(item[1]))
    find_layers(examples[0], sensor, when=when)  # again, for its warning
    return dict(order)


def _check_ground_distance(headers: Sequence[Header], first: Scene) -> None:
    """A set has one gsd, so files of another resolution are refused; those without a place are taken as they are."""
    for header in headers if first.crs is not None else ():
        if header.crs is not None and not 0.8 < header.gsd / first.gsd < 1.25:
            found, expected = f"{header.gsd:g} m in {header}", f"about {first.gsd:g} m, as in {Path(first.path).name}"
            raise ContractError("gsd", found, expected, "images of two resolutions or sensors: a set for each")


def _labeled_points(points, label: str, header: Header):
    """The points that carry a label."""
    if label not in points:
        raise ContractError("label", repr(label), f"one of {list(points.columns)}", "a misspelling")
    if points.crs is None or header.crs is None:
        which = "the points" if points.crs is None else header.path
        raise ContractError("crs", f"{which} without CRS", "one of each", "set_crs was forgotten")
    if kinds := set(points.geom_type.dropna()) - {"Point"}:
        areas = "areas: points.representative_point(), or rasterize them for raster_pairs"
        cause = f"{areas}; many in one: points.explode()"
        raise ContractError("geometry", ", ".join(sorted(kinds)), "points", cause)
    labeled = points[label].notna()
    if not labeled.any():
        raise ContractError("label", f"{label!r} without a value", "labels", "another column")
    if not labeled.all():
        warn(f"{(~labeled).sum()} of {len(points)} points have no label in {label!r} and are left out")
    return integers_with_gaps(points)[labeled]


def _is_vector(path: Path) -> bool:
    return path.suffix.lower() in VECTOR_ENDINGS


def _pair_files(images, labels) -> list[tuple[Path, Path]]:
    image_paths, label_paths = list_files(images), list_files(labels, vectors=True)
    if not image_paths:
        raise ContractError("images", f"no raster in {images}", "files or a folder", "a misspelling")
    if len(label_paths) == 1 and (len(image_paths) == 1 or _is_vector(label_paths[0])):
        return [(path, label_paths[0]) for path in image_paths]
    by_name = {path.stem: path for path in label_paths}
    if missing := [path.name for path in image_paths if path.stem not in by_name]:
        found = f"no labels for {', '.join(missing[:3])}"
        cause = "names differ by more than their ending, or a misspelled folder"
        raise ContractError("labels", found, "a file of the same name each", cause)
    return [(path, by_name[path.stem]) for path in image_paths]


def list_files(source, *, vectors: bool = False) -> list[Path]:
    found = []
    for one in [source] if isinstance(source, (str, Path)) else source:
        if not Path(one).is_dir():
            found.append(Path(one))
            continue
        found += list_rasters(one)
        if vectors:
            found += sorted(path for path in Path(one).iterdir() if _is_vector(path))
    return found


def _check_same_grid(image: Header, label: Header) -> None:
    same = (image.height, image.width) == (label.height, label.width)
    if image.crs is not None and label.crs is not None:
        close = np.allclose(image.transform, label.transform, rtol=1e-6, atol=1e-3 * abs(image.transform[0]))
        same = same and image.crs == label.crs and close
    if not same:
        cause = "labels of another resolution, extent or projection: warp them to the image's grid, nearest neighbor"
        raise ContractError("labels", str(label), f"the grid of {image}", cause)


def read_codes(path: str | Path, window=None) -> tuple[np.ndarray, np.ndarray, float | None]:
    """(numbers of a label raster as stored, where they are NaN, header's nodata); the first two [H, W], north up."""
    with open_raster(path) as file:
        bands = sum(meaning != ColorInterp.alpha for meaning in file.colorinterp)
        if bands > 1:
            cause = "colors instead of class numbers, or an image: write the numbers as one band"
            raise ContractError("labels", f"{Path(path).name}: {bands} bands", "one band of class numbers", cause)
        values, fill = read_band(file, 1, window and Window(*window)), file.nodata
    blank = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    return values, blank, None if fill is None or np.isnan(fill) else fill


def _read_labels(path: Path, codes: Mapping[int, str] | None, ignore: int | None, window=None) -> np.ndarray:
    """[H, W]: class numbers in the order of codes, IGNORE where unlabeled; or values, NaN where unknown."""
    values, blank, fill = read_codes(path, window)
    if codes is not None and fill in codes:
        if ignore is None:
            found, expected = f"{path.name}: nodata {fill:g}, which is class {codes[fill]!r}", "one or the other"
            cause = "if it is no class, leave it out of classes=; if it is one, say what is unlabeled, as in ignore=255"
            raise ContractError("labels", found, expected, cause)
        fill = None
    for number in (ignore, fill):
        if number is not None:
            blank |= values == number
    if codes is None:
        return np.where(blank, np.nan, values).astype(np.float32)
    numbers = whole_numbers(np.where(blank, 0, values), path.name)
    out = np.full(values.shape, IGNORE)
    for position, code in enumerate(codes):
        out[numbers == code] = position
    if wrong := np.unique(numbers[(out == IGNORE) & ~blank]).tolist():
        unlabeled = "" if ignore is None else f", or {ignore} for unlabeled"
        cause = "a class without a name in classes=, or a fill value: ignore="
        found = f"{path.name}: class {', '.join(map(str, wrong[:5]))}"
        raise ContractError("labels", found, f"one of {dict(codes)}{unlabeled}", cause)
    out[blank] = IGNORE
    return out


def _chip_sample(paths, boxes, labels, sensor: Sensor, bands: Bands, when, n: int) -> Sample:
    scene = read_padded(paths[n], boxes[n], sensor, bands, when)
    return Sample(scene.pixels, labels[n], scene.crs, scene.transform)


def _pair_sample(windows, sensor: Sensor, bands: Bands, when, classified: bool, n: int) -> Sample:
    image, read_label, box = windows[n]
    scene, (x, y, w, h) = read_padded(image, box, sensor, bands, when), read_header(image).clip(box)
    known = read_label((x, y, w, h))
    labels = np.full(scene.pixels.shape[1:], IGNORE if classified else np.nan, known.dtype)
    left, top = x - box[0], y - box[1]
    labels[top : top + h, left : left + w] = known
    return Sample(scene.pixels, labels, scene.crs, scene.transform)


def read_vectors(paths: Sequence[Path], column: str | None, codes: Mapping[int, str] | None = None):
    """({path: GeoDataFrame with the column "number"}, {code: name} of the classes, None for values).

    codes: the classes, whose codes or names the column holds; None: those that it holds in all files, sorted. "number"
    is the position of a class among them, or the value. Features without a label or shape are left out.
    """
    frames = {}
    for path in dict.fromkeys(map(Path, paths)):
        frame = read_features(path)
        name = _class_column(frame, column, path.name)
        check_polygons(frame.geometry, "labels", f"{path.name}, ")
        frame = frame[frame[name].notna() & frame.geometry.notna() & ~frame.geometry.is_empty]
        frames[path] = frame[[name, frame.geometry.name]].rename(columns={name: "number"})
    values = {value for frame in frames.values() for value in frame["number"]}
    if codes is None and all(isinstance(value, (float, np.floating)) for value in values):
        return frames, None
    if codes is None:
        names = sorted(values, key=lambda value: (isinstance(value, str), value))
        counted = all(isinstance(value, (int, np.integer)) for value in names)
        codes = {int(value) if counted else k: str(value) for k, value in enumerate(names)}
    number = {key: k for k, pair in enumerate(codes.items()) for key in pair}  # by code or by name
    if unknown := sorted({str(value) for value in values if value not in number and str(value) not in number}):
        cause = "a class without a name in classes=, or another column"
        raise ContractError("labels", f"{unknown[:5]} in {column or 'the column'}", f"one of {dict(codes)}", cause)
    for frame in frames.values():
        frame["number"] = [number.get(value, number.get(str(value))) for value in frame["number"]]
    return frames, dict(codes)


def _class_column(frame, column: str | None, name: str) -> str:
    """The column of the classes: the one named, else the only one of text or integers."""
    columns = [c for c in frame.columns if c != frame.geometry.name]
    fits = [c for c in columns if frame[c].dtype.kind in "iuOTU"]
    if column is not None and column not in columns:
        raise ContractError("column", repr(column), f"one of {columns}", "a misspelled name")
    if column is None and len(fits) != 1:
        found, cause = f"{len(fits)} columns of text or integers in {name}", "the classes' column is not the only one"
        raise ContractError("column", found, f"column=, one of {columns}", cause)
    return column or fits[0]


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

    labels, ignore and column: as for `raster_pairs`. classes: such as "1 water, 2 forest"; for vector labels, by
    default those in the file. chips (train and val together), test_chips: how many of the synthetic Earth. Parts lie in
    different places, and the groups of test may be resampled for intervals: places, rasters, or blocks of about 2 km
    where there are fewer than six rasters.
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
