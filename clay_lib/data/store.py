"""Chip stores: more chips than fit into memory, in a folder or object storage, read a batch at a time.

zarr.json                                            a Zarr v3 group, so that any Zarr reader can open the store
SENSOR-SIZE/PART-SESSION/{pixels,labels}             a shard: arrays of some hundred chips, one chip a chunk
index/SENSOR-SIZE/PART.parquet                       GeoParquet, a row a chip; a part exists once this file does
index.parquet                                        the same rows of many parts in one file, for a quick start

Chips are written in numbered parts, in parallel. A worker writes a part's shard under a name with its writer's session;
then it creates the part's index file, which is the commit: it names the shard, and an existing part is not written
again. Of two writers of one part the first wins. A killed writer leaves shards without an index file, which are never
read; the next writer deletes them.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import secrets
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from clay_lib.cluster import progress_bar
from clay_lib.data.chips import StoredChips, encode, moment, native, read_files
from clay_lib.data.makers import Maker, MakerOutput, Part, missing_parts
from clay_lib.data.splits import cover_fractions
from clay_lib.errors import ContractError
from clay_lib.files import PARTIAL, filesystem, locked, put

VERSION = 1
INDEX, ALL, WRITERS = "index", "index.parquet", "writers"
GATHER = 64  # parts outside index.parquet before it is rewritten
SHARD = r".+-\d{8,}-\d{8,}-[0-9a-f]{8}"  # only folders with such a name are ever deleted


# ---- reading ----


@dataclass(frozen=True)
class Damage:
    """A damaged shard: the reason, and the content hashes of the lost chips."""

    shard: str
    reason: str
    hashes: tuple[str, ...]


class ChipStore:
    """The chips of a store. on_damage: "raise", or "skip": warn once and continue without the damaged chips."""

    def __init__(self, url: str, table, on_damage: str = "raise"):
        self.url, self.table, self.on_damage = str(url), table, on_damage  # table: pandas.DataFrame, a row a chip

    @staticmethod
    def open(url, *, on_damage: str = "raise") -> ChipStore:
        """The current chips of the store; later ones need another `open`."""
        if on_damage not in ("raise", "skip"):
            raise ContractError("on_damage", on_damage, "'raise' or 'skip'", "a misspelled option")
        fs, root = filesystem(url)
        version = None
        with suppress(FileNotFoundError, KeyError, ValueError):
            version = json.loads(fs.cat_file(f"{root}/zarr.json"))["attributes"]["clay_chips"]
        if version != VERSION:
            found = f"{url}, {'no store' if version is None else f'version {version}'}"
            cause = "a misspelled path, or nothing written yet: `clay chips` writes a store"
            raise ContractError("url", found, f"a store of chips, version {VERSION}", cause)
        return ChipStore(str(url), _read_index(fs, root, on_damage), on_damage)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def index(self):
        """A GeoDataFrame, a row a chip: footprint, sensor, size, time, lat, lon, source, split, content_hash,
        cover_10..100, shard, row."""
        import geopandas

        shapes = geopandas.GeoSeries.from_wkb(self.table["geometry"], crs="EPSG:4326")
        return geopandas.GeoDataFrame(self.table.drop(columns="geometry"), geometry=shapes)

    def sensor(
        self, name: str, *, split: str | None = None, size: int | None = None, labels: bool = True
    ) -> StoredChips:
        """The chips of one sensor, of one split if named, in a fixed order. labels=False: do not read them."""
        table = self.table[self.table["sensor"] == name]
        table = table if split is None else table[table["split"] == split]
        table = table if size is None else table[table["size"] == size]
        sizes = sorted(set(table["size"]))
        if len(sizes) != 1:
            sensors, splits = (sorted(set(self.table[column])) for column in ("sensor", "split"))
            raise ContractError(
                "size" if sizes else "sensor",
                f"{name}, {split or 'any split'}: {f'chips of {sizes} pixels' if sizes else 'no chip'}",
                f"one of {sensors}, splits {splits}",
                "two sizes in one store: pass size=" if sizes else "a sensor or split that was not written",
            )
        return StoredChips(self.url, name, table, labels=labels, on_damage=self.on_damage)

    def check(self) -> list[Damage]:
        """Compare every byte of every chip with its checksum and content hash; the damage, shard by shard."""
        damaged = []
        for shard, table in self.table.groupby("shard", sort=True):
            chips = StoredChips(self.url, table["sensor"].iloc[0], table)
            reasons: dict[int, str] = {}
            for start in range(0, len(chips), 64):
                indices = np.arange(start, min(start + 64, len(chips)))
                reasons |= {start + k: reason for k, reason in chips.failures(indices).items()}
            if reasons:
                different = "; ".join(dict.fromkeys(reasons[k] for k in sorted(reasons)))
                damaged.append(Damage(shard, different, tuple(chips.hashes[sorted(reasons)])))
        return damaged

    def forget(self, damaged: Sequence[Damage]) -> None:
        """Delete the index of damaged shards, so that the commands that wrote them write them again."""
        fs, root = filesystem(self.url)
        for damage in damaged:
            fs.rm(f"{root}/{INDEX}/{damage.shard.rsplit('-', 1)[0]}.parquet")
        if fs.exists(f"{root}/{ALL}"):
            fs.rm(f"{root}/{ALL}")


def index_parts(fs, root: str) -> dict[str, str]:
    """{SENSOR-SIZE/PART: path of its index file}: the parts that exist."""
    fs.invalidate_cache()
    try:
        paths = fs.find(f"{root}/{INDEX}")
    except FileNotFoundError:
        return {}
    paths = [p for p in paths if p.endswith(".parquet") and not _last(p).startswith(PARTIAL)]
    return {"/".join(p.removesuffix(".parquet").rsplit("/", 2)[1:]): p for p in paths}


def _gathered(fs, root: str):
    """(the table of index.parquet in a list, empty if there is none; the parts in it)."""
    if not fs.exists(f"{root}/{ALL}"):
        return [], set()
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(fs.cat_file(f"{root}/{ALL}")))
    return [table], set(table.schema.metadata[b"parts"].decode().split())


def _read_index(fs, root: str, on_damage: str):
    """All rows as a DataFrame, in the order of the parts' names, each content once."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, gathered = _gathered(fs, root)
    paths = [path for part, path in index_parts(fs, root).items() if part not in gathered]
    for path, data in zip(paths, read_files(fs, paths), strict=True):
        try:
            tables.append(pq.read_table(io.BytesIO(data)))
        except (pa.ArrowInvalid, OSError, TypeError) as error:
            damage = ContractError(f"index {path}", str(error).splitlines()[0], "GeoParquet", "a disk error")
            if on_damage == "raise":
                raise damage from None
            warnings.warn(f"{damage}; its chips are left out", stacklevel=3)
    tables = [table for table in tables if len(table)]
    if not tables:
        return pd.DataFrame({name: [] for name in ("sensor", "size", "split", "shard", "content_hash", "geometry")})
    frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    frame["part"] = frame["shard"].str.rsplit("-", n=1).str[0]
    frame = frame.sort_values(["part", "row"], kind="stable").drop(columns="part")
    return frame.drop_duplicates("content_hash").reset_index(drop=True)


