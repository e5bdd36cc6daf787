"""Training does what the release notes say, twice the same, and never touches the teacher."""

import json
import os
import shutil
import signal
from dataclasses import asdict, replace

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from clay_lib import SENSORS, Clay, ClayConfig, ContractError
from clay_lib.__main__ import main
from clay_lib.data.chips import Chips
from clay_lib.datamodule import ClayDataModule, Draws, PlannedBatches, SensorBatches
from clay_lib.runs.pretrain import read_config
from clay_lib.teacher import load_teacher, stand_in_teacher, teacher_view
from clay_lib.training import (
    Average,
    ClayModule,
    TrainSettings,
    drop_bands,
    newest_checkpoint,
    read_checkpoint,
    schedule,
    train,
)

MICRO = ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=64)


def fake_chips(sensor, n=12, size=16):
    """Chips that say their own number: chip k is constant k standard deviations above the mean, so far as it goes."""
    spec = SENSORS[sensor]
    mean, std = spec.statistics()
    level = np.linspace(-1, 1, n)[:, None, None, None] * std[:, None, None] + mean[:, None, None]
    pixels = np.broadcast_to(10 ** (level / 10) if spec.decibel else level, (n, len(mean), size, size))
    ones = np.ones(n)
    return Chips(
        sensor,
        pixels.astype(np.float32),
        np.zeros((n, size, size), np.uint8),
        10 * ones,
        20 * ones,
        np.array(["2021-05-04T10:30"] * n),
    )


@pytest.fixture(scope="module")
def data():
    sizes = {"sentinel-2-l2a": 12, "naip": 5, "sentinel-1-rtc": 7}
    return ClayDataModule(
        {name: fake_chips(name, n) for name, n in sizes.items()}, {"naip": fake_chips("naip", 4)}, batch_size=4
    )


class TestBatches:
    def test_one_sensor_each_in_turn_and_the_right_length(self, data):
        loader = data.train_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) == 9  # three sensors, the longest has three batches
        assert [b.sensor for b in batches[:6]] == ["sentinel-2-l2a", "naip", "sentinel-1-rtc"] * 2
        assert all(b.cube.pixels.shape[:2] == (4, len(SENSORS[b.sensor].bands)) for b in batches)

    def test_an_epoch_holds_every_chip_and_short_sensors_repeat(self):
        plans = list(SensorBatches({"a": 12, "b": 5}, batch_size=4, seed=1))
        seen = {s: np.concatenate([p.indices for p in plans if p.sensor == s]) for s in "ab"}
        assert sorted(seen["a"]) == list(range(12))
        assert len(seen["b"]) == 12 and set(np.bincount(seen["b"])) == {2, 3}

    def test_epochs_differ_and_repeat_by_seed(self):
        def order(seed, epoch):
            batches = SensorBatches({"a": 40}, batch_size=8, seed=seed)
            batches.set_epoch(epoch)
            return np.concatenate([plan.indices for plan in batches]).tolist()

        assert order(0, 1) == order(0, 1) != order(0, 2) != order(1, 2)

    def test_ranks_share_out_an_epoch(self, monkeypatch):
        ranks = []
        for rank in range(2):
            monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
            monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
            monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
            ranks.append(list(SensorBatches({"a": 24, "b": 24}, batch_size=4)))
        assert [p.sensor for p in ranks[0]] == [p.sensor for p in ranks[1]]
        for sensor in "ab":
            mine, yours = (np.concatenate([p.indices for p in plans if p.sensor == sensor]) for plans in ranks)
            assert not set(mine) & set(yours) and len(set(mine) | set(yours)) == 24

    def test_augmentation_keeps_pixels_and_hides_a_fifth_of_the_places(self):
        chips = fake_chips("naip", 400)
        plan = next(iter(SensorBatches({"naip": 400}, batch_size=400)))
        plain, turned = (PlannedBatches({"naip": chips}, augment=augment)[plan].cube for augment in (False, True))
        torch.testing.assert_close(plain.pixels.mean((1, 2, 3)), turned.pixels.mean((1, 2, 3)))
        unknown = (turned.latlon.abs().sum(1) == 0) & (turned.time.abs().sum(1) == 0)
        assert 0.13 < unknown.float().mean() < 0.27
        assert torch.equal(turned.latlon[~unknown], plain.latlon[~unknown])

    def test_crops_are_windows_of_the_chips(self):
        rows = np.arange(24, dtype=np.float32)
        chips = fake_chips("naip", 50, size=24)
        chips.pixels[:] = rows[:, None] * 100 + rows  # every pixel says where it was
        data = PlannedBatches({"naip": chips}, augment=True, crop=16)
        cut = data._cropped(chips.pixels, Draws((0,), np.arange(50)))
        top, left = np.divmod(cut[:, 0, 0, 0], 100)
        assert cut.shape == (50, 4, 16, 16) and len({*zip(top, left, strict=True)}) > 20 and max(*top, *left) == 8
        assert (cut[:, 2, 15, 3] == cut[:, 0, 0, 0] + 1503).all()
        draws = Draws((0,), np.arange(50))
        middle = PlannedBatches({"naip": chips}, augment=False, crop=16)._cropped(chips.pixels, draws)
        assert (middle[:, 0, 0, 0] == 404).all()
        with pytest.raises(ContractError, match="crop"):
            PlannedBatches({"naip": chips}, augment=False, crop=32)._cropped(chips.pixels, draws)

    def test_nothing_to_train_on(self):
        with pytest.raises(ContractError, match="train"):
            ClayDataModule({"naip": fake_chips("naip", 4)[:0]})


