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
# > **How few bytes will do?**
#
# An archive of embeddings is as large as it is useful: a hundred million chips in float32 fill a disk. Here one set of
# embeddings is kept in fewer bytes, and asked what it still knows.
#
# You will see
# - how int8 works, with one scale a vector, and what its rounding does,
# - score against bytes, with intervals, for float16, int8, principal components and both together,
# - how many of a chip's nearest neighbours stay its neighbours, which is what a search needs.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | small weights, shipped in `data/weights`, or your own; [07 Probing](07_probe_embeddings.ipynb) tells what probes and intervals are | about 1 on two cores (not measured on a GPU) | chips of the mini-world, made here and kept in `data/cache` |

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from clay_lib import SENSORS, Clay, figures
from clay_lib.areas.search import neighbors_kept
from clay_lib.areas.vectors import from_int8, shrink, to_int8
from clay_lib.clay import embed_chips
from clay_lib.course import checks
from clay_lib.data.chips import world_chips
from clay_lib.data.splits import spatial_blocks
from clay_lib.evaluation import baselines, fit_components, probes
from clay_lib.evaluation.evaluate import Evaluation
from clay_lib.evaluation.intervals import interval, resample
from clay_lib.figures.charts import against_bytes
from clay_lib.runs.notebooks import output_folder, write_metrics

# %% tags=["parameters"]
seed: int = 0  # of the mini-world and of every draw
out: str = ""  # folder for results; empty: papermill_runs/lab/12_shrink_embeddings
weights: str = "clay-mini.safetensors"  # shipped; or a path, or what 04 put into data/cache: notebook_04.safetensors
sensor: str = "sentinel-2-l2a"
kind: str = "patch mean"  # which vector of a chip: "patch mean" or "class token"
components: list = [128, 64, 16]  # principal components to keep; for released weights, such as [256, 64, 16]
chips: int = 330  # to train the probes and the components on
test_chips: int = 165  # on other land
chip_size: int = 64  # pixels a side
dates: int = 2  # at which every place is seen
k: int = 10  # nearest neighbours that should stay
bootstraps: int = 1000  # resamplings behind every interval

# %% [markdown]
# ## One set of embeddings
#
# A vector a chip, of chips on land where the probes are trained, and on other land where they are tested.

# %%
out_dir = output_folder(out, "12_shrink_embeddings")
common = dict(size=chip_size, seed=seed, dates=dates)
train = world_chips(sensor, chips, split="train", **common)
test = world_chips(sensor, test_chips, split="test", **common)
clay = Clay.load(weights)
train_x, test_x = (embed_chips(clay, part)[kind] for part in (train, test))
N, D = train_x.shape
places = np.unique(np.stack([test.lat, test.lon]), axis=1, return_inverse=True)[1].ravel()
print(f"train {train_x.shape}, test {test_x.shape}, {train_x.dtype}: {4 * D} bytes a vector")

# %% [markdown]
# ## int8, by hand
#
# A float32 takes four bytes. An int8 takes one, and holds whole numbers from -127 to 127. So each vector is divided by
# its own scale, its largest number over 127, and rounded; the scale is kept beside it. Nothing is off by more than half
# a scale.

# %%
scale = np.abs(test_x).max(axis=1) / 127
whole = np.rint(test_x / scale[:, None]).astype(np.int8)
back = whole.astype(np.float32) * scale[:, None]

values, scales = to_int8(test_x)
np.testing.assert_array_equal(values, whole)
np.testing.assert_allclose(from_int8(values, scales), back, rtol=1e-6)
assert (np.abs(back - test_x) <= 0.5001 * scale[:, None]).all()
print(f"bytes: {test_x[0].nbytes} -> {whole[0].nbytes} + {scales[0].nbytes} for the scale")

# %%
with figures.styled():
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    left.plot(test_x[0][:24], "o", color=figures.PALETTE[0], ms=6, label="float32")
    left.plot(back[0][:24], "x", color=figures.PALETTE[1], ms=6, label="int8 times scale")
    left.set(title="24 numbers of one embedding", xlabel="number of the vector", ylabel="value")
    left.legend(loc="best")
    error = ((back - test_x) / scale[:, None]).ravel()
    right.hist(error, bins=40, color=figures.PALETTE[0])
    right.set(title="Rounding, all test chips", xlabel="error in scales", ylabel="numbers")
figures.save(fig, out_dir / "int8.png")
plt.show()

# %% [markdown]
# ## Principal components
#
# The other way is to keep fewer numbers. The directions in which embeddings differ most are found once, on training
# chips and without labels; then each vector is its position along the first few. The rest of the variance is gone.

