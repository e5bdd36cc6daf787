"""Sweeps: the runs of a specification over Dask workers, one kernel each, resumable at any point.

The only state is the runs' folders, so the same command continues where the last one stopped.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clay_lib.cluster import cores, dask_client, free_memory, gpus, wait_for_workers
from clay_lib.errors import ContractError
from clay_lib.files import locked, make_folder, read_json, write_json
from clay_lib.runs import tables
from clay_lib.runs.notebooks import REPORTED, RUN_FOLDER, RUNS, library_hash, run_notebook
from clay_lib.runs.search import Study, known_runs
from clay_lib.runs.specification import Run, Sweep, check_owner, command_of, read_sweep, write_summary

if TYPE_CHECKING:
    import pandas as pd

KERNEL_MB = 1000  # assumed memory of a run until one has been measured
INCOMPLETE = 3  # exit code: nothing failed, but the budget of minutes left runs that were not begun
POLL_SECONDS = 0.5  # between two looks at what the runs report
LINE_SECONDS = 5  # at least, between two lines of runs that went well
KERNEL_ATTEMPTS = 2  # within one start, for a run whose kernel was killed from outside


def sweep(
    file: str = "",
    *,
    dry_run: bool = False,
    scheduler: str = "",
    workers: int = 0,
    retry_failed: bool = False,
    redo_changed: bool = False,
    report: bool = False,
) -> int:
    """Run a notebook over a grid, a list or a search of parameters; the same command resumes after a kill.

    Example: clay sweep papermill_runs/sweeps/copy_neighbours.yaml --dry-run

    Args:
        file: the specification; papermill_runs/README.md describes it
        dry_run: only check it and print the number of runs and minutes
        scheduler: address of a running Dask scheduler, or slurm; empty: workers on this machine
        workers: how many runs at a time; 0: as many as cores (or GPUs) and memory allow
        retry_failed: run failed runs again
        redo_changed: run finished runs again, if a module of clay_lib that they imported has changed since
        report: only write the page of the file's present specification; without a file, one page of all sweeps
    """
    from clay_lib.runs.reports import write_report

    if not (file or report):
        raise ContractError("file", "none", "papermill_runs/sweeps/NAME.yaml", "only --report works without one")
    if report and dry_run:
        raise ContractError("report, dry_run", "both", "one of them", "a dry run writes nothing, not even a page")
    spec, failed, incomplete, began = read_sweep(file) if file else None, False, False, time.time()
    if spec and not report:
        options = dict(retry_failed=retry_failed, redo_changed=redo_changed, dry_run=dry_run, runs=RUNS)
        table = run_sweep(spec, workers=workers, scheduler=scheduler, **options)
        failed = not dry_run and table["status"].isin(["failed", "died"]).any()
        incomplete = not dry_run and table["status"].isin(tables.ENDED + ("pruned",)).sum() < table.attrs["planned"]
    elif spec and (RUNS / spec.name / "sweep.json").is_file():
        write_summary(known_runs(spec, RUNS / spec.name), RUNS / spec.name)
    if not dry_run:
        tables.write_ledger(RUNS)
        print(f"Open {write_report(RUNS, spec.name if spec else None)}")
    if spec and not (report or dry_run):
        tables.record_start(RUNS / spec.name, began)
    return 1 if failed else INCOMPLETE if incomplete else 0


def run_sweep(
    spec: Sweep | str | Path,
    *,
    workers: int = 0,
    scheduler: str = "",
    retry_failed: bool = False,
    redo_changed: bool = False,
    dry_run: bool = False,
    runs: Path = RUNS,
) -> pd.DataFrame:
    """Execute the missing runs of a specification; returns its rows of the ledger.

    workers, scheduler: as for the command. Failed runs are kept as they are unless retry_failed; runs that were
    killed from outside are run again. runs: the folder above the sweep's. The table's attrs["planned"]: number of runs.
    """
    spec = spec if isinstance(spec, Sweep) else read_sweep(spec)
    home = Path(runs).resolve() / spec.name
    check_owner(spec, home)
    study, planned = None, len(spec.runs)
    if spec.search:
        if redo_changed:
            cause = "later trials follow from the old results; a copy of the file under another name searches again"
            raise ContractError("redo_changed", "a search", "a grid or a list", cause)
        study = Study(spec, home, retry_failed=retry_failed, write=not dry_run)
        spec, planned = replace(spec, runs=study.runs()), study.planned
    rows = {run.key: row for run in spec.runs if (row := tables.read_run(home / run.key))}
    done = [row for row in rows.values() if row["status"] == "done"]
    keep = {"done", "pruned"} if retry_failed else {"done", "pruned", "failed"}
    changed = tables.changed_modules(done)
    redo = {*changed} if redo_changed else set()
    todo = [run for run in spec.runs if run.key in redo or run.key not in rows or rows[run.key]["status"] not in keep]
    left = len(todo) + planned - len(spec.runs)
    _check_metrics(spec, done)
    count = workers or _worker_count(spec, left, [row["peak_mb"] or 0 for row in rows.values()])
    threads = spec.threads or (None if scheduler else max(1, cores() // count))
    forecast = tables.Forecast(spec, Path(runs), threads)
    minutes = forecast.minutes([] if study else todo, left, count) if left else 0.0
    minutes = minutes and minutes + forecast.start / 60
    known = "duration not yet measured" if minutes is None else f"about {minutes:.1f} min {forecast.source}"
    time = f"with {count} worker{'s' * (count > 1)}, {known}"
    print(plan(spec, home, rows, changed, planned, left, time, retry_failed), flush=True)
    if not dry_run:
        # Drivers on several machines may share a search: its runs and its study have locks of their own.
        with nullcontext() if study or not left else locked(home / ".lock", "sweep"):
            write_summary(spec, home)
            if left:
                waiting = iter(todo) if study is None else study.draw()
                progress = Progress(spec, [] if study else todo, left, forecast, checked=bool(done))
                workers = dict(workers=min(count, left), scheduler=scheduler, threads=threads)
                _run_all(spec, home, study, waiting, progress, redo, **workers)
        if study:
            spec, planned = replace(spec, runs=study.runs()), study.planned  # fewer than its trials, if draws repeat
            write_summary(spec, home)
    table = tables.read_ledger(runs, spec.name)
    table = table[table["run"].isin([run.key for run in spec.runs])].reset_index(drop=True)
    if not dry_run:
        print(outcome(spec, table, planned, retry_failed), flush=True)
    table.attrs["planned"] = planned
    return table


# ---- on the driver


def _run_all(
    spec: Sweep,
    home: Path,
    study: Study | None,
    runs: Iterator[Run | None],
    progress: Progress,
    redo: set[str],
    *,
    workers: int,
    scheduler: str,
    threads: int | None,
) -> None:
    """Submit runs while workers are free, and print a line as each one ends.

    runs: None stands for nothing to do until another one has ended. redo: keys of finished runs to run again.
    """
    import distributed

    devices = () if scheduler else gpus()
    deadline = time.time() + 60 * spec.minutes if spec.minutes else None
    with dask_client(scheduler, workers=workers, processes=True) as client:  # jobs, under SLURM
        wait_for_workers(client, scheduler)
        client.run(exec, "import papermill", on_error="ignore")  # seconds, which would count as those of a first run
        progress.workers = sum(client.nthreads().values()) or workers
        futures, submitted, failures = {}, 0, 0
        eager = study or spec.stop_after_failures  # these decide when a worker is free
        while True:
            slots = (sum(client.nthreads().values()) or workers) * (1 if eager else 2)
            over = (deadline and time.time() > deadline) or failures >= (spec.stop_after_failures or math.inf)
            while len(futures) < slots and not over and (run := next(runs, None)):
                task = Task(
                    sweep=spec.name,
                    script=str(spec.script),
                    source=spec.source,
                    folder=str(home / run.key),
                    run=run,
                    threads=threads,
                    timeout=spec.timeout,
                    gpus=devices,
                    deadline=deadline,
                    redo=run.key in redo,
                )
                # A pair as key makes one group of all runs, which Dask assigns one at a time.
                future = client.submit(run_task, task, key=(str(home), run.key), pure=False, priority=-submitted)
                futures[future.key], submitted = (future, run), submitted + 1
            if not futures:
                break
            with suppress(TimeoutError):
                distributed.wait([future for future, _ in futures.values()], POLL_SECONDS, "FIRST_COMPLETED")
            if study:
                study.follow()
            for future, run in [pair for pair in futures.values() if pair[0].done()]:
                del futures[future.key]
                row = _collect(future, run, spec, home)
                future.release()
                progress(run, row)
                failures += row is not None and row["status"] == "failed"
                if study:
                    study.ended(run, row)
                if row and row["status"] == "done" and not progress.checked:
                    _check_metrics(spec, [row])
                    progress.checked = True


def _collect(future, run: Run, spec: Sweep, home: Path) -> dict | None:
    """The row of a run that ended, however it ended; None: it was not started in time."""
    if future.status == "cancelled":
        cause = "start again: completed runs are kept"
        raise ContractError("scheduler", "a lost connection", "a scheduler that keeps running", cause)
    if future.status == "error" and isinstance(future.exception(), ContractError):
        raise future.exception()
    folder = home / run.key
    if future.status == "error":  # the run took every worker with it
        error = f"{type(future.exception()).__name__}: {future.exception()}"
        record = {"ok": False, "died": True, "notebook": f"{spec.script.stem}.ipynb", "error": error}
        if not (folder / "run.json").exists():
            write_json(folder / "run.json", record)
        return tables.read_run(folder)
    row = future.result()
    if row is not None and tables.read_run(folder) is None:
        found = f"results of {row['machine']} are not in {home}"
        cause = "a worker on another machine without the shared disk"
        raise ContractError("workers", found, "one folder for all workers", cause)
    return row


def _worker_count(spec: Sweep, todo: int, peaks: Sequence[float]) -> int:
    """One worker a GPU, else one for each `threads` cores, and no more than memory and runs allow."""
    by_memory = free_memory() / 2**20 / (max(peaks, default=0) or KERNEL_MB)
    by_device = len(gpus()) or cores() // (spec.threads or 1)
    return max(1, min(by_device, int(by_memory), todo))


# ---- what it prints


class Progress:
    """Prints a line as runs end: for each that did not go well, for others at most one every LINE_SECONDS."""

    def __init__(self, spec: Sweep, todo: Sequence[Run], total: int, forecast: tables.Forecast, *, checked: bool):
        self.spec, self.total, self.forecast, self.workers, self.count = spec, total, forecast, 1, 0
        self.waiting = {run.key: run for run in todo}
        self.failures: Counter = Counter()
        self.printed = -math.inf  # when
        self.checked = checked  # whether a finished run has the metrics

    def __call__(self, run: Run, row: dict | None) -> None:
        self.count += 1
        self.waiting.pop(run.key, None)
        if row is None:  # past the deadline
            return
        metric = next(iter(self.spec.metrics))
        value = row["metrics"].get(metric)
        score = f"{metric} {value:.4g}" if isinstance(value, float) else ""
        seconds = row["seconds"] or 0
        self.forecast.ended(run, tables.wall_seconds(row))
        fine = row["status"] in ("done", "pruned") and row["attempt"] in (None, 1) and not row["warnings"]
        if fine and self.count < self.total and time.monotonic() < self.printed + LINE_SECONDS:
            return
        self.printed = time.monotonic()
        left = self.forecast.minutes([*self.waiting.values()], self.total - self.count, self.workers)
        state = {"done": "ok", "pruned": "pruned"}.get(row["status"]) or row["status"].upper()
        head = f"{self.count:>4}/{self.total}  {run.key}  {_settings_text(run.settings)}"
        print(f"{head}  {state} {seconds:.1f} s  {score}  ({left:.1f} min left)", flush=True)
        if row["attempt"] and row["attempt"] > 1:
            print("      its kernel was killed before, and it ran again", flush=True)
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
    head = f"sweep {spec.name}: {planned} runs of {spec.script.stem} ({', '.join(parts)})"
    lines = [f"{head}; {left} to do {time}{limit}"]
    for metric in spec.metrics:
        leaf = metric.rpartition(" / ")[2]
        if f'"{leaf}"' not in spec.source and f"'{leaf}'" not in spec.source:  # it may be put together while it runs
            lines.append(f"metric {metric!r} does not occur in the code of {spec.script.name}: is it misspelled?")
    if changed:
        modules = _few(sorted({name.removeprefix("clay_lib.") for names in changed.values() for name in names}))
        state = f"another state of clay_lib (changed: {modules})"
        lines.append(f"{_finished(len(changed))} of {state}: --redo-changed runs them again")
    folders = [] if spec.search else [p.parent for p in home.glob("*/run.json") if p.parent.name not in rows]
    others = [row for folder in folders if (row := tables.read_run(folder)) and row["status"] == "done"]
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
    lines += tables.runs_without(table, spec.metrics)
    lost = table[table["status"].isin(["failed", "died"])]
    for (status, cell, error), group in lost.groupby(["status", "failed_cell", "error"], sort=False, dropna=False):
        row = group.iloc[0]
        count = f"{len(group)} runs, such as " if len(group) > 1 else ""
        lines.append(f"{status.upper()} {count}{row['run']} in {cell if isinstance(cell, str) else 'no cell'}: {error}")
        lines.append(f"  again: {command_of(spec, read_json(Path(row['folder'], 'parameters.json'))['parameters'])}")
    if len(warned := table[table["warnings"].fillna("") != ""]):
        for message, group in warned.groupby("warnings", sort=False):
            count = f"{len(group)} run{'s' * (len(group) > 1)}"
            lines.append(f"WARNING in {count}, such as {group['run'].iloc[0]}: {message}")
    if counts["failed"] and not retried:
        lines.append("failed runs are kept as they are; --retry-failed runs them again")
    if missing := planned - sum(counts[status] for status in ("done", "pruned", "failed", "died")):
        lines.append(f"{missing} not started or cut short: the same command continues")
    return "\n".join(lines)


# ---- on a worker


@dataclass(frozen=True)
class Task:
    """All that a worker needs, with absolute paths, since its working directory may be another one."""

    sweep: str
    script: str
    source: str
    folder: str
    run: Run
    threads: int | None
    timeout: float | None
    gpus: tuple[str, ...]  # shared among the workers of one machine; empty: as the worker was started
    deadline: float | None  # Unix time after which no run begins
    redo: bool = False  # although it is finished


def run_task(task: Task) -> dict | None:
    """One run in its folder, unless it is complete already. Its row, or None: the deadline has passed.

    A lock and the check within it make sure that a run given to two workers is done only once.
    """
    folder = Path(task.folder)
    make_folder(folder)
    record, started = folder / "run.json", time.time()
    with locked(folder / ".lock", "run", wait=True):
        row = tables.read_run(folder)
        for attempt in range(1, KERNEL_ATTEMPTS + 1):
            recent = row is not None and record.exists() and record.stat().st_mtime > started
            final = ("done", "pruned", "failed") if recent else ("done", "pruned")
            # recent: by another worker that had been considered dead
            if row and row["status"] in final and (recent or not task.redo):
                break
            if task.deadline and time.time() > task.deadline:
                return None
            settings = task.run.settings
            request = {"sweep": task.sweep, "notebook": Path(task.script).stem, "library": library_hash()}
            request |= {"settings": settings, "parameters": task.run.parameters}
            _clear(folder, request)
            write_json(folder / "parameters.json", request)
            run_notebook(
                Path(task.script),
                folder,
                task.run.parameters,
                timeout=task.timeout,
                threads=task.threads,
                out=folder,
                source=task.source,
                env=_own_gpu(task.gpus) | {RUN_FOLDER: str(folder)},
                extra={"settings": settings, "attempt": attempt},
            )
            row = tables.read_run(folder)
            if row["status"] != "died":
                break
    return row


def _clear(folder: Path, request: Mapping) -> None:
    """Remove what an earlier attempt left, but for the checkpoints of one with the same parameters and clay_lib."""
    same = read_json(folder / "parameters.json") == json.loads(json.dumps(request))
    kept = (".lock", *(("checkpoints", "log", REPORTED) if same else ()))
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _own_gpu(gpus: Sequence[str]) -> dict[str, str]:
    """One GPU for each worker of this machine, in turn."""
    from distributed import get_worker

    return {"CUDA_VISIBLE_DEVICES": gpus[int(get_worker().name) % len(gpus)]} if gpus else {}


def _check_metrics(spec: Sweep, rows: Sequence[dict]) -> None:
    """Refuse a metric that is text in finished runs, or that none of them has."""
    for metric in spec.metrics:
        where = f"sweep {spec.name!r}: metric {metric!r}"
        written = sorted({name for row in rows for name in row["metrics"]})
        if text := [row["metrics"][metric] for row in rows if isinstance(row["metrics"].get(metric), str)]:
            cause = "a text cannot be ranked; the runs are kept, name another metric and start again"
            raise ContractError(where, f"the text {text[0]!r}", "a number", cause)
        if rows and metric not in written:
            cause = "a misspelled name; the runs are kept, fix the specification and start again"
            raise ContractError(where, "a finished run without it", f"one of {written}", cause)
