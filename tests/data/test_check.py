"""Image check: common mistakes are named with their cause, and right images pass silently."""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from real_files import EXPECTED, FILES

from clay_lib import SENSORS, Band, Clay, ClayConfig, ContractError, Sensor
from clay_lib import __main__ as cli
from clay_lib.data.check import ContractWarning, check_image, inspect_image, possible_sensors
from clay_lib.data.rasters import write_raster
from clay_lib.data.scenes import read_scene
from clay_lib.world.earth import CLASSES, MiniWorld

EARTH = MiniWorld(0)
PLACE_AND_DATE = dict(lat=41.5, lon=-93.2, when="2023-07-10T10:30")
OFFSET_KEPT = {"sentinel-2-l2a/433D_629L_3_1.tif": dict(offset=-1000.0)}  # reprocessed: no pixel of it lies below 969
LAND = {"sentinel-2-l2a": 10, "modis": 10, "naip": 10, "linz": 60}  # else grassland
MINE = Sensor("mine", (Band("a", 0.5, 1200.0, 600.0), Band("b", 0.8, 2500.0, 900.0)), gsd=3.0)


@pytest.fixture(scope="module")
def right():
    """A chip of land a sensor, [C, 64, 64], which passes."""
    chips = {"mine": np.random.default_rng(0).normal([[[1200.0]], [[2500.0]]], 300, (2, 64, 64))}
    for name in SENSORS:
        chips[name] = EARTH.observe(EARTH.place(LAND.get(name, 30), 1), name, "2023-07-10T10:30", 64).pixels
    return chips


def reordered(sensor, *names):
    return lambda x: x[[SENSORS[sensor].band_names.index(n) for n in names]]


def with_value(value, where):
    """A change that sets the pixels at an index of [C, H, W], as floats."""

    def change(x):
        x = x.astype(np.float32)
        x[where] = value
        return x

    return change


def rows(share):
    return np.s_[:, : round(share * 64)]


def db(x):
    return 10 * np.log10(x)


