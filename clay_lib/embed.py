"""Products of a trained model: embeddings of many chips, and how well hidden patches are rebuilt."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from einops import rearrange

from clay_lib.chips import Chips
from clay_lib.encoder import image_of, mask_of
from clay_lib.model import Clay
from clay_lib.sensors import SENSORS


def batches(chips: Chips, size: int):
    """Slices of at most `size` chips, in order."""
    for start in range(0, len(chips), size):
        yield chips[start : start + size]


def embed_chips(clay: Clay, chips: Chips, *, batch_size: int = 64, **reading) -> dict[str, np.ndarray]:
    """{"class token": [N, D], "patch mean" of the valid ones: [N, D]} with nothing masked, float32.

    reading: what `Clay.embed` takes besides place and date, for chips cut from a file: bands, gsd, in_decibel.
    """
    parts = batches(chips, batch_size)
    made = [clay.embed(part.pixels, chips.sensor, **part.place_and_time, **reading) for part in parts]
    return {
        "class token": np.concatenate([out.chip.cpu().numpy() for out in made]),
        "patch mean": np.concatenate([out.mean.cpu().numpy() for out in made]),
    }


@torch.inference_mode()
def reconstruction_scores(
    clay: Clay, chips: Chips, *, mask_ratio: float = 0.75, seed: int = 0, batch_size: int = 64
) -> pd.DataFrame:
    """Mean absolute error of hidden pixels per band, beside that of guessing each chip's visible mean of the band.

    One row a band: sensor, band, error, mean_error (both in standard deviations of the sensor's published statistics),
    ratio = error / mean_error, and native_error in the sensor's native numbers (dB for radar).
    """
    sensor = SENSORS[chips.sensor]
    generator = torch.Generator(clay.model.proj.weight.device).manual_seed(seed)
    sums = torch.zeros(2, len(sensor.bands), dtype=torch.float64)
    for part in batches(chips, batch_size):
        cube = clay.cube(part.pixels, sensor, **part.place_and_time)
        out = clay.model(cube, mask_ratio=mask_ratio, generator=generator)
        layout = {"grid": out.encoded.grid, "patch_size": clay.model.config.patch_size, "size": cube.pixels.shape[-2:]}
        hidden = mask_of(out.encoded.mask, **layout)  # [B, 1, H, W]
        measured = 1.0 if cube.valid is None else cube.valid.float()  # holes are neither guessed from nor scored
        hidden, shown = hidden * measured, (1 - hidden) * measured
        guess = (cube.pixels * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp(min=1)
        for k, rebuilt in enumerate((image_of(out.reconstruction, **layout), guess)):
            error = ((rebuilt - cube.pixels).abs() * hidden).sum((2, 3)) / hidden.sum((2, 3)).clamp(min=1)
            sums[k] += error.sum(0).cpu()
    error, mean_error = (sums / len(chips)).numpy()
    table = pd.DataFrame({"sensor": sensor.name, "band": sensor.band_names, "error": error, "mean_error": mean_error})
    return table.assign(ratio=error / mean_error, native_error=error * sensor.statistics()[1])


def principal_components(patches: np.ndarray, count: int = 3) -> np.ndarray:
    """Patch embeddings [B, h, w, D] -> their first components over all patches together, [B, h, w, count]."""
    from sklearn.decomposition import PCA

    flat = rearrange(patches, "B h w D -> (B h w) D")
    parts = PCA(count, random_state=0).fit_transform(flat)
    return rearrange(parts, "(B h w) n -> B h w n", h=patches.shape[1], w=patches.shape[2])
