"""Archives: every profile through a real STAC API and real ranges, and what happens when these fail."""

import json
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
import shapely
import xarray as xr
from faulty_server import FaultyServer
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy import ndimage

from clay_lib.areas import archives, reading
from clay_lib.areas.archives import acquisition_from_file, archives_of, find_acquisitions, parse_area
from clay_lib.areas.catalogs import tile_bounds
from clay_lib.areas.items import sources_of
from clay_lib.areas.jobs import plan
from clay_lib.areas.local import serve_archive, write_archive
from clay_lib.areas.reading import cloud_mask, estimate_bytes, read_acquisition
from clay_lib.areas.tiles import grid_of as tile_grid
from clay_lib.areas.tiles import tiles_of
from clay_lib.data.check import inspect_image
from clay_lib.data.images import open_image
from clay_lib.data.rasters import Scene, read_scene, write_raster
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS, WORLD_SENSORS
from clay_lib.world.earth import Place

REAL = Path(__file__).resolve().parents[3] / "shared" / "realdata"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/realdata beside the repository")
PLACE = Place(48.2, 15.3)
DATES, ALWAYS = ("2023-05-20", "2023-08-20"), "2023-01-01/2023-12-31"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("archive")
    return write_archive(out, sensors=WORLD_SENSORS, place=PLACE, extent=1, dates=DATES, clouds=(0.4, 0.0))  # 64 pixels


@pytest.fixture(scope="module")
def url(folder):
    with serve_archive(folder) as address:
        yield address


@pytest.fixture
def hasty(monkeypatch):
    """The waits of real archives, shortened."""
    monkeypatch.setattr(reading, "PAUSE", 0.01)
    monkeypatch.setitem(reading.GDAL, "GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setattr(archives, "BACKOFF", 0.01)


def around(degrees=0.02):
    return PLACE.lon - degrees, PLACE.lat - degrees, PLACE.lon + degrees, PLACE.lat + degrees


def file_of(look, folder, url, key, item=0):
    """Path of an asset behind its address."""
    href = look.items[item].assets[key].get_absolute_href() or look.items[item].assets[key].href
    return folder / href.removeprefix(f"{url}/files/")


def grid_of(path):
    with rasterio.open(path) as file:
        return GeoBox(file.shape, file.transform, file.crs)


def array_of(data: xr.Dataset) -> np.ndarray:
    return np.stack([data[band].values for band in data.data_vars])


# ---- each profile, from search to numbers ----


@pytest.mark.parametrize("sensor", WORLD_SENSORS)
def test_profile_end_to_end(sensor, folder, url):
    looks = find_acquisitions(sensor, around(), ALWAYS, url=url)
    assert len(looks) == 2 and len({look.ids for look in looks}) == 2
    look = next(look for look in looks if look.when.month == 8)
    archive = look.archive
    bands = SENSORS[sensor].band_names
    first = archive.assets[bands[0]].partition(".")[0]
    grid = grid_of(file_of(look, folder, url, first))[5:45, 3:61]  # an odd window of the archive's own grid
    got = read_acquisition(look, grid)
    assert tuple(got.data_vars) == bands and got.attrs["sensor"] == sensor and got.attrs["items"] == list(look.ids)
    same = 0
    for band in bands:
        key, _, index = archive.assets[band].partition(".")
        with rasterio.open(file_of(look, folder, url, key)) as file:
            if file.res[0] != grid.resolution.x:
                continue  # Sentinel-2's bands of 20 m are interpolated
            stored = file.read(int(index or 1)).astype(np.float32)[5:45, 3:61]
        assert got[band].dtype == np.float32
        np.testing.assert_array_equal(got[band].values, stored, err_msg=band)
        same += 1
    assert same >= 2
    # the corners, through pyproj, are those of the file
    with rasterio.open(file_of(look, folder, url, first)) as file:
        corners = [file.transform * (x, y) for x, y in ((3, 5), (61, 45))]
        to_degrees = Transformer.from_crs(file.crs, "EPSG:4326", always_xy=True)
    half = grid.resolution.x / 2
    x, y = got[grid.dims[1]].values, got[grid.dims[0]].values
    ours = [(x[0] - half, y[0] + half), (x[-1] + half, y[-1] - half)]
    expected = np.array([to_degrees.transform(*corner) for corner in corners])
    np.testing.assert_allclose([to_degrees.transform(*corner) for corner in ours], expected, atol=1e-9)
    assert look.footprint.buffer(1e-9).covers(shapely.box(*expected.min(0), *expected.max(0)))
    # and the numbers are what the model expects
    image = open_image(got, sensor)
    assert image.bands == bands and image.lat == pytest.approx(expected[:, 1].mean(), abs=0.2)
    assert not [f for f in inspect_image(image.pixels, sensor, when=look.when) if f.level == "error"]


def test_coarser_bands_are_interpolated_in_place(folder, url):
    look = find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=url)[0]
    got = read_acquisition(look, grid_of(file_of(look, folder, url, "red")))["swir16"].values
    with rasterio.open(file_of(look, folder, url, "swir16")) as file:
        stored = file.read(1).astype(float)
    at = (np.arange(64) + 0.5) / 2 - 0.5  # pixel centres of 10 m in pixels of 20 m
    expected = ndimage.map_coordinates(stored, np.meshgrid(at, at, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(got, expected, atol=0.01)


def test_dask_reads_the_same(folder, url):
    look = find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=url)[0]
    grid = grid_of(file_of(look, folder, url, "red")).pad(9)
    later = read_acquisition(look, grid, chunks={"x": 32, "y": 32})
    assert all(later[band].chunks is not None for band in later.data_vars)
    xr.testing.assert_equal(later.compute(), read_acquisition(look, grid))


def test_clouds_come_last_and_are_masked(folder, url):
    looks = find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=url)
    assert [look.when.month for look in looks] == [8, 5] and looks[0].cloud_cover == 0
    assert len(find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=url, max_cloud=20)) == 1
    assert len(find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=url, limit=1)) == 1
    look = looks[1]
    grid = grid_of(file_of(look, folder, url, "red"))
    with rasterio.open(file_of(look, folder, url, "scl")) as file:
        cloudy = np.isin(file.read(1), [0, 1, 3, 8, 9, 10]).repeat(2, 0).repeat(2, 1)  # 20 m classes, the nearest
    assert 0.2 < cloudy.mean() < 0.6
    masked, kept = array_of(read_acquisition(look, grid)), array_of(read_acquisition(look, grid, clouds="keep"))
    np.testing.assert_array_equal(np.isnan(masked), np.broadcast_to(cloudy, masked.shape))
    assert not np.isnan(kept).any()
    np.testing.assert_array_equal(masked[:, ~cloudy], kept[:, ~cloudy])


