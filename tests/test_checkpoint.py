"""Weights saved and loaded in every form in use, and files that are not what their name says."""

import argparse
import hashlib
import json
import os
import pathlib
import pickle
import sys
import types
from collections import defaultdict
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from processes import run_script
from released import released_settings, write_released
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clay_lib import Clay, ClayConfig, ClayMAE, ContractError
from clay_lib.__main__ import main
from clay_lib.checkpoint import convert, load_model, load_released_state, save_model

MICRO = ClayConfig(24, 3, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=12)
TINY = ClayConfig.named("tiny", teacher_dim=24)
HEADS = {"heads": 2, "decoder_heads": 2}
PIXELS = np.random.default_rng(0).uniform(200, 4000, (3, 32, 32)).astype(np.float32)


@pytest.fixture
def model():
    return ClayMAE(MICRO).eval()


def named(model):
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def same_embedding(a, b):
    options = dict(sensor="sentinel-2-l2a", bands=["blue", "green", "red"], when="2023-06-10", lat=1, lon=2)
    a, b = (Clay(model).embed(PIXELS, **options) for model in (a, b))
    return torch.equal(a.chip, b.chip) and torch.equal(a.patches, b.patches)


def refused(path, **changes):
    with pytest.raises(ContractError) as caught:
        load_model(path, **changes)
    return str(caught.value)


# --- formats ---


@pytest.mark.parametrize(("config", "size", "heads"), [(TINY, "tiny", {}), (TINY, "", {}), (MICRO, "", HEADS)])
def test_released_checkpoint_loads_without_teacher_and_optimizer(config, size, heads, tmp_path):
    path = write_released(tmp_path / "clay.ckpt", config, size=size, seed=3, teacher=2400)
    content = torch.load(path, weights_only=True)
    assert any(name.startswith("model.teacher.") for name in content["state_dict"]) and content["optimizer_states"]
    original = Clay.random(config, seed=3).model
    loaded = load_model(path, **heads)
    assert loaded.config == config and not loaded.training and same(loaded, original)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert same_embedding(loaded, original)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.model.", "model._orig_mod."])
def test_prefixes_of_compiled_and_distributed_models_are_stripped(prefix, model, tmp_path):
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "wrapped.ckpt")
    assert same(load_model(tmp_path / "wrapped.ckpt", **HEADS), model)


@pytest.mark.parametrize("prefix", ["model.encoder.", "encoder.", ""])
@pytest.mark.parametrize("suffix", ["ckpt", "plain.pt", "safetensors"])
def test_encoder_alone_embeds_but_does_not_reconstruct(prefix, suffix, model, tmp_path):
    path = tmp_path / f"encoder.{suffix}"
    state = {prefix + name: tensor for name, tensor in model.encoder.state_dict().items()}
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if suffix == "ckpt" else state, path)
    clay = Clay.load(path, heads=2)
    assert clay.model.decoder is None and clay.model.config.heads == 2 and same_embedding(clay.model, model)
    with pytest.raises(ContractError, match="the encoder alone"):
        clay.reconstruct(PIXELS, "sentinel-2-l2a", bands=["blue", "green", "red"])


def test_released_encoder_is_recognized_by_its_shapes(tmp_path):
    encoder = ClayMAE(ClayConfig.named("tiny"), encoder_only=True)
    torch.save(encoder.encoder.state_dict(), tmp_path / "encoder.ckpt")
    assert load_model(tmp_path / "encoder.ckpt").config == ClayConfig.named("tiny")


