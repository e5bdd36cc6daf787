"""Similarity search: exact cosine neighbors of a place among embeddings, ours or others'.

The query is a direction in embedding space: the vector of a place, or the mean of several examples minus half the mean
of negative ones (Rocchio, 1971).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import shapely

from clay_lib.areas.embeddings import Vectors, open_vectors
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write

NEGATIVE_WEIGHT = 0.5  # at 1 the part common to all land cancels and hits become random
EARTH_RADIUS = 6_371_008.8  # m
BLOCK = 32_768  # rows compared at once, which bounds copies and float64 values in memory
ROUNDING = 2e-6  # error bound of usearch's single-precision cosines

Example = str | Sequence[float] | np.ndarray


# ---- nearest neighbors ----


def nearest(
    values: np.ndarray, query: np.ndarray, k: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [k], cosines [k] float64), best first: the k rows of values [N, D] nearest to query [D], exactly.

    values: int8, float16 or float32, of any length; rows of zeros are never hits. keep [N] bool: rows that may be hits.
    Equal cosines keep the order of the rows.
    usearch compares in the table's own type, to which the query is rounded. Its candidates are compared again in
    float64, and more candidates are requested until rounding cannot hide a nearer row.
    """
    from usearch.index import search as usearch_search

    query = unit(np.asarray(query, np.float64), "query")
    scaled = query / np.abs(query).max() * (127 if values.dtype == np.int8 else 1)
    rounded = (np.rint(scaled) if values.dtype == np.int8 else scaled).astype(values.dtype)
    # The cosine with the rounded query differs from the exact one by at most the distance of the two unit vectors.
    slack = float(np.linalg.norm(unit(rounded.astype(np.float64), "query") - query)) + ROUNDING
    rows, scores = np.empty(0, int), np.empty(0)
    for start in range(0, len(values), BLOCK):
        block, at = values[start : start + BLOCK], np.arange(start, min(start + BLOCK, len(values)))
        if keep is not None and not keep[at].all():
            block, at = block[keep[at]], at[keep[at]]
        count = min(len(block), 4 * k + 16)
        while count:
            matches = usearch_search(block, rounded, count, exact=True)
            bound = 1 - np.asarray(matches.distances, np.float64) + slack  # [count] upper bounds of the exact cosines
            worst = scores[-1] if len(rows) == k else -np.inf
            candidates = np.asarray(matches.keys, int)[bound >= worst]
            merged = _best(np.append(rows, at[candidates]), np.append(scores, _cosines(block[candidates], query)), k)
            if count == len(block) or (len(merged[0]) == k and merged[1][-1] > bound[-1]):
                rows, scores = merged
                break
            count = min(len(block), 4 * count)
    return rows, scores


def unit(vector: np.ndarray, name: str) -> np.ndarray:
    """A vector [D] divided by its length; ContractError if it is zero or not finite. name: for the message."""
    length = np.linalg.norm(vector)
    if not (np.isfinite(length) and length > 0):
        raise ContractError(name, "zeros only" if length == 0 else "NaN or infinity", "a vector with a direction",
                            "a tile without data, or positive and negative examples that cancel")  # fmt: skip
    return vector / length


