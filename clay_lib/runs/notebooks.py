"""Headless notebook runs, executed by papermill.

The percent script is the source, so outputs kept beside it cannot be stale. A run leaves in its folder
    NN_name.ipynb        the executed notebook, saved after every cell
    NN_name/             the notebook's own `out`: metrics.json and figures
    NN_name/run.json     a RunResult with the state of code and machine; written last, atomically
    NN_name/log.txt      everything it printed, line by line, also of a run that died
"""

import ast
import errno
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from clay_lib.cluster import WAIT_POLICY, cores
from clay_lib.errors import ContractError
from clay_lib.files import CHECKOUT, make_folder, read_json, write_json

LIBRARY = Path(__file__).resolve().parents[1]
ROOT = CHECKOUT
NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "papermill_runs"
FIGURES = (".png", ".jpg", ".jpeg", ".svg")
REPORTED, PRUNE = "reported.jsonl", "prune"  # in a run's folder: values by step; a file that stops the run
MODULES = "modules.txt"  # in a run's folder: the modules of clay_lib that it imported
CLAIMS = "claims.txt"  # in a run's folder: claims of the notebook that did not hold, a line each
RUN_FOLDER = "CLAY_RUN_FOLDER"  # the kernel's environment variable
START_ATTEMPTS = 3  # only a kernel that died before its first cell is started again


@dataclass(frozen=True)
class RunResult:
    """One notebook's run. error: the exception's own words; failed_cell: its place, "cell 4 of 9: x = 1 / 0"."""

    name: str
    notebook: str  # the executed notebook
    parameters: dict
    seconds: float
    ok: bool
    failed_cell: str | None
    error: str | None
    metrics: dict
    peak_mb: float  # highest resident memory of the kernel and its children
    cpu_seconds: float  # of the kernel and its children, which other work on the machine does not prolong
    died: bool = False  # killed from outside, or never started: not the fault of a cell
    pruned: bool = False  # stopped by a file PRUNE in its folder


def output_folder(out: str, name: str) -> Path:
    """Where a notebook writes: the folder given by a headless run, else papermill_runs/lab/NAME; created if missing."""
    return make_folder(Path(out) if out else RUNS / "lab" / name)


def write_metrics(folder: Path, metrics: Mapping[str, object]) -> None:
    """Write metrics.json, a notebook's last step: numbers, texts and mappings of them, as the gallery shows them."""
    write_json(Path(folder) / "metrics.json", metrics)


def claim(holds: bool, message: str) -> None:
    """State a result that a notebook teaches, such as "training lowers the error".

    Where it does not hold, a demo fails with an AssertionError. In a sweep a poor result is a result: the run goes on,
    keeps its metrics, and the message becomes a warning in its row of the ledger.
    """
    if holds:
        return
    folder = os.environ.get(RUN_FOLDER)
    if not folder:
        raise AssertionError(message)
    print(f"Warning: this did not hold: {message}", file=sys.stderr)
    with open(Path(folder, CLAIMS), "a", encoding="utf-8") as file:
        file.write(" ".join(message.split()) + "\n")


def in_sweep() -> bool:
    """Whether a sweep runs this notebook: `train(..., resume=in_sweep())` resumes a run that was killed.

    A sweep keeps the checkpoints of an unfinished run as long as its parameters and clay_lib stay the same.
    """
    return RUN_FOLDER in os.environ


def report(step: int, value: float) -> None:
    """Report a value while the notebook runs, smaller or larger is better as for the sweep's first metric.

    A sweep draws the values as the run's learning curve and may stop a run that lags behind (`prune`). Outside a
    sweep it does nothing.
    """
    if folder := os.environ.get(RUN_FOLDER):
        with open(Path(folder, REPORTED), "a", encoding="utf-8") as file:
            file.write(json.dumps([int(step), float(value)]) + "\n")


def report_metric(name: str):
    """A Lightning callback that reports a logged metric at the end of every validation, such as "val/loss"."""
    from lightning.pytorch.callbacks import LambdaCallback  # seconds, which other notebooks need not pay

    def on_validation_end(trainer, module) -> None:
        if not trainer.sanity_checking and name in trainer.callback_metrics:
            report(getattr(module, "step", trainer.global_step), trainer.callback_metrics[name])

    return LambdaCallback(on_validation_end=on_validation_end)


