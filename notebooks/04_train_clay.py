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
# # 04 Training
#
# > **What does a small Clay learn in a few minutes?**
#
# You will see
# - the recipe of the release, its two losses by hand, and one step of its optimizer by hand,
# - every change that a laptop makes to that recipe,
# - a small Clay trained from scratch, and its reconstructions of unseen land before, during and after training.
#
# ![Where this notebook stands: loss, training](flow/04_train_clay.png)
#
# | prerequisites | minutes | data |
# | --- | --- | --- |
# | [01 Patch embedding](01_embed_patches.ipynb) to [03 Masking](03_mask_patches.ipynb) | 4.8 on two cores; uses a GPU if there is one | chips of the synthetic Earth, generated here |

# %%
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, ClayConfig, data, datamodule, encoder, evaluation, figures, runs, training
from clay_lib.callbacks import Snapshots
from clay_lib.clay import cosine_initialized, embed_chips, reconstruction_scores
from clay_lib.course import checks
from clay_lib.evaluation.reconstruction import reconstruction_measures
from clay_lib.files import CACHE
from clay_lib.model import attend_to_neighbors
from clay_lib.runs.prepare import find_teacher
from clay_lib.teacher import stand_in_teacher, teacher_view

# %% tags=["parameters"]
seed: int = 0  # of the synthetic Earth, the first weights, the order of chips and the masks
out: str = ""  # folder for results; empty: papermill_runs/lab/04_train_clay
weights: str = "notebook_04.safetensors"  # written to data/cache; later notebooks take this name as their weights
start: str = ""  # weights to start from, such as "clay-mini"; empty: from scratch
size: str = "tiny"  # tiny, small, base or large
sensors: list = ["sentinel-2-l2a"]  # more of them share the steps; the last scores have a row for each
chips: int = 440  # of each sensor, for training
chip_size: int = 128  # pixels a side, as generated
crop: int = 64  # pixels a side in training: a random window of each chip
test_chips: int = 110  # of each sensor, at test places
batch_size: int = 16
max_steps: int = 1200
lr: float = 1e-3  # largest learning rate of the short schedule
patch_size: int = 8  # pixels a side; 8 in the release
mask_ratio: float = 0.6  # share of patches that is hidden; 0.75 in the release
scored_ratio: float = 0.6  # the same for the scores at the end; constant while a sweep varies mask_ratio
frequencies: str = "geometric"  # of the position code; "released" as in the published weights
teacher: str = "textures"  # texture statistics; "stand-in": random DINOv2; folder or hub name of DINOv2; "none"
teacher_share: float = 0.2  # weight of the teacher's loss; 0.05 in the release

# %% [markdown]
# ## The recipe of the release
#
# | part | Clay v1.5 as released |
# | --- | --- |
# | model | encoder of width 1024 and depth 24 (311 M parameters), decoder of width 512 and depth 4 (16 M) |
# | input | 70 million chips of 256 x 256 pixels, six sensors, patches of 8 x 8, 75 % of them hidden |
# | batches | one sensor each, the sensors in turn; place and date unknown for a fifth of the samples |
# | loss | 95 % reconstruction, 5 % agreement with the teacher |
# | teacher | DINOv2 with registers, ViT-L/14 (304 M parameters), frozen |
# | optimizer | AdamW, learning rate 1e-5, weight decay 0.05, betas 0.9 and 0.95 |
# | schedule | cosine with warm restarts, first cycle 1,000 steps, each cycle twice as long as the one before |
# | duration | 100 epochs on 160 L4 GPUs |
#
# `ClayConfig` and `TrainSettings` hold these values as their defaults.

# %%
released_config, released = ClayConfig(), training.TrainSettings()
assert (released_config.dim, released_config.depth, released_config.mask_ratio) == (1024, 24, 0.75)
assert (released.lr, released.weight_decay, released.betas) == (1e-5, 0.05, (0.9, 0.95))
assert (released.reconstruction_weight, released.representation_weight) == (0.95, 0.05)

# %% [markdown]
# ## The learning rate
#
# Cosine annealing with warm restarts (Loshchilov and Hutter, 2017) takes the rate from $\eta_0$ to $\eta_{end}$ in each
# cycle of $T$ steps: $\eta(t) = \eta_{end} + (\eta_0 - \eta_{end}) (1 + \cos(\pi t / T)) / 2$. Usually $\eta_{end}$ is
# small. In the release it is 100 times $\eta_0$, so the rate **rises** from 1e-5 to 1e-3 within a cycle and falls back
# at each restart. Here it is by hand and with the library's schedule.


