"""Batches for a head: chips read anew, or what a frozen encoder said of them, kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clay_lib.augment import flipped
from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube
from clay_lib.datasets import LabelledSet
from clay_lib.heads import Features, features
from clay_lib.model import Clay


def read_batch(clay: Clay, data: LabelledSet, rows, *, flip: int = 0, check: bool = False) -> tuple[Datacube, Tensor]:
    """Chips of a set by their place in it: the normalised batch on the model's device, and labels [B] or [B, H, W]."""
    samples = [data[int(i)] for i in rows]
    if len(shapes := {s.pixels.shape for s in samples}) > 1:
        raise ContractError(
            "pixels", found=sorted(shapes), expected="one shape", cause="images of several sizes: size="
        )
    pixels = np.stack([flipped(s.pixels, flip) for s in samples])
    cube = clay.cube(pixels, data.sensor, check=check, **data.about(np.asarray(rows)))
    labels = [flipped(s.label, flip) if data.dense else s.label for s in samples]
    return cube, torch.from_numpy(np.array(labels, np.int64 if data.classes else np.float32))


def feature_gb(clay: Clay, data: LabelledSet, layers: int) -> float:
    """Gigabytes of what a frozen encoder says of a set."""
    config, (C, H, W) = clay.model.config, data[0].pixels.shape
    patches = -(-H // config.patch_size) * -(-W // config.patch_size)
    return len(data) * 4 * (config.dim * (1 + layers * patches) + C * H * W) / 1e9


def stock_of(clay: Clay, data: LabelledSet, layers, *, keep: bool) -> tuple[Features | None, Tensor]:
    """What can be made once: the features if they are kept, and all labels."""
    if not len(data):
        raise ContractError("data", found="no chip", expected="at least one", cause="an empty split")
    kept, labels = [], []
    for rows in slices(len(data), 16):
        if keep:
            cube, some = read_batch(clay, data, rows, check=not labels)
            with torch.inference_mode():
                kept.append(features(clay.model.encoder, cube, layers).to("cpu"))
        else:
            some = torch.as_tensor(np.array([data[int(i)].label for i in rows]))
        labels.append(some)
    if not keep:  # units, band order and place are looked at once
        read_batch(clay, data, np.arange(min(16, len(data))), check=True)
    whole = Features(*(torch.cat([getattr(f, name) for f in kept]).clone() for name in vars(kept[0]))) if kept else None
    return whole, torch.cat(labels)


def loader_of(
    clay: Clay, data: LabelledSet, stock: Features | None, labels: Tensor, s, *, training: bool
) -> DataLoader:
    """Batches ((Datacube or Features), labels); chips read anew are mirrored at random while training."""
    rng = np.random.default_rng(s.seed)

    def collate(rows):
        rows = np.asarray(rows)
        if stock is not None:
            return stock[rows], labels[rows]
        return read_batch(clay, data, rows, flip=int(rng.integers(4)) if training and s.flip else 0)

    order = torch.Generator().manual_seed(s.seed)
    return DataLoader(range(len(data)), s.batch_size, shuffle=training, collate_fn=collate, generator=order)


def slices(count: int, size: int) -> Iterator[np.ndarray]:
    """0 ... count - 1 in turn, `size` at a time."""
    return (np.arange(start, min(start + size, count)) for start in range(0, count, size))
