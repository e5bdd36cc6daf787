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
# # 01 Patch embedding
#
# > **How can one network take any set of bands?**
#
# You will see
# - how the wavelength of a band becomes 128 numbers, and how a small network turns those into convolution kernels,
# - that nearby wavelengths get nearly the same kernels, whichever sensor they belong to,
# - that any bands, in any order, become tokens: also a band that no sensor has.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | nothing before it | under 1 on two cores; no GPU needed (not measured there) | one chip of the mini-world, made here |
#
# The weights in this notebook are **untrained** (drawn at random from a seed). What it shows follows from how the
# embedding is built, not from what a model has learned.

# %%

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, ClayConfig, checks, plots
from clay_lib.chips import world_chips
from clay_lib.embedding import wave_code
from clay_lib.runner import output_folder, write_metrics

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the mini-world and of the untrained weights
out: str = ""  # folder for results; empty: papermill_runs/lab/01_embed_patches
size: str = "tiny"  # model size: tiny, small, base or large
chip_size: int = 128  # pixels a side, a multiple of 8

# %%
out_dir = output_folder(out, "01_embed_patches")
s2 = SENSORS["sentinel-2-l2a"]
clay = Clay.random(ClayConfig.named(size), seed=seed)
embedding = clay.model.encoder.patch_embedding
chips = world_chips(s2.name, 1, classes=[40], first=1, split="test", size=chip_size, seed=seed, jobs=1)
cube = clay.cube(chips.pixels, s2, **chips.place_and_time)
D, P = embedding.dim, embedding.patch_size
print(f"pixels {tuple(cube.pixels.shape)}, wavelengths {tuple(cube.waves.shape)}, D = {D}, patches of {P} x {P} pixels")

# %% [markdown]
# ## The problem
#
# A transformer works on *tokens*: lists of D numbers. The usual way from an image to tokens is to cut it into patches
# of 8 x 8 pixels and to pass each through one convolution. That convolution has a kernel for each band, so its weights
# have the number of bands built in. Trained on ten Sentinel-2 bands, it cannot even be called on two radar bands.

# %%
fixed = nn.Conv2d(len(s2.bands), D, kernel_size=P, stride=P)
radar = torch.zeros(1, 2, chip_size, chip_size)
try:
    fixed(radar)
    refused = None
except RuntimeError as error:
    refused = str(error)
print("Sentinel-2:", tuple(fixed(cube.pixels).shape), "\nradar:     ", refused)
assert refused is not None

# %% [markdown]
# Clay's way out comes from DOFA (Xiong et al. 2024): do not store kernels. Store a small network that *writes* the
# kernel for a band when it is told the band's central wavelength. A network that writes the weights of another one is
# called a **hypernetwork**.
#
# ## A wavelength becomes 128 numbers
#
# A single number such as 0.665 (micrometres) is a poor input for a network. It is spread over 64 sines and 64 cosines
# of the wavelength times a falling ladder of factors, from 1 down to 1/10 000.

# %%
factors = 10_000.0 ** (-torch.arange(64) / 63)
angles = cube.waves[:, None] * factors
code = torch.cat([angles.sin(), angles.cos()], dim=1)

torch.testing.assert_close(code, wave_code(cube.waves))
print(f"wavelengths {tuple(cube.waves.shape)} -> codes {tuple(code.shape)}")

# %%
wide = torch.linspace(0.4, 4.1, 300)
with plots.style():
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.4), sharex=True)
    for ax, name, lines in zip(axes, ("sine", "cosine"), wave_code(wide).T.split(64), strict=True):
        for i in range(0, 64, 5):
            ax.plot(wide, lines[i], color=plt.get_cmap("viridis")(i / 64), lw=1.5)
        for row, sensor in enumerate(SENSORS.values()):
            height = [-1.15 - 0.09 * row] * len(sensor.bands)
            ax.scatter(sensor.waves(), height, marker="|", s=34, color=plots.PALETTE[row], label=sensor.name)
        ax.set(
            title=f"{name} of wavelength x 10000^(-i/63)", xlabel="wavelength (um)", ylim=(-2, 1.08), yticks=(-1, 0, 1)
        )
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="bands of")
    steps = plt.cm.ScalarMappable(plt.Normalize(0, 63), "viridis")
    fig.colorbar(steps, ax=axes[1], label="i", shrink=0.9)

