"""Probes: what frozen features know, told by the simplest classifiers, beside floors that know nothing.

A score alone says little: a linear probe on the mean colour of a chip already tells water from forest. So every
feature set, floor or model, goes through one preparation (`standardise`) and the same three probes, and the answer to
"is the model worth it?" is `difference`: model minus best floor, on the same resampled chips, over a spatial split.

Scores are plain accuracy. Hand in class-balanced sets, where it equals balanced accuracy and chance is 1 / classes;
on unbalanced ones a probe that always says the commonest class looks good.

    table = probe({"pixel statistics": (a, b), "Clay, class token": (c, d)}, train_y, test_y, train_groups=blocks)

Arrays in, scores out: N chips, D features, C bands, H x W pixels, F filters.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits
from torch.nn import functional

from clay_lib.contract import ContractError

KNN = {"kNN-5": (5, "euclidean"), "kNN-20 cosine": (20, "cosine")}  # name -> (k, metric)
FLOORS = ("pixel", "random")  # a feature set whose name starts so is a floor, unless the caller names the floors
C_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse strengths: wide, so that 6 and 1024 features both find theirs
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
    return float(_logistic(train_x, train_y, c).score(test_x, test_y))


def choose_c(train_x, train_y, *, groups=None, seed: int = 0) -> float:
    """The C of `C_GRID` that is best on a quarter of the training groups, fitted on the rest; a tie takes the smaller.

    No group lies on both sides: neighbours in the validation part would make a weak C look safe.
    """
    train_x, train_y = _matrix("train features", train_x), np.asarray(train_y)
    _same_length("train labels", train_y, len(train_x))
    groups = np.arange(len(train_y)) if groups is None else np.asarray(groups)
    _same_length("train_groups", groups, len(train_y))
    counts = np.unique(train_y, return_counts=True)[1]
    folds = min(VALIDATION_FOLDS, len(np.unique(groups)), counts.max())
    if folds < 2:
        found = f"{len(np.unique(groups))} group(s), {counts.max()} chip(s) in the commonest class"
        cause = "all training chips share one block: use smaller blocks, or groups=None"
        raise ContractError("train_groups", found=found, expected="at least 2 of each, to validate on", cause=cause)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class rarer than the folds: it is then absent from some
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        fit, check = next(splitter.split(train_x, train_y, groups))
    if len(np.unique(train_y[fit])) < 2:
        cause = "groups and classes coincide: each group holds one class only"
        found = "one class outside the validation part"
        raise ContractError("train_groups", found=found, expected="at least two", cause=cause)
    scores = [_logistic(train_x[fit], train_y[fit], c).score(train_x[check], train_y[check]) for c in C_GRID]
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

    Columns: features, kind ("floor" | "model"), probe ("kNN-5" | "kNN-20 cosine" | "linear"), score, low, high,
    n_train, n_test, dim, seed. low, high: percentile bootstrap, 95 %, over test groups or chips. It knows the luck of
    the test set, not that of training or of the split; without test_groups it is too narrow where chips are neighbours.
    Raises ContractError for lengths that differ, NaN, a test class without training chips, fewer chips than k.
    """
    groups = dict(train_groups=train_groups, test_groups=test_groups)
    answers = predict(features, train_y, test_y, **groups, floors=floors, seed=seed)
    return score(answers, bootstraps=bootstraps)


def predict(
    features, train_y, test_y, *, train_groups=None, test_groups=None, floors=None, seed: int = 0
) -> pd.DataFrame:
    """`probe` before it is summed up: one row per feature set, probe and test chip, for confusion tables and pairs.

    Columns: features, kind, probe, chip (0..M-1), group, label, answer, C (linear only), n_train, dim, seed.
    """
    kinds = _kinds(features, floors)
    test_groups = np.arange(len(test_y)) if test_groups is None else np.asarray(test_groups)
    _same_length("test_groups", test_groups, len(test_y))
    frames = []
    for name, (train_x, test_x) in features.items():
        train_x, train, test_x, test = _labelled(train_x, train_y, test_x, test_y, name=name)
        dim = train_x.shape[1]
        train_x, test_x = standardise(train_x, test_x)
        said = {p: (_knn(train_x, train, test_x, k=k, metric=metric), np.nan) for p, (k, metric) in KNN.items()}
        c = choose_c(train_x, train, groups=train_groups, seed=seed)
        said["linear"] = _logistic(train_x, train, c).predict(test_x), c
        for p, (answer, c) in said.items():
            told = pd.DataFrame({"chip": np.arange(len(test)), "group": test_groups, "label": test, "answer": answer})
            known = dict(features=name, kind=kinds[name], probe=p, C=c, n_train=len(train), dim=dim, seed=seed)
            frames.append(told.assign(**known))
    return pd.concat(frames, ignore_index=True)


