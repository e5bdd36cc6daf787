"""A store of chips: many more than fit into memory, read a batch at a time from a folder or from object storage.

zarr.json                                            a Zarr v3 group, so that any Zarr reader finds its way
SENSOR-SIZE/PART-SESSION/{pixels,labels}             arrays of one shard each, one chip a chunk
index/SENSOR-SIZE/PART.parquet                       GeoParquet, a row a chip: the part exists once this does
index.parquet                                        the same rows of many parts in one file, for a quick start
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from clay_lib.data.chips import Chips, content_hash, moment
from clay_lib.data.splits import cover_fractions
from clay_lib.errors import ContractError
from clay_lib.files import filesystem

NO_CHUNK = np.uint64(2**64 - 1)  # in a shard's table: this chunk was never written


def read_files(fs, paths: Sequence[str]) -> list[bytes | Exception]:
    """Whole files, fetched together where the filesystem can; unlike `fs.cat`, without reading patterns into names."""
    return fs.cat_ranges(list(paths), None, None, on_error="return") if paths else []


def encode(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """{key: bytes} of a Zarr group of these arrays [N, ...]: one shard an array, one row a chunk.

    Bit-shuffled LZ4: within 5 % of Zstandard's size on noisy imagery, and read two to three times as fast.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    store: dict = {}
    memory = zarr.storage.MemoryStore(store)
    zarr.create_group(memory, zarr_format=3)
    for name, values in arrays.items():
        blosc = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=values.dtype.itemsize)
        array = zarr.create_array(
            memory,
            name=name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(1, *values.shape[1:]),
            shards=values.shape,
            filters=None,
            compressors=[blosc, Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},  # a black chip is a chip
        )
        array[:] = values
    return {key: value.to_bytes() for key, value in store.items()}


@dataclass(frozen=True)
class _Shard:
    """What has to be known of an array to read a row of it."""

    path: str  # of the one file that holds it
    dtype: np.dtype
    chunk: tuple[int, ...]  # shape of a row
    table: np.ndarray  # [N, 2] uint64: offset and length of each row


class Shards:
    """Reads rows of shards below a URL; opened shards are remembered. Picklable, and safe to fork."""

    def __init__(self, url: str):
        self.url = str(url)
        self._open: dict[str, _Shard] = {}

    def __getstate__(self) -> dict:
        return {"url": self.url, "_open": {}}

    def read(self, name: str, shards: Sequence[str], rows: Sequence[int]) -> tuple[np.ndarray, dict[int, str]]:
        """Rows [B, ...] of the array `name`, the k-th of shards[k], and {k: reason} of those that could not be had."""
        fs, root = filesystem(self.url)
        failed = self._remember(fs, root, name, set(shards))
        reasons = {k: failed[shard] for k, shard in enumerate(shards) if shard in failed}
        wanted = []
        for k, (shard, row) in enumerate(zip(shards, rows, strict=True)):
            if k in reasons:
                continue
            opened = self._open[f"{shard}/{name}"]
            if row >= len(opened.table) or opened.table[row, 0] == NO_CHUNK:
                reasons[k] = f"{name} of chip {row} were never written"
            else:
                wanted.append((k, opened, *map(int, opened.table[row])))
        if not wanted:
            return np.empty((len(shards), 0)), reasons
        paths, starts = [opened.path for _, opened, *_ in wanted], [start for *_, start, _ in wanted]
        stops = [start + length for *_, start, length in wanted]
        out = np.empty((len(shards), *wanted[0][1].chunk), wanted[0][1].dtype)
        for (k, *_), chunk in zip(wanted, fs.cat_ranges(paths, starts, stops, on_error="return"), strict=True):
            if reason := _decode(chunk, out[k]):
                reasons[k] = f"{name} of chip {rows[k]}: {reason}"
        return out, reasons

    def _remember(self, fs, root: str, name: str, shards: set[str]) -> dict[str, str]:
        """Open what is not open yet; {shard: reason} of what cannot be, which is tried again the next time."""
        new = sorted(shard for shard in shards if f"{shard}/{name}" not in self._open)
        if not new:
            return {}
        failed, shapes = {}, {}
        for shard, meta in zip(new, read_files(fs, [f"{root}/{s}/{name}/zarr.json" for s in new]), strict=True):
            try:
                shapes[shard] = _shape(meta)
            except (ValueError, KeyError, TypeError, OSError) as error:
                failed[shard] = f"{name}/zarr.json: {type(error).__name__} {error}".splitlines()[0]
        paths = [f"{root}/{shard}/{name}/{'/'.join(['c', *'0' * len(shape)])}" for shard, (shape, _) in shapes.items()]
        sizes = [-(16 * shape[0] + 4) for shape, _ in shapes.values()]
        tails = fs.cat_ranges(paths, sizes, None, on_error="return") if paths else []
        for (shard, (shape, dtype)), path, tail in zip(shapes.items(), paths, tails, strict=True):
            try:
                table = np.frombuffer(_checked(tail), "<u8").reshape(shape[0], 2)
                self._open[f"{shard}/{name}"] = _Shard(path, dtype, tuple(shape[1:]), table)
            except (ValueError, OSError) as error:
                failed[shard] = f"table of {name}: {type(error).__name__} {error}".splitlines()[0]
        return failed


