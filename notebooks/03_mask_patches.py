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
# > **What does the encoder still see?**
#
# You will see
# - one place, seen by an optical and a radar sensor, with 0, 50, 75 and 95 % of its patches hidden, and how much of the
#   chip's embedding is left,
# - how much work hidden patches save, and how hard they make the task: why Clay hides 75 %,
# - how the hidden places are filled again, and how the same idea serves images of odd sizes and images with holes.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | [02 Positional encoding](02_encode_positions.ipynb) | under 1 on two cores; no GPU needed (not measured there) | ten chips of the mini-world, made here; small weights, shipped |

# %%
import math
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import repeat
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clay_lib import SENSORS, Clay, ClayConfig, figures
from clay_lib.course import checks
from clay_lib.course.widgets import playground
from clay_lib.data.chips import world_chips
from clay_lib.encoder import gather_tokens, pad_to_patches, patchify, random_mask, unpatchify
from clay_lib.evaluation.ablation import RULES, SHAPES, cloud, removal_study
from clay_lib.position import position_code
from clay_lib.runs.notebooks import output_folder, write_metrics

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the mini-world and of what is hidden
out: str = ""  # folder for results; empty: papermill_runs/lab/03_mask_patches
weights: str = "clay-mini.safetensors"  # shipped; or a path, such as one to the released weights
chip_size: int = 128  # pixels a side, a multiple of 8
repeats: int = 5  # timed passes for each mask ratio; the fastest counts

