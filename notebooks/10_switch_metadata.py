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
# # 10 Switching metadata off
#
# > **Which of the things that Clay is told about an image does it use?**
#
# Beside the pixels, Clay is told four things: the bands' wavelengths, the size of a pixel (GSD), the place and the
# time. Here they are taken away one at a time.
#
# You will see
# - what happens to the kernels when all bands are said to be of one wavelength,
# - how far each embedding moves, and what a probe of land cover loses by it,
# - what it costs when only the images that are asked about lack the information,
# - how much worse hidden pixels are rebuilt.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | small weights, shipped in `data/weights`, or your own; [07 Probing](07_probe_embeddings.ipynb) tells what probes and intervals are | about 1 on two cores (not measured on a GPU) | chips of the mini-world, made here and kept in `data/cache` |

# %%
from dataclasses import replace
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from clay_lib import SENSORS, Clay, figures
from clay_lib.clay import embed_chips, reconstruction_scores
from clay_lib.course import checks
from clay_lib.data.chips import world_chips
from clay_lib.data.splits import spatial_blocks
from clay_lib.evaluation import baselines, probes
from clay_lib.evaluation.ablation import SETTINGS, WRONG_GSD, cosine_change, withhold, without
from clay_lib.evaluation.evaluate import Evaluation
from clay_lib.runs.notebooks import output_folder, write_metrics

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the mini-world, of what is hidden and of every draw
out: str = ""  # folder for results; empty: papermill_runs/lab/10_switch_metadata
weights: str = "clay-mini.safetensors"  # shipped; or a path, or what 04 put into data/cache: notebook_04.safetensors
off: str = "all"  # wavelengths, gsd, place or time: this alone; all: each of them, and the four together
sensor: str = "sentinel-2-l2a"
kind: str = "patch mean"  # which vector of a chip: "patch mean" or "class token"
chips: int = 330  # to train the probes on
test_chips: int = 165  # on other land
chip_size: int = 64  # pixels a side
dates: int = 2  # at which every place is seen
draws: int = 5  # halves of the training places, and draws of what is hidden
bootstraps: int = 1000  # resamplings behind every interval

# %% [markdown]
# ## What "off" means
#
# The model always takes a number for each of the four, so nothing can simply be left out. Place and time have a code
# for *unknown*: zeros, which training used now and then. For the other two there is none. Wavelengths are taken away by
# telling every band the same one, their mean. The pixel size is taken away by telling a wrong one, a tenth of the
# true: that asks not what knowing it is worth but whether the model listens.

# %%
out_dir = output_folder(out, "10_switch_metadata")
settings = SETTINGS if off == "all" else (off,)
common = dict(size=chip_size, seed=seed, dates=dates)
train = world_chips(sensor, chips, split="train", **common)
test = world_chips(sensor, test_chips, split="test", **common)
clay = Clay.load(weights)
print(f"train {train.pixels.shape}, test {test.pixels.shape}; to be switched off: {', '.join(settings)}")

# %% [markdown]
# ## By hand
#
# A `Datacube` holds the pixels and the four codes. Replacing one code and asking the encoder again is all there is to
# it. The library's `withhold` gives a Clay that does so with every image it is handed.

# %%
few = test[:8]
cube = clay.cube(few.pixels, sensor, **few.place_and_time)
blind = replace(cube, latlon=torch.zeros_like(cube.latlon))
by_hand = clay.model.encoder(blind, mask_ratio=0.0, shuffle=False).tokens[:, 0]

library = withhold(clay, "place").embed(few.pixels, sensor, **few.place_and_time).chip
torch.testing.assert_close(by_hand, library)
torch.testing.assert_close(by_hand, clay.embed(few.pixels, sensor, when=few.place_and_time["when"]).chip)
moved = torch.cosine_similarity(by_hand, clay.embed(few.pixels, sensor, **few.place_and_time).chip)
print("1 - cosine of the class tokens with and without place:", (1 - moved).numpy().round(6))

# %% [markdown]
# ## One wavelength for all bands
#
# Clay makes the kernels that cut an image into tokens from the wavelengths alone
# ([01](01_embed_patches.ipynb)). If all bands have the same wavelength they get the same kernels: the model then sees
# the sum of the bands, a grey image.

