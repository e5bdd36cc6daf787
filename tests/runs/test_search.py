"""Searches over real kernels: trials, pruning, confirmation, and resuming after SIGKILL."""

import json
import os
import signal
import time
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
from test_sweep_kill import start

from clay_lib import ClayConfig, ContractError
from clay_lib.files import write_json, write_yaml
from clay_lib.runs import notebooks, sweep, tables
from clay_lib.runs.pretrain import DataChoice
from clay_lib.runs.search import Study, importance
from clay_lib.runs.specification import make_sweep, read_sweep
from clay_lib.training import TrainSettings, train

SCRIPT = """# %% tags=["parameters"]
seed: int = 0
out: str = ""
rate: float = 0.1
depth: int = 2
kind: str | None = None
wait: float = 0.0

# %%
import json, pathlib, time
from clay_lib.runs import report
error = abs(rate - 0.3) + 0.1 * abs(depth - 3) + (kind != "b") + seed / 1000
for step in range(1, 10):
    report(step, error + 1 / step)
    time.sleep(wait)

# %%
metrics = {"loss": error}
pathlib.Path(out, "metrics.json").write_text(json.dumps(metrics))
"""
OVER = {"rate": {"low": 0.01, "high": 1, "log": True}, "depth": {"low": 1, "high": 5}, "kind": [None, "a", "b"]}


def specify(folder: Path, name="many", **changes) -> Path:
    (folder / "tiny.py").write_text(SCRIPT)
    spec = {"notebook": "tiny.py", "metrics": {"loss": "min"}, "threads": 1, **changes}
    write_yaml(folder / f"{name}.yaml", spec)
    return folder / f"{name}.yaml"


def ask(study: Study, count: int) -> list[dict]:
    """Settings of so many trials, whose runs end at once."""
    found = []
    for run in islice(study.draw(), count):
        if run is None:
            break
        found.append(run.settings)
        folder, loss = study.home / run.key, {"loss": run.settings["depth"] / 9}
        request = {"sweep": "many", "notebook": "tiny", "settings": run.settings, "parameters": run.parameters}
        ended = {"ok": True, "died": False, "notebook": "tiny.ipynb", "bytes": 2, "metrics": loss}
        for name, content in {"parameters": request, "metrics": loss, "run": ended}.items():
            write_json(folder / f"{name}.json", content)
        (folder / "tiny.ipynb").write_text("{}")
        study.ended(run, tables.read_run(folder))
    return found


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    search = {"trials": 14, "over": OVER, "sampler": "random", "prune": "median"}
    path = specify(folder, search=search, confirm={"top": 2, "seeds": 2}, fixed={"wait": 0.15})
    return path, sweep.run_sweep(path, workers=2, runs=folder / "runs")


def test_search_runs_its_trials_and_confirms_the_best_with_new_seeds(searched, capsys):
    path, table = searched
    trials, confirmed = table[table["parameter seed"] == 0], table[table["parameter seed"] > 0]
    assert len(trials) == 14 and set(trials["status"]) <= {"done", "pruned"}
    assert trials["parameter rate"].between(0.01, 1).all() and trials["parameter depth"].between(1, 5).all()
    lead = trials[trials["status"] == "done"].nsmallest(2, "metric loss")
    assert set(confirmed["parameter rate"]) == set(lead["parameter rate"]) and len(confirmed) == 4
    assert sorted(confirmed["parameter seed"]) == [1, 1, 2, 2]
    again = sweep.run_sweep(path, workers=2, runs=path.parent / "runs")
    assert "0 to do" in capsys.readouterr().out and again.equals(table)


def test_pruned_runs_stay_in_the_ledger_with_what_they_reached(searched):
    path, table = searched
    pruned = table[table["status"] == "pruned"]
    assert len(pruned) and pruned["metric loss"].isna().all()
    for row in pruned.itertuples():
        values = notebooks.read_reported(Path(row.folder))
        step, value = max(values.items())
        assert step < 9 and (row.reached_step, row.reached) == (step, pytest.approx(value))
    best = tables.best(table, "loss", "min", ["rate", "depth", "kind"])
    assert len(best) == 14 - len(pruned) and not best["lost"].any()


