"""The tile grid: one tile per place, corners that agree with pyproj and the archive's pixels, areas and ids."""

import numpy as np
import pytest
import shapely

from clay_lib.areas.tiles import Grid, tiles_of
from clay_lib.errors import ContractError

SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
GRIDS = {
    "sentinel-2": (Grid("utm", 10.0), (-180, -80, 180, 84)),
    "landsat": (Grid("utm-north", 30.0, 256, (15, 15)), (-180, -80, 180, 84)),
    "linz": (Grid("EPSG:2193", 0.5), (167, -47, 178, -35)),
    "modis": (Grid(SINUSOIDAL, 463.3127165), (-170, -70, 170, 70)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_place_has_one_tile(name):
    grid, (west, south, east, north) = GRIDS[name]
    rng = np.random.default_rng(0)
    for lon, lat in zip(rng.uniform(west, east, 60), rng.uniform(south, north, 60), strict=True):
        (tile,) = tiles_of(shapely.Point(lon, lat), grid)
        assert tile.polygon.buffer(1e-6).covers(shapely.Point(lon, lat))
        larger = tiles_of(shapely.Point(lon, lat).buffer(1e-3 * grid.gsd), grid)
        assert tile.id in [other.id for other in larger]
        box = tile.geobox()
        assert box.shape == (grid.size, grid.size)
        for corner, anchor in zip((box.affine.c, box.affine.f), grid.anchor, strict=True):
            assert abs((corner - anchor) / grid.gsd - round((corner - anchor) / grid.gsd)) < 1e-6  # whole pixels


def test_ids_are_unique_and_contain_zone_column_and_row():
    area = shapely.box(11.98, -0.02, 12.02, 0.02)  # four zones meet here
    tiles = tiles_of(area, Grid("utm", 10.0))
    assert len({tile.id for tile in tiles}) == len(tiles)
    assert {tile.crs for tile in tiles} == {"EPSG:32632", "EPSG:32633", "EPSG:32732", "EPSG:32733"}
    assert tiles[0].id == "32632-10m-256-e0324-n0000" and tiles[-1].id == "32733-10m-256-e0065-n3905"
    north_only = tiles_of(area, Grid("utm-north", 10.0))
    assert {tile.crs for tile in north_only} == {"EPSG:32632", "EPSG:32633"}
    assert any("-s0001" in tile.id for tile in north_only)
    (sinusoidal,) = tiles_of(shapely.Point(-3, -3), GRIDS["modis"][0])
    assert sinusoidal.id.startswith("sinusoidal-463.313m-256-w")


@pytest.mark.parametrize("box", [(11.9, 49.95, 12.1, 50.05), (11.95, -0.05, 12.05, 0.05), (-60.3, -33.1, -59.9, -32.9)])
def test_tiles_cover_an_area_without_gaps(box):
    area = shapely.box(*box)
    tiles = tiles_of(area, Grid("utm", 10.0))
    uncovered = area.difference(shapely.union_all([tile.polygon for tile in tiles]))
    assert uncovered.area < 1e-7 * area.area
    assert all(tile.polygon.intersects(area) for tile in tiles)
    same = [tile for tile in tiles if tile.crs == tiles[0].crs]
    a, b = same[0].bounds, next(t for t in same if t.row == same[0].row and t.column == same[0].column + 1).bounds
    assert (a[2], a[1], a[3]) == (b[0], b[1], b[3])  # neighbors share an edge


def test_area_along_tile_edges_selects_only_those_tiles():
    grid = Grid("utm", 10.0)
    selected = tiles_of(shapely.box(14.4, 50.0, 14.5, 50.1), grid)[:3]
    for tile in selected:
        assert [other.id for other in tiles_of(tile.polygon, grid)] == [tile.id]


def test_outlines_are_cut_at_the_antimeridian():
    tiles = tiles_of(shapely.box(179.95, -17, 180, -16.95), Grid("utm", 10.0))
    cut = [tile for tile in tiles if tile.polygon.geom_type == "MultiPolygon"]
    assert cut and all(part.bounds[2] - part.bounds[0] < 1 for tile in cut for part in tile.polygon.geoms)


def test_empty_or_self_crossing_areas_are_refused():
    with pytest.raises(ContractError, match="empty"):
        tiles_of(shapely.Polygon(), Grid("utm", 10.0))
    with pytest.raises(ContractError, match="cross"):
        tiles_of(shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]), Grid("utm", 10.0))
