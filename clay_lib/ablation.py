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

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube
from clay_lib.intervals import interval, resample
from clay_lib.model import Clay

SETTINGS = ("wavelengths", "gsd", "place", "time", "all")
WRONG_GSD = 0.1  # of the true one


def without(cube: Datacube, off: str) -> Datacube:
    """The same pixels, of which one thing (or all) is not told."""
    if off not in SETTINGS:
        raise ContractError("off", found=off, expected=f"one of {SETTINGS}", cause="another name for it")
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