def test_bit_fields():
    qa_pixel = archives_of("landsat-c2l2-sr")[0].mask_bits
    classes = np.array([1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 21824, 22280], np.uint16)
    assert cloud_mask(classes, qa_pixel).tolist() == [True] * 5 + [False] * 4 + [True]  # snow, clear, water are ground
    state = archives_of("modis")[0].mask_bits
    classes = np.array([0, 1, 2, 3, 1 << 2, 1 << 8, 1 << 9, 3 << 8, 1 << 10, 1 << 12], np.uint16)
    assert cloud_mask(classes, state).tolist() == [False, True, True, False, True, False, True, True, True, False]


# ---- what items say of their numbers ----


def test_sentinel_2_offset_kept_and_applied(tmp_path):
    scene = scene_of("sentinel-2-l2a", np.random.default_rng(1).integers(300, 4000, (10, 64, 64)).astype(np.uint16))
    read = {}
    for name in ("earth-search", "planetary-computer"):
        out = write_archive(
            tmp_path / name, sensors=(), rasters={scene.sensor.name: [scene]}, archives={scene.sensor.name: name}
        )
        item = json.loads((out / "items.json").read_text())["features"][0]
        with serve_archive(out) as url:
            look = find_acquisitions(scene.sensor, box_of(scene), "2023-06-10", url=url, archive=name)
            read[name] = array_of(
                read_acquisition(look[0], GeoBox((64, 64), rasterio.Affine(*scene.transform), scene.crs))
            )
        key = look[0].archive.assets["red"]
        with rasterio.open(out / item["assets"][key]["href"]) as file:
            kept = 1000 if name == "planetary-computer" else 0
            np.testing.assert_array_equal(file.read(1), scene.pixels[2] + kept)
    np.testing.assert_array_equal(read["earth-search"], read["planetary-computer"])
    np.testing.assert_array_equal(read["earth-search"][2], scene.pixels[2])


