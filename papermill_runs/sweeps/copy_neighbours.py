# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Copying the neighbor
#
# A synthetic land of one band, as smooth as real land: its power falls with the cube of the frequency. Patches are
# hidden, each is filled with the nearest visible one, and the error is given in standard deviations of the land.
# It takes seconds and no torch: the example with which sweeps are shown and tested.

# %% tags=["parameters"]
seed: int = 0  # of the land and of the hidden patches
out: str = ""  # folder for results
hidden: float = 0.75  # share of patches
patch: int = 8  # pixels a side
side: int = 192  # pixels of the land, a multiple of patch

# %%
import json
from pathlib import Path

import numpy as np

rng = np.random.default_rng(seed)
frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
amplitude = np.where(frequency > 0, np.maximum(frequency, 1e-9) ** -1.5, 0)
land = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * amplitude).real
land = (land - land.mean()) / land.std()

# %%
assert side % patch == 0 and 0 < hidden < 1, "whole patches, some of them hidden"
n = side // patch
patches = land.reshape(n, patch, n, patch).swapaxes(1, 2).reshape(n * n, -1)
order = rng.permutation(n * n)
away, there = order[: int(hidden * n * n)], order[int(hidden * n * n) :]
place = np.stack(np.divmod(np.arange(n * n), n), axis=1)
distance = np.hypot(*(place[away][:, None] - place[there][None]).transpose(2, 0, 1))
error = np.abs(patches[there[distance.argmin(axis=1)]] - patches[away]).mean()
print(f"{len(away)} of {n * n} patches hidden; error {error:.3f} standard deviations")

# %%
metrics = {"error": float(error), "touching": float((distance.min(axis=1) < 1.5).mean())}
Path(out, "metrics.json").write_text(json.dumps(metrics))
