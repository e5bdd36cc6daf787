"""Exports of sweeps: a table for git, an MLflow file store, or a TensorBoard folder."""

import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from clay_lib.errors import ContractError
from clay_lib.files import atomic_write
from clay_lib.runs.notebooks import FIGURES, RUNS, read_reported
from clay_lib.runs.search import known_runs
from clay_lib.runs.specification import Sweep, read_sweep
from clay_lib.runs.tables import ENDED, read_ledger, read_run
from clay_lib.runs.teachers import missing_package


def export_sweep(file: str, *, to: Literal["csv", "mlflow", "tensorboard"] = "csv", out: str = "") -> int:
    """Write a sweep's runs for other tools; again, it adds the runs that ended since.

    Example: clay sweep export papermill_runs/sweeps/copy_neighbours.yaml --to mlflow

    Args:
        file: the specification
        to: csv (settings, metrics and cost of the finished runs), mlflow (a file store with parameters, metrics,
            curves, figures and notebooks) or tensorboard (a folder with the same)
        out: the folder; empty: papermill_runs/sweeps/results for csv, else papermill_runs/SWEEP/mlflow or /tensorboard
    """
    spec = read_sweep(file)
    spec = known_runs(spec, RUNS / spec.name)
    ended = [row for run in spec.runs if (row := read_run(RUNS / spec.name / run.key))]
    ended = [row for row in ended if row["status"] in (*ENDED, "pruned")]
    if not ended:
        found, cause = f"no run of {spec.name} in {RUNS}", f"start it: clay sweep {file}"
        raise ContractError("sweep", found, "finished runs", cause)
    folder = Path(out) if out else RUNS / "sweeps" / "results" if to == "csv" else RUNS / spec.name / to
    if to == "csv":
        print(f"{export_table(spec, RUNS, folder)}")
        return 0
    with missing_package("--to", to):
        count = (_to_mlflow if to == "mlflow" else _to_tensorboard)(spec.name, ended, folder.resolve())
    viewer = "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri" if to == "mlflow" else "tensorboard --logdir"
    print(f"{count} of {len(ended)} runs added to {folder}; to look at them: {viewer} {folder}")
    return 0


def export_table(spec: Sweep, runs: Path = RUNS, folder: Path = RUNS / "sweeps" / "results") -> Path:
    """folder/SWEEP.csv: a specification's finished and pruned runs, to be kept in git: settings, metrics, cost, code."""
    table = read_ledger(runs, spec.name)
    table = table[table["status"].isin(["done", "pruned"]) & table["run"].isin([run.key for run in spec.runs])]
    names = [f"parameter {name}" for name in (*spec.varied, *([spec.seed] if spec.seed else []))]
    reached = ["reached_step", "reached"] if (table["status"] == "pruned").any() else []
    metrics = [c for c in table if c.startswith(("metric ", "text ")) and table[c].notna().any()]
    order = {run.key: number for number, run in enumerate(spec.runs)}  # of a search: as they were drawn
    cost = ["seconds", "cpu_seconds", "peak_mb", "cores", "library"]
    table = table.sort_values("run", key=lambda runs: runs.map(order))[["status", *names, *metrics, *reached, *cost]]
    text = table.to_csv(index=False, float_format="%.6g")
    return atomic_write(folder / f"{spec.name}.csv", lambda part: part.write_text(text, encoding="utf-8"))


def _to_mlflow(name: str, rows: list[dict], folder: Path) -> int:
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # current releases ask for it
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    def safe(text: str) -> str:
        return re.sub(r"[^\w\-. /]", "_", text)

    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.get_experiment_by_name(name)
    experiment = experiment.experiment_id if experiment else client.create_experiment(name)
    stored, token = {}, None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        stored |= {run.info.run_name: run.info for run in page}
        if not (token := page.token):
            break
    count = 0
    for row in rows:
        old = stored.get(row["run"])
        if old and old.status in ("FINISHED", "FAILED"):
            continue
        if old:  # an export that was cut short
            client.delete_run(old.run_id)
        run = client.create_run(experiment, run_name=row["run"]).info.run_id
        values = {**row["metrics"], "seconds": row["seconds"], "peak_mb": row["peak_mb"]}
        numbers = {k: v for k, v in values.items() if isinstance(v, float) and math.isfinite(v)}
        metrics = [Metric(safe(k), v, 0, 0) for k, v in numbers.items()]
        metrics += [Metric("reported", value, 0, step) for step, value in _curve(row)]
        texts = {safe(k): v for k, v in row["metrics"].items() if isinstance(v, str)}
        tags = {"status": row["status"], "commit": row["commit"], "clay_lib": row["library"], **texts}
        params = [Param(safe(k), str(v)) for k, v in row["parameters"].items()]
        client.log_batch(run, metrics, params, [RunTag(k, str(v)) for k, v in tags.items()])
        for path in _artifacts(row):
            client.log_artifact(run, str(path))
        client.set_terminated(run, "FAILED" if row["status"] in ("failed", "died") else "FINISHED")
        count += 1
    return count


def _to_tensorboard(name: str, rows: list[dict], folder: Path) -> int:
    from matplotlib.image import imread
    from tensorboardX import SummaryWriter

    count = 0
    for row in rows:
        target, part = folder / row["run"], folder / f".part-{row['run']}"
        if target.is_dir():
            continue
        shutil.rmtree(part, ignore_errors=True)
        numbers = {k: v for k, v in row["metrics"].items() if isinstance(v, float)}
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in row["parameters"].items()}
        with SummaryWriter(str(part)) as writer:
            writer.add_hparams({**plain, "status": row["status"]}, numbers, name="settings")
            for step, value in _curve(row):
                writer.add_scalar("reported", value, step)
            for path in _artifacts(row):
                shutil.copy2(path, part)
                if path.suffix in FIGURES and path.suffix != ".svg":
                    writer.add_image(path.stem, imread(path)[..., :3], dataformats="HWC")
        part.rename(target)
        count += 1
    return count


def _curve(row: dict) -> Iterator[tuple[int, float]]:
    return ((step, value) for step, value in read_reported(Path(row["folder"])).items() if math.isfinite(value))


def _artifacts(row: dict) -> list[Path]:
    """The executed notebook, its log and its figures."""
    names = (f"{row['notebook']}.ipynb", "log.txt")
    return sorted(p for p in Path(row["folder"]).iterdir() if p.name in names or p.suffix in FIGURES)
