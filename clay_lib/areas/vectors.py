"""Vectors: chip embeddings as GeoParquet, one row a tile and date, appended in whole parts and never rewritten.

    OUT/vectors/SENSOR/run=CONFIGURATION/year=YEAR/part-*.parquet      year=0: the date is not known

| column | type | |
| --- | --- | --- |
| id | string | tile, sensor and day, of local files a stamp: 32633-10m-256-e0192-n2167_sentinel-2-l2a_20230610 |
| tile | string | the tile's id on the fixed grid (tiles.py) |
| geometry | WKB | the tile's outline in WGS84 degrees (GeoParquet 1.1; bbox is its covering) |
| time | timestamp, UTC | when the look was taken; null: unknown |
| sensor, gsd | string, float | metres per pixel |
| vector | fixed-size list of float16 or int8 [D] | class token of the tile; for int8 times `scale` |
| scale | float | only for int8: the largest absolute number of the vector over 127 |
| patch_mean (, patch_mean_scale) | as vector | mean of the valid patches' vectors |
| valid_share | float | share of the tile's numbers that were measured, 0 to 1 |
| cloud_cover | float | percent, of the source items; null: unknown |
| items | list of string | ids of the source items |
| model, weights, configuration | string | name; 16 hex digits of the encoder's tensors; 16 of all that shapes a vector |

A part's footer also lists the ids that were looked at and had nothing to embed, so that they are done as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clay_lib.errors import ContractError
from clay_lib.files import PARTIAL, atomic_write

STORES = ("float16", "int8")
EMPTY = b"clay:empty"  # key of the footer: a JSON list of ids


def schema(dim: int, store: str = "float16") -> pa.Schema:
    """Of the rows, with GeoParquet's metadata. dim: numbers of a vector."""
    if store not in STORES:
        raise ContractError("store", repr(store), f"one of {STORES}", "another kind of number")
    kind = pa.list_(pa.float16() if store == "float16" else pa.int8(), dim)
    scales = {"vector": [], "patch_mean": []}
    if store == "int8":
        scales = {"vector": [("scale", pa.float32())], "patch_mean": [("patch_mean_scale", pa.float32())]}
    text = pa.string()
    corners = pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])
    columns = [("id", text), ("tile", text), ("geometry", pa.binary()), ("bbox", corners)]
    columns += [("time", pa.timestamp("us", tz="UTC")), ("sensor", text), ("gsd", pa.float32())]
    columns += [("vector", kind), *scales["vector"], ("patch_mean", kind), *scales["patch_mean"]]
    columns += [("valid_share", pa.float32()), ("cloud_cover", pa.float32()), ("items", pa.list_(text))]
    columns += [("model", text), ("weights", text), ("configuration", text)]
    return pa.schema(columns, metadata={b"geo": json.dumps(_geo()).encode()})


def _geo() -> dict:
    from pyproj import CRS

    covering = {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}}
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon", "MultiPolygon"],
        "crs": CRS.from_epsg(4326).to_json_dict(),
        "edges": "planar",
        "orientation": "counterclockwise",
        "covering": covering,
    }
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def write_part(out: Path, rows: Sequence[dict], empty: Iterable[str], about: dict, dim: int, store: str) -> list[Path]:
    """Publish rows, {column: value} with geometry as shapely and vectors float32, as whole files, one a year.

    about: the columns that all rows share: sensor, gsd, model, weights, configuration. empty: ids done without a row.
    A file is named after its ids, so that the same rows written twice are one file.
    """
    empty = sorted(empty)
    years: dict[int, list[dict]] = {}
    for row in rows:
        years.setdefault(row["time"].year if row["time"] else 0, []).append(row)
    if empty and not years:
        years[0] = []
    written = []
    for k, (year, some) in enumerate(sorted(years.items())):
        table = _table(sorted(some, key=lambda row: row["id"]), about, dim, store)
        mine = empty if k == 0 else []
        table = table.replace_schema_metadata(table.schema.metadata | {EMPTY: json.dumps(mine).encode()})
        digest = hashlib.sha256("\n".join([*table["id"].to_pylist(), "", *mine]).encode()).hexdigest()[:16]
        path = run_folder(out, about["sensor"], about["configuration"]) / f"year={year}" / f"part-{digest}.parquet"
        atomic_write(path, lambda partial, table=table: pq.write_table(table, partial, compression="zstd"))
        written.append(path)
    return written


