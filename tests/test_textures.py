"""The texture teacher knows what it says it knows: real images by their texture, and nothing of how they were turned."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clay_lib import probes
from clay_lib.sensors import SENSORS
from clay_lib.textures import MEAN, STD, texture_statistics, texture_teacher


def gratings(angle: float, period: float = 8.0) -> torch.Tensor:
    """[1, 3, 128, 128] grey stripes."""
    y, x = torch.meshgrid(*[torch.arange(128.0)] * 2, indexing="ij")
    wave = torch.sin(2 * torch.pi / period * (x * np.cos(angle) + y * np.sin(angle)))
    return wave.expand(1, 3, 128, 128).contiguous()


def test_one_number_a_feature_and_the_flattest_image_is_finite():
    teacher = texture_teacher(64)
    assert texture_statistics(gratings(0.3)).shape == (1, len(MEAN)) == (1, len(STD))
    for image in (torch.zeros(2, 3, 64, 64), 100 * torch.ones(1, 3, 64, 50), torch.randn(1, 3, 200, 200)):
        out = teacher(image)
        assert out.shape == (len(image), 64) and out.isfinite().all() and not out.requires_grad


def test_stripes_are_directed_wherever_they_point_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    first, other = (texture_statistics(gratings(a))[0].tolist() for a in (0.3, 1.7))
    noise = texture_statistics(torch.randn(1, 1, 128, 128, generator=generator).expand(1, 3, 128, 128))[0]
    directed = 15  # the first octave's harmonic of the whole
    assert first[directed] > 10 * noise[directed] and other[directed] == pytest.approx(first[directed], rel=0.15)


def test_flips_and_training_mode_change_little_and_the_seed_turns_without_bending():
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    images = F.interpolate(images, (128, 128), mode="bicubic") + images.mean((2, 3), keepdim=True)
    teacher = texture_teacher()
    out = teacher(images)
    assert F.cosine_similarity(out, teacher.train()(images.flip(2, 3))).min() > 0.97
    torch.testing.assert_close(texture_teacher(seed=0)(images), out)
    turned = texture_teacher(seed=1)(images)
    assert (turned - out).abs().max() > 0.1
    torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(out, out), rtol=1e-3, atol=1e-3)


def test_half_precision_around_it_changes_nothing():
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = texture_teacher()(images)
    torch.testing.assert_close(inside, texture_teacher()(images))


def test_real_images_far_above_the_floors(realdata):
    """A share of the aerial images, split by number since neighbours lie in one mosaic."""
    files = sorted((realdata / "ucmerced").rglob("*.jpg"))[::3]
    images = np.stack([np.asarray(Image.open(file))[:247, :247].transpose(2, 0, 1) for file in files])
    labels = np.array([file.parent.name for file in files])
    train = np.array([int(re.search(r"\d+$", file.stem)[0]) < 66 for file in files])
    rgb, teacher = torch.from_numpy(SENSORS["linz"].normalise(images)), texture_teacher()
    known = torch.cat([teacher(part) for part in rgb.split(25)]).numpy()
    score = probes.knn_score(known[train], labels[train], known[~train], labels[~train], k=5, metric="cosine")
    assert score > 0.7  # floor: 0.49 with all of the images
