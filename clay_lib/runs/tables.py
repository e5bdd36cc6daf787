"""Tables of sweeps: the ledger of all runs, forecasts from it, and means over settings with intervals over seeds.

The ledger can be rebuilt from the runs' folders at any time: papermill_runs/SWEEP/HASH/ holds parameters.json, what was
requested, and what a run leaves (notebooks.py), run.json last, so that a killed run has none.
"""

from __future__ import annotations

import heapq
import json
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clay_lib.cluster import cores
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, read_json, write_json
from clay_lib.runs.notebooks import RUNS, flatten, is_done, module_hashes, provenance
from clay_lib.runs.profiles import read_profile
from clay_lib.runs.specification import Run, Sweep

if TYPE_CHECKING:  # pandas takes a second to import, which every worker of a sweep would pay
    import pandas as pd

LEVEL = 0.95  # of confidence
ENDED = ("done", "failed", "died")  # failed: its own error or out of time; died: killed from outside
RECENT_RUNS, SAMPLE = 300, 50  # at most so many are read for a forecast, and forecast one by one
START = "start.json"  # in a sweep's folder: what its last start took beside its runs


# ---- the ledger


def read_run(folder: Path) -> dict | None:
    """One run's row, {sweep, run, status, ...}; None: nothing was started there. Only a complete run is done."""
    request, record = read_json(folder / "parameters.json"), read_json(folder / "run.json")
    if "sweep" not in request:
        return None
    if not record:
        status = "unfinished"
    elif record["ok"]:
        executed = folder / Path(record["notebook"]).name
        as_left = executed.is_file() and executed.stat().st_size == record.get("bytes")  # else it was saved again later
        complete = read_json(folder / "metrics.json") if as_left else is_done(executed, folder)
        status = "done" if complete else "unfinished"
    else:
        status = "pruned" if record.get("pruned") else "died" if record["died"] else "failed"
    metrics = flatten(record.get("metrics", {})) if status != "unfinished" else ()  # of a failed run: so far
    environment, git = record.get("environment", {}), record.get("git", {})
    reached = record.get("reached") or (None, None)  # the last value that the notebook reported while it ran
    return {
        "sweep": request["sweep"],
        "run": folder.name,
        "status": status,
        "notebook": request["notebook"],
        "settings": request["settings"],
        "parameters": request["parameters"],
        "metrics": {k: v if isinstance(v, str) else float(v) for k, v in metrics if isinstance(v, (int, float, str))},
        "warnings": "; ".join(record.get("warnings", [])),
        **{
            key: record.get(key)
            for key in ("failed_cell", "error", "seconds", "cpu_seconds", "peak_mb", "finished", "precision")
        },
        "library": record.get("library"),
        "modules": record.get("modules", {}),
        "threads": record.get("threads"),
        "attempt": record.get("attempt"),  # 2: its kernel was killed once
        "reached_step": reached[0],
        "reached": reached[1],
        "commit": git.get("commit"),
        "changed": git.get("changed"),
        **{key: environment.get(key) for key in ("python", "machine", "cores")},
        "torch": environment.get("packages", {}).get("torch"),
        "folder": str(folder),
    }


def read_ledger(runs: Path = RUNS, sweep: str | None = None) -> pd.DataFrame:
    """All runs, or one sweep's, a row each, read from the folders.

    Columns: sweep, run, status, asked (the sweep's present specification has it), then `parameter NAME`,
    `metric NAME` (numbers) and `text NAME` (metrics that are text), then cost (seconds, peak_mb) and provenance.
    """
    import pandas as pd

    rows = []
    for path in sorted(Path(runs).glob(f"{sweep or '*'}/*/parameters.json")):
        row = read_run(path.parent)
        if row is not None:
            present = read_json(path.parents[1] / "sweep.json").get("runs", [])
            values = {f"parameter {k}": "none" if v is None else v for k, v in row.pop("parameters").items()}
            values |= {f"{'text' if isinstance(v, str) else 'metric'} {k}": v for k, v in row.pop("metrics").items()}
            del row["settings"], row["modules"]
            rows.append({**row, "asked": row["run"] in present, **values})
    table = pd.DataFrame(rows)
    first = ["sweep", "run", "status", "asked", "notebook"]
    middle = [c for kind in ("parameter ", "metric ", "text ") for c in table if c.startswith(kind)]
    table = table.reindex(columns=[*first, *middle, *(c for c in table if c not in (*first, *middle))])
    return table.apply(_single_type)