def test_safetensors_contain_their_configuration(model, tmp_path):
    path = save_model(model, tmp_path / "deep" / "small.safetensors")
    loaded = load_model(path)
    assert loaded.config == MICRO and same(model, loaded) and not loaded.training
    assert [p.name for p in path.parent.iterdir()] == ["small.safetensors"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    alone = ClayMAE(MICRO, encoder_only=True)
    assert same(load_model(save_model(alone, tmp_path / "alone.safetensors")), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_any_precision_becomes_float32(dtype, suffix, model, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in named(model).items()}
    path = tmp_path / f"w{suffix}"
    torch.save({"state_dict": state}, path) if suffix == ".ckpt" else save_file(state, path)
    assert same(load_model(path, **HEADS), model.to(dtype).float())
    assert load_model(path, dtype=torch.bfloat16, **HEADS).proj.weight.dtype == torch.bfloat16
    for wrong in ("bfloat16", torch.int8):
        assert refused(path, dtype=wrong, **HEADS).startswith(f"dtype: found {wrong!r}; expected torch.float32")
    save_file({name: tensor.to(torch.int8) for name, tensor in state.items()}, tmp_path / "integers.safetensors")
    assert "torch.int8" in refused(tmp_path / "integers.safetensors", **HEADS)


def test_loaded_model_no_longer_needs_its_file(tmp_path):
    original, path = Clay.random(TINY, seed=3).model, tmp_path / "clay.ckpt"
    for written in (write_released(path, TINY, seed=3, teacher=2400), save_model(original, tmp_path / "w.safetensors")):
        loaded = load_model(written)
        written.write_bytes(b"\xff" * written.stat().st_size)
        assert same(loaded, original)
        os.truncate(written, 0)
        assert same(loaded, original)


# --- configuration ---


def test_heads_must_be_stated_where_shapes_do_not_determine_them(model, tmp_path):
    torch.save({"state_dict": named(model)}, tmp_path / "w.ckpt")
    assert "load(path, heads=...)" in refused(tmp_path / "w.ckpt")
    assert "load(path, decoder_heads=...)" in refused(tmp_path / "w.ckpt", heads=2)
    changes = dict(dim_head=8, decoder_heads=2, frequencies="geometric", mask_ratio=0.5)
    expected = replace(MICRO, frequencies="geometric", mask_ratio=0.5)
    assert load_model(tmp_path / "w.ckpt", **changes).config == expected
    assert load_model(tmp_path / "w.ckpt", heads=2, **changes).config == expected
    for wrong in (3, 0, 32, "2", -2):
        assert "a product of 16" in refused(tmp_path / "w.ckpt", heads=wrong, decoder_heads=2)
    assert "a product of 16" in refused(tmp_path / "w.ckpt", heads=4, dim_head=8, decoder_heads=2)
    assert "depth to be changed" in refused(tmp_path / "w.ckpt", depth=2, **HEADS)
    assert "had to be changed" in refused(tmp_path / "w.ckpt", had=2, **HEADS)
    path = save_model(model, tmp_path / "w.safetensors")  # a stored value can be replaced
    assert load_model(path, heads=4).config.dim_head == 4


def test_every_difference_is_listed(model):
    state = named(model) | {"model.teacher.blocks.0.weight": torch.zeros(2)}
    del state["model.proj.bias"]
    state["model.encoder.extra"] = torch.zeros(1)
    state["model.encoder.cls_token"] = torch.zeros(1, 1, 5)
    with pytest.raises(ContractError) as caught:
        load_released_state(model, state)
    for part in ("3 differences", "missing proj.bias", "unexpected encoder.extra", "cls_token is (1, 1, 5)"):
        assert part in str(caught.value)
    del state["model.encoder.extra"]
    state |= {"model.proj.bias": model.proj.bias, "model.encoder.cls_token": model.encoder.cls_token}
    assert load_released_state(model, state) is model
    with pytest.raises(ContractError, match="encoder.cls_token twice"):
        load_released_state(model, state | {"encoder.cls_token": model.encoder.cls_token})


def test_wrong_size_and_wrong_patch_size_are_named(tmp_path):
    path = write_released(tmp_path / "w.ckpt", TINY, size="small", teacher=2400)
    assert "dim 192 for 384" in refused(path) and "the model's is" in refused(path)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] = released_settings("tiny", ClayConfig.named("tiny", patch_size=16))
    torch.save(content, path)
    message = refused(path)
    assert "patch_size 8 for 16" in message
    assert "fc_weight.weight is (12288, 128), the model's is (49152, 128)" in message
    content["hyper_parameters"] = {"model_size": "huge"}
    torch.save(content, path)
    assert "model_size 'huge'" in refused(path)


@pytest.mark.parametrize("config", ['{"dim": 24, "color": 3}', '{"dim": "wide"}', '{"dim": 23}', "[1]", "{dim"])
def test_damaged_configuration_is_refused(config, model, tmp_path):
    save_file(named(model), tmp_path / "w.safetensors", metadata={"clay_config": config})
    assert "edited by hand" in refused(tmp_path / "w.safetensors")


# --- nothing is executed ---


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.command = f"open({str(path)!r}, 'w').close()"

    def __reduce__(self):
        return exec, (self.command,)


class Shell(Trap):
    def __reduce__(self):
        return os.system, (f'{sys.executable} -c "{self.command}"',)


@pytest.mark.parametrize(("trap", "name"), [(Trap, "exec"), (Shell, f"{os.system.__module__}.system")])
@pytest.mark.parametrize("form", ["torch", "torch 4", "pickle", "pickle 2"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_nothing_in_a_pickle_is_executed(trap, name, form, tmp_path):
    proof, path = tmp_path / "executed", tmp_path / "trap.ckpt"
    content = {"state_dict": {}, "hyper_parameters": {"model_size": trap(proof)}}
    if form.startswith("torch"):
        torch.save(content, path, **{"pickle_protocol": 4} if form == "torch 4" else {})
    else:
        path.write_bytes(pickle.dumps(content, protocol=2 if form == "pickle 2" else None))
    message = refused(path)
    assert not proof.exists() and "not executed" in message
    if form == "torch":
        assert name in message
    if form == "pickle":  # the trap works
        pickle.loads(path.read_bytes())
        assert proof.exists()


def test_harmless_classes_are_read_without_their_packages(model, tmp_path, monkeypatch):
    """Settings as Lightning, python-box and argparse store them; another class of the same module is refused."""
    kinds = {}
    parsing = "pytorch_lightning.utilities.parsing"
    for module, name in [("box.box", "Box"), (parsing, "AttributeDict"), ("box.box", "Bax")]:
        kinds[name] = type(name, (dict,), {"__module__": module})
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(parts[end - 1]))
        setattr(sys.modules[module], name, kinds[name])
    sys.modules["box.box"].Box = kinds["Box"]
    settings = kinds["AttributeDict"](released_settings("tiny", TINY))
    settings["metadata"] = kinds["Box"](sensors=[1, 2], deep=kinds["Box"]())
    settings["metadata"].__dict__["_box_config"] = {"frozen": False}
    extra = [pathlib.PurePosixPath("a/b"), argparse.Namespace(lr=1), defaultdict(list, a=[1])]
    content = {"state_dict": named(Clay.random(TINY).model), "hyper_parameters": settings, "callbacks": extra}
    torch.save(content, tmp_path / "w.ckpt")
    torch.save(content | {"more": kinds["Bax"]()}, tmp_path / "more.ckpt")
    monkeypatch.undo()  # as if neither package were installed
    assert load_model(tmp_path / "w.ckpt").config == TINY
    assert "box.box.Bax" in refused(tmp_path / "more.ckpt")


# --- other files under the weights' name ---


def truncated(save):
    return lambda path: (save({"a": torch.zeros(10000)}, path), os.truncate(path, 30000))


def old_torch(path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, path, _use_new_zipfile_serialization=False)


OTHER_FILES = {  # kind: (how it is made, what the message says)
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "empty": (lambda path: path.touch(), "empty"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "git lfs pull"),
    "html": (lambda path: path.write_text("\n<!DOCTYPE html>\n<html><head><title>Clay"), "a web page"),
    "error": (lambda path: path.write_text('{"error": "Repository not found"}'), "a server's message"),
    "noise": (lambda path: path.write_bytes(bytes(range(100, 200))), "a file that begins with"),
    "truncated": (truncated(torch.save), "cut-short file of 30,000 bytes"),
    "truncated safetensors": (truncated(save_file), "cut-short file of 30,000 bytes"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "a plain pickle"),
    "old torch": (old_torch, "before 1.6"),
    "list": (lambda path: torch.save([1, 2], path), "a saved list"),
    "no state": (lambda path: torch.save({"weights": {}}, path), "without a state_dict of tensors"),
    "another model": (lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}}, path), "another model"),
    "foreign": (lambda path: save_file({"a": torch.zeros(1)}, path), "without a configuration"),
    "script": (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path), "TorchScript"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:'torch.load' received a zip file")  # of torch.jit
