"""The texture teacher for small windows: no resizing, its statistics centred and half whitened on the mini-world.

`textures.texture_teacher` resizes what it sees and keeps the angles of standardised statistics, of which half is
common to all images and the rest leans on few directions. A small model is pulled better by targets that differ: here
each statistic is centred on the mini-world seen by all sensors, and directions of much variance are damped to its
fourth root. Only the mini-world is looked at; the chips are made at the first call and kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clay_lib.chips import world_chips
from clay_lib.datacube import make_datacube
from clay_lib.sensors import SENSORS, WORLD_SENSORS
from clay_lib.teacher import teacher_view
from clay_lib.textures import CLIP, texture_statistics

QUIET = 0.02  # variance below which a direction is not raised further


class WindowTextures(nn.Module):
    """Normalised RGB [B, 3, H, W], H and W multiples of 8 from 64 on -> [B, dim], float32, without gradient."""

    stand_in = False

    def __init__(self, statistics: Tensor):
        """statistics [N, dim]: those of the images on which to centre and whiten."""
        super().__init__()
        self.dim = statistics.shape[1]
        self.register_buffer("mean", statistics.mean(0))
        self.register_buffer("std", statistics.std(0) + 1e-4)
        variance, directions = torch.linalg.eigh(torch.cov(self._standard(statistics).T.double()))
        turn = directions @ torch.diag(variance.clamp(min=QUIET) ** -0.25) @ directions.T
        self.register_buffer("turn", turn.float())

    def _standard(self, statistics: Tensor) -> Tensor:
        return ((statistics - self.mean) / self.std).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        with torch.autocast(rgb.device.type, enabled=False):
            return self._standard(texture_statistics(rgb.float())) @ self.turn


def window_textures(chips: int = 44, size: int = 64) -> WindowTextures:
    """The teacher, fitted on so many chips of the mini-world from each of seven sensors."""
    seen = []
    for sensor in WORLD_SENSORS:
        part = world_chips(sensor, chips, size=size)
        cube = make_datacube(part.pixels, sensor)
        seen += [texture_statistics(teacher_view(p, SENSORS[sensor]).float()) for p in cube.pixels.split(16)]
    return WindowTextures(torch.cat(seen)).eval()
