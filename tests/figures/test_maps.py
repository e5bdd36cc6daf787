"""Maps: an overlay covers its raster's true footprint, each pixel lands on its own place, nothing needs a network."""

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from rasterio.transform import Affine
from rasterio.warp import transform as reproject_points

from clay_lib.data.georeference import bounds_wgs84, coarser
from clay_lib.errors import ContractError
from clay_lib.figures import maps

SINUSOIDAL = "+proj=sinu +R=6371007.181 +units=m"
GRIDS = [
    ("EPSG:32736", (10.0, 0.0, 617300.0, 0.0, -10.0, 9625100.0)),
    ("EPSG:32718", (10.0, 0.0, 717700.0, 0.0, -10.0, 5700090.0)),
    (SINUSOIDAL, (463.3127, 0.0, -8015773.3, 0.0, -463.3127, 1256504.1)),
    ("EPSG:4326", (0.001, 0.0, 10.0, 0.0, -0.001, 60.0)),
]


def decoded(url):
    head, body = url.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(BytesIO(base64.b64decode(body))))


@pytest.mark.parametrize("crs, transform", GRIDS)
def test_pixels_land_on_their_place(crs, transform):
    height, width = 40, 60
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    url, ((south, west), (north, east)) = maps.overlay(pixels, crs, transform)
    assert (west, south, east, north) == pytest.approx(bounds_wgs84(crs, transform, height, width), abs=1e-5)
    image = decoded(url)
    rows, columns = (v.ravel() for v in np.mgrid[0:height:3, 0:width:3])
    lon, lat = (
        np.array(v) for v in reproject_points(crs, "EPSG:4326", *(Affine(*transform) * (columns + 0.5, rows + 0.5)))
    )
    south, north, y = (np.arctanh(np.sin(np.radians(v))) for v in (south, north, lat))  # Leaflet's vertical stretch
    shown = image[
        ((north - y) / (north - south) * image.shape[0]).astype(int),
        ((lon - west) / (east - west) * image.shape[1]).astype(int),
    ]
    assert (shown[:, 3] == 255).all()
    assert (shown[:, :3] == pixels[rows, columns]).all(axis=1).mean() > 0.99


def test_unknown_values_are_transparent():
    values = np.full((32, 32), 0.5)
    values[:16] = np.nan
    valid = np.ones((32, 32), bool)
    valid[:, :16] = False
    alpha = decoded(maps.overlay(values, *GRIDS[0], cmap="magma", limits=(0, 1), valid=valid)[0])[..., 3]
    middle = alpha.shape[0] // 2
    assert set(alpha[20 : middle - 20].ravel()) == {0}  # NaN
    assert set(alpha[middle + 20 : -20, 20 : middle - 20].ravel()) == {0}  # not valid
    assert set(alpha[middle + 20 : -20, middle + 20 : -20].ravel()) == {255}


def test_map_holds_the_layers_and_no_tiles(tmp_path):
    crs, transform = GRIDS[0]
    layers = [
        maps.Layer("scene", np.zeros((64, 64, 3)), crs, transform),
        maps.Layer("error", np.eye(8), crs, coarser(transform, 8), cmap="magma", opacity=0.6),
    ]
    shown = maps.show_on_map(layers)
    assert [(type(v).__name__, v.name) for v in shown.layers] == [("ImageOverlay", "scene"), ("ImageOverlay", "error")]
    assert shown.layers[1].opacity == 0.6
    west, south, east, north = bounds_wgs84(crs, transform, 64, 64)
    assert tuple(shown.center) == pytest.approx(((south + north) / 2, (west + east) / 2), abs=1e-6)
    pixels = 256 * 2**shown.zoom * (east - west) / 360
    assert 360 < pixels < 480  # fills the window, does not overflow it
    shown.to_html(str(tmp_path / "map.html"))
    assert shown.layers[0].url in (tmp_path / "map.html").read_text()


def test_static_map_keeps_the_ground_square():
    crs, transform = GRIDS[3]  # at 60 north a degree of longitude is half one of latitude
    layers = [
        maps.Layer("a", np.eye(50), crs, transform, label="error (dB)"),
        maps.Layer("b", np.zeros((50, 50, 3)), crs, transform),
    ]
    fig = maps.static_map(layers)
    first, second = fig.axes[:2]
    assert first.get_xlim() == second.get_xlim() == pytest.approx((10.0, 10.05))
    assert first.get_ylim() == pytest.approx((59.95, 60.0))
    assert first.get_aspect() == pytest.approx(2, rel=0.01)
    assert fig.axes[2].get_ylabel() == "error (dB)"


def test_map_without_a_place_raises():
    with pytest.raises(ContractError, match="a map needs a place"):
        maps.overlay(np.zeros((8, 8)), None, GRIDS[0][1])
