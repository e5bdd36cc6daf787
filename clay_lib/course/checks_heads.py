"""Checks of the exercises of 11: the rates of an encoder's blocks, the mean IoU, an enlargement by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clay_lib.course.checking import as_tensor, attempt, compare, require, right, value


def check_block_rates(fn: Callable) -> None:
    """fn(depth, last, top, decay) -> [depth] learning rates, first block first; 0 but in the `last` last blocks."""
    depth, last, top, decay = 7, 4, 0.02, 0.7
    wanted = _rates(depth, last, top, decay)
    learns, block = wanted > 0, np.arange(depth)
    upward = top * decay ** (block - (depth - last))
    compare(
        attempt(fn, depth, last, top, decay),
        wanted,
        slips={
            "All blocks learn: those before the last ones are frozen, with the rate 0.": _rates(
                depth, depth, top, decay
            ),
            "These are the rates of the blocks that learn. The frozen ones belong before them, with the rate 0.": wanted[
                learns
            ],
            "They stand from the last block to the first: give the first block first.": wanted[::-1].copy(),
            "The first of the blocks that learn has the top rate; the last block of the encoder should, and every "
            "block before it less.": np.where(learns, upward, 0),
            "The last block already learns decay times slower: its rate is `top` itself.": wanted * decay,
            "All blocks that learn have the same rate: each should have decay times that of the block after it.": np.where(
                learns, top, 0
            ),
            "The powers of decay are counted from the first block of the encoder; count how many blocks lie behind a "
            "block, depth - 1 - i.": np.where(learns, top * decay**block, 0),
            "The first blocks learn and the last are frozen: it should be the other way round.": np.where(
                block < last, _rates(depth, depth, top, decay), 0
            ),
            "The rates fall by the same amount from block to block: each should be decay times the rate after it.": np.where(
                learns, top * (1 - (1 - decay) * (depth - 1 - block)), 0
            ),
            "The rates grow towards the first block: multiply by decay, do not divide.": np.where(
                learns, top * decay ** (block - depth + 1.0), 0
            ),
            "One block too many learns.": _rates(depth, last + 1, top, decay),
            "One block too few learns.": _rates(depth, last - 1, top, decay),
        },
        axes="depth",
        atol=1e-9,
        what="the rates",
    )
    none = as_tensor(attempt(fn, depth, 0, top, decay))
    require(
        not none.bool().any(),
        "With last = 0 no block learns, and every rate is 0; yours are not. (An array has no end of length 0 by "
        "[-0:], which is all of it, and [:-0] is nothing.)",
    )
    compare(attempt(fn, 5, 5, 1.0, 0.5), _rates(5, 5, 1.0, 0.5), axes="depth", what="the rates of 5 blocks of 5")
    right("What lies near the pixels, and serves every image, changes least.")


def check_mean_iou(fn: Callable) -> None:
    """fn(truth [N, H, W], said [N, H, W], count, ignore) -> mean IoU over the classes that some labelled pixel has."""
    sets = [_labels(3, 5, 7, ignore=-1, seed=0, only_said=4), _labels(2, 4, 9, ignore=255, seed=3, only_said=0)]

    def made(score):
        return [float(score(truth, said, ignore)) for truth, said, ignore in sets]

    def mean(keep=lambda has, said: has > 0, part=_iou, absent=None):
        def score(truth, said, ignore):
            known = truth != ignore
            has, names, hit = _counts(truth[known], said[known])
            there = keep(has, names)
            with np.errstate(invalid="ignore", divide="ignore"):
                values = part(has, names, hit)
            return values[there].mean() if absent is None else np.where(there, values, absent).mean()

        return score

    def unlabelled_said(truth, said, ignore):
        known = truth != ignore
        has, _, hit = _counts(truth[known], said[known])
        either = has + _counts(said, said)[0] - hit
        return (hit[has > 0] / either[has > 0]).mean()

    def unlabelled_class(truth, said, ignore):
        known = mean()(truth, said, ignore)
        there = len(np.unique(truth)) - 1
        return known * there / (there + 1)

    def unlabelled_both(truth, said, ignore):
        there = len(np.unique(truth))  # with `ignore`, whose score is 0
        return unlabelled_said(truth, said, ignore) * (there - 1) / there

    def unlabelled_first(truth, said, ignore):
        return mean()(np.where(truth == ignore, 0, truth), said, ignore)

    def alike(truth, said, ignore):
        known = truth != ignore
        return (truth == said)[known].mean()

    def pooled(truth, said, ignore):
        known = truth != ignore
        has, names, hit = _counts(truth[known], said[known])
        return hit.sum() / (has + names - hit).sum()

    def by_chip(truth, said, ignore):
        return np.mean([mean()(t, s, ignore) for t, s in zip(truth, said, strict=True)])

    def weighted(truth, said, ignore):
        known = truth != ignore
        has, names, hit = _counts(truth[known], said[known])
        return np.average(hit / np.maximum(has + names - hit, 1), weights=has)

    answers = [value(attempt(fn, truth, said, COUNT, ignore)) for truth, said, ignore in sets]
    require(
        np.isfinite(answers).all(),
        "This is no number (NaN): where no pixel has a class and none is said to, 0 is divided by 0. Leave it out of the mean.",
    )
    compare(
        answers,
        made(mean()),
        slips={
            "A class that no pixel has counts as 0: leave it out of the mean.": made(mean(absent=0)),
            "A class that no pixel has counts as 1: leave it out of the mean.": made(mean(absent=1)),
            "A class that no pixel has and that is said of none counts as 1: leave both kinds out of the mean.": made(
                mean(keep=lambda has, said: (has + said) > 0, absent=1)
            ),
            "A class that no pixel has counts as 0 where it was said: then two maps of the same land are averaged over "
            "different classes. Leave it out; the class that was there has the miss already.": made(
                mean(keep=lambda has, said: (has + said) > 0)
            ),
            "A class that was never said is left out though pixels have it: it was missed, and scores 0.": made(
                mean(keep=lambda has, said: said > 0)
            ),
            "What was said of unlabelled pixels counts as a false alarm: leave these pixels out of everything.": made(
                unlabelled_said
            ),
            "The unlabelled pixels count as one more class.": made(unlabelled_class),
            "The unlabelled pixels are not left out: they count as one more class and as false alarms of the others.": made(
                unlabelled_both
            ),
            "The unlabelled pixels are taken for class 0: leave them out of everything.": made(unlabelled_first),
            "This is the share of pixels that are right; IoU asks each class by itself.": made(alike),
            "Hits and unions of all classes are added up before dividing, so that common classes decide: divide for "
            "each class, then take the mean.": made(pooled),
            "The classes are weighted by their pixels: a rare class should count as much as a common one.": made(
                weighted
            ),
            "Hits are divided by the pixels that have the class (recall): false alarms belong into the union too.": made(
                mean(part=lambda has, said, hit: hit / has)
            ),
            "Hits are divided by the pixels that have the class (recall); in a union, false alarms count too.": made(
                mean(keep=lambda has, said: (has + said) > 0, part=lambda has, said, hit: hit / np.maximum(has, 1))
            ),
            "Hits are divided by the pixels that are said to have the class (precision): missed ones belong into the "
            "union too.": made(mean(keep=lambda has, said: said > 0, part=lambda has, said, hit: hit / said)),
            "Hits are divided by the pixels said to have the class (precision); in a union, missed ones count too.": made(
                mean(part=lambda has, said, hit: hit / np.maximum(said, 1))
            ),
            "The hits are in the union twice: it is has + said - hit.": made(
                mean(part=lambda has, said, hit: hit / (has + said))
            ),
            "This is F1 (twice the hits over both counts): IoU divides the hits by the union.": made(
                mean(part=lambda has, said, hit: 2 * hit / (has + said))
            ),
            "The score is taken chip by chip and averaged: count over all chips first, then divide.": made(by_chip),
            "These are percent; a share between 0 and 1 is wanted.": [100 * each for each in made(mean())],
        },
        axes="sets",
        rtol=1e-6,
        atol=1e-7,
        what="the scores of two sets of labels",
    )
    right(
        "Every class that occurs has one voice, unlabelled pixels have none, and a class that no pixel has is not asked."
    )


def check_resized(fn: Callable) -> None:
    """fn(values [n], factor) -> [n * factor] by straight lines between the centres; level outside the first and last."""
    draw = np.random.default_rng(5)
    for n, factor in ((5, 4), (6, 3)):
        values = draw.normal(size=n).round(2) + np.arange(n)
        pixel, patch = np.arange(n * factor), np.arange(n)
        place = (pixel + 0.5) / factor - 0.5
        below = np.floor(place).astype(int)
        weight = place - below
        slope = (values[1] - values[0], values[-1] - values[-2])
        level = np.interp(place, patch, values)
        beyond = level + slope[0] * np.minimum(place, 0) + slope[1] * np.maximum(place - (n - 1), 0)
        compare(
            attempt(fn, values, factor),
            level,
            slips={
                "Every pixel takes the value of its own patch: between two centres the value has to change in a straight line.": values[
                    pixel // factor
                ],
                "Pixel 0 stands on the centre of patch 0, so that the whole picture is shifted. Pixel centres are at "
                "i + 0.5, patch centres at (k + 0.5) * factor.": np.interp(pixel / factor, patch, values),
                "The picture is shifted by half a patch: from the pixel's centre (i + 0.5) / factor, in patches, take away the "
                "half patch that lies before the first patch's centre.": np.interp(
                    (pixel + 0.5) / factor, patch, values
                ),
                "The picture is shifted by half a pixel: a pixel's centre is at i + 0.5, not at i.": np.interp(
                    pixel / factor - 0.5, patch, values
                ),
                "The first and last pixel stand on the centres of the first and last patch, so the picture is "
                "stretched: these pixels lie further out.": np.interp(np.linspace(0, n - 1, n * factor), patch, values),
                "The lines go on beyond the first and last centre: there is no patch to aim at, so keep its value.": beyond,
                "The first pixels are mixed with the last patch: values[-1] is the last one. Keep places at 0 and more.": values[
                    below
                ]
                * (1 - weight)
                + values[np.minimum(below + 1, n - 1)] * weight,
                "The picture goes round: beyond its ends lies not its other end. Keep the value of the outermost patch.": values[
                    below % n
                ]
                * (1 - weight)
                + values[(below + 1) % n] * weight,
                "Outside of the first and last centre there are zeros: keep the value of the outermost patch.": np.interp(
                    place, patch, values, left=0, right=0
                ),
                "The two patches' weights are exchanged: the nearer one counts more.": values[np.clip(below, 0, n - 1)]
                * weight
                + values[np.clip(below + 1, 0, n - 1)] * (1 - weight),
            },
            axes="pixels",
            what=f"the pixels ({n} patches, factor {factor})",
        )
    right("Every pixel is made alike, wherever it lies in its patch: no pattern can repeat with the patches.")


# ---- what the checks are made of

COUNT = 7  # classes of the labels that check_mean_iou shows


def _rates(depth: int, last: int, top: float, decay: float) -> np.ndarray:
    behind = depth - 1 - np.arange(depth)
    return np.where(behind < last, top * decay**behind, 0.0)


def _labels(*shape: int, ignore: int, seed: int, only_said: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(truth, said, ignore): 3 and 6 are nowhere, 5 is never said, `only_said` is; 3 is said of an unlabelled pixel."""
    draw = np.random.default_rng(seed)
    truth = draw.choice([0, 1, 2, 5], shape, p=[0.5, 0.25, 0.15, 0.1])
    guess = np.where(truth == 5, 0, truth)
    said = np.where(draw.random(shape) < 0.6, guess, draw.choice([0, 1, 2, only_said], shape))
    truth[0, 0], truth[-1, -1, :2] = ignore, ignore
    said[0, 0, 1] = 3
    return truth, said, ignore


def _counts(truth: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class numbers -> pixels that have each class, are said to, and both [COUNT]."""
    pairs = [np.array([(one == k).sum() for k in range(COUNT)]) for one in (truth, said)]
    return *pairs, np.array([((truth == k) & (said == k)).sum() for k in range(COUNT)])


def _iou(has: np.ndarray, said: np.ndarray, hit: np.ndarray) -> np.ndarray:
    return hit / (has + said - hit)
