"""Any image: sizes from one pixel up, bands by name, sensors of one's own, every kind of number, place and time."""

import datetime as dt
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from clay_lib import SENSORS, Clay, ClayConfig, ClayMAE, ContractError, Sensor
from clay_lib.datacube import latlon_code, make_datacube, time_code

MICRO = ClayConfig(24, 3, 2, 8, 2, 16, 1, 2, 8, 2, patch_size=4, teacher_dim=12)
CLAY = Clay.random(MICRO, seed=3)
S2 = "sentinel-2-l2a"
NAMES = SENSORS[S2].band_names
HERE = dict(when="2023-06-10T10:30", lat=-3.4, lon=34.07)


def land(C=10, H=16, W=16, B=None, seed=0, dtype=np.float32):
    """Plausible Sentinel-2 numbers."""
    mean, std = SENSORS[S2].statistics()
    noise = np.random.default_rng(seed).normal(0, 0.2, (B or 1, C, H, W))
    pixels = (mean[:C, None, None] + std[:C, None, None] * noise).round().clip(1, 9999).astype(dtype)
    return pixels if B else pixels[0]


def same(a, b, atol=2e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@settings(max_examples=15, deadline=None)
@given(
    H=st.integers(1, 21),
    W=st.integers(1, 21),
    B=st.integers(1, 3),
    order=st.permutations(range(10)),
    count=st.integers(1, 10),
)
def test_any_size_and_any_bands_in_any_order(H, W, B, order, count):
    pixels = land(H=H, W=W, B=B)
    chosen = order[:count]
    out = CLAY.embed(pixels[:, chosen], S2, bands=[NAMES[i] for i in chosen], check=False, **HERE)
    assert out.chip.shape == (B, 24) and out.patches.shape == (B, -(-H // 4), -(-W // 4), 24) and out.valid.all()
    assert out.chip.isfinite().all() and out.patches.isfinite().all() and out.chip.dtype == torch.float32
    sorted_ = sorted(chosen)  # bands and their names together in another order: the same image
    again = CLAY.embed(pixels[:, sorted_], S2, bands=[NAMES[i] for i in sorted_], check=False, **HERE)
    same(out.chip, again.chip, 1e-5)
    same(out.patches, again.patches, 1e-5)
    alone = CLAY.embed(pixels[B - 1, chosen], S2, bands=[NAMES[i] for i in chosen], check=False, **HERE)
    same(alone.chip[0], out.chip[B - 1])
    rebuilt = CLAY.reconstruct(pixels[:, chosen], S2, bands=[NAMES[i] for i in chosen], check=False, mask_ratio=0.5)
    assert rebuilt.pixels.shape == (B, count, H, W) and np.isfinite(rebuilt.pixels).all()


@settings(max_examples=10, deadline=None)
@given(H=st.integers(1, 16), W=st.integers(1, 16))
def test_odd_sizes_are_filled_up_by_their_last_row_and_column(H, W):
    pixels = land(H=H, W=W)
    by_hand = np.pad(pixels, ((0, 0), (0, -H % 4), (0, -W % 4)), mode="edge")
    a, b = (CLAY.embed(p, S2, check=False, **HERE) for p in (pixels, by_hand))
    assert torch.equal(a.chip, b.chip) and torch.equal(a.patches, b.patches)


KINDS = {
    "float64": lambda p: p.astype(np.float64),
    "int16": lambda p: p.astype(np.int16),
    "uint16": lambda p: p.astype(np.uint16),
    "int64": lambda p: p.astype(np.int64),
    "big endian": lambda p: p.astype(">i2"),
    "strided": lambda p: np.repeat(p, 2, axis=-1)[..., ::2],
    "transposed view": lambda p: np.ascontiguousarray(np.moveaxis(p, 0, -1)).transpose(2, 0, 1),
    "list": lambda p: p.tolist(),
    "torch": torch.from_numpy,
    "torch int32": lambda p: torch.from_numpy(p.astype(np.int32)),
    "torch with gradient": lambda p: torch.from_numpy(p).double().requires_grad_(),
    "batch of one": lambda p: p[None],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number_is_the_same_image(kind):
    pixels = land(H=9, W=14)
    expected, out = CLAY.embed(pixels, S2, **HERE), CLAY.embed(KINDS[kind](pixels), S2, **HERE)
    assert torch.equal(out.chip, expected.chip) and torch.equal(out.patches, expected.patches)


def test_coarse_numbers_are_what_they_round_to():
    pixels = land(H=9, W=14)
    for rounded in (torch.from_numpy(pixels).bfloat16(), torch.from_numpy(pixels).half(), pixels.astype(np.float16)):
        out = CLAY.embed(rounded, S2, **HERE)
        exact = rounded.float().numpy() if isinstance(rounded, torch.Tensor) else rounded.astype(np.float32)
        assert torch.equal(out.chip, CLAY.embed(exact, S2, **HERE).chip)
    mask = Sensor.custom([0.6], gsd=1, mean=[0.5], std=[0.5])
    yes_no = np.random.default_rng(0).random((1, 8, 8)) < 0.5
    assert torch.equal(*(CLAY.embed(x, mask, check=False).chip for x in (yes_no, yes_no.astype(np.float32))))


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.999), (torch.float16, 0.99999)])
def test_models_of_half_the_memory(tmp_path, dtype, least):
    path = CLAY.save(tmp_path / "micro.safetensors")
    half, pixels = Clay.load(path, dtype=dtype), land(H=9, W=14, B=2)
    assert next(half.model.parameters()).dtype == dtype
    pixels[0, :, :4, :4] = np.nan
    out, exact = (clay.embed(pixels, S2, layers=[0], **HERE) for clay in (half, CLAY))
    for ours, theirs in ((out, exact), (out.layers[0], exact.layers[0])):
        assert ours.chip.dtype == ours.patches.dtype == ours.mean.dtype == torch.float32
        assert torch.equal(ours.valid, theirs.valid) and not ours.valid[0, 0, 0]
        assert torch.cosine_similarity(ours.chip, theirs.chip).min() > least
        assert torch.cosine_similarity(ours.mean, theirs.mean).min() > least
    assert np.isfinite(half.reconstruct(pixels, S2, **HERE).pixels).all()


def test_place_and_time_one_for_all_or_one_a_chip():
    pixels = land(B=3)
    when = ["2023-06-10T10:30", None, "2020-01-05"]
    lat, lon = [-3.4, None, 50.0], [34.07, None, 7.0]
    out = CLAY.embed(pixels, S2, when=when, lat=lat, lon=lon)
    for b in range(3):
        alone = CLAY.embed(pixels[b], S2, when=when[b], lat=lat[b], lon=lon[b])
        same(out.chip[b], alone.chip[0])
    assert (out.chip[0] - CLAY.embed(pixels[0], S2).chip[0]).abs().max() > 1e-4  # it matters
    days = ["2023-06-10T10:30", "2021-03-01T00:00", "2020-01-05T23:00"]
    expected = time_code(days, 3)
    nanoseconds = np.array(days, "datetime64[ns]")
    for form in (nanoseconds, pd.Series(days), pd.to_datetime(days), pd.Series(nanoseconds), list(nanoseconds)):
        torch.testing.assert_close(time_code(form, 3), expected)
    place = latlon_code([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], 3)
    for kind in (np.array, torch.tensor, pd.Series, tuple):
        assert torch.equal(latlon_code(kind([1.0, 2.0, 3.0]), kind([4.0, 5.0, 6.0]), 3), place)
    assert torch.equal(time_code(dt.datetime(2023, 6, 10, 10), 1), time_code(np.datetime64("2023-06-10T10"), 1))


@pytest.mark.parametrize("kind", [int, float, np.float32, np.int64, torch.tensor, lambda g: torch.tensor([g])])
def test_gsd_of_every_kind(kind):
    pixels = land()
    assert torch.equal(CLAY.embed(pixels, S2, gsd=kind(20)).chip, CLAY.embed(pixels, S2, gsd=20.0).chip)
    assert not torch.equal(CLAY.embed(pixels, S2, gsd=kind(20)).chip, CLAY.embed(pixels, S2).chip)


def test_gsd_in_an_array_of_one():
    assert make_datacube(land(), S2, gsd=np.array([20.0])).gsd == make_datacube(land(), S2, gsd=np.array(20)).gsd == 20


class TestOwnSensor:
    waves = {"blue": 0.49, "green": 0.565, "red": 0.665, "nir": 0.865}
    images = np.random.default_rng(0).normal(800, 200, (5, 4, 12, 12)).astype(np.float32)

    def test_by_statistics_or_measured(self):
        mean, std = self.images.mean((0, 2, 3)), self.images.std((0, 2, 3))
        told = Sensor.custom(self.waves, gsd=3, mean=mean, std=std, rgb=("red", "green", "blue"))
        holed = np.concatenate([self.images, np.full_like(self.images, np.nan)])
        measured = Sensor.custom(self.waves, gsd=3, pixels=holed)
        assert told.band_names == measured.band_names == tuple(self.waves) and told.rgb == ("red", "green", "blue")
        a, b = (CLAY.embed(self.images, sensor, **HERE) for sensor in (told, measured))
        same(a.chip, b.chip, 1e-5)
        part = CLAY.embed(self.images[:, [3, 0]], told, bands=["nir", "blue"], **HERE)
        assert part.chip.shape == (5, 24)
        assert Sensor.custom([0.5, 0.6], gsd=1, mean=[1, 2], std=[1, 1]).band_names == ("band1", "band2")

    def test_radar_is_measured_in_decibel(self):
        power = 10 ** (np.random.default_rng(0).normal(-15, 3, (8, 2, 9, 9)) / 10)
        radar = Sensor.custom({"hh": 3.5, "hv": 4.0}, gsd=10, pixels=power, decibel=True)
        assert np.abs(radar.statistics()[0] + 15).max() < 1 and abs(radar.normalize(power).std() - 1) < 0.1

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"mean": None}, "mean, std"),
            ({"std": [1, 1, 1]}, "mean, std"),
            ({"pixels": np.zeros((5, 12, 12, 4))}, "pixels"),
            ({"wavelengths": [490, 565, 665, 865]}, "band 'band1': wavelength"),
            ({"gsd": 0}, "sensor 'custom': gsd"),
            ({"std": [1, 1, 0, 1]}, "band 'red': std"),
        ],
    )
    def test_refusals(self, change, field):
        told = dict(wavelengths=self.waves, gsd=3, mean=[800] * 4, std=[200] * 4)
        with pytest.raises(ContractError) as caught:
            Sensor.custom(**told | change)
        assert caught.value.field == field


