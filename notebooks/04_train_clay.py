# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 Training Clay
#
# > **What does a small Clay learn about land in a few minutes?**
#
# You will see
# - the two losses of Clay written out by hand, and the release's learning rate, which rises;
# - first weights that can tell colours and detail apart, beside those that chance gives;
# - a tiny Clay trained from nothing on chips of a synthetic Earth, each batch from one sensor: what it makes of land
#   it never saw, step by step, beside the same network trained fifteen times longer, and beside a simple guess.
#
# Builds on 01 to 03. About 5 minutes on two CPU cores; a GPU is used where there is one (not yet timed there).
# Data: chips of the mini-world, made here and kept in `data/cache`.

# %%
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, ClayConfig, figures
from clay_lib.clay import cosine_initialized, embed_chips, reconstruction_scores
from clay_lib.course import checks
from clay_lib.data.chips import world_chips
from clay_lib.datamodule import ClayDataModule, PlannedBatches, SensorBatches
from clay_lib.encoder import patchify, unpatchify
from clay_lib.evaluation import probes
from clay_lib.files import CACHE
from clay_lib.loss import reconstruction_loss, representation_loss
from clay_lib.runs.notebooks import output_folder, write_metrics
from clay_lib.runs.prepare import texture_teacher
from clay_lib.teacher import load_teacher, stand_in_teacher, teacher_view
from clay_lib.training import Snapshots, TrainSettings, schedule, train

# %% tags=["parameters"]
seed: int = 0
out: str = ""  # folder for results; empty: papermill_runs/lab/04_train_clay
weights: str = "notebook_04.safetensors"  # written to data/cache; to use it, give this name to a later notebook
start: str = ""  # weights to go on from, such as "clay-mini.safetensors", which are shipped; empty: from nothing
size: str = "tiny"  # tiny, small, base or large
sensors: list = ["sentinel-2-l2a", "landsat-c2l1", "landsat-c2l2-sr", "naip", "linz", "modis", "sentinel-1-rtc"]
chips: int = 176  # of each sensor, to train on
chip_size: int = 128  # pixels, as made
crop: int = 64  # pixels, as trained on: a random window of each chip
test_chips: int = 110  # of each sensor, on land never trained on
batch_size: int = 16
max_steps: int = 1200
lr: float = 1e-3  # the peak of a short schedule
patch_size: int = 8  # pixels a side of a patch; 8 in the release
mask_ratio: float = 0.6  # share of the patches that is hidden; 0.75 in the release
scored_ratio: float = 0.6  # the same when the error is measured at the end; fixed while a sweep varies mask_ratio
ladder: str = "geometric"  # frequencies of the position code; "released" as in the published weights
teacher: str = "textures"  # statistics of texture; "stand-in": random DINOv2; its folder or hub name; "none"
teacher_share: float = 0.5  # of the loss that is the teacher's; 0.05 in the release

# %% [markdown]
# ## The land
#
# Every sensor gets its own chips, in its own native numbers: reflectance times 10,000, digital numbers, 8-bit grey,
# radar power. Land-cover classes come in turn, so that rare ones are not drowned. The test chips lie in other spatial
# blocks than the training chips: no place is in both.

# %%
out_dir = output_folder(out, "04_train_clay")
side = {s: chip_size if SENSORS[s].gsd < 100 else crop for s in sensors}  # a MODIS chip of 64 pixels is 32 km wide
land = {s: world_chips(s, chips, split="train", size=side[s], seed=seed, dates=2) for s in sensors}
unseen = {s: world_chips(s, test_chips, split="test", size=crop, seed=seed) for s in sensors}
for s, c in land.items():
    print(f"{s:<16} {len(c)} chips {c.pixels.shape[1:]} {c.pixels.dtype}, {c.pixels.nbytes / 1e6:.0f} MB")

