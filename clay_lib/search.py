"""Search: where else is it like here? Cosine neighbours of a place among the vectors that `clay embed` left.

A direction in the space of vectors is all that is asked for: the vector of a place, or the mean of several minus half the
mean of those that are not meant (Rocchio, 1971).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from clay_lib.contract import ContractError
from clay_lib.files import write_whole
from clay_lib.neighbours import nearest, unit
from clay_lib.search_table import Vectors, open_vectors

AGAINST = 0.5  # share of the negatives' mean taken away: at 1 what all land has in common is gone and hits turn random
EARTH_RADIUS = 6_371_008.8  # m

Example = str | Sequence[float] | np.ndarray


def search(
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
    """The k rows most like a place, best first: rank, id, similarity (cosine, -1..1), time, sensor, geometry; WGS84.

    like, positives, negatives: (lat, lon), the id of a row, or a vector [D]. Of several rows over a point that one
    counts whose middle is nearest, then the latest, first among what sensor, dates and area leave.
    Asked for is the mean of like and positives minus `against` times the mean of negatives, each of length one.
    apart: hits keep this many metres from every example; 0: only an example's own place is left out, on all dates;
    None: nothing is. sensor, dates ("2023-06-01/2023-08-31", both days included), area: where hits may lie.
    Rows without any signal (all zero) are never hits. Equal similarities keep the table's order.
    """
    if not (isinstance(k, int | np.integer) and k > 0):
        raise ContractError("k", found=k, expected="1, 2, 3, ...", cause="how many places to look for")
    vectors = source if isinstance(source, Vectors) else open_vectors(source)
    keep = _kept(vectors, sensor, dates, area)
    wanted = [_example(vectors, e, keep) for e in ([] if like is None else [like], positives) for e in e]
    unwanted = [_example(vectors, e, keep) for e in negatives]
    if not wanted:
        raise ContractError(
            "like", found="nothing", expected="a place, an id or a vector", cause="only negative examples were given"
        )
    query = np.mean([v for v, _ in wanted], axis=0)
    if unwanted:
        query = query - against * np.mean([v for v, _ in unwanted], axis=0)
    _leave_out(vectors, keep, [row for _, row in wanted + unwanted if row is not None], apart)
    order, similarity = nearest(vectors.values, query, k, keep)
    return _hits(vectors, order, similarity)


def write_geojson(hits: gpd.GeoDataFrame, path: str | Path) -> Path:
    """The hits as a GeoJSON file (RFC 7946: WGS84, longitude first)."""
    told = hits.assign(time=[None if pd.isna(t) else t.isoformat() for t in hits["time"]])
    options = dict(driver="GeoJSON", RFC7946="YES", COORDINATE_PRECISION=7)
    return write_whole(path, lambda file: told.to_file(file, **options))


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
    """Find places that look like one, among those that `clay embed` has been to.

    Example: clay search OUT --like "46.95,7.44" --k 20 --geojson hits.geojson

    Args:
        out: the folder that `clay embed` filled, or one GeoParquet file
        like: "lat,lon" in degrees, or the id of a row
        positives: further places to find more of, such as '["46.9,7.4", "46.8,7.2"]'
        negatives: places to find less of
        k: how many hits
        apart: metres that hits keep from every example; 0 leaves out only the places themselves
        sensor: only what this sensor saw
        dates: only these days, such as 2023-06-01/2023-08-31
        area: only there: a GeoJSON, GeoPackage or GeoParquet file, or "west,south,east,north"
        configuration: which to search, where the folder holds several
        geojson: a file to write the hits to
    """
    where = [float(v) for v in area.split(",")] if re.fullmatch(r"[-+.\d\s]+(,[-+.\d\s]+){3}", area) else area or None
    vectors = open_vectors(out, configuration=configuration)
    hits = search(vectors, like or None, positives=positives, negatives=negatives, k=k, apart=apart, sensor=sensor,
                  dates=dates, area=where)  # fmt: skip
    for hit in hits.itertuples():
        point, day = hit.geometry.centroid, "unknown   " if pd.isna(hit.time) else f"{hit.time:%Y-%m-%d}"
        print(f"{hit.rank:>4}  {hit.similarity:.4f}  {point.y:9.5f}, {point.x:10.5f}  {day}  {hit.id}")
    if geojson:
        print(f"{len(hits)} hits in {write_geojson(hits, geojson)}")
    return 0


def _kept(vectors: Vectors, sensor: str, dates, area) -> np.ndarray:
    """[N] bool: rows that sensor, dates and area leave, and that hold any signal."""
    keep = np.ones(len(vectors.values), bool)
    if sensor:
        keep &= pc.equal(vectors.rows["sensor"], sensor).to_numpy()
    if dates:
        first, last = _days(dates)
        time = pd.DatetimeIndex(vectors.rows["time"].to_pandas())
        time = time.tz_localize("UTC") if time.tz is None else time.tz_convert("UTC")
        keep &= np.asarray((time >= first) & (time < last + pd.Timedelta(days=1)))
    if area is not None:
        from clay_lib.archives import parse_area

        shape = parse_area(area)
        shapely.prepare(shape)
        near = np.flatnonzero(keep & shapely.intersects(shape, shapely.box(*vectors.bounds)))
        keep[:] = False
        keep[near] = shapely.intersects(shape, vectors.shapes(near))
    if not keep.any():
        raise ContractError(
            "sensor, dates, area",
            found=f"none of {len(keep)} rows fits: sensor {sensor or 'any'}, dates {dates or 'any'}, "
            f"area {'any' if area is None else 'given'}",
            expected="a choice that leaves some rows",
            cause=f"the table holds {', '.join(pc.unique(vectors.rows['sensor']).to_pylist())}",
        )
    return keep


def _days(dates) -> tuple[pd.Timestamp, pd.Timestamp]:
    try:
        first, *rest = str(dates).split("/") if isinstance(dates, str) else list(dates)
        first, last = (pd.Timestamp(v) for v in (first, rest[0] if rest else first))
        first, last = (v.tz_localize("UTC") if v.tz is None else v.tz_convert("UTC") for v in (first, last))
    except (ValueError, TypeError) as error:
        raise ContractError(
            "dates", found=repr(dates), expected='"2023-06-01/2023-08-31" or a pair of days', cause=str(error)
        ) from None
    return first.normalize(), last.normalize()


def _example(vectors: Vectors, example: Example, keep: np.ndarray) -> tuple[np.ndarray, int | None]:
    """(vector [D] of length one, row or None) of a place, an id or a vector."""
    if isinstance(example, str):
        known = np.flatnonzero(pc.equal(vectors.rows["id"], example).to_numpy())
        if not len(known):
            return _example(vectors, _point(example), keep)
        row = int(known[0])
    else:
        numbers = np.asarray(example, np.float64)
        if numbers.shape == (vectors.values.shape[1],):
            return unit(numbers, "vector"), None
        if numbers.shape != (2,):
            raise ContractError(
                "example",
                found=f"shape {numbers.shape}",
                expected=f"(lat, lon), an id, or a vector of {vectors.values.shape[1]} numbers",
                cause="a vector of another model",
            )
        row = _row_at(vectors, *numbers, keep)
    return unit(vectors.values[row].astype(np.float64), f"vector of {vectors.rows['id'][row]}"), row


def _point(text: str) -> tuple[float, float]:
    try:
        lat, lon = (float(part) for part in text.split(","))
    except ValueError:
        raise ContractError(
            "place", found=repr(text), expected='"lat,lon" in degrees or the id of a row', cause="no row has this id"
        ) from None
    return lat, lon


def _row_at(vectors: Vectors, lat: float, lon: float, keep: np.ndarray) -> int:
    over = vectors.over(lat, lon)
    if not len(over):
        edges = (*vectors.bounds[:2].min(axis=1), *vectors.bounds[2:].max(axis=1))
        box = ", ".join(f"{v:.4f}" for v in edges)
        raise ContractError(
            "place",
            found=f"lat {lat:g}, lon {lon:g}",
            expected=f"a place where something was embedded: within west, south, east, north {box}",
            cause="outside of the area, where no data was, or longitude handed in before latitude",
        )
    far = np.hypot(*(vectors.middles[over] - (lat, lon)).T).round(9)
    late = vectors.rows["time"].take(over).to_numpy().astype("datetime64[us]").astype(float)
    return int(over[np.lexsort((-late, far, ~keep[over]))[0]])


def _leave_out(vectors: Vectors, keep: np.ndarray, rows: list[int], apart: float | None) -> None:
    """Takes the examples' own places, and what lies nearer than `apart` metres to them, out of keep."""
    if apart is None:
        return
    for row in rows:
        lat, lon = vectors.middles[row]
        keep[vectors.over(lat, lon)] = False
        if apart > 0:
            keep &= _metres(vectors.middles, lat, lon) >= apart


def _metres(middles: np.ndarray, lat: float, lon: float) -> np.ndarray:
    """Great-circle distances [N] of middles [N, 2] (haversine)."""
    phi, here = np.radians(middles[:, 0]), np.radians(lat)
    half = np.sin((phi - here) / 2) ** 2 + np.cos(phi) * np.cos(here) * np.sin(np.radians(middles[:, 1] - lon) / 2) ** 2
    return 2 * EARTH_RADIUS * np.arcsin(np.sqrt(half.clip(0, 1)))


def _hits(vectors: Vectors, order: np.ndarray, similarity: np.ndarray) -> gpd.GeoDataFrame:
    rows = vectors.rows.take(order)
    told = {
        "rank": np.arange(1, len(order) + 1),
        "id": rows["id"].to_pylist(),
        "similarity": similarity,
        "time": pd.DatetimeIndex(rows["time"].to_pandas()),
        "sensor": rows["sensor"].to_pylist(),
    }
    return gpd.GeoDataFrame(told, geometry=shapely.from_wkb(rows["geometry"].to_numpy()), crs="EPSG:4326")
