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
# # 05 Maps of reconstructions
#
# > **How good is the picture behind the mask, and where on Earth?**
#
# You will see
# - patches put together to an image by hand, and its error, band by band, beside a plain guess,
# - a whole scene of any size rebuilt tile by tile and written as a GeoTIFF on the footprint of the input,
# - the same on a map: original, what the model saw, what it made of it, and where it is wrong.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | small weights, shipped in `data/weights`; your own of [04 Training](04_train_clay.ipynb) by one parameter | under 1 on two cores; no GPU needed (not measured there) | a scene of the mini-world, or a GeoTIFF of your own |
#
# With a file of your own, set `scene` and `sensor` below. Nothing else changes.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from IPython.display import display

from clay_lib import SENSORS, Clay, figures
from clay_lib.clay import reconstruction_scores
from clay_lib.course import checks
from clay_lib.data.chips import Chips
from clay_lib.data.rasters import bounds_wgs84, read_scene, write_raster
from clay_lib.data.scenes import center_window, most_measured
from clay_lib.encoder import patchify, unpatchify
from clay_lib.figures.maps import Layer, show_on_map, static_map
from clay_lib.runs.notebooks import output_folder, write_metrics
from clay_lib.world.earth import CLASSES, MiniWorld

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the mini-world and of what is hidden
out: str = ""  # folder for results; empty: papermill_runs/lab/05_map_reconstructions
weights: str = "clay-mini.safetensors"  # shipped; or a path, or what 04 put into data/cache: notebook_04.safetensors
scene: str = ""  # a GeoTIFF of your own; empty: the mini-world
sensor: str = "sentinel-2-l2a"  # which took the scene
when: str = "2023-06-10T10:30"  # date of the mini-world's scene
scene_when: str = ""  # date of your own scene, such as 2023-06-10T10:30; empty: unknown
most_pixels: int = 512  # a side; of larger files the middle is taken
scene_pixels: int = 192  # a side, of the mini-world's scene
land_cover: int = 40  # WorldCover code of the mini-world's place: 40 is cropland
tile: int = 64  # pixels a side of what the model gets at once: the size trained on
mask_ratio: float = 0.6  # share of the patches that is hidden: as the shipped weights were trained; 0.75 in the release

# %% [markdown]
# ## A scene
#
# Without a file of your own, one is made: what the sensor sees of a place of the mini-world on which the model was never
# trained. It is written as a GeoTIFF and read back, so that from here on both walks are the same.

# %%
out_dir = output_folder(out, "05_map_reconstructions")
if scene:
    path, date = Path(scene).expanduser(), scene_when or None
else:
    world = MiniWorld(seed)
    chip = world.observe(world.place(land_cover, 1, "test"), sensor, when, scene_pixels)
    names = SENSORS[sensor].band_names
    path, date = out_dir / "scene.tif", when
    write_raster(path, chip.pixels, crs=chip.crs, transform=chip.transform, descriptions=names)

# %%
window = center_window(path, most_pixels)
view = read_scene(path, sensor, when=date, window=window)
pixels = view.measured()  # [C, H, W]; NaN where nothing was measured
C, H, W = pixels.shape
how = dict(sensor=view.sensor, bands=view.bands, gsd=view.gsd, in_decibel=view.in_decibel)
place = dict(lat=view.lat, lon=view.lon, when=view.when)
source = "your file" if scene else f"mini-world, {CLASSES[land_cover]}"
where = "unknown place" if view.lat is None else f"{view.lat:.4f}, {view.lon:.4f}"
print(
    f"{path.name} ({source}): {C} bands of {H} x {W} pixels, {view.gsd:g} m each, at {where}, {date or 'date unknown'}"
)
print(
    "the middle of a larger file" if window else "the whole file", f"- {view.valid.mean():.1%} of its pixels are valid"
)

# %% [markdown]
# The place, the date and the pixel size go to the model with the pixels. Any of place and date may be unknown.
#
# ## Put together by hand
#
# The model is asked for one small piece first. Its sides are no multiple of the patch on purpose. The decoder gives one row
# of numbers for each patch: all pixels of the first band, then of the second, and so on. So each row is shaped to a small
# image and set in its place, what was added as padding is cut off, and the numbers are scaled back to the sensor's own.

