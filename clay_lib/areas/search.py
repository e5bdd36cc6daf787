"""Similarity search: exact cosine neighbors of a place among the vectors that `clay embed` has written.

The query is a direction in embedding space: the vector of a place, or the mean of several examples minus half the mean
of negative ones (Rocchio, 1971).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import shapely

from clay_lib.areas.vectors import part_files, read_part
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write

AGAINST = 0.5  # weight of the negatives' mean: at 1, what all land has in common cancels and hits turn random
EARTH_RADIUS = 6_371_008.8  # m
BLOCK = 32_768  # rows compared at once: copies and float64 values stay small however long the table is
ROUNDING = 2e-6  # error bound of usearch's single-precision cosines
KEPT, UNIQUE = ["id", "geometry", "time", "sensor"], ["model", "weights", "configuration"]

Example = str | Sequence[float] | np.ndarray


# ---- nearest neighbors ----


def nearest(
    values: np.ndarray, query: np.ndarray, k: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [k], cosines [k] float64), best first: the k rows of values [N, D] nearest to query [D], exactly.

    values: int8, float16 or float32, compared as stored; the length of a row plays no part, rows of zeros are never
    hits. keep [N] bool: rows that may be hits. Equal cosines keep the order of the rows.
    usearch compares in the table's own type, to which the query is rounded. Its candidates are compared again in
    float64, and more candidates are taken until rounding cannot hide a nearer row.
    """
    from usearch.index import search as usearch_search

    query = unit(np.asarray(query, np.float64), "query")
    scaled = query / np.abs(query).max() * (127 if values.dtype == np.int8 else 1)
    rounded = (np.rint(scaled) if values.dtype == np.int8 else scaled).astype(values.dtype)
    # A cosine with the rounded query differs from the true one by at most the distance of the two directions.
    slack = float(np.linalg.norm(unit(rounded.astype(np.float64), "query") - query)) + ROUNDING
    rows, scores = np.empty(0, int), np.empty(0)
    for start in range(0, len(values), BLOCK):
        block, at = values[start : start + BLOCK], np.arange(start, min(start + BLOCK, len(values)))
        if keep is not None and not keep[at].all():
            block, at = block[keep[at]], at[keep[at]]
        count = min(len(block), 4 * k + 16)
        while count:
            matches = usearch_search(block, rounded, count, exact=True)
            bound = 1 - np.asarray(matches.distances, np.float64) + slack  # [count] the true cosine is at most this
            worst = scores[-1] if len(rows) == k else -np.inf
            candidates = np.asarray(matches.keys, int)[bound >= worst]
            merged = _best(np.append(rows, at[candidates]), np.append(scores, _cosines(block[candidates], query)), k)
            if count == len(block) or (len(merged[0]) == k and merged[1][-1] > bound[-1]):
                rows, scores = merged
                break
            count = min(len(block), 4 * count)
    return rows, scores


def unit(vector: np.ndarray, name: str) -> np.ndarray:
    """A vector [D] divided by its length; a ContractError names one that is zero or not finite."""
    length = np.linalg.norm(vector)
    if not (np.isfinite(length) and length > 0):
        raise ContractError(name, "zeros only" if length == 0 else "NaN or infinity", "a vector with a direction",
                            "a tile without data, or positive and negative examples that cancel")  # fmt: skip
    return vector / length


def _cosines(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """[n] cosines of rows [n, D] with a query of length one; -inf for rows of zeros."""
    wide = values.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1))
    return np.where(lengths > 0, (wide * query).sum(axis=1) / np.where(lengths > 0, lengths, 1), -np.inf)


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = rows[scores > -np.inf], scores[scores > -np.inf]
    order = np.lexsort((rows, -scores.round(12)))[:k]
    return rows[order], scores[order]


def neighbors_kept(vectors: np.ndarray, small: np.ndarray, *, k: int = 10) -> np.ndarray:
    """[N] share of each vector's k nearest others, by cosine, that are among its k nearest in `small` [N, d] as well."""
    if not 1 <= k < len(vectors):
        raise ContractError("k", k, f"1 to {len(vectors) - 1}", "fewer vectors than neighbors")
    shares = []
    for row in range(len(vectors)):
        before, after = (nearest(x, x[row], k + 1)[0] for x in (vectors, small))
        shares.append(np.isin(before[before != row][:k], after[after != row][:k]).mean())
    return np.array(shares)


# ---- tables of vectors ----


