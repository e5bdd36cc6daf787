"""Transfer probes on small made-up images and rasters, and on real ones where they lie beside the checkout."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image

from clay_lib import SENSORS, Clay, ClayConfig
from clay_lib.errors import ContractError
from clay_lib.evaluation import probes
from clay_lib.evaluation.evaluate import embed_features
from clay_lib.evaluation.transfer import (
    WINDOW,
    _alone,
    _answers,
    _balanced,
    _splits,
    choose_readout,
    cut_patches,
    probe_images,
    probe_patches,
    probe_world,
    read_images,
    read_rasters,
    readouts,
    rebuild_world,
    transfer,
)
from clay_lib.files import DATA

REAL = Path(__file__).resolve().parents[3] / "shared" / "realdata"
TINY = ClayConfig(32, 1, 2, 16, 2, 16, 1, 2, 8, 2, teacher_dim=8)


@pytest.fixture(autouse=True)
def one_strength(monkeypatch):
    """Which C is best is told by test_probes; here it would only take time."""
    monkeypatch.setattr(probes, "C_GRID", (0.1,))


@pytest.fixture(scope="module")
def clay():
    return Clay.random(TINY, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes told by their texture alone: flat, stripes, fine checks; 24 images of each."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    row, column = np.mgrid[:40, :40]
    patterns = {"flat": 0 * row, "stripes": 40 * (row // 4 % 2), "checks": 40 * ((row + column) // 2 % 2)}
    for name, pattern in patterns.items():
        (root / name).mkdir()
        for number in range(24):
            image = 90 + pattern - pattern.mean() + rng.normal(0, 6, (40, 40)) + rng.normal(0, 15)
            rgb = np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
            Image.fromarray(rgb).save(root / name / f"{name}{number:02d}.png")
    return root


def raster_pairs(seed=0, side=2 * 8 * WINDOW):
    """Two rasters of two classes, one bright and one dark, whose patches' means differ; unlike classes by quarter."""
    rng, pairs = np.random.default_rng(seed), {}
    for name in ("east", "west"):
        classes = np.kron(rng.integers(1, 3, (side // 16, side // 16)), np.ones((16, 16), int)).astype(np.uint8)
        pixels = (90 + 60 * (classes == 1) + rng.normal(0, 10, (3, side, side))).clip(0, 255).astype(np.uint8)
        pairs[name] = pixels, classes
    return pairs


def test_images_are_read_with_their_class_and_number(folder, tmp_path):
    images = read_images(folder, 24)
    assert images.pixels.shape == (72, 3, 24, 24) and images.pixels.dtype == np.uint8
    assert sorted(set(images.labels)) == ["checks", "flat", "stripes"]
    assert sorted(images.numbers[images.labels == "flat"]) == list(range(24))
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "nameless.png")
    with pytest.raises(ContractError, match="NUMBER"):
        read_images(tmp_path, 24)


def test_image_probes_split_by_number_and_compare_with_floors(clay, folder):
    images = {24: read_images(folder, 24)}
    told, chosen = probe_images(clay, images, gsd=2.0, native=40, seeds=2, bootstraps=20)
    assert set(told.table["split"]) == {"given", "random"} and len(told.gap) == told.table["features"].nunique() * 3
    table = told.summary[told.summary["split"] == "given"]
    assert chosen in readouts({24: {name: np.zeros((1, 1)) for name in ("class token", "patch mean", "patch spread")}})
    assert set(table["probe"]) == {"kNN-5", "kNN-20 cosine", "linear"} and (table["n_test"] == 24).all()
    table = table.set_index(["features", "probe"])
    assert table.loc[("random convolutions, 24 px", "linear"), "score"] > 0.9  # textures are what they tell apart
    assert table.loc[("random weights, class token", "linear"), "seeds"] == 2
    ours = table.loc[("Clay, class token", "linear")]
    best = table[(table["kind"] == "floor")].xs("linear", level="probe")["score"].max()
    assert ours["margin"] == pytest.approx(ours["score"] - best) and ours["margin_low"] <= ours["margin_high"]


def test_the_read_out_is_chosen_by_what_it_tells_of_held_out_folds():
    rng, y = np.random.default_rng(0), np.tile([0, 1], 60)
    folds = np.repeat(np.arange(4), 30)
    useful, useless = y[:, None] + rng.normal(0, 0.3, (120, 4)), rng.normal(size=(120, 4))
    leaky = np.stack([folds, folds * y], axis=1) + rng.normal(0, 0.01, (120, 2))  # tells neighbours, not classes
    assert choose_readout({"useless": useless, "leaky": leaky, "useful": useful}, y, folds) == "useful"


def test_patches_are_cut_where_their_class_is(clay):
    pairs = raster_pairs()
    parts = cut_patches(pairs, 8)
    assert parts.windows.shape == (8, 3, 8 * WINDOW, 8 * WINDOW) and len(parts.place) == 8 * WINDOW**2
    bright = parts.pixels.mean((1, 2, 3)) > 120
    assert (bright == (parts.label == 1)).all()
    one = 3 * WINDOW**2 + 2 * WINDOW + 5  # window 3 is the lower right of the first raster
    row, column = (WINDOW + 2) * 8, (WINDOW + 5) * 8
    assert (parts.pixels[one] == pairs["east"][0][:, row : row + 8, column : column + 8]).all()
    assert (parts.windows[3][:, 16:24, 40:48] == parts.pixels[one]).all()


def test_patch_probes_leave_rasters_and_windows_out(clay):
    parts = cut_patches(raster_pairs(), 8)
    for split in ("rasters", "windows"):
        tested = sum(test.astype(int) for _, test in _splits(parts, split, 0))
        assert (tested == 1).all()
        group = parts.raster if split == "rasters" else parts.window
        assert all(not set(group[a]) & set(group[b]) for a, b in _splits(parts, split, 0))
    kwargs = dict(sensor="naip", bands=["red", "green", "blue"], gsd=0.3, seeds=1, bootstraps=50)
    table = probe_patches(clay, raster_pairs(), **kwargs).set_index(["split", "features"])
    assert (table.loc[(slice(None), "pixel statistics"), "score"] > 0.95).all()
    assert ((table["low"] <= table["score"]) & (table["score"] <= table["high"])).all()
    with pytest.raises(ContractError, match="at least 2"):
        read_rasters(REAL / "nowhere", REAL / "nowhere")


def test_patch_scores_count_classes_evenly():
    """Nine in ten patches are of class 1: always answering 1 is half right."""
    labels = np.tile([1] * 9 + [2], 8)
    answers = pd.DataFrame(dict(raster="a", window=np.repeat(np.arange(8), 10), label=labels, features="pixel"))
    table = _balanced(answers.assign(answer=1), 20)
    assert table["score"].item() == 0.5
    assert _balanced(answers.assign(answer=labels), 20)["low"].item() == 1.0


def test_classes_that_training_lacks_are_not_asked():
    pairs = raster_pairs()
    pairs["west"][1][:16] = 7
    parts = cut_patches(pairs, 8)
    x = parts.pixels.mean((2, 3))
    told = _answers(x, parts, parts.raster == "east", parts.raster == "west", 0)
    assert set(told["label"]) == {1, 2} and len(told) < (parts.raster == "west").sum()


def test_the_command_writes_its_table(clay, folder, tmp_path, capsys):
    weights = clay.save(tmp_path / "weights.safetensors")
    for name, (pixels, classes) in raster_pairs().items():
        for kind, values in (("rasters", pixels), ("labels", classes[None])):
            (tmp_path / kind).mkdir(exist_ok=True)
            size = dict(count=len(values), height=values.shape[1], width=values.shape[2], dtype="uint8")
            with rasterio.open(tmp_path / kind / f"{name}.tif", "w", driver="GTiff", **size) as file:
                file.write(values)
    out = tmp_path / "table.csv"
    where = dict(rasters=str(tmp_path / "rasters"), labels=str(tmp_path / "labels"))
    rgb = dict(sensor="naip", bands=["red", "green", "blue"])
    assert transfer(str(weights), **where, **rgb, seeds=1, out=str(out)) == 0
    assert "pixel statistics" in capsys.readouterr().out and "margin" in out.read_text()
    with pytest.raises(ContractError, match="images, or rasters with labels"):
        transfer(str(weights), images=str(folder), **where)


def test_the_mini_world_is_probed_and_rebuilt(clay):
    table = probe_world(clay, chips=22, test_chips=11, seeds=1, bootstraps=20).table
    assert {"Clay, both", "pixel statistics", "random weights, class token"} <= set(table["features"])
    rebuilt = rebuild_world(clay, chips=3, sizes=(16,), seeds=2)
    assert (
        len(rebuilt) == 7 and (rebuilt["low"] <= rebuilt["ratio"]).all() and (rebuilt["ratio"] <= rebuilt["high"]).all()
    )
    assert rebuilt["ratio"].min() > 0.9  # random weights rebuild nothing


@pytest.fixture(scope="module")
def mini():
    path = DATA / "weights" / "clay-mini.safetensors"
    assert path.stat().st_size < 20e6
    return Clay.load(path)


@pytest.mark.skipif(not (REAL / "ucmerced").is_dir(), reason="real images are not part of the repository")
def test_shipped_weights_know_real_images_better_than_the_floors_do(mini):
    """Modest: one small size, the listed floors and those measured here; margins are in data/weights/README.md."""
    images = read_images(REAL / "ucmerced", 64)
    about = dict(sensor="naip", bands=["red", "green", "blue"], check=False)
    made = embed_features(mini, images.pixels, gsd=1.2, **about)
    train, y = images.numbers < 66, images.labels
    pixels = SENSORS["naip"].normalize(images.pixels, about["bands"]).astype(np.float32)
    sets = {"Clay": np.hstack([made["patch mean"], made["patch spread"]]), "Clay, class token": made["class token"]}
    sets["random convolutions"] = probes.random_convolutions(pixels)
    sets = {name: (x[train], x[~train]) for name, x in sets.items()}
    score = probes.probe(sets, y[train], y[~train], bootstraps=20).set_index(["features", "probe"])["score"]
    assert (~train).sum() == 170
    assert score["Clay, class token", "kNN-20 cosine"] > 0.506 and score["Clay, class token", "linear"] > 0.6
    for which in ("kNN-20 cosine", "linear"):
        assert score["Clay", which] > score["random convolutions", which]


@pytest.mark.skipif(not (REAL / "landcover").is_dir(), reason="real rasters are not part of the repository")
def test_shipped_weights_know_a_patch_of_another_land_better_than_its_pixels_do(mini):
    bands = [2, 3, 4, 5, 6, 7, 8, 9, 11, 12]
    pairs = read_rasters(REAL / "sentinel-2-l2a", REAL / "landcover", bands)
    parts = cut_patches(pairs, 8)
    features = {
        "Clay, each patch by itself": _alone(mini, parts.pixels, dict(sensor="sentinel-2-l2a", check=False)),
        "pixel statistics": probes.pixel_statistics(SENSORS["sentinel-2-l2a"].normalize(parts.pixels)),
    }
    answers = [
        _answers(x, parts, train, test, seed).assign(features=name)
        for name, x in features.items()
        for seed in range(2)
        for train, test in _splits(parts, "rasters", seed)
    ]
    score = _balanced(pd.concat(answers, ignore_index=True), 20).set_index("features")["score"]
    assert score["Clay, each patch by itself"] > score["pixel statistics"]
