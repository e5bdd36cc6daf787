"""Transfer: frozen weights probed on real images outside their training data, compared with baselines.

Images are split by the number in their names, since neighbors in number are often neighbors on the ground; classes are
matched by name. Which features represent an image (class token, mean or spread of its patches, at what size) is chosen
on training folds.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from clay_lib.clay import Clay
from clay_lib.data.chips import world_chips
from clay_lib.data.label_files import label_grids
from clay_lib.data.scenes import read_scene
from clay_lib.errors import ContractError
from clay_lib.evaluation import baselines, evaluate, probes
from clay_lib.evaluation.patches import probe_patches, read_rasters
from clay_lib.evaluation.reconstruction import reconstruction_table
from clay_lib.sensors import SENSORS

RGB = ("red", "green", "blue")
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
SIZES = (64, 128, 256)  # sides in pixels


def transfer(
    weights: str,
    *,
    images: str = "",
    test: str = "",
    rasters: str = "",
    labels: str = "",
    points: str = "",
    column: str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    when: str | None = None,
    world: bool = False,
    sensor: str = "",
    bands: list[str | None] | None = None,
    gsd: float | None = None,
    sizes: list[int] | None = None,
    first_test: int | None = None,
    seeds: int = 5,
    out: str = "",
    audit: str = "",
) -> int:
    """Probe frozen weights on labeled images or rasters, and compare them with baselines.

    Args:
        weights: a file of weights
        images: a folder of class folders of images whose names end in a number
        test: a folder like `images` to test on; some of the classes may be missing there
        rasters: a folder of GeoTIFFs
        labels: rasters of class numbers on the grids of `rasters`, 0 and nodata unlabeled; or polygons or points in
            GeoJSON, GeoPackage or shapefiles: a folder with the same names, or one file
        points: a GeoTIFF whose single pixels are labeled, in the file `labels`
        column: of polygons or points, with their classes; by default the only one of text or integers
        scale: of the values of `points`, native = value * scale + offset
        offset: see scale
        when: date of `points`, such as 1999-11-18
        world: measure on the mini-world's test land instead: land cover, and reconstruction of hidden patches
        sensor: gives the pixels' statistics and wavelengths; naip for images, sentinel-2-l2a for rasters
        bands: of the sensor, in the file's order, null for one to leave out (points); red, green and blue for images
        gsd: meters per pixel of the images as they are
        sizes: sides in pixels to which images are resized; 64, 128 and 256
        first_test: images from this number on are for testing; null: the last third of all numbers
        seeds: of random baselines, random weights and the patches that are drawn
        out: a CSV file for the table
        audit: a folder for an audit of the labels of images, points or the world: near-duplicates across the split,
            likely wrong labels, calibration, and how many labels are enough, as figures and tables
    """
    kinds = {"images": images, "rasters": rasters, "points": points, "world": world}
    if sum(map(bool, kinds.values())) != 1 or bool(rasters or points) != bool(labels):
        expected = "images, or rasters with labels, or points with labels, or world"
        raise ContractError("data", kinds | {"labels": labels}, expected, "none, or more than one kind of data")
    if seeds < 1:
        raise ContractError("seeds", seeds, "at least 1", "a typing mistake")
    if audit and rasters:
        raise ContractError("audit", "rasters", "images, points or world", "patches of a raster have no list of labels")
    clay = Clay.load(weights)
    if images:
        by_size = {size: read_images(images, size) for size in sizes or SIZES}
        if test:
            by_size, first_test = _join_test({size: (part, read_images(test, size)) for size, part in by_size.items()})
        options = dict(sensor=sensor or "naip", bands=bands or RGB, gsd=gsd or 0.3, first_test=first_test)
        evaluation, chosen = probe_images(clay, by_size, **options, seeds=seeds)
        print(f"read-out chosen on training folds: {chosen}")
    elif points:
        reading = dict(bands=bands, scale=scale, offset=offset, when=when, column=column)
        pixels, classes, metadata = read_points(points, labels, sensor or "landsat-c2l2-sr", **reading)
        evaluation = probe_points(clay, pixels, classes, **metadata, seeds=seeds)
    elif world:
        print(reconstruction_table(clay, seeds=seeds).round(3).to_string(index=False))
        evaluation = probe_world(clay, seeds=seeds)
    if rasters:
        options = dict(sensor=sensor or "sentinel-2-l2a", bands=bands)
        pairs = read_rasters(rasters, labels, column=column, **options)
        table = probe_patches(clay, pairs, gsd=gsd, seeds=seeds, **options)
    else:
        table = evaluation.summary
    print(table.round(3).to_string(index=False, na_rep="–"))
    if out:
        table.round(4).to_csv(out, index=False)
    if audit:
        evaluation.audit().write(audit)
    return 0


def _evaluate_both(sets, labels, *, groups, test, own_groups, seeds: int, bootstraps: int) -> evaluate.Evaluation:
    """Accuracy over the given split and a random one; own_groups [N]: groups to resample in both."""
    options = dict(metric="accuracy", seeds=seeds, bootstraps=bootstraps)
    splits = (dict(groups=groups, test=test), {})
    parts = [evaluate.evaluate_features(sets, labels, **split, **options) for split in splits]
    tables = [part.predictions.assign(group=own_groups[part.predictions["chip"]]) for part in parts]
    return evaluate.Evaluation(pd.concat(tables, ignore_index=True), "accuracy", bootstraps, parts[0].data)


@dataclass(frozen=True)
class Images:
    """N labeled RGB images of one size."""

    pixels: np.ndarray  # [N, 3, H, W] uint8
    labels: np.ndarray  # [N] names of classes
    numbers: np.ndarray  # [N] the number in each file's name


def read_images(folder: str | Path, size: int) -> Images:
    """RGB images of a folder of class folders, resized to size x size by averaging (or bicubic, upwards)."""
    from PIL import Image

    paths = [p for p in sorted(Path(folder).glob("*/*")) if p.suffix.lower() in SUFFIXES]
    numbers = [re.search(r"\d+$", p.stem) for p in paths]
    wrong = [p.name for p, number in zip(paths, numbers, strict=True) if number is None]
    if not paths or wrong:
        cause = "another layout of folders" if not paths else "names without numbers, by which neighbors are split"
        expected = f"CLASS/NAME + NUMBER with one of {SUFFIXES}"
        raise ContractError("images", wrong[:3] or f"no image in {folder}", expected, cause)
    pixels = []
    for path in paths:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        method = Image.Resampling.BOX if size < min(rgb.size) else Image.Resampling.BICUBIC
        pixels.append(np.asarray(rgb.resize((size, size), method)).transpose(2, 0, 1))
    labels = np.array([p.parent.name for p in paths])
    return Images(np.stack(pixels), labels, np.array([int(number[0]) for number in numbers]))


def _join_test(by_size: Mapping[int, tuple[Images, Images]]) -> tuple[dict[int, Images], int]:
    """Training and test images as one set, and the number of the first test image."""
    train, test = next(iter(by_size.values()))
    known, found = (np.unique(images.labels).tolist() for images in (train, test))
    if unknown := sorted({*found} - {*known}):
        cause = "a misspelled folder, or a class that training lacks"
        raise ContractError("test", f"classes {unknown}", f"some of {known}", cause)
    first = int(train.numbers.max()) + 1
    joined = {}
    for size, (a, b) in by_size.items():
        numbers = np.concatenate([a.numbers, first + b.numbers])
        joined[size] = Images(np.concatenate([a.pixels, b.pixels]), np.concatenate([a.labels, b.labels]), numbers)
    return joined, first


def probe_images(
    clay: Clay,
    images: Mapping[int, Images],
    *,
    sensor: str = "naip",
    bands: Sequence[str] = RGB,
    gsd: float = 0.3,
    native: int = 256,
    first_test: int | None = None,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> tuple[evaluate.Evaluation, str]:
    """The same images at several sizes {side: Images} -> their evaluation, and the name of the chosen read-out.

    gsd: meters per pixel where an image is `native` pixels wide. Splits: "given", by number, and "random", whose test
    images mostly took part in the choice of the read-out.
    """
    first = next(iter(images.values()))
    labels, numbers, bands = first.labels, first.numbers, list(bands)
    distinct = np.unique(numbers)
    train = numbers < (distinct[2 * len(distinct) // 3] if first_test is None else first_test)
    known, classes = len(np.unique(numbers[train])), len(np.unique(labels[train]))
    if known < 4 or train.all() or classes < 2:
        found = f"{known} numbers in {classes} class(es) for training, {(~train).sum()} image(s) to test"
        expected = "4 numbers and 2 classes or more for training, 1 image or more to test"
        raise ContractError("images", found, expected, "too few images, or first_test outside of their numbers")
    folds = np.digitize(numbers, np.quantile(numbers[train], [0.25, 0.5, 0.75]))  # quarters of neighbors
    folds[~train] = 4

    def embed(model: Clay) -> dict[str, np.ndarray]:
        options = dict(sensor=sensor, bands=bands, check=False)
        scaled = {size: gsd * native / size for size in images}
        by_size = {s: evaluate.embed_features(model, images[s].pixels, gsd=d, **options) for s, d in scaled.items()}
        return readout_candidates(by_size)

    def choose(candidates: Mapping[str, np.ndarray]) -> str:
        return probes.choose_features({name: x[train] for name, x in candidates.items()}, labels[train], folds[train])

    features, random = embed(clay), [embed(Clay.random(clay.model.config, seed=k)) for k in range(seeds)]
    chosen, largest = choose(features), f"{max(images)} px"
    keys = {"class token": f"class token, {largest}", "patch mean": f"patch mean, {largest}", "chosen read-out": chosen}
    sets = {f"Clay, {name}": [features[key]] for name, key in keys.items()}
    for size, part in images.items():
        x = SENSORS[sensor].normalize(part.pixels, bands).astype(np.float32)
        sets[f"pixel statistics, {size} px"] = [baselines.pixel_statistics(x)]
        sets[f"random convolutions, {size} px"] = [baselines.random_convolutions(x, seed=k) for k in range(seeds)]
        whitened = [baselines.whitened_convolutions(x, seed=k) for k in range(seeds)]
        sets[f"random convolutions with ZCA, {size} px"] = whitened
        if np.issubdtype(part.pixels.dtype, np.uint8):
            sets[f"pixel histogram, {size} px"] = [baselines.color_histogram(part.pixels)]
    sets["random weights, class token"] = [x[keys["class token"]] for x in random]
    sets["random weights, chosen read-out"] = [x[choose(x)] for x in random]
    # the random split has no blocks: every image is independent in both
    options = dict(groups=folds, test=~train, own_groups=np.arange(len(labels)))
    return _evaluate_both(sets, labels, **options, seeds=seeds, bootstraps=bootstraps), chosen


def readout_candidates(embedded: Mapping[int, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Candidate features of an image: one or two of its three kinds, at one size or concatenated over all sizes."""
    candidates = {f"{name}, {size} px": x for size, part in embedded.items() for name, x in part.items()}
    kinds = list(next(iter(embedded.values())))
    for group in [[kind] for kind in kinds] + [list(pair) for pair in combinations(kinds, 2)]:
        for sizes in [[size] for size in embedded] + [list(embedded)]:
            name = f"{' and '.join(group)}, {' and '.join(map(str, sizes))} px"
            candidates.setdefault(name, np.hstack([embedded[size][kind] for size in sizes for kind in group]))
    return candidates


