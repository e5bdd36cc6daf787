"""Weights in and out: the released Lightning checkpoint, safetensors, and the hub. Strict: every difference is listed."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import pickle
import pickletools
import re
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import IO, Literal

import safetensors
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, sha256
from clay_lib.model import ClayConfig, ClayMAE


def fetch(name: str) -> Path:
    """ "owner/name/path/in/repository" -> the file in the client's cache, downloaded if it is not there.

    A broken connection is taken up again where it stopped, by the client. Raises ContractError with what to do.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    owner, _, rest = name.partition("/")
    repository, _, path = rest.partition("/")
    if not (owner and repository and path):
        raise ContractError("weights", f"hub:{name}", "hub:owner/name/path/to/file", "the path is missing")
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", path))
    except errors.GatedRepoError:
        found, cause = (
            "a gated repository",
            "its terms are not yet accepted on its page, or no `hf auth login` was made",
        )
    except errors.RepositoryNotFoundError:
        found, cause = "no such repository", "a misspelt owner or name, or a private one without `hf auth login`"
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            found, cause = (
                "HF_HUB_OFFLINE is set and the file is not in the cache",
                "not downloaded before; unset it once",
            )
        else:
            found, cause = (
                f"no answer from {constants.ENDPOINT}",
                f"no network, a proxy, or HF_ENDPOINT ({error.__cause__})",
            )
    except errors.EntryNotFoundError:
        found, cause = f"no file {path} in {owner}/{repository}", "a misspelt path, or a file that was moved"
    except Exception as error:  # HTTP errors, a full disk, a name that the client refuses
        found, cause = f"{type(error).__name__}: {error}", f"the hub at {constants.ENDPOINT}, the network, or the disk"
    raise ContractError("weights", found, f"hub:{name}", cause)


# ---- Files of weights, read without trust and without haste: nothing in them is executed, tensors stay in ----


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

    return atomic_write(path, fill)


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
    return ContractError("weights", f"{path}: {what}", "a whole Lightning checkpoint or safetensors file", cause)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


# ---- Weights in and out: the released Lightning checkpoint, safetensors, and the hub. Strict: every diffe ----

SIZES = ("tiny", "small", "base", "large")  # as released
# What tensors' shapes tell; all other fields of the configuration can be stated by whoever loads.
SHAPED = {"dim", "depth", "mlp_ratio", "decoder_dim", "decoder_depth", "decoder_mlp_ratio", "patch_size", "teacher_dim"}


def load_model(path: str | Path, *, dtype: torch.dtype | None = None, **changes) -> ClayMAE:
    """A model from a released or own .ckpt, from .safetensors, or from "hub:owner/name/path/in/repository".

    The whole model, or the encoder alone (names with or without `model.` and `encoder.`). Only the model's own tensors
    are read from the file, one after another; afterwards the model no longer needs it.

    dtype: of the model, float32 unless named, whatever the file's is.
    changes: values of ClayConfig that no shape tells: heads, dim_head and their decoder_ forms, ladder, mask_ratio.
    Heads are needed for a file that neither says its configuration nor has a released size.
    Raises ContractError that says what the file is instead, or lists every missing, unexpected and wrongly shaped
    tensor.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ContractError("dtype", repr(dtype), "torch.float32, torch.bfloat16 or torch.float16", "a name instead of torch's own, or whole numbers")  # fmt: skip
    file = file_of(path)
    model, names = matched(file, changes)
    state = {own: file.copy(name, dtype or torch.float32) for own, name in names.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def load_released_state(model: ClayMAE, state_dict: Mapping[str, Tensor]) -> ClayMAE:
    """Load tensors under the released names (`model.encoder...` or without `model.`); teacher tensors are left out.

    Raises ContractError that lists every missing, unexpected and wrongly shaped tensor.
    """
    given = {own: state_dict[name] for own, name in own_names(state_dict).items()}
    _check(model, {name: tuple(tensor.shape) for name, tensor in given.items()})
    model.load_state_dict(given)
    return model


def save_model(model: ClayMAE, path: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write weights as safetensors, the configuration in its metadata; whole or not at all. dtype: float16 halves it."""
    state = model.state_dict()
    return write_safetensors(
        path,
        {f"model.{name}": tuple(tensor.shape) for name, tensor in state.items()},
        state.values(),
        dtype=dtype or next(iter(state.values())).dtype,
        metadata={"clay_config": json.dumps(asdict(model.config))},
    )


