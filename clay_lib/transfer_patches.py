"""Transfer to single patches: land cover of patches of 8 x 8 pixels of real rasters, by a linear probe.

Rasters are cut into windows of 7 x 7 patches and each is embedded by itself, so that no token has seen another window.
Two splits are told apart: "rasters", each answered by a probe trained on the others (another land, another season),
and "windows", a random half of all windows answered by the other half (the same land).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from einops import rearrange

from clay_lib import probes
from clay_lib.contract import ContractError
from clay_lib.intervals import interval, of_groups
from clay_lib.model import Clay
from clay_lib.sensors import SENSORS

AGREE = 0.75  # share of a patch's pixels that must have its class
PATCHES_A_CLASS = 100  # to train on
WINDOW = 7  # patches a side
SPLITS = ("rasters", "windows")


@dataclass(frozen=True)
class Patches:
    """N patches of sure class out of M windows of all rasters."""

    raster: np.ndarray  # [N] names
    label: np.ndarray  # [N] class numbers
    place: np.ndarray  # [N] which token, counted through all windows
    pixels: np.ndarray  # [N, C, P, P]
    windows: np.ndarray  # [M, C, H, W]

    @property
    def window(self) -> np.ndarray:
        """[N] the window of each patch."""
        return self.place // WINDOW**2


def read_rasters(
    rasters, labels, raster_bands: Sequence[int] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of files of the same name -> {name: (pixels [C, H, W], classes [H, W])}."""
    import rasterio

    names = sorted({p.name for p in Path(rasters).glob("*.tif*")} & {p.name for p in Path(labels).glob("*.tif*")})
    if len(names) < 2:
        cause = "files under other names, or one raster: then none can be left out"
        raise ContractError("rasters", found=f"{len(names)} pair(s)", expected="at least 2", cause=cause)
    pairs = {}
    for name in names:
        with rasterio.open(Path(rasters) / name) as a, rasterio.open(Path(labels) / name) as b:
            pairs[Path(name).stem] = a.read(list(raster_bands) if raster_bands else None), b.read(1)
        pixels, classes = pairs[Path(name).stem]
        if pixels.shape[1:] != classes.shape:
            cause = "labels of another grid: resample them first"
            raise ContractError("labels", found=f"{name}: {classes.shape}", expected=pixels.shape[1:], cause=cause)
    return pairs


def probe_patches(
    clay: Clay,
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    sensor: str = "sentinel-2-l2a",
    bands: Sequence[str] | None = None,
    gsd: float | None = None,
    seeds: int = 5,
    bootstraps: int = 1000,
) -> pd.DataFrame:
    """Patches of which AGREE of the pixels have one class, not 0; classes that the training part lacks are not asked.

    score: balanced accuracy, the mean of each class's share of right answers, averaged over rasters, and over seeds,
    which draw the training patches, the halves and the random weights and filters. Intervals: windows drawn anew.
    Rows: split, features, kind, score, low, high, each raster's score, and the lead over the best floor
    and over the pixel statistics.
    """
    P = clay.model.config.patch_size
    about = dict(sensor=sensor, bands=bands, gsd=gsd, check=False)
    parts = cut_patches(pairs, P)
    own = {"Clay": [clay], "random weights": [Clay.random(clay.model.config, seed=k) for k in range(seeds)]}
    sets: dict[str, list[np.ndarray]] = {}
    for who, models in own.items():
        sets[f"{who}, patch tokens"] = [_tokens(m, parts, about) for m in models]
        sets[f"{who}, each patch by itself"] = [_alone(m, parts.pixels, about) for m in models]
    seen = SENSORS[sensor].normalise(parts.pixels, bands)
    sets["pixel statistics"] = [probes.pixel_statistics(seen)]
    sets["random convolutions"] = [probes.random_convolutions(seen, seed=k) for k in range(seeds)]
    rows = []
    for split in SPLITS:
        answers = [
            told.assign(features=name)
            for seed in range(seeds)
            for train, test in _splits(parts, split, seed)
            for name, versions in sets.items()
            for told in [_answers(versions[seed % len(versions)], parts, train, test, seed)]
        ]
        rows.append(_balanced(pd.concat(answers, ignore_index=True), bootstraps).assign(split=split))
    table = pd.concat(rows, ignore_index=True)
    return table[["split", *(c for c in table if c != "split")]]


