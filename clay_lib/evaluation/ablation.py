"""Ablation: the same model without some of an image's metadata, or with parts of the image removed.

    ablated = withhold(clay, "time")                # embeds and reconstructs like any Clay
    table = removal_study(clay, pixels, sensor)     # patches removed from images without holes

The model needs a number for each kind of metadata, so "off" means:
    wavelengths     the mean wavelength for every band, so that all share one kernel and only their sum matters
    gsd             a tenth of the true value, since there is no code for an unknown one
    place, time     zeros, the code for unknown, which occurs in training too
    all             the four together
"""

import heapq
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cosine_similarity

from clay_lib.clay import Clay
from clay_lib.data.images import open_image
from clay_lib.datacube import Datacube
from clay_lib.errors import ContractError
from clay_lib.evaluation.intervals import interval, resample
from clay_lib.sensors import SENSORS, Sensor

SETTINGS = ("wavelengths", "gsd", "place", "time", "all")
WRONG_GSD = 0.1  # of the true one
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHAPES = ("scattered", "cloud")
RULES = ("left out", "zero", "mean")


def without(cube: Datacube, off: str) -> Datacube:
    """The same pixels with one piece of metadata (or all) switched off."""
    if off not in SETTINGS:
        raise ContractError("off", off, f"one of {SETTINGS}", "a misspelled setting")
    changes = {
        "wavelengths": {"waves": torch.full_like(cube.waves, float(cube.waves.mean()))},
        "gsd": {"gsd": cube.gsd * WRONG_GSD},
        "place": {"latlon": torch.zeros_like(cube.latlon)},
        "time": {"time": torch.zeros_like(cube.time)},
    }
    changes["all"] = {k: v for change in changes.values() for k, v in change.items()}
    return replace(cube, **changes[off])


def withhold(clay: Clay, off: str) -> Clay:
    """A Clay of the same weights that ignores the metadata `off` of every image."""

    class Withheld(Clay):
        def cube(self, *args, **kwargs) -> Datacube:
            return without(super().cube(*args, **kwargs), off)

    return Withheld(clay.model, reading=clay.reading)


def cosine_change(full: np.ndarray, ablated: np.ndarray, *, groups, bootstraps: int = 1000) -> pd.Series:
    """Mean cosine between each chip's two embeddings [N, D], with its interval.

    cosine, low, high; unrelated: for scale, the mean cosine between one chip's full and another's ablated embedding.
    """
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (full, ablated))
    value, low, high = interval(resample((a * b).sum(1), groups, bootstraps=bootstraps))
    n = len(a)
    unrelated = float(a.sum(0) @ b.sum(0) - (a * b).sum()) / (n * (n - 1))
    return pd.Series({"cosine": value, "low": low, "high": high, "unrelated": unrelated})


def scattered(rows: int, columns: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """[rows, columns] bool, True in a share of the cells, drawn independently."""
    return (rng.permutation(rows * columns) < round(share * rows * columns)).reshape(rows, columns)


def cloud(rows: int, columns: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """The same share as one connected region with a ragged edge, grown from a random cell at random speeds."""
    delay, inside = rng.random((rows, columns)), np.zeros((rows, columns), bool)
    front = [(0.0, int(rng.integers(rows)), int(rng.integers(columns)))]  # heap of (arrival time, row, column)
    left = round(share * rows * columns)
    while left:
        time, y, x = heapq.heappop(front)
        if inside[y, x]:
            continue
        inside[y, x], left = True, left - 1
        for j, i in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= j < rows and 0 <= i < columns and not inside[j, i]:
                heapq.heappush(front, (time + delay[j, i], j, i))
    return inside


def removal_study(
    clay: Clay,
    pixels,
    sensor: str | Sensor,
    *,
    shares: Sequence[float] = SHARES,
    draws: int = 5,
    seed: int = 0,
    **metadata,
) -> pd.DataFrame:
    """How far embeddings move when patches are removed from complete images, by three rules.

    Rules: "left out" of the sequence, filled with "zero" in native values, or with the sensor's "mean". One row a chip,
    shape ("scattered" patches or one connected "cloud"), share, draw and rule: class_token and patch_mean are cosines
    with those of the complete image. pixels, sensor, metadata: as `Clay.embed`; H and W are cropped to a multiple of P.
    The filled numbers go to the encoder as measurements, also zero in every band, which `Clay.embed` takes for a hole.
    """
    sensor, P = SENSORS.resolve(sensor), clay.model.config.patch_size
    image = open_image(pixels, sensor, bands=metadata.pop("bands", None), nodata=metadata.pop("nodata", None))
    metadata["check"] = False
    h, w = (side // P for side in image.pixels.shape[-2:])
    native = image.pixels[..., : h * P, : w * P]  # [B, C, H, W], complete patches
    zeros = np.zeros((native.shape[1], 1, 1))
    mean = sensor.denormalize(zeros, image.bands, in_decibel=image.in_decibel)  # [C, 1, 1]
    full, rows = clay.embed(replace(image, pixels=native), sensor, **metadata), []
    for (k, shape), share, draw in product(enumerate(SHAPES), shares, range(draws)):
        rng = np.random.default_rng([seed, draw, k, round(1000 * share)])
        removed = np.kron((scattered, cloud)[k](h, w, share, rng), np.ones((P, P), bool))  # [H, W]
        for rule, fill in zip(RULES, (np.nan, 0.0, mean), strict=True):
            filled = np.where(removed, fill, native).astype(np.float32)
            out = clay.embed(replace(image, pixels=filled), sensor, **metadata)
            cosines = zip(cosine_similarity(out.chip, full.chip), cosine_similarity(out.mean, full.mean), strict=True)
            for chip, (token, patch_mean) in enumerate(cosines):
                case = {"chip": chip, "shape": shape, "share": share, "draw": draw, "rule": rule}
                rows.append(case | {"class_token": token.item(), "patch_mean": patch_mean.item()})
    return pd.DataFrame(rows)
