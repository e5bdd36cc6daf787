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
# # 11 Fine-tuning for segmentation
#
# > **How well does a head on Clay segment land it was not trained on, with a few hundred labeled chips?**
#
# You will see
# - a classifier of single pixels beside a head on Clay, scored class by class,
# - a frozen encoder beside one whose last blocks are trained as well,
# - a land-cover map of a scene, written as a GeoTIFF.
#
# ![Where this notebook stands: heads](flow/11_finetune_segmentation.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [07 Linear probes](07_probe_embeddings.ipynb); the small weights of this repository, or your own from [04 Training](04_train_clay.ipynb) | 2.2 on two cores | chips of the synthetic Earth, or rasters and label rasters of your own |
#
# For your own data, set `images`, `labels` and `classes` below. Nothing else changes.

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rasterio
import torch
from IPython.display import display

from clay_lib import Clay, data, evaluation, figures, heads, runs, world
from clay_lib.areas.rasters import checkerboard
from clay_lib.course import checks
from clay_lib.evaluation import segmentation
from clay_lib.heads.finetune import finetune

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth, of the heads and of every random draw
out: str = ""  # folder for results; empty: papermill_runs/lab/11_finetune_segmentation
weights: str = "clay-mini"  # the small weights of this repository; or a path; or what 04 saved: notebook_04.safetensors
images: str = ""  # a folder of your own rasters; empty: the synthetic Earth
labels: str = ""  # folder of label rasters with the same names and grids, or polygons or points with a class column
classes: str = ""  # numbers of the classes and their names: "1 water, 2 forest, 3 crops"; empty: those of the column
ignore: int = 0  # number of unlabeled pixels in the label rasters
sensor: str = "sentinel-2-l2a"
chips: int = 440  # chips of the synthetic Earth for training and validation
test_chips: int = 220  # test chips of the synthetic Earth, in other places
chip_size: int = 64  # pixels a side, a multiple of 8
epochs: int = 8  # over the training chips, with a frozen encoder
deeper_epochs: int = 2  # over the training chips, while the last blocks are trained too
last_blocks: int = 2  # blocks of the encoder that are trained in the second run
scene_pixels: int = 192  # pixels a side of the scene to map
bootstraps: int = 1000  # resamplings for each interval

# %% [markdown]
# ## Images and labels
#
# A labeled set holds chips in the sensor's own units, with a class number for every pixel. Here the chips come from the
# synthetic Earth, whose land cover is known exactly; your own rasters are cut into the same kind of set.
#
# The test chips come from other blocks of land than the training chips. Neighboring pixels are so similar that a random
# split would overestimate the score.

# %%
out_dir = runs.output_folder(out, "11_finetune_segmentation")
kwargs = dict(classes=classes, ignore=ignore, chips=chips, test_chips=test_chips, size=chip_size, seed=seed)
train, val, test = data.segmentation_sets(images, labels, sensor, **kwargs)
names, codes, groups = test.classes, test.codes, test.places["group"]
colors = dict(enumerate(figures.PALETTE))
truth = np.stack([test[i].label for i in range(len(test))])  # [N, H, W], -1 where unlabeled
if not images:
    colors = {number: world.CLASS_COLORS[code] for number, code in enumerate(codes)}
    assert not set(train.places["group"]) & set(groups)
print(f"{len(train)} training, {len(val)} validation and {len(test)} test chips; {len(names)} classes")

# %%
largest_share = [np.bincount(label[label != data.IGNORE], minlength=2).max() / label.size for label in truth]
examples = np.argsort(largest_share)[:5]  # chips with several classes
rgb = {i: figures.rgb(test[i].pixels, test.sensor, test.bands, in_decibel=test.in_decibel) for i in examples}
panels = [*rgb.values(), *(figures.class_image(truth[i], colors) for i in examples)]
fig = figures.show_row(panels, ["image"] * 5 + ["labels"] * 5, gsd=test.gsd, columns=5, size=1.7)
figures.class_legend(fig, truth[examples], names, colors)
_ = figures.save(fig, out_dir / "labels.png")

