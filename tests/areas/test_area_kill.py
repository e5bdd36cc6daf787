"""A job that is killed again and again, or whose workers are, ends with every tile once and in the same numbers."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from test_embed_area import run, some_scene

from clay_lib.areas import vectors

# A fresh interpreter that imports once and then forks, since a start would else take longer than what is tested.
KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_embed_area import CLAY, S2, run
from clay_lib import area_jobs, area_work, vectors
import clay_lib.rasters, clay_lib.areas.archives, distributed, odc.stac, rasterio, sklearn.decomposition, tqdm.auto

KILLS = 8
area_work.PART_ROWS = 16
area_jobs.BLOCK = 128
scene, killed, whole = map(Path, sys.argv[2:5])

def child(out):
    pid = os.fork()
    if pid:
        return pid
    try:
        run(out, scene, dense="cog", overlap=16, components=2, batch_size=4, workers=2)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)

def rows():
    found = [vectors.pq.ParquetFile(path).read(["id"])["id"].to_pylist() for path in vectors.parts_of(killed)]
    ids = [one for part in found for one in part]
    assert len(ids) == len(set(ids)), "a tile is there twice"
    return len(ids)

began = time.time()
assert os.waitpid(child(whole), 0)[1] == 0
took = time.time() - began
kills, rng, reached = 0, random.Random(0), []
for attempt in range(10 * KILLS):
    # Every third dies at any moment from its start on, the others soon after they wrote something: else it would be done.
    pid, parts, started = child(killed), len(vectors.parts_of(killed)), time.time()
    moment = started + rng.uniform(0.0, 0.4) * took if kills % 3 == 0 else None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if moment is None and kills < KILLS and len(vectors.parts_of(killed)) > parts:
            moment = time.time() + rng.uniform(0.0, 0.05) * took
        if done or (kills < KILLS and moment is not None and time.time() > moment):
            break
        time.sleep(0.005)
    if done:
        assert status == 0, status
        break
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    reached.append(rows())
assert reached == sorted(reached), reached
print(kills, "kills,", len(set(reached)), "states between:", reached, f"; {took:.1f} s for the one that was not killed")
"""


def hashes(out):
    """{what: a hash of its numbers}, of the rows and of the raster."""
    table = vectors.read_vectors(out)
    assert len(set(table["id"].to_pylist())) == table.num_rows
    (path,) = (out / "dense").rglob("*.tif")
    with rasterio.open(path) as file:
        pixels = file.read().tobytes()
    numbers = b"".join(vectors.as_matrix(table, name).tobytes() for name in ("vector", "patch_mean"))
    told = repr([table.num_rows, table["id"].to_pylist()]).encode()
    return {name: hashlib.sha256(of).hexdigest() for name, of in (("ids", told), ("rows", numbers), ("raster", pixels))}


@pytest.mark.slow
def test_kills_lose_and_double_nothing(tmp_path):
    scene = some_scene(tmp_path / "scene.tif", side=464)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(scene), str(killed), str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    kills, _, states = done.stdout.split()[:3]
    assert int(kills) >= 3 and int(states) >= 2, done.stdout  # in the midst of the work
    assert hashes(killed) == hashes(whole)
    assert not [
        path for path in killed.rglob("*.parquet") if path.name.startswith(".part-") and path.stat().st_size == 0
    ]


SCHEDULER = """
import os, signal, sys, threading, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_embed_area import run
from distributed import LocalCluster
from clay_lib import area_jobs, area_work

area_jobs.BLOCK = 64
killed = []

def main():
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50) as cluster:
        def kill_some():
            for _ in range(3):  # as often as a block has to be read again at most, and the job is not over
                before = done.n
                # both readers at work: one that is killed while it starts is not started again by Dask
                while (done.n < before + 4 or len(cluster.scheduler.workers) < 2) and not over.is_set():
                    time.sleep(0.01)
                pids = [w.pid for n in list(cluster.workers.values()) if (w := getattr(n, "process", None)) and w.pid]
                if over.is_set() or not pids:
                    return
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

        over, embed_batch = threading.Event(), area_work.embed_batch

        class done:
            n = 0

        def counted(*args):
            done.n += 1
            time.sleep(0.05)
            return embed_batch(*args)

        area_work.embed_batch = counted
        killer = threading.Thread(target=kill_some)
        killer.start()
        try:
            result = run(Path(sys.argv[3]), Path(sys.argv[2]), dense="cog", overlap=16, components=2, batch_size=4,
                         scheduler=cluster.scheduler_address)
        finally:
            over.set()
            killer.join()
    print(len(killed), "workers killed", result.rows)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_killed_workers_lose_nothing(tmp_path):
    """On a scheduler by address whose workers are processes: what one had in hand is read by another."""
    scene = some_scene(tmp_path / "scene.tif", side=464)
    script = tmp_path / "job.py"
    script.write_text(SCHEDULER)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(scene), str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert int(done.stdout.split()[0]) >= 2
    run(tmp_path / "whole", scene, dense="cog", overlap=16, components=2, batch_size=4)
    found, expected = hashes(tmp_path / "killed"), hashes(tmp_path / "whole")
    assert found["ids"] == expected["ids"]
    killed, whole = (vectors.as_matrix(vectors.read_vectors(tmp_path / name)) for name in ("killed", "whole"))
    assert abs(killed - whole).max() < 4e-3
