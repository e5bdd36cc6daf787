"""Where a grid of pixels lies on Earth: center, ground distance, box in degrees, the antimeridian; vector features.

A grid is a CRS and the transform (a, b, c, d, e, f) from pixel corners to its coordinates. Both come from a raster's
header, or from the coordinates of xarray (`position`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
import pyproj
import shapely
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform as reproject
from rasterio.warp import transform_bounds

from clay_lib.errors import ContractError, first_line, warn
from clay_lib.sensors import METERS_PER_DEGREE

if TYPE_CHECKING:
    import geopandas
    import xarray

NO_CRS = (
    "y ascends with the rows, but there is no CRS: rows are taken as from north to south; with a CRS they are flipped"
)
MOST_OBLONG = 1.5  # longer over shorter side of a pixel on the ground; degrees at latitude 48


def locate(crs: CRS, transform: Affine, height: int, width: int) -> tuple[float, float, float]:
    """(lat, lon, gsd): the raster's center in WGS84 degrees, and the ground distance there in meters per pixel.

    Raises ContractError for a CRS that is not of the Earth, and for pixels that are far from square on the ground.
    """
    lat, lon = lat_lon(crs, transform, width / 2, height / 2)
    across, down = _ground_sides(crs, transform, lat, lon)
    if max(across, down) > MOST_OBLONG * min(across, down):
        zone = (32600 if lat >= 0 else 32700) + min(int((lon + 180) % 360 // 6) + 1, 60)
        found, side = f"pixels of {across:.4g} x {down:.4g} m on the ground", f"{min(across, down):.4g}"
        fix = f"gdalwarp -t_srs EPSG:{zone} -tr {side} {side} -r bilinear in.tif out.tif"
        cause = f"degrees far from the equator, or a stretched export; bring it to square pixels: {fix}"
        raise ContractError("transform", found, f"square pixels, within a factor of {MOST_OBLONG}", cause)
    return lat, lon, round(math.sqrt(across * down), 6)


def lat_lon(crs: CRS, transform: Affine, column: float, row: float) -> tuple[float, float]:
    if not (crs.is_geographic or crs.is_projected):
        cause = "a survey's own system: give the file its real CRS (gdal_edit.py -a_srs), or none (-a_srs '')"
        raise ContractError("crs", crs.to_wkt()[:60], "a CRS that says where on Earth", cause)
    x, y = transform @ (column, row)
    (lon,), (lat,) = reproject(crs, "EPSG:4326", [x], [y])
    return float(lat), float(lon if -180 <= lon <= 180 else (lon + 180) % 360 - 180)  # degrees may count to 360


def _ground_sides(crs: CRS, transform: Affine, lat: float, lon: float) -> tuple[float, float]:
    """(across, down): a pixel's sides on the ground at (lat, lon), degrees, in meters.

    Where the projection keeps areas within 2 %, as UTM and national grids do, the pixel's nominal size; web Mercator
    enlarges everything by 1 / cos(lat), which is divided out.
    """
    if crs.is_geographic:
        east, north = METERS_PER_DEGREE * math.cos(math.radians(lat)), METERS_PER_DEGREE
    else:
        larger = pyproj.Proj(crs.to_wkt()).get_factors(lon, lat).areal_scale
        unit = crs.linear_units_factor[1]
        east = north = unit if abs(larger - 1) < 0.02 else unit / math.sqrt(larger)
    across = math.hypot(transform.a * east, transform.d * north)
    return across, math.hypot(transform.b * east, transform.e * north)


def coarser(transform: Sequence[float], patch: int) -> tuple[float, ...]:
    """The transform of a grid whose cells are patch x patch pixels, with the same upper left corner."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * patch, b * patch, c, d * patch, e * patch, f


