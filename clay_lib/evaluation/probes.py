"""Probes: simple classifiers on frozen features, the same for a model and its baselines.

A score alone says little: the mean color of a chip already separates water from forest. So every feature set, of a
baseline or a model, is standardized and goes through the same three probes, and `difference` compares the model with
the best baseline on the same resampled chips.

Scores are accuracy. On unbalanced sets, where always predicting the commonest class scores high, use "balanced"
accuracy, the mean over classes; on balanced sets the two are equal, and chance is 1 / classes.

    predictions = predict({"pixel statistics": (a, b), "Clay": (c, d)}, train_y, test_y, train_groups=blocks)
    score(predictions), difference(predictions)

`evaluate.evaluate` adds baselines, splits, seeds, tables and a figure. Shapes: N, M chips and D features.
"""

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
from clay_lib.evaluation.baselines import check_finite
from clay_lib.evaluation.intervals import codes, interval, resample

KNN = {"kNN-5": (5, "euclidean"), "kNN-20 cosine": (20, "cosine")}  # name -> (k, metric)
PROBES = (*KNN, "linear")
NEAREST_MEAN = "nearest mean"  # of the classes: the probe for very few chips, without hyperparameters
BASELINES = ("pixel", "texture", "random")  # a feature set whose name starts so is a baseline
C_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse strengths: wide enough for 6 and for 1024 features
CASES = ("split", "shots", "probe")  # columns that separate one comparison from another, where present
METRICS = ("accuracy", "balanced")
VALIDATION_FOLDS = 4  # a quarter of the training groups chooses C


# -- probes ----------------------------------------------------------------------------------------------------------


