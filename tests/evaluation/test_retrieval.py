"""Cross-sensor retrieval, against a plain search."""

import numpy as np
import pytest
from fakes import MICRO

from clay_lib import Clay
from clay_lib.evaluation.retrieval import recalls, retrieval_table


def test_recalls_agree_with_a_plain_search():
    rng = np.random.default_rng(0)
    place = rng.normal(size=(40, 8))
    vectors = {"a": place + 5, "b": place + rng.normal(size=(40, 8)) - 3}  # each with an offset of its own
    table = recalls(vectors, ks=(1, 5), bootstraps=200).set_index(["query", "gallery", "k"])
    a, b = (v - v.mean(0) for v in vectors.values())
    cosine = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    for k in (1, 5):
        hits = [n in np.argsort(-cosine[n])[:k] for n in range(40)]
        assert table.loc[("a", "b", k), "recall"] == pytest.approx(np.mean(hits))
        hits = [n in np.argsort(-cosine[:, n])[:k] for n in range(40)]
        assert table.loc[("b", "a", k), "recall"] == pytest.approx(np.mean(hits))
    assert (table["low"] <= table["recall"]).all() and (table["recall"] <= table["high"]).all()


def test_shipped_weights_find_places_across_sensors():
    table = retrieval_table(Clay.load("clay-mini"), sensors=["sentinel-2-l2a", "landsat-c2l2-sr"], places=44, size=32)
    best = table[table["k"] == 10].groupby("kind")["recall"].mean()
    assert len(table) == 2 * 2 * 2 and best.min() > 1.5 * 10 / 44  # by chance 10 / 44


def test_place_and_date_are_withheld():
    table = retrieval_table(Clay.random(MICRO, seed=0), sensors=["naip", "modis"], places=44, size=32)
    assert table[table["k"] == 1]["recall"].max() < 0.15  # given both, random weights find 0.4 of them