# %%
pictures = [figures.rgb(land[s].pixels[3], s) for s in sensors]
titles = [f"{s}\n{SENSORS[s].gsd:g} m" for s in sensors]
fig = figures.show_row(
    pictures, titles, gsd=[SENSORS[s].gsd for s in sensors], columns=4, title="One chip of each sensor"
)
# %% [markdown]
# ## A teacher
#
# Clay learns from two sides: from the hidden part of the image itself, and from a frozen **teacher** that looks at red,
# green and blue and says in one vector what kind of image it is. The release asks DINOv2, a large network that has seen
# 142 million photographs. It has to be fetched, and is slow. So here the teacher is 47 numbers computed by hand-made
# rules: colours, contrast, how rough the image is at three scales and whether it has a direction. They know texture,
# and nothing of land. A folder or hub name of DINOv2 in `teacher` puts the real one in its place.

# %%
if teacher == "textures":
    guide, note = texture_teacher(), "textures: statistics of colour and texture, nothing learned"
elif teacher == "stand-in":
    guide, note = stand_in_teacher(), "stand-in: DINOv2's architecture, random weights, no knowledge of images"
elif teacher == "none":
    guide, note = None, "none: the loss is reconstruction alone"
else:
    guide, note = load_teacher(teacher), f"DINOv2: {teacher}"
judge = guide or stand_in_teacher()
print(f"teacher {note}; it answers with {judge.dim} numbers")

# %% [markdown]
# ## The first weights
#
# The kernels that meet the pixels are written by a small network (01). Left to chance, its kernels are noise, so faint
# that a patch hardly moves its token, and nearly the same for blue, green and red: a small model spends its first
# thousands of steps on getting out of that. `clay_lib.model` instead *solves* for that network's last layer, by least
# squares over the wavelengths of all known sensors, so that it writes kernels we choose: waves of all directions and
# lengths (a cosine basis, as in JPEG), some alike in all bands, others of one sign in some bands and of the other in
# the rest. No shape changes, and training moves all of it.

# %%
config = ClayConfig.named(size, patch_size=patch_size, teacher_dim=judge.dim, frequencies=ladder, mask_ratio=mask_ratio)
first_weights = {"by chance": Clay.random(config, seed=seed), "a cosine basis": cosine_initialized(config, seed)}
s2, P = SENSORS["sentinel-2-l2a"], config.patch_size
bands = ["blue", "green", "red", "nir", "swir22"]
kernels, alike = {}, {}
for name, clay in first_weights.items():
    written, _ = clay.model.encoder.patch_embedding.kernels(torch.from_numpy(s2.waves()))
    kernels[name] = written.detach()[:, s2.indices(bands)]  # [D, C, P, P]
    red, green = (kernels[name][:, bands.index(band)].flatten() for band in ("red", "green"))
    alike[name] = F.cosine_similarity(red, green, dim=0).item()
    print(f"{name:<15} red with green: cosine {alike[name]:.3f}; spread of weights {red.std():.4f}")
assert alike["a cosine basis"] < alike["by chance"] - 0.05, "the basis tells red from green better than chance does"

# %%
chosen = [0, 1, 2, 4, 9, 10, 11, 13, 22, 24, 30, 36]  # of the basis: flat ones, waves, waves that differ by band
with figures.styled():
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 2.5))
    for ax, (name, written) in zip(axes, kernels.items(), strict=True):
        shown = written[chosen] / written[chosen].abs().amax((1, 2, 3), True)
        sheet = F.pad(shown, (1, 1, 1, 1), value=float("nan")).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
        ax.imshow(sheet, cmap="PuOr", vmin=-1, vmax=1)
        ax.set_xticks([])
        ax.set_yticks((np.arange(len(bands)) + 0.5) * (P + 2), bands)
        ax.spines[:].set_visible(False)
        ax.set_title(f"Kernels born as {name}" if "basis" in name else f"Kernels born {name}")
_ = figures.save(fig, out_dir / "0_kernels.png")
# %% [markdown]
# Each column is one kernel, each row a band, every column in its own scale.
#
# ## The two losses, by hand
#
# Clay hides most of the patches, rebuilds all of them, and is judged on the hidden ones: the mean absolute error of each
# hidden patch, averaged. The second loss asks the projected class token to point where the teacher's vector points: one
# minus their cosine. The release weighs them 95 to 5.

# %%
plan = next(iter(SensorBatches({sensors[0]: chips}, batch_size=8, seed=seed)))
batch = PlannedBatches(land, augment=False, crop=crop)[plan]
torch.manual_seed(seed)
newborn = first_weights["a cosine basis"].model
output = newborn(batch.cube)