# %% [markdown]
# The optical bands crowd between 0.44 and 2.2 um. Radar has a wavelength of centimetres; Clay gives its two
# polarisations the stand-in values 3.5 (VV) and 4.0 (VH), far from everything else.
#
# The ladder is long for such a short range: towards its end the sines stay near 0 and the cosines near 1, whatever the
# wavelength. The telling part of the code is its first rungs.

# %%
spread = wave_code(wide).amax(0) - wave_code(wide).amin(0)
telling = int((spread > 0.01).sum())
print(f"{telling} of {code.shape[1]} numbers change by more than 0.01 between 0.4 and 4.1 um")
assert telling < code.shape[1]

# %% [markdown]
# ## The hypernetwork
#
# Each band's code passes two small linear layers and is then a **band token**. The band tokens enter one transformer
# layer in a single sequence with
# - 128 **latent tokens**: learned, the same for every image. They are the layer's memory, which band tokens read from;
# - 1 **bias token**: learned too. What comes out at its place becomes the bias of the convolution.
#
# In that layer the bands also see each other. One linear layer then reads a kernel off each band token.

# %%
mlp, generator = embedding.fclayer, embedding.weight_generator
bands = code + F.gelu(mlp.l2(F.gelu(mlp.l1(code))))
sequence = torch.cat([generator.weight_tokens, bands, generator.bias_token])
read = generator.encoder.layers[0](sequence[None])[0]

rows = 0.02 * generator.fc_weight(read[128:-1] + bands)  # small kernels keep the first tokens small
bias = generator.fc_bias(read[-1])
weight = rearrange(rows, "C (D p q) -> D C p q", D=D, p=P, q=P)

print("sequence", *sequence.shape, "-> rows", *rows.shape, "-> weight", *weight.shape, "and bias", *bias.shape)
theirs, their_bias = embedding.kernels(cube.waves)
torch.testing.assert_close(weight, theirs)
torch.testing.assert_close(bias, their_bias)

# %% [markdown]
# These are the kernels for six Sentinel-2 bands and the two radar bands, asked for together. Read down a column: the
# same kernel for one band after another. From blue to near infrared it hardly changes, at 2.2 um a little, and
# for radar it is another one. Since nothing is trained the patterns themselves mean nothing yet.

# %%
some = ["blue", "green", "red", "nir", "swir16", "swir22"]
asked = torch.tensor([*s2.waves(some), *SENSORS["sentinel-1-rtc"].waves()])
names = [f"{name}  {wave:.2f} um" for name, wave in zip([*some, "vv", "vh"], asked.tolist(), strict=True)]
kernels, _ = embedding.kernels(asked)
fig = plots.kernels(kernels, band_names=names, count=8, title="Generated kernels, untrained: the eight strongest")
_ = plots.save(fig, out_dir / "kernels.png")

# %% [markdown]
# ## Nearby wavelengths, similar kernels
#
# Now every band of every sensor in the registry. For each sensor the hypernetwork writes its kernels; the kernels of
# two bands are compared by their cosine (1: same direction, 0: unrelated).

# %%
table = []
for sensor in SENSORS.values():
    weights, _ = embedding.kernels(torch.from_numpy(sensor.waves()))
    for band, kernel in zip(sensor.bands, weights.unbind(dim=1), strict=True):
        table.append((band.wavelength, f"{sensor.name} {band.name}", kernel.flatten()))
