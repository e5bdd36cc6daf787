"""Checks of notebooks 07, 09 and 10: probes, splits and intervals; sweeps; the effect of metadata."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy import stats

from clay_lib.course.checks.embeddings import unit
from clay_lib.course.checks.engine import as_tensor, attempt, check, normal, number, require, shape_difference

# ---- 07: a vote of neighbors, a split, a bootstrap interval

RNG = np.random.default_rng(653)  # no test chip with a tie
CHIPS, CHIPS_OF_TEST = RNG.normal(size=(40, 3)) * [1, 2, 1], RNG.normal(size=(13, 3)) * [1, 2, 1]
LABELED = CHIPS, RNG.choice([10, 20, 40, 90], 40), CHIPS_OF_TEST


@check(
    cases=[(*LABELED, 5)],
    mistakes={
        "You let the farthest vote: sort from the smallest up.": (":k]", "-k:]"),
        "You let only the nearest vote; all k should.": (":k]", ":1]"),
        "A label is a name: count votes, not a mean.": ("stats.mode(labels, axis=1).mode", "labels.mean(1)"),
        "This is the number of votes: return the label.": (").mode", ").count"),
    },
    edge_cases={"With one neighbor": (*LABELED, 1)},
    praise="The simplest probe there is: no training, one number to choose.",
)
def check_vote(train_x, train_y, test_x, k):
    """train_x [N, D], train_y [N], test_x [M, D] -> the most frequent label of the k nearest (Euclidean), [M]."""
    order = np.linalg.norm(test_x[:, None] - train_x, axis=2).argsort(1)
    labels = train_y[order[:, :k]]
    return stats.mode(labels, axis=1).mode


def _is_split(answer: Callable) -> None:
    rng = np.random.default_rng(0)
    for count, share in ((20, 0.3), (20, 0.15), (20, 0.63), (15, 0.6), (15, 0.2)):
        names = 100 + np.arange(count) * 7 % (count + 3) * 9
        blocks = rng.permutation(np.repeat(names, rng.integers(2, 11, count)))
        splits = [as_tensor(attempt(answer, blocks, share, seed)).numpy() for seed in (0, *range(6))]
        for test in splits:
            require(test.shape == blocks.shape, shape_difference(test.shape, blocks.shape, "N"))
            require(test.dtype == bool, f"True or False is expected for each chip; these are {test.dtype} numbers.")
            both = len(set(blocks[test]) & set(blocks[~test]))
            require(not both, f"{both} blocks have chips on both sides: draw blocks, and let chips follow (np.isin).")
            tested, target = len(set(blocks[test])), round(share * count)
            found = f"{tested} of {count} blocks are for testing; with a share of {share} it should be {target}"
            require(tested != count - target, f"{found}: share is the test part; you took it for training.")
            require(tested == target, f"{found}: draw round(share * blocks) of np.unique(blocks), with replace=False.")
        require(
            (splits[0] == splits[1]).all(), "The same seed gives another split: draw from np.random.default_rng(seed)."
        )
        differ = len({test.tobytes() for test in splits}) > 1
        require(differ, "Every seed gives the same split: draw from default_rng(seed).")


@check(
    cases=[],  # each seed may be answered in many ways: the rule tests what all right answers share
    mistakes={},
    rule=_is_split,
    praise="No block is on both sides: the score is that of unseen places.",
)
def check_split(blocks, share, seed):
    """blocks [N] -> bool [N], True for test: all chips of round(share * blocks) blocks, drawn by the seed."""
    names = np.unique(blocks)
    return np.isin(blocks, np.random.default_rng(seed).choice(names, round(share * len(names)), replace=False))


def _hits() -> tuple:
    rng = np.random.default_rng(9)
    sizes = np.tile([3, 4, 5, 18], 10)  # places with many chips have the better scores
    places = np.repeat(500 + np.arange(40) * 13 % 41 * 3, sizes)
    hits = (rng.random(len(places)) < np.repeat(np.tile([0.2, 0.5, 0.2, 0.9], 10), sizes)).astype(float)
    order = rng.permutation(len(places))
    return hits[order], places[order], 10_000


def _draws_by_seed(answer: Callable) -> None:
    hits, places, _ = _hits()
    first, second, other = (as_tensor(attempt(answer, hits, places, 100, seed)).tolist() for seed in (0, 0, 1))
    require(first == second, "The same seed gives another interval: draw from np.random.default_rng(seed).")
    require(first != other, "Every seed gives the same interval: draw places from np.random.default_rng(seed).")


@check(
    cases=[(*_hits(), 0), (np.array([0.0, 1, 0, 0, 0]), np.arange(5), 2000, 0)],
    rtol=0,
    atol=0.01,  # as much as intervals of 10,000 draws differ
    mistakes={
        "You draw chips as if they were independent: draw places.": ("(places,", "(range(len(hits)),"),
        "A place that is drawn twice has to count twice.": ("means =", "times = np.sign(times); means ="),
        "Every draw gives the same mean: draw with replacement.": ("means =", "times = times**0; means ="),
        "This is the 90 % interval: for 95 % leave 2.5 % on each side.": ("(0.025, 0.975)", "(0.05, 0.95)"),
    },
    rule=_draws_by_seed,
    praise="As wide as the range of scores that other places would give.",
)
def check_interval(hits, places, draws, seed):
    """hits [M], places [M] -> (low, high): the interval of the mean when places are drawn with replacement."""
    names, place = np.unique(places, return_inverse=True)
    hit, size = np.bincount(place, hits), np.bincount(place)  # [K] of each place
    times = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), draws)  # [draws, K]
    means = times @ hit / (times @ size)
    return np.quantile(means, (0.025, 0.975))


# ---- 09: sweeps

INTERVAL_MISTAKES = {
    "1.96 is for many seeds: with few, take Student's t for n - 1.": ("stats.t.ppf(0.975, n - 1)", "1.96"),
    "For the spread around a mean of the same runs, divide by n - 1: ddof=1.": ("ddof=1", "ddof=0"),
    "This is the spread of single runs: for their mean, divide by the square root of n.": (" / np.sqrt(n)", ""),
}


ERRORS = normal(2, 4, 7).double().numpy() * [[0.1], [0.05], [0.2], [0.15]] + [[0.5], [0.8], [1.1], [1.7]]
ERRORS[1, 3], ERRORS[2, [0, 1, 5]], ERRORS[3, [2, 3, 4, 6]] = np.nan, np.nan, np.nan  # runs that failed


@check(
    cases=[(ERRORS,)],
    mistakes={
        "You count failed runs among the seeds.": ("np.isfinite(errors).sum(1)", "errors.shape[1]"),
        "You count failed runs as 0: leave them out.": ("mean, n =", "errors = np.nan_to_num(errors); mean, n ="),
        "A failed run makes its setting NaN: np.nanmean and np.nanstd leave it out.": ("np.nan", "np."),
        **INTERVAL_MISTAKES,
    },
    praise="The fewer runs finish, the wider the interval.",
)
def check_seed_intervals(errors):
    """errors [S, n], NaN where a run failed -> [S, 3]: mean, low, high of the 95 % interval of the mean."""
    mean, n = np.nanmean(errors, axis=1), np.isfinite(errors).sum(1)
    half = stats.t.ppf(0.975, n - 1) * np.nanstd(errors, axis=1, ddof=1) / np.sqrt(n)
    return np.stack([mean, mean - half, mean + half], axis=1)


NOISE = np.random.default_rng(1).normal(size=(2, 7, 4))
NOISE -= NOISE.mean(2, keepdims=True)  # the means stay
SCORE = np.array([0.70, 0.82, 0.60, 0.78, 0.84, 0.66, 0.75])[:, None] + 0.01 * NOISE[0]
COST = np.array([3.0, 9.0, 2.0, 10.0, 21.0, 5.0, 6.0])[:, None] * (1 + 0.04 * NOISE[1])
SCORE[3] += [0.05, 0.1, 0.05, -0.2]  # lucky runs, also by the median, of a setting that is beaten
COST[5] += [0.8, 0.9, -2.6, 0.9]  # and of another


@check(
    cases=[(SCORE, COST)],
    mistakes={
        "These are the dominated settings: invert with ~.": ("~", ""),
        "These are numbers of settings: give True or False.": ("~beaten.any(1)", "np.where(~beaten.any(1))[0]"),
        "You compare the luckiest run or the median of each setting: compare means over its seeds.": [
            ("s, c = np.mean(score, axis=1), np.mean", "s, c = np.max(score, axis=1), np.min"),
            ("np.mean", "np.median"),
        ],
        "No setting is left: combine the two with &, not |.": ("&", "|"),
    },
    praise="Which of these to choose depends on what a point of score is worth to you.",
)
def check_unbeaten(score, cost):
    """score, cost [S, n] -> bool [S], True where no other setting has a higher mean score and a lower mean cost."""
    s, c = np.mean(score, axis=1), np.mean(cost, axis=1)
    beaten = (s[None] > s[:, None]) & (c[None] < c[:, None])  # [S, S] by which other
    return ~beaten.any(1)


LAND = np.random.default_rng(0).normal(size=(4, 6)) * [[0.3], [0.02], [0.02], [0.02]]  # adds to all runs of a seed
ROWS = [
    (name, seed, 1 + shift + LAND[0, i] + LAND[k, i])
    for k, (name, shift) in enumerate({"small": 0.0, "large": -0.07, "huge": 0.4}.items(), start=1)
    for i, seed in enumerate([3, 14, 15, 92, 65, 35])
    if (name, seed) not in (("small", 14), ("large", 65))  # these failed and left no row
]
RUNS = pd.DataFrame(ROWS, columns=["setting", "seed", "error"]).sample(frac=1, random_state=0)


@check(
    cases=[(RUNS, "large", "small")],
    mistakes={
        "The other way round: the first minus the second.": ("a - b", "b - a"),
        "Pair runs by seed, not by order.": ("(a - b)", "pd.Series(a.values - b.values)"),
        "You count a missing run as 0: leave such seeds out.": ("(a - b)", "a.sub(b, fill_value=0)"),
        **INTERVAL_MISTAKES,
    },
    praise="What a seed's land adds is in both errors and cancels.",
)
def check_paired(table, first, second):
    """A table (setting, seed, error), two settings -> (difference, low, high), the first minus the second by seed."""
    a, b = (table[table["setting"] == name].set_index("seed")["error"] for name in (first, second))
    difference = (a - b).dropna()
    mean, n = difference.mean(), len(difference)
    half = stats.t.ppf(0.975, n - 1) * difference.std(ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


# ---- 10: what metadata changes

NAN = float("nan")
PLACES = torch.tensor([[46.9, NAN, 0.0, -33.4, NAN, 61.2], [7.4, 151.0, 0.0, NAN, NAN, -149.9]])


@check(
    cases=[tuple(PLACES)],
    mistakes={
        "An unknown place is not 0 degrees, in the Gulf of Guinea: give four zeros.": (
            "a, b =",
            "lat, lon = lat.nan_to_num(), lon.nan_to_num(); a, b =",
        ),
        "NaN for an unknown place would make the whole chip NaN: give four zeros.": ("] = 0", "] *= 1"),
        "Where lat or lon is unknown, all four numbers are zeros.": (".any(1)", ""),
        "The order is sin lat, cos lat, sin lon, cos lon.": ("dim=1)", "dim=1)[:, [1, 0, 3, 2]]"),
    },
    praise="No place has four zeros, since sine and cosine are never both 0: the model can recognize unknown places.",
)
def check_place_codes(lat, lon):
    """lat, lon [B] degrees, NaN where unknown -> [B, 4]: sin lat, cos lat, sin lon, cos lon, or four zeros."""
    a, b = torch.deg2rad(lat), torch.deg2rad(lon)
    code = torch.stack([a.sin(), a.cos(), b.sin(), b.cos()], dim=1)
    code[code.isnan().any(1)] = 0
    return code


FULL = (normal(3, 7, 5).numpy() + [1.2, 0, 0, 0, 0.4]) * (0.8 * normal(4, 7, 1)).exp().numpy()
LESS = (FULL + 0.6 * normal(5, 7, 5).numpy()) * (0.8 * normal(6, 7, 1)).exp().numpy()


@check(
    cases=[(FULL, LESS)],
    read=number,
    mistakes={
        "This is how far the chips moved: divide by 1 - cosine of different chips.": (" / (1 - different.mean())", ""),
        "A chip paired with itself does not count: leave out the diagonal.": ("different.", "pairs."),
        "Pairs of different chips take one from each of the two.": [("a @ b.T", "a @ a.T"), ("a @ b.T", "b @ b.T")],
        "A cosine is the dot product of vectors of length one.": ("unit(full), unit(less)", "full, less"),
    },
    praise="0: the chip stayed where it was; 1: it moved as far as another chip.",
)
def check_moved(full, less):
    """Embeddings [N, D] with full and with less metadata -> 1 - cosine of the same chip, over that of different ones."""
    a, b = unit(full), unit(less)
    same, pairs = (a * b).sum(1), a @ b.T  # [N], [N, N]
    different = pairs[~np.eye(len(a), dtype=bool)]
    return (1 - same.mean()) / (1 - different.mean())


ORDER = np.random.default_rng(41).permutation(17)
HIT_PLACES = np.repeat([40, 7, 23, 11, 58, 31, 2], [1, 4, 2, 3, 2, 1, 4])
HITS_FULL, HITS_LESS = 1 - np.isin(range(17), [5, 15]), 1 - np.isin(range(17), [0, 1, 2, 3, 7, 8, 10, 13, 14])


@check(
    cases=[(HITS_FULL[ORDER], HITS_LESS[ORDER], HIT_PLACES[ORDER])],
    read=number,
    rtol=0,
    atol=1e-6,
    mistakes={
        "Swap all chips of a place at once, not one by one.": ("sums =", "places = np.arange(len(full)); sums ="),
        "You count only one direction: compare absolute values.": ("abs", ""),
        "Count swaps that give exactly the observed difference too: use >=.": (">=", ">"),
        "You weight all places equally: add up the differences of all chips.": ("== name].sum()", "== name].mean()"),
    },
    praise="No seed and no formula: you counted all that could have happened.",
)
def check_luck(full, less, places):
    """Hits [M], 0 or 1, places [M] -> share of all swaps of places that differ at least as much as observed."""
    sums = np.array([(full - less)[places == name].sum() for name in np.unique(places)])  # [K]
    ways = np.array(list(product((1, -1), repeat=len(sums)))) @ sums  # [2^K]
    return (abs(ways) >= abs(sums.sum())).mean()
