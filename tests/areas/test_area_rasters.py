"""Rasters of patch embeddings: blending, position offsets, georeference, components, and measures of seams."""

from types import SimpleNamespace

import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import pytest
import rasterio
import shapely
import xarray as xr

from clay_lib.areas import rasters
from clay_lib.areas.rasters import checkerboard, part_path, position_offsets, seam_step, write_rasters
from clay_lib.areas.tiles import Grid, tiles_of
from clay_lib.errors import ContractError

SIZE, PATCH, OVERLAP, DIM = 64, 8, 16, 6  # pixels; 8 patches a tile, 2 beyond each edge
N, EDGE = SIZE // PATCH, OVERLAP // PATCH
METADATA = dict(sensor="sentinel-2-l2a", model="clay", weights="w" * 16, configuration="c" * 16)
OPTIONS = dict(dates="best", overlap=OVERLAP, patch=PATCH, level=False, metadata=METADATA)
GRID = Grid("utm", 10.0, SIZE)
FIRST = tiles_of(shapely.Point(14.4, 50.0), GRID)[0]


def write_parts(folder, field, columns=3, rows=2):
    """Jobs of tiles with patches field(y, x) -> [..., D], counted from the corner of the north-western tile."""
    jobs = []
    for row, column in np.ndindex(rows, columns):
        tile = GRID.tile(FIRST.crs, FIRST.column + column, FIRST.row - row)
        job = SimpleNamespace(id=f"{tile.id}_sentinel-2-l2a_20230610", tile=tile)
        y, x = np.mgrid[row * N - EDGE : (row + 1) * N + EDGE, column * N - EDGE : (column + 1) * N + EDGE]
        rasters.write_patches(folder, job, field(y, x))
        jobs.append(job)
    return jobs


def blend(folder, jobs):
    """[H, W, D] of the only mosaic of the jobs."""
    (mosaic,) = rasters.mosaics(folder, jobs, dates="best", overlap=OVERLAP, patch=PATCH)
    rows = [[np.moveaxis(mosaic.block(y, x), 0, -1) for x in range(mosaic.columns)] for y in range(mosaic.rows)]
    return np.concatenate([np.concatenate(row, 1) for row in rows])


def plane(y, x):
    return np.stack([y * 0.5, x * 0.25, y - x, 0 * x + 3, x, y], axis=-1).astype(np.float32)


def test_blending_is_linear_in_the_overlap_and_ignores_holes(tmp_path):
    """Two adjacent tiles, one of zeros and one of ones."""
    jobs = write_parts(tmp_path, lambda y, x: np.zeros((*y.shape, DIM)), columns=2, rows=1)
    ones = np.ones((N + 2 * EDGE, N + 2 * EDGE, DIM))
    rasters.write_patches(tmp_path, jobs[1], ones)
    row = blend(tmp_path, jobs)[3, :, 0]
    np.testing.assert_allclose(row[: N - EDGE], 0)
    np.testing.assert_allclose(row[N - EDGE : N + EDGE], (np.arange(2 * EDGE) + 0.5) / (2 * EDGE), atol=1e-6)
    np.testing.assert_allclose(row[N + EDGE :], 1)
    ones[:, : 2 * EDGE + 1] = np.nan  # a hole in the right tile
    rasters.write_patches(tmp_path, jobs[1], ones)
    row = blend(tmp_path, jobs)[3, :, 0]
    np.testing.assert_allclose(row[: N + EDGE], 0)
    assert np.isnan(row[N + EDGE]) and (row[N + EDGE + 1 :] == 1).all()


def test_position_offsets_are_estimated_from_many_tiles(tmp_path):
    rng = np.random.default_rng(1)
    code = rng.normal(size=(N + 2 * EDGE, N + 2 * EDGE, DIM)).astype(np.float32)
    code -= code.mean((0, 1))
    ground = rng.normal(size=(400, 400, DIM)).astype(np.float32)

    def offsets(name, code, **shape):
        jobs = write_parts(tmp_path / name, lambda y, x: ground[y + EDGE, x + EDGE] + code, **shape)
        return position_offsets([part_path(tmp_path / name, job.id) for job in jobs])

    estimate = offsets("many", code, columns=12, rows=10)
    assert np.corrcoef(estimate.ravel(), code.ravel())[0, 1] > 0.98
    assert np.abs(estimate - code).mean() < 0.15 * np.abs(code).mean()
    assert not offsets("one", code, columns=1, rows=1).any()  # indistinguishable from the ground
    assert np.abs(offsets("none", 0, columns=12, rows=10)).mean() < 0.02