def read_reported(folder: Path) -> dict[int, float]:
    """The values that a run has reported so far, by step; of a step reported twice, the last one."""
    return dict(sorted(json.loads(line) for line in _lines(Path(folder, REPORTED))))


def _lines(path: Path) -> list[str]:
    """The complete lines of a file that a notebook appends to, without one being written; none if there is no file."""
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except OSError:
        return []


def flatten(metrics: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) of everything in a nested mapping, names joined by " / "."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key} / ")
        else:
            yield f"{prefix}{key}", value


def list_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """The percent scripts in order of their numbers."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def read_script(script: Path, source: str | None = None):
    """A percent script as an nbformat notebook, with a default kernelspec if its header has none.

    source: the script's text, instead of the file's.
    """
    import jupytext

    if source is None and not script.is_file():
        expected = "a percent script such as notebooks/01_embed_patches.py"
        raise ContractError("notebook", script, expected, "a misspelled name")
    source = script.read_text(encoding="utf-8") if source is None else source
    notebook = jupytext.reads(source, fmt="py:percent")
    notebook.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "Python 3", "language": "python"})
    return notebook


# ---- one notebook


def run_notebook(
    script: Path,
    out_dir: Path,
    parameters: Mapping[str, object],
    *,
    timeout: float | None = None,
    threads: int | None = None,
    out: Path | None = None,
    source: str | None = None,
    env: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
) -> RunResult:
    """Execute a percent script in this interpreter's kernel, with the script's folder as working directory.

    out_dir: holds the executed notebook NAME.ipynb and the folder NAME/, passed to the notebook as `out`.
    timeout: seconds for the whole notebook; the kernel is killed after them. threads: limit for torch and BLAS.
    out: another folder in place of NAME/. source: the script's text, if the file may have changed since.
    env: additional environment variables of the kernel. extra: additional keys for run.json.
    A notebook that fails gives a RunResult with ok=False; ContractError means that it could not be started.
    """
    from papermill.exceptions import PapermillExecutionError

    script, out_dir = Path(script).resolve(), Path(out_dir).resolve()
    notebook = read_script(script, source)
    out = Path(out).resolve() if out else out_dir / script.stem
    values = {**parameters, "out": str(out)}

    make_folder(out)
    executed = out_dir / f"{script.stem}.ipynb"
    stale = [p for p in out.iterdir() if p.name in ("metrics.json", "run.json") or p.suffix in FIGURES]
    for path in (executed, executed.with_suffix(".html"), *stale):
        path.unlink(missing_ok=True)

    modules = out / MODULES
    modules.unlink(missing_ok=True)
    started, peak, cpu, died = time.time(), 0.0, 0.0, False
    environment = _environment(threads, {"CLAY_MODULES": str(modules), **(env or {})})
    for attempt in range(START_ATTEMPTS):
        failed, error = None, None
        with tempfile.TemporaryDirectory(prefix="k") as prefix, open(out / "log.txt", "w", encoding="utf-8") as log:
            watch = _Watch(prefix, timeout, out / PRUNE)
            try:
                _execute(notebook, executed, values, prefix, log, cwd=script.parent, env=environment)
            except PapermillExecutionError as exception:
                failed = _describe_cell(notebook, exception.source)
                error = f"{exception.ename}: {exception.evalue}".strip()
                died = f"[Errno {errno.ENOSPC}]" in error  # a full disk is not the fault of a cell
            except Exception as exception:  # the kernel died or never started: its last cell is on disk
                failed = _running_cell(notebook, executed)
                error, died = watch.message or f"{type(exception).__name__}: {exception}", True
                if failed is None and not watch.message and attempt + 1 < START_ATTEMPTS:
                    continue
            finally:
                watch.stop()
                peak, cpu = max(peak, watch.peak_mb), cpu + watch.cpu_seconds
        break
    died = died and error is not None and not watch.message
    if error is None and not is_done(executed, out):
        error = "it ran to its end but wrote no readable metrics.json"
    result = RunResult(
        name=script.stem,
        notebook=str(executed),
        parameters=values,
        seconds=round(time.time() - started, 2),
        ok=error is None,
        failed_cell=failed,
        error=error,
        metrics=read_json(out / "metrics.json"),
        peak_mb=round(peak, 1),
        cpu_seconds=round(cpu, 2),
        died=died,
        pruned=error is not None and watch.pruned,
    )
    size = executed.stat().st_size if executed.exists() else 0
    reached = max(read_reported(out).items(), default=None)
    record = {**asdict(result), "finished": time.strftime("%Y-%m-%d %H:%M"), "bytes": size, "reached": reached}
    record["warnings"] = _lines(out / CLAIMS)
    record |= {"precision": environment["CLAY_PRECISION"], "threads": threads}
    record["modules"] = module_hashes(_lines(modules))
    write_json(out / "run.json", {**record, **provenance(), **(extra or {})})
    return result


def is_done(executed: Path, out: Path | None = None) -> bool:
    """Whether a run on disk is complete: a killed one has no end_time, a failed one an exception or no metrics."""
    record = read_json(executed).get("metadata", {}).get("papermill", {})
    ended = record.get("exception") is None and record.get("end_time") is not None
    return ended and bool(read_json((out or executed.with_suffix("")) / "metrics.json"))


# What the kernel runs first: a crash's traceback goes to the log, past IPython, which takes over stderr; on Linux it
# is killed together with the thread that started it, so that no kernel is left behind.
_LAUNCH = """
import faulthandler, os, runpy, sys
faulthandler.enable(os.dup(2))
class Imports:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "clay_lib":
            print(name, file=open(os.environ["CLAY_MODULES"], "a"))
