"""Timings on this machine: medians over repeats, and ratios within the one run, since machines differ and are shared."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from clay_lib.checkpoint import convert
from clay_lib.data.chips import Chips
from clay_lib.data.makers import WorldMaker
from clay_lib.data.store import ChipStore, Made, write_chips
from clay_lib.datacube import Datacube, make_datacube
from clay_lib.datamodule import Batch, noise_batch
from clay_lib.embedding import LATENT_TOKENS, WAVE_DIM
from clay_lib.errors import ContractError
from clay_lib.loss import reconstruction_loss
from clay_lib.model import ClayConfig, ClayMAE
from clay_lib.sensors import SENSORS
from clay_lib.teacher import Teacher
from clay_lib.training import ClayModule
from clay_lib.world.earth import MiniWorld

GENERATOR_HIDDEN = 2048  # of the layer that writes kernels from wavelengths


def transformer(N: int, *, dim: int, depth: int, inner: int, hidden: int) -> int:
    """Forward of `depth` blocks over N tokens. inner: width of all heads together, hidden: of the feed-forward."""
    linear = 2 * N * dim * (4 * inner + 2 * hidden)  # qkv and out, two layers of the feed-forward
    attention = 4 * N * N * inner  # q k and (q k) v
    return depth * (linear + attention)


def generator(bands: int, kernel: int, bias: int = 0) -> int:
    """Forward of the network that writes the kernels of a batch, once for all of its chips."""
    N, asked = LATENT_TOKENS + bands + 1, bands + 1  # latent tokens are attended to and no more
    code = 4 * bands * WAVE_DIM**2
    attention = 4 * (asked + N) * WAVE_DIM**2 + 4 * asked * N * WAVE_DIM
    forward = 4 * asked * WAVE_DIM * GENERATOR_HIDDEN
    return code + attention + forward + 2 * bands * WAVE_DIM * kernel + 2 * WAVE_DIM * bias


def student_parts(config: ClayConfig, *, bands: int, pixels: int, batch: int = 1) -> dict[str, float]:
    """Forward of one chip of `pixels` a side, by part; what a batch does once is shared out among its chips."""
    c, side = config, -(-pixels // config.patch_size)
    L = side**2
    V, patch = L - int(c.mask_ratio * L), bands * c.patch_size**2
    encoder = dict(dim=c.dim, depth=c.depth, inner=c.heads * c.dim_head, hidden=int(c.dim * c.mlp_ratio))
    decoder = dict(dim=c.decoder_dim, depth=c.decoder_depth, inner=c.decoder_heads * c.decoder_dim_head)
    decoder["hidden"] = int(c.decoder_dim * c.decoder_mlp_ratio)
    narrowed = 0 if c.dim == c.decoder_dim else 2 * (1 + V) * c.dim * c.decoder_dim
    kernels = generator(bands, c.dim * c.patch_size**2, c.dim) + generator(bands, c.decoder_dim * c.patch_size**2)
    return {
        "kernels from wavelengths": kernels / batch,
        "patch embedding": 2 * V * patch * c.dim,
        "encoder": transformer(1 + V, **encoder),
        "decoder": narrowed + transformer(1 + L, **decoder),
        "pixel head": 2 * L * c.decoder_dim * patch,
        "projection": 2 * c.dim * c.teacher_dim,
    }


def student_step(config: ClayConfig, *, bands: int, pixels: int, batch: int = 1) -> float:
    """Forward and backward of one chip: each product has two of its size behind it, but pixels need no gradient."""
    parts = student_parts(config, bands=bands, pixels=pixels, batch=batch)
    return 3 * sum(parts.values()) - parts["patch embedding"]


def vit(*, pixels: int, patch: int, dim: int, depth: int, registers: int = 0, mlp_ratio: float = 4) -> int:
    """Forward of one RGB image through a plain vision transformer with a class token, such as DINOv2."""
    L = (pixels // patch) ** 2
    tokens = dict(dim=dim, depth=depth, inner=dim, hidden=int(dim * mlp_ratio))
    return 2 * L * 3 * patch**2 * dim + transformer(L + 1 + registers, **tokens)


def dinov2_large(pixels: int = 518) -> int:
    """Forward of one image through the release's teacher, DINOv2 ViT-L/14 with four registers."""
    return vit(pixels=pixels, patch=14, dim=1024, depth=24, registers=4)


