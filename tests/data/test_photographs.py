"""Crops of photographs and dead leaves as chips."""

import numpy as np
import pytest
from PIL import Image

from clay_lib import ContractError
from clay_lib.data.photographs import PhotographMaker, change_colors, photographs
from clay_lib.data.store import ChipStore, write_chips
from clay_lib.sensors import SENSORS


def test_chips_depend_on_their_number_alone_and_hold_structure():
    maker = PhotographMaker("naip", 24, size=32)
    complete, part = maker.part(range(24))(), PhotographMaker("naip", 99, size=32).part(range(5, 9))()
    assert complete.chips.hashes[5:9].tolist() == part.chips.hashes.tolist()
    assert complete.chips.pixels.shape == (24, 4, 32, 32) and complete.chips.pixels.dtype == np.uint8
    assert np.isnan(complete.chips.lat).all() and set(complete.chips.when) == {""}
    normalized = SENSORS["naip"].normalize(complete.chips.pixels)
    assert np.median(normalized.std((2, 3))) > 0.4 and abs(normalized.mean()) < 1
    assert PhotographMaker("linz", 24, size=32).part(range(1))().chips.pixels.shape == (1, 3, 32, 32)


def test_crops_come_from_the_photographs(tmp_path):
    red = np.zeros((90, 120, 3), np.uint8)
    red[..., 0] = np.arange(120) * 2
    Image.fromarray(red).save(tmp_path / "red.png")
    maker = PhotographMaker("linz", 8, size=16, folder=str(tmp_path))
    assert maker.recipe != PhotographMaker("linz", 8, size=16).recipe and len(photographs(str(tmp_path))) == 1
    write_chips(tmp_path / "store", [maker], jobs=1)
    chips = ChipStore.open(tmp_path / "store").sensor("linz", split="train")
    assert len(chips) == 8 and chips[:].hashes.tolist() == maker.part(range(8))().chips.hashes.tolist()


def test_without_turned_hue_gray_stays_gray():
    gray = np.repeat(np.linspace(0.1, 0.9, 64).reshape(8, 8, 1), 3, axis=2)
    changed = change_colors(gray, np.random.default_rng(0))
    np.testing.assert_allclose(changed, changed[..., :1].repeat(3, -1), atol=1e-6)
    assert (np.diff(changed[..., 0].ravel()) > 0).all()  # brighter stays brighter


def test_other_sensors_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ContractError, match="naip or linz"):
        PhotographMaker("sentinel-2-l2a", 4)
    with pytest.raises(ContractError, match="no image"):
        photographs(str(tmp_path))