def test_killed_drivers_resume_without_losing_or_repeating_a_trial(tmp_path):
    path = specify(tmp_path, search={"trials": 10, "over": OVER}, fixed={"wait": 0.05})
    runs, kills = tmp_path / "runs", 0
    finished: dict[Path, int] = {}
    while kills < 3:
        driver, count = start(path, runs), len(finished)
        end = time.monotonic() + 120
        while driver.poll() is None and len(done := list(runs.glob("many/*/run.json"))) <= count:
            assert time.monotonic() < end
            time.sleep(0.02)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        time.sleep(0.5)  # its kernels end with it
        done = {p: p.stat().st_mtime_ns for p in runs.glob("many/*/run.json")}
        assert finished.items() <= done.items()
        finished, kills = done, kills + 1
    assert start(path, runs).wait(timeout=300) == 0
    assert finished.items() <= {p: p.stat().st_mtime_ns for p in runs.glob("many/*/run.json")}.items()
    table = tables.read_ledger(runs)
    assert len(table) == 10 and (table["status"] == "done").all() and table["asked"].all()
    spec = read_sweep(path)
    # a driver killed between drawing a trial and recording its run leaves one without a run
    trials = [t for t in Study(spec, runs / "many").study.get_trials() if "run" in t.user_attrs]
    assert len(trials) == 10 and all(t.state.name == "COMPLETE" for t in trials)
    values = {t.user_attrs["run"]: t.value for t in trials}
    assert values == dict(zip(table["run"], table["metric loss"], strict=True))


def test_two_drivers_share_one_study(tmp_path):
    path = specify(tmp_path, search={"trials": 8, "over": OVER}, fixed={"wait": 0.05})
    both = [start(path, tmp_path / "runs", workers=1) for _ in range(2)]
    # a driver ends when no trial is left to draw, while the other one's last may be under way
    assert 0 in [driver.wait(timeout=300) for driver in both]
    table = tables.read_ledger(tmp_path / "runs")
    trials = Study(read_sweep(path), tmp_path / "runs" / "many").study.get_trials()
    assert len(table) == 8 and (table["status"] == "done").all()
    assert {t.user_attrs["run"] for t in trials if t.state.name == "COMPLETE"} == set(table["run"])


def test_lightning_callback_reports_each_validation(tmp_path, monkeypatch):
    monkeypatch.setenv(notebooks.RUN_FOLDER, str(tmp_path))
    data, settings = (
        DataChoice(chips={"naip": 4}, val_chips=2, size=32, batch_size=2),
        TrainSettings(max_steps=4, representation_weight=0.0),
    )
    options = dict(out=tmp_path, val_every=2, callbacks=[notebooks.report_metric("val/loss")], progress=False)
    train(ClayConfig.named("tiny", depth=1), settings, data.load(), **options)
    rows = pd.read_csv(tmp_path / "log" / "metrics.csv").dropna(subset="val/loss")
    reported = notebooks.read_reported(tmp_path)
    assert list(reported) == rows["step"].tolist() == [2, 4]
    assert list(reported.values()) == pytest.approx(rows["val/loss"].tolist())


def test_resumed_study_draws_what_an_uninterrupted_one_draws(tmp_path):
    spec = read_sweep(specify(tmp_path, search={"trials": 20, "over": OVER, "seed": 4}))
    complete = ask(Study(spec, tmp_path / "a"), 20)
    assert complete == ask(Study(spec, tmp_path / "b"), 9) + ask(Study(spec, tmp_path / "b"), 20)
    other = read_sweep(specify(tmp_path, search={"trials": 20, "over": OVER, "seed": 5}))
    assert ask(Study(other, tmp_path / "c", write=False), 3) != complete[:3]


