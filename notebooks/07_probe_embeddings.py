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
# # 07 Probing embeddings
#
# > **Is the embedding worth more than simple pixel statistics?**
#
# You will see
# - the trained Clay beside floors that learned nothing, all judged by the same three simple classifiers;
# - the difference to the best floor with its interval, whichever way it falls;
# - how much a random split flatters, and which kinds of land are taken for one another.
#
# Builds on [04 Training](04_train_clay.ipynb); the weights are small ones, shipped in `data/weights`, or your own. About
# 1 minute on two CPU cores (not timed on a GPU). Data: chips of the mini-world, made here and kept in `data/cache`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from clay_lib import SENSORS, Clay, figures
from clay_lib.clay import batches, cosine_initialized, embed_chips
from clay_lib.course import checks
from clay_lib.data.chips import world_chips
from clay_lib.data.splits import random_split, spatial_blocks, split_by_blocks
from clay_lib.evaluation import baselines, probes
from clay_lib.runs.notebooks import output_folder, write_metrics
from clay_lib.teacher import teacher_view
from clay_lib.world.earth import CLASSES, MiniWorld

# %% tags=["parameters"]
seed: int = 0  # of the mini-world, the random floors and every draw
out: str = ""  # folder for results; empty: papermill_runs/lab/07_probe_embeddings
weights: str = "clay-mini.safetensors"  # shipped; or a path, or what 04 put into data/cache: notebook_04.safetensors
sensor: str = "sentinel-2-l2a"
chips: int = 660  # to train the probes on
test_chips: int = 330  # on land that neither Clay nor the probes were trained on
chip_size: int = 64  # pixels a side, a multiple of 8 from 64 on
dates: int = 2  # at which every place is seen
draws: int = 5  # repeated splits, to compare random ones with spatial ones
bootstraps: int = 1000  # resamplings behind every interval

# %% [markdown]
# ## The land
#
# A chip's class is the land cover that covers most of it. Classes come in turn, so always answering with one of them
# is right about once in eleven: that is chance. Train and test places come from different blocks of the world, three
# by six degrees each, and keep 50 km from their block's border. No test chip has a neighbour in training.

# %%
out_dir = output_folder(out, "07_probe_embeddings")
common = dict(size=chip_size, seed=seed, dates=dates)
train = world_chips(sensor, chips, split="train", **common)
test = world_chips(sensor, test_chips, split="test", **common)
train_y, test_y = train.land_cover, test.land_cover
codes, counts = np.unique(test_y, return_counts=True)
names = [CLASSES[code] for code in codes]
chance = 1 / len(codes)
print(f"train {train.pixels.shape}, test {test.pixels.shape}; {counts.min()} to {counts.max()} test chips of a class")
print(f"chance: {chance:.1%}")

# %%
first = [int(np.flatnonzero(train_y == code)[0]) for code in codes]
pictures = [figures.rgb(train.pixels[i], sensor) for i in first]
fig = figures.show_row(
    pictures, names, gsd=SENSORS[sensor].gsd, columns=6, size=1.8, title="One training chip of each class"
)

# %%
lat, lon = np.arange(-60, 80.1, 1.5)[::-1], np.arange(-180, 180, 1.5)
sea = MiniWorld(seed).land_cover(*np.meshgrid(lat, lon, indexing="ij")) == 80
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.6, 3.6))
    ax.imshow(np.where(sea, 0.93, 0.80), extent=(-180, 180, -60.75, 80.25), cmap="gray", vmin=0, vmax=1)
    for name, part, colour, mark in (
        ("train", train, figures.PALETTE[0], "o"),
        ("test", test, figures.PALETTE[1], "^"),
    ):
        place = np.unique(np.stack([part.lon, part.lat]), axis=1)
        ax.scatter(*place, s=14, marker=mark, color=colour, lw=0, label=f"{name}, {place.shape[1]} places")
    ax.set(title="Where probes train and are tested (land darker)", xlabel="longitude (°)", ylabel="latitude (°)")
    fig.legend(loc="outside upper right", ncols=2, markerscale=2)
