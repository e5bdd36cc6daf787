"""The masking playground and the wavelength slider: their numbers are the model's, and a moved control redraws."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, ClayConfig, ContractError
from clay_lib.course import widgets
from clay_lib.world.earth import MiniWorld

SENSOR = SENSORS["sentinel-2-l2a"]


def observe(sensor):
    world = MiniWorld(0)
    return world.observe(world.place(40, 1, "test"), sensor, "2023-06-10T10:30", 64)


@pytest.fixture(scope="module")
def untrained():
    return Clay.random(ClayConfig.named("tiny"), seed=0)


@pytest.fixture(scope="module")
def chip():
    return observe(SENSOR.name)


@pytest.fixture(scope="module")
def place(chip):
    return dict(when="2023-06-10T10:30", lat=chip.lat, lon=chip.lon)


# ---- masking ----


def test_reconstruction_is_that_of_clay(mini, chip, place):
    result = widgets.reconstruct(mini, chip.pixels, SENSOR, mask_ratio=0.6, seed=3, **place)
    expected = mini.reconstruct(chip.pixels, SENSOR, mask_ratio=0.6, seed=3, **place)
    np.testing.assert_array_equal(result.hidden, expected.mask[0])
    np.testing.assert_allclose(result.pixels, SENSOR.normalize(expected.pixels[0]), atol=1e-3)
    truth, hidden = SENSOR.normalize(chip.pixels.astype(np.float32)), result.hidden
    assert result.error == pytest.approx(np.abs(result.pixels - truth)[:, hidden].mean(), rel=1e-4)
    mean = truth[:, ~hidden].mean(axis=1, keepdims=True)
    assert result.baseline == pytest.approx(np.abs(truth[:, hidden] - mean).mean(), rel=1e-4)


def test_every_option_reaches_the_model(mini, chip, place):
    options = dict(mask_ratio=0.6, **place)
    before = widgets.reconstruct(mini, chip.pixels, SENSOR, **options)
    np.testing.assert_array_equal(before.pixels, widgets.reconstruct(mini, chip.pixels, SENSOR, **options).pixels)
    for change in (dict(gsd=100.0), dict(lat=72.0, lon=-40.0), dict(when="2023-12-15T10:30"), dict(when=None)):
        after = widgets.reconstruct(mini, chip.pixels, SENSOR, **{**options, **change})
        np.testing.assert_array_equal(after.hidden, before.hidden)
        assert np.abs(after.pixels - before.pixels).max() > 1e-3, change
    two = widgets.reconstruct(mini, chip.pixels, SENSOR, bands=["nir", "red"], **options)
    np.testing.assert_array_equal(two.original, before.original[SENSOR.indices(["nir", "red"])])
    assert (widgets.reconstruct(mini, chip.pixels, SENSOR, **options, seed=1).hidden != before.hidden).any()
    assert np.isnan(widgets.reconstruct(mini, chip.pixels, SENSOR, mask_ratio=0.0, **place).error)
    with pytest.raises(ContractError, match="name those it has"):
        widgets.playground(mini, chip.pixels[:3], SENSOR, **place)


def test_missing_pixels_do_not_count(mini, chip, place):
    holes = chip.pixels.astype(np.float32)
    holes[:, 10:13, 20:60] = holes[:, 32:48, :24] = np.nan
    result = widgets.reconstruct(mini, holes, SENSOR, mask_ratio=0.6, **place)
    expected = mini.reconstruct(holes, SENSOR, mask_ratio=0.6, **place)
    np.testing.assert_array_equal(result.hidden, expected.mask[0])
    difference = np.abs(result.pixels - SENSOR.normalize(holes))[:, result.hidden]
    assert np.isnan(difference).any() and result.error == pytest.approx(np.nanmean(difference), rel=1e-4)


def test_moved_control_redraws_the_playground(mini, chip, place):
    box = widgets.playground(mini, chip.pixels, SENSOR, mask_ratio=0.6, **place)
    controls = {control.description: control for side in box.children[0].children for control in side.children}
    assert not controls["hidden"].continuous_update, "no redraw before the mouse lets go"
    for name, value in {"hidden": 0.9, "bands": ("nir", "red"), "place": "Greenland", "date": "2023-12"}.items():
        before = box.children[1].value
        controls[name].value = value
        assert box.children[1].value != before, name
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/html"} <= set(box._repr_mimebundle_())
    assert box.page.count("data:image/webp") == len(widgets.RATIOS) and box.page.count("data:image/png") == 1
    assert Image.open(io.BytesIO(box.still)).width > 600 and len(box.still) < 300_000


# ---- wavelengths ----


def test_kernels_and_responses_are_those_of_the_embedding(untrained, chip):
    embedding = untrained.model.encoder.patch_embedding
    cube = untrained.cube(chip.pixels[SENSOR.indices(["red"])], SENSOR, bands=["red"], check=False)
    (kernel,) = widgets.kernels_at(untrained, cube.waves.tolist())
    with torch.no_grad():
        weight, bias = embedding.kernels(cube.waves)
        tokens = embedding(cube.pixels, cube.waves)[0] - bias
    np.testing.assert_allclose(kernel, weight[:, 0].numpy(), rtol=1e-6)
    response = widgets.response(kernel, cube.pixels[0, 0].numpy())
    np.testing.assert_allclose(response.reshape(len(kernel), -1).T, tokens.numpy(), rtol=1e-3, atol=1e-4)
    convolved = F.conv2d(cube.pixels, torch.from_numpy(kernel)[:, None], stride=8)[0]
    np.testing.assert_allclose(response, convolved.numpy(), rtol=1e-3, atol=1e-4)


def test_images_are_interpolated_between_bands_and_constant_beyond():
    image, waves = np.arange(3.0)[:, None, None] * np.ones((3, 2, 2)), np.array([0.8, 0.5, 1.6], np.float32)
    # 0.65: half of band 1, half of band 0; 1.0: three quarters of band 0, a quarter of band 2
    for wave, value in {0.65: 0.5, 1.0: 0.5, 0.8: 0, 0.3: 1, 3.0: 2}.items():
        np.testing.assert_allclose(widgets.pixels_at(image, waves, wave), value, atol=1e-5)


def test_moved_slider_redraws_the_kernels(untrained, chip):
    view = widgets.kernel_view(untrained, chip.pixels, SENSOR)
    axes = widgets.show_wavelengths(view, [0.62]).axes
    assert len(set(view.shown.tolist())) == len(axes) - 3, "curve, chip and response beside them"
    box = widgets.wavelength_slider(untrained, chip.pixels)
    slider, image = box.children
    before = image.value
    slider.value = 1.1
    assert image.value != before and not slider.continuous_update
    slider.value = 0.62
    assert image.value == before
    assert "image/png" in box._repr_mimebundle_() and len(box.still) < 300_000


@pytest.mark.parametrize(
    ("sensor", "shape", "wave", "cause"),
    [
        (SENSOR, (10, 7, 64), 0.62, "8 x 8"),
        ("sentinel-1-rtc", (2, 64, 64), 0.62, "radar"),
        (SENSOR, (10, 64, 64), 620, "nanometers"),
    ],
)
def test_wrong_pixels_and_wavelengths_raise(untrained, sensor, shape, wave, cause):
    with pytest.raises(ContractError, match=cause):
        widgets.wavelength_slider(untrained, np.ones(shape, np.float32), sensor, wave=wave)
