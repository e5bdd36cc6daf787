"""Checks of notebooks 07, 09 and 10: wrong answers beside the common mistakes, and right ones written in other ways."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neighbors import KNeighborsClassifier

from clay_lib.course import checks
from clay_lib.course.checks import Mistake
from clay_lib.course.checks.evaluation import luck, paired, split, vote


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


def one_chip_a_place(rng, of_place, hits, places):
    return np.mean([rng.choice(of_place[i]) for i in rng.choice(len(of_place), len(of_place))])


def mean_and_ends(d, center=None):
    center = d.mean() if center is None else center
    half = stats.t.ppf(0.975, len(d) - 1) * np.std(d, ddof=1) / len(d) ** 0.5
    return center, center - half, center + half


def two(table, one, other):
    return [table[table["setting"] == name].set_index("seed")["error"] for name in (one, other)]


def two_spreads(*case):
    a, b = two(*case)
    half = stats.t.ppf(0.975, len(a) + len(b) - 2) * (a.var() / len(a) + b.var() / len(b)) ** 0.5
    return a.mean() - b.mean(), a.mean() - b.mean() - half, a.mean() - b.mean() + half


def mean_of_all_runs(*case):
    a, b = two(*case)
    return mean_and_ends((a - b).dropna().to_numpy(), a.mean() - b.mean())


def drawn_swaps(full, less, places):
    names, place = np.unique(places, return_inverse=True)
    signs = np.random.default_rng(0).choice([-1, 1], (3000, len(names)))
    return (np.abs(signs[:, place] @ (full - less)) >= abs((full - less).sum())).mean()


chosen, bootstrap = checks.check_split, checks.check_interval
WRONG = {
    "always five": (checks.check_vote, lambda x, y, t, k: vote(x, y, t, 5), "With one neighbor"),
    "chips drawn": (chosen, random_chips, "blocks have chips on both sides"),
    "training's share": (chosen, lambda *case: ~split(*case), "took it for training"),
    "with replacement": (chosen, blocks_by(lambda rng, blocks, names, n: rng.choice(names, n)), "none comes twice"),
    "among chips": (
        chosen,
        blocks_by(lambda rng, blocks, names, n: rng.choice(blocks, n)),
        r"among np.unique\(blocks\)",
    ),
    "places for names": (chosen, blocks_by(lambda rng, blocks, names, n: rng.permutation(n)), r"names\[numbers\]"),
    "each by itself": (chosen, random_blocks, "instead of deciding for each block"),
    "one share": (chosen, lambda blocks, share, seed: split(blocks, 0.3, seed), "share of 0.15 it should be 3"),
    "rounded down": (chosen, lambda b, share, seed: split(b, int(share * 20 + 1e-9) / 20, seed), "take round"),
    "always twenty": (
        chosen,
        blocks_by(lambda rng, blocks, names, n: rng.permutation(names)[: round(n / len(names) * 20)]),
        "of 15 blocks test",
    ),
    "one split": (chosen, lambda blocks, share, seed: split(blocks, share, 5), "Every seed gives the same"),
    "every chip alone": (
        bootstrap,
        means_of(lambda rng, _, hits, p: rng.choice(hits, len(hits)).mean()),
        "independent",
    ),
    "counted once": (bootstrap, means_of(counted_once), "drawn twice counts once"),
    "mean of means": (
        bootstrap,
        means_of(lambda rng, each, *_: rng.choice([hits.mean() for hits in each], len(each)).mean()),
        "mean of the places' means",
    ),
    "one chip a place": (bootstrap, means_of(one_chip_a_place), "take all chips of the drawn places"),
    "places drawn among chips": (
        bootstrap,
        means_of(lambda rng, each, h, p: np.concatenate([h[p == x] for x in rng.choice(p, len(each))]).mean()),
        "Places are drawn among the chips",
    ),
    "one interval": (bootstrap, lambda h, p, n, seed: means_of(by_place)(h, p, n, 0), "Every seed gives the same"),
    "90 %": (bootstrap, means_of(by_place, (0.05, 0.95)), "the 90 % interval"),
    "no replacement": (bootstrap, means_of(lambda *case: by_place(*case, replace=False)), "with replacement"),
    "of the hits": (bootstrap, lambda h, *_: np.quantile(h, (0.025, 0.975)), "quantiles of the means"),
    "NaN": (checks.check_seed_intervals, lambda errors: [mean_and_ends(row) for row in errors], "setting NaN"),
    "two spreads": (checks.check_paired, two_spreads, "difference of each seed first"),
    "all runs": (checks.check_paired, mean_of_all_runs, "Leave out seeds"),
    "each way": (checks.check_luck, lambda *case: np.ones(128, bool), "One number is expected"),
    "drawn": (checks.check_luck, drawn_swaps, "Were swaps drawn at random"),
}


@pytest.mark.parametrize(("check", "answer", "message"), WRONG.values(), ids=WRONG)
def test_mistake_is_named(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)


def split_of_sklearn(blocks, share, seed):
    splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    return np.isin(np.arange(len(blocks)), next(splitter.split(blocks, groups=blocks))[1])


def interval_by_weights(hits, places, draws, seed):
    rows = np.random.default_rng(seed).choice(np.unique(places), (draws, len(set(places))))
    weights = [np.bincount(row, minlength=places.max() + 1)[places] for row in rows]
    return np.percentile([np.average(hits, weights=w) for w in weights], [2.5, 97.5]).tolist()


def front(score, cost):
    s, c = score.mean(1), cost.mean(1)
    return [not any((s > s[i]) & (c < c[i])) for i in range(len(s))]


def merged(table, one, other):
    both = table[table.setting == one].merge(table[table.setting == other], on="seed")
    return mean_and_ends(both.eval("error_x - error_y").to_numpy())


def place_codes(lat, lon):
    code = torch.stack([f(torch.deg2rad(v)) for v in (lat, lon) for f in (torch.sin, torch.cos)], 1)
    code[code.isnan().any(1)] = 0
    return code


def moved(full, less):
    a, b = (np.stack([row / np.sqrt(row @ row) for row in x]) for x in (full, less))
    pairs, n = 1 - a @ b.T, len(a)
    return (1 - (a * b).sum(1)).mean() / ((pairs.sum() - np.trace(pairs)) / (n * (n - 1)))


RIGHT = {
    "votes of sklearn": (checks.check_vote, lambda x, y, t, k: KNeighborsClassifier(k).fit(x, y).predict(t)),
    "splits of sklearn": (checks.check_split, split_of_sklearn),
    "by weights": (checks.check_interval, interval_by_weights),
    "by place": (checks.check_interval, means_of(by_place)),
    "by setting": (checks.check_seed_intervals, lambda errors: [mean_and_ends(row[~np.isnan(row)]) for row in errors]),
    "a list": (checks.check_unbeaten, front),
    "merged": (checks.check_paired, merged),
    "a list of three": (checks.check_paired, lambda *case: paired(*case).tolist()),
    "assigned zeros": (checks.check_place_codes, place_codes),
    "by loops": (checks.check_moved, moved),
    "a tensor": (checks.check_luck, lambda *case: torch.tensor([luck(*case)])),
}


@pytest.mark.parametrize(("check", "answer"), RIGHT.values(), ids=RIGHT)
def test_other_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
