"""Labeled sets of every source return the numbers, labels and places that were written."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clay_lib import SENSORS, ContractError
from clay_lib.data.label_files import class_folders, points_on_scene, raster_pairs
from clay_lib.data.labels import EUROSAT_BANDS, IGNORE, hub_set, world_set
from clay_lib.data.rasters import write_raster
from clay_lib.world.earth import MiniWorld

S2 = SENSORS["sentinel-2-l2a"]
UTM = dict(crs="EPSG:32633", transform=(10.0, 0, 500_000.0, 0, -10.0, 5_000_000.0))


def eurosat_bands(rng, side=16):
    """Thirteen bands in EuroSAT's order, and the ten that the sensor has, in its own order."""
    pixels = rng.integers(100, 5000, (13, side, side), dtype=np.uint16)
    return pixels, np.stack([pixels[EUROSAT_BANDS.index(name)] for name in S2.band_names])


@pytest.mark.parametrize("target", ["land cover", "class", "leaf area", "mean leaf area"])
def test_mini_world_chips_with_every_target(target, tmp_path):
    data = world_set(count=4, target=target, size=16, cache=tmp_path, classes=[10, 40], dates=2, jobs=1)
    sample, place = data[1], data.places.iloc[1]
    chip = MiniWorld(0).observe(place, "sentinel-2-l2a", place.when, 16)
    assert np.array_equal(sample.pixels, chip.pixels)
    if target == "land cover":
        assert data.task == "segmentation" and data.classes[0] == "tree cover"
        assert np.array_equal(np.array([10, 20, 30, 40])[sample.label], chip.labels)
    elif target == "class":
        assert data.task == "classification" and [data[i].label for i in range(4)] == [0, 3, 0, 3]
    elif target == "leaf area":
        assert data.task == "dense regression" and np.array_equal(sample.label, chip.leaf_area)
    else:
        assert data.task == "regression" and sample.label == pytest.approx(chip.leaf_area.mean())
    assert data.metadata([0])["bands"] == S2.band_names and data.metadata([0])["lat"] == [data.places["lat"][0]]


def test_eurosat_class_folders_of_geotiffs(tmp_path):
    rng, expected = np.random.default_rng(0), {}
    for name in ("AnnualCrop", "Forest", "SeaLake"):
        for n in range(2):
            pixels, expected[f"{name}/{name}_{n}.tif"] = eurosat_bands(rng)
            write_raster(tmp_path / name / f"{name}_{n}.tif", pixels, **UTM)
    data = class_folders(tmp_path, "sentinel-2-l2a", bands=EUROSAT_BANDS)
    assert data.classes == ("AnnualCrop", "Forest", "SeaLake") and len(data) == 6 and data.gsd == 10
    order = [list(data.bands).index(name) for name in S2.band_names]
    for i, name in enumerate(data.places["name"]):
        assert np.array_equal(data[i].pixels[order], expected[name]) and data[i].label == i // 2
    assert data[0].crs == UTM["crs"] and data[0].transform == UTM["transform"]
    assert data.places["lat"].between(45.1, 45.2).all() and data.places["lon"].between(15.0, 15.01).all()


def test_images_of_unequal_size_are_cropped_and_padded(tmp_path):
    for kind, side in (("a", 20), ("b", 12)):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.full((side, side, 3), side, np.uint8)).save(tmp_path / kind / "x.png")
    data = class_folders(tmp_path, "linz", size=16)
    large, small = data[0].pixels, data[1].pixels
    assert large.shape == small.shape == (3, 16, 16) and np.isfinite(large).all()
    assert np.isfinite(small[:, 2:14, 2:14]).all() and np.isnan(small).sum() == 3 * (256 - 144)
    with pytest.raises(ContractError, match="class folders lie one folder"):
        class_folders(tmp_path / "a", "linz")


def test_a_test_folder_that_lacks_a_class_keeps_the_numbers_of_training(tmp_path):
    for kind in ("train/a", "train/b", "train/c", "test/a", "test/c"):
        (tmp_path / kind).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / kind / "x.png")
    train = class_folders(tmp_path / "train", "linz")
    test = class_folders(tmp_path / "test", "linz", classes=train.classes)
    assert test.classes == train.classes and [test[i].label for i in range(len(test))] == [0, 2]
    with pytest.raises(ContractError, match=r"\['b'\]; expected some of \['a', 'c'\]"):
        class_folders(tmp_path / "train", "linz", classes=["a", "c"])


