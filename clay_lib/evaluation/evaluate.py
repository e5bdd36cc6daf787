"""Evaluation of frozen embeddings on your labels: probes, baselines and intervals in one call.

    evaluation = evaluate(clay, chips)                                                # Chips have label, place, date
    evaluation = evaluate(clay, pixels, labels, groups=farms, sensor="naip", bands=["red", "green", "blue"])
    evaluation = evaluate(clay, class_folders("train", "naip"), test=class_folders("test", "naip"))   # by class name
    evaluation.table, evaluation.lead, evaluation.gap, evaluation.figure(), evaluation.audit()

Every score has an interval, and stands beside the scores of baselines (pixel statistics, random convolutions, the same
architecture with random weights) and of a random split. `groups` (blocks of land, scenes, farms) are never on both
sides of the spatial split. Every probe runs with several seeds, for splits, random weights, filters and shots.

labels [N]: one class a chip. labels [N, H, W]: a class a pixel, 0 unknown; then patches are classified, not chips.
For several labels a chip, [N, K], see `multilabel`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from einops import rearrange

from clay_lib.clay import BATCH, Clay
from clay_lib.data.chips import Chips
from clay_lib.data.labels import LabeledSet, whole_numbers
from clay_lib.data.splits import random_split, spatial_blocks, split_by_blocks
from clay_lib.errors import ContractError, warn
from clay_lib.evaluation import baselines, probes
from clay_lib.evaluation.audit import Audit, audit_labels
from clay_lib.sensors import SENSORS

BLOCK = 6.0  # degrees of the blocks by which Chips are split
SHARE = 0.3  # of the chips, to test on
AGREE = 0.75  # share of a patch's pixels that must have its class
PER_CHIP = ("when", "lat", "lon")  # metadata that may be one for all or one a chip
Sets = Mapping[str, Sequence[np.ndarray]]  # feature set -> versions [N, D]: one, or one a seed


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions by chip, and tables of scores with one row per feature set, probe, split and number of shots."""

    predictions: pd.DataFrame  # as probes.predict, with split and shots
    metric: str = "accuracy"
    bootstraps: int = 1000
    data: Mapping | None = None  # sets, labels, groups and test, as `evaluate_features` takes them

    @cached_property
    def table(self) -> pd.DataFrame:
        """Scores with intervals: see `probes.score`. split: "blocks", "random" or "given"; shots: 0 for all chips.

        shared: the share of test chips whose group, such as a place, has training chips too, which raises the score.
        """
        table = probes.score(self.predictions, metric=self.metric, bootstraps=self.bootstraps)
        if "shared" not in self.predictions:
            return table
        shared = self.predictions.groupby(["split", "shots"])["shared"].mean()
        return table.join(shared, on=["split", "shots"])

    @cached_property
    def lead(self) -> pd.DataFrame:
        """Each model minus the best baseline on the same chips: see `probes.difference`."""
        return probes.difference(self.predictions, metric=self.metric, bootstraps=self.bootstraps)

    @cached_property
    def gap(self) -> pd.DataFrame:
        """How far the random split overestimates: see `probes.gap`."""
        part = self.predictions[self.predictions["shots"] == 0]
        return probes.gap(part, metric=self.metric, bootstraps=self.bootstraps)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`table` with the lead beside it: baseline, margin, margin_low, margin_high; empty for baselines."""
        lead = self.lead.drop(columns=["n_test", "seeds"])
        lead = lead.rename(columns={"difference": "margin", "low": "margin_low", "high": "margin_high"})
        return self.table.merge(lead, on=[c for c in (*probes.CASES, "features") if c in lead], how="left")

    def figure(self, title: str = ""):
        """Scores of the spatial split with intervals, beside those of the random split: see `charts.scores`."""
        from clay_lib.figures.charts import scores

        return scores(self.table[self.table["shots"] == 0], title=title)

    def audit(self, features: str = "") -> Audit:
        """Audit of the labels with one feature set, by default the model's with the best linear probe: see audit.py."""
        own = self.table[
            (self.table["kind"] == "model") & (self.table["shots"] == 0) & (self.table["probe"] == "linear")
        ]
        name = features or own.loc[own["score"].idxmax(), "features"]
        split = {key: self.data[key] for key in ("groups", "test")}
        return audit_labels(self.data["sets"][name][0], self.data["labels"], **split, bootstraps=self.bootstraps)


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
    **metadata,
) -> Evaluation:
    """Probe frozen embeddings of chips, beside baselines, over a spatial and a random split.

    chips: Chips, or native values [N, C, H, W] with `metadata` as for `Clay.embed` (sensor, bands, when, gsd, ...); or
    a LabeledSet of classes, with its own labels and groups; test is then another one, matched by class names.
    labels: [N] or [N, H, W], see above; for Chips by default the commonest land cover. groups: [N]; for Chips by
    default blocks of 6 x 6 degrees; None: every chip is independent, and there is only the random split.
    test: [N] bool, or a LabeledSet: a given split (then the only one). layers: further blocks of the encoder to read.
    shots: numbers of training chips per class, beside all of them: few-shot curves. which: the probes.
    metric: "accuracy" or "balanced"; by default balanced where the classes are not.
    """
    if isinstance(chips, Chips):
        labels = chips.land_cover if labels is None else labels
        groups = spatial_blocks(chips.lat, chips.lon, BLOCK) if groups is None else groups
        metadata = {"sensor": chips.sensor, **chips.place_and_time, **metadata}
        chips = chips.pixels
    if isinstance(chips, LabeledSet):
        chips, labels, groups, test, own = _join(chips, test, groups)
        metadata = own | metadata
    labels = np.asarray(labels)
    if labels.ndim not in (1, 3) or len(labels) != len(chips):
        cause = "labels and chips were selected separately, or labels [N, K]: see multilabel"
        raise ContractError("labels", f"shape {labels.shape}", f"[{len(chips)}] or [N, H, W]", cause)
    _check_labels(labels)  # before the embedding, which takes long
    if labels.ndim == 1:
        sets = chip_features(clay, chips, layers=layers, seeds=seeds, **metadata)
    else:
        P = clay.model.config.patch_size
        labels, place = patch_labels(labels, P)
        sets = patch_features(clay, chips, place, layers=layers, seeds=seeds, **metadata)
        chip = place // ((chips.shape[2] // P) * (chips.shape[3] // P))  # of each patch: never on both sides
        groups = chip if groups is None else np.asarray(groups)[chip]
        test = None if test is None else np.asarray(test)[chip]
    split = dict(groups=groups, test=test, shots=shots, which=which, metric=metric)
    return evaluate_features(sets, labels, **split, seeds=seeds, bootstraps=bootstraps)


