"""Sweeps: the runs of a specification over Dask workers, one kernel each, resumable at any point.

The only state is the runs' folders, so the same command continues where the last one stopped.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from clay_lib.cluster import cores, dask_client
from clay_lib.errors import ContractError
from clay_lib.files import locked, make_folder, read_json, write_json
from clay_lib.runs.notebooks import RUN_FOLDER, RUNS, read_script, run_notebook
from clay_lib.runs.parameters import declared_metrics
from clay_lib.runs.profiles import read_profile
from clay_lib.runs.search import Study, known_runs
from clay_lib.runs.specification import Run, Sweep, read_sweep
from clay_lib.runs.tables import ENDED, read_ledger, read_run, runs_without, write_ledger

if TYPE_CHECKING:
    import pandas as pd

KERNEL_MB = 1000  # assumed memory of a run until one has been measured
INCOMPLETE = 3  # exit code: nothing failed, but the budget of minutes left runs that were not begun
POLL_SECONDS = 0.5  # between two looks at what the runs report
KERNEL_ATTEMPTS = 2  # within one start, for a run whose kernel was killed from outside


def sweep(
    file: str = "",
    *,
    dry_run: bool = False,
    scheduler: str = "",
    workers: int = 0,
    retry_failed: bool = False,
    report: bool = False,
) -> int:
    """Run a notebook over a grid, a list or a search of parameters; the same command resumes after a kill.

    Example: clay sweep papermill_runs/sweeps/example.yaml --dry-run

    Args:
        file: the specification; papermill_runs/README.md describes it
        dry_run: only check it and print the number of runs and minutes
        scheduler: address of a running Dask scheduler, or slurm; empty: workers on this machine
        workers: how many runs at a time; 0: as many as cores (or GPUs) and memory allow
        retry_failed: run failed runs again
        report: only write the page of the file's present specification; without a file, one page of all sweeps
    """
    from clay_lib.runs.reports import write_report

    if not (file or report):
        raise ContractError("file", "none", "papermill_runs/sweeps/NAME.yaml", "only --report works without one")
    if report and dry_run:
        raise ContractError("report, dry_run", "both", "one of them", "a dry run writes nothing, not even a page")
    spec, failed, incomplete = read_sweep(file) if file else None, False, False
    if spec and not report:
        options = dict(workers=workers, scheduler=scheduler, retry_failed=retry_failed, dry_run=dry_run)
        table = run_sweep(spec, **options, runs=RUNS)
        failed = not dry_run and table["status"].isin(["failed", "died"]).any()
        incomplete = not dry_run and (table["status"].isin(ENDED + ("pruned",)).sum() < len(spec.runs))
    elif spec and (RUNS / spec.name / "sweep.json").is_file():
        write_summary(known_runs(spec, RUNS / spec.name), RUNS / spec.name)
    if not dry_run:
        write_ledger(RUNS)
        print(f"Open {write_report(RUNS, spec.name if spec else None)}")
    return 1 if failed else INCOMPLETE if incomplete else 0


def run_sweep(
    spec: Sweep | str | Path,
    *,
    workers: int = 0,
    scheduler: str = "",
    retry_failed: bool = False,
    dry_run: bool = False,
    runs: Path = RUNS,
) -> pd.DataFrame:
    """Execute the missing runs of a specification; returns its rows of the ledger.

    workers, scheduler: as for the command. Failed runs are kept as they are unless retry_failed; runs that were
    killed from outside are run again. runs: the folder above the sweep's.
    """
    spec = spec if isinstance(spec, Sweep) else read_sweep(spec)
    home = Path(runs).resolve() / spec.name
    study, planned = None, len(spec.runs)
    if spec.search:
        study = Study(spec, home, retry_failed=retry_failed, write=not dry_run)
        spec, planned = replace(spec, runs=study.runs()), study.planned
    rows = {run.key: read_run(home / run.key) for run in spec.runs}
    states = {key: row["status"] if row else "new" for key, row in rows.items()}
    keep = {"done", "pruned"} if retry_failed else {"done", "pruned", "failed"}
    todo = [run for run in spec.runs if states[run.key] not in keep]
    left = len(todo) + planned - len(spec.runs)
    _check_metrics(spec, [row for row in rows.values() if row and row["status"] == "done"])
    count = workers or _worker_count(spec, left, [row["peak_mb"] or 0 for row in rows.values() if row])
    print(_forecast(spec, states, planned, left, Path(runs), count, retry_failed), flush=True)
    if not dry_run:
        # Drivers on several machines may share a search: its runs and its study have locks of their own.
        with nullcontext() if study or not left else locked(home / ".lock", "sweep"):
            write_summary(spec, home)
            if left:
                _run_all(spec, home, study, iter(todo) if study is None else study.draw(), left, count, scheduler)
        if study:
            spec = replace(spec, runs=study.runs())
            write_summary(spec, home)
            rows = [run.key for run in spec.runs]
    table = read_ledger(runs, spec.name)
    table = table[table["run"].isin(list(rows))].reset_index(drop=True)
    if not dry_run:
        print(_outcome(spec, table, planned, retry_failed), flush=True)
    return table


# ---- on the driver


def _run_all(
    spec: Sweep, home: Path, study: Study | None, runs: Iterator[Run | None], total: int, count: int, scheduler: str
) -> None:
    """Submit runs while workers are free, and print a line as each one ends.

    runs: None stands for nothing to do until another one has ended. total: how many there may be.
    """
    import distributed

    local, gpus = not scheduler, _gpus()
    threads = spec.threads or (max(1, cores() // count) if local else None)
    deadline = time.time() + 60 * spec.minutes if spec.minutes else None
    with dask_client(scheduler, workers=min(count, total), processes=True) as client:  # jobs, under SLURM
        _wait_for_workers(client, scheduler)
        progress = _Progress(spec, total, sum(client.nthreads().values()) or count)
        futures, submitted, failures = {}, 0, 0
        eager = study or spec.stop_after_failures  # these decide when a worker is free
        while True:
            slots = (sum(client.nthreads().values()) or count) * (1 if eager else 2)
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
                    gpus=gpus if local else (),
                    deadline=deadline,
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
                if row and row["status"] == "done":
                    _check_metrics(spec, [row])


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
        return read_run(folder)
    row = future.result()
    if row is not None and read_run(folder) is None:
        found = f"results of {row['machine']} are not in {home}"
        cause = "a worker on another machine without the shared disk"
        raise ContractError("workers", found, "one folder for all workers", cause)
    return row


def _wait_for_workers(client, scheduler: str, seconds: float = 120) -> None:
    if scheduler == "slurm":  # the queue decides when
        return
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError:
        found = f"none at {scheduler or 'this machine'} within {seconds:g} s"
        raise ContractError("workers", found, "at least one", "a scheduler without workers") from None


def _gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, by number or name."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name for name in visible.split(",") if name.strip() and name.strip() != "-1")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(i) for i in range(len(lines))) if listed.returncode == 0 else ()


def _worker_count(spec: Sweep, todo: int, peaks: Sequence[float]) -> int:
    """One worker a GPU, else one for each `threads` cores, and no more than memory and runs allow."""
    import psutil

    by_memory = psutil.virtual_memory().available / 2**20 / (max(peaks, default=0) or KERNEL_MB)
    by_device = len(_gpus()) or cores() // (spec.threads or 1)
    return max(1, min(by_device, int(by_memory), todo))


def write_summary(spec: Sweep, home: Path) -> None:
    """sweep.json: what the report needs besides the runs."""
    keys = [run.key for run in spec.runs]
    summary = {"runs": keys, "metrics": spec.metrics, "seed": spec.seed, "varied": spec.varied}
    summary["confirmed"] = spec.confirm.seeds if spec.confirm else []
    write_json(home / "sweep.json", {**summary, "specification": spec.specification})


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


def run_task(task: Task) -> dict | None:
    """One run in its folder, unless it is complete already. Its row, or None: the deadline has passed.

    A lock and the check within it make sure that a run given to two workers is done only once.
    """
    folder = Path(task.folder)
    make_folder(folder)
    record, started = folder / "run.json", time.time()
    with locked(folder / ".lock", "run", wait=True):
        row = read_run(folder)
        for _ in range(KERNEL_ATTEMPTS):
            recent = row is not None and record.exists() and record.stat().st_mtime > started
            if row is not None and (row["status"] in ("done", "pruned") or (recent and row["status"] == "failed")):
                break  # `recent`: done by another worker that had been considered dead
            if task.deadline and time.time() > task.deadline:
                return None
            _clear(folder)
            settings, parameters = task.run.settings, task.run.parameters
            request = {"sweep": task.sweep, "notebook": Path(task.script).stem}
            write_json(folder / "parameters.json", {**request, "settings": settings, "parameters": parameters})
            run_notebook(
                Path(task.script),
                folder,
                parameters,
                timeout=task.timeout,
                threads=task.threads,
                out=folder,
                source=task.source,
                env=_own_gpu(task.gpus) | {RUN_FOLDER: str(folder)},
                extra={"settings": settings},
            )
            row = read_run(folder)
            if row["status"] != "died":
                break
    return row


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _own_gpu(gpus: Sequence[str]) -> dict[str, str]:
    """One GPU for each worker of this machine, in turn."""
    from distributed import get_worker

    return {"CUDA_VISIBLE_DEVICES": gpus[int(get_worker().name) % len(gpus)]} if gpus else {}


# ---- messages


class _Progress:
    """Prints a line for each run that ended."""

    def __init__(self, spec: Sweep, total: int, workers: int):
        self.spec, self.total, self.workers, self.count, self.seconds = spec, total, workers, 0, 0.0
        self.failures: Counter = Counter()

    def __call__(self, run: Run, row: dict | None) -> None:
        self.count += 1
        if row is None:  # past the deadline
            return
        metric = next(iter(self.spec.metrics))
        value = row["metrics"].get(metric)
        score = f"{metric} {value:.4g}" if isinstance(value, float) else ""
        seconds = row["seconds"] or 0
        self.seconds += seconds
        left = self.seconds / self.count * (self.total - self.count) / self.workers / 60
        plain = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in run.settings.items()}
        settings = " ".join(f"{k}={v}" for k, v in plain.items()) or "as given"
        state = {"done": "ok", "pruned": "pruned"}.get(row["status"]) or row["status"].upper()
        head = f"{self.count:>4}/{self.total}  {run.key}  {settings}"
        print(f"{head}  {state} {seconds:.1f} s  {score}  ({left:.1f} min left)", flush=True)
        if row["warnings"]:
            print(f"      did not hold: {row['warnings']}", flush=True)
        if row["status"] not in ("done", "pruned"):
            message = f"in {row['failed_cell'] or 'no cell'}: {row['error']}"
            self.failures[message] += 1
            again = self.failures[message] > 1
            print(f"      {'the same failure' if again else message}\n      see {row['folder']}", flush=True)


def _forecast(spec: Sweep, states: dict, planned: int, todo: int, runs: Path, workers: int, retry: bool) -> str:
    """Number of runs and minutes, from earlier runs (of this sweep, if there are any), else as a profile states them."""
    counts = Counter(states.values())
    parts = [f"{counts['done']} done"] + [
        f"{counts[s]} {s}" for s in ("pruned", "failed", "died", "unfinished") if counts[s]
    ]
    if spec.over_budget:
        parts.append(f"{spec.over_budget} beyond the budget of runs")
    if counts["failed"] and not retry:
        parts[-1] += "; failed ones are kept: --retry-failed"
    earlier = read_ledger(runs)
    earlier = earlier[(earlier["status"] == "done") & (earlier["notebook"] == spec.script.stem)]
    own = earlier[earlier["sweep"] == spec.name]
    if len(earlier):
        similar = own if len(own) else earlier
        minutes, source = similar["seconds"].mean() / 60, f"by {len(similar)} earlier runs"
    else:
        minutes = spec.expected_minutes or read_profile("demo").minutes.get(spec.script.stem)
        source = "by the profile" if spec.expected_minutes else "by the demo profile"
    duration = "duration not yet measured" if minutes is None else f"about {todo * minutes / workers:.1f} min {source}"
    limit = f", of which {spec.minutes:g} are allowed" if spec.minutes else ""
    others = int((~own["run"].isin(list(states))).sum())
    kept = (
        f"\n{others} finished runs in its folder are of other settings, or another state of the notebook: not counted"
    )
    return (
        f"sweep {spec.name}: {planned} runs of {spec.script.stem} ({', '.join(parts)}); "
        f"{todo} to do with {workers} worker{'s' * (workers > 1)}, {duration}{limit}"
    ) + (kept if others and not spec.search else "")


def _outcome(spec: Sweep, table: pd.DataFrame, planned: int, retried: bool) -> str:
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
    values = shlex.quote(yaml.safe_dump(parameters, default_flow_style=True, width=math.inf).strip())  # for YAML 1.1
    return f"jupytext --to ipynb {shlex.quote(str(spec.script))} -o - | papermill - run.ipynb -y {values}"


def _check_metrics(spec: Sweep, rows: Sequence[dict]) -> None:
    """Refuse a metric that is text, or missing in finished runs of a notebook whose source does not declare its metrics."""
    declared = declared_metrics(read_script(spec.script, spec.source)) is not None
    for metric in spec.metrics:
        where = f"sweep {spec.name!r}: metric {metric!r}"
        text = [row["metrics"][metric] for row in rows if isinstance(row["metrics"].get(metric), str)]
        if text:
            cause = "a text cannot be ranked; the runs are kept, name another metric and start again"
            raise ContractError(where, f"the text {text[0]!r}", "a number", cause)
        if rows and not declared and not any(metric in row["metrics"] for row in rows):
            written = sorted({name for row in rows for name in row["metrics"]})
            cause = "a misspelled name; the runs are kept, fix the specification and start again"
            raise ContractError(where, "a finished run without it", f"one of {written}", cause)
