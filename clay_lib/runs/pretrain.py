"""Pretraining by a configuration: what `clay train` does. The same command begins a run and goes on with it.

clay train --config run.yaml --settings.max_steps 10
torchrun --nnodes 4 --nproc-per-node 8 -m clay_lib train --config run.yaml
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clay_lib.datamodule import Batch, batches_per_epoch, noise_batch
from clay_lib.errors import COUNT, NONNEGATIVE, SHARE, ContractError, check_ranges
from clay_lib.files import write_json
from clay_lib.model import ClayConfig
from clay_lib.sensors import WORLD_SENSORS
from clay_lib.training import SETTINGS_RANGES, ClayModule, TrainSettings
from clay_lib.training import train as run_training


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


# ---- What a training configuration names: the model, the chips, the teacher and the first weights ----

if TYPE_CHECKING:
    from torch import nn

    from clay_lib.clay import Clay
    from clay_lib.data.chips import Chips
    from clay_lib.datamodule import ClayDataModule

TEACHERS = {"stand-in": "clay_lib.teacher:stand_in_teacher", "textures": "clay_lib.teacher:texture_teacher"}
DATA_RANGES = {
    **dict.fromkeys(("cloud_cover", "unknown_share", "shifted_share"), SHARE),
    **dict.fromkeys(("chips", "size", "sizes", "crop", "dates", "batch_size", "repeats"), COUNT),
    **dict.fromkeys(("val_chips", "world", "workers"), NONNEGATIVE),
}


@dataclass(frozen=True)
class ModelChoice:
    """A released size and what is changed in it, by the names of ClayConfig.

    Args:
        size: tiny, small, base or large
        changes: such as {depth: 4, frequencies: geometric}
    """

    size: str = "tiny"
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataChoice:
    """Chips to train on: those of a store, or of the mini-world, which are made at the first run and kept.

    Args:
        store: folder or URL of a chip store; empty: the mini-world
        sensors: of the store; empty: all that have chips to train on
        on_damage: raise, or skip the chips of a store's damaged shards
        chips: mini-world chips of each sensor to train on; empty: 176 of each of seven sensors
        val_chips: mini-world chips of each sensor to validate on; 0: no validation, from a store neither
        size: pixels a side of a mini-world chip
        sizes: the same for single sensors
        crop: pixels a side of a random window; null: whole chips
        dates: dates at which a mini-world place is seen
        cloud_cover: share of the mini-world under clouds
        world: seed of the mini-world
        batch_size: chips, of one process
        workers: loading processes; 0: in the training process
        augment: flips, and place and time unknown in a share of samples
        turns: quarter turns too; null: unless targets are cached
        unknown_share: of samples whose place and time are zeroed
        shifted_share: of samples whose colours are shifted; see augment.shifted
        repeats: batches of single sensors in a round of all, 1 where unnamed, such as {naip: 3}
        targets: folder or URL of cached teacher targets; empty: none
    """

    store: str = ""
    sensors: list[str] = field(default_factory=list)
    on_damage: str = "raise"
    chips: dict[str, int] = field(default_factory=dict)
    val_chips: int = 22
    size: int = 64
    sizes: dict[str, int] = field(default_factory=dict)
    crop: int | None = None
    dates: int = 1
    cloud_cover: float = 0.0
    world: int = 0
    batch_size: int = 16
    workers: int = 0
    augment: bool = True
    turns: bool | None = None
    unknown_share: float = 0.2
    shifted_share: float = 0.0
    repeats: dict[str, int] = field(default_factory=dict)
    targets: str = ""

    def counts(self) -> dict[str, int]:
        """Training chips of each sensor."""
        if not self.store:
            return self.chips or dict.fromkeys(WORLD_SENSORS, 176)
        if self.chips:
            raise ContractError(
                "data.chips",
                f"{self.chips} with store {self.store}",
                "either: a store's chips are all used; data.sensors chooses among them",
                "settings of the mini-world left over",
            )
        from clay_lib.data.store import ChipStore

        table = ChipStore.open(self.store).table
        counts = table[table["split"] == "train"]["sensor"].value_counts().to_dict()
        missing = [name for name in self.sensors if name not in counts]
        if missing or not counts:
            raise ContractError(
                "data.sensors",
                missing or "no chip to train on",
                f"some of {sorted(counts)}",
                "a misspelt name, or a store without a train split",
            )
        return {name: counts[name] for name in (self.sensors or sorted(counts))}


def model_config(choice: ModelChoice, teacher: nn.Module | None, data: DataChoice) -> ClayConfig:
    """The model's configuration, as wide in its projection as the teacher is."""
    check_names(choice.changes, [f.name for f in fields(ClayConfig)], "model.changes.")
    width = {}
    if teacher is not None:
        width = {"teacher_dim": teacher.dim}
    elif data.targets:
        from clay_lib.data.targets import TargetCache

        width = {"teacher_dim": TargetCache(data.targets).dim}
    return ClayConfig.named(choice.size, **{**width, **choice.changes})