# %%
clay = Clay.load(weights)
P = clay.model.config.patch_size
h, w = min(tile - 3, H), min(tile - 5, W)
top, left = most_measured(view.valid, h, w)
piece = pixels[:, top : top + h, left : left + w]
cube = clay.cube(piece, **how, **place)
output = clay.model(cube, mask_ratio=mask_ratio, generator=torch.Generator().manual_seed(seed))
rows, columns = output.encoded.grid

by_hand, hidden = torch.empty(C, rows * P, columns * P), torch.empty(rows * P, columns * P)
for number in range(rows * columns):
    r, c = divmod(number, columns)
    area = np.s_[..., r * P : (r + 1) * P, c * P : (c + 1) * P]
    by_hand[area] = output.reconstruction[0, number].reshape(C, P, P)
    hidden[area] = output.encoded.mask[0, number]
by_hand, hidden = by_hand[:, :h, :w], hidden[:h, :w].bool()

# %%
mean, std = (torch.from_numpy(v)[:, None, None] for v in view.sensor.statistics(view.bands))
native = by_hand * std + mean
native = native if view.in_decibel or not view.sensor.decibel else 10 ** (native / 10)  # radar power from dB

library = clay.reconstruct(piece, mask_ratio=mask_ratio, seed=seed, **how, **place)
torch.testing.assert_close(native, torch.from_numpy(library.pixels[0]))  # both paint every patch, holes too
assert (hidden.numpy() == library.mask[0]).all()
print(f"{rows} x {columns} patches of {P} x {P} -> {tuple(by_hand.shape)}, cropped from {rows * P} x {columns * P}")

# %% [markdown]
# ## The whole scene, tile by tile
#
# The model was trained on squares of one size. A scene of any size is cut into such squares, which pass through the model
# as a batch, and is put together again. Cutting into tiles is cutting into patches, only coarser: the same two functions do
# it, cropping included. What is added at the edges is NaN: nothing was measured there, and a patch that was mostly not
# measured never reaches the encoder. (All tiles get the date and the middle of the scene for their own.)


# %%
def cut(image):
    """[C, H, W] -> tiles [N, C, tile, tile]; NaN at the edges."""
    image = torch.nn.functional.pad(image, (0, -W % tile, 0, -H % tile), value=float("nan"))
    return rearrange(patchify(image[None], tile), "1 N (C h w) -> N C h w", h=tile, w=tile)


