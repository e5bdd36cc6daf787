"""Clouds: which pixels an archive's own classification hides, from Sentinel-2's SCL to Landsat's and MODIS's bit fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Field = tuple[int, int, Sequence[int]]  # first bit, last bit, the values that hide the ground


def hidden(classes: np.ndarray, fields: Sequence[Field]) -> np.ndarray:
    """Classes of any shape, unsigned integers -> bool, True where one of the fields holds one of its values.

    >>> hidden(scl, [(0, 7, [3, 8, 9, 10])])  # an ordinary class band is a field of all its bits
    """
    out = np.zeros(classes.shape, bool)
    for first, last, values in fields:
        out |= np.isin((classes >> first) & ((1 << (last - first + 1)) - 1), list(values))
    return out