# %%
out_dir = output_folder(out, "03_mask_patches")
ratios = (0.0, 0.5, 0.75, 0.95)
clay = Clay.load(weights)
encoder, config = clay.model.encoder, clay.model.config
P, L = config.patch_size, (chip_size // config.patch_size) ** 2
side = chip_size // P
scene = dict(count=1, classes=[40], first=1, split="test", size=chip_size, seed=seed, jobs=1)
chips = {sensor: world_chips(sensor, **scene) for sensor in ("sentinel-2-l2a", "sentinel-1-rtc")}
cubes = {sensor: clay.cube(seen.pixels, sensor, **seen.place_and_time) for sensor, seen in chips.items()}
print(f"{chip_size} x {chip_size} pixels in patches of {P} x {P}: L = {L} patches")

# %% [markdown]
# ## The idea
#
# Clay learns without labels. Most patches of an image are taken away, the **encoder** turns the few that are left into
# features, and a small **decoder** has to paint the missing ones from these. It can only do so if the features tell what
# kind of land this is. The plan is that of the masked autoencoder (He et al. 2021).
#
# Hidden patches are not blackened: they are **removed**. The encoder never computes anything for them.
#
# ## Masking by hand
#
# Every patch draws a random number. The patches are sorted by it; the first share of that order is hidden, the rest is
# visible.

# %%
ratio = 0.75  # as in the release; the shipped weights were trained with three fifths hidden
draw = torch.rand(1, L, generator=torch.Generator().manual_seed(seed))
order = draw.argsort(dim=1)
masked, visible = order[:, : int(ratio * L)], order[:, int(ratio * L) :]
mask = torch.zeros(1, L)
mask[0, masked[0]] = 1

theirs = random_mask(1, L, mask_ratio=ratio, shuffle=True, generator=torch.Generator().manual_seed(seed))
for mine, library in zip((visible, masked, mask), theirs, strict=True):
    torch.testing.assert_close(mine, library)
print(f"ratio {ratio}: {masked.shape[1]} of {L} patches hidden, {visible.shape[1]} visible")

# %% [markdown]
# The visible tokens are picked from the sequence by their numbers. This is `take`; the encoder does it right after the
# position code has been added, so that a token that has lost its neighbours still knows its place.

# %%
tokens = encoder.patch_embedding(cubes["sentinel-2-l2a"].pixels, cubes["sentinel-2-l2a"].waves)
kept = torch.stack([tokens[0, i] for i in visible[0]])[None]

torch.testing.assert_close(kept, gather_tokens(tokens, visible))
print("tokens", tuple(tokens.shape), "-> visible tokens", tuple(kept.shape))

# %% [markdown]
# ## Four ratios, two sensors
#
# One place seen by Sentinel-2 and by Sentinel-1 radar. Light grey is what the encoder does not get to see.


# %%
def hidden_pixels(ratio):
    """[H, W] bool, True where hidden."""
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(1, L, mask_ratio=ratio, shuffle=True, generator=generator)[2]
    return repeat(mask[0], "(h w) -> (h p) (w q)", h=side, p=P, q=P).bool().numpy()


pictures, titles = [], []
for sensor, seen in chips.items():
    for ratio in ratios:
        pictures.append(figures.rgb(seen.pixels[0], sensor, valid=~hidden_pixels(ratio), like=seen.pixels[0]))
        titles.append(f"{SENSORS[sensor].name}: {ratio:.0%} hidden")
fig = figures.show_row(pictures, titles, columns=4, gsd=SENSORS["sentinel-2-l2a"].gsd, size=2.3)
_ = figures.save(fig, out_dir / "ratios.png")

# %% [markdown]
# The same seed hides the same places for both sensors. Sentinel-1 is shown as VV, VH and their ratio.
#
# What remains for the encoder, counted: the visible tokens and one **class token**, which has no place and gathers what
# is true of the whole chip.

# %%
for sensor, cube in cubes.items():
    for ratio in ratios:
        encoded = encoder(cube, mask_ratio=ratio, generator=torch.Generator().manual_seed(seed))
        V = encoded.visible.shape[1]
        print(f"{sensor:<15} {ratio:4.0%} hidden: {V:4} visible of {L}, encoder gives {tuple(encoded.tokens.shape)}")
        assert V == L - int(ratio * L) and encoded.tokens.shape[1] == 1 + V and encoded.mask.sum() == L - V

# %% [markdown]
# ## What is left of the embedding
#
# The class token of the whole chip is its embedding. Is it still the same when the encoder sees a part of the chip only?
# Here are chips of eight land covers: the cosine of the class token to that of the whole chip, over the share hidden.
# Dashed is how alike the whole chips are among each other; an embedding that falls to that line tells chips no longer apart.

# %%
places = world_chips("sentinel-2-l2a", 8, split="test", size=chip_size, seed=seed, jobs=1)
eight = clay.cube(places.pixels, "sentinel-2-l2a", **places.place_and_time)
whole = F.normalize(encoder(eight).tokens[:, 0], dim=1)
shares = (0.1, 0.25, 0.5, 0.6, 0.75, 0.85, 0.9, 0.95)
left = []
for share in shares:
    part = encoder(eight, mask_ratio=share, generator=torch.Generator().manual_seed(seed)).tokens[:, 0]
    left.append((F.normalize(part, dim=1) * whole).sum(dim=1))
left = torch.stack(left)  # [shares, chips]
others = (whole @ whole.T)[~torch.eye(len(whole), dtype=torch.bool)].median().item()
left75 = left[shares.index(0.75)].median().item()
print(f"75 % hidden: cosine {left75:.3f} to the whole chip; two different chips have {others:.3f}")
assert left75 > others

# %%
with figures.styled():
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    ax.plot(shares, left.median(dim=1).values, "o-", color=figures.PALETTE[0], label="median of eight chips")
    low, high = left.quantile(torch.tensor([0.25, 0.75]), dim=1)
    ax.fill_between(shares, low, high, color=figures.PALETTE[0], alpha=0.15, lw=0, label="middle half of them")
    ax.axhline(others, color="#9a9a9a", ls="--", lw=1.2, label="different chips, median")
    ax.set(xlabel="share of patches hidden", ylabel="cosine to the whole chip", xlim=(0, 1), ylim=(None, 1.02))
    ax.set_title("What the class token keeps")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
_ = figures.save(fig, out_dir / "kept.png")

# %% [markdown]
# ## What it saves
#
# The encoder's work is counted in floating-point operations (FLOP; a multiplication and an addition are two). Per token
# and block there are the matrix products of attention and feed-forward; per *pair* of tokens there are the two products
# of attention. So a quarter of the tokens is at most a quarter of the work, and less than that where the pairs count.


# %%
def block_flops(tokens, c=config):
    """FLOP of the transformer blocks for one image with that many visible patches and the class token."""
    n, inner = 1 + tokens, c.heads * c.dim_head
    per_token = 4 * inner * c.dim + 2 * c.dim * int(c.dim * c.mlp_ratio)  # multiplications: qkv and out, feed-forward
    per_pair = 2 * inner  # queries times keys, weights times values
    return 2 * c.depth * (n * per_token + n * n * per_pair)


# %% [markdown]
# Is this formula right? torch can count the operations while the blocks run.


# %%
def counted_flops(ratio):
    """FLOP of the same blocks as torch counts them."""
    x = torch.zeros(1, 1 + L - int(ratio * L), config.dim)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder.transformer(x)
    return counter.get_total_flops()


for ratio in ratios:
    assert block_flops(L - int(ratio * L)) == counted_flops(ratio)
print("by hand and counted by torch: the same number at all four ratios")


# %%
def fastest(ratio):
    """Seconds of one pass of the encoder."""
    taken = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        encoder(cubes["sentinel-2-l2a"], mask_ratio=ratio, generator=torch.Generator().manual_seed(seed))
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


seconds = {ratio: fastest(ratio) for ratio in ratios}

# %%
large, tokens_256 = ClayConfig.named("large"), 1024
print("hidden   encoder blocks here        time here   released size, 256 x 256 pixels")
for ratio in ratios:
    here, there = (block_flops(n - int(ratio * n), c) for n, c in ((L, config), (tokens_256, large)))
    share, milliseconds = here / block_flops(L), seconds[ratio] * 1e3
    print(f"{ratio:5.0%} {here / 1e9:9.2f} GFLOP {share:6.0%} {milliseconds:12.1f} ms {there / 1e9:12.0f} GFLOP")

# %% [markdown]
# The time falls less than the operations: the patch embedding is paid for all patches, because it comes before the
# masking, and a small pass has its fixed costs. (Times differ from run to run; operations do not.)
#
# ## Why 75 %
#
# If only cost counted, one would hide nearly everything. If too little is hidden, the task is too easy: a hidden patch
# can be painted by copying a neighbour, and nothing about land has to be learned. Here is that lazy painter: it copies the
# nearest visible patch. Its error is the mean absolute difference on hidden patches, in standard deviations of each band.

# %%
at = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(L, 2).float()


def lazy(cube, ratio, draws=8):
    """(error of copying the nearest visible patch, share of hidden patches that touch a visible one)."""
    generator = torch.Generator().manual_seed(seed)
    patches = patchify(cube.pixels, P).expand(draws, -1, -1)
    visible, masked, _ = random_mask(draws, L, mask_ratio=ratio, shuffle=True, generator=generator)
    distance = torch.cdist(at[masked], at[visible])
    nearest = visible.gather(1, distance.argmin(dim=2))
    error = (gather_tokens(patches, nearest) - gather_tokens(patches, masked)).abs().mean()
    return error.item(), (distance.amin(dim=2) < 1.5).float().mean().item()  # diagonal neighbours touch: 1.41


# %%
grid = (0.1, 0.25, 0.5, 0.625, 0.75, 0.85, 0.9, 0.95)
errors = {sensor: [lazy(cube, r)[0] for r in grid] for sensor, cube in cubes.items()}
touching = [lazy(cubes["sentinel-2-l2a"], r)[1] for r in grid]
work = [block_flops(L - int(r * L)) / block_flops(L) for r in grid]

# %%
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.4))
    axes[0].plot(grid, work, "o-", color=figures.PALETTE[0], label="work of the encoder's blocks")
    axes[0].plot(grid, touching, "s-", color=figures.PALETTE[1], label="hidden patches with a visible neighbour")
    axes[0].set(
        title="Cost, and how much can be copied", ylabel="share", ylim=(0, 1.25), yticks=(0, 0.25, 0.5, 0.75, 1)
    )
    for colour, (sensor, error) in zip(figures.PALETTE[2:], errors.items(), strict=False):
        axes[1].plot(grid, error, "o-", color=colour, label=sensor)
    axes[1].set(title="Error of copying the nearest visible patch", ylabel="standard deviations")
    axes[1].set_ylim(0, 1.3 * max(map(max, errors.values())))
    for ax in axes:
        ax.axvline(0.75, color="#9a9a9a", ls="--", lw=1.2)
        ax.legend(loc="upper left", fontsize=8.5)
        ax.set(xlabel="share of patches hidden (dashed: Clay's 75 %)", xlim=(0, 1))
