"""Ablation: exactly one kind of metadata, or one part of the image, is removed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clay_lib import Clay, ClayConfig, ContractError
from clay_lib.evaluation.ablation import (
    RULES,
    SETTINGS,
    WRONG_GSD,
    cloud,
    cosine_change,
    removal_study,
    scattered,
    withhold,
    without,
)

P = 4
CLAY = Clay.random(ClayConfig(32, 2, 2, 16, 2, 16, 1, 2, 8, 2, patch_size=P, teacher_dim=8), seed=3)


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).uniform(200, 4000, (2, 10, 16, 16)).astype(np.float32)
    return dict(pixels=pixels, sensor="sentinel-2-l2a", when="2023-06-10T10:30", lat=-3.4, lon=34.1)


# -- metadata switched off -------------------------------------------------------------------------------------------


def test_only_the_named_metadata_change(image):
    cube = CLAY.cube(**image)
    fields = {"wavelengths": "waves", "gsd": "gsd", "place": "latlon", "time": "time"}
    for off in SETTINGS:
        less = without(cube, off)
        for setting, name in fields.items():
            same = torch.equal(torch.as_tensor(getattr(less, name)), torch.as_tensor(getattr(cube, name)))
            assert same == (off not in (setting, "all"))
        assert torch.equal(less.pixels, cube.pixels)
    assert without(cube, "wavelengths").waves.std() == 0 and without(cube, "gsd").gsd == cube.gsd * WRONG_GSD
    with pytest.raises(ContractError, match="off"):
        without(cube, "color")


def test_place_and_time_off_equal_unknown(image):
    for off, unknown in {"place": {"lat": None, "lon": None}, "time": {"when": None}}.items():
        a, b = withhold(CLAY, off).embed(**image), CLAY.embed(**(image | unknown))
        torch.testing.assert_close(a.patches, b.patches)
        assert not torch.equal(a.chip, CLAY.embed(**image).chip)


def test_bands_of_one_wavelength_are_exchangeable(image):
    """They share one kernel, so that their order does not matter; with their own wavelengths it does."""
    order = np.random.default_rng(0).permutation(10)
    for clay, exchangeable in ((withhold(CLAY, "wavelengths"), True), (CLAY, False)):
        cube = clay.cube(**image)
        shuffled = cube.with_pixels(cube.pixels[:, order])
        a, b = (clay.model.encoder(c, mask_ratio=0.0, shuffle=False).tokens for c in (cube, shuffled))
        assert torch.allclose(a, b, atol=1e-4) == exchangeable


def test_cosine_change_by_hand():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(200, 64)) + 0.5, np.arange(200) // 2
    same = cosine_change(x, 3 * x, groups=groups, bootstraps=50)
    assert same[["cosine", "low", "high"]].tolist() == pytest.approx([1.0, 1.0, 1.0])
    shuffled = cosine_change(x, x[rng.permutation(200)], groups=groups, bootstraps=200)
    assert shuffled["low"] < shuffled["unrelated"] < shuffled["high"]
    y = rng.normal(size=(200, 64)) + 0.5
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    by_hand = (a @ b.T)[~np.eye(200, dtype=bool)].mean()
    assert cosine_change(x, y, groups=groups, bootstraps=50)["unrelated"] == pytest.approx(by_hand)


# -- parts of the image removed --------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(h=st.integers(1, 12), w=st.integers(1, 12), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_removed_cells_are_the_requested_share_and_a_cloud_is_connected(h, w, share, seed):
    from scipy.ndimage import label

    rng = np.random.default_rng(seed)
    connected, single = cloud(h, w, share, rng), scattered(h, w, share, rng)
    assert connected.sum() == single.sum() == round(share * h * w)
    assert label(connected)[1] == min(1, connected.sum())


@pytest.mark.filterwarnings("ignore:chips")  # where no complete patch is left, which is NaN here
def test_removal_study_equals_filling_by_hand():
    pixels = np.random.default_rng(0).uniform(20, 240, (2, 3, 17, 22)).astype(np.float32)  # cropped to 16 x 20
    options = dict(when="2023-06-10", shares=[0.25, 0.75], draws=2, seed=1)
    table = removal_study(CLAY, pixels, "linz", **options)
    assert len(table) == 2 * 2 * 2 * 2 * 3 and table[["class_token", "patch_mean"]].max().max() <= 1 + 1e-6
    assert table.equals(removal_study(CLAY, pixels, "linz", **options))

    complete = pixels[:, :, :16, :20]
    removed = np.kron(cloud(4, 5, 0.25, np.random.default_rng([1, 0, 1, 250])), np.ones((P, P), bool))
    mean = np.array([89.96, 99.46, 89.51], np.float32)[:, None, None]  # LINZ, red green blue
    rows = table[(table["shape"] == "cloud") & (table["share"] == 0.25) & (table["draw"] == 0)]
    rows, metadata = rows.set_index(["rule", "chip"]), dict(sensor="linz", when="2023-06-10", check=False)
    full = CLAY.embed(complete, **metadata).chip
    for rule, fill in zip(RULES, (np.nan, 1e-6, mean), strict=True):  # a zero in every band would be a hole to `embed`
        cosines = torch.cosine_similarity(CLAY.embed(np.where(removed, fill, complete), **metadata).chip, full)
        assert rows.loc[rule, "class_token"].tolist() == pytest.approx(cosines.tolist(), abs=1e-5)
    assert not np.allclose(rows.loc["zero", "class_token"], rows.loc["left out", "class_token"], atol=1e-3)
