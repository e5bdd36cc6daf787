"""Patch embeddings of many tiles as one georeferenced raster: a cloud-optimized GeoTIFF or Zarr, with blended seams.

    OUT/dense/SENSOR/run=CONFIGURATION-oOVERLAP/parts/JOB.npy     patch vectors of one tile, float16 [h, w, D]
    .../DATE-CRS-vectors.tif, -pca-N.tif or .zarr; pca-N.npz; places.npz    derived from the parts

A tile is embedded together with `overlap` pixels around it, so that neighbors share a strip. There a cell of the raster
is the mean of both, weighted by linear ramps that sum to one. Each block of the raster is computed from at most nine
parts and does not depend on the order in which they were written.
"""

import itertools
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import dask.array as da
import numpy as np
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.shutil import copy
from rasterio.warp import Affine, Resampling, reproject
from rasterio.windows import Window

from clay_lib.areas.tiles import Tile, crs_name, extent, transformer
from clay_lib.data.images import blend_ramp
from clay_lib.evaluation.components import Components, fit_components
from clay_lib.files import PARTIAL, atomic_write, make_folder

OFFSET_TILES = 400  # most parts used to estimate position offsets
BLOCK_BYTES = 16e6  # largest block of a GeoTIFF
PCA_SAMPLE = 20_000  # patch vectors to fit principal components on
SEAM_TILES = 16  # seams are measured in a corner of that many tiles a side


def dense_folder(out: str | Path, metadata: dict, overlap: int) -> Path:
    return Path(out) / "dense" / metadata["sensor"] / f"run={metadata['configuration']}-o{overlap}"


def part_path(folder: Path, job_id: str) -> Path:
    return folder / "parts" / f"{job_id}.npy"


def write_patches(folder: Path, job, patches: np.ndarray) -> Path:
    """Patch vectors [h, w, D] of a job's tile with its overlap; NaN where a patch was left out."""
    return atomic_write(part_path(folder, job.id), lambda path: np.save(path, np.asarray(patches, np.float16)))


# ---- blending ----


