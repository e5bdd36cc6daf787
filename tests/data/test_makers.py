"""Chip makers: the mini-world by land cover, and scenes cut along their grid."""

import numpy as np
import pytest
import shapely

from clay_lib import ContractError
from clay_lib.data.makers import SceneMaker, WorldMaker, date_in_name, footprint, scenes_in, world_tiles
from clay_lib.data.rasters import write_raster
from clay_lib.data.splits import LAND_TILES, block_split, sample_tiles
from clay_lib.data.store import ChipStore, write_chips


def test_world_chips_depend_on_their_number_alone():
    maker, more = WorldMaker("naip", 12, size=32), WorldMaker("naip", 30, size=32)
    complete, part = maker.part(range(12))(), more.part(range(5, 9))()
    assert maker.recipe == more.recipe != WorldMaker("naip", 12, size=32, dates=1).recipe
    assert complete.chips.hashes[5:9].tolist() == part.chips.hashes.tolist()
    assert len(set(complete.chips.hashes)) == 12 and set(complete.splits) == {"train"}
    radar = WorldMaker("sentinel-1-rtc", 12, size=32).part(range(12))()
    np.testing.assert_array_equal(radar.chips.lat, complete.chips.lat)  # the same places for every sensor
    for shape, lat, lon in zip(complete.footprints, complete.chips.lat, complete.chips.lon, strict=True):
        assert shape.contains(shapely.Point(lon, lat)) and 25 < np.sqrt(shape.area) * 111_000 < 45


def test_sampled_world_tiles_have_more_towns_and_less_open_land():
    tiles = world_tiles(0, "train", 0)
    fractions = tiles.filter(like="cover_")
    np.testing.assert_allclose(fractions.sum(axis=1), 1, atol=1e-5)
    assert len(fractions.columns) == 11 and (tiles["cover_80"] < 0.98).all()
    chosen = sample_tiles(tiles, scale=len(tiles) / LAND_TILES)
    assert chosen["cover_50"].mean() > 2 * tiles["cover_50"].mean() and len(chosen) < len(tiles) / 2
    assert (chosen.filter(like="cover_").max() > 0).all()  # every class occurs


def scene(path, *, when="20230610", size=(70, 100), bands=4, west=520_000.0):
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 255, (bands, *size)).astype(np.uint8)
    pixels[:, :32, 32:64] = 0  # one window has no data
    pixels[:, 40, 40] = 0  # and one has a single missing pixel
    return write_raster(
        path / f"m_3607717_{when}.tif", pixels, crs="EPSG:32633", transform=(1, 0, west, 0, -1, 5_000_000.0), nodata=0
    )


def test_a_scene_is_cut_along_its_grid(tmp_path):
    file = scene(tmp_path)
    maker = SceneMaker(str(file), "naip", size=32)
    assert len(maker) == 6 and maker.when == "2023-06-10"
    output = maker.part(range(6))()
    assert len(output.chips) == 5 and output.chips.pixels.shape == (5, 4, 32, 32)
    import rasterio

    with rasterio.open(file) as source:
        truth = source.read()
    np.testing.assert_array_equal(output.chips.pixels[0], truth[:, :32, :32])
    np.testing.assert_array_equal(output.chips.pixels[4], truth[:, 32:64, 64:96])
    hole = output.chips.pixels[3][:, 8, 8]  # filled with the band's mean
    np.testing.assert_allclose(hole, truth[:, 32:64, 32:64].reshape(4, -1).mean(1), atol=1)
    assert output.chips.when.tolist() == ["2023-06-10"] * 5 and np.ptp(output.chips.lat) > 0
    assert output.footprints[1].contains(shapely.Point(output.chips.lon[1], output.chips.lat[1]))
    assert len(SceneMaker(str(file), "naip", size=32, max_missing=0.0).part(range(6))().chips) == 4
    assert SceneMaker(str(file), "naip", size=32).part(range(1, 2))() is None
    with pytest.raises(ContractError, match="bands|channels"):
        SceneMaker(str(scene(tmp_path, when="2020-01-02", bands=3)), "naip", size=32).part(range(1))()


