"""Training: optimizer, learning-rate schedule and losses of the release; runs resume exactly after a kill."""

import json
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import lightning as L
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from clay_lib.callbacks import LAST, Checkpoints, newest_checkpoint, read_checkpoint
from clay_lib.checkpoint import stored_config
from clay_lib.cluster import progress_bar
from clay_lib.data.augment import drop_bands
from clay_lib.datamodule import Batch, ClayDataModule
from clay_lib.errors import ContractError, Count, NonNegative, Range, Share, check_ranges
from clay_lib.files import MetricsFile
from clay_lib.loss import RunningMeans, reconstruction_loss, representation_loss
from clay_lib.model import ClayConfig, ClayMAE, WeightAverage
from clay_lib.precision import (
    check_precision,
    choose,
    lightning_precision,
    limit_threads,
    matmul_precision,
    training_device,
)
from clay_lib.sensors import SENSORS
from clay_lib.teacher import PatchHeads, teacher_target

PATCH_HEADS_LR = 10.0  # factor on the rate: linear heads that start at zero


@dataclass(frozen=True)
class TrainSettings:
    """Optimizer, schedule and losses; the defaults are the values of the release notes."""

    lr: Share = 1e-5
    weight_decay: NonNegative = 0.05
    betas: Annotated[tuple[float, float], Range(0, 0.999999)] = (0.9, 0.95)
    embedding_lr_factor: NonNegative = 1.0  # on the rate of the encoder's patch embedding
    head_lr_factor: NonNegative = 1.0  # on the rate of the decoder's pixel head
    schedule: str = "warm_restarts"  # or "one_cycle": linear warm-up, then a cosine down to zero over max_steps
    t_0: Count = 1000  # steps of the first cycle
    t_mult: Count = 2
    eta_min_factor: NonNegative = 100.0  # eta_min = 100 lr: inside a cycle the rate rises, at a restart it falls back
    warmup_steps: Annotated[int, Range(0)] = 0  # of one_cycle
    reconstruction_weight: NonNegative = 0.95
    representation_weight: NonNegative = 0.05
    patch_weight: NonNegative | None = None  # of teacher.PatchHeads; None: without them, as in the release
    norm_pix_loss: bool = False
    drop_all_bands: Share = 0.1  # share of training samples of known place whose input loses every band
    drop_half_bands: Share = 0.2  # share that loses half of them
    sensor_weights: Mapping[str, NonNegative] = field(default_factory=dict)  # factors on a sensor's loss, 1 by default
    clip_gradient: NonNegative | None = None  # norm
    accumulate: Count = 1  # batches, of one sensor each, for one optimizer step
    ema_decay: Share | None = None  # of averaged weights, which are then validated and saved for use
    compile: bool = False  # torch.compile
    max_steps: Count = 1000
    seed: Annotated[int, Range(0)] = 0


def schedule(optimizer: torch.optim.Optimizer, s: TrainSettings) -> LambdaLR:
    """The learning rate for each optimizer step; every parameter group keeps its factor."""

    def warm_restarts(step: int) -> float:
        cycle = s.t_0
        while step >= cycle:
            step, cycle = step - cycle, cycle * s.t_mult
        cosine = (1 + math.cos(math.pi * step / cycle)) / 2  # 1 at the start of a cycle, 0 at its end
        return s.eta_min_factor + (1 - s.eta_min_factor) * cosine

    def one_cycle(step: int) -> float:
        warmup = (step + 1) / (s.warmup_steps + 1)
        progress = (step - s.warmup_steps) / max(s.max_steps - s.warmup_steps, 1)
        return min(warmup, 0.5 + 0.5 * math.cos(math.pi * min(max(progress, 0.0), 1.0)))

    factors = {"warm_restarts": warm_restarts, "one_cycle": one_cycle}
    if s.schedule not in factors:
        raise ContractError("schedule", repr(s.schedule), f"one of {list(factors)}", "a misspelled name")
    return LambdaLR(optimizer, factors[s.schedule])


