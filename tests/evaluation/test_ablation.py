"""Ablation: exactly one thing is withheld, by hand and by the front door alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clay_lib import Clay, ClayConfig, ContractError
from clay_lib.evaluation.ablation import SETTINGS, WRONG_GSD, cosine_change, withhold, without

TINY = ClayConfig(32, 2, 2, 16, 2, 16, 1, 2, 8, 2, teacher_dim=8)


@pytest.fixture(scope="module")
def clay():
    return Clay.random(TINY, seed=3)


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).uniform(200, 4000, (2, 10, 16, 16)).astype(np.float32)
    return dict(pixels=pixels, sensor="sentinel-2-l2a", when="2023-06-10T10:30", lat=-3.4, lon=34.1)


def test_one_thing_changes_and_the_rest_stays(clay, image):
    cube = clay.cube(**image)
    fields = {"wavelengths": "waves", "gsd": "gsd", "place": "latlon", "time": "time"}
    for off in SETTINGS:
        less = without(cube, off)
        for setting, name in fields.items():
            same = torch.equal(torch.as_tensor(getattr(less, name)), torch.as_tensor(getattr(cube, name)))
            assert same == (off not in (setting, "all"))
        assert torch.equal(less.pixels, cube.pixels)
    assert without(cube, "wavelengths").waves.std() == 0 and without(cube, "gsd").gsd == cube.gsd * WRONG_GSD
    with pytest.raises(ContractError, match="off"):
        without(cube, "colour")


def test_place_and_time_off_are_what_unknown_is(clay, image):
    unknown = {"place": {"lat": None, "lon": None}, "time": {"when": None}}
    for off, nothing in unknown.items():
        a, b = withhold(clay, off).embed(**image), clay.embed(**(image | nothing))
        torch.testing.assert_close(a.patches, b.patches)
        assert not torch.equal(a.chip, clay.embed(**image).chip)


def test_one_wavelength_makes_bands_exchangeable(clay, image):
    """Bands of one wavelength have one kernel: their order no longer matters, and before it did."""
    order = np.random.default_rng(0).permutation(10)
    for model, alike in ((withhold(clay, "wavelengths"), True), (clay, False)):
        cube = model.cube(**image)
        mixed = cube.with_pixels(cube.pixels[:, order])
        a, b = (model.model.encoder(c, mask_ratio=0.0, shuffle=False).tokens for c in (cube, mixed))
        assert torch.allclose(a, b, atol=1e-4) == alike


def test_the_front_door_withholds_in_reconstruction_too(clay, image):
    a, b = (model.reconstruct(**image).pixels for model in (clay, withhold(clay, "wavelengths")))
    assert a.shape == b.shape and not np.allclose(a, b)
    assert type(clay) is Clay and withhold(clay, "gsd").model is clay.model


def test_cosines():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(200, 64)) + 0.5, np.arange(200) // 2
    assert cosine_change(x, 3 * x, groups=groups, bootstraps=50)[["cosine", "low", "high"]].tolist() == pytest.approx(
        [1.0, 1.0, 1.0]
    )
    told = cosine_change(x, x[rng.permutation(200)], groups=groups, bootstraps=200)
    assert told["low"] < told["unlike"] < told["high"]
    y = rng.normal(size=(200, 64)) + 0.5
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    by_hand = (a @ b.T)[~np.eye(200, dtype=bool)].mean()  # one told, another not told
    assert cosine_change(x, y, groups=groups, bootstraps=50)["unlike"] == pytest.approx(by_hand)
