"""Export of the encoder to other runtimes, as ONNX or as a torch.export program, with dynamic sizes.

Both compute `Encoder.forward` with nothing masked and no holes; the file describes its inputs and outputs.
"""

import json
import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbols
from torch.nn import functional as F

from clay_lib.checkpoint import load_model
from clay_lib.datacube import Datacube, latlon_code, time_code
from clay_lib.encoder import Encoder
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, find_weights, sha256
from clay_lib.model import ClayConfig
from clay_lib.onnx_encoder import Run, need, open_session, runner
from clay_lib.position import METADATA, angular_frequencies
from clay_lib.sensors import SENSORS

OPSET = 18  # of 2022, which older runtimes read too
INPUTS = {  # name: axes, a dynamic one by its name
    "pixels": ("batch", "bands", "height", "width"),
    "time": ("batch", 4),
    "latlon": ("batch", 4),
    "gsd": (1,),
    "waves": ("bands",),
}
OUTPUTS = {"chip": ("batch", "dim"), "patches": ("batch", "rows", "columns", "dim")}
CHECKS = (  # sensor, bands, batch, height, width: on which a written file is tested; gsd from 0.1 to 500 m
    ("sentinel-2-l2a", 10, 1, 64, 64),
    ("sentinel-1-rtc", 2, 2, 40, 24),
    ("modis", 7, 1, 33, 50),
    ("naip", 4, 3, 9, 17),
    ("linz", 1, 2, 1, 1),
)
CONTRACT = {
    "pixels": "(native - mean) / std of each band, see sensors; radar: 10 log10 of linear power first; no NaN",
    "time": "sin w, cos w, sin h, cos h; w = 2 pi ISO week / 52, h = 2 pi hour / 24; zeros: unknown",
    "latlon": "sin lat, cos lat, sin lon, cos lon of the chip's center; zeros: unknown",
    "gsd": "meters per pixel, one for the batch",
    "waves": "central wavelength of each band, micrometers, in the order of the bands",
    "chip": "class token",
    "patches": "patch tokens, row by row; the image is padded to complete patches by repeating its last pixels",
}

Axes = dict[str, tuple[int | str, ...]]


