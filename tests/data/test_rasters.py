"""Raster files: bands, missing pixels, place and ground distance; real files of every sensor family, and back."""

import shutil

import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from real_files import FILES
from safe_folders import SAFE_METERS, safe_folder

from clay_lib import SENSORS, Clay, ClayConfig, ContractError
from clay_lib.areas.archives import acquisition_from_file
from clay_lib.areas.reading import read_acquisition
from clay_lib.data.georeference import bounds_wgs84, coarser
from clay_lib.data.rasters import read_header, write_raster
from clay_lib.data.scenes import read_padded, read_scene

UTM = dict(crs="EPSG:32736", transform=(10.0, 0.0, 617300.0, 0.0, -10.0, 9625100.0))
EXPECTED = {  # file: shape, gsd (m), lat, lon, medians of bands
    "sentinel-2-l2a/38D_378R_2_3.tif": ((10, 224, 224), 10, (-3.401, 34.066), {"red": 1496, "swir22": 2772}),
    "sentinel-1-rtc/38D_378R_2_3.tif": ((2, 224, 224), 10, (-3.401, 34.066), {"vv": -12.5, "vh": -17.8}),
    "landsat-c2l1": ((6, 169, 186), 29.9, (38.393, -78.632), {"red": 7175, "blue": 8747, "nir08": 20366}),
    "landsat-sr/LE70220491999322EDC01_stack.tif": ((6, 250, 250), 30, (15.721, -93.316), {"red": 9211, "nir08": 19785}),
    "naip/m_3607717_sw_18_1_20160620_subset.tif": ((4, 300, 300), 1, (36.622, -78.002), {"nir": 183}),
    "naip/NAIP-VA-b*.tiff": ((4, 510, 597), 1, (37.997, -78.937), {"red": 82, "nir": 225}),
    "modis": ((7, 256, 256), 463.3, (10.77, -72.84), {"sur_refl_b02": 3567}),
    "aerial-rgb/OSBS_029.tif": ((3, 400, 400), 0.1, (29.693, -81.990), {"green": 169}),
}


def numbered(count, shape=(12, 20), dtype=np.int16):
    """[count, H, W] where band n (from 1) is n everywhere, so that the bands of a result show in its numbers."""
    return np.broadcast_to(np.arange(1, count + 1, dtype=dtype)[:, None, None], (count, *shape)).copy()


def levels(scene):
    return [int(band[0, 0]) for band in scene.pixels]


def real_path(realdata, file):
    return sorted(realdata.glob(file)) if "*" in file else realdata / file


# ---- there and back ----


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_written_scene_reads_back_unchanged(tmp_path, dtype):
    values = np.random.default_rng(0).integers(1, 200, (4, 33, 50)).astype(dtype)
    path = write_raster(tmp_path / "deep" / "a.tif", values, descriptions=["red", "green", "blue", "nir"], **UTM)
    scene = read_scene(path, "naip", when="2020-06-01")
    np.testing.assert_array_equal(scene.pixels, values)
    assert scene.pixels.dtype == dtype and scene.crs == UTM["crs"] and scene.transform == UTM["transform"]
    assert scene.valid.all() and scene.gsd == 10.0 and scene.when == "2020-06-01"
    assert scene.lon == pytest.approx(34.06, abs=0.01) and scene.lat == pytest.approx(-3.39, abs=0.01)
    with pytest.raises(ContractError, match="raster"):
        write_raster(path, np.ones((8, 8), np.complex64).astype(object), **UTM)
    assert [p.name for p in path.parent.iterdir()] == ["a.tif"]  # no unfinished file is left behind
    np.testing.assert_array_equal(read_scene(path, "naip").pixels, values)  # and a failed write leaves the old one


