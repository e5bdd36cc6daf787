"""Data module: batches of one sensor each, sensors in turn, smaller ones repeated to match the largest.

Batches are numbered through all epochs, and every random number is a function of a batch's number and a chip's place in
it. So a run can resume at any batch, and neither workers nor ranks change what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import lightning as L
import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from clay_lib.data.augment import Draws, flipped, shifted
from clay_lib.data.chips import Chips
from clay_lib.datacube import Datacube, make_datacube
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS, Sensor


@dataclass(frozen=True)
class Batch:
    """Chips of one sensor, and their indices in its array."""

    sensor: str
    cube: Datacube
    indices: np.ndarray  # [B]
    flips: np.ndarray  # [B] uint8, bits of augment.flipped
    draws: Draws
    targets: Tensor | None = None  # [B, teacher_dim] of the flipped chips, from a cache
    number: int = 0  # of the batch, counted through all epochs

    def to(self, device, dtype: torch.dtype | None = None) -> Batch:
        targets = None if self.targets is None else self.targets.to(device, non_blocking=True)
        return replace(self, cube=self.cube.to(device, dtype), targets=targets)

    def pin_memory(self) -> Batch:
        targets = None if self.targets is None else self.targets.pin_memory()
        return replace(self, cube=self.cube.with_pixels(self.cube.pixels.pin_memory()), targets=targets)


def noise_batch(sensor: str | Sensor, batch: int, pixels: int, teacher_dim: int | None = None) -> Batch:
    """Noise in the shape of a sensor's chips, for timings; teacher_dim: width of random targets, None: without."""
    spec = SENSORS.resolve(sensor)
    noise = np.random.default_rng(0).normal(size=(batch, len(spec.bands), pixels, pixels))
    cube = make_datacube(spec.denormalize(noise), sensor, when="2023-06-10T10:30", lat=10.0, lon=20.0)
    places = np.arange(batch)
    targets = None if teacher_dim is None else torch.randn(batch, teacher_dim).half()
    return Batch(spec.name, cube, places, np.zeros(batch, np.uint8), Draws((0,), places), targets)


@dataclass(frozen=True)
class Plan:
    """Chips and random numbers of a batch: everything that a loading process needs."""

    sensor: str
    indices: np.ndarray  # [B]
    draws: Draws
    number: int = 0


class Targets(Protocol):
    """A cache of a teacher's output for chips."""

    def lookup(self, sensor: str, hashes: np.ndarray, flips: np.ndarray) -> Tensor: ...


