"""Timings on this machine: ratios within one run, since machines differ and are shared."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from clay_lib.areas.neighbors import build_index, nearest
from clay_lib.data.makers import MakerOutput, WorldMaker
from clay_lib.data.store import ChipStore, write_chips
from clay_lib.datacube import Datacube, make_datacube
from clay_lib.datamodule import Batch, noise_batch
from clay_lib.errors import ContractError
from clay_lib.files import write_json
from clay_lib.heads.export import trace, write_onnx
from clay_lib.loss import reconstruction_loss
from clay_lib.model import ClayConfig, ClayMAE
from clay_lib.onnx_encoder import load_onnx, need
from clay_lib.precision import arithmetic, candidates, choose, matmul_precision, measure, processor
from clay_lib.sensors import SENSORS
from clay_lib.teacher import Teacher
from clay_lib.training import ClayModule

SENSOR = "sentinel-2-l2a"
AGREEMENT = 0.9999  # cosine of a device's float32 tokens with the CPU's, at least
# The released code computes in "medium", so that column times its arithmetic here. Its own figure, on two cores with
# AMX (one chip of 256 px, large encoder): 1.26 s, where this encoder took 2.6 s in exact and 0.60 s in bfloat16.


@dataclass(frozen=True)
class Workload:
    """What is timed, and at which size."""

    size: str  # of the model, or several separated by commas
    batch: int  # chips
    pixels: int  # a side
    repeats: int  # timed calls, after one to warm up
    count: int = 0  # chips in the store, vectors
    device: str = "cpu"


class Row(NamedTuple):
    """A line of the output and an entry of the JSON."""

    name: str
    seconds: float
    note: str  # ratios


def bench(
    what: str = "",
    *,
    size: str = "",
    batch: int = 0,
    pixels: int = 0,
    repeats: int = 0,
    count: int = 0,
    device: str = "cpu",
    out: str = "",
) -> int:
    """Time parts of the project on this machine; print times and ratios.

    Example: clay bench embed,train --device cuda --out cuda.json

    Args:
        what: any of these, separated by commas; empty: all but chips and search, on a GPU embed and train. embed: the
            encoder in each precision, beside the peak of a matrix product. train: a training step likewise. onnx: the
            exported encoder in ONNX Runtime beside torch. teacher: a training step with cached targets, and with a
            live DINOv2 large (random weights) at 518 px. chips: a chip store, written and read. search: synthetic
            vectors, exact and with an index, in processor time
        size: tiny, small, base or large, several for embed, train and onnx; empty: tiny,base,large for embed, tiny,base
            for train and onnx, base for chips, large for teacher
        batch: chips; 0: 32 on a GPU, or else 1 for embed and onnx, 2 for train, 4 for teacher, 32 for chips
        pixels: a side of a chip; 0: 64 and 256 for onnx, 128 for chips, 256 for the others
        repeats: timed calls of each, after one to warm up; queries of search; 0: 2 to 20
        count: chips in the store, vectors for search; 0: 512, 10 million
        device: cpu or cuda, of embed and train; on cuda also compiled, after a comparison with the CPU's float32
        out: a JSON file for the results; empty: none
    """
    names = (what or ("embed,train" if device == "cuda" else "embed,train,onnx,teacher")).split(",")
    if unknown := sorted(set(names) - set(BENCHES)):
        raise ContractError("what", unknown, f"some of {list(BENCHES)}", "a misspelled name")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ContractError("device", device, "cpu, or cuda where there is a GPU", "no GPU, or torch without CUDA")
    options = dict(size=size, batch=batch, pixels=pixels, repeats=repeats, count=count, device=device)
    machine = torch.cuda.get_device_name() if device == "cuda" else processor()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    results = []
    for name in names:
        run, workload = BENCHES[name]
        on_gpu = device == "cuda" and name in ("embed", "train")
        gpu = dict(batch=32, repeats=10, size="tiny,base,large") if on_gpu else {}
        workload = replace(workload, **gpu | {key: value for key, value in options.items() if value})
        for row in run(workload):
            print(f"{row.name:<36}{1000 * row.seconds:9.1f} ms   {row.note}", flush=True)
            results.append({"bench": name, **row._asdict()})
    if out:
        threads = torch.get_num_threads()
        write_json(out, {"machine": machine, "threads": threads, "torch": torch.__version__, "results": results})
    return 0


def median_seconds(work: Callable[[], object], *, repeats: int) -> float:
    """Median wall time of one call, after one call to warm up."""
    work()
    return median(_seconds(work, torch.device("cpu")) for _ in range(repeats))


def paired_seconds(
    first: Callable[[], object], second: Callable[[], object], *, repeats: int, clock=time.perf_counter
) -> tuple[float, float, float]:
    """(median seconds of each, median of second / first), in turn, so that a busy machine is busy for both.

    The order alternates from pair to pair; each is called once before, to warm up.
    """
    works, seconds = (first, second), np.empty((repeats, 2))
    for work in works:
        work()
    for pair in range(repeats):
        for k in (0, 1) if pair % 2 == 0 else (1, 0):
            start = clock()
            works[k]()
            seconds[pair, k] = clock() - start
    return float(median(seconds[:, 0])), float(median(seconds[:, 1])), float(median(seconds[:, 1] / seconds[:, 0]))


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in a call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def step_flops(config: ClayConfig, sensor: str, *, batch: int, pixels: int) -> int:
    """Operations of one training step, forward and backward, on `batch` chips."""

    def step(model: ClayMAE, cube: Datacube) -> None:
        out = model(cube)
        (out.reconstruction.sum() + out.representation.sum()).backward()

    return _count_on_meta(step, config, sensor, batch, pixels)


def embed_flops(config: ClayConfig, sensor: str, *, batch: int, pixels: int) -> int:
    """Operations of encoding `batch` chips with nothing masked."""
    encode = lambda model, cube: model.encoder(cube, mask_ratio=0.0, shuffle=False)  # noqa: E731
    return _count_on_meta(encode, config, sensor, batch, pixels)


def _count_on_meta(work: Callable, config: ClayConfig, sensor: str, batch: int, pixels: int) -> int:
    """On the meta device, without memory; on a CPU, torch does not count attention."""
    with torch.device("meta"):
        model, waves = ClayMAE(config), torch.empty(len(SENSORS[sensor].bands))
        codes = torch.empty(batch, 4)
        cube = Datacube(torch.empty(batch, len(waves), pixels, pixels), codes, codes, torch.empty(()), waves)
    return count_flops(lambda: work(model, cube))


# ---- the model in each precision


def _bench_embed(w: Workload) -> Iterator[Row]:
    for size in w.size.split(","):
        model = _model(size)
        cube = noise_batch(SENSOR, w.batch, w.pixels).cube
        flops = embed_flops(model.config, SENSOR, batch=w.batch, pixels=w.pixels)
        if w.device == "cuda":
            yield _agreement(size, model, cube)
        model, cube = model.to(w.device), cube.to(w.device)

        def embed(encoder=model.encoder, cube=cube) -> None:
            with torch.inference_mode():
                encoder(cube, mask_ratio=0.0, shuffle=False)

        auto = choose(model.encoder, cube, "auto", batches=10**6)
        yield from _in_each_precision(f"{size} encoder, {w.batch} x {w.pixels} px", model, embed, flops, auto, w)


def _bench_train(w: Workload) -> Iterator[Row]:
    for size in w.size.split(","):
        module = ClayModule(ClayConfig.named(size), cached=True).to(w.device)
        batch = noise_batch(SENSOR, w.batch, w.pixels, module.model.config.teacher_dim).to(w.device)
        step = training_step(lambda batch, module=module: module.losses(batch, training=True)["loss"], module)
        flops = step_flops(module.model.config, SENSOR, batch=w.batch, pixels=w.pixels)
        auto = choose(module.model.encoder, batch.cube, "auto", training=True, batches=10**6)
        name = f"{size} step, {w.batch} x {w.pixels} px"
        yield from _in_each_precision(name, module.model, lambda s=step, b=batch: s(b), flops, auto, w, training=True)


def _bench_onnx(w: Workload) -> Iterator[Row]:
    need("onnx", "onnxscript", "onnxruntime")
    for size in w.size.split(","):
        model = _model(size)
        with TemporaryDirectory() as folder:
            path = Path(folder, "encoder.onnx")
            write_onnx(
                trace(model.encoder), path, {"clay_config": json.dumps(asdict(model.config)), "weights_sha256": "00"}
            )
            other = load_onnx(path)
        for pixels in [w.pixels] if w.pixels else (64, 256):
            cube = noise_batch(SENSOR, w.batch, pixels).cube
            embed = lambda m, cube=cube: m.encoder(cube, mask_ratio=0.0, shuffle=False)  # noqa: E731
            with torch.inference_mode(), matmul_precision("exact"):
                own, others, ratio = paired_seconds(lambda: embed(model), lambda: embed(other), repeats=w.repeats)  # noqa: B023
            name = f"{size} encoder, {w.batch} x {pixels} px"
            yield Row(f"{name}, torch exact", own, f"{w.batch / own:8.2f} chips/s")
            yield Row(f"{name}, ONNX Runtime", others, f"{1 / ratio:5.2f} x torch, {w.batch / others:8.2f} chips/s")


def _in_each_precision(
    name: str, model: ClayMAE, work: Callable, flops: int, auto: str, w: Workload, *, training: bool = False
) -> Iterator[Row]:
    """The least time in exact, and in each candidate relative to it; on a GPU the chosen one compiled too."""
    device = torch.device(w.device)
    tokens = torch.randn(1, 64, model.config.dim, device=device)
    names = [*measure(model.encoder, tokens, ["exact", *candidates(device, "fast", training)], training)]
    least = dict.fromkeys(names, float("inf"))

    def run(precision: str) -> None:
        with arithmetic(model.encoder, precision):
            seconds = _seconds(work, device)
        least[precision] = min(least[precision], seconds)

    for precision in names:  # first calls are slower
        run(precision)
    least |= dict.fromkeys(names, float("inf"))
    for _ in range(w.repeats):
        for precision in names:
            run(precision)
    peaks = {precision: matrix_rate(device, precision) for precision in names}
    if device.type == "cuda":
        model.compile() if training else model.encoder.compile()
        with arithmetic(model.encoder, auto):
            seconds = [_seconds(work, device) for _ in range(w.repeats + 1)]
        least[f"{auto}, compiled"], peaks[f"{auto}, compiled"] = min(seconds[1:]), peaks[auto]
    for precision, seconds in least.items():
        note = f"{least['exact'] / seconds:5.2f} x exact  {w.batch / seconds:8.2f} chips/s"
        if precision != "int8":  # whose operations are no FLOP
            peak = peaks[precision]
            note += f"  {flops / seconds / peak:5.0%} of the peak, {peak / 1e9:,.0f} GFLOP/s"
        yield Row(f"{name}, {precision}", seconds, note + "  <- auto" * (precision == auto))


def _agreement(size: str, model: ClayMAE, cube: Datacube) -> Row:
    """The CPU's float32 tokens of one chip beside the GPU's. ContractError where they differ."""
    cube = noise_batch(SENSOR, 1, cube.pixels.shape[-1]).cube
    with torch.inference_mode(), arithmetic(model.encoder, "exact"):
        expected = model.encoder(cube, mask_ratio=0.0, shuffle=False).tokens
        began = time.perf_counter()
        tokens = model.to("cuda").encoder(cube.to("cuda"), mask_ratio=0.0, shuffle=False).tokens.cpu()
        seconds = time.perf_counter() - began
    cosine = float(F.cosine_similarity(tokens, expected, dim=-1).min())
    if not cosine >= AGREEMENT:
        raise ContractError("device", f"tokens with a cosine of {cosine:.6f} to the CPU's", f"at least {AGREEMENT}",
                            "a driver or a build of torch for another GPU")  # fmt: skip
    return Row(f"{size} encoder, CUDA beside CPU", seconds, f"cosine {cosine:.7f}, the first call")


def _model(size: str) -> ClayMAE:
    torch.manual_seed(0)
    return ClayMAE(ClayConfig.named(size)).eval()


def _seconds(work: Callable, device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def training_step(loss: Callable[[Batch], Tensor], model: nn.Module) -> Callable[[Batch], None]:
    """One training step: loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, betas=(0.9, 0.95), fused=True)

    def step(batch: Batch) -> None:
        loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _bench_teacher(w: Workload) -> Iterator[Row]:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    shape = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14)
    dinov2 = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=4, **shape))
    module = ClayModule(ClayConfig.named(w.size), teacher=Teacher(dinov2, stand_in=True), cached=True)
    step = training_step(lambda batch: module.losses(batch, training=True)["loss"], module)
    batch = noise_batch(SENSOR, w.batch, w.pixels, module.model.config.teacher_dim)
    without_targets = replace(batch, targets=None)  # so that the teacher runs
    cached, live, ratio = paired_seconds(lambda: step(batch), lambda: step(without_targets), repeats=w.repeats)
    yield Row(f"{w.size} step, cached targets", cached, f"{w.batch / cached:.2f} chips/s, exact")
    yield Row(f"{w.size} step, live teacher", live, f"{ratio:.2f} x as long, exact")


