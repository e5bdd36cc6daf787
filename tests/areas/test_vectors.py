"""Vectors as GeoParquet, read by this library and three others, and their compression."""

import datetime as dt

import duckdb
import geopandas
import numpy as np
import pyarrow.dataset
import pytest
import shapely

from clay_lib.areas import vectors
from clay_lib.areas.tiles import Grid, tiles_of
from clay_lib.areas.vectors import from_int8, shrink, to_int8, write_part
from clay_lib.errors import ContractError
from clay_lib.evaluation.components import fit_components

DIM = 24
TILES = tiles_of(shapely.box(14.9, 50.0, 15.1, 50.1), Grid("utm", 10.0))
SHARED = dict(sensor="sentinel-2-l2a", gsd=10.0, model="clay", weights="0" * 16, configuration="1234567890123456")


def make_rows(tiles=TILES):
    rng = np.random.default_rng(0)
    return [
        dict(
            id=f"{tile.id}_sentinel-2-l2a_20230610", tile=tile.id, geometry=tile.polygon, items=["one", "two"],
            time=dt.datetime(2022 + k % 2, 6, 10, 10, tzinfo=dt.UTC) if k else None, valid_share=0.5,
            cloud_cover=None if k % 3 else 12.5, vector=rng.normal(size=DIM).astype(np.float32),
            patch_mean=rng.normal(size=DIM).astype(np.float32),
        )
        for k, tile in enumerate(tiles)
    ]  # fmt: skip


@pytest.mark.parametrize("store", vectors.STORES)
def test_other_libraries_read_the_files(tmp_path, store):
    rows = make_rows()
    write_part(tmp_path, rows[:20], ["gone"], SHARED, DIM, store)
    for _ in range(2):  # rewriting gives the same file
        write_part(tmp_path, rows[20:], [], SHARED, DIM, store)
    rows = sorted(rows, key=lambda row: row["id"])
    expected, expected_means = (np.stack([row[name] for row in rows]) for name in ("vector", "patch_mean"))
    ids = [row["id"] for row in rows]

    table = vectors.read_vectors(tmp_path)
    assert table["id"].to_pylist() == ids
    values = vectors.as_matrix(table)
    error = {"float16": 1e-3 * np.abs(expected).max(), "int8": np.abs(expected).max(1).max() / 254}[store]
    assert np.abs(values - expected).max() <= error * 1.01
    assert np.abs(vectors.as_matrix(table, "patch_mean") - expected_means).max() <= 2 * error
    assert vectors.done_ids(tmp_path, "sentinel-2-l2a", SHARED["configuration"]) == (set(ids), {"gone"})

    frame = geopandas.read_parquet(tmp_path / "vectors").set_index("id")
    assert frame.crs == "EPSG:4326" and len(frame) == len(rows)
    for row in rows:
        assert frame.geometry[row["id"]].equals(row["geometry"])
        assert frame["items"][row["id"]].tolist() == ["one", "two"]
    near = geopandas.read_parquet(tmp_path / "vectors", bbox=TILES[0].polygon.buffer(-1e-3).bounds)
    assert TILES[0].id in near["tile"].tolist() and len(near) < len(rows)

    query = "select count(*), list_sort(list(distinct year)), min(vector[1])"
    count, years, least = duckdb.sql(f"{query} from read_parquet('{tmp_path}/vectors/**/*.parquet')").fetchall()[0]
    assert (count, years) == (len(rows), [0, 2022, 2023])
    scale = table["scale"].to_numpy() if store == "int8" else 1
    assert least == pytest.approx((values / np.reshape(scale, (-1, 1)))[:, 0].min(), abs=1e-6)

    opened = pyarrow.dataset.dataset(tmp_path / "vectors", partitioning="hive")
    assert opened.count_rows() == len(rows)
    kind = opened.schema.field("vector").type
    assert kind.list_size == DIM and str(kind.value_type) == {"float16": "halffloat", "int8": "int8"}[store]
    assert str(opened.schema.field("time").type) == "timestamp[us, tz=UTC]"
    frame = vectors.read_frame(tmp_path)
    np.testing.assert_array_equal(np.stack(frame["vector"]), values)
    assert frame["time"].isna().sum() == 1 and frame["cloud_cover"].isna().sum() == sum(
        k % 3 > 0 for k in range(len(rows))
    )


def test_configurations_are_never_mixed(tmp_path):
    write_part(tmp_path, make_rows(), [], SHARED, DIM, "float16")
    write_part(tmp_path, make_rows(), [], SHARED | {"configuration": "abc"}, DIM, "int8")
    with pytest.raises(ContractError, match="2 under .* several configurations"):
        vectors.read_vectors(tmp_path)
    assert vectors.read_vectors(tmp_path, configuration="abc")["configuration"].unique().to_pylist() == ["abc"]
    with pytest.raises(ContractError, match="none"):
        vectors.read_vectors(tmp_path / "elsewhere")


def test_zero_vectors_and_parts_without_rows(tmp_path):
    values, scale = to_int8(np.zeros((2, 3), np.float32))
    assert not values.any() and (scale > 0).all()
    write_part(tmp_path, [], ["a", "b"], SHARED, DIM, "int8")
    assert vectors.done_ids(tmp_path, "sentinel-2-l2a", SHARED["configuration"]) == (set(), {"a", "b"})
    assert vectors.read_vectors(tmp_path).num_rows == 0
    with pytest.raises(ContractError, match="store"):
        write_part(tmp_path, [], ["a"], SHARED, DIM, "float64")


@pytest.fixture
def five_dimensions():
    """200 vectors [32] in 5 dimensions with little noise."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 32)) + 0.01 * rng.normal(size=(200, 32)) + 3
    return values.astype(np.float32)


def test_bytes_and_errors_of_every_form(five_dimensions):
    expected = {"float32": (128, 0), "float16": (64, 1e-3), "int8": (36, 0.5 / 127), "PCA-5": (20, None),
                "PCA-5 float16": (10, None), "PCA-5 int8": (9, None)}  # fmt: skip
    for form, (size, error) in expected.items():
        restored = shrink(five_dimensions, form)
        assert restored.bytes == size
        assert restored.vectors.dtype == np.float32 and restored.vectors.shape == (200, 32)
        if error is not None:
            relative = np.abs(restored.vectors - five_dimensions).max(1) / np.abs(five_dimensions).max(1)
            assert relative.max() <= error * 1.001
    np.testing.assert_array_equal(shrink(five_dimensions, "int8").vectors, from_int8(*to_int8(five_dimensions)))


def test_components_keep_distances_and_are_fitted_on_training_vectors(five_dimensions):
    train, test = five_dimensions[:120], five_dimensions[120:]
    restored, pca = shrink(test, "PCA-5", fit_on=train).vectors, fit_components(train, 5)
    before, after = (np.linalg.norm(x[:, None] - x, axis=2) for x in (test, restored))
    np.testing.assert_allclose(after, before, atol=0.15)
    np.testing.assert_allclose(restored, (test - pca.mean) @ pca.axes.T @ pca.axes + pca.mean, atol=1e-4)
    np.testing.assert_allclose(restored, test, atol=0.1)  # only the noise is lost
    np.testing.assert_allclose(pca.axes @ pca.axes.T, np.eye(5), atol=1e-5)
    assert not np.allclose(shrink(test, "PCA-5").vectors, restored)


@pytest.mark.parametrize("form", ["", "int4", "PCA-33", "PCA-0", "PCA-x int8"])
def test_unknown_forms_are_refused(five_dimensions, form):
    with pytest.raises(ContractError, match="form"):
        shrink(five_dimensions, form)
