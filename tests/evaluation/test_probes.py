"""Probes: planted answers are found, absent ones are not, and nothing of the test set leaks into training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clay_lib import ContractError
from clay_lib.evaluation import probes

UCMERCED = Path(__file__).resolve().parents[3] / "shared" / "realdata" / "ucmerced"


def planted(*, n=200, dim=8, classes=4, gap=20.0, seed=0):
    """Balanced labels and features whose class centres lie `gap` standard deviations apart (0: pure noise)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(n, dim)) + gap * np.eye(classes, dim)[labels], labels


def test_separable_features_score_one():
    (train_x, train_y), (test_x, test_y) = planted(), planted(n=400, seed=1)
    table = probes.probe({"random convolutions": (train_x, test_x), "Clay": (train_x, test_x)}, train_y, test_y)
    assert list(table.columns) == "features kind probe metric score low high n_train n_test dim seeds".split()
    assert len(table) == 6 and set(table["probe"]) == {"kNN-5", "kNN-20 cosine", "linear"}
    assert set(table["features"] + table["kind"]) == {"random convolutionsfloor", "Claymodel"}
    assert (table[["score", "low", "high"]] == 1).all(axis=None)
    assert (table["n_train"] == 200).all() and (table["n_test"] == 400).all() and (table["dim"] == 8).all()


def test_shuffled_labels_score_chance():
    """Ten shuffles, three probes: about 95 % of the intervals hold one in four, and so does the mean."""
    train_x, train_y = planted(gap=1.0)
    test_x, test_y = planted(gap=1.0, n=400, seed=1)
    tables = []
    for seed in range(10):
        shuffled = np.random.default_rng(seed).permutation(test_y)
        tables.append(probes.probe({"Clay": (train_x, test_x)}, train_y, shuffled, bootstraps=200, seed=seed))
    low, score, high = (np.array([table[c] for table in tables]) for c in ("low", "score", "high"))
    assert ((low <= 0.25) & (0.25 <= high)).mean() >= 0.85
    assert abs(score.mean() - 0.25) < 0.02


def test_scaling_and_shifting_a_feature_set_changes_nothing():
    (train_x, train_y), (test_x, test_y) = planted(gap=1.5), planted(gap=1.5, n=120, seed=1)
    scale = np.logspace(-15, 3, train_x.shape[1])
    features = {"a": (train_x, test_x), "b": (train_x * scale + 100 * scale, test_x * scale + 100 * scale)}
    scores = probes.probe(features, train_y, test_y, bootstraps=10).pivot(
        index="probe", columns="features", values="score"
    )
    assert np.array_equal(scores["a"], scores["b"])


