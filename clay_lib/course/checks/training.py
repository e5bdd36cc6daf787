"""Checks of notebooks 04, 05 and 11: losses, learning rates, images from patches, segmentation scores."""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import rearrange
from torch.nn.functional import cosine_similarity

from clay_lib.course.checks.engine import Check, as_tensor, normal, number

# ---- 04: the two losses and the learning rate


def masked_error(reconstruction, target, mask, *, error=torch.abs, root=1):
    """reconstruction, target [B, L, N], mask [B, L] with 1 = hidden -> mean absolute error of the hidden patches."""
    errors = error(reconstruction - target).mean(-1) ** root  # [B, L]
    return (errors * mask).sum() / mask.sum()


check_masked_error = Check(
    reference=masked_error,
    cases=[(normal(2, 2, 5, 6), normal(3, 2, 5, 6), torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]))],
    quantity="the error",
    mistakes={
        "All patches count. Only hidden ones (mask 1) should.": lambda r, t, m: masked_error(r, t, m**0),
        "The visible patches count: in the mask, 1 means hidden.": lambda r, t, m: masked_error(r, t, 1 - m),
        "Errors keep their sign and cancel: take the absolute value.": dict(error=lambda difference: difference),
        "Clay takes the mean of absolute values; no squares, roots of squares (RMSE, L2 norm) or medians.": [
            dict(error=torch.square),
            dict(error=torch.square, root=0.5),
            lambda r, t, m: (r - t)[m.bool()].abs().mean(-1).median(),
            lambda r, t, m: masked_error(r, t, m, error=torch.square).sqrt(),
            lambda r, t, m: (r - t)[m.bool()].norm(dim=-1).mean(),
        ],
        "Divide the sum over hidden patches by their number.": lambda r, t, m: masked_error(r, t, m) * m.mean(),
        "The mean is taken for each image first: add up over the batch, then divide once.": lambda *case: torch.stack(
            [masked_error(*image) for image in zip(*case, strict=True)]
        ).mean(),
    },
    praise="Absolute error, averaged over a patch's pixels, then over hidden patches: 95 % of the release's loss.",
)


def agreement(student, teacher, *, loss=lambda cosine: 1 - cosine.mean(), cosine=cosine_similarity):
    """student, teacher [B, D] -> 1 - cosine, the mean over the batch."""
    return loss(cosine(student, teacher))


check_agreement = Check(
    reference=agreement,
    cases=[(normal(3, 4, 6) + 0.5, (3 * normal(4, 4, 6) + 1) * torch.tensor([[-1.0], [1], [1], [1]]))],
    quantity="the loss",
    mistakes={
        "This is the cosine, largest where both agree. A loss is smallest there: 1 - cosine.": dict(loss=torch.mean),
        "This is 1 minus the dot product: divide by both lengths.": dict(cosine=lambda a, b: (a * b).sum(-1)),
        "Sum over D, the last axis, not the batch.": dict(cosine=lambda a, b: cosine_similarity(a, b, dim=0)),
        "There is one number a chip: end with their mean.": dict(loss=lambda cosine: 1 - cosine),
        "The losses of the chips are added up: take their mean.": dict(loss=lambda cosine: (1 - cosine).sum()),
        "The absolute value is taken: opposites should lose most, 2.": dict(
            loss=lambda cosine: 1 - cosine.abs().mean()
        ),
        "This is a distance, in which lengths count: take the cosine.": lambda a, b: (a - b).norm(dim=-1).mean(),
    },
    praise="0 where both point the same way, 1 where they have nothing in common, 2 where they oppose each other.",
)


def rate(step, warmup, steps, peak, *, first=1, extra=1, turn=math.pi, start=None, warm=True, line=False):
    """The learning rate at a step counted from 0: up in a straight line, down by half a cosine."""
    if warm and step < warmup:
        return peak * (step + first) / (warmup + extra)
    start = warmup if start is None else start
    done = (step - start) / (steps - start)
    return peak * (1 - done if line else 0.5 + 0.5 * math.cos(turn * done))