_ = figures.save(fig, out_dir / "why_75.png")

# %% [markdown]
# Read both pictures from the left. Up to about 75 % the lazy painter hardly suffers, since nearly every hidden patch
# touches a visible one, while the work of the encoder falls to less than a quarter. Beyond that, patches are left without
# neighbours and copying gets worse: there a painter has to know something about land. Near 95 % little more can be saved
# and little is left to go by. These curves do not prove that 75 % is best, they show why the choice lies in that region.
# That it trains well is the experience of the masked-autoencoder papers, and copying is far from perfect at any ratio.

# %%
at75, at95 = (touching[grid.index(r)] for r in (0.75, 0.95))
work75 = block_flops(L - int(0.75 * L)) / block_flops(L)
tokens_share = (1 + L - int(0.75 * L)) / (1 + L)  # with the class token, which is never hidden
assert work75 < tokens_share and at75 > at95
print(f"at 75 %: {work75:.0%} of the work, {at75:.0%} of hidden patches touch a visible one (at 95 %: {at95:.0%})")

# %% [markdown]
# ## Putting tokens back
#
# The decoder gets the visible tokens in their random order. It fills each hidden place with one and the same learned
# **mask token** and puts everything back in row order. By hand that is one assignment for each place.

# %%
cube, decoder = cubes["sentinel-2-l2a"], clay.model.decoder
encoded = encoder(cube, mask_ratio=0.75, generator=torch.Generator().manual_seed(seed))
seen_tokens = decoder.enc_to_dec(encoded.tokens)[:, 1:]

