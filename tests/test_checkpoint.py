"""Weights there and back, in every form that people have them, and files that are not what they seem."""

import argparse
import hashlib
import json
import os
import pathlib
import pickle
import re
import shutil
import sys
import types
from collections import defaultdict
from dataclasses import asdict

import numpy as np
import pytest
import torch
from released import released_settings, write_released
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clay_lib import Clay, ClayConfig, ClayMAE, ContractError
from clay_lib.__main__ import main
from clay_lib.checkpoint import convert, load_model, load_released_state, save_model
from clay_lib.runs.bench import load_memory

MICRO = ClayConfig(24, 3, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=12)
TINY = ClayConfig.named("tiny", teacher_dim=24)
STATED = {"heads": 2, "decoder_heads": 2}
PIXELS = np.random.default_rng(0).uniform(200, 4000, (3, 32, 32)).astype(np.float32)


@pytest.fixture
def model():
    return ClayMAE(MICRO).eval()


def named(model):
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def same(a, b):
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


def embedded(model):
    clay = Clay(model)
    return clay.embed(PIXELS, sensor="sentinel-2-l2a", bands=["blue", "green", "red"], when="2023-06-10", lat=1, lon=2)


def same_embedding(a, b):
    a, b = embedded(a), embedded(b)
    return torch.equal(a.chip, b.chip) and torch.equal(a.patches, b.patches)


def refused(path, **changes):
    with pytest.raises(ContractError) as caught:
        load_model(path, **changes)
    return str(caught.value)


# --- forms of the file ---


@pytest.mark.parametrize(
    ("config", "size", "stated"),
    [(TINY, "tiny", {}), (TINY, "", {}), (MICRO, "", STATED)],
    ids=["tiny", "bare", "micro"],
)
def test_the_released_format(config, size, stated, tmp_path):
    """Teacher, optimiser and all: hyper-parameters tell the sizes, else the shapes do."""
    path = write_released(tmp_path / "clay.ckpt", config, size=size, seed=3, teacher=2400)
    content = torch.load(path, weights_only=True)
    assert any(name.startswith("model.teacher.") for name in content["state_dict"]) and content["optimizer_states"]
    original = Clay.random(config, seed=3).model
    loaded = load_model(path, **stated)
    assert loaded.config == config and not loaded.training and same(loaded, original)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert same_embedding(loaded, original)


@pytest.mark.parametrize("prefix", ["model.encoder.", "encoder.", ""])
@pytest.mark.parametrize("suffix", ["ckpt", "plain.pt", "safetensors"])
def test_an_encoder_alone(prefix, suffix, model, tmp_path):
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


def test_a_released_encoder_is_known_by_its_shapes(tmp_path):
    encoder = ClayMAE(ClayConfig.named("tiny"), encoder_only=True)
    torch.save(encoder.encoder.state_dict(), tmp_path / "encoder.ckpt")
    assert load_model(tmp_path / "encoder.ckpt").config == ClayConfig.named("tiny")


