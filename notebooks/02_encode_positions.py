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
# # 02 Positional encoding
#
# > **How does the model know where, when and how large?**
#
# You will see
# - that a transformer without a position code cannot tell an image from its shuffled pieces,
# - how column, row and pixel size become sines and cosines, and how the same step in metres gives the same code,
# - what is odd about the released code: nearly a single frequency, so that neighbours do not look alike,
# - how date and place become eight numbers, and why zeros mean "unknown".
#
# | needs | minutes | data |
# | --- | --- | --- |
# | [01 Patch embedding](01_embed_patches.ipynb) | under 1 on two cores; no GPU needed (not measured there) | one chip of the mini-world, made here; small weights, shipped |
#
# The position code itself is a formula. Nothing of it is learned; weights are needed for the first section only.

# %%
import math

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, figures
from clay_lib.course import checks
from clay_lib.data.chips import world_chips
from clay_lib.datacube import latlon_code, time_code
from clay_lib.encoder import patchify, unpatchify
from clay_lib.position import angular_frequencies, grid_code, position_code
from clay_lib.runs.notebooks import output_folder, write_metrics

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the mini-world and of the shuffled patches
out: str = ""  # folder for results; empty: papermill_runs/lab/02_encode_positions
dim: int = 1024  # width of a token, D: 1024 in the released model, 192 in tiny
side: int = 32  # patches along a side: 32 of 8 pixels are 256 pixels
weights: str = "clay-mini.safetensors"  # shipped; whose transformer is asked in the first section

# %%
out_dir = output_folder(out, "02_encode_positions")
D, quarter = dim, (dim - 8) // 4
print(f"a token has {D} numbers: 4 x {quarter} say column and row, the last 8 say time and place")

# %% [markdown]
# ## Why a code is needed
#
# A transformer treats its tokens as a set. Here is a chip, and the same chip with its patches shuffled. To the eye they are
# two images.

# %%
s2 = SENSORS["sentinel-2-l2a"]
chip = world_chips(s2.name, 1, classes=[40], first=1, split="test", size=128, seed=seed, jobs=1)
encoder = Clay.load(weights).model.encoder
pixels = torch.from_numpy(s2.normalize(chip.pixels)).float()
patches = patchify(pixels, 8)  # [1, L, C*8*8]
order = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(seed))
shuffled = unpatchify(patches[:, order], grid=(16, 16), patch_size=8, size=(128, 128))
views = [figures.rgb(p[0], s2, normalized=True, like=pixels[0]) for p in (pixels, shuffled)]
fig = figures.show_row(views, ["a chip", "the same patches, shuffled"], gsd=s2.gsd, size=2.8)

# %% [markdown]
# To the transformer of a trained Clay, without a position code, they are one: every patch gets the same features, wherever
# it lies. It cannot tell a river's source from its mouth.

# %%
waves = torch.from_numpy(s2.waves())
with_places, mixed = (encoder.transformer(encoder.patch_embedding(p, waves)) for p in (pixels, shuffled))
torch.testing.assert_close(with_places[:, order], mixed, rtol=1e-3, atol=1e-3)
print(
    f"{len(order)} patches, the same features in both: largest difference {(with_places[:, order] - mixed).abs().max():.0e}"
)

# %% [markdown]
# So each token is given a **code** of where it lies, added to its numbers. In Clay the code also says how large a pixel is,
# when the image was taken and where on Earth.
#
# ## By hand
#
# A column number x is turned into an angle, x times a frequency, for many frequencies; the code holds the sines and
# cosines of these angles. The same for the row y. Clay's frequencies are multiplied by the **ground sampling distance**
# (GSD, metres per pixel), so that the angle grows with the distance on the ground.


