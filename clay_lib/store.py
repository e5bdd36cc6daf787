"""A store of chips: many more than fit into memory, read a batch at a time from a folder or from object storage.

    zarr.json                                            a Zarr v3 group, so that any Zarr reader finds its way
    SENSOR-SIZE/PART-SESSION/{pixels,labels}             arrays of one shard each, one chip a chunk
    index/SENSOR-SIZE/PART.parquet                       GeoParquet, a row a chip: the part exists once this does
    index.parquet                                        the same rows of many parts in one file, for a quick start

Shards are read here rather than through zarr-python: it fetches a shard's table of contents anew for every chip, fills
in zeros for what is missing, and takes 20 ms a chip; this takes a request a chip and names the shard that is damaged.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from clay_lib.chips import Chips, content_hash
from clay_lib.contract import ContractError

if TYPE_CHECKING:
    import geopandas
    import pandas

VERSION = 1
INDEX, ALL = "index", "index.parquet"
NO_CHUNK = np.uint64(2**64 - 1)  # in a shard's table: this chunk was never written


@dataclass(frozen=True)
class Damage:
    """What is wrong with a shard, and the content hashes of the chips that it takes along."""

    shard: str
    reason: str
    hashes: tuple[str, ...]


def filesystem(url: str):
    """(fsspec filesystem, root path) of a local folder or a URL such as s3://bucket/chips."""
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(str(url))
    except (ValueError, ImportError) as error:
        raise ContractError(
            "url", found=url, expected="a folder, or a URL whose protocol fsspec knows", cause=str(error)
        ) from None
    return fs, root.rstrip("/")


def read_files(fs, paths: Sequence[str]) -> list[bytes | Exception]:
    """Whole files, fetched together where the filesystem can; unlike `fs.cat`, without reading patterns into names."""
    return fs.cat_ranges(list(paths), None, None, on_error="return") if paths else []


class ChipStore:
    """The whole chips of a store. on_damage: "raise" names the shard; "skip" warns of it once and goes on without."""

    def __init__(self, url: str, table: pandas.DataFrame, on_damage: str = "raise"):
        self.url, self.table, self.on_damage = str(url), table, on_damage

    @staticmethod
    def open(url, *, on_damage: str = "raise") -> ChipStore:
        """The chips that are in the store now; what is written later is seen by opening it again."""
        if on_damage not in ("raise", "skip"):
            raise ContractError("on_damage", found=on_damage, expected="'raise' or 'skip'", cause="a misspelling")
        fs, root = filesystem(url)
        try:
            found = json.loads(fs.cat_file(f"{root}/zarr.json"))["attributes"]["clay_chips"]
        except (FileNotFoundError, KeyError, ValueError):
            found = None
        if found != VERSION:
            raise ContractError(
                "url",
                found=f"{url}, {'no store' if found is None else f'version {found}'}",
                expected=f"a store of chips, version {VERSION}",
                cause="a misspelt path, or nothing written yet: `python -m clay_lib chips` makes one",
            )
        return ChipStore(str(url), _read_index(fs, root, on_damage), on_damage)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def index(self) -> geopandas.GeoDataFrame:
        """A row a chip: footprint, sensor, size, time, lat, lon, source, split, content_hash, cover_10..100, shard, row."""
        import geopandas

        shapes = geopandas.GeoSeries.from_wkb(self.table["geometry"], crs="EPSG:4326")
        return geopandas.GeoDataFrame(self.table.drop(columns="geometry"), geometry=shapes)

    def sensor(
        self, name: str, *, split: str | None = None, size: int | None = None, labels: bool = True
    ) -> StoredChips:
        """The chips of one sensor, of one split if named, in a fixed order. labels: False spares reading them."""
        table = self.table[self.table["sensor"] == name]
        table = table if split is None else table[table["split"] == split]
        table = table if size is None else table[table["size"] == size]
        sizes = sorted(set(table["size"]))
        if len(sizes) != 1:
            raise ContractError(
                "sensor" if not sizes else "size",
                found=f"{name}, {split or 'any split'}: {'no chip' if not sizes else f'chips of {sizes} pixels'}",
                expected=f"one of {sorted(set(self.table['sensor']))}, splits {sorted(set(self.table['split']))}",
                cause="a sensor or split that was not written" if not sizes else "two sizes in one store: name size=",
            )
        return StoredChips(self.url, name, table, labels=labels, on_damage=self.on_damage)

    def check(self) -> list[Damage]:
        """Read every byte of every chip against its checksum and content hash; what is damaged, shard by shard."""
        damaged = []
        for shard, table in self.table.groupby("shard", sort=True):
            chips = StoredChips(self.url, table["sensor"].iloc[0], table, on_damage="raise")
            reasons, lost = set(), []
            for start in range(0, len(chips), 64):
                reasons |= _failures(chips, np.arange(start, min(start + 64, len(chips))), lost)
            if lost:
                damaged.append(Damage(shard, "; ".join(sorted(reasons)), tuple(chips.hashes[lost])))
        return damaged

    def without(self, damaged: Sequence[Damage]) -> ChipStore:
        """The same store without the chips that `check` found damaged."""
        lost = {name for damage in damaged for name in damage.hashes}
        return ChipStore(self.url, self.table[~self.table["content_hash"].isin(lost)], self.on_damage)