@pytest.mark.parametrize("sensor, file, kwargs", FILES, ids=[file for _, file, _ in FILES])
def test_real_file_is_read_embedded_and_written_back(realdata, tmp_path, sensor, file, kwargs):
    path = real_path(realdata, file)
    if file in EXPECTED:
        scene, (shape, gsd, place, medians) = read_scene(path, sensor, **kwargs), EXPECTED[file]
        assert scene.pixels.shape == shape and scene.gsd == pytest.approx(gsd, abs=0.05)
        assert (scene.lat, scene.lon) == pytest.approx(place, abs=0.005)
        assert scene.valid.mean() == pytest.approx(0.904 if sensor == "modis" else 1, abs=0.003)
        for name, median in medians.items():
            assert np.median(scene.pixels[scene.bands.index(name)][scene.valid]) == pytest.approx(median, abs=1)
        normalized = scene.sensor.normalize(scene.filled(), scene.bands, in_decibel=scene.in_decibel)
        assert np.abs(normalized).mean() < 2  # native numbers: normalized, they are near the pretraining data

    scene = read_scene(path, sensor, when="2020-06-01", window=(5, 9, 101, 90), **kwargs)  # no multiple of the patch
    pixels, clay = scene.filled(), Clay.random(ClayConfig.named("tiny"))
    assert np.isfinite(pixels).all() and scene.in_decibel == (sensor == "sentinel-1-rtc")
    metadata = {name: getattr(scene, name) for name in ("when", "lat", "lon", "bands", "gsd", "in_decibel")}
    embedded = clay.embed(pixels, scene.sensor, **metadata)
    assert embedded.patches.shape == (1, 12, 13, 192) and embedded.patches.isfinite().all()
    assert embedded.chip.isfinite().all() and embedded.patches.std(dim=(1, 2)).min() > 0
    rebuilt = clay.reconstruct(pixels, scene.sensor, **metadata).pixels[0]
    assert rebuilt.shape == pixels.shape
    # untrained, yet in the sensor's own numbers: a wrong unit is off by hundreds
    assert np.abs(scene.sensor.normalize(rebuilt, scene.bands, in_decibel=scene.in_decibel)).mean() < 5

    placed = dict(crs=scene.crs, transform=scene.transform, descriptions=scene.bands)
    again = read_scene(write_raster(tmp_path / "rebuilt.tif", rebuilt, **placed), sensor, bands=list(scene.bands))
    np.testing.assert_allclose(again.pixels, rebuilt)
    box, half = np.array(bounds_wgs84(scene.crs, scene.transform, 90, 101)), 0.5 * scene.gsd / 111_320
    assert (np.abs(box - bounds_wgs84(again.crs, again.transform, 90, 101)) < half).all()
    assert box[0] < scene.lon < box[2] and box[1] < scene.lat < box[3]

    grid = embedded.patches[0].permute(2, 0, 1)[:3].numpy()
    cells = write_raster(tmp_path / "grid.tif", grid, crs=scene.crs, transform=coarser(scene.transform, 8))
    coarse = read_scene(cells, "linz")
    west, south, east, north = bounds_wgs84(coarse.crs, coarse.transform, *coarse.pixels.shape[1:])
    patch = 8.5 * scene.gsd / 111_320 / np.cos(np.radians(scene.lat))  # the last row and column extend past the scene
    assert (
        abs(west - box[0]) < patch
        and abs(north - box[3]) < patch
        and coarse.gsd == pytest.approx(8 * scene.gsd, rel=1e-3)
    )
    assert box[2] - half <= east < box[2] + patch and box[1] - patch < south <= box[1] + half


# ---- files ----


def test_folder_of_single_bands(tmp_path):
    for number in (2, 3, 4, 5, 6, 7, 10):  # "red" is in every name, so it names no band
        write_raster(tmp_path / f"L8-B{number}-Red-River.tif", numbered(1) * number, **UTM)
    scene = read_scene(tmp_path, "landsat-c2l2-sr")
    assert scene.bands == SENSORS["landsat-c2l2-sr"].band_names and levels(scene) == [4, 3, 2, 5, 6, 7]
    shutil.copy(tmp_path / "L8-B4-Red-River.tif", tmp_path / "L8-B4-Red-River-again.tif")
    with pytest.raises(ContractError, match="one layer a band"):
        read_scene(tmp_path, "landsat-c2l2-sr")


