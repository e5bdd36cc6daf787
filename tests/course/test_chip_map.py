"""The chip map: nearest neighbors, a probe on the labels alone, tiles where the scene lies."""

import base64
import json

import numpy as np
import pytest
import rasterio
from fakes import fake_chips
from PIL import Image

from clay_lib.course import agreement, neighbors, refit, scene_background, world_background, write_map
from clay_lib.course.chip_map import chip_map, suspects
from clay_lib.data.scenes import cut_chips, open_scene, read_scene
from clay_lib.figures.maps import Layer
from clay_lib.world.earth import MiniWorld

N, D = 24, 16
NAMES = np.array(["water", "town", "field"])[np.arange(N) % 3]
GROUND = Layer("ground", np.zeros((14, 36, 3)), "EPSG:4326", (10.0, 0.0, -180.0, 0.0, -10.0, 80.0))


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(3, D))[np.arange(N) % 3] * 3 + rng.normal(size=(N, D))).astype(np.float32)


@pytest.fixture
def widget(vectors):
    return chip_map(fake_chips("naip", N, 8), vectors, GROUND, truth=NAMES)


def test_neighbors_are_the_most_similar_others(vectors):
    v = vectors - vectors.mean(0)
    cosine = (v @ v.T) / np.outer(np.linalg.norm(v, axis=1), np.linalg.norm(v, axis=1))
    for chip in (0, 7, 23):
        order, cosines = neighbors(vectors, chip)
        others = [n for n in np.argsort(-cosine[chip]) if n != chip][:5]
        assert order.tolist() == others
        np.testing.assert_allclose(cosines, cosine[chip, others], rtol=1e-4)
    order, cosines = neighbors(np.ones((6, 8), np.float32), 2, 4)
    assert order.tolist() == [0, 1, 3, 4] and not cosines.any(), "identical chips have neighbors too"


def test_probe_learns_from_the_labels_alone(vectors):
    assert refit(vectors, {}) is None and refit(vectors, {0: "water", 3: "water"}) is None
    labels = {n: str(NAMES[n]) for n in range(3)}
    assert agreement(refit(vectors, labels), NAMES, labels) > 0.8
    assert agreement(refit(vectors, {0: "town", 1: "field", 2: "water"}), NAMES, labels) < 0.2, "wrong labels"
    assert agreement(np.array(["a", "b", "b"]), np.array(["a", "a", "b"]), {0: "a"}) == 0.5, "labels do not count"


def test_click_shows_neighbors_and_labels_refit_the_probe(widget):
    widget.label("water")
    assert "Click a chip first" in widget.message.value
    shown = set()
    for chip in (0, 1, 2):
        widget.chips._handle_mouse_events(None, {"event": "click", "properties": {"chip": chip}}, [])  # as the browser
        assert widget.chosen == chip
        shown.add(widget.image.value)
        widget.label(str(NAMES[chip]))
    assert len(shown) == 3 and widget.labels == {n: NAMES[n] for n in range(3)}
    fills = [feature["properties"]["style"]["fillColor"] for feature in widget.chips.data["features"]]
    assert len(set(fills)) == 3 and fills[0].lower() == widget.colors[widget.predictions[0]].lower()
    assert f"{agreement(widget.predictions, NAMES, widget.labels):.0%}" in widget.message.value
    widget.label("a lake nearby")
    assert "a lake nearby" in widget.colors
    widget.label("")
    widget.click(1)
    widget.label("")
    assert widget.predictions is None and set(widget.labels) == {0}


