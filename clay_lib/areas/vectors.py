"""Tile embeddings as GeoParquet, one row per tile and date, in parts that are appended and never rewritten.

    OUT/vectors/SENSOR/run=CONFIGURATION/year=YEAR/part-*.parquet      year=0: unknown date

| column | type | |
| --- | --- | --- |
| id | string | tile, sensor and day, for local files also a hash: 32633-10m-256-e0192-n2167_sentinel-2-l2a_20230610 |
| tile | string | the tile's id on the fixed grid (tiles.py) |
| geometry | WKB | the tile's outline in WGS84 degrees (GeoParquet 1.1; bbox is its covering) |
| time | timestamp, UTC | of the acquisition; for a composite, the mean day of the pixels used; null: unknown |
| sensor, gsd | string, float | gsd: meters per pixel |
| vector | fixed-size list of float16 or int8 [D] | class token of the tile; for int8 times `scale` |
| scale | float | only for int8: the largest absolute number of the vector over 127 |
| patch_mean (, patch_mean_scale) | as vector | mean of the valid patches' vectors |
| valid_share | float | share of valid pixel values in the tile, 0 to 1 |
| cloud_cover | float | percent, of the source items; null: unknown |
| clear_count, composite | float, string | composites only: clear observations per pixel, on average; how they were made |
| items | list of string | ids of the source items |
| model, weights, configuration | string | name; hashes of the encoder's tensors and of all settings, 16 hex digits |

A part's footer also lists the ids of tiles without valid pixels, so that they are not read again.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import CRS

from clay_lib.areas.tiles import crs_name, project
from clay_lib.errors import ContractError
from clay_lib.evaluation.components import fit_components
from clay_lib.files import PARTIAL, atomic_write

STORES = {"float16": pa.float16(), "int8": pa.int8()}
SCALES = {"vector": "scale", "patch_mean": "patch_mean_scale"}  # columns that accompany int8 vectors
EMPTY = b"clay:empty"  # key in the footer of a JSON list of ids
PRECISION = b"clay:precision"  # key in the footer of the precision that the vectors were computed in
SIDES = ("xmin", "ymin", "xmax", "ymax")


def schema(dim: int, store: str = "float16", composite: bool = False) -> pa.Schema:
    """Columns and GeoParquet metadata of a part. dim: D, length of a vector. composite: with the columns of composites."""
    if store not in STORES:
        raise ContractError("store", repr(store), f"one of {list(STORES)}", "an unsupported number format")
    text, real = pa.string(), pa.float32()
    columns = [("id", text), ("tile", text), ("geometry", pa.binary())]
    columns += [("bbox", pa.struct([(side, pa.float64()) for side in SIDES]))]
    columns += [("time", pa.timestamp("us", tz="UTC")), ("sensor", text), ("gsd", real)]
    for name, scale in SCALES.items():
        columns += [(name, pa.list_(STORES[store], dim))] + [(scale, real)] * (store == "int8")
    columns += [("valid_share", real), ("cloud_cover", real), ("items", pa.list_(text))]
    columns += [("clear_count", real), ("composite", text)] * composite
    columns += [("model", text), ("weights", text), ("configuration", text)]
    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Polygon", "MultiPolygon"],
        "crs": CRS.from_epsg(4326).to_json_dict(),
        "edges": "planar",
        "orientation": "counterclockwise",
        "covering": {"bbox": {side: ["bbox", side] for side in SIDES}},
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    return pa.schema(columns, metadata={b"geo": json.dumps(geo).encode()})


# ---- writing ----


def write_part(
    out: Path,
    rows: Sequence[dict],
    empty: Iterable[str],
    shared: dict,
    dim: int,
    store: str,
    precision: str = "exact",
) -> list[Path]:
    """Publish rows, {column: value} with shapely geometries and float32 vectors, as one file per year.

    shared: columns with the same value in all rows: sensor, gsd, model, weights, configuration and, of composites only,
    composite. empty: ids of tiles without a row. The file name is a hash of the ids, so that writing the same rows again
    gives the same file.
    """
    empty = sorted(empty)
    years: dict[int, list[dict]] = {0: []} if empty and not rows else {}
    for row in sorted(rows, key=lambda row: row["id"]):
        years.setdefault(row["time"].year if row["time"] else 0, []).append(row)
    paths = []
    for year, in_year in sorted(years.items()):
        table = _table(in_year, shared, dim, store)
        footer = {EMPTY: json.dumps(empty).encode(), PRECISION: precision.encode()}
        table = table.replace_schema_metadata(table.schema.metadata | footer)
        digest = hashlib.sha256("\n".join([*table["id"].to_pylist(), "", *empty]).encode()).hexdigest()[:16]
        path = run_folder(out, shared["sensor"], shared["configuration"]) / f"year={year}" / f"part-{digest}.parquet"
        paths += [atomic_write(path, lambda partial, table=table: pq.write_table(table, partial, compression="zstd"))]
        empty = []  # listed once, in the first of the files
    return paths


def _table(rows: Sequence[dict], shared: dict, dim: int, store: str) -> pa.Table:
    shapes = [shapely.orient_polygons(row["geometry"]) for row in rows]
    columns: dict[str, object] = {name: [value] * len(rows) for name, value in shared.items()}
    own = ["id", "tile", "time", "items", "valid_share", "cloud_cover"] + ["clear_count"] * ("composite" in shared)
    columns |= {name: [row[name] for row in rows] for name in own}
    columns["geometry"] = [shapely.to_wkb(shape) for shape in shapes]
    columns["bbox"] = [dict(zip(SIDES, shape.bounds, strict=True)) for shape in shapes]
    for name, scale in SCALES.items():
        values = np.stack([row[name] for row in rows]) if rows else np.empty((0, dim), np.float32)
        if store == "int8":
            values, columns[scale] = to_int8(values)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(store).reshape(-1)), dim)
    fields = schema(dim, store, "composite" in shared)
    return pa.table({name: columns[name] for name in fields.names}, schema=fields)


# ---- reading ----


def run_folder(out: str | Path, sensor: str, configuration: str) -> Path:
    return Path(out) / "vectors" / sensor / f"run={configuration}"


def part_files(folder: str | Path) -> list[Path]:
    """All finished parts below a folder."""
    return sorted(path for path in Path(folder).rglob("*.parquet") if not path.name.startswith(PARTIAL))


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One part as a table; ContractError with its path if it is damaged."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ContractError("vectors", f"{path}: {' '.join(str(error).split())}", "a complete GeoParquet file",
                            "a truncated copy: copy it again, or delete the file and repeat the `clay embed` command, "
                            "which embeds its tiles again") from None  # fmt: skip


def done_ids(out: str | Path, sensor: str, configuration: str) -> tuple[set[str], set[str]]:
    """(ids with a row, ids of tiles without valid pixels)."""
    rows, empty = set(), set()
    for path in part_files(run_folder(out, sensor, configuration)):
        part = read_part(path, ["id"])
        rows.update(part["id"].to_pylist())
        empty.update(json.loads(part.schema.metadata.get(EMPTY, b"[]")))
    return rows, empty


def runs_of(out: str | Path) -> dict[str, list[Path]]:
    """{configuration: its parts} below OUT."""
    runs: dict[str, list[Path]] = {}
    for path in part_files(Path(out) / "vectors"):
        runs.setdefault(path.parents[1].name.removeprefix("run="), []).append(path)
    return runs


def read_vectors(out: str | Path, *, configuration: str | None = None) -> pa.Table:
    """All rows of one configuration below OUT, sorted by id; vectors of different ones are not comparable."""
    runs = runs_of(out)
    if configuration is None and len(runs) == 1:
        configuration = next(iter(runs))
    if configuration not in runs:
        found = configuration or f"{len(runs)} under {out}: {', '.join(sorted(runs)) or 'none'}"
        cause = "another folder, or a run that was stopped before its first part"
        if runs:
            cause = "the folder holds several configurations (see OUT/configuration-*.json): choose with configuration="
        raise ContractError("configuration", found, "one that `clay embed` has written there", cause)
    tables = [read_part(path) for path in runs[configuration]]
    table = pa.concat_tables([t.replace_schema_metadata({b"geo": t.schema.metadata[b"geo"]}) for t in tables])
    return table.sort_by("id")


def as_matrix(table: pa.Table, name: str = "vector") -> np.ndarray:
    """A column of vectors as float32 [N, D], int8 multiplied by its scale."""
    column = table[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    scale = SCALES.get(name)
    return from_int8(values, table[scale].to_numpy()) if scale in table.column_names else values.astype(np.float32)


def read_frame(out: str | Path, *, configuration: str | None = None):
    """`read_vectors` as a geopandas GeoDataFrame with float32 vectors [D] in its cells."""
    import geopandas

    table = read_vectors(out, configuration=configuration)
    vectors = {name: list(as_matrix(table, name)) for name in SCALES}
    others = [name for name in table.column_names if name not in (*SCALES, *SCALES.values(), "bbox")]
    frame = table.select(others).to_pandas().assign(**vectors)
    return geopandas.GeoDataFrame(frame, geometry=geopandas.GeoSeries.from_wkb(frame["geometry"]), crs="EPSG:4326")


def write_in_crs(out: str | Path, configuration: str, crs: str) -> Path:
    """All rows of a configuration as one GeoParquet file with outlines in another CRS: OUT/tiles-CONFIGURATION-CRS.parquet.

    Part by part, in a constant memory.
    """
    parts = runs_of(out)[configuration]
    columns = pq.read_schema(parts[0])
    geo = json.loads(columns.metadata[b"geo"])
    geo["columns"]["geometry"]["crs"] = CRS(crs).to_json_dict()
    columns = columns.with_metadata({b"geo": json.dumps(geo).encode()})

    def projected(part: pa.Table) -> pa.Table:
        shapes = project(shapely.from_wkb(part["geometry"].to_numpy()), "EPSG:4326", crs)
        boxes = [dict(zip(SIDES, box, strict=True)) for box in shapely.bounds(shapes).tolist()]
        changed = {"geometry": pa.array(shapely.to_wkb(shapes)), "bbox": pa.array(boxes, columns.field("bbox").type)}
        return pa.table({name: changed.get(name, part[name]) for name in columns.names}, schema=columns)

    def write(partial: Path) -> None:
        with pq.ParquetWriter(partial, columns, compression="zstd") as file:
            for path in parts:
                file.write_table(projected(read_part(path)))

    return atomic_write(Path(out) / f"tiles-{configuration}-{crs_name(crs)}.parquet", write)


def write_combined(out: str | Path, configuration: str, ids: Sequence[str], how: str) -> Path:
    """The vectors of several dates or periods as one a tile: OUT/combined-HOW-CONFIGURATION.parquet, float16.

    ids: the rows to combine. how: mean, over the dates that a tile has; or concat, [T D], the earliest first, of the
    tiles that have all dates. The day or period is the third part of an id. time: the mean.
    """
    frame = read_frame(out, configuration=configuration)
    frame = frame[frame["id"].isin({*ids})].assign(date=frame["id"].str.split("_").str[2])
    dates, rows = sorted(frame["date"].unique()), []
    for tile, group in frame.sort_values(["date", "id"]).groupby("tile"):
        if how == "concat" and list(group["date"]) != dates:
            continue
        mixed = {name: np.stack(group[name]) for name in SCALES}
        mixed = {name: v.mean(axis=0) if how == "mean" else v.reshape(-1) for name, v in mixed.items()}
        first, known = group.iloc[0], group["time"].notna().all()
        rows.append({"id": f"{tile}_{first['sensor']}_{how}", "tile": tile, "geometry": first["geometry"], **mixed,
                     "time": group["time"].mean().to_pydatetime() if known else None, "items": sum(map(list, group["items"]), []),
                     **{name: group[name].mean() for name in ("valid_share", "cloud_cover", "clear_count") if name in group}})  # fmt: skip
    if not rows:
        found = f"no tile with all of {', '.join(dates)}" if dates else "no rows"
        raise ContractError("combine", found, "vectors of every date", "clouds: take the mean, or longer periods")
    names = ("sensor", "gsd", "model", "weights", "configuration", "composite")
    shared = {name: first[name] for name in names if name in first}
    table = _table(rows, shared, len(rows[0]["vector"]), "float16")
    print(f"{how} of {', '.join(dates)}: {len(rows)} of {frame['tile'].nunique()} tiles")
    return atomic_write(Path(out) / f"combined-{how}-{configuration}.parquet", lambda part: pq.write_table(table, part))


# ---- compression ----


def to_int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, D] -> (int8 [N, D], scale [N]) with vectors = int8 * scale to within half a scale."""
    scale = np.abs(vectors).max(axis=1).astype(np.float32) / 127
    scale[scale == 0] = 1
    return np.rint(vectors / scale[:, None]).astype(np.int8), scale


