"""Files that are whole once their name is there, whenever the machine is switched off."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
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


def write_json(path: str | Path, content: object) -> Path:
    """A file that is whole or not there at all; TypeError for what JSON does not know."""
    text = json.dumps(content, indent=1) + "\n"
    return write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


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