# %%
def code_by_hand(h, w, gsd, time, latlon):
    o = torch.arange(quarter) / (quarter - 1)  # 0 to 1
    f = gsd / 10_000 ** (2 * o / (4 * quarter))
    rows = []
    for y in range(h):  # row by row, as the tokens come
        for x in range(w):
            rows.append(torch.cat([(x * f).sin(), (x * f).cos(), (y * f).sin(), (y * f).cos(), time[0], latlon[0]]))
    return torch.stack(rows)[None]


# %%
when, lat, lon = "2023-06-10T10:30", -3.40, 34.07
time, latlon = time_code(when), latlon_code(lat, lon)
mine = code_by_hand(4, 6, 10.0, time, latlon)
library = position_code(4, 6, D, 10.0, time, latlon)
torch.testing.assert_close(mine, library, rtol=1e-4, atol=1e-4)
difference = (mine - library).abs().max().item()
print("4 rows, 6 columns -> code", *library.shape, f"(B L D), largest difference to the library {difference:.0e}")

# %% [markdown]
# ## The code as a picture
#
# The first row of patches of an image, from its first column to its last, at two pixel sizes. Each line of the picture
# is one token's code. Only the first two quarters, from the column, change along a row of the image.


# %%
def row_of(gsd):
    return position_code(side, side, D, gsd, time, latlon)[0, :side]


with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.9), sharey=True)
    for ax, gsd in zip(axes, (10.0, 30.0), strict=True):
        shown = ax.imshow(row_of(gsd), aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1, interpolation="antialiased")
        ax.set(title=f"GSD {gsd:g} m", xlabel="number within the code")
        ax.set_xticks([quarter * (k + 0.5) for k in range(4)], ["sin x", "cos x", "sin y", "cos y"])
        for k in range(1, 5):
            ax.axvline(quarter * k - 0.5, color="black", lw=0.8)
    axes[0].set_ylabel("column of the patch, x")
    fig.colorbar(shown, ax=axes, label="code")
_ = figures.save(fig, out_dir / "code.png")

# %% [markdown]
# The eight numbers for time and place, at the right edge, are too few to be seen here. Within a quarter the tone drifts
# from left to right, more so further down: the frequencies are nearly the same, but not quite. More on that below.
#
# ## The same step in metres, the same code
#
# Because the frequency is multiplied by the GSD, column 3 at 10 m and column 1 at 30 m have the same code. A field that
# is so many metres away is that far for either sensor. (A patch is 8 pixels wide; that factor is common to all.)

# %%
fine, coarse = row_of(10.0), row_of(30.0)
reach = (side + 2) // 3
torch.testing.assert_close(fine[::3][:reach], coarse[:reach], rtol=0, atol=1e-3)
print(f"columns 0, 3, 6, ... at 10 m equal columns 0, 1, 2, ... at 30 m: {reach} columns compared")

# %% [markdown]
# ## Nearly a single frequency
#
# The usual code for transformers uses a *ladder* of frequencies, from 1 down to 1/10 000. The fast ones tell neighbours
# apart, the slow ones tell left from right. The formula of the released weights divides the exponent by the width of
# the code once more than usual. This squeezes the ladder: at a GSD of 10 m all frequencies lie close under 10 radians per
# patch. The released weights were trained with it, so it has to stay; `frequencies="geometric"` in the configuration is the
# usual ladder, for models that are trained anew.

# %%
released, geometric = angular_frequencies(quarter, 10.0), angular_frequencies(quarter, 10.0, frequencies="geometric")
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    ax.plot(released, color=figures.PALETTE[3], lw=2.2, label="released")
    ax.plot(geometric, color=figures.PALETTE[0], lw=2.2, label="geometric")
    ax.axhline(math.pi, color="#9a9a9a", ls="--", lw=1.2, label="pi: half a turn per patch")
    ax.set(yscale="log", xlabel="number within a quarter of the code", ylabel="radians per patch")
    ax.set_title("Frequencies at a GSD of 10 m")
    ax.legend(loc="lower left")
