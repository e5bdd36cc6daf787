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
# # 11 Fine-tuning a segmentation head
#
# > **With a few hundred labelled chips, how well can Clay name every pixel of land it has never seen?**
#
# You will see
# - what a classifier of single pixels makes of the same bands, and what a head on Clay makes of them, class by class;
# - a frozen encoder beside one whose last blocks learn as well;
# - why a head should enlarge by resizing, and the map of a scene written as a GeoTIFF and opened again.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | small weights, shipped in `data/weights`; ideas of [07 Probing](07_probe_embeddings.ipynb) | 2 on two cores (not measured on a GPU) | chips of the mini-world, or rasters and label rasters of your own |
#
# With your own data, set `images`, `labels` and `classes` below. Nothing else changes.

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rasterio
import torch
from IPython.display import display
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from clay_lib import Clay, figures
from clay_lib.areas.rasters import checkerboard
from clay_lib.course import checks
from clay_lib.data.labels import IGNORE, raster_pairs, world_set
from clay_lib.data.rasters import write_raster
from clay_lib.data.splits import spatial_blocks
from clay_lib.evaluation.intervals import as_text
from clay_lib.evaluation.segmentation import class_scores, confusions, iou, iou_gain, pixel_classifier
from clay_lib.heads.finetune import Finetuned, FinetuneSettings, finetune
from clay_lib.heads.heads import spread_layers
from clay_lib.heads.predict import predict_raster
from clay_lib.runs.notebooks import output_folder, write_metrics
from clay_lib.world.earth import CLASS_COLORS, CLASSES, MiniWorld

# %% tags=["parameters"]
seed: int = 0  # of the mini-world, of the heads and of every draw
out: str = ""  # folder for results; empty: papermill_runs/lab/11_finetune_segmentation
weights: str = "clay-mini.safetensors"  # shipped; or a path, or what 04 put into data/cache: notebook_04.safetensors
images: str = ""  # a folder of rasters of your own; empty: the mini-world
labels: str = ""  # a folder of label rasters of the same names and grids
classes: str = ""  # the numbers in them and their names: "1 water, 2 forest, 3 crops"
ignore: int = 0  # the number that says that nobody labelled a pixel
sensor: str = "sentinel-2-l2a"
chips: int = 440  # of the mini-world, to train and validate on
test_chips: int = 220  # on other land
chip_size: int = 64  # pixels a side, a multiple of 8
epochs: int = 8  # passes over the training chips, encoder frozen
deeper_epochs: int = 2  # the same while the last blocks learn too, where a pass takes much longer
last_blocks: int = 2  # of the encoder, that learn in the second run
scene_pixels: int = 192  # a side, of the scene to map
bootstraps: int = 1000  # resamplings behind every interval

# %% [markdown]
# ## Images and labels
#
# A labelled set hands out chips in the sensor's own numbers, each with a class number for every pixel. Here they come
# from the mini-world, whose land cover is known exactly; from your own rasters they are cut in the same form. The test
# chips lie on other land: other blocks of the world, three by six degrees, or of your rasters.

# %%
out_dir = output_folder(out, "11_finetune_segmentation")
if images:
    named = dict(part.strip().split(" ", 1) for part in classes.split(","))
    codes, names = [int(code) for code in named], list(named.values())
    data = raster_pairs(
        images, labels, sensor, classes=dict(zip(codes, names, strict=True)), ignore=ignore, size=chip_size
    )
    degrees = 0.02  # some 2 km: blocks of land, where there are too few rasters to leave whole ones out
    many = data.places["group"].nunique() >= 6
    train, val, test = data.split((0.6, 0.15, 0.25), by="groups" if many else "blocks", degrees=degrees, seed=seed)
    groups = test.places["group"] if many else spatial_blocks(test.places["lat"], test.places["lon"], degrees)
    colours = dict(enumerate(figures.PALETTE))
else:
    how = dict(size=chip_size, seed=seed)
    pool, test = (world_set(sensor, n, split=s, **how) for n, s in ((chips, "train"), (test_chips, "test")))
    train, val = pool.split((0.85, 0.15), degrees=6.0, seed=seed)
    groups = test.places["group"]
    assert not set(train.places["group"]) & set(groups)
    codes, names = list(CLASSES), list(CLASSES.values())
    colours = {number: CLASS_COLORS[code] for number, code in enumerate(codes)}
