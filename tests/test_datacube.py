"""Codes of time and place, and impossible datacubes."""

import datetime as dt
import math

import numpy as np
import pandas as pd
import pytest
import torch

from clay_lib import ContractError, Datacube
from clay_lib.datacube import latlon_code, make_datacube, time_code


def test_time_by_hand():
    w, h = 2 * math.pi * 23 / 52, 2 * math.pi * 10 / 24  # 10 June 2023 lies in ISO week 23
    expected = torch.tensor([math.sin(w), math.cos(w), math.sin(h), math.cos(h)])
    for when in ("2023-06-10T10:30", dt.datetime(2023, 6, 10, 10, 59), np.datetime64("2023-06-10T10:30").item()):
        torch.testing.assert_close(time_code(when)[0], expected)
    noon = time_code("2023-06-10")[0]
    torch.testing.assert_close(noon[2:], torch.tensor([math.sin(math.pi), math.cos(math.pi)]))
    assert torch.equal(time_code(dt.date(2023, 6, 10))[0], noon)


def test_place_by_hand_and_unknown_as_zeros():
    code = latlon_code(-30.0, 60.0)[0]
    torch.testing.assert_close(code, torch.tensor([-0.5, math.sqrt(0.75), math.sqrt(0.75), 0.5]))
    assert torch.equal(latlon_code(None, None, 2), torch.zeros(2, 4))
    assert torch.equal(time_code(None), torch.zeros(1, 4))
    mixed = latlon_code([1.0, None], [2.0, None], 2)
    assert mixed[0].abs().sum() > 0 and mixed[1].abs().sum() == 0


def test_as_trained_reading_swaps_the_place_and_fixes_noon():
    documented, as_trained = (latlon_code(10.0, 20.0, reading=r)[0] for r in ("documented", "as_trained"))
    assert torch.equal(documented[[2, 3, 0, 1]], as_trained)
    a, b = (time_code("2023-06-10T06:00", reading=r)[0] for r in ("documented", "as_trained"))
    assert torch.equal(a[:2], b[:2]) and b[3] == pytest.approx(-1)


def test_holes_become_the_bands_mean_and_integers_are_accepted():
    pixels = np.full((4, 8, 8), 100.0)
    pixels[0, 0, 0] = np.nan
    cube = make_datacube(pixels, "naip")
    assert cube.pixels[0, 0, 0, 0] == 0 and cube.pixels.isfinite().all() and len(cube) == 1
    as_bytes = make_datacube(np.full((4, 8, 8), 100, np.uint8), "naip").pixels
    torch.testing.assert_close(as_bytes[0, 1], cube.pixels[0, 1])
    torch.testing.assert_close(make_datacube(torch.full((4, 8, 8), 100, dtype=torch.bfloat16), "naip").pixels, as_bytes)


def test_columns_of_every_kind():
    days = ["2023-06-10T10:30", "2021-03-01T00:00", "2020-01-05T23:00"]
    expected, nanoseconds = time_code(days, 3), np.array(days, "datetime64[ns]")
    for column in (nanoseconds, pd.Series(days), pd.to_datetime(days), pd.Series(nanoseconds), list(nanoseconds)):
        torch.testing.assert_close(time_code(column, 3), expected)
    place = latlon_code([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], 3)
    for kind in (np.array, torch.tensor, pd.Series, tuple):
        assert torch.equal(latlon_code(kind([1.0, 2.0, 3.0]), kind([4.0, 5.0, 6.0]), 3), place)
    assert torch.equal(time_code(dt.datetime(2023, 6, 10, 10), 1), time_code(np.datetime64("2023-06-10T10"), 1))
    for gsd in (np.array([20.0]), np.array(20)):
        assert make_datacube(np.ones((4, 8, 8)), "naip", gsd=gsd).gsd == 20


GOOD = {"pixels": torch.zeros(2, 3, 8, 8), "time": torch.zeros(2, 4), "latlon": torch.zeros(2, 4), "gsd": 10.0}
GOOD["waves"] = torch.tensor([0.49, 0.56, 0.66])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pixels": torch.zeros(3, 8, 8)}, "pixels"),
        ({"pixels": torch.zeros(2, 3, 8, 8, dtype=torch.int16)}, "pixels"),
        ({"pixels": np.zeros((2, 3, 8, 8))}, "pixels"),
        ({"waves": torch.tensor([0.49, 0.56])}, "waves"),
        ({"waves": torch.tensor([490.0, 560.0, 660.0])}, "waves"),
        ({"time": torch.zeros(2, 2)}, "time"),
        ({"latlon": torch.zeros(1, 4)}, "latlon"),
        ({"gsd": torch.tensor([10.0, 10.0])}, "gsd"),
        ({"gsd": 0}, "gsd"),
        ({"gsd": "10 m"}, "gsd"),
    ],
)
def test_impossible_cubes_are_refused(change, field):
    Datacube(**GOOD)
    with pytest.raises(ContractError) as caught:
        Datacube(**(GOOD | change))
    assert caught.value.field == field


def test_other_time_zones_are_converted_to_utc():
    tokyo = dt.datetime(2023, 6, 10, 10, 30, tzinfo=dt.timezone(dt.timedelta(hours=9)))
    same = [time_code(when) for when in ("2023-06-10T01:30", "2023-06-10T01:30Z", "2023-06-10T10:30+09:00", tokyo)]
    assert all(torch.equal(code, same[0]) for code in same) and not torch.equal(same[0], time_code("2023-06-10T10:30"))
