"""Batches and their random numbers, which do not depend on workers, ranks or restarts."""

import numpy as np
import pytest
import torch
from fakes import fake_chips

from clay_lib import SENSORS, ContractError
from clay_lib.data.augment import LEFT_RIGHT, UP_DOWN, Draws
from clay_lib.datacube import make_datacube
from clay_lib.datamodule import ClayDataModule, PlannedBatches, SensorBatches, batches_per_epoch


@pytest.fixture(scope="module")
def data():
    sizes = {"sentinel-2-l2a": 12, "naip": 5, "sentinel-1-rtc": 7}
    return ClayDataModule({name: fake_chips(name, n) for name, n in sizes.items()}, batch_size=4)


class TestBatches:
    def test_sensors_take_turns(self, data):
        batches = list(data.train_dataloader())
        assert len(batches) == data.batches_per_epoch() == 9  # three sensors, the longest has three batches
        assert [b.sensor for b in batches[:6]] == ["sentinel-2-l2a", "naip", "sentinel-1-rtc"] * 2
        assert all(b.cube.pixels.shape[:2] == (4, len(SENSORS[b.sensor].bands)) for b in batches)

    def test_an_epoch_holds_every_chip_and_short_sensors_repeat(self):
        plans = list(SensorBatches({"a": 12, "b": 5}, batch_size=4, seed=1))
        indices = {s: np.concatenate([p.indices for p in plans if p.sensor == s]) for s in "ab"}
        assert sorted(indices["a"]) == list(range(12))
        assert len(indices["b"]) == 12 and set(np.bincount(indices["b"])) == {2, 3}

    def test_epochs_differ_and_repeat_by_seed(self):
        def order(seed, epoch):
            batches = SensorBatches({"a": 40}, batch_size=8, seed=seed)
            batches.load_state_dict({"position": epoch * batches.per_epoch})
            return np.concatenate([plan.indices for plan in batches]).tolist()

        assert order(0, 1) == order(0, 1) != order(0, 2) != order(1, 2)

    def test_augmentation_keeps_pixels_and_zeroes_a_fifth_of_the_places(self):
        chips = fake_chips("naip", 400)
        plan = next(iter(SensorBatches({"naip": 400}, batch_size=400)))
        plain, turned = (PlannedBatches({"naip": chips}, augment=augment)[plan].cube for augment in (False, True))
        torch.testing.assert_close(plain.pixels.mean((1, 2, 3)), turned.pixels.mean((1, 2, 3)))
        unknown = (turned.latlon.abs().sum(1) == 0) & (turned.time.abs().sum(1) == 0)
        assert 0.13 < unknown.float().mean() < 0.27
        assert torch.equal(turned.latlon[~unknown], plain.latlon[~unknown])

    def test_crops_are_windows_of_the_chips(self):
        rows, draws = np.arange(24, dtype=np.float32), Draws((0,), np.arange(50))
        chips = fake_chips("naip", 50, size=24)
        chips.pixels[:] = rows[:, None] * 100 + rows  # every pixel holds its position

        def cut(crop, augment):
            return PlannedBatches({"naip": chips}, augment=augment)._crop(chips.pixels, crop, draws)

        random = cut(16, augment=True)
        top, left = np.divmod(random[:, 0, 0, 0], 100)
        assert random.shape == (50, 4, 16, 16) and len({*zip(top, left, strict=True)}) > 20 and max(*top, *left) == 8
        assert (random[:, 2, 15, 3] == random[:, 0, 0, 0] + 1503).all()
        assert (cut(16, augment=False)[:, 0, 0, 0] == 404).all()
        with pytest.raises(ContractError, match="crop"):
            cut(32, augment=False)

    def test_no_training_chips_raise(self):
        with pytest.raises(ContractError, match="train"):
            ClayDataModule({"naip": fake_chips("naip", 4)[:0]})

    def test_repeated_sensors_come_more_often_and_no_chip_is_left_out(self):
        sizes, repeats = {"a": 12, "b": 5}, {"a": 2}
        plans = list(SensorBatches(sizes, batch_size=4, repeats=repeats))
        assert [plan.sensor for plan in plans] == ["a", "b", "a"] * 2
        assert len(plans) == batches_per_epoch(sizes, repeats, 4)
        for name, size in sizes.items():
            assert set(np.concatenate([p.indices for p in plans if p.sensor == name])) == set(range(size))
        assert len({plan.draws.key for plan in plans}) == len(plans)


def all_and_ranks(monkeypatch, sizes, batch_size, ranks=2):
    everything = SensorBatches(sizes, batch_size=ranks * batch_size, seed=3)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        shares.append(SensorBatches(sizes, batch_size=batch_size, seed=3))
    return everything, shares


