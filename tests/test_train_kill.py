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

KILLS = 10
MICRO = ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=16)
SETTINGS = TrainSettings(lr=1e-3, t_0=30, accumulate=2, ema_decay=0.95, clip_gradient=1.0, max_steps=int(sys.argv[3]))

def run(out):
    """In a process of its own; seconds until it ended, or None where it was killed."""
    def child():
        data = ClayDataModule({"naip": fake_chips("naip", 9), "linz": fake_chips("linz", 6)}, {"naip": fake_chips("naip", 4)},
                              batch_size=4, crop=8)
        trained = train(MICRO, SETTINGS, data, out=out, resume=True, accelerator="cpu", progress=False, log_every=3,
                        val_every=7, checkpoint_steps=3)
        trained.clay.save(out + "/weights.safetensors")
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

out = sys.argv[2]
began = time.time()
assert os.waitpid(run(out + "/whole"), 0)[1] == 0
whole = time.time() - began
kills, random, reached = 0, random.Random(0), []
for attempt in range(10 * KILLS):
    pid, moment = run(out + "/killed"), time.time() + (random.uniform(0.02, 0.25) * whole if kills < KILLS else 1e9)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done or time.time() > moment:
            break
        time.sleep(0.002)
    if done:
        assert status == 0, status
        break
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    kills += 1
    saved = newest_checkpoint(out + "/killed/checkpoints")
    reached.append(saved["step"] if saved else 0)
print(len(set(reached) - {0}), "checkpoints gone on from:", reached)
print(kills, "kills,", round(whole, 2), "s for the run that was not killed")
'''


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path):
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(tmp_path), "42"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert int(done.stdout.split()[0]) >= 6, done.stdout  # it was killed in the midst of training, not before
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "weights.safetensors").read_bytes() == (killed / "weights.safetensors").read_bytes()
    assert (whole / "log" / "metrics.csv").read_text() == (killed / "log" / "metrics.csv").read_text()
    rows = (whole / "log" / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 14 + 6  # every third of 42 steps, and a validation every seventh
