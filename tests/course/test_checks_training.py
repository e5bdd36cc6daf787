"""Checks of notebooks 04, 05 and 11 name the mistake of wrong answers, and accept right ones written in other ways."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from rasterio.transform import Affine
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F

from clay_lib.course.checks import (
    Mistake,
    check_agreement,
    check_block_rates,
    check_image_of_rows,
    check_masked_error,
    check_mean_iou,
    check_patch_transform,
    check_plain_guess,
    check_rate,
    check_resized,
)


def masked(error):
    return lambda r, t, m: (error(r - t).mean(-1) * m).sum() / m.sum()


def by_image(r, t, m):
    return (((r - t).abs().mean(-1) * m).sum(1) / m.sum(1)).mean()


def rate(step, warmup, steps, peak, *, turn=math.pi, rise=None, fall=None):
    done = (step - warmup) / (steps - warmup)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1) if rise is None else rise(step, warmup, peak, done)
    return peak * (0.5 + 0.5 * math.cos(turn * done)) if fall is None else fall(step, steps, warmup, peak)


def half_cosine(share):
    return 0.5 + 0.5 * math.cos(math.pi * share)


WRONG_04 = {
    "all patches": (check_masked_error, lambda r, t, m: (r - t).abs().mean(), "All patches count"),
    "visible patches": (check_masked_error, lambda r, t, m: masked(torch.abs)(r, t, 1 - m), "1 means hidden"),
    "squared": (check_masked_error, masked(torch.square), "no squares"),
    "signed": (check_masked_error, masked(lambda d: d), "keep their sign"),
    "image by image": (check_masked_error, by_image, "mean is taken for each image first"),
    "RMSE": (check_masked_error, lambda r, t, m: (r - t)[m.bool()].square().mean().sqrt(), "RMSE"),
    "L2 norm": (check_masked_error, lambda r, t, m: (r - t)[m.bool()].norm(dim=-1).mean(), "L2 norm"),
    "median": (check_masked_error, lambda r, t, m: (r - t)[m.bool()].abs().mean(-1).median(), "medians"),
    "another number": (check_masked_error, lambda r, t, m: r.mean(), r"^This is \S+; the error should be \S+\.$"),
    "absolute cosine": (check_agreement, lambda a, b: 1 - F.cosine_similarity(a, b).abs().mean(), "absolute value"),
    "distance": (check_agreement, lambda a, b: (a - b).norm(dim=-1).mean(), "This is a distance"),
    "added up": (check_agreement, lambda a, b: (1 - F.cosine_similarity(a, b)).sum(), "are added up; their mean"),
    "the cosine": (check_agreement, lambda a, b: F.cosine_similarity(a, b).mean(), "smallest there"),
    "dot product": (check_agreement, lambda a, b: 1 - (a * b).sum(-1).mean(), "divide by both lengths"),
    "over the batch": (check_agreement, lambda a, b: 1 - F.cosine_similarity(a, b, 0).mean(), "the last axis"),
    "one a chip": (check_agreement, lambda a, b: 1 - F.cosine_similarity(a, b), "end with their mean"),
    "straight down": (
        check_rate,
        lambda *case: rate(*case, fall=lambda step, n, w, peak: peak * (n - step) / (n - w)),
        "comes down in a straight line",
    ),
    "always the same": (
        check_rate,
        lambda step, w, n, peak: rate(step, 10, 110, 0.02),
        r"should be 0.1\. \(Tried with",
    ),
    "a text": (check_rate, lambda *case: "small", "numbers is wanted, not a str"),
    "no warm-up": (
        check_rate,
        lambda *case: rate(*case, rise=lambda step, w, peak, done: peak * half_cosine(done)),
        "no warm-up",
    ),
    "first step lost": (
        check_rate,
        lambda *case: rate(*case, rise=lambda step, w, peak, done: peak * step / w),
        "rate 0 and is lost",
    ),
    "cosine too early": (
        check_rate,
        lambda *case: rate(*case, fall=lambda step, n, w, peak: peak * half_cosine(step / n)),
        "begins at step 0",
    ),
    "cosine of degrees": (check_rate, lambda *case: rate(*case, turn=180), "takes degrees"),
}


def moved_corner(pixels):
    def fn(transform, P):
        a, b, c, d, e, f = transform
        return a * P, b * P, c + (a + b) * pixels(P), d * P, e * P, f + (d + e) * pixels(P)

    return fn


def scaled(transform, P):
    return [*(P * np.array(transform))[:2], transform[2], *(P * np.array(transform))[3:5], transform[5]]


def filled(mean):
    return lambda image, hidden: torch.where(hidden, mean(image, hidden), image)


def image_of(order="(h w) (C p q)", grid_rows=lambda rows, H, P: -(-H // P), crop=True):
    def fn(rows, C, P, H, W):
        image = rearrange(rows, f"{order} -> C (h p) (w q)", h=grid_rows(rows, H, P), C=C, p=P)
        return image[:, :H, :W] if crop else image

    return fn


WRONG_05 = {
    "corner scaled": (check_patch_transform, lambda t, p: [v * p for v in t], "The corner is scaled too"),
    "smaller cells": (check_patch_transform, lambda t, p: scaled(t, 1 / p), "so multiply"),
    "only a and e": (
        check_patch_transform,
        lambda t, p: (t[0] * p, t[1], t[2], t[3], t[4] * p, t[5]),
        "b and d turn the grid",
    ),
    "half a pixel on": (check_patch_transform, moved_corner(lambda P: 0.5), "corner has moved"),
    "half a pixel back": (check_patch_transform, moved_corner(lambda P: -0.5), "corner has moved"),
    "middle to middle": (check_patch_transform, moved_corner(lambda P: (P - 1) / 2), "corner has moved"),
    "half a patch": (check_patch_transform, moved_corner(lambda P: P / 2), "corner has moved"),
    "always eight": (check_patch_transform, lambda t, P: scaled(t, 8), r"Another patch size.*patch = 6"),
    "mean of all": (check_plain_guess, filled(lambda x, h: x.mean((1, 2), True)), "hidden ones too"),
    "one mean": (check_plain_guess, filled(lambda x, h: x[:, ~h].mean()), "One mean serves all bands"),
    "zeros counted": (check_plain_guess, filled(lambda x, h: (x * ~h).mean((1, 2), True)), "count as zeros"),
    "the wrong ones": (
        check_plain_guess,
        lambda x, h: torch.where(h, x, x[:, ~h].mean(1)[:, None, None]),
        "the other way round",
    ),
    "always one more": (check_image_of_rows, image_of(grid_rows=lambda rows, H, P: H // P + 1), r"H // P \+ 1 gives 3"),
    "sides rounded": (check_image_of_rows, image_of(grid_rows=lambda rows, H, P: round(H / P)), r"/ P\) gives 2"),
    "sides cut off": (check_image_of_rows, image_of(grid_rows=lambda rows, H, P: H // P), "rows are cut off"),
    "a square grid": (check_image_of_rows, image_of(grid_rows=lambda rows, H, P: int(len(rows) ** 0.5)), "not from L"),
    "always three bands": (check_image_of_rows, lambda r, C, P, H, W: image_of()(r, 3, 4, H, W), "as they are given"),
    "bands last": (check_image_of_rows, image_of("(h w) (p q C)"), "bands last"),
    "column by column": (check_image_of_rows, image_of("(w h) (C p q)"), "column by column"),
    "not cropped": (check_image_of_rows, image_of(crop=False), "padding is still there"),
}


def frozen_to_the_end(depth, last, top, decay):
    rates = top * decay ** np.arange(depth)[::-1]
    rates[:-last] = 0  # with last = 0 the slice is empty
    return rates


def mean_iou(divide=lambda hit, has, said: hit / (has + said - hit), keep=lambda has, said: has > 0, among=None):
    def fn(truth, said, count, ignore):
        known = truth != ignore
        hit = [((truth == k) & (said == k) & known).sum() for k in range(count)]
        has = [((truth == k) & known).sum() for k in range(count)]
        names = [((said == k) & (known if among is None else among(truth))).sum() for k in range(count)]
        counts = zip(hit, has, names, strict=True)
        return np.mean([divide(i, h, s) if h + s else 0.0 for i, h, s in counts if keep(h, s)])

    return fn


def placed(places):
    return lambda values, f: np.interp(
        places(np.arange(len(values) * f), len(values), f), np.arange(len(values)), values
    )


def by_indices(values, factor):
    place = (np.arange(len(values) * factor) + 0.5) / factor - 0.5
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    return values[below] * (1 - (place - below)) + values[above] * (place - below)


def enlarged(values, factor, corners):
    row = torch.tensor(values)[None, None]
    return F.interpolate(row.float(), scale_factor=factor, mode="linear", align_corners=corners)[0, 0]


NOT_A_NUMBER = mean_iou(lambda i, h, s: i / (h + s - i) if h else np.nan, keep=lambda has, said: True)
WRONG_11 = {
    "reversed": (check_block_rates, lambda n, k, t, d: t * d ** np.arange(n) * (np.arange(n) < k), "first block"),
    "none frozen": (check_block_rates, lambda n, k, t, d: t * d ** np.arange(n)[::-1], "All blocks learn"),
    "learning ones only": (check_block_rates, lambda n, k, t, d: t * d ** np.arange(k)[::-1], "belong before"),
    "one step late": (
        check_block_rates,
        lambda n, k, t, d: np.where(np.arange(n) < n - k, 0, t * d ** (n - np.arange(n))),
        "already learns decay times slower",
    ),
    "minus zero": (check_block_rates, frozen_to_the_end, r"\[:-0\] is nothing"),
    "absent is zero": (check_mean_iou, mean_iou(keep=lambda h, s: True), "counts as 0"),
    "predicted classes": (check_mean_iou, mean_iou(keep=lambda h, s: h + s > 0), "only predicted"),
    "unlabelled": (check_mean_iou, mean_iou(among=lambda truth: np.ones_like(truth, bool)), "leave out unlabelled"),
    "unlabelled as class 0": (
        check_mean_iou,
        lambda t, s, n, i: mean_iou()(np.where(t == i, 0, t), s, n, i),
        "taken for class 0",
    ),
    "pixels that are right": (check_mean_iou, lambda t, s, n, i: (t == s)[t != i].mean(), "share of correct pixels"),
    "F1": (check_mean_iou, mean_iou(lambda i, h, s: 2 * i / (h + s)), "This is F1"),
    "chip by chip": (
        check_mean_iou,
        lambda t, s, n, i: np.mean([mean_iou()(a, b, n, i) for a, b in zip(t, s, strict=True)]),
        "averaged over chips",
    ),
    "not a number": (check_mean_iou, NOT_A_NUMBER, "This is NaN"),
    "repeated": (check_resized, np.repeat, "its own patch"),
    "no halves": (check_resized, placed(lambda i, n, f: i / f), "image is shifted: "),
    "half a pixel": (check_resized, placed(lambda i, n, f: i / f - 0.5), "shifted by half a pixel"),
    "half a patch": (check_resized, placed(lambda i, n, f: (i + 0.5) / f), "shifted by half a patch"),
    "stretched": (check_resized, lambda v, f: enlarged(v, f, True), "image is stretched"),
    "the last patch first": (check_resized, by_indices, "is the last patch"),
}
WRONG = WRONG_04 | WRONG_05 | WRONG_11


@pytest.mark.parametrize(("check", "answer", "message"), WRONG.values(), ids=WRONG)
def test_the_mistake_is_named(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)


def folded(rows, C, P, H, W):
    return F.fold(rows.T[None], (-(-H // P) * P, -(-W // P) * P), P, stride=P)[0, :, :H, :W]


def rates_one_by_one(depth, last, top, decay):
    rates = []
    for i in reversed(range(depth)):
        rates.append(top if i >= depth - last else 0)
        top = top * decay
    return np.array(rates)[::-1]  # reversed by a view, which torch refuses


def iou_of_a_table(truth, said, count, ignore):
    known = truth != ignore
    table = confusion_matrix(truth[known], said[known], labels=range(count))
    values = table.diagonal() / np.maximum(table.sum(0) + table.sum(1) - table.diagonal(), 1)
    return torch.tensor(values[table.sum(1) > 0].mean())


RIGHT = {
    "with a gradient, one number in a row": (
        check_masked_error,
        lambda r, t, m: (r.requires_grad_() - t)[m.bool()].abs().mean().reshape(1),
    ),
    "an Affine": (check_patch_transform, lambda t, P: Affine(*t) * Affine.scale(P)),
    "patch by patch": (check_image_of_rows, folded),
    "rates one by one": (check_block_rates, rates_one_by_one),
    "a table of scikit-learn": (check_mean_iou, iou_of_a_table),
    "interpolation of torch": (check_resized, lambda v, f: enlarged(v, f, False)),
}


@pytest.mark.parametrize(("check", "answer"), RIGHT.values(), ids=RIGHT)
def test_right_answers_written_in_other_ways_are_right(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
