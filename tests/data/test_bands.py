"""Which band of a source is which band of a sensor."""

import numpy as np
import pytest

from clay_lib import SENSORS, ContractError
from clay_lib.data.bands import match_bands, missing_pixels

S2, S1, LINZ, L2 = (SENSORS[name] for name in ("sentinel-2-l2a", "sentinel-1-rtc", "linz", "landsat-c2l2-sr"))
TEN = dict(zip(S2.band_names, range(10), strict=True))


@pytest.mark.parametrize(
    "labels, sensor, bands, expected",
    [
        ([""] * 10, S2, None, TEN),
        ([""] * 12, S2, None, dict(zip(TEN, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11], strict=True))),  # without B10
        ([""] * 13, S2, None, dict(zip(TEN, [1, 2, 3, 4, 5, 6, 7, 8, 11, 12], strict=True))),
        (["B8A", "B11", "B04", "SCL"], S2, None, {"red": 2, "nir08": 0, "swir16": 1}),
        (["nir08", "SWIR16", "red", "cloud"], S2, None, {"red": 2, "nir08": 0, "swir16": 1}),
        (["B8A", "B11", "B04", "SCL"], S2, ["swir16", "red"], {"swir16": 1, "red": 2}),  # by label, in this order
        (["Red Edge 1", "red_edge_2"], S2, None, {"rededge1": 0, "rededge2": 1}),
        (["VH", "VV"], S1, None, {"vv": 1, "vh": 0}),
        ([""] * 4, LINZ, ["blue", "green", "red", None], {"blue": 0, "green": 1, "red": 2}),
        ([""] * 4, LINZ, {"red": 4, "blue": np.int64(1)}, {"red": 3, "blue": 0}),
        ([f"SR_B{n}" for n in (2, 3, 4, 5, 6, 7)], L2, None, {"red": 2, "green": 1, "blue": 0, "nir08": 3, "swir16": 4, "swir22": 5}),
    ],
)  # fmt: skip
def test_bands_by_label_layout_or_request(labels, sensor, bands, expected):
    matched = match_bands(labels, sensor, bands, "scene.tif")
    assert matched == expected and (
        bands is not None or list(matched) == [n for n in sensor.band_names if n in matched]
    )


@pytest.mark.parametrize("name", ["LE07_SR.tif", "data/LT05_2010.tif", "le7.tif"])
def test_numbers_of_older_landsats(name):
    assert match_bands([f"B{n}" for n in (1, 2, 3, 4, 5, 7)], L2, None, name)["blue"] == 0


@pytest.mark.parametrize(
    "labels, sensor, bands, message",
    [
        ([""] * 2, S2, None, "2 bands without descriptions in scene.tif"),
        (["B02", "blue"], S2, None, "all read as .'blue'."),
        ([""] * 3, LINZ, ["red", "green"], "found 2 names: .*; expected 3"),
        ([""] * 3, LINZ, ["red", "green", "nir"], "unknown name 'nir'"),
        ([""] * 2, LINZ, {"red": 3}, r"bands\['red'\]: found 3; expected a band number from 1 to 2"),
        ([""] * 2, LINZ, {"rot": 1}, "unknown name 'rot'"),
        ([""] * 2, LINZ, "red", "found 1 name: .'red'."),
    ],
)
def test_unclear_bands_are_refused(labels, sensor, bands, message):
    with pytest.raises(ContractError, match=message):
        match_bands(labels, sensor, bands, "scene.tif")


def test_fill_values_that_could_be_measured_count_only_in_all_bands():
    pixels = np.array([[[255, 255, 7]], [[255, 9, 8]]], np.uint8)
    assert missing_pixels(pixels, [255, 255], LINZ).tolist() == [[[True, False, False]]] * 2
    assert missing_pixels(pixels, [7, None], LINZ).tolist() == [[[False, False, True]], [[False] * 3]]
    assert missing_pixels(pixels.astype(float) * [[[np.nan]], [[1]]], [None] * 2, LINZ).sum() == 3
    assert missing_pixels(np.full((7, 1, 1), 32767), [None] * 7, SENSORS["modis"]).all()