def bounds_wgs84(crs: str, transform: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """(west, south, east, north) in degrees of the box around the raster; west > east across the antimeridian."""
    box = array_bounds(height, width, Affine(*tuple(transform)[:6]))
    try:
        return tuple(float(v) for v in transform_bounds(crs, "EPSG:4326", *box, densify_pts=21))
    except (RasterioError, ValueError, AttributeError) as error:
        expected = 'an EPSG code ("EPSG:32633"), WKT or PROJ text'
        raise ContractError("crs", repr(crs), expected, first_line(error)) from None


def cut_at_antimeridian(ring: shapely.Geometry) -> shapely.Geometry:
    """A ring in WGS84 degrees, in two parts where it runs across the antimeridian and so seems to span the globe."""
    west, _, east, _ = ring.bounds
    if east - west < 180:
        return ring
    ring = shapely.transform(ring, lambda xy: np.stack([xy[:, 0] % 360, xy[:, 1]], axis=1))
    near = ring.intersection(shapely.box(0, -90, 180, 90))
    beyond = ring.intersection(shapely.box(180, -90, 360, 90))
    return shapely.MultiPolygon([near, shapely.transform(beyond, lambda xy: xy - [360, 0])])


def outline(west: float, south: float, east: float, north: float) -> shapely.Geometry:
    """A box in WGS84 degrees; in two parts where west > east, across the antimeridian (RFC 7946)."""
    if west <= east:
        return shapely.box(west, south, east, north)
    return shapely.MultiPolygon([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


def boxes(shape: shapely.Geometry) -> list[tuple[float, float, float, float]]:
    """(west, south, east, north) of a shape in degrees; two boxes if parts lie on both sides of the antimeridian."""
    west, _, east, _ = shape.bounds
    parts = shapely.get_parts(shape)
    if west > -180 or east < 180 or len(parts) == 1:
        return [shape.bounds]
    beyond = shapely.bounds(parts)[:, 2] <= 0
    return [shapely.total_bounds(side).tolist() for side in (parts[~beyond], parts[beyond]) if len(side)]


def center_longitude(shape: shapely.Geometry) -> float:
    """Longitude of an outline's middle, -180 to 180 degrees; a shape cut at 180 degrees has it there, not near 0."""
    first, last = (sides := boxes(shape))[0], sides[-1]
    middle = (first[0] + last[2] + 360 * (len(sides) - 1)) / 2
    return float(middle if middle <= 180 else middle - 360)


def warn_of_points(name: str, *, rpcs: bool = False) -> None:
    """A warning that an image has control points or RPCs instead of a grid, with the command that makes a grid."""
    points, option = ("RPCs", "-rpc") if rpcs else ("ground control points", "-tps")
    stem = PurePath(name).stem
    warn(
        f"{name} has {points} but no grid, so its place and ground distance are unknown: gdalwarp {option} "
        f"-t_srs EPSG:4326 {name} {stem}_warped.tif, or UTM (EPSG:326..) for square pixels"
    )


def crs_text(crs) -> str:
    """EPSG:CODE where the CRS has one, else WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt()


# ---- vector features ----


def read_features(path: Path) -> geopandas.GeoDataFrame:
    """Polygons or points of a GeoJSON, GeoPackage or shapefile."""
    import geopandas

    try:
        frame = geopandas.read_file(path)
    except Exception as error:  # of GDAL's and of geopandas' readers
        expected = "GeoJSON, GeoPackage or a shapefile"
        raise ContractError("labels", f"{path}: {error}", expected, "another file") from None
    if frame.crs is None:
        raise ContractError("labels", f"{path.name} without a CRS", "a CRS", "a shapefile without its .prj file")
    return integers_with_gaps(frame)


def integers_with_gaps(frame: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Columns that gaps alone made floats, as integers."""
    columns = [c for c in frame.columns if c != frame.geometry.name and frame[c].dtype.kind == "f"]
    whole = [c for c in columns if frame[c].isna().any() and (frame[c].dropna() % 1 == 0).all()]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def check_polygons(shapes, field: str, source: str = "") -> None:
    """ContractError for the first shape of a GeoSeries that crosses itself."""
    for count, shape in enumerate(shapes, start=1):
        if shape is not None and not shape.is_valid:
            found = f"{source}feature {count} of {len(shapes)}: {shapely.is_valid_reason(shape)}"
            cause = "crossing edges: GeoSeries.make_valid() fixes them"
            raise ContractError(field, found, "polygons that do not cross themselves", cause)


# ---- coordinates of xarray ----


def position(array: xarray.DataArray, axes: Mapping[str, Hashable]) -> dict:
    """gsd, lat and lon, where the coordinates give them."""
    mapping = array.attrs.get("grid_mapping") or array.encoding.get("grid_mapping") or "spatial_ref"
    attrs = array.coords[mapping].attrs if mapping in array.coords else {}
    if attrs.get("gcps"):  # rioxarray's; x and y then count pixels
        warn_of_points(str(array.encoding.get("source") or array.name or "the DataArray"))
        return {}
    crs, transform = _crs(array, axes, mapping, attrs), _transform(array, axes, attrs.get("GeoTransform"))
    if crs is None or transform is None:
        return {}
    lat, lon, gsd = locate(crs, transform, array.sizes[axes["y"]], array.sizes[axes["x"]])
    return {"gsd": gsd or None, "lat": lat, "lon": lon}


def _crs(array: xarray.DataArray, axes: Mapping[str, Hashable], mapping: str, attrs: Mapping):
    """rasterio CRS of the grid mapping coordinate, an EPSG coordinate or axes in degrees; None: unknown."""
    code = next((array.coords[key].values for key in ("epsg", "proj:epsg", mapping) if key in array.coords), None)
    text = attrs.get("crs_wkt") or attrs.get("spatial_ref") or array.attrs.get("crs")
    try:
        if not text and "grid_mapping_name" in attrs:  # CF's parameters alone
            text = pyproj.CRS.from_cf(attrs).to_wkt()
        if not text and np.size(code) == 1 and np.asarray(code).dtype.kind in "iu" and code > 0:
            text = f"EPSG:{int(code)}"
        if not text and str(axes["y"]).lower() in ("lat", "latitude"):
            text = "EPSG:4326"
        return CRS.from_user_input(text) if text else None
    except (CRSError, pyproj.exceptions.CRSError, KeyError) as error:
        raise ContractError(
            "crs", f"{str(text or attrs)[:80]}: {first_line(error)}",
            "WKT, an EPSG code or CF's parameters in the grid mapping coordinate",
            "a coordinate written by hand, or cut off",
        ) from None  # fmt: skip


def _transform(array: xarray.DataArray, axes: Mapping[str, Hashable], text: str | None):
    """From pixel corner to CRS, by x and y; without these by a GeoTransform (text), which crops leave unchanged."""
    stored = Affine.from_gdal(*(float(v) for v in text.split())) if text else None
    x, y = (array.coords[axes[axis]].values if axes[axis] in array.coords else None for axis in ("x", "y"))
    if x is None or y is None or x.dtype.kind not in "iuf" or y.dtype.kind not in "iuf":
        return stored
    dx = _step("x", x) if len(x) > 1 else stored.a if stored else None
    dy = _step("y", y) if len(y) > 1 else stored.e if stored else None
    dx, dy = dx or abs(dy or 0.0), dy or -abs(dx or 0.0)  # one row or column: as wide as it is high
    return Affine(dx, 0.0, float(x[0]) - dx / 2, 0.0, dy, float(y[0]) - dy / 2)


def _step(axis: str, values: np.ndarray) -> float:
    step = (float(values[-1]) - float(values[0])) / (len(values) - 1)
    steps = np.diff(values.astype(np.float64))
    if not step or (steps / step).max() > 2 or (steps / step).min() <= 0:  # float32 degrees jitter by much, but less
        raise ContractError(
            axis, f"steps from {steps.min():g} to {steps.max():g}", "evenly spaced coordinates",
            "tiles joined with a gap or out of order, or a curvilinear grid: bring it to one grid first",
        )  # fmt: skip
    return step
