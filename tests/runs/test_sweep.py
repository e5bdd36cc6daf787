"""Sweeps over real workers and kernels: results, failures, parameters, resuming."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from clay_lib import ContractError
from clay_lib import __main__ as cli
from clay_lib.files import locked, read_yaml, write_json, write_yaml
from clay_lib.runs import notebooks, sweep, tables
from clay_lib.runs.sweep import Task, run_task

NASTY = [
    "plain",
    'quote " and \' and """',
    "braces {seed} {{x}} {",
    "line one\nline two\r\n\ttab",
    "../../escaped/\\..\\x.txt",
    'x"); import pathlib; pathlib.Path("/escaped").touch() #',
    "Grüße, 東京, \u2028, \x00, \\n, %s, $HOME, `id`",
    "",
]
SCRIPT = """# %% tags=["parameters"]
seed: int = 0
out: str = ""
rate: float = 0.1
text: str = ""
texts: list[str] = []

# %%
import json, os, pathlib
print("started", text)

# %%
assert not (rate > 0.4 and seed < 3), "too fast"

# %%
found = {"loss": rate + seed, "text": text, "texts": json.dumps(texts), "cwd": os.getcwd()}
found |= {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "threads": os.environ["OMP_NUM_THREADS"], "out": os.listdir(out)}
found["waits"] = os.environ["OMP_WAIT_POLICY"]
pathlib.Path(out, "metrics.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a notebook, a specification of eight settings of which three fail, and one start of it."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "tiny.py").write_text(SCRIPT)
    points = [
        {"rate": 0.5 if i % 2 else 0.1, "text": NASTY[i], "texts": NASTY[: i + 1]}
        | ({"seed": i} if i > 2 else {"seed": -i})
        for i in range(8)
    ]
    points[3]["seed"], points[5]["seed"], points[7]["seed"] = 0, 1, 5  # 1, 3 and 5 fail
    spec = {"notebook": "tiny.py", "list": points, "metrics": {"loss": "min"}, "threads": 1}
    write_yaml(folder / "eight.yaml", spec)
    before = sorted(folder.rglob("*"))
    previous = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "3,5"
    try:
        table = sweep.run_sweep(folder / "eight.yaml", workers=2, runs=folder / "runs")
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES") if previous is None else os.environ.update(CUDA_VISIBLE_DEVICES=previous)
    outside = [p for p in sorted(folder.rglob("*")) if p not in before and folder / "runs" not in (p, *p.parents)]
    return folder, table, points, outside


def test_three_failures_of_eight_leave_five_results_and_three_named_failures(home):
    folder, table, points, _ = home
    assert table["status"].value_counts().to_dict() == {"done": 5, "failed": 3}
    failed = table[table["status"] == "failed"]
    assert set(failed["failed_cell"]) == {'cell 3 of 4: assert not (rate > 0.4 and seed < 3), "too fast"'}
    assert set(failed["error"]) == {"AssertionError: too fast"} and failed["metric loss"].isna().all()
    done = table[table["status"] == "done"]
    assert (done["metric loss"] == done["parameter rate"] + done["parameter seed"]).all()
    assert done["seconds"].between(0.1, 200).all() and done["peak_mb"].between(20, 2000).all()
    assert done["library"].str.len().eq(12).all() and done["python"].notna().all() and done["machine"].notna().all()
    for row in table.itertuples():
        assert "started" in (Path(row.folder) / "log.txt").read_text()
        assert {"run.json", "parameters.json", "tiny.ipynb"} <= set(os.listdir(row.folder))


def test_text_parameters_arrive_unchanged_and_write_nowhere_else(home):
    folder, table, points, outside = home
    for row in table[table["status"] == "done"].itertuples():
        found = json.loads((Path(row.folder) / "metrics.json").read_text())
        i = NASTY.index(found["text"])
        assert json.loads(found["texts"]) == NASTY[: i + 1] == points[i]["texts"]
    assert outside == [] and not Path("/escaped").exists()
    assert all(len(p.name) == 16 for p in (folder / "runs" / "eight").iterdir() if p.is_dir())


def test_kernels_run_beside_the_notebook_with_their_share_of_the_machine(home):
    folder, table, *_ = home
    found = [json.loads(p.read_text()) for p in (folder / "runs").glob("eight/*/metrics.json")]
    assert {metrics["cwd"] for metrics in found} == {str(folder.resolve())}
    assert {metrics["waits"] for metrics in found} == {"PASSIVE"}
    assert {metrics["threads"] for metrics in found} == {"1"} and {metrics["gpu"] for metrics in found} <= {"3", "5"}


def test_second_start_does_nothing_lists_failures_and_exits_with_1(home, monkeypatch, capsys):
    folder, table, *_ = home
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").glob("eight/*/*")}
    monkeypatch.setattr(sweep, "RUNS", folder / "runs")
    assert cli.main(["sweep", str(folder / "eight.yaml")]) == 1
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "runs").glob("eight/*/*")}
    printed = capsys.readouterr().out
    assert "5 done, 3 failed" in printed and "0 to do" in printed and "--retry-failed" in printed
    assert (
        printed.count("AssertionError: too fast") == 1
        and "FAILED 3 runs, such as" in printed
        and "cell 3 of 4" in printed
    )
    ledger = pd.read_parquet(folder / "runs" / "ledger.parquet")
    assert len(ledger) == 8 and ledger["status"].tolist() == table["status"].tolist()
    page = (folder / "runs" / "eight" / "report.html").read_text()
    assert "AssertionError: too fast" in page and "data:image/svg" in page


def test_dry_run_prints_runs_and_minutes_and_writes_nothing(home, monkeypatch, capsys):
    folder, *_ = home
    spec = read_yaml(folder / "eight.yaml") | {"timeout": 9, "budget": {"runs": 6}}
    write_yaml(folder / "other.yaml", spec)
    monkeypatch.setattr(sweep, "RUNS", folder / "runs")
    assert cli.main(["sweep", str(folder / "other.yaml"), "--dry-run", "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    for text in ("6 runs of tiny", "2 beyond the budget", "6 to do with 2 workers, about"):
        assert text in printed
    assert "by 5 earlier runs" in printed and not (folder / "runs" / "other").exists()
    assert cli.main(["sweep", str(folder / "eight.yaml"), "--dry-run", "--retry-failed"]) == 0
    assert "3 to do" in capsys.readouterr().out


def test_incomplete_runs_are_not_done(home, tmp_path):
    folder, table, *_ = home
    good = Path(table[table["status"] == "done"]["folder"].iloc[0])

    def status_after(name, change):
        copy = tmp_path / good.name
        for file in good.iterdir():
            copy.mkdir(exist_ok=True)
            (copy / file.name).write_bytes(file.read_bytes())
        change(copy / name)
        return tables.read_run(copy)["status"]

    assert status_after("log.txt", Path.unlink) == "done"
    for name in ("run.json", "metrics.json", "tiny.ipynb"):
        assert status_after(name, Path.unlink) == "unfinished"
        assert status_after(name, lambda path: path.write_bytes(path.read_bytes()[:-40])) == "unfinished"


def test_no_run_begins_after_the_deadline(home, tmp_path):
    spec = sweep.read_sweep(home[0] / "eight.yaml")
    run = spec.runs[0]
    task = Task("eight", str(spec.script), spec.source, str(tmp_path / run.key), run, 1, None, (), 1.0)
    assert run_task(task) is None and tables.read_run(tmp_path / run.key) is None


def test_concurrent_start_and_missing_scheduler_raise(home, monkeypatch):
    folder, *_ = home
    with locked(folder / "runs" / "eight" / ".lock", "test"), pytest.raises(ContractError, match="one at a time"):
        sweep.run_sweep(folder / "eight.yaml", workers=1, retry_failed=True, runs=folder / "runs")
    monkeypatch.setattr("clay_lib.cluster.WAIT", 1)
    with pytest.raises(ContractError, match="running scheduler"):
        sweep.run_sweep(
            folder / "eight.yaml", workers=1, retry_failed=True, runs=folder / "runs", scheduler="tcp://127.0.0.1:9"
        )


def test_metric_that_no_run_writes_is_doubted_and_stops_the_sweep(home, tmp_path, capsys):
    folder, *_ = home
    (tmp_path / "tiny.py").write_text(SCRIPT)
    spec = {"notebook": "tiny.py", "grid": {"rate": [0.1, 0.2, 0.3, 0.35]}, "metrics": {"los": "min"}, "threads": 1}
    write_yaml(tmp_path / "typo.yaml", spec)
    os.environ["CUDA_VISIBLE_DEVICES"] = previous = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ContractError, match="'los'.*loss"):
        sweep.run_sweep(tmp_path / "typo.yaml", workers=1, runs=tmp_path / "runs")
    assert "metric 'los' does not occur in the code of tiny.py" in capsys.readouterr().out
    assert len(list(tmp_path.glob("runs/typo/*/run.json"))) < 4
    with pytest.raises(ContractError, match="'los'.*loss"):  # the second time before any run
        sweep.run_sweep(tmp_path / "typo.yaml", workers=1, runs=tmp_path / "runs", dry_run=True)
    assert previous == os.environ["CUDA_VISIBLE_DEVICES"]


CLAIMING = """
# %% tags=["parameters"]
rate: float = 0.1
out: str = ""

