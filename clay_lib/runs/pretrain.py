"""Pretraining from a configuration file: the command `clay train`, which starts a run and resumes it.

clay train --config run.yaml --settings.max_steps 10
torchrun --nnodes 4 --nproc-per-node 8 -m clay_lib train --config run.yaml
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from torch import nn

from clay_lib.clay import Clay
from clay_lib.cluster import forecast_lines
from clay_lib.data.chips import Chips, world_chips
from clay_lib.data.store import ChipStore
from clay_lib.data.targets import TargetCache
from clay_lib.datamodule import Batch, ClayDataModule, PlannedBatches, SensorBatches, batches_per_epoch, noise_batch
from clay_lib.encoder import patchify, unpatchify
from clay_lib.errors import ContractError, Count, NonNegative, Range, Share, check_ranges
from clay_lib.files import make_folder, read_json, read_yaml, write_json, write_yaml
from clay_lib.model import ClayConfig, ClayMAE
from clay_lib.precision import arithmetic, check_precision, choose
from clay_lib.runs.prepare import check_names, find_logger, find_start, find_teacher
from clay_lib.sensors import SENSORS, WORLD_SENSORS
from clay_lib.training import ClayModule, TrainSettings, check_unchanged
from clay_lib.training import train as run_training

Size = Annotated[int, Range(0)]
WEIGHTS = "weights.safetensors"
CHANGEABLE = ("workers", "on_damage")  # data options that may differ when a run resumes


@dataclass(frozen=True)
class ModelChoice:
    """A released size, and changes to it by the field names of ClayConfig.

    Args:
        size: tiny, small, base or large
        changes: such as {depth: 4, frequencies: geometric}
    """

    size: str = "tiny"
    changes: dict[str, Any] = field(default_factory=dict)

    def config(self, teacher_dim: int | None) -> ClayConfig:
        """The model's configuration, with a projection as wide as the teacher's output."""
        check_names(self.changes, ClayConfig, "model.changes.")
        width = {} if teacher_dim is None else {"teacher_dim": teacher_dim}
        return ClayConfig.named(self.size, **{**width, **self.changes})


@dataclass(frozen=True)
class DataChoice:
    """Training chips: from a store, or from the mini-world, generated at the first run and cached.

    Args:
        store: folder or URL of a chip store; empty: the mini-world
        sensors: of the store; empty: all that have training chips
        on_damage: raise, or skip the chips of a store's damaged shards
        chips: number of mini-world training chips by sensor; empty: 176 for each of seven sensors
        val_chips: number of mini-world validation chips for each sensor; 0: no validation, also with a store
        size: side of a mini-world chip in pixels
        sizes: the same by sensor
        crop: side of a random crop in pixels; null: complete chips
        dates: number of dates for each mini-world place
        cloud_cover: share of the mini-world under clouds
        world: seed of the mini-world
        batch_size: chips in each process
        workers: loading processes; 0: in the training process
        augment: random flips, and place and time zeroed in a share of samples
        turns: also random quarter turns; null: yes, unless targets are cached
        unknown_share: share of samples whose place and time are zeroed
        shifted_share: share of samples whose colors are shifted; see augment.shifted
        local_share: share of batches of windows with half a chip's side; a cached target stays the complete chip's
        repeats: batches of a sensor in each round over all sensors, 1 by default, such as {naip: 3}
        targets: folder or URL of cached teacher targets; empty: none
    """

    store: str = ""
    sensors: list[str] = field(default_factory=list)
    on_damage: str = "raise"
    chips: dict[str, Count] = field(default_factory=dict)
    val_chips: Size = 22
    size: Count = 64
    sizes: dict[str, Count] = field(default_factory=dict)
    crop: Count | None = None
    dates: Count = 1
    cloud_cover: Share = 0.0
    world: Size = 0
    batch_size: Count = 16
    workers: Size = 0
    augment: bool = True
    turns: bool | None = None
    unknown_share: Share = 0.2
    shifted_share: Share = 0.0
    local_share: Share = 0.0
    repeats: dict[str, Count] = field(default_factory=dict)
    targets: str = ""

    def counts(self) -> dict[str, int]:
        """Training chips of each sensor."""
        if not self.store:
            return self.chips or dict.fromkeys(WORLD_SENSORS, 176)
        if self.chips:
            expected = "one of them: a store's chips are all used; data.sensors chooses among them"
            raise ContractError(
                "data.chips", f"{self.chips} with store {self.store}", expected, "settings of another run"
            )
        table = ChipStore.open(self.store).table
        counts = table[table["split"] == "train"]["sensor"].value_counts().to_dict()
        missing = [name for name in self.sensors if name not in counts]
        if missing or not counts:
            cause = "a misspelled name, or a store without a train split"
            raise ContractError("data.sensors", missing or "no training chip", f"some of {sorted(counts)}", cause)
        return {name: counts[name] for name in (self.sensors or sorted(counts))}

    def load(self, seed: int = 0, teacher: nn.Module | None = None) -> ClayDataModule:
        """The data module. teacher: whose cached targets to use; None: those of the only teacher in the cache."""
        train, val = self._from_store() if self.store else self._from_world()
        targets = val_targets = None
        if self.targets:
            targets = TargetCache(self.targets) if teacher is None else TargetCache.open(self.targets, teacher)
            val_targets = targets if all(targets.has(name, part.hashes).all() for name, part in val.items()) else None
        names = ("batch_size", "workers", "augment", "crop", "turns", "unknown_share", "shifted_share", "local_share")
        options = {name: getattr(self, name) for name in (*names, "repeats")}
        return ClayDataModule(train, val, seed=seed, targets=targets, val_targets=val_targets, **options)

    def _from_world(self) -> tuple[dict[str, Chips], dict[str, Chips]]:
        options, train, val = dict(seed=self.world, cloud_cover=self.cloud_cover), {}, {}
        for sensor, count in self.counts().items():
            size = self.sizes.get(sensor, self.size)
            train[sensor] = world_chips(sensor, count, size=size, dates=self.dates, **options)
            if self.val_chips:
                val[sensor] = world_chips(sensor, self.val_chips, split="val", size=size, **options)
        return train, val

    def _from_store(self) -> tuple[dict, dict]:
        store = ChipStore.open(self.store, on_damage=self.on_damage)
        existing = set(store.table[["sensor", "split"]].itertuples(index=False, name=None))
        return tuple(
            {name: store.sensor(name, split=split, labels=False) for name in self.counts() if (name, split) in existing}
            for split in ("train", "val" if self.val_chips else "")
        )


def train(
    *,
    model: ModelChoice = ModelChoice(),  # noqa: B008, frozen
    data: DataChoice = DataChoice(),  # noqa: B008
    settings: TrainSettings = TrainSettings(),  # noqa: B008
    teacher: str | None = None,
    start: str = "",
    out: str = "papermill_runs/train",
    epochs: NonNegative | None = None,
    accelerator: str = "auto",
    precision: str | None = None,
    devices: Count | None = None,
    nodes: Count | None = None,
    threads: Size = 0,
    log_every: Count = 10,
    val_every: Count | None = None,
    pictures_every: Size = 0,
    checkpoint_steps: Count | None = None,
    checkpoint_minutes: NonNegative = 5.0,
    weights_dtype: str = "float32",
    progress: bool = True,
    logger: str = "csv",
    forecast: bool = False,
) -> int:
    """Train a model. The same command with the same `out` resumes from the last checkpoint.

    Args:
        model: its size and changes
        data: training and validation chips
        settings: optimizer, schedule and losses, by default those of the release
        teacher: null, stand-in, textures, imagenet, a folder or hub name with DINOv2 weights, or package.module:function
        start: weights to start from, an average such as "0.3 a.safetensors + 0.7 b.safetensors", or
            package.module:function of configuration and seed; empty: random ones
        out: folder for checkpoints, log/metrics.csv, pictures, weights.safetensors, config.yaml and run.json
        epochs: training length, instead of settings.max_steps
        accelerator: auto, cpu, gpu or mps
        precision: auto, the fastest on this machine that agrees with float32; exact, float32; or medium, bfloat16,
            float16. A run resumes in the one that it was started in
        devices: processes on each node; null: all GPUs, or one CPU process
        nodes: number of cluster nodes
        threads: CPU threads of a process; 0: torch's default
        log_every: steps between rows in metrics.csv
        val_every: steps between validations; null: every epoch
        pictures_every: steps between figures of reconstructions; 0: none
        checkpoint_steps: steps between checkpoints; null: by time alone
        checkpoint_minutes: minutes between checkpoints
        weights_dtype: dtype of weights.safetensors: float32, bfloat16 or float16
        progress: show a progress bar
        logger: besides log/metrics.csv: csv (nothing more), tensorboard, mlflow or wandb, in `out` and offline
        forecast: measure a few steps, print the time that the run would take, and stop
    """
    request = {k: asdict(v) if is_dataclass(v) else v for k, v in locals().items() if k != "forecast"}
    request = json.loads(json.dumps(request))  # tuples as lists
    check_ranges(request, train)
    check_ranges(request["data"], DataChoice, "data.")
    check_ranges(request["settings"], TrainSettings, "settings.")
    devices, nodes = _processes(devices, nodes)
    ranks, folder = (devices or 1) * (nodes or 1), Path(out)
    stored, report = _stored(folder), read_json(folder / "run.json")
    if threads:
        torch.set_num_threads(threads)
    is_first_rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    per_epoch = batches_per_epoch(data.counts(), data.repeats, data.batch_size * ranks)
    if epochs is not None:
        settings = replace(settings, max_steps=max(1, round(epochs * per_epoch / settings.accumulate)))
    finished = stored == request and report.get("steps") == settings.max_steps and (folder / WEIGHTS).is_file()
    if finished and not forecast:
        return _done(report, folder) if is_first_rank else 0
    network = find_teacher(teacher)
    cache = TargetCache(data.targets) if data.targets and network is None else None
    target_source = network or cache
    config = model.config(None if target_source is None else target_source.dim)
    if forecast:
        print(forecast_training(config, settings, data, network, per_epoch, ranks, accelerator, precision))
        return 0

    chips = data.load(settings.seed, network)
    if is_first_rank:
        make_folder(folder)
        _check_same_data(folder, request, stored)
        write_yaml(folder / "config.yaml", request)
        print(summary(config, network))
    pictures = [ReconstructionFigures(chips, folder / "pictures", every=pictures_every)] if pictures_every else []
    trained = run_training(
        config,
        settings,
        chips,
        out=folder,
        teacher=network,
        start=find_start(start, config, settings.seed),
        resume=True,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        progress=progress,
        log_every=log_every,
        val_every=val_every,
        checkpoint_steps=checkpoint_steps,
        checkpoint_minutes=checkpoint_minutes,
        callbacks=tuple(pictures),
        logger=find_logger(logger, folder) or False,
        num_nodes=nodes or 1,
        **({"strategy": "ddp"} if ranks > 1 else {}),
    )
    if not is_first_rank:
        return 0
    if trained.signal is not None:
        print(f"stopped by signal {trained.signal} after {trained.steps} steps; run the same command to resume")
        return 128 + trained.signal
    Clay(trained.model).save(folder / WEIGHTS, dtype=getattr(torch, weights_dtype))
    total = trained.steps * settings.accumulate * data.batch_size * ranks
    report = {
        "steps": trained.steps,
        "chips seen": total,
        "hours": round(trained.seconds / 3600, 4),
        "chips a second": round(total / max(trained.seconds, 1e-9), 2),
        "processes": ranks,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "seed": settings.seed,
    }
    write_json(folder / "run.json", report)
    return _done(report, folder)


def _done(report: Mapping, folder: Path) -> int:
    total, hours = report["chips seen"], report["hours"]
    print(f"{report['steps']} steps, {total:,} chips, {hours:.2f} h; weights in {folder / WEIGHTS}")
    return 0


def forecast_training(
    config: ClayConfig,
    settings: TrainSettings,
    data: DataChoice,
    teacher: nn.Module | None,
    per_epoch: int,
    ranks: int,
    accelerator: str = "auto",
    precision: str | None = None,
) -> str:
    """Time that a run would take, from a few real steps on this machine; per_epoch: batches of each rank."""
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    torch.manual_seed(settings.seed)
    module = ClayModule(config, settings, teacher, cached=bool(data.targets)).to(device)
    module.setup("fit")
    optimizer = module.configure_optimizers()["optimizer"]
    counts = data.counts()
    width = config.teacher_dim if data.targets else None
    precision = check_precision(precision)
    batches = [
        noise_batch(sensor, data.batch_size, data.crop or data.sizes.get(sensor, data.size), width).to(device)
        for sensor in counts
    ]

    if precision in ("auto", "fast"):
        steps = settings.max_steps * settings.accumulate
        precision = choose(module.model.encoder, batches[0].cube, "auto", training=True, batches=steps)

    def one_round() -> float:
        """A step on each sensor's batch; returns the time at the end."""
        for batch in batches:
            with arithmetic(module.model.encoder, precision):
                loss = module.losses(batch, training=True)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    began = now = one_round()  # each sensor's first step is slower, and not counted
    rounds = 0
    while rounds < 2 or (now - began < 10 and rounds < 50):
        now, rounds = one_round(), rounds + 1
    each = (now - began) / (rounds * len(batches))  # seconds a batch

    steps = settings.max_steps
    hours = steps * settings.accumulate * each / 3600
    chips = steps * settings.accumulate * data.batch_size * ranks
    machine = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    speed, measured = data.batch_size / each, rounds * len(batches)
    lines = {
        "chips": f"{sum(counts.values()):,} of {len(counts)} sensors",
        "chips seen": f"{chips:,} in {steps * settings.accumulate / per_epoch:.2f} epochs",
        "steps": f"{steps:,} of {settings.accumulate} x {ranks} x {data.batch_size} chips",
        "measured": f"{speed:.1f} chips/s on {machine}, one process, {measured} steps, no loading",
        "hours": f"{hours:,.2f}",
        "GPU-hours" if gpu else "process-hours": f"{hours * ranks:,.2f}",
    }
    note = f"\nArithmetic: {ranks} processes, assumed to be as fast as the one measured, without communication costs."
    return forecast_lines(lines) + (note if ranks > 1 else "")


