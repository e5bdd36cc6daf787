"""The operations on paper are those that torch counts in the networks themselves."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clay_lib import SENSORS, ClayConfig, ClayMAE, Datacube
from clay_lib.runs import bench
from clay_lib.runs.bench import plain_mae, random_dinov2_large


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def cube(sensor, pixels, batch):
    waves = torch.from_numpy(SENSORS[sensor].waves()).to("meta")
    shape = (batch, len(waves), pixels, pixels)
    codes = [torch.zeros(batch, 4, device="meta") for _ in range(2)]
    return Datacube(torch.zeros(shape, device="meta"), *codes, torch.tensor(10.0, device="meta"), waves)


@pytest.mark.parametrize(
    "size, sensor, pixels, batch",
    [("large", "sentinel-2-l2a", 256, 2), ("base", "sentinel-1-rtc", 128, 1), ("tiny", "modis", 64, 3)],
)
def test_student(size, sensor, pixels, batch):
    config = ClayConfig.named(size)
    with torch.device("meta"):
        model = ClayMAE(config)
    batch_cube = cube(sensor, pixels, batch)
    size = dict(bands=len(SENSORS[sensor].bands), pixels=pixels, batch=batch)
    forward = sum(bench.student_parts(config, **size).values())
    assert batch * forward == pytest.approx(counted(lambda: model(batch_cube)), rel=0.02)

    def step():
        out = model(batch_cube)
        (out.reconstruction.sum() + out.representation.sum()).backward()

    assert batch * bench.student_step(config, **size) == pytest.approx(counted(step), rel=0.02)


def test_teacher():
    with torch.device("meta"):
        teacher = random_dinov2_large()
    assert sum(p.numel() for p in teacher.parameters()) == pytest.approx(304.37e6, rel=1e-4)
    image = torch.zeros(1, 3, 518, 518, device="meta")
    assert bench.dinov2_large() == pytest.approx(counted(lambda: teacher.network(image)), rel=0.02)


def test_plain_masked_autoencoder():
    config = ClayConfig.named("base")
    with torch.device("meta"):
        model = plain_mae(config, bands=10, pixels=128)
    images = torch.zeros(2, 10, 128, 128, device="meta")
    step = lambda: model(images).loss.backward()  # noqa: E731
    assert 2 * bench.vit_mae_step(config, bands=10, pixels=128) == pytest.approx(counted(step), rel=0.02)
