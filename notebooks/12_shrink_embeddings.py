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
# # 12 Small embeddings
#
# > **How few bytes are enough?**
#
# You will see
# - int8 quantization with one scale for each vector, and the rounding error it leaves,
# - accuracy against bytes, with intervals, for float16, int8, principal components, and both together,
# - how many of a chip's nearest neighbors stay the same, which is what similarity search depends on.
#
# ![Where this notebook stands: embeddings](flow/12_shrink_embeddings.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [07 Linear probes](07_probe_embeddings.ipynb), for probes and intervals; the small weights of this repository, or your own | 0.4 on two cores | chips of the synthetic Earth, computed once and kept in `data/cache` |

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from clay_lib import SENSORS, Clay, areas, data, evaluation, figures, runs
from clay_lib.clay import embed_chips
from clay_lib.course import checks
from clay_lib.evaluation import probes

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth and of every random draw
out: str = ""  # folder for results; empty: papermill_runs/lab/12_shrink_embeddings
weights: str = "clay-mini"  # the small weights of this repository; or a path; or what 04 saved: notebook_04.safetensors
sensor: str = "sentinel-2-l2a"
kind: str = "patch mean"  # which vector of a chip: "patch mean" or "class token"
components: list = [128, 64, 16]  # numbers of principal components; for the released weights, such as [256, 64, 16]
chips: int = 330  # training chips, for the probes and the components
test_chips: int = 165  # test chips, in other places
chip_size: int = 64  # pixels a side
dates: int = 2  # acquisitions of every place
k: int = 10  # nearest neighbors to compare
bootstraps: int = 1000  # resamplings for each interval

# %% [markdown]
# ## One set of embeddings
#
# An archive of embeddings grows quickly: a vector of 1,024 float32 numbers, as the released Clay v1.5 computes it,
# takes 4 kB, and a hundred million chips take 410 GB. So it pays to store fewer bytes, if the vectors stay as useful.
#
# We compute one vector for each chip. The probes are trained in some places and tested in others.
#
# > **On a laptop.** The released encoder returns 1,024 numbers for each chip. The small weights of this repository
# > return fewer, so every size below is smaller in proportion.

# %%
out_dir = runs.output_folder(out, "12_shrink_embeddings")
kwargs = dict(size=chip_size, seed=seed, dates=dates)
train = data.world_chips(sensor, chips, split="train", **kwargs)
test = data.world_chips(sensor, test_chips, split="test", **kwargs)
clay = Clay.load(weights)
train_x, test_x = (embed_chips(clay, subset)[kind] for subset in (train, test))  # [N, D], [M, D]
N, D = train_x.shape
places = np.unique(np.stack([test.lat, test.lon]), axis=1, return_inverse=True)[1].ravel()
print(f"train {train_x.shape}, test {test_x.shape}, {train_x.dtype}: {4 * D} bytes for each vector")

# %% [markdown]
# ## int8, by hand
#
# A float32 takes four bytes; an int8 takes one and holds the integers from -128 to 127. In symmetric quantization, each
# vector $x$ gets its own scale $s$, which is stored beside the integers $q$:
#
# $$s = \frac{\max_i |x_i|}{127}, \qquad q_i = \mathrm{round}(x_i / s), \qquad \hat{x}_i = s \, q_i$$
#
# The error of every number is at most half a scale.

# %%
scale = np.abs(test_x).max(axis=1) / 127  # [M]
quantized = np.rint(test_x / scale[:, None]).astype(np.int8)  # [M, D]
restored = quantized.astype(np.float32) * scale[:, None]

library_values, library_scale = areas.to_int8(test_x)
torch.testing.assert_close(torch.from_numpy(quantized), torch.from_numpy(library_values))
library_restored = areas.from_int8(library_values, library_scale)
torch.testing.assert_close(torch.from_numpy(restored), torch.from_numpy(library_restored))
assert (np.abs(restored - test_x) <= 0.5001 * scale[:, None]).all()
print(f"bytes: {test_x[0].nbytes} -> {quantized[0].nbytes} + {library_scale[0].nbytes} for the scale")

# %%
with figures.styled():
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    left.plot(test_x[0][:24], "o", color=figures.PALETTE[0], ms=6, label="float32")
    left.plot(restored[0][:24], "x", color=figures.PALETTE[1], ms=6, label="int8 times scale")
    left.set(title="First 24 numbers of an embedding", xlabel="index in the vector", ylabel="value")
    left.legend(loc="best")
    error = ((restored - test_x) / scale[:, None]).ravel()
    right.hist(error, bins=40, color=figures.PALETTE[0])
    right.set(title="Rounding error, all test chips", xlabel="error (scales)", ylabel="count")
