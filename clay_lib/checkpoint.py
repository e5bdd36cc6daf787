"""Model weights: the released Lightning checkpoint, safetensors, and the Hugging Face hub.

Loading is strict and safe: every difference is listed, nothing in a file is executed, and files are memory-mapped, so
that only the model's own tensors are read from them (the release also holds the teacher and the optimizer).
"""

import json
import math
import pickle
import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, find_weights, sha256
from clay_lib.model import SIZES, ClayConfig, ClayMAE

# Fields of ClayConfig given by the tensors' shapes; all others may be stated when loading.
SHAPE_FIELDS = {"dim", "depth", "mlp_ratio", "decoder_dim", "decoder_depth", "decoder_mlp_ratio"}
SHAPE_FIELDS |= {"patch_size", "teacher_dim"}

PARTS = {"": "encoder", "decoder_": "decoder"}  # prefix of the fields of ClayConfig: name of the part

WRAPPERS = r"(?<![^.])(?:_orig_mod|module)\."  # parts of names that torch.compile and DistributedDataParallel add


def load_model(path: str | Path, *, dtype: torch.dtype | None = None, **changes) -> ClayMAE:
    """A model from a released or own .ckpt, or from .safetensors; see `find_weights` for path.

    The complete model, or the encoder alone (names with or without `model.` and `encoder.`). Once loaded, the model no
    longer needs the file.

    dtype: of the model, float32 by default, whatever the file's is.
    changes: values of ClayConfig that shapes do not give: heads, dim_head, decoder_heads, decoder_dim_head,
    frequencies, mask_ratio. A file with neither a configuration nor a released size needs heads.
    Raises ContractError that names the file's real content, or lists every missing, unexpected and wrongly shaped
    tensor, or those with NaN or infinity.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        expected = "torch.float32, torch.bfloat16 or torch.float16"
        raise ContractError("dtype", repr(dtype), expected, "a name, or integers")
    path = find_weights(path)
    tensors, metadata = read_tensors(path)
    tensors = _own_names(tensors)
    config = _config_of(metadata, _shapes(tensors), changes)
    with torch.device("meta"):  # no memory until the tensors are assigned
        model = ClayMAE(config, encoder_only=all(name.startswith("encoder.") for name in tensors))
    _compare(model, tensors)
    for name, mapped in tensors.items():
        if not mapped.is_floating_point():
            raise _not_weights(path, f"{name} as {mapped.dtype}", "quantized weights, or another model's")
        tensors[name] = torch.empty(mapped.shape, dtype=dtype or torch.float32).copy_(mapped)
    if broken := [name for name, tensor in tensors.items() if not all(map(math.isfinite, tensor.aminmax()))]:
        cause = "a run that diverged: take an earlier checkpoint; or numbers too large for the dtype"
        raise _not_weights(path, f"NaN or infinity in {_group_layers(broken)}", cause)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def load_released_state(model: ClayMAE, state_dict: Mapping[str, Tensor]) -> ClayMAE:
    """Load tensors under the released names (`model.encoder...` or without `model.`); teacher tensors are left out.

    Raises ContractError that lists every missing, unexpected and wrongly shaped tensor.
    """
    tensors = _own_names(state_dict)
    _compare(model, tensors)
    model.load_state_dict(tensors)
    return model


def save_model(model: ClayMAE, path: str | Path, *, dtype: torch.dtype | None = None, **metadata: str) -> Path:
    """Write weights and configuration as safetensors, atomically. dtype float16 halves the file."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    metadata = {"clay_config": json.dumps(asdict(model.config)), **metadata}
    return save_tensors(path, tensors, dtype=dtype, metadata=metadata)


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str], dtype: torch.dtype | None = None
) -> Path:
    """Write tensors as safetensors, atomically."""
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}

    def write(partial: Path) -> None:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata=metadata)
        partial.chmod(mode)  # save_file leaves a file that only its owner can read

    return atomic_write(path, write)


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
    """Write the weights of a checkpoint as safetensors: no teacher, no optimizer, no pickle.

    Example: clay convert clay-v1.5.ckpt encoder.safetensors --dtype float16

    Args:
        source: a .ckpt or .safetensors file, the name of shipped weights, or hub:owner/name/path
        out: the file to write, ending in .safetensors
        part: the encoder, which embeds, or the whole model, which also reconstructs and trains
        dtype: float32 keeps every bit; the others halve the file, and loading converts them back to float32
        licence: of the weights, for the file's metadata
        heads: of the encoder's attention, for a source with neither a configuration nor a released size
        decoder_heads: of the decoder's attention, likewise
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ContractError("out", out, "a name that ends in .safetensors", "another format")
    file = find_weights(source)
    given = {"heads": heads, "decoder_heads": decoder_heads}
    model = load_model(file, **{name: value for name, value in given.items() if value is not None})
    if part == "whole" and model.decoder is None:
        raise ContractError("part", "an encoder alone", "the whole model", "use --part encoder")
    if part == "encoder":
        model.decoder = model.proj = None
    metadata = {
        "part": part,
        "licence": licence,
        "source": source if source.startswith("hub:") else file.name,
        "source_sha256": sha256(file),
        "versions": json.dumps({"torch": torch.__version__, "safetensors": safetensors.__version__}),
    }
    save_model(model, path, dtype=getattr(torch, dtype), **metadata)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{path}: {part}, {count:,} {dtype} numbers, {path.stat().st_size / 1e9:.2f} GB; {model.config}")
    print("\n".join(f"  {name}: {text}" for name, text in metadata.items()))
    return 0


# --- what the file holds ---


class _Inert:
    """Stands in for a class that a pickle names: ignores its arguments. Items are kept."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()  # the one mapping with attributes that torch's safe reader fills