class TestSettings:
    def test_the_release_rate_rises_within_a_cycle(self):
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
    def test_factors_hold_at_every_step(self, name):
        settings = TrainSettings(schedule=name, embedding_lr_factor=0.1, head_lr_factor=20.0, t_0=5, max_steps=12)
        made = ClayModule(MICRO, settings).configure_optimizers()
        optimizer, steps = made["optimizer"], made["lr_scheduler"]["scheduler"]
        for _ in range(12):
            base, *others = (group["lr"] for group in optimizer.param_groups)
            assert others == [pytest.approx(0.1 * base), pytest.approx(20 * base)]
            optimizer.step()
            steps.step()

    def test_optimiser_as_published(self):
        optimizer = ClayModule(MICRO).configure_optimizers()["optimizer"]
        group = optimizer.param_groups[0]
        assert (group["weight_decay"], tuple(group["betas"])) == (0.05, (0.9, 0.95))
        assert type(optimizer) is torch.optim.AdamW

    def test_unknown_schedule(self):
        with pytest.raises(ContractError, match="schedule"):
            ClayModule(MICRO, TrainSettings(schedule="linear")).configure_optimizers()

    def test_dropped_bands(self):
        batch = PlannedBatches({"naip": fake_chips("naip", 3000)}, augment=True)[
            next(iter(SensorBatches({"naip": 3000}, batch_size=3000)))
        ]
        cube = batch.cube.with_pixels(torch.ones_like(batch.cube.pixels))
        kept = drop_bands(cube, batch.draws, drop_all=0.1, drop_half=0.2).pixels[:, :, 0, 0].sum(1)
        known = cube.latlon.abs().sum(1) > 0
        assert (kept[~known] == 4).all()
        share = {n: float((kept[known] == n).float().mean()) for n in (0, 2, 4)}
        assert share == {
            0: pytest.approx(0.1, abs=0.03),
            2: pytest.approx(0.2, abs=0.03),
            4: pytest.approx(0.7, abs=0.04),
        }


