"""The checks of 08 to 10 name the mistake of each typical wrong answer, and take right answers that are written otherwise;
that they accept the solutions is proved by tests/test_exercises.py."""

import numpy as np
import pytest
import torch
from scipy import stats

from clay_lib.course import checks
from clay_lib.course.checking import Mistake

INFINITE = np.inf


def tile(cut=np.floor, side=lambda gsd, size: gsd * size, corner=lambda x, anchor: anchor):
    def fn(x, y, gsd, size, anchor):
        return np.stack(
            [cut((v - corner(v, a)) / side(gsd, size)) for v, a in zip((x, y), anchor, strict=True)], axis=1
        )

    return fn


def unit(x, axis=1):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def hits(question, *, length_one=unit, keep_out=True):
    def fn(vectors, right, wrong, k):
        rows = length_one(vectors)
        likeness = rows @ question(rows, right, wrong)
        if keep_out:
            likeness[[*right, *wrong]] = -INFINITE
        return np.argsort(-likeness)[:k]

    return fn


def half_away(rows, right, wrong, share=0.5):
    return rows[right].mean(0) - share * rows[wrong].mean(0)


def blend(ramp, join=np.outer, known=np.isfinite, zero=False):
    def fn(tiles, corners, shape):
        _, h, w = tiles.shape
        weight, total, weights = join(ramp(h), ramp(w)), np.zeros(shape), np.zeros(shape)
        for t, (row, column) in zip(tiles, corners, strict=True):
            here = np.s_[row : row + h, column : column + w]
            total[here] += np.nan_to_num(t * weight) if known is np.isfinite or zero else t * weight
            weights[here] += weight * (1 if zero else known(t))
        return total / np.where(weights > 0, weights, np.nan)

    return fn


def tent(n, first=0.5):
    return np.minimum(np.arange(n), np.arange(n)[::-1]) + first


def painted_over(tiles, corners, shape):
    image = np.full(shape, np.nan)
    for t, (row, column) in zip(tiles, corners, strict=True):
        image[row : row + t.shape[0], column : column + t.shape[1]] = t
    return image


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


def centre_and_ends(d, centre=None, n=None):
    n, centre = n or len(d), d.mean() if centre is None else centre
    half = stats.t.ppf(0.975, n - 1) * np.std(d, ddof=1) / n**0.5
    return centre, centre - half, centre + half


def in_the_tables_order(table, one, other):
    a, b = two(table, one, other)
    return centre_and_ends(a.to_numpy() - b.to_numpy())


def two_spreads(table, one, other):
    a, b = two(table, one, other)
    half = stats.t.ppf(0.975, len(a) + len(b) - 2) * (a.var() / len(a) + b.var() / len(b)) ** 0.5
    return a.mean() - b.mean(), a.mean() - b.mean() - half, a.mean() - b.mean() + half


def all_runs_mean(table, one, other):
    a, b = two(table, one, other)
    return centre_and_ends((a - b).dropna().to_numpy(), a.mean() - b.mean())


def codes(lat, lon):
    return torch.stack([f(torch.deg2rad(v)) for v in (lat, lon) for f in (torch.sin, torch.cos)], 1)


def zeroed(unknown, code=codes):
    return lambda lat, lon: torch.where(unknown(lat, lon)[:, None], 0.0, code(lat, lon).nan_to_num())


def moved(likeness, itself=False, others=lambda a, b: (a, b)):
    def fn(told, untold):
        a, b = likeness(told), likeness(untold)
        all_pairs, n = 1 - (lambda p, q: p @ q.T)(*others(a, b)), len(a)
        apart = all_pairs.mean() if itself else (all_pairs.sum() - np.trace(all_pairs)) / (n * (n - 1))
        return (1 - (a * b).sum(1)).mean() / apart

    return fn


def swapped(groups=lambda places: places, size=np.abs, beside=np.greater_equal, of=np.sum):
    def fn(told, untold, places):
        names = groups(places)
        sums = np.array([of((told - untold)[names == name]) for name in np.unique(names)])
        ways = 1 - 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1)
        return beside(size(ways @ sums).round(9), size(sums.sum()).round(9)).mean()

    return fn


