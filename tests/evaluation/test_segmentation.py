"""Segmentation scores: known tables give known scores, and intervals cover the choice of chips."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from clay_lib import ContractError
from clay_lib.data.labels import IGNORE, world_set
from clay_lib.evaluation.segmentation import class_scores, confusions, f1, iou, iou_gain, pixel_classifier


def test_scores_equal_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, (2, 6, 8, 8))
    labels[0, :3] = IGNORE
    table = confusions(labels, predictions, 4)
    known = labels != IGNORE
    assert table.shape == (6, 4, 4) and table.sum() == known.sum() and table[0].sum() == 40
    expected = jaccard_score(labels[known], predictions[known], average=None)
    np.testing.assert_allclose(iou(table.sum(0)), expected)
    np.testing.assert_allclose(f1(table.sum(0)), f1_score(labels[known], predictions[known], average=None))
    scores = class_scores(table, "abcd", bootstraps=50)
    assert scores["class"].tolist() == [*"abcd", "mean"] and scores["pixels"].iloc[-1] == known.sum()
    assert scores["IoU"].iloc[-1] == pytest.approx(expected.mean())
    assert (scores["IoU low"] <= scores["IoU"]).all() and (scores["IoU"] <= scores["IoU high"]).all()


def test_an_absent_class_is_not_counted():
    table = confusions(np.zeros((1, 4), int), np.array([[0, 0, 0, 1]]), 3)
    scores = class_scores(table, "abc", bootstraps=0).set_index("class")
    assert scores.loc["a", "IoU"] == 0.75 and scores.loc[["b", "c"], "IoU"].isna().all()
    assert scores.loc["mean", "IoU"] == 0.75
    with pytest.raises(ContractError, match="counted from 1"):
        confusions(np.full((1, 4), 3), np.zeros((1, 4), int), 3)
    with pytest.raises(ContractError, match="other chips"):
        confusions(np.zeros((1, 4), int), np.zeros((2, 4), int), 3)


def test_the_interval_covers_the_truth_and_groups_widen_it():
    """Pairs of equal chips: an interval over pairs is wider, and covers the truth about as often as it claims."""
    rng, chip = np.random.default_rng(0), np.arange(120)
    truth, covered, widths = chip // 2 % 2, [], []
    for seed in range(60):
        right = np.repeat(rng.random(60) < 0.7, 2)
        table = np.zeros((120, 2, 2))
        table[chip, truth, np.where(right, truth, 1 - truth)] = 1
        pairs = class_scores(table, "ab", groups=chip // 2, bootstraps=200, seed=seed).iloc[-1]
        alone = class_scores(table, "ab", bootstraps=200, seed=seed).iloc[-1]
        covered.append(pairs["F1 low"] <= 0.7 <= pairs["F1 high"])
        widths.append((pairs["F1 high"] - pairs["F1 low"]) / (alone["F1 high"] - alone["F1 low"]))
    assert np.mean(covered) > 0.85 and 1.2 < np.mean(widths) < 1.7
    assert iou_gain(table, table, bootstraps=50) == (0, 0, 0)


def test_two_models_are_averaged_over_the_same_classes():
    """A model that predicts an absent class at one pixel is not averaged over one class more than the baseline."""
    labels = np.random.default_rng(0).integers(0, 2, (40, 100))
    draw = np.random.default_rng(1).random(labels.shape)
    ours, baseline = (np.where(draw < share, labels, 1 - labels) for share in (0.8, 0.7))
    ours[0, 0] = 2
    ours, baseline = (confusions(labels, predictions, 3) for predictions in (ours, baseline))
    gain, low, high = iou_gain(ours, baseline, bootstraps=100)
    assert 0.05 < low < gain < high < 0.2
    means = [class_scores(part, "abc", bootstraps=0)["IoU"].iloc[-1] for part in (ours, baseline)]
    assert gain == pytest.approx(means[0] - means[1])


def test_a_resampling_without_a_class_does_not_count_for_the_mean():
    """Class 1 is on one chip of eight and never predicted: no resampling with it has a mean above one half."""
    table = confusions(np.repeat([0] * 7 + [1], 4).reshape(8, 4), np.zeros((8, 4), int), 2)
    scores = class_scores(table, "ab", bootstraps=200).set_index("class")
    assert scores.loc["mean", "IoU high"] <= 0.5 and scores.loc["b", "IoU high"] == 0


@pytest.mark.parametrize("kind", ["forest", "boosting", "logistic"])
def test_a_pixel_classifier_ignores_neighboring_pixels(kind):
    data = world_set(count=3, size=16, classes=[10, 60, 80], jobs=1, cache=None)
    classify = pixel_classifier(data, kind=kind, pixels=600)
    sample = data[0]
    predicted = classify(sample.pixels)
    assert (predicted == sample.label).mean() > 0.9
    order = np.random.default_rng(0).permutation(256)
    shuffled = sample.pixels.reshape(10, -1)[:, order].reshape(10, 16, 16)
    assert np.array_equal(classify(shuffled).ravel(), predicted.ravel()[order])
    with pytest.raises(ContractError, match="forest"):
        pixel_classifier(data, kind="woods")
