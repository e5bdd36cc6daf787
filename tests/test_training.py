"""Training: release settings, determinism, exact resuming and a frozen teacher."""

import os
import shutil
import signal
from dataclasses import replace

import lightning as L
import pytest
import torch
from fakes import MICRO, fake_chips

from clay_lib import Clay, ContractError
from clay_lib.callbacks import newest_checkpoint, read_checkpoint
from clay_lib.data.augment import drop_bands
from clay_lib.datamodule import ClayDataModule, PlannedBatches, SensorBatches
from clay_lib.model import WeightAverage
from clay_lib.teacher import patch_statistics, stand_in_teacher
from clay_lib.training import ClayModule, TrainSettings, schedule, train

CPU = dict(accelerator="cpu", progress=False)


@pytest.fixture(scope="module")
def data():
    sizes = {"sentinel-2-l2a": 12, "naip": 5, "sentinel-1-rtc": 7}
    train = {name: fake_chips(name, n) for name, n in sizes.items()}
    return ClayDataModule(train, {"naip": fake_chips("naip", 4)}, batch_size=4)


class TestSettings:
    def test_release_learning_rate_rises_within_a_cycle(self):
        s = TrainSettings()
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=s.lr)
        steps, rates = schedule(optimizer, s), []
        for _ in range(3001):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            steps.step()
        assert rates[0] == pytest.approx(1e-5) and rates[999] == pytest.approx(1e-3, rel=1e-3)
        assert rates[1000] == pytest.approx(1e-5) and rates[2999] == pytest.approx(1e-3, rel=1e-3)
        assert rates[500] == pytest.approx((1e-5 + 1e-3) / 2, rel=1e-2) and rates[3000] == pytest.approx(1e-5)

    @pytest.mark.parametrize("name", ["warm_restarts", "one_cycle"])
    def test_learning_rate_factors_hold_at_every_step(self, name):
        settings = TrainSettings(schedule=name, embedding_lr_factor=0.1, head_lr_factor=20.0, t_0=5, max_steps=12)
        configured = ClayModule(MICRO, settings).configure_optimizers()
        optimizer, steps = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        for _ in range(12):
            base, *others = (group["lr"] for group in optimizer.param_groups)
            assert others == [pytest.approx(0.1 * base), pytest.approx(20 * base)]
            optimizer.step()
            steps.step()

    def test_optimizer_as_published(self):
        optimizer = ClayModule(MICRO).configure_optimizers()["optimizer"]
        group = optimizer.param_groups[0]
        assert type(optimizer) is torch.optim.AdamW
        assert (group["weight_decay"], tuple(group["betas"])) == (0.05, (0.9, 0.95))
        with pytest.raises(ContractError, match="schedule"):
            ClayModule(MICRO, TrainSettings(schedule="linear")).configure_optimizers()

    def test_shares_of_samples_with_dropped_bands(self):
        plan = SensorBatches({"naip": 3000}, batch_size=3000).plan(0)
        batch = PlannedBatches({"naip": fake_chips("naip", 3000)}, augment=True)[plan]
        cube = batch.cube.with_pixels(torch.ones_like(batch.cube.pixels))
        kept = drop_bands(cube, batch.draws, drop_all=0.1, drop_half=0.2).pixels[:, :, 0, 0].sum(1)
        known = cube.latlon.abs().sum(1) > 0
        assert (kept[~known] == 4).all()
        share = [(kept[known] == n).float().mean().item() for n in (0, 2, 4)]
        assert share == pytest.approx([0.1, 0.2, 0.7], abs=0.03)


