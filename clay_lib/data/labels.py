"""Labeled data sets for training a head: chips of native numbers, each with its label and its place.

One type, `LabeledSet`, and a function for every source: here the mini-world and the Hugging Face Hub, in `label_files`
class folders, rasters with label rasters or vector labels, and points on a scene. Pixels are read only when a chip is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from clay_lib.data.chips import Chips, world_chips
from clay_lib.data.images import decode_image
from clay_lib.data.splits import drop_overlaps, random_split, spatial_blocks, split_by_blocks
from clay_lib.errors import ContractError
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
    not be split: a scene, a mosaic, a place, chips that share pixels) and x, y: the chip's corner, in chip sides, on a
    scene whose pixels chips may share (NaN: no such scene).
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
        """The same chips with classes renumbered to this order, such as training's; they are matched by name.

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


def place_table(names, lat=np.nan, lon=np.nan, when="", group=None, corners=None) -> pd.DataFrame:
    """`LabeledSet.places`, a row a name; group None: every chip its own. corners [N, 2]: x, y."""
    x, y = (np.nan, np.nan) if corners is None else corners.T
    group = np.arange(len(names)) if group is None else group
    columns = dict(name=names, lat=lat, lon=lon, when=when, group=group, x=x, y=y)
    return pd.DataFrame(columns, range(len(names))).astype({"lat": float, "lon": float})


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
    """[N, H, W] float32, by observing the world again, since chips keep only their land cover."""
    key = hashlib.sha256("".join([f"{seed}", *chips.hashes]).encode()).hexdigest()[:16]
    path = cache and Path(cache) / f"leaf-area-{key}.npy"
    if path and path.is_file():
        return np.load(path)
    from joblib import Parallel, delayed

    size, rows = chips.pixels.shape[-2:], zip(chips.lat, chips.lon, chips.when, strict=True)
    leaves = np.stack(Parallel(n_jobs=jobs)(delayed(_observe_leaves)(seed, chips.sensor, size, *row) for row in rows))
    if path:
        with suppress(OSError):  # a cache that is shared read-only
            atomic_write(path, lambda partial_path: np.save(partial_path, leaves))
    return leaves


def _observe_leaves(seed: int, sensor: str, size, lat: float, lon: float, when: str) -> np.ndarray:
    from clay_lib.world.earth import MiniWorld, Place

    return MiniWorld(seed).observe(Place(lat, lon), sensor, str(when), size, noise=False).leaf_area


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
        places=place_table([f"{split} {n}" for n in range(len(table))], when=when or ""),
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
        value = check_class_numbers(whole_numbers(np.asarray(value), f"row {n}"), len(classes), f"row {n}")
        value = value if value.ndim else int(value)
    return Sample(np.asarray(pixels[used], np.float32), value)


def whole_numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Class numbers of any dtype as int64, IGNORE for NaN. ContractError for fractions and infinities."""
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    with np.errstate(invalid="ignore"):
        wrong = (values % 1 != 0) & ~np.isnan(values)
    if wrong.any():
        some = ", ".join(f"{value:g}" for value in np.unique(values[wrong])[:5])
        cause = "classes interpolated on resampling (nearest neighbor keeps them), or values: classes=None learns these"
        raise ContractError(
            "labels", f"{where}: {some} in {wrong.sum()} of {values.size} labels", "whole numbers of classes", cause
        )
    return np.where(np.isnan(values), IGNORE, values).astype(np.int64)


def check_class_numbers(numbers: np.ndarray, count: int, where: str) -> np.ndarray:
    """The numbers unchanged; ContractError unless all are class numbers from 0 to count - 1, or IGNORE."""
    if wrong := sorted(set(np.unique(numbers).tolist()) - {*range(count), IGNORE}):
        expected = f"0 to {count - 1}, or {IGNORE} for unlabeled"
        cause = "a class without its name in classes=, a fill value, or classes counted from 1"
        raise ContractError("labels", f"{where}: class {', '.join(map(str, wrong[:5]))}", expected, cause)
    return numbers