def _shape(meta: bytes | Exception) -> tuple[list[int], np.dtype]:
    """Shape and dtype from an array's zarr.json, which must say what `encode` writes."""
    if isinstance(meta, Exception):
        raise meta
    meta = json.loads(meta)
    (sharding,) = meta["codecs"]
    inner = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    if sharding["name"] != "sharding_indexed" or inner != ["bytes", "blosc", "crc32c"]:
        raise ValueError(f"codecs {inner} instead of bytes, blosc, crc32c")
    return meta["shape"], np.dtype(meta["data_type"])


def _decode(chunk: bytes | Exception, out: np.ndarray) -> str:
    """Fill `out`; returns what is wrong, if anything is."""
    from numcodecs import blosc

    try:
        blosc.decompress(_checked(chunk), out)
    except (OSError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__} {error}".splitlines()[0]
    return ""


def _checked(data: bytes | Exception) -> np.ndarray:
    """The bytes before a closing CRC-32C that agrees with them."""
    import google_crc32c

    if isinstance(data, Exception):
        raise data
    body = np.frombuffer(data, np.uint8)[:-4]  # no copy, and unlike a memoryview taken by google_crc32c
    if len(data) < 5 or google_crc32c.value(body) != int.from_bytes(data[-4:], "little"):
        raise ValueError("the checksum differs, or the file is cut short")
    return body


# ---- A store of chips: many more than fit into memory, read a batch at a time from a folder or from objec ----

if TYPE_CHECKING:
    import geopandas
    import pandas

VERSION = 1
INDEX, ALL = "index", "index.parquet"


@dataclass(frozen=True)
class Damage:
    """What is wrong with a shard, and the content hashes of the chips that it takes along."""

    shard: str
    reason: str
    hashes: tuple[str, ...]


