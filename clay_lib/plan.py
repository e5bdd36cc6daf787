"""A plan on paper: what pretraining on 70 million chips would need, by arithmetic from named constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clay_lib import flops
from clay_lib.model import ClayConfig
from clay_lib.sensors import SENSORS

CHIPS = {  # of each source, from the public training-data page of the Clay documentation, v1
    "naip": 20_984_171,
    "sentinel-2-l2a": 18_683_945,
    "sentinel-1-rtc": 16_133_394,
    "landsat-c2l1": 5_827_333,
    "landsat-c2l2-sr": 5_790_651,
    "linz": 3_299_006,
    "modis": 1_350_864,
}
EPOCHS, PIXELS = 100, 256
FLIPS, TARGET_BYTES = 4, 2  # none, up-down, left-right, both; float16
TARGET_KEY, INDEX_BYTES = 21, 29  # bytes of key and checksum in a part's table; the same in memory, and where it is
UTILISATION = 0.4  # share of peak that a training step reaches; the forecast of a run measures its own
FILL_UTILISATION = 0.5  # a forward pass alone, with long sequences


@dataclass(frozen=True)
class Device:
    """One accelerator, by its maker's data sheet."""

    name: str
    peak: float  # FLOP/s, bfloat16, dense
    watts: float  # of the board at most


DEVICES = (Device("L4", 121e12, 72), Device("A100 SXM", 312e12, 400), Device("H100 SXM", 989e12, 700))


def chip_bytes(sensor: str, itemsize: int) -> int:
    """Pixels of one chip in the store, before compression."""
    return len(SENSORS[sensor].bands) * PIXELS**2 * itemsize


def store_bytes(itemsizes: Mapping[str, int], ratios: Mapping[str, float]) -> dict[str, float]:
    """Bytes of each sensor's chips. ratios: compressed over raw, measured."""
    return {s: n * chip_bytes(s, itemsizes[s]) * ratios[s] for s, n in CHIPS.items()}


def chips_seen() -> dict[str, int]:
    """Chips that training takes of each sensor in one epoch: sensors in turn, short ones repeated up to the longest."""
    return dict.fromkeys(CHIPS, max(CHIPS.values()))


def target_bytes(chips: int, teacher_dim: int) -> int:
    """The teacher cache: every chip in every flip."""
    return chips * FLIPS * (teacher_dim * TARGET_BYTES + TARGET_KEY)


def step_flops(config: ClayConfig, weights: Mapping[str, float]) -> float:
    """Of one chip, forward and backward, on average over the sensors with these weights."""
    each = {s: flops.student_step(config, bands=len(SENSORS[s].bands), pixels=PIXELS, batch=32) for s in weights}
    return sum(weights[s] * each[s] for s in weights) / sum(weights.values())


def gpu_hours(work: float, device: Device, utilisation: float) -> float:
    return work / (device.peak * utilisation) / 3600


def loader_rate(device: Device, bytes_each: float) -> tuple[float, float]:
    """(chips a second, bytes a second) that one GPU eats training large; bytes_each: of a stored chip on average."""
    chips = device.peak * UTILISATION / step_flops(ClayConfig.named("large"), chips_seen())
    return chips, chips * bytes_each
