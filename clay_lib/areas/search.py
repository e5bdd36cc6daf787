"""Search: where else is it like here? Cosine neighbours of a place among the vectors that `clay embed` left.

A direction in the space of vectors is all that is asked for: the vector of a place, or the mean of several minus half the
mean of those that are not meant (Rocchio, 1971).
"""

from __future__ import annotations

import re
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

from clay_lib.areas.vectors import parts_of, read_part
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write

BLOCK = 32_768  # rows compared at once: what is copied or made float stays small however long the table is
ROUNDING = 2e-6  # of usearch's single-precision cosines


def nearest(
    values: np.ndarray, query: np.ndarray, k: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [k], cosines [k] float64), best first: the k rows of values [N, D] nearest to query [D], exactly.

    keep [N] bool: rows that may be hits. usearch compares in the table's own type, for which the query is rounded; the
    best are then compared again in float64, and more are asked for until what rounding could hide is ruled out.
    """
    from usearch.index import search as usearch_search

    query = unit(np.asarray(query, np.float64), "query")
    rounded, slack = _as_stored(query, values.dtype)
    rows, scores = np.empty(0, int), np.empty(0)
    for start in range(0, len(values), BLOCK):
        block, at = values[start : start + BLOCK], np.arange(start, min(start + BLOCK, len(values)))
        if keep is not None and not keep[at].all():
            block, at = block[keep[at]], at[keep[at]]
        count = min(len(block), 4 * k + 16)
        while count:
            found = usearch_search(block, rounded, count, exact=True)
            most = 1 - np.asarray(found.distances, np.float64) + slack  # what their true cosines may be, at most
            floor = scores[-1] if len(rows) == k else -np.inf
            best = np.asarray(found.keys, int)[most >= floor]
            merged = _best(np.append(rows, at[best]), np.append(scores, _cosines(block[best], query)), k)
            if count == len(block) or (len(merged[0]) == k and merged[1][-1] > most[-1]):  # none beyond is nearer
                rows, scores = merged
                break
            count = min(len(block), 4 * count)
    return rows, scores


def unit(vector: np.ndarray, name: str) -> np.ndarray:
    length = np.linalg.norm(vector)
    if not (np.isfinite(length) and length > 0):
        raise ContractError(
            name,
            "zeros only" if length == 0 else "NaN or infinity",
            "a vector with a direction",
            "a tile without data, or positive and negative examples that cancel",
        )
    return vector / length


def _as_stored(query: np.ndarray, dtype) -> tuple[np.ndarray, float]:
    """(the query in the table's type, how far a cosine with it may be from one with the query itself)."""
    grown = query / np.abs(query).max() * (127 if dtype == np.int8 else 1)
    rounded = (np.rint(grown) if dtype == np.int8 else grown).astype(dtype)
    there = rounded.astype(np.float64)
    return rounded, float(np.linalg.norm(there / np.linalg.norm(there) - query)) + ROUNDING


def _cosines(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """[n] cosines of rows [n, D] with a query of length one; -inf where a row is all zero."""
    wide = values.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1))
    return np.where(lengths > 0, (wide * query).sum(axis=1) / np.where(lengths > 0, lengths, 1), -np.inf)


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    known = scores > -np.inf
    rows, scores = rows[known], scores[known]
    order = np.lexsort((rows, -scores.round(12)))[:k]
    return rows[order], scores[order]


# ---- The vectors of an area opened for search: places beside the stored int8 or float16 numbers, read onc ----

KEPT, ONE_ONLY = ["id", "geometry", "time", "sensor"], ["model", "weights", "configuration"]


@dataclass(frozen=True, eq=False)
class Vectors:
    """A table of embeddings opened for search, its vectors as they are stored."""

    rows: pa.Table  # id, geometry (WKB), time, sensor
    values: np.ndarray  # [N, D] int8 or float16; a row's scale is left out, since a cosine does not know it
    bounds: np.ndarray  # [4, N] west, south, east, north of the outlines, degrees
    middles: np.ndarray  # [N, 2] lat, lon

    def over(self, lat: float, lon: float) -> np.ndarray:
        """Rows whose outline holds a point."""
        west, south, east, north = self.bounds
        near = np.flatnonzero((west <= lon) & (lon <= east))
        near = near[(south[near] <= lat) & (lat <= north[near])]
        return near[shapely.intersects_xy(self.shapes(near), lon, lat)] if len(near) else near

    def shapes(self, rows: np.ndarray) -> np.ndarray:
        return shapely.from_wkb(self.rows["geometry"].take(rows).to_numpy())


