"""Live page: clay-mini itself in a browser, by ONNX Runtime Web, in one HTML file that opens from disk.

The page holds the model, the runtime, a reader of GeoTIFFs and a few chips. Nothing is fetched and nothing is sent.
"""

import base64
import gzip
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clay_lib.checkpoint import load_model
from clay_lib.clay import Clay
from clay_lib.data import Chips, world_chips
from clay_lib.datacube import latlon_code, time_code
from clay_lib.errors import ContractError
from clay_lib.files import CACHE, atomic_write
from clay_lib.heads.export import OpenEncoder, check_inputs, open_code, trace_module, unit_frequencies, write_onnx
from clay_lib.model import ClayMAE
from clay_lib.runs import gallery
from clay_lib.sensors import SENSORS

PACKAGES = {  # npm package: version, the files that the page takes
    "onnxruntime-web": ("1.30.0", ("dist/ort.wasm.min.js", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm")),
    "geotiff": ("3.0.5", ("dist-browser/geotiff.js",)),
}  # fmt: skip
SHOWN = {"sentinel-2-l2a": 8, "naip": 8, "sentinel-1-rtc": 4, "landsat-c2l2-sr": 4, "modis": 4}  # chips in the page
SIZE = 64  # pixels, their height and width: those of training, larger ones are reconstructed worse
INPUTS = {  # of the graph: axes, a dynamic one by its name
    "pixels": (1, "bands", "height", "width"),
    "time": (1, 4),
    "latlon": (1, 4),
    "gsd": (1,),
    "waves": ("bands",),
    "visible": ("visible",),
    "output_waves": ("outputs",),
}
PAGE_STYLE = Path(gallery.__file__).with_name("page.css")
OUTPUTS = ("chip", "patches", "reconstruction")


class LiveModel(nn.Module):
    """The autoencoder with the visible patches given, for one image of any size.

    pixels [1, C, H, W], time and latlon [1, 4], gsd [1], waves [C], visible [V] int64 indices of patches, row by row,
    output_waves [K] -> class token [1, D], visible patch tokens [1, V, D], reconstruction [1, L, K*P*P].
    The released model reconstructs the bands that it gets; here output_waves may name others.
    """

    def __init__(self, model: ClayMAE):
        super().__init__()
        self.encoder, self.decoder = OpenEncoder(model.encoder), model.decoder
        self.register_buffer("frequencies", unit_frequencies(self.decoder.dim, self.decoder.frequencies))

    def forward(self, pixels, time, latlon, gsd, waves, visible, output_waves) -> tuple[Tensor, Tensor, Tensor]:
        encoder, decoder = self.encoder.encoder, self.decoder
        tokens, h, w = self.encoder.embed(pixels, time, latlon, gsd, waves)
        tokens = torch.cat([encoder.cls_token, tokens.index_select(1, visible)], dim=1)
        tokens = encoder.transformer(tokens)  # [1, 1 + V, D]

        narrow = decoder.enc_to_dec(tokens)
        patches = decoder.mask_patch.expand(1, h * w, decoder.dim).index_copy(1, visible, narrow[:, 1:])
        patches = patches + open_code(h, w, self.frequencies * gsd, time, latlon)
        out = decoder.transformer(torch.cat([narrow[:, :1], patches], dim=1))[:, 1:]
        kernels, _ = decoder.embed_to_pixels.generate(output_waves)  # [K, P*P*D]
        kernels = kernels.view(-1, decoder.dim)  # [K*P*P, D]
        return tokens[:, 0], tokens[:, 1:], nn.functional.linear(out, kernels)


def example() -> dict[str, Tensor]:
    """Inputs of the graph for a random image of Sentinel-2: 10 bands, 24 x 40 pixels, 7 of 15 patches visible."""
    inputs = check_inputs("sentinel-2-l2a", 10, 1, 24, 40)
    visible = torch.randperm(15, generator=torch.Generator().manual_seed(0))[:7]
    return inputs | {"visible": visible, "output_waves": inputs["waves"][:4]}


def write_model(model: ClayMAE, path: Path) -> None:
    """The model as ONNX; weights of more than 1,000 numbers in float16, cast to float32 when the file is loaded."""
    write_onnx(trace_module(LiveModel(model), example(), INPUTS), path, {}, inputs=INPUTS, outputs=OUTPUTS)
    halve(path)


def halve(path: Path) -> None:
    """Store large float32 constants of an ONNX file as float16, each with a Cast behind it. Computation stays float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = (file := onnx.load(path)).graph
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1000:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(file, path)


def packages() -> dict[str, bytes]:
    """Files of the npm packages by their names, fetched once and kept under CACHE."""
    files = {}
    for name, (version, paths) in PACKAGES.items():
        folder = Path(CACHE) / "npm" / f"{name}-{version}"
        if not folder.is_dir():
            _fetch(f"{name}@{version}", folder)
        files |= {Path(path).name: (folder / path).read_bytes() for path in paths}
    return files


def _fetch(package: str, folder: Path) -> None:
    if not (npm := shutil.which("npm")):
        expected = "npm, which comes with Node.js, to fetch the runtime of the page once"
        raise ContractError("live page", "no npm", expected, "Node.js is not installed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        done = subprocess.run(
            [npm, "pack", "--silent", package], cwd=place, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            cause = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ContractError("live page", f"npm pack {package} failed", "the package from the registry", cause)
        shutil.unpack_archive(Path(place) / done.stdout.split()[-1], place, filter="data")
        os.replace(Path(place) / "package", folder)


def entries(chips: Chips, model: ClayMAE) -> list[dict]:
    """Chips as the page reads them: native numbers in base64, codes of time and place, and the class token."""
    clay = Clay(model)
    vectors = clay.embed(chips.pixels, chips.sensor, **chips.place_and_time, check=False).chip
    rows = zip(chips.pixels, chips.lat.tolist(), chips.lon.tolist(), chips.when.tolist(), vectors, strict=True)
    return [
        {
            "sensor": chips.sensor,
            "size": pixels.shape[-2:],
            "type": pixels.dtype.name,
            "native": base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode(),
            "time": time_code(when, 1)[0].tolist(),
            "latlon": latlon_code(lat, lon, 1)[0].tolist(),
            "where": f"{lat:.1f}, {lon:.1f}; {when[:16].replace('T', ' ')}",
            "vector": np.asarray(vector).round(5).tolist(),
        }
        for pixels, lat, lon, when, vector in rows
    ]


def sensors() -> dict[str, dict]:
    """What the page knows of each sensor: GSD in meters, [name, wavelength in um, mean, std] of its bands, those shown."""
    return {
        name: {
            "gsd": sensor.gsd,
            "decibel": sensor.decibel,
            "rgb": sensor.indices(sensor.rgb) if sensor.rgb else [0, 1 % len(sensor.bands), 0],
            "bands": [[b.name, b.wavelength, b.mean, b.std] for b in sensor.bands],
        }
        for name, sensor in SENSORS.items()
    }


def write_live(model: ClayMAE, path: Path, shown: Mapping[str, int] = SHOWN) -> Path:
    """The page in one file. shown: how many chips of each sensor are in it."""
    files = packages()
    with tempfile.TemporaryDirectory() as folder:
        write_model(model, graph := Path(folder) / "model.onnx")
        files["model.onnx"] = graph.read_bytes()
    chips = [
        entry
        for name, count in shown.items()
        for entry in entries(world_chips(name, count, split="test", size=SIZE), model)
    ]
    files["data.json"] = json.dumps(dict(sensors=sensors(), patch=model.config.patch_size, chips=chips)).encode()

    here = Path(__file__)
    packed = (
        f'<div hidden id="file-{name}">{base64.b64encode(gzip.compress(content, mtime=0)).decode()}</div>'  # parsed fastest
        for name, content in files.items()
    )
    text = here.with_name("live.html").read_text(encoding="utf-8")
    parts = {
        "/*STYLE*/": PAGE_STYLE.read_text(encoding="utf-8"),
        "<!--FILES-->": "\n".join(packed),
        "/*SCRIPT*/": here.with_name("live.js").read_text(encoding="utf-8"),
    }
    for place, part in parts.items():
        text = text.replace(place, part)
    return atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))


def live(weights: str = "clay-mini", out: str = "papermill_runs/gallery/live.html") -> int:
    """Write a page that runs the model in a browser: hide patches, drop bands, move a wavelength, find similar patches.

    Needs npm once, to fetch the runtime. The page opens from disk, without a network.

    Args:
        weights: a .safetensors or .ckpt file, or clay-mini; the page grows by three bytes a weight
        out: the page, one file
    """
    path = write_live(load_model(weights), Path(out))
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB. Open it in a browser.")
    return 0
