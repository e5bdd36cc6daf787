"""Hand-crafted baselines: features of a chip without learning, to compare a model with.

Every function takes pixels [N, C, H, W] and returns features [N, D]. One more baseline, the model's own architecture
with random weights, is `Clay.random(config, seed=...)`.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clay_lib.errors import ContractError
from clay_lib.teacher import random_filters


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
        raise ContractError("color_histogram", found, "at least 2 bins, low < high", "the limits are swapped")
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
        raise ContractError("random_convolutions", found, expected, "chips too small, or other axes than [N, C, H, W]")
    generator = torch.Generator().manual_seed(seed)
    counts = [len(part) for part in np.array_split(np.arange(n_filters), len(sides))]
    banks = [random_filters(count, C, side, generator) for count, side in zip(counts, sides, strict=True)]
    step = max(1, 2**24 // (n_filters * H * W))  # 64 MiB of responses at a time
    rows = []
    for start in range(0, N, step):
        chips = torch.from_numpy(pixels[start : start + step])
        responses = [F.relu(F.conv2d(chips, bank)) for bank in banks]  # [n, filters, H', W'] each
        pooled = [r.mean((2, 3)) for r in responses] + ([r.amax((2, 3)) for r in responses] if maximum else [])
        rows.append(torch.cat(pooled, dim=1))
    return torch.cat(rows).numpy()


WINDOWS = 10_000  # on which to whiten
ZCA_RIDGE = 0.1  # added to every direction's variance


def whitened_convolutions(
    pixels: np.ndarray, *, n_filters: int = 256, seed: int = 0, side: int = 3, bias: float = 1.0
) -> np.ndarray:
    """Texture by filters that are whitened windows of the chips: normalized pixels [N, C, H, W] -> [N, 2 * n_filters].

    The method of MOSAIKS (Rolf et al. 2021) and of torchgeo's RCF: windows of side x side pixels, drawn at random from
    these chips, whitened by ZCA and scaled to unit norm; responses to the whitened image beyond +bias and -bias; then
    the mean over the chip.
    """
    pixels = _check_pixels(pixels)
    N, C, H, W = pixels.shape
    if min(H, W) < side:
        cause = "chips too small, or other axes than [N, C, H, W]"
        raise ContractError("whitened_convolutions", f"{H} x {W} pixels", f"at least {side} x {side}", cause)
    rng = np.random.default_rng(seed)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(2, 3))  # [N, C, H', W', s, s]
    chip, y, x = (rng.integers(n, size=WINDOWS) for n in (N, *windows.shape[2:4]))
    drawn = torch.from_numpy(windows[chip, :, y, x].reshape(WINDOWS, -1)).double()  # [WINDOWS, C*s*s]
    mean = drawn.mean(0)
    variance, directions = torch.linalg.eigh(torch.cov(drawn.T))
    whitening = (directions / (variance.clamp(min=0) + ZCA_RIDGE).sqrt()) @ directions.T  # [C*s*s, C*s*s]
    chosen = F.normalize((drawn[:n_filters] - mean) @ whitening)
    filters = chosen @ whitening  # of the image as it is
    offset = (-filters @ mean).float()
    filters = filters.float().view(-1, C, side, side)
    step, rows = max(1, 2**22 // (n_filters * H * W)), []
    for start in range(0, N, step):
        response = F.conv2d(torch.from_numpy(pixels[start : start + step]), filters, offset)  # [n, filters, H', W']
        response = F.softshrink(response, bias)
        both = response.mean((2, 3))
        above = F.relu(response, inplace=True).mean((2, 3))
        rows.append(torch.cat([above, above - both], dim=1))
    return torch.cat(rows).numpy()


def _check_pixels(pixels) -> np.ndarray:
    pixels = check_finite("pixels", np.asarray(pixels), 4, "[N, C, H, W]", "one chip without its batch axis")
    return np.ascontiguousarray(pixels, np.float32)


def check_finite(field: str, x: np.ndarray, ndim: int, shape: str, cause: str) -> np.ndarray:
    """x, after a check that it has `ndim` axes, none of them empty, and finite numbers; else a ContractError."""
    if x.ndim != ndim or 0 in x.shape or not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
        raise ContractError(field, f"shape {x.shape}, {x.dtype}", f"numbers {shape}, no axis of length 0", cause)
    if not np.isfinite(x).all():
        bad = np.unique(np.nonzero(~np.isfinite(x))[0])
        found = f"NaN or infinity in {len(bad)} of {len(x)} chips, first {bad[0]}"
        raise ContractError(field, found, "finite numbers", "nodata pixels were left in: fill or drop them")
    return x


# ---- texture ----

SCALES, ORIENTATIONS = 4, 6  # octaves; angles over half a turn
KERNEL, WAVELENGTH, SPREAD = 9, 4.0, 2.0  # of a Gabor filter, pixels of its octave
FLAT = 0.02  # standard deviations of the sensor below which an image counts as flat
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (0.5, -0.5, 0.0), (0.5, 0.5, -1.0))  # brightness, red - green, yellow - blue


def texture_statistics(rgb: Tensor) -> Tensor:
    """Color and oriented texture at four scales: normalized RGB [B, 3, H, W] -> [B, 47].

    12 of color, then in each octave 7 or 8 of brightness and 2 of color. Sources: Freeman and Adelson 1991 (oriented
    energies); Portilla and Simoncelli 2000 (their statistics as a description of texture).
    """
    x = torch.einsum("oc, bchw -> bohw", rgb.new_tensor(OPPONENT), rgb)
    mean, std = x.mean((2, 3)), x.std((2, 3))
    color = _standardize_images(x)
    pairs = [(color[:, i] * color[:, j]).mean((1, 2)) for i, j in ((0, 1), (0, 2), (1, 2))]
    columns = [*mean.T, *(std + FLAT).log().T, *color.pow(3).mean((2, 3)).clamp(-5, 5).T, *pairs]  # [B] each
    bank = _gabor_bank().to(rgb)
    angle = torch.arange(ORIENTATIONS, device=rgb.device) * (2 * math.pi / ORIENTATIONS)  # a half turn counts as 2 pi
    coarser = None
    for _ in range(SCALES):
        energy = _energies(x[:, :1], bank)  # [B, O, h, w]
        total = energy.mean((2, 3))  # [B, O]
        level = total.mean(1) + FLAT
        columns += [level.log(), (energy + FLAT).log().std((2, 3)).mean(1)]
        local = energy.mean(1) + FLAT  # [B, h, w]
        columns.append((_harmonic(energy, angle) / local).mean((1, 2)))  # edges: oriented locally
        columns += [_harmonic(total, turns * angle) / level for turns in (1, 2)]  # rows and grids: oriented globally
        log_energy = _standardize_images(local.log()[:, None])[:, 0]
        columns.append((log_energy * _standardize_images(x[:, :1])[:, 0]).mean((1, 2)))  # is the bright part rough?
        if coarser is not None:
            columns.append((F.avg_pool2d(coarser[:, None], 2)[:, 0] * log_energy).mean((1, 2)))
        coarser = log_energy
        fine = x[:, 1:] - F.avg_pool2d(F.pad(x[:, 1:], (1, 1, 1, 1), mode="reflect"), 3, 1)
        columns += [*((fine.abs().mean((2, 3)) + FLAT).log() - level.log()[:, None]).T]
        x = _downsample(x)
    return torch.stack(columns, dim=1)


def _gabor_bank() -> Tensor:
    """[2 * ORIENTATIONS, 1, K, K]: even and odd filters in turn, of zero mean and unit norm a pair."""
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
    responses = F.conv2d(F.pad(x, (KERNEL // 2,) * 4, mode="reflect"), bank)  # [B, 2 O, h, w]
    return torch.hypot(responses[:, 0::2], responses[:, 1::2])


def _harmonic(energy: Tensor, angle: Tensor) -> Tensor:
    """[B, O, ...] -> [B, ...]: how far the energies prefer a direction, whichever it is."""
    shape = (-1,) + (1,) * (energy.ndim - 2)
    return torch.hypot(*((energy * wave.view(shape)).mean(1) for wave in (angle.cos(), angle.sin())))


def _standardize_images(x: Tensor) -> Tensor:
    """[B, C, h, w] -> zero mean, about unit spread over each image; a flat image stays near zero."""
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + FLAT)


def _downsample(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, C, h / 2, w / 2]: every second pixel after a binomial blur."""
    row = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])