def test_coarser_files_are_resampled_to_the_finest_grid(tmp_path):
    ramp = np.tile(np.arange(1, 21, dtype=np.float32), (12, 1))
    ramp[:4, 8:] = 0  # untagged fill
    write_raster(tmp_path / "B04.tif", ramp, **UTM)
    coarse = np.where(ramp > 0, ramp + 0.5, 0)[::2, ::2]
    write_raster(tmp_path / "B11.tif", coarse, crs=UTM["crs"], transform=coarser(UTM["transform"], 2))
    scene = read_scene(tmp_path, "sentinel-2-l2a")
    assert scene.pixels.shape == (2, 12, 20) and scene.gsd == 10
    assert (scene.missing == (ramp == 0)).all()
    inner = (slice(None), slice(1, 7)), (slice(5, None), slice(1, -1))  # where no neighbor is fill or beyond the border
    for part in inner:
        np.testing.assert_allclose(scene.pixels[1][part], ramp[part], atol=1e-5)
    window = read_scene(tmp_path, "sentinel-2-l2a", window=(4, 2, 8, 6))
    np.testing.assert_allclose(window.pixels, scene.pixels[:, 2:8, 4:12], atol=1e-5)
    assert window.transform[2] == UTM["transform"][2] + 40 and window.transform[5] == UTM["transform"][5] - 20


def test_bands_of_one_file_may_have_different_dtypes(tmp_path):
    for dtype in ("uint8", "uint16", "float32"):
        write_raster(tmp_path / f"{dtype}.tif", np.full((12, 20), 9, dtype), **UTM)
    band = """<VRTRasterBand dataType="{}" band="{}"><SimpleSource>
        <SourceFilename relativeToVRT="1">{}.tif</SourceFilename></SimpleSource></VRTRasterBand>"""
    kinds = [("Byte", 1, "uint8"), ("UInt16", 2, "uint16"), ("Float32", 3, "float32")]
    bands = "".join(band.format(*kind) for kind in kinds)
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="20" rasterYSize="12">{bands}</VRTDataset>')
    assert levels(read_scene(tmp_path / "a.vrt", "linz")) == [9, 9, 9]


