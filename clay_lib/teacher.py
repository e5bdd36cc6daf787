"""Teacher: a frozen DINOv2 with registers; Clay's projected class token learns to match its class token.

It is not a submodule of the trained module: none of its parameters reach the optimizer or a checkpoint. Source: Oquab et
al. 2024 and Darcet et al. 2024, through the transformers library. `PatchHeads` are a second, optional target: each
visible patch token predicts statistics of its patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.encoder import Encoded, gather_tokens, patchify
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS, Sensor

RELEASED = "facebook/dinov2-with-registers-large"


class Teacher(nn.Module):
    """A frozen DINOv2: normalized RGB [B, 3, H, W] -> class token [B, teacher_dim], without gradient.

    size: side in pixels to which the RGB is resized (518 in the release). stand_in: whether its weights are random.
    """

    def __init__(self, network: nn.Module, *, size: int = 518, stand_in: bool = False):
        super().__init__()
        self.network, self.size, self.stand_in = network.eval().requires_grad_(False), size, stand_in

    @property
    def dim(self) -> int:
        return self.network.config.hidden_size

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)  # stays frozen when a trainer switches to training mode

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        rgb = F.interpolate(rgb, size=(self.size, self.size), mode="bicubic", align_corners=False)
        return self.network(rgb.to(self.network.dtype)).pooler_output


def load_teacher(name: str = RELEASED, *, size: int = 518) -> Teacher:
    """DINOv2 with registers from a local folder or, by its hub name, from the cache or the network."""
    import requests
    from huggingface_hub import constants, try_to_load_from_cache
    from transformers import Dinov2WithRegistersModel

    try:
        known = Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)
        if not known and not constants.HF_HUB_OFFLINE:  # one question: the hub's client retries for half a minute
            requests.head(constants.ENDPOINT, timeout=5)
        network = Dinov2WithRegistersModel.from_pretrained(name, local_files_only=known)
        return Teacher(network, size=size)
    except (OSError, ValueError) as error:
        kind = "this folder" if Path(name).is_dir() else "this hub name"
        raise ContractError(
            "teacher",
            f"{name!r}: {str(error).splitlines()[0]}",
            f"a folder written by save_pretrained, or a hub name such as {RELEASED}",
            f"no network or no DINOv2 weights under {kind}; use stand_in_teacher() or teacher=None offline",
        ) from None


def stand_in_teacher(*, size: int = 56, seed: int = 0) -> Teacher:
    """A small DINOv2 with random weights, to run the pipeline offline; its targets carry little information."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_register_tokens=4,
        image_size=size,
        patch_size=14,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Teacher(Dinov2WithRegistersModel(config), size=size, stand_in=True)


def teacher_view(pixels: Tensor, sensor: Sensor) -> Tensor:
    """Normalized pixels [B, C, H, W] -> the three channels for a teacher [B, 3, H, W].

    Red, green and blue; for radar vv, vh and their mean.
    """
    if sensor.rgb:
        return pixels[:, sensor.indices(sensor.rgb)]
    first, last = pixels[:, 0], pixels[:, -1]
    return torch.stack([first, last, (first + last) / 2], dim=1)


def teacher_target(teacher: nn.Module, pixels: Tensor, sensor: str) -> Tensor:
    """Normalized pixels [B, C, H, W] -> the teacher's output [B, teacher_dim].

    A teacher is any module with `dim` that takes red, green and blue [B, 3, H, W]; one with `sees = "pixels"` takes
    all bands as they are.
    """
    return teacher(pixels if getattr(teacher, "sees", "rgb") == "pixels" else teacher_view(pixels, SENSORS[sensor]))


# --- targets of patch tokens ---

FILTERS = 48  # random ones of a patch
FLAT = 0.02  # standard deviations of the sensor below which a patch counts as flat
MIN_VARIANCE = 0.02  # lower bound of a direction's variance in whitening
MIN_SPREAD = 0.1  # share of the batch's mean spread that is added to each chip's