def unit_frequencies(dim: int, frequencies: str) -> Tensor:
    """Angular frequencies of the position code at 1 m, [(dim - 8) / 4].

    Stored in the file: at 500 m the angles are so large that another runtime's power function would change them.
    """
    return angular_frequencies((dim - METADATA) // 4, 1.0, frequencies=frequencies)


class OpenEncoder(nn.Module):
    """`Encoder` on plain tensors, without comparisons of sizes, since these would fix them in the graph.

    pixels [B, C, H, W], time [B, 4], latlon [B, 4], gsd [1] and waves [C] -> chip [B, D], patches [B, h, w, D].
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("frequencies", unit_frequencies(encoder.dim, encoder.frequencies))

    def forward(self, pixels: Tensor, time: Tensor, latlon: Tensor, gsd: Tensor, waves: Tensor):
        tokens, h, w = self.embed(pixels, time, latlon, gsd, waves)
        tokens = torch.cat([self.encoder.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = self.encoder.transformer(tokens)
        return tokens[:, 0], _copy(tokens[:, 1:]).view(tokens.shape[0], h, w, self.encoder.dim)

    def embed(self, pixels: Tensor, time: Tensor, latlon: Tensor, gsd: Tensor, waves: Tensor):
        """Patch tokens with their position codes [B, L, D], and the grid's rows h and columns w, L = h w."""
        P, D = self.encoder.patch_size, self.encoder.dim
        B, C, H, W = pixels.shape
        h, w = (H + P - 1) // P, (W + P - 1) // P

        # padding of unknown size: rows and columns past the edge repeat the last ones
        down, right = (torch.arange(n * P).clamp(max=side - 1) for n, side in ((h, H), (w, W)))
        padded = pixels.index_select(2, down).index_select(3, right)
        # einops and reshape would fix whether a size is 1; a view of a copy does not
        patches = _copy(padded.view(B, C, h, P, w, P).permute(0, 2, 4, 1, 3, 5)).view(B, h * w, C * P * P)
        kernels, bias = self.encoder.patch_embedding.generate(waves)
        kernels = _copy(kernels.view(C, D, P * P).transpose(0, 1)).view(D, C * P * P)
        tokens = F.linear(patches, kernels, bias)  # [B, L, D]

        return tokens + open_code(h, w, self.frequencies * gsd, time, latlon), h, w


def open_code(h: int, w: int, frequencies: Tensor, time: Tensor, latlon: Tensor) -> Tensor:
    """`position_code` [B, h w, D] of a grid of unknown size, from angular frequencies times gsd [(D - 8) / 4]."""
    columns, rows = torch.arange(w).expand(h, w), torch.arange(h)[:, None].expand(h, w)
    x, y = (_copy(n).view(h * w, 1) * frequencies for n in (columns, rows))
    grid = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    metadata = torch.cat([time, latlon], dim=1)[:, None].expand(-1, h * w, -1)
    return torch.cat([grid.expand(time.shape[0], -1, -1), metadata], dim=2)


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def trace(encoder: Encoder) -> ExportedProgram:
    """The encoder as a graph with dynamic batch, bands, height and width, each from 1."""
    return trace_module(OpenEncoder(encoder), check_inputs(*CHECKS[1]), INPUTS)


def trace_module(module: nn.Module, example: Mapping[str, Tensor], inputs: Mapping[str, tuple]) -> ExportedProgram:
    """A module as a graph. inputs: the axes of each input, as in INPUTS."""
    dynamic = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in _dynamic_axes(inputs).items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operation that other runtimes do not have
    try:  # oblivious: a size of the example that is not 1 may still become 1
        with torch.no_grad(), symbols.patch(backed_size_oblivious=True):
            return torch.export.export(module.eval(), (), example, dynamic_shapes=dynamic)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def check_inputs(sensor: str, bands: int, batch: int, height: int, width: int) -> dict[str, Tensor]:
    """Inputs of the given size for a sensor: normal random pixels, its GSD and the first of its wavelengths."""
    sensor = SENSORS[sensor]
    shape = (batch, bands, height, width)
    return {
        "pixels": torch.randn(shape, generator=torch.Generator().manual_seed(0)),
        "time": time_code("2023-06-10T10:30", batch),
        "latlon": latlon_code(-3.4, 34.07, batch),
        "gsd": torch.tensor([float(sensor.gsd)]),
        "waves": torch.from_numpy(sensor.waves()[:bands]),
    }


@torch.no_grad()
def largest_difference(encoder: Encoder, run: Run, checks=CHECKS) -> float:
    """Largest absolute difference between the outputs of the encoder and of `run` in all checks; NaN if either is."""
    worst = torch.tensor(0.0)
    for check in checks:
        inputs = check_inputs(*check)
        encoded = encoder(Datacube(**inputs), mask_ratio=0.0, shuffle=False)
        for expected, output in zip((encoded.tokens[:, 0], encoded.patches()), run(inputs), strict=True):
            if expected.shape != output.shape:
                cause = "a size of the example was fixed in the graph: another version of torch or of the exporter"
                raise ContractError("export", f"shape {tuple(output.shape)} on {check}", tuple(expected.shape), cause)
            worst = torch.maximum(worst, (expected - output).abs().max())
    return worst.item()


def write_pt2(program: ExportedProgram, path: str | Path, description: Mapping[str, str]) -> None:
    """A file for `torch.export.load(path).module()(**inputs)`, with the description as its extra file clay.json."""
    torch.export.save(program, path, extra_files={"clay.json": json.dumps(dict(description))})


def open_pt2(path: str | Path) -> tuple[Run, Axes, Axes]:
    """(function that runs the file, its inputs, its outputs)."""
    program = torch.export.load(path)
    nodes = [node for node in program.graph.nodes if hasattr(node.meta.get("val"), "shape")]
    shapes = {node.name: node.meta["val"].shape for node in nodes}
    symbol = dict(zip(map(str, shapes["pixels"]), INPUTS["pixels"], strict=True))  # the graph's name: that in INPUTS

    def axes(node: str) -> tuple[int | str, ...]:
        texts = (re.sub(r"\w+", lambda word: symbol.get(word[0], word[0]), str(n)) for n in shapes[node])
        return tuple(int(text) if text.isdecimal() else text for text in texts)

    inputs = {name: axes(name) for name in program.graph_signature.user_inputs}
    outputs = dict(zip(OUTPUTS, map(axes, program.graph_signature.user_outputs), strict=True))
    module = program.module()
    return lambda tensors: module(**tensors), inputs, outputs


def write_onnx(
    program: ExportedProgram, path: str | Path, description: Mapping[str, str], *, inputs=INPUTS, outputs=OUTPUTS
) -> None:
    """One file of opset OPSET, weights inside, the description in metadata_props. Needs the extra `export`.

    inputs, outputs: names and axes, as in INPUTS and OUTPUTS.
    """
    need("onnx", "onnxscript")
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)  # silences a missing torchvision and constants that are not folded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inputs that share an axis share its name, as intended
            options = dict(output_names=list(outputs), dynamic_shapes=_dynamic_axes(inputs))
            onnx = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **options)
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
    onnx.model.metadata_props.update(description)
    onnx.save(path, external_data=False)