class TestTraining:
    settings = TrainSettings(lr=2e-3, schedule="one_cycle", warmup_steps=2, max_steps=24, clip_gradient=1.0)

    def run(self, data, out, **changes):
        return train(
            MICRO,
            replace(self.settings, **changes),
            data,
            out=out,
            teacher=stand_in_teacher(),
            progress=False,
            accelerator="cpu",
            log_every=1,
        )

    def test_twice_the_same_and_it_learns(self, data, tmp_path):
        a, b = (self.run(data, tmp_path / name) for name in "ab")
        first, second = (run.clay.model.state_dict() for run in (a, b))
        assert all(torch.equal(first[name], second[name]) for name in first)
        loss = a.history["train/loss"].dropna()
        assert loss.tail(6).mean() < loss.head(6).mean()
        assert {"train/naip", "val/naip", "val/reconstruction", "train/representation", "lr"} <= set(a.history.columns)

        loaded = Clay.load(a.checkpoint)
        assert loaded.model.config == MICRO
        assert all(torch.equal(loaded.model.state_dict()[name], first[name]) for name in first)
        assert self.run(data, tmp_path / "c", seed=1).clay.model.state_dict()["proj.bias"].ne(first["proj.bias"]).any()

    def test_weighting_and_the_frozen_teacher(self, data):
        teacher = stand_in_teacher()
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        module = ClayModule(MICRO, TrainSettings(), teacher)
        batch = next(iter(data.train_dataloader()))
        torch.manual_seed(1)
        losses = module.losses(batch, training=False)
        expected = 0.95 * losses["reconstruction"] + 0.05 * losses["representation"]
        torch.testing.assert_close(losses["loss"], expected)
        losses["loss"].backward()
        assert not any("teacher" in name for name in (*module.state_dict(), *dict(module.named_parameters())))
        assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
        assert not module.train()._teacher[0].network.training and all(p.grad is None for p in teacher.parameters())

    def test_without_a_teacher_the_loss_is_reconstruction(self, data):
        losses = ClayModule(MICRO).losses(next(iter(data.train_dataloader())), training=False)
        assert losses["loss"] == losses["reconstruction"] and "representation" not in losses

    def test_validation_drops_no_band(self, data):
        batch = PlannedBatches(data.train_chips, augment=False)[next(iter(SensorBatches({"naip": 5}, batch_size=5)))]
        dropping = ClayModule(MICRO, TrainSettings(drop_all_bands=1.0))
        keeping = ClayModule(MICRO, TrainSettings())
        keeping.load_state_dict(dropping.state_dict())
        losses = {}
        for module in (dropping, keeping):
            for training in (True, False):
                torch.manual_seed(0)
                losses[module, training] = module.losses(batch, training=training)["reconstruction"].detach()
        assert losses[dropping, False] == losses[keeping, False]
        assert losses[dropping, True] != losses[dropping, False]

    def test_teacher_of_another_width(self):
        with pytest.raises(ContractError, match="teacher_dim"):
            ClayModule(replace(MICRO, teacher_dim=32), teacher=stand_in_teacher())


class Interrupt(L.Callback):
    """Does something at the end of a step, once."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.what()


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nobody disturbed, and its rows."""
    out = tmp_path_factory.mktemp("whole")
    return TestResuming().run(data, out), (out / "log" / "metrics.csv").read_text()


