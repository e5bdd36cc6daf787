# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 Linear probes
#
# > **Are embeddings better than simple pixel statistics?**
#
# You will see
# - the trained Clay beside hand-crafted and untrained baselines, all scored by the same three simple classifiers,
# - the difference to the best baseline with its confidence interval, whichever way it falls,
# - by how much a random split overstates scores, and which classes are confused,
# - an audit of the labels: near-duplicates, likely wrong ones, calibration, how many are enough.
#
# ![Where this notebook stands: probes](flow/07_probe_embeddings.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [06 Embeddings](06_see_embeddings.ipynb); the small weights of this repository, or your own from [04 Training](04_train_clay.ipynb) | 1.1 on two cores | chips of the synthetic Earth, computed here and kept in `data/cache` |

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from clay_lib import SENSORS, Clay, data, figures, runs, world
from clay_lib.clay import cosine_initialized, embed_chips
from clay_lib.course import checks
from clay_lib.evaluation import audit_labels, baselines, probes
from clay_lib.teacher import teacher_view

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth, the random baselines and every resampling
out: str = ""  # folder for results; empty: papermill_runs/lab/07_probe_embeddings
weights: str = "clay-mini"  # the small weights of this repository; or a path; or what 04 saved: notebook_04.safetensors
sensor: str = "sentinel-2-l2a"
chips: int = 660  # to train the probes
test_chips: int = 330  # on land that neither Clay nor the probes have seen
chip_size: int = 64  # pixels a side, a multiple of 8 from 64 on
dates: int = 2  # of every place
draws: int = 5  # repetitions of random and spatial splits
bootstraps: int = 1000  # resamplings of every interval

# %% [markdown]
# ## The chips
#
# The class of a chip is its most common land cover. Classes alternate, so always giving the same answer is right one
# time in eleven: that is chance. Training and test places come from different blocks of the world, three by six degrees
# each, and keep 50 km from the border of their block. No test chip has a neighbor in training.
#
# > **On a laptop.** Land cover of the synthetic Earth stands in for labels of real images, and clay-mini for the
# > released weights. The method is the same, the numbers are not.

# %%
out_dir = runs.output_folder(out, "07_probe_embeddings")
kwargs = dict(size=chip_size, seed=seed, dates=dates)
train = data.world_chips(sensor, chips, split="train", **kwargs)
test = data.world_chips(sensor, test_chips, split="test", **kwargs)
train_y, test_y = train.land_cover, test.land_cover
codes, counts = np.unique(test_y, return_counts=True)
names = [world.CLASSES[code] for code in codes]
chance = 1 / len(codes)
print(f"train {train.pixels.shape}, test {test.pixels.shape}; at least {counts.min()} test chips of a class")
print(f"chance: {chance:.1%}")

# %%
first = [int(np.flatnonzero(train_y == code)[0]) for code in codes]
thumbnails = [figures.rgb(train.pixels[i], sensor) for i in first]
title = "One training chip of each class"
fig = figures.show_row(thumbnails, names, gsd=SENSORS[sensor].gsd, columns=6, size=1.8, title=title)

# %%
lat, lon = np.arange(-60, 80.1, 1.5)[::-1], np.arange(-180, 180, 1.5)
sea = world.MiniWorld(seed).land_cover(*np.meshgrid(lat, lon, indexing="ij")) == 80
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.6, 3.6))
    ax.imshow(np.where(sea, 0.93, 0.80), extent=(-180, 180, -60.75, 80.25), cmap="gray", vmin=0, vmax=1)
    for name, part, color, marker in (
        ("train", train, figures.PALETTE[0], "o"),
        ("test", test, figures.PALETTE[1], "^"),
    ):
        place = np.unique(np.stack([part.lon, part.lat]), axis=1)
        ax.scatter(*place, s=14, marker=marker, color=color, lw=0, label=f"{name}, {place.shape[1]} places")
    ax.set(title="Places for training and testing (land is darker)", xlabel="longitude (°)", ylabel="latitude (°)")
    fig.legend(loc="outside upper right", ncols=2, markerscale=2)
_ = figures.save(fig, out_dir / "1_places.png")


# %%
def on_globe(part):
    """[N, 3] unit vectors."""
    a, b = np.radians(part.lat), np.radians(part.lon)
    return np.stack([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)], axis=1)


nearest = 6371 * np.arccos(np.clip(on_globe(train) @ on_globe(test).T, -1, 1)).min()
extent = chip_size * SENSORS[sensor].gsd / 1000
assert nearest > 2 * extent, "train and test chips do not touch"
print(f"a chip is {extent:.2f} km wide; the nearest train and test places lie {nearest:.0f} km apart")

