"""Files that are whole once their name is there, whenever the machine is switched off."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".part-"  # what the name of an unfinished file begins with; it ends as the whole one's does


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
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


def sha256(path: str | Path) -> str:
    """The file's hash, hexadecimal: weights are known by it wherever a result names them."""
    with open(path, "rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()