# %%
hidden = output.encoded.mask.bool()  # [B, L]
target = patchify(batch.cube.pixels, P)  # [B, L, C*P*P]
by_hand = (output.reconstruction - target)[hidden].abs().mean(dim=-1).mean()
library = reconstruction_loss(output.reconstruction, batch.cube.pixels, output.encoded.mask, patch_size=P)
torch.testing.assert_close(by_hand, library)

a = output.representation
b = judge(teacher_view(batch.cube.pixels, SENSORS[batch.sensor]))
cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
torch.testing.assert_close(1 - cosine.mean(), representation_loss(a, b))
print(f"untrained: reconstruction {library.item():.3f}, representation {representation_loss(a, b).item():.3f}")

# %% [markdown]
# ## The learning rate
#
# The release asks for a cosine with warm restarts whose minimum lies *above* its start: 100 times 1e-5. Inside a cycle
# the rate therefore rises from 1e-5 to 1e-3, and at each restart it falls back. That suits weeks on many GPUs. For a
# few minutes we warm up shortly and come down once.
#
# For the same reason the teacher weighs more here than in the release, three fifths of the patches are hidden instead of
# three quarters, the position code takes a proper ladder of frequencies (02 shows why), and no bands are taken from the
# input; the release drops all of them in 10 % and half in 20 % of the samples of known place.


# %%
def rates(settings, steps):
    """The learning rate at every step."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
    stepper, values = schedule(optimizer, settings), []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        stepper.step()
    return pd.DataFrame({"step": range(steps), "learning rate": values})


# %%
release = TrainSettings()
short = TrainSettings(
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
both = {"release, 1e-5 to 1e-3 and back": rates(release, 7000), "here": rates(short, max_steps)}
fig = figures.curves(both, "step", "learning rate", title="Learning rate by optimiser step")
# %% [markdown]
# ## Training
#
# Batches hold one sensor each and the sensors take turns. Flips and quarter turns stretch the data; a fifth of the
# samples lose their place and date, so that the model also works without them. While it trains we keep what it makes
# of the same unseen chips, with the same patches hidden each time.

# %%
data = ClayDataModule(land, unseen, batch_size=batch_size, crop=crop, seed=seed)
watched = PlannedBatches(unseen, augment=False)[next(iter(SensorBatches({sensors[0]: 4}, batch_size=4, shuffle=False)))]
moments = sorted({0, max_steps // 20, max_steps // 4, max_steps})
snapshots = Snapshots(watched, moments, seed=seed)
trained = train(
    config,
    short,
    data,
    out=out_dir,
    teacher=guide,
    start=(Clay.load(start) if start else first_weights["a cosine basis"]).model,
    log_every=max(1, min(20, max_steps // 10)),
    check_val_every_n_epoch=max(1, max_steps // data.batches_per_epoch() // 5),
    callbacks=(snapshots,),
)
clay = Clay(trained.model)
clay.save(CACHE / weights)
print(f"{max_steps} steps of {batch_size} chips; weights in data/cache/{weights}")

# %% [markdown]
# ## What the losses did
#
# The reconstruction error is in standard deviations of each sensor's published statistics, so the curves may be
# compared only with themselves: a sensor with little contrast has a low curve.

# %%
history = trained.history  # rows of training, and now and then one of validation on unseen land
smooth = history[["step", *(f"train/{s}" for s in sensors)]].set_index("step").groupby("step").mean()
smooth = smooth.interpolate().rolling(5, min_periods=1).mean().rename(columns=lambda c: c.removeprefix("train/"))
fig = figures.curves(
    smooth.reset_index(),
    "step",
    list(smooth.columns),
    ylabel="masked error (standard deviations)",
    title="Reconstruction error while training, by sensor",
    log=True,
)
# %%
if guide:
    asked = ["train/representation", "val/representation"]
    told = history[["step", *asked]].rename(columns=dict(zip(asked, ("trained on", "unseen land"), strict=True)))
    fig = figures.curves(
        told,
        "step",
        ["trained on", "unseen land"],
        ylabel="1 - cosine to the teacher",
        title=f"Representation loss (teacher {note.split(':')[0]})",
    )

# %% [markdown]
# ## From noise to shapes
#
# Four chips of unseen land. What the encoder saw stands on the left; then the same, completed by the model at four
# moments. (Of the patches that it saw it paints something too, which nobody asked for and the loss never looks at.) The
# last but one column is `clay-mini`, the weights that the later notebooks use: the same network after 18,000 steps.

# %%
height = watched.cube.pixels.shape[-1]
layout = {"grid": (height // P, height // P), "patch_size": P, "size": (height, height)}
truth = watched.cube.pixels
hidden = snapshots.mask.bool()[:, :, None]  # [B, L, 1]
patches = patchify(truth, P)
seen = unpatchify(patches.masked_fill(hidden, float("nan")), **layout)
painted, trained_longer = [snapshots.taken[m] for m in moments], []
if (config.patch_size, config.mask_ratio) == (8, 0.6):  # as clay-mini was trained: the same patches are hidden from it
    with torch.inference_mode():
        longer = Clay.load("clay-mini.safetensors").model(watched.cube, noise=1 - snapshots.mask)
    assert torch.equal(longer.encoded.mask, snapshots.mask)
    painted, trained_longer = [*painted, longer.reconstruction], ["clay-mini"]
rows = []
for k in range(4):
    guesses = [unpatchify(torch.where(hidden, guess, patches), **layout)[k] for guess in painted]
    rows += [figures.rgb(x, sensors[0], like=truth[k], normalized=True) for x in (seen[k], *guesses, truth[k])]
names = ["what it saw", *(f"step {m}" for m in moments), *trained_longer, "truth"]
fig = figures.show_row(rows, names, columns=len(names), size=1.5, gsd=SENSORS[sensors[0]].gsd)
_ = figures.save(fig, out_dir / "1_from_noise_to_shapes.png")


# %%
def follows(guess):
    """Correlation of the hidden patches' means with the truth, over all bands of all chips, each chip less its mean."""
    means = [x.unflatten(2, (-1, P * P)).mean(3) for x in (guess, patches)]  # [B, L, C]
    masked = [x.masked_fill(~hidden, float("nan")) for x in means]
    deviations = [(x - x.nanmean(1, keepdim=True))[hidden[:, :, 0]] for x in masked]
    return float(torch.corrcoef(torch.stack([d.flatten() for d in deviations]))[0, 1])


