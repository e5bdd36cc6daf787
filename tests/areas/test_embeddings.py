"""Embeddings of others: tables, rasters and arrays in their published layouts, and search among them."""

import geopandas as gpd
import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from clay_lib.__main__ import main
from clay_lib.areas.embeddings import open_vectors, read_embeddings
from clay_lib.areas.search import find_similar
from clay_lib.areas.tiles import transformer
from clay_lib.data.rasters import write_raster
from clay_lib.errors import ContractError

BOX = GeoBox((20, 30), rasterio.Affine(10, 0, 500_000, 0, -10, 5_540_000), "EPSG:32633")
PLACE = dict(crs="EPSG:32633", transform=tuple(BOX.affine)[:6])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def center(row, column):
    lon, lat = transformer("EPSG:32633", "EPSG:4326").transform(*(BOX.affine * (column + 0.5, row + 0.5)))
    return lat, lon


def outlines(count):
    return [shapely.box(7 + 0.01 * n, 46, 7.01 + 0.01 * n, 46.01) for n in range(count)]


def test_published_tables_open_as_ours(tmp_path, rng):
    """Clay's, Major TOM's with and without GeoParquet's metadata, Earth Index's, and points in a projected CRS."""
    vectors, shapes = rng.normal(size=(6, 16)), outlines(6)
    columns = {
        "embeddings": list(vectors),
        "date": ["2021-01-01"] * 6,
        "source_url": [f"s3://{n}.tif" for n in range(6)],
    }
    clay = tmp_path / "32VLM_v01.gpq"
    gpd.GeoDataFrame(columns, geometry=shapes, crs="OGC:CRS84").to_parquet(clay)
    tom = tmp_path / "part_00001-00050.parquet"  # columns and types of Major TOM's own embedder
    utm = gpd.GeoSeries(shapes, crs="EPSG:4326").to_crs("EPSG:32632")
    grid = {name: np.full(6, 3, "int16") for name in ("grid_row_u", "grid_col_r")} | {"grid_cell": ["3U_3R"] * 6}
    place = {"centre_lat": np.full(6, 46.005, "f4"), "centre_lon": np.float32(7.005 + 0.01 * np.arange(6))}
    place |= {"utm_footprint": utm.to_wkt(), "utm_crs": ["EPSG:32632"] * 6, "pixel_bbox": [[0, 0, 224, 224]] * 6}
    columns = {"unique_id": list("abcdef"), "embedding": list(vectors.astype("f4")), "product_id": ["S2B_MSIL1C"] * 6}
    columns |= {"timestamp": ["20230119T161811"] * 6} | grid | place
    gpd.GeoDataFrame(columns, geometry=shapes, crs=None).to_parquet(tom)
    bare = tmp_path / "tom.parquet"  # as other tools copy them, without GeoParquet's metadata
    pq.write_table(pa.table(columns | {"geometry": shapely.to_wkb(shapes)}), bare)
    index = tmp_path / "32TLS_2024-01-01_2025-01-01.parquet"  # Earth Index: one point a tile
    columns = {"id": list("abcdef"), "embedding": list(vectors.astype("f4")), "quality": list(np.ones((6, 3)))}
    gpd.GeoDataFrame(columns, geometry=shapely.centroid(shapes), crs="EPSG:4326").to_parquet(index)
    points = tmp_path / "points.parquet"
    frame = gpd.GeoDataFrame(
        {"id": range(6), "embedding": list(vectors)}, geometry=shapely.centroid(shapes), crs="EPSG:4326"
    )
    frame.to_crs("EPSG:3857").to_parquet(points)
    degrees = tmp_path / "degrees.parquet"
    coordinates = {"lon": frame.geometry.x, "lat": frame.geometry.y, "tile_id": list("abcdef"), "v": list(vectors)}
    pq.write_table(pa.table(coordinates), degrees)
    for path in (clay, tom, bare, index, points, degrees):
        table = read_embeddings(path)
        np.testing.assert_allclose(table.values, vectors, rtol=1e-6)
        np.testing.assert_allclose(table.centers, [(46.005, 7.005 + 0.01 * n) for n in range(6)], atol=1e-6)
        hits = find_similar(path, (46.004, 7.026), k=5)
        cosines = vectors @ vectors[2] / np.linalg.norm(vectors, axis=1)
        assert [round(float(shape.centroid.x * 100 - 700.5)) for shape in hits.geometry] == np.argsort(-cosines)[
            1:
        ].tolist()
    assert str(read_embeddings(tom).rows["time"][0]) == "2023-01-19 16:18:11+00:00"
    assert read_embeddings(clay).rows["time"][0].as_py() == pd.Timestamp("2021-01-01", tz="UTC")
    assert (
        read_embeddings(tom).rows["id"].to_pylist() == read_embeddings(index).rows["id"].to_pylist() == list("abcdef")
    )


