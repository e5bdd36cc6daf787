"""The texture teacher knows what it says it knows: real images by their texture, and nothing of how they were turned."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clay_lib.evaluation import probes
from clay_lib.sensors import SENSORS
from clay_lib.teacher import QUIET, TextureTeacher, texture_statistics, texture_teacher


def noise(count, seed, size=64):
    """Images whose spectra fall differently, each with its own colour: [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]).clamp(min=1 / size)
    falls = 0.5 + 1.5 * torch.rand(count, 1, 1, 1, generator=generator)
    spectrum = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator)) * frequency**-falls
    images = torch.fft.irfft2(spectrum, s=(size, size))
    return images / images.std((1, 2, 3), keepdim=True) + torch.randn(count, 3, 1, 1, generator=generator)


def gratings(angle: float, period: float = 8.0) -> torch.Tensor:
    """[1, 3, 128, 128] grey stripes."""
    y, x = torch.meshgrid(*[torch.arange(128.0)] * 2, indexing="ij")
    wave = torch.sin(2 * torch.pi / period * (x * np.cos(angle) + y * np.sin(angle)))
    return wave.expand(1, 3, 128, 128).contiguous()


@pytest.fixture(scope="module")
def teacher():
    return TextureTeacher(texture_statistics(noise(96, 0)))


def test_one_number_a_feature_and_the_flattest_image_is_finite(teacher):
    assert texture_statistics(gratings(0.3)).shape == (1, teacher.dim)
    for image in (torch.zeros(2, 3, 64, 64), 100 * torch.ones(1, 3, 64, 50), torch.randn(1, 3, 200, 203)):
        out = teacher(image)
        assert out.shape == (len(image), teacher.dim) and out.isfinite().all() and not out.requires_grad


def test_stripes_are_directed_wherever_they_point_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    first, other = (texture_statistics(gratings(a))[0].tolist() for a in (0.3, 1.7))
    noise = texture_statistics(torch.randn(1, 1, 128, 128, generator=generator).expand(1, 3, 128, 128))[0]
    directed = 15  # the first octave's harmonic of the whole
    assert first[directed] > 10 * noise[directed] and other[directed] == pytest.approx(first[directed], rel=0.15)


def test_targets_are_centred_and_no_direction_rules():
    seen = texture_statistics(noise(96, 0))
    teacher = TextureTeacher(seen)
    targets = teacher(noise(96, 0))
    assert targets.shape == (96, teacher.dim) and not targets.requires_grad
    assert F.normalize(targets, dim=1).mean(0).norm() < 0.25  # no direction common to all
    plain = torch.linalg.eigvalsh(torch.cov(((seen - seen.mean(0)) / seen.std(0)).T))
    turned = torch.linalg.eigvalsh(torch.cov(targets.T))
    assert plain[-1] / plain.sum() > 1.5 * turned[-1] / turned.sum()
    assert turned[-1] < plain[-1] and turned[0] < QUIET


def test_a_flip_or_a_turn_changes_little_and_another_image_much(teacher):
    images = noise(16, 1)
    target = teacher(images)
    for other in (images.flip(3), images.flip(2), images.rot90(1, dims=(2, 3))):
        assert F.cosine_similarity(target, teacher(other)).mean() > 0.9
    assert F.cosine_similarity(target, target.roll(1, 0)).mean() < 0.3


def test_half_precision_and_training_mode_around_it_change_nothing(teacher):
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher.train()(images)
    torch.testing.assert_close(inside, teacher(images))


def test_real_images_far_above_the_floors(realdata):
    """A share of the aerial images, split by number since neighbours lie in one mosaic."""
    files = sorted((realdata / "ucmerced").rglob("*.jpg"))[::3]
    images = np.stack([np.asarray(Image.open(file))[:247, :247].transpose(2, 0, 1) for file in files])
    labels = np.array([file.parent.name for file in files])
    train = np.array([int(re.search(r"\d+$", file.stem)[0]) < 66 for file in files])
    rgb, teacher = torch.from_numpy(SENSORS["linz"].normalize(images)), texture_teacher()
    known = torch.cat([teacher(part) for part in rgb.split(25)]).numpy()
    score = probes.knn_score(known[train], labels[train], known[~train], labels[~train], k=5, metric="cosine")
    assert score > 0.7  # floor: 0.49 with all of the images
