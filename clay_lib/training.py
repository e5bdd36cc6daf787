"""Training: the LightningModule, the release notes' optimiser, schedule and losses, and one function that runs them."""

from __future__ import annotations

import csv
import logging
import math
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LRScheduler

from clay_lib.clay import Clay
from clay_lib.datacube import Datacube
from clay_lib.datamodule import Batch, ClayDataModule, Draws
from clay_lib.encoder import patchify, unpatchify
from clay_lib.errors import COUNT, NONNEGATIVE, SHARE, ContractError, check_ranges
from clay_lib.files import atomic_write
from clay_lib.loss import reconstruction_loss, representation_loss
from clay_lib.model import ClayConfig, ClayMAE
from clay_lib.sensors import SENSORS
from clay_lib.teacher import teacher_view

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def newest_checkpoint(folder: str | Path) -> dict | None:
    """The last checkpoint of a run that can be read, on the CPU, else the one before it; None: there is none yet."""
    found = [path for name in (LAST, PREVIOUS) if (path := Path(folder) / name).is_file()]
    for path in found:
        with suppress(ContractError):
            return read_checkpoint(path)
        warnings.warn(f"{path} is damaged; the one before it is used", stacklevel=2)
    if found:
        read_checkpoint(found[0])  # tells what is wrong
    return None


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint of ours, on the CPU; nothing in it is executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["state_dict"], content["step"], content["optimizer"]
        return content
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError) as error:
        raise ContractError(
            "checkpoint",
            f"{path}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "a checkpoint written while training here",
            "a broken copy, weights alone, or a checkpoint of another program",
        ) from None


class Checkpoints(L.Callback):
    """Takes and restores checkpoints, and stops the run in good order on SIGTERM or SIGUSR1 (a cluster's warning).

    every_steps, every_minutes: whichever comes first; one is taken at the end in any case. saved: what to go on from.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_steps: int | None = None,
        every_minutes: float | None = 5.0,
        saved: dict | None = None,
    ):
        self.folder, self.every_steps, self.every_minutes, self.saved = Path(folder), every_steps, every_minutes, saved
        self.signal: int | None = None  # that asked us to stop
        self.seconds = 0.0 if saved is None else saved["seconds"]  # of training, over all its starts

    @property
    def path(self) -> Path:
        return self.folder / LAST

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.saved is not None:
            trainer.optimizers[0].load_state_dict(self.saved["optimizer"])
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.saved["scheduler"])
            torch.set_rng_state(self.saved["rng"])
        self.step, self.began, self.written = trainer.global_step, time.monotonic(), time.monotonic()
        self.saved = None  # its memory is wanted back
        with suppress(ValueError):  # not the main thread, so nobody signals it
            for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
                signal.signal(number, self._asked)  # Lightning puts back what was there

    def _asked(self, number: int, _) -> None:
        self.signal = number

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stop = self.signal is not None
        if trainer.world_size > 1:  # all ranks stop at the same step or none does; asked now and then, for it costs
            stop = batch_idx % 10 == 0 and self._asked_of_any(trainer, module)
        due = self.every_steps is not None and trainer.global_step % self.every_steps == 0
        due |= self.every_minutes is not None and time.monotonic() - self.written > 60 * self.every_minutes
        if stop or (due and trainer.global_step > self.step):
            self.save(trainer, module)
        if stop:
            trainer.should_stop = True  # the module then lets this batch be

    def _asked_of_any(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        number = torch.tensor(self.signal or 0, device=module.device)
        found = int(trainer.strategy.reduce(number, reduce_op="max"))
        self.signal = found or self.signal
        return found > 0

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step > self.step or not self.path.is_file():
            self.save(trainer, module)

    def save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        now = time.monotonic()
        self.seconds += now - self.began
        self.step, self.began, self.written = trainer.global_step, now, now
        if not trainer.is_global_zero:
            return
        content = {
            "hyper_parameters": dict(module.hparams),
            "step": trainer.global_step,
            "seconds": self.seconds,
            "optimizer": trainer.optimizers[0].state_dict(),
            "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            **module.kept(),
        }
        if self.path.is_file():
            os.replace(self.path, self.folder / PREVIOUS)
        atomic_write(self.path, lambda path: torch.save(content, path))


class Average:
    """Exponential moving average of a model's weights: w <- d w + (1 - d) new, with d = min(decay, (1 + s)/(10 + s)).

    s counts steps, so that a short run is not held back by its first weights.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay, self.live = decay, [p for p in model.parameters() if p.requires_grad]
        self.weights = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.weights, self.live, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged weights and the model's own."""
        for average, live in zip(self.weights, self.live, strict=True):
            kept = average.clone()
            average.copy_(live)
            live.copy_(kept)


