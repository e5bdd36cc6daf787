"""The chip map: neighbours are the nearest, a probe learns only what it was told, tiles lie where the scene lies."""

import numpy as np
import pytest
from PIL import Image

from clay_lib import SENSORS
from clay_lib.course.chip_map import agreement, chip_map, cut_tiles, neighbours, refit, world_background
from clay_lib.data.chips import Chips
from clay_lib.data.rasters import bounds_wgs84, read_scene, write_raster
from clay_lib.errors import ContractError
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
def clicked(vectors):
    rng = np.random.default_rng(1)
    chips = Chips(
        "naip", rng.integers(0, 255, (N, 4, 8, 8)).astype(np.uint8), np.zeros((N, 8, 8), np.uint8),
        rng.uniform(-50, 70, N), rng.uniform(-170, 170, N), np.full(N, "2020-01-01"),
    )  # fmt: skip
    return chip_map(chips, vectors, GROUND, truth=NAMES)


def test_neighbours_are_the_most_alike_and_never_the_chip_itself(vectors):
    v = vectors - vectors.mean(0)
    cosine = (v @ v.T) / np.outer(np.linalg.norm(v, axis=1), np.linalg.norm(v, axis=1))
    for chip in (0, 7, 23):
        order, alike = neighbours(vectors, chip)
        others = [n for n in np.argsort(-cosine[chip]) if n != chip][:5]
        assert order.tolist() == others
        np.testing.assert_allclose(alike, cosine[chip, others], rtol=1e-4)


def test_the_probe_learns_from_what_it_was_told_alone(vectors):
    assert refit(vectors, {}) is None and refit(vectors, {0: "water", 3: "water"}) is None
    given = {n: str(NAMES[n]) for n in range(3)}
    answers = refit(vectors, given)
    assert agreement(answers, NAMES, given) > 0.8
    swapped = refit(vectors, {0: "town", 1: "field", 2: "water"})
    assert agreement(swapped, NAMES, given) < 0.2, "told wrongly, it is wrong"
    assert agreement(np.array(["a", "b", "b"]), np.array(["a", "a", "b"]), {0: "a"}) == 0.5, "given ones do not count"


def test_a_click_shows_neighbours_a_label_refits_and_can_be_taken_back(clicked):
    clicked.tell("water")
    assert "Click a chip first" in clicked.said.value
    pictures = set()
    for chip in (0, 1, 2):
        clicked.chips._handle_mouse_events(None, {"event": "click", "properties": {"chip": chip}}, [])  # as the browser
        assert clicked.chosen == chip
        pictures.add(clicked.picture.value)
        clicked.tell(str(NAMES[chip]))
    assert len(pictures) == 3 and clicked.given == {n: NAMES[n] for n in range(3)}
    colours = [f["properties"]["style"]["fillColor"] for f in clicked.chips.data["features"]]
    assert len(set(colours)) == 3 and colours[0].lower() == clicked.colours[clicked.answers[0]].lower()
    assert f"{agreement(clicked.answers, NAMES, clicked.given):.0%}" in clicked.said.value
    clicked.tell("a lake of my own")
    assert "a lake of my own" in clicked.colours
    clicked.tell("")
    clicked.click(1)
    clicked.tell("")
    assert clicked.answers is None and set(clicked.given) == {0}


def test_no_tile_server_and_a_still_picture(clicked):
    kinds = [type(layer).__name__ for layer in clicked.map.layers]
    assert sorted(kinds) == ["GeoJSON", "ImageOverlay"] and clicked.map.layers[0].url.startswith("data:image/png")
    assert "image/png" in clicked._repr_mimebundle_() and len(clicked.still) < 400_000


def test_tiles_lie_where_the_scene_lies(tmp_path):
    world = MiniWorld(0)
    chip = world.observe(world.place(40, 1, "test"), "sentinel-2-l2a", "2023-06-10T10:30", (40, 56))
    names = SENSORS["sentinel-2-l2a"].band_names
    write_raster(tmp_path / "s.tif", chip.pixels, crs=chip.crs, transform=chip.transform, descriptions=names)
    view = read_scene(tmp_path / "s.tif", "sentinel-2-l2a")
    chips, outlines, which = cut_tiles(view, 16)
    assert chips.pixels.shape == (6, 10, 16, 16) and outlines.shape == (6, 4, 2) and which.tolist() == [*range(6)]
    np.testing.assert_array_equal(chips.pixels[4], chip.pixels[:, 16:32, 16:32])
    a, b, x, d, e, y = chip.transform
    moved = (a, b, x + 16 * a, d, e, y + 16 * e)
    west, south, east, north = bounds_wgs84(chip.crs, moved, 16, 16)
    corners = outlines[4]
    np.testing.assert_allclose([corners[:, 0].min(), corners[:, 0].max()], [west, east], atol=1e-6)
    np.testing.assert_allclose([corners[:, 1].min(), corners[:, 1].max()], [south, north], atol=1e-6)
    assert south < chips.lat[4] < north and west < chips.lon[4] < east
    holes = chip.pixels.copy()
    holes[:, :16, 16:32] = holes[:, 16:32, :6] = 0
    write_raster(tmp_path / "h.tif", holes, crs=chip.crs, transform=chip.transform, descriptions=names, nodata=0)
    rest, corners, which = cut_tiles(read_scene(tmp_path / "h.tif", "sentinel-2-l2a"), 16)
    assert which.tolist() == [0, 2, 3, 4, 5] and np.isnan(rest.pixels[2][:, :, :6]).all()
    assert np.isfinite(rest.pixels[2][:, :, 6:]).all() and (corners == outlines[which]).all()
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(tmp_path / "picture.png")
    with pytest.raises(ContractError, match="no place"):
        cut_tiles(read_scene(tmp_path / "picture.png", "naip", bands=["red", "green", "blue"]), 16)


def test_the_mini_world_s_land_is_where_the_mini_world_has_it():
    world = MiniWorld(0)
    layer = world_background(world, step=10.0)
    assert layer.values.shape == (14, 36, 3) and layer.transform[:3] == (10.0, 0.0, -180.0)
    sea = world.land_cover(75.0 - 10.0 * np.arange(14), np.full(14, -175.0)) == 80
    blue = layer.values[:, 0, 2] > layer.values[:, 0, 0] + 0.3
    assert (sea == blue).all()


def test_chips_that_are_all_the_same_have_neighbours_too():
    order, alike = neighbours(np.ones((6, 8), np.float32), 2, 4)
    assert order.tolist() == [0, 1, 3, 4] and not alike.any()
