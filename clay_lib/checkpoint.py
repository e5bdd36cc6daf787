"""Weights in and out: the released Lightning checkpoint, safetensors, and the hub. Strict: every difference is listed."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from clay_lib import hub
from clay_lib.contract import ContractError
from clay_lib.model import ClayConfig, ClayMAE
from clay_lib.weightfile import WeightFile, open_weights, write_safetensors

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
        raise ContractError(
            "dtype", found=repr(dtype), expected="torch.float32, torch.bfloat16 or torch.float16",
            cause="a name instead of torch's own, or whole numbers",
        )  # fmt: skip
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
    return open_weights(hub.fetch(str(path)[4:]) if str(path).startswith("hub:") else path)


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
            found=f"{_grouped(twice)} twice, with and without a prefix",
            expected="every tensor once",
            cause="two models in one file",
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
            found=f"{', '.join(sorted(unknown))} to be changed",
            expected=f"only {', '.join(field.name for field in fields(ClayConfig) if field.name not in SHAPED)}",
            cause="a misspelling, or a size, which the tensors' shapes settle",
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
            found=f"weights without a configuration and of no released size (all {part}heads together are {width} wide)",
            expected=f"load(path, {part}heads=...)",
            cause="shapes do not tell into how many heads the attention is cut",
        )
    given = [count for count in (heads, dim_head) if count is not None]
    if all(isinstance(count, int) and count > 0 for count in given):
        heads, dim_head = heads or width // dim_head, dim_head or width // heads
    else:
        heads = dim_head = 0
    if heads * dim_head != width:
        raise ContractError(
            f"{part}heads",
            found=f"{part}heads={changes.get(f'{part}heads')!r}, {part}dim_head={changes.get(f'{part}dim_head')!r}",
            expected=f"a product of {width}, as the tensors have it",
            cause="the heads of another model",
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
            found=f"a configuration with {', '.join(wrong)}",
            expected=f"values of {list(kinds)}",
            cause="a file of a newer version, or metadata edited by hand",
        )
    return asdict(ClayConfig(**values))


def _released(settings: Mapping, shapes: Mapping[str, tuple[int, ...]]) -> dict:
    size = settings["model_size"]
    if size not in SIZES:
        raise ContractError(
            "weights",
            found=f"hyper_parameters with model_size {size!r}",
            expected=f"one of {list(SIZES)}",
            cause="a checkpoint of another version or model",
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
            found=f"{len(shapes)} tensors without a configuration, {missing} not among them: {_grouped(shapes)}",
            expected="a released .ckpt, its encoder, or a file written by Clay.save",
            cause="another model, or a stripped file",
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
        found=f"{len(lines)} differences ({len(missing)} missing, {len(unexpected)} unexpected, {len(wrong)} of another "
        f"shape): {_grouped(lines)}",
        expected=f"the {len(own)} tensors of {model.config}",
        cause=_cause(model.config, given),
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
