"""Training of a head: its settings, learning rates, loss, and the Lightning module."""

from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.data.labels import IGNORE
from clay_lib.datacube import Datacube
from clay_lib.encoder import Encoder
from clay_lib.errors import ContractError, Count, NonNegative, Share, check_ranges
from clay_lib.evaluation.segmentation import class_scores, confusions
from clay_lib.heads.heads import Features, extract_features

PIXEL_STEP = 4  # a dense head trains on every fourth row and column of pixels


@dataclass(frozen=True)
class FinetuneSettings:
    """Schedule, optimizer and losses of fine-tuning."""

    epochs: Count = 20
    batch_size: Count = 16  # chips
    lr: NonNegative = 2e-3  # of the head, at the top of a one-cycle schedule
    encoder_lr: NonNegative = 2e-4  # of the last block, where it is not frozen
    layer_decay: Share = 0.75  # each block's rate over that of the block after it (Clark et al. 2020, ELECTRA)
    weight_decay: NonNegative = 0.05  # not of biases, norms and the class token
    warmup: Share = 0.1  # share of the steps
    balance: NonNegative = 0.5  # class weights are (share of the labels)^-balance; 0: equal weights
    allow_missing: bool = False  # accept classes without training labels, which are never predicted
    flip: bool = True  # mirror chips at random, unless their features are kept
    clip_gradient: NonNegative = 1.0  # norm
    keep_gb: NonNegative = 4.0  # of a frozen encoder's features to keep; larger ones are computed again in every epoch
    seed: int = 0

    def __post_init__(self):
        check_ranges(vars(self), type(self))


def layer_factor(name: str, depth: int, decay: float) -> float:
    """Learning-rate factor of an encoder's parameter: 1 in the last block and norm, decay^depth before the first."""
    part = name.split(".")
    if part[:2] == ["transformer", "layers"]:
        return decay ** (depth - 1 - int(part[2]))
    return 1.0 if part[0] == "transformer" else decay**depth


def parameter_groups(encoder: Encoder, head: nn.Module, s: FinetuneSettings) -> list[dict]:
    """Optimizer groups of all trainable parameters, by learning rate and weight decay."""
    depth, groups = len(encoder.transformer.layers), {}
    for module in (head, encoder):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                lr = s.lr if module is head else s.encoder_lr * layer_factor(name, depth, s.layer_decay)
                decay = s.weight_decay if parameter.ndim > 1 and name != "cls_token" else 0.0
                groups.setdefault((lr, decay), []).append(parameter)
    return [dict(params=params, lr=lr, weight_decay=decay) for (lr, decay), params in groups.items()]


def unfreeze_last(encoder: Encoder, unfreeze: int | str) -> None:
    """Make the last blocks and the final norm trainable, or "all", or none; the rest is frozen."""
    depth = len(encoder.transformer.layers)
    if unfreeze != "all" and unfreeze not in range(depth + 1):
        expected = f"0 to {depth} last blocks, or 'all'"
        raise ContractError("unfreeze", repr(unfreeze), expected, "a model of another depth")
    encoder.requires_grad_(unfreeze == "all")
    if unfreeze not in ("all", 0):
        encoder.transformer.norm.requires_grad_(True)
        encoder.transformer.layers[depth - unfreeze :].requires_grad_(True)


def class_weights(counts: np.ndarray, balance: float) -> Tensor:
    """Labels of each class [K] -> weights [K], share^-balance, with mean 1 over the labels; 0 for absent classes."""
    share = counts / max(counts.sum(), 1)
    weights = np.where(counts > 0, np.maximum(share, 1e-12) ** -balance, 0.0)
    return torch.as_tensor(weights / max((weights * share).sum(), 1e-12), dtype=torch.float32)


def task_loss(scores: Tensor, labels: Tensor, weights: Tensor | None, scale: tuple[float, float]) -> Tensor:
    """Cross entropy over labels that are not IGNORE, or squared error, in units of scale = (mean, std), where not NaN.

    scores [B, K, ...], labels [B, ...]. A batch without a label gives zero, and zero gradients, not NaN.
    """
    if weights is not None:
        if not (labels != IGNORE).any():
            return 0.0 * scores.sum()
        return F.cross_entropy(scores.float(), labels, weight=weights.to(scores.device), ignore_index=IGNORE)
    target = (labels - scale[0]) / scale[1]
    known = target.isfinite()
    error = scores.float().squeeze(1) - torch.where(known, target, 0.0)
    return (error.square() * known).sum() / known.sum().clamp(min=1)


