"""What a sweep's worker does: one run in its folder, under the folder's lock, whole or to be done again.

What is whole there already is left as it is, so that a run that two workers were given is still done once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clay_lib import ledger
from clay_lib.contract import ContractError
from clay_lib.files import write_json
from clay_lib.runner import run_notebook
from clay_lib.specification import Run

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
        row = ledger.read_run(folder)
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
            row = ledger.read_run(folder)
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
                        found=f"another start of it is at work in {path.parent}",
                        expected="one at a time",
                        cause="it still runs elsewhere",
                    ) from None
                time.sleep(0.2)
            except OSError:  # a shared disk that knows no locks
                break
        yield