@pytest.mark.parametrize(
    "properties, offset, bias",
    [
        ({"s2:processing_baseline": "02.14"}, None, 0),
        ({"s2:processing_baseline": "05.09"}, None, -1000),
        ({"s2:processing_baseline": "05.09"}, -0.1, -1000),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": False}, -0.1, -1000),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, -0.1, 0),
        ({"s2:processing_baseline": "03.01", "earthsearch:boa_offset_applied": False}, 0, 0),
        ({"processing:version": "05.10"}, -0.1, -1000),
    ],
)
def test_sentinel_2_baselines(properties, offset, bias):
    said = {"scale": 0.0001} | ({} if offset is None else {"offset": offset})
    source = sources_of(item_of(properties, red=said), archives_of("sentinel-2-l2a")[0], ["red"])["red"]
    assert (source.gain, source.bias) == (1, bias)


def test_scaling_comes_from_the_item():
    landsat, modis = archives_of("landsat-c2l2-sr")[0], archives_of("modis")[0]
    said = sources_of(item_of({}, red={"scale": 2.75e-05, "offset": -0.2, "nodata": 0}), landsat, ["red"])["red"]
    assert (said.gain, said.bias, said.nodata) == (1, 0, 0)  # Clay's numbers are the stored ones
    other = sources_of(item_of({}, red={"scale": 0.0001}), landsat, ["red"])["red"]  # reflectance x 10000
    assert 3000 * other.gain + other.bias == pytest.approx((0.3 + 0.2) / 2.75e-05, rel=1e-6)
    assert sources_of(item_of({}, sur_refl_b01={"scale": 0.0001}), modis, ["sur_refl_b01"])["sur_refl_b01"].gain == 1
    with pytest.raises(ContractError, match="without scale in its raster:bands"):
        sources_of(item_of({}, red={}), landsat, ["red"])
    with pytest.raises(ContractError, match="s2:processing_baseline"):
        sources_of(item_of({}, red={"scale": 0.0001}), archives_of("sentinel-2-l2a")[0], ["red"])
    paid = archives_of("landsat-c2l1")[0]
    item = item_of({}, red={})
    item.assets["red"].extra_fields["alternate"] = {"s3": {"href": "s3://usgs-landsat/a/B4.TIF"}}
    assert sources_of(item, paid, ["red"])["red"].href == "s3://usgs-landsat/a/B4.TIF"


def test_microsofts_addresses_are_signed_and_no_others(monkeypatch):
    archive = archives_of("naip")[0]
    blob = "https://naipeuwest.blob.core.windows.net/naip/x.tif"
    assert reading.sign("http://127.0.0.1/x.tif", archive) == "http://127.0.0.1/x.tif"
    monkeypatch.setitem(sys.modules, "planetary_computer", None)  # as if it were not installed
    with pytest.raises(ContractError, match=r'pip install -e "\.\[planetary\]"'):
        reading.sign(blob, archive)