class ChipStore:
    """The whole chips of a store. on_damage: "raise" names the shard; "skip" warns of it once and goes on without."""

    def __init__(self, url: str, table: pandas.DataFrame, on_damage: str = "raise"):
        self.url, self.table, self.on_damage = str(url), table, on_damage

    @staticmethod
    def open(url, *, on_damage: str = "raise") -> ChipStore:
        """The chips that are in the store now; what is written later is seen by opening it again."""
        if on_damage not in ("raise", "skip"):
            raise ContractError("on_damage", on_damage, "'raise' or 'skip'", "a misspelling")
        fs, root = filesystem(url)
        try:
            found = json.loads(fs.cat_file(f"{root}/zarr.json"))["attributes"]["clay_chips"]
        except (FileNotFoundError, KeyError, ValueError):
            found = None
        if found != VERSION:
            raise ContractError(
                "url",
                f"{url}, {'no store' if found is None else f'version {found}'}",
                f"a store of chips, version {VERSION}",
                "a misspelt path, or nothing written yet: `python -m clay_lib chips` makes one",
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
                f"{name}, {split or 'any split'}: {'no chip' if not sizes else f'chips of {sizes} pixels'}",
                f"one of {sorted(set(self.table['sensor']))}, splits {sorted(set(self.table['split']))}",
                "a sensor or split that was not written" if not sizes else "two sizes in one store: name size=",
            )
        return StoredChips(self.url, name, table, labels=labels, on_damage=self.on_damage)

    def check(self) -> list[Damage]:
        """Read every byte of every chip against its checksum and content hash; what is damaged, shard by shard."""
        damaged = []
        for shard, table in self.table.groupby("shard", sort=True):
            chips = StoredChips(self.url, table["sensor"].iloc[0], table)
            wrong: dict[int, str] = {}
            for start in range(0, len(chips), 64):
                asked = np.arange(start, min(start + 64, len(chips)))
                wrong |= {start + k: reason for k, reason in chips.failures(asked).items()}
            if wrong:
                reasons = "; ".join(dict.fromkeys(wrong[k] for k in sorted(wrong)))
                damaged.append(Damage(shard, reasons, tuple(chips.hashes[sorted(wrong)])))
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
        self._shards = Shards(url)
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
        """(chips [n], kept [B] bool): kept is False for the asked chips that are damaged and were skipped."""
        asked = np.arange(len(self))[index]
        pixels, labels, reasons = self._read(asked)
        kept = np.ones(len(asked), bool)
        kept[list(reasons)] = False
        for k, reason in reasons.items():
            self._report(self._names[self._shard[asked[k]]], reason)
        if not kept.any():
            raise ContractError("chips", f"none of the {len(asked)} asked", "at least one", "an empty index, or damage")
        if reasons:
            asked, pixels, labels = asked[kept], pixels[kept], labels[kept]
        chips = Chips(self.sensor, pixels, labels, self.lat[asked], self.lon[asked], _text(self._time[asked]))
        chips.__dict__["hashes"] = self.hashes[asked]
        return chips, kept

    def failures(self, asked: np.ndarray) -> dict[int, str]:
        """{k: reason} of the asked chips that cannot be read, or are not what the index says."""
        pixels, _, reasons = self._read(asked)
        when = _text(self._time[asked])
        for k, chip in enumerate(asked):
            hashed = (self.sensor, pixels[k], self.lat[chip], self.lon[chip], when[k])
            if k not in reasons and content_hash(*hashed) != self.hashes[chip]:
                reasons[k] = f"chip {self._row[chip]} is not the one that the index names"
        return reasons

    def _read(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """pixels [B, C, H, W], labels [B, H, W] (zeros if they are not to be read), {k: reason}."""
        shards, rows = self._names[self._shard[asked]].tolist(), self._row[asked].tolist()
        pixels, reasons = self._shards.read("pixels", shards, rows)
        if not self.labels:
            return pixels, np.zeros((len(asked), self.size, self.size), np.uint8), reasons
        labels, more = self._shards.read("labels", shards, rows)
        return pixels, labels, more | reasons

    def _report(self, shard: str, reason: str) -> None:
        if self.on_damage == "raise":
            raise ContractError(
                f"shard {self.url}/{shard}",
                reason,
                "whole chips",
                "a disk error or an interrupted copy: `chips STORE --check` lists all such shards, and "
                'ChipStore.open(..., on_damage="skip") goes on without them',
            )
        if shard not in self._warned:
            self._warned.add(shard)
            warnings.warn(f"shard {self.url}/{shard} is damaged: {reason}; its damaged chips are skipped", stacklevel=4)


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
            said = ContractError(f"index {path}", str(error).splitlines()[0], "GeoParquet", "a disk error")
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


# ---- Several writers on one store: their signs of life, what counts as written, and what the dead left be ----

WRITERS = "writers"
SILENCE = 3600.0  # s without a sign of life after which a writer on another machine counts as dead
GATHER = 64  # parts that are read one by one before index.parquet is written anew
SHARD = r".+-\d{8,}-\d{8,}-[0-9a-f]{8}"  # only what is named so is ever deleted


class Session:
    """A writer's sign of life, in a file that other writers look at; and its commits."""

    def __init__(self, fs, root: str):
        import psutil

        self.fs, self.root, self.name = fs, root, secrets.token_hex(4)
        self.local = "file" in fs.protocol
        self.path = f"{root}/{WRITERS}/{self.name}.json"
        self.who = {"host": socket.gethostname(), "pid": os.getpid(), "born": psutil.Process().create_time()}
        fs.makedirs(f"{root}/{WRITERS}", exist_ok=True)
        self.sign()

    def sign(self) -> None:
        self.put(self.path, json.dumps(self.who | {"seen": time.time()}).encode())

    def put(self, path: str, data: bytes, *, anew: bool = True) -> bool:
        """A file that is whole once its name is there. anew=False: False, and nothing done, if the name is there.

        Object stores put whole by themselves; of two that put one name in the same moment the last wins.
        """
        self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if not self.local:
            if not anew and self.fs.exists(path):
                return False
            self.fs.pipe_file(path, data)
            return True
        partial = f"{self.root}/{WRITERS}/{self.name}.part"
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(partial, path) if anew else os.link(partial, path)
        except FileExistsError:
            return False
        except OSError:  # a disk without hard links: nearly as good
            if os.path.exists(path):
                return False
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
        return True

    def commit(self, path: str, data: bytes) -> bool:
        """Make a part exist; False if it does already."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.path):  # then its shards may be gone too
            raise ContractError(
                "session",
                "that another writer took this one for dead",
                f"a sign of life every {SILENCE / 60:.0f} minutes",
                "a part that took longer, or a clock that is wrong: fewer chips_per_part, and run it again",
            )
        return self.put(path, data, anew=False)

    def close(self) -> None:
        if self.fs.exists(self.path):
            self.fs.rm(self.path)


def _alive(data: bytes | Exception) -> bool:
    """Whether a session's writer still lives: its process on this machine, its last sign on another."""
    import psutil

    try:
        who = json.loads(data)
        if who["host"] != socket.gethostname():
            return time.time() - who["seen"] < SILENCE
        process = psutil.Process(who["pid"])
        return abs(process.create_time() - who["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, TypeError, KeyError):
        return False


def clean(fs, root: str) -> None:
    """Delete what dead writers left. Shards are listed first, then sessions, then the index, so that a part in the
    making is never taken for a leftover."""
    fs.invalidate_cache()
    kinds = [path for path in fs.ls(root, detail=False) if re.fullmatch(r".+-\d+", _last(path))]
    shards = [s.rstrip("/") for kind in kinds for s in fs.ls(kind, detail=False) if re.fullmatch(SHARD, _last(s))]
    files = fs.ls(f"{root}/{WRITERS}", detail=False)
    signs = {_last(f).split(".")[0]: data for f, data in zip(files, read_files(fs, files), strict=True) if ".json" in f}
    alive = {session for session, data in signs.items() if _alive(data)}
    there = index_parts(fs, root)
    rivals: dict[str, list[str]] = {}
    for shard in shards:
        if shard.rsplit("-", 1)[1] not in alive:
            rivals.setdefault("/".join(shard.rsplit("/", 2)[1:]).rsplit("-", 1)[0], []).append(shard)
    for part, found in rivals.items():
        kept = []
        if part in there:  # only of rivals need it be asked which one is in the index
            kept = found if len(found) == 1 else [f"{root}/{_winner(fs, there[part])}"]
        for shard in set(found) - set(kept):
            fs.rm(shard, recursive=True)
    for file in files:
        if _last(file).split(".")[0] in signs.keys() - alive:
            fs.rm(file)


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _winner(fs, path: str) -> str:
    import pyarrow.parquet as pq

    shards = pq.read_table(io.BytesIO(fs.cat_file(path)), columns=["shard"])["shard"].to_pylist()
    return shards[0] if shards else ""


def refuse_other_folders(fs, root: str) -> None:
    if not fs.exists(f"{root}/zarr.json") and fs.exists(root):
        others = [_last(path) for path in fs.ls(root, detail=False) if _last(path) != WRITERS]
        if others:
            raise ContractError(
                "out",
                f"{root}, which holds {others[0]}",
                "a store of chips, an empty folder or a new name",
                "the folder of something else",
            )


def make_groups(session: Session, kinds: set[str]) -> None:
    """The Zarr groups above the parts."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    session.put(
        f"{session.root}/zarr.json", json.dumps(group | {"attributes": {"clay_chips": VERSION}}).encode(), anew=False
    )
    for kind in kinds:
        session.put(f"{session.root}/{kind}/zarr.json", json.dumps(group).encode(), anew=False)


def gather_index(session: Session) -> None:
    """Rewrite index.parquet once GATHER parts are not in it. The parts' own files stay: they are the commits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fs, root = session.fs, session.root
    parts = index_parts(fs, root)
    tables, gathered = [], set()
    if fs.exists(f"{root}/{ALL}"):
        tables.append(pq.read_table(io.BytesIO(fs.cat_file(f"{root}/{ALL}"))))
        gathered = set(tables[0].schema.metadata[b"parts"].decode().split())
    fresh = sorted(parts.keys() - gathered)
    if len(fresh) < GATHER:
        return
    new = [pq.read_table(io.BytesIO(data)) for data in read_files(fs, [parts[part] for part in fresh])]
    tables += [table for table in new if len(table)]
    table = pa.concat_tables(tables, promote_options="permissive")
    names = " ".join(sorted(gathered | set(fresh))).encode()
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"parts": names}), buffer)
    session.put(f"{root}/{ALL}", buffer.getvalue())