@dataclass(frozen=True, eq=False)
class Mosaic:
    """The parts of one sensor, date and CRS, and their layout in a raster of patches."""

    name: str  # DATE-CRS
    corner: Tile  # the north-western one
    rows: int  # tiles
    columns: int  # tiles
    parts: dict[tuple[int, int], list[Path]]  # {(row, column): one a date}, southwards and eastwards from the corner
    dim: int  # D
    overlap: int  # patches
    patch: int  # pixels
    offsets: np.ndarray | None = None  # [h, w, D], subtracted from every part, see `position_offsets`
    components: Components | None = None  # None: the raster holds complete vectors

    @property
    def side(self) -> int:
        """Cells along a side of a block, which is a tile: one a patch."""
        return self.corner.size // self.patch

    @property
    def bands(self) -> list[str]:
        if self.components is None:
            return [f"vector {k}" for k in range(self.dim)]
        return [f"component {k + 1} ({share:.0%} of variance)" for k, share in enumerate(self.components.share)]

    @property
    def geobox(self) -> GeoBox:
        """Of the raster, one cell per patch."""
        tile = self.corner.geobox().zoom_out(self.patch)
        return GeoBox((self.rows * self.side, self.columns * self.side), tile.affine, tile.crs)

    def sums(self, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a window in cells: weighted sums of the numbers [h, w, n], weights [h, w], and cells inside tiles [h, w].

        Beyond its tiles a mosaic has the overlap, with falling weights; a patch that was left out has no weight.
        """
        n, o = self.side, self.overlap
        total, weight = np.zeros((height, width, len(self.bands)), np.float32), np.zeros((height, width), np.float32)
        inside, ramp = np.zeros((height, width), bool), blend_ramp(n, o)  # [n + 2 o]

        def shared(first: int, count: int, start: int, length: int) -> tuple[slice, slice]:
            """Cells first to first + count within a window: (in the window, from the first)."""
            low, high = max(first, start), max(first, start, min(first + count, start + length))
            return slice(low - start, high - start), slice(low - first, high - first)

        rows = range((top - o) // n, (top + height + o - 1) // n + 1)
        tiles = itertools.product(rows, range((left - o) // n, (left + width + o - 1) // n + 1))
        for row, column, path in ((*tile, path) for tile in tiles for path in self.parts.get(tile, ())):
            y, part_y = shared(row * n - o, n + 2 * o, top, height)
            x, part_x = shared(column * n - o, n + 2 * o, left, width)
            part = np.load(path, mmap_mode="r")[part_y, part_x].astype(np.float32)
            if self.offsets is not None:
                part -= self.offsets[part_y, part_x]
            w = np.where(np.isfinite(part[..., 0]), ramp[part_y, None] * ramp[None, part_x], 0)
            part = np.where(w[..., None] > 0, part, 0)
            total[y, x] += (part if self.components is None else self.components(part)) * w[..., None]
            weight[y, x] += w
            inside[shared(row * n, n, top, height)[0], shared(column * n, n, left, width)[0]] = True
        return total, weight, inside

    def block(self, row: int, column: int) -> np.ndarray:
        """[bands, side, side] float32 of the raster: a tile blended with its neighbors; NaN where there is no patch."""
        total, weight, inside = self.sums(row * self.side, column * self.side, self.side, self.side)
        return mean_of(total, weight, inside & (weight > 0))


@dataclass(frozen=True, eq=False)
class Warped:
    """Mosaics of several CRS on one grid: vectors are interpolated, bilinear, and weighted as at the seams of tiles.

    Sums and weights are interpolated apart, so that patches without data count nowhere, and one zone of UTM passes into
    the next within the overlap of its outermost tiles. Coarser cells are means of the patches below them.
    """

    name: str  # DATE-CRS-RESOLUTION
    mosaics: Sequence[Mosaic]
    geobox: GeoBox
    normalize: bool = False  # vectors of length one

    @property
    def bands(self) -> list[str]:
        return self.mosaics[0].bands

    @cached_property
    def scales(self) -> list[float]:
        """Patches of each mosaic along a side of a cell, at the mosaic's center."""
        scales = []
        for mosaic in self.mosaics:
            center = mosaic.columns * mosaic.side / 2, mosaic.rows * mosaic.side / 2
            x, y = _pixels(mosaic.geobox, self.geobox, *center)
            columns, rows = _pixels(self.geobox, mosaic.geobox, np.array([x, x + 1, x]), np.array([y, y, y + 1]))
            steps = np.hypot(np.diff(columns[[1, 0, 2]]), np.diff(rows[[1, 0, 2]]))
            scales.append(float(steps.mean()) if np.isfinite(steps).all() else 1.0)
        return scales

    @property
    def side(self) -> int:
        """Cells along a side of a block, so that a block and the patches below it fit into a small memory."""
        cells = math.sqrt(BLOCK_BYTES / 4 / len(self.bands)) / max(1, *self.scales)
        return int(np.clip(cells, 1, 256))

    def block(self, row: int, column: int) -> np.ndarray:
        """[bands, h, w] float32 of the raster, `side` cells or fewer at its edges; NaN where there is no patch."""
        starts = row * self.side, column * self.side
        ends = (min(start + self.side, length) for start, length in zip(starts, self.geobox.shape, strict=True))
        part = self.geobox[tuple(map(slice, starts, ends))]
        sums = np.zeros((len(self.bands) + 2, *part.shape), np.float32)
        x, y = np.meshgrid(*(np.linspace(0, side, 9) for side in part.shape[::-1]))
        for mosaic, scale in zip(self.mosaics, self.scales, strict=True):
            source, margin, o = mosaic.geobox, math.ceil(scale) + 2, mosaic.overlap
            columns, rows = _pixels(part, source, x, y)
            if not np.isfinite([columns, rows]).all():  # far outside of the projection
                continue
            left, right = np.clip([columns.min() - margin, columns.max() + margin], -o - 1, source.shape[1] + o + 1)
            top, bottom = np.clip([rows.min() - margin, rows.max() + margin], -o - 1, source.shape[0] + o + 1)
            left, top, right, bottom = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
            total, weight, inside = mosaic.sums(top, left, bottom - top, right - left)
            if not weight.any():
                continue
            stack = np.concatenate([np.moveaxis(total, -1, 0), weight[None], (inside & (weight > 0))[None]])
            place = dict(src_transform=source.affine * Affine.translation(left, top), src_crs=str(source.crs))
            place |= dict(dst_transform=part.affine, dst_crs=str(part.crs), resampling=Resampling.bilinear)
            density = min(1.0, 1 / scale)  # the same in all blocks; GDAL would estimate it block by block
            sums += reproject(stack, np.zeros_like(sums), **place, XSCALE=density, YSCALE=density)[0]
        total, weight = np.moveaxis(sums[:-2], 0, -1), sums[-2]
        mean = mean_of(total, weight, sums[-1] > 0.5 - 1e-3)
        return mean / np.linalg.norm(mean, axis=0) if self.normalize else mean


def _pixels(source, target, x, y) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows) in one GeoBox of the columns x and rows y in another."""
    return ~target.affine * transformer(str(source.crs), str(target.crs)).transform(*(source.affine * (x, y)))


def mean_of(total: np.ndarray, weight: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Weighted sums [h, w, n] and weights [h, w] -> means [n, h, w] float32, NaN where not valid."""
    mean = np.where(valid[..., None], total / np.maximum(weight, 1e-9)[..., None], np.nan)
    return np.ascontiguousarray(np.moveaxis(mean, -1, 0), np.float32)