def test_other_files_are_named(kind, tmp_path):
    write, message = OTHER_FILES[kind]
    write(tmp_path / "w.ckpt")
    assert message in refused(tmp_path / "w.ckpt")


def test_format_is_known_by_content(model, tmp_path):
    save_model(model, tmp_path / "w.safetensors").rename(tmp_path / "w.ckpt")
    assert same(load_model(tmp_path / "w.ckpt"), model)
    torch.save({"state_dict": named(model)}, tmp_path / "w.safetensors")
    assert "call it .ckpt" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(number, model, tmp_path):
    for tensor in (model.proj.bias, model.encoder.transformer.layers[1][0].to_out.weight):
        tensor.data.view(-1)[-1] = number
    torch.save({"state_dict": named(model)}, tmp_path / "w.ckpt")
    for path in (tmp_path / "w.ckpt", save_model(model, tmp_path / "w.safetensors")):
        message = refused(path, **(HEADS if path.suffix == ".ckpt" else {}))
        assert "NaN or infinity in encoder.transformer.layers.1.0.to_out.weight; proj.bias" in message
    model.proj.bias.data[-1] = 1e5  # float16 ends at 65504
    model.encoder.transformer.layers[1][0].to_out.weight.data.view(-1)[-1] = 0
    path = save_model(model, tmp_path / "large.safetensors")
    assert "in proj.bias" in refused(path, dtype=torch.float16) and same(load_model(path), model)


