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
# - how the wavelength of a band becomes 128 numbers, and how a small network turns these into convolution kernels,
# - the kernels of a trained Clay, band by band, and how they change with the wavelength,
# - that any bands in any order become tokens, even a band that no sensor has.
#
# ![Where this notebook stands: patches](flow/01_embed_patches.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [00 First look](00_first_look.ipynb) | 0.3 on two cores | a scene of the synthetic Earth and small weights, both in the repository |
#
# > **On a laptop.** The weights are those of **clay-mini**, a small Clay trained on the synthetic Earth. The code is
# > the same for the released weights: give their path in `weights`.

# %%
import matplotlib.pyplot as plt
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, data, figures, runs
from clay_lib.course import checks, wavelength_slider
from clay_lib.embedding import wave_code

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth and of the shuffled bands
out: str = ""  # folder for results; empty: papermill_runs/lab/01_embed_patches
weights: str = "clay-mini"  # the small weights of this repository, or a path
chip_size: int = 128  # pixels a side, a multiple of 8

# %%
out_dir = runs.output_folder(out, "01_embed_patches")
clay = Clay.load(weights)
embedding = clay.model.encoder.patch_embedding
D, P = embedding.dim, embedding.patch_size
image = data.open_scene(size=chip_size, land_cover=40, index=1, seed=seed)
s2, radar = image.sensor, SENSORS["sentinel-1-rtc"]
cube = clay.cube(image.measured(), s2, **image.metadata)
print(f"pixels {tuple(cube.pixels.shape)}, wavelengths {tuple(cube.waves.shape)}, D = {D}, patches of {P} x {P} pixels")

# %% [markdown]
# ## The problem
#
# A transformer works on **tokens**: vectors of D numbers. A vision transformer usually cuts an image into patches of P
# x P pixels and turns each patch into a token with one convolution. That convolution has a kernel for every band, so
# the number of bands is fixed. A convolution for ten Sentinel-2 bands cannot take the two bands of a radar.

# %%
fixed = nn.Conv2d(len(s2.bands), D, kernel_size=P, stride=P)
radar_pixels = torch.zeros(1, len(radar.bands), chip_size, chip_size)
try:
    fixed(radar_pixels)
    message = None
except RuntimeError as error:
    message = str(error)
print("Sentinel-2:", tuple(fixed(cube.pixels).shape), "\nradar:     ", message)
assert message is not None

# %% [markdown]
# Clay solves this as DOFA does ([Xiong et al., 2024](https://arxiv.org/abs/2403.15356)). Instead of kernels, it stores
# a small network that computes the kernel of each band from its central wavelength. A network that computes the weights
# of another network is called a **hypernetwork**.
#
# ## A wavelength becomes 128 numbers
#
# A single number such as 0.665 µm is a poor input for a network. The sinusoidal code of transformers spreads it over 64
# sines and 64 cosines of decreasing frequency:
#
# $$\sin(\lambda f_i),\ \cos(\lambda f_i), \qquad f_i = 10000^{-i/63},\quad i = 0, \dots, 63$$

# %%
frequencies = 10_000.0 ** (-torch.arange(64) / 63)
angles = cube.waves[:, None] * frequencies  # [C, 64]
code = torch.cat([angles.sin(), angles.cos()], dim=1)  # [C, 128]

torch.testing.assert_close(code, wave_code(cube.waves))
print(f"wavelengths {tuple(cube.waves.shape)} -> codes {tuple(code.shape)}")

