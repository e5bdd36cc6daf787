"""Checks of notebooks 07, 09 and 10: probes, splits and intervals; sweeps; the effect of metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy import stats

from clay_lib.course.checks.embeddings import unit
from clay_lib.course.checks.engine import Check, as_tensor, attempt, normal, number, shape_difference

# ---- 07: a vote of neighbors, a split, a bootstrap interval


def most_frequent(labels):
    names, counts = np.unique(labels, return_counts=True)
    return names[counts.argmax()]


def vote(train_x, train_y, test_x, k, *, take=lambda labels, k: labels[:k], answer=most_frequent):
    """train_x [N, D], train_y [N], test_x [M, D] -> the most frequent label of the k nearest (Euclidean), [M]."""
    order = np.linalg.norm(test_x[:, None] - train_x, axis=2).argsort(1)
    return np.array([answer(take(train_y[row], k)) for row in order])


def _chips() -> tuple:
    rng = np.random.default_rng(653)  # no test chip with a tie
    train_x, test_x = rng.normal(size=(40, 3)) * [1, 2, 1], rng.normal(size=(13, 3)) * [1, 2, 1]
    return train_x, rng.choice([10, 20, 40, 90], 40), test_x


check_vote = Check(
    reference=vote,
    cases=[(*_chips(), 5)],
    axes="M",
    mistakes={
        "The farthest vote: sort distances from the smallest up.": dict(take=lambda labels, k: labels[-k:]),
        "Only the nearest votes; all k should.": dict(take=lambda labels, k: labels[:1]),
        "A label is a name: count votes, without mean or median.": [dict(answer=np.mean), dict(answer=np.median)],
        "This is the number of votes: answer with the label.": dict(answer=lambda labels: max(np.bincount(labels))),
    },
    edge_cases={"With one neighbor": (*_chips(), 1)},
    praise="The simplest probe there is: no training, one number to choose.",
)


def split(blocks, share, seed):
    """blocks [N] -> bool [N], True for test: all chips of round(share * blocks) blocks, drawn by the seed."""
    names = np.unique(blocks)
    return np.isin(blocks, np.random.default_rng(seed).choice(names, round(share * len(names)), replace=False))


def _split_rules(fn: Callable) -> Iterator[tuple[bool, str]]:
    rng = np.random.default_rng(0)
    for count, shares in ((20, (0.3, 0.15, 0.63)), (15, (0.6, 0.2))):
        names = 100 + np.arange(count) * 7 % (count + 3) * 9
        blocks = rng.permutation(np.repeat(names, rng.integers(2, 11, count)))
        for share in shares:
            splits = [as_tensor(attempt(fn, blocks, share, seed)).numpy() for seed in (0, *range(6))]
            for test in splits:
                yield test.shape == blocks.shape, shape_difference(test.shape, blocks.shape, "N")
                yield test.dtype == bool, f"True and False are expected, one a chip; these are {test.dtype} numbers."
                yield test.any(), "No chip tests. (rng.choice(len(names), ...) gives places: take names[numbers].)"
                yield not test.all(), "All chips test: both sides need some."
                both = len(set(blocks[test]) & set(blocks[~test]))
                yield not both, f"{both} blocks have chips on both sides: draw blocks, and let chips follow (np.isin)."
            drawn = [len(set(blocks[test])) for test in splits]
            target, least, most = round(share * count), min(drawn), max(drawn)
            tested = str(least) if least == most else f"{least} to {most}"
            found = f"{tested} of {count} blocks test; with a share of {share} it should be {target}"
            yield not least == most == count - target, f"{found}: share is the test's part, you took it for training."
            yield least < most or least == target, f"{found}: take round(share * number of blocks)."
            yield most <= target, f"{found}: draw so many blocks, instead of deciding for each block."
            fix = "draw among np.unique(blocks), with replace=False, so that none comes twice"
            yield least == target, f"{found}: {fix}."
            same = (splits[0] == splits[1]).all()
            yield same, "The same seed gives another split: draw from np.random.default_rng(seed)."
            differ = len({s.tobytes() for s in splits}) > 1
            yield differ, "Every seed gives the same split: draw from default_rng(seed)."
    tested = np.any([as_tensor(attempt(fn, blocks, 0.2, seed)).numpy() for seed in range(40)], axis=0)
    yield len(set(blocks[tested])) == 15, "In 40 seeds, some blocks never test: each should have the same chance."


check_split = Check(
    reference=split,
    cases=[],  # each seed may be answered in many ways: the rules test what all right answers share
    mistakes={},
    rules=_split_rules,
    praise="No block is on both sides: the score is that of unseen places.",
)


def interval(hits, places, draws, seed, *, ends=(0.025, 0.975), count=np.array, chance=np.ones_like, weight=np.array):
    """hits [M], places [M] -> (low, high): the interval of the mean when places are drawn with replacement."""
    _, place, chips = np.unique(places, return_inverse=True, return_counts=True)  # chips [K] of each place
    probability = chance(chips) / chance(chips).sum()
    times = count(np.random.default_rng(seed).multinomial(len(chips), probability, draws))  # [draws, K] how often drawn
    scores = np.bincount(place, hits) / chips
    return np.quantile(times @ (weight(chips) * scores) / (times @ weight(chips)), ends)


def _similar(a, b) -> bool:
    """Whether two intervals differ by no more than bootstraps of 2000 draws do, in their middle and their width."""
    (low, high), (start, end) = a.tolist(), b.tolist()
    width = end - start
    near = abs(low + high - start - end) / 2 <= 0.06 * width
    return near and high > low and bool(abs(np.log((high - low) / width)) <= np.log(1.11))


def _hits() -> list[tuple]:
    rng = np.random.default_rng(9)
    sizes = np.tile([3, 4, 5, 18], 10)  # places with many chips have the better scores
    places = np.repeat(500 + np.arange(40) * 13 % 41 * 3, sizes)
    hits = (rng.random(len(places)) < np.repeat(np.tile([0.2, 0.5, 0.2, 0.9], 10), sizes)).astype(float)
    order = rng.permutation(len(places))
    # of five places of a chip each, one of them a hit, all means are multiples of a fifth
    return [(hits[order], places[order], 2000, 0), (np.array([0.0, 1, 0, 0, 0]), np.arange(5), 2000, 0)]


def _seed_rules(fn: Callable) -> Iterator[tuple[bool, str]]:
    hits, places, draws, _ = _hits()[0]
    first, second, other = (as_tensor(attempt(fn, hits, places, draws, seed)).tolist() for seed in (0, 0, 1))
    yield first == second, "The same seed gives another interval: draw from np.random.default_rng(seed)."
    yield first != other, "Every seed gives the same interval: draw places from np.random.default_rng(seed)."


check_interval = Check(
    reference=interval,
    cases=_hits(),
    axes="low|high",
    equal=_similar,
    mistakes={
        "The chips are drawn as if all were independent: draw places, and take all chips of each.": (
            lambda hits, places, draws, seed: interval(hits, np.arange(len(hits)), draws, seed)
        ),
        "A place that is drawn twice counts once: take its chips twice.": [
            dict(count=np.sign),
            dict(count=np.sign, ends=(0.05, 0.95)),
        ],
        "This is of the mean of the places' means: take the mean of all drawn chips.": dict(weight=np.ones_like),
        "Places are drawn among the chips: draw among np.unique(places).": dict(chance=np.array),
        "This is the 90 % interval: for 95 % leave 2.5 % on each side.": dict(ends=(0.05, 0.95)),
    },
    hints={
        "Draw with replacement: every draw gave the same mean.": lambda answer, _: answer[0] == answer[-1],
        "Give the lower end first.": lambda answer, _: answer[0] > answer[-1],
        "The interval is too wide: take all chips of the drawn places, and the quantiles of the means.": (
            lambda answer, expected: answer[-1] - answer[0] > expected[1] - expected[0]
        ),
    },
    rules=_seed_rules,
    praise="As wide as the scores that other places would have given.",
)

# ---- 09: sweeps


def student(mean, sd, n, *, quantile=lambda n: stats.t.ppf(0.975, n - 1), root=np.sqrt):
    """Mean, low and high [..., 3] of the 95 % interval of a mean by Student's t, from the spread of n runs."""
    half = quantile(n) * sd / root(n)
    return np.stack([mean, mean - half, mean + half], axis=-1)


