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
# # A head on frozen patch tokens
#
# The notebook of a search: a network of one hidden layer tells the land cover of a patch from its frozen embedding. It
# is trained on some places of the synthetic Earth, its parameters are chosen by the log loss on others, and it is
# tested on a third part. Written in NumPy, so that a run takes seconds.

# %%
import hashlib

import numpy as np

import clay_lib
from clay_lib.files import CACHE, atomic_write, find_weights
from clay_lib.runs import output_folder, report, write_metrics

# %% tags=["parameters"]
seed: int = 0  # of the first weights, the order of patches, dropout and noise
out: str = ""  # folder for results; empty: papermill_runs/lab/patch_head
weights: str = "clay-mini"
sensor: str = "sentinel-2-l2a"
chips: int = 440  # of 64 x 64 pixels, to train on; a quarter as many to choose on, and to test on
epochs: int = 20
batch: int = 256  # patches
lr: float = 1e-3  # of AdamW, constant
decay: float = 0.01  # of the weights
dropout: float = 0.1  # share of the hidden layer
noise: float = 0.0  # added to the embeddings in training, in standard deviations
smoothing: float = 0.0  # share of the label that is spread over all classes
width: int = 64  # of the hidden layer

# %% [markdown]
# The embeddings are the same in all runs: the first one computes and keeps them. A patch has the class of most of its
# pixels.

# %%
out_dir = output_folder(out, "patch_head")
version = hashlib.sha256(find_weights(weights).read_bytes()).hexdigest()[:8]
file = CACHE / f"patch_head-{version}-{sensor}-{chips}.npz"
if not file.is_file():
    clay, kept = clay_lib.Clay.load(weights, precision="exact"), {}
    for split, count in {"train": chips, "val": chips // 4, "test": chips // 4}.items():
        part = clay_lib.data.world_chips(sensor, count, split=split, size=64)
        tokens = clay.embed(part.pixels, sensor, **part.place_and_time).patches.numpy()  # [N, h, w, D]
        n, h, w, d = tokens.shape
        pixels = part.labels.reshape(n, h, 64 // h, w, 64 // w).swapaxes(2, 3).reshape(n * h * w, -1)
        counts = np.stack([(pixels == code).sum(1) for code in range(256)], axis=1)
        kept |= {f"{split} x": tokens.reshape(-1, d), f"{split} y": counts.argmax(1)}
    atomic_write(file, lambda path: np.savez(open(path, "wb"), **kept))
kept = dict(np.load(file))
mean, std = kept["train x"].mean(0), kept["train x"].std(0)
x = {split: (kept[f"{split} x"] - mean) / std for split in ("train", "val", "test")}  # [M, D]
codes = np.unique(kept["train y"])
y = {split: np.searchsorted(codes, kept[f"{split} y"]) for split in x}
print({split: part.shape for split, part in x.items()}, len(codes), "classes")

# %% [markdown]
# Forward and backward by hand. Dropout and noise act in training alone.

# %%
rng = np.random.default_rng(seed)
D, K = x["train"].shape[1], len(codes)
P = {"u": rng.normal(0, D**-0.5, (D, width)), "a": np.zeros(width)}
P |= {"v": rng.normal(0, width**-0.5, (width, K)), "b": np.zeros(K)}
P = {name: value.astype("f4") for name, value in P.items()}
first, second = ({name: np.zeros_like(value) for name, value in P.items()} for _ in range(2))  # moments of AdamW


def probabilities(hidden):
    """[M, width] -> [M, K]."""
    logits = hidden @ P["v"] + P["b"]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def score(split):
    """Log loss in nats, and accuracy."""
    p = probabilities(np.maximum(x[split] @ P["u"] + P["a"], 0))
    return float(-np.log(p[np.arange(len(p)), y[split]] + 1e-12).mean()), float((p.argmax(1) == y[split]).mean())


def gradients(inputs, labels):
    """Of the mean log loss of a batch."""
    inputs = inputs + np.float32(noise) * rng.standard_normal(inputs.shape, np.float32)
    kept = (rng.random((len(inputs), width), np.float32) >= dropout) / np.float32(1 - dropout)
    hidden = np.maximum(inputs @ P["u"] + P["a"], 0) * kept
    error = probabilities(hidden) - np.float32(smoothing / K)
    error[np.arange(len(error)), labels] -= 1 - smoothing
    error /= len(error)
    back = (error @ P["v"].T) * kept * (hidden > 0)
    return {"u": inputs.T @ back, "a": back.sum(0), "v": hidden.T @ error, "b": error.sum(0)}


step = 0
for epoch in range(1, epochs + 1):
    order = rng.permutation(len(x["train"]))
    for rows in order[: len(order) // batch * batch].reshape(-1, batch):
        step += 1
        for name, g in gradients(x["train"][rows], y["train"][rows]).items():
            first[name] += 0.1 * (g - first[name])
            second[name] += 0.01 * (g * g - second[name])
            root = np.sqrt(second[name] / (1 - 0.99**step)) + 1e-8
            shrink = lr * decay if name in "uv" else 0.0
            P[name] -= np.float32(lr / (1 - 0.9**step)) * first[name] / root + np.float32(shrink) * P[name]
    report(epoch, score("val")[0])  # a search stops trainings that lag behind

# %%
(loss, accuracy), (test_loss, test_accuracy) = score("val"), score("test")
print(f"log loss {loss:.4f}, accuracy {accuracy:.1%}; at the test places {test_loss:.4f}, {test_accuracy:.1%}")
metrics = {"log loss": loss, "accuracy": accuracy, "test log loss": test_loss, "test accuracy": test_accuracy}
write_metrics(out_dir, metrics)