# %%
axis = torch.linspace(0.4, 4.1, 300)
known = sorted({band.wavelength for sensor in SENSORS.values() for band in sensor.bands})
groups = {"visible and\nnear infrared": 0.65, "short-wave\ninfrared": 1.85, "radar": 3.75}
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.4), sharey=True)
    for ax, name, lines in zip(axes, ("sine", "cosine"), wave_code(axis).T.split(64), strict=True):
        for i in range(0, 64, 4):
            ax.plot(axis, lines[i], color=plt.get_cmap("viridis")(i / 63), lw=1.6)
        ax.scatter(known, [-1.12] * len(known), marker="|", s=60, color="black")
        for group, wave in groups.items():
            ax.text(wave, -1.22, group, ha="center", va="top", fontsize=8.5)
        ax.set(
            title=f"{name} of wavelength x 10000^(-i/63)",
            xlabel="wavelength (µm)",
            ylim=(-1.6, 1.08),
            yticks=[-1, 0, 1],
        )
    fig.colorbar(plt.cm.ScalarMappable(plt.Normalize(0, 63), "viridis"), ax=axes, label="number of the frequency, i")
_ = figures.save(fig, out_dir / "1_wavelength_code.png")

# %% [markdown]
# Black marks are the bands of all sensors that the library knows. The optical ones lie between 0.44 and 2.2 µm. Radar
# has a wavelength of centimeters; the release gives its two polarizations the values 3.5 (VV) and 4.0 (VH), far from
# all others.
#
# For such a short range most frequencies are too low. Their sines stay near 0 and their cosines near 1, whatever the
# wavelength, so that only a part of the code carries information.

# %%
spread = wave_code(axis).amax(0) - wave_code(axis).amin(0)  # [128]
informative = int((spread > 0.01).sum())
print(f"{informative} of {code.shape[1]} numbers change by more than 0.01 between 0.4 and 4.1 µm")
assert informative < code.shape[1]

# %% [markdown]
# ## The hypernetwork, by hand
#
# Two linear layers turn the code of each band into a **band token**. The band tokens then pass through one transformer
# layer, together with
# - 128 **latent tokens**, learned and the same for every image, which band tokens can attend to,
# - one **bias token**, also learned, whose output becomes the bias of the convolution.
#
# In this layer the bands attend to each other, too. A last linear layer turns the output of each band token into a
# kernel.

# %%
mlp, generator = embedding.fclayer, embedding.weight_generator
bands = code + F.gelu(mlp.l2(F.gelu(mlp.l1(code))))  # [C, 128]
sequence = torch.cat([generator.weight_tokens, bands, generator.bias_token])  # [128 + C + 1, 128]
output = generator.encoder.layers[0](sequence[None])[0]
rows = 0.02 * generator.fc_weight(output[128:-1] + bands)  # [C, D*P*P]; the factor keeps tokens small at the start
weight = rearrange(rows, "C (D p q) -> D C p q", D=D, p=P, q=P)
bias = generator.fc_bias(output[-1])  # [D]

