"""Sweeps: the runs of a specification over Dask workers, one kernel each, resumable at any point.

The only state is the runs' folders, so the same command continues where the last one stopped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clay_lib.cluster import cores, dask_client, free_memory
from clay_lib.errors import ContractError
from clay_lib.files import locked, make_folder, read_json, write_json
from clay_lib.runs.notebooks import (
    REPORTED,
    RUN_FOLDER,
    RUNS,
    library_hash,
    module_hashes,
    read_script,
    run_notebook,
)
from clay_lib.runs.parameters import declared_metrics
from clay_lib.runs.progress import Forecast, Progress, outcome, plan
from clay_lib.runs.search import Study, known_runs
from clay_lib.runs.specification import Run, Sweep, check_owner, read_sweep
from clay_lib.runs.tables import ENDED, read_ledger, read_run, write_ledger

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
    spec, failed, incomplete = read_sweep(file) if file else None, False, False
    if spec and not report:
        options = dict(retry_failed=retry_failed, redo_changed=redo_changed, dry_run=dry_run, runs=RUNS)
        table = run_sweep(spec, workers=workers, scheduler=scheduler, **options)
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
    redo_changed: bool = False,
    dry_run: bool = False,
    runs: Path = RUNS,
) -> pd.DataFrame:
    """Execute the missing runs of a specification; returns its rows of the ledger.

    workers, scheduler: as for the command. Failed runs are kept as they are unless retry_failed; runs that were
    killed from outside are run again. runs: the folder above the sweep's.
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
    rows = {run.key: row for run in spec.runs if (row := read_run(home / run.key))}
    done = [row for row in rows.values() if row["status"] == "done"]
    keep = {"done", "pruned"} if retry_failed else {"done", "pruned", "failed"}
    changed = changed_modules(done)
    redo = {*changed} if redo_changed else set()
    todo = [run for run in spec.runs if run.key in redo or run.key not in rows or rows[run.key]["status"] not in keep]
    left = len(todo) + planned - len(spec.runs)
    _check_metrics(spec, done)
    count = workers or _worker_count(spec, left, [row["peak_mb"] or 0 for row in rows.values()])
    threads = spec.threads or (None if scheduler else max(1, cores() // count))
    forecast = Forecast(spec, Path(runs), threads)
    minutes = forecast.minutes([] if study else todo, left, count) if left else 0.0
    time = f"with {count} worker{'s' * (count > 1)}, " + (
        "duration not yet measured" if minutes is None else f"about {minutes:.1f} min {forecast.source}"
    )
    print(plan(spec, home, rows, changed, planned, left, time, retry_failed), flush=True)
    if not dry_run:
        # Drivers on several machines may share a search: its runs and its study have locks of their own.
        with nullcontext() if study or not left else locked(home / ".lock", "sweep"):
            write_summary(spec, home)
            if left:
                waiting = iter(todo) if study is None else study.draw()
                progress = Progress(spec, [] if study else todo, left, forecast)
                workers = dict(workers=min(count, left), scheduler=scheduler, threads=threads)
                _run_all(spec, home, study, waiting, progress, redo, **workers)
        if study:
            spec = replace(spec, runs=study.runs())
            write_summary(spec, home)
    table = read_ledger(runs, spec.name)
    table = table[table["run"].isin([run.key for run in spec.runs])].reset_index(drop=True)
    if not dry_run:
        print(outcome(spec, table, planned, retry_failed), flush=True)
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

    local, gpus = not scheduler, _gpus()
    deadline = time.time() + 60 * spec.minutes if spec.minutes else None
    with dask_client(scheduler, workers=workers, processes=True) as client:  # jobs, under SLURM
        _wait_for_workers(client, scheduler)
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
                    gpus=gpus if local else (),
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
    by_memory = free_memory() / 2**20 / (max(peaks, default=0) or KERNEL_MB)
    by_device = len(_gpus()) or cores() // (spec.threads or 1)
    return max(1, min(by_device, int(by_memory), todo))


def write_summary(spec: Sweep, home: Path) -> None:
    """sweep.json: what the report needs besides the runs."""
    keys = [run.key for run in spec.runs]
    summary = {"runs": keys, "metrics": spec.metrics, "seed": spec.seed, "varied": spec.varied}
    summary["file"] = str(spec.file) if spec.file else None
    summary["confirmed"] = spec.confirm.seeds if spec.confirm else []
    write_json(home / "sweep.json", {**summary, "specification": spec.specification})


def changed_modules(rows: Sequence[Mapping]) -> dict[str, list[str]]:
    """Key of a run: the modules of clay_lib that it imported and that are different now."""
    library, now = library_hash(), module_hashes(name for row in rows for name in row["modules"])
    changed = {row["run"]: [name for name, code in row["modules"].items() if code != now[name]] for row in rows}
    for row in rows:
        if not row["modules"] and row["library"] != library:  # of a version that did not record them
            changed[row["run"]] = ["clay_lib"]
    return {key: names for key, names in changed.items() if names}


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
        row = read_run(folder)
        for _ in range(KERNEL_ATTEMPTS):
            recent = row is not None and record.exists() and record.stat().st_mtime > started
            ended = row is not None and row["status"] in (
                ("done", "pruned", "failed") if recent else ("done", "pruned")
            )
            if ended and (recent or not task.redo):  # recent: by another worker that had been considered dead
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
                extra={"settings": settings},
            )
            row = read_run(folder)
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