def test_standardise_uses_the_training_set_and_survives_constant_columns():
    rng = np.random.default_rng(0)
    train, test = rng.normal(3, 2, size=(50, 3)), rng.normal(-1, 5, size=(40, 3))
    train[:, 1] = 0.1  # its mean is not exactly 0.1 in floating point
    a, b = probes.standardise(train, test)
    np.testing.assert_allclose(a[:, [0, 2]].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(a[:, [0, 2]].std(0), 1)
    assert not a[:, 1].any() and not b[:, 1].any()
    np.testing.assert_allclose(b[:, 0], (test[:, 0] - train[:, 0].mean()) / train[:, 0].std())


def test_c_is_chosen_without_the_test_set_and_by_group():
    (train_x, train_y), (test_x, test_y) = planted(gap=1.0), planted(gap=1.0, n=80, seed=1)
    rng = np.random.default_rng(0)

    def chosen(features, labels):
        answers = probes.predict({"Clay": features}, train_y, labels, train_groups=np.arange(200) // 10)
        return answers["C"].dropna().unique().tolist(), answers["answer"].tolist()

    assert chosen((train_x, test_x), test_y) == chosen((train_x, test_x), rng.permutation(test_y))
    assert chosen((train_x, test_x), test_y)[0] == chosen((train_x, rng.normal(size=test_x.shape)), test_y)[0]

    # columns that only name the group: a weak penalty pays if a group may sit on both sides, and only then
    groups = np.repeat(np.arange(20), 10)
    labels = rng.permutation(np.arange(20) % 2)[groups]
    x = np.c_[0.5 * np.eye(20)[groups], labels + rng.normal(size=200)]
    assert probes.choose_c(x, labels) > probes.choose_c(x, labels, groups=groups)


def test_difference_is_paired_with_the_best_floor():
    (train_x, train_y), (test_x, test_y) = planted(gap=1.2), planted(gap=1.2, n=300, seed=1)
    noise = np.random.default_rng(5).normal(size=(500, 8))
    features = {"weak": (noise[:200], noise[200:]), "strong": (train_x, test_x), "twin": (train_x * 2, test_x * 2)}
    answers = probes.predict(features, train_y, test_y, floors=["weak", "strong"])
    table = probes.difference(answers, bootstraps=200)
    assert (table["floor"] == "strong").all() and (table["features"] == "twin").all()
    # same answers on the same chips: no luck is left, though each score alone has a wide interval
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    scores = probes.score(answers, bootstraps=200)
    assert (scores["high"] - scores["low"] > 0.05).all()

    gain = probes.difference(probes.predict(features, train_y, test_y, floors=["weak"]), bootstraps=200)
    linear = gain[(gain["probe"] == "linear") & (gain["features"] == "strong")].iloc[0]
    assert 0 < linear["low"] < linear["difference"] < linear["high"]
    with pytest.raises(ContractError, match="no floor"):
        probes.difference(probes.predict(features, train_y, test_y))


def test_pixel_floors():
    pixels = np.random.default_rng(0).normal(size=(6, 3, 17, 12)).astype(np.float32)
    stats = probes.pixel_statistics(pixels)
    assert stats.shape == (6, 6)
    np.testing.assert_allclose(stats[2, [1, 4]], [pixels[2, 1].mean(), pixels[2, 1].std()], rtol=1e-5)
    one, again, other = (probes.random_convolutions(pixels, n_filters=9, seed=seed) for seed in (0, 0, 1))
    assert one.shape[0] == 6 and np.isfinite(one).all()
    assert np.array_equal(one, again) and not np.allclose(one, other)
    assert probes.random_convolutions(pixels, n_filters=9, sides=(3,), maximum=False).shape == (6, 9)
    histogram = probes.colour_histogram(np.floor(99 * np.abs(pixels) / np.abs(pixels).max()), bins=4, limits=(0, 100))
    np.testing.assert_allclose(histogram.reshape(6, 3, 4).sum(2), 1)
    in_third = (np.floor(99 * np.abs(pixels) / np.abs(pixels).max()) // 25 == 2).mean((2, 3))
    np.testing.assert_allclose(histogram[:, 2::4], in_third)
    # a chip's features do not depend on the chips beside it
    np.testing.assert_allclose(probes.random_convolutions(pixels[3:4], n_filters=9, seed=0), one[3:4], atol=1e-6)


def test_wrong_input_is_told():
    x, y = planted()
    hole = x.copy()
    hole[3, 2] = np.nan
    wrong = {
        "test labels": lambda: probes.probe({"a": (x, x)}, y, y[:-1]),
        "train labels": lambda: probes.probe({"a": (x[y > 0], x)}, y[y > 0], y),
        "NaN": lambda: probes.probe({"a": (x, hole)}, y, y),
        "k = 20": lambda: probes.probe({"a": (x[:12], x)}, y[:12], y),
        "test features": lambda: probes.standardise(x, x[:, :-1]),
        "train_groups": lambda: probes.probe({"a": (x, x)}, y, y, train_groups=np.zeros(200)),
        "floors": lambda: probes.probe({"a": (x, x)}, y, y, floors=["pixels"]),
        "metric": lambda: probes.knn_score(x, y, x, y, metric="manhattan"),
        "pixels": lambda: probes.pixel_statistics(np.full((2, 3, 8, 8), np.nan)),
        "\\[N, C, H, W\\]": lambda: probes.random_convolutions(np.zeros((3, 8, 8))),
    }
    for words, call in wrong.items():
        with pytest.raises(ContractError, match=words):
            call()


# -- the known figures of UC Merced's floors --------------------------------------------------------------------------
# They came without a recipe. This one gives those of colour: kNN-5 and the linear probe (C = 1) on standardised features,
# kNN-20 by cosine on raw ones. `probe` standardises for all three, by which kNN-20 of pixel statistics gains 12 points.


@pytest.fixture(scope="module")
def ucmerced():
    """500 images [3, H, W] of 8 bits, whose sizes differ by a few pixels; class names; which train.

    File numbers are neighbours in one mosaic, so the split is by number.
    """
    if not UCMERCED.is_dir():
        pytest.skip("the UC Merced sample (shared/realdata/ucmerced) is not on this machine")
    files = sorted(UCMERCED.rglob("*.jpg"))
    images = [np.asarray(Image.open(f).convert("RGB")).transpose(2, 0, 1) for f in files]
    train = np.array([int(re.search(r"\d+$", f.stem)[0]) < 66 for f in files])
    assert len(files) == 500 and train.sum() == 330
    return images, np.array([f.parent.name for f in files]), train


def three(x, labels, train, *, raw_cosine):
    """kNN-5, kNN-20 by cosine, linear with C = 1."""
    y = labels[train], labels[~train]
    a, b = probes.standardise(x[train], x[~train])
    u, v = (x[train], x[~train]) if raw_cosine else (a, b)
    cosine = probes.knn_score(u, y[0], v, y[1], k=20, metric="cosine")
    return [probes.knn_score(a, y[0], b, y[1]), cosine, probes.fit_linear(a, y[0], 1.0).score(b, y[1])]


def test_ucmerced_colour_floors_reproduce_known_figures(ucmerced):
    images, labels, train = ucmerced
    stats = np.concatenate([probes.pixel_statistics(image[None]) for image in images])
    histogram = np.concatenate([probes.colour_histogram(image[None]) for image in images])
    for x, known in ((stats, [0.453, 0.341, 0.500]), (histogram, [0.424, 0.441, 0.459])):
        np.testing.assert_allclose(three(x, labels, train, raw_cosine=True), known, atol=0.02)
    # as `probe` does it, a floor is no lower
    table = probes.probe({"pixel statistics": (stats[train], stats[~train])}, labels[train], labels[~train],
                         bootstraps=20).set_index("probe")["score"]  # fmt: skip
    assert table["kNN-20 cosine"] > 0.341 + 0.1 and table["linear"] >= 0.500 - 0.02


@pytest.mark.slow
def test_ucmerced_random_convolutions_reproduce_known_figures(ucmerced):
    """The mean of five seeds: images of 128 px, normalised by the training set; 64 filters of 5 x 5, mean alone; all
    three probes on standardised features. More filters, or the maximum beside the mean, score higher."""
    images, labels, train = ucmerced
    small = [Image.fromarray(i.transpose(1, 2, 0)).resize((128, 128), Image.Resampling.BOX) for i in images]
    pixels = np.stack([np.asarray(i, np.float32).transpose(2, 0, 1) for i in small])
    mean, std = (f(pixels[train], axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    pixels = (pixels - mean) / std
    how = dict(n_filters=64, sides=(5,), maximum=False)
    seen = [probes.random_convolutions(pixels, seed=k, **how) for k in range(5)]
    scores = np.mean([three(x, labels, train, raw_cosine=False) for x in seen], axis=0)
    np.testing.assert_allclose(scores, [0.488, 0.506, 0.600], atol=0.02)
