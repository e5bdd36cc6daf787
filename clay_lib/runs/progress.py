"""What a sweep prints: the forecast of its minutes, a line for each run that ended, and the outcome."""

from __future__ import annotations

import heapq
import io
import json
import shlex
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clay_lib.cluster import cores
from clay_lib.files import read_json, yaml_format
from clay_lib.runs.notebooks import provenance
from clay_lib.runs.profiles import read_profile
from clay_lib.runs.specification import Run, Sweep
from clay_lib.runs.tables import read_run, runs_without

if TYPE_CHECKING:
    import pandas as pd

RECENT_RUNS, SAMPLE = 300, 50  # at most so many are read, and forecast one by one


class Forecast:
    """Seconds of runs: those of the most similar runs of the notebook that ended on this machine, times what the most
    similar runs of this start took in comparison; before any run was measured, as a profile states them."""

    def __init__(self, spec: Sweep, runs: Path, threads: int | None):
        self.spec, self.threads, machine = spec, threads, provenance()["environment"]["machine"]
        paths = sorted(runs.glob("*/*/run.json"), key=lambda path: path.stat().st_mtime)[-RECENT_RUNS:]
        rows = [row for path in paths if (row := read_run(path.parent)) and row["status"] == "done"]
        rows = [row for row in rows if (row["notebook"], row["machine"]) == (spec.script.stem, machine)]
        self.earlier = [(self._settings(row["parameters"], row["threads"]), row["seconds"]) for row in rows]
        self.ratios: deque[tuple[set[str], float]] = deque(maxlen=RECENT_RUNS)
        stated = spec.expected_minutes or read_profile("demo").minutes.get(spec.script.stem)
        self.stated = 60 * stated * max(1, cores() / (threads or 1)) if stated else None  # measured with all cores
        self.source = f"by {len(rows)} earlier runs" if rows else "as the profile states"

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


class Progress:
    """Prints a line for each run that ended."""

    def __init__(self, spec: Sweep, todo: Sequence[Run], total: int, forecast: Forecast):
        self.spec, self.total, self.forecast, self.workers, self.count = spec, total, forecast, 1, 0
        self.waiting = {run.key: run for run in todo}
        self.failures: Counter = Counter()

    def __call__(self, run: Run, row: dict | None) -> None:
        self.count += 1
        self.waiting.pop(run.key, None)
        if row is None:  # past the deadline
            return
        metric = next(iter(self.spec.metrics))
        value = row["metrics"].get(metric)
        score = f"{metric} {value:.4g}" if isinstance(value, float) else ""
        seconds = row["seconds"] or 0
        self.forecast.ended(run, seconds)
        left = self.forecast.minutes([*self.waiting.values()], self.total - self.count, self.workers)
        state = {"done": "ok", "pruned": "pruned"}.get(row["status"]) or row["status"].upper()
        head = f"{self.count:>4}/{self.total}  {run.key}  {_settings_text(run.settings)}"
        print(f"{head}  {state} {seconds:.1f} s  {score}  ({left:.1f} min left)", flush=True)
        if row["warnings"]:
            print(f"      did not hold: {row['warnings']}", flush=True)
        if row["status"] not in ("done", "pruned"):
            message = f"in {row['failed_cell'] or 'no cell'}: {row['error']}"
            self.failures[message] += 1
            again = self.failures[message] > 1
            print(f"      {'the same failure' if again else message}\n      see {row['folder']}", flush=True)


def plan(
    spec: Sweep, home: Path, rows: Mapping[str, dict], changed: Mapping, planned: int, left: int, time: str, retry: bool
) -> str:
    """Number of runs and minutes, and which finished runs of its folder are not of the present state."""
    counts = Counter(row["status"] for row in rows.values())
    parts = [f"{counts['done']} done"]
    parts += [f"{counts[s]} {s}" for s in ("pruned", "failed", "died", "unfinished") if counts[s]]
    if counts["failed"] and not retry:
        parts[-1] += "; failed ones are kept: --retry-failed"
    if spec.over_budget:
        parts.append(f"{spec.over_budget} beyond the budget of runs")
    limit = f", of which {spec.minutes:g} are allowed" if spec.minutes else ""
    lines = [
        f"sweep {spec.name}: {planned} runs of {spec.script.stem} ({', '.join(parts)}); {left} to do {time}{limit}"
    ]
    if changed:
        modules = _few(sorted({name.removeprefix("clay_lib.") for names in changed.values() for name in names}))
        state = f"another state of clay_lib (changed: {modules})"
        lines.append(f"{_finished(len(changed))} of {state}: --redo-changed runs them again")
    folders = [] if spec.search else [p.parent for p in home.glob("*/run.json") if p.parent.name not in rows]
    others = [row for folder in folders if (row := read_run(folder)) and row["status"] == "done"]
    present = {json.dumps(run.parameters) for run in spec.runs}
    for state, known in (("other settings", False), ("another state of the notebook", True)):
        settings = [_settings_text(r["settings"]) for r in others if (json.dumps(r["parameters"]) in present) == known]
        if settings:
            lines.append(f"{_finished(len(settings))} of {state}, kept and not counted: {_few(settings)}")
    return "\n".join(lines)


def _finished(count: int) -> str:
    return f"{count} finished {'run is' if count == 1 else 'runs are'}"


def _few(names: Sequence[str]) -> str:
    return "; ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _settings_text(settings: Mapping) -> str:
    plain = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in settings.items()}
    return " ".join(f"{k}={v}" for k, v in plain.items()) or "as given"


def outcome(spec: Sweep, table: pd.DataFrame, planned: int, retried: bool) -> str:
    if table.empty:
        return f"{planned} not started: the same command continues"
    counts = Counter(table["status"])
    minutes = table["seconds"].sum() / 60
    pruned = f", {counts['pruned']} pruned" if counts["pruned"] else ""
    lines = [f"{counts['done']} of {planned} runs done{pruned}, {minutes:.1f} min of kernels in total"]
    lines += runs_without(table, spec.metrics)
    lost = table[table["status"].isin(["failed", "died"])]
    for (status, cell, error), group in lost.groupby(["status", "failed_cell", "error"], sort=False, dropna=False):
        row = group.iloc[0]
        count = f"{len(group)} runs, such as " if len(group) > 1 else ""
        lines.append(f"{status.upper()} {count}{row['run']} in {cell if isinstance(cell, str) else 'no cell'}: {error}")
        lines.append(f"  again: {_command(spec, row)}")
    if len(warned := table[table["warnings"].fillna("") != ""]):
        for message, group in warned.groupby("warnings", sort=False):
            lines.append(
                f"WARNING in {len(group)} run{'s' * (len(group) > 1)}, such as {group['run'].iloc[0]}: {message}"
            )
    if counts["failed"] and not retried:
        lines.append("failed runs are kept as they are; --retry-failed runs them again")
    if missing := planned - sum(counts[status] for status in ("done", "pruned", "failed", "died")):
        lines.append(f"{missing} not started or cut short: the same command continues")
    return "\n".join(lines)


def _command(spec: Sweep, row: pd.Series) -> str:
    """What runs one run of a table again by itself."""
    parameters = read_json(Path(row["folder"], "parameters.json"))["parameters"]
    text, yaml = io.StringIO(), yaml_format((1, 1))  # which papermill reads
    yaml.default_flow_style = True
    yaml.dump(parameters, text)
    values = shlex.quote(text.getvalue().partition("---")[2].strip())
    return f"jupytext --to ipynb {shlex.quote(str(spec.script))} -o - | papermill - run.ipynb -y {values}"
