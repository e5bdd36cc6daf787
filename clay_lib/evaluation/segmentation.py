"""Segmentation scores: IoU and F1 by class with intervals, and a per-pixel classifier as baseline."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from clay_lib.data.labels import IGNORE, LabeledSet, check_class_numbers
from clay_lib.errors import ContractError
from clay_lib.evaluation.intervals import bootstrap_weights, codes, drop_single_group, interval


def confusions(labels: np.ndarray, predictions: np.ndarray, count: int) -> np.ndarray:
    """Class numbers [N, ...] and predictions of the same shape -> counts [N, K, K], true class by predicted class.

    Pixels labeled IGNORE are left out.
    """
    labels, predictions = np.asarray(labels).astype(np.int64), np.asarray(predictions).astype(np.int64)
    if labels.shape != predictions.shape:
        raise ContractError("predictions", predictions.shape, labels.shape, "predictions of other chips")
    labels, predictions = labels.reshape(len(labels), -1), predictions.reshape(len(predictions), -1)
    known = check_class_numbers(labels, count, "the chips") != IGNORE
    chip = np.broadcast_to(np.arange(len(labels))[:, None], labels.shape)
    cells = (chip * count + np.where(known, labels, 0)) * count + predictions
    return np.bincount(cells[known], minlength=len(labels) * count**2).reshape(-1, count, count)


def iou(table: np.ndarray) -> np.ndarray:
    """Confusion tables [..., K, K] -> intersection over union [..., K]; NaN for a class neither true nor predicted."""
    hit = np.diagonal(table, axis1=-2, axis2=-1)
    union = table.sum(-1) + table.sum(-2) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def f1(table: np.ndarray) -> np.ndarray:
    """Confusion tables [..., K, K] -> F1 [..., K]; NaN for a class neither true nor predicted."""
    both = table.sum(-1) + table.sum(-2)
    return np.where(both > 0, 2 * np.diagonal(table, axis1=-2, axis2=-1) / np.maximum(both, 1), np.nan)


def class_scores(
    tables: np.ndarray, names: Sequence[str], *, groups=None, bootstraps: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row a class, then "mean" over classes: IoU and F1, each with low and high, and pixels of the class.

    tables [N, K, K]: from `confusions`; summed over chips before dividing. A class without pixels is NaN and not in the
    mean, so that two models are averaged over the same classes; predicting it counts against the true class. Intervals:
    95 %, over resampled chips, or groups [N] of them; a resampling that lacks a class does not count for it, nor for
    the mean. NaN where there is one group.
    """
    columns = {"class": [*names, "mean"]}
    for name, score in (("IoU", iou), ("F1", f1)):
        rows = np.array([interval(column) for column in _resample_tables(score, tables, groups, bootstraps, seed).T])
        columns |= dict(zip([name, *([f"{name} low", f"{name} high"] if bootstraps else [])], rows.T, strict=False))
    pixels = tables.sum((0, 2))
    return pd.DataFrame(columns | {"pixels": [*pixels, pixels.sum()]})


def iou_gain(model: np.ndarray, baseline: np.ndarray, *, groups=None, bootstraps: int = 1000, seed: int = 0) -> tuple:
    """(mean IoU of the model minus the baseline's, low, high), both on the same resampled chips and classes.

    model, baseline: confusion tables [N, K, K], as for `class_scores`.
    """
    scores = (_resample_tables(iou, tables, groups, bootstraps, seed)[:, -1] for tables in (model, baseline))
    return interval(np.subtract(*scores))


def pixel_classifier(train: LabeledSet, *, kind: str = "forest", pixels: int = 60_000, seed: int = 0):
    """A per-pixel classifier on the bands alone, fitted on a random sample of a set's labeled pixels.

    kind: "forest" (100 trees), "boosting" (histogram gradient boosting) or "logistic". Returns a function from pixels
    [C, H, W] of the same bands to class numbers [H, W]; missing pixels get the class of the bands' means.
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
        raise ContractError("kind", repr(kind), f"one of {list(kinds)}", "a misspelled kind")
    rng, x, y = np.random.default_rng(seed), [], []

    def table(native: np.ndarray) -> np.ndarray:
        """[C, H, W] -> [H * W, C]."""
        normalized = train.sensor.normalize(native[None], list(train.bands), in_decibel=train.in_decibel)[0]
        return normalized.reshape(len(train.bands), -1).T

    for i in range(len(train)):
        sample = train[i]
        usable = np.isfinite(sample.pixels).all(0) & (sample.label != IGNORE)
        chosen = rng.permutation(np.flatnonzero(usable))[: -(-pixels // len(train))]
        x.append(table(sample.pixels)[chosen])
        y.append(sample.label.reshape(-1)[chosen])
    fitted = kinds[kind]().fit(np.concatenate(x), np.concatenate(y))
    return lambda native: fitted.predict(np.nan_to_num(table(native))).reshape(native.shape[1:])


def _resample_tables(score, tables: np.ndarray, groups, bootstraps: int, seed: int) -> np.ndarray:
    """Scores by class and their mean, [1 + bootstraps, K + 1]: over all chips, then over resampled groups of them.

    NaN for a class without pixels, and for the mean if a resampling lacks a class that the chips have.
    """
    tables = np.asarray(tables, np.float64)
    member = np.arange(len(tables)) if groups is None else codes(groups)
    sums = np.zeros((member.max() + 1, *tables.shape[1:]))
    np.add.at(sums, member, tables)
    drawn = np.tensordot(bootstrap_weights(len(sums), bootstraps, seed), sums, 1)  # [1 + bootstraps, K, K]
    present = drawn.sum(-1) > 0
    values = np.where(present, score(drawn), np.nan)
    with np.errstate(invalid="ignore"):
        mean = values[:, present[0]].sum(1) / present[0].sum()
    return drop_single_group(np.column_stack([values, mean]), len(sums))