# %%
def learning_rates(settings, steps):
    """The learning rate at each step."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
    scheduler, rates = training.schedule(optimizer, settings), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return pd.DataFrame({"step": range(steps), "learning rate": rates})


rates = learning_rates(released, 7000)
t, T = np.arange(7000), np.repeat([1000, 2000, 4000], [1000, 2000, 4000])  # step and length of its cycle
t = t - np.repeat([0, 1000, 3000], [1000, 2000, 4000])  # steps since the last restart
by_hand = 1e-3 + (1e-5 - 1e-3) * (1 + np.cos(np.pi * t / T)) / 2
np.testing.assert_allclose(rates["learning rate"], by_hand, rtol=1e-6)
fig = figures.curves(rates, "step", "learning rate", xlabel="optimizer step", title="Learning rate of the release")

# %% [markdown]
# ## Chips
#
# Every sensor has its own chips in its native numbers: reflectance times 10,000, digital numbers, 8-bit gray levels,
# radar power. The release sampled its chips by land-cover statistics; here the land-cover classes come in turn, each
# place at two dates. Training and test chips lie in different spatial blocks.
#
# > **On a laptop.** 440 chips of Sentinel-2, from the synthetic Earth and cut to 64 x 64 pixels, stand in for 70
# > million chips of six sensors with 256 x 256 pixels. In the same minutes, each of seven sensors would get a seventh
# > of the steps, too few to learn more than a chip's brightness; try it with `sensors`.

# %%
out_dir = runs.output_folder(out, "04_train_clay")
side = {s: chip_size if SENSORS[s].gsd < 100 else crop for s in sensors}  # 64 pixels of MODIS are 32 km
train_chips = {s: data.world_chips(s, chips, split="train", size=side[s], seed=seed, dates=2) for s in sensors}
unseen = {s: data.world_chips(s, test_chips, split="test", size=crop, seed=seed) for s in sensors}
shown = [(s, 2 * k + 3) for s in sensors for k in range(max(1, 4 // len(sensors)))]  # sensor, chip
images = [figures.rgb(train_chips[s].pixels[k], s) for s, k in shown]
titles = [f"{s}\n{SENSORS[s].gsd:g} m, {train_chips[s].pixels.dtype}" for s, _ in shown]
gsd = [SENSORS[s].gsd for s, _ in shown]
fig = figures.show_row(images, titles, gsd=gsd, columns=4, title="Training chips")

# %% [markdown]
# ## Teacher
#
# Clay learns from two signals: the hidden part of the image, and a frozen **teacher** that describes the whole image in
# one vector. The teacher of the release is DINOv2 (Oquab et al., 2024), a vision transformer trained without labels on
# 142 million images. It sees red, green and blue.
#
# > **On a laptop.** DINOv2 is a download of 1.2 GB and takes seconds per image on two cores. A vector of 47 texture
# > statistics stands in for it: colors, contrast, roughness at three scales and direction. To use the real one, set
# > `teacher` to its folder or hub name.

# %%
teacher_network = find_teacher(teacher)  # None for "none": then the loss is reconstruction alone
example_teacher = teacher_network or stand_in_teacher()  # for the losses by hand below
print(f"teacher {teacher}: {example_teacher.dim} numbers for each image")

# %% [markdown]
# ## The two losses by hand
#
# The **reconstruction loss** is the mean absolute error of each hidden patch, averaged over the hidden patches (He et
# al., 2022, use the squared error). The **representation loss** is one minus the cosine between the projected class
# token and the teacher's vector. With $m_i = 1$ for hidden patches and $N$ numbers in a patch,
#
# $$\mathcal{L} = 0.95\, \frac{\sum_i m_i \lVert \hat x_i - x_i \rVert_1 / N}{\sum_i m_i} + 0.05\, (1 - \cos(z, t)).$$
#
# We compute both for one batch, by hand and then with the library's training step, with the settings of the release.

# %%
plan = next(iter(datamodule.SensorBatches({sensors[0]: chips}, batch_size=8, seed=seed)))
batch = datamodule.PlannedBatches(train_chips, augment=False, crop=crop)[plan]
sizes = dict(patch_size=patch_size, teacher_dim=example_teacher.dim, frequencies=frequencies, mask_ratio=mask_ratio)
config = ClayConfig.named(size, **sizes)
module = training.ClayModule(config, released, example_teacher)
module.model.load_state_dict(Clay.random(config, seed=seed).model.state_dict())
pixels, P = batch.cube.pixels, config.patch_size  # [B, C, H, W]
noise = torch.from_numpy(batch.draws("mask", math.ceil(crop / P) ** 2)).float()  # [B, L], which orders the patches
output = module.model(batch.cube, noise=noise)

# %%
hidden = output.encoded.mask.bool()  # [B, L]
reconstruction = (output.reconstruction - encoder.patchify(pixels, P))[hidden].abs().mean(dim=-1).mean()
z, t = output.representation, example_teacher(teacher_view(pixels, SENSORS[batch.sensor]))  # [B, teacher_dim]
representation = 1 - ((z * t).sum(-1) / (z.norm(dim=-1) * t.norm(dim=-1))).mean()
by_hand = 0.95 * reconstruction + 0.05 * representation

losses = module.losses(batch, training=False)
torch.testing.assert_close(reconstruction, losses["reconstruction"])
torch.testing.assert_close(representation, losses["representation"])
torch.testing.assert_close(by_hand, losses["loss"])
print(f"untrained: reconstruction {reconstruction:.3f}, representation {representation:.3f}, loss {by_hand:.3f}")

# %% [markdown]
# ## One optimizer step by hand
#
# AdamW (Loshchilov and Hutter, 2019) keeps running means of the gradient $g$ and of its square, corrects both for their
# start at zero, and shrinks the weights by the decay $\lambda$, separately from the gradient:
#
# $$m = \beta_1 m + (1-\beta_1) g,\quad v = \beta_2 v + (1-\beta_2) g^2,\quad
# \theta = (1 - \eta\lambda)\,\theta - \eta\, \frac{m / (1-\beta_1^n)}{\sqrt{v / (1-\beta_2^n)} + \epsilon}.$$

# %%
losses["loss"].backward()
optimizer = module.configure_optimizers()["optimizer"]  # its rate is that of the first step, 1e-5
before = {name: p.detach().clone() for name, p in module.model.named_parameters() if p.grad is not None}
optimizer.step()
for name, parameter in module.model.named_parameters():
    if parameter.grad is None:
        continue
    g, n = parameter.grad, 1
    m, v = (1 - released.betas[0]) * g, (1 - released.betas[1]) * g**2
    step = (m / (1 - released.betas[0] ** n)) / ((v / (1 - released.betas[1] ** n)).sqrt() + 1e-8)
    by_hand = (1 - released.lr * released.weight_decay) * before[name] - released.lr * step
    torch.testing.assert_close(by_hand, parameter.detach(), rtol=1e-6, atol=1e-8)
print(f"{len(before)} tensors updated as by hand")

# %% [markdown]
# In the first step $m$ and $v$ reduce to $g$ and $g^2$, so nearly every weight moves by the learning rate, whatever the
# size of its gradient.
#
# ## The same on a laptop
#
# A few minutes on two cores do not reach the end of the first cycle. This table lists everything that the notebook
# changes to learn something in that time; the rest is the release's recipe.
#
# > **On a laptop.**
# >
# > | part | release | here |
# > | --- | --- | --- |
# > | network | 327 M parameters | 6 M (`size = "tiny"`) |
# > | chips | 70 million of six sensors, 256 x 256 pixels | 440 of one sensor, cut to 64 x 64 |
# > | hidden patches | 75 % | 60 % |
# > | position code | nearly equal frequencies ([02](02_encode_positions.ipynb)) | well separated ones |
# > | teacher, its share of the loss | DINOv2, 5 % | texture statistics, 20 % |
# > | schedule | rises within each cycle, to 1e-3 | up within a twentieth of the steps, then down along half a cosine |
# > | gradients | as they are | clipped at norm 1 |
# > | dropped bands | all of 10 % of the samples with a known place, half of them of 20 % | none |
# > | first weights | random | a cosine basis and attention to near patches, below |

# %%
short = training.TrainSettings(
    lr=lr,
    schedule="one_cycle",
    warmup_steps=max_steps // 20,
    max_steps=max_steps,
    reconstruction_weight=1 - teacher_share,
    representation_weight=teacher_share,
    clip_gradient=1.0,
    drop_all_bands=0.0,
    drop_half_bands=0.0,
    seed=seed,
)

curves = {"release": rates, "here": learning_rates(short, max_steps)}
fig = figures.curves(curves, "step", "learning rate", xlabel="optimizer step", title="Learning rate")

# %% [markdown]
# ## First weights
#
# A small network generates the kernels of the patch embedding ([01](01_embed_patches.ipynb)). With random weights, its
# kernels are weak noise and nearly the same for red and for green.
#
# > **On a laptop.** A small model spends its first thousands of steps getting out of that state. Here the generator's
# > last layer is fitted by least squares, so that its first kernels are a cosine basis (as in JPEG), some the same in
# > all bands and others opposite. In the same spirit, the decoder's first attention is made to read the position code,
# > so that a hidden patch attends to the patches around it; from random weights, it takes hundreds of steps to learn
# > that near patches matter. No shapes change, and training updates all of these weights. The release starts from
# > random weights.

# %%
first_weights = {"random weights": Clay.random(config, seed=seed), "cosine basis": cosine_initialized(config, seed)}
s2, bands, similarity = SENSORS["sentinel-2-l2a"], ["blue", "green", "red", "nir", "swir22"], {}
chosen = [0, 1, 2, 4, 9, 10, 11, 13, 22, 24, 30, 36]  # flat kernels, waves, and waves that differ by band
for name, clay in first_weights.items():
    kernels, _ = clay.model.encoder.patch_embedding.kernels(torch.from_numpy(s2.waves()))
    kernels = kernels.detach()[:, s2.indices(bands)]  # [D, C, P, P]
    title = f"First kernels: {name}"
    fig = figures.kernels(kernels, band_names=bands, chosen=chosen, title=title)
    _ = figures.save(fig, out_dir / f"0_kernels_{name.replace(' ', '_')}.png")
    similarity[name] = F.cosine_similarity(kernels[:, 2].flatten(), kernels[:, 1].flatten(), dim=0).item()
    print(f"{name:<14} cosine of the kernels of red and green {similarity[name]:.3f}")
_ = attend_to_neighbors(first_weights["cosine basis"].model)
runs.claim(similarity["cosine basis"] < similarity["random weights"] - 0.05, "a cosine basis tells red from green")

# %% [markdown]
# ## Train
#
# The data module yields batches of one sensor each, flipped and rotated at random; a fifth of the samples lose their
# place and date, as in the release. Four times during training, the model reconstructs the same test chips with the
# same patches hidden.

# %%
batches = datamodule.ClayDataModule(train_chips, unseen, batch_size=batch_size, crop=crop, seed=seed)
watched_plan = next(iter(datamodule.SensorBatches({sensors[0]: 4}, batch_size=4, shuffle=False)))
watched = datamodule.PlannedBatches(unseen, augment=False)[watched_plan]
moments = sorted({0, max_steps // 20, max_steps // 4, max_steps})
snapshots = Snapshots(watched, moments, seed=seed)
first_model = Clay.load(start) if start else first_weights["cosine basis"]
kwargs = dict(teacher=teacher_network, start=first_model.model, progress=False)
kwargs["callbacks"] = (snapshots, runs.report_metric("val/loss"))  # for searches; elsewhere it does nothing
kwargs["log_every"] = max(1, min(20, max_steps // 10))
kwargs["check_val_every_n_epoch"] = max(1, max_steps // batches.batches_per_epoch() // 5)
trained = training.train(config, short, batches, out=out_dir, resume=runs.in_sweep(), **kwargs)
clay = Clay(trained.model)
clay.save(CACHE / weights)
print(f"{max_steps} steps of {batch_size} chips; weights in data/cache/{weights}")

# %% [markdown]
# ## Losses
#
# The reconstruction error is in standard deviations of each sensor's published statistics. Compare a curve only with
# itself: a sensor with little contrast has a low curve.

# %%
history = trained.history  # one row for each log entry: of training, or of validation on test chips
columns = {f"train/{s}": s for s in sensors}
smooth = history.groupby("step")[list(columns)].mean().interpolate().rolling(5, min_periods=1).mean()
smooth = smooth.rename(columns=columns).reset_index()
labels = dict(xlabel="optimizer step", ylabel="error of hidden pixels (sd)", title="Reconstruction error in training")
fig = figures.curves(smooth, "step", sensors, log=True, **labels)

# %%
columns = {"train/representation": "training chips", "val/representation": "test chips"}
if teacher_network:
    labels = dict(xlabel="optimizer step", ylabel="1 - cosine to the teacher", title=f"Representation loss ({teacher})")
    fig = figures.curves(history.rename(columns=columns), "step", list(columns.values()), **labels)

# %% [markdown]
# ## From noise to shapes
#
# Here are four test chips. The first column is what the encoder sees and the last is the truth; between them are
# reconstructions at four moments in training. The column `clay-mini` shows the weights that the other notebooks use:
# the same network, trained much longer. Visible patches are drawn as they are.

# %%
predictions = {f"step {m}": snapshots.taken[m] for m in moments}  # [B, L, C*P*P]
if (config.patch_size, config.mask_ratio) == (8, 0.6):  # as clay-mini was trained
    with torch.inference_mode():
        predictions["clay-mini"] = Clay.load("clay-mini").model(watched.cube, noise=1 - snapshots.mask).reconstruction
truth, hidden = watched.cube.pixels, snapshots.mask.bool()[:, :, None]  # [B, C, H, W], [B, L, 1]
patches, n = encoder.patchify(truth, P), truth.shape[-1] // P
layout = dict(grid=(n, n), patch_size=P, size=truth.shape[-2:])
columns = {"visible": encoder.unpatchify(patches.masked_fill(hidden, float("nan")), **layout)}
columns |= {name: encoder.unpatchify(torch.where(hidden, x, patches), **layout) for name, x in predictions.items()}
columns["truth"] = truth
images = [figures.rgb(x[k], sensors[0], like=truth[k], normalized=True) for k in range(4) for x in columns.values()]
fig = figures.show_row(images, list(columns), columns=len(columns), size=1.5, gsd=SENSORS[sensors[0]].gsd)
_ = figures.save(fig, out_dir / "1_from_noise_to_shapes.png")

# %% [markdown]
# The short training learns where a chip is bright or dark, and roughly its colors: hidden patches follow the visible
# ones around them. Detail inside a patch comes much later; `clay-mini` has some of it.
#
# ## Is it better than a simple guess?
#
# The simplest guess for a hidden pixel is the mean of the visible pixels in that band. A ratio of errors below 1 means
# that the model is better than that guess on test chips.

# %%
scores = [reconstruction_scores(clay, unseen[s], mask_ratio=scored_ratio, seed=seed) for s in sensors]
by_sensor = pd.concat(scores).groupby("sensor", sort=False)
summary = by_sensor[["error", "mean_error"]].mean()
summary["ratio"] = summary["error"] / summary["mean_error"]
summary["ratio of the worst band"] = by_sensor["ratio"].max()
untrained = reconstruction_scores(first_model, unseen[sensors[0]], mask_ratio=scored_ratio, seed=seed)
runs.claim(start or summary["error"].iloc[0] < untrained["error"].mean(), "training lowers the error of hidden patches")
summary.round(3)

# %%
bars = summary.rename(columns={"ratio": "value"}).rename_axis("name").reset_index()[["name", "value"]]
bars.loc[len(bars)] = ["visible mean", 1.0]
bars = bars.assign(low=np.nan, high=np.nan, kind=["Clay"] * len(sensors) + ["baseline"])
title = "Reconstruction error on test chips"
fig = figures.bars_with_intervals(bars, label="error / error of the visible mean", title=title)
_ = figures.save(fig, out_dir / "2_error.png")

# %% [markdown]
# A better guess is interpolation: the visible pixels, weighted by the inverse of their distance. Next to its error are
# two correlations with the truth: for the means of hidden patches, and for the detail left inside them without the
# means.

# %%
measures = reconstruction_measures(clay, unseen[sensors[0]], mask_ratio=scored_ratio, seeds=1)
measures = measures.pivot(index="method", columns="measure", values="value")  # error: of interpolation it is 1
measures.round(2)

# %% [markdown]
# Interpolation is still better: it need not learn that near pixels are similar. What it cannot do is describe the
# image.
#
# Reconstruction is the training task, not the purpose: the embeddings should describe land. As a first test, each test
# chip of the first sensor gets the most common land cover of its five nearest training chips.
# [07](07_probe_embeddings.ipynb) does this with care.

# %%
window = np.s_[..., :crop, :crop]
labeled = train_chips[sensors[0]]
labeled = replace(labeled, pixels=labeled.pixels[window], labels=labeled.labels[window])
vectors = [embed_chips(clay, c)["patch mean"] for c in (labeled, unseen[sensors[0]])]
train_x, test_x = evaluation.standardize(*vectors)
knn = evaluation.knn_score(train_x, labeled.land_cover, test_x, unseen[sensors[0]].land_cover, k=5)
chance = 1 / len(np.unique(labeled.land_cover))
print(f"correct land cover for {knn:.0%} of {len(test_x)} test chips; by chance {chance:.0%}")

# %% [markdown]
# ## Exercises, solved
#
# Three exercises: [the exercise notebook](exercises/04_train_clay.ipynb) has stubs, hints and checks. It
# trains nothing and needs no data.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the reconstruction loss
# *Easy, 5 minutes*
#
# Write Clay's reconstruction loss: the absolute error of each hidden patch, averaged over its numbers, then averaged
# over all hidden patches of the batch. In the mask, 1 means hidden.
#
# **Hint.** `(reconstruction - target).abs().mean(-1)` is the error of each patch, `[B, L]`.
#
# **Hint.** Multiply by the mask, add up, and divide by the number of hidden patches.


# %% tags=["solution"]
def masked_error(reconstruction, target, mask):
    """reconstruction, target [B, L, N], mask [B, L] with 1 = hidden -> mean absolute error of hidden patches."""
    each = (reconstruction - target).abs().mean(-1)  # [B, L]
    return (each * mask).sum() / mask.sum()


# %% tags=["check"]
checks.check_masked_error(masked_error)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the representation loss
# *Easy, 5 minutes*
#
# Write Clay's second loss: one minus the cosine between the student's and the teacher's vector of each chip, averaged
# over the batch.
#
# **Hint.** The cosine is the dot product over D, divided by both lengths: one number for each chip.


# %% tags=["solution"]
def representation_error(student, teacher):
    """student, teacher [B, D] -> 1 - cosine, the mean over the batch."""
    cosine = (student * teacher).sum(-1) / (student.norm(dim=-1) * teacher.norm(dim=-1))
    return 1 - cosine.mean()


# %% tags=["check"]
checks.check_agreement(representation_error)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: warm-up and cosine
# *Medium, 10 minutes*
#
# Write the short schedule of this notebook. The rate rises linearly: step 0 has `peak / (warmup + 1)`, step 1 twice as
# much, and so on up to the peak at step `warmup`. From there it decreases along half a cosine and would reach 0 at step
# `steps`. Steps are counted from 0.
#
# **Hint.** While `step < warmup`: `peak * (step + 1) / (warmup + 1)`.
#
# **Hint.** Half a cosine: `0.5 + 0.5 * math.cos(math.pi * done)`, where `done` rises from 0 at the end of the warm-up
# to 1 at step `steps`.


# %% tags=["solution"]
def rate(step, warmup, steps, peak):
    """The learning rate at a step, counted from 0."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / (steps - warmup)
    return peak * (0.5 + 0.5 * math.cos(math.pi * done))


