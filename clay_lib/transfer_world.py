"""What weights know of the mini-world: land cover told on land of its test split, and hidden patches rebuilt there."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clay_lib import probes
from clay_lib.chips import Chips, world_chips
from clay_lib.embed import embed_chips, reconstruction_scores
from clay_lib.evaluation import Evaluation, evaluate_features
from clay_lib.model import Clay
from clay_lib.sensors import SENSORS, WORLD_SENSORS


def probe_world(
    clay: Clay, *, chips: int = 660, test_chips: int = 330, seeds: int = 5, bootstraps: int = 1000
) -> Evaluation:
    """The commonest land cover of Sentinel-2 chips of 64 px, every place at two dates.

    Split "given": train and test places lie in different blocks of the world. Split "random": all chips mixed.
    Both dates of a place are drawn together for the intervals.
    """
    train, test = (
        world_chips("sentinel-2-l2a", n, split=s, dates=2) for n, s in ((chips, "train"), (test_chips, "test"))
    )
    twins = [Clay.random(clay.model.config, seed=k) for k in range(seeds)]
    sets = {}
    for who, models in {"Clay": [clay], "random weights": twins}.items():
        pairs = [[embed_chips(model, part) for part in (train, test)] for model in models]
        for kind in ("class token", "patch mean"):
            sets[f"{who}, {kind}"] = [(a[kind], b[kind]) for a, b in pairs]
        sets[f"{who}, both"] = [tuple(np.hstack(list(part.values())) for part in pair) for pair in pairs]
    a, b = (SENSORS["sentinel-2-l2a"].normalise(part.pixels) for part in (train, test))
    sets["pixel statistics"] = [(probes.pixel_statistics(a), probes.pixel_statistics(b))]
    random = probes.random_convolutions
    sets["random convolutions"] = [
        (random(a, n_filters=128, seed=k), random(b, n_filters=128, seed=k)) for k in range(seeds)
    ]
    pooled = {name: [np.concatenate(pair) for pair in versions] for name, versions in sets.items()}
    y = np.concatenate([train.land_cover, test.land_cover])
    place = np.concatenate([_places(train), len(train) + _places(test)])
    test_part = np.arange(len(y)) >= len(train)
    known = dict(metric="accuracy", seeds=seeds, bootstraps=bootstraps)
    parts = [
        evaluate_features(pooled, y, groups=place, test=test_part, **known),
        evaluate_features(pooled, y, **known),
    ]
    answers = pd.concat([p.answers.assign(group=place[p.answers["chip"]]) for p in parts], ignore_index=True)
    return Evaluation(answers, "accuracy", bootstraps)


def rebuild_world(clay: Clay, *, chips: int = 110, sizes: tuple[int, ...] = (64, 128), seeds: int = 5) -> pd.DataFrame:
    """Error of hidden pixels over that of guessing each chip's visible mean, three quarters hidden, by sensor.

    ratio: mean over `seeds` draws of what is hidden, low and high the least and the most of them.
    """
    rows = []
    for sensor in WORLD_SENSORS:
        for size in sizes:
            part = world_chips(sensor, chips, split="test", size=size)
            tables = [reconstruction_scores(clay, part, seed=k) for k in range(seeds)]
            ratios = [table["error"].mean() / table["mean_error"].mean() for table in tables]
            row = {"sensor": sensor, "size": size, "ratio": np.mean(ratios), "low": min(ratios), "high": max(ratios)}
            rows.append(
                {**row, "error": np.mean([table["error"].mean() for table in tables]), "chips": chips, "draws": seeds}
            )
    return pd.DataFrame(rows)


def _places(chips: Chips) -> np.ndarray:
    """[N] one number a place."""
    return np.unique(np.stack([chips.lat, chips.lon]), axis=1, return_inverse=True)[1].ravel()
