"""Checks of the exercises of 07: the vote of neighbours, a split that does not leak, an interval."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clay_lib.checking import as_tensor, attempt, compare, expect_shape, require, right


def check_vote(fn: Callable) -> None:
    """fn(train_x [N, D], train_y [N], test_x [M, D], k) -> [M], the commonest label of the k nearest (Euclidean)."""
    rng = np.random.default_rng(4)
    train_x, test_x = rng.normal(size=(24, 3)) * [1, 2, 1], rng.normal(size=(11, 3)) * [1, 2, 1]
    train_y, k = rng.integers(0, 2, 24) * 10 + 10, 5  # two classes, 10 and 20: an odd k knows no tie
    order = np.linalg.norm(test_x[:, None] - train_x, axis=2).argsort(1)

    def vote(nearest):
        return np.where((train_y[nearest] == 20).mean(1) > 0.5, 20, 10)

    cosine = (
        -(test_x / np.linalg.norm(test_x, axis=1, keepdims=True))
        @ (train_x / np.linalg.norm(train_x, axis=1, keepdims=True)).T
    )
    compare(
        attempt(fn, train_x, train_y, test_x, k),
        vote(order[:, :k]),
        slips={
            "The farthest are asked: sort distances from the smallest up.": vote(order[:, -k:]),
            "Only the nearest is asked; all k of them vote.": train_y[order[:, 0]],
            "These are numbers of training chips: look up their labels, train_y[...].": order[:, 0],
            "The labels of the neighbours are averaged. A label is a name: count votes and take the commonest.": train_y[
                order[:, :k]
            ].mean(1),
            "This is the share or place of a class: answer with the label itself.": (train_y[order[:, :k]] == 20).mean(
                1
            )
            > 0.5,
            "Neighbours are taken by cosine; here by the Euclidean distance.": vote(cosine.argsort(1)[:, :k]),
            "One neighbour too few is asked.": vote(order[:, 1:k]),
            "The nearest is left out: a test chip is not among the training chips, so nobody has to be skipped.": vote(
                order[:, 1 : k + 1]
            ),
        },
        axes="M",
        what="the answers",
    )
    right("The simplest probe there is: no training, one number to choose.")


def check_split(fn: Callable) -> None:
    """fn(blocks [N], share, seed) -> bool [N], True for test: whole blocks, about `share` of them, drawn by the seed."""
    blocks = np.repeat(np.arange(20) * 7 % 23, 6)
    blocks = blocks[np.random.default_rng(0).permutation(len(blocks))]
    test = as_tensor(attempt(fn, blocks, 0.3, 0)).numpy()
    expect_shape(as_tensor(test), blocks.shape, "N")
    require(test.dtype == bool, f"True and False are wanted, one a chip; these are {test.dtype} numbers.")
    require(not test.all() and test.any(), "All chips are on one side: both sides need some.")
    both = set(blocks[test]) & set(blocks[~test])
    require(
        not both,
        f"{len(both)} of {len(set(blocks))} blocks have chips on both sides: draw blocks, not chips, and let each chip "
        "follow its block (np.isin).",
    )
    drawn = len(set(blocks[test]))
    require(
        abs(drawn - 6) <= 1,
        f"{drawn} of 20 blocks test; with a share of 0.3 it should be 6"
        + (": share is the test's part, you took it for training." if abs(drawn - 14) <= 1 else "."),
    )
    again, other = (as_tensor(attempt(fn, blocks, 0.3, seed)).numpy() for seed in (0, 1))
    require(bool((again == test).all()), "The same seed gives another split: draw from np.random.default_rng(seed).")
    require(
        bool((other != test).any()),
        "Every seed gives the same split: the blocks have to be drawn at random, from np.random.default_rng(seed).",
    )
    right("No block is on both sides: the score is that of land never seen.")


def check_interval(fn: Callable) -> None:
    """fn(hits [M], places [M], draws, seed) -> (low, high): 95 % bootstrap interval of the mean, by whole places."""
    rng = np.random.default_rng(9)
    share = np.repeat([0.1, 0.95] * 20, 8)
    places = np.repeat(np.arange(40), 8)
    hits = (rng.random(320) < share).astype(float)
    found = as_tensor(attempt(fn, hits, places, 2000, 0)).double()
    expect_shape(found, (2,), "low high")
    low, high = found.tolist()
    require(low == low and high == high, "The ends are not numbers (NaN): was a draw empty?")
    require(abs(high - low) > 1e-6, "Every draw gave the same mean: draw with replacement, as many as there are.")
    require(low <= high, "The lower end is above the upper end: give (low, high).")
    mean = hits.mean()
    if low > 1 or high > 1:
        require(False, "These are percent or counts; a share between 0 and 1 is wanted.")
    require(
        low < mean < high,
        f"The mean {mean:.3f} is outside of {low:.3f} to {high:.3f}: are the ends those of the drawn means?",
    )
    by_place = hits.reshape(40, 8).mean(1)
    width, wide = high - low, 2 * 1.96 * by_place.std() / np.sqrt(40)
    narrow = 2 * 1.96 * hits.std() / np.sqrt(320)
    require(
        not width < 0.6 * wide or not abs(width / narrow - 1) < 0.25,
        f"The interval is {width:.3f} wide, as if all 320 chips were independent. The 8 chips of a place stand or fall "
        "together: draw places, and take all chips of each.",
    )
    require(
        not 1.6 * wide < width,
        f"The interval is {width:.3f} wide; it should be about {wide:.3f}. Are these the ends of the hits or of single "
        "places, instead of those of the drawn means?",
    )
    require(
        not 0.78 * wide < width < 0.9 * wide,
        f"The interval is {width:.3f} wide, which is 90 %: for 95 % leave 2.5 % on each side, quantiles 0.025 and 0.975.",
    )
    require(
        0.9 * wide < width < 1.12 * wide,
        f"The interval is {width:.3f} wide; a 95 % interval of these hits is about {wide:.3f}.",
    )
    require(
        as_tensor(attempt(fn, hits, places, 2000, 0)).double().tolist() == [low, high],
        "The same seed gives another interval: draw from np.random.default_rng(seed).",
    )
    right("Wide enough to be honest: other places would have given another score.")
