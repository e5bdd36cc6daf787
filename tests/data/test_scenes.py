"""Scenes: bands by name, layout or count; missing pixels; place and distance; and back to a file."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox

from clay_lib.areas.archives import acquisition_from_file
from clay_lib.areas.reading import read_acquisition
from clay_lib.data.images import most_measured
from clay_lib.data.rasters import bounds_wgs84, coarser, read_scene, write_raster
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS

REAL = Path(__file__).resolve().parents[3] / "shared" / "realdata"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real imagery in ../shared/realdata is not on this machine"
)
UTM = dict(crs="EPSG:32736", transform=(10.0, 0.0, 617300.0, 0.0, -10.0, 9625100.0))


def numbered(count, shape=(12, 20), dtype=np.int16):
    """[count, H, W] where band n (from 1) is n everywhere: a reader's choice shows in the numbers."""
    return np.broadcast_to(np.arange(1, count + 1, dtype=dtype)[:, None, None], (count, *shape)).copy()


def levels(scene):
    return [int(band[0, 0]) for band in scene.pixels]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_written_scene_reads_back_unchanged(tmp_path, dtype):
    values = np.random.default_rng(0).integers(1, 200, (4, 33, 50)).astype(dtype)
    path = write_raster(tmp_path / "deep" / "a.tif", values, descriptions=["red", "green", "blue", "nir"], **UTM)
    scene = read_scene(path, "naip", when="2020-06-01")
    np.testing.assert_array_equal(scene.pixels, values)
    assert scene.pixels.dtype == dtype and scene.crs == UTM["crs"] and scene.transform == UTM["transform"]
    assert scene.valid.all() and scene.gsd == 10.0 and scene.when == "2020-06-01"
    assert scene.lon == pytest.approx(34.06, abs=0.01) and scene.lat == pytest.approx(-3.39, abs=0.01)
    assert [p.name for p in path.parent.iterdir()] == ["a.tif"]  # nothing unfinished left behind


def test_failed_write_leaves_the_old_file(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.ones((8, 8), np.uint8), **UTM)
    before = path.read_bytes()
    with pytest.raises(ContractError, match="raster"):
        write_raster(path, np.ones((8, 8), np.complex64).astype(object), **UTM)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "count, expected",
    [(10, list(range(1, 11))), (12, [2, 3, 4, 5, 6, 7, 8, 9, 11, 12]), (13, [2, 3, 4, 5, 6, 7, 8, 9, 12, 13])],
)
def test_sentinel_2_layouts(tmp_path, count, expected):
    scene = read_scene(write_raster(tmp_path / "s2.tif", numbered(count), **UTM), "sentinel-2-l2a")
    assert levels(scene) == expected and scene.bands == SENSORS["sentinel-2-l2a"].band_names


def test_descriptions_beat_order(tmp_path):
    path = write_raster(tmp_path / "s2.tif", numbered(4), descriptions=["B8A", "B11", "B04", "SCL"], **UTM)
    scene = read_scene(path, "sentinel-2-l2a")
    assert dict(zip(scene.bands, levels(scene), strict=True)) == {"red": 3, "nir08": 1, "swir16": 2}
    some = read_scene(path, "sentinel-2-l2a", bands=["swir16", "red"])  # taken by their descriptions, in this order
    assert some.bands == ("swir16", "red") and levels(some) == [2, 3]


def test_bands_said_by_the_caller(tmp_path):
    path = write_raster(tmp_path / "stack.tif", numbered(4), **UTM)
    assert levels(read_scene(path, "linz", bands=["blue", "green", "red", None])) == [1, 2, 3]
    by_number = read_scene(path, "linz", bands={"red": 4, "blue": 1})
    assert by_number.bands == ("red", "blue") and levels(by_number) == [4, 1]


