"""Tables and rasters of embeddings, ours and others', as one type each.

    >>> read_embeddings("prague")  # a folder of `clay embed`, or any GeoParquet with a column of lists: Vectors
    >>> read_embeddings("alphaearth.tif", area=(14.4, 50.0, 14.5, 50.1))  # a raster: DataArray [band, y, x] with its CRS
    >>> find_similar("alphaearth.tif", (50.05, 14.45))  # search.py takes both

| embeddings | file | numbers |
| --- | --- | --- |
| ours | GeoParquet, GeoTIFF, Zarr | float16 or float32; int8 with a scale a row, on which cosines do not depend |
| Clay's published ones | GeoParquet | embeddings, date, geometry |
| Major TOM | GeoParquet | embedding, unique_id, timestamp, geometry or centre_lat and centre_lon |
| Earth Index | GeoParquet | embedding (384), id, geometry: the tile or its center |
| any other | GeoParquet | one column of lists; an outline, or a point |
| AlphaEarth (annual) | GeoTIFF or Zarr, int8, 64 bands | sign(v) (v / 127.5)^2, -128 is nodata |
| Tessera | .npy, int8 [H, W, 128], with _scales.npy [H, W] beside it | v times its pixel's scale; the grid is that of a GeoTIFF |
"""

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords  # and registers .odc
from pyproj import CRS

from clay_lib.areas.neighbors import Index, open_index
from clay_lib.areas.tiles import project, transformer
from clay_lib.areas.vectors import part_files, read_part
from clay_lib.data.rasters import open_raster
from clay_lib.errors import ContractError

ORIGIN = ["model", "weights", "configuration"]
IDS, TIMES = ("id", "unique_id", "tile_id", "item_id"), ("time", "datetime", "timestamp", "date")
NAMES = ("vector", "embedding", "embeddings")  # of the column, if several hold lists of numbers
POINTS = (("centre_lon", "centre_lat"), ("lon", "lat"), ("longitude", "latitude"))
MOST_NUMBERS = 2e9  # of a raster that is read at once
ALPHAEARTH = 64, 127.5, -128  # bands, the largest number, nodata


@dataclass(frozen=True, eq=False)
class Vectors:
    """A table of embeddings in memory, opened for search."""

    rows: pa.Table  # id, geometry (WKB, WGS84), time, sensor
    values: np.ndarray  # [N, D] as stored, without the scales of ours, on which cosines do not depend
    bounds: np.ndarray  # [4, N] west, south, east, north of the outlines, degrees
    centers: np.ndarray  # [N, 2] lat, lon
    index_file: Path | None = None  # where an index of them is kept, and
    state: str = ""  # of the files that they were read from

    @cached_property
    def index(self) -> Index:
        """For many searches among more than a million rows; built the first time."""
        return open_index(self.values, self.index_file, self.state)

    def at(self, lat: float, lon: float) -> np.ndarray:
        """Rows whose outline contains a point; of a table of points, the nearest."""
        west, south, east, north = self.bounds
        if np.array_equal(west, east):
            away = (self.centers - (lat, lon)) * (1, np.cos(np.radians(lat)))
            return np.array([np.hypot(*away.T).argmin()])
        near = np.flatnonzero((west <= lon) & (lon <= east) & (south <= lat) & (lat <= north))
        return near[shapely.intersects_xy(self.outlines(near), lon, lat)] if len(near) else near

    def outlines(self, rows: np.ndarray) -> np.ndarray:
        return shapely.from_wkb(self.rows["geometry"].take(rows).to_numpy())