def file_of(path: str | Path) -> WeightFile:
    """The weights of a path or of a `hub:` name, not yet read."""
    return open_weights(fetch(str(path)[4:]) if str(path).startswith("hub:") else path)


def matched(file: WeightFile, changes: Mapping) -> tuple[ClayMAE, dict[str, str]]:
    """The model without memory (on torch's meta device) that a file's tensors fill, and {name in it: name in the file}.

    Raises ContractError unless they fill it exactly.
    """
    names = own_names(file.shapes)
    shapes = {own: file.shapes[name] for own, name in names.items()}
    config, alone = config_of(file, shapes, changes), all(name.startswith("encoder.") for name in shapes)
    with torch.device("meta"):
        model = ClayMAE(config, encoder_only=alone)
    _check(model, shapes)
    return model, names


def own_names(names: Iterable[str]) -> dict[str, str]:
    """{name in ClayMAE: name in the file}, the teacher's tensors left out: it is frozen, and never part of the model."""
    short = {name: name.removeprefix("model.") for name in names}
    short = {name: own for name, own in short.items() if not own.startswith("teacher.")}
    if "cls_token" in short.values():  # a bare encoder's state_dict
        short = {name: "encoder." + own for name, own in short.items()}
    twice = [own for own, count in Counter(short.values()).items() if count > 1]
    if twice:
        raise ContractError(
            "weights",
            f"{_grouped(twice)} twice, with and without a prefix",
            "every tensor once",
            "two models in one file",
        )
    return {own: name for name, own in short.items()}


# --- the configuration: what the file says, or what its shapes tell ---


def config_of(file: WeightFile, shapes: Mapping[str, tuple[int, ...]], changes: Mapping) -> ClayConfig:
    """The configuration of a file's weights, with the caller's changes. shapes: by the names in ClayMAE."""
    if "config" in file.settings:  # our own
        values = _known(file.settings["config"])
    elif "model_size" in file.settings:
        values = _released(file.settings, shapes)
    else:
        values = _told_by(shapes)
    unknown = changes.keys() - {field.name for field in fields(ClayConfig)} | changes.keys() & SHAPED
    if unknown:
        raise ContractError(
            "load",
            f"{', '.join(sorted(unknown))} to be changed",
            f"only {', '.join(field.name for field in fields(ClayConfig) if field.name not in SHAPED)}",
            "a misspelling, or a size, which the tensors' shapes settle",
        )
    values |= {name: value for name, value in changes.items() if not name.endswith(("heads", "dim_head"))}
    for part in ("", "decoder_"):
        _set_heads(values, part, changes)
    return ClayConfig(**values)


def _set_heads(values: dict, part: str, changes: Mapping) -> None:
    """Settle heads and their width, whose product alone shapes tell."""
    heads, dim_head = changes.get(f"{part}heads"), changes.get(f"{part}dim_head")
    width = values.pop(f"{part}width", None) or values[f"{part}heads"] * values[f"{part}dim_head"]
    if heads is None and dim_head is None:
        if f"{part}heads" in values:
            return
        raise ContractError(
            f"{part}heads",
            f"weights without a configuration and of no released size (all {part}heads together are {width} wide)",
            f"load(path, {part}heads=...)",
            "shapes do not tell into how many heads the attention is cut",
        )
    given = [count for count in (heads, dim_head) if count is not None]
    if all(isinstance(count, int) and count > 0 for count in given):
        heads, dim_head = heads or width // dim_head, dim_head or width // heads
    else:
        heads = dim_head = 0
    if heads * dim_head != width:
        raise ContractError(
            f"{part}heads",
            f"{part}heads={changes.get(f'{part}heads')!r}, {part}dim_head={changes.get(f'{part}dim_head')!r}",
            f"a product of {width}, as the tensors have it",
            "the heads of another model",
        )
    values |= {f"{part}heads": heads, f"{part}dim_head": dim_head}