# Besides tensors and plain values, Lightning files may hold these. Each becomes _Inert: neither the class nor its
# package is imported, so that even an allowed name runs none of its code.
HARMLESS = (
    *(f"{home}.AttributeDict" for home in ("lightning.fabric.utilities.data", "lightning_fabric.utilities.data")),
    *(f"{home}.utilities.parsing.AttributeDict" for home in ("lightning.pytorch", "pytorch_lightning")),
    *("box.box.Box", "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "typing.Any"),
    *(f"builtins.{kind}" for kind in ("dict", "list", "tuple", "str", "int", "float", "bool")),  # a defaultdict's
    *(f"pathlib.{kind}" for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
    *(f"pathlib._local.{kind}" for kind in ("PosixPath", "WindowsPath")),
    *(f"omegaconf.{kind}" for kind in ("dictconfig.DictConfig", "base.ContainerMetadata", "base.Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
)

OTHER_FILES = (  # the first bytes, in lower case, of files that are saved under the weights' name
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "a clone without it: run `git lfs pull`"),
    ((b"<!doctype html", b"<html"), "a web page (HTML)", "saved instead of the file; use the page's download link"),
    ((b"<?xml", b"{"), "a server's message", "a download that failed; download it again"),
    (b"\x80", "a plain pickle, which was not executed", "saved by pickle, or by torch before 1.6: use torch.save"),
)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], Mapping]:
    """({name: tensor mapped from the file}, metadata) of a checkpoint, a state_dict saved by torch, or safetensors.

    The file's first bytes tell the format. metadata: a checkpoint's hyper_parameters, or the metadata of safetensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise _not_weights(path, found, "a wrong name, or not yet trained or downloaded")
    with open(path, "rb") as file:
        start = file.read(512)
    is_torch = start.startswith(b"PK\x03\x04")
    if not is_torch and start[8:9] != b"{":  # safetensors: after eight bytes with the length of the header
        for prefix, found, cause in OTHER_FILES:
            if start.lstrip().lower().startswith(prefix):
                raise _not_weights(path, found, cause)
        raise _not_weights(path, f"a file that begins with {start[:16]!r}", "empty, compressed, or of another kind")
    if is_torch and path.suffix == ".safetensors":  # torch.load itself would take it for safetensors
        raise _not_weights(path, "a checkpoint of torch under another format's name", "renamed; call it .ckpt")
    try:
        return _read_torch(path) if is_torch else _read_safetensors(path)
    except ContractError:
        raise
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
        found = f"a pickle that needs {name[1]}" if name else f"an unreadable pickle ({reason[1] if reason else error})"
        cause = "foreign objects, or a file made to run code: ask its author for safetensors or a plain state_dict"
        raise _not_weights(path, f"{found}; it was not executed", cause) from None
    except Exception as error:  # neither library has one common error for a broken file
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        found = f"a damaged or cut-short file of {path.stat().st_size:,} bytes ({reason})"
        raise _not_weights(path, found, "an interrupted download, a full disk, or another kind of archive") from None


def _read_torch(path: Path) -> tuple[dict[str, Tensor], Mapping]:
    with torch.serialization.safe_globals([(_Inert, name) for name in HARMLESS]):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    if not (isinstance(state, Mapping) and state and all(isinstance(tensor, Tensor) for tensor in state.values())):
        found = f"a saved {type(content).__name__} without a state_dict of tensors"
        raise _not_weights(path, found, "another tool's file, or one stripped of its weights")
    hyper_parameters = content.get("hyper_parameters")
    return dict(state), hyper_parameters if isinstance(hyper_parameters, Mapping) else {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping]:
    file = safetensors.safe_open(path, framework="pt")
    return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def _own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their name in ClayMAE: without the prefixes of wrappers, and without the teacher's tensors."""
    own = [(re.sub(WRAPPERS, "", name).removeprefix("model."), tensor) for name, tensor in tensors.items()]
    own = [(name, tensor) for name, tensor in own if not name.startswith("teacher.")]
    if any(name == "cls_token" for name, _ in own):  # a bare encoder's state_dict
        own = [(f"encoder.{name}", tensor) for name, tensor in own]
    if twice := [name for name, count in Counter(name for name, _ in own).items() if count > 1]:
        found = f"{_group_layers(twice)} twice, with and without a prefix"
        raise ContractError("weights", found, "every tensor once", "two models in one file")
    return dict(own)


def _not_weights(path: Path, found: str, cause: str) -> ContractError:
    return ContractError("weights", f"{path}: {found}", "a complete Lightning checkpoint or safetensors file", cause)


# --- its configuration ---


def _config_of(metadata: Mapping, shapes: Mapping[str, tuple[int, ...]], changes: Mapping) -> ClayConfig:
    """The configuration that the file states, or that its shapes give, with the caller's changes."""
    if stored := metadata.get("clay_config") or metadata.get("config"):  # of safetensors; of a checkpoint in training
        values = stored_config(stored)
    elif "model_size" in metadata:  # hyper_parameters of a released checkpoint
        size = metadata["model_size"]
        if size not in SIZES:
            cause = "a checkpoint of another version or model"
            raise ContractError("weights", f"model_size {size!r}", f"one of {list(SIZES)}", cause)
        values = asdict(SIZES[size]) | {k: metadata[k] for k in ("patch_size", "mask_ratio") if k in metadata}
        if "proj.weight" in shapes:
            values["teacher_dim"] = shapes["proj.weight"][0]
    else:
        values = _config_from_shapes(shapes)
    free = [field.name for field in fields(ClayConfig) if field.name not in SHAPE_FIELDS]
    if unknown := sorted(changes.keys() - set(free)):
        cause = "a misspelling, or a size, which the tensors' shapes determine"
        raise ContractError("load", f"{', '.join(unknown)} to be changed", f"only {', '.join(free)}", cause)
    values |= {name: value for name, value in changes.items() if not name.endswith(("heads", "dim_head"))}
    for prefix in PARTS:
        values |= _heads(prefix, values, shapes, changes)
    return ClayConfig(**values)


def stored_config(stored: str | Mapping) -> dict:
    """A configuration that `save_model` or a training run wrote."""
    kinds = {field.name: str if isinstance(field.default, str) else (int, float) for field in fields(ClayConfig)}
    try:
        values = dict(json.loads(stored) if isinstance(stored, str) else stored)
        if not all(isinstance(value, kinds[name]) for name, value in values.items()):
            raise TypeError
        return asdict(ClayConfig(**values))
    except (ValueError, TypeError, KeyError):
        cause = "a file of a newer version, or metadata edited by hand"
        raise ContractError("weights", f"the configuration {stored}", f"values of {list(kinds)}", cause) from None


def _config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Sizes from shapes; heads are None unless the sizes are released ones."""
    values = asdict(ClayConfig())
    try:
        dims = {"": shapes["encoder.cls_token"][-1]}
        kernel_size = shapes["encoder.patch_embedding.weight_generator.fc_weight.weight"][0]
        if any(name.startswith("decoder.") for name in shapes):
            dims["decoder_"] = shapes["decoder.mask_patch"][0]
            values["teacher_dim"] = shapes["proj.weight"][0]
        for prefix, dim in dims.items():
            layers = f"{PARTS[prefix]}.transformer.layers."
            sizes = {"dim": dim, "mlp_ratio": shapes[f"{layers}0.1.net.1.weight"][0] / dim}
            sizes["depth"] = 1 + max(int(name.split(".")[3]) for name in shapes if name.startswith(layers))
            sizes = {f"{prefix}{name}": value for name, value in sizes.items()}
            width = shapes[f"{layers}0.0.to_out.weight"][1]
            similar = [config for config in map(asdict, SIZES.values()) if sizes.items() <= config.items()]
            released = next((config for config in similar if _width(prefix, config) == width), {})
            if not prefix and len(dims) == 1:  # an encoder alone is described with the decoder of its release
                values |= released
            values |= sizes | {name: released.get(name) for name in (f"{prefix}heads", f"{prefix}dim_head")}
    except (KeyError, IndexError) as error:
        found = f"{len(shapes)} tensors without a configuration, {error} not among them: {_group_layers(shapes)}"
        expected = "a released .ckpt, its encoder, or a file written by Clay.save"
        raise ContractError("weights", found, expected, "another model, or a stripped file") from None
    return values | {"patch_size": math.isqrt(kernel_size // values["dim"])}


def _width(prefix: str, values: Mapping) -> int:
    """Width of the attention of the encoder or the decoder."""
    return values[f"{prefix}heads"] * values[f"{prefix}dim_head"]


def _heads(prefix: str, values: Mapping, shapes: Mapping[str, tuple[int, ...]], changes: Mapping) -> dict:
    """Number of heads and dimension of each; shapes give only the product of the two."""
    heads, dim_head = (changes.get(f"{prefix}{name}") for name in ("heads", "dim_head"))
    known = values[f"{prefix}heads"] is not None
    if heads is None and dim_head is None and known:
        return {}
    width = _width(prefix, values) if known else shapes[f"{PARTS[prefix]}.transformer.layers.0.0.to_out.weight"][1]
    if heads is None and dim_head is None:
        found = f"weights without a configuration and of no released size ({width} = {prefix}heads x {prefix}dim_head)"
        cause = "shapes do not determine the number of attention heads"
        raise ContractError(f"{prefix}heads", found, f"load(path, {prefix}heads=...)", cause)
    try:
        pair = heads or width // dim_head, dim_head or width // heads
        if math.prod(pair) != width or min(pair) < 1:
            raise ValueError
    except (TypeError, ValueError):
        found = f"{prefix}heads={heads!r}, {prefix}dim_head={dim_head!r}"
        expected = f"a product of {width}, as the tensors have it"
        raise ContractError(f"{prefix}heads", found, expected, "the heads of another model") from None
    return {f"{prefix}heads": pair[0], f"{prefix}dim_head": pair[1]}


# --- the comparison ---


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _compare(model: ClayMAE, tensors: Mapping[str, Tensor]) -> None:
    """ContractError that lists every difference between a model's tensors and the given ones."""
    own, loaded = _shapes(model.state_dict()), _shapes(tensors)
    lines = [f"missing {name}" for name in own.keys() - loaded.keys()]
    lines += [f"unexpected {name}" for name in loaded.keys() - own.keys()]
    common = own.keys() & loaded.keys()
    lines += [f"{name} is {loaded[name]}, the model's is {own[name]}" for name in common if loaded[name] != own[name]]
    if not lines:
        return
    cause = "a stripped file, or weights of another version or model"
    try:
        sizes = {name: value for name, value in _config_from_shapes(loaded).items() if name in SHAPE_FIELDS}
    except ContractError:
        sizes = {}
    stated = asdict(model.config)
    if other := [f"{name} {value:g} for {stated[name]:g}" for name, value in sizes.items() if value != stated[name]]:
        cause = f"the tensors are of another size than the configuration states: {', '.join(other)}"
    found = f"{len(lines)} differences: {_group_layers(lines)}"
    raise ContractError("weights", found, f"the {len(own)} tensors of {model.config}", cause)


def _group_layers(lines: Iterable[str]) -> str:
    """Lines that differ only in the layer's number become one: layers.3.norm; layers.4.norm -> layers.{3,4}.norm."""
    groups = defaultdict(list)
    for line in lines:
        head, layer, tail = re.fullmatch(r"(?:(.*?layers\.)(\d+)(?=\.))?(.*)", line).groups()
        groups[head, tail].append(layer)
    parts = []
    for (head, tail), layers in sorted(groups.items(), key=str):
        numbers = ",".join(sorted(layers, key=int)) if head else ""
        parts.append(f"{head or ''}{f'{{{numbers}}}' if len(layers) > 1 else numbers}{tail}")
    return "; ".join(parts)