back = torch.empty(1, L, decoder.dim)
for i, place in enumerate(encoded.visible[0]):
    back[0, place] = seen_tokens[0, i]
for place in encoded.masked[0]:
    back[0, place] = decoder.mask_patch
print("visible", tuple(seen_tokens.shape), "-> back in place", tuple(back.shape))

# %% [markdown]
# To see that this is what the library does, look at what its decoder hands to its transformer: the class token, then
# the filled sequence with the position code added.

# %%
handed = []
hook = decoder.transformer.register_forward_pre_hook(lambda module, inputs: handed.append(inputs[0]))
rebuilt = decoder(encoded, cube)
hook.remove()
place = dict(time=cube.time, latlon=cube.latlon, frequencies=encoder.frequencies)
code = position_code(*encoded.grid, decoder.dim, cube.gsd, **place)
torch.testing.assert_close(back + code, handed[0][:, 1:])
print("the decoder's transformer gets", tuple(handed[0].shape), "and pixels come out as", tuple(rebuilt.shape))

# %% [markdown]
# ## Try it
#
# Hide more or less of the chip, take bands away, tell the model another place or date, and see what it paints. It gets a
# corner of 64 x 64 pixels, the size that these weights were trained on. (Where no kernel runs, a picture of four ratios
# stands here.)