truth = np.stack([test[i].label for i in range(len(test))])
print(f"{len(train)} chips train, {len(val)} validate, {len(test)} test; {len(names)} classes")


# %%
def paint(numbers):
    """Class numbers [H, W] as a picture; unlabelled pixels grey."""
    picture = np.full((*numbers.shape, 3), 0.85)
    for number, colour in colours.items():
        picture[numbers == number] = to_rgb(colour)
    return picture


def legend(fig, present):
    """A key of the classes that are there, below the figure."""
    keys = [Patch(facecolor=colours[k], edgecolor="#333333", lw=0.5, label=names[k]) for k in present if k != IGNORE]
    fig.legend(handles=keys, loc="outside lower center", ncols=4, fontsize=8)


# %%
rules = [np.bincount(label[label != IGNORE], minlength=2).max() / label.size for label in truth]
shown = np.argsort(rules)[:5]  # chips with several classes
pictures = [figures.rgb(test[i].pixels, sensor, test.bands) for i in shown] + [paint(truth[i]) for i in shown]
fig = figures.show_row(pictures, ["image"] * 5 + ["labels"] * 5, gsd=test.gsd, columns=5, size=1.7)
legend(fig, np.unique(truth[shown]))
figures.save(fig, out_dir / "labels.png")
plt.show()

# %% [markdown]
# ## A score for every class
#
# Intersection over union: of all pixels that have a class or are said to have it, the share where both agree. A class
# that is rare counts as much as a common one, and saying the same everywhere scores almost nothing. The mean is taken over
# the classes that the test land has, so that all answers are averaged over the same ones. By hand, for the
# floor that we need anyway: a forest of 100 trees that sees one pixel's bands at a time, and no neighbour.

# %%
classify = pixel_classifier(train, kind="forest", seed=seed)
floor = np.stack([classify(test[i].pixels) for i in range(len(test))])

known = truth != IGNORE
by_hand, present = [], np.unique(truth[known])
for k in present:
    has, said = truth == k, (floor == k) & known
    by_hand.append((has & said).sum() / (has | said).sum())
tables = {"single pixels": confusions(truth, floor, len(names))}  # [chips, classes, classes]
library = iou(tables["single pixels"].sum(0))[present]
torch.testing.assert_close(torch.tensor(by_hand), torch.from_numpy(library))
print(f"mean IoU of single pixels: {np.mean(by_hand):.3f}, by hand as by the library")

# %% [markdown]
# ## A head on a frozen encoder
#
# The encoder's tokens stand eight pixels apart. The head takes those of three of its blocks, and the class token, which
# knows what kind of land the whole chip is. Each is standardised, since most of a token is common to all of them, and
# passes a linear map of its own; their sum is resized to the pixels' grid. There the head also sees the bands themselves,
# through two small convolutions: the encoder says what, the pixels say where exactly. Two convolutions of single pixels
# (1 x 1) turn both into scores of the classes.
#
# The encoder does not change, so its tokens are computed once and kept, and an epoch costs only the head's time. In
# training each step looks at one pixel in sixteen, another one each time: neighbours say much the same.

# %%
clay = Clay.load(weights)
settings = FinetuneSettings(epochs=epochs, batch_size=16, lr=3e-3, balance=0.25, seed=seed)
same = dict(layers=spread_layers(clay.model.config.depth, 3), bands=len(train.bands), progress=False)
frozen = finetune(clay, train, val, out=out_dir / "frozen", settings=settings, **same)
print(f"the head has {sum(p.numel() for p in frozen.head.parameters()):,} numbers to learn")
frozen.history.round(3)

# %% [markdown]
# ## The last blocks learn too
#
# Now the last blocks of the encoder may change as well, more slowly than the head, and each block more slowly than the
# one after it. What they learned before is bent, not thrown away. Its tokens must be made anew at every step, which takes
# much longer, so this run makes fewer passes, in smaller batches: compare the two with that in mind.

# %%
slower = replace(settings, epochs=deeper_epochs, batch_size=8)
deeper = finetune(clay, train, val, out=out_dir / "deeper", unfreeze=last_blocks, settings=slower, **same)
answers = {"frozen encoder": frozen.predict(test), f"last {last_blocks} blocks learn": deeper.predict(test)}
for name, scores in answers.items():
    tables[name] = confusions(truth, scores.argmax(1), len(names))
