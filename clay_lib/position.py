"""Position code: where a token lies, in meters, and where and when the image was taken.

The first D-8 numbers hold column and row scaled by the ground sampling distance, the last 8 hold time and place.
Source: Clay v1.5 release; sin-cos codes after Vaswani et al. 2017, GSD scaling after Scale-MAE (Reed et al. 2023).
"""

import torch
from einops import rearrange, repeat
from torch import Tensor

from clay_lib.errors import ContractError

FREQUENCIES = ("released", "geometric")
TEMPERATURE = 10_000.0
METADATA = 8  # time (4) and latlon (4)


def angular_frequencies(count: int, gsd: float | Tensor, *, frequencies: str = "released", device=None) -> Tensor:
    """Angular frequencies per patch, [count].

    "released": gsd x 10000^(-2 o/(4 count)), o from 0 to 1. The exponent's divisor leaves them nearly equal (0.98 to 1
    times gsd at large width), yet the released weights need it. "geometric": gsd x 10000^(-o), the usual series.
    """
    # At 500 m the angles reach thousands of radians, so the order of these float32 operations must match the release.
    o = torch.arange(count, device=device) / (count - 1)
    if frequencies == "released":
        return 1.0 / TEMPERATURE ** (2 * o / (4 * count)) * gsd
    check_frequencies(frequencies)
    return 1.0 / TEMPERATURE**o * gsd


def check_frequencies(frequencies: str) -> None:
    if frequencies not in FREQUENCIES:
        raise ContractError("frequencies", repr(frequencies), f"one of {FREQUENCIES}", "a misspelling")


def grid_code(h: int, w: int, dim: int, gsd: float | Tensor, *, frequencies: str = "released", device=None) -> Tensor:
    """[L, dim], L = h w row-major: sin x | cos x | sin y | cos y, x the column and y the row of a token."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    f = angular_frequencies(dim // 4, gsd, frequencies=frequencies, device=device)  # [dim / 4]
    x, y = (rearrange(v, "h w -> (h w) 1") * f for v in (x, y))  # [L, dim / 4] each
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


def position_code(
    h: int, w: int, dim: int, gsd: float | Tensor, time: Tensor, latlon: Tensor, *, frequencies: str = "released"
) -> Tensor:
    """[B, L, D] in float32: grid code (D-8), time [B, 4], latlon [B, 4]; the last eight are equal for all tokens."""
    grid = grid_code(h, w, dim - METADATA, gsd, frequencies=frequencies, device=time.device)
    metadata = torch.cat([time, latlon], dim=1).float()  # [B, 8]
    return torch.cat(
        [repeat(grid, "L d -> B L d", B=len(metadata)), repeat(metadata, "B m -> B L m", L=h * w)],
        dim=2,
    )
