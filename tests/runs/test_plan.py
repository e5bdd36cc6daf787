"""The plan's arithmetic holds, and the page in the repository is what the code works out from what it says it measured."""

import pytest
from test_targets import Counting, some_chips

from clay_lib import SENSORS, ClayConfig
from clay_lib.data.targets import fill_targets
from clay_lib.runs import bench
from clay_lib.runs.bench import PAGE, Measured, measured_in, page


def test_the_page_is_the_codes_own():
    text = PAGE.read_text()
    assert page(measured_in(text)) == text, "python -m clay_lib plan writes it anew"
    assert set(measured_in(text).ratios) == set(bench.CHIPS) <= set(SENSORS)


def test_other_measurements_give_another_page():
    half = Measured(1, dict.fromkeys(bench.CHIPS, 2), dict.fromkeys(bench.CHIPS, 0.5), 2.0, "nowhere")
    text = page(half)
    assert "| naip | 20,984,171 | 4 x 2 | 11.0 | 0.50 | 5.5 |" in text  # 20 984 171 x 4 x 65536 x 2 bytes
    assert measured_in(text) == half and text != PAGE.read_text()
    assert "| all | 72,069,364 |" in text


def test_gpu_hours_and_the_loader_agree():
    work = bench.step_flops(ClayConfig.named("large"), bench.chips_seen())
    for device in bench.DEVICES:
        chips, stored = bench.loader_rate(device, 1e6)
        assert stored == chips * 1e6
        assert bench.gpu_hours(chips * 3600 * work, device, bench.UTILISATION) == pytest.approx(1.0)
    six_bands = bench.student_step(ClayConfig.named("large"), bands=6, pixels=256, batch=32)
    assert work == pytest.approx(six_bands, rel=0.02)


def test_the_cache_takes_the_bytes_that_are_planned(tmp_path):
    fill_targets(some_chips(n=200, size=8), Counting(1024), tmp_path, progress=False)
    written = sum(file.stat().st_size for file in (tmp_path / "targets").glob("*/*/*.npy"))
    assert written == pytest.approx(bench.target_bytes(200, 1024), rel=0.002)