def write_ledger(runs: Path = RUNS) -> Path:
    """runs/ledger.parquet, from the folders."""
    return atomic_write(Path(runs) / "ledger.parquet", lambda part: read_ledger(runs).to_parquet(part, index=False))


def _single_type(column: pd.Series) -> pd.Series:
    """A column that Parquet accepts: where sweeps disagree about a name's type, and for lists, its values as text."""
    if column.dtype != object:
        return column
    kinds = {type(v) for v in column if v is not None and v == v}
    if kinds <= {str} or kinds <= {bool}:
        return column
    if kinds <= {int, float}:
        return column.astype(float)
    return column.map(lambda v: v if isinstance(v, str) or v is None or v != v else json.dumps(v))


def changed_modules(rows: Sequence[Mapping]) -> dict[str, list[str]]:
    """Key of a run: the modules of clay_lib that it imported and that are different now."""
    now = module_hashes(name for row in rows for name in row["modules"])
    changed = {row["run"]: [name for name, code in row["modules"].items() if code != now[name]] for row in rows}
    return {key: names for key, names in changed.items() if names}


# ---- forecasts


class Forecast:
    """Seconds of runs: those of the most similar runs of the notebook that ended on this machine, times what the most
    similar runs of this start took in comparison; before any run was measured, as its file or a profile states them.

    start: seconds that a start takes beside its runs, for workers, ledger and report, as earlier ones did.
    """

    def __init__(self, spec: Sweep, runs: Path, threads: int | None):
        self.spec, self.threads, machine = spec, threads, provenance()["environment"]["machine"]
        paths = sorted(runs.glob("*/*/run.json"), key=lambda path: path.stat().st_mtime)[-RECENT_RUNS:]
        rows = [row for path in paths if (row := read_run(path.parent)) and row["status"] == "done"]
        rows = [row for row in rows if (row["notebook"], row["machine"]) == (spec.script.stem, machine)]
        self.earlier = [(self._settings(row["parameters"], row["threads"]), wall_seconds(row)) for row in rows]
        starts = [read_json(path) for path in runs.glob(f"*/{START}")]
        starts = [start["seconds"] for start in starts if start.get("machine") == machine]
        self.start = sum(starts) / max(1, len(starts))
        self.ratios: deque[tuple[set[str], float]] = deque(maxlen=RECENT_RUNS)
        stated = spec.expected_minutes or read_profile("demo").minutes.get(spec.script.stem) or 0
        stated *= max(1, cores() / (threads or 1))  # measured with all cores
        self.stated = 60 * (spec.specification.get("run_minutes") or stated) or None
        self.source = f"by {len(rows)} earlier runs" if rows else "as its file or the profile states"

    def _settings(self, parameters: Mapping, threads: int | None) -> set[str]:
        values = {k: v for k, v in parameters.items() if k != self.spec.seed} | {"threads": threads}
        return {json.dumps(item) for item in values.items()}

    def seconds(self, run: Run) -> float | None:
        settings = self._settings(run.parameters, self.threads)
        base = _of_similar(settings, self.earlier) or self.stated or (1.0 if self.ratios else None)
        return base and base * (_of_similar(settings, self.ratios) or 1.0)

    def ended(self, run: Run, seconds: float) -> None:
        settings = self._settings(run.parameters, self.threads)
        base = _of_similar(settings, self.earlier) or self.stated or 1.0
        self.ratios.append((settings, seconds / base))

    def minutes(self, runs: Sequence[Run], count: int, workers: int) -> float | None:
        """Of `count` runs, of which some are known, on so many workers; None: not yet measured."""
        sample = [self.seconds(run) for run in runs[:: 1 + len(runs) // SAMPLE] or [self.spec.make_run({})]]
        if None in sample:
            return None
        half = sum(sample) / len(sample) / 2 if self.ratios else 0.0  # done of the runs under way, which are counted
        free = [*[-half] * (workers - 1), 0.0]  # when each worker is
        for i in range(count):
            heapq.heapreplace(free, free[0] + sample[i % len(sample)])
        return max(free) / 60


def _of_similar(settings: set[str], known: Iterable[tuple[set[str], float]]) -> float | None:
    """The mean value of those that share the most settings; None: there are none."""
    shared = [(len(settings & other), value) for other, value in known]
    most = max(shared, default=(0, 0.0))[0]
    values = [value for count, value in shared if count == most]
    return sum(values) / len(values) if values else None


def record_start(home: Path, began: float) -> None:
    """start.json: seconds of this start beside its runs, for the next forecast."""
    times = [[p.stat().st_mtime for p in home.glob(f"*/{name}.json")] for name in ("parameters", "run")]
    times = [[moment for moment in moments if moment > began] for moments in times]
    if all(times):
        seconds = time.time() - began - (max(times[1]) - min(times[0]))
        write_json(home / START, {"machine": provenance()["environment"]["machine"], "seconds": seconds})


def wall_seconds(row: Mapping) -> float:
    """Seconds from the request of a run to its record, which its kernel does not see all of."""
    request, record = (Path(row["folder"], name).stat().st_mtime for name in ("parameters.json", "run.json"))
    return max(row["seconds"] or 0.0, record - request)


# ---- comparisons


def values_of(table: pd.DataFrame, metric: str) -> pd.Series:
    """The metric of each run that is done and has a finite one; NaN for all others, as where training diverged."""
    import pandas as pd

    column = f"metric {metric}"
    if not pd.api.types.is_numeric_dtype(table[column]) if column in table else f"text {metric}" in table:
        cause = "a text cannot be ranked: name another metric"
        raise ContractError(f"metric {metric!r}", "text", "numbers", cause)
    _require_columns(table, [column])
    return table[column].where((table["status"] == "done") & np.isfinite(table[column].astype(float)))


def comparable_rows(table: pd.DataFrame, metric: str, by: Sequence[str]) -> pd.DataFrame:
    """The rows that compare the levels of `by` fairly: those of the settings and seeds that every level has.

    Where runs failed or are pending, a mean over all rows would depend more on what is missing than on the level. A
    level without any value is ignored. No rows: the levels have no setting in common.
    """
    rows = table[values_of(table, metric).notna()]
    axes = [f"parameter {name}" for name in by]
    rest = [c for c in rows if c.startswith("parameter ") and c not in axes and rows[c].nunique(dropna=False) > 1]
    if not rest:
        return rows
    level = rows.groupby(axes, dropna=False).ngroup()
    return rows[level.groupby([rows[c] for c in rest], dropna=False).transform("nunique") == level.nunique()]


def runs_without(table: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """A sentence for each metric that some finished runs have no number for."""
    done, sentences = table[table["status"] == "done"], []
    for metric in metrics:
        column = f"metric {metric}"
        lost = len(done) - (np.isfinite(done[column].astype(float)).sum() if column in done else 0)
        if lost:
            sentences.append(f"{lost} of {len(done)} finished runs have no number as {metric}: NaN, text or nothing.")
    return sentences


def over_seeds(table: pd.DataFrame, metric: str, by: Sequence[str], seed: str | None = "seed") -> pd.DataFrame:
    """Mean of a metric for each value (or combination) of the parameters `by`. table: rows of the ledger.

    Columns by, value, low, high, seeds, runs, lost: how many runs ended without a finite value, by failing or with
    NaN. The mean of the others may be too good then; where runs are missing, compare levels over `comparable_rows`.

    Runs are first averaged within a seed, since runs that share a seed are not independent; low and high are the 95 %
    t-interval of the seeds' means (Student: mean +- t(0.975, n - 1) s / sqrt(n)), NaN for a single seed.
    """
    import pandas as pd
    from scipy import stats  # a sweep starts a second sooner without

    axes = [f"parameter {name}" for name in by]
    _require_columns(table, axes)
    rows = table.assign(value=values_of(table, metric))[table["status"].isin(ENDED)]
    group = rows[f"parameter {seed}"] if seed else pd.Series(0, index=rows.index)
    inner = rows.assign(group=group).groupby([*axes, "group"], dropna=False)["value"]
    inner = inner.agg(["mean", "count", "size"]).reset_index()
    outer = inner.groupby(axes or np.zeros(len(inner)), dropna=False)
    summary = outer.agg(value=("mean", "mean"), deviation=("mean", "std"), seeds=("mean", "count"),
                        runs=("count", "sum"), size=("size", "sum"))  # fmt: skip
    half = stats.t.ppf((1 + LEVEL) / 2, summary["seeds"] - 1) * summary["deviation"] / np.sqrt(summary["seeds"])
    summary = summary.assign(low=summary["value"] - half, high=summary["value"] + half)
    summary = summary.assign(lost=summary["size"] - summary["runs"])[["value", "low", "high", "seeds", "runs", "lost"]]
    return summary.reset_index(names=[*by] or None, drop=not by, allow_duplicates=True)


def best(
    table: pd.DataFrame, metric: str, direction: str, by: Sequence[str], seed: str | None = "seed"
) -> pd.DataFrame:
    """`over_seeds`, best setting first ("min": smallest).

    Where runs failed, settings are ranked by `compared`: the fit value = setting + seed, in which a setting is compared
    with the others on the seeds that it shares with them. Without losses that is the mean over seeds; where settings
    share no seed it is NaN, and those that lost a run come last. A setting with a run that ended without a finite value
    (`diverged`) comes after all others: that is a result, and a poor one.
    """
    import pandas as pd

    summary = over_seeds(table, metric, by, seed)
    rows = table.assign(value=values_of(table, metric))[table["status"].isin(ENDED)]
    axes = [f"parameter {name}" for name in by]
    level = rows.groupby(axes, dropna=False).ngroup() if axes else pd.Series(0, index=rows.index)  # row of summary
    summary["compared"] = summary["value"]
    if seed and summary["lost"].any():
        summary["compared"] = _without_seed_effects(rows["value"], level, rows[f"parameter {seed}"])
    diverged = rows["value"].isna() & (rows["status"] == "done")
    summary["diverged"] = diverged.groupby(level).sum()
    incomparable = summary["compared"].isna().all()
    below = summary["diverged"] + (summary["lost"] if incomparable else 0)
    order = summary["value"] if incomparable else summary["compared"]
    ranked = summary.assign(below=below > 0, order=order if direction == "min" else -order)
    return ranked.sort_values(["below", "order"], kind="stable", ignore_index=True).drop(columns=["below", "order"])


def _without_seed_effects(values: pd.Series, level: pd.Series, seeds: pd.Series) -> pd.Series:
    """Least squares of value = level + seed: the levels' effects, at the mean of the seeds' effects.

    NaN where levels share no seed with others, directly or by third ones. Rows without a value are left out.
    """
    import pandas as pd

    values = values.dropna()
    level, seeds = level[values.index], pd.get_dummies(seeds[values.index], dtype=float)  # [N, S]

    def within(x):  # what varies within a level: its effect drops out
        return x - x.groupby(level).transform("mean")

    effect, _, rank, _ = np.linalg.lstsq(within(seeds).to_numpy(), within(values).to_numpy(float), rcond=None)
    effects = (values - seeds @ effect).groupby(level).mean() + effect.mean()
    return effects if rank == seeds.shape[1] - 1 else effects * np.nan


def differences(
    table: pd.DataFrame, metric: str, by: Sequence[str], base: Mapping[str, object], seed: str | None = "seed"
) -> pd.DataFrame:
    """Each setting minus `base`, paired by seed, in the columns of `over_seeds`.

    The effect of a seed on both sides cancels, so this shows differences that the settings' own intervals hide.
    """
    column, rows = f"metric {metric}", table.assign(**{f"metric {metric}": values_of(table, metric)})
    is_base = matches(rows, base)
    if not rows.loc[is_base, column].notna().any():
        raise ContractError("base", dict(base), "a setting with finished runs", "a value that was not swept")
    if seed:
        level = rows[f"parameter {seed}"].map(rows[is_base].groupby(f"parameter {seed}")[column].mean())
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
    changed = (settings != base).sum(axis=1)
    return dict(zip(by, base, strict=True)) if changed.max() == 1 and (changed == 0).any() else None


def others_at(table: pd.DataFrame, base: Mapping[str, object], name: str) -> pd.DataFrame:
    """The rows in which every parameter but `name` is as in `base`."""
    return table[matches(table, {k: v for k, v in base.items() if k != name})]


def _require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    for kind, name in (column.split(" ", 1) for column in columns):
        if f"{kind} {name}" not in table:
            known = [c.split(" ", 1)[1] for c in table if c.startswith(f"{kind} ")]
            raise ContractError(kind, name, f"one of {known}", "a misspelled name")


def matches(table: pd.DataFrame, setting: Mapping[str, object]) -> pd.Series:
    """Whether each row has the setting."""
    return (table[[f"parameter {name}" for name in setting]] == [*setting.values()]).all(axis=1)
