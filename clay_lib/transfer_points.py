"""Transfer to labelled pixels of one scene: a small chip around each, told by probes, on land that training never saw.

Labelled pixels come in clumps that somebody drew on the map, so pixels of a clump are no independent witnesses, and
chips of neighbouring clumps share pixels. Chips that share a pixel, directly or over others, are therefore one group,
which is never on both sides of the split by blocks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clay_lib.contract import ContractError
from clay_lib.evaluation import Evaluation, describe, evaluate_features
from clay_lib.model import Clay
from clay_lib.scenes import read_scene
from clay_lib.sensors import SENSORS


def cut_points(pixels: np.ndarray, labels: np.ndarray, size: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels [C, H, W] and labels [H, W], 0 unknown -> chips [N, C, size, size], labels [N], groups [N].

    The labelled pixel is the chip's middle, row and column size // 2; chips that would leave the scene, or that hold
    missing pixels, are left out.
    """
    from scipy.ndimage import label, maximum_filter

    if pixels.shape[1:] != labels.shape:
        cause = "labels of another grid: resample them first"
        raise ContractError("labels", found=labels.shape, expected=pixels.shape[1:], cause=cause)
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
        raise ContractError("labels", found=found, expected="at least 2 places", cause=cause)
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
    middle = SENSORS[sensor].normalise(chips, bands)[:, :, size // 2, size // 2]
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