def test_a_paying_bucket_is_asked_as_its_owner_wants(folder, url, monkeypatch):
    (look,) = find_acquisitions("landsat-c2l1", around(), "2023-08-20", url=url)
    item = look.items[0].clone()
    for key in {*look.archive.assets.values(), look.archive.mask}:
        item.assets[key].extra_fields["alternate"] = {"s3": {"href": f"s3://landsat-c2l1/{item.id}/{key}.tif"}}
    look, grid = replace(look, items=(item,)), grid_of(file_of(look, folder, url, "red"))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(rasterio, "open", lambda *_, **__: pytest.fail("without keys nothing is to be opened"))
    with pytest.raises(ContractError, match="neither AWS_ACCESS_KEY_ID nor AWS_PROFILE.*a requester-pays bucket"):
        read_acquisition(look, grid)
    monkeypatch.undo()
    with FaultyServer(f"{url}/files") as bucket:
        where = {
            "AWS_S3_ENDPOINT": bucket.url.removeprefix("http://"),
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
        for key, value in where.items():
            monkeypatch.setitem(reading.GDAL, key, value)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        got = read_acquisition(look, grid)
        assert {key.lower(): value for key, value in bucket.headers.items()}["x-amz-request-payer"] == "requester"
    with rasterio.open(file_of(look, folder, url, "red")) as file:
        np.testing.assert_array_equal(got["red"].values, file.read(1))


def test_alpha_is_missing(folder, url):
    (look,) = find_acquisitions("linz", around(), "2023-05-20", url=url)
    path = file_of(look, folder, url, "visual")
    with rasterio.open(path) as file:
        pixels, profile = file.read(), file.profile
    opaque = np.full((1, *pixels.shape[1:]), 255, np.uint8)
    opaque[:, 10:30, 10:20] = 0
    pixels[:, 40:, 40:] = 0  # black in all bands is fill, in one it is measured
    pixels[1, :5, :5] = 0
    with rasterio.open(
        folder / "rgba.tif", "w", **(profile | dict(driver="GTiff", count=4, photometric="RGB", alpha="YES"))
    ) as file:
        file.write(np.concatenate([pixels, opaque]))
    item = look.items[0].clone()
    item.assets["visual"].href = f"{url}/files/rgba.tif"
    got = array_of(read_acquisition(replace(look, items=(item,)), grid_of(path)))
    expected = pixels.astype(np.float32)
    expected[:, 10:30, 10:20] = np.nan
    expected[:, 40:, 40:] = np.nan
    np.testing.assert_array_equal(got, expected)


def test_nodata_is_missing(tmp_path):
    rng = np.random.default_rng(2)
    pixels = rng.integers(8000, 20000, (6, 64, 64)).astype(np.uint16)
    missing = np.zeros(pixels.shape, bool)
    missing[:, :20] = True
    missing[3, 40:, 40:] = True
    out = write_archive(
        tmp_path, sensors=(), rasters={"landsat-c2l2-sr": [scene_of("landsat-c2l2-sr", pixels, missing)]}
    )
    scene = scene_of("landsat-c2l2-sr", pixels, missing)
    with serve_archive(out) as url:
        look = find_acquisitions("landsat-c2l2-sr", box_of(scene), "2023-06-10", url=url)[0]
        grid = GeoBox((64, 64), rasterio.Affine(*scene.transform), scene.crs)
        got = array_of(read_acquisition(look, grid))
        np.testing.assert_array_equal(np.isnan(got), missing)
        np.testing.assert_array_equal(got[~missing], pixels[~missing])
        beside = read_acquisition(
            look, grid.translate_pix(17.5, 0.25)
        )  # between pixels: fill must not bleed into its neighbours
        values = array_of(beside)
        assert np.isnan(values[:, :18]).all() and np.nanmin(values) >= 8000
        assert np.isnan(values[:, :, 48:]).all()


def test_two_crs_on_one_grid(tmp_path):
    """A field that depends on longitude and latitude alone, stored in two zones that meet, read onto one grid."""

    def stored(crs, west):
        grid = GeoBox((128, 64), rasterio.Affine(20, 0, west, 0, -20, 5320000), crs)
        y, x = np.mgrid[:128, :64]
        lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(
            *(grid.transform * (x + 0.5, y + 0.5))
        )
        return scene_of("sentinel-1-rtc", field(lon, lat), crs=crs, transform=tuple(grid.transform)[:6], name=crs[-5:])

    def field(lon, lat):
        return np.stack([2 + np.sin(400 * lon) * np.cos(400 * lat), 3 + np.cos(300 * lon + 200 * lat)]).astype(
            np.float32
        )

    border = Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(18, 48.02)[0] // 20 * 20
    east = Transformer.from_crs("EPSG:4326", "EPSG:32634", always_xy=True).transform(18, 48.02)[0] // 20 * 20
    scenes = [stored("EPSG:32633", border - 1200), stored("EPSG:32634", east - 400)]
    out = write_archive(tmp_path, sensors=(), rasters={"sentinel-1-rtc": scenes})
    grid = GeoBox((64, 96), rasterio.Affine(20, 0, border - 1000, 0, -20, 5319000), "EPSG:32633")
    with serve_archive(out) as url:
        (look,) = find_acquisitions("sentinel-1-rtc", (17.9, 47.9, 18.1, 48.1), "2023-06-10", url=url)
        assert len(look.items) == 2
        got = array_of(read_acquisition(look, grid))
    y, x = np.mgrid[:64, :96]
    to_degrees = Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
    expected = field(*to_degrees.transform(*(grid.transform * (x + 0.5, y + 0.5))))
    assert not np.isnan(got).any()
    np.testing.assert_array_equal(got[:, :, :52], scenes[0].pixels[:, 50:114, 10:62])  # the zone of the grid, as stored
    np.testing.assert_allclose(got, expected, atol=0.02)  # the other, between pixels; half a pixel off would be 0.05


# ---- the aerial archives ----


def test_tile_names_tell_the_place():
    """LINZ publishes BN28_2000_1225 with the box 173.98241, -40.67623, 173.99394 (its north is open sea)."""
    bounds = tile_bounds("BN28_2000_1225.json")
    west, south, east, _ = Transformer.from_crs("EPSG:2193", "EPSG:4326", always_xy=True).transform_bounds(*bounds)
    np.testing.assert_allclose((west, south, east), (173.9824136, -40.6762278, 173.9939358), atol=3e-5)
    assert tile_bounds("BJ32_500_004003")[2] - tile_bounds("BJ32_500_004003")[0] == 240
    assert tile_bounds("BI28_2000_1225") is None and tile_bounds("linz_48.2") is None


def test_static_catalogue_fetches_only_what_may_fit(folder, url):
    with FaultyServer(url) as between:
        looks = find_acquisitions("linz", around(), "2023-05-01/2023-06-30", url=between.url)
        assert [look.when.month for look in looks] == [5]
        fetched = [line for line in between.seen if "/files/survey" in line]
        assert len(fetched) == 3  # two surveys, and the one tile of the survey in time
        between.seen.clear()
        with pytest.raises(ContractError, match="no items"):
            find_acquisitions("linz", around(), "2010-01-01/2012-01-01", url=between.url)
        assert not [line for line in between.seen if "survey" in line]  # their years are in the path


# ---- files ----


def test_files_read_alike(tmp_path):
    rng = np.random.default_rng(3)
    pixels = rng.integers(300, 4000, (10, 40, 50)).astype(np.uint16)
    pixels[:, :7] = 0
    scene = scene_of("sentinel-2-l2a", pixels)
    names = scene.sensor.band_names
    whole = write_raster(
        tmp_path / "s2.tif", pixels, crs=scene.crs, transform=scene.transform, nodata=0, descriptions=names
    )
    folder = tmp_path / "bands"
    for name, band in zip(names, pixels, strict=True):
        write_raster(folder / f"{name}.tif", band, crs=scene.crs, transform=scene.transform, nodata=0)
    with rasterio.open(whole) as file:
        rasterio.shutil.copy(file, tmp_path / "s2.vrt", driver="VRT")
        rasterio.shutil.copy(file, tmp_path / "cog.tif", driver="COG")
    grid = grid_of(whole).pad(2)
    for source in (whole, folder, tmp_path / "s2.vrt", tmp_path / "cog.tif"):
        look = acquisition_from_file(source, "sentinel-2-l2a", when="2023-06-10T10:30")
        got = array_of(read_acquisition(look, grid))
        assert np.isnan(got[:, :9]).all() and np.isnan(got[:, :, :2]).all(), source
        np.testing.assert_array_equal(got[:, 9:-2, 2:-2], pixels[:, 7:], err_msg=str(source))
        assert look.when == datetime(2023, 6, 10, 10, 30, tzinfo=UTC) and estimate_bytes(look, grid) > 1000
    (folder / "red.tif").unlink()
    look = acquisition_from_file(folder, "sentinel-2-l2a")
    assert "red" not in read_acquisition(look, grid).data_vars and len(read_acquisition(look, grid).data_vars) == 9
    with pytest.raises(ContractError, match="which does not exist"):
        acquisition_from_file(tmp_path / "nothing.tif", "sentinel-2-l2a")


def test_a_files_neighbours_are_read_too(tmp_path):
    """Place and nodata beside the file, in a world file and GDAL's .aux.xml."""
    band = np.random.default_rng(6).random((2, 8, 8), np.float32)
    band[:, 0] = -1
    how = dict(driver="GTiff", count=2, height=8, width=8, dtype="float32", crs="EPSG:32633", nodata=-1)
    how |= dict(transform=rasterio.Affine(10, 0, 500000, 0, -10, 5300000), profile="BASELINE", TFW="YES")
    with rasterio.open(tmp_path / "a.tif", "w", **how) as file:
        file.write(band)
    assert (tmp_path / "a.tfw").is_file() and (tmp_path / "a.tif.aux.xml").is_file()
    got = array_of(
        read_acquisition(acquisition_from_file(tmp_path / "a.tif", "sentinel-1-rtc"), grid_of(tmp_path / "a.tif"))
    )
    np.testing.assert_array_equal(got, np.where(band == -1, np.nan, band))


def test_files_say_their_grid(tmp_path):
    band = np.ones((2, 8, 8), np.float32)
    square = write_raster(tmp_path / "a.tif", band, crs="EPSG:32633", transform=(10, 0, 500003, 0, -10, 5300007))
    archive = acquisition_from_file(square, "sentinel-1-rtc").archive
    assert (archive.crs, archive.gsd, archive.anchor) == ("EPSG:32633", 10, (3, 7))
    degrees = write_raster(tmp_path / "b.tif", band, crs="EPSG:4326", transform=(1e-4, 0, 15, 0, -1e-4, 48))
    archive = acquisition_from_file(degrees, "sentinel-1-rtc").archive
    assert (archive.crs, archive.gsd, archive.anchor) == ("utm", 10, 0)


@pytest.mark.parametrize("crs, lon, lat", [("EPSG:32601", -180, 65), ("EPSG:32760", 180, -17)])
def test_a_file_across_the_antimeridian(crs, lon, lat, tmp_path):
    x, y = (round(v, -1) for v in Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat))
    pixels = np.random.default_rng(7).random((2, 100, 100), np.float32)
    path = write_raster(tmp_path / "a.tif", pixels, crs=crs, transform=(10, 0, x - 500, 0, -10, y + 500))
    look = acquisition_from_file(path, "sentinel-1-rtc")
    assert len(look.footprint.geoms) == 2 and look.footprint.area < 1e-3
    tiles = tiles_of(look.footprint, tile_grid(look.archive, 20))
    assert 25 <= len(tiles) <= 49
    blocks = plan(tiles, [look], "best")
    assert sum(len(block.jobs) for block in blocks) == len(tiles)
    got = [read_acquisition(look, block.geobox(0)) for block in blocks]
    found = sum(int(np.isfinite(array_of(part)).sum()) for part in got)
    assert found == pixels.size
    assert sum(estimate_bytes(look, block.geobox(0)) for block in blocks) < 3 * pixels.nbytes  # not the globe
    np.testing.assert_array_equal(array_of(read_acquisition(look, grid_of(path))), pixels)
    beyond = write_raster(tmp_path / "b.tif", pixels, crs="EPSG:4326", transform=(1e-4, 0, 179.995, 0, -1e-4, lat))
    with pytest.raises(ContractError, match="antimeridian"):
        acquisition_from_file(beyond, "sentinel-1-rtc")


