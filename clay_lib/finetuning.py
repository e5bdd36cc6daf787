"""Fine-tuning: a head on a frozen, partly or wholly unfrozen encoder, in a few lines.

    tuned = finetune(clay, train, val, out="runs/land_cover", unfreeze=0)       # 0, a number of last blocks, or "all"
    scores = tuned.predict(test)                                                # see also predictions.predict_raster
    tuned = Finetuned.load("runs/land_cover/best.safetensors", clay)

A frozen encoder runs once over the chips and its features are kept, so that an epoch costs the head's time alone.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn

from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube
from clay_lib.datasets import IGNORE, LabelledSet
from clay_lib.files import hash_tensors
from clay_lib.head_batches import feature_gb, loader_of, read_batch, slices, stock_of
from clay_lib.head_training import HeadModule, class_weights, unfreeze_last
from clay_lib.heads import ChipHead, DenseHead, features, spread_layers
from clay_lib.model import Clay
from clay_lib.sensors import Sensor
from clay_lib.training import precision_of
from clay_lib.weightfile import open_weights, write_safetensors


@dataclass(frozen=True)
class FinetuneSettings:
    epochs: int = 20
    batch_size: int = 16  # chips
    lr: float = 2e-3  # of the head, at the top of a one-cycle schedule
    encoder_lr: float = 2e-4  # of the last block, where it is not frozen
    layer_decay: float = 0.75  # each block's rate over that of the block after it (Clark et al. 2020, ELECTRA)
    weight_decay: float = 0.05  # not of biases, norms and the class token
    warmup: float = 0.1  # share of the steps
    balance: float = 0.5  # a class weighs its share of the labels to the power of -balance; 0: all weigh the same
    allow_missing: bool = False  # classes without a label in training: never answered
    flip: bool = True  # mirror chips at random, unless their features are kept
    clip_gradient: float = 1.0  # norm
    keep_gb: float = 4.0  # of features of a frozen encoder; above it they are made anew in every epoch
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Finetuned:
    """An encoder with its head. about: what is needed to build it again and to use it, all of it JSON."""

    clay: Clay
    head: nn.Module
    sensor: Sensor
    bands: tuple[str, ...]
    classes: tuple[str, ...]
    about: dict
    history: pd.DataFrame | None = None  # one row an epoch: epoch, train/loss, val/...

    @property
    def task(self) -> str:
        return self.about["task"]

    @torch.inference_mode()
    def scores(self, cube: Datacube) -> Tensor:
        """[B, K] or [B, K, H, W]: probabilities of the classes; or values [B, 1] or [B, 1, H, W] in their own units."""
        raw = self.head.eval()(features(self.clay.model.encoder, cube, self.about["layers"])).float()
        mean, std = self.about["scale"]
        raw[:, self.about.get("missing", [])] = -torch.inf
        return raw.softmax(1) if self.classes else raw * std + mean

    def predict(self, data: LabelledSet, *, batch_size: int = 16) -> np.ndarray:
        """[N, K] or [N, K, H, W], as `scores` has them, of a set's chips, which are like those of training."""
        check_like(self.about, data.sensor, data.bands, data.gsd)
        batches = slices(len(data), batch_size)
        cubes = (read_batch(self.clay, data, rows, check=rows[0] == 0)[0] for rows in batches)
        return np.concatenate([self.scores(cube).cpu().numpy() for cube in cubes])

    def save(self, path: str | Path) -> Path:
        """The head as safetensors, and the encoder with it if it was trained; else a mark of the encoder it belongs to."""
        state = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        encoder = self.clay.model.encoder
        about = self.about | {"encoder": fingerprint(encoder)}
        if about["unfreeze"] != 0:
            state |= {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        metadata = {"clay_head": json.dumps(about)}
        return write_safetensors(path, shapes, state.values(), dtype=torch.float32, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, clay: Clay) -> Finetuned:
        """From `save`. clay: the weights that the head was trained on; of a trained encoder, any of the same
        sizes, ladder and reading.
        """
        from safetensors import safe_open

        from clay_lib.sensors import SENSORS

        file = open_weights(path)
        about = None
        if Path(path).suffix == ".safetensors":
            about = (safe_open(path, framework="pt").metadata() or {}).get("clay_head")
        if about is None:
            raise ContractError(
                "path", found=f"{path}: weights without a head", expected="what finetune saved, best.safetensors",
                cause="the encoder's own file: load it with Clay.load, and train a head with finetune",
            )  # fmt: skip
        about = json.loads(about)
        config = encoder_config(clay)
        differs = [k for k, value in config.items() if value != about["config"].get(k, value)]
        if differs:
            raise ContractError(
                "clay", found=", ".join(f"{k} {config[k]}" for k in differs),
                expected=", ".join(f"{k} {about['config'][k]}" for k in differs),
                cause=f"{path} was trained on another model: its sizes, ladder or reading",
            )  # fmt: skip
        if about["unfreeze"] != 0:
            clay = deepcopy(clay)
            own = clay.model.encoder.state_dict()
            clay.model.encoder.load_state_dict({n: file.copy(f"encoder.{n}", own[n].dtype) for n in own})
        elif (mark := fingerprint(clay.model.encoder)) != about["encoder"]:
            raise ContractError(
                "clay", found=f"an encoder marked {mark}", expected=f"{about['encoder']}, which the head was trained on",
                cause=f"other weights of the same size than {path} was trained with",
            )  # fmt: skip
        head = make_head(**about["head"])
        head.load_state_dict({n: file.copy(f"head.{n}", torch.float32) for n in head.state_dict()})
        sensor = SENSORS.resolve(about["sensor"])
        device = clay.model.encoder.cls_token.device
        return cls(clay, head.to(device).eval(), sensor, tuple(about["bands"]), tuple(about["classes"]), about)


def encoder_config(clay: Clay) -> dict:
    """All that an encoder's answer depends on besides its weights."""
    names = ("dim", "depth", "heads", "dim_head", "mlp_ratio", "patch_size", "ladder")
    return {name: getattr(clay.model.config, name) for name in names} | {"reading": clay.reading}


def check_like(about: dict, sensor: Sensor, bands: Sequence[str], gsd: float) -> None:
    """Raises ContractError for chips of another sensor, other bands or another ground distance than those of training."""
    for field, like, found, expected, cause in (
        ("sensor", sensor.name == about["sensor"], sensor.name, about["sensor"], "another set"),
        ("bands", [*bands] == about["bands"], [*bands], about["bands"], "another set; bands=[...] names them as in training"),
        ("gsd", 0.8 <= gsd / about["gsd"] <= 1.25, f"{gsd:.4g} m", f"{about['gsd']:.4g} m", "another set: gdalwarp -tr makes "
         "it alike; where files have no CRS, dataclasses.replace(data, gsd=...) says the true distance before training"),
    ):  # fmt: skip
        if not like:
            raise ContractError(
                field, found=found, expected=f"{expected}, which the head is trained on",
                cause=f"{cause}. To try it all the same: tuned.scores(clay.cube(...))",
            )  # fmt: skip


def make_head(kind: str, **sizes) -> nn.Module:
    return {"chip": ChipHead, "dense": DenseHead}[kind](**sizes)


def finetune(
    clay: Clay,
    train: LabelledSet,
    val: LabelledSet | None = None,
    *,
    out: str | Path | None = None,
    unfreeze: int | str = 0,
    layers: Sequence[int] | None = None,
    settings: FinetuneSettings | None = None,
    accelerator: str = "auto",
    progress: bool = True,
    **head,
) -> Finetuned:
    """Train a head for what `train` is labelled with, classes or values, of chips or of pixels.

    unfreeze: how many last blocks of the encoder learn as well, or "all"; clay itself is left as it is.
    layers: the blocks a dense head sees, by default four spread evenly. head: what ChipHead or DenseHead takes besides.
    With `out`, the weights best on val (mean IoU, or RMSE) and the last ones are there as best.safetensors and
    last.safetensors, and history.csv; with val, the best are what is handed back. The same seed gives the same CPU run.
    Raises ContractError for classes without a label in training, labels that are all ignored, and unlike sets.
    """
    s = settings or FinetuneSettings()
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch, as in `training.train`
    for told in (".*does not have many workers.*", ".*no `val_dataloader`.*", ".*logging interval.*"):
        warnings.filterwarnings("ignore", message=told)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if val is not None and (val.classes, val.dense) != (train.classes, train.dense):
        raise ContractError(
            "val", found=f"{val.task} of {val.classes or 'values'}",
            expected=f"{train.task} of {train.classes or 'values'}", cause="another set",
        )  # fmt: skip
    L.seed_everything(s.seed, verbose=False)
    if unfreeze != 0:
        clay = deepcopy(clay)
    config, encoder = clay.model.config, clay.model.encoder
    unfreeze_last(encoder, unfreeze)
    layers = list((spread_layers(config.depth) if train.dense else (-1,)) if layers is None else layers)
    head_of = dict(kind="dense" if train.dense else "chip", dim=config.dim, outputs=len(train.classes) or 1, **head)
    if train.dense:
        head_of |= dict(layers=len(layers), patch_size=config.patch_size)
    about = dict(
        task=train.task, unfreeze=unfreeze, layers=layers, head=head_of, settings=asdict(s),
        config=asdict(config) | encoder_config(clay),
        sensor=train.sensor.name, bands=list(train.bands), gsd=train.gsd, in_decibel=train.in_decibel,
        classes=list(train.classes), codes=list(train.codes),
    )  # fmt: skip
    if val is not None:
        check_like(about, val.sensor, val.bands, val.gsd)
    keeps = unfreeze == 0 and feature_gb(clay, train, len(layers)) <= s.keep_gb
    stock, labels = stock_of(clay, train, layers, keep=keeps)
    weights, about["scale"] = _targets(train, labels, s)
    about["missing"] = [] if weights is None else (weights == 0).nonzero().flatten().tolist()
    made = make_head(**head_of)
    some = np.random.default_rng(s.seed).permutation(len(train))[:256]
    with torch.no_grad():
        made.settle(
            stock[some] if keeps else features(encoder, read_batch(clay, train, some[:16])[0], layers).to("cpu")
        )
    module = HeadModule(encoder, made, layers, s, weights=weights, scale=about["scale"], classes=train.classes)
    tuned = Finetuned(clay, module.head, train.sensor, train.bands, train.classes, about)
    best: dict[str, dict] = {}

    def keep() -> None:
        best["head"] = deepcopy(module.head.state_dict())
        if module.learns:
            best["encoder"] = deepcopy(encoder.state_dict())
        if out is not None:
            tuned.save(Path(out) / "best.safetensors")

    module.keep = keep
    loaders = [loader_of(clay, train, stock, labels, s, training=True)]
    if val is not None:
        loaders.append(loader_of(clay, val, *stock_of(clay, val, layers, keep=keeps), s, training=False))
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision_of(accelerator),
        max_epochs=s.epochs,
        gradient_clip_val=s.clip_gradient,
        callbacks=[TQDMProgressBar(refresh_rate=10)] if progress else [],
        enable_progress_bar=progress,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        logger=False,
    )
    trainer.fit(module.train(), *loaders)
    history = pd.DataFrame(module.rows)
    if out is not None:
        tuned.save(Path(out) / "last.safetensors")
        history.to_csv(Path(out) / "history.csv", index=False)
    if best:
        module.head.load_state_dict(best["head"])
        if module.learns:
            encoder.load_state_dict(best["encoder"])
    encoder.requires_grad_(True).eval()  # as it came
    return replace(tuned, head=module.head.eval(), history=history)


