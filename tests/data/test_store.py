"""Chip stores: round trips through this reader and zarr's own, damage, and several writers."""

import pickle
from dataclasses import dataclass, replace
from functools import partial

import geopandas
import numpy as np
import pytest
import shapely
import zarr

from clay_lib import ContractError
from clay_lib.data.chips import Chips
from clay_lib.data.makers import MakerOutput
from clay_lib.data.store import ChipStore, write_chips
from clay_lib.files import locked


@dataclass(frozen=True)
class Numbered:
    """Chip number n is made of n alone; every tenth is left out."""

    count: int
    sensor: str = "naip"
    size: int = 16
    dtype: str = "uint8"
    recipe: str = "numbered"

    def __len__(self):
        return self.count

    def part(self, numbers):
        return partial(_numbered, self, [n for n in numbers if n % 10 != 3])


def _numbered(maker: Numbered, numbers) -> MakerOutput | None:
    if not numbers:
        return None
    draws = [np.random.default_rng([n, len(maker.sensor)]) for n in numbers]
    pixels = np.stack([rng.integers(0, 255, (4, maker.size, maker.size)) for rng in draws]).astype(maker.dtype)
    pixels[np.array(numbers) % 7 == 0] = 0  # a black chip is a chip
    labels = np.stack([np.repeat([10, 50], [9, 7]).astype(np.uint8)[None].repeat(16, 0) for _ in numbers])
    lat, lon = np.array(numbers) * 0.1, np.full(len(numbers), 7.0)
    when = np.array(["" if n % 5 == 0 else f"2020-01-{1 + n % 28:02d}T10:30" for n in numbers])
    shapes = [shapely.box(7, y, 7.01, y + 0.01) for y in lat]
    splits = ["val" if n % 4 == 0 else "train" for n in numbers]
    return MakerOutput(Chips(maker.sensor, pixels, labels, lat, lon, when), shapes, splits, "numbers")


def all_chips(count: int, **options) -> Chips:
    return _numbered(Numbered(count, **options), [n for n in range(count) if n % 10 != 3]).chips


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    url = tmp_path_factory.mktemp("stores") / "chips"
    assert write_chips(url, [Numbered(40)], chips_per_part=16, jobs=1, progress=False) == 36
    return url


def test_written_chips_are_read_back(store):
    chips, truth = ChipStore.open(store).sensor("naip"), all_chips(40)
    assert len(chips) == 36 and chips.sensor == "naip"
    order = np.random.default_rng(0).permutation(36)[:20]
    for index in (order, slice(3, 30, 4), truth.lat > 2):
        stored, expected = chips[index], truth[index]
        assert stored.pixels.dtype == np.uint8 and stored.hashes.tolist() == expected.hashes.tolist()
        for name in ("pixels", "labels", "lat", "lon"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(expected, name))
        assert [w[:16] for w in stored.when] == expected.when.tolist()
        assert replace(stored).hashes.tolist() == expected.hashes.tolist()  # computed again
    assert chips[[4]].place_and_time["when"] == [None]  # number 5: 3 is left out
    assert pickle.loads(pickle.dumps(chips))[order].hashes.tolist() == truth.hashes[order].tolist()
    assert not ChipStore.open(store).sensor("naip", labels=False)[:2].labels.any()


def test_index_columns(store):
    opened = ChipStore.open(store)
    index = opened.index
    assert isinstance(index, geopandas.GeoDataFrame) and index.crs.to_epsg() == 4326 and len(index) == 36
    assert index.geometry.contains(shapely.Point(7.005, 1.005)).sum() == 1
    np.testing.assert_allclose(index[["cover_10", "cover_50", "cover_80"]].iloc[0], (9 / 16, 7 / 16, 0))
    assert index["time"].isna().sum() == sum(n % 5 == 0 for n in range(40) if n % 10 != 3)
    assert len(opened.sensor("naip", split="val")) + len(opened.sensor("naip", split="train")) == 36
    assert set(opened.sensor("naip", split="val").hashes) == set(index["content_hash"][index["split"] == "val"])
    part = next((store / "index" / "naip-16").iterdir())
    assert geopandas.read_parquet(part).crs.to_epsg() == 4326


