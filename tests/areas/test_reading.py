"""Reading: stored numbers on any grid, NaN for clouds, nodata and alpha, errors for files that cannot be read."""

import shutil
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import xarray as xr
from archive_scenes import ALWAYS, around, array_of, file_of, grid_of, grid_of_scene, scene_of, served
from faulty_server import FaultyServer
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy import ndimage

from clay_lib.areas import reading
from clay_lib.areas.archives import acquisition_from_file, archives_of, find_acquisitions
from clay_lib.areas.reading import cloud_mask, read_acquisition
from clay_lib.data.check import inspect_image
from clay_lib.data.rasters import write_raster
from clay_lib.data.scenes import read_scene
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS

S2, LANDSAT = "sentinel-2-l2a", "landsat-c2l2-sr"


def find(sensor, url, dates="2023-08-20"):
    return find_acquisitions(sensor, around(), dates, url=url)[0]


def with_href(acquisition, key, href):
    item = acquisition.items[0].clone()
    item.assets[key].href = href
    return replace(acquisition, items=(item,))


def read_file(path, sensor, grid=None):
    return array_of(read_acquisition(acquisition_from_file(path, sensor), grid_of(path) if grid is None else grid))


def test_coarser_bands_are_interpolated_in_place(archive_folder, url):
    acquisition = find(S2, url)
    read = read_acquisition(acquisition, grid_of(file_of(acquisition, archive_folder, url, "red")))["swir16"].values
    with rasterio.open(file_of(acquisition, archive_folder, url, "swir16")) as file:
        stored = file.read(1).astype(float)
    at = (np.arange(64) + 0.5) / 2 - 0.5  # pixel centers of 10 m in pixels of 20 m
    expected = ndimage.map_coordinates(stored, np.meshgrid(at, at, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(read, expected, atol=0.01)


def test_no_read_leaves_a_filter_that_ignores_all_warnings(archive_folder, url, monkeypatch):
    """As rasterio's warps do that overlap in time; of Dask too, which reads after `read_acquisition` has returned."""
    rio_read = reading.rio_read
    monkeypatch.setattr(reading, "rio_read", lambda *args, **options: (warnings.simplefilter("ignore"), rio_read(*args, **options))[1])  # fmt: skip
    acquisition = find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=url)[0]
    grid = grid_of(file_of(acquisition, archive_folder, url, "red"))
    with warnings.catch_warnings():
        for chunks in (None, {"x": 32, "y": 32}):
            assert np.isfinite(read_acquisition(acquisition, grid, chunks=chunks)["red"].values).any()
            assert reading.IGNORED not in warnings.filters


def test_two_crs_on_one_grid(tmp_path):
    """A function of longitude and latitude, stored in two zones that meet, read onto one grid."""

    def values(lon, lat):
        first, second = 2 + np.sin(400 * lon) * np.cos(400 * lat), 3 + np.cos(300 * lon + 200 * lat)
        return np.stack([first, second]).astype(np.float32)

    def values_on(grid):
        y, x = np.mgrid[: grid.shape[0], : grid.shape[1]]
        to_degrees = Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
        return values(*to_degrees.transform(*(grid.transform * (x + 0.5, y + 0.5))))

    scenes, borders = [], []
    for crs, beyond in (("EPSG:32633", 1200), ("EPSG:32634", 400)):
        borders.append(Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(18, 48.02)[0] // 20 * 20)
        grid = GeoBox((128, 64), rasterio.Affine(20, 0, borders[-1] - beyond, 0, -20, 5320000), crs)
        transform = tuple(grid.transform)[:6]
        scenes.append(scene_of("sentinel-1-rtc", values_on(grid), crs=crs, transform=transform, name=crs[-5:]))
    grid = GeoBox((64, 96), rasterio.Affine(20, 0, borders[0] - 1000, 0, -20, 5319000), "EPSG:32633")
    with served(tmp_path, *scenes) as (acquisition, _):
        assert len(acquisition.items) == 2
        read = array_of(read_acquisition(acquisition, grid))
    assert not np.isnan(read).any()
    np.testing.assert_array_equal(read[:, :, :52], scenes[0].pixels[:, 50:114, 10:62])  # the grid's zone, as stored
    np.testing.assert_allclose(read, values_on(grid), atol=0.02)  # between pixels; half a pixel off would be 0.05


@pytest.mark.parametrize(
    "sensor, source",
    [
        ("sentinel-2-l2a", "sentinel-2-l2a/38D_378R_2_3.tif"),
        ("sentinel-1-rtc", "sentinel-1-rtc/38D_378R_2_3.tif"),
        ("landsat-c2l1", "landsat-c2l1"),
        ("naip", "naip/m_3607717_sw_18_1_20160620_subset.tif"),
        ("modis", "modis"),
        ("landsat-c2l2-sr", "landsat-sr/LE70220491999322EDC01_stack.tif"),
    ],
)
def test_real_images_in_an_archive_read_as_their_files(sensor, source, tmp_path, realdata):
    scaling = dict(scale=0.0001 / 2.75e-05, offset=0.2 / 2.75e-05) if sensor == LANDSAT else {}
    bands = ["blue", "green", "red", "nir08", "swir16", "swir22", None, None] if scaling else None
    scene = replace(read_scene(realdata / source, sensor, bands=bands, when="2023-06-10", **scaling), path="real.tif")
    if scaling:
        scene = replace(scene, pixels=np.rint(scene.pixels).astype(np.uint16))
    height, width = (side // 2 * 2 for side in scene.pixels.shape[1:])
    with served(tmp_path, scene) as (acquisition, _):
        read = array_of(read_acquisition(acquisition, grid_of_scene(scene)[:height, :width]))
    names = scene.sensor.band_names
    expected = scene.measured()[[scene.bands.index(band) for band in names], :height, :width].astype(np.float64)
    expected = (10 ** (expected / 10)).astype(np.float32) if scene.in_decibel else expected
    expected = expected.clip(1) if sensor == S2 else expected
    fine = [i for i, band in enumerate(names) if sensor != S2 or band in ("blue", "green", "red", "nir")]
    np.testing.assert_array_equal(read[fine], expected[fine])
    assert np.isnan(read).mean() < 0.4
    findings = inspect_image(read, sensor, when=acquisition.when).findings
    assert not [f for f in findings if f.level == "error"], findings


# ---- missing pixels ----


def test_clouds_are_masked_or_kept(archive_folder, url):
    acquisition = find(S2, url, "2023-05-20")
    grid = grid_of(file_of(acquisition, archive_folder, url, "red"))
    with rasterio.open(file_of(acquisition, archive_folder, url, "scl")) as file:
        cloudy = np.isin(file.read(1), [0, 1, 3, 8, 9, 10]).repeat(2, 0).repeat(2, 1)  # 20 m classes, the nearest
    assert 0.2 < cloudy.mean() < 0.6
    masked, kept = (array_of(read_acquisition(acquisition, grid, clouds=clouds)) for clouds in ("mask", "keep"))
    np.testing.assert_array_equal(np.isnan(masked), np.broadcast_to(cloudy, masked.shape))
    assert not np.isnan(kept).any()
    np.testing.assert_array_equal(masked[:, ~cloudy], kept[:, ~cloudy])


def test_bit_fields():
    classes = np.array([1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 21824, 22280], np.uint16)
    hidden = cloud_mask(classes, archives_of(LANDSAT)[0].mask_bits)  # snow, clear and water are ground
    assert hidden.tolist() == [True] * 5 + [False] * 4 + [True]
    classes = np.array([0, 1, 2, 3, 1 << 2, 1 << 8, 1 << 9, 3 << 8, 1 << 10, 1 << 12], np.uint16)
    hidden = cloud_mask(classes, archives_of("modis")[0].mask_bits)
    assert hidden.tolist() == [False, True, True, False, True, False, True, True, True, False]


def test_alpha_and_black_in_all_bands_are_missing(archive_folder, url):
    acquisition = find("linz", url, "2023-05-20")
    path = file_of(acquisition, archive_folder, url, "visual")
    with rasterio.open(path) as file:
        pixels, profile = file.read(), file.profile
    opaque = np.full((1, *pixels.shape[1:]), 255, np.uint8)
    opaque[:, 10:30, 10:20] = 0
    pixels[:, 40:, 40:] = 0  # black in all bands is fill, in one it is measured
    pixels[1, :5, :5] = 0
    profile |= dict(driver="GTiff", count=4, photometric="RGB", alpha="YES")
    with rasterio.open(archive_folder / "rgba.tif", "w", **profile) as file:
        file.write(np.concatenate([pixels, opaque]))
    acquisition = with_href(acquisition, "visual", f"{url}/files/rgba.tif")
    expected = pixels.astype(np.float32)
    expected[:, 10:30, 10:20] = expected[:, 40:, 40:] = np.nan
    np.testing.assert_array_equal(array_of(read_acquisition(acquisition, grid_of(path))), expected)


def test_nodata_is_missing_and_does_not_bleed(tmp_path):
    pixels = np.random.default_rng(2).integers(8000, 20000, (6, 64, 64)).astype(np.uint16)
    missing = np.zeros(pixels.shape, bool)
    missing[:, :20] = missing[3, 40:, 40:] = True
    scene = scene_of(LANDSAT, pixels, missing)
    with served(tmp_path, scene) as (acquisition, _):
        read = array_of(read_acquisition(acquisition, grid_of_scene(scene)))
        between = array_of(read_acquisition(acquisition, grid_of_scene(scene).translate_pix(17.5, 0.25)))
    np.testing.assert_array_equal(np.isnan(read), missing)
    np.testing.assert_array_equal(read[~missing], pixels[~missing])
    assert np.isnan(between[:, :18]).all() and np.isnan(between[:, :, 48:]).all() and np.nanmin(between) >= 8000


def test_white_in_one_band_is_measured(tmp_path):
    pixels = np.random.default_rng(4).integers(1, 250, (4, 32, 32)).astype(np.uint8)
    pixels[0, 5:10, 5:10] = pixels[:, 20:, 20:] = 255
    place = dict(crs="EPSG:32617", transform=(1, 0, 500000, 0, -1, 4e6))
    read = read_file(write_raster(tmp_path / "naip.tif", pixels, nodata=255, **place), "naip")
    assert np.isnan(read[:, 20:, 20:]).all() and np.isnan(read).sum() == 4 * 12 * 12
    assert (read[0, 5:10, 5:10] == 255).all()


def test_shared_fill_does_not_bleed_between_pixels(tmp_path):
    """0 in all bands is fill, in one a measurement: the same, off the grid, as a fill that no band can measure."""
    pixels = np.random.default_rng(5).integers(3000, 4000, (10, 60, 60)).astype(np.int16)
    pixels[:, 20:40, 20:40] = pixels[2, 42:52, 25:35] = 0
    tagged = np.where((pixels == 0).all(0), np.int16(-9999), pixels)
    place = dict(crs="EPSG:32633", transform=(10, 0, 5e5, 0, -10, 5e6), descriptions=SENSORS[S2].band_names)
    zero = write_raster(tmp_path / "zero.tif", pixels, nodata=0, **place)
    named = write_raster(tmp_path / "named.tif", tagged, nodata=-9999, **place)
    for grid in (grid_of(zero).pad(-2).translate_pix(0.4, 0.3), grid_of(zero).pad(-6).rotate(20)):
        read, expected = (read_file(path, S2, grid) for path in (zero, named))
        both = np.isfinite(read)
        np.testing.assert_allclose(read[both], expected[both], atol=0.1)
        assert np.nanmin(np.delete(read, 2, axis=0)) >= 3000
        assert both[2].sum() > 0.9 * np.isfinite(expected[2]).sum() and (read[2] == 0).sum() > 50


# ---- faults and signatures ----


def test_passing_faults_end_in_the_right_numbers(archive_folder, url, short_waits, monkeypatch):
    with FaultyServer(url) as server:
        acquisition = find(S2, server.url)
        red = archive_folder / S2 / acquisition.ids[0] / "red.tif"
        grid = grid_of(red).translate_pix(0.3, 0.3)  # so that it is warped
        expected = read_acquisition(find(S2, url), grid)
        server.faults = [["red.tif", "500", 2], ["nir.tif", "slow 1", 1], ["blue.tif", "cut", 3], ["scl.tif", "cut", 2]]
        read = read_acquisition(acquisition, grid)
        assert not any(left for *_, left in server.faults)
        xr.testing.assert_equal(read, expected)
        monkeypatch.setitem(reading.GDAL, "GDAL_HTTP_LOW_SPEED_TIME", "1")
        server.faults = [["green.tif", "slow 4", 1], ["swir22.tif", "cut", 2]]  # longer than a request may be silent
        xr.testing.assert_equal(read_acquisition(acquisition, grid, chunks={"x": 32, "y": 32}).compute(), expected)


@pytest.mark.parametrize("chunks", [None, {"x": 32, "y": 32}])
def test_lasting_fault_raises(archive_folder, url, short_waits, chunks):
    with FaultyServer(url) as server:
        acquisition = find(S2, server.url)
        grid = grid_of(archive_folder / S2 / acquisition.ids[0] / "red.tif")
        server.faults = [["nir08.tif", "500", 10_000]]
        with pytest.raises(ContractError, match="nir08.tif.*expected a raster that can be read to its end"):
            read_acquisition(acquisition, grid, chunks=chunks).compute()


def test_truncated_range_is_fetched_again(tmp_path, short_waits):
    """Of a file large enough that headers and tiles come in separate ranges; GDAL would cache a truncated one."""
    scene = scene_of("sentinel-1-rtc", np.random.default_rng(5).random((2, 1024, 1024), np.float32))
    with served(tmp_path, scene) as (_, url), FaultyServer(url) as server:
        (acquisition,) = find_acquisitions("sentinel-1-rtc", (14, 47, 16, 49), ALWAYS, url=server.url)
        grid = grid_of_scene(scene)
        read_acquisition(acquisition, grid[:10, :10])  # the headers
        server.faults = [["vv.tif", "cut", 2], ["vh.tif", "cut", 1]]
        np.testing.assert_array_equal(array_of(read_acquisition(acquisition, grid)), scene.pixels)
        assert not any(left for *_, left in server.faults)


@pytest.mark.parametrize("aligned", [True, False])
def test_truncated_file_raises(aligned, archive_folder, url, tmp_path, short_waits):
    acquisition = find(LANDSAT, url)
    source = file_of(acquisition, archive_folder, url, "swir16")
    short = archive_folder / f"short{aligned}.tif"
    short.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    grid = grid_of(source) if aligned else grid_of(source).translate_pix(0.4, 0.4)
    with pytest.raises(ContractError, match=f"short{aligned}.tif.*a truncated file"):
        read_acquisition(with_href(acquisition, "swir16", f"{url}/files/{short.name}"), grid)
    local = shutil.copy(short, tmp_path / "local.tif")
    with pytest.raises(ContractError, match="a truncated download"):
        read_acquisition(acquisition_from_file([local], LANDSAT, bands=["red"]), grid)


def test_only_microsofts_addresses_are_signed(monkeypatch):
    archive, local = archives_of("naip")[0], "http://127.0.0.1/x.tif"
    assert reading.sign(local, archive) == local
    monkeypatch.setitem(sys.modules, "planetary_computer", None)  # as if it were not installed
    with pytest.raises(ContractError, match=r'pip install -e "\.\[planetary\]"'):
        reading.sign("https://naipeuwest.blob.core.windows.net/naip/x.tif", archive)


def test_requester_pays_bucket_is_read_with_keys_only(archive_folder, url, monkeypatch):
    acquisition = find("landsat-c2l1", url)
    item = acquisition.items[0].clone()
    for key in {*acquisition.archive.assets.values(), acquisition.archive.mask}:
        item.assets[key].extra_fields["alternate"] = {"s3": {"href": f"s3://landsat-c2l1/{item.id}/{key}.tif"}}
    red = file_of(acquisition, archive_folder, url, "red")
    acquisition, grid = replace(acquisition, items=(item,)), grid_of(red)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(rasterio, "open", lambda *_, **__: pytest.fail("opened without keys"))
        with pytest.raises(ContractError, match="neither AWS_ACCESS_KEY_ID nor AWS_PROFILE.*a requester-pays bucket"):
            read_acquisition(acquisition, grid)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setitem(reading.GDAL, "AWS_HTTPS", "NO")
    monkeypatch.setitem(reading.GDAL, "AWS_VIRTUAL_HOSTING", "FALSE")
    with FaultyServer(f"{url}/files") as bucket:
        monkeypatch.setitem(reading.GDAL, "AWS_S3_ENDPOINT", bucket.url.removeprefix("http://"))
        read = read_acquisition(acquisition, grid)
        assert {key.lower(): value for key, value in bucket.headers.items()}["x-amz-request-payer"] == "requester"
    with rasterio.open(red) as file:
        np.testing.assert_array_equal(read["red"].values, file.read(1))