def test_white_is_measured_where_only_one_band_holds_the_fill(tmp_path):
    pixels = np.random.default_rng(4).integers(1, 250, (4, 32, 32)).astype(np.uint8)
    pixels[0, 5:10, 5:10] = 255
    pixels[:, 20:, 20:] = 255
    path = write_raster(
        tmp_path / "naip.tif", pixels, crs="EPSG:32617", transform=(1, 0, 500000, 0, -1, 4e6), nodata=255
    )
    got = array_of(read_acquisition(acquisition_from_file(path, "naip"), grid_of(path)))
    assert np.isnan(got[:, 20:, 20:]).all() and np.isnan(got).sum() == 4 * 12 * 12
    assert (got[0, 5:10, 5:10] == 255).all()


def test_fill_does_not_bleed_where_grids_differ(tmp_path):
    """0 in all bands is fill, in one a measurement: read between pixels, as -9999 is that no band can measure."""
    pixels = np.random.default_rng(5).integers(3000, 4000, (10, 60, 60)).astype(np.int16)
    pixels[:, 20:40, 20:40] = 0
    pixels[2, 42:52, 25:35] = 0
    tagged = np.where((pixels == 0).all(0), np.int16(-9999), pixels)
    how = dict(crs="EPSG:32633", transform=(10, 0, 5e5, 0, -10, 5e6), descriptions=SENSORS["sentinel-2-l2a"].band_names)
    zero = write_raster(tmp_path / "zero.tif", pixels, nodata=0, **how)
    named = write_raster(tmp_path / "named.tif", tagged, nodata=-9999, **how)
    for grid in (grid_of(zero).pad(-2).translate_pix(0.4, 0.3), grid_of(zero).pad(-6).rotate(20)):
        got, same = (
            array_of(read_acquisition(acquisition_from_file(path, "sentinel-2-l2a"), grid)) for path in (zero, named)
        )
        both = np.isfinite(got)
        np.testing.assert_allclose(got[both], same[both], atol=0.1)
        assert np.nanmin(np.delete(got, 2, axis=0)) >= 3000
        assert both[2].sum() > 0.9 * np.isfinite(same[2]).sum() and (got[2] == 0).sum() > 50


