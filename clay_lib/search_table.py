"""The vectors of an area opened for search: places beside the stored int8 or float16 numbers, read once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import shapely

from clay_lib.contract import ContractError
from clay_lib.vectors import parts_of, read_part

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
            found=f"no rows{f' of configuration {configuration}' if configuration else ''} in {_name(source)}",
            expected="a folder that `clay embed` has filled",
            cause="the job has not come that far, or another folder was meant",
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
            found=f"no GeoParquet in {path}" if path.exists() else f"no such folder: {path}",
            expected="a folder that `clay embed` has filled, or one GeoParquet file",
            cause="a misspelt path, or a job that has written nothing yet",
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
            found=f"{schema.names}",
            expected=f"{', '.join(missing)} too" if missing else f"{column} as a list of fixed size",
            cause="a GeoParquet that `clay embed` has not written",
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
            found=f"{'no vector' if column.null_count else 'NaN'} in row {batch.column('id')[int(row)]}",
            expected="finite numbers in every row",
            cause="a tile without data that was written all the same, or a broken file",
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
                found=f"{len(several)} in {_name(source)}: {', '.join(sorted(map(str, several))[:4])}",
                expected="one: vectors of different models or settings cannot be compared",
                cause="several jobs wrote into this folder; choose one with configuration= (OUT/configuration-*.json "
                "tells them apart)",
            )
