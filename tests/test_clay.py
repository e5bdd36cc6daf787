"""The Clay class: any image in, embeddings and reconstructions out; many chips; shipped weights by name."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import fake_chips
from hypothesis import given, settings
from hypothesis import strategies as st

from clay_lib import SENSORS, Clay, ClayConfig, ClayMAE, ContractError
from clay_lib.clay import TOKENS, embed_chips, reconstruction_scores, tokens_at_once
from clay_lib.data.images import open_image
from clay_lib.data.rasters import write_raster
from clay_lib.datamodule import noise_batch

MICRO = ClayConfig(24, 3, 2, 8, 2, 16, 1, 2, 8, 2, patch_size=4, teacher_dim=12)
CLAY = Clay.random(MICRO, seed=3)
S2 = "sentinel-2-l2a"
NAMES = SENSORS[S2].band_names
METADATA = dict(when="2023-06-10T10:30", lat=-3.4, lon=34.07)


def land(C=10, H=16, W=16, B=None, seed=0):
    """Plausible Sentinel-2 numbers."""
    mean, std = SENSORS[S2].statistics()
    noise = np.random.default_rng(seed).normal(0, 0.2, (B or 1, C, H, W))
    pixels = (mean[:C, None, None] + std[:C, None, None] * noise).round().clip(1, 9999).astype(np.float32)
    return pixels if B else pixels[0]


def close(a, b, atol=2e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def equal(a, b):
    return torch.equal(a.chip, b.chip) and torch.equal(a.patches, b.patches)


# --- pixels ---


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
    out = CLAY.embed(pixels[:, chosen], S2, bands=[NAMES[i] for i in chosen], check=False, **METADATA)
    assert out.chip.shape == (B, 24) and out.patches.shape == (B, -(-H // 4), -(-W // 4), 24) and out.valid.all()
    assert out.chip.isfinite().all() and out.patches.isfinite().all() and out.chip.dtype == torch.float32
    in_order = sorted(chosen)  # bands and their names together in another order: the same image
    again = CLAY.embed(pixels[:, in_order], S2, bands=[NAMES[i] for i in in_order], check=False, **METADATA)
    close(out.chip, again.chip, 1e-5)
    close(out.patches, again.patches, 1e-5)
    alone = CLAY.embed(pixels[B - 1, chosen], S2, bands=[NAMES[i] for i in chosen], check=False, **METADATA)
    close(alone.chip[0], out.chip[B - 1])
    rebuilt = CLAY.reconstruct(pixels[:, chosen], S2, bands=[NAMES[i] for i in chosen], check=False, mask_ratio=0.5)
    assert rebuilt.pixels.shape == (B, count, H, W) and np.isfinite(rebuilt.pixels).all()


@settings(max_examples=10, deadline=None)
@given(H=st.integers(1, 16), W=st.integers(1, 16))
def test_odd_sizes_are_padded_by_their_last_row_and_column(H, W):
    pixels = land(H=H, W=W)
    by_hand = np.pad(pixels, ((0, 0), (0, -H % 4), (0, -W % 4)), mode="edge")
    assert equal(*(CLAY.embed(p, S2, check=False, **METADATA) for p in (pixels, by_hand)))


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
def test_every_kind_of_array_is_the_same_image(kind):
    pixels = land(H=9, W=14)
    assert equal(CLAY.embed(pixels, S2, **METADATA), CLAY.embed(KINDS[kind](pixels), S2, **METADATA))


# --- metadata ---


def test_place_and_time_one_for_all_or_one_a_chip():
    pixels = land(B=3)
    when = ["2023-06-10T10:30", None, "2020-01-05"]
    lat, lon = [-3.4, None, 50.0], [34.07, None, 7.0]
    out = CLAY.embed(pixels, S2, when=when, lat=lat, lon=tuple(lon))
    for b in range(3):
        close(out.chip[b], CLAY.embed(pixels[b], S2, when=when[b], lat=lat[b], lon=lon[b]).chip[0])
    assert (out.chip[0] - CLAY.embed(pixels[0], S2).chip[0]).abs().max() > 1e-4  # metadata matters


def test_metadata_given_takes_precedence_over_the_image(tmp_path):
    pixels, transform = land(H=9, W=14), (20, 0, 500_000, 0, -20, 9_600_000)
    path = write_raster(tmp_path / "s2.tif", pixels, crs="EPSG:32736", transform=transform, descriptions=NAMES)
    image, when = open_image(path, S2), METADATA["when"]
    from_file = CLAY.embed(path, S2, when=when)
    metadata = dict(when=when, gsd=image.gsd, lat=image.lat, lon=image.lon)
    assert image.gsd == pytest.approx(20, rel=0.01)
    assert equal(from_file, CLAY.embed(pixels, S2, **metadata)) and equal(from_file, CLAY.embed(image, S2, when=when))
    for change in (dict(gsd=10), dict(lat=50.0, lon=7.0), dict(when="2020-01-01")):
        changed = CLAY.embed(path, S2, **dict(when=when) | change)
        assert equal(changed, CLAY.embed(pixels, S2, **metadata | change)) and not equal(changed, from_file)
    bands = ["nir", "red"]
    subset = CLAY.embed(pixels[[NAMES.index(name) for name in bands]], S2, bands=bands, **metadata)
    assert equal(CLAY.embed(path, S2, bands=bands, **metadata), subset)
    rebuilt = CLAY.reconstruct(path, S2, bands=bands, **metadata).pixels
    assert rebuilt.shape == (1, 2, 9, 14) and np.abs(SENSORS[S2].normalize(rebuilt, bands)).mean() < 5


@pytest.mark.parametrize("kind", [int, float, np.float32, np.int64, torch.tensor, lambda g: torch.tensor([g])])
def test_gsd_of_every_kind(kind):
    pixels = land()
    assert equal(CLAY.embed(pixels, S2, gsd=kind(20)), CLAY.embed(pixels, S2, gsd=20.0))
    assert not equal(CLAY.embed(pixels, S2, gsd=kind(20)), CLAY.embed(pixels, S2))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pixels": [land(), land(W=15)]}, "pixels"),
        ({"sensor": "sentinel2"}, "sensor"),
        ({"gsd": "ten"}, "gsd"),
        ({"gsd": -10}, "gsd"),
        ({"gsd": float("nan")}, "gsd"),
        ({"lat": "north", "lon": 3}, "lat"),
        ({"lat": 120, "lon": 3}, "lat"),
        ({"lat": 12}, "lon"),
        ({"when": "10 June 2023"}, "when"),
        ({"when": ["2023-01-01"] * 3}, "when"),
        ({"bands": []}, "bands"),
        ({"reading": "wrong"}, "reading"),
    ],
)
def test_wrong_input_is_named_with_its_likely_cause(change, field):
    with pytest.raises(ContractError) as caught:
        CLAY.embed(**{"pixels": land(), "sensor": S2} | change)
    error = caught.value
    assert error.field == field and error.cause and str(error.expected) in str(error)


def test_readings_from_a_call_and_from_load(tmp_path):
    """The other reading of the release: longitude before latitude, and every hour as 12:00."""
    pixels, path = land(), CLAY.save(tmp_path / "micro.safetensors")
    documented, as_trained = Clay.load(path), Clay.load(path, reading="as_trained")
    expected = documented.embed(pixels, S2, when="2023-06-10T12:00", lat=34.07, lon=-3.4)
    assert equal(as_trained.embed(pixels, S2, **METADATA), expected)
    assert equal(documented.embed(pixels, S2, reading="as_trained", **METADATA), expected)
    ours = as_trained.embed(pixels, S2, reading="documented", **METADATA)
    assert equal(ours, CLAY.embed(pixels, S2, **METADATA)) and not equal(ours, expected)
    assert equal(as_trained.embed(pixels, S2), documented.embed(pixels, S2))  # unknown is zeros
    with pytest.raises(ContractError, match="reading"):
        Clay.load(path, reading="wrong")


# --- the check ---


def test_image_is_checked_first_unless_switched_off():
    reflectance = land() / 10_000
    with pytest.raises(ContractError, match="10000"):
        CLAY.embed(reflectance, S2)
    assert CLAY.embed(reflectance, S2, check=False).chip.isfinite().all()
    findings = CLAY.check(reflectance, S2).findings
    assert [f.level for f in findings][0] == "error" and CLAY.check(land(), S2, **METADATA).findings == []
    batch = land(B=3)
    batch[1] = np.nan  # an empty tile does not stop the others
    with pytest.warns(UserWarning, match=r"chips \[1\] of 3"):
        CLAY.embed(batch, S2, when=["2023-06-10"] * 3, lat=[1.0, 2.0, 3.0], lon=[4.0, 5.0, 6.0])
    lacking = land(B=2)
    lacking[1, 3] = np.nan  # nor does one without a band, which alone is an error
    assert CLAY.embed(lacking, S2).valid.all()
    with pytest.raises(ContractError, match="band"):
        CLAY.embed(lacking[1], S2)
    batch[2] /= 10_000
    with pytest.raises(ContractError):
        CLAY.embed(batch, S2)
    damaged = land()
    damaged[:, :4] = -9999.0  # masked, so not checked
    assert CLAY.embed(damaged, S2, valid=np.arange(16)[:, None].repeat(16, 1) >= 4).valid.sum() == 12


def test_warnings_name_the_line_of_the_caller():
    with pytest.warns(UserWarning) as caught:
        CLAY.embed(land() / 30, S2, valid=np.zeros((16, 16), bool))
        CLAY.cube(np.full((10, 16, 16), 7), S2)
    assert len(caught) > 1 and {warning.filename for warning in caught} == {__file__}


def test_arrays_need_no_raster_library():
    code = (
        "import sys; sys.modules['rasterio'] = sys.modules['pyproj'] = None\n"
        "import numpy as np; from clay_lib import Clay, ClayConfig\n"
        "pixels = np.random.default_rng(0).integers(500, 4000, (10, 8, 8))\n"
        "assert Clay.random(ClayConfig.named('tiny')).embed(pixels, 'sentinel-2-l2a').chip.isfinite().all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])


# --- weights ---


def test_same_seed_same_weights():
    before = torch.get_rng_state()
    again = Clay.random(MICRO, seed=3).model.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(again[name], tensor) for name, tensor in CLAY.model.state_dict().items())
    assert not torch.equal(Clay.random(MICRO, seed=4).model.encoder.cls_token, CLAY.model.encoder.cls_token)


@pytest.mark.parametrize(("dtype", "similarity"), [(torch.bfloat16, 0.999), (torch.float16, 0.99999)])
def test_models_of_half_the_memory(tmp_path, dtype, similarity):
    path = CLAY.save(tmp_path / "micro.safetensors")
    half, pixels = Clay.load(path, dtype=dtype), land(H=9, W=14, B=2)
    assert next(half.model.parameters()).dtype == dtype
    pixels[0, :, :4, :4] = np.nan
    out, exact = (clay.embed(pixels, S2, layers=[0], **METADATA) for clay in (half, CLAY))
    for ours, reference in ((out, exact), (out.layers[0], exact.layers[0])):
        assert ours.chip.dtype == ours.patches.dtype == ours.mean.dtype == torch.float32
        assert torch.equal(ours.valid, reference.valid) and not ours.valid[0, 0, 0]
        assert torch.cosine_similarity(ours.chip, reference.chip).min() > similarity
        assert torch.cosine_similarity(ours.mean, reference.mean).min() > similarity
    assert np.isfinite(half.reconstruct(pixels, S2, **METADATA).pixels).all()


def test_frequencies_from_load_reach_both_ends(tmp_path):
    path, pixels = CLAY.save(tmp_path / "micro.safetensors"), land()
    geometric = Clay.load(path, frequencies="geometric")
    model = geometric.model
    assert model.encoder.frequencies == model.decoder.frequencies == model.config.frequencies == "geometric"
    assert not torch.allclose(geometric.embed(pixels, S2).chip, CLAY.embed(pixels, S2).chip, atol=1e-4)
    rebuilt = ClayMAE(model.config)
    rebuilt.load_state_dict(CLAY.model.state_dict())
    assert equal(Clay(rebuilt).embed(pixels, S2), geometric.embed(pixels, S2))
    with pytest.raises(ContractError, match="frequencies"):
        Clay.load(path, frequencies="wooden")


# --- inner layers, reconstructions ---


def test_inner_block_is_its_output_after_the_final_norm():
    pixels = land(B=2, H=9, W=14)
    out = CLAY.embed(pixels, S2, layers=[0, 1, -1], **METADATA)
    assert list(out.layers) == [0, 1, -1] and equal(out.layers[-1], out)
    transformer, outputs = CLAY.model.encoder.transformer, []
    hook = transformer.layers[1][1].register_forward_hook(lambda _, args, output: outputs.append(args[0] + output))
    assert equal(CLAY.embed(pixels, S2, **METADATA), out)  # requesting layers changes nothing
    hook.remove()
    with torch.no_grad():
        by_hand = transformer.norm(outputs[0])
    close(out.layers[1].chip, by_hand[:, 0])
    close(out.layers[1].patches.flatten(1, 2), by_hand[:, 1:])
    close(out.mean, out.patches.mean((1, 2)))
    assert torch.equal(out.layers[0].valid, out.valid) and out.layers[0].layers == {}
    for k in (0, 1):
        assert equal(out.layers[k], CLAY.embed(pixels, S2, layers=np.array([k - 3]), **METADATA).layers[k - 3])


@pytest.mark.parametrize("layers", [[3], [-4], [1.0], ["last"], [True]])
def test_missing_layers_are_refused(layers):
    with pytest.raises(ContractError, match="-3 to 2"):
        CLAY.embed(land(), S2, layers=layers, **METADATA)


def test_reconstruction_is_in_native_numbers_and_repeatable():
    pixels = np.random.default_rng(0).integers(0, 4000, (2, 10, 13, 22)).astype(np.uint16)
    a, b = (CLAY.reconstruct(pixels, S2, seed=5) for _ in range(2))
    assert a.pixels.shape == pixels.shape and a.mask.shape == (2, 13, 22)
    assert np.array_equal(a.pixels, b.pixels) and 0.5 < a.mask.mean() < 0.95
    assert abs(a.pixels.mean() - 1900) < 3000  # near the sensor's means, not near zero


# --- many chips ---


def land_chips(count):
    return replace(fake_chips(S2, count), pixels=land(B=count))


def test_embeddings_do_not_depend_on_the_batch(monkeypatch):
    chips = land_chips(7)
    together = embed_chips(CLAY, chips)
    holes = chips.pixels.copy()
    holes[5], holes[1, :, :4, :4] = np.nan, np.nan  # nothing of one chip, all but one patch of another
    options = dict(layers=[0], when="2021-05-04T10:30", lat=10, lon=20)
    with pytest.warns(UserWarning, match=r"chips \[5\] of 7"):
        complete = CLAY.embed(holes, S2, **options)
    monkeypatch.setitem(TOKENS, "cpu", 3 * 16)  # three chips at a time
    parts = embed_chips(CLAY, chips)
    with pytest.warns(UserWarning, match=r"chips \[5\] of 7"):
        split = CLAY.embed(holes, S2, **options)
    for name in ("class token", "patch mean"):
        assert together[name].shape == (7, 24)
        np.testing.assert_allclose(together[name], parts[name], atol=1e-5)
    assert torch.equal(split.valid, complete.valid) and split.chip[5].isnan().all()
    for a, b in ((split, complete), (split.layers[0], complete.layers[0])):
        torch.testing.assert_close(a.chip, b.chip, atol=1e-5, rtol=0, equal_nan=True)
        torch.testing.assert_close(a.patches, b.patches, atol=1e-5, rtol=0, equal_nan=True)
    alone = CLAY.embed(chips.pixels[3], S2, when="2021-05-04T10:30", lat=10, lon=20)
    np.testing.assert_allclose(together["class token"][3], alone.chip[0].numpy(), atol=1e-5)


def test_chips_at_once_stay_within_memory():
    large, GB = ClayConfig(), 1 << 30
    assert [CLAY.chips_at_once(side, side) for side in (32, 30, 128, 1000)] == [64, 64, 4, 1]
    assert [tokens_at_once(large, memory) for memory in (None, 80 * GB)] == [4096, 65536]
    assert tokens_at_once(large, 8 * GB) * 49_900 <= 1.02 * GB  # bytes of a token, from torch's profiler on a CPU
    assert tokens_at_once(ClayConfig.named("tiny"), 8 * GB) == 65536


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_chips_at_once_stay_within_a_card(monkeypatch):
    clay = Clay.random(ClayConfig.named("base", depth=1))
    clay.model.cuda()
    monkeypatch.setattr("clay_lib.clay.CARD_SHARE", 2e9 / torch.cuda.get_device_properties("cuda").total_memory)
    count = clay.chips_at_once(64, 64)
    cube = noise_batch(S2, count, 64).cube.to("cuda")
    with torch.inference_mode():
        clay.model.encoder(cube[:1], 0.0, False)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        clay.model.encoder(cube, 0.0, False)
    assert 1 < count < 1024 and torch.cuda.max_memory_allocated() - before < 2.2e9


def test_reconstruction_scores_by_hand():
    chips = land_chips(4)
    table = reconstruction_scores(CLAY, chips, seed=3)
    rebuilt = CLAY.reconstruct(chips.pixels, S2, seed=3, **chips.place_and_time)
    std = SENSORS[S2].statistics()[1]
    for c in range(10):
        errors, mean_errors = [], []
        for b in range(4):
            masked, truth = rebuilt.mask[b], chips.pixels[b, c]
            errors.append(np.abs(rebuilt.pixels[b, c] - truth)[masked].mean())
            mean_errors.append(np.abs(truth[~masked].mean() - truth)[masked].mean())
        assert table["native_error"][c] == pytest.approx(np.mean(errors), rel=1e-3)
        assert table["mean_error"][c] == pytest.approx(np.mean(mean_errors) / std[c], rel=1e-3)
        assert table["ratio"][c] == pytest.approx(np.mean(errors) / np.mean(mean_errors), rel=1e-3)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_named(tmp_path, device):
    path = CLAY.save(tmp_path / "a.safetensors")
    with pytest.raises(ContractError, match=f"device: found '{device}'.*leave it out for the CPU"):
        Clay.load(path, device=device)
