"""The two losses of Clay v1.5: 95 % reconstruction of the masked patches, 5 % agreement with a frozen teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from clay_lib.encoder import patches_of


def reconstruction_loss(
    reconstruction: Tensor,
    pixels: Tensor,
    mask: Tensor,
    *,
    patch_size: int,
    norm_pix_loss: bool = False,
    whole: bool = False,
) -> Tensor:
    """Mean absolute error per patch, averaged over masked patches (over all of them where none is masked). Scalar.

    reconstruction [B, L, C*P*P], pixels [B, C, H, W] normalised, mask [B, L] with 1 = masked. Pixels that only pad the
    image to the patch size, and pixels that are NaN, do not count. norm_pix_loss: each patch standardised by itself.
    whole: the caller knows that no pixel is NaN, which spares looking for them.
    """
    target = patches_of(pixels, patch_size)
    whole = whole and target.shape[1] * patch_size**2 == math.prod(pixels.shape[-2:])  # and none pads
    if not whole:
        ones = torch.ones_like(pixels[:1])
        real = patches_of(F.pad(ones, (0, -ones.shape[-1] % patch_size, 0, -ones.shape[-2] % patch_size)), patch_size)
        real = real * target.isfinite()
        target = target.nan_to_num()
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error, counted = (reconstruction - target).abs(), torch.where(mask.sum() > 0, mask, 1.0)
    if whole:
        return (error.mean(-1) * counted).sum() / counted.sum()
    per_patch = (error * real).sum(-1) / real.sum(-1).clamp(min=1)
    counted = counted * (real.sum(-1) > 0)
    return (per_patch * counted).sum() / counted.sum().clamp(min=1)


def representation_loss(representation: Tensor, target: Tensor) -> Tensor:
    """1 - cosine, averaged over the batch; both [B, teacher_dim]. Scalar."""
    return 1 - F.cosine_similarity(representation, target, dim=-1).mean()
