"""Evaluation in one call: planted differences, leaks, shots, patches, several labels."""

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from clay_lib import Clay, ClayConfig, ContractError
from clay_lib.data.chips import Chips
from clay_lib.data.label_files import class_folders
from clay_lib.evaluation import probes
from clay_lib.evaluation.evaluate import embed_features, evaluate, evaluate_features, patch_labels
from clay_lib.evaluation.multilabel import average_precision, evaluate_multilabel

TINY = ClayConfig(32, 2, 2, 16, 2, 16, 1, 2, 8, 2, teacher_dim=8)
KNN = ("kNN-5", "kNN-20 cosine")


@pytest.fixture(autouse=True)
def short_grid(monkeypatch):
    """The choice of C is tested in test_probes; here it would only take time."""
    monkeypatch.setattr(probes, "C_GRID", (0.1, 1.0))


@pytest.fixture(scope="module")
def clay():
    return Clay.random(TINY, seed=7)


def random_chips(n):
    """Chips of 16 px at n / 4 places, alternating between two classes."""
    rng, place = np.random.default_rng(0), np.arange(n) // 4
    pixels = rng.uniform(0, 4000, (n, 10, 16, 16)).astype(np.float32)
    labels = np.broadcast_to((10 + 10 * (np.arange(n) % 2)).astype(np.uint8)[:, None, None], (n, 16, 16))
    return Chips("sentinel-2-l2a", pixels, labels, 10.0 * place - 20.0, 8.0 * place, np.full(n, "2023-06-10T10:30"))


def planted(gap, *, n=240, classes=3, seed=0):
    rng, y = np.random.default_rng(seed), np.arange(n) % classes
    return gap * np.eye(classes, 6)[y] + rng.normal(size=(n, 6)), y, np.arange(n) // classes // 4


def test_separable_features_score_one_on_both_splits():
    x, y, groups = planted(30.0)
    evaluation = evaluate_features({"Clay": [x], "random": [x]}, y, groups=groups, seeds=2, bootstraps=50)
    assert set(evaluation.table["split"]) == {"blocks", "random"} and len(evaluation.table) == 12
    assert (evaluation.table[["score", "low", "high"]] == 1).all(axis=None)
    assert (evaluation.lead["difference"] == 0).all() and (evaluation.gap["gap"] == 0).all()


