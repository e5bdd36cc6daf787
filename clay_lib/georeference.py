"""Where a raster's pixels lie: middle, bounds and ground distance, from its CRS and transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyproj import Proj
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform as reproject
from rasterio.warp import transform_bounds

from clay_lib.contract import ContractError

METRES_PER_DEGREE = 111_320.0  # along a meridian, and along the equator


def centre(crs: CRS, matrix: Affine, height: int, width: int) -> tuple[float, float]:
    """(lon, lat) of the raster's middle, WGS84 degrees. Raises ContractError for a CRS that is not of the Earth."""
    if not (crs.is_geographic or crs.is_projected):
        raise ContractError(
            "crs",
            found=crs.to_wkt()[:60],
            expected="a CRS that says where on Earth",
            cause="a survey's own system: give the file its real CRS (gdal_edit.py -a_srs), or none (-a_srs '')",
        )
    x = matrix.a * width / 2 + matrix.b * height / 2 + matrix.c
    y = matrix.d * width / 2 + matrix.e * height / 2 + matrix.f
    (lon,), (lat,) = reproject(crs, "EPSG:4326", [x], [y])
    return float(lon), float(lat)


def ground_distance(crs: CRS, matrix: Affine, lon: float, lat: float) -> float:
    """Metres per pixel: the root of the pixel's area on the ground at the scene's centre (lon, lat, degrees).

    Where the projection keeps areas within 2 %, as UTM and national grids do, the pixel's nominal size; the web's
    Mercator draws everything larger by 1 / cos(lat), which is taken back.
    """
    if crs.is_geographic:
        east, north = METRES_PER_DEGREE * math.cos(math.radians(lat)), METRES_PER_DEGREE
    else:
        larger = Proj(crs.to_wkt()).get_factors(lon, lat).areal_scale
        unit = crs.linear_units_factor[1]
        east = north = unit if abs(larger - 1) < 0.02 else unit / math.sqrt(larger)
    across = math.hypot(matrix.a * east, matrix.d * north)
    down = math.hypot(matrix.b * east, matrix.e * north)
    return round(math.sqrt(across * down), 6)


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
        raise ContractError(
            "crs",
            found=repr(crs),
            expected='an EPSG code ("EPSG:32633"), WKT or PROJ text',
            cause=str(error).strip() or type(error).__name__,
        ) from None


def crs_text(crs) -> str:
    """EPSG:CODE where the CRS has one, else WKT."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt()
