"""The masking playground: the numbers behind the sliders are the model's, and a slider redraws the picture."""

import io

import numpy as np
import pytest
from PIL import Image

from clay_lib import SENSORS, Clay, ContractError
from clay_lib.course.widgets import playground, rebuild
from clay_lib.files import DATA
from clay_lib.world.earth import MiniWorld

SENSOR = SENSORS["sentinel-2-l2a"]


@pytest.fixture(scope="module")
def clay():
    return Clay.load(DATA / "weights" / "clay-mini.safetensors")


@pytest.fixture(scope="module")
def seen():
    world = MiniWorld(0)
    chip = world.observe(world.place(40, 1, "test"), SENSOR.name, "2023-06-10T10:30", 64)
    return chip.pixels, dict(when="2023-06-10T10:30", lat=chip.lat, lon=chip.lon)


def test_what_is_drawn_is_what_the_front_door_rebuilds(clay, seen):
    pixels, place = seen
    made = rebuild(clay, pixels, SENSOR, mask_ratio=0.6, seed=3, **place)
    known = clay.reconstruct(pixels, SENSOR, mask_ratio=0.6, seed=3, **place)
    np.testing.assert_array_equal(made.hidden, known.mask[0])
    np.testing.assert_allclose(made.pixels, SENSOR.normalize(known.pixels[0]), atol=1e-3)
    truth, hidden = SENSOR.normalize(pixels.astype(np.float32)), made.hidden
    assert made.error == pytest.approx(np.abs(made.pixels - truth)[:, hidden].mean(), rel=1e-4)
    plain = truth[:, ~hidden].mean(axis=1, keepdims=True)
    assert made.floor == pytest.approx(np.abs(truth[:, hidden] - plain).mean(), rel=1e-4)


def test_every_control_reaches_the_model_and_the_same_setting_gives_the_same_picture(clay, seen):
    pixels, place = seen
    told = dict(mask_ratio=0.6, **place)
    before = rebuild(clay, pixels, SENSOR, **told)
    np.testing.assert_array_equal(before.pixels, rebuild(clay, pixels, SENSOR, **told).pixels)
    for change in (dict(gsd=100.0), dict(lat=72.0, lon=-40.0), dict(when="2023-12-15T10:30"), dict(when=None)):
        after = rebuild(clay, pixels, SENSOR, **{**told, **change})
        np.testing.assert_array_equal(after.hidden, before.hidden)
        assert np.abs(after.pixels - before.pixels).max() > 1e-3, change
    two = rebuild(clay, pixels, SENSOR, bands=["nir", "red"], **told)
    np.testing.assert_array_equal(two.original, before.original[SENSOR.indices(["nir", "red"])])
    assert (rebuild(clay, pixels, SENSOR, **told, seed=1).hidden != before.hidden).any()
    assert np.isnan(rebuild(clay, pixels, SENSOR, mask_ratio=0.0, **place).error)
    with pytest.raises(ContractError, match="name those it has"):
        playground(clay, pixels[:3], SENSOR, **place)


def test_holes_are_neither_seen_nor_scored(clay, seen):
    pixels, place = seen
    holes = pixels.astype(np.float32)
    holes[:, 10:13, 20:60] = holes[:, 32:48, :24] = np.nan
    made = rebuild(clay, holes, SENSOR, mask_ratio=0.6, **place)
    known = clay.reconstruct(holes, SENSOR, mask_ratio=0.6, **place)
    np.testing.assert_array_equal(made.hidden, known.mask[0])
    off = np.abs(made.pixels - SENSOR.normalize(holes))[:, made.hidden]
    assert np.isnan(off).any() and made.error == pytest.approx(np.nanmean(off), rel=1e-4)


def test_a_moved_slider_redraws_and_the_output_holds_a_still_picture(clay, seen):
    pixels, place = seen
    box = playground(clay, pixels, SENSOR, mask_ratio=0.6, **place)
    by_name = {c.description: c for side in box.children[0].children for c in side.children}
    picture = box.children[1]
    assert not by_name["hidden"].continuous_update, "no redraw for every pixel of a mouse's way"
    for name, value in {
        "hidden": 0.9,
        "bands": ("nir", "red"),
        "told place": "Greenland",
        "told date": "2023-12",
    }.items():
        before = picture.value
        by_name[name].value = value
        assert picture.value != before, name
    told = box._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(told)
    still = Image.open(io.BytesIO(box.still))
    assert still.width > 600 and len(box.still) < 300_000


def test_radar_can_be_played_with_too(clay):
    world = MiniWorld(0)
    chip = world.observe(world.place(40, 1, "test"), "sentinel-1-rtc", "2023-06-10T10:30", 64)
    box = playground(clay, chip.pixels, "sentinel-1-rtc")
    assert box.still and box.children[1].value