def load_data(choice: DataChoice, seed: int = 0, teacher: nn.Module | None = None) -> ClayDataModule:
    """The chips of a choice, ready to train on. teacher: whose cached targets are wanted; None: there is one only."""
    from clay_lib.datamodule import ClayDataModule

    train, val = _from_store(choice) if choice.store else _from_world(choice)
    targets = val_targets = None
    if choice.targets:
        from clay_lib.data.targets import TargetCache

        targets = TargetCache(choice.targets) if teacher is None else TargetCache.open(choice.targets, teacher)
        val_targets = targets if all(targets.has(name, part.hashes).all() for name, part in val.items()) else None
    return ClayDataModule(
        train,
        val,
        batch_size=choice.batch_size,
        seed=seed,
        workers=choice.workers,
        augment=choice.augment,
        crop=choice.crop,
        turns=choice.turns,
        unknown_share=choice.unknown_share,
        shifted_share=choice.shifted_share,
        repeats=choice.repeats,
        targets=targets,
        val_targets=val_targets,
    )


def _from_world(choice: DataChoice) -> tuple[dict[str, Chips], dict[str, Chips]]:
    from clay_lib.data.chips import world_chips

    def make(sensor: str, count: int, split: str) -> Chips:
        size = choice.sizes.get(sensor, choice.size)
        return world_chips(
            sensor,
            count,
            split=split,
            size=size,
            seed=choice.world,
            dates=choice.dates if split == "train" else 1,
            cloud_cover=choice.cloud_cover,
        )

    train = {sensor: make(sensor, count, "train") for sensor, count in choice.counts().items()}
    val = {sensor: make(sensor, choice.val_chips, "val") for sensor in train if choice.val_chips}
    return train, val


def _from_store(choice: DataChoice) -> tuple[dict, dict]:
    from clay_lib.data.store import ChipStore

    store = ChipStore.open(choice.store, on_damage=choice.on_damage)
    kept = store.table[["sensor", "split"]].drop_duplicates().itertuples(index=False, name=None)
    both, known = ("train", "val" if choice.val_chips else ""), set(kept)
    return tuple(
        {name: store.sensor(name, split=split, labels=False) for name in choice.counts() if (name, split) in known}
        for split in both
    )


def find_teacher(name: str | None) -> nn.Module | None:
    """The teacher of a configuration: a module with `dim`; see `training.ask` for what it is shown."""
    if name is None or name in ("", "none", "null"):
        return None
    path = TEACHERS.get(name, name)
    if _is_function(path):
        return _function("teacher", path, f"one of {list(TEACHERS)}, a folder, a hub name")()
    from clay_lib.teacher import load_teacher

    return load_teacher(path)


def find_start(name: str, config: ClayConfig, seed: int) -> Clay | None:
    """The first weights of a run: a file's, or those that a function of configuration and seed gives."""
    if not name:
        return None
    if _is_function(name):
        return _function("start", name, "a file of weights")(config, seed)
    from clay_lib.clay import Clay

    return Clay.load(name)


def _is_function(name: str) -> bool:
    return ":" in name and not name.startswith("hub:") and not Path(name).exists()


def _function(field_name: str, path: str, others: str):
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ContractError(
            field_name,
            f"{path}: {error}",
            f"{others}, or package.module:function",
            "a misspelt name, or a package that is not installed",
        ) from None


