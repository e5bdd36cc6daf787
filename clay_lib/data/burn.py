"""Vector labels: polygons or points with a class column, burnt on a scene's grid as a label raster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rasterio.features import rasterize
from rasterio.transform import Affine

from clay_lib.data.georeference import check_polygons
from clay_lib.data.rasters import read_header, write_raster
from clay_lib.errors import ContractError, warn

UNLABELED = 65535


def burn_labels(
    labels: str | Path, scene: str | Path, out: str | Path, *, column: str | None = None
) -> tuple[Path, dict[int, str]]:
    """Write a label raster on the scene's grid from polygons or points; returns it and {code: class name}.

    labels: GeoJSON, GeoPackage or shapefile in any CRS; column: the one with the classes, by default the only column of
    text or integers. A pixel belongs to the polygon that holds its center, and to a point that lies in it; where
    features of several classes overlap, the last one in the file counts, with a warning. Pixels without a feature are
    nodata. For `raster_pairs(scene, raster, sensor, classes=classes)`.

    Raises ContractError for a polygon that crosses itself, for an unknown column, and where nothing lies on the scene.
    """
    import geopandas

    header, path = read_header(scene), Path(labels)
    if header.crs is None:
        raise ContractError("scene", f"{scene} without a CRS", "a georeferenced scene", "a PNG, or a lost header")
    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # of GDAL's and of geopandas' readers
        raise ContractError(
            "labels", f"{path}: {error}", "GeoJSON, GeoPackage or a shapefile", "another file"
        ) from None
    if frame.crs is None:
        raise ContractError("labels", f"{path.name} without a CRS", "a CRS", "a shapefile without its .prj file")
    gaps = [c for c in frame.columns if c != frame.geometry.name and frame[c].dtype.kind == "f"]
    whole = [c for c in gaps if (frame[c].dropna() % 1 == 0).all() and frame[c].notna().any()]
    frame[whole] = frame[whole].astype("Int64")  # integers that gaps alone made floats
    column = _class_column(frame, column, path.name)
    check_polygons(frame.geometry, "labels", f"{path.name}, ")
    frame = frame[frame[column].notna() & frame.geometry.notna() & ~frame.geometry.is_empty].to_crs(header.crs)
    names = sorted(frame[column].unique(), key=lambda name: (isinstance(name, str), name))
    codes = {name: code for code, name in enumerate(names)}
    if len(codes) >= UNLABELED:
        raise ContractError("labels", f"{len(codes)} classes", f"fewer than {UNLABELED}", "a column of identifiers")
    grid = dict(out_shape=(header.height, header.width), transform=Affine(*header.transform), dtype="uint16")
    count = np.zeros(grid["out_shape"], np.uint16)  # classes in each pixel
    for name in names:
        count += rasterize(frame.geometry[frame[column] == name], fill=0, default_value=1, **grid)
    if not count.any():
        cause = "another place, features smaller than a pixel, or latitude and longitude swapped"
        raise ContractError("labels", f"nothing of {path.name} on {scene}", "features on the scene", cause)
    if overlap := int((count > 1).sum()):
        warn(f"{overlap} pixels lie in features of several classes: the last feature in {path.name} counts")
    features = zip(frame.geometry, frame[column].map(codes), strict=True)
    values = rasterize(features, fill=UNLABELED, **grid)
    georeference = dict(crs=header.crs.to_string(), transform=header.transform)
    raster = write_raster(out, values, nodata=UNLABELED, descriptions=[column], **georeference)
    return raster, {code: str(name) for name, code in codes.items()}


def _class_column(frame, column: str | None, name: str) -> str:
    """The column of the classes: the one named, else the only one of text or integers."""
    columns = [c for c in frame.columns if c != frame.geometry.name]
    if column is not None:
        if column not in columns:
            raise ContractError("column", repr(column), f"one of {columns}", "a misspelled name")
        return column
    fits = [c for c in columns if frame[c].dtype.kind in "iuOTU"]
    if len(fits) != 1:
        raise ContractError("column", f"{len(fits)} columns of text or integers in {name}", f"column=, one of {columns}",
                            "the classes' column is not the only one")  # fmt: skip
    return fits[0]