def test_safetensors_carry_their_configuration(model, tmp_path):
    path = save_model(model, tmp_path / "deep" / "small.safetensors")
    loaded = load_model(path)
    assert loaded.config == MICRO and same(model, loaded) and not loaded.training
    assert [p.name for p in path.parent.iterdir()] == ["small.safetensors"]
    assert same(Clay.load(str(path)).model, model)
    alone = ClayMAE(MICRO, encoder_only=True)
    assert same(load_model(save_model(alone, tmp_path / "alone.safetensors")), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_any_precision_becomes_float32(dtype, suffix, model, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in named(model).items()}
    path = tmp_path / f"w{suffix}"
    torch.save({"state_dict": state}, path) if suffix == ".ckpt" else save_file(state, path)
    assert same(load_model(path, **STATED), model.to(dtype).float())
    assert load_model(path, dtype=torch.bfloat16, **STATED).proj.weight.dtype == torch.bfloat16
    for wrong in ("bfloat16", torch.int8):
        assert refused(path, dtype=wrong, **STATED).startswith(f"dtype: found {wrong!r}; expected torch.float32")


def test_tensors_that_are_views_of_one_storage(model, tmp_path):
    """What torch.save writes of a flattened or transposed model."""
    flat, state, start = torch.cat([t.flatten() for t in model.state_dict().values()]), {}, 0
    for name, tensor in named(model).items():
        state[name] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    state["model.proj.weight"] = model.proj.weight.detach().t().contiguous().t()
    torch.save({"state_dict": state}, tmp_path / "flat.ckpt")
    assert same(load_model(tmp_path / "flat.ckpt", **STATED), model)


def test_the_model_no_longer_needs_its_file(tmp_path):
    original, path = Clay.random(TINY, seed=3).model, tmp_path / "clay.ckpt"
    for written in (write_released(path, TINY, seed=3, teacher=2400), save_model(original, tmp_path / "w.safetensors")):
        loaded = load_model(written)
        written.write_bytes(b"\xff" * written.stat().st_size)
        assert same(loaded, original)
        os.truncate(written, 0)
        assert same(loaded, original)


# --- what a file does not say ---


def test_heads_are_stated_where_shapes_cannot_tell(model, tmp_path):
    torch.save({"state_dict": named(model)}, tmp_path / "w.ckpt")
    assert "load(path, heads=...)" in refused(tmp_path / "w.ckpt")
    assert "load(path, decoder_heads=...)" in refused(tmp_path / "w.ckpt", heads=2)
    assert load_model(
        tmp_path / "w.ckpt", dim_head=8, decoder_heads=2, frequencies="geometric", mask_ratio=0.5
    ).config == (ClayConfig(24, 3, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=12, frequencies="geometric", mask_ratio=0.5))
    for wrong in (3, 0, 32, "2"):
        assert "a product of 16" in refused(tmp_path / "w.ckpt", heads=wrong, decoder_heads=2)
    assert "depth to be changed" in refused(tmp_path / "w.ckpt", depth=2, **STATED)
    assert "had to be changed" in refused(tmp_path / "w.ckpt", had=2, **STATED)
    path = save_model(model, tmp_path / "w.safetensors")  # where it is known, it can still be replaced
    assert load_model(path, heads=4).config.dim_head == 4


# --- strictness ---


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


def test_the_list_is_complete_though_layers_are_grouped(model, tmp_path):
    state = {name: tensor for name, tensor in named(model).items() if "layers.1.1" not in name and "to_out" not in name}
    path = tmp_path / "w.safetensors"
    save_file(state, path, metadata={"clay_config": json.dumps(vars(MICRO))})
    told = set()
    for name in re.findall(r"missing ([^ ;]+)(?:;|\. Likely| *expected)", refused(path).replace("; expected", ";")):
        layers = re.search(r"\{([\d,]+)\}", name)
        told |= {name.replace(layers[0], n) for n in layers[1].split(",")} if layers else {name}
    assert told == model.state_dict().keys() - {name.removeprefix("model.") for name in state}


def test_another_size_and_another_patch_size_are_told(tmp_path):
    path = write_released(tmp_path / "w.ckpt", TINY, size="small", teacher=2400)
    assert "dim 192 for 384" in refused(path) and "of another shape" in refused(path)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] = released_settings("tiny", ClayConfig.named("tiny", patch_size=16))
    torch.save(content, path)
    told = refused(path)
    assert "patch_size 8 for 16" in told and "fc_weight.weight is (12288, 128), the model's is (49152, 128)" in told
    content["hyper_parameters"] = {"model_size": "huge"}
    torch.save(content, path)
    assert "model_size 'huge'" in refused(path)


@pytest.mark.parametrize("config", ['{"dim": 24, "colour": 3}', '{"dim": "wide"}', "[1]", "{dim"])
def test_a_configuration_that_is_none(config, model, tmp_path):
    save_file(named(model), tmp_path / "w.safetensors", metadata={"clay_config": config})
    assert "edited by hand" in refused(tmp_path / "w.safetensors")


def test_a_tensor_that_is_there_twice(model, tmp_path):
    torch.save(named(model) | {"encoder.cls_token": torch.zeros(1, 1, 24)}, tmp_path / "w.ckpt")
    assert "encoder.cls_token twice" in refused(tmp_path / "w.ckpt", **STATED)


# --- what must not run, and what may be there ---


class Trap:
    """Unpickled the usual way, it would make a file."""

    def __init__(self, path):
        self.command = f"open({str(path)!r}, 'w').close()"

    def __reduce__(self):
        return exec, (self.command,)


class Shell(Trap):
    def __reduce__(self):
        return os.system, (f'{sys.executable} -c "{self.command}"',)


@pytest.mark.parametrize(("trap", "name"), [(Trap, "builtins.exec"), (Shell, f"{os.system.__module__}.system")])
@pytest.mark.parametrize("form", ["torch", "pickle", "protocol 2"])
def test_nothing_in_a_pickle_is_executed(trap, name, form, tmp_path):
    made, path = tmp_path / "executed", tmp_path / "trap.ckpt"
    content = {"state_dict": {}, "hyper_parameters": {"model_size": trap(made)}}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2 if form == "protocol 2" else None))
    told = refused(path)
    assert not made.exists()
    assert name in told.replace("__builtin__", "builtins") and "not executed" in told
    if form == "pickle":  # the trap does work
        pickle.loads(path.read_bytes())
        assert made.exists()