def read_embeddings(source, *, column: str = "", configuration: str = "", area=None, like: str = ""):
    """A file or folder of embeddings: a table as `Vectors`, a raster as an xarray DataArray [band, y, x] float32.

    source: see above; also an Arrow table or a DataArray. column: of a table with several. area: of a raster, the part to
    read, as in `archives.parse_area`. like: of arrays (.npy), a GeoTIFF of the same grid; by default the one beside it.
    A raster has NaN where nothing is known, and its grid in `.odc.geobox`. Raises ContractError for anything else.
    """
    if isinstance(source, Vectors):
        return source
    if isinstance(source, xr.Dataset | xr.DataArray):
        return _from_xarray(source, area)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix == ".npy":
            return _from_arrays(path, like, area)
        if path.is_dir() and (path.suffix == ".zarr" or (path / ".zgroup").is_file() or (path / "zarr.json").is_file()):
            return _from_xarray(xr.open_zarr(path, chunks=None), area)
        if path.is_file() and path.suffix.lower() not in (".parquet", ".geoparquet", ".gpq", ".pq"):
            return _from_raster(path, area)
    return _from_table(source, column, configuration)


def open_vectors(source, *, column: str = "", configuration: str = "", area=None) -> Vectors:
    """Embeddings of `read_embeddings` as one table for many searches, of a raster with a row a cell.

    column: by default "vector", "embedding" or "embeddings", or the only one of lists; ours have "patch_mean" too.
    configuration: the one to open if a folder of ours holds several. Memory: that of the values as stored and about 200 bytes a row.
    Raises ContractError for missing columns, damaged files, NaN, and vectors that are not comparable.
    """
    opened = read_embeddings(source, column=column, configuration=configuration, area=area)
    return opened if isinstance(opened, Vectors) else _cells(opened)


# ---- tables ----


def _from_table(source, column: str, configuration: str) -> Vectors:
    if isinstance(source, pa.Table):
        return _open(ds.InMemoryDataset(source), "the table", column, configuration)
    path = Path(source)
    parts = [path] if path.is_file() else part_files(path / "vectors" if (path / "vectors").is_dir() else path)
    if not parts:
        found = f"no GeoParquet in {path}" if path.exists() else f"no such folder: {path}"
        expected = "a folder that `clay embed` has filled, or a file of embeddings"
        raise ContractError("vectors", found, expected, "a misspelled path, or a job that has not written anything yet")
    index = f"{'-'.join(filter(None, [column, configuration])) or 'vectors'}.index"
    index_file = path / index if path.is_dir() else path.with_name(f"{path.name}.{index}")
    stats = [(str(part.relative_to(path)), part.stat()) for part in parts]
    state = json.dumps([(part, stat.st_size, stat.st_mtime_ns) for part, stat in stats])
    try:
        data = ds.dataset([str(part) for part in parts], format="parquet")
        return replace(_open(data, str(path), column, configuration), index_file=index_file, state=state)
    except (pa.ArrowInvalid, OSError):
        for part in parts:
            read_part(part)  # raises for the damaged one
        raise


def _open(data: ds.Dataset, name: str, column: str, configuration: str) -> Vectors:
    column, names = _column_of_vectors(data.schema, column), data.schema.names
    geo = json.loads((data.schema.metadata or {}).get(b"geo", b"{}"))
    shape = geo.get("primary_column", "geometry")
    place = next((pair for pair in ((shape,), *POINTS) if {*pair} <= {*names}), None)
    if place is None:
        raise ContractError("columns", names, "geometry too", "a table without the places of its vectors")
    crs = CRS.from_user_input(geo.get("columns", {}).get(shape, {}).get("crs") or "EPSG:4326")
    selected = pc.field("configuration") == configuration if configuration else None
    total = data.count_rows(filter=selected)
    if not total:
        found = f"no rows{f' of configuration {configuration}' if configuration else ''} in {name}"
        cause = "a job without results so far, or another folder"
        raise ContractError("vectors", found, "a folder that `clay embed` has filled", cause)
    key, when = (next((n for n in candidates if n in names), None) for candidates in (IDS, TIMES))
    origin = [field for field in ("sensor", *ORIGIN) if field in names]
    used = [*dict.fromkeys([column, *place, *origin, *filter(None, (key, when))])]
    bounds, centers = np.empty((4, total)), np.empty((total, 2))
    origins, parts, values, start = [], [], None, 0
    for batch in filter(len, data.to_batches(columns=used, filter=selected)):
        rows = slice(start, start + len(batch))
        ids = batch.column(key).cast(pa.string()) if key else pa.array(map(str, range(rows.start, rows.stop)))
        stored = _stored(batch, column, ids)
        values = np.empty((total, stored.shape[1]), stored.dtype) if values is None else values
        if stored.shape[1] != values.shape[1]:
            found = f"{stored.shape[1]} and {values.shape[1]} numbers"
            raise ContractError(column, found, "one length", "files of two models")
        shapes, values[rows] = _shapes(batch, place, crs), stored
        bounds[:, rows] = shapely.bounds(shapes).T
        # An outline cut at the antimeridian is located by its first part.
        west, south, east, north = shapely.bounds(shapely.get_geometry(shapes, 0)).T
        centers[rows] = np.stack([(south + north) / 2, (west + east) / 2], axis=1)
        sensors = batch.column("sensor").cast(pa.string()) if "sensor" in origin else None
        parts.append(_rows(ids, shapes, batch.column(when).to_pandas() if when else None, sensors))
        origins.append(pa.Table.from_batches([batch.select(origin)]).group_by(origin).aggregate([]) if origin else None)
        start = rows.stop
    if "sensor" in origin:
        _check_comparable(pa.concat_tables(origins).to_pandas(), name)
    table = pa.concat_tables(parts).combine_chunks()  # taking rows from many chunks is slow
    return Vectors(table, values, bounds, centers)