def test_cog_has_georeference_values_and_tags(tmp_path):
    jobs = write_parts(tmp_path, plane, columns=6, rows=5)
    gap = jobs.pop(7)  # row 1, column 1
    part_path(tmp_path, gap.id).unlink()
    (path,), measures = write_rasters(tmp_path, jobs, "cog", 0, **OPTIONS | dict(dates="all"))
    assert path.name == f"20230610-{FIRST.crs[5:]}-vectors.tif" and set(measures) == {path.name}
    with rasterio.open(path) as file:
        values = file.read()
        assert file.crs == FIRST.crs and file.count == DIM and np.isnan(file.nodata)
        assert file.transform == rasterio.Affine(80, 0, FIRST.bounds[0], 0, -80, FIRST.bounds[3])
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1) == [] and file.descriptions[2] == "vector 2"
        assert file.tags()["weights"] == METADATA["weights"] and "ramps over 32 pixels" in file.tags()["blending"]
    y, x = np.mgrid[: 5 * N, : 6 * N]
    hole = (y // N == 1) & (x // N == 1)
    assert (np.isnan(values) == hole).all()
    np.testing.assert_allclose(values[:, ~hole], np.moveaxis(plane(y, x), -1, 0)[:, ~hole], atol=0.15)  # up to 200
    with rasterio.open(write_rasters(tmp_path, jobs, "cog", 1, **OPTIONS)[0][0]) as file:
        assert file.name.endswith(f"best-{FIRST.crs[5:]}-pca-1.tif") and file.descriptions[0].startswith("component 1")


def test_zarr_of_components_opens_in_xarray(tmp_path):
    mixing = np.random.default_rng(0).normal(size=(2, DIM))

    def field(y, x):
        return np.stack([np.sin(y / 7), 0.3 * np.cos(x / 5)], axis=-1) @ mixing

    jobs = write_parts(tmp_path, field)
    (path,), _ = write_rasters(tmp_path, jobs, "zarr", 2, **OPTIONS)
    with np.load(tmp_path / "pca-2.npz") as saved:
        mean, axes, share = saved["mean"], saved["axes"], saved["share"]
    assert share.sum() == pytest.approx(1, abs=1e-3) and share[0] > share[1]
    assert (np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1) > 0).all()
    opened = xr.open_zarr(path)
    y, x = np.mgrid[: 2 * N, : 3 * N]
    expected = np.moveaxis((field(y, x) - mean) @ axes.T, -1, 0)
    np.testing.assert_allclose(opened["vectors"].values, expected, atol=0.02)
    assert float(opened.x[0]) == FIRST.bounds[0] + 40 and float(opened.y[0]) == FIRST.bounds[3] - 40
    assert opened["vectors"].odc.geobox.crs.to_epsg() == int(FIRST.crs[5:])
    assert opened["vectors"].attrs["weights"] == METADATA["weights"] and opened["vectors"].chunks[1] == (N, N)
    values = opened["vectors"].values
    (rewritten,), _ = write_rasters(tmp_path, jobs[::-1], "zarr", 2, **OPTIONS)
    assert np.array_equal(xr.open_zarr(rewritten)["vectors"].values, values)
    with pytest.raises(ContractError, match="components"):
        write_rasters(tmp_path, jobs, "cog", 99, **OPTIONS)


def test_measures_of_seams():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, 128, 128))
    pattern = noise + np.tile(rng.normal(size=(8, 8)), (16, 16))
    assert 0.7 < checkerboard(noise, 8) < 1.4
    assert checkerboard(pattern, 8) > 10 and checkerboard(pattern, 7) < 2
    assert checkerboard(noise + 0.5 * (np.arange(128) % 2), 2) > 4 * checkerboard(noise, 2)
    assert np.isnan(checkerboard(noise[:, :16, :16], 8))

    smooth = np.cumsum(np.cumsum(rng.normal(size=(3, 128, 128)), axis=1), axis=2)
    jumps = rng.normal(size=(3, 8, 8)).repeat(16, 1).repeat(16, 2) + 0.1 * noise
    assert seam_step(noise, 16) == pytest.approx(1, abs=0.05) and seam_step(smooth, 16) == pytest.approx(1, abs=0.2)
    assert seam_step(jumps, 16) > 5 and np.isnan(seam_step(noise[:, :8, :8], 16))
