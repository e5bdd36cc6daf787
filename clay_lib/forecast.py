"""What a training run would take: a few real steps on this machine, and arithmetic from them."""

from __future__ import annotations

import time

from clay_lib.datamodule import Batch, batches_per_epoch, noise_batch
from clay_lib.training import ClayModule


def forecast_run(config, settings, data, guide, epochs, devices, nodes, accelerator, precision) -> int:
    """Measure a few real steps on this machine and tell what the whole run would take."""
    import torch

    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    bf16 = gpu if precision is None else precision.startswith("bf16")
    torch.manual_seed(settings.seed)
    module = ClayModule(config, settings, guide, cached=bool(data.targets)).to(device)
    module.setup("fit")
    optimizer = module.configure_optimizers()["optimizer"]
    counts = data.counts()
    width = config.teacher_dim if data.targets else None
    batches = [
        noise_batch(sensor, data.batch_size, data.crop or data.sizes.get(sensor, data.size), width).to(device)
        for sensor in counts
    ]

    def step(batch: Batch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = module.losses(batch, training=True)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def wait() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    for batch in batches:  # each sensor's first step is slower
        step(batch)
    rounds, began = 0, wait()
    while rounds < 2 or (time.perf_counter() - began < 10 and rounds < 50):
        for batch in batches:
            step(batch)
        rounds += 1
    each = (wait() - began) / (rounds * len(batches))  # seconds a batch

    ranks = (devices or 1) * (nodes or 1)
    batches_an_epoch = batches_per_epoch(counts, data.repeats, data.batch_size * ranks)
    steps = settings.max_steps if epochs is None else steps_of(batches_an_epoch, epochs, settings.accumulate)
    hours = steps * settings.accumulate * each / 3600
    chips = steps * settings.accumulate * data.batch_size * ranks
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    kind = "GPU-hours" if gpu else "process-hours"
    lines = {
        "chips": f"{sum(counts.values()):,} of {len(counts)} sensors",
        "chips seen": f"{chips:,} in {steps * settings.accumulate / batches_an_epoch:.2f} epochs",
        "steps": f"{steps:,} of {settings.accumulate} x {ranks} x {data.batch_size} chips",
        "measured": f"{data.batch_size / each:.1f} chips/s on {name}, one process, {rounds * len(batches)} steps, no loading",
        "hours": f"{hours:,.2f}",
        kind: f"{hours * ranks:,.2f}",
    }
    print("\n".join(f"{what:<16}{value}" for what, value in lines.items()))
    if ranks > 1:
        print(
            f"Arithmetic: {ranks} processes are taken to be as fast as the one measured, with nothing lost between them."
        )
    return 0


def steps_of(batches: int, epochs: float, accumulate: int) -> int:
    return max(1, round(epochs * batches / accumulate))