@dataclass(frozen=True, eq=False)
class Vectors:
    """A table of embeddings opened for search, its vectors as stored."""

    rows: pa.Table  # id, geometry (WKB), time, sensor
    values: np.ndarray  # [N, D] int8 or float16, without the scale of each row, which a cosine does not depend on
    bounds: np.ndarray  # [4, N] west, south, east, north of the outlines, degrees
    centers: np.ndarray  # [N, 2] lat, lon

    def at(self, lat: float, lon: float) -> np.ndarray:
        """Rows whose outline contains a point."""
        west, south, east, north = self.bounds
        near = np.flatnonzero((west <= lon) & (lon <= east) & (south <= lat) & (lat <= north))
        return near[shapely.intersects_xy(self.outlines(near), lon, lat)] if len(near) else near

    def outlines(self, rows: np.ndarray) -> np.ndarray:
        return shapely.from_wkb(self.rows["geometry"].take(rows).to_numpy())


def open_vectors(source: str | Path | pa.Table, *, column: str = "vector", configuration: str = "") -> Vectors:
    """The vectors in a folder of `embed_area`, in one GeoParquet file or in an Arrow table, read once for many searches.

    column: "vector" or "patch_mean". configuration: which to take where a folder holds several.
    Memory: N * D bytes of int8 and about 200 a row; never a float32 copy.
    Raises ContractError for missing columns, broken files, NaN, and vectors that cannot be compared.
    """
    if isinstance(source, pa.Table):
        return _open(ds.InMemoryDataset(source), "the table", column, configuration)
    path = Path(source)
    parts = [path] if path.is_file() else part_files(path)
    if not parts:
        raise ContractError("vectors", f"no GeoParquet in {path}" if path.exists() else f"no such folder: {path}",
                            "a folder that `clay embed` has filled, or one GeoParquet file",
                            "a misspelt path, or a job that has written nothing yet")  # fmt: skip
    try:
        return _open(ds.dataset([str(part) for part in parts], format="parquet"), str(path), column, configuration)
    except (pa.ArrowInvalid, OSError):
        for part in parts:
            read_part(part)  # names the damaged one
        raise


def _open(data: ds.Dataset, name: str, column: str, configuration: str) -> Vectors:
    missing = [field for field in (*KEPT, column) if field not in data.schema.names]
    if missing or not pa.types.is_fixed_size_list(data.schema.field(column).type):
        expected = f"{', '.join(missing)} too" if missing else f"{column} as a list of fixed size"
        raise ContractError("columns", data.schema.names, expected, "a GeoParquet that `clay embed` has not written")
    wanted = pc.field("configuration") == configuration if configuration else None
    total = data.count_rows(filter=wanted)
    if not total:
        raise ContractError("vectors", f"no rows{f' of configuration {configuration}' if configuration else ''} in {name}",
                            "a folder that `clay embed` has filled",
                            "the job has not come that far, or another folder was meant")  # fmt: skip
    kind = data.schema.field(column).type
    values = np.empty((total, kind.list_size), kind.value_type.to_pandas_dtype())
    bounds, centers = np.empty((4, total)), np.empty((total, 2))
    origin = ["sensor", *(field for field in UNIQUE if field in data.schema.names)]
    origins, parts, start = [], [], 0
    for batch in data.to_batches(columns=[*dict.fromkeys([*KEPT, *origin, column])], filter=wanted):
        rows = slice(start, start + len(batch))
        values[rows] = _stored(batch, column)
        shapes = shapely.from_wkb(batch.column("geometry").to_numpy(zero_copy_only=False))
        bounds[:, rows] = shapely.bounds(shapes).T
        # The center of an outline that is cut at the antimeridian is that of its first part.
        west, south, east, north = shapely.bounds(shapely.get_geometry(shapes, 0)).T
        centers[rows] = np.stack([(south + north) / 2, (west + east) / 2], axis=1)
        origins.append(pa.Table.from_batches([batch.select(origin)]).group_by(origin).aggregate([]))
        parts.append(batch.select(KEPT))
        start += len(batch)
    _check_comparable(pa.concat_tables(origins).to_pandas(), name)
    table = pa.Table.from_batches(parts).combine_chunks()  # taking rows from many chunks is slow
    return Vectors(table, values, bounds, centers)


