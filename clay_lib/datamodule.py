"""Batches: each of one sensor, the sensors in turn, short ones repeated up to the longest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from clay_lib.chips import Chips
from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube, make_datacube


@dataclass(frozen=True)
class Batch:
    """One sensor's chips, and where they stand in its array."""

    sensor: str
    cube: Datacube
    indices: np.ndarray  # [B]

    def to(self, device, dtype: torch.dtype | None = None) -> Batch:
        return Batch(self.sensor, self.cube.to(device, dtype), self.indices)


@dataclass(frozen=True)
class Plan:
    """Which chips a batch holds, and the seed of its augmentation: all that a loading process needs to know."""

    sensor: str
    indices: np.ndarray  # [B]
    seed: tuple[int, ...]


class SensorBatches(Sampler[Plan]):
    """Plans for one epoch; the same for the same seed and epoch. len() is the number of batches.

    Every rank draws the same order and takes its own share, so that all ranks see the same sensor at a step, take the
    same number of steps, and share no chip. Chips that do not fill a batch on every rank are filled up by repeats.
    """

    def __init__(self, sizes: Mapping[str, int], *, batch_size: int, seed: int = 0, shuffle: bool = True):
        self.sizes, self.batch_size, self.seed, self.shuffle, self.epoch = dict(sizes), batch_size, seed, shuffle, 0
        ready = distributed.is_available() and distributed.is_initialized()
        self.rank, self.ranks = (distributed.get_rank(), distributed.get_world_size()) if ready else (0, 1)
        self.rounds = -(-max(self.sizes.values()) // (batch_size * self.ranks))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rounds * len(self.sizes)

    def __iter__(self) -> Iterator[Plan]:
        step = self.batch_size * self.ranks
        orders = [self._order(k, size, self.rounds * step) for k, size in enumerate(self.sizes.values())]
        for turn in range(self.rounds):
            for k, sensor in enumerate(self.sizes):
                mine = orders[k][turn * step : (turn + 1) * step][self.rank :: self.ranks]
                yield Plan(sensor, mine, (self.seed, self.epoch, k, turn, self.rank))

    def _order(self, sensor: int, size: int, length: int) -> np.ndarray:
        """At least `length` indices: one permutation after the other, cut where they suffice."""
        rng = np.random.default_rng([self.seed, self.epoch, sensor])
        turns = [rng.permutation(size) if self.shuffle else np.arange(size) for _ in range(-(-length // size))]
        return np.concatenate(turns)[:length]


class PlannedBatches(Dataset):
    """Plan -> Batch: chips read, augmented and normalised together, without a loop over them.

    augment: each batch turned by a random quarter, each chip flipped at random; place and time of a fifth of the
    samples zeroed, as in the release. crop: side in pixels of a window cut out of every chip, at random places while
    augmenting and from the middle otherwise; None: whole chips.
    """

    def __init__(
        self, chips: Mapping[str, Chips], *, augment: bool, crop: int | None = None, unknown_share: float = 0.2
    ):
        self.chips, self.augment, self.crop, self.unknown_share = chips, augment, crop, unknown_share

    def __getitem__(self, plan: Plan) -> Batch:
        rng = np.random.default_rng(plan.seed)
        chips = self.chips[plan.sensor][plan.indices]
        cube = make_datacube(self._cropped(chips.pixels, rng), plan.sensor, **chips.place_and_time)
        return Batch(plan.sensor, self._augmented(cube, rng) if self.augment else cube, plan.indices)

    def _cropped(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[B, C, H, W] -> [B, C, crop, crop], another window for each chip."""
        if self.crop is None:
            return pixels
        B, _, H, W = pixels.shape
        room = np.array([[H - self.crop], [W - self.crop]])
        if room.min() < 0:
            raise ContractError(
                "crop", found=self.crop, expected=f"at most {min(H, W)}", cause="chips smaller than the window"
            )
        top, left = rng.integers(0, room + 1, (2, B)) if self.augment else np.broadcast_to(room // 2, (2, B))
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (self.crop, self.crop), axis=(2, 3))
        return windows[np.arange(B), :, top, left]

    def _augmented(self, cube: Datacube, rng: np.random.Generator) -> Datacube:
        pixels = torch.rot90(cube.pixels, int(rng.integers(4)), dims=(2, 3))
        for axis in (2, 3):
            flipped = torch.from_numpy(rng.random(len(cube)) < 0.5)
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(axis), pixels)
        known = torch.from_numpy((rng.random(len(cube)) >= self.unknown_share).astype(np.float32))[:, None]
        return Datacube(pixels.contiguous(), cube.time * known, cube.latlon * known, cube.gsd, cube.waves)


class ClayDataModule(L.LightningDataModule):
    """Training and validation chips by sensor."""

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
        unknown_share: float = 0.2,
    ):
        super().__init__()
        empty = [name for name, chips in train.items() if len(chips) == 0]
        if not train or empty:
            raise ContractError(
                "train",
                found=empty or "no sensor",
                expected="chips of at least one sensor",
                cause="an empty folder or split",
            )
        self.train_chips, self.val_chips = dict(train), dict(val or {})
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.augment, self.crop, self.unknown_share = augment, crop, unknown_share

    def _loader(self, chips: Mapping[str, Chips], *, training: bool) -> DataLoader:
        sizes = {name: len(part) for name, part in chips.items()}
        sampler = SensorBatches(sizes, batch_size=self.batch_size, seed=self.seed, shuffle=training)
        augment = training and self.augment
        data = PlannedBatches(chips, augment=augment, crop=self.crop, unknown_share=self.unknown_share)
        return DataLoader(
            data, sampler=sampler, batch_size=None, num_workers=self.workers, persistent_workers=self.workers > 0
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_chips, training=True)

    def val_dataloader(self) -> DataLoader | list:
        return self._loader(self.val_chips, training=False) if self.val_chips else []

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)
