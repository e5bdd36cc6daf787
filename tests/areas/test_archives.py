"""Archives: every profile from search to native numbers, areas, dates, and raster files as acquisitions."""

from dataclasses import replace
from datetime import UTC, datetime

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import requests
import shapely
from archive_scenes import ALWAYS, around, array_of, file_of, grid_of, scene_of
from faulty_server import FaultyServer
from live_archives import differences
from pyproj import Transformer

from clay_lib.areas.archives import acquisition_from_file, archives_of, find_acquisitions, parse_area, tile_bounds
from clay_lib.areas.items import estimate_bytes
from clay_lib.areas.jobs import plan
from clay_lib.areas.reading import read_acquisition
from clay_lib.areas.tiles import grid_of as tile_grid
from clay_lib.areas.tiles import tiles_of
from clay_lib.data.check import inspect_image
from clay_lib.data.georeference import boxes
from clay_lib.data.images import open_image
from clay_lib.data.rasters import write_raster
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS, WORLD_SENSORS


@pytest.mark.parametrize("sensor", WORLD_SENSORS)
def test_profile_from_search_to_native_numbers(sensor, archive_folder, url):
    acquisitions = find_acquisitions(sensor, around(), ALWAYS, url=url)
    assert len(acquisitions) == 2 and len({a.ids for a in acquisitions}) == 2
    acquisition = next(a for a in acquisitions if a.when.month == 8)
    assets, bands = acquisition.archive.assets, SENSORS[sensor].band_names
    first = file_of(acquisition, archive_folder, url, assets[bands[0]].partition(".")[0])
    grid = grid_of(first)[5:45, 3:61]  # an odd window of the archive's own grid
    pixels = read_acquisition(acquisition, grid)
    assert tuple(pixels.data_vars) == bands
    assert pixels.attrs["sensor"] == sensor and pixels.attrs["items"] == list(acquisition.ids)
    compared = 0
    for band in bands:
        key, _, index = assets[band].partition(".")
        with rasterio.open(file_of(acquisition, archive_folder, url, key)) as file:
            if file.res[0] != grid.resolution.x:
                continue  # Sentinel-2's bands of 20 m are interpolated
            stored = file.read(int(index or 1)).astype(np.float32)[5:45, 3:61]
        assert pixels[band].dtype == np.float32
        np.testing.assert_array_equal(pixels[band].values, stored, err_msg=band)
        compared += 1
    assert compared >= 2
    to_degrees = Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
    with rasterio.open(first) as file:  # coordinates are those of the file's pixel centers
        (left, right), (top, bottom) = file.transform * (np.array([3.5, 60.5]), np.array([5.5, 44.5]))
    np.testing.assert_allclose(pixels[grid.dims[1]].values[[0, -1]], (left, right), atol=1e-6)
    np.testing.assert_allclose(pixels[grid.dims[0]].values[[0, -1]], (top, bottom), atol=1e-6)
    lon, lat = to_degrees.transform((left, right), (top, bottom))
    assert acquisition.footprint.buffer(1e-9).covers(shapely.MultiPoint(list(zip(lon, lat, strict=True))))
    # and the numbers are what the model expects
    image = open_image(pixels, sensor)
    assert image.bands == bands and image.lat == pytest.approx(np.mean(lat), abs=0.2)
    assert not [f for f in inspect_image(image.pixels, sensor, when=acquisition.when).findings if f.level == "error"]


def test_weekly_check_names_what_an_archive_changed(url):
    archive = replace(archives_of("landsat-c2l2-sr")[0], url=url)
    assert differences(archive, shapely.box(*around()), ALWAYS) == []
    renamed = replace(archive, assets=archive.assets | {"red": "red_toa"})
    (change,) = differences(renamed, shapely.box(*around()), ALWAYS)
    assert "no asset red_toa among ['blue', 'green'," in change
    (change,) = differences(replace(archive, collection="landsat-c3"), shapely.box(*around()), ALWAYS)
    assert "no items of landsat-c3" in change
    with FaultyServer(url) as server:
        server.faults = [["/search", "500", 1]]
        with pytest.raises(requests.RequestException):
            differences(replace(archive, url=server.url), shapely.box(*around()), ALWAYS)


def test_least_cloudy_comes_first(url):
    acquisitions = find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=url)
    assert [a.when.month for a in acquisitions] == [8, 5] and acquisitions[0].cloud_cover == 0
    for options in ({"max_cloud": 20}, {"limit": 1}):
        assert len(find_acquisitions("sentinel-2-l2a", around(), ALWAYS, url=url, **options)) == 1


