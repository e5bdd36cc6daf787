"""Sweeps: the runs of a specification over Dask workers, one kernel each, to be killed and gone on with at any moment.

Nothing is remembered but the runs' folders, so the same command goes on where the last one stopped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from clay_lib.cluster import cores, dask_client
from clay_lib.errors import ContractError
from clay_lib.files import write_json
from clay_lib.runs import tables
from clay_lib.runs.notebooks import RUNS, read_script, run_notebook
from clay_lib.runs.profiles import read_profile
from clay_lib.runs.specification import Run, Sweep, promised_metrics, read_sweep
from clay_lib.runs.tables import lacking

AGAIN = 2  # tries of a run whose kernel was killed from outside, in one start


@dataclass(frozen=True)
class Task:
    """All that a worker needs, with whole paths, since it may stand in another folder."""

    sweep: str
    script: str
    source: str
    folder: str
    run: Run
    threads: int | None
    timeout: float | None
    gpus: tuple[str, ...]  # dealt out among the workers of one machine; empty: as the worker was started
    until: float | None  # Unix time after which no run begins


def run_one(task: Task) -> dict | None:
    """On a worker: one run, unless it is whole already. Its row, or None: the time to begin has passed."""
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with locked(folder / ".lock"):
        row = tables.read_run(folder)
        for _ in range(AGAIN):
            fresh = row is not None and (folder / "run.json").exists() and (folder / "run.json").stat().st_mtime > began
            if row is not None and (row["status"] == "done" or (fresh and row["status"] == "failed")):
                break  # the second is by another worker, that had been thought dead
            if task.until and time.time() > task.until:
                return None
            _clear(folder)
            asked = {"sweep": task.sweep, "notebook": Path(task.script).stem}
            write_json(
                folder / "parameters.json", {**asked, "settings": task.run.settings, "parameters": task.run.parameters}
            )
            run_notebook(
                Path(task.script), folder, task.run.parameters, timeout=task.timeout, threads=task.threads, out=folder,
                source=task.source, env=_dealt(task.gpus), about={"settings": task.run.settings},
            )  # fmt: skip
            row = tables.read_run(folder)
            if row["status"] != "died":
                break
    return row


def _clear(folder: Path) -> None:
    for old in folder.iterdir():
        if old.name != ".lock":
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()


def _dealt(gpus: Sequence[str]) -> dict[str, str]:
    """One GPU for each worker of this machine, in turn."""
    from distributed import get_worker

    return {"CUDA_VISIBLE_DEVICES": gpus[int(get_worker().name) % len(gpus)]} if gpus else {}


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a file's lock, which the system takes back from whoever dies. Where there are no locks, go without."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise ContractError(
                        "sweep",
                        f"another start of it is at work in {path.parent}",
                        "one at a time",
                        "it still runs elsewhere",
                    ) from None
                time.sleep(0.2)
            except OSError:  # a shared disk that knows no locks
                break
        yield


# ---- Sweeps: the runs of a specification over Dask workers, one kernel each, to be killed and gone on wit ----

KERNEL_MB = 1000  # taken for a run's memory until one has been measured


def sweep(
    file: str = "",
    *,
    dry_run: bool = False,
    scheduler: str = "",
    workers: int = 0,
    retry_failed: bool = False,
    report: bool = False,
) -> int:
    """Run a notebook over a grid, a list or random draws of parameters; the same line goes on after a kill.

    Example: clay sweep papermill_runs/sweeps/example.yaml --dry-run

    Args:
        file: the specification, as papermill_runs/README.md tells it
        dry_run: check it and tell how many runs and minutes, no more
        scheduler: address of a running Dask scheduler, or slurm; empty: workers on this machine
        workers: how many runs at a time; 0: as many as cores (or GPUs) and memory allow
        retry_failed: run what failed once more
        report: only write the page, of what the file asks for now; without a file, one page of all sweeps
    """
    from clay_lib.runs.report import write_report

    if not (file or report):
        raise ContractError("file", "none", "papermill_runs/sweeps/NAME.yaml", "only --report goes without one")
    if report and dry_run:
        raise ContractError("report, dry_run", "both", "one of them", "a dry run leaves nothing, not even a page")
    asked = read_sweep(file) if file else None
    table = pd.DataFrame({"status": []})
    if asked and not report:
        table = run_sweep(
            asked, workers=workers, scheduler=scheduler, retry_failed=retry_failed, dry_run=dry_run, runs=RUNS
        )
    elif asked and (RUNS / asked.name / "sweep.json").is_file():
        _remember(asked, RUNS / asked.name)
    if not dry_run:
        tables.write_ledger(RUNS)
        print(f"Open {write_report(RUNS, asked.name if asked else None)}")
    return 1 if not dry_run and table["status"].isin(["failed", "died"]).any() else 0


def run_sweep(
    asked: Sweep | str | Path,
    *,
    workers: int = 0,
    scheduler: str = "",
    retry_failed: bool = False,
    dry_run: bool = False,
    runs: Path = RUNS,
) -> pd.DataFrame:
    """Do the runs of a specification that are not done yet; the ledger's rows of the specification, as they are after.

    workers, scheduler: as the command's. What failed before is left as it is unless retry_failed; what was killed
    from outside is done again. runs: the folder above the sweep's.
    """
    asked = asked if isinstance(asked, Sweep) else read_sweep(asked)
    home = Path(runs).resolve() / asked.name
    rows = {run.key: tables.read_run(home / run.key) for run in asked.runs}
    states = {key: row["status"] if row else "new" for key, row in rows.items()}
    leave = {"done"} if retry_failed else {"done", "failed"}
    todo = [run for run in asked.runs if states[run.key] not in leave]
    _metrics_written(asked, [row for row in rows.values() if row and row["status"] == "done"])
    count = workers or _as_many_as_fit(asked, len(todo), [row["peak_mb"] or 0 for row in rows.values() if row])
    print(_forecast(asked, states, todo, Path(runs), count, retry_failed), flush=True)
    if todo and not dry_run:
        home.mkdir(parents=True, exist_ok=True)
        with locked(home / ".lock", wait=False):
            _remember(asked, home)
            _run(asked, home, todo, count, scheduler)
    elif not dry_run:
        _remember(asked, home)
    table = tables.read_ledger(runs, asked.name)
    table = table[table["run"].isin(list(rows))].reset_index(drop=True)
    if not dry_run:
        print(_outcome(asked, table, retry_failed), flush=True)
    return table


# ---- on the driver


def _run(asked: Sweep, home: Path, todo: Sequence[Run], count: int, scheduler: str) -> None:
    """Hand the runs to workers and tell of each as it ends."""
    from distributed import as_completed

    here, gpus = not scheduler, _gpus()
    threads = asked.threads or (max(1, cores() // count) if here else None)
    until = time.time() + 60 * asked.minutes if asked.minutes else None
    with dask_client(scheduler, workers=min(count, len(todo)), processes=True) as client:  # jobs, under SLURM
        _wait_for_workers(client, scheduler)
        tell = _Teller(asked, len(todo), sum(client.nthreads().values()) or count)
        futures = {}
        for place, run in enumerate(todo):
            task = Task(asked.name, str(asked.script), asked.source, str(home / run.key), run,
                        threads, asked.timeout, gpus if here else (), until)  # fmt: skip
            # A pair as key makes one group of all runs, which Dask hands out one at a time.
            future = client.submit(run_one, task, key=(str(home), run.key), pure=False, priority=-place)
            futures[future.key] = (future, run)
        for future in as_completed([future for future, _ in futures.values()]):
            run = futures.pop(future.key)[1]
            if future.status == "cancelled":
                raise ContractError(
                    "scheduler", "it went away", "a scheduler that stays", "start again: what is done is kept"
                )
            if future.status == "error" and isinstance(future.exception(), ContractError):
                raise future.exception()
            if future.status == "error":
                row = _lost(home / run.key, run, asked, future.exception())
            elif (row := future.result()) is not None and tables.read_run(home / run.key) is None:
                raise ContractError(
                    "workers",
                    f"results of {row['machine']} are not in {home}",
                    "one folder for all workers",
                    "a worker on another machine without the shared disk",
                )
            future.release()
            tell(run, row)
            if row and row["status"] == "done":
                _metrics_written(asked, [row])


def _wait_for_workers(client, scheduler: str, seconds: float = 120) -> None:
    if scheduler == "slurm":  # the queue decides when
        return
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError:
        raise ContractError(
            "workers",
            f"none at {scheduler or 'this machine'} within {seconds:g} s",
            "one at least",
            "a scheduler without workers",
        ) from None


def _lost(folder: Path, run: Run, asked: Sweep, error: BaseException) -> dict:
    """A run that took every worker with it, kept as one that died."""
    told = {
        "ok": False,
        "died": True,
        "notebook": f"{asked.script.stem}.ipynb",
        "error": f"{type(error).__name__}: {error}",
    }
    if not (folder / "run.json").exists():
        write_json(folder / "run.json", told)
    return tables.read_run(folder)


def _gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, by number or name."""
    if (told := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name for name in told.split(",") if name.strip() and name.strip() != "-1")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(i) for i in range(len(lines))) if listed.returncode == 0 else ()