INTERVAL_MISTAKES = {
    "The factor 1.96 is for many seeds: with few it is Student's t for n - 1.": dict(quantile=lambda n: 1.96),
    "Take Student's t at 0.975: 2.5 % on each side.": dict(quantile=lambda n: stats.t.ppf(0.95, n - 1)),
    "The spread around a mean of the same runs is divided by n - 1, ddof=1.": dict(ddof=0),
    "This is the spread of single runs: for their mean, divide by the square root of n.": dict(root=np.ones_like),
}


def seed_intervals(errors, *, count=lambda errors: np.isfinite(errors).sum(1), ddof=1, **options):
    """errors [S, n], NaN where a run failed -> [S, 3]: mean, low, high of the 95 % interval of the mean."""
    return student(np.nanmean(errors, 1), np.nanstd(errors, 1, ddof=ddof), count(errors), **options)


def _errors() -> np.ndarray:
    errors = normal(2, 4, 7).double().numpy() * [[0.1], [0.05], [0.2], [0.15]] + [[0.5], [0.8], [1.1], [1.7]]
    for setting, failed in enumerate(([], [3], [0, 1, 5], [2, 3, 4, 6])):
        errors[setting, failed] = np.nan
    return errors


check_seed_intervals = Check(
    reference=seed_intervals,
    cases=[(_errors(),)],
    axes="S mean|low|high",
    mistakes={
        "You count failed runs among the seeds.": dict(count=lambda errors: np.full(len(errors), errors.shape[1])),
        "Failed runs count as an error of 0: leave them out.": lambda errors: seed_intervals(np.nan_to_num(errors)),
        **INTERVAL_MISTAKES,
    },
    hints={"A failed run makes its setting NaN: np.nanmean and np.nanstd leave it out.": lambda a, _: a.isnan().any()},
    praise="The fewer runs came through, the wider the interval.",
)