# %%
own = {name: values[0] for name, values in chips["sentinel-2-l2a"].place_and_time.items()}
playground(clay, chips["sentinel-2-l2a"].pixels[0, :, :64, :64], "sentinel-2-l2a", **own)

# %% [markdown]
# ## Odd sizes
#
# Real images are rarely multiples of 8. The library repeats the last row and column until they are, masks and rebuilds
# on that larger grid, and crops the outcome back. Nothing is lost, and the added pixels do not count in the loss.

# %%
high, wide = chip_size - 18, chip_size - 5
odd = cube.with_pixels(cube.pixels[..., :high, :wide])
padded = pad_to_patches(odd.pixels, P)
output = clay.model(odd, mask_ratio=0.75, generator=torch.Generator().manual_seed(seed))
image = unpatchify(output.reconstruction, grid=output.encoded.grid, patch_size=P, size=(high, wide))
by_hand = torch.cat([odd.pixels, odd.pixels[..., -1:].expand(-1, -1, -1, -wide % P)], dim=3)
by_hand = torch.cat([by_hand, by_hand[..., -1:, :].expand(-1, -1, -high % P, -1)], dim=2)

torch.testing.assert_close(padded, by_hand, rtol=0, atol=0)
assert image.shape == odd.pixels.shape
print("image", *odd.pixels.shape, "-> padded", *padded.shape, "-> grid", *output.encoded.grid, "-> image", *image.shape)

# %%
hide = repeat(output.encoded.mask[0], "(h w) -> (h p) (w q)", h=output.encoded.grid[0], p=P, q=P).bool().numpy()
like = odd.pixels[0]
show = dict(sensor="sentinel-2-l2a", normalized=True, like=like)
views = [figures.rgb(like, **show), figures.rgb(padded[0], **show), figures.rgb(padded[0], valid=~hide, **show)]
views.append(figures.rgb(like, valid=~hide[:high, :wide], **show))
titles = [f"image {high} x {wide}", f"padded {padded.shape[2]} x {padded.shape[3]}", "75 % hidden", "cropped back"]
fig = figures.show_row(views, titles, gsd=cube.gsd, size=2.3)

# %% [markdown]
# ## Holes
#
# Real images have holes: clouds, the edge of the scene, a detector that failed. Something has to stand in the array, and
# the usual choices are zero or an average. Both are lies that the encoder reads as land. Yet it was trained with
# most of its patches *missing*, so a patch that was not measured can simply be missing too.
#
# Here is a chip under a ragged cloud. Its pixels are NaN, and `embed` leaves their patches out.

# %%
optical = chips["sentinel-2-l2a"]
native, known = optical.pixels.astype(np.float32), optical.place_and_time
covered = cloud(side, side, 0.4, np.random.default_rng(seed))  # [h, w], True: not one pixel measured
holed = np.where(np.kron(covered, np.ones((P, P), bool)), np.nan, native)
seen_through = clay.embed(holed, "sentinel-2-l2a", **known)

assert np.array_equal(seen_through.valid[0].numpy(), ~covered) and seen_through.chip.isfinite().all()
assert seen_through.patches[0][covered].isnan().all()  # nothing is claimed where nothing was seen
print(f"{covered.mean():.0%} of the patches covered, {int(seen_through.valid.sum())} of {L} tokens seen")

# %% [markdown]
# By hand: make the tokens of the *whole* image with their position codes, keep those of the clear patches, put the
# class token in front and run the blocks. The result is the same, so nothing of the hole has reached a number.

# %%
cube = clay.cube(native, "sentinel-2-l2a", **known)
code = position_code(side, side, encoder.dim, cube.gsd, cube.time, cube.latlon, frequencies=encoder.frequencies)
tokens = encoder.patch_embedding(cube.pixels, cube.waves) + code
clear = torch.cat([encoder.cls_token, tokens[:, ~covered.ravel()]], dim=1)
by_hand = encoder.transformer(clear)

