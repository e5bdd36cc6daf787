"""Hand-crafted baselines: shapes, values by hand, and the published figures for UC Merced."""

import re

import numpy as np
import pytest
from PIL import Image

from clay_lib.evaluation import probes
from clay_lib.evaluation.baselines import (
    color_histogram,
    pixel_statistics,
    random_convolutions,
    whitened_convolutions,
)


def test_features_by_hand():
    pixels = np.random.default_rng(0).normal(size=(6, 3, 17, 12)).astype(np.float32)
    stats = pixel_statistics(pixels)
    assert stats.shape == (6, 6)
    np.testing.assert_allclose(stats[2, [1, 4]], [pixels[2, 1].mean(), pixels[2, 1].std()], rtol=1e-5)
    one, again, other = (random_convolutions(pixels, n_filters=9, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (6, 18) and np.isfinite(one).all()
    assert np.array_equal(one, again) and not np.allclose(one, other)
    assert random_convolutions(pixels, n_filters=9, sides=(3,), maximum=False).shape == (6, 9)
    # a chip's features do not depend on the chips beside it
    np.testing.assert_allclose(random_convolutions(pixels[3:4], n_filters=9, seed=0), one[3:4], atol=1e-6)
    values = np.floor(99 * np.abs(pixels) / np.abs(pixels).max())
    histogram = color_histogram(values, bins=4, limits=(0, 100))
    np.testing.assert_allclose(histogram.reshape(6, 3, 4).sum(2), 1)
    np.testing.assert_allclose(histogram[:, 2::4], (values // 25 == 2).mean((2, 3)))


def test_whitened_convolutions_have_filters_of_edges():
    """On smooth images a whitened filter responds little to brightness and much to contrast."""
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(12, 3, 24, 20)), axis=2), axis=3).astype(np.float32) / 20
    one, again, other = (whitened_convolutions(smooth, n_filters=8, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (12, 16) and np.array_equal(one, again) and not np.allclose(one, other)
    brighter, plain = (whitened_convolutions(x, n_filters=8) for x in (smooth + 5, smooth))
    np.testing.assert_allclose(brighter, plain, atol=1e-3)  # the windows' mean is removed
    fine, coarse = rng.normal(size=smooth.shape), np.broadcast_to(rng.normal(size=(12, 3, 1, 1)), smooth.shape)
    mixed = np.concatenate([smooth + 0.3 * fine, smooth + 0.3 * coarse])
    ratios = []
    for x in (whitened_convolutions(mixed, n_filters=64, bias=0.0), random_convolutions(mixed, n_filters=64)[:, :64]):
        ratios.append(x[:12].mean() / x[12:].mean())  # the same change, as noise and as brightness
    assert ratios[0] > 1.15 > ratios[1]


# The published figures for UC Merced came without a recipe. This one reproduces those of color: kNN-5 and the linear
# probe (C = 1) on standardized features, kNN-20 by cosine on raw ones. `predict` standardizes for all three, by which
# kNN-20 of pixel statistics gains 12 points.


@pytest.fixture(scope="module")
def ucmerced(realdata):
    """500 images [3, H, W] of 8 bits, of slightly different sizes; class names; which are for training.

    File numbers are neighbors in one mosaic, so the split is by number.
    """
    files = sorted((realdata / "ucmerced").rglob("*.jpg"))
    images = [np.asarray(Image.open(f).convert("RGB")).transpose(2, 0, 1) for f in files]
    train = np.array([int(re.search(r"\d+$", f.stem)[0]) < 66 for f in files])
    assert len(files) == 500 and train.sum() == 330
    return images, np.array([f.parent.name for f in files]), train


def three_scores(x, labels, train, *, raw_cosine):
    """kNN-5, kNN-20 by cosine, linear with C = 1."""
    y = labels[train], labels[~train]
    a, b = probes.standardize(x[train], x[~train])
    u, v = (x[train], x[~train]) if raw_cosine else (a, b)
    cosine = probes.knn_score(u, y[0], v, y[1], k=20, metric="cosine")
    return [probes.knn_score(a, y[0], b, y[1]), cosine, probes.fit_linear(a, y[0], 1.0).score(b, y[1])]


def test_color_baselines_reproduce_published_figures(ucmerced):
    images, labels, train = ucmerced
    stats = np.concatenate([pixel_statistics(image[None]) for image in images])
    histogram = np.concatenate([color_histogram(image[None]) for image in images])
    for x, known in ((stats, [0.453, 0.341, 0.500]), (histogram, [0.424, 0.441, 0.459])):
        np.testing.assert_allclose(three_scores(x, labels, train, raw_cosine=True), known, atol=0.02)
    predictions = probes.predict({"pixel": (stats[train], stats[~train])}, labels[train], labels[~train])
    score = probes.score(predictions, bootstraps=20).set_index("probe")["score"]
    assert score["kNN-20 cosine"] > 0.341 + 0.1 and score["linear"] >= 0.500 - 0.02


@pytest.mark.slow
def test_random_convolutions_reproduce_published_figures(ucmerced):
    """The mean of five seeds: images of 128 px, normalized by the training set; 64 filters of 5 x 5, mean alone; all
    three probes on standardized features. More filters, or the maximum beside the mean, score higher."""
    images, labels, train = ucmerced
    small = [Image.fromarray(i.transpose(1, 2, 0)).resize((128, 128), Image.Resampling.BOX) for i in images]
    pixels = np.stack([np.asarray(i, np.float32).transpose(2, 0, 1) for i in small])
    mean, std = (f(pixels[train], axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    pixels = (pixels - mean) / std
    options = dict(n_filters=64, sides=(5,), maximum=False)
    features = [random_convolutions(pixels, seed=k, **options) for k in range(5)]
    scores = np.mean([three_scores(x, labels, train, raw_cosine=False) for x in features], axis=0)
    np.testing.assert_allclose(scores, [0.488, 0.506, 0.600], atol=0.02)