# %%
pca = fit_components(train_x, min(D, N - 1))
mean, axes = pca.mean, pca.axes
variance = ((train_x - mean) @ axes.T).var(axis=0)
share = np.cumsum(variance) / variance.sum()
with figures.styled():
    fig, ax = plt.subplots(figsize=(6.4, 3.2))
    ax.plot(np.arange(1, len(share) + 1), 100 * share, color=figures.PALETTE[0], lw=1.8)
    for c in components:
        ax.plot(c, 100 * share[c - 1], "o", color=figures.PALETTE[1])
        ax.annotate(f"{c}: {share[c - 1]:.1%}", (c, 100 * share[c - 1]), xytext=(6, -14), textcoords="offset points")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="principal components", ylabel="variance kept (%)", title="How many numbers an embedding is made of")
figures.save(fig, out_dir / "variance.png")
plt.show()

# %% [markdown]
# ## Every form, scored
#
# Each form is read back as a reader of the archive would get it, components multiplied out to the full width again, and
# the probes of [07](07_probe_embeddings.ipynb) are trained and tested on that. (Multiplied out, because probes bring
# every number to the same spread: done to the components themselves, the last of them, which are next to nothing, would
# be as loud as the first.) Intervals (95 %) come from drawing test places.

# %%
forms = ["float32", "float16", "int8"]
forms += [f"PCA-{c}{end}" for c in components for end in ("", " float16", " int8")]
small = {form: [shrink(x, form, fit_on=train_x) for x in (train_x, test_x)] for form in forms}
sets = {form: tuple(part.vectors for part in pair) for form, pair in small.items()}
seen = [SENSORS[sensor].normalize(part.pixels) for part in (train, test)]
sets["pixel statistics"] = tuple(baselines.pixel_statistics(x) for x in seen)
which = ("kNN-20 cosine", "linear")
groups = dict(train_groups=spatial_blocks(train.lat, train.lon, 6.0), test_groups=places)
answers = probes.predict(sets, train.land_cover, test.land_cover, **groups, which=which, seed=seed)
table = Evaluation(answers, bootstraps=bootstraps).table
floor = table[table["features"] == "pixel statistics"].set_index("probe")["score"]

# %%
bytes_of = {form: pair[0].bytes for form, pair in small.items()}
how = {f: f"PCA, {(f.split() + ['float32'])[1]}" if f.startswith("PCA") else "all numbers" for f in forms}
for probe in which:
    part = table[(table["probe"] == probe) & (table["features"] != "pixel statistics")]
    part = part.assign(
        name=part["features"].str.replace(r" (float16|int8)", "", regex=True),
        bytes=part["features"].map(bytes_of),
        value=100 * part["score"],
        low=100 * part["low"],
        high=100 * part["high"],
        kind=part["features"].map(how),
    )
    known = dict(title=f"Land cover, {probe}", baseline=("pixel statistics", 100 * floor[probe]))
    fig = against_bytes(part, ylabel="test chips named correctly (%)", **known)
    figures.save(fig, out_dir / f"bytes_{probe.split(' ')[0].split('-')[0]}.png")
    plt.show()

# %% [markdown]
# ## What is lost, chip by chip
#
# The intervals above overlap because the same test chips are easy or hard for all. Compared chip by chip with float32,
# the differences are much surer.

# %%
compared = answers[answers["features"] != "pixel statistics"]
compared = compared.assign(kind=np.where(compared["features"] == "float32", "baseline", "model"))
loss = probes.difference(compared, bootstraps=bootstraps).set_index(["features", "probe"])
loss = 100 * loss[["difference", "low", "high"]]
for form in forms[1:]:
    told = [f"{p} {loss.loc[(form, p), 'difference']:+5.1f} ({loss.loc[(form, p), 'low']:+5.1f} to "
            f"{loss.loc[(form, p), 'high']:+5.1f})" for p in which]  # fmt: skip
    print(f"{form:<15}{bytes_of[form]:>5} bytes   {'   '.join(told)}")
assert abs(loss.loc[("float16", "kNN-20 cosine"), "difference"]) < 2, "float16 changes next to nothing"

# %% [markdown]
# ## Neighbours
#
# A search shows the nearest embeddings. How many of the ten nearest by full precision are still among the ten nearest?
# Neighbours are a stricter question than labels: any exchange counts, even for a chip of the same kind.

# %%
kept = {}
for form in forms:
    share_kept = neighbors_kept(test_x - mean, small[form][1].vectors - mean, k=k)
    kept[form] = interval(resample(share_kept, places, bootstraps=bootstraps))