def test_alphaearth_is_dequantized(tmp_path, rng):
    """sign(v) (v / 127.5)^2 and -128 as nodata, from south to north as published, as GeoTIFF and as Zarr."""
    native = rng.normal(size=(64, 20, 30))
    native /= np.linalg.norm(native, axis=0)
    stored = np.rint(np.sign(native) * np.sqrt(np.abs(native)) * 127.5).astype(np.int8)
    stored[:, 3, 4] = -128
    profile = dict(driver="GTiff", count=64, height=20, width=30, dtype="int8", nodata=-128, crs="EPSG:32633")
    upwards = rasterio.Affine(10, 0, 500_000, 0, 10, 5_539_800)
    with rasterio.open(tmp_path / "aef.tiff", "w", transform=upwards, **profile) as file:
        file.write(stored[:, ::-1])
    coords = {"band": [f"A{n:02d}" for n in range(64)]} | xr_coords(BOX, dims=("y", "x"))
    array = xr.DataArray(stored, coords, ("band", "y", "x"), attrs={"nodata": -128}).expand_dims(time=[2024])
    array.to_dataset(name="embeddings").to_zarr(tmp_path / "aef.zarr")
    for source in (tmp_path / "aef.tiff", tmp_path / "aef.zarr"):
        raster = read_embeddings(source)
        assert raster.dims == ("band", "y", "x") and raster.odc.geobox == BOX
        assert np.isnan(raster.values[:, 3, 4]).all() and np.isnan(raster.values).sum() == 64
        known = np.isfinite(raster.values)
        np.testing.assert_allclose(raster.values[known], native[known], atol=0.01)
        assert np.linalg.norm(raster.values[:, 0, 0]) == pytest.approx(1, abs=0.01)
        assert len(open_vectors(source).values) == 599
    profile["nodata"] = None
    with rasterio.open(tmp_path / "copy.tiff", "w", transform=upwards, **profile) as file:
        file.write(stored[:, ::-1])
    copy = array.drop_attrs(deep=False).isel(time=0)
    assert read_embeddings(tmp_path / "copy.tiff").equals(raster) and read_embeddings(copy).equals(raster)


def test_search_finds_cells_of_a_raster(tmp_path, rng, capsys):
    values = rng.normal(size=(12, 20, 30)).astype(np.float32)
    values[:, 17, 25] = 2 * values[:, 5, 8] + 0.01
    values[:, 0] = np.nan
    path = write_raster(tmp_path / "any.tif", values, nodata=np.nan, **PLACE)
    hit = find_similar(path, center(5, 8), k=1)
    assert hit.id[0] == "y17-x25" and hit.geometry[0].contains(shapely.Point(center(17, 25)[::-1]))
    assert main(["search", str(path), "--like", "{:.6f},{:.6f}".format(*center(5, 8)), "--k", "1"]) == 0
    assert "y17-x25" in capsys.readouterr().out
    south, west, north, east = *center(10, 4), *center(2, 12)
    part = read_embeddings(path, area=(west, south, east, north))
    assert part.shape == (12, 9, 9) and np.array_equal(part.values, values[:, 2:11, 4:13])
    with pytest.raises(ContractError, match="an area outside of the raster"):
        read_embeddings(path, area=(0, 0, 1, 1))


def test_arrays_with_scales_take_their_grid_from_a_geotiff(tmp_path, rng):
    stored, scales = (
        rng.integers(-127, 128, (20, 30, 128)).astype(np.int8),
        rng.random((20, 30)).astype(np.float32) + 0.1,
    )
    scales[4, 5] = np.nan
    np.save(tmp_path / "grid_0.15_52.05.npy", stored)
    with pytest.raises(ContractError, match="without grid_0.15_52.05_scales.npy"):
        read_embeddings(tmp_path / "grid_0.15_52.05.npy")
    np.save(tmp_path / "grid_0.15_52.05_scales.npy", scales)
    mask = write_raster(tmp_path / "landmask.tif", np.ones((20, 30), np.uint8), **PLACE)
    raster = read_embeddings(tmp_path / "grid_0.15_52.05.npy", like=mask)
    assert raster.odc.geobox == BOX and np.isnan(raster.values[:, 4, 5]).all()
    np.testing.assert_allclose(raster.values[:, 7, 8], stored[7, 8] * scales[7, 8], rtol=1e-6)
    assert find_similar(raster, center(7, 8), k=3).similarity.max() < 1


def test_what_is_no_embedding_is_refused(tmp_path):
    place = {"geometry": shapely.to_wkb(outlines(2))}
    two = pa.table({"a": [[1.0, 2.0], [3.0, 4.0]], "b": [[1.0], [2.0]]} | place)
    with pytest.raises(ContractError, match="choose with column="):
        read_embeddings(two)
    assert read_embeddings(two, column="a").values.shape == (2, 2)
    with pytest.raises(ContractError, match="one length"):
        read_embeddings(pa.table({"a": [[1.0, 2.0], [3.0]]} | place))
    with pytest.raises(ContractError, match="without the places"):
        read_embeddings(pa.table({"a": [[1.0, 2.0]]}))
    with pytest.raises(ContractError, match="without a CRS"):
        read_embeddings(write_raster(tmp_path / "plain.tif", np.ones((3, 8, 8)), crs=None, transform=None))
    dates = xr.DataArray(np.ones((2, 3, 20, 30)), xr_coords(BOX, dims=("y", "x")), ("time", "band", "y", "x"))
    with pytest.raises(ContractError, match="isel"):
        read_embeddings(dates)