class HeadModule(L.LightningModule):
    """Training and validation of a head, on batches ((Datacube or Features), labels)."""

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        layers: Sequence[int],
        settings: FinetuneSettings,
        *,
        weights: Tensor | None,  # of the classes; None: regression
        scale: tuple[float, float],
        classes: tuple[str, ...],
    ):
        super().__init__()
        self.head, self.layers, self.settings = head, tuple(layers), settings
        self.trains_encoder = any(p.requires_grad for p in encoder.parameters())
        self.trained = encoder if self.trains_encoder else None
        self._encoder = [encoder]  # in a list, so that it is no submodule
        self.weights, self.scale, self.classes = weights, scale, classes
        self.history: list[dict] = []
        self.best, self.on_best = -np.inf, lambda: None
        self._losses, self._validated = [], []

    @property
    def encoder(self) -> Encoder:
        return self._encoder[0]

    def setup(self, stage: str) -> None:
        self.encoder.to(self.device)

    def train(self, mode: bool = True):
        super().train(mode)
        self.encoder.train(mode and self.trains_encoder)
        return self

    def forward(self, x: Datacube | Features, **options) -> Tensor:
        """[B, K] or [B, K, H, W]: logits of classes, or standardized values."""
        if isinstance(x, Datacube):
            with torch.set_grad_enabled(self.trains_encoder and torch.is_grad_enabled()):
                x = extract_features(self.encoder, x, self.layers)
        return self.head(x, **options)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return tuple(part.to(device) for part in batch)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        x, labels = batch
        options = {}
        if labels.ndim == 3:  # neighbors are similar: every fourth pixel, with a random offset
            rows, columns = (slice(int(k), None, PIXEL_STEP) for k in torch.randint(PIXEL_STEP, (2,)))
            labels, options = labels[:, rows, columns], {"select": (rows, columns)}
        loss = task_loss(self(x, **options), labels, self.weights, self.scale)
        self._losses.append(loss.detach())
        return loss

    def validation_step(self, batch, batch_idx: int) -> None:
        x, labels = batch
        scores = self(x)
        loss = task_loss(scores, labels, self.weights, self.scale)
        if self.weights is not None:
            scores[:, self.weights.to(scores.device) == 0] = -torch.inf  # classes without a label
            result = confusions(labels.cpu().numpy(), scores.argmax(1).cpu().numpy(), len(self.weights))
        else:
            values = scores.float().squeeze(1) * self.scale[1] + self.scale[0]
            result = (values - labels).square().flatten().cpu().numpy()  # squared errors
        self._validated.append((loss.item(), result))

    def on_validation_epoch_end(self) -> None:
        losses, results = zip(*self._validated, strict=True)
        self._validated.clear()
        row = {"epoch": self.current_epoch, "val/loss": float(np.mean(losses))}
        if self.weights is not None:
            table = class_scores(np.concatenate(results), self.classes, bootstraps=0).set_index("class")
            row |= {"val/mean IoU": table.loc["mean", "IoU"], "val/mean F1": table.loc["mean", "F1"]}
            score = row["val/mean IoU"]
        else:
            row["val/RMSE"] = float(np.sqrt(np.nanmean(np.concatenate(results))))
            score = -row["val/RMSE"]
        self.history.append(row)
        if score > self.best:
            self.best = score
            self.on_best()

    def on_train_epoch_end(self) -> None:
        row = {"epoch": self.current_epoch, "train/loss": float(torch.stack(self._losses).mean())}
        self._losses.clear()
        if self.history and self.history[-1]["epoch"] == row["epoch"]:
            self.history[-1] |= row
        else:
            self.history.append(row)

    def configure_optimizers(self):
        groups = parameter_groups(self.encoder, self.head, self.settings)
        steps, warmup = self.trainer.estimated_stepping_batches, self.settings.warmup
        # OneCycleLR divides by the length of both parts of its cycle, which must not be zero
        warmup = 0.0 if warmup * steps == 1 else min(warmup, 1 - 1e-6)
        optimizer, rates = torch.optim.AdamW(groups, fused=True), [group["lr"] for group in groups]
        options = dict(total_steps=steps, pct_start=warmup, cycle_momentum=False)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, **options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