# %% [markdown]
# ## Mean IoU, by hand
#
# First a baseline: a random forest of 100 trees that classifies every pixel by its bands alone, without its neighbors.
#
# The score is the intersection over union of each class $k$, with true pixels $T_k$ and predicted pixels $P_k$, counted
# over all test chips (the Jaccard index):
#
# $$\mathrm{IoU}_k = \frac{|T_k \cap P_k|}{|T_k \cup P_k|}$$
#
# The mean over the classes gives a rare class the same weight as a common one, so predicting the most common class
# everywhere scores close to zero. Only classes that occur in the test labels are averaged.

# %%
classify = segmentation.pixel_classifier(train, kind="forest", seed=seed)
baseline = np.stack([classify(test[i].pixels) for i in range(len(test))])  # [N, H, W]

known = truth != data.IGNORE
present = np.unique(truth[known])
ious = []
for k in present:
    true, predicted = truth == k, (baseline == k) & known
    ious.append((true & predicted).sum() / (true | predicted).sum())
tables = {"single pixels": segmentation.confusions(truth, baseline, len(names))}  # [N, K, K]
library = segmentation.iou(tables["single pixels"].sum(axis=0))[present]
torch.testing.assert_close(torch.tensor(np.array(ious)), torch.from_numpy(library))
print(f"mean IoU of single pixels: {np.mean(ious):.3f}")

# %% [markdown]
# ## A head on a frozen encoder
#
# The encoder returns one token for each patch of 8 x 8 pixels. The head takes the tokens of three blocks and the class
# token, standardizes them, applies a linear layer to each, and upsamples their sum to the pixel grid. Two small
# convolutions add the pixels themselves, because tokens say what is there but not exactly where the border lies. Two 1
# x 1 convolutions then give the class scores.
#
# The encoder is frozen, so its tokens are computed once and kept; an epoch trains only the head. Each step computes the
# loss on one pixel in sixteen, since neighboring pixels are nearly redundant.
#
# > **On a laptop.** Clay's own segmentation tutorial uses the released encoder. Here the encoder is the small one of
# > this repository, with chips of 64 pixels.

# %%
clay = Clay.load(weights)
settings = heads.FinetuneSettings(epochs=epochs, batch_size=16, lr=3e-3, balance=0.25, seed=seed)
layers = heads.spread_layers(clay.model.config.depth, 3)
kwargs = dict(layers=layers, bands=len(train.bands), progress=False)
frozen = finetune(clay, train, val, out=out_dir / "frozen", settings=settings, **kwargs)
print(f"parameters of the head: {sum(p.numel() for p in frozen.head.parameters()):,}")
frozen.history.round(3)

# %% [markdown]
# ## Training the last blocks too
#
# Now the last blocks of the encoder are trained as well, with a smaller learning rate than the head. The rate also
# decays from block to block toward the input (layer-wise learning-rate decay), so that the encoder adapts without
# losing what it learned in pretraining.
#
# > **On a laptop.** The tokens must be computed again in every step, which takes much longer. This run has fewer epochs
# > and smaller batches than the first, so the comparison is not entirely fair to it.

# %%
slower = replace(settings, epochs=deeper_epochs, batch_size=8)
deeper = finetune(clay, train, val, out=out_dir / "deeper", unfreeze=last_blocks, settings=slower, **kwargs)
tuned = {"frozen encoder": frozen, f"last {last_blocks} blocks trained": deeper}
predictions = {name: model.predict(test).argmax(axis=1) for name, model in tuned.items()}  # [N, H, W] each
for name, prediction in predictions.items():
    tables[name] = segmentation.confusions(truth, prediction, len(names))
deeper.history.round(3)

# %%
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    for (name, model), color in zip(tuned.items(), figures.PALETTE, strict=False):
        ax.plot(model.history["epoch"] + 1, model.history["val/mean IoU"], "o-", color=color, label=name)
    ax.set(xlabel="epoch", ylabel="mean IoU, validation chips", title="Validation during training", ylim=(0, 1))
    ax.set_xticks(range(1, max(epochs, deeper_epochs) + 1))
    ax.legend()
_ = figures.save(fig, out_dir / "learning.png")

# %% [markdown]
# ## Class by class
#
# The 95 % intervals come from resampling blocks of test land, so they cover the choice of test places but not the luck
# of a training run. The gain over the baseline is computed on the same resamples, which removes the variation common to
# both. A dash means that no test pixel has the class, or that there is only one block.

