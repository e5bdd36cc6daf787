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
# # 13 Appendix: missing pixels
#
# > **What should the encoder get where nothing was measured?**
#
# You will see
# - a cloud over a chip, with its patches left out of the sequence: by hand, then with the library,
# - how gaps within a patch are filled,
# - how far the embedding moves, compared with filling in zeros or the mean.
#
# ![Where this notebook stands: datacube, masking](flow/13_embed_holes.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [03 Masking](03_mask_patches.ipynb) | 0.3 on two cores | nine chips of the synthetic Earth and small weights, both in the repository |

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from clay_lib import Clay, data, figures, runs
from clay_lib.encoder import fill_holes
from clay_lib.evaluation import cloud, removal_study
from clay_lib.position import position_code

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth and of the clouds
out: str = ""  # folder for results; empty: papermill_runs/lab/13_embed_holes
weights: str = "clay-mini"  # the small weights of this repository, or a path
chip_size: int = 128  # pixels a side, a multiple of 8
chips: int = 8  # chips of the comparison
cover: float = 0.4  # share of the patches under the cloud of the first example

# %% [markdown]
# ## A cloud
#
# Clouds, the edge of a scene or a failed detector leave pixels without a measurement. Many pipelines fill them with
# zeros or with a mean, which the released encoder takes for land. But it was trained with most of its patches missing,
# so a patch without measurements can simply be left out of the sequence, like a hidden one.
#
# > **Beyond the release.** Clay v1.5 has no input for missing pixels. Leaving patches out works with its weights as
# > they are.
#
# Here is a chip under a ragged cloud. Its pixels are NaN, and `Clay.embed` leaves their patches out.

# %%
out_dir = runs.output_folder(out, "13_embed_holes")
clay = Clay.load(weights)
encoder, P = clay.model.encoder, clay.model.config.patch_size
side = chip_size // P
image = data.open_scene(size=chip_size, land_cover=40, index=1, seed=seed)
pixels = image.measured()  # [C, H, W]
covered = cloud(side, side, cover, np.random.default_rng(seed))  # [h, w] bool, True under the cloud
covered_pixels = np.kron(covered, np.ones((P, P), bool))  # [H, W]
clouded = np.where(covered_pixels, np.nan, pixels)
embedding = clay.embed(clouded, image.sensor, **image.metadata)
assert np.array_equal(embedding.valid[0].numpy(), ~covered) and embedding.chip.isfinite().all()
assert embedding.patches[0][covered].isnan().all()
print(f"{covered.mean():.0%} of the patches covered, {int(embedding.valid.sum())} of {side * side} in the sequence")

# %%
means = image.sensor.statistics()[0][:, None, None]  # [C, 1, 1]
fills = {"left out": np.nan, "filled with zero": 0.0, "filled with the mean": means}
views = [figures.rgb(pixels, image.sensor)]
for fill in fills.values():
    filled = np.where(covered_pixels, fill, pixels)
    views.append(figures.rgb(filled, image.sensor, like=pixels, valid=np.isfinite(filled).all(axis=0)))
fig = figures.show_row(views, ["complete chip", *fills], gsd=image.gsd, size=2.3)
_ = figures.save(fig, out_dir / "1_cloud.png")

# %% [markdown]
# ## Leaving patches out, by hand
#
# Compute the tokens of the complete image with their position codes, select those of the clear patches, add the class
# token in front and apply the transformer. The result is the same as the library's for the clouded image, so no number
# depends on the covered pixels.

# %%
cube = clay.cube(pixels, image.sensor, **image.metadata)
code = position_code(side, side, encoder.dim, cube.gsd, cube.time, cube.latlon, frequencies=encoder.frequencies)
tokens = encoder.patch_embedding(cube.pixels, cube.waves) + code  # [1, L, D]
clear = torch.cat([encoder.cls_token, tokens[:, ~covered.ravel()]], dim=1)  # [1, 1 + V, D]
by_hand = encoder.transformer(clear)
torch.testing.assert_close(by_hand[:, 0], embedding.chip, rtol=0, atol=1e-5)
torch.testing.assert_close(by_hand[0, 1:], embedding.patches[embedding.valid], rtol=0, atol=1e-5)
print(f"tokens of the clear patches {tuple(clear.shape)} -> the same class token and patches")

# %% [markdown]
# If a file marks missing pixels by a value instead of NaN, pass a mask as `valid` (or the value as `nodata`). Whatever
# number lies under the mask, the embedding is the same.

