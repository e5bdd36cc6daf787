"""Land cover of single patches of rasters: trained on some rasters or windows, tested on the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from einops import rearrange

from clay_lib.clay import Clay
from clay_lib.data.label_files import label_grids, list_files
from clay_lib.data.scenes import read_scene
from clay_lib.errors import ContractError, warn
from clay_lib.evaluation import evaluate, probes
from clay_lib.evaluation.intervals import codes, interval, resample

PATCHES_PER_CLASS = 100  # to train on
WINDOW = 7  # patches a side of the windows that rasters are cut into
Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]  # name of a raster: (pixels [C, H, W], classes [H, W])


def read_rasters(
    rasters: str | Path,
    labels: str | Path,
    *,
    sensor: str = "sentinel-2-l2a",
    bands: Sequence[str] | None = None,
    column: str | None = None,
) -> Pairs:
    """Images and labels of the same names -> {name: (pixels [C, H, W], NaN where missing, classes [H, W], 0 unknown)}.

    labels: a folder of label rasters or vector labels, or one file of vector labels for all images.
    """
    images, labeled = ({p.stem: p for p in list_files(source, vectors=True)} for source in (rasters, labels))
    if Path(labels).is_file():
        labeled = dict.fromkeys(images, Path(labels))
    names = sorted(images.keys() & labeled.keys())
    if len(names) < 2:
        raise ContractError("rasters", f"{len(names)} pair(s)", "at least 2, to leave one out", "files of other names")
    classes = label_grids([(images[name], labeled[name]) for name in names], column)
    pixels = [read_scene(images[name], sensor, bands=bands).measured() for name in names]
    return dict(zip(names, zip(pixels, classes, strict=True), strict=True))


@dataclass(frozen=True)
class Patches:
    """N patches of a clear class in M windows of WINDOW x WINDOW patches, of all rasters."""

    windows: np.ndarray  # [M, C, H, W], each embedded by itself, so that no token sees another window
    label: np.ndarray  # [N] class numbers
    place: np.ndarray  # [N] which patch, counted through all windows
    window: np.ndarray  # [N] its window
    raster: np.ndarray  # [N] name of its raster


def cut_patches(pairs: Pairs, P: int) -> Patches:
    """Windows of rasters, and their P x P patches with a dominant class."""
    side, windows, classes, names = P * WINDOW, [], [], []
    for name, pair in pairs.items():
        H, W = (n // side * side for n in pair[1].shape)
        windows.append(rearrange(pair[0][:, :H, :W], "C (h a) (w b) -> (h w) C a b", a=side, b=side))
        classes.append(rearrange(pair[1][:H, :W], "(h a) (w b) -> (h w) a b", a=side, b=side))
        names += [name] * len(classes[-1])
    label, place = evaluate.patch_labels(np.concatenate(classes), P)
    window = place // WINDOW**2
    return Patches(np.concatenate(windows), label, place, window, np.array(names)[window])


def probe_patches(
    clay: Clay,
    pairs: Pairs,
    *,
    sensor: str = "sentinel-2-l2a",
    bands: Sequence[str] | None = None,
    gsd: float | None = None,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> pd.DataFrame:
    """Land cover of single patches of rasters, by a linear probe.

    Two splits: "rasters", each tested with the others as training (another land, another season), and "windows", a
    random half of all windows tested with the other half as training (the same land).
    score: balanced accuracy, averaged over rasters and seeds (training patches, halves, random weights and filters).
    Classes absent from the training part are left out. Intervals: over resampled windows.
    Rows: split, features, kind, score, low, high, each raster's score, and the lead over the best baseline (margin)
    and over the pixel statistics (over_pixels).
    """
    patches = cut_patches(pairs, clay.model.config.patch_size)
    metadata = dict(sensor=sensor, bands=bands, gsd=gsd, check=False)
    sets = evaluate.patch_features(clay, patches.windows, patches.place, seeds=seeds, **metadata)
    tables = []
    for split in ("rasters", "windows"):
        predictions = []
        for seed in range(seeds):
            features = {name: versions[seed % len(versions)] for name, versions in sets.items()}
            parts = split_patches(patches, split, seed)
            predictions += [predict_patches(features, patches, *masks, seed) for masks in parts]
        tables.append(score_patches(pd.concat(predictions, ignore_index=True), bootstraps).assign(split=split))
    table = pd.concat(tables, ignore_index=True)
    return table[["split", *(c for c in table if c != "split")]]


def split_patches(patches: Patches, split: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Boolean masks [N] of training and test patches; every patch is tested once."""
    if split == "rasters":
        for name in np.unique(patches.raster):
            yield patches.raster != name, patches.raster == name
    else:
        half = np.random.default_rng(seed).permutation(len(patches.windows)) % 2 == 0
        for train in (half[patches.window], ~half[patches.window]):
            yield train, ~train