def test_folder_of_single_bands(tmp_path):
    for number in (2, 3, 4, 5, 6, 7, 10):
        write_raster(
            tmp_path / f"L8-B{number}-Red-River.tif", numbered(1) * number, **UTM
        )  # "red" is in every name: no band
    scene = read_scene(tmp_path, "landsat-c2l2-sr")
    assert scene.bands == SENSORS["landsat-c2l2-sr"].band_names and levels(scene) == [4, 3, 2, 5, 6, 7]
    shutil.copy(tmp_path / "L8-B4-Red-River.tif", tmp_path / "L8-B4-Red-River-again.tif")
    with pytest.raises(ContractError, match="one layer a band"):
        read_scene(tmp_path, "landsat-c2l2-sr")


def test_numbered_bands_of_older_landsats(tmp_path):
    for number in (1, 2, 3, 4, 5, 7):
        write_raster(tmp_path / f"LE07_SR_B{number}.tif", numbered(1) * number, **UTM)
    assert levels(read_scene(tmp_path, "landsat-c2l2-sr")) == [3, 2, 1, 4, 5, 7]


def test_coarser_files_are_brought_to_the_finest_grid(tmp_path):
    ramp = np.tile(np.arange(20, dtype=np.float32), (12, 1))
    write_raster(tmp_path / "B04.tif", ramp, **UTM)
    write_raster(tmp_path / "B11.tif", ramp[::2, ::2] + 0.5, crs=UTM["crs"], transform=coarser(UTM["transform"], 2))
    scene = read_scene(tmp_path, "sentinel-2-l2a")
    assert scene.pixels.shape == (2, 12, 20) and scene.gsd == 10
    np.testing.assert_allclose(scene.pixels[1, :, 1:-1], ramp[:, 1:-1], atol=1e-5)
    cut = read_scene(tmp_path, "sentinel-2-l2a", window=(4, 2, 8, 6))
    np.testing.assert_allclose(cut.pixels, scene.pixels[:, 2:8, 4:12], atol=1e-5)
    assert cut.transform[2] == UTM["transform"][2] + 40 and cut.transform[5] == UTM["transform"][5] - 20


def test_missing_pixels(tmp_path):
    values = numbered(3).astype(np.float32)
    values[0, 0, 0], values[1, 1, 1] = np.nan, -9999
    scene = read_scene(write_raster(tmp_path / "a.tif", values, nodata=-9999, **UTM), "linz", scale=2, offset=1)
    assert sorted(map(tuple, np.argwhere(~scene.valid))) == [(0, 0), (1, 1)]
    assert scene.pixels[2, 5, 5] == 7 and np.isfinite(scene.filled()).all() and scene.filled()[1, 1, 1] == 5
    np.testing.assert_array_equal(scene.measured(), np.where(scene.missing, np.nan, scene.pixels))
    fill = numbered(7)
    fill[6, 3, 3] = 32767
    assert not read_scene(write_raster(tmp_path / "m.tif", fill, **UTM), "modis").valid[3, 3]
    roof = numbered(3, dtype=np.uint8)
    roof[:, 0, 0], roof[0, 1, 1] = 255, 255  # saturated in one band is a measurement, in all is fill
    valid = read_scene(write_raster(tmp_path / "r.tif", roof, nodata=255, **UTM), "linz").valid
    assert not valid[0, 0] and valid[1, 1]


@pytest.mark.parametrize("inside", [True, False])
def test_what_a_mask_hides_is_missing(tmp_path, inside):
    path = write_raster(tmp_path / "a.tif", numbered(2, dtype=np.float32) + 1, **UTM)
    hidden = np.arange(240).reshape(12, 20) < 60
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
        file.write_mask(~hidden)
        grid = GeoBox.from_rio(file)
    assert (tmp_path / "a.tif.msk").exists() != inside
    scene = read_scene(path, "sentinel-1-rtc", window=(5, 1, 10, 4))
    np.testing.assert_array_equal(scene.missing, [hidden[1:5, 5:15]] * 2)
    got = read_acquisition(acquisition_from_file(path, "sentinel-1-rtc"), grid)
    np.testing.assert_array_equal(np.isnan(got["vv"].values), hidden)


