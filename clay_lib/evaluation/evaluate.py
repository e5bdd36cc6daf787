"""Evaluation: what frozen embeddings know of your labels, in one call and in a form that can be trusted.

    told = evaluate(clay, chips)                                                      # Chips know label, place, date
    told = evaluate(clay, pixels, labels, groups=farms, sensor="naip", bands=["red", "green", "blue"])
    told.table, told.lead, told.gap, told.figure()

Beside every score stand the floors (pixel statistics, random convolutions, the same architecture with random weights),
an interval, and the score of a random split. `groups` are what must not lie on both sides of the honest split: blocks
of land, scenes, farms. Every probe goes through several seeds, which draw splits, random weights, filters and shots.

labels [N]: one class a chip. labels [N, H, W]: a class a pixel, 0 unknown; then patches are told, not chips.
For several labels at a time, [N, K], see multilabel.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from einops import rearrange
from sklearn.neighbors import KNeighborsClassifier

from clay_lib.clay import Clay
from clay_lib.data.chips import Chips
from clay_lib.data.splits import random_split, spatial_blocks, split_by_blocks
from clay_lib.errors import ContractError
from clay_lib.evaluation import baselines, probes
from clay_lib.evaluation.intervals import codes, interval, of_groups, times
from clay_lib.evaluation.probes import FLOORS, KNN, PROBES, choose_c, fit_linear, standardise
from clay_lib.sensors import SENSORS

BLOCK = 6.0  # degrees of the blocks by which Chips are split
SHARE = 0.3  # of the chips, to test on
AGREE = 0.75  # share of a patch's pixels that must have its class
Sets = Mapping[str, Sequence[np.ndarray]]  # feature set -> versions [N, D]: one, or one a seed


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Answers chip by chip, and what they sum up to. Tables are tidy: one row per feature set, probe, split, shots."""

    answers: pd.DataFrame  # as probes.predict, with split and shots
    metric: str = "accuracy"
    bootstraps: int = 1000

    @cached_property
    def table(self) -> pd.DataFrame:
        """Scores with intervals: see `probes.score`. split: "blocks", "random" or "given"; shots: 0 for all chips."""
        return probes.score(self.answers, metric=self.metric, bootstraps=self.bootstraps)

    @cached_property
    def lead(self) -> pd.DataFrame:
        """Each model minus the best floor on the same chips: see `probes.difference`."""
        return probes.difference(self.answers, metric=self.metric, bootstraps=self.bootstraps)

    @cached_property
    def gap(self) -> pd.DataFrame:
        """How much the random split flatters: see `probes.gap`."""
        part = self.answers[self.answers["shots"] == 0]
        return probes.gap(part, metric=self.metric, bootstraps=self.bootstraps)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`table` with the lead beside it: floor, margin, margin_low, margin_high; empty for floors."""
        lead = self.lead.drop(columns=["n_test", "seeds"])
        lead = lead.rename(columns={"difference": "margin", "low": "margin_low", "high": "margin_high"})
        return self.table.merge(lead, on=[c for c in (*probes.CASES, "features") if c in lead], how="left")

    def figure(self, title: str = ""):
        """Scores of the honest split with intervals, beside those of the random split: see `charts.scores`."""
        from clay_lib.figures.charts import scores

        return scores(self.table[self.table["shots"] == 0], title=title)


def evaluate(
    clay: Clay,
    chips,
    labels=None,
    *,
    groups=None,
    test=None,
    layers: Sequence[int] = (),
    shots: Sequence[int] = (),
    which: Collection[str] = probes.PROBES,
    metric: str | None = None,
    seeds: int = 5,
    bootstraps: int = 1000,
    **about,
) -> Evaluation:
    """Probe frozen embeddings of chips, beside floors, over an honest and a random split.

    chips: Chips, or native numbers [N, C, H, W] with `about` as `Clay.embed` takes it (sensor, bands, when, gsd, ...).
    labels: [N] or [N, H, W], see above; of Chips by default the commonest land cover. groups: [N]; of Chips by
    default blocks of 6 x 6 degrees; None: every chip stands alone, and only the random split is made.
    test: [N] bool, a split that is given (then the only one). layers: further blocks of the encoder to read.
    shots: chips a class to train on, beside all of them: few-shot curves. which: the probes.
    metric: "accuracy" or "balanced"; by default balanced where the classes are not.
    """
    if isinstance(chips, Chips):
        labels = chips.land_cover if labels is None else labels
        groups = spatial_blocks(chips.lat, chips.lon, BLOCK) if groups is None else groups
        about = {"sensor": chips.sensor, **chips.place_and_time, **about}
        chips = chips.pixels
    labels = np.asarray(labels)
    if labels.ndim not in (1, 3) or len(labels) != len(chips):
        cause = "labels and chips were selected apart, or labels [N, K]: see multilabel.evaluate_labels"
        raise ContractError("labels", f"shape {labels.shape}", f"[{len(chips)}] or [N, H, W]", cause)
    if labels.ndim == 1:
        sets = describe(clay, chips, layers=layers, seeds=seeds, **about)
    else:
        P = clay.model.config.patch_size
        labels, place = patch_labels(labels, P)
        sets = describe_patches(clay, chips, place, layers=layers, seeds=seeds, **about)
        of = place // ((chips.shape[2] // P) * (chips.shape[3] // P))  # the chip of each patch: never on both sides
        groups = of if groups is None else np.asarray(groups)[of]
        test = None if test is None else np.asarray(test)[of]
    known = dict(groups=groups, test=test, shots=shots, which=which, metric=metric)
    return evaluate_features(sets, labels, **known, seeds=seeds, bootstraps=bootstraps)


def evaluate_features(
    sets: Sets,
    labels,
    *,
    groups=None,
    test=None,
    shots: Sequence[int] = (),
    which: Collection[str] = probes.PROBES,
    metric: str | None = None,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> Evaluation:
    """`evaluate` for features that are there already: {name: versions [N, D]}, of one model or of any.

    Sets whose names begin with "pixel" or "random" are floors. Chips of a class that training lacks are not asked.
    """
    labels = np.asarray(labels)
    if metric is None:
        counts = np.unique(labels, return_counts=True)[1]
        metric = "accuracy" if counts.max() <= 1.5 * counts.min() else "balanced"
    told = []
    for seed in range(seeds):
        for split, a, b, group in split_chips(len(labels), groups, test, seed):
            b = b[np.isin(labels[b], labels[a])]
            if not len(b) or len(np.unique(labels[a])) < 2:
                cause = "the blocks hold a class each: use smaller ones, or fewer seeds"
                raise ContractError("groups", "a split without chips to ask", "some", cause)
            for few, kept in _shots(labels[a], shots if split != "random" else (), seed):
                kept = a[kept]
                pairs = {name: (v[seed % len(v)][kept], v[seed % len(v)][b]) for name, v in sets.items()}
                asked = [p for p in which if few == 0 or p == "linear"] + ([probes.NEAREST] if few else [])
                own = dict(train_groups=None if few else group[kept], test_groups=group[b], which=asked, seed=seed)
                said = probes.predict(pairs, labels[kept], labels[b], **own)
                told.append(said.assign(split=split, shots=few, chip=b[said["chip"].to_numpy()]))
    return Evaluation(pd.concat(told, ignore_index=True), metric, bootstraps)


def split_chips(n: int, groups, test, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Name, training chips, test chips and the group of every chip [n], of each split that is to be made."""
    group, parts = np.arange(n) if groups is None else np.asarray(groups), (1 - SHARE, SHARE)
    if len(group) != n or (test is not None and np.shape(test) != (n,)):
        found = f"{len(group)} groups, test {np.shape(test)} for {n} chips"
        raise ContractError("groups, test", found, "one a chip", "chips were selected apart")
    if test is not None:
        yield "given", np.flatnonzero(~np.asarray(test, bool)), np.flatnonzero(test), group
        return
    if groups is not None:
        yield "blocks", *split_by_blocks(group, parts, seed), group
    yield "random", *random_split(n, parts, seed), group