class StoredChips:
    """N chips of one sensor that stay where they are until they are asked for; picklable, and safe to fork."""

    def __init__(self, url: str, sensor: str, table, *, labels: bool = True, on_damage: str = "raise"):
        self.url, self.sensor, self.labels, self.on_damage = url, sensor, labels, on_damage
        self.size = int(table["size"].iloc[0])
        self.hashes = table["content_hash"].to_numpy("U32")  # [N]
        self.lat, self.lon = table["lat"].to_numpy(np.float64), table["lon"].to_numpy(np.float64)  # [N]
        self._time = table["time"].to_numpy("datetime64[s]")
        self._names, self._shard = np.unique(table["shard"].to_numpy(str), return_inverse=True)
        self._row = table["row"].to_numpy(np.int64)
        self._open: dict[str, _Array] = {}
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def when(self) -> np.ndarray:
        """[N] ISO 8601 text, empty where the time is unknown."""
        return _text(self._time)

    def __getitem__(self, index) -> Chips:
        """The chips that a slice, an index array or a boolean mask names, in memory; fewer where damage is skipped."""
        return self.take(index)[0]

    def take(self, index) -> tuple[Chips, np.ndarray]:
        """(chips [n], kept [B] bool): kept is False for the asked chips that lie in a damaged shard and were skipped."""
        asked = np.arange(len(self))[index]
        read = {"pixels": self._read("pixels", asked)}
        if self.labels:
            read["labels"] = self._read("labels", asked)
        kept = np.array(
            [all(isinstance(c, np.ndarray) for c in chip) for chip in zip(*read.values(), strict=True)], bool
        )
        if not kept.all():
            self._report({c.args[0]: c for column in read.values() for c in column if isinstance(c, _Damaged)})
        if not kept.any():
            raise ContractError(
                "chips",
                found=f"none of the {len(asked)} asked",
                expected="at least one",
                cause="an empty index, or damage",
            )
        good = asked[kept]
        pixels = np.stack([chip for chip, ok in zip(read["pixels"], kept, strict=True) if ok])
        labels = (
            np.stack([chip for chip, ok in zip(read["labels"], kept, strict=True) if ok])
            if self.labels
            else np.zeros((len(good), *pixels.shape[2:]), np.uint8)
        )
        chips = Chips(self.sensor, pixels, labels, self.lat[good], self.lon[good], _text(self._time[good]))
        chips.__dict__["hashes"] = self.hashes[good]
        return chips, kept

    def _report(self, damaged: dict[str, _Damaged]) -> None:
        for shard, error in damaged.items():
            if self.on_damage == "raise":
                raise ContractError(
                    f"shard {self.url}/{shard}",
                    found=error.args[1],
                    expected="whole chips",
                    cause="a disk error or an interrupted copy: `chips STORE --check` lists all such shards, and "
                    'ChipStore.open(..., on_damage="skip") goes on without them',
                )
            if shard not in self._warned:
                self._warned.add(shard)
                warnings.warn(f"shard {self.url}/{shard} is damaged: {error.args[1]}; skipped", stacklevel=4)

    def _read(self, name: str, asked: np.ndarray) -> list[np.ndarray | _Damaged]:
        """The decoded chunk of every asked chip, or why it cannot be had."""
        shards = self._names[self._shard[asked]].tolist()
        arrays = self._arrays(name, set(shards))
        fs, root = filesystem(self.url)
        found: list = [None] * len(asked)
        wanted = []
        for k, (shard, row) in enumerate(zip(shards, self._row[asked].tolist(), strict=True)):
            array = arrays[shard]
            if isinstance(array, _Damaged):
                found[k] = array
            elif row >= len(array.table) or array.table[row, 0] == NO_CHUNK:
                found[k] = _Damaged(shard, f"{name} of chip {row} were never written")
            else:
                wanted.append((k, row, f"{root}/{shard}/{name}/{array.key}", *map(int, array.table[row])))
        if wanted:
            at, rows, paths, starts, lengths = zip(*wanted, strict=True)
            stops = [start + length for start, length in zip(starts, lengths, strict=True)]
            chunks = fs.cat_ranges(list(paths), list(starts), stops, on_error="return")
            for k, row, chunk in zip(at, rows, chunks, strict=True):
                found[k] = arrays[shards[k]].decode(shards[k], f"{name} of chip {row}", chunk)
        return found

    def _arrays(self, name: str, shards: set[str]) -> dict[str, _Array | _Damaged]:
        """The arrays of these shards, each opened once; what could not be opened is tried again the next time."""
        fs, root = filesystem(self.url)
        new = sorted(shard for shard in shards if f"{shard}/{name}" not in self._open)
        failed = {}
        if new:
            files = read_files(fs, [f"{root}/{shard}/{name}/zarr.json" for shard in new])
            for shard, file in zip(new, files, strict=True):
                try:
                    self._open[f"{shard}/{name}"] = _Array.read(fs, f"{root}/{shard}/{name}", file)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    failed[shard] = _Damaged(shard, f"{name}: {type(error).__name__} {error}".splitlines()[0])
        return {shard: self._open.get(f"{shard}/{name}") or failed[shard] for shard in shards}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}


