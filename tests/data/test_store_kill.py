"""Writers killed with SIGKILL at random moments: the store opens, holds complete chips only, and a rerun completes it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_store import Numbered

from clay_lib.data.store import ChipStore, write_chips

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
MAKERS = [Numbered(120), Numbered(120, sensor="linz")]
PART = 2  # chips: many small parts, so that kills fall into every step of writing one
# Forks a writer for every line of input: milliseconds instead of seconds for a new interpreter.
FORKER = """
import os, sys
from test_store_kill import MAKERS, PART, write_chips
for line in sys.stdin:
    jobs, url = line.split(maxsplit=1)
    if not (pid := os.fork()):
        try:
            write_chips(url.strip(), MAKERS, chips_per_part=PART, jobs=int(jobs), progress=False)
        except Exception as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
        finally:
            os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def forker():
    """start(url, jobs) -> (pid of a writer, call that waits for its end)."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", FORKER], cwd=ROOT, env=env, **pipes) as process:

        def start(url: Path, jobs: int):
            print(jobs, url, file=process.stdin, flush=True)
            return int(process.stdout.readline()), process.stdout.readline

        yield start
        process.kill()


def commits(url: Path) -> int:
    return len(list(url.glob("index/*/*.parquet")))


def wait(until, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, list[str]]:
    url = tmp_path_factory.mktemp("undisturbed")
    write_chips(url, MAKERS, chips_per_part=PART, jobs=1, progress=False)
    return hashes(url)


def hashes(url: Path) -> dict[str, list[str]]:
    """{sensor: content hashes in order}, after a check of every chip."""
    store = ChipStore.open(url)
    assert store.check() == []
    chips = {name: store.sensor(name).hashes.tolist() for name in sorted(set(store.table["sensor"]))}
    assert sum(map(len, chips.values())) == len(set(sum(chips.values(), []))) == len(store)
    return chips


def assert_part_of(chips: dict, complete: dict) -> None:
    for name, subset in chips.items():
        assert subset == [one for one in complete[name] if one in set(subset)]


def assert_finished(url: Path, complete: dict) -> None:
    write_chips(url, MAKERS, chips_per_part=PART, jobs=1, progress=False)
    assert hashes(url) == complete
    shards = {f"{path.parent.name}/{path.name}" for path in url.glob("*-16/*-*") if path.is_dir()}
    assert shards == set(ChipStore.open(url).table["shard"]), "leftovers of killed writers"
    assert list((url / "writers").iterdir()) == []


def test_writers_killed_at_random_moments(tmp_path, undisturbed, forker):
    rng, sizes = random.Random(0), []
    write_chips(tmp_path, [Numbered(2)], chips_per_part=PART, jobs=1, progress=False)
    for kill in range(14):
        enough = commits(tmp_path) + rng.randint(1, 3) * (kill % 7 > 0)  # or before anything is written
        writer, ended = forker(tmp_path, 1)
        wait(lambda least=enough: commits(tmp_path) >= least)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(writer, signal.SIGKILL)
        ended()
        chips = hashes(tmp_path)
        assert_part_of(chips, undisturbed)
        sizes.append(sum(map(len, chips.values())))
    assert sizes == sorted(sizes) and 20 < sizes[-1] < 2 * len(undisturbed["naip"]), sizes  # no kill came too late
    assert_finished(tmp_path, undisturbed)


def test_a_writer_and_a_worker_of_many_are_killed(tmp_path, undisturbed, forker):
    sizes = []
    for victim in ("a worker", "the writer"):
        before = commits(tmp_path)
        writer, ended = forker(tmp_path, 2)
        wait(lambda least=before + 2: commits(tmp_path) >= least, 120)
        workers = [p for p in psutil.Process(writer).children(recursive=True) if "LokyProcess" in " ".join(p.cmdline())]
        assert len(workers) == 2
        os.kill(writer if victim == "the writer" else workers[0].pid, signal.SIGKILL)
        ended()
        wait(lambda ps=workers: not any(p.is_running() and p.status() != "zombie" for p in ps))
        chips = hashes(tmp_path)
        assert_part_of(chips, undisturbed)
        sizes.append(sum(map(len, chips.values())))
    assert 0 < sizes[0] < sizes[1] < 2 * len(undisturbed["naip"]), sizes
    assert_finished(tmp_path, undisturbed)