def matrix_rate(device: torch.device | str = "cpu", precision: str = "exact") -> float:
    """FLOP/s of a product as wide as the large model's, with fewer rows where a CPU computes this precision slowly."""
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
    device = torch.device(device)
    counts = [8192] if device.type == "cuda" else [32, 256, 1024]
    a, b = (torch.randn(shape, device=device).to(half) for shape in ((counts[-1], 1024), (1024, 4096)))
    with matmul_precision(precision):
        for rows in counts:
            best = min(_seconds(lambda: a[:rows] @ b, device) for _ in range(8))  # noqa: B023
            if best > 0.05:
                break
    return 2 * rows * 1024 * 4096 / best


# ---- chip stores


class _ShiftedChips:
    """A maker that returns a few chips shifted: different ones, without the time that making them takes."""

    sensor, recipe = SENSOR, "shifted"

    def __init__(self, sample: MakerOutput, count: int):
        self.sample, self.count, self.size = sample, count, sample.chips.pixels.shape[-1]

    def __len__(self) -> int:
        return self.count

    def part(self, numbers: range) -> Callable[[], MakerOutput]:
        return lambda: self._shift(np.array(numbers))

    def _shift(self, numbers: np.ndarray) -> MakerOutput:
        shifts, sources = np.divmod(numbers, len(self.sample.chips))
        chips = self.sample.chips[sources]
        pixels = np.stack([np.roll(image, shift, -1) for image, shift in zip(chips.pixels, shifts, strict=True)])
        n = len(numbers)
        return MakerOutput(replace(chips, pixels=pixels), [None] * n, ["train"] * n, "shifted")