@real_data
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
def test_real_images_as_items(sensor, source, tmp_path):
    """Published images behind the servers: what comes back is what `read_scene` reads from the file."""
    said = dict(scale=0.0001 / 2.75e-05, offset=0.2 / 2.75e-05) if sensor == "landsat-c2l2-sr" else {}
    bands = ["blue", "green", "red", "nir08", "swir16", "swir22", None, None] if said else None
    scene = replace(read_scene(REAL / source, sensor, bands=bands, when="2023-06-10", **said), path="real.tif")
    if said:
        scene = replace(scene, pixels=np.rint(scene.pixels).astype(np.uint16))
    out = write_archive(tmp_path, sensors=(), rasters={sensor: [scene]})
    with serve_archive(out) as url:
        (look,) = find_acquisitions(sensor, box_of(scene), "2023-06-10", url=url)
        height, width = (side // 2 * 2 for side in scene.pixels.shape[1:])
        got = array_of(read_acquisition(look, GeoBox((height, width), rasterio.Affine(*scene.transform), scene.crs)))
    order = [scene.bands.index(band) for band in scene.sensor.band_names]
    fine = [
        i
        for i in range(len(order))
        if sensor != "sentinel-2-l2a" or scene.sensor.band_names[i] in ("blue", "green", "red", "nir")
    ]
    missing = scene.missing[order, :height, :width]
    expected = scene.pixels[order, :height, :width].astype(np.float64)
    expected = (10 ** (expected / 10)).astype(np.float32) if scene.in_decibel else expected
    assert np.isnan(got).mean() < 0.4
    np.testing.assert_array_equal(np.isnan(got[fine]), missing[fine] | missing.all(0))
    there = ~np.isnan(got[fine])
    np.testing.assert_array_equal(
        got[fine][there], expected[fine][there].clip(1 if sensor == "sentinel-2-l2a" else None)
    )
    findings = inspect_image(got, sensor, when=look.when)
    assert not [f for f in findings if f.level == "error"], findings


# ---- faults ----


def test_passing_faults_end_in_the_right_numbers(folder, url, hasty, monkeypatch):
    with FaultyServer(url) as between:
        between.faults = [["/search", "500", 2], ["/search", "slow 0.5", 1]]
        look = find_acquisitions("sentinel-2-l2a", around(), "2023-08-20", url=between.url)[0]
        assert between.faults[0][2] == 0
        grid = grid_of(folder / "sentinel-2-l2a" / look.ids[0] / "red.tif").translate_pix(
            0.3, 0.3
        )  # so that it is warped
        clean = read_acquisition(find_acquisitions("sentinel-2-l2a", around(), "2023-08-20", url=url)[0], grid)
        between.faults = [
            ["red.tif", "500", 2],
            ["nir.tif", "slow 1", 1],
            ["blue.tif", "cut", 3],
            ["scl.tif", "cut", 2],
        ]
        got = read_acquisition(look, grid)
        assert all(left == 0 for _, _, left in between.faults)
        xr.testing.assert_equal(got, clean)
        monkeypatch.setitem(reading.GDAL, "GDAL_HTTP_LOW_SPEED_TIME", "1")
        between.faults = [["green.tif", "slow 4", 1], ["swir22.tif", "cut", 2]]  # longer than a request may be silent
        xr.testing.assert_equal(read_acquisition(look, grid, chunks={"x": 32, "y": 32}).compute(), clean)


def test_a_range_cut_inside_is_fetched_again(tmp_path, hasty):
    """GDAL keeps a range that was cut short; a larger file, so that headers and tiles come in ranges of their own."""
    pixels = np.random.default_rng(5).random((2, 1024, 1024), np.float32)
    scene = scene_of("sentinel-1-rtc", pixels)
    out = write_archive(tmp_path, sensors=(), rasters={"sentinel-1-rtc": [scene]})
    with serve_archive(out) as url, FaultyServer(url) as between:
        (look,) = find_acquisitions("sentinel-1-rtc", box_of(scene), "2023-06-10", url=between.url)
        grid = GeoBox((1024, 1024), rasterio.Affine(*scene.transform), scene.crs)
        read_acquisition(look, grid[:10, :10])  # the headers
        between.faults = [["vv.tif", "cut", 2], ["vh.tif", "cut", 1]]
        np.testing.assert_array_equal(array_of(read_acquisition(look, grid)), pixels)
        assert all(left == 0 for _, _, left in between.faults)


def test_lasting_faults_are_one_clear_error(folder, url, hasty):
    grid = GeoBox((20, 20), rasterio.Affine(10, 0, 522000, 0, -10, 5338500), "EPSG:32633")
    with FaultyServer(url) as between:
        (look,) = find_acquisitions("sentinel-2-l2a", around(), "2023-08-20", url=between.url)
        grid = grid_of(folder / "sentinel-2-l2a" / look.ids[0] / "red.tif")
        between.faults = [["nir08.tif", "500", 10_000]]
        for chunks in (None, {"x": 32, "y": 32}):
            with pytest.raises(ContractError, match="nir08.tif.*expected a raster that can be read to its end"):
                read_acquisition(look, grid, chunks=chunks).compute()
        between.faults = [["", "500", 10_000]]
        with pytest.raises(ContractError, match="expected a STAC catalog that answers.*failed 6 times"):
            find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=between.url)
    with pytest.raises(ContractError, match="expected a STAC catalog that answers"):
        find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=between.url)  # nobody listens there any more
    with pytest.raises(ContractError, match="no items; expected sentinel-2-l2a in earth-search.*longitude comes first"):
        find_acquisitions("sentinel-2-l2a", (0, 0, 1, 1), ALWAYS, url=url)
    with pytest.raises(ContractError, match="2 items, none with at most"):
        find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=url, max_cloud=-1)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_truncated_file_is_never_nodata(aligned, folder, url, tmp_path, hasty):
    (look,) = find_acquisitions("landsat-c2l2-sr", around(), "2023-08-20", url=url)
    item = look.items[0].clone()
    source = file_of(look, folder, url, "swir16")
    short = folder / f"short{aligned}.tif"
    short.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    item.assets["swir16"].href = f"{url}/files/{short.name}"
    grid = grid_of(source) if aligned else grid_of(source).translate_pix(0.4, 0.4)
    with pytest.raises(ContractError, match=f"short{aligned}.tif.*a truncated file"):
        read_acquisition(replace(look, items=(item,)), grid)
    local = tmp_path / "local.tif"
    shutil.copy(short, local)
    with pytest.raises(ContractError, match="a truncated download"):
        read_acquisition(acquisition_from_file([local], "landsat-c2l2-sr", bands=["red"]), grid)


