"""Colors and styles: the right bands become red, green and blue; saved twice gives the same bytes."""

import matplotlib
import numpy as np
import pytest

from clay_lib import figures
from clay_lib.figures.style import MISSING, describe
from clay_lib.sensors import SENSORS, to_decibel

RNG = np.random.default_rng(0)
S2 = "sentinel-2-l2a"


@pytest.fixture
def pixels():
    return RNG.gamma(4, 300, (10, 32, 32)).astype(np.float32)


def test_rgb_finds_red_green_and_blue_in_any_order(pixels):
    image = figures.rgb(pixels, S2)
    assert image.shape == (32, 32, 3) and image.min() == 0 and image.max() == 1
    names = ["green", "nir", "red", "blue"]
    np.testing.assert_allclose(figures.rgb(pixels[SENSORS[S2].indices(names)], S2, names), image)
    red = figures.rgb(np.stack([np.full((4, 4), v) for v in (255, 0, 0, 90)]), "naip", stretch=None)
    assert red[0, 0].tolist() == [1, 0, 0]


def test_rgb_of_native_and_normalized_numbers_agree():
    for name in SENSORS:
        sensor = SENSORS[name]
        pixels = RNG.gamma(4, 0.02 if sensor.decibel else 30, (len(sensor.bands), 16, 16)).astype(np.float32)
        native = figures.rgb(pixels, sensor)
        np.testing.assert_allclose(figures.rgb(sensor.normalize(pixels), sensor, normalized=True), native, atol=2e-4)
        if sensor.decibel:
            np.testing.assert_allclose(figures.rgb(to_decibel(pixels), sensor), native, atol=1e-5)  # by its sign


def test_missing_pixels_are_gray_and_do_not_change_the_stretch(pixels):
    expected = figures.rgb(pixels[:, 1:], S2)
    pixels[:, 0, :16], pixels[:, 0, 16:] = np.nan, 32767
    valid = np.ones((32, 32), bool)
    valid[0, 16:] = False
    image = figures.rgb(pixels, S2, valid=valid)
    assert (image[0] == MISSING).all()
    np.testing.assert_allclose(image[1:], expected)


def test_saved_twice_is_the_same_file_and_the_global_style_is_unchanged(tmp_path):
    before = dict(matplotlib.rcParams)
    files = [
        figures.save(figures.matrix(np.eye(4), form="{:.1f}"), tmp_path / "deep" / name).read_bytes()
        for name in ("a.png", "b.png")
    ]
    assert files[0] == files[1] and b"Software" not in files[0]
    assert dict(matplotlib.rcParams) == before


def test_alternative_text_names_titles_axes_and_legend():
    fig = figures.matrix(np.eye(3), title="Confusion", xlabel="predicted class", names=["a", "b", "c"])
    fig.axes[0].plot([0], [0], label="a dot")
    fig.axes[0].legend()
    assert describe(fig).startswith("Confusion, x: predicted class") and describe(fig).endswith("Legend: a dot")
