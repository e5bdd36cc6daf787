"""Compression: what comes back, in how many bytes, and which neighbours stay."""

from __future__ import annotations

import numpy as np
import pytest

from clay_lib import ContractError
from clay_lib.areas.vectors import from_int8, neighbours_kept, principal_axes, shrink, to_int8


@pytest.fixture(scope="module")
def vectors():
    """200 vectors of 32 numbers that lie, but for a little noise, in 5 dimensions."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(200, 5)) @ rng.normal(size=(5, 32)) + 0.01 * rng.normal(size=(200, 32)) + 3).astype(
        np.float32
    )


def test_bytes_and_errors_of_every_form(vectors):
    expected = {"float32": (128, 0), "float16": (64, 1e-3), "int8": (36, 0.5 / 127), "PCA-5": (20, None),
                "PCA-5 float16": (10, None), "PCA-5 int8": (9, None)}  # fmt: skip
    for form, (size, error) in expected.items():
        small = shrink(vectors, form)
        assert small.bytes == size and small.vectors.dtype == np.float32
        assert small.vectors.shape == (200, 32)
        if error is not None:
            relative = np.abs(small.vectors - vectors).max(1) / np.abs(vectors).max(1)
            assert relative.max() <= error * 1.001
    np.testing.assert_array_equal(shrink(vectors, "int8").vectors, from_int8(*to_int8(vectors)))


def test_components_keep_distances_and_are_fitted_on_training_vectors(vectors):
    train, test = vectors[:120], vectors[120:]
    small = shrink(test, "PCA-5", fit_on=train).vectors
    apart = np.linalg.norm(test[:, None] - test, axis=2), np.linalg.norm(small[:, None] - small, axis=2)
    np.testing.assert_allclose(apart[1], apart[0], atol=0.15)
    mean, axes = principal_axes(train, 5)
    np.testing.assert_allclose(small, (test - mean) @ axes.T @ axes + mean, atol=1e-4)
    np.testing.assert_allclose(small, test, atol=0.1)  # five dimensions hold all but the noise
    np.testing.assert_allclose(axes @ axes.T, np.eye(5), atol=1e-5)
    assert not np.allclose(shrink(test, "PCA-5").vectors, small)


def test_neighbours_kept(vectors):
    centred = vectors - vectors.mean(0)
    assert (neighbours_kept(centred, shrink(centred, "float32").vectors) == 1).all()
    assert neighbours_kept(centred, 7 * centred).min() == 1
    int8, few = (neighbours_kept(centred, shrink(centred, f).vectors).mean() for f in ("int8", "PCA-2"))
    noise = neighbours_kept(centred, np.random.default_rng(1).normal(size=(200, 8)), k=10).mean()
    assert int8 > 0.9 > few > noise + 0.1 and noise == pytest.approx(10 / 199, abs=0.03)


@pytest.mark.parametrize("form", ["", "int4", "PCA-33", "PCA-0", "PCA-x int8"])
def test_forms_that_there_are_not(vectors, form):
    with pytest.raises(ContractError, match="form"):
        shrink(vectors, form)