def _as_many_as_fit(asked: Sweep, todo: int, peaks: Sequence[float]) -> int:
    """Workers: one a GPU, else one for each `threads` cores, and no more than memory and runs allow."""
    import psutil

    memory = psutil.virtual_memory().available / 2**20 / (max(peaks, default=0) or KERNEL_MB)
    most = len(_gpus()) or cores() // (asked.threads or 1)
    return max(1, min(most, int(memory), todo))


# ---- what is said


class _Teller:
    """A line for each run that ended."""

    def __init__(self, asked: Sweep, total: int, workers: int):
        self.asked, self.total, self.workers, self.told, self.seconds = asked, total, workers, 0, 0.0

    def __call__(self, run: Run, row: dict | None) -> None:
        self.told += 1
        if row is None:  # it was too late to begin
            return
        metric = next(iter(self.asked.metrics))
        value = row["metrics"].get(metric)
        found = f"{metric} {value:.4g}" if isinstance(value, float) else ""
        self.seconds += row["seconds"] or 0
        left = self.seconds / self.told * (self.total - self.told) / self.workers / 60
        settings = " ".join(f"{k}={v}" for k, v in run.settings.items()) or "as given"
        state = "ok" if row["status"] == "done" else row["status"].upper()
        print(
            f"{self.told:>4}/{self.total}  {run.key}  {settings}  {state} {row['seconds'] or 0:.1f} s  {found}  "
            f"({left:.1f} min left)",
            flush=True,
        )
        if row["status"] != "done":
            print(f"      in {row['failed_cell'] or 'no cell'}: {row['error']}\n      see {row['folder']}", flush=True)


