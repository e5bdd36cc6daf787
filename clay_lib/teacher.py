"""Teachers: frozen networks and hand-crafted features whose output the class token learns to match.

DINOv2 with registers (Oquab et al. 2024, Darcet et al. 2024), through the transformers library, is the teacher of the
release. TextureTeacher needs no download. A teacher stays outside the trained module: none of its parameters reaches
the optimizer or a checkpoint.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS, Sensor

RELEASED = "facebook/dinov2-with-registers-large"

SCALES, ORIENTATIONS = 4, 6  # octaves; angles over half a turn
KERNEL, WAVELENGTH, SPREAD = 9, 4.0, 2.0  # of a Gabor filter, pixels of its octave
FLAT = 0.02  # standard deviations of the sensor below which an image counts as flat
CLIP = 4.0  # standardized features are clipped here
MIN_VARIANCE = 0.02  # directions of less variance are not amplified further
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (0.5, -0.5, 0.0), (0.5, 0.5, -1.0))  # brightness, red - green, yellow - blue


class Teacher(nn.Module):
    """A frozen DINOv2: normalized RGB [B, 3, H, W] -> class token [B, teacher_dim], without gradient.

    size: side in pixels to which the RGB is resized (518 in the release). stand_in: random weights, no knowledge.
    """

    def __init__(self, network: nn.Module, *, size: int = 518, stand_in: bool = False):
        super().__init__()
        self.network, self.size, self.stand_in = network.eval().requires_grad_(False), size, stand_in

    @property
    def dim(self) -> int:
        return self.network.config.hidden_size

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)  # frozen also when a trainer switches everything to training

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        rgb = F.interpolate(rgb, size=(self.size, self.size), mode="bicubic", align_corners=False)
        return self.network(rgb.to(self.network.dtype)).pooler_output


def load_teacher(name: str = RELEASED, *, size: int = 518) -> Teacher:
    """DINOv2 with registers from a local folder or, by its hub name, from the cache or the network."""
    from transformers import Dinov2WithRegistersModel

    try:
        return Teacher(Dinov2WithRegistersModel.from_pretrained(name), size=size)
    except (OSError, ValueError) as error:
        kind = "this folder" if Path(name).is_dir() else "this hub name"
        raise ContractError(
            "teacher",
            f"{name!r}: {str(error).splitlines()[0]}",
            f"a folder written by save_pretrained, or a hub name such as {RELEASED}",
            f"no network or no DINOv2 weights under {kind}; use stand_in_teacher() or teacher=None offline",
        ) from None


def stand_in_teacher(*, size: int = 56, seed: int = 0) -> Teacher:
    """DINOv2's architecture, small and with random weights: runs the whole path offline, teaches next to nothing."""
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


# ---- texture statistics ----