class _Damaged(Exception):
    """args: shard, reason."""


@dataclass(frozen=True)
class _Array:
    """A Zarr v3 array of one shard, as `writer` makes them: a chip a chunk, Blosc, CRC-32C, table at the end."""

    dtype: np.dtype
    chunk: tuple[int, ...]  # of one chip, without the leading 1
    key: str
    table: np.ndarray  # [n, 2] uint64: offset and length of each chunk

    @staticmethod
    def read(fs, path: str, meta: bytes | Exception | None) -> _Array:
        if not isinstance(meta, bytes):
            raise FileNotFoundError(f"zarr.json is missing ({type(meta).__name__})")
        meta = json.loads(meta)
        n, *chunk = meta["shape"]
        (sharding,) = meta["codecs"]
        inner = [codec["name"] for codec in sharding["configuration"]["codecs"]]
        if sharding["name"] != "sharding_indexed" or inner != ["bytes", "blosc", "crc32c"]:
            raise ValueError(f"codecs {inner} instead of bytes, blosc, crc32c")
        key = "/".join(["c", *["0"] * (1 + len(chunk))])
        tail = fs.cat_file(f"{path}/{key}", start=-(16 * n + 4))
        if len(tail) != 16 * n + 4:
            raise ValueError("the shard is cut short")
        table = np.frombuffer(_checked(tail), "<u8").reshape(n, 2)
        return _Array(np.dtype(meta["data_type"]), tuple(chunk), key, table)

    def decode(self, shard: str, what: str, chunk: bytes | Exception) -> np.ndarray | _Damaged:
        from numcodecs import blosc

        try:
            if isinstance(chunk, Exception):
                raise chunk
            return np.frombuffer(blosc.decompress(_checked(chunk)), self.dtype).reshape(self.chunk)
        except (OSError, ValueError, RuntimeError) as error:
            return _Damaged(shard, f"{what}: {error}".splitlines()[0])


