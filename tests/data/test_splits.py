"""Splits: every chip in one part, no block in two, and the difference that makes."""

from __future__ import annotations

import numpy as np
import pytest

from clay_lib import ContractError
from clay_lib.data.splits import random_split, spatial_blocks, split_by_blocks
from clay_lib.evaluation import probes


def test_blocks_are_never_in_two_splits_and_chips_are_never_lost():
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-60, -55, 500), rng.uniform(176, 184, 500)
    blocks = spatial_blocks(lat, lon, 0.5)
    assert np.array_equal(blocks, spatial_blocks(lat, (lon + 180) % 360 - 180, 0.5))  # across the date line
    assert np.array_equal(blocks[:7], spatial_blocks(lat[:7], lon[:7], 0.5))  # whatever stands beside
    for seed in range(5):
        parts = split_by_blocks(blocks, (0.6, 0.2, 0.2), seed)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(500))
        held = [set(blocks[part]) for part in parts]
        assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
        np.testing.assert_allclose([len(part) / 500 for part in parts], (0.6, 0.2, 0.2), atol=0.03)
    assert all(map(len, split_by_blocks(np.repeat([0, 1], 50), (0.9, 0.1), 0)))
    together = random_split(500, (0.6, 0.2, 0.2), 0)
    assert np.array_equal(np.sort(np.concatenate(together)), np.arange(500)) and len(together[0]) == 300
    assert set(blocks[together[0]]) & set(blocks[together[1]])


def test_a_random_split_flatters_what_only_knows_the_place():
    """Features that only say where a chip is, labels that change from block to block: fair score is chance."""
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(100), 6)
    labels, place = (
        rng.integers(0, 2, 100)[block],
        rng.normal(size=(100, 16))[block] + 0.01 * rng.normal(size=(600, 16)),
    )
    score = {}
    for name, (train, test) in {"random": random_split(600), "blocks": split_by_blocks(block)}.items():
        score[name] = probes.knn_score(place[train], labels[train], place[test], labels[test], k=1)
    assert score["random"] > 0.95 and score["blocks"] < 0.65


def test_wrong_input_is_told():
    wrong = {
        "swapped": lambda: spatial_blocks([0.0], [4e5], 1),
        "lon": lambda: spatial_blocks([0.0, 1.0], [0.0], 1),
        "degrees": lambda: spatial_blocks([0.0], [0.0], 0),
        "blocks": lambda: split_by_blocks(np.zeros(9), (0.5, 0.5)),
        "fractions": lambda: random_split(9, (70, 30)),
    }
    for words, call in wrong.items():
        with pytest.raises(ContractError, match=words):
            call()