def test_radar_by_sign(tmp_path):
    power = np.random.default_rng(0).gamma(4, 0.02, (2, 16, 16)).astype(np.float32)
    linear = write_raster(tmp_path / "linear.tif", power, **UTM)
    decibel = write_raster(tmp_path / "decibel.tif", 10 * np.log10(power), **UTM)
    assert not read_scene(linear, "sentinel-1-rtc").in_decibel and read_scene(decibel, "sentinel-1-rtc").in_decibel
    assert not read_scene(decibel, "sentinel-1-rtc", in_decibel=False).in_decibel


def test_degrees_and_no_georeference(tmp_path):
    degrees = write_raster(tmp_path / "d.tif", numbered(3), crs="EPSG:4326", transform=(1e-4, 0, 10, 0, -1e-4, 60))
    assert read_scene(degrees, "linz").gsd == pytest.approx(11.132 * np.sqrt(0.5), rel=1e-3)  # narrow at 60 north
    web = write_raster(tmp_path / "w.tif", numbered(3), crs="EPSG:3857", transform=(10, 0, 1e6, 0, -10, 8399738))
    assert read_scene(web, "linz").gsd == pytest.approx(5, rel=1e-3)  # the web's Mercator is twice as large at 60 north
    survey = write_raster(
        tmp_path / "s.tif", numbered(3), crs='LOCAL_CS["site",UNIT["metre",1]]', transform=(1, 0, 5, 0, -1, 5)
    )
    with pytest.raises(ContractError, match="where on Earth"):
        read_scene(survey, "linz")
    plain = read_scene(write_raster(tmp_path / "p.tif", numbered(3), crs=None, transform=None), "linz")
    assert plain.gsd == 0.5 and plain.crs is plain.transform is plain.lat is None


def test_fourth_band_marked_alpha(tmp_path):
    """GDAL marks it so by default: near infrared to a four-band sensor, a mask to a three-band one."""
    values = numbered(4, dtype=np.uint8)
    values[3, 0, 0] = 0
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=4, height=12, width=20, dtype="uint8") as target:
        target.write(values)
    assert levels(read_scene(tmp_path / "a.tif", "naip")) == [1, 2, 3, 0]
    colour = read_scene(tmp_path / "a.tif", "linz")
    assert levels(colour) == [1, 2, 3] and not colour.valid[0, 0] and colour.valid.sum() == 239


def test_patch_grid_covers_the_same_ground(tmp_path):
    fine = bounds_wgs84(UTM["crs"], UTM["transform"], 64, 128)
    assert bounds_wgs84(UTM["crs"], coarser(UTM["transform"], 8), 8, 16) == pytest.approx(fine, abs=1e-9)
    west, south, east, north = fine
    assert (north - south) * 110_600 == pytest.approx(640, rel=0.02) and (east - west) * 111_120 == pytest.approx(
        1280, rel=0.02
    )


@pytest.mark.parametrize("crs", ["EPSG:no", None, "EPSG:999999"])
def test_unknown_crs_says_why(crs):
    with pytest.raises(ContractError, match="crs"):
        bounds_wgs84(crs, UTM["transform"], 8, 8)


def broken(folder):
    write_raster(folder / "two.tif", numbered(2), **UTM)
    (folder / "text.tif").write_text("no raster")
    whole = write_raster(folder / "whole.tif", np.random.default_rng(0).random((3, 300, 300)), **UTM).read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "empty").mkdir()