class ReconstructionFigures(L.Callback):
    """Figures of visible patches, reconstruction and original by sensor, every `every` steps, with a fixed mask."""

    def __init__(self, data: ClayDataModule, folder: str | Path, *, every: int):
        chips = data.val_chips or data.train_chips
        loader = PlannedBatches(chips, augment=False, **data.options | {"turns": False})
        sizes = {name: min(4, len(part)) for name, part in chips.items()}
        plans = [SensorBatches({name: n}, batch_size=n, shuffle=False).plan(0) for name, n in sizes.items()]
        self.batches = [loader[plan] for plan in plans]  # the first four chips of each sensor
        self.folder, self.every = Path(folder), every
        self.drawn = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: ClayModule, *_) -> None:
        if module.step % self.every == 0 and module.step != self.drawn and trainer.is_global_zero:
            self.drawn = module.step
            for batch in self.batches:
                self._draw(module, batch)

    @torch.no_grad()
    def _draw(self, module: ClayModule, batch: Batch) -> None:
        import matplotlib.pyplot as plt

        from clay_lib import figures

        P, truth = module.model.config.patch_size, batch.cube.pixels
        patches = patchify(truth, P)  # [B, L, C*P*P]
        noise = torch.from_numpy(batch.draws("mask", patches.shape[1]))
        out = module.model(batch.cube.to(module.device), noise=noise.to(module.device))
        layout = {"grid": out.encoded.grid, "patch_size": P, "size": truth.shape[-2:]}
        reconstruction = unpatchify(out.reconstruction, **layout).float().cpu()
        hidden = out.encoded.mask.bool().cpu()[:, :, None]
        visible = unpatchify(patches.masked_fill(hidden, float("nan")), **layout)
        shown = [
            figures.rgb(x, batch.sensor, like=truth[k], normalized=True)
            for k in range(len(truth))
            for x in (visible[k], reconstruction[k], truth[k])
        ]
        titles = ["visible", f"step {module.step}", "original"]
        gsd = SENSORS[batch.sensor].gsd
        figure = figures.show_row(shown, titles, columns=3, size=1.6, gsd=gsd, title=batch.sensor)
        make_folder(self.folder)
        figures.save(figure, self.folder / f"{batch.sensor}-{module.step:07d}.png")
        plt.close(figure)