class PatchHeads(nn.Module):
    """A linear head for each sensor from a patch token to `patch_statistics`; used in training only, never released.

    One parameter holds the weights of all sensors, so that every process has a gradient for all of it at every step.
    """

    def __init__(self, sensors: Sequence[str], dim: int, patch_size: int):
        super().__init__()
        self.sensors, self.patch_size = list(sensors), patch_size
        width = 2 * (3 * max(len(SENSORS[name].bands) for name in sensors) + FILTERS)
        self.weight = nn.Parameter(torch.zeros(len(sensors), dim, width))
        self.bias = nn.Parameter(torch.zeros(len(sensors), 1, width))

    def loss(self, encoded: Encoded, pixels: Tensor, sensor: str) -> Tensor:
        """Error of the statistics of visible patches; pixels [B, C, H, W], NaN in holes. Scalar.

        Errors are half whitened over the batch and divided by the spread within each chip, so that small differences
        count in a chip of low contrast, such as a forest.
        """
        with torch.autocast(pixels.device.type, enabled=False):
            statistics = patch_statistics(pixels.float(), self.patch_size)  # [B, L, n], NaN beside holes
            complete = statistics.isfinite().all(-1)  # [B, L]
            whitening = _whitening(statistics[complete])  # [n, n]
            white = statistics @ whitening
            spread = (white - white.nanmean(1, keepdim=True)).square().nanmean((1, 2)).sqrt().nan_to_num()  # [B]
            spread = spread + MIN_SPREAD * spread.mean() + 1e-6
            known = complete.gather(1, encoded.visible)  # [B, V]
            if encoded.present is not None:
                known = known & encoded.present
            target = gather_tokens(statistics, encoded.visible)[known]  # [N, n]
            k, n = self.sensors.index(sensor), statistics.shape[-1]
            prediction = encoded.tokens[:, 1:][known].float() @ self.weight[k, :, :n] + self.bias[k, :, :n]
            error = (prediction - target) @ whitening / spread[known.nonzero()[:, 0], None]
            return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum") / max(error.numel(), 1)


@torch.no_grad()
def patch_statistics(pixels: Tensor, P: int) -> Tensor:
    """Normalized pixels [B, C, H, W] -> [B, L, 2 (3 C + FILTERS)]: a patch, then the 3 x 3 patches around it.

    For each band mean, logarithm of the standard deviation and of the mean gradient; then responses of fixed random
    filters as in `baselines.random_convolutions`.
    """
    B, C = pixels.shape[:2]
    x = rearrange(patchify(pixels, P), "B L (C p q) -> (B L) C p q", C=C, p=P)
    gradient = x.diff(dim=2).abs().mean((2, 3)) + x.diff(dim=3).abs().mean((2, 3))
    columns = [x.mean((2, 3)), (x.std((2, 3)) + FLAT).log() + 1, (gradient + FLAT).log() + 1]
    generator = torch.Generator().manual_seed(0)
    for side in (3, 5):
        columns.append(F.conv2d(x, random_filters(FILTERS // 2, C, side, generator).to(x)).relu().mean((2, 3)))
    own = torch.cat(columns, dim=1)  # [B L, n]
    grid = rearrange(own, "(B h w) n -> B n h w", B=B, h=-(-pixels.shape[-2] // P))
    around = F.avg_pool2d(grid, 3, stride=1, padding=1, count_include_pad=False)
    return rearrange(torch.cat([grid, around], dim=1), "B n h w -> B (h w) n")


def random_filters(count: int, bands: int, side: int, generator: torch.Generator) -> Tensor:
    """[count, bands, side, side] of unit norm each."""
    weights = torch.randn(count, bands, side, side, generator=generator)
    return F.normalize(weights.flatten(1)).view_as(weights)


@torch.no_grad()
def _whitening(statistics: Tensor) -> Tensor:
    """[N, n] -> [n, n]: standardizes, and divides each direction by the fourth root of its variance."""
    if len(statistics) < 2:  # a batch of holes
        return torch.eye(statistics.shape[1], device=statistics.device)
    scale = 1 / (statistics.std(0) + FLAT)
    variance, directions = torch.linalg.eigh(torch.cov((statistics * scale).T))
    return scale[:, None] * (directions * variance.clamp(min=MIN_VARIANCE) ** -0.25) @ directions.T
