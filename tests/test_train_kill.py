"""A run killed again and again ends where one that was never killed ends: same weights, same rows, bit by bit."""

import subprocess
import sys
from pathlib import Path

import pytest

# A fresh interpreter that imports once and then forks, since a start would else take longer than what is tested.
DRIVER = '''
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from clay_lib import ClayConfig
from clay_lib.datamodule import ClayDataModule
from clay_lib.resuming import newest_checkpoint
from clay_lib.training import TrainSettings, train
sys.path.insert(0, sys.argv[1])
from test_training import fake_chips

MICRO = ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=16)
SETTINGS = TrainSettings(lr=1e-3, t_0=30, accumulate=2, ema_decay=0.95, clip_gradient=1.0, max_steps=int(sys.argv[3]))

def run(out):
    """Start it, or go on with it, in a process of its own."""
    def child():
        data = ClayDataModule({"naip": fake_chips("naip", 9), "linz": fake_chips("linz", 6)}, {"naip": fake_chips("naip", 4)},
                              batch_size=4, crop=8)
        trained = train(MICRO, SETTINGS, data, out=out, resume=True, accelerator="cpu", progress=False, log_every=3,
                        val_every=7, checkpoint_steps=3)
        trained.clay.save(out + "/weights.safetensors")
        open(out + "/seconds", "w").write(str(trained.seconds))
    pid = os.fork()
    if pid == 0:
        try:
            child()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return pid

out, random = sys.argv[2], random.Random(0)
assert os.waitpid(run(out + "/whole"), 0)[1] == 0
step = float(open(out + "/whole/seconds").read()) / SETTINGS.max_steps
last, midst, starts = out + "/killed/checkpoints/last.ckpt", [], 0

def age():
    return os.stat(last).st_mtime_ns if os.path.exists(last) else 0

while True:
    before, pid, moment = age(), run(out + "/killed"), None
    starts += 1
    if starts in (3, 6, 9):  # in the midst of starting
        moment = time.time() + random.uniform(0, 5 * step)
    while not (done := os.waitpid(pid, os.WNOHANG))[0] and not (moment and time.time() > moment):
        if moment is None and age() > before:  # it got somewhere: a random moment of the next steps
            moment = time.time() + random.uniform(0, 5 * step)
        time.sleep(0.001)
    if done[0]:
        assert done[1] == 0, done
        break
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    if age() > before:
        midst.append(newest_checkpoint(out + "/killed/checkpoints")["step"])
print(len(midst), "kills in the midst of training, after the checkpoints of steps", midst, "in", starts, "starts")
'''


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path):
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(tmp_path), "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert int(done.stdout.split()[0]) >= 6, done.stdout
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "weights.safetensors").read_bytes() == (killed / "weights.safetensors").read_bytes()
    assert (whole / "log" / "metrics.csv").read_text() == (killed / "log" / "metrics.csv").read_text()
    rows = (whole / "log" / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 20 + 9  # every third of 60 steps, and a validation every seventh and at the end
