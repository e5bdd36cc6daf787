"""Dense features: blending by hand, rasters where they belong, and measures that see what was put in."""

from types import SimpleNamespace

import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import pytest
import rasterio
import shapely
import xarray as xr

from clay_lib.areas import rasters
from clay_lib.areas.rasters import checkerboard, seam_step
from clay_lib.areas.tiles import Grid, tiles_of
from clay_lib.errors import ContractError

SIZE, PATCH, OVERLAP, DIM = 64, 8, 16, 6  # pixels; 8 patches a tile, 2 beyond each edge
N, EDGE = SIZE // PATCH, OVERLAP // PATCH
ABOUT = dict(sensor="sentinel-2-l2a", model="clay", weights="w" * 16, configuration="c" * 16)
GRID = Grid("utm", 10.0, SIZE)
FIRST = tiles_of(shapely.Point(14.4, 50.0), GRID)[0]


def tile_at(column, row):
    return GRID.tile(FIRST.crs, FIRST.column + column, FIRST.row - row)  # rows counted southwards, as in a raster


def write_parts(home, field, columns=3, rows=2, noise=0.0):
    """field(y, x) -> [..., D] over patches counted from the north-western tile's corner."""
    jobs = []
    rng = np.random.default_rng(0)
    for row in range(rows):
        for column in range(columns):
            tile = tile_at(column, row)
            job = SimpleNamespace(id=f"{tile.id}_sentinel-2-l2a_20230610", tile=tile)
            y, x = np.mgrid[row * N - EDGE : (row + 1) * N + EDGE, column * N - EDGE : (column + 1) * N + EDGE]
            values = field(y, x)
            rasters.write_part(home, job, values + noise * rng.normal(size=DIM))
            jobs.append(job)
    return jobs


def one_mosaic(home, jobs):
    (mosaic,) = rasters.mosaics(home, jobs, dated=False, overlap=OVERLAP, patch=PATCH)
    return mosaic


def whole(mosaic):
    out = np.full((*mosaic.shape, DIM), np.nan, np.float32)
    for place, y, x in mosaic.blocks():
        out[y, x] = mosaic.read(place)
    return out


def plane(y, x):
    return np.stack([y * 0.5, x * 0.25, y - x, 0 * x + 3, x, y], axis=-1).astype(np.float32)


@pytest.mark.parametrize("overlap", [0, 1, 2, 4])
def test_ramps_of_neighbours_sum_to_one(overlap):
    w = rasters.blend_ramp(N, overlap)
    line = np.zeros(3 * N + 2 * overlap)
    for k in range(3):
        line[k * N : (k + 1) * N + 2 * overlap] += w
    np.testing.assert_allclose(line[2 * overlap : -2 * overlap or None], 1, atol=1e-6)
    if overlap:
        assert w[0] < 0.5 / overlap and (np.diff(w[: 2 * overlap]) > 0).all()  # falls to nothing at the edge


def test_what_all_tiles_agree_on_comes_out_as_it_is(tmp_path):
    mosaic = one_mosaic(tmp_path, write_parts(tmp_path, plane))
    y, x = np.mgrid[: 2 * N, : 3 * N]
    np.testing.assert_allclose(whole(mosaic), plane(y, x), atol=0.02)  # float16 in the parts


def test_blending_by_hand(tmp_path):
    """Two tiles side by side of which one says 0 and one says 1: a straight line over the strip both know."""
    jobs = write_parts(tmp_path, lambda y, x: np.zeros((*y.shape, DIM)), columns=2, rows=1)
    rasters.write_part(tmp_path, jobs[1], np.ones((N + 2 * EDGE, N + 2 * EDGE, DIM)))
    row = whole(one_mosaic(tmp_path, jobs))[3, :, 0]
    np.testing.assert_allclose(row[: N - EDGE], 0)
    np.testing.assert_allclose(row[N - EDGE : N + EDGE], (np.arange(2 * EDGE) + 0.5) / (2 * EDGE), atol=1e-6)
    np.testing.assert_allclose(row[N + EDGE :], 1)
    holes = np.ones((N + 2 * EDGE, N + 2 * EDGE, DIM))
    holes[:, : 2 * EDGE + 1] = np.nan  # the right tile saw nothing there: the left one's word is all there is
    rasters.write_part(tmp_path, jobs[1], holes)
    row = whole(one_mosaic(tmp_path, jobs))[3, :, 0]
    np.testing.assert_allclose(row[: N + EDGE], 0)
    assert np.isnan(row[N + EDGE]) and (row[N + EDGE + 1 :] == 1).all()


def test_what_a_place_in_the_tile_adds_is_found_and_subtracted(tmp_path):
    rng = np.random.default_rng(1)
    code = rng.normal(size=(N + 2 * EDGE, N + 2 * EDGE, DIM)).astype(np.float32)
    code -= code.mean((0, 1))
    ground = rng.normal(size=(400, 400, DIM)).astype(np.float32)

    def seen(y, x):
        return ground[y + EDGE, x + EDGE] + code

    few, many = tmp_path / "few", tmp_path / "many"
    jobs = write_parts(many, seen, columns=12, rows=10)
    found = rasters.place_means([rasters.part_path(many, job.id) for job in jobs])
    assert np.corrcoef(found.ravel(), code.ravel())[0, 1] > 0.98
    assert np.abs(found - code).mean() < 0.15 * np.abs(code).mean()
    one = write_parts(few, seen, columns=1, rows=1)
    assert not rasters.place_means([rasters.part_path(few, one[0].id)]).any()  # cannot be told from the ground
    none = write_parts(tmp_path / "none", lambda y, x: ground[y + EDGE, x + EDGE], columns=12, rows=10)
    assert np.abs(rasters.place_means([rasters.part_path(tmp_path / "none", job.id) for job in none])).mean() < 0.02


