# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 Metadata ablation
#
# > **Which metadata does the model use?**
#
# You will see
# - the kernels when all bands get the same wavelength,
# - how far embeddings move without wavelengths, pixel size, place or time, and what land-cover probes lose,
# - how much worse hidden pixels are reconstructed.
#
# ![Where this notebook stands: datacube, embeddings](flow/10_switch_metadata.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [07 Linear probes](07_probe_embeddings.ipynb); the small weights of this repository, or your own from [04 Training](04_train_clay.ipynb) | 1.1 on two cores | chips of the synthetic Earth, generated here |

# %%
from dataclasses import replace
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from clay_lib import SENSORS, Clay, data, evaluation, figures, runs
from clay_lib.clay import embed_chips, reconstruction_scores
from clay_lib.course import checks
from clay_lib.evaluation import ablation, probes

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth, the masks and all draws
out: str = ""  # folder for results; empty: papermill_runs/lab/10_switch_metadata
weights: str = "clay-mini"  # the small weights of this repository; or a path; or what 04 saved: notebook_04.safetensors
off: str = "all"  # wavelengths, gsd, place or time: only this one; all: each of them, and the four together
sensor: str = "sentinel-2-l2a"
kind: str = "patch mean"  # the vector of a chip: "patch mean" or "class token"
chips: int = 330  # for training the probes
test_chips: int = 165  # at test places
chip_size: int = 64  # pixels a side
dates: int = 2  # of each place
draws: int = 5  # random halves of the training places, and random masks
bootstraps: int = 1000  # resamples for each interval

# %% [markdown]
# ## What "off" means
#
# Besides the pixels, the model gets four pieces of metadata: the wavelengths of the bands, the pixel size (GSD), the
# place and the time. Place and time have a code for **unknown**, zeros, which training used for a part of its samples.
# Wavelengths and pixel size have no such code. Wavelengths are switched off by giving all bands their mean wavelength.
# The pixel size is replaced by a wrong one, a tenth of the true one, which tests only whether the model uses it.
#
# > **On a laptop.** The answers are those of clay-mini on the synthetic Earth. The released weights were trained with
# > real places and dates, and may depend on them more.

# %%
out_dir = runs.output_folder(out, "10_switch_metadata")
settings = ablation.SETTINGS if off == "all" else (off,)
special = {"gsd": "wrong pixel size", "all": "without metadata"}
labels = {name: special.get(name, f"without {name}") for name in settings}
world_kwargs = dict(size=chip_size, seed=seed, dates=dates)
train = data.world_chips(sensor, chips, split="train", **world_kwargs)
test = data.world_chips(sensor, test_chips, split="test", **world_kwargs)
clay = Clay.load(weights)
print(f"training chips {train.pixels.shape}, test chips {test.pixels.shape}; {', '.join(labels.values())}")

# %% [markdown]
# ## By hand
#
# A `Datacube` holds the pixels and the four codes. To switch one off, replace its code and run the encoder. The
# library's `withhold` returns a Clay that does this for every image.

# %%
subset = test[:8]
cube = clay.cube(subset.pixels, sensor, **subset.place_and_time)
no_place = replace(cube, latlon=torch.zeros_like(cube.latlon))
by_hand = clay.model.encoder(no_place, mask_ratio=0.0, shuffle=False).tokens[:, 0]  # class tokens [8, D]

withheld = ablation.withhold(clay, "place").embed(subset.pixels, sensor, **subset.place_and_time).chip
torch.testing.assert_close(by_hand, withheld)
torch.testing.assert_close(by_hand, clay.embed(subset.pixels, sensor, when=subset.place_and_time["when"]).chip)
full = clay.embed(subset.pixels, sensor, **subset.place_and_time).chip
distance = 1 - torch.cosine_similarity(by_hand, full)
print("1 - cosine of the class tokens with and without place:", distance.numpy().round(6))

# %% [markdown]
# ## One wavelength for all bands
#
# The kernels of the patch embedding are generated from the wavelengths alone ([01](01_embed_patches.ipynb)). Bands of
# the same wavelength therefore get the same kernel, and the model sees only the sum of the bands, a gray image.

