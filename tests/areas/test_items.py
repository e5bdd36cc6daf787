"""STAC items: scaling and offsets become native numbers, a missing band or scaling raises."""

from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from archive_scenes import around, array_of, file_of, grid_of, grid_of_scene, scene_of, served

from clay_lib.areas.archives import archives_of, find_acquisitions
from clay_lib.areas.items import solar_day, sources_of
from clay_lib.areas.reading import read_acquisition
from clay_lib.errors import ContractError

SENTINEL_2, LANDSAT, MODIS = (archives_of(s)[0] for s in ("sentinel-2-l2a", "landsat-c2l2-sr", "modis"))


def item_of(properties, **assets) -> pystac.Item:
    outline = shapely.geometry.mapping(shapely.box(*around()))
    item = pystac.Item("x", outline, list(around()), datetime(2023, 1, 1), properties)
    for key, metadata in assets.items():
        item.add_asset(key, pystac.Asset(f"https://example.org/{key}.tif", extra_fields={"raster:bands": [metadata]}))
    return item


def source_of(archive, band, metadata, properties=None):
    return sources_of(item_of(properties or {}, **{archive.assets[band]: metadata}), archive, [band])[band]


def test_sentinel_2_with_and_without_offset_reads_the_same(tmp_path):
    scene = scene_of("sentinel-2-l2a", np.random.default_rng(1).integers(300, 4000, (10, 64, 64)).astype(np.uint16))
    read = []
    for name, offset in (("earth-search", 0), ("planetary-computer", 1000)):
        with served(tmp_path / name, scene, archive=name) as (acquisition, url):
            read.append(array_of(read_acquisition(acquisition, grid_of_scene(scene))))
            red = file_of(acquisition, tmp_path / name, url, acquisition.archive.assets["red"])
        with rasterio.open(red) as file:
            np.testing.assert_array_equal(file.read(1), scene.pixels[2] + offset)
    np.testing.assert_array_equal(read[0], read[1])
    np.testing.assert_array_equal(read[0][2], scene.pixels[2])


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
def test_sentinel_2_processing_baselines(properties, offset, bias):
    metadata = {"scale": 0.0001} | ({} if offset is None else {"offset": offset})
    source = source_of(SENTINEL_2, "red", metadata, properties)
    assert (source.gain, source.bias) == (1, bias)


def test_solar_day_of_an_item_at_180_degrees_is_that_of_its_own_longitude():
    parts = shapely.MultiPolygon([shapely.box(179, -18, 180, -17), shapely.box(-180, -18, -179.5, -17)])
    item = pystac.Item("a", shapely.geometry.mapping(parts), None, datetime(2023, 6, 9, 22, 20, tzinfo=UTC), {})
    assert solar_day(item) == date(2023, 6, 10), "10:20 in Fiji, where longitude 0 has the day before"


def test_scaling_comes_from_the_item():
    stored = source_of(LANDSAT, "red", {"scale": 2.75e-05, "offset": -0.2, "nodata": 0})
    assert (stored.gain, stored.bias, stored.nodata) == (1, 0, 0)  # Clay's numbers are the stored ones
    reflectance = source_of(LANDSAT, "red", {"scale": 0.0001})  # times 10000
    assert 3000 * reflectance.gain + reflectance.bias == pytest.approx((0.3 + 0.2) / 2.75e-05, rel=1e-6)
    assert source_of(MODIS, "sur_refl_b01", {"scale": 0.0001}).gain == 1
    with pytest.raises(ContractError, match="without scale in its raster:bands"):
        source_of(LANDSAT, "red", {})
    with pytest.raises(ContractError, match="s2:processing_baseline"):
        source_of(SENTINEL_2, "red", {"scale": 0.0001})


def test_missing_band_raises(archive_folder, url):
    (acquisition,) = find_acquisitions("landsat-c2l2-sr", around(), "2023-08-20", url=url)
    item = acquisition.items[0].clone()
    del item.assets["nir08"]
    with pytest.raises(ContractError, match=f"{acquisition.ids[0]}.*expected the asset 'nir08'"):
        read_acquisition(replace(acquisition, items=(item,)), grid_of(file_of(acquisition, archive_folder, url, "red")))
