"""Reconstruction of hidden patches, measured against interpolation from the visible ones.

Three measures, each over land and masks that the model has not seen:
    error      mean absolute error of hidden pixels over that of inverse-distance interpolation: below 1 is better
    means      correlation of the predicted and the true mean of hidden patches within each chip
    detail     correlation of what remains inside hidden patches when their means are removed: 0 for flat patches

Correlations are of each band, averaged over bands. A guess that is constant over a chip has 0.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from einops import rearrange
from torch import Tensor

from clay_lib.clay import BATCH, Clay, batches
from clay_lib.data.chips import Chips, world_chips
from clay_lib.encoder import patchify, unpatchify, unpatchify_mask
from clay_lib.evaluation.intervals import bootstrap_weights, interval
from clay_lib.sensors import WORLD_SENSORS

POWER = 4  # of the distance; with the usual 2 errors are a tenth larger on the mini-world
METHODS = ("model", "interpolation", "visible mean")


def reconstruction_table(
    clay: Clay,
    *,
    sensors: Sequence[str] = WORLD_SENSORS,
    chips: int = 110,
    sizes: Sequence[int] = (64, 128),
    split: str = "test",
    mask_ratio: float = 0.75,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> pd.DataFrame:
    """The three measures on the mini-world: a row a sensor, size, method and measure.

    Columns: sensor, size, method (model, interpolation, visible mean), measure, value, low, high, chips, seeds. Values
    are over all of the random masks, intervals over chips.
    """
    tables = []
    for sensor in sensors:
        for size in sizes:
            part = world_chips(sensor, chips, split=split, size=size)
            table = reconstruction_measures(clay, part, mask_ratio=mask_ratio, seeds=seeds, bootstraps=bootstraps)
            tables.append(table.assign(sensor=sensor, size=size, chips=chips, seeds=seeds))
    return pd.concat(tables, ignore_index=True)


@torch.inference_mode()
def reconstruction_measures(
    clay: Clay,
    chips: Chips,
    *,
    mask_ratio: float = 0.75,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> pd.DataFrame:
    """The three measures on chips without holes: columns method, measure, value, low, high."""
    P = clay.model.config.patch_size
    generators = [torch.Generator(clay.model.proj.weight.device).manual_seed(seed) for seed in range(seeds)]
    errors, means, detail = ({method: [] for method in METHODS} for _ in range(3))  # sums of each chip
    for part in batches(chips, BATCH):
        cube = clay.cube(part.pixels, chips.sensor, **part.place_and_time)
        for generator in generators:
            out = clay.model(cube, mask_ratio=mask_ratio, generator=generator)
            layout = {"grid": out.encoded.grid, "patch_size": P, "size": cube.pixels.shape[-2:]}
            visible = 1 - unpatchify_mask(out.encoded.mask, **layout)  # [B, 1, H, W]
            mean = (cube.pixels * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)
            guesses = (
                unpatchify(out.reconstruction, **layout),
                interpolate(cube.pixels, visible),
                mean.expand_as(cube.pixels),
            )
            hidden = out.encoded.mask[:, :, None]  # [B, L, 1]
            truth = _patches(cube.pixels, P)  # [B, L, C, P*P]
            for method, guess in zip(METHODS, guesses, strict=True):
                guess = _patches(guess, P)
                errors[method].append(((guess - truth).abs().mean((2, 3)) * hidden[:, :, 0]).sum(1))  # [B]
                pair = [x.mean(3, keepdim=True) for x in (guess, truth)]
                means[method].append(_moments(*pair, hidden))
                detail[method].append(_moments(guess - pair[0], truth - pair[1], hidden))
    weights = torch.from_numpy(bootstrap_weights(len(chips), bootstraps))  # [1 + bootstraps, N]
    totals = {method: weights @ _over_masks(errors[method], seeds) for method in METHODS}
    rows = []
    for method in METHODS:
        values = {"error": totals[method] / totals["interpolation"]}
        for measure, moments in (("means", means), ("detail", detail)):
            summed = torch.einsum("rn, nkc -> krc", weights, _over_masks(moments[method], seeds))
            values[measure] = _correlation(summed)
        rows += [(method, measure, *interval(v.numpy())) for measure, v in values.items()]
    return pd.DataFrame(rows, columns=["method", "measure", "value", "low", "high"])


def interpolate(pixels: Tensor, visible: Tensor, power: float = POWER) -> Tensor:
    """Inverse-distance interpolation of pixels [B, C, H, W] where visible [B, 1, H, W] is 0, from where it is 1."""
    H, W = pixels.shape[-2:]
    y, x = torch.meshgrid(torch.fft.fftfreq(2 * H, 1 / (2 * H)), torch.fft.fftfreq(2 * W, 1 / (2 * W)), indexing="ij")
    kernel = torch.hypot(y, x).clamp(min=1) ** -power  # of the distance, around the origin of a torus
    spectrum = torch.fft.rfft2(kernel.to(pixels.device))

    def blurred(image: Tensor) -> Tensor:
        padded = torch.fft.rfft2(image, s=(2 * H, 2 * W))
        return torch.fft.irfft2(padded * spectrum, s=(2 * H, 2 * W))[..., :H, :W]

    guess = blurred(pixels * visible) / blurred(visible)
    return torch.where(visible > 0, pixels, guess)


def _patches(pixels: Tensor, P: int) -> Tensor:
    """[B, C, H, W] -> [B, L, C, P*P]."""
    return rearrange(patchify(pixels, P), "B L (C n) -> B L C n", n=P * P)


def _moments(x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
    """Variances of x and y and their covariance over a chip's hidden patches, as sums: [B, L, C, n] -> [B, 3, C]."""
    count = hidden.sum(1) * x.shape[3]  # [B, 1]
    x, y = (v - (torch.einsum("blcn, blk -> bc", v, hidden) / count)[:, None, :, None] for v in (x, y))
    pairs = ((x, x), (y, y), (x, y))
    return torch.stack([torch.einsum("blcn, blcn, blk -> bc", *pair, hidden) for pair in pairs], dim=1)


def _over_masks(batches: list[Tensor], seeds: int) -> Tensor:
    """Sums [B, ...] of batch after batch, `seeds` masks each -> [N, ...] over the masks."""
    return torch.cat([sum(batches[k : k + seeds]) for k in range(0, len(batches), seeds)]).cpu().double()


def _correlation(sums: Tensor) -> Tensor:
    """Sums [3, R, C] as of `_moments` -> Pearson correlation [R], the mean over bands."""
    xx, yy, xy = sums
    return (xy / (xx * yy).sqrt().clamp(min=1e-9)).mean(-1)
