"""Losses of Clay v1.5: 95 % reconstruction of the masked patches, 5 % agreement with a frozen teacher."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from clay_lib.encoder import patchify


def reconstruction_loss(
    reconstruction: Tensor,
    pixels: Tensor,
    mask: Tensor,
    *,
    patch_size: int,
    norm_pix_loss: bool = False,
    no_nan: bool = False,
) -> Tensor:
    """Mean absolute error per patch, averaged over masked patches (over all of them where none is masked). Scalar.

    reconstruction [B, L, C*P*P], pixels [B, C, H, W] normalized, mask [B, L] with 1 = masked. Pixels that only pad the
    image to the patch size, and pixels that are NaN, do not count. norm_pix_loss: each patch standardized by itself.
    no_nan: the caller guarantees that no pixel is NaN, which saves the search for them.
    """
    target = patchify(pixels, patch_size)  # [B, L, C*P*P]
    H, W = pixels.shape[-2:]
    all_count = no_nan and target.shape[1] * patch_size**2 == H * W  # neither NaN nor padding
    if not all_count:
        inside = F.pad(torch.ones_like(pixels[:1]), (0, -W % patch_size, 0, -H % patch_size))  # 0 in the padding
        counts = patchify(inside, patch_size) * target.isfinite()  # [B, L, C*P*P]
        target = target.nan_to_num()
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (reconstruction - target).abs()
    weight = torch.where(mask.sum() > 0, mask, 1.0)  # [B, L]
    if all_count:
        return (error.mean(-1) * weight).sum() / weight.sum()
    per_patch = (error * counts).sum(-1) / counts.sum(-1).clamp(min=1)  # [B, L]
    weight = weight * (counts.sum(-1) > 0)
    return (per_patch * weight).sum() / weight.sum().clamp(min=1)


def representation_loss(representation: Tensor, target: Tensor) -> Tensor:
    """1 - cosine, averaged over the batch; both [B, teacher_dim]. Scalar."""
    return 1 - F.cosine_similarity(representation, target, dim=-1).mean()


class RunningMeans:
    """Running means of losses by name; tensors stay on their device until `take`."""

    def __init__(self, state: dict[str, list] | None = None):
        self.sums: dict[str, list] = {name: list(pair) for name, pair in (state or {}).items()}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = [total + value.detach().float(), count + 1]

    def state(self) -> dict[str, list]:
        return {name: [float(total), count] for name, (total, count) in self.sums.items()}

    def take(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Means since the last call; reduce: the mean over ranks, which all have the same names."""
        if not self.sums:
            return {}
        values = torch.stack([torch.as_tensor(t, device=device) / n for t, n in self.sums.values()])
        names, self.sums = list(self.sums), {}
        return dict(zip(names, reduce(values).tolist(), strict=True))
