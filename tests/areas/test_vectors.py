"""Vectors as files: what was written is read, by this library and by three others; parts are whole or absent."""

import datetime as dt
import json

import duckdb
import geopandas
import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import shapely

from clay_lib.areas import vectors
from clay_lib.areas.tiles import Grid, tiles_of
from clay_lib.errors import ContractError

DIM = 24
TILES = tiles_of(shapely.box(14.9, 50.0, 15.1, 50.1), Grid("utm", 10.0))
ABOUT = dict(sensor="sentinel-2-l2a", gsd=10.0, model="clay", weights="0" * 16, configuration="1234567890123456")


def some_rows(tiles=TILES):
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
def test_other_libraries_read_what_was_written(tmp_path, store):
    rows = some_rows()
    vectors.write_part(tmp_path, rows[:20], ["gone"], ABOUT, DIM, store)
    vectors.write_part(tmp_path, rows[20:], [], ABOUT, DIM, store)
    vectors.write_part(tmp_path, rows[20:], [], ABOUT, DIM, store)  # again: the same files
    rows = sorted(rows, key=lambda row: row["id"])
    wanted = np.stack([row["vector"] for row in rows])

    table = vectors.read_vectors(tmp_path)
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    found = vectors.as_matrix(table)
    half = {"float16": 1e-3 * np.abs(wanted).max(), "int8": np.abs(wanted).max(1).max() / 254}[store]
    assert np.abs(found - wanted).max() <= half * 1.01
    assert np.abs(vectors.as_matrix(table, "patch_mean") - np.stack([r["patch_mean"] for r in rows])).max() <= 2 * half
    assert vectors.done_ids(tmp_path, "sentinel-2-l2a", ABOUT["configuration"]) == ({r["id"] for r in rows}, {"gone"})

    frame = geopandas.read_parquet(tmp_path / "vectors").set_index("id")
    assert frame.crs == "EPSG:4326" and len(frame) == len(rows)
    for row in rows:
        assert frame.geometry[row["id"]].equals(row["geometry"])
        assert frame["items"][row["id"]].tolist() == ["one", "two"]
    near = geopandas.read_parquet(tmp_path / "vectors", bbox=TILES[0].polygon.buffer(-1e-3).bounds)
    assert TILES[0].id in near["tile"].tolist() and len(near) < len(rows)

    files = f"{tmp_path}/vectors/**/*.parquet"
    many, years, first = duckdb.sql(
        f"select count(*), list_sort(list(distinct year)), min(vector[1]) from read_parquet('{files}')"
    ).fetchall()[0]
    assert (many, years) == (len(rows), [0, 2022, 2023])
    scale = table["scale"].to_numpy() if store == "int8" else 1
    assert first == pytest.approx((found / np.reshape(scale, (-1, 1)))[:, 0].min(), abs=1e-6)

    opened = pyarrow.dataset.dataset(tmp_path / "vectors", partitioning="hive")
    assert opened.count_rows() == len(rows)
    kind = opened.schema.field("vector").type
    assert kind.list_size == DIM and str(kind.value_type) == {"float16": "halffloat", "int8": "int8"}[store]
    assert str(opened.schema.field("time").type) == "timestamp[us, tz=UTC]"
    own = vectors.read_frame(tmp_path)
    np.testing.assert_array_equal(np.stack(own["vector"]), found)
    assert own["time"].isna().sum() == 1 and own["cloud_cover"].isna().sum() == sum(k % 3 > 0 for k in range(len(rows)))


def test_the_schema_is_geoparquet():
    told = json.loads(vectors.schema(8).metadata[b"geo"])
    column = told["columns"]["geometry"]
    assert told["version"] == "1.1.0" and column["encoding"] == "WKB"
    assert column["covering"]["bbox"]["xmax"] == ["bbox", "xmax"] and column["crs"]["id"]["code"] == 4326
    with pytest.raises(ContractError, match="store"):
        vectors.schema(8, "float64")


def test_two_configurations_are_never_mixed(tmp_path):
    vectors.write_part(tmp_path, some_rows(), [], ABOUT, DIM, "float16")
    vectors.write_part(tmp_path, some_rows(), [], ABOUT | {"configuration": "abc"}, DIM, "int8")
    with pytest.raises(ContractError, match="2 under .* several configurations"):
        vectors.read_vectors(tmp_path)
    assert vectors.read_vectors(tmp_path, configuration="abc")["configuration"].unique().to_pylist() == ["abc"]
    with pytest.raises(ContractError, match="none"):
        vectors.read_vectors(tmp_path / "elsewhere")


def test_a_part_that_fails_leaves_nothing(tmp_path, monkeypatch):
    vectors.write_part(tmp_path, some_rows()[:5], [], ABOUT, DIM, "float16")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}

    def half(table, path, **_):
        pq.ParquetWriter(path, table.schema)  # opened, begun, and then
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vectors.pq, "write_table", half)
    with pytest.raises(OSError, match="No space"):
        vectors.write_part(tmp_path, some_rows()[5:9], [], ABOUT, DIM, "float16")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before


def test_empty_vectors_and_only_empty_tiles(tmp_path):
    values, scale = vectors.to_int8(np.zeros((2, 3), np.float32))
    assert not values.any() and (scale > 0).all()
    vectors.write_part(tmp_path, [], ["a", "b"], ABOUT, DIM, "int8")
    assert vectors.done_ids(tmp_path, "sentinel-2-l2a", ABOUT["configuration"]) == (set(), {"a", "b"})
    assert vectors.read_vectors(tmp_path).num_rows == 0
