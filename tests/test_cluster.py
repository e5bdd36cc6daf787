"""Limits of containers and control groups."""

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
