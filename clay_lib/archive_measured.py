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
from odc.geo.roi import roi_is_empty, roi_pad
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
        shares = [_share_on(GeoBox(*grid), bands, archive, geobox, alone=len(grids) == 1) for grid in grids]
    return np.s_[0 : geobox.shape[0], 0 : geobox.shape[1]], np.minimum.reduce(shares)


def _share_on(own: GeoBox, bands, archive: Archive, geobox: GeoBox, alone: bool) -> np.ndarray:
    """float32 [H, W] of geobox, from the pixels of the files' grid `own`. alone: there is no other."""
    way = compute_reproject_roi(own, geobox)
    share = np.zeros(geobox.shape, np.float32)
    if way.paste_ok and way.read_shrink == 1 and alone and not archive.alpha:
        share[way.roi_dst] = 1  # the stored numbers themselves will tell
    elif not (roi_is_empty(way.roi_src) or roi_is_empty(way.roi_dst)):
        roi = roi_pad(way.roi_src, 2 + math.ceil(way.scale), tuple(own.shape))  # what the outermost are made of
        shrink = way.read_shrink if bands[0][0].overviews(1) else 1  # as the bands are read
        part = own[roi].zoom_to(tuple(math.ceil(side / shrink) for side in own[roi].shape))
        share[way.roi_dst], _ = reproject(
            _measured(bands, archive, own, roi, part).astype(np.float32), np.zeros_like(share[way.roi_dst]),
            src_crs=str(own.crs), src_transform=part.transform,
            dst_crs=str(geobox.crs), dst_transform=geobox[way.roi_dst].transform,
            resampling=Resampling.bilinear,
        )  # fmt: skip
    return share


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