S2, S1, L1, L2 = "sentinel-2-l2a", "sentinel-1-rtc", "landsat-c2l1", "landsat-c2l2-sr"
E, W = "error", "warning"
WRONG = [  # name, sensor, change of a right chip, change of its metadata, level, field, phrase of the finding
    ("reflectance 0..1", S2, lambda x: x / 1e4, {}, E, "pixels", r"band nir08 is 0\.\d+, the sensor's mean is 2785.*multiply by 10000"),
    ("per cent", S2, lambda x: x / 100, {}, W, "pixels", "per cent; multiply by 100"),
    ("8-bit file", S2, lambda x: (x / 30).clip(0, 255).astype(np.uint8), {}, E, "pixels", "8-bit image"),
    ("8 bit in 16", S2, lambda x: (x / x.max() * 250).astype(np.uint16), {}, W, "pixels", "8-bit image in a wider"),
    ("normalized", S2, lambda x: SENSORS[S2].normalize(x), {}, E, "pixels", "already normalized"),
    ("offset kept", S2, lambda x: x + 1000, {}, W, "pixels", "offset of 1000 .*was not removed"),
    ("offset taken twice", S2, lambda x: x.astype(int) - 1000, {}, W, "pixels", "subtracted twice"),
    ("Landsat SR x 10000", L2, lambda x: (x * 0.275 - 2000).round(), {}, E, "pixels", r"/ 10000 \+ 0.2\) / 0.0000275"),
    ("Landsat DN as Sentinel-2", S2, lambda x: x * 3.6364 + 7273, {}, W, "pixels", "Landsat Collection 2"),
    ("counts", S2, lambda x: x * 20.0, {}, E, "pixels", "reflectance above 2.5"),
    ("16 bit for a camera", "naip", lambda x: x.astype(np.uint16) * 257, {}, E, "pixels", "divide by 257"),
    ("camera 0..1", "linz", lambda x: x / 255, {}, E, "pixels", "0..1; multiply by 255"),
    ("dB given as power", S1, db, dict(in_decibel=False), E, "pixels", "in_decibel=True"),
    ("power given as dB", S1, lambda x: x, dict(in_decibel=True), E, "pixels", "linear power: leave in_decibel out"),
    ("dB twice", S1, lambda x: db(np.maximum(db(x), 1e-10)), dict(in_decibel=True), E, "pixels", "converted to dB twice"),
    ("dB undone twice", S1, lambda x: 10 ** (x / 10), {}, W, "pixels", "dB undone twice"),
    ("radar counts", S1, lambda x: np.sqrt(x) * 1000, {}, E, "pixels", "uncalibrated counts"),
    ("statistics of one's own", "mine", lambda x: x * 30, {}, W, "pixels", "standard deviations away"),
    ("bands last", S2, lambda x: np.moveaxis(x, 0, -1), {}, E, "pixels", r"bands last.*moveaxis"),
    ("one band flat", S2, lambda x: x[0], dict(bands=["blue"]), E, "pixels", r"pixels\[None\]"),
    ("bands left out", S2, lambda x: x[:4], {}, E, "pixels", r"name them with bands=\[...\]"),
    ("an unknown band", S2, lambda x: x[:1], dict(bands=["B02"]), E, "bands", "unknown name 'B02'"),
    ("reversed", S2, lambda x: x[::-1], {}, W, "bands", "another order: swir22, swir16, nir08, nir"),
    ("nir first", "naip", reordered("naip", "nir", "red", "green", "blue"), {}, W, "bands", "another order: nir, "),
    ("BGR", "linz", reordered("linz", "blue", "green", "red"), {}, W, "bands", "BGR"),
    ("one band twice", S2, lambda x: x[[0, 1, 2, 3, 4, 5, 6, 6, 8, 9]], {}, E, "bands", "the same numbers in nir and nir08"),
    ("a zero band", S2, with_value(0, 3), {}, E, "pixels", "zero in every pixel of band rededge1"),
    ("a constant band", S2, with_value(777, 3), {}, W, "pixels", "777 in every pixel of band rededge1"),
    ("a constant for each band", S2, lambda x: x * 0 + (np.arange(10)[:, None, None] + 101).astype(x.dtype), {}, W, "pixels", "101 in every pixel of band blue, 102 in .*placeholder"),
    ("all zero", S2, lambda x: x * 0, {}, E, "pixels", "not one valid pixel"),
    ("zero fill", S2, with_value(0, rows(0.6)), {}, W, "pixels", r"\d\d% of the pixels missing"),
    ("60 % NaN", S2, with_value(np.nan, rows(0.6)), {}, W, "pixels", r"\d\d% of the pixels missing"),
    ("a band all NaN", S2, with_value(np.nan, 3), {}, E, "pixels", "measured pixel of band rededge1"),
    ("nothing valid", S2, lambda x: x, dict(valid=np.zeros((64, 64), bool)), E, "pixels", "not one valid pixel"),
    ("-9999", S2, with_value(-9999, rows(0.02)), {}, E, "pixels", "-9999 in .*nodata code"),
    ("one pixel of 1e20", S2, with_value(1e20, np.s_[:, 0, 0]), {}, E, "pixels", r"1e\+20; .*nodata code"),
    ("netCDF's fill", S1, with_value(9.96921e36, rows(0.1)), {}, E, "pixels", r"9.9.*e\+36; .*nodata code"),
    ("-99999", S2, with_value(-99999, rows(0.02)), {}, E, "pixels", "-99999; .*nodata code"),
    ("9999", S2, with_value(9999, rows(0.1)), {}, W, "pixels", "9999 in every band of .*nodata=9999"),
    ("-1", S2, with_value(-1, rows(0.6)), {}, W, "pixels", "-1 in every band of .*nodata=-1"),
    ("32767", S2, with_value(32767, rows(0.1)), {}, E, "pixels", "32767 in .*nodata code"),
    ("infinite", S2, with_value(np.inf, rows(0.02)), {}, W, "reading", "infinite numbers count as missing"),
    ("scale of an array", S2, lambda x: x, dict(scale=2), E, "scale, offset", "convert them to native numbers"),
    ("negative", "modis", lambda x: -3.01 * x, {}, E, "pixels", "far below zero"),
    ("one chip of eight in 0..1", S2, lambda x: np.stack([x / 1e4, *[x] * 7]), {}, E, "pixels", "in 1 of 8 chips, the first is number 0"),
    ("degrees for meters", S2, lambda x: x, dict(gsd=0.00009), E, "gsd", "degrees: times 111320 it is 10 m"),
    ("a transform's height", S2, lambda x: x, dict(gsd=-10), E, "gsd", "negative pixel height"),
    ("lon as lat", S2, lambda x: x, dict(lat=-93.2, lon=41.5), E, "lat", "lat and lon are swapped"),
    ("swapped within range", "naip", lambda x: x, dict(lat=-78.0, lon=36.6), W, "lat", "lat and lon are swapped"),
    ("0, 0", S2, lambda x: x, dict(lat=0.0, lon=0.0), W, "lat", "stored as zeros"),
    ("before the launch", S2, lambda x: x, dict(when="1970-01-01"), E, "when", "2015-06-23 or later"),
    ("in the future", S2, lambda x: x, dict(when="2923-07-10"), W, "when", "a day in the past"),
    ("an unknown sensor", "sentinel-2", lambda x: x, {}, E, "sensor", "did you mean sentinel-2-l2a"),
]  # fmt: skip