torch.testing.assert_close(by_hand[:, 0], seen_through.chip, rtol=0, atol=1e-5)
torch.testing.assert_close(by_hand[0, 1:], seen_through.patches[seen_through.valid], rtol=0, atol=1e-5)
print("tokens of the clear patches alone:", tuple(clear.shape), "-> the same class token")

# %%
earth = SENSORS["sentinel-2-l2a"].statistics()[0][:, None, None]  # the mean of each band
fills = {"left out": np.nan, "filled with zero": 0.0, "filled with the mean": earth}
views = [figures.rgb(native[0], "sentinel-2-l2a")]
for fill in fills.values():
    image = np.where(np.isnan(holed[0]), fill, native[0])
    views.append(figures.rgb(image, "sentinel-2-l2a", like=native[0], valid=~np.isnan(image).any(0)))
gsd = SENSORS["sentinel-2-l2a"].gsd
fig = figures.show_row(views, ["the chip", *fills], gsd=gsd, size=2.3)
_ = figures.save(fig, out_dir / "holes.png")

# %% [markdown]
# How much does it matter? `removal_study` takes away 10 to 90 % of the patches, scattered or as one cloud, and compares
# the class token with that of the full chip. A cosine of 1 means that the hole went unnoticed. The same eight chips again,
# because on a single one a fill can be near the truth by luck: zero is close to dark water.

# %%
shares = (0.1, 0.3, 0.5, 0.7, 0.9)
asked = dict(shares=shares, draws=1, seed=seed, **places.place_and_time)
study = removal_study(clay, places.pixels, "sentinel-2-l2a", **asked)
table = study.pivot_table(index=["shape", "rule"], columns="share", values="class_token", aggfunc="median")
print(table.round(3).to_string())

# %%
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.4), sharey=True)
    for ax, shape in zip(axes, SHAPES, strict=True):
        for k, rule in enumerate(RULES):
            part = study[(study["shape"] == shape) & (study["rule"] == rule)].groupby("share")["class_token"]
            label = rule if rule == "left out" else f"filled with {'the ' * (rule == 'mean')}{rule}"
            ax.plot(shares, part.median(), "os^"[k] + "-", color=figures.PALETTE[k], label=label)
            ax.fill_between(
                shares, part.quantile(0.25), part.quantile(0.75), color=figures.PALETTE[k], alpha=0.15, lw=0
            )
        what = {"scattered": "patches removed here and there", "cloud": "one connected cloud"}[shape]
        ax.set(title=what.capitalize(), xlabel="share of patches removed", xlim=(0, 1))
    axes[0].set_ylabel("cosine to the full chip")
    axes[1].legend(loc="lower left", fontsize=8.5)
_ = figures.save(fig, out_dir / "holes_study.png")

# %% [markdown]
# Lines are medians of the eight chips, bands hold the middle half of them. A fill is a claim about land, and the encoder
# believes it. Left out, the embedding is that of the land in sight: it moves only where the cloud hides something that
# the rest of the chip does not show, which is why one large cloud moves it more than the same number of scattered
# patches. Partly covered patches stay in while at least half of their numbers were measured; the gaps in them take the
# mean of their own band in their own patch. What stands under a mask never matters, as rubbish written there shows.

# %%
valid = ~np.isnan(holed[0]).any(0)
for rubbish in (0.0, 65535.0, -1e9):
    spoilt = np.where(valid, native, rubbish)
    again = clay.embed(spoilt, "sentinel-2-l2a", valid=valid, **known)
    torch.testing.assert_close(again.chip, seen_through.chip, rtol=0, atol=0)
