"""Reconstruction measured against interpolation: by hand, and on the shipped weights."""

import numpy as np
import pytest
import torch
from fakes import MICRO

from clay_lib import Clay
from clay_lib.evaluation.reconstruction import interpolate, reconstruction_table


def test_interpolation_by_hand():
    pixels = torch.tensor([[[[1.0, 9.0, 9.0, 4.0]]]])
    visible = torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]])
    near, far = 1.0, 2.0**-4
    found = interpolate(pixels, visible, power=4)
    expected = [(near * 1 + far * 4) / (near + far), (near * 4 + far * 1) / (near + far)]
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1.0, *expected, 4.0]))


def test_interpolation_is_exact_on_a_flat_image_and_ignores_hidden_pixels():
    visible = (torch.rand(1, 1, 32, 24) > 0.5).float()
    hidden_values = 5 * torch.randn(1, 2, 32, 24) * (1 - visible)
    torch.testing.assert_close(interpolate(3 + hidden_values, visible), torch.full((1, 2, 32, 24), 3.0))


def test_random_weights_reconstruct_nothing():
    clay = Clay.random(MICRO, seed=0)
    table = reconstruction_table(clay, sensors=["naip", "sentinel-1-rtc"], chips=4, sizes=(32,), seeds=2, bootstraps=20)
    assert len(table) == 2 * 3 * 3
    assert (table["low"] <= table["value"] + 1e-9).all() and (table["value"] <= table["high"] + 1e-9).all()
    value = table.set_index(["sensor", "method", "measure"])["value"]
    assert value["naip", "interpolation", "error"] == 1 and value["naip", "model", "error"] > 1
    assert abs(value["naip", "model", "detail"]) < 0.2 < value["naip", "interpolation", "detail"]
    assert value["naip", "visible mean", "means"] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(value).all()
