"""Evaluation in one call: planted answers, chance, leaks, shots, patches, several labels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from clay_lib import Clay, ClayConfig, ContractError
from clay_lib.data.chips import Chips
from clay_lib.evaluation import probes
from clay_lib.evaluation.evaluate import (
    average_precision,
    embed_features,
    evaluate,
    evaluate_features,
    evaluate_labels,
    f1,
    patch_labels,
)

TINY = ClayConfig(32, 2, 2, 16, 2, 16, 1, 2, 8, 2, teacher_dim=8)
KNN = ("kNN-5", "kNN-20 cosine")


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """Which C is best is told by test_probes; here it would only take time."""
    monkeypatch.setattr(probes, "C_GRID", (0.1, 1.0))


def made_chips(n):
    """Chips of 16 px at n / 4 places, of two classes by turns."""
    rng, place = np.random.default_rng(0), np.arange(n) // 4
    pixels = rng.uniform(0, 4000, (n, 10, 16, 16)).astype(np.float32)
    labels = np.broadcast_to((10 + 10 * (np.arange(n) % 2)).astype(np.uint8)[:, None, None], (n, 16, 16))
    when = np.full(n, "2023-06-10T10:30")
    return Chips("sentinel-2-l2a", pixels, labels, 10.0 * place - 20.0, 8.0 * place, when)


@pytest.fixture(scope="module")
def clay():
    return Clay.random(TINY, seed=7)


def planted(gap, *, n=240, classes=3, seed=0):
    rng, y = np.random.default_rng(seed), np.arange(n) % classes
    return gap * np.eye(classes, 6)[y] + rng.normal(size=(n, 6)), y, np.arange(n) // classes // 4


def test_separable_features_score_one_and_shuffled_labels_chance():
    x, y, groups = planted(30.0)
    told = evaluate_features({"Clay": [x], "random": [x]}, y, groups=groups, seeds=2, bootstraps=50)
    assert set(told.table["split"]) == {"blocks", "random"} and len(told.table) == 12
    assert (told.table[["score", "low", "high"]] == 1).all(axis=None)
    assert (told.lead["difference"] == 0).all() and (told.gap["gap"] == 0).all()
    tables = []
    for k in range(15):  # each another shuffle: 95 % of the intervals hold chance, give or take
        shuffled = np.random.default_rng(k).permutation(y)
        known = dict(groups=groups, seeds=2, which=KNN[:1], bootstraps=100)
        tables.append(evaluate_features({"Clay": [x]}, shuffled, **known).table)
    low, score, high = (np.array([table[c] for table in tables]) for c in ("low", "score", "high"))
    assert ((low <= 1 / 3) & (1 / 3 <= high)).mean() >= 0.8
    assert abs(score.mean() - 1 / 3) < 0.04


def test_a_split_that_leaks_is_caught_by_the_gap():
    """Features that tell only the place: a random split looks perfect, and the gap's interval is far from zero. Features
    that tell the class alone leave no gap."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(60), 10)
    y = rng.integers(0, 2, 60)[groups]
    place = rng.normal(size=(60, 12))[groups] + 0.01 * rng.normal(size=(600, 12))
    honest = y[:, None] + rng.normal(0, 0.6, (600, 3))
    told = evaluate_features({"place": [place], "honest": [honest]}, y, groups=groups, which=KNN[:1], bootstraps=300)
    gap = told.gap.set_index("features")
    assert gap.loc["place", "low"] > 0.25
    assert gap.loc["honest", "low"] < 0 < gap.loc["honest", "high"]
    score = told.table.set_index(["features", "split"])["score"]
    assert score["place", "random"] > 0.9 and score["place", "blocks"] < 0.65


def test_more_shots_tell_more():
    x, y, groups = planted(1.5, n=360)
    told = evaluate_features(
        {"Clay": [x]}, y, groups=groups, shots=(1, 5, 50, 500), seeds=3, which=["linear"], bootstraps=50
    )
    table = told.table[told.table["split"] == "blocks"].set_index(["probe", "shots"])
    for probe in ("linear", "nearest mean"):
        scores = table.loc[probe]["score"]
        assert scores[1] + 0.05 < scores[5] < scores[50] and (table.loc[(probe, 5), "n_train"] == 15)
    assert 500 not in table.index.get_level_values("shots")  # no class has so many


def test_a_split_that_is_given_is_the_only_one():
    x, y, groups = planted(2.0)
    test = np.arange(240) >= 150
    told = evaluate_features({"Clay": [x]}, y, groups=groups, test=test, which=KNN, seeds=2, bootstraps=20)
    assert set(told.table["split"]) == {"given"} and set(told.answers["chip"]) == set(range(150, 240))
    with pytest.raises(ContractError, match="random"):
        _ = told.gap
    with pytest.raises(ContractError, match="one a chip"):
        evaluate_features({"Clay": [x]}, y, test=test[:9])


def test_one_group_to_test_on_has_a_score_but_no_interval():
    x, y, _ = planted(2.0)
    test = np.arange(240) >= 150
    sets = {"Clay": [x], "random": [x[::-1]]}
    told = evaluate_features(sets, y, groups=test.astype(int) + np.where(test, 0, np.arange(240) + 9), test=test,
                             which=KNN, seeds=2, bootstraps=20)  # fmt: skip
    with pytest.warns(UserWarning, match="1 group"):
        table = told.summary
    assert table["score"].notna().all() and table[["low", "high", "margin_low"]].isna().all(axis=None)


