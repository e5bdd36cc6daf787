"""Teacher: a frozen DINOv2 with registers, whose class token Clay's projected class token learns to match.

Source: Oquab et al. 2024 and Darcet et al. 2024, through the transformers library. It is no submodule of the trained
module: none of its parameters reaches the optimizer or a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
