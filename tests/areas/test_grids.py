"""Rasters on a grid of one's own: across zones of UTM and the antimeridian, from tiles and from local scenes."""

import os
import signal

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from rasterio.warp import Resampling, reproject
from scipy import ndimage
from test_area import CLAY, S2, WHEN

from clay_lib.areas import rasters
from clay_lib.areas.archives import open_scenes
from clay_lib.areas.area import embed_area
from clay_lib.areas.rasters import seam_step, write_rasters
from clay_lib.areas.search import open_vectors
from clay_lib.areas.tiles import Grid, Tile, grid_around, tiles_of, transformer
from clay_lib.data.rasters import write_raster
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS

N, EDGE, PATCH = 8, 2, 8  # patches along a side of a tile and of its overlap, pixels
GRID = Grid("utm", 10.0, N * PATCH)
METADATA = dict(sensor=S2, model="clay", weights="w" * 16, configuration="c" * 16)
OPTIONS = dict(dates="best", overlap=EDGE * PATCH, patch=PATCH, level=False, metadata=METADATA)
BORDER = shapely.box(11.97, 49.98, 12.03, 50.02)  # of the zones 32 and 33
ANTIMERIDIAN = shapely.MultiPolygon([shapely.box(179.97, -17.03, 180, -17), shapely.box(-180, -17.03, -179.97, -17)])


class Job:
    def __init__(self, tile: Tile):
        self.tile, self.id = tile, f"{tile.id}_sentinel-2-l2a_20230610"


def ground(lon, lat):
    """Six smooth numbers of a place, [..., 6]; a period is about ten patches."""
    waves = (450 * lon, 500 * lat, 300 * (lon + lat), 400 * lon - 200 * lat)
    return np.stack([*map(np.sin, waves), 0 * lon + 3, 0 * lat - 2], axis=-1).astype(np.float32)


def write_parts(folder, area, noise=0.0):
    """Jobs of the area's tiles, whose patches hold the ground below their centers, and noise that differs by tile."""
    jobs, rng = [Job(tile) for tile in tiles_of(area, GRID)], np.random.default_rng(0)
    for job in jobs:
        box = job.tile.geobox(EDGE * PATCH).zoom_out(PATCH)
        y, x = np.mgrid[: N + 2 * EDGE, : N + 2 * EDGE] + 0.5
        lon, lat = transformer(job.tile.crs, "EPSG:4326").transform(*(box.affine * (x, y)))
        rasters.write_patches(folder, job, ground(lon % 360, lat) + noise * rng.normal(size=6))
    return jobs


def write_on(folder, jobs, kind="cog", normalize=False, **layout):
    grid = grid_around([job.tile for job in jobs], PATCH * GRID.gsd, **layout)
    ((path,), _) = write_rasters(folder, jobs, kind, 0, grid=grid, normalize=normalize, **OPTIONS)
    return path


def read(path):
    """(values [D, h, w], lon and lat [h, w] of the cells' centers, the open file's profile)."""
    with rasterio.open(path) as file:
        y, x = np.mgrid[: file.height, : file.width] + 0.5
        lon, lat = transformer(str(file.crs), "EPSG:4326").transform(*(file.transform * (x, y)))
        return file.read(), lon % 360, lat, file.profile


@pytest.mark.parametrize(
    "area, crs, zones", [(BORDER, "EPSG:3035", 2), (ANTIMERIDIAN, "EPSG:4326", 2), (ANTIMERIDIAN, "EPSG:3832", 2)]
)
def test_one_raster_across_zones_has_the_vectors_of_the_ground(area, crs, zones, tmp_path):
    jobs = write_parts(tmp_path, area)
    assert len({job.tile.crs for job in jobs}) == zones
    path = write_on(tmp_path, jobs, crs=crs)
    values, lon, lat, profile = read(path)
    assert str(profile["crs"]) == crs and profile["width"] < 150  # not around the globe
    known = np.isfinite(values[0])
    assert known[shapely.intersects_xy(area, (lon + 180) % 360 - 180, lat)].all()
    np.testing.assert_allclose(values[:, known], np.moveaxis(ground(lon, lat), -1, 0)[:, known], atol=0.06)
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and file.descriptions[2] == "vector 2"
        assert float(file.tags(5)["STATISTICS_MEAN"]) == pytest.approx(3, abs=0.01)
        assert file.tags()["weights"] == METADATA["weights"]


