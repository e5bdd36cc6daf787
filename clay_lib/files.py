"""Atomic file writes, on disk and on object stores; locks; JSON and YAML; file hashes; folders of data and weights."""

import csv
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import site
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.resolver import VersionedResolver

from clay_lib.errors import ContractError

FULL = 2**20  # free bytes below which a disk is full
PARTIAL = ".part-"  # start of the name of an unfinished file, before its writer's process id and the finished name

# Where notebooks and commands keep their files: CLAY_DATA, or data/ of the checkout, or data/ of the current folder.
CHECKOUT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CLAY_DATA") or (CHECKOUT if (CHECKOUT / "notebooks").is_dir() else Path.cwd()) / "data")
CACHE = DATA / "cache"
INSTALLED = [Path(prefix, "share", "clay-notebooks") for prefix in (sys.prefix, site.getuserbase())]  # from a wheel


def make_folder(path: str | Path) -> Path:
    """A folder to write to, created with its parents; ContractError for a file in the way or missing permission."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        blocking = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
        if blocking:
            raise ContractError("out", f"{blocking}, which is a file", "a folder", "a file given as a folder") from None
        cause = "no permission to write there, or a disk that is full or read-only"
        raise ContractError("out", f"{path}: {error.strerror}", "a folder that can be created", cause) from None
    return path


def atomic_write(path: str | Path, write: Callable[[Path], object], *, overwrite: bool = True) -> Path:
    """Let `write` fill a file beside `path`, and rename it to `path` once it has reached the disk.

    Folders are created. If `write` raises, the previous file stays and nothing else is left; a full disk is an OSError
    whichever library writes. Without overwrite: FileExistsError if the name exists, even if another process creates it
    at the same moment. ContractError where the path is a folder, or below a file.
    """
    path = Path(path)
    make_folder(path.parent)
    if path.is_dir():
        raise ContractError("out", f"{path}, which is a folder", "the name of a file", "the file's name is missing")
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        if overwrite:
            os.replace(partial, path)
        else:
            _rename_new(partial, path)
    except RuntimeError as error:  # torch's own, which does not name the cause
        if shutil.disk_usage(path.parent).free < FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
    return path


def remove_leftovers(folder: str | Path) -> None:
    """Delete unfinished files and folders of dead writers below a folder. Hold the folder's lock: files that bear this
    process's id are deleted too, since in a container a killed writer often had the same one."""
    import psutil

    for path in sorted(Path(folder).rglob(f"{PARTIAL}*")):
        writer = int(re.match(r"(\d*)", path.name.removeprefix(PARTIAL))[1] or 0)
        if writer == os.getpid() or not psutil.pid_exists(writer):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _rename_new(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)  # fails if the name exists
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(partial, path)


def filesystem(url: str | Path):
    """(fsspec filesystem, path in it) of a local path or a URL such as s3://bucket/chips."""
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(str(url))
    except (ValueError, ImportError) as error:
        raise ContractError("url", url, "a folder, or a URL whose protocol fsspec knows", str(error)) from None
    return fs, root.rstrip("/")


def put(fs, path: str, data: bytes, *, overwrite: bool = True) -> bool:
    """Write a file of an fsspec filesystem atomically; False if it exists and overwrite is False.

    Object stores write atomically themselves; of two that write one name at the same moment the last one wins.
    """
    if "file" in fs.protocol:
        try:
            atomic_write(path, lambda partial: partial.write_bytes(data), overwrite=overwrite)
        except FileExistsError:
            return False
        return True
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    if not overwrite and fs.exists(path):
        return False
    fs.pipe_file(path, bytes(data))
    return True


