"""Teacher: a frozen DINOv2 with registers whose class token is the target of Clay's projected class token.

Source: Oquab et al. 2024 and Darcet et al. 2024, by the transformers library. It is kept outside the trained module:
none of its parameters reaches the optimiser or a checkpoint.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.data.chips import world_chips
from clay_lib.datacube import make_datacube
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS, WORLD_SENSORS, Sensor

RELEASED = "facebook/dinov2-with-registers-large"


class Teacher(nn.Module):
    """Normalised RGB [B, 3, H, W] -> class token [B, teacher_dim], without gradient.

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
            "a folder written by save_pretrained, or a hub name such as " + RELEASED,
            f"no network or no DINOv2 weights under {kind}; use stand_in_teacher() or teacher=None offline",
        ) from None


def stand_in_teacher(*, size: int = 56, seed: int = 0) -> Teacher:
    """The same architecture, small and with random weights: exercises the whole path offline, teaches next to nothing."""
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
    """What the teacher is shown of normalised pixels [B, C, H, W]: red, green, blue, or vv, vh and their mean for radar."""
    if sensor.rgb:
        return pixels[:, sensor.indices(sensor.rgb)]
    first, last = pixels[:, 0], pixels[:, -1]
    return torch.stack([first, last, (first + last) / 2], dim=1)


# ---- A teacher that needs no download: fixed statistics of colour and texture, by hand-made filters ----

SCALES, ORIENTATIONS = 4, 6  # octaves; angles over half a turn
KERNEL, WAVELENGTH, SPREAD = 9, 4.0, 2.0  # of a Gabor filter, pixels of its octave
FLOOR = 0.02  # standard deviations of the sensor: what counts as flat
CLIP = 4.0  # standardised features beyond it say no more
QUIET = 0.02  # variance below which a direction is not raised further
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (0.5, -0.5, 0.0), (0.5, 0.5, -1.0))  # brightness, red - green, yellow - blue


class TextureTeacher(nn.Module):
    """Normalised RGB [B, 3, H, W] -> [B, dim], float32, without gradient. A flip changes it little.

    Sides that are no multiple of 8, or below 64, are resized to the next one that is: three octaves are looked at.
    """

    stand_in = False

    def __init__(self, statistics: Tensor):
        """statistics [N, dim]: those of the images on which to centre and whiten.

        Half of what standardised statistics say is common to all images, and the rest leans on few directions. A small
        model is pulled better by targets that differ: directions of much variance are damped to its fourth root.
        """
        super().__init__()
        self.dim = statistics.shape[1]
        self.register_buffer("mean", statistics.mean(0))
        self.register_buffer("std", statistics.std(0) + 1e-4)
        variance, directions = torch.linalg.eigh(torch.cov(self._standard(statistics).T.double()))
        turn = directions @ torch.diag(variance.clamp(min=QUIET) ** -0.25) @ directions.T
        self.register_buffer("turn", turn.float())

    def train(self, mode: bool = True) -> TextureTeacher:
        return super().train(False)

    def _standard(self, statistics: Tensor) -> Tensor:
        return ((statistics - self.mean) / self.std).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        with torch.autocast(rgb.device.type, enabled=False):
            rgb = rgb.float()
            size = [max(64, -(-side // 8) * 8) for side in rgb.shape[-2:]]
            if size != [*rgb.shape[-2:]]:
                rgb = F.interpolate(rgb, size, mode="bicubic", align_corners=False)
            return self._standard(texture_statistics(rgb)) @ self.turn


def texture_teacher(chips: int = 44, size: int = 64) -> TextureTeacher:
    """The teacher, fitted on so many chips of the mini-world from each of its sensors; they are made once and kept."""
    seen = []
    for sensor in WORLD_SENSORS:
        part = world_chips(sensor, chips, size=size)
        cube = make_datacube(part.pixels, sensor)
        seen += [texture_statistics(teacher_view(p, SENSORS[sensor]).float()) for p in cube.pixels.split(16)]
    return TextureTeacher(torch.cat(seen)).eval()


def texture_statistics(rgb: Tensor) -> Tensor:
    """Normalised RGB [B, 3, H, W] -> [B, 47]: 12 of colour, then by octave 7 or 8 of brightness and 2 of colour."""
    x = torch.einsum("oc, bchw -> bohw", rgb.new_tensor(OPPONENT), rgb)
    mean, std = x.mean((2, 3)), x.std((2, 3))
    colour = _standard(x)
    pairs = [(colour[:, i] * colour[:, j]).mean((1, 2)) for i, j in ((0, 1), (0, 2), (1, 2))]
    found = [*mean.T, *(std + FLOOR).log().T, *colour.pow(3).mean((2, 3)).clamp(-5, 5).T, *pairs]
    bank = _gabor_bank().to(rgb)
    angle = torch.arange(ORIENTATIONS, device=rgb.device) * (2 * math.pi / ORIENTATIONS)  # a half turn is a whole one
    coarser = None
    for _ in range(SCALES):
        energy = _energies(x[:, :1], bank)  # [B, O, h, w]
        whole = energy.mean((2, 3))
        level = whole.mean(1) + FLOOR
        found += [level.log(), (energy + FLOOR).log().std((2, 3)).mean(1)]
        here = energy.mean(1) + FLOOR
        found.append((_harmonic(energy, angle) / here).mean((1, 2)))  # edges: directed at their own place
        found += [_harmonic(whole, turns * angle) / level for turns in (1, 2)]  # rows and grids: directed as a whole
        log_energy = _standard(here.log()[:, None])[:, 0]
        found.append((log_energy * _standard(x[:, :1])[:, 0]).mean((1, 2)))  # is the bright or the dark part rough?
        if coarser is not None:
            found.append((F.avg_pool2d(coarser[:, None], 2)[:, 0] * log_energy).mean((1, 2)))
        coarser = log_energy
        fine = x[:, 1:] - F.avg_pool2d(F.pad(x[:, 1:], (1, 1, 1, 1), mode="reflect"), 3, 1)
        found += [*((fine.abs().mean((2, 3)) + FLOOR).log() - level.log()[:, None]).T]
        x = _halved(x)
    return torch.stack(found, dim=1)


def _gabor_bank() -> Tensor:
    """[2 * ORIENTATIONS, 1, K, K]: even and odd filters in turn, of no mean and unit norm a pair."""
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
    seen = F.conv2d(F.pad(x, (KERNEL // 2,) * 4, mode="reflect"), bank)
    return torch.hypot(seen[:, 0::2], seen[:, 1::2])


def _harmonic(energy: Tensor, angle: Tensor) -> Tensor:
    """[B, O, ...] -> [B, ...]: how far the energies prefer a direction, whichever it is."""
    shape = (-1,) + (1,) * (energy.ndim - 2)
    return torch.hypot(*((energy * wave.view(shape)).mean(1) for wave in (angle.cos(), angle.sin())))


def _standard(x: Tensor) -> Tensor:
    """[B, C, h, w] -> no mean, about unit spread over each image; what is flat stays near zero."""
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + FLOOR)


def _halved(x: Tensor) -> Tensor:
    """[B, C, h, w] -> every second pixel after a binomial blur."""
    row = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])