# %% [markdown]
# ## What is compared
#
# A score means little without the score of something simple. The **baselines** have learned nothing from data: mean and
# standard deviation of each band; the texture statistics that were the teacher of the small weights; random
# convolutions, a surprisingly good description of texture (Rolf et al., 2021, as in torchgeo's RCF); Clay's
# architecture with random weights; and the same with cosine-initialized kernels, as training starts in 04. The trained
# Clay enters with its class token, the mean of its patch tokens, and both together.
#
# Clay also receives place and date, which the pixel baselines do not. Latitude alone says something about snow or
# mangroves, so one more entry embeds without place and date.

# %%
clay = Clay.load(weights)
untrained = {
    "random weights": Clay.random(clay.model.config, seed=seed),
    "random, cosine kernels": cosine_initialized(clay.model.config, seed),
}
embedded = {name: [embed_chips(model, part) for part in (train, test)] for name, model in untrained.items()}
embedded["Clay"] = [embed_chips(clay, part) for part in (train, test)]
no_place = [
    replace(part, lat=part.lat * np.nan, lon=part.lon * np.nan, when=np.full(len(part), "")) for part in (train, test)
]
embedded["Clay, no place or date"] = [embed_chips(clay, part) for part in no_place]
normalized = [SENSORS[sensor].normalize(part.pixels) for part in (train, test)]
rgb = [teacher_view(torch.from_numpy(x).float(), SENSORS[sensor]) for x in normalized]  # [N, 3, H, W]

# %%
features = {
    "pixel statistics": [baselines.pixel_statistics(x) for x in normalized],
    "texture statistics": [baselines.texture_statistics(x).numpy() for x in rgb],
    "random convolutions": [baselines.random_convolutions(x, n_filters=128, seed=seed) for x in normalized],
}
for name in ("random weights", "Clay"):
    features |= {f"{name}, {kind}": [part[kind] for part in embedded[name]] for kind in ("class token", "patch mean")}
for name, parts in embedded.items():
    features[f"{name}, both"] = [np.hstack([part["class token"], part["patch mean"]]) for part in parts]
features = dict(sorted(features.items(), key=lambda item: item[0].startswith("Clay")))  # baselines first
for name, (a, b) in features.items():
    print(f"{name:<38} train {a.shape}, test {b.shape}")

# %% [markdown]
# ## The simplest probe, by hand
#
# The features stay frozen. A test chip takes the most common class among its five nearest training chips. Before that,
# every feature is standardized over the training chips, so that none dominates because of its unit.

# %%
train_x, test_x = (torch.from_numpy(x).double() for x in features["Clay, both"])
mean, spread = train_x.mean(0), train_x.std(0, correction=0)
train_z, test_z = (train_x - mean) / spread, (test_x - mean) / spread

distances = torch.linalg.vector_norm(test_z[:, None] - train_z, dim=2)  # [M, N]
neighbors = distances.argsort(dim=1)[:, :5]
classes = torch.from_numpy(train_y.astype(int))[neighbors]  # [M, 5]
votes = torch.stack([(classes == int(code)).sum(1) for code in codes], dim=1)  # [M, classes]
prediction = torch.from_numpy(codes.astype(int))[votes.argmax(1)]
by_hand = (prediction == torch.from_numpy(test_y.astype(int))).double().mean()

standard = probes.standardize(*features["Clay, both"])
library = probes.knn_score(standard[0], train_y, standard[1], test_y, k=5)
torch.testing.assert_close(by_hand.item(), library)
print(f"kNN-5 on Clay, both: {by_hand:.3f} by hand, {library:.3f} by the library; chance {chance:.3f}")

# %% [markdown]
# ## Three probes
#
# We add two more: twenty neighbors by cosine, and a linear classifier. Its only setting, the strength of
# regularization, is chosen on a quarter of the *training* blocks. The 95 % intervals come from resampling test
# **places**, because two dates of one place are not independent.

# %%
blocks = data.spatial_blocks(train.lat, train.lon, 6.0)
places = np.unique(np.stack([test.lat, test.lon]), axis=1, return_inverse=True)[1].ravel()
predictions = probes.predict(features, train_y, test_y, train_groups=blocks, test_groups=places, seed=seed)
table = probes.score(predictions, bootstraps=bootstraps)
order = list(features)
table.pivot(index="features", columns="probe", values="score").loc[order].round(3)