def vit_mae_step(config: ClayConfig, *, bands: int, pixels: int) -> float:
    """The same for a plain masked autoencoder (He et al. 2022) of this width, depth and patch; its decoder's heads
    share its whole width."""
    c, L = config, (pixels // config.patch_size) ** 2
    V, patch = L - int(c.mask_ratio * L), bands * c.patch_size**2
    encoder = transformer(1 + V, dim=c.dim, depth=c.depth, inner=c.dim, hidden=int(c.dim * c.mlp_ratio))
    hidden = int(c.decoder_dim * c.decoder_mlp_ratio)
    decoder = transformer(1 + L, dim=c.decoder_dim, depth=c.decoder_depth, inner=c.decoder_dim, hidden=hidden)
    embedding = 2 * L * patch * c.dim
    ends = 2 * (1 + V) * c.dim * c.decoder_dim + 2 * (1 + L) * c.decoder_dim * patch
    return 3 * (embedding + encoder + decoder + ends) - embedding


# ---- Our training step beside two others, in one run: with the live teacher, and a plain ViT-MAE of `tran ----

SENSOR = "sentinel-2-l2a"


def paired(
    first: Callable[[], object], second: Callable[[], object], *, repeats: int, clock=time.perf_counter
) -> tuple[float, float, float]:
    """(median seconds of each, median of second / first), taken in turn so that a busy machine is busy for both.

    The order changes from pair to pair; each is called once before, to warm up.
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


def step_beside(
    other: str, size: str, *, batch: int, pixels: int, repeats: int, teacher_pixels: int = 518, clock=time.perf_counter
) -> tuple[float, float, float, float]:
    """(our seconds, the other's, median ratio, ratio of operations); above 1 ours is the faster one.

    other: "teacher", our step with the live teacher instead of cached targets, or "mae", the ViT-MAE of transformers. A
    step is losses, backward and AdamW, in float32, on ten bands of noise.
    """
    torch.manual_seed(0)
    config, bands = ClayConfig.named(size), len(SENSORS[SENSOR].bands)
    own = student_step(config, bands=bands, pixels=pixels, batch=batch)
    teacher = random_dinov2_large(teacher_pixels) if other == "teacher" else None
    ours = ClayModule(config, teacher=teacher, cached=True)
    step = stepper(lambda batch: ours.losses(batch, training=True)["loss"], ours)
    cached = noise_batch(SENSOR, batch, pixels, config.teacher_dim)
    if teacher is not None:
        live = replace(cached, targets=None)  # so the teacher is asked
        paper = 1 + dinov2_large(teacher_pixels) / own
        return *paired(lambda: step(cached), lambda: step(live), repeats=repeats, clock=clock), paper
    plain = plain_mae(config, bands=bands, pixels=pixels)
    mae = stepper(lambda batch: plain(batch.cube.pixels).loss, plain)
    paper = vit_mae_step(config, bands=bands, pixels=pixels) / own
    return *paired(lambda: step(cached), lambda: mae(cached), repeats=repeats, clock=clock), paper


def stepper(loss: Callable[[Batch], Tensor], model: nn.Module) -> Callable[[Batch], None]:
    """One training step: loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, betas=(0.9, 0.95), fused=True)

    def step(batch: Batch) -> None:
        loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_dinov2_large(pixels: int = 518) -> Teacher:
    """The release's teacher with random weights: as slow as the trained one."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_register_tokens=4,
        image_size=518,
        patch_size=14,
    )
    return Teacher(Dinov2WithRegistersModel(config), size=pixels, stand_in=True)


def plain_mae(config: ClayConfig, *, bands: int, pixels: int) -> nn.Module:
    """Hugging Face's masked autoencoder of the same width, depth, visible tokens and decoder."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    same = ViTMAEConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=int(config.dim * config.mlp_ratio),
        image_size=pixels,
        patch_size=config.patch_size,
        num_channels=bands,
        decoder_hidden_size=config.decoder_dim,
        decoder_num_hidden_layers=config.decoder_depth,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=int(config.decoder_dim * config.decoder_mlp_ratio),
        mask_ratio=config.mask_ratio,
        qkv_bias=False,
        attn_implementation="sdpa",
    )
    return ViTMAEForPreTraining(same).train()


# ---- Timings on this machine: medians over repeats, and ratios within the one run, since machines differ  ----


@dataclass(frozen=True)
class Bench:
    """What is timed, at which size."""

    size: str  # of the model
    batch: int  # chips
    pixels: int  # a side
    repeats: int  # timed calls, after one to warm up


BENCHES = {
    "model": Bench("tiny", 16, 64, 7),  # the mini-world, the encoder and a plain training step
    "mae": Bench("base", 2, 256, 5),  # our training step beside the ViT-MAE of transformers
    "teacher": Bench("large", 4, 256, 2),  # our training step with cached targets beside the live DINOv2
}


