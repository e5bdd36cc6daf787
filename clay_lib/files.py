"""Atomic file writes, on disk and on object stores; locks; JSON and YAML; file hashes."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clay_lib.errors import ContractError

PARTIAL = ".part-"  # what the name of an unfinished file begins with; it ends as the whole one's does


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path` that then takes its place in one stroke, after it has reached the disk.

    Folders are made. If `write` raises, nothing is left behind and what was there before stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{secrets.token_hex(4)}-{path.name}")
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def filesystem(url: str | Path):
    """(fsspec filesystem, path in it) of a local path or a URL such as s3://bucket/chips."""
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(str(url))
    except (ValueError, ImportError) as error:
        raise ContractError("url", url, "a folder, or a URL whose protocol fsspec knows", str(error)) from None
    return fs, root.rstrip("/")


def put(fs, path: str, data: bytes, *, overwrite: bool = True) -> bool:
    """Write a file of an fsspec filesystem atomically; False, and nothing done, if it exists and overwrite is False.

    Object stores write atomically by themselves; of two that write one name at the same moment the last wins.
    """
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    if "file" not in fs.protocol:
        if not overwrite and fs.exists(path):
            return False
        fs.pipe_file(path, bytes(data))
        return True
    if overwrite:
        atomic_write(path, lambda partial: partial.write_bytes(data))
        return True
    partial = Path(path).with_name(f"{PARTIAL}{secrets.token_hex(4)}-{Path(path).name}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # fails if the name exists, whoever else is writing
    except FileExistsError:
        return False
    except OSError:  # a disk without hard links
        if os.path.exists(path):
            return False
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return True


class PartBuffer:
    """Rows collected in memory and published together as one atomic part, once so many or so old.

    publish: writes the collected rows as a file whose name follows from its content, so that a part that is computed
    again after a kill is the same file. What was published is never computed again; a kill loses one buffer at most.
    """

    def __init__(self, publish: Callable[[list], object], *, rows: int, seconds: float):
        self.publish, self.limit, self.seconds = publish, rows, seconds
        self.rows: list = []
        self.begun = time.monotonic()

    def add(self, *rows: object) -> None:
        self.rows.extend(rows)
        if len(self.rows) >= self.limit or time.monotonic() - self.begun > self.seconds:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.publish(self.rows)
        self.rows, self.begun = [], time.monotonic()


@contextmanager
def locked(path: str | Path, task: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file, which the system releases if the process dies; ContractError if another process holds it.

    task: what the lock is for, as the message names it, such as "sweep". wait: wait for the other process instead.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        cause = "the same command runs in another window"
        raise ContractError(task, f"another process at work in {path.parent}", "one at a time", cause) from None
    try:
        yield
    finally:
        lock.release()


def write_json(path: str | Path, content: object) -> Path:
    """A file that is whole or not there at all; TypeError for what JSON does not know."""
    text = json.dumps(content, indent=1) + "\n"
    return atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: str | Path) -> dict:
    """What a JSON file holds; {} where there is none, or something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_yaml(path: str | Path) -> object:
    """What a YAML file holds; yaml.YAMLError for a key that stands twice, of which YAML would keep the last unasked."""
    import yaml

    class Once(yaml.SafeLoader):
        def compose_mapping_node(self, anchor):
            node, seen = super().compose_mapping_node(anchor), set()
            for key, _ in node.value:
                if (key.tag, str(key.value)) in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} a second time", problem_mark=key.start_mark)
                seen.add((key.tag, str(key.value)))
            return node

    with open(path, encoding="utf-8") as file:
        return yaml.load(file, Once)  # a safe loader


def sha256(path: str | Path) -> str:
    """The file's hash, hexadecimal: weights are known by it wherever a result names them."""
    with open(path, "rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


def hash_tensors(tensors: Mapping, told: str = "") -> str:
    """64 hex digits over names, types, shapes and numbers of a state dict, and whatever else is told with it."""
    import torch

    digest = hashlib.sha256(told.encode())
    for name, values in sorted(tensors.items()):
        values = values.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
