"""What embedding an area costs beside its two halves, and that memory does not grow with the area."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
from test_embed_area import CLAY, S2, SIZE, some_scene

from clay_lib import Clay
from clay_lib.areas import area as area_work
from clay_lib.areas import reading
from clay_lib.areas.area import embed_area
from clay_lib.areas.rasters import seam_step
from clay_lib.areas.tiles import project
from clay_lib.data.rasters import write_raster
from clay_lib.files import DATA
from clay_lib.sensors import SENSORS
from clay_lib.world.earth import MiniWorld

SLOW_READ = 0.15  # s that a block's answer takes, as a server some way off would

PEAK = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_embed_area import run
from clay_lib import area_jobs
from clay_lib.cluster import peak_resident
area_jobs.BLOCK = 256
result = run(Path(sys.argv[3]), Path(sys.argv[2]), workers=2)
print(peak_resident() >> 20, result.jobs)
"""
# GDAL keeps blocks of files up to a share of the machine's memory, whatever the area: held low, so that it is full at once.
CACHE = {"GDAL_CACHEMAX": "32"}  # MB


@pytest.mark.slow
def test_memory_is_flat_as_the_area_grows(tmp_path):
    peaks = []
    for side in (1024, 2048):
        scene = some_scene(tmp_path / f"{side}.tif", side=side, hole=False)
        command = [sys.executable, "-c", PEAK, str(Path(__file__).parent), str(scene), str(tmp_path / f"out{side}")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | CACHE)
        assert done.returncode == 0, done.stderr[-2000:]
        peak, jobs = map(int, done.stdout.split()[-2:])
        peaks.append((jobs, peak))
    print("(tiles, peak MB):", peaks)
    assert peaks[1][0] > 3.5 * peaks[0][0] and peaks[1][1] < 1.15 * peaks[0][1], peaks


@pytest.mark.slow
def test_reading_and_embedding_side_by_side_cost_what_the_slower_does(tmp_path, monkeypatch):
    """Reads that wait, as over a network, against a model of the same speed: end to end, and each alone."""
    torch.set_num_threads(1)
    scene = some_scene(tmp_path / "scene.tif", side=900, hole=False)
    read_block = reading.read_block
    monkeypatch.setattr("clay_lib.areas.jobs.BLOCK", 128)

    def waits(*args):
        time.sleep(SLOW_READ)
        return read_block(*args)

    embed_batch = area_work.embed_batch
    pace = [0.0]  # s a tile that the model takes at least

    def works(clay, read, *rest):
        time.sleep(pace[0] * len(read))
        return embed_batch(clay, read, *rest)

    def seconds(out, **patches):
        with monkeypatch.context() as patch:
            for name, value in patches.items():
                patch.setattr(reading if name == "read_block" else area_work, name, value)
            began = time.perf_counter()
            result = embed_area(CLAY, S2, None, None, tmp_path / out, scene=scene, size=SIZE, workers=4, progress=False)
        assert result.rows + result.empty == result.jobs
        return time.perf_counter() - began, result.jobs

    made: dict = {}

    def nothing(clay, read, *rest):
        return [None] * len(read)

    ratios = []
    for turn in range(3):
        read_only, tiles = seconds(f"read{turn}", read_block=waits, embed_batch=nothing)
        pace[0] = 0.8 * read_only / tiles  # about as slow as reading
        embed_only, _ = seconds(f"embed{turn}", read_block=_free(read_block, made), embed_batch=works)
        both, _ = seconds(f"both{turn}", read_block=waits, embed_batch=works)
        ratios.append(both / max(read_only, embed_only))
        print(f"read only {read_only:.1f} s, embed only {embed_only:.1f} s, both {both:.1f} s: {ratios[-1]:.3f}")
    assert min(ratios) < 1.15, ratios


def _free(read_block, made):
    """Blocks of the right shape for nothing: one is read, all others are copies of its corner."""

    def given(look, geobox, clouds):
        if "pixels" not in made:
            made["pixels"], made["bands"] = read_block(look, geobox, clouds)
        pixels = made["pixels"]
        return np.resize(pixels, (len(pixels), *geobox.shape)), made["bands"]

    return given


@pytest.mark.slow
def test_one_piece_and_tiles(tmp_path):
    """Shipped weights: patch vectors of 256 pixels as one piece, and as tiles of 128 with 32 pixels around them."""
    clay = Clay.load(DATA / "weights" / "clay-mini.safetensors")
    earth = MiniWorld(0)
    chip = earth.observe(earth.place(40, 0, "test"), S2, "2023-06-10T10:30", 520)
    step = 2560.0
    west, north = np.ceil(chip.transform[2] / step) * step, np.floor(chip.transform[5] / step) * step
    scene = write_raster(
        tmp_path / "scene.tif", chip.pixels, crs=chip.crs, transform=chip.transform, descriptions=SENSORS[S2].band_names
    )
    area = project(shapely.box(west, north - step, west + step, north), chip.crs, "EPSG:4326")
    asked = dict(scene=scene, dense="cog", progress=False, level=False)
    rasters = {}
    for size, overlap in ((256, 0), (128, 0), (128, 32)):
        out = tmp_path / f"{size}-{overlap}"
        result = embed_area(clay, S2, area, "2023-06-10T10:30", out, size=size, overlap=overlap, **asked)
        with rasterio.open(result.rasters[0]) as file:
            rasters[size, overlap] = file.read()
    one, hard, blended = rasters[256, 0], rasters[128, 0], rasters[128, 32]
    assert one.shape == hard.shape == blended.shape == (192, 32, 32)
    cosine = (one * blended).sum(0) / np.linalg.norm(one, axis=0) / np.linalg.norm(blended, axis=0)
    steps = {name: seam_step(raster, 16) for name, raster in (("hard", hard), ("blended", blended), ("one piece", one))}
    print(f"median cosine {np.median(cosine):.4f}, steps across the seam {steps}")
    assert np.median(cosine) > 0.97
    assert abs(steps["blended"] - steps["one piece"]) < 0.1
