"""Sweeps under load: many starts, SIGKILL of driver, workers and kernels, another scheduler, an open JupyterLab."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import jupytext
import psutil
import pytest
import requests
from jupyter_client import BlockingKernelClient

from clay_lib.callbacks import read_checkpoint
from clay_lib.files import read_json, read_yaml, write_yaml
from clay_lib.runs import sweep, tables
from clay_lib.runs.notebooks import read_reported
from clay_lib.runs.specification import read_sweep

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """# %% tags=["parameters"]
seed: int = 0
out: str = ""
rate: float = 0.1
wait: float = 0.0

# %%
import json, os, pathlib, time
print("started", seed, rate, flush=True)

# %%
time.sleep(wait)
metrics = {"loss": rate + seed, "pid": os.getpid(), "padding": "x" * 20000}

# %%
pathlib.Path(out, "metrics.json").write_text(json.dumps(metrics))
print("done", seed, rate, flush=True)
"""
DRIVER = """
import sys
from pathlib import Path
from clay_lib.runs import run_sweep
if __name__ == "__main__":
    table = run_sweep(sys.argv[1], runs=Path(sys.argv[2]), workers=int(sys.argv[3]), scheduler=sys.argv[4])
    sys.exit(0 if (table["status"] == "done").all() else 1)