# %%
for value in (0.0, 65535.0, -1e9):
    arbitrary = np.where(covered_pixels, value, pixels)
    masked = clay.embed(arbitrary, image.sensor, valid=~covered_pixels, **image.metadata)
    torch.testing.assert_close(masked.chip, embedding.chip, rtol=0, atol=0)
print("the same embedding for three values under the mask")

# %% [markdown]
# ## Gaps within a patch
#
# A patch stays in the sequence if at least half of its numbers were measured (`min_valid=0.5`). A gap in it is filled
# with the mean of the measured pixels of the same band in the same patch. For one patch, by hand:

# %%
corner = cube.pixels[:, :, :P, :P]  # [1, C, P, P], normalized
valid = torch.ones(1, 1, P, P, dtype=torch.bool)
valid[..., P // 2 :, P // 2 :] = False  # a quarter of the patch is missing
measured = corner.masked_fill(~valid, torch.nan)
by_hand = torch.where(valid, corner, measured.nanmean(dim=(2, 3), keepdim=True))
library, share = fill_holes(corner, valid, P)
torch.testing.assert_close(by_hand, library)
print(f"{share.item():.0%} of the patch measured: it stays in the sequence")

# %% [markdown]
# ## How far does the embedding move?
#
# `removal_study` removes a share of the patches, scattered or as one cloud, and compares the class token with the
# complete chip's: a cosine of 1 means that nothing changed. It uses several chips, because on a single one a fill can
# be right by chance; zero, for example, is close to dark water. (`Clay.embed` treats zero in every band as a hole; here
# the zeros reach the encoder as numbers.)

# %%
sample = data.world_chips("sentinel-2-l2a", chips, split="test", size=chip_size, seed=seed, jobs=1)
shares = (0.1, 0.3, 0.5, 0.7, 0.9)
study = removal_study(
    clay, sample.pixels, sample.sensor, shares=shares, draws=1, seed=seed, **sample.place_and_time
)  # a row for each chip, shape, share and rule
medians = study.pivot_table(index=["shape", "rule"], columns="share", values="class_token", aggfunc="median")
print(medians.round(3).to_string())

# %%
names = {"left out": "left out", "zero": "filled with zero", "mean": "filled with the mean"}
shapes = {"scattered": "Scattered patches removed", "cloud": "One connected cloud removed"}
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.4), sharey=True)
    for ax, (shape, title) in zip(axes, shapes.items(), strict=True):
        for (rule, name), marker, color in zip(names.items(), "os^", figures.PALETTE, strict=False):
            rows = study[(study["shape"] == shape) & (study["rule"] == rule)].groupby("share")["class_token"]
            ax.plot(shares, rows.median(), f"{marker}-", color=color, label=name)
            ax.fill_between(shares, rows.quantile(0.25), rows.quantile(0.75), color=color, alpha=0.15, lw=0)
        ax.set(title=title, xlabel="share of removed patches", xlim=(0, 1))
    axes[0].set_ylabel("cosine to the complete chip")
    axes[1].legend(loc="lower left", fontsize=8.5)
_ = figures.save(fig, out_dir / "2_removed.png")

# %% [markdown]
# Lines are medians over the chips, shaded areas their middle half. With the patches left out, the embedding describes
# the visible land. It changes where the cloud hides something that the rest of the chip does not show, so one large
# cloud changes it more than the same number of scattered patches.

# %%
half = {rule: medians.loc[("cloud", rule), 0.5] for rule in names}
average = medians.mean(axis=1).groupby("rule").mean()
runs.claim(average["left out"] > max(average["mean"], average["zero"]), "leaving out a patch is better than filling it")
print("a cloud over half of the chip:", ", ".join(f"{names[rule]} {value:.3f}" for rule, value in half.items()))

# %% [markdown]
# ## What you have learned
#
# - Patches without measurements are left out of the sequence, so the embedding does not depend on what lies under a
#   mask.
# - Gaps within a patch take the mean of the measured pixels of their band, if at least half of the patch was measured.
# - Left-out patches change the embedding much less than patches filled with zeros or the mean.
#
# **Exercise.** Set `cover` to 0.95. How close is the embedding to the complete chip's now?
#
# Mark missing pixels as NaN, or pass `valid` or `nodata`, and do not fill them. Back to the main path: [04
# Training](04_train_clay.ipynb).

# %%
metrics = {
    "patches under the cloud, share": round(float(covered.mean()), 3),
    "class token under a cloud over half, left out, cosine": round(float(half["left out"]), 3),
    "class token under a cloud over half, filled with zero, cosine": round(float(half["zero"]), 3),
    "class token under a cloud over half, filled with the mean, cosine": round(float(half["mean"]), 3),
}
runs.write_metrics(out_dir, metrics)
