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
# - a tiny Clay trained on chips of a synthetic Earth, each batch from one sensor;
# - reconstructions of land it never saw growing sharper, and what they are worth beside a simple guess.
#
# Builds on 01 to 03. About 5 minutes on two CPU cores; a GPU is used where there is one (not yet timed there).
# Data: chips of the mini-world, made here and kept in `data/cache`.

# %%
import pandas as pd
import torch

from clay_lib import SENSORS, Clay, ClayConfig, ClayMAE, plots
from clay_lib.chips import CACHE, DATA, world_chips
from clay_lib.datamodule import ClayDataModule, PlannedBatches, SensorBatches
from clay_lib.embed import reconstruction_scores
from clay_lib.encoder import image_of, patches_of
from clay_lib.loss import reconstruction_loss, representation_loss
from clay_lib.runner import output_folder, write_metrics
from clay_lib.teacher import load_teacher, stand_in_teacher, teacher_view
from clay_lib.training import Snapshots, TrainSettings, schedule, train

# %% tags=["parameters"]
seed: int = 0
out: str = ""  # folder for results; empty: papermill_runs/lab/04_train_clay
weights: str = "mini.safetensors"  # written to data/cache at the end
start: str = "mini.safetensors"  # weights to go on from, shipped in data; empty: from scratch
size: str = "tiny"  # tiny, small, base or large
sensors: list = ["sentinel-2-l2a", "landsat-c2l1", "landsat-c2l2-sr", "naip", "linz", "modis", "sentinel-1-rtc"]
chips: int = 176  # of each sensor, to train on
chip_size: int = 128  # pixels, as made
crop: int = 64  # pixels, as trained on: a random window of each chip
test_chips: int = 110  # of each sensor, on land never trained on
batch_size: int = 32
max_steps: int = 800
lr: float = 3e-4  # the peak of a short schedule
ladder: str = "geometric"  # frequencies of the position code; "released" as in the published weights
teacher: str = "stand-in"  # a folder or hub name with DINOv2 weights; "stand-in": random weights; "none"

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
pictures = [plots.rgb(land[s].pixels[3], s) for s in sensors]
titles = [f"{s}\n{SENSORS[s].gsd:g} m" for s in sensors]
fig = plots.show_row(
    pictures, titles, gsd=[SENSORS[s].gsd for s in sensors], columns=4, title="One chip of each sensor"
)
# %% [markdown]
# ## The two losses, by hand
#
# Clay hides three quarters of the patches, rebuilds all of them, and is judged on the hidden ones: the mean absolute
# error of each hidden patch, averaged. That is 95 % of its loss. The other 5 % ask the projected class token to point
# where a frozen teacher's class token points: one minus their cosine.

# %%
torch.manual_seed(seed)
plan = next(iter(SensorBatches({sensors[0]: chips}, batch_size=8, seed=seed)))
batch = PlannedBatches(land, augment=False, crop=crop)[plan]
P = 8
stand_in = stand_in_teacher()
untrained = ClayMAE(ClayConfig.named("tiny", teacher_dim=stand_in.dim))
output = untrained(batch.cube)

# %%
hidden = output.encoded.mask.bool()  # [B, L]
target = patches_of(batch.cube.pixels, P)  # [B, L, C*P*P]
by_hand = (output.reconstruction - target)[hidden].abs().mean(dim=-1).mean()
library = reconstruction_loss(output.reconstruction, batch.cube.pixels, output.encoded.mask, patch_size=P)
torch.testing.assert_close(by_hand, library)

a = output.representation
b = stand_in(teacher_view(batch.cube.pixels, SENSORS[batch.sensor]))
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
# Three more things make minutes count, each a setting. The pixel head is born with outputs far smaller than its
# targets, so it learns at a higher rate; the patch embedding is born at the right scale and learns at a lower one.
# The position code takes a proper ladder of frequencies (notebook 02 shows why). And fewer samples lose bands on the
# way in: the release drops all of them in 10 % and half in 20 % of the samples of known place.


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
    embedding_lr_factor=0.1,
    head_lr_factor=20.0,
    schedule="one_cycle",
    warmup_steps=max_steps // 20,
    max_steps=max_steps,
    clip_gradient=1.0,
    drop_all_bands=0.0,
    drop_half_bands=0.1,
    seed=seed,
)
both = {"release, 1e-5 to 1e-3 and back": rates(release, 7000), "here": rates(short, max_steps)}
fig = plots.curves(both, "step", "learning rate", title="Learning rate by optimiser step")
# %% [markdown]
# ## Training
#
# Batches hold one sensor each and the sensors take turns. Flips and quarter turns stretch the data; a fifth of the
# samples lose their place and date, so that the model also works without them; and some samples of known place lose
# half of their bands on the way in, never in the target.

# %%
if teacher == "stand-in":
    guide, note = stand_in, "stand-in teacher: DINOv2's architecture, random weights, no knowledge of images"
elif teacher == "none":
    guide, note = None, "no teacher: the loss is reconstruction alone"
else:
    guide = load_teacher(teacher)
    note = f"teacher: {teacher}"
print(note)
config = ClayConfig.named(size, teacher_dim=guide.dim if guide else 64, ladder=ladder)
data = ClayDataModule(land, unseen, batch_size=batch_size, crop=crop, seed=seed)

