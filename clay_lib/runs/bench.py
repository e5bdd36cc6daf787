"""Timings on this machine: medians over repeats, and ratios within one run, since machines differ and are shared."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clay_lib.checkpoint import convert
from clay_lib.data.makers import MakerOutput, WorldMaker
from clay_lib.data.store import ChipStore, write_chips
from clay_lib.datacube import Datacube, make_datacube
from clay_lib.datamodule import Batch, noise_batch
from clay_lib.errors import ContractError
from clay_lib.loss import reconstruction_loss
from clay_lib.model import ClayConfig, ClayMAE
from clay_lib.sensors import SENSORS
from clay_lib.teacher import Teacher
from clay_lib.training import ClayModule
from clay_lib.world.earth import MiniWorld

SENSOR = "sentinel-2-l2a"


@dataclass(frozen=True)
class Workload:
    """What is timed, and at which size."""

    size: str  # of the model
    batch: int  # chips
    pixels: int  # a side
    repeats: int  # timed calls, after one to warm up
    count: int = 0  # chips in the store
    teacher_pixels: int = 518  # to which the live teacher's RGB is resized
    folder: str | None = None  # for temporary files


def bench(
    what: str = "model,mae,teacher",
    *,
    size: str = "",
    batch: int = 0,
    pixels: int = 0,
    repeats: int = 0,
    count: int = 0,
    teacher_pixels: int = 0,
    folder: str = "",
) -> int:
    """Time parts of the project on this machine; print medians and ratios.

    Example: clay bench model,chips

    Args:
        what: any of these, separated by commas. model: the mini-world, the encoder, a training step. mae: our
            training step beside the ViT-MAE of transformers. teacher: cached targets beside the live DINOv2. chips:
            writing and reading a chip store. load: seconds and memory of loading weights (large: 8 GB of disk).
            plan: the operations of papermill_runs/PRETRAINING.md
        size: tiny, small, base or large; empty: tiny for model, base for mae and chips, large for the others
        batch: chips; 0: 16 for model, 2 for mae, 4 for teacher, 32 for chips and plan
        pixels: a side of a chip; 0: 64 for model, 128 for chips, 256 for the others
        repeats: timed calls of each, after one to warm up; 0: 2 to 15
        count: chips in the store; 0: 512
        teacher_pixels: to which the live teacher's RGB is resized; 0: 518
        folder: for the files of load; empty: the system's folder for temporary files
    """
    names = what.split(",")
    if unknown := sorted(set(names) - set(BENCHES)):
        raise ContractError("what", unknown, f"some of {list(BENCHES)}", "a misspelled name")
    options = dict(size=size, batch=batch, pixels=pixels, repeats=repeats, count=count)
    options |= dict(teacher_pixels=teacher_pixels, folder=folder)
    for name in names:
        run, workload = BENCHES[name]
        run(replace(workload, **{key: value for key, value in options.items() if value}))
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


def paired_seconds(
    first: Callable[[], object], second: Callable[[], object], *, repeats: int, clock=time.perf_counter
) -> tuple[float, float, float]:
    """(median seconds of each, median of second / first), in turn, so that a busy machine is busy for both.

    The order alternates from pair to pair; each is called once before, to warm up.
    """
    works, seconds = (first, second), np.empty((repeats, 2))
    for work in works:
        work()
    for pair in range(repeats):
        for k in (0, 1) if pair % 2 == 0 else (1, 0):
            start = clock()
            works[k]()
            seconds[pair, k] = clock() - start
    return float(median(seconds[:, 0])), float(median(seconds[:, 1])), float(median(seconds[:, 1] / seconds[:, 0]))


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in a call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def step_flops(config: ClayConfig, sensor: str, *, batch: int, pixels: int) -> int:
    """Operations of one training step, forward and backward, on `batch` chips; on the meta device, without memory."""
    with torch.device("meta"):
        model, waves = ClayMAE(config), torch.empty(len(SENSORS[sensor].bands))
        codes = torch.empty(batch, 4)
        cube = Datacube(torch.empty(batch, len(waves), pixels, pixels), codes, codes, torch.empty(()), waves)

    def step() -> None:
        out = model(cube)
        (out.reconstruction.sum() + out.representation.sum()).backward()

    return count_flops(step)


def teacher_flops(pixels: int = 518) -> int:
    """Operations of the teacher's forward pass on one image."""
    with torch.device("meta"):
        teacher, image = random_dinov2_large(pixels), torch.empty(1, 3, pixels, pixels)
    return count_flops(lambda: teacher.network(image))