sys.meta_path.insert(0, Imports)
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(os.environ.get("JPY_PARENT_PID") or os.getppid()):
        os._exit(1)
sys.argv[0] = "ipykernel_launcher"
runpy.run_module("ipykernel_launcher", run_name="__main__")
"""


def _environment(threads: int | None, extra: Mapping[str, str] | None) -> dict[str, str]:
    # In float32, so that every CPU gives the same numbers; a GPU would be several times slower, and has its own anyway.
    precision = os.environ.get("CLAY_PRECISION") or ("auto" if shutil.which("nvidia-smi") else "exact")
    env = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "CLAY_PRECISION": precision, "OMP_WAIT_POLICY": WAIT_POLICY}
    env |= extra or {}
    if threads:
        env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return env


def _execute(notebook, executed: Path, values: dict, prefix: str, log, *, cwd: Path, env: dict[str, str]) -> None:
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets.config import Config

    argv = [sys.executable, "-c", _LAUNCH, "-f", "{connection_file}"]

    class Kernel(AsyncKernelManager):  # this interpreter, whichever kernels the machine has registered
        kernel_spec = KernelSpec(argv=argv, display_name="Python 3", language="python", env=env)

        async def _async_launch_kernel(self, command, **kwargs):
            # papermill's own `cwd` would change the directory of the whole process
            await super()._async_launch_kernel(command, **{**kwargs, "cwd": str(cwd), "stdout": log, "stderr": log})

        async def _async_interrupt_kernel(self):
            if not self.shutting_down:  # all cells are done: an interrupt would only leave an error in the log
                await super()._async_interrupt_kernel()

    # One kernel in four hangs at its end (ipykernel 7.4 flushes into a closed thread) until the request is repeated.
    settings = {"connection_file": f"{prefix}/kernel.json", "shutdown_wait_time": 1.0}
    if os.name == "posix":  # with many kernels a TCP port is sometimes taken; a socket of our own never is
        settings |= {"transport": "ipc", "ip": f"{prefix}/s"}
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # run.json has the error
    papermill.execute_notebook(
        notebook,
        str(executed).replace("{", "{{").replace("}", "}}"),  # papermill reads braces in a path as a template
        values,
        kernel_name="python3",
        kernel_manager_class=Kernel,
        config=Config({"KernelManager": settings}),
        stdout_file=log,
        stderr_file=log,
        progress_bar=False,
        autosave_cell_every=10,
        store_widget_state=False,  # live widgets need a kernel; their state would be megabytes in the file
    )


class _Watch(threading.Thread):
    """Follows the kernel's memory from outside, and kills it when its time is up or it is pruned."""

    def __init__(self, prefix: str, timeout: float | None, prune: Path):
        super().__init__(daemon=True)
        self.prefix, self.timeout, self.prune = prefix, timeout, prune
        self.peak_mb, self.cpu_seconds, self.message, self.pruned = 0.0, 0.0, None, False
        self._stopped = threading.Event()
        self.start()

    def stop(self):
        self._stopped.set()
        self.join()

    def run(self):
        import psutil

        deadline = time.monotonic() + self.timeout if self.timeout else float("inf")
        kernel, family, polls = None, [], 0
        while not self._stopped.wait(0.25):
            try:
                pruned = self.prune.exists()
                late = kernel is not None and (pruned or time.monotonic() > deadline)
                # Children are listed every two seconds only: it reads all of /proc.
                if polls % 8 == 0 or kernel is None or late:
                    kernel = kernel or next(
                        (p for p in psutil.Process().children() if self.prefix in " ".join(p.cmdline())), None
                    )
                    family = [kernel, *kernel.children(recursive=True)] if kernel else []
                polls += 1
                self.peak_mb = max(self.peak_mb, sum(p.memory_info().rss for p in family) / 2**20)
                self.cpu_seconds = max(self.cpu_seconds, sum(sum(p.cpu_times()[:4]) for p in family))
                if late:
                    self.pruned = pruned
                    self.message = "pruned" if pruned else f"ended after its {self.timeout:g} s"
                    for process in reversed(family):
                        process.kill()
                    return
            except psutil.Error:  # one of them ended between two polls
                polls = 0


