"""Similarity search: cosine neighbors of a place among embeddings, ours or others'.

The query is a direction in embedding space: the vector of a place, the mean of those in a polygon, or the mean of
several examples minus half the mean of negative ones (Rocchio, 1971). Up to a million rows, and in rasters,
the search is exact; in larger tables it uses an index (neighbors.py), built at the first search and kept beside them.
"""

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import shapely

from clay_lib.areas.archives import parse_area, parse_dates
from clay_lib.areas.embeddings import Vectors, open_vectors
from clay_lib.areas.neighbors import EXACT_ROWS, NEGATIVE_WEIGHT, nearest, unit
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write

EARTH_RADIUS = 6_371_008.8  # m

Example = str | Path | Sequence[float] | np.ndarray | shapely.Geometry


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
    exact: bool = False,
) -> gpd.GeoDataFrame:
    """The k rows most similar to a place, best first: rank, id, similarity (cosine, -1..1), time, sensor, geometry; WGS84.

    source: whatever `open_vectors` takes, a folder, a file or a raster, or what it returned, for many searches.
    like, positives, negatives: (lat, lon), the id of a row, a vector [D], or a polygon, in shapely or a file: the mean
    of the rows whose center lies in it. Of several rows at a point, the one with the nearest center is taken, then the
    latest, preferring rows that fit sensor, dates and area.
    The query is the mean of like and positives minus half the mean of negatives, all of length one.
    apart: least distance of hits from every example, m; 0 excludes only the examples' own tiles, on all dates; None
    excludes nothing. sensor, dates ("2023-06-01/2023-08-31", both days included), area: filters for hits.
    exact: compare with every row beyond a million too.
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
        query = query - NEGATIVE_WEIGHT * np.mean([vector for vector, _ in negative], axis=0)
    own = np.unique(np.concatenate([rows for _, rows in positive + negative]))  # of the examples, on all dates
    if apart is not None and len(own):
        keep[own] = False
        if apart > 0:
            keep &= _distances(vectors.centers, vectors.centers[own]) >= apart
    exact = exact or vectors.index_file is None or np.count_nonzero(keep) <= EXACT_ROWS
    order, similarity = (nearest if exact else vectors.index.nearest)(vectors.values, query, k, keep)
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
    source: str,
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
    exact: bool = False,
    out: str = "",
) -> int:
    """Find the places most similar to a given one, among those embedded by `clay embed`.

    Example: clay search AREA --like "46.95,7.44" --k 20 --out hits.geojson

    Args:
        source: the results folder of `clay embed`, or anybody's GeoParquet, GeoTIFF or Zarr with embeddings
        like: "lat,lon" in degrees, the id of a row, or a file with a polygon, such as drawn.geojson
        positives: further examples, such as '["46.9,7.4", "46.8,7.2"]'
        negatives: examples of places to avoid
        k: number of hits
        apart: least distance of hits from every example, m; 0 excludes only the examples themselves
        sensor: only hits of this sensor
        dates: only hits of these days, such as 2023-06-01/2023-08-31
        area: only hits in this area: a GeoJSON, GeoPackage or GeoParquet file, or "west,south,east,north"
        configuration: the one to search if the folder holds several
        exact: compare with every row beyond a million too, instead of an index
        out: GeoJSON file for the hits
    """
    vectors = open_vectors(source, configuration=configuration)
    filters = dict(apart=apart, sensor=sensor, dates=dates, area=area or None, exact=exact)
    hits = find_similar(vectors, like or None, positives=positives, negatives=negatives, k=k, **filters)
    for hit in hits.itertuples():
        point, day = hit.geometry.centroid, "unknown   " if pd.isna(hit.time) else f"{hit.time:%Y-%m-%d}"
        print(f"{hit.rank:>4}  {hit.similarity:.4f}  {point.y:9.5f}, {point.x:10.5f}  {day}  {hit.id}")
    if out:
        print(f"{len(hits)} hits in {write_geojson(hits, out)}")
    return 0


def _filter(vectors: Vectors, sensor: str, dates, area) -> np.ndarray:
    """[N] bool: rows that fit sensor, dates and area."""
    keep = np.ones(len(vectors.values), bool)
    if sensor:
        keep &= pc.equal(vectors.rows["sensor"], sensor).to_numpy()
    if dates:
        time = pd.to_datetime(vectors.rows["time"].to_pandas(), utc=True)
        keep &= np.asarray(time.between(*parse_dates(dates)))
    if area is not None:
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


def _distances(centers: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[N] meters along the sphere from each (lat, lon) [N, 2] to the nearest of places [M, 2]."""
    from scipy.spatial import KDTree

    lat, lon = np.radians(np.concatenate([centers, places])).T
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chords = KDTree(xyz[len(centers) :]).query(xyz[: len(centers)])[0]
    return 2 * EARTH_RADIUS * np.arcsin(chords.clip(max=2) / 2)


def _example(vectors: Vectors, example: Example, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(vector [D] of length one, its rows on all dates) of a place, an id, a vector or a polygon."""
    if isinstance(example, shapely.Geometry | Path) or (isinstance(example, str) and Path(example).is_file()):
        shape = parse_area(example)
        rows = np.flatnonzero(shapely.intersects_xy(shape, *vectors.centers.T[::-1]))
        if not len(rows):
            box = ", ".join(f"{v:.4f}" for v in shape.bounds)
            raise ContractError("polygon", f"no row's center within {box}", "a polygon around at least one",
                                "a polygon smaller than a tile, or outside of the area")  # fmt: skip
        values = vectors.values[rows[keep[rows]] if keep[rows].any() else rows].astype(np.float64)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        return unit((values / np.where(lengths > 0, lengths, 1)).mean(axis=0), "mean of the polygon"), rows
    if isinstance(example, str):
        matches = np.flatnonzero(pc.equal(vectors.rows["id"], example).to_numpy())
        if not len(matches):
            try:
                lat, lon = (float(part) for part in example.split(","))
            except ValueError:
                raise ContractError("place", repr(example), '"lat,lon" in degrees, the id of a row, or a file',
                                    "no row has this id") from None  # fmt: skip
            return _example(vectors, (lat, lon), keep)
        row = int(matches[0])
    else:
        array, dim = np.asarray(example, np.float64), vectors.values.shape[1]
        if array.shape == (dim,):
            return unit(array, "vector"), np.empty(0, int)
        if array.shape != (2,):
            raise ContractError("example", f"shape {array.shape}", f"(lat, lon), an id, or a vector of {dim} numbers",
                                "a vector of another model")  # fmt: skip
        row = _row_at(vectors, *array, keep)
    rows = vectors.at(*vectors.centers[row])
    return unit(vectors.values[row].astype(np.float64), f"vector of {vectors.rows['id'][row]}"), rows


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
