"""Hand-crafted baselines: features of a chip without any learning, to compare a model with.

Every function takes pixels [N, C, H, W] and returns features [N, D]. One more baseline, the model's own architecture
with random weights, is `Clay.random(config, seed=...)`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from clay_lib.errors import ContractError


def pixel_statistics(pixels: np.ndarray) -> np.ndarray:
    """Mean, then standard deviation, of each band: [N, C, H, W] -> [N, 2C]. Color and contrast, no shape."""
    pixels = _check_pixels(pixels).astype(np.float64)
    return np.concatenate([pixels.mean((2, 3)), pixels.std((2, 3))], axis=1)


def color_histogram(pixels: np.ndarray, *, bins: int = 16, limits: tuple[float, float] = (0.0, 256.0)) -> np.ndarray:
    """Share of the pixels in each of `bins` equal bins of each band: [N, C, H, W] -> [N, C * bins].

    limits: lowest and highest value, by default of 8 bits; values outside count in the outermost bin.
    """
    pixels = _check_pixels(pixels)
    if bins < 2 or not limits[0] < limits[1]:
        found = f"bins={bins}, limits={limits}"
        raise ContractError("color_histogram", found, "at least 2 bins, low < high", "the limits were swapped")
    bin_of = ((pixels - limits[0]) * (bins / (limits[1] - limits[0]))).astype(np.int64).clip(0, bins - 1)
    N, C, H, W = bin_of.shape
    offset = bins * np.arange(N * C).reshape(N, C, 1, 1)  # each band of each chip counts in its own bins
    counts = np.bincount((bin_of + offset).ravel(), minlength=N * C * bins)
    return counts.reshape(N, C * bins) / (H * W)


def random_convolutions(
    pixels: np.ndarray,
    *,
    n_filters: int = 256,
    seed: int = 0,
    sides: tuple[int, ...] = (3, 5),
    maximum: bool = True,
) -> np.ndarray:
    """Texture by random filters: normalized pixels [N, C, H, W] -> [N, 2 * n_filters].

    As many filters of 3 x 3 as of 5 x 5 pixels (sides), over all bands, with weights N(0, 1) scaled to unit norm; ReLU;
    then mean and maximum over the chip, without padding. maximum=False: the mean alone, [N, n_filters]. Filters are not
    centered, so that they respond to color beside texture; centered ones score much lower. The idea is MOSAIKS (Rolf et
    al. 2021, Nature Communications 12:4392, doi 10.1038/s41467-021-24638-z), whose filters are patches of the images.
    Normalize with the sensor's statistics or the training set's, never with each chip's own.
    """
    pixels = _check_pixels(pixels)
    N, C, H, W = pixels.shape
    if n_filters < len(sides) or min(H, W) < max(sides):
        found = f"n_filters={n_filters}, chips of {H} x {W} pixels"
        expected = f"n_filters >= {len(sides)} and at least {max(sides)} x {max(sides)} pixels"
        raise ContractError("random_convolutions", found, expected, "chips too small, or axes not [N, C, H, W]")
    generator = torch.Generator().manual_seed(seed)
    counts = [len(part) for part in np.array_split(np.arange(n_filters), len(sides))]
    banks = [_filters(count, C, side, generator) for count, side in zip(counts, sides, strict=True)]
    step = max(1, 2**24 // (n_filters * H * W))  # 64 MiB of responses at a time
    rows = []
    for start in range(0, N, step):
        chips = torch.from_numpy(pixels[start : start + step])
        responses = [F.relu(F.conv2d(chips, bank)) for bank in banks]  # [n, filters, H', W'] each
        pooled = [r.mean((2, 3)) for r in responses] + ([r.amax((2, 3)) for r in responses] if maximum else [])
        rows.append(torch.cat(pooled, dim=1))
    return torch.cat(rows).numpy()


def _filters(count: int, bands: int, side: int, generator: torch.Generator) -> torch.Tensor:
    weights = torch.randn(count, bands, side, side, generator=generator)
    return F.normalize(weights.flatten(1)).view_as(weights)


def _check_pixels(pixels) -> np.ndarray:
    pixels = check_finite("pixels", np.asarray(pixels), 4, "[N, C, H, W]", "one chip without its batch axis")
    return np.ascontiguousarray(pixels, np.float32)


def check_finite(field: str, x: np.ndarray, ndim: int, shape: str, cause: str) -> np.ndarray:
    """x itself, if it has `ndim` axes, none of them empty, and holds finite numbers; else a ContractError."""
    if x.ndim != ndim or 0 in x.shape or not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
        raise ContractError(field, f"shape {x.shape}, {x.dtype}", f"numbers {shape}, no axis of length 0", cause)
    if not np.isfinite(x).all():
        bad = np.unique(np.nonzero(~np.isfinite(x))[0])
        found = f"NaN or infinity in {len(bad)} of {len(x)} chips, first {bad[0]}"
        raise ContractError(field, found, "finite numbers", "nodata pixels were left in: fill or drop them")
    return x
