"""Augmentation of what a sensor saw: brighter, darker, other colours, as another camera or another haze would show it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from clay_lib.datacube import Datacube

if TYPE_CHECKING:
    from clay_lib.datamodule import Draws

# Standard deviations, of all bands together and of each band by itself: gains in e-foldings, offsets in the sensor's
# standard deviations.
GAIN, BAND_GAIN, OFFSET, BAND_OFFSET = 0.3, 0.2, 0.5, 0.3


UP_DOWN, LEFT_RIGHT = 1, 2  # bits of a flip, 0 to 3


def flipped(pixels: np.ndarray, flip: int) -> np.ndarray:
    """[..., H, W] mirrored as the bits of flip say: a view."""
    return pixels[..., :: -1 if flip & UP_DOWN else 1, :: -1 if flip & LEFT_RIGHT else 1]


def shifted(cube: Datacube, draws: Draws, *, share: float) -> Datacube:
    """A share of the samples with other gains and offsets, [B, C, H, W] -> the same; place and time of these are zeroed.

    The changed image is the target as well, and what a live teacher is shown: it is another image, not a spoilt one.
    """
    C = cube.pixels.shape[1]
    chosen = torch.from_numpy(draws("shifted", 1) < share)  # [B, 1]
    even = torch.from_numpy(draws("shifts", 2 + 2 * C)).mul(2).sub(1).mul(math.sqrt(3))  # uniform of unit spread
    gain = (GAIN * even[:, :1] + BAND_GAIN * even[:, 2 : 2 + C]).exp()
    offset = OFFSET * even[:, 1:2] + BAND_OFFSET * even[:, 2 + C :]
    gain, offset = torch.where(chosen, gain, 1.0), torch.where(chosen, offset, 0.0)
    pixels = cube.pixels * gain[:, :, None, None] + offset[:, :, None, None]
    pixels = pixels if cube.valid is None else pixels * cube.valid
    kept = 1.0 - chosen.float()
    return replace(cube, pixels=pixels, time=cube.time * kept, latlon=cube.latlon * kept)