def predict_patches(
    features: Mapping[str, np.ndarray], patches: Patches, train: np.ndarray, test: np.ndarray, seed: int
) -> pd.DataFrame:
    """`probes.predict` for features [N, D] of patches, with a column raster.

    Test patches of a class without training patches are left out, with a warning by the first seed.
    """
    rng, y = np.random.default_rng(seed), patches.label
    lost = np.setdiff1d(y[test], y[train]).tolist()
    if lost and seed == 0:
        names = ", ".join(np.unique(patches.raster[test]))
        warn(f"{np.isin(y[test], lost).sum()} test patches of {names} are left out: no training patch of class {lost}")
    drawn = [rng.permutation(np.flatnonzero(train & (y == c)))[:PATCHES_PER_CLASS] for c in np.unique(y[train])]
    kept, tested = np.concatenate(drawn), np.flatnonzero(test & np.isin(y, y[train]))
    groups = dict(train_groups=patches.window[kept], test_groups=patches.window[tested])
    pairs = {name: (x[kept], x[tested]) for name, x in features.items()}
    table = probes.predict(pairs, y[kept], y[tested], **groups, which=["linear"], seed=seed)
    return table.assign(raster=patches.raster[tested][table["chip"].to_numpy()])


def score_patches(predictions: pd.DataFrame, bootstraps: int) -> pd.DataFrame:
    """Balanced accuracy with intervals, of each feature set and of the models' lead over the baselines."""
    by_raster: dict[str, dict[str, np.ndarray]] = {}  # feature set -> raster -> [1 + bootstraps]
    for k, (raster, part) in enumerate(predictions.groupby("raster")):
        part = part.assign(group=codes(part["group"]), hit=part["label"] == part["prediction"])
        options = dict(groups=part["group"].max() + 1, bootstraps=bootstraps, seed=k, skip_empty=True)
        for name, subset in part.groupby("features", sort=False):
            scores = resample(subset["hit"], subset["group"], stratum=codes(subset["label"]), **options)
            by_raster.setdefault(name, {})[raster] = scores
    mean = {name: np.mean(list(scores.values()), axis=0) for name, scores in by_raster.items()}
    simple = [name for name in mean if probes.kind_of(name) == "baseline"]
    best = max(simple, key=lambda name: mean[name][0])
    pixels = next((name for name in simple if name.startswith("pixel")), best)
    rows = []
    for name, values in mean.items():
        row = {"features": name, "kind": probes.kind_of(name), **_columns("score", values)}
        row |= {raster: scores[0] for raster, scores in by_raster[name].items()}
        if name not in simple:
            row |= _columns("margin", values - mean[best]) | _columns("over_pixels", values - mean[pixels])
            row |= {"baseline": best}
        rows.append(row)
    return pd.DataFrame(rows)


def _columns(name: str, values: np.ndarray) -> dict[str, float]:
    """A resampled score and its interval as columns of a table."""
    ends = ("low", "high") if name == "score" else (f"{name}_low", f"{name}_high")
    return dict(zip((name, *ends), interval(values), strict=True))