table.sort(key=lambda row: row[:2])
waves, labels, flat = zip(*table, strict=True)
unit = F.normalize(torch.stack(flat), dim=1)
similarity = unit @ unit.T
print(f"{len(waves)} bands, similarity from {similarity.min():.3f} to {similarity.max():.3f}")

# %%
rows_named = [f"{label}  {wave:.3f}" for label, wave in zip(labels, waves, strict=True)]
title = "Kernels of all bands, ordered by wavelength (um), untrained"
fig = plots.matrix(similarity, names=rows_named, columns=[f"{w:.2f}" for w in waves], title=title)
fig.set_size_inches(9.4, 7.6)
fig.axes[0].tick_params(labelsize=6.5)
_ = plots.save(fig, out_dir / "kernel_similarity.png")

# %% [markdown]
# The dark-to-light steps follow the wavelength and not the sensor: red of Sentinel-2 and red of PlanetScope, both at
# 0.665 um, are closer than red and near infrared of one camera. The steps lie where the registry has gaps: after
# 0.87 um, after 1.24 um, after 1.64 um, and before radar.

# %%
where = {label: i for i, label in enumerate(labels)}
red, planet_red = where["sentinel-2-l2a red"], where["planetscope-sr red"]
nir, vh = where["sentinel-2-l2a nir"], where["sentinel-1-rtc vh"]
same_wave, red_nir, red_vh = (similarity[red, other].item() for other in (planet_red, nir, vh))
print(f"Sentinel-2 red with: PlanetScope red {same_wave:.4f}, own near infrared {red_nir:.4f}, radar VH {red_vh:.4f}")
assert same_wave > red_nir > red_vh

# %% [markdown]
# ## From pixels to tokens
#
# With kernels in hand the rest is the usual convolution, with a stride of one patch. The patches, row by row, are the
# tokens. This is the whole of `clay_lib.embedding.PatchEmbedding`.

# %%
tokens = rearrange(F.conv2d(cube.pixels, weight, bias, stride=P), "B D h w -> B (h w) D")
library = embedding(cube.pixels, cube.waves)

torch.testing.assert_close(tokens, library, rtol=1e-4, atol=1e-5)
difference = (tokens - library).abs().max().item()
print("pixels", *cube.pixels.shape, "-> tokens", *tokens.shape)
print(f"largest difference to the library: {difference:.1e}")

# %% [markdown]
# The tokens as a picture: their main direction of variation (first principal component). Even untrained kernels keep
# unlike surfaces apart, at one token for 80 x 80 m.