# %%
kwargs = dict(groups=groups, bootstraps=bootstraps, seed=seed)
scores = {name: evaluation.class_scores(table, names, **kwargs).set_index("class") for name, table in tables.items()}
columns = ["IoU", "IoU low", "IoU high"]
texts = {name: [evaluation.as_text(*row) for row in table[columns].to_numpy()] for name, table in scores.items()}
summary = pd.DataFrame(texts, index=scores["single pixels"].index)
display(summary.assign(**{"test pixels": scores["single pixels"]["pixels"]}))
gains = {}
for name in tuned:
    gain = 100 * np.array(segmentation.iou_gain(tables[name], tables["single pixels"], **kwargs))
    gains[name] = evaluation.as_text(*gain, form="{:+.1f}")
    print(f"{name}: gain in mean IoU over single pixels, percentage points: {gains[name]}")

# %%
kinds = {"single pixels": "baseline", "frozen encoder": "head on a frozen encoder"}
rows = [scores[name].reset_index().assign(model=name, kind=kind) for name, kind in kinds.items()]
rows = pd.concat(rows).rename(columns={"IoU": "value", "IoU low": "low", "IoU high": "high"})
rows = rows.dropna(subset=["value"]).sort_index(kind="stable")
rows["name"] = rows["class"] + np.where(rows["kind"] == "baseline", ", single pixels", "")
label = "intersection over union"
fig = figures.bars_with_intervals(rows, label=label, title="Intersection over union by class", limits=(0, 1))
_ = figures.save(fig, out_dir / "classes.png")

# %%
best = max(tuned, key=lambda name: scores[name].loc["mean", "IoU"])
panels = []
for i in examples[:4]:
    maps = (truth[i], baseline[i], predictions[best][i])
    panels += [rgb[i], *(figures.class_image(numbers, colors) for numbers in maps)]
titles = ["image", "labels", "single pixels", best] * 4
fig = figures.show_row(panels, titles, gsd=test.gsd, columns=4, size=1.7)
every = np.stack([truth[examples[:4]], baseline[examples[:4]], predictions[best][examples[:4]]])
figures.class_legend(fig, every, names, colors)
_ = figures.save(fig, out_dir / "maps.png")

# %% [markdown]
# ## A map of a scene
#
# A scene is larger than a chip. It is predicted in overlapping windows, whose scores are blended where they overlap.
# The result is a GeoTIFF on the scene's own grid: band 1 is the class, band 2 its probability. Open it in QGIS together
# with the image.

# %%
if images:
    stem, when = test.places["name"].iloc[0].split(" row ")[0], None
    path = next(p for p in sorted(Path(images).iterdir()) if p.stem == stem)
    scene = data.open_scene(path, sensor, largest=8192)
else:
    scene = data.open_scene("", sensor, size=scene_pixels, land_cover=40, index=1, seed=seed)
    kwargs = dict(crs=scene.crs, transform=scene.transform, descriptions=scene.bands)
    path, when = data.write_raster(out_dir / "scene.tif", scene.pixels, **kwargs), scene.when

# %%
folder = out_dir / ("frozen" if best == "frozen encoder" else "deeper")
model = heads.Finetuned.load(folder / "best.safetensors", clay)
kwargs = dict(tile=chip_size, overlap=chip_size // 2, when=when)
land_cover = heads.predict_raster(model, path, out_dir / "land_cover.tif", **kwargs)

# %%
with rasterio.open(land_cover) as file, rasterio.open(path) as source:
    assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, source.shape)
    predicted_codes, probability = file.read().astype(int)
    print(f"{land_cover.name}: {file.shape[0]} x {file.shape[1]} pixels, {file.crs}, {file.descriptions}")
number_of = np.full(256, data.IGNORE)  # class number by code
number_of[list(codes)] = np.arange(len(codes))
maps = {"prediction": number_of[predicted_codes]}
if scene.labels is not None:
    maps = {"labels": number_of[scene.labels], **maps}
    print(f"correct pixels: {(maps['prediction'] == maps['labels']).mean():.1%}")

