"""The fastest arithmetic that agrees with float32, found by measuring it on this machine.

Whether bfloat16 is three times faster than float32 or three hundred times slower depends on the processor, and cannot
be known from its name. So the candidates are timed on one block of the model and compared with float32 on one chip of
the first large batch. The choice is kept for the process and in the user's cache folder, by machine, version of torch,
model and shape.
"""

import copy
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional as F

from clay_lib.cluster import cores
from clay_lib.datacube import Datacube
from clay_lib.encoder import Encoder
from clay_lib.errors import ContractError
from clay_lib.files import read_json, write_json

# exact: the weights' own type, float32 unless they were loaded otherwise, at torch's highest precision. medium: float32
# whose products torch may round to bfloat16 or TF32. bfloat16, float16: autocast. int8: weights and inputs of products.
NAMES = ("exact", "medium", "bfloat16", "float16", "int8")
# Least cosine of any token with that of float32.
AGREEMENT = {"medium": 0.9999, "bfloat16": 0.9999, "float16": 0.9999, "int8": 0.995}
FORMER = {"float32": "exact", "32-true": "exact", "bf16-mixed": "bfloat16", "16-mixed": "float16"}  # names
MARGIN = 1.03  # a candidate must be faster than float32 by this factor
WORTH = 5e10  # FLOP; smaller batches take less time than a trial
TRIAL = 8e9  # FLOP of one timed call, at most
TRIAL_SECONDS = 0.3  # after which no further round begins

_chosen: dict[str, str] = {}
_converted: WeakKeyDictionary = WeakKeyDictionary()  # {encoder: {name: (version of its weights, its transformer)}}


def check_precision(precision: str | None) -> str:
    """auto, fast (auto, int8 included) or one of NAMES. None: the environment's CLAY_PRECISION, or else auto."""
    precision = precision or os.environ.get("CLAY_PRECISION") or "auto"
    precision = FORMER.get(precision, precision)
    if precision not in ("auto", "fast", *NAMES):
        raise ContractError("precision", repr(precision), f"auto, fast or one of {NAMES}", "a misspelling")
    return precision


@contextmanager
def arithmetic(encoder: Encoder, name: str) -> Iterator[None]:
    """Compute in this precision (one of NAMES) inside the `with` block."""
    transformer, half = encoder.transformer, getattr(torch, name) if name in ("bfloat16", "float16") else None
    on_cpu = encoder.cls_token.device.type == "cpu"
    try:
        # On a CPU, autocast converts the weights at every call: a sixth of the time of one chip in the large encoder.
        if name == "int8" or (half and on_cpu and not torch.is_grad_enabled()):
            encoder.transformer = _with_converted_weights(encoder, name)
        autocast = torch.autocast(encoder.cls_token.device.type, half, enabled=half is not None)
        with matmul_precision(name, encoder), autocast:
            yield
    finally:
        encoder.transformer = transformer


@contextmanager
def matmul_precision(name: str, encoder: Encoder | None = None) -> Iterator[None]:
    """Let torch round the inputs of float32 products for "medium", and never otherwise.

    The encoder's patch embedding stays in full precision, as it does under autocast.
    """
    set_precision, hooks = torch.set_float32_matmul_precision, []
    before, inside = torch.get_float32_matmul_precision(), "medium" if name == "medium" else "highest"
    if encoder is not None and inside == "medium":
        layer = encoder.patch_embedding
        hooks.append(layer.register_forward_pre_hook(lambda *_: set_precision("highest")))
        hooks.append(layer.register_forward_hook(lambda *_: set_precision("medium")))
    set_precision(inside)
    try:
        yield
    finally:
        set_precision(before)
        for hook in hooks:
            hook.remove()


def training_device(accelerator: str) -> torch.device:
    """The device that Lightning trains on with this accelerator."""
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "mps" if accelerator == "mps" else "cpu")


def lightning_precision(name: str) -> str:
    """Lightning's name of a precision."""
    if name == "int8":
        raise ContractError("precision", "int8", "another one for training", "int8 weights have no gradients")
    return {"bfloat16": "bf16-mixed", "float16": "16-mixed"}.get(name, "32-true")


