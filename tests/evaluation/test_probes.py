"""Probes: planted differences are detected, and the test set never leaks into training."""

import numpy as np
import pytest

from clay_lib import ContractError
from clay_lib.evaluation import probes


def planted(*, n=200, dim=8, classes=4, gap=20.0, seed=0):
    """Balanced labels and features whose class centers lie `gap` standard deviations apart (0: pure noise)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(n, dim)) + gap * np.eye(classes, dim)[labels], labels


def scores(features, train_y, test_y, bootstraps=1000, **kwargs):
    return probes.score(probes.predict(features, train_y, test_y, **kwargs), bootstraps=bootstraps)


def test_separable_features_score_one():
    (train_x, train_y), (test_x, test_y) = planted(), planted(n=400, seed=1)
    table = scores({"random convolutions": (train_x, test_x), "Clay": (train_x, test_x)}, train_y, test_y)
    assert list(table.columns) == "features kind probe metric score low high n_train n_test dim seeds".split()
    assert len(table) == 6 and set(table["probe"]) == {"kNN-5", "kNN-20 cosine", "linear"}
    assert set(table["features"] + table["kind"]) == {"random convolutionsbaseline", "Claymodel"}
    assert (table[["score", "low", "high"]] == 1).all(axis=None)
    assert (table["n_train"] == 200).all() and (table["n_test"] == 400).all() and (table["dim"] == 8).all()


def test_shuffled_labels_score_chance():
    """Ten shuffles, three probes: about 95 % of the intervals hold one in four, and so does the mean."""
    train_x, train_y = planted(gap=1.0)
    test_x, test_y = planted(gap=1.0, n=400, seed=1)
    tables = []
    for seed in range(10):
        shuffled = np.random.default_rng(seed).permutation(test_y)
        tables.append(scores({"Clay": (train_x, test_x)}, train_y, shuffled, bootstraps=200, seed=seed))
    low, score, high = (np.array([table[c] for table in tables]) for c in ("low", "score", "high"))
    assert ((low <= 0.25) & (0.25 <= high)).mean() >= 0.85
    assert abs(score.mean() - 0.25) < 0.02


def test_standardize_uses_the_training_set_and_zeroes_constant_columns():
    rng = np.random.default_rng(0)
    train, test = rng.normal(3, 2, size=(50, 3)), rng.normal(-1, 5, size=(40, 3))
    train[:, 1] = 0.1  # its mean is not exactly 0.1 in floating point
    a, b = probes.standardize(train, test)
    np.testing.assert_allclose(a[:, [0, 2]].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(a[:, [0, 2]].std(0), 1)
    assert not a[:, 1].any() and not b[:, 1].any()
    np.testing.assert_allclose(b[:, 0], (test[:, 0] - train[:, 0].mean()) / train[:, 0].std())


def test_c_is_chosen_without_the_test_set_and_by_group():
    (train_x, train_y), (test_x, test_y) = planted(gap=1.0), planted(gap=1.0, n=80, seed=1)
    rng = np.random.default_rng(0)

    def chosen(features, labels):
        table = probes.predict({"Clay": features}, train_y, labels, train_groups=np.arange(200) // 10)
        return table["C"].dropna().unique().tolist(), table["prediction"].tolist()

    assert chosen((train_x, test_x), test_y) == chosen((train_x, test_x), rng.permutation(test_y))
    assert chosen((train_x, test_x), test_y)[0] == chosen((train_x, rng.normal(size=test_x.shape)), test_y)[0]

    # columns that only name the group: a weak penalty pays if a group may sit on both sides, and only then
    groups = np.repeat(np.arange(20), 10)
    labels = rng.permutation(np.arange(20) % 2)[groups]
    x = np.c_[0.5 * np.eye(20)[groups], labels + rng.normal(size=200)]
    assert probes.choose_c(x, labels) > probes.choose_c(x, labels, groups=groups)


def test_features_are_chosen_by_cross_validation():
    rng, y = np.random.default_rng(0), np.tile([0, 1], 60)
    folds = np.repeat(np.arange(4), 30)
    useful, useless = y[:, None] + rng.normal(0, 0.3, (120, 4)), rng.normal(size=(120, 4))
    leaky = np.stack([folds, folds * y], axis=1) + rng.normal(0, 0.01, (120, 2))  # separates neighbors, not classes
    assert probes.choose_features({"useless": useless, "leaky": leaky, "useful": useful}, y, folds) == "useful"


def test_difference_is_paired_with_the_best_baseline():
    (train_x, train_y), (test_x, test_y) = planted(gap=1.2), planted(gap=1.2, n=300, seed=1)
    noise = np.random.default_rng(5).normal(size=(500, 8))
    features = {
        "random": (noise[:200], noise[200:]),
        "pixel statistics": (train_x, test_x),
        "Clay": (train_x * 2, test_x * 2),
    }
    predictions = probes.predict(features, train_y, test_y)
    table = probes.difference(predictions, bootstraps=200)
    assert (table["baseline"] == "pixel statistics").all() and (table["features"] == "Clay").all()
    # equal predictions on the same chips: no randomness is left, though each score alone has a wide interval
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    table = probes.score(predictions, bootstraps=200)
    assert (table["high"] - table["low"] > 0.05).all()

    weak = predictions[predictions["features"] != "pixel statistics"]
    linear = probes.difference(weak, bootstraps=200).set_index("probe").loc["linear"]
    assert 0 < linear["low"] < linear["difference"] < linear["high"]
    with pytest.raises(ContractError, match="no baseline"):
        probes.difference(predictions[predictions["kind"] == "model"])


X, Y = planted()
HOLE = np.where(np.arange(len(X))[:, None] == 3, np.nan, X)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("test labels", lambda: probes.predict({"a": (X, X)}, Y, Y[:-1])),
        ("train labels", lambda: probes.predict({"a": (X[Y > 0], X)}, Y[Y > 0], Y)),
        ("NaN", lambda: probes.predict({"a": (X, HOLE)}, Y, Y)),
        ("k = 20", lambda: probes.predict({"a": (X[:12], X)}, Y[:12], Y)),
        ("test features", lambda: probes.standardize(X, X[:, :-1])),
        ("train_groups", lambda: probes.predict({"a": (X, X)}, Y, Y, train_groups=np.zeros(200))),
        ("which", lambda: probes.predict({"a": (X, X)}, Y, Y, which=["svm"])),
        ("metric", lambda: probes.knn_score(X, Y, X, Y, metric="manhattan")),
    ],
)
def test_wrong_input_raises(words, call):
    with pytest.raises(ContractError, match=words):
        call()