def _table(rows: Sequence[dict], about: dict, dim: int, store: str) -> pa.Table:
    import shapely

    columns: dict[str, object] = {name: [row[name] for row in rows] for name in ("id", "tile", "time", "items")}
    shapes = [shapely.orient_polygons(row["geometry"]) for row in rows]
    columns["geometry"] = [shapely.to_wkb(shape) for shape in shapes]
    columns["bbox"] = [dict(zip(("xmin", "ymin", "xmax", "ymax"), shape.bounds, strict=True)) for shape in shapes]
    for name in ("valid_share", "cloud_cover"):
        columns[name] = [row[name] for row in rows]
    wanted = schema(dim, store)
    for name, scale in (("vector", "scale"), ("patch_mean", "patch_mean_scale")):
        values = np.stack([row[name] for row in rows]) if rows else np.empty((0, dim), np.float32)
        if store == "int8":
            values, columns[scale] = to_int8(values)
        else:
            values = values.astype(np.float16)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
    columns |= {name: [value] * len(rows) for name, value in about.items()}
    arrays = [
        columns[field.name] if isinstance(columns[field.name], pa.Array) else pa.array(columns[field.name], field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(arrays, schema=wanted)


def to_int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, D] -> (int8 [N, D], scale [N]) with vectors = int8 * scale to within half a scale."""
    scale = np.abs(vectors).max(axis=1).astype(np.float32) / 127
    scale[scale == 0] = 1
    return np.rint(vectors / scale[:, None]).astype(np.int8), scale


# ---- reading ----


def run_folder(out: str | Path, sensor: str, configuration: str) -> Path:
    return Path(out) / "vectors" / sensor / f"run={configuration}"


def parts_of(folder: str | Path) -> list[Path]:
    """All whole parts below a folder."""
    return sorted(p for p in Path(folder).rglob("*.parquet") if not p.name.startswith(PARTIAL))


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One part, or a ContractError that names it."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ContractError(
            "vectors",
            f"{path}: {' '.join(str(error).split())}",
            "a whole GeoParquet file",
            "a copy that was cut short: copy it again, or delete the file and give the command of `clay embed` "
            "again, which embeds its tiles anew",
        ) from None


def done_ids(out: str | Path, sensor: str, configuration: str) -> tuple[set[str], set[str]]:
    """(ids that have a row, ids that were found to have nothing to embed)."""
    rows: set[str] = set()
    empty: set[str] = set()
    for path in parts_of(run_folder(out, sensor, configuration)):
        part = read_part(path, ["id"])
        rows.update(part["id"].to_pylist())
        empty.update(json.loads(part.schema.metadata.get(EMPTY, b"[]")))
    return rows, empty


def runs_of(out: str | Path) -> dict[str, list[Path]]:
    """{configuration: its parts} of all that lies below OUT."""
    runs: dict[str, list[Path]] = {}
    for path in parts_of(Path(out) / "vectors"):
        runs.setdefault(path.parents[1].name.removeprefix("run="), []).append(path)
    return runs


def read_vectors(
    out: str | Path, *, configuration: str | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """All rows of one configuration below OUT, sorted by id. Vectors of two are never mixed: they cannot be compared."""
    runs = runs_of(out)
    if configuration is None and len(runs) == 1:
        configuration = next(iter(runs))
    if configuration not in runs:
        raise ContractError("configuration", configuration or f"{len(runs)} under {out}: {', '.join(sorted(runs)) or 'none'}", f"one of {sorted(runs)}" if runs else "vectors that `clay embed` wrote", "this folder holds vectors of several configurations (OUT/configuration-*.json tells them apart): "
            "name one with configuration=" if runs else "another folder, or a run that was stopped before its first part")  # fmt: skip
    names = None if columns is None else [*dict.fromkeys(["id", *columns])]
    tables = [read_part(path, names) for path in runs[configuration]]
    table = pa.concat_tables([t.replace_schema_metadata({b"geo": t.schema.metadata[b"geo"]}) for t in tables])
    return table.sort_by("id")


def as_matrix(table: pa.Table, name: str = "vector") -> np.ndarray:
    """A column of vectors as float32 [N, D], int8 multiplied out."""
    column = table[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    values = column.flatten().to_numpy(zero_copy_only=False)
    values = values.reshape(len(column), column.type.list_size).astype(np.float32)
    scale = {"vector": "scale"}.get(name, f"{name}_scale")
    return values * table[scale].to_numpy()[:, None] if scale in table.column_names else values


def read_frame(out: str | Path, *, configuration: str | None = None):
    """The same as a geopandas GeoDataFrame, with vectors as float32 arrays [D] in its cells."""
    import geopandas

    table = read_vectors(out, configuration=configuration)
    vectors = {name: list(as_matrix(table, name)) for name in ("vector", "patch_mean")}
    rest = table.drop_columns([n for n in table.column_names if n in (*vectors, "scale", "patch_mean_scale", "bbox")])
    frame = rest.to_pandas()
    return geopandas.GeoDataFrame(
        frame.assign(**vectors), geometry=geopandas.GeoSeries.from_wkb(frame["geometry"]), crs="EPSG:4326"
    )


# ---- Compression: embeddings in fewer bytes, and what is left of them ----

NUMBERS = {"float32": 4, "float16": 2, "int8": 1}  # bytes of one number
SCALE = 4  # bytes: int8 keeps one float32 a vector


@dataclass(frozen=True, eq=False)
class Shrunk:
    """Vectors as they come back from a form."""

    form: str
    vectors: np.ndarray  # [N, D] float32, multiplied out
    bytes: int  # a vector


def shrink(vectors: np.ndarray, form: str, *, fit_on: np.ndarray | None = None) -> Shrunk:
    """[N, D] -> the vectors that a reader of this form gets, multiplied out to D numbers again.

    Multiplied out, since a probe that standardises the components themselves would make the weakest, which are noise,
    as loud as the strongest. Distances are the same either way.

    fit_on: [M, D], vectors that choose the principal components; by default `vectors`. They need no labels, but fit
    them on training vectors where a score is to be told.
    """
    found = re.fullmatch(r"(?:PCA-(\d+))? ?(float32|float16|int8)?", form)
    vectors = np.asarray(vectors, np.float32)
    dim = int(found[1]) if found and found[1] else vectors.shape[1]
    most = min(vectors.shape[1], len(vectors if fit_on is None else fit_on))  # there are no more components
    if not form or not found or (found[1] and not 1 <= dim <= most):
        expected = f"float32, float16, int8, PCA-K, PCA-K float16 or PCA-K int8 with K up to {most}"
        raise ContractError("form", form, expected, "more components than numbers or vectors")
    kind, axes = found[2] or "float32", None
    if found[1]:
        mean, axes = principal_axes(vectors if fit_on is None else fit_on, dim)
        vectors = (vectors - mean) @ axes.T
    back = from_int8(*to_int8(vectors)) if kind == "int8" else vectors.astype(kind).astype(np.float32)
    size = dim * NUMBERS[kind] + (SCALE if kind == "int8" else 0)
    return Shrunk(form, back if axes is None else back @ axes + mean, size)


def from_int8(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 [N, D] and scale [N], as `vectors.to_int8` made them -> float32 [N, D]."""
    return values.astype(np.float32) * np.asarray(scale, np.float32)[:, None]


def principal_axes(vectors: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and the first `dim` principal axes [dim, D] of vectors [M, D], float32; signs are fixed."""
    from sklearn.decomposition import PCA

    fitted = PCA(dim, svd_solver="full").fit(np.asarray(vectors, np.float64))
    return fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32)


def neighbours_kept(vectors: np.ndarray, small: np.ndarray, *, k: int = 10) -> np.ndarray:
    """[N] share of each vector's k nearest others, by cosine, that are among its k nearest after shrinking as well."""
    a, b = (_nearest(x, k) for x in (vectors, small))
    return (a[:, :, None] == b[:, None]).any(2).mean(1)


def _nearest(x: np.ndarray, k: int) -> np.ndarray:
    if not 1 <= k < len(x):
        raise ContractError("k", k, f"1 to {len(x) - 1}", "fewer vectors than neighbours")
    x = np.asarray(x, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    like = x @ x.T
    np.fill_diagonal(like, -np.inf)
    return np.argsort(-like, axis=1, kind="stable")[:, :k]
