"""Several writers on one store: their signs of life, what counts as written, and what the dead left behind.

Every file appears whole and at once. A shard's folder carries its writer's session in its name, the index file that
makes it count does not: of two writers of one part the first wins, and whose leftover a folder is can be told.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import socket
import time
from pathlib import Path

from clay_lib.contract import ContractError
from clay_lib.shards import read_files
from clay_lib.store import ALL, VERSION, index_parts

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
                found="that another writer took this one for dead",
                expected=f"a sign of life every {SILENCE / 60:.0f} minutes",
                cause="a part that took longer, or a clock that is wrong: fewer chips_per_part, and run it again",
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
                found=f"{root}, which holds {others[0]}",
                expected="a store of chips, an empty folder or a new name",
                cause="the folder of something else",
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
