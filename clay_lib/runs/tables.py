"""The ledger: one table of all runs of all sweeps. The folders are the truth; it can be made from them at any time.

A run's folder, papermill_runs/SWEEP/HASH/, holds
    parameters.json      what was asked, written first
    NB.ipynb, log.txt    the executed notebook, saved after every cell, and what it printed, line by line
    metrics.json         the notebook's last act, beside its pictures
    run.json             seconds, peak memory, code, machine, error: written last, so that a cut run has none
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, read_json
from clay_lib.runs.notebooks import RUNS, is_done
from clay_lib.runs.specification import Sweep

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
    return atomic_write(Path(runs) / LEDGER, lambda part: read_ledger(runs).to_parquet(part, index=False))


def write_results(asked: Sweep, runs: Path = RUNS, folder: Path = RUNS / "sweeps" / "results") -> Path:
    """folder/SWEEP.csv, the finished runs of a specification to be kept in git: settings, metrics, cost, code."""
    table = read_ledger(runs, asked.name)
    table = table[(table["status"] == "done") & table["run"].isin([run.key for run in asked.runs])]
    names = [f"parameter {name}" for name in (*asked.varied, *([asked.seed] if asked.seed else []))]
    metrics = [c for c in table if c.startswith(("metric ", "text ")) and table[c].notna().any()]
    table = table.sort_values(names)[["status", *names, *metrics, "seconds", "peak_mb", "cores", "library"]]
    text = table.to_csv(index=False, float_format="%.6g")
    return atomic_write(folder / f"{asked.name}.csv", lambda part: part.write_text(text, encoding="utf-8"))


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


# ---- A sweep's rows as answers: means over settings, with intervals over seeds ----

LEVEL = 0.95
ENDED = ("done", "failed", "died")


def values_of(table: pd.DataFrame, metric: str) -> pd.Series:
    """The metric of each run that is done and has a finite one; NaN for all others, as where a training diverged."""
    column = f"metric {metric}"
    if not pd.api.types.is_numeric_dtype(table[column]) if column in table else f"text {metric}" in table:
        raise ContractError(f"metric {metric!r}", "text", "numbers", "a text cannot be ranked: name another metric")
    _expect(table, [column])
    return table[column].where((table["status"] == "done") & np.isfinite(table[column].astype(float)))


def fair(table: pd.DataFrame, metric: str, by: Sequence[str]) -> pd.DataFrame:
    """The rows that compare the levels of `by` fairly: of the settings and seeds that every level has.

    Where runs failed or are still to come, a mean over all rows tells more of what is missing than of the level. A level
    without any value is left out of account. No rows: the levels have nothing in common.
    """
    rows = table[values_of(table, metric).notna()]
    axes = [f"parameter {name}" for name in by]
    rest = [c for c in rows if c.startswith("parameter ") and c not in axes and rows[c].nunique(dropna=False) > 1]
    if not rest:
        return rows
    level = rows.groupby(axes, dropna=False).ngroup()
    return rows[level.groupby([rows[c] for c in rest], dropna=False).transform("nunique") == level.nunique()]


def lacking(table: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """A sentence for each metric that some finished runs have no number of."""
    done = table[table["status"] == "done"]
    column = {m: done.get(f"metric {m}", pd.Series(np.nan, index=done.index)) for m in metrics}
    lost = {m: int((~np.isfinite(pd.to_numeric(c, errors="coerce"))).sum()) for m, c in column.items()}
    return [
        f"{n} of {len(done)} finished runs have no number as {m}: NaN, text or nothing." for m, n in lost.items() if n
    ]


def over_seeds(table: pd.DataFrame, metric: str, by: Sequence[str], seed: str | None = "seed") -> pd.DataFrame:
    """Mean of a metric for each value (or combination) of the parameters `by`.

    Columns by, value, low, high, seeds, runs, lost: how many runs ended without a finite value, by failing or with NaN.
    The others' mean may flatter then; where runs are missing, compare levels of one parameter over `fair` rows.

    Runs are first averaged within a seed, since runs of one seed are no independent witnesses of its luck; low and high
    are the 95 % t-interval of the seeds' means (Student: mean +- t(0.975, n - 1) s / sqrt(n)), NaN for a single seed.
    table: rows of the ledger.
    """
    from scipy import stats  # here, since a sweep starts a second sooner without

    axes = [f"parameter {name}" for name in by]
    _expect(table, axes)
    rows = table.assign(value=values_of(table, metric))[table["status"].isin(ENDED)]
    witness = rows[f"parameter {seed}"] if seed else pd.Series(0, index=rows.index)
    inner = rows.assign(witness=witness).groupby([*axes, "witness"], dropna=False, sort=True)["value"]
    inner = inner.agg(["mean", "count", "size"])
    outer = inner.reset_index().groupby(axes, dropna=False, sort=True) if axes else [((), inner)]
    found = []
    for values, part in outer:
        means = part["mean"].dropna().to_numpy(float)
        n, mean = len(means), means.mean() if len(means) else np.nan
        half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * means.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        point = dict(zip(by, values if isinstance(values, tuple) else (values,), strict=True))
        found.append(
            {
                **point,
                "value": mean,
                "low": mean - half,
                "high": mean + half,
                "seeds": n,
                "runs": int(part["count"].sum()),
                "lost": int((part["size"] - part["count"]).sum()),
            }
        )
    return pd.DataFrame(found, columns=[*by, "value", "low", "high", "seeds", "runs", "lost"])


def best(
    table: pd.DataFrame, metric: str, direction: str, by: Sequence[str], seed: str | None = "seed"
) -> pd.DataFrame:
    """The same for each setting, the best first ("min": smallest); those that lost a run below all others."""
    ranked = over_seeds(table, metric, by, seed).sort_values("value", ascending=direction == "min", kind="stable")
    return ranked.sort_values("lost", key=lambda lost: lost > 0, kind="stable", ignore_index=True)


def differences(
    table: pd.DataFrame, metric: str, by: Sequence[str], base: Mapping[str, object], seed: str | None = "seed"
) -> pd.DataFrame:
    """Each setting minus `base`, seed by seed, in the columns of `over_seeds`.

    What a seed does to both sides cancels, so this tells differences that the settings' own intervals hide.
    """
    column, rows = f"metric {metric}", table.assign(**{f"metric {metric}": values_of(table, metric)})
    is_base = _where(rows, base)
    if not rows.loc[is_base, column].notna().any():
        raise ContractError("base", dict(base), "a setting with finished runs", "a value that was not swept")
    pairing = [f"parameter {seed}"] if seed else []
    if pairing:
        floor = rows[is_base].groupby(pairing)[column].mean()
        level = rows[pairing[0]].map(floor)
    else:
        level = rows.loc[is_base, column].mean()
    paired = rows.assign(**{column: rows[column] - level})[~is_base]
    return over_seeds(paired, metric, by, seed).dropna(subset="value", ignore_index=True)


def one_at_a_time(table: pd.DataFrame, by: Sequence[str]) -> dict | None:
    """The setting from which all others differ in a single parameter, as in an ablation; None: there is none."""
    settings = table[[f"parameter {name}" for name in by]].drop_duplicates()
    if len(by) < 2 or len(settings) < 3:
        return None
    base = settings.mode().iloc[0]
    off = (settings != base).sum(axis=1)
    return dict(zip(by, base, strict=True)) if off.max() == 1 and (off == 0).any() else None


def _expect(table: pd.DataFrame, columns: Sequence[str]) -> None:
    for kind, name in (column.split(" ", 1) for column in columns):
        if f"{kind} {name}" not in table:
            told = [c.split(" ", 1)[1] for c in table if c.startswith(f"{kind} ")]
            raise ContractError(kind, name, f"one of {told}", "a misspelt name")


def _where(table: pd.DataFrame, setting: Mapping[str, object]) -> pd.Series:
    found = pd.Series(True, index=table.index)
    for name, value in setting.items():
        found &= table[f"parameter {name}"] == value
    return found


def others_at(table: pd.DataFrame, base: Mapping[str, object], name: str) -> pd.DataFrame:
    """The rows in which every parameter but `name` is as in `base`."""
    return table[_where(table, {k: v for k, v in base.items() if k != name})]
