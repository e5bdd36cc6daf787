"""An exported encoder in ONNX Runtime, with the interface of `Encoder`: embeds, and neither masks nor trains."""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from clay_lib.datacube import Datacube
from clay_lib.encoder import MIN_VALID, Encoded, check_share, fill_holes, random_mask
from clay_lib.errors import ContractError
from clay_lib.files import find_weights
from clay_lib.model import ClayConfig, ClayMAE

Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]  # inputs by name -> chip [B, D], patches [B, h, w, D]


class OnnxEncoder(nn.Module):
    """All patches of a batch through ONNX Runtime on the CPU, in float32.

    The weights are in the runtime's own memory; `file`, the hash of the weights they were exported from, stands for
    them in the state dict.
    """

    def __init__(self, run: Run, config: ClayConfig, weights_sha256: str):
        super().__init__()
        self.run, self.patch_size, self.dim, self.frequencies = run, config.patch_size, config.dim, config.frequencies
        self.transformer = None  # has no other precision
        self.register_buffer("cls_token", torch.zeros(1, 1, config.dim))  # its device and dtype are those of the model
        self.register_buffer("file", torch.frombuffer(bytearray.fromhex(weights_sha256), dtype=torch.uint8))

    def forward(
        self,
        cube: Datacube,
        mask_ratio: float = 0.0,
        shuffle: bool = False,
        *,
        layers: Sequence[int] = (),
        min_valid: float = MIN_VALID,
    ) -> Encoded:
        """As `Encoder.forward`. ContractError for what the file cannot do: masks, inner layers, left-out patches."""
        if mask_ratio or shuffle or len(layers):
            found = "layers" if len(layers) else "masked patches"
            raise _other_weights(found, "reconstruction, training and inner layers need the model itself")
        pixels = cube.pixels
        if cube.valid is not None:
            pixels, share = fill_holes(pixels, cube.valid, self.patch_size)  # share: [B, L]
            if not ((share > 0) & (share >= check_share(min_valid) - 1e-6)).all():
                raise _other_weights("chips with patches to leave out", "clouds, nodata or the edge of a scene")
        gsd = torch.as_tensor(cube.gsd, dtype=torch.float32).reshape(1)
        inputs = {"pixels": pixels, "time": cube.time, "latlon": cube.latlon, "gsd": gsd, "waves": cube.waves}
        chip, patches = self.run({name: tensor.float() for name, tensor in inputs.items()})
        B, h, w, _ = patches.shape
        visible, masked, mask = random_mask(B, h * w, mask_ratio=0.0, shuffle=False)
        tokens = torch.cat([chip[:, None], patches.flatten(1, 2)], dim=1)  # [B, 1+L, D]
        return Encoded(tokens, visible, masked, mask, (h, w), None, None, {})


def load_onnx(path: str | Path) -> ClayMAE:
    """A file that `clay export` wrote, as a model without a decoder. Needs the extra `export`.

    Raises ContractError for a missing or damaged file, and for one that was exported by something else.
    """
    path = find_weights(path)
    session = open_session(path)
    metadata = session.get_modelmeta().custom_metadata_map
    if "clay_config" not in metadata:
        cause = "an ONNX file of another model or tool: write one with `clay export WEIGHTS encoder.onnx`"
        raise ContractError("weights", f"{path} without a configuration of Clay", "a file of `clay export`", cause)
    config = ClayConfig(**json.loads(metadata["clay_config"]))
    with torch.device("meta"):
        model = ClayMAE(config, encoder_only=True)
    model.encoder = OnnxEncoder(runner(session), config, metadata["weights_sha256"])
    return model.eval()


def open_session(path: str | Path):
    """onnxruntime.InferenceSession on the CPU, with as many threads as torch."""
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own, one class for each of its codes
        cause = "a wrong name" if not Path(path).is_file() else "an interrupted download, or another kind of file"
        raise ContractError("weights", f"{path}: {error}", "a complete ONNX file", cause) from None


def runner(session) -> Run:
    """The session as a function of tensors."""
    names = [output.name for output in session.get_outputs()]

    def run(tensors: Mapping[str, Tensor]) -> list[Tensor]:
        arrays = session.run(names, {name: tensor.cpu().numpy() for name, tensor in tensors.items()})
        return [torch.from_numpy(array) for array in arrays]

    return run


def need(*packages: str) -> None:
    """ContractError if any of these is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        expected = 'the extra "export": pip install "clay-notebooks[export]", or -e ".[export]" in a checkout'
        cause = "an install without extras; .pt2 files need none of them"
        raise ContractError("export", f"no package {', '.join(missing)}", expected, cause)


def _other_weights(found: str, cause: str) -> ContractError:
    expected = "whole chips to embed; for the rest load the weights that the ONNX file was exported from"
    return ContractError("model", f"an ONNX encoder and {found}", expected, cause)
