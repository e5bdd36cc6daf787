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
# # 05 Reconstruction maps
#
# > **How good are reconstructions of hidden patches, and where on the map are they wrong?**
#
# You will see
# - an image assembled from patches by hand, and its error in each band beside a baseline,
# - a scene of any size reconstructed tile by tile and written as a GeoTIFF,
# - a map with the original, the visible patches, the reconstruction and the error.
#
# ![Where this notebook stands: decoder](flow/05_map_reconstructions.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [03 Masking](03_mask_patches.ipynb); the small weights of this repository, or your own from [04 Training](04_train_clay.ipynb) | 0.3 on two cores | a scene of the synthetic Earth, or a GeoTIFF of your own |
#
# For your own file, set `scene` and `sensor` below. Nothing else changes.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from IPython.display import display

from clay_lib import Clay, data, figures, runs
from clay_lib.course import checks
from clay_lib.encoder import patchify, unpatchify

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth and of the mask
out: str = ""  # folder for results; empty: papermill_runs/lab/05_map_reconstructions
weights: str = "clay-mini"  # the small weights of this repository; or a path; or what 04 saved: notebook_04.safetensors
scene: str = ""  # a GeoTIFF of your own; empty: the synthetic Earth
sensor: str = "sentinel-2-l2a"  # the sensor of the scene
scene_when: str = ""  # date of your scene, such as 2023-06-10T10:30; empty: unknown
scene_pixels: int = 192  # pixels a side of the synthetic Earth's scene
land_cover: int = 40  # WorldCover code of its place: 40 is cropland
tile: int = 64  # pixels a side of a tile: the small weights were trained on 64 and 128
mask_ratio: float = 0.6  # share of hidden patches

# %% [markdown]
# ## A scene
#
# Place, date and pixel size go to the model with the pixels; place and date may be unknown.
#
# > **On a laptop.** The released weights were trained with 75 % of the patches hidden, the small ones with 60 %, on
# > chips of 64 and 128 pixels. That is why `mask_ratio` and `tile` differ from the release here.

# %%
out_dir = runs.output_folder(out, "05_map_reconstructions")
kwargs = dict(size=scene_pixels, land_cover=land_cover, index=1, seed=seed)
image = data.open_scene(scene, sensor, when=scene_when, **kwargs)
pixels = image.measured()  # [C, H, W], NaN where nothing was measured
C, H, W = pixels.shape
print(f"{image.path}: {C} bands of {H} x {W} pixels, {image.gsd:g} m, {image.valid.mean():.1%} measured")

# %% [markdown]
# ## Patches to image, by hand
#
# We start with a single chip. Its sides are deliberately not multiples of the patch size. The decoder returns one row
# for each patch: all pixels of the first band, then of the second, and so on. Each row is reshaped into a small image
# and put in its place, the padding is cropped, and the numbers are scaled back to the sensor's units.

# %%
clay = Clay.load(weights)
P = clay.model.config.patch_size
chip = data.crop(image, tile)
chip_pixels = chip.measured()[:, : tile - 3, : tile - 5]
h, w = chip_pixels.shape[1:]
cube = clay.cube(chip_pixels, chip.sensor, **chip.metadata)
with torch.no_grad():
    output = clay.model(cube, mask_ratio=mask_ratio, generator=torch.Generator().manual_seed(seed))
rows, columns = output.encoded.grid

# %%
by_hand, hidden = torch.empty(C, rows * P, columns * P), torch.empty(rows * P, columns * P)
for number in range(rows * columns):
    r, c = divmod(number, columns)
    window = np.s_[..., r * P : (r + 1) * P, c * P : (c + 1) * P]
    by_hand[window] = output.reconstruction[0, number].reshape(C, P, P)
    hidden[window] = output.encoded.mask[0, number]
by_hand, hidden = by_hand[:, :h, :w], hidden[:h, :w].bool()  # crop the padding

# %%
mean, std = (torch.from_numpy(v)[:, None, None] for v in chip.sensor.statistics(chip.bands))
native = by_hand * std + mean
native = native if chip.in_decibel or not chip.sensor.decibel else 10 ** (native / 10)  # radar: decibels to power
library = clay.reconstruct(chip_pixels, chip.sensor, mask_ratio=mask_ratio, seed=seed, **chip.metadata)
torch.testing.assert_close(native, torch.from_numpy(library.pixels[0]))
assert (hidden.numpy() == library.mask[0]).all()
print(f"{rows} x {columns} patches of {P} x {P} pixels -> {tuple(by_hand.shape)}")

# %% [markdown]
# ## A scene, tile by tile
#
# The small weights were trained on small squares. A larger scene is cut into such tiles, which pass through the
# model as a batch. Cutting into tiles is like cutting into patches, only coarser, so the same two functions do it.
# Padding at the edges is NaN: nothing was measured there, and patches without measurements never reach the encoder.