def bench(
    what: str = "model,mae,teacher",
    *,
    size: str = "",
    batch: int = 0,
    pixels: int = 0,
    repeats: int = 0,
    teacher_pixels: int = 518,
) -> int:
    """Time the parts of a training step, and the step beside others in turn; print medians and ratios.

    Args:
        what: some of model, mae and teacher, separated by commas
        size: tiny, small, base or large; empty: tiny for model, base for mae, large for teacher
        batch: chips; 0: 16, 2 and 4 (with fewer, AdamW over all weights is a good part of a step on a CPU)
        pixels: a side of a chip; 0: 64, 256 and 256
        repeats: timed calls of each, after one to warm up; 0: 7, 5 and 2
        teacher_pixels: to which the live teacher's RGB is resized
    """
    asked = what.split(",")
    if unknown := sorted(set(asked) - set(BENCHES)):
        raise ContractError("what", unknown, f"some of {list(BENCHES)}", "a misspelling")
    given = {k: v for k, v in dict(size=size, batch=batch, pixels=pixels, repeats=repeats).items() if v}
    for name in asked:
        chosen = replace(BENCHES[name], **given)
        _bench_model(chosen) if name == "model" else _bench_step(name, chosen, teacher_pixels)
    return 0


def median_seconds(work: Callable[[], object], *, repeats: int) -> float:
    """Median wall time of one call, after one call to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def step_seconds(model: ClayMAE, cube: Datacube, *, repeats: int) -> float:
    """Median wall time of one training step on a datacube: forward, masked as the model is, and backward."""

    def step() -> None:
        out = model(cube)
        reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=8).backward()

    return median_seconds(step, repeats=repeats)


def _bench_model(b: Bench) -> None:
    torch.manual_seed(0)
    world = MiniWorld(0)
    place = world.place(40, 0)
    chips = {
        side: median_seconds(lambda side=side: world.observe(place, size=side), repeats=b.repeats)
        for side in (b.pixels, 2 * b.pixels)
    }
    model = ClayMAE(ClayConfig.named(b.size))
    pixels = world.observe(place, size=b.pixels).pixels[None].repeat(b.batch, axis=0)
    cube = make_datacube(pixels, "sentinel-2-l2a", when="2023-06-10T10:30", lat=place.lat, lon=place.lon)

    with torch.inference_mode():
        whole = median_seconds(lambda: model.encoder(cube, mask_ratio=0.0), repeats=b.repeats)
        masked = median_seconds(lambda: model.encoder(cube, mask_ratio=0.75), repeats=b.repeats)
    training = step_seconds(model, cube, repeats=b.repeats)
    small, large = chips.values()
    _say(f"mini-world, Sentinel-2, {2 * b.pixels} px", large, f"{1 / large:.1f} chips/s on one core")
    _say(f"mini-world, Sentinel-2, {b.pixels} px", small, f"{small / large:.2f} of the larger chip")
    _say(
        f"{b.size} encoder, nothing masked",
        whole,
        f"{b.batch / whole:.0f} chips/s on {torch.get_num_threads()} threads",
    )
    _say(f"{b.size} encoder, 75 % masked", masked, f"{masked / whole:.2f} of nothing masked")
    _say(f"{b.size} training step", training, f"{training / masked:.1f} x the masked encoder")


def _bench_step(name: str, b: Bench, teacher_pixels: int) -> None:
    """Ratios above 1: ours is the faster one."""

    each = student_step(ClayConfig.named(b.size), bands=10, pixels=b.pixels, batch=b.batch)
    both = 2 * each + (dinov2_large(teacher_pixels) if name == "teacher" else 0)
    minutes = both * b.batch * (b.repeats + 1) / matrix_rate() / 60
    print(f"{name}: {b.repeats} pairs of steps, about {minutes:.1f} minutes", flush=True)
    ours, other, ratio, paper = step_beside(name, b.size, batch=b.batch, pixels=b.pixels, repeats=b.repeats, teacher_pixels=teacher_pixels)  # fmt: skip
    beside = {"mae": "ViT-MAE of transformers", "teacher": f"with DINOv2 large at {teacher_pixels} px"}[name]
    _say(
        f"{b.size} step, {b.batch} x {b.pixels} px",
        ours,
        f"{b.batch / ours:.2f} chips/s, {each * b.batch / ours / 1e9:.0f} GFLOP/s",
    )
    _say(beside, other, f"{ratio:.2f} x ours; {paper:.2f} x by operations")


def matrix_rate() -> float:
    """FLOP/s of a float32 product as wide as the model's."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 4096)
    return 2 * 1024 * 1024 * 4096 / median_seconds(lambda: a @ b, repeats=5)


