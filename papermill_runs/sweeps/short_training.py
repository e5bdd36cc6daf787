# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A short training
#
# The notebook of a sweep: a very small Clay learns to reconstruct one sensor's chips of the synthetic Earth, alone,
# without a teacher. On unseen land it is scored by its reconstruction and by what its embeddings know of land cover.
# Under a minute on one thread.

# %%
from clay_lib import Clay, ClayConfig
from clay_lib.clay import cosine_initialized, embed_chips, reconstruction_scores
from clay_lib.data.chips import world_chips
from clay_lib.datamodule import ClayDataModule
from clay_lib.evaluation import probes
from clay_lib.runs import output_folder, report_metric, write_metrics
from clay_lib.training import TrainSettings, train

# %% tags=["parameters"]
seed: int = 0  # of the initial weights, the order of chips and the masks
out: str = ""  # folder for results; empty: papermill_runs/lab/short_training
sensor: str = "sentinel-2-l2a"
patch_size: int = 8  # pixels a side
mask_ratio: float = 0.75  # share of the patches that is hidden in training
scored_ratio: float = 0.75  # the same for the score at the end
steps: int = 300
batch_size: int = 64
lr: float = 3e-3  # the peak of the schedule
chips: int = 704  # of 64 x 64 pixels, to train on
test_chips: int = 220  # on land that was not trained on

# %%
out_dir = output_folder(out, "short_training")
land = world_chips(sensor, chips, split="train", size=64, dates=2)  # one world for all seeds
unseen = world_chips(sensor, test_chips, split="test", size=64)
config = ClayConfig(
    dim=96, depth=3, heads=3, dim_head=32, mlp_ratio=2, decoder_dim=64, decoder_depth=1, decoder_heads=2,
    decoder_dim_head=32, decoder_mlp_ratio=2, patch_size=patch_size, frequencies="geometric", mask_ratio=mask_ratio,
)  # fmt: skip
settings = TrainSettings(
    lr=lr, schedule="one_cycle", warmup_steps=steps // 20, max_steps=steps, reconstruction_weight=1.0,
    representation_weight=0.0, clip_gradient=1.0, drop_all_bands=0.0, drop_half_bands=0.0, seed=seed,
)  # fmt: skip
data = ClayDataModule({sensor: land}, {sensor: unseen}, batch_size=batch_size, seed=seed)
first = cosine_initialized(config, seed).model
watch = report_metric("val/loss")  # ten times on the way: a search stops trainings that lag behind
trained = train(config, settings, data, out=out_dir, start=first, val_every=max(1, steps // 10), callbacks=[watch])

clay = Clay(trained.model)

# %%
scores = reconstruction_scores(clay, unseen, mask_ratio=scored_ratio, seed=seed)
train_x, test_x = probes.standardize(*(embed_chips(clay, part)["patch mean"] for part in (land, unseen)))
knn = probes.knn_score(train_x, land.land_cover, test_x, unseen.land_cover, k=5)
ratio = float(scores["error"].mean() / scores["mean_error"].mean())
print(f"hidden pixels: {ratio:.2f} of the visible mean's error; land cover by five neighbours: {knn:.0%}")
assert 0 < ratio < 10

# %%
write_metrics(out_dir, {"error ratio": round(ratio, 4), "kNN-5": round(float(knn), 4)})