def test_failed_searches_are_one_clear_error(url, short_waits):
    def search(sensor="sentinel-2-l2a", area=None, dates=ALWAYS, url=url, **options):
        return find_acquisitions(sensor, area or around(), dates, url=url, **options)

    with FaultyServer(url) as server:
        server.faults = [["/search", "500", 2], ["/search", "slow 0.5", 1]]
        assert len(search(url=server.url)) == 2 and server.faults[0][2] == 0
        server.faults = [["", "500", 10_000]]
        with pytest.raises(ContractError, match="expected a STAC catalog that answers.*6 failed requests"):
            search(url=server.url)
    with pytest.raises(ContractError, match="expected a STAC catalog that answers"):
        search(url=server.url)  # closed
    with pytest.raises(ContractError, match="no items; expected sentinel-2-l2a in earth-search.*longitude comes first"):
        search(area=(0, 0, 1, 1))
    with pytest.raises(ContractError, match="2 items, none with at most"):
        search(max_cloud=-1)
    for dates in ("summer", "2023-08-01/2023-07-01", ("2023-01-01",) * 3, 5):
        with pytest.raises(ContractError, match="dates"):
            search(dates=dates)
    with pytest.raises(ContractError, match="one of .*'planetary-computer', 'usgs'"):
        search(sensor="landsat-c2l2-sr", archive="usgz")
    with pytest.raises(ContractError, match="acquisition_from_file"):
        archives_of("planetscope-sr")


def test_parse_area(tmp_path):
    box = shapely.box(*around())
    frame = geopandas.GeoDataFrame(geometry=[box], crs="EPSG:4326").to_crs("EPSG:32633")
    frame.to_file(tmp_path / "a.gpkg")
    frame.to_crs("EPSG:4326").to_file(tmp_path / "a.geojson")
    frame.to_parquet(tmp_path / "a.parquet")
    paths = [tmp_path / f"a.{ending}" for ending in ("gpkg", "geojson", "parquet")]
    for area in (around(), list(around()), box, frame, frame.geometry, *paths, str(paths[0])):
        np.testing.assert_allclose(parse_area(area).bounds, box.bounds, atol=1e-4)
    meters, empty = shapely.box(5e5, 5e6, 6e5, 6e6), shapely.Point()
    across = parse_area((179.5, -17, -179.5, -16))  # west > east: across the antimeridian, as in RFC 7946
    assert across.area == pytest.approx(1) and boxes(across) == [[179.5, -17, 180, -16], [-180, -17, -179.5, -16]]
    bow_tie = shapely.Polygon([(15, 48), (16, 49), (16, 48), (15, 49)])
    geopandas.GeoDataFrame(geometry=[box, bow_tie], crs="EPSG:4326").to_file(tmp_path / "two.geojson")
    with pytest.raises(ContractError, match="feature 2 of 2: Self-intersection"):
        parse_area(tmp_path / "two.geojson")
    for wrong in ((16, 48, 15, 49), (15, 48, 16), "nowhere.geojson", meters, 7, empty):
        with pytest.raises(ContractError, match="area"):
            parse_area(wrong)


# ---- static catalogs ----


def test_tile_names_give_their_bounds():
    """LINZ publishes BN28_2000_1225 with the box 173.98241, -40.67623, 173.99394 (its north is open sea)."""
    bounds = tile_bounds("BN28_2000_1225.json")
    west, south, east, _ = Transformer.from_crs("EPSG:2193", "EPSG:4326", always_xy=True).transform_bounds(*bounds)
    np.testing.assert_allclose((west, south, east), (173.9824136, -40.6762278, 173.9939358), atol=3e-5)
    assert tile_bounds("BJ32_500_004003")[2] - tile_bounds("BJ32_500_004003")[0] == 240
    assert tile_bounds("BI28_2000_1225") is None and tile_bounds("linz_48.2") is None


def test_only_overlapping_surveys_are_fetched(url, short_waits):
    with FaultyServer(url) as server:
        server.faults = [["collection.json", "500", 2]]
        acquisitions = find_acquisitions("linz", around(), "2023-05-01/2023-06-30", url=server.url)
        assert [a.when.month for a in acquisitions] == [5] and not any(left for *_, left in server.faults)
        fetched = {line for line in server.requests if "/files/survey" in line}
        assert len(fetched) == 3  # two surveys, and the one tile of the survey in time
        server.requests.clear()
        with pytest.raises(ContractError, match="no items"):
            find_acquisitions("linz", around(), "2010-01-01/2012-01-01", url=server.url)
        assert not [line for line in server.requests if "survey" in line]  # their years are in the path