def _shapes(batch: pa.RecordBatch, place: tuple[str, ...], crs: CRS) -> np.ndarray:
    """Outlines in WGS84 degrees of one column of WKB, or points of two of degrees."""
    if len(place) == 2:
        return shapely.points(*(np.asarray(batch.column(name), float) for name in place))
    shapes = shapely.from_wkb(batch.column(place[0]).to_numpy(zero_copy_only=False))
    in_degrees = crs.to_authority() in (("EPSG", "4326"), ("OGC", "CRS84"))
    return shapes if in_degrees else project(shapes, crs.to_wkt(), "EPSG:4326")


def _rows(ids: pa.Array, shapes: np.ndarray, times, sensors: pa.Array | None) -> pa.Table:
    times = pd.Series([None] * len(shapes)) if times is None else times
    times = pd.to_datetime(times, utc=True, errors="coerce", format="ISO8601").dt.as_unit("us")
    columns = {"id": ids, "geometry": pa.array(shapely.to_wkb(shapes)), "time": pa.array(times, from_pandas=True)}
    return pa.table(columns | {"sensor": pa.array([""] * len(shapes)) if sensors is None else sensors})


def _column_of_vectors(schema: pa.Schema, column: str) -> str:
    def holds_vectors(kind: pa.DataType) -> bool:
        lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return lists and (pa.types.is_floating(kind.value_type) or pa.types.is_int8(kind.value_type))

    found = [field.name for field in schema if holds_vectors(field.type)]
    if not column and (known := [name for name in NAMES if name in found] or (found if len(found) == 1 else [])):
        return known[0]
    if column in found:
        return column
    cause = "several kinds of vectors: choose with column=" if found else "a table of something else"
    raise ContractError("columns", found or schema.names, f"{column or 'one column'} as lists of numbers", cause)


def _stored(batch: pa.RecordBatch, name: str, ids: pa.Array) -> np.ndarray:
    """[n, D] of a column of lists of one length, float64 as float32."""
    column = batch.column(name)
    lengths = pc.unique(pc.list_value_length(column)).drop_null().to_pylist()
    if len(lengths) != 1:
        raise ContractError(name, f"lists of {lengths[:4]} numbers", "one length", "an empty table, or a damaged file")
    flat = column.flatten()  # without the rows that are null
    values = flat.to_numpy(zero_copy_only=flat.null_count == 0).reshape(-1, lengths[0])
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    invalid = column.is_null().to_numpy(False)
    if not invalid.any() and values.dtype.kind == "f":
        invalid = np.isnan(values).any(axis=1)
    if invalid.any():
        row, found = ids[int(np.flatnonzero(invalid)[0])], "no vector" if column.null_count else "NaN"
        raise ContractError(name, f"{found} in row {row}", "finite numbers in every row", "a damaged file")
    return values