def _shots(labels: np.ndarray, shots: Sequence[int], seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(0, all), then (k, k of each class), as far as every class has so many."""
    yield 0, np.arange(len(labels))
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    for k in shots:
        if k <= min(map(len, order)):
            yield k, np.concatenate([part[:k] for part in order])


# -- descriptions ----------------------------------------------------------------------------------------------------


def describe(clay: Clay, pixels, *, layers: Sequence[int] = (), seeds: int = 5, **about) -> dict[str, list[np.ndarray]]:
    """Feature sets of chips [N, C, H, W]: Clay's, its twins' with random weights (one a seed), and the pixels' own."""
    sets = {}
    for who, models in {"Clay": [clay], "random weights": _twins(clay, seeds)}.items():
        made = [embed_features(m, pixels, layers=layers, **about) for m in models]
        kinds = [k for k in made[0] if not k.startswith("patch spread")]
        sets |= {f"{who}, {kind}": [part[kind] for part in made] for kind in kinds}
        sets[f"{who}, both"] = [np.hstack([part["class token"], part["patch mean"]]) for part in made]
    return sets | _of_pixels(SENSORS[about["sensor"]].normalize(pixels, about.get("bands")), seeds)


def describe_patches(
    clay: Clay, pixels, place: np.ndarray, *, layers: Sequence[int] = (), seeds: int = 5, batch_size: int = 32, **about
) -> dict[str, list[np.ndarray]]:
    """Feature sets of patches: tokens in their chip, each patch embedded by itself, and its pixels' own.

    place: [M] which patches, counted through all chips, row by row.
    """
    P, sets = clay.model.config.patch_size, {}
    seen = SENSORS[about["sensor"]].normalize(pixels, about.get("bands"))
    h, w = (n // P for n in seen.shape[2:])

    def cut(x: np.ndarray) -> np.ndarray:
        x = x[:, :, : h * P, : w * P]
        return rearrange(x, "N C (h p) (w q) -> (N h w) C p q", p=P, q=P)[place]

    alone = about | {k: np.repeat(np.asarray(about[k]), h * w)[place] for k in PER_CHIP if np.ndim(about.get(k))}
    for who, models in {"Clay": [clay], "random weights": _twins(clay, seeds)}.items():
        for model in models:
            parts = [model.embed(p, layers=layers, **own) for p, own in _batches(pixels, batch_size, about)]
            found = {"patch token": [part.patches for part in parts]}
            found |= {f"patch token, layer {k}": [part.layers[k].patches for part in parts] for k in layers}
            own = {n: np.concatenate([t.flatten(0, 2).cpu().numpy() for t in ts])[place] for n, ts in found.items()}
            own["each patch by itself"] = embed_features(model, cut(np.asarray(pixels)), **alone)["class token"]
            for name, x in own.items():
                sets.setdefault(f"{who}, {name}", []).append(x)
    return sets | _of_pixels(cut(seen), seeds)


def embed_features(
    clay: Clay, pixels, *, layers: Sequence[int] = (), batch_size: int = 64, **about
) -> dict[str, np.ndarray]:
    """[N, C, H, W] -> {"class token", "patch mean", "patch spread" (standard deviation of valid patches)}: [N, D].

    For each of `layers` the same under "class token, layer 3". about: as `Clay.embed`; when, lat, lon may be one a chip.
    """
    made: dict[str, list[np.ndarray]] = {}
    for part, own in _batches(pixels, batch_size, about):
        out = clay.embed(part, layers=layers, **own)
        for end, e in {"": out, **{f", layer {k}": v for k, v in out.layers.items()}}.items():
            tokens = e.patches.flatten(1, 2).cpu().numpy()
            spread = np.nanstd(tokens, axis=1, ddof=1) if tokens.shape[1] > 1 else np.zeros_like(tokens[:, 0])
            for name, x in {"class token": e.chip, "patch mean": e.mean, "patch spread": spread}.items():
                made.setdefault(name + end, []).append(x if isinstance(x, np.ndarray) else x.cpu().numpy())
    return {name: np.concatenate(x) for name, x in made.items()}


def patch_labels(classes: np.ndarray, P: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes [N, H, W], 0 unknown -> labels [M] of patches of which AGREE of the pixels have one class, and which
    patches these are [M], counted through all chips, row by row."""
    h, w = (n // P for n in classes.shape[1:])
    cut = rearrange(classes[:, : h * P, : w * P], "N (h p) (w q) -> (N h w) (p q)", p=P, q=P)
    names, code = np.unique(cut, return_inverse=True)
    counts = np.stack([(code.reshape(cut.shape) == k).sum(1) for k in range(len(names))], axis=1)
    counts[:, names == 0] = 0
    place = np.flatnonzero(counts.max(1) >= AGREE * P * P)
    return names[counts.argmax(1)[place]], place


# -- inside ----------------------------------------------------------------------------------------------------------

PER_CHIP = ("when", "lat", "lon")


def _twins(clay: Clay, seeds: int) -> list[Clay]:
    return [Clay.random(clay.model.config, seed=k) for k in range(seeds)]


def _of_pixels(seen: np.ndarray, seeds: int) -> dict[str, list[np.ndarray]]:
    """seen: normalised; what was not measured becomes the band's mean, as for the model."""
    seen = np.nan_to_num(np.asarray(seen, np.float32), nan=0.0)
    return {
        "pixel statistics": [baselines.pixel_statistics(seen)],
        "random convolutions": [baselines.random_convolutions(seen, seed=k) for k in range(seeds)],
    }


def _batches(pixels, size: int, about: Mapping) -> Iterator[tuple[np.ndarray, dict]]:
    pixels = np.asarray(pixels)
    for i in range(0, len(pixels), size):
        own = {k: v[i : i + size] if k in PER_CHIP and np.ndim(v) else v for k, v in about.items()}
        yield pixels[i : i + size], own


MULTILABEL_METRICS = ("average precision", "F1")


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
                name: _resample_labels(own, part["group"].max() + 1, self.bootstraps)
                for name, own in part.groupby("label")
            }
            for k, metric in enumerate(MULTILABEL_METRICS):
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
    which: Collection[str] = PROBES,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> LabelEvaluation:
    """labels: [N, K] of 0 and 1, in the order of `names`. Splits, groups and seeds as in `evaluation.evaluate`.

    A label that all or none of the training chips have is not asked; nor is it where all or none of the test chips do.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        cause = "one class a chip: evaluation.evaluate takes these"
        raise ContractError("labels", f"{labels.dtype} {labels.shape}", "[N, K] of 0 and 1", cause)
    names, rows = [str(k) for k in range(labels.shape[1])] if names is None else list(names), []
    for seed in range(seeds):
        for split, a, b, group in split_chips(len(labels), groups, test, seed):
            asked = [k for k in range(len(names)) if all(0 < labels[part, k].mean() < 1 for part in (a, b))]
            for feature, versions in sets.items():
                x = versions[seed % len(versions)]
                train, check = standardise(x[a], x[b])
                kind = "floor" if feature.lower().startswith(FLOORS) else "model"
                for probe in which:
                    said = _say(probe, train, labels[a][:, asked], check, None if groups is None else group[a], seed)
                    for k, column in zip(asked, said.T, strict=True):
                        own = dict(features=feature, kind=kind, split=split, probe=probe, seed=seed, label=names[k])
                        told = dict(chip=b, group=group[b], truth=labels[b, k].astype(bool), said=column)
                        rows.append(pd.DataFrame(told).assign(**own))
    if not rows:
        cause = "labels that all chips have, or none"
        raise ContractError("labels", "none to ask", "a label that some chips have", cause)
    return LabelEvaluation(pd.concat(rows, ignore_index=True), bootstraps)


def _say(probe: str, train, labels, check, groups, seed: int) -> np.ndarray:
    """[M, K] from 0 to 1: how surely a test chip has each label."""
    if probe == "linear":
        chosen = [_choose_c(train, y, groups, seed) for y in labels.T]
        return np.stack(
            [fit_linear(train, y, c).predict_proba(check)[:, 1] for y, c in zip(labels.T, chosen, strict=True)],
            axis=1,
        )
    k, metric = KNN[probe]
    near = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(train, labels[:, 0])
    return labels[near.kneighbors(check, return_distance=False)].mean(axis=1)


def _choose_c(train, y, groups, seed: int) -> float:
    try:
        return choose_c(train, y, groups=groups, seed=seed)
    except ContractError:  # too few groups have the label to validate on
        return 1.0


def _resample_labels(part: pd.DataFrame, groups: int, bootstraps: int) -> np.ndarray:
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
