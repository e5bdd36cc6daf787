"""Evaluation with several labels a chip: average precision and F1 of each label, with intervals."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from clay_lib.errors import ContractError
from clay_lib.evaluation import probes
from clay_lib.evaluation.evaluate import Sets, split_chips
from clay_lib.evaluation.intervals import bootstrap_weights, codes, drop_single_group, interval
from clay_lib.evaluation.segmentation import confusions, f1


@dataclass(frozen=True, eq=False)
class MultiLabelEvaluation:
    """The predicted probability of every label of every test chip."""

    predictions: pd.DataFrame  # features, kind, split, probe, seed, chip, group, label (its name), truth, probability
    bootstraps: int = 1000

    @cached_property
    def table(self) -> pd.DataFrame:
        """features, kind, split, probe, label (its name, or "mean"), metric, score, low, high, share, n_test, seeds.

        Average precision needs no threshold, and its chance level is `share`, the share of chips with the label. F1
        takes a threshold of one half.
        """
        rows, keys = [], ["features", "kind", "split", "probe"]
        for case, part in self.predictions.groupby(keys, sort=False):
            case = dict(zip(keys, case, strict=True)) | {"seeds": part["seed"].nunique()}
            part = part.assign(group=codes(part["group"]))
            G, by_label = part["group"].max() + 1, part.groupby("label")
            drawn = {name: _resample_label(own, G, self.bootstraps) for name, own in by_label}
            for k, metric in enumerate(("average precision", "F1")):
                scores = {name: both[k] for name, both in drawn.items()}
                for name, values in {**scores, "mean": pd.DataFrame(scores).mean(axis=1).to_numpy()}.items():
                    value, low, high = interval(values[np.isfinite(values)])
                    own = part if name == "mean" else part[part["label"] == name]
                    row = {"label": name, "metric": metric, "score": value, "low": low, "high": high}
                    rows.append(case | row | {"share": own["truth"].mean(), "n_test": own["chip"].nunique()})
        return pd.DataFrame(rows)


def evaluate_multilabel(
    sets: Sets,
    labels,
    *,
    names: Sequence[str] | None = None,
    groups=None,
    test=None,
    which: Collection[str] = probes.PROBES,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> MultiLabelEvaluation:
    """Several labels a chip: labels [N, K] of 0 and 1, in the order of `names`; the rest as in `evaluate_features`.

    Linear: one logistic regression a label. kNN: the share of the neighbors that have it. A label that all or none of
    the training chips, or of the test chips, have is left out.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        cause = "one class a chip: evaluate takes these"
        raise ContractError("labels", f"{labels.dtype} {labels.shape}", "[N, K] of 0 and 1", cause)
    names, tables = [str(k) for k in range(labels.shape[1])] if names is None else list(names), []
    for seed in range(seeds):
        for split, a, b, group in split_chips(len(labels), groups, test, seed):
            used = [k for k in range(len(names)) if all(0 < labels[part, k].mean() < 1 for part in (a, b))]
            for feature, versions in sets.items():
                train, tested = probes.standardize(versions[seed % len(versions)][a], versions[seed % len(versions)][b])
                case = dict(features=feature, kind=probes.kind_of(feature), split=split, seed=seed)
                blocks = None if groups is None else group[a]
                for probe in which:
                    p = _probabilities(probe, train, labels[a][:, used], tested, blocks, seed)
                    for k, column in zip(used, p.T, strict=True):
                        columns = dict(chip=b, group=group[b], truth=labels[b, k].astype(bool), probability=column)
                        tables.append(pd.DataFrame(columns).assign(**case, probe=probe, label=names[k]))
    if not tables:
        raise ContractError("labels", "none to test", "labels of some of the chips", "each is on all chips, or on none")
    return MultiLabelEvaluation(pd.concat(tables, ignore_index=True), bootstraps)


def _probabilities(probe: str, train, labels, tested, groups, seed: int) -> np.ndarray:
    """[M, K] probability of each label for each test chip."""
    if probe == "linear":
        models = [probes.fit_linear(train, y, _choose_c(train, y, groups, seed)) for y in labels.T]
        return np.stack([model.predict_proba(tested)[:, 1] for model in models], axis=1)
    k, metric = probes.KNN[probe]
    near = probes.nearest_neighbors(train, labels[:, 0], k=k, metric=metric)
    return labels[near.kneighbors(tested, return_distance=False)].mean(axis=1)


def _choose_c(train, y, groups, seed: int) -> float:
    try:
        return probes.choose_c(train, y, groups=groups, seed=seed)
    except ContractError:  # too few groups have the label to validate on
        return 1.0


def _resample_label(part: pd.DataFrame, groups: int, bootstraps: int) -> np.ndarray:
    """Average precision and F1 of a label over resampled seeds and groups, [2, 1 + bootstraps]; NaN if absent."""
    weights, by_seed = bootstrap_weights(groups, bootstraps), list(part.groupby("seed"))
    of_seed = bootstrap_weights(len(by_seed), bootstraps, [0, 1]).T[:, None]  # [S, 1, 1 + bootstraps]
    scores = []
    for _, own in by_seed:
        w, truth, p = weights[:, own["group"].to_numpy()], own["truth"].to_numpy(), own["probability"].to_numpy()
        tables = np.tensordot(w, confusions(truth[:, None], p[:, None] >= 0.5, 2), 1)  # [1 + bootstraps, 2, 2]
        scores.append(np.stack([average_precision(truth, p, w), f1(tables)[:, 1]]))
    scores = np.stack(scores)  # [S, 2, 1 + bootstraps]
    counted = of_seed * np.isfinite(scores)
    with np.errstate(invalid="ignore"):
        mean = (counted * np.nan_to_num(scores)).sum(0) / counted.sum(0)
    return drop_single_group(mean.T, part["group"].nunique()).T


def average_precision(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] average precision, as scikit-learn's, of [M] chips under each row of sample weights [R, M] at once."""
    order = np.argsort(-probability, kind="stable")
    last = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)  # of each run of equal probabilities
    hits, chosen = (np.cumsum(weights[:, order] * v, axis=1)[:, last] for v in (truth[order], 1.0))
    gain = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):
        return (gain * hits / np.maximum(chosen, 1e-12)).sum(1) / hits[:, -1]