# %%
made = {"wavelengths told": cube, "one wavelength for all": without(cube, "wavelengths")}
names = SENSORS[sensor].band_names
shown = [0, len(names) // 2, len(names) - 1]
made = {title: clay.model.encoder.patch_embedding.kernels(one.waves)[0] for title, one in made.items()}  # [D, C, P, P]
strong = np.argsort(-made["wavelengths told"].abs().mean(dim=(1, 2, 3)).numpy())[:6]
for title, kernels in made.items():
    bands = [names[b] for b in shown]
    fig = figures.kernels(
        kernels[:, shown], band_names=bands, chosen=strong, own_scale=True, title=f"Six kernels, {title}"
    )
    plt.show()
same = kernels - kernels[:, :1]
assert same.abs().max() < 1e-5, "bands of one wavelength have one kernel"

# %% [markdown]
# ## Embedding everything, once for each setting
#
# Both the training and the test chips lose the information, as in an archive that never had it.

# %%
models = {"nothing": clay, **{name: withhold(clay, name) for name in settings}}
found = {name: [embed_chips(model, part)[kind] for part in (train, test)] for name, model in models.items()}
places = np.unique(np.stack([test.lat, test.lon]), axis=1, return_inverse=True)[1].ravel()
cosines = pd.DataFrame(
    {
        name: cosine_change(found["nothing"][1], found[name][1], groups=places, bootstraps=bootstraps)
        for name in settings
    }
).T
cosines.round(4)

# %% [markdown]
# A cosine of 1 means that nothing moved. For scale: `unrelated` is the mean cosine of the embeddings of *different* chips,
# one told and one not. Where the two are near each other, a chip is as strange to itself as any other.

# %%
same = cosines.rename(columns={"cosine": "value"}).assign(kind="the same chip, told less")
other = cosines.rename(columns={"unrelated": "value"}).assign(kind="another chip, told less", low=np.nan, high=np.nan)
bars = (
    pd.concat([same, other])
    .loc[list(settings)]
    .rename_axis("name")
    .reset_index()[["name", "value", "low", "high", "kind"]]
)
fig = figures.bars_with_intervals(
    bars,
    label=f"cosine to the embedding that was told everything ({kind})",
    title="How far embeddings move when something is not told",
    form="{:.3f}",
)
figures.save(fig, out_dir / "cosines.png")
plt.show()

# %% [markdown]
# ## What a probe loses
#
# Moving is not yet losing: all embeddings may move together. So the probes of [07](07_probe_embeddings.ipynb) tell land
# cover from each setting's own embeddings, on land that they were not trained on. Each draw takes half of the training
# places; the interval (95 %) knows the luck of the draws and of the test places. Pixel statistics stand beside them as
# a floor: they are told nothing but the pixels.

# %%
which = ("kNN-20 cosine", "linear")
seen = [SENSORS[sensor].normalize(part.pixels) for part in (train, test)]
sets = {f"told all but {name}" if name != "nothing" else "told everything": v for name, v in found.items()}
sets = {name.replace("all but all", "nothing"): v for name, v in sets.items()}
sets["pixel statistics"] = [baselines.pixel_statistics(x) for x in seen]
blocks = spatial_blocks(train.lat, train.lon, 6.0)


def answers_of(sets):
    """Answers of the probes, trained on half of the places of `train`, `draws` times."""
    told = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        place = np.unique(np.stack([train.lat, train.lon]), axis=1, return_inverse=True)[1].ravel()
        part = rng.permutation(place.max() + 1)[place] % 2 == 0
        known = dict(train_groups=blocks[part], test_groups=places, which=which, seed=draw)
        pairs = {name: (a[part], b) for name, (a, b) in sets.items()}
        asked = np.isin(test.land_cover, train.land_cover[part])
        pairs = {name: (a, b[asked]) for name, (a, b) in pairs.items()}
        known["test_groups"] = places[asked]
        told.append(probes.predict(pairs, train.land_cover[part], test.land_cover[asked], **known))
    return pd.concat(told, ignore_index=True)


own = Evaluation(answers_of(sets), bootstraps=bootstraps)
scores = own.table.pivot(index="features", columns="probe", values="score").loc[list(sets)]
scores.round(3)

# %%
for probe in which:
    part = own.table[own.table["probe"] == probe].rename(columns={"features": "name", "score": "value"})
    fig = figures.bars_with_intervals(
        part.replace({"kind": {"model": "Clay"}}),
        label="share of test chips named correctly",
        title=f"Land cover, {probe}",
        limits=(0, 1),
    )
    figures.save(fig, out_dir / f"scores_{probe.split(' ')[0]}.png")
    plt.show()

# %% [markdown]
# ## The difference, chip by chip
#
# Both scores come from the same chips, so their difference is surer than either. Below zero, the information was worth
# something; an interval that holds zero leaves it open. And a harder question: what if the probe was trained on chips
# that were told everything, and only the chips to be told apart lack it, such as photographs without a date?

# %%
label = {name: "told nothing" if name == "all" else f"told all but {name}" for name in settings}
untold = {label[name]: (found["nothing"][0], found[name][1]) for name in settings}  # trained on what was told all
late, lost = answers_of({"told everything": found["nothing"], **untold}), {}
for when, told in (("never told", own.predictions), ("not told at the end", late)):
    told = told[told["features"].isin(["told everything", *label.values()])]
    floor = np.where(told["features"] == "told everything", "baseline", "model")  # what the others are compared with
    gains = probes.difference(told.assign(kind=floor), bootstraps=bootstraps).set_index(["features", "probe"])
    for name in settings:
        for probe in which:
            row = gains.loc[(label[name], probe)]
            lost[name, when, probe] = (100 * row["difference"], 100 * row["low"], 100 * row["high"])
lost = pd.DataFrame(lost, index=["points", "low", "high"]).T.rename_axis(["off", "when", "probe"])
lost.round(1)

# %%
with figures.styled():
    fig, axes = plt.subplots(1, len(which), figsize=(8.4, 0.55 * len(settings) + 1.6), sharey=True, sharex=True)
    for ax, probe in zip(axes, which, strict=True):
        for k, (when, colour) in enumerate((("never told", 0), ("not told at the end", 1))):
            part = lost.xs((when, probe), level=("when", "probe")).loc[list(settings)]
            y = np.arange(len(settings)) + 0.16 * (2 * k - 1)
            ends = [part["points"] - part["low"], part["high"] - part["points"]]
            ax.errorbar(part["points"], y, xerr=ends, fmt="os"[k], color=figures.PALETTE[colour], label=when, capsize=3)
        ax.axvline(0, color="#9a9a9a", ls="--", lw=1.2)
        ax.set(title=probe, xlabel="points against being told everything")
    axes[0].set_yticks(range(len(settings)), settings)
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
figures.save(fig, out_dir / "lost.png")
plt.show()

# %% [markdown]
# ## Rebuilding hidden pixels
#
# Three quarters of each chip are hidden and rebuilt. The error is that of the hidden pixels over that of guessing the
# mean of what is visible; 1 means that nothing was gained by the model.

# %%
rows = []
for name, model in models.items():
    tables = [reconstruction_scores(model, test, seed=seed + k) for k in range(draws)]
    ratios = [float(t["error"].mean() / t["mean_error"].mean()) for t in tables]
    rows.append({"off": name, "ratio": np.mean(ratios), "low": min(ratios), "high": max(ratios)})
rebuilt = pd.DataFrame(rows).set_index("off")
if "wavelengths" in settings:
    assert rebuilt.loc["wavelengths", "low"] > rebuilt.loc["nothing", "high"], "bands cannot be told apart any more"
bars = rebuilt.rename(columns={"ratio": "value"}).rename_axis("name").reset_index()
fig = figures.bars_with_intervals(
    bars.assign(kind=np.where(bars["name"] == "nothing", "told everything", "told less")),
    label=f"error of hidden pixels over that of the visible mean ({draws} draws: mean, least, most)",
    title="Rebuilding hidden pixels with something switched off",
)
figures.save(fig, out_dir / "rebuilt.png")
plt.show()

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/10_switch_metadata.ipynb) have a notebook of their own, with
# empty places, hints and checks; it needs no chips and no weights.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: a place that is not known
# *Easy, 10 minutes*
#
# In an archive of photographs some have a place and some have none. All of them go into one batch, and the model has to be
# told which is which.
#
# Write the code of each chip's place, `sin lat, cos lat, sin lon, cos lon`. Where `lat` or `lon` is not known, NaN, all
# four numbers are zeros. A chip at 0 degrees lies somewhere, and has a code like any other.
#
# **Hint.** `torch.deg2rad` turns degrees into radians; `torch.stack([...], dim=1)` puts four lists of B numbers side by side.
#
# **Hint.** `unknown = lat.isnan() | lon.isnan()`, and then `code[unknown] = 0`, or `torch.where` with `unknown[:, None]`.


