"""Change between two rasters of embeddings: plain NumPy, holes of either date, grids that meet, the command."""

import numpy as np
import pytest
import rasterio

from clay_lib.__main__ import main
from clay_lib.areas.change import map_change
from clay_lib.data.rasters import write_raster
from clay_lib.errors import ContractError

PLACE = dict(crs="EPSG:32633", nodata=float("nan"))


def write(path, values, west=500_000, north=5_300_000, **place):
    return write_raster(path, values.astype(np.float32), transform=(80, 0, west, 0, -80, north), **PLACE | place)


@pytest.fixture
def rasters(tmp_path):
    """Two dates, the second two cells farther east, in the layout of `clay embed`."""
    rng = np.random.default_rng(0)
    first, second = 1 + rng.normal(size=(2, 6, 20, 24))
    first[:, 3:5, 10] = second[:, 12] = np.nan  # clouds
    folder = tmp_path / "seasons" / "dense" / "sentinel-2-l2a" / "run=x-o0"
    write(folder / "2023Q2-32633-vectors.tif", first)
    write(folder / "2023Q3-32633-vectors.tif", second, west=500_160)
    return tmp_path / "seasons", first[:, :, 2:], second[:, :, :-2]


def test_change_is_the_cosine_distance_where_both_dates_were_seen(rasters, tmp_path):
    folder, first, second = rasters
    known = np.isfinite(first[0]) & np.isfinite(second[0])
    for center in (True, False):
        a, b = (v - center * v[:, known].mean(axis=1)[:, None, None] for v in (first, second))
        expected = 1 - (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
        change = map_change(folder / "2023Q2", folder / "2023Q3", tmp_path / "c.tif", center=center)
        assert np.isnan(change.values[3:5, 8]).all() and np.isnan(change.values[12]).all()
        np.testing.assert_array_equal(np.isfinite(change.values), known)
        np.testing.assert_allclose(change.values[known], expected[known], atol=1e-5)
        with rasterio.open(tmp_path / "c.tif") as file:
            np.testing.assert_array_equal(file.read(1), change.values)
            assert file.transform == rasterio.Affine(80, 0, 500_160, 0, -80, 5_300_000) and file.crs == PLACE["crs"]
            assert np.isnan(file.nodata) and "cosine" in file.descriptions[0]


def test_command(rasters, tmp_path, capsys):
    folder, *_ = rasters
    command = ["change", str(folder / "2023Q2"), str(folder / "2023Q3"), str(tmp_path / "c.tif")]
    assert main([*command, "--figure", str(tmp_path / "c.png")]) == 0
    assert "416 patches compared, 95% of the raster" in capsys.readouterr().out
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert main([*command[:2], str(folder / "2023Q1")]) == 2
    assert "2023Q1: none; expected one raster of this label" in capsys.readouterr().err


def test_rasters_that_cannot_be_compared(rasters, tmp_path):
    folder, first, _ = rasters
    others = [write(tmp_path / "crs.tif", first, crs="EPSG:32634"), write(tmp_path / "far.tif", first, west=900_000)]
    others += [write(tmp_path / "short.tif", first[:4]), write(tmp_path / "empty.tif", first * np.nan)]
    for path in others:
        with pytest.raises(ContractError, match="one model and grid|no cell with both"):
            map_change(folder / "2023Q2", path)