check_rate = Check(
    reference=rate,
    cases=[
        *((step, 10, 110, 0.02) for step in (0, 4, 9, 10, 35, 60, 85, 109)),
        *((step, 4, 52, 0.5) for step in (0, 3, 4, 28, 51)),
    ],
    read=number,
    quantity="the rate",
    rtol=1e-5,
    atol=1e-9,
    mistakes={
        "There is no warm-up: the first steps rise from small to the peak.": dict(warm=False),
        "The first step has the rate 0 and is lost: rise by (step + 1) / (warmup + 1).": dict(first=0, extra=0),
        "The peak comes one step early: rise by (step + 1) / (warmup + 1).": dict(extra=0),
        "After the warm-up the rate comes down in a straight line: take half a cosine.": dict(line=True),
        "The cosine begins at step 0: it should begin where the warm-up ends.": dict(start=0),
        "The cosine takes degrees: half a turn is math.pi.": dict(turn=180),
    },
    praise="Up in a straight line, down by half a cosine: what this notebook trains with.",
)

# ---- 05: reconstructions on the map


def six_numbers(transform) -> torch.Tensor:
    """The first six numbers of a transform, which may be an Affine of nine."""
    numbers = as_tensor(transform).double()
    return numbers[:6] if numbers.tolist()[6:] == [0, 0, 1] else numbers


def patch_transform(transform, patch, *, shift=lambda patch: 0, scaled=(1, 1, 0, 1, 1, 0), power=1):
    """(a, b, c, d, e, f) of the pixels, patch in pixels -> the same for a grid of patches."""
    a, b, c, d, e, f = transform
    moved = (a, b, c + (a + b) * shift(patch), d, e, f + (d + e) * shift(patch))
    return [value * patch ** (power * times) for value, times in zip(moved, scaled, strict=True)]


check_patch_transform = Check(
    reference=patch_transform,
    cases=[((10.0, 0.5, 600_000.0, -0.25, -10.0, 5_400_000.0), 8)],
    read=six_numbers,
    rtol=1e-9,
    mistakes={
        "The corner is scaled too: the map begins where the image begins.": dict(scaled=(1, 1, 1, 1, 1, 1)),
        "Only a and e are scaled: b and d turn the grid, and are meters a cell too.": dict(scaled=(1, 0, 0, 0, 1, 0)),
        "The cells have become smaller: a patch is larger than a pixel, so multiply.": dict(power=-1),
        "The corner has moved: c and f belong to the upper left corner of a pixel.": [
            dict(shift=lambda patch: 0.5),
            dict(shift=lambda patch: -0.5),
            dict(shift=lambda patch: patch / 2),
            dict(shift=lambda patch: (patch - 1) / 2),
        ],
    },
    edge_cases={"Another patch size: take the one given": ((20.0, -1.5, 310_000.0, 0.75, -30.0, 4_100_000.0), 6)},
    praise="Same corner, cells P times as large: a map of patches lies where its image lies.",
)


def plain_guess(image, hidden, *, guess=lambda image, hidden: image[:, ~hidden].mean(1)):
    """image [C, H, W], hidden [H, W] bool -> the image, its hidden pixels replaced by their band's visible mean."""
    return torch.where(hidden, guess(image, hidden).reshape(-1, 1, 1), image)


check_plain_guess = Check(
    reference=plain_guess,
    cases=[(normal(5, 3, 4, 6) + torch.tensor([0.0, 2, 5])[:, None, None], normal(6, 4, 6) < 0)],
    axes="C H W",
    mistakes={
        "The mean is over all pixels, hidden ones too.": dict(guess=lambda image, hidden: image.mean((1, 2))),
        "This is the mean of the hidden pixels: those are unknown.": dict(guess=lambda image, h: image[:, h].mean(1)),
        "One mean serves all bands: each has its own.": dict(guess=lambda image, hidden: image[:, ~hidden].mean()),
        "Hidden pixels count as zeros in the mean.": dict(guess=lambda image, hidden: (image * ~hidden).mean((1, 2))),
        "Replace the hidden pixels, not the visible ones.": lambda image, hidden: torch.where(
            hidden, image, image[:, ~hidden].mean(1)[:, None, None]
        ),
    },
    praise="The baseline that every reconstruction has to beat.",
)


