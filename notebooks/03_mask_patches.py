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
# # 03 Masking
#
# > **What does the encoder see when most patches are hidden?**
#
# You will see
# - one place, imaged by an optical and a radar sensor, with 0, 50, 75 and 95 % of its patches hidden,
# - how much of the embedding is left, how much work is saved, and why Clay hides 75 %,
# - how the decoder puts the tokens back in place, and how images of any size are padded.
#
# ![Where this notebook stands: masking, encoder](flow/03_mask_patches.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [02 Position encoding](02_encode_positions.ipynb) | 0.4 on two cores | ten chips of the synthetic Earth and small weights, both in the repository |

# %%
import math

import matplotlib.pyplot as plt
import torch
from einops import rearrange, repeat
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clay_lib import Clay, data, figures, runs
from clay_lib.course import checks, playground
from clay_lib.encoder import gather_tokens, pad_to_patches, random_mask
from clay_lib.position import position_code

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth and of the masks
out: str = ""  # folder for results; empty: papermill_runs/lab/03_mask_patches
weights: str = "clay-mini"  # the small weights of this repository, or a path
chip_size: int = 128  # pixels a side, a multiple of 8

# %%
out_dir = runs.output_folder(out, "03_mask_patches")
clay = Clay.load(weights)
encoder, decoder, config = clay.model.encoder, clay.model.decoder, clay.model.config
P, side = config.patch_size, chip_size // config.patch_size
L = side * side
kwargs = dict(size=chip_size, land_cover=40, index=1, seed=seed)
images = {sensor: data.open_scene(sensor=sensor, **kwargs) for sensor in ("sentinel-2-l2a", "sentinel-1-rtc")}
cubes = {sensor: clay.cube(image.measured(), sensor, **image.metadata) for sensor, image in images.items()}
optical, cube = images["sentinel-2-l2a"], cubes["sentinel-2-l2a"]
print(f"{chip_size} x {chip_size} pixels in patches of {P} x {P}: L = {L} patches")

# %% [markdown]
# ## The idea
#
# Clay is a **masked autoencoder** ([He et al., 2021](https://arxiv.org/abs/2111.06377)). Most patches of an image are
# hidden, the **encoder** turns the visible ones into features, and a small **decoder** has to reconstruct the hidden
# ones from these features. This is only possible if the features describe the land, and no labels are needed for it.
#
# Hidden patches are not set to zero: they are **removed** from the sequence, so the encoder does no work for them.
#
# ## Masking, by hand
#
# Each patch gets a random number. Sorted by these numbers, the first 75 % are hidden and the rest stay visible.
#
# > **On a laptop.** The release hides 75 %, as this notebook does. The small weights were trained with 60 %, on
# > chips of 64 and 128 pixels.

# %%
ratio = 0.75
noise = torch.rand(1, L, generator=torch.Generator().manual_seed(seed))
order = noise.argsort(dim=1)
masked, visible = order[:, : int(ratio * L)], order[:, int(ratio * L) :]
mask = torch.zeros(1, L)
mask[0, masked[0]] = 1

library = random_mask(1, L, mask_ratio=ratio, shuffle=True, generator=torch.Generator().manual_seed(seed))
for by_hand, expected in zip((visible, masked, mask), library, strict=True):
    torch.testing.assert_close(by_hand, expected)
print(f"ratio {ratio}: {masked.shape[1]} of {L} patches hidden, {visible.shape[1]} visible")

# %% [markdown]
# The visible tokens are then selected by their indices. This happens after the position code is added, so every token
# still carries its place.

# %%
tokens = encoder.patch_embedding(cube.pixels, cube.waves)  # [1, L, D]
visible_tokens = torch.stack([tokens[0, i] for i in visible[0]])[None]  # [1, V, D]
torch.testing.assert_close(visible_tokens, gather_tokens(tokens, visible))
print(f"tokens {tuple(tokens.shape)} -> visible tokens {tuple(visible_tokens.shape)}")

# %% [markdown]
# ## Four ratios, two sensors
#
# Here is one place, imaged by Sentinel-2 and by Sentinel-1 radar (VV, VH and their ratio as red, green and blue). Light
# gray is hidden. The same seed hides the same patches for both sensors.


# %%
def to_pixels(mask):
    """Mask [L], 1 = hidden -> [H, W] bool."""
    return repeat(mask, "(h w) -> (h p) (w q)", h=side, p=P, q=P).bool().numpy()


ratios, views, titles = (0.0, 0.5, 0.75, 0.95), [], []
for sensor, image in images.items():
    for ratio in ratios:
        mask = random_mask(1, L, mask_ratio=ratio, shuffle=True, generator=torch.Generator().manual_seed(seed))[2]
        stretch = dict(like=image.measured(), in_decibel=image.in_decibel)
        views.append(figures.rgb(image.measured(), sensor, valid=~to_pixels(mask[0]), **stretch))
        titles.append(f"{sensor}: {ratio:.0%} hidden")
