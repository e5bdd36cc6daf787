"""The command `targets`: what a teacher says of the chips of a store, computed once, with a forecast first."""

from __future__ import annotations

import time

from clay_lib.contract import ContractError
from clay_lib.store import ChipStore
from clay_lib.targets import TABLE, fill_targets, missing, open_or_begin, told
from clay_lib.teacher import RELEASED

FLIPS = (0, 1, 2, 3)  # what training draws from; validation sees chips as they are


def targets(
    store: str,
    *,
    teacher: str = RELEASED,
    sensors: str = "all",
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "float32",
    forecast: bool = False,
) -> int:
    """Compute the teacher's targets for all chips of a store, training chips in four flips. The same command resumes.

    Args:
        store: folder or URL of the chips; the targets are kept in its folder targets
        teacher: a folder or hub name with DINOv2 weights, stand-in, textures, or package.module:function
        sensors: names, separated by commas, or "all"
        batch_size: images the teacher sees at once
        device: auto, cpu or cuda
        precision: of the teacher's weights: float32 or bfloat16, which are two teachers to the cache
        forecast: say what it would take, and stop
    """
    import torch

    from clay_lib.recipe import find_teacher

    if precision not in ("float32", "bfloat16") or batch_size < 1:
        raise ContractError(
            "precision, batch_size", found=(precision, batch_size), expected="float32 or bfloat16, >= 1", cause="a slip"
        )
    held = ChipStore.open(store)
    known = sorted(set(held.table["sensor"]))
    names = known if sensors == "all" else sensors.split(",")
    if unknown := sorted(set(names) - set(known)):
        raise ContractError("sensors", found=unknown, expected=f"some of {known}", cause="not in this store")
    network = find_teacher(teacher)
    if network is None:
        raise ContractError("teacher", found=teacher, expected="a teacher", cause="none was named")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    network = network.to(device, getattr(torch, precision) if precision != "float32" else None)
    cache = open_or_begin(store, network)

    groups = held.table[held.table["sensor"].isin(names)].groupby(["sensor", "size", "split"]).size()
    work = []
    for sensor, size, split in groups.index:
        chips = held.sensor(sensor, split=split, size=int(size), labels=False)
        flips = FLIPS if split == "train" else (0,)
        work.append((f"{sensor} {size} px {split}", chips, flips, int(missing(chips, cache, flips).sum())))
    total = sum(count for *_, count in work)
    print(f"teacher {cache.teacher}, {cache.fingerprint}, {cache.dim} numbers; on {device}")
    seconds = _seconds_a_target(network, work, batch_size) if total else 0.0
    print(f"{'to be computed':<34}{'targets':>10}{'MB':>10}{'minutes':>9}")
    for name, count in [*((name, count) for name, _, _, count in work), ("all", total)]:
        size = count * (2 * cache.dim + TABLE.itemsize)
        print(f"{name:<34}{count:>10}{size / 1e6:>10.1f}{count * seconds / 60:>9.1f}", flush=True)
    if forecast:
        return 0
    for name, chips, flips, count in work:
        if count:
            fill_targets(chips, network, store, batch_size=batch_size, flips=flips, label=name)
    print(f"{total} targets computed; `data.targets: {store}` in a training configuration uses them")
    return 0


def _seconds_a_target(teacher, work: list, batch_size: int) -> float:
    """From up to a batch of the first chips that lack one, after one that warms up."""
    chips = next(chips for _, chips, _, count in work if count)
    few = chips[: min(batch_size, 4 if next(teacher.parameters(), None) is not None else 16, len(chips))]
    told(teacher, few[:1], 0)
    start = time.perf_counter()
    told(teacher, few, 0)
    return (time.perf_counter() - start) / len(few)
