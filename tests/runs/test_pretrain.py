"""Pretraining by configuration: the command, the files it reads and writes, and its forecast."""

import json
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from fakes import MICRO, fake_chips

from clay_lib import Clay, ClayConfig, ContractError
from clay_lib.__main__ import main
from clay_lib.clay import cosine_initialized
from clay_lib.files import write_yaml
from clay_lib.runs.pretrain import find_start


class TestCommand:
    """`clay train`, on chips that need no mini-world, for speed."""

    @pytest.fixture
    def config(self, tmp_path, monkeypatch):
        generate = lambda sensor, count, *, size, **_: fake_chips(sensor, count, size)  # noqa: E731
        monkeypatch.setattr("clay_lib.runs.pretrain.world_chips", generate)
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
        write_yaml(path, values)
        return path

    def test_starts_resumes_and_saves_weights(self, config, tmp_path, capsys, monkeypatch):
        assert main(["train", "--config", str(config)]) == 0
        assert main(["train", "--config", str(config), "--settings.max_steps", "06", "--settings.lr", "1E-3"]) == 0
        printed, out = capsys.readouterr().out, tmp_path / "run"
        assert "6 steps, 24 chips" in printed and "teacher" in printed
        rows = pd.read_csv(out / "log" / "metrics.csv")
        assert rows["step"].tolist() == [2, 4, 4, 6, 6] and rows["train/representation"].notna().sum() == 3
        assert Clay.load(out / "weights.safetensors").model.config == replace(MICRO, teacher_dim=64)
        assert len(list((out / "pictures").glob("*.png"))) == 2
        with monkeypatch.context() as nothing_is_loaded:
            nothing_is_loaded.setattr("clay_lib.runs.pretrain.find_teacher", None)
            assert main(["train", "--config", str(out / "config.yaml")]) == 0  # the same run, which is finished
        assert "6 steps, 24 chips" in capsys.readouterr().out
        assert pd.read_csv(out / "log" / "metrics.csv").equals(rows)
        assert json.loads((out / "run.json").read_text())["steps"] == 6
        assert main(["train", "--config", str(config), "--data.batch_size", "2"]) == 2  # its batches would differ
        assert "data.batch_size 2; expected data.batch_size 4" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "option",
        ["settings.lr -1", "settings.lr 1e20", "settings.reconstruction_weight .nan", "settings.ema_decay 2",
         "settings.representation_weight -1", "settings.drop_all_bands 3", "settings.sensor_weights {naip: -1}",
         "settings.max_steps 0", "data.batch_size 0", "data.unknown_share -2", "data.chips {naip: 0}", "log_every 0"],
    )  # fmt: skip
    def test_numbers_out_of_range_raise_before_anything_starts(self, config, tmp_path, capsys, option):
        name, value = option.split(" ", 1)
        assert main(["train", "--config", str(config), f"--{name}", value]) == 2
        assert f"clay: configuration: {name}: found" in capsys.readouterr().err and not (tmp_path / "run").exists()

    def test_a_diverging_run_ends_without_weights(self, config, tmp_path, capsys):
        assert main(["train", "--config", str(config), "--settings.reconstruction_weight", "1e39"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(("clay: loss: found nan by step 2", "clay: loss: found inf by step 2"))
        assert not (tmp_path / "run" / "weights.safetensors").exists()

    def test_a_misspelled_key_names_the_nearest(self, config, tmp_path, capsys):
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

    def test_forecast(self, config, tmp_path, capsys):
        options = ["--epochs", "100", "--nodes", "2", "--devices", "2", "--data.chips", "{naip: 70000000}"]
        assert main(["train", "--config", str(config), "--forecast", "true", *options]) == 0
        *lines, note = capsys.readouterr().out.splitlines()
        forecast = {line[:16].strip(): line[16:] for line in lines}
        assert forecast["chips"] == "70,000,000 of 1 sensors" and note.startswith("Arithmetic: 4 processes")
        assert forecast["steps"].startswith("437,500,000 of 1 x 4 x 4")
        assert "chips/s on CPU" in forecast["measured"]
        hours, all_hours = (float(forecast[k].replace(",", "")) for k in ("hours", "process-hours"))
        assert all_hours == pytest.approx(4 * hours, rel=1e-4)
        speed = float(forecast["measured"].split()[0])
        assert hours == pytest.approx(70e6 * 100 / (4 * speed) / 3600, rel=0.05)
        assert not (tmp_path / "run").exists()


def test_first_weights_come_from_a_function():
    config, name = ClayConfig.named("tiny"), "clay_lib.clay:cosine_initialized"
    expected, start = cosine_initialized(config, 3).model.state_dict(), find_start(name, config, 3).state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in expected.items())
    assert find_start("", config, 3) is None
    with pytest.raises(ContractError, match="start"):
        find_start("clay_lib.clay:bron", config, 3)


def test_a_start_from_another_teacher_gets_a_new_projection():
    shipped = Clay.load("clay-mini").model
    wider = replace(shipped.config, teacher_dim=shipped.config.teacher_dim + 9)
    model = find_start("clay-mini", wider, 3)
    assert model.config == wider and model.proj.out_features == wider.teacher_dim
    torch.testing.assert_close(model.proj.weight[:-9], shipped.proj.weight)
    torch.testing.assert_close(model.encoder.state_dict(), shipped.encoder.state_dict())


def test_a_start_may_be_an_average(tmp_path):
    config, paths = MICRO, [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    models = [Clay.random(config, seed=k) for k in range(2)]
    for model, path in zip(models, paths, strict=True):
        model.save(path)
    average = find_start(f"0.25 {paths[0]} + 0.75 {paths[1]}", config, 3).state_dict()
    a, b = (model.model.state_dict() for model in models)
    for name, value in average.items():
        expected = b[name] if name.startswith("proj.") else 0.25 * a[name] + 0.75 * b[name]
        torch.testing.assert_close(value, expected)