_ = figures.save(fig, out_dir / "int8.png")

# %% [markdown]
# ## Principal components
#
# The other way is to store fewer numbers. Principal component analysis finds the directions in which the training
# embeddings vary most, without any labels. Each vector is then stored as its coordinates along the first few
# directions; the variance along the others is lost.

# %%
pca = evaluation.fit_components(train_x, min(D, N - 1))
explained = 100 * np.cumsum(pca.share)
with figures.styled():
    fig, ax = plt.subplots(figsize=(6.4, 3.2))
    ax.plot(np.arange(1, len(explained) + 1), explained, color=figures.PALETTE[0], lw=1.8)
    for i, c in enumerate(components):
        point, offset = (c, explained[c - 1]), (6, -16 - 14 * (i % 2))  # staggered, so that labels do not overlap
        ax.plot(*point, "o", color=figures.PALETTE[1])
        ax.annotate(f"{c}: {point[1]:.1f}%", point, xytext=offset, textcoords="offset points")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="principal components", ylabel="explained variance (%)", title="Variance of the training embeddings")
_ = figures.save(fig, out_dir / "variance.png")

# %% [markdown]
# ## Accuracy of every form
#
# Now we compress the vectors in every form, decompress them as a reader of the archive would, and train and test the
# probes of [07](07_probe_embeddings.ipynb) on the result. Principal components are mapped back to the full width first:
# the linear probe standardizes its inputs, which would give the weakest components, mostly noise, the same weight as
# the strongest.
#
# Pixel statistics are the baseline. The 95 % intervals come from resampling the test places.

# %%
forms = ["float32", "float16", "int8"]
forms += [f"PCA-{c}{suffix}" for c in components for suffix in ("", " float16", " int8")]
compressed = {form: [areas.shrink(x, form, fit_on=train_x) for x in (train_x, test_x)] for form in forms}
features = {form: tuple(part.vectors for part in pair) for form, pair in compressed.items()}
bytes_of = {form: pair[0].bytes for form, pair in compressed.items()}
pixels = [SENSORS[sensor].normalize(subset.pixels) for subset in (train, test)]
features["pixel statistics"] = tuple(evaluation.pixel_statistics(x) for x in pixels)

# %%
names = ("kNN-20 cosine", "linear")
groups = dict(train_groups=data.spatial_blocks(train.lat, train.lon, 6.0), test_groups=places)
predictions = probes.predict(features, train.land_cover, test.land_cover, **groups, which=names, seed=seed)
table = evaluation.Evaluation(predictions, bootstraps=bootstraps).table
table[["features", "probe", "score", "low", "high"]].round(3)

# %%
family = {f: f"PCA, {(f.split() + ['float32'])[1]}" if f.startswith("PCA") else "all numbers" for f in forms}
accuracy = table.assign(value=100 * table["score"], low=100 * table["low"], high=100 * table["high"])
for name in names:
    rows = accuracy[accuracy["probe"] == name].set_index("features")
    baseline = ("pixel statistics", rows.loc["pixel statistics", "value"])
    rows = rows.loc[forms].assign(bytes=pd.Series(bytes_of), kind=pd.Series(family))
    rows = rows.assign(name=rows.index.str.replace(r" (float16|int8)", "", regex=True))
    kwargs = dict(ylabel="test accuracy (%)", title=f"Land cover, {name}", baseline=baseline)
    fig = figures.against_bytes(rows, **kwargs)
    _ = figures.save(fig, out_dir / f"bytes_{name.split(' ')[0].split('-')[0]}.png")

# %% [markdown]
# ## Paired differences
#
# The intervals above overlap because a difficult test chip is difficult for every form. The paired difference from
# float32 on the same test chips removes this shared variation, so its interval is much narrower.

# %%
paired = predictions[predictions["features"] != "pixel statistics"]
paired = paired.assign(kind=np.where(paired["features"] == "float32", "baseline", "model"))
loss = probes.difference(paired, bootstraps=bootstraps).set_index(["features", "probe"])
loss = 100 * loss[["difference", "low", "high"]]  # percentage points
print(f"difference from float32, percentage points: {', '.join(names)}")
for form in forms[1:]:
    texts = [evaluation.as_text(*loss.loc[(form, name)], form="{:+.1f}") for name in names]
    print(f"{form:<15}{bytes_of[form]:>5} bytes   {'   '.join(texts)}")
runs.claim(abs(loss.loc[("float16", "kNN-20 cosine"), "difference"]) < 2, "float16 changes almost nothing")

