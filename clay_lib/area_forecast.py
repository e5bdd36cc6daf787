"""Forecast of embedding an area: tiles, bytes and minutes, before anything is fetched."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from clay_lib.model import Clay
from clay_lib.sensors import Sensor

NETWORK = 12.5  # MB/s that a forecast assumes of reading: 100 Mbit/s


@dataclass(frozen=True)
class AreaForecast:
    """What `embed_area` would take, before anything is fetched."""

    jobs: int
    done: int
    looks: int
    read: int  # bytes
    write: int  # bytes
    model_seconds: float  # measured on made-up chips
    network: float = NETWORK  # MB/s, assumed

    @property
    def seconds(self) -> float:
        """Reading runs beside the model, so the slower of the two."""
        return max(self.model_seconds, self.read / (self.network * 1e6))

    def __str__(self) -> str:
        lines = {
            "tiles": f"{self.jobs - self.done:,} to embed, {self.done:,} done before, from {self.looks} dates",
            "to read": f"{self.read / 1e6:,.0f} MB",
            "to write": f"{self.write / 1e6:,.1f} MB",
            "minutes": f"{self.seconds / 60:,.1f}: the model {self.model_seconds / 60:,.1f} (measured on made-up chips), "
            f"reading {self.read / self.network / 6e7:,.1f} (at {self.network:g} MB/s, assumed), side by side",
        }
        return "\n".join(f"{what:<10}{value}" for what, value in lines.items())


def forecast_area(
    clay, sensor, blocks, lacking, looks, settings, overlap, components, batch_size, network
) -> AreaForecast:
    from clay_lib.archives import read_bytes

    jobs = [job for block in blocks for job in block.jobs]
    todo = [job for job in jobs if job.id in lacking]
    fetched = [block for block in blocks if any(job.id in lacking for job in block.jobs)]
    asked = fetched[:: max(1, len(fetched) // 64)]  # of many blocks, evenly spaced ones tell enough
    read = (
        sum(read_bytes(block.look, block.geobox(overlap or 0)) for block in asked) * len(fetched) / max(1, len(asked))
    )
    dim, number = clay.model.config.dim, 2 if settings.store == "float16" else 1
    write = len(todo) * (2 * dim * number + 700)
    wide = settings.size + 2 * (overlap or 0)
    if overlap is not None:
        patch = clay.model.config.patch_size
        write += len(todo) * ((wide // patch) ** 2 * dim * 2 + (settings.size // patch) ** 2 * 4 * (components or dim))
    sides = [settings.size] + ([wide] if overlap else [])
    seconds = sum(seconds_a_chip(clay, sensor, side, batch_size) for side in sides) if todo else 0.0
    return AreaForecast(len(jobs), len(jobs) - len(todo), len(looks), round(read), write, seconds * len(todo), network)


def seconds_a_chip(clay: Clay, sensor: Sensor, size: int, batch_size: int) -> float:
    """Of embedding made-up chips of a sensor, after one batch that warms up."""
    noise = np.random.default_rng(0).normal(size=(batch_size, len(sensor.bands), size, size)).astype(np.float32)
    pixels = sensor.denormalise(noise)
    told = dict(when="2023-06-10T10:30", lat=10.0, lon=20.0, check=False)
    clay.embed(pixels[:1], sensor, **told).chip.cpu()
    began = time.perf_counter()
    clay.embed(pixels, sensor, **told).chip.cpu()
    return (time.perf_counter() - began) / batch_size