def drawn(told, untold, places):
    names, place = np.unique(places, return_inverse=True)
    signs = np.random.default_rng(0).choice([-1, 1], (3000, len(names)))
    return (np.abs(signs[:, place] @ (told - untold)) >= abs((told - untold).sum())).mean()


WRONG = {
    "08 towards zero": (checks.check_tile_of, tile(np.trunc), "cut towards zero"),
    "08 the anchor left out": (checks.check_tile_of, tile(corner=lambda v, a: 0), "The anchor is left out"),
    "08 from the points": (checks.check_tile_of, tile(corner=lambda v, a: v.min()), "another number for every area"),
    "08 metres": (checks.check_tile_of, tile(side=lambda gsd, size: size), "`size` pixels of `gsd` metres"),
    "08 examples among hits": (checks.check_search, hits(half_away, keep_out=False), "examples are among the hits"),
    "08 all of the wrong": (checks.check_search, hits(lambda *a: half_away(*a, share=1)), "taken away whole"),
    "08 long vectors": (checks.check_search, hits(half_away, length_one=np.array), "Long vectors win"),
    "08 sums": (
        checks.check_search,
        hits(lambda v, right, wrong: v[right].sum(0) - 0.5 * v[wrong].sum(0)),
        "The examples are added up",
    ),
    "08 centred": (
        checks.check_search,
        hits(half_away, length_one=lambda v: unit(v - v.mean(0))),
        "The mean of all vectors is taken away",
    ),
    "08 no weights": (checks.check_blend, blend(np.ones), "All tiles count alike"),
    "08 painted over": (checks.check_blend, painted_over, "The last tile lies over"),
    "08 NaN spreads": (checks.check_blend, blend(tent, known=np.ones_like), "though another tile knows it"),
    "08 NaN is zero": (checks.check_blend, blend(tent, zero=True), "it counts as 0"),
    "08 column first": (checks.check_blend, lambda t, c, s: blend(tent)(t, c[:, ::-1], s), "here the two are swapped"),
    "08 no border": (checks.check_blend, blend(lambda n: tent(n, 0)), "loses its border"),
    "08 the nearest edge": (checks.check_blend, blend(tent, np.minimum.outer), "nearest of four edges"),
    "09 failed runs count": (
        checks.check_seed_intervals,
        intervals(count=lambda e: np.full(len(e), e.shape[1])),
        "count failed runs",
    ),
    "09 failed runs are zeros": (checks.check_seed_intervals, lambda e: intervals()(np.nan_to_num(e)), "error of 0"),
    "09 for many seeds": (checks.check_seed_intervals, intervals(t=lambda n: 1.96), "1.96, which is for many"),
    "09 single runs": (checks.check_seed_intervals, intervals(root=np.ones_like), "spread of single runs"),
    "09 divided by n": (checks.check_seed_intervals, intervals(ddof=0), "ddof=1"),
    "09 the luckiest": (
        checks.check_unbeaten,
        front(lambda s: s.max(1), lambda c: c.min(1)),
        "luckiest run of each setting: compare means",
    ),
    "09 worse in one": (checks.check_unbeaten, front(join=np.logical_or), "Nobody is left"),
    "09 medians": (
        checks.check_unbeaten,
        front(lambda s: np.median(s, 1), lambda c: np.median(c, 1)),
        "means are asked for",
    ),
    "09 dear is good": (checks.check_unbeaten, front(of_cost=lambda c: -c.mean(1)), "the lower the better"),
    "09 the beaten": (checks.check_unbeaten, lambda s, c: ~front()(s, c), "turn it round"),
    "09 numbers": (checks.check_unbeaten, lambda s, c: np.flatnonzero(front()(s, c)), "numbers of the settings"),
    "09 paired by order": (checks.check_paired, in_the_tables_order, "pair them by seed"),
    "09 two spreads": (checks.check_paired, two_spreads, "the luck of the lands is"),
    "09 all runs": (checks.check_paired, all_runs_mean, "so leave it out"),
    "09 other way": (checks.check_paired, lambda t, a, b: centre_and_ends((two(t, b, a)[0] - two(t, b, a)[1]).dropna()),
                     "The other way round"),
    "10 zero degrees": (
        checks.check_place_codes,
        lambda lat, lon: codes(lat.nan_to_num(), lon.nan_to_num()),
        "Gulf of Guinea",
    ),
    "10 one by one": (checks.check_place_codes, lambda lat, lon: codes(lat, lon).nan_to_num(), "all four numbers are zeros"),
    "10 left as NaN": (checks.check_place_codes, codes, "would make all of the chip NaN"),
    "10 zero is unknown": (
        checks.check_place_codes,
        zeroed(lambda lat, lon: lat.isnan() | lon.isnan() | (lat == 0)),
        "A chip at 0 degrees lies somewhere",
    ),
    "10 only how far": (checks.check_moved, lambda a, b: 1 - (unit(a) * unit(b)).sum(1).mean(), "put it beside"),
    "10 itself among others": (checks.check_moved, moved(unit, itself=True), "leave out the diagonal"),
    "10 both told": (checks.check_moved, moved(unit, others=lambda a, b: (a, a)), "both told everything"),
    "10 no length one": (checks.check_moved, moved(np.array), "vectors of length one"),
    "10 chip by chip": (checks.check_luck, swapped(lambda places: np.arange(len(places))), "One by one the chips"),
    "10 one direction": (checks.check_luck, swapped(size=np.array), "Only one direction"),
    "10 each way": (checks.check_luck, lambda a, b, p: np.ones(2 ** len(np.unique(p)), bool), "the share of them is wanted"),
    "10 strictly": (checks.check_luck, swapped(beside=np.greater), "at least as large, >="),
    "10 places alike": (checks.check_luck, swapped(of=np.mean), "All places count alike"),
    "10 drawn": (checks.check_luck, drawn, "Were swaps drawn at random"),
}  # fmt: skip

