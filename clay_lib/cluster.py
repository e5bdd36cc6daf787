"""Dask clients: on this machine, at the address of a scheduler, or through SLURM."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from clay_lib.errors import ContractError

# OpenMP reads this when torch is imported: threads that wait for others sleep. By default they spin, and beside a busy
# process a training step on two threads then takes ten times as long.
WAIT_POLICY = "PASSIVE"
WAIT = 30  # s until a scheduler must have answered
CPU_GROUP = Path("/sys/fs/cgroup/cpu")  # of version 1; Dask reads version 2, and folders named cpu,cpuacct


def cores() -> int:
    """Cores that this process may use, by its affinity and the limits of its container or control group."""
    from dask.system import cpu_count

    try:
        quota, period = (int((CPU_GROUP / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        quota, period = -1, 1
    return min(cpu_count(), math.ceil(quota / period)) if quota > 0 else cpu_count()


def free_memory() -> int:
    """Bytes of memory that are free on the machine, at most the limit of the container or control group."""
    import psutil
    from distributed.system import memory_limit

    return min(psutil.virtual_memory().available, memory_limit())


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, by number or name."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name for name in visible.split(",") if name.strip() and name.strip() != "-1")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(i) for i in range(len(lines))) if listed.returncode == 0 else ()


def progress_bar(*, disable: bool = False, **options):
    """A bar of tqdm in a terminal or a notebook; none where the output is a log file."""
    from tqdm.auto import tqdm

    return tqdm(disable=disable or not (sys.stderr.isatty() or "ipykernel" in sys.modules), **options)


@contextmanager
def dask_client(scheduler: str = "", *, workers: int = 0, processes: bool = False, **slurm) -> Iterator:
    """A distributed.Client for the duration of the `with` block.

    scheduler: "" for a LocalCluster, an address such as tcp://10.0.0.1:8786, or "slurm".
    workers: threads of the LocalCluster, by default one a core and at least four, since reading mostly waits; with
    SLURM: jobs, by default 2. processes: workers are processes instead, so that a killed one does not end the job.
    slurm: options of dask_jobqueue.SLURMCluster (queue, cores, memory, walltime ...) beside those of its jobqueue.yaml.
    """
    import dask
    from distributed import Client, LocalCluster

    # Workers that pause at a share of the machine's memory would stop a job that shares the machine with others.
    config = {f"distributed.worker.memory.{level}": False for level in ("target", "spill", "pause", "terminate")}
    # The profiler lists the frames of all threads, during which CPython 3.11 may collect garbage: a thread that starts
    # at that moment, as reads start them, waits forever and the process with it.
    config["distributed.worker.profile.enabled"] = False
    # On a busy machine a killed worker may start again later than Dask waits for it, and would never be replaced.
    config["distributed.deploy.lost-worker-timeout"] = "120s"
    if processes:  # no task waits behind a long one while another worker is free
        config["distributed.scheduler.worker-saturation"] = 1.0
    with dask.config.set({"distributed.comm.timeouts.connect": f"{WAIT}s", **config}):
        if scheduler and scheduler != "slurm":
            try:
                client = Client(scheduler, timeout=WAIT)
            except (OSError, TimeoutError, ValueError) as error:
                found = f"{scheduler}: {type(error).__name__}: {error}"
                expected = "the address of a running scheduler, such as tcp://10.0.0.1:8786"
                raise ContractError("scheduler", found, expected, "not running, another port, or a firewall") from None
            with client:
                yield client
            return
        if scheduler == "slurm":
            cluster = slurm_cluster(workers or 2, **slurm)
        else:
            count = workers or max(4, cores())
            n_workers, threads = (count, 1) if processes else (1, count)
            if processes:
                _require_main_guard()
            cluster = LocalCluster(
                n_workers=n_workers,
                threads_per_worker=threads,
                processes=processes,
                dashboard_address=None,
                silence_logs=50,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # any free port: several jobs on one machine
            )
        with cluster, Client(cluster) as client:
            yield client


def wait_for_workers(client, scheduler: str, seconds: float = 120) -> None:
    """ContractError where no worker comes up in time; under SLURM the queue decides when."""
    if scheduler == "slurm":
        return
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError:
        found = f"none at {scheduler or 'this machine'} within {seconds:g} s"
        raise ContractError("workers", found, "at least one", "a scheduler without workers") from None


def _require_main_guard() -> None:
    """ContractError in a script that starts the same work again when a worker process imports it."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script and Path(script).suffix == ".py" and "__name__" not in Path(script).read_text(encoding="utf-8"):
        expected = 'if __name__ == "__main__": before what the script does'
        cause = "each worker process imports the script, which would begin the same work"
        raise ContractError("script", f"{script} without a main guard", expected, cause)


def slurm_cluster(jobs: int, **options):
    """dask_jobqueue.SLURMCluster with that many jobs requested."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        cause = "it is an extra, since most machines have no SLURM: pip install 'clay-notebooks[slurm]'"
        raise ContractError("scheduler", "slurm", "the package dask-jobqueue", cause) from None
    try:
        cluster = SLURMCluster(**options)
    except ValueError as error:  # cores or memory are not given
        expected = "cores, memory and queue, as options or in ~/.config/dask/jobqueue.yaml"
        cause = "a machine on which dask-jobqueue was not configured yet"
        raise ContractError("scheduler", f"slurm: {' '.join(str(error).split())}", expected, cause) from None
    cluster.scale(jobs=jobs)
    return cluster


# ---- forecasts: what a job would take, from a small part of it ----


def timed(work: Callable[[], object], *, warm_up: Callable[[], object]) -> float:
    """Seconds of a call, after one that is not counted, since first calls are slower."""
    warm_up()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def forecast_lines(values: Mapping[str, str]) -> str:
    """A forecast as lines of name and value."""
    return "\n".join(f"{name:<16}{value}" for name, value in values.items())


def forecast_table(unit: str, rows: Sequence[tuple[str, int, float, float]], note: str = "") -> str:
    """A forecast as a table with its sum. unit: what is counted; rows: (name, count, bytes and seconds for all of it)."""
    total = (f"all{note}", *(sum(row[k] for row in rows) for k in (1, 2, 3)))
    lines = [f"{'to do':<34}{unit:>10}{'MB':>10}{'minutes':>9}"]
    lines += [f"{name:<34}{n:>10}{size / 1e6:>10.1f}{seconds / 60:>9.2f}" for name, n, size, seconds in [*rows, total]]
    return "\n".join(lines)
