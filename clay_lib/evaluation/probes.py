"""Probes: what frozen features know, told by the simplest classifiers, beside floors that know nothing.

A score alone says little: a linear probe on the mean colour of a chip already tells water from forest. So every
feature set, floor or model, goes through one preparation (`standardise`) and the same three probes, and the answer to
"is the model worth it?" is `difference`: model minus best floor, on the same resampled chips, over a spatial split.

Scores are accuracy: on unbalanced sets a probe that always says the commonest class then looks good. "balanced"
accuracy, the mean over classes, is for those; on balanced sets the two are equal, and chance is 1 / classes.

These are the parts. `evaluation.evaluate` puts them together: floors, splits, seeds, tables and a figure in one call.

    table = probe({"pixel statistics": (a, b), "Clay, class token": (c, d)}, train_y, test_y, train_groups=blocks)

Arrays in, scores out: N chips, D features, C bands, H x W pixels, F filters.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from clay_lib.errors import ContractError
from clay_lib.evaluation.baselines import colour_histogram, finite, pixel_statistics, random_convolutions
from clay_lib.evaluation.intervals import codes, interval, resample

__all__ = [  # the floors are reached from here as well
    "choose_c", "colour_histogram", "difference", "fit_linear", "gap", "knn_score", "linear_score",
    "pixel_statistics", "predict", "probe", "random_convolutions", "score", "standardise",
]  # fmt: skip

KNN = {"kNN-5": (5, "euclidean"), "kNN-20 cosine": (20, "cosine")}  # name -> (k, metric)
PROBES = (*KNN, "linear")
NEAREST = "nearest mean"  # of the classes: the probe for very few chips, which has nothing to choose
FLOORS = ("pixel", "random")  # a feature set whose name starts so is a floor, unless the caller names the floors
C_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse strengths: wide, so that 6 and 1024 features both find theirs
CASES = ("split", "shots", "probe")  # columns that tell one comparison from another, as far as they are there
METRICS = ("accuracy", "balanced")
VALIDATION_FOLDS = 4  # a quarter of the training groups chooses C


# -- probes ----------------------------------------------------------------------------------------------------------


def standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets by the training set's mean and standard deviation, column by column: [N, D], [M, D] -> the same.

    A column that does not vary over the training set carries nothing and becomes zero in both.
    """
    train, test = _matrix("train features", train), _matrix("test features", test)
    _same_width(train, test)
    mean, std = train.mean(0), train.std(0)
    # a constant column's std is rounding error, not always zero
    varies = std > 1e-12 * np.abs(mean)
    scale = np.where(varies, 1.0 / np.where(varies, std, 1.0), 0.0)
    return (train - mean) * scale, (test - mean) * scale


def knn_score(train_x, train_y, test_x, test_y, *, k: int = 5, metric: str = "euclidean") -> float:
    """Accuracy of the vote of the k nearest training chips. metric: "euclidean" or "cosine".

    The features are taken as they are. Cosine sees only directions from the origin, so it depends strongly on
    whether they were standardised; `probe` always does, for floors and models alike.
    """
    train_x, train_y, test_x, test_y = _labelled(train_x, train_y, test_x, test_y)
    return float(np.mean(_knn(train_x, train_y, test_x, k=k, metric=metric) == test_y))


def linear_score(train_x, train_y, test_x, test_y, *, groups=None, seed: int = 0) -> float:
    """Accuracy of logistic regression (LBFGS); its C comes from `choose_c`, which never sees the test set.

    groups: [N] the block, scene or mosaic of each training chip; None where every chip stands alone.
    """
    train_x, train_y, test_x, test_y = _labelled(train_x, train_y, test_x, test_y)
    c = choose_c(train_x, train_y, groups=groups, seed=seed)
    return float(fit_linear(train_x, train_y, c).score(test_x, test_y))


def fit_linear(x, y, c: float) -> LogisticRegression:
    """Logistic regression of inverse strength c on features [N, D] that were standardised, and labels [N]."""
    # one thread: on matrices this small a second one only waits, and takes five times as long over it
    with warnings.catch_warnings(), threadpool_limits(1):
        # a weak C on separable features never settles; what it has after these steps is what validation judges
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, solver="lbfgs", max_iter=500).fit(x, y)


