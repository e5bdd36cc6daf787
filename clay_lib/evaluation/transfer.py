"""Transfer: what frozen weights know of real images that they never saw, beside floors that know nothing.

    clay transfer WEIGHTS --images FOLDER                          images in class folders
    clay transfer WEIGHTS --rasters FOLDER --labels FOLDER         rasters, and label rasters of the same names
    clay transfer WEIGHTS --points FILE --labels FILE              one raster, and one of its labelled pixels
    clay transfer WEIGHTS --world                                  the mini-world's own test land

Images are split by the number in their names, never at random: neighbours in number are often neighbours on the
ground. Rasters are left out in turn, or blocks of them (transfer_patches). How an image is best read out of the model (class token, mean or spread of
its patches, at which size) is chosen on folds of the images before the split by number; the same choice is then made
for twins of the model with random weights, one for each seed. Beside it stands a random split, in which most of the
images that are asked have helped to choose: there, the rows of the chosen read-out flatter for that reason too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from einops import rearrange

from clay_lib.clay import Clay, embed_chips, reconstruction_scores
from clay_lib.data.chips import Chips, world_chips
from clay_lib.data.rasters import read_scene
from clay_lib.errors import ContractError
from clay_lib.evaluation import probes
from clay_lib.evaluation.evaluate import Evaluation, describe, embed_features, evaluate_features
from clay_lib.evaluation.intervals import interval, of_groups
from clay_lib.sensors import SENSORS, WORLD_SENSORS

AGREE = 0.75  # share of a patch's pixels that must have its class
PATCHES_A_CLASS = 100  # to train on
WINDOW = 7  # patches a side
SPLITS = ("rasters", "windows")


@dataclass(frozen=True)
class Patches:
    """N patches of sure class out of M windows of all rasters."""

    raster: np.ndarray  # [N] names
    label: np.ndarray  # [N] class numbers
    place: np.ndarray  # [N] which token, counted through all windows
    pixels: np.ndarray  # [N, C, P, P]
    windows: np.ndarray  # [M, C, H, W]

    @property
    def window(self) -> np.ndarray:
        """[N] the window of each patch."""
        return self.place // WINDOW**2


def read_rasters(
    rasters, labels, raster_bands: Sequence[int] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of files of the same name -> {name: (pixels [C, H, W], classes [H, W])}."""
    import rasterio

    names = sorted({p.name for p in Path(rasters).glob("*.tif*")} & {p.name for p in Path(labels).glob("*.tif*")})
    if len(names) < 2:
        cause = "files under other names, or one raster: then none can be left out"
        raise ContractError("rasters", f"{len(names)} pair(s)", "at least 2", cause)
    pairs = {}
    for name in names:
        with rasterio.open(Path(rasters) / name) as a, rasterio.open(Path(labels) / name) as b:
            pairs[Path(name).stem] = a.read(list(raster_bands) if raster_bands else None), b.read(1)
        pixels, classes = pairs[Path(name).stem]
        if pixels.shape[1:] != classes.shape:
            cause = "labels of another grid: resample them first"
            raise ContractError("labels", f"{name}: {classes.shape}", pixels.shape[1:], cause)
    return pairs