def test_the_gap_shows_a_leaking_split():
    """Features of the place alone have a large gap, features of the class alone none."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(60), 10)
    y = rng.integers(0, 2, 60)[groups]
    place = rng.normal(size=(60, 12))[groups] + 0.01 * rng.normal(size=(600, 12))
    sets = {"place": [place], "class": [y[:, None] + rng.normal(0, 0.6, (600, 3))]}
    evaluation = evaluate_features(sets, y, groups=groups, which=KNN[:1], bootstraps=300)
    gap = evaluation.gap.set_index("features")
    assert gap.loc["place", "low"] > 0.25
    assert gap.loc["class", "low"] < 0 < gap.loc["class", "high"]
    score = evaluation.table.set_index(["features", "split"])["score"]
    assert score["place", "random"] > 0.9 and score["place", "blocks"] < 0.65
    shared = evaluation.table.groupby("split")["shared"].unique().map(list)
    assert shared["blocks"] == [0.0] and shared["random"][0] > 0.99, "test chips whose place has training chips too"


def test_more_shots_score_higher():
    x, y, groups = planted(1.5, n=360)
    options = dict(groups=groups, shots=(1, 5, 50, 500), seeds=3, which=["linear"], bootstraps=50)
    table = evaluate_features({"Clay": [x]}, y, **options).table
    table = table[table["split"] == "blocks"].set_index(["probe", "shots"])
    for probe in ("linear", "nearest mean"):
        scores = table.loc[probe]["score"]
        assert scores[1] + 0.05 < scores[5] < scores[50] and (table.loc[(probe, 5), "n_train"] == 15)
    assert 500 not in table.index.get_level_values("shots")  # no class has so many


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0.0, 1.0, np.nan, 1.0], "1 of 4 without a class"),
        (["crop", None, "crop", "town"], "1 of 4 without a class"),
        ([-1, 0, 1, -1], "2 of 4 without a class"),
        (["crop"] * 4, "one class, .'crop'."),
        ([0.5, 1.0, 1.0, 0.5], "0.5 in 2 of 4 labels; expected whole numbers of classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(ContractError, match=message):
        evaluate_features({"Clay": [np.zeros((4, 2))]}, labels)
    with pytest.raises(ContractError, match=message):
        evaluate(None, np.zeros((4, 1, 8, 8)), labels)


def test_a_given_split_excludes_the_others():
    x, y, groups = planted(2.0)
    test = np.arange(240) >= 150
    evaluation = evaluate_features({"Clay": [x]}, y, groups=groups, test=test, which=KNN, seeds=2, bootstraps=20)
    assert set(evaluation.table["split"]) == {"given"}
    assert set(evaluation.predictions["chip"]) == set(range(150, 240))
    with pytest.raises(ContractError, match="random"):
        _ = evaluation.gap
    with pytest.raises(ContractError, match="one a chip"):
        evaluate_features({"Clay": [x]}, y, test=test[:9])


def color_folders(root, names, count):
    """Flat images, each class of its own gray, in class folders."""
    rng, gray = np.random.default_rng(0), {"a": 20, "b": 60, "c": 120, "d": 200}
    for name in names:
        (root / name).mkdir(parents=True)
        for n in range(count):
            pixels = (gray[name] + rng.normal(0, 4, (16, 16, 3))).clip(1, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}{n}.png")
    return class_folders(root, "linz")


def test_a_test_set_that_lacks_classes_is_scored_by_name(clay, tmp_path):
    """By number, b would be a, c would be b, and d would be c: a score of 0."""
    train, test = color_folders(tmp_path / "train", "abcd", 12), color_folders(tmp_path / "test", "bcd", 4)
    assert [test[i].label for i in (0, 4, 8)] == [0, 1, 2]
    options = dict(which=KNN[:1], metric="accuracy", seeds=1, bootstraps=20, check=False)
    evaluation = evaluate(clay, train, test=test, **options)
    score = evaluation.table.set_index("features")["score"]
    assert score["pixel statistics"] > 0.9 and evaluation.table["n_test"].unique().tolist() == [12]
    assert evaluation.table["shared"].unique().tolist() == [0.0], "equal numbers of chips are no common place"
    assert set(evaluation.predictions["label"]) == {"b", "c", "d"}
    with pytest.raises(ContractError, match=r"\['a'\]; expected some of \['b', 'c', 'd'\]"):
        evaluate(clay, test, test=train, **options)


def test_classes_that_training_never_saw_are_named():
    x, y, _ = planted(2.0)
    test = np.arange(240) >= 150
    names = np.array(["oak", "ash", "elm"])[y]
    names[[160, 170]] = "fir"
    with pytest.warns(UserWarning, match=r"2 of 90 test chips are left out: no training chip of class \['fir'\]"):
        table = evaluate_features({"Clay": [x]}, names, test=test, which=KNN[:1], seeds=2, bootstraps=20).table
    assert table["n_test"].unique().tolist() == [88]


def test_one_test_group_has_a_score_but_no_interval():
    x, y, _ = planted(2.0)
    test = np.arange(240) >= 150
    options = dict(groups=np.where(test, 1, np.arange(240) + 9), test=test, which=KNN, seeds=2, bootstraps=20)
    evaluation = evaluate_features({"Clay": [x], "random": [x[::-1]]}, y, **options)
    with pytest.warns(UserWarning, match="1 group"):
        table = evaluation.summary
    assert table["score"].notna().all() and table[["low", "high", "margin_low"]].isna().all(axis=None)


def test_unbalanced_classes_are_scored_by_balanced_accuracy():
    y = np.repeat([0, 1], (180, 20))
    table = evaluate_features({"Clay": [np.zeros((200, 2)) + [1, 2]]}, y, which=KNN[:1], seeds=2, bootstraps=20).table
    assert (table["metric"] == "balanced").all() and table["score"].to_numpy() == pytest.approx(0.5, abs=0.2)


def test_chips_with_baselines_layers_and_a_figure(clay):
    evaluation = evaluate(clay, random_chips(24), layers=[0], seeds=2, which=KNN[:1], bootstraps=20)
    names = set(evaluation.table["features"])
    assert {"Clay, class token", "Clay, patch mean, layer 0", "Clay, both"} <= names
    assert {"pixel statistics", "random convolutions", "random weights, both"} <= names
    assert set(evaluation.lead["features"]) == {n for n in names if n.startswith("Clay")}
    labels = [tick.get_text() for tick in evaluation.figure("Chips").axes[0].get_yticklabels()]
    assert set(labels) == names and labels[-1].startswith("Clay")
    # the baseline of the same architecture is another network for every seed
    random = evaluation.predictions[evaluation.predictions["features"] == "random weights, class token"]
    assert random["seed"].nunique() == 2


def test_features_of_chips_equal_those_of_embed(clay):
    chips = random_chips(5)
    metadata = {"sensor": chips.sensor, **chips.place_and_time}
    features = embed_features(clay, chips.pixels, layers=[0], **metadata)
    expected = clay.embed(chips.pixels, layers=[0], **metadata)
    np.testing.assert_allclose(features["class token"], expected.chip, atol=1e-5)
    np.testing.assert_allclose(features["patch mean, layer 0"], expected.layers[0].mean, atol=1e-5)
    np.testing.assert_allclose(features["patch spread"], expected.patches.flatten(1, 2).std(1), atol=1e-5)


def test_patches_of_a_chip_are_never_on_both_sides(clay):
    rng = np.random.default_rng(0)
    classes = np.kron(rng.integers(1, 3, (12, 2, 2)), np.ones((8, 8), int))
    classes[0, :4] = 0
    pixels = (90 + 60 * (classes[:, None] == 1) + rng.normal(0, 10, (12, 3, 16, 16))).clip(0, 255)
    labels, place = patch_labels(classes, 8)
    assert len(place) == 46 and place[0] == 2  # the two upper patches of the first chip are half unknown
    assert (labels == classes[:, ::8, ::8].reshape(-1)[place]).all() or labels[0] == classes[0, 8, 0]
    options = dict(sensor="naip", bands=["red", "green", "blue"], check=False)
    evaluation = evaluate(clay, pixels, classes, which=["kNN-5"], seeds=2, bootstraps=20, **options)
    table = evaluation.table.set_index(["split", "features"])
    assert table.loc[("blocks", "pixel statistics"), "score"] == 1.0
    assert table.loc[("blocks", "Clay, each patch by itself"), "score"] > 0.9
    blocks = evaluation.predictions[evaluation.predictions["split"] == "blocks"]
    for _, part in blocks.groupby("seed"):
        tested = set(part["group"])
        assert tested and all((part["group"] == g).sum() % 4 in (0, 2) for g in tested)


def test_weighted_average_precision_equals_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, probability = rng.random(80) < 0.3, rng.integers(0, 6, 80) / 5  # many ties
    weights = np.vstack([np.ones(80), rng.multinomial(80, np.full(80, 1 / 80), 5)])
    expected = [average_precision_score(truth, probability, sample_weight=row) for row in weights]
    assert average_precision(truth, probability, weights) == pytest.approx(expected)


def test_several_labels_a_chip():
    """Two planted labels and one of noise: scores near one, and near its share of the chips."""
    rng = np.random.default_rng(0)
    labels = rng.random((300, 3)) < [0.5, 0.3, 0.4]
    sets = {"Clay": [8.0 * labels[:, :2] + rng.normal(size=(300, 2))]}
    options = dict(names=["a", "b", "c"], groups=np.arange(300) // 5, seeds=2, bootstraps=100)
    table = evaluate_multilabel(sets, labels, **options).table.set_index(["split", "probe", "label", "metric"])
    for probe in ("kNN-5", "linear"):
        assert table.loc[("blocks", probe, "a", "F1"), "score"] > 0.97
        assert table.loc[("blocks", probe, "b", "average precision"), "low"] > 0.97
        chance = table.loc[("blocks", probe, "c", "average precision")]
        assert abs(chance["score"] - chance["share"]) < 0.12
        mean = table.loc[("blocks", probe, slice(None), "F1"), "score"].groupby("label").first()
        assert mean["mean"] == pytest.approx(mean[["a", "b", "c"]].mean())
    with pytest.raises(ContractError, match="0 and 1"):
        evaluate_multilabel(sets, np.arange(300))
