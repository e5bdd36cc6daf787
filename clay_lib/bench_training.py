"""Our training step beside two others, in one run: with the live teacher, and a plain ViT-MAE of `transformers`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from clay_lib import flops
from clay_lib.datamodule import Batch, noise_batch
from clay_lib.model import ClayConfig
from clay_lib.sensors import SENSORS
from clay_lib.teacher import Teacher
from clay_lib.training import ClayModule

SENSOR = "sentinel-2-l2a"


def paired(
    first: Callable[[], object], second: Callable[[], object], *, repeats: int, clock=time.perf_counter
) -> tuple[float, float, float]:
    """(median seconds of each, median of second / first), taken in turn so that a busy machine is busy for both.

    The order changes from pair to pair; each is called once before, to warm up.
    """
    works, seconds = (first, second), np.empty((repeats, 2))
    for work in works:
        work()
    for pair in range(repeats):
        for k in (0, 1) if pair % 2 == 0 else (1, 0):
            start = clock()
            works[k]()
            seconds[pair, k] = clock() - start
    return float(median(seconds[:, 0])), float(median(seconds[:, 1])), float(median(seconds[:, 1] / seconds[:, 0]))


def step_beside(
    other: str, size: str, *, batch: int, pixels: int, repeats: int, teacher_pixels: int = 518, clock=time.perf_counter
) -> tuple[float, float, float, float]:
    """(our seconds, the other's, median ratio, ratio of operations); above 1 ours is the faster one.

    other: "teacher", our step with the live teacher instead of cached targets, or "mae", the ViT-MAE of transformers. A
    step is losses, backward and AdamW, in float32, on ten bands of noise.
    """
    torch.manual_seed(0)
    config, bands = ClayConfig.named(size), len(SENSORS[SENSOR].bands)
    own = flops.student_step(config, bands=bands, pixels=pixels, batch=batch)
    teacher = random_dinov2_large(teacher_pixels) if other == "teacher" else None
    ours = ClayModule(config, teacher=teacher, cached=True)
    step = stepper(lambda batch: ours.losses(batch, training=True)["loss"], ours)
    cached = noise_batch(SENSOR, batch, pixels, config.teacher_dim)
    if teacher is not None:
        live = replace(cached, targets=None)  # so the teacher is asked
        paper = 1 + flops.dinov2_large(teacher_pixels) / own
        return *paired(lambda: step(cached), lambda: step(live), repeats=repeats, clock=clock), paper
    plain = plain_mae(config, bands=bands, pixels=pixels)
    mae = stepper(lambda batch: plain(batch.cube.pixels).loss, plain)
    paper = flops.vit_mae_step(config, bands=bands, pixels=pixels) / own
    return *paired(lambda: step(cached), lambda: mae(cached), repeats=repeats, clock=clock), paper


def stepper(loss: Callable[[Batch], Tensor], model: nn.Module) -> Callable[[Batch], None]:
    """One training step: loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, betas=(0.9, 0.95), fused=True)

    def step(batch: Batch) -> None:
        loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_dinov2_large(pixels: int = 518) -> Teacher:
    """The release's teacher with random weights: as slow as the trained one."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_register_tokens=4,
        image_size=518,
        patch_size=14,
    )
    return Teacher(Dinov2WithRegistersModel(config), size=pixels, stand_in=True)


def plain_mae(config: ClayConfig, *, bands: int, pixels: int) -> nn.Module:
    """Hugging Face's masked autoencoder of the same width, depth, visible tokens and decoder."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    same = ViTMAEConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=int(config.dim * config.mlp_ratio),
        image_size=pixels,
        patch_size=config.patch_size,
        num_channels=bands,
        decoder_hidden_size=config.decoder_dim,
        decoder_num_hidden_layers=config.decoder_depth,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=int(config.decoder_dim * config.decoder_mlp_ratio),
        mask_ratio=config.mask_ratio,
        qkv_bias=False,
        attn_implementation="sdpa",
    )
    return ViTMAEForPreTraining(same).train()
