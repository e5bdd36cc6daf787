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
# > **Can a model paint the part of an image that it never saw, and what is that good for?**
#
# You will see
# - an image go in with most of it hidden, and a whole image come out,
# - what happens when you hide more, drop bands, or tell the model another place, date or pixel size,
# - a map of your own: click on a few squares of a scene, name them, and let the model find the rest.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | nothing before it | under 1 on two cores; no GPU needed (not measured there) | the mini-world, or a GeoTIFF of your own; small weights, shipped |
#
# Run all cells first (menu Run, Run All Cells), then come back to the sliders and to the map. With a file of your own,
# set `scene` and `sensor` below.

# %%
from pathlib import Path

import numpy as np
from einops import rearrange
from IPython.display import display

from clay_lib import SENSORS, Clay, figures
from clay_lib.clay import embed_chips
from clay_lib.course.chip_map import agreement, chip_map, cut_tiles, neighbors, refit, show_map
from clay_lib.course.widgets import playground
from clay_lib.data.rasters import coarser, read_scene, write_raster
from clay_lib.data.scenes import center_window, most_measured
from clay_lib.figures.maps import Layer
from clay_lib.runs.notebooks import output_folder, write_metrics
from clay_lib.world.earth import CLASS_COLOURS, CLASSES, MiniWorld

# %% tags=["parameters"]
seed: int = 0  # of the mini-world and of what is hidden
out: str = ""  # folder for results; empty: papermill_runs/lab/00_first_look
weights: str = "clay-mini.safetensors"  # small weights, shipped; or a path to others
scene: str = ""  # a GeoTIFF of your own; empty: the mini-world
sensor: str = "sentinel-2-l2a"  # which took the scene
scene_when: str = ""  # date of your own scene, such as 2023-06-10T10:30; empty: unknown
scene_pixels: int = 192  # a side: of the mini-world's scene, and at most of your own (its middle is taken)
piece: int = 64  # pixels a side of the image that is hidden and painted: the size trained on
tile: int = 16  # pixels a side of a square of the map
mask_ratio: float = 0.6  # share of the image that is hidden at first

# %% [markdown]
# ## An image in
#
# The **mini-world** is a synthetic Earth that every satellite of this course can look at, so nothing has to be fetched.
# This is one place of it, with a town, woods and a wetland, written to a file and read back, as a file of your own would be.

# %%
out_dir = output_folder(out, "00_first_look")
path, date = Path(scene).expanduser(), scene_when or None
if not scene:
    world, date = MiniWorld(seed), "2023-06-10T10:30"
    seen = world.observe(world.place(50, 2, "test"), sensor, date, scene_pixels)
    path, names = out_dir / "scene.tif", SENSORS[sensor].band_names
    write_raster(path, seen.pixels, crs=seen.crs, transform=seen.transform, descriptions=names)
