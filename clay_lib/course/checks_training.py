"""Checks of the exercises of 04: the masked error, the agreement with a teacher, the learning rate's way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from clay_lib.course.checking import attempt, compare, right, value


def check_masked_error(fn: Callable) -> None:
    """fn(reconstruction [B, L, N], target [B, L, N], mask [B, L], 1 = hidden) -> mean error of the hidden patches."""
    draw = torch.Generator().manual_seed(2)
    guess, target = (torch.randn(2, 5, 6, generator=draw) for _ in range(2))
    mask = torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 1, 0, 0]])
    each = (guess - target).abs().mean(-1)  # [B, L]
    hidden = (each * mask).sum() / mask.sum()
    numbers = (guess - target)[mask.bool()]  # [hidden patches, N]
    compare(
        attempt(fn, guess, target, mask),
        hidden,
        slips={
            "All patches count. Only hidden ones (mask 1) should: the visible ones were shown to the encoder.": each.mean(),
            "The visible patches count and the hidden ones do not: in the mask, 1 means hidden.": (
                each * (1 - mask)
            ).sum()
            / (1 - mask).sum(),
            "Errors are squared; Clay takes their absolute value.": ((guess - target).square().mean(-1) * mask).sum()
            / mask.sum(),
            "Errors keep their sign, so that they cancel: take the absolute value.": (
                (guess - target).mean(-1) * mask
            ).sum()
            / mask.sum(),
            "The sum over hidden patches is divided by the number of all patches: divide by mask.sum().": (
                each * mask
            ).mean(),
            "This is the sum over the hidden patches; the mean is wanted.": (each * mask).sum(),
            "The mean is taken for each image first, so that a patch of an image with few hidden ones counts more: add up over "
            "the batch, then divide by all that are hidden.": ((each * mask).sum(1) / mask.sum(1)).mean(),
            "The sum over hidden patches is divided by the number of images: divide by mask.sum().": (each * mask).sum()
            / 2,
            "This is the root of the mean square (RMSE); Clay takes the mean of absolute values.": numbers.square()
            .mean()
            .sqrt(),
            "The root of each patch's mean square is taken; Clay takes absolute values.": numbers.square()
            .mean(-1)
            .sqrt()
            .mean(),
            "This is the length of each patch's differences (L2 norm); Clay takes the mean of their absolute values.": numbers.norm(
                dim=-1
            ).mean(),
            "This is the median of the hidden patches' errors; the mean is wanted.": numbers.abs()
            .mean(-1)
            .quantile(0.5),
            "This is the lower median of the hidden patches' errors; the mean is wanted.": numbers.abs()
            .mean(-1)
            .median(),
            "This is the median of all hidden numbers' errors; the mean is wanted.": numbers.abs().median(),
            "The pixels of a patch are added up; take their mean, then the mean over hidden patches.": hidden * 6,
        },
        what="the error",
    )
    right("Absolute error, pixels of a patch averaged, then hidden patches averaged: 95 % of the release's loss.")


def check_agreement(fn: Callable) -> None:
    """fn(student [B, D], teacher [B, D]) -> 1 - cosine, averaged over the batch."""
    draw = torch.Generator().manual_seed(3)
    a, b = torch.randn(4, 6, generator=draw) + 0.5, 3 * torch.randn(4, 6, generator=draw) + 1
    b[1] *= -1  # one of them opposes its teacher
    cosine = F.cosine_similarity(a, b, dim=-1)
    unit_a, unit_b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    compare(
        attempt(fn, a, b),
        1 - cosine.mean(),
        slips={
            "This is the cosine, which is largest where both agree. A loss has to be smallest there: 1 - cosine.": cosine.mean(),
            "This is 1 minus the dot product: divide by both lengths, or the loss rewards long vectors.": 1
            - (a * b).sum(-1).mean(),
            "The loss is minus the cosine; with 1 - cosine it is 0 where both agree.": -cosine.mean(),
            "The cosine is taken over the batch: sum over D, the last axis, one cosine a chip.": 1
            - F.cosine_similarity(a, b, dim=0).mean(),
            "All chips are joined into one long vector: take one cosine a chip, then their mean.": 1
            - F.cosine_similarity(a.flatten(), b.flatten(), dim=0),
            "There is one number a chip: end with their mean.": 1 - cosine,
            "Only one of the lengths is divided by: the teacher's is missing.": 1
            - ((a * b).sum(-1) / a.norm(dim=-1)).mean(),
            "Only one of the lengths is divided by: the student's is missing.": 1
            - ((a * b).sum(-1) / b.norm(dim=-1)).mean(),
            "The absolute value of the cosine is taken: a student who says the opposite should lose most, 2.": 1
            - cosine.abs().mean(),
            "The cosines are squared: a student who says the opposite should lose most, 2.": 1 - cosine.square().mean(),
            "The losses of the chips are added up; their mean is wanted.": (1 - cosine).sum(),
            "The cosines are added up before 1 minus it: take their mean.": 1 - cosine.sum(),
            "This is the distance (L2 norm of the difference), in which lengths count: take the cosine.": (a - b)
            .norm(dim=-1)
            .mean(),
            "This is the mean square of the difference, in which lengths count: take the cosine.": (a - b)
            .square()
            .mean(),
            "This is the distance of the vectors of length one; take 1 minus their dot product.": (unit_a - unit_b)
            .norm(dim=-1)
            .mean(),
            "This is the squared distance of the vectors of length one, which is twice the loss.": 2
            * (1 - cosine.mean()),
            "This is the angle; take 1 minus its cosine.": cosine.acos().mean(),
        },
        what="the loss",
    )
    right("0 where both point the same way, 1 where they have nothing in common, 2 where they oppose each other.")


def check_rate(fn: Callable) -> None:
    """fn(step, warmup, steps, peak) -> the learning rate: rising in a straight line, then down by a cosine."""

    def rate(step, warmup, steps, peak, *, turn=math.pi, from_start=False, plain=False):
        if step < warmup and not plain:
            return peak * (step + 1) / (warmup + 1)
        done = step / steps if from_start else (step - warmup) / (steps - warmup)
        return peak * (0.5 + 0.5 * math.cos(turn * done))

    settings = [(10, 110, 0.02, (0, 4, 9, 10, 35, 60, 85, 109)), (4, 52, 0.5, (0, 3, 4, 28, 51))]
    asked = [(step, *setting) for *setting, at in settings for step in at]
    found = [value(attempt(fn, *one)) for one in asked]

    def made(**slip):
        return [rate(*one, **slip) for one in asked]

    def rising(way):
        return [
            peak * way(step, warmup) if step < warmup else rate(step, warmup, steps, peak)
            for step, warmup, steps, peak in asked
        ]

    compare(
        found,
        made(),
        slips={
            "There is no warm-up: the first steps are to rise from small to the peak.": made(plain=True),
            "The first step has the rate 0 and is lost: begin with (step + 1).": rising(
                lambda step, warmup: step / (warmup + 1)
            ),
            "The first step has the rate 0 and is lost: rise by (step + 1) / (warmup + 1).": rising(
                lambda step, warmup: step / warmup
            ),
            "The peak comes one step early: rise by (step + 1) / (warmup + 1).": rising(
                lambda step, warmup: (step + 1) / warmup
            ),
            "The cosine begins at step 0: it has to begin where the warm-up ends, (step - warmup) / (steps - warmup).": made(
                from_start=True
            ),
            "After the warm-up the rate comes down in a straight line: by half a cosine is wanted.": [
                rate(step, warmup, steps, peak) if step < warmup else peak * (steps - step) / (steps - warmup)
                for step, warmup, steps, peak in asked
            ],
            "The rate is 0 one step early: it would be 0 at step `steps`, which is never taken.": [
                rate(step, warmup, steps - 1, peak) for step, warmup, steps, peak in asked
            ],
            "The cosine takes degrees: a half turn is math.pi.": made(turn=180),
            "The cosine runs a whole turn and comes up again: half a turn, math.pi, ends at 0.": made(turn=2 * math.pi),
            "The cosine runs a quarter of a turn and ends at half the peak: half a turn is math.pi.": made(
                turn=math.pi / 2
            ),
        },
        rtol=1e-5,
        atol=1e-9,
        what="the rates",
    )
    right("Up in a straight line, down by half a cosine: what this notebook trains with.")
