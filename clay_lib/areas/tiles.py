"""A fixed global grid of square tiles, where a place has the same tile and the same id in every run.

A tile has `size` x `size` pixels of its archive. Columns and rows count from the origin of the CRS, shifted by the
archive's anchor, so that the corners of tiles are pixel corners and shared by neighbors. The grid never depends on a
request: an area selects tiles from it, and `overlap` widens the window that is read around a tile.

Archives in UTM have a grid in every zone. A place belongs to the zone of its own longitude (6 degrees wide, without the
exceptions of Norway and Svalbard) and so to one tile of one zone. Tiles on the edge of a zone extend into the next: the
grids of two zones are rotated against each other, and assigning tiles by their centers would leave uncovered wedges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import shapely
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from rasterio.transform import Affine
from shapely.geometry.base import BaseGeometry

from clay_lib.data.georeference import cut_at_antimeridian
from clay_lib.data.rasters import open_raster
from clay_lib.errors import ContractError, first_line
from clay_lib.sensors import METERS_PER_DEGREE

LONGEST_EDGE = 16_000.0  # m; longer edges are subdivided, since they are curves in WGS84
MOST_CELLS = 1e10  # of a raster; more are a mistake in its resolution


@dataclass(frozen=True)
class Grid:
    """crs: "utm" (each hemisphere's own zones), "utm-north" (northern zones everywhere, as for Landsat), or a CRS.

    gsd: meters per pixel. size: side of a tile, pixels. anchor: (x, y) of pixel corners, meters modulo gsd.
    """

    crs: str
    gsd: float
    size: int = 256
    anchor: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        object.__setattr__(self, "anchor", tuple(float(v) % self.gsd for v in self.anchor))

    def tile(self, crs: str, column: int, row: int) -> Tile:
        return Tile(crs, self.gsd, self.size, self.anchor, int(column), int(row))


@dataclass(frozen=True)
class Tile:
    """One cell of a grid. column, row: counted east and north from the origin of the CRS, which may be negative."""

    crs: str
    gsd: float
    size: int
    anchor: tuple[float, float]
    column: int
    row: int

    @property
    def id(self) -> str:
        """Such as 32633-10m-256-e0123-n0456; w and s count westwards and southwards from 1."""
        east = f"e{self.column:04d}" if self.column >= 0 else f"w{-self.column:04d}"
        north = f"n{self.row:04d}" if self.row >= 0 else f"s{-self.row:04d}"
        return f"{crs_name(self.crs)}-{self.gsd:.6g}m-{self.size}-{east}-{north}"

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in meters of the CRS."""
        side = self.size * self.gsd
        west, south = self.anchor[0] + self.column * side, self.anchor[1] + self.row * side
        return west, south, west + side, south + side

    def geobox(self, overlap: int = 0):
        """odc.geo GeoBox, north up, widened by `overlap` pixels on every side."""
        west, _, _, north = self.bounds
        margin = overlap * self.gsd
        side = self.size + 2 * overlap
        return GeoBox((side, side), Affine(self.gsd, 0, west - margin, 0, -self.gsd, north + margin), self.crs)

    @cached_property
    def polygon(self) -> BaseGeometry:
        """WGS84 degrees; two parts where the tile crosses the antimeridian."""
        ring = shapely.segmentize(shapely.box(*self.bounds), LONGEST_EDGE)
        return cut_at_antimeridian(project(ring, self.crs, "EPSG:4326"))

    @cached_property
    def center(self) -> tuple[float, float]:
        """(lat, lon) in degrees."""
        west, south, east, north = self.bounds
        lon, lat = transformer(self.crs, "EPSG:4326").transform((west + east) / 2, (south + north) / 2)
        return lat, lon


def grid_of(archive, size: int = 256) -> Grid:
    """The grid on an archive's pixels, from its crs, gsd and anchor; in UTM if its CRS is in degrees."""
    anchor = archive.anchor if isinstance(archive.anchor, (tuple, list)) else (archive.anchor,) * 2
    if not archive.crs.startswith("utm") and CRS(archive.crs).is_geographic:
        return Grid("utm", archive.gsd, size)
    return Grid(archive.crs, archive.gsd, size, tuple(anchor))


def tiles_of(area: BaseGeometry, grid: Grid) -> list[Tile]:
    """The tiles whose interior intersects an area in WGS84 degrees; zone by zone, from north-west to south-east.

    A point or a line selects the tiles that contain it.
    """
    if area.is_empty or not area.is_valid:
        found, cause = "an empty area", "a filter without a match"
        if not area.is_empty:
            found, cause = shapely.is_valid_reason(area), "crossing edges: shapely.make_valid fixes them"
        raise ContractError("area", found, "a polygon in WGS84 degrees that does not cross itself", cause)
    tiles = []
    for crs, part in _parts(area, grid.crs):
        shape = project(shapely.segmentize(part, 0.05), "EPSG:4326", crs)
        inner = shape.buffer(-1e-3 * grid.gsd)  # tolerance for areas cut along tile edges
        shape = shape if inner.is_empty else inner
        side = grid.size * grid.gsd
        corners = np.reshape(shape.bounds, (2, 2)) - grid.anchor  # lower left, upper right
        (first, bottom), (last, top) = np.floor(corners / side).astype(int).tolist()
        columns = np.arange(first, last + 1)
        shapely.prepare(shape)
        for row in range(top, bottom - 1, -1):
            x, y = grid.anchor[0] + columns * side, grid.anchor[1] + row * side
            touched = shapely.intersects(shape, shapely.box(x, y, x + side, y + side))
            tiles += [grid.tile(crs, column, row) for column in columns[touched]]
    return tiles


def _parts(area: BaseGeometry, crs: str):
    """(CRS, part of the area in its zone) pairs, from west to east and north to south."""
    if not crs.startswith("utm"):
        yield crs, area
        return
    west, _, east, _ = area.bounds
    for zone in range(1, 61):
        lon = -186 + 6 * zone  # of the zone's western edge
        if not (lon <= east and west < lon + 6):
            continue
        halves = [(326, -90, 90)] if crs == "utm-north" else [(326, 0, 90), (327, -90, 0)]
        for code, south, north in halves:
            part = area.intersection(shapely.box(lon, south, lon + 6, north))
            if not part.is_empty and (area.area == 0 or part.area > 0):
                yield f"EPSG:{code}{zone:02d}", part


def project(shape: BaseGeometry, source: str, target: str) -> BaseGeometry:
    """A shape from one CRS to another, vertex by vertex, x before y."""
    projection = transformer(source, target)
    return shapely.transform(shape, lambda xy: np.stack(projection.transform(xy[:, 0], xy[:, 1]), axis=1))


@lru_cache(maxsize=256)
def transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=256)
def crs_name(crs: str) -> str:
    """The EPSG code, or the projection's name if there is none (sinusoidal)."""
    parsed = CRS(crs)
    if code := parsed.to_epsg():
        return str(code)
    operation = parsed.coordinate_operation
    return re.sub(r"[^a-z0-9]+", "", (operation.method_name if operation else parsed.name).lower())