# %%
for kind, part in table.groupby("probe", sort=False):
    bars = part.rename(columns={"features": "name", "score": "value"}).replace({"kind": {"model": "trained Clay"}})
    label = f"accuracy on test chips (chance {chance:.2f})"
    fig = figures.bars_with_intervals(bars, label=label, title=f"Probe: {kind}", limits=(0, 1))
    _ = figures.save(fig, out_dir / f"2_{kind.replace(' ', '_')}.png")

# %% [markdown]
# ## Is Clay better?
#
# The answer is the trained Clay's score minus the **best** baseline's with the same probe. Both use the same resampled
# places, so what is hard for both cancels. The best baseline is chosen on the test chips, so luck is on its side. With
# many comparisons one looks good by chance; the one that counts was fixed beforehand: class token and patch mean
# together, kNN-20. An interval that contains zero leaves the question undecided. A second difference compares Clay with
# the same network before training.
#
# If a baseline wins, that is a result too: learning to reconstruct hidden pixels need not separate land cover better
# than color and texture do.

# %%
gains = probes.difference(predictions, bootstraps=bootstraps)


def as_sentence(row):
    """The difference in points, its interval, and whether the interval excludes zero."""
    verdict = "Clay is better" if row.low > 0 else "Clay is worse" if row.high < 0 else "undecided"
    return f"{100 * row.difference:+.1f} points ({100 * row.low:+.1f} to {100 * row.high:+.1f}): {verdict}"


for kind, part in gains.groupby("probe", sort=False):
    print(f"\n{kind}, against {part['baseline'].iloc[0]}")
    for row in part.itertuples():
        print(f"  {row.features:<38} {as_sentence(row)}")

# %%
colors = dict(zip(gains["probe"].unique(), figures.PALETTE, strict=False))
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 0.3 * len(gains) + 1.2))
    for y, row in enumerate(gains.itertuples()):
        ax.plot([100 * row.low, 100 * row.high], [y, y], color=colors[row.probe], lw=2)
        ax.plot(100 * row.difference, y, "o", color=colors[row.probe])
    ax.axvline(0, color="#9a9a9a", ls="--", lw=1.2)
    ax.set_yticks(range(len(gains)), gains["features"])
    ax.invert_yaxis()
    ax.set(xlabel="points above the best baseline of the same probe", title="Trained Clay minus the best baseline")
    for probe, color in colors.items():
        ax.plot([], [], "o-", color=color, label=probe)
    fig.legend(loc="outside upper right", ncols=3)
_ = figures.save(fig, out_dir / "3_differences.png")

# %%
headline = next(row for row in gains.itertuples() if (row.features, row.probe) == ("Clay, both", "kNN-20 cosine"))
itself = predictions[predictions["features"].isin(["Clay, both", "random, cosine kernels, both"])]
itself = next(
    row for row in probes.difference(itself, bootstraps=bootstraps).itertuples() if row.probe == headline.probe
)
assert itself.difference >= headline.difference, "no baseline beats the best one"
print(f"against the best baseline, {headline.baseline}: {as_sentence(headline)}")
print(f"against the same network before training: {as_sentence(itself)}")

# %% [markdown]
# ## Does the evaluation leak?
#
# A test of the test: shuffle the training labels. Nothing is left to learn, so the score must fall to chance.

# %%
rng = np.random.default_rng(seed)
shuffled = [
    probes.knn_score(standard[0], rng.permutation(train_y), standard[1], test_y, k=20, metric="cosine")
    for _ in range(40)
]
low, high = np.quantile(shuffled, (0.025, 0.975))
baseline = probes.standardize(*features["pixel statistics"])
statistics = probes.knn_score(baseline[0], train_y, baseline[1], test_y, k=20, metric="cosine")
runs.claim(low <= chance <= high, "shuffled labels score chance")
runs.claim(statistics > high, "true labels do better, even with pixel statistics")
print(f"shuffled labels: {low:.1%} to {high:.1%}; chance {chance:.1%}; true labels, pixel statistics: {statistics:.1%}")

# %% [markdown]
# ## Confusion matrix
#
# Here is the trained Clay's best probe, class by class. Each row is a true class and sums to 100 %.

