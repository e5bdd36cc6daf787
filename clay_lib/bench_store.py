"""How fast chips come out of a store, against plain numpy.load of the same bytes and against a step that eats them."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from clay_lib.bench import median_seconds, step_seconds
from clay_lib.chips import Chips
from clay_lib.contract import ContractError
from clay_lib.datacube import make_datacube
from clay_lib.makers import WorldMaker
from clay_lib.model import ClayConfig, ClayMAE
from clay_lib.store import ChipStore
from clay_lib.writer import Made, write_chips


class _Rolled:
    """Chips that differ and compress like those they are rolled from, without the time that making them takes."""

    sensor, recipe = "sentinel-2-l2a", "rolled"

    def __init__(self, made: Made, count: int):
        self.made, self.count, self.size = made, count, made.chips.pixels.shape[-1]

    def __len__(self) -> int:
        return self.count

    def part(self, numbers: range):
        return lambda: self._rolled(np.array(numbers))

    def _rolled(self, numbers: np.ndarray) -> Made:
        turns, of = np.divmod(numbers, len(self.made.chips))
        steps = np.stack(np.divmod(turns, self.size), 1)  # rows, columns
        chips = self.made.chips[of]
        pixels, labels = (
            np.stack([np.roll(image, step, (-2, -1)) for image, step in zip(images, steps, strict=True)])
            for images in (chips.pixels, chips.labels)
        )
        rolled = Chips(chips.sensor, pixels, labels, chips.lat, chips.lon, chips.when)
        return Made(rolled, [None] * len(of), ["train"] * len(of), "rolled")


def bench_chips(size: int = 128, count: int = 512, batch: int = 32, repeats: int = 15, model: str = "base") -> int:
    """Time a store of Sentinel-2 chips on this machine: written, read whole and at random, and eaten by a training step.

    Args:
        size: pixels a side
        count: chips in the store
        batch: chips read at a time
        repeats: timed batches, after one to warm up
        model: whose training step the reading is held against: tiny, small, base or large
    """
    if count < batch or batch < 1 or repeats < 1:
        raise ContractError(
            "count, batch, repeats", found=(count, batch, repeats), expected="batch at most count", cause="a slip"
        )
    made = WorldMaker("sentinel-2-l2a", 16, size=size).part(range(16))()
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_chips(Path(folder) / "store", [_Rolled(made, count)], jobs=1, progress=False)
        writing = (time.perf_counter() - start) / count
        store = ChipStore.open(Path(folder) / "store")
        chips = store.sensor("sentinel-2-l2a", labels=False)
        plain = Path(folder) / "plain.npy"
        np.save(plain, chips[:batch].pixels)
        bytes_ = plain.stat().st_size / batch
        stored = sum(file.stat().st_size for file in Path(folder).rglob("c/*/*/*/*")) / count

        def at_random(work):
            return median_seconds(lambda: work(rng.choice(count, batch, replace=False)), repeats=repeats) / batch

        loading = median_seconds(lambda: np.load(plain), repeats=repeats) / batch
        reading = at_random(lambda index: chips[index])
        zarr_reading = _zarr_seconds(Path(folder) / "store", store, rng, 8)
        cubes = at_random(lambda index: make_datacube((c := chips[index]).pixels, c.sensor, **c.place_and_time))
    torch.manual_seed(0)
    two = made.chips[:2]
    cube = make_datacube(two.pixels, two.sensor, **two.place_and_time)
    step = step_seconds(ClayMAE(ClayConfig.named(model)), cube, repeats=3) / 2
    rows = [
        ("numpy.load of the same bytes", loading, "one plain file, in the system's cache"),
        (
            "store, batches at random",
            reading,
            f"{loading / reading:.2f} of numpy.load; {bytes_ / stored:.2f} x smaller",
        ),
        ("... as normalised batches", cubes, "what a loading process hands over"),
        ("... by zarr-python", zarr_reading, f"{zarr_reading / reading:.0f} x the time of this reader"),
        ("store, written", writing, "one process, chips at hand"),
        (f"{model} model, training step", step, f"reads {step / cubes:.0f} x as fast as it eats"),
    ]
    print(f"Sentinel-2 {size} x {size} x 10, {bytes_ / 1e3:.0f} kB a chip, {torch.get_num_threads()} threads")
    for what, seconds, note in rows:
        print(f"{what:<30}{1 / seconds:>9.1f} chips/s{bytes_ / 1e6 / seconds:>9.1f} MB/s   {note}")
    return 0


def _zarr_seconds(url: Path, store: ChipStore, rng: np.random.Generator, n: int) -> float:
    """Seconds a chip of zarr-python's own reading, at random out of one shard."""
    import zarr

    array = zarr.open_group(url, mode="r")[store.table["shard"].iloc[0]]["pixels"]
    return median_seconds(lambda: array.oindex[np.sort(rng.choice(array.shape[0], n, replace=False))], repeats=3) / n
