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
# # 02 Position encoding
#
# > **How does the model know where, when and at what scale?**
#
# You will see
# - that without a position code a transformer cannot distinguish an image from its shuffled patches,
# - how column, row and pixel size become sines and cosines, and what is unusual about the released frequencies,
# - how date and place become eight numbers, and why zeros mean unknown.
#
# ![Where this notebook stands: positions](flow/02_encode_positions.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [01 Patch embedding](01_embed_patches.ipynb) | 0.2 on two cores | a scene of the synthetic Earth and small weights, both in the repository |
#
# The position code is a formula with nothing to learn. Weights are needed in the first section only.

# %%
import math

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from torch.nn import functional as F

from clay_lib import Clay, data, datacube, figures, position, runs
from clay_lib.course import checks

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth and of the shuffled patches
out: str = ""  # folder for results; empty: papermill_runs/lab/02_encode_positions
dim: int = 1024  # width of a token, D: 1024 in the released model, 192 in clay-mini
side: int = 32  # patches along a side: 32 patches of 8 pixels are 256 pixels
weights: str = "clay-mini"  # the small weights of this repository, or a path; for the first section

# %%
out_dir = runs.output_folder(out, "02_encode_positions")
D, quarter = dim, (dim - 8) // 4
print(f"a token has {D} numbers: 4 x {quarter} for column and row, the last 8 for time and place")

# %% [markdown]
# ## Why a code is needed
#
# A transformer treats its tokens as a set, without any order. Here are a chip and the same chip with its patches
# shuffled.

# %%
clay = Clay.load(weights)
image = data.open_scene(size=128, land_cover=40, index=1, seed=seed)
cube = clay.cube(image.measured(), image.sensor, **image.metadata)
P, rows = clay.model.config.patch_size, 128 // clay.model.config.patch_size
patches = rearrange(cube.pixels, "1 C (h p) (w q) -> (h w) C p q", p=P, q=P)  # [L, C, P, P]
order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))
shuffled = rearrange(patches[order], "(h w) C p q -> 1 C (h p) (w q)", h=rows)
kwargs = dict(normalized=True, like=cube.pixels[0])
views = [figures.rgb(pixels[0], image.sensor, **kwargs) for pixels in (cube.pixels, shuffled)]
fig = figures.show_row(views, ["a chip", "the same patches, shuffled"], gsd=image.gsd, size=2.8)
_ = figures.save(fig, out_dir / "1_shuffled.png")

# %% [markdown]
# For a trained transformer without a position code the two are the same: each patch gets the same features, wherever it
# lies.

# %%
encoder = clay.model.encoder
features, shuffled_features = (
    encoder.transformer(encoder.patch_embedding(pixels, cube.waves))[0] for pixels in (cube.pixels, shuffled)
)
torch.testing.assert_close(features[order], shuffled_features, rtol=1e-3, atol=1e-3)
largest = (features[order] - shuffled_features).abs().max()
print(f"features of {len(order)} patches, in place and shuffled: largest difference {largest:.0e}")

# %% [markdown]
# So a **position code** is added to each token. In Clay it also contains the pixel size, the date and the place on
# Earth.
#
# ## The code, by hand
#
# Sines and cosines of many frequencies describe the column $x$ and the row $y$ of a patch
# ([Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)). As in Scale-MAE
# ([Reed et al., 2023](https://arxiv.org/abs/2212.14532)), the frequencies are multiplied by the **ground sampling
# distance** $g$ (GSD, meters per pixel), so that angles grow with the distance on the ground:
#
# $$\sin(x f_k),\ \cos(x f_k),\ \sin(y f_k),\ \cos(y f_k), \qquad f_k = g \cdot 10000^{-2 o_k / 4n},\ o_k = \tfrac{k}{n-1}$$
#
# with $n = (D-8)/4$ frequencies. The last eight numbers are the codes of time and place, shown further below.


