"""Embeddings of many chips are those of each; errors of hidden pixels as a loop over them would count."""

import numpy as np
import pytest
from test_training import fake_chips

from clay_lib import SENSORS, Clay, ClayConfig
from clay_lib.clay import embed_chips, principal_components, reconstruction_scores
from clay_lib.data.chips import world_chips

CLAY = Clay.random(ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=12), seed=1)


def test_embeddings_do_not_depend_on_the_batch():
    chips = fake_chips("naip", 7)
    whole, parts = embed_chips(CLAY, chips, batch_size=7), embed_chips(CLAY, chips, batch_size=3)
    for name, size in (("class token", 24), ("patch mean", 24)):
        assert whole[name].shape == (7, size)
        np.testing.assert_allclose(whole[name], parts[name], atol=1e-5)
    one = CLAY.embed(chips.pixels[3], "naip", when="2021-05-04T10:30", lat=10, lon=20)
    np.testing.assert_allclose(whole["class token"][3], one.chip[0].numpy(), atol=1e-5)


def test_scores_by_hand():
    chips = fake_chips("sentinel-2-l2a", 4)
    chips.pixels[:] += np.random.default_rng(0).normal(0, 300, chips.pixels.shape)
    table = reconstruction_scores(CLAY, chips, seed=3)
    made = CLAY.reconstruct(chips.pixels, "sentinel-2-l2a", seed=3, **chips.place_and_time)
    std = SENSORS["sentinel-2-l2a"].statistics()[1]
    for c in range(10):
        errors, guesses = [], []
        for b in range(4):
            hidden, truth = made.mask[b], chips.pixels[b, c]
            errors.append(np.abs(made.pixels[b, c] - truth)[hidden].mean())
            guesses.append(np.abs(truth[~hidden].mean() - truth)[hidden].mean())
        assert table["native_error"][c] == pytest.approx(np.mean(errors), rel=1e-3)
        assert table["mean_error"][c] == pytest.approx(np.mean(guesses) / std[c], rel=1e-3)
        assert table["ratio"][c] == pytest.approx(np.mean(errors) / np.mean(guesses), rel=1e-3)


def test_components_come_in_order_of_variance():
    patches = np.random.default_rng(0).normal(size=(2, 3, 5, 8)) * np.array([9, 5, 3, 1, 1, 1, 1, 1])
    parts = principal_components(patches)
    assert parts.shape == (2, 3, 5, 3)
    assert (np.diff(parts.reshape(-1, 3).std(0)) < 0).all()
    patches[0, 1, 2:4] = np.nan  # left out: neither looked at nor answered
    holes = principal_components(patches)
    assert np.isnan(holes[0, 1, 2:4]).all() and np.isnan(holes).sum() == 6
    np.testing.assert_allclose(np.delete(holes.reshape(-1, 3), [7, 8], 0).mean(0), 0, atol=1e-9)


def test_world_chips_are_kept_balanced_and_the_same_for_every_worker(tmp_path):
    ask = {"split": "test", "size": 16, "classes": (40, 60), "dates": 2}
    one = world_chips("naip", 6, jobs=1, cache=None, **ask)
    two = world_chips("naip", 6, jobs=2, cache=tmp_path, **ask)
    again = world_chips("naip", 6, cache=tmp_path, **ask)
    for a, b, c in zip(*(vars(x).values() for x in (one, two, again)), strict=True):
        assert np.array_equal(a, b) and np.array_equal(b, c)
    assert len(list(tmp_path.iterdir())) == 1 and one.pixels.shape == (6, 4, 16, 16)
    places = list(zip(one.lat.round(6), one.lon.round(6), strict=True))
    assert len(set(places)) == 4 and len(set(one.when)) == 6  # two classes in turn, two dates a place
    radar = world_chips("sentinel-1-rtc", 6, jobs=1, cache=None, **ask)
    assert np.allclose(radar.lat, one.lat, atol=0.01)  # the same places for every sensor
