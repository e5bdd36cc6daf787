"""Pictures of what a model in training rebuilds, a file every so many steps."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from clay_lib.datamodule import Batch
from clay_lib.encoder import image_of, patches_of


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

        from clay_lib import plots
        from clay_lib.sensors import SENSORS

        P, truth = module.model.config.patch_size, batch.cube.pixels
        noise = torch.from_numpy(batch.draws("mask", patches_of(truth[:, :1], P).shape[1]))
        out = module.model(batch.cube.to(module.device), noise=noise.to(module.device))
        layout = {"grid": out.encoded.grid, "patch_size": P, "size": truth.shape[-2:]}
        rebuilt = image_of(out.reconstruction, **layout).float().cpu()
        hidden = out.encoded.mask.bool().cpu()[:, :, None]
        seen = image_of(patches_of(truth, P).masked_fill(hidden, float("nan")), **layout)
        images = [
            plots.rgb(x, batch.sensor, like=truth[k], normalised=True)
            for k in range(len(truth))
            for x in (seen[k], rebuilt[k], truth[k])
        ]
        names = ["what it saw", f"step {step}", "truth"]
        gsd = SENSORS[batch.sensor].gsd
        figure = plots.show_row(images, names, columns=3, size=1.6, gsd=gsd, title=batch.sensor)
        self.folder.mkdir(parents=True, exist_ok=True)
        plots.save(figure, self.folder / f"{batch.sensor}-{step:07d}.png")
        plt.close(figure)
