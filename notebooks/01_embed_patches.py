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
# - the kernels of a trained Clay, band by band, and where they put the borders between colours,
# - that any bands, in any order, become tokens: also a band that no sensor has.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | nothing before it | under 1 on two cores; no GPU needed (not measured there) | one chip of the mini-world, made here; small weights, shipped |
#
# The mini-world is a synthetic Earth that comes with the project: it knows what seven kinds of sensors would see of a
# place. The weights are those of **clay-mini**, a small Clay that was trained on it.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, figures
from clay_lib.course import checks
from clay_lib.course.widgets import wavelength_slider
from clay_lib.data.chips import world_chips
from clay_lib.embedding import wave_code
from clay_lib.runs.notebooks import output_folder, write_metrics

_ = torch.set_grad_enabled(False)

# %% tags=["parameters"]
seed: int = 0  # of the mini-world and of the shuffled bands
out: str = ""  # folder for results; empty: papermill_runs/lab/01_embed_patches
weights: str = "clay-mini.safetensors"  # shipped; or a path, such as one to the released weights
chip_size: int = 128  # pixels a side, a multiple of 8

# %%
out_dir = output_folder(out, "01_embed_patches")
s2 = SENSORS["sentinel-2-l2a"]
clay = Clay.load(weights)
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
# have the number of bands built in. Made for ten Sentinel-2 bands, it cannot even be called on two radar bands.

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
groups = {"visible and\nnear infrared": 0.65, "short-wave\ninfrared": 1.85, "radar's stand-ins": 3.75}
known = sorted({band.wavelength for sensor in SENSORS.values() for band in sensor.bands})
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.4), sharey=True)
    for ax, name, lines in zip(axes, ("sine", "cosine"), wave_code(wide).T.split(64), strict=True):
        for i in range(0, 64, 4):
            ax.plot(wide, lines[i], color=plt.get_cmap("viridis")(i / 63), lw=1.6)
        ax.scatter(known, [-1.12] * len(known), marker="|", s=60, color="black")
        for group, at in groups.items():
            ax.text(at, -1.22, group, ha="center", va="top", fontsize=8.5)
        ax.set(title=f"{name} of wavelength x 10000^(-i/63)", xlabel="wavelength (µm)", ylim=(-1.6, 1.08))
        ax.set_yticks([-1, 0, 1])
    fig.colorbar(plt.cm.ScalarMappable(plt.Normalize(0, 63), "viridis"), ax=axes, label="i")

# %% [markdown]
# Black marks are the bands of all sensors that the library knows. The optical ones crowd between 0.44 and 2.2 µm. Radar
# has a wavelength of centimetres; Clay gives its two polarisations the stand-in values 3.5 (VV) and 4.0 (VH), far from
# everything else.
#
# The ladder is long for such a short range: towards its end the sines stay near 0 and the cosines near 1, whatever the
# wavelength. The telling part of the code is its first rungs.