@pytest.mark.parametrize(
    "name, sensor, kwargs, field",
    [
        ("two.tif", "sentinel-2-l2a", {}, "bands"),
        ("two.tif", "sentinel-3", {}, "sensor"),
        ("two.tif", "linz", {"bands": ["red"]}, "bands"),
        ("two.tif", "linz", {"bands": {"red": 3}}, "bands['red']"),
        ("two.tif", "linz", {"bands": {"rot": 1}}, "bands"),
        ("two.tif", "sentinel-1-rtc", {"window": (0, 0, 12, 20)}, "window"),
        ("two.tif", "sentinel-1-rtc", {"window": (0, 0)}, "window"),
        ("two.tif", "sentinel-1-rtc", {"scale": "0.1"}, "scale"),
        ("none.tif", "linz", {}, "path"),
        ("text.tif", "linz", {}, "path"),
        ("cut.tif", "linz", {}, "path"),
        ("empty", "linz", {}, "path"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, name, sensor, kwargs, field):
    broken(tmp_path)
    with pytest.raises(ContractError) as error:
        read_scene(tmp_path / name, sensor, **kwargs)
    assert error.value.field == field and error.value.__cause__ is None


@needs_real
@pytest.mark.parametrize(
    "what, sensor, kwargs, shape, gsd, place, medians",
    [
        (
            "sentinel-2-l2a/38D_378R_2_3.tif",
            "sentinel-2-l2a",
            {},
            (10, 224, 224),
            10,
            (-3.401, 34.066),
            {"red": 1496, "swir22": 2772},
        ),
        (
            "sentinel-1-rtc/38D_378R_2_3.tif",
            "sentinel-1-rtc",
            {},
            (2, 224, 224),
            10,
            (-3.401, 34.066),
            {"vv": -12.5, "vh": -17.8},
        ),
        (
            "landsat-c2l1",
            "landsat-c2l1",
            {},
            (6, 169, 186),
            29.9,
            (38.393, -78.632),
            {"red": 7175, "blue": 8747, "nir08": 20366},
        ),
        (
            "landsat-sr/LE70220491999322EDC01_stack.tif",
            "landsat-c2l2-sr",
            dict(scale=1e-4 / 0.0000275, offset=0.2 / 0.0000275),
            (6, 250, 250),
            30,
            (15.721, -93.316),
            {"red": 9211, "nir08": 19785},
        ),
        ("naip/m_3607717_sw_18_1_20160620_subset.tif", "naip", {}, (4, 300, 300), 1, (36.622, -78.002), {"nir": 183}),
        ("naip", "naip", {}, (4, 510, 597), 1, (37.997, -78.937), {"red": 82, "nir": 225}),
        ("modis", "modis", {}, (7, 256, 256), 463.3, (10.77, -72.84), {"sur_refl_b02": 3567}),
        ("aerial-rgb/OSBS_029.tif", "linz", {}, (3, 400, 400), 0.1, (29.693, -81.990), {"green": 169}),
    ],
)
def test_real_files(what, sensor, kwargs, shape, gsd, place, medians):
    path = sorted((REAL / "naip").glob("NAIP-VA*")) if what == "naip" else REAL / what
    scene = read_scene(path, sensor, **kwargs)
    assert scene.pixels.shape == shape and scene.gsd == pytest.approx(gsd, abs=0.05)
    assert (scene.lat, scene.lon) == pytest.approx(place, abs=0.005)
    assert scene.in_decibel == (sensor == "sentinel-1-rtc") and scene.valid.mean() == pytest.approx(
        0.904 if sensor == "modis" else 1, abs=0.003
    )
    for name, median in medians.items():
        assert np.median(scene.pixels[scene.bands.index(name)][scene.valid]) == pytest.approx(median, abs=1)
    spread = scene.sensor.normalize(scene.filled(), scene.bands, in_decibel=scene.in_decibel)
    assert np.abs(spread).mean() < 2  # native numbers: normalised, they are near the pretraining data


def test_the_window_with_the_most_measured_pixels_nearest_the_middle():
    whole = np.ones((20, 30), bool)
    assert most_measured(whole, 8, 10) == (6, 10) and most_measured(whole, 20, 30) == (0, 0)
    whole[:, 7:] = False
    whole[0] = False
    assert most_measured(whole, 8, 7) == (6, 0) and most_measured(whole, 19, 4) == (1, 3)
