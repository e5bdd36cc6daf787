"""Limits of containers and control groups, and the cores that other processes leave free."""

import builtins
import io

import psutil
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
    monkeypatch.setattr(cluster.os, "sched_getaffinity", lambda pid: set(range(64)))
    assert cluster.cores() == 1 and cluster.free_memory() <= 2**30


def test_idle_cores_are_those_that_others_leave_free(monkeypatch):
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cluster, "cores", lambda: 6)
    for percent, expected in {0: 6, 50: 4, 94: 1, 100: 1}.items():
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percent=percent: percent)
        assert cluster.idle_cores() == expected
