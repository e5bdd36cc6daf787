"""Checks of the exercises of 10: codes of places not known, how far embeddings moved, whether a loss could be luck."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import comb

import numpy as np
import torch

from clay_lib.course.checking import attempt, compare, require, right, value
from clay_lib.datacube import latlon_code


def check_place_codes(fn: Callable) -> None:
    """fn(lat [B], lon [B], degrees, NaN where not known) -> [B, 4]: sin lat, cos lat, sin lon, cos lon, or zeros."""
    nan = float("nan")
    lat = torch.tensor([46.9, nan, 0.0, -33.4, nan, 61.2])
    lon = torch.tensor([7.4, 151.0, 0.0, nan, nan, -149.9])
    unknown = (lat.isnan() | lon.isnan())[:, None]

    def code(lat, lon, radians=torch.deg2rad):
        angles = [radians(lat), radians(lon)]
        return torch.stack([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)

    plain = latlon_code(lat.nan_to_num().tolist(), lon.nan_to_num().tolist(), len(lat))
    wanted = torch.where(unknown, 0.0, plain)
    compare(
        attempt(fn, lat, lon),
        wanted,
        axes="B code",
        slips={
            "A place that is not known is told as 0 degrees, which lies in the Gulf of Guinea: its four numbers have to be "
            "zeros.": plain,
            "Unknown places are NaN, and the model would make all of the chip NaN: their four numbers have to be zeros.": (
                code(lat, lon)
            ),
            "NaN times 0 is NaN: take torch.where, or set code[unknown] = 0.": code(lat, lon) * ~unknown,
            "Only a chip of which neither is known gets zeros: one of the two that is missing is enough, |.": torch.where(
                (lat.isnan() & lon.isnan())[:, None], 0.0, code(lat, lon)
            ),
            "All NaN are replaced one by one: where one of the two is not known, all four numbers are zeros.": code(
                lat, lon
            ).nan_to_num(),
            "Unknown places are NaN in all four numbers: zeros are wanted.": torch.where(unknown, nan, plain),
            "A chip at 0 degrees lies somewhere: only NaN means not known.": wanted * (plain[:, [0]] != 0),
            "Only a chip of which neither is known gets zeros, and the other NaN are told as 0 degrees: one that is missing "
            "is enough.": torch.where((lat.isnan() & lon.isnan())[:, None], 0.0, plain),
            "Sine and cosine take radians: torch.deg2rad.": torch.where(
                unknown, 0.0, code(lat, lon, torch.clone).nan_to_num()
            ),
            "The order is sin lat, cos lat, sin lon, cos lon; the cosines come first here.": wanted[:, [1, 0, 3, 2]],
            "The order is sin lat, cos lat, sin lon, cos lon; the longitude comes first here.": wanted[:, [2, 3, 0, 1]],
            "The order is sin lat, cos lat, sin lon, cos lon; the two sines come first here.": wanted[:, [0, 2, 1, 3]],
            "Known and unknown are the wrong way round.": torch.where(unknown, plain, 0.0),
            "Known and unknown are the wrong way round: the known ones are zeros.": torch.where(
                unknown, code(lat, lon), 0.0
            ),
        },
        what="the codes",
    )
    right(
        "No place has four zeros, since sine and cosine are never both 0: the model can tell `unknown` from any of them."
    )


def check_moved(fn: Callable) -> None:
    """fn(told [N, D], untold [N, D]) -> (1 - cosine of the same chip) / (1 - cosine of two different chips), of means."""
    rng = np.random.default_rng(3)
    told = (rng.normal(size=(7, 5)) + [1.2, 0, 0, 0, 0.4]) * np.exp(0.8 * rng.normal(size=(7, 1)))
    untold = (told + 0.6 * rng.normal(size=(7, 5))) * np.exp(0.8 * rng.normal(size=(7, 1)))

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def apart(a, b, itself=False):
        likeness = a @ b.T
        return 1 - likeness[np.ones_like(likeness, bool) if itself else ~np.eye(len(a), dtype=bool)].mean()

    a, b = unit(told), unit(untold)
    same = 1 - (a * b).sum(1).mean()
    others = (1 - a @ b.T)[~np.eye(7, dtype=bool)].reshape(7, 6).mean(1)  # [N], each chip's distance from others
    found = value(attempt(fn, told, untold))
    require(found == found, "This is not a number (NaN): a division by zero?")
    compare(
        torch.tensor(found, dtype=torch.float64),
        same / apart(a, b),
        slips={
            "This is how far each chip moved, 1 - cosine: put it beside how far apart two different chips are.": same,
            "This is the mean cosine of each chip with itself: how far it moved is 1 minus that.": 1 - same,
            "This is how far apart different chips are: divide by it.": apart(a, b),
            "Each chip's pair with itself is among the different chips: leave out the diagonal.": same
            / apart(a, b, itself=True),
            "The different chips are both told everything: one of each pair is to be told less.": same / apart(a, a),
            "The different chips are told everything, and each chip's pair with itself is among them.": same
            / apart(a, a, itself=True),
            "The different chips are both told less: one of each pair is to be told everything.": same / apart(b, b),
            "The share is upside down: how far the chip moved goes over how far apart different chips are.": apart(a, b)
            / same,
            "These are cosines divided: take 1 minus each of the two first.": (1 - same) / (1 - apart(a, b)),
            "This is what is left: 0 has to mean that nothing moved.": 1 - same / apart(a, b),
            "These are percent: a share is wanted.": 100 * same / apart(a, b),
            "One is taken from the other: divide.": apart(a, b) - same,
            "The pairs on the diagonal are not added but counted: of different chips there are N (N - 1) pairs.": same
            / (apart(a, b) * 6 / 7),
            "The chips with themselves are in the sum over different ones: leave out the diagonal.": same
            / (1 - (a @ b.T).sum() / 42),
            "Each two chips are taken once, but told with untold is another pair than untold with told: take both.": same
            / (1 - (a @ b.T)[np.triu_indices(7, 1)].mean()),
            "These are distances: the share of 1 - cosine is wanted, in which lengths play no part.": (
                np.linalg.norm(told - untold, axis=1).mean()
                / np.linalg.norm(told[:, None] - untold, axis=2)[~np.eye(7, dtype=bool)].mean()
            ),
            "The vectors keep their lengths: a cosine is the dot product of vectors of length one.": (
                1 - (told * untold).sum(1).mean()
            )
            / apart(told, untold),
            "The vectors are brought to length one along the wrong axis: each chip, a row, gets length one.": (
                1 - (unit(told.T).T * unit(untold.T).T).sum(1).mean()
            )
            / apart(unit(told.T).T, unit(untold.T).T),
            "This is the mean of each chip's own share: take the two means first, then divide.": (
                (1 - (a * b).sum(1)) / others
            ).mean(),
        },
        what="the share",
    )
    right("0: it stayed where it was; 1: it has moved as far as any other chip lies.")


def check_luck(fn: Callable) -> None:
    """fn(told [M] 0 or 1, untold [M], places [M]) -> share of all swaps of whole places that differ at least as much."""
    rng = np.random.default_rng(41)
    names, sizes = np.array([40, 7, 23, 11, 58, 31, 2]), [1, 4, 2, 3, 2, 1, 4]
    places = np.repeat(names, sizes)
    told, untold = np.ones(17, int), np.ones(17, int)
    for place, (better, worse) in zip(names, ((1, 0), (3, 0), (0, 1), (2, 0), (1, 0), (0, 0), (2, 1)), strict=True):
        at = np.flatnonzero(places == place)
        untold[at[:better]] = 0
        told[at[better : better + worse]] = 0
    order = rng.permutation(17)
    places, told, untold = places[order], told[order], untold[order]
    difference = told - untold
    signs = np.array(list(product((1, -1), repeat=7)))
    sums = np.array([difference[places == name].sum() for name in names])
    means = np.array([difference[places == name].mean() for name in names])

    def share(each, beside=np.greater_equal, size=np.abs):
        return beside(size(signs @ each), size(each.sum()) - 1e-9).mean()

    one_by_one = np.abs(difference).sum()  # chips whose answer changed; the sum of their signs is binomial
    ways = [comb(one_by_one, up) for up in range(one_by_one + 1) if abs(2 * up - one_by_one) >= abs(sums.sum())]
    wanted = share(sums)
    found = attempt(fn, told, untold, places)
    require(
        not isinstance(found, np.ndarray) or found.size == 1,
        "This tells of each way of swapping whether it differs as much: the share of them is wanted, .mean().",
    )
    found = value(found)
    slips = {
        "One by one the chips are swapped. Chips of one place stand or fall together: swap all of a place at once.": (
            sum(ways) / 2**one_by_one
        ),
        "Only one direction counts: a loss as large as the gain seen would have surprised as much. Compare absolute "
        "values, and swap by the sign -1, not by 0.": share(sums, size=np.array),
        "Only the other direction counts: compare absolute values, with at least as large.": (
            signs @ sums <= sums.sum()
        ).mean(),
        "Swaps that give just what was seen are left out: at least as large, >=.": share(
            sums, lambda a, b: a > b + 1e-6
        ),
        "All places count alike, however many chips they have: the difference is that of all chips.": share(means),
        "This is how many swaps there are; their share among all of them is wanted.": wanted * len(signs),
        "The case as it was seen is left out of all swaps: it is one of them.": (wanted * 128 - 1) / 127,
        "The case as it was seen is left out of those at least as large: it is one of them.": wanted - 1 / 128,
        "This is the share of the smaller ones: the share at least as large as seen is wanted.": 1 - wanted,
        "This is the difference of the scores: its chance under swaps is wanted.": difference.mean(),
        "These are percent: a share is wanted.": 100 * wanted,
    }
    exact = {name: abs(found - slipped) < 1e-6 for name, slipped in slips.items()}
    require(
        abs(found - wanted) < 1e-6 or any(exact.values()) or not abs(found - wanted) < 0.04,
        f"{found:.4f} is near to {wanted:.4f}. Were swaps drawn at random, or is one counted twice? Seven places have 128, few "
        "enough to go through all of them.",
    )
    compare(torch.tensor(found, dtype=torch.float64), wanted, slips=slips, rtol=0, atol=1e-6, what="the share")
    right("No seed and no formula: all that could have happened, counted.")