low, high = (released[[-1, 0]] / 10).tolist()
print(f"released: {low:.3f} to {high:.3f} x GSD; geometric: {geometric[-1] / 10:.4f} to {geometric[0] / 10:.3f} x GSD")
assert low > 0.9 and geometric[-1] < 0.001

# %% [markdown]
# ## Aliasing: what 10 radians per patch means
#
# A full turn is 2 pi, about 6.28 radians. A step of 10 radians is one turn and a bit more than a half. A sine that is
# looked at only once per patch cannot show the difference between 10 radians and 10 minus two turns: it appears to turn
# *backwards*, by about 2.6 radians. This is **aliasing**, the same effect that lets wheels turn backwards in films.

# %%
apparent = (10 + math.pi) % (2 * math.pi) - math.pi
fine_x, x = torch.linspace(0, 14, 1500), torch.arange(15)
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 2.8))
    ax.plot(fine_x, (10 * fine_x).sin(), color="#c8c8c8", lw=1, label="sin(10 x), what the formula says")
    ax.plot(fine_x, (apparent * fine_x).sin(), color=figures.PALETTE[0], lw=1.4, label=f"sin({apparent:.2f} x)")
    ax.plot(x, (10.0 * x).sin(), "o", color=figures.PALETTE[3], ms=5, label="what the tokens get")
    ax.set(xlabel="column of the patch, x", ylim=(-1.1, 1.1), title="Seen once per patch, two waves are one")
    fig.legend(loc="outside lower center", ncols=3)
torch.testing.assert_close((10.0 * x).sin(), (apparent * x).sin(), rtol=0, atol=1e-4)
turns = 10 / (2 * math.pi)
print(f"10 radians per patch look like {apparent:.3f}: {turns:.2f} turns forward are {2 - turns:.2f} back")

# %% [markdown]
# ## Who looks like whom
#
# The cosine of the centre token's code with that of every other token, for three pixel sizes: red is alike, blue is
# opposite, one small square a patch. Above the released code, below the usual ladder. The eight numbers of time and place
# are left out, being the same everywhere.