class SensorBatches(Sampler[Plan]):
    """Stateful sampler: plans of batches, each of one sensor; the same for the same seed.

    Iterating yields the batches from `position` up to the next multiple of `every` (an epoch by default), or to `end`.
    The position is the number of the next batch to train on. Iterating does not move it, since loading processes are
    ahead of training: the training loop sets it, and `state_dict` and `load_state_dict` save and restore it.

    repeats: batches of a sensor in each round, 1 by default; a training epoch ends when the sensor that needs the most
    rounds is finished. Every rank draws the same order and takes its own share, so that all ranks have the same sensor
    at a step, take the same number of steps, and share no chip. Batches are filled up with repeated chips. Without
    shuffling (validation) every epoch is the same, and chips repeat only to fill a sensor's last batch.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        repeats: Mapping[str, int] | None = None,
        every: int | None = None,
        end: int | None = None,
    ):
        self.sizes, self.batch_size, self.seed, self.shuffle = dict(sizes), batch_size, seed, shuffle
        ready = distributed.is_available() and distributed.is_initialized()
        self.rank, self.ranks = (distributed.get_rank(), distributed.get_world_size()) if ready else (0, 1)
        self.together = batch_size * self.ranks  # chips of a batch on all ranks
        self.each = [(repeats or {}).get(name, 1) if shuffle else 1 for name in self.sizes]
        rounds = rounds_of(self.sizes, self.each, self.together)
        self.rounds = max(rounds)
        rounds = [self.rounds] * len(rounds) if shuffle else rounds
        turns = [
            (k, turn * each + repeat)
            for turn in range(self.rounds)
            for repeat in range(max(self.each))
            for k, each in enumerate(self.each)
            if repeat < each and turn < rounds[k]
        ]
        self.turns = np.array(turns, np.int32)  # [batches of an epoch, (sensor, turn)]
        self.position, self.every, self.end = 0, every or len(turns), end
        self._orders: tuple[int, list[np.ndarray]] | None = None

    @property
    def per_epoch(self) -> int:
        return len(self.turns)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.position = state["position"]

    def __iter__(self) -> Iterator[Plan]:
        stop = (self.position // self.every + 1) * self.every
        for number in range(self.position, stop if self.end is None else min(stop, self.end)):
            yield self.plan(number)

    def plan(self, number: int) -> Plan:
        """This rank's share of batch number `number`."""
        epoch, within = divmod(number, self.per_epoch)
        epoch = epoch if self.shuffle else 0
        if self._orders is None or self._orders[0] != epoch:
            self._orders = epoch, [self._order(epoch, k, n) for k, n in enumerate(self.sizes.values())]
        k, turn = self.turns[within].tolist()
        share = slice(turn * self.together + self.rank, (turn + 1) * self.together, self.ranks)
        places = self.rank + self.ranks * np.arange(self.batch_size)
        draws = Draws((self.seed, epoch, k, turn), places)
        return Plan(list(self.sizes)[k], self._orders[1][k][share], draws, number)

    def _order(self, epoch: int, sensor: int, size: int) -> np.ndarray:
        """Indices for all rounds: one permutation after the other, cut to length."""
        length = self.rounds * self.each[sensor] * self.together
        rng = np.random.default_rng([self.seed, epoch, sensor])
        turns = [rng.permutation(size) if self.shuffle else np.arange(size) for _ in range(-(-length // size))]
        return np.concatenate(turns)[:length]


def rounds_of(sizes: Mapping[str, int], each: Sequence[int], together: int) -> list[int]:
    """Rounds that each sensor needs; a round takes `each` of its batches, a batch `together` chips."""
    return [-(-size // (together * n)) for size, n in zip(sizes.values(), each, strict=True)]


def batches_per_epoch(sizes: Mapping[str, int], repeats: Mapping[str, int], together: int) -> int:
    """Training batches in an epoch, with `together` chips on all ranks."""
    each = [repeats.get(name, 1) for name in sizes]
    return sum(each) * max(rounds_of(sizes, each, together))


class PlannedBatches(Dataset):
    """Plan -> Batch: chips read, augmented and normalized as one array.

    augment: each chip flipped at random and, with turns, each batch rotated by a random quarter; place and time zeroed
    in unknown_share of the samples (a fifth in the release); colors shifted in shifted_share of them; windows of half a
    chip's side, at random, instead of the chips in local_share of the batches. Their targets stay those of the complete
    chips: the class token of a part learns what the whole is (local to global, Caron et al. 2021, DINO).
    crop: side in pixels of a window of every chip, random with augmentation and central without; None: complete chips.
    targets: a teacher's output for complete chips and their flips, hence without crop and turns; it stays
    the output for the true colors where colors are shifted.
    """

    def __init__(
        self,
        chips: Mapping[str, Chips],
        *,
        augment: bool,
        crop: int | None = None,
        turns: bool | None = None,
        unknown_share: float = 0.2,
        shifted_share: float = 0.0,
        local_share: float = 0.0,
        targets: Targets | None = None,
    ):
        self.chips, self.augment, self.crop = chips, augment, crop
        self.unknown_share, self.shifted_share, self.local_share = unknown_share, shifted_share, local_share
        self.turns, self.targets = (targets is None) if turns is None else turns, targets
        if targets is not None and (crop is not None or self.turns):
            found = f"cached targets with crop={crop}, turns={self.turns}"
            cause = "a cache has targets of complete chips and their flips only; use smaller chips, or a live teacher"
            raise ContractError("targets", found, "crop=None, turns=None or False", cause)
        self._hashes = {name: part.hashes for name, part in chips.items()} if targets is not None else {}

    def __getitem__(self, plan: Plan) -> Batch:
        sensor, draws = plan.sensor, plan.draws
        chips, indices = self._read(plan)
        local = self.augment and draws.batch("local", 1000) < 1000 * self.local_share
        side = chips.pixels.shape[-1] // 2 if local else self.crop
        pixels, flips = self._crop(chips.pixels, side, draws), np.zeros(len(indices), np.uint8)
        if self.augment:
            flips = (4 * draws("flips", 1)[:, 0]).astype(np.uint8)
            pixels = self._flip(pixels, flips, draws)
        cube = make_datacube(pixels, sensor, **chips.place_and_time)
        if self.augment:
            known = torch.from_numpy(draws("unknown", 1) >= self.unknown_share).float()
            cube = replace(cube, time=cube.time * known, latlon=cube.latlon * known)
            cube = shifted(cube, draws, share=self.shifted_share) if self.shifted_share else cube
        targets = None
        if self.targets is not None:
            targets = self.targets.lookup(sensor, self._hashes[sensor][indices], flips)
        return Batch(sensor, cube, indices, flips, draws, targets, plan.number)

    def _read(self, plan: Plan) -> tuple[Chips, np.ndarray]:
        """The planned chips and their indices; damaged ones that a store skips are replaced by others of the batch."""
        chips = self.chips[plan.sensor]
        if not hasattr(chips, "take"):
            return chips[plan.indices], plan.indices
        readable, kept = chips.take(plan.indices)
        if kept.all():
            return readable, plan.indices
        replacement = np.arange(len(kept)) % len(readable)
        return readable[replacement], plan.indices[kept][replacement]

    def _crop(self, pixels: np.ndarray, side: int | None, draws: Draws) -> np.ndarray:
        """[B, C, H, W] -> [B, C, side, side], with a window of its own for each chip."""
        B, _, H, W = pixels.shape
        if side is None or side == H == W:
            return pixels
        margin = np.array([H - side, W - side])
        if margin.min() < 0:
            raise ContractError("crop", side, f"at most {min(H, W)}", "chips smaller than the window")
        corners = (draws("window", 2) * (margin + 1)).astype(int) if self.augment else np.tile(margin // 2, (B, 1))
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(2, 3))
        return windows[np.arange(B), :, *corners.T]

    def _flip(self, pixels: np.ndarray, flips: np.ndarray, draws: Draws) -> np.ndarray:
        """[B, C, H, W] flipped chip by chip; with turns, the batch rotated by a quarter first."""
        pixels = np.rot90(pixels, draws.batch("turns", 4) if self.turns else 0, axes=(2, 3))
        out = np.empty_like(pixels, order="C")
        for flip in range(4):
            out[flips == flip] = flipped(pixels[flips == flip], flip)
        return out


class ClayDataModule(L.LightningDataModule):
    """Training and validation chips by sensor: Chips, StoredChips, or objects with len, indexing and hashes."""

    def __init__(
        self,
        train: Mapping[str, Chips],
        val: Mapping[str, Chips] | None = None,
        *,
        batch_size: int = 32,
        seed: int = 0,
        workers: int = 0,
        augment: bool = True,
        crop: int | None = None,
        turns: bool | None = None,
        unknown_share: float = 0.2,
        shifted_share: float = 0.0,
        local_share: float = 0.0,
        repeats: Mapping[str, int] | None = None,
        targets: Targets | None = None,
        val_targets: Targets | None = None,
    ):
        super().__init__()
        empty = [name for name, chips in train.items() if len(chips) == 0]
        if not train or empty:
            expected = "chips of at least one sensor"
            raise ContractError("train", empty or "no sensor", expected, "an empty folder or split")
        self.train_chips, self.val_chips = dict(train), dict(val or {})
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.augment, self.targets, self.val_targets = augment, targets, val_targets
        shares = dict(unknown_share=unknown_share, shifted_share=shifted_share, local_share=local_share)
        self.options = {"crop": crop, "turns": turns, **shares}
        self.repeats = dict(repeats or {})
        if wrong := {n: r for n, r in self.repeats.items() if n not in train or r < 1}:
            cause = "a sensor without training chips, or 0 to leave one out"
            raise ContractError("repeats", wrong, f"1 or more of {sorted(train)}", cause)
        # State of a run: batches between two validations, number of the last batch, sampler.
        self.every: int | None = None
        self.end: int | None = None
        self.sampler: SensorBatches | None = None
        self._position = 0

    def state_dict(self) -> dict[str, int]:
        """The position in the run: the number of the next batch to train on."""
        return {"position": self._position} if self.sampler is None else self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._position, self.sampler = state["position"], None

    def _loader(self, chips: Mapping[str, Chips], *, training: bool, **span) -> DataLoader:
        sizes = {name: len(part) for name, part in chips.items()}
        options = dict(batch_size=self.batch_size, seed=self.seed, shuffle=training, repeats=self.repeats)
        targets = self.targets if training else self.val_targets
        return DataLoader(
            PlannedBatches(chips, augment=training and self.augment, targets=targets, **self.options),
            sampler=SensorBatches(sizes, **options, **span),
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def first_batch(self) -> Batch:
        loader = self._loader(self.train_chips, training=True)
        return loader.dataset[loader.sampler.plan(0)]

    def batches_per_epoch(self, ranks: int = 1) -> int:
        """Batches that each of `ranks` processes takes in an epoch."""
        sizes = {name: len(part) for name, part in self.train_chips.items()}
        return batches_per_epoch(sizes, self.repeats, self.batch_size * ranks)

    def train_dataloader(self) -> DataLoader:
        loader = self._loader(self.train_chips, training=True, every=self.every, end=self.end)
        self.sampler = loader.sampler
        self.sampler.load_state_dict({"position": self._position})
        return loader

    def val_dataloader(self) -> DataLoader | list:
        return self._loader(self.val_chips, training=False) if self.val_chips else []

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch if device.type == "cpu" else batch.to(device)