def _say(what: str, seconds: float, note: str) -> None:
    print(f"{what:<36}{1000 * seconds:9.1f} ms   {note}", flush=True)


# ---- How fast chips come out of a store, against plain numpy.load of the same bytes and against a step th ----


class _Rolled:
    """Chips that differ and compress like those they are rolled from, without the time that making them takes."""

    sensor, recipe = "sentinel-2-l2a", "rolled"

    def __init__(self, made: Made, count: int):
        self.made, self.count, self.size = made, count, made.chips.pixels.shape[-1]

    def __len__(self) -> int:
        return self.count

    def part(self, numbers: range):
        return lambda: self._rolled(np.array(numbers))

    def _rolled(self, numbers: np.ndarray) -> Made:
        turns, of = np.divmod(numbers, len(self.made.chips))
        steps = np.stack(np.divmod(turns, self.size), 1)  # rows, columns
        chips = self.made.chips[of]
        pixels, labels = (
            np.stack([np.roll(image, step, (-2, -1)) for image, step in zip(images, steps, strict=True)])
            for images in (chips.pixels, chips.labels)
        )
        rolled = Chips(chips.sensor, pixels, labels, chips.lat, chips.lon, chips.when)
        return Made(rolled, [None] * len(of), ["train"] * len(of), "rolled")


def bench_chips(size: int = 128, count: int = 512, batch: int = 32, repeats: int = 15, model: str = "base") -> int:
    """Time a store of Sentinel-2 chips on this machine: written, read whole and at random, and eaten by a training step.

    Args:
        size: pixels a side
        count: chips in the store
        batch: chips read at a time
        repeats: timed batches, after one to warm up
        model: whose training step the reading is held against: tiny, small, base or large
    """
    if count < batch or batch < 1 or repeats < 1:
        raise ContractError("count, batch, repeats", (count, batch, repeats), "batch at most count", "a slip")
    made = WorldMaker("sentinel-2-l2a", 16, size=size).part(range(16))()
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_chips(Path(folder) / "store", [_Rolled(made, count)], jobs=1, progress=False)
        writing = (time.perf_counter() - start) / count
        store = ChipStore.open(Path(folder) / "store")
        chips = store.sensor("sentinel-2-l2a", labels=False)
        plain = Path(folder) / "plain.npy"
        np.save(plain, chips[:batch].pixels)
        bytes_ = plain.stat().st_size / batch
        stored = sum(file.stat().st_size for file in Path(folder).rglob("c/*/*/*/*")) / count

        def at_random(work):
            return median_seconds(lambda: work(rng.choice(count, batch, replace=False)), repeats=repeats) / batch

        loading = median_seconds(lambda: np.load(plain), repeats=repeats) / batch
        reading = at_random(lambda index: chips[index])
        zarr_reading = _zarr_seconds(Path(folder) / "store", store, rng, 8)
        cubes = at_random(lambda index: make_datacube((c := chips[index]).pixels, c.sensor, **c.place_and_time))
    torch.manual_seed(0)
    two = made.chips[:2]
    cube = make_datacube(two.pixels, two.sensor, **two.place_and_time)
    step = step_seconds(ClayMAE(ClayConfig.named(model)), cube, repeats=3) / 2
    rows = [
        ("numpy.load of the same bytes", loading, "one plain file, in the system's cache"),
        (
            "store, batches at random",
            reading,
            f"{loading / reading:.2f} of numpy.load; {bytes_ / stored:.2f} x smaller",
        ),
        ("... as normalised batches", cubes, "what a loading process hands over"),
        ("... by zarr-python", zarr_reading, f"{zarr_reading / reading:.0f} x the time of this reader"),
        ("store, written", writing, "one process, chips at hand"),
        (f"{model} model, training step", step, f"reads {step / cubes:.0f} x as fast as it eats"),
    ]
    print(f"Sentinel-2 {size} x {size} x 10, {bytes_ / 1e3:.0f} kB a chip, {torch.get_num_threads()} threads")
    for what, seconds, note in rows:
        print(f"{what:<30}{1 / seconds:>9.1f} chips/s{bytes_ / 1e6 / seconds:>9.1f} MB/s   {note}")
    return 0


def _zarr_seconds(url: Path, store: ChipStore, rng: np.random.Generator, n: int) -> float:
    """Seconds a chip of zarr-python's own reading, at random out of one shard."""
    import zarr

    array = zarr.open_group(url, mode="r")[store.table["shard"].iloc[0]]["pixels"]
    return median_seconds(lambda: array.oindex[np.sort(rng.choice(array.shape[0], n, replace=False))], repeats=3) / n


# ---- How long weights take to load, and how much memory beyond the model itself: each file in a process o ----