def test_a_cog_is_where_it_belongs(tmp_path):
    jobs = write_parts(tmp_path, plane, columns=6, rows=5)
    jobs = [job for job in jobs if job.tile != tile_at(1, 1)]  # a tile with nothing in it
    rasters.part_path(tmp_path, f"{tile_at(1, 1).id}_sentinel-2-l2a_20230610").unlink()
    jobs_of = dict(dated=True, overlap=OVERLAP, patch=PATCH, level=False, about=ABOUT)
    (path,), measures = rasters.write_rasters(tmp_path, jobs, "cog", 0, **jobs_of)
    assert path.name == f"20230610-{FIRST.crs[5:]}-vectors.tif" and set(measures) == {path.name}
    with rasterio.open(path) as file:
        values = file.read()
        assert file.crs == FIRST.crs and file.count == DIM and np.isnan(file.nodata)
        assert file.transform == rasterio.Affine(80, 0, FIRST.bounds[0], 0, -80, FIRST.bounds[3])
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1) == [] and file.descriptions[2] == "vector 2"
        assert file.tags()["weights"] == ABOUT["weights"] and "ramps over 32 pixels" in file.tags()["blending"]
    y, x = np.mgrid[: 5 * N, : 6 * N]
    expected = np.moveaxis(plane(y, x), -1, 0)
    hole = np.zeros((5 * N, 6 * N), bool)
    hole[N : 2 * N, N : 2 * N] = True
    assert (np.isnan(values) == hole).all()
    np.testing.assert_allclose(values[:, ~hole], expected[:, ~hole], atol=0.15)  # float16, up to 200
    jobs_of |= dict(dated=False)
    with rasterio.open(rasters.write_rasters(tmp_path, jobs, "cog", 1, **jobs_of)[0][0]) as file:
        assert file.name.endswith(f"best-{FIRST.crs[5:]}-pca-1.tif") and file.descriptions[0].startswith("component 1")


def test_components_have_a_sign_and_a_zarr_opens(tmp_path):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, DIM))

    def field(y, x):
        return np.stack([np.sin(y / 7), 0.3 * np.cos(x / 5)], axis=-1) @ mixing

    jobs = write_parts(tmp_path, field)
    jobs_of = dict(dated=False, overlap=OVERLAP, patch=PATCH, level=False, about=ABOUT)
    (path,), _ = rasters.write_rasters(tmp_path, jobs, "zarr", 2, **jobs_of)
    with np.load(tmp_path / "pca-2.npz") as kept:
        mean, axes, share = kept["mean"], kept["axes"], kept["share"]
    assert share.sum() == pytest.approx(1, abs=1e-3) and share[0] > share[1]
    assert (np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1) > 0).all()
    opened = xr.open_zarr(path)
    y, x = np.mgrid[: 2 * N, : 3 * N]
    expected = np.moveaxis((field(y, x) - mean) @ axes.T, -1, 0)
    np.testing.assert_allclose(opened["vectors"].values, expected, atol=0.02)
    assert float(opened.x[0]) == FIRST.bounds[0] + 40 and float(opened.y[0]) == FIRST.bounds[3] - 40
    assert opened["vectors"].odc.geobox.crs.to_epsg() == int(FIRST.crs[5:])
    (again,), _ = rasters.write_rasters(tmp_path, list(reversed(jobs)), "zarr", 2, **jobs_of)
    assert np.array_equal(xr.open_zarr(again)["vectors"].values, opened["vectors"].values)
    with pytest.raises(ContractError, match="components"):
        rasters.write_rasters(tmp_path, jobs, "cog", 99, **jobs_of)


def test_measures_see_what_was_put_in():
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(3, 128, 128)), axis=1), axis=2)
    noise = rng.normal(size=(3, 128, 128))
    pattern = np.tile(rng.normal(size=(8, 8)), (16, 16))
    assert 0.7 < checkerboard(noise, 8) < 1.4
    assert checkerboard(noise + pattern, 8) > 10
    assert checkerboard(noise + pattern, 7) < 2  # another period's business
    lines = noise + 0.5 * (np.arange(128) % 2)
    assert checkerboard(lines, 2) > 4 * checkerboard(noise, 2)
    assert np.isnan(checkerboard(noise[:, :16, :16], 8))

    assert seam_step(noise, 16) == pytest.approx(1, abs=0.05)
    jumps = np.repeat(np.repeat(rng.normal(size=(3, 8, 8)), 16, 1), 16, 2) + 0.1 * noise
    assert seam_step(jumps, 16) > 5
    assert seam_step(smooth, 16) == pytest.approx(1, abs=0.2)
    assert np.isnan(seam_step(noise[:, :8, :8], 16))