# %%
image = figures.rgb(scene.measured(), scene.sensor, scene.bands, valid=scene.valid, in_decibel=scene.in_decibel)
panels = [image, *(figures.class_image(numbers, colors) for numbers in maps.values())]
fig = figures.show_row(panels, ["scene", *maps], gsd=scene.gsd, size=2.9, title="Land cover of a scene")
figures.class_legend(fig, np.stack(list(maps.values())), names, colors)
_ = figures.save(fig, out_dir / "map.png")

# %%
percent = np.where(probability == 255, np.nan, probability)
kwargs = dict(limits=(0, 100), label="probability of the predicted class (%)", title="Probability")
fig = figures.show_row([percent], gsd=scene.gsd, size=3.4, **kwargs)
_ = figures.save(fig, out_dir / "probability.png")

# %% [markdown]
# ## Why upsample by resizing
#
# A transposed convolution, the other common way to upsample, computes each pixel of a patch with different weights.
# This leaves a pattern with the period of the patches, the checkerboard artifact (Odena, Dumoulin and Olah 2016,
# [doi:10.23915/distill.00003](https://doi.org/10.23915/distill.00003)).
#
# To make it visible, we train the same head both ways, without the pixel branch and for an eighth of the epochs. The
# measure is the spectral energy of the class scores at the period of the patches, relative to neighboring frequencies;
# 1 means no artifact.