def score(answers: pd.DataFrame, *, bootstraps: int = 1000) -> pd.DataFrame:
    """The table of `probe` from the answers of `predict`."""
    rows = []
    for (name, kind, p), part in answers.groupby(["features", "kind", "probe"], sort=False):
        hit, seed = _hits(part), int(part["seed"].iloc[0])
        low, high = _interval(hit, bootstraps, seed, part["group"])
        row = {"features": name, "kind": kind, "probe": p, "score": hit.mean(), "low": low, "high": high}
        n_train, dim = part[["n_train", "dim"]].iloc[0].tolist()
        rows.append({**row, "n_train": n_train, "n_test": len(hit), "dim": dim, "seed": seed})
    return pd.DataFrame(rows)


def difference(answers: pd.DataFrame, *, bootstraps: int = 1000) -> pd.DataFrame:
    """Each model minus the best floor of the same probe, from the answers of `predict`: one row per model and probe.

    Columns: features, floor, probe, difference, low, high, n_test, seed. Both are scored on the same resampled chips,
    so what is hard for both cancels. The floor is the best one on the test set: luck is on the floor's side.
    """
    for kind in ("floor", "model"):
        if not (answers["kind"] == kind).any():
            cause = f"floors=[...] was not given: then names that start with {' or '.join(FLOORS)} are floors"
            found = f"no {kind} among {sorted(set(answers['features']))}"
            raise ContractError("answers", found=found, expected="at least one floor and one model", cause=cause)
    rows = []
    for p, part in answers.groupby("probe", sort=False):
        hits = {key: _hits(rows_) for key, rows_ in part.groupby(["kind", "features"], sort=False)}
        floor = max((key for key in hits if key[0] == "floor"), key=lambda key: hits[key].mean())
        seed = int(part["seed"].iloc[0])
        for key in (key for key in hits if key[0] == "model"):
            gain = hits[key] - hits[floor]
            low, high = _interval(gain, bootstraps, seed, part["group"].iloc[: len(gain)])
            row = {"features": key[1], "floor": floor[1], "probe": p, "difference": gain.mean()}
            rows.append({**row, "low": low, "high": high, "n_test": len(gain), "seed": seed})
    return pd.DataFrame(rows)


# -- floors ----------------------------------------------------------------------------------------------------------


def pixel_statistics(pixels: np.ndarray) -> np.ndarray:
    """Mean, then standard deviation, of each band: [N, C, H, W] -> [N, 2C]. Colour and contrast, no shape."""
    pixels = _pixels(pixels).astype(np.float64)
    return np.concatenate([pixels.mean((2, 3)), pixels.std((2, 3))], axis=1)


