"""Export: a file for another runtime gives the encoder's outputs at every size, and describes itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clay_lib.clay import Clay
from clay_lib.errors import ContractError
from clay_lib.heads import export as exporting
from clay_lib.heads.export import export, largest_difference, open_onnx, open_pt2, trace, write_onnx, write_pt2
from clay_lib.model import ClayConfig

MINI = Path(__file__).resolve().parents[2] / "data" / "weights" / "clay-mini.safetensors"
SHAPES = (  # sensor, bands, batch, height, width; none of them is the traced example
    ("sentinel-2-l2a", 10, 1, 64, 40),
    ("landsat-c2l1", 6, 4, 8, 8),
    ("modis", 7, 3, 33, 27),
    ("sentinel-1-rtc", 1, 2, 5, 70),
    ("linz", 3, 1, 1, 1),
)


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """The shipped weights through the command, as ONNX: (file, printed text)."""
    path = tmp_path_factory.mktemp("export") / "deep" / "mini.onnx"
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, sep=" ": printed.append(sep.join(map(str, words))))
        assert export(str(MINI), str(path)) == 0
    assert [p.name for p in path.parent.iterdir()] == ["mini.onnx"]
    return path, "\n".join(printed)


@pytest.fixture(scope="module")
def micro():
    """Another size, another patch size and the released frequencies: (encoder, its graph)."""
    sizes = dict(dim=64, depth=1, heads=2, dim_head=16, patch_size=6, frequencies="released")
    encoder = Clay.random(ClayConfig.named("tiny", **sizes), seed=1).model.encoder
    return encoder, trace(encoder)


def test_shipped_weights_in_onnxruntime(mini):
    path, printed = mini
    run, inputs, outputs = open_onnx(path)
    assert largest_difference(Clay.load(MINI).model.encoder, run, SHAPES) < 1e-4
    assert inputs == exporting.INPUTS and outputs["chip"] == ("batch", 192)
    assert outputs["patches"][0] == "batch" and [type(n) for n in outputs["patches"]] == [str, str, str, int]
    for text in ("[batch, bands, height, width]", "[batch, 4]", "[bands]", "MB", "largest difference from torch on 5"):
        assert text in printed


def test_a_file_embeds_like_the_weights_it_was_exported_from(mini, tmp_path):
    own, other = Clay.load(MINI, precision="exact"), Clay.load(mini[0])
    pixels = np.random.default_rng(0).integers(1, 4000, (3, 10, 20, 33)).astype(np.float32)
    pixels[0, :, 2, 3] = np.nan  # a hole that leaves its patch
    kwargs = dict(sensor="sentinel-2-l2a", when="2023-06-10T10:30", lat=-3.4, lon=34.07, check=False)
    expected, found = own.embed(pixels, **kwargs), other.embed(pixels, **kwargs)
    torch.testing.assert_close(found.chip, expected.chip, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.patches, expected.patches, atol=1e-4, rtol=0)
    assert found.precision == "exact" and found.valid.all()
    for message, call in {
        "an ONNX encoder and chips with patches to leave out": lambda: other.embed(pixels * np.nan, **kwargs),
        "an ONNX encoder and layers": lambda: other.embed(pixels, layers=[0], **kwargs),
        "weights of the encoder alone": lambda: other.reconstruct(pixels, **kwargs),
        "none of them for an ONNX file": lambda: Clay.load(mini[0], precision="bfloat16"),
        "a wrong name": lambda: Clay.load(tmp_path / "absent.onnx"),
    }.items():
        with pytest.raises(ContractError, match=message):
            call()


def test_the_file_describes_its_inputs(mini):
    """Run with NumPy, onnxruntime and the file's metadata alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(mini[0], providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["clay_config"])["dim"] == 192 and len(metadata["weights_sha256"]) == 64
    assert json.loads(metadata["contract"]).keys() == exporting.INPUTS.keys() | exporting.OUTPUTS.keys()
    sensor = json.loads(metadata["sensors"])["sentinel-2-l2a"]

    native = np.random.default_rng(0).integers(0, 4000, (2, 3, 20, 33)).astype(np.float32)
    names = ["nir", "red", "blue"]
    waves, mean, std = np.array([sensor["bands"][name] for name in names], np.float32).T
    week, hour = 2 * np.pi * 23 / 52, 2 * np.pi * 10 / 24
    place = np.radians([-3.4, 34.07])
    inputs = {
        "pixels": (native - mean[:, None, None]) / std[:, None, None],
        "time": np.tile([np.sin(week), np.cos(week), np.sin(hour), np.cos(hour)], (2, 1)),
        "latlon": np.tile([f(angle) for angle in place for f in (np.sin, np.cos)], (2, 1)),
        "gsd": np.array([sensor["gsd"]]),
        "waves": waves,
    }
    chip, patches = session.run(["chip", "patches"], {name: v.astype(np.float32) for name, v in inputs.items()})
    options = dict(bands=names, when="2023-06-10T10:30", lat=-3.4, lon=34.07, check=False)
    out = Clay.load(MINI).embed(native, "sentinel-2-l2a", **options)
    np.testing.assert_allclose(chip, out.chip, atol=1e-4)
    np.testing.assert_allclose(patches, out.patches, atol=1e-4)


def test_a_saved_program_equals_the_encoder(micro, tmp_path):
    encoder, program = micro
    write_pt2(program, tmp_path / "micro.pt2", {"weights": "micro"})
    run, inputs, outputs = open_pt2(tmp_path / "micro.pt2")
    assert largest_difference(encoder, run, SHAPES) < 1e-5
    assert inputs == exporting.INPUTS and outputs["chip"] == ("batch", 64) and outputs["patches"][3] == 64
    files = {"clay.json": ""}
    torch.export.load(tmp_path / "micro.pt2", extra_files=files)
    assert json.loads(files["clay.json"]) == {"weights": "micro"}
    encoder.cls_token.data.neg_()
    assert largest_difference(encoder, run, SHAPES[:1]) > 1e-3
    encoder.cls_token.data.neg_()


def test_the_released_frequencies_in_onnxruntime(micro, tmp_path):
    encoder, program = micro
    write_onnx(program, tmp_path / "micro.onnx", {})
    assert largest_difference(encoder, open_onnx(tmp_path / "micro.onnx")[0], SHAPES) < 1e-4


def test_a_file_that_differs_is_not_kept(monkeypatch, micro, tmp_path):
    path = tmp_path / "mini.pt2"
    path.write_bytes(b"an older export")
    monkeypatch.setattr(exporting, "trace", lambda encoder: micro[1])  # the graph of other weights
    with pytest.raises(ContractError, match="export: found shape"):
        export(str(MINI), str(path))
    assert path.read_bytes() == b"an older export" and len(list(tmp_path.iterdir())) == 1


def test_errors_come_before_tracing(monkeypatch, tmp_path):
    with pytest.raises(ContractError, match="out: found encoder.pb; expected a name that ends in .onnx or .pt2"):
        export(str(MINI), "encoder.pb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ContractError, match="found no package onnx, onnxscript, onnxruntime; .*clay-notebooks.export."):
        export("no-such-weights.ckpt", str(tmp_path / "a.onnx"))
