"""The ledger: one table of all runs of all sweeps. The folders are the truth; it can be made from them at any time.

A run's folder, papermill_runs/SWEEP/HASH/, holds
    parameters.json      what was asked, written first
    NB.ipynb, log.txt    the executed notebook, saved after every cell, and what it printed, line by line
    metrics.json         the notebook's last act, beside its pictures
    run.json             seconds, peak memory, code, machine, error: written last, so that a cut run has none
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clay_lib.files import read_json, write_whole
from clay_lib.runner import RUNS, is_done
from clay_lib.specification import Sweep

if TYPE_CHECKING:
    import pandas as pd

LEDGER = "ledger.parquet"
STATES = ("done", "failed", "died", "unfinished")  # failed: its own fault or out of time; died: killed from outside


def read_run(folder: Path) -> dict | None:
    """One run's row, {sweep, run, status, ...}; None: nothing was begun there. Done is only what is whole."""
    asked, told = read_json(folder / "parameters.json"), read_json(folder / "run.json")
    if "sweep" not in asked:
        return None
    if not told:
        status = "unfinished"
    elif told["ok"]:
        status = "done" if _whole(folder, told) else "unfinished"
    else:
        status = "died" if told["died"] else "failed"
    environment, git = told.get("environment", {}), told.get("git", {})
    return {
        "sweep": asked["sweep"],
        "run": folder.name,
        "status": status,
        "notebook": asked["notebook"],
        "settings": asked["settings"],
        "parameters": asked["parameters"],
        "metrics": dict(flat(told.get("metrics", {}))) if status == "done" else {},
        "failed_cell": told.get("failed_cell"),
        "error": told.get("error"),
        **{key: told.get(key) for key in ("seconds", "peak_mb", "finished", "library")},
        "commit": git.get("commit"),
        "changed": git.get("changed"),
        **{key: environment.get(key) for key in ("python", "machine", "cores")},
        "torch": environment.get("packages", {}).get("torch"),
        "folder": str(folder),
    }


def _whole(folder: Path, told: Mapping) -> bool:
    """Whether notebook and metrics are there as the run left them; a notebook that somebody saved again is read."""
    executed = folder / Path(told["notebook"]).name
    unchanged = executed.is_file() and executed.stat().st_size == told.get("bytes")
    return bool(read_json(folder / "metrics.json")) if unchanged else is_done(executed, folder)


def read_ledger(runs: Path = RUNS, sweep: str | None = None) -> pd.DataFrame:
    """All runs, or one sweep's, a row each, read from the folders.

    Columns: sweep, run, status, asked (the sweep's present specification holds it), then `parameter NAME`,
    `metric NAME` (numbers) and `text NAME` (metrics that are text), then what it cost (seconds, peak_mb) and where it
    comes from.
    """
    import pandas as pd  # here, since a worker reads runs alone and starts half a second sooner without

    rows = []
    for asked in sorted(Path(runs).glob(f"{sweep or '*'}/*/parameters.json")):
        row = read_run(asked.parent)
        if row is not None:
            present = read_json(asked.parents[1] / "sweep.json").get("runs", [])
            values = {f"parameter {k}": "none" if v is None else v for k, v in row.pop("parameters").items()}
            values |= {f"{'text' if isinstance(v, str) else 'metric'} {k}": v for k, v in row.pop("metrics").items()}
            del row["settings"]
            rows.append({**row, "asked": row["run"] in present, **values})
    table = pd.DataFrame(rows)
    first = ["sweep", "run", "status", "asked", "notebook"]
    middle = [c for kind in ("parameter ", "metric ", "text ") for c in table if c.startswith(kind)]
    table = table.reindex(columns=[*first, *middle, *(c for c in table if c not in (*first, *middle))])
    return table.apply(_one_type)


def write_ledger(runs: Path = RUNS) -> Path:
    """runs/ledger.parquet, from the folders."""
    return write_whole(Path(runs) / LEDGER, lambda part: read_ledger(runs).to_parquet(part, index=False))


def write_results(asked: Sweep, runs: Path = RUNS, folder: Path = RUNS / "sweeps" / "results") -> Path:
    """folder/SWEEP.csv, the finished runs of a specification to be kept in git: settings, metrics, cost, code."""
    table = read_ledger(runs, asked.name)
    table = table[(table["status"] == "done") & table["run"].isin([run.key for run in asked.runs])]
    names = [f"parameter {name}" for name in (*asked.varied, *([asked.seed] if asked.seed else []))]
    metrics = [c for c in table if c.startswith(("metric ", "text ")) and table[c].notna().any()]
    table = table.sort_values(names)[["status", *names, *metrics, "seconds", "peak_mb", "cores", "library"]]
    text = table.to_csv(index=False, float_format="%.6g")
    return write_whole(folder / f"{asked.name}.csv", lambda part: part.write_text(text, encoding="utf-8"))


def flat(metrics: Mapping, prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """(name, value) of every number and text in a nested mapping, names joined by " / "."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key} / ")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{key}", float(value) if isinstance(value, (bool, int)) else value


def _one_type(column: pd.Series) -> pd.Series:
    """A column that Parquet takes: where sweeps disagree about a name's type, and for lists, its values as text."""
    if column.dtype != object:
        return column
    kinds = {type(v) for v in column if v is not None and v == v}
    if kinds <= {str} or kinds <= {bool}:
        return column
    if kinds <= {int, float}:
        return column.astype(float)
    return column.map(lambda v: v if isinstance(v, str) or v is None or v != v else json.dumps(v))