def test_harmless_classes_are_read_without_their_packages(model, tmp_path, monkeypatch):
    """Settings as Lightning, python-box and argparse keep them; a class of the same file but another name is refused."""
    kinds = {}
    for module, name in [
        ("box.box", "Box"),
        ("pytorch_lightning.utilities.parsing", "AttributeDict"),
        ("box.box", "Bax"),
    ]:
        kinds[name] = type(name, (dict,), {"__module__": module})
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(parts[end - 1]))
        setattr(sys.modules[module], name, kinds[name])
    sys.modules["box.box"].Box = kinds["Box"]
    settings = kinds["AttributeDict"](released_settings("tiny", TINY))
    settings["metadata"] = kinds["Box"](sensors=[1, 2], deep=kinds["Box"]())
    settings["metadata"].__dict__["_box_config"] = {"frozen": False}
    extra = {
        "path": pathlib.PurePosixPath("a/b"),
        "space": argparse.Namespace(lr=1),
        "counts": defaultdict(list, a=[1]),
    }
    content = {"state_dict": named(Clay.random(TINY).model), "hyper_parameters": settings, "callbacks": extra}
    torch.save(content, tmp_path / "w.ckpt")
    torch.save(content | {"more": kinds["Bax"]()}, tmp_path / "more.ckpt")
    monkeypatch.undo()  # as if neither package were there
    assert load_model(tmp_path / "w.ckpt").config == TINY
    assert "box.box.Bax" in refused(tmp_path / "more.ckpt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_a_pickle_that_the_safe_reader_does_not_follow(model, tmp_path):
    torch.save(named(model), tmp_path / "w.ckpt", pickle_protocol=4)
    told = refused(tmp_path / "w.ckpt", **STATED)
    assert "Unsupported operand" in told and "not executed" in told and "a damaged copy" in told
    torch.save(named(model) | {"trap": Trap(tmp_path / "executed")}, tmp_path / "w.ckpt", pickle_protocol=4)
    assert "asks for builtins.exec;" in refused(tmp_path / "w.ckpt", **STATED)
    assert not (tmp_path / "executed").exists()


def test_a_real_lightning_attribute_dict(tmp_path):
    from lightning.pytorch.utilities.parsing import AttributeDict

    content = {"state_dict": named(Clay.random(TINY).model), "hyper_parameters": AttributeDict(model_size="tiny")}
    torch.save(content, tmp_path / "w.ckpt")
    assert load_model(tmp_path / "w.ckpt").config == TINY


# --- files that are not what their name says ---


def cut(path):
    torch.save({"state_dict": {"a": torch.zeros(10000)}}, path)
    os.truncate(path, 30000)


def cut_safetensors(path):
    save_file({"a": torch.zeros(10000)}, path)
    os.truncate(path, 30000)


def old_torch(path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, path, _use_new_zipfile_serialization=False)


WRONG = {  # what it is: how it is made, what is told of it
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "empty": (lambda path: path.touch(), "an empty file"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "git-lfs"),
    "html": (lambda path: path.write_text("\n<!DOCTYPE html>\n<html><head><title>Clay"), "a web page"),
    "error": (lambda path: path.write_text('{"error": "Repository not found"}'), "a server's message"),
    "noise": (lambda path: path.write_bytes(bytes(range(100, 200))), "a file that begins with"),
    "cut": (cut, "ends too early, after 30,000 bytes"),
    "cut safetensors": (cut_safetensors, "end too early: 30,000 of 40,"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "a plain pickle"),
    "old torch": (old_torch, "before 1.6"),
    "list": (lambda path: torch.save([1, 2], path), "a saved list"),
    "no state": (lambda path: torch.save({"weights": {}}, path), "no state_dict"),
    "another model": (lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}}, path), "another model"),
    "foreign": (lambda path: save_file({"a": torch.zeros(1)}, path), "without a configuration"),
    "script": (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path), "a TorchScript program"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_files_that_are_not_weights(kind, tmp_path):
    write, told = WRONG[kind]
    write(tmp_path / "w.ckpt")
    assert told in refused(tmp_path / "w.ckpt")


def test_the_name_of_a_file_need_not_tell_its_format(model, tmp_path):
    save_model(model, tmp_path / "w.safetensors").rename(tmp_path / "w.ckpt")
    assert same(load_model(tmp_path / "w.ckpt"), model)
    torch.save({"state_dict": named(model)}, tmp_path / "w.safetensors")
    assert "call it .ckpt" in refused(tmp_path / "w.safetensors")


