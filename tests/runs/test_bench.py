"""Timings are of real work, and the figures of papermill_runs/PRETRAINING.md follow from counted operations."""

import json
import re

import pytest
import torch
from test_targets import Counting, random_chips
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from clay_lib import SENSORS, ClayConfig, ContractError
from clay_lib.data.targets import fill_targets
from clay_lib.runs.bench import SENSOR, bench, count_flops, embed_flops, paired_seconds, step_flops
from clay_lib.runs.notebooks import RUNS

PAGE = (RUNS / "PRETRAINING.md").read_text()


@pytest.mark.parametrize(("what", "names"), [("embed", {"exact", "medium", "int8"}), ("train", {"exact", "medium"})])
def test_each_precision_has_its_ratio(what, names, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bench(what, repeats=1, size="tiny", batch=1, pixels=64, out=str(tmp_path / "b.json")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " x exact" in line]
    results = json.loads((tmp_path / "b.json").read_text())["results"]
    assert names <= {row["name"].rpartition(", ")[2] for row in results} and len(lines) == len(results)
    exact, *others = (float(re.search(r"([\d.]+) x exact", line)[1]) for line in lines)
    assert exact == 1 and min(others) > 0
    assert sum("<- auto" in line for line in lines) == 1
    assert all(row["seconds"] > 0 for row in results)


def test_device_and_names_are_checked():
    with pytest.raises(ContractError, match="some of"):
        bench("onxn")
    if not torch.cuda.is_available():
        with pytest.raises(ContractError, match="no GPU"):
            bench(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bench_on_a_gpu_begins_with_the_agreement(capsys):
    assert bench("embed,train", size="tiny", batch=2, pixels=64, repeats=2, device="cuda") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "CUDA beside CPU" in lines[1] and sum("compiled" in line for line in lines) == 2


def test_attention_is_counted_as_operations():
    depth, N, D = 24, 1025, 1024
    products = depth * (2 * N * 12 * D * D + 4 * N * N * D)
    assert embed_flops(ClayConfig.named("large"), SENSOR, batch=1, pixels=256) == pytest.approx(products, rel=0.02)


def test_onnx_runtime_beside_torch(capsys):
    assert bench("onnx", repeats=1, size="tiny", pixels=16) == 0
    _, torch_row, onnx_row = capsys.readouterr().out.splitlines()
    rates = [float(re.search(r"([\d.]+) chips/s", row)[1]) for row in (torch_row, onnx_row)]
    assert min(rates) > 0 and float(re.search(r"([\d.]+) x torch", onnx_row)[1]) > 0


def test_reading_a_store_is_faster_than_a_training_step(capsys):
    assert bench("chips", pixels=64, count=64, batch=16, repeats=3, size="tiny") == 0
    printed = capsys.readouterr().out
    rates = [float(rate) for rate in re.findall(r"([\d.]+) chips/s", printed)]
    assert len(rates) == 5 and min(rates) > 0
    ratio = float(re.search(r"reading is (\d+) x as fast", printed)[1])
    assert ratio > 2, printed  # a tiny model; hundreds for the base model
    assert float(re.search(r"([\d.]+) x smaller", printed)[1]) > 1.1


def test_paired_timings_alternate_and_give_the_ratio():
    calls, now = [], [0.0]

    def work(name, seconds):
        calls.append(name)
        now[0] += seconds

    timings = paired_seconds(lambda: work("a", 2.0), lambda: work("b", 5.0), repeats=4, clock=lambda: now[0])
    assert timings == (2.0, 5.0, 2.5) and "".join(calls) == "ab" + "abba" * 2


# ---- papermill_runs/PRETRAINING.md


def number(pattern: str) -> float:
    return float(re.search(pattern, PAGE)[1].replace(",", ""))


def test_pages_operations_are_those_that_torch_counts():
    shape = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14)
    with torch.device("meta"):
        teacher = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=4, **shape))  # large
        operations = count_flops(lambda: teacher(torch.empty(1, 3, 518, 518)))
    assert sum(p.numel() for p in teacher.parameters()) == pytest.approx(304.37e6, rel=1e-4)
    assert number(r"at 518 x 518 \| ([\d,]+) GFLOP") == pytest.approx(operations / 1e9, rel=0.01)
    step = step_flops(ClayConfig.named("large"), "landsat-c2l2-sr", batch=32, pixels=256) / 32  # six bands, the mean
    assert number(r"forward and backward, a chip \| ([\d,]+) GFLOP") == pytest.approx(step / 1e9, rel=0.01)


def test_pages_gpu_hours_and_stores_follow_from_its_figures():
    chips, step = number(r"([\d,]+) chips of 256"), number(r"forward and backward, a chip \| ([\d,]+) GFLOP") * 1e9
    gpus = re.findall(r"\| (L4|A100 SXM|H100 SXM) \| (\d+) \| \d+ \| ([\d,]+) \|", PAGE)
    assert len(gpus) == 3
    for _, peak, hours in gpus:  # 100 epochs at 40 % of peak
        seconds = 100 * chips * step / (0.4 * float(peak) * 1e12)
        assert float(hours.replace(",", "")) == pytest.approx(seconds / 3600, rel=0.01)
    rows = re.findall(r"\| ([\w-]+) \| ([\d,]+) \| (\d+) x (\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", PAGE)
    counts = {sensor: int(count.replace(",", "")) for sensor, count, *_ in rows}
    assert set(counts) <= set(SENSORS) and sum(counts.values()) == chips
    for sensor, _, bands, size, raw, ratio, stored in rows:
        assert int(bands) == len(SENSORS[sensor].bands)
        terabytes = counts[sensor] * int(bands) * 256**2 * int(size) / 1e12
        assert float(raw) == pytest.approx(terabytes, abs=0.051)
        assert float(stored) == pytest.approx(terabytes * float(ratio), abs=0.051)


def test_target_cache_takes_the_bytes_that_the_page_states(tmp_path):
    fill_targets(random_chips(n=200, size=8), Counting(1024), tmp_path, progress=False)
    written = sum(file.stat().st_size for file in (tmp_path / "targets").glob("*/*/*.npy"))
    flips, width, key = map(int, re.search(r"chips x (\d) flips x \((\d+) x 2 \+ (\d+)\)", PAGE).groups())
    assert written == pytest.approx(200 * flips * (2 * width + key), rel=0.002)


def test_search_measures_time_memory_and_recall(capsys):
    assert bench("search", count=20_000, repeats=5) == 0
    printed = capsys.readouterr().out
    vectors, more, kept = (
        float(n) for n in re.search(r"(\S+) MB of .* (\S+) MB more, (\S+) MB kept", printed).groups()
    )
    assert vectors == 1 and kept < 1 and more < 200
    recalls = [float(n) for n in re.findall(r"recall of 20: ([\d.]+)", printed)]
    assert len(recalls) == 2 and min(recalls) > 0.8  # fewer vectors than a search compares in a large table