# ---- writing ----


def write_chips(
    url, makers: Sequence[Maker], *, chips_per_part: int = 256, jobs: int = -1, progress: bool = True
) -> int:
    """Write the chips that are missing from the store; returns the number of new ones.

    After a kill the store opens and holds complete chips only; the same call writes the rest. jobs: processes, -1 for
    one a core. Several calls, also on several machines, may write to one store at a time.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    fs, root = filesystem(url)
    _prepare(fs, root, {f"{maker.sensor}-{maker.size}" for maker in makers})
    with _session(fs, root) as session:
        parts = missing_parts(makers, index_parts(fs, root), chips_per_part)
        random.Random(session).shuffle(parts)  # so that several writers start at different ends
        jobs = 1 if "memory" in fs.protocol else jobs  # no other process has access to it
        calls = (delayed(_write_part)(str(url), part, session, os.getpid()) for part in parts)
        done, new = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs")(calls), 0
        try:
            with progress_bar(total=sum(len(part.numbers) for part in parts), unit="chip", disable=not progress) as bar:
                for part, shard, rows, count in done:
                    fs.invalidate_cache()
                    if rows and put(fs, f"{root}/{INDEX}/{part.kind}/{part.name}.parquet", rows, overwrite=False):
                        new += count
                    elif count:  # another writer was first
                        fs.rm(f"{root}/{shard}", recursive=True)
                    bar.update(len(part.numbers))
        except TerminatedWorkerError:
            cause = "too little memory: run it again with fewer jobs; written chips are kept"
            expected = f"{jobs} running processes (-1: one a core)"
            raise ContractError("jobs", "a worker that was killed", expected, cause) from None
        _gather_index(fs, root)
    return new


def _prepare(fs, root: str, kinds: set[str]) -> None:
    """Create the Zarr groups of a store; ContractError for a folder of other files."""
    if not fs.exists(f"{root}/zarr.json") and fs.exists(root):
        others = [name for path in fs.ls(root, detail=False) if (name := _last(path)) != WRITERS]
        if others:
            expected = "a store of chips, an empty folder or a new name"
            raise ContractError("out", f"{root}, which holds {others[0]}", expected, "a folder of other files")
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    attributes = {"attributes": {"clay_chips": VERSION}}
    put(fs, f"{root}/zarr.json", json.dumps(group | attributes).encode(), overwrite=False)
    for kind in kinds:
        put(fs, f"{root}/{kind}/zarr.json", json.dumps(group).encode(), overwrite=False)


@contextmanager
def _session(fs, root: str) -> Iterator[str]:
    """A writer's name, part of its shards' names. On a disk its lock is held while the writer lives, so that the next
    writer can recognize leftovers. Object stores have no locks: leftovers stay there, unread."""
    session = secrets.token_hex(4)
    if "file" not in fs.protocol:
        yield session
        return
    folder = Path(root) / WRITERS
    with locked(folder / f"{session}.lock", "session", wait=True):
        _clean(fs, root)
        try:
            yield session
        finally:
            (folder / f"{session}.lock").unlink(missing_ok=True)


def _clean(fs, root: str) -> None:
    """Delete the leftovers of killed writers. Shards are listed first, then sessions, then the index, so that a part
    being written is never taken for a leftover."""
    kinds = [path for path in fs.ls(root, detail=False) if re.fullmatch(r".+-\d+", _last(path))]
    shards = [s.rstrip("/") for kind in kinds for s in fs.ls(kind, detail=False) if re.fullmatch(SHARD, _last(s))]
    alive = set()
    for file in (Path(root) / WRITERS).iterdir():
        try:
            with locked(file, "session"):
                file.unlink(missing_ok=True)
        except ContractError:  # its writer holds it
            alive.add(file.stem)
    if len(alive) == 1:  # this writer
        for partial in Path(root, INDEX).rglob(f"{PARTIAL}*"):
            partial.unlink(missing_ok=True)
    committed = index_parts(fs, root)
    rivals: dict[str, list[str]] = {}
    for shard in shards:
        if shard.rsplit("-", 1)[1] not in alive:
            rivals.setdefault("/".join(shard.rsplit("/", 2)[1:]).rsplit("-", 1)[0], []).append(shard)
    for part, copies in rivals.items():
        kept = set()
        if part in committed:  # with several copies, the index names the valid one
            kept = set(copies) if len(copies) == 1 else {f"{root}/{_committed_shard(fs, committed[part])}"}
        for shard in set(copies) - kept:
            fs.rm(shard, recursive=True)


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _committed_shard(fs, path: str) -> str:
    import pyarrow.parquet as pq

    shards = pq.read_table(io.BytesIO(fs.cat_file(path)), columns=["shard"])["shard"].to_pylist()
    return shards[0] if shards else ""


def _gather_index(fs, root: str) -> None:
    """Rewrite index.parquet once GATHER parts are not in it. The parts' own files stay: they are the commits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = index_parts(fs, root)
    tables, gathered = _gathered(fs, root)
    fresh = sorted(parts.keys() - gathered)
    if len(fresh) < GATHER:
        return
    new = [pq.read_table(io.BytesIO(data)) for data in read_files(fs, [parts[part] for part in fresh])]
    table = pa.concat_tables(tables + [t for t in new if len(t)], promote_options="permissive")
    names = " ".join(sorted(gathered | set(fresh))).encode()
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"parts": names}), buffer)
    put(fs, f"{root}/{ALL}", buffer.getvalue())