def test_a_missing_band_is_named(folder, url):
    (look,) = find_acquisitions("landsat-c2l2-sr", around(), "2023-08-20", url=url)
    item = look.items[0].clone()
    del item.assets["nir08"]
    with pytest.raises(ContractError, match=f"{look.ids[0]}.*expected the asset 'nir08'"):
        read_acquisition(replace(look, items=(item,)), grid_of(file_of(look, folder, url, "red")))


# ---- questions ----


def test_areas(tmp_path):
    box = shapely.box(*around())
    frame = geopandas.GeoDataFrame(geometry=[box], crs="EPSG:4326").to_crs("EPSG:32633")
    frame.to_file(tmp_path / "a.gpkg")
    frame.to_crs("EPSG:4326").to_file(tmp_path / "a.geojson")
    frame.to_parquet(tmp_path / "a.parquet")
    paths = [tmp_path / f"a.{ending}" for ending in ("gpkg", "geojson", "parquet")]
    for area in (around(), list(around()), box, frame, frame.geometry, *paths, str(paths[0])):
        np.testing.assert_allclose(parse_area(area).bounds, box.bounds, atol=1e-4)
    for wrong in (
        (16, 48, 15, 49),
        (15, 48, 16),
        "nowhere.geojson",
        shapely.box(5e5, 5e6, 6e5, 6e6),
        7,
        shapely.Point(),
    ):
        with pytest.raises(ContractError, match="area"):
            parse_area(wrong)