class TestLayers:
    pixels = land(B=2, H=9, W=14)

    def test_a_block_is_its_output_after_the_final_norm(self):
        out = CLAY.embed(self.pixels, S2, layers=[0, 1, -1], **HERE)
        assert list(out.layers) == [0, 1, -1]
        assert torch.equal(out.layers[-1].chip, out.chip) and torch.equal(out.layers[-1].patches, out.patches)
        transformer, handed = CLAY.model.encoder.transformer, []
        hook = transformer.layers[1][1].register_forward_hook(
            lambda _, inputs, output: handed.append(inputs[0] + output)
        )
        assert torch.equal(CLAY.embed(self.pixels, S2, **HERE).chip, out.chip)  # asking changes nothing
        hook.remove()
        with torch.no_grad():
            by_hand = transformer.norm(handed[0])
        same(out.layers[1].chip, by_hand[:, 0])
        same(out.layers[1].patches.flatten(1, 2), by_hand[:, 1:])
        assert torch.equal(out.layers[0].valid, out.valid) and out.layers[0].layers == {}
        same(out.mean, out.patches.mean((1, 2)))
        for k in (0, 1):
            assert torch.equal(
                out.layers[k].chip, CLAY.embed(self.pixels, S2, layers=[k - 3], **HERE).layers[k - 3].chip
            )

    @pytest.mark.parametrize("layers", [[3], [-4], [1.0], ["last"], [True]])
    def test_layers_that_are_not_there(self, layers):
        with pytest.raises(ContractError, match="-3 to 2"):
            CLAY.embed(self.pixels, S2, layers=layers, **HERE)


