"""The registry as published, normalization and its inverse, radar in dB, own sensors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clay_lib import SENSORS, Band, ContractError, Sensor
from clay_lib.sensors import read_sensors

PUBLISHED = {
    "sentinel-2-l2a": (10, 10),
    "planetscope-sr": (8, 5),
    "landsat-c2l1": (6, 30),
    "landsat-c2l2-sr": (6, 30),
    "naip": (4, 1),
    "linz": (3, 0.5),
    "sentinel-1-rtc": (2, 10),
    "modis": (7, 500),
    "satellogic-MSI-L1D": (4, 1),
}


def test_bands_and_gsd_as_published():
    assert {name: (len(s.bands), s.gsd) for name, s in SENSORS.items()} == PUBLISHED
    nir = SENSORS["sentinel-2-l2a"].bands[6]
    assert (nir.name, nir.wavelength, nir.mean, nir.std) == ("nir", 0.842, 2743, 1742)
    assert [s.name for s in SENSORS.values() if s.decibel] == ["sentinel-1-rtc"]
    assert all(0.4 < w < 4.1 for s in SENSORS.values() for w in s.waves())
    assert all(s.description and len(s.rgb) == 3 for s in SENSORS.values() if not s.decibel)


@given(name=st.sampled_from(sorted(PUBLISHED)), seed=st.integers(0, 50))
def test_denormalize_inverts_normalize(name, seed):
    sensor = SENSORS[name]
    mean, std = sensor.statistics()
    native = np.random.default_rng(seed).normal(mean[:, None, None], std[:, None, None], (len(mean), 5, 4))
    native = 10 ** (native / 10) if sensor.decibel else native
    rounding = 0 if sensor.decibel else np.finfo(np.float32).eps * np.abs(mean).max()  # the mean is added in float32
    back = sensor.denormalize(sensor.normalize(native))
    np.testing.assert_allclose(back, native, rtol=2e-4, atol=1e-3 + rounding)


def test_radar_by_hand():
    power = np.array([[[1.0, 0.1]], [[0.0, np.nan]]])
    vv, vh = SENSORS["sentinel-1-rtc"].normalize(power)
    assert vv[0, 0] == pytest.approx((0 + 12.113) / 8.314) and vv[0, 1] == pytest.approx((-10 + 12.113) / 8.314)
    assert vh[0, 0] == pytest.approx((-100 + 18.673) / 8.017) and np.isnan(vh[0, 1])  # zero is floored, NaN stays
    in_decibel = SENSORS["sentinel-1-rtc"].normalize(np.full((2, 1, 1), -12.113), in_decibel=True)
    assert in_decibel[0, 0, 0] == pytest.approx(0, abs=1e-6)


def test_new_sensor_in_python_or_yaml(tmp_path):
    expected = Sensor("drone", (Band("red", 0.65, 100, 40), Band("nir", 0.85, 140, 50)), gsd=0.05)
    path = tmp_path / "own.yaml"
    path.write_text(
        "drone:\n  gsd: 0.05\n  bands:\n"
        "    red: {wavelength: 0.65, mean: 100, std: 40}\n    nir: {wavelength: 0.85, mean: 140, std: 50}\n"
    )
    assert read_sensors(path)["drone"] == expected
    path.write_text("drone:\n  bands: {red: {wavelength: 0.65}}\n")
    with pytest.raises(ContractError, match=r"sensors\.yaml is an example"):
        read_sensors(path)


WAVES = {"blue": 0.49, "green": 0.565, "red": 0.665, "nir": 0.865}


def test_custom_sensor_from_statistics_or_pixels():
    images = np.random.default_rng(0).normal(800, 200, (5, 4, 12, 12)).astype(np.float32)
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    stated = Sensor.custom(WAVES, gsd=3, mean=mean, std=std, rgb=("red", "green", "blue"))
    measured = Sensor.custom(WAVES, gsd=3, pixels=np.concatenate([images, np.full_like(images, np.nan)]))
    assert stated.band_names == measured.band_names == tuple(WAVES) and stated.rgb == ("red", "green", "blue")
    np.testing.assert_allclose(stated.statistics(), measured.statistics(), rtol=1e-5)
    assert Sensor.custom([0.5, 0.6], gsd=1, mean=[1, 2], std=[1, 1]).band_names == ("band1", "band2")
    power = 10 ** (np.random.default_rng(0).normal(-15, 3, (8, 2, 9, 9)) / 10)
    radar = Sensor.custom({"hh": 3.5, "hv": 4.0}, gsd=10, pixels=power, decibel=True)  # measured in dB
    assert np.abs(radar.statistics()[0] + 15).max() < 1 and abs(radar.normalize(power).std() - 1) < 0.1


def custom(**change):
    return lambda: Sensor.custom(**dict(wavelengths=WAVES, gsd=3, mean=[800] * 4, std=[200] * 4) | change)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Band("red", 665, 1, 1), "band 'red': wavelength"),
        (lambda: Band("red", "0.665", 1, 1), "band 'red': wavelength"),
        (lambda: Band("red", 0.665, 1, 0), "band 'red': std"),
        (lambda: Sensor("x", (), 10), "sensor 'x': bands"),
        (lambda: Sensor("x", (Band("a", 0.5, 0, 1),) * 2, 10), "sensor 'x': bands"),
        (lambda: Sensor("x", (Band("a", 0.5, 0, 1),), -10), "sensor 'x': gsd"),
        (lambda: Sensor("x", (Band("a", 0.5, 0, 1),), 10, rgb=("a", "b", "c")), "bands"),
        (custom(mean=None), "mean, std"),
        (custom(std=[1, 1, 1]), "mean, std"),
        (custom(pixels=np.zeros((5, 12, 12, 4))), "pixels"),
        (custom(wavelengths=[490, 565, 665, 865]), "band 'band1': wavelength"),
        (custom(gsd=0), "sensor 'custom': gsd"),
        (lambda: SENSORS["sentinel-2-l2"], "sensor"),
        (lambda: SENSORS.resolve(["naip"]), "sensor"),
        (lambda: SENSORS[3], "sensor"),
        (lambda: read_sensors("nowhere.yaml"), "sensors file"),
    ],
)
def test_impossible_sensors_are_refused(make, field):
    with pytest.raises(ContractError) as caught:
        make()
    assert caught.value.field == field and caught.value.cause
