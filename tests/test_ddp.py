"""Two processes with b chips each train like one with 2 b chips."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fakes import MICRO, fake_chips

from clay_lib import Clay
from clay_lib.datamodule import ClayDataModule
from clay_lib.training import TrainSettings, train


class Colors(torch.nn.Module):
    """A teacher whose output is the mean color."""

    dim = MICRO.teacher_dim

    def forward(self, rgb):
        return rgb.mean((2, 3)).repeat(1, self.dim)[:, : self.dim]


def run(out, batch_size, **options):
    """Twenty steps on three sensors, with every kind of random numbers in training."""
    sizes = {"naip": 21, "sentinel-2-l2a": 16, "linz": 7}
    chips = {name: fake_chips(name, n, size=24) for name, n in sizes.items()}
    data = ClayDataModule(chips, {"naip": fake_chips("naip", 8, size=24)}, batch_size=batch_size, crop=16)
    settings = TrainSettings(t_0=8, drop_all_bands=0.3, drop_half_bands=0.3, clip_gradient=1.0, max_steps=20)
    options = {"accelerator": "cpu", "progress": False, "log_every": 1, "val_every": 10, **options}
    return train(MICRO, settings, data, out=out, teacher=Colors(), **options)


def test_two_processes_train_like_one_with_twice_the_batch(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run([*command, str(tmp_path / "two")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one = run(tmp_path / "one", batch_size=8)

    two = pd.read_csv(tmp_path / "two" / "log" / "metrics.csv")
    assert list(two.columns) == list(one.history.columns) and len(two) == 22
    np.testing.assert_allclose(two["train/loss"], one.history["train/loss"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(two["val/loss"], one.history["val/loss"], atol=1e-5, rtol=0)
    state = Clay.load(tmp_path / "two" / "checkpoints" / "last.ckpt").model.state_dict()
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, atol=1e-4, rtol=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), batch_size=4, devices=2, strategy="ddp")
