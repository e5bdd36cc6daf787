"""The commands of the chip store: `chips` writes one, tells beforehand what that takes, and checks it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from clay_lib.contract import ContractError
from clay_lib.makers import WorldMaker, scenes_in
from clay_lib.sensors import SENSORS, WORLD_SENSORS
from clay_lib.shards import encode, filesystem
from clay_lib.store import ALL, INDEX, ChipStore
from clay_lib.writer import Maker, kind_of, native, pending, write_chips


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
    mend: bool = False,
) -> int:
    """Add chips to a store: of the mini-world, sampled by land cover, or cut from scenes. The same command resumes.

    Args:
        out: the store: a folder, or a URL such as s3://bucket/chips
        sensors: of the mini-world, by name, separated by commas, or "all"
        count: chips of each sensor, what the store has already included
        size: pixels a side
        split: train, val or test, separated by commas; `count` chips of each. Scenes are split by blocks of land
        places: in a tile of the mini-world
        dates: of a place
        cloud_cover: share under clouds, 0 to 1
        seed: of the mini-world, its sample, and the scenes' split
        scenes: a raster, or a folder of them, to cut instead; bands in single files: a folder a scene
        sensor: that took the scenes
        when: the scenes' date; without it, the date in each file's name
        scale: native = value * scale + offset, for scenes in other units
        offset: see scale
        max_missing: share of missing values from which on a chip of a scene is left out
        block_degrees: side of the blocks of land that the scenes' split goes by
        chips_per_part: chips in a shard, and what a killed process loses
        jobs: processes; -1: one a core
        forecast: say what it would take, and stop
        check: read the whole store against its checksums and stop; 1 if something is damaged
        mend: with check: forget the damaged shards, so that the commands that wrote them make them anew
    """
    if check or mend:
        return _check(out, mend)
    if scenes:
        options = dict(when=when or None, scale=scale, offset=offset, max_missing=max_missing, degrees=block_degrees)
        makers: list[Maker] = list(scenes_in(scenes, SENSORS[sensor].name, size=size, seed=seed, **options))
    else:
        options = dict(size=size, seed=seed, places=places, dates=dates, cloud_cover=cloud_cover)
        names = WORLD_SENSORS if sensors == "all" else sensors.split(",")
        makers = [WorldMaker(SENSORS[s].name, count, split=part, **options) for part in split.split(",") for s in names]
    if count < 1 or size < 8 or chips_per_part < 1:
        raise ContractError(
            "count, size, chips_per_part", found=(count, size, chips_per_part), expected=">= 1, 8, 1", cause="a slip"
        )
    say_forecast(out, makers, chips_per_part, jobs)
    if not forecast:
        new = write_chips(out, makers, chips_per_part=chips_per_part, jobs=jobs)
        store = ChipStore.open(out)
        print(f"{new} new chips; {out} holds {len(store)}")
        for (name, side, part), held in store.table.groupby(["sensor", "size", "split"]).size().items():
            print(f"  {f'{name}-{side}, {part}':<30}{held:>9}")
    return 0


def say_forecast(out: str, makers: Sequence[Maker], chips_per_part: int, jobs: int) -> None:
    """Print chips, bytes and minutes of what is still to be made, from a few chips of each kind."""
    fs, root = filesystem(out)
    parts = pending(fs, root, makers, chips_per_part)
    processes = min(jobs if jobs > 0 else os.cpu_count() or 1, len(parts)) or 1
    print(f"{'to be made':<32}{'chips':>9}{'MB':>10}{'minutes':>9}")
    total = np.zeros(3)
    for kind in dict.fromkeys(part.kind for part in parts):
        numbers = [part for part in parts if part.kind == kind]
        left = sum(len(part.numbers) for part in numbers)
        bytes_, seconds = _measure(next(m for m in makers if kind_of(m) == kind), numbers[0].numbers)
        row = np.array([left, left * bytes_ / 1e6, left * seconds / processes / 60])
        print(f"{kind:<32}{row[0]:>9.0f}{row[1]:>10.1f}{row[2]:>9.2f}")
        total += row
    print(f"{f'all, with {processes} processes':<32}{total[0]:>9.0f}{total[1]:>10.1f}{total[2]:>9.2f}", flush=True)


def _measure(maker: Maker, numbers: range, most: int = 6) -> tuple[float, float]:
    """(stored bytes, seconds) a chip, from up to `most`, after one that warms up. Nothing made: nothing to tell."""
    maker.part(numbers[:1])()
    start = time.perf_counter()
    made = maker.part(numbers[:most])()
    if made is None:
        return 0.0, (time.perf_counter() - start) / len(numbers[:most])
    stored = sum(map(len, encode({"pixels": native(made.chips), "labels": made.chips.labels}).values()))
    return stored / len(numbers[:most]), (time.perf_counter() - start) / len(numbers[:most])


def _check(out: str, mend: bool) -> int:
    store = ChipStore.open(out)
    damaged = store.check()
    for damage in damaged:
        print(f"{out}/{damage.shard}: {damage.reason}; {len(damage.hashes)} chips lost")
    print(f"{len(store) - sum(len(d.hashes) for d in damaged)} of {len(store)} chips are whole")
    if mend and damaged:
        fs, root = filesystem(out)
        for path in [f"{root}/{ALL}"] * fs.exists(f"{root}/{ALL}") + [
            f"{root}/{INDEX}/{damage.shard.rsplit('-', 1)[0]}.parquet" for damage in damaged
        ]:
            fs.rm(path)
        print(f"{len(damaged)} shards are forgotten: run the commands that wrote them again")
    return 1 if damaged else 0
