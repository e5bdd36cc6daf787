"""Audit of one's labels: leaks into the test set, likely wrong labels, calibration, and how many labels are enough.

    report = audit_labels(features, labels, groups=places, test=test)      # or evaluate(clay, chips).audit()
    report.sentences, report.wrong, report.figures()

All four use the linear probe of `probes` on frozen features [N, D]. groups [N]: places or scenes, never on both sides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from clay_lib.data.splits import split_by_blocks
from clay_lib.errors import ContractError
from clay_lib.evaluation import probes
from clay_lib.evaluation.intervals import codes, interval, resample

NEAR_DUPLICATE = 0.98  # cosine of standardized features from which two chips count as near-duplicates
FOLDS, BINS, CLOSE = 5, 10, 0.01  # folds of the predictions; bins of the reliability curve; one point of accuracy
SHARE = 0.3  # of the groups, to test on, where no test set is given


@dataclass(frozen=True, eq=False)
class Audit:
    """Four tables, a sentence on each, and figures."""

    duplicates: pd.DataFrame  # of each test chip: chip, train (its most similar training chip), cosine
    wrong: pd.DataFrame  # chip, label, suggestion, margin; the most likely wrong first
    calibration: pd.DataFrame  # of each bin of confidence: confidence, accuracy, count
    curve: pd.DataFrame  # of each number of labels: labels, score, low, high, cost, cost_low, cost_high
    sentences: Mapping[str, str]  # by the tables' names

    def figures(self) -> dict:
        from clay_lib.figures import charts

        drawn = {"duplicates": charts.highest_cosines(self.duplicates["cosine"].to_numpy(), NEAR_DUPLICATE)}
        if len(self.wrong):
            counts = pd.crosstab(self.wrong["label"], self.wrong["suggestion"])
            options = dict(names=[*map(str, counts.index)], columns=[*map(str, counts.columns)], form="{:.0f}")
            axes = dict(ylabel="label", xlabel="the probe's suggestion", label="chips")
            drawn["wrong"] = charts.matrix(counts.to_numpy(), title="Likely wrong labels", **options, **axes)
        bins, curve = self.calibration, self.curve
        drawn["calibration"] = charts.reliability(*(bins[c].to_numpy() for c in ("confidence", "accuracy", "count")))
        drawn["curve"] = charts.learning_curve(*(curve[c].to_numpy() for c in ("labels", "score", "low", "high")))
        return drawn

    def write(self, out: str | Path) -> None:
        """The tables as CSV and the figures as PNG in a folder; prints the sentences."""
        from clay_lib.figures.style import save

        for name, fig in self.figures().items():
            save(fig, Path(out) / f"{name}.png")
        for name, text in self.sentences.items():
            getattr(self, name).to_csv(Path(out) / f"{name}.csv", index=False)
            print(text)


def audit_labels(
    features: np.ndarray, labels, *, groups=None, test=None, seeds: int = 5, bootstraps: int = 1000
) -> Audit:
    """The four checks on features [N, D] with labels [N], a class a chip. test [N] bool: by default a share of groups."""
    labels, groups = np.asarray(labels), np.arange(len(labels)) if groups is None else np.asarray(groups)
    if not len(features) == len(labels) == len(groups):
        found = f"{len(features)} features, {len(labels)} labels, {len(groups)} groups"
        raise ContractError("labels", found, "one of each a chip", "chips were selected separately")
    if test is None:
        test = np.isin(np.arange(len(labels)), split_by_blocks(groups, (1 - SHARE, SHARE), 0)[1])
    test = np.asarray(test, bool) & np.isin(labels, labels[~np.asarray(test, bool)])
    strength = probes.choose_c(features[~test], labels[~test], groups=groups[~test])
    pairs, hits = near_duplicates(features, test), _hits(features, labels, ~test, test, strength)
    duplicate = pairs["cosine"].to_numpy() >= NEAR_DUPLICATE
    probabilities, classes = out_of_fold(features, labels, groups=groups, strength=strength)
    wrong = likely_wrong(probabilities, labels, classes)
    confidence, correct = probabilities.max(axis=1), classes[probabilities.argmax(axis=1)] == labels
    bins, error = calibration(confidence, correct)
    draws = np.random.default_rng(0).random((200, len(labels))) < confidence  # by a perfectly calibrated probe
    chance = np.quantile([calibration(confidence, draw)[1] for draw in draws], 0.95)
    curve = learning_curve(features, labels, groups, test, strength=strength, seeds=seeds, bootstraps=bootstraps)
    sentences = {
        "duplicates": f"{duplicate.sum()} of {len(pairs)} test chips have a near-duplicate in training (cosine at least "
        f"{NEAR_DUPLICATE}); the linear probe is right for {hits.mean():.1%} of all test chips"
        + (f" and {hits[~duplicate].mean():.1%} of those without." if 0 < duplicate.sum() < len(pairs) else "."),
        "wrong": f"{len(wrong)} of {len(labels)} labels ({len(wrong) / len(labels):.1%}) are likely wrong or ambiguous"
        + "".join(f"; chip {row.chip}: {row.label}, rather {row.suggestion}" for row in wrong[:3].itertuples()) + ".",
        "calibration": f"The expected calibration error is {error:.1%}; 95 % of perfectly calibrated probes show less "
        f"than {chance:.1%} on as many chips. The probe is "
        + ("calibrated." if error <= chance else "overconfident." if confidence.mean() > correct.mean() else "underconfident."),
        "curve": f"{curve[curve['cost'] < CLOSE]['labels'].iloc[0]} labels come within a point of all {(~test).sum()}"
        + "".join(f"; the last doubling gains {100 * row.cost:.1f} points ({100 * row.cost_low:.1f} to "
                  f"{100 * row.cost_high:.1f}): more labels {'still' if row.cost_low > 0 else 'may not'} help"
                  for row in curve[-2:-1].itertuples()) + ".",
    }  # fmt: skip
    return Audit(pairs, wrong, bins, curve, sentences)


def near_duplicates(features: np.ndarray, test: np.ndarray) -> pd.DataFrame:
    """Of each test chip its most similar training chip: chip, train, cosine of features standardized over training."""
    train, tested = probes.standardize(features[~test], features[test])
    distance, nearest = probes.nearest_neighbors(train, np.zeros(len(train)), k=1, metric="cosine").kneighbors(tested)
    rows = {"chip": np.flatnonzero(test), "train": np.flatnonzero(~test)[nearest[:, 0]]}
    return pd.DataFrame(rows | {"cosine": 1 - distance[:, 0]})


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, *, groups: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities [N, K], classes [K]) of the linear probe, fitted without the groups that it predicts."""
    classes, folds = np.unique(labels), min(FOLDS, len(np.unique(groups)))
    rarest = np.unique(labels, return_counts=True)[1].min()
    if folds < 2 or rarest < 2:
        found = f"{len(np.unique(groups))} groups, {rarest} chip(s) of the rarest class"
        raise ContractError("labels, groups", found, "at least 2 of each", "a class with one chip: leave it out")
    probabilities = np.zeros((len(labels), len(classes)))
    splitter = StratifiedGroupKFold(min(folds, max(2, rarest)), shuffle=True, random_state=0)
    for fit, held in splitter.split(features, labels, groups):
        train, tested = probes.standardize(features[fit], features[held])
        probe = probes.fit_linear(train, labels[fit], strength)
        probabilities[np.ix_(held, np.searchsorted(classes, probe.classes_))] = probe.predict_proba(tested)
    return probabilities, classes