def test_marks_rank_by_examples_for_and_against(widget, vectors):
    units = vectors - vectors.mean(0)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    truth = units @ (units[[0, 3]].mean(0) - 0.5 * units[1])
    truth[[0, 1, 3]] = -np.inf
    order, _ = neighbors(vectors, 5, marks={0: 1, 1: -1, 3: 1})
    assert order.tolist() == np.argsort(-truth)[:5].tolist()
    alone = units @ (units[5] - 0.5 * units[1])
    assert neighbors(vectors, 5, 1, marks={1: -1})[0] == [n for n in np.argsort(-alone) if n not in (1, 5)][:1]
    for chip, sign in ((0, 1), (1, -1), (3, 1), (2, 1), (2, 0)):
        widget.click(chip)
        before = widget.image.value
        widget.mark(sign)
        assert chip == 0 or widget.image.value != before  # the first example alone is the chip that was clicked
    assert widget.marks == {0: 1, 1: -1, 3: 1} and "the examples: 2 for, 1 against" in widget.message.value
    link = base64.b64decode(widget.message.value.partition("base64,")[2].partition('"')[0])  # hits.geojson
    saved = {hit["properties"]["chip"]: hit["properties"] for hit in json.loads(link)["features"]}
    order, cosines = neighbors(vectors, 2, marks=widget.marks)
    assert list(saved) == [2, 0, 1, 3, *order] and saved[2]["rank"] == 0 and saved[1]["mark"] == -1
    assert [saved[n]["similarity"] for n in order] == list(cosines) and saved[order[4]]["rank"] == 5
    styles = [feature["properties"]["style"] for feature in widget.chips.data["features"]]
    assert styles[1]["dashArray"] and styles[0]["color"] != styles[1]["color"] != styles[5]["color"]


def test_a_label_that_the_others_contradict_is_named(widget, vectors):
    labels = {n: str(NAMES[n]) for n in range(18)}
    assert suspects(vectors, labels) == {} and suspects(vectors, {0: "water", 1: "town"}) == {}
    assert suspects(vectors, labels | {4: "field"}) == {4: "town"}
    widget.labels = labels | {4: "field"}
    widget.click(17)
    widget.label(str(NAMES[17]))
    assert "Look again at chip 4 (field, rather town)." in widget.message.value


def test_no_tile_server_and_a_still_figure(widget):
    kinds = [type(layer).__name__ for layer in widget.map.layers]
    assert sorted(kinds) == ["GeoJSON", "ImageOverlay"] and widget.map.layers[0].url.startswith("data:image/png")
    assert "image/png" in widget._repr_mimebundle_() and len(widget.still) < 400_000
    assert widget.page.count("data:") == 4 and "{{" not in widget.page  # still, background, thumbnails, vectors


def test_map_of_names_has_a_pixel_a_tile(tmp_path):
    scene = open_scene(size=40)
    scene.missing[:, :16, :16] = True
    _, _, kept = cut_chips(scene, 16)
    with rasterio.open(write_map(tmp_path / "map.tif", scene, 16, kept, ["town", "woods", "town"])) as file:
        np.testing.assert_array_equal(file.read(1), [[0, 1], [2, 1]])
        assert (file.nodata, file.descriptions) == (0, ("1 town, 2 woods",)) and str(file.crs) == scene.crs
        assert file.transform.a == pytest.approx(16 * scene.transform[0])


def test_image_without_a_crs_has_a_map_too(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)).save(tmp_path / "photo.png")
    scene = read_scene(tmp_path / "photo.png", "naip", bands=["red", "green", "blue"])
    chips, corners, _ = cut_chips(scene, 16)
    layer = scene_background(scene)
    west, north = layer.transform[2], layer.transform[5]
    assert corners[0].tolist()[0] == [west, north] and np.isnan(chips.lat).all()
    widget = chip_map(chips, np.eye(6), layer, outlines=corners, thumbnails=[layer.values] * 6)
    assert np.isfinite(widget.atlas.lat).all()
    widget.click(0)
    assert "GeoJSON" not in widget.message.value, "it has no true place"


def test_background_is_the_land_cover_of_the_mini_world():
    world = MiniWorld(0)
    layer = world_background(world, step=10.0)
    assert layer.values.shape == (14, 36, 3) and layer.transform[:3] == (10.0, 0.0, -180.0)
    sea = world.land_cover(75.0 - 10.0 * np.arange(14), np.full(14, -175.0)) == 80
    blue = layer.values[:, 0, 2] > layer.values[:, 0, 0] + 0.3
    assert (sea == blue).all()