def test_questions_that_cannot_be_answered(url):
    for dates in ("summer", "2023-08-01/2023-07-01", ("2023-01-01",) * 3, 5):
        with pytest.raises(ContractError, match="dates"):
            find_acquisitions("naip", around(), dates, url=url)
    with pytest.raises(ContractError, match="one of .*'planetary-computer', 'usgs'"):
        find_acquisitions("landsat-c2l2-sr", around(), ALWAYS, archive="usgz", url=url)
    with pytest.raises(ContractError, match="acquisition_from_file"):
        archives_of("planetscope-sr")


# ---- pieces ----


def scene_of(sensor, pixels, missing=None, *, crs="EPSG:32633", transform=None, name="scene") -> Scene:
    sensor = SENSORS[sensor]
    transform = transform or (sensor.gsd, 0.0, 480000.0, 0.0, -sensor.gsd, 5320000.0)
    missing = np.zeros(pixels.shape, bool) if missing is None else missing
    return Scene(
        pixels, sensor.band_names, sensor, crs, transform, sensor.gsd, 48, 15, "2023-06-10T10:30", missing, path=name
    )


def box_of(scene: Scene):
    grid = GeoBox(scene.pixels.shape[1:], rasterio.Affine(*scene.transform), scene.crs)
    return tuple(grid.footprint("EPSG:4326").boundingbox.bbox)


def item_of(properties, **assets) -> pystac.Item:
    item = pystac.Item(
        "x", shapely.geometry.mapping(shapely.box(*around())), list(around()), datetime(2023, 1, 1), properties
    )
    for key, said in assets.items():
        item.add_asset(key, pystac.Asset(f"https://example.org/{key}.tif", extra_fields={"raster:bands": [said]}))
    return item
