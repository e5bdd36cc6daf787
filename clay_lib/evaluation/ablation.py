"""Ablation: the same model, told less about an image than there is to tell.

    blind = withhold(clay, "time")                  # a Clay like any other: embed, reconstruct, embed_chips(blind, ...)

What "off" means, since the model always takes a number for each of the four:
    wavelengths     every band is said to be of the bands' mean wavelength, so that all get the same kernels and only
                    their sum is seen
    gsd             pixels are said to be a tenth of their size: positions then code distances that are ten times too
                    short (there is no code for an unknown pixel size)
    place, time     zeros, which is how unknown is coded; training drops them now and then, so the model has met it
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


def without(cube: Datacube, off: str) -> Datacube:
    """The same pixels, of which one thing (or all) is not told."""
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
    """A Clay of the same weights that is never told `off`, whatever it is handed."""

    class Withheld(Clay):
        def cube(self, *args, **about) -> Datacube:
            return without(super().cube(*args, **about), off)

    return Withheld(clay.model, reading=clay.reading)


def cosine_change(told: np.ndarray, untold: np.ndarray, *, groups, bootstraps: int = 1000) -> pd.Series:
    """Mean cosine of each chip's two embeddings [N, D], with its interval; and for scale, that of two unlike chips.

    cosine, low, high; unlike: the mean cosine of embeddings of different chips, one told and one not. A change is
    large where cosine comes near unlike.
    """
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (told, untold))
    value, low, high = interval(resample((a * b).sum(1), groups, bootstraps=bootstraps))
    n = len(a)
    unlike = float(a.sum(0) @ b.sum(0) - (a * b).sum()) / (n * (n - 1))
    return pd.Series({"cosine": value, "low": low, "high": high, "unlike": unlike})


# ---- What holes do to an embedding, measured: parts of whole images are taken away, and the class token i ----

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHAPES = ("scattered", "cloud")
RULES = ("left out", "zero", "mean")


def scattered(high: int, wide: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """[high, wide] bool, True in a share of the cells, each for itself."""
    return (rng.permutation(high * wide) < round(share * high * wide)).reshape(high, wide)


def cloud(high: int, wide: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """The same share as one connected piece with a ragged edge: the cells that a fire of random speed reaches first."""
    speed, burnt = rng.random((high, wide)), np.zeros((high, wide), bool)
    edge = [(0.0, int(rng.integers(high)), int(rng.integers(wide)))]
    left = round(share * high * wide)
    while left:
        time, y, x = heapq.heappop(edge)
        if burnt[y, x]:
            continue
        burnt[y, x], left = True, left - 1
        for j, i in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= j < high and 0 <= i < wide and not burnt[j, i]:
                heapq.heappush(edge, (time + speed[j, i], j, i))
    return burnt


def removal_study(
    clay: Clay,
    pixels,
    sensor: str | Sensor,
    *,
    shares: Sequence[float] = SHARES,
    draws: int = 5,
    seed: int = 0,
    **about,
) -> pd.DataFrame:
    """How far embeddings move as whole patches of whole images are removed, by three rules.

    "left out" of the sequence, filled with "zero" in native numbers, or with the sensor's "mean". One row a chip,
    shape ("scattered" patches or one connected "cloud"), share, draw and rule: class_token and patch_mean are cosines to
    those of the full image. pixels, sensor, about: as `Clay.embed`; H and W are cropped to whole patches.
    """
    native, sensor, about = _whole(clay, pixels, sensor, about)
    full = clay.embed(native, sensor, **about)
    rows = []
    for shape, share, draw, gone in _holes(native, clay.model.config.patch_size, shares, draws, seed):
        for rule in RULES:
            fill = {"left out": np.nan, "zero": 0.0, "mean": _mean(native, sensor, about)}[rule]
            out = clay.embed(np.where(gone, fill, native), sensor, **about)
            cosines = zip(cosine_similarity(out.chip, full.chip), cosine_similarity(out.mean, full.mean), strict=True)
            for chip, (token, mean) in enumerate(cosines):
                found = {"class_token": token.item(), "patch_mean": mean.item()}
                rows.append({"chip": chip, "shape": shape, "share": share, "draw": draw, "rule": rule} | found)
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
    **about,
) -> pd.DataFrame:
    """How holes in partly valid patches are best filled, and from what share of valid pixels on (min_valid).

    Holes are cut pixel by pixel. "patch mean" is what `encoder.fill_holes` does, "band mean" puts the sensor's mean
    there. One row a chip, shape, share, draw, min_valid and fill: class_token is the cosine to the full image's,
    patches the mean cosine of the tokens of partly valid patches that were kept to the full image's at their place.
    """
    native, sensor, about = _whole(clay, pixels, sensor, about)
    full, P = clay.embed(native, sensor, **about), clay.model.config.patch_size
    mean, rows = _mean(native, sensor, about), []
    for shape, share, draw, gone in _holes(native, 1, shares, draws, seed):
        H, W = gone.shape
        measured = 1 - gone.reshape(H // P, P, W // P, P).mean((1, 3))
        for limit in limits:
            kept = (measured > 0) & (measured >= limit)
            partly = torch.from_numpy(kept & (measured < 1))
            dropped = np.kron(~kept, np.ones((P, P), bool))
            filled = np.where(dropped, np.nan, np.where(gone, mean, native))
            for fill, image in {"patch mean": np.where(gone, np.nan, native), "band mean": filled}.items():
                out = clay.embed(image, sensor, min_valid=limit, **about)
                tokens = cosine_similarity(out.patches, full.patches, dim=-1)[:, partly].nanmean(1).tolist()
                chips = cosine_similarity(out.chip, full.chip).tolist()
                key = {"shape": shape, "share": share, "draw": draw, "min_valid": limit, "fill": fill}
                found = enumerate(zip(chips, tokens, strict=True))
                rows += [{"chip": chip, **key, "class_token": c, "patches": t} for chip, (c, t) in found]
    return pd.DataFrame(rows)


def _whole(clay: Clay, pixels, sensor, about: dict) -> tuple[np.ndarray, Sensor, dict]:
    """Native numbers [B, C, H, W] of whole patches, and what is known of them, each looked at once."""
    sensor, P = SENSORS.resolve(sensor), clay.model.config.patch_size
    image = open_image(pixels, sensor, bands=about.pop("bands", None), nodata=about.pop("nodata", None))
    known = {name: getattr(image, name) for name in ("bands", "when", "lat", "lon", "gsd", "in_decibel")}
    H, W = (side // P * P for side in image.pixels.shape[-2:])
    return image.pixels[..., :H, :W], sensor, known | about | {"check": False}


def _mean(native: np.ndarray, sensor: Sensor, about: dict) -> np.ndarray:
    """The sensor's means in native numbers, [C, 1, 1]."""
    zeros = np.zeros((native.shape[1], 1, 1))
    return sensor.denormalize(zeros, about["bands"], in_decibel=about["in_decibel"])


def _holes(native: np.ndarray, cell: int, shares, draws: int, seed: int) -> Iterator[tuple]:
    """(shape, share, draw, [H, W] bool), cut in squares of `cell` pixels."""
    H, W = native.shape[-2:]
    for k, shape in enumerate(SHAPES):
        for share in shares:
            for draw in range(draws):
                rng = np.random.default_rng([seed, draw, k, round(1000 * share)])
                gone = (scattered, cloud)[k](H // cell, W // cell, share, rng)
                yield shape, share, draw, np.kron(gone, np.ones((cell, cell), bool))
