"""Limits of containers and control groups; workers."""

import builtins
import io
import os

import pytest

from clay_lib import cluster

FILES = {
    "v2": {
        "/proc/self/cgroup": "0::/slice/job",
        "/sys/fs/cgroup/slice/job/cpu.max": "100000 100000",
        "/sys/fs/cgroup/memory.max": "1073741824",
    },
    "v1": {
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824",
    },
}


@pytest.mark.parametrize("version", FILES)
def test_limits_of_a_control_group_bound_cores_and_memory(version, monkeypatch):
    import distributed.system  # noqa: F401, before files are replaced

    real = builtins.open

    def fake(path, *args, **kwargs):
        if str(path) in FILES[version]:
            return io.StringIO(FILES[version][str(path)])
        if str(path).startswith("/sys/fs/cgroup"):
            raise FileNotFoundError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", fake)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert cluster.cores() == 1 and cluster.free_memory() <= 2**30


def test_cores_of_a_control_group_whose_folder_is_called_only_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr("dask.system.cpu_count", lambda: 64)
    monkeypatch.setattr(cluster, "CPU_GROUP", tmp_path)
    assert cluster.cores() == 64
    for quota, expected in {250_000: 3, -1: 64}.items():  # -1: no limit
        (tmp_path / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
        assert cluster.cores() == expected


def test_workers_are_not_profiled():
    """The profiler may stop a process for good, see `dask_client`."""
    with cluster.dask_client(workers=1) as client:
        callbacks = client.run(lambda dask_worker: sorted(dask_worker.periodic_callbacks))
    assert all("heartbeat" in names and "profile" not in names for names in callbacks.values()), callbacks