def _bench_chips(w: Workload) -> Iterator[Row]:
    """A store of Sentinel-2 chips: writing, random reads, plain numpy.load, and a training step for comparison."""
    if w.count < w.batch:
        raise ContractError("count, batch", (w.count, w.batch), "batch at most count", "two numbers interchanged")
    sample = WorldMaker(SENSOR, 16, size=w.pixels).part(range(16))()
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_chips(Path(folder) / "store", [_ShiftedChips(sample, w.count)], jobs=1, progress=False)
        writing = (time.perf_counter() - start) / w.count
        chips = ChipStore.open(Path(folder) / "store").sensor(SENSOR, labels=False)
        plain = Path(folder) / "plain.npy"
        np.save(plain, chips[: w.batch].pixels)
        chip_bytes = plain.stat().st_size / w.batch
        shards = Path(folder).rglob("c/*/*/*/*")  # of the pixels, arrays of four dimensions
        stored = sum(shard.stat().st_size for shard in shards) / w.count

        def at_random(read: Callable[[np.ndarray], object]) -> float:
            indices = lambda: rng.choice(w.count, w.batch, replace=False)  # noqa: E731
            return median_seconds(lambda: read(indices()), repeats=w.repeats) / w.batch

        loading = median_seconds(lambda: np.load(plain), repeats=w.repeats) / w.batch
        reading = at_random(lambda index: chips[index])
        cubes = at_random(lambda index: make_datacube((c := chips[index]).pixels, c.sensor, **c.place_and_time))
    pair = sample.chips[:2]
    cube, model = make_datacube(pair.pixels, pair.sensor, **pair.place_and_time), _model(w.size)

    def step() -> None:
        out = model(cube)
        reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=8).backward()

    training = median_seconds(step, repeats=3) / 2
    rows = [
        (f"numpy.load, {w.pixels} px, {chip_bytes / 1e3:.0f} kB", loading, "one plain file, in the system's cache"),
        ("store, batches at random", reading,
         f"{loading / reading:.2f} of numpy.load; {chip_bytes / stored:.2f} x smaller"),
        ("... as normalized batches", cubes, "as a loading process returns them"),
        ("store, written", writing, "one process, chips in memory"),
        (f"{w.size} model, training step", training, f"reading is {training / cubes:.0f} x as fast as training"),
    ]  # fmt: skip
    for name, seconds, note in rows:
        yield Row(name, seconds, f"{1 / seconds:9.1f} chips/s {chip_bytes / 1e6 / seconds:9.1f} MB/s   {note}")


