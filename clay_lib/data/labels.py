"""Data sets to train a head on: chips of native numbers, each with its label and its place, wherever they come from.

One type, `LabelledSet`, and an adapter for every source: the mini-world and the Hugging Face Hub here; class folders,
rasters with label rasters, and points in dataset_files.py. Nothing is read before it is asked for.
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
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine, rowcol

from clay_lib.data.chips import CACHE, Chips, world_chips
from clay_lib.data.rasters import RASTER_ENDINGS, centre, read_scene
from clay_lib.data.splits import random_split, spatial_blocks, split_by_blocks
from clay_lib.errors import ContractError, warn
from clay_lib.files import atomic_write
from clay_lib.sensors import SENSORS, Sensor

IGNORE = -1  # the class number of pixels that nobody labelled: no loss and no score hears of them
WORLD_TARGETS = ("land cover", "class", "leaf area", "mean leaf area")
# EuroSAT's files hold 13 bands in this order, B8A last; level 1C, so not quite the sensor's statistics.
EUROSAT_BANDS = (
    None, "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", None, None, "swir16", "swir22", "nir08",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sample:
    """One chip. label: a class number, class numbers [H, W] (IGNORE: unlabelled), a value, or values [H, W] (NaN)."""

    pixels: np.ndarray  # [C, H, W] float32 native numbers, NaN where not measured
    label: int | float | np.ndarray
    crs: str | None = None
    transform: tuple[float, ...] | None = None  # from pixel corner to CRS


@dataclass(frozen=True, eq=False)
class LabelledSet:
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
    read: Callable[[int], Sample]  # by the number in the whole set, which is the index of `places`
    in_decibel: bool = False
    codes: tuple[int, ...] = ()  # the classes' numbers in the label files, and in maps; empty: 0, 1, 2 and so on

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index) -> Sample | LabelledSet:
        if isinstance(index, (int, np.integer)):
            return self.read(int(self.places.index[index]))
        return replace(self, places=self.places.iloc[index])

    @property
    def task(self) -> str:
        kind = "segmentation" if self.dense else "classification"
        return kind if self.classes else "dense regression" if self.dense else "regression"

    def about(self, rows) -> dict:
        """What `Clay.cube` is told of these chips besides their pixels."""
        part = self.places.iloc[rows]
        degrees = {k: [None if np.isnan(v) else float(v) for v in part[k]] for k in ("lat", "lon")}
        when = [text or None for text in part["when"]]
        return dict(bands=self.bands, gsd=self.gsd, in_decibel=self.in_decibel, when=when, **degrees)

    def split(
        self, fractions: Sequence[float] = (0.7, 0.15, 0.15), *, by: str = "blocks", degrees: float = 0.1, seed: int = 0
    ) -> tuple[LabelledSet, ...]:
        """One set a fraction. by: "blocks" of degrees x degrees of land, "groups", or "random", which flatters.

        Chips of points reach over the border of their block: those that share pixels with a chip of a later part are
        left out with a warning. So name the parts in the order train, val, test.
        """
        if by == "blocks":
            blocks = spatial_blocks(self.places["lat"], self.places["lon"], degrees)
            parts = _apart(split_by_blocks(blocks, fractions, seed), self.places[["x", "y"]].to_numpy())
        elif by == "groups":
            if (count := self.places["group"].nunique()) < len(fractions):
                raise ContractError("groups", f"{count}", f"at least {len(fractions)}, one a part", "all chips share pixels or a scene: a smaller size=, or by='blocks'")  # fmt: skip
            parts = split_by_blocks(self.places["group"].to_numpy(), fractions, seed)
        elif by == "random":
            parts = random_split(len(self), fractions, seed)
        else:
            raise ContractError("by", repr(by), "'blocks', 'groups' or 'random'", "a misspelt kind of split")
        return tuple(self[part] for part in parts)


def _apart(parts: Sequence[np.ndarray], corners: np.ndarray) -> list[np.ndarray]:
    """Row numbers of parts, less those of chips that share pixels with a chip of a later part. corners [N, 2]: x, y."""
    from scipy.spatial import cKDTree

    kept, later, lost = [], np.empty((0, 2)), 0
    for part in reversed(parts):
        placed = np.isfinite(corners[part]).all(1)
        near = np.full(len(part), np.inf)
        near[placed] = cKDTree(later).query(corners[part[placed]], p=np.inf)[0]
        kept.insert(0, part[near > 1 - 1e-6])
        later = np.concatenate([later, corners[part][placed & (near > 1 - 1e-6)]])
        lost += len(part) - len(kept[0])
    if not all(map(len, kept)):
        raise ContractError("blocks", "a part whose every chip shares pixels with a later part", "chips in every part", "blocks hardly larger than a chip: more degrees, or a smaller size=")  # fmt: skip
    if lost:
        warn(
            f"{lost} of {sum(map(len, parts))} chips share pixels with a chip of a later part and are left out: larger blocks lose fewer"
        )
    return kept


def place_table(names, lat=None, lon=None, when=None, group=None, corners=None) -> pd.DataFrame:
    """`LabelledSet.places`, a row a name; what is None is unknown, and every chip its own group. corners [N, 2]: x, y."""
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
    **how,
) -> LabelledSet:
    """Chips of the mini-world. target: "land cover" of pixels, the chip's "class", "leaf area" (m2/m2), its "mean leaf area".

    how: size, seed, dates, first, classes and cloud_cover of `chips.world_chips`. Splits lie on different land.
    """
    from clay_lib.world.earth import CLASSES

    if target not in WORLD_TARGETS:
        raise ContractError("target", repr(target), f"one of {list(WORLD_TARGETS)}", "a misspelling")
    chips = world_chips(sensor, count, split=split, jobs=jobs, cache=cache, **how)
    if target in ("land cover", "class"):
        numbers = np.full(256, IGNORE)
        numbers[list(CLASSES)] = np.arange(len(CLASSES))
        labels = numbers[chips.labels if target == "land cover" else chips.land_cover]
    else:
        labels = _leaf_area(chips, how.get("seed", 0), jobs, cache)
        labels = labels if target == "leaf area" else labels.mean((1, 2))
    spec = SENSORS[sensor]
    names = [f"{split} {n}" for n in range(len(chips))]
    group = [f"{lat:.5f} {lon:.5f}" for lat, lon in zip(chips.lat, chips.lon, strict=True)]
    return LabelledSet(
        sensor=spec,
        bands=spec.band_names,
        gsd=spec.gsd,
        classes=tuple(CLASSES.values()) if target in ("land cover", "class") else (),
        dense=target in ("land cover", "leaf area"),
        places=place_table(names, chips.lat, chips.lon, chips.when, group),
        read=partial(_world_sample, chips, labels),
    )


def _world_sample(chips: Chips, labels: np.ndarray, n: int) -> Sample:
    label = labels[n] if labels.ndim == 3 else labels[n].item()
    return Sample(chips.pixels[n].astype(np.float32), label)


def _leaf_area(chips: Chips, seed: int, jobs: int, cache: Path | None) -> np.ndarray:
    """[N, H, W] float32: the world, looked at again, since chips keep their land cover alone."""
    key = hashlib.sha256("".join([f"{seed}", *chips.hashes]).encode()).hexdigest()[:16]
    path = cache and Path(cache) / f"leaf-area-{key}.npy"
    if path and path.is_file():
        return np.load(path)
    from joblib import Parallel, delayed

    size = chips.pixels.shape[-2:]
    looks = zip(chips.lat, chips.lon, chips.when, strict=True)
    leaves = np.stack(Parallel(n_jobs=jobs)(delayed(_leaves)(seed, chips.sensor, size, *look) for look in looks))
    if path:
        atomic_write(path, lambda unfinished: np.save(unfinished, leaves))
    return leaves


def _leaves(seed: int, sensor: str, size, lat: float, lon: float, when: str) -> np.ndarray:
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
    **load,
) -> LabelledSet:
    """A public data set by the library `datasets`: EuroSAT, those of GEO-Bench that are there as tables, any like them.

        hub_set("blanchon/EuroSAT_MSI", "sentinel-2-l2a", bands=EUROSAT_BANDS)

    source: a name on the Hub, a folder of its parquet shards, or a `datasets.Dataset`. image: its column of arrays
    [H, W, C] or [C, H, W], or of PNG, JPEG or TIFF. label: classes, values, or images of class numbers (then classes
    names them). bands: names of the bands in their order, None for one to leave out. load: what `load_dataset` takes.
    """
    try:
        import datasets
    except ImportError:
        raise ContractError("datasets", "not installed", 'pip install "clay-notebooks[datasets]"', "public data sets are an extra") from None  # fmt: skip
    sensor = SENSORS.resolve(sensor)
    if isinstance(source, datasets.Dataset):
        table = source
    elif Path(source).is_dir():
        shards = sorted(str(p) for p in Path(source).rglob("*.parquet") if split in p.name or split == p.parent.name)
        if not shards:
            raise ContractError("source", f"{source}, without shards of {split!r}", f"files such as {split}-00000-of-00001.parquet", "another folder, or a split of another name")  # fmt: skip
        table = datasets.load_dataset("parquet", data_files={split: shards}, split=split, **load)
    else:
        table = datasets.load_dataset(str(source), split=split, **load)
    for column in (image, label):
        if column not in table.column_names:
            raise ContractError(column, table.column_names, "a column of this name", "name it")
        if isinstance(table.features[column], datasets.Image):  # bytes, which rasterio reads with all their bands
            table = table.cast_column(column, datasets.Image(decode=False))
    kind = table.features[label]
    dense = isinstance(kind, datasets.Image) or getattr(kind, "shape", None) is not None
    if isinstance(kind, datasets.ClassLabel):
        classes = kind.names
    elif classes is None and (dense or not str(getattr(kind, "dtype", "")).startswith("float")):
        raise ContractError("classes", f"{label}: {kind}", "names of the classes, or a column of values", "numbers without names: give classes=[...]; or a chip with many labels, which no head here learns")  # fmt: skip
    layout = dict(count=len(sensor.bands)) if bands is None else dict(count=len(bands))
    kept = None if bands is None else [i for i, name in enumerate(bands) if name is not None]
    names = sensor.band_names if bands is None else tuple(name for name in bands if name is not None)
    sensor.indices(names)
    read = partial(_hub_sample, table, image, label, layout["count"], kept, tuple(classes or ()))
    return LabelledSet(
        sensor=sensor,
        bands=tuple(names),
        gsd=sensor.gsd if gsd is None else gsd,
        classes=tuple(classes or ()),
        dense=dense,
        places=place_table([f"{split} {n}" for n in range(len(table))], when=when),
        read=read,
    )


def _hub_sample(table, image: str, label: str, count: int, kept, classes: tuple[str, ...], n: int) -> Sample:
    row = table[n]
    pixels = _decoded(row[image])
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.shape[0] != count and pixels.shape[-1] == count:
        pixels = np.moveaxis(pixels, -1, 0)
    if pixels.ndim != 3 or pixels.shape[0] != count:
        raise ContractError(image, f"shape {pixels.shape}", f"{count} bands, first or last", "other bands than the sensor's: name them all in bands=[...], None for one to leave out")  # fmt: skip
    value = row[label]
    if isinstance(value, (dict, list)):
        value = np.squeeze(_decoded(value))
        value = number_classes(value.astype(np.int64), len(classes), f"row {n}") if classes else value
    elif classes:
        value = int(number_classes(np.array(value), len(classes), f"row {n}"))
    return Sample(np.asarray(pixels if kept is None else pixels[kept], np.float32), value)


def _decoded(value) -> np.ndarray:
    """Arrays as they are; {"bytes", "path"} of an image as [C, H, W]."""
    if not isinstance(value, dict):
        return np.asarray(value)
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    data = value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
    with warnings.catch_warnings(), MemoryFile(data) as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open() as source:
            return source.read()


def number_classes(ids: np.ndarray, count: int, where: str) -> np.ndarray:
    """ids as they are, if all of them are class numbers from 0 to count - 1, or IGNORE."""
    if wrong := sorted(set(np.unique(ids).tolist()) - {*range(count), IGNORE}):
        raise ContractError(
            "labels",
            f"{where}: class {', '.join(map(str, wrong[:5]))}",
            f"0 to {count - 1}, or {IGNORE} for what is not labelled",
            "a class without its name in classes=, a fill value, or classes counted from 1",
        )
    return ids


# ---- Data sets from one's own files: images in class folders, rasters with label rasters, points on a sce ----

Bands = Mapping[str, int] | Sequence[str | None] | None  # as `scenes.read_scene` takes them


def class_folders(
    folder: str | Path, sensor: str | Sensor, *, bands: Bands = None, size: int | None = None, when: str | None = None
) -> LabelledSet:
    """folder/CLASS/image: the name of a subfolder is the class of every raster in it (EuroSAT, UC Merced).

    size: pixels a side, of the middle of larger images; smaller ones are missing at their border. None: the first
    image's longer side. bands: as `scenes.read_scene` takes them.
    """
    sensor, folder = SENSORS.resolve(sensor), Path(folder)
    kinds = sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith("."))
    paths = [path for kind in kinds for path in _rasters(kind)]
    classes = sorted({path.parent.name for path in paths})
    if len(classes) < 2:
        raise ContractError("folder", f"{folder}: images in {len(classes)} subfolder(s)", "two or more classes", "the class folders lie one folder below or above")  # fmt: skip
    heads = [head_of(path) for path in paths]
    first = read_scene(paths[0], sensor, bands=bands)
    size = size or max(first.pixels.shape[1:])
    boxes = [((h.width - size) // 2, (h.height - size) // 2, size, size) for h in heads]
    labels = [classes.index(path.parent.name) for path in paths]
    lat, lon = np.array([h.place for h in heads], float).T
    return LabelledSet(
        sensor=sensor,
        bands=first.bands,
        gsd=first.gsd,
        classes=tuple(classes),
        dense=False,
        places=place_table([f"{p.parent.name}/{p.name}" for p in paths], lat, lon, when or ""),
        read=partial(_chip_sample, paths, boxes, labels, sensor, bands),
        in_decibel=first.in_decibel,
    )


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
) -> LabelledSet:
    """Rasters and label rasters of the same names and grids, cut into windows of size x size pixels.

    images, labels: files, or folders of them, paired by name without ending. classes: {number in the files: name}, or
    the names of 0, 1, 2 and so on; None: the labels are values (dense regression). ignore, and the label file's nodata:
    not labelled. Windows at a border are filled up with missing pixels; those without one label are left out.
    """
    sensor = SENSORS.resolve(sensor)
    pairs = _paired(images, labels)
    codes = None if classes is None else dict(classes) if isinstance(classes, Mapping) else dict(enumerate(classes))
    rows, names, lat, lon, group = [], [], [], [], []
    for image, label in pairs:
        head = head_of(image)
        _same_grid(head, head_of(label))
        values = _labels(label, codes, ignore)
        for top in range(0, head.height, size):
            for left in range(0, head.width, size):
                part = values[top : top + size, left : left + size]
                if np.isfinite(part).any() if codes is None else (part != IGNORE).any():
                    box = (left, top, size, size)
                    rows.append((image, label, box))
                    names.append(f"{image.stem} row {top} column {left}")
                    a, b = head.at(left + part.shape[1] / 2, top + part.shape[0] / 2)
                    lat.append(a), lon.append(b), group.append(image.stem)
    if not rows:
        raise ContractError("labels", f"{len(pairs)} pair(s), every pixel ignored", "labelled pixels", "ignore= or nodata is the number of the only class")  # fmt: skip
    first = read_scene(pairs[0][0], sensor, bands=bands, window=clip_box(rows[0][2], head_of(pairs[0][0])))
    return LabelledSet(
        sensor=sensor,
        bands=first.bands,
        gsd=first.gsd,
        classes=() if codes is None else tuple(codes.values()),
        dense=True,
        places=place_table(names, lat, lon, when or "", group),
        read=partial(_pair_sample, rows, sensor, bands, codes, ignore),
        in_decibel=first.in_decibel,
        codes=() if codes is None else tuple(int(code) for code in codes),
    )


def points_on_scene(
    points,
    scene: str | Path,
    sensor: str | Sensor,
    *,
    label: str,
    size: int = 32,
    bands: Bands = None,
    when: str | None = None,
) -> LabelledSet:
    """Chips of size x size pixels around the points of a GeoDataFrame; its column `label` holds classes or values.

    Text, categories, bools and columns of integers are classes, columns of floats values, unless gaps alone made
    floats of integers. Points without a label or outside the scene are left out with a warning; a chip that reaches
    over the scene's border is missing there. Chips that share pixels, directly or over others, are one group.
    """
    from sklearn.cluster import DBSCAN

    sensor = SENSORS.resolve(sensor)
    head = head_of(scene)
    if label not in points:
        raise ContractError("label", repr(label), f"one of {list(points.columns)}", "a misspelling")
    if points.crs is None or head.crs is None:
        which = "the points" if points.crs is None else str(scene)
        raise ContractError("crs", f"{which} without CRS", "one of each", "set_crs was forgotten")
    if kinds := set(points.geom_type.dropna()) - {"Point"}:
        raise ContractError("geometry", ", ".join(sorted(kinds)), "points", "areas: points.representative_point() or rasterise them for raster_pairs; many in one: points.explode()")  # fmt: skip
    labelled = points[label].notna()
    if not labelled.any():
        raise ContractError("label", f"{label!r} without a value", "labels", "another column")
    if not labelled.all():
        warn(f"{(~labelled).sum()} of {len(points)} points have no label in {label!r} and are left out")
        points = points[labelled]
        if points[label].dtype.kind == "f" and (points[label] % 1 == 0).all():  # as tables hold integers with gaps
            points = points.assign(**{label: points[label].astype(int)})
    placed = points.to_crs(head.crs).geometry
    rows, columns = rowcol(Affine(*head.transform), placed.x.to_numpy(), placed.y.to_numpy(), op=np.asarray)
    inside = (columns >= 0) & (columns < head.width) & (rows >= 0) & (rows < head.height)
    if not inside.any():
        raise ContractError("points", f"none of {len(points)} on {scene}", "points on the scene", "another place, or latitude and longitude swapped")  # fmt: skip
    if not inside.all():
        warn(f"{(~inside).sum()} of {len(points)} points lie outside the scene and are left out")
    values = points[label][inside]
    numbers = values.dtype.kind == "f"
    classes = () if numbers else tuple(sorted(values.unique(), key=str))
    boxes = [
        (math.floor(c) - size // 2, math.floor(r) - size // 2, size, size)
        for c, r in zip(columns[inside], rows[inside], strict=True)
    ]
    corners = np.array([box[:2] for box in boxes])
    clumps = DBSCAN(eps=size - 0.5, min_samples=1, metric="chebyshev").fit_predict(corners)
    first = read_scene(scene, sensor, bands=bands, window=clip_box(boxes[0], head))
    lonlat = points.to_crs("EPSG:4326").geometry[inside]
    labels = [float(v) if numbers else classes.index(v) for v in values]
    return LabelledSet(
        sensor=sensor,
        bands=first.bands,
        gsd=first.gsd,
        classes=tuple(map(str, classes)),
        dense=False,
        places=place_table(
            [f"point {i}" for i in values.index], lonlat.y, lonlat.x, when or "", clumps, corners / size
        ),
        read=partial(_chip_sample, [Path(scene)] * len(boxes), boxes, labels, sensor, bands),
        in_decibel=first.in_decibel,
    )


# ---- files ----


class Head:
    """What a raster says of itself before its pixels are read."""

    def __init__(self, path: Path):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(path) as source:
                    self.path, self.height, self.width, self.crs = path, source.height, source.width, source.crs
                    self.transform = tuple(source.transform)[:6]
        except RasterioError as error:
            raise ContractError("path", f"{path}: {error}", "a raster", "another file, or a broken download") from None

    def at(self, column: float, row: float) -> tuple[float, float]:
        """(lat, lon) of a place in pixels from the upper left corner; NaN without a CRS."""
        if self.crs is None:
            return math.nan, math.nan
        a, b, c, d, e, f = self.transform
        moved = Affine(a, b, a * column + b * row + c, d, e, d * column + e * row + f)
        lon, lat = centre(self.crs, moved, 0, 0)
        return lat, lon

    @property
    def place(self) -> tuple[float, float]:
        return self.at(self.width / 2, self.height / 2)


def head_of(path) -> Head:
    """Asked of the file every time: in a notebook it may be another one by now."""
    return Head(Path(path))


def _rasters(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in RASTER_ENDINGS and not p.name.startswith("."))


def _listed(source, field: str) -> list[Path]:
    many = [source] if isinstance(source, (str, Path)) else list(source)
    paths = [p for one in many for p in (_rasters(Path(one)) if Path(one).is_dir() else [Path(one)])]
    if lacking := [str(p) for p in paths if not p.is_file()] or ([] if paths else [str(source)]):
        raise ContractError(field, f"no raster at {lacking[0]}", "files or a folder", "a misspelling")
    return paths


def _paired(images, labels) -> list[tuple[Path, Path]]:
    images, labels = _listed(images, "images"), _listed(labels, "labels")
    if len(images) == len(labels) == 1:
        return [(images[0], labels[0])]
    by_name = {p.stem: p for p in labels}
    lacking = [p.name for p in images if p.stem not in by_name]
    if lacking:
        raise ContractError("labels", f"no label raster for {', '.join(lacking[:3])}", "a file of the same name each", "names differ by more than their ending")  # fmt: skip
    return [(p, by_name[p.stem]) for p in images]


def _same_grid(image: Head, label: Head) -> None:
    def told(head):
        return f"{head.height} x {head.width} pixels, {head.crs or 'no CRS'}, corner {head.transform[2]:g}, {head.transform[5]:g}, pixel {head.transform[0]:g}"

    size = (image.height, image.width) == (label.height, label.width)
    placed = (
        image.crs is None
        or label.crs is None
        or (
            image.crs == label.crs
            and np.allclose(image.transform, label.transform, rtol=1e-6, atol=1e-3 * abs(image.transform[0]))
        )
    )
    if not (size and placed):
        raise ContractError("labels", f"{label.path.name}: {told(label)}", f"the grid of {image.path.name}: {told(image)}", "labels of another resolution, extent or projection: warp them onto the image's grid, nearest neighbour")  # fmt: skip


def _labels(path: Path, codes: Mapping[int, str] | None, ignore: int | None, window=None) -> np.ndarray:
    """[H, W]: class numbers in the order of codes, IGNORE where not labelled; or values, NaN where not known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            part = None if window is None else rasterio.windows.Window(*window)
            values, fill = source.read(1, window=part), source.nodata
    blank = np.zeros(values.shape, bool)
    for number in (ignore, fill):
        if number is not None:
            blank |= np.isnan(values) if np.isnan(number) else values == number
    if codes is None:
        return np.where(blank, np.nan, values).astype(np.float32)
    out = np.full(values.shape, IGNORE)
    for position, code in enumerate(codes):
        out[values == code] = position
    if wrong := np.unique(values[(out == IGNORE) & ~blank]).tolist():
        raise ContractError(
            "labels",
            f"{path.name}: class {', '.join(f'{v:g}' for v in wrong[:5])}",
            f"one of {dict(codes)}" + (f", or {ignore} for what is not labelled" if ignore is not None else ""),
            "a class without a name in classes=, or a fill value: ignore=",
        )
    out[blank] = IGNORE
    return out


