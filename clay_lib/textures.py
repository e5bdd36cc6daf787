"""A teacher that needs no download: fixed statistics of colour and texture, by hand-made filters.

It is not DINOv2, has learned nothing and knows no object: it says how bright and how coloured an image is, how much
it varies at four scales, how directed that variation is, and how the scales hang together. That is much where land
cover is told by its texture (on 500 aerial images of ten classes its output gives kNN-20 0.81 by cosine, where random
convolutions give 0.51) and little where it is not. Sources: oriented energies, Freeman and Adelson 1991; statistics of them as a
description of texture, Portilla and Simoncelli 2000.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.contract import ContractError

SCALES, ORIENTATIONS = 4, 6  # octaves; angles over half a turn
KERNEL, WAVELENGTH, SPREAD = 9, 4.0, 2.0  # of a Gabor filter, pixels of its octave
FLOOR = 0.02  # standard deviations of the sensor: what counts as flat
CLIP = 4.0  # standardised features beyond it say no more
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (0.5, -0.5, 0.0), (0.5, 0.5, -1.0))  # brightness, red - green, yellow - blue


class TextureTeacher(nn.Module):
    """Normalised RGB [B, 3, H, W] -> [B, dim], without gradient, float32. A flip changes it little (cosine above 0.97).

    The features are standardised by MEAN and STD and turned by a fixed random matrix of orthonormal rows, so that
    angles between images stay what they were (dim >= 47) and no output stands for one feature.
    """

    stand_in = False

    def __init__(self, *, dim: int, size: int, seed: int):
        super().__init__()
        self.dim, self.size, self.seed = dim, size, seed
        generator = torch.Generator().manual_seed(seed)
        wide = max(dim, len(MEAN))
        turn = torch.linalg.qr(torch.randn(wide, wide, generator=generator, dtype=torch.float64))[0]
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))
        turn = turn[: len(MEAN), :dim].round(decimals=6)  # the same on machines whose last digits differ
        self.register_buffer("projection", turn.float().contiguous())

    def train(self, mode: bool = True) -> TextureTeacher:
        return super().train(False)

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        with torch.autocast(rgb.device.type, enabled=False):
            rgb = F.interpolate(
                rgb.float(), (self.size, self.size), mode="bicubic", align_corners=False, antialias=True
            )
            standard = (texture_statistics(rgb) - self.mean) / self.std
            return standard.clamp(-CLIP, CLIP) @ self.projection.float()


def texture_teacher(dim: int = 256, *, size: int = 128, seed: int = 0) -> TextureTeacher:
    """size: side in pixels to which the RGB is resized, a multiple of 8; it sets what "coarse" and "fine" mean."""
    if size < 64 or size % 8:
        raise ContractError(
            "size", found=size, expected="a multiple of 8, at least 64", cause="three octaves below it are looked at"
        )
    return TextureTeacher(dim=dim, size=size, seed=seed).eval()


def texture_statistics(rgb: Tensor) -> Tensor:
    """Normalised RGB [B, 3, H, W] -> [B, 47]: 12 of colour, then by octave 7 or 8 of brightness and 2 of colour."""
    x = torch.einsum("oc, bchw -> bohw", rgb.new_tensor(OPPONENT), rgb)
    mean, std = x.mean((2, 3)), x.std((2, 3))
    colour = _standard(x)
    pairs = [(colour[:, i] * colour[:, j]).mean((1, 2)) for i, j in ((0, 1), (0, 2), (1, 2))]
    found = [*mean.T, *(std + FLOOR).log().T, *colour.pow(3).mean((2, 3)).clamp(-5, 5).T, *pairs]
    bank = _gabor_bank().to(rgb)
    angle = torch.arange(ORIENTATIONS, device=rgb.device) * (2 * math.pi / ORIENTATIONS)  # a half turn is a whole one
    coarser = None
    for _ in range(SCALES):
        energy = _energies(x[:, :1], bank)  # [B, O, h, w]
        whole = energy.mean((2, 3))
        level = whole.mean(1) + FLOOR
        found += [level.log(), (energy + FLOOR).log().std((2, 3)).mean(1)]
        here = energy.mean(1) + FLOOR
        found.append((_harmonic(energy, angle) / here).mean((1, 2)))  # edges: directed at their own place
        found += [_harmonic(whole, turns * angle) / level for turns in (1, 2)]  # rows and grids: directed as a whole
        log_energy = _standard(here.log()[:, None])[:, 0]
        found.append((log_energy * _standard(x[:, :1])[:, 0]).mean((1, 2)))  # is the bright or the dark part rough?
        if coarser is not None:
            found.append((F.avg_pool2d(coarser[:, None], 2)[:, 0] * log_energy).mean((1, 2)))
        coarser = log_energy
        fine = x[:, 1:] - F.avg_pool2d(F.pad(x[:, 1:], (1, 1, 1, 1), mode="reflect"), 3, 1)
        found += [*((fine.abs().mean((2, 3)) + FLOOR).log() - level.log()[:, None]).T]
        x = _halved(x)
    return torch.stack(found, dim=1)


def _gabor_bank() -> Tensor:
    """[2 * ORIENTATIONS, 1, K, K]: even and odd filters in turn, of no mean and unit norm a pair."""
    reach = torch.arange(KERNEL) - KERNEL // 2
    y, x = torch.meshgrid(reach, reach, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * SPREAD**2))
    pairs = []
    for angle in (math.pi * k / ORIENTATIONS for k in range(ORIENTATIONS)):
        phase = 2 * math.pi / WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle))
        even, odd = window * phase.cos(), window * phase.sin()
        even = even - window * (even.sum() / window.sum())
        pair = torch.stack([even, odd])
        pairs.append(pair / pair.norm())
    return torch.cat(pairs)[:, None]


def _energies(x: Tensor, bank: Tensor) -> Tensor:
    """[B, 1, h, w] -> [B, O, h, w]: amplitude of each orientation at each place."""
    seen = F.conv2d(F.pad(x, (KERNEL // 2,) * 4, mode="reflect"), bank)
    return torch.hypot(seen[:, 0::2], seen[:, 1::2])


def _harmonic(energy: Tensor, angle: Tensor) -> Tensor:
    """[B, O, ...] -> [B, ...]: how far the energies prefer a direction, whichever it is."""
    shape = (-1,) + (1,) * (energy.ndim - 2)
    return torch.hypot(*((energy * wave.view(shape)).mean(1) for wave in (angle.cos(), angle.sin())))


def _standard(x: Tensor) -> Tensor:
    """[B, C, h, w] -> no mean, about unit spread over each image; what is flat stays near zero."""
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + FLOOR)


def _halved(x: Tensor) -> Tensor:
    """[B, C, h, w] -> every second pixel after a binomial blur."""
    row = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


# Over 110 training chips (64 x 64) of the mini-world from each of seven sensors, seed 0. In the order of the features.
# fmt: off
MEAN = (
    0.13, 0.0026, 0.052, -1.4, -2.6, -2.5, 0.36, 0.065, 0.13, 0.064, 0.27, 0.24, -2.4, 0.58, 0.17, 0.053, 0.032,
    0.13, -1.1, -1.1, -2.3, 0.59, 0.19, 0.077, 0.031, 0.14, 0.6, -1.2, -1.2, -2.1, 0.58, 0.19, 0.085, 0.038, 0.13,
    0.56, -1.4, -1.3, -2, 0.54, 0.18, 0.093, 0.05, 0.098, 0.46, -1.5, -1.4,
)
STD = (
    1.3, 0.13, 0.39, 0.92, 0.54, 0.81, 1, 0.42, 0.52, 0.42, 0.44, 0.29, 0.79, 0.22, 0.073, 0.083, 0.032, 0.27, 0.63,
    0.73, 0.82, 0.22, 0.078, 0.092, 0.044, 0.3, 0.25, 0.71, 0.69, 0.84, 0.2, 0.066, 0.082, 0.04, 0.31, 0.23, 0.74,
    0.69, 0.85, 0.17, 0.057, 0.069, 0.034, 0.32, 0.24, 0.73, 0.72,
)
# fmt: on