class Metrics:
    """Rows of figures in a CSV, each with its step; a row is on disk when `write` returns.

    keep: the step to go on from: later rows are dropped, to be written again. None: begin anew.
    """

    def __init__(self, path: str | Path, *, keep: int | None = None):
        self.path, self.columns = Path(path), ["step", "epoch"]
        rows = []
        if keep is not None and self.path.is_file():
            text = self.path.read_text()
            lines = text[: text.rfind("\n") + 1].splitlines()  # a line cut short by a kill is none
            reader = csv.DictReader(lines)
            self.columns = list(reader.fieldnames or self.columns)
            rows = [row for row in reader if int(row["step"]) <= keep]
        self._rewrite(rows)

    def write(self, row: dict[str, float | int]) -> None:
        new = [name for name in row if name not in self.columns]
        if new:
            rows = list(csv.DictReader(self.path.read_text().splitlines()))
            self.columns += new
            self._rewrite(rows)
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)

    def _rewrite(self, rows: list[dict]) -> None:
        def fill(path: Path) -> None:
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

        atomic_write(self.path, fill)


class Means:
    """Running means by name; tensors stay where they are until `take`."""

    def __init__(self, state: dict[str, list] | None = None):
        self.sums: dict[str, list] = {name: list(pair) for name, pair in (state or {}).items()}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = [total + value.detach().float(), count + 1]

    def state(self) -> dict[str, list]:
        return {name: [float(total), count] for name, (total, count) in self.sums.items()}

    def take(self, together: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Means since the last call; together: the mean over ranks, which all saw the same names."""
        if not self.sums:
            return {}
        values = torch.stack([torch.as_tensor(t, device=device) / n for t, n in self.sums.values()])
        names, self.sums = list(self.sums), {}
        return dict(zip(names, together(values).tolist(), strict=True))


# ---- Pictures of what a model in training rebuilds, a file every so many steps ----


class Pictures(L.Callback):
    """One picture a sensor: what the encoder saw, what the model made of it, the truth. The same patches are hidden
    each time. Draws nothing from the run's random numbers, and changes nothing in it."""

    def __init__(self, batches: list[Batch], folder: str | Path, *, every: int):
        self.batches, self.folder, self.every = batches, Path(folder), every
        self.drawn = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step != self.drawn and trainer.is_global_zero:
            self.drawn = step
            for batch in self.batches:
                self._draw(module, batch, step)

    @torch.no_grad()
    def _draw(self, module: L.LightningModule, batch: Batch, step: int) -> None:
        import matplotlib.pyplot as plt

        from clay_lib import figures
        from clay_lib.sensors import SENSORS

        P, truth = module.model.config.patch_size, batch.cube.pixels
        noise = torch.from_numpy(batch.draws("mask", patchify(truth[:, :1], P).shape[1]))
        out = module.model(batch.cube.to(module.device), noise=noise.to(module.device))
        layout = {"grid": out.encoded.grid, "patch_size": P, "size": truth.shape[-2:]}
        rebuilt = unpatchify(out.reconstruction, **layout).float().cpu()
        hidden = out.encoded.mask.bool().cpu()[:, :, None]
        seen = unpatchify(patchify(truth, P).masked_fill(hidden, float("nan")), **layout)
        images = [
            figures.rgb(x, batch.sensor, like=truth[k], normalized=True)
            for k in range(len(truth))
            for x in (seen[k], rebuilt[k], truth[k])
        ]
        names = ["what it saw", f"step {step}", "truth"]
        gsd = SENSORS[batch.sensor].gsd
        figure = figures.show_row(images, names, columns=3, size=1.6, gsd=gsd, title=batch.sensor)
        self.folder.mkdir(parents=True, exist_ok=True)
        figures.save(figure, self.folder / f"{batch.sensor}-{step:07d}.png")
        plt.close(figure)


# ---- Training: the LightningModule, the release notes' optimiser, schedule and losses, and one function t ----


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
    accumulate: int = 1  # batches, of one sensor each, whose gradients make one step
    ema_decay: float | None = None  # of an average of the weights, which then is what is validated and saved for use
    compile: bool = False  # torch.compile
    max_steps: int = 1000
    seed: int = 0


SETTINGS_RANGES = {
    **dict.fromkeys(("lr", "drop_all_bands", "drop_half_bands", "ema_decay"), SHARE),
    "betas": (0, 0.999999),
    **dict.fromkeys(("t_0", "t_mult", "accumulate", "max_steps"), COUNT),
    **dict.fromkeys(
        ("weight_decay", "embedding_lr_factor", "head_lr_factor", "eta_min_factor", "warmup_steps"), NONNEGATIVE
    ),
    **dict.fromkeys(("reconstruction_weight", "representation_weight", "sensor_weights"), NONNEGATIVE),
    **dict.fromkeys(("clip_gradient", "seed"), NONNEGATIVE),
}


def drop_bands(cube: Datacube, draws: Draws, *, drop_all: float, drop_half: float) -> Datacube:
    """The input with bands zeroed in some samples of known place; the target stays the whole cube.

    A share drop_all of them loses every band, a share drop_half a random half (at least one band is kept).
    """
    C, device = cube.pixels.shape[1], cube.pixels.device
    draw, ranks = (torch.from_numpy(draws(what, n)).to(device) for what, n in (("drop", 1), ("bands", C)))
    kept = torch.where(draw < drop_all, 0, torch.where(draw < drop_all + drop_half, (C + 1) // 2, C))
    known = cube.latlon.abs().sum(1, keepdim=True) > 0
    keep = (ranks.argsort(dim=1) < kept) | ~known
    return cube.with_pixels(cube.pixels * keep[:, :, None, None])


class WarmRestarts(CosineAnnealingWarmRestarts):
    """Torch's, with a minimum for each parameter group: eta_min_factor times the group's own first rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, t_0: int, t_mult: int, *, eta_min_factor: float):
        self.eta_min_factor = eta_min_factor
        super().__init__(optimizer, t_0, t_mult)

    def get_lr(self) -> list[float]:
        fall = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2  # 1 at the start of a cycle, 0 at its end
        return [base * (self.eta_min_factor + (1 - self.eta_min_factor) * fall) for base in self.base_lrs]


def schedule(optimizer: torch.optim.Optimizer, s: TrainSettings) -> LRScheduler:
    """The learning rate, stepped once an optimiser step; each parameter group keeps its factor throughout."""
    if s.schedule == "warm_restarts":
        return WarmRestarts(optimizer, s.t_0, s.t_mult, eta_min_factor=s.eta_min_factor)
    if s.schedule == "one_cycle":

        def factor(step: int) -> float:
            rise = (step + 1) / (s.warmup_steps + 1)
            done = (step - s.warmup_steps) / max(s.max_steps - s.warmup_steps, 1)
            return min(rise, 0.5 + 0.5 * math.cos(math.pi * min(max(done, 0.0), 1.0)))

        return LambdaLR(optimizer, factor)
    raise ContractError("schedule", repr(s.schedule), "'warm_restarts' or 'one_cycle'", "a misspelling")


def ask(teacher: nn.Module, pixels: Tensor, sensor: str) -> Tensor:
    """What a teacher says of normalised pixels [B, C, H, W], [B, teacher_dim].

    A teacher is a module with `dim` that takes red, green and blue [B, 3, H, W]; one with `sees = "pixels"` takes all
    bands as they are.
    """
    return teacher(pixels if getattr(teacher, "sees", "rgb") == "pixels" else teacher_view(pixels, SENSORS[sensor]))


class ClayModule(L.LightningModule):
    """One training step of Clay. `teacher` is frozen and no submodule, so it is neither trained nor saved.

    cached: batches bring a teacher's targets with them. With neither, the loss is reconstruction alone and the
    projection is left as it is.
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
            raise ContractError(
                "teacher_dim", config.teacher_dim, teacher.dim, "ClayConfig(teacher_dim=...) of another teacher"
            )
        self._teacher = [] if teacher is None else [teacher]  # in a list, where torch does not look for modules
        self.model.proj.requires_grad_(teacher is not None or cached)
        self.average = None if self.settings.ema_decay is None else Average(self.model, self.settings.ema_decay)
        self.train_means, self.val_means = Means(), Means()
        self.metrics: Metrics | None = None  # where rows go
        self.log_every, self.per_epoch = 10, 1  # steps, batches
        self.save_hyperparameters({"config": asdict(config), "settings": _plain(asdict(self.settings))})

    def setup(self, stage: str) -> None:
        self._teacher = [teacher.to(self.device).requires_grad_(False).eval() for teacher in self._teacher]

    def losses(self, batch: Batch, *, training: bool) -> dict[str, Tensor]:
        """loss, and its two parts before weighting; representation only with a teacher or its cached targets."""
        s, cube = self.settings, batch.cube
        P = self.model.config.patch_size
        dropping = training and s.drop_all_bands + s.drop_half_bands > 0
        seen = cube
        if dropping:
            seen = drop_bands(cube, batch.draws, drop_all=s.drop_all_bands, drop_half=s.drop_half_bands)
        patches = math.prod(-(-side // P) for side in cube.pixels.shape[-2:])
        noise = torch.from_numpy(batch.draws("mask", patches)).to(cube.pixels.device)
        out = self.model(seen, noise=noise)
        parts = {
            "reconstruction": reconstruction_loss(
                out.reconstruction,
                cube.target,
                out.encoded.mask,
                patch_size=P,
                norm_pix_loss=s.norm_pix_loss,
                no_nan=cube.valid is None,
            )
        }
        loss = parts["reconstruction"]
        target = batch.targets
        if target is None and self._teacher:
            target = ask(self._teacher[0], cube.pixels, batch.sensor)
        if target is not None:
            parts["representation"] = representation_loss(out.representation, target.to(out.representation.dtype))
            loss = s.reconstruction_weight * loss + s.representation_weight * parts["representation"]
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
        if (batch_idx + 1) % self.settings.accumulate:
            return
        step = self.trainer.global_step
        if self.average is not None:
            self.average.update(step)
        if step % self.log_every == 0 or step == self.settings.max_steps:
            means = self._row("train", self.train_means, lr=self._rate)
            if not math.isfinite(means["train/loss"]):
                raise _diverged("loss", f"{means['train/loss']} by step {step}")
            self.log("loss", means["train/loss"], prog_bar=True, logger=False, batch_size=len(batch.cube))
        if step == self.settings.max_steps:
            self.trainer.should_stop = True  # so that Lightning validates once more

    def on_validation_epoch_start(self) -> None:
        if self.average is not None:
            self.average.swap()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses = self.losses(batch, training=False)
        self.val_means.add({**losses, batch.sensor: losses["reconstruction"]})

    def on_validation_epoch_end(self) -> None:
        if self.average is not None:
            self.average.swap()
        self._row("val", self.val_means)

    def _row(self, stage: str, means: Means, **more: float) -> dict[str, float]:
        """Write what was averaged since the last row; the same on all ranks."""
        values = means.take(lambda x: self.trainer.strategy.reduce(x, reduce_op="mean"), self.device)
        step = self.trainer.global_step
        row = {"epoch": step * self.settings.accumulate // self.per_epoch, **more}
        row |= {f"{stage}/{name}": value for name, value in values.items()}
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            if self.metrics is not None:
                self.metrics.write({"step": step, **row})
            for logger in self.trainer.loggers:
                logger.log_metrics(row, step)
        return row

    def check_weights(self) -> None:
        """Refuse weights that are not finite: they are neither kept nor used."""
        average = [] if self.average is None else self.average.weights
        if not all(w.isfinite().all() for w in [*self.model.state_dict().values(), *average]):
            raise _diverged("weights", "NaN or infinity")

    def kept(self) -> dict:
        """What a checkpoint holds of this module: the weights to use, those to train on, and open means."""
        self.check_weights()
        live = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is None:
            return {"state_dict": live, "live": None, "means": self.train_means.state()}
        names = [f"model.{name}" for name, p in self.model.named_parameters() if p.requires_grad]
        averaged = live | dict(zip(names, self.average.weights, strict=True))
        return {"state_dict": averaged, "live": live, "means": self.train_means.state()}

    def restore(self, saved: dict) -> None:
        """Be as when `kept` was called."""
        weights = {name.removeprefix("model."): tensor for name, tensor in saved["state_dict"].items()}
        self.model.load_state_dict(weights)
        if self.average is not None:
            self.average = Average(self.model, self.average.decay)
        if saved["live"] is not None:
            live = {name.removeprefix("model."): tensor for name, tensor in saved["live"].items()}
            self.model.load_state_dict(live)
        self.train_means = Means(saved["means"])

    def configure_optimizers(self):
        s = self.settings
        factors = {"encoder.patch_embedding.": s.embedding_lr_factor, "decoder.embed_to_pixels.": s.head_lr_factor}
        groups = {factor: [] for factor in (1.0, *factors.values())}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[next((f for part, f in factors.items() if name.startswith(part)), 1.0)].append(parameter)
        groups = [{"params": params, "lr": factor * s.lr} for factor, params in groups.items() if params]
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
    history: pd.DataFrame  # one row a logged step or validation: step, epoch, lr, train/..., val/...
    checkpoint: Path  # to go on from, and for Clay.load
    steps: int  # done so far, over all starts of the run
    seconds: float  # of training, over all starts of the run
    signal: int | None = None  # that stopped it before its end


def train(
    config: ClayConfig,
    settings: TrainSettings,
    data: ClayDataModule,
    *,
    out: str | Path,
    teacher: nn.Module | None = None,
    start: Clay | None = None,
    resume: str | Path | bool = False,
    accelerator: str = "auto",
    devices: int | str | None = None,
    precision: str | None = None,
    progress: bool = True,
    log_every: int = 10,
    check_val_every_n_epoch: int = 1,
    val_every: int | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float | None = 5.0,
    callbacks: tuple[L.Callback, ...] = (),
    **trainer_options,
) -> Trained:
    """Train for settings.max_steps on the GPU, MPS or CPU that is found; the same seed gives the same CPU run twice.

    Writes out/checkpoints/last.ckpt (and the one before it) and out/log/metrics.csv, a row every log_every steps: means
    since the last row; `lr` is the rate that no factor changes. start: a model of the same configuration whose weights
    are the first ones. resume: go on from the last checkpoint under `out` if there is one (True), or from this file;
    a killed CPU run that goes on ends with the weights of one that was never killed, bit by bit. val_every: steps
    between validations, instead of check_val_every_n_epoch. A loss that is not finite ends the run at the next row, and
    weights that are not are never written. precision: bf16 on a GPU, float32 elsewhere, unless named.
    trainer_options: Lightning's, such as num_nodes and strategy.
    """
    check_ranges(asdict(settings), SETTINGS_RANGES, "settings.")
    check_ranges({"log_every": log_every, "val_every": val_every}, {"log_every": COUNT, "val_every": COUNT})
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch, nothing a reader can mend
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements in a notebook
    L.seed_everything(settings.seed, verbose=False)
    out, s = Path(out), settings
    module = ClayModule(config, settings, teacher, cached=data.targets is not None)
    module.log_every = min(log_every, s.max_steps)
    saved = newest_checkpoint(out / "checkpoints") if resume is True else read_checkpoint(resume) if resume else None
    done = 0
    if saved is not None:
        _check_same_run(saved["hyper_parameters"], dict(module.hparams))
        module.restore(saved)
        done = saved["step"]
    elif start is not None:
        if start.model.config != config:
            raise ContractError("start", start.model.config, config, "weights of another size")
        module.model.load_state_dict(start.model.state_dict())
        module.restore(module.kept())
    if s.compile:
        module.model.compile()
    keep = Checkpoints(out / "checkpoints", every_steps=checkpoint_steps, every_minutes=checkpoint_minutes, saved=saved)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=devices or ("auto" if torch.cuda.is_available() else 1),
        precision=precision or precision_of(accelerator),
        max_steps=s.max_steps,
        max_epochs=1,  # to Lightning a run is one epoch of batches; ours are counted by the sampler
        accumulate_grad_batches=s.accumulate,
        gradient_clip_val=s.clip_gradient,
        callbacks=[keep, *callbacks] + ([TQDMProgressBar(refresh_rate=module.log_every)] if progress else []),
        enable_progress_bar=progress,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,  # SensorBatches shares the chips out among ranks itself
        # On a CPU all that is done here is deterministic; torch's mode for it would only fill memory, a tenth of a step.
        deterministic="warn" if torch.cuda.is_available() else False,
        **{"logger": False, "limit_val_batches": None if data.val_chips else 0, **trainer_options},
    )
    module.per_epoch = data.batches_per_epoch(trainer.world_size)
    every = s.accumulate * val_every if val_every else check_val_every_n_epoch * module.per_epoch
    trainer.val_check_interval = trainer.val_check_batch = every
    if trainer.is_global_zero:
        module.metrics = Metrics(out / "log" / "metrics.csv", keep=done if saved else None)
    if done < s.max_steps:
        data.span = (done * s.accumulate, s.max_steps * s.accumulate)
        _begin_at(trainer, done, s.accumulate)
        try:
            trainer.fit(module, datamodule=data)
        finally:
            data.span = None
    module.check_weights()
    if module.average is not None:
        module.average.swap()
    history = pd.read_csv(out / "log" / "metrics.csv")
    steps = max(done, trainer.global_step)
    return Trained(Clay(module.model.cpu()), history, keep.path, steps, keep.seconds, keep.signal)


def _diverged(what: str, found: str) -> ContractError:
    cause = (
        "the run diverged (a lower lr, or clip_gradient 1.0), or began with such weights; checkpoints before are kept"
    )
    return ContractError(what, found, "finite numbers", cause)


def _begin_at(trainer: L.Trainer, step: int, accumulate: int) -> None:
    """Let Lightning count on from a step. It then need not restore its loops, which mid-epoch skips validations."""
    loop = trainer.fit_loop.epoch_loop
    done = loop.automatic_optimization.optim_progress.optimizer.step.total
    done.ready = done.completed = loop._batches_that_stepped = step
    batches = loop.batch_progress.total
    batches.ready = batches.started = batches.processed = batches.completed = step * accumulate


def _check_same_run(old: dict, new: dict) -> None:
    """A run goes on with the model and settings that it was begun with; only its end may move."""
    for part in ("config", "settings"):
        differs = [k for k in old[part].keys() | new[part].keys() if old[part].get(k) != new[part].get(k)]
        differs = [k for k in differs if k != "max_steps"]
        if differs:
            raise ContractError(
                "resume",
                ", ".join(f"{k} {new[part].get(k)}" for k in sorted(differs)),
                ", ".join(f"{k} {old[part].get(k)}" for k in sorted(differs)) + ", as the run was begun",
                "a changed configuration; write to another folder to begin anew",
            )


def precision_of(accelerator: str) -> str:
    return "bf16-mixed" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "32-true"


def _plain(values: dict) -> dict:
    """Settings as the plain types that a safely read checkpoint may hold."""
    return {k: dict(v) if isinstance(v, Mapping) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}