# %%
def code_by_hand(h, w, gsd, time, latlon):
    """Rows, columns, meters per pixel, time [1, 4], latlon [1, 4] -> [1, h w, D]."""
    o = torch.arange(quarter) / (quarter - 1)  # 0 to 1
    f = gsd / 10_000 ** (2 * o / (4 * quarter))
    codes = []
    for y in range(h):  # row by row, in the order of the tokens
        for x in range(w):
            codes.append(torch.cat([(x * f).sin(), (x * f).cos(), (y * f).sin(), (y * f).cos(), time[0], latlon[0]]))
    return torch.stack(codes)[None]


# %%
when, lat, lon = "2023-06-10T10:30", -3.40, 34.07
time, latlon = datacube.time_code(when), datacube.latlon_code(lat, lon)  # [1, 4] each
by_hand = code_by_hand(4, 6, 10.0, time, latlon)
library = position.position_code(4, 6, D, 10.0, time, latlon)
torch.testing.assert_close(by_hand, library, rtol=1e-4, atol=1e-4)
difference = (by_hand - library).abs().max().item()
print(f"4 rows, 6 columns -> code {tuple(library.shape)}, largest difference to the library {difference:.0e}")

# %% [markdown]
# Below is the code along the first row of an image at two pixel sizes, one line for each token. Only the first half
# changes along a row; the eight numbers at the right edge are too few to be visible.


# %%
def first_row(gsd):
    """Code of the first row of patches, [side, D]."""
    return position.position_code(side, side, D, gsd, time, latlon)[0, :side]


with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.9), sharey=True)
    for ax, gsd in zip(axes, (10.0, 30.0), strict=True):
        drawn = ax.imshow(first_row(gsd), aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1, interpolation="antialiased")
        ax.set(title=f"GSD {gsd:g} m", xlabel="number within the code")
        ax.set_xticks([quarter * (k + 0.5) for k in range(4)], ["sin x", "cos x", "sin y", "cos y"])
        for k in range(1, 5):
            ax.axvline(quarter * k - 0.5, color="black", lw=0.8)
    axes[0].set_ylabel("column of the patch, x")
    fig.colorbar(drawn, ax=axes, label="code")
_ = figures.save(fig, out_dir / "2_code.png")

# %% [markdown]
# Since the frequency is proportional to the GSD, column 3 at 10 m and column 1 at 30 m have the same code: the same
# distance in meters has the same code for either sensor.

# %%
fine, coarse = first_row(10.0), first_row(30.0)
count = (side + 2) // 3
torch.testing.assert_close(fine[::3][:count], coarse[:count], rtol=0, atol=1e-3)
print(f"columns 0, 3, 6, ... at 10 m equal columns 0, 1, 2, ... at 30 m: {count} columns compared")

# %% [markdown]
# ## The released frequencies are nearly equal
#
# Transformers normally use frequencies from 1 down to 1/10,000: the high ones tell neighbors apart, the low ones tell
# the left of the image from the right. The formula of the released weights divides the exponent by the width of the
# code a second time. At a GSD of 10 m all frequencies are then close to 10 radians per patch.
#
# > **On a laptop.** The released weights need this formula. Models trained here, clay-mini among them, use the usual
# > frequencies: `frequencies="geometric"` in the configuration.

# %%
released, geometric = (
    position.angular_frequencies(quarter, 10.0, frequencies=name) for name in ("released", "geometric")
)
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    ax.plot(released, color=figures.PALETTE[3], lw=2.2, label="released")
    ax.plot(geometric, color=figures.PALETTE[0], lw=2.2, label="geometric")
    ax.axhline(math.pi, color="#9a9a9a", ls="--", lw=1.2, label="pi: half a turn per patch")
    ax.set(yscale="log", xlabel="number within a quarter of the code", ylabel="radians per patch")
    ax.set_title("Frequencies at a GSD of 10 m")
    ax.legend(loc="lower left")