def _checked(data: bytes) -> bytes:
    """The bytes before a closing CRC-32C that agrees with them."""
    import google_crc32c

    body = memoryview(data)[:-4]
    if len(data) < 4 or google_crc32c.value(bytes(body)) != int.from_bytes(data[-4:], "little"):
        raise ValueError("the checksum differs")
    return bytes(body)


def _failures(chips: StoredChips, asked: np.ndarray, lost: list[int]) -> set[str]:
    """Reasons; the positions of chips that cannot be read, or are not what the index says, are added to `lost`."""
    reasons = set()
    for k, pixels, labels in zip(asked, chips._read("pixels", asked), chips._read("labels", asked), strict=True):
        bad = [part.args[1] for part in (pixels, labels) if isinstance(part, _Damaged)]
        if not bad:
            when = _text(chips._time[[k]])[0]
            if content_hash(chips.sensor, pixels, chips.lat[k], chips.lon[k], when) != chips.hashes[k]:
                bad = [f"chip {chips._row[k]} is not the one that the index names"]
        if bad:
            lost.append(int(k))
            reasons.add(bad[0])
    return reasons


def _text(times: np.ndarray) -> np.ndarray:
    """datetime64 [n] -> ISO text [n], empty for NaT."""
    return np.where(np.isnat(times), "", np.datetime_as_string(times, unit="s"))


def index_parts(fs, root: str) -> dict[str, str]:
    """{SENSOR-SIZE/PART: path of its index file}: the parts that exist."""
    fs.invalidate_cache()
    try:
        paths = fs.find(f"{root}/{INDEX}")
    except FileNotFoundError:
        return {}
    return {"/".join(p.removesuffix(".parquet").rsplit("/", 2)[1:]): p for p in paths if p.endswith(".parquet")}


def _read_index(fs, root: str, on_damage: str) -> pandas.DataFrame:
    """All rows, in the order of the parts' names, each content once."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, parts = [], index_parts(fs, root)
    if fs.exists(f"{root}/{ALL}"):
        tables.append(pq.read_table(io.BytesIO(fs.cat_file(f"{root}/{ALL}"))))
        for part in pq.read_schema(io.BytesIO(fs.cat_file(f"{root}/{ALL}"))).metadata[b"parts"].decode().split():
            parts.pop(part, None)
    for path, data in zip(parts.values(), read_files(fs, list(parts.values())), strict=True):
        try:
            tables.append(pq.read_table(io.BytesIO(data)))
        except (pa.ArrowInvalid, OSError, TypeError) as error:
            said = ContractError(
                f"index {path}", found=str(error).splitlines()[0], expected="GeoParquet", cause="a disk error"
            )
            if on_damage == "raise":
                raise said from None
            warnings.warn(f"{said}; its chips are left out", stacklevel=3)
    tables = [table for table in tables if len(table)]
    if not tables:
        return pd.DataFrame({name: [] for name in ("sensor", "size", "split", "shard", "content_hash", "geometry")})
    frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    frame["part"] = frame["shard"].str.rsplit("-", n=1).str[0]
    frame = frame.sort_values(["part", "row"], kind="stable").drop(columns="part")
    return frame.drop_duplicates("content_hash").reset_index(drop=True)