def from_int8(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 [N, D] and scale [N] of `to_int8` -> float32 [N, D]."""
    return values.astype(np.float32) * np.asarray(scale, np.float32)[:, None]


@dataclass(frozen=True, eq=False)
class Compressed:
    """Vectors after compression, and their size."""

    vectors: np.ndarray  # [N, D] float32, decompressed
    bytes: int  # per vector


def shrink(vectors: np.ndarray, form: str, *, fit_on: np.ndarray | None = None) -> Compressed:
    """Compress and decompress vectors [N, D], and count the bytes per vector on disk.

    form: float32, float16, int8 (one scale per vector), PCA-K (the first K principal components, float32), PCA-K
    float16 or PCA-K int8. The components, stored once for all vectors, are not counted.
    fit_on: [M, D], vectors to fit the components on, by default `vectors`; use training vectors where a score is
    reported. Projections are mapped back to D numbers: distances are the same, and a probe that standardizes its
    features does not amplify the weakest components, which are noise.
    """
    match = re.fullmatch(r"(?:PCA-(\d+))? ?(float32|float16|int8)?", form)
    vectors = np.asarray(vectors, np.float32)
    fit_on = vectors if fit_on is None else fit_on
    dim = int(match[1]) if match and match[1] else vectors.shape[1]
    if not form or not match or not 1 <= dim <= vectors.shape[1] or (match[1] and dim > len(fit_on)):
        most = min(vectors.shape[1], len(fit_on))
        raise ContractError("form", form, f"float32, float16, int8, PCA-K, PCA-K float16 or PCA-K int8, K up to {most}",
                            "more components than numbers or vectors")  # fmt: skip
    kind, pca = match[2] or "float32", fit_components(fit_on, dim) if match[1] else None
    values = vectors if pca is None else pca(vectors)
    values = from_int8(*to_int8(values)) if kind == "int8" else values.astype(kind).astype(np.float32)
    size = dim * np.dtype(kind).itemsize + (4 if kind == "int8" else 0)  # int8: and a float32 scale
    return Compressed(values if pca is None else pca.restore(values), size)
