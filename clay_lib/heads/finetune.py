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
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from clay_lib.checkpoint import read_tensors, save_tensors
from clay_lib.clay import Clay
from clay_lib.data.augment import flipped
from clay_lib.data.labels import IGNORE, LabeledSet
from clay_lib.datacube import Datacube
from clay_lib.encoder import Encoder
from clay_lib.errors import ContractError
from clay_lib.evaluation.segmentation import class_scores, confusions
from clay_lib.files import hash_tensors
from clay_lib.heads.heads import ChipHead, DenseHead, Features, features, spread_layers
from clay_lib.sensors import Sensor
from clay_lib.training import precision_of


def read_batch(clay: Clay, data: LabeledSet, rows, *, flip: int = 0, check: bool = False) -> tuple[Datacube, Tensor]:
    """Chips of a set by their place in it: the normalised batch on the model's device, and labels [B] or [B, H, W]."""
    samples = [data[int(i)] for i in rows]
    if len(shapes := {s.pixels.shape for s in samples}) > 1:
        raise ContractError("pixels", sorted(shapes), "one shape", "images of several sizes: size=")
    pixels = np.stack([flipped(s.pixels, flip) for s in samples])
    cube = clay.cube(pixels, data.sensor, check=check, **data.metadata(np.asarray(rows)))
    labels = [flipped(s.label, flip) if data.dense else s.label for s in samples]
    return cube, torch.from_numpy(np.array(labels, np.int64 if data.classes else np.float32))


