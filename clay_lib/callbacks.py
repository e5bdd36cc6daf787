"""Callbacks of a training run: checkpoints, saved atomically between two batches and read to resume, and snapshots.

A checkpoint is saved after the log rows and the validation of the last batch, so a resumed run equals one that was never
interrupted.
"""

import os
import pickle
import signal
import time
import warnings
from contextlib import suppress
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from clay_lib.datamodule import Batch
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def newest_checkpoint(folder: str | Path) -> dict | None:
    """A run's last checkpoint, on the CPU, or the one before it if that is damaged; None if there is none yet."""
    paths = [path for name in (LAST, PREVIOUS) if (path := Path(folder) / name).is_file()]
    for path in paths:
        with suppress(ContractError):
            return read_checkpoint(path)
        warnings.warn(f"{path} is damaged; the one before it is used", stacklevel=2)
    return read_checkpoint(paths[0]) if paths else None  # raises with the reason


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint written by `train`, on the CPU; nothing in it is executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["state_dict"], content["step"], content["optimizer"]
        return content
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError) as error:
        reason = f"{path}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        cause = "a broken copy, a file of weights alone, or a checkpoint of another program"
        raise ContractError("checkpoint", reason, "a checkpoint of clay_lib.training", cause) from None


class Checkpoints(L.Callback):
    """Saves and restores checkpoints; on SIGTERM or SIGUSR1 (a cluster's warning) it saves one and stops the run.

    every_steps, every_minutes: whichever comes first; the last step is always saved. saved: the one to resume from.
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
        self.signal: int | None = None  # the signal that stopped the run
        self.seconds = 0.0 if saved is None else saved["seconds"]  # training time over all starts

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.saved is not None:
            trainer.optimizers[0].load_state_dict(self.saved["optimizer"])
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.saved["scheduler"])
            torch.set_rng_state(self.saved["rng"])
        self.step, self.began, self.written = module.step, time.monotonic(), time.monotonic()
        self.saved = None  # frees its memory
        with suppress(ValueError):  # only the main thread receives signals
            for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
                signal.signal(number, self._on_signal)  # Lightning restores the former handlers

    def _on_signal(self, number: int, _) -> None:
        self.signal = number

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        if batch.number % trainer.accumulate_grad_batches:
            return
        stop = self.signal is not None
        if trainer.world_size > 1:
            stop = batch_idx % 10 == 0 and self._any_rank_signaled(trainer, module)
        due = self.every_steps is not None and module.step % self.every_steps == 0
        due |= self.every_minutes is not None and time.monotonic() - self.written > 60 * self.every_minutes
        if stop or (due and module.step > self.step):
            self.save(trainer, module)
        if stop:
            trainer.should_stop = True  # the module then skips this batch

    def _any_rank_signaled(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Whether any rank received a signal, so that all stop at the same step; called rarely, since it costs time."""
        number = torch.tensor(self.signal or 0, device=module.device)
        self.signal = int(trainer.strategy.reduce(number, reduce_op="max")) or self.signal
        return self.signal is not None

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if module.step > self.step or not (self.folder / LAST).is_file():
            self.save(trainer, module)

    def save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        now = time.monotonic()
        self.seconds += now - self.began
        self.step, self.began, self.written = module.step, now, now
        if not trainer.is_global_zero:
            return
        content = {
            "hyper_parameters": dict(module.hparams),
            "step": module.step,
            "seconds": self.seconds,
            "data": trainer.datamodule.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "callbacks": {c.state_key: state for c in trainer.callbacks if (state := c.state_dict())},
            **module.snapshot(),
        }
        last = self.folder / LAST
        if last.is_file():
            os.replace(last, self.folder / PREVIOUS)
        atomic_write(last, lambda path: torch.save(content, path))


class Snapshots(L.Callback):
    """Reconstructions of one batch at the given steps, with the same mask each time: {step: [B, L, C*P*P]}."""

    def __init__(self, batch: Batch, steps: tuple[int, ...], *, seed: int = 0):
        self.batch, self.steps, self.seed = batch, steps, seed
        self.taken: dict[int, Tensor] = {}
        self.mask: Tensor | None = None  # [B, L], 1 = masked

    def state_dict(self) -> dict:
        return {"taken": self.taken, "mask": self.mask}

    def load_state_dict(self, state: dict) -> None:
        self.taken, self.mask = state["taken"], state["mask"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._take(module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        self._take(module)

    @torch.no_grad()
    def _take(self, module: L.LightningModule) -> None:
        if module.step in self.steps and module.step not in self.taken:
            generator = torch.Generator(module.device).manual_seed(self.seed)
            out = module.model(self.batch.cube.to(module.device), generator=generator)
            self.taken[module.step] = out.reconstruction.float().cpu()
            self.mask = out.encoded.mask.cpu()