_ = figures.save(fig, out_dir / "3_frequencies.png")
low, high = (released[[-1, 0]] / 10).tolist()
print(f"released: {low:.3f} to {high:.3f} x GSD; geometric: {geometric[-1] / 10:.4f} to {geometric[0] / 10:.3f} x GSD")
assert low > 0.9 and geometric[-1] < 0.001

# %% [markdown]
# A full turn is 2 pi, about 6.28 radians, so 10 radians are more than one and a half turns. Sampled once per patch,
# such a wave cannot be distinguished from one that turns backwards by 2.6 radians. This is **aliasing**, the effect
# that makes wheels turn backwards in films.

# %%
apparent = (10 + math.pi) % (2 * math.pi) - math.pi
axis, x = torch.linspace(0, 14, 1500), torch.arange(15)
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 2.8))
    ax.plot(axis, (10 * axis).sin(), color="#c8c8c8", lw=1, label="sin(10 x)")
    ax.plot(axis, (apparent * axis).sin(), color=figures.PALETTE[0], lw=1.4, label=f"sin({apparent:.2f} x)")
    ax.plot(x, (10.0 * x).sin(), "o", color=figures.PALETTE[3], ms=5, label="code of the patches")
    ax.set(
        xlabel="column of the patch, x",
        ylabel="code",
        ylim=(-1.1, 1.1),
        title="Two waves with equal values at all patches",
    )
    fig.legend(loc="outside lower center", ncols=3)
_ = figures.save(fig, out_dir / "4_aliasing.png")
torch.testing.assert_close((10.0 * x).sin(), (apparent * x).sin(), rtol=0, atol=1e-4)

# %% [markdown]
# ## Which patches have similar codes?
#
# The maps show the cosine between the code of the central patch and all others, for three pixel sizes: the released
# frequencies above, the usual ones below. Time and place are left out, since they are the same for all patches.