# %% [markdown]
# ## Nearest neighbors
#
# A similarity search returns the nearest embeddings. How many of the nearest neighbors in float32 are still among the
# nearest after compression? This is stricter than accuracy: every exchange counts, even for a chip of the same class.
#
# All embeddings of a model share a large common component, which makes every pair look similar. We subtract the mean of
# the training embeddings before measuring distances; PCA does this anyway.

# %%
preserved = {}
for form in forms:
    share = areas.neighbors_kept(test_x - pca.mean, compressed[form][1].vectors - pca.mean, k=k)  # [M]
    preserved[form] = evaluation.interval(evaluation.resample(share, places, bootstraps=bootstraps))
preserved = pd.DataFrame(preserved, index=["value", "low", "high"]).T
assert preserved.loc["float32", "value"] == 1.0
bars = preserved.assign(name=[f"{form}, {bytes_of[form]} bytes" for form in forms], kind=pd.Series(family))
label = f"share of the {k} nearest neighbors in float32"
fig = figures.bars_with_intervals(bars, label=label, title="Nearest neighbors preserved", limits=(0, 1))
_ = figures.save(fig, out_dir / "neighbors.png")

# %% [markdown]
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/12_shrink_embeddings.ipynb) has stubs, hints and
# checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: any number of bits
# *Easy, 10 minutes*
#
# int8 is only one choice. With four bits, two numbers share a byte, and the vector takes half the space again.
#
# The largest integer of `bits` bits is `2 ** (bits - 1) - 1`: 127 for 8 bits, 7 for 4 bits; the smallest one used is
# its negative. The scale of each vector is its largest absolute value divided by this integer. Divide by the scale,
# round to the nearest integer, and multiply by the scale again. A vector of zeros stays a vector of zeros.
#
# **Hint.** `np.abs(vectors).max(axis=1, keepdims=True)` has shape `[N, 1]`, which broadcasts against the vectors.
#
# **Hint.** Replace a scale of 0 by 1: `np.where(scale > 0, scale, 1)`.


# %% tags=["solution"]
def rounded(vectors, bits):
    """vectors [N, D] float -> [N, D] after quantization to integers of `bits` bits, one scale per vector."""
    scale = np.abs(vectors).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    scale = np.where(scale > 0, scale, 1)
    return np.rint(vectors / scale) * scale


# %% tags=["check"]
checks.check_rounded(rounded)

# %% tags=["given"]
drawn = np.random.default_rng(0).normal(size=(100, 192))
for bits in (8, 6, 4, 2):
    worst = np.abs(rounded(drawn, bits) - drawn).max(axis=1) / np.abs(drawn).max(axis=1)
    print(f"{bits} bits, {192 * bits // 8 + 4:>3} bytes: largest error {worst.max():.1%} of a vector's largest number")

# %% [markdown] tags=["exercise"]
# ### Exercise 2: explained variance in other places
# *Medium, 10 minutes*
#
# Components are fitted once, on some vectors, and then used for every later one. For those, the explained variance of
# the training vectors is too optimistic.
#
# Compute the mean and the first `k` principal axes of `train`. Subtract this mean from the `test` vectors. Return the
# share, between 0 and 1, of the sum of their squares that lies along these axes.
#
# **Hint.** `np.linalg.svd(centered, full_matrices=False)[2]` has the axes as its rows, the strongest first.
#
# **Hint.** `centered_test @ axes[:k].T` are the test vectors' coordinates along the axes. Divide the sum of their
# squares by the same sum for `centered_test`.


# %% tags=["solution"]
def variance_kept(train, test, k):
    """train [N, D], test [M, D] -> share of test's variance around train's mean along train's first k axes."""
    center = train.mean(axis=0)
    axes = np.linalg.svd(train - center, full_matrices=False)[2][:k]
    along = (test - center) @ axes.T
    return (along**2).sum() / ((test - center) ** 2).sum()


# %% tags=["check"]
checks.check_variance_kept(variance_kept)

# %% tags=["given"]
rng = np.random.default_rng(0)
directions = rng.normal(size=(8, 64))  # of the variation, which are slightly different in other places
regions = [
    rng.normal(size=(40, 8)) @ mix + 0.5 * rng.normal(size=(40, 64))
    for mix in (directions, directions + 0.6 * rng.normal(size=(8, 64)))
]
same, other = (variance_kept(regions[0], region, 8) for region in regions)
print(f"8 components of 64 numbers explain {same:.0%} of the variance where they were fitted, {other:.0%} elsewhere")

