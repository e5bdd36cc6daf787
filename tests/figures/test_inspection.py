"""The figure of a datacube: each band against its sensor, holes and places where they are."""

import numpy as np
import pytest

from clay_lib.figures import inspection
from clay_lib.sensors import SENSORS

S2, S1 = SENSORS["sentinel-2-l2a"], SENSORS["sentinel-1-rtc"]


def test_bands_holes_and_places_are_drawn():
    pixels = np.random.default_rng(0).gamma(4, 400, (2, 10, 32, 32)).astype(np.float32)
    pixels[0], pixels[1, 3, :8] = np.nan, np.nan  # the second chip is shown
    fig = inspection.datacube(
        pixels, S2, S2.band_names, lat=[-38.8, 10.0], lon=[287.5, None], gsd=10.0, title="a title"
    )
    right, (image, holes, world) = fig.subfigs[1], fig.subfigs[0].axes
    assert image.get_title("left") == "red, green, blue; chip 2 of 2" and fig.get_suptitle() == "a title"
    assert holes.get_title("left") == "holes: 62.5%"  # all of one chip and a quarter of the other
    assert (holes.images[0].get_array()[:8] > 0.3).all() and not holes.images[0].get_array()[8:].any()
    assert world.get_title("left") == "place: 38.80° S, 72.50° W"
    (dot,) = world.lines
    assert np.ravel(dot.get_data()) == pytest.approx([-72.5, -38.8])
    assert [ax.get_title("left") for ax in right.axes[:2]] == ["blue  0.493 µm", "green  0.56 µm"]
    assert right.axes[0].lines[0].get_xdata()[0] == 1105 and not right.axes[10].axison


def test_radar_power_is_drawn_in_decibel():
    fig = inspection.datacube(np.full((1, 2, 8, 8), 0.1, np.float32), S1, S1.band_names)
    low, high = fig.subfigs[1].axes[0].get_xlim()
    assert low < -10 < high < 10 and fig.subfigs[0].axes[2].get_title("left") == "place: unknown"
    assert fig.subfigs[0].axes[0].get_title("left") == "vv, vh, vv/vh"


def test_outline_has_land_where_there_is_land():
    from shapely import Point, Polygon

    land = [Polygon(ring) for ring in inspection._land()]
    for lon, lat, expected in ((34.0, -3.4, True), (-105.0, 40.0, True), (-30.0, 0.0, False), (-150.0, 20.0, False)):
        assert any(part.contains(Point(lon, lat)) for part in land) == expected
