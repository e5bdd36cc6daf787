"""Writing a store of chips: in parallel, append-only, resumable, and whole at every moment.

What is to be made is cut into parts by number. A worker writes a part's shards under a name that holds its writer's
session; then the index file of the part is published under a name that says which chips it holds. That file is the
commit: a part exists once it does, a part that exists is not made again, and of two writers of one part the first
wins. What a killed writer left has no index file; the next writer deletes it, unless its session is still alive.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from clay_lib.chips import Chips, moment
from clay_lib.contract import ContractError
from clay_lib.sampling import cover_fractions
from clay_lib.shards import encode, filesystem, read_files
from clay_lib.store import ALL, INDEX, VERSION, index_parts

WRITERS = "writers"
SILENCE = 3600.0  # s without a sign of life after which a writer on another machine counts as dead
GATHER = 64  # parts that are read one by one before index.parquet is written anew
SHARD = r".+-\d{8,}-\d{8,}-[0-9a-f]{8}"  # only what is named so is ever deleted
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
    _refuse_other_folders(fs, root)
    session = _Session(fs, root)
    try:
        _make_groups(session, {kind_of(maker) for maker in makers})
        _clean(fs, root)
        parts = pending(fs, root, makers, chips_per_part)
        random.Random(session.name).shuffle(parts)  # so that several writers begin at different ends
        jobs = 1 if "memory" in fs.protocol else jobs  # which no other process sees
        calls = (delayed(_write_part)(str(url), part, session.name, os.getpid()) for part in parts)
        done, new = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs")(calls), 0
        with tqdm(total=sum(len(part.numbers) for part in parts), unit="chip", disable=not progress) as bar:
            for part, shard, rows, count in done:
                if rows and session.put(f"{root}/{INDEX}/{part}.parquet", rows, anew=False):
                    new += count
                elif count:  # another writer was first
                    fs.rm(f"{root}/{shard}", recursive=True)
                session.sign()
                first, last = part.rsplit("-", 2)[1:]
                bar.update(int(last) - int(first) + 1)
        _gather_index(session)
        return new
    except TerminatedWorkerError:
        raise ContractError(
            "jobs",
            found="a worker that was killed",
            expected=f"{jobs} processes that live (-1: one a core)",
            cause="too little memory for so many; what was written is kept: run it again with fewer",
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
                found=f"{chips.sensor}: {pixels.dtype} from {pixels.min()} to {pixels.max()}",
                expected=f"native numbers that fit {dtype}",
                cause="reflectance or another product's scaling: hand in scale and offset",
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


# ---- sessions, commits, leftovers ----


class _Session:
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
        finally:
            if not anew:
                os.unlink(partial)
        return True

    def close(self) -> None:
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


def _clean(fs, root: str) -> None:
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


def _refuse_other_folders(fs, root: str) -> None:
    if not fs.exists(f"{root}/zarr.json") and fs.exists(root):
        others = [_last(path) for path in fs.ls(root, detail=False) if _last(path) != WRITERS]
        if others:
            raise ContractError(
                "out",
                found=f"{root}, which holds {others[0]}",
                expected="a store of chips, an empty folder or a new name",
                cause="the folder of something else",
            )


def _make_groups(session: _Session, kinds: set[str]) -> None:
    """The Zarr groups above the parts."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    session.put(
        f"{session.root}/zarr.json", json.dumps(group | {"attributes": {"clay_chips": VERSION}}).encode(), anew=False
    )
    for kind in kinds:
        session.put(f"{session.root}/{kind}/zarr.json", json.dumps(group).encode(), anew=False)


def _gather_index(session: _Session) -> None:
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