@pytest.fixture
def pair(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 5000, (10, 40, 24), dtype=np.uint16)
    labels = rng.choice([1, 5], (40, 24)).astype(np.uint8)
    labels[:4], labels[16:32, 16:] = 9, 0
    write_raster(tmp_path / "images" / "p.tif", pixels, descriptions=S2.band_names, **UTM)
    write_raster(tmp_path / "labels" / "p.tif", labels, nodata=0, **UTM)
    return tmp_path, pixels, labels


def test_rasters_with_label_rasters(pair):
    folder, pixels, labels = pair
    data = raster_pairs(
        folder / "images", folder / "labels", "sentinel-2-l2a", classes={5: "five", 1: "one"}, ignore=9, size=16
    )
    assert data.task == "segmentation" and data.classes == ("five", "one")
    assert len(data) == 5  # of 3 x 2 windows one holds fill alone
    sample = data[0]
    assert np.array_equal(sample.pixels, pixels[:, :16, :16])
    assert np.array_equal(np.select([labels == 5, labels == 1], [0, 1], IGNORE)[:16, :16], sample.label)
    last = data[4]
    assert last.transform == (10.0, 0, 500_160.0, 0, -10.0, 5_000_000.0 - 320)
    assert np.isnan(last.pixels[:, 8:]).all() and (last.label[8:] == IGNORE).all()
    assert np.array_equal(last.pixels[:, :8, :8], pixels[:, 32:, 16:])
    train, test = data.split((0.5, 0.5), by="random")
    assert len(train) + len(test) == 5 and np.array_equal(train[0].pixels, data[int(train.places.index[0])].pixels)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(transform=(20.0, 0, 500_000.0, 0, -20.0, 5_000_000.0)), "another resolution, extent or projection"),
        (dict(crs="EPSG:32634"), "another resolution, extent or projection"),
        (dict(values=np.ones((12, 12), np.uint8)), "12 x 12 pixels"),
        (dict(values=np.full((40, 24), 7, np.uint8)), "class 7"),
        (dict(values=np.full((40, 24), 9, np.uint8)), "every pixel ignored"),
        (dict(values=np.ones((3, 40, 24), np.uint8)), "3 bands.*colors instead of class numbers"),
    ],
)
def test_labels_of_another_grid_or_class_are_refused(pair, change, message):
    folder, _, labels = pair
    values = change.pop("values", labels)
    write_raster(folder / "wrong" / "p.tif", values, nodata=0, **(UTM | change))
    with pytest.raises(ContractError, match=message):
        raster_pairs(folder / "images", folder / "wrong", "sentinel-2-l2a", classes={1: "a", 5: "b"}, ignore=9)


def test_nodata_that_is_a_class_is_asked_for(tmp_path):
    labels = np.tile(np.array([0, 1, 9], np.uint8), (6, 2))
    write_raster(tmp_path / "i.tif", np.ones((10, 6, 6), np.uint16), descriptions=S2.band_names, **UTM)
    write_raster(tmp_path / "l.tif", labels, nodata=0, **UTM)
    files, classes = (tmp_path / "i.tif", tmp_path / "l.tif", S2), {0: "water", 1: "land"}
    with pytest.raises(ContractError, match="nodata 0, which is class 'water'"):
        raster_pairs(*files, classes=classes)
    sample = raster_pairs(*files, classes=classes, ignore=9, size=6)[0]
    np.testing.assert_array_equal(sample.label[0], [0, 1, IGNORE] * 2)


def test_undeclared_nan_is_unlabeled(tmp_path):
    labels = np.array([[0, np.nan], [1, 1]], np.float32)
    write_raster(tmp_path / "i.tif", np.ones((10, 2, 2), np.uint16), descriptions=S2.band_names, **UTM)
    write_raster(tmp_path / "l.tif", labels, **UTM)
    data = raster_pairs(tmp_path / "i.tif", tmp_path / "l.tif", S2, classes=["a", "b"], size=2)
    np.testing.assert_array_equal(data[0].label, [[0, IGNORE], [1, 1]])