# %%
def similarity_map(gsd, frequencies):
    """Cosine of the central patch's code with all others, [side, side]."""
    code = F.normalize(position.grid_code(side, side, D - 8, gsd, frequencies=frequencies), dim=1)
    return rearrange(code @ code[side // 2 * side + side // 2], "(h w) -> h w", h=side)


sizes, kinds = (10.0, 30.0, 500.0), ("released", "geometric")
maps = {(kind, gsd): similarity_map(gsd, kind) for kind in kinds for gsd in sizes}
titles = [f"{kind}, {gsd:g} m: {side * 8 * gsd / 1000:.3g} km wide" for kind, gsd in maps]
kwargs = dict(cmap="RdBu_r", limits=(-1, 1), label="cosine with the central patch", size=2.5)
fig = figures.show_row(maps.values(), titles, columns=3, **kwargs)
_ = figures.save(fig, out_dir / "5_similarity.png")

# %%
profiles = {kind: maps[kind, 10.0][side // 2, side // 2 :] for kind in kinds}  # the central row, to the right
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 3.0))
    for color, (kind, values) in zip((figures.PALETTE[3], figures.PALETTE[0]), profiles.items(), strict=True):
        ax.plot(values, "o-", ms=4, color=color, label=kind)
    ax.set(xlabel="distance from the center, patches", ylabel="cosine", ylim=(-0.02, 1.05))
    ax.set_title("Along the central row, 10 m")
    fig.legend(loc="outside upper right", ncols=2)
_ = figures.save(fig, out_dir / "6_profile.png")
next_patch, best = profiles["released"][1].item(), int(profiles["released"][1:].argmax()) + 1
print(f"released, 10 m: next patch {next_patch:.2f}; most similar at {best} patches, {profiles['released'][best]:.2f}")
assert best > 1 and profiles["geometric"][1:].argmax() == 0

# %% [markdown]
# - With the released frequencies, similar codes do **not** mean that patches are close. At 10 m the adjacent patch has
#   an almost unrelated code, while patches further away have nearly the same. At 500 m the code is close to a random
#   number for each column and row.
# - With the usual frequencies, similarity decreases with distance. It starts lower for coarse pixels, because their
#   highest frequencies are aliased too.
#
# Still, no two patches share a code, since the frequencies differ a little. The network can learn where patches lie,
# but it has to learn this for each pixel size.


# %%
def closest_pair(gsd):
    """The largest cosine between codes of two different patches."""
    code = F.normalize(position.grid_code(side, side, D - 8, gsd), dim=1)
    return (code @ code.T).fill_diagonal_(-1).max().item()


pairs = {gsd: closest_pair(gsd) for gsd in sizes}
print("most similar pair of patches:", ", ".join(f"{gsd:g} m {value:.4f}" for gsd, value in pairs.items()))
assert max(pairs.values()) < 1 - 1e-4

# %% [markdown]
# ## Date and place
#
# Week 52 and week 1 are neighbors, and so are 23 h and 0 h. That is why the week and the hour become angles, and each
# is stored as a sine and a cosine. Latitude and longitude are stored in the same way: 4 + 4 numbers in total.

# %%
months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
weeks = {name: datacube.time_code(f"2023-{m:02}-15T10:30")[0, :2] for m, name in enumerate(months, 1)}
hours = {f"{hour} h": datacube.time_code(f"2023-06-10T{hour:02d}:00")[0, 2:] for hour in range(0, 24, 2)}
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(7.8, 4.1))
    for ax, points in zip(axes, (weeks, hours), strict=True):
        for name, point in points.items():
            ax.plot(*point, "o", color=figures.PALETTE[0])
            ax.annotate(name, 1.2 * point, ha="center", va="center", fontsize=9)
        ax.plot(0, 0, "x", color=figures.PALETTE[3], ms=8, mew=2)
        ax.annotate("unknown", (0, -0.16), ha="center", color=figures.PALETTE[3], fontsize=9)
        ax.set(aspect="equal", xlim=(-1.45, 1.45), ylim=(-1.4, 1.4), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes[0].set(title="Year: the 15th of each month", xlabel="sine of the week", ylabel="cosine of the week")
    axes[1].set(title="Day", xlabel="sine of the hour", ylabel="cosine of the hour")
_ = figures.save(fig, out_dir / "7_circles.png")

# %% [markdown]
# **Zeros mean unknown.** Sine and cosine of an angle are never both zero, so zeros cannot be confused with any date or
# place. When the released weights were trained, both were set to zero for a fifth of the images, so the model works
# without them.

# %%
places = {"Lake Victoria": (when, lat, lon), "Lisbon": (when, 38.72, -9.14), "place unknown": (when, None, None)}
places["both unknown"] = (None, None, None)
codes = [torch.cat([datacube.time_code(t), datacube.latlon_code(*place)], dim=1)[0] for t, *place in places.values()]
values = torch.stack(codes)  # [4, 8]
columns = ["sin week", "cos week", "sin hour", "cos hour", "sin lat", "cos lat", "sin lon", "cos lon"]
kwargs = dict(signed=True, limits=(-1, 1), label="code", form="{:.2f}")
fig = figures.matrix(values, names=list(places), columns=columns, title="Codes of time and place", **kwargs)
fig.set_size_inches(7.6, 2.9)
_ = figures.save(fig, out_dir / "8_time_place.png")
on_circles = rearrange(values[:2], "n (pair two) -> n pair two", two=2).square().sum(-1)
torch.testing.assert_close(on_circles, torch.ones(2, 4))  # known
assert values[-1].abs().sum() == 0  # unknown

# %% [markdown]
# These eight numbers are the same for every token of an image, and are appended without change.

# %%
code = position.position_code(side, side, D, 10.0, time, latlon)
torch.testing.assert_close(code[0, :, -8:], values[0].expand(side * side, 8))
print("last eight numbers of each token:", [round(v, 2) for v in code[0, 0, -8:].tolist()])

# %% [markdown]
# ## Images that are not square
#
# Images of 64 x 256 and of 256 x 64 pixels have the same number of patches, but in grids of 8 x 32 and 32 x 8. A code
# computed from the square root of the number of tokens would be wrong for both; this one takes height and width. A
# check: when rows and columns are swapped, the two codes agree.

# %%
wide, tall = (position.grid_code(h, w, D - 8, 10.0) for h, w in ((8, 32), (32, 8)))
assert wide.shape == tall.shape and not torch.allclose(wide, tall, atol=0.1)
transposed = rearrange(tall, "(h w) d -> (w h) d", h=32)
swapped = torch.cat([transposed[:, 2 * quarter :], transposed[:, : 2 * quarter]], dim=1)  # y first, then x
torch.testing.assert_close(wide, swapped)
print(f"{len(wide)} tokens each; {int(((wide - tall).norm(dim=1) > 1e-3).sum())} have another code")

# %% [markdown]
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/02_encode_positions.ipynb) has stubs, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the same place for another sensor
# *Easy, 5 minutes*
#
# A token in column 12 of an image with pixels of 10 m has a certain code. In which column of an image with pixels of 30
# m does a token have the same code? Write a function for any column and any two pixel sizes.
#
# **Hint.** The angle is column times pixel size times a constant.


# %% tags=["solution"]
def same_place(column, gsd, other_gsd):
    """A column and two pixel sizes, m -> the column at other_gsd (not always an integer) with the same code."""
    return column * gsd / other_gsd


# %% tags=["check"]
checks.check_same_place(same_place)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the circle of the year
# *Medium, 10 minutes*
#
# Encode a date on the circle of the year as Clay does: take its ISO week, let 52 weeks be one full turn, and return the
# sine and the cosine of the angle.
#
# **Hint.** A `datetime` has its ISO week: `date.isocalendar().week`.
#
# **Hint.** `math.sin` expects radians. A full turn is `2 * math.pi`.


# %% tags=["solution"]
def week_code(date):
    """A datetime -> tensor [2]: sine and cosine of its ISO week."""
    angle = 2 * math.pi * date.isocalendar().week / 52
    return torch.tensor([math.sin(angle), math.cos(angle)])


# %% tags=["check"]
checks.check_week_code(week_code)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: the code of any grid
# *Hard, 15 minutes*
#
# Write the part of the position code that encodes column and row, for a grid of `h` rows and `w` columns that may not
# be square: for each token, row by row, `sin x | cos x | sin y | cos y`, where x is the column times each frequency and
# y the row times each frequency. No loop is needed.
#
# **Hint.** Begin with two lists of `h * w` numbers: the column of each token, which changes fastest, and its row.
# `torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")` returns rows and columns as two grids.
#
# **Hint.** `columns[:, None] * frequencies` has the shape `[h * w, F]`.


# %% tags=["solution"]
def code_of_grid(h, w, frequencies):
    """Rows, columns and frequencies [F], radians per step -> [h w, 4 F]."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    x, y = columns.flatten()[:, None] * frequencies, rows.flatten()[:, None] * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


# %% tags=["check"]
checks.check_grid_code(code_of_grid)

# %% [markdown]
# ## What you have learned
#
# - Column and row are multiplied by the pixel size, so that equal distances in meters have equal codes for all sensors.
# - The released frequencies are nearly equal: every patch has its own code, but similar codes do not mean nearby
#   patches.
# - Date and place are eight numbers on four circles, the same for every token; zeros mean unknown.
#
# **Exercise.** Set `side` to 64. Do any two of the 4,096 patches still have nearly the same code? Compare the three
# pixel sizes.
#
# Next: the model learns because most of these tokens are removed, in [03 Masking](03_mask_patches.ipynb).

# %%
metrics = {
    "frequencies, lowest as a share of the GSD": round(low, 4),
    "similarity of the next patch at 10 m": round(next_patch, 3),
    "most similar patch at 10 m, patches away": best,
    "its similarity": round(profiles["released"][best].item(), 3),
    "most similar pair of any two tokens": round(max(pairs.values()), 4),
    "code by hand against library, largest difference": float(f"{difference:.0e}"),
}
runs.write_metrics(out_dir, metrics)