def random_convolutions(pixels: np.ndarray, *, n_filters: int = 256, seed: int = 0) -> np.ndarray:
    """Texture that nobody learned: [N, C, H, W] normalised pixels -> [N, F], F = 2 * n_filters.

    Half of the filters are 3 x 3, half 5 x 5, over all bands; weights N(0, 1), scaled to unit norm; ReLU; then mean
    and maximum over the chip, without padding. A filter keeps its mean, so that it sees colour beside texture: with
    centred filters this floor is much lower. The idea is MOSAIKS (Rolf et al. 2021, Nature Communications 12:4392,
    doi 10.1038/s41467-021-24638-z), whose filters are patches of the images themselves.
    Normalise with the sensor's statistics or the training set's, never with each chip's own.
    """
    pixels = _pixels(pixels)
    n, bands, height, width = pixels.shape
    if n_filters < 2 or min(height, width) < 5:
        found, expected = f"n_filters={n_filters}, chips of {height} x {width}", "n_filters >= 2, 5 x 5 pixels or more"
        cause = "chips too small for a 5 x 5 filter, or another order than [N, C, H, W]"
        raise ContractError("random_convolutions", found=found, expected=expected, cause=cause)
    generator = torch.Generator().manual_seed(seed)
    banks = [_filters(n_filters - n_filters // 2, bands, 3, generator), _filters(n_filters // 2, bands, 5, generator)]
    step = max(1, 2**24 // (n_filters * height * width))  # 64 MiB of responses at a time
    rows = []
    for start in range(0, n, step):
        chips = torch.from_numpy(pixels[start : start + step])
        seen = [functional.relu(functional.conv2d(chips, bank)) for bank in banks]
        rows.append(torch.cat([s.mean((2, 3)) for s in seen] + [s.amax((2, 3)) for s in seen], dim=1))
    return torch.cat(rows).numpy()


def _filters(count: int, bands: int, size: int, generator: torch.Generator) -> torch.Tensor:
    weights = torch.randn(count, bands, size, size, generator=generator)
    return functional.normalize(weights.flatten(1)).view_as(weights)


# -- inside ----------------------------------------------------------------------------------------------------------


def _knn(train_x, train_y, test_x, *, k: int, metric: str) -> np.ndarray:
    if metric not in ("euclidean", "cosine"):
        raise ContractError("metric", found=metric, expected="'euclidean' or 'cosine'", cause="another name for it")
    if not 1 <= k <= len(train_y):
        found, cause = f"k = {k} with {len(train_y)} training chips", "the training set is too small for this probe"
        raise ContractError("k", found=found, expected="1 <= k <= training chips", cause=cause)
    return KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(train_x, train_y).predict(test_x)


def _logistic(x, y, c: float) -> LogisticRegression:
    # one thread: on matrices this small a second one only waits, and takes five times as long over it
    with warnings.catch_warnings(), threadpool_limits(1):
        # a weak C on separable features never settles; what it has after these steps is what validation judges
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, solver="lbfgs", max_iter=500).fit(x, y)


def _hits(part: pd.DataFrame) -> np.ndarray:
    return (part["label"] == part["answer"]).to_numpy(np.float64)


def _interval(values: np.ndarray, bootstraps: int, seed: int, groups=None) -> tuple[float, float]:
    """95 % percentile interval of the mean of values [M], whole groups [M] drawn at a time.

    The same seed and groups draw the same chips: pairs stay pairs.
    """
    member = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total, size = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(0, len(size), (bootstraps, len(size)))
    means = total[drawn].sum(1) / size[drawn].sum(1)
    return tuple(float(q) for q in np.quantile(means, (0.025, 0.975)))


def _kinds(features: Mapping, floors: Collection[str] | None) -> dict[str, str]:
    if floors is None:
        return {name: "floor" if name.lower().startswith(FLOORS) else "model" for name in features}
    if unknown := sorted(set(floors) - set(features)):
        expected = f"names among {sorted(features)}"
        raise ContractError("floors", found=unknown, expected=expected, cause="a name is misspelt")
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
        raise ContractError("train labels", found=found, expected="every class of the test set", cause=cause)
    if len(set(train_y.tolist())) < 2:
        cause = "the labels of one class were selected"
        raise ContractError("train labels", found="one class", expected="at least two", cause=cause)
    return train_x, train_y, test_x, test_y


def _matrix(field: str, x) -> np.ndarray:
    cause = "embeddings still have a patch axis: take the class token or the mean"
    return _finite(field, np.asarray(x), 2, "[N, D], one row a chip", cause).astype(np.float64)


def _pixels(pixels) -> np.ndarray:
    pixels = _finite("pixels", np.asarray(pixels), 4, "[N, C, H, W]", "one chip without its batch axis")
    return np.ascontiguousarray(pixels, np.float32)


def _finite(field: str, x: np.ndarray, axes: int, shape: str, cause: str) -> np.ndarray:
    if x.ndim != axes or 0 in x.shape or not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
        expected = f"numbers {shape}, none of them 0 long"
        raise ContractError(field, found=f"shape {x.shape}, {x.dtype}", expected=expected, cause=cause)
    if not np.isfinite(x).all():
        bad = np.unique(np.nonzero(~np.isfinite(x))[0])
        found = f"NaN or infinity in {len(bad)} of {len(x)} chips, first {bad[0]}"
        cause = "nodata pixels were left in: fill or drop them"
        raise ContractError(field, found=found, expected="finite numbers", cause=cause)
    return x


def _same_width(train: np.ndarray, test: np.ndarray) -> None:
    if train.shape[1] != test.shape[1]:
        found, expected = f"{test.shape[1]} columns", f"{train.shape[1]}, as in training"
        raise ContractError("test features", found=found, expected=expected, cause="two models or settings were mixed")


def _same_length(field: str, values: np.ndarray, n: int) -> None:
    if values.shape != (n,):
        cause = "labels and chips were selected or sorted apart"
        raise ContractError(field, found=f"shape {values.shape}", expected=f"({n},)", cause=cause)