def test_chips_are_counted_by_seed():
    x, y, groups = planted(2.0)
    told = evaluate_features({"Clay": [x], "random": [x]}, y, groups=groups, which=KNN[:1], seeds=4, bootstraps=20)
    chips = told.table.set_index(["features", "split"])
    assert chips.loc[("Clay", "random"), ["n_train", "n_test"]].tolist() == [168, 72]
    assert (told.lead.set_index("split")["n_test"] == chips.loc["Clay", "n_test"]).all()


def test_classes_that_differ_in_size_are_balanced():
    y = np.repeat([0, 1], (180, 20))
    table = evaluate_features({"Clay": [np.zeros((200, 2)) + [1, 2]]}, y, which=KNN[:1], seeds=2, bootstraps=20).table
    assert (table["metric"] == "balanced").all() and table["score"].to_numpy() == pytest.approx(0.5, abs=0.2)


def test_chips_with_floors_layers_and_a_figure(clay):
    chips = made_chips(24)
    told = evaluate(clay, chips, layers=[0], seeds=2, which=KNN[:1], bootstraps=20)
    names = set(told.table["features"])
    assert {"Clay, class token", "Clay, patch mean, layer 0", "Clay, both"} <= names
    assert {"pixel statistics", "random convolutions", "random weights, both"} <= names
    assert set(told.lead["features"]) == {n for n in names if n.startswith("Clay")}
    labels = [tick.get_text() for tick in told.figure("Chips").axes[0].get_yticklabels()]
    assert set(labels) == names and labels[-1].startswith("Clay")
    # the floor of the same architecture is another network for every seed
    twins = told.answers[told.answers["features"] == "random weights, class token"]
    assert twins["seed"].nunique() == 2


def test_features_of_chips_are_those_of_embed(clay):
    chips = made_chips(5)
    about = {"sensor": chips.sensor, **chips.place_and_time}
    made = embed_features(clay, chips.pixels, layers=[0], batch_size=2, **about)
    whole = clay.embed(chips.pixels, layers=[0], **about)
    np.testing.assert_allclose(made["class token"], whole.chip, atol=1e-5)
    np.testing.assert_allclose(made["patch mean, layer 0"], whole.layers[0].mean, atol=1e-5)
    np.testing.assert_allclose(made["patch spread"], whole.patches.flatten(1, 2).std(1), atol=1e-5)


def test_patches_are_told_by_their_own_pixels_and_never_split_from_their_chip(clay):
    rng = np.random.default_rng(0)
    classes = np.kron(rng.integers(1, 3, (12, 2, 2)), np.ones((8, 8), int))
    classes[0, :4] = 0
    pixels = (90 + 60 * (classes[:, None] == 1) + rng.normal(0, 10, (12, 3, 16, 16))).clip(0, 255)
    labels, place = patch_labels(classes, 8)
    assert len(place) == 46 and place[0] == 2  # the two upper patches of the first chip are half unknown
    assert (labels == classes[:, ::8, ::8].reshape(-1)[place]).all() or labels[0] == classes[0, 8, 0]
    known = dict(sensor="naip", bands=["red", "green", "blue"], check=False)
    told = evaluate(clay, pixels, classes, which=["kNN-5"], seeds=2, bootstraps=20, **known)
    table = told.table.set_index(["split", "features"])
    assert table.loc[("blocks", "pixel statistics"), "score"] == 1.0
    assert table.loc[("blocks", "Clay, each patch by itself"), "score"] > 0.9
    for _, part in told.answers[told.answers["split"] == "blocks"].groupby("seed"):
        tested = set(part["group"])
        assert tested and all((part["group"] == g).sum() % 4 in (0, 2) for g in tested)


def test_resampled_precision_and_f1_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, said = rng.random(80) < 0.3, rng.integers(0, 6, 80) / 5  # many ties
    times = np.vstack([np.ones(80), rng.multinomial(80, np.full(80, 1 / 80), 5)])
    for row, ap, f in zip(times, average_precision(truth, said, times), f1(truth, said >= 0.5, times), strict=True):
        assert ap == pytest.approx(average_precision_score(truth, said, sample_weight=row))
        assert f == pytest.approx(f1_score(truth, said >= 0.5, sample_weight=row))


def test_several_labels_at_a_time():
    """Two planted labels and one that nothing tells: near one, and near its share of the chips."""
    rng = np.random.default_rng(0)
    labels = rng.random((300, 3)) < [0.5, 0.3, 0.4]
    x = 8.0 * labels[:, :2] + rng.normal(size=(300, 2))
    told = evaluate_labels({"Clay": [x]}, labels, names=["a", "b", "c"], groups=np.arange(300) // 5, seeds=2,
                           bootstraps=100)  # fmt: skip
    table = told.table.set_index(["split", "probe", "label", "metric"])
    for probe in ("kNN-5", "linear"):
        assert table.loc[("blocks", probe, "a", "F1"), "score"] > 0.97
        assert table.loc[("blocks", probe, "b", "average precision"), "low"] > 0.97
        chance = table.loc[("blocks", probe, "c", "average precision")]
        assert abs(chance["score"] - chance["share"]) < 0.12
        mean = table.loc[("blocks", probe, slice(None), "F1"), "score"].groupby("label").first()
        assert mean["mean"] == pytest.approx(mean[["a", "b", "c"]].mean())
    with pytest.raises(ContractError, match="0 and 1"):
        evaluate_labels({"Clay": [x]}, np.arange(300))
