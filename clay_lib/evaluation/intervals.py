"""Bootstrap intervals of scores, over groups of chips and over seeds.

Groups are resampled, not single chips, since two dates of one place or neighbors in a mosaic are not independent. Where
predictions come from several seeds (of splits, random weights, training shots), seeds are resampled too. The same seed
and groups give the same draws, so that two resampled scores can be subtracted pairwise. With one group the interval is
NaN; with few groups a warning says that it is too narrow.
"""

import numpy as np

from clay_lib.errors import warn

LEVEL = 0.95
FEW = 6  # groups: with fewer, an interval is too narrow to rely on


def resample(
    hit, group, *, draw=None, stratum=None, groups=None, bootstraps: int = 1000, seed=0, skip_empty: bool = False
) -> np.ndarray:
    """Bootstrap means [1 + bootstraps] of hit [M]: as measured, then with groups [M] and draws [M] resampled.

    group: codes 0..G-1; groups: G, if this part of a comparison may lack the last groups. draw: codes 0..S-1, the seed
    of each prediction. stratum: codes 0..K-1, such as the true class; the result is the mean of the strata's means, for
    classes balanced accuracy. A resampling that lacks a stratum is NaN, or with skip_empty the mean of the others.
    """
    hit, group = np.asarray(hit, np.float64), np.asarray(group)
    draw, stratum = (np.zeros(len(hit), int) if v is None else np.asarray(v) for v in (draw, stratum))
    S, K, G = (int(codes.max()) + 1 for codes in (draw, stratum, group))
    G = groups or G
    cell = np.ravel_multi_index((draw, group, stratum), (S, G, K))
    hits, counts = (np.bincount(cell, w, S * G * K).reshape(S, G, K) for w in (hit, np.ones(len(hit))))
    weights, seeds = bootstrap_weights(G, bootstraps, seed), bootstrap_weights(S, bootstraps, [seed, 1])
    total = sum(seeds[:, [s]] * (weights @ hits[s]) for s in range(S))  # [1 + bootstraps, K]
    size = sum(seeds[:, [s]] * (weights @ counts[s]) for s in range(S))
    with np.errstate(invalid="ignore"):
        means = (total / size)[:, size[0] > 0]
    return drop_single_group((np.nanmean if skip_empty else np.mean)(means, axis=1), len(np.unique(group)))


def bootstrap_weights(n: int, bootstraps: int, seed=0) -> np.ndarray:
    """Weights of n groups [1 + bootstraps, n]: ones, then how often each is drawn with replacement."""
    return np.vstack([np.ones(n), np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), bootstraps)])


def drop_single_group(scores: np.ndarray, groups: int) -> np.ndarray:
    """Resampled scores [1 + bootstraps, ...]: all but the first become NaN for one group; a warning for few groups."""
    if len(scores) > 1 and groups < FEW:
        problem = f"of {groups} groups (places, scenes, blocks) is too narrow to rely on"
        if groups < 2:
            problem = "needs more than 1 group (place, scene, block), and is omitted"
        warn(f"an interval {problem}; score more places, or use smaller groups, at least {FEW}")
    if groups < 2:
        scores[1:] = np.nan
    return scores


def interval(scores: np.ndarray) -> tuple[float, float, float]:
    """Resampled scores -> (measured score, low, high) of its 95 % percentile interval; NaN where there is none."""
    drawn = scores[1:][np.isfinite(scores[1:])]
    if not len(drawn):
        return float(scores[0]), np.nan, np.nan
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(scores[0]), float(low), float(high)


def as_text(value: float, low: float, high: float, form: str = "{:.2f}") -> str:
    """Such as "0.58 (0.51 to 0.66)"; a dash for NaN."""
    value, low, high = ("–" if np.isnan(v) else form.format(v) for v in (value, low, high))
    return value if value == "–" else f"{value} ({low} to {high})" if low != "–" else f"{value} (–)"


def codes(values) -> np.ndarray:
    """Names [M] -> integer codes [M] from 0, in sorted order of the names."""
    return np.unique(np.asarray(values), return_inverse=True)[1].ravel()