# %% [markdown]
# Training from nothing takes this tiny model some 20 minutes to get anywhere. So we go on from `data/mini.safetensors`,
# which this same notebook made from scratch (profile `pretrain`); with `start` empty it begins from nothing. While it
# trains we keep what it makes of the same unseen chips, with the same patches hidden each time.

# %%
watched = PlannedBatches(unseen, augment=False)[next(iter(SensorBatches({sensors[0]: 4}, batch_size=4, shuffle=False)))]
moments = sorted({0, max_steps // 20, max_steps // 4, max_steps})
snapshots = Snapshots(watched, moments, seed=seed)
trained = train(
    config,
    short,
    data,
    out=out_dir,
    teacher=guide,
    start=Clay.load(DATA / start) if start else None,
    log_every=max(1, min(20, max_steps // 10)),
    check_val_every_n_epoch=max(1, max_steps // len(data.train_dataloader()) // 5),
    callbacks=(snapshots,),
)
trained.clay.save(CACHE / weights)
print(f"{max_steps} steps of {batch_size} chips; weights in data/cache/{weights}")

# %% [markdown]
# ## What the losses did
#
# The reconstruction error is in standard deviations of each sensor's published statistics, so the curves may be
# compared only with themselves: a sensor with little contrast has a low curve.

# %%
history = trained.history
smooth = history[["step", *(f"train/{s}" for s in sensors)]].set_index("step").groupby("step").mean()
smooth = smooth.interpolate().rolling(5, min_periods=1).mean().rename(columns=lambda c: c.removeprefix("train/"))
fig = plots.curves(
    smooth.reset_index(),
    "step",
    list(smooth.columns),
    ylabel="masked error (standard deviations)",
    title="Reconstruction error while training, by sensor",
    log=True,
)
# %%
if guide:
    fig = plots.curves(
        history,
        "step",
        "train/representation",
        ylabel="1 - cosine to the teacher",
        title=f"Representation loss ({note.split(':')[0]})",
    )

# %% [markdown]
# ## Sharper and sharper
#
# Four chips of unseen land. What the encoder saw stands on the left; then the model's idea of the whole at four moments.

# %%
height = watched.cube.pixels.shape[-1]
layout = {"grid": (height // P, height // P), "patch_size": P, "size": (height, height)}
truth = watched.cube.pixels
seen = image_of(patches_of(truth, P).masked_fill(snapshots.mask.bool()[:, :, None], float("nan")), **layout)
rows = []
for k in range(4):
    guesses = [image_of(snapshots.taken[m], **layout)[k] for m in moments]
    rows += [plots.rgb(x, sensors[0], like=truth[k], normalised=True) for x in (seen[k], *guesses, truth[k])]
names = ["what it saw", *(f"step {m}" for m in moments), "truth"]
fig = plots.show_row(rows, names, columns=len(names), size=1.6, gsd=SENSORS[sensors[0]].gsd)
_ = plots.save(fig, out_dir / "1_sharper.png")
# %% [markdown]
# ## Is it any good?
#
# The plainest guess for a hidden pixel is the mean of the visible ones in that band. We compare errors on unseen land,
# band by band. A ratio of 1 means nothing was learned; half means half the error.

# %%
scores = pd.concat(reconstruction_scores(trained.clay, unseen[s], seed=seed) for s in sensors)
summary = scores.groupby("sensor", sort=False)[["error", "mean_error"]].mean()
summary["ratio"] = summary["error"] / summary["mean_error"]
summary["worst band"] = scores.groupby("sensor", sort=False)["ratio"].max()
summary.round(3)

# %%
bars = [{"name": s, "value": r.ratio, "low": r.ratio, "high": r.ratio, "kind": "Clay"} for s, r in summary.iterrows()]
bars.append({"name": "visible mean", "value": 1.0, "low": 1.0, "high": 1.0, "kind": "floor"})
fig = plots.bars_with_intervals(
    pd.DataFrame(bars), label="masked error, as a share of the visible mean's", title="Error on land never trained on"
)
_ = plots.save(fig, out_dir / "2_error.png")
# %%
baseline = reconstruction_scores(Clay(untrained), unseen[sensors[0]], seed=seed)["error"].mean()
assert summary["error"].iloc[0] < baseline, "it rebuilds unseen land better than the network that was never trained"
write_metrics(
    out_dir,
    {
        "steps": max_steps,
        "samples": max_steps * batch_size,
        "final loss": float(history["train/loss"].dropna().tail(20).mean()),
        "teacher": note.split(":")[0],
        "error as a share of the visible mean's": {s: round(float(r), 3) for s, r in summary["ratio"].items()},
    },
)

# %% [markdown]
# ## What was seen
#
# - Clay's loss is two lines: an absolute error over hidden patches, and a cosine to a teacher.
# - One small network and another sensor at every step: it learns how bright a place is and where its large shapes lie
#   first; which colour it has comes late, because neighbouring wavelengths start with nearly the same kernels (01).
# - Where a bar above ends beyond 1, the mean of the visible pixels is still the better guess. The release trained 100
#   epochs on 70 million chips; this took minutes.
# - The weights are in `data/cache`, where the next notebooks find them, and carry their own configuration: `Clay.load` needs nothing else.
#
# Next: [05 Maps of reconstructions](05_map_reconstructions.ipynb).