# %%
best = table[table["kind"] == "model"].nlargest(1, "score").iloc[0]
subset = predictions[(predictions["features"] == best["features"]) & (predictions["probe"] == best["probe"])]
confusion = pd.crosstab(subset["label"], subset["prediction"]).reindex(index=codes, columns=codes, fill_value=0)
share = 100 * confusion.to_numpy() / confusion.to_numpy().sum(axis=1, keepdims=True)
assert confusion.to_numpy().sum() == len(test) and np.isclose(confusion.to_numpy().trace() / len(test), best["score"])
title = f"{best['features']}, {best['probe']}: {best['score']:.1%} correct"
fig = figures.matrix(share, names=names, label="% of the true class", title=title, ylabel="true class",
                   xlabel="predicted class", form="{:.0f}", limits=(0, 100))  # fmt: skip
_ = figures.save(fig, out_dir / "4_confusion.png")

# %%
wrong = share * (1 - np.eye(len(codes)))
for i, j in zip(*np.unravel_index(np.argsort(-wrong, axis=None)[:4], wrong.shape), strict=True):
    print(f"{wrong[i, j]:3.0f} % of {names[i]} is predicted as {names[j]}")

# %% [markdown]
# ## Random and spatial splits
#
# Chips are often split at random. Then one date of a place is in training and the other in testing, and a probe that
# merely recognizes the place is rewarded. To see this effect alone, all chips are pooled and the same pool is split in
# both ways, a few times each: chip by chip, and by blocks of six degrees.

# %%
pool_y = np.concatenate([train_y, test_y])
pool_lat, pool_lon = (np.concatenate([getattr(train, f), getattr(test, f)]) for f in ("lat", "lon"))
pool_blocks = data.spatial_blocks(pool_lat, pool_lon, 6.0)
pool_places = np.unique(np.stack([pool_lat, pool_lon]), axis=1, return_inverse=True)[1].ravel()
parts = (chips / (chips + test_chips), test_chips / (chips + test_chips))
splits = {
    "random split": [data.random_split(len(pool_y), parts, seed=seed + k) for k in range(draws)],
    "by blocks": [data.split_by_blocks(pool_blocks, parts, seed=seed + k) for k in range(draws)],
}
shared = {
    split: np.mean([np.isin(pool_places[b], pool_places[a]).mean() for a, b in pairs])
    for split, pairs in splits.items()
}
assert shared["by blocks"] == 0
runs.claim(
    dates == 1 or shared["random split"] > 0.3, "with several dates, many test chips have another date in training"
)
for split, share_of_places in shared.items():
    print(f"{split:<13} {share_of_places:4.0%} of the test chips show a place that is also in training")

# %%
rows = []
for name in ("pixel statistics", "random convolutions", "random weights, both", "Clay, both"):
    x = np.concatenate(features[name])
    for split, pairs in splits.items():
        scores = []
        for a, b in pairs:
            u, v = probes.standardize(x[a], x[b])
            scores.append(probes.knn_score(u, pool_y[a], v, pool_y[b], k=5))
        rows.append(
            {"features": name, "kind": split, "value": np.mean(scores), "low": min(scores), "high": max(scores)}
        )
by_split = pd.DataFrame(rows)

# %%
fig = figures.bars_with_intervals(
    by_split.assign(name=by_split["features"] + ", " + by_split["kind"]),
    label=f"kNN-5 score: mean, lowest and highest of {draws} draws",
    title="The same chips, split in two ways",
    limits=(0, 1),
)
_ = figures.save(fig, out_dir / "5_splits.png")
table_by_split = by_split.pivot(index="features", columns="kind", values="value")
gap = 100 * (table_by_split["random split"] - table_by_split["by blocks"])
for name, points in gap[list(dict.fromkeys(by_split["features"]))].items():
    print(f"{name:<22} random minus by blocks: {points:+.1f} points")

# %% [markdown]
# ## Are the labels right, and enough?
#
# One call audits a labeled set: chips in training that are nearly a test chip, labels contradicted by a probe fitted on
# other places (confident learning, Northcutt et al., 2021), whether its confidence can be trusted, and how many labels
# are enough. Below the figures are the three chips to look at first. On the synthetic Earth no label is wrong: these
# chips look like another class on that date, such as a town under snow.

# %%
label_names = np.array([world.CLASSES[code] for code in pool_y])
is_test = np.arange(len(pool_y)) >= len(train_y)
report = audit_labels(np.concatenate(features["Clay, both"]), label_names, groups=pool_places, test=is_test)
for name, fig in report.figures().items():
    _ = figures.save(fig, out_dir / f"6_{name}.png")
print("\n".join(report.sentences.values()))