def choose_c(train_x, train_y, *, groups=None, seed: int = 0) -> float:
    """The C of `C_GRID` that is best on a quarter of the training groups, fitted on the rest; a tie takes the smaller.

    No group lies on both sides: neighbours in the validation part would make a weak C look safe. With one chip a class
    there is nothing to validate on, and C is 1.
    """
    train_x, train_y = _matrix("train features", train_x), np.asarray(train_y)
    _same_length("train labels", train_y, len(train_x))
    groups = np.arange(len(train_y)) if groups is None else np.asarray(groups)
    _same_length("train_groups", groups, len(train_y))
    counts = np.unique(train_y, return_counts=True)[1]
    if counts.max() == 1:
        return 1.0
    folds = min(VALIDATION_FOLDS, len(np.unique(groups)), counts.max())
    if folds < 2:
        found = f"{len(np.unique(groups))} group(s), {counts.max()} chip(s) in the commonest class"
        cause = "all training chips share one block: use smaller blocks, or groups=None"
        raise ContractError("train_groups", found, "at least 2 of each, to validate on", cause)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class rarer than the folds: it is then absent from some
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        fit, check = next(splitter.split(train_x, train_y, groups))
    if len(np.unique(train_y[fit])) < 2:
        cause = "groups and classes coincide: each group holds one class only"
        found = "one class outside the validation part"
        raise ContractError("train_groups", found, "at least two", cause)
    scores = [fit_linear(train_x[fit], train_y[fit], c).score(train_x[check], train_y[check]) for c in C_GRID]
    return C_GRID[int(np.argmax(scores))]


def probe(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]],
    train_y,
    test_y,
    *,
    train_groups=None,
    test_groups=None,
    floors: Collection[str] | None = None,
    seed: int = 0,
    bootstraps: int = 1000,
) -> pd.DataFrame:
    """Every feature set through every probe: one row each.

    features: name -> (train [N, D], test [M, D]); D may differ from set to set. train_y, test_y: [N], [M] labels.
    train_groups: [N] spatial blocks, for the choice of the linear probe's C. test_groups: [M] chips that are no
    independent witnesses (dates of one place), drawn together for the intervals. floors: the names of the sets that
    are floors; None takes those whose names start with "pixel" or "random".

    Columns: features, kind ("floor" | "model"), probe ("kNN-5" | "kNN-20 cosine" | "linear"),
    metric, score, low, high, n_train, n_test, dim, seeds. low, high: percentile bootstrap, 95 %, over test groups or
    chips. It knows the luck of the test set, not that of training or of the split; without test_groups it is too narrow
    where chips are neighbours, and with a single one it is NaN.
    Raises ContractError for lengths that differ, NaN, a test class without training chips, fewer chips than k.
    """
    groups = dict(train_groups=train_groups, test_groups=test_groups)
    answers = predict(features, train_y, test_y, **groups, floors=floors, seed=seed)
    return score(answers, bootstraps=bootstraps)


def predict(
    features,
    train_y,
    test_y,
    *,
    train_groups=None,
    test_groups=None,
    floors=None,
    seed: int = 0,
    which: Collection[str] = PROBES,
) -> pd.DataFrame:
    """`probe` before it is summed up: one row per feature set, probe and test chip, for confusion tables and pairs.

    Columns: features, kind, probe, chip (0..M-1), group, label, answer, C (linear only), n_train, dim, seed.
    which: the probes that are asked. train_groups may be left out where all chips stand alone.
    """
    kinds = _kinds(features, floors)
    test_groups = np.arange(len(test_y)) if test_groups is None else np.asarray(test_groups)
    _same_length("test_groups", test_groups, len(test_y))
    if unknown := sorted(set(which) - {*PROBES, NEAREST}):
        raise ContractError("which", unknown, f"among {[*PROBES, NEAREST]}", "a misspelt name")
    frames = []
    for name, (train_x, test_x) in features.items():
        train_x, train, test_x, test = _labelled(train_x, train_y, test_x, test_y, name=name)
        dim = train_x.shape[1]
        train_x, test_x = standardise(train_x, test_x)
        for p in which:
            c = np.nan
            if p == "linear":
                c = choose_c(train_x, train, groups=train_groups, seed=seed)
                answer = fit_linear(train_x, train, c).predict(test_x)
            elif p == NEAREST:
                names = np.unique(train)
                means = np.stack([train_x[train == name].mean(0) for name in names])
                answer = _knn(means, names, test_x, k=1, metric="euclidean")
            else:
                k, metric = KNN[p]
                answer = _knn(train_x, train, test_x, k=k, metric=metric)
            told = pd.DataFrame({"chip": np.arange(len(test)), "group": test_groups, "label": test, "answer": answer})
            known = dict(features=name, kind=kinds[name], probe=p, C=c, n_train=len(train), dim=dim, seed=seed)
            frames.append(told.assign(**known))
    return pd.concat(frames, ignore_index=True)


