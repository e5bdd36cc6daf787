"""Cost of embedding an area: constant memory, parallel reading and embedding, tiles close to one large image."""

import json
import time

import numpy as np
import pytest
import rasterio
import shapely
import torch
from processes import run_script
from test_area import CLAY, S2, SIZE, make_scene

from clay_lib import Clay
from clay_lib.areas import jobs, reading
from clay_lib.areas.area import embed_area
from clay_lib.areas.rasters import seam_step
from clay_lib.areas.tiles import project
from clay_lib.data.rasters import write_raster
from clay_lib.sensors import SENSORS
from clay_lib.world.earth import MiniWorld

SLOW_READ = 0.3  # s, response time of a distant server for a block

PEAK = """
import json, os, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_area import run
from clay_lib.areas import jobs
from processes import peak_resident
options = json.loads(os.environ.get("OPTIONS", "{}"))
jobs.BLOCK = 768 if options else 256
result = run(Path(sys.argv[2]), Path(sys.argv[1]), workers=2, **options)
print(peak_resident() >> 20, result.jobs)
"""
# GDAL's block cache grows to a share of the machine's memory for any area; a low limit is reached immediately.
CACHE = {"GDAL_CACHEMAX": "32"}  # MB


@pytest.mark.slow
def test_memory_does_not_grow_with_the_area(tmp_path):
    peaks = []
    for side in (1024, 2048):
        scene = make_scene(tmp_path / f"{side}.tif", side=side, hole=False)
        peak, tiles = map(int, run_script(PEAK, scene, tmp_path / f"out{side}", **CACHE).split()[-2:])
        peaks.append((tiles, peak))
    print("(tiles, peak MB):", peaks)
    assert peaks[1][0] > 3.5 * peaks[0][0] and peaks[1][1] < 1.15 * peaks[0][1], peaks


@pytest.mark.slow
def test_memory_of_composites_does_not_grow_with_the_dates(tmp_path):
    peaks, options = [], json.dumps(dict(when=None, composite="median", period="year"))
    for count in (4, 12):
        for n in range(count):
            make_scene(
                tmp_path / f"{count}/S2A_MSIL2A_2023{n + 1:02d}10T101031_N0204_.tif", side=768, seed=n, hole=False
            )
        output = run_script(PEAK, tmp_path / f"{count}/*.tif", tmp_path / f"out{count}", OPTIONS=options, **CACHE)
        peaks.append((count, *map(int, output.split()[-2:])))
    print("(dates, peak MB, tiles):", peaks)
    assert peaks[1][1] < 1.15 * peaks[0][1], peaks


@pytest.mark.slow
@pytest.mark.alone
def test_reading_and_embedding_overlap_in_time(tmp_path, monkeypatch):
    """With a distant server and a model of the same speed, both together take as long as the slower one."""
    torch.set_num_threads(1)
    scene = make_scene(tmp_path / "scene.tif", side=900, hole=False)
    read_block = reading.read_block
    monkeypatch.setattr(jobs, "BLOCK", 128)
    monkeypatch.setattr(reading, "kept", None, raising=False)  # of the module, since Dask pickles the functions below
    seconds_per_tile = [0.0]

    def instant_read(acquisition, geobox, clouds):  # all blocks repeat the pixels of the first
        reading.kept = reading.kept or read_block(acquisition, geobox, clouds)
        pixels, bands = reading.kept
        return np.resize(pixels, (len(pixels), *geobox.shape)), bands

    def slow_read(*args):
        time.sleep(SLOW_READ)
        return instant_read(*args)

    def instant_embed(clay, read, *rest):
        return [None] * len(read)

    def slow_embed(clay, read, *rest):
        time.sleep(seconds_per_tile[0] * len(read))
        return instant_embed(clay, read)

    def seconds(out, read, embed):
        with monkeypatch.context() as patch:
            patch.setattr(reading, "read_block", read)
            patch.setattr(jobs, "embed_batch", embed)
            start = time.perf_counter()
            result = embed_area(CLAY, S2, None, None, tmp_path / out, scene=scene, size=SIZE, workers=4, progress=False)
        assert result.rows + result.empty == result.jobs
        return time.perf_counter() - start, result.jobs

    ratios = []
    for trial in range(2):
        read_only, tiles = seconds(f"read{trial}", slow_read, instant_embed)
        seconds_per_tile[0] = read_only / tiles  # as slow as reading
        embed_only, _ = seconds(f"embed{trial}", instant_read, slow_embed)
        both, _ = seconds(f"both{trial}", slow_read, slow_embed)
        ratios.append(both / max(read_only, embed_only))
        print(f"read only {read_only:.1f} s, embed only {embed_only:.1f} s, both {both:.1f} s: {ratios[-1]:.3f}")
    assert min(ratios) < 1.2, ratios  # nearly 2 without overlap


@pytest.mark.slow
def test_blended_tiles_are_close_to_one_large_image(tmp_path):
    """Shipped weights: patch vectors of one image of 256 pixels, and of tiles of 128 pixels with 32 pixels of overlap."""
    clay = Clay.load("clay-mini.safetensors")
    earth, step = MiniWorld(0), 2560.0
    chip = earth.observe(earth.place(40, 0, "test"), S2, "2023-06-10T10:30", 520)
    west, north = np.ceil(chip.transform[2] / step) * step, np.floor(chip.transform[5] / step) * step
    layout = dict(crs=chip.crs, transform=chip.transform, descriptions=SENSORS[S2].band_names)
    scene = write_raster(tmp_path / "scene.tif", chip.pixels, **layout)
    area = project(shapely.box(west, north - step, west + step, north), chip.crs, "EPSG:4326")
    options = dict(scene=scene, dense="cog", progress=False, level=False)
    rasters = []
    for size, overlap in ((256, 0), (128, 0), (128, 32)):
        out = tmp_path / f"{size}-{overlap}"
        result = embed_area(clay, S2, area, "2023-06-10T10:30", out, size=size, overlap=overlap, **options)
        with rasterio.open(result.rasters[0]) as file:
            rasters.append(file.read())
        assert rasters[-1].shape == (192, 32, 32)
    single, _, blended = rasters
    cosine = (single * blended).sum(0) / np.linalg.norm(single, axis=0) / np.linalg.norm(blended, axis=0)
    steps = dict(zip(("single", "no overlap", "blended"), (seam_step(raster, 16) for raster in rasters), strict=True))
    print(f"median cosine {np.median(cosine):.4f}, steps across the seam {steps}")
    assert np.median(cosine) > 0.915
    assert abs(steps["blended"] - steps["single"]) < 0.1
