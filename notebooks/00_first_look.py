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
# # 00 First look
#
# > **What can a model do once it has learned to fill in the hidden parts of satellite images?**
#
# You will see
# - an image with three quarters of it hidden, and how the model fills them in,
# - one click on a map, and the places that are most similar,
# - one label, and a map made from it; then the same for an image of your own.
#
# ![Where this notebook stands: all steps](flow/00_first_look.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | none | ten with playing; the cells take 0.3 on two cores | the synthetic Earth and small weights, both in the repository |
#
# Run all cells first (menu Run, Run All Cells), then read on.

# %%
import numpy as np
from einops import rearrange
from IPython.display import display

from clay_lib import Clay, course, data, figures, runs
from clay_lib.course.chip_map import chip_map

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth and of the mask
out: str = ""  # folder for results; empty: papermill_runs/lab/00_first_look
weights: str = "clay-mini"  # the small weights of this repository, or a path
scene: str = ""  # a GeoTIFF of your own; empty: the synthetic Earth
sensor: str = "sentinel-2-l2a"  # the sensor of the scene
scene_when: str = ""  # date of your scene, such as 2023-06-10T10:30; empty: unknown
mask_ratio: float = 0.75  # share of the image that is hidden
tile: int = 16  # pixels a side of a square of the map

# %% [markdown]
# ## An image
#
# A satellite measures more than red, green and blue: Sentinel-2 has bands in the infrared too, and the model uses all
# of them. This scene shows a town, fields and a wetland on the **synthetic Earth**, a computed planet that every
# notebook uses, so that nothing has to be downloaded.

# %%
out_dir = runs.output_folder(out, "00_first_look")
clay = Clay.load(weights)
image = data.open_scene(scene, sensor, when=scene_when, land_cover=90, index=0, seed=seed)
pixels = image.measured()  # [bands, height, width], NaN where nothing was measured
picture = figures.rgb(pixels, image.sensor, image.bands, in_decibel=image.in_decibel)
title = f"{image.sensor.name}: {len(image.bands)} bands, {image.gsd:g} m a pixel"
fig = figures.show_row([picture], [title], gsd=image.gsd, size=3.6)
_ = figures.save(fig, out_dir / "1_image.png")

# %% [markdown]
# ## Hide three quarters of it
#
# The model sees images as **patches** of 8 x 8 pixels. Three quarters of them are hidden, and it has to fill them in
# from the rest. This is how it was trained, on other places and without any labels. From left to right: the image, what
# the model sees, its reconstruction, and the error.
#
# > **On a laptop.** The released model was trained with 160 GPUs on 70 million images. These weights are its small
# > sibling, trained on the synthetic Earth with the cores of a laptop. The code is the same for both.

# %%
side = min(64, *pixels.shape[1:])  # pixels: the small weights were trained on squares of 64
rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
pixels = pixels[:, : rows * side, : columns * side]
squares = rearrange(pixels, "C (r h) (c w) -> (r c) C h w", r=rows, c=columns)
rebuilt = clay.reconstruct(squares, image.sensor, mask_ratio=mask_ratio, seed=seed, **image.metadata)
filled = rearrange(rebuilt.pixels, "(r c) C h w -> C (r h) (c w)", r=rows)
hidden = rearrange(rebuilt.mask, "(r c) h w -> (r h) (c w)", r=rows)

# %%
kwargs = dict(sensor=image.sensor, bands=image.bands, gsd=image.gsd, in_decibel=image.in_decibel)
fig = figures.reconstruction(pixels, hidden, filled, **kwargs)
_ = figures.save(fig, out_dir / "2_reconstruction.png")

# %% [markdown]
# The town, the wetland and the fields come back, but not their streets and ditches: the model cannot know details that
# no visible patch hints at. Now move the sliders. Hide more, drop bands, or give the model a wrong pixel size, date or
# place. Which of them matters most?

# %%
chip = data.crop(image, 64)
place = dict(gsd=chip.gsd, when=chip.when, lat=chip.lat, lon=chip.lon)
course.playground(clay, chip.measured(), chip.sensor, available=chip.bands, seed=seed, **place)

# %% [markdown]
# ## One click, similar places
#
# To fill in what is hidden, the model has to describe what is visible. This description is called an **embedding**: a
# list of numbers for a piece of an image. Similar land has similar numbers. Here the scene is cut into small squares,
# and each gets its embedding. **Click a square** to see the five others whose embeddings are most similar.

# %%
chips, corners, kept = data.cut_chips(image, tile)
vectors = clay.embed(chips.pixels, image.sensor, **image.metadata).mean.numpy()  # [squares, numbers]
thumbnails = [figures.rgb(p, image.sensor, image.bands, like=pixels) for p in chips.pixels]
print(f"{len(vectors)} squares, {vectors.shape[1]} numbers each")
widget = chip_map(chips, vectors, course.scene_background(image), outlines=corners, thumbnails=thumbnails)
display(widget)

# %% [markdown]
# ## One label, a map
#
# Label one square, and the embeddings find the others. The label goes to the square that you clicked last or, if you
# have not clicked yet, to one in the town. The cosine of two embeddings measures how similar they are: 1 for the same,
# 0 for unrelated. All squares above 0.4 form the map, which is also written as a GeoTIFF.

# %%
chosen = min(44, len(vectors) - 1) if widget.chosen is None else widget.chosen
centered = vectors - vectors.mean(axis=0)  # what all squares of the scene share tells nothing
centered /= np.linalg.norm(centered, axis=1, keepdims=True)
similarity = centered @ centered[chosen]  # [squares], -1 to 1
names = np.where(similarity > 0.4, "town", "other")
path = course.write_map(out_dir / "map.tif", image, tile, kept, names)
colors = {"town": "#E69F00", "other": "#999999"}
fig = course.show_map(widget.atlas, course.scene_background(image), names, colors, {chosen: "town"})
fig.axes[0].set_title("Squares similar to the labeled one (black)")
_ = figures.save(fig, out_dir / "3_map.png")

# %% [markdown]
# A second label makes a better map. In the widget above, click a square, give it a name and press **label this chip**;
# do the same for another kind of land. With two kinds a **linear probe**, the simplest classifier there is, colors all
# other squares.
#
# ## Your own image
#
# In the parameters cell, set `scene` to a GeoTIFF and `sensor` to the sensor that took it, then run all cells again:
#
# ```python
# scene: str = "field.tif"
# sensor: str = "sentinel-2-l2a"  # naip, linz, landsat-c2l2-sr, planetscope-sr, modis, sentinel-1-rtc, ...
# ```
#
# No file at hand? `clay world field.tif --land_cover 40` writes one of the synthetic Earth.
#
# ## What you have learned
#
# - A model trained only to fill in hidden patches can do so in an image that it has never seen.
# - On the way it learns embeddings, which are similar for similar land, so one click finds similar places.
# - With one label, embeddings become a first map; a few more labels and a linear probe make it better.
#
# **Exercise.** Label two squares each of town, wetland and fields in the widget. Where is the map wrong, and which
# further label corrects it?
#
# Next: how it works, part by part, beginning with the bands: [01 Patch embedding](01_embed_patches.ipynb).

# %%
error = np.abs(image.sensor.normalize(filled, image.bands) - image.sensor.normalize(pixels, image.bands))[:, hidden]
metrics = {"hidden": float(hidden.mean()), "error of hidden pixels, sd": float(np.nanmean(error))}
runs.write_metrics(out_dir, metrics | {"squares": len(vectors), "squares on the map": int((names == "town").sum())})
