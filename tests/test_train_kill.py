"""A run that is killed repeatedly and resumed ends like one that was never killed: same weights and rows, bit by bit."""

import pytest
from processes import run_script

# An interpreter that imports once and then forks, since starting one takes longer than the training itself.
DRIVER = '''
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from clay_lib import Clay, ClayConfig
from clay_lib.datamodule import ClayDataModule
from clay_lib.callbacks import newest_checkpoint
from clay_lib.training import TrainSettings, train
from fakes import fake_chips
from processes import forked

MICRO = ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=16)
SETTINGS = TrainSettings(lr=1e-3, t_0=30, accumulate=2, ema_decay=0.95, clip_gradient=1.0, max_steps=int(sys.argv[2]))

def run(out):
    """Start or resume the run."""
    data = ClayDataModule({"naip": fake_chips("naip", 9), "linz": fake_chips("linz", 6)}, {"naip": fake_chips("naip", 4)},
                          batch_size=4, crop=8)
    trained = train(MICRO, SETTINGS, data, out=out, resume=True, accelerator="cpu", progress=False, log_every=3,
                    val_every=7, checkpoint_steps=3)
    Clay(trained.model).save(out + "/weights.safetensors")
    open(out + "/seconds", "w").write(str(trained.seconds))

out, random = sys.argv[1], random.Random(0)
assert os.waitpid(forked(run, out + "/complete"), 0)[1] == 0
step = float(open(out + "/complete/seconds").read()) / SETTINGS.max_steps
last, reached, starts = out + "/killed/checkpoints/last.ckpt", [], 0

def age():
    return os.stat(last).st_mtime_ns if os.path.exists(last) else 0

while True:
    before, pid, moment = age(), forked(run, out + "/killed"), None
    starts += 1
    if starts in (3, 6, 9):  # while it starts
        moment = time.time() + random.uniform(0, 5 * step)
    while not (done := os.waitpid(pid, os.WNOHANG))[0] and not (moment and time.time() > moment):
        if moment is None and age() > before:  # it got somewhere: a random moment in the next steps
            moment = time.time() + random.uniform(0, 5 * step)
        time.sleep(0.001)
    if done[0]:
        assert done[1] == 0, done
        break
    os.kill(pid, signal.SIGKILL)
    if (ended := os.waitpid(pid, 0)[1]) == 0:  # before the signal came
        break
    assert ended == signal.SIGKILL, ended
    if age() > before:
        reached.append(newest_checkpoint(out + "/killed/checkpoints")["step"])
print(len(reached), "kills during training, after the checkpoints of steps", reached, "in", starts, "starts")
'''


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path):
    printed = run_script(DRIVER, tmp_path, 60)
    assert int(printed.split()[0]) >= 6, printed
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    assert (complete / "weights.safetensors").read_bytes() == (killed / "weights.safetensors").read_bytes()
    assert (complete / "log" / "metrics.csv").read_text() == (killed / "log" / "metrics.csv").read_text()
    rows = (complete / "log" / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 20 + 9  # every third of 60 steps, and a validation every seventh and at the end