def score(answers: pd.DataFrame, *, metric: str = "accuracy", bootstraps: int = 1000) -> pd.DataFrame:
    """The table of `probe` from the answers of `predict`, one row per feature set, probe and further CASES.

    metric: "accuracy", or "balanced": the mean of each class's share of right answers. Where the answers come from
    several seeds, all of them count alike, so that a seed that tests more chips weighs more, and the interval knows the
    luck of the seeds as well as that of the chips. n_train, n_test: chips of one seed, on average.
    """
    _check_metric(metric)
    keys, rows = ["features", "kind", *_cases(answers)], []
    for case, part in answers.groupby(keys, sort=False):
        value, low, high = interval(_resample(part, _groups(part), metric, bootstraps))
        row = dict(zip(keys, case, strict=True)) | {"metric": metric, "score": value, "low": low, "high": high}
        row |= {"n_train": int(part.groupby("seed")["n_train"].first().mean()), "n_test": _tested(part)}
        rows.append(row | {"dim": part["dim"].iloc[0], "seeds": part["seed"].nunique()})
    return pd.DataFrame(rows)


def difference(answers: pd.DataFrame, *, metric: str = "accuracy", bootstraps: int = 1000) -> pd.DataFrame:
    """Each model minus the best floor of the same probe, from the answers of `predict`: one row per model and probe.

    Columns: those of CASES, features, floor, difference, low, high, n_test, seeds. Both are scored on the same
    resampled chips, so what is hard for both cancels. The floor is the best one on the test set: luck is on its side.
    """
    _check_metric(metric)
    for kind in ("floor", "model"):
        if not (answers["kind"] == kind).any():
            cause = f"floors=[...] was not given: then names that start with {' or '.join(FLOORS)} are floors"
            found = f"no {kind} among {sorted(set(answers['features']))}"
            raise ContractError("answers", found, "at least one floor and one model", cause)
    rows = []
    for case, part in answers.groupby(_cases(answers), sort=False):
        at = _groups(part)
        drawn = {
            key: _resample(own, at, metric, bootstraps) for key, own in part.groupby(["kind", "features"], sort=False)
        }
        floor = max((key for key in drawn if key[0] == "floor"), key=lambda key: drawn[key][0])
        for key in (key for key in drawn if key[0] == "model"):
            gain, low, high = interval(drawn[key] - drawn[floor])
            row = dict(zip(_cases(answers), case, strict=True)) | {"features": key[1], "floor": floor[1]}
            row |= {"difference": gain, "low": low, "high": high}
            rows.append(row | {"n_test": _tested(part), "seeds": part["seed"].nunique()})
    return pd.DataFrame(rows)


def gap(answers: pd.DataFrame, *, metric: str = "accuracy", bootstraps: int = 1000) -> pd.DataFrame:
    """How much a random split flatters: its score minus that of the honest split, from answers of both.

    Columns: probe (and shots), features, kind, gap, low, high. Clearly above zero, neighbours tell the answer.
    """
    names = sorted(set(answers["split"])) if "split" in answers else []
    if len(names) != 2 or "random" not in names:
        cause = "groups were not given, so there are no blocks"
        raise ContractError("split", names, "'random', and one more", cause)
    honest = next(name for name in names if name != "random")
    rows, keys = [], [c for c in _cases(answers) if c != "split"] + ["features", "kind"]
    for case, part in answers.groupby(keys, sort=False):
        at = _groups(part)
        drawn = {s: _resample(own, at, metric, bootstraps) for s, own in part.groupby("split")}
        value, low, high = interval(drawn["random"] - drawn[honest])
        rows.append(dict(zip(keys, case, strict=True)) | {"gap": value, "low": low, "high": high})
    return pd.DataFrame(rows)


