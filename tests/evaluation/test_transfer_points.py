"""Labelled pixels: chips around them, and groups that share no pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clay_lib import Clay, ClayConfig, ContractError
from clay_lib.evaluation.transfer import cut_points, probe_points, read_points

REAL = Path(__file__).resolve().parents[3] / "shared" / "realdata" / "landsat-sr"
TINY = ClayConfig(32, 1, 2, 16, 2, 16, 1, 2, 8, 2, teacher_dim=8)


def planted():
    """Nine clumps of 3 x 3 labelled pixels, 20 pixels apart, of two classes that one band tells."""
    labels = np.zeros((64, 64), np.uint8)
    for k in range(9):
        row, column = 8 + 20 * (k // 3), 8 + 20 * (k % 3)
        labels[row : row + 3, column : column + 3] = 1 + k % 2
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 5, (3, 64, 64)) + 60 * (np.arange(3) == 1)[:, None, None] * (labels == 2)
    return pixels, labels


def test_chips_hold_their_pixel_in_the_middle_and_groups_share_nothing():
    pixels, labels = planted()
    chips, y, groups = cut_points(pixels, labels, 8)
    assert chips.shape == (81, 3, 8, 8) and len(set(groups)) == 9
    row, column = np.argwhere(labels)[40]
    np.testing.assert_array_equal(chips[40], pixels[:, row - 4 : row + 4, column - 4 : column + 4])
    assert y[40] == labels[row, column]
    assert len(set(cut_points(pixels, labels, 17)[2])) == 9 and np.ptp(np.argwhere(labels)[:, 0]) == 42
    with pytest.raises(ContractError, match="2 places"):
        cut_points(pixels, labels, 24)  # chips of neighbouring clumps now overlap, all in one chain
    pixels[:, 8, 8] = np.nan
    assert set(cut_points(pixels, labels, 8)[2]) < set(groups) or len(cut_points(pixels, labels, 8)[0]) < 81


def test_the_pixel_alone_is_a_floor():
    pixels, labels = planted()
    clay = Clay.random(TINY, seed=0)
    told = probe_points(clay, pixels, labels, sensor="naip", bands=["red", "green", "blue"], seeds=1, bootstraps=20)
    table = told.table.set_index(["split", "features", "probe"])
    assert table.loc[("blocks", "pixel alone", "kNN-5"), "score"] == 1.0
    assert table.loc[("blocks", "pixel alone", "kNN-5"), "kind"] == "floor" and (table["metric"] == "balanced").all()


@pytest.mark.skipif(not REAL.is_dir(), reason="the real Landsat scene is not part of the repository")
def test_the_real_scene_is_read_with_its_place_and_date():
    bands = ["blue", "green", "red", "nir08", "swir16", "swir22", None, None]
    scene, labels = (REAL / f"LE70220491999322EDC01_{end}.tif" for end in ("stack", "labels"))
    reading = dict(bands=bands, scale=1e-4 / 0.0000275, offset=0.2 / 0.0000275, when="1999-11-18")
    pixels, classes, about = read_points(scene, labels, "landsat-c2l2-sr", **reading)
    assert abs(about["lat"] - 15.72) < 0.01 and about["bands"] == bands[:6]
    chips, y, groups = cut_points(pixels, classes)
    assert len(y) == 710 and len(set(groups)) == 27 and (classes > 0).sum() == 718 and 7273 < chips.mean() < 20000