def open_vectors(source: str | Path | pa.Table, *, column: str = "vector", configuration: str = "") -> Vectors:
    """The vectors below a folder of `embed_area`, of one GeoParquet file or of an Arrow table, read once for many searches.

    column: "vector" or "patch_mean". configuration: the one to take where a folder holds several.
    Memory: N * D bytes of int8 and some 200 a row; never a float32 copy.
    """
    try:
        return _opened(_dataset(source), source, column, configuration)
    except (pa.ArrowInvalid, OSError):
        for part in [] if isinstance(source, pa.Table) else _parts(Path(source)):
            read_part(part)  # names the damaged one
        raise


def _opened(data: ds.Dataset, source, column: str, configuration: str) -> Vectors:
    asked = _needed(data.schema, column, configuration)
    total = data.count_rows(filter=asked)
    if not total:
        raise ContractError(
            "vectors",
            f"no rows{f' of configuration {configuration}' if configuration else ''} in {_name(source)}",
            "a folder that `clay embed` has filled",
            "the job has not come that far, or another folder was meant",
        )
    kind = data.schema.field(column).type
    values = np.empty((total, kind.list_size), kind.value_type.to_pandas_dtype())
    bounds, middles = np.empty((4, total)), np.empty((total, 2))
    names = ["sensor", *(name for name in ONE_ONLY if name in data.schema.names)]
    kinds, parts, at = set(), [], 0
    for batch in data.to_batches(columns=[*dict.fromkeys([*KEPT, *names, column])], filter=asked):
        here = slice(at, at + len(batch))
        values[here] = _stored(batch, column)
        bounds[:, here], middles[here] = _places(batch.column("geometry"))
        kinds.update(_kinds(batch.select(names)))
        parts.append(batch.select(KEPT))
        at += len(batch)
    _refuse_mixtures(kinds, names, source)
    rows = pa.Table.from_batches(parts).combine_chunks()  # picking from many chunks is slow
    return Vectors(rows, values, bounds, middles)


def _name(source) -> str:
    return "the table" if isinstance(source, pa.Table) else str(source)


def _dataset(source) -> ds.Dataset:
    if isinstance(source, pa.Table):
        return ds.InMemoryDataset(source)
    path = Path(source)
    parts = _parts(path)
    if not parts:
        raise ContractError(
            "vectors",
            f"no GeoParquet in {path}" if path.exists() else f"no such folder: {path}",
            "a folder that `clay embed` has filled, or one GeoParquet file",
            "a misspelt path, or a job that has written nothing yet",
        )
    return ds.dataset([str(part) for part in parts], format="parquet")


def _parts(path: Path) -> list[Path]:
    return [path] if path.is_file() else parts_of(path)


def _needed(schema: pa.Schema, column: str, configuration: str) -> pc.Expression | None:
    """The filter of rows, after a look at the columns."""
    missing = [name for name in (*KEPT, column) if name not in schema.names]
    if missing or not pa.types.is_fixed_size_list(schema.field(column).type):
        raise ContractError(
            "columns",
            f"{schema.names}",
            f"{', '.join(missing)} too" if missing else f"{column} as a list of fixed size",
            "a GeoParquet that `clay embed` has not written",
        )
    return pc.field("configuration") == configuration if configuration else None


