"""First weights that see detail and colour: generated kernels set to a cosine basis, instead of left to chance.

Born at random, Clay's kernels weigh 0.004: a patch then moves its token by a tenth of what the position code does, and
what is fine in it by a hundredth. And the codes of red, green and blue differ by so little that their kernels are
parallel. A small model spends its first thousands of steps on getting out of that. Here the wave code is spread out,
and the generator's last layer is solved for, by least squares over the wavelengths of all known sensors, so that it
writes kernels we choose: each channel one pattern of the discrete cosine transform (Ahmed et al. 1974) times one
smooth function of wavelength, as loud as patterns of natural images are faint. No shape or name changes, and training
moves all of it.

    clay train --config run.yaml      with start: clay_lib.birth:born
"""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from clay_lib.embedding import KERNEL_SCALE, PatchEmbedding, PixelHead, wave_code
from clay_lib.model import Clay, ClayConfig
from clay_lib.sensors import SENSORS

SPREAD, CENTRE = 40.0, 0.6  # the wave code's first layer: how many times wider, and around which wavelength, um
COLOURS = 8  # functions of wavelength beside plain brightness
COLOUR_SHARE = 0.25  # contrast of colours, beside that of brightness
FALL = 1.1  # contrast of natural images falls so with spatial frequency
CONTRAST = 5.0  # of one period in two patches, all bands together: standard deviations of the sensor
TOKEN, PIXEL = 0.6, 0.5  # spread of a token's channel and of a predicted pixel, at birth
RIDGE = 1e-3
# Wavelengths (um) on a scale where neighbours that differ lie apart: much room for the visible, radar beyond.
WAVES, PLACES = (0.40, 0.70, 0.90, 1.2, 2.3, 3.5, 4.0), (0.0, 0.45, 0.65, 0.75, 1.0, 1.3, 1.6)


def born(config: ClayConfig, seed: int = 0) -> Clay:
    """An untrained model whose two ends see and draw a cosine basis; the same weights for the same seed."""
    clay = Clay.random(config, seed=seed)
    set_kernels(clay.model.encoder.patch_embedding)
    set_kernels(clay.model.decoder.embed_to_pixels)
    return clay


@torch.no_grad()
def set_kernels(layer: PatchEmbedding | PixelHead) -> float:
    """Let the layer write the cosine kernels; returns how well it does (R2 over all bands of all sensors)."""
    first, last = layer.fclayer.l1, layer.weight_generator.fc_weight
    first.weight *= SPREAD
    first.bias.copy_(-first.weight @ wave_code(torch.tensor([CENTRE]))[0])
    sensors = [torch.from_numpy(sensor.waves()).float() for sensor in SENSORS.values()]
    known = torch.cat([_seen_by(last, layer, waves) for waves in sensors]).double()  # [N, 128], N bands
    wanted = torch.cat([cosine_kernels(layer, waves) for waves in sensors]).double() / KERNEL_SCALE
    gram = known @ known.T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved = known.T @ torch.linalg.solve(gram + ridge, wanted)  # [128, kernel size]
    last.weight.copy_(solved.T)
    last.bias.zero_()
    return 1 - float(((known @ solved - wanted) ** 2).sum() / (wanted**2).sum())


def cosine_kernels(layer: PatchEmbedding | PixelHead, waves: Tensor) -> Tensor:
    """The kernels to be written for these bands, [C, D*P*P] in the layer's own order."""
    patterns, frequency = _cosines(layer.patch_size)
    # Every pattern in every colour, the loudest D of them; small patches have fewer, and use the loudest again.
    loud = torch.outer(torch.tensor([1.0] + [COLOUR_SHARE] * COLOURS), frequency**-FALL)
    order = loud.flatten().argsort(descending=True, stable=True)
    order = order.repeat(-(-layer.dim // len(order)))[: layer.dim]
    colour, pattern = order // len(patterns), order % len(patterns)
    place = torch.from_numpy(np.interp(waves.numpy(), WAVES, PLACES)).float()
    kernels = torch.einsum("dc, dpq -> cdpq", torch.cos(math.pi * torch.outer(colour, place)), patterns[pattern])
    if isinstance(layer, PatchEmbedding):
        kernels = kernels * (TOKEN / CONTRAST / loud.flatten()[order])[:, None, None]
        return rearrange(kernels, "C D p q -> C (D p q)")
    fade = layer.patch_size / frequency[pattern].clamp(min=1.0)
    kernels = kernels * (PIXEL / math.sqrt(layer.dim) * fade)[:, None, None]
    return rearrange(kernels, "C D p q -> C (p q D)")


def _cosines(P: int) -> tuple[Tensor, Tensor]:
    """Patterns [P*P, P, P] of unit norm, and their frequencies [P*P] in half periods a patch; 0.16 for the flat one."""
    k = torch.arange(P).float()
    wave = torch.cos(math.pi / P * (k + 0.5) * k[:, None]) * math.sqrt(2 / P)
    wave[0] /= math.sqrt(2)
    patterns = torch.einsum("up, vq -> uvpq", wave, wave).flatten(0, 1)
    # The mean of a patch varies eight times as much as its first cosine: as much as a frequency of 0.16 would.
    return patterns, torch.hypot(k[:, None], k[None]).flatten().clamp(min=0.16)


def _seen_by(last: torch.nn.Linear, layer: PatchEmbedding | PixelHead, waves: Tensor) -> Tensor:
    """What reaches the generator's last layer for one sensor's bands, [C, 128]."""
    seen = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer.generate(waves)
    hook.remove()
    return seen[0]
