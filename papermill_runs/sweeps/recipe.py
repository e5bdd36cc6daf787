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
# # A recipe for clay-mini
#
# The notebook of a sweep: clay-mini learns some hundred steps more from a store of chips with targets of a teacher, and
# is scored on folds of the *training* images of UC Merced, and by its reconstruction of validation land. Test images and
# test land are not read.

# %%
import numpy as np

from clay_lib import Clay, ClayConfig
from clay_lib.data.store import ChipStore
from clay_lib.data.targets import TargetCache
from clay_lib.datamodule import ClayDataModule
from clay_lib.evaluation import probes, transfer
from clay_lib.evaluation.evaluate import embed_features
from clay_lib.evaluation.reconstruction import reconstruction_table
from clay_lib.files import DATA
from clay_lib.runs import output_folder, write_metrics
from clay_lib.training import TrainSettings, train

# %% tags=["parameters"]
seed: int = 0  # of the order of chips and the masks
out: str = ""  # folder for results; empty: papermill_runs/lab/recipe
store: str = "papermill_runs/mini-128-store"  # chips and their targets, see data/weights/clay-mini.yaml
images: str = "../shared/realdata/ucmerced"  # CLASS/NAME + NUMBER.jpg
first_test: int = 66  # number of the first test image, which is not read
source: str = "all"  # or "land": the synthetic Earth alone, without crops of photographs and drawn views
representation_weight: float = 0.8
mask_ratio: float = 0.6
steps: int = 500
lr: float = 6e-4  # the peak of the schedule

# %%
out_dir = output_folder(out, "recipe")
root = DATA.parent  # of the repository
chips = {}
for sensor in ("naip", "linz", "sentinel-2-l2a", "sentinel-1-rtc", "landsat-c2l1", "landsat-c2l2-sr", "modis"):
    part = ChipStore.open(root / store).sensor(sensor, split="train", labels=False)
    chips[sensor] = part[np.isfinite(part.lat)] if source == "land" else part
config = ClayConfig.named("tiny", frequencies="geometric", mask_ratio=mask_ratio, teacher_dim=111)
settings = TrainSettings(
    lr=lr, schedule="one_cycle", warmup_steps=steps // 20, max_steps=steps, reconstruction_weight=0.8,
    representation_weight=representation_weight, patch_weight=0.3, clip_gradient=1.0, drop_all_bands=0.0,
    drop_half_bands=0.0, seed=seed,
)  # fmt: skip
repeats = {"naip": 4, "linz": 3, "sentinel-2-l2a": 3, "sentinel-1-rtc": 2}
data = ClayDataModule(
    chips, {}, batch_size=16, seed=seed, targets=TargetCache(str(root / store)), unknown_share=0.4, shifted_share=0.15,
    repeats=repeats,
)  # fmt: skip
trained = train(config, settings, data, out=out_dir, start=Clay.load("clay-mini").model, precision="auto")
clay = Clay(trained.model)

# %%
pictures = transfer.read_images(root / images, 128)
known = pictures.numbers < first_test
pixels, labels, numbers = pictures.pixels[known], pictures.labels[known], pictures.numbers[known]
features = embed_features(clay, pixels, sensor="naip", bands=["red", "green", "blue"], gsd=0.6, check=False)
tokens = features["class token"]
folds = np.digitize(numbers, np.quantile(numbers, [0.25, 0.5, 0.75]))  # quarters of neighbors
hits = {}
for fold in range(4):
    held_out = folds == fold
    split = {"class token": (tokens[~held_out], tokens[held_out])}
    table = probes.predict(split, labels[~held_out], labels[held_out], train_groups=numbers[~held_out])
    for probe, rows in table.groupby("probe"):
        hits.setdefault(probe, []).extend(rows["prediction"] == rows["label"])
scores = {probe: round(float(np.mean(values)), 4) for probe, values in hits.items()}
measures = reconstruction_table(
    clay, sensors=["naip", "sentinel-2-l2a"], sizes=[64], split="val", seeds=2, bootstraps=1
)
measures = measures[measures["method"] == "model"].pivot_table(index="measure", values="value").to_dict()["value"]
scores |= {name: round(float(measures[name]), 4) for name in ("error", "means", "detail")}
print(scores)
assert 0 < scores["error"] < 10

# %%
write_metrics(out_dir, scores)