fig = figures.show_row(views, titles, columns=4, gsd=optical.gsd, size=2.3)
_ = figures.save(fig, out_dir / "1_ratios.png")

# %% [markdown]
# The encoder returns one token for each visible patch, and a **class token** in front of them. The class token has no
# place of its own; it describes the whole chip.

# %%
for ratio in ratios:
    encoded = encoder(cube, mask_ratio=ratio, generator=torch.Generator().manual_seed(seed))
    V = encoded.visible.shape[1]
    print(f"{ratio:4.0%} hidden: {V:4} of {L} patches visible, encoder output {tuple(encoded.tokens.shape)}")
    assert V == L - int(ratio * L) and encoded.tokens.shape[1] == 1 + V and encoded.mask.sum() == L - V

# %% [markdown]
# ## What is left of the embedding
#
# The class token is the embedding of the chip. How much does it change when patches are hidden? The figure shows the
# cosine between the class tokens of the masked and the complete chip, for chips of eight land covers. The dashed line
# is the cosine between different chips: near it, the embedding would no longer distinguish chips.

# %%
chips = data.world_chips("sentinel-2-l2a", 8, split="test", size=chip_size, seed=seed, jobs=1)
eight = clay.cube(chips.pixels, chips.sensor, **chips.place_and_time)
complete = F.normalize(encoder(eight).tokens[:, 0], dim=1)  # [8, D]
shares, cosines = (0.1, 0.25, 0.5, 0.6, 0.75, 0.85, 0.9, 0.95), []
for share in shares:
    partial = encoder(eight, mask_ratio=share, generator=torch.Generator().manual_seed(seed)).tokens[:, 0]
    cosines.append((F.normalize(partial, dim=1) * complete).sum(dim=1))
cosines = torch.stack(cosines)  # [shares, chips]
unrelated = (complete @ complete.T)[~torch.eye(len(complete), dtype=torch.bool)].median().item()
cosine75 = cosines[shares.index(0.75)].median().item()
print(f"75 % hidden: cosine {cosine75:.3f} to the complete chip; different chips {unrelated:.3f}")
runs.claim(cosine75 > unrelated, "a quarter of the patches identifies a chip")

# %%
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    ax.plot(shares, cosines.median(dim=1).values, "o-", color=figures.PALETTE[0], label="median of eight chips")
    low, high = cosines.quantile(torch.tensor([0.25, 0.75]), dim=1)
    ax.fill_between(shares, low, high, color=figures.PALETTE[0], alpha=0.15, lw=0, label="their middle half")
    ax.axhline(unrelated, color="#9a9a9a", ls="--", lw=1.2, label="different chips, median")
    ax.set(xlabel="share of hidden patches", ylabel="cosine to the complete chip", xlim=(0, 1), ylim=(None, 1.02))
    ax.set_title("Class token of a masked chip")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
_ = figures.save(fig, out_dir / "2_class_token.png")

# %% [markdown]
# ## What masking saves
#
# The work of a transformer block is counted in floating-point operations (FLOP). For $n$ tokens of width $D$, attention
# width $A$ and feed-forward width $M$, a block needs
#
# $$2\,n\,(4AD + 2DM) + 2\,n^2 \cdot 2A$$
#
# The first term is for the linear layers, the second for the attention between all pairs of tokens. With a quarter of
# the tokens, the work is therefore at most a quarter. torch counts the operations of a real pass and confirms the
# formula.


# %%
def block_flops(patches):
    """FLOP of all transformer blocks for one image with that many visible patches and the class token."""
    n, A, M = 1 + patches, config.heads * config.dim_head, int(config.dim * config.mlp_ratio)
    return config.depth * (2 * n * (4 * A * config.dim + 2 * config.dim * M) + 2 * n * n * 2 * A)


for ratio in ratios:
    V = L - int(ratio * L)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder.transformer(torch.zeros(1, 1 + V, config.dim))
    assert block_flops(V) == counter.get_total_flops()
    print(f"{ratio:4.0%} hidden: {block_flops(V) / 1e9:.2f} GFLOP, {block_flops(V) / block_flops(L):4.0%} of the work")

# %% [markdown]
# ## Why 75 %?
#
# If too little is hidden, the task is too easy: a hidden patch can be filled by copying a neighbor, without any
# knowledge of land. Here is this baseline: it copies the nearest visible patch. Its error is the mean absolute
# difference over hidden patches, in standard deviations of each band.

# %%
grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(L, 2).float()