deeper.history.round(3)

# %%
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    for name, tuned, colour in zip(answers, (frozen, deeper), figures.PALETTE, strict=False):
        ax.plot(tuned.history["epoch"] + 1, tuned.history["val/mean IoU"], "o-", color=colour, label=name)
    ax.set(xlabel="epoch", ylabel="mean IoU on validation chips", title="Learning", ylim=(0, 1))
    ax.set_xticks(range(1, max(epochs, deeper_epochs) + 1))
    ax.legend()
figures.save(fig, out_dir / "learning.png")
plt.show()

# %% [markdown]
# ## Class by class
#
# Intervals (95 %) come from drawing test chips anew, again and again, those of one place or block together; they know the
# luck of the test land, not that of training. The difference is taken on the same draws, so that what is hard for all
# cancels. A dash: no pixel of the test land has the class, or there is but one block of it.

# %%
counted = dict(groups=groups, bootstraps=bootstraps, seed=seed)
scores = {name: class_scores(table, names, **counted).set_index("class") for name, table in tables.items()}
shown_table = pd.concat(
    {
        name: table.apply(lambda row: as_text(row["IoU"], row["IoU low"], row["IoU high"]), axis=1)
        for name, table in scores.items()
    },
    axis=1,
)
display(shown_table.assign(**{"test pixels": scores["single pixels"]["pixels"]}))
gains = {name: 100 * np.array(iou_gain(tables[name], tables["single pixels"], **counted)) for name in answers}
for name, gain in gains.items():
    print(f"{name}: points of mean IoU over single pixels: {as_text(*gain, form='{:+.1f}')}")

# %%
rows = [
    {"name": name, "value": row["IoU"], "low": row["IoU low"], "high": row["IoU high"], "kind": kind}
    for name in [*(names[k] for k in present), "mean"]
    for kind, row in (
        ("baseline", scores["single pixels"].loc[name]),
        ("frozen encoder", scores["frozen encoder"].loc[name]),
    )
]
table = pd.DataFrame(rows).replace({"kind": {"frozen encoder": "head on a frozen encoder"}})
table.loc[table["kind"] == "baseline", "name"] += ", single pixels"
fig = figures.bars_with_intervals(table, label="intersection over union", title="Class by class", limits=(0, 1))
figures.save(fig, out_dir / "classes.png")
plt.show()

# %%
best = max(answers, key=lambda name: scores[name].loc["mean", "IoU"])
said = answers[best].argmax(1)
few = shown[:4]
pictures = [
    part
    for i in few
    for part in (figures.rgb(test[i].pixels, sensor, test.bands), paint(truth[i]), paint(floor[i]), paint(said[i]))
]
fig = figures.show_row(
    pictures, ["image", "labels", "single pixels", best] * len(few), gsd=test.gsd, columns=4, size=1.7
)
legend(fig, np.unique(np.concatenate([truth[few], said[few], floor[few]])))
figures.save(fig, out_dir / "maps.png")
plt.show()

# %% [markdown]
# ## Why resize
#
# A transposed convolution, the other common way to enlarge, makes neighbouring pixels by different weights, and its
# pattern repeats with the patches: a checkerboard. The same head is trained with it, without seeing the pixels and for an eighth
# as long, so that what each way leaves behind shows. The measure compares the energy of the class scores at the period of the
# patches, and its multiples, with that of the frequencies beside it; 1 means that nothing stands out.

