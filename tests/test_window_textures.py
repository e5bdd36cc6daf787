"""The texture teacher for windows: centred, damped, told apart, indifferent to flips."""

import torch
from torch.nn import functional as F

from clay_lib.textures import texture_statistics
from clay_lib.window_textures import QUIET, WindowTextures


def noise(count, seed, size=64):
    """Images whose spectra fall differently, each with its own colour: [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]).clamp(min=1 / size)
    falls = 0.5 + 1.5 * torch.rand(count, 1, 1, 1, generator=generator)
    spectrum = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator)) * frequency**-falls
    images = torch.fft.irfft2(spectrum, s=(size, size))
    return images / images.std((1, 2, 3), keepdim=True) + torch.randn(count, 3, 1, 1, generator=generator)


def test_targets_are_centred_and_no_direction_rules():
    seen = texture_statistics(noise(96, 0))
    teacher = WindowTextures(seen)
    targets = teacher(noise(96, 0))
    assert targets.shape == (96, teacher.dim) and not targets.requires_grad
    assert F.normalize(targets, dim=1).mean(0).norm() < 0.25  # no direction common to all
    plain = torch.linalg.eigvalsh(torch.cov(((seen - seen.mean(0)) / seen.std(0)).T))
    turned = torch.linalg.eigvalsh(torch.cov(targets.T))
    assert plain[-1] / plain.sum() > 1.5 * turned[-1] / turned.sum()
    assert turned[-1] < plain[-1] and turned[0] < QUIET


def test_a_flip_or_a_turn_changes_little_and_another_image_much():
    teacher = WindowTextures(texture_statistics(noise(96, 0)))
    images = noise(16, 1)
    target = teacher(images)
    for other in (images.flip(3), images.flip(2), images.rot90(1, dims=(2, 3))):
        assert F.cosine_similarity(target, teacher(other)).mean() > 0.9
    assert F.cosine_similarity(target, target.roll(1, 0)).mean() < 0.3