def copy_nearest(cube, ratio, draws=8):
    """(error of copying the nearest visible patch, share of hidden patches next to a visible one)."""
    generator = torch.Generator().manual_seed(seed)
    patches = rearrange(cube.pixels, "1 C (h p) (w q) -> 1 (h w) (C p q)", p=P, q=P).expand(draws, -1, -1)
    visible, masked, _ = random_mask(draws, L, mask_ratio=ratio, shuffle=True, generator=generator)
    distance = torch.cdist(grid[masked], grid[visible])  # [draws, L-V, V]
    nearest = visible.gather(1, distance.argmin(dim=2))
    error = (gather_tokens(patches, nearest) - gather_tokens(patches, masked)).abs().mean()
    return error.item(), (distance.amin(dim=2) < 1.5).float().mean().item()  # diagonal neighbors: 1.41


shares = (0.1, 0.25, 0.5, 0.625, 0.75, 0.85, 0.9, 0.95)
errors = {sensor: [copy_nearest(c, share)[0] for share in shares] for sensor, c in cubes.items()}
adjacent = [copy_nearest(cube, share)[1] for share in shares]
work = [block_flops(L - int(share * L)) / block_flops(L) for share in shares]

# %%
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.4))
    axes[0].plot(shares, work, "o-", color=figures.PALETTE[0], label="work of the encoder's blocks")
    axes[0].plot(shares, adjacent, "s-", color=figures.PALETTE[1], label="hidden patches next to a visible one")
    axes[0].set(title="Cost, and how much can be copied", ylabel="share", ylim=(0, 1.3), yticks=(0, 0.25, 0.5, 0.75, 1))
    for color, marker, (sensor, error) in zip(figures.PALETTE[2:], "^D", errors.items(), strict=False):
        axes[1].plot(shares, error, f"{marker}-", color=color, label=sensor)
    axes[1].set(title="Error of copying the nearest visible patch", ylabel="standard deviations")
    axes[1].set_ylim(0, 1.3 * max(map(max, errors.values())))
    for ax in axes:
        ax.axvline(0.75, color="#9a9a9a", ls="--", lw=1.2)
        ax.legend(loc="upper left", fontsize=8.5)
        ax.set(xlabel="share of hidden patches (dashed: 75 %)", xlim=(0, 1))
_ = figures.save(fig, out_dir / "3_why_75.png")

# %% [markdown]
# Up to about 75 %, most hidden patches lie next to a visible one, so copying remains easy while the work of the encoder
# decreases to less than a quarter. Beyond that, more and more patches have no visible neighbor, and a reconstruction
# needs knowledge of the land. Near 95 % there is little left to save and little information to use. These curves do not
# prove that 75 % is best; He et al. (2021) and Clay found that it trains well.

# %%
adjacent75, adjacent95 = (adjacent[shares.index(share)] for share in (0.75, 0.95))
work75 = work[shares.index(0.75)]
print(f"75 % hidden: {work75:.0%} of the work, {adjacent75:.0%} of hidden patches next to a visible one")
assert work75 < (1 + L - int(0.75 * L)) / (1 + L) and adjacent75 > adjacent95

# %% [markdown]
# ## Putting tokens back, by hand
#
# The decoder receives the visible tokens in random order. It puts them in their places and fills each hidden place with
# the same learned **mask token**. A hook on the decoder's transformer shows that the library does the same: its input
# is the class token, then this sequence plus the position code.

# %%
encoded = encoder(cube, mask_ratio=0.75, generator=torch.Generator().manual_seed(seed))
projected = decoder.enc_to_dec(encoded.tokens)[:, 1:]  # [1, V, decoder's D], without the class token
by_hand = torch.empty(1, L, decoder.dim)
for i, place in enumerate(encoded.visible[0]):
    by_hand[0, place] = projected[0, i]
for place in encoded.masked[0]:
    by_hand[0, place] = decoder.mask_patch

# %%
inputs = []
hook = decoder.transformer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
pixels = decoder(encoded, cube)
hook.remove()
kwargs = dict(time=cube.time, latlon=cube.latlon, frequencies=encoder.frequencies)
code = position_code(*encoded.grid, decoder.dim, cube.gsd, **kwargs)
torch.testing.assert_close(by_hand + code, inputs[0][:, 1:])
print(f"visible {tuple(projected.shape)} -> decoder input {tuple(inputs[0].shape)} -> pixels {tuple(pixels.shape)}")

# %% [markdown]
# **Try it.** Hide more or fewer patches, drop bands, or give the model another place or date, and watch the
# reconstruction. The chip is a window of 64 x 64 pixels, a size on which the small weights were trained.

# %%
chip = data.crop(optical, 64)
playground(clay, chip.measured(), chip.sensor, when=chip.when, lat=chip.lat, lon=chip.lon)

# %% [markdown]
# ## Images of any size
#
# Sides of real images are rarely multiples of 8. The library repeats the last row and column until they are, masks and
# reconstructs the padded image, and crops the result. The padding does not count in the loss.

