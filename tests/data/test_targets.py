"""Cached targets: equal to the live teacher's output, and keyed by chip, teacher and normalization."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clay_lib import SENSORS, ClayConfig, ContractError
from clay_lib.data.chips import Chips
from clay_lib.data.targets import TargetCache, fill_targets, fingerprint, sensor_folder
from clay_lib.datamodule import ClayDataModule
from clay_lib.runs.teachers import TextureTeacher
from clay_lib.sensors import Sensor
from clay_lib.teacher import Teacher, stand_in_teacher, teacher_view
from clay_lib.training import ClayModule

MICRO = ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=64)


def random_chips(sensor="naip", n=6, size=16, seed=0):
    spec, rng = SENSORS[sensor], np.random.default_rng(seed)
    mean, std = spec.statistics()
    level = rng.normal(size=(n, len(mean), size, size)) * std[:, None, None] + mean[:, None, None]
    pixels = (10 ** (level / 10) if spec.decibel else level).astype(np.float32)
    place = np.full(n, 10.0), np.full(n, 20.0), np.array(["2021-05-04T10:30"] * n)
    return Chips(sensor, pixels, np.zeros((n, size, size), np.uint8), *place)


@pytest.fixture(scope="module")
def teacher():
    return stand_in_teacher(size=28)


class Counting(torch.nn.Module):
    """A teacher that counts its images."""

    count = 0

    def __init__(self, dim=3):
        super().__init__()
        self.dim = dim

    def forward(self, rgb):
        self.count += len(rgb)
        return rgb.mean((2, 3)).repeat(1, self.dim)[:, : self.dim]


def files(folder):
    return sorted((folder / "targets").glob("*/*/*"))


def test_targets_equal_the_live_teacher_on_flipped_chips(tmp_path, teacher):
    for sensor in ("naip", "sentinel-1-rtc"):
        chips = random_chips(sensor)
        cache = fill_targets(chips, teacher, tmp_path, batch_size=4, progress=False)
        order, flips = np.array([3, 0, 5, 3]), np.array([0, 1, 2, 3], np.uint8)
        found = cache.lookup(sensor, chips.hashes[order], flips)
        assert found.shape == (4, 64) and found.dtype == torch.float16
        for k, dims in enumerate([(), (2,), (3,), (2, 3)]):
            pixels = torch.from_numpy(SENSORS[sensor].normalize(chips.pixels[order[k : k + 1]])).flip(dims)
            live = teacher(teacher_view(pixels, SENSORS[sensor]))[0]
            torch.testing.assert_close(found[k].float(), live, rtol=2**-10, atol=1e-4)
        assert (found[0].float() - found[3].float()).abs().max() > 1e-2  # a flip changes the target


def test_radar_learns_what_the_teacher_sees_in_the_optical_chip(tmp_path, teacher):
    radar, optical = (random_chips(name, seed=k) for k, name in enumerate(("sentinel-1-rtc", "sentinel-2-l2a")))
    days = np.array([f"2021-05-0{day}T10:30" for day in range(1, 7)])
    radar, optical = replace(radar, when=days), replace(optical, when=days)[[2, 0, 1, 5, 4, 3]]
    cache = fill_targets(radar, teacher, tmp_path, batch_size=4, flips=(0, 3), views=optical, progress=False)
    seen = SENSORS["sentinel-2-l2a"].normalize(optical.pixels[1:2])  # of the radar's first day
    rgb = teacher_view(torch.from_numpy(seen).float(), SENSORS["sentinel-2-l2a"])
    for flip, image in ((0, rgb), (3, rgb.flip(2, 3))):
        found = cache.lookup("sentinel-1-rtc", radar.hashes[:1], np.array([flip], np.uint8))
        torch.testing.assert_close(found.float(), teacher(image), atol=5e-3, rtol=5e-3)
    for wrong in (optical[:5], replace(random_chips("modis"), when=days)):
        with pytest.raises(ContractError, match="the same places, dates and GSD"):
            fill_targets(radar, teacher, tmp_path / "other", views=wrong, progress=False)
    plain = fingerprint(teacher)
    teacher.views = "sentinel-2-l2a"
    assert fingerprint(teacher) != plain
    teacher.views = ""
    assert fingerprint(teacher) == plain


def test_only_missing_targets_are_computed(tmp_path):
    chips, teacher = random_chips(n=6), Counting()
    fill_targets(chips[np.array([0, 1, 2, 3, 0])], teacher, tmp_path, batch_size=3, flips=(0, 2), progress=False)
    assert teacher.count == 8
    cache = fill_targets(chips, teacher, tmp_path, batch_size=3, progress=False)
    assert teacher.count == 24 and not cache.missing(chips, (0, 1, 2, 3)).any()
    before = {file: file.stat().st_mtime_ns for file in files(tmp_path)}
    fill_targets(chips, teacher, tmp_path, progress=False)
    assert teacher.count == 24 and before == {file: file.stat().st_mtime_ns for file in files(tmp_path)}


def test_a_changed_chip_has_no_target(tmp_path, teacher):
    chips = random_chips()
    cache = fill_targets(chips, teacher, tmp_path, flips=(0,), progress=False)
    pixels = chips.pixels.copy()
    pixels[2, 0, 5, 5] += 1
    changed = replace(chips, pixels=pixels)
    assert cache.has("naip", changed.hashes).tolist() == [True, True, False, True, True, True]
    with pytest.raises(ContractError, match=f"1 of 6 chips of naip.*{changed.hashes[2]} and flip 0"):
        cache.lookup("naip", changed.hashes, np.zeros(6, np.uint8))
    with pytest.raises(ContractError, match="6 of 6 chips of naip.*flip 1"):
        cache.lookup("naip", chips.hashes, np.ones(6, np.uint8))


def test_a_changed_teacher_or_sensor_has_no_target(tmp_path, teacher, monkeypatch):
    chips = random_chips()
    fill_targets(chips, teacher, tmp_path, flips=(0,), progress=False)
    other = stand_in_teacher(size=28)
    assert fingerprint(other) == fingerprint(teacher)
    assert TargetCache.open(tmp_path, other).has("naip", chips.hashes).all()
    with torch.no_grad():
        other.network.layernorm.bias[3] += 1e-6
    larger = Teacher(teacher.network, size=42)
    half = stand_in_teacher(size=28).to(torch.bfloat16)
    statistics = torch.randn(60, 47, generator=torch.Generator().manual_seed(0))
    kinds = [other, larger, half, *map(TextureTeacher, (statistics, 2 * statistics, statistics[1:]))]
    assert len({fingerprint(kind) for kind in [teacher, *kinds]}) == 7
    for kind in kinds:
        with pytest.raises(ContractError, match="another teacher"):
            TargetCache.open(tmp_path, kind)
    cache = TargetCache(tmp_path)  # one teacher only, so it need not be named
    fill_targets(chips, other, tmp_path, flips=(0,), progress=False)
    with pytest.raises(ContractError, match="name its folder"):
        TargetCache(tmp_path)
    assert TargetCache(cache.url).fingerprint == fingerprint(teacher)
    with pytest.raises(ContractError, match="expected 32"):
        TargetCache(cache.url, dim=32)

    naip = SENSORS["naip"]
    brighter = Sensor("naip", [replace(band, mean=band.mean + 1) for band in naip.bands], naip.gsd, naip.rgb)
    before = sensor_folder("naip")
    monkeypatch.setitem(SENSORS, "naip", brighter)
    assert sensor_folder("naip") != before and not TargetCache(cache.url).has("naip", chips.hashes).any()


def test_the_loss_is_the_same_with_a_cache(tmp_path, teacher):
    chips = {"naip": random_chips("naip", 8), "linz": random_chips("linz", 5)}
    for part in chips.values():
        cache = fill_targets(part, teacher, tmp_path, progress=False)
    loaders = [ClayDataModule(chips, batch_size=4, turns=False, targets=t).train_dataloader() for t in (None, cache)]
    torch.manual_seed(0)
    live = ClayModule(MICRO, teacher=teacher)
    cached = ClayModule(MICRO, cached=True)
    cached.load_state_dict(live.state_dict())
    flips_used = set()
    for a, b in zip(*loaders, strict=True):
        flips_used |= set(a.flips.tolist())
        direct, looked_up = live.losses(a, training=True), cached.losses(b, training=True)
        torch.testing.assert_close(looked_up["reconstruction"], direct["reconstruction"], rtol=0, atol=0)
        torch.testing.assert_close(looked_up["representation"], direct["representation"], rtol=0, atol=2e-3)
        torch.testing.assert_close(looked_up["loss"], direct["loss"], rtol=0, atol=1e-4)
        assert 0 < float(looked_up["representation"].detach()) < 2
    assert flips_used == {0, 1, 2, 3}


def test_damage_names_the_file_and_deleting_it_repairs(tmp_path, teacher):
    chips = random_chips()
    cache = fill_targets(chips, teacher, tmp_path, flips=(0,), progress=False)
    (part,) = [file for file in files(tmp_path) if file.suffix == ".npy"]
    intact = part.read_bytes()
    zeros = np.zeros(6, np.uint8)

    part.write_bytes(intact[:-3] + b"\0" + intact[-2:])  # in the last target
    found = TargetCache(cache.url)
    assert len(found.lookup("naip", chips.hashes[:5], zeros[:5])) == 5
    with pytest.raises(ContractError, match=part.name):
        found.lookup("naip", chips.hashes, zeros)
    for broken in (intact[:-100], intact[:200] + b"\1" + intact[201:], b""):
        part.write_bytes(broken)
        with pytest.raises(ContractError, match=part.name):
            TargetCache(cache.url).lookup("naip", chips.hashes, zeros)
    part.unlink()
    again = fill_targets(chips, teacher, tmp_path, flips=(0,), progress=False)
    assert part.read_bytes() == intact and again.has("naip", chips.hashes).all()


def test_object_storage_gives_the_same_targets(teacher):
    chips = random_chips()
    url = "memory://bucket/chips-with-targets"
    cache = fill_targets(chips, teacher, url, batch_size=4, progress=False)
    flips = np.array([3, 2, 1, 0, 0, 0], np.uint8)
    found = TargetCache(url, fingerprint(teacher)).lookup("naip", chips.hashes, flips)
    torch.testing.assert_close(found, cache.lookup("naip", chips.hashes, flips), rtol=0, atol=0)
    assert found.isfinite().all() and found.abs().max() > 0


def test_a_teacher_may_have_one_target_for_all_flips(tmp_path):
    teacher = Counting()
    teacher.flips = (0,)
    chips = random_chips()
    cache = fill_targets(chips, teacher, tmp_path, flips=teacher.flips, progress=False)
    assert teacher.count == len(chips)
    found = [TargetCache(tmp_path).lookup("naip", chips.hashes, np.full(len(chips), flip)) for flip in (0, 3)]
    torch.testing.assert_close(*found)
    assert cache.flips == (0,)
