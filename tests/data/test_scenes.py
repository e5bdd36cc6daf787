"""Scenes for the notebooks: rasters and the synthetic Earth, their chips and windows."""

import numpy as np
import pytest

from clay_lib import ContractError
from clay_lib.data.label_files import segmentation_sets
from clay_lib.data.rasters import write_raster
from clay_lib.data.scenes import center_window, crop, cut_chips, most_measured, open_scene


def test_synthetic_scene_and_its_file_are_the_same(tmp_path):
    scene = open_scene(size=48)
    path = tmp_path / "scene.tif"
    write_raster(path, scene.pixels, crs=scene.crs, transform=scene.transform, descriptions=scene.bands)
    read = open_scene(path, when=scene.when)
    np.testing.assert_array_equal(read.pixels, scene.pixels)
    assert (read.bands, read.crs, read.when, read.labels) == (scene.bands, scene.crs, scene.when, None)
    assert read.gsd == pytest.approx(scene.gsd, rel=2e-3)
    assert (read.lat, read.lon) == pytest.approx((scene.lat, scene.lon), abs=1e-4)


def test_chips_carry_labels_place_and_their_number():
    scene = open_scene(size=40)
    chips, corners, kept = cut_chips(scene, 16)
    assert chips.pixels.shape == (4, 10, 16, 16) and corners.shape == (4, 4, 2) and kept.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(chips.labels[3], scene.labels[16:32, 16:32])
    assert (np.diff(chips.lon[:2]) > 0).all() and chips.lat[0] > chips.lat[2]
    scene.missing[:, :16, :16] = True
    assert cut_chips(scene, 16)[2].tolist() == [1, 2, 3]
    scene.missing[:] = True
    with pytest.raises(ContractError, match="scene: found 0% of 40 x 40 pixels measured"):
        cut_chips(scene, 16)


def test_crop_takes_the_most_measured_window():
    scene = open_scene(size=32)
    scene.missing[:, :, :12] = True
    part = crop(scene, 16)
    assert part.pixels.shape[1:] == (16, 16) and part.valid.all() and part.labels.shape == (16, 16)
    assert part.transform[2] > scene.transform[2] and part.lon > scene.lon - 1e-5


def test_most_measured_window_nearest_the_center():
    valid = np.ones((20, 30), bool)
    assert most_measured(valid, 8, 10) == (6, 10) and most_measured(valid, 20, 30) == (0, 0)
    valid[:, 7:] = False
    valid[0] = False
    assert most_measured(valid, 8, 7) == (6, 0) and most_measured(valid, 19, 4) == (1, 3)


def test_center_window_of_a_larger_file(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.ones((3, 30, 40)), crs=None, transform=None)
    assert center_window(path, 20) == (10, 5, 20, 20) and center_window(path, 40) is None
    assert center_window(tmp_path, 4) is None  # a folder is read completely


def test_segmentation_sets_of_own_rasters_lie_apart(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for n in range(6):
        scene = open_scene(size=32, index=n, seed=0)
        grid = dict(crs=scene.crs, transform=scene.transform)
        write_raster(tmp_path / f"images/{n}.tif", scene.pixels, descriptions=scene.bands, **grid)
        write_raster(tmp_path / f"labels/{n}.tif", np.full((32, 32), 3 + n % 2, np.uint8), **grid)
    folders = tmp_path / "images", tmp_path / "labels"
    train, val, test = segmentation_sets(*folders, classes="3 crops, 4 town", size=16)
    assert test.classes == ("crops", "town") and test.codes == (3, 4)
    groups = [set(part.places["group"]) for part in (train, val, test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 6


def test_segmentation_sets_of_the_synthetic_earth_lie_apart():
    train, val, test = segmentation_sets(chips=22, test_chips=11, size=16)
    assert len(train) + len(val) == 22 and len(test) == 11
    assert len(test.codes) == len(test.classes) and test[0].label.shape == (16, 16)
    assert not set(train.places["group"]) & (set(test.places["group"]) | set(val.places["group"]))