# %% tags=["solution"]
def place_codes(lat, lon):
    """lat, lon [B] in degrees, NaN where not known -> sin lat, cos lat, sin lon, cos lon, or four zeros, [B, 4]."""
    unknown = lat.isnan() | lon.isnan()
    lat, lon = torch.deg2rad(lat), torch.deg2rad(lon)
    code = torch.stack([lat.sin(), lat.cos(), lon.sin(), lon.cos()], dim=1)
    return torch.where(unknown[:, None], 0.0, code)


# %% tags=["check"]
checks.check_place_codes(place_codes)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: how far, beside how far apart
# *Medium, 10 minutes*
#
# A cosine of 0.98 sounds like nothing. But if two different chips have a cosine of 0.97, the chip has moved two thirds as
# far as another chip lies. So put the one beside the other.
#
# Row i of `told` and of `untold` are the embeddings of the same chip, told everything and told less. Take 1 - cosine of
# each chip's two embeddings, and their mean. Divide it by the mean of 1 - cosine over all pairs of *different* chips, one of
# `told` and the other of `untold`. Vectors are of any length.
#
# **Hint.** With all vectors at length one, `a @ b.T` holds every cosine: the chips with themselves on the diagonal, the
# pairs of different chips everywhere else.
#
# **Hint.** `~np.eye(len(a), dtype=bool)` picks what is not on the diagonal.