class TestWhatIsOddInTheOriginal:
    pixels = land()

    def test_readings_from_a_call_and_from_load(self, tmp_path):
        """clay_v1_5: longitude stored before latitude, and every hour as 12:00."""
        path = CLAY.save(tmp_path / "micro.safetensors")
        documented, theirs = Clay.load(path), Clay.load(path, reading="as_trained")
        stored = dict(when="2023-06-10T12:00", lat=34.07, lon=-3.4)  # what their pipeline stored of HERE
        expected = documented.embed(self.pixels, S2, **stored).chip
        assert torch.equal(theirs.embed(self.pixels, S2, **HERE).chip, expected)
        assert torch.equal(documented.embed(self.pixels, S2, reading="as_trained", **HERE).chip, expected)
        ours = theirs.embed(self.pixels, S2, reading="documented", **HERE).chip
        assert torch.equal(ours, CLAY.embed(self.pixels, S2, **HERE).chip) and not torch.equal(ours, expected)
        assert torch.equal(
            theirs.embed(self.pixels, S2).chip, documented.embed(self.pixels, S2).chip
        )  # unknown is zeros
        for call in (lambda: Clay.load(path, reading="right"), lambda: CLAY.cube(self.pixels, S2, reading="right")):
            with pytest.raises(ContractError, match="reading"):
                call()

    def test_frequencies_from_load_reaches_both_ends(self, tmp_path):
        path = CLAY.save(tmp_path / "micro.safetensors")
        geometric = Clay.load(path, frequencies="geometric")
        assert (
            geometric.model.encoder.frequencies
            == geometric.model.decoder.frequencies
            == geometric.model.config.frequencies
            == "geometric"
        )
        assert not torch.allclose(geometric.embed(self.pixels, S2).chip, CLAY.embed(self.pixels, S2).chip, atol=1e-4)
        made = ClayMAE(geometric.model.config)
        made.load_state_dict(CLAY.model.state_dict())
        assert torch.equal(Clay(made).embed(self.pixels, S2).chip, geometric.embed(self.pixels, S2).chip)
        with pytest.raises(ContractError, match="frequencies"):
            Clay.load(path, frequencies="wooden")