class ClayModule(L.LightningModule):
    """One training step of Clay. `teacher` is frozen and no submodule, so it is neither trained nor saved.

    cached: batches contain a teacher's targets. Without a teacher or targets the loss is reconstruction alone, and the
    projection is not trained.
    """

    def __init__(
        self,
        config: ClayConfig,
        settings: TrainSettings | None = None,
        teacher: nn.Module | None = None,
        *,
        cached: bool = False,
    ):
        super().__init__()
        self.settings = settings or TrainSettings()
        self.model = ClayMAE(config)
        if teacher is not None and teacher.dim != config.teacher_dim:
            cause = "ClayConfig(teacher_dim=...) of another teacher"
            raise ContractError("teacher_dim", config.teacher_dim, teacher.dim, cause)
        self._teacher = [] if teacher is None else [teacher]  # in a list, so that it is no submodule
        self.model.proj.requires_grad_(teacher is not None or cached)
        self.average = None if self.settings.ema_decay is None else WeightAverage(self.model, self.settings.ema_decay)
        heads = self.settings.patch_weight is not None
        self.patch_heads = PatchHeads(list(SENSORS), config.dim, config.patch_size) if heads else None
        self.train_means, self.val_means = RunningMeans(), RunningMeans()
        self.metrics: MetricsFile | None = None  # where rows go, on the first rank
        self.first_step, self.log_every, self.per_epoch = 0, 10, 1  # steps, steps, batches
        self.bar = None  # tqdm's, during training
        settings = json.loads(json.dumps(asdict(self.settings)))  # plain types, which a checkpoint may hold
        self.save_hyperparameters({"config": asdict(config), "settings": settings})

    @property
    def step(self) -> int:
        """Optimizer steps over all starts of the run; Lightning's global_step counts those since this start."""
        return self.first_step + self.trainer.global_step

    def setup(self, stage: str) -> None:
        self._teacher = [teacher.to(self.device).requires_grad_(False).eval() for teacher in self._teacher]

    def losses(self, batch: Batch, *, training: bool) -> dict[str, Tensor]:
        """loss, and its two parts before weighting; representation only with a teacher or its cached targets."""
        s, cube = self.settings, batch.cube
        P = self.model.config.patch_size
        visible = cube  # the model's input; the target is the complete cube
        if training and s.drop_all_bands + s.drop_half_bands > 0:
            visible = drop_bands(cube, batch.draws, drop_all=s.drop_all_bands, drop_half=s.drop_half_bands)
        L = math.prod(-(-side // P) for side in cube.pixels.shape[-2:])
        noise = torch.from_numpy(batch.draws("mask", L)).to(cube.pixels.device)  # [B, L]
        out = self.model(visible, noise=noise)
        loss = reconstruction_loss(
            out.reconstruction,
            cube.target,
            out.encoded.mask,
            patch_size=P,
            norm_pix_loss=s.norm_pix_loss,
            no_nan=cube.valid is None,
        )
        parts, target = {"reconstruction": loss}, batch.targets
        if target is None and self._teacher:
            target = teacher_target(self._teacher[0], cube.pixels, batch.sensor)  # [B, teacher_dim]
        if target is not None:
            parts["representation"] = representation_loss(out.representation, target.to(out.representation.dtype))
            loss = s.reconstruction_weight * loss + s.representation_weight * parts["representation"]
        if self.patch_heads is not None:
            parts["patches"] = self.patch_heads.loss(out.encoded, cube.target, batch.sensor)
            loss = loss + s.patch_weight * parts["patches"]
        return {"loss": s.sensor_weights.get(batch.sensor, 1.0) * loss, **parts}

    def on_train_start(self) -> None:
        if self.average is not None:
            self.average.weights = [w.to(self.device) for w in self.average.weights]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        return -1 if self.trainer.should_stop else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch, training=True)
        self.train_means.add({**losses, batch.sensor: losses["reconstruction"]})
        self._rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        return losses["loss"]

    def on_train_batch_end(self, outputs, batch: Batch, batch_idx: int) -> None:
        self.trainer.datamodule.sampler.position = batch.number + 1
        if (batch.number + 1) % self.settings.accumulate:
            return
        if self.average is not None:
            self.average.update(self.step)
        if self.step % self.log_every == 0 or self.step == self.settings.max_steps:
            loss = self._row("train", self.train_means, lr=self._rate)["train/loss"]
            if not math.isfinite(loss):
                raise _diverged("loss", f"{loss} by step {self.step}")
            if self.bar is not None:
                self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                self.bar.update(self.step - self.bar.n)

    def on_validation_epoch_start(self) -> None:
        if self.average is not None:
            self.average.swap()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses = self.losses(batch, training=False)
        self.val_means.add({**losses, batch.sensor: losses["reconstruction"]})

    def on_validation_epoch_end(self) -> None:
        if self.average is not None:
            self.average.swap()
        row = self._row("val", self.val_means)
        # for callbacks; loggers and metrics.csv have it already
        self.log_dict({k: v for k, v in row.items() if k.startswith("val/")}, logger=False, sync_dist=True)

    def _row(self, stage: str, means: RunningMeans, **more: float) -> dict[str, float]:
        """Write the means since the last row; the same on all ranks."""
        values = means.take(lambda x: self.trainer.strategy.reduce(x, reduce_op="mean"), self.device)
        row = {"epoch": self.step * self.settings.accumulate // self.per_epoch, **more}
        row |= {f"{stage}/{name}": value for name, value in values.items()}
        if self.metrics is not None:
            self.metrics.write({"step": self.step, **row})
        for logger in self.trainer.loggers:
            logger.log_metrics(row, self.step)
        return row

    def check_weights(self) -> None:
        """ContractError for weights that are not finite: they are never saved."""
        average = [] if self.average is None else self.average.weights
        if not all(w.isfinite().all() for w in [*self.model.state_dict().values(), *average]):
            raise _diverged("weights", "NaN or infinity")

    def snapshot(self) -> dict:
        """The module's part of a checkpoint: weights to use, weights to train further, and running means."""
        self.check_weights()
        live = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        rest = {"means": self.train_means.state()}
        if self.patch_heads is not None:
            rest["patch_heads"] = self.patch_heads.state_dict()
        if self.average is None:
            return {"state_dict": live, "live": None, **rest}
        names = [f"model.{name}" for name, p in self.model.named_parameters() if p.requires_grad]
        averaged = live | dict(zip(names, self.average.weights, strict=True))
        return {"state_dict": averaged, "live": live, **rest}

    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights into the model, and start their running average from them."""
        self.model.load_state_dict(weights)
        if self.average is not None:
            self.average = WeightAverage(self.model, self.average.decay)

    def restore(self, saved: dict) -> None:
        """Load the state that `snapshot` returned."""
        self.begin_from({name.removeprefix("model."): w for name, w in saved["state_dict"].items()})
        if saved["live"] is not None:
            self.model.load_state_dict({name.removeprefix("model."): w for name, w in saved["live"].items()})
        if self.patch_heads is not None:
            self.patch_heads.load_state_dict(saved["patch_heads"])
        self.train_means = RunningMeans(saved["means"])

    def configure_optimizers(self):
        s = self.settings
        factors = {"encoder.patch_embedding.": s.embedding_lr_factor, "decoder.embed_to_pixels.": s.head_lr_factor}
        groups = {factor: [] for factor in (1.0, *factors.values())}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[next((f for part, f in factors.items() if name.startswith(part)), 1.0)].append(parameter)
        groups = [{"params": params, "lr": factor * s.lr} for factor, params in groups.items() if params]
        if self.patch_heads is not None:
            groups.append({"params": [*self.patch_heads.parameters()], "lr": PATCH_HEADS_LR * s.lr})
        fused = self.hparams.get("precision") != "float16"  # float16's scaled gradients are clipped first
        optimizer = torch.optim.AdamW(groups, lr=s.lr, weight_decay=s.weight_decay, betas=s.betas, fused=fused)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer, s), "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Clip by norm, also with a fused optimizer, which Lightning refuses although bfloat16 scales no gradients."""
        if gradient_clip_val:
            self.trainer.precision_plugin.clip_grad_by_norm(optimizer, gradient_clip_val)


@dataclass(frozen=True)
class Trained:
    """A finished or stopped run; `Clay(trained.model)` embeds and saves its weights."""

    model: ClayMAE
    history: pd.DataFrame  # one row a logged step or validation: step, epoch, lr, train/..., val/...
    checkpoint: Path  # to resume from, and for Clay.load
    steps: int  # over all starts of the run
    seconds: float  # of training, over all starts of the run
    signal: int | None = None  # that stopped it before its end


def train(
    config: ClayConfig,
    settings: TrainSettings,
    data: ClayDataModule,
    *,
    out: str | Path,
    teacher: nn.Module | None = None,
    start: ClayMAE | None = None,
    resume: str | Path | bool = False,
    accelerator: str = "auto",
    devices: int | str | None = None,
    precision: str | None = None,
    progress: bool = True,
    log_every: Count = 10,
    check_val_every_n_epoch: Count = 1,
    val_every: Count | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float | None = 5.0,
    callbacks: tuple[L.Callback, ...] = (),
    **trainer_options,
) -> Trained:
    """Train for settings.max_steps on the available GPU, MPS or CPU; on a CPU the same seed gives the same weights.

    Writes out/checkpoints/last.ckpt (and the one before it) and out/log/metrics.csv, a row every log_every steps with
    the means since the last row and the base rate `lr`. start: a model of the same configuration to start from.
    resume: continue from the last checkpoint under `out` if there is one (True), or from this file; a CPU run that is
    killed and resumed ends with bitwise the same weights as an uninterrupted one. val_every: steps between validations,
    instead of check_val_every_n_epoch. A loss that is not finite ends the run at the next log row. precision: as of
    `Clay.load`; a run resumes in its own. trainer_options: Lightning's, such as num_nodes and strategy.
    """
    check_ranges(asdict(settings), TrainSettings, "settings.")
    check_ranges({"log_every": log_every, "val_every": val_every}, train)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements in a notebook
    L.seed_everything(settings.seed, verbose=False)
    out, s = Path(out), settings
    module = ClayModule(config, settings, teacher, cached=data.targets is not None)
    module.log_every = min(log_every, s.max_steps)
    saved = newest_checkpoint(out / "checkpoints") if resume is True else read_checkpoint(resume) if resume else None
    if saved is not None:
        _check_same_run(saved["hyper_parameters"], dict(module.hparams))
        module.restore(saved)
        module.first_step = saved["step"]
        for callback in callbacks:
            if state := saved.get("callbacks", {}).get(callback.state_key):
                callback.load_state_dict(state)
    elif start is not None:
        if start.config != config:
            raise ContractError("start", start.config, config, "weights of another size")
        module.begin_from(start.state_dict())
    alone = trainer_options.get("num_nodes", 1) == 1 and (devices == 1 or not devices and torch.cuda.device_count() < 2)
    limit_threads()
    name = _precision(precision, saved, module.model, data, s, training_device(accelerator), trial=alone)
    module.hparams["precision"] = name
    if s.compile:
        module.model.compile()
    checkpoints = Checkpoints(
        out / "checkpoints", every_steps=checkpoint_steps, every_minutes=checkpoint_minutes, saved=saved
    )
    left = s.max_steps - module.first_step
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=devices or ("auto" if torch.cuda.is_available() else 1),
        precision=lightning_precision(name),
        max_steps=max(left, 1),
        max_epochs=-1,  # one Lightning epoch lasts from a validation to the next
        accumulate_grad_batches=s.accumulate,
        gradient_clip_val=s.clip_gradient,
        callbacks=[checkpoints, *callbacks],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # SensorBatches divides the chips among ranks itself
        # On a CPU everything here is deterministic anyway; torch's mode for it would cost 10 % of the time.
        deterministic="warn" if torch.cuda.is_available() else False,
        **{"logger": False, "limit_val_batches": None if data.val_chips else 0, **trainer_options},
    )
    module.per_epoch = data.batches_per_epoch(trainer.world_size)
    if trainer.is_global_zero:
        targets = {"representation": teacher is not None or data.targets is not None}
        columns = _columns(data, targets | {"patches": module.patch_heads is not None})
        resume_from = None if saved is None else saved["step"]
        module.metrics = MetricsFile(out / "log" / "metrics.csv", columns, resume_from=resume_from)
    if left > 0:
        steps = val_every or -(-check_val_every_n_epoch * module.per_epoch // s.accumulate)  # between validations
        data.every, data.end = steps * s.accumulate, s.max_steps * s.accumulate
        data.load_state_dict({"position": 0} if saved is None else saved["data"])
        disable = not progress or not trainer.is_global_zero
        with progress_bar(total=s.max_steps, initial=module.first_step, unit="step", disable=disable) as module.bar:
            try:
                with matmul_precision(name, module.model.encoder):
                    trainer.fit(module, datamodule=data)
            finally:
                data.every = data.end = None
                data.load_state_dict({"position": 0})
    module.check_weights()
    if module.average is not None:
        module.average.swap()
    history = pd.read_csv(out / "log" / "metrics.csv")
    steps = module.first_step + (trainer.global_step if left > 0 else 0)
    model = module.model.cpu().eval()
    return Trained(model, history, checkpoints.folder / LAST, steps, checkpoints.seconds, checkpoints.signal)


def _diverged(field: str, found: str) -> ContractError:
    cause = "the run diverged (try a lower lr, or clip_gradient 1.0); earlier checkpoints are kept"
    return ContractError(field, found, "finite numbers", cause)


def _precision(
    precision: str | None,
    saved: dict | None,
    model: ClayMAE,
    data: ClayDataModule,
    s: TrainSettings,
    device,
    *,
    trial: bool,
) -> str:
    """The precision of a run: that of its checkpoint, the given one, or the fastest that agrees on its first batch."""
    precision, default = check_precision(precision), "bfloat16" if device.type == "cuda" else "exact"
    if saved is not None:
        before = saved["hyper_parameters"].get("precision", default)  # not in checkpoints of earlier versions
        if precision not in ("auto", "fast", before):
            check_unchanged({"precision": (before, precision)})
        return before
    if precision not in ("auto", "fast"):
        return precision
    if not trial:  # each process would choose for itself
        return default
    cube = data.first_batch().cube.to(device)
    return choose(model.encoder.to(device), cube, "auto", training=True, batches=s.max_steps * s.accumulate)


def _check_same_run(old: dict, new: dict) -> None:
    """A run resumes with the model and settings that it was started with; only max_steps may change."""
    old = stored_config(old["config"]) | old["settings"]  # with defaults for fields that it lacks
    new = new["config"] | new["settings"]
    check_unchanged({k: (old.get(k), new.get(k)) for k in sorted((old.keys() | new.keys()) - {"max_steps"})})


def check_unchanged(pairs: Mapping[str, tuple]) -> None:
    """ContractError if a run resumes with other values. pairs: name -> (value at the start, value now)."""
    if differs := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
        before, now = (", ".join(f"{name} {pair[k]}" for name, pair in differs.items()) for k in (0, 1))
        cause = "a changed configuration; write to another folder to start again"
        raise ContractError("resume", now, f"{before}, as the run was started", cause)


def _columns(data: ClayDataModule, targets: Mapping[str, bool]) -> list[str]:
    """Columns of metrics.csv; a sensor's column is its reconstruction loss. targets: the further losses in use."""
    losses = ["loss", "reconstruction", *(name for name, used in targets.items() if used)]
    stages = {"train": data.train_chips, "val": data.val_chips}
    names = [f"{stage}/{name}" for stage, chips in stages.items() if chips for name in (*losses, *chips)]
    return ["step", "epoch", "lr", *names]