def standardize(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardize both sets column by column with the training set's mean and standard deviation: [N, D], [M, D].

    A column that is constant over the training set becomes zero in both.
    """
    train, test = _matrix("train features", train), _matrix("test features", test)
    _check_width(train, test)
    mean, std = train.mean(0), train.std(0)
    varies = std > 1e-12 * np.abs(mean)  # a constant column's std is rounding error, not always zero
    scale = np.where(varies, 1.0 / np.where(varies, std, 1.0), 0.0)
    return (train - mean) * scale, (test - mean) * scale


def knn_score(train_x, train_y, test_x, test_y, *, k: int = 5, metric: str = "euclidean") -> float:
    """Accuracy of a k-nearest-neighbor classifier. metric: "euclidean" or "cosine".

    The features are used as they are; cosine depends strongly on whether they were standardized, as `predict` does.
    """
    train_x, train_y, test_x, test_y = _labeled(train_x, train_y, test_x, test_y)
    return float(np.mean(nearest_neighbors(train_x, train_y, k=k, metric=metric).predict(test_x) == test_y))


def nearest_neighbors(x, y, *, k: int, metric: str) -> KNeighborsClassifier:
    """A k-nearest-neighbor classifier fitted on x [N, D] with labels y [N]. metric: "euclidean" or "cosine"."""
    if metric not in ("euclidean", "cosine"):
        raise ContractError("metric", metric, "'euclidean' or 'cosine'", "a misspelled metric")
    if not 1 <= k <= len(y):
        found = f"k = {k} with {len(y)} training chips"
        raise ContractError("k", found, "1 <= k <= training chips", "the training set is too small for this probe")
    return KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(x, y)


def fit_linear(x, y, c: float) -> LogisticRegression:
    """Logistic regression of inverse strength c on standardized features [N, D] and labels [N]."""
    # one thread: a second one makes it five times slower on matrices this small
    with warnings.catch_warnings(), threadpool_limits(1):
        # a large C on separable features does not converge; validation scores the state after these steps
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, solver="lbfgs", max_iter=500).fit(x, y)


def choose_c(train_x, train_y, *, groups=None, seed: int = 0) -> float:
    """The C of `C_GRID` that is best on a quarter of the training groups, fitted on the rest; ties: the smaller.

    groups: [N] the block, scene or mosaic of each training chip, none of which lies on both sides; None: every chip is
    independent. C is 1 with one chip a class, where there is nothing to validate on.
    """
    train_x, train_y = _matrix("train features", train_x), np.asarray(train_y)
    _check_length("train labels", train_y, len(train_x))
    groups = np.arange(len(train_y)) if groups is None else np.asarray(groups)
    _check_length("train_groups", groups, len(train_y))
    most = np.unique(train_y, return_counts=True)[1].max()
    if most == 1:
        return 1.0
    folds = min(VALIDATION_FOLDS, len(np.unique(groups)), most)
    if folds < 2:
        found = f"{len(np.unique(groups))} group(s), {most} chip(s) in the commonest class"
        cause = "all training chips share one block: use smaller blocks, or groups=None"
        raise ContractError("train_groups", found, "at least 2 of each, to validate on", cause)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class rarer than the folds is absent from some of them
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        fit, check = next(splitter.split(train_x, train_y, groups))
    if len(np.unique(train_y[fit])) < 2:
        cause = "groups and classes coincide: each group holds one class only"
        raise ContractError("train_groups", "one class outside the validation part", "at least two", cause)
    scores = [fit_linear(train_x[fit], train_y[fit], c).score(train_x[check], train_y[check]) for c in C_GRID]
    return C_GRID[int(np.argmax(scores))]


def choose_features(candidates: Mapping[str, np.ndarray], y: np.ndarray, folds: np.ndarray) -> str:
    """The name of the candidate [N, D] with the best kNN-20 by cosine in cross-validation over the folds [N]."""

    def score(x: np.ndarray) -> float:
        hits = 0.0
        for fold in np.unique(folds):
            held_out = folds == fold
            train, test = standardize(x[~held_out], x[held_out])
            hits += knn_score(train, y[~held_out], test, y[held_out], k=20, metric="cosine") * held_out.sum()
        return hits / len(y)

    return max(candidates, key=lambda name: score(candidates[name]))


def predict(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]],
    train_y,
    test_y,
    *,
    train_groups=None,
    test_groups=None,
    seed: int = 0,
    which: Collection[str] = PROBES,
) -> pd.DataFrame:
    """Every feature set through every probe: one row per feature set, probe and test chip.

    features: name -> (train [N, D], test [M, D]); D may differ between sets. train_y, test_y: labels [N], [M].
    train_groups: [N] spatial blocks, for the choice of the linear probe's C. test_groups: [M] chips that are not
    independent (dates of one place), resampled together. which: names of the probes. Sets whose names start with
    "pixel" or "random" are baselines.

    Columns: features, kind ("baseline" | "model"), probe, chip (0..M-1), group, label, prediction, C (linear only),
    n_train, dim, seed. `score`, `difference` and `gap` summarize them.
    Raises ContractError for lengths that differ, NaN, a test class without training chips, fewer chips than k.
    """
    if unknown := sorted(set(which) - {*PROBES, NEAREST_MEAN}):
        raise ContractError("which", unknown, f"among {[*PROBES, NEAREST_MEAN]}", "a misspelled name")
    test_groups = np.arange(len(test_y)) if test_groups is None else np.asarray(test_groups)
    _check_length("test_groups", test_groups, len(test_y))
    tables = []
    for name, (train_x, test_x) in features.items():
        train_x, train, test_x, test = _labeled(train_x, train_y, test_x, test_y, name=name)
        train_x, test_x = standardize(train_x, test_x)
        for p in which:
            c = np.nan
            if p == "linear":
                c = choose_c(train_x, train, groups=train_groups, seed=seed)
                classifier = fit_linear(train_x, train, c)
            elif p == NEAREST_MEAN:
                classes = np.unique(train)
                means = np.stack([train_x[train == name].mean(0) for name in classes])
                classifier = nearest_neighbors(means, classes, k=1, metric="euclidean")
            else:
                k, metric = KNN[p]
                classifier = nearest_neighbors(train_x, train, k=k, metric=metric)
            columns = {"chip": np.arange(len(test)), "group": test_groups, "label": test}
            table = pd.DataFrame(columns | {"prediction": classifier.predict(test_x)})
            case = dict(features=name, kind=kind_of(name), probe=p, C=c)
            tables.append(table.assign(**case, n_train=len(train), dim=train_x.shape[1], seed=seed))
    return pd.concat(tables, ignore_index=True)


def kind_of(name: str) -> str:
    """Whether a feature set of this name is a "baseline" or a "model"."""
    return "baseline" if name.lower().startswith(BASELINES) else "model"


# -- tables of predictions -------------------------------------------------------------------------------------------


def score(predictions: pd.DataFrame, *, metric: str = "accuracy", bootstraps: int = 1000) -> pd.DataFrame:
    """Scores from the predictions of `predict`: one row per feature set, probe and further CASES.

    metric: "accuracy", or "balanced": the mean of each class's share of correct predictions. Predictions of several
    seeds are pooled, so that a seed that tests more chips weighs more. Columns: features, kind, CASES, metric, score,
    low, high, n_train, n_test (chips of one seed, on average), dim, seeds. low, high: 95 % percentile bootstrap over
    test groups or chips, and over seeds. It covers the choice of these, not of training chips or of the split;
    without test_groups it is too narrow where chips are neighbors, and with a single group it is NaN.
    """
    keys, rows = ["features", "kind", *_cases(predictions)], []
    for case, part in predictions.groupby(keys, sort=False):
        value, low, high = interval(_resample(part, _groups(part), metric, bootstraps))
        row = dict(zip(keys, case, strict=True)) | {"metric": metric, "score": value, "low": low, "high": high}
        row |= {"n_train": int(part.groupby("seed")["n_train"].first().mean()), "n_test": _count_chips(part)}
        rows.append(row | {"dim": part["dim"].iloc[0], "seeds": part["seed"].nunique()})
    return pd.DataFrame(rows)


def difference(predictions: pd.DataFrame, *, metric: str = "accuracy", bootstraps: int = 1000) -> pd.DataFrame:
    """Each model minus the best baseline of the same probe, from the predictions of `predict`: a row a model and probe.

    Columns: those of CASES, features, baseline, difference, low, high, n_test, seeds. Both are scored on the same
    resampled chips, which cancels common errors. The best baseline is chosen on the test set, in its favor.
    """
    for kind in ("baseline", "model"):
        if not (predictions["kind"] == kind).any():
            found = f"no {kind} among {sorted(set(predictions['features']))}"
            cause = f"other names: those that start with {' or '.join(BASELINES)} are baselines"
            raise ContractError("predictions", found, "at least one baseline and one model", cause)
    rows, cases = [], _cases(predictions)
    for case, part in predictions.groupby(cases, sort=False):
        groups, by_set = _groups(part), part.groupby(["kind", "features"], sort=False)
        drawn = {key: _resample(own, groups, metric, bootstraps) for key, own in by_set}
        best = max((key for key in drawn if key[0] == "baseline"), key=lambda key: drawn[key][0])
        for key in (key for key in drawn if key[0] == "model"):
            value, low, high = interval(drawn[key] - drawn[best])
            row = dict(zip(cases, case, strict=True)) | {"features": key[1], "baseline": best[1]}
            row |= {"difference": value, "low": low, "high": high}
            rows.append(row | {"n_test": _count_chips(part), "seeds": part["seed"].nunique()})
    return pd.DataFrame(rows)


def gap(predictions: pd.DataFrame, *, metric: str = "accuracy", bootstraps: int = 1000) -> pd.DataFrame:
    """How far a random split overestimates: its score minus that of the spatial split, from predictions on both.

    Columns: probe (and shots), features, kind, gap, low, high. A gap clearly above zero shows a leak between neighbors.
    """
    names = sorted(set(predictions["split"])) if "split" in predictions else []
    if len(names) != 2 or "random" not in names:
        raise ContractError("split", names, "'random', and one more", "no groups, hence no blocks")
    spatial = next(name for name in names if name != "random")
    rows, keys = [], [c for c in _cases(predictions) if c != "split"] + ["features", "kind"]
    for case, part in predictions.groupby(keys, sort=False):
        groups = _groups(part)
        drawn = {s: _resample(own, groups, metric, bootstraps) for s, own in part.groupby("split")}
        value, low, high = interval(drawn["random"] - drawn[spatial])
        rows.append(dict(zip(keys, case, strict=True)) | {"gap": value, "low": low, "high": high})
    return pd.DataFrame(rows)


def _cases(predictions: pd.DataFrame) -> list[str]:
    return [name for name in CASES if name in predictions]


def _count_chips(part: pd.DataFrame) -> int:
    """Test chips of one seed, on average."""
    return int(part.groupby("seed")["chip"].nunique().mean())


def _resample(part: pd.DataFrame, groups: pd.Series, metric: str, bootstraps: int) -> np.ndarray:
    if metric not in METRICS:
        raise ContractError("metric", metric, f"one of {METRICS}", "a misspelled metric")
    stratum = codes(part["label"]) if metric == "balanced" else None
    hit, G = part["label"].to_numpy() == part["prediction"].to_numpy(), groups.max() + 1
    return resample(hit, groups[part.index], draw=codes(part["seed"]), stratum=stratum, groups=G, bootstraps=bootstraps)


def _groups(part: pd.DataFrame) -> pd.Series:
    return pd.Series(codes(part["group"]), index=part.index)


# -- checks ----------------------------------------------------------------------------------------------------------


def _labeled(train_x, train_y, test_x, test_y, *, name: str = "features"):
    train_x, test_x = _matrix(f"{name}, train", train_x), _matrix(f"{name}, test", test_x)
    train_y, test_y = np.asarray(train_y), np.asarray(test_y)
    _check_width(train_x, test_x)
    _check_length("train labels", train_y, len(train_x))
    _check_length("test labels", test_y, len(test_x))
    if missing := sorted(set(test_y.tolist()) - set(train_y.tolist())):
        cause = "a spatial split put all chips of a class on one side: use smaller blocks, another seed, or drop it"
        raise ContractError("train labels", f"no chip of {missing}", "every class of the test set", cause)
    if len(set(train_y.tolist())) < 2:
        raise ContractError("train labels", "one class", "at least two", "chips of one class were selected")
    return train_x, train_y, test_x, test_y


def _matrix(field: str, x) -> np.ndarray:
    cause = "embeddings still have a patch axis: take the class token or the mean"
    return check_finite(field, np.asarray(x), 2, "[N, D], one row a chip", cause).astype(np.float64)


def _check_width(train: np.ndarray, test: np.ndarray) -> None:
    if train.shape[1] != test.shape[1]:
        found, expected = f"{test.shape[1]} columns", f"{train.shape[1]}, as in training"
        raise ContractError("test features", found, expected, "two models or settings were mixed")


def _check_length(field: str, values: np.ndarray, n: int) -> None:
    if values.shape != (n,):
        cause = "labels and chips were selected or sorted separately"
        raise ContractError(field, f"shape {values.shape}", f"({n},)", cause)
