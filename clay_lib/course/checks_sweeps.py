"""Checks of the exercises of 09: an interval where runs failed, settings that nobody beats, a difference seed by seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

from clay_lib.course.checking import as_tensor, attempt, compare, expect_shape, require, right


def check_seed_intervals(fn: Callable) -> None:
    """fn(errors [S, n], NaN where a run failed) -> [S, 3]: mean, low, high of the 95 % interval of the mean."""
    rng = np.random.default_rng(2)
    errors = rng.normal(size=(4, 7)) * [[0.1], [0.05], [0.2], [0.15]] + [[0.5], [0.8], [1.1], [1.7]]
    for setting, failed in enumerate(([], [3], [0, 1, 5], [2, 3, 4, 6])):
        errors[setting, failed] = np.nan
    n = np.isfinite(errors).sum(1)
    mean = np.nanmean(errors, axis=1)

    def ends(ddof=1, runs=n, root=np.sqrt, t=None, centre=mean):
        t = stats.t.ppf(0.975, n - 1) if t is None else t
        half = t * np.nanstd(errors, axis=1, ddof=ddof) / root(runs)
        return np.stack([centre, centre - half, centre + half], axis=1)

    wanted = ends()
    every = np.full(4, 7)
    by_seed = np.nanmean(errors, axis=0)
    filled = np.nan_to_num(errors)
    half = stats.t.ppf(0.975, 6) * filled.std(1, ddof=1) / np.sqrt(7)
    found = as_tensor(attempt(fn, errors))
    if found.shape == wanted.shape:
        require(
            not found.isnan().any(),
            "A failed run makes its setting NaN: leave it out, np.nanmean and np.nanstd do.",
        )
    compare(
        found,
        wanted,
        axes="S mean|low|high",
        slips={
            "You count failed runs among the seeds: each setting has its own number of finished ones.": ends(
                runs=every, t=stats.t.ppf(0.975, every - 1)
            ),
            "Failed runs are in the square root: divide by that of the finished ones.": ends(runs=every),
            "Failed runs count for Student's t: it goes by the finished ones of each setting.": ends(
                t=stats.t.ppf(0.975, every - 1)
            ),
            "A failed run makes its setting NaN: leave it out, np.nanmean and np.nanstd do.": np.where(
                (n == 7)[:, None], wanted, np.nan
            ),
            "The factor is 1.96, which is for many seeds: with few it is Student's t for n - 1.": ends(t=1.96),
            "Student's t is asked for 0.95, which leaves 5 % on each side: 0.975 leaves 2.5 %.": ends(
                t=stats.t.ppf(0.95, n - 1)
            ),
            "Student's t is asked for n: n seeds have n - 1 degrees of freedom.": ends(t=stats.t.ppf(0.975, n)),
            "The spread is divided by n: for a spread around a mean of the same runs it is n - 1, ddof=1.": ends(
                ddof=0
            ),
            "This is the spread of single runs: that of their mean is smaller, divide by the square root of n.": ends(
                runs=np.ones(4)
            ),
            "The spread is divided by n; its square root is wanted.": ends(root=np.array),
            "The order is mean, low, high.": wanted[:, [1, 0, 2]],
            "These are the mean and half widths: the ends of the interval are wanted, mean - half and mean + half.": (
                np.stack([wanted[:, 0], wanted[:, 0] - wanted[:, 1], wanted[:, 2] - wanted[:, 0]], axis=1)
            ),
            "These are the ends between which single runs lie: the interval of their mean is wanted.": np.stack(
                [mean, *np.nanquantile(errors, (0.025, 0.975), axis=1)], axis=1
            ),
            "These are the smallest and largest runs: the interval of their mean is wanted.": np.stack(
                [mean, np.nanmin(errors, axis=1), np.nanmax(errors, axis=1)], axis=1
            ),
            "Failed runs count as an error of 0: leave them out.": np.stack(
                [filled.mean(1), filled.mean(1) - half, filled.mean(1) + half], axis=1
            ),
            "These are means over the settings, one a seed: a row is a setting, so go along axis 1.": by_seed,
        },
        what="the means and ends",
    )
    right("The fewer runs came through, the wider the interval.")


def check_unbeaten(fn: Callable) -> None:
    """fn(score [S, n] the higher the better, cost [S, n] the lower the better) -> bool [S], by means over seeds."""
    score = np.array([0.70, 0.82, 0.60, 0.78, 0.84, 0.66, 0.75])[:, None].repeat(4, 1)
    cost = np.array([3.0, 9.0, 2.0, 10.0, 21.0, 5.0, 6.0])[:, None].repeat(4, 1)
    luck = np.random.default_rng(1).normal(size=(2, 7, 4))
    luck -= luck.mean(2, keepdims=True)  # the means stay
    score, cost = score + 0.01 * luck[0], cost * (1 + 0.04 * luck[1])
    score[3] += [0.05, 0.1, 0.05, -0.2]  # lucky runs, also by the median, of a setting that is beaten
    cost[5] += [0.8, 0.9, -2.6, 0.9]  # and of another

    def unbeaten(s, c, also=np.logical_and):
        return ~also(s[None] > s[:, None], c[None] < c[:, None]).any(1)

    s, c = score.mean(1), cost.mean(1)
    wanted = unbeaten(s, c)
    each = (score[None] > score[:, None]) & (cost[None] < cost[:, None])  # [S, S, n]
    extremes = np.isin(np.arange(7), [s.argmax(), c.argmin()])
    found = as_tensor(attempt(fn, score, cost))
    compare(
        found,
        wanted,
        axes="S",
        slips={
            "These are the beaten ones: turn it round, ~.": ~wanted,
            "These are the numbers of the settings: True or False is wanted, one for each of them.": np.flatnonzero(
                wanted
            ),
            "You compare the luckiest run of each setting: compare means over its seeds.": unbeaten(
                score.max(1), cost.min(1)
            ),
            "For the score the luckiest run of each setting counts: take the mean over its seeds.": unbeaten(
                score.max(1), c
            ),
            "For the cost the cheapest run of each setting counts: take the mean over its seeds.": unbeaten(
                s, cost.min(1)
            ),
            "You compare medians over the seeds: means are asked for.": unbeaten(
                np.median(score, 1), np.median(cost, 1)
            ),
            "You compare seed by seed, and one lost seed is enough: compare means over seeds.": ~each.any((1, 2)),
            "You compare seed by seed and ask for all of them to be lost: compare means over seeds.": ~each.all(2).any(
                1
            ),
            "Nobody is left. Either being worse in one of the two counts as beaten already (it takes both, &), or each setting "
            "is compared with itself and beats itself by >=.": unbeaten(s, c, np.logical_or),
            "You take a high cost for good: the lower the better.": unbeaten(s, -c),
            "You take a low score for good: the higher the better.": unbeaten(-s, c),
            "You ask of each setting whether it beats another. The question is whether another beats it: rows and columns, or "
            "both signs, are the wrong way round.": unbeaten(-s, -c),
            "These are only the best by score and the cheapest: those between that nobody beats in both belong to it too.": (
                extremes
            ),
        },
        what="the answers",
    )
    right("What to choose among these is no question of numbers any more, but of what a point is worth.")


def check_paired(fn: Callable) -> None:
    """fn(table with setting, seed, error; one, other) -> (difference, low, high): one minus other, seed by seed."""
    rng = np.random.default_rng(0)
    seeds = np.array([3, 14, 15, 92, 65, 35])
    land = rng.normal(size=6) * 0.3 + 1
    rows = [
        (name, seed, land[i] + shift + rng.normal() * 0.02)
        for name, shift in (("small", 0.0), ("large", -0.07), ("huge", 0.4))
        for i, seed in enumerate(seeds)
        if (name, seed) not in (("small", 14), ("large", 65))  # these failed and left no row
    ]
    order = rng.permutation(len(rows))

    def table():
        return pd.DataFrame([rows[i] for i in order], columns=["setting", "seed", "error"])

    def of(name):
        part = table().query("setting == @name")
        return part.set_index("seed")["error"]

    one, other = of("large"), of("small")
    d = (one - other).dropna().to_numpy()

    def ends(d, n=None, t=None, ddof=1, root=np.sqrt, centre=None):
        n = len(d) if n is None else n
        centre = d.mean() if centre is None else centre
        half = (stats.t.ppf(0.975, n - 1) if t is None else t) * d.std(ddof=ddof) / root(n)
        return np.array([centre, centre - half, centre + half])

    wanted = ends(d)
    found = as_tensor(attempt(fn, table(), "large", "small")).double()
    expect_shape(found, (3,), "difference low high")
    apart = one.mean() - other.mean()
    slips = {
        "The other way round: one minus other.": ends(-d),
        "These are the difference and half a width: the ends are wanted, difference - half and difference + half.": (
            np.array([d.mean(), d.mean() - wanted[1], d.mean() - wanted[1]])
        ),
        "Runs are paired by their order in the table, which is no order of seeds: pair them by seed.": ends(
            one.to_numpy() - other.to_numpy()
        ),
        "Runs are paired by their order after sorting, but each setting lacks another seed: pair them by seed.": ends(
            one.sort_index().to_numpy() - other.sort_index().to_numpy()
        ),
        "The difference is that of all runs: a seed that only one setting has tells of that land, so leave it out.": ends(
            d, centre=apart
        ),
        "Seeds that only one of the two has are counted: n is the number of pairs.": ends(d, n=6),
        "A missing run counts as 0 here: leave out seeds that only one of the two has.": ends(
            one.sub(other, fill_value=0).to_numpy()
        ),
        "The factor is 1.96, which is for many seeds: with few it is Student's t for n - 1.": ends(d, t=1.96),
        "Student's t is asked for 0.95, which leaves 5 % on each side: 0.975 leaves 2.5 %.": ends(
            d, t=stats.t.ppf(0.95, len(d) - 1)
        ),
        "Student's t is asked for n: n pairs have n - 1 degrees of freedom.": ends(d, t=stats.t.ppf(0.975, len(d))),
        "The spread is divided by n: for a spread around a mean of the same pairs it is n - 1, ddof=1.": ends(
            d, ddof=0
        ),
        "This is the spread of single pairs: that of their mean is smaller, divide by the square root of n.": ends(
            d, root=lambda n: 1
        ),
    }
    close = np.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    named = any(np.allclose(found, slipped, rtol=1e-4, atol=1e-5) for slipped in slips.values())
    difference, low, high = found.tolist()
    require(
        low == low and high == high,
        "There are NaN: pandas subtracts by name, so name both by seed, and leave out seeds that only one of the two has.",
    )
    require(
        close or named or not high - low > 2 * (wanted[2] - wanted[1]),
        f"The interval is {high - low:.3f} wide; by pairs it is {wanted[2] - wanted[1]:.3f}. Is it made of the "
        "spreads of the settings themselves, in which the luck of the lands is? Take the difference of each seed first, then its spread.",
    )
    require(close or named or low <= difference <= high, "The order is difference, low, high.")
    compare(found, wanted, slips=slips, what="the difference and its ends")
    right("The luck of the land is on both sides and cancels.")
