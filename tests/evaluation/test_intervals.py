"""Intervals: their coverage of the truth, and resampling by groups and seeds."""

import numpy as np
import pytest

from clay_lib.evaluation.intervals import as_text, interval, resample


def interval_of(hit, group=None, **kwargs):
    return interval(resample(hit, np.arange(len(hit)) if group is None else group, **kwargs))


def test_interval_covers_the_truth():
    """95 % intervals over 100 chips, 200 times: the share that holds the true accuracy is about 95 %."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        _, low, high = interval_of(rng.random(100) < 0.7, bootstraps=300, seed=seed)
        covered += low <= 0.7 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_correlated_chips_need_groups():
    """Chips of a place are correlated: resampled by place the interval covers the truth, by chip far too rarely."""
    rng, group, covered = np.random.default_rng(1), np.repeat(np.arange(60), 8), np.zeros(2)
    for seed in range(150):
        hit = rng.random(480) < rng.beta(2, 2, 60)[group]  # the mean over places is 0.5
        for k, groups in enumerate((group, None)):
            _, low, high = interval_of(hit, groups, bootstraps=200, seed=seed)
            covered[k] += low <= 0.5 <= high
    assert 0.89 <= covered[0] / 150 <= 0.99 and covered[1] / 150 < 0.8


def test_balanced_interval_covers_the_balanced_truth():
    rng, covered, label = np.random.default_rng(2), 0, np.repeat([0, 1], (150, 50))
    for seed in range(150):
        hit = rng.random(200) < np.array([0.9, 0.5])[label]
        value, low, high = interval_of(hit, stratum=label, bootstraps=200, seed=seed)
        assert value == pytest.approx((hit[:150].mean() + hit[150:].mean()) / 2)
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 150 <= 0.99


def test_resamplings_without_a_rare_class_are_left_out():
    """Class 1 has two places out of twenty and is always wrong: no resampling with both classes exceeds one half."""
    group, label = np.repeat(np.arange(20), 5), np.repeat([0] * 18 + [1] * 2, 5)
    assert interval_of(label == 0, group, stratum=label) == (0.5, 0.5, 0.5)
    assert interval_of(label == 0, group, stratum=label, skip_empty=True) == (0.5, 0.5, 1.0)


def test_seeds_are_resampled_too():
    """Every chip is right under seeds 0-2 and wrong under 3 and 4: all of the variation comes from the seeds."""
    draw = np.repeat(np.arange(5), 50)
    value, low, high = interval_of(draw < 3, np.tile(np.arange(50), 5), draw=draw)
    assert value == pytest.approx(0.6) and low <= 0.2 and high == pytest.approx(1.0)


def test_one_group_has_no_interval_and_few_groups_warn():
    hit = np.random.default_rng(0).random(40) < 0.7
    with pytest.warns(UserWarning, match="1 group"):
        value, low, high = interval_of(np.tile(hit, 2), np.zeros(80, int), draw=np.repeat([0, 1], 40))
    assert value == hit.mean() and np.isnan([low, high]).all() and as_text(value, low, high).endswith(" (–)")
    with pytest.warns(UserWarning, match="3 groups"):
        value, low, high = interval_of(hit, np.arange(40) % 3)
    assert low <= value <= high and as_text(value, low, high) == f"{value:.2f} ({low:.2f} to {high:.2f})"
