"""Transfer probes on small synthetic images and rasters, and on real ones where they lie beside the checkout."""

import shutil

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image
from rasterio.features import shapes as shapes_of
from shapely.geometry import shape

from clay_lib import SENSORS, Clay, ClayConfig, ContractError
from clay_lib.data.rasters import write_raster
from clay_lib.evaluation import baselines, probes
from clay_lib.evaluation.evaluate import embed_features
from clay_lib.evaluation.patches import (
    WINDOW,
    cut_patches,
    predict_patches,
    probe_patches,
    read_rasters,
    score_patches,
    split_patches,
)
from clay_lib.evaluation.transfer import (
    cut_points,
    probe_images,
    probe_world,
    read_images,
    read_points,
    readout_candidates,
    transfer,
)

TINY = ClayConfig(32, 1, 2, 16, 2, 16, 1, 2, 8, 2, teacher_dim=8)
RGB = dict(sensor="naip", bands=["red", "green", "blue"])


@pytest.fixture(autouse=True)
def short_grid(monkeypatch):
    """The choice of C is tested in test_probes; here it would only take time."""
    monkeypatch.setattr(probes, "C_GRID", (0.1,))


@pytest.fixture(scope="module")
def clay():
    return Clay.random(TINY, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes that differ by texture alone: flat, stripes, fine checks; 24 images of each."""
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
    """Two rasters of two classes, one bright and one dark, in squares of 2 x 2 patches."""
    rng, pairs = np.random.default_rng(seed), {}
    for name in ("east", "west"):
        classes = np.kron(rng.integers(1, 3, (side // 16, side // 16)), np.ones((16, 16), int)).astype(np.uint8)
        pixels = (90 + 60 * (classes == 1) + rng.normal(0, 10, (3, side, side))).clip(0, 255).astype(np.uint8)
        pairs[name] = pixels, classes
    return pairs


# -- images ----------------------------------------------------------------------------------------------------------


def test_images_have_their_class_and_number(folder, tmp_path):
    images = read_images(folder, 24)
    assert images.pixels.shape == (72, 3, 24, 24) and images.pixels.dtype == np.uint8
    assert sorted(set(images.labels)) == ["checks", "flat", "stripes"]
    assert sorted(images.numbers[images.labels == "flat"]) == list(range(24))
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "nameless.png")
    with pytest.raises(ContractError, match="NUMBER"):
        read_images(tmp_path, 24)


def test_image_probes_split_by_number_and_compare_with_baselines(clay, folder):
    images = {24: read_images(folder, 24)}
    evaluation, chosen = probe_images(clay, images, gsd=2.0, native=40, seeds=2, bootstraps=20)
    assert set(evaluation.table["split"]) == {"given", "random"}
    assert len(evaluation.gap) == evaluation.table["features"].nunique() * 3
    kinds = ("class token", "patch mean", "patch spread")
    assert chosen in readout_candidates({24: {name: np.zeros((1, 1)) for name in kinds}})
    table = evaluation.summary[evaluation.summary["split"] == "given"]
    assert set(table["probe"]) == {"kNN-5", "kNN-20 cosine", "linear"} and (table["n_test"] == 24).all()
    table = table.set_index(["features", "probe"])
    assert table.loc[("random convolutions, 24 px", "linear"), "score"] > 0.9  # they respond to texture
    assert table.loc[("random weights, class token", "linear"), "seeds"] == 2
    ours = table.loc[("Clay, class token", "linear")]
    best = table[table["kind"] == "baseline"].xs("linear", level="probe")["score"].max()
    assert ours["margin"] == pytest.approx(ours["score"] - best) and ours["margin_low"] <= ours["margin_high"]


# -- patches of rasters ----------------------------------------------------------------------------------------------


def test_patches_are_aligned_with_their_classes():
    pairs = raster_pairs()
    patches = cut_patches(pairs, 8)
    assert patches.windows.shape == (8, 3, 8 * WINDOW, 8 * WINDOW) and len(patches.place) == 8 * WINDOW**2
    assert (patches.raster == np.repeat(["east", "west"], 4 * WINDOW**2)).all()
    # patch of row 2, column 5 in window 3, the lower right one of the first raster
    one = 3 * WINDOW**2 + 2 * WINDOW + 5
    pixels = patches.windows[patches.window[one]][:, 16:24, 40:48]
    row, column = (WINDOW + 2) * 8, (WINDOW + 5) * 8
    assert (pixels == pairs["east"][0][:, row : row + 8, column : column + 8]).all()
    assert patches.label[one] == pairs["east"][1][row, column] and (pixels.mean() > 120) == (patches.label[one] == 1)


def test_patch_probes_hold_out_rasters_and_windows(clay, tmp_path):
    patches = cut_patches(raster_pairs(), 8)
    for split in ("rasters", "windows"):
        parts = list(split_patches(patches, split, 0))
        assert (sum(test.astype(int) for _, test in parts) == 1).all()
        group = patches.raster if split == "rasters" else patches.window
        assert all(not set(group[a]) & set(group[b]) for a, b in parts)
    table = probe_patches(clay, raster_pairs(), **RGB, gsd=0.3, seeds=1, bootstraps=50)
    table = table.set_index(["split", "features"])
    assert (table.loc[(slice(None), "pixel statistics"), "score"] > 0.95).all()
    assert ((table["low"] <= table["score"]) & (table["score"] <= table["high"])).all()
    ours = table.loc[("rasters", "Clay, patch token")]
    assert ours["margin"] == pytest.approx(ours["score"] - table.loc[("rasters", ours["baseline"]), "score"])
    with pytest.raises(ContractError, match="at least 2"):
        read_rasters(tmp_path, tmp_path)


def test_patch_scores_weigh_classes_equally():
    """Nine in ten patches are of class 1: always predicting 1 is half right."""
    labels = np.tile([1] * 9 + [2], 8)
    table = pd.DataFrame(dict(raster="a", group=np.repeat(np.arange(8), 10), label=labels, features="pixel"))
    assert score_patches(table.assign(prediction=1), 20)["score"].item() == 0.5
    assert score_patches(table.assign(prediction=labels), 20)["low"].item() == 1.0


def test_classes_without_training_patches_are_left_out():
    pairs = raster_pairs()
    pairs["west"][1][:16] = 7
    patches = cut_patches(pairs, 8)
    x = np.random.default_rng(0).normal(size=(len(patches.label), 3))
    with pytest.warns(UserWarning, match=r"28 test patches of west are left out: no training patch of class \[7\]"):
        table = predict_patches({"a": x}, patches, patches.raster == "east", patches.raster == "west", 0)
    assert set(table["label"]) == {1, 2} and len(table) < (patches.raster == "west").sum()
    assert (table["raster"] == "west").all()


# -- labeled pixels of a scene ---------------------------------------------------------------------------------------


def labeled_clumps():
    """Nine clumps of 3 x 3 labeled pixels, 20 pixels apart, of two classes that one band separates."""
    labels = np.zeros((64, 64), np.uint8)
    for k in range(9):
        row, column = 8 + 20 * (k // 3), 8 + 20 * (k % 3)
        labels[row : row + 3, column : column + 3] = 1 + k % 2
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 5, (3, 64, 64)) + 60 * (np.arange(3) == 1)[:, None, None] * (labels == 2)
    return pixels, labels


def test_chips_are_centered_on_their_pixel_and_groups_share_nothing():
    pixels, labels = labeled_clumps()
    chips, y, groups = cut_points(pixels, labels, 8)
    assert chips.shape == (81, 3, 8, 8) and len(set(groups)) == 9
    row, column = np.argwhere(labels)[40]
    np.testing.assert_array_equal(chips[40], pixels[:, row - 4 : row + 4, column - 4 : column + 4])
    assert y[40] == labels[row, column]
    assert len(set(cut_points(pixels, labels, 17)[2])) == 9
    with pytest.raises(ContractError, match="2 places"):
        cut_points(pixels, labels, 24)  # chips of neighboring clumps now overlap, all in one chain
    pixels[:, 8, 8] = np.nan
    assert len(cut_points(pixels, labels, 8)[0]) < 81
    with pytest.raises(ContractError, match="another grid"):
        cut_points(pixels, labels[1:])


# -- the command, and the mini-world ---------------------------------------------------------------------------------


def test_the_command_writes_its_table(clay, folder, tmp_path, capsys):
    weights = clay.save(tmp_path / "weights.safetensors")
    for name, (pixels, classes) in raster_pairs().items():
        for kind, values in (("rasters", pixels), ("labels", classes[None])):
            (tmp_path / kind).mkdir(exist_ok=True)
            size = dict(count=len(values), height=values.shape[1], width=values.shape[2], dtype="uint8")
            with rasterio.open(tmp_path / kind / f"{name}.tif", "w", driver="GTiff", **size) as file:
                file.write(values)
    out = tmp_path / "table.csv"
    paths = dict(rasters=str(tmp_path / "rasters"), labels=str(tmp_path / "labels"))
    assert transfer(str(weights), **paths, **RGB, seeds=1, out=str(out)) == 0
    assert "pixel statistics" in capsys.readouterr().out and "margin" in out.read_text()
    with pytest.raises(ContractError, match="images, or rasters with labels"):
        transfer(str(weights), images=str(folder), **paths)


def test_vector_labels_are_read_by_the_command(clay, tmp_path):
    """Points with a class column on single pixels, and polygons over two rasters: as their label rasters."""
    placed = dict(crs="EPSG:32633", descriptions=RGB["bands"])
    pixels, labels = labeled_clumps()
    scene = write_raster(tmp_path / "scene.tif", pixels.astype(np.uint8), transform=(1, 0, 5e5, 0, -1, 5e6), **placed)
    rows, columns = np.nonzero(labels)
    shapes = gpd.points_from_xy(5e5 + columns + 0.5, 5e6 - rows - 0.5)
    names = np.array(["oak", "elm"])[labels[rows, columns] - 1]
    gpd.GeoDataFrame({"tree": names}, geometry=shapes, crs="EPSG:32633").to_file(tmp_path / "trees.gpkg")
    weights, out = str(clay.save(tmp_path / "weights.safetensors")), tmp_path / "table.csv"
    options = dict(sensor="naip", bands=RGB["bands"], seeds=1, out=str(out))
    assert transfer(weights, points=str(scene), labels=str(tmp_path / "trees.gpkg"), column="tree", **options) == 0
    row = pd.read_csv(out).set_index(["split", "features", "probe"]).loc[("random", "pixel alone", "kNN-5")]
    assert row["n_train"] + row["n_test"] == 81 and row["score"] == 1.0

    for k, (name, (pixels, classes)) in enumerate(raster_pairs().items()):
        transform = (1, 0, 5e5 + 1000 * k, 0, -1, 5e6)
        write_raster(tmp_path / "rasters" / f"{name}.tif", pixels, transform=transform, **placed)
        part = list(shapes_of(classes, transform=rasterio.Affine(*transform)))
        fields = {"kind": [f"kind {int(value)}" for _, value in part]}
        fields = gpd.GeoDataFrame(fields, geometry=[shape(outline) for outline, _ in part], crs="EPSG:32633")
        (tmp_path / "fields").mkdir(exist_ok=True)
        fields.to_crs("EPSG:4326").to_file(tmp_path / "fields" / f"{name}.geojson")
    pairs = read_rasters(tmp_path / "rasters", tmp_path / "fields", sensor="naip", bands=RGB["bands"])
    for name, (pixels, classes) in raster_pairs().items():
        assert (pairs[name][0] == pixels).all() and (pairs[name][1] == classes).all()


def test_label_rasters_are_unlabeled_where_nodata_and_refused_with_fractions(tmp_path):
    placed = dict(crs="EPSG:32633", transform=(1, 0, 5e5, 0, -1, 5e6))
    scene = write_raster(tmp_path / "s.tif", np.ones((3, 4, 4), np.uint8), descriptions=RGB["bands"], **placed)
    labels = np.resize(np.array([1, 2, 255, np.nan], np.float32), (4, 4))
    write_raster(tmp_path / "l.tif", labels, nodata=255, **placed)
    assert (read_points(scene, tmp_path / "l.tif", "naip")[1] == [1, 2, 0, 0]).all()
    write_raster(tmp_path / "l.tif", labels + 0.5, nodata=255, **placed)
    with pytest.raises(ContractError, match="l.tif: 1.5, 2.5, 255.5 in 12 of 16 labels"):
        read_points(scene, tmp_path / "l.tif", "naip")


def test_a_test_folder_that_lacks_a_class_is_scored_by_name(clay, folder, tmp_path):
    """By number, stripes would be flat images: a score of 0."""
    for name, count in (("checks", 3), ("stripes", 5)):
        (tmp_path / "test" / name).mkdir(parents=True)
        for n in range(count):
            shutil.copy(folder / name / f"{name}{n:02d}.png", tmp_path / "test" / name)
    weights, out = str(clay.save(tmp_path / "weights.safetensors")), tmp_path / "table.csv"
    paths = dict(images=str(folder), test=str(tmp_path / "test"))
    audit = tmp_path / "audit"
    assert transfer(weights, **paths, **RGB, sizes=[24], seeds=1, out=str(out), audit=str(audit)) == 0
    curve = pd.read_csv(audit / "curve.csv")
    assert curve["labels"].iloc[-1] == 72 and curve[["low", "cost_low"]].notna().all(axis=None)
    assert len(pd.read_csv(audit / "duplicates.csv")) == 8 and (audit / "calibration.png").is_file()
    table = pd.read_csv(out).set_index(["split", "features", "probe"])
    row = table.loc[("given", "random convolutions, 24 px", "linear")]
    assert (row["n_train"], row["n_test"]) == (72, 8) and row["score"] == 1.0
    (tmp_path / "test" / "checks").rename(tmp_path / "test" / "check")
    with pytest.raises(ContractError, match=r"\['check'\]; expected some of \['checks', 'flat', 'stripes'\]"):
        transfer(weights, **paths, **RGB, sizes=[24], seeds=1)


def test_the_mini_world_is_probed(clay):
    table = probe_world(clay, chips=22, test_chips=11, seeds=1, bootstraps=20).table
    assert {"Clay, both", "pixel statistics", "random weights, class token"} <= set(table["features"])
    assert table.set_index("features").loc["random convolutions", "dim"].iloc[0] == 256


# -- real data -------------------------------------------------------------------------------------------------------


def test_shipped_weights_beat_the_baselines_on_real_images(mini, realdata):
    """One small size and the baselines measured here; the margins are in data/weights/RESULTS.md."""
    images = read_images(realdata / "ucmerced", 64)
    features = embed_features(mini, images.pixels, gsd=1.2, **RGB, check=False)
    train, y = images.numbers < 66, images.labels
    pixels = SENSORS["naip"].normalize(images.pixels, RGB["bands"]).astype(np.float32)
    sets = {"Clay": np.hstack([features["patch mean"], features["patch spread"]])}
    sets |= {"Clay, class token": features["class token"], "random": baselines.random_convolutions(pixels)}
    predictions = probes.predict({name: (x[train], x[~train]) for name, x in sets.items()}, y[train], y[~train])
    score = probes.score(predictions, bootstraps=20).set_index(["features", "probe"])["score"]
    assert (~train).sum() == 170
    assert score["Clay, class token", "kNN-20 cosine"] > 0.506 and score["Clay, class token", "linear"] > 0.6
    for probe in ("kNN-20 cosine", "linear"):
        assert score["Clay", probe] > score["random", probe]


def test_shipped_patch_tokens_know_other_land_far_better_than_random_weights(mini, realdata):
    """They gained 7 points on it when single patches fell behind their pixels: data/weights/HISTORY.md."""
    pairs = read_rasters(realdata / "sentinel-2-l2a", realdata / "landcover")
    patches, S2 = cut_patches(pairs, 8), "sentinel-2-l2a"
    features = {}
    for name, model in (("Clay", mini), ("random weights", Clay.random(mini.model.config, seed=0))):
        parts = np.array_split(patches.windows, 16)
        tokens = [model.embed(part, sensor=S2, check=False).patches.flatten(0, 2).numpy() for part in parts]
        features[name] = np.concatenate(tokens)[patches.place]
    splits = [(parts, seed) for seed in range(2) for parts in split_patches(patches, "rasters", seed)]
    predictions = [predict_patches(features, patches, *parts, seed) for parts, seed in splits]
    score = score_patches(pd.concat(predictions, ignore_index=True), 20).set_index("features")["score"]
    assert score["Clay"] > score["random weights"] + 0.15 and score["Clay"] > 0.48


def test_the_real_scene_has_its_place_and_date(realdata):
    bands = ["blue", "green", "red", "nir08", "swir16", "swir22", None, None]
    scene, labels = (realdata / "landsat-sr" / f"LE70220491999322EDC01_{end}.tif" for end in ("stack", "labels"))
    reading = dict(bands=bands, scale=1e-4 / 0.0000275, offset=0.2 / 0.0000275, when="1999-11-18")
    pixels, classes, metadata = read_points(scene, labels, "landsat-c2l2-sr", **reading)
    assert abs(metadata["lat"] - 15.72) < 0.01 and metadata["bands"] == bands[:6]
    chips, y, groups = cut_points(pixels, classes)
    assert len(y) == 710 and len(set(groups)) == 27 and (classes > 0).sum() == 718 and 7273 < chips.mean() < 20000


@pytest.mark.parametrize(
    "options, message", [({}, "none, or more than one"), (dict(world=True, seeds=0), "seeds: found 0")]
)
def test_no_data_and_no_seeds_are_refused_before_weights_are_read(options, message):
    with pytest.raises(ContractError, match=message):
        transfer("nowhere.safetensors", **options)


@pytest.mark.parametrize("first_test", [0, 3, 99])
def test_too_few_images_on_a_side_of_the_split_are_refused(clay, folder, first_test):
    with pytest.raises(ContractError, match="first_test outside of their numbers"):
        probe_images(clay, {24: read_images(folder, 24)}, first_test=first_test)
