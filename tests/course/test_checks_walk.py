"""The checks of 04 to 07 name the mistake of each typical wrong answer; that they accept the solutions is proved by
tests/test_exercises.py."""

import math

import numpy as np
import pytest
import torch
from rasterio.transform import Affine
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from clay_lib.course import checks
from clay_lib.course.checking import Mistake


def rate(step, warmup, steps, peak, turn=math.pi):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (0.5 + 0.5 * math.cos(turn * (step - warmup) / (steps - warmup)))


def masked(error):
    return lambda r, t, m: (error(r - t).mean(-1) * m).sum() / m.sum()


def filled(mean):
    return lambda x, hidden: torch.where(hidden, mean(x, hidden), x)


def cells(image):
    """The decoder's rows to an image with einops, by a pattern."""
    from einops import rearrange

    def fn(rows, C, P, H, W):
        out = rearrange(rows, image, h=-(-H // P), C=C, p=P)
        return out[:, :H, :W]

    return fn


def ranked(likeness):
    return lambda v, k: likeness(v).argsort(dim=1, descending=True)[:, :k]


def components(patches, centre=True, keep=slice(0, 3)):
    flat = patches.reshape(-1, patches.shape[-1])
    flat = flat - flat.mean(0) if centre else flat
    return (flat @ np.linalg.svd(flat, full_matrices=False)[2][keep].T).reshape(*patches.shape[:2], 3)


def nearest(train_x, test_x):
    return np.linalg.norm(test_x[:, None] - train_x, axis=2).argsort(1)


def voted(labels):
    """labels [M, k] -> the commonest of each row [M]."""
    return np.array([max(sorted(set(row)), key=list(row).count) for row in labels])


def near(x, y, t, k):
    return y[nearest(x, t)[:, :k]]


def of_rows(grid_rows):
    """The decoder's rows to an image, with a wrong way to count the rows of the grid."""
    from einops import rearrange

    def fn(rows, C, P, H, W):
        image = rearrange(rows, "(h w) (C p q) -> C (h p) (w q)", h=grid_rows(rows, H, P), C=C, p=P)
        return image[:, :H, :W]

    return fn


def moved_corner(pixels):
    def fn(transform, P):
        a, b, c, d, e, f = transform
        by = pixels(P)
        return a * P, b * P, c + (a + b) * by, d * P, e * P, f + (d + e) * by

    return fn


def blocks_by(draw):
    """A split whose blocks are drawn by draw(rng, blocks, names, how many)."""

    def fn(blocks, share, seed):
        names = np.unique(blocks)
        return np.isin(blocks, draw(np.random.default_rng(seed), blocks, names, round(share * len(names))))

    return fn


def means_of(one, ends=(0.025, 0.975)):
    """The interval of one(rng, hits of each place, hits, places) drawn again and again."""

    def fn(hits, places, draws, seed):
        rng = np.random.default_rng(seed)
        held = [hits[places == name] for name in np.unique(places)]
        return np.quantile([one(rng, held, hits, places) for _ in range(draws)], ends)

    return fn


def counted_once(rng, held, hits, places):
    names = np.unique(places)
    return hits[np.isin(places, rng.choice(names, len(names)))].mean()


def chips_at_random(blocks, share, seed):
    return np.random.default_rng(seed).random(len(blocks)) < share


def some_blocks(blocks, share, seed, rng=None):
    names = np.unique(blocks)
    drawn = np.random.default_rng(seed if rng is None else rng).permutation(names)[: round(share * len(names))]
    return np.isin(blocks, drawn)


def by_chip(hits, places, draws, seed):
    rng = np.random.default_rng(seed)
    return np.quantile([rng.choice(hits, len(hits)).mean() for _ in range(draws)], (0.025, 0.975))


def by_place(hits, places, draws, seed, ends=(0.025, 0.975), replace=True):
    rng, names = np.random.default_rng(seed), np.unique(places)
    held = {name: hits[places == name] for name in names}
    draws = [rng.choice(names, len(names), replace=replace) for _ in range(draws)]
    return np.quantile([np.concatenate([held[n] for n in drawn]).mean() for drawn in draws], ends)


WRONG = {
    "04 all patches": (checks.check_masked_error, lambda r, t, m: (r - t).abs().mean(), "All patches count"),
    "04 visible patches": (checks.check_masked_error, lambda r, t, m: masked(torch.abs)(r, t, 1 - m), "1 means hidden"),
    "04 squared": (checks.check_masked_error, masked(torch.square), "absolute value"),
    "04 signed": (checks.check_masked_error, masked(lambda d: d), "keep their sign"),
    "04 image by image": (
        checks.check_masked_error,
        lambda r, t, m: (((r - t).abs().mean(-1) * m).sum(1) / m.sum(1)).mean(),
        "mean is taken for each image first",
    ),
    "04 RMSE": (
        checks.check_masked_error,
        lambda r, t, m: (r - t)[m.bool()].square().mean().sqrt(),
        "root of the mean square",
    ),
    "04 median": (
        checks.check_masked_error,
        lambda r, t, m: (r - t)[m.bool()].abs().mean(-1).median(),
        "median of the hidden patches",
    ),
    "04 L2 norm": (checks.check_masked_error, lambda r, t, m: (r - t)[m.bool()].norm(dim=-1).mean(), "L2 norm"),
    "04 another number": (
        checks.check_masked_error,
        lambda r, t, m: r.mean(),
        r"^This is \S+; the error should be \S+\.$",
    ),
    "04 absolute cosine": (
        checks.check_agreement,
        lambda a, b: 1 - F.cosine_similarity(a, b).abs().mean(),
        "The absolute value of the cosine",
    ),
    "04 distance": (checks.check_agreement, lambda a, b: (a - b).norm(dim=-1).mean(), "L2 norm of the difference"),
    "04 added up": (
        checks.check_agreement,
        lambda a, b: (1 - F.cosine_similarity(a, b)).sum(),
        "are added up; their mean",
    ),
    "04 a straight line down": (
        checks.check_rate,
        lambda step, w, n, peak: rate(step, w, n, peak) if step < w else peak * (n - step) / (n - w),
        "comes down in a straight line",
    ),
    "04 always the same": (
        checks.check_rate,
        lambda step, w, n, peak: rate(step, 10, 110, 0.02),
        r"differ in 5 of 13 places; first at \[8\]",
    ),
    "04 a text": (checks.check_rate, lambda *a: "small", "A number is wanted, not a str"),
    "04 the cosine": (checks.check_agreement, lambda a, b: F.cosine_similarity(a, b).mean(), "smallest there"),
    "04 dot product": (checks.check_agreement, lambda a, b: 1 - (a * b).sum(-1).mean(), "divide by both lengths"),
    "04 over the batch": (
        checks.check_agreement,
        lambda a, b: 1 - F.cosine_similarity(a, b, 0).mean(),
        "the last axis",
    ),
    "04 one a chip": (checks.check_agreement, lambda a, b: 1 - F.cosine_similarity(a, b), "end with their mean"),
    "04 no warm-up": (
        checks.check_rate,
        lambda step, w, n, peak: peak * (0.5 + 0.5 * math.cos(math.pi * (step - w) / (n - w))),
        "no warm-up",
    ),
    "04 first step lost": (
        checks.check_rate,
        lambda step, w, n, peak: peak * step / w if step < w else rate(step, w, n, peak),
        "rate 0 and is lost",
    ),
    "04 cosine too early": (
        checks.check_rate,
        lambda step, w, n, peak: (
            rate(step, w, n, peak) if step < w else peak * (0.5 + 0.5 * math.cos(math.pi * step / n))
        ),
        "begins at step 0",
    ),
    "04 degrees": (checks.check_rate, lambda *a: rate(*a, turn=180), "takes degrees"),
    "05 corner scaled": (checks.check_patch_transform, lambda t, p: [v * p for v in t], "The corner is scaled too"),
    "05 smaller cells": (
        checks.check_patch_transform,
        lambda t, p: (t[0] / p, t[1] / p, t[2], t[3] / p, t[4] / p, t[5]),
        "so multiply",
    ),
    "05 only a and e": (
        checks.check_patch_transform,
        lambda t, p: (t[0] * p, t[1], t[2], t[3], t[4] * p, t[5]),
        "b and d turn the grid",
    ),
    "05 half a pixel on": (checks.check_patch_transform, moved_corner(lambda P: 0.5), "moved by half a pixel"),
    "05 half a pixel back": (checks.check_patch_transform, moved_corner(lambda P: -0.5), "moved back by half a pixel"),
    "05 middle to middle": (
        checks.check_patch_transform,
        moved_corner(lambda P: (P - 1) / 2),
        "from the middle of a pixel",
    ),
    "05 half a patch": (checks.check_patch_transform, moved_corner(lambda P: P / 2), "moved by half a patch"),
    "05 always one more": (checks.check_image_of_rows, of_rows(lambda rows, H, P: H // P + 1), "H // P \\+ 1 gives 3"),
    "05 sides rounded": (
        checks.check_image_of_rows,
        of_rows(lambda rows, H, P: round(H / P)),
        r"round\(H / P\) gives 2",
    ),
    "05 sides cut off": (checks.check_image_of_rows, of_rows(lambda rows, H, P: H // P), "rows are cut off"),
    "05 a square grid": (
        checks.check_image_of_rows,
        of_rows(lambda rows, H, P: int(len(rows) ** 0.5)),
        "count its rows from H",
    ),
    "05 three bands always": (
        checks.check_image_of_rows,
        lambda rows, C, P, H, W: of_rows(lambda rows, H, P: -(-H // P))(rows, 3, 4, H, W),
        "take C and P as they are given",
    ),
    "05 always eight": (
        checks.check_patch_transform,
        lambda t, P: [*(8 * np.array(t))[:2], t[2], *(8 * np.array(t))[3:5], t[5]],
        r"\(patches of 6\) differ",
    ),
    "05 mean of all": (checks.check_plain_guess, filled(lambda x, h: x.mean((1, 2), True)), "hidden ones too"),
    "05 one mean": (checks.check_plain_guess, filled(lambda x, h: x[:, ~h].mean()), "One mean serves all bands"),
    "05 zeros counted": (
        checks.check_plain_guess,
        filled(lambda x, h: (x * ~h).mean((1, 2), True)),
        "count as zeros in the mean",
    ),
    "05 the wrong ones": (
        checks.check_plain_guess,
        lambda x, h: torch.where(h, x, x[:, ~h].mean(1)[:, None, None]),
        "the other way round",
    ),
    "05 bands last": (
        checks.check_image_of_rows,
        lambda rows, C, P, H, W: cells("(h w) (C p q) -> C (h p) (w q)")(
            rows.unflatten(1, (P, P, C)).movedim(3, 1).flatten(1), C, P, H, W
        ),
        "bands last",
    ),
    "05 column by column": (checks.check_image_of_rows, cells("(w h) (C p q) -> C (h p) (w q)"), "column by column"),
    "05 not cut": (
        checks.check_image_of_rows,
        lambda rows, C, P, H, W: cells("(h w) (C p q) -> C (h p) (w q)")(rows, C, P, -(-H // P) * P, -(-W // P) * P),
        "padding is still there",
    ),
    "06 class token too": (
        checks.check_patch_mean,
        lambda t, v: (
            (t[:, 1:] * v[..., None]).sum(1) / v.sum(1, True) * 0
            + (t[:, 0] + (t[:, 1:] * v[..., None]).sum(1)) / (1 + v.sum(1, True))
        ),
        "The class token is among the patches",
    ),
    "06 all patches": (checks.check_patch_mean, lambda t, v: t[:, 1:].mean(1), "not valid have to be left out"),
    "06 divided by all": (
        checks.check_patch_mean,
        lambda t, v: (t[:, 1:] * v[..., None]).mean(1),
        "divide by the number of valid ones",
    ),
    "06 itself": (
        checks.check_most_alike,
        ranked(lambda v: F.normalize(v, dim=1) @ F.normalize(v, dim=1).T),
        "its own neighbour: take it out",
    ),
    "06 dot product": (checks.check_most_alike, ranked(lambda v: (v @ v.T).fill_diagonal_(-torch.inf)), "long vectors"),
    "06 distance": (
        checks.check_most_alike,
        ranked(lambda v: (-torch.cdist(v, v)).fill_diagonal_(-torch.inf)),
        "only the direction counts",
    ),
    "06 not centred": (checks.check_three_colours, lambda p: components(p, centre=False), "not centred"),
    "06 the last ones": (checks.check_three_colours, lambda p: components(p, keep=slice(None, -4, -1)), "differ least"),
    "06 nothing but zeros": (checks.check_three_colours, lambda p: np.zeros((*p.shape[:2], 3)), "not the first three"),
    "06 flat": (checks.check_three_colours, lambda p: components(p).reshape(-1, 3), r"back to \[h, w, 3\]"),
    "07 farthest": (
        checks.check_vote,
        lambda x, y, t, k: voted(y[nearest(x, t)[:, -k:]]),
        "farthest are asked",
    ),
    "07 one only": (checks.check_vote, lambda x, y, t, k: y[nearest(x, t)[:, 0]], "all k of them vote"),
    "07 median": (checks.check_vote, lambda *a: np.median(near(*a), axis=1), "This is the median of"),
    "07 rounded mean": (checks.check_vote, lambda *a: near(*a).mean(1).round(-1), "averaged and rounded"),
    "07 how many votes": (
        checks.check_vote,
        lambda *a: [max(np.unique(row, return_counts=True)[1]) for row in near(*a)],
        "number of votes",
    ),
    "07 averaged": (checks.check_vote, lambda x, y, t, k: y[nearest(x, t)[:, :k]].mean(1), "A label is a name"),
    "07 chips drawn": (checks.check_split, chips_at_random, "blocks have chips on both sides"),
    "07 training's share": (checks.check_split, lambda b, s, r: ~some_blocks(b, s, r), "took it for training"),
    "07 twice the same": (
        checks.check_split,
        blocks_by(lambda rng, blocks, names, n: rng.choice(names, n)),
        "Blocks are drawn twice",
    ),
    "07 among chips": (
        checks.check_split,
        blocks_by(lambda rng, blocks, names, n: rng.choice(blocks, n, replace=False)),
        "not among the chips",
    ),
    "07 places for names": (
        checks.check_split,
        blocks_by(lambda rng, blocks, names, n: rng.choice(len(names), n, replace=False)),
        r"names\[numbers\]",
    ),
    "07 each by itself": (
        checks.check_split,
        lambda blocks, share, seed: np.isin(
            blocks, np.unique(blocks)[np.random.default_rng(seed).random(len(np.unique(blocks))) < share]
        ),
        "instead of asking for each block",
    ),
    "07 the same share": (
        checks.check_split,
        lambda b, s, r: some_blocks(b, 0.3, r),
        "with a share of 0.15 it should be 3",
    ),
    "07 cut off": (checks.check_split, lambda b, s, r: some_blocks(b, int(s * 20 + 1e-9) / 20, r), "do not cut off"),
    "07 always twenty": (
        checks.check_split,
        blocks_by(lambda rng, blocks, names, n: rng.permutation(names)[: round(n / len(names) * 20)]),
        "of 15 blocks test",
    ),
    "07 no seed": (checks.check_split, lambda b, s, r: some_blocks(b, s, r, rng=5), "Every seed gives the same"),
    "07 every chip alone": (checks.check_interval, by_chip, "as if all 300 chips were independent"),
    "07 counted once": (checks.check_interval, means_of(counted_once), "drawn twice counted once"),
    "07 counted once, ninety": (
        checks.check_interval,
        means_of(counted_once, (0.05, 0.95)),
        "drawn twice counted once",
    ),
    "07 mean of means": (
        checks.check_interval,
        means_of(lambda rng, held, *_: rng.choice([each.mean() for each in held], len(held)).mean()),
        "mean of the places' means",
    ),
    "07 one chip a place": (
        checks.check_interval,
        means_of(lambda rng, held, *_: np.mean([rng.choice(held[i]) for i in rng.choice(len(held), len(held))])),
        "one chip a place",
    ),
    "07 names drawn among chips": (
        checks.check_interval,
        means_of(lambda rng, held, h, p: np.concatenate([h[p == x] for x in rng.choice(p, len(held))]).mean()),
        "places drawn among the chips",
    ),
    "07 always five": (checks.check_vote, lambda x, y, t, k: voted(near(x, y, t, 5)), "one neighbour, k = 1"),
    "06 always three": (
        checks.check_most_alike,
        lambda v, k: ranked(lambda v: (F.normalize(v) @ F.normalize(v).T).fill_diagonal_(-torch.inf))(v, 3),
        "k is 3 instead of 2",
    ),
    "07 seedless": (
        checks.check_interval,
        lambda h, p, n, s: by_place(h, p, n, 0),
        "Every seed gives the same interval",
    ),
    "07 ninety": (checks.check_interval, lambda *a: by_place(*a, ends=(0.05, 0.95)), "which is 90 %"),
    "07 without replacement": (checks.check_interval, lambda *a: by_place(*a, replace=False), "with replacement"),
    "07 of the hits": (checks.check_interval, lambda h, p, n, s: np.quantile(h, (0.025, 0.975)), "of the hits"),
}


OTHERWISE = {
    "04 with a gradient, one number in a row": (
        checks.check_masked_error,
        lambda r, t, m: (r.requires_grad_() - t)[m.bool()].abs().mean().reshape(1),
    ),
    "05 an Affine": (checks.check_patch_transform, lambda t, P: Affine(*t) * Affine.scale(P)),
    "05 patch by patch": (
        checks.check_image_of_rows,
        lambda rows, C, P, H, W: F.fold(rows.T[None], (-(-H // P) * P, -(-W // P) * P), P, stride=P)[0, :, :H, :W],
    ),
    "06 eig, whose answer is complex": (
        checks.check_three_colours,
        lambda p: (p - p.mean((0, 1))) @ (np.linalg.eig(np.cov(p.reshape(-1, p.shape[-1]).T) + 0j)[1])[:, :3],
    ),
    "07 sklearn votes": (
        checks.check_vote,
        lambda x, y, t, k: KNeighborsClassifier(k).fit(x, y).predict(t),
    ),
    "07 sklearn splits": (
        checks.check_split,
        lambda blocks, share, seed: np.isin(
            np.arange(len(blocks)),
            next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(blocks, groups=blocks))[1],
        ),
    ),
    "07 by weights": (
        checks.check_interval,
        lambda hits, places, draws, seed: np.percentile(
            [
                np.average(hits, weights=np.bincount(drawn, minlength=places.max() + 1)[places])
                for drawn in np.random.default_rng(seed).choice(np.unique(places), (draws, len(set(places))))
            ],
            [2.5, 97.5],
        ).tolist(),
    ),
}


@pytest.mark.parametrize(("check", "answer"), OTHERWISE.values(), ids=OTHERWISE)
def test_right_answers_written_otherwise_are_right(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")


@pytest.mark.parametrize(("check", "answer", "words"), WRONG.values(), ids=WRONG)
def test_the_mistake_is_named(check, answer, words):
    with pytest.raises(Mistake, match=words):
        check(answer)
