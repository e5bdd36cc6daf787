"""Which band of a source is which band of a sensor."""

import warnings

import numpy as np
import pytest
import xarray as xr

from clay_lib import SENSORS, ContractError
from clay_lib.data import bands
from clay_lib.data.bands import header_date, match_bands, missing_pixels
from clay_lib.data.check import inspect_image
from clay_lib.data.images import open_image
from clay_lib.data.rasters import write_raster
from clay_lib.data.scenes import read_scene

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


# ---- band names as people have them ----


@pytest.mark.parametrize(
    "labels, sensor, expected",
    [
        ([f"Band {n}" for n in range(1, 11)], S2, TEN),  # counted in the file, not numbers of the product
        (["bands"] * 2, S1, {"vv": 0, "vh": 1}),
        (["blue", "green", "red", "re1", "re2", "re3", "nir", "nir2", "swir1", "swir2"], S2, TEN),
        (["Blue", "Green", "Red", "NearInfrared", "SWIR_1", "SWIR 2"], L2, dict(zip(L2.band_names, (2, 1, 0, 3, 4, 5), strict=True))),
        ([f"SR_B{n}" for n in (1, 2, 3, 4, 5, 7)], L2, dict(zip(L2.band_names, (2, 1, 0, 3, 4, 5), strict=True))),  # TM
    ],
)  # fmt: skip
def test_usual_names_of_bands_are_known(labels, sensor, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert match_bands(labels, sensor, None, "scene.tif") == expected


@pytest.mark.parametrize("labels", [["HH", "HV"], ["rot", "gruen"]])
def test_names_that_mean_nothing_to_the_sensor_are_refused(labels):
    with pytest.raises(ContractError, match="expected names of sentinel-1-rtc: .'vv', 'vh'."):
        match_bands(labels, S1, None, "scene.tif")
    assert match_bands(labels, S1, ["vv", "vh"], "scene.tif") == {"vv": 0, "vh": 1}


def test_lost_bands_are_named():
    with pytest.warns(
        UserWarning, match=r"bands \['purple'\] of scene.tif are unknown .*'blue', 'green'.* are missing"
    ):
        assert match_bands(["red", "purple"], S2, None, "scene.tif") == {"red": 0}


# ---- numbers that are no measurement ----


def test_radar_power_at_or_below_zero_is_missing(tmp_path):
    power = np.random.default_rng(0).gamma(4, 0.02, (2, 16, 16)).astype(np.float32)
    power[:, 3], power[0, 5, 5] = 0, -1e-5
    path = write_raster(tmp_path / "power.tif", power, crs="EPSG:32736", transform=(10, 0, 6e5, 0, -10, 9e6))
    for missing in (
        np.isnan(open_image(power, S1).pixels[0]),
        np.isnan(open_image(path, S1).pixels[0]),
        read_scene(path, S1).missing,
    ):
        np.testing.assert_array_equal(missing, power <= 0)


@pytest.mark.parametrize("rows", [5, 11])
def test_zero_outside_the_swath_is_missing_in_decibel(rows):
    decibel = np.random.default_rng(0).normal(-15, 3, (2, 16, 16)).astype(np.float32)
    decibel[:, :rows], decibel[0, 15, 15] = 0, 0  # 0 dB in one band alone is a measurement
    image = open_image(decibel, S1)
    assert (
        image.in_decibel and np.isnan(image.pixels[0, :, :rows]).all() and np.isfinite(image.pixels[0, :, rows:]).all()
    )


def test_alpha_band_is_not_near_infrared():
    pixels = np.random.default_rng(0).integers(20, 220, (4, 32, 32), dtype=np.uint8)
    pixels[3] = 255
    pixels[3, :4] = 0
    (finding, *_) = inspect_image(pixels, "naip").findings
    assert finding.level == "error" and "alpha band, not nir" in finding.cause


# ---- layouts without names ----

# medians over crops, of B1 to B12 with B8A after B8; level 1C has B10 and a dark B9
FIELD = {"1": 1200, "2": 900, "3": 950, "4": 700, "5": 1200, "6": 2300, "7": 2800, "8": 2900, "8a": 3100, "9": 3200}
FIELD |= {"11": 1900, "12": 1000}
LEVEL_1C = FIELD | {"9": 900, "10": 12}
ESA_12, ESA_13 = (text.split() for text in bands.LAYOUTS["sentinel-2-l2a"])


@pytest.mark.parametrize("spectrum, order", [(FIELD, ESA_12), (LEVEL_1C, ESA_13)])
@pytest.mark.parametrize("last", [False, True])
def test_layouts_without_names_are_told_by_their_spectra(tmp_path, spectrum, order, last):
    order = [n for n in order if n != "8a"] + ["8a"] if last else order
    medians = np.array([spectrum[n] for n in order])[:, None, None]
    values = (medians * np.random.default_rng(0).normal(1, 0.1, (1, 24, 24))).astype(np.uint16)
    path = write_raster(tmp_path / "a.tif", values, crs="EPSG:32736", transform=(10, 0, 6e5, 0, -10, 9e6))
    array = xr.DataArray(values, dims=("band", "y", "x"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = [open_image(source, S2) for source in (values, values[None], path, array)]
    for image in images:
        assert image.bands == S2.band_names
        np.testing.assert_array_equal(image.pixels[0], values[[order.index(n) for n in bands.SENTINEL_2]])
    pasted = [bands.SENTINEL_2.get(n) for n in order]
    assert len(caught) == (4 if last else 0) and all(f"bands={pasted}" in str(w.message) for w in caught)
    assert open_image(values, S2, bands=pasted).bands == tuple(name for name in pasted if name)


def test_a_layout_that_the_spectra_do_not_tell_is_reported():
    with pytest.warns(UserWarning, match="in ESA's order, bands=.*B8A last .EuroSAT.: bands="):
        assert match_bands([""] * 12, S2, None, "scene.tif", lambda: np.ones((12, 8, 8)))["nir08"] == 8


@pytest.mark.parametrize(
    "name, when",
    [
        ("naip/m_3607717_sw_18_1_20160620_subset.tif", "2016-06-20"),
        ("MCD43A4.A2018185.h10v07.006.2018194033728_B01.tif", "2018-07-04"),
        ("LE70220491999322EDC01_stack.tif", "1999-11-18"),
        ("m_3607717_sw_18_1_20161399.tif", None),
        ("data/LC08_L2SP_022049_20200322_20200822_02_T1.tif", "2020-03-22"),
        ("data/S1A_IW_GRDH_1SDV_20200101T054321_x.tif", "2020-01-01T05:43:21"),
        ("data/HLS.L30.T33UWP.2023161T101010.v2.0.B05.tif", "2023-06-10T10:10:10"),
        ("data/a.tif", None),
    ],
)
def test_dates_in_names_of_products(name, when):
    assert bands.product_name(name).get("when") == when


def test_a_date_without_an_hour_stays_a_date():
    assert header_date({"datetime": "2023-06-10"}) == "2023-06-10"
    assert header_date({"datetime": "2023-06-10 07:46:21"}) == "2023-06-10T07:46:21"
    assert header_date({"datetime": "in June"}) is None