def unbeaten(score, cost, *, score_of=np.mean, cost_of=np.mean, both=np.logical_and):
    """score, cost [S, n] -> bool [S], True where no other setting has a higher mean score and a lower mean cost."""
    s, c = score_of(score, axis=1), cost_of(cost, axis=1)
    return ~both(s[None] > s[:, None], c[None] < c[:, None]).any(1)


def _settings() -> tuple[np.ndarray, np.ndarray]:
    score = np.array([0.70, 0.82, 0.60, 0.78, 0.84, 0.66, 0.75])[:, None].repeat(4, 1)
    cost = np.array([3.0, 9.0, 2.0, 10.0, 21.0, 5.0, 6.0])[:, None].repeat(4, 1)
    noise = np.random.default_rng(1).normal(size=(2, 7, 4))
    noise -= noise.mean(2, keepdims=True)  # the means stay
    score, cost = score + 0.01 * noise[0], cost * (1 + 0.04 * noise[1])
    score[3] += [0.05, 0.1, 0.05, -0.2]  # lucky runs, also by the median, of a setting that is beaten
    cost[5] += [0.8, 0.9, -2.6, 0.9]  # and of another
    return score, cost


check_unbeaten = Check(
    reference=unbeaten,
    cases=[_settings()],
    axes="S",
    mistakes={
        "These are the beaten ones: turn it round, ~.": lambda score, cost: ~unbeaten(score, cost),
        "These are numbers of settings: give True or False for each.": lambda *case: np.flatnonzero(unbeaten(*case)),
        "You compare the luckiest run or the median of each setting: compare means over its seeds.": [
            dict(score_of=np.max, cost_of=np.min),
            dict(score_of=np.median, cost_of=np.median),
        ],
        "No setting is left: it takes both to be beaten, &.": dict(both=np.logical_or),
        "A low cost is better.": lambda score, cost: unbeaten(score, -cost),
    },
    praise="Choosing among these depends on the worth of a point.",
)