kept = pd.DataFrame(kept, index=["kept", "low", "high"]).T
assert kept.loc["float32", "kept"] == 1.0
bars = kept.rename(columns={"kept": "value"}).rename_axis("name").reset_index()
bars = bars.assign(name=[f"{form}, {bytes_of[form]} bytes" for form in forms], kind=[how[form] for form in forms])
fig = figures.bars_with_intervals(
    bars,
    label=f"share of the {k} nearest chips that stay among the {k} nearest",
    title="Neighbours kept",
    limits=(0, 1),
)
figures.save(fig, out_dir / "neighbours.png")
plt.show()

# %% [markdown]
# Distances were taken from the mean of the training embeddings: all embeddings of a model share a large common part,
# which would make any two look alike, and which principal components leave out by themselves.

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/12_shrink_embeddings.ipynb) have a notebook of their own, with
# empty places, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: any number of bits
# *Easy, 10 minutes*
#
# int8 is one choice of many: four bits take half of it again, and two numbers share a byte. What a reader gets back
# tells whether that is still good enough.
#
# The largest whole number of `bits` bits is `2 ** (bits - 1) - 1`: 127 for 8 bits, 7 for 4, and as far down below zero.
# Give each vector its own scale, its largest absolute number over the largest whole number; divide by it, round to the
# nearest, and multiply by the scale again. A vector of zeros comes back as zeros.
#
# **Hint.** `np.abs(vectors).max(axis=1, keepdims=True)` has the shape [N, 1], so that vectors can be divided by it.
#
# **Hint.** Where the scale is 0, put 1 in its place: `np.where(scale > 0, scale, 1)`.


# %% tags=["solution"]
def rounded(vectors, bits):
    """vectors [N, D] float -> [N, D] as read back from whole numbers of so many bits and one scale a vector."""
    scale = np.abs(vectors).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    scale = np.where(scale > 0, scale, 1)
    return np.rint(vectors / scale) * scale


# %% tags=["check"]
checks.check_rounded(rounded)

# %% tags=["given"]
drawn = np.random.default_rng(0).normal(size=(100, 192))
for bits in (8, 6, 4, 2):
    worst = np.abs(rounded(drawn, bits) - drawn).max(axis=1) / np.abs(drawn).max(axis=1)
    print(f"{bits} bits, {192 * bits // 8 + 4:>3} bytes: off by at most {worst.max():.1%} of a vector's largest number")

# %% [markdown] tags=["exercise"]
# ### Exercise 2: what components keep of other land
# *Medium, 10 minutes*
#
# Components are chosen once, on some vectors, and every later vector has to make do with them. What they keep of the
# vectors that chose them flatters.
#
# Take the mean and the first `k` principal axes of `train`. Take that mean away from the `test` vectors. Give the share,
# between 0 and 1, of the sum of their squares that lies along those axes.
#
# **Hint.** `np.linalg.svd(centred, full_matrices=False)[2]` has the axes as its rows, the strongest first.
#
# **Hint.** `(centred_test @ axes[:k].T)` are the test vectors' positions along the axes. Compare the sum of their squares
# with that of `centred_test`.


# %% tags=["solution"]
def variance_kept(train, test, k):
    """train [N, D], test [M, D] -> share of test's squares about train's mean that train's first k axes keep."""
    centre = train.mean(axis=0)
    axes = np.linalg.svd(train - centre, full_matrices=False)[2][:k]
    along = (test - centre) @ axes.T
    return (along**2).sum() / ((test - centre) ** 2).sum()


# %% tags=["check"]
checks.check_variance_kept(variance_kept)

# %% tags=["given"]
rng = np.random.default_rng(0)
ways = rng.normal(size=(8, 64))  # in which vectors differ; on other land they differ in somewhat other ways
lands = [
    rng.normal(size=(40, 8)) @ mix + 0.5 * rng.normal(size=(40, 64))
    for mix in (ways, ways + 0.6 * rng.normal(size=(8, 64)))
]
own, other = (variance_kept(lands[0], land, 8) for land in lands)
print(f"8 components of 64 numbers keep {own:.0%} of the land that chose them, {other:.0%} of other land")

