"""Preparation of pretraining: the commands `clay chips` and `clay targets`, starts and loggers by name."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import torch
from torch import nn

from clay_lib.clay import Clay
from clay_lib.cluster import cores, forecast_table, timed
from clay_lib.data.chips import encode, native
from clay_lib.data.makers import Maker, Part, WorldMaker, missing_parts, scenes_in
from clay_lib.data.photographs import PhotographMaker
from clay_lib.data.store import ChipStore, index_parts, write_chips
from clay_lib.data.targets import TABLE, compute_targets, fill_targets, flips_of, open_or_create
from clay_lib.errors import ContractError
from clay_lib.files import filesystem
from clay_lib.model import ClayConfig, ClayMAE
from clay_lib.runs.teachers import find_function, find_teacher, is_function, missing_package
from clay_lib.sensors import SENSORS, WORLD_SENSORS
from clay_lib.teacher import RELEASED


def chips(
    out: str,
    *,
    sensors: str = "sentinel-2-l2a",
    count: int = 1000,
    size: int = 128,
    split: str = "train",
    places: int = 4,
    dates: int = 2,
    cloud_cover: float = 0.0,
    seed: int = 0,
    scenes: str = "",
    photographs: str = "",
    sensor: str = "",
    when: str = "",
    scale: float = 1.0,
    offset: float = 0.0,
    max_missing: float = 0.05,
    block_degrees: float = 1.0,
    chips_per_part: int = 256,
    jobs: int = -1,
    forecast: bool = False,
    check: bool = False,
    repair: bool = False,
) -> int:
    """Add chips to a store: of the mini-world, sampled by land cover, or cut from scenes. The same command resumes.

    Args:
        out: the store: a folder, or a URL such as s3://bucket/chips
        sensors: of the mini-world, by name, separated by commas, or "all"
        count: chips of each sensor, including existing ones
        size: side of a chip in pixels
        split: train, val or test, separated by commas; `count` chips of each. Scenes are split by blocks of land
        places: number of places in each tile of the mini-world
        dates: number of dates for each place
        cloud_cover: share of clouds, 0 to 1
        seed: of the mini-world, its sample, and the scenes' split
        scenes: a raster to cut instead, or a folder of rasters; with bands in single files, a folder for each scene
        photographs: crop these instead, as chips of naip or linz (`sensors`): a folder, or scikit-learn for the two of
            that package
        sensor: that took the scenes
        when: date of the scenes; empty: the date in each file's name
        scale: native = value * scale + offset, for scenes in other units
        offset: see scale
        max_missing: largest share of missing values in a chip of a scene
        block_degrees: side of the blocks of land by which scenes are split
        chips_per_part: chips in a shard, which is also what a killed process loses
        jobs: processes; -1: one a core
        forecast: print the time and space that it would take, and stop
        check: compare the complete store with its checksums and stop; exit code 1 for damage
        repair: with check: remove damaged shards from the index, so that the commands that wrote them repair them
    """
    if check or repair:
        return _check(out, repair)
    if count < 1 or size < 8 or chips_per_part < 1:
        found = (count, size, chips_per_part)
        raise ContractError("count, size, chips_per_part", found, ">= 1, 8, 1", "a typing mistake")
    if scenes:
        options = dict(when=when or None, scale=scale, offset=offset, max_missing=max_missing, degrees=block_degrees)
        makers: list[Maker] = list(scenes_in(scenes, SENSORS[sensor].name, size=size, seed=seed, **options))
    else:
        names = WORLD_SENSORS if sensors == "all" else sensors.split(",")
        if photographs:
            makers = [PhotographMaker(SENSORS[s].name, count, size, photographs, seed) for s in names]
        else:
            options = dict(size=size, seed=seed, places=places, dates=dates, cloud_cover=cloud_cover)
            makers = [
                WorldMaker(SENSORS[s].name, count, split=part, **options) for part in split.split(",") for s in names
            ]
    print(_forecast_chips(out, makers, chips_per_part, jobs), flush=True)
    if not forecast:
        new = write_chips(out, makers, chips_per_part=chips_per_part, jobs=jobs)
        store = ChipStore.open(out)
        print(f"{new} new chips; {out} holds {len(store)}")
        for (name, side, part), n in store.table.groupby(["sensor", "size", "split"]).size().items():
            print(f"  {f'{name}-{side}, {part}':<30}{n:>9}")
    return 0


def _forecast_chips(out: str, makers: list[Maker], chips_per_part: int, jobs: int) -> str:
    """Chips, bytes and minutes still to be written, measured on a few chips of each sensor and size."""
    fs, root = filesystem(out)
    parts = missing_parts(makers, index_parts(fs, root), chips_per_part)
    processes = min(jobs if jobs > 0 else cores(), len(parts)) or 1
    kinds: dict[str, list[Part]] = {}
    for part in parts:
        kinds.setdefault(part.kind, []).append(part)
    rows = []
    for kind, same in kinds.items():
        maker = next(maker for maker in makers if f"{maker.sensor}-{maker.size}" == kind)
        size, seconds = _measure(maker, same[0].numbers)
        count = sum(len(part.numbers) for part in same)
        rows.append((kind, count, count * size, count * seconds / processes))
    return forecast_table("chips", rows, f", with {processes} processes")


def _measure(maker: Maker, numbers: range, most: int = 6) -> tuple[float, float]:
    """(stored bytes, seconds) a chip."""
    numbers, sizes = numbers[:most], []

    def make() -> None:
        part = maker.part(numbers)()
        if part is not None:  # None: no chip was kept
            arrays = {"pixels": native(part.chips), "labels": part.chips.labels}
            sizes.append(sum(map(len, encode(arrays).values())))

    seconds = timed(make, warm_up=maker.part(numbers[:1]))
    return sum(sizes) / len(numbers), seconds / len(numbers)


def _check(out: str, repair: bool) -> int:
    store = ChipStore.open(out)
    damaged = store.check()
    for damage in damaged:
        print(f"{out}/{damage.shard}: {damage.reason}; {len(damage.hashes)} chips lost")
    print(f"{len(store) - sum(len(d.hashes) for d in damaged)} of {len(store)} chips are intact")
    if repair and damaged:
        store.forget(damaged)
        print(f"{len(damaged)} shards removed from the index: run the commands that wrote them again")
    return 1 if damaged else 0


def targets(
    store: str,
    *,
    teacher: str = RELEASED,
    sensors: str = "all",
    views: str = "",
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "float32",
    forecast: bool = False,
) -> int:
    """Compute the teacher's targets for all chips of a store, training chips in four flips. The same command resumes.

    Args:
        store: folder or URL of the chips; the targets are written to its folder targets
        teacher: a folder or hub name with DINOv2 weights, stand-in, textures, imagenet, or package.module:function
        sensors: names, separated by commas, or "all"
        views: the optical sensor that the teacher sees instead of radar at the same places and dates, such as
            sentinel-2-l2a for sentinel-1-rtc; to train, `teacher: null` and `data.targets`
        batch_size: images in a forward pass of the teacher
        device: auto, cpu or cuda
        precision: dtype of the teacher's weights: float32 or bfloat16; each has its own targets
        forecast: print the time and space that it would take, and stop
    """
    if precision not in ("float32", "bfloat16") or batch_size < 1:
        found = (precision, batch_size)
        raise ContractError("precision, batch_size", found, "float32 or bfloat16, at least 1", "a mistyped option")
    chip_store = ChipStore.open(store)
    known = sorted(set(chip_store.table["sensor"]))
    names = known if sensors == "all" else sensors.split(",")
    if unknown := sorted(set(names) - set(known)):
        raise ContractError("sensors", unknown, f"some of {known}", "not in this store")
    network = find_teacher(teacher)
    if network is None:
        raise ContractError("teacher", teacher, "a teacher", "no teacher given")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    network = network.to(device, getattr(torch, precision) if precision != "float32" else None)
    network.views = views
    cache = open_or_create(store, network)

    table = chip_store.table[chip_store.table["sensor"].isin(names)]
    work = []
    for sensor, size, split in table.groupby(["sensor", "size", "split"]).size().index:
        chips = chip_store.sensor(sensor, split=split, size=int(size), labels=False)
        flips, seen = flips_of(network) if split == "train" else (0,), None
        if views and not SENSORS[sensor].rgb:
            seen = chip_store.sensor(SENSORS[views].name, split=split, size=int(size), labels=False)
        work.append((f"{sensor} {size} px {split}", chips, flips, seen, int(cache.missing(chips, flips).sum())))
    print(f"teacher {cache.teacher}, {cache.fingerprint}, {cache.dim} numbers; on {device}")
    todo = [chips for _, chips, *_, count in work if count]
    seconds = _seconds_a_target(network, todo[0], batch_size) if todo else 0.0
    size = 2 * cache.dim + TABLE.itemsize  # bytes of a target
    print(forecast_table("targets", [(name, n, n * size, n * seconds) for name, *_, n in work]), flush=True)
    if forecast:
        return 0
    for name, chips, flips, seen, count in work:
        if count:
            fill_targets(chips, network, store, batch_size=batch_size, flips=flips, label=name, views=seen)
    total = sum(count for *_, count in work)
    print(f"{total} targets computed; `data.targets: {store}` in a training configuration uses them")
    return 0


def _seconds_a_target(teacher: nn.Module, chips, batch_size: int) -> float:
    """Seconds for each target, measured on up to a batch of the first chips."""
    subset = chips[: min(batch_size, 4 if next(teacher.parameters(), None) is not None else 16, len(chips))]
    warm_up = lambda: compute_targets(teacher, subset[:1], 0)  # noqa: E731
    return timed(lambda: compute_targets(teacher, subset, 0), warm_up=warm_up) / len(subset)


def find_start(name: str, config: ClayConfig, seed: int) -> ClayMAE | None:
    """Initial weights of a run: from a file, or from a function of configuration and seed; None: random ones.

    A projection for another teacher is replaced by a new one. "0.3 a.safetensors + 0.7 b.safetensors" is the average of
    a model and of what it became by further training, which is often better than both (Wortsman et al. 2022).
    """
    if not name:
        return None
    if not is_function(name):
        parts = [part.split(maxsplit=1) for part in name.split(" + ")] if " + " in name else [["1", name]]
        models = [_fitting(Clay.load(path).model, config, seed) for _, path in parts]
        if len(models) > 1:
            states = [model.state_dict() for model in models]
            shares = [float(share) for share, _ in parts]
            mean = {k: sum(w * state[k] for w, state in zip(shares, states, strict=True)) for k in states[-1]}
            models[-1].load_state_dict(mean | {k: v for k, v in states[-1].items() if k.startswith("proj.")})
        return models[-1]
    start = find_function("start", name, "a file of weights")(config, seed)
    return getattr(start, "model", start)


def _fitting(model: ClayMAE, config: ClayConfig, seed: int) -> ClayMAE:
    """The model, with another projection if it differs from the configuration in the teacher's width alone."""
    if model.config != config and replace(model.config, teacher_dim=config.teacher_dim) == config:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            old, model.config, model.proj = model.proj, config, nn.Linear(config.dim, config.teacher_dim)
        with torch.no_grad():  # the texture teacher's numbers are the first ones of the ImageNet teacher
            for new, previous in zip(model.proj.parameters(), old.parameters(), strict=True):
                shared = min(len(new), len(previous))
                new[:shared] = previous[:shared]
    return model