def check_names(given: Mapping, known: list[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ContractError(
                f"configuration: {where}{name}",
                "no such key",
                f"{where}{near[0]}" if near else f"one of {known}",
                "a misspelt key",
            )


# ---- Pretraining by a configuration: what `clay train` does. The same command begins a run and goes on wi ----

if TYPE_CHECKING:
    from torch import nn

    from clay_lib.datamodule import Batch, ClayDataModule
    from clay_lib.model import ClayConfig

RANGES = {
    **dict.fromkeys(("log_every", "val_every", "checkpoint_steps", "devices", "nodes"), COUNT),
    **dict.fromkeys(("epochs", "threads", "pictures_every", "checkpoint_minutes"), NONNEGATIVE),
}


def train(
    *,
    model: ModelChoice = ModelChoice(),  # noqa: B008, frozen
    data: DataChoice = DataChoice(),  # noqa: B008
    settings: TrainSettings = TrainSettings(),  # noqa: B008
    teacher: str | None = None,
    start: str = "",
    out: str = "papermill_runs/train",
    epochs: float | None = None,
    accelerator: str = "auto",
    precision: str | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    threads: int = 0,
    log_every: int = 10,
    val_every: int | None = None,
    pictures_every: int = 0,
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float = 5.0,
    weights_dtype: str = "float32",
    progress: bool = True,
    forecast: bool = False,
) -> int:
    """Train a model. Started again with the same `out`, it goes on from its last checkpoint.

    Args:
        model: size and changes
        data: the chips
        settings: optimiser, schedule and losses, by default those of the release
        teacher: null, stand-in, textures, a folder or hub name with DINOv2 weights, or package.module:function
        start: weights to begin with, or package.module:function of configuration and seed; empty: random ones
        out: folder for checkpoints, log/metrics.csv, pictures, weights.safetensors, config.yaml and run.json
        epochs: instead of settings.max_steps
        accelerator: auto, cpu, gpu or mps
        precision: null: bf16-mixed on a GPU, 32-true elsewhere
        devices: processes on each node; null: all GPUs, or one CPU process
        nodes: of a cluster
        threads: of a CPU process; 0: as torch likes
        log_every: steps between rows in metrics.csv
        val_every: steps between validations; null: every epoch
        pictures_every: steps between pictures of reconstructions; 0: none
        checkpoint_steps: steps between checkpoints; null: by time alone
        checkpoint_minutes: minutes between checkpoints
        weights_dtype: of weights.safetensors: float32, bfloat16 or float16
        progress: show a bar
        forecast: measure some steps, tell what the run would take, and do nothing else
    """
    asked = {k: asdict(v) if is_dataclass(v) else v for k, v in locals().items() if k != "forecast"}
    check_ranges(asked, RANGES)
    check_ranges(asked["data"], DATA_RANGES, "data.")
    check_ranges(asked["settings"], SETTINGS_RANGES, "settings.")
    import torch

    if threads:
        torch.set_num_threads(threads)
    devices, nodes = _processes(devices, nodes)
    guide = find_teacher(teacher)
    config = model_config(model, guide, data)
    ranks = (devices or 1) * (nodes or 1)
    if forecast:
        return forecast_run(config, settings, data, guide, epochs, devices, nodes, accelerator, precision)

    chips = load_data(data, settings.seed, guide)
    if epochs is not None:
        settings = replace(settings, max_steps=steps_of(chips.batches_per_epoch(ranks), epochs, settings.accumulate))
    folder = Path(out)
    leader = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    if leader:
        folder.mkdir(parents=True, exist_ok=True)
        _check_same_data(folder, asked)
        (folder / "config.yaml").write_text(_yaml(asked))
        print(summary(config, guide))
    began = find_start(start, config, settings.seed)
    callbacks = ()
    if pictures_every:
        from clay_lib.training import Pictures

        callbacks = (Pictures(one_of_each(chips), folder / "pictures", every=pictures_every),)
    trained = run_training(
        config,
        settings,
        chips,
        out=folder,
        teacher=guide,
        start=began,
        resume=True,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        progress=progress,
        log_every=log_every,
        val_every=val_every,
        checkpoint_steps=checkpoint_steps,
        checkpoint_minutes=checkpoint_minutes,
        callbacks=callbacks,
        num_nodes=nodes or 1,
        **({"strategy": "ddp"} if ranks > 1 else {}),
    )
    if not leader:
        return 0
    if trained.signal is not None:
        print(f"stopped by signal {trained.signal} after {trained.steps} steps; the same command goes on")
        return 128 + trained.signal
    weights = trained.clay.save(folder / "weights.safetensors", dtype=getattr(torch, weights_dtype))
    seen = trained.steps * settings.accumulate * data.batch_size * ranks
    report = {
        "steps": trained.steps,
        "chips seen": seen,
        "hours": round(trained.seconds / 3600, 4),
        "chips a second": round(seen / max(trained.seconds, 1e-9), 2),
        "processes": ranks,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "seed": settings.seed,
    }
    write_json(folder / "run.json", report)
    print(f"{trained.steps} steps, {seen:,} chips, {report['hours']:.2f} h; weights in {weights}")
    return 0


def one_of_each(data: ClayDataModule) -> list[Batch]:
    """The first four validation chips of each sensor (training chips where there are none), as they are."""
    from clay_lib.datamodule import PlannedBatches, SensorBatches

    chips = data.val_chips or data.train_chips
    options = data.options | {"turns": False}
    loader = PlannedBatches(chips, augment=False, **options)
    sizes = [
        SensorBatches({name: min(4, len(part))}, batch_size=min(4, len(part)), shuffle=False)
        for name, part in chips.items()
    ]
    return [loader[sampler.plan(0)] for sampler in sizes]


def summary(config: ClayConfig, teacher: nn.Module | None = None) -> str:
    """Parameters of each part, in a few lines."""
    import torch

    from clay_lib.model import ClayMAE

    with torch.device("meta"):
        model = ClayMAE(config)
    parts = {"encoder": model.encoder, "decoder": model.decoder, "projection": model.proj}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    lines = [f"  {name:<12}{count:>14,}" for name, count in counts.items()]
    lines.append(f"  {'trained':<12}{sum(counts.values()):>14,}")
    if teacher is not None:
        lines.append(f"  {'teacher':<12}{sum(p.numel() for p in teacher.parameters()):>14,}  frozen")
    return "parameters\n" + "\n".join(lines)


def read_config(path: str | Path) -> dict[str, Any]:
    """A configuration's arguments for `train`, on a machine where jsonargparse, which reads the command's, is missing."""
    import yaml

    kinds = {"model": ModelChoice, "data": DataChoice, "settings": TrainSettings}
    known = [name for name in train.__kwdefaults__]
    values = yaml.safe_load(Path(path).read_text()) or {}
    check_names(values, known, "")
    for name, kind in kinds.items():
        part = values.get(name) or {}
        check_names(part, [f.name for f in fields(kind)], f"{name}.")
        floats = {f.name for f in fields(kind) if "float" in str(f.type)}  # YAML reads 1e-3 as text
        part = {k: float(v) if k in floats and isinstance(v, str) else v for k, v in part.items()}
        values[name] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in part.items()})
    return values