class TestTraining:
    settings = TrainSettings(lr=2e-3, schedule="one_cycle", warmup_steps=2, max_steps=24, clip_gradient=1.0)

    def run(self, data, out, **changes):
        settings = replace(self.settings, **changes)
        return train(MICRO, settings, data, out=out, teacher=stand_in_teacher(), log_every=1, **CPU)

    def test_same_seed_same_weights_and_lower_loss(self, data, tmp_path):
        a, b = (self.run(data, tmp_path / name) for name in "ab")
        first, second = (run.model.state_dict() for run in (a, b))
        assert all(torch.equal(first[name], second[name]) for name in first)
        loss = a.history["train/loss"].dropna()
        assert loss.tail(6).mean() < loss.head(6).mean()
        assert {"train/naip", "val/naip", "val/reconstruction", "train/representation", "lr"} <= set(a.history.columns)

        loaded = Clay.load(a.checkpoint)
        assert loaded.model.config == MICRO
        assert all(torch.equal(loaded.model.state_dict()[name], first[name]) for name in first)
        assert self.run(data, tmp_path / "c", seed=1).model.state_dict()["proj.bias"].ne(first["proj.bias"]).any()

    def test_loss_weights_and_frozen_teacher(self, data):
        teacher = stand_in_teacher()
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        module = ClayModule(MICRO, TrainSettings(), teacher)
        losses = module.losses(data.first_batch(), training=False)
        expected = 0.95 * losses["reconstruction"] + 0.05 * losses["representation"]
        torch.testing.assert_close(losses["loss"], expected)
        losses["loss"].backward()
        assert not any("teacher" in name for name in (*module.state_dict(), *dict(module.named_parameters())))
        assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
        assert not module.train()._teacher[0].network.training and all(p.grad is None for p in teacher.parameters())

    def test_without_a_teacher_the_loss_is_reconstruction(self, data):
        losses = ClayModule(MICRO).losses(data.first_batch(), training=False)
        assert losses["loss"] == losses["reconstruction"] and "representation" not in losses
        with pytest.raises(ContractError, match="teacher_dim"):
            ClayModule(replace(MICRO, teacher_dim=32), teacher=stand_in_teacher())

    def test_validation_drops_no_band(self, data):
        batch = PlannedBatches(data.train_chips, augment=False)[SensorBatches({"naip": 5}, batch_size=5).plan(0)]
        dropping, keeping = ClayModule(MICRO, TrainSettings(drop_all_bands=1.0)), ClayModule(MICRO)
        keeping.load_state_dict(dropping.state_dict())
        validation, training = (dropping.losses(batch, training=t)["reconstruction"] for t in (False, True))
        assert validation == keeping.losses(batch, training=False)["reconstruction"] != training


class TestPatchHeads:
    def test_heads_learn_and_are_not_released(self, data, tmp_path):
        settings = TrainSettings(lr=1e-3, schedule="one_cycle", patch_weight=1.0, max_steps=60)
        run = train(MICRO, settings, data, out=tmp_path, accelerator="cpu", progress=False, log_every=6)
        losses = run.history["train/patches"].dropna()
        assert losses.iloc[-1] < 0.7 * losses.iloc[0]
        assert run.model.state_dict().keys() == Clay.random(MICRO).model.state_dict().keys()
        stored = newest_checkpoint(run.checkpoint.parent)
        assert all(name.startswith("model.") for name in stored["state_dict"])
        assert stored["patch_heads"]["weight"].abs().max() > 0  # to resume from

    def test_heads_without_weight_change_nothing(self, data, tmp_path):
        settings = TrainSettings(lr=1e-3, max_steps=6)
        options = dict(teacher=stand_in_teacher(), accelerator="cpu", progress=False)
        runs = [
            train(MICRO, replace(settings, patch_weight=weight), data, out=tmp_path / str(weight), **options)
            for weight in (None, 0.0)
        ]
        first, second = (run.model.state_dict() for run in runs)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert "train/patches" not in runs[0].history

    def test_statistics_of_a_patch_and_its_surroundings(self):
        pixels = torch.randn(2, 3, 24, 20)  # the last column of patches is padded
        found = patch_statistics(pixels, 8)
        assert found.shape == (2, 9, 2 * (9 + 48))
        own, around = found.tensor_split(2, dim=-1)
        torch.testing.assert_close(own[1, 3, :3], pixels[1, :, 8:16, :8].mean((1, 2)))
        torch.testing.assert_close(own[1, 3, 3:6], (pixels[1, :, 8:16, :8].std((1, 2)) + 0.02).log() + 1)
        torch.testing.assert_close(around[1, 4], own[1].mean(0))
        torch.testing.assert_close(around[1, 0], own[1, [0, 1, 3, 4]].mean(0))

    def test_holes_are_no_targets(self, data):
        module = ClayModule(MICRO, TrainSettings(patch_weight=1.0))
        batch = next(iter(data.train_dataloader()))
        valid = torch.ones(len(batch.cube.pixels), 1, 16, 16, dtype=torch.bool)
        valid[0, :, :8], valid[1] = False, False
        for holes in (valid, torch.zeros_like(valid)):
            losses = module.losses(replace(batch, cube=replace(batch.cube, valid=holes)), training=True)
            assert losses["patches"].isfinite()


