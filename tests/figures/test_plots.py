"""Pictures: colours carry the right pixels, a reconstruction pastes what was seen, reruns are byte-identical."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

matplotlib.use("Agg")

from clay_lib.errors import ContractError  # noqa: E402
from clay_lib.figures import images  # noqa: E402
from clay_lib.figures.style import FLOOR  # noqa: E402
from clay_lib.sensors import SENSORS, to_decibel  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def sentinel_2(size=32):
    return RNG.gamma(4, 300, (10, size, size)).astype(np.float32)


def test_rgb_takes_red_green_blue_whatever_their_order():
    pixels = sentinel_2()
    whole = images.rgb(pixels, "sentinel-2-l2a")
    assert whole.shape == (32, 32, 3) and whole.min() == 0 and whole.max() == 1
    names = ["green", "nir", "red", "blue"]
    chosen = pixels[SENSORS["sentinel-2-l2a"].indices(names)]
    np.testing.assert_allclose(images.rgb(chosen, "sentinel-2-l2a", names), whole)
    red = images.rgb(np.stack([np.full((4, 4), v) for v in (255, 0, 0, 90)]), "naip", stretch=None)
    assert red[0, 0].tolist() == [1, 0, 0]


def test_rgb_of_native_and_normalised_numbers_agree():
    for name in SENSORS:
        sensor = SENSORS[name]
        pixels = RNG.gamma(4, 0.02 if sensor.decibel else 30, (len(sensor.bands), 16, 16)).astype(np.float32)
        native = images.rgb(pixels, sensor)
        np.testing.assert_allclose(images.rgb(sensor.normalize(pixels), sensor, normalised=True), native, atol=2e-4)
        if sensor.decibel:
            np.testing.assert_allclose(images.rgb(to_decibel(pixels), sensor), native, atol=1e-5)  # seen by the sign


def test_like_lends_its_stretch():
    pixels = sentinel_2()
    brighter = images.rgb(pixels + 500, "sentinel-2-l2a", like=pixels)
    assert brighter.mean() > images.rgb(pixels, "sentinel-2-l2a").mean() + 0.1
    np.testing.assert_allclose(
        images.rgb(pixels + 500, "sentinel-2-l2a"), images.rgb(pixels, "sentinel-2-l2a"), atol=1e-5
    )


def test_missing_pixels_are_grey_and_do_not_stretch():
    pixels = sentinel_2()
    expected = images.rgb(pixels[:, 1:], "sentinel-2-l2a")
    holes = pixels.copy()
    holes[:, 0, :16], holes[:, 0, 16:] = np.nan, 32767
    valid = np.ones((32, 32), bool)
    valid[0, 16:] = False
    picture = images.rgb(holes, "sentinel-2-l2a", valid=valid)
    assert (picture[0] == images.MISSING).all()
    np.testing.assert_allclose(picture[1:], expected)


def panels(fig):
    return [np.asarray(ax.images[0].get_array()) for ax in fig.axes[:4]]


@pytest.mark.parametrize("form", ["pixels", "patches", "nan"])
def test_reconstruction_pastes_what_was_seen(form):
    original = sentinel_2()
    patches = RNG.random((4, 4)) < 0.5
    mask = np.kron(patches, np.ones((8, 8), bool))
    given = {"pixels": mask, "patches": patches, "nan": np.where(mask, np.nan, original)}[form]
    fig = images.reconstruction(original, given, original + 100, sensor="sentinel-2-l2a", gsd=10, scores={"MAE": 0.5})
    first, seen, pasted, error = panels(fig)
    assert (seen[mask] == images.MISSING).all() and (seen[~mask] == first[~mask]).all()
    assert (pasted[~mask] == first[~mask]).all() and pasted[mask].mean() > first[mask].mean()
    known = np.asarray(np.ma.getmaskarray(fig.axes[3].images[0].get_array()))
    assert (known == ~mask).all() and error[mask] == pytest.approx(100, abs=1e-3)
    assert "native numbers" in fig.axes[4].get_ylabel() and "MAE 0.5" in fig.get_suptitle()


def test_scale_bar_is_as_long_as_it_says():
    for width, metres in ((2240, 500), (40, 10), (118_600, 20_000), (300, 50)):
        assert images.nice_length(width) == metres
    fig = images.show_row([np.zeros((10, 224, 3))], ["a"], gsd=10)
    bar = fig.axes[0].lines[0]
    assert np.diff(bar.get_xdata())[0] * 2240 == pytest.approx(500) and fig.axes[0].texts[0].get_text() == "500 m"


def test_land_cover_legend_names_only_what_is_there():
    labels = np.array([[1, 1, 1, 2], [1, 1, 1, 9]])
    fig = images.land_cover(labels, {1: "water", 2: "trees", 3: "crops"}, {1: "#0072B2", 2: "#009E73", 3: "#E69F00"})
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ["water  75%", "trees  12%"]
    picture = fig.axes[0].images[0].get_array()
    assert picture[0, 0].tolist() == list(to_rgba("#0072B2")[:3]) and (picture[1, 3] == images.MISSING).all()


def test_thumbnails_never_overlap_and_keep_their_class():
    count = 200
    xy, labels = RNG.normal(size=(count, 2)), np.array(["a", "b"])[(RNG.random(count) < 0.5).astype(int)]
    shades = {"a": 0.2, "b": 0.8}
    fig = images.scatter_thumbnails(xy, [np.full((4, 4, 3), shades[k]) for k in labels], labels, across=8)
    ax, colours = fig.axes[0], images.class_colours(["a", "b"])
    assert 10 < len(ax.images) <= 64
    boxes = np.array(
        [[p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()] for p in ax.patches]
    )
    for i, one in enumerate(boxes):
        apart = (boxes[:, 2:] <= one[:2]).any(axis=1) | (boxes[:, :2] >= one[2:]).any(axis=1)
        assert apart.sum() == len(boxes) - 1 and not apart[i]
    for frame, image in zip(ax.patches, ax.images, strict=True):
        name = "a" if image.get_array().max() < 0.5 else "b"
        assert frame.get_facecolor() == to_rgba(colours[name])


def test_bars_print_values_and_grey_the_floors():
    table = pd.DataFrame(
        {
            "name": ["pixels", "clay"],
            "value": [0.3, 0.8],
            "low": [0.25, 0.7],
            "high": [0.35, 0.9],
            "kind": ["baseline", "ours"],
        }
    )
    ax = images.bars_with_intervals(table, label="accuracy").axes[0]
    assert [b.get_width() for b in ax.patches] == [0.3, 0.8]
    assert ax.patches[0].get_facecolor() == to_rgba(FLOOR) != ax.patches[1].get_facecolor()
    assert [t.get_text() for t in ax.texts] == ["0.30", "0.80"] and all(
        t.get_position()[0] > v for t, v in zip(ax.texts, table["high"], strict=True)
    )


@pytest.mark.parametrize("log", [False, True])
def test_curves_drop_gaps_and_keep_names_apart(log):
    frame = pd.DataFrame({"step": range(10), "train": np.linspace(1, 0.1, 10), "val": [1.0, *[np.nan] * 8, 0.1001]})
    fig = images.curves({"small": frame, "large": frame}, "step", ["train", "val"], log=log, floors={"mean": 0.1})
    ax = fig.axes[0]
    assert len(ax.lines[1].get_xdata()) == 2
    heights = sorted(t.xy[1] for t in ax.texts)
    assert {t.get_text() for t in ax.texts} == {"mean", "large", "small"} and min(np.diff(heights)) >= 0.05
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["train", "val"]
    with pytest.raises(ContractError, match="never logged"):
        images.curves(frame, "step", "loss")


def test_signed_numbers_are_centred():
    torch = pytest.importorskip("torch", reason="torch tensors are accepted where torch is installed")
    weights = torch.randn(12, 3, 8, 8, requires_grad=True) + 1
    shown = images.kernels(weights, band_names=["red", "green", "blue"], count=5).axes[0].images[0]
    assert shown.norm.vmin == -shown.norm.vmax
    image = images.matrix([[0.5, -0.2]], signed=True, label="difference").axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-0.5, 0.5)


def test_saved_twice_is_the_same_file(tmp_path):
    files = [
        images.save(images.matrix(np.eye(4), form="{:.1f}"), tmp_path / "deep" / name).read_bytes()
        for name in ("a.png", "b.png")
    ]
    assert files[0] == files[1] and b"Software" not in files[0]


def test_a_figure_leaves_the_global_style_alone():
    before = dict(matplotlib.rcParams)
    images.scatter(RNG.normal(size=(10, 2)), ["a"] * 10)
    assert dict(matplotlib.rcParams) == before


def test_wrong_shapes_say_why():
    with pytest.raises(ContractError, match="batch axis"):
        images.rgb(np.zeros((2, 10, 8, 8)), "sentinel-2-l2a")
    with pytest.raises(ContractError, match="10"):
        images.rgb(np.zeros((3, 8, 8)), "sentinel-2-l2a")
    with pytest.raises(ContractError, match="cropped"):
        images.reconstruction(np.zeros((3, 10, 10)), np.ones((2, 2)), np.zeros((3, 16, 16)), sensor="linz", gsd=None)