# ---- in a worker ----


def _write_part(url: str, part: Part, session: str, parent: int) -> tuple[Part, str, bytes, int]:
    """Write a part's shard: (part, shard, bytes of its index file, number of chips); no bytes if it exists."""
    _end_with(parent)
    fs, root = filesystem(url)
    shard = f"{part.kind}/{part.name}-{session}"
    part_only = replace(part, make=None)  # cheaper to send back
    fs.invalidate_cache()
    if fs.exists(f"{root}/{INDEX}/{part.kind}/{part.name}.parquet"):
        return part_only, shard, b"", 0
    output = part.make()
    if output is not None:
        output = replace(output, chips=replace(output.chips, pixels=native(output.chips)))
        for key, data in encode({"pixels": output.chips.pixels, "labels": output.chips.labels}).items():
            path = f"{root}/{shard}/{key}"
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            fs.pipe_file(path, data)
    return part_only, shard, _index_rows(output, shard), 0 if output is None else len(output.chips)


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """End this worker when its parent is gone, since workers outlive a killed parent."""
    if os.getpid() == parent:
        return

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _index_rows(output: MakerOutput | None, shard: str) -> bytes:
    """The part's index as GeoParquet, without rows if no chip was kept."""
    import geopandas
    import pandas as pd

    columns, footprints = {"shard": pd.Series([], dtype=str)}, []
    if output is not None:
        chips, footprints = output.chips, list(output.footprints)
        columns = {
            "sensor": chips.sensor,
            "size": np.full(len(chips), chips.pixels.shape[-1], np.int32),
            "time": np.array([moment(text) for text in chips.when], "datetime64[ms]"),
            "lat": chips.lat.astype(np.float64),
            "lon": chips.lon.astype(np.float64),
            "source": output.source,
            "split": list(output.splits),
            "content_hash": chips.hashes,
            **cover_fractions(chips.labels),
            "shard": shard,
            "row": np.arange(len(chips), dtype=np.int32),
        }
    buffer = io.BytesIO()
    geopandas.GeoDataFrame(pd.DataFrame(columns), geometry=footprints, crs="EPSG:4326").to_parquet(buffer, index=False)
    return buffer.getvalue()
