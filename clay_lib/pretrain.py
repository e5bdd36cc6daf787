"""Pretraining by a configuration: what `clay train` does. The same command begins a run and goes on with it.

clay train --config run.yaml --settings.max_steps 10
torchrun --nnodes 4 --nproc-per-node 8 -m clay_lib train --config run.yaml
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clay_lib.contract import COUNT, SOME, ContractError, check_ranges
from clay_lib.files import write_json
from clay_lib.recipe import (
    DATA_RANGES,
    DataChoice,
    ModelChoice,
    check_names,
    find_start,
    find_teacher,
    load_data,
    model_config,
)
from clay_lib.training import SETTINGS_RANGES, TrainSettings
from clay_lib.training import train as run_training

if TYPE_CHECKING:
    from torch import nn

    from clay_lib.datamodule import Batch, ClayDataModule
    from clay_lib.model import ClayConfig

RANGES = {
    **dict.fromkeys(("log_every", "val_every", "checkpoint_steps", "devices", "nodes"), COUNT),
    **dict.fromkeys(("epochs", "threads", "pictures_every", "checkpoint_minutes"), SOME),
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
        from clay_lib.forecast import forecast_run

        return forecast_run(config, settings, data, guide, epochs, devices, nodes, accelerator, precision)

    chips = load_data(data, settings.seed, guide)
    if epochs is not None:
        from clay_lib.forecast import steps_of

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
        from clay_lib.pictures import Pictures

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
            found=", ".join(f"{k} {now}" for k, (_, now) in differs.items()),
            expected=", ".join(f"{k} {before}" for k, (before, _) in differs.items()) + f", as {folder} was begun",
            cause="a changed configuration; write to another folder to begin anew",
        )


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    plain = json.loads(json.dumps(values))  # tuples as lists
    return yaml.safe_dump(plain, sort_keys=False)


if __name__ == "__main__":  # without jsonargparse: python -m clay_lib.pretrain run.yaml
    sys.exit(train(**read_config(sys.argv[1])))