# ---- the model and its training step


def _bench_model(w: Workload) -> None:
    torch.manual_seed(0)
    world = MiniWorld(0)
    place = world.place(40, 0)
    small, large = (
        median_seconds(lambda side=side: world.observe(place, size=side), repeats=w.repeats)
        for side in (w.pixels, 2 * w.pixels)
    )
    model = ClayMAE(ClayConfig.named(w.size))
    pixels = world.observe(place, size=w.pixels).pixels[None].repeat(w.batch, axis=0)
    cube = make_datacube(pixels, SENSOR, when="2023-06-10T10:30", lat=place.lat, lon=place.lon)
    with torch.inference_mode():
        full = median_seconds(lambda: model.encoder(cube, mask_ratio=0.0), repeats=w.repeats)
        masked = median_seconds(lambda: model.encoder(cube, mask_ratio=0.75), repeats=w.repeats)
    training = _step_seconds(model, cube, repeats=w.repeats)
    threads = torch.get_num_threads()
    _print(f"mini-world, Sentinel-2, {2 * w.pixels} px", large, f"{1 / large:.1f} chips/s on one core")
    _print(f"mini-world, Sentinel-2, {w.pixels} px", small, f"{small / large:.2f} of the larger chip")
    _print(f"{w.size} encoder, nothing masked", full, f"{w.batch / full:.0f} chips/s on {threads} threads")
    _print(f"{w.size} encoder, 75 % masked", masked, f"{masked / full:.2f} of nothing masked")
    _print(f"{w.size} training step", training, f"{training / masked:.1f} x the masked encoder")


def _step_seconds(model: ClayMAE, cube: Datacube, *, repeats: int) -> float:
    """Median wall time of one training step on a datacube: forward, masked as the model is, and backward."""

    def step() -> None:
        out = model(cube)
        reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=8).backward()

    return median_seconds(step, repeats=repeats)


def _bench_mae(w: Workload) -> None:
    config = ClayConfig.named(w.size)
    bands = len(SENSORS[SENSOR].bands)
    plain = plain_mae(config, bands=bands, pixels=w.pixels)
    step = training_step(lambda batch: plain(batch.cube.pixels).loss, plain)
    with torch.device("meta"):
        counted = plain_mae(config, bands=bands, pixels=w.pixels)
        images = torch.empty(w.batch, bands, w.pixels, w.pixels)
    flops = count_flops(lambda: counted(images).loss.backward())
    _bench_step("mae", w, ClayModule(config, cached=True), "ViT-MAE of transformers", step, flops)


def _bench_teacher(w: Workload) -> None:
    config = ClayConfig.named(w.size)
    ours = ClayModule(config, teacher=random_dinov2_large(w.teacher_pixels), cached=True)
    step = training_step(lambda batch: ours.losses(batch, training=True)["loss"], ours)
    flops = step_flops(config, SENSOR, batch=w.batch, pixels=w.pixels) + w.batch * teacher_flops(w.teacher_pixels)
    without_targets = lambda batch: step(replace(batch, targets=None))  # noqa: E731, so that the teacher runs
    _bench_step("teacher", w, ours, f"with DINOv2 large at {w.teacher_pixels} px", without_targets, flops)


def _bench_step(
    name: str, w: Workload, ours: ClayModule, other_name: str, other: Callable[[Batch], None], other_flops: int
) -> None:
    """Our step (losses, backward, AdamW in float32, on noise) beside another; a ratio above 1: ours is faster."""
    torch.manual_seed(0)
    flops = step_flops(ours.model.config, SENSOR, batch=w.batch, pixels=w.pixels)
    minutes = (flops + other_flops) * (w.repeats + 1) / matrix_rate() / 60
    print(f"{name}: {w.repeats} pairs of steps, about {minutes:.1f} minutes", flush=True)
    step = training_step(lambda batch: ours.losses(batch, training=True)["loss"], ours)
    batch = noise_batch(SENSOR, w.batch, w.pixels, ours.model.config.teacher_dim)
    own, others, ratio = paired_seconds(lambda: step(batch), lambda: other(batch), repeats=w.repeats)
    rate = f"{w.batch / own:.2f} chips/s, {flops / own / 1e9:.0f} GFLOP/s"
    _print(f"{w.size} step, {w.batch} x {w.pixels} px", own, rate)
    _print(other_name, others, f"{ratio:.2f} x ours; {other_flops / flops:.2f} x by operations")