# %% [markdown] tags=["exercise"]
# ### Exercise 3: one bit a number
# *Hard, 15 minutes*
#
# The least that can be kept of a number is on which side of the mean it lies. A vector of 192 numbers then takes 24 bytes,
# and a search compares bits, which is about the cheapest thing a computer can do. It serves to find a few hundred
# candidates, which better numbers then put in order.
#
# First: a bit for every number, 1 where it is above the `mean` (that of the whole archive, number by number), eight in a
# byte, the first number in the highest bit. Where D is no multiple of 8, the last byte is filled with zeros.
#
# Second: the number of bits in which each vector of `a` differs from each of `b`.
#
# **Hint.** `np.packbits(..., axis=1)` puts eight truths into a byte, and fills the last one with zeros.
#
# **Hint.** `a ^ b` has a 1 where bits differ. `a[:, None] ^ b` does so for all pairs, `[N, M, bytes]`.
#
# **Hint.** `np.unpackbits(..., axis=2)` takes bytes apart again, so that bits can be added up.


# %% tags=["solution"]
def to_bits(vectors, mean):
    """vectors [N, D], mean [D] -> uint8 [N, D / 8, rounded up]."""
    return np.packbits(vectors > mean, axis=1)


# %% tags=["check"]
checks.check_bits(to_bits)


# %% tags=["solution"]
def differing(a, b):
    """a uint8 [N, K], b uint8 [M, K] -> the number of bits that differ, [N, M]."""
    return np.unpackbits(a[:, None] ^ b, axis=2).sum(axis=2)


# %% tags=["check"]
checks.check_differing(differing)

# %% tags=["given"]
rng = np.random.default_rng(1)
archive = rng.normal(size=(2000, 40)) @ rng.normal(size=(40, 192))  # 192 numbers that hang together, as embeddings do
asked, centre = archive[:50], archive.mean(axis=0)
by_bits = differing(to_bits(asked, centre), to_bits(archive, centre)).argsort(axis=1, kind="stable")
unit = (archive - centre) / np.linalg.norm(archive - centre, axis=1, keepdims=True)
by_cosine = (-unit[:50] @ unit.T).argsort(axis=1)[:, :10]
for candidates in (10, 50, 200):
    found = np.mean([np.isin(near, bits[:candidates]).mean() for near, bits in zip(by_cosine, by_bits, strict=True)])
    print(f"{found:.0%} of the 10 nearest are among the {candidates} that 24 bytes a vector find first, of 2000")

# %% [markdown]
# ## What was seen

# %%
knn = table[table["probe"] == which[0]].set_index("features")["score"]
line = table[table["probe"] == which[1]].set_index("features")["score"]
good = [f for f in forms[1:] if loss.loc[(f, which[0]), "low"] > -5 and loss.loc[(f, which[1]), "low"] > -5]
least = min(good, key=bytes_of.get) if good else "float32"
narrow = f"PCA-{components[-1]} int8"
write_metrics(
    out_dir,
    {
        "knn float32": round(float(knn["float32"]), 4),
        "knn float16": round(float(knn["float16"]), 4),
        "knn int8": round(float(knn["int8"]), 4),
        "linear float32": round(float(line["float32"]), 4),
        "linear int8": round(float(line["int8"]), 4),
        "neighbours kept int8": round(float(kept.loc["int8", "kept"]), 4),
        "bytes float32": bytes_of["float32"],
        "bytes int8": bytes_of["int8"],
        "smallest form that surely loses less than 5 points": least,
        "its bytes": bytes_of[least],
        "knn by form": {form: round(float(knn[form]), 4) for form in forms},
        "linear by form": {form: round(float(line[form]), 4) for form in forms},
        "neighbours by form": {form: round(float(kept.loc[form, "kept"]), 4) for form in forms},
    },
)
disk = {form: 1e8 * bytes_of[form] / 1e9 for form in ("float32", "int8", least)}
print(f"""- int8 takes {bytes_of["int8"]} bytes instead of {bytes_of["float32"]} and keeps {kept.loc["int8", "kept"]:.1%} of the neighbours; \
kNN-20 {knn["float32"]:.1%} -> {knn["int8"]:.1%}, linear {line["float32"]:.1%} -> {line["int8"]:.1%}.
- {narrow} takes {bytes_of[narrow]} bytes: kNN-20 {knn[narrow]:.1%}, linear {line[narrow]:.1%}, neighbours {kept.loc[narrow, "kept"]:.1%}.
- Smallest form whose intervals stay above -5 points: {least}. A hundred million chips: float32 {disk["float32"]:.0f} GB, \
int8 {disk["int8"]:.0f} GB, {least} {disk[least]:.1f} GB.""")

# %% [markdown]
# How much can be left out depends on the weights and on the question: these are the shipped small weights, eleven kinds
# of land, and few test places. Ask again with your own, by `weights`.
#
# `clay embed` writes int8 or float16 vectors: see [08 Maps of embeddings](08_map_embeddings.ipynb). This was the last of the
# walk; the first is [00 First look](00_first_look.ipynb).