figures.save(fig, out_dir / "places.png")
plt.show()


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
# A score means little without knowing what something simple would score. Five kinds of **floor** learned nothing:
# the mean and spread of each band; the hand-made statistics of texture that were the teacher of the shipped weights;
# random convolutions, a surprisingly good description of texture; Clay's own architecture with random weights; and
# the same with waves for kernels, as its training began (04). Above them stands the trained Clay: its class token, the
# mean of its patch tokens, and both side by side.
#
# Clay is also told where and when a chip was taken, and the pixel floors are not. Latitude alone says something about
# snow or mangroves, so there is one more entry, to which place and date are withheld.

# %%
clay = Clay.load(weights)
untrained, newborn = Clay.random(clay.model.config, seed=seed), cosine_initialized(clay.model.config, seed)
ours, random, first = ([embed_chips(model, part) for part in (train, test)] for model in (clay, untrained, newborn))
withheld = [[clay.embed(b.pixels, sensor) for b in batches(part, 64)] for part in (train, test)]
seen = [SENSORS[sensor].normalize(part.pixels) for part in (train, test)]

# %%
features = {
    "pixel statistics": [baselines.pixel_statistics(x) for x in seen],
    "pixel textures, the teacher's": [
        baselines.texture_statistics(teacher_view(torch.from_numpy(x).float(), SENSORS[sensor])).numpy() for x in seen
    ],
    "random convolutions": [baselines.random_convolutions(x, n_filters=128, seed=seed) for x in seen],
}
for owner, parts in {"random weights": random, "Clay": ours}.items():
    features |= {f"{owner}, {kind}": [part[kind] for part in parts] for kind in ("class token", "patch mean")}
    features[f"{owner}, both"] = [np.hstack([part["class token"], part["patch mean"]]) for part in parts]
features["Clay, both, no place or date"] = [
    np.concatenate([torch.cat([e.chip, e.patches.mean((1, 2))], dim=1).cpu().numpy() for e in part])
    for part in withheld
]
features["random, waves as kernels"] = [np.hstack(list(part.values())) for part in first]
features = dict(sorted(features.items(), key=lambda item: item[0].startswith("Clay")))  # floors first
for name, (a, b) in features.items():
    print(f"{name:<38} train {a.shape}, test {b.shape}")

# %% [markdown]
# ## The simplest probe, by hand
#
# The features stay frozen. A test chip asks its five nearest training chips, and the commonest answer wins. Before
# that every feature is brought to mean zero and spread one over the training chips, so that none is heard more loudly
# because of its unit.

# %%
train_x, test_x = (torch.from_numpy(x).double() for x in features["Clay, both"])
mean, spread = train_x.mean(0), train_x.std(0, correction=0)
train_z, test_z = (train_x - mean) / spread, (test_x - mean) / spread

distances = torch.linalg.vector_norm(test_z[:, None] - train_z, dim=2)  # [M, N]
neighbours = distances.argsort(dim=1)[:, :5]
asked = torch.from_numpy(train_y.astype(int))[neighbours]  # [M, 5] their classes
votes = torch.stack([(asked == int(code)).sum(1) for code in codes], dim=1)  # [M, classes]
answer = torch.from_numpy(codes.astype(int))[votes.argmax(1)]
by_hand = (answer == torch.from_numpy(test_y.astype(int))).double().mean()

standard = probes.standardize(*features["Clay, both"])
library = probes.knn_score(standard[0], train_y, standard[1], test_y, k=5)
torch.testing.assert_close(by_hand.item(), library)
print(f"kNN-5 on Clay, both: {by_hand:.3f} by hand, {library:.3f} by the library; chance {chance:.3f}")

# %% [markdown]
# ## Three probes
#
# Beside it stand twenty neighbours found by angle instead of distance, and a linear classifier. Its one setting, how
# strongly to hold the weights small, is chosen on a quarter of the *training* blocks; the test chips are never asked.
# Intervals (95 %) come from drawing test **places** again and again, since two dates of one place are no independent
# witnesses.

# %%
blocks = spatial_blocks(train.lat, train.lon, 6.0)
places = np.unique(np.stack([test.lat, test.lon]), axis=1, return_inverse=True)[1].ravel()
answers = probes.predict(features, train_y, test_y, train_groups=blocks, test_groups=places, seed=seed)
table = probes.score(answers, bootstraps=bootstraps)
order = list(features)
table.pivot(index="features", columns="probe", values="score").loc[order].round(3)

