"""Data sets to train a head on: chips of native numbers, each with its label and its place, wherever they come from.

One type, `LabelledSet`, and an adapter for every source: the mini-world and the Hugging Face Hub here; class folders,
rasters with label rasters, and points in dataset_files.py. Nothing is read before it is asked for.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from clay_lib.chips import CACHE, Chips, world_chips
from clay_lib.contract import ContractError, warn
from clay_lib.files import write_whole
from clay_lib.sensors import SENSORS, Sensor
from clay_lib.splits import random_split, spatial_blocks, split_by_blocks

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
                raise ContractError(
                    "groups", found=f"{count}", expected=f"at least {len(fractions)}, one a part",
                    cause="all chips share pixels or a scene: a smaller size=, or by='blocks'",
                )  # fmt: skip
            parts = split_by_blocks(self.places["group"].to_numpy(), fractions, seed)
        elif by == "random":
            parts = random_split(len(self), fractions, seed)
        else:
            raise ContractError(
                "by", found=repr(by), expected="'blocks', 'groups' or 'random'", cause="a misspelt kind of split"
            )
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
        raise ContractError(
            "blocks", found="a part whose every chip shares pixels with a later part", expected="chips in every part",
            cause="blocks hardly larger than a chip: more degrees, or a smaller size=",
        )  # fmt: skip
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
    from clay_lib.miniworld import CLASSES

    if target not in WORLD_TARGETS:
        raise ContractError(
            "target", found=repr(target), expected=f"one of {list(WORLD_TARGETS)}", cause="a misspelling"
        )
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
        write_whole(path, lambda unfinished: np.save(unfinished, leaves))
    return leaves


def _leaves(seed: int, sensor: str, size, lat: float, lon: float, when: str) -> np.ndarray:
    from clay_lib.miniworld import MiniWorld, Place

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
        raise ContractError(
            "datasets", found="not installed", expected='pip install "clay-notebooks[datasets]"',
            cause="public data sets are an extra",
        ) from None  # fmt: skip
    sensor = SENSORS.resolve(sensor)
    if isinstance(source, datasets.Dataset):
        table = source
    elif Path(source).is_dir():
        shards = sorted(str(p) for p in Path(source).rglob("*.parquet") if split in p.name or split == p.parent.name)
        if not shards:
            raise ContractError(
                "source", found=f"{source}, without shards of {split!r}", expected=f"files such as {split}-00000-of-00001.parquet",
                cause="another folder, or a split of another name",
            )  # fmt: skip
        table = datasets.load_dataset("parquet", data_files={split: shards}, split=split, **load)
    else:
        table = datasets.load_dataset(str(source), split=split, **load)
    for column in (image, label):
        if column not in table.column_names:
            raise ContractError(column, found=table.column_names, expected="a column of this name", cause="name it")
        if isinstance(table.features[column], datasets.Image):  # bytes, which rasterio reads with all their bands
            table = table.cast_column(column, datasets.Image(decode=False))
    kind = table.features[label]
    dense = isinstance(kind, datasets.Image) or getattr(kind, "shape", None) is not None
    if isinstance(kind, datasets.ClassLabel):
        classes = kind.names
    elif classes is None and (dense or not str(getattr(kind, "dtype", "")).startswith("float")):
        raise ContractError(
            "classes", found=f"{label}: {kind}", expected="names of the classes, or a column of values",
            cause="numbers without names: give classes=[...]; or a chip with many labels, which no head here learns",
        )  # fmt: skip
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
        raise ContractError(
            image, found=f"shape {pixels.shape}", expected=f"{count} bands, first or last",
            cause="other bands than the sensor's: name them all in bands=[...], None for one to leave out",
        )  # fmt: skip
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
            found=f"{where}: class {', '.join(map(str, wrong[:5]))}",
            expected=f"0 to {count - 1}, or {IGNORE} for what is not labelled",
            cause="a class without its name in classes=, a fill value, or classes counted from 1",
        )
    return ids
