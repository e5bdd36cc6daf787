"""Prediction: on the scene's exact grid, without seams, nodata where nothing was measured."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch

from clay_lib import SENSORS, Clay, ClayConfig, ContractError
from clay_lib.data.label_files import raster_pairs
from clay_lib.data.rasters import read_header, write_raster
from clay_lib.data.scenes import read_padded
from clay_lib.heads.finetune import Finetuned, FinetuneSettings, finetune
from clay_lib.heads.predict import predict_raster, predict_scene

S2 = SENSORS["sentinel-2-l2a"]
PLACED = dict(crs="EPSG:32633", transform=(10.0, 0, 499_990.0, 0, -10.0, 5_000_030.0))
SETTINGS = FinetuneSettings(epochs=12, batch_size=2, lr=8e-3, flip=False, balance=0.0)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A field brighter in its east, 90 x 75 pixels, with a hole; labels 3 (dark) and 7 (bright)."""
    folder, rng = tmp_path_factory.mktemp("scene"), np.random.default_rng(0)
    mean, std = S2.statistics()
    bright = np.broadcast_to(np.arange(75) >= 40, (90, 75))
    level = np.where(bright, 1.5, -0.5) * rng.uniform(0.8, 1.2, (10, 90, 75))
    pixels = np.maximum(mean[:, None, None] + std[:, None, None] * level, 1).astype(np.uint16)
    pixels[:, 50:70, 10:30] = 0
    write_raster(folder / "scene.tif", pixels, nodata=0, descriptions=S2.band_names, **PLACED)
    write_raster(folder / "labels.tif", np.where(bright, 7, 3).astype(np.uint8), **PLACED)
    return folder, bright, pixels[0] == 0


@pytest.fixture(scope="module")
def tuned(scene):
    return head_for(scene, {3: "dark", 7: "bright"})


def head_for(scene, classes):
    clay = Clay.random(ClayConfig(32, 2, 2, 16, 2, 32, 1, 2, 16, 2))
    data = raster_pairs(scene[0] / "scene.tif", scene[0] / "labels.tif", S2, classes=classes, size=32)
    return finetune(clay, data, settings=SETTINGS, width=16, bands=10, accelerator="cpu", progress=False)


def test_the_geotiff_has_the_grid_of_the_scene(scene, tuned, tmp_path):
    folder, bright, hole = scene
    options = dict(codes=[3, 7], tile=32, overlap=8, batch_size=2)
    out = predict_raster(tuned, folder / "scene.tif", tmp_path / "map.tif", **options)
    with rasterio.open(out) as output, rasterio.open(folder / "scene.tif") as source:
        assert output.crs == source.crs and output.transform == source.transform and output.shape == source.shape
        assert output.nodata == 255 and output.descriptions == ("3 dark, 7 bright", "probability (%)")
        classes, confidence = output.read()
    assert np.array_equal(classes == 255, hole) and np.array_equal(confidence == 255, hole)
    assert set(np.unique(classes)) == {3, 7, 255} and confidence[~hole].min() >= 50
    assert (classes == np.where(bright, 7, 3))[~hole].mean() > 0.95


def test_more_than_254_classes_with_codes_to_65535(scene, tmp_path):
    """Trained on a label raster of 16 bits; in the map no class is lost to nodata."""
    folder, bright, hole = scene
    codes = {65535 - 200 * k: f"class {k}" for k in range(300)}
    dark, light = 65535 - 200 * 299, 65535
    write_raster(tmp_path / "labels.tif", np.where(bright, light, dark).astype(np.uint16), **PLACED)
    data = raster_pairs(folder / "scene.tif", tmp_path / "labels.tif", S2, classes=codes, size=32)
    assert sorted({*np.unique(data[0].label)} | {*np.unique(data[1].label)}) == [0, 299]
    settings, clay = replace(SETTINGS, allow_missing=True), Clay.random(ClayConfig(32, 2, 2, 16, 2, 32, 1, 2, 16, 2))
    model = finetune(clay, data, settings=settings, width=16, bands=10, accelerator="cpu", progress=False)
    values = predict_scene(model, folder / "scene.tif", tile=32, overlap=8).values
    assert values.dtype == np.uint16 and np.array_equal(values == 65535, hole) and set(values[~hole]) == {0, 299}
    with rasterio.open(predict_raster(model, folder / "scene.tif", tmp_path / "map.tif", tile=32, overlap=8)) as output:
        assert output.nodata == 65534 and output.dtypes == ("uint16", "uint16")
        assert output.descriptions[0].startswith("65535 class 0, 65335 class 1")
        classes = output.read(1)
    assert np.array_equal(classes == 65534, hole)
    assert (classes == np.where(bright, light, dark))[~hole].mean() > 0.95
    with pytest.raises(ContractError, match="300 numbers from 0 to 65535"):
        predict_raster(model, folder / "scene.tif", tmp_path / "x.tif", codes=range(299), tile=32, overlap=8)


