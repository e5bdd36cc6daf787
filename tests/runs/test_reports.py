"""Sweep tables and reports: comparable means, settings that lost runs, metrics without numbers, changed files."""

import json
import math
import re

import pandas as pd
import pytest

from clay_lib import ContractError
from clay_lib import __main__ as cli
from clay_lib.files import write_json, write_yaml
from clay_lib.runs import reports, sweep, tables
from clay_lib.runs.tables import best, comparable_rows, differences, over_seeds

SCRIPT = """# %% tags=["parameters"]
seed: int = 0
out: str = ""
lr: float = 0.1
opt: str = "a"

# %%
from clay_lib.runs import write_metrics
found = {"loss": 0, "knn": 0}
write_metrics(out, found)
"""
SPECIFICATION = {
    "notebook": "tiny.py",
    "grid": {"lr": [0.1, 0.5, 0.9], "opt": ["a", "b"]},
    "seeds": 3,
    "metrics": {"loss": "min"},
}


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """swept(answer, **changes): a specification's runs as if they had ended, answer(settings) -> metrics; None: failed."""
    monkeypatch.setattr(sweep, "RUNS", tmp_path / "runs")
    (tmp_path / "tiny.py").write_text(SCRIPT)

    def make(answer, name="s", **changes):
        changed = {**SPECIFICATION, **changes}
        write_yaml(tmp_path / f"{name}.yaml", changed)
        spec = sweep.read_sweep(tmp_path / f"{name}.yaml")
        home = tmp_path / "runs" / name
        for run in spec.runs:
            metrics, folder = answer(run.settings), home / run.key
            request = {"sweep": name, "notebook": "tiny", "settings": run.settings, "parameters": run.parameters}
            write_json(folder / "parameters.json", request)
            ended = {"ok": metrics is not None, "died": False, "notebook": "tiny.ipynb", "bytes": 2, "seconds": 1.0}
            (folder / "tiny.ipynb").write_text("{}")
            write_json(folder / "metrics.json", metrics or {"none": 0})
            write_json(folder / "run.json", {**ended, "metrics": metrics or {}, "library": "x"})
        sweep.write_summary(spec, home)
        return spec, tables.read_ledger(tmp_path / "runs", name)

    make.folder = tmp_path
    return make


def drops_at_a_high_rate(settings):
    fails = settings["opt"] == "b" and settings["lr"] == 0.9
    return None if fails else {"loss": settings["lr"] + 0.001 * settings["seed"]}


def test_failed_hard_settings_do_not_favor_a_level(swept):
    spec, table = swept(drops_at_a_high_rate)
    raw = over_seeds(table, "loss", ["opt"]).set_index("opt")["value"]
    assert raw["b"] < raw["a"] - 0.1  # the mean over all that came through
    means = over_seeds(comparable_rows(table, "loss", ["opt"]), "loss", ["opt"]).set_index("opt")
    assert means["value"]["a"] == means["value"]["b"] == pytest.approx(0.301)
    assert set(comparable_rows(table, "loss", ["lr"])["parameter opt"]) == {"a"}
    fig = reports.effect(table, "opt", spec.metrics)
    assert "12 of 15 comparable runs" in fig.axes[0].get_xlabel()
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["a", "b\n3 lost"]
    drawn = fig.axes[0].containers[0].lines[0].get_ydata()
    assert drawn == pytest.approx([0.301, 0.301])


@pytest.mark.parametrize("lost", [math.nan, math.inf, None], ids=["nan", "inf", "failed"])
def test_setting_that_lost_a_seed_is_compared_on_shared_seeds(swept, lost, capsys):
    def answer(s):
        if s["opt"] == "b":
            return {"loss": 1.0 + s["seed"]}
        return {"loss": 0.01} if s["seed"] else lost and {"loss": lost}

    spec, table = swept(answer, grid={"opt": ["a", "b"]})
    smallest, largest = (best(table, "loss", direction, ["opt"]) for direction in ("min", "max"))
    assert list(largest["opt"]) == ["b", "a"] and list(largest["lost"]) == [0, 1] and list(largest["seeds"]) == [3, 2]
    leads = lost is None  # a failed run says nothing; one that ended without a finite number is a poor result
    assert list(smallest["opt"]) == (["a", "b"] if leads else ["b", "a"])
    labels = [t.get_text() for t in reports.ranking(table, "loss", "min", ["opt"]).axes[0].get_yticklabels()]
    assert labels == (["opt a (1 lost)", "opt b"] if leads else ["opt b", "opt a (1 lost)"])
    assert cli.main(["sweep", str(swept.folder / "s.yaml"), "--report"]) == 0
    page = (swept.folder / "runs" / "s" / "report.html").read_text()
    assert "opt a (1 lost)" in labels and "on the seeds that both have" in page
    assert ("1 of 6 finished runs have no number as loss" in page) == (lost is not None)
    printed = sweep.outcome(spec, table, 6, False)
    assert ("no number as loss" in printed) == (lost is not None)


def test_differences_leave_out_seeds_that_either_side_lost(swept):
    _, table = swept(
        lambda s: {"loss": math.nan if (s["opt"], s["seed"]) == ("b", 0) else s["seed"] + (s["opt"] == "b")},
        grid={"opt": ["a", "b"]},
    )  # fmt: skip
    row = differences(table, "loss", ["opt"], {"opt": "a"}).iloc[0]
    assert (row["value"], row["seeds"], row["lost"]) == (1, 2, 1)