def join(tiles):
    """Tiles [N, C, tile, tile] -> [C, H, W]."""
    flat = rearrange(tiles, "N C h w -> 1 N (C h w)")
    return unpatchify(flat, grid=(-(-H // tile), -(-W // tile)), patch_size=tile, size=(H, W))[0]


tiles = cut(torch.from_numpy(pixels))
torch.testing.assert_close(join(tiles), torch.from_numpy(pixels), rtol=0, atol=0, equal_nan=True)
made = [
    clay.reconstruct(batch.numpy(), mask_ratio=mask_ratio, seed=seed + number, **how, **place)
    for number, batch in enumerate(tiles.split(64))
]
rebuilt = join(torch.from_numpy(np.concatenate([m.pixels for m in made]))).numpy()
mask = join(torch.from_numpy(np.concatenate([m.mask for m in made])[:, None]))[0].numpy()
print(f"{len(tiles)} tiles of {tile} x {tile} pixels, {mask.mean():.0%} hidden -> {rebuilt.shape}")

# %% [markdown]
# ## How far off
#
# Errors of different bands can be compared in standard deviations: each band's numbers are divided by the spread that the
# sensor is known for. For every pixel the mean over bands makes a map of the error. Visible patches do not count: the
# decoder is never asked to copy what the encoder saw.


# %%
def normal(native):
    """Native numbers in standard deviations from the band's mean."""
    return view.sensor.normalize(native, view.bands, in_decibel=view.in_decibel)


counted = mask & view.valid
error = np.abs(normal(rebuilt) - normal(pixels))  # [C, H, W]
error_map = np.where(counted, error.mean(axis=0), np.nan).astype(np.float32)
scores = {"mean absolute error of hidden pixels": float(np.nanmean(error_map))}
fig = figures.reconstruction(
    pixels, mask, rebuilt, error, sensor=view.sensor, bands=view.bands, gsd=view.gsd, valid=view.valid,
    in_decibel=view.in_decibel, units="standard deviations", scores=scores,
)  # fmt: skip
_ = figures.save(fig, out_dir / "reconstruction.png")

# %% [markdown]
# The third picture shows measured patches where the encoder saw them, and the model's idea elsewhere. What it can get is
# the large lines and the colours. What is smaller than a patch and not hinted at by a neighbour cannot be known, and the
# absolute error rewards the middle of all possibilities: hence the softness.
#
# ## Band by band, beside a plain guess
#
# The plainest guess for hidden pixels is the mean of the visible ones of that band, tile by tile.

# %%
values = cut(torch.from_numpy(normal(pixels)))  # [N, C, tile, tile]
seen = (cut(torch.from_numpy(mask[None].astype(np.float32))) == 0) & values.isfinite()
guess = values.masked_fill(~seen, 0).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp(min=1)
guess_error = np.abs(join(guess.expand_as(values)).numpy() - normal(pixels))
ours, plain = (e[:, counted].mean(axis=1) for e in (error, guess_error))

if not scene:  # every pixel measured and every tile whole: the same as the library's table
    N = len(tiles)
    known = [np.array([v] * N, dtype=object) for v in (view.lat, view.lon, view.when)]
    chips = Chips(view.sensor.name, tiles.numpy(), np.zeros((N, tile, tile), np.uint8), *known)
    table = reconstruction_scores(clay, chips, mask_ratio=mask_ratio, seed=seed)
    np.testing.assert_allclose(ours, table["error"], rtol=1e-3)
    np.testing.assert_allclose(plain, table["mean_error"], rtol=1e-3)

# %%
at = np.arange(C)
with figures.styled():
    fig, ax = plt.subplots(figsize=(min(9, 2.6 + 0.7 * C), 3.2))
    ax.bar(at - 0.2, ours, 0.38, color=figures.PALETTE[0], label="Clay")
    ax.bar(at + 0.2, plain, 0.38, color="#9a9a9a", label="visible mean of the tile")
    waves = ["" if view.sensor.decibel else f"\n{wave:.3g} µm" for wave in view.sensor.waves(view.bands)]
    ax.set_xticks(at, [band + wave for band, wave in zip(view.bands, waves, strict=True)])
    ax.tick_params(axis="x", labelsize=8)
    ax.set(ylabel="standard deviations", title="Mean absolute error of hidden pixels")
    fig.legend(loc="outside upper right", ncols=2)
_ = figures.save(fig, out_dir / "error_by_band.png")
print(
    f"over all bands: Clay {ours.mean():.3f}, visible mean {plain.mean():.3f}, ratio {ours.mean() / plain.mean():.2f}"
)

# %% [markdown]
# ## Back to a file
#
# The filled-in scene in the sensor's native numbers, and the error, are written with the georeference of the input. Read
# back, they lie where it lies: the same box of degrees.

# %%
filled_in = np.where(view.valid, np.where(mask, rebuilt, pixels), np.nan).astype(np.float32)
geo = dict(crs=view.crs, transform=view.transform, nodata=float("nan"))
write_raster(out_dir / "reconstruction.tif", filled_in, descriptions=view.bands, **geo)
write_raster(out_dir / "error.tif", error_map, descriptions=["absolute error in standard deviations"], **geo)

again = read_scene(out_dir / "reconstruction.tif", view.sensor, bands=list(view.bands))
np.testing.assert_array_equal(again.pixels, filled_in)
if view.crs:
    before, after = (bounds_wgs84(s.crs, s.transform, *s.pixels.shape[1:]) for s in (view, again))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-9)
    print("west {:.5f}, south {:.5f}, east {:.5f}, north {:.5f}: input and output".format(*after))
else:
    print("the file says nothing of its place: the output has none either, and there is no map")

# %% [markdown]
# ## On a map
#
# Four layers. The sliders at the lower right make them transparent: move "reconstruction" to compare it with the original.
# No tiles are fetched, the pictures travel in the notebook. With a network, `basemap="OpenStreetMap"` in `show_on_map`
# puts streets below (the mini-world's places lie on the true Earth, but are not what is there).

# %%
look = dict(sensor=view.sensor, bands=view.bands, in_decibel=view.in_decibel, like=pixels)
top = float(np.nanpercentile(error_map, 99))
layers = [] if view.crs is None else [
    Layer("original", figures.rgb(pixels, **look), view.crs, view.transform, valid=view.valid),
    Layer("seen by the encoder", figures.rgb(pixels, valid=~mask, **look), view.crs, view.transform, valid=view.valid),
    Layer("reconstruction", figures.rgb(filled_in, **look), view.crs, view.transform, valid=view.valid),
    Layer("error", error_map, view.crs, view.transform, "magma", (0, top), "absolute error, standard deviations"),
]  # fmt: skip
if layers:
    shown = show_on_map(layers)
    shown.to_html(str(out_dir / "map.html"))
    display(shown)

# %% [markdown]
# And the same layers as a figure, for paper and for pages that cannot move.

# %%
if layers:
    fig = static_map(layers, size=2.7)
    _ = figures.save(fig, out_dir / "map.png")
    plt.show()

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/05_map_reconstructions.ipynb) have a notebook of their own,
# with empty places, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: cells as large as patches
# *Easy, 5 minutes*
#
# A raster's transform `(a, b, c, d, e, f)` says where on the ground pixel (column, row) begins: x = a column + b row + c,
# y = d column + e row + f. A map with one cell a patch begins at the same corner. Write its transform.
#
# **Hint.** One column of the map is as many metres as `patch` columns of the image.


# %% tags=["solution"]
def transform_of_patches(transform, patch):
    """(a, b, c, d, e, f) of the pixels, patch in pixels -> the same six numbers for a grid of patches."""
    a, b, c, d, e, f = transform
    return a * patch, b * patch, c, d * patch, e * patch, f


# %% tags=["check"]
checks.check_patch_transform(transform_of_patches)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the guess to beat
# *Medium, 10 minutes*
#
# Fill the hidden pixels of every band with the mean of the visible pixels of that band; keep the visible pixels.
#
# **Hint.** `image[:, ~hidden]` holds the visible pixels of all bands, `[C, n]`.
#
# **Hint.** `torch.where(hidden, guess, image)` takes the guess where pixels are hidden.


# %% tags=["solution"]
def visible_mean(image, hidden):
    """image [C, H, W], hidden [H, W] bool -> the image, its hidden pixels replaced by their band's visible mean."""
    mean = image[:, ~hidden].mean(dim=1)
    return torch.where(hidden, mean[:, None, None], image)


# %% tags=["check"]
checks.check_plain_guess(visible_mean)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: an image from rows of numbers
# *Hard, 15 minutes*
#
# The decoder gives a row of numbers for each patch, patch after patch, row by row of the grid; in a row all pixels of the
# first band come first, then those of the second. Put them together to an image `[C, H, W]`. H and W need not be
# multiples of P: the grid then reaches beyond the image, and what is too much is cut off.
#
# **Hint.** The grid has `-(-H // P)` rows (a division that rounds up) and `-(-W // P)` columns.
#
# **Hint.** `rearrange(rows, "(h w) (C p q) -> C (h p) (w q)", ...)` needs h, C and p; then cut.


# %% tags=["solution"]
def image_of_rows(rows, C, P, H, W):
    """rows [L, C*P*P] -> image [C, H, W]."""
    image = rearrange(rows, "(h w) (C p q) -> C (h p) (w q)", h=-(-H // P), C=C, p=P)
    return image[:, :H, :W]


# %% tags=["check"]
checks.check_image_of_rows(image_of_rows)

# %% [markdown]
# ## What was seen

# %%
worst = int(np.argmax(ours / plain))
ratio = float(ours.mean() / plain.mean())
write_metrics(
    out_dir,
    {
        "scene": path.name if scene else source,
        "pixels": f"{H} x {W}",
        "masked error, standard deviations": float(ours.mean()),
        "the visible mean's": float(plain.mean()),
        "ratio": ratio,
        "hardest band": view.bands[worst],
        "ratio in the hardest band": float(ours[worst] / plain[worst]),
    },
)
print(f"""- With {mask.mean():.0%} hidden, Clay is off by {ours.mean():.3f} standard deviations, the visible mean by {plain.mean():.3f}:
  {ratio:.2f} of its error. Hardest beside that guess is {view.bands[worst]}, at {ours[worst] / plain[worst]:.2f}.
- {len(tiles)} tiles of {tile} pixels made a scene of {H} x {W}: the model's size is no limit to an image's size.
- The output is a GeoTIFF in the sensor's own numbers, on the footprint of the input{"" if view.crs else " (had it one)"}.""")

# %% [markdown]
# Next: the class token and the patch tokens are worth looking at themselves, in
# [06 Seeing embeddings](06_see_embeddings.ipynb).
