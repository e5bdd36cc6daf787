"""The masked autoencoder: its configuration, and encoder, decoder and projection as one module."""

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
from clay_lib.position import check_ladder
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
    ladder: str = "released"  # or "geometric": see position.frequencies

    def __post_init__(self):
        for name in ("dim", "decoder_dim"):
            if getattr(self, name) % 4 or getattr(self, name) < 16:
                raise ContractError(
                    name,
                    getattr(self, name),
                    "a multiple of 4, at least 16",
                    "the position code holds four sin-cos quarters and eight numbers for time and place",
                )
        check_ladder(self.ladder)

    @classmethod
    def named(cls, size: str, **changes) -> ClayConfig:
        """tiny, small, base or large as released; changes replace single values."""
        if size not in _SIZES:
            raise ContractError("size", repr(size), f"one of {list(_SIZES)}", "a misspelling")
        return replace(_SIZES[size], **changes)


_SIZES = {
    "tiny": ClayConfig(192, 6, 4, 48, 2, 96, 3, 2, 48, 2),
    "small": ClayConfig(384, 6, 6, 64, 2, 192, 4, 4, 64, 2),
    "base": ClayConfig(768, 12, 12, 64, 4, 512, 4, 4, 64, 4),
    "large": ClayConfig(),
}


@dataclass(frozen=True)
class Output:
    """What one pass of the autoencoder gives."""

    encoded: Encoded
    reconstruction: Tensor  # [B, L, C*P*P], normalised
    representation: Tensor  # [B, teacher_dim], the projected class token


class ClayMAE(nn.Module):
    """Encoder, decoder and the projection to the teacher's width. Parameter names are those of the release.

    encoder_only: no decoder and no projection (both None); embeds, but does not reconstruct.
    """

    def __init__(self, config: ClayConfig, encoder_only: bool = False):
        super().__init__()
        c = self.config = config
        shared = dict(patch_size=c.patch_size, ladder=c.ladder)
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
        """noise [B, L]: the draws that order the patches, so that masking can belong to a chip; None: by generator.

        Patches with holes (cube.valid, min_valid as in `Encoder.forward`) are never visible, and never in the mask, so
        that no loss scores them; single pixels that were not measured are NaN in cube.target.
        """
        if self.decoder is None:
            raise ContractError(
                "model",
                "these weights hold the encoder alone",
                "a decoder and a projection, to reconstruct or to train on",
                "a file with the encoder alone; `embed` works with it, the rest needs the whole model's file",
            )
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        encoded = self.encoder(
            cube, mask_ratio=ratio, shuffle=shuffle, generator=generator, noise=noise, min_valid=min_valid
        )
        return Output(encoded, self.decoder(encoded, cube), self.proj(encoded.tokens[:, 0]))


# ---- First weights that see detail and colour: generated kernels set to a cosine basis, instead of left t ----

SPREAD, CENTRE = 40.0, 0.6  # the wave code's first layer: how many times wider, and around which wavelength, um
COLOURS = 8  # functions of wavelength beside plain brightness
COLOUR_SHARE = 0.25  # contrast of colours, beside that of brightness
FALL = 1.1  # contrast of natural images falls so with spatial frequency
CONTRAST = 5.0  # of one period in two patches, all bands together: standard deviations of the sensor
TOKEN, PIXEL = 0.6, 0.5  # spread of a token's channel and of a predicted pixel, at birth
RIDGE = 1e-3
# Wavelengths (um) on a scale where neighbours that differ lie apart: much room for the visible, radar beyond.
WAVES, PLACES = (0.40, 0.70, 0.90, 1.2, 2.3, 3.5, 4.0), (0.0, 0.45, 0.65, 0.75, 1.0, 1.3, 1.6)


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
