"""Scores class by class: known tables give known numbers, and the interval knows the luck of the chips."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from clay_lib import ContractError
from clay_lib.data.labels import IGNORE, world_set
from clay_lib.evaluation.segmentation import class_scores, confusions, f1, iou, lead, pixel_classifier


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
    assert scores.loc["a", "IoU"] == 0.75 and scores.loc[["b", "c"], "IoU"].isna().all()
    assert scores.loc["mean", "IoU"] == 0.75
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


def test_two_ways_of_answering_are_averaged_over_the_same_classes():
    """Ours is better on all land, but says the class that is nowhere at one pixel: that must not cost it a third."""
    labels = np.random.default_rng(0).integers(0, 2, (40, 100))
    draw = np.random.default_rng(1).random(labels.shape)
    ours, floor = (np.where(draw < share, labels, 1 - labels) for share in (0.8, 0.7))
    ours[0, 0] = 2
    ours, floor = (confusions(labels, said, 3) for said in (ours, floor))
    gain, low, high = lead(ours, floor, bootstraps=100)
    assert 0.05 < low < gain < high < 0.2
    means = [class_scores(part, "abc", bootstraps=0)["IoU"].iloc[-1] for part in (ours, floor)]
    assert gain == pytest.approx(means[0] - means[1])


def test_a_draw_without_a_class_says_nothing_of_the_mean():
    """Class 1 is on one chip of eight and never said: no draw that holds it has a mean above a half."""
    table = confusions(np.repeat([0] * 7 + [1], 4).reshape(8, 4), np.zeros((8, 4), int), 2)
    scores = class_scores(table, "ab", bootstraps=200).set_index("class")
    assert scores.loc["mean", "IoU high"] <= 0.5 and scores.loc["b", "IoU high"] == 0


def test_one_group_has_no_interval_and_few_are_warned_of():
    labels = np.random.default_rng(0).integers(0, 2, (12, 50))
    table = confusions(labels, np.where(np.random.default_rng(1).random(labels.shape) < 0.7, labels, 1 - labels), 2)
    with pytest.warns(UserWarning, match="1 group"):
        scores = class_scores(table, "ab", groups=["scene"] * 12, bootstraps=20)
    assert scores["IoU"].notna().all() and scores[["IoU low", "IoU high", "F1 low", "F1 high"]].isna().all(axis=None)
    with pytest.warns(UserWarning, match="1 group"):
        assert np.isnan(lead(table, table, groups=["scene"] * 12, bootstraps=20)[1:]).all()
    with pytest.warns(UserWarning, match="3 groups"):
        assert lead(table, table, groups=np.arange(12) % 3, bootstraps=20) == (0, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        class_scores(table, "ab", bootstraps=20)


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