"""


def specify(folder: Path, **changes) -> Path:
    (folder / "tiny.py").write_text(SCRIPT)
    spec = {"notebook": "tiny.py", "metrics": {"loss": "min"}, "threads": 1, **changes}
    write_yaml(folder / "many.yaml", spec)
    return folder / "many.yaml"


def start(path: Path, runs: Path, workers: int = 2, scheduler: str = "", env=()) -> subprocess.Popen:
    script = path.parent / "driver.py"
    script.write_text(DRIVER)
    env = {**os.environ, "PYTHONPATH": str(ROOT), **dict(env)}
    return subprocess.Popen(
        [sys.executable, script, path, runs, str(workers), scheduler], env=env, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.alone
def test_24_runs_start_without_failure_and_with_little_overhead(tmp_path):
    path = specify(tmp_path, grid={"rate": [0.1, 0.2, 0.3, 0.4]}, seeds=6, fixed={"wait": 2.0})  # three seconds a run
    timings = []
    for again in range(2):
        began = time.monotonic()
        table = sweep.run_sweep(path, workers=2, runs=tmp_path / f"runs{again}")
        wall, kernels = time.monotonic() - began, table["seconds"].sum()
        assert (table["status"] == "done").all() and len(table) == 24
        cells = sum(_cell_seconds(Path(row.folder) / "tiny.ipynb") for row in table.itertuples())
        timings.append((wall, wall / (kernels / 2), (2 * wall - cells) / 24))
    kernel = min(_kernel_start() for _ in range(3))
    lines = [f"wall {w:.1f} s, ratio {r:.3f}, {o:.2f} s a run besides its cells" for w, r, o in timings]
    print(*lines, f"a kernel alone {kernel:.2f} s", sep="\n")
    ratio, beside = min(ratio for _, ratio, _ in timings), min(overhead for *_, overhead in timings) - kernel
    assert ratio < 1.15 and beside < 1, [*lines, f"a kernel alone {kernel:.2f} s"]


def _cell_seconds(notebook: Path) -> float:
    cells = json.loads(notebook.read_text())["cells"]
    return sum(cell["metadata"].get("papermill", {}).get("duration") or 0 for cell in cells)


def _kernel_start() -> float:
    """Seconds from a kernel's start to its end, two at once as in the sweep, without papermill."""
    code = (
        "import tempfile, time; from jupyter_client.manager import KernelManager; t = time.time()\n"
        "with tempfile.TemporaryDirectory(prefix='k') as own:\n"
        "    km = KernelManager(transport='ipc', ip=own + '/k'); km.start_kernel(); kc = km.client(); kc.start_channels()\n"
        "    kc.wait_for_ready(timeout=90); kc.stop_channels(); km.shutdown_kernel(); print(time.time() - t)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return max(float(one.communicate(timeout=120)[0]) for one in both)


@pytest.mark.slow
def test_every_run_is_done_once_despite_killed_drivers_workers_and_kernels(tmp_path):
    path, runs = specify(tmp_path, grid={"rate": [0.1, 0.2], "wait": [0.3]}, seeds=20), tmp_path / "runs"
    expected = {run.key: run for run in read_sweep(path).runs}
    rng, kills, completed = random.Random(0), [], {}
    plan = rng.sample(["driver"] * 7 + ["worker"] * 6 + ["kernel"] * 7, 20)
    driver, begun, waited, more = None, 0, time.monotonic(), 0
    while plan:
        if driver is None:
            driver, begun = start(path, runs), len(kills)
        if driver.poll() is not None:  # all was done before all was killed: redo a part of it
            completed |= _completed(runs, expected, completed)
            lost = [tables.read_run(runs / "many" / key)["status"] for key in expected.keys() - completed.keys()]
            assert driver.returncode == bool(lost) and set(lost) <= {"died"}
            assert len(kills[begun:]) >= 2 * len(lost)  # a run is given up, until the next start, once it died twice
            for key in rng.sample(sorted(completed), len(completed) // 2):
                (runs / "many" / key / "run.json").unlink()
                del completed[key]
            driver = None
            continue
        victim = _find(driver.pid, plan[0])
        if victim is None or len(list(runs.glob("many/*/run.json"))) < len(completed) + more:
            assert time.monotonic() - waited < 600, f"no {plan[0]} came up"
            time.sleep(0.02)
            continue
        time.sleep(rng.uniform(0, 1.5))
        try:
            family = victim.children(recursive=plan[0] == "driver")
            victim.kill()
        except psutil.NoSuchProcess:  # it ended by itself meanwhile
            continue
        kills.append(plan.pop(0))
        waited, more = time.monotonic(), rng.randrange(3)  # so many runs may end before the next kill
        if kills[-1] == "driver":
            driver.wait()
            driver = None
        end = time.monotonic() + 60  # what was still importing notices once it has
        while left := [process.pid for process in family if _is_alive(process)]:
            assert time.monotonic() < end, f"left over by a killed {kills[-1]}: {left}"
            time.sleep(0.05)
        completed |= _completed(runs, expected, completed)
        print(f"kill {len(kills)}: {kills[-1]}, {len(completed)} of {len(expected)} runs done", flush=True)
    if driver is not None:
        driver.wait(timeout=900)
    final_start = start(path, runs)
    assert final_start.wait(timeout=900) == 0
    final = _completed(runs, expected, completed)
    assert set(final) == set(expected) and len(kills) == 20
    assert {p.name for p in (runs / "many").iterdir() if p.is_dir()} == set(expected)
    assert len(tables.read_ledger(runs)) == len(expected) and not list(runs.rglob(".part-*"))


def _find(driver: int, kind: str) -> psutil.Process | None:
    """A process of that kind under the driver, or the driver once a kernel is up."""
    kernels, workers = [], []
    try:
        for child in psutil.Process(driver).children(recursive=True):
            line = " ".join(child.cmdline())
            (kernels if "ipykernel_launcher" in line else workers if "spawn_main" in line else []).append(child)
        if not kernels:
            return None
        return random.choice({"kernel": kernels, "worker": workers, "driver": [psutil.Process(driver)]}[kind])
    except (psutil.NoSuchProcess, IndexError):
        return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _completed(runs: Path, expected: dict, before: dict) -> dict:
    """When each run that counts as done was written; what was done before must not have been touched since."""
    found = {}
    for key, run in expected.items():
        row = tables.read_run(runs / "many" / key)
        if row and row["status"] == "done":
            folder = runs / "many" / key
            assert read_json(folder / "metrics.json")["loss"] == run.settings["rate"] + run.settings["seed"]
            assert re.search("^done", (folder / "log.txt").read_text(), re.M)
            found[key] = (folder / "run.json").stat().st_mtime_ns
    assert before.items() <= found.items(), "a run that was done was done again"
    return found


@pytest.mark.slow
def test_two_workers_of_an_external_scheduler_give_the_same_ledger(tmp_path):
    path = specify(tmp_path, grid={"rate": [0.1, 0.2, 0.3]}, seeds=2)
    elsewhere, dask = tmp_path / "elsewhere", Path(sys.executable).with_name("dask")
    elsewhere.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    file = elsewhere / "scheduler.json"
    scheduler = [dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file]
    worker = [dask, "worker", "--scheduler-file", file, "--nworkers", "2", "--nthreads", "1", "--no-dashboard"]
    quiet = dict(cwd=elsewhere, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    both = [subprocess.Popen(command, **quiet) for command in (scheduler, worker)]
    try:
        end = time.monotonic() + 60
        while "address" not in read_json(file):
            assert time.monotonic() < end, "the scheduler did not come up"
            time.sleep(0.1)
        external = sweep.run_sweep(path, runs=tmp_path / "external", scheduler=read_json(file)["address"])
    finally:
        for process in both:
            process.send_signal(signal.SIGTERM)
        for process in both:
            process.wait(timeout=120)
    local = sweep.run_sweep(path, workers=2, runs=tmp_path / "local")
    own = ("seconds", "cpu_seconds", "peak_mb", "finished", "folder", "metric pid", "commit", "changed", "library")
    same = [c for c in local if c not in own]
    assert len(local) == 6 and (local["status"] == "done").all()
    assert local[same].equals(external[same])


@pytest.mark.slow
def test_slurm_jobs_are_submitted_run_and_cancelled(tmp_path):
    """A stand-in for SLURM: sbatch runs the script that it is given, scancel ends it."""
    pytest.importorskip("dask_jobqueue")
    path = specify(tmp_path, grid={"rate": [0.1, 0.2]}, seeds=2)
    queue = tmp_path / "queue"
    queue.mkdir()
    sbatch = 'id=$$; cp "$1" $id.sh; setsid bash $id.sh > $id.out 2>&1 & echo $! > $id.pid'
    (queue / "sbatch").write_text(f"#!/bin/bash\ncd {queue}\n{sbatch}\necho Submitted batch job $id\n")
    (queue / "scancel").write_text(f"#!/bin/bash\nkill -- -$(cat {queue}/$1.pid); touch {queue}/$1.cancelled\n")
    for name in ("sbatch", "scancel"):
        (queue / name).chmod(0o755)
    settings = read_yaml(ROOT / "papermill_runs/sweeps/slurm/jobqueue.yaml")
    settings["jobqueue"]["slurm"] |= {"memory": "1GB", "interface": None}
    write_yaml(tmp_path / "jobqueue.yaml", settings)
    env = {"PATH": f"{queue}:{os.environ['PATH']}", "DASK_CONFIG": str(tmp_path / "jobqueue.yaml")}
    assert start(path, tmp_path / "runs", 2, "slurm", env).wait(timeout=600) == 0
    table = tables.read_ledger(tmp_path / "runs")
    assert len(table) == 4 and (table["status"] == "done").all()
    scripts = [(queue / name).read_text() for name in sorted(os.listdir(queue)) if name.endswith(".sh")]
    assert len(scripts) == 2 and all("#SBATCH --gpus-per-task=1" in text and "-p regular" in text for text in scripts)
    assert len([*queue.glob("*.cancelled")]) == 2


TRAINING = """# %% tags=["parameters"]
seed: int = 0
out: str = ""
lr: float = 1e-3
pause: float = 0.0

# %%
import time
import torch
from clay_lib import ClayConfig, data, training
from clay_lib.callbacks import Snapshots, newest_checkpoint
from clay_lib.datamodule import ClayDataModule, PlannedBatches, SensorBatches
from clay_lib.runs import in_sweep, output_folder, report, report_metric, write_metrics
from lightning.pytorch.callbacks import LambdaCallback

chips = {"sentinel-1-rtc": data.world_chips("sentinel-1-rtc", 8, size=32, seed=0)}
watched = PlannedBatches(chips, augment=False)[next(iter(SensorBatches({"sentinel-1-rtc": 2}, batch_size=2)))]

# %%
folder = output_folder(out, "training")
first = (newest_checkpoint(folder / "checkpoints") or {"step": 0})["step"]
snapshots = Snapshots(watched, (0, 2, 6))
wait = LambdaCallback(on_train_batch_end=lambda trainer, module, *_: time.sleep(pause * (module.step > 3)))
trained = training.train(
    ClayConfig.named("tiny", depth=1, decoder_depth=1),
    training.TrainSettings(lr=lr, max_steps=6, seed=seed),
    ClayDataModule(chips, chips, batch_size=2, seed=seed),
    out=folder, resume=in_sweep(), checkpoint_steps=1, val_every=1, progress=False,
    callbacks=(snapshots, report_metric("val/loss"), wait),
)
weights = torch.cat([w.flatten() for w in trained.model.state_dict().values()])
pictures = torch.stack([snapshots.taken[step] for step in (0, 2, 6)])
sums = {"weights": weights.double().sum().item(), "pictures": pictures.double().sum().item()}
write_metrics(folder, {"loss": trained.history["val/loss"].iloc[-1], "first step": first, "steps": trained.steps, **sums})
"""


@pytest.mark.slow
def test_run_killed_in_the_middle_of_a_training_resumes_from_its_checkpoint_with_the_same_numbers(tmp_path):
    (tmp_path / "training.py").write_text(TRAINING)
    spec = {"notebook": "training.py", "metrics": {"loss": "min"}, "threads": 1, "grid": {"lr": [1e-3]}}
    write_yaml(tmp_path / "t.yaml", spec | {"fixed": {"pause": 1.0}})
    driver, last = start(tmp_path / "t.yaml", tmp_path / "runs", workers=1), None
    while last is None or not last.is_file():
        assert driver.poll() is None
        time.sleep(0.05)
        last = next(tmp_path.glob("runs/t/*/checkpoints/previous.ckpt"), None)
    while read_checkpoint(last)["step"] < 3:  # the next steps take a second each
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    killed = sweep.run_sweep(tmp_path / "t.yaml", workers=1, runs=tmp_path / "runs").iloc[0]
    again = sweep.run_sweep(tmp_path / "t.yaml", workers=1, runs=tmp_path / "alone").iloc[0]
    assert killed["metric first step"] >= 3 and again["metric first step"] == 0 and killed["metric steps"] == 6
    for name in ("loss", "weights", "pictures"):
        assert killed[f"metric {name}"] == again[f"metric {name}"]
    reported = [read_reported(row["folder"]) for row in (killed, again)]
    assert reported[0] == reported[1] and len(reported[0]) >= 5
    Path(again["folder"], "run.json").unlink()  # as if it had been killed after its training
    later = sweep.run_sweep(tmp_path / "t.yaml", workers=1, runs=tmp_path / "alone").iloc[0]
    same = ["metric loss", "metric weights", "metric pictures"]
    assert later["metric first step"] == 6 and later[same].equals(again[same])
    histories = [Path(row["folder"], "log/metrics.csv").read_bytes() for row in (killed, again)]
    assert histories[0] == histories[1]


def _answers(about: dict) -> bool:
    with suppress(requests.ConnectionError):
        return requests.get(f"{about['url']}api", timeout=60).ok
    return False


@pytest.mark.slow
def test_notebook_open_in_jupyter_is_not_disturbed_by_a_sweep_of_it(tmp_path):
    path, token = specify(tmp_path, grid={"rate": [0.1, 0.2]}), "t"
    (tmp_path / "jupytext.toml").write_text((ROOT / "jupytext.toml").read_text())
    jupytext.write(jupytext.read(tmp_path / "tiny.py"), tmp_path / "tiny.ipynb")
    command = [sys.executable, "-m", "jupyter", "server", "--no-browser", "--allow-root", "--ServerApp.port=0"]
    command += [f"--ServerApp.root_dir={tmp_path}", f"--IdentityProvider.token={token}"]
    env = os.environ | {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, env=env, stderr=open(tmp_path / "server.log", "w"), start_new_session=True)
    try:
        while not (about := [*(tmp_path / "runtime").glob("jpserver-*.json")]) or not _answers(read_json(about[0])):
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        home = f"{read_json(about[0])['url']}api"

        def ask(what: str, method: str = "GET", **body):
            headers = {"Authorization": f"token {token}"}
            answer = requests.request(method, f"{home}/{what}", json=body or None, headers=headers, timeout=120)
            answer.raise_for_status()
            return answer.json()

        opened = ask("contents/tiny.ipynb")
        notebook = {"path": "tiny.ipynb", "type": "notebook", "name": "tiny"}
        session = ask("sessions", "POST", **notebook, kernel={"name": "python3"})
        client = BlockingKernelClient()
        client.load_connection_file(str(tmp_path / "runtime" / f"kernel-{session['kernel']['id']}.json"))
        client.start_channels(hb=False)  # which a busy machine would take for dead
        client.wait_for_ready(120)
        client.execute_interactive("mine = 41", timeout=120)
        before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("tiny.*")}

        table = sweep.run_sweep(path, workers=2, runs=tmp_path / "runs")

        assert (table["status"] == "done").all() and len(before) == 2
        assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("tiny.*")}
        assert ask("contents/tiny.ipynb") == opened
        assert (
            [s["kernel"]["id"] for s in ask("sessions")]
            == [session["kernel"]["id"]]
            == [k["id"] for k in ask("kernels")]
        )
        reply = client.execute_interactive("", user_expressions={"sum": "mine + 1"}, timeout=120)
        assert reply["content"]["user_expressions"]["sum"]["data"]["text/plain"] == "42"
        client.stop_channels()
        ask("contents/tiny.ipynb", "PUT", type="notebook", format="json", content=opened["content"])  # saving works
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