def probe_patches(
    clay: Clay,
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    sensor: str = "sentinel-2-l2a",
    bands: Sequence[str] | None = None,
    gsd: float | None = None,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> pd.DataFrame:
    """Patches of which AGREE of the pixels have one class, not 0; classes that the training part lacks are not asked.

    score: balanced accuracy, the mean of each class's share of right answers, averaged over rasters, and over seeds,
    which draw the training patches, the halves and the random weights and filters. Intervals: windows drawn anew.
    Rows: split, features, kind, score, low, high, each raster's score, and the lead over the best floor
    and over the pixel statistics.
    """
    P = clay.model.config.patch_size
    about = dict(sensor=sensor, bands=bands, gsd=gsd, check=False)
    parts = cut_patches(pairs, P)
    own = {"Clay": [clay], "random weights": [Clay.random(clay.model.config, seed=k) for k in range(seeds)]}
    sets: dict[str, list[np.ndarray]] = {}
    for who, models in own.items():
        sets[f"{who}, patch tokens"] = [_tokens(m, parts, about) for m in models]
        sets[f"{who}, each patch by itself"] = [_alone(m, parts.pixels, about) for m in models]
    seen = SENSORS[sensor].normalize(parts.pixels, bands)
    sets["pixel statistics"] = [probes.pixel_statistics(seen)]
    sets["random convolutions"] = [probes.random_convolutions(seen, seed=k) for k in range(seeds)]
    rows = []
    for split in SPLITS:
        answers = [
            told.assign(features=name)
            for seed in range(seeds)
            for train, test in _splits(parts, split, seed)
            for name, versions in sets.items()
            for told in [_answers(versions[seed % len(versions)], parts, train, test, seed)]
        ]
        rows.append(_balanced(pd.concat(answers, ignore_index=True), bootstraps).assign(split=split))
    table = pd.concat(rows, ignore_index=True)
    return table[["split", *(c for c in table if c != "split")]]


def cut_patches(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], P: int) -> Patches:
    """The patches of sure class, and the windows they lie in."""
    side, found, windows, first = P * WINDOW, [], [], 0
    for name, (pixels, classes) in pairs.items():
        rows, columns = (n // side * side for n in classes.shape)
        cut = rearrange(pixels[:, :rows, :columns], "C (h a) (w b) -> (h w) C a b", a=side, b=side)
        inside = rearrange(classes[:rows, :columns], "(h a p) (w b q) -> (h w a b) (p q)", a=WINDOW, b=WINDOW, p=P, q=P)
        single = rearrange(cut, "n C (a p) (b q) -> (n a b) C p q", p=P, q=P)
        counts = np.stack([np.bincount(patch, minlength=256) for patch in inside])
        counts[:, 0] = 0
        sure = np.flatnonzero(counts.max(1) >= AGREE * P * P)
        place = first * WINDOW**2 + sure
        found.append((np.full(len(sure), name), counts.argmax(1)[sure], place, single[sure]))
        windows.append(cut)
        first += len(cut)
    return Patches(*(np.concatenate(column) for column in zip(*found, strict=True)), np.concatenate(windows))


def _tokens(clay: Clay, parts: Patches, about: Mapping) -> np.ndarray:
    made = [clay.embed(parts.windows[i : i + 16], **about).patches for i in range(0, len(parts.windows), 16)]
    return np.concatenate([tokens.flatten(0, 2).cpu().numpy() for tokens in made])[parts.place]


def _alone(clay: Clay, patches: np.ndarray, about: Mapping) -> np.ndarray:
    return np.concatenate([clay.embed(patches[i : i + 512], **about).chip for i in range(0, len(patches), 512)])


def _splits(parts: Patches, split: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Boolean masks of training and test patches; every patch is tested once."""
    if split == "rasters":
        for name in np.unique(parts.raster):
            yield parts.raster != name, parts.raster == name
    else:
        half = np.random.default_rng(seed).permutation(len(parts.windows)) % 2 == 0
        for train in (half[parts.window], ~half[parts.window]):
            yield train, ~train


def _answers(x: np.ndarray, parts: Patches, train: np.ndarray, test: np.ndarray, seed: int) -> pd.DataFrame:
    """One row a test patch whose class is known from training: raster, window, label, answer."""
    rng, y = np.random.default_rng(seed), parts.label
    drawn = [rng.permutation(np.flatnonzero(train & (y == c)))[:PATCHES_A_CLASS] for c in np.unique(y[train])]
    kept, asked = np.concatenate(drawn), np.flatnonzero(test & np.isin(y, y[train]))
    a, b = probes.standardise(x[kept], x[asked])
    c = probes.choose_c(a, y[kept], groups=parts.window[kept], seed=seed)
    answer = probes.fit_linear(a, y[kept], c).predict(b)
    table = {"raster": parts.raster[asked], "window": parts.window[asked], "label": y[asked], "answer": answer}
    return pd.DataFrame(table)


def _balanced(answers: pd.DataFrame, bootstraps: int) -> pd.DataFrame:
    """Balanced accuracies with intervals, of each feature set and of its lead over the best floor."""
    answers = answers.assign(hit=answers["label"] == answers["answer"])
    rng, names = np.random.default_rng(0), list(answers["features"].unique())
    scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}  # name -> raster -> [1 + bootstraps]
    for raster, part in answers.groupby("raster"):
        windows = np.unique(part["window"])
        even = np.full(len(windows), 1 / len(windows))
        # How often each window counts: all of them once, then as drawn, the same for every feature set.
        times = np.vstack([np.ones(len(windows)), rng.multinomial(len(windows), even, bootstraps)])
        for name, own in part.groupby("features"):
            per = own.pivot_table(index="window", columns="label", values="hit", aggfunc=["sum", "count"], fill_value=0)
            hits, count = (times @ per[k].reindex(windows, fill_value=0).to_numpy(float) for k in ("sum", "count"))
            recall = np.where(count > 0, hits / np.maximum(count, 1), np.nan)
            scores[name][raster] = of_groups(np.nanmean(recall, axis=1), len(windows))
    mean = {name: np.mean(list(of.values()), axis=0) for name, of in scores.items()}
    floors = [name for name in names if name.startswith(probes.FLOORS)]
    best = max(floors, key=lambda name: mean[name][0])
    pixels = next((name for name in floors if name.startswith("pixel")), best)
    lines = []
    for name in names:
        value, low, high = interval(mean[name])
        kind = "floor" if name in floors else "model"
        line = {"features": name, "kind": kind, "score": value, "low": low, "high": high}
        line |= {raster: values[0] for raster, values in scores[name].items()}
        if kind == "model":
            for what, floor in (("margin", best), ("over_pixels", pixels)):
                lead, low, high = interval(mean[name] - mean[floor])
                line |= {what: lead, f"{what}_low": low, f"{what}_high": high}
            line["floor"] = best
        lines.append(line)
    return pd.DataFrame(lines)


# ---- Transfer to labelled pixels of one scene: a small chip around each, told by probes, on land that tra ----


def cut_points(pixels: np.ndarray, labels: np.ndarray, size: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels [C, H, W] and labels [H, W], 0 unknown -> chips [N, C, size, size], labels [N], groups [N].

    The labelled pixel is the chip's middle, row and column size // 2; chips that would leave the scene, or that hold
    missing pixels, are left out.
    """
    from scipy.ndimage import label, maximum_filter

    if pixels.shape[1:] != labels.shape:
        cause = "labels of another grid: resample them first"
        raise ContractError("labels", labels.shape, pixels.shape[1:], cause)
    half = size // 2
    inside = [(half <= at) & (at <= n - (size - half)) for at, n in zip(np.nonzero(labels), labels.shape, strict=True)]
    row, column = (at[inside[0] & inside[1]] for at in np.nonzero(labels))
    chips = np.stack([pixels[:, r - half : r - half + size, c - half : c - half + size]
                      for r, c in zip(row, column, strict=True)])  # fmt: skip
    clumps = label(maximum_filter(labels > 0, size), np.ones((3, 3)))[0]
    whole = np.isfinite(chips).all((1, 2, 3))
    if len(set(clumps[row, column][whole])) < 2:
        found = f"{whole.sum()} labelled pixels in {len(set(clumps[row, column][whole]))} place(s)"
        cause = "all labels lie closer together than a chip is wide: take a smaller one"
        raise ContractError("labels", found, "at least 2 places", cause)
    return chips[whole], labels[row, column][whole], clumps[row, column][whole]


def probe_points(
    clay: Clay,
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    sensor: str,
    bands=None,
    size: int = 8,
    seeds: int = 5,
    bootstraps: int = 1000,
    **about,
) -> Evaluation:
    """Balanced accuracy over labelled pixels: as `evaluation.evaluate`, with one more floor, the pixel alone.

    pixels: native numbers [C, H, W]; labels: [H, W], 0 unknown. about: when, lat, lon, gsd of the scene.
    """
    chips, y, groups = cut_points(pixels, labels, size)
    sets = describe(clay, chips, sensor=sensor, bands=bands, seeds=seeds, check=False, **about)
    middle = SENSORS[sensor].normalize(chips, bands)[:, :, size // 2, size // 2]
    sets["pixel alone"] = [middle]
    return evaluate_features(sets, y, groups=groups, metric="balanced", seeds=seeds, bootstraps=bootstraps)


def read_points(scene: str | Path, labels: str | Path, sensor: str, **reading) -> tuple[np.ndarray, np.ndarray, dict]:
    """Pixels [C, H, W] with NaN where missing, labels [H, W], and what `probe_points` wants to know besides.

    reading: bands, scale, offset and when, as `scenes.read_scene` takes them.
    """
    import rasterio

    view = read_scene(scene, sensor, **reading)
    with rasterio.open(labels) as file:
        classes = file.read(1)
    about = dict(sensor=sensor, bands=list(view.bands), gsd=view.gsd, when=view.when, lat=view.lat, lon=view.lon)
    return np.where(view.missing, np.nan, view.pixels), classes, about | {"in_decibel": view.in_decibel}


# ---- What weights know of the mini-world: land cover told on land of its test split, and hidden patches r ----


def probe_world(
    clay: Clay, *, chips: int = 660, test_chips: int = 330, seeds: int = 5, bootstraps: int = 1000
) -> Evaluation:
    """The commonest land cover of Sentinel-2 chips of 64 px, every place at two dates.

    Split "given": train and test places lie in different blocks of the world. Split "random": all chips mixed.
    Both dates of a place are drawn together for the intervals.
    """
    train, test = (
        world_chips("sentinel-2-l2a", n, split=s, dates=2) for n, s in ((chips, "train"), (test_chips, "test"))
    )
    twins = [Clay.random(clay.model.config, seed=k) for k in range(seeds)]
    sets = {}
    for who, models in {"Clay": [clay], "random weights": twins}.items():
        pairs = [[embed_chips(model, part) for part in (train, test)] for model in models]
        for kind in ("class token", "patch mean"):
            sets[f"{who}, {kind}"] = [(a[kind], b[kind]) for a, b in pairs]
        sets[f"{who}, both"] = [tuple(np.hstack(list(part.values())) for part in pair) for pair in pairs]
    a, b = (SENSORS["sentinel-2-l2a"].normalize(part.pixels) for part in (train, test))
    sets["pixel statistics"] = [(probes.pixel_statistics(a), probes.pixel_statistics(b))]
    random = probes.random_convolutions
    sets["random convolutions"] = [
        (random(a, n_filters=128, seed=k), random(b, n_filters=128, seed=k)) for k in range(seeds)
    ]
    pooled = {name: [np.concatenate(pair) for pair in versions] for name, versions in sets.items()}
    y = np.concatenate([train.land_cover, test.land_cover])
    place = np.concatenate([_places(train), len(train) + _places(test)])
    test_part = np.arange(len(y)) >= len(train)
    known = dict(metric="accuracy", seeds=seeds, bootstraps=bootstraps)
    parts = [
        evaluate_features(pooled, y, groups=place, test=test_part, **known),
        evaluate_features(pooled, y, **known),
    ]
    answers = pd.concat([p.answers.assign(group=place[p.answers["chip"]]) for p in parts], ignore_index=True)
    return Evaluation(answers, "accuracy", bootstraps)


def rebuild_world(clay: Clay, *, chips: int = 110, sizes: tuple[int, ...] = (64, 128), seeds: int = 5) -> pd.DataFrame:
    """Error of hidden pixels over that of guessing each chip's visible mean, three quarters hidden, by sensor.

    ratio: mean over `seeds` draws of what is hidden, low and high the least and the most of them.
    """
    rows = []
    for sensor in WORLD_SENSORS:
        for size in sizes:
            part = world_chips(sensor, chips, split="test", size=size)
            tables = [reconstruction_scores(clay, part, seed=k) for k in range(seeds)]
            ratios = [table["error"].mean() / table["mean_error"].mean() for table in tables]
            row = {"sensor": sensor, "size": size, "ratio": np.mean(ratios), "low": min(ratios), "high": max(ratios)}
            rows.append(
                {**row, "error": np.mean([table["error"].mean() for table in tables]), "chips": chips, "draws": seeds}
            )
    return pd.DataFrame(rows)


def _places(chips: Chips) -> np.ndarray:
    """[N] one number a place."""
    return np.unique(np.stack([chips.lat, chips.lon]), axis=1, return_inverse=True)[1].ravel()


# ---- Transfer: what frozen weights know of real images that they never saw, beside floors that know nothi ----

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


@dataclass(frozen=True)
class Images:
    """N labelled RGB images of one size."""

    pixels: np.ndarray  # [N, 3, H, W] uint8
    labels: np.ndarray  # [N] names of classes
    numbers: np.ndarray  # [N] the number in each file's name


def transfer(
    weights: str,
    *,
    images: str = "",
    rasters: str = "",
    labels: str = "",
    points: str = "",
    scale: float = 1.0,
    offset: float = 0.0,
    when: str | None = None,
    world: bool = False,
    sensor: str = "",
    bands: list[str | None] | None = None,
    raster_bands: list[int] | None = None,
    gsd: float | None = None,
    sizes: list[int] | None = None,
    first_test: int | None = None,
    seeds: int = 5,
    out: str = "",
) -> int:
    """Probe frozen weights on real labelled images or rasters, beside floors.

    Args:
        weights: of a Clay
        images: a folder of class folders of images whose names end in a number
        rasters: a folder of GeoTIFFs
        labels: a folder of rasters of class numbers, with the names and the size of the others; 0 is unknown
        points: a GeoTIFF whose single pixels are labelled, in the raster `labels`
        scale: of the numbers of `points`, native = number * scale + offset
        offset: see scale
        when: date of `points`, such as 1999-11-18
        world: measure on the mini-world's test land instead: land cover, and what hidden patches are rebuilt to
        sensor: whose statistics and wavelengths the pixels get; naip for images, sentinel-2-l2a for rasters
        bands: of the sensor, in the file's order, null for one to leave out (points); red, green and blue for images
        raster_bands: numbers of the file's bands to read, from 1
        gsd: metres of a pixel of the images as they are
        sizes: sides in pixels to which images are brought; 64 and 128
        first_test: images from this number on are for testing; null: the last third of all numbers
        seeds: of random floors, random weights and the patches that are drawn
        out: a CSV file for the table
    """
    kinds = {"images": images, "rasters": rasters, "points": points, "world": world}
    if sum(map(bool, kinds.values())) != 1 or bool(rasters or points) != bool(labels):
        cause = "the kinds of data are measured one at a time"
        expected = "images, or rasters with labels, or points with labels, or world"
        raise ContractError("data", kinds | {"labels": labels}, expected, cause)
    clay = Clay.load(weights)
    if images:
        sizes = sizes or [64, 128]
        known = {size: read_images(images, size) for size in sizes}
        about = dict(sensor=sensor or "naip", bands=bands or ["red", "green", "blue"])
        scale = {"gsd": 0.3 if gsd is None else gsd, "native": 256}
        told, chosen = probe_images(clay, known, **about, **scale, first_test=first_test, seeds=seeds)
        table = told.summary
        print(f"read-out chosen on training folds: {chosen}")
    elif points:
        reading = dict(bands=bands, scale=scale, offset=offset, when=when)
        pixels, classes, about = read_points(points, labels, sensor or "landsat-c2l2-sr", **reading)
        table = probe_points(clay, pixels, classes, **about, seeds=seeds).summary
    elif world:
        print(rebuild_world(clay, seeds=seeds).round(3).to_string(index=False))
        table = probe_world(clay, seeds=seeds).summary
    else:
        pairs = read_rasters(rasters, labels, raster_bands)
        table = probe_patches(clay, pairs, sensor=sensor or "sentinel-2-l2a", bands=bands, gsd=gsd, seeds=seeds)
    print(table.round(3).to_string(index=False, na_rep="–"))
    if out:
        table.round(4).to_csv(out, index=False)
    return 0


# -- images ----------------------------------------------------------------------------------------------------------


def read_images(folder: str | Path, size: int) -> Images:
    """RGB images of a folder of class folders, brought to size x size by averaging (or bicubic, upwards)."""
    from PIL import Image

    found = [p for p in sorted(Path(folder).glob("*/*")) if p.suffix.lower() in SUFFIXES]
    numbered = [(p, re.search(r"(\d+)$", p.stem)) for p in found]
    wrong = [p.name for p, number in numbered if number is None]
    if not found or wrong:
        cause = "another layout of folders" if not found else "names that do not tell neighbours"
        expected = f"CLASS/NAME + NUMBER with one of {SUFFIXES}"
        raise ContractError("images", wrong[:3] or f"no image in {folder}", expected, cause)
    pixels = []
    for path in found:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        way = Image.Resampling.BOX if size < min(rgb.size) else Image.Resampling.BICUBIC
        pixels.append(np.asarray(rgb.resize((size, size), way)).transpose(2, 0, 1))
    numbers = np.array([int(number[1]) for _, number in numbered])
    return Images(np.stack(pixels), np.array([p.parent.name for p in found]), numbers)


def probe_images(
    clay: Clay,
    images: Mapping[int, Images],
    *,
    sensor: str = "naip",
    bands: Sequence[str] = ("red", "green", "blue"),
    gsd: float = 0.3,
    native: int = 256,
    first_test: int | None = None,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> tuple[Evaluation, str]:
    """The same images at several sizes -> what the probes say, and the chosen read-out.

    gsd: metres of a pixel where an image is `native` pixels wide. Splits: "given", by number, and "random", whose test
    images are mostly among those by which the read-out was chosen.
    """
    one = next(iter(images.values()))
    y, numbers = one.labels, one.numbers
    distinct = np.unique(numbers)
    first_test = distinct[2 * len(distinct) // 3] if first_test is None else first_test
    train = numbers < first_test
    folds = np.digitize(numbers, np.quantile(numbers[train], [0.25, 0.5, 0.75]))  # quarters of neighbours
    seen = {s: SENSORS[sensor].normalize(part.pixels, list(bands)).astype(np.float32) for s, part in images.items()}

    def read(model: Clay) -> dict[str, np.ndarray]:
        about = {s: dict(sensor=sensor, bands=list(bands), gsd=gsd * native / s, check=False) for s in images}
        return readouts(
            {s: embed_features(model, part.pixels, batch_size=16, **about[s]) for s, part in images.items()}
        )

    ours = read(clay)
    chosen = choose_readout({name: x[train] for name, x in ours.items()}, y[train], folds[train])
    largest = f"{max(images)} px"
    shown = {
        "class token": f"class token, {largest}",
        "patch mean": f"patch mean, {largest}",
        "chosen read-out": chosen,
    }
    sets = {("Clay, " + name): [ours[key]] for name, key in shown.items()}
    for s, x in seen.items():
        sets[f"pixel statistics, {s} px"] = [probes.pixel_statistics(x)]
        sets[f"random convolutions, {s} px"] = [probes.random_convolutions(x, seed=k) for k in range(seeds)]
        if np.issubdtype(images[s].pixels.dtype, np.uint8):
            sets[f"pixel histogram, {s} px"] = [probes.colour_histogram(images[s].pixels)]
    twins = [read(Clay.random(clay.model.config, seed=k)) for k in range(seeds)]
    sets["random weights, class token"] = [twin[shown["class token"]] for twin in twins]
    best = [choose_readout({n: x[train] for n, x in twin.items()}, y[train], folds[train]) for twin in twins]
    sets["random weights, chosen read-out"] = [twin[key] for twin, key in zip(twins, best, strict=True)]

    known = dict(metric="accuracy", seeds=seeds, bootstraps=bootstraps)
    parts = [evaluate_features(sets, y, groups=folds, test=~train, **known), evaluate_features(sets, y, **known)]
    # the random split has no blocks of its own: every image is its own witness in both
    answers = pd.concat([part.answers.assign(group=part.answers["chip"]) for part in parts], ignore_index=True)
    return Evaluation(answers, "accuracy", bootstraps), chosen


def readouts(embedded: Mapping[int, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Ways to read an image out: one or two of its three descriptions, at one size or at all sizes side by side."""
    single = {f"{name}, {size} px": x for size, part in embedded.items() for name, x in part.items()}
    kinds = list(next(iter(embedded.values())))
    for group in [[kind] for kind in kinds] + [list(pair) for pair in combinations(kinds, 2)]:
        for sizes in [[size] for size in embedded] + [list(embedded)]:
            name = f"{' and '.join(group)}, {' and '.join(map(str, sizes))} px"
            single.setdefault(name, np.hstack([embedded[size][kind] for size in sizes for kind in group]))
    return single


def choose_readout(candidates: Mapping[str, np.ndarray], y: np.ndarray, folds: np.ndarray) -> str:
    """The candidate [N, D] with the best kNN-20 by cosine over the folds: each is answered by the others."""

    def score(x: np.ndarray) -> float:
        hits = 0.0
        for fold in np.unique(folds):
            a, b = probes.standardise(x[folds != fold], x[folds == fold])
            part = probes.knn_score(a, y[folds != fold], b, y[folds == fold], k=20, metric="cosine")
            hits += part * (folds == fold).sum()
        return hits / len(y)

    return max(candidates, key=lambda name: score(candidates[name]))