# %%
import json, pathlib
from clay_lib.runs import claim
pathlib.Path(out, "metrics.json").write_text(json.dumps({"loss": rate}))

# %%
claim(rate < 0.5, "a small rate has a small loss")
assert rate < 0.8, "an error"
"""


def test_poor_result_is_kept_with_a_warning_and_failures_are_grouped(tmp_path, capsys):
    (tmp_path / "claiming.py").write_text(CLAIMING)
    text = (
        "notebook: claiming.py\nmetrics: {loss: min}\ngrid: {rate: [0.1, 0.6, 0.9, 1.1, 1.3]}\nstop_after_failures: 2\n"
    )
    (tmp_path / "c.yaml").write_text(text)
    table = (
        sweep.run_sweep(tmp_path / "c.yaml", workers=1, runs=tmp_path / "runs").set_index("parameter rate").sort_index()
    )
    assert table["status"].to_dict() == {0.1: "done", 0.6: "done", 0.9: "failed", 1.1: "failed"}, "1.3 is not begun"
    assert table["warnings"].to_dict() == {0.1: "", 0.6: (m := "a small rate has a small loss"), 0.9: m, 1.1: m}
    assert table["metric loss"].to_dict() == {0.1: 0.1, 0.6: 0.6, 0.9: 0.9, 1.1: 1.1}, "also what a failed run wrote"
    assert tables.values_of(table, "loss").isna().tolist() == [False, False, True, True], "which is never ranked"
    printed = capsys.readouterr().out
    assert "FAILED 2 runs, such as" in printed and printed.count("AssertionError: an error") == 2  # live and at the end
    assert "papermill - run.ipynb -y" in printed and "1 not started" in printed
    (tmp_path / "c.yaml").write_text(text.replace("0.1, 0.6", "1e-05"))
    sweep.run_sweep(tmp_path / "c.yaml", runs=tmp_path / "runs", dry_run=True)
    assert "2 finished runs are of other settings, kept and not counted: rate=0.1; rate=0.6" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="outside"):
        notebooks.claim(False, "outside a sweep it is an error")


def test_run_whose_kernel_was_killed_runs_once_more_and_is_told(tmp_path, capsys):
    kill = "import os, pathlib, signal\nif not (killed := pathlib.Path(f'killed-{rate}')).exists() or rate > 0.5:\n"
    kill += "    killed.touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "claiming.py").write_text(CLAIMING.replace("import json, pathlib\n", f"import json\n{kill}"))
    (tmp_path / "k.yaml").write_text("notebook: claiming.py\nmetrics: {loss: min}\ngrid: {rate: [0.1, 0.9]}\n")
    table = sweep.run_sweep(tmp_path / "k.yaml", workers=2, runs=tmp_path / "runs").set_index("parameter rate")
    assert table["status"].to_dict() == {0.1: "done", 0.9: "died"} and (table["attempt"] == 2).all()
    printed = capsys.readouterr().out
    assert printed.count("its kernel was killed before, and it ran again") == 2 and "DIED" in printed


@pytest.mark.parametrize(
    "over", ["grid: {rate: [0.1, 0.2, 0.3]}", "search: {trials: 3, over: {rate: [0.1, 0.2, 0.3]}}"]
)
def test_minutes_that_end_leave_runs_and_an_exit_code_of_their_own(over, tmp_path, monkeypatch, capsys):
    (tmp_path / "claiming.py").write_text(CLAIMING)
    budget = f"notebook: claiming.py\nmetrics: {{loss: min}}\n{over}\nbudget: {{minutes: 1e-6}}\n"
    (tmp_path / "b.yaml").write_text(budget)
    monkeypatch.setattr(sweep, "RUNS", tmp_path / "runs")
    assert cli.main(["sweep", str(tmp_path / "b.yaml"), "--workers", "1"]) == sweep.INCOMPLETE == 3
    assert "3 not started" in capsys.readouterr().out


def test_runs_of_another_library_or_notebook_are_named_and_run_again_on_request(tmp_path, capsys):
    (tmp_path / "claiming.py").write_text(CLAIMING)
    (tmp_path / "s.yaml").write_text("notebook: claiming.py\nmetrics: {loss: min}\ngrid: {rate: [0.1, 0.2]}\n")
    table = sweep.run_sweep(tmp_path / "s.yaml", workers=1, runs=tmp_path / "runs")
    record = Path(table["folder"][0], "run.json")
    stored = json.loads(record.read_text())
    assert "clay_lib.runs.notebooks" in stored["modules"] and "clay_lib.training" not in stored["modules"]
    stored["modules"]["clay_lib.runs.notebooks"] = "before"
    record.write_text(json.dumps(stored))
    untouched = Path(table["folder"][1], "run.json").stat().st_mtime_ns
    sweep.run_sweep(tmp_path / "s.yaml", runs=tmp_path / "runs", dry_run=True)
    printed = capsys.readouterr().out
    assert (
        "0 to do" in printed and "1 finished run is of another state of clay_lib (changed: runs.notebooks)" in printed
    )
    again = sweep.run_sweep(tmp_path / "s.yaml", workers=1, runs=tmp_path / "runs", redo_changed=True)
    assert "1 to do" in capsys.readouterr().out and (again["status"] == "done").all()
    assert json.loads(record.read_text())["modules"]["clay_lib.runs.notebooks"] != "before"
    assert Path(table["folder"][1], "run.json").stat().st_mtime_ns == untouched
    (tmp_path / "claiming.py").write_text(CLAIMING.replace("rate < 0.5", "rate < 0.4"))
    sweep.run_sweep(tmp_path / "s.yaml", runs=tmp_path / "runs", dry_run=True)
    printed = capsys.readouterr().out
    assert "2 finished runs are of another state of the notebook" in printed and "of clay_lib" not in printed


def test_two_files_of_one_name_never_share_a_folder(home, tmp_path, monkeypatch):
    folder, *_ = home
    for name in ("tiny.py", "eight.yaml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ContractError, match="rename one of them"):
        sweep.run_sweep(tmp_path / "eight.yaml", runs=folder / "runs", dry_run=True)
    monkeypatch.setattr(sweep, "RUNS", folder / "runs")
    assert cli.main(["sweep", str(tmp_path / "eight.yaml"), "--report"]) == 2
    moved = replace(sweep.read_sweep(folder / "eight.yaml"), file=tmp_path / "gone" / "eight.yaml")
    sweep.write_summary(moved, tmp_path / "runs" / "eight")
    sweep.run_sweep(tmp_path / "eight.yaml", runs=tmp_path / "runs", dry_run=True)  # the first file was moved


def test_forecast_follows_the_most_similar_runs_and_those_of_this_start(home):
    folder, table, *_ = home
    spec = sweep.read_sweep(folder / "eight.yaml")
    forecast = tables.Forecast(spec, folder / "runs", threads=1)
    done = {row["run"]: tables.wall_seconds(row) for row in table.to_dict("records") if row["status"] == "done"}
    first = next(run for run in spec.runs if run.key in done)
    assert forecast.seconds(first) == done[first.key] and forecast.start == 0
    other = next(run for run in spec.runs if run.key not in done)
    before = forecast.seconds(other)
    assert forecast.minutes([first], 3, workers=2) == pytest.approx(2 * done[first.key] / 60)  # two rounds
    forecast.ended(first, 3 * done[first.key])  # this machine is slower now
    assert forecast.seconds(other) == pytest.approx(3 * before)
    assert forecast.minutes([first], 3, workers=1) == pytest.approx(3 * 3 * done[first.key] / 60)
    stated = replace(spec, specification=spec.specification | {"run_minutes": 2})
    assert tables.Forecast(stated, folder / "elsewhere", threads=1).minutes(spec.runs, 8, workers=2) == pytest.approx(8)
    unmeasured = tables.Forecast(spec, folder / "elsewhere", threads=1)
    assert unmeasured.minutes(spec.runs, 8, 2) is None
    unmeasured.ended(first, 30)
    assert unmeasured.minutes(spec.runs, 8, 1) == pytest.approx(4)
    assert unmeasured.minutes(spec.runs, 7, 2) == pytest.approx(1.75)  # one of them is half done


def test_what_a_start_takes_beside_its_runs_is_learned(home, tmp_path):
    began = time.time() - 20
    for key, (first, last) in {"a": (4, 9), "b": (5, 12)}.items():
        for name, moment in {"parameters.json": first, "run.json": last}.items():
            os.utime(write_json(tmp_path / "eight" / key / name, {}), (0, began + moment))
    assert tables.wall_seconds({"folder": tmp_path / "eight" / "a", "seconds": 3.0}) == pytest.approx(5, abs=0.1)
    tables.record_start(tmp_path / "eight", began)
    forecast = tables.Forecast(sweep.read_sweep(home[0] / "eight.yaml"), tmp_path, threads=1)
    assert forecast.start == pytest.approx(12, abs=2)  # 20 s, of which the runs took 8


def test_script_without_a_main_guard_gives_one_clear_error(home):
    folder, *_ = home
    code = "import sys; from pathlib import Path; from clay_lib.runs import run_sweep\n"
    code += "run_sweep(sys.argv[1], runs=Path(sys.argv[2]), workers=1)\n"
    (folder / "unguarded.py").write_text(code)
    command = [sys.executable, folder / "unguarded.py", folder / "eight.yaml", folder / "unguarded"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'if __name__ == "__main__"' in done.stderr and len(done.stderr.splitlines()) < 40