def test_windows_across_two_splits_are_left_out(tmp_path):
    file = scene(tmp_path, size=(160, 160))
    every = SceneMaker(str(file), "naip", size=16).part(range(100))()
    fine = SceneMaker(str(file), "naip", size=16, degrees=0.0005, seed=1).part(range(100))()
    assert len(set(every.splits)) == 1 and len(every.chips) == 96  # all but the four without data
    assert set(fine.splits) == {"train", "val", "test"} and 10 < len(fine.chips) < 90
    for lat_lon, split in zip(map(shapely.get_coordinates, fine.footprints), fine.splits, strict=True):
        assert set(block_split(lat_lon[:, 1], lat_lon[:, 0], 0.0005, seed=1)) == {split}


def test_dates_in_names():
    for name, date in {
        "S2A_20230610T103021_T33.tif": "2023-06-10T10:30:21",
        "flight-2021-07-23.tif": "2021-07-23",
        "20239999_282D_485L.tif": None,
    }.items():
        assert date_in_name(name) == date, name


def test_footprints_across_the_antimeridian_have_two_pieces():
    shape = footprint("EPSG:32601", (1000, 0, 166_000 - 50_000, 0, -1000, 100_000), 100, 100)
    assert shape.geom_type == "MultiPolygon" and shape.bounds[0] == -180 and shape.bounds[2] == 180 and shape.area < 2
    assert footprint(None, None, 8, 8) is None


def test_folders_of_scenes(tmp_path):
    scene(tmp_path), scene(tmp_path, when="20230711")
    assert [maker.when for maker in scenes_in(tmp_path, "naip")] == ["2023-06-10", "2023-07-11"]
    for band in "1234":
        (tmp_path / "bands").mkdir(exist_ok=True)
        write_raster(
            tmp_path / "bands" / f"B{band}.tif",
            np.ones((40, 40), np.uint8),
            crs="EPSG:32633",
            transform=(1, 0, 5e5, 0, -1, 5e6),
        )
    assert [maker.source for maker in scenes_in(tmp_path / "bands", "naip")] == ["bands"]
    assert len(scenes_in(tmp_path, "naip")) == 3
    with pytest.raises(ContractError, match="without rasters"):
        (tmp_path / "none").mkdir()
        scenes_in(tmp_path / "none", "naip")


def test_real_scenes_go_into_a_store_and_come_back(tmp_path, realdata):
    makers = [
        *scenes_in(realdata / "sentinel-2-l2a", "sentinel-2-l2a", size=96),
        *scenes_in(realdata / "modis", "modis", size=96, max_missing=0.3, degrees=30.0),
        *scenes_in(realdata / "landsat-c2l1", "landsat-c2l1", size=64),
        *scenes_in(realdata / "sentinel-1-rtc", "sentinel-1-rtc", size=96),
    ]
    new = write_chips(tmp_path, makers, jobs=1, progress=False)
    store = ChipStore.open(tmp_path)
    assert len(store) == new and store.check() == []
    dtypes = {name: store.sensor(name)[:].pixels.dtype.name for name in set(store.table["sensor"])}
    assert dtypes == {
        "sentinel-2-l2a": "uint16", "modis": "int16", "landsat-c2l1": "uint16", "sentinel-1-rtc": "float32"
    }  # fmt: skip
    radar = store.sensor("sentinel-1-rtc")[:].pixels
    assert (radar > 0).all() and 0.001 < np.median(radar) < 1  # dB in the files, power in the store
    assert np.datetime64("2018-07-04") in store.index["time"].to_numpy().astype("datetime64[D]")


def test_offset_in_the_header_is_applied(tmp_path):
    import rasterio

    stored = np.random.default_rng(0).integers(1500, 4000, (10, 32, 32), dtype=np.uint16)
    grid = dict(crs="EPSG:32633", transform=(10, 0, 5.2e5, 0, -10, 4.98e6))
    file = write_raster(tmp_path / "scene_2023-06-10.tif", stored, nodata=0, **grid)
    with rasterio.open(file, "r+") as target:
        target.offsets = [-1000.0] * 10
    chips = SceneMaker(str(file), "sentinel-2-l2a", size=32).part(range(1))().chips
    np.testing.assert_array_equal(chips.pixels[0], stored - 1000.0)