def _join(data: LabeledSet, test, groups) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None, dict]:
    """Pixels, labels, groups, test [N] and metadata of a set, or of two, whose classes are matched by name.

    Labels are names of classes [N]; those of pixels [N, H, W] are numbers from 1, 0 where unlabeled.
    """
    parts = [data]
    if isinstance(test, LabeledSet):
        parts.append(test.with_classes(data.classes))
        kinds = [(part.sensor.name, part.bands, part.task) for part in (test, data)]
        if kinds[0] != kinds[1] or not 0.8 <= test.gsd / data.gsd <= 1.25:
            found, expected = (f"{kind}, {part.gsd:.4g} m" for kind, part in zip(kinds, (test, data), strict=True))
            raise ContractError("test", found, f"{expected}, as in training", "a set of another kind")
        test = np.repeat([False, True], [len(part) for part in parts])
    if not data.classes:
        raise ContractError("chips", data.task, "classes", "labels that are values: heads.finetune learns them")
    samples = [part[i] for part in parts for i in range(len(part))]
    pixels, labels = np.stack([sample.pixels for sample in samples]), np.array([sample.label for sample in samples])
    labels = labels + 1 if data.dense else np.array([*data.classes, None], object)[labels]  # IGNORE, -1: None
    if groups is None and any(part.places["group"].duplicated().any() for part in parts):
        groups = np.array([f"{k} {group}" for k, part in enumerate(parts) for group in part.places["group"]])
    own = [part.metadata(np.arange(len(part))) for part in parts]
    per_chip = {key: [value for one in own for value in one[key]] for key in PER_CHIP}
    return pixels, labels, groups, test, own[0] | per_chip | {"sensor": data.sensor}


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
    """`evaluate` for precomputed features {name: versions [N, D]} of any model.

    Sets whose names begin with "pixel", "texture" or "random" are baselines. Test chips of a class without training
    chips are left out; if the split is given, a warning names the classes.
    """
    labels = np.asarray(labels)
    _check_labels(labels)
    if metric is None:
        counts = np.unique(labels, return_counts=True)[1]
        metric = "accuracy" if counts.max() <= 1.5 * counts.min() else "balanced"
    tables = []
    for seed in range(seeds):
        for split, train, tested, group in split_chips(len(labels), groups, test, seed):
            known = np.isin(labels[tested], labels[train])
            if split == "given" and seed == 0 and not known.all():
                lost = np.unique(labels[tested][~known]).tolist()
                warn(f"{(~known).sum()} of {len(tested)} test chips are left out: no training chip of class {lost}")
            tested = tested[known]
            if not len(tested) or len(np.unique(labels[train])) < 2:
                cause = "each block holds one class: use smaller blocks, or fewer seeds"
                raise ContractError("groups", "a split without test chips", "at least one", cause)
            for count, kept in _shots(labels[train], shots if split != "random" else (), seed):
                kept = train[kept]
                pairs = {name: (v[seed % len(v)][kept], v[seed % len(v)][tested]) for name, v in sets.items()}
                names = [p for p in which if count == 0 or p == "linear"] + ([probes.NEAREST_MEAN] if count else [])
                both = dict(train_groups=None if count else group[kept], test_groups=group[tested])
                table = probes.predict(pairs, labels[kept], labels[tested], **both, which=names, seed=seed)
                shared = np.isin(group[tested], group[kept])[table["chip"].to_numpy()]
                chip = tested[table["chip"].to_numpy()]
                tables.append(table.assign(split=split, shots=count, chip=chip, shared=shared))
    data = dict(sets=sets, labels=labels, groups=groups, test=test)
    return Evaluation(pd.concat(tables, ignore_index=True), metric, bootstraps, data)