def find_logger(name: str, folder: Path):
    """A Lightning logger by name, which writes into the folder; None for csv, since a run always writes metrics.csv.

    Nothing is sent: WANDB_MODE=online and MLFLOW_TRACKING_URI change that.
    """
    if name == "csv":
        return None
    from lightning.pytorch import loggers  # seconds

    with missing_package("logger", name):
        if name == "tensorboard":
            importlib.import_module("tensorboardX")
            return loggers.TensorBoardLogger(folder, name=None, version="tensorboard")
        if name == "mlflow":
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # current releases ask for it
            importlib.import_module("mlflow")
            store = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlflow").resolve().as_uri()
            return loggers.MLFlowLogger(folder.name, tracking_uri=store)
        if name == "wandb":
            importlib.import_module("wandb")
            offline = os.environ.get("WANDB_MODE", "offline") == "offline"
            return loggers.WandbLogger(project="clay", name=folder.name, save_dir=folder, offline=offline)
    raise ContractError("logger", name, "csv, tensorboard, mlflow or wandb", "a misspelled name")


def check_names(values: Mapping, owner: type | Callable, where: str) -> None:
    """ContractError for a key that is no argument of the function or dataclass, with the nearest one."""
    known: Iterable[str] = [f.name for f in fields(owner)] if is_dataclass(owner) else owner.__kwdefaults__
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            expected = f"{where}{near[0]}" if near else f"one of {[*known]}"
            raise ContractError(f"configuration: {where}{name}", "no such key", expected, "a misspelled key")