# %% tags=["check"]
checks.check_rate(rate)

# %% [markdown]
# ## What you have learned
#
# - Clay's loss has two parts: the absolute error of hidden patches, and the cosine to a frozen teacher.
# - A few minutes of training on one sensor teach brightness and color; detail needs many more steps. Interpolation is a
#   strong baseline.
# - The embeddings recognize land cover before the reconstructions look good.
#
# **Exercise.** Train once more with the release's `mask_ratio = 0.75` and `teacher_share = 0.05`. What gets better, and
# what gets worse?
#
# The weights file holds its own configuration, so `Clay.load` needs only its name. The other notebooks use `clay-mini`:
# the same network, trained much longer and on more chips, by `clay train --config data/weights/clay-mini.yaml`. To
# compare, set their parameter `weights` to the name of your file.
#
# Next: [05 Reconstruction maps](05_map_reconstructions.ipynb).

# %%
metrics = {
    "steps": max_steps,
    "samples": max_steps * batch_size,
    "final loss": float(history["train/loss"].dropna().tail(5).mean()),
    "teacher": teacher,
    "error ratio": round(float(summary["ratio"].mean()), 4),
    "kNN-5": round(knn, 4),
    "correlation of hidden means": round(float(measures.loc["model", "means"]), 3),
    "error ratio by sensor": summary["ratio"].round(3).to_dict(),
}
if teacher_network:
    distance = history["val/representation"].dropna().iloc[-1]
    metrics["cosine to the teacher on test chips"] = round(float(1 - distance), 3)
runs.write_metrics(out_dir, metrics)