@pytest.mark.parametrize(
    "sensor, change, metadata, level, field, phrase", [w[1:] for w in WRONG], ids=[w[0] for w in WRONG]
)
def test_wrong_input_is_named_with_its_cause(right, sensor, change, metadata, level, field, phrase):
    chip, sensor_given = right.get(sensor, right[S2]), MINE if sensor == "mine" else sensor
    if sensor in right:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ContractWarning)
            assert check_image(chip, sensor_given, **PLACE_AND_DATE) == []
    with np.errstate(all="ignore"):
        wrong = change(chip)
    metadata = PLACE_AND_DATE | metadata
    found = inspect_image(wrong, sensor_given, **metadata).findings
    assert any(f.level == level and f.field == field and re.search(phrase, str(f)) for f in found), found
    assert len(found) == 1, found
    if level == "error":
        with pytest.raises(ContractError, match=phrase):
            check_image(wrong, sensor_given, **metadata)
    else:
        with pytest.warns(ContractWarning, match=phrase) as caught:
            check_image(wrong, sensor_given, **metadata)
        assert len(caught) == 1


def test_several_errors_are_one_message(right):
    with pytest.raises(ContractError, match="multiply by 10000.*; also "):
        check_image(right[S2] / 1e4, S2, when="1970-01-01", gsd=-1)
    levels = [f.level for f in inspect_image(right[S2] / 1e4, S2, when="1970-01-01", gsd=200).findings]
    assert levels == [E, E, W]


# ---- no false alarm ----


@pytest.mark.parametrize("row, expected", [*zip(FILES, EXPECTED, strict=True)], ids=[file for _, file, _ in FILES])
def test_real_files_are_taken_for_what_they_are(realdata, row, expected):
    sensor, file, kwargs = row
    path = sorted(realdata.glob(file)) if "*" in file else realdata / file
    report = inspect_image(path, sensor, **kwargs | OFFSET_KEPT.get(file, {}))
    image, text = report.image, str(report)
    assert "*" in file or sensor in possible_sensors(str(path))
    assert report.findings == [] and report.title.endswith("as expected")
    assert {*report.names} == {*SENSORS[sensor].band_names} and "absent" not in report.facts
    assert report.bands["", "decided by"][0] == expected.decided
    assert (image.lat, image.lon) == pytest.approx((expected.lat, expected.lon), abs=0.2 if sensor == "modis" else 1e-3)
    assert image.gsd == pytest.approx(expected.gsd, rel=1e-3) and image.in_decibel == (sensor == S1)
    assert (image.when or "")[:10] == (expected.day or "")
    assert np.isnan(image.pixels).any(1).mean() == pytest.approx(expected.holes, abs=5e-4)
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 100
    for window in ((90, 60, 64, 64), (7, 5, 16, 16), (50, 40, 8, 8), (33, 22, 1, 1)):
        scene = read_scene(path, sensor, when="2020-06-01", window=window, **kwargs | OFFSET_KEPT.get(file, {}))
        assert inspect_image(scene, sensor).findings == [], window


@pytest.mark.parametrize(
    "file, sensor, level, phrase",
    [
        # forest of 12 % reflectance in blue and red, and not a pixel below 969 in any band: the offset is still in
        ("sentinel-2-l2a/433D_629L_3_1.tif", S2, W, "offset of 1000 was not removed"),
        ("landsat-sr/LE70220491999322EDC01_stack.tif", L2, E, r"value / 10000 \+ 0.2\) / 0.0000275"),
        ("landsat-sr/LE70220491999322EDC01_labels.tif", L2, E, "a label raster"),
        ("landcover/38D_378R_2_3.tif", S2, E, "a label raster"),
        ("sentinel-2-l2a/38D_378R_2_3.tif", L1, E, "12 bands without descriptions"),
        ("aerial-rgb/OSBS_029.tif", "naip", E, "3 bands without descriptions"),
        ("ucmerced/beach", "linz", E, "several scenes at once"),
    ],
)
def test_real_files_taken_for_something_else_are_found(realdata, file, sensor, level, phrase):
    report = inspect_image(realdata / file, sensor)
    (found,) = report.findings
    assert found.level == level and re.search(phrase, str(found)) and phrase.split()[-1] in repr(report)


