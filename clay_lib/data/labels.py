"""Labeled data sets for training a head: chips of native numbers, each with its label and its place.

One type, `LabeledSet`, and a function for every source: the mini-world, the Hugging Face Hub, class folders, rasters
with label rasters, and points on a scene. Pixels are read only when a chip is.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rasterio.transform import Affine, rowcol
from rasterio.windows import Window

from clay_lib.data.bands import Bands
from clay_lib.data.chips import Chips, world_chips
from clay_lib.data.images import decode_image
from clay_lib.data.rasters import (
    Header,
    Scene,
    find_layers,
    list_rasters,
    open_raster,
    read_band,
    read_header,
    read_padded,
    read_scene,
)
from clay_lib.data.splits import drop_overlaps, random_split, spatial_blocks, split_by_blocks
from clay_lib.errors import ContractError, warn
from clay_lib.files import CACHE, atomic_write
from clay_lib.sensors import SENSORS, Sensor

IGNORE = -1  # the class number of unlabeled pixels, which losses and scores leave out
WORLD_TARGETS = ("land cover", "class", "leaf area", "mean leaf area")
# EuroSAT's files hold 13 bands in this order, B8A last; level 1C, so not quite the sensor's statistics.
EUROSAT_BANDS = (
    None, "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", None, None, "swir16", "swir22", "nir08",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sample:
    """One chip. label: a class number, class numbers [H, W] (IGNORE: unlabeled), a value, or values [H, W] (NaN)."""

    pixels: np.ndarray  # [C, H, W] float32 native numbers, NaN where not measured
    label: int | float | np.ndarray
    crs: str | None = None
    transform: tuple[float, ...] | None = None  # from pixel corner to CRS


@dataclass(frozen=True, eq=False)
class LabeledSet:
    """N chips of one sensor, read one by one. Indexing with a number gives a Sample, with a slice, mask or array a set.

    places: one row a chip: name, lat, lon (degrees, NaN: unknown), when (ISO text, empty: unknown), group (what must
    not be split: a scene, a mosaic, a place, chips that share pixels) and x, y: the corner on a scene that chips may
    share pixels of, in sides of a chip (NaN: no such scene).
    """

    sensor: Sensor
    bands: tuple[str, ...]
    gsd: float  # m
    classes: tuple[str, ...]  # names in the order of their numbers; empty: labels are values
    dense: bool  # a label a pixel
    places: pd.DataFrame
    read: Callable[[int], Sample]  # by the number in the complete set, which is the index of `places`
    in_decibel: bool = False
    codes: tuple[int, ...] = ()  # the classes' numbers in the label files, and in maps; empty: 0, 1, 2 and so on

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index) -> Sample | LabeledSet:
        if isinstance(index, (int, np.integer)):
            return self.read(int(self.places.index[index]))
        return replace(self, places=self.places.iloc[index])

    def with_classes(self, classes: Sequence[str]) -> LabeledSet:
        """The same chips with the classes' numbers in this order, such as that of training; the names decide.

        Raises ContractError for a class of the set that is not among them.
        """
        if unknown := sorted({*self.classes} - {*classes}):
            cause = "a misspelled folder or name, or a class that training lacks"
            raise ContractError("classes", unknown, f"some of {[*classes]}", cause)
        if self.classes == tuple(classes):
            return self
        numbers = np.array([*map([*classes].index, self.classes), IGNORE])  # IGNORE, -1, stays itself
        codes = dict(zip(self.classes, self.codes, strict=False))
        codes = tuple(codes[name] for name in classes) if {*classes} <= {*codes} else ()
        return replace(self, classes=tuple(classes), codes=codes, read=partial(_renumber, self.read, numbers))

    @property
    def task(self) -> str:
        kind = "segmentation" if self.dense else "classification"
        return kind if self.classes else "dense regression" if self.dense else "regression"

    def metadata(self, rows) -> dict:
        """Keyword arguments of `Clay.cube` for these chips, beside their pixels."""
        part = self.places.iloc[rows]
        degrees = {k: [None if np.isnan(v) else float(v) for v in part[k]] for k in ("lat", "lon")}
        when = [text or None for text in part["when"]]
        return dict(bands=self.bands, gsd=self.gsd, in_decibel=self.in_decibel, when=when, **degrees)

    def split(
        self, fractions: Sequence[float] = (0.7, 0.15, 0.15), *, by: str = "blocks", degrees: float = 0.1, seed: int = 0
    ) -> tuple[LabeledSet, ...]:
        """One set a fraction. by: "blocks" of degrees x degrees of land, "groups", or "random", which is optimistic.

        Chips of points extend over the border of their block: those that share pixels with a chip of a later part are
        left out with a warning. So name the parts in the order train, val, test.
        """
        if by == "blocks":
            blocks = spatial_blocks(self.places["lat"], self.places["lon"], degrees)
            parts = drop_overlaps(split_by_blocks(blocks, fractions, seed), self.places[["x", "y"]].to_numpy())
        elif by == "groups":
            if (count := self.places["group"].nunique()) < len(fractions):
                cause = "all chips share pixels or a scene: a smaller size=, or by='blocks'"
                raise ContractError("groups", count, f"at least {len(fractions)}, one a part", cause)
            parts = split_by_blocks(self.places["group"].to_numpy(), fractions, seed)
        elif by == "random":
            parts = random_split(len(self), fractions, seed)
        else:
            raise ContractError("by", repr(by), "'blocks', 'groups' or 'random'", "a misspelled kind of split")
        return tuple(self[part] for part in parts)


def _renumber(read, numbers: np.ndarray, n: int) -> Sample:
    label = numbers[(sample := read(n)).label]
    return replace(sample, label=label if label.ndim else int(label))


def place_table(names, lat=None, lon=None, when=None, group=None, corners=None) -> pd.DataFrame:
    """`LabeledSet.places`, a row a name; what is None is unknown, and every chip its own group. corners [N, 2]: x, y."""
    n = len(names)
    unknown = np.full(n, np.nan)
    return pd.DataFrame(
        {
            "name": list(names),
            "lat": unknown if lat is None else np.asarray(lat, float),
            "lon": unknown if lon is None else np.asarray(lon, float),
            "when": [""] * n if when is None else [when] * n if isinstance(when, str) else list(when),
            "group": np.arange(n) if group is None else group,
            "x": unknown if corners is None else corners[:, 0],
            "y": unknown if corners is None else corners[:, 1],
        }
    )


# ---- the mini-world ----


def world_set(
    sensor: str = "sentinel-2-l2a",
    count: int = 110,
    *,
    target: str = "land cover",
    split: str = "train",
    jobs: int = -1,
    cache: Path | None = CACHE,
    **options,
) -> LabeledSet:
    """Chips of the mini-world. target: "land cover" of pixels, the chip's "class", "leaf area" (m2/m2), its "mean leaf area".

    options: size, seed, dates, first, classes and cloud_cover of `chips.world_chips`. Splits lie on different land.
    """
    from clay_lib.world.earth import CLASSES

    if target not in WORLD_TARGETS:
        raise ContractError("target", repr(target), f"one of {list(WORLD_TARGETS)}", "a misspelling")
    classified = target in ("land cover", "class")
    chips = world_chips(sensor, count, split=split, jobs=jobs, cache=cache, **options)
    if classified:
        numbers = np.full(256, IGNORE)
        numbers[list(CLASSES)] = np.arange(len(CLASSES))
        labels = numbers[chips.labels if target == "land cover" else chips.land_cover]
    else:
        labels = _leaf_area(chips, options.get("seed", 0), jobs, cache)
        labels = labels if target == "leaf area" else labels.mean((1, 2))
    spec = SENSORS[sensor]
    names = [f"{split} {n}" for n in range(len(chips))]
    group = [f"{lat:.5f} {lon:.5f}" for lat, lon in zip(chips.lat, chips.lon, strict=True)]
    return LabeledSet(
        sensor=spec,
        bands=spec.band_names,
        gsd=spec.gsd,
        classes=tuple(CLASSES.values()) if classified else (),
        dense=target in ("land cover", "leaf area"),
        places=place_table(names, chips.lat, chips.lon, chips.when, group),
        read=partial(_world_sample, chips, labels),
    )


def _world_sample(chips: Chips, labels: np.ndarray, n: int) -> Sample:
    label = labels[n] if labels.ndim == 3 else labels[n].item()
    return Sample(chips.pixels[n].astype(np.float32), label)


def _leaf_area(chips: Chips, seed: int, jobs: int, cache: Path | None) -> np.ndarray:
    """[N, H, W] float32: the world, observed again, since chips keep their land cover alone."""
    key = hashlib.sha256("".join([f"{seed}", *chips.hashes]).encode()).hexdigest()[:16]
    path = cache and Path(cache) / f"leaf-area-{key}.npy"
    if path and path.is_file():
        return np.load(path)
    from joblib import Parallel, delayed

    size, rows = chips.pixels.shape[-2:], zip(chips.lat, chips.lon, chips.when, strict=True)
    leaves = np.stack(Parallel(n_jobs=jobs)(delayed(_observe_leaves)(seed, chips.sensor, size, *row) for row in rows))
    if path:
        atomic_write(path, lambda partial_path: np.save(partial_path, leaves))
    return leaves


def _observe_leaves(seed: int, sensor: str, size, lat: float, lon: float, when: str) -> np.ndarray:
    from clay_lib.world.earth import MiniWorld, Place

    return MiniWorld(seed).observe(Place(lat, lon), sensor, str(when), size, noise=False).leaf_area


# ---- the Hugging Face Hub ----


def hub_set(
    source,
    sensor: str | Sensor,
    *,
    split: str = "train",
    image: str = "image",
    label: str = "label",
    bands: Sequence[str | None] | None = None,
    gsd: float | None = None,
    classes: Sequence[str] | None = None,
    when: str | None = None,
    **load_options,
) -> LabeledSet:
    """A public data set by the library `datasets`: EuroSAT, the tables of GEO-Bench, others in the same form.

        hub_set("blanchon/EuroSAT_MSI", "sentinel-2-l2a", bands=EUROSAT_BANDS)

    source: a name on the Hub, a folder of its parquet shards, or a `datasets.Dataset`. image: its column of arrays
    [H, W, C] or [C, H, W], or of PNG, JPEG or TIFF. label: classes, values, or images of class numbers (then classes
    names them). bands: names of the bands in their order, None for one to leave out. load_options: of `load_dataset`.
    """
    try:
        import datasets
    except ImportError:
        expected = 'pip install "clay-notebooks[datasets]"'
        raise ContractError("datasets", "not installed", expected, "public data sets are an extra") from None
    sensor = SENSORS.resolve(sensor)
    if isinstance(source, datasets.Dataset):
        table = source
    elif Path(source).is_dir():
        shards = sorted(str(p) for p in Path(source).rglob("*.parquet") if split in p.name or split == p.parent.name)
        if not shards:
            expected = f"files such as {split}-00000-of-00001.parquet"
            cause = "another folder, or a split of another name"
            raise ContractError("source", f"{source}, without shards of {split!r}", expected, cause)
        table = datasets.load_dataset("parquet", data_files={split: shards}, split=split, **load_options)
    else:
        table = datasets.load_dataset(str(source), split=split, **load_options)
    for column in (image, label):
        if column not in table.column_names:
            cause = "another name: give image= and label="
            raise ContractError(column, table.column_names, "a column of this name", cause)
        if isinstance(table.features[column], datasets.Image):  # bytes, which rasterio reads with all their bands
            table = table.cast_column(column, datasets.Image(decode=False))
    kind = table.features[label]
    dense = isinstance(kind, datasets.Image) or getattr(kind, "shape", None) is not None
    if isinstance(kind, datasets.ClassLabel):
        classes = kind.names
    elif classes is None and (dense or not str(getattr(kind, "dtype", "")).startswith("float")):
        cause = "numbers without names: give classes=[...]; or a chip with many labels, which no head here learns"
        raise ContractError("classes", f"{label}: {kind}", "names of the classes, or a column of values", cause)
    all_bands = sensor.band_names if bands is None else tuple(bands)
    used = [i for i, name in enumerate(all_bands) if name is not None]
    names = tuple(all_bands[i] for i in used)
    sensor.indices(names)
    return LabeledSet(
        sensor=sensor,
        bands=names,
        gsd=sensor.gsd if gsd is None else gsd,
        classes=tuple(classes or ()),
        dense=dense,
        places=place_table([f"{split} {n}" for n in range(len(table))], when=when),
        read=partial(_hub_sample, table, image, label, len(all_bands), used, tuple(classes or ())),
    )


def _hub_sample(table, image: str, label: str, count: int, used: list[int], classes: tuple[str, ...], n: int) -> Sample:
    row = table[n]
    pixels = decode_image(row[image])
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.shape[0] != count and pixels.shape[-1] == count:
        pixels = np.moveaxis(pixels, -1, 0)
    if pixels.ndim != 3 or pixels.shape[0] != count:
        cause = "other bands than the sensor's: name them all in bands=[...], None for one to leave out"
        raise ContractError(image, f"shape {pixels.shape}", f"{count} bands, first or last", cause)
    value = row[label]
    if isinstance(value, (dict, list)):
        value = np.squeeze(decode_image(value))
    if classes:
        value = check_class_numbers(np.asarray(value).astype(np.int64), len(classes), f"row {n}")
        value = value if value.ndim else int(value)
    return Sample(np.asarray(pixels[used], np.float32), value)


def check_class_numbers(numbers: np.ndarray, count: int, where: str) -> np.ndarray:
    """numbers as they are, if all of them are class numbers from 0 to count - 1, or IGNORE."""
    if wrong := sorted(set(np.unique(numbers).tolist()) - {*range(count), IGNORE}):
        expected = f"0 to {count - 1}, or {IGNORE} for unlabeled"
        cause = "a class without its name in classes=, a fill value, or classes counted from 1"
        raise ContractError("labels", f"{where}: class {', '.join(map(str, wrong[:5]))}", expected, cause)
    return numbers


# ---- files ----


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
    image's longer side. bands: as `rasters.read_scene` takes them.
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
    size: int = 64,
    bands: Bands = None,
    when: str | None = None,
) -> LabeledSet:
    """Rasters and label rasters of the same names and grids, cut into windows of size x size pixels.

    images, labels: files, or folders of them, paired by name without ending. classes: {number in the files: name}, or
    the names of 0, 1, 2 and so on; None: the labels are values (dense regression). ignore, and the label file's nodata:
    unlabeled. Windows at a border are filled up with missing pixels; those without one label are left out.
    """
    sensor = SENSORS.resolve(sensor)
    pairs = _pair_files(images, labels)
    bands = bands or _common_layout([image for image, _ in pairs], sensor, when)
    codes = None if classes is None else dict(classes) if isinstance(classes, Mapping) else dict(enumerate(classes))
    windows, names, positions, dates = [], [], [], []
    for image, label in pairs:
        header = read_header(image)
        _check_same_grid(header, read_header(label))
        values = _read_labels(label, codes, ignore)
        for top in range(0, header.height, size):
            for left in range(0, header.width, size):
                part = values[top : top + size, left : left + size]
                if (np.isfinite(part) if codes is None else part != IGNORE).any():
                    windows.append((image, label, (left, top, size, size)))
                    names.append(f"{image.stem} row {top} column {left}")
                    dates.append(when or header.when or "")
                    positions.append(header.at(left + part.shape[1] / 2, top + part.shape[0] / 2))
    if not windows:
        cause = "ignore= or nodata is the number of the only class"
        raise ContractError("labels", f"{len(pairs)} pair(s), every pixel ignored", "labeled pixels", cause)
    image, _, box = windows[0]
    first = read_scene(image, sensor, bands=bands, when=when, window=read_header(image).clip(box))
    _check_ground_distance([read_header(image) for image, _ in pairs], first)
    places = place_table(names, *np.array(positions).T, dates, [image.stem for image, _, _ in windows])
    data = _scene_set(
        first, (codes or {}).values(), places, partial(_pair_sample, windows, sensor, bands, when, codes, ignore)
    )
    return replace(data, dense=True, codes=tuple(int(code) for code in codes or ()))


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

    Text, categories, bools and columns of integers are classes, columns of floats values, unless gaps alone made
    floats of integers. Points without a label or outside the scene are left out with a warning; a chip that extends
    past the scene's border is missing there. Chips that share pixels, directly or over others, are one group.
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
    places = place_table(names, lonlat.y, lonlat.x, when or header.when or "", groups, corners / size)
    read = partial(_chip_sample, [scene] * len(boxes), boxes, labels, sensor, bands, when)
    return _scene_set(first, map(str, classes), places, read)


def _scene_set(first: Scene, classes, places: pd.DataFrame, read) -> LabeledSet:
    """Labels of chips, from files whose bands and ground distance are those of the scene `first`."""
    return LabeledSet(
        sensor=first.sensor,
        bands=first.bands,
        gsd=first.gsd,
        classes=tuple(classes),
        dense=False,
        places=places,
        read=read,
        in_decibel=first.in_decibel,
    )


def _common_layout(paths: Sequence[Path], sensor: Sensor, when) -> dict[str, int] | None:
    """{band: number} of images without names, of the layout that most of 32 have; None: each names its own bands."""
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
    """The points that carry a label; a column of floats that holds integers and gaps becomes integers."""
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
    if labeled.all():
        return points
    warn(f"{(~labeled).sum()} of {len(points)} points have no label in {label!r} and are left out")
    points = points[labeled]
    if points[label].dtype.kind == "f" and (points[label] % 1 == 0).all():  # as tables hold integers with gaps
        points = points.assign(**{label: points[label].astype(int)})
    return points


def _list_files(source) -> list[Path]:
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    return [path for one in sources for path in (list_rasters(one) if Path(one).is_dir() else [Path(one)])]


def _pair_files(images, labels) -> list[tuple[Path, Path]]:
    image_paths, label_paths = _list_files(images), _list_files(labels)
    if not image_paths:
        raise ContractError("images", f"no raster in {images}", "files or a folder", "a misspelling")
    if len(image_paths) == len(label_paths) == 1:
        return [(image_paths[0], label_paths[0])]
    by_name = {path.stem: path for path in label_paths}
    if missing := [path.name for path in image_paths if path.stem not in by_name]:
        found, cause = f"no label raster for {', '.join(missing[:3])}", "names differ by more than their ending"
        raise ContractError("labels", found, "a file of the same name each", cause)
    return [(path, by_name[path.stem]) for path in image_paths]


def _check_same_grid(image: Header, label: Header) -> None:
    same = (image.height, image.width) == (label.height, label.width)
    if image.crs is not None and label.crs is not None:
        close = np.allclose(image.transform, label.transform, rtol=1e-6, atol=1e-3 * abs(image.transform[0]))
        same = same and image.crs == label.crs and close
    if not same:
        cause = "labels of another resolution, extent or projection: warp them to the image's grid, nearest neighbor"
        raise ContractError("labels", str(label), f"the grid of {image}", cause)


def _read_labels(path: Path, codes: Mapping[int, str] | None, ignore: int | None, window=None) -> np.ndarray:
    """[H, W]: class numbers in the order of codes, IGNORE where unlabeled; or values, NaN where unknown."""
    with open_raster(path) as file:
        values, fill = read_band(file, 1, window and Window(*window)), file.nodata
    if codes is not None and fill in codes:
        if ignore is None:
            found, expected = f"{path.name}: nodata {fill:g}, which is class {codes[fill]!r}", "one or the other"
            cause = "no class: leave it out of classes=; a class: say what is unlabeled, as in ignore=255"
            raise ContractError("labels", found, expected, cause)
        fill = None
    blank = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    for number in (ignore, fill):
        if number is not None:
            blank |= np.isnan(values) if np.isnan(number) else values == number
    if codes is None:
        return np.where(blank, np.nan, values).astype(np.float32)
    out = np.full(values.shape, IGNORE)
    for position, code in enumerate(codes):
        out[values == code] = position
    if wrong := np.unique(values[(out == IGNORE) & ~blank]).tolist():
        unlabeled = "" if ignore is None else f", or {ignore} for unlabeled"
        cause = "a class without a name in classes=, or a fill value: ignore="
        found = f"{path.name}: class {', '.join(f'{v:g}' for v in wrong[:5])}"
        raise ContractError("labels", found, f"one of {dict(codes)}{unlabeled}", cause)
    out[blank] = IGNORE
    return out


def _chip_sample(paths, boxes, labels, sensor: Sensor, bands: Bands, when, n: int) -> Sample:
    scene = read_padded(paths[n], boxes[n], sensor, bands, when)
    return Sample(scene.pixels, labels[n], scene.crs, scene.transform)


def _pair_sample(windows, sensor: Sensor, bands: Bands, when, codes, ignore, n: int) -> Sample:
    image, label, box = windows[n]
    scene, (x, y, w, h) = read_padded(image, box, sensor, bands, when), read_header(image).clip(box)
    known = _read_labels(label, codes, ignore, (x, y, w, h))
    labels = np.full(scene.pixels.shape[1:], IGNORE if codes is not None else np.nan, known.dtype)
    left, top = x - box[0], y - box[1]
    labels[top : top + h, left : left + w] = known
    return Sample(scene.pixels, labels, scene.crs, scene.transform)
