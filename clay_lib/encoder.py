"""Encoder: pixels -> patch tokens -> position code -> masking -> class token and visible tokens -> transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube
from clay_lib.embedding import PatchEmbedding
from clay_lib.position import position_code
from clay_lib.transformer import Transformer


@dataclass(frozen=True)
class Encoded:
    """What the encoder hands on. L counts the patches of the padded image, V the visible ones."""

    tokens: Tensor  # [B, 1+V, D], class token first
    visible: Tensor  # [B, V] indices of the visible patches, in the order of the tokens
    masked: Tensor  # [B, L-V] indices of the masked patches
    mask: Tensor  # [B, L], 1 = masked
    grid: tuple[int, int]  # (h, w), h w = L


def pad_to_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> H and W rounded up to the patch size; the last row and column are repeated downwards and right."""
    bottom, right = -pixels.shape[-2] % patch_size, -pixels.shape[-1] % patch_size
    return F.pad(pixels, (0, right, 0, bottom), mode="replicate") if bottom or right else pixels


def random_mask(batch: int, length: int, *, mask_ratio: float, shuffle: bool, device=None, generator=None):
    """Which patches the encoder does not see: (visible [B, V], masked [B, L-V], mask [B, L] with 1 = masked).

    The first int(mask_ratio L) of each sample's own random order are masked; without shuffling the order is
    row-major, so that the top rows are.
    """
    if not 0 <= mask_ratio < 1:
        raise ContractError(
            "mask_ratio", found=mask_ratio, expected="0 <= ratio < 1", cause="a percentage, or no patch left to see"
        )
    if shuffle:
        order = torch.rand(batch, length, device=device, generator=generator).argsort(dim=1)
    else:
        order = repeat(torch.arange(length, device=device), "L -> B L", B=batch)
    masked, visible = order.tensor_split([int(mask_ratio * length)], dim=1)
    mask = torch.zeros(batch, length, device=device).scatter(1, masked, 1.0)
    return visible, masked, mask


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """tokens [B, L, D], indices [B, V] -> [B, V, D]."""
    return tokens.gather(1, repeat(indices, "B V -> B V D", D=tokens.shape[-1]))


class Encoder(nn.Module):
    """cube -> Encoded. Any number of bands, any H and W (padded to the patch size), mask ratio 0 to 0.95."""

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        mlp_ratio: float,
        patch_size: int,
        ladder: str = "released",
    ):
        super().__init__()
        self.patch_size, self.dim, self.ladder = patch_size, dim, ladder
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.patch_embedding = PatchEmbedding(dim, patch_size=patch_size)
        self.transformer = Transformer(dim, depth=depth, heads=heads, dim_head=dim_head, mlp_ratio=mlp_ratio)

    def forward(
        self, cube: Datacube, mask_ratio: float = 0.0, shuffle: bool = True, generator: torch.Generator | None = None
    ) -> Encoded:
        pixels = pad_to_patches(cube.pixels, self.patch_size)
        h, w = (side // self.patch_size for side in pixels.shape[-2:])
        tokens = self.patch_embedding(pixels, cube.waves)
        code = position_code(h, w, self.dim, cube.gsd, cube.time, cube.latlon, ladder=self.ladder)
        tokens = tokens + code.to(tokens.dtype)

        visible, masked, mask = random_mask(
            len(tokens), h * w, mask_ratio=mask_ratio, shuffle=shuffle, device=tokens.device, generator=generator
        )
        class_token = repeat(self.cls_token, "1 1 D -> B 1 D", B=len(tokens)).to(tokens.dtype)
        tokens = self.transformer(torch.cat([class_token, take(tokens, visible)], dim=1))
        return Encoded(tokens, visible, masked, mask, (h, w))


def patches_of(pixels: Tensor, patch_size: int) -> Tensor:
    """Pixels [B, C, H, W] -> [B, L, C*P*P], bands outermost, after padding."""
    pixels = pad_to_patches(pixels, patch_size)
    return rearrange(pixels, "B C (h p) (w q) -> B (h w) (C p q)", p=patch_size, q=patch_size)


def image_of(patches: Tensor, *, grid: tuple[int, int], patch_size: int, size: tuple[int, int]) -> Tensor:
    """The inverse: patches [B, L, C*P*P] -> pixels [B, C, H, W], cropped back to size = (H, W)."""
    image = rearrange(patches, "B (h w) (C p q) -> B C (h p) (w q)", h=grid[0], w=grid[1], p=patch_size, q=patch_size)
    return image[..., : size[0], : size[1]]


def mask_of(mask: Tensor, *, grid: tuple[int, int], patch_size: int, size: tuple[int, int]) -> Tensor:
    """A mask of patches [B, L] on the pixels' grid, [B, 1, H, W], cropped as `image_of` crops."""
    each = repeat(mask, "B L -> B L n", n=patch_size**2)
    return image_of(each, grid=grid, patch_size=patch_size, size=size)
