"""Checks of notebooks 07, 09 and 10 name the mistake of wrong answers, and accept right ones written in other ways."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neighbors import KNeighborsClassifier

from clay_lib.course.checks import (
    Mistake,
    check_interval,
    check_luck,
    check_moved,
    check_paired,
    check_place_codes,
    check_seed_intervals,
    check_split,
    check_unbeaten,
    check_vote,
)


def near(x, y, t, k):
    """Labels [M, k] of the nearest."""
    return y[np.linalg.norm(t[:, None] - x, axis=2).argsort(1)[:, :k]]


def voted(labels):
    """labels [M, k] -> the most frequent of each row [M]."""
    return np.array([max(sorted(set(row)), key=list(row).count) for row in labels])


def random_chips(blocks, share, seed):
    return np.random.default_rng(seed).random(len(blocks)) < share


def random_blocks(blocks, share, seed):
    names = np.unique(blocks)
    return np.isin(blocks, names[np.random.default_rng(seed).random(len(names)) < share])


def blocks_by(draw):
    """A split whose blocks are drawn by draw(rng, blocks, names, how many)."""

    def fn(blocks, share, seed):
        names = np.unique(blocks)
        return np.isin(blocks, draw(np.random.default_rng(seed), blocks, names, round(share * len(names))))

    return fn


def some_blocks(blocks, share, seed):
    return blocks_by(lambda rng, blocks, names, n: rng.permutation(names)[:n])(blocks, share, seed)


def means_of(one, ends=(0.025, 0.975)):
    """The interval of one(rng, hits of each place, hits, places) over many draws."""

    def fn(hits, places, draws, seed):
        rng = np.random.default_rng(seed)
        of_place = [hits[places == name] for name in np.unique(places)]
        return np.quantile([one(rng, of_place, hits, places) for _ in range(draws)], ends)

    return fn


def by_place(rng, of_place, hits, places, replace=True):
    return np.concatenate([of_place[i] for i in rng.choice(len(of_place), len(of_place), replace=replace)]).mean()


def counted_once(rng, of_place, hits, places):
    names = np.unique(places)
    return hits[np.isin(places, rng.choice(names, len(names)))].mean()


WRONG_07 = {
    "farthest": (check_vote, lambda x, y, t, k: voted(near(x, y, t, len(x))[:, -k:]), "farthest are asked"),
    "one only": (check_vote, lambda x, y, t, k: near(x, y, t, 1)[:, 0], "all k of them vote"),
    "always five": (check_vote, lambda x, y, t, k: voted(near(x, y, t, 5)), "With one neighbor"),
    "median": (check_vote, lambda *a: np.median(near(*a), axis=1), "A label is a name"),
    "rounded mean": (check_vote, lambda *a: near(*a).mean(1).round(-1), "A label is a name"),
    "averaged": (check_vote, lambda *a: near(*a).mean(1), "A label is a name"),
    "how many votes": (
        check_vote,
        lambda *a: [max(np.unique(row, return_counts=True)[1]) for row in near(*a)],
        "number of votes",
    ),
    "chips drawn": (check_split, random_chips, "blocks have chips on both sides"),
    "training's share": (check_split, lambda *a: ~some_blocks(*a), "took it for training"),
    "twice the same": (check_split, blocks_by(lambda r, blocks, names, n: r.choice(names, n)), "none comes twice"),
    "among chips": (
        check_split,
        blocks_by(lambda rng, blocks, names, n: rng.choice(blocks, n, replace=False)),
        r"among np.unique\(blocks\)",
    ),
    "places for names": (
        check_split,
        blocks_by(lambda rng, blocks, names, n: rng.choice(len(names), n, replace=False)),
        r"names\[numbers\]",
    ),
    "each by itself": (check_split, random_blocks, "instead of deciding for each block"),
    "the same share": (check_split, lambda b, s, r: some_blocks(b, 0.3, r), "share of 0.15 it should be 3"),
    "rounded down": (check_split, lambda b, s, r: some_blocks(b, int(s * 20 + 1e-9) / 20, r), "take round"),
    "always twenty": (
        check_split,
        blocks_by(lambda rng, blocks, names, n: rng.permutation(names)[: round(n / len(names) * 20)]),
        "of 15 blocks test",
    ),
    "one split": (check_split, lambda b, s, r: some_blocks(b, s, 5), "Every seed gives the same"),
    "every chip alone": (check_interval, means_of(lambda r, _, h, p: r.choice(h, len(h)).mean()), "were independent"),
    "counted once": (check_interval, means_of(counted_once), "drawn twice counts once"),
    "counted once, 90 %": (check_interval, means_of(counted_once, (0.05, 0.95)), "drawn twice counts once"),
    "mean of means": (
        check_interval,
        means_of(lambda rng, of_place, *_: rng.choice([each.mean() for each in of_place], len(of_place)).mean()),
        "mean of the places' means",
    ),
    "one chip a place": (
        check_interval,
        means_of(
            lambda rng, of_place, *_: np.mean(
                [rng.choice(of_place[i]) for i in rng.choice(len(of_place), len(of_place))]
            )
        ),
        "take all chips of the drawn places",
    ),
    "places drawn among chips": (
        check_interval,
        means_of(lambda rng, each, h, p: np.concatenate([h[p == x] for x in rng.choice(p, len(each))]).mean()),
        "Places are drawn among the chips",
    ),
    "one interval": (check_interval, lambda h, p, n, s: means_of(by_place)(h, p, n, 0), "Every seed gives the same"),
    "90 %": (check_interval, means_of(by_place, (0.05, 0.95)), "the 90 % interval"),
    "no replacement": (check_interval, means_of(lambda *a: by_place(*a, replace=False)), "with replacement"),
    "of the hits": (check_interval, lambda h, p, n, s: np.quantile(h, (0.025, 0.975)), "quantiles of the means"),
}


def mean_and_ends(d, center=None, n=None):
    n, center = n or len(d), d.mean() if center is None else center
    half = stats.t.ppf(0.975, n - 1) * np.std(d, ddof=1) / n**0.5
    return center, center - half, center + half


def intervals(t=lambda n: stats.t.ppf(0.975, n - 1), ddof=1, count=lambda e: np.isfinite(e).sum(1), root=np.sqrt):
    def fn(errors):
        mean, n = np.nanmean(errors, 1), count(errors)
        half = t(n) * np.nanstd(errors, 1, ddof=ddof) / root(n)
        return np.stack([mean, mean - half, mean + half], 1)

    return fn


def front(of_score=lambda s: s.mean(1), of_cost=lambda c: c.mean(1), join=np.logical_and):
    def fn(score, cost):
        s, c = of_score(score), of_cost(cost)
        return np.array([not any(join(s > s[i], c < c[i])) for i in range(len(s))])

    return fn


def two(table, one, other):
    return [table[table["setting"] == name].set_index("seed")["error"] for name in (one, other)]


def by_order(*case):
    a, b = two(*case)
    return mean_and_ends(a.to_numpy() - b.to_numpy())


def two_spreads(*case):
    a, b = two(*case)
    half = stats.t.ppf(0.975, len(a) + len(b) - 2) * (a.var() / len(a) + b.var() / len(b)) ** 0.5
    return a.mean() - b.mean(), a.mean() - b.mean() - half, a.mean() - b.mean() + half


def mean_of_all_runs(*case):
    a, b = two(*case)
    return mean_and_ends((a - b).dropna().to_numpy(), a.mean() - b.mean())


def other_minus_one(*case):
    a, b = two(*case)
    return mean_and_ends((b - a).dropna())


ALL_RUNS = intervals(count=lambda e: np.full(len(e), e.shape[1]))
MEDIANS = front(lambda s: np.median(s, 1), lambda c: np.median(c, 1))
WRONG_09 = {
    "failed runs count": (check_seed_intervals, ALL_RUNS, "count failed runs"),
    "failed runs are zeros": (check_seed_intervals, lambda e: intervals()(np.nan_to_num(e)), "error of 0"),
    "NaN": (check_seed_intervals, lambda e: [mean_and_ends(row) for row in e], "setting NaN"),
    "for many seeds": (check_seed_intervals, intervals(t=lambda n: 1.96), "1.96 is for many"),
    "single runs": (check_seed_intervals, intervals(root=np.ones_like), "spread of single runs"),
    "divided by n": (check_seed_intervals, intervals(ddof=0), "ddof=1"),
    "the luckiest": (check_unbeaten, front(lambda s: s.max(1), lambda c: c.min(1)), "luckiest run"),
    "worse in one": (check_unbeaten, front(join=np.logical_or), "Nobody is left"),
    "medians": (check_unbeaten, MEDIANS, "compare means"),
    "high cost is good": (check_unbeaten, front(of_cost=lambda c: -c.mean(1)), "low cost are better"),
    "the beaten": (check_unbeaten, lambda s, c: ~front()(s, c), "turn it round"),
    "numbers": (check_unbeaten, lambda s, c: np.flatnonzero(front()(s, c)), "numbers of settings"),
    "paired by order": (check_paired, by_order, "pair them by seed"),
    "two spreads": (check_paired, two_spreads, "difference of each seed first"),
    "all runs": (check_paired, mean_of_all_runs, "leave them out"),
    "other way": (check_paired, other_minus_one, "The other way round"),
}


def codes(lat, lon):
    return torch.stack([f(torch.deg2rad(v)) for v in (lat, lon) for f in (torch.sin, torch.cos)], 1)


def zeroed(unknown):
    return lambda lat, lon: torch.where(unknown(lat, lon)[:, None], 0.0, codes(lat, lon).nan_to_num())


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def moved(unit=unit, itself=False, others=lambda a, b: (a, b)):
    def fn(full, less):
        a, b = unit(full), unit(less)
        pairs, n = 1 - (lambda p, q: p @ q.T)(*others(a, b)), len(a)
        apart = pairs.mean() if itself else (pairs.sum() - np.trace(pairs)) / (n * (n - 1))
        return (1 - (a * b).sum(1)).mean() / apart

    return fn


def swapped(groups=lambda places: places, size=np.abs, beside=np.greater_equal, of=np.sum, share=np.mean):
    def fn(full, less, places):
        names = groups(places)
        sums = np.array([of((full - less)[names == name]) for name in np.unique(names)])
        ways = 1 - 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1)
        return share(beside(size(ways @ sums).round(9), size(sums.sum()).round(9)))

    return fn


def drawn(full, less, places):
    names, place = np.unique(places, return_inverse=True)
    signs = np.random.default_rng(0).choice([-1, 1], (3000, len(names)))
    return (np.abs(signs[:, place] @ (full - less)) >= abs((full - less).sum())).mean()


WRONG_10 = {
    "zero degrees": (check_place_codes, lambda a, b: codes(a.nan_to_num(), b.nan_to_num()), "Gulf of Guinea"),
    "one by one": (check_place_codes, lambda a, b: codes(a, b).nan_to_num(), "all four numbers are zeros"),
    "left as NaN": (check_place_codes, codes, "would make all of the chip NaN"),
    "zero is unknown": (
        check_place_codes,
        zeroed(lambda lat, lon: lat.isnan() | lon.isnan() | (lat == 0)),
        "A chip at 0 degrees lies somewhere",
    ),
    "only how far": (check_moved, lambda a, b: 1 - (unit(a) * unit(b)).sum(1).mean(), "divide by how far"),
    "itself among others": (check_moved, moved(itself=True), "leave out the diagonal"),
    "both full": (check_moved, moved(others=lambda a, b: (a, a)), "one from each of the two"),
    "own lengths": (check_moved, moved(np.array), "vectors of length one"),
    "chip by chip": (check_luck, swapped(lambda places: np.arange(len(places))), "Chips are swapped one by one"),
    "one direction": (check_luck, swapped(size=np.array), "Only one direction"),
    "each way": (check_luck, swapped(share=np.array), "One number is wanted"),
    "strictly": (check_luck, swapped(beside=np.greater), "at least as large, >="),
    "places count equally": (check_luck, swapped(of=np.mean), "All places count equally"),
    "drawn": (check_luck, drawn, "Were swaps drawn at random"),
}
WRONG = WRONG_07 | WRONG_09 | WRONG_10


@pytest.mark.parametrize(("check", "answer", "message"), WRONG.values(), ids=WRONG)
def test_the_mistake_is_named(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)


def split_of_sklearn(blocks, share, seed):
    splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    return np.isin(np.arange(len(blocks)), next(splitter.split(blocks, groups=blocks))[1])


def interval_by_weights(hits, places, draws, seed):
    rows = np.random.default_rng(seed).choice(np.unique(places), (draws, len(set(places))))
    weights = [np.bincount(row, minlength=places.max() + 1)[places] for row in rows]
    return np.percentile([np.average(hits, weights=w) for w in weights], [2.5, 97.5]).tolist()


def merged(table, one, other):
    both = table[table.setting == one].merge(table[table.setting == other], on="seed")
    return mean_and_ends(both.eval("error_x - error_y").to_numpy())


RIGHT = {
    "votes of sklearn": (check_vote, lambda x, y, t, k: KNeighborsClassifier(k).fit(x, y).predict(t)),
    "splits of sklearn": (check_split, split_of_sklearn),
    "by weights": (check_interval, interval_by_weights),
    "by place": (check_interval, means_of(by_place)),
    "by setting": (check_seed_intervals, lambda errors: [mean_and_ends(row[~np.isnan(row)]) for row in errors]),
    "a list": (check_unbeaten, lambda s, c: front()(s, c).tolist()),
    "merged": (check_paired, merged),
    "any over the code": (check_place_codes, zeroed(lambda lat, lon: codes(lat, lon).isnan().any(1))),
    "by loops": (check_moved, moved(lambda x: np.stack([row / np.sqrt(row @ row) for row in x]))),
    "bits": (check_luck, swapped()),
}


@pytest.mark.parametrize(("check", "answer"), RIGHT.values(), ids=RIGHT)
def test_right_answers_written_in_other_ways_are_right(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