def test_what_is_said_wins_over_what_the_image_says(tmp_path):
    from clay_lib.data.images import open_image
    from clay_lib.data.rasters import write_raster

    pixels = land(H=9, W=14)
    path = write_raster(
        tmp_path / "s2.tif", pixels, crs="EPSG:32736", transform=(20, 0, 500_000, 0, -20, 9_600_000), descriptions=NAMES
    )
    image = open_image(path, S2)
    own = CLAY.embed(path, S2, when=HERE["when"])
    told = dict(when=HERE["when"], gsd=image.gsd, lat=image.lat, lon=image.lon)
    assert image.gsd == pytest.approx(20, rel=0.01) and torch.equal(own.chip, CLAY.embed(pixels, S2, **told).chip)
    assert torch.equal(own.chip, CLAY.embed(image, S2, when=HERE["when"]).chip)
    for change in (dict(gsd=10), dict(lat=50.0, lon=7.0), dict(when="2020-01-01")):
        other = CLAY.embed(path, S2, **dict(when=HERE["when"]) | change).chip
        assert torch.equal(other, CLAY.embed(pixels, S2, **told | change).chip) and not torch.equal(other, own.chip)
    few = CLAY.embed(path, S2, bands=["nir", "red"], **told).chip
    assert torch.equal(
        few, CLAY.embed(pixels[[NAMES.index("nir"), NAMES.index("red")]], S2, bands=["nir", "red"], **told).chip
    )
    rebuilt = CLAY.reconstruct(path, S2, bands=["nir", "red"], **told)
    assert (
        rebuilt.pixels.shape == (1, 2, 9, 14)
        and np.abs(SENSORS[S2].normalize(rebuilt.pixels, ["nir", "red"])).mean() < 5
    )