def open_onnx(path: str | Path) -> tuple[Run, Axes, Axes]:
    """(function that runs it in onnxruntime on the CPU, the file's inputs, its outputs). Needs the extra `export`."""
    session = open_session(path)
    inputs, outputs = ({v.name: tuple(v.shape) for v in side} for side in (session.get_inputs(), session.get_outputs()))
    return runner(session), inputs, outputs


FORMATS = {  # suffix: function that writes, function that opens, the largest difference from torch allowed
    ".onnx": (write_onnx, open_onnx, 1e-4),
    ".pt2": (write_pt2, open_pt2, 1e-5),
}


def export(weights: str, out: str) -> int:
    """Write the encoder for other runtimes, with dynamic batch, bands, height and width, and check the file.

    Example: clay export clay-v1.5.ckpt encoder.onnx

    Args:
        weights: a .ckpt or .safetensors file, or hub:owner/name/path
        out: the file to write; .onnx for ONNX runtimes, .pt2 for torch.export.load
    """
    path = Path(out)
    if path.suffix not in FORMATS:
        raise ContractError("out", out, f"a name that ends in {' or '.join(FORMATS)}", "another format")
    write, open_file, limit = FORMATS[path.suffix]
    if path.suffix == ".onnx":
        need("onnx", "onnxscript", "onnxruntime")  # before minutes of tracing
    model = load_model(weights)
    lines: list[str] = []

    def fill(partial: Path) -> None:
        write(trace(model.encoder), partial, describe(model.config, find_weights(weights)))
        run, *sides = open_file(partial)
        worst = largest_difference(model.encoder, run)
        if not worst <= limit:
            cause = "another version of torch, of the exporter or of the runtime than in constraints.txt"
            raise ContractError("export", f"a difference of {worst:.1e} from torch", f"at most {limit:.0e}", cause)
        for side, tensors in zip(("input", "output"), sides, strict=True):
            lines.extend(f"  {side:<7}{name:<8} float32 [{', '.join(map(str, ax))}]" for name, ax in tensors.items())
        lines.append(f"  largest difference from torch on {len(CHECKS)} shapes: {worst:.1e}")

    atomic_write(path, fill)
    print(f"{path}: the encoder of {weights}, {path.stat().st_size / 1e6:.1f} MB", *lines, sep="\n")
    return 0


def describe(config: ClayConfig, weights: Path) -> dict[str, str]:
    """Metadata for users without this library: sizes, hash of the weights, meaning of the inputs, and sensors."""
    sensors = {
        name: {"gsd": s.gsd, "decibel": s.decibel, "bands": {b.name: [b.wavelength, b.mean, b.std] for b in s.bands}}
        for name, s in SENSORS.items()
    }
    return {
        "clay_config": json.dumps(asdict(config)),
        "weights": weights.name,
        "weights_sha256": sha256(weights),
        "contract": json.dumps(CONTRACT),
        "sensors": json.dumps(sensors),  # band: wavelength in um, mean, std
        "torch": torch.__version__,
    }


def _dynamic_axes(inputs: Mapping[str, tuple]) -> dict[str, dict[int, str]]:
    return {name: {i: axis for i, axis in enumerate(axes) if isinstance(axis, str)} for name, axes in inputs.items()}