def clip_box(box, head: Head) -> tuple[int, int, int, int]:
    """The part of a box (column, row, width, height) that lies on the raster."""
    left, top, wide, high = box
    right, bottom = min(left + wide, head.width), min(top + high, head.height)
    left, top = max(left, 0), max(top, 0)
    return left, top, right - left, bottom - top


def cut(path: Path, box, sensor: Sensor, bands: Bands) -> tuple[np.ndarray, tuple[slice, slice], dict, tuple[str, ...]]:
    """Of a box (column, row, width, height) that may reach over the raster's border: pixels [C, H, W], NaN where there are
    none; the rows and columns of them on the raster; their georeference; their bands."""
    head, (left, top, wide, high) = head_of(path), box
    part = clip_box(box, head)
    scene = read_scene(path, sensor, bands=bands, window=part)
    rows, columns = (
        slice(p - start, p - start + n) for p, start, n in ((part[1], top, part[3]), (part[0], left, part[2]))
    )
    pixels = np.full((len(scene.bands), high, wide), np.nan, np.float32)
    pixels[:, rows, columns] = np.where(scene.missing, np.nan, scene.pixels.astype(np.float32))
    transform = None
    if head.crs is not None:
        a, b, c, d, e, f = head.transform
        transform = (a, b, a * left + b * top + c, d, e, d * left + e * top + f)
    return pixels, (rows, columns), dict(crs=scene.crs, transform=transform), scene.bands


def _chip_sample(paths, boxes, labels, sensor: Sensor, bands: Bands, n: int) -> Sample:
    pixels, _, where, _ = cut(paths[n], boxes[n], sensor, bands)
    return Sample(pixels, labels[n], **where)


def _pair_sample(rows, sensor: Sensor, bands: Bands, codes, ignore, n: int) -> Sample:
    image, label, box = rows[n]
    pixels, (y, x), where, _ = cut(image, box, sensor, bands)
    known = _labels(label, codes, ignore, clip_box(box, head_of(image)))
    labels = np.full(pixels.shape[1:], IGNORE if codes is not None else np.nan, known.dtype)
    labels[y, x] = known
    return Sample(pixels, labels, **where)