# %%
H, W = 50, 61
odd = clay.cube(chip.measured()[:, :H, :W], chip.sensor, **chip.metadata)
by_hand = torch.cat([odd.pixels, odd.pixels[..., -1:].expand(-1, -1, -1, -W % P)], dim=3)
by_hand = torch.cat([by_hand, by_hand[..., -1:, :].expand(-1, -1, -H % P, -1)], dim=2)
torch.testing.assert_close(by_hand, pad_to_patches(odd.pixels, P), rtol=0, atol=0)
h, w = encoder(odd, mask_ratio=0.75).grid
print(f"image {H} x {W} -> padded {by_hand.shape[2]} x {by_hand.shape[3]} -> {h} x {w} patches")

# %% [markdown]
# Pixels that were not measured, under clouds for example, are handled like hidden patches: they are left out. That is
# the subject of the appendix [13 Missing pixels](13_embed_holes.ipynb).
#
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/03_mask_patches.ipynb) has stubs, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: how long is the sequence?
# *Easy, 5 minutes*
#
# How many tokens enter the encoder's transformer for an image of `height` x `width` pixels? Images are padded to
# complete patches, `int(mask_ratio * L)` of the L patches are hidden, and the class token is added.
#
# **Hint.** `math.ceil` rounds up: 250 pixels are 32 patches of 8.


# %% tags=["solution"]
def sequence_length(height, width, patch_size, mask_ratio):
    """Sides and patch size in pixels, share of hidden patches -> number of tokens, with the class token."""
    patches = math.ceil(height / patch_size) * math.ceil(width / patch_size)
    return 1 + patches - int(mask_ratio * patches)


# %% tags=["check"]
checks.check_sequence_length(sequence_length)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: a mask from random numbers
# *Medium, 10 minutes*
#
# Each patch of each image in a batch has a random number. In each image, hide the `int(ratio * L)` patches with the
# smallest numbers: 1 in the mask means hidden, 0 visible.
#
# **Hint.** `draw.argsort(dim=1)` returns, for each image, the indices of its patches from the smallest number to the
# largest.
#
# **Hint.** `torch.zeros(B, L).scatter(1, indices, 1.0)` writes ones at `indices` [B, n].


# %% tags=["solution"]
def mask_of_draw(draw, ratio):
    """draw [B, L], share of hidden patches -> mask [B, L] of zeros and ones, 1 = hidden."""
    hidden = draw.argsort(dim=1)[:, : int(ratio * draw.shape[1])]
    return torch.zeros_like(draw).scatter(1, hidden, 1.0)


# %% tags=["check"]
checks.check_mask(mask_of_draw)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: put the tokens back
# *Hard, 15 minutes*
#
# The decoder receives the visible tokens in random order and needs all L tokens of every image in row order: `tokens[b,
# i]` goes to place `visible[b, i]` of image b, and the mask token to every other place.
#
# **Hint.** Begin with L mask tokens for each image: `repeat(mask_token, "D -> B L D", B=B, L=L)`.
#
# **Hint.** One assignment with two index tensors is enough: `full[torch.arange(B)[:, None], visible] = tokens`.


# %% tags=["solution"]
def put_back(tokens, visible, mask_token, L):
    """tokens [B, V, D], visible [B, V], mask_token [D], number of places L -> [B, L, D]."""
    B = len(tokens)
    full = repeat(mask_token, "D -> B L D", B=B, L=L).clone()
    full[torch.arange(B)[:, None], visible] = tokens
    return full


# %% tags=["check"]
checks.check_put_back(put_back)

# %% [markdown]
# ## What you have learned
#
# - Hidden patches are removed from the sequence, which saves more than their share of the encoder's work.
# - With 75 % hidden, the class token still describes the chip, and most hidden patches lie next to a visible one: the
#   task is hard, but there is information to use.
# - The decoder puts the tokens back in place, with a mask token for each hidden patch; images of any size are padded.
#
# **Exercise.** Set `land_cover=50` in the third cell, a town, and run again. Above which share of hidden patches is
# copying a neighbor clearly worse than for fields, and why?
#
# All parts are now there. In [04 Training](04_train_clay.ipynb) the model learns to reconstruct what it cannot see.

# %%
metrics = {
    "patches of the chip": L,
    "visible at 75 %": L - int(0.75 * L),
    "encoder's work at 75 %, share": round(work75, 3),
    "hidden patches next to a visible one at 75 %": round(adjacent75, 3),
    "class token at 75 %, cosine to the complete chip": round(cosine75, 3),
    "class tokens of different chips, cosine": round(unrelated, 3),
    "error of copying the nearest patch, Sentinel-2, at 75 %": round(errors["sentinel-2-l2a"][shares.index(0.75)], 3),
}
runs.write_metrics(out_dir, metrics)
