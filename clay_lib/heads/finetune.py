"""Fine-tuning: a head on a frozen or partly trained encoder.

    tuned = finetune(clay, train, val, out="runs/land_cover", unfreeze=0)       # 0, a number of last blocks, or "all"
    scores = tuned.predict(test)                                                # see also predict.predict_raster
    tuned = Finetuned.load("runs/land_cover/best.safetensors", clay)

A frozen encoder runs only once over the chips; its features are kept in memory.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clay_lib.checkpoint import read_tensors, save_tensors
from clay_lib.clay import Clay
from clay_lib.data.augment import flipped
from clay_lib.data.labels import IGNORE, LabeledSet, check_class_numbers
from clay_lib.datacube import Datacube
from clay_lib.errors import ContractError
from clay_lib.files import hash_tensors
from clay_lib.heads.heads import ChipHead, DenseHead, Features, extract_features, spread_layers
from clay_lib.heads.module import FinetuneSettings, HeadModule, class_weights, unfreeze_last
from clay_lib.precision import check_precision, choose, lightning_precision, matmul_precision, training_device
from clay_lib.sensors import SENSORS, Sensor

HEADS = {"chip": ChipHead, "dense": DenseHead}
SAMPLE = 256  # chips on which the standardization of a head is fitted


@dataclass(frozen=True, eq=False)
class Finetuned:
    """An encoder with its head. metadata: what is needed to build and use it again, as JSON types."""

    clay: Clay
    head: nn.Module
    sensor: Sensor
    bands: tuple[str, ...]
    classes: tuple[str, ...]
    metadata: dict
    history: pd.DataFrame | None = None  # one row an epoch: epoch, train/loss, val/...

    @property
    def task(self) -> str:
        return self.metadata["task"]

    @torch.inference_mode()
    def scores(self, cube: Datacube) -> Tensor:
        """[B, K] or [B, K, H, W]: class probabilities; or values [B, 1] or [B, 1, H, W] in the labels' units."""
        with self.clay.arithmetic(cube):
            features = extract_features(self.clay.model.encoder, cube, self.metadata["layers"])
        raw = self.head.eval()(features).float()
        mean, std = self.metadata["scale"]
        raw[:, self.metadata.get("missing", [])] = -torch.inf
        return raw.softmax(1) if self.classes else raw * std + mean

    def predict(self, data: LabeledSet, *, batch_size: int = 16) -> np.ndarray:
        """`scores` of all chips of a set of the same sensor and bands as in training: [N, K] or [N, K, H, W]."""
        check_compatible(self.metadata, data.sensor, data.bands, data.gsd)
        if data.classes and self.classes and data.classes != self.classes:
            found, expected = f"classes {[*data.classes]}", f"{[*self.classes]}, in the order of the head's numbers"
            cause = "a missing class shifts the numbers of the others: pass data.with_classes(tuned.classes)"
            raise ContractError("data", found, expected, cause)
        cubes = (read_batch(self.clay, data, rows, check=rows[0] == 0)[0] for rows in _batches(len(data), batch_size))
        return np.concatenate([self.scores(cube).cpu().numpy() for cube in cubes])

    def save(self, path: str | Path) -> Path:
        """Save the head as safetensors, with the encoder if it was trained, else with the encoder's hash."""
        state = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        encoder = self.clay.model.encoder
        if self.metadata["unfreeze"] != 0:
            state |= {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
        metadata = {"clay_head": json.dumps(self.metadata | {"encoder": encoder_hash(encoder)})}
        return save_tensors(path, state, dtype=torch.float32, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, clay: Clay) -> Finetuned:
        """Load a file written by `save`.

        clay: the weights that the head was trained on; for a file with a trained encoder, any of the same sizes,
        frequencies and reading.
        """
        tensors, metadata = read_tensors(path)
        if "clay_head" not in metadata:
            cause = "the encoder's own file: load it with Clay.load, and train a head with finetune"
            raise ContractError("path", f"{path}: weights without a head", "best.safetensors of finetune", cause)
        metadata = json.loads(metadata["clay_head"])
        config, stored = encoder_config(clay), metadata["config"]
        if differs := [k for k, value in config.items() if value != stored.get(k, value)]:
            found, expected = (", ".join(f"{k} {values[k]}" for k in differs) for values in (config, stored))
            cause = f"{path} was trained on another model: its sizes, frequencies or reading"
            raise ContractError("clay", found, expected, cause)
        if metadata["unfreeze"] != 0:
            clay = deepcopy(clay)
            own = clay.model.encoder.state_dict()
            clay.model.encoder.load_state_dict({name: tensors[f"encoder.{name}"] for name in own})
        elif (found := encoder_hash(clay.model.encoder)) != metadata["encoder"]:
            expected = f"{metadata['encoder']}, which the head was trained on"
            cause = f"{path} was trained with other weights of the same size"
            raise ContractError("clay", f"an encoder with hash {found}", expected, cause)
        head = make_head(**metadata["head"])
        head.load_state_dict({name: tensors[f"head.{name}"] for name in head.state_dict()})
        head.to(clay.model.encoder.cls_token.device).eval()
        sensor, bands, classes = SENSORS.resolve(metadata["sensor"]), metadata["bands"], metadata["classes"]
        return cls(clay, head, sensor, tuple(bands), tuple(classes), metadata)


def make_head(kind: str, **sizes) -> nn.Module:
    return HEADS[kind](**sizes)


def encoder_config(clay: Clay) -> dict:
    """Everything besides the weights that determines an encoder's output."""
    names = ("dim", "depth", "heads", "dim_head", "mlp_ratio", "patch_size", "frequencies")
    return {name: getattr(clay.model.config, name) for name in names} | {"reading": clay.reading}


def encoder_hash(encoder: nn.Module) -> str:
    """16 hexadecimal digits of the weights."""
    return hash_tensors(encoder.state_dict())[:16]


def check_compatible(metadata: dict, sensor: Sensor, bands: Sequence[str], gsd: float) -> None:
    """ContractError for another sensor, other bands or another ground sampling distance than in training."""
    resample = "gdalwarp -tr resamples it; without a CRS, dataclasses.replace(data, gsd=...) before training"
    pairs = [
        ("sensor", sensor.name, metadata["sensor"], ""),
        ("bands", [*bands], metadata["bands"], ": bands=[...] names them as in training"),
    ]
    if not 0.8 <= gsd / metadata["gsd"] <= 1.25:
        pairs.append(("gsd", f"{gsd:.4g} m", f"{metadata['gsd']:.4g} m", f": {resample}"))
    for field, found, expected, fix in pairs:
        if found != expected:
            cause = f"another set{fix}. To predict anyway: tuned.scores(clay.cube(...))"
            raise ContractError(field, found, f"{expected}, which the head was trained on", cause)


def finetune(
    clay: Clay,
    train: LabeledSet,
    val: LabeledSet | None = None,
    *,
    out: str | Path | None = None,
    unfreeze: int | str = 0,
    layers: Sequence[int] | None = None,
    settings: FinetuneSettings | None = None,
    accelerator: str = "auto",
    precision: str | None = None,
    progress: bool = True,
    **head,
) -> Finetuned:
    """Train a head for the labels of `train`: classes or values, one a chip or one a pixel.

    unfreeze: how many last blocks of the encoder are trained as well, or "all"; clay itself is left as it is.
    layers: the blocks that a dense head uses, by default four spread evenly. head: options of ChipHead or DenseHead.
    With `out`, the weights best on val (mean IoU, or RMSE) and the last ones are saved as best.safetensors and
    last.safetensors, and history.csv; with val, the best are returned. The same seed gives the same CPU run.
    precision: as of `Clay.load`, by default clay's own; the metadata record it.
    Raises ContractError for classes without a label in training, labels that are all ignored, and incompatible sets.
    """
    s = settings or FinetuneSettings()
    for text in ("LeafSpec", "does not have many workers", "no `val_dataloader`", "logging interval"):
        warnings.filterwarnings("ignore", message=f".*{text}.*")  # of Lightning
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if val is not None and val.task != train.task:
        raise ContractError("val", val.task, train.task, "another set")
    kind = "dense" if train.dense else "chip"
    known = sorted({*signature(HEADS[kind]).parameters} - {"dim", "outputs", "layers", "patch_size"})
    if unknown := sorted(head.keys() - {*known}):  # before the encoder runs over the set
        cause = "a misspelling, or a setting of the training: settings=FinetuneSettings(...)"
        raise ContractError("finetune", f"options {unknown}", f"some of {known} of the {kind} head", cause)
    val = val and val.with_classes(train.classes)
    L.seed_everything(s.seed, verbose=False)
    precision = check_precision(precision or clay.precision)
    if precision in ("auto", "fast"):
        device = training_device(accelerator)
        cube, _ = read_batch(clay, train, np.arange(min(s.batch_size, len(train))))
        encoder = clay.model.encoder if unfreeze == 0 else deepcopy(clay.model.encoder).to(device)
        batches = (1 if unfreeze == 0 else s.epochs) * -(-len(train) // s.batch_size)
        cube = cube.to(encoder.cls_token.device)
        precision = choose(encoder, cube, "auto", training=unfreeze != 0, batches=batches)  # never int8
    model = clay.model if unfreeze == 0 else deepcopy(clay.model)
    clay = Clay(model, reading=clay.reading, precision=precision)
    config, encoder = clay.model.config, clay.model.encoder
    unfreeze_last(encoder, unfreeze)
    layers = list((spread_layers(config.depth) if train.dense else (-1,)) if layers is None else layers)
    head_config = dict(kind=kind, dim=config.dim, outputs=len(train.classes) or 1, **head)
    if train.dense:
        head_config |= dict(layers=len(layers), patch_size=config.patch_size)
    metadata = dict(
        task=train.task, unfreeze=unfreeze, precision=precision, layers=layers, head=head_config, settings=asdict(s),
        config=asdict(config) | encoder_config(clay),
        sensor=train.sensor.name, bands=list(train.bands), gsd=train.gsd, in_decibel=train.in_decibel,
        classes=list(train.classes), codes=list(train.codes),
    )  # fmt: skip
    if val is not None:
        check_compatible(metadata, val.sensor, val.bands, val.gsd)
    keep = unfreeze == 0 and features_gb(clay, train, len(layers)) <= s.keep_gb
    features, labels = read_set(clay, train, layers, keep=keep)
    weights, metadata["scale"] = _class_weights_and_scale(train, labels, s)
    metadata["missing"] = [] if weights is None else (weights == 0).nonzero().flatten().tolist()
    network, sample = make_head(**head_config), np.random.default_rng(s.seed).permutation(len(train))[:SAMPLE]
    with torch.no_grad():
        if keep:
            network.fit(features[sample])
        else:
            network.fit(extract_features(encoder, read_batch(clay, train, sample[:16])[0], layers).to("cpu"))
    module = HeadModule(encoder, network, layers, s, weights=weights, scale=metadata["scale"], classes=train.classes)
    tuned = Finetuned(clay, network, train.sensor, train.bands, train.classes, metadata)
    best: dict[str, dict] = {}

    def keep_best() -> None:
        best["head"] = deepcopy(network.state_dict())
        if unfreeze != 0:
            best["encoder"] = deepcopy(encoder.state_dict())
        if out is not None:
            tuned.save(Path(out) / "best.safetensors")

    module.on_best = keep_best
    loaders = [make_loader(clay, train, features, labels, s, training=True)]
    if val is not None:
        loaders.append(make_loader(clay, val, *read_set(clay, val, layers, keep=keep), s, training=False))
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=lightning_precision("exact" if keep else precision),
        max_epochs=s.epochs,
        gradient_clip_val=s.clip_gradient,
        callbacks=[TQDMProgressBar(refresh_rate=10)] if progress else [],
        enable_progress_bar=progress,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        logger=False,
    )
    with matmul_precision(precision, encoder):
        trainer.fit(module.train(), *loaders)
    history = pd.DataFrame(module.history)
    if out is not None:
        tuned.save(Path(out) / "last.safetensors")
        history.to_csv(Path(out) / "history.csv", index=False)
    for name, state in best.items():
        {"head": network, "encoder": encoder}[name].load_state_dict(state)
    encoder.requires_grad_(True).eval()
    network.eval()
    return replace(tuned, history=history)


def _class_weights_and_scale(train: LabeledSet, labels: Tensor, s: FinetuneSettings):
    """(weights of the classes [K] or None, mean and standard deviation of the values)."""
    known = labels[labels != IGNORE] if train.classes else labels[labels.isfinite()].double()
    if not len(known):
        cause = "ignore= is the only class, or nodata the only value"
        raise ContractError("labels", "all ignored", "labels", cause)
    if not train.classes:
        return None, (known.mean().item(), max(known.std(correction=0).item(), 1e-6))
    known = check_class_numbers(known.numpy().ravel(), len(train.classes), "train")
    counts = np.bincount(known, minlength=len(train.classes))
    missing = [name for name, count in zip(train.classes, counts, strict=True) if not count]
    if missing and not s.allow_missing:
        cause = "a split with a class on one side alone: other blocks or seed, or FinetuneSettings(allow_missing=True)"
        raise ContractError("train", f"no label of {', '.join(missing)}", "labels of every class", cause)
    return class_weights(counts, s.balance), (0.0, 1.0)


def read_batch(clay: Clay, data: LabeledSet, rows, *, flip: int = 0, check: bool = False) -> tuple[Datacube, Tensor]:
    """Chips of a set by row number: the normalized batch on the model's device, and labels [B] or [B, H, W]."""
    samples = [data[int(i)] for i in rows]
    if len(shapes := {s.pixels.shape for s in samples}) > 1:
        raise ContractError("pixels", sorted(shapes), "one shape", "images of several sizes: pass size=")
    pixels = np.stack([flipped(s.pixels, flip) for s in samples])
    cube = clay.cube(pixels, data.sensor, check=check, **data.metadata(np.asarray(rows)))
    labels = [flipped(s.label, flip) if data.dense else s.label for s in samples]
    return cube, torch.from_numpy(np.array(labels, np.int64 if data.classes else np.float32))


def features_gb(clay: Clay, data: LabeledSet, layers: int) -> float:
    """Size in gigabytes of a frozen encoder's features for a set."""
    config, (C, H, W) = clay.model.config, data[0].pixels.shape
    patches = -(-H // config.patch_size) * -(-W // config.patch_size)
    return len(data) * 4 * (config.dim * (1 + layers * patches) + C * H * W) / 1e9


def read_set(clay: Clay, data: LabeledSet, layers, *, keep: bool) -> tuple[Features | None, Tensor]:
    """All features (None unless kept) and all labels of a set."""
    if not len(data):
        raise ContractError("data", "no chip", "at least one", "an empty split")
    if not keep:
        read_batch(clay, data, np.arange(min(16, len(data))), check=True)  # units, band order and place, once
        return None, torch.as_tensor(np.array([data[i].label for i in range(len(data))]))
    features, labels = [], []
    for rows in _batches(len(data), 16):
        cube, part = read_batch(clay, data, rows, check=not labels)
        with torch.no_grad(), clay.arithmetic(cube):
            features.append(extract_features(clay.model.encoder, cube, layers).to("cpu"))
        labels.append(part)
    return Features.concatenate(features), torch.cat(labels)


def make_loader(
    clay: Clay, data: LabeledSet, features: Features | None, labels: Tensor, s: FinetuneSettings, *, training: bool
) -> DataLoader:
    """Batches ((Datacube or Features), labels); without kept features, training chips are flipped at random."""
    rng = np.random.default_rng(s.seed)

    def collate(rows):
        rows = np.asarray(rows)
        if features is not None:
            return features[rows], labels[rows]
        return read_batch(clay, data, rows, flip=int(rng.integers(4)) if training and s.flip else 0)

    order = torch.Generator().manual_seed(s.seed)
    return DataLoader(range(len(data)), s.batch_size, shuffle=training, collate_fn=collate, generator=order)


def _batches(count: int, size: int) -> list[np.ndarray]:
    """0 ... count - 1 in order, `size` at a time."""
    return np.split(np.arange(count), range(size, count, size))
