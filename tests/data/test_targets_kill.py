"""A target cache whose writers are killed repeatedly ends with every target once, like one filled without a kill."""

import numpy as np
import pytest
import torch
from processes import run_script
from test_targets import random_chips

from clay_lib.data.targets import TargetCache

# An interpreter that imports once and then forks, since starting one takes longer than filling the cache.
DRIVER = '''
import os, random, signal, sys, time
import numpy as np
import torch
torch.set_num_threads(1)
import tqdm.auto
from clay_lib.data import targets
from processes import forked
from test_targets import Counting, random_chips

KILLS, CHIPS, FLIPS = 25, 400, (0, 1, 2, 3)
targets.PART_ROWS = 24
chips, folder = random_chips(n=CHIPS, size=8), sys.argv[1]
chips.hashes

class Slow(Counting):
    def forward(self, rgb):
        time.sleep(0.002)
        return super().forward(rgb)

def fill(folder):
    targets.fill_targets(chips, Slow(64), folder, batch_size=4, flips=FLIPS, progress=False)

def count_targets():
    """Number of targets in the parts, each of them checked."""
    try:
        cache = targets.TargetCache(folder)
    except targets.ContractError:
        return 0
    targets_of_sensor = cache._of("naip")
    assert len(set(targets_of_sensor.keys.tolist())) == len(targets_of_sensor.keys), "a target is stored twice"
    for flip in FLIPS:
        stored = chips.hashes[cache.has("naip", chips.hashes, flip)]
        if len(stored):
            assert torch.isfinite(cache.lookup("naip", stored, np.full(len(stored), flip))).all()
    return len(targets_of_sensor.keys)

began = time.time()
assert os.waitpid(forked(fill, sys.argv[2]), 0)[1] == 0
complete = time.time() - began
kills, rng, reached = 0, random.Random(0), []
for attempt in range(20 * KILLS):
    pid, moment = forked(fill, folder), time.time() + (rng.uniform(0.0, 0.07) * complete if kills < KILLS else 1e9)
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
    reached.append(count_targets())
assert reached == sorted(reached), reached  # no target is lost
assert count_targets() == CHIPS * len(FLIPS)
print(kills, "kills,", len(set(reached) - {0}), "states between:", reached, round(complete, 2), "s without kills")
'''


@pytest.mark.slow
def test_kills_lose_and_repeat_no_target(tmp_path):
    killed, complete = tmp_path / "killed", tmp_path / "complete"
    printed = run_script(DRIVER, killed, complete, timeout=600)
    kills, _, states = printed.split()[:3]
    assert int(kills) >= 20 and int(states) >= 5, printed  # during the work, not before or after it

    chips = random_chips(n=400, size=8)
    for flip in range(4):
        flips = np.full(400, flip)
        a, b = (TargetCache(folder).lookup("naip", chips.hashes, flips) for folder in (killed, complete))
        torch.testing.assert_close(a, b, rtol=0, atol=0)