# %%
def cut(values):
    """[C, H, W] -> tiles [N, C, tile, tile], NaN at the edges."""
    padded = torch.nn.functional.pad(values, (0, -W % tile, 0, -H % tile), value=float("nan"))
    return rearrange(patchify(padded[None], tile), "1 N (C h w) -> N C h w", h=tile, w=tile)


def join(tiles):
    """Tiles [N, C, tile, tile] -> [C, H, W]."""
    rows = rearrange(tiles, "N C h w -> 1 N (C h w)")
    return unpatchify(rows, grid=(-(-H // tile), -(-W // tile)), patch_size=tile, size=(H, W))[0]


# %%
tiles = cut(torch.from_numpy(pixels))
torch.testing.assert_close(join(tiles), torch.from_numpy(pixels), rtol=0, atol=0, equal_nan=True)
batches = [
    clay.reconstruct(batch.numpy(), image.sensor, mask_ratio=mask_ratio, seed=seed + number, **image.metadata)
    for number, batch in enumerate(tiles.split(64))
]
rebuilt = join(torch.from_numpy(np.concatenate([b.pixels for b in batches]))).numpy()  # [C, H, W]
mask = join(torch.from_numpy(np.concatenate([b.mask for b in batches])[:, None]))[0].numpy()  # [H, W]
print(f"{len(tiles)} tiles, {mask.mean():.0%} hidden -> {rebuilt.shape}")

# %% [markdown]
# ## Where it is wrong
#
# To compare bands, errors are given in standard deviations: each band is divided by its known spread for the sensor.
# Only hidden pixels count; the decoder is never trained to copy what the encoder saw.


# %%
def normalize(native):
    """Native numbers -> standard deviations from the band's mean."""
    return image.sensor.normalize(native, image.bands, in_decibel=image.in_decibel)


counted = mask & image.valid
error = np.abs(normalize(rebuilt) - normalize(pixels))  # [C, H, W]
error_map = np.where(counted, error.mean(axis=0), np.nan).astype(np.float32)
rendering = dict(sensor=image.sensor, bands=image.bands, in_decibel=image.in_decibel)
kwargs = dict(gsd=image.gsd, valid=image.valid, units="standard deviations", **rendering)
scores = {"mean absolute error of hidden pixels": float(np.nanmean(error_map))}
fig = figures.reconstruction(pixels, mask, rebuilt, error, scores=scores, **kwargs)
_ = figures.save(fig, out_dir / "1_reconstruction.png")

# %% [markdown]
# The third panel shows measured patches where the encoder saw them and the reconstruction elsewhere. The model gets
# colors and large shapes. It cannot know details smaller than a patch that no neighbor hints at, and the loss rewards
# the average of all possibilities: that is why reconstructions are blurred.
#
# ## Each band beside a baseline
#
# The simplest baseline predicts, for each hidden pixel, the mean of the visible pixels of its band in the same tile.

# %%
values = cut(torch.from_numpy(normalize(pixels)))  # [N, C, tile, tile]
visible = (cut(torch.from_numpy(mask[None].astype(np.float32))) == 0) & values.isfinite()
visible_mean = values.masked_fill(~visible, 0).sum((2, 3), keepdim=True)
visible_mean = visible_mean / visible.sum((2, 3), keepdim=True).clamp(min=1)  # [N, C, 1, 1]
baseline_error = np.abs(join(visible_mean.expand_as(values)).numpy() - normalize(pixels))
clay_by_band, baseline_by_band = (e[:, counted].mean(axis=1) for e in (error, baseline_error))  # [C]
ratio = float(clay_by_band.mean() / baseline_by_band.mean())
print(f"all bands: Clay {clay_by_band.mean():.3f}, visible mean {baseline_by_band.mean():.3f}, ratio {ratio:.2f}")

# %%
x = np.arange(C)
with figures.styled():
    fig, ax = plt.subplots(figsize=(min(9, 2.6 + 0.7 * C), 3.2))
    ax.bar(x - 0.2, clay_by_band, 0.38, color=figures.PALETTE[0], label="Clay")
    ax.bar(x + 0.2, baseline_by_band, 0.38, color="#9a9a9a", label="visible mean of the tile")
    waves = ["" if image.sensor.decibel else f"\n{wave:.3g} µm" for wave in image.sensor.waves(image.bands)]
    ax.set_xticks(x, [band + wave for band, wave in zip(image.bands, waves, strict=True)])
    ax.tick_params(axis="x", labelsize=8)
    ax.set(ylabel="standard deviations", title="Mean absolute error of hidden pixels")
    fig.legend(loc="outside upper right", ncols=2)
_ = figures.save(fig, out_dir / "2_error_by_band.png")

# %% [markdown]
# ## Back to a file
#
# The reconstruction in the sensor's native numbers, and its error, are written with the georeference of the input.

# %%
filled = np.where(image.valid, np.where(mask, rebuilt, pixels), np.nan).astype(np.float32)
geo = dict(crs=image.crs, transform=image.transform, nodata=float("nan"))
data.write_raster(out_dir / "reconstruction.tif", filled, descriptions=image.bands, **geo)
data.write_raster(out_dir / "error.tif", error_map, descriptions=["absolute error, standard deviations"], **geo)
written = data.read_scene(out_dir / "reconstruction.tif", image.sensor, bands=list(image.bands))
np.testing.assert_array_equal(written.pixels, filled)
assert image.crs is None or (written.crs, written.transform) == (image.crs, tuple(image.transform))

# %% [markdown]
# ## On a map
#
# Four layers, with opacity sliders at the lower right: move "reconstruction" to compare it with the original. With a
# network, `basemap="OpenStreetMap"` in `show_on_map` adds streets. Without a kernel, the layers are shown side by side.
# An image without a CRS has no map.

# %%
if image.crs:
    place = (image.crs, image.transform)
    rgb = dict(rendering, like=pixels)
    layers = [
        figures.Layer("original", figures.rgb(pixels, **rgb), *place, valid=image.valid),
        figures.Layer("visible patches", figures.rgb(pixels, valid=~mask, **rgb), *place, valid=image.valid),
        figures.Layer("reconstruction", figures.rgb(filled, **rgb), *place, valid=image.valid),
        figures.Layer("error", error_map, *place, "magma", label="absolute error, standard deviations"),
    ]
    fig = figures.static_map(layers, size=2.7)
    figures.save(fig, out_dir / "3_map.png")
    display(figures.show_on_map(layers, still=fig))

# %% [markdown]
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/05_map_reconstructions.ipynb) has stubs, hints and
# checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the transform of a patch grid
# *Easy, 5 minutes*
#
# A raster's transform `(a, b, c, d, e, f)` gives the ground position of the corner of pixel (column, row):
# x = a column + b row + c, y = d column + e row + f. A map with one cell per patch starts at the same corner. Write its
# transform.
#
# **Hint.** One column of the map spans as many meters as `patch` columns of the image.


# %% tags=["solution"]
def transform_of_patches(transform, patch):
    """(a, b, c, d, e, f) of the pixels, patch in pixels -> the same six numbers for a grid of patches."""
    a, b, c, d, e, f = transform
    return a * patch, b * patch, c, d * patch, e * patch, f


# %% tags=["check"]
checks.check_patch_transform(transform_of_patches)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the baseline
# *Medium, 10 minutes*
#
# Fill the hidden pixels of every band with the mean of the visible pixels of that band; keep the visible pixels.
#
# **Hint.** `image[:, ~hidden]` holds the visible pixels of all bands, `[C, n]`.
#
# **Hint.** `torch.where(hidden, guess, image)` takes the mean where pixels are hidden.


# %% tags=["solution"]
def visible_mean(image, hidden):
    """image [C, H, W], hidden [H, W] bool -> the image, hidden pixels replaced by the visible mean of their band."""
    mean = image[:, ~hidden].mean(dim=1)
    return torch.where(hidden, mean[:, None, None], image)


# %% tags=["check"]
checks.check_plain_guess(visible_mean)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: an image from rows of patches
# *Hard, 15 minutes*
#
# The decoder returns one row for each patch, in row-major order of the grid; a row holds all pixels of the first band,
# then those of the second, and so on. Assemble the image `[C, H, W]`. H and W need not be multiples of P: the grid then
# extends past the image, and has to be cropped.
#
# **Hint.** The grid has `-(-H // P)` rows (division rounded up) and `-(-W // P)` columns.
#
# **Hint.** `rearrange(rows, "(h w) (C p q) -> C (h p) (w q)", ...)` needs h, C and p; then crop.


# %% tags=["solution"]
def image_of_rows(rows, C, P, H, W):
    """rows [L, C*P*P] -> image [C, H, W]."""
    image = rearrange(rows, "(h w) (C p q) -> C (h p) (w q)", h=-(-H // P), C=C, p=P)
    return image[:, :H, :W]


# %% tags=["check"]
checks.check_image_of_rows(image_of_rows)

# %% [markdown]
# ## What you have learned
#
# - The decoder returns one row for each patch; reshaping, placing and cropping turn rows into an image.
# - Tiling makes the size of a scene independent of the size that the model was trained on.
# - On hidden pixels the model beats the visible mean in most bands; the band chart shows in which it does not.
#
# **Exercise.** Set `mask_ratio` to 0.9. In which bands does the model still beat the visible mean?
#
# Next: what class token and patch tokens are good for, in [06 Embeddings](06_see_embeddings.ipynb).

# %%
worst = int(np.argmax(clay_by_band / baseline_by_band))
metrics = {
    "scene": image.path,
    "pixels": f"{H} x {W}",
    "masked error, standard deviations": float(clay_by_band.mean()),
    "error of the visible mean": float(baseline_by_band.mean()),
    "ratio": ratio,
    "hardest band": image.bands[worst],
    "ratio in the hardest band": float(clay_by_band[worst] / baseline_by_band[worst]),
}
runs.write_metrics(out_dir, metrics)