def paired(table, first, second, *, subtract=pd.Series.sub, ddof=1, **options):
    """A table (setting, seed, error), two settings -> (difference, low, high), the first minus the second by seed."""
    a, b = (table[table["setting"] == name].set_index("seed")["error"] for name in (first, second))
    difference = subtract(a, b).dropna()
    return student(difference.mean(), difference.std(ddof=ddof), np.int64(len(difference)), **options)


def _runs() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    land = rng.normal(size=6) * 0.3 + 1
    rows = [
        (name, seed, land[i] + shift + rng.normal() * 0.02)
        for name, shift in (("small", 0.0), ("large", -0.07), ("huge", 0.4))
        for i, seed in enumerate([3, 14, 15, 92, 65, 35])
        if (name, seed) not in (("small", 14), ("large", 65))  # these failed and left no row
    ]
    return pd.DataFrame([rows[i] for i in rng.permutation(len(rows))], columns=["setting", "seed", "error"])


check_paired = Check(
    reference=paired,
    cases=[(_runs(), "large", "small")],
    axes="difference|low|high",
    mistakes={
        "The other way round: the first minus the second.": lambda table, first, second: paired(table, second, first),
        "Pair runs by seed, not by order.": dict(subtract=lambda a, b: pd.Series(a.values - b.values)),
        "A missing run counts as 0: leave such seeds out.": dict(subtract=lambda a, b: a.sub(b, fill_value=0)),
        **INTERVAL_MISTAKES,
    },
    hints={
        "There are NaN: leave out seeds that only one of the two has.": lambda answer, _: answer.isnan().any(),
        "The interval is too wide: take the difference of each seed first, then its spread.": (
            lambda answer, expected: answer[-1] - answer[1] > 2 * (expected[2] - expected[1])
        ),
        "Leave out seeds that only one of the two has.": lambda answer, expected: abs(answer[0] - expected[0]) > 1e-6,
    },
    praise="What a seed's land adds is on both sides and cancels.",
)

# ---- 10: what metadata changes


def place_codes(lat, lon, *, unknown=lambda lat, lon: lat.isnan() | lon.isnan(), order=(0, 1, 2, 3)):
    """lat, lon [B] degrees, NaN where unknown -> [B, 4]: sin lat, cos lat, sin lon, cos lon, or four zeros."""
    a, b = torch.deg2rad(lat), torch.deg2rad(lon)
    code = torch.stack([a.sin(), a.cos(), b.sin(), b.cos()], dim=1)[:, order]
    return torch.where(unknown(lat, lon)[:, None], 0.0, code)


def all_known(lat, lon):
    return torch.zeros_like(lat, dtype=torch.bool)


NAN = float("nan")
PLACES = torch.tensor([[46.9, NAN, 0.0, -33.4, NAN, 61.2], [7.4, 151.0, 0.0, NAN, NAN, -149.9]])