# %% tags=["solution"]
def share_moved(told, untold):
    """told, untold [N, D] -> mean 1 - cosine of a chip with itself, as a share of that of two different chips."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (told, untold))
    apart = 1 - a @ b.T  # [N, N]
    return np.diag(apart).mean() / apart[~np.eye(len(a), dtype=bool)].mean()


# %% tags=["check"]
checks.check_moved(share_moved)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: could it be luck?
# *Hard, 20 minutes*
#
# A probe names more chips correctly when the model is told everything. If what it was told were worth nothing, it would be
# chance which of the two answers to a chip came from which model, and they could as well be swapped. How often does a
# difference like the one seen come about by swapping alone?
#
# `told` and `untold` hold 1 where a chip was named correctly and 0 where not. The chips of a place stand or fall together,
# so they are swapped together or not at all: K places can be swapped in 2^K ways, the way as it was seen among them. Go
# through all of these and give the share whose difference of the two scores is at least as large as the one seen, in
# either direction. (The check has seven places, with one to four chips each. Such a share is called a p-value.)
#
# **Hint.** Swapping the two turns the sign of their difference. So for each place only `(told - untold)[places == name].sum()`
# matters, and a way of swapping is a sign for each place.
#
# **Hint.** `np.array(list(product((1, -1), repeat=K)))` holds all ways, `[2^K, K]`; `@` with the sums gives all differences.
#
# **Hint.** Compare the absolute values of sums, which are whole numbers: means that should be equal may differ by rounding.


# %% tags=["solution"]
def luck(told, untold, places):
    """told, untold [M] 0 or 1, places [M] -> share of all swaps of places that differ at least as much as what was seen."""
    sums = np.array([(told - untold)[places == name].sum() for name in np.unique(places)])  # [K]
    ways = np.array(list(product((1, -1), repeat=len(sums))))  # [2^K, K]
    return (np.abs(ways @ sums) >= abs(sums.sum())).mean()


# %% tags=["check"]
checks.check_luck(luck)

# %% [markdown]
# ## What was seen

# %%
knn, line = (lost.xs(("never told", probe), level=("when", "probe")) for probe in which)
late = lost.xs(("not told at the end", which[0]), level=("when", "probe"))
last = "told nothing" if off == "all" else f"told all but {off}"
write_metrics(
    out_dir,
    {
        "off": off,
        "knn": round(float(scores.loc[last, which[0]]), 4),
        "linear": round(float(scores.loc[last, which[1]]), 4),
        "knn told everything": round(float(scores.loc["told everything", which[0]]), 4),
        "linear told everything": round(float(scores.loc["told everything", which[1]]), 4),
        "knn points": round(float(knn.loc[off, "points"]), 2),
        "knn points low": round(float(knn.loc[off, "low"]), 2),
        "knn points high": round(float(knn.loc[off, "high"]), 2),
        "knn points if lost at the end": round(float(late.loc[off, "points"]), 2),
        "cosine": round(float(cosines.loc[off, "cosine"]), 4),
        "error ratio": round(float(rebuilt.loc[off, "ratio"]), 4),
        "error ratio told everything": round(float(rebuilt.loc["nothing", "ratio"]), 4),
        "points by setting": {name: round(float(knn.loc[name, "points"]), 2) for name in settings},
    },
)
single = [name for name in settings if name != "all"]
moved = cosines.loc[single, "cosine"].idxmin()
worst, dear = knn.loc[single, "points"].idxmin(), late.loc[single, "points"].idxmin()
print(f"""- Embeddings move most without {moved} (cosine {cosines.loc[moved, "cosine"]:.3f}; with another chip {cosines.loc[moved, "unrelated"]:.3f}).
- kNN-20 changes most without {worst}: {knn.loc[worst, "points"]:+.1f} points ({knn.loc[worst, "low"]:+.1f} to \
{knn.loc[worst, "high"]:+.1f}); if only the test chips lack it, most without {dear}: {late.loc[dear, "points"]:+.1f}.
- Hidden pixels: error ratio {rebuilt.loc["nothing", "ratio"]:.2f} told everything, \
{rebuilt.loc[settings[-1], "ratio"]:.2f} without {settings[-1]}. The pixel size was told as {WRONG_GSD:g} of the true one.""")

# %% [markdown]
# These are the shipped small weights on a synthetic Earth. The question is the same for any weights: set `weights`. One
# setting at a time, over several seeds, is a sweep: `off` and `seed` are parameters.
#
# Next: [11 Fine-tuning a segmentation head](11_finetune_segmentation.ipynb) trains on such embeddings instead of probing them.
