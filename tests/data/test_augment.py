"""What a recipe can ask for: shifted colours, some sensors more often, and first weights from a function."""

import numpy as np
import pytest
import torch

from clay_lib.clay import cosine_initialized
from clay_lib.data.augment import GAIN, OFFSET, shifted
from clay_lib.datacube import Datacube
from clay_lib.datamodule import Draws, SensorBatches, batches_per_epoch
from clay_lib.errors import ContractError
from clay_lib.model import ClayConfig
from clay_lib.runs.pretrain import find_start

B, C = 2000, 3


def cube(**more):
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(B, C, 4, 4)).astype(np.float32))
    return Datacube(pixels, torch.ones(B, 4), torch.ones(B, 4), 1.0, torch.tensor([0.65, 0.56, 0.48]), **more)


def test_a_share_is_shifted_as_a_whole_and_loses_place_and_time():
    plain, draws = cube(), Draws((1, 2), np.arange(B))
    new = shifted(plain, draws, share=0.3)
    same = (new.pixels == plain.pixels).flatten(1).all(1)
    assert 0.67 < same.float().mean() < 0.73
    assert torch.equal(new.time[:, 0] == 1, same) and torch.equal(new.latlon, new.time)
    moved, from_ = new.pixels[~same].flatten(2), plain.pixels[~same].flatten(2)
    pairs = zip(moved.flatten(0, 1), from_.flatten(0, 1), strict=True)
    fits = torch.stack([torch.stack([m.std(), m.mean() - m.std() / f.std() * f.mean()]) for m, f in pairs])
    gain = (fits[:, 0] / from_.flatten(0, 1).std(1)).log()
    assert GAIN < gain.std() < 1.5 * GAIN and abs(gain.mean()) < 0.1
    assert OFFSET < fits[:, 1].std() < 1.5 * OFFSET
    assert torch.equal(new.pixels, shifted(plain, draws, share=0.3).pixels)


def test_holes_stay_zero():
    valid = torch.ones(B, 1, 4, 4, dtype=torch.bool)
    valid[:, :, 0, 0] = False
    plain = cube(valid=valid)
    new = shifted(plain.with_pixels(plain.pixels * valid), Draws((3,), np.arange(B)), share=1.0)
    assert (new.pixels[:, :, 0, 0] == 0).all() and (new.pixels[:, :, 1, 1] != 0).all()


def test_repeated_sensors_come_more_often_and_nothing_is_left_out():
    sizes, repeats = {"a": 12, "b": 5}, {"a": 2}
    plans = list(SensorBatches(sizes, batch_size=4, repeats=repeats))
    assert [plan.sensor for plan in plans] == ["a", "b", "a"] * 2
    assert len(plans) == batches_per_epoch(sizes, repeats, 4)
    for name, size in sizes.items():
        assert set(np.concatenate([p.indices for p in plans if p.sensor == name])) == set(range(size))
    assert len({plan.draws.key for plan in plans}) == len(plans)


def test_first_weights_come_from_a_function():
    config = ClayConfig.named("tiny")
    found = find_start("clay_lib.clay:cosine_initialized", config, 3).model.state_dict()
    assert all(
        torch.equal(found[name], tensor) for name, tensor in cosine_initialized(config, 3).model.state_dict().items()
    )
    assert find_start("", config, 3) is None
    with pytest.raises(ContractError, match="start"):
        find_start("clay_lib.model:bron", config, 3)
