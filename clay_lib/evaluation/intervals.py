"""Intervals: how else a score might have come out, with other chips, other places or other seeds (bootstrap).

Whole groups are drawn, since two dates of one place or neighbours in a mosaic are no independent witnesses; and where
an answer was given under several seeds (splits, random weights, training shots), the seeds are drawn as well. The same
seed and the same groups draw the same, so that the difference of two resampled scores is one of pairs. One group tells
nothing of other ones, so that there is no interval then (NaN), and a few tell too little: a warning says so.
"""

from __future__ import annotations

import numpy as np

from clay_lib.errors import warn

LEVEL = 0.95
FEW = 6  # groups: with fewer, an interval is too narrow to rely on


def resample(hit, group, *, draw=None, stratum=None, groups=None, bootstraps: int = 1000, seed: int = 0) -> np.ndarray:
    """[1 + bootstraps] mean of hit [M]: as measured, then with whole groups [M] and whole draws [M] drawn anew.

    group: codes 0..G-1; groups: G, where this part of a comparison need not hold the last of them. draw: under which seed an answer was given, 0..S-1.
    stratum: codes 0..K-1, such as the true class: then the mean over strata of their means, which for classes is
    balanced accuracy; a resampling in which a stratum was not drawn asks another question and is NaN.
    """
    hit, group = np.asarray(hit, np.float64), np.asarray(group)
    draw, stratum = (np.zeros(len(hit), int) if v is None else np.asarray(v) for v in (draw, stratum))
    S, K, G = (int(codes.max()) + 1 for codes in (draw, stratum, group))
    G = groups or G
    place = np.ravel_multi_index((draw, group, stratum), (S, G, K))
    hits, counts = (np.bincount(place, w, S * G * K).reshape(S, G, K) for w in (hit, np.ones(len(hit))))
    groups, draws = times(G, bootstraps, seed), times(S, bootstraps, [seed, 1])
    total = sum(draws[:, [s]] * (groups @ hits[s]) for s in range(S))  # [1 + bootstraps, K]
    size = sum(draws[:, [s]] * (groups @ counts[s]) for s in range(S))
    with np.errstate(invalid="ignore"):
        return of_groups((total / size)[:, size[0] > 0].mean(axis=1), len(np.unique(group)))


def times(n: int, bootstraps: int, seed=0) -> np.ndarray:
    """[1 + bootstraps, n] how often each of n counts: once each, then as often as it was drawn with replacement."""
    return np.vstack([np.ones(n), np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), bootstraps)])


def of_groups(drawn: np.ndarray, n: int) -> np.ndarray:
    """What was drawn [1 + bootstraps, ...] of n groups: all but the first NaN where n is 1, a warning where it is few."""
    if len(drawn) > 1 and n < FEW:
        told = "of 1 group (place, scene, block), which cannot tell how others would differ: there is none"
        told = f"of {n} groups (places, scenes, blocks) is too narrow to rely on" if n > 1 else told
        warn(f"an interval {told}; score more land, or name smaller groups, at least {FEW}")
    if n < 2:
        drawn[1:] = np.nan
    return drawn


def interval(scores: np.ndarray) -> tuple[float, float, float]:
    """What `resample` gave -> the measured score, and both ends of its 95 % percentile interval."""
    drawn = scores[1:][np.isfinite(scores[1:])]
    if not len(drawn):
        return float(scores[0]), np.nan, np.nan
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(scores[0]), float(low), float(high)


def as_text(value: float, low: float, high: float, form: str = "{:.2f}") -> str:
    """Such as "0.58 (0.51 to 0.66)"; a dash for what is NaN."""
    value, low, high = ("–" if np.isnan(v) else form.format(v) for v in (value, low, high))
    return value if value == "–" else f"{value} ({low} to {high})" if low != "–" else f"{value} (–)"


def codes(values) -> np.ndarray:
    """Any names [M] -> whole numbers from 0, in the names' order."""
    return np.unique(np.asarray(values), return_inverse=True)[1].ravel()
