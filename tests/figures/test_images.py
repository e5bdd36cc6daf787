"""Figures of images: a reconstruction shows what was seen, scale bars are true, thumbnails never overlap."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from clay_lib import figures
from clay_lib.figures.images import round_length
from clay_lib.figures.style import MISSING

RNG = np.random.default_rng(0)


def test_reconstruction_shows_visible_patches_unchanged():
    original = RNG.gamma(4, 300, (10, 32, 32)).astype(np.float32)
    mask = np.kron(RNG.random((4, 4)) < 0.5, np.ones((8, 8), bool))
    fig = figures.reconstruction(original, mask, original + 100, sensor="sentinel-2-l2a", gsd=10, scores={"MAE": 0.5})
    first, seen, pasted, error = (np.asarray(ax.images[0].get_array()) for ax in fig.axes[:4])
    assert (seen[mask] == MISSING).all() and (seen[~mask] == first[~mask]).all()
    assert (pasted[~mask] == first[~mask]).all() and pasted[mask].mean() > first[mask].mean()
    assert (np.ma.getmaskarray(fig.axes[3].images[0].get_array()) == ~mask).all()
    assert error[mask] == pytest.approx(100, abs=1e-3)
    assert "native numbers" in fig.axes[4].get_ylabel() and "MAE 0.5" in fig.get_suptitle()


def test_scale_bar_has_its_stated_length():
    for width, meters in ((2240, 500), (40, 10), (118_600, 20_000), (300, 50)):
        assert round_length(width) == meters
    ax = figures.show_row([np.zeros((10, 224, 3))], ["a"], gsd=10).axes[0]
    assert np.diff(ax.lines[0].get_xdata())[0] * 2240 == pytest.approx(500) and ax.texts[0].get_text() == "500 m"


def test_thumbnails_never_overlap_and_keep_their_class():
    count = 200
    xy, labels = RNG.normal(size=(count, 2)), np.array(["a", "b"])[(RNG.random(count) < 0.5).astype(int)]
    shades = {"a": 0.2, "b": 0.8}
    fig = figures.scatter_thumbnails(xy, [np.full((4, 4, 3), shades[k]) for k in labels], labels, across=8)
    ax, colors = fig.axes[0], figures.class_colors(["a", "b"])
    assert 10 < len(ax.images) <= 64
    boxes = np.array([p.get_bbox().extents for p in ax.patches])  # x0, y0, x1, y1
    for i, box in enumerate(boxes):
        apart = (boxes[:, 2:] <= box[:2]).any(axis=1) | (boxes[:, :2] >= box[2:]).any(axis=1)
        assert apart.sum() == len(boxes) - 1 and not apart[i]
    for frame, image in zip(ax.patches, ax.images, strict=True):
        name = "a" if image.get_array().max() < 0.5 else "b"
        assert frame.get_facecolor() == to_rgba(colors[name])
