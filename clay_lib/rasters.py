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

from clay_lib.contract import ContractError
from clay_lib.dense import Mosaic, mosaics, place_means
from clay_lib.files import PARTIAL, write_whole
from clay_lib.seams import checkerboard, seam_step

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
            found=count,
            expected=f"1 to {min(taken.shape)}: {len(taken)} patch vectors of {taken.shape[1]} numbers",
            cause="more bands than the vectors have numbers, or a very small area",
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
            return write_whole(path, publish)
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

    write_whole(path, write)


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