def choose(
    encoder: Encoder, cube: Datacube, precision: str | None = None, *, training: bool = False, batches: int = 1
) -> str:
    """The precision, one of NAMES, for batches like this one. auto and fast are decided by a trial, and printed once.

    training: time the backward pass too. batches: how many such batches are known to follow, this one included.
    """
    limit_threads()
    precision = check_precision(precision)
    if precision not in ("auto", "fast"):
        return precision
    (B, _, H, W), P = cube.pixels.shape, encoder.patch_size
    N, device = 1 + -(-H // P) * -(-W // P), encoder.cls_token.device
    if encoder.cls_token.dtype != torch.float32 or device.type not in ("cpu", "cuda"):
        return "exact"
    key = _key(encoder, (cube.pixels.shape[1], N), precision, training)
    if key in _chosen:
        return _chosen[key]
    if B * batches * len(encoder.transformer.layers) * _block_flops(encoder, N) < WORTH:
        return "exact"
    path = cache_file()
    found = read_json(path).get(key)
    if found is None or found["choice"] not in NAMES:
        found = _trial(encoder, cube, N, candidates(device, precision, training), training)
        with suppress(OSError):  # a home that cannot be written
            write_json(path, read_json(path) | {key: found})
    _chosen[key] = found["choice"]
    print(f"precision: {_summary(found, device)}")
    return found["choice"]


@cache  # once, so that a number set afterwards stays
def limit_threads() -> None:
    """Let torch use at most as many threads as this process has cores.

    torch counts the machine's, also in a container or a job that may use few of them: with 64 threads on a share of
    half a core, embedding took twice as long as with one.
    """
    if torch.get_num_threads() > (most := cores()):
        torch.set_num_threads(most)


def candidates(device: torch.device, precision: str, training: bool) -> list[str]:
    names = ["medium", "bfloat16"] + ["float16"] * (device.type == "cuda")
    return names + ["int8"] * (precision == "fast" and not training and device.type == "cpu")


def _trial(encoder: Encoder, cube: Datacube, N: int, names: list[str], training: bool) -> dict:
    """{"choice", "times float32": {name: speed relative to float32}, "cosine": {name: least cosine of a token}}."""
    chips = max(1, min(len(cube), int(TRIAL / _block_flops(encoder, N))))
    tokens = N
    while _block_flops(encoder, tokens) > TRIAL:
        tokens = int(0.9 * tokens)
    one = cube[:1]
    with torch.no_grad(), arithmetic(encoder, "exact"):
        reference = encoder(one, mask_ratio=0.0, shuffle=False).tokens  # [1, 1+V, D]
    block_input = reference[:, :tokens].repeat(chips, 1, 1)
    seconds = measure(encoder, block_input, ["exact", *names], training)
    ratios = {name: seconds["exact"] / seconds[name] for name in seconds}
    found = {"choice": "exact", "times float32": ratios, "cosine": {}}
    for name in sorted(ratios, key=ratios.get, reverse=True):
        if ratios[name] <= MARGIN:  # exact itself, at the latest
            break
        with torch.no_grad(), arithmetic(encoder, name):
            tokens = encoder(one, mask_ratio=0.0, shuffle=False).tokens
        found["cosine"][name] = float(F.cosine_similarity(tokens.float(), reference, dim=-1).min())
        if found["cosine"][name] >= AGREEMENT[name]:
            found["choice"] = name
            break
    return found


def measure(encoder: Encoder, x: torch.Tensor, names: list[str], training: bool) -> dict[str, float]:
    """{name: least seconds of the first block on tokens x [B, N, D]}, timed in turn; names that torch does not offer
    here, or that are far slower, are left out."""

    def seconds(name: str, tokens: torch.Tensor) -> float:
        with torch.set_grad_enabled(training), arithmetic(encoder, name):
            attention, feed_forward = encoder.transformer.layers[0]
            tokens = tokens.clone().requires_grad_(training)
            began = _now(tokens.device)
            out = tokens + attention(tokens)
            out = out + feed_forward(out)
            if training:
                inputs = [tokens, *(p for p in encoder.transformer.layers[0].parameters() if p.requires_grad)]
                torch.autograd.grad(out.float().sum(), inputs)
            return _now(tokens.device) - began

    few, limits = x[:1, :2], {}
    for name in names:  # two tokens first: in software, bfloat16 may take minutes for all of them
        with suppress(RuntimeError, NotImplementedError, ImportError):
            seconds(name, few)
            limits[name] = seconds(name, few)
    names = [name for name in limits if limits[name] < 10 * limits["exact"] + 1e-3]
    least, began = dict.fromkeys(names, float("inf")), time.perf_counter()
    for round_number in range(24):
        for name in names:
            least[name] = min(least[name], seconds(name, x))
        if round_number >= 2 and time.perf_counter() - began > TRIAL_SECONDS:
            break
    return least


def cache_file() -> Path:
    """Choices of earlier processes, {key: result of a trial}."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clay" / "precision.json"


@cache
def processor() -> str:
    """Name of the CPU, and a hash of its instruction sets: virtual machines of many kinds share one name."""
    lines = {}
    with suppress(OSError):
        pairs = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        lines = {name.strip(): value.strip() for name, _, value in pairs}
    name = lines.get("model name") or platform.processor() or platform.machine()
    return f"{name} {sha256(lines.get('flags', '').encode()).hexdigest()[:6]}"


def _key(encoder: Encoder, shape: tuple[int, int], precision: str, training: bool) -> str:
    device, norm = encoder.cls_token.device, encoder.transformer.norm
    attention, feed_forward = encoder.transformer.layers[0]
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    sample = torch.cat([encoder.cls_token.flatten(), norm.weight, attention.to_qkv.weight[0]]).detach()
    weights = "any" if training else sha256(sample.cpu().numpy().tobytes()).hexdigest()[:8]
    sizes = [len(encoder.transformer.layers), attention.heads, *attention.to_qkv.weight.shape]
    sizes.append(feed_forward.net[1].out_features)
    return json.dumps([machine, torch.get_num_threads(), torch.__version__, sizes, shape, weights, precision, training])


def _block_flops(encoder: Encoder, N: int) -> int:
    """Operations of one block's products on N tokens of one chip."""
    attention, feed_forward = encoder.transformer.layers[0]
    inner, hidden = attention.to_out.in_features, feed_forward.net[1].out_features
    return 2 * N * (4 * inner + 2 * hidden) * encoder.dim + 4 * N * N * inner


def _with_converted_weights(encoder: Encoder, name: str):
    """The encoder's transformer with the weights of its linear layers in this precision; converted once."""
    version = sum(parameter._version for parameter in encoder.transformer.parameters())  # changed by every update
    known = _converted.setdefault(encoder, {})
    if known.get(name, (None,))[0] != version:
        original = encoder.transformer
        converted = _int8(original) if name == "int8" else _half(original, getattr(torch, name))
        known[name] = version, converted.eval()
    return known[name][1]


def _int8(transformer: torch.nn.Module) -> torch.nn.Module:
    from torch.ao.quantization import quantize_dynamic  # deprecated; when torch drops it, int8 is not offered

    with warnings.catch_warnings(action="ignore"):
        return quantize_dynamic(transformer, {torch.nn.Linear}, dtype=torch.qint8)


@torch.inference_mode(False)
@torch.no_grad()
def _half(transformer: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """All else is shared with the original: its norms stay in float32, as under autocast."""
    shared = {id(parameter): parameter for parameter in transformer.parameters()}
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            for weight in module.parameters():
                shared[id(weight)] = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    return copy.deepcopy(transformer, shared)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _summary(found: dict, device: torch.device) -> str:
    ratios, choice = found["times float32"], found["choice"]
    where = "this GPU" if device.type == "cuda" else "this CPU"
    others = [f"{name} {ratio:.2f}x" for name, ratio in ratios.items() if name not in ("exact", choice)]
    others += [f"{name} cosine {c:.5f}" for name, c in found["cosine"].items()]
    if choice == "exact":
        return f"exact float32; nothing that agrees is faster on {where} ({', '.join(others)})"
    return f"{choice}, {ratios[choice]:.1f}x float32 on {where} ({', '.join(others)}); exact with precision='exact'"