check_place_codes = Check(
    reference=place_codes,
    cases=[tuple(PLACES)],
    axes="B code",
    mistakes={
        "An unknown place is not 0 degrees, in the Gulf of Guinea: give four zeros.": lambda *case: place_codes(
            *(degrees.nan_to_num() for degrees in case)
        ),
        "Unknown places are NaN, which would make all of the chip NaN: they have four zeros.": dict(unknown=all_known),
        "Where lat or lon is unknown, all four numbers are zeros.": lambda *case: place_codes(
            *case, unknown=all_known
        ).nan_to_num(),
        "A chip at 0 degrees lies somewhere: only NaN means unknown.": dict(
            unknown=lambda lat, lon: lat.isnan() | lon.isnan() | (lat == 0)
        ),
        "The order is sin lat, cos lat, sin lon, cos lon.": [dict(order=[1, 0, 3, 2]), dict(order=[2, 3, 0, 1])],
    },
    praise="No place has four zeros, since sine and cosine are never both 0: the model can tell unknown places.",
)


def moved(full, less, *, unit=unit, pair=lambda a, b: (a, b), itself=False, divide=np.divide):
    """Embeddings [N, D] with full and with less metadata -> 1 - cosine of the same chip, over that of different ones."""
    a, b = unit(full), unit(less)
    x, y = pair(a, b)
    different = np.ones((len(a), len(a)), bool) if itself else ~np.eye(len(a), dtype=bool)
    return divide(1 - (a * b).sum(1).mean(), 1 - (x @ y.T)[different].mean())


def _embeddings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    full = (rng.normal(size=(7, 5)) + [1.2, 0, 0, 0, 0.4]) * np.exp(0.8 * rng.normal(size=(7, 1)))
    return full, (full + 0.6 * rng.normal(size=(7, 5))) * np.exp(0.8 * rng.normal(size=(7, 1)))


check_moved = Check(
    reference=moved,
    cases=[_embeddings()],
    read=number,
    quantity="the share",
    mistakes={
        "This is how far each chip moved: divide by how far different chips are apart.": dict(divide=lambda a, b: a),
        "The share is upside down: how far the chip moved comes first.": dict(divide=lambda a, b: b / a),
        "A chip's pair with itself is no pair of different chips: leave out the diagonal.": dict(itself=True),
        "Pairs of different chips take one from each of the two.": [
            dict(pair=lambda a, b: (a, a)),
            dict(pair=lambda a, b: (b, b)),
        ],
        "A cosine is the dot product of vectors of length one.": dict(unit=np.array),
    },
    praise="0: it stayed where it was; 1: it has moved as far as any other chip lies.",
)


def luck(full, less, places, *, size=np.abs, as_large=np.greater_equal, of=np.sum):
    """Hits [M], 0 or 1, places [M] -> share of all swaps of places that differ at least as much as observed."""
    sums = np.array([of((full - less)[places == name]) for name in np.unique(places)])  # [K]
    ways = np.array(list(product((1, -1), repeat=len(sums))))  # [2^K, K]
    return as_large(size(ways @ sums).round(9), size(sums.sum()).round(9)).mean()


def _answers() -> tuple[np.ndarray, ...]:
    sizes, full, less = [1, 4, 2, 3, 2, 1, 4], np.ones(17, int), np.ones(17, int)
    places = np.repeat([40, 7, 23, 11, 58, 31, 2], sizes)
    less[[0, 1, 2, 3, 7, 8, 10, 13, 14]] = 0
    full[[5, 15]] = 0
    order = np.random.default_rng(41).permutation(17)
    return full[order], less[order], places[order]


check_luck = Check(
    reference=luck,
    cases=[_answers()],
    read=number,
    quantity="the share",
    rtol=0,
    atol=1e-6,
    mistakes={
        "Swap all chips of a place at once, not one by one.": lambda a, b, _: luck(a, b, np.arange(len(a))),
        "Only one direction counts: compare absolute values.": dict(size=np.array),
        "Swaps that give exactly the observed difference count too: at least as large, >=.": dict(as_large=np.greater),
        "All places count equally: the difference is that of all chips.": dict(of=np.mean),
    },
    hints={"Were swaps drawn at random? Seven places have 128 ways: try all of them.": lambda a, b: abs(a - b) < 0.04},
    praise="No seed and no formula: all that could have happened, counted.",
)
