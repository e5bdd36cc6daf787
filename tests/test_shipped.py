"""The weights that travel with the repository are what the files beside them say, and know the mini-world."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml

from clay_lib import SENSORS, Clay, ClayConfig
from clay_lib.checkpoint import find_weights
from clay_lib.clay import cosine_initialized, embed_chips, reconstruction_scores
from clay_lib.data.chips import world_chips
from clay_lib.files import DATA

WEIGHTS = DATA / "weights" / "clay-mini.safetensors"


@pytest.fixture(scope="module")
def clay() -> Clay:
    return Clay.load(WEIGHTS)


@pytest.fixture(scope="module")
def newborn(clay) -> Clay:
    return cosine_initialized(clay.model.config, seed=0)


def test_weights_are_small_found_by_name_and_of_the_configuration_beside_them(clay):
    assert WEIGHTS.stat().st_size < 20e6 and find_weights(WEIGHTS.name) == find_weights("clay-mini") == WEIGHTS
    made = yaml.safe_load(WEIGHTS.with_suffix(".yaml").read_text())
    teacher_dim = clay.model.config.teacher_dim
    assert clay.model.config == ClayConfig.named(
        made["model"]["size"], teacher_dim=teacher_dim, **made["model"]["changes"]
    )
    log = pd.read_csv(WEIGHTS.with_suffix(".csv"))
    assert log["step"].max() == made["settings"]["max_steps"] and set(made["data"]["chips"]) <= set(SENSORS)


@pytest.mark.parametrize("sensor", ["sentinel-2-l2a", "landsat-c2l2-sr"])
def test_hidden_pixels_of_unseen_land_are_nearer_than_their_visible_mean(clay, newborn, sensor):
    chips = world_chips(sensor, 33, split="test", size=64)
    trained, before = (reconstruction_scores(model, chips, mask_ratio=0.6) for model in (clay, newborn))
    assert trained["error"].mean() < 0.8 * trained["mean_error"].mean() < before["error"].mean()


@pytest.mark.parametrize("kind", ["class token", "patch mean"])
def test_chips_of_one_land_cover_are_more_alike_than_before_the_training(clay, newborn, kind):
    """Nearest neighbours, each at another place: far more often of the same kind than eleven kinds by chance."""
    chips = world_chips("sentinel-2-l2a", 66, split="test", size=64)
    same = chips.land_cover[:, None] == chips.land_cover
    agreement = []
    for model in (clay, newborn):
        v = embed_chips(model, chips)[kind]
        v = (v - v.mean(0)) / v.std(0)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        likeness = v @ v.T - 2 * np.eye(len(v))
        agreement.append(same[np.arange(len(v)), likeness.argmax(1)].mean())
    assert agreement[0] > max(0.5, agreement[1] + 0.1)