def likely_wrong(probabilities: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> pd.DataFrame:
    """Labels that out-of-fold probabilities [N, K] contradict: chip, label, suggestion, margin, the most certain first.

    Confident learning (Northcutt et al. 2021, doi 10.1613/jair.1.12125): a chip surely is of a class if its probability
    reaches the mean over chips with that label. Of the sure chips labeled k, the share that surely are j tells how many
    chips labeled k are wrong; those with the largest margin, probability of j minus that of k, are taken.
    """
    own, K = np.searchsorted(classes, labels), len(classes)
    usual = np.array([probabilities[own == k, k].mean() for k in range(K)])
    sure = np.where(probabilities >= usual, probabilities, -1)
    known, joint = sure.max(axis=1) > 0, np.zeros((K, K))
    np.add.at(joint, (own[known], sure[known].argmax(axis=1)), 1)
    counts = joint / joint.sum(axis=1, keepdims=True).clip(1) * np.bincount(own, minlength=K)[:, None]
    parts = []
    for k, j in np.argwhere(counts >= 0.5):
        chips = np.flatnonzero((own == k) & (probabilities[:, j] > probabilities[:, k]))
        margin = probabilities[chips, j] - probabilities[chips, k]
        chosen = np.argsort(-margin, kind="stable")[: round(counts[k, j])]
        rows = {"chip": chips[chosen], "label": classes[k], "suggestion": classes[j], "margin": margin[chosen]}
        parts.append(pd.DataFrame(rows))
    table = pd.concat(parts).sort_values("margin", ascending=False, kind="stable")
    return table.drop_duplicates("chip").reset_index(drop=True)


def calibration(confidence: np.ndarray, correct: np.ndarray) -> tuple[pd.DataFrame, float]:
    """(bins with confidence, accuracy, count; expected calibration error), bins of equal width (Guo et al. 2017)."""
    table = pd.DataFrame({"bin": (confidence * BINS).astype(int).clip(0, BINS - 1), "confidence": confidence})
    table = table.assign(accuracy=np.asarray(correct, float), count=1).groupby("bin")
    table = table.agg({"confidence": "mean", "accuracy": "mean", "count": "sum"}).reset_index(drop=True)
    error = (table["count"] * (table["accuracy"] - table["confidence"]).abs()).sum() / len(confidence)
    return table, float(error)


def learning_curve(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, test: np.ndarray, *, strength: float,
    seeds: int = 5, bootstraps: int = 1000,
) -> pd.DataFrame:  # fmt: skip
    """Accuracy on test chips by the number of training labels, halved again and again: labels, score, low, high, cost.

    Complete groups are drawn, `seeds` times. cost, cost_low, cost_high: accuracy lost compared to all labels, on the
    same test groups. Regularization is as strong as with all labels.
    """
    train, least = np.flatnonzero(~test), 2 * len(np.unique(labels[~test]))
    places = groups[test] if len(np.unique(groups[test])) > 1 else np.arange(test.sum())  # one block: by chip
    group, place, drawn = np.tile(codes(places), seeds), codes(groups[train]), {}
    size = len(train)
    while size >= min(least, len(train)):
        hits = []
        for seed in range(seeds):
            rank = np.argsort(np.random.default_rng(seed).permutation(place.max() + 1))  # of each group in the draw
            kept = train[np.argsort(rank[place], kind="stable")[:size]]
            if len(np.unique(labels[kept])) < 2:
                break
            hits.append(_hits(features, labels, kept, test, strength))
        if len(hits) < seeds:
            break
        draw = np.repeat(np.arange(seeds), test.sum())
        drawn[size] = resample(np.concatenate(hits), group, draw=draw, bootstraps=bootstraps)
        size //= 2
    rows = []
    for size, scores in sorted(drawn.items()):
        score, cost = interval(scores), interval(drawn[len(train)] - scores)
        names = ("labels", "score", "low", "high", "cost", "cost_low", "cost_high")
        rows.append(dict(zip(names, (size, *score, *cost), strict=True)))
    return pd.DataFrame(rows)


def _hits(features: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, strength: float) -> np.ndarray:
    """[M] whether the linear probe of the training chips is right, for each test chip."""
    fitted, tested = probes.standardize(features[train], features[test])
    return probes.fit_linear(fitted, labels[train], strength).predict(tested) == labels[test]
