"""The model against a plain NumPy reference, for sizes, bands and ratios that hypothesis draws."""

import csv
from pathlib import Path

import numpy as np
import plain_clay
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clay_lib import SENSORS, Clay, ClayConfig, ClayMAE, ContractError, Datacube
from clay_lib.datacube import latlon_code, time_code
from clay_lib.encoder import pad_to_patches, patchify, random_mask, unpatchify
from clay_lib.loss import reconstruction_loss, representation_loss

MICRO = ClayConfig(24, 2, 2, 8, 2, 16, 1, 2, 8, 2, patch_size=4, teacher_dim=12)
MODEL = ClayMAE(MICRO).eval()
with torch.no_grad():  # bigger kernels than at birth, so that every path moves the numbers
    for parameter in MODEL.parameters():
        parameter.mul_(1.5)
PLAIN = {name: tensor.double().numpy() for name, tensor in MODEL.state_dict().items()}


def cube_of(B, C, H, W, gsd=10.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    waves = torch.linspace(0.45, 2.2, C)
    code = dict(time=time_code("2023-06-10T10:30", B), latlon=latlon_code(-3.4, 34.07, B))
    return Datacube(pixels=torch.randn(B, C, H, W, generator=g), gsd=gsd, waves=waves, **code)


@settings(max_examples=12, deadline=None)
@given(
    C=st.integers(1, 5),
    h=st.integers(1, 4),
    w=st.integers(1, 5),
    ratio=st.sampled_from([0.0, 0.3, 0.75, 0.95]),
    gsd=st.sampled_from([0.5, 10.0, 30.0, 500.0]),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_equals_the_plain_reference(C, h, w, ratio, gsd, seed):
    cube = cube_of(2, C, 4 * h, 4 * w, gsd, seed)
    out = MODEL(cube, mask_ratio=ratio, shuffle=True)
    losses = []
    for b in range(2):
        visible = out.encoded.visible[b].numpy()
        arguments = [getattr(cube, name)[b].double().numpy() for name in ("pixels", "time", "latlon")]
        expected = plain_clay.forward(PLAIN, MICRO, *arguments, gsd, cube.waves.tolist(), visible)
        for ours, plain in zip(
            (out.encoded.tokens[b], out.reconstruction[b], out.representation[b]), expected, strict=True
        ):
            np.testing.assert_allclose(ours.numpy(), plain, atol=2e-4 if gsd > 100 else 2e-5 * max(1, abs(plain).max()))
        counted = out.encoded.masked[b].numpy() if out.encoded.masked.numel() else range(h * w)
        losses.append(plain_clay.reconstruction_loss(expected[1], arguments[0], counted, 4))
    ours = reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=4)
    assert float(ours) == pytest.approx(np.mean(losses), rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(H=st.integers(1, 40), W=st.integers(1, 40), C=st.integers(1, 4), ratio=st.floats(0, 0.95))
@torch.no_grad()
def test_any_height_and_width(H, W, C, ratio):
    cube = cube_of(1, C, H, W)
    out = MODEL(cube, mask_ratio=ratio)
    h, w = -(-H // 4), -(-W // 4)
    assert out.encoded.grid == (h, w)
    assert out.encoded.mask.sum() == int(ratio * h * w) == out.encoded.masked.shape[1]
    assert unpatchify(out.reconstruction, grid=(h, w), patch_size=4, size=(H, W)).shape == cube.pixels.shape
    loss = reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=4)
    assert torch.isfinite(loss)
    # the padding is the model's own affair: it never counts in the loss
    exact = unpatchify(patchify(cube.pixels, 4), grid=(h, w), patch_size=4, size=(H, W))
    assert torch.equal(exact, cube.pixels)
    assert reconstruction_loss(patchify(cube.pixels, 4), cube.pixels, out.encoded.mask, patch_size=4) == 0


def test_a_wide_image_is_not_a_tall_one():
    """64x256 and 256x64 have as many tokens; positions must differ."""
    wide = cube_of(1, 2, 8, 32)
    flat = wide.pixels[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)  # patches alike when turned
    wide = wide.with_pixels(flat)
    tall = Datacube(wide.pixels.transpose(2, 3).contiguous(), wide.time, wide.latlon, wide.gsd, wide.waves)
    with torch.no_grad():
        a, b = (MODEL.encoder(cube, mask_ratio=0.0, shuffle=False).tokens[0, 1:] for cube in (wide, tall))
    turned = a.reshape(2, 8, -1).transpose(0, 1).reshape(16, -1)  # the wide image's patches in the tall one's order
    assert (turned - b).abs().amax(1).min() > 1e-3


def test_padding_repeats_the_edge():
    pixels = torch.arange(6.0).reshape(1, 1, 2, 3)
    padded = pad_to_patches(pixels, 4)
    assert padded.shape == (1, 1, 4, 4)
    assert torch.equal(padded[0, 0, :, 3], torch.tensor([2.0, 5.0, 5.0, 5.0]))


@settings(max_examples=30, deadline=None)
@given(B=st.integers(1, 4), length=st.integers(1, 50), ratio=st.floats(0, 0.95), shuffle=st.booleans())
def test_mask_splits_the_patches(B, length, ratio, shuffle):
    visible, masked, mask = random_mask(B, length, mask_ratio=ratio, shuffle=shuffle)
    both = torch.cat([visible, masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(length).expand(B, length))
    assert torch.equal(mask.gather(1, masked), torch.ones_like(masked, dtype=torch.float))
    assert mask.sum() == masked.numel() and visible.shape[1] >= 1
    if not shuffle:
        assert torch.equal(masked[0], torch.arange(masked.shape[1]))


def test_parameter_counts():
    expected = {"tiny": (4.0, 1.7), "small": (11.0, 3.7), "base": (92.1, 15.8), "large": (311.44, 15.90)}
    for size, (encoder, decoder) in expected.items():
        with torch.device("meta"):
            model = ClayMAE(ClayConfig.named(size))
        for part, millions in ((model.encoder, encoder), (model.decoder, decoder)):
            assert sum(p.numel() for p in part.parameters()) / 1e6 == pytest.approx(
                millions, abs=0.051 if millions < 100 else 0.006
            )


def test_released_names_and_shapes(request):
    table = Path(__file__).resolve().parents[2] / "shared" / "reference" / "state_dict_large.tsv"
    if not table.is_file():
        pytest.skip("needs the table of released tensors beside the checkout, which is not part of the project")
    with torch.device("meta"):
        state = ClayMAE(ClayConfig.named("large")).state_dict()
    rows = list(csv.reader(table.open(), delimiter="\t"))[1:]
    assert dict(rows) == {f"model.{name}": "x".join(map(str, tensor.shape)) for name, tensor in state.items()}


def test_nothing_looks_at_values_on_the_way():
    """On the meta device there are no values: any move to the CPU, and any branch on a number, would raise."""
    cube = cube_of(3, 4, 13, 22).to("meta")
    model = ClayMAE(MICRO).to("meta")
    for ratio in (0.0, 0.75):
        out = model(cube, mask_ratio=ratio)
        loss = reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=4)
        assert loss.device.type == "meta" and out.reconstruction.shape == (3, 24, 4 * 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = ClayMAE(MICRO).to(dtype)
    out = model(cube_of(1, 3, 8, 8).to(dtype=dtype))
    assert out.reconstruction.dtype == dtype and out.reconstruction.isfinite().all()


def test_mixed_precision_as_on_a_gpu():
    model, cube = ClayMAE(MICRO), cube_of(2, 3, 8, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(cube, mask_ratio=0.5, shuffle=False)
        loss = reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=4)
    loss.backward()
    exact = model(cube, mask_ratio=0.5, shuffle=False)
    assert all(p.grad.isfinite().all() for p in model.encoder.parameters() if p.grad is not None)
    torch.testing.assert_close(out.reconstruction.float(), exact.reconstruction, atol=0.05, rtol=0.1)


def test_gsd_as_float_or_tensor_is_the_same():
    a, b = cube_of(1, 2, 8, 8, 10.0), cube_of(1, 2, 8, 8, torch.tensor(10.0))
    with torch.no_grad():
        assert torch.equal(MODEL.encoder(a, shuffle=False).tokens, MODEL.encoder(b, shuffle=False).tokens)


def test_losses_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert float(representation_loss(a, torch.tensor([[3.0, 0.0], [1.0, 0.0]]))) == pytest.approx(0.5)
    pixels = torch.tensor([[[[1.0, 2.0, float("nan"), 4.0]]]])  # two patches of one row, padded to 2x2
    guess = torch.zeros(1, 2, 4)
    assert float(reconstruction_loss(guess, pixels, torch.tensor([[1.0, 0.0]]), patch_size=2)) == pytest.approx(1.5)
    assert float(reconstruction_loss(guess, pixels, torch.tensor([[0.0, 1.0]]), patch_size=2)) == pytest.approx(4.0)
    assert float(reconstruction_loss(guess, pixels, torch.zeros(1, 2), patch_size=2)) == pytest.approx((1.5 + 4) / 2)


@pytest.mark.parametrize("mask_ratio", [1.0, -0.1, 75])
def test_mask_ratio_that_cannot_be(mask_ratio):
    with pytest.raises(ContractError, match="mask_ratio"):
        MODEL(cube_of(1, 2, 8, 8), mask_ratio=mask_ratio)


class TestFrontDoor:
    clay = Clay.random(MICRO, seed=3)
    pixels = np.random.default_rng(0).integers(0, 4000, (2, 10, 13, 22)).astype(np.uint16)

    def test_embed(self):
        out = self.clay.embed(self.pixels, "sentinel-2-l2a", when="2023-06-10T10:30", lat=-3.4, lon=34.07)
        assert out.chip.shape == (2, 24) and out.patches.shape == (2, 4, 6, 24)
        one = self.clay.embed(self.pixels[1], "sentinel-2-l2a", when="2023-06-10T10:30", lat=-3.4, lon=34.07)
        torch.testing.assert_close(one.chip[0], out.chip[1])

    def test_bands_by_name_in_any_order(self):
        names, order = ["red", "nir", "blue"], ["blue", "red", "nir"]
        rows = dict(zip(SENSORS["sentinel-2-l2a"].band_names, range(10), strict=True))
        a, b = (
            self.clay.embed(self.pixels[:, [rows[n] for n in bands]], "sentinel-2-l2a", bands=bands).chip
            for bands in (names, order)
        )
        torch.testing.assert_close(a, b)

    def test_reconstruct_is_in_native_numbers_and_repeatable(self):
        a, b = (self.clay.reconstruct(self.pixels, "sentinel-2-l2a", seed=5) for _ in range(2))
        assert a.pixels.shape == self.pixels.shape and a.mask.shape == (2, 13, 22)
        assert np.array_equal(a.pixels, b.pixels) and 0.5 < a.mask.mean() < 0.95
        assert abs(a.pixels.mean() - 1900) < 3000  # near the sensor's means, not near zero

    def test_same_seed_same_weights(self):
        again = Clay.random(MICRO, seed=3).model.state_dict()
        assert all(torch.equal(again[k], v) for k, v in self.clay.model.state_dict().items())
        assert not torch.equal(Clay.random(MICRO, seed=4).model.encoder.cls_token, self.clay.model.encoder.cls_token)

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"pixels": np.zeros((9, 16, 16))}, "pixels"),
            ({"pixels": np.zeros((16, 16))}, "pixels"),
            ({"pixels": np.zeros((16, 16, 10))}, "pixels"),
            ({"pixels": np.array([[["a"]]])}, "pixels"),
            ({"pixels": np.zeros((10, 0, 16))}, "pixels"),
            ({"sensor": "sentinel2"}, "sensor"),
            ({"gsd": "ten"}, "gsd"),
            ({"gsd": -10}, "gsd"),
            ({"gsd": float("nan")}, "gsd"),
            ({"lat": "north", "lon": 3}, "lat"),
            ({"lat": 120, "lon": 3}, "lat"),
            ({"lat": 12}, "lon"),
            ({"when": "10 June 2023"}, "when"),
            ({"when": ["2023-01-01"] * 3}, "when"),
            ({"bands": ["blue", "purple"]}, "bands"),
            ({"bands": []}, "bands"),
            ({"reading": "right"}, "reading"),
        ],
    )
    def test_wrong_input_says_which_and_why(self, change, field):
        call = {"pixels": self.pixels[0], "sensor": "sentinel-2-l2a"} | change
        with pytest.raises(ContractError) as caught:
            self.clay.embed(**call)
        error = caught.value
        assert error.field == field and error.cause and str(error.expected) in str(error)


def test_nanometres_are_refused():
    cube = cube_of(1, 3, 8, 8)
    with pytest.raises(ContractError, match="divide by 1000"):
        Datacube(cube.pixels, cube.time, cube.latlon, cube.gsd, torch.tensor([490.0, 560.0, 665.0]))
