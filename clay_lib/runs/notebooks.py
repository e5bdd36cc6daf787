"""One notebook, headless: the only way that demo, tests and sweeps run one.

The percent script is the source, so outputs kept beside it can never be stale. A run leaves in its folder
    NN_name.ipynb        the executed notebook, saved after every cell
    NN_name/             the notebook's own `out`: metrics.json and pictures
    NN_name/run.json     what happened, as a RunResult, and with which code on which machine; written last and whole
    NN_name/log.txt      everything it printed, line by line, so that a dead run can be read
"""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from clay_lib.cluster import cores
from clay_lib.errors import ContractError
from clay_lib.files import read_json, write_json

LIBRARY = Path(__file__).resolve().parents[1]


def provenance() -> dict:
    """{git: {commit, changed}, library, environment: {python, machine, cores, packages}}, all of it JSON.

    library: a hash of clay_lib's own files, which also tells states apart that no commit holds.
    """
    return {"git": git_state(), "library": library_state(), "environment": environment()}


def git_state() -> dict:
    """The commit, and whether files that git follows differ from it; empty outside a repository."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", LIBRARY.parent, *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):  # no git here
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    changed = ask("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return {} if commit is None else {"commit": commit, "changed": bool(changed)}


def library_state() -> str:
    """12 hexadecimal digits of SHA-256 over clay_lib's sources."""
    told = hashlib.sha256()
    for path in sorted([*LIBRARY.rglob("*.py"), *LIBRARY.rglob("*.yaml")]):
        told.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return told.hexdigest()[:12]


@cache
def environment() -> dict:
    """Python, machine, cores that may be used, and every installed package with its version."""
    packages = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {platform.node()}",
        "cores": cores(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


# ---- A notebook's parameters: names and types of its tagged cell, checked before a kernel is started ----


def read_parameters(notebook) -> dict[str, ast.expr]:
    """Name -> type (an annotation's syntax tree) of each literal in the cell tagged `parameters`."""
    return {name: kind for name, (kind, _) in _literals(notebook).items()}


def read_defaults(notebook) -> dict[str, object]:
    """Name -> value of each literal in the cell tagged `parameters`."""
    return {name: default for name, (_, default) in _literals(notebook).items()}


def _literals(notebook) -> dict[str, tuple[ast.expr, object]]:
    source = next((cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])), None)
    if source is None:
        raise ContractError(
            "parameters", "no cell tagged `parameters`", "one such cell", 'the tag is missing: # %% tags=["parameters"]'
        )
    found = {}
    for line in ast.parse(source).body:
        target = getattr(line, "target", None) or getattr(line, "targets", [None])[0]
        try:
            default = ast.literal_eval(line.value)
            kind = getattr(line, "annotation", None) or ast.parse(type(default).__name__, mode="eval").body
            found[target.id] = (kind, default)
        except (AttributeError, ValueError, TypeError):
            raise ContractError(
                "parameters", ast.unparse(line), "name: type = literal", "a derived value belongs in a later cell"
            ) from None
    return found


def check_parameters(kinds: Mapping[str, ast.expr], values: Mapping[str, object], where: str) -> None:
    """Refuse names that the notebook does not have and values that are not of its types."""
    for name, value in values.items():
        if name not in kinds:
            raise ContractError(
                f"parameter {name!r}",
                f"no such parameter in {where}",
                f"one of {sorted(kinds)}",
                "YAML reads on, off, yes and no as true and false: put the name in quotes"
                if isinstance(name, bool)
                else "a misspelt name, or one meant for another notebook",
            )
        if not _fits(value, kinds[name]):
            hint = (
                "text in a number; YAML reads 1e-3 as text, write 1.0e-3"
                if isinstance(value, str)
                else "a value meant for another parameter"
            )
            raise ContractError(
                f"parameter {name!r} of {where}", f"{value!r} ({type(value).__name__})", ast.unparse(kinds[name]), hint
            )


def in_kind(value: object, kind: ast.expr) -> object:
    """A value that fits its type, in the one form that stands for it: 1 for a float is 1.0, a tuple is a list."""
    match kind:
        case ast.Name(id="float") if isinstance(value, int):
            return float(value)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return in_kind(value, left if _fits(value, left) else right)
        case ast.Subscript(value=ast.Name(id="list" | "tuple"), slice=inner):
            inner = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return [in_kind(v, inner) for v in value]
    return list(value) if isinstance(value, tuple) else value