def extent(tiles: Sequence[Tile]) -> tuple[Tile, int, int]:
    """(north-western tile, rows, columns) of the bounding rectangle of tiles of one grid and CRS."""
    columns, rows = [tile.column for tile in tiles], [tile.row for tile in tiles]
    corner = replace(tiles[0], column=min(columns), row=max(rows))
    return corner, max(rows) - min(rows) + 1, max(columns) - min(columns) + 1


def grid_around(
    tiles: Sequence[Tile], cell: float, *, like: str = "", crs: str = "", resolution: float = 0, bounds=None
):
    """The odc.geo GeoBox of a raster: that of the file `like`, or one in a CRS that covers the tiles or the bounds.

    crs: by default that of the first tile. resolution: in the CRS's own units; by default `cell` in meters. bounds: (left,
    bottom, right, top) in the CRS, or text; left > right in degrees is a box across the antimeridian. Cells lie at
    multiples of the resolution; degrees count beyond 180 where the tiles or bounds cross it.
    """
    if like:
        if crs or resolution or bounds:
            found = f"{like} and crs, resolution or bounds"
            raise ContractError("like", found, "one of them", "the file is a complete grid")
        with open_raster(like) as file:
            if file.crs is None:
                expected = "a raster with its place on Earth"
                raise ContractError("like", f"{like}, without a CRS", expected, "a plain image")
            return GeoBox.from_rio(file)
    try:
        parsed = CRS.from_user_input(crs or tiles[0].crs)
    except CRSError as error:
        raise ContractError("crs", crs, "an EPSG code such as EPSG:3035, or WKT", first_line(error)) from None
    unit = METERS_PER_DEGREE if parsed.is_geographic else parsed.axis_info[0].unit_conversion_factor
    try:
        resolution = float(resolution or cell / unit)
        box = [float(v) for v in (bounds.split(",") if isinstance(bounds, str) else bounds)] if bounds else None
        if box and parsed.is_geographic and box[0] > box[2]:
            box[2] += 360
        valid = resolution > 0 and (box is None or (len(box) == 4 and box[0] < box[2] and box[1] < box[3]))
    except (TypeError, ValueError):
        valid = False
    if not valid:
        expected = "(left, bottom, right, top) and a positive number, in the units of the CRS"
        raise ContractError("bounds, resolution", (bounds, resolution), expected, "another order of the four numbers")
    if box is None:
        points = shapely.get_coordinates([tile.polygon for tile in tiles])
        x, y = transformer("EPSG:4326", parsed.to_wkt()).transform(*points.T)
        if not np.isfinite([x, y]).all():
            raise ContractError("crs", crs, "a CRS that reaches the area", "a national grid of another country")
        x = x % 360 if parsed.is_geographic and np.ptp(x) > 180 else x
        box = x.min(), y.min(), x.max(), y.max()
    width, height = (box[2] - box[0]) / resolution, (box[3] - box[1]) / resolution
    if width * height > MOST_CELLS or min(width, height) < 0.5:
        found = f"{width:,.1f} x {height:,.1f} cells of {resolution:g}"
        cause = "meters where the CRS has degrees, or the reverse"
        raise ContractError("resolution", found, "a raster of the area", cause)
    return GeoBox.from_bbox(tuple(box), crs or tiles[0].crs, resolution=resolution)