library_weight, library_bias = embedding.kernels(cube.waves)
torch.testing.assert_close(weight, library_weight, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(bias, library_bias, rtol=1e-4, atol=1e-5)
print(f"{len(sequence)} tokens -> kernels {tuple(weight.shape)} and bias {tuple(bias.shape)}")

# %% [markdown]
# ## From pixels to tokens
#
# The rest is the usual convolution with a stride of one patch. The patches, row by row, are the tokens. These few lines
# are all that `clay_lib.embedding.PatchEmbedding` computes.

# %%
tokens = rearrange(F.conv2d(cube.pixels, weight, bias, stride=P), "B D h w -> B (h w) D")
library = embedding(cube.pixels, cube.waves)
torch.testing.assert_close(tokens, library, rtol=1e-4, atol=1e-4)
difference = (tokens - library).abs().max().item()
print(f"pixels {tuple(cube.pixels.shape)} -> tokens {tuple(tokens.shape)}; largest difference {difference:.0e}")

# %% [markdown]
# Each of the D numbers of a token is the response of one kernel. The responses of one kernel for all patches form a
# small image, one pixel for each patch. Below are two such images: for the kernel with the strongest mean color and for
# the one with the strongest pattern.

# %%
responses = rearrange(tokens[0], "(h w) D -> D h w", h=chip_size // P)
responses = (responses - responses.mean((1, 2), keepdim=True)) / responses.std((1, 2), keepdim=True)
average = weight.mean(dim=(2, 3), keepdim=True)  # [D, C, 1, 1], a color
color, pattern = (int(part.flatten(1).norm(dim=1).argmax()) for part in (average, weight - average))
titles = [f"{s2.name}, {chip_size} x {chip_size} pixels", f"kernel {color}: a color", f"kernel {pattern}: a pattern"]
views = [figures.rgb(image.measured(), s2), responses[color].numpy(), responses[pattern].numpy()]
kwargs = dict(gsd=[s2.gsd, s2.gsd * P, s2.gsd * P], cmap="RdBu_r", limits=(-3, 3), size=2.8)
fig = figures.show_row(views, titles, label="standard deviations from the mean", **kwargs)
_ = figures.save(fig, out_dir / "2_tokens.png")

# %% [markdown]
# ## What the kernels respond to
#
# Together, the kernels of red, green and blue form a small color image: the patch that this number of the token
# responds to most. Gray is zero, and every kernel has its own contrast.

# %%
color_kernels = weight[:, s2.indices(["red", "green", "blue"])]  # [D, 3, P, P]
color_kernels = 0.5 + 0.5 * color_kernels / color_kernels.abs().amax(dim=(1, 2, 3), keepdim=True)
across = 24
blank = torch.ones(-D % across, *color_kernels.shape[1:])
tiles = F.pad(torch.cat([color_kernels, blank]), (1, 1, 1, 1), value=1.0)
sheet = rearrange(tiles, "(r c) rgb p q -> (r p) (c q) rgb", c=across)
fig = figures.show_row([sheet.numpy()], [f"All {D} kernels of the trained model in red, green and blue"], size=9)
fig.set_size_inches(9.2, 9.2 * sheet.shape[0] / sheet.shape[1] + 0.4)
_ = figures.save(fig, out_dir / "3_kernels_in_color.png")

# %% [markdown]
# Kernels of one tone measure the mean color of a patch. The others respond to edges, stripes and spots, either of
# brightness (black and white) or of color (blue and yellow).
#
# > **On a laptop.** A short training cannot learn such patterns from random weights. The kernels of clay-mini were
# > initialized as cosine waves and trained from there; [04 Training](04_train_clay.ipynb) explains why. The noisy ones
# > were initialized at random, as in the release.
#
# The same kernels in the infrared and for radar: each row is a band, each column a kernel, scaled to its largest
# weight.

# %%
shown = ["blue", "green", "red", "rededge1", "nir", "swir16", "swir22"]
radar_weight, _ = embedding.kernels(torch.from_numpy(radar.waves()))  # a pass of its own, as for every sensor
kernels = torch.cat([weight[:, s2.indices(shown)], radar_weight], dim=1)  # [D, C, P, P]
strongest = kernels.square().sum(dim=(1, 2, 3)).argsort(descending=True)[: D // 2]
unit = F.normalize(kernels[strongest].flatten(2), dim=2)
blue_red = (unit[:, 0] * unit[:, 2]).sum(dim=1)  # cosine of the kernels of blue and red
chosen = strongest[blue_red.argsort(descending=True)][torch.linspace(0, len(strongest) - 1, 10).long()]
band_waves = [*zip(shown, s2.waves(shown), strict=True), *zip(radar.band_names, radar.waves(), strict=True)]
names = [f"{name}  {wave:.2f} µm" for name, wave in band_waves]
title = "Ten kernels, from equal for blue and red (left) to opposite (right)"
fig = figures.kernels(kernels, band_names=names, chosen=chosen, title=title)
_ = figures.save(fig, out_dir / "4_kernels_by_band.png")

# %%
same_pattern = (blue_red.abs() > 0.9).float().mean().item()
strength = kernels.square().mean(dim=(0, 2, 3)).sqrt()
print(f"blue and red have the same pattern, up to its sign, in {same_pattern:.0%} of the stronger kernels")
print("mean strength, red = 1:", *(f"{name} {s:.2f}" for name, s in zip(shown, strength / strength[2], strict=False)))
runs.claim(same_pattern > 0.5, "most kernels have one pattern for blue and red")

# %% [markdown]
# Most kernels repeat one pattern in all bands, with a different strength and sign in each. With the same sign for blue
# and red, a kernel responds to brightness; with opposite signs, to color. The sign often changes between red and near
# infrared, where vegetation turns from dark to bright.
#
# ## Similar wavelengths, similar kernels
#
# Now we compare every band of every sensor in the registry by the cosine of their kernels: 1 means the same pattern, 0
# unrelated, -1 opposite.

# %%
table = []
for sensor in SENSORS.values():
    sensor_weight, _ = embedding.kernels(torch.from_numpy(sensor.waves()))
    for band, kernel in zip(sensor.bands, sensor_weight.unbind(dim=1), strict=True):
        table.append((band.wavelength, f"{sensor.name} {band.name}", kernel.flatten()))
waves, labels, flat = zip(*sorted(table, key=lambda row: row[:2]), strict=True)
unit = F.normalize(torch.stack(flat), dim=1)
similarity = unit @ unit.T
names = [f"{label}  {wave:.3f}" for label, wave in zip(labels, waves, strict=True)]
columns = [f"{wave:.2f}" if k % 5 == 0 else "" for k, wave in enumerate(waves)]
kwargs = dict(names=names, columns=columns, signed=True, limits=(-1, 1))
fig = figures.matrix(similarity, title=f"Kernels of {len(waves)} bands, by wavelength (µm)", **kwargs)
fig.set_size_inches(9.4, 7.6)
fig.axes[0].tick_params(labelsize=6.5)
_ = figures.save(fig, out_dir / "5_kernel_similarity.png")

# %%
index = {label: i for i, label in enumerate(labels)}
others = ("landsat-c2l2-sr red", "sentinel-2-l2a rededge2", "sentinel-2-l2a nir")
landsat_red, red_edge, near_infrared = (similarity[index["sentinel-2-l2a red"], index[k]].item() for k in others)
print(f"Sentinel-2 red and Landsat red {landsat_red:.4f}, edge at 0.74 µm {red_edge:.3f}, infrared {near_infrared:.3f}")
runs.claim(landsat_red > red_edge > near_infrared, "kernels differ more, the further apart two wavelengths lie")

# %% [markdown]
# The dark squares on the diagonal are blue, green, red, near infrared and short-wave infrared. Each square holds bands
# of many sensors, because the network receives a wavelength and never the name of a sensor.
#
# ## A band that no sensor has
#
# No sensor of the registry has a band at 0.59 µm, between green (0.565) and yellow (0.61) of PlanetScope. The
# hypernetwork computes kernels for it all the same, and they lie between those of its neighbors.

# %%
new = 0.59
assert new not in known
steps = torch.tensor([0.565, 0.575, 0.585, new, 0.595, 0.61])
between, _ = embedding.kernels(steps)  # [D, 6, P, P]
green, middle, yellow = F.normalize(rearrange(between[:, [0, 3, 5]], "D C p q -> C (D p q)"), dim=1)
green_yellow, new_green, new_yellow = ((a @ b).item() for a, b in ((green, yellow), (middle, green), (middle, yellow)))
print(f"cosine of green and yellow {green_yellow:.3f}; of {new} µm and green {new_green:.3f}, yellow {new_yellow:.3f}")
runs.claim(min(new_green, new_yellow) > green_yellow, "kernels of a new wavelength lie between those of its neighbors")

# %% [markdown]
# In the same way any two wavelengths can be compared, whether or not a sensor has them. Dark squares are ranges that
# the network treats as one color; at their edges the kernels change.

# %%
axis = torch.logspace(-0.398, 0.38, 120)  # 0.4 to 2.4 µm
single = F.normalize(torch.stack([embedding.kernels(wave[None])[0].flatten() for wave in axis]), dim=1)
marks = {"blue": 0.48, "green": 0.56, "red": 0.66, "near infrared": 0.86, "short-wave 1": 1.61, "short-wave 2": 2.19}
positions = [int((axis - wave).abs().argmin()) for wave in marks.values()]
with figures.styled():
    fig, ax = plt.subplots(figsize=(6.4, 5.2))
    drawn = ax.imshow(single @ single.T, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_yticks(positions, [f"{name}  {wave:.2f}" for name, wave in marks.items()])
    ax.set_xticks(positions, [f"{wave:.2f}" for wave in marks.values()], rotation=60)
    ax.set(xlabel="wavelength (µm)", title="Similarity of kernels at any two wavelengths")
    fig.colorbar(drawn, ax=ax, label="cosine similarity")
_ = figures.save(fig, out_dir / "6_any_two_wavelengths.png")

# %% [markdown]
# **Try it.** Move the slider through the wavelengths; the kernels and their responses to the chip change with it. At a
# wavelength between two bands, the chip is interpolated from the images of these bands.

# %%
wavelength_slider(clay, image.measured(), s2, wave=new)

# %% [markdown]
# ## Any subset, any order
#
# A subset of bands is a shorter list of wavelengths, and another sensor is another list. The tokens always have D
# numbers.

# %%
naip_bands = ["red", "green", "blue", "nir"]
for subset in (list(s2.band_names), naip_bands, ["red"]):
    part = clay.cube(image.measured()[s2.indices(subset)], s2, bands=subset)
    part_tokens = embedding(part.pixels, part.waves)
    print(f"{len(subset):2} bands of Sentinel-2: {tuple(part.pixels.shape)} -> tokens {tuple(part_tokens.shape)}")
    assert part_tokens.shape == tokens.shape
radar_tokens = embedding(radar_pixels, torch.from_numpy(radar.waves()))
print(f" {len(radar.bands)} bands of Sentinel-1: {tuple(radar_pixels.shape)} -> tokens {tuple(radar_tokens.shape)}")
assert radar_tokens.shape == tokens.shape

# %% [markdown]
# The order of the bands does not matter as long as the wavelengths are reordered with the pixels. If they are not, each
# band gets another band's kernel: there is no error message, only wrong tokens. That is why the library keeps pixels
# and wavelengths together in one datacube.

# %%
order = torch.randperm(len(s2.bands), generator=torch.Generator().manual_seed(seed))
reordered = embedding(cube.pixels[:, order], cube.waves[order])
mismatched = embedding(cube.pixels[:, order], cube.waves)
torch.testing.assert_close(reordered, library, rtol=1e-3, atol=1e-3)
good, bad = ((other - library).norm().item() / library.norm().item() for other in (reordered, mismatched))
print(f"relative difference: {good:.0e} with the wavelengths reordered, {bad:.2f} without")
assert bad > 1000 * good

# %% [markdown]
# One property follows from the transformer layer: since bands attend to each other, the kernel of a band also depends
# on which other bands are there. Here are the kernels of four bands among Sentinel-2's ten and among NAIP's four.

# %%
naip = SENSORS["naip"]
naip_weight, _ = embedding.kernels(torch.from_numpy(naip.waves()))
by_band = {}
for band in ("blue", "green", "red", "nir"):
    pair = weight[:, s2.indices([band])[0]], naip_weight[:, naip.indices([band])[0]]
    by_band[band] = F.cosine_similarity(*(kernel.flatten() for kernel in pair), dim=0).item()
    print(f"{band:<6} in Sentinel-2 and in NAIP: cosine {by_band[band]:.4f}")
assert min(by_band.values()) < 1

# %% [markdown]
# The visible bands hardly differ; the near infrared does. In training, visible light and near infrared alone always
# meant an aerial photograph; short-wave infrared as well meant a satellite image. The network has learned the
# difference. So use the same set of bands for all images that you want to compare.
#
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/01_embed_patches.ipynb) has stubs, hints and checks.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: a camera of your own
# *Easy, 5 minutes*
#
# The data sheet of a drone camera lists: blue 450 nm, green 550 nm, red 660 nm, red edge 735 nm, near infrared 845 nm.
# Its images have the bands in this order. Write the tensor of wavelengths, `[5]`, that the patch embedding needs.
#
# **Hint.** All wavelengths in this notebook are in micrometers. A micrometer is 1000 nanometers.

# %% tags=["solution"]
camera = torch.tensor([0.450, 0.550, 0.660, 0.735, 0.845])  # um

# %% tags=["check"]
checks.check_wavelengths(camera)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: tokens without a convolution
# *Medium, 10 minutes*
#
# Compute the tokens from given kernels with reshapes and one matrix product, without `conv2d`: for each patch and each
# of the D kernels, multiply pixels and kernel, sum over bands and pixels, and add the bias. The tokens are in row
# order.
#
# **Hint.** Reshape the pixels so that each patch is one row:
# `rearrange(pixels, "B C (h p) (w q) -> B (h w) (C p q)", p=P, q=P)`.
#
# **Hint.** Flatten each kernel in the same order, `(C p q)`. Then `rows @ kernels.T` computes the sums.


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
# A token is a sum over bands, plus the bias. Return the term of each band, `[B, C, L, D]`, so that the sum over the
# bands plus the bias is the token. `embedding.kernels(waves)` returns kernels `[D, C, P, P]` and the bias.
#
# **Hint.** This is exercise 2 with one sum fewer: the axis C stays. `torch.einsum` sums over the axes that you leave
# out.
#
# **Hint.** Does the kernel for red depend on which other wavelengths you pass at the same time?


# %% tags=["solution"]
def parts_of(embedding, pixels, waves):
    """A PatchEmbedding, pixels [B, C, H, W], waves [C], um -> the term of each band in the tokens [B, C, L, D]."""
    weight, _ = embedding.kernels(waves)  # of all bands together: they attend to each other
    P = weight.shape[-1]
    patches = rearrange(pixels, "B C (h p) (w q) -> B C (h w) (p q)", p=P, q=P)
    return torch.einsum("bcln,dcn->bcld", patches, rearrange(weight, "D C p q -> D C (p q)"))


# %% tags=["check"]
checks.check_band_parts(parts_of)

# %% [markdown]
# ## What you have learned
#
# - A hypernetwork computes the kernels of the patch embedding from the wavelengths, so one network takes any set of
#   bands.
# - Kernels follow the wavelength, not the sensor: red of Sentinel-2 and of Landsat get nearly the same ones, and a band
#   that no sensor has gets kernels between those of its neighbors.
# - Bands attend to each other, so the kernel of a band also depends on the other bands of the image.
#
# **Exercise.** Move the slider from 0.65 to 0.75 µm, across the red edge. Which kernels change most, and what does that
# part of the spectrum say about plants?
#
# A token describes the content of a patch but not yet where the patch lies. That is the task of the position code, in
# [02 Position encoding](02_encode_positions.ipynb).

# %%
metrics = {
    "bands in the registry": len(waves),
    "similarity: red of Sentinel-2 and of Landsat": round(landsat_red, 4),
    "similarity: red and red edge": round(red_edge, 4),
    "similarity: red and near infrared": round(near_infrared, 4),
    "0.59 µm: similarity to green": round(new_green, 3),
    "0.59 µm: similarity to yellow": round(new_yellow, 3),
    "near infrared in Sentinel-2 and in NAIP, similarity": round(by_band["nir"], 3),
    "tokens by hand against library, largest difference": float(f"{difference:.0e}"),
}
runs.write_metrics(out_dir, metrics)