def _fits(value: object, kind: ast.expr) -> bool:
    match kind:
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case ast.Name(id="str" | "bool" | "dict" as name):
            return type(value).__name__ == name
        case ast.Name(id="list" | "tuple"):  # YAML knows only lists
            return isinstance(value, (list, tuple))
        case ast.Constant(value=None) | ast.Name(id="NoneType"):
            return value is None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Subscript(value=ast.Name(id="list" | "tuple"), slice=inner):
            return isinstance(value, (list, tuple)) and all(
                _fits(v, inner.elts[0] if isinstance(inner, ast.Tuple) else inner) for v in value
            )
        case ast.Subscript(value=outer):
            return _fits(value, outer)
    return True


# ---- One notebook, headless: the only way that demo, tests and sweeps run one ----

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "papermill_runs"
PICTURES = (".png", ".jpg", ".jpeg", ".svg")
START_UPS = 3  # tries; only a kernel that died before its first cell is started again


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
    peak_mb: float  # resident memory of the kernel and its children, at its highest
    died: bool = False  # ended from outside, or never came up: no fault of a cell that anybody knows of


def output_folder(out: str, name: str) -> Path:
    """Where a notebook writes: the folder a headless run gave it, else papermill_runs/lab/NAME; made if missing."""
    folder = Path(out) if out else RUNS / "lab" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_metrics(folder: Path, metrics: Mapping[str, object]) -> None:
    """metrics.json, the last thing a notebook does: numbers, texts and mappings of them; the gallery shows them."""
    write_json(Path(folder) / "metrics.json", metrics)


def list_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """The percent scripts in walk order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def read_script(script: Path, source: str | None = None):
    """A percent script as a notebook in memory, with a kernel named even where its header forgot it.

    source: its text where that is kept elsewhere.
    """
    import jupytext

    if source is None and not script.is_file():
        raise ContractError(
            "notebook", str(script), "a percent script such as notebooks/01_embed_patches.py", "a misspelt name"
        )
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
    about: Mapping[str, object] | None = None,
) -> RunResult:
    """Execute a percent script in this interpreter's kernel, standing in the script's own folder as JupyterLab does.

    out_dir: holds the executed notebook NAME.ipynb and the folder NAME/, handed to the notebook as `out`.
    timeout: seconds for the whole notebook; the kernel is ended after them. threads: cap for torch and BLAS.
    out: another folder in place of NAME/. source: the script's text, where the file may have changed since.
    env: further variables of the kernel's environment. about: further keys for run.json.
    A notebook that fails is a RunResult with ok=False; ContractError means that it could not be started as asked.
    """
    from papermill.exceptions import PapermillExecutionError

    script, out_dir = Path(script).resolve(), Path(out_dir).resolve()
    notebook = read_script(script, source)
    kinds = read_parameters(notebook)
    out = Path(out).resolve() if out else out_dir / script.stem
    values = {**parameters, "out": str(out)}
    check_parameters(kinds, values, script.stem)

    out.mkdir(parents=True, exist_ok=True)
    executed = out_dir / f"{script.stem}.ipynb"
    for old in [
        executed,
        executed.with_suffix(".html"),
        *(p for p in out.iterdir() if p.name in ("metrics.json", "run.json") or p.suffix in PICTURES),
    ]:
        old.unlink(missing_ok=True)

    started, peak, died = time.time(), 0.0, False
    for attempt in range(START_UPS):
        failed, error = None, None
        with tempfile.TemporaryDirectory(prefix="k") as prefix, open(out / "log.txt", "w") as log:
            watch = _Watch(prefix, timeout)
            try:
                _execute(notebook, executed, values, prefix, log, cwd=script.parent, env=_environment(threads, env))
            except PapermillExecutionError as exception:
                failed = _cell(notebook, exception.source)
                error = f"{exception.ename}: {exception.evalue}".strip()
            except Exception as exception:  # the kernel died, or never came up: what it was doing is on disk
                failed = _running_cell(notebook, executed)
                error, died = watch.verdict or f"{type(exception).__name__}: {exception}", not watch.verdict
                if failed is None and not watch.verdict and attempt + 1 < START_UPS:
                    continue
            finally:
                watch.stop()
                peak = max(peak, watch.peak_mb)
        break
    died = died and error is not None
    if error is None and not is_done(executed, out):
        error = "it ran to its end but wrote no readable metrics.json"
    metrics = read_json(out / "metrics.json")
    result = RunResult(
        script.stem,
        str(executed),
        values,
        round(time.time() - started, 2),
        error is None,
        failed,
        error,
        metrics,
        round(peak, 1),
        died,
    )
    left = {"finished": time.strftime("%Y-%m-%d %H:%M"), "bytes": executed.stat().st_size if executed.exists() else 0}
    write_json(out / "run.json", {**asdict(result), **left, **provenance(), **(about or {})})
    return result


def is_done(executed: Path, out: Path | None = None) -> bool:
    """Whether a run on disk is whole: a killed one has no end_time, a failed one an exception, a cut one no metrics."""
    told = read_json(executed).get("metadata", {}).get("papermill", {})
    whole = told.get("exception") is None and told.get("end_time") is not None
    return whole and bool(read_json((out or executed.with_suffix("")) / "metrics.json"))


# What the kernel does first: the last words of a crash go to the log, past IPython, which takes over stderr; on Linux it
# asks to be killed with the thread that started it, so that none is left over.
_LAUNCH = """
import faulthandler, os, runpy, sys
faulthandler.enable(os.dup(2))
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(os.environ.get("JPY_PARENT_PID") or os.getppid()):
        os._exit(1)
