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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from clay_lib import probes
from clay_lib.contract import ContractError
from clay_lib.evaluation import Evaluation, embed_features, evaluate_features
from clay_lib.model import Clay
from clay_lib.sensors import SENSORS

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
        raise ContractError("data", found=kinds | {"labels": labels}, expected=expected, cause=cause)
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
        from clay_lib.transfer_points import probe_points, read_points

        reading = dict(bands=bands, scale=scale, offset=offset, when=when)
        pixels, classes, about = read_points(points, labels, sensor or "landsat-c2l2-sr", **reading)
        table = probe_points(clay, pixels, classes, **about, seeds=seeds).summary
    elif world:
        from clay_lib.transfer_world import probe_world, rebuild_world

        print(rebuild_world(clay, seeds=seeds).round(3).to_string(index=False))
        table = probe_world(clay, seeds=seeds).summary
    else:
        from clay_lib.transfer_patches import probe_patches, read_rasters

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
        raise ContractError("images", found=wrong[:3] or f"no image in {folder}", expected=expected, cause=cause)
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
    seen = {s: SENSORS[sensor].normalise(part.pixels, list(bands)).astype(np.float32) for s, part in images.items()}

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
