"""The wavelength slider: kernels are the model's own, images between bands lie between them, and a move redraws."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, ClayConfig, ContractError
from clay_lib.course.widgets import (
    GRID,
    kernels_at,
    likeness,
    pixels_at,
    response,
    set_up,
    show_wavelengths,
    wavelength_slider,
)
from clay_lib.world.earth import MiniWorld

SENSOR = SENSORS["sentinel-2-l2a"]


@pytest.fixture(scope="module")
def clay():
    return Clay.random(ClayConfig.named("tiny"), seed=0)


@pytest.fixture(scope="module")
def pixels():
    world = MiniWorld(0)
    return world.observe(world.place(40, 1, "test"), SENSOR.name, "2023-06-10T10:30", 64).pixels


def test_kernels_and_their_answers_are_the_embedding_s(clay, pixels):
    embedding = clay.model.encoder.patch_embedding
    cube = clay.cube(pixels[SENSOR.indices(["red"])], SENSOR, bands=["red"], check=False)
    (kernel,) = kernels_at(clay, cube.waves.tolist())
    with torch.no_grad():
        weight, bias = embedding.kernels(cube.waves)
        tokens = embedding(cube.pixels, cube.waves)[0] - bias
    np.testing.assert_allclose(kernel, weight[:, 0].numpy(), rtol=1e-6)
    answer = response(kernel, cube.pixels[0, 0].numpy())
    np.testing.assert_allclose(answer.reshape(len(kernel), -1).T, tokens.numpy(), rtol=1e-3, atol=1e-4)
    by_torch = F.conv2d(cube.pixels, torch.from_numpy(kernel)[:, None], stride=8)[0]
    np.testing.assert_allclose(answer, by_torch.numpy(), rtol=1e-3, atol=1e-4)


def test_an_image_between_two_bands_is_their_mixture_and_beyond_the_last_it_stays():
    image, waves = np.arange(3.0)[:, None, None] * np.ones((3, 2, 2)), np.array([0.8, 0.5, 1.6], np.float32)
    np.testing.assert_allclose(pixels_at(image, waves, 0.65), 0.5, rtol=1e-5)  # half of band 1, half of band 0
    np.testing.assert_allclose(pixels_at(image, waves, 1.0), 0.5, rtol=1e-5)  # three quarters of band 0, a quarter of 2
    for wave, value in {0.8: 0, 0.3: 1, 3.0: 2}.items():
        np.testing.assert_allclose(pixels_at(image, waves, wave), value, atol=1e-6)


def test_likeness_is_one_with_itself_and_falls_with_distance(clay):
    table = kernels_at(clay, GRID[::8])
    alike = likeness(table[0], table)
    assert alike[0] == pytest.approx(1, abs=1e-5) and (np.diff(alike) < 0).all()


def test_a_moved_slider_redraws_and_the_output_holds_a_still_picture(clay, pixels):
    bench = set_up(clay, pixels, SENSOR)
    assert len(set(bench.shown.tolist())) == len(show_wavelengths(bench, [0.62]).axes) - 3  # curve, chip and answer
    box = wavelength_slider(clay, pixels)
    slider, picture = box.children
    before = picture.value
    slider.value = 1.1
    assert picture.value != before and not slider.continuous_update
    slider.value = 0.62
    assert picture.value == before
    assert "image/png" in box._repr_mimebundle_() and len(box.still) < 300_000


@pytest.mark.parametrize(
    "sensor, shape, wave, cause",
    [
        (SENSOR, (10, 7, 64), 0.62, "8 x 8"),
        ("sentinel-1-rtc", (2, 64, 64), 0.62, "radar"),
        (SENSOR, (10, 64, 64), 620, "nanometres"),
    ],
)
def test_what_has_no_picture_is_one_clear_error(clay, sensor, shape, wave, cause):
    with pytest.raises(ContractError, match=cause):
        wavelength_slider(clay, np.ones(shape, np.float32), sensor, wave=wave)