@pytest.mark.parametrize("bad", [{"loss": math.nan, "knn": 1.0}, {"knn": 1.0}, {"loss": 0.5}, {"loss": "n/a"}], ids=str)
def test_report_is_written_despite_missing_metrics(swept, bad):
    """A level whose runs all lack a metric, or have NaN or a text for it; the page of all sweeps too."""
    swept(
        lambda s: bad if s["opt"] == "b" else {"loss": s["lr"], "knn": 1 - s["lr"]},
        metrics={"loss": "min", "knn": "max"},
    )
    for line in (["sweep", str(swept.folder / "s.yaml"), "--report"], ["sweep", "--report"]):
        assert cli.main(line) == 0
    page = (swept.folder / "runs" / "report.html").read_text()
    assert "9 of 18 finished runs have no number as" in page and "Leading settings" in page


def test_text_metric_cannot_be_ranked_and_leaves_other_sweeps_numeric(swept, capsys):
    spec, table = swept(lambda s: {"loss": f"{s['lr']} (0 to 1)"}, "texts")
    swept(lambda s: {"loss": s["lr"]}, "numbers")
    for line in (["--dry-run"], []):
        assert cli.main(["sweep", str(swept.folder / "texts.yaml"), *line]) == 2
        message = capsys.readouterr().err
        assert "0.1 (0 to 1)" in message and "a text cannot be ranked" in message and message.count("\n") == 1
    with pytest.raises(ContractError, match="cannot be ranked"):
        best(table, "loss", "min", ["opt"])
    assert cli.main(["sweep", "--report"]) == 0
    ledger = pd.read_parquet(swept.folder / "runs" / "ledger.parquet")
    assert ledger["metric loss"].dtype == float and ledger["metric loss"].notna().sum() == 18
    assert ledger["text loss"].notna().sum() == 18
    assert "18 of 18 finished runs have no number as loss" in (swept.folder / "runs" / "report.html").read_text()


def test_report_shows_the_given_files_present_specification(swept, capsys):
    swept(lambda s: {"loss": s["lr"], "knn": s["lr"]})
    file, page = swept.folder / "s.yaml", swept.folder / "runs" / "s" / "report.html"
    changed = {**SPECIFICATION, "metrics": {"knn": "max"}, "grid": {"lr": [0.1, 0.5], "opt": ["a", "b"]}}
    write_yaml(file, changed)
    assert cli.main(["sweep", str(file), "--report"]) == 0
    text = page.read_text()
    assert "By knn" in text and "12 of 12" in text and "6 runs of other settings" in text
    (swept.folder / "tiny.py").write_text(SCRIPT.replace('"loss": 0', '"loss": 1'))
    assert cli.main(["sweep", str(file), "--report"]) == 0
    assert "0 of 12" in page.read_text()
    capsys.readouterr()
    assert cli.main(["sweep", str(file), "--report", "--dry-run"]) == 2 and "one of them" in capsys.readouterr().err
    file.rename(swept.folder / "new.yaml")
    assert cli.main(["sweep", str(swept.folder / "new.yaml"), "--report"]) == 2
    assert not (swept.folder / "runs" / "new").exists()
    assert json.loads((swept.folder / "runs" / "s" / "sweep.json").read_text())["metrics"] == {"knn": "max"}


def test_lost_seeds_do_not_decide_the_winner(swept):
    """Seed 1 is hard: by plain means the worst setting, which kept both seeds, would stand before two better ones."""
    loss = {("a", 0): 0.40, ("a", 1): 0.81, ("b", 1): 0.73, ("c", 0): 0.35, ("d", 1): 0.70}
    _, table = swept(lambda s: {"loss": v} if (v := loss.get((s["opt"], s["seed"]))) else None,
                     grid={"opt": ["a", "b", "c", "d"]}, seeds=2)  # fmt: skip
    lead = best(table, "loss", "min", ["opt"])
    assert list(lead["opt"]) == ["d", "b", "c", "a"] and list(lead["lost"]) == [1, 1, 1, 0]
    assert lead["compared"].round(3).tolist() == [0.495, 0.525, 0.555, 0.605]


def test_settings_without_a_common_seed_are_not_compared(swept):
    loss = {("a", 0): 0.60, ("b", 1): 0.35, ("c", 0): 0.7, ("c", 1): 0.8}
    for known, first in ((loss, ["b", "a", "c"]), ({k: v for k, v in loss.items() if k[0] != "c"}, ["b", "a"])):
        grid = {"opt": sorted({opt for opt, _ in known})}
        _, table = swept(lambda s, known=known: {"loss": v} if (v := known.get((s["opt"], s["seed"]))) else None,
                         name=f"s{len(known)}", grid=grid, seeds=2)  # fmt: skip
        lead = best(table, "loss", "min", ["opt"])
        assert list(lead["opt"]) == first and lead["compared"].isna().all() == (len(first) == 2)


def test_confirmed_trials_are_ranked_by_their_new_seeds(swept):
    swept(
        lambda s: {"loss": 0.0123 if (s["opt"], s["seed"]) == ("a", 0) else 1.0 + (s["opt"] == "a")},
        grid={"opt": ["a", "b"]},
    )
    home = swept.folder / "runs" / "s"
    write_json(home / "sweep.json", {**json.loads((home / "sweep.json").read_text()), "confirmed": [1, 2]})
    page = reports.write_report(swept.folder / "runs", "s").read_text()
    leading = page.partition("Leading settings")[2].partition("</article>")[0]
    rows = re.findall(r"<tr><td>(.)</td><td>([\d.]+)</td>", leading)
    assert "ran again with new seeds" in leading and rows == [("b", "1"), ("a", "2")]