# %%
spread = wave_code(wide).amax(0) - wave_code(wide).amin(0)
telling = int((spread > 0.01).sum())
print(f"{telling} of {code.shape[1]} numbers change by more than 0.01 between 0.4 and 4.1 µm")
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
torch.testing.assert_close(weight, theirs, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(bias, their_bias, rtol=1e-4, atol=1e-5)

# %% [markdown]
# ## What the kernels look for
#
# A kernel is as large as a patch: 8 x 8 numbers for each band. The kernels for red, green and blue together are a small
# colour picture of what a token number looks for: it is large where the patch resembles that picture. Grey is zero, and
# each picture has its own contrast.

# %%
seen = weight[:, s2.indices(["red", "green", "blue"])]  # [D, 3, P, P]
seen = 0.5 + 0.5 * seen / seen.abs().amax(dim=(1, 2, 3), keepdim=True)
across = 24
blank = torch.ones(-D % across, *seen.shape[1:])
tiles = F.pad(torch.cat([seen, blank]), (1, 1, 1, 1), value=1.0)
sheet = rearrange(tiles, "(r c) rgb p q -> (r p) (c q) rgb", c=across)
fig = figures.show_row([sheet.numpy()], [f"All {D} kernels of the trained Clay in red, green and blue"], size=9)
fig.set_size_inches(9.2, 9.2 * sheet.shape[0] / sheet.shape[1] + 0.4)
_ = figures.save(fig, out_dir / "1_kernels_in_colour.png")

# %% [markdown]
# Flat ones weigh the mean colour of a patch; the others ask for edges, stripes and spots, of brightness (black and white)
# or of colour (blue against yellow). They began as such waves and were trained from there
# ([04](04_train_clay.ipynb) tells why); the noisy ones among them were left to chance at first.
#
# The same kernels for bands that no eye has. Each row is a band, each column one of the kernels, in its own scale.

# %%
some = ["blue", "green", "red", "rededge1", "nir", "swir16", "swir22"]
s1 = SENSORS["sentinel-1-rtc"]
of_radar, _ = embedding.kernels(torch.from_numpy(s1.waves()))  # asked for apart, as each sensor is
kernels = torch.cat([weight[:, s2.indices(some)], of_radar], dim=1)  # [D, C, P, P]
strong = kernels.square().sum(dim=(1, 2, 3)).argsort(descending=True)[: D // 2]
pattern = F.normalize(kernels[strong].flatten(2), dim=2)
alike = (pattern[:, 0] * pattern[:, 2]).sum(dim=1)  # cosine of the kernels for blue and red
chosen = strong[alike.argsort(descending=True)][torch.linspace(0, len(strong) - 1, 10).long()]

asked = [*zip(some, s2.waves(some), strict=True), *zip(s1.band_names, s1.waves(), strict=True)]
names = [f"{name}  {wave:.2f} µm" for name, wave in asked]
title = "Ten kernels: left those alike for blue and red, right those opposite"
fig = figures.kernels(kernels, band_names=names, chosen=chosen, own_scale=True, title=title)
_ = figures.save(fig, out_dir / "2_kernels_by_band.png")

kept = (pattern @ pattern.transpose(1, 2)).abs()[:, 0, 2]  # cosine of blue and red, whatever the sign
strength = kernels.square().mean(dim=(0, 2, 3)).sqrt()
print(f"blue and red have one pattern, or its negative, in {(kept > 0.9).float().mean():.0%} of the stronger kernels")
print("strength beside red:", *(f"{name} {s:.2f}" for (name, _), s in zip(asked, strength / strength[2], strict=True)))
assert (kept > 0.9).float().mean() > 0.5

# %% [markdown]
# Most kernels have one pattern and give it to each band with a strength and a sign of its own. On the left blue and red
# carry the same sign: these look for brightness. On the right the signs are opposite: these look for a colour. Between red
# and near infrared the sign often turns too. The infrared gets weak kernels.
#
# ## Nearby wavelengths, similar kernels
#
# Now every band of every sensor in the registry. For each sensor the hypernetwork writes its kernels; the kernels of
# two bands are compared by their cosine (1: the same but for their strength, 0: unrelated, -1: opposite).

# %%
table = []
for sensor in SENSORS.values():
    kernels, _ = embedding.kernels(torch.from_numpy(sensor.waves()))
    for band, kernel in zip(sensor.bands, kernels.unbind(dim=1), strict=True):
        table.append((band.wavelength, f"{sensor.name} {band.name}", kernel.flatten()))
table.sort(key=lambda row: row[:2])
waves, labels, flat = zip(*table, strict=True)
unit = F.normalize(torch.stack(flat), dim=1)
similarity = unit @ unit.T
print(f"{len(waves)} bands of {len(SENSORS)} sensors, similarity from {similarity.min():.3f} to {similarity.max():.3f}")

# %%
rows_named = [f"{label}  {wave:.3f}" for label, wave in zip(labels, waves, strict=True)]
title = "Kernels of all bands, ordered by wavelength (µm)"
columns = [f"{w:.2f}" for w in waves]
fig = figures.matrix(similarity, names=rows_named, columns=columns, signed=True, limits=(-1, 1), title=title)
fig.set_size_inches(9.4, 7.6)
fig.axes[0].tick_params(labelsize=6.5)
_ = figures.save(fig, out_dir / "3_kernel_similarity.png")

# %% [markdown]
# The dark squares on the diagonal are colours: blue, green, red, near infrared, and the short-wave infrared. A square
# holds the bands of many sensors, because the network is told a wavelength and never a sensor. Between 0.70 and 0.86 µm,
# where vegetation turns from dark to bright, the squares are small: there every band is worth kernels of its own.

# %%
where = {label: i for i, label in enumerate(labels)}
red, landsat_red = where["sentinel-2-l2a red"], where["landsat-c2l2-sr red"]
edge, nir = where["sentinel-2-l2a rededge1"], where["sentinel-2-l2a nir"]
same_colour, red_edge, red_nir = (similarity[red, other].item() for other in (landsat_red, edge, nir))
print(f"Sentinel-2 red with: Landsat red {same_colour:.4f}, own red edge {red_edge:.3f}, near infrared {red_nir:.3f}")
assert same_colour > red_edge > red_nir

# %% [markdown]
# ## From pixels to tokens
#
# With kernels in hand the rest is the usual convolution, with a stride of one patch. The patches, row by row, are the
# tokens. This is the whole of `clay_lib.embedding.PatchEmbedding`.

# %%
tokens = rearrange(F.conv2d(cube.pixels, weight, bias, stride=P), "B D h w -> B (h w) D")
library = embedding(cube.pixels, cube.waves)

torch.testing.assert_close(tokens, library, rtol=1e-4, atol=1e-4)
difference = (tokens - library).abs().max().item()
print("pixels", *cube.pixels.shape, "-> tokens", *tokens.shape)
print(f"largest difference to the library: {difference:.1e}")

# %% [markdown]
# Each of the D numbers of a token is what one kernel found. All tokens' values of one number make a small picture, a pixel
# a patch. Here are two beside the chip: of a flat kernel, and of one with a pattern.

# %%
side = chip_size // P
found = rearrange(tokens[0], "(h w) D -> D h w", h=side)
flatness = weight.mean(dim=(2, 3)).norm(dim=1) / weight.flatten(1).norm(dim=1)
number = [int((tokens[0].std(dim=0) * like).argmax()) for like in (flatness, 1 - flatness)]
standard = [((found[k] - found[k].mean()) / found[k].std()).numpy() for k in number]
titles = [f"chip, {chip_size} x {chip_size} pixels", f"number {number[0]}: a colour", f"number {number[1]}: a pattern"]
pictures = [figures.rgb(chips.pixels[0], s2), *standard]
label, ground = "standard deviations from its mean", [s2.gsd, s2.gsd * P, s2.gsd * P]
fig = figures.show_row(pictures, titles, gsd=ground, cmap="RdBu_r", limits=(-3, 3), label=label, size=2.8)
_ = figures.save(fig, out_dir / "4_tokens.png")

# %% [markdown]
# ## A band that no sensor has
#
# No sensor of the registry looks at 0.59 µm, between green (0.565) and yellow (0.61) of PlanetScope. The hypernetwork
# does not mind: it never stored a kernel for any band. Its kernels pass from the one to the other.

# %%
new = 0.59
assert not any(band.wavelength == new for sensor in SENSORS.values() for band in sensor.bands)
way = torch.tensor([0.565, 0.575, 0.585, new, 0.595, 0.61])
between, _ = embedding.kernels(way)  # [D, C, P, P]
green, middle, yellow = F.normalize(rearrange(between[:, [0, 3, 5]], "D C p q -> C (D p q)"), dim=1)
ends, to_green, to_yellow = ((a @ b).item() for a, b in ((green, yellow), (middle, green), (middle, yellow)))
print(f"cosine of green and yellow {ends:.3f}; of 0.59 µm with green {to_green:.3f}, with yellow {to_yellow:.3f}")
assert to_green > ends and to_yellow > ends

# %%
turning = (between[:, 0] - between[:, -1]).square().sum(dim=(1, 2)).argsort(descending=True)[:20:2]
named = {0.565: "green of PlanetScope", new: "no sensor", 0.61: "yellow of PlanetScope"}
names = [f"{named.get(round(wave, 3), '')}  {wave:.3f} µm" for wave in way.tolist()]
title = "Kernels that differ most between green and yellow, and the way between"
fig = figures.kernels(between, band_names=names, chosen=turning, own_scale=True, title=title)
_ = figures.save(fig, out_dir / "5_between_bands.png")

# %% [markdown]
# So the way from one band to the next is smooth, but not even. Here is the likeness of any two wavelengths from 0.4 to
# 2.4 µm, bands or not. Dark squares are ranges that the network treats alike; their edges are where it draws a border.

# %%
steps = torch.from_numpy(np.geomspace(0.4, 2.4, 120)).float()
alone = F.normalize(torch.stack([embedding.kernels(wave[None])[0].flatten() for wave in steps]), dim=1)
marks = {"blue": 0.48, "green": 0.56, "red": 0.66, "near infrared": 0.86, "short-wave 1": 1.61, "short-wave 2": 2.19}
at = [int((steps - wave).abs().argmin()) for wave in marks.values()]
with figures.styled():
    fig, ax = plt.subplots(figsize=(6.4, 5.2))
    picture = ax.imshow(alone @ alone.T, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_yticks(at, [f"{name}  {wave:.2f}" for name, wave in marks.items()])
    ax.set_xticks(at, [f"{wave:.2f}" for wave in marks.values()], rotation=60)
    ax.set(xlabel="wavelength (µm)", title="Likeness of the kernels for any two wavelengths")
    fig.colorbar(picture, ax=ax, label="cosine similarity")
_ = figures.save(fig, out_dir / "6_any_two_wavelengths.png")

# %% [markdown]
# ## Try it
#
# Move the slider through the wavelengths. The kernels and what they answer to the chip change with it; at a wavelength
# between two bands the chip is mixed from the images of these two. (Where no kernel runs, a picture stands here.)

# %%
wavelength_slider(clay, chips.pixels[0], s2, wave=new)

# %% [markdown]
# ## Any subset, any order
#
# A subset of bands is a shorter list of wavelengths, another sensor is another list. The tokens always have D numbers.

# %%
choices = {
    "all ten": list(s2.band_names), "as NAIP has them": ["red", "green", "blue", "nir"],
    "red alone": ["red"], "swir first": ["swir22", "swir16", "nir"],
}  # fmt: skip
for name, picked in choices.items():
    part = clay.cube(chips.pixels[:, s2.indices(picked)], s2, bands=picked)
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
torch.testing.assert_close(moved, library, rtol=1e-3, atol=1e-3)

moved_off, behind_off = ((other - library).norm().item() / library.norm().item() for other in (moved, left_behind))
print(f"shuffled with their wavelengths: {moved_off:.1e} off; without them: {behind_off:.3f} off")
assert behind_off > 1000 * moved_off

# %% [markdown]
# One thing that a stored kernel would not do: because the bands see each other in the transformer layer, a band's
# kernel also depends on its company.

# %%
naip = SENSORS["naip"]
company = {}
for band in ("blue", "green", "red", "nir"):
    among = [
        embedding.kernels(torch.from_numpy(sensor.waves()))[0][:, sensor.indices([band])[0]] for sensor in (s2, naip)
    ]
    company[band] = F.cosine_similarity(*(kernel.flatten() for kernel in among), dim=0).item()
    print(f"{band:<6} among Sentinel-2's ten bands and among NAIP's four: cosine {company[band]:.4f}")
assert company["green"] < 1  # one wavelength, two companies

# %%
full = weight[:, s2.indices(["nir"])[0]].flatten()
wave = dict(zip(s2.band_names, s2.waves().tolist(), strict=True))
beside = {}
for others in ([], ["red"], ["blue", "green", "red"], ["blue", "green", "red", "swir16"]):
    kernel = embedding.kernels(torch.tensor([*map(wave.get, others), wave["nir"]]))[0][:, -1].flatten()
    beside[len(others)] = F.cosine_similarity(kernel, full, dim=0).item()
    print(
        f"nir beside {', '.join(others) or 'nothing'}: cosine {beside[len(others)]:.3f} with nir among Sentinel-2's ten"
    )
assert beside[4] > beside[3]

# %% [markdown]
# Visible bands get the same kernels in any company. The near infrared does not: beside visible light alone, as NAIP has
# it, it gets other kernels than where short-wave infrared comes too. In training the one company always meant an aerial
# photograph and the other a satellite's image, and the network uses what it is told. So the same bands should be given
# together each time.

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
    "similarity: red of Sentinel-2 and of Landsat": round(same_colour, 4),
    "similarity: red and red edge": round(red_edge, 4),
    "similarity: red and near infrared": round(red_nir, 4),
    "0.59 µm: similarity to green": round(to_green, 3),
    "0.59 µm: similarity to yellow": round(to_yellow, 3),
    "near infrared in two companies, similarity": round(company["nir"], 3),
    "tokens by hand against library, largest difference": float(f"{difference:.0e}"),
}
write_metrics(out_dir, metrics)
print(f"""- A wavelength is all that is asked of a band: {len(waves)} bands of {len(SENSORS)} sensors share one hypernetwork.
- Kernels follow wavelength, not the sensor: cosine {same_colour:.4f} between red of two sensors, {red_edge:.2f} from red
  to the red edge, {red_nir:.2f} from red to near infrared. A band's company counts too: near infrared among ten bands
  and among four has {company["nir"]:.2f}.
- A band at 0.59 µm, which no sensor has, gets kernels between those of its neighbours ({to_green:.2f} and {to_yellow:.2f},
  which have {ends:.2f} with each other).""")

# %% [markdown]
# Next: a token says what is in a patch, not yet where the patch lies. That is the position code, in
# [02 Positional encoding](02_encode_positions.ipynb). Before it, three [exercises](exercises/01_embed_patches.ipynb).