kept = {rule: table.loc[("cloud", rule), 0.5] for rule in RULES}
average = table.mean(axis=1).groupby("rule").mean()
assert average["left out"] > max(average["mean"], average["zero"])
print("under a cloud over half of the chip:", ", ".join(f"{rule} {value:.3f}" for rule, value in kept.items()))

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/03_mask_patches.ipynb) have a notebook of their own, with empty
# places, hints and checks. Go there first; here they stand with their solutions.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: how long is the sequence?
# *Easy, 5 minutes*
#
# How many tokens enter the encoder's transformer for an image of `height` x `width` pixels? Images are filled up to whole
# patches, `int(mask_ratio * L)` of the L patches are hidden, and the class token comes in addition.
#
# **Hint.** `math.ceil` rounds up: 250 pixels are 32 patches of 8.


# %% tags=["solution"]
def sequence_length(height, width, patch_size, mask_ratio):
    """Sides and patch size in pixels, the share hidden -> number of tokens, with the class token."""
    patches = math.ceil(height / patch_size) * math.ceil(width / patch_size)
    return 1 + patches - int(mask_ratio * patches)


# %% tags=["check"]
checks.check_sequence_length(sequence_length)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: a mask from random numbers
# *Medium, 10 minutes*
#
# Every patch of every image in a batch has drawn a random number. Hide, in each image, the `int(ratio * L)` patches with
# the smallest numbers: 1 in the mask means hidden, 0 visible.
#
# **Hint.** `draw.argsort(dim=1)` gives for each image the numbers of its patches, from the smallest draw to the largest.
#
# **Hint.** `torch.zeros(B, L).scatter(1, numbers, 1.0)` writes ones at the places `numbers` [B, n].


# %% tags=["solution"]
def mask_of_draw(draw, ratio):
    """draw [B, L], share hidden -> mask [B, L] of zeros and ones, 1 = hidden."""
    hidden = draw.argsort(dim=1)[:, : int(ratio * draw.shape[1])]
    return torch.zeros_like(draw).scatter(1, hidden, 1.0)


# %% tags=["check"]
checks.check_mask(mask_of_draw)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: put the tokens back
# *Hard, 15 minutes*
#
# The decoder gets the visible tokens in the order in which they were drawn, and needs all L places of every image in row
# order: `tokens[b, i]` goes to place `visible[b, i]` of image b, and the mask token to every place that got none.
#
# **Hint.** Begin with L mask tokens for each image: `repeat(mask_token, "D -> B L D", B=B, L=L)`.
#
# **Hint.** One assignment with two lists of indices is enough: `full[torch.arange(B)[:, None], visible] = tokens`.


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
# ## What was seen

# %%
metrics = {
    "patches of the chip": L,
    "visible at 75 %": L - int(0.75 * L),
    "encoder's work at 75 %, share": round(work75, 3),
    "hidden patches with a visible neighbour at 75 %": round(at75, 3),
    "class token at 75 %, cosine to the whole chip": round(left75, 3),
    "class tokens of different chips, cosine": round(others, 3),
    "error of copying the nearest patch, Sentinel-2, at 75 %": round(errors["sentinel-2-l2a"][grid.index(0.75)], 3),
    "encoder milliseconds, nothing hidden": round(seconds[0.0] * 1e3, 1),
    "encoder milliseconds, 75 % hidden": round(seconds[0.75] * 1e3, 1),
    "class token under a cloud over half, left out, cosine": round(kept["left out"], 3),
    "class token under a cloud over half, zero-filled, cosine": round(kept["zero"], 3),
}
write_metrics(out_dir, metrics)
print(f"""- At 75 % the encoder sees {L - int(0.75 * L)} of {L} patches, and removing the others leaves {work75:.0%} of its work.
- Its class token keeps a cosine of {left75:.3f} to that of the whole chip; different chips have {others:.3f}.
- {at75:.0%} of the hidden patches then touch a visible one, at 95 % {at95:.0%}: hard, but there is something to go by.
- Images of any size are filled up by their edge, and holes are left out: half a chip under a cloud leaves a cosine of
  {kept["left out"]:.3f} to the full chip's class token, filled with zero {kept["zero"]:.3f}.""")

# %% [markdown]
# Next: all parts are there. [04 Training](04_train_clay.ipynb) teaches the model to paint what it cannot see.
