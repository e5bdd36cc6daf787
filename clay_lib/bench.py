"""Timings on this machine: medians over repeats, and ratios within the one run, since machines differ and are shared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch

from clay_lib import flops
from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube, make_datacube
from clay_lib.loss import reconstruction_loss
from clay_lib.miniworld import MiniWorld
from clay_lib.model import ClayConfig, ClayMAE


@dataclass(frozen=True)
class Bench:
    """What is timed, at which size."""

    size: str  # of the model
    batch: int  # chips
    pixels: int  # a side
    repeats: int  # timed calls, after one to warm up


BENCHES = {
    "model": Bench("tiny", 16, 64, 7),  # the mini-world, the encoder and a plain training step
    "mae": Bench("base", 2, 256, 5),  # our training step beside the ViT-MAE of transformers
    "teacher": Bench("large", 4, 256, 2),  # our training step with cached targets beside the live DINOv2
}


def bench(
    what: str = "model,mae,teacher",
    *,
    size: str = "",
    batch: int = 0,
    pixels: int = 0,
    repeats: int = 0,
    teacher_pixels: int = 518,
) -> int:
    """Time the parts of a training step, and the step beside others in turn; print medians and ratios.

    Args:
        what: some of model, mae and teacher, separated by commas
        size: tiny, small, base or large; empty: tiny for model, base for mae, large for teacher
        batch: chips; 0: 16, 2 and 4 (with fewer, AdamW over all weights is a good part of a step on a CPU)
        pixels: a side of a chip; 0: 64, 256 and 256
        repeats: timed calls of each, after one to warm up; 0: 7, 5 and 2
        teacher_pixels: to which the live teacher's RGB is resized
    """
    asked = what.split(",")
    if unknown := sorted(set(asked) - set(BENCHES)):
        raise ContractError("what", found=unknown, expected=f"some of {list(BENCHES)}", cause="a misspelling")
    given = {k: v for k, v in dict(size=size, batch=batch, pixels=pixels, repeats=repeats).items() if v}
    for name in asked:
        chosen = replace(BENCHES[name], **given)
        _bench_model(chosen) if name == "model" else _bench_step(name, chosen, teacher_pixels)
    return 0


def median_seconds(work: Callable[[], object], *, repeats: int) -> float:
    """Median wall time of one call, after one call to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def step_seconds(model: ClayMAE, cube: Datacube, *, repeats: int) -> float:
    """Median wall time of one training step on a datacube: forward, masked as the model is, and backward."""

    def step() -> None:
        out = model(cube)
        reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=8).backward()

    return median_seconds(step, repeats=repeats)


def _bench_model(b: Bench) -> None:
    torch.manual_seed(0)
    world = MiniWorld(0)
    place = world.place(40, 0)
    chips = {
        side: median_seconds(lambda side=side: world.observe(place, size=side), repeats=b.repeats)
        for side in (b.pixels, 2 * b.pixels)
    }
    model = ClayMAE(ClayConfig.named(b.size))
    pixels = world.observe(place, size=b.pixels).pixels[None].repeat(b.batch, axis=0)
    cube = make_datacube(pixels, "sentinel-2-l2a", when="2023-06-10T10:30", lat=place.lat, lon=place.lon)

    with torch.inference_mode():
        whole = median_seconds(lambda: model.encoder(cube, mask_ratio=0.0), repeats=b.repeats)
        masked = median_seconds(lambda: model.encoder(cube, mask_ratio=0.75), repeats=b.repeats)
    training = step_seconds(model, cube, repeats=b.repeats)
    small, large = chips.values()
    _say(f"mini-world, Sentinel-2, {2 * b.pixels} px", large, f"{1 / large:.1f} chips/s on one core")
    _say(f"mini-world, Sentinel-2, {b.pixels} px", small, f"{small / large:.2f} of the larger chip")
    _say(
        f"{b.size} encoder, nothing masked",
        whole,
        f"{b.batch / whole:.0f} chips/s on {torch.get_num_threads()} threads",
    )
    _say(f"{b.size} encoder, 75 % masked", masked, f"{masked / whole:.2f} of nothing masked")
    _say(f"{b.size} training step", training, f"{training / masked:.1f} x the masked encoder")


def _bench_step(name: str, b: Bench, teacher_pixels: int) -> None:
    """Ratios above 1: ours is the faster one."""
    from clay_lib.bench_training import step_beside

    each = flops.student_step(ClayConfig.named(b.size), bands=10, pixels=b.pixels, batch=b.batch)
    both = 2 * each + (flops.dinov2_large(teacher_pixels) if name == "teacher" else 0)
    minutes = both * b.batch * (b.repeats + 1) / matrix_rate() / 60
    print(f"{name}: {b.repeats} pairs of steps, about {minutes:.1f} minutes", flush=True)
    ours, other, ratio, paper = step_beside(name, b.size, batch=b.batch, pixels=b.pixels, repeats=b.repeats, teacher_pixels=teacher_pixels)  # fmt: skip
    beside = {"mae": "ViT-MAE of transformers", "teacher": f"with DINOv2 large at {teacher_pixels} px"}[name]
    _say(
        f"{b.size} step, {b.batch} x {b.pixels} px",
        ours,
        f"{b.batch / ours:.2f} chips/s, {each * b.batch / ours / 1e9:.0f} GFLOP/s",
    )
    _say(beside, other, f"{ratio:.2f} x ours; {paper:.2f} x by operations")


def matrix_rate() -> float:
    """FLOP/s of a float32 product as wide as the model's."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 4096)
    return 2 * 1024 * 1024 * 4096 / median_seconds(lambda: a @ b, repeats=5)


def _say(what: str, seconds: float, note: str) -> None:
    print(f"{what:<36}{1000 * seconds:9.1f} ms   {note}", flush=True)
