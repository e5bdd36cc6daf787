"""Preparing pretraining data: `clay chips`, `clay targets`, and teachers by name."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from clay_lib import SENSORS, ContractError
from clay_lib.__main__ import main
from clay_lib.data.rasters import write_raster
from clay_lib.data.store import ChipStore
from clay_lib.data.targets import TargetCache
from clay_lib.evaluation import probes
from clay_lib.runs.prepare import find_teacher, texture_teacher


def write_scene(folder):
    pixels = np.random.default_rng(0).integers(1, 255, (4, 64, 96)).astype(np.uint8)
    pixels[:, :32, 32:64] = 0  # a window without data
    place = dict(crs="EPSG:32633", transform=(1, 0, 520_000.0, 0, -1, 5_000_000.0), nodata=0)
    return write_raster(folder / "m_3607717_20230610.tif", pixels, **place)


def test_chips_forecasts_writes_checks_and_repairs(tmp_path, capsys):
    out = str(tmp_path / "store")
    world = "--sensors naip,linz --count 6 --size 32 --jobs 1 --split train,val"
    command = ["chips", out, *world.split()]
    assert main([*command, "--forecast"]) == 0
    printed = capsys.readouterr().out
    assert "naip-32" in printed and "linz-32" in printed and "minutes" in printed and not (tmp_path / "store").exists()
    assert main(command) == 0
    assert "24 new chips" in capsys.readouterr().out
    store = ChipStore.open(out)
    assert len(store.sensor("linz", split="val")) == 6 and store.index["time"].notna().all()
    write_scene(tmp_path)
    scenes = ["chips", out, "--scenes", str(tmp_path), "--sensor", "naip", "--size", "32", "--jobs", "1"]
    assert main(scenes) == 0 and "5 new chips" in capsys.readouterr().out
    assert main(scenes) == 0 and "0 new chips" in capsys.readouterr().out
    assert main(["chips", out, "--check"]) == 0 and "29 of 29 chips are intact" in capsys.readouterr().out
    shard = store.table.query("sensor == 'linz' and split == 'val'")["shard"].iloc[0]
    (tmp_path / "store" / shard / "pixels/c/0/0/0/0").write_bytes(b"")
    assert main(["chips", out, "--check"]) == 1
    assert shard in capsys.readouterr().out
    assert main(["chips", out, "--mend"]) == 1 and "1 shards removed from the index" in capsys.readouterr().out
    assert main(command) == 0 and "6 new chips" in capsys.readouterr().out
    assert main(["chips", out, "--check"]) == 0 and "29 of 29 chips are intact" in capsys.readouterr().out
    assert main(["chips", out, "--scenes", str(tmp_path)]) == 2


def test_targets_forecasts_computes_and_resumes(tmp_path, capsys):
    store = str(tmp_path / "store")
    assert main(["chips", store, *"--sensors naip --count 4 --size 32 --jobs 1 --split train,val".split()]) == 0
    command = ["targets", store, "--teacher", "stand-in", "--batch-size", "4"]
    assert main([*command, "--forecast"]) == 0
    printed = capsys.readouterr().out
    assert "naip 32 px train" in printed and "minutes" in printed and "computed;" not in printed
    assert main(command) == 0 and "20 targets computed" in capsys.readouterr().out  # four flips of 4, and 4 to validate
    assert main(command) == 0 and "0 targets computed" in capsys.readouterr().out
    chips = ChipStore.open(store).sensor("naip", split="train")
    assert TargetCache.open(store, find_teacher("stand-in")).has("naip", chips.hashes, flip=3).all()
    for options, field in ((["--sensors", "modis"], "sensors"), (["--teacher", "none"], "teacher")):
        assert main([*command, *options]) == 2 and f"clay: {field}" in capsys.readouterr().err


def test_unknown_teachers_raise():
    assert find_teacher("none") is None and find_teacher(None) is None
    with pytest.raises(ContractError, match="teacher"):
        find_teacher("clay_lib.teacher:stand_out_teacher")


def test_texture_teacher_knows_real_images(realdata):
    """A share of the aerial images, split by number since neighbors lie in one mosaic."""
    files = sorted((realdata / "ucmerced").rglob("*.jpg"))[::3]
    images = np.stack([np.asarray(Image.open(file))[:247, :247].transpose(2, 0, 1) for file in files])
    labels = np.array([file.parent.name for file in files])
    train = np.array([int(re.search(r"\d+$", file.stem)[0]) < 66 for file in files])
    rgb, teacher = torch.from_numpy(SENSORS["linz"].normalize(images)), texture_teacher()
    features = torch.cat([teacher(part) for part in rgb.split(25)]).numpy()
    score = probes.knn_score(features[train], labels[train], features[~train], labels[~train], k=5, metric="cosine")
    assert score > 0.7  # hand-crafted baseline: 0.49 with all of the images
