"""Files of weights, read without trust and without haste: nothing in them is executed, tensors stay in the mapped file.

A file is known by its first bytes, not by its name. What is not a whole checkpoint or safetensors file is refused with
what it is instead.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clay_lib.contract import ContractError
from clay_lib.files import write_whole


@dataclass(frozen=True)
class WeightFile:
    """What a file holds; a tensor's bytes are read when it is copied."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]  # by the file's own names
    settings: Mapping  # a checkpoint's hyper_parameters, or {"config": ...} from the metadata of safetensors
    mapped: Callable[[str], Tensor]  # name -> view of the file

    def copy(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor in memory of its own: what happens to the file later does not touch it."""
        mapped = self.mapped(name)
        if not mapped.is_floating_point():
            raise _not_weights(self.path, f"{name} as {mapped.dtype}", "quantised weights, or another model's")
        out = torch.empty(mapped.shape, dtype=dtype).copy_(mapped)
        _forget(mapped)
        return out


def open_weights(path: str | Path) -> WeightFile:
    """A Lightning checkpoint, a plain state_dict saved by torch, or safetensors. Raises ContractError for all else."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise _not_weights(path, "a folder", "name the file inside it")
    if not path.is_file():
        raise _not_weights(path, "no such file", "a wrong folder, or not yet trained or downloaded")
    with open(path, "rb") as file:
        start = file.read(512)
    if start.startswith(b"PK\x03\x04"):
        return _open_torch(path)
    if start[8:9] == b"{":  # after eight bytes with the length of the header
        return _open_safetensors(path)
    raise _not_weights(path, *_what_else(path, start))


# --- torch: a zip archive of one pickle and one record a tensor ---


class _Inert:
    """Stands in for a class that a pickle names: takes what it is given and does nothing. Its items are kept."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()  # the one mapping with attributes that torch's safe reader fills


# Besides tensors and plain values, Lightning files may hold these. Each becomes _Inert: neither the class nor its
# package is imported, so that even an allowed name runs none of its code.
HARMLESS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "box.box.Box",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "collections.defaultdict",
    *(f"builtins.{kind}" for kind in ("dict", "list", "tuple", "str", "int", "float", "bool")),  # a defaultdict's
    *(f"pathlib.{kind}" for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    *(f"omegaconf.{kind}" for kind in ("dictconfig.DictConfig", "base.ContainerMetadata", "base.Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
    "typing.Any",
)


def _open_torch(path: Path) -> WeightFile:
    if not zipfile.is_zipfile(path):
        raise _not_weights(
            path,
            f"a checkpoint that ends too early, after {path.stat().st_size:,} bytes",
            "an interrupted download or copy, or a full disk; fetch it again",
        )
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "data.pkl" not in names or "constants.pkl" in names:
        what = "a TorchScript program" if "constants.pkl" in names else "a zip archive without a checkpoint in it"
        raise _not_weights(path, what, "another file of the same name; unpack it or save a state_dict")
    if path.suffix == ".safetensors":  # by which torch.load, too, would take it for them
        raise _not_weights(path, "a checkpoint of torch under another format's name", "renamed; call it .ckpt")
    with torch.serialization.safe_globals([(_Inert, name) for name in HARMLESS]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise _refused(path, error) from None
        except Exception as error:  # torch has no common error for a broken file
            raise _not_weights(
                path, f"a damaged checkpoint ({_first_line(error)})", "a broken copy; fetch it again"
            ) from None
    if not isinstance(content, Mapping):
        raise _not_weights(path, f"a saved {type(content).__name__}", "not a checkpoint: it has no state_dict")
    state, settings = content.get("state_dict", content), content.get("hyper_parameters")
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items())
    ):
        raise _not_weights(
            path,
            f"a checkpoint with {', '.join(map(str, content)) or 'nothing'} in it",
            "no state_dict of tensors: another tool's file, or one stripped of its weights",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return WeightFile(path, shapes, settings if isinstance(settings, Mapping) else {}, state.__getitem__)


def _foreign_globals(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # torch's scanner follows no newer protocol either
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            names = _pickled_globals(archive.open(pickled))
        known = ("torch.", "collections.OrderedDict", *HARMLESS)
        return [name for name in names if not name.startswith(known)]


def _pickled_globals(file: IO[bytes]) -> list[str]:
    """Names that a pickle would import, found without running it."""
    found, texts = set(), []
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                found.add(argument.replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                found.add(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception:  # noise after a pickle's first bytes
        pass
    return sorted(found)


# --- safetensors: a JSON header, then the tensors ---


def _open_safetensors(path: Path) -> WeightFile:
    try:
        file = safe_open(path, framework="pt")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        whole = _length(path)
        if whole is not None and whole > path.stat().st_size:
            raise _not_weights(
                path,
                f"safetensors that end too early: {path.stat().st_size:,} of {whole:,} bytes",
                "an interrupted download or copy, or a full disk; fetch it again",
            ) from None
        raise _not_weights(
            path, f"damaged safetensors ({_first_line(error)})", "a broken copy; fetch it again"
        ) from None
    try:
        settings = {"config": json.loads(metadata["clay_config"])} if "clay_config" in metadata else {}
    except ValueError:
        raise _not_weights(path, f"clay_config {metadata['clay_config']!r}", "metadata edited by hand") from None
    return WeightFile(path, shapes, settings, file.get_tensor)


def _length(path: Path) -> int | None:
    """Bytes that the header of a safetensors file promises, or None where there is no whole header."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if 8 + size > path.stat().st_size:
            return 8 + size
        try:
            header = json.loads(file.read(size))
            return 8 + size + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # of safetensors


def write_safetensors(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[Tensor],
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> Path:
    """Write tensors one after another, in the order of shapes: one at a time is in memory. Whole or not at all.

    Format: https://github.com/huggingface/safetensors#format
    """
    header, end = {"__metadata__": dict(metadata)}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes

    def fill(partial: Path) -> None:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                plain = tensor.detach().to("cpu", dtype).contiguous().reshape(-1)
                file.write(plain.view(torch.uint8).numpy().data)

    return write_whole(path, fill)


# --- memory ---


def _forget(tensor: Tensor) -> None:
    """Give back the memory pages that lie wholly within the storage of a mapped tensor; the file still has its numbers.

    Mapped pages count as resident from their first use on. Never for a tensor of a model: its numbers would be lost.
    """
    storage = tensor.untyped_storage()
    start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (storage.data_ptr() + storage.nbytes() - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_DONTNEED))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


# --- what is wrong, for the person ---


def _what_else(path: Path, start: bytes) -> tuple[str, str]:
    """(what, cause) of a file that is no weights, by its first bytes."""
    text = start.lstrip().lower()
    if not start:
        return "an empty file", "an interrupted download, or a full disk; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return (
            "a git-lfs pointer, not the file itself",
            "a clone without git-lfs; run `git lfs pull`, or download the file",
        )
    if text.startswith((b"<!doctype html", b"<html")):
        return (
            "a web page (HTML)",
            "the page about the file was saved instead of the file, or a login page; see its download link",
        )
    if text.startswith((b"<?xml", b"{")):
        return f"a server's message: {start[:120].decode(errors='replace')!r}", "a download that failed; fetch it again"
    if start.startswith(b"\x80"):
        with open(path, "rb") as file:
            names = ", ".join(_pickled_globals(file)) or "nothing by name"
        return (
            f"a plain pickle (it asks for: {names}), which was not executed",
            "a file written by pickle, or by torch before 1.6; write it again with torch.save or as safetensors",
        )
    return f"a file that begins with {start[:16]!r}", "another kind of file, or one that is encrypted or compressed"


def _refused(path: Path, error: pickle.UnpicklingError) -> ContractError:
    reason = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
    asks = ", ".join(_foreign_globals(path))
    if not asks:
        return _not_weights(
            path,
            f"a pickle that the safe reader does not follow ({reason[1] if reason else error}); it was not executed",
            "a damaged copy, fetch it again; or a newer protocol or another tool, write it again with torch.save",
        )
    return _not_weights(
        path,
        f"a pickle that asks for {asks}; it was not executed",
        "a file made to run code when it is opened, or one that holds objects of a foreign package; "
        "ask its author for safetensors or for a plain state_dict",
    )


def _not_weights(path: Path, what: str, cause: str) -> ContractError:
    return ContractError(
        "weights", found=f"{path}: {what}", expected="a whole Lightning checkpoint or safetensors file", cause=cause
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
