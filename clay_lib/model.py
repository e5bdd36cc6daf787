"""Masked autoencoder: configuration, model, and the cosine initialization of its kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from clay_lib.datacube import Datacube
from clay_lib.decoder import Decoder
from clay_lib.embedding import KERNEL_SCALE, PatchEmbedding, PixelHead, wave_code
from clay_lib.encoder import MIN_VALID, Encoded, Encoder
from clay_lib.errors import ContractError
from clay_lib.position import METADATA, check_frequencies
from clay_lib.sensors import SENSORS


@dataclass(frozen=True)
class ClayConfig:
    """Sizes of encoder and decoder; dim_head is per head, mlp_ratio the feed-forward's width over dim."""

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    dim_head: int = 64
    mlp_ratio: float = 4
    decoder_dim: int = 512
    decoder_depth: int = 4
    decoder_heads: int = 4
    decoder_dim_head: int = 64
    decoder_mlp_ratio: float = 4
    patch_size: int = 8  # pixels
    teacher_dim: int = 1024  # width of the teacher's class token
    mask_ratio: float = 0.75
    frequencies: str = "released"  # or "geometric": see position.angular_frequencies

    def __post_init__(self):
        for name in ("dim", "decoder_dim"):
            if getattr(self, name) % 4 or getattr(self, name) < 16:
                cause = "the position code holds four sin-cos quarters and eight numbers for time and place"
                raise ContractError(name, getattr(self, name), "a multiple of 4, at least 16", cause)
        check_frequencies(self.frequencies)

    @classmethod
    def named(cls, size: str, **changes) -> ClayConfig:
        """tiny, small, base or large as released; changes replace single values."""
        if size not in SIZES:
            raise ContractError("size", repr(size), f"one of {list(SIZES)}", "a misspelling")
        return replace(SIZES[size], **changes)


SIZES = {
    "tiny": ClayConfig(192, 6, 4, 48, 2, 96, 3, 2, 48, 2),
    "small": ClayConfig(384, 6, 6, 64, 2, 192, 4, 4, 64, 2),
    "base": ClayConfig(768, 12, 12, 64, 4, 512, 4, 4, 64, 4),
    "large": ClayConfig(),
}


@dataclass(frozen=True)
class Output:
    """Output of one pass of the autoencoder."""

    encoded: Encoded
    reconstruction: Tensor  # [B, L, C*P*P], normalized
    representation: Tensor  # [B, teacher_dim], the projected class token


class ClayMAE(nn.Module):
    """Encoder, decoder and the projection to the teacher's width. Parameter names are those of the release.

    encoder_only: no decoder and no projection (both None); embeds, but does not reconstruct.
    """

    def __init__(self, config: ClayConfig, encoder_only: bool = False):
        super().__init__()
        c = self.config = config
        shared = dict(patch_size=c.patch_size, frequencies=c.frequencies)
        self.encoder = Encoder(
            dim=c.dim, depth=c.depth, heads=c.heads, dim_head=c.dim_head, mlp_ratio=c.mlp_ratio, **shared
        )
        self.decoder = self.proj = None
        if encoder_only:
            return
        self.decoder = Decoder(
            encoder_dim=c.dim,
            dim=c.decoder_dim,
            depth=c.decoder_depth,
            heads=c.decoder_heads,
            dim_head=c.decoder_dim_head,
            mlp_ratio=c.decoder_mlp_ratio,
            **shared,
        )
        self.proj = nn.Linear(c.dim, c.teacher_dim)

    def forward(
        self,
        cube: Datacube,
        mask_ratio: float | None = None,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        min_valid: float = MIN_VALID,
    ) -> Output:
        """noise [B, L]: random numbers that order the patches, one row a chip; None: drawn from the generator.

        Patches with holes (cube.valid, min_valid as in `Encoder.forward`) are never visible, and never in the mask, so
        that no loss scores them; single pixels that were not measured are NaN in cube.target.
        """
        if self.decoder is None:
            cause = "a file of the encoder alone: it embeds; reconstruction and training need the complete model's file"
            raise ContractError("model", "weights of the encoder alone", "a decoder and a projection", cause)
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        encoded = self.encoder(
            cube, mask_ratio=ratio, shuffle=shuffle, generator=generator, noise=noise, min_valid=min_valid
        )
        reconstruction = self.decoder(encoded, cube)  # [B, L, C*P*P]
        return Output(encoded, reconstruction, self.proj(encoded.tokens[:, 0]))  # the last: [B, teacher_dim]


# --- cosine initialization ---
# With random weights, Clay's kernels have a spread of 0.004: a patch then moves its token by a tenth of what the
# position code does, and fine detail in it by a hundredth. And the codes of red, green and blue differ so little that
# their kernels are parallel. A small model spends its first thousands of steps on leaving that state. Here the
# generator's last layer is solved for instead, by least squares over the wavelengths of all known sensors, so that it
# generates chosen kernels: each channel one pattern of the discrete cosine transform (Ahmed et al. 1974) times one
# smooth function of wavelength, scaled inversely to the pattern's contrast in natural images. No shape or name
# changes, and training updates all of it.

WAVE_SCALE, WAVE_CENTER = 40.0, 0.6  # the wave code's first layer: how many times wider, around which wavelength, um
COLORS = 8  # functions of wavelength beside plain brightness
COLOR_CONTRAST = 0.25  # of colors, relative to brightness
CONTRAST_FALL = 1.1  # exponent by which the contrast of natural images falls with spatial frequency
CONTRAST = 5.0  # of one period in two patches, all bands together: standard deviations of the sensor
TOKEN_SPREAD, PIXEL_SPREAD = 0.6, 0.5  # initial spread of a token's channel and of a predicted pixel
RIDGE = 1e-3
ATTENTION_GAIN = 2.0  # of queries and keys over the position code
# Wavelengths (um), and their places on a scale that spreads different bands: most of it is visible, radar lies beyond.
WAVES, PLACES = (0.40, 0.70, 0.90, 1.2, 2.3, 3.5, 4.0), (0.0, 0.45, 0.65, 0.75, 1.0, 1.3, 1.6)


