"""What a training configuration names: the model, the chips, the teacher and the first weights."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clay_lib.contract import COUNT, SHARE, SOME, ContractError
from clay_lib.model import ClayConfig
from clay_lib.sensors import WORLD_SENSORS

if TYPE_CHECKING:
    from torch import nn

    from clay_lib.chips import Chips
    from clay_lib.datamodule import ClayDataModule
    from clay_lib.model import Clay

TEACHERS = {"stand-in": "clay_lib.teacher:stand_in_teacher", "textures": "clay_lib.textures:texture_teacher"}
DATA_RANGES = {
    **dict.fromkeys(("cloud_cover", "unknown_share", "shifted_share"), SHARE),
    **dict.fromkeys(("chips", "size", "sizes", "crop", "dates", "batch_size", "repeats"), COUNT),
    **dict.fromkeys(("val_chips", "world", "workers"), SOME),
}


@dataclass(frozen=True)
class ModelChoice:
    """A released size and what is changed in it, by the names of ClayConfig.

    Args:
        size: tiny, small, base or large
        changes: such as {depth: 4, ladder: geometric}
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
                found=f"{self.chips} with store {self.store}",
                expected="either: a store's chips are all used; data.sensors chooses among them",
                cause="settings of the mini-world left over",
            )
        from clay_lib.store import ChipStore

        table = ChipStore.open(self.store).table
        counts = table[table["split"] == "train"]["sensor"].value_counts().to_dict()
        missing = [name for name in self.sensors if name not in counts]
        if missing or not counts:
            raise ContractError(
                "data.sensors",
                found=missing or "no chip to train on",
                expected=f"some of {sorted(counts)}",
                cause="a misspelt name, or a store without a train split",
            )
        return {name: counts[name] for name in (self.sensors or sorted(counts))}


def model_config(choice: ModelChoice, teacher: nn.Module | None, data: DataChoice) -> ClayConfig:
    """The model's configuration, as wide in its projection as the teacher is."""
    check_names(choice.changes, [f.name for f in fields(ClayConfig)], "model.changes.")
    width = {}
    if teacher is not None:
        width = {"teacher_dim": teacher.dim}
    elif data.targets:
        from clay_lib.targets import TargetCache

        width = {"teacher_dim": TargetCache(data.targets).dim}
    return ClayConfig.named(choice.size, **{**width, **choice.changes})


def load_data(choice: DataChoice, seed: int = 0, teacher: nn.Module | None = None) -> ClayDataModule:
    """The chips of a choice, ready to train on. teacher: whose cached targets are wanted; None: there is one only."""
    from clay_lib.datamodule import ClayDataModule

    train, val = _from_store(choice) if choice.store else _from_world(choice)
    targets = val_targets = None
    if choice.targets:
        from clay_lib.targets import TargetCache

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
    from clay_lib.chips import world_chips

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
    from clay_lib.store import ChipStore

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
    from clay_lib.model import Clay

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
            found=f"{path}: {error}",
            expected=f"{others}, or package.module:function",
            cause="a misspelt name, or a package that is not installed",
        ) from None


def check_names(given: Mapping, known: list[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ContractError(
                f"configuration: {where}{name}",
                found="no such key",
                expected=f"{where}{near[0]}" if near else f"one of {known}",
                cause="a misspelt key",
            )
