"""Training: the LightningModule, the release notes' optimiser, schedule and losses, and one function that runs them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LRScheduler

from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube
from clay_lib.datamodule import Batch, ClayDataModule
from clay_lib.loss import reconstruction_loss, representation_loss
from clay_lib.model import Clay, ClayConfig, ClayMAE
from clay_lib.sensors import SENSORS
from clay_lib.teacher import Teacher, teacher_view


@dataclass(frozen=True)
class TrainSettings:
    """The release notes' values as defaults; every one of them can be set."""

    lr: float = 1e-5
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    embedding_lr_factor: float = 1.0  # on the rate of the encoder's patch embedding
    head_lr_factor: float = 1.0  # on the rate of the decoder's pixel head
    schedule: str = "warm_restarts"  # or "one_cycle": linear warm-up, then a cosine down to zero over max_steps
    t_0: int = 1000  # steps of the first cycle
    t_mult: int = 2
    eta_min_factor: float = 100.0  # eta_min = 100 lr: inside a cycle the rate rises, at a restart it falls back
    warmup_steps: int = 0  # of one_cycle
    reconstruction_weight: float = 0.95
    representation_weight: float = 0.05
    norm_pix_loss: bool = False
    drop_all_bands: float = 0.1  # share of samples of known place whose input loses every band, while training
    drop_half_bands: float = 0.2  # share that loses half of them
    sensor_weights: Mapping[str, float] = field(default_factory=dict)  # factors on a sensor's loss; 1 where unnamed
    clip_gradient: float | None = None  # norm
    max_steps: int = 1000
    seed: int = 0


def drop_bands(cube: Datacube, *, drop_all: float, drop_half: float) -> Datacube:
    """The input with bands zeroed in some samples of known place; the target stays the whole cube.

    A share drop_all of them loses every band, a share drop_half a random half (at least one band is kept).
    """
    B, C = cube.pixels.shape[:2]
    device = cube.pixels.device
    draw = torch.rand(B, 1, device=device)
    rank = torch.rand(B, C, device=device).argsort(dim=1)
    kept = torch.where(draw < drop_all, 0, torch.where(draw < drop_all + drop_half, (C + 1) // 2, C))
    known = cube.latlon.abs().sum(1, keepdim=True) > 0
    keep = (rank < kept) | ~known
    return cube.with_pixels(cube.pixels * keep[:, :, None, None])


def schedule(optimizer: torch.optim.Optimizer, s: TrainSettings) -> LRScheduler:
    """The learning rate, stepped once a batch."""
    if s.schedule == "warm_restarts":
        return CosineAnnealingWarmRestarts(optimizer, s.t_0, s.t_mult, eta_min=s.eta_min_factor * s.lr)
    if s.schedule == "one_cycle":

        def factor(step: int) -> float:
            rise = (step + 1) / (s.warmup_steps + 1)
            done = (step - s.warmup_steps) / max(s.max_steps - s.warmup_steps, 1)
            return min(rise, 0.5 + 0.5 * float(torch.cos(torch.tensor(torch.pi * min(max(done, 0.0), 1.0)))))

        return LambdaLR(optimizer, factor)
    raise ContractError(
        "schedule", found=repr(s.schedule), expected="'warm_restarts' or 'one_cycle'", cause="a misspelling"
    )


class ClayModule(L.LightningModule):
    """One training step of Clay. `teacher` is frozen and no submodule, so it is neither trained nor saved."""

    def __init__(self, config: ClayConfig, settings: TrainSettings | None = None, teacher: Teacher | None = None):
        super().__init__()
        self.settings = settings or TrainSettings()
        self.model = ClayMAE(config)
        if teacher is not None and teacher.dim != config.teacher_dim:
            raise ContractError(
                "teacher_dim",
                found=config.teacher_dim,
                expected=teacher.dim,
                cause="ClayConfig(teacher_dim=...) of another teacher",
            )
        self._teacher = [] if teacher is None else [teacher]  # in a list, where torch does not look for modules
        self.save_hyperparameters({"config": asdict(config), "settings": _plain(asdict(self.settings))})

    def setup(self, stage: str) -> None:
        self._teacher = [teacher.to(self.device) for teacher in self._teacher]

    def losses(self, batch: Batch, *, training: bool) -> dict[str, Tensor]:
        """loss, and its two parts before weighting; representation only with a teacher."""
        s, cube = self.settings, batch.cube
        seen = drop_bands(cube, drop_all=s.drop_all_bands, drop_half=s.drop_half_bands) if training else cube
        out = self.model(seen)
        parts = {
            "reconstruction": reconstruction_loss(
                out.reconstruction,
                cube.pixels,
                out.encoded.mask,
                patch_size=self.model.config.patch_size,
                norm_pix_loss=s.norm_pix_loss,
            )
        }
        loss = parts["reconstruction"] if not self._teacher else s.reconstruction_weight * parts["reconstruction"]
        if self._teacher:
            target = self._teacher[0](teacher_view(cube.pixels, SENSORS[batch.sensor]))
            parts["representation"] = representation_loss(out.representation, target)
            loss = loss + s.representation_weight * parts["representation"]
        return {"loss": s.sensor_weights.get(batch.sensor, 1.0) * loss, **parts}

    def training_step(self, batch: Batch, _: int) -> Tensor:
        losses = self.losses(batch, training=True)
        self._log("train", batch, losses, on_step=True, on_epoch=False)
        return losses["loss"]

    def validation_step(self, batch: Batch, _: int) -> None:
        self._log("val", batch, self.losses(batch, training=False), on_step=False, on_epoch=True)

    def _log(self, stage: str, batch: Batch, losses: dict[str, Tensor], **when: bool) -> None:
        values = {f"{stage}/{name}": value.detach() for name, value in losses.items()}
        values[f"{stage}/{batch.sensor}"] = losses["reconstruction"].detach()
        self.log_dict(values, batch_size=len(batch.cube), sync_dist=stage == "val", **when)
        self.log("loss", losses["loss"].detach(), prog_bar=True, logger=False, batch_size=len(batch.cube))

    def configure_optimizers(self):
        s = self.settings
        factors = {"encoder.patch_embedding.": s.embedding_lr_factor, "decoder.embed_to_pixels.": s.head_lr_factor}
        groups = {factor: [] for factor in (1.0, *factors.values())}
        for name, parameter in self.model.named_parameters():
            groups[next((f for part, f in factors.items() if name.startswith(part)), 1.0)].append(parameter)
        groups = [{"params": params, "lr": factor * s.lr} for factor, params in groups.items()]
        optimizer = torch.optim.AdamW(groups, lr=s.lr, weight_decay=s.weight_decay, betas=s.betas, fused=True)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer, s), "interval": "step"}}


