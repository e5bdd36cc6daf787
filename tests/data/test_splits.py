"""Splits and sampling: disjoint blocks, and the published sampling table."""

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from clay_lib import ContractError
from clay_lib.data.splits import (
    COVER,
    RELEASED,
    Rule,
    block_split,
    cover_fractions,
    random_split,
    sample_tiles,
    spatial_blocks,
    split_by_blocks,
)


def test_blocks_are_never_in_two_splits_and_chips_are_never_lost():
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-60, -55, 500), rng.uniform(176, 184, 500)
    blocks = spatial_blocks(lat, lon, 0.5)
    assert np.array_equal(blocks, spatial_blocks(lat, (lon + 180) % 360 - 180, 0.5))  # across the date line
    assert np.array_equal(blocks[:7], spatial_blocks(lat[:7], lon[:7], 0.5))  # whatever other places there are
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


def test_wrong_places_raise():
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


def frame(fractions: dict[int, list[float]]) -> geopandas.GeoDataFrame:
    n = len(next(iter(fractions.values())))
    columns = {f"cover_{code}": fractions.get(code, [0.0] * n) for code in COVER}
    lon = np.linspace(-170, 170, n)
    return geopandas.GeoDataFrame(columns, geometry=shapely.box(lon, 0, lon + 1, 1), crs="EPSG:4326")


def test_the_published_table():
    assert len(RELEASED) == 13 and sum(rule.take for rule in RELEASED) == 3225
    assert [(r.take, r.among) for r in RELEASED if r.cover == 50] == [(300, 300), (1000, 1500)]
    assert {r.cover for r in RELEASED} == {None, *COVER} and all(r.take <= r.among for r in RELEASED)


def test_draws_from_the_highest_and_never_without_the_class():
    tiles = frame({50: [0.1, 0.9, 0.0, 0.8, 0.7, 0.0], 70: [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]})
    assert sorted(sample_tiles(tiles, [Rule(50, 3, 3)]).index) == [1, 3, 4]
    assert set(sample_tiles(tiles, [Rule(50, 6, 6)]).index) == {0, 1, 3, 4}  # two have none of it
    drawn = {tuple(sorted(sample_tiles(tiles, [Rule(50, 1, 3)], seed=seed).index)) for seed in range(40)}
    assert drawn == {(1,), (3,), (4,)}
    both = sample_tiles(tiles, [Rule(70, 5, 5), Rule(50, 3, 3), Rule(70, 1, 1)])
    assert both["chosen_for"].to_dict() == {2: 70, 1: 50, 3: 50, 4: 50}  # each once, for the first that chose it
    assert isinstance(both, geopandas.GeoDataFrame) and both.crs == tiles.crs


def test_diversity_is_the_number_of_classes():
    tiles = frame({10: [1.0, 0.5, 0.3, 0.4], 20: [0.0, 0.5, 0.3, 0.3], 30: [0.0, 0.0, 0.4, 0.3]})
    assert set(sample_tiles(tiles, [Rule(None, 2, 2)]).index) == {2, 3}
    ties = {sample_tiles(frame({10: [0.5] * 50}), [Rule(10, 1, 1)], seed=seed).index[0] for seed in range(20)}
    assert len(ties) > 5  # ties do not fall to the first names


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tiles_are_sampled_once_in_any_row_order(data):
    n = data.draw(st.integers(1, 40))
    few = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5]), min_size=n, max_size=n)  # with many ties
    tiles = frame({code: data.draw(few) for code in data.draw(st.sets(st.sampled_from(COVER), min_size=1))})
    seed, scale = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0.002, 0.1, 1.0]))
    chosen = sample_tiles(tiles, seed=seed, scale=scale)
    assert chosen.index.is_unique and set(chosen.index) <= set(tiles.index)
    for code, group in chosen.groupby("chosen_for"):
        assert (group[f"cover_{code}"] > 0).all() if code else True
        rules = [rule for rule in RELEASED if (rule.cover or 0) == code]
        assert len(group) <= sum(int(np.ceil(rule.take * scale)) for rule in rules)
    again = sample_tiles(tiles.iloc[data.draw(st.permutations(range(n)))], seed=seed, scale=scale)
    assert again["chosen_for"].to_dict() == chosen["chosen_for"].to_dict()
    assert again.index.tolist() == chosen.index.tolist()


def test_fractions_of_known_pixels():
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[0, :2], labels[0, 2] = 10, 80
    found = cover_fractions(labels)
    assert found["cover_10"][0] == pytest.approx(8 / 12) and found["cover_80"][0] == pytest.approx(4 / 12)
    assert sum(column[1] for column in found.values()) == 0 and len(found) == len(COVER)


def test_block_split_does_not_depend_on_other_places():
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-60, 60, 4000), rng.uniform(-180, 180, 4000)
    split = block_split(lat, lon, 2.0)
    np.testing.assert_array_equal(block_split(lat[:9], lon[:9], 2.0), split[:9])
    shares = [(split == name).mean() for name in ("train", "val", "test")]
    np.testing.assert_allclose(shares, (0.7, 0.1, 0.2), atol=0.04)
    assert (block_split(lat, lon, 2.0, seed=1) != split).any()


def test_wrong_tiles_raise():
    tiles = frame({10: [0.5, 0.5]})
    wrong = {
        "no column cover_95": lambda: sample_tiles(tiles.drop(columns="cover_95")),
        "two tiles with one label": lambda: sample_tiles(tiles.set_axis([1, 1])),
        "fractions, 0 to 1": lambda: sample_tiles(tiles.assign(cover_10=50.0)),
        "scale": lambda: sample_tiles(tiles, scale=0),
        "train, val, test": lambda: block_split([0.0], [0.0], 1.0, (0.5, 0.5)),
    }
    for words, call in wrong.items():
        with pytest.raises(ContractError, match=words):
            call()