# -- inside ----------------------------------------------------------------------------------------------------------


def _knn(train_x, train_y, test_x, *, k: int, metric: str) -> np.ndarray:
    if metric not in ("euclidean", "cosine"):
        raise ContractError("metric", metric, "'euclidean' or 'cosine'", "another name for it")
    if not 1 <= k <= len(train_y):
        found, cause = f"k = {k} with {len(train_y)} training chips", "the training set is too small for this probe"
        raise ContractError("k", found, "1 <= k <= training chips", cause)
    return KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(train_x, train_y).predict(test_x)


def _cases(answers: pd.DataFrame) -> list[str]:
    return [name for name in CASES if name in answers]


def _tested(part: pd.DataFrame) -> int:
    return int(part.groupby("seed")["chip"].nunique().mean())


def _resample(part: pd.DataFrame, groups: pd.Series, metric: str, bootstraps: int) -> np.ndarray:
    stratum = codes(part["label"]) if metric == "balanced" else None
    hit = part["label"].to_numpy() == part["answer"].to_numpy()
    known = dict(draw=codes(part["seed"]), stratum=stratum, groups=groups.max() + 1)
    return resample(hit, groups[part.index], **known, bootstraps=bootstraps)


def _groups(part: pd.DataFrame) -> pd.Series:
    return pd.Series(codes(part["group"]), index=part.index)


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ContractError("metric", metric, f"one of {METRICS}", "another name for it")


def _kinds(features: Mapping, floors: Collection[str] | None) -> dict[str, str]:
    if floors is None:
        return {name: "floor" if name.lower().startswith(FLOORS) else "model" for name in features}
    if unknown := sorted(set(floors) - set(features)):
        expected = f"names among {sorted(features)}"
        raise ContractError("floors", unknown, expected, "a name is misspelt")
    return {name: "floor" if name in floors else "model" for name in features}


def _labelled(train_x, train_y, test_x, test_y, *, name: str = "features"):
    train_x, test_x = _matrix(f"{name}, train", train_x), _matrix(f"{name}, test", test_x)
    train_y, test_y = np.asarray(train_y), np.asarray(test_y)
    _same_width(train_x, test_x)
    _same_length("train labels", train_y, len(train_x))
    _same_length("test labels", test_y, len(test_x))
    if missing := sorted(set(test_y.tolist()) - set(train_y.tolist())):
        cause = "a spatial split put all chips of a class on one side: use smaller blocks, another seed, or drop it"
        found = f"no chip of {missing}"
        raise ContractError("train labels", found, "every class of the test set", cause)
    if len(set(train_y.tolist())) < 2:
        cause = "the labels of one class were selected"
        raise ContractError("train labels", "one class", "at least two", cause)
    return train_x, train_y, test_x, test_y


def _matrix(field: str, x) -> np.ndarray:
    cause = "embeddings still have a patch axis: take the class token or the mean"
    return finite(field, np.asarray(x), 2, "[N, D], one row a chip", cause).astype(np.float64)


def _same_width(train: np.ndarray, test: np.ndarray) -> None:
    if train.shape[1] != test.shape[1]:
        found, expected = f"{test.shape[1]} columns", f"{train.shape[1]}, as in training"
        raise ContractError("test features", found, expected, "two models or settings were mixed")


def _same_length(field: str, values: np.ndarray, n: int) -> None:
    if values.shape != (n,):
        cause = "labels and chips were selected or sorted apart"
        raise ContractError(field, f"shape {values.shape}", f"({n},)", cause)


# ---- Several labels at a time: which of K kinds of land a chip holds, told by probes, beside floors ----