TEACHER = 304_370_000  # numbers in the teacher that the released file carries along


@dataclass(frozen=True)
class Loaded:
    """What loading a file took, measured in the process that did nothing else."""

    seconds: float  # of load_model alone
    processor: float  # seconds of processor time in it, which a busy machine does not change
    model: int  # bytes of the loaded model's own tensors
    before: int  # bytes resident with Python, torch and this library imported, nothing loaded
    peak: int  # highest resident bytes, the mapped pages of the file among them

    @property
    def over(self) -> int:
        """Bytes of the peak beyond the model's own, Python and torch included."""
        return self.peak - self.model


def load_memory(path: str | Path) -> Loaded:
    """Load a file of weights in a fresh process and tell what that took."""
    command = [sys.executable, "-c", "from clay_lib.runs.bench import _load; _load()", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    if done.returncode:
        raise ContractError("load", done.stderr.strip().splitlines()[-1:], "a loaded model", f"see {path}")
    return Loaded(**json.loads(done.stdout))


def _load() -> None:
    from clay_lib.checkpoint import load_model

    before, start, busy = peak_resident(), time.perf_counter(), time.process_time()
    model = load_model(sys.argv[1])
    seconds, processor, peak = time.perf_counter() - start, time.process_time() - busy, peak_resident()
    own = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    print(json.dumps(asdict(Loaded(seconds, processor, own, before, peak))))


def peak_resident() -> int:
    """Bytes. Linux's ru_maxrss of a new process begins with its parent's, so that its own mark is read there."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_released(
    path: str | Path, config: ClayConfig, *, size: str = "", seed: int = 0, teacher: int = TEACHER
) -> Path:
    """Random weights as the release has them: model and teacher, AdamW's two moments, hyper-parameters; by Lightning.

    size: the name in hyper_parameters; without it there are none. Teacher and moments are zeros that take no memory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = {f"model.{name}": tensor for name, tensor in ClayMAE(config).state_dict().items()}
    moments = {
        number: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(t.shape), "exp_avg_sq": torch.zeros(t.shape)}
        for number, t in enumerate(state.values())
    }
    group = {"lr": 5e-6, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05, "params": list(moments)}
    # 24 blocks of equal size stand for the teacher's, whose tensors are left out by name.
    state |= {f"model.teacher.blocks.{i}.weight": torch.zeros(teacher // 24) for i in range(24)}
    content = {
        "epoch": 76,
        "global_step": 1,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [{"state": moments, "param_groups": [group]}],
        "lr_schedulers": [{"T_0": 1000, "T_mult": 2, "base_lrs": [1e-5], "last_epoch": 76}],
    }
    if size:
        content |= {"hparams_name": "kwargs", "hyper_parameters": released_settings(size, config)}
    torch.save(content, path)
    return Path(path)


def released_settings(size: str, config: ClayConfig) -> dict:
    """hyper_parameters as in the released file."""
    return {
        "model_size": size,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": False,
        "patch_size": config.patch_size,
        "shuffle": True,
        "metadata_path": "configs/metadata.yaml",
        "teacher": "vit_large_patch14_reg4_dinov2.lvd142m",
        "dolls": [16, 32, 64, 128, 256, 768, 1024],
        "doll_weights": [1, 1, 1, 1, 1, 1, 1],
        "lr": 5e-6,
        "wd": 0.05,
        "b1": 0.9,
        "b2": 0.95,
        "embeddings_level": "mean",
    }


def bench_load(size: str = "large", folder: str = "") -> int:
    """Write random weights as the release has them, load them and print seconds and memory; the files are removed.

    Example: clay bench-load --size base

    Args:
        size: of the model: tiny, small, base or large (7.9 GB of disk in all)
        folder: where to write; the system's folder for temporary files unless named
    """
    rows = []
    with tempfile.TemporaryDirectory(dir=folder or None) as home:
        released = write_released(Path(home) / "released.ckpt", ClayConfig.named(size), size=size)
        rows.append((f"{size}, released .ckpt", released))
        for part in ("whole", "encoder"):
            out = Path(home) / f"{part}.safetensors"
            convert(str(released), str(out), part=part)
            rows.append((f"{size}, {part} .safetensors", out))
        print(
            f"\n{'':<28}{'file':>9}{'seconds':>9}{'processor':>11}{'model':>9}{'peak over it':>14}{'of which before':>17}"
        )
        for what, path in rows:
            took = load_memory(path)
            print(
                f"{what:<28}{path.stat().st_size / 1e9:6.2f} GB{took.seconds:9.1f}{took.processor:11.1f}{took.model / 1e9:6.2f} GB"
                f"{took.over / 1e9:11.2f} GB{took.before / 1e9:14.2f} GB"
            )
    return 0


# ---- A plan on paper: what pretraining on 70 million chips would need, by arithmetic from named constants ----

CHIPS = {  # of each source, from the public training-data page of the Clay documentation, v1
    "naip": 20_984_171,
    "sentinel-2-l2a": 18_683_945,
    "sentinel-1-rtc": 16_133_394,
    "landsat-c2l1": 5_827_333,
    "landsat-c2l2-sr": 5_790_651,
    "linz": 3_299_006,
    "modis": 1_350_864,
}
EPOCHS, PIXELS = 100, 256
FLIPS, TARGET_BYTES = 4, 2  # none, up-down, left-right, both; float16
TARGET_KEY, INDEX_BYTES = 21, 29  # bytes of key and checksum in a part's table; the same in memory, and where it is
UTILISATION = 0.4  # share of peak that a training step reaches; the forecast of a run measures its own
FILL_UTILISATION = 0.5  # a forward pass alone, with long sequences


@dataclass(frozen=True)
class Device:
    """One accelerator, by its maker's data sheet."""

    name: str
    peak: float  # FLOP/s, bfloat16, dense
    watts: float  # of the board at most


DEVICES = (Device("L4", 121e12, 72), Device("A100 SXM", 312e12, 400), Device("H100 SXM", 989e12, 700))


def chip_bytes(sensor: str, itemsize: int) -> int:
    """Pixels of one chip in the store, before compression."""
    return len(SENSORS[sensor].bands) * PIXELS**2 * itemsize


def store_bytes(itemsizes: Mapping[str, int], ratios: Mapping[str, float]) -> dict[str, float]:
    """Bytes of each sensor's chips. ratios: compressed over raw, measured."""
    return {s: n * chip_bytes(s, itemsizes[s]) * ratios[s] for s, n in CHIPS.items()}


def chips_seen() -> dict[str, int]:
    """Chips that training takes of each sensor in one epoch: sensors in turn, short ones repeated up to the longest."""
    return dict.fromkeys(CHIPS, max(CHIPS.values()))


def target_bytes(chips: int, teacher_dim: int) -> int:
    """The teacher cache: every chip in every flip."""
    return chips * FLIPS * (teacher_dim * TARGET_BYTES + TARGET_KEY)


def step_flops(config: ClayConfig, weights: Mapping[str, float]) -> float:
    """Of one chip, forward and backward, on average over the sensors with these weights."""
    each = {s: student_step(config, bands=len(SENSORS[s].bands), pixels=PIXELS, batch=32) for s in weights}
    return sum(weights[s] * each[s] for s in weights) / sum(weights.values())


def gpu_hours(work: float, device: Device, utilisation: float) -> float:
    return work / (device.peak * utilisation) / 3600


def loader_rate(device: Device, bytes_each: float) -> tuple[float, float]:
    """(chips a second, bytes a second) that one GPU eats training large; bytes_each: of a stored chip on average."""
    chips = device.peak * UTILISATION / step_flops(ClayConfig.named("large"), chips_seen())
    return chips, chips * bytes_each


# ---- The command `plan`: measures what a laptop can measure and writes the page with the rest worked out ----

PAGE = Path(__file__).resolve().parents[2] / "papermill_runs" / "PRETRAINING.md"


@dataclass(frozen=True)
class Measured:
    """What this machine can tell. Kept in the page, so that its arithmetic can be done again."""

    chips: int  # of each sensor
    itemsizes: Mapping[str, int]  # bytes a number, as the store keeps it
    ratios: Mapping[str, float]  # compressed over raw bytes
    decode: float  # raw GB/s that one core unpacks
    machine: str


def write_plan(out: str = str(PAGE), *, chips: int = 6, jobs: int = 1) -> int:
    """Write the plan for 70 million chips and 100 epochs: stores, loader, teacher cache and GPUs.

    Args:
        out: the page to write
        chips: of each sensor that the compression is measured on, 256 x 256 pixels of the mini-world
        jobs: processes that make them
    """
    Path(out).write_text(page(measure(chips, jobs)))
    print(f"wrote {out}")
    return 0


def measure(count: int, jobs: int = 1) -> Measured:
    """Chips of the mini-world, compressed as the store does."""
    from numcodecs import blosc

    from clay_lib.data.chips import world_chips
    from clay_lib.data.store import encode, native

    itemsizes, ratios, seconds = {}, {}, []
    for sensor in CHIPS:
        pixels = native(world_chips(sensor, count, size=PIXELS, jobs=jobs, cloud_cover=0.1))
        stored = sum(len(data) for name, data in encode({"pixels": pixels}).items() if "/c/" in name)
        itemsizes[sensor], ratios[sensor] = pixels.dtype.itemsize, round(stored / pixels.nbytes, 2)
        packed = blosc.compress(pixels[0].tobytes(), b"lz4", 5, blosc.BITSHUFFLE, typesize=pixels.dtype.itemsize)
        for _ in range(3):
            start = time.perf_counter()
            blosc.decompress(packed)
            seconds.append((time.perf_counter() - start) / pixels[0].nbytes)
    machine = f"{platform.machine()}, one thread"
    return Measured(count, itemsizes, ratios, round(1e-9 / float(np.median(seconds)), 1), machine)


def page(measured: Measured) -> str:
    """The page as Markdown."""
    total = sum(CHIPS.values())
    parts = [_head(measured, total), _stores(measured, total), _cache(total), _student(total), _loader(measured)]
    parts.append(
        "## What would have to be measured first\n\n"
        "The share of peak of one GPU for base and large (`python -m clay_lib train --forecast` on it), what is lost between "
        "nodes, how real imagery compresses (`python -m clay_lib chips ... --scenes ... --forecast`), and the reading rate "
        "of the object storage."
    )
    return "\n\n".join(parts) + f"\n\n<!-- measured: {json.dumps(asdict(measured))} -->\n"


def measured_in(text: str) -> Measured:
    """What a page was written from."""
    return Measured(**json.loads(text.rsplit("<!-- measured: ", 1)[1].split(" -->")[0]))


def _head(measured: Measured, total: int) -> str:
    return (
        "# Pretraining on 70 million chips, on paper\n\n"
        f"Written by `python -m clay_lib plan`. **M**: measured by that command ({measured.machine}, chips of the "
        "mini-world). **A**: arithmetic from what stands beside it. **D**: a maker's data sheet or the release's own figure. "
        "**S**: supposed. The formulas are functions of `clay_lib/runs/bench.py` and `clay_lib/runs/bench.py`, whose operations agree "
        "with torch's counter within 2 % (`tests/test_flops.py`). Nothing was run at this size.\n\n"
        f"{total:,} chips of {PIXELS} x {PIXELS} pixels (**D**), {EPOCHS} epochs (**D**), the large model."
    )


def _stores(measured: Measured, total: int) -> str:
    stored = store_bytes(measured.itemsizes, measured.ratios)
    raw = {s: CHIPS[s] * chip_bytes(s, measured.itemsizes[s]) for s in CHIPS}
    rows = [
        (s, f"{n:,}", f"{chip_bytes(s, 1) // PIXELS**2} x {measured.itemsizes[s]}", f"{raw[s] / 1e12:.1f}",
         f"{measured.ratios[s]:.2f}", f"{stored[s] / 1e12:.1f}")
        for s, n in CHIPS.items()
    ]  # fmt: skip
    whole, kept = sum(raw.values()), sum(stored.values())
    rows.append(("all", f"{total:,}", "", f"{whole / 1e12:.1f}", f"{kept / whole:.2f}", f"{kept / 1e12:.1f}"))
    head = ("sensor", "chips **D**", "bands x bytes", "raw TB **A**", "stored / raw **M**", "stored TB **A**")
    return (
        f"## Stores\n\n{_table(head, rows)}\n\n"
        f"raw = chips x bands x {PIXELS}^2 x bytes; stored = raw x ratio. Ratios are of {measured.chips} chips a sensor, a tenth "
        "under clouds, compressed as the store does (bit-shuffled LZ4); real imagery may be rougher. The release tells of "
        "33.8 TB of imagery (**D**). Labels, one byte a pixel that compresses to little, are left out."
    )


def _cache(total: int) -> str:
    forward, attention = dinov2_large(), transformer(1374, dim=0, depth=24, inner=1024, hidden=0)
    fill = total * FLIPS * forward
    rows = [
        ("targets", f"{target_bytes(total, 1024) / 1e9:,.0f} GB", f"**A** chips x {FLIPS} flips x (1024 x 2 + {TARGET_KEY})"),
        ("index in memory", f"{total * FLIPS * INDEX_BYTES / 1e9:.1f} GB a process tree", f"**A** {INDEX_BYTES} bytes a target"),
        ("teacher's forward at 518 x 518", f"{forward / 1e9:,.0f} GFLOP",
         f"**A** `flops.dinov2_large()`; {(forward - attention) / 1e9:.0f} without the products inside attention"),
        ("filling it", f"{fill:.2e} FLOP", "**A** chips x flips x forward"),
        *((f"on {d.name}", f"{gpu_hours(fill, d, FILL_UTILISATION):,.0f} GPU-hours",
           f"**A** at {FILL_UTILISATION:.0%} (**S**) of {d.peak / 1e12:.0f} TFLOP/s (**D**, bfloat16, dense)") for d in DEVICES),
        ("the live teacher instead", f"{EPOCHS * total * forward:.2e} FLOP",
         f"**A** chips x {EPOCHS} epochs x forward, {EPOCHS / FLIPS:.0f} times as much"),
    ]  # fmt: skip
    return f"## Teacher cache\n\n{_table(('what', 'value', 'how'), rows)}"


def _student(total: int) -> str:
    step, teacher = step_flops(ClayConfig.named("large"), chips_seen()), dinov2_large()
    seen, epoch = EPOCHS * total, sum(chips_seen().values())
    rows = [
        ("forward and backward, a chip", f"{step / 1e9:.0f} GFLOP", "**A** `flops.student_step`, sensors in turn, 75 % masked"),
        ("with the live teacher", f"{(step + teacher) / 1e9:,.0f} GFLOP", f"**A** {1 + teacher / step:.2f} times as much"),
        ("chips seen", f"{seen / 1e9:.1f} billion", f"**A** chips x {EPOCHS}"),
        ("all of it", f"{seen * step:.2e} FLOP", "**A** chips seen x step"),
        ("an epoch with short sensors repeated", f"{epoch / 1e6:.0f} million chips",
         f"**A** {len(CHIPS)} x the longest sensor; if that is the epoch, all below is {epoch / total:.2f} times as much"),
    ]  # fmt: skip
    counts, days = (8, 64, 160), []
    for d in DEVICES:
        hours = gpu_hours(seen * step, d, UTILISATION)
        live = hours + gpu_hours(seen * teacher, d, FILL_UTILISATION)
        each = [f"{hours / n / 24:,.1f}" for n in counts]
        rate = loader_rate(d, 0)[0]
        days.append((d.name, f"{d.peak / 1e12:.0f}", f"{rate:.0f}", f"{hours:,.0f}", *each, f"{hours * d.watts / 1e6:.1f}", f"{live:,.0f}"))  # fmt: skip
    head = ("GPU", "peak TFLOP/s **D**", "chips/s **A**", "GPU-hours **A**", *(f"days on {n} **A**" for n in counts), "MWh **A**", "GPU-hours, live teacher **A**")  # fmt: skip
    l4 = DEVICES[0]
    own = gpu_hours(seen * step, l4, UTILISATION)
    live, fill = (gpu_hours(n * total * teacher, l4, FILL_UTILISATION) for n in (EPOCHS, FLIPS))
    return (
        f"## The student\n\n{_table(('what', 'value', 'how'), rows)}\n\n"
        f"At {UTILISATION:.0%} of peak in bfloat16 (**S**; `python -m clay_lib train --forecast` measures it on a machine):\n\n"
        f"{_table(head, days)}\n\n"
        "GPU-hours = FLOP / (peak x utilisation) / 3600; days = GPU-hours / GPUs / 24, with nothing lost between GPUs; "
        "MWh = GPU-hours x board power (**D**), GPUs alone.\n\n"
        f"The release trained on 160 L4 (**D**). By this arithmetic that is {(own + live) / 160 / 24:.1f} days with the teacher in "
        f"every step, and {(own + fill) / 160 / 24:.1f} days with cached targets, filling the cache included (**A**)."
    )


def _loader(measured: Measured) -> str:
    raw = {s: chip_bytes(s, measured.itemsizes[s]) for s in CHIPS}
    mean_raw = sum(raw.values()) / len(raw)
    mean_stored = sum(raw[s] * measured.ratios[s] for s in raw) / len(raw)
    rows = []
    for d in DEVICES:
        rate, stored = loader_rate(d, mean_stored)
        values = (stored / 1e6, rate * mean_raw / 1e6, rate * 1024 * 2 / 1e6)
        rows.append(
            (d.name, f"{rate:.0f}", *(f"{v:.1f}" for v in values), f"{rate * mean_raw / 1e9 / measured.decode:.2f}")
        )
    head = (
        "GPU",
        "chips/s **A**",
        "stored MB/s **A**",
        "raw MB/s **A**",
        "targets MB/s **A**",
        "cores to unpack **A**",
    )
    return (
        f"## Loader\n\n{_table(head, rows)}\n\n"
        f"Of one GPU: chips/s x bytes of a chip ({mean_stored / 1e6:.2f} MB stored, {mean_raw / 1e6:.2f} MB raw, sensors in turn). "
        f"One core unpacks {measured.decode:.1f} GB/s (**M**); reading, flips and normalising come on top: "
        "`python -m clay_lib bench-chips` measures the loader as a whole."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