def test_windows_are_blended(scene, tuned):
    """Each pixel is the mean of the windows over it, weighted by ramps: by hand for a few pixels."""
    path, starts = scene[0] / "scene.tif", {90: [0, 16, 32, 48, 58], 75: [0, 16, 32, 43]}
    values = predict_scene(tuned, path, tile=32, overlap=16)
    assert values.values.shape == (90, 75)
    for y, x in [(3, 3), (40, 38), (57, 44), (89, 74)]:
        total = 0
        for top in (t for t in starts[90] if t <= y < t + 32):
            for left in (t for t in starts[75] if t <= x < t + 32):
                part = read_padded(path, (left, top, 32, 32), S2)
                lat, lon = read_header(path).at(left + 16, top + 16)
                cube = tuned.clay.cube(part.pixels, S2, bands=part.bands, lat=lat, lon=lon, gsd=10.0, check=False)
                edges = min(y - top, top + 31 - y), min(x - left, left + 31 - x)
                weight = np.prod([min(1, (edge + 0.5) / 16) for edge in edges])
                total = total + weight * tuned.scores(cube)[0, :, y - top, x - left]
        mean = total / total.sum()
        assert values.values[y, x] == mean.argmax() and abs(values.confidence[y, x] - 100 * mean.max()) <= 0.51


def test_values_of_a_scene_smaller_than_a_window(scene, tmp_path):
    folder, bright, hole = scene
    out = predict_raster(head_for(scene, None), folder / "scene.tif", tmp_path / "values.tif", tile=128, overlap=32)
    with rasterio.open(out) as output:
        values = output.read(1)
        assert output.transform.to_gdal() == rasterio.open(folder / "scene.tif").transform.to_gdal()
    assert values.dtype == np.float32 and np.array_equal(np.isnan(values), hole)
    assert abs(values[bright].mean() - 7) < 0.7 and abs(values[~bright & ~hole].mean() - 3) < 0.7


def test_maps_use_the_class_numbers_of_the_label_files(scene, tuned, tmp_path):
    tuned.save(tmp_path / "head.safetensors")
    again = Finetuned.load(tmp_path / "head.safetensors", tuned.clay)
    out = predict_raster(again, scene[0] / "scene.tif", tmp_path / "map.tif", tile=32, overlap=8)
    with rasterio.open(out) as output:
        assert set(np.unique(output.read(1))) == {3, 7, 255} and output.descriptions[0] == "3 dark, 7 bright"


def test_bands_may_come_in_any_order(scene, tuned, tmp_path):
    with rasterio.open(scene[0] / "scene.tif") as source:
        pixels = source.read()
    write_raster(tmp_path / "back.tif", pixels[::-1], nodata=0, descriptions=S2.band_names[::-1], **PLACED)
    same = [predict_scene(tuned, p, tile=32, overlap=8) for p in (scene[0] / "scene.tif", tmp_path / "back.tif")]
    assert np.array_equal(same[0].confidence, same[1].confidence)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scale=1e-4), "scaled to 0..1; multiply by 10000"),
        (dict(transform=(30.0, 0, 499_990.0, 0, -30.0, 5_000_030.0)), "gsd: found 30 m; expected 10 m"),
        (dict(count=3), "bands: found .'blue', 'green', 'red'.; expected"),
        (dict(out="scene.tif"), "another file than path"),
    ],
)
def test_an_incompatible_scene_raises(scene, tuned, tmp_path, change, message):
    """The first window holds no pixel: the error is in a later one."""
    with rasterio.open(scene[0] / "scene.tif") as source:
        pixels = source.read()[: change.get("count", 10)] * np.float32(change.get("scale", 1))
    pixels[:, :32, :32] = 0
    path, placed = tmp_path / "scene.tif", PLACED | {k: v for k, v in change.items() if k == "transform"}
    write_raster(path, pixels, nodata=0, descriptions=S2.band_names[: len(pixels)], **placed)
    before = path.read_bytes()
    with pytest.raises(ContractError, match=message):
        predict_raster(tuned, path, tmp_path / change.get("out", "map.tif"), tile=32, overlap=8)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_wrong_arguments_raise(scene, tuned, tmp_path):
    path = scene[0] / "scene.tif"
    with pytest.raises(ContractError, match="even overlap"):
        predict_scene(tuned, path, tile=32, overlap=7)
    with pytest.raises(ContractError, match="codes of other classes"):
        predict_raster(tuned, path, tmp_path / "x.tif", codes=[1, 2, 3])
    with pytest.raises(ContractError, match="labels of chips"):
        predict_scene(replace(tuned, metadata=tuned.metadata | {"task": "classification"}), path)
    assert torch.is_grad_enabled()
