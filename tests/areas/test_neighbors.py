"""Nearest neighbors: exact beside NumPy, and the recall of the index."""

import numpy as np
import pytest

from clay_lib.areas import neighbors
from clay_lib.areas.neighbors import build_index, nearest, neighbors_kept, open_index
from clay_lib.areas.vectors import shrink, to_int8

from .test_search import cosines


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.int8, np.float16])
@pytest.mark.parametrize("common", [0.0, 5.0])  # 5: a large common part, cosines are close together
def test_neighbors_match_numpy(dtype, common, rng):
    values = rng.normal(size=(40_000, 48)) + common
    values = to_int8(values)[0] if dtype == np.int8 else values.astype(dtype)
    other = rng.normal(size=48) + common  # not a row of the table: rounded to its type
    for query, keep in ((values[11], None), (other, None), (other, rng.random(len(values)) < 0.3)):
        truth = cosines(values, query)
        truth[~keep if keep is not None else []] = -np.inf
        rows, scores = nearest(values, query, 50, keep)
        assert rows.tolist() == np.argsort(-truth, kind="stable")[:50].tolist()
        np.testing.assert_allclose(scores, truth[rows], rtol=0, atol=1e-12)


def test_ties_keep_the_order_of_rows_and_zeros_are_never_hits():
    values = np.array([[0, 0, 0], [2, 4, 6], [1, 2, 3], [-1, -2, -3], [20, 40, 60], [0, 0, 0], [3, 2, 1]], np.int8)
    rows, scores = nearest(values, np.array([1, 2, 3]), 7)
    assert rows.tolist() == [1, 2, 4, 6, 3]
    np.testing.assert_allclose(scores[[0, 1, 2, 4]], [1, 1, 1, -1], atol=1e-12)
    many = np.tile(values[1:3], (30_000, 1))  # ties across blocks
    assert nearest(many, values[1], 5)[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("common", [0.0, 5.0])
def test_index_finds_nearly_all_of_the_nearest(common, rng, monkeypatch):
    """Of land-like vectors, in kinds and with few free directions; filters keep what it finds exact and complete."""
    monkeypatch.setattr(neighbors, "CELLS_SEARCHED", 8)
    kinds, directions = rng.normal(size=(60, 32)), rng.normal(size=(8, 32)) / 3
    values = kinds[rng.integers(60, size=20_000)] + rng.normal(size=(20_000, 8)) @ directions + common
    values = to_int8(values)[0]
    index = build_index(values)
    assert sorted(index.order.tolist()) == list(range(20_000)) and len(index.centers) == 141
    queries = [values[n] for n in range(20)] + [values[n] / 2.0 - values[n + 20] / 4.0 for n in range(20)]
    rare, compared = np.zeros(20_000, bool), []
    rare[rng.choice(20_000, 40, replace=False)] = True
    for query in queries:
        found, scores = index.nearest(values, query, 20)
        compared.append(np.isin(nearest(values, query, 20)[0], found).mean())
        np.testing.assert_allclose(scores, cosines(values, query)[found], atol=1e-12)
        assert index.nearest(values, query, 20, rare)[0].tolist() == nearest(values, query, 20, rare)[0].tolist()
    assert np.mean(compared) > 0.95


def test_index_of_a_read_only_folder_is_built_in_memory(rng, tmp_path, monkeypatch):
    def refuse(path, write):
        raise PermissionError(13, "Permission denied", str(path))

    values = rng.normal(size=(100, 8)).astype(np.float16)
    monkeypatch.setattr(neighbors, "atomic_write", refuse)
    with pytest.warns(UserWarning, match="index could not be saved"):
        index = open_index(values, tmp_path / "vectors.index", "state")
    assert index.nearest(values, values[3], 1)[0] == [3]


def test_neighbors_kept_after_compression():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(200, 5)) @ rng.normal(size=(5, 32)) + 0.01 * rng.normal(size=(200, 32))).astype("f4")
    vectors -= vectors.mean(0)
    assert (neighbors_kept(vectors, shrink(vectors, "float32").vectors) == 1).all()
    assert neighbors_kept(vectors, 7 * vectors).min() == 1
    int8, pca = (neighbors_kept(vectors, shrink(vectors, form).vectors).mean() for form in ("int8", "PCA-2"))
    noise = neighbors_kept(vectors, rng.normal(size=(200, 8)), k=10).mean()
    assert int8 > 0.9 > pca > noise + 0.1 and noise == pytest.approx(10 / 199, abs=0.03)