# %%
def likeness(gsd, ladder):
    """Cosine of the centre token's code with all others, [side, side]."""
    code = F.normalize(grid_code(side, side, D - 8, gsd, frequencies=ladder), dim=1)
    return rearrange(code @ code[side // 2 * side + side // 2], "(h w) -> h w", h=side)


sizes, ladders = (10.0, 30.0, 500.0), ("released", "geometric")
maps = {(ladder, gsd): likeness(gsd, ladder) for ladder in ladders for gsd in sizes}
titles = [f"{ladder}, {gsd:g} m: {side * 8 * gsd / 1000:.3g} km across" for ladder, gsd in maps]
label = "cosine with the centre's code"
fig = figures.show_row(maps.values(), titles, columns=3, cmap="RdBu_r", limits=(-1, 1), label=label, size=2.5)
_ = figures.save(fig, out_dir / "likeness.png")


# %%
def along_row(ladder, gsd):
    return maps[ladder, gsd][side // 2, side // 2 :]


with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 3.0))
    for colour, ladder in zip((figures.PALETTE[3], figures.PALETTE[0]), ladders, strict=True):
        ax.plot(along_row(ladder, 10.0), "o-", ms=4, color=colour, label=f"{ladder}, 10 m")
    ax.set(xlabel="patches to the right of the centre", ylabel="cosine", ylim=(-0.02, 1.05))
    ax.set_title("Along the centre's row")
    fig.legend(loc="outside upper right", ncols=2)
near = along_row("released", 10.0)
twin = int(near[1:].argmax()) + 1
print(f"released, 10 m: the next patch {near[1]:.2f}; the most alike is {twin} patches away, {near[twin]:.2f}")
assert twin > 1 and along_row("geometric", 10.0)[1:].argmax() == 0

# %% [markdown]
# This is worth knowing and easily over-read, so in plain words:
# - With the released code, likeness of codes is **not** nearness. At 10 m the patch next door has almost nothing in
#   common with the centre while patches seven away look much the same. At 30 m the stripes have another spacing, and at
#   500 m the code is close to a random number for each column and row.
# - Every token still has its own code; the small spread of the frequencies helps to keep them apart. That is enough for
#   a network to learn where things are, but it has to learn the layout for each pixel size instead of being given it.
# - With the usual ladder likeness falls off with distance. With coarser pixels it starts lower, because the upper rungs of
#   that ladder, too, then turn by more than half a circle per patch.


# %%
def closest_pair(gsd):
    """The largest cosine between codes of two different tokens."""
    code = F.normalize(grid_code(side, side, D - 8, gsd), dim=1)
    return (code @ code.T).fill_diagonal_(-1).max().item()


pairs = {gsd: closest_pair(gsd) for gsd in sizes}
print("most alike pair of different tokens:", ", ".join(f"{gsd:g} m {value:.4f}" for gsd, value in pairs.items()))
assert max(pairs.values()) < 1 - 1e-4  # no two tokens share a code

# %% [markdown]
# ## When and where
#
# A week number has the same flaw as a clock: 52 and 1 are neighbours. So the week is put on a circle, as sine and
# cosine, and the hour on another one. Latitude and longitude become sines and cosines too. That makes 4 + 4 numbers,
# the last eight of the code.

# %%
weeks = [time_code(f"2023-{month:02d}-15T10:30")[0] for month in range(1, 13)]
hours = [time_code(f"2023-06-10T{hour:02d}:00")[0] for hour in range(0, 24, 2)]
months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()

# %%
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.7))
    for ax, points, names, at in zip(
        axes, (weeks, hours), (months, [f"{h} h" for h in range(0, 24, 2)]), (0, 2), strict=True
    ):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#c8c8c8"))
        for point, name in zip(points, names, strict=True):
            ax.plot(*point[at : at + 2], "o", color=figures.PALETTE[0])
            ax.annotate(name, 1.2 * point[at : at + 2], ha="center", va="center", fontsize=9)
        ax.plot(0, 0, "x", color=figures.PALETTE[3], ms=8, mew=2)
        ax.annotate("unknown", (0, -0.16), ha="center", color=figures.PALETTE[3], fontsize=9)
        ax.set(aspect="equal", xlim=(-1.45, 1.45), ylim=(-1.4, 1.4), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes[0].set(title="Year: the 15th of each month", xlabel="sine of the week", ylabel="cosine of the week")
    axes[1].set(title="Day", xlabel="sine of the hour", ylabel="cosine of the hour")

# %% [markdown]
# **Zeros mean unknown.** No date is at the circle's centre, because sine and cosine of one angle are never both zero.
# So four zeros can be told from every date, and four zeros from every place. In the training of the released weights a
# fifth of the images had both set to zero: the model knows what to do without them.

# %%
places = {"Lake Victoria": (-3.40, 34.07), "Lisbon": (38.72, -9.14), "place unknown": (None, None)}
codes = {name: torch.cat([time_code(when), latlon_code(*place)], dim=1)[0] for name, place in places.items()}
codes["both unknown"] = torch.cat([time_code(None), latlon_code(None, None)], dim=1)[0]
columns = ["sin week", "cos week", "sin hour", "cos hour", "sin lat", "cos lat", "sin lon", "cos lon"]
values = torch.stack(list(codes.values()))
fig = figures.matrix(
    values, names=list(codes), columns=columns, signed=True, limits=(-1, 1), label="code", form="{:.2f}"
)
fig.set_size_inches(7.6, 2.7)
assert values[-1].abs().sum() == 0
pairs_on_circles = rearrange(values[:2], "n (pair two) -> n pair two", two=2)
torch.testing.assert_close(pairs_on_circles.square().sum(-1), torch.ones(2, 4))  # a known code is never zero

# %% [markdown]
# The last eight numbers are the same for every token of an image, and they are in its code as they are:

# %%
one_place = position_code(side, side, D, 10.0, time, latlon)
torch.testing.assert_close(one_place[0, :, -8:], codes["Lake Victoria"].expand(side * side, 8))
print("last eight of every token:", [round(v, 2) for v in one_place[0, 0, -8:].tolist()])

# %% [markdown]
# ## Images that are not square
#
# 64 x 256 pixels and 256 x 64 pixels have equally many patches, 8 x 32 and 32 x 8. Token number 40 is in the second row
# of the one and in the sixth row of the other. A code that takes the square root of the number of tokens for the width
# gets both wrong; this one takes height and width.

# %%
wide, tall = (position_code(h // 8, w // 8, D, 10.0, time, latlon)[0] for h, w in ((64, 256), (256, 64)))
assert wide.shape == tall.shape and not torch.allclose(wide, tall, atol=0.1)
# Turned by the diagonal they agree: what is column in the one is row in the other.
turned = rearrange(tall, "(h w) d -> (w h) d", h=32)
swapped = torch.cat([turned[:, 2 * quarter : 4 * quarter], turned[:, : 2 * quarter], turned[:, -8:]], dim=1)
torch.testing.assert_close(wide, swapped)
moved = int(((wide - tall).norm(dim=1) > 1e-3).sum())
print(f"{len(wide)} tokens each; {moved} of them differ between wide and tall")

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/02_encode_positions.ipynb) have a notebook of their own, with
# empty places, hints and checks. Go there first; here they stand with their solutions.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the same place for another sensor
# *Easy, 5 minutes*
#
# A token in column 12 of an image with pixels of 10 m has a certain code. In which column of an image with pixels of 30 m
# does a token have the same code? Write it for any column and any two pixel sizes.
#
# **Hint.** The angle of a code is column times pixel size times a fixed number.


# %% tags=["solution"]
def same_place(column, gsd, other_gsd):
    """A column and two pixel sizes, m -> the column at other_gsd (not always a whole number) with the same code."""
    return column * gsd / other_gsd


# %% tags=["check"]
checks.check_same_place(same_place)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the circle of the year
# *Medium, 10 minutes*
#
# Put a date on the circle of the year as Clay does: take its ISO week, let 52 weeks be one whole turn, and give the sine
# and the cosine of that angle.
#
# **Hint.** A `datetime` knows its ISO week: `date.isocalendar().week`.
#
# **Hint.** `math.sin` wants radians. A whole turn is `2 * math.pi`.


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
# Write the part of the position code that says column and row, for a grid of `h` rows and `w` columns that need not be
# square: for each token, row by row, `sin x | cos x | sin y | cos y`, where x is the column times each frequency and y the
# row times each frequency. No loop is needed.
#
# **Hint.** Begin with two lists of `h * w` numbers: the column of each token, which changes fastest, and its row.
# `torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")` gives rows and columns as two grids.
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
# ## What was seen

# %%
metrics = {
    "frequencies, lowest as a share of the GSD": round(low, 4),
    "likeness of the next patch at 10 m": round(near[1].item(), 3),
    "most alike patch at 10 m, patches away": twin,
    "its likeness": round(near[twin].item(), 3),
    "most alike pair of any two tokens": round(max(pairs.values()), 4),
    "code by hand against library, largest difference": float(f"{difference:.0e}"),
}
write_metrics(out_dir, metrics)
print(f"""- Where and how large: column and row times pixel size, so that equal metres have equal codes at 10 and 30 m.
- The released frequencies lie between {low:.3f} and {high:.3f} of the GSD. At 10 m the next patch's code has a cosine of
  {near[1]:.2f} with the centre's, one {twin} patches away {near[twin]:.2f}; yet no two of {side * side} tokens share a code.
- When and where: eight numbers on four circles, the same for every token; zeros are off the circles and mean unknown.""")

# %% [markdown]
# Next: the model learns by having most of these tokens taken away, in [03 Masking](03_mask_patches.ipynb).
