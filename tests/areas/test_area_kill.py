"""Embedding jobs that are killed repeatedly, or whose workers are: every tile once, identical results."""

import hashlib
import json

import pytest
import rasterio
from processes import run_script
from test_area import make_scene, run

from clay_lib.areas import vectors

SMALL = """
import json, os, random, signal, sys, threading, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from processes import forked
from test_area import run
from clay_lib.areas import jobs, vectors
DENSE = dict(dense="cog", overlap=16, components=2, batch_size=4, crs="EPSG:3035")
DENSE |= json.loads(os.environ.get("OPTIONS", "{}"))
"""

# A fresh interpreter that imports once and then forks, since imports take longer than the job.
KILLED = (
    SMALL
    + """
import clay_lib.areas.rasters, clay_lib.areas.archives, distributed, odc.stac, rasterio, sklearn.decomposition, tqdm.auto

KILLS = 8
jobs.PART_ROWS, jobs.BLOCK = 8, 128
scene, killed, complete = map(Path, sys.argv[1:4])

def embed(out):
    run(out, scene, workers=2, **DENSE)

def rows():
    parts = {path: vectors.read_part(path, ["id"])["id"].to_pylist() for path in vectors.part_files(killed)}
    ids = [name for part in parts.values() for name in part]
    assert len(ids) == len(set(ids)), f"duplicate tiles after kill {kills}: {parts}"
    return len(ids)

start = time.time()
assert os.waitpid(forked(embed, complete), 0)[1] == 0
duration = time.time() - start
kills, rng, reached = 0, random.Random(0), []
for attempt in range(10 * KILLS):
    # Every third is killed at a random time after its start, the others shortly after they have published a part.
    pid, parts, start = forked(embed, killed), len(vectors.part_files(killed)), time.time()
    moment = start + rng.uniform(0.0, 0.2) * duration if kills % 3 == 0 else None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if moment is None and kills < KILLS and len(vectors.part_files(killed)) > parts:
            moment = time.time() + rng.uniform(0.0, 0.05) * duration
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
print(kills, "kills,", len(set(reached)), "distinct states:", reached, f"; {duration:.1f} s without kills")
"""
)

WORKERS = (
    SMALL
    + """
import dask
from distributed import LocalCluster

jobs.BLOCK = 64
killed, batches, over, embed_batch = [], [], threading.Event(), jobs.embed_batch

def counted(*args):
    batches.append(1)
    time.sleep(0.05)
    return embed_batch(*args)

def kill_workers(cluster):
    for _ in range(3):  # a block is read again at most that often
        before = len(batches)
        # Both workers must be up: Dask does not replace one that is killed while it starts.
        while (len(batches) < before + 4 or len(cluster.scheduler.workers) < 2) and not over.is_set():
            time.sleep(0.01)
        pids = [w.pid for n in list(cluster.workers.values()) if (w := getattr(n, "process", None)) and w.pid]
        if over.is_set() or not pids:
            return
        os.kill(pids[0], signal.SIGKILL)
        killed.append(pids[0])

def main():
    jobs.embed_batch = counted
    dask.config.set({"distributed.deploy.lost-worker-timeout": "600s"})  # a killed worker starts slowly beside others
    shape = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50)
    with LocalCluster(**shape) as cluster:
        killer = threading.Thread(target=kill_workers, args=(cluster,))
        killer.start()
        try:
            result = run(Path(sys.argv[2]), Path(sys.argv[1]), scheduler=cluster.scheduler_address, **DENSE)
        finally:
            over.set()
            killer.join()
    print(len(killed), "workers killed", result.rows)

if __name__ == "__main__":
    main()
"""
)


COMPOSITE = dict(when=None, composite="median", period="year")


def run_on_scene(code, tmp_path, *folders, **options):
    """(words printed by a script with a scene and folders as arguments, scene); with options, several dates."""
    scene = tmp_path / "S2A*.tif" if options else tmp_path / "scene.tif"
    for n, name in enumerate(("20230310T10", "20230610T10", "20230910T10") if options else ("scene",)):
        name = f"S2A_MSIL2A_{name}1031_N0204_R022_T33UWP.tif" if options else "scene.tif"
        make_scene(tmp_path / name, side=464, seed=n)
    script = tmp_path / "job.py"
    script.write_text(code)
    environment = {"OPTIONS": json.dumps(options)}
    return run_script(script, scene, *(tmp_path / name for name in folders), **environment).split(), scene


def hashes(out):
    """Hashes of ids, vectors and raster."""
    table = vectors.read_vectors(out)
    assert len(set(table["id"].to_pylist())) == table.num_rows
    (path,) = (out / "dense").rglob("*.tif")
    with rasterio.open(path) as file:
        pixels = file.read().tobytes()
    numbers = b"".join(vectors.as_matrix(table, name).tobytes() for name in ("vector", "patch_mean"))
    contents = {"ids": repr(table["id"].to_pylist()).encode(), "rows": numbers, "raster": pixels}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, COMPOSITE], ids=["dates", "composites"])
def test_killed_jobs_resume_with_identical_results(options, tmp_path):
    (kills, _, states, *_), _ = run_on_scene(KILLED, tmp_path, "killed", "complete", **options)
    assert int(kills) >= 3 and int(states) >= 2  # killed while parts were missing
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "complete")
    assert not [*(tmp_path / "killed").rglob(".part-*")], "what kills have left is deleted by the next start"


@pytest.mark.slow
def test_blocks_of_killed_workers_are_read_again(tmp_path):
    """With the address of a scheduler and worker processes."""
    (kills, *_), scene = run_on_scene(WORKERS, tmp_path, "killed")
    assert int(kills) >= 2
    run(tmp_path / "complete", scene, dense="cog", overlap=16, components=2, batch_size=4, crs="EPSG:3035")
    assert hashes(tmp_path / "killed")["ids"] == hashes(tmp_path / "complete")["ids"]
    killed, complete = (vectors.as_matrix(vectors.read_vectors(tmp_path / name)) for name in ("killed", "complete"))
    assert abs(killed - complete).max() < 4e-3