class TextureTeacher(nn.Module):
    """Fixed statistics of color and texture: normalized RGB [B, 3, H, W] -> [B, dim] float32, without gradient.

    It has learned nothing and knows no object: it measures brightness and color, how much they vary at four scales, how
    oriented that variation is, and how the scales relate. On 500 aerial images of ten classes its output gives kNN-20
    0.83 by cosine, random convolutions 0.51. A flip changes the output little. Images are resized to sides that are
    multiples of 8, and at least 64.

    Sources: Freeman and Adelson 1991 (oriented energies); Portilla and Simoncelli 2000 (their statistics as texture).
    """

    stand_in = False

    def __init__(self, statistics: Tensor):
        """statistics [N, dim]: texture_statistics of the images on which to center and whiten.

        Standardized statistics share half of their content among all images, and vary along few directions. Targets
        that differ train a small model better, so directions of much variance are damped to its fourth root.
        """
        super().__init__()
        self.dim = statistics.shape[1]
        self.register_buffer("mean", statistics.mean(0))
        self.register_buffer("std", statistics.std(0) + 1e-4)
        variance, directions = torch.linalg.eigh(torch.cov(self._standardize(statistics).T.double()))
        whitening = directions @ torch.diag(variance.clamp(min=MIN_VARIANCE) ** -0.25) @ directions.T
        self.register_buffer("turn", whitening.float())  # this name is part of the fingerprint of cached targets

    def train(self, mode: bool = True) -> TextureTeacher:
        return super().train(False)

    def _standardize(self, statistics: Tensor) -> Tensor:
        return ((statistics - self.mean) / self.std).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        with torch.autocast(rgb.device.type, enabled=False):
            rgb = rgb.float()
            size = [max(64, -(-side // 8) * 8) for side in rgb.shape[-2:]]
            if size != [*rgb.shape[-2:]]:
                rgb = F.interpolate(rgb, size, mode="bicubic", align_corners=False)
            return self._standardize(texture_statistics(rgb)) @ self.turn


def texture_statistics(rgb: Tensor) -> Tensor:
    """Normalized RGB [B, 3, H, W] -> [B, 47]: 12 of color, then in each octave 7 or 8 of brightness and 2 of color."""
    x = torch.einsum("oc, bchw -> bohw", rgb.new_tensor(OPPONENT), rgb)
    mean, std = x.mean((2, 3)), x.std((2, 3))
    color = _standardize_images(x)
    pairs = [(color[:, i] * color[:, j]).mean((1, 2)) for i, j in ((0, 1), (0, 2), (1, 2))]
    columns = [*mean.T, *(std + FLAT).log().T, *color.pow(3).mean((2, 3)).clamp(-5, 5).T, *pairs]  # [B] each
    bank = _gabor_bank().to(rgb)
    angle = torch.arange(ORIENTATIONS, device=rgb.device) * (2 * math.pi / ORIENTATIONS)  # a half turn counts as 2 pi
    coarser = None
    for _ in range(SCALES):
        energy = _energies(x[:, :1], bank)  # [B, O, h, w]
        total = energy.mean((2, 3))  # [B, O]
        level = total.mean(1) + FLAT
        columns += [level.log(), (energy + FLAT).log().std((2, 3)).mean(1)]
        local = energy.mean(1) + FLAT  # [B, h, w]
        columns.append((_harmonic(energy, angle) / local).mean((1, 2)))  # edges: oriented locally
        columns += [_harmonic(total, turns * angle) / level for turns in (1, 2)]  # rows and grids: oriented globally
        log_energy = _standardize_images(local.log()[:, None])[:, 0]
        columns.append((log_energy * _standardize_images(x[:, :1])[:, 0]).mean((1, 2)))  # is the bright part rough?
        if coarser is not None:
            columns.append((F.avg_pool2d(coarser[:, None], 2)[:, 0] * log_energy).mean((1, 2)))
        coarser = log_energy
        fine = x[:, 1:] - F.avg_pool2d(F.pad(x[:, 1:], (1, 1, 1, 1), mode="reflect"), 3, 1)
        columns += [*((fine.abs().mean((2, 3)) + FLAT).log() - level.log()[:, None]).T]
        x = _downsample(x)
    return torch.stack(columns, dim=1)


def _gabor_bank() -> Tensor:
    """[2 * ORIENTATIONS, 1, K, K]: even and odd filters in turn, of zero mean and unit norm a pair."""
    reach = torch.arange(KERNEL) - KERNEL // 2
    y, x = torch.meshgrid(reach, reach, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * SPREAD**2))
    pairs = []
    for angle in (math.pi * k / ORIENTATIONS for k in range(ORIENTATIONS)):
        phase = 2 * math.pi / WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle))
        even, odd = window * phase.cos(), window * phase.sin()
        even = even - window * (even.sum() / window.sum())
        pair = torch.stack([even, odd])
        pairs.append(pair / pair.norm())
    return torch.cat(pairs)[:, None]


def _energies(x: Tensor, bank: Tensor) -> Tensor:
    """[B, 1, h, w] -> [B, O, h, w]: amplitude of each orientation at each place."""
    responses = F.conv2d(F.pad(x, (KERNEL // 2,) * 4, mode="reflect"), bank)  # [B, 2 O, h, w]
    return torch.hypot(responses[:, 0::2], responses[:, 1::2])


def _harmonic(energy: Tensor, angle: Tensor) -> Tensor:
    """[B, O, ...] -> [B, ...]: how far the energies prefer a direction, whichever it is."""
    shape = (-1,) + (1,) * (energy.ndim - 2)
    return torch.hypot(*((energy * wave.view(shape)).mean(1) for wave in (angle.cos(), angle.sin())))


def _standardize_images(x: Tensor) -> Tensor:
    """[B, C, h, w] -> zero mean, about unit spread over each image; a flat image stays near zero."""
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + FLAT)


def _downsample(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, C, h / 2, w / 2]: every second pixel after a binomial blur."""
    row = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])