shapes = {name: follows(guess) for name, guess in zip(names[1:-1], painted, strict=True)}
print(
    "how far light and dark within a chip follow the truth:",
    *(f"{name} {r:.2f}" for name, r in shapes.items()),
    sep="\n",
)

# %% [markdown]
# A few hundred steps find each chip's brightness and something of its colour: one flat tone. Where a chip is lighter and
# where darker, and along which line, comes late, and no loss curve shows it as plainly as the pictures do.
#
# ## Is it any good?
#
# The plainest guess for a hidden pixel is the mean of the visible ones in that band. We compare errors on unseen land,
# band by band. A ratio of 1 means nothing was learned; half means half the error.

# %%
scores = pd.concat(reconstruction_scores(clay, unseen[s], mask_ratio=scored_ratio, seed=seed) for s in sensors)
summary = scores.groupby("sensor", sort=False)[["error", "mean_error"]].mean()
summary["ratio"] = summary["error"] / summary["mean_error"]
summary["worst band"] = scores.groupby("sensor", sort=False)["ratio"].max()
summary.round(3)

# %%
bars = [{"name": s, "value": r.ratio, "low": r.ratio, "high": r.ratio, "kind": "Clay"} for s, r in summary.iterrows()]
bars.append({"name": "visible mean", "value": 1.0, "low": 1.0, "high": 1.0, "kind": "baseline"})
fig = figures.bars_with_intervals(
    pd.DataFrame(bars), label="masked error, as a share of the visible mean's", title="Error on land never trained on"
)
_ = figures.save(fig, out_dir / "2_error.png")
# %%
newborn = reconstruction_scores(
    cosine_initialized(config, seed), unseen[sensors[0]], mask_ratio=scored_ratio, seed=seed
)
assert summary["error"].iloc[0] < newborn["error"].mean(), "it rebuilds unseen land better than before its training"