def cut_patches(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], P: int) -> Patches:
    """The patches of sure class, and the windows they lie in."""
    side, found, windows, first = P * WINDOW, [], [], 0
    for name, (pixels, classes) in pairs.items():
        rows, columns = (n // side * side for n in classes.shape)
        cut = rearrange(pixels[:, :rows, :columns], "C (h a) (w b) -> (h w) C a b", a=side, b=side)
        inside = rearrange(classes[:rows, :columns], "(h a p) (w b q) -> (h w a b) (p q)", a=WINDOW, b=WINDOW, p=P, q=P)
        single = rearrange(cut, "n C (a p) (b q) -> (n a b) C p q", p=P, q=P)
        counts = np.stack([np.bincount(patch, minlength=256) for patch in inside])
        counts[:, 0] = 0
        sure = np.flatnonzero(counts.max(1) >= AGREE * P * P)
        place = first * WINDOW**2 + sure
        found.append((np.full(len(sure), name), counts.argmax(1)[sure], place, single[sure]))
        windows.append(cut)
        first += len(cut)
    return Patches(*(np.concatenate(column) for column in zip(*found, strict=True)), np.concatenate(windows))


def _tokens(clay: Clay, parts: Patches, about: Mapping) -> np.ndarray:
    made = [clay.embed(parts.windows[i : i + 16], **about).patches for i in range(0, len(parts.windows), 16)]
    return np.concatenate([tokens.flatten(0, 2).cpu().numpy() for tokens in made])[parts.place]


def _alone(clay: Clay, patches: np.ndarray, about: Mapping) -> np.ndarray:
    return np.concatenate([clay.embed(patches[i : i + 512], **about).chip for i in range(0, len(patches), 512)])


def _splits(parts: Patches, split: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Boolean masks of training and test patches; every patch is tested once."""
    if split == "rasters":
        for name in np.unique(parts.raster):
            yield parts.raster != name, parts.raster == name
    else:
        half = np.random.default_rng(seed).permutation(len(parts.windows)) % 2 == 0
        for train in (half[parts.window], ~half[parts.window]):
            yield train, ~train


def _answers(x: np.ndarray, parts: Patches, train: np.ndarray, test: np.ndarray, seed: int) -> pd.DataFrame:
    """One row a test patch whose class is known from training: raster, window, label, answer."""
    rng, y = np.random.default_rng(seed), parts.label
    drawn = [rng.permutation(np.flatnonzero(train & (y == c)))[:PATCHES_A_CLASS] for c in np.unique(y[train])]
    kept, asked = np.concatenate(drawn), np.flatnonzero(test & np.isin(y, y[train]))
    a, b = probes.standardise(x[kept], x[asked])
    c = probes.choose_c(a, y[kept], groups=parts.window[kept], seed=seed)
    answer = probes.fit_linear(a, y[kept], c).predict(b)
    table = {"raster": parts.raster[asked], "window": parts.window[asked], "label": y[asked], "answer": answer}
    return pd.DataFrame(table)


def _balanced(answers: pd.DataFrame, bootstraps: int) -> pd.DataFrame:
    """Balanced accuracies with intervals, of each feature set and of its lead over the best floor."""
    answers = answers.assign(hit=answers["label"] == answers["answer"])
    rng, names = np.random.default_rng(0), list(answers["features"].unique())
    scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}  # name -> raster -> [1 + bootstraps]
    for raster, part in answers.groupby("raster"):
        windows = np.unique(part["window"])
        even = np.full(len(windows), 1 / len(windows))
        # How often each window counts: all of them once, then as drawn, the same for every feature set.
        times = np.vstack([np.ones(len(windows)), rng.multinomial(len(windows), even, bootstraps)])
        for name, own in part.groupby("features"):
            per = own.pivot_table(index="window", columns="label", values="hit", aggfunc=["sum", "count"], fill_value=0)
            hits, count = (times @ per[k].reindex(windows, fill_value=0).to_numpy(float) for k in ("sum", "count"))
            recall = np.where(count > 0, hits / np.maximum(count, 1), np.nan)
            scores[name][raster] = of_groups(np.nanmean(recall, axis=1), len(windows))
    mean = {name: np.mean(list(of.values()), axis=0) for name, of in scores.items()}
    floors = [name for name in names if name.startswith(probes.FLOORS)]
    best = max(floors, key=lambda name: mean[name][0])
    pixels = next((name for name in floors if name.startswith("pixel")), best)
    lines = []
    for name in names:
        value, low, high = interval(mean[name])
        kind = "floor" if name in floors else "model"
        line = {"features": name, "kind": kind, "score": value, "low": low, "high": high}
        line |= {raster: values[0] for raster, values in scores[name].items()}
        if kind == "model":
            for what, floor in (("margin", best), ("over_pixels", pixels)):
                lead, low, high = interval(mean[name] - mean[floor])
                line |= {what: lead, f"{what}_low": low, f"{what}_high": high}
            line["floor"] = best
        lines.append(line)
    return pd.DataFrame(lines)
