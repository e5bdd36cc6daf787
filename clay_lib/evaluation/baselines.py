"""Floors: descriptions of a chip that nobody learned. What a model does not beat them by, it does not know.

Every function takes pixels [N, C, H, W] and gives features [N, D]. The third kind of floor, the model's own
architecture with random weights, is `Clay.random(config, seed=...)`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from clay_lib.errors import ContractError


def pixel_statistics(pixels: np.ndarray) -> np.ndarray:
    """Mean, then standard deviation, of each band: [N, C, H, W] -> [N, 2C]. Colour and contrast, no shape."""
    pixels = _pixels(pixels).astype(np.float64)
    return np.concatenate([pixels.mean((2, 3)), pixels.std((2, 3))], axis=1)


def colour_histogram(pixels: np.ndarray, *, bins: int = 16, limits: tuple[float, float] = (0.0, 256.0)) -> np.ndarray:
    """Share of the pixels in each of `bins` equal steps of each band: [N, C, H, W] -> [N, C * bins]. All of colour.

    limits: lowest and highest number, by default of 8 bits; what lies beyond counts in the outermost step.
    """
    pixels = _pixels(pixels)
    if bins < 2 or not limits[0] < limits[1]:
        found, cause = f"bins={bins}, limits={limits}", "limits that were swapped"
        raise ContractError("colour_histogram", found, "2 bins or more, low < high", cause)
    step = ((pixels - limits[0]) * (bins / (limits[1] - limits[0]))).astype(np.int64).clip(0, bins - 1)
    n, bands = step.shape[:2]
    place = step + bins * np.arange(n * bands).reshape(n, bands, 1, 1)
    counts = np.bincount(place.ravel(), minlength=n * bands * bins)
    return counts.reshape(n, bands * bins) / (step.shape[2] * step.shape[3])


def random_convolutions(
    pixels: np.ndarray,
    *,
    n_filters: int = 256,
    seed: int = 0,
    sides: tuple[int, ...] = (3, 5),
    maximum: bool = True,
) -> np.ndarray:
    """Texture that nobody learned: [N, C, H, W] normalised pixels -> [N, F], F = 2 * n_filters.

    As many filters of 3 x 3 as of 5 x 5 (sides), over all bands; weights N(0, 1), scaled to unit norm; ReLU; then
    mean and maximum over the chip, without padding. maximum=False: the mean alone, F = n_filters. A filter keeps its mean, so that it sees colour beside texture: with
    centred filters this floor is much lower. The idea is MOSAIKS (Rolf et al. 2021, Nature Communications 12:4392,
    doi 10.1038/s41467-021-24638-z), whose filters are patches of the images themselves.
    Normalise with the sensor's statistics or the training set's, never with each chip's own.
    """
    pixels = _pixels(pixels)
    n, bands, height, width = pixels.shape
    if n_filters < len(sides) or min(height, width) < max(sides):
        found, largest = f"n_filters={n_filters}, chips of {height} x {width}", max(sides)
        expected = f"n_filters >= {len(sides)}, {largest} x {largest} pixels or more"
        cause = f"chips too small for a {largest} x {largest} filter, or another order than [N, C, H, W]"
        raise ContractError("random_convolutions", found, expected, cause)
    generator = torch.Generator().manual_seed(seed)
    counts = [len(part) for part in np.array_split(np.arange(n_filters), len(sides))]
    banks = [_filters(count, bands, side, generator) for count, side in zip(counts, sides, strict=True)]
    step = max(1, 2**24 // (n_filters * height * width))  # 64 MiB of responses at a time
    rows = []
    for start in range(0, n, step):
        chips = torch.from_numpy(pixels[start : start + step])
        seen = [functional.relu(functional.conv2d(chips, bank)) for bank in banks]
        pooled = [s.mean((2, 3)) for s in seen] + ([s.amax((2, 3)) for s in seen] if maximum else [])
        rows.append(torch.cat(pooled, dim=1))
    return torch.cat(rows).numpy()


def _filters(count: int, bands: int, size: int, generator: torch.Generator) -> torch.Tensor:
    weights = torch.randn(count, bands, size, size, generator=generator)
    return functional.normalize(weights.flatten(1)).view_as(weights)


def _pixels(pixels) -> np.ndarray:
    pixels = finite("pixels", np.asarray(pixels), 4, "[N, C, H, W]", "one chip without its batch axis")
    return np.ascontiguousarray(pixels, np.float32)


def finite(field: str, x: np.ndarray, axes: int, shape: str, cause: str) -> np.ndarray:
    """x, if it is numbers of so many axes, none of them empty, without NaN and infinity."""
    if x.ndim != axes or 0 in x.shape or not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
        expected = f"numbers {shape}, none of them 0 long"
        raise ContractError(field, f"shape {x.shape}, {x.dtype}", expected, cause)
    if not np.isfinite(x).all():
        bad = np.unique(np.nonzero(~np.isfinite(x))[0])
        found = f"NaN or infinity in {len(bad)} of {len(x)} chips, first {bad[0]}"
        cause = "nodata pixels were left in: fill or drop them"
        raise ContractError(field, found, "finite numbers", cause)
    return x
