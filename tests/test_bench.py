"""The timings are of real work, and each has its line."""

import re

from clay_lib.bench import bench, median_seconds


def test_a_line_for_each_with_a_positive_time(capsys):
    assert bench(repeats=1, size="tiny", batch=1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(float(re.search(r"([\d.]+) ms", line)[1]) > 0 for line in lines)


def test_median_leaves_the_warm_up_out(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr("clay_lib.bench.time.perf_counter", lambda: next(clock))
    calls = []
    assert median_seconds(lambda: calls.append(1), repeats=3) == 2.0 and len(calls) == 4
