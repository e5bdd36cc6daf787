"""Augmentation: shifted colors."""

import numpy as np
import torch

from clay_lib.data.augment import GAIN, OFFSET, Draws, shifted
from clay_lib.datacube import Datacube

B, C = 2000, 3


def cube(**options):
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(B, C, 4, 4)).astype(np.float32))
    return Datacube(pixels, torch.ones(B, 4), torch.ones(B, 4), 1.0, torch.tensor([0.65, 0.56, 0.48]), **options)


def test_a_share_is_shifted_and_loses_place_and_time():
    plain, draws = cube(), Draws((1, 2), np.arange(B))
    new = shifted(plain, draws, share=0.3)
    same = (new.pixels == plain.pixels).flatten(1).all(1)
    assert 0.67 < same.float().mean() < 0.73
    assert torch.equal(new.time[:, 0] == 1, same) and torch.equal(new.latlon, new.time)
    moved, original = new.pixels[~same].flatten(2), plain.pixels[~same].flatten(2)
    pairs = zip(moved.flatten(0, 1), original.flatten(0, 1), strict=True)
    fits = torch.stack([torch.stack([m.std(), m.mean() - m.std() / f.std() * f.mean()]) for m, f in pairs])
    gain = (fits[:, 0] / original.flatten(0, 1).std(1)).log()
    assert GAIN < gain.std() < 1.5 * GAIN and abs(gain.mean()) < 0.1
    assert OFFSET < fits[:, 1].std() < 1.5 * OFFSET
    assert torch.equal(new.pixels, shifted(plain, draws, share=0.3).pixels)


def test_holes_stay_zero():
    valid = torch.ones(B, 1, 4, 4, dtype=torch.bool)
    valid[:, :, 0, 0] = False
    plain = cube(valid=valid)
    new = shifted(plain.with_pixels(plain.pixels * valid), Draws((3,), np.arange(B)), share=1.0)
    assert (new.pixels[:, :, 0, 0] == 0).all() and (new.pixels[:, :, 1, 1] != 0).all()