# %%
pool_pixels = np.concatenate([train.pixels, test.pixels])
suspects = list(report.wrong[:3].itertuples())
thumbnails = [figures.rgb(pool_pixels[row.chip], sensor) for row in suspects]
fig = figures.show_row(thumbnails, [f"{row.label},\nrather {row.suggestion}" for row in suspects], size=2.2)

# %% [markdown]
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/07_probe_embeddings.ipynb) has stubs, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: k nearest neighbors
# *Easy, 10 minutes*
#
# Predict for each test chip the most common label among its k nearest training chips, by Euclidean distance. (The check
# has no ties.) Labels are names, even where they are written as numbers.
#
# **Hint.** `np.linalg.norm(test_x[:, None] - train_x, axis=2)` holds all distances, `[M, N]`.
#
# **Hint.** `np.unique(labels, return_counts=True)` counts the votes of one test chip.


# %% tags=["solution"]
def vote(train_x, train_y, test_x, k):
    """train_x [N, D], train_y [N], test_x [M, D] -> the most common label of the k nearest, [M]."""
    distances = np.linalg.norm(test_x[:, None] - train_x, axis=2)
    predictions = []
    for nearest in distances.argsort(axis=1)[:, :k]:
        labels, counts = np.unique(train_y[nearest], return_counts=True)
        predictions.append(labels[counts.argmax()])
    return np.array(predictions)


# %% tags=["check"]
checks.check_vote(vote)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: a spatial split
# *Medium, 10 minutes*
#
# Each chip lies in a block of land. Draw a `share` of the blocks for testing, rounded to complete blocks, with a seed,
# and return for each chip whether it is a test chip. No block may have chips on both sides.
#
# **Hint.** Draw among `np.unique(blocks)`, not among the chips: `rng.choice(names, count, replace=False)`.
#
# **Hint.** `np.isin(blocks, drawn)` is True for chips whose block was drawn.


# %% tags=["solution"]
def tests(blocks, share, seed):
    """blocks [N], share of the blocks for testing -> bool [N], True for a test chip."""
    names = np.unique(blocks)
    drawn = np.random.default_rng(seed).choice(names, round(share * len(names)), replace=False)
    return np.isin(blocks, drawn)


# %% tags=["check"]
checks.check_split(tests)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: a bootstrap interval
# *Hard, 15 minutes*
#
# `hits` is 1 where a chip was classified correctly and 0 where not. Compute the interval that contains 95 % of the
# scores when the places are resampled with replacement (a *bootstrap*). Chips of one place are not independent: draw
# places, and take all chips of each.
#
# **Hint.** For each draw: `rng.choice(names, len(names))`, then the mean of all hits of those places, each counted as
# often as it was drawn.
#
# **Hint.** The interval leaves 2.5 % of the drawn means on each side: `np.quantile(means, (0.025, 0.975))`.


# %% tags=["solution"]
def interval(hits, places, draws, seed):
    """hits [M] 0 or 1, places [M] -> (low, high), the 95 % interval of the mean under resampled places."""
    rng = np.random.default_rng(seed)
    names = np.unique(places)
    of_place = {name: hits[places == name] for name in names}
    means = [np.concatenate([of_place[n] for n in rng.choice(names, len(names))]).mean() for _ in range(draws)]
    low, high = np.quantile(means, (0.025, 0.975))
    return low, high


# %% tags=["check"]
checks.check_interval(interval)

# %% [markdown]
# ## What you have learned
#
# - A score needs baselines beside it, an interval around it, and a difference to the best baseline.
# - Simple baselines are strong. The paired difference says whether a model beats the best of them; to test other
#   weights, set `weights`.
# - A random split of repeated places overstates every score; split by land.
#
# **Exercise.** Set `chips` to 110. Which features lose most when the probes have few training chips?
#
# `data/weights/RESULTS.md` says how these weights do on real images. Next: [08 Embedding
# maps](08_map_embeddings.ipynb).

# %%
knn20 = table[table["probe"] == "kNN-20 cosine"].set_index("features")["score"]
metrics = {
    "kNN-20 score": {name: round(float(value), 4) for name, value in knn20.items()},
    "chance": round(chance, 4),
    "best baseline": headline.baseline,
    "points above its untrained self": round(100 * itself.difference, 2),
    "points above the best baseline": round(100 * headline.difference, 2),
    "95 % interval, low": round(100 * headline.low, 2),
    "95 % interval, high": round(100 * headline.high, 2),
    "random minus spatial split, points (kNN-5)": round(float(gap["Clay, both"]), 2),
    "test chips": len(test),
}
runs.write_metrics(out_dir, metrics)