# %%
cubes = {"true wavelengths": cube, "one wavelength": ablation.without(cube, "wavelengths")}
kernels = {name: clay.model.encoder.patch_embedding.kernels(c.waves)[0] for name, c in cubes.items()}  # [D, C, P, P]
names = SENSORS[sensor].band_names
bands = [0, len(names) // 2, len(names) - 1]
strongest = np.argsort(-kernels["true wavelengths"].abs().mean(dim=(1, 2, 3)).numpy())[:6]
kwargs = dict(band_names=[names[b] for b in bands], chosen=strongest)
for name, weight in kernels.items():
    fig = figures.kernels(weight[:, bands], title=f"Six kernels, {name}", **kwargs)
    _ = figures.save(fig, out_dir / f"kernels_{name.replace(' ', '_')}.png")
assert (kernels["one wavelength"] - kernels["one wavelength"][:, :1]).abs().max() < 1e-5

# %% [markdown]
# ## Embed with each setting
#
# Training and test chips lose the same metadata, as in an archive that never had it. A cosine of 1 means that an
# embedding has not moved. For scale, `unrelated` is the mean cosine of **different** chips, one with all metadata and
# one without.


# %%
def place_index(chips):
    """[N] the number of each chip's place."""
    return np.unique(np.stack([chips.lat, chips.lon]), axis=1, return_inverse=True)[1].ravel()


models = {"nothing": clay} | {name: ablation.withhold(clay, name) for name in settings}
vectors = {name: [embed_chips(model, c)[kind] for c in (train, test)] for name, model in models.items()}
full, places = vectors["nothing"], place_index(test)
kwargs = dict(groups=places, bootstraps=bootstraps)
changes = {name: ablation.cosine_change(full[1], vectors[name][1], **kwargs) for name in settings}
cosines = pd.DataFrame(changes).T
cosines.round(4)

# %%
same = cosines.rename(columns={"cosine": "value"}).assign(kind="same chip")
other = cosines.rename(columns={"unrelated": "value"}).assign(kind="different chip", low=np.nan, high=np.nan)
bars = pd.concat([same, other]).loc[list(settings)].rename(labels).rename_axis("name").reset_index()
title, label = "Embeddings without metadata", f"cosine to the embedding with all metadata ({kind})"
fig = figures.bars_with_intervals(bars, label=label, title=title, form="{:.3f}")
_ = figures.save(fig, out_dir / "cosines.png")

# %% [markdown]
# ## What a probe loses
#
# Embeddings may all move together and still hold the same information. So the probes of [07](07_probe_embeddings.ipynb)
# classify land cover from the embeddings of each setting, at test places. Every draw trains on half of the training
# places; the 95 % intervals cover the draws and the choice of test places. The baseline is pixel statistics, which use
# pixels alone.

# %%
PROBES = ("kNN-20 cosine", "linear")
blocks, train_places = data.spatial_blocks(train.lat, train.lon, 6.0), place_index(train)


def predict(features):
    """Predictions of both probes for {name: (train [N, D], test [M, D])}, in all draws."""
    tables = []
    for draw in range(draws):
        order = np.random.default_rng([seed, draw]).permutation(train_places.max() + 1)
        half = order[train_places] % 2 == 0  # [N]
        known = np.isin(test.land_cover, train.land_cover[half])  # [M] test classes that have training chips
        kwargs = dict(train_groups=blocks[half], test_groups=places[known], which=PROBES, seed=draw)
        parts = {name: (a[half], b[known]) for name, (a, b) in features.items()}
        tables.append(probes.predict(parts, train.land_cover[half], test.land_cover[known], **kwargs))
    return pd.concat(tables, ignore_index=True)


# %%
features = {"all metadata": full} | {labels[name]: vectors[name] for name in settings}
normalized = [SENSORS[sensor].normalize(c.pixels) for c in (train, test)]
features["pixel statistics"] = [evaluation.pixel_statistics(x) for x in normalized]
result = evaluation.Evaluation(predict(features), bootstraps=bootstraps)
scores = result.table.pivot(index="features", columns="probe", values="score").loc[list(features)]
scores.round(3)

# %%
for probe in PROBES:
    bars = result.table.query("probe == @probe").rename(columns={"features": "name", "score": "value"})
    bars = bars.replace({"kind": {"model": "Clay"}})
    label = "share of test chips classified correctly"
    fig = figures.bars_with_intervals(bars, label=label, title=f"Land cover, {probe}", limits=(0, 1))
    _ = figures.save(fig, out_dir / f"scores_{probe.split(' ')[0]}.png")

# %% [markdown]
# ## Paired differences
#
# All scores come from the same chips, so their difference is more certain than either score. If it is below zero, the
# metadata was useful; an interval that contains zero leaves it open. The second case is harder: the probe was trained
# on embeddings with all metadata, and only the test chips lack some, like photographs without a date.

# %%
features = {labels[name]: (full[0], vectors[name][1]) for name in settings}
predictions = {"always missing": result.predictions, "missing in test": predict({"all metadata": full} | features)}
rows = []
for case, table in predictions.items():
    table = table[table["features"].isin(["all metadata", *labels.values()])]
    role = np.where(table["features"] == "all metadata", "baseline", "model")
    difference = probes.difference(table.assign(kind=role), bootstraps=bootstraps)
    rows.append(difference.assign(case=case))
lost = pd.concat(rows).set_index(["features", "case", "probe"])
lost = (100 * lost[["difference", "low", "high"]]).rename(columns={"difference": "points"})
lost.round(1)

# %%
with figures.styled():
    fig, axes = plt.subplots(1, len(PROBES), figsize=(8.4, 0.55 * len(settings) + 1.6), sharey=True, sharex=True)
    for ax, probe in zip(axes, PROBES, strict=True):
        for k, case in enumerate(predictions):
            part = lost.xs((case, probe), level=("case", "probe")).loc[list(labels.values())]
            y, color = np.arange(len(settings)) + 0.16 * (2 * k - 1), figures.PALETTE[k]
            ends = [part["points"] - part["low"], part["high"] - part["points"]]
            ax.errorbar(part["points"], y, xerr=ends, fmt="os"[k], color=color, label=case, capsize=3)
        ax.axvline(0, color="#9a9a9a", ls="--", lw=1.2)
        ax.set(title=probe, xlabel="points compared with all metadata")
    axes[0].set_yticks(range(len(settings)), labels.values())
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
_ = figures.save(fig, out_dir / "lost.png")

# %% [markdown]
# ## Reconstruct hidden pixels
#
# Three quarters of each chip are hidden and reconstructed. The error is divided by the error of guessing the mean of
# the visible pixels: below 1, the model beats that guess. Bars show the mean over several masks, lines the smallest and
# the largest value.

# %%
rows = []
for name, model in models.items():
    tables = [reconstruction_scores(model, test, seed=seed + k) for k in range(draws)]
    ratios = [float(t["error"].mean() / t["mean_error"].mean()) for t in tables]
    rows.append({"off": name, "value": np.mean(ratios), "low": min(ratios), "high": max(ratios)})
errors = pd.DataFrame(rows).set_index("off")
if "wavelengths" in settings:
    runs.claim(errors.loc["wavelengths", "low"] > errors.loc["nothing", "high"], "wrong wavelengths raise the error")
bars = errors.rename({"nothing": "all metadata"} | labels).rename_axis("name").reset_index()
bars["kind"] = np.where(bars["name"] == "all metadata", "all metadata", "less metadata")
label, title = "error / error of the visible mean", "Reconstruction without metadata"
fig = figures.bars_with_intervals(bars, label=label, title=title)
_ = figures.save(fig, out_dir / "reconstruction.png")

# %% [markdown]
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/10_switch_metadata.ipynb) has stubs, hints and checks.
# It needs no chips and no weights.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: a code for unknown places
# *Easy, 10 minutes*
#
# In an archive of photographs, some have a place and some have none, and all of them go into one batch.
#
# Write the code of each chip's place, `sin lat, cos lat, sin lon, cos lon`. Where `lat` or `lon` is unknown (NaN), all
# four numbers are zeros. Zero degrees is a place like any other.
#
# **Hint.** `torch.deg2rad` turns degrees into radians; `torch.stack([...], dim=1)` puts four vectors [B] side by side.
#
# **Hint.** `unknown = lat.isnan() | lon.isnan()`, and then `code[unknown] = 0`, or `torch.where` with `unknown[:,
# None]`.