# ---- files ----


def test_files_folders_and_vrts_read_the_same(tmp_path):
    pixels = np.random.default_rng(3).integers(300, 4000, (10, 40, 50)).astype(np.uint16)
    pixels[:, :7] = 0
    scene = scene_of("sentinel-2-l2a", pixels)
    names, place = scene.sensor.band_names, dict(crs=scene.crs, transform=scene.transform, nodata=0)
    stack, folder = write_raster(tmp_path / "s2.tif", pixels, descriptions=names, **place), tmp_path / "bands"
    for name, band in zip(names, pixels, strict=True):
        write_raster(folder / f"{name}.tif", band, **place)
    with rasterio.open(stack) as file:
        rasterio.shutil.copy(file, tmp_path / "s2.vrt", driver="VRT")
        rasterio.shutil.copy(file, tmp_path / "cog.tif", driver="COG")
    grid = grid_of(stack).pad(2)
    for source in (stack, folder, tmp_path / "s2.vrt", tmp_path / "cog.tif"):
        acquisition = acquisition_from_file(source, "sentinel-2-l2a", when="2023-06-10T10:30")
        read = array_of(read_acquisition(acquisition, grid))
        assert np.isnan(read[:, :9]).all() and np.isnan(read[:, :, :2]).all(), source
        np.testing.assert_array_equal(read[:, 9:-2, 2:-2], pixels[:, 7:], err_msg=str(source))
        assert acquisition.when == datetime(2023, 6, 10, 10, 30, tzinfo=UTC)
        assert estimate_bytes(acquisition, grid) > 1000
    (folder / "red.tif").unlink()
    read = read_acquisition(acquisition_from_file(folder, "sentinel-2-l2a"), grid)
    assert "red" not in read.data_vars and len(read.data_vars) == 9
    with pytest.raises(ContractError, match="which does not exist"):
        acquisition_from_file(tmp_path / "nothing.tif", "sentinel-2-l2a")


def test_grid_of_a_file(tmp_path):
    """Its own pixels where they are square and in meters, else the sensor's in UTM."""
    for name, crs, transform, expected in (
        ("a.tif", "EPSG:32633", (10, 0, 500003, 0, -10, 5300007), ("EPSG:32633", 10, (3, 7))),
        ("b.tif", "EPSG:4326", (1e-4, 0, 15, 0, -1e-4, 48), ("utm", 10, 0)),
    ):
        path = write_raster(tmp_path / name, np.ones((2, 8, 8), np.float32), crs=crs, transform=transform)
        archive = acquisition_from_file(path, "sentinel-1-rtc").archive
        assert (archive.crs, archive.gsd, archive.anchor) == expected


@pytest.mark.parametrize("crs, lon, lat", [("EPSG:32601", -180, 65), ("EPSG:32760", 180, -17)])
def test_file_across_the_antimeridian(crs, lon, lat, tmp_path):
    x, y = (round(v, -1) for v in Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat))
    pixels = np.random.default_rng(7).random((2, 100, 100), np.float32)
    path = write_raster(tmp_path / "a.tif", pixels, crs=crs, transform=(10, 0, x - 500, 0, -10, y + 500))
    acquisition = acquisition_from_file(path, "sentinel-1-rtc")
    assert len(acquisition.footprint.geoms) == 2 and acquisition.footprint.area < 1e-3
    tiles = tiles_of(acquisition.footprint, tile_grid(acquisition.archive, 20))
    assert 25 <= len(tiles) <= 49
    blocks = plan(tiles, [acquisition], "best")
    assert sum(len(block.jobs) for block in blocks) == len(tiles)
    parts = [array_of(read_acquisition(acquisition, block.geobox(0))) for block in blocks]
    assert sum(int(np.isfinite(part).sum()) for part in parts) == pixels.size
    assert sum(estimate_bytes(acquisition, block.geobox(0)) for block in blocks) < 3 * pixels.nbytes  # not the globe
    np.testing.assert_array_equal(array_of(read_acquisition(acquisition, grid_of(path))), pixels)
    beyond = write_raster(tmp_path / "b.tif", pixels, crs="EPSG:4326", transform=(1e-4, 0, 179.995, 0, -1e-4, lat))
    with pytest.raises(ContractError, match="antimeridian"):
        acquisition_from_file(beyond, "sentinel-1-rtc")