# %%
kwargs = dict(layers=layers, bands=0, progress=False, settings=replace(settings, epochs=max(1, epochs // 8)))
tokens_only = {}
for way in ("resize", "transposed"):
    tokens_only[way] = finetune(clay, train, val, upsampling=way, **kwargs).predict(test)  # [N, K, H, W]
P = clay.model.config.patch_size
artifact = {way: float(np.mean([checkerboard(chip, P) for chip in x])) for way, x in tokens_only.items()}
one_hot = (truth[:, None] == np.arange(len(names))[:, None, None]).astype(float)  # [N, K, H, W]
reference = np.mean([checkerboard(chip, P) for chip in one_hot])
for way, value in artifact.items():
    print(f"{way:<11} checkerboard {value:.2f} (labels: {reference:.2f})")
runs.claim(artifact["resize"] < artifact["transposed"], "resizing leaves a weaker checkerboard")

# %%
chip = int(examples[0])
k = int(tokens_only["resize"][chip].mean(axis=(1, 2)).argmax())
panels = [tokens_only[way][chip, k] for way in artifact]
titles = [f"{way}: checkerboard {value:.2f}" for way, value in artifact.items()]
kwargs = dict(limits=(0, 1), label=f"probability of {names[k]}", size=3, title="One chip, upsampled in two ways")
fig = figures.show_row(panels, titles, gsd=test.gsd, **kwargs)
_ = figures.save(fig, out_dir / "checkerboard.png")

# %% [markdown]
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/11_finetune_segmentation.ipynb) has stubs, hints and
# checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: a learning rate for every block
# *Easy, 5 minutes*
#
# In layer-wise learning-rate decay, the last block gets the rate `top`, and every earlier block `decay` times the rate
# of the block after it. The first blocks, whose features are general, change least; the last ones adapt to the new
# task.
#
# Return the rates of all `depth` blocks, first block first. Only the last `last` blocks are trained; the ones before
# them are frozen, with rate 0. `last` is between 0 (all frozen) and `depth`.
#
# **Hint.** Block i, counted from 0, is followed by `depth - 1 - i` blocks: its rate is multiplied by `decay` that many
# times.


# %% tags=["solution"]
def rates(depth, last, top, decay):
    """Learning rates of the encoder's blocks, first block first, [depth]; 0 where frozen."""
    following = depth - 1 - np.arange(depth)
    return np.where(following < last, top * decay**following, 0.0)


# %% tags=["check"]
checks.check_block_rates(rates)

# %% tags=["given"]
all_rates = rates(24, 24, 2e-4, 0.75)  # the 24 blocks of the released Clay
print(f"with all 24 blocks trained, the last one's rate is {all_rates[-1] / all_rates[0]:.0f} times the first one's")

# %% [markdown] tags=["exercise"]
# ### Exercise 2: mean IoU with real labels
# *Medium, 10 minutes*
#
# Three things distort a mean IoU: unlabeled pixels, classes that do not occur, and chips with few labels that count as
# much as the others. Write it so that they do not.
#
# `truth` and `predicted` are class numbers of N chips, from 0 to `count - 1`. Where `truth` is `ignore`, the pixel is
# unlabeled and its prediction does not count. Count over all chips first, then divide. Average over the classes that
# occur in the labels. Leave out a class that is only predicted: the error already counts against the true class, and
# two predictions for the same land must be averaged over the same classes.
#
# **Hint.** Begin with `known = truth != ignore`, and use only `truth[known]` and `predicted[known]`, both of shape
# `[M]`.
#
# **Hint.** For each class in `np.unique(truth[known])`, divide the number of pixels in the intersection by the number
# in the union.


# %% tags=["solution"]
def mean_iou(truth, predicted, count, ignore):
    """truth, predicted [N, H, W] -> mean over classes of intersection over union, a number."""
    known = truth != ignore
    truth, predicted = truth[known], predicted[known]
    values = []
    for k in range(count):
        if (truth == k).any():
            values.append(((truth == k) & (predicted == k)).sum() / ((truth == k) | (predicted == k)).sum())
    return np.mean(values)


# %% tags=["check"]
checks.check_mean_iou(mean_iou)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: bilinear upsampling by hand
# *Hard, 15 minutes*
#
# Upsampling has to respect pixel centers: ignoring the half-pixel offsets shifts a map of 8 x 8 patches by 3.5 pixels,
# which is 35 m at 10 m a pixel.
#
# Upsample one row of patches. `values` holds one number per patch, located at the center of the patch; each patch is
# `factor` pixels wide. Interpolate linearly to the center of every pixel. Before the center of the first patch and
# after the center of the last, the value stays constant.
#
# **Hint.** Measure in patches. The center of pixel i is at `(i + 0.5) / factor` from the left border; the first patch's
# center is at 0.5.
#
# **Hint.** `np.interp(x, xp, fp)` interpolates linearly and is constant outside.


# %% tags=["solution"]
def resized(values, factor):
    """values [n] at the centers of patches -> [n * factor] at the centers of pixels."""
    positions = (np.arange(len(values) * factor) + 0.5) / factor - 0.5  # in patches, from the center of the first
    return np.interp(positions, np.arange(len(values)), values)


# %% tags=["check"]
checks.check_resized(resized)

# %% tags=["given"]
grid = np.random.default_rng(0).normal(size=(3, 5))  # patches; upsampling rows, then columns, is bilinear
rows_done = np.array([resized(row, 8) for row in grid])
upsampled = np.array([resized(column, 8) for column in rows_done.T]).T
by_torch = torch.nn.Upsample(scale_factor=8, mode="bilinear", align_corners=False)(torch.from_numpy(grid)[None, None])
torch.testing.assert_close(torch.from_numpy(upsampled), by_torch[0, 0])
print(f"{grid.shape} -> {upsampled.shape}, equal to torch.nn.Upsample, which the head uses")

# %% [markdown]
# ## What you have learned
#
# - A small head on a frozen encoder uses the context of a pixel, which a classifier of single pixels lacks; the table
#   above shows for which classes this matters.
# - Training the last blocks takes longer per epoch than training the head alone. Compare both before you choose.
# - Upsampling by resizing avoids checkerboard artifacts, and overlapping windows make a map without seams.
#
# **Exercise.** Set `last_blocks` to 4 and `deeper_epochs` to 8. Is the gain worth the time?
#
# Next: [12 Small embeddings](12_shrink_embeddings.ipynb), or back to [07 Linear probes](07_probe_embeddings.ipynb).

# %%
means = {name: float(table.loc["mean", "IoU"]) for name, table in scores.items()}
metrics = {f"mean IoU, {name}": round(value, 3) for name, value in means.items()}
metrics |= {f"points over single pixels, {name}": text for name, text in gains.items()}
metrics |= {f"checkerboard, {way}": round(value, 2) for way, value in artifact.items()}
runs.write_metrics(out_dir, metrics)
hardest = scores[best].drop(index="mean")["IoU"].idxmin()
print(f"{best}: mean IoU {means[best]:.2f}; single pixels: {means['single pixels']:.2f}; hardest class: {hardest}")