# %% tags=["solution"]
def place_codes(lat, lon):
    """lat, lon [B] in degrees, NaN where unknown -> sin lat, cos lat, sin lon, cos lon, or four zeros, [B, 4]."""
    unknown = lat.isnan() | lon.isnan()
    lat, lon = torch.deg2rad(lat), torch.deg2rad(lon)
    code = torch.stack([lat.sin(), lat.cos(), lon.sin(), lon.cos()], dim=1)
    return torch.where(unknown[:, None], 0.0, code)


# %% tags=["check"]
checks.check_place_codes(place_codes)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: relative change
# *Medium, 10 minutes*
#
# A cosine of 0.98 looks like no change. But if two different chips have a cosine of 0.97, the chip has moved two thirds
# of the distance to another chip. So compare the two.
#
# Row i of `full` and row i of `reduced` embed the same chip, with all and with less metadata. Take the mean of 1 -
# cosine over the chips. Divide it by the mean of 1 - cosine over all pairs of **different** chips, one from `full` and
# the other from `reduced`. The vectors may have any length.
#
# **Hint.** With all vectors at length one, `a @ b.T` holds every cosine: each chip with itself on the diagonal, pairs
# of different chips everywhere else.
#
# **Hint.** `~np.eye(len(a), dtype=bool)` selects everything off the diagonal.