# ---- Writing a store of chips: in parallel, append-only, resumable, and whole at every moment ----

PIXELS = {  # native dtypes; a sensor of one's own is kept in float32
    "sentinel-2-l2a": "uint16", "planetscope-sr": "uint16", "landsat-c2l1": "uint16", "landsat-c2l2-sr": "uint16",
    "satellogic-MSI-L1D": "uint16", "naip": "uint8", "linz": "uint8", "modis": "int16",
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """Chips as they come from a maker, with what only the maker knows."""

    chips: Chips
    footprints: Sequence  # [n] shapely geometries in WGS84, or None
    splits: Sequence[str]  # [n]
    source: str


class Maker(Protocol):
    """A numbered series of chips of one sensor and size, the same whoever asks and whenever."""

    sensor: str
    size: int
    recipe: str  # a short name of all that its chips depend on, but not of how many there are

    def __len__(self) -> int: ...

    def part(self, numbers: range) -> Callable[[], Made | None]:
        """A picklable call that makes these chips, or as many of them as are fit to keep."""


@dataclass(frozen=True)
class Part:
    kind: str  # SENSOR-SIZE
    name: str  # RECIPE-FIRST-LAST
    numbers: range
    make: Callable[[], Made | None]


def write_chips(
    url, makers: Sequence[Maker], *, chips_per_part: int = 256, jobs: int = -1, progress: bool = True
) -> int:
    """Make the chips that the store lacks and add them; returns how many are new.

    Interrupted or killed at any moment, the store opens and holds whole chips only; the same call again makes the rest.
    jobs: processes, -1 for one a core. Several such calls, on several machines, may write to one store at a time.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError
    from tqdm.auto import tqdm

    fs, root = filesystem(url)
    refuse_other_folders(fs, root)
    session = Session(fs, root)
    try:
        make_groups(session, {kind_of(maker) for maker in makers})
        clean(fs, root)
        parts = pending(fs, root, makers, chips_per_part)
        random.Random(session.name).shuffle(parts)  # so that several writers begin at different ends
        jobs = 1 if "memory" in fs.protocol else jobs  # which no other process sees
        calls = (delayed(_write_part)(str(url), part, session.name, os.getpid()) for part in parts)
        done, new = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs")(calls), 0
        with tqdm(total=sum(len(part.numbers) for part in parts), unit="chip", disable=not progress) as bar:
            for part, shard, rows, count in done:
                if rows and session.commit(f"{root}/{INDEX}/{part}.parquet", rows):
                    new += count
                elif count:  # another writer was first
                    fs.rm(f"{root}/{shard}", recursive=True)
                session.sign()
                first, last = part.rsplit("-", 2)[1:]
                bar.update(int(last) - int(first) + 1)
        gather_index(session)
        return new
    except TerminatedWorkerError:
        raise ContractError(
            "jobs",
            "a worker that was killed",
            f"{jobs} processes that live (-1: one a core)",
            "too little memory for so many; what was written is kept: run it again with fewer",
        ) from None
    finally:
        session.close()


def kind_of(maker: Maker) -> str:
    return f"{maker.sensor}-{maker.size}"


def pending(fs, root: str, makers: Sequence[Maker], chips_per_part: int) -> list[Part]:
    """The parts still to be made."""
    there: dict[str, list[tuple[int, int]]] = {}
    for part in index_parts(fs, root):
        series, first, last = part.rsplit("-", 2)
        there.setdefault(series, []).append((int(first), int(last)))
    parts = []
    for maker in makers:
        kind, recipe, missing = kind_of(maker), maker.recipe, np.ones(len(maker), bool)
        for first, last in there.get(f"{kind}/{recipe}", ()):
            missing[first : last + 1] = False
        runs = _runs(missing, chips_per_part)
        parts += [Part(kind, f"{recipe}-{run[0]:08d}-{run[-1]:08d}", run, maker.part(run)) for run in runs]
    return parts


def _runs(missing: np.ndarray, most: int) -> Iterator[range]:
    """Unbroken runs of what is missing, none across a multiple of `most`: so parts are cut alike whoever cuts them."""
    for start in range(0, len(missing), most):
        numbers = start + np.flatnonzero(missing[start : start + most])
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
            if len(run):
                yield range(int(run[0]), int(run[-1]) + 1)


# ---- in a worker ----


def _write_part(url: str, part: Part, session: str, parent: int) -> tuple[str, str, bytes, int]:
    """Make a part and write its shards: (part, shard, index file's bytes, number of chips); no bytes if it is there."""
    _end_with(parent)
    fs, root = filesystem(url)
    shard = f"{part.kind}/{part.name}-{session}"
    fs.invalidate_cache()
    if fs.exists(f"{root}/{INDEX}/{part.kind}/{part.name}.parquet"):
        return f"{part.kind}/{part.name}", shard, b"", 0
    made = part.make()
    if made is not None:
        made = replace(made, chips=replace(made.chips, pixels=native(made.chips)))
        for key, data in encode({"pixels": made.chips.pixels, "labels": made.chips.labels}).items():
            path = f"{root}/{shard}/{key}"
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            fs.pipe_file(path, data)
    rows = _rows(made, shard)
    return f"{part.kind}/{part.name}", shard, rows, 0 if made is None else len(made.chips)


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """A worker outlives a parent that was killed: end it then, rather than let it write for nobody."""
    if os.getpid() == parent:
        return

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def native(chips: Chips) -> np.ndarray:
    """Pixels in the sensor's own dtype; numbers that it cannot hold are refused."""
    dtype = np.dtype(PIXELS.get(chips.sensor, "float32"))
    pixels = chips.pixels
    if pixels.dtype != dtype and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not (np.isfinite(pixels).all() and pixels.min() >= limits.min and pixels.max() <= limits.max):
            raise ContractError(
                "pixels",
                f"{chips.sensor}: {pixels.dtype} from {pixels.min()} to {pixels.max()}",
                f"native numbers that fit {dtype}",
                "reflectance or another product's scaling: hand in scale and offset",
            )
        pixels = np.rint(pixels)
    return np.ascontiguousarray(pixels, dtype)


def _rows(made: Made | None, shard: str) -> bytes:
    """The part's index as GeoParquet."""
    import geopandas
    import pandas as pd

    if made is None:
        frame = pd.DataFrame({"shard": pd.Series([], dtype=str)})
        return _parquet(geopandas.GeoDataFrame(frame, geometry=[], crs="EPSG:4326"))
    chips, n = made.chips, len(made.chips)
    frame = pd.DataFrame(
        {
            "sensor": chips.sensor,
            "size": np.full(n, chips.pixels.shape[-1], np.int32),
            "time": np.array([moment(text) for text in chips.when], "datetime64[ms]"),
            "lat": chips.lat.astype(np.float64),
            "lon": chips.lon.astype(np.float64),
            "source": made.source,
            "split": list(made.splits),
            "content_hash": chips.hashes,
            **cover_fractions(chips.labels),
            "shard": shard,
            "row": np.arange(n, dtype=np.int32),
        }
    )
    return _parquet(geopandas.GeoDataFrame(frame, geometry=list(made.footprints), crs="EPSG:4326"))


def _parquet(frame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