def test_zarr_reads_the_shards(store):
    index, truth = ChipStore.open(store).index, all_chips(40)
    for shard, rows in index.groupby("shard"):
        group = zarr.open_group(store, mode="r")[shard]
        assert group["pixels"].shards == (len(rows), 4, 16, 16) and group["pixels"].chunks == (1, 4, 16, 16)
        where = [truth.hashes.tolist().index(name) for name in rows["content_hash"]]
        np.testing.assert_array_equal(group["pixels"][:][rows["row"]], truth.pixels[where])
        np.testing.assert_array_equal(group["labels"][:][rows["row"]], truth.labels[where])


def test_writing_again_adds_only_what_is_new(tmp_path):
    def write(count, **options):
        return write_chips(tmp_path / "s", [Numbered(count, **options)], chips_per_part=16, jobs=1, progress=False)

    assert (write(20), write(20), write(40)) == (18, 0, 18)
    first = ChipStore.open(tmp_path / "s").sensor("naip").hashes
    assert sorted(first) == sorted(all_chips(40).hashes)
    assert write(10, recipe="renamed") == 9 and len(ChipStore.open(tmp_path / "s")) == 36  # the same content, once
    assert write(10, sensor="linz") == 9
    assert len(ChipStore.open(tmp_path / "s").sensor("linz")) == 9
    assert write(10, size=8, recipe="small") == 9
    with pytest.raises(ContractError, match="size: found naip"):
        ChipStore.open(tmp_path / "s").sensor("naip")
    assert len(ChipStore.open(tmp_path / "s").sensor("naip", size=8)) == 9


def test_many_parts_are_gathered_into_one_index(tmp_path, monkeypatch):
    monkeypatch.setattr("clay_lib.data.store.GATHER", 6)
    write_chips(tmp_path, [Numbered(12)], chips_per_part=2, jobs=1, progress=False)
    gathered = (tmp_path / "index.parquet").read_bytes()
    write_chips(tmp_path, [Numbered(16)], chips_per_part=2, jobs=1, progress=False)
    assert (tmp_path / "index.parquet").read_bytes() == gathered  # not rewritten for two more
    assert ChipStore.open(tmp_path).sensor("naip").hashes.tolist() == all_chips(16).hashes.tolist()
    for part in (tmp_path / "index" / "naip-16").iterdir():
        if int(part.stem.split("-")[1]) < 12:
            part.write_bytes(b"not read any more")
    assert len(ChipStore.open(tmp_path)) == len(all_chips(16))


def test_object_storage_by_url():
    write_chips("memory://bucket/chips", [Numbered(20)], chips_per_part=8, progress=False)
    chips = ChipStore.open("memory://bucket/chips").sensor("naip")
    assert chips[np.arange(18)[::-1]].hashes.tolist() == all_chips(20).hashes[::-1].tolist()
    np.testing.assert_array_equal(chips[:].pixels, all_chips(20).pixels)
    assert ChipStore.open("memory://bucket/chips").check() == []
    assert write_chips("memory://bucket/chips", [Numbered(20)], chips_per_part=8, progress=False) == 0