class PartBuffer:
    """Rows collected in memory and published together as one atomic part, at a number of rows or after some seconds.

    publish: writes the collected rows as a file whose name follows from its content, so that a part that is computed
    again after a kill is the same file. Published rows are never computed again; a kill loses at most one buffer.
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
    """Hold the lock of a file, which the system releases if the process dies; ContractError if another one holds it.

    task: what the lock is for, as the message names it, such as "sweep". wait: wait for the other process instead.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    make_folder(path.parent)
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
    """Write JSON atomically; TypeError for values that JSON does not have."""
    text = json.dumps(content, indent=1) + "\n"
    return atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: str | Path) -> dict:
    """The object in a JSON file; {} if there is no such file, or something else in it."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class _Resolver(VersionedResolver):
    """YAML 1.2, in which dates and 2023_06 are text."""

    def resolve(self, kind, value, implicit):
        tag = super().resolve(kind, value, implicit)
        is_text = isinstance(value, str) and implicit[0] and ("_" in value or str(tag).endswith("timestamp"))
        return self.DEFAULT_SCALAR_TAG if is_text else tag


def yaml_format(version: tuple[int, int] | None = None, kind: str = "safe") -> YAML:
    """A reader and writer of YAML 1.2: 1e-3 is a number, 010 is ten, `no` is text. version: (1, 1) for older readers;
    kind: "rt" keeps lines and comments."""
    yaml = YAML(typ=kind, pure=True)
    yaml.Resolver, yaml.version = _Resolver, version
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output, yaml.width = False, False, 10**6
    return yaml


def read_yaml(path: str | Path, what: str = "file") -> object:
    """The content of a YAML file; ContractError if it cannot be read or has a key twice. what: its name in messages."""
    try:
        return yaml_format().load(Path(path).read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), str(getattr(error, "problem", error))
        found = re.sub(r'found (duplicate key "[^"]*").*', r"\1", problem.split("\n")[0])
        found += f", line {mark.line + 1}" if mark else ""
        cause = "a wrong indent, a missing quote, or a repeated key"
        raise ContractError(what, found, "keys with values, in YAML", cause) from None


def write_yaml(path: str | Path, content: object) -> Path:
    """Write YAML atomically."""
    return atomic_write(path, lambda part: yaml_format().dump(content, part))


def sha256(path: str | Path) -> str:
    """The file's hash, hexadecimal, which identifies weights in results."""
    with open(path, "rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


def hash_tensors(tensors: Mapping, metadata: str = "") -> str:
    """64 hex digits over names, types, shapes and values of a state dict, and any metadata."""
    import torch

    digest = hashlib.sha256(metadata.encode())
    for name, values in sorted(tensors.items()):
        values = values.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class MetricsFile:
    """Rows of metrics in a CSV file; a row is on disk when `write` returns.

    resume_from: the step of the checkpoint; later rows are dropped, since they will be written again. None: a new file.
    """

    def __init__(self, path: str | Path, columns: list[str], *, resume_from: int | None = None):
        self.path, self.columns, rows = Path(path), columns, []
        if resume_from is not None and self.path.is_file():
            lines = self.path.read_text().splitlines(keepends=True)
            reader = csv.DictReader(line for line in lines if line.endswith("\n"))  # a kill may cut the last one short
            rows = [row for row in reader if int(row["step"]) <= resume_from]
        atomic_write(self.path, lambda path: self._append(path, rows, header=True))

    def write(self, row: dict[str, float | int]) -> None:
        self._append(self.path, [row])

    def _append(self, path: Path, rows: list[dict], *, header: bool = False) -> None:
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if header:
                writer.writeheader()
            writer.writerows(rows)


def find_weights(name: str | Path) -> Path:
    """The file of weights for a path, a name in the cache or data/weights or shipped (ending optional), or hub:."""
    if str(name).startswith("hub:"):
        return _from_hub(str(name).removeprefix("hub:"))
    path = Path(name).expanduser()
    names = [path] if path.suffix else [path, path.with_name(f"{path.name}.safetensors")]
    candidates = [folder / n for n in names for folder in (Path(), CACHE, DATA / "weights", DATA, *INSTALLED)]
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def _from_hub(name: str) -> Path:
    """ "owner/name/path/in/repository" -> the file in the cache of the hub's own client, which resumes downloads.

    The client's cache, HF_HUB_OFFLINE and HF_ENDPOINT apply.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    owner, _, rest = name.partition("/")
    repository, _, path = rest.partition("/")
    if not (owner and repository and path):
        raise ContractError("weights", f"hub:{name}", "hub:owner/name/path/to/file", "the path is missing")
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", path))
    except errors.GatedRepoError:
        found, cause = "a gated repository", "accept its terms on its page, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        found, cause = "no such repository", "a misspelled owner or name, or a private one without `hf auth login`"
    except errors.LocalEntryNotFoundError as error:
        found = f"no answer from {constants.ENDPOINT}"
        cause = f"no network, a proxy, or HF_ENDPOINT ({error.__cause__})"
        if constants.HF_HUB_OFFLINE:
            found, cause = "HF_HUB_OFFLINE is set and the file is not in the cache", "never downloaded; unset it once"
    except errors.EntryNotFoundError:
        found, cause = f"no file {path} in {owner}/{repository}", "a misspelled path, or a file that was moved"
    except Exception as error:  # HTTP errors, a full disk, a name that the client refuses
        found, cause = f"{type(error).__name__}: {error}", f"the hub at {constants.ENDPOINT}, the network, or the disk"
    raise ContractError("weights", found, f"hub:{name}", cause)
