"""What is drawn belongs to a batch's number and a chip's place: no process, rank or restart changes it."""

import numpy as np
import pytest
import torch
from test_training import fake_chips

from clay_lib import ContractError
from clay_lib.data.augment import LEFT_RIGHT, UP_DOWN
from clay_lib.datacube import make_datacube
from clay_lib.datamodule import ClayDataModule, Draws, PlannedBatches, SensorBatches


def whole_and_ranks(monkeypatch, sizes, batch_size, ranks=2):
    whole = SensorBatches(sizes, batch_size=ranks * batch_size, seed=3)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        shares.append(SensorBatches(sizes, batch_size=batch_size, seed=3))
    return whole, shares


class TestDraws:
    def test_uniform_and_of_many_streams(self):
        draws = Draws((0, 1, 2), np.arange(1000))
        a, b = draws("a", 100), draws("b", 100)
        assert a.min() >= 0 and a.max() < 1
        assert np.abs(np.histogram(a, 20, (0, 1))[0] / 5000 - 1).max() < 0.06
        for x, y in ((a, b), (a[1:], a[:-1]), (a[:, 1:], a[:, :-1]), (a, Draws((0, 1, 3), np.arange(1000))("a", 100))):
            assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 0.02
        assert np.array_equal(draws("a", 7), a[:, :7])

    def test_ranks_share_out_what_one_process_draws(self, monkeypatch):
        whole, shares = whole_and_ranks(monkeypatch, {"naip": 11, "linz": 6}, 2)
        chips = {"naip": fake_chips("naip", 11, 24), "linz": fake_chips("linz", 6, 24)}
        data = PlannedBatches(chips, augment=True, crop=16)
        for number in range(2 * len(whole)):
            one = data[whole.plan(number)]
            for rank, share in enumerate(shares):
                part = data[share.plan(number)]
                assert part.sensor == one.sensor
                assert np.array_equal(part.indices, one.indices[rank::2])
                assert torch.equal(part.cube.pixels, one.cube.pixels[rank::2])
                assert torch.equal(part.cube.latlon, one.cube.latlon[rank::2])
                assert np.array_equal(part.draws("mask", 9), one.draws("mask", 9)[rank::2])


class TestSpans:
    def test_a_run_that_begins_anywhere_sees_the_rest(self):
        sizes = {"naip": 11, "linz": 6}
        all_of_it = list(SensorBatches(sizes, batch_size=4, span=(0, 17)))
        rest = list(SensorBatches(sizes, batch_size=4, span=(8, 17)))
        assert len(rest) == 9
        for a, b in zip(all_of_it[8:], rest, strict=True):
            assert a.sensor == b.sensor and a.draws.key == b.draws.key and np.array_equal(a.indices, b.indices)
        first_epoch = np.concatenate([p.indices for p in all_of_it[:6] if p.sensor == "naip"])
        assert sorted(np.bincount(first_epoch)) == [1] * 10 + [2]  # 12 places for 11 chips

    def test_validation_sees_each_chip_once_and_always_alike(self):
        data = ClayDataModule(
            {"naip": fake_chips("naip", 4)},
            {"naip": fake_chips("naip", 8), "linz": fake_chips("linz", 4)},
            batch_size=4,
        )
        first, second = list(data.val_dataloader()), list(data.val_dataloader())
        assert [b.sensor for b in first] == ["naip", "linz", "naip"]
        assert sorted(np.concatenate([b.indices for b in first if b.sensor == "naip"])) == list(range(8))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.cube.pixels, b.cube.pixels) and np.array_equal(a.draws("mask", 4), b.draws("mask", 4))

    def test_workers_change_nothing(self):
        chips = {"naip": fake_chips("naip", 12, 24)}
        none, two = (list(ClayDataModule(chips, batch_size=4, crop=16, workers=n).train_dataloader()) for n in (0, 2))
        assert len(none) == len(two) == 3
        assert all(torch.equal(a.cube.pixels, b.cube.pixels) for a, b in zip(none, two, strict=True))


class Rows:
    """Targets that say which chip and which flip they are of."""

    def lookup(self, sensor, hashes, flips):
        return torch.from_numpy(np.stack([[int(h, 16) % 997 for h in hashes], flips], 1)).half()


class TestTargets:
    def test_they_are_of_the_chips_and_flips_of_the_batch(self):
        chips = fake_chips("naip", 40, 16)
        chips.pixels[:] += np.arange(16) + 3 * np.arange(16)[:, None]  # so that every flip is another picture
        batch = PlannedBatches({"naip": chips}, augment=True, targets=Rows())[
            SensorBatches({"naip": 40}, batch_size=40).plan(0)
        ]
        assert set(batch.flips) == {0, 1, 2, 3}
        for k, (index, flip) in enumerate(zip(batch.indices, batch.flips, strict=True)):
            pixels = chips.pixels[index]
            pixels = pixels[:, ::-1] if flip & UP_DOWN else pixels
            pixels = pixels[:, :, ::-1] if flip & LEFT_RIGHT else pixels
            assert torch.equal(batch.cube.pixels[k], make_datacube(pixels.copy(), "naip").pixels[0])
            assert batch.targets[k].tolist() == [int(chips.hashes[index], 16) % 997, flip]

    @pytest.mark.parametrize("options", [{"crop": 8}, {"turns": True}])
    def test_no_windows_and_no_turns_with_them(self, options):
        with pytest.raises(ContractError, match="targets"):
            PlannedBatches({"naip": fake_chips("naip", 4)}, augment=True, targets=Rows(), **options)


class TestDamage:
    def test_others_of_the_batch_stand_in_for_skipped_chips(self):
        class Damaged:
            chips = fake_chips("naip", 8)

            def __len__(self):
                return 8

            def take(self, index):
                kept = index % 3 != 0
                return self.chips[index[kept]], kept

        batch = PlannedBatches({"naip": Damaged()}, augment=False)[SensorBatches({"naip": 8}, batch_size=8).plan(0)]
        assert len(batch.cube) == 8 and set(batch.indices) == {1, 2, 4, 5, 7}
        levels = batch.cube.pixels.mean((1, 2, 3))
        np.testing.assert_allclose(levels, np.linspace(-1, 1, 8)[batch.indices], atol=1e-3)
