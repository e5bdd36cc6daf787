"""Real files of every sensor family: read, embed, rebuild, write back, and land on the footprint of the input."""

import numpy as np
import pytest

from clay_lib.clay import Clay
from clay_lib.data.rasters import bounds_wgs84, center_window, coarser, read_scene, write_raster
from clay_lib.model import ClayConfig

COLLECTION_2 = dict(scale=1e-4 / 0.0000275, offset=0.2 / 0.0000275)  # reflectance x 1e4 -> Collection 2 numbers
WITHOUT_THERMAL = ["blue", "green", "red", "nir08", "swir16", "swir22", None, None]
FILES = [
    *(("sentinel-2-l2a", f"sentinel-2-l2a/{tile}.tif", {}) for tile in ("282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1")),
    *(("sentinel-1-rtc", f"sentinel-1-rtc/{tile}.tif", {}) for tile in ("282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1")),
    ("landsat-c2l1", "landsat-c2l1", {}),
    ("landsat-c2l2-sr", "landsat-sr/LE70220491999322EDC01_stack.tif", COLLECTION_2 | dict(bands=WITHOUT_THERMAL)),
    ("naip", "naip/m_3607717_sw_18_1_20160620_subset.tif", {}),
    ("naip", "naip/NAIP-VA-b*.tiff", {}),
    ("modis", "modis", {}),
    ("linz", "aerial-rgb/OSBS_029.tif", {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def clay():
    return Clay.random(ClayConfig.named("tiny"))


@pytest.mark.parametrize("sensor, file, kwargs", FILES, ids=[file for _, file, _ in FILES])
def test_real_file_there_and_back(realdata, tmp_path, clay, sensor, file, kwargs):
    path = sorted(realdata.glob(file)) if "*" in file else realdata / file
    scene = read_scene(path, sensor, when="2020-06-01", window=(5, 9, 101, 90), **kwargs)  # no multiple of the patch
    pixels = scene.filled()
    assert (
        scene.crs and scene.gsd > 0 and np.isfinite(pixels).all() and set(scene.bands) <= set(scene.sensor.band_names)
    )
    assert scene.in_decibel == (sensor == "sentinel-1-rtc")
    asked = dict(
        when=scene.when, lat=scene.lat, lon=scene.lon, bands=scene.bands, gsd=scene.gsd, in_decibel=scene.in_decibel
    )

    embedded = clay.embed(pixels, scene.sensor, **asked)
    assert embedded.patches.shape == (1, 12, 13, 192) and embedded.patches.isfinite().all()
    assert embedded.chip.isfinite().all() and embedded.patches.std(dim=(1, 2)).min() > 0

    rebuilt = clay.reconstruct(pixels, scene.sensor, **asked)
    assert rebuilt.pixels.shape == (1, *pixels.shape) and np.isfinite(rebuilt.pixels).all()
    off = np.abs(scene.sensor.normalize(rebuilt.pixels[0], scene.bands, in_decibel=scene.in_decibel))
    assert off.mean() < 5  # untrained, yet in the sensor's own numbers: a wrong unit is off by hundreds

    written = write_raster(
        tmp_path / "rebuilt.tif", rebuilt.pixels[0], crs=scene.crs, transform=scene.transform, descriptions=scene.bands
    )
    again = read_scene(written, sensor, bands=list(scene.bands))
    here, there = (np.array(bounds_wgs84(s.crs, s.transform, 90, 101)) for s in (scene, again))
    half = 0.5 * scene.gsd / 111_320
    assert (np.abs(here - there) < half).all() and again.pixels.shape == pixels.shape
    assert here[0] < scene.lon < here[2] and here[1] < scene.lat < here[3]
    np.testing.assert_allclose(again.pixels, rebuilt.pixels[0])

    grid = embedded.patches[0].permute(2, 0, 1)[:3].numpy()
    cells = write_raster(tmp_path / "grid.tif", grid, crs=scene.crs, transform=coarser(scene.transform, 8))
    coarse = read_scene(cells, "linz")
    west, south, east, north = bounds_wgs84(coarse.crs, coarse.transform, *coarse.pixels.shape[1:])
    patch = (
        8.5 * scene.gsd / 111_320 / np.cos(np.radians(scene.lat))
    )  # the last row and column hang over by less than one
    assert abs(west - here[0]) < patch and abs(north - here[3]) < patch
    assert here[2] - half <= east < here[2] + patch and here[1] - patch < south <= here[1] + half
    assert coarse.gsd == pytest.approx(8 * scene.gsd, rel=1e-3)


def test_fill_of_real_files_is_found(realdata):
    modis = read_scene(realdata / "modis", "modis")
    assert 0.85 < modis.valid.mean() < 0.95 and modis.filled().max() < 32767 <= modis.pixels.max()


def test_middle_of_a_large_file(realdata):
    path = realdata / "naip" / "m_3607717_sw_18_1_20160620_subset.tif"
    whole, window = read_scene(path, "naip"), center_window(path, 128)
    part = read_scene(path, "naip", window=window)
    assert window == (86, 86, 128, 128) and center_window(path, 300) is None
    np.testing.assert_array_equal(part.pixels, whole.pixels[:, 86:214, 86:214])
    assert part.lat == pytest.approx(whole.lat, abs=1e-5) and part.lon == pytest.approx(whole.lon, abs=1e-5)
