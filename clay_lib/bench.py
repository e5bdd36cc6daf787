"""Timings on this machine: medians over repeats, and ratios within the one run, since machines differ and are shared."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from clay_lib.datacube import make_datacube
from clay_lib.loss import reconstruction_loss
from clay_lib.miniworld import MiniWorld
from clay_lib.model import ClayConfig, ClayMAE


def median_seconds(work: Callable[[], object], *, repeats: int) -> float:
    """Median wall time of one call, after one call to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def bench(repeats: int = 7, size: str = "tiny", batch: int = 16) -> int:
    """Time the mini-world, the encoder and a training step; print medians and ratios.

    Args:
        repeats: timed calls of each, after one to warm up
        size: of the model: tiny, small, base or large
        batch: chips of 64 x 64 pixels and ten bands in a batch
    """
    torch.manual_seed(0)
    world = MiniWorld(0)
    place = world.place(40, 0)
    chips = {
        pixels: median_seconds(lambda p=pixels: world.observe(place, size=p), repeats=repeats) for pixels in (64, 128)
    }

    model = ClayMAE(ClayConfig.named(size))
    pixels = world.observe(place, size=64).pixels[None].repeat(batch, axis=0)
    cube = make_datacube(pixels, "sentinel-2-l2a", when="2023-06-10T10:30", lat=place.lat, lon=place.lon)

    def step() -> None:
        out = model(cube)
        reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=8).backward()

    with torch.inference_mode():
        whole = median_seconds(lambda: model.encoder(cube, mask_ratio=0.0), repeats=repeats)
        masked = median_seconds(lambda: model.encoder(cube, mask_ratio=0.75), repeats=repeats)
    training = median_seconds(step, repeats=repeats)
    rows = [
        ("mini-world, Sentinel-2 128x128x10", chips[128], f"{1 / chips[128]:.1f} chips/s on one core"),
        ("mini-world, Sentinel-2 64x64x10", chips[64], f"{chips[64] / chips[128]:.2f} of the 128 pixel chip"),
        (f"{size} encoder, nothing masked", whole, f"{batch / whole:.0f} chips/s on {torch.get_num_threads()} threads"),
        (f"{size} encoder, 75 % masked", masked, f"{masked / whole:.2f} of nothing masked"),
        (f"{size} training step", training, f"{training / masked:.1f} x the masked encoder"),
    ]
    for what, seconds, note in rows:
        print(f"{what:<36}{1000 * seconds:9.1f} ms   {note}")
    return 0
