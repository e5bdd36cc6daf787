"""The shipped weights match the files beside them, and have learned the mini-world."""

import numpy as np
import pandas as pd
import pytest

from clay_lib import SENSORS, Clay, ClayConfig
from clay_lib.clay import cosine_initialized, embed_chips, reconstruction_scores
from clay_lib.data.chips import world_chips
from clay_lib.files import DATA, find_weights, read_yaml

WEIGHTS = DATA / "weights" / "clay-mini.safetensors"


@pytest.fixture(scope="module")
def untrained(mini) -> Clay:
    return cosine_initialized(mini.model.config, seed=0)


def test_weights_are_small_and_match_their_configuration(mini):
    assert WEIGHTS.stat().st_size < 20e6 and find_weights("clay-mini") == WEIGHTS
    recipe = read_yaml(WEIGHTS.with_suffix(".yaml"))
    changes = {"teacher_dim": mini.model.config.teacher_dim, **recipe["model"]["changes"]}
    assert mini.model.config == ClayConfig.named(recipe["model"]["size"], **changes)
    log = pd.read_csv(WEIGHTS.with_suffix(".csv"))
    assert log["step"].max() == recipe["settings"]["max_steps"] and set(recipe["data"]["repeats"]) <= set(SENSORS)


@pytest.mark.parametrize("sensor", ["sentinel-2-l2a", "landsat-c2l2-sr"])
def test_masked_pixels_are_predicted_better_than_by_the_visible_mean(mini, untrained, sensor):
    chips = world_chips(sensor, 33, split="test", size=64)
    trained, before = (reconstruction_scores(model, chips, mask_ratio=0.6) for model in (mini, untrained))
    assert trained["error"].mean() < 0.8 * trained["mean_error"].mean() < before["error"].mean()


@pytest.mark.parametrize("kind", ["class token", "patch mean"])
def test_nearest_neighbor_has_the_same_land_cover(mini, untrained, kind):
    """The nearest neighbor, always of another place, has the same of eleven land covers far more often than by chance."""
    chips = world_chips("sentinel-2-l2a", 66, split="test", size=64)
    same = chips.land_cover[:, None] == chips.land_cover
    agreement = []
    for model in (mini, untrained):
        v = embed_chips(model, chips)[kind]
        v = (v - v.mean(0)) / v.std(0)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        similarity = v @ v.T - 2 * np.eye(len(v))
        agreement.append(same[np.arange(len(v)), similarity.argmax(1)].mean())
    assert agreement[0] > max(0.5, agreement[1] + 0.1)