# %%
for kind, part in table.groupby("probe", sort=False):
    bars = part.rename(columns={"features": "name", "score": "value"}).replace({"kind": {"model": "trained Clay"}})
    label = f"share of test chips named correctly (chance {chance:.2f})"
    fig = figures.bars_with_intervals(bars, label=label, title=f"Probe: {kind}", limits=(0, 1))
    figures.save(fig, out_dir / f"scores_{kind.replace(' ', '_')}.png")
    plt.show()

# %% [markdown]
# ## Is it worth it?
#
# The answer is the trained Clay minus the **best** floor of the same probe, on the same resampled places: what is hard
# for both cancels. The best floor is picked on the test chips themselves, so luck is on its side. With several rows one
# of them will look good by chance; the one that counts was fixed beforehand: class token and patch mean together,
# twenty neighbours. An interval that holds zero leaves the question undecided. Beside it stands the same network as its
# training began, which tells what the training itself brought.
#
# Should a floor win, that is an answer too: rebuilding hidden pixels and following a teacher of texture need not sort
# land cover better than colour and texture do. The gallery shows the number as it is.

# %%
gains = probes.difference(answers, bootstraps=bootstraps)


def verdict(row):
    """Whether the interval clears zero, in words."""
    told = (
        "clears zero, Clay is better" if row.low > 0 else "clears zero, Clay is worse" if row.high < 0 else "undecided"
    )
    return f"{100 * row.difference:+.1f} points ({100 * row.low:+.1f} to {100 * row.high:+.1f}): {told}"


for kind, part in gains.groupby("probe", sort=False):
    print(f"\n{kind}, against {part['baseline'].iloc[0]}")
    for row in part.itertuples():
        print(f"  {row.features:<38} {verdict(row)}")

# %%
colours = dict(zip(gains["probe"].unique(), figures.PALETTE, strict=False))
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 0.3 * len(gains) + 1.2))
    for y, row in enumerate(gains.itertuples()):
        ax.plot([100 * row.low, 100 * row.high], [y, y], color=colours[row.probe], lw=2)
        ax.plot(100 * row.difference, y, "o", color=colours[row.probe], label=row.probe if y % 4 == 0 else None)
    ax.axvline(0, color="#9a9a9a", ls="--", lw=1.2)
    ax.set_yticks(range(len(gains)), gains["features"])
    ax.invert_yaxis()
    ax.set(xlabel="points above the best floor of the same probe", title="Trained Clay minus the best floor")
    fig.legend(loc="outside upper right", ncols=3)
figures.save(fig, out_dir / "differences.png")
plt.show()

# %%
headline = next(row for row in gains.itertuples() if (row.features, row.probe) == ("Clay, both", "kNN-20 cosine"))
itself = answers[answers["features"].isin(["Clay, both", "random, waves as kernels"])]
itself = next(
    row for row in probes.difference(itself, bootstraps=bootstraps).itertuples() if row.probe == headline.probe
)
assert itself.difference >= headline.difference, "no floor beats the best one"
print(f"against the best floor, {headline.baseline}: {verdict(headline)}")
print(f"against the same network before its training: {verdict(itself)}")

# %% [markdown]
# ## Could the procedure be fooling us?
#
# A test of the test: shuffle the training labels. Nothing is left to be learned, so the score must fall to chance. If
# it did not, the procedure would be leaking.

# %%
rng = np.random.default_rng(seed)
nothing = [
    probes.knn_score(standard[0], rng.permutation(train_y), standard[1], test_y, k=20, metric="cosine")
    for _ in range(40)
]
low, high = np.quantile(nothing, (0.025, 0.975))
floor = probes.standardize(*features["pixel statistics"])
statistics = probes.knn_score(floor[0], train_y, floor[1], test_y, k=20, metric="cosine")
assert low <= chance <= high, "shuffled labels score chance"
assert statistics > high, "true labels do better, even with pixel statistics"
print(f"shuffled labels: {low:.1%} to {high:.1%}; chance {chance:.1%}; true labels, pixel statistics: {statistics:.1%}")

# %% [markdown]
# ## What is taken for what
#
# The best-scoring probe of the trained Clay, class by class. Each row is a true class and sums to 100 %.