def _stored(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """[n, D] view of a fixed-size list column."""
    column = batch.column(name)
    flat = column.flatten()  # without the rows that are null
    values = flat.to_numpy(zero_copy_only=flat.null_count == 0).reshape(-1, column.type.list_size)
    broken = column.is_null().to_numpy(False)
    if not broken.any() and values.dtype.kind == "f":
        broken = np.isnan(values).any(axis=1)
    if broken.any():
        row = batch.column("id")[int(np.flatnonzero(broken)[0])]
        raise ContractError(name, f"{'no vector' if column.null_count else 'NaN'} in row {row}",
                            "finite numbers in every row", "a broken file")  # fmt: skip
    return values


def _check_comparable(origins: pd.DataFrame, name: str) -> None:
    """A table may hold several sensors, each with its own configuration, but only one model and one set of weights."""
    for column in origins.columns[:0:-1]:
        groups = origins.groupby("sensor")[column] if column == "configuration" else [("", origins[column])]
        several = sorted({str(value) for _, group in groups if group.nunique() > 1 for value in group})
        if several:
            raise ContractError(column, f"{len(several)} in {name}: {', '.join(several[:4])}",
                                "one: vectors of different models or settings cannot be compared",
                                "several jobs wrote into this folder; choose one with configuration= "
                                "(see OUT/configuration-*.json)")  # fmt: skip


# ---- search ----


def find_similar(
    source: Vectors | str | Path | pa.Table,
    like: Example | None = None,
    *,
    positives: Sequence[Example] = (),
    negatives: Sequence[Example] = (),
    k: int = 20,
    apart: float | None = 0.0,
    sensor: str = "",
    dates: str | tuple = "",
    area=None,
    against: float = AGAINST,
) -> gpd.GeoDataFrame:
    """The k rows most similar to a place, best first: rank, id, similarity (cosine, -1..1), time, sensor, geometry; WGS84.

    like, positives, negatives: (lat, lon), the id of a row, or a vector [D]. Of several rows at a point, the one whose
    center is nearest counts, then the latest, preferring rows that fit sensor, dates and area.
    The query is the mean of like and positives minus `against` times the mean of negatives, each of length one.
    apart: least distance of hits from every example, m; 0: only the examples' own tiles are excluded, on all dates;
    None: nothing is. sensor, dates ("2023-06-01/2023-08-31", both days included), area: where hits may lie.
    Raises ContractError for a place without a row, an unknown id, and a filter that leaves no rows.
    """
    if not (isinstance(k, int | np.integer) and k > 0):
        raise ContractError("k", k, "1, 2, 3, ...", "k is the number of hits")
    vectors = source if isinstance(source, Vectors) else open_vectors(source)
    keep = _filter(vectors, sensor, dates, area)
    wanted = [_example(vectors, example, keep) for example in [*([] if like is None else [like]), *positives]]
    unwanted = [_example(vectors, example, keep) for example in negatives]
    if not wanted:
        raise ContractError("like", "nothing", "a place, an id or a vector", "only negative examples were given")
    query = np.mean([vector for vector, _ in wanted], axis=0)
    if unwanted:
        query = query - against * np.mean([vector for vector, _ in unwanted], axis=0)
    examples = [row for _, row in wanted + unwanted if row is not None and apart is not None]
    for lat, lon in vectors.centers[examples]:
        keep[vectors.at(lat, lon)] = False
        if apart > 0:
            keep &= _meters(vectors.centers, lat, lon) >= apart
    order, similarity = nearest(vectors.values, query, k, keep)
    rows = vectors.rows.take(order)
    hits = {"rank": np.arange(1, len(order) + 1), "id": rows["id"].to_pylist(), "similarity": similarity}
    hits |= {"time": pd.DatetimeIndex(rows["time"].to_pandas()), "sensor": rows["sensor"].to_pylist()}
    return gpd.GeoDataFrame(hits, geometry=vectors.outlines(order), crs="EPSG:4326")


def write_geojson(hits: gpd.GeoDataFrame, path: str | Path) -> Path:
    """The hits as a GeoJSON file (RFC 7946: WGS84, longitude first)."""
    hits = hits.assign(time=[None if pd.isna(t) else t.isoformat() for t in hits["time"]])
    options = dict(driver="GeoJSON", RFC7946="YES", COORDINATE_PRECISION=7)
    return atomic_write(path, lambda partial: hits.to_file(partial, **options))


def search_command(
    out: str,
    *,
    like: str = "",
    positives: Sequence[str] = (),
    negatives: Sequence[str] = (),
    k: int = 20,
    apart: float = 0.0,
    sensor: str = "",
    dates: str = "",
    area: str = "",
    configuration: str = "",
    geojson: str = "",
) -> int:
    """Find places that look similar to a given one, among those that `clay embed` has embedded.

    Example: clay search OUT --like "46.95,7.44" --k 20 --geojson hits.geojson

    Args:
        out: the folder that `clay embed` filled, or one GeoParquet file
        like: "lat,lon" in degrees, or the id of a row
        positives: further examples, such as '["46.9,7.4", "46.8,7.2"]'
        negatives: examples of what is not wanted
        k: number of hits
        apart: least distance of hits from every example, m; 0 excludes only the examples themselves
        sensor: only this sensor
        dates: only these days, such as 2023-06-01/2023-08-31
        area: only there: a GeoJSON, GeoPackage or GeoParquet file, or "west,south,east,north"
        configuration: which to search, where the folder holds several
        geojson: a file to write the hits to
    """
    vectors = open_vectors(out, configuration=configuration)
    filters = dict(apart=apart, sensor=sensor, dates=dates, area=area or None)
    hits = find_similar(vectors, like or None, positives=positives, negatives=negatives, k=k, **filters)
    for hit in hits.itertuples():
        point, day = hit.geometry.centroid, "unknown   " if pd.isna(hit.time) else f"{hit.time:%Y-%m-%d}"
        print(f"{hit.rank:>4}  {hit.similarity:.4f}  {point.y:9.5f}, {point.x:10.5f}  {day}  {hit.id}")
    if geojson:
        print(f"{len(hits)} hits in {write_geojson(hits, geojson)}")
    return 0


def _filter(vectors: Vectors, sensor: str, dates, area) -> np.ndarray:
    """[N] bool: rows that fit sensor, dates and area."""
    keep = np.ones(len(vectors.values), bool)
    if sensor:
        keep &= pc.equal(vectors.rows["sensor"], sensor).to_numpy()
    if dates:
        first, last = _days(dates)
        time = pd.to_datetime(vectors.rows["time"].to_pandas(), utc=True)
        keep &= np.asarray((time >= first) & (time < last + pd.Timedelta(days=1)))
    if area is not None:
        from clay_lib.areas.archives import parse_area

        shape = parse_area(area)
        shapely.prepare(shape)
        near = np.flatnonzero(keep & shapely.intersects(shape, shapely.box(*vectors.bounds)))
        keep[:] = False
        keep[near] = shapely.intersects(shape, vectors.outlines(near))
    if not keep.any():
        filters = f"sensor {sensor or 'any'}, dates {dates or 'any'}, area {'any' if area is None else 'given'}"
        sensors = ", ".join(pc.unique(vectors.rows["sensor"]).to_pylist())
        raise ContractError("sensor, dates, area", f"none of {len(keep)} rows fits: {filters}",
                            "a filter that leaves some rows", f"the table holds {sensors}")  # fmt: skip
    return keep


def _days(dates) -> tuple[pd.Timestamp, pd.Timestamp]:
    try:
        days = pd.to_datetime(
            dates.split("/") if isinstance(dates, str) else list(dates), utc=True, format="ISO8601"
        ).normalize()
        return days[0], days[min(1, len(days) - 1)]
    except (ValueError, TypeError, IndexError) as error:
        raise ContractError("dates", repr(dates), '"2023-06-01/2023-08-31" or a pair of days', str(error)) from None


def _example(vectors: Vectors, example: Example, keep: np.ndarray) -> tuple[np.ndarray, int | None]:
    """(vector [D] of length one, row or None) of a place, an id or a vector."""
    dim = vectors.values.shape[1]
    if isinstance(example, str):
        known = np.flatnonzero(pc.equal(vectors.rows["id"], example).to_numpy())
        if not len(known):
            try:
                lat, lon = (float(part) for part in example.split(","))
            except ValueError:
                raise ContractError("place", repr(example), '"lat,lon" in degrees or the id of a row',
                                    "no row has this id") from None  # fmt: skip
            return _example(vectors, (lat, lon), keep)
        row = int(known[0])
    else:
        numbers = np.asarray(example, np.float64)
        if numbers.shape == (dim,):
            return unit(numbers, "vector"), None
        if numbers.shape != (2,):
            raise ContractError("example", f"shape {numbers.shape}", f"(lat, lon), an id, or a vector of {dim} numbers",
                                "a vector of another model")  # fmt: skip
        row = _row_at(vectors, *numbers, keep)
    return unit(vectors.values[row].astype(np.float64), f"vector of {vectors.rows['id'][row]}"), row


def _row_at(vectors: Vectors, lat: float, lon: float, keep: np.ndarray) -> int:
    rows = vectors.at(lat, lon)
    if not len(rows):
        edges = (*vectors.bounds[:2].min(axis=1), *vectors.bounds[2:].max(axis=1))
        box = ", ".join(f"{v:.4f}" for v in edges)
        raise ContractError("place", f"lat {lat:g}, lon {lon:g}",
                            f"an embedded place: within west, south, east, north {box}",
                            "outside of the area, where no data was, or longitude before latitude")  # fmt: skip
    distance = np.hypot(*(vectors.centers[rows] - (lat, lon)).T).round(9)
    time = vectors.rows["time"].take(rows).to_numpy().astype("datetime64[us]").astype(float)
    return int(rows[np.lexsort((-time, distance, ~keep[rows]))[0]])


def _meters(centers: np.ndarray, lat: float, lon: float) -> np.ndarray:
    """Great-circle distances [N] of centers [N, 2] in degrees from a point."""
    from sklearn.metrics.pairwise import haversine_distances

    return haversine_distances(np.radians(centers), np.radians([[lat, lon]]))[:, 0] * EARTH_RADIUS