def test_inside_a_zone_it_is_the_reprojected_raster(tmp_path):
    """Against GDAL's own bilinear warp of the raster in UTM, with a tile missing and a hole."""
    jobs = write_parts(tmp_path, shapely.box(14.4, 50.0, 14.45, 50.03))
    for job in jobs[:: len(jobs) // 3]:
        part = np.load(rasters.part_path(tmp_path, job.id))
        part[4:7, 4:7] = np.nan
        rasters.write_patches(tmp_path, job, part)
    jobs.pop(8)
    (utm,), _ = write_rasters(tmp_path, jobs, "cog", 0, **OPTIONS)
    for atol, layout in ((0.02, dict(crs="EPSG:3035")), (0.05, dict(crs="EPSG:3857", resolution=300))):  # then coarser
        values, _, _, profile = read(write_on(tmp_path, jobs, **layout))
        with rasterio.open(utm) as file:
            place = dict(dst_crs=profile["crs"], dst_transform=profile["transform"], resampling=Resampling.bilinear)
            expected = np.full_like(values, np.nan)
            reproject(file.read(), expected, src_crs=file.crs, src_transform=file.transform, src_nodata=np.nan, **place)
        known, expected_known = np.isfinite(values[0]), np.isfinite(expected[0])
        both = known & expected_known
        assert 0.4 < both.mean() < 0.95 and (known == expected_known).mean() > 0.98  # ties at the edges
        within = ndimage.binary_erosion(both, iterations=2)  # at an edge, GDAL extends the last patch
        assert within.sum() > 20
        np.testing.assert_allclose(values[:, within], expected[:, within], atol=atol)  # of waves from -1 to 1


def test_a_killed_raster_is_written_again_the_same_in_blocks_of_any_size(tmp_path, monkeypatch):
    jobs, layout = write_parts(tmp_path, shapely.box(11.99, 49.99, 12.01, 50.0)), dict(crs="EPSG:3035", resolution=40)
    path = write_on(tmp_path, jobs, **layout)
    expected = read(path)[0]
    path.unlink()
    monkeypatch.setattr(rasters, "BLOCK_BYTES", 4 * 6 * 20**2)  # 20 cells a side
    pid = os.fork()
    if not pid:
        block = rasters.Warped.block
        rasters.Warped.block = lambda self, *at: (
            block(self, *at) if at < (1, 1) else os.kill(os.getpid(), signal.SIGKILL)
        )
        write_on(tmp_path, jobs, **layout)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL and not path.exists()
    values = read(write_on(tmp_path, jobs, **layout))[0]
    known = np.isfinite([values[0], expected[0]])
    assert known.any(axis=0).sum() > 1000 and (known[0] != known[1]).sum() < 4  # ties at the edges
    np.testing.assert_allclose(values[:, known.all(axis=0)], expected[:, known.all(axis=0)], atol=1e-3)


def test_seams_between_zones_are_no_stronger_than_inside_a_zone(tmp_path):
    """Every tile has its own offset; the border of the zones lies between two columns of the raster in degrees."""
    jobs = write_parts(tmp_path, shapely.box(11.94, 49.96, 12.06, 50.04), noise=0.3)
    step = 0.001
    values, lon, lat, _ = read(write_on(tmp_path, jobs, crs="EPSG:4326", resolution=step))
    column = round((12 - lon[0, 0]) / step + 0.5)

    def across(left):
        """The seam at a column, as the mean over strips that hold no other one."""
        strips = [values[:, y : y + N - 1, left - N : left + N] for y in range(0, len(lat), N - 1)]
        return np.nanmean([seam_step(strip, N) for strip in strips if np.isfinite(strip).all()])

    inside = [across(left) for left in range(column - 40, column + 41) if abs(left - column) > 20]
    assert len(inside) > 10 and across(column) < np.max(inside)


def test_scenes_across_the_border_of_two_zones_become_one_map(tmp_path):
    """Two local scenes in their own zones, of which each holds tiles of the other."""
    mean, std = SENSORS[S2].statistics()
    for crs in ("EPSG:32632", "EPSG:32633"):
        x, y = transformer("EPSG:4326", crs).transform(12, 50)
        left, top = x // 10 * 10 - 1500, y // 10 * 10 + 1000
        rows, columns = np.mgrid[:200, :300] + 0.5
        lon, lat = transformer(crs, "EPSG:4326").transform(left + 10 * columns, top - 10 * rows)
        pattern = ground(20 * (lon % 360), 20 * lat)[..., [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]
        pixels = (mean + 0.3 * std * pattern).clip(1).astype(np.uint16)
        place = dict(crs=crs, transform=(10, 0, left, 0, -10, top), descriptions=SENSORS[S2].band_names)
        write_raster(tmp_path / "scenes" / f"{crs[5:]}.tif", np.moveaxis(pixels, -1, 0), nodata=0, **place)
    options = dict(scene=str(tmp_path / "scenes" / "*.tif"), size=64, progress=False, dense="cog", crs="EPSG:3035")
    area = (11.988, 49.994, 12.012, 50.006)
    result = embed_area(CLAY, S2, area, WHEN, tmp_path / "out", overlap=16, **options)
    raster, table = result.rasters
    values, lon, lat, profile = read(raster)
    inside = shapely.intersects_xy(shapely.box(*area), lon, lat)
    assert profile["crs"].to_epsg() == 3035 and inside.sum() > 200 and np.isfinite(values[:, inside]).all()
    assert len({tile[:5] for tile in result.vectors()["tile"]}) == 2 and result.rows == result.jobs
    frame = geopandas.read_parquet(table)
    assert frame.crs.to_epsg() == 3035 and len(frame) == result.rows
    assert frame.to_crs(4326).union_all().buffer(1e-6).covers(shapely.box(*area))
    assert open_vectors(tmp_path / "out").values.shape == (result.rows, 24)  # the copy in another CRS is no second row
    assert embed_area(CLAY, S2, area, WHEN, tmp_path / "out", overlap=16, **options).rows == 0
    west = open_scenes(tmp_path / "scenes" / "32632.tif", S2, when=WHEN)
    both = open_scenes(options["scene"], S2, when=WHEN)
    assert len(both) == 1 and both[0].archive.crs == "utm" and west[0].archive.crs == "EPSG:32632"
    coarse = place | dict(transform=(20, 0, left, 0, -20, top))
    write_raster(tmp_path / "scenes" / "z.tif", np.moveaxis(pixels, -1, 0), nodata=0, **coarse)
    with pytest.raises(ContractError, match="z.tif.*20 m; expected bands and pixels as in.*two products"):
        open_scenes(options["scene"], S2, when=WHEN)


def test_grids_by_a_file_bounds_and_zarr(tmp_path):
    jobs = write_parts(tmp_path / "parts", shapely.box(14.4, 50.0, 14.42, 50.01))
    like = tmp_path / "like.tif"
    write_raster(like, np.zeros((30, 40)), crs="EPSG:3035", transform=(70, 0, 4600030, 0, -70, 3010010))
    with rasterio.open(like) as file:
        corner = transformer(jobs[0].tile.crs, "EPSG:3035").transform(*jobs[0].tile.bounds[:2])
        assert file.transform.a == 70
    write_raster(like, np.zeros((30, 40)), crs="EPSG:3035", transform=(70, 0, corner[0] - 300, 0, -70, corner[1] + 300))
    values, *_, profile = read(write_on(tmp_path / "parts", jobs, like=str(like), normalize=True))
    with rasterio.open(like) as file:
        assert (profile["transform"], profile["height"], profile["width"]) == (file.transform, 30, 40)
    np.testing.assert_allclose(np.linalg.norm(values, axis=0)[np.isfinite(values[0])], 1, rtol=1e-5)
    bounds = (14.4, 50.0, 14.41, 50.005)
    path = write_on(tmp_path / "parts", jobs, "zarr", crs="EPSG:4326", resolution=0.001, bounds=bounds)
    opened = xr.open_zarr(path)["vectors"]
    assert opened.shape == (6, 5, 10) and float(opened.x[0]) == pytest.approx(14.4005)
    assert np.isfinite(opened.values).all()


def test_impossible_grids_are_refused():
    tiles = tiles_of(shapely.box(14.4, 50.0, 14.42, 50.01), GRID)
    for match, layout in (
        ("an EPSG code", dict(crs="EPSG:nowhere")),
        ("meters where the CRS has degrees", dict(crs="EPSG:4326", resolution=80)),
        ("in the units of the CRS", dict(crs="EPSG:3035", bounds="2,2,1,1")),
        ("the file is a complete grid", dict(crs="EPSG:3035", like="x.tif")),
    ):
        with pytest.raises(ContractError, match=match):
            grid_around(tiles, 80.0, **layout)
