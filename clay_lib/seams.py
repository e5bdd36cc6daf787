"""Seams: how much of a raster's pattern is that of the tiles or patches it was made of."""

from __future__ import annotations

import numpy as np


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