def cut_points(pixels: np.ndarray, labels: np.ndarray, size: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels [C, H, W] and labels [H, W], 0 unknown -> chips [N, C, size, size], labels [N], groups [N].

    The labeled pixel is the chip's center, row and column size // 2; chips that leave the scene or hold missing pixels
    are left out. Labeled pixels come in clumps drawn on a map, so that they are not independent, and chips of nearby
    clumps share pixels: chips that share a pixel, directly or through others, are one group.
    """
    from scipy.ndimage import label, maximum_filter

    if pixels.shape[1:] != labels.shape:
        raise ContractError("labels", labels.shape, pixels.shape[1:], "labels of another grid: resample them first")
    half = size // 2
    inside = np.zeros(labels.shape, bool)
    inside[half : labels.shape[0] - (size - half) + 1, half : labels.shape[1] - (size - half) + 1] = True
    rows, columns = np.nonzero((labels != 0) & inside)
    corners = zip(rows - half, columns - half, strict=True)
    chips = np.stack([pixels[:, r : r + size, c : c + size] for r, c in corners])
    clumps = label(maximum_filter(labels > 0, size), np.ones((3, 3)))[0]
    complete = np.isfinite(chips).all((1, 2, 3))
    groups = clumps[rows, columns][complete]
    if len(set(groups)) < 2:
        found = f"{complete.sum()} labeled pixels in {len(set(groups))} place(s)"
        cause = "all labels lie within one chip's width of each other: use a smaller size"
        raise ContractError("labels", found, "at least 2 places", cause)
    return chips[complete], labels[rows, columns][complete], groups


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
    **metadata,
) -> evaluate.Evaluation:
    """Balanced accuracy over labeled pixels: as `evaluate`, with one more baseline, the pixel alone.

    pixels: native values [C, H, W]; labels: [H, W], 0 unknown. metadata: when, lat, lon, gsd of the scene.
    """
    chips, y, groups = cut_points(pixels, labels, size)
    sets = evaluate.chip_features(clay, chips, sensor=sensor, bands=bands, seeds=seeds, check=False, **metadata)
    sets["pixel alone"] = [SENSORS[sensor].normalize(chips, bands)[:, :, size // 2, size // 2]]
    return evaluate.evaluate_features(sets, y, groups=groups, metric="balanced", seeds=seeds, bootstraps=bootstraps)


def read_points(
    scene: str | Path, labels: str | Path, sensor: str, *, column: str | None = None, **reading
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Pixels [C, H, W] with NaN where missing, labels [H, W], and the scene's metadata for `probe_points`.

    labels: a label raster on the scene's grid, or vector labels. reading: bands, scale, offset and when, as for
    `read_scene`.
    """
    image, (classes,) = read_scene(scene, sensor, **reading), label_grids([(Path(scene), Path(labels))], column)
    return image.measured(), classes, image.metadata | {"sensor": sensor, "bands": list(image.bands)}


def probe_world(
    clay: Clay, *, chips: int = 660, test_chips: int = 330, seeds: int = 5, bootstraps: int = 1000
) -> evaluate.Evaluation:
    """Probes of the commonest land cover of Sentinel-2 chips of 64 px, every place on two dates.

    Split "given": train and test places lie in different blocks of the world. Split "random": all chips mixed.
    Both dates of a place are resampled together for the intervals.
    """
    counts = {"train": chips, "test": test_chips}
    parts = [world_chips("sentinel-2-l2a", n, split=split, dates=2) for split, n in counts.items()]
    pixels, labels, lat, lon = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("pixels", "land_cover", "lat", "lon")
    )
    when = [text for part in parts for text in part.when.tolist()]
    metadata = dict(sensor="sentinel-2-l2a", when=when, lat=lat.tolist(), lon=lon.tolist())
    sets = evaluate.chip_features(clay, pixels, seeds=seeds, n_filters=128, **metadata)
    test = np.arange(len(labels)) >= len(parts[0])
    place = np.unique(np.stack([test, lat, lon]), axis=1, return_inverse=True)[1].ravel()
    options = dict(groups=place, test=test, own_groups=place)
    return _evaluate_both(sets, labels, **options, seeds=seeds, bootstraps=bootstraps)