def _check_labels(labels: np.ndarray) -> None:
    """ContractError unless every chip has a class and there are at least two classes."""
    missing = pd.isna(labels) | (labels == -1 if labels.dtype.kind in "if" else False)
    if missing.any():
        found = f"{missing.sum()} of {labels.size} without a class (NaN, None or -1)"
        cause = "unlabeled chips: leave them out, chips[known] and labels[known]; pixels without a class: 0"
        raise ContractError("labels", found, "a class for each", cause)
    if labels.dtype.kind == "f":
        whole_numbers(labels, "evaluate")
    if len(names := np.unique(labels)) < 2:
        cause = "a subset or a column with one class alone"
        raise ContractError("labels", f"one class, {names.tolist()}", "two classes or more", cause)


def split_chips(n: int, groups, test, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Name, training chips, test chips and the group of every chip [n], for each split."""
    group, parts = np.arange(n) if groups is None else np.asarray(groups), (1 - SHARE, SHARE)
    if len(group) != n or (test is not None and np.shape(test) != (n,)):
        found = f"{len(group)} groups, test {np.shape(test)} for {n} chips"
        raise ContractError("groups, test", found, "one a chip", "chips were selected separately")
    if test is not None:
        yield "given", np.flatnonzero(~np.asarray(test, bool)), np.flatnonzero(test), group
        return
    if groups is not None:
        yield "blocks", *split_by_blocks(group, parts, seed), group
    yield "random", *random_split(n, parts, seed), group


def _shots(labels: np.ndarray, shots: Sequence[int], seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(0, all), then (k, k of each class), for each k that every class has."""
    yield 0, np.arange(len(labels))
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    for k in shots:
        if k <= min(map(len, order)):
            yield k, np.concatenate([part[:k] for part in order])


def chip_features(
    clay: Clay, pixels, *, layers: Sequence[int] = (), seeds: int = 5, n_filters: int = 256, **metadata
) -> dict[str, list[np.ndarray]]:
    """Feature sets of chips [N, C, H, W]: Clay's, those of random weights (one a seed), and the pixel baselines."""
    sets = {}
    for owner, models in with_random_weights(clay, seeds).items():
        versions = [embed_features(m, pixels, layers=layers, **metadata) for m in models]
        kinds = [k for k in versions[0] if not k.startswith("patch spread")]
        sets |= {f"{owner}, {kind}": [v[kind] for v in versions] for kind in kinds}
        sets[f"{owner}, both"] = [np.hstack([v["class token"], v["patch mean"]]) for v in versions]
    return sets | _pixel_baselines(_normalize(pixels, metadata), seeds, n_filters)


def patch_features(
    clay: Clay, pixels, place: np.ndarray, *, layers: Sequence[int] = (), seeds: int = 5, **metadata
) -> dict[str, list[np.ndarray]]:
    """Feature sets of single patches: their tokens, each patch embedded by itself, and the pixel baselines.

    place: [M] which patches, counted through all chips, row by row.
    """
    P, sets = clay.model.config.patch_size, {}
    normalized = _normalize(pixels, metadata)
    h, w = (n // P for n in normalized.shape[2:])

    def cut(x: np.ndarray) -> np.ndarray:
        """[N, C, H, W] -> [M, C, P, P]."""
        return rearrange(x[:, :, : h * P, : w * P], "N C (h p) (w q) -> (N h w) C p q", p=P, q=P)[place]

    per_patch = {k: np.repeat(np.asarray(metadata[k]), h * w)[place] for k in PER_CHIP if np.ndim(metadata.get(k))}
    for owner, models in with_random_weights(clay, seeds).items():
        for model in models:
            out = model.embed(pixels, layers=layers, **metadata)
            tokens = {"patch token": out.patches} | {f"patch token, layer {k}": out.layers[k].patches for k in layers}
            flat = {name: t.flatten(0, 2).cpu().numpy()[place] for name, t in tokens.items()}
            alone = embed_features(model, cut(np.asarray(pixels)), **metadata | per_patch)
            for name, x in (flat | {"each patch by itself": alone["class token"]}).items():
                sets.setdefault(f"{owner}, {name}", []).append(x)
    return sets | _pixel_baselines(cut(normalized), seeds)


def embed_features(clay: Clay, pixels, *, layers: Sequence[int] = (), **metadata) -> dict[str, np.ndarray]:
    """[N, C, H, W] -> {"class token", "patch mean", "patch spread" (standard deviation of valid patches)}: [N, D] each.

    For each of `layers` the same as "class token, layer 3". metadata: as `Clay.embed` takes it; when, lat, lon may be
    one a chip.
    """
    pixels, parts = np.asarray(pixels), {}
    for i in range(0, len(pixels), BATCH):  # one after another, since patch tokens take far more memory than these
        own = {k: v[i : i + BATCH] if k in PER_CHIP and np.ndim(v) else v for k, v in metadata.items()}
        out = clay.embed(pixels[i : i + BATCH], layers=layers, **own)
        for suffix, e in {"": out, **{f", layer {k}": v for k, v in out.layers.items()}}.items():
            tokens = e.patches.flatten(1, 2).cpu().numpy()
            spread = np.nanstd(tokens, axis=1, ddof=1) if tokens.shape[1] > 1 else np.zeros_like(tokens[:, 0])
            features = {"class token": e.chip.cpu().numpy(), "patch mean": e.mean.cpu().numpy(), "patch spread": spread}
            for name, values in features.items():
                parts.setdefault(name + suffix, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def patch_labels(classes: np.ndarray, P: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes [N, H, W], 0 unknown -> labels [M] and places [M] of the patches with a dominant class.

    Dominant: at least AGREE of a patch's pixels have it. Places count patches through all chips, row by row.
    """
    h, w = (n // P for n in classes.shape[1:])
    patches = rearrange(classes[:, : h * P, : w * P], "N (h p) (w q) -> (N h w) (p q)", p=P, q=P)
    names, code = np.unique(patches, return_inverse=True)
    counts = np.stack([(code.reshape(patches.shape) == k).sum(1) for k in range(len(names))], axis=1)
    counts[:, names == 0] = 0
    place = np.flatnonzero(counts.max(1) >= AGREE * P * P)
    return names[counts.argmax(1)[place]], place


def with_random_weights(clay: Clay, seeds: int) -> dict[str, list[Clay]]:
    """The model, and its architecture with random weights for each seed, by the names that feature sets begin with."""
    return {"Clay": [clay], "random weights": [Clay.random(clay.model.config, seed=k) for k in range(seeds)]}


def _pixel_baselines(normalized: np.ndarray, seeds: int, n_filters: int = 256) -> dict[str, list[np.ndarray]]:
    """Pixel statistics and random convolutions; missing pixels become the band's mean, as for the model."""
    x = np.nan_to_num(np.asarray(normalized, np.float32), nan=0.0)
    convolutions = [baselines.random_convolutions(x, n_filters=n_filters, seed=k) for k in range(seeds)]
    return {"pixel statistics": [baselines.pixel_statistics(x)], "random convolutions": convolutions}


def _normalize(pixels, metadata: Mapping) -> np.ndarray:
    in_decibel = bool(metadata.get("in_decibel"))
    return SENSORS.resolve(metadata["sensor"]).normalize(pixels, metadata.get("bands"), in_decibel=in_decibel)