OTHERWISE = {
    "08 integer division": (
        checks.check_tile_of,
        lambda x, y, gsd, size, anchor: [
            [(a - anchor[0]) // (gsd * size), (b - anchor[1]) // (gsd * size)] for a, b in zip(x, y, strict=True)
        ],
    ),
    "08 a list, one by one": (
        checks.check_search,
        lambda v, right, wrong, k: sorted(
            set(range(len(v))) - {*right, *wrong},
            key=lambda i: -np.dot(unit(v)[i], 2 * unit(v)[right].mean(0) - unit(v)[wrong].mean(0)),
        )[:k],
    ),
    "08 single precision": (checks.check_blend, lambda *a: blend(tent)(*a).astype(np.float32)),
    "09 setting by setting": (
        checks.check_seed_intervals,
        lambda errors: [centre_and_ends(row[~np.isnan(row)]) for row in errors],
    ),
    "09 a list": (checks.check_unbeaten, lambda s, c: front()(s, c).tolist()),
    "09 merged": (
        checks.check_paired,
        lambda t, a, b: centre_and_ends(
            t[t.setting == a].merge(t[t.setting == b], on="seed").eval("error_x - error_y").to_numpy()
        ),
    ),
    "10 an any over the code": (checks.check_place_codes, zeroed(lambda lat, lon: codes(lat, lon).isnan().any(1))),
    "10 by loops": (checks.check_moved, moved(lambda x: np.stack([row / np.sqrt(row @ row) for row in x]))),
    "10 bits": (checks.check_luck, swapped()),
}


@pytest.mark.parametrize(("check", "answer", "words"), WRONG.values(), ids=WRONG)
def test_the_mistake_is_named(check, answer, words):
    with pytest.raises(Mistake, match=words):
        check(answer)


@pytest.mark.parametrize(("check", "answer"), OTHERWISE.values(), ids=OTHERWISE)
def test_right_answers_written_otherwise_are_right(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
