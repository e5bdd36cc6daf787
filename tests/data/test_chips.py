"""Chips in memory: content hashes, unknown metadata, and the cache of the mini-world."""

import errno
from dataclasses import replace

import numpy as np
import pytest

from clay_lib import ContractError
from clay_lib.data.chips import Chips, moment, world_chips
from clay_lib.datacube import make_datacube


def chips(n: int = 3) -> Chips:
    pixels = np.arange(n * 4 * 8 * 8, dtype=np.uint16).reshape(n, 4, 8, 8)
    when = np.array(["2020-01-02T10:30"] * n)
    return Chips("naip", pixels, np.full((n, 8, 8), 40, np.uint8), np.arange(n) * 1.0, np.zeros(n), when)


def test_hashes_change_with_the_content_only():
    one = chips()
    assert len(set(one.hashes)) == 3 and one[[2, 0]].hashes.tolist() == one.hashes[[2, 0]].tolist()
    fortran = replace(one, pixels=np.asfortranarray(one.pixels))
    same = [
        fortran,
        replace(one, labels=one.labels * 0),  # labels are no input
        replace(one, when=np.array(["2020-01-02T12:30:00+02:00"] * 3)),
        replace(one, lat=one.lat.astype(np.float32)),
    ]
    for other in same:
        assert other.hashes.tolist() == one.hashes.tolist()
    flipped = one.pixels.copy()
    flipped[:, 0, 0, 0] ^= 1
    different = [
        replace(one, pixels=flipped),
        replace(one, pixels=one.pixels.astype(np.int32)),
        replace(one, pixels=one.pixels.reshape(3, 2, 8, 16)),
        replace(one, lat=one.lat + 1e-6),
        replace(one, lon=one.lon + 1e-6),
        replace(one, when=np.array([""] * 3)),
        replace(one, sensor="linz"),
    ]
    for other in different:
        assert not set(other.hashes) & set(one.hashes)


def test_hashes_are_stable():
    """They are the keys of stored teacher targets."""
    assert chips(1).hashes.tolist() == ["a88460341174cf65595eea7ab762cc48"]


def test_unknown_place_and_time_are_zeros_for_the_model():
    one = replace(chips(), lat=np.full(3, np.nan), lon=np.full(3, np.nan), when=np.array(["", "2020-01-02", ""]))
    cube = make_datacube(one.pixels, one.sensor, **one.place_and_time)
    assert not cube.latlon.any() and cube.time.any(1).tolist() == [False, True, False]
    with pytest.raises(ContractError, match="when: found '02.01.2020'"):
        moment("02.01.2020")


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(np, "savez", refuse)
    assert len(world_chips("naip", 1, jobs=1, size=8, cache=tmp_path)) == 1 and not list(tmp_path.iterdir())


def test_world_chips_are_cached_balanced_and_the_same_for_any_number_of_workers(tmp_path):
    options = {"split": "test", "size": 16, "classes": (40, 60), "dates": 2}
    one = world_chips("naip", 6, jobs=1, cache=None, **options)
    two = world_chips("naip", 6, jobs=2, cache=tmp_path, **options)
    again = world_chips("naip", 6, cache=tmp_path, **options)
    for a, b, c in zip(*(vars(x).values() for x in (one, two, again)), strict=True):
        assert np.array_equal(a, b) and np.array_equal(b, c)
    assert len(list(tmp_path.iterdir())) == 1 and one.pixels.shape == (6, 4, 16, 16)
    places = list(zip(one.lat.round(6), one.lon.round(6), strict=True))
    assert len(set(places)) == 4 and len(set(one.when)) == 6  # two classes in turn, two dates a place
    radar = world_chips("sentinel-1-rtc", 6, jobs=1, cache=None, **options)
    assert np.allclose(radar.lat, one.lat, atol=0.01)  # the same places for every sensor