@pytest.mark.parametrize(
    "classes, values, wrong",
    [({3: "a", 5: "b"}, [3, 3.5, 4.5, 5], "3.5, 4.5 in 8 of 16"), (["a", "b"], [0, 0.25, np.inf, 1], "0.25, inf in 8")],
)
def test_fractions_are_no_classes(tmp_path, classes, values, wrong):
    write_raster(tmp_path / "i.tif", np.ones((10, 4, 4), np.uint16), descriptions=S2.band_names, **UTM)
    labels = np.resize(np.array(values, np.float32), (4, 4))
    write_raster(tmp_path / "l.tif", labels, **UTM)
    with pytest.raises(ContractError, match=rf"l.tif: {wrong}.* labels; expected whole numbers.*interpolated"):
        raster_pairs(tmp_path / "i.tif", tmp_path / "l.tif", S2, classes=classes)
    data = raster_pairs(tmp_path / "i.tif", tmp_path / "l.tif", S2, classes=None, size=4)
    np.testing.assert_array_equal(data[0].label, labels)


def test_two_resolutions_in_one_set_are_refused_and_quicklooks_left_out(tmp_path):
    for name, step in (("a", 10.0), ("b", 10.0), ("c", 60.0)):
        placed = dict(crs=UTM["crs"], transform=(step, 0, 500_000.0, 0, -step, 5_000_000.0), descriptions=S2.band_names)
        write_raster(tmp_path / name / "x.tif", np.ones((10, 8, 8), np.uint16), **placed)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / "x.png")
    with pytest.raises(ContractError, match="gsd: found 60 m in x.tif.*two resolutions"):
        class_folders(tmp_path, S2)
    (tmp_path / "c" / "x.tif").unlink()
    (tmp_path / "c" / "x.png").unlink()
    assert class_folders(tmp_path, S2).places["name"].tolist() == ["a/x.tif", "b/x.tif"]


def test_points_on_a_scene(pair):
    folder, pixels, _ = pair
    x, y = 500_000 + 10 * np.array([12, 2, 500]) + 5.0, 5_000_000 - 10 * np.array([20, 3, 3]) - 5.0
    points = gpd.GeoDataFrame(
        {"kind": ["oak", "ash", "oak"], "height": [1.5, 2.5, 3.5]}, geometry=gpd.points_from_xy(x, y), crs=UTM["crs"]
    )
    points = points.to_crs("EPSG:4326")
    with pytest.warns(UserWarning, match="1 of 3 points lie outside"):
        data = points_on_scene(points, folder / "images" / "p.tif", "sentinel-2-l2a", label="kind", size=8)
    assert data.classes == ("ash", "oak") and [data[0].label, data[1].label] == [1, 0]
    assert np.array_equal(data[0].pixels, pixels[:, 16:24, 8:16])
    assert np.isnan(data[1].pixels[:, 0]).all() and np.array_equal(data[1].pixels[:, 1:, 2:], pixels[:, :7, :6])
    with pytest.warns(UserWarning, match="outside"):
        values = points_on_scene(points, folder / "images" / "p.tif", "sentinel-2-l2a", label="height", size=8)
    assert values.task == "regression" and values[1].label == 2.5
    with pytest.raises(ContractError, match="none of 1"):
        points_on_scene(points[2:], folder / "images" / "p.tif", "sentinel-2-l2a", label="kind")


@pytest.mark.parametrize(
    "values, classes",
    [
        (["wood", None, "field"], ("field", "wood")),
        ([1, None, 3], ("1", "3")),
        (pd.array([1, None, 3], "Int64"), ("1", "3")),
        (pd.array([True, None, False], "boolean"), ("False", "True")),
        ([0.5, None, 3], ()),
    ],
)
def test_points_without_a_label_are_left_out(pair, values, classes):
    x, y = 500_000 + 10 * np.array([3, 5, 12]) + 5.0, 5_000_000 - 10 * np.array([20, 3, 9]) - 5.0
    points = gpd.GeoDataFrame({"k": values}, geometry=gpd.points_from_xy(x, y), crs=UTM["crs"])
    options = dict(scene=pair[0] / "images" / "p.tif", sensor=S2, label="k", size=8)
    with pytest.warns(UserWarning, match="1 of 3 points have no label in 'k'"):
        data = points_on_scene(points, **options)
    assert data.classes == classes and data.places["name"].tolist() == ["point 0", "point 2"]
    assert [data[i].label for i in range(2)] == (
        [classes.index(str(values[i])) for i in (0, 2)] if classes else [0.5, 3]
    )
    with pytest.raises(ContractError, match="found Polygon; expected points"):
        points_on_scene(points.assign(geometry=points.buffer(20)), **options)


