"""The timings are of real work, and each has its line."""

import re

import pytest
import torch

from clay_lib import ContractError
from clay_lib.datamodule import noise_batch
from clay_lib.model import ClayConfig
from clay_lib.runs.bench import SENSOR, bench, median_seconds, paired, stepper
from clay_lib.training import ClayModule


def test_a_line_for_each_with_a_positive_time(capsys):
    assert bench("model", repeats=1, size="tiny", batch=1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(float(re.search(r"([\d.]+) ms", line)[1]) > 0 for line in lines)


def test_our_step_beside_a_plain_masked_autoencoder(capsys):
    assert bench("mae", repeats=1, size="tiny", batch=1, pixels=64) == 0
    forecast, ours, other = capsys.readouterr().out.splitlines()
    assert re.search(r"1 pairs of steps, about [\d.]+ minutes", forecast)
    assert float(re.search(r"([\d.]+) ms", ours)[1]) > 0
    assert float(re.search(r"([\d.]+) x ours", other)[1]) > 0 and "x by operations" in other
    with pytest.raises(ContractError, match="some of"):
        bench("maes")


def test_pairs_take_turns_and_give_the_ratio():
    calls, now = [], [0.0]

    def work(name, seconds):
        calls.append(name)
        now[0] += seconds

    found = paired(lambda: work("a", 2.0), lambda: work("b", 5.0), repeats=4, clock=lambda: now[0])
    assert found == (2.0, 5.0, 2.5) and "".join(calls) == "ab" + "abba" * 2


def test_a_step_trains():
    module = ClayModule(ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=16), cached=True)
    before = [p.detach().clone() for p in module.parameters()]
    stepper(lambda batch: module.losses(batch, training=True)["loss"], module)(noise_batch(SENSOR, 2, 16, 16))
    moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_median_leaves_the_warm_up_out(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr("clay_lib.runs.bench.time.perf_counter", lambda: next(clock))
    calls = []
    assert median_seconds(lambda: calls.append(1), repeats=3) == 2.0 and len(calls) == 4
