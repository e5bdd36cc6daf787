"""Where an item's files measured: alpha bands, GDAL's masks, and fills that count only where all bands hold them.

Found on the files' own pixels and brought to the grid as the bands are: a pixel of the grid was measured only if all was
that it is interpolated from, so that no fill bleeds into its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_reproject_roi
from rasterio.enums import ColorInterp, Resampling
from rasterio.warp import reproject
from rasterio.windows import Window, from_bounds

from clay_lib.archive_profiles import Archive
from clay_lib.scenes import has_mask

ALL = 0.999  # of the weights that make a pixel, but for their rounding


def measured_share(sources: Sequence[tuple[str, int]], archive: Archive, geobox: GeoBox) -> tuple[tuple, np.ndarray]:
    """(rows and columns of geobox, float32 there): of each pixel the share that was measured.

    sources: (address, 1-based band), one a band of the sensor. Files of coarser bands cover the same ground.
    """
    with ExitStack() as stack:
        opened = {name: stack.enter_context(rasterio.open(name, sharing=False)) for name in dict(sources)}
        bands = [(opened[name], index) for name, index in sources]
        grids = dict.fromkeys((file.shape, file.transform, file.crs) for file in opened.values())
        share = np.ones(geobox.shape, np.float32)
        for grid in grids:
            own = GeoBox(*grid)
            way = compute_reproject_roi(own, geobox)
            here = np.zeros(geobox.shape, np.float32)
            if math.prod(here[way.roi_dst].shape):
                if way.paste_ok and way.read_shrink == 1 and not archive.alpha and len(grids) == 1:
                    here[way.roi_dst] = 1  # the stored numbers themselves will tell
                else:
                    shrink = way.read_shrink if bands[0][0].overviews(1) else 1  # as the bands are read
                    part = own[way.roi_src]
                    part = part.zoom_to(tuple(math.ceil(side / shrink) for side in part.shape))
                    seen = np.zeros(here[way.roi_dst].shape, np.float32)
                    reproject(
                        _measured(bands, archive, own, way.roi_src, part).astype(np.float32), seen,
                        src_crs=grid[2], src_transform=part.transform,
                        dst_crs=str(geobox.crs), dst_transform=geobox[way.roi_dst].transform,
                        resampling=Resampling.bilinear,
                    )  # fmt: skip
                    here[way.roi_dst] = seen
            share = np.minimum(share, here)
    return np.s_[0 : geobox.shape[0], 0 : geobox.shape[1]], share


def _measured(bands, archive: Archive, own: GeoBox, roi, part: GeoBox) -> np.ndarray:
    """bool on `part`, which is own[roi] or coarser."""

    def read(file, index):  # nearest; index 0: the mask
        same = (file.shape, file.transform) == (own.shape, own.transform)
        window = Window.from_slices(*roi) if same else from_bounds(*part.boundingbox.bbox, file.transform)
        return (file.read if index else file.read_masks)(index or 1, window=window, out_shape=tuple(part.shape))

    fill = np.full(part.shape, archive.together is not None)
    for file, index in bands:
        if fill.any():
            fill &= read(file, index) == archive.together
    for file in dict.fromkeys(file for file, _ in bands) if archive.alpha else ():
        kinds = file.colorinterp
        if ColorInterp.alpha in kinds:
            fill |= read(file, kinds.index(ColorInterp.alpha) + 1) == 0
        elif has_mask(file):
            fill |= read(file, 0) == 0
    return ~fill
