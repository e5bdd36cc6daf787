"""Weights in and out: the released Lightning checkpoint, safetensors, and the hub. Strict: every difference is listed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clay_lib.contract import ContractError
from clay_lib.model import ClayConfig, ClayMAE

TEACHER = "teacher."  # the released file carries the frozen teacher; it is never part of the model


def load_released_state(model: ClayMAE, state_dict: Mapping[str, Tensor]) -> ClayMAE:
    """Load tensors under the released names (`model.encoder...` or without `model.`); teacher tensors are left out.

    Raises ContractError that lists every missing, unexpected and wrongly shaped tensor.
    """
    given = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
    given = {name: tensor for name, tensor in given.items() if not name.startswith(TEACHER)}
    own = model.state_dict()
    problems = [f"missing {name}" for name in own.keys() - given.keys()]
    problems += [f"unexpected {name}" for name in given.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(given[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if given[name].shape != own[name].shape
    ]
    if problems:
        raise ContractError(
            "weights",
            found=f"{len(problems)} differences: " + "; ".join(sorted(problems)),
            expected=f"the {len(own)} tensors of {model.config}",
            cause="weights of another size, version or model",
        )
    model.load_state_dict(given)
    return model


def save_model(model: ClayMAE, path: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write weights as safetensors, the configuration in its metadata; whole or not at all. dtype: float16 halves it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    state = {f"model.{name}": tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, partial, metadata={"clay_config": json.dumps(asdict(model.config))})
    os.replace(partial, path)
    return path


def load_model(path: str | Path) -> ClayMAE:
    """A model from a released or own .ckpt, from .safetensors, or from "hub:owner/name/path/in/repository"."""
    if str(path).startswith("hub:"):
        path = _from_hub(str(path)[4:])
    path = Path(path)
    if not path.is_file():
        raise ContractError(
            "weights",
            found=f"no file {path}",
            expected="a .ckpt or .safetensors file",
            cause="a wrong folder, or not yet trained or downloaded",
        )
    read = _read_safetensors if path.suffix == ".safetensors" else _read_lightning
    config, state = read(path)
    return load_released_state(ClayMAE(config), state).eval()


def _read_safetensors(path: Path) -> tuple[ClayConfig, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    if "clay_config" not in metadata:
        return _config_from_shapes(state), state
    return ClayConfig(**json.loads(metadata["clay_config"])), state


def _read_lightning(path: Path) -> tuple[ClayConfig, dict[str, Tensor]]:
    try:
        # Nothing in the pickle is executed, and tensors stay on disk until they are copied.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state, settings = content["state_dict"], content.get("hyper_parameters", {})
    except (pickle.UnpicklingError, RuntimeError, OSError, KeyError, TypeError, EOFError) as error:
        raise _unreadable(path, error) from None
    if "config" in settings:  # our own training
        return ClayConfig(**settings["config"]), state
    if "model_size" in settings:
        shape = state["model.proj.weight"].shape
        changes = {"patch_size": settings.get("patch_size", 8), "mask_ratio": settings.get("mask_ratio", 0.75)}
        return ClayConfig.named(settings["model_size"], teacher_dim=shape[0], **changes), state
    return _config_from_shapes(state), state


def _config_from_shapes(state: Mapping[str, Tensor]) -> ClayConfig:
    """The released size whose tensors have these shapes. (Heads cannot be read off shapes, so only those.)"""
    given = {name.removeprefix("model."): tuple(tensor.shape) for name, tensor in state.items()}
    for size in ("tiny", "small", "base", "large"):
        config = ClayConfig.named(size, teacher_dim=given.get("proj.weight", (1024,))[0])
        with torch.device("meta"):
            own = ClayMAE(config).state_dict()
        if all(given.get(name) == tuple(tensor.shape) for name, tensor in own.items()):
            return config
    raise ContractError(
        "weights",
        found=f"{len(given)} tensors without a configuration, of no released size",
        expected="a released .ckpt, or a file written by Clay.save",
        cause="an encoder alone, another model, or a stripped file",
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    owner, repository, *inside = name.split("/")
    if not inside:
        raise ContractError(
            "weights", found=f"hub:{name}", expected="hub:owner/name/path/to/file", cause="the path is missing"
        )
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", "/".join(inside)))
    except Exception as error:  # huggingface_hub raises its own, requests' and OS errors
        raise ContractError(
            "weights",
            found=f"{type(error).__name__}: {error}",
            expected=f"hub:{name}",
            cause="no network, no such file, or a gate",
        ) from None


def _unreadable(path: Path, error: Exception) -> ContractError:
    return ContractError(
        "weights",
        found=f"{path}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        expected="a Lightning checkpoint or safetensors file, whole",
        cause="a broken download, a git-lfs pointer, or a pickle with more than tensors in it",
    )