@pytest.mark.parametrize(
    "file, sensor", [("sentinel-2-l2a/38D_378R_2_3.tif", S2), ("landsat-c2l1", L1), ("modis", "modis")]
)
def test_wrong_orders_of_real_files_are_found(realdata, file, sensor):
    scene = read_scene(realdata / file, sensor)
    for change in (lambda x: x[::-1], lambda x: np.roll(x, 1, 0), lambda x: np.roll(x, -1, 0)):
        found = inspect_image(change(scene.pixels), sensor, valid=scene.valid).findings
        assert [(f.level, f.field) for f in found] == [(W, "bands")]


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_aerial_images_pass_as_any_camera(realdata, step):
    files = sorted((realdata / "ucmerced").glob("*/*"))[::step]
    assert len(files) == 500 // step
    bgr = 0
    for file in files:
        pixels = read_scene(file, "linz").pixels
        assert inspect_image(pixels, "linz").findings == [], file.name
        assert inspect_image(pixels, "naip", bands=["red", "green", "blue"]).findings == [], file.name
        bgr += len(inspect_image(pixels[::-1], "linz").findings)
    assert bgr > 0.05 * len(files)  # found where bare soil and roofs dominate; a right image is never doubted


def test_two_hundred_chips_of_the_mini_world_pass():
    """All sensors, land covers and seasons, clear and cloudy, and cut down to 8 x 8 pixels and to one."""
    count = 0
    for n, sensor in enumerate(s for s in SENSORS for _ in range(2)):
        for k, code in enumerate(CLASSES):
            when = f"2023-{(1, 4, 7, 10)[(n + k) % 4]:02d}-15T10:30"
            place = EARTH.place(code, (n + k) % 5)
            chip = EARTH.observe(place, sensor, when, 32, (0, 0, 0.4, 0.95)[(n * 3 + k) % 4])
            metadata = dict(lat=place.lat, lon=place.lon, when=when, gsd=chip.gsd)
            for side in (32, 8, 1):
                found = inspect_image(chip.pixels[:, :side, :side], sensor, **metadata).findings
                assert found == [], (sensor, code, when, side)
            count += 1
    assert count == 198


def test_odd_but_right_scenes_pass(right):
    rng = np.random.default_rng(1)
    snow = rng.normal(9000, 300, (10, 64, 64)) * np.r_[np.ones(8), 0.12, 0.1][:, None, None]
    water = rng.normal(1, 0.1, (10, 64, 64)) * np.array([420, 330, 160, 120, 90, 80, 70, 60, 15, 9])[:, None, None]
    cloud = rng.normal(8000, 500, (10, 64, 64)) * np.r_[np.ones(8), 0.8, 0.6][:, None, None]
    dusk = right[S2] // 20, right[S2] // 3
    scenes = [(x.clip(1).astype(np.uint16), S2, {}) for x in (snow, water, cloud, *dusk)]
    edge = np.arange(64 * 64).reshape(64, 64) % 64 >= 9
    scenes += [
        (right["naip"] // 12, "naip", {}),
        (db(right[S1]), S1, {}),
        (with_value(np.nan, rows(0.4))(right[S2]), S2, {}),
        (np.where(edge, right[S2], -9999), S2, dict(valid=edge)),
        (np.where(edge, right[S2].astype(np.int32), -9999), S2, dict(nodata=-9999)),
        (np.where(edge, right[S1], 0), S1, {}),  # no power outside the swath
        (torch.tensor(right[S2].astype(np.float32)).bfloat16()[None], S2, dict(gsd=torch.tensor([20.0]))),
    ]
    for pixels, sensor, metadata in scenes:
        assert inspect_image(pixels, sensor, **metadata).findings == []


# ---- anything at all ----

NUMBERS = hnp.arrays(
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int64, np.float16, np.float32, np.float64, bool, "U3", complex]),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
)
THINGS = st.one_of(
    st.none(), st.text(max_size=5), st.floats(), st.integers(), st.lists(st.floats(), max_size=3), NUMBERS
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pixels=st.one_of(
        NUMBERS, hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 20), st.integers(1, 20))), THINGS
    ),
    sensor=st.one_of(st.sampled_from([*SENSORS]), THINGS),
    metadata=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("bands", "gsd", "lat", "lon", "when", "in_decibel", "valid"), THINGS)
    ),
)
def test_any_input_raises_nothing_but_a_contract_error(pixels, sensor, metadata):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ContractWarning)
        report = inspect_image(pixels, sensor, **metadata)
        found = report.findings
        assert report.title in str(report) and "<b>" in report._repr_html_()
        try:
            assert check_image(pixels, sensor, **metadata) == found
            assert all(f.level == W for f in found)
        except ContractError:
            assert found[0].level == E