def training_step(loss: Callable[[Batch], Tensor], model: nn.Module) -> Callable[[Batch], None]:
    """One training step: loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, betas=(0.9, 0.95), fused=True)

    def step(batch: Batch) -> None:
        loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_dinov2_large(pixels: int = 518) -> Teacher:
    """The release's teacher with random weights: as slow as the trained one."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    shape = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14)
    config = Dinov2WithRegistersConfig(num_register_tokens=4, **shape)
    return Teacher(Dinov2WithRegistersModel(config), size=pixels, stand_in=True)


def plain_mae(config: ClayConfig, *, bands: int, pixels: int) -> nn.Module:
    """Hugging Face's masked autoencoder of the same width, depth, visible tokens and decoder."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    same = ViTMAEConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=int(config.dim * config.mlp_ratio),
        image_size=pixels,
        patch_size=config.patch_size,
        num_channels=bands,
        decoder_hidden_size=config.decoder_dim,
        decoder_num_hidden_layers=config.decoder_depth,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=int(config.decoder_dim * config.decoder_mlp_ratio),
        mask_ratio=config.mask_ratio,
        qkv_bias=False,
        attn_implementation="sdpa",
    )
    return ViTMAEForPreTraining(same).train()


def matrix_rate() -> float:
    """FLOP/s of a float32 product as wide as the model's."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 4096)
    return 2 * 1024 * 1024 * 4096 / median_seconds(lambda: a @ b, repeats=5)


def _print(name: str, seconds: float, note: str) -> None:
    print(f"{name:<36}{1000 * seconds:9.1f} ms   {note}", flush=True)


# ---- chip stores


class _ShiftedChips:
    """A maker that returns a few chips shifted: different ones, without the time that making them takes."""

    sensor, recipe = SENSOR, "shifted"

    def __init__(self, sample: MakerOutput, count: int):
        self.sample, self.count, self.size = sample, count, sample.chips.pixels.shape[-1]

    def __len__(self) -> int:
        return self.count

    def part(self, numbers: range) -> Callable[[], MakerOutput]:
        return lambda: self._shift(np.array(numbers))

    def _shift(self, numbers: np.ndarray) -> MakerOutput:
        shifts, sources = np.divmod(numbers, len(self.sample.chips))
        chips = self.sample.chips[sources]
        pixels = np.stack([np.roll(image, shift, -1) for image, shift in zip(chips.pixels, shifts, strict=True)])
        n = len(numbers)
        return MakerOutput(replace(chips, pixels=pixels), [None] * n, ["train"] * n, "shifted")


def _bench_chips(w: Workload) -> None:
    """A store of Sentinel-2 chips: writing, random reads, plain numpy.load, and a training step for comparison."""
    if w.count < w.batch:
        raise ContractError("count, batch", (w.count, w.batch), "batch at most count", "two numbers interchanged")
    sample = WorldMaker(SENSOR, 16, size=w.pixels).part(range(16))()
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_chips(Path(folder) / "store", [_ShiftedChips(sample, w.count)], jobs=1, progress=False)
        writing = (time.perf_counter() - start) / w.count
        chips = ChipStore.open(Path(folder) / "store").sensor(SENSOR, labels=False)
        plain = Path(folder) / "plain.npy"
        np.save(plain, chips[: w.batch].pixels)
        chip_bytes = plain.stat().st_size / w.batch
        shards = Path(folder).rglob("c/*/*/*/*")  # of the pixels, arrays of four dimensions
        stored = sum(shard.stat().st_size for shard in shards) / w.count

        def at_random(read: Callable[[np.ndarray], object]) -> float:
            indices = lambda: rng.choice(w.count, w.batch, replace=False)  # noqa: E731
            return median_seconds(lambda: read(indices()), repeats=w.repeats) / w.batch

        loading = median_seconds(lambda: np.load(plain), repeats=w.repeats) / w.batch
        reading = at_random(lambda index: chips[index])
        cubes = at_random(lambda index: make_datacube((c := chips[index]).pixels, c.sensor, **c.place_and_time))
    torch.manual_seed(0)
    pair = sample.chips[:2]
    cube = make_datacube(pair.pixels, pair.sensor, **pair.place_and_time)
    step = _step_seconds(ClayMAE(ClayConfig.named(w.size)), cube, repeats=3) / 2
    ratios = f"{loading / reading:.2f} of numpy.load; {chip_bytes / stored:.2f} x smaller"
    rows = [
        ("numpy.load of the same bytes", loading, "one plain file, in the system's cache"),
        ("store, batches at random", reading, ratios),
        ("... as normalized batches", cubes, "as a loading process returns them"),
        ("store, written", writing, "one process, chips in memory"),
        (f"{w.size} model, training step", step, f"reading is {step / cubes:.0f} x as fast as training"),
    ]
    print(
        f"Sentinel-2 {w.pixels} x {w.pixels} x 10, {chip_bytes / 1e3:.0f} kB a chip, {torch.get_num_threads()} threads"
    )
    for name, seconds, note in rows:
        print(f"{name:<30}{1 / seconds:>9.1f} chips/s{chip_bytes / 1e6 / seconds:>9.1f} MB/s   {note}")