class Snapshots(L.Callback):
    """Keeps what the model makes of one batch, the same patches hidden each time: {step: reconstruction [B, L, C*P*P]}."""

    def __init__(self, batch: Batch, steps: tuple[int, ...], *, seed: int = 0):
        self.batch, self.steps, self.seed = batch, steps, seed
        self.taken: dict[int, Tensor] = {}
        self.mask: Tensor | None = None  # [B, L], 1 = masked

    def on_train_start(self, trainer: L.Trainer, module: ClayModule) -> None:
        self._take(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: ClayModule, *_) -> None:
        self._take(trainer, module)

    @torch.no_grad()
    def _take(self, trainer: L.Trainer, module: ClayModule) -> None:
        if trainer.global_step in self.steps and trainer.global_step not in self.taken:
            generator = torch.Generator(module.device).manual_seed(self.seed)
            out = module.model(self.batch.cube.to(module.device), generator=generator)
            self.taken[trainer.global_step] = out.reconstruction.float().cpu()
            self.mask = out.encoded.mask.cpu()


@dataclass(frozen=True)
class Trained:
    clay: Clay
    history: pd.DataFrame  # one row a logged step: step, epoch, lr, train/..., val/...
    checkpoint: Path  # Lightning's, to resume from and for Clay.load


def train(
    config: ClayConfig,
    settings: TrainSettings,
    data: ClayDataModule,
    *,
    out: str | Path,
    teacher: Teacher | None = None,
    start: Clay | None = None,
    resume: str | Path | None = None,
    accelerator: str = "auto",
    precision: str | None = None,
    progress: bool = True,
    log_every: int = 10,
    callbacks: tuple[L.Callback, ...] = (),
    **trainer_options,
) -> Trained:
    """Train for settings.max_steps on the GPU, MPS or CPU that is found; the same seed gives the same CPU run twice.

    Writes checkpoints and metrics.csv under `out`. start: a model of the same configuration whose weights are the first
    ones. resume: a checkpoint of ours, to go on where it was. precision: bf16 on a GPU, float32 elsewhere, unless named.
    """
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch, nothing a reader can mend
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements in a notebook
    L.seed_everything(settings.seed, verbose=False)
    log_every = min(log_every, settings.max_steps)
    module = ClayModule(config, settings, teacher)
    if start is not None:
        if start.model.config != config:
            raise ContractError("start", found=start.model.config, expected=config, cause="weights of another size")
        module.model.load_state_dict(start.model.state_dict())
    if precision is None:
        precision = "bf16-mixed" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "32-true"
    keep = ModelCheckpoint(Path(out) / "checkpoints", filename="clay-{step}", save_last=True)
    logger = CSVLogger(out, name=None, version="log")
    trainer = L.Trainer(
        accelerator=accelerator,
        devices="auto" if torch.cuda.is_available() else 1,
        precision=precision,
        max_steps=settings.max_steps,
        max_epochs=-1,
        gradient_clip_val=settings.clip_gradient,
        logger=logger,
        callbacks=[keep, L.pytorch.callbacks.LearningRateMonitor("step"), *callbacks]
        + ([TQDMProgressBar(refresh_rate=log_every)] if progress else []),
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=log_every,
        use_distributed_sampler=False,  # SensorBatches shares the chips out among ranks itself
        deterministic="warn" if torch.cuda.is_available() else True,
        **trainer_options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    trainer.save_checkpoint(keep.last_model_path or Path(out) / "checkpoints" / "last.ckpt")
    logger.save()
    history = pd.read_csv(Path(logger.log_dir) / "metrics.csv").rename(columns={"lr-AdamW": "lr"})
    return Trained(Clay(module.model.cpu()), history, Path(out) / "checkpoints" / "last.ckpt")


def _plain(values: dict) -> dict:
    """Settings as the plain types that a safely read checkpoint may hold."""
    return {k: dict(v) if isinstance(v, Mapping) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}
