"""The store's timings run, and read faster than a model eats."""

import re

from clay_lib.runs.bench import bench_chips


def test_reading_outruns_a_training_step(capsys):
    assert bench_chips(size=64, count=64, batch=16, repeats=3, model="tiny") == 0
    said = capsys.readouterr().out
    rates = [float(rate) for rate in re.findall(r"([\d.]+) chips/s", said)]
    assert len(rates) == 6 and min(rates) > 0
    assert float(re.search(r"reads (\d+) x as fast", said)[1]) > 2, said  # a tiny model; hundreds for the base model
    assert float(re.search(r"([\d.]+) x smaller", said)[1]) > 1.1