class TestResuming:
    settings = TrainSettings(lr=1e-3, t_0=4, accumulate=2, ema_decay=0.9, head_lr_factor=5.0, max_steps=12)

    def run(self, data, out, *callbacks, resume=True, **changes):
        return train(
            MICRO,
            replace(self.settings, **changes),
            data,
            out=out,
            teacher=stand_in_teacher(),
            resume=resume,
            progress=False,
            accelerator="cpu",
            log_every=5,
            val_every=4,
            checkpoint_steps=2,
            callbacks=callbacks,
        )

    def same(self, whole, again, out):
        first, second = (run.clay.model.state_dict() for run in (whole[0], again))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert (out / "log" / "metrics.csv").read_text() == whole[1]

    def test_a_damaged_checkpoint_costs_some_steps_and_no_more(self, data, tmp_path, whole):
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
        self.same(whole, again, out)
        assert whole[0].history["step"].tolist() == [4, 5, 8, 10, 12, 12]

    def test_asked_to_stop_it_saves_and_goes_on_later(self, data, tmp_path, whole):
        out = tmp_path / "asked"
        stopped = self.run(data, out, Interrupt(7, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert (stopped.signal, stopped.steps) == (signal.SIGTERM, 7)
        assert newest_checkpoint(out / "checkpoints")["step"] == 7
        self.same(whole, self.run(data, out), out)

    def test_a_run_keeps_its_settings(self, data, tmp_path, whole):
        out = shutil.copytree(whole[0].checkpoint.parents[1], tmp_path / "copy")
        with pytest.raises(ContractError, match=r"lr 0.1.*lr 0.001"):
            self.run(data, out, lr=0.1)
        longer = self.run(data, out, max_steps=13)
        assert longer.steps == 13 and longer.history["step"].tolist()[-2:] == [13, 13]

    @pytest.mark.parametrize(("step", "good"), [(7, 6), (12, 10)])
    def test_weights_that_are_not_finite_are_never_kept(self, data, tmp_path, step, good):
        """At a checkpoint in the midst, and at the end, where the loss was still a number."""

        class Poison(Interrupt):
            def on_train_batch_end(self, trainer, module, *_):
                if trainer.global_step == self.step:
                    module.model.proj.bias.data[0] = torch.nan

        with pytest.raises(ContractError, match="weights: found NaN"):
            self.run(data, tmp_path, Poison(step, None))
        assert newest_checkpoint(tmp_path / "checkpoints")["step"] == good

    def test_nothing_but_checkpoints_is_gone_on_from(self, tmp_path):
        path = tmp_path / "some.ckpt"
        torch.save({"state_dict": {}}, path)
        with pytest.raises(ContractError, match="checkpoint"):
            read_checkpoint(path)

    def test_a_step_draws_nothing_from_the_global_generator(self, data):
        module = ClayModule(MICRO, TrainSettings(drop_all_bands=0.5), stand_in_teacher())
        batch, before = next(iter(data.train_dataloader())), torch.get_rng_state()
        module.losses(batch, training=True)
        assert torch.equal(before, torch.get_rng_state())

    def test_averaged_weights(self):
        model = torch.nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(0.0)
        average = Average(model, 0.5)
        old = 0.0
        for step, (value, keep) in enumerate([(1.0, 1 / 10), (2.0, 2 / 11), (3.0, 3 / 12)]):
            model.weight.data.fill_(value)
            average.update(step)
            old = keep * old + (1 - keep) * value
        assert average.weights[0].item() == pytest.approx(old)
        average.swap()
        assert model.weight.item() == pytest.approx(old) and average.weights[0].item() == 3.0


class TestCommand:
    """`clay train`, on chips that are not the mini-world's, for speed."""

    @pytest.fixture
    def config(self, tmp_path, monkeypatch):
        made = lambda sensor, count, *, size, **_: fake_chips(sensor, count, size)  # noqa: E731
        monkeypatch.setattr("clay_lib.data.chips.world_chips", made)
        changes = {k: v for k, v in asdict(MICRO).items() if k != "teacher_dim"}
        values = {
            "model": {"size": "tiny", "changes": changes},
            "data": {"chips": {"naip": 6, "sentinel-2-l2a": 8}, "val_chips": 4, "size": 16, "batch_size": 4},
            "settings": {"schedule": "one_cycle", "max_steps": 4, "lr": 1e-3},
            "teacher": "stand-in",
            "out": str(tmp_path / "run"),
            "log_every": 2,
            "pictures_every": 4,
            "progress": False,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def test_begins_goes_on_and_leaves_weights(self, config, tmp_path, capsys):
        assert main(["train", "--config", str(config)]) == 0
        assert main(["train", "--config", str(config), "--settings.max_steps", "6"]) == 0
        told, out = capsys.readouterr().out, tmp_path / "run"
        assert "6 steps, 24 chips" in told and "teacher" in told
        rows = pd.read_csv(out / "log" / "metrics.csv")
        assert rows["step"].tolist() == [2, 4, 4, 6, 6] and rows["train/representation"].notna().sum() == 3
        assert Clay.load(out / "weights.safetensors").model.config == replace(MICRO, teacher_dim=64)
        assert len(list((out / "pictures").glob("*.png"))) == 2
        assert main(["train", "--config", str(out / "config.yaml")]) == 0  # the same run, which is at its end
        assert "6 steps, 24 chips" in capsys.readouterr().out
        assert pd.read_csv(out / "log" / "metrics.csv").equals(rows)
        assert json.loads((out / "run.json").read_text())["steps"] == 6
        assert main(["train", "--config", str(config), "--data.batch_size", "2"]) == 2  # would count other batches
        assert "data.batch_size 2; expected data.batch_size 4" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "option",
        ["settings.lr -1", "settings.lr 1e20", "settings.reconstruction_weight .nan", "settings.ema_decay 2",
         "settings.representation_weight -1", "settings.drop_all_bands 3", "settings.sensor_weights {naip: -1}",
         "settings.max_steps 0", "data.batch_size 0", "data.unknown_share -2", "data.chips {naip: 0}", "log_every 0"],
    )  # fmt: skip
    def test_nonsense_is_refused_before_anything_starts(self, config, tmp_path, capsys, option):
        name, value = option.split(" ", 1)
        assert main(["train", "--config", str(config), f"--{name}", value]) == 2
        assert f"clay: configuration: {name}: found" in capsys.readouterr().err and not (tmp_path / "run").exists()

    def test_a_run_that_diverges_ends_with_one_error_and_without_weights(self, config, tmp_path, capsys):
        assert main(["train", "--config", str(config), "--settings.reconstruction_weight", "1e39"]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("clay: loss: found nan by step 2") or told.startswith("clay: loss: found inf by step 2")
        assert not (tmp_path / "run" / "weights.safetensors").exists()

    def test_a_misspelt_key_is_told_its_nearest(self, config, tmp_path, capsys):
        for options, nearest in ((["--settings.max_step", "3"], "settings.max_steps"), (["--nods", "3"], "nodes")):
            assert main(["train", "--config", str(config), *options]) == 2
            assert nearest in capsys.readouterr().err
        wrong = tmp_path / "wrong.yaml"
        for text, nearest in (
            ("settings: {max_step: 3}", "settings.max_steps"),
            ("dataa: {size: 3}", "data.size"),
            ("model: {changes: {depht: 3}}", "model.changes.depth"),
        ):
            wrong.write_text(text)
            assert main(["train", "--config", str(wrong), "--out", str(tmp_path)]) == 2
            assert nearest in capsys.readouterr().err

    def test_read_without_jsonargparse(self, config, tmp_path):
        values = read_config(config)
        assert values["settings"].lr == 1e-3 and values["data"].chips["naip"] == 6
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text("data: {batchsize: 3}")
        with pytest.raises(ContractError, match="data.batch_size"):
            read_config(wrong)

    def test_forecast(self, config, tmp_path, capsys):
        options = ["--epochs", "100", "--nodes", "2", "--devices", "2", "--data.chips", "{naip: 70000000}"]
        assert main(["train", "--config", str(config), "--forecast", "true", *options]) == 0
        *lines, note = capsys.readouterr().out.splitlines()
        told = {line[:16].strip(): line[16:] for line in lines}
        assert told["chips"] == "70,000,000 of 1 sensors" and note.startswith("Arithmetic: 4 processes")
        assert told["steps"].startswith("437,500,000 of 1 x 4 x 4")
        assert "chips/s on CPU" in told["measured"]
        hours, all_hours = (float(told[k].replace(",", "")) for k in ("hours", "process-hours"))
        assert all_hours == pytest.approx(4 * hours, rel=1e-4)
        speed = float(told["measured"].split()[0])
        assert hours == pytest.approx(70e6 * 100 / (4 * speed) / 3600, rel=0.05)
        assert not (tmp_path / "run").exists()


class TestTeacher:
    def test_from_a_local_folder(self, tmp_path):
        stand_in = stand_in_teacher()
        stand_in.network.save_pretrained(tmp_path)
        loaded = load_teacher(str(tmp_path), size=56)
        rgb = torch.randn(2, 3, 32, 32)
        assert torch.equal(loaded(rgb), stand_in(rgb)) and not loaded.stand_in

    def test_missing_folder_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ContractError, match="stand_in_teacher"):
            load_teacher(str(tmp_path / "nothing"))

    def test_what_it_is_shown(self):
        s2 = torch.arange(10.0).reshape(1, 10, 1, 1)
        assert teacher_view(s2, SENSORS["sentinel-2-l2a"]).flatten().tolist() == [2, 1, 0]
        radar = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
        assert teacher_view(radar, SENSORS["sentinel-1-rtc"]).flatten().tolist() == [1, 3, 2]