# ---- loading weights: each file in a process of its own

_LOAD = """
import json, sys, time
from clay_lib.checkpoint import load_model
from clay_lib.cluster import peak_resident
before, start, busy = peak_resident(), time.perf_counter(), time.process_time()
model = load_model(sys.argv[1])
result = {"seconds": time.perf_counter() - start, "processor": time.process_time() - busy, "peak": peak_resident()}
size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
print(json.dumps({**result, "before": before, "model": size}))
"""


class Loaded(NamedTuple):
    """What loading a file took, measured in a process that did nothing else."""

    seconds: float  # of load_model alone
    processor: float  # seconds of processor time in it, which a busy machine does not change
    model: int  # bytes of the loaded model's own tensors
    before: int  # bytes resident with Python, torch and this library imported, nothing loaded
    peak: int  # highest resident bytes, including the mapped pages of the file

    @property
    def over(self) -> int:
        """Bytes of the peak beyond the model's own, Python and torch included."""
        return self.peak - self.model


def load_memory(path: str | Path) -> Loaded:
    """Load a file of weights in a fresh process, and measure it."""
    command = [sys.executable, "-c", _LOAD, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    if done.returncode:
        raise ContractError("load", done.stderr.strip().splitlines()[-1:], "a loaded model", f"see {path}")
    return Loaded(**json.loads(done.stdout))


def _bench_load(w: Workload) -> None:
    """Random weights with the teacher and the moments that the release has, and as safetensors."""
    with TemporaryDirectory(dir=w.folder) as folder:
        files = {name: Path(folder) / name for name in ("released.ckpt", "whole.safetensors", "encoder.safetensors")}
        weights = {f"model.{name}": t for name, t in ClayMAE(ClayConfig.named(w.size)).state_dict().items()}
        # Zeros take no memory. The teacher's 304 million weights are left out by name when the file is loaded.
        moments = {n: {"exp_avg": torch.zeros(t.shape), "exp_avg_sq": torch.zeros(t.shape)} for n, t in weights.items()}
        state = weights | {f"model.teacher.blocks.{i}.weight": torch.zeros(304_370_000 // 24) for i in range(24)}
        torch.save({"state_dict": state, "optimizer_states": [{"state": moments}]}, files["released.ckpt"])
        for part in ("whole", "encoder"):
            convert(str(files["released.ckpt"]), str(files[f"{part}.safetensors"]), part=part)
        columns = ("file GB", "seconds", "processor s", "model GB", "peak beyond GB", "before GB")
        print(f"{w.size:<22}" + "".join(f"{column:>16}" for column in columns))
        for name, path in files.items():
            took, size = load_memory(path), path.stat().st_size
            values = (size / 1e9, took.seconds, took.processor, took.model / 1e9, took.over / 1e9, took.before / 1e9)
            print(f"{name:<22}" + "".join(f"{value:16.2f}" for value in values), flush=True)


# ---- operations


def _bench_plan(w: Workload) -> None:
    """The counted operations from which papermill_runs/PRETRAINING.md starts."""
    # Six bands stand for all sensors in turn, whose mean differs by less than 1 %.
    step = step_flops(ClayConfig.named(w.size), "landsat-c2l2-sr", batch=w.batch, pixels=w.pixels) / w.batch
    teacher = teacher_flops(w.teacher_pixels)
    print(f"a chip: training step {step / 1e9:.0f} GFLOP, its teacher {teacher / 1e9:,.0f} GFLOP")


BENCHES = {
    "model": (_bench_model, Workload("tiny", batch=16, pixels=64, repeats=7)),
    "mae": (_bench_mae, Workload("base", batch=2, pixels=256, repeats=5)),
    "teacher": (_bench_teacher, Workload("large", batch=4, pixels=256, repeats=2)),
    "chips": (_bench_chips, Workload("base", batch=32, pixels=128, repeats=15, count=512)),
    "load": (_bench_load, Workload("large", batch=0, pixels=0, repeats=1)),
    "plan": (_bench_plan, Workload("large", batch=32, pixels=256, repeats=0)),
}
