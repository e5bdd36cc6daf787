"""Clusters: the Dask client that reads pixels, on this machine, on any scheduler, or through SLURM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from clay_lib.errors import ContractError

WAIT = 30  # s until a scheduler must have answered


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def dask_client(scheduler: str = "", *, workers: int = 0, processes: bool = False, **slurm) -> Iterator:
    """A distributed.Client for as long as the `with` lasts.

    scheduler: "" for a LocalCluster, an address such as tcp://10.0.0.1:8786, or "slurm".
    workers: threads of the LocalCluster, by default one a core and at least four, since reading mostly waits;
    processes: one process each instead, which a SIGKILL cannot take the job down with. With SLURM: jobs, by default 2.
    slurm: options of dask_jobqueue.SLURMCluster (queue, cores, memory, walltime ...) beside those of its jobqueue.yaml.
    """
    import dask
    from distributed import Client, LocalCluster

    # A worker that pauses at a share of the machine's memory would stop a job that shares the machine with others.
    told = {f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause", "terminate")}
    if processes:  # nothing waits behind a long task while another worker is free
        told["distributed.scheduler.worker-saturation"] = 1.0
    with dask.config.set({"distributed.comm.timeouts.connect": f"{WAIT}s", **told}):
        if scheduler and scheduler != "slurm":
            try:
                client = Client(scheduler, timeout=WAIT)
            except (OSError, TimeoutError, ValueError) as error:
                raise ContractError(
                    "scheduler",
                    f"{scheduler}: {type(error).__name__}: {error}",
                    "the address of a running scheduler, such as tcp://10.0.0.1:8786",
                    "it is not running, another port, or a firewall",
                ) from None
            with client:
                yield client
            return
        if scheduler == "slurm":
            cluster = slurm_cluster(workers or 2, **slurm)
        else:
            count = workers or max(4, cores())
            shape = dict(n_workers=count, threads_per_worker=1) if processes else dict(threads_per_worker=count)
            cluster = LocalCluster(
                processes=processes,
                dashboard_address=None,
                silence_logs=50,
                **({"n_workers": 1} | shape),
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # any free port: several jobs on one machine
            )
        with cluster, Client(cluster) as client:
            yield client


def slurm_cluster(jobs: int, **options):
    """dask_jobqueue.SLURMCluster with that many jobs asked for."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ContractError(
            "scheduler",
            "slurm, without the package dask-jobqueue",
            "pip install 'clay-notebooks[slurm]'",
            "it is an extra, since most machines have no SLURM",
        ) from None
    try:
        cluster = SLURMCluster(**options)
    except ValueError as error:  # cores or memory are said nowhere
        raise ContractError(
            "scheduler",
            f"slurm: {' '.join(str(error).split())}",
            "cores, memory and queue, handed in or in ~/.config/dask/jobqueue.yaml",
            "a machine on which dask-jobqueue was not configured yet",
        ) from None
    cluster.scale(jobs=jobs)
    return cluster