def test_a_download_cut_anywhere(model, tmp_path):
    torch.save({"state_dict": named(model)}, tmp_path / "w.ckpt")
    for whole in (save_model(model, tmp_path / "w.safetensors"), tmp_path / "w.ckpt"):
        content = whole.read_bytes()
        for share in (0.0001, 0.01, 0.5, 0.99, 0.999):
            (tmp_path / "part").write_bytes(content[: int(share * len(content))])
            refused(tmp_path / "part")


def test_whole_numbers_are_no_weights(model, tmp_path):
    save_file({name: tensor.to(torch.int8) for name, tensor in named(model).items()}, tmp_path / "w.safetensors")
    assert "torch.int8" in refused(tmp_path / "w.safetensors", **STATED)


# --- convert ---


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_convert_keeps_every_bit_and_says_where_it_came_from(tmp_path, capsys):
    source = write_released(tmp_path / "clay.ckpt", TINY, size="tiny", seed=3, teacher=2400)
    original = Clay.random(TINY, seed=3).model
    for part, tensors in (("encoder", original.encoder), ("whole", original)):
        out = tmp_path / f"{part}.safetensors"
        assert main(["convert", str(source), str(out), "--part", part, "--licence", "Apache-2.0"]) == 0
        printed, told, count = capsys.readouterr().out, metadata_of(out), sum(p.numel() for p in tensors.parameters())
        assert (
            json.loads(told["clay_config"]) == asdict(TINY) and told["part"] == part and told["source"] == "clay.ckpt"
        )
        assert told["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert told["licence"] == "Apache-2.0" and "torch" in json.loads(told["versions"])
        assert f"{count:,} float32 numbers" in printed and told["source_sha256"] in printed
        assert load_file(out).keys() == {
            name for name in named(original) if part == "whole" or ".encoder." in name[:15]
        }
        assert same_embedding(load_model(out), original)
    assert same(load_model(out), original)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clay.ckpt", "encoder.safetensors", "whole.safetensors"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_convert_halves(dtype, model, tmp_path):
    torch.save({"state_dict": named(model)}, tmp_path / "w.ckpt")
    out = tmp_path / "half.safetensors"
    convert(str(tmp_path / "w.ckpt"), str(out), part="whole", dtype=dtype, **STATED)
    halved = model.to(getattr(torch, dtype))
    assert all(tensor.dtype == getattr(torch, dtype) for tensor in load_file(out).values())
    assert same(load_model(out), halved.float())


def test_convert_refuses_and_leaves_nothing(model, tmp_path, monkeypatch):
    source = save_model(ClayMAE(MICRO, encoder_only=True), tmp_path / "source.safetensors")
    with pytest.raises(ContractError, match="an encoder alone"):
        convert(str(source), str(tmp_path / "out.safetensors"), part="whole")
    with pytest.raises(ContractError, match="ends in .safetensors"):
        convert(str(source), str(tmp_path / "out.ckpt"))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr("clay_lib.files.os.replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
        convert(str(source), str(tmp_path / "out.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]
    convert(str(source), str(source), part="encoder", dtype="float16")  # onto itself, too
    assert same(load_model(source), ClayMAE(MICRO, encoder_only=True)) is False and load_model(source).config == MICRO


# --- memory ---

BOUND = 0.5e9  # bytes of the peak beyond the model's own, Python and torch included


def test_neither_the_teacher_nor_the_file_stays_in_memory(tmp_path):
    """A base model (0.44 GB) beside half as much of a teacher: either of them once more in memory breaks the bound."""
    config = ClayConfig.named("base")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in named(ClayMAE(config)).items()}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}  # no memory until written to
    state["model.teacher.weight"] = torch.zeros(60_000_000)
    torch.save({"state_dict": state, "hyper_parameters": released_settings("base", config)}, tmp_path / "w.ckpt")
    took = load_memory(tmp_path / "w.ckpt")
    assert took.model == 4 * sum(shape.numel() for shape in shapes.values())
    assert took.model < took.peak and took.over < BOUND


@pytest.mark.slow
def test_the_large_release_loads_within_the_bound(tmp_path):
    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("a checkpoint of the release's size and its conversion take 8 GB of disk")
    released, out = tmp_path / "w.ckpt", tmp_path / "w.safetensors"
    write_released(released, ClayConfig.named("large"), size="large")
    assert released.stat().st_size > 5e9
    convert(str(released), str(out), part="whole")
    for path in (released, out):
        took = load_memory(path)
        assert took.model > 1.3e9 and took.over < BOUND
        path.unlink()
