"""Weights there and back, and files that are not what they seem."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from clay_lib import Clay, ClayConfig, ClayMAE, ContractError
from clay_lib.checkpoint import load_model, load_released_state, save_model

MICRO = ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=12)


@pytest.fixture
def model():
    return ClayMAE(MICRO)


def released(model):
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return state | {"model.teacher.blocks.0.weight": torch.zeros(2)}


def same(a, b):
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def test_safetensors_carry_their_configuration(model, tmp_path):
    path = save_model(model, tmp_path / "deep" / "small.safetensors")
    loaded = load_model(path)
    assert loaded.config == MICRO and same(model, loaded) and not loaded.training
    assert [p.name for p in path.parent.iterdir()] == ["small.safetensors"]
    assert same(Clay.load(str(path)).model, model)


def test_a_released_checkpoint_of_a_named_size(tmp_path):
    model = ClayMAE(ClayConfig.named("tiny", teacher_dim=24))
    content = {
        "state_dict": released(model),
        "hyper_parameters": {"model_size": "tiny", "mask_ratio": 0.75, "patch_size": 8},
    }
    torch.save(content, tmp_path / "clay.ckpt")
    loaded = load_model(tmp_path / "clay.ckpt")
    assert loaded.config == model.config and same(model, loaded)
    torch.save({"state_dict": released(model)}, tmp_path / "bare.ckpt")  # sizes from shapes alone
    assert load_model(tmp_path / "bare.ckpt").config == model.config


def test_every_difference_is_listed(model):
    state = released(model)
    del state["model.proj.bias"]
    state["model.encoder.extra"] = torch.zeros(1)
    state["model.encoder.cls_token"] = torch.zeros(1, 1, 5)
    with pytest.raises(ContractError) as caught:
        load_released_state(model, state)
    for part in ("3 differences", "missing proj.bias", "unexpected encoder.extra", "cls_token is (1, 1, 5)"):
        assert part in str(caught.value)


class Trap:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_pickle_is_executed(tmp_path, capsys):
    torch.save({"state_dict": {}, "hyper_parameters": {"trap": Trap()}}, tmp_path / "trap.ckpt")
    with pytest.raises(ContractError, match="weights"):
        load_model(tmp_path / "trap.ckpt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        lambda path: path.write_bytes(pickle.dumps([1, 2])),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"weights": {}}, path),
        lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}}, path),
    ],
    ids=["missing", "lfs pointer", "pickle", "a list", "no state_dict", "another model"],
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_files_that_are_not_weights(write, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    write(path)
    with pytest.raises(ContractError) as caught:
        load_model(path)
    assert caught.value.field == "weights"


def test_foreign_safetensors(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ContractError, match="without a configuration"):
        load_model(tmp_path / "a.safetensors")


def test_hub_names(monkeypatch, model, tmp_path):
    """The name is taken apart as promised; the download itself is huggingface_hub's."""
    path, asked = save_model(model, tmp_path / "w.safetensors"), []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names: asked.append(names) or str(path))
    assert same(load_model("hub:made-with-clay/Clay/v1.5/clay-v1.5.ckpt"), model)
    assert asked == [("made-with-clay/Clay", "v1.5/clay-v1.5.ckpt")]
    with pytest.raises(ContractError, match="path is missing"):
        load_model("hub:made-with-clay/Clay")