def _cosines(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """[n] cosines of rows [n, D] with a query of length one; -inf for rows of zeros."""
    values = values.astype(np.float64)
    lengths = np.sqrt((values * values).sum(axis=1))
    return np.where(lengths > 0, (values * query).sum(axis=1) / np.where(lengths > 0, lengths, 1), -np.inf)


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = rows[scores > -np.inf], scores[scores > -np.inf]
    order = np.lexsort((rows, -scores.round(12)))[:k]
    return rows[order], scores[order]


def neighbors_kept(vectors: np.ndarray, small: np.ndarray, *, k: int = 10) -> np.ndarray:
    """[N] share of each vector's k nearest neighbors, by cosine, that are also its neighbors in `small` [N, d]."""
    if not 1 <= k < len(vectors):
        raise ContractError("k", k, f"1 to {len(vectors) - 1}", "fewer vectors than neighbors")
    shares = []
    for row in range(len(vectors)):
        before, after = (nearest(x, x[row], k + 1)[0] for x in (vectors, small))  # the row itself and k others
        shares.append(np.isin(before[before != row][:k], after[after != row][:k]).mean())
    return np.array(shares)


# ---- search ----


def find_similar(
    source,
    like: Example | None = None,
    *,
    positives: Sequence[Example] = (),
    negatives: Sequence[Example] = (),
    k: int = 20,
    apart: float | None = 0.0,
    sensor: str = "",
    dates: str | tuple = "",
    area=None,
    negative_weight: float = NEGATIVE_WEIGHT,
) -> gpd.GeoDataFrame:
    """The k rows most similar to a place, best first: rank, id, similarity (cosine, -1..1), time, sensor, geometry; WGS84.

    source: whatever `open_vectors` takes, a folder, a file or a raster, or what it returned, for many searches.
    like, positives, negatives: (lat, lon), the id of a row, or a vector [D]. Of several rows at a point, the one with
    the nearest center is taken, then the latest, preferring rows that fit sensor, dates and area.
    The query is the mean of like and positives minus negative_weight times the mean of negatives, all of length one.
    apart: least distance of hits from every example, m; 0 excludes only the examples' own tiles, on all dates; None
    excludes nothing. sensor, dates ("2023-06-01/2023-08-31", both days included), area: filters for hits.
    Raises ContractError for a place without a row, an unknown id, and filters without a match.
    """
    if not (isinstance(k, int | np.integer) and k > 0):
        raise ContractError("k", k, "1, 2, 3, ...", "k is the number of hits")
    vectors = open_vectors(source)
    keep = _filter(vectors, sensor, dates, area)
    positive = [_example(vectors, example, keep) for example in [*([] if like is None else [like]), *positives]]
    negative = [_example(vectors, example, keep) for example in negatives]
    if not positive:
        raise ContractError("like", "nothing", "a place, an id or a vector", "no examples, or only negative ones")
    query = np.mean([vector for vector, _ in positive], axis=0)
    if negative:
        query = query - negative_weight * np.mean([vector for vector, _ in negative], axis=0)
    examples = [row for _, row in positive + negative if row is not None and apart is not None]
    for lat, lon in vectors.centers[examples]:
        keep[vectors.at(lat, lon)] = False
        if apart > 0:
            from sklearn.metrics.pairwise import haversine_distances

            angles = haversine_distances(np.radians(vectors.centers), np.radians([[lat, lon]]))[:, 0]  # [N]
            keep &= angles * EARTH_RADIUS >= apart
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
    """Find the places most similar to a given one, among those embedded by `clay embed`.

    Example: clay search OUT --like "46.95,7.44" --k 20 --geojson hits.geojson

    Args:
        out: the results folder of `clay embed`, or anybody's GeoParquet, GeoTIFF or Zarr with embeddings
        like: "lat,lon" in degrees, or the id of a row
        positives: further examples, such as '["46.9,7.4", "46.8,7.2"]'
        negatives: examples of places to avoid
        k: number of hits
        apart: least distance of hits from every example, m; 0 excludes only the examples themselves
        sensor: only hits of this sensor
        dates: only hits of these days, such as 2023-06-01/2023-08-31
        area: only hits in this area: a GeoJSON, GeoPackage or GeoParquet file, or "west,south,east,north"
        configuration: the one to search if the folder holds several
        geojson: GeoJSON file for the hits
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
        from clay_lib.areas.archives import parse_dates

        time = pd.to_datetime(vectors.rows["time"].to_pandas(), utc=True)
        keep &= np.asarray(time.between(*parse_dates(dates)))
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
                            "filters that match some rows", f"the table holds {sensors}")  # fmt: skip
    return keep


def _example(vectors: Vectors, example: Example, keep: np.ndarray) -> tuple[np.ndarray, int | None]:
    """(vector [D] of length one, row or None) of a place, an id or a vector."""
    dim = vectors.values.shape[1]
    if isinstance(example, str):
        matches = np.flatnonzero(pc.equal(vectors.rows["id"], example).to_numpy())
        if not len(matches):
            try:
                lat, lon = (float(part) for part in example.split(","))
            except ValueError:
                raise ContractError("place", repr(example), '"lat,lon" in degrees or the id of a row',
                                    "no row has this id") from None  # fmt: skip
            return _example(vectors, (lat, lon), keep)
        row = int(matches[0])
    else:
        array = np.asarray(example, np.float64)
        if array.shape == (dim,):
            return unit(array, "vector"), None
        if array.shape != (2,):
            raise ContractError("example", f"shape {array.shape}", f"(lat, lon), an id, or a vector of {dim} numbers",
                                "a vector of another model")  # fmt: skip
        row = _row_at(vectors, *array, keep)
    return unit(vectors.values[row].astype(np.float64), f"vector of {vectors.rows['id'][row]}"), row


def _row_at(vectors: Vectors, lat: float, lon: float, keep: np.ndarray) -> int:
    rows = vectors.at(lat, lon)
    if not len(rows):
        edges = (*vectors.bounds[:2].min(axis=1), *vectors.bounds[2:].max(axis=1))
        box = ", ".join(f"{v:.4f}" for v in edges)
        raise ContractError("place", f"lat {lat:g}, lon {lon:g}",
                            f"an embedded place: within west, south, east, north {box}",
                            "outside of the area, without valid pixels, or longitude before latitude")  # fmt: skip
    distance = np.hypot(*(vectors.centers[rows] - (lat, lon)).T).round(9)
    time = vectors.rows["time"].take(rows).to_numpy().astype("datetime64[us]").astype(float)
    return int(rows[np.lexsort((-time, distance, ~keep[rows]))[0]])