DIM = 64  # numbers of a vector, as AlphaEarth's
KINDS, DIRECTIONS = 200, 16  # of synthetic land: clusters, and directions in which each varies
NEIGHBORS = 20  # hits whose recall is counted
MADE_AT_ONCE = 100_000


def synthetic_vectors(count: int) -> np.ndarray:
    """int8 [count, DIM]: clusters that vary in a few common directions, with a tenth of noise in all."""
    rng, vectors = np.random.default_rng(0), np.empty((count, DIM), np.int8)
    kinds, directions = rng.normal(size=(KINDS, DIM)), rng.normal(size=(DIRECTIONS, DIM)) / DIRECTIONS**0.5
    for start in range(0, count, MADE_AT_ONCE):
        n = min(MADE_AT_ONCE, count - start)
        free, noise = (rng.standard_normal((n, d), np.float32) for d in (DIRECTIONS, DIM))
        values = kinds.astype("f4")[rng.integers(KINDS, size=n)] + free @ directions.astype("f4") + noise / 10
        vectors[start : start + n] = np.rint(127 * values / np.abs(values).max(axis=1, keepdims=True))
    return vectors


def _bench_search(w: Workload) -> Iterator[Row]:
    """Processor time, of all threads together: it does not count what else a machine does."""
    vectors = synthetic_vectors(w.count)
    tracemalloc.start()
    began = time.process_time()
    index = build_index(vectors)
    seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = sum(array.nbytes for array in index)
    note = f"{vectors.nbytes / 1e6:,.0f} MB of vectors, at most {peak / 1e6:,.0f} MB more, {kept / 1e6:,.0f} MB kept"
    yield Row(f"index, {w.count:,} x {DIM} int8", seconds, note)
    chosen = np.random.default_rng(1).choice(w.count, (w.repeats, 2), replace=False)
    first, second = (vectors[rows].astype(np.float64) for rows in chosen.T)
    first, second = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (first, second))
    for sort, queries in (("a place", first), ("with a negative example", first - second / 2)):
        spent, recall = np.empty((w.repeats, 2)), []
        for n, query in enumerate(queries):
            hits = []
            for k, search in enumerate((nearest, index.nearest)):
                began = time.process_time()
                hits.append(search(vectors, query, NEIGHBORS)[0])
                spent[n, k] = time.process_time() - began
            recall.append(np.isin(*hits).mean())
        exact, indexed = np.median(spent, axis=0).tolist()
        yield Row(f"{sort}, exact", exact, "every row compared")
        note = f"{exact / indexed:.0f} x; recall of {NEIGHBORS}: {np.mean(recall):.3f}"
        yield Row(f"{sort}, index", indexed, note)


BENCHES = {
    "embed": (_bench_embed, Workload("tiny,base,large", batch=1, pixels=256, repeats=3)),
    "train": (_bench_train, Workload("tiny,base", batch=2, pixels=256, repeats=3)),
    "onnx": (_bench_onnx, Workload("tiny,base", batch=1, pixels=0, repeats=9)),
    "teacher": (_bench_teacher, Workload("large", batch=4, pixels=256, repeats=2)),
    "search": (_bench_search, Workload("", batch=0, pixels=0, repeats=20, count=10_000_000)),
    "chips": (_bench_chips, Workload("base", batch=32, pixels=128, repeats=15, count=512)),
}