def image_of_rows(rows, C, P, H, W, *, order="(h w) (C p q)", crop=True, grid_rows=lambda H, P: -(-H // P)):
    """rows [L, C*P*P] -> image [C, H, W], the padding cut off."""
    image = rearrange(rows, f"{order} -> C (h p) (w q)", h=grid_rows(H, P), C=C, p=P)
    return image[:, :H, :W] if crop else image


check_image_of_rows = Check(
    reference=image_of_rows,
    cases=[(normal(4, 6, 48), 3, 4, 7, 10)],
    axes="C H W",
    mistakes={
        "The padding is still there: cut the image to H rows and W columns.": dict(crop=False),
        "Rows are read with the bands last. All pixels of one band come first: (C p q).": dict(order="(h w) (p q C)"),
        "The patches are set column by column. They come row by row: (h w).": dict(order="(w h) (C p q)"),
        "Rows and columns are swapped inside the patches.": dict(order="(h w) (C q p)"),
        "The grid's last rows are cut off: round up, -(-H // P).": dict(grid_rows=lambda H, P: H // P),
    },
    edge_cases={
        "8 rows of pixels are 2 patches: -(-H // P) rounds up, H // P + 1 gives 3": (normal(4, 6, 48), 3, 4, 8, 12),
        "9 rows of pixels reach into a third patch: round(H / P) gives 2": (normal(4, 9, 48), 3, 4, 9, 9),
        "The grid has 3 rows and 2 columns: count its rows from H, not from L": (normal(4, 6, 48), 3, 4, 11, 6),
        "Other numbers of bands and pixels: take C and P as they are given": (normal(4, 6, 50), 2, 5, 7, 12),
    },
    praise="From rows of numbers to an image of any size: the decoder's output as an image.",
)

# ---- 11: fine-tuning for segmentation


def block_rates(depth, last, top, decay, *, freeze=True, late=0):
    """Learning rates [depth] of the encoder's blocks, first block first; 0 except in the `last` last blocks."""
    behind = depth - 1 - np.arange(depth)
    return np.where(behind < last, top * decay ** (behind + late), 0.0 if freeze else top * decay**behind)


check_block_rates = Check(
    reference=block_rates,
    cases=[(7, 4, 0.02, 0.7)],
    axes="depth",
    atol=1e-9,
    mistakes={
        "All blocks learn: those before the last ones are frozen, with the rate 0.": dict(freeze=False),
        "The frozen blocks belong before the others, with the rate 0.": lambda *case: block_rates(*case)[-case[1] :],
        "The last block comes first: give the first block first.": lambda *case: block_rates(*case)[::-1],
        "The last block already learns decay times slower: its rate is `top`.": dict(late=1),
    },
    edge_cases={
        "With last = 0 every rate is 0: mind that [-0:] is all of an array, and [:-0] is nothing": (7, 0, 0.02, 0.7),
        "Another depth, and every block learns": (5, 5, 1.0, 0.5),
    },
    praise="The first blocks, near the pixels, change least.",
)


def classwise(truth, predicted, count, ignore) -> np.ndarray:
    """Pixels of each class in the truth, in the prediction and in both, [3, count], without the ignored ones."""
    known = truth != ignore
    truth, predicted = truth[known], predicted[known]
    return np.array([[(truth == k).sum(), (predicted == k).sum(), ((truth == k) & (predicted == k)).sum()] for k in range(count)]).T  # fmt: skip


def mean_iou(
    truth, predicted, count, ignore, *, absent=None, union=lambda actual, guessed, hit: actual + guessed - hit
):
    """truth, predicted [N, H, W] -> the mean over the classes of labeled pixels of intersection over union."""
    actual, guessed, hit = classwise(truth, predicted, count, ignore)
    iou = hit / np.maximum(union(actual, guessed, hit), 1)
    return iou[actual > 0].mean() if absent is None else np.where(actual > 0, iou, absent).mean()


def _labels(shape: tuple, ignore: int, seed: int, only_predicted: int) -> tuple:
    """Maps without classes 3 and 6, 5 never predicted; 3 only predicted where there is no label."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 5], shape, p=[0.5, 0.25, 0.15, 0.1])
    guess = np.where(truth == 5, 0, truth)
    predicted = np.where(rng.random(shape) < 0.6, guess, rng.choice([0, 1, 2, only_predicted], shape))
    truth[0, 0], truth[-1, -1, :2] = ignore, ignore
    predicted[0, 0, 1] = 3
    return truth, predicted, 7, ignore


check_mean_iou = Check(
    reference=mean_iou,
    cases=[_labels((3, 5, 7), -1, 0, 4), _labels((2, 4, 9), 255, 3, 0)],
    read=number,
    quantity="the score",
    rtol=1e-6,
    atol=1e-7,
    mistakes={
        "A class that no pixel has counts as 0 or 1: leave it out of the mean.": [dict(absent=0), dict(absent=1)],
        "Unlabeled pixels are taken for class 0: leave them out.": lambda truth, predicted, count, ignore: mean_iou(
            np.where(truth == ignore, 0, truth), predicted, count, ignore
        ),
        "This is the share of correct pixels; IoU takes each class by itself.": lambda truth, predicted, count, ignore: (
            (truth == predicted)[truth != ignore].mean()
        ),
        "This is F1: divide the hits by the union.": dict(union=lambda actual, guessed, hit: (actual + guessed) / 2),
        "This is recall: divide the hits by the union.": dict(union=lambda actual, guessed, hit: actual),
        "The score is averaged over chips: count over all chips first, then divide.": lambda truth, predicted, *rest: (
            np.mean([mean_iou(*chip, *rest) for chip in zip(truth, predicted, strict=True)])
        ),
    },
    hints={
        "This is NaN: a class without pixels divides 0 by 0. Leave it out of the mean.": lambda a, _: a.isnan(),
        "This is too low: are unlabeled pixels left out, and classes that are only predicted?": lambda a, b: a < b,
    },
    praise="Every class that occurs counts once; unlabeled pixels and absent classes do not.",
)


def resized(values, factor, *, pixel=0.5, patch=0.5):
    """values [n] at the centers of patches -> [n * factor] at the centers of pixels, linear; level outside."""
    place = (np.arange(len(values) * factor) + pixel) / factor - patch
    return np.interp(place, np.arange(len(values)), values)


check_resized = Check(
    reference=resized,
    cases=[(normal(5, 5).numpy() + np.arange(5), 4), (normal(6, 6).numpy() + np.arange(6), 3)],
    axes="pixels",
    mistakes={
        "Every pixel takes the value of its own patch: draw straight lines.": lambda values, f: values.repeat(f),
        "The image is shifted: centers are at i + 0.5 and (k + 0.5) * factor.": dict(pixel=0, patch=0),
        "The image is shifted by half a patch: subtract the first patch's center, 0.5.": dict(patch=0),
        "The image is shifted by half a pixel: a pixel's center is at i + 0.5.": dict(pixel=0),
        "The image is stretched: the first and last pixel lie further out than the patch centers.": (
            lambda values, factor: np.interp(
                np.linspace(0, len(values) - 1, len(values) * factor), range(len(values)), values
            )
        ),
    },
    hints={
        "The first pixels are wrong: keep places below 0 at 0 (values[-1] is the last patch).": lambda a, b: (
            a.shape == b.shape and not torch.equal(a[0], b[0]) and torch.allclose(a[-2:].double(), b[-2:])
        )
    },
    praise="Every pixel follows the same rule, wherever it lies in its patch.",
)