class TestDraws:
    def test_uniform_and_independent_streams(self):
        draws = Draws((0, 1, 2), np.arange(1000))
        a, b = draws("a", 100), draws("b", 100)
        assert a.min() >= 0 and a.max() < 1
        assert np.abs(np.histogram(a, 20, (0, 1))[0] / 5000 - 1).max() < 0.06
        for x, y in ((a, b), (a[1:], a[:-1]), (a[:, 1:], a[:, :-1]), (a, Draws((0, 1, 3), np.arange(1000))("a", 100))):
            assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 0.02
        assert np.array_equal(draws("a", 7), a[:, :7])

    def test_ranks_draw_the_numbers_of_one_process(self, monkeypatch):
        everything, shares = all_and_ranks(monkeypatch, {"naip": 11, "linz": 6}, 2)
        chips = {"naip": fake_chips("naip", 11, 24), "linz": fake_chips("linz", 6, 24)}
        data = PlannedBatches(chips, augment=True, crop=16)
        for number in range(2 * everything.per_epoch):
            one = data[everything.plan(number)]
            for rank, share in enumerate(shares):
                part = data[share.plan(number)]
                assert part.sensor == one.sensor
                assert np.array_equal(part.indices, one.indices[rank::2])
                assert torch.equal(part.cube.pixels, one.cube.pixels[rank::2])
                assert torch.equal(part.cube.latlon, one.cube.latlon[rank::2])
                assert np.array_equal(part.draws("mask", 9), one.draws("mask", 9)[rank::2])


class TestPosition:
    sizes = {"naip": 11, "linz": 6}

    def batches(self, **options):
        return SensorBatches(self.sizes, batch_size=4, **options)

    def test_a_restored_sampler_yields_the_rest(self):
        complete, first = [*self.batches(every=17)], self.batches(every=17)
        first.position = 8  # as the training loop leaves it after eight batches
        restored = self.batches(every=17)
        restored.load_state_dict(first.state_dict())
        assert [plan.number for plan in restored] == list(range(8, 17))
        for a, b in zip(complete[8:], restored, strict=True):
            assert a.sensor == b.sensor and a.draws.key == b.draws.key and np.array_equal(a.indices, b.indices)
        first_epoch = np.concatenate([p.indices for p in complete[:6] if p.sensor == "naip"])
        assert sorted(np.bincount(first_epoch)) == [1] * 10 + [2]  # 12 places for 11 chips

    def test_iterating_stops_at_multiples_and_at_the_end(self):
        batches = self.batches(every=5, end=12)
        for position, numbers in {0: range(5), 3: range(3, 5), 5: range(5, 10), 10: range(10, 12), 12: ()}.items():
            batches.position = position
            assert [plan.number for plan in batches] == [*numbers] == [plan.number for plan in batches]

    def test_the_data_module_keeps_the_position(self):
        data = ClayDataModule({"naip": fake_chips("naip", 12)}, batch_size=4)
        data.load_state_dict({"position": 2})
        assert [batch.number for batch in data.train_dataloader()] == [2]
        data.sampler.position = 3
        assert data.state_dict() == {"position": 3}

    def test_validation_has_each_chip_once_and_is_the_same_every_time(self):
        val = {"naip": fake_chips("naip", 8), "linz": fake_chips("linz", 4)}
        data = ClayDataModule({"naip": fake_chips("naip", 4)}, val, batch_size=4)
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


class KeyTargets:
    """Targets that hold the chip and the flip that they belong to."""

    def lookup(self, sensor, hashes, flips):
        return torch.from_numpy(np.stack([[int(h, 16) % 997 for h in hashes], flips], 1)).half()


class TestTargets:
    def test_targets_match_chips_and_flips(self):
        chips = fake_chips("naip", 40, 16)
        chips.pixels[:] += np.arange(16) + 3 * np.arange(16)[:, None]  # so that every flip differs
        plan = SensorBatches({"naip": 40}, batch_size=40).plan(0)
        batch = PlannedBatches({"naip": chips}, augment=True, targets=KeyTargets())[plan]
        assert set(batch.flips) == {0, 1, 2, 3}
        for k, (index, flip) in enumerate(zip(batch.indices, batch.flips, strict=True)):
            pixels = chips.pixels[index]
            pixels = pixels[:, ::-1] if flip & UP_DOWN else pixels
            pixels = pixels[:, :, ::-1] if flip & LEFT_RIGHT else pixels
            assert torch.equal(batch.cube.pixels[k], make_datacube(pixels.copy(), "naip").pixels[0])
            assert batch.targets[k].tolist() == [int(chips.hashes[index], 16) % 997, flip]

    def test_local_batches_are_windows_with_the_targets_of_complete_chips(self):
        chips = fake_chips("naip", 64, size=16)
        data = PlannedBatches({"naip": chips}, augment=True, local_share=0.5, targets=KeyTargets())
        batches = [data[plan] for plan in SensorBatches({"naip": 64}, batch_size=2)]
        sides = [batch.cube.pixels.shape[-1] for batch in batches]
        assert set(sides) == {8, 16} and 8 < sides.count(8) < 24
        for batch in batches:
            assert batch.targets[:, 0].tolist() == [int(chips.hashes[i], 16) % 997 for i in batch.indices]
        central = PlannedBatches({"naip": chips}, augment=False, local_share=1.0)
        assert central[SensorBatches({"naip": 64}, batch_size=2).plan(0)].cube.pixels.shape[-1] == 16

    @pytest.mark.parametrize("options", [{"crop": 8}, {"turns": True}])
    def test_windows_and_turns_raise(self, options):
        with pytest.raises(ContractError, match="targets"):
            PlannedBatches({"naip": fake_chips("naip", 4)}, augment=True, targets=KeyTargets(), **options)


class TestDamage:
    def test_other_chips_replace_skipped_ones(self):
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