# %%
best = table[table["kind"] == "model"].nlargest(1, "score").iloc[0]
told = answers[(answers["features"] == best["features"]) & (answers["probe"] == best["probe"])]
confusion = pd.crosstab(told["label"], told["prediction"]).reindex(index=codes, columns=codes, fill_value=0)
share = 100 * confusion.to_numpy() / confusion.to_numpy().sum(axis=1, keepdims=True)
assert confusion.to_numpy().sum() == len(test) and np.isclose(confusion.to_numpy().trace() / len(test), best["score"])
title = f"{best['features']}, {best['probe']}: {best['score']:.1%} correct"
fig = figures.matrix(share, names=names, label="% of the true class", title=title, ylabel="true class",
                   xlabel="answer", form="{:.0f}", limits=(0, 100))  # fmt: skip
figures.save(fig, out_dir / "confusion.png")
plt.show()

# %%
wrong = share * (1 - np.eye(len(codes)))
for i, j in zip(*np.unravel_index(np.argsort(-wrong, axis=None)[:4], wrong.shape), strict=True):
    print(f"{wrong[i, j]:3.0f} % of {names[i]} is taken for {names[j]}")

# %% [markdown]
# ## How much a random split flatters
#
# Often chips are split at random. Then one date of a place trains and the other tests, and a probe that merely
# recognises the place is rewarded. To see only this effect we pool all chips and split the same pool in both ways, a few
# times each: chip by chip, and by blocks of six degrees.

# %%
pool_y = np.concatenate([train_y, test_y])
pool_lat, pool_lon = (np.concatenate([getattr(train, f), getattr(test, f)]) for f in ("lat", "lon"))
pool_blocks = spatial_blocks(pool_lat, pool_lon, 6.0)
pool_places = np.unique(np.stack([pool_lat, pool_lon]), axis=1, return_inverse=True)[1].ravel()
parts = (chips / (chips + test_chips), test_chips / (chips + test_chips))
ways = {
    "random split": [random_split(len(pool_y), parts, seed=seed + k) for k in range(draws)],
    "by blocks": [split_by_blocks(pool_blocks, parts, seed=seed + k) for k in range(draws)],
}
twins = {
    way: np.mean([np.isin(pool_places[b], pool_places[a]).mean() for a, b in pairs]) for way, pairs in ways.items()
}
assert twins["by blocks"] == 0
assert dates == 1 or twins["random split"] > 0.3, "with several dates most test chips have a twin in training"
for way, twin in twins.items():
    print(f"{way:<13} {twin:4.0%} of the test chips show a place that was trained on")

# %%
rows = []
for name in ("pixel statistics", "random convolutions", "random weights, both", "Clay, both"):
    x = np.concatenate(features[name])
    for way, pairs in ways.items():
        scored = []
        for a, b in pairs:
            u, v = probes.standardize(x[a], x[b])
            scored.append(probes.knn_score(u, pool_y[a], v, pool_y[b], k=5))
        rows.append({"features": name, "kind": way, "value": np.mean(scored), "low": min(scored), "high": max(scored)})
flattery = pd.DataFrame(rows)

# %%
fig = figures.bars_with_intervals(
    flattery.assign(name=flattery["features"] + ", " + flattery["kind"]),
    label=f"kNN-5 score: mean, lowest and highest of {draws} draws",
    title="The same chips, split in two ways",
    limits=(0, 1),
)
figures.save(fig, out_dir / "splits.png")
plt.show()
wide = flattery.pivot(index="features", columns="kind", values="value")
gap = 100 * (wide["random split"] - wide["by blocks"])
for name, points in gap[list(dict.fromkeys(flattery["features"]))].items():
    print(f"{name:<22} random minus by blocks: {points:+.1f} points")

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/07_probe_embeddings.ipynb) have a notebook of their own, with
# empty places, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: a vote
# *Easy, 10 minutes*
#
# Give each test chip the commonest label among its k nearest training chips, by the Euclidean distance. (The check asks
# where there is no tie.) A label is a name, even where it is written as a number.
#
# **Hint.** `np.linalg.norm(test_x[:, None] - train_x, axis=2)` holds all distances, `[M, N]`.
#
# **Hint.** `np.unique(labels, return_counts=True)` counts the votes of one test chip.


