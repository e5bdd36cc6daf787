"""A target cache whose writers are killed repeatedly ends with every target once, like one filled without a kill."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_targets import random_chips

from clay_lib.data.targets import TargetCache

# An interpreter that imports once and then forks, since starting one takes longer than filling the cache.
DRIVER = '''
import os, random, signal, sys, time
import numpy as np
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import tqdm.auto
from clay_lib.data import targets
from test_targets import Counting, random_chips

KILLS, CHIPS, FLIPS = 25, 400, (0, 1, 2, 3)
targets.PART_ROWS = 24
chips, folder = random_chips(n=CHIPS, size=8), sys.argv[2]
chips.hashes

class Slow(Counting):
    def forward(self, rgb):
        time.sleep(0.002)
        return super().forward(rgb)

def child(folder):
    pid = os.fork()
    if pid:
        return pid
    try:
        targets.fill_targets(chips, Slow(64), folder, batch_size=4, flips=FLIPS, progress=False)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)

def held():
    """Rows in the parts, read without the cache's own bookkeeping of duplicates."""
    try:
        cache = targets.TargetCache(folder)
    except targets.ContractError:
        return 0
    whole = cache._of("naip")
    assert len(set(whole.keys.tolist())) == len(whole.keys), "a target is there twice"
    for flip in FLIPS:
        there = chips.hashes[cache.has("naip", chips.hashes, flip)]
        if len(there):
            assert torch.isfinite(cache.lookup("naip", there, np.full(len(there), flip))).all()
    return len(whole.keys)

began = time.time()
assert os.waitpid(child(sys.argv[3]), 0)[1] == 0
whole = time.time() - began
kills, rng, reached = 0, random.Random(0), []
for attempt in range(20 * KILLS):
    pid, moment = child(folder), time.time() + (rng.uniform(0.0, 0.07) * whole if kills < KILLS else 1e9)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done or time.time() > moment:
            break
        time.sleep(0.001)
    if done:
        assert status == 0, status
        break
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    kills += 1
    reached.append(held())
assert reached == sorted(reached), reached  # nothing that was there is lost
assert held() == CHIPS * len(FLIPS)
print(kills, "kills,", len(set(reached) - {0}), "states between:", reached, round(whole, 2), "s for the fill that was not killed")
'''


@pytest.mark.slow
def test_kills_lose_and_duplicate_nothing(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(killed), str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    kills, _, states = done.stdout.split()[:3]
    assert int(kills) >= 20 and int(states) >= 5, done.stdout  # during the work, not before or after it

    chips = random_chips(n=400, size=8)
    for flip in range(4):
        asked = np.full(400, flip)
        a, b = (TargetCache(folder).lookup("naip", chips.hashes, asked) for folder in (killed, whole))
        torch.testing.assert_close(a, b, rtol=0, atol=0)
