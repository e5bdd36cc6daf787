"""What a run keeps, so that it can be killed at any moment: checkpoints, rows of figures, averaged weights.

A checkpoint is taken between two batches, when everything of the first is done (its rows written, its validation run);
it names the next step, and a run that goes on is a run that begins there. Files are written whole or not at all.
"""

from __future__ import annotations

import csv
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from clay_lib.contract import ContractError
from clay_lib.files import write_whole

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
            found=f"{path}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="a checkpoint written while training here",
            cause="a broken copy, weights alone, or a checkpoint of another program",
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
        write_whole(self.path, lambda path: torch.save(content, path))


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

        write_whole(self.path, fill)


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