def flip(path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda shard: flip(shard / "pixels/c/0/0/0/0", 100),
    "a flipped bit in the table": lambda shard: flip(shard / "pixels/c/0/0/0/0", -10),
    "a short file": lambda shard: (shard / "pixels/c/0/0/0/0").write_bytes(
        (shard / "pixels/c/0/0/0/0").read_bytes()[:-500]
    ),
    "a missing shard": lambda shard: (shard / "pixels/c/0/0/0/0").unlink(),
    "missing labels": lambda shard: (shard / "labels/c/0/0/0").unlink(),
    "no metadata": lambda shard: (shard / "pixels/zarr.json").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_named_and_skipped_on_request(tmp_path, damage):
    write_chips(tmp_path, [Numbered(40)], chips_per_part=16, jobs=1, progress=False)
    assert ChipStore.open(tmp_path).check() == []
    shard = ChipStore.open(tmp_path).table["shard"].iloc[20]
    damage(tmp_path / shard)
    store, every = ChipStore.open(tmp_path), np.arange(36)
    (found,) = store.check()
    assert found.shard == shard and 1 <= len(found.hashes) <= 16
    with pytest.raises(ContractError, match=shard):
        store.sensor("naip")[every]
    lost = np.isin(store.sensor("naip").hashes, found.hashes)
    assert lost.sum() == len(found.hashes)
    with pytest.warns(UserWarning, match=shard):
        chips, kept = ChipStore.open(tmp_path, on_damage="skip").sensor("naip").take(every)
    np.testing.assert_array_equal(kept, ~lost)
    np.testing.assert_array_equal(chips.pixels, all_chips(40).pixels[~lost])


def test_swapped_shards_are_found(tmp_path):
    """By a careless copy: every checksum is right, but no chip is."""
    write_chips(tmp_path, [Numbered(40)], chips_per_part=20, jobs=1, progress=False)
    one, two = sorted(set(ChipStore.open(tmp_path).table["shard"]))
    (tmp_path / one).rename(tmp_path / "x")
    (tmp_path / two).rename(tmp_path / one)
    (tmp_path / "x").rename(tmp_path / two)
    assert sum(len(damage.hashes) for damage in ChipStore.open(tmp_path).check()) == 36


def test_only_leftovers_of_killed_writers_are_deleted(tmp_path):
    write_chips(tmp_path, [Numbered(20)], chips_per_part=16, jobs=1, progress=False)
    kept = ChipStore.open(tmp_path).table["shard"].iloc[0]
    for session in ("0000dead", "0000beef"):
        (tmp_path / "writers" / f"{session}.lock").touch()
        (tmp_path / "naip-16" / f"numbered-00000100-00000115-{session}").mkdir()
        (tmp_path / f"{kept.rsplit('-', 1)[0]}-{session}").mkdir()  # lost the race for a part that exists
    (tmp_path / "writers" / "00000old.json").write_text("{}")  # a session of before, when writers had no locks
    (tmp_path / "targets").mkdir()
    (tmp_path / "naip-16" / "notes").mkdir()
    with locked(tmp_path / "writers" / "0000beef.lock", "session"):  # its writer lives
        write_chips(tmp_path, [Numbered(20)], chips_per_part=16, jobs=1, progress=False)
    left = {path.name.rsplit("-", 1)[-1] for path in (tmp_path / "naip-16").iterdir()}
    assert "0000beef" in left and "0000dead" not in left and "notes" in left and (tmp_path / "targets").is_dir()
    assert [path.name for path in (tmp_path / "writers").iterdir()] == ["0000beef.lock"]
    assert ChipStore.open(tmp_path).check() == []


class Overtaken(Numbered):
    """While it makes a part, another writer makes all of them."""

    url = ""

    def part(self, numbers):
        def make():
            write_chips(self.url, [Numbered(self.count)], chips_per_part=16, jobs=1, progress=False)
            return _numbered(self, [n for n in numbers if n % 10 != 3])

        return make


def test_the_first_of_two_writers_wins(tmp_path):
    Overtaken.url = tmp_path
    assert write_chips(tmp_path, [Overtaken(40)], chips_per_part=16, jobs=1, progress=False) == 0
    shards = {f"naip-16/{path.name}" for path in (tmp_path / "naip-16").iterdir() if path.is_dir()}
    assert shards == set(ChipStore.open(tmp_path).table["shard"]) and ChipStore.open(tmp_path).check() == []
    assert ChipStore.open(tmp_path).sensor("naip").hashes.tolist() == all_chips(40).hashes.tolist()


def test_wrong_input_raises(store, tmp_path):
    (tmp_path / "letter.txt").write_text("not chips")
    wrong = {
        "url: found .*no store": lambda: ChipStore.open(tmp_path),
        "out: found .*letter.txt": lambda: write_chips(tmp_path, [Numbered(1)], jobs=1, progress=False),
        "on_damage": lambda: ChipStore.open(store, on_damage="ignore"),
        "sensor: found modis": lambda: ChipStore.open(store).sensor("modis"),
        "chips: found none": lambda: ChipStore.open(store).sensor("naip")[[]],
        "pixels: found modis: uint16": lambda: write_chips(
            tmp_path / "s", [_TooLarge(4, "modis", dtype="uint16")], jobs=1, progress=False
        ),
        "url: found bucket-of-no-kind": lambda: ChipStore.open("bucket-of-no-kind://chips"),
    }
    for words, call in wrong.items():
        with pytest.raises(ContractError, match=words):
            call()


class _TooLarge(Numbered):
    def part(self, numbers):
        output = _numbered(self, list(numbers))
        return lambda: replace(output, chips=replace(output.chips, pixels=output.chips.pixels + np.uint16(40000)))