def _targets(train: LabelledSet, labels: Tensor, s: FinetuneSettings) -> tuple[Tensor | None, tuple[float, float]]:
    """(weights of the classes or None, mean and standard deviation of the values)."""
    if not train.classes:
        known = labels[labels.isfinite()].double()
        if not len(known):
            raise ContractError("labels", found="all NaN", expected="values", cause="nodata is what all of them hold")
        return None, (known.mean().item(), max(known.std(correction=0).item(), 1e-6))
    known = labels[labels != IGNORE]
    if not len(known):
        raise ContractError(
            "labels", found="all ignored", expected="labels", cause="ignore= is the only class there is"
        )
    counts = np.bincount(known.numpy().ravel(), minlength=len(train.classes))
    if len(counts) > len(train.classes) or known.min() < 0:
        found = f"class numbers {known.min()} to {known.max()}"
        raise ContractError(
            "labels", found=found, expected=f"0 to {len(train.classes) - 1}", cause="a class without a name in classes"
        )
    missing = [name for name, count in zip(train.classes, counts, strict=True) if not count]
    if missing and not s.allow_missing:
        raise ContractError(
            "train", found=f"no label of {', '.join(missing)}", expected="labels of every class",
            cause="a split that put all of a class on one side: other blocks or seed, fewer classes, or "
            "FinetuneSettings(allow_missing=True), and it is never answered",
        )  # fmt: skip
    return class_weights(counts, s.balance), (0.0, 1.0)


def fingerprint(encoder: nn.Module) -> str:
    """16 hexadecimal digits of the weights."""
    return hash_tensors(encoder.state_dict())[:16]