# %%
around_mean = tokens[0] - tokens[0].mean(0)
_, strengths, directions = torch.linalg.svd(around_mean, full_matrices=False)
main = rearrange(around_mean @ directions[0], "(h w) -> h w", h=chip_size // P)
explained = (strengths[0] ** 2 / (strengths**2).sum()).item()
side = chip_size // P
titles = [f"chip, {chip_size} x {chip_size} pixels", f"its tokens, {side} x {side}"]
label = f"first component ({explained:.0%} of variance)"
pictures = [plots.rgb(chips.pixels[0], s2), main.numpy()]
fig = plots.show_row(pictures, titles, gsd=[s2.gsd, s2.gsd * P], label=label, size=3.2)

# %% [markdown]
# ## A band that no sensor has
#
# No sensor of the registry looks at 0.62 um, between the yellow of PlanetScope (0.61) and the red of LINZ (0.635). The
# hypernetwork does not mind: it never stored a kernel for any band. The new kernel lies between its neighbours, at the
# place that its wavelength asks for.

# %%
left, new, right = 0.61, 0.62, 0.635
assert not any(band.wavelength == new for sensor in SENSORS.values() for band in sensor.bands)
k = rearrange(embedding.kernels(torch.tensor([left, new, right]))[0], "D C p q -> C (D p q)")
way = k[2] - k[0]
share = ((k[1] - k[0]) @ way / (way @ way)).item()
wanted = (new - left) / (right - left)
detour = (((k[1] - k[0]).norm() + (k[2] - k[1]).norm()) / way.norm()).item()
print(f"of the way from 0.61 to 0.635: {wanted:.3f} in wavelength, {share:.3f} in kernels; detour {detour:.4f}")
assert abs(share - wanted) < 0.02 and detour < 1.02

# %%
sweep = torch.cat([torch.tensor([new]), torch.linspace(0.42, 2.3, 120)])
k = rearrange(embedding.kernels(sweep)[0], "D C p q -> C (D p q)")
distance = (k[1:] - k[0]).norm(dim=1) / k[0].norm()
with plots.style():
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    ax.plot(sweep[1:], distance, color=plots.PALETTE[0])
    for row, sensor in enumerate(s for s in SENSORS.values() if not s.decibel):
        waves_here = sensor.waves()
        ax.scatter(waves_here, [-0.02 - 0.012 * row] * len(waves_here), marker="|", s=26, color="#9a9a9a")
    ax.axvline(new, color=plots.PALETTE[3], ls="--", lw=1.2, label="0.62 um, no sensor's band")
    ax.set(xlabel="wavelength (um); grey: bands of the optical sensors", ylabel="distance / length of a kernel")
    ax.set_yticks([0, 0.1, 0.2, 0.3, 0.4])
    ax.set_title("How far each wavelength's kernel is from the one for 0.62 um")
    ax.legend()

# %% [markdown]
# ## Any subset, any order
#
# A subset of bands is a shorter list of wavelengths, another sensor is another list. The tokens always have D numbers.

# %%
choices = {
    "all ten": list(s2.band_names), "as NAIP has them": ["red", "green", "blue", "nir"],
    "red alone": ["red"], "swir first": ["swir22", "swir16", "nir"],
}  # fmt: skip
for name, chosen in choices.items():
    part = clay.cube(chips.pixels[:, s2.indices(chosen)], s2, bands=chosen)
    made = embedding(part.pixels, part.waves)
    print(f"{name:<17} pixels {tuple(part.pixels.shape)} -> tokens {tuple(made.shape)}")
    assert made.shape == tokens.shape
radar_tokens = embedding(radar, torch.from_numpy(SENSORS["sentinel-1-rtc"].waves()))
print(f"{'radar':<17} pixels {tuple(radar.shape)} -> tokens {tuple(radar_tokens.shape)}")
assert radar_tokens.shape == tokens.shape

# %% [markdown]
# The order of the bands does not matter, as long as the wavelengths move along with the pixels: nothing in the sequence
# of band tokens says who is first. If the wavelengths stay behind, each band meets the kernel of another one. Nothing
# crashes then, the tokens are only wrong. This is why the library keeps bands and wavelengths in one place.

# %%
order = torch.randperm(len(s2.bands), generator=torch.Generator().manual_seed(seed))
moved = embedding(cube.pixels[:, order], cube.waves[order])
left_behind = embedding(cube.pixels[:, order], cube.waves)
torch.testing.assert_close(moved, library, rtol=1e-4, atol=1e-5)


def off(other):
    return ((other - library).norm() / library.norm()).item()


print(f"shuffled with their wavelengths: {off(moved):.1e} off; without them: {off(left_behind):.3f} off")
assert off(left_behind) > 1000 * off(moved)

# %% [markdown]
# One thing that a stored kernel would not do: because the bands see each other in the transformer layer, a band's
# kernel also depends a little on its company.

# %%
alone = embedding.kernels(torch.from_numpy(s2.waves(["red"])))[0][:, 0]
together = weight[:, s2.indices(["red"])[0]]
company = ((alone - together).norm() / together.norm()).item()
print(f"the kernel for red, alone and among ten bands: {company:.1%} apart")
assert company > 0

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/01_embed_patches.ipynb) have a notebook of their own, with
# empty places, hints and checks. Go there first; here they stand with their solutions, which every run of this notebook
# puts to the same checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: a camera of your own
# *Easy, 5 minutes*
#
# The data sheet of a drone camera says: blue 450 nm, green 550 nm, red 660 nm, red edge 735 nm, near infrared 845 nm. Its
# images hold the bands in this order. Write the tensor of wavelengths, `[5]`, that the network has to be given.
#
# **Hint.** All wavelengths in this notebook are in micrometres. A micrometre is 1000 nanometres.

