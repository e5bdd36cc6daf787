"""Aerial views, drawn."""

import numpy as np
import pytest
from PIL import Image

from clay_lib import ContractError
from clay_lib.data.aerial import KINDS, aerial, aerial_view
from clay_lib.data.drawing import METER, SIZE, View
from clay_lib.data.photographs import PhotographMaker


def test_a_kind_and_a_seed_give_the_same_view():
    views = [np.asarray(aerial_view("sports", seed)) for seed in (0, 0, 1)]
    assert views[0].shape == (SIZE, SIZE, 3) and views[0].dtype == np.uint8
    assert (views[0] == views[1]).all() and np.abs(views[0].astype(int) - views[2]).mean() > 10


def test_a_misspelled_kind_raises():
    with pytest.raises(ContractError, match="suburb"):
        aerial_view("suburbs")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_colors_edges_and_detail(kind):
    pixels = np.asarray(aerial_view(kind), float)
    edges = np.abs(np.diff(pixels.mean(-1), axis=0))
    assert 30 < pixels.mean() < 200 and pixels.std() > 8 and edges.mean() > 1


def test_shadows_fall_away_from_the_sun_and_may_lie_outside():
    view = View(np.random.default_rng(0))
    view.image = Image.new("RGB", (SIZE, SIZE), (200, 200, 200))
    corners = np.array([(500, 500), (540, 500), (540, 540), (500, 540)], float)
    view.shade([(corners, 10 * METER)])
    y, x = np.nonzero(np.asarray(view.image)[..., 0] < 120)
    toward = (np.array([x.mean(), y.mean()]) - 520) @ view.away
    assert toward > 3  # pixels, of the shadow's center beyond the thing's
    before = np.asarray(view.image).copy()
    view.shade([(corners - 5000, 10 * METER)])
    assert (np.asarray(view.image) == before).all()


def test_the_command_writes_images_for_photograph_makers_and_keeps_those_that_exist(tmp_path, monkeypatch):
    monkeypatch.setattr("clay_lib.data.aerial.KINDS", {kind: KINDS[kind] for kind in ("water", "sports")})
    aerial(str(tmp_path), 1)
    first = tmp_path / "sports-000.png"
    written = first.stat().st_mtime_ns
    aerial(str(tmp_path), 2)
    assert len(list(tmp_path.glob("*.png"))) == 4 and first.stat().st_mtime_ns == written
    chips = PhotographMaker("naip", 3, folder=str(tmp_path)).part(range(3))().chips
    assert chips.pixels.shape == (3, 4, 64, 64)


@pytest.mark.parametrize("options", [dict(count=0), dict(count=-1), dict(seed=-1)])
def test_no_views_and_negative_seeds_are_refused(tmp_path, options):
    with pytest.raises(ContractError, match="count, seed"):
        aerial(str(tmp_path), **options)
