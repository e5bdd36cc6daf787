"""A tiny model and chips that need no world, for tests of training."""

import numpy as np

from clay_lib import SENSORS, ClayConfig
from clay_lib.data.chips import Chips

MICRO = ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=64)


def fake_chips(sensor, n=12, size=16):
    """Chips with their number as value: chip k is constant, evenly spaced from -1 to 1 standard deviation."""
    spec = SENSORS[sensor]
    mean, std = spec.statistics()
    level = np.linspace(-1, 1, n)[:, None, None, None] * std[:, None, None] + mean[:, None, None]
    pixels = np.broadcast_to(10 ** (level / 10) if spec.decibel else level, (n, len(mean), size, size))
    labels, when = np.zeros((n, size, size), np.uint8), np.array(["2021-05-04T10:30"] * n)
    return Chips(sensor, pixels.astype(np.float32), labels, np.full(n, 10.0), np.full(n, 20.0), when)