def _describe_cell(notebook, source: str) -> str:
    """ "cell 4 of 9: x = 1 / 0", counted in the script's own cells."""
    code = (line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    numbers = [i for i, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code" and cell.source == source]
    return f"cell {numbers[0] if numbers else '?'} of {len(notebook.cells)}: {next(code, source[:80]).strip()}"


def _running_cell(notebook, executed: Path) -> str | None:
    """The cell that was running when the kernel died, from the file on disk: the last one that was started."""
    cells = [c for c in read_json(executed).get("cells", []) if c["cell_type"] == "code"]
    started = [c for c in cells if c["metadata"].get("papermill", {}).get("start_time")]
    return _describe_cell(notebook, "".join(started[-1]["source"])) if started else None


# ---- provenance


def provenance() -> dict:
    """{git: {commit, changed}, library, environment: {python, machine, cores, packages}}, as JSON values.

    library: a hash of clay_lib's own files, which also distinguishes uncommitted states.
    """
    return {"git": _git_state(), "library": library_hash(), "environment": _environment_versions()}


def _git_state() -> dict:
    """The commit, and whether tracked files differ from it; empty outside a repository."""
    describe = "--no-optional-locks describe --always --abbrev=40 --exclude=* --dirty".split()
    try:
        done = subprocess.run(["git", "-C", ROOT, *describe], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed
        return {}
    commit = done.stdout.strip()
    return {"commit": commit.removesuffix("-dirty"), "changed": commit.endswith("-dirty")} if commit else {}


def module_hashes(names: Iterable[str]) -> dict[str, str]:
    """8 hexadecimal digits for the code of each module of clay_lib, and for its table NAME.yaml; "": there is none."""
    hashes = {}
    for name in sorted(set(names)):
        path = LIBRARY.parent / name.replace(".", "/")
        files = [path.with_suffix(".py"), path / "__init__.py", path.with_suffix(".yaml")]
        hashes[name] = "".join(_hash(file, file.stat().st_mtime_ns) for file in files if file.is_file())
    return hashes


@cache
def _hash(path: Path, changed_at: int) -> str:
    text = path.read_text(encoding="utf-8")
    return hashlib.sha256((meaning(text) if path.suffix == ".py" else text).encode()).hexdigest()[:8]


def meaning(source: str) -> str:
    """Code as the text of its syntax tree, so that comments and formatting make no difference."""
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError:  # lines of IPython such as %matplotlib
        return source


def library_hash() -> str:
    """12 hexadecimal digits of SHA-256 over clay_lib's sources."""
    digest = hashlib.sha256()
    for path in sorted([*LIBRARY.rglob("*.py"), *LIBRARY.rglob("*.yaml")]):
        digest.update(path.relative_to(LIBRARY).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def _environment_versions() -> dict:
    """Python, machine, usable cores, and every installed package with its version."""
    packages = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {platform.node()}",
        "cores": cores(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