@pytest.mark.parametrize("options", [dict(by="blocks", degrees=0.005), dict(by="groups")])
def test_no_pixel_of_a_point_is_in_two_parts(tmp_path, options):
    """70 points in 2.5 x 2.5 km: chips of 16 x 16 pixels of which many overlap, here counted box by box."""
    rng, side = np.random.default_rng(1), 256
    write_raster(
        tmp_path / "s.tif", rng.integers(1, 5000, (10, side, side), np.uint16), descriptions=S2.band_names, **UTM
    )
    at = rng.integers(0, side, (70, 2))
    points = gpd.GeoDataFrame(
        {"k": rng.choice(["a", "b"], 70)},
        geometry=gpd.points_from_xy(500_005 + 10 * at[:, 0], 4_999_995 - 10 * at[:, 1]), crs=UTM["crs"],
    )  # fmt: skip
    data = points_on_scene(points, tmp_path / "s.tif", S2, label="k", size=16)
    shared = np.abs(at[:, None] - at).max(2) < 16
    if options["by"] == "blocks":
        with pytest.warns(UserWarning, match="of 70 chips share pixels with a chip of a later part"):
            parts = data.split((0.6, 0.2, 0.2), **options)
    else:
        parts = data.split((0.6, 0.2, 0.2), **options)
    index = [part.places.index.to_numpy() for part in parts]
    assert shared.sum() > 70 and all(len(part) >= 5 for part in parts)
    assert not any(shared[np.ix_(index[a], index[b])].any() for a, b in ((0, 1), (0, 2), (1, 2)))


def test_parquet_shards_of_the_hub(tmp_path):
    """EuroSAT MSI there: arrays [64, 64, 13] and named classes, in shards SPLIT-0000K-of-0000N."""
    datasets = pytest.importorskip("datasets", reason="an optional extra, for public data sets")
    rng = np.random.default_rng(0)
    chips = [eurosat_bands(rng) for _ in range(4)]
    features = datasets.Features(
        image=datasets.Array3D(shape=(16, 16, 13), dtype="uint16"), label=datasets.ClassLabel(names=["crop", "forest"])
    )
    for k in range(2):
        part = {"image": [np.moveaxis(chips[2 * k + n][0], 0, -1) for n in range(2)], "label": [0, 1]}
        table = datasets.Dataset.from_dict(part, features=features)
        table.to_parquet(tmp_path / "data" / f"train-0000{k}-of-00002.parquet")
    data = hub_set(tmp_path, "sentinel-2-l2a", bands=EUROSAT_BANDS, cache_dir=str(tmp_path / "cache"))
    assert len(data) == 4 and data.classes == ("crop", "forest") and data.gsd == 10
    order = [data.bands.index(name) for name in S2.band_names]
    for i in range(4):
        assert np.array_equal(data[i].pixels[order], chips[i][1]) and data[i].label == i % 2
    with pytest.raises(ContractError, match="name them all in bands"):
        hub_set(tmp_path, "sentinel-2-l2a", cache_dir=str(tmp_path / "cache"))[0]
    with pytest.raises(ContractError, match="'holdout'"):
        hub_set(tmp_path, "sentinel-2-l2a", split="holdout")


def test_encoded_images_and_masks_from_the_hub(tmp_path):
    """Encoded images, and labels that are images of class numbers."""
    datasets = pytest.importorskip("datasets", reason="an optional extra, for public data sets")
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, (2, 8, 8), dtype=np.uint8)
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    rows = {"image": [Image.fromarray(x) for x in images], "mask": [Image.fromarray(x) for x in masks]}
    table = datasets.Dataset.from_dict(rows, features=features)
    data = hub_set(table, "linz", label="mask", classes=["a", "b", "c"])
    assert data.task == "segmentation"
    assert np.array_equal(data[1].pixels, np.moveaxis(images[1], -1, 0)) and np.array_equal(data[1].label, masks[1])
    with pytest.raises(ContractError, match="class 2"):
        subset = hub_set(table, "linz", label="mask", classes=["a", "b"])
        [subset[i] for i in range(2)]
    with pytest.raises(ContractError, match="give classes"):
        hub_set(table, "linz", label="mask")
