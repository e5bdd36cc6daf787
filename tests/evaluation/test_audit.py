"""The audit finds planted duplicates, planted wrong labels and a known miscalibration, and few where there are none."""

import numpy as np
import pytest

from clay_lib.errors import ContractError
from clay_lib.evaluation.audit import audit_labels, calibration, likely_wrong, near_duplicates, out_of_fold

N, D = 480, 24
NAMES = np.array(["water", "town", "field", "woods"])


@pytest.fixture(scope="module")
def chips():
    """Features [N, D], labels [N], groups of three chips [N], and which are for testing [N]."""
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=N)
    groups = np.arange(N) // 3
    features = (
        rng.normal(size=(4, D))[truth] + 0.8 * rng.normal(size=(N, D)) + 0.3 * rng.normal(size=(N // 3, D))[groups]
    )
    return features, NAMES[truth], groups, groups % 4 == 0


def test_planted_duplicates_are_found(chips):
    features, labels, groups, test = chips
    assert near_duplicates(features, test)["cosine"].max() < 0.95, "chips of one place alone are none"
    copied, rng = features.copy(), np.random.default_rng(1)
    tested, trained = np.flatnonzero(test)[:12], np.flatnonzero(~test)[:12]
    copied[tested] = features[trained] + 0.02 * rng.normal(size=(12, D))
    pairs = near_duplicates(copied, test).set_index("chip")
    assert pairs.loc[tested, "train"].tolist() == trained.tolist()
    assert pairs.index[pairs["cosine"] >= 0.98].tolist() == tested.tolist()
    report = audit_labels(copied, labels, groups=groups, test=test, seeds=2, bootstraps=50)
    assert report.sentences["duplicates"].startswith("12 of 120 test chips have a near-duplicate")


def test_planted_wrong_labels_come_first(chips):
    features, labels, groups, test = chips
    planted = np.random.default_rng(2).choice(N, 24, replace=False)
    wrong = labels.copy()
    wrong[planted] = [NAMES[(np.flatnonzero(NAMES == name)[0] + 1) % 4] for name in labels[planted]]
    report = audit_labels(features, wrong, groups=groups, test=test, seeds=2, bootstraps=50)
    found = report.wrong["chip"][:24]
    assert np.isin(planted, report.wrong["chip"]).mean() >= 0.9 and np.isin(found, planted).mean() >= 0.85
    suggested = report.wrong.set_index("chip")["suggestion"].reindex(planted).dropna()
    assert (suggested == labels[suggested.index]).mean() > 0.95
    assert report.sentences["wrong"].count("rather") == 3 and f"chip {found[0]}" in report.sentences["wrong"]
    clean = audit_labels(features, labels, groups=groups, test=test, seeds=2, bootstraps=50)
    assert len(clean.wrong) < 0.03 * N


def test_confident_learning_by_hand():
    classes, labels = np.array(["a", "b"]), np.array(["a", "a", "a", "b", "b"])
    p = np.array([0.9, 0.8, 0.2, 0.1, 0.45])  # of a; the means of p(a) of a and of p(b) of b are 0.63 and 0.725
    table = likely_wrong(np.stack([p, 1 - p], axis=1), labels, classes)
    assert table["chip"].tolist() == [2] and table["suggestion"].tolist() == ["b"]
    assert table["margin"][0] == pytest.approx(0.6)


def test_miscalibration_is_measured():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.5, 1, 20_000)
    bins, error = calibration(confidence, rng.random(20_000) < confidence)
    assert error < 0.02 and bins["count"].sum() == 20_000
    bins, error = calibration(confidence, rng.random(20_000) < confidence - 0.15)
    assert error == pytest.approx(0.15, abs=0.01)
    np.testing.assert_allclose(bins["confidence"] - bins["accuracy"], 0.15, atol=0.03)


def test_learning_curve_flattens_where_labels_are_enough(chips, tmp_path, capsys):
    features, labels, groups, test = chips
    report = audit_labels(features, labels, groups=groups, test=test, bootstraps=200)
    curve = report.curve
    assert curve["labels"].tolist() == [11, 22, 45, 90, 180, 360] and curve["cost"].iloc[-1] == 0
    assert (
        curve["score"].iloc[0] < curve["score"].iloc[-1] - 0.05
        and "within a point of all 360" in report.sentences["curve"]
    )
    report.write(tmp_path)
    assert {path.name for path in tmp_path.glob("*")} >= {"duplicates.png", "calibration.png", "curve.png", "wrong.csv"}
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_no_group_predicts_itself(chips):
    """Labels by group and features without meaning: out of fold, nothing is left to learn."""
    _, _, groups, _ = chips
    rng = np.random.default_rng(4)
    features = np.repeat(rng.normal(size=(N // 3, D)), 3, axis=0)
    labels = NAMES[np.repeat(rng.integers(4, size=N // 3), 3)]
    probabilities, classes = out_of_fold(features, labels, groups=groups, strength=1.0)
    assert (classes[probabilities.argmax(1)] == labels).mean() < 0.4
    np.testing.assert_allclose(probabilities.sum(1), 1)
    with pytest.raises(ContractError, match="one of each"):
        audit_labels(features, labels[1:], groups=groups)
