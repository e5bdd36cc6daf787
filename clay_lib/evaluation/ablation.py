"""Ablation: the same model with less information about an image, or with parts of the image removed.

    blind = withhold(clay, "time")                  # a Clay like any other: embed, reconstruct, embed_chips(blind, ...)
    table = removal_study(clay, pixels, sensor)     # patches removed from images without holes

Since the model always takes a number for each of the four, "off" means:
    wavelengths     every band gets the bands' mean wavelength, so that all have the same kernels and only their sum
                    counts
    gsd             a tenth of the pixel size: positions then code distances that are ten times too short (there is no
                    code for an unknown pixel size)
    place, time     zeros, the code for unknown; training drops them now and then, so that the model has met it
    all             the four together
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace

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


# -- metadata switched off -------------------------------------------------------------------------------------------


def without(cube: Datacube, off: str) -> Datacube:
    """The same pixels with one piece of metadata (or all) switched off."""
    if off not in SETTINGS:
        raise ContractError("off", off, f"one of {SETTINGS}", "another name for it")
    changes = {
        "wavelengths": {"waves": torch.full_like(cube.waves, float(cube.waves.mean()))},
        "gsd": {"gsd": cube.gsd * WRONG_GSD},
        "place": {"latlon": torch.zeros_like(cube.latlon)},
        "time": {"time": torch.zeros_like(cube.time)},
    }
    changes["all"] = {k: v for change in changes.values() for k, v in change.items()}
    return replace(cube, **changes[off])


def withhold(clay: Clay, off: str) -> Clay:
    """A Clay of the same weights that never gets `off`, whatever the image says."""

    class Withheld(Clay):
        def cube(self, *args, **kwargs) -> Datacube:
            return without(super().cube(*args, **kwargs), off)

    return Withheld(clay.model, reading=clay.reading)


def cosine_change(full: np.ndarray, ablated: np.ndarray, *, groups, bootstraps: int = 1000) -> pd.Series:
    """Mean cosine of each chip's two embeddings [N, D], with its interval; and for scale, that of different chips.

    cosine, low, high; unrelated: the mean cosine of embeddings of different chips, one of either kind. A change is
    large where cosine comes near unrelated.
    """
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (full, ablated))
    value, low, high = interval(resample((a * b).sum(1), groups, bootstraps=bootstraps))
    n = len(a)
    unrelated = float(a.sum(0) @ b.sum(0) - (a * b).sum()) / (n * (n - 1))
    return pd.Series({"cosine": value, "low": low, "high": high, "unrelated": unrelated})


# -- parts of the image removed --------------------------------------------------------------------------------------


def scattered(rows: int, columns: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """[rows, columns] bool, True in a share of the cells, drawn independently."""
    return (rng.permutation(rows * columns) < round(share * rows * columns)).reshape(rows, columns)


def cloud(rows: int, columns: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """The same share as one connected region with a ragged edge, grown from a random cell at random speeds."""
    delay, inside = rng.random((rows, columns)), np.zeros((rows, columns), bool)
    front = [(0.0, int(rng.integers(rows)), int(rng.integers(columns)))]  # a heap of (time of arrival, row, column)
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

    "left out" of the sequence, filled with "zero" in native values, or with the sensor's "mean". One row a chip, shape
    ("scattered" patches or one connected "cloud"), share, draw and rule: class_token and patch_mean are cosines with
    those of the complete image. pixels, sensor, metadata: as `Clay.embed`; H and W are cropped to a multiple of P.
    """
    native, sensor, metadata = _open(clay, pixels, sensor, metadata)
    full, fills = clay.embed(native, sensor, **metadata), (np.nan, 0.0, _mean(native, sensor, metadata))
    rows = []
    for shape, share, draw, removed in _holes(native, clay.model.config.patch_size, shares, draws, seed):
        for rule, fill in zip(RULES, fills, strict=True):
            out = clay.embed(np.where(removed, fill, native), sensor, **metadata)
            cosines = zip(cosine_similarity(out.chip, full.chip), cosine_similarity(out.mean, full.mean), strict=True)
            for chip, (token, mean) in enumerate(cosines):
                case = {"chip": chip, "shape": shape, "share": share, "draw": draw, "rule": rule}
                rows.append(case | {"class_token": token.item(), "patch_mean": mean.item()})
    return pd.DataFrame(rows)