def _stored(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """[n, D] view of a fixed-size list column."""
    column = batch.column(name)
    flat = column.flatten()  # without the rows that are null
    values = flat.to_numpy(zero_copy_only=flat.null_count == 0).reshape(-1, column.type.list_size)
    broken = np.isnan(values).any(axis=1) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    if column.null_count or broken.any():
        row = np.flatnonzero(column.is_null().to_numpy(False) if column.null_count else broken)[0]
        raise ContractError(
            name,
            f"{'no vector' if column.null_count else 'NaN'} in row {batch.column('id')[int(row)]}",
            "finite numbers in every row",
            "a tile without data that was written all the same, or a broken file",
        )
    return values


def _places(outlines: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(bounds [4, n], middles [n, 2] as lat, lon) of WKB outlines; one cut at the date line has its first part's middle."""
    shapes = shapely.from_wkb(outlines.to_numpy(zero_copy_only=False))
    west, south, east, north = shapely.bounds(shapely.get_geometry(shapes, 0)).T
    return shapely.bounds(shapes).T, np.stack([(south + north) / 2, (west + east) / 2], axis=1)


def _kinds(batch: pa.RecordBatch) -> set[tuple]:
    """The different rows of a batch of few columns; most files have one."""
    alone = [pc.unique(column) for column in batch.columns]
    if all(len(values) == 1 for values in alone):
        return {tuple(values[0].as_py() for values in alone)}
    told = pa.Table.from_batches([batch]).group_by(batch.schema.names).aggregate([])
    return {tuple(row[name] for name in batch.schema.names) for row in told.to_pylist()}


def _refuse_mixtures(kinds: set[tuple], names: list[str], source) -> None:
    """Sensors may stand side by side, each with its configuration; models and weights may not."""
    for name in names[:0:-1]:
        by_sensor = name == "configuration"
        found = {(kind[0] if by_sensor else "", kind[names.index(name)]) for kind in kinds}
        several = [value for sensor, value in found if sum(other == sensor for other, _ in found) > 1]
        if several:
            raise ContractError(
                name,
                f"{len(several)} in {_name(source)}: {', '.join(sorted(map(str, several))[:4])}",
                "one: vectors of different models or settings cannot be compared",
                "several jobs wrote into this folder; choose one with configuration= (OUT/configuration-*.json "
                "tells them apart)",
            )


# ---- Search: where else is it like here? Cosine neighbours of a place among the vectors that `clay embed` ----

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
        raise ContractError("k", k, "1, 2, 3, ...", "how many places to look for")
    vectors = source if isinstance(source, Vectors) else open_vectors(source)
    keep = _kept(vectors, sensor, dates, area)
    wanted = [_example(vectors, e, keep) for e in ([] if like is None else [like], positives) for e in e]
    unwanted = [_example(vectors, e, keep) for e in negatives]
    if not wanted:
        raise ContractError("like", "nothing", "a place, an id or a vector", "only negative examples were given")
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
    return atomic_write(path, lambda file: told.to_file(file, **options))


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
        from clay_lib.areas.archives import parse_area

        shape = parse_area(area)
        shapely.prepare(shape)
        near = np.flatnonzero(keep & shapely.intersects(shape, shapely.box(*vectors.bounds)))
        keep[:] = False
        keep[near] = shapely.intersects(shape, vectors.shapes(near))
    if not keep.any():
        raise ContractError(
            "sensor, dates, area",
            f"none of {len(keep)} rows fits: sensor {sensor or 'any'}, dates {dates or 'any'}, "
            f"area {'any' if area is None else 'given'}",
            "a choice that leaves some rows",
            f"the table holds {', '.join(pc.unique(vectors.rows['sensor']).to_pylist())}",
        )
    return keep


def _days(dates) -> tuple[pd.Timestamp, pd.Timestamp]:
    try:
        first, *rest = str(dates).split("/") if isinstance(dates, str) else list(dates)
        first, last = (pd.Timestamp(v) for v in (first, rest[0] if rest else first))
        first, last = (v.tz_localize("UTC") if v.tz is None else v.tz_convert("UTC") for v in (first, last))
    except (ValueError, TypeError) as error:
        raise ContractError("dates", repr(dates), '"2023-06-01/2023-08-31" or a pair of days', str(error)) from None
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
                f"shape {numbers.shape}",
                f"(lat, lon), an id, or a vector of {vectors.values.shape[1]} numbers",
                "a vector of another model",
            )
        row = _row_at(vectors, *numbers, keep)
    return unit(vectors.values[row].astype(np.float64), f"vector of {vectors.rows['id'][row]}"), row


def _point(text: str) -> tuple[float, float]:
    try:
        lat, lon = (float(part) for part in text.split(","))
    except ValueError:
        raise ContractError(
            "place", repr(text), '"lat,lon" in degrees or the id of a row', "no row has this id"
        ) from None
    return lat, lon


def _row_at(vectors: Vectors, lat: float, lon: float, keep: np.ndarray) -> int:
    over = vectors.over(lat, lon)
    if not len(over):
        edges = (*vectors.bounds[:2].min(axis=1), *vectors.bounds[2:].max(axis=1))
        box = ", ".join(f"{v:.4f}" for v in edges)
        raise ContractError(
            "place",
            f"lat {lat:g}, lon {lon:g}",
            f"a place where something was embedded: within west, south, east, north {box}",
            "outside of the area, where no data was, or longitude handed in before latitude",
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