def _check_comparable(origins: pd.DataFrame, name: str) -> None:
    """ContractError for several models or weights, or several configurations of one sensor."""
    for column in origins.columns[:0:-1]:
        groups = origins.groupby("sensor")[column] if column == "configuration" else [("", origins[column])]
        mixed = sorted({str(value) for _, group in groups if group.nunique() > 1 for value in group})
        if mixed:
            raise ContractError(column, f"{len(mixed)} in {name}: {', '.join(mixed[:4])}",
                                "one: vectors of different models or settings cannot be compared",
                                "several jobs wrote to this folder; choose one with configuration= "
                                "(see OUT/configuration-*.json)")  # fmt: skip


# ---- rasters ----


def from_alphaearth(values: np.ndarray) -> np.ndarray:
    """AlphaEarth's stored int8 numbers, of any shape -> float32 in -1..1, NaN where masked."""
    _, largest, nodata = ALPHAEARTH
    native = np.sign(values) * np.square(values / np.float32(largest), dtype=np.float32)
    return np.where(values == nodata, np.float32(np.nan), native).astype(np.float32)


def _from_raster(path: Path, area):
    with open_raster(path) as file:
        if file.crs is None:
            raise ContractError("path", f"{path}, without a CRS", "a raster with its place on Earth", "a plain image")
        box, (rows, columns) = _crop(GeoBox.from_rio(file), area, file.count)
        stored = file.read(window=((rows.start, rows.stop), (columns.start, columns.stop)))
        scales, offsets = (np.array(v, np.float32)[:, None, None] for v in (file.scales, file.offsets))
        nodata, tags = np.array([np.nan if v is None else v for v in file.nodatavals])[:, None, None], file.tags()
        declared = file.nodata
    if _is_alphaearth(stored, declared) and (scales == 1).all():
        values = from_alphaearth(stored)
    else:
        values = stored.astype(np.float32) * scales + offsets
        values[(stored == nodata) | ~np.isfinite(values)] = np.nan
    return _raster(values, box, tags)


def _is_alphaearth(stored: np.ndarray, nodata: float | None) -> bool:
    """nodata: as declared; copies of the files lose it."""
    return stored.dtype == np.int8 and len(stored) == ALPHAEARTH[0] and nodata in (ALPHAEARTH[2], None)


def _from_xarray(source, area):
    """The variable of three dimensions of a Dataset, or a DataArray, [band, y, x] in any order."""
    variables = [source] if isinstance(source, xr.DataArray) else source.data_vars.values()
    found = [variable for variable in variables if variable.squeeze().ndim == 3]
    if len(found) != 1:
        kinds = dict(source.sizes)
        cause = "several dates: select one, read_embeddings(dataset.isel(time=0))"
        raise ContractError("source", kinds, "one variable with a band, a y and an x dimension", cause)
    array = found[0].squeeze()
    box = array.odc.geobox
    if box is None or box.crs is None:
        cause = "a grid mapping that was lost: .odc.assign_crs"
        raise ContractError("source", list(array.coords), "coordinates with a CRS", cause)
    y, x = array.odc.spatial_dims
    array = array.transpose(..., y, x)
    box, (rows, columns) = _crop(box, area, len(array))
    array = array.isel({y: rows, x: columns})
    nodata = array.encoding.get("_FillValue", array.attrs.get("nodata", array.attrs.get("_FillValue")))
    stored = array.values
    if _is_alphaearth(stored, nodata):
        return _raster(from_alphaearth(stored), box, array.attrs)
    values = stored.astype(np.float32)
    return _raster(values if nodata is None else np.where(stored == nodata, np.nan, values), box, array.attrs)