# %% tags=["solution"]
def vote(train_x, train_y, test_x, k):
    """train_x [N, D], train_y [N], test_x [M, D] -> the label that most of the k nearest have, [M]."""
    distances = np.linalg.norm(test_x[:, None] - train_x, axis=2)
    answers = []
    for nearest in distances.argsort(axis=1)[:, :k]:
        labels, counts = np.unique(train_y[nearest], return_counts=True)
        answers.append(labels[counts.argmax()])
    return np.array(answers)


# %% tags=["check"]
checks.check_vote(vote)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: a split that does not leak
# *Medium, 10 minutes*
#
# Each chip lies in a block of land. Draw `share` of the blocks for testing, rounded to whole blocks, by a seed, and tell
# for each chip whether it tests. No block may have chips on both sides.
#
# **Hint.** Draw among `np.unique(blocks)`, not among the chips: `rng.choice(names, count, replace=False)`.
#
# **Hint.** `np.isin(blocks, drawn)` tells for each chip whether its block was drawn.


# %% tags=["solution"]
def tests(blocks, share, seed):
    """blocks [N], share of the blocks that test -> bool [N], True for a test chip."""
    names = np.unique(blocks)
    drawn = np.random.default_rng(seed).choice(names, round(share * len(names)), replace=False)
    return np.isin(blocks, drawn)


# %% tags=["check"]
checks.check_split(tests)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: how sure are we?
# *Hard, 15 minutes*
#
# `hits` holds 1 where a chip was named correctly and 0 where not. Give the interval in which 95 % of the scores lie when
# the places are drawn again and again, with replacement (a *bootstrap*). The chips of one place stand or fall together:
# draw places, and take all chips of each.
#
# **Hint.** For each draw: `rng.choice(names, len(names))`, then the mean of all hits of those places, as often as each
# was drawn.
#
# **Hint.** The interval leaves 2.5 % of the drawn means on each side: `np.quantile(means, (0.025, 0.975))`.


# %% tags=["solution"]
def interval(hits, places, draws, seed):
    """hits [M] 0 or 1, places [M] -> (low, high), 95 % of the mean under redrawn places."""
    rng = np.random.default_rng(seed)
    names = np.unique(places)
    of_place = {name: hits[places == name] for name in names}
    means = [np.concatenate([of_place[n] for n in rng.choice(names, len(names))]).mean() for _ in range(draws)]
    low, high = np.quantile(means, (0.025, 0.975))
    return low, high


# %% tags=["check"]
checks.check_interval(interval)

# %% [markdown]
# ## What was seen

# %%
twenty = table[table["probe"] == "kNN-20 cosine"].set_index("features")["score"]
write_metrics(
    out_dir,
    {
        "kNN-20 score": {name: round(float(value), 4) for name, value in twenty.items()},
        "chance": round(chance, 4),
        "best floor": headline.baseline,
        "points above its untrained self": round(100 * itself.difference, 2),
        "points above the best floor": round(100 * headline.difference, 2),
        "95 % interval, low": round(100 * headline.low, 2),
        "95 % interval, high": round(100 * headline.high, 2),
        "random split flatters Clay by points (kNN-5)": round(float(gap["Clay, both"]), 2),
        "test chips": len(test),
    },
)
place = {name: twenty[name] for name in ("Clay, both", "Clay, both, no place or date")}
began = twenty["random, waves as kernels"]
print(f"""- kNN-20: trained Clay {twenty["Clay, both"]:.1%}, the same network before its training {began:.1%}, pixel statistics \
{twenty["pixel statistics"]:.1%}, chance {chance:.1%}.
- Against the best floor ({headline.baseline}): {verdict(headline)}.
  Without place and date Clay scores {place["Clay, both, no place or date"]:.1%}.
- A random split changes Clay's kNN-5 score by {gap["Clay, both"]:+.1f} points: the floors belong beside a score, and so does the split.""")

# %% [markdown]
# This is a small model after an hour of training on one core, on a synthetic Earth: the numbers say how to ask, not how
# good the released Clay is. The same cells answer for any weights, through the parameter `weights`; how these do on real
# images stands in `data/weights/README.md`.
#
# Next: [08 Maps of embeddings](08_map_embeddings.ipynb).
