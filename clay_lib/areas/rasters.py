"""Rasters: dense features as a cloud-optimised GeoTIFF or Zarr, all numbers or their principal components."""

from __future__ import annotations

import os
import shutil
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clay_lib.areas.tiles import Tile, crs_name
from clay_lib.data.images import blend_ramp
from clay_lib.errors import ContractError
from clay_lib.files import PARTIAL, atomic_write

TILES = 400  # of which the mean at every place is taken, at most


def folder(out: str | Path, about: dict, overlap: int) -> Path:
    return Path(out) / "dense" / about["sensor"] / f"run={about['configuration']}-o{overlap}"


def part_path(home: Path, job_id: str) -> Path:
    return home / "parts" / f"{job_id}.npy"


def write_part(home: Path, job, patches: np.ndarray) -> Path:
    """Patch vectors [h, w, D] of a job's tile with its overlap; NaN where a patch was left out."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.save(file, np.asarray(patches, np.float16))

    return atomic_write(part_path(home, job.id), write)


# ---- blending ----


@dataclass(frozen=True, eq=False)
class Mosaic:
    """The parts of one sensor, date and CRS on one grid of tiles. cells, overlap: patches; patch: pixels.

    parts: {(column, row): path}, columns eastwards and rows northwards, as in tiles.py.
    """

    home: Path
    name: str
    tile: Tile  # any one of them: it says grid and CRS
    parts: dict[tuple[int, int], Path]
    cells: int
    overlap: int
    patch: int
    places: np.ndarray | float = 0.0  # [h, w, D], subtracted from every part: see `place_means`

    @property
    def corner(self) -> tuple[int, int]:
        """(column, row) of the north-western tile of the raster."""
        return min(c for c, _ in self.parts), max(r for _, r in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the raster, in patches."""
        west, north = self.corner
        east, south = max(c for c, _ in self.parts), min(r for _, r in self.parts)
        return (north - south + 1) * self.cells, (east - west + 1) * self.cells

    @property
    def geobox(self):
        from odc.geo.geobox import GeoBox
        from rasterio.transform import Affine

        west, _, _, north = replace(self.tile, column=self.corner[0], row=self.corner[1]).bounds
        step = self.patch * self.tile.gsd
        return GeoBox(self.shape, Affine(step, 0, west, 0, -step, north), self.tile.crs)

    def blocks(self, *, everywhere: bool = False):
        """((column, row), slice of rows, slice of columns) of every tile's place in the raster, row by row.

        everywhere: of the places without a tile as well.
        """
        west, north = self.corner
        places = list(self.parts)
        if everywhere:
            down, across = (side // self.cells for side in self.shape)
            places = [(west + x, north - y) for y in range(down) for x in range(across)]
        for column, row in sorted(places, key=lambda place: (-place[1], place[0])):
            y, x = (north - row) * self.cells, (column - west) * self.cells
            yield (column, row), slice(y, y + self.cells), slice(x, x + self.cells)

    def read(self, place: tuple[int, int]) -> np.ndarray:
        """[cells, cells, D] float32, blended; NaN where no tile saw a patch."""
        n, o = self.cells, self.overlap
        total = weight = None
        for dx in (-1, 0, 1) if o else (0,):
            for dy in (-1, 0, 1) if o else (0,):
                path = self.parts.get((place[0] + dx, place[1] + dy))
                if path is None:
                    continue
                # Rows of the raster run southwards, so a neighbour to the north has its southern overlap here.
                rows, columns = _shared(-dy, n, o), _shared(dx, n, o)
                part = np.load(path, mmap_mode="r")[rows[1], columns[1]].astype(np.float32)
                part -= self.places if np.isscalar(self.places) else self.places[rows[1], columns[1]]
                w = blend_ramp(n, o)[rows[1], None] * blend_ramp(n, o)[None, columns[1]]
                w = np.where(np.isfinite(part[..., 0]), w, 0)[..., None]
                if total is None:
                    total, weight = np.zeros((n, n, part.shape[-1]), np.float32), np.zeros((n, n, 1), np.float32)
                total[rows[0], columns[0]] += np.where(w > 0, part, 0) * w
                weight[rows[0], columns[0]] += w
        return np.where(weight > 0, total / np.maximum(weight, 1e-9), np.nan)


def _shared(step: int, n: int, o: int) -> tuple[slice, slice]:
    """(where in the block, where in the part) of what a part `step` tiles further along one side knows of the block."""
    if step == 0:
        return slice(0, n), slice(o, o + n)
    return (slice(n - o, n), slice(0, o)) if step > 0 else (slice(0, o), slice(o + n, 2 * o + n))


def mosaics(home: Path, jobs: Sequence, *, dated: bool, overlap: int, patch: int) -> list[Mosaic]:
    """One a CRS, and one a date where `dated`: of the jobs whose parts are there."""
    groups: dict[str, list] = {}
    for job in jobs:
        if part_path(home, job.id).is_file():
            day = job.id.split("_")[2]
            groups.setdefault(f"{day if dated else 'best'}-{crs_name(job.tile.crs)}", []).append(job)
    made = []
    for name, some in sorted(groups.items()):
        parts = {(job.tile.column, job.tile.row): part_path(home, job.id) for job in some}
        made.append(Mosaic(home, name, some[0].tile, parts, some[0].tile.size // patch, overlap // patch, patch))
    return made


def place_means(parts: Sequence[Path]) -> np.ndarray:
    """[h, w, D]: what a patch's vector owes to its place in the tile, from the means over many tiles at every place.

    The model codes where in its image a patch lies, and part of that code stays in the vector: as a grid over the whole
    raster. Over many tiles the ground at a place is any ground, so the mean there less the mean of all is that part. It
    is shrunk by what so many tiles would give by chance (James and Stein 1961): of one tile nothing is left.
    """
    paths = [parts[k] for k in np.unique(np.linspace(0, len(parts) - 1, min(len(parts), TILES)).round().astype(int))]
    total = squares = count = 0.0
    for path in paths:
        values = np.load(path).astype(np.float64)
        held = np.isfinite(values[..., :1])
        values = np.where(held, values, 0)
        total, squares, count = total + values, squares + values**2, count + held
    if np.max(count) < 2:
        return np.zeros(total.shape, np.float32)
    some = np.maximum(count, 1)
    means = total / some
    everywhere = total.sum((0, 1)) / max(count.sum(), 1)
    owed = np.where(count > 0, means - everywhere, 0)
    spread = (squares - some * means**2).sum() / max((count - 1).clip(min=0).sum(), 1)  # of a vector at its place
    chance = (spread / some * (count > 0)).sum()
    return (max(0.0, 1 - chance / max((owed**2).sum(), 1e-30)) * owed).astype(np.float32)


# ---- Seams: how much of a raster's pattern is that of the tiles or patches it was made of ----


def seam_step(raster: np.ndarray, period: int) -> float:
    """Mean step from cell to cell across the edges of tiles beside that elsewhere, of [C, H, W]; 1: no seam shows.

    period: cells a side of a tile, whose edges lie at its multiples. A step is the distance of two vectors [C]. The
    cells next to an edge are left out of "elsewhere". NaN: there is no edge.
    """
    across, elsewhere = [], []
    for axis in (1, 2):
        steps = np.sqrt((np.diff(raster.astype(np.float32), axis=axis) ** 2).sum(0))
        steps = steps if axis == 1 else steps.T
        at = np.arange(1, len(steps) + 1) % period  # which edge the step crosses
        across.append(steps[at == 0].ravel())
        elsewhere.append(steps[(at > 1) & (at < period - 1)].ravel())
    across, elsewhere = np.concatenate(across), np.concatenate(elsewhere)
    if not np.isfinite(across).any() or not np.nansum(elsewhere) > 0:
        return float("nan")
    return float(np.nanmean(across) / np.nanmean(elsewhere))


def checkerboard(raster: np.ndarray, period: int) -> float:
    """Energy at a period beside that of its neighbouring frequencies, of [C, H, W] or [H, W]; 1: nothing stands out.

    A raster of patch vectors made of tiles may repeat at the period of the tiles (in patches), a picture rebuilt from
    patches at that of the patches (in pixels). Energy: the power spectrum along x and along y, summed over the other
    direction and the bands, at the frequency 1 / period and its multiples up to half a cycle a cell; neighbours: the
    mean of the two frequencies beside each. Cells that are NaN count as the mean.
    """
    raster = raster[None] if raster.ndim == 2 else raster
    found = []
    for axis in (1, 2):
        length = raster.shape[axis] // period * period
        if length < 4 * period:  # the neighbours of a frequency must be others than its multiples
            continue
        part = np.take(raster, np.arange(length), axis).astype(np.float64)
        part = part - np.nanmean(part, axis=(1, 2), keepdims=True)
        part = np.nan_to_num(part)
        power = (np.abs(np.fft.rfft(part, axis=axis)) ** 2).sum(axis=tuple({0, 1, 2} - {axis}))
        at = np.arange(length // period, len(power), length // period)
        beside = [power[at - 1], power[np.minimum(at + 1, len(power) - 1)]]
        beside[1] = np.where(at + 1 < len(power), beside[1], beside[0])
        found.append(power[at].sum() / max(np.mean(beside, axis=0).sum(), 1e-30))
    return float(np.mean(found)) if found else float("nan")


# ---- Rasters: dense features as a cloud-optimised GeoTIFF or Zarr, all numbers or their principal compone ----

BLOCK_BYTES = 16e6
SAMPLE = 20_000  # patch vectors that principal components are fitted on


@dataclass(frozen=True, eq=False)
class Components:
    """mean [D], axes [n, D], share [n]: each one's part of the sample's variance."""

    mean: np.ndarray
    axes: np.ndarray
    share: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """[..., D] -> [..., n]."""
        return (vectors - self.mean) @ self.axes.T


def fit_components(parts: Sequence[Mosaic], count: int, *, sample: int = SAMPLE, seed: int = 0) -> Components:
    """Principal components of at most `sample` blended patch vectors, the same number from every tile.

    An axis points where its largest entry is positive, so that the same area always has the same colours.
    """
    from sklearn.decomposition import PCA

    places = [(mosaic, place) for mosaic in parts for place, _, _ in mosaic.blocks()]
    rng = np.random.default_rng(seed)
    if len(places) > sample:
        places = [places[k] for k in sorted(rng.choice(len(places), sample, replace=False))]
    each, taken = max(1, sample // len(places)), []
    for mosaic, place in places:
        flat = mosaic.read(place)
        flat = flat[np.isfinite(flat[..., 0])]
        taken.append(flat[np.sort(rng.permutation(len(flat))[:each])])
    taken = np.concatenate(taken)
    if not 1 <= count <= min(taken.shape):
        raise ContractError(
            "components",
            count,
            f"1 to {min(taken.shape)}: {len(taken)} patch vectors of {taken.shape[1]} numbers",
            "more bands than the vectors have numbers, or a very small area",
        )
    fitted = PCA(count, svd_solver="full").fit(taken.astype(np.float64))
    axes = fitted.components_
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    as_float = [np.asarray(v, np.float32) for v in (fitted.mean_, axes, fitted.explained_variance_ratio_)]
    return Components(*as_float)


def write_cog(mosaic: Mosaic, path: Path, components: Components | None, tags: dict[str, str]) -> Path:
    """A cloud-optimised GeoTIFF, float32 with NaN for nothing: a band a component, or a band a number of the vectors."""
    import rasterio
    from rasterio._err import CPLE_BaseError
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError
    from rasterio.shutil import copy
    from rasterio.windows import Window

    box, bands = mosaic.geobox, _bands(mosaic, components)
    height, width = mosaic.shape
    profile = dict(driver="GTiff", dtype="float32", count=len(bands), height=height, width=width, nodata=np.nan)
    # All numbers of a place lie together, in blocks that are not too large to be read for one place.
    side = next((side for side in (256, 128) if side**2 * 4 * len(bands) <= BLOCK_BYTES), 64)
    layout = dict(tiled=True, blockxsize=side, blockysize=side, BIGTIFF="IF_SAFER", INTERLEAVE="PIXEL")
    profile |= dict(crs=str(box.crs), transform=box.affine, SPARSE_OK=True) | layout
    scratch = path.with_name(f"{PARTIAL}{os.getpid()}-scratch.tif")
    path.parent.mkdir(parents=True, exist_ok=True)
    sums: dict[Window, int] = {}

    def publish(partial: Path) -> None:
        copy(
            str(scratch),
            str(partial),
            driver="GTiff",
            copy_src_overviews=True,
            compress="deflate",
            predictor=3,
            **layout,
        )
        with rasterio.open(partial) as file:  # GDAL does not tell of a disk that fills up while it closes a file
            for window, told in sums.items():
                if zlib.crc32(file.read(window=window)) != told:
                    raise OSError(f"{path} could not be written whole")

    try:
        with rasterio.Env(GDAL_CACHEMAX=128):
            with rasterio.open(scratch, "w", **profile) as target:
                for place, rows, columns in mosaic.blocks(everywhere=True):
                    block, window = _block(mosaic, place, components), Window.from_slices(rows, columns)
                    sums[window] = zlib.crc32(block)
                    target.write(block, window=window)
                for index, text in enumerate(bands, start=1):
                    target.set_band_description(index, text)
                target.update_tags(**tags)
                levels = [2**k for k in range(1, 12) if max(height, width) >> k >= 128]
                if levels:
                    target.build_overviews(levels, Resampling.average)
            return atomic_write(path, publish)
    except (RasterioError, CPLE_BaseError) as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        for left in path.parent.glob(f"{scratch.name}*"):
            left.unlink()


def write_zarr(mosaic: Mosaic, path: Path, components: Components | None, tags: dict[str, str]) -> Path:
    """A Zarr group that xarray opens: `vectors` [D, y, x] float16, a chunk a tile, with the CRS in `spatial_ref`."""
    import zarr

    bands = _bands(mosaic, components)
    box = mosaic.geobox
    scratch = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        group = zarr.create_group(scratch)
        shape, chunks = (len(bands), *mosaic.shape), (len(bands), mosaic.cells, mosaic.cells)
        kind = "float32" if components is not None else "float16"
        held = group.create_array(
            "vectors", shape=shape, chunks=chunks, dtype=kind, fill_value=np.nan, dimension_names=("band", "y", "x")
        )
        held.attrs.update({"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"} | tags)
        x = box.affine.c + box.affine.a * (np.arange(shape[2]) + 0.5)
        y = box.affine.f + box.affine.e * (np.arange(shape[1]) + 0.5)
        for name, values in (("x", x), ("y", y)):
            group.create_array(name, data=values, dimension_names=(name,)).attrs["units"] = "m"
        group.create_array("band", data=np.arange(len(bands)), dimension_names=("band",))
        wkt = box.crs.to_wkt()
        group.create_array("spatial_ref", data=np.array(0)).attrs.update(
            {"crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": " ".join(map(str, box.affine.to_gdal()))}
        )
        for place, rows, columns in mosaic.blocks():
            held[:, rows, columns] = _block(mosaic, place, components).astype(kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not in the specification of Zarr 3 yet, but xarray looks for it
            zarr.consolidate_metadata(scratch)
        if path.exists():
            shutil.rmtree(path)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _bands(mosaic: Mosaic, components: Components | None) -> list[str]:
    if components is not None:
        return [f"component {k + 1} ({share:.0%} of variance)" for k, share in enumerate(components.share)]
    first = next(iter(mosaic.parts.values()))
    return [f"vector {k}" for k in range(np.load(first, mmap_mode="r").shape[-1])]


def _block(mosaic: Mosaic, place: tuple[int, int], components: Components | None) -> np.ndarray:
    """[bands, cells, cells] float32."""
    if place not in mosaic.parts:
        return np.full((len(_bands(mosaic, components)), mosaic.cells, mosaic.cells), np.nan, np.float32)
    block = mosaic.read(place)
    return np.ascontiguousarray(np.moveaxis(components(block) if components is not None else block, -1, 0), np.float32)


def write_rasters(
    home: Path,
    jobs: Sequence,
    kind: str,
    count: int,
    *,
    dated: bool,
    overlap: int,
    patch: int,
    level: bool,
    about: dict,
) -> tuple[tuple[Path, ...], dict[str, dict[str, float]]]:
    """A raster of each mosaic of the jobs' parts, kind "cog" or "zarr": (paths, {name: {measure: figure}}).

    count: principal components, fitted on all of them together and kept beside; 0: the vectors themselves.
    level: what vectors owe to their place in the tile is subtracted, and kept beside.
    """
    made = mosaics(home, jobs, dated=dated, overlap=overlap, patch=patch)
    if not made:
        return (), {}
    tags = {name: str(about[name]) for name in ("sensor", "model", "weights", "configuration")}
    tags |= {"blending": f"linear ramps over {2 * overlap} pixels at every seam"}
    if level:
        places = place_means([path for mosaic in made for path in mosaic.parts.values()])
        _keep(home / "places.npz", places=places)
        made = [replace(mosaic, places=places) for mosaic in made]
        tags |= {"subtracted": "places.npz, what vectors owe to their place in the tile"}
    components = fit_components(made, count) if count else None
    what = f"pca-{count}" if count else "vectors"
    if components is not None:
        _keep(home / f"{what}.npz", **vars(components))
    write, ending = {"cog": (write_cog, "tif"), "zarr": (write_zarr, "zarr")}[kind]
    paths, measured = [], {}
    for mosaic in made:
        paths.append(write(mosaic, home / f"{mosaic.name}-{what}.{ending}", components, tags))
        some = _sample(mosaic, components)
        measured[paths[-1].name] = {
            "seam_step": seam_step(some, mosaic.cells),
            "tiles": checkerboard(some, mosaic.cells),
            "patches": checkerboard(some, 2),
        }
    return tuple(paths), measured


def _keep(path: Path, **arrays: np.ndarray) -> None:
    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)

    atomic_write(path, write)


def _sample(mosaic: Mosaic, components: Components | None, most: int = 16) -> np.ndarray:
    """[bands, H, W] of at most `most` x `most` tiles in the raster's north-western corner."""
    rows, columns = (min(side, most * mosaic.cells) for side in mosaic.shape)
    bands = 8 if components is None else None  # a few of the vectors' numbers tell as much
    out = None
    for place, y, x in mosaic.blocks():
        if y.start < rows and x.start < columns:
            block = _block(mosaic, place, components)[:bands]
            out = np.full((len(block), rows, columns), np.nan, np.float32) if out is None else out
            out[:, y, x] = block
    return out
