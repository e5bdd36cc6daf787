"""Exports of sweeps, read back with the tools that they are for; loggers of a training run by name."""

import struct
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from test_reports import swept  # noqa: F401, a fixture

from clay_lib import ContractError
from clay_lib import __main__ as cli
from clay_lib.runs import export
from clay_lib.runs.prepare import find_logger
from clay_lib.runs.tables import write_ledger


@pytest.fixture
def exported(swept, monkeypatch):  # noqa: F811
    """A sweep of six runs with curves and figures, of which one failed: (its file, its folder, its ledger)."""
    spec, table = swept(
        lambda s: None if s["lr"] == 0.9 and s["opt"] == "b" else {"loss": s["lr"], "kNN-5, cosine": 0.5, "note": "a"},
        seeds=None,
    )
    for row in table.itertuples():
        Path(row.folder, "reported.jsonl").write_text("".join(f"[{s}, {1 / s}]\n" for s in (1, 2, 4)))
        Image.new("RGB", (8, 6), (200, 10, 10)).save(Path(row.folder, "1_red.png"))
    monkeypatch.setattr(export, "RUNS", swept.folder / "runs")
    return str(swept.folder / "s.yaml"), swept.folder / "runs" / "s", table


def test_mlflow_store_holds_parameters_metrics_curves_and_files(exported, capsys):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow-skinny")
    file, home, table = exported
    assert cli.main(["sweep", "export", file, "--to", "mlflow"]) == 0
    client = mlflow.MlflowClient(tracking_uri=(home / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("s").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == set(table["run"]) and "6 of 6 runs added" in capsys.readouterr().out
    for row in table[table["status"] == "done"].to_dict("records"):
        run = runs[row["run"]]
        assert run.info.status == "FINISHED" and float(run.data.params["lr"]) == row["parameter lr"]
        assert run.data.metrics["loss"] == row["metric loss"] and run.data.metrics["kNN-5_ cosine"] == 0.5
        curve = client.get_metric_history(run.info.run_id, "reported")
        assert [(m.step, m.value) for m in curve] == [(1, 1.0), (2, 0.5), (4, 0.25)]
        assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"1_red.png", "tiny.ipynb"}
        assert run.data.tags["note"] == "a" and run.data.tags["status"] == "done"
    assert [r.info.status for r in runs.values()].count("FAILED") == 1
    assert cli.main(["sweep", "export", file, "--to", "mlflow"]) == 0
    assert "0 of 6 runs added" in capsys.readouterr().out and len(client.search_runs([experiment])) == 6


def read_events(folder: Path) -> list:
    """Events of a TensorBoard file: a length, its checksum, the content and its checksum, again and again."""
    from tensorboardX.proto.event_pb2 import Event

    data, events = next(folder.glob("events.*")).read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_folder_holds_curves_and_figures(exported, capsys):
    file, home, table = exported
    assert cli.main(["sweep", "export", file, "--to", "tensorboard"]) == 0
    row = table[table["status"] == "done"].iloc[0]
    folder = home / "tensorboard" / row["run"]
    values = [
        (e.step, v) for path in folder.rglob("events.*") for e in read_events(path.parent) for v in e.summary.value
    ]
    assert [(step, v.simple_value) for step, v in values if v.tag == "reported"] == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert [v.simple_value for _, v in values if v.tag == "loss"][0] == pytest.approx(row["metric loss"])
    assert [(v.image.height, v.image.width) for _, v in values if v.tag == "1_red"] == [(6, 8)]
    assert (folder / "tiny.ipynb").is_file()
    assert cli.main(["sweep", "export", file, "--to", "tensorboard"]) == 0
    assert "0 of 6 runs added" in capsys.readouterr().out


def test_table_and_ledger_are_read_in_one_line(exported, capsys, tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    file, home, table = exported
    assert cli.main(["sweep", "export", file, "--out", str(tmp_path / "csv")]) == 0
    rows = pd.read_csv(tmp_path / "csv" / "s.csv")
    assert len(rows) == 5 and rows["metric loss"].tolist() == rows["parameter lr"].tolist()
    ledger = write_ledger(home.parent)
    assert len(pd.read_parquet(ledger)) == 6
    found = duckdb.sql(f"""select max("metric loss") from '{ledger}' where status = 'done'""").fetchall()
    assert found == [(0.9,)]


def test_missing_package_is_one_message_with_its_command(exported, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert cli.main(["sweep", "export", exported[0], "--to", "tensorboard"]) == 2
    message = capsys.readouterr().err
    assert "pip install tensorboardX" in message and message.count("\n") == 1
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ContractError, match=f"pip install {name}"):
            find_logger(name, Path("run"))
    with pytest.raises(ContractError, match="csv, tensorboard, mlflow or wandb"):
        find_logger("tensorbord", Path("run"))


def test_training_writes_to_the_named_logger(tmp_path):
    from clay_lib.runs.pretrain import DataChoice, train
    from clay_lib.training import TrainSettings

    data = DataChoice(chips={"naip": 4}, val_chips=2, size=32, batch_size=2)
    settings = TrainSettings(max_steps=2, representation_weight=0.0)
    train(data=data, settings=settings, out=str(tmp_path), log_every=1, progress=False, logger="tensorboard")
    logged = pd.read_csv(tmp_path / "log" / "metrics.csv")["train/loss"].dropna()
    events = [v for e in read_events(tmp_path / "tensorboard") for v in e.summary.value]
    assert [v.simple_value for v in events if v.tag == "train/loss"] == pytest.approx(logged.tolist())