# %%
bare = same | dict(bands=0, settings=replace(settings, epochs=max(1, epochs // 8)))
ways = {way: finetune(clay, train, val, upsampling=way, **bare) for way in ("resize", "transposed")}
blind = {way: tuned.predict(test) for way, tuned in ways.items()}
P = clay.model.config.patch_size
boards = {way: float(np.mean([checkerboard(chip, P) for chip in scores_])) for way, scores_ in blind.items()}
real = float(
    np.mean(
        [checkerboard((truth[i] == np.arange(len(names))[:, None, None]).astype(float), P) for i in range(len(test))]
    )
)
for way, value in boards.items():
    told = class_scores(confusions(truth, blind[way].argmax(1), len(names)), names, bootstraps=0)["IoU"].iloc[-1]
    print(f"{way:<11} checkerboard {value:.2f} (the labels themselves {real:.2f}), mean IoU without pixels {told:.3f}")
assert boards["resize"] < boards["transposed"]

# %%
i = int(few[0])
k = int(blind["resize"][i].mean((1, 2)).argmax())
fig = figures.show_row(
    [blind[way][i, k] for way in blind], [f"{way}: {boards[way]:.2f}" for way in blind], gsd=test.gsd,
    limits=(0, 1), label=f"probability of {names[k]}", size=3, title="The same chip, enlarged in two ways",
)  # fmt: skip
figures.save(fig, out_dir / "checkerboard.png")
plt.show()

# %% [markdown]
# ## A scene, as a map
#
# A scene is larger than a chip. It is answered window by window; neighbouring windows overlap and change over smoothly
# into each other. The answer is written as a GeoTIFF on the scene's own grid: open it in QGIS, and it lies on the image.

# %%
if images:
    scene = next(p for p in sorted(Path(images).iterdir()) if p.stem == test.places["group"].iloc[0])
    when = None
else:
    world, when = MiniWorld(seed), "2023-06-10T10:30"
    chip = world.observe(world.place(40, 1, "test"), sensor, when, scene_pixels)
    placed = dict(crs=chip.crs, transform=chip.transform)
    scene = write_raster(out_dir / "scene.tif", chip.pixels, descriptions=test.bands, **placed)
again = Finetuned.load(out_dir / ("frozen" if best == "frozen encoder" else "deeper") / "best.safetensors", clay)
made = predict_raster(
    again, scene, out_dir / "land_cover.tif", codes=codes, tile=chip_size, overlap=chip_size // 2, when=when
)

# %%
with rasterio.open(made) as file, rasterio.open(scene) as source:
    assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, source.shape)
    mapped, probability = file.read().astype(int)
    native = source.read(list(range(1, source.count + 1)))
    print(f"{made.name}: {file.shape[0]} x {file.shape[1]} pixels, {file.crs}, {file.descriptions}")
number = np.full(256, IGNORE)
number[codes] = np.arange(len(codes))
pictures, titles = [paint(number[mapped])], ["the map"]
if not images:
    number_of = number[chip.labels]
    pictures = [figures.rgb(native, sensor), paint(number_of), *pictures]
    titles = ["scene", "true land cover", *titles]
    print(f"{(number[mapped] == number_of).mean():.1%} of the scene's pixels are right")

# %%
fig = figures.show_row(pictures, titles, gsd=test.gsd, size=2.9)
legend(
    fig,
    sorted({int(k) for k in np.unique(number[mapped])} | (set() if images else {int(k) for k in np.unique(number_of)})),
)
figures.save(fig, out_dir / "map.png")
plt.show()
fig = figures.show_row([np.where(probability == 255, np.nan, probability)], gsd=test.gsd, size=3.4, limits=(0, 100),
                     label="probability of the class mapped (%)")  # fmt: skip
figures.save(fig, out_dir / "probability.png")
plt.show()

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/11_finetune_segmentation.ipynb) have a notebook of their own,
# with empty places, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: a rate for every block
# *Easy, 5 minutes*
#
# Where blocks of the encoder learn, the last of them gets the rate `top`, and every block before it `decay` times the
# rate of the block after it. What lies near the pixels and serves every image changes least; what lies near the
# head may follow the new question.
#
# Give the rates of all `depth` blocks, first block first. Only the `last` last blocks learn; those before them are
# frozen, with the rate 0. `last` goes from 0 (all frozen) to `depth`.
#
# **Hint.** Behind block i, counted from 0, lie `depth - 1 - i` blocks: so often is the rate multiplied by `decay`.


# %% tags=["solution"]
def rates(depth, last, top, decay):
    """Learning rates of the encoder's blocks, first block first, [depth]; 0 where frozen."""
    behind = depth - 1 - np.arange(depth)
    return np.where(behind < last, top * decay**behind, 0.0)


# %% tags=["check"]
checks.check_block_rates(rates)

# %% tags=["given"]
every = rates(24, 24, 2e-4, 0.75)  # the 24 blocks of the released Clay
print(f"if all 24 blocks learn, the first learns {every[-1] / every[0]:.0f} times slower than the last")

# %% [markdown] tags=["exercise"]
# ### Exercise 2: mean IoU, with everything that real labels bring
# *Medium, 10 minutes*
#
# Three things distort a mean IoU: pixels that nobody labelled, classes that do not occur, and chips with few labels that
# count as much as others. Write it so that they cannot.
#
# `truth` and `said` are class numbers of N chips, from 0 to `count - 1`; where `truth` is `ignore`, nobody labelled the
# pixel, and whatever is said of it counts for nothing. Count over all chips first, then divide. The mean is taken over
# the classes that some labelled pixel has. A class that none has is left out, even where it is said: the class that was
# there has the miss already, and two maps of the same land must be averaged over the same classes.
#
# **Hint.** `known = truth != ignore`, and from there on only `truth[known]` and `said[known]`: two long rows of numbers.
#
# **Hint.** For each class of `np.unique(truth[known])`: the pixels that have it and are said to, over those that have it or
# are said to.


# %% tags=["solution"]
def mean_iou(truth, said, count, ignore):
    """truth [N, H, W], said [N, H, W] -> the mean over classes of intersection over union, a number."""
    known = truth != ignore
    truth, said = truth[known], said[known]
    values = []
    for k in range(count):
        if (truth == k).any():
            values.append(((truth == k) & (said == k)).sum() / ((truth == k) | (said == k)).sum())
    return np.mean(values)


# %% tags=["check"]
checks.check_mean_iou(mean_iou)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: resize by hand
# *Hard, 15 minutes*
#
# A head that resizes makes every pixel by the same rule, and where it puts things is a matter of half pixels: left
# out, they move a map made of patches of 8 x 8 pixels by 3.5 pixels, which is 35 m at 10 m a pixel.
#
# Enlarge one row of patches. `values` holds a number a patch, which stands at the patch's centre; each patch is `factor`
# pixels wide. Give the number at the centre of every pixel: on the straight line between the two patch centres around
# it. Before the first patch's centre and beyond the last one's, the value stays that of the outermost patch.
#
# **Hint.** Measure in patches, from the first patch's centre. A pixel i has its centre at `(i + 0.5) / factor` from the
# left border, and the first patch has its own at 0.5.
#
# **Hint.** `np.interp(places, known_places, known_values)` draws the straight lines, and stays level outside.


# %% tags=["solution"]
def resized(values, factor):
    """values [n] at the centres of patches -> [n * factor] at the centres of pixels."""
    places = (np.arange(len(values) * factor) + 0.5) / factor - 0.5  # in patches, from the first one's centre
    return np.interp(places, np.arange(len(values)), values)


# %% tags=["check"]
checks.check_resized(resized)

# %% tags=["given"]
grid = np.random.default_rng(0).normal(size=(3, 5))  # patches: rows first, then columns, and a picture is enlarged
picture = np.array([resized(column, 8) for column in np.array([resized(row, 8) for row in grid]).T]).T
by_torch = torch.nn.Upsample(scale_factor=8, mode="bilinear", align_corners=False)(torch.from_numpy(grid)[None, None])
print(f"{grid.shape} -> {picture.shape}, as the head does it: {np.allclose(picture, by_torch[0, 0])}")

# %% [markdown]
# ## What was seen

# %%
means = {name: table.loc["mean"] for name, table in scores.items()}
metrics = {f"mean IoU, {name}": round(float(row["IoU"]), 3) for name, row in means.items()}
for name, gain in gains.items():
    metrics[f"points over single pixels, {name}"] = as_text(*gain, form="{:+.1f}")
metrics |= {f"checkerboard, {way}": round(value, 2) for way, value in boards.items()}
write_metrics(out_dir, metrics)
hardest = scores[best].drop(index="mean")["IoU"].idxmin()
print(
    f"- {best}: mean IoU {means[best]['IoU']:.2f} on land never seen, single pixels {means['single pixels']['IoU']:.2f};\n"
    f"- the hardest class is {hardest}, IoU {scores[best].loc[hardest, 'IoU']:.2f};\n"
    f"- a head that resizes leaves a checkerboard of {boards['resize']:.2f}, transposed convolutions {boards['transposed']:.2f}."
)

# %% [markdown]
# Next: [12 Small embeddings](12_shrink_embeddings.ipynb), or back to [07 Probing embeddings](07_probe_embeddings.ipynb).