# ---- scenes, the command ----


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """A chip of crops and its file."""
    chip = EARTH.observe(EARTH.place(40, 0), S2, "2023-07-10T10:30", 64)
    where = dict(crs=chip.crs, transform=chip.transform)
    path = tmp_path_factory.mktemp("check") / "S2A_<b>_field.tif"
    return chip, str(write_raster(path, chip.pixels, descriptions=SENSORS[S2].band_names, **where))


def test_given_place_is_compared_to_the_images_own(field):
    chip, path = field
    for source in (path, read_scene(path, S2)):
        assert inspect_image(source, S2, lat=chip.lat, lon=chip.lon).findings == []
        (swapped,) = inspect_image(source, S2, lat=chip.lon, lon=chip.lat).findings  # -77 is a latitude too
        assert (swapped.level, swapped.field) == (E, "lat") and "swapped" in swapped.cause
        (far,) = inspect_image(source, S2, lat=chip.lat / 2, lon=chip.lon).findings
        assert far.level == W and "its CRS" in far.expected


def test_every_door_reports_the_same(field):
    """The file, its scene, its array and `Clay.check`: numbers to the bit, and where each fact comes from."""
    chip, path = field
    clay = Clay.random(ClayConfig.named("tiny"))
    of_array = inspect_image(chip.pixels, S2, lat=chip.lat, lon=chip.lon, when="2023-07-10", gsd=10)
    reports = [inspect_image(path, S2), inspect_image(read_scene(path, S2), S2), clay.check(path, S2), of_array]
    for report in reports:
        np.testing.assert_array_equal(report.bands.iloc[:, 1:8], reports[0].bands.iloc[:, 1:8])
        (row,) = report.bands[report.bands["", "band"] == "nir"].to_numpy()
        numbers = np.percentile(chip.pixels[6], (5, 50, 95))
        assert row[1:4] == pytest.approx(numbers) and row[4:7] == pytest.approx((numbers - 2743) / 1742, abs=1e-6)
    assert reports[0].bands["", "decided by"][6] == "its name, 'nir'"
    assert of_array.bands["", "decided by"][6] == "the sensor's order, band 7 of 10"
    assert f"({chip.crs})" in reports[0].facts["place"] and "(given)" in of_array.facts["place"]
    assert of_array.facts["date"] == "2023-07-10 (given)" and reports[0].facts["date"].startswith("unknown")
    assert inspect_image(path, S2, bands=["red", "nir"]).facts["absent"].startswith("blue, green, rededge1")
    assert inspect_image(chip.pixels, S2).facts["ground"] == "10 m a pixel (the sensor's own)"


def test_page_of_a_notebook_escapes_names_and_holds_the_figure(field):
    page = inspect_image(field[1], S2, when="2990-01-01")._repr_html_()
    assert "S2A_&lt;b&gt;_field.tif" in page and "_<b>_" not in page and "src='data:image/png;base64,iVBOR" in page
    assert "a day in the past" in page and "decided by" in page
    assert "img" not in inspect_image("missing.tif", S2)._repr_html_()


def test_command_reports_on_one_screen(right, field, tmp_path, capsys):
    def run(*options, sensor=True):
        code = cli.main(["check", *options] + ["--sensor", S2] * sensor)
        return code, *capsys.readouterr()

    code, out, _ = run(field[1], "--when", "2023-07-10", "--figure", str(tmp_path / "check.png"))
    assert code == 0 and out.startswith("S2A_<b>_field.tif as sentinel-2-l2a: as expected\n")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG") and "check.png" in out
    bad = str(write_raster(tmp_path / "bad.tif", (right[S2] / 1e4).astype(np.float32), crs=None, transform=None))
    code, out, _ = run(bad, "--when", "2990-01-01")
    assert code == 2 and "1 error, 1 warning\n" in out and "multiply by 10000" in " ".join(out.split())
    assert run(bad, "--scale", "10000")[0] == 0
    code, _, err = run(bad, sensor=False)
    assert code == 2 and "--sensor with one of ['sentinel-2-l2a']." in err
    code, out, err = run(str(tmp_path / "none.tif"))
    assert code == 2 and not out and len(err.splitlines()) == 1 and "which does not exist" in err
    code, out, _ = run(field[1], "--bands", "blue,green,red,-,-,-,nir,-,-,-")
    assert code == 0 and "absent" in out