# %% [markdown]
# And one number for later. Rebuilding is not what Clay is for: its embeddings are to know land. So each unseen chip of
# the first sensor asks its five nearest training chips what land cover it is (07 does this with care).

# %%
corner = np.s_[..., :crop, :crop]
asked = land[sensors[0]]
asked = replace(asked, pixels=asked.pixels[corner], labels=asked.labels[corner])
vectors = [embed_chips(clay, part)["patch mean"] for part in (asked, unseen[sensors[0]])]
train_x, test_x = probes.standardize(*vectors)
knn = probes.knn_score(train_x, asked.land_cover, test_x, unseen[sensors[0]].land_cover, k=5)
chance = 1 / len(np.unique(asked.land_cover))
print(
    f"land cover of {len(test_x)} unseen chips by their five nearest of {len(train_x)}: {knn:.0%}; chance {chance:.0%}"
)

# %%
likeness = 1 - history["val/representation"].dropna().iloc[-1] if guide else None
write_metrics(
    out_dir,
    {
        "steps": max_steps,
        "samples": max_steps * batch_size,
        "final loss": float(history["train/loss"].dropna().tail(5).mean()),
        "teacher": note.split(":")[0],
        "cosine to the teacher on unseen land": None if likeness is None else round(float(likeness), 3),
        "error ratio": round(float(summary["ratio"].mean()), 4),
        "kNN-5": round(knn, 4),
        "error as a share of the visible mean's": {s: round(float(r), 3) for s, r in summary["ratio"].items()},
    },
)

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/04_train_clay.ipynb) have a notebook of their own, with empty
# places, hints and checks; it trains nothing and needs no data.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the error of what was hidden
# *Easy, 5 minutes*
#
# Write the first loss of Clay: the absolute error of each hidden patch, averaged over its numbers, then averaged over
# all hidden patches of the batch. In the mask, 1 stands for hidden.
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
# ### Exercise 2: agreeing with a teacher
# *Easy, 5 minutes*
#
# Write the second loss: one minus the cosine between what the student says of a chip and what the teacher says of it,
# averaged over the batch.
#
# **Hint.** The cosine is the dot product over D, divided by both lengths: one number a chip.


# %% tags=["solution"]
def disagreement(student, teacher):
    """student, teacher [B, D] -> 1 - cosine, the mean over the batch."""
    cosine = (student * teacher).sum(-1) / (student.norm(dim=-1) * teacher.norm(dim=-1))
    return 1 - cosine.mean()


# %% tags=["check"]
checks.check_agreement(disagreement)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: up, then down
# *Medium, 10 minutes*
#
# Write the learning rate of this notebook. It rises in a straight line: step 0 has `peak / (warmup + 1)`, step 1 twice as
# much, and so on; at step `warmup` it is at the peak. From there it comes down by half a cosine, and would be 0 at step
# `steps`. Steps count from 0.
#
# **Hint.** While `step < warmup`: `peak * (step + 1) / (warmup + 1)`.
#
# **Hint.** Half a cosine: `0.5 + 0.5 * math.cos(math.pi * done)`, where `done` goes from 0 at the end of the warm-up to 1.


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
# ## What was seen

# %%
best, worst = summary["ratio"].idxmin(), summary["ratio"].idxmax()
print(f"""- Clay's loss is two lines: an absolute error over hidden patches, and a cosine to a teacher.
- After {max_steps} steps of {batch_size} chips a hidden pixel of {best} is off by {summary["ratio"][best]:.2f} of what the visible
  mean would be, one of {worst} by {summary["ratio"][worst]:.2f}. Beyond 1 the mean is still the better guess.
- On land never trained on its class token points where the teacher points: cosine {"not asked" if likeness is None else f"{likeness:.2f}"}.""")

# %% [markdown]
# The release trained 100 epochs on 70 million chips; this took minutes, and learned how bright a place is and little more.
# The weights carry their own configuration: `Clay.load` needs nothing else. The notebooks that follow start from
# `clay-mini.safetensors`, shipped in `data/weights`: the same network, trained fifteen times longer on more chips, with
# more of the teacher and with shifted colours, by `clay train --config data/weights/clay-mini.yaml`. Put the name of yours
# into their parameter `weights` to compare.
#
# Next: [05 Maps of reconstructions](05_map_reconstructions.ipynb).