# --- convert ---


def test_convert_keeps_every_bit_and_states_the_source(tmp_path, capsys):
    source = write_released(tmp_path / "clay.ckpt", TINY, size="tiny", seed=3, teacher=2400)
    original = Clay.random(TINY, seed=3).model
    for part, tensors in (("encoder", original.encoder), ("whole", original)):
        out = tmp_path / f"{part}.safetensors"
        assert main(["convert", str(source), str(out), "--part", part, "--licence", "Apache-2.0"]) == 0
        printed, count = capsys.readouterr().out, sum(p.numel() for p in tensors.parameters())
        with safe_open(out, "pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["clay_config"]) == asdict(TINY)
        assert metadata["part"] == part and metadata["source"] == "clay.ckpt"
        assert metadata["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert metadata["licence"] == "Apache-2.0" and "torch" in json.loads(metadata["versions"])
        assert f"{count:,} float32 numbers" in printed and metadata["source_sha256"] in printed
        names = {name for name in named(original) if part == "whole" or name.startswith("model.encoder.")}
        assert load_file(out).keys() == names and same_embedding(load_model(out), original)
    assert same(load_model(out), original)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clay.ckpt", "encoder.safetensors", "whole.safetensors"]


def test_failed_conversion_leaves_nothing(model, tmp_path, monkeypatch):
    source = save_model(ClayMAE(MICRO, encoder_only=True), tmp_path / "source.safetensors")
    with pytest.raises(ContractError, match="an encoder alone"):
        convert(str(source), str(tmp_path / "out.safetensors"), part="whole")
    with pytest.raises(ContractError, match="ends in .safetensors"):
        convert(str(source), str(tmp_path / "out.ckpt"))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr("clay_lib.files.os.replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
        convert(str(source), str(tmp_path / "out.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]
    before = load_model(source)
    convert(str(source), str(source), part="encoder", dtype="float16")  # onto itself
    assert same(load_model(source), before.half().float())


# --- memory ---

BOUND = 0.5e9  # bytes of the peak beyond the model and its mapped tensors, Python and torch included


def test_teacher_is_not_loaded_into_memory(tmp_path):
    """A base model (0.44 GB) beside half as much of a teacher."""
    config = ClayConfig.named("base")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in named(ClayMAE(config)).items()}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}  # no memory until written to
    state["model.teacher.weight"] = torch.zeros(60_000_000)
    torch.save({"state_dict": state, "hyper_parameters": released_settings("base", config)}, tmp_path / "w.ckpt")
    script = """
import sys
from clay_lib.checkpoint import load_model
from processes import peak_resident
model = load_model(sys.argv[1])
print(sum(4 * tensor.numel() for tensor in model.state_dict().values()), peak_resident())
"""
    own, peak = map(int, run_script(script, tmp_path / "w.ckpt").split())  # bytes, in a process that does nothing else
    assert own == 4 * sum(shape.numel() for shape in shapes.values())
    assert own < peak < 2 * own + BOUND
