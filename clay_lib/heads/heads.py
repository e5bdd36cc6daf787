"""Heads: small networks from the encoder's tokens to classes or values, one a chip or one a pixel.

They take `Features`, the tokens of chosen blocks on their grid, so that a frozen encoder runs only once. Patches that
the encoder left out for missing pixels are NaN in its tokens; here they are zeros, and `valid` marks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.datacube import Datacube
from clay_lib.encoder import Encoder
from clay_lib.errors import ContractError

UPSAMPLINGS = ("resize", "transposed")
ALL = (slice(None), slice(None))  # rows and columns of pixels


@dataclass(frozen=True)
class Features:
    """The input of a head, for B chips."""

    chip: Tensor  # [B, D] class token of the last block
    patches: Tensor  # [B, K, D, h, w] tokens of K blocks, the last one at the end; zeros where not valid
    valid: Tensor  # [B, h, w] bool, False where the encoder left the patch out
    pixels: Tensor  # [B, C, H, W] normalized, zeros in holes

    def __len__(self) -> int:
        return len(self.chip)

    def __getitem__(self, index) -> Features:
        return Features(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device) -> Features:
        return Features(*(getattr(self, f.name).to(device) for f in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[Features]) -> Features:
        """Concatenate batches."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    @property
    def mean(self) -> Tensor:
        """[B, D] of the valid patches after the last block; zeros where there is none."""
        count = self.valid.sum((1, 2)).clamp(min=1)[:, None]
        return self.patches[:, -1].sum((2, 3)) / count


def extract_features(encoder: Encoder, cube: Datacube, layers: Sequence[int] = (-1,)) -> Features:
    """The encoder's tokens of all valid patches after these blocks, each after the final norm as in `Clay.embed`."""
    inner = [k for k in layers if k not in (-1, len(encoder.transformer.layers) - 1)]
    encoded = encoder(cube, mask_ratio=0.0, shuffle=False, layers=inner)
    h, w = encoded.grid
    valid = torch.ones_like(encoded.mask, dtype=torch.bool) if encoded.valid is None else encoded.valid
    valid = rearrange(valid, "B (h w) -> B h w", h=h)
    patches = torch.stack([encoded.patches(t) for t in (*encoded.layers.values(), encoded.tokens)], dim=1)
    patches = torch.where(valid[:, None, :, :, None], patches, 0.0)  # where, since 0 times NaN is NaN
    patches = rearrange(patches, "B K h w D -> B K D h w")
    return Features(encoded.tokens[:, 0], patches, valid, cube.pixels)


def spread_layers(depth: int, count: int = 4) -> tuple[int, ...]:
    """`count` block numbers spread evenly over an encoder, ending with the last: depth 24, count 4 -> 5, 11, 17, 23."""
    count = min(count, depth)
    return tuple(round(depth * (k + 1) / count) - 1 for k in range(count))


class Standardize(nn.Module):
    """Standardize [..., D] column by column with the mean and standard deviation from `fit`; the identity before.

    Tokens have a large common component and small differences; without standardization a head learns many times slower.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """x [N, D]: the training set."""
        if len(x):
            spread = x.float().std(0, correction=0)
            self.mean.copy_(x.float().mean(0))
            self.spread.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.spread


class ChipHead(nn.Module):
    """Features -> [B, outputs]: one linear map of the standardized class token and mean of the valid patches.

    Outputs are logits of classes, or standardized values. dropout: share of inputs dropped in training.
    """

    def __init__(self, dim: int, outputs: int, *, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(Standardize(2 * dim), nn.Dropout(dropout), nn.Linear(2 * dim, outputs))

    def _input(self, features: Features) -> Tensor:
        return torch.cat([features.chip, features.mean], dim=1)

    def fit(self, features: Features) -> None:
        """Fit the standardization."""
        self.net[0].fit(self._input(features))

    def forward(self, features: Features) -> Tensor:
        return self.net(self._input(features))


class DenseHead(nn.Module):
    """Features -> [B, outputs, H, W]: tokens of several blocks, resized to the pixels' grid, and a small network there.

    Each block's tokens are standardized and pass their own linear map, as does the class token, which adds the context
    of the chip everywhere. Their sum is resized to the pixels' grid by bilinear interpolation, and two 1 x 1
    convolutions follow, so that all pixels share the same weights. A transposed convolution (upsampling="transposed",
    for comparison) has different weights for each pixel of a patch, which leaves a checkerboard (Odena, Dumoulin and
    Olah 2016, doi 10.23915/distill.00003).
    bands: number of bands of the pixels, if the head uses them beside the tokens, through two 3 x 3 convolutions; 0:
    tokens alone, for any sensor. There is no norm over space, so that holes and tile borders have local effects only.
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        layers: int = 4,
        patch_size: int = 8,
        width: int = 128,
        bands: int = 0,
        upsampling: str = "resize",
        dropout: float = 0.2,
    ):
        super().__init__()
        if upsampling not in UPSAMPLINGS:
            raise ContractError("upsampling", repr(upsampling), f"one of {list(UPSAMPLINGS)}", "a misspelled name")
        self.norms = nn.ModuleList(Standardize(dim) for _ in range(layers))
        self.maps = nn.ModuleList(nn.Linear(dim, width) for _ in range(layers))
        self.context = nn.Sequential(Standardize(dim), nn.Linear(dim, width))
        self.hole = nn.Parameter(torch.zeros(width))  # replaces patches that the encoder left out
        if upsampling == "resize":
            self.enlarge = nn.Upsample(scale_factor=patch_size, mode="bilinear", align_corners=False)
        else:
            self.enlarge = nn.ConvTranspose2d(width, width, patch_size, stride=patch_size)
        self.seen, narrow = None, width // 8 if bands else 0  # branch of the pixels; its name is stored in files
        if bands:
            first, second = nn.Conv2d(bands, narrow, 3, padding=1), nn.Conv2d(narrow, narrow, 3, padding=1)
            self.seen = nn.Sequential(first, nn.GELU(), second, nn.GELU())
        hidden, last = nn.Conv2d(width + narrow, width, 1), nn.Conv2d(width, outputs, 1)
        self.out = nn.Sequential(nn.Dropout(dropout), hidden, nn.GELU(), nn.Dropout(dropout), last)

    def fit(self, features: Features) -> None:
        """Fit the standardization of the tokens."""
        for norm, part in zip(self.norms, features.patches.unbind(1), strict=True):
            norm.fit(rearrange(part, "B D h w -> B h w D")[features.valid])
        self.context[0].fit(features.chip)

    def forward(self, features: Features, select: tuple[slice, slice] = ALL) -> Tensor:
        """select: output rows and columns; every fourth of both takes a tenth of the time and trains equally well."""
        H, W = features.pixels.shape[-2:]
        tokens = rearrange(features.patches, "B K D h w -> K B h w D")
        x = sum(f(norm(part)) for f, norm, part in zip(self.maps, self.norms, tokens, strict=True))  # [B, h, w, width]
        x = torch.where(features.valid[..., None], x, self.hole) + self.context(features.chip)[:, None, None]
        x = self.enlarge(rearrange(x, "B h w D -> B D h w"))
        x = F.gelu(x[..., :H, :W][..., *select])  # without the padding to complete patches
        if self.seen is not None:
            x = torch.cat([x, self.seen(features.pixels)[..., *select]], dim=1)
        return self.out(x)
