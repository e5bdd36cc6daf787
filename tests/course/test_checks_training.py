"""Checks of notebooks 04, 05 and 11: wrong answers beside the common mistakes, and right ones written in other ways."""

import numpy as np
import pytest
import torch
from einops import rearrange
from rasterio.transform import Affine
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F

from clay_lib.course import checks
from clay_lib.course.checks import Mistake
from clay_lib.course.checks.training import image_of_rows, rate


def scaled(transform, P):
    return [*(P * np.array(transform))[:2], transform[2], *(P * np.array(transform))[3:5], transform[5]]


def image_with(grid_rows):
    """The decoder's rows to an image, with another number of rows in the grid."""
    return lambda rows, C, P, H, W: rearrange(
        rows, "(h w) (C p q) -> C (h p) (w q)", h=grid_rows(rows, H, P), C=C, p=P
    )[:, :H, :W]


def frozen_to_the_end(depth, last, top, decay):
    rates = top * decay ** np.arange(depth)[::-1]
    rates[:-last] = 0  # with last = 0 the slice is empty
    return rates


def mean_iou(truth, predicted, count, ignore, *, keep=lambda actual, guessed: actual > 0, known=None, empty=0.0):
    known = truth != ignore if known is None else known
    hit = np.array([((truth == k) & (predicted == k)).sum() for k in range(count)])
    actual = np.array([((truth == k) & (truth != ignore)).sum() for k in range(count)])
    guessed = np.array([((predicted == k) & known).sum() for k in range(count)])
    union = np.maximum(actual + guessed - hit, 1)
    return np.where(actual + guessed > 0, hit / union, empty)[keep(actual, guessed)].mean()


def by_indices(values, factor):  # values[-1] is the last patch
    place = (np.arange(len(values) * factor) + 0.5) / factor - 0.5
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    return values[below] * (1 - (place - below)) + values[above] * (place - below)


def enlarged(values, factor):
    row = torch.tensor(values)[None, None]
    return F.interpolate(row.float(), scale_factor=factor, mode="linear", align_corners=False)[0, 0]


image, iou = checks.check_image_of_rows, checks.check_mean_iou
WRONG = {
    "another error": (checks.check_masked_error, lambda r, t, m: r.mean(), r"^This is \S+; the error should be \S+\.$"),
    "one setting": (checks.check_rate, lambda step, w, n, peak: rate(step, 10, 110, 0.02), "Tried with step = 0, warm"),
    "patches of eight": (checks.check_patch_transform, lambda t, P: scaled(t, 8), "Another patch size.*patch = 6"),
    "always one more": (image, image_with(lambda rows, H, P: H // P + 1), r"H // P \+ 1 gives 3"),
    "sides rounded": (image, image_with(lambda rows, H, P: round(H / P)), r"round\(H / P\) gives 2"),
    "a square grid": (image, image_with(lambda rows, H, P: int(len(rows) ** 0.5)), "not from L"),
    "three bands": (image, lambda rows, C, P, H, W: image_of_rows(rows, 3, 4, H, W), "C and P as they are given"),
    "minus zero": (checks.check_block_rates, frozen_to_the_end, r"\[:-0\] is nothing"),
    "predicted classes": (
        iou,
        lambda *case: mean_iou(*case, keep=lambda actual, guessed: actual + guessed > 0),
        "only predicted",
    ),
    "unlabeled pixels": (
        iou,
        lambda truth, *case: mean_iou(truth, *case, known=truth < 999),
        "unlabeled pixels left out",
    ),
    "absent classes": (
        iou,
        lambda *case: mean_iou(*case, keep=lambda actual, _: actual >= 0, empty=np.nan),
        "This is NaN",
    ),
    "the last patch first": (checks.check_resized, by_indices, "is the last patch"),
}


@pytest.mark.parametrize(("check", "answer", "message"), WRONG.values(), ids=WRONG)
def test_mistake_is_named(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)


def error_with_gradient(r, t, m):
    return (r.requires_grad_() - t)[m.bool()].abs().mean().reshape(1)


def folded(rows, C, P, H, W):
    return F.fold(rows.T[None], (-(-H // P) * P, -(-W // P) * P), P, stride=P)[0, :, :H, :W]


def rates_one_by_one(depth, last, top, decay):
    rates = []
    for i in reversed(range(depth)):
        rates.append(top if i >= depth - last else 0)
        top = top * decay
    return np.array(rates)[::-1]  # reversed by a view, which torch refuses


def iou_of_a_table(truth, predicted, count, ignore):
    known = truth != ignore
    table = confusion_matrix(truth[known], predicted[known], labels=range(count))
    values = table.diagonal() / np.maximum(table.sum(0) + table.sum(1) - table.diagonal(), 1)
    return torch.tensor(values[table.sum(1) > 0].mean())


RIGHT = {
    "with a gradient, one number in a row": (checks.check_masked_error, error_with_gradient),
    "an Affine": (checks.check_patch_transform, lambda t, P: Affine(*t) * Affine.scale(P)),
    "patch by patch": (checks.check_image_of_rows, folded),
    "rates one by one": (checks.check_block_rates, rates_one_by_one),
    "a table of scikit-learn": (checks.check_mean_iou, iou_of_a_table),
    "interpolation of torch": (checks.check_resized, enlarged),
}


@pytest.mark.parametrize(("check", "answer"), RIGHT.values(), ids=RIGHT)
def test_other_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
