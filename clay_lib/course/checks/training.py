"""Checks of notebooks 04, 05 and 11: losses, learning rates, images from patches, segmentation scores."""

import math

import numpy as np
import torch
from einops import rearrange
from torch.nn.functional import cosine_similarity

from clay_lib.course.checks.engine import as_tensor, check, normal, number

# ---- 04: the two losses and the learning rate


@check(
    cases=[(normal(2, 2, 5, 6), normal(3, 2, 5, 6), torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]))],
    mistakes={
        "You count all patches: take hidden ones (mask 1).": ("(errors * mask).sum() / mask.sum()", "errors.mean()"),
        "You count the visible patches: in the mask, 1 means hidden.": ("return", "mask = 1 - mask; return"),
        "Errors keep their sign and cancel: take the absolute value.": (".abs()", ""),
        "Divide the sum over hidden patches by their number.": ("mask.sum()", "mask.numel()"),
    },
    praise="Absolute error, averaged over a patch's pixels, then over hidden patches: 95 % of the release's loss.",
)
def check_masked_error(reconstruction, target, mask):
    """reconstruction, target [B, L, N], mask [B, L] with 1 = hidden -> mean absolute error of the hidden patches."""
    errors = (reconstruction - target).abs().mean(-1)  # [B, L]
    return (errors * mask).sum() / mask.sum()


@check(
    cases=[(normal(3, 4, 6) + 0.5, (3 * normal(4, 4, 6) + 1) * torch.tensor([[-1.0], [1], [1], [1]]))],
    mistakes={
        "This is the cosine, largest where both agree. A loss is smallest there: 1 - cosine.": ("1 - ", ""),
        "This is 1 minus the dot product: divide by both lengths.": lambda a, b: 1 - (a * b).sum(-1).mean(),
        "Sum over D, the last axis, not the batch.": ("dim=1", "dim=0"),
        "This is one number for each chip: return their mean.": (".mean()", ""),
    },
    praise="0 where both point the same way, 1 where they have nothing in common, 2 where they oppose each other.",
)
def check_agreement(student, teacher):
    """student, teacher [B, D] -> 1 - cosine, the mean over the batch."""
    cosine = cosine_similarity(student, teacher, dim=1)  # [B]
    return 1 - cosine.mean()


@check(
    cases=[
        *((step, 10, 110, 0.02) for step in (0, 4, 9, 10, 35, 60, 85, 109)),
        *((step, 4, 52, 0.5) for step in (0, 3, 4, 28, 51)),
    ],
    read=number,
    rtol=1e-5,
    atol=1e-9,
    mistakes={
        "There is no warm-up: the first steps rise from small to the peak.": ("step < warmup", "False"),
        "The first step has the rate 0 and is lost: rise by (step + 1) / (warmup + 1).": (" + 1)", ")"),
        "This comes down in a straight line: take half a cosine.": ("0.5 + 0.5 * math.cos(math.pi * done)", "1 - done"),
        "The cosine begins at step 0: it should begin where the warm-up ends.": (" - warmup)", ")"),
    },
    praise="Up in a straight line, down by half a cosine: what this notebook trains with.",
)
def check_rate(step, warmup, steps, peak):
    """The learning rate at a step counted from 0: up in a straight line, down by half a cosine."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / (steps - warmup)
    return peak * (0.5 + 0.5 * math.cos(math.pi * done))


# ---- 05: reconstructions on the map


def six_numbers(transform) -> torch.Tensor:
    """The first six numbers of a transform, which may be an Affine of nine."""
    numbers = as_tensor(transform).double()
    return numbers[:6] if numbers.tolist()[6:] == [0, 0, 1] else numbers


@check(
    cases=[((10.0, 0.5, 600_000.0, -0.25, -10.0, 5_400_000.0), 8)],
    read=six_numbers,
    rtol=1e-9,
    mistakes={
        "The corner is scaled too: the map begins where the image begins.": lambda t, patch: np.multiply(t, patch),
        "You scale only a and e: scale b and d too, which turn the grid.": ("b * patch, c, d * patch", "b, c, d"),
        "The cells have become smaller: a patch is larger than a pixel, so multiply.": ("* patch", "/ patch"),
    },
    edge_cases={"Another patch size: take the one given": ((20.0, -1.5, 310_000.0, 0.75, -30.0, 4_100_000.0), 6)},
    praise="Same corner, cells P times as large: a map of patches lies where its image lies.",
)
def check_patch_transform(transform, patch):
    """(a, b, c, d, e, f) of the pixels, patch in pixels -> the same for a grid of patches."""
    a, b, c, d, e, f = transform
    return [a * patch, b * patch, c, d * patch, e * patch, f]


@check(
    cases=[(normal(5, 3, 4, 6) + torch.tensor([0.0, 2, 5])[:, None, None], normal(6, 4, 6) < 0)],
    mistakes={
        "Your mean includes the hidden pixels: leave them out.": ("image[:, ~hidden].mean(1)", "image.mean((1, 2))"),
        "This is the mean of the hidden pixels: those are unknown.": ("~hidden", "hidden"),
        "You use one mean for all bands: each has its own.": (".mean(1)[:, None, None]", ".mean()"),
        "Replace the hidden pixels, not the visible ones.": ("guess, image", "image, guess"),
    },
    praise="The baseline that every reconstruction has to beat.",
)
def check_plain_guess(image, hidden):
    """image [C, H, W], hidden [H, W] bool -> the image, its hidden pixels replaced by their band's visible mean."""
    guess = image[:, ~hidden].mean(1)[:, None, None]  # [C, 1, 1]
    return torch.where(hidden, guess, image)


