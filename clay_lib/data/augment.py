"""Augmentation: counter-based random numbers, flips, and random shifts of brightness and color."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from clay_lib.datacube import Datacube

# Standard deviations, of all bands together and of each band by itself: gains in powers of e, offsets in the sensor's
# standard deviations.
GAIN, BAND_GAIN, OFFSET, BAND_OFFSET = 0.3, 0.2, 0.5, 0.3

UP_DOWN, LEFT_RIGHT = 1, 2  # bits of a flip, 0 to 3


@dataclass(frozen=True)
class Draws:
    """Random numbers of one batch, the same for a chip in every process.

    Counter-based, not drawn in sequence: SplitMix64 (Steele et al. 2014) of the batch's key, the chip's
    place and a number.
    """

    key: tuple[int, ...]  # of the batch
    places: np.ndarray  # [B] each chip's place in the batch of all ranks together

    def __call__(self, stream: str, count: int) -> np.ndarray:
        """[B, count] uniform in [0, 1), float32; every stream is independent of the others."""
        key = np.random.SeedSequence([*self.key, *stream.encode()]).generate_state(1, np.uint64)
        x = (self.places.astype(np.uint64)[:, None] << np.uint64(32)) + np.arange(1, count + 1, dtype=np.uint64)
        x = key + x * np.uint64(0x9E3779B97F4A7C15)  # unsigned arithmetic wraps around, as intended
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x ^ (x >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)

    def batch(self, stream: str, below: int) -> int:
        """One integer from 0 to below - 1 for all chips of the batch, the same on every rank."""
        return int(np.random.default_rng([*self.key, *stream.encode()]).integers(below))


def flipped(pixels: np.ndarray, flip: int) -> np.ndarray:
    """[..., H, W] mirrored according to the bits of flip: a view."""
    return pixels[..., :: -1 if flip & UP_DOWN else 1, :: -1 if flip & LEFT_RIGHT else 1]


def shifted(cube: Datacube, draws: Draws, *, share: float) -> Datacube:
    """A share of the samples with other gains and offsets [B, C, H, W], and their place and time zeroed.

    The shifted image is also the target and the input of a live teacher: it simulates another camera or haze.
    """
    C = cube.pixels.shape[1]
    chosen = torch.from_numpy(draws("shifted", 1) < share)  # [B, 1]
    noise = torch.from_numpy(draws("shifts", 2 + 2 * C)).mul(2).sub(1).mul(math.sqrt(3))  # uniform, unit variance
    gain = (GAIN * noise[:, :1] + BAND_GAIN * noise[:, 2 : 2 + C]).exp()  # [B, C]
    offset = OFFSET * noise[:, 1:2] + BAND_OFFSET * noise[:, 2 + C :]  # [B, C]
    gain, offset = torch.where(chosen, gain, 1.0), torch.where(chosen, offset, 0.0)
    pixels = cube.pixels * gain[:, :, None, None] + offset[:, :, None, None]
    pixels = pixels if cube.valid is None else pixels * cube.valid
    kept = 1.0 - chosen.float()
    return replace(cube, pixels=pixels, time=cube.time * kept, latlon=cube.latlon * kept)


def drop_bands(cube: Datacube, draws: Draws, *, drop_all: float, drop_half: float) -> Datacube:
    """The input with bands zeroed in some samples of known place; the target stays the complete cube.

    A share drop_all of them loses every band, a share drop_half a random half (at least one band is kept).
    """
    C, device = cube.pixels.shape[1], cube.pixels.device
    draw, ranks = (torch.from_numpy(draws(stream, n)).to(device) for stream, n in (("drop", 1), ("bands", C)))
    kept = torch.where(draw < drop_all, 0, torch.where(draw < drop_all + drop_half, (C + 1) // 2, C))  # [B, 1]
    known = cube.latlon.abs().sum(1, keepdim=True) > 0  # [B, 1]
    keep = (ranks.argsort(dim=1) < kept) | ~known  # [B, C]
    return cube.with_pixels(cube.pixels * keep[:, :, None, None])