def test_xarray_by_its_own_names():
    pixels = land(H=9, W=14)
    array = xarray.DataArray(pixels, dims=("band", "y", "x"), coords={"band": list(NAMES)})
    assert torch.equal(CLAY.embed(array, S2, **HERE).chip, CLAY.embed(pixels, S2, **HERE).chip)
    mixed = array.isel(band=[7, 2, 0]).transpose("y", "x", "band")  # names travel with the numbers
    expected = CLAY.embed(pixels[[7, 2, 0]], S2, bands=[NAMES[i] for i in (7, 2, 0)], **HERE)
    same(CLAY.embed(mixed, S2, **HERE).chip, expected.chip, 1e-5)


def test_the_check_runs_first_and_can_be_switched_off():
    reflectance = land() / 10_000
    with pytest.raises(ContractError, match="10000"):
        CLAY.embed(reflectance, S2)
    assert CLAY.embed(reflectance, S2, check=False).chip.isfinite().all()
    batch = land(B=3)
    batch[1] = np.nan  # an empty tile is no reason to refuse the others
    with pytest.warns(UserWarning, match=r"chips \[1\] of 3"):
        CLAY.embed(batch, S2, when=["2023-06-10"] * 3, lat=[1.0, 2.0, 3.0], lon=[4.0, 5.0, 6.0])
    lacking = land(B=2)
    lacking[1, 3] = np.nan  # nor is one without a band; on its own it is told to leave the band out
    assert CLAY.embed(lacking, S2).valid.all()
    with pytest.raises(ContractError, match="band"):
        CLAY.embed(lacking[1], S2)
    batch[2] /= 10_000
    with pytest.raises(ContractError):
        CLAY.embed(batch, S2)
    spoilt = land()
    spoilt[:, :4] = -9999.0  # under the mask, so nobody's business
    assert CLAY.embed(spoilt, S2, valid=np.arange(16)[:, None].repeat(16, 1) >= 4).valid.sum() == 12


def test_arrays_need_no_raster_library():
    code = (
        "import sys; sys.modules['rasterio'] = sys.modules['pyproj'] = None\n"
        "import numpy as np; from clay_lib import Clay, ClayConfig\n"
        "pixels = np.random.default_rng(0).integers(500, 4000, (10, 8, 8))\n"
        "assert Clay.random(ClayConfig.named('tiny')).embed(pixels, 'sentinel-2-l2a').chip.isfinite().all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


def test_the_readmes_training_loop_runs(tmp_path, monkeypatch):
    """The block under its heading, as it stands there, on a checkpoint of the released form."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    code = re.search(r"## Use the encoder in your own training\n.*?```python\n(.*?)```", readme, re.DOTALL)[1]
    config = ClayConfig.named("tiny")
    state = {f"model.{name}": tensor for name, tensor in Clay.random(config).model.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"model_size": "tiny"}}, tmp_path / "clay-v1.5.ckpt")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    loader = [(land(B=4, H=16, W=16, seed=k), torch.from_numpy(rng.integers(0, 3, 4))) for k in range(2)]
    scope = {"loader": loader}
    exec(compile(code, "README.md", "exec"), scope)
    trained = scope["encoder"].state_dict()
    moved = [name for name, tensor in trained.items() if not torch.equal(tensor, state[f"model.encoder.{name}"])]
    assert len(moved) == len(trained) and scope["loss"].isfinite() and len(code.strip().splitlines()) <= 16


def test_warnings_name_the_line_that_called():
    with pytest.warns(UserWarning) as told:
        CLAY.embed(land() / 30, S2, valid=np.zeros((16, 16), bool))
        CLAY.cube(np.full((10, 16, 16), 7), S2)
    assert len(told) > 1 and {one.filename for one in told} == {__file__}


def test_images_of_different_sizes_and_a_percentage_are_told():
    with pytest.raises(ContractError, match="unequal lengths.*one by one"):
        CLAY.embed([land(), land(W=15)], S2)
    with pytest.raises(ContractError, match="min_valid: found 90"):
        CLAY.embed(land(), S2, min_valid=90)
    assert sorted(CLAY.embed(land(), S2, layers=np.array([0, -1])).layers) == [-1, 0]
