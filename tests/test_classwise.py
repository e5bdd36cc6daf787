"""Scores class by class: known tables give known numbers, and the interval knows the luck of the chips."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from clay_lib import ContractError
from clay_lib.classwise import class_scores, confusions, f1, iou, lead, pixel_classifier
from clay_lib.datasets import IGNORE, world_set


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 4, (2, 6, 8, 8))
    labels[0, :3] = IGNORE
    table = confusions(labels, answers, 4)
    known = labels != IGNORE
    assert table.shape == (6, 4, 4) and table.sum() == known.sum() and table[0].sum() == 40
    expected = jaccard_score(labels[known], answers[known], average=None)
    np.testing.assert_allclose(iou(table.sum(0)), expected)
    np.testing.assert_allclose(f1(table.sum(0)), f1_score(labels[known], answers[known], average=None))
    scores = class_scores(table, "abcd", bootstraps=50)
    assert scores["class"].tolist() == [*"abcd", "mean"] and scores["pixels"].iloc[-1] == known.sum()
    assert scores["IoU"].iloc[-1] == pytest.approx(expected.mean())
    assert (scores["IoU low"] <= scores["IoU"]).all() and (scores["IoU"] <= scores["IoU high"]).all()


def test_a_class_that_is_not_there_is_not_counted():
    table = confusions(np.zeros((1, 4), int), np.array([[0, 0, 0, 1]]), 3)
    scores = class_scores(table, "abc", bootstraps=0).set_index("class")
    assert scores.loc["a", "IoU"] == 0.75 and scores.loc["b", "IoU"] == 0 and np.isnan(scores.loc["c", "IoU"])
    assert scores.loc["mean", "IoU"] == 0.375
    with pytest.raises(ContractError, match="counted from 1"):
        confusions(np.full((1, 4), 3), np.zeros((1, 4), int), 3)


def test_the_interval_covers_and_groups_widen_it():
    """Chips alike in pairs: an interval that draws pairs together is wider, and holds the truth about as often as told."""
    rng = np.random.default_rng(0)
    held, widths = [], []
    for seed in range(60):
        right = np.repeat(rng.random(60) < 0.7, 2)
        table = np.zeros((120, 2, 2))
        table[
            np.arange(120),
            np.arange(120) // 2 % 2,
            np.where(right, np.arange(120) // 2 % 2, 1 - np.arange(120) // 2 % 2),
        ] = 1
        pairs = class_scores(table, "ab", groups=np.arange(120) // 2, bootstraps=200, seed=seed).iloc[-1]
        alone = class_scores(table, "ab", bootstraps=200, seed=seed).iloc[-1]
        held.append(pairs["F1 low"] <= 0.7 <= pairs["F1 high"])
        widths.append((pairs["F1 high"] - pairs["F1 low"]) / (alone["F1 high"] - alone["F1 low"]))
    assert np.mean(held) > 0.85 and 1.2 < np.mean(widths) < 1.7
    same = lead(table, table, bootstraps=50)
    assert same == (0, 0, 0)


@pytest.mark.parametrize("kind", ["forest", "boosting", "logistic"])
def test_a_classifier_of_single_pixels_knows_no_neighbours(kind):
    data = world_set(count=3, size=16, classes=[10, 60, 80], jobs=1, cache=None)
    classify = pixel_classifier(data, kind=kind, pixels=600)
    sample = data[0]
    answer = classify(sample.pixels)
    assert (answer == sample.label).mean() > 0.9
    order = np.random.default_rng(0).permutation(256)
    shuffled = sample.pixels.reshape(10, -1)[:, order].reshape(10, 16, 16)
    assert np.array_equal(classify(shuffled).ravel(), answer.ravel()[order])
    with pytest.raises(ContractError, match="forest"):
        pixel_classifier(data, kind="woods")