def _processes(devices: int | None, nodes: int | None) -> tuple[int | None, int | None]:
    """Processes a node, and nodes: as asked for, else as torchrun started us."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        return devices or each, nodes or int(os.environ["WORLD_SIZE"]) // each
    return devices, nodes


def _check_same_data(folder: Path, asked: dict[str, Any]) -> None:
    """A run goes on with the chips, the teacher and the processes that it was begun with: batches are counted by them."""
    import yaml

    if not (folder / "config.yaml").is_file() or not any((folder / "checkpoints").glob("*.ckpt")):
        return
    old, new = yaml.safe_load((folder / "config.yaml").read_text()), yaml.safe_load(_yaml(asked))
    free = {"workers", "on_damage"}
    pairs = {f"data.{k}": (old["data"].get(k), v) for k, v in new["data"].items() if k not in free}
    pairs |= {k: (old.get(k), new[k]) for k in ("teacher", "devices", "nodes")}
    differs = {k: both for k, both in pairs.items() if both[0] != both[1]}
    if differs:
        raise ContractError(
            "resume",
            ", ".join(f"{k} {now}" for k, (_, now) in differs.items()),
            ", ".join(f"{k} {before}" for k, (before, _) in differs.items()) + f", as {folder} was begun",
            "a changed configuration; write to another folder to begin anew",
        )


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    plain = json.loads(json.dumps(values))  # tuples as lists
    return yaml.safe_dump(plain, sort_keys=False)


if __name__ == "__main__":  # without jsonargparse: python -m clay_lib.runs.pretrain run.yaml
    sys.exit(train(**read_config(sys.argv[1])))
