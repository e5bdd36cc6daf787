"""How a head learns: the loss, what learns how fast, and a training step.

Used by `finetuning.finetune`, which says what is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.classwise import class_scores, confusions
from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube
from clay_lib.datasets import IGNORE
from clay_lib.encoder import Encoder
from clay_lib.heads import Features, features

if TYPE_CHECKING:
    from clay_lib.finetuning import FinetuneSettings

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
            "unfreeze",
            found=repr(unfreeze),
            expected=f"0 to {depth} last blocks, or 'all'",
            cause="a model of another depth",
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
