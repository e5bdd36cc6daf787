"""Scores class by class from confusion tables: IoU and F1 with intervals, and the per-pixel classifier to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from clay_lib.data.labels import IGNORE, LabeledSet
from clay_lib.errors import ContractError
from clay_lib.evaluation.intervals import codes, interval, of_groups, times


def confusions(labels: np.ndarray, answers: np.ndarray, count: int) -> np.ndarray:
    """Class numbers [N, ...] and answers of the same shape -> [N, K, K] counts, true class by answer; IGNORE left out."""
    labels, answers = np.asarray(labels).astype(np.int64), np.asarray(answers).astype(np.int64)
    if labels.shape != answers.shape:
        raise ContractError("answers", answers.shape, labels.shape, "answers of other chips")
    labels, answers = labels.reshape(len(labels), -1), answers.reshape(len(answers), -1)
    known = labels != IGNORE
    if known.any() and not (0 <= labels[known].min() and labels[known].max() < count):
        found = f"{labels[known].min()} to {labels[known].max()}"
        raise ContractError("labels", found, f"0 to {count - 1}", "classes counted from 1")
    chip = np.broadcast_to(np.arange(len(labels))[:, None], labels.shape)
    cells = (chip * count + np.where(known, labels, 0)) * count + answers
    return np.bincount(cells[known], minlength=len(labels) * count**2).reshape(-1, count, count)


def iou(table: np.ndarray) -> np.ndarray:
    """[..., K, K] -> [..., K] hits over hits, misses and false alarms; NaN for a class that nobody has and nobody says."""
    hit = np.diagonal(table, axis1=-2, axis2=-1)
    either = table.sum(-1) + table.sum(-2) - hit
    return np.where(either > 0, hit / np.maximum(either, 1), np.nan)


def f1(table: np.ndarray) -> np.ndarray:
    """[..., K, K] -> [..., K], 2 hits over all that have the class and all that are said to."""
    both = table.sum(-1) + table.sum(-2)
    return np.where(both > 0, 2 * np.diagonal(table, axis1=-2, axis2=-1) / np.maximum(both, 1), np.nan)


def class_scores(
    tables: np.ndarray, names: Sequence[str], *, groups=None, bootstraps: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row a class, and "mean" over classes at the end: IoU, F1, each with low and high, and pixels that have it.

    tables [N, K, K]: of `confusions`; summed over chips before anything is divided. A class that no pixel has is NaN,
    and the mean is over the others, so that two ways of answering are averaged over the same classes; that such a class
    was said is a miss of the class that was there. Intervals: 95 %, chips drawn anew, whole groups [N] of them at a
    time; a draw that lacks a class says nothing of it, nor of the mean. NaN where there is one group.
    """
    columns = {"class": [*names, "mean"]}
    for name, score in (("IoU", iou), ("F1", f1)):
        told = np.array([interval(column) for column in _resampled(score, tables, groups, bootstraps, seed).T])
        columns |= dict(zip([name, *([f"{name} low", f"{name} high"] if bootstraps else [])], told.T, strict=False))
    pixels = tables.sum((0, 2))
    return pd.DataFrame(columns | {"pixels": [*pixels, pixels.sum()]})


def lead(ours: np.ndarray, floor: np.ndarray, *, groups=None, bootstraps: int = 1000, seed: int = 0) -> tuple:
    """(mean IoU of ours minus the floor's, low, high), both on the same chips drawn anew and over the same classes.

    ours, floor: [N, K, K] each, as for `class_scores`.
    """
    mean, other = (_resampled(iou, part, groups, bootstraps, seed)[:, -1] for part in (ours, floor))
    return interval(mean - other)


def pixel_classifier(train: LabeledSet, *, kind: str = "forest", pixels: int = 60_000, seed: int = 0):
    """A classifier of single pixels by their bands alone, fitted on a draw of a set's labelled pixels.

    kind: "forest" (100 trees), "boosting" (histogram gradient boosting) or "logistic". Call it with pixels [C, H, W] of
    the same bands for class numbers [H, W].
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kinds = {
        "forest": lambda: RandomForestClassifier(100, min_samples_leaf=3, random_state=seed, n_jobs=-1),
        "boosting": lambda: HistGradientBoostingClassifier(random_state=seed),
        "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    }
    if kind not in kinds:
        raise ContractError("kind", repr(kind), f"one of {list(kinds)}", "a misspelling")
    rng, x, y = np.random.default_rng(seed), [], []
    each = -(-pixels // len(train))
    for i in range(len(train)):
        sample = train[i]
        usable = np.isfinite(sample.pixels).all(0) & (sample.label != IGNORE)
        spots = rng.permutation(np.flatnonzero(usable))[:each]
        x.append(_native(train, sample.pixels).reshape(len(train.bands), -1).T[spots])
        y.append(sample.label.reshape(-1)[spots])
    fitted = kinds[kind]().fit(np.concatenate(x), np.concatenate(y))

    def classify(native: np.ndarray) -> np.ndarray:
        """[C, H, W] -> [H, W]; pixels that were not measured take the class of the bands' means."""
        seen = np.nan_to_num(_native(train, native)).reshape(len(native), -1).T
        return fitted.predict(seen).reshape(native.shape[1:])

    return classify


def _native(data: LabeledSet, pixels: np.ndarray) -> np.ndarray:
    return data.sensor.normalize(pixels[None], list(data.bands), in_decibel=data.in_decibel)[0]


def _resampled(score, tables: np.ndarray, groups, bootstraps: int, seed: int) -> np.ndarray:
    """[1 + bootstraps, K + 1] score of each class and their mean, over all chips, then over groups of them drawn anew.

    NaN for a class that nobody has there, and for a mean over other classes than those that all chips have together.
    """
    tables = np.asarray(tables, np.float64)
    member = np.arange(len(tables)) if groups is None else codes(groups)
    sums = np.zeros((member.max() + 1, *tables.shape[1:]))
    np.add.at(sums, member, tables)
    drawn = np.tensordot(times(len(sums), bootstraps, seed), sums, 1)
    has = drawn.sum(-1) > 0
    values = np.where(has, score(drawn), np.nan)
    with np.errstate(invalid="ignore"):
        mean = values[:, has[0]].sum(1) / has[0].sum()
    return of_groups(np.column_stack([values, mean]), len(sums))