def test_journal_cut_short_is_read(tmp_path):
    spec = read_sweep(specify(tmp_path, search={"trials": 9, "over": OVER}))
    first = ask(Study(spec, tmp_path), 3)
    with open(tmp_path / "study.journal", "a") as file:
        file.write('{"op_code": 4, "wor')
    assert [run.settings for run in Study(spec, tmp_path).runs()] == first
    assert len(ask(Study(spec, tmp_path), 2)) == 2 and len(Study(spec, tmp_path).runs()) == 5


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_repeated_draws_are_drawn_again(tmp_path, sampler):
    search = {"trials": 9, "over": {"kind": ["a", "b"], "depth": {"low": 1, "high": 3}}, "sampler": sampler}
    spec = read_sweep(specify(tmp_path, search=search, confirm={"top": 2, "seeds": [7]}))
    study = Study(spec, tmp_path)
    found = ask(study, 20)
    assert len({(s["kind"], s["depth"]) for s in found}) == 6, "all that the ranges hold"
    assert [(s["depth"], s["seed"]) for s in found[6:]] == [(1, 7), (1, 7)] and study.planned == 8
    assert ask(Study(spec, tmp_path), 20) == []


def test_hopeless_runs_are_pruned_by_hyperband(tmp_path):
    spec = read_sweep(specify(tmp_path, search={"trials": 30, "over": OVER, "prune": "hyperband"}))
    study, pruned, kept = Study(spec, tmp_path), [], []
    for run in study.draw():
        if run is None:
            break
        folder, error = tmp_path / run.key, abs(run.settings["rate"] - 0.3)
        folder.mkdir()
        for step in range(1, 28):
            with open(folder / "reported.jsonl", "a") as file:
                file.write(json.dumps([step, error + 1 / step]) + "\n")
            study.follow()
            if (folder / "prune").exists():
                break
        status = "pruned" if (folder / "prune").exists() else "done"
        study.ended(run, {"status": status, "metrics": {"loss": error}})
        (pruned if status == "pruned" else kept).append(error)
    assert len(pruned) > 5 and kept and min(kept) < min(pruned)


def test_importance_finds_the_parameter_that_matters():
    rows = [(a, b, k, 5 * a + 0.1 * b) for a in (0.1, 0.2, 0.4, 0.8) for b in (1, 2, 3) for k in ("x", "y")]
    table = pd.DataFrame(rows, columns=["parameter a", "parameter b", "parameter k", "metric loss"])
    shares = importance(table, "loss", ["a", "b", "k"])
    assert list(shares)[0] == "a" and shares["a"] > 0.9 and sum(shares.values()) == pytest.approx(1)
    assert importance(table.assign(**{"metric loss": 1.0}), "loss", ["a"]) == {}


WRONG = [
    ({"search": {"trials": 3, "over": {"rte": [0.1]}}}, "'rte'"),
    ({"search": {"trials": 3, "over": {"rate": {"low": 1, "high": 0.1}}}}, "low above high"),
    ({"search": {"trials": 3, "over": {"rate": {"low": 0, "high": 1, "log": True}}}}, "above 0"),
    ({"search": {"trials": 3, "over": {"rate": {"low": 0.1, "high": 1, "lgo": True}}}}, "misspelled"),
    ({"search": {"trials": 3, "over": {"depth": {"low": 0.5, "high": 2}}}}, "int"),
    ({"search": {"trials": 0, "over": OVER}}, "greater than 0"),
    ({"search": {"trials": 3, "over": OVER, "sampler": "best"}}, "tpe"),
    ({"search": {"trials": 3, "over": OVER}, "grid": {"wait": [0.1]}}, "one of them"),
    ({"search": {"trials": 3, "over": OVER}, "seeds": 3}, "confirm"),
    ({"search": {"trials": 3, "over": OVER}, "fixed": {"rate": 0.5}}, "two parts"),
    ({"confirm": {"top": 3, "seeds": 2}}, "no search"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_wrong_search_gives_one_clear_message(tmp_path, change, message):
    (tmp_path / "tiny.py").write_text(SCRIPT)
    with pytest.raises(ContractError) as caught:
        make_sweep({"notebook": "tiny.py", "metrics": {"loss": "min"}, **change}, name="wrong", folder=tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