def summary(config: ClayConfig, teacher: nn.Module | None = None) -> str:
    """Number of parameters of each part of the model."""
    with torch.device("meta"):
        model = ClayMAE(config)
    parts = {"encoder": model.encoder, "decoder": model.decoder, "projection": model.proj, "trained": model}
    parts |= {} if teacher is None else {"teacher": teacher}
    lines = [f"  {name:<12}{sum(p.numel() for p in part.parameters()):>14,}" for name, part in parts.items()]
    return "\n".join(["parameters", *lines]) + ("" if teacher is None else "  frozen")


def _processes(devices: int | None, nodes: int | None) -> tuple[int | None, int | None]:
    """Processes a node, and nodes: as requested, or else as set by torchrun."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        return devices or each, nodes or int(os.environ["WORLD_SIZE"]) // each
    return devices, nodes


def _stored(folder: Path) -> dict[str, Any]:
    """The configuration with which a run was started; empty if there is none."""
    path = folder / "config.yaml"
    return read_yaml(path) if path.is_file() else {}


def _check_same_data(folder: Path, request: dict[str, Any], old: Mapping) -> None:
    """A run resumes with the chips, teacher and processes that it was started with: its batches depend on them."""
    if not old or not any((folder / "checkpoints").glob("*.ckpt")):
        return
    pairs = {f"data.{k}": (old["data"].get(k), v) for k, v in request["data"].items() if k not in CHANGEABLE}
    check_unchanged(pairs | {k: (old.get(k), request[k]) for k in ("teacher", "devices", "nodes")})
