"""Several labels at a time: which of K kinds of land a chip holds, told by probes, beside floors.

    told = evaluate_labels(sets, labels, groups=blocks)      # sets: as evaluation.describe makes them
    told.table                                               # average precision and F1 of each label, and their mean

Linear: one logistic regression a label. kNN: the share of the neighbours that have it. Average precision needs no
threshold; F1 takes one half. Chance for the average precision is the label's share of the chips.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from sklearn.neighbors import KNeighborsClassifier

from clay_lib import probes
from clay_lib.contract import ContractError
from clay_lib.evaluation import Sets, split_chips
from clay_lib.intervals import codes, interval, of_groups, times

METRICS = ("average precision", "F1")


@dataclass(frozen=True, eq=False)
class LabelEvaluation:
    """What every probe said of every label of every test chip."""

    answers: pd.DataFrame  # features, kind, split, probe, seed, chip, group, label (its name), truth, said (0 to 1)
    bootstraps: int = 1000

    @cached_property
    def table(self) -> pd.DataFrame:
        """features, kind, split, probe, label (its name, or "mean"), metric, score, low, high, share, n_test, seeds."""
        rows, keys = [], ["features", "kind", "split", "probe"]
        for case, part in self.answers.groupby(keys, sort=False):
            known = dict(zip(keys, case, strict=True)) | {"seeds": part["seed"].nunique()}
            part = part.assign(group=codes(part["group"]))
            drawn = {
                name: _resample(own, part["group"].max() + 1, self.bootstraps) for name, own in part.groupby("label")
            }
            for k, metric in enumerate(METRICS):
                each = {name: scores[k] for name, scores in drawn.items()}
                for name, scores in {**each, "mean": pd.DataFrame(each).mean(axis=1).to_numpy()}.items():
                    value, low, high = interval(scores[np.isfinite(scores)])
                    own = part if name == "mean" else part[part["label"] == name]
                    row = {"label": name, "metric": metric, "score": value, "low": low, "high": high}
                    rows.append(known | row | {"share": own["truth"].mean(), "n_test": own["chip"].nunique()})
        return pd.DataFrame(rows)


def evaluate_labels(
    sets: Sets,
    labels,
    *,
    names: Sequence[str] | None = None,
    groups=None,
    test=None,
    which: Collection[str] = probes.PROBES,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> LabelEvaluation:
    """labels: [N, K] of 0 and 1, in the order of `names`. Splits, groups and seeds as in `evaluation.evaluate`.

    A label that all or none of the training chips have is not asked; nor is it where all or none of the test chips do.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        cause = "one class a chip: evaluation.evaluate takes these"
        raise ContractError("labels", found=f"{labels.dtype} {labels.shape}", expected="[N, K] of 0 and 1", cause=cause)
    names, rows = [str(k) for k in range(labels.shape[1])] if names is None else list(names), []
    for seed in range(seeds):
        for split, a, b, group in split_chips(len(labels), groups, test, seed):
            asked = [k for k in range(len(names)) if all(0 < labels[part, k].mean() < 1 for part in (a, b))]
            for feature, versions in sets.items():
                x = versions[seed % len(versions)]
                train, check = probes.standardise(x[a], x[b])
                kind = "floor" if feature.lower().startswith(probes.FLOORS) else "model"
                for probe in which:
                    said = _say(probe, train, labels[a][:, asked], check, None if groups is None else group[a], seed)
                    for k, column in zip(asked, said.T, strict=True):
                        own = dict(features=feature, kind=kind, split=split, probe=probe, seed=seed, label=names[k])
                        told = dict(chip=b, group=group[b], truth=labels[b, k].astype(bool), said=column)
                        rows.append(pd.DataFrame(told).assign(**own))
    if not rows:
        cause = "labels that all chips have, or none"
        raise ContractError("labels", found="none to ask", expected="a label that some chips have", cause=cause)
    return LabelEvaluation(pd.concat(rows, ignore_index=True), bootstraps)


def _say(probe: str, train, labels, check, groups, seed: int) -> np.ndarray:
    """[M, K] from 0 to 1: how surely a test chip has each label."""
    if probe == "linear":
        chosen = [_choose_c(train, y, groups, seed) for y in labels.T]
        return np.stack(
            [probes.fit_linear(train, y, c).predict_proba(check)[:, 1] for y, c in zip(labels.T, chosen, strict=True)],
            axis=1,
        )
    k, metric = probes.KNN[probe]
    near = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(train, labels[:, 0])
    return labels[near.kneighbors(check, return_distance=False)].mean(axis=1)


def _choose_c(train, y, groups, seed: int) -> float:
    try:
        return probes.choose_c(train, y, groups=groups, seed=seed)
    except ContractError:  # too few groups have the label to validate on
        return 1.0


def _resample(part: pd.DataFrame, groups: int, bootstraps: int) -> np.ndarray:
    """[2, 1 + bootstraps] average precision and F1 of one label; seeds and groups drawn anew, NaN where none has it."""
    drawn, by_seed = times(groups, bootstraps), list(part.groupby("seed"))
    weight = times(len(by_seed), bootstraps, [0, 1]).T[:, None]  # [S, 1, 1 + bootstraps]
    each = []
    for _, own in by_seed:
        w, truth, said = drawn[:, own["group"].to_numpy()], own["truth"].to_numpy(), own["said"].to_numpy()
        each.append(np.stack([average_precision(truth, said, w), f1(truth, said >= 0.5, w)]))
    each = np.stack(each)  # [S, 2, 1 + bootstraps]
    known = weight * np.isfinite(each)
    with np.errstate(invalid="ignore"):
        told = (known * np.nan_to_num(each)).sum(0) / known.sum(0)
    return of_groups(told.T, part["group"].nunique()).T


def average_precision(truth: np.ndarray, said: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[R] area under precision over recall, as scikit-learn's, of [M] chips that count `times` [R, M] often each."""
    order = np.argsort(-said, kind="stable")
    last = np.append(np.flatnonzero(np.diff(said[order])), len(said) - 1)  # of each run of equal answers
    found, asked = (np.cumsum(times[:, order] * v, axis=1)[:, last] for v in (truth[order], 1.0))
    gain = np.diff(found, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):
        return (gain * found / np.maximum(asked, 1e-12)).sum(1) / found[:, -1]


def f1(truth: np.ndarray, answer: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[R] harmonic mean of precision and recall of [M] chips that count `times` [R, M] often each."""
    with np.errstate(invalid="ignore"):
        return 2 * (times @ (truth & answer)) / (times @ truth.astype(float) + times @ answer.astype(float))
