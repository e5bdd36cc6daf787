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
# > **What can a model do that has learned to fill in hidden parts of satellite images?**
#
# You will see
# - an image with more than half of it hidden, and the model's reconstruction,
# - one click on a map, and the places that look most similar,
# - a few labels, and a land-cover map made from them.
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | none | ten with playing; the cells take 0.3 on two cores | the synthetic Earth and small weights, both in the repository |
#
# Run all cells first (menu Run, Run All Cells), then come back to the sliders and the map. To use your own image, set
# `scene` and `sensor` in the third cell and run again.

# %%
import numpy as np
from IPython.display import display

from clay_lib import Clay, course, data, figures
from clay_lib.clay import embed_chips
from clay_lib.course.chip_map import chip_map
from clay_lib.runs import output_folder, write_metrics

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth and of the mask
out: str = ""  # folder for results; empty: papermill_runs/lab/00_first_look
weights: str = "clay-mini"  # the small weights of this repository, or a path
scene: str = ""  # a GeoTIFF of your own; empty: the synthetic Earth
sensor: str = "sentinel-2-l2a"  # the sensor of the scene
scene_when: str = ""  # date of your scene, such as 2023-06-10T10:30; empty: unknown
mask_ratio: float = 0.6  # share of the image that is hidden
tile: int = 16  # pixels a side of a square of the map

# %% [markdown]
# ## An image
#
# A satellite measures more than red, green and blue: Sentinel-2 has bands in the infrared too. This scene shows a town,
# woods and a wetland on the **synthetic Earth**, a computed planet that every notebook uses, so that nothing has to be
# downloaded.

# %%
out_dir = output_folder(out, "00_first_look")
clay = Clay.load(weights)
image = data.open_scene(scene, sensor, when=scene_when, seed=seed)
picture = figures.rgb(image.measured(), image.sensor, image.bands, valid=image.valid, in_decibel=image.in_decibel)
title = f"{image.sensor.name}: {len(image.bands)} bands, {image.gsd:g} m a pixel"
fig = figures.show_row([picture], [title], gsd=image.gsd, size=3.6)
_ = figures.save(fig, out_dir / "1_image.png")

# %% [markdown]
# ## Hide most of it
#
# The model sees a small piece of the scene in patches of 8 x 8 pixels. More than half of the patches are hidden, and it
# has to reconstruct them from the others. This is how it was trained: no labels, only hidden patches. Left to right:
# the image, what the model sees, its reconstruction, and the error. The place itself was not in the training data.

# %%
chip = data.crop(image, 64)
pixels = chip.measured()  # [C, H, W], NaN where nothing was measured
rebuilt = clay.reconstruct(pixels, chip.sensor, mask_ratio=mask_ratio, seed=seed, **chip.metadata)
mask = rebuilt.mask[0]  # [H, W], True where hidden
look = dict(sensor=chip.sensor, bands=chip.bands, gsd=chip.gsd, in_decibel=chip.in_decibel)
fig = figures.reconstruction(pixels, mask, rebuilt.pixels[0], **look)
_ = figures.save(fig, out_dir / "2_reconstruction.png")
assert np.isfinite(rebuilt.pixels).all()

# %% [markdown]
# These small weights get colors and large shapes right and fine detail wrong. Move the sliders: hide more, drop bands,
# or give the model another pixel size, date or place. Which of them changes the error most?

# %%
place = dict(gsd=chip.gsd, when=chip.when, lat=chip.lat, lon=chip.lon)
course.playground(clay, pixels, chip.sensor, available=chip.bands, mask_ratio=mask_ratio, seed=seed, **place)

# %% [markdown]
# ## One click, similar places
#
# To fill in what is hidden, the model has to describe what is visible. This description is the **embedding**: a list of
# numbers for a piece of an image, similar for similar land. Here the scene is cut into squares, and each square gets
# its embedding. **Click a square** to see the five squares with the most similar embeddings.

# %%
squares, corners, kept = data.cut_chips(image, tile)
reading = dict(bands=image.bands, gsd=image.gsd, in_decibel=image.in_decibel)
vectors = embed_chips(clay, squares, **reading)["patch mean"]  # [N, D]
thumbnails = [figures.rgb(p, image.sensor, image.bands, like=image.measured()) for p in squares.pixels]
background = course.scene_background(image)
widget = chip_map(squares, vectors, background, outlines=corners, thumbnails=thumbnails)
display(widget)
print(f"{len(vectors)} squares, {vectors.shape[1]} numbers each")

# %% [markdown]
# ## A few labels, a map
#
# **Label** the square you clicked (town, say), click a different kind of land and label that too. A **linear probe**,
# the simplest classifier there is, learns from your labels and colors all other squares. The cell below writes the
# result as a GeoTIFF. Without labels of yours, it takes the square in the middle and the three most similar ones as one
# class, and the four least similar ones as the other.

# %%
middle = int(np.linalg.norm(corners.mean(axis=1) - corners.mean(axis=(0, 1)), axis=1).argmin())
similar = [middle, *course.neighbors(vectors, middle, len(vectors))[0]]  # most similar first
count = min(4, len(similar) // 2)
example = dict.fromkeys(similar[:count], "like the middle") | dict.fromkeys(similar[-count:], "other")
labels = widget.labels or example
predictions = course.refit(vectors, labels)  # [N] names
colors = figures.class_colors(sorted(set(labels.values()))) | widget.colors
fig = course.show_map(widget.atlas, background, predictions, colors, labels)
_ = figures.save(fig, out_dir / "3_map.png")
course.write_map(out_dir / "map.tif", image, tile, kept, predictions)

# %% [markdown]
# ## What you have seen
#
# - A model trained only to fill in hidden patches reconstructs an image that it has never seen.
# - On the way it learns embeddings: similar land has similar numbers, which finds similar places without any label.
# - With a few labels and a linear probe, embeddings become a map.
#
# **Exercise.** Label three kinds of land with two squares each. Where is the map wrong, and does a third label help?
#
# Next: how it works, part by part, beginning with the bands: [01 Patch embedding](01_embed_patches.ipynb).

# %%
normalized = [chip.sensor.normalize(p, chip.bands, in_decibel=chip.in_decibel) for p in (pixels, rebuilt.pixels[0])]
error = float(np.nanmean(np.abs(normalized[1] - normalized[0])[:, mask]))
metrics = {"hidden": float(mask.mean()), "error of hidden pixels, sd": error}
write_metrics(out_dir, metrics | {"squares": len(vectors), "classes": len(set(predictions))})