sys.argv[0] = "ipykernel_launcher"
runpy.run_module("ipykernel_launcher", run_name="__main__")
"""


def _environment(threads: int | None, more: Mapping[str, str] | None) -> dict[str, str]:
    env = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", **(more or {})}
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

        async def _async_launch_kernel(self, command, **kw):
            own = {"cwd": str(cwd), "stdout": log, "stderr": log}  # papermill would move the whole process
            await super()._async_launch_kernel(command, **{**kw, **own})

        async def _async_interrupt_kernel(self):
            if not self.shutting_down:  # all cells are done, and an interrupt would only leave an error in the log
                await super()._async_interrupt_kernel()

    # One kernel in four hangs as it ends (ipykernel 7.4: a thread flushes into one that is gone) until it is told again.
    settings = {"connection_file": f"{prefix}/kernel.json", "shutdown_wait_time": 1.0}
    if os.name == "posix":  # among many kernels at once a TCP port is sometimes taken; a socket of our own never is
        settings |= {"transport": "ipc", "ip": f"{prefix}/s"}
    logging.getLogger("papermill").setLevel(logging.ERROR)
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
    """Follows the kernel's memory from outside, and ends it when its time is up."""

    def __init__(self, prefix: str, timeout: float | None):
        super().__init__(daemon=True)
        self.prefix, self.timeout, self.peak_mb, self.verdict = prefix, timeout, 0.0, None
        self._over = threading.Event()
        self.start()

    def stop(self):
        self._over.set()
        self.join()

    def run(self):
        import psutil

        deadline = time.monotonic() + self.timeout if self.timeout else float("inf")
        kernel, family, looks = None, [], 0
        while not self._over.wait(0.25):
            try:
                late = kernel is not None and time.monotonic() > deadline
                if looks % 8 == 0 or kernel is None or late:  # who is there is asked seldom: it reads all of /proc
                    kernel = kernel or next(
                        (p for p in psutil.Process().children() if self.prefix in " ".join(p.cmdline())), None
                    )
                    family = [kernel, *kernel.children(recursive=True)] if kernel else []
                looks += 1
                self.peak_mb = max(self.peak_mb, sum(p.memory_info().rss for p in family) / 2**20)
                if late:
                    self.verdict = f"ended after its {self.timeout:g} s"
                    for process in reversed(family):
                        process.kill()
                    return
            except psutil.Error:  # one of them ended between two looks
                looks = 0


def _cell(notebook, source: str) -> str:
    """ "cell 4 of 9: x = 1 / 0", counted in the script's own cells."""
    first = next(
        (line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")), source[:80]
    )
    index = next(
        (i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source == source), None
    )
    return f"cell {'?' if index is None else index + 1} of {len(notebook.cells)}: {first.strip()}"


def _running_cell(notebook, executed: Path) -> str | None:
    """The cell that was running when the kernel died, from the file on disk: the last that had begun."""
    cells = [c for c in read_json(executed).get("cells", []) if c["cell_type"] == "code"]
    begun = [c for c in cells if c["metadata"].get("papermill", {}).get("start_time")]
    return _cell(notebook, "".join(begun[-1]["source"])) if begun else None


# ---- A profile: all notebooks in walk order, headless, with the values that such a run swaps in ----