class Interrupt(L.Callback):
    """Runs an action at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.action()


@pytest.fixture(scope="module")
def complete(data, tmp_path_factory):
    """A run that was never interrupted, and its rows."""
    out = tmp_path_factory.mktemp("complete")
    return TestResuming().run(data, out), (out / "log" / "metrics.csv").read_text()


class TestResuming:
    settings = TrainSettings(
        lr=1e-3, t_0=4, accumulate=2, ema_decay=0.9, head_lr_factor=5.0, patch_weight=0.5, max_steps=12
    )

    def run(self, data, out, *callbacks, **changes):
        settings, each = replace(self.settings, **changes), dict(log_every=5, val_every=4, checkpoint_steps=2)
        options = dict(teacher=stand_in_teacher(), resume=True, callbacks=callbacks, **each, **CPU)
        return train(MICRO, settings, data, out=out, **options)

    def assert_same(self, complete, again, out):
        first, second = (run.model.state_dict() for run in (complete[0], again))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert (out / "log" / "metrics.csv").read_text() == complete[1]

    def test_damaged_checkpoint_falls_back_to_the_previous_one(self, data, tmp_path, complete):
        out = tmp_path / "crash"

        def crash():
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            self.run(data, out, Interrupt(9, crash))
        last = out / "checkpoints" / "last.ckpt"
        assert newest_checkpoint(last.parent)["step"] == 8
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
        with open(out / "log" / "metrics.csv", "a") as file:
            file.write("9,1,0.00")  # a row that was being written
        with pytest.warns(UserWarning, match="damaged"):
            again = self.run(data, out)
        self.assert_same(complete, again, out)
        assert complete[0].history["step"].tolist() == [4, 5, 8, 10, 12, 12]

    def test_stops_on_sigterm_and_resumes(self, data, tmp_path, complete):
        out = tmp_path / "stopped"
        stopped = self.run(data, out, Interrupt(7, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert (stopped.signal, stopped.steps) == (signal.SIGTERM, 7)
        assert newest_checkpoint(out / "checkpoints")["step"] == 7
        self.assert_same(complete, self.run(data, out), out)

    def test_changed_settings_raise(self, data, tmp_path, complete):
        out = shutil.copytree(complete[0].checkpoint.parents[1], tmp_path / "copy")
        with pytest.raises(ContractError, match=r"lr 0.1.*lr 0.001"):
            self.run(data, out, lr=0.1)
        longer = self.run(data, out, max_steps=13)
        assert longer.steps == 13 and longer.history["step"].tolist()[-2:] == [13, 13]

    @pytest.mark.parametrize(("step", "good"), [(7, 6), (12, 10)])
    def test_nonfinite_weights_are_never_saved(self, data, tmp_path, step, good):
        """At a checkpoint during training, and at the end, where the loss was still finite."""

        class Poison(Interrupt):
            def on_train_batch_end(self, trainer, module, *_):
                if trainer.global_step == self.step:
                    module.model.proj.bias.data[0] = torch.nan

        with pytest.raises(ContractError, match="weights: found NaN"):
            self.run(data, tmp_path, Poison(step, None))
        assert newest_checkpoint(tmp_path / "checkpoints")["step"] == good

    def test_resume_from_other_files_raises(self, tmp_path):
        torch.save({"state_dict": {}}, tmp_path / "some.ckpt")
        with pytest.raises(ContractError, match="checkpoint"):
            read_checkpoint(tmp_path / "some.ckpt")

    @pytest.mark.parametrize("ema_decay", [None, 0.9])
    def test_training_begins_at_the_start_weights(self, data, tmp_path, ema_decay):
        """With a rate near zero, the weights to use are still those of the start."""
        start = Clay.random(MICRO, seed=7).model
        settings = TrainSettings(lr=1e-12, ema_decay=ema_decay, max_steps=2)
        trained = train(MICRO, settings, data, out=tmp_path, start=start, **CPU).model
        for name, tensor in start.state_dict().items():
            torch.testing.assert_close(trained.state_dict()[name], tensor, atol=1e-6, rtol=0)

    def test_a_step_draws_nothing_from_the_global_generator(self, data):
        module = ClayModule(MICRO, TrainSettings(drop_all_bands=0.5), stand_in_teacher())
        batch, before = data.first_batch(), torch.get_rng_state()
        module.losses(batch, training=True)
        assert torch.equal(before, torch.get_rng_state())

    def test_averaged_weights(self):
        model, old = torch.nn.Linear(1, 1, bias=False), 0.0
        model.weight.data.fill_(old)
        average = WeightAverage(model, 0.5)
        for step, (value, keep) in enumerate([(1.0, 1 / 10), (2.0, 2 / 11), (3.0, 3 / 12)]):
            model.weight.data.fill_(value)
            average.update(step)
            old = keep * old + (1 - keep) * value
        assert average.weights[0].item() == pytest.approx(old)
        average.swap()
        assert model.weight.item() == pytest.approx(old) and average.weights[0].item() == 3.0
