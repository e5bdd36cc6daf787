"""Runs of notebooks and profiles, on notebooks small enough to write out here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clay_lib import ContractError
from clay_lib.runs import notebooks
from clay_lib.runs.notebooks import is_done, read_script, run_notebook
from clay_lib.runs.profiles import check_parameters, notebooks_for_scene, read_parameters, run_profile

ROOT = Path(__file__).resolve().parents[2]
HEAD = """# %% [markdown]
# # 01 · A tiny notebook
#
# **Question.** Does it run?

# %% tags=["parameters"]
out: str = ""
steps: int = 3
rate: float = 0.1
bands: list[str] = ["red"]
limit: int | None = None
"""
DONE = """
# %%
import json, pathlib, sys
pathlib.Path(out, "metrics.json").write_text(json.dumps({"steps": steps, "python": sys.executable, "cwd": str(pathlib.Path.cwd())}))
"""


@pytest.fixture
def write(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()

    def write_script(name, body="", *, head=HEAD, end=DONE):
        path = folder / f"{name}.py"
        path.write_text(head + body + end)
        return path

    return write_script


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("common: {steps: 5, unknown_parameter: 1}\nnotebooks: {}\nminutes: {}\n")
    return path


def test_successful_run_is_done_and_records_its_cost(write, tmp_path):
    script = write("01_good", "\n# %%\nprint('hello', steps)\n")
    result = run_notebook(script, tmp_path / "out {x}", {"steps": 7, "rate": 1, "limit": None})
    assert result.ok and result.error is None and is_done(Path(result.notebook))
    assert result.metrics["steps"] == 7 and result.metrics["cwd"] == str(script.parent)
    assert os.path.samefile(result.metrics["python"], sys.executable)
    assert 20 < result.peak_mb < 2000 and 0 < result.cpu_seconds < 10 * result.seconds
    out = tmp_path / "out {x}" / "01_good"
    assert (out / "log.txt").read_text() == "hello 7\n"
    assert json.loads((out / "run.json").read_text())["ok"] is True


def test_failed_cell_is_named_and_earlier_outputs_are_kept(write, profile, tmp_path, capsys):
    write("01_good")
    write("02_bad", "\n# %%\nprint('kept')\n\n# %%\n# a remark\nharvest = {}\nharvest['wheat']\n")
    write("03_after")
    results = run_profile(profile, out=tmp_path / "runs", folder=tmp_path / "notebooks")
    assert [(r.name, r.ok) for r in results] == [("01_good", True), ("02_bad", False), ("03_after", True)]
    assert results[1].failed_cell == "cell 4 of 5: harvest = {}" and results[1].error == "KeyError: 'wheat'"
    assert results[0].parameters["steps"] == 5
    assert not is_done(Path(results[1].notebook)) and "kept" in (tmp_path / "runs/02_bad/log.txt").read_text()
    printed = capsys.readouterr().out
    assert "02_bad" in printed and "cell 4 of 5" in printed and "KeyError: 'wheat'" in printed
    page = (tmp_path / "runs/index.html").read_text()
    assert "cell 4 of 5" in page and "01_good.html" in page


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"step": 3}, "'step'"),
        ({"steps": "3"}, "text in a number"),
        ({"rate": "1e-3"}, "text"),
        ({"steps": True}, "int"),
        ({"steps": 2.5}, "int"),
        ({"bands": ["red", 4]}, "list[str]"),
        ({"limit": "all"}, "int | None"),
    ],
)
def test_wrong_parameter_raises(write, parameters, message):
    with pytest.raises(ContractError) as caught:
        check_parameters(read_parameters(read_script(write("01_good"))), parameters, "01_good")
    assert message in str(caught.value)


def test_derived_parameter_raises(write):
    with pytest.raises(ContractError, match="literal"):
        read_parameters(read_script(write("01_good", "double: int = 2 * steps\n")))


def test_missing_profile_notebook_or_parameter_is_named(write, profile, tmp_path):
    write("01_good")
    folder = tmp_path / "notebooks"
    with pytest.raises(ContractError, match="profile: found nowhere"):
        run_profile("nowhere", folder=folder)
    with pytest.raises(ContractError, match="07"):
        run_profile(profile, notebooks=["07"], folder=folder, out=tmp_path / "runs")
    with pytest.raises(ContractError, match="percent script"):
        run_notebook(folder / "09_none.py", tmp_path / "runs", {})
    with pytest.raises(ContractError, match="'pace'"):
        run_profile(profile, overrides={"pace": 1}, folder=folder, out=tmp_path / "runs")
    profile.write_text("notebooks: {01_good: {unknown_parameter: 1}}")
    with pytest.raises(ContractError, match="unknown_parameter"):
        run_profile(profile, folder=folder, out=tmp_path / "runs")
    profile.write_text("notebooks: {08_gone: {steps: 1}}")
    with pytest.raises(ContractError, match="08_gone"):
        run_profile(profile, folder=folder, out=tmp_path / "runs")


def test_timeout_kills_the_kernel_and_names_the_cell(write, tmp_path):
    script = write("01_slow", "\n# %%\nimport time\ntime.sleep(60)\n")
    result = run_notebook(script, tmp_path / "out", {}, timeout=12)
    assert not result.ok and result.seconds < 50 and "12 s" in result.error
    assert result.failed_cell == "cell 3 of 4: import time"


def test_dead_kernel_is_a_failure_with_its_cell(write, tmp_path, capfd):
    script = write("01_dies", "\n# %%\nimport os\nos.abort()\n")
    result = run_notebook(script, tmp_path / "out", {})
    assert not result.ok and result.failed_cell == "cell 3 of 4: import os" and "died" in result.error.lower()
    assert "Fatal Python error: Aborted" in (tmp_path / "out/01_dies/log.txt").read_text()  # the crash's traceback
    assert "Fatal" not in capfd.readouterr().err


def test_a_full_disk_is_not_the_fault_of_a_cell(write, tmp_path):
    script = write("01_full", "\n# %%\nraise OSError(28, 'No space left on device')\n")
    result = run_notebook(script, tmp_path / "out", {})
    assert not result.ok and result.died and result.failed_cell.startswith("cell 3 of 4")  # a sweep runs it again


@pytest.mark.parametrize(("deaths", "ok"), [(2, True), (3, False)])
def test_only_a_kernel_that_never_started_is_retried(write, tmp_path, monkeypatch, deaths, ok):
    script, execute, tries = write("01_good"), notebooks._execute, []

    def fail_first(*args, **kwargs):
        tries.append(1)
        if len(tries) <= deaths:
            raise RuntimeError("Kernel died before replying to kernel_info")
        execute(*args, **kwargs)

    monkeypatch.setattr(notebooks, "_execute", fail_first)
    result = run_notebook(script, tmp_path / "out", {})
    assert (result.ok, len(tries)) == (ok, 3)
    assert ok or "Kernel died before replying" in result.error


def test_killed_run_is_not_done_even_over_an_older_successful_one(write, tmp_path):
    script = write("01_long", "\n# %%\nimport time\nprint('started', flush=True)\ntime.sleep(steps)\n")
    assert run_notebook(script, tmp_path / "out", {"steps": 0}).ok
    executed = tmp_path / "out/01_long.ipynb"
    killed = _spawn(script, tmp_path / "out", 60)
    log = tmp_path / "out/01_long/log.txt"
    _wait(lambda: executed.exists() and "started" in log.read_text() and not (log.parent / "run.json").exists())
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert json.loads(executed.read_text())["metadata"]["papermill"]["exception"] is None  # as after a good run
    assert not is_done(executed)


def test_own_scene_selects_notebooks_with_scene_after_training(write, tmp_path):
    weights = tmp_path / "small.safetensors"
    (tmp_path / "own.yaml").write_text(f"common: {{weights: {weights}}}\n")
    folder = write("01_plain").parent
    write("04_train_clay")
    write("05_map", head=HEAD + 'scene: str = ""\nsensor: str = ""\n')
    assert notebooks_for_scene(tmp_path / "own.yaml", folder) == ["04_train_clay", "05_map"]
    weights.write_bytes(b"trained")
    assert notebooks_for_scene(tmp_path / "own.yaml", folder) == ["05_map"]


def _spawn(script: Path, out: Path, steps: int) -> subprocess.Popen:
    code = f"import sys; from pathlib import Path; from clay_lib.runs.notebooks import run_notebook; sys.exit(not run_notebook(Path({str(script)!r}), Path({str(out)!r}), {{'steps': {steps}}}).ok)"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)


def _wait(ready, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "the run never started"
        time.sleep(0.1)