def cosine_initialize(model: ClayMAE) -> ClayMAE:
    """Set the kernels of both ends of a model to a cosine basis, in place."""
    for layer in (model.encoder.patch_embedding, model.decoder.embed_to_pixels):
        set_kernels(layer)
    return model


@torch.no_grad()
def set_kernels(layer: PatchEmbedding | PixelHead) -> float:
    """Make the layer generate the cosine kernels; returns the fit's R2 over all bands of all sensors."""
    first, last = layer.fclayer.l1, layer.weight_generator.fc_weight
    first.weight *= WAVE_SCALE
    first.bias.copy_(-first.weight @ wave_code(torch.tensor([WAVE_CENTER]))[0])
    sensors = [torch.from_numpy(sensor.waves()).float() for sensor in SENSORS.values()]
    inputs = torch.cat([_last_layer_inputs(last, layer, waves) for waves in sensors]).double()  # [N, 128], N bands
    targets = torch.cat([cosine_kernels(layer, waves) for waves in sensors]).double() / KERNEL_SCALE  # [N, D*P*P]
    gram = inputs @ inputs.T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = inputs.T @ torch.linalg.solve(gram + ridge, targets)  # [128, D*P*P]
    last.weight.copy_(solution.T)
    last.bias.zero_()
    return 1 - float(((inputs @ solution - targets) ** 2).sum() / (targets**2).sum())


@torch.no_grad()
def attend_to_neighbors(model: ClayMAE) -> ClayMAE:
    """Let the decoder's first attention follow distance from the first step on, in place.

    Its queries and keys read the position code alone, each head a part of the frequencies, so that hidden patches
    attend to the visible ones around them. Sources as for `transformer.Attention`; for geometric frequencies.
    """
    attention = model.decoder.transformer.layers[0][0]
    channels = torch.arange(model.decoder.dim - METADATA).view(4, -1)  # sin x, cos x, sin y, cos y of each frequency
    for weight in attention.to_qkv.weight.chunk(3)[:2]:  # queries, keys
        weight.zero_()
        for head, rows in enumerate(weight.chunk(attention.heads)):  # [d, D]
            own = channels[:, head :: attention.heads].T.flatten()[: len(rows)]
            rows[torch.arange(len(own)), own] = ATTENTION_GAIN
    return model


def cosine_kernels(layer: PatchEmbedding | PixelHead, waves: Tensor) -> Tensor:
    """The kernels to be generated for these bands, [C, D*P*P] in the layer's own order."""
    patterns, frequency = _cosine_patterns(layer.patch_size)
    # Every pattern in every color, the D of highest contrast; small patches have fewer, and repeat the first ones.
    contrast = torch.outer(torch.tensor([1.0] + [COLOR_CONTRAST] * COLORS), frequency**-CONTRAST_FALL)
    order = contrast.flatten().argsort(descending=True, stable=True)
    order = order.repeat(-(-layer.dim // len(order)))[: layer.dim]
    color, pattern = order // len(patterns), order % len(patterns)  # [D] each
    place = torch.from_numpy(np.interp(waves.numpy(), WAVES, PLACES)).float()
    colors = torch.cos(math.pi * torch.outer(color, place))  # [D, C]
    kernels = torch.einsum("dc, dpq -> cdpq", colors, patterns[pattern])
    if isinstance(layer, PatchEmbedding):
        kernels = kernels * (TOKEN_SPREAD / CONTRAST / contrast.flatten()[order])[:, None, None]
        return rearrange(kernels, "C D p q -> C (D p q)")
    fade = layer.patch_size / frequency[pattern].clamp(min=1.0)
    kernels = kernels * (PIXEL_SPREAD / math.sqrt(layer.dim) * fade)[:, None, None]
    return rearrange(kernels, "C D p q -> C (p q D)")


def _cosine_patterns(P: int) -> tuple[Tensor, Tensor]:
    """Patterns [P*P, P, P] of unit norm, and their frequencies [P*P] in half periods a patch; 0.16 for the flat one."""
    k = torch.arange(P).float()
    wave = torch.cos(math.pi / P * (k + 0.5) * k[:, None]) * math.sqrt(2 / P)
    wave[0] /= math.sqrt(2)
    patterns = rearrange(torch.einsum("up, vq -> uvpq", wave, wave), "u v p q -> (u v) p q")
    # The mean of a patch varies eight times as much as its first cosine: as much as a frequency of 0.16 would.
    return patterns, torch.hypot(k[:, None], k[None]).flatten().clamp(min=0.16)


def _last_layer_inputs(last: nn.Linear, layer: PatchEmbedding | PixelHead, waves: Tensor) -> Tensor:
    """Inputs of the generator's last layer for one sensor's bands, [C, 128]."""
    inputs = []
    hook = last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    layer.generate(waves)
    hook.remove()
    return inputs[0]


class WeightAverage:
    """Exponential moving average of a model's weights: w <- d w + (1 - d) new, with d = min(decay, (1 + s)/(10 + s)).

    s counts steps, so that a short run does not depend on its first weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.live = decay, [p for p in model.parameters() if p.requires_grad]
        self.weights = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.weights, self.live, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged weights and the model's own."""
        for average, live in zip(self.weights, self.live, strict=True):
            previous = average.clone()
            average.copy_(live)
            live.copy_(previous)