def fill_study(
    clay: Clay,
    pixels,
    sensor: str | Sensor,
    *,
    shares: Sequence[float] = (0.1, 0.3, 0.5),
    limits: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    draws: int = 3,
    seed: int = 0,
    **metadata,
) -> pd.DataFrame:
    """How holes in partly valid patches are best filled, and from which share of valid pixels (min_valid).

    Holes are cut pixel by pixel. "patch mean" is what `encoder.fill_holes` does, "band mean" fills in the sensor's
    mean. One row a chip, shape, share, draw, min_valid and fill: class_token is the cosine with that of the complete
    image, patches the mean cosine of the kept tokens of partly valid patches with those of the complete image.
    """
    native, sensor, metadata = _open(clay, pixels, sensor, metadata)
    full, P = clay.embed(native, sensor, **metadata), clay.model.config.patch_size
    mean, rows = _mean(native, sensor, metadata), []
    for shape, share, draw, removed in _holes(native, 1, shares, draws, seed):
        H, W = removed.shape
        valid = 1 - removed.reshape(H // P, P, W // P, P).mean((1, 3))  # [h, w] share of valid pixels
        for limit in limits:
            kept = (valid > 0) & (valid >= limit)
            partly = torch.from_numpy(kept & (valid < 1))
            dropped = np.kron(~kept, np.ones((P, P), bool))
            filled = np.where(dropped, np.nan, np.where(removed, mean, native))
            for fill, image in {"patch mean": np.where(removed, np.nan, native), "band mean": filled}.items():
                out = clay.embed(image, sensor, min_valid=limit, **metadata)
                tokens = cosine_similarity(out.patches, full.patches, dim=-1)[:, partly].nanmean(1).tolist()
                chips = cosine_similarity(out.chip, full.chip).tolist()
                case = {"shape": shape, "share": share, "draw": draw, "min_valid": limit, "fill": fill}
                for chip, (token, patches) in enumerate(zip(chips, tokens, strict=True)):
                    rows.append({"chip": chip, **case, "class_token": token, "patches": patches})
    return pd.DataFrame(rows)


def _open(clay: Clay, pixels, sensor, metadata: dict) -> tuple[np.ndarray, Sensor, dict]:
    """Native values [B, C, H, W], cropped to complete patches, and the image's metadata."""
    sensor, P = SENSORS.resolve(sensor), clay.model.config.patch_size
    image = open_image(pixels, sensor, bands=metadata.pop("bands", None), nodata=metadata.pop("nodata", None))
    own = {name: getattr(image, name) for name in ("bands", "when", "lat", "lon", "gsd", "in_decibel")}
    H, W = (side // P * P for side in image.pixels.shape[-2:])
    return image.pixels[..., :H, :W], sensor, own | metadata | {"check": False}


def _mean(native: np.ndarray, sensor: Sensor, metadata: dict) -> np.ndarray:
    """The sensor's means in native values, [C, 1, 1]."""
    zeros = np.zeros((native.shape[1], 1, 1))
    return sensor.denormalize(zeros, metadata["bands"], in_decibel=metadata["in_decibel"])


def _holes(native: np.ndarray, cell: int, shares, draws: int, seed: int) -> Iterator[tuple]:
    """(shape, share, draw, [H, W] bool), made of squares of `cell` pixels."""
    H, W = native.shape[-2:]
    for k, shape in enumerate(SHAPES):
        for share in shares:
            for draw in range(draws):
                rng = np.random.default_rng([seed, draw, k, round(1000 * share)])
                removed = (scattered, cloud)[k](H // cell, W // cell, share, rng)
                yield shape, share, draw, np.kron(removed, np.ones((cell, cell), bool))