# %% [markdown] tags=["exercise"]
# ### Exercise 3: one bit per number
# *Hard, 15 minutes*
#
# Binary quantization stores one bit per number: whether it is above the mean. A vector of 192 numbers then takes 24
# bytes, and a search counts differing bits, the Hamming distance, which is very fast. It finds a few hundred
# candidates, which are then sorted by their more precise vectors.
#
# First, write one bit per number: 1 where it is above `mean` (the mean vector of the archive). Pack eight bits into a
# byte, the first number in the highest bit. If D is not a multiple of 8, the last byte is padded with zeros.
#
# Second, compute the Hamming distance between each vector of `a` and each vector of `b`.
#
# **Hint.** `np.packbits(..., axis=1)` packs eight booleans into a byte and pads the last one with zeros.
#
# **Hint.** `a ^ b` has a 1 where bits differ. `a[:, None] ^ b` does this for all pairs, `[N, M, bytes]`.
#
# **Hint.** `np.unpackbits(..., axis=2)` unpacks the bytes, so that the bits can be summed.


# %% tags=["solution"]
def to_bits(vectors, mean):
    """vectors [N, D], mean [D] -> uint8 [N, ceil(D / 8)]."""
    return np.packbits(vectors > mean, axis=1)


# %% tags=["check"]
checks.check_bits(to_bits)


# %% tags=["solution"]
def differing(a, b):
    """a uint8 [N, K], b uint8 [M, K] -> Hamming distances [N, M]."""
    return np.unpackbits(a[:, None] ^ b, axis=2).sum(axis=2)


# %% tags=["check"]
checks.check_differing(differing)

# %% tags=["given"]
rng = np.random.default_rng(1)
archive = rng.normal(size=(2000, 40)) @ rng.normal(size=(40, 192))  # 192 correlated numbers, as in embeddings
queries, center = archive[:50], archive.mean(axis=0)
by_bits = differing(to_bits(queries, center), to_bits(archive, center)).argsort(axis=1, kind="stable")
unit = (archive - center) / np.linalg.norm(archive - center, axis=1, keepdims=True)
by_cosine = (-unit[:50] @ unit.T).argsort(axis=1)[:, :10]
for candidates in (10, 50, 200):
    recall = np.mean([np.isin(near, bits[:candidates]).mean() for near, bits in zip(by_cosine, by_bits, strict=True)])
    print(f"{recall:.0%} of the 10 nearest by cosine are among the first {candidates} of 2000 by Hamming distance")

# %% [markdown]
# ## What you have learned
#
# - int8 with one scale for each vector takes about a quarter of the bytes of float32 and changes accuracy and neighbors
#   very little.
# - Principal components with int8 give the smallest vectors. With few test places, the paired intervals are too wide to
#   show a loss of accuracy even for the smallest ones.
# - Nearest neighbors are the more sensitive measure: some change although accuracy does not. Measure whichever your
#   application depends on.
#
# **Exercise.** Set `components` to [8, 4, 2]. Which breaks down first, the accuracy or the nearest neighbors?
#
# These results hold for the small weights, the synthetic Earth's land-cover classes and few test places. For other
# weights, set `weights` and run again. `clay embed` writes int8 or float16 vectors:
# [08 Embedding maps](08_map_embeddings.ipynb) shows how.
#
# This was the last notebook of the main path; the appendix is [13 Missing pixels](13_embed_holes.ipynb). For your own
# image, return to [00 First look](00_first_look.ipynb) and set `scene`.

# %%
scores = {name: table[table["probe"] == name].set_index("features")["score"] for name in names}
small_loss = [f for f in forms[1:] if all(loss.loc[(f, name), "low"] > -5 for name in names)]
smallest = min(small_loss, key=bytes_of.get) if small_loss else "float32"
metrics = {"smallest form that loses less than 5 points": smallest, "its bytes": bytes_of[smallest]}
for form in ("float32", "float16", "int8"):
    metrics[f"knn {form}"] = round(float(scores[names[0]][form]), 4)
    metrics[f"linear {form}"] = round(float(scores[names[1]][form]), 4)
    metrics[f"bytes {form}"] = bytes_of[form]
metrics["neighbors kept int8"] = round(float(preserved.loc["int8", "value"]), 4)

# %%
columns = {"knn": scores[names[0]], "linear": scores[names[1]], "neighbors": preserved["value"]}
for name, values in columns.items():
    metrics[f"{name} by form"] = {form: round(float(values[form]), 4) for form in forms}
runs.write_metrics(out_dir, metrics)
gigabytes = {
    form: bytes_of[form] / 10 for form in dict.fromkeys(("float32", "int8", smallest))
}  # 1e8 vectors, 1e9 bytes
sizes = ", ".join(f"{form} {size:.1f} GB" for form, size in gigabytes.items())
print(f"Smallest form whose intervals stay above -5 points: {smallest}. A hundred million chips: {sizes}.")
