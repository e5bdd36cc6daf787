"""Vector labels of every format as the labels of a scene."""

import geopandas
import numpy as np
import pytest
import shapely

from clay_lib import ContractError
from clay_lib.data import raster_pairs, write_raster

UTM = dict(crs="EPSG:32633", transform=(10.0, 0, 500_000.0, 0, -10.0, 5_000_000.0))
WHEAT, MAIZE = shapely.box(500_000, 4_999_840, 500_080, 5_000_000), shapely.box(500_080, 4_999_920, 500_160, 5_000_000)


@pytest.fixture
def scene(tmp_path):
    pixels = np.random.default_rng(0).integers(500, 3000, (10, 16, 16), dtype=np.uint16)
    return write_raster(tmp_path / "scene.tif", pixels, **UTM)


def frame_of(shapes, names, **columns):
    return geopandas.GeoDataFrame({"crop": names, **columns}, geometry=shapes, crs="EPSG:32633")


@pytest.mark.parametrize("ending", ["geojson", "gpkg", "shp"])
def test_polygons_of_every_format_are_labels(ending, scene, tmp_path):
    frame = frame_of([WHEAT, MAIZE], ["wheat", "maize"])
    frame.to_crs("EPSG:4326").to_file(tmp_path / f"fields.{ending}")
    expected = np.full((16, 16), -1)
    expected[:, :8], expected[:8, 8:] = 1, 0
    data = raster_pairs(scene, tmp_path / f"fields.{ending}", "sentinel-2-l2a", classes=None, size=16)
    assert data.classes == ("maize", "wheat") and np.array_equal(data[0].label, expected)
    named = raster_pairs(scene, tmp_path / f"fields.{ending}", "sentinel-2-l2a", classes=["wheat", "maize"], size=8)
    assert len(named) == 3 and [named[i].label.max() for i in range(3)] == [0, 1, 0], "the caller's order"


def test_points_overlaps_and_numbers_as_classes(scene, tmp_path):
    points = [shapely.Point(500_005, 4_999_995), shapely.Point(500_155, 4_999_845)]
    for column in ([7, 300], [7.0, 300.0, None]):  # a gap makes floats of integers
        frame_of([*points, WHEAT][: len(column)], column).to_file(tmp_path / "points.gpkg")
        data = raster_pairs(scene, tmp_path / "points.gpkg", "sentinel-2-l2a", classes=None, size=16)
        label = data[0].label
        assert (label[0, 0], label[15, 15]) == (0, 1) and (label >= 0).sum() == 2
        assert data.classes == ("7", "300") and data.codes == (7, 300)
    names = raster_pairs(scene, tmp_path / "points.gpkg", "sentinel-2-l2a", classes={300: "oak", 7: "elm"}, size=16)
    assert names.classes == ("oak", "elm") and names[0].label[0, 0] == 1
    frame_of([WHEAT, WHEAT], ["a", "b"]).to_file(tmp_path / "twice.gpkg")
    with pytest.warns(UserWarning, match="128 pixels lie in features of several classes"):
        data = raster_pairs(scene, tmp_path / "twice.gpkg", "sentinel-2-l2a", classes=None, size=16)
    assert (data[0].label[:, :8] == 1).all()


def test_a_column_of_floats_holds_values_and_one_file_labels_all_images(scene, tmp_path):
    write_raster(tmp_path / "images" / "a.tif", np.ones((10, 16, 8), np.uint16), **UTM)
    east = UTM | dict(transform=(10.0, 0, 500_080.0, 0, -10.0, 5_000_000.0))
    write_raster(tmp_path / "images" / "b.tif", np.ones((10, 16, 8), np.uint16), **east)
    frame_of([WHEAT, MAIZE], ["a", "b"], height=[0.1, 2.5]).to_file(tmp_path / "fields.gpkg")
    options = dict(sensor="sentinel-2-l2a", classes=None, column="height", size=16)
    data = raster_pairs(tmp_path / "images", tmp_path / "fields.gpkg", **options)
    assert data.task == "dense regression" and len(data) == 2
    assert (data[0].label[:, :8] == np.float32(0.1)).all() and (data[1].label[:8, :8] == 2.5).all()
    assert np.isnan(data[1].label[8:]).all()


def test_wrong_labels_raise(scene, tmp_path):
    bow_tie = shapely.Polygon([(500_000, 4_999_900), (500_100, 5_000_000), (500_100, 4_999_900), (500_000, 5_000_000)])
    cases = {
        "feature 2 of 2: Self-intersection": (frame_of([WHEAT, bow_tie], ["a", "b"]), None),
        "2 columns of text or integers": (frame_of([WHEAT, MAIZE], ["a", "b"], number=[1, 2]), None),
        "one of .'crop'.": (frame_of([WHEAT], ["a"]), "crops"),
        "every pixel ignored": (frame_of([shapely.box(0, 0, 9, 9)], ["a"]), None),
    }
    for message, (frame, column) in cases.items():
        frame.to_file(tmp_path / "case.gpkg")
        with pytest.raises(ContractError, match=message):
            raster_pairs(scene, tmp_path / "case.gpkg", "sentinel-2-l2a", classes=None, column=column)