# %% tags=["solution"]
def relative_change(full, reduced):
    """full, reduced [N, D] -> mean 1 - cosine of a chip with itself, divided by that of two different chips."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (full, reduced))
    distance = 1 - a @ b.T  # [N, N]
    return np.diag(distance).mean() / distance[~np.eye(len(a), dtype=bool)].mean()


# %% tags=["check"]
checks.check_moved(relative_change)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: a permutation test
# *Hard, 20 minutes*
#
# A probe classifies more chips correctly when the model has all metadata. If the metadata made no difference, the two
# results for a chip could be swapped. How often does swapping alone give a difference as large as the observed one?
#
# `full` and `reduced` hold 1 where a chip was classified correctly and 0 elsewhere. Chips of one place are not
# independent, so they are swapped together or not at all: K places can be swapped in 2^K ways, and the observed one is
# among them. Go through all of them and return the share in which the two scores differ at least as much as observed,
# in either direction. This share is the p-value. (The check has seven places, with one to four chips each.)
#
# **Hint.** Swapping changes the sign of a difference. So only `(full - reduced)[places == name].sum()` of each place
# matters, and a way of swapping is one sign for each place.
#
# **Hint.** `np.array(list(product((1, -1), repeat=K)))` holds all ways, `[2^K, K]`; `@` with the sums gives all
# differences.
#
# **Hint.** Compare absolute values of sums, which are integers: means that should be equal may differ by rounding.


# %% tags=["solution"]
def p_value(full, reduced, places):
    """full, reduced [M] 0 or 1, places [M] -> share of all swaps of places that differ at least as much as observed."""
    sums = np.array([(full - reduced)[places == name].sum() for name in np.unique(places)])  # [K]
    signs = np.array(list(product((1, -1), repeat=len(sums))))  # [2^K, K]
    return (np.abs(signs @ sums) >= abs(sums.sum())).mean()


# %% tags=["check"]
checks.check_luck(p_value)

# %% [markdown]
# ## What you have learned
#
# - To switch metadata off, replace its code: zeros for place and time, one wavelength for all bands, a wrong GSD.
# - Without wavelengths, bands cannot be distinguished: embeddings, probes and reconstructions all suffer.
# - Metadata missing only at test time usually costs more than metadata that is always missing, since a probe adapts.
#
# **Exercise.** Set `kind` to "class token". Does any metadata matter more to it than to the patch mean?
#
# To compare other weights, set `weights`. As a sweep, over `off` and several seeds, run
# `clay sweep papermill_runs/sweeps/metadata.yaml`; [09](09_read_sweeps.ipynb) shows its results.
#
# Next: [11 Fine-tuning for segmentation](11_finetune_segmentation.ipynb), which trains a network on such embeddings.

# %%
reduced = labels[off]
always = lost.loc[(reduced, "always missing", PROBES[0])]
in_test = lost.loc[(reduced, "missing in test", PROBES[0])]
metrics = {
    "off": off,
    "knn": round(float(scores.loc[reduced, PROBES[0]]), 4),
    "linear": round(float(scores.loc[reduced, PROBES[1]]), 4),
    "knn with all metadata": round(float(scores.loc["all metadata", PROBES[0]]), 4),
    "linear with all metadata": round(float(scores.loc["all metadata", PROBES[1]]), 4),
    "knn points": round(float(always["points"]), 2),
    "knn points low": round(float(always["low"]), 2),
    "knn points high": round(float(always["high"]), 2),
    "knn points missing in test": round(float(in_test["points"]), 2),
    "cosine": round(float(cosines.loc[off, "cosine"]), 4),
    "error ratio": round(float(errors.loc[off, "value"]), 4),
    "error ratio with all metadata": round(float(errors.loc["nothing", "value"]), 4),
}
points = lost.xs(("always missing", PROBES[0]), level=("case", "probe"))["points"]
runs.write_metrics(
    out_dir, metrics | {"points by setting": {name: round(float(points[labels[name]]), 2) for name in settings}}
)