def feature_gb(clay: Clay, data: LabeledSet, layers: int) -> float:
    """Gigabytes of what a frozen encoder says of a set."""
    config, (C, H, W) = clay.model.config, data[0].pixels.shape
    patches = -(-H // config.patch_size) * -(-W // config.patch_size)
    return len(data) * 4 * (config.dim * (1 + layers * patches) + C * H * W) / 1e9


def stock_of(clay: Clay, data: LabeledSet, layers, *, keep: bool) -> tuple[Features | None, Tensor]:
    """What can be made once: the features if they are kept, and all labels."""
    if not len(data):
        raise ContractError("data", "no chip", "at least one", "an empty split")
    kept, labels = [], []
    for rows in slices(len(data), 16):
        if keep:
            cube, some = read_batch(clay, data, rows, check=not labels)
            with torch.inference_mode():
                kept.append(features(clay.model.encoder, cube, layers).to("cpu"))
        else:
            some = torch.as_tensor(np.array([data[int(i)].label for i in rows]))
        labels.append(some)
    if not keep:  # units, band order and place are looked at once
        read_batch(clay, data, np.arange(min(16, len(data))), check=True)
    whole = Features(*(torch.cat([getattr(f, name) for f in kept]).clone() for name in vars(kept[0]))) if kept else None
    return whole, torch.cat(labels)


def loader_of(clay: Clay, data: LabeledSet, stock: Features | None, labels: Tensor, s, *, training: bool) -> DataLoader:
    """Batches ((Datacube or Features), labels); chips read anew are mirrored at random while training."""
    rng = np.random.default_rng(s.seed)

    def collate(rows):
        rows = np.asarray(rows)
        if stock is not None:
            return stock[rows], labels[rows]
        return read_batch(clay, data, rows, flip=int(rng.integers(4)) if training and s.flip else 0)

    order = torch.Generator().manual_seed(s.seed)
    return DataLoader(range(len(data)), s.batch_size, shuffle=training, collate_fn=collate, generator=order)


def slices(count: int, size: int) -> Iterator[np.ndarray]:
    """0 ... count - 1 in turn, `size` at a time."""
    return (np.arange(start, min(start + size, count)) for start in range(0, count, size))


# ---- Fine-tuning: a head on a frozen, partly or wholly unfrozen encoder, in a few lines ----


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

    def predict(self, data: LabeledSet, *, batch_size: int = 16) -> np.ndarray:
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
        return save_tensors(path, state, dtype=torch.float32, metadata={"clay_head": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path, clay: Clay) -> Finetuned:
        """From `save`. clay: the weights that the head was trained on; of a trained encoder, any of the same
        sizes, frequencies and reading.
        """
        from clay_lib.sensors import SENSORS

        tensors, metadata = read_tensors(path)
        about = metadata.get("clay_head")
        if about is None:
            raise ContractError("path", f"{path}: weights without a head", "what finetune saved, best.safetensors", "the encoder's own file: load it with Clay.load, and train a head with finetune")  # fmt: skip
        about = json.loads(about)
        config = encoder_config(clay)
        differs = [k for k, value in config.items() if value != about["config"].get(k, value)]
        if differs:
            raise ContractError("clay", ", ".join(f"{k} {config[k]}" for k in differs), ", ".join(f"{k} {about['config'][k]}" for k in differs), f"{path} was trained on another model: its sizes, frequencies or reading")  # fmt: skip
        if about["unfreeze"] != 0:
            clay = deepcopy(clay)
            own = clay.model.encoder.state_dict()
            clay.model.encoder.load_state_dict({n: tensors[f"encoder.{n}"] for n in own})
        elif (mark := fingerprint(clay.model.encoder)) != about["encoder"]:
            raise ContractError("clay", f"an encoder marked {mark}", f"{about['encoder']}, which the head was trained on", f"other weights of the same size than {path} was trained with")  # fmt: skip
        head = make_head(**about["head"])
        head.load_state_dict({n: tensors[f"head.{n}"] for n in head.state_dict()})
        sensor = SENSORS.resolve(about["sensor"])
        device = clay.model.encoder.cls_token.device
        return cls(clay, head.to(device).eval(), sensor, tuple(about["bands"]), tuple(about["classes"]), about)


def encoder_config(clay: Clay) -> dict:
    """All that an encoder's answer depends on besides its weights."""
    names = ("dim", "depth", "heads", "dim_head", "mlp_ratio", "patch_size", "frequencies")
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
            raise ContractError(field, found, f"{expected}, which the head is trained on", f"{cause}. To try it all the same: tuned.scores(clay.cube(...))")  # fmt: skip


def make_head(kind: str, **sizes) -> nn.Module:
    return {"chip": ChipHead, "dense": DenseHead}[kind](**sizes)


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
        raise ContractError("val", f"{val.task} of {val.classes or 'values'}", f"{train.task} of {train.classes or 'values'}", "another set")  # fmt: skip
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


def _targets(train: LabeledSet, labels: Tensor, s: FinetuneSettings) -> tuple[Tensor | None, tuple[float, float]]:
    """(weights of the classes or None, mean and standard deviation of the values)."""
    if not train.classes:
        known = labels[labels.isfinite()].double()
        if not len(known):
            raise ContractError("labels", "all NaN", "values", "nodata is what all of them hold")
        return None, (known.mean().item(), max(known.std(correction=0).item(), 1e-6))
    known = labels[labels != IGNORE]
    if not len(known):
        raise ContractError("labels", "all ignored", "labels", "ignore= is the only class there is")
    counts = np.bincount(known.numpy().ravel(), minlength=len(train.classes))
    if len(counts) > len(train.classes) or known.min() < 0:
        found = f"class numbers {known.min()} to {known.max()}"
        raise ContractError("labels", found, f"0 to {len(train.classes) - 1}", "a class without a name in classes")
    missing = [name for name, count in zip(train.classes, counts, strict=True) if not count]
    if missing and not s.allow_missing:
        raise ContractError("train", f"no label of {', '.join(missing)}", "labels of every class", "a split that put all of a class on one side: other blocks or seed, fewer classes, or "
            "FinetuneSettings(allow_missing=True), and it is never answered")  # fmt: skip
    return class_weights(counts, s.balance), (0.0, 1.0)


def fingerprint(encoder: nn.Module) -> str:
    """16 hexadecimal digits of the weights."""
    return hash_tensors(encoder.state_dict())[:16]


# ---- How a head learns: the loss, what learns how fast, and a training step ----

PIXEL_STEP = 4  # of a dense head, while it trains: one pixel in sixteen


def encoder_factor(name: str, depth: int, decay: float) -> float:
    """What a parameter of the encoder multiplies the rate by: 1 in the last block and norm, decay^depth before the first."""
    part = name.split(".")
    if part[:2] == ["transformer", "layers"]:
        return decay ** (depth - 1 - int(part[2]))
    return 1.0 if part[0] == "transformer" else decay**depth


def parameter_groups(encoder: Encoder, head: nn.Module, s: FinetuneSettings) -> list[dict]:
    """Groups of equal rate and weight decay, for what is not frozen."""
    depth, groups = len(encoder.transformer.layers), {}
    rates = {
        f"encoder.{n}": s.encoder_lr * encoder_factor(n, depth, s.layer_decay) for n, _ in encoder.named_parameters()
    }
    for prefix, module in (("head", head), ("encoder", encoder)):
        for name, parameter in module.named_parameters(prefix=prefix):
            if parameter.requires_grad:
                decays = s.weight_decay if parameter.ndim > 1 and not name.endswith("cls_token") else 0.0
                groups.setdefault((rates.get(name, s.lr), decays), []).append(parameter)
    return [dict(params=params, lr=lr, weight_decay=decay) for (lr, decay), params in groups.items()]


def unfreeze_last(encoder: Encoder, unfreeze: int | str) -> None:
    """Let the last blocks and the final norm learn, or "all", or none; the rest is frozen."""
    depth = len(encoder.transformer.layers)
    whole = isinstance(unfreeze, int) and not isinstance(unfreeze, bool)
    if unfreeze != "all" and not (whole and 0 <= unfreeze <= depth):
        raise ContractError(
            "unfreeze", repr(unfreeze), f"0 to {depth} last blocks, or 'all'", "a model of another depth"
        )
    encoder.requires_grad_(unfreeze == "all")
    if unfreeze != "all" and unfreeze > 0:
        encoder.transformer.norm.requires_grad_(True)
        encoder.transformer.layers[depth - unfreeze :].requires_grad_(True)


def class_weights(counts: np.ndarray, balance: float) -> Tensor:
    """Labels of each class [K] -> weights [K], share^-balance, with mean 1 over the labels; 0 for a class without any."""
    share = counts / max(counts.sum(), 1)
    weights = np.where(counts > 0, np.maximum(share, 1e-12) ** -balance, 0.0)
    return torch.as_tensor(weights / max((weights * share).sum(), 1e-12), dtype=torch.float32)


def task_loss(scores: Tensor, labels: Tensor, weights: Tensor | None, scale: tuple[float, float]) -> Tensor:
    """Cross entropy over labels that are not IGNORE, or squared error, in units of scale = (mean, std), where not NaN.

    A batch without a label gives zero, and zero gradients, not NaN.
    """
    if weights is not None:
        known = labels != IGNORE
        if not known.any():
            return 0.0 * scores.sum()
        return F.cross_entropy(scores.float(), labels, weight=weights.to(scores.device), ignore_index=IGNORE)
    target = (labels - scale[0]) / scale[1]
    known = target.isfinite()
    error = scores.float().squeeze(1) - torch.where(known, target, 0.0)
    return (error.square() * known).sum() / known.sum().clamp(min=1)


class HeadModule(L.LightningModule):
    """One training step of a head, on batches ((Datacube or Features), labels)."""

    def __init__(self, encoder: Encoder, head: nn.Module, layers: Sequence[int], settings: FinetuneSettings, **task):
        super().__init__()
        self.head, self.layers, self.settings = head, tuple(layers), settings
        self.learns = any(p.requires_grad for p in encoder.parameters())
        self._frozen = [] if self.learns else [encoder]  # in a list, where torch does not look for modules
        self.learning = encoder if self.learns else None
        self.weights: Tensor | None = task.get("weights")  # of the classes; None: regression
        self.scale: tuple[float, float] = task.get("scale", (0.0, 1.0))
        self.names: tuple[str, ...] = task.get("classes", ())
        self.rows: list[dict] = []
        self._losses, self._seen, self.best, self.keep = [], [], None, None

    @property
    def encoder(self) -> Encoder:
        return self.learning if self.learns else self._frozen[0]

    def setup(self, stage: str) -> None:
        self._frozen = [encoder.to(self.device) for encoder in self._frozen]

    def train(self, mode: bool = True):
        super().train(mode)
        self.encoder.eval() if not self.learns else self.encoder.train(mode)
        return self

    def forward(self, seen: Datacube | Features, **pick) -> Tensor:
        """[B, K] or [B, K, H, W]: scores of classes, or standardised values."""
        if isinstance(seen, Datacube):
            with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
                seen = features(self.encoder, seen, self.layers)
        return self.head(seen, **pick)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        seen, labels = batch
        return seen.to(device), labels.to(device)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        seen, labels = batch
        pick = {}
        if labels.ndim == 3:  # neighbours say much the same: every few pixels, from another corner each time
            rows, columns = (slice(int(k), None, PIXEL_STEP) for k in torch.randint(PIXEL_STEP, (2,)))
            labels, pick = labels[:, rows, columns], {"pick": (rows, columns)}
        loss = task_loss(self(seen, **pick), labels, self.weights, self.scale)
        self._losses.append(loss.detach())
        return loss

    def validation_step(self, batch, batch_idx: int) -> None:
        seen, labels = batch
        scores = self(seen)
        loss = task_loss(scores, labels, self.weights, self.scale)
        if self.weights is not None:
            scores[:, self.weights.to(scores.device) == 0] = -torch.inf  # classes without a label
            told = confusions(labels.cpu().numpy(), scores.argmax(1).cpu().numpy(), len(self.weights))
        else:
            told = (scores.float().squeeze(1) * self.scale[1] + self.scale[0] - labels).square().flatten().cpu().numpy()
        self._seen.append((loss.item(), told))

    def on_validation_epoch_end(self) -> None:
        told = np.concatenate([t for _, t in self._seen])
        row = {"epoch": self.current_epoch, "val/loss": float(np.mean([loss for loss, _ in self._seen]))}
        if self.weights is not None:
            table = class_scores(told, self.names, bootstraps=0).set_index("class")
            row |= {"val/mean IoU": table.loc["mean", "IoU"], "val/mean F1": table.loc["mean", "F1"]}
            good = row["val/mean IoU"]
        else:
            row["val/RMSE"] = float(np.sqrt(np.nanmean(told)))
            good = -row["val/RMSE"]
        self._seen.clear()
        if self.trainer.sanity_checking:
            return
        self.rows.append(row)
        if self.keep is not None and (self.best is None or good > self.best):
            self.best = good
            self.keep()

    def on_train_epoch_end(self) -> None:
        row = {"epoch": self.current_epoch, "train/loss": float(torch.stack(self._losses).mean())}
        self._losses.clear()
        if self.rows and self.rows[-1]["epoch"] == row["epoch"]:
            self.rows[-1] |= row
        else:
            self.rows.append(row)

    def configure_optimizers(self):
        groups = parameter_groups(self.encoder, self.head, self.settings)
        steps, warmup = self.trainer.estimated_stepping_batches, self.settings.warmup
        # OneCycleLR divides by the length of either part of its cycle, so that neither may be zero
        warmup = 0.0 if warmup * steps == 1 else min(warmup, 1 - 1e-6)
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
            total_steps=steps,
            pct_start=warmup,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