def mosaics(folder: Path, jobs: Sequence, *, dates: str, overlap: int, patch: int) -> list[Mosaic]:
    """One mosaic per CRS of the jobs that have a part, and per date if `dates` is "all"; its other values are "best",
    the only one of a tile, and "mean" of all. overlap, patch: pixels.
    """
    groups: dict[tuple, list] = {}  # by name and pixel corners
    for job in jobs:
        if part_path(folder, job.id).is_file():
            day = job.id.split("_")[2] if dates == "all" else dates
            groups.setdefault((f"{day}-{crs_name(job.tile.crs)}", job.tile.anchor), []).append(job)
    layers, names = [], [name for name, _ in groups]
    for (name, anchor), members in sorted(groups.items()):
        if names.count(name) > 1:  # scenes whose pixels do not lie on one grid
            name += f"-{anchor[0]:g}-{anchor[1]:g}"
        corner, rows, columns = extent([job.tile for job in members])
        parts: dict[tuple[int, int], list[Path]] = {}
        for job in members:
            at = corner.row - job.tile.row, job.tile.column - corner.column
            parts.setdefault(at, []).append(part_path(folder, job.id))
        dim = np.load(next(iter(parts.values()))[0], mmap_mode="r").shape[-1]
        layers.append(Mosaic(name, corner, rows, columns, parts, dim, overlap // patch, patch))
    return layers


def position_offsets(parts: Sequence[Path]) -> np.ndarray:
    """[h, w, D]: the part of patch vectors that depends on their position in the tile, from means over many tiles.

    The position code of a patch leaves a trace in its vector, visible as a grid over the raster. Over many tiles the
    ground at a position is random, so the trace is the mean at that position minus the mean over all positions. It is
    shrunk by the part expected by chance for that number of tiles (James and Stein 1961): to zero for one tile.
    """
    chosen = np.unique(np.linspace(0, len(parts) - 1, min(len(parts), OFFSET_TILES)).round().astype(int))
    total = squares = count = 0.0
    for k in chosen:
        values = np.load(parts[k]).astype(np.float64)  # [h, w, D]
        valid = np.isfinite(values[..., :1])
        values = np.where(valid, values, 0)
        total, squares, count = total + values, squares + values**2, count + valid
    if np.max(count) < 2:
        return np.zeros(total.shape, np.float32)
    n = np.maximum(count, 1)
    means = total / n
    overall = total.sum((0, 1)) / max(count.sum(), 1)
    offsets = np.where(count > 0, means - overall, 0)
    spread = (squares - n * means**2).sum() / max((count - 1).clip(min=0).sum(), 1)  # variance at one position
    chance = (spread / n * (count > 0)).sum()
    return (max(0.0, 1 - chance / max((offsets**2).sum(), 1e-30)) * offsets).astype(np.float32)


# ---- rasters ----


def sample_patches(layers: Sequence[Mosaic], count: int = PCA_SAMPLE, seed: int = 0) -> np.ndarray:
    """At most `count` blended patch vectors [M, D], equally many from every tile."""
    tiles = [(mosaic, position) for mosaic in layers for position in sorted(mosaic.parts)]
    rng = np.random.default_rng(seed)
    if len(tiles) > count:
        tiles = [tiles[k] for k in sorted(rng.choice(len(tiles), count, replace=False))]
    per_tile, rows = max(1, count // len(tiles)), []
    for mosaic, position in tiles:
        patches = mosaic.block(*position)  # [D, side, side]
        patches = patches[:, np.isfinite(patches[0])].T
        rows.append(patches[np.sort(rng.permutation(len(patches))[:per_tile])])
    return np.concatenate(rows)


def write_rasters(
    folder: Path,
    jobs: Sequence,
    kind: str,
    count: int,
    *,
    dates: str,
    overlap: int,
    patch: int,
    level: bool,
    metadata: dict,
    grid=None,
    normalize: bool = False,
) -> tuple[tuple[Path, ...], dict[str, dict[str, float]]]:
    """Write one raster per mosaic, kind "cog" or "zarr": (paths, {file name: {measure of seams: value}}).

    dates: as in `mosaics`. count: number of principal components, fitted on all mosaics together and saved with them;
    0: complete vectors. level: subtract position offsets, and save them with the rasters. grid: an odc.geo GeoBox, onto
    which all mosaics of a date are brought, with vectors of length one if `normalize`. Seams are those of tiles.
    """
    layers = mosaics(folder, jobs, dates=dates, overlap=overlap, patch=patch)
    if not layers:
        return (), {}
    tags = {name: str(metadata[name]) for name in ("sensor", "model", "weights", "configuration")}
    tags |= {"blending": f"linear ramps over {2 * overlap} pixels at every seam"}
    if level:
        offsets = position_offsets([path for mosaic in layers for paths in mosaic.parts.values() for path in paths])
        atomic_write(folder / "places.npz", lambda partial: np.savez(partial, places=offsets))
        layers = [replace(mosaic, offsets=offsets) for mosaic in layers]
        tags |= {"subtracted": "places.npz, the part of vectors that depends on their position in the tile"}
    name = f"pca-{count}" if count else "vectors"
    if count:
        components = fit_components(sample_patches(layers), count)
        atomic_write(folder / f"{name}.npz", lambda partial: np.savez(partial, **vars(components)))
        layers = [replace(mosaic, components=components) for mosaic in layers]
    write, ending = {"cog": (write_cog, "tif"), "zarr": (write_zarr, "zarr")}[kind]
    paths, measures = [], {}
    for mosaic in layers:
        if grid is None:
            paths.append(write(mosaic, folder / f"{mosaic.name}-{name}.{ending}", tags))
        # Seams are measured in the north-western corner, for complete vectors in their first eight numbers.
        rows, columns, bands = min(mosaic.rows, SEAM_TILES), min(mosaic.columns, SEAM_TILES), None if count else 8
        sample = np.block([[mosaic.block(y, x)[:bands] for x in range(columns)] for y in range(rows)])
        measures[paths[-1].name if grid is None else mosaic.name] = {
            "seam_step": seam_step(sample, mosaic.side),
            "tiles": checkerboard(sample, mosaic.side),
            "patches": checkerboard(sample, 2),
        }
    if grid is not None:
        for day in dict.fromkeys(mosaic.name.partition("-")[0] for mosaic in layers):
            members = [mosaic for mosaic in layers if mosaic.name.startswith(f"{day}-")]
            layer = Warped(f"{day}-{crs_name(str(grid.crs))}-{abs(grid.affine.a):g}", members, grid, normalize)
            paths.append(write(layer, folder / f"{layer.name}-{name}.{ending}", tags))
    return tuple(paths), measures


def write_cog(mosaic: Mosaic, path: Path, tags: dict[str, str]) -> Path:
    """A cloud-optimized GeoTIFF, float32 with NaN as nodata: one band per component or per number of the vectors."""
    box, bands, n = mosaic.geobox, mosaic.bands, mosaic.side
    height, width = box.shape
    # All numbers of a cell are stored together, in blocks small enough to be read for one cell.
    side = next((side for side in (256, 128) if side**2 * 4 * len(bands) <= BLOCK_BYTES), 64)
    profile = dict(driver="GTiff", dtype="float32", count=len(bands), height=height, width=width, nodata=np.nan)
    profile |= dict(crs=str(box.crs), transform=box.affine, SPARSE_OK=True, BIGTIFF="IF_SAFER", INTERLEAVE="PIXEL")
    profile |= dict(tiled=True, blockxsize=side, blockysize=side)
    scratch = path.with_name(f"{PARTIAL}{os.getpid()}-scratch.tif")
    make_folder(path.parent)
    checksums: dict[Window, int] = {}

    def publish(partial: Path) -> None:
        options = dict(compress="deflate", predictor="yes", blocksize=side, bigtiff="if_safer", statistics="yes")
        copy(str(scratch), str(partial), driver="COG", overview_resampling="average", **options)
        with rasterio.open(partial) as file:  # GDAL does not report a full disk when it closes a file
            for window, checksum in checksums.items():
                if zlib.crc32(file.read(window=window)) != checksum:
                    raise OSError(f"{path} could not be written completely")

    try:
        with rasterio.Env(GDAL_CACHEMAX=128):
            with rasterio.open(scratch, "w", **profile) as target:
                for row, column in np.ndindex(-(-height // n), -(-width // n)):
                    block = mosaic.block(row, column)
                    window = Window(column * n, row * n, *block.shape[:0:-1])
                    checksums[window] = zlib.crc32(block)
                    target.write(block, window=window)
                for index, text in enumerate(bands, start=1):
                    target.set_band_description(index, text)
                target.update_tags(**tags)
            return atomic_write(path, publish)
    except (RasterioError, CPLE_BaseError) as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        for leftover in path.parent.glob(f"{scratch.name}*"):
            leftover.unlink()


def write_zarr(mosaic: Mosaic, path: Path, tags: dict[str, str]) -> Path:
    """A Zarr group for xarray: `vectors` [D, y, x] float16 (components: float32), a chunk per tile, CRS in `spatial_ref`."""

    def chunk(block_id: tuple[int, int, int]) -> np.ndarray:
        return mosaic.block(*block_id[1:]).astype(dtype)

    complete, bands, n = mosaic.bands[0].startswith("vector"), len(mosaic.bands), mosaic.side
    dtype = np.float16 if complete else np.float32
    chunks = da.core.normalize_chunks((bands, n, n), (bands, *mosaic.geobox.shape))
    data = da.map_blocks(chunk, chunks=chunks, dtype=dtype, meta=np.empty((0, 0, 0), dtype))
    coords = {"band": np.arange(bands)} | xr_coords(mosaic.geobox, dims=("y", "x"))
    vectors = xr.DataArray(data, coords, ("band", "y", "x"), "vectors", tags)
    vectors.encoding = {"chunks": (bands, n, n), "_FillValue": np.nan}
    vectors.encoding |= {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
    scratch = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # consolidated metadata are not in the specification of Zarr 3 yet
            vectors.to_dataset().to_zarr(scratch, mode="w")
        if path.exists():
            shutil.rmtree(path)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


# ---- seams ----


def seam_step(raster: np.ndarray, period: int) -> float:
    """Mean step between cells across tile edges over that elsewhere, of [C, H, W]; 1: no visible seam; NaN: no edge.

    period: cells along a side of a tile, whose edges lie at its multiples. A step is the distance of two vectors [C].
    Cells next to an edge are not counted as "elsewhere".
    """
    across, elsewhere = [], []
    for axis in (1, 2):
        steps = np.sqrt((np.diff(raster.astype(np.float32), axis=axis) ** 2).sum(0))
        steps = steps if axis == 1 else steps.T
        offset = np.arange(1, len(steps) + 1) % period  # 0: the step crosses an edge
        across.append(steps[offset == 0].ravel())
        elsewhere.append(steps[(offset > 1) & (offset < period - 1)].ravel())
    across, elsewhere = np.concatenate(across), np.concatenate(elsewhere)
    if not np.isfinite(across).any() or not np.nansum(elsewhere) > 0:
        return float("nan")
    return float(np.nanmean(across) / np.nanmean(elsewhere))


def checkerboard(raster: np.ndarray, period: int) -> float:
    """Energy at a period over that of the neighboring frequencies, of [C, H, W] or [H, W]; 1: no periodic pattern.

    A tiled raster of patch vectors may repeat at the period of the tiles (in patches), a reconstructed image at that of
    the patches (in pixels). Energy: the power spectrum along x and along y, summed over the other axis and the bands,
    at the frequency 1 / period and its multiples up to half a cycle per cell; neighbors: the mean of the two adjacent
    frequencies. NaN cells count as the mean.
    """
    raster = raster[None] if raster.ndim == 2 else raster
    ratios = []
    for axis in (1, 2):
        length = raster.shape[axis] // period * period
        if length < 4 * period:  # else the neighbors of a frequency are multiples of it themselves
            continue
        part = np.take(raster, np.arange(length), axis).astype(np.float64)
        part = np.nan_to_num(part - np.nanmean(part, axis=(1, 2), keepdims=True))
        power = (np.abs(np.fft.rfft(part, axis=axis)) ** 2).sum(axis=tuple({0, 1, 2} - {axis}))
        at = np.arange(length // period, len(power), length // period)
        below, above = power[at - 1], power[np.where(at + 1 < len(power), at + 1, at - 1)]
        ratios.append(power[at].sum() / max(np.mean([below, above], axis=0).sum(), 1e-30))
    return float(np.mean(ratios)) if ratios else float("nan")