# %% tags=["solution"]
camera = torch.tensor([0.450, 0.550, 0.660, 0.735, 0.845])  # um

# %% tags=["check"]
checks.check_wavelengths(camera)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: tokens without a convolution
# *Medium, 10 minutes*
#
# Somebody hands you kernels. Make the tokens from them with reshapes and one matrix product, without `conv2d`: for each
# patch and each of the D kernels, multiply pixels and kernel, add up over bands and pixels, and add the bias. The tokens
# come row by row.
#
# **Hint.** Cut the pixels into rows of numbers, one row a patch:
# `rearrange(pixels, "B C (h p) (w q) -> B (h w) (C p q)", p=P, q=P)`.
#
# **Hint.** Flatten each kernel in the same order, `(C p q)`. Then `rows @ kernels.T` does the sums.


# %% tags=["solution"]
def tokens_of(pixels, weight, bias):
    """pixels [B, C, H, W], weight [D, C, P, P], bias [D] -> tokens [B, L, D], row by row."""
    P = weight.shape[-1]
    rows = rearrange(pixels, "B C (h p) (w q) -> B (h w) (C p q)", p=P, q=P)
    return rows @ rearrange(weight, "D C p q -> D (C p q)").T + bias


# %% tags=["check"]
checks.check_tokens(tokens_of)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: what each band adds to a token
# *Hard, 15 minutes*
#
# A token is a sum over bands, plus the bias. Take the sum apart: give each band's part, `[B, C, L, D]`, so that the sum
# over the bands plus the bias is the token. `embedding.kernels(waves)` gives kernels `[D, C, P, P]` and the bias.
#
# **Hint.** It is exercise 2 with one sum less: the axis C stays. `torch.einsum` takes the axes that you name.
#
# **Hint.** Does the kernel for red depend on which other bands are asked for at the same time?


# %% tags=["solution"]
def parts_of(embedding, pixels, waves):
    """A PatchEmbedding, pixels [B, C, H, W], waves [C], um -> each band's part in the tokens [B, C, L, D]."""
    weight, _ = embedding.kernels(waves)  # of all bands together: they see each other
    P = weight.shape[-1]
    patches = rearrange(pixels, "B C (h p) (w q) -> B C (h w) (p q)", p=P, q=P)
    return torch.einsum("bcln,dcn->bcld", patches, rearrange(weight, "D C p q -> D C (p q)"))


# %% tags=["check"]
checks.check_band_parts(parts_of)

# %% [markdown]
# ## What was seen

# %%
metrics = {
    "bands in the registry": len(waves),
    "similarity: same wavelength, two sensors": round(same_wave, 4),
    "similarity: red and near infrared": round(red_nir, 4),
    "similarity: red and radar VH": round(red_vh, 4),
    "0.62 um: share of the way from 0.61 to 0.635": round(share, 3),
    "tokens by hand against library, largest difference": float(f"{difference:.0e}"),
}
write_metrics(out_dir, metrics)
print(f"""- A wavelength is all that is asked of a band: {len(waves)} bands of {len(SENSORS)} sensors share one hypernetwork.
- Kernels follow wavelength. Cosine {same_wave:.4f} at one wavelength on two sensors, {red_nir:.4f} from red to near
  infrared, {red_vh:.2f} from red to radar.
- A band at 0.62 um, which no sensor has, gets a kernel {share:.0%} of the way between those of its neighbours.""")

# %% [markdown]
# Next: a token says what is in a patch, not yet where the patch lies. That is the position code, in
# [02 Positional encoding](02_encode_positions.ipynb).