@check(
    cases=[(normal(4, 6, 48), 3, 4, 7, 10)],
    mistakes={
        "The padding is still there: cut the image to H rows and W columns.": ("[:, :H, :W]", ""),
        "Rows are read with the bands last. All pixels of one band come first: (C p q).": ("(C p q)", "(p q C)"),
        "The patches are set column by column. They come row by row: (h w).": ("(h w)", "(w h)"),
        "The grid's last rows are cut off: round up, -(-H // P).": ("-(-H // P)", "H // P"),
    },
    edge_cases={
        "8 rows of pixels are 2 patches: -(-H // P) rounds up, H // P + 1 gives 3": (normal(4, 6, 48), 3, 4, 8, 12),
        "The grid has 3 rows and 2 columns: count its rows from H, not from L": (normal(4, 6, 48), 3, 4, 11, 6),
        "Other numbers of bands and pixels: take C and P as they are given": (normal(4, 6, 50), 2, 5, 7, 12),
    },
    praise="From rows of numbers to an image of any size: the decoder's output as an image.",
)
def check_image_of_rows(rows, C, P, H, W):
    """rows [L, C*P*P] -> image [C, H, W], the padding cut off."""
    image = rearrange(rows, "(h w) (C p q) -> C (h p) (w q)", h=-(-H // P), C=C, p=P)
    return image[:, :H, :W]


# ---- 11: fine-tuning for segmentation


@check(
    cases=[(7, 4, 0.02, 0.7)],
    atol=1e-9,
    mistakes={
        "All blocks learn: freeze those before the last ones, with the rate 0.": ("behind < last", "True"),
        "The frozen blocks belong before the others, with the rate 0.": ("0.0)", "0.0)[-last:]"),
        "The last block comes first: give the first block first.": ("[::-1]", ""),
        "You multiply the last block's rate by decay: it is `top`.": ("**behind", "**(behind + 1)"),
    },
    edge_cases={
        "With last = 0 every rate is 0: mind that [-0:] is all of an array, and [:-0] is nothing": (7, 0, 0.02, 0.7),
        "Another depth, and every block learns": (5, 5, 1.0, 0.5),
    },
    praise="The first blocks, near the pixels, change least.",
)
def check_block_rates(depth, last, top, decay):
    """Learning rates [depth] of the encoder's blocks, first block first; 0 except in the `last` last blocks."""
    behind = np.arange(depth)[::-1]  # how many blocks come behind each
    return np.where(behind < last, top * decay**behind, 0.0)


def _labels(shape: tuple, ignore: int, seed: int, only_predicted: int) -> tuple:
    """Maps without classes 3 and 6, 5 never predicted; 3 only predicted where there is no label."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 5], shape, p=[0.5, 0.25, 0.15, 0.1])
    guess = np.where(truth == 5, 0, truth)
    predicted = np.where(rng.random(shape) < 0.6, guess, rng.choice([0, 1, 2, only_predicted], shape))
    truth[0, 0], truth[-1, -1, :2] = ignore, ignore
    predicted[0, 0, 1] = 3
    return truth, predicted, 7, ignore


@check(
    cases=[_labels((3, 5, 7), -1, 0, 4), _labels((2, 4, 9), 255, 3, 0)],
    read=number,
    rtol=1e-6,
    atol=1e-7,
    mistakes={
        "You count a class that no pixel has: leave it out of the mean.": ("iou[actual > 0]", "iou"),
        "You count a class that is only predicted: leave it out of the mean.": ("actual >", "actual + guessed >"),
        "Unlabeled pixels are taken for class 0: leave them out.": (
            "known, table",
            "truth = np.where(truth == ignore, 0, truth); known, table",
        ),
        "This is the share of correct pixels: IoU is by class.": ("return", "return hit.sum() / table.sum()  #"),
    },
    praise="Every class that occurs counts once; unlabeled pixels and absent classes do not.",
)
def check_mean_iou(truth, predicted, count, ignore):
    """truth, predicted [N, H, W] -> the mean over the classes of labeled pixels of intersection over union."""
    known, table = truth != ignore, np.zeros((count, count))
    np.add.at(table, (truth[known], predicted[known]), 1)
    actual, guessed, hit = table.sum(1), table.sum(0), table.diagonal()
    iou = hit / np.maximum(actual + guessed - hit, 1)
    return iou[actual > 0].mean()


@check(
    cases=[(normal(5, 5).numpy() + np.arange(5), 4), (normal(6, 6).numpy() + np.arange(6), 3)],
    mistakes={
        "Every pixel takes the value of its own patch: draw straight lines.": lambda values, f: values.repeat(f),
        "The image is shifted: centers are at i + 0.5.": (" + 0.5) / factor - 0.5", ") / factor"),
        "The image is shifted by half a pixel: a pixel's center is at i + 0.5.": (" + 0.5", ""),
    },
    praise="Every pixel follows the same rule, wherever it lies in its patch.",
)
def check_resized(values, factor):
    """values [n] at the centers of patches -> [n * factor] at the centers of pixels, linear; level outside."""
    place = (np.arange(len(values) * factor) + 0.5) / factor - 0.5
    return np.interp(place, np.arange(len(values)), values)
