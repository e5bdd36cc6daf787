"""Missing pixels: which stored numbers say that nothing was measured. Arrays alone, so that no raster library is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from clay_lib.sensors import Sensor

MODIS_FILL = 32767


def missing_pixels(pixels: np.ndarray, nodata: Sequence[float | None], sensor: Sensor) -> np.ndarray:
    """Pixels [C, H, W] in the dtype they were stored in, nodata one a band -> bool [C, H, W], True where not measured.

    A fill inside the range of measurements (0; 255 in 8 bit) counts only where every band holds it.
    """
    missing = np.isnan(pixels) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, bool)
    ordinary = missing.copy()
    for band, fill in enumerate(nodata):
        if fill is not None and not math.isnan(fill):
            measurable = fill == 0 or (fill == 255 and pixels.dtype == np.uint8)
            (ordinary if measurable else missing)[band] |= pixels[band] == fill
    if sensor.name == "modis":
        missing |= pixels == MODIS_FILL
    return missing | ordinary.all(axis=0)


def looks_like_decibel(pixels: np.ndarray) -> bool:
    """Backscatter whose median is negative cannot be linear power. NaN: missing."""
    return bool(np.nanmedian(pixels) < 0) if np.isfinite(pixels).any() else False
