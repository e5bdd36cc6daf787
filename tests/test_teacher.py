"""Teachers: DINOv2 from a folder, what it gets of each sensor, and the texture statistics."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clay_lib import SENSORS, ContractError
from clay_lib.teacher import (
    MIN_VARIANCE,
    TextureTeacher,
    load_teacher,
    stand_in_teacher,
    teacher_view,
    texture_statistics,
)


def test_loads_from_a_local_folder(tmp_path):
    stand_in = stand_in_teacher()
    stand_in.network.save_pretrained(tmp_path)
    loaded = load_teacher(str(tmp_path), size=56)
    rgb = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(rgb), stand_in(rgb)) and not loaded.stand_in


def test_missing_folder_raises(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ContractError, match="stand_in_teacher"):
        load_teacher(str(tmp_path / "nothing"))


def test_view_of_sensors():
    s2 = torch.arange(10.0).reshape(1, 10, 1, 1)
    assert teacher_view(s2, SENSORS["sentinel-2-l2a"]).flatten().tolist() == [2, 1, 0]
    radar = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    assert teacher_view(radar, SENSORS["sentinel-1-rtc"]).flatten().tolist() == [1, 3, 2]


def noise(count, seed, size=64):
    """Images whose spectra fall differently, each with its own color: [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]).clamp(min=1 / size)
    falls = 0.5 + 1.5 * torch.rand(count, 1, 1, 1, generator=generator)
    spectrum = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator)) * frequency**-falls
    images = torch.fft.irfft2(spectrum, s=(size, size))
    return images / images.std((1, 2, 3), keepdim=True) + torch.randn(count, 3, 1, 1, generator=generator)


def gratings(angle: float, period: float = 8.0) -> torch.Tensor:
    """[1, 3, 128, 128] gray stripes."""
    y, x = torch.meshgrid(*[torch.arange(128.0)] * 2, indexing="ij")
    wave = torch.sin(2 * torch.pi / period * (x * np.cos(angle) + y * np.sin(angle)))
    return wave.expand(1, 3, 128, 128).contiguous()


@pytest.fixture(scope="module")
def teacher():
    return TextureTeacher(texture_statistics(noise(96, 0)))


def test_flat_images_give_finite_features(teacher):
    assert texture_statistics(gratings(0.3)).shape == (1, teacher.dim)
    for image in (torch.zeros(2, 3, 64, 64), 100 * torch.ones(1, 3, 64, 50), torch.randn(1, 3, 200, 203)):
        out = teacher(image)
        assert out.shape == (len(image), teacher.dim) and out.isfinite().all() and not out.requires_grad


def test_stripes_are_oriented_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    first, other = (texture_statistics(gratings(a))[0].tolist() for a in (0.3, 1.7))
    noise = texture_statistics(torch.randn(1, 1, 128, 128, generator=generator).expand(1, 3, 128, 128))[0]
    directed = 15  # the first octave's global harmonic
    assert first[directed] > 10 * noise[directed] and other[directed] == pytest.approx(first[directed], rel=0.15)


def test_targets_are_centered_and_no_direction_dominates():
    statistics = texture_statistics(noise(96, 0))
    teacher = TextureTeacher(statistics)
    targets = teacher(noise(96, 0))
    assert targets.shape == (96, teacher.dim) and not targets.requires_grad
    assert F.normalize(targets, dim=1).mean(0).norm() < 0.25  # no direction common to all
    plain = torch.linalg.eigvalsh(torch.cov(((statistics - statistics.mean(0)) / statistics.std(0)).T))
    turned = torch.linalg.eigvalsh(torch.cov(targets.T))
    assert plain[-1] / plain.sum() > 1.5 * turned[-1] / turned.sum()
    assert turned[-1] < plain[-1] and turned[0] < MIN_VARIANCE


def test_flips_and_turns_change_little_and_another_image_much(teacher):
    images = noise(16, 1)
    target = teacher(images)
    for other in (images.flip(3), images.flip(2), images.rot90(1, dims=(2, 3))):
        assert F.cosine_similarity(target, teacher(other)).mean() > 0.9
    assert F.cosine_similarity(target, target.roll(1, 0)).mean() < 0.3


def test_autocast_and_training_mode_change_nothing(teacher):
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher.train()(images)
    torch.testing.assert_close(inside, teacher(images))
