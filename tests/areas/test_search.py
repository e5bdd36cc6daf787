"""Similarity search: examples, polygons, filters, the index of a large table, and errors."""

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from pyproj import Geod

from clay_lib.__main__ import main
from clay_lib.areas import search
from clay_lib.areas.embeddings import open_vectors
from clay_lib.areas.search import find_similar, search_command, write_geojson
from clay_lib.areas.vectors import done_ids, read_vectors, write_part
from clay_lib.errors import ContractError

STEP = 0.01  # degrees between the centers of neighboring tiles
SHARED = dict(sensor="sentinel-2-l2a", gsd=10.0, model="clay-mini", weights="ab" * 8, configuration="cd" * 8)


def make_rows(vectors, *, day="2023-06-10", side=20, west=7.0, south=46.0):
    """Rows as from embed_area: tiles in rows of `side`, from the south-west."""
    rows = []
    for n, vector in enumerate(np.asarray(vectors, np.float32)):
        y, x = south + STEP * (n // side), west + STEP * (n % side)
        outline = shapely.box(x - STEP / 2, y - STEP / 2, x + STEP / 2, y + STEP / 2)
        rows.append(dict(id=f"t{n:04d}_{day}", tile=f"t{n:04d}", geometry=outline, time=pd.Timestamp(day, tz="UTC"),
                         vector=vector, patch_mean=-vector, valid_share=1.0, cloud_cover=0.0, items=["i"]))  # fmt: skip
    return rows


def write(out, vectors, *, store="int8", shared=SHARED, **layout):
    write_part(out, make_rows(vectors, **layout), (), shared, len(vectors[0]), store)
    return out


def cosines(values, query):
    values, query = np.asarray(values, np.float64), np.asarray(query, np.float64)
    return values @ query / np.linalg.norm(values, axis=1) / np.linalg.norm(query)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def out(tmp_path, rng):
    """A folder with the vectors of 20 x 20 tiles on one day."""
    return write(tmp_path, rng.normal(size=(400, 24)) + 1)


@pytest.mark.parametrize("share", [0, 0.6])
def test_a_truncated_part_is_named(out, rng, capsys, share):
    write(out, rng.normal(size=(40, 24)) + 1, day="2023-07-10")
    (part, *_) = sorted(out.rglob("*.parquet"))[::-1]  # the second that is opened
    part.write_bytes(part.read_bytes()[: int(share * part.stat().st_size)])
    assert main(["search", str(out), "--like", "46.03,7.05"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and part.name in message and "copy it again, or delete the file" in message
    for read in (lambda: read_vectors(out), lambda: done_ids(out, SHARED["sensor"], SHARED["configuration"])):
        with pytest.raises(ContractError, match=part.name):
            read()


def test_place_id_and_vector_give_the_same_hits(out):
    vectors = open_vectors(out)
    assert vectors.values.dtype == np.int8
    by_place = find_similar(out, (46.03, 7.052), k=5)  # row 3, column 5, off the center
    row = vectors.rows["id"].to_pylist().index("t0065_2023-06-10")
    by_vector = find_similar(vectors, vectors.values[row], k=6)
    assert by_vector.id[0] == "t0065_2023-06-10" and by_vector.similarity[0] == pytest.approx(1)
    assert (
        by_place.id.tolist() == find_similar(vectors, "t0065_2023-06-10", k=5).id.tolist() == by_vector.id[1:].tolist()
    )
    assert by_place["rank"].tolist() == [1, 2, 3, 4, 5] and by_place.crs == "EPSG:4326"
    including_example = find_similar(vectors, (46.03, 7.052), k=6, apart=None)
    assert including_example.id.tolist() == by_vector.id.tolist()
    means = find_similar(open_vectors(out, column="patch_mean"), (46.03, 7.052), k=5)  # the vectors with opposite sign
    assert means.id.tolist() == by_place.id.tolist()


def test_hits_keep_distance_dates_and_area(out, rng):
    write(out, rng.normal(size=(400, 24)) + 1, day="2024-07-01")
    place = (46.05, 7.05)
    assert "t0105" not in set(find_similar(out, place, k=800).id.str[:5])  # on neither date
    hits = find_similar(out, place, k=800, apart=3000.0)
    centers = gpd.GeoSeries(shapely.centroid(hits.geometry.to_numpy()))
    distances = Geod(ellps="WGS84").inv(*np.broadcast_arrays(7.05, 46.05, centers.x, centers.y))[2]
    assert 2900 < distances.min() < 4000 and len(hits) < 800 - 2
    assert set(find_similar(out, place, dates="2024-06-01/2024-07-01").time.dt.year) == {2024}
    assert find_similar(out, place, dates=("2023-06-10", "2023-06-10"), k=1000).shape[0] == 399
    corner = gpd.GeoSeries([shapely.box(7.1, 46.1, 7.13, 46.13)], crs="EPSG:4326")
    inside = find_similar(out, place, area=corner, k=1000)
    assert len(inside) == 2 * 16 and inside.intersects(corner[0]).all()
    with pytest.raises(ContractError, match="none of 800 rows fits"):
        find_similar(out, place, dates="2020-01-01")
    with pytest.raises(ContractError, match="sensor naip"):
        find_similar(out, place, sensor="naip")


def test_example_at_a_place_is_the_latest_date_that_fits(out, rng):
    write(out, rng.normal(size=(400, 24)) + 1, day="2024-07-01")
    hit = find_similar(out, (46.0, 7.0), k=1, apart=None)
    assert hit.id[0] == "t0000_2024-07-01"
    hit = find_similar(out, (46.0, 7.0), k=1, apart=None, dates="2023-01-01/2023-12-31")
    assert hit.id[0] == "t0000_2023-06-10" and hit.similarity[0] == pytest.approx(1)


def test_examples_follow_rocchio(out):
    vectors = open_vectors(out)
    ids = vectors.rows["id"].to_pylist()
    units = vectors.values / np.linalg.norm(vectors.values.astype(float), axis=1, keepdims=True)
    hits = find_similar(out, ids[0], positives=[ids[1], (46.0, 7.02)], negatives=[ids[9]], k=10)
    truth = cosines(vectors.values, units[:3].mean(axis=0) - 0.5 * units[9])
    truth[[0, 1, 2, 9]] = -np.inf  # examples are not hits
    assert hits.id.tolist() == [ids[n] for n in np.argsort(-truth)[:10]]


def test_polygon_is_the_mean_of_its_rows_and_finds_others(out, tmp_path, capsys):
    vectors, box = open_vectors(out), shapely.box(7.008, 46.008, 7.032, 46.022)  # rows 1 and 2, columns 1 to 3
    inside = [20 * y + x for y in (1, 2) for x in (1, 2, 3)]
    units = vectors.values / np.linalg.norm(vectors.values.astype(float), axis=1, keepdims=True)
    truth = cosines(vectors.values, units[inside].mean(axis=0))
    truth[inside] = -np.inf
    drawn = tmp_path / "drawn.geojson"
    gpd.GeoSeries([box], crs="EPSG:4326").to_file(drawn)
    for example in (box, drawn, str(drawn)):
        hits = find_similar(vectors, example, k=400)
        assert hits.id.tolist() == vectors.rows["id"].take(np.argsort(-truth)[:394]).to_pylist()
    far = find_similar(vectors, box, k=400, apart=3000.0)
    centers = gpd.GeoSeries(shapely.centroid(far.geometry.to_numpy())).set_crs("EPSG:4326").to_crs("EPSG:32632")
    rows = gpd.GeoSeries(shapely.points(vectors.centers[inside][:, ::-1]), crs="EPSG:4326").to_crs("EPSG:32632")
    distances = [rows.distance(center).min() for center in centers]
    assert 2980 < min(distances) < 3600 and 250 < len(far) < 380
    assert main(["search", str(out), "--like", str(drawn), "--k", "1"]) == 0
    assert hits.id[0] in capsys.readouterr().out
    assert_refused("no row's center", vectors, shapely.box(7.001, 46.001, 7.004, 46.004))


def test_a_large_table_is_searched_through_an_index_beside_it(out, rng, monkeypatch):
    monkeypatch.setattr(search, "EXACT_ROWS", 300)
    place, file = (46.03, 7.05), out / "vectors.index"
    exact = find_similar(out, place, k=30, exact=True)
    assert not file.exists()
    hits = find_similar(out, place, k=30)
    assert np.isin(hits.id, exact.id).mean() > 0.9 and find_similar(out, place, k=30, area="7,46,7.1,46.1").id[0]
    written = file.stat().st_mtime_ns
    find_similar(out, place, k=30)
    assert file.stat().st_mtime_ns == written, "the same vectors need no other index"
    nearest = open_vectors(out).values[65].astype(np.float32)
    write(out, [nearest, -nearest], day="2024-07-01")
    assert find_similar(out, place, k=1).id[0] == "t0000_2024-07-01", "new vectors are found"
    assert file.stat().st_mtime_ns > written


def test_geojson_is_readable_with_the_same_hits(out, tmp_path):
    hits = find_similar(out, (46.03, 7.05), k=7)
    read = gpd.read_file(write_geojson(hits, tmp_path / "hits.geojson"))
    assert read.id.tolist() == hits.id.tolist() and read.crs == "EPSG:4326"
    np.testing.assert_allclose(read.bounds, hits.bounds, atol=1e-7)
    np.testing.assert_allclose(read.similarity, hits.similarity, atol=1e-6)
    assert pd.to_datetime(read.time).tolist() == hits.time.tolist()
    features = json.loads((tmp_path / "hits.geojson").read_text())["features"]
    assert features[0]["geometry"]["coordinates"][0][0][0] == pytest.approx(7, abs=0.3)  # longitude first


def test_command(out, tmp_path, capsys):
    options = ["--like", "46.03,7.05", "--k", "3", "--positives", '["46.1,7.1"]']
    options += ["--out", str(tmp_path / "h.geojson")]
    assert main(["search", str(out), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    hits = gpd.read_file(tmp_path / "h.geojson")
    assert len(hits) == 3 and [line.split()[-1] for line in printed[:3]] == hits.id.tolist()
    assert search_command(str(out), like="46.03,7.05", area="7.1,46.1,7.13,46.13", k=2) == 0
    assert main(["search", str(out), "--like", "7.05,46.03"]) == 2
    assert "longitude before latitude" in capsys.readouterr().err


def test_tiles_across_the_antimeridian(tmp_path, rng):
    """A tile in two parts is found from either side, and its bounding box does not match other places."""
    rows = make_rows(rng.normal(size=(3, 8)), west=10.0, south=0.0)
    halves = shapely.box([179.9, -180], -0.1, [180, -179.9], 0.1)
    rows[0]["geometry"] = shapely.MultiPolygon(list(halves))
    write_part(tmp_path, rows, (), SHARED, 8, "float16")
    for lon in (179.95, -179.95):
        assert find_similar(tmp_path, (0.0, lon), k=9, apart=None).id[0] == rows[0]["id"]
        assert len(find_similar(tmp_path, (0.0, lon), k=9)) == 2
    with pytest.raises(ContractError, match="place"):
        find_similar(tmp_path, (0.0, 90.0))


def assert_refused(match, *args, **options):
    with pytest.raises(ContractError, match=match):
        find_similar(*args, **options)


def test_errors(out, tmp_path, rng):
    place = 46.03, 7.05
    assert_refused("k: found 0", out, place, k=0)
    assert_refused("k: found 2.5", out, place, k=2.5)
    assert_refused("outside of the area", out, (10.0, 10.0))
    assert_refused("no row has this id", out, "t9999")
    assert_refused("a vector of 24 numbers", out, np.ones(23))
    assert_refused("zeros only", out, np.zeros(24))
    assert_refused("NaN", out, np.full(24, np.nan))
    assert_refused("only negative", out, negatives=[place])
    assert_refused("no such folder", tmp_path / "nowhere", place)
    (tmp_path / "empty").mkdir()
    assert_refused("no GeoParquet", tmp_path / "empty", place)
    assert_refused("dates", out, place, dates="yesterday")
    write_part(tmp_path / "bare", [], ["t1"], SHARED, 24, "int8")
    assert_refused("no rows", tmp_path / "bare", place)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    assert_refused("lists of numbers", tmp_path / "other.parquet", place)
    vectors = rng.normal(size=(30, 8))
    vectors[17, 3] = np.nan
    assert_refused("NaN in row t0017_2023-06-10", write(tmp_path / "nan", vectors, store="float16"), place)


@pytest.mark.parametrize("name", ["model", "weights", "configuration"])
def test_incomparable_vectors_are_refused(out, rng, name):
    place, other = (46.03, 7.05), SHARED | {name: "other"}
    write(out, rng.normal(size=(4, 24)), shared=other, day="2024-01-01")
    assert_refused(f"{name}: found 2", out, place)
    if name == "configuration":
        assert len(find_similar(open_vectors(out, configuration=SHARED[name]), place, k=1000)) == 399
        assert main(["search", str(out), "--like", "46.0,7.0", "--configuration", "other"]) == 0


def test_a_table_may_hold_several_sensors(out, rng):
    """Each sensor has its own configuration; the model is the same."""
    naip = SHARED | {"sensor": "naip", "configuration": "ef" * 8}
    write(out, rng.normal(size=(400, 24)), shared=naip, day="2023-06-11")
    assert set(find_similar(out, (46.03, 7.05), k=900).sensor) == {"sentinel-2-l2a", "naip"}
    assert set(find_similar(out, (46.03, 7.05), k=900, sensor="naip").sensor) == {"naip"}
