"""Charts: values are printed, baselines are gray, labels do not overlap, signed numbers are centered."""

import numpy as np
import pandas as pd
import pytest
import torch

from clay_lib import figures
from clay_lib.errors import ContractError


@pytest.mark.parametrize("log", [False, True])
def test_curves_skip_gaps_and_keep_labels_apart(log):
    frame = pd.DataFrame({"step": range(10), "train": np.linspace(1, 0.1, 10), "val": [1.0, *[np.nan] * 8, 0.1001]})
    frames = {"small": frame, "large": frame}
    ax = figures.curves(frames, "step", ["train", "val"], log=log, baselines={"mean": 0.1}).axes[0]
    assert len(ax.lines[1].get_xdata()) == 2
    heights = sorted(t.xy[1] for t in ax.texts)
    assert {t.get_text() for t in ax.texts} == {"mean", "large", "small"} and min(np.diff(heights)) >= 0.05
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["train", "val"]
    with pytest.raises(ContractError, match="never logged"):
        figures.curves(frame, "step", "loss")


def test_signed_numbers_are_centered():
    weights = torch.randn(12, 3, 8, 8, requires_grad=True) + 1
    image = figures.kernels(weights, band_names=["red", "green", "blue"], chosen=[2, 0]).axes[0].images[0]
    first = weights[2, 0].detach().numpy() / weights[2].abs().max().item()
    np.testing.assert_allclose(image.get_array()[:8, :8], first, rtol=1e-6)
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    image = figures.matrix([[0.5, -0.2]], signed=True, label="difference").axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-0.5, 0.5)