view = read_scene(path, sensor, when=date, window=center_window(path, scene_pixels))
pixels = view.measured()  # [C, H, W], the sensor's own numbers; NaN where nothing was measured
look = dict(sensor=view.sensor, bands=view.bands, in_decibel=view.in_decibel, like=pixels)
picture = figures.rgb(pixels, valid=view.valid, **look)
print(
    f"{view.sensor.name}: {len(view.bands)} bands of {pixels.shape[1]} x {pixels.shape[2]} pixels, {view.gsd:g} m each"
)
tile = min(tile, max(1, min(pixels.shape[1:]) // 2))  # small images are cut into smaller squares
assert pixels.shape[0] == len(view.bands)

# %% [markdown]
# ## A reconstruction out
#
# The image is cut into patches of 8 x 8 pixels, most of them are taken away, and the model paints them from the rest. It
# was never shown this place. What it cannot know, such as a single house, it leaves blurred.

# %%
clay = Clay.load(weights)
high, wide = (min(piece, side) for side in pixels.shape[1:])
top, left = most_measured(view.valid, high, wide)  # the middle, unless nodata lies there
small = pixels[:, top : top + high, left : left + wide]
told = dict(when=view.when, lat=view.lat, lon=view.lon)
how = dict(sensor=view.sensor, bands=view.bands, gsd=view.gsd, in_decibel=view.in_decibel)
made = clay.reconstruct(small, mask_ratio=mask_ratio, seed=seed, **how, **told)

show = dict(sensor=view.sensor, bands=view.bands, gsd=view.gsd, in_decibel=view.in_decibel)
fig = figures.reconstruction(small, made.mask[0], made.pixels[0], **show)
_ = figures.save(fig, out_dir / "reconstruction.png")
hidden = made.mask[0]
assert np.isfinite(made.pixels).all() and 0 < hidden.mean() < 1

# %% [markdown]
# ## Touch it
#
# Move **hidden** and watch the third picture. Then try
# - **bands**: choose two or three with the Ctrl key. The same network takes any of them, from any sensor;
# - **pixel size**, **date**, **place**: what the model is told beside the pixels. The image stays; only the
#   model's belief changes. Does a wrong place make the error larger? Notebooks 01 to 03 say why;
# - **seed of the mask**: other patches are hidden. How much of the error is luck?
#
# The number over the pictures is the mean error of the hidden pixels in standard deviations, beside that of the plainest
# guess, the mean of the visible pixels of each band.

# %%
playground(clay, small, view.sensor, available=view.bands, gsd=view.gsd, mask_ratio=mask_ratio, seed=seed, **told)

# %% [markdown]
# ## What is it good for?
#
# To paint what is hidden, the model has to describe what is there. That description, the **embedding**, is a list of
# numbers for every piece of land, and alike land has alike numbers. So a few labels go a long way: here the scene is cut
# into small squares, and each gets its embedding.

# %%
names, mapped = None, bool(view.crs)
if mapped:
    squares, outlines, which = cut_tiles(view, tile)  # squares of nodata are left out
    vectors = embed_chips(clay, squares, bands=view.bands, gsd=view.gsd, in_decibel=view.in_decibel)["patch mean"]
    background = Layer("scene", picture, view.crs, view.transform, valid=view.valid)
    colours = {"like this": figures.PALETTE[0], "unlike": figures.PALETTE[1]}
    if not scene:  # the mini-world knows what is there: to count with, never to learn from
        cut = rearrange(seen.labels, "(h p) (w q) -> (h w) (p q)", p=tile, q=tile)
        names = np.array([CLASSES[np.bincount(one).argmax()] for one in cut[which]])
        colours = {CLASSES[k]: colour for k, colour in CLASS_COLOURS.items() if CLASSES[k] in set(names)}
    print(f"{len(vectors)} squares of {tile} x {tile} pixels, {vectors.shape[1]} numbers each")
    mapped = len(vectors) > 1
else:
    print("the file says nothing of its place, so there is no map")

# %% [markdown]
# **Click a square**: its neighbours appear, the squares that the model finds most like it anywhere in the scene. **Give it
# a label**, click a square of another kind, and give that one a label too: all others take the colour of what they most
# resemble, by a linear probe on your labels. Five labels are usually enough to see a map; wrong ones can be given again.

# %%
if mapped:
    thumbnails = [figures.rgb(p, **look) for p in squares.pixels]
    clicked = chip_map(
        squares, vectors, background, outlines=outlines, thumbnails=thumbnails, truth=names, colors=colours
    )
    display(clicked)

# %% [markdown]
# ## A map of your own
#
# Whatever you labelled is a GeoTIFF after this cell: run it again after clicking. As long as nothing is labelled, it takes
# the middle square and the three most like it for one kind, and the four least like it for the other.

# %%
if mapped:
    middle = int(np.argmin(np.hypot(squares.lat - view.lat, squares.lon - view.lon)))
    order = [middle, *neighbors(vectors, middle, len(vectors))[0]]
    few = min(4, len(order) // 2)
    example = dict.fromkeys(order[:few], "like this") | dict.fromkeys(order[-few:], "unlike")
    given = clicked.labels if clicked.predictions is not None else {int(n): name for n, name in example.items()}
    answers = refit(vectors, given)
    kinds = sorted(set(given.values()))
    shown = figures.class_colors(kinds) | clicked.colors
    rows, columns = (side // tile for side in pixels.shape[1:])
    codes = np.zeros(rows * columns, np.uint8)  # 0: nothing was measured there
    codes[which] = np.searchsorted(kinds, answers) + 1
    key = ", ".join(
        f"{code} {kind}" for code, kind in enumerate(kinds, start=1)
    )  # goes into the file, for other programs
    placed = dict(crs=view.crs, transform=coarser(view.transform, tile), nodata=0)
    write_raster(out_dir / "map.tif", codes.reshape(rows, columns), descriptions=[key], **placed)
    fig = show_map(clicked.atlas, background, answers, shown, given)
    _ = figures.save(fig, out_dir / "map.png")
    assert (codes[which] >= 1).all() and (codes > 0).sum() == len(vectors)
    print(f"map.tif: {rows} x {columns} squares, {key}")

# %% [markdown]
# ## What was seen

# %%
normal = [view.sensor.normalize(p, view.bands, in_decibel=view.in_decibel) for p in (small, made.pixels[0])]
truth, painted = (p[:, hidden] for p in normal)
plain = np.nanmean(normal[0][:, ~hidden], axis=1, keepdims=True)  # of what is visible, a number for each band
error, floor = (float(np.nanmean(np.abs(guess - truth))) for guess in (painted, plain))
metrics = {"hidden": float(hidden.mean()), "error of hidden pixels, sd": error, "of the visible mean, sd": floor}
told = "- There was no map: the file does not say where it lies, or holds one square of land."
if mapped:
    metrics |= {"squares": len(vectors), "kinds on the map": len(set(answers))}
    told = f"- {len(given)} labels coloured {len(vectors)} squares: the map is map.tif in the results folder."
if names is not None:
    three = {int(n): str(k) for k in set(names) for n in np.flatnonzero(names == k)[:3]}
    metrics["right with three labels a kind"] = right = agreement(refit(vectors, three), names, three)
    metrics["the commonest kind alone"] = common = float(np.unique(names, return_counts=True)[1].max() / len(names))
    told += f"\n- With three labels of each kind {right:.0%} of the others are right; the commonest kind alone is {common:.0%}."
write_metrics(out_dir, metrics)
print(f"""- {hidden.mean():.0%} of the image was hidden and painted, {error:.2f} standard deviations off; the visible mean is {floor:.2f} off.
{told}""")

# %% [markdown]
# Next: how it works, part by part. [01 Patch embedding](01_embed_patches.ipynb) begins with the bands.