def _forecast(asked: Sweep, states: dict, todo: Sequence[Run], runs: Path, workers: int, retry: bool) -> str:
    """Runs and minutes: as earlier runs took, those of this sweep first, else as a profile tells."""
    found = Counter(states.values())
    parts = [f"{found['done']} done"] + [f"{found[s]} {s}" for s in ("failed", "died", "unfinished") if found[s]]
    if asked.left_out:
        parts.append(f"{asked.left_out} beyond the budget of runs")
    earlier = tables.read_ledger(runs)
    earlier = earlier[(earlier["status"] == "done") & (earlier["notebook"] == asked.script.stem)]
    own = earlier[earlier["sweep"] == asked.name]
    if len(earlier):
        each, source = (
            (own if len(own) else earlier)["seconds"].mean() / 60,
            f"as {len(own) or len(earlier)} earlier runs",
        )
    else:
        each = asked.forecast or read_profile("demo")["minutes"].get(asked.script.stem)
        source = "as the profile tells" if asked.forecast else "as the demo takes"
    about = "duration not yet measured" if each is None else f"about {len(todo) * each / workers:.1f} min {source}"
    most = f", of which {asked.minutes:g} are allowed" if asked.minutes else ""
    again = "" if retry or not found["failed"] else "; failed ones are left: --retry-failed"
    return (
        f"sweep {asked.name}: {len(asked.runs)} runs of {asked.script.stem} ({', '.join(parts)}{again}); "
        f"{len(todo)} to do with {workers} worker{'s' * (workers > 1)}, {about}{most}"
    )


def _outcome(asked: Sweep, table: pd.DataFrame, retried: bool) -> str:
    found = Counter(table["status"])
    lines = [f"{found['done']} of {len(asked.runs)} runs done, {table['seconds'].sum() / 60:.1f} min of kernels in all"]
    lines += lacking(table, asked.metrics)
    for row in table[table["status"].isin(["failed", "died"])].itertuples():
        lines.append(f"{row.status.upper()} {row.run} in {row.failed_cell or 'no cell'}: {row.error}")
    if found["failed"] and not retried:
        lines.append("failed runs are kept as they are; --retry-failed runs them again")
    if missing := len(asked.runs) - found["done"] - found["failed"] - found["died"]:
        lines.append(f"{missing} not begun or cut short: the same command goes on")
    return "\n".join(lines)


def _metrics_written(asked: Sweep, rows: Sequence[dict]) -> None:
    """Refuse a metric that is text, and one that finished runs lack where the source leaves open what it writes."""
    for metric in asked.metrics:
        text = [row["metrics"][metric] for row in rows if isinstance(row["metrics"].get(metric), str)]
        if text:
            raise ContractError(
                f"sweep {asked.name!r}: metric {metric!r}",
                f"the text {text[0]!r}",
                "a number",
                "a text cannot be ranked; the runs are kept, name another metric and start again",
            )
    if not rows or promised_metrics(read_script(asked.script, asked.source)) is not None:
        return
    for metric in asked.metrics:
        if not any(metric in row["metrics"] for row in rows):
            written = sorted({name for row in rows for name in row["metrics"]})
            raise ContractError(
                f"sweep {asked.name!r}: metric {metric!r}",
                "a finished run without it",
                f"one of {written}",
                "a misspelt name; the runs are kept, mend the specification and start again",
            )


def _remember(asked: Sweep, home: Path) -> None:
    """sweep.json: what the report must know beside the runs."""
    told = {"told": asked.told, "metrics": asked.metrics, "seed": asked.seed, "varied": asked.varied}
    write_json(home / "sweep.json", {"runs": [run.key for run in asked.runs], **told})