@pytest.mark.parametrize(
    "name, sensor, kwargs, field",
    [
        ("two.tif", "sentinel-2-l2a", {}, "bands"),
        ("two.tif", "sentinel-3", {}, "sensor"),
        ("two.tif", "sentinel-1-rtc", {"window": (0, 0, 12, 20)}, "window"),
        ("two.tif", "sentinel-1-rtc", {"window": (0, 0)}, "window"),
        ("two.tif", "sentinel-1-rtc", {"scale": "0.1"}, "scale"),
        ("none.tif", "linz", {}, "path"),
        ("text.tif", "linz", {}, "path"),
        ("cut.tif", "linz", {}, "path"),
        ("empty", "linz", {}, "path"),
        ("complex.tif", "sentinel-1-rtc", {}, "pixels"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, sensor, kwargs, field):
    write_raster(tmp_path / "two.tif", numbered(2), **UTM)
    (tmp_path / "text.tif").write_text("no raster")
    complete = write_raster(tmp_path / "a.tif", np.random.default_rng(0).random((3, 300, 300)), **UTM).read_bytes()
    (tmp_path / "cut.tif").write_bytes(complete[: len(complete) // 2])
    (tmp_path / "empty").mkdir()
    write_raster(tmp_path / "complex.tif", numbered(2).astype(np.complex64), **UTM)
    with pytest.raises(ContractError) as caught:
        read_scene(tmp_path / name, sensor, **kwargs)
    assert caught.value.field == field and caught.value.__cause__ is None


def test_an_empty_path_is_not_the_working_folder(tmp_path, monkeypatch):
    write_raster(tmp_path / "a.tif", numbered(3), **UTM)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ContractError, match="an empty text"):
        read_scene("", "linz")


def test_an_address_that_refuses_is_no_broken_raster():
    with pytest.raises(ContractError, match="Likely cause: no network"):
        read_scene("http://127.0.0.1:9/a.tif", "linz")


# ---- missing pixels and units ----


def test_missing_pixels(tmp_path):
    values = numbered(3).astype(np.float32)
    values[0, 0, 0], values[1, 1, 1] = np.nan, -9999
    scene = read_scene(write_raster(tmp_path / "a.tif", values, nodata=-9999, **UTM), "linz", scale=2, offset=1)
    assert sorted(map(tuple, np.argwhere(~scene.valid))) == [(0, 0), (1, 1)]
    assert scene.pixels[2, 5, 5] == 7 and np.isfinite(scene.filled()).all() and scene.filled()[1, 1, 1] == 5
    np.testing.assert_array_equal(scene.measured(), np.where(scene.missing, np.nan, scene.pixels))


@pytest.mark.parametrize("inside", [True, False])
def test_gdal_masks_hide_pixels(tmp_path, inside):
    path = write_raster(tmp_path / "a.tif", numbered(2, dtype=np.float32) + 1, **UTM)
    hidden = np.arange(240).reshape(12, 20) < 60
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
        file.write_mask(~hidden)
        grid = GeoBox.from_rio(file)
    assert (tmp_path / "a.tif.msk").exists() != inside
    scene = read_scene(path, "sentinel-1-rtc", window=(5, 1, 10, 4))
    np.testing.assert_array_equal(scene.missing, [hidden[1:5, 5:15]] * 2)
    data = read_acquisition(acquisition_from_file(path, "sentinel-1-rtc"), grid)
    np.testing.assert_array_equal(np.isnan(data["vv"].values), hidden)


def test_decibel_is_recognized_by_its_sign(tmp_path):
    power = np.random.default_rng(0).gamma(4, 0.02, (2, 16, 16)).astype(np.float32)
    linear = write_raster(tmp_path / "linear.tif", power, **UTM)
    decibel = write_raster(tmp_path / "decibel.tif", 10 * np.log10(power), **UTM)
    assert not read_scene(linear, "sentinel-1-rtc").in_decibel and read_scene(decibel, "sentinel-1-rtc").in_decibel
    assert not read_scene(decibel, "sentinel-1-rtc", in_decibel=False).in_decibel


# ---- place and windows ----


def test_ground_distance_of_mercator_and_of_no_crs(tmp_path):
    def scene(crs, transform):
        return read_scene(
            write_raster(tmp_path / "a.tif", numbered(10), crs=crs, transform=transform), "sentinel-2-l2a"
        )

    side = 10 / np.cos(np.radians(60))  # 10 m on the ground
    assert scene("EPSG:3857", (side, 0, 1e6, 0, -side, 8399738)).gsd == pytest.approx(10, rel=1e-3)  # at 60 north
    archive = acquisition_from_file(tmp_path / "a.tif", "sentinel-2-l2a").archive
    assert archive.gsd == 10 and archive.crs == "utm"
    plain = scene(None, None)
    assert plain.gsd == 10 and plain.crs is plain.transform is plain.lat is None
    with pytest.raises(ContractError, match="where on Earth"):
        scene('LOCAL_CS["site",UNIT["metre",1]]', (1, 0, 5, 0, -1, 5))


@pytest.mark.parametrize("crs", ["EPSG:no", None, "EPSG:999999"])
def test_unknown_crs_is_refused(crs):
    with pytest.raises(ContractError, match="crs"):
        bounds_wgs84(crs, UTM["transform"], 8, 8)


def test_windows_past_the_border(tmp_path):
    values = np.arange(3 * 30 * 40, dtype=np.float32).reshape(3, 30, 40) + 1
    path = write_raster(tmp_path / "a.tif", values, **UTM)
    padded = read_padded(path, (-2, 20, 8, 16), "linz")  # extends past the left and the lower border
    np.testing.assert_array_equal(padded.pixels[:, :10, 2:], values[:, 20:, :6])
    assert padded.missing[:, 10:].all() and padded.missing[:, :, :2].all() and padded.missing.sum() == 3 * (128 - 60)
    assert np.isnan(padded.pixels[padded.missing]).all() and padded.transform[2::3] == (617280.0, 9624900.0)
    write_raster(path, values[:, :20], **UTM)
    assert read_header(path).height == 20  # a rewritten file is read again


# ---- what a product's name says ----


def test_level_baseline_date_and_hour_of_a_safe_folder(tmp_path):
    """60 m and coarser copies lie there too; band n is 1000 + 100 n, with fill in a corner."""
    name = "S2A_MSIL2A_20230610T074621_N{}_R135_T36MXE_20230610T131500.SAFE"
    stored = {band: np.full((96, 96), 1000 + 100 * int(band.strip("A")), np.uint16) for band in SAFE_METERS}
    for values in stored.values():
        values[:24, :24] = 0
    for baseline, offset in (("0509", 1000), ("0301", 0)):
        path = safe_folder(tmp_path / name.format(baseline), stored, UTM)
        scene = read_scene(path, "sentinel-2-l2a")
        assert scene.bands == SENSORS["sentinel-2-l2a"].band_names and scene.when == "2023-06-10T07:46:21"
        values = np.array([1000 - offset + 100 * n for n in (2, 3, 4, 5, 6, 7, 8, 8, 11, 12)])
        corner = np.zeros((96, 96), bool)
        corner[:24, :24] = True
        assert (scene.missing == corner).all() and (scene.pixels[:, ~corner] == values[:, None]).all(), "fill spreads"
        acquisition = acquisition_from_file(path, "sentinel-2-l2a")
        assert f"{acquisition.when:%Y-%m-%dT%H:%M:%S}" == scene.when
        own = read_acquisition(
            acquisition, GeoBox((96, 96), rasterio.Affine(10, 0, 617300, 0, -10, 9625100), UTM["crs"])
        )
        assert own.red.values[-1, -1] == scene.pixels[2, -1, -1]
    with pytest.raises(ContractError, match="level 1C in the name"):
        read_scene(path.rename(tmp_path / path.name.replace("L2A", "L1C")), "sentinel-2-l2a")


def test_an_offset_that_a_name_suggests_is_asked_for(tmp_path):
    path = tmp_path / "S2B_MSIL2A_20230610T074621_N0509_R135_T36MXE.tif"
    write_raster(path, np.full((10, 8, 8), 1800, np.uint16), **UTM)
    with pytest.warns(UserWarning, match="pass offset=-1000 if it is still in the numbers"):
        assert read_scene(path, "sentinel-2-l2a").when == "2023-06-10T07:46:21"
    assert read_scene(path, "sentinel-2-l2a", offset=-1000).pixels.max() == 800


# ---- place ----


@pytest.mark.parametrize("lat, refused", [(-3.0, False), (45.0, False), (60.0, True)])
def test_pixels_far_from_square_on_the_ground_are_refused_with_the_command(tmp_path, lat, refused):
    path = write_raster(tmp_path / "a.tif", numbered(3), crs="EPSG:4326", transform=(1e-4, 0, 10.5, 0, -1e-4, lat))
    if refused:
        with pytest.raises(ContractError, match="5.566 x 11.13 m.*gdalwarp -t_srs EPSG:32632 -tr 5.566 5.566"):
            read_scene(path, "linz")
    else:
        assert read_scene(path, "linz").gsd == pytest.approx(11.13 * np.cos(np.radians(lat)) ** 0.5, rel=1e-3)
    assert acquisition_from_file(path, "linz").archive.gsd == SENSORS["linz"].gsd  # which is brought to UTM anyway


@pytest.mark.parametrize("name", ["a.nc", "a.zarr", "folder"])
def test_data_sets_of_xarray_are_refused_with_the_call(tmp_path, name):
    path = tmp_path / name
    if name == "a.nc":
        layers = {band: (("y", "x"), np.ones((4, 4))) for band in ("red", "blue")}
        xr.Dataset(layers).to_netcdf(path, engine="scipy")
    else:
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    with pytest.raises(ContractError, match=f"xarray.open_dataset.*{name}"):
        read_scene(path, "linz")