def _known(config: object) -> dict:
    """A configuration from a file, if every value is of the kind that ClayConfig holds."""
    kinds = {field.name: (str,) if isinstance(field.default, str) else (int, float) for field in fields(ClayConfig)}
    values = dict(config) if isinstance(config, Mapping) else {"config": config}
    wrong = [f"{name}={value!r}" for name, value in values.items() if not isinstance(value, kinds.get(name, ()))]
    if wrong:
        raise ContractError(
            "weights",
            f"a configuration with {', '.join(wrong)}",
            f"values of {list(kinds)}",
            "a file of a newer version, or metadata edited by hand",
        )
    return asdict(ClayConfig(**values))


def _released(settings: Mapping, shapes: Mapping[str, tuple[int, ...]]) -> dict:
    size = settings["model_size"]
    if size not in SIZES:
        raise ContractError(
            "weights",
            f"hyper_parameters with model_size {size!r}",
            f"one of {list(SIZES)}",
            "a checkpoint of another version or model",
        )
    changes = {name: settings[name] for name in ("patch_size", "mask_ratio") if name in settings}
    if "proj.weight" in shapes:
        changes["teacher_dim"] = shapes["proj.weight"][0]
    return _known(asdict(ClayConfig.named(size)) | changes)


def _told_by(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Sizes read off shapes; heads where encoder or decoder are of a released size, else their common width."""
    try:
        dim = shapes["encoder.cls_token"][-1]
        pixels = shapes["encoder.patch_embedding.weight_generator.fc_weight.weight"][0] // dim
        values = _transformer(shapes, "encoder.", dim) | {"patch_size": round(pixels**0.5)}
        if any(name.startswith("decoder.") for name in shapes):
            decoder = _transformer(shapes, "decoder.", shapes["decoder.mask_patch"][0])
            values |= {f"decoder_{name}": value for name, value in decoder.items()}
            values["teacher_dim"] = shapes["proj.weight"][0]
    except (KeyError, IndexError) as missing:
        raise ContractError(
            "weights",
            f"{len(shapes)} tensors without a configuration, {missing} not among them: {_grouped(shapes)}",
            "a released .ckpt, its encoder, or a file written by Clay.save",
            "another model, or a stripped file",
        ) from None
    encoder, decoder = _released_like(values, ""), _released_like(values, "decoder_")
    if "decoder_dim" not in values:  # an encoder alone: the decoder that it was released with, on paper
        paper = encoder or asdict(ClayConfig())
        values |= {name: value for name, value in paper.items() if name.startswith("decoder_") or name == "teacher_dim"}
    for part, size in (("", encoder), ("decoder_", decoder)):
        if size is not None:
            values |= {f"{part}{name}": size[f"{part}{name}"] for name in ("heads", "dim_head")}
    return values


def _released_like(values: Mapping, part: str) -> dict | None:
    """The released size whose encoder or decoder has these sizes; its heads are known."""
    for size in map(asdict, map(ClayConfig.named, SIZES)):
        size[f"{part}width"] = size[f"{part}heads"] * size[f"{part}dim_head"]
        if all(values.get(f"{part}{name}") == size[f"{part}{name}"] for name in ("dim", "depth", "mlp_ratio", "width")):
            return size
    return None


def _transformer(shapes: Mapping[str, tuple[int, ...]], part: str, dim: int) -> dict:
    layer = re.compile(re.escape(part) + r"transformer\.layers\.(\d+)\.")
    block = f"{part}transformer.layers.0"
    return {
        "dim": dim,
        "depth": 1 + max((int(match[1]) for match in map(layer.match, shapes) if match), default=0),
        "mlp_ratio": shapes[f"{block}.1.net.1.weight"][0] / dim,
        "width": shapes[f"{block}.0.to_out.weight"][1],
    }


# --- the comparison ---


def _check(model: ClayMAE, given: Mapping[str, tuple[int, ...]]) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, unexpected = own.keys() - given.keys(), given.keys() - own.keys()
    wrong = [name for name in own.keys() & given.keys() if given[name] != own[name]]
    if not (missing or unexpected or wrong):
        return
    lines = [f"missing {name}" for name in missing] + [f"unexpected {name}" for name in unexpected]
    lines += [f"{name} is {given[name]}, the model's is {own[name]}" for name in wrong]
    raise ContractError(
        "weights",
        f"{len(lines)} differences ({len(missing)} missing, {len(unexpected)} unexpected, {len(wrong)} of another "
        f"shape): {_grouped(lines)}",
        f"the {len(own)} tensors of {model.config}",
        _cause(model.config, given),
    )


def _cause(config: ClayConfig, given: Mapping[str, tuple[int, ...]]) -> str:
    try:
        told = _told_by(given)
    except ContractError:
        return "weights of another version or model"
    other = {name: value for name, value in told.items() if name in SHAPED and value != getattr(config, name)}
    if not other:
        return "a stripped file, or weights of another version or model"
    stated = ", ".join(f"{name} {value:g} for {getattr(config, name):g}" for name, value in other.items())
    return f"the tensors are of another size than the configuration says: {stated}"


def _grouped(lines: Iterable[str]) -> str:
    """Lines that differ in the layer's number alone become one: `layers.3.norm; layers.4.norm` -> `layers.{3,4}.norm`."""
    groups = defaultdict(list)
    for line in lines:
        match = re.search(r"layers\.(\d+)\.", line)
        groups[line[: match.start(1)] + "*" + line[match.end(1) :] if match else line].append(match and int(match[1]))
    return "; ".join(
        line.replace("layers.*", "layers." + _numbers(layers), 1) for line, layers in sorted(groups.items())
    )


def _numbers(layers: list) -> str:
    return "{" + ",".join(map(str, sorted(layers))) + "}" if len(layers) > 1 else str(layers[0])


# ---- A released checkpoint to safetensors: the encoder or the whole model, with what it is and where it c ----

CONVERT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    source: str,
    out: str,
    *,
    part: Literal["encoder", "whole"] = "encoder",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    licence: str = "as the source of the weights states",
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> int:
    """Write the weights of a checkpoint as safetensors: no teacher, no optimiser, no pickle.

    Example: clay convert clay-v1.5.ckpt encoder.safetensors --dtype float16

    Args:
        source: a .ckpt or .safetensors file, or hub:owner/name/path
        out: the file to write, ending in .safetensors; complete or not there
        part: the encoder, which embeds, or the whole model, which also reconstructs and trains on
        dtype: float32 keeps every bit; the others halve the file, and loading makes float32 of them again
        licence: of the weights, for the file's metadata
        heads: of the encoder's attention, for a source that tells neither its configuration nor has a released size
        decoder_heads: of the decoder's attention, likewise
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ContractError("out", out, "a name that ends in .safetensors", "another format meant")
    stated = {name: n for name, n in (("heads", heads), ("decoder_heads", decoder_heads)) if n is not None}
    file = file_of(source)
    model, names = matched(file, stated)
    if part == "whole" and model.decoder is None:
        raise ContractError("part", "an encoder alone", "the whole model", "use --part encoder")
    wanted = {own: name for own, name in names.items() if part == "whole" or own.startswith("encoder.")}
    metadata = {
        "clay_config": json.dumps(asdict(model.config)),
        "part": part,
        "licence": licence,
        "source": source if source.startswith("hub:") else file.path.name,
        "source_sha256": sha256(file.path),
        "versions": json.dumps({"torch": torch.__version__, "safetensors": safetensors.__version__}),
    }
    shapes = {f"model.{own}": file.shapes[name] for own, name in wanted.items()}
    tensors = (file.copy(name, CONVERT_DTYPES[dtype]) for name in wanted.values())
    write_safetensors(path, shapes, tensors, dtype=CONVERT_DTYPES[dtype], metadata=metadata)
    numbers = sum(model.get_parameter(own).numel() for own in wanted)
    print(f"{path}: {part}, {len(wanted)} tensors, {numbers:,} {dtype} numbers, {path.stat().st_size / 1e9:.2f} GB")
    print("\n".join(f"  {name}: {text}" for name, text in metadata.items()))
    return 0