def _from_arrays(path: Path, like: str, area):
    """Tessera's: int8 [H, W, D], and a scale a pixel."""
    scales = path.with_name(f"{path.stem}_scales.npy")
    grids = [Path(like)] if like else [path.with_suffix(ending) for ending in (".tif", ".tiff")]
    grid = next((grid for grid in grids if grid.is_file()), None)
    if not scales.is_file() or grid is None:
        found = f"{path} without {scales.name if not scales.is_file() else 'a GeoTIFF of its grid'}"
        expected = "both beside it, or like= with the GeoTIFF"
        raise ContractError("source", found, expected, "a part of the download is missing")
    stored, scale = np.load(path, mmap_mode="r"), np.load(scales)
    with open_raster(grid) as file:
        box = GeoBox.from_rio(file)
    if stored.ndim != 3 or stored.shape[:2] != box.shape or scale.shape[:2] != box.shape:
        found = f"{path.name} {stored.shape}, {scales.name} {scale.shape}, {grid.name} {tuple(box.shape)}"
        raise ContractError("source", found, "[H, W, D], [H, W] and [H, W]", "files of different tiles")
    box, (rows, columns) = _crop(box, area, stored.shape[2])
    scale = scale[rows, columns].reshape(*box.shape, -1)
    values = np.where(np.isfinite(scale) & (scale != 0), stored[rows, columns] * scale, np.nan)
    return _raster(np.moveaxis(values, -1, 0).astype(np.float32), box, {})


def _crop(box, area, bands: int):
    """(GeoBox, its rows and columns) around an area; ContractError where that is empty or too much to read."""
    rows, columns = (slice(0, side) for side in box.shape)
    if area is not None:
        from clay_lib.areas.archives import parse_area

        shape = project(shapely.segmentize(parse_area(area), 0.05), "EPSG:4326", str(box.crs))
        x, y = ~box.affine * shapely.get_coordinates(shape).T
        rows, columns = (
            slice(int(np.clip(np.floor(v.min() + 1e-6), 0, side)), int(np.clip(np.ceil(v.max() - 1e-6), 0, side)))
            for v, side in zip((y, x), box.shape, strict=True)
        )
    cells = (rows.stop - rows.start) * (columns.stop - columns.start)
    if not 0 < cells * bands <= MOST_NUMBERS:
        cause = "an area outside of the raster" if not cells else "a large file: pass area= to read a part of it"
        found, expected = f"{cells:,} cells of {bands} numbers", f"1 to {MOST_NUMBERS / bands:,.0f} cells"
        raise ContractError("area", found, expected, cause)
    return box[rows, columns], (rows, columns)


def _raster(values: np.ndarray, box, attrs):
    """[D, h, w] as a DataArray with coordinates, rows from north to south."""
    if box.affine.e > 0:  # as AlphaEarth's files
        values, box = values[:, ::-1], box.flipy()
    coords = {"band": np.arange(len(values))} | xr_coords(box, dims=("y", "x"))
    return xr.DataArray(values, coords, ("band", "y", "x"), "embeddings", dict(attrs))


def _cells(raster) -> Vectors:
    """A row for each cell that has a vector; its id counts from the north-western one."""
    box, (rows, columns) = raster.odc.geobox, np.nonzero(np.isfinite(raster.values).all(axis=0))
    if not len(rows):
        raise ContractError("source", "no cell with a vector", "at least one", "another area, or a raster of nodata")
    x, y = columns[:, None] + np.array([0, 1, 1, 0]), rows[:, None] + np.array([1, 1, 0, 0])  # [N, 4] corners
    lon, lat = transformer(str(box.crs), "EPSG:4326").transform(*(box.affine * (x.ravel(), y.ravel())))
    lon, lat = np.reshape(lon, x.shape), np.reshape(lat, x.shape)
    lon = lon - 360 * np.round(lon.mean(axis=1, keepdims=True) / 360)
    shapes = shapely.polygons(np.stack([lon, lat], axis=-1))
    ids = pa.array([f"y{row}-x{column}" for row, column in zip(rows.tolist(), columns.tolist(), strict=True)])
    table = _rows(ids, shapes, None, pa.array([str(raster.attrs.get("sensor", ""))] * len(rows)))
    centers = np.stack([lat.mean(axis=1), lon.mean(axis=1)], axis=1)
    return Vectors(table, np.ascontiguousarray(raster.values[:, rows, columns].T), shapely.bounds(shapes).T, centers)
