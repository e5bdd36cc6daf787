"""The model against a plain NumPy reference, for random sizes, bands and mask ratios; its initialization."""

import copy
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import plain_clay
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, ClayConfig, ClayMAE, ContractError, Datacube
from clay_lib.clay import cosine_initialized
from clay_lib.datacube import latlon_code, time_code
from clay_lib.encoder import patchify, random_mask, unpatchify
from clay_lib.loss import reconstruction_loss, representation_loss
from clay_lib.model import attend_to_neighbors, cosine_initialize, cosine_kernels, set_kernels
from clay_lib.position import position_code

MICRO = ClayConfig(24, 2, 2, 8, 2, 16, 1, 2, 8, 2, patch_size=4, teacher_dim=12)
MODEL = ClayMAE(MICRO).eval()
with torch.no_grad():  # larger than initialized, so that every path changes the output
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
        outputs = out.encoded.tokens[b], out.reconstruction[b], out.representation[b]
        for ours, plain in zip(outputs, expected, strict=True):
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
    # padding never counts in the loss
    exact = unpatchify(patchify(cube.pixels, 4), grid=(h, w), patch_size=4, size=(H, W))
    assert torch.equal(exact, cube.pixels)
    assert reconstruction_loss(patchify(cube.pixels, 4), cube.pixels, out.encoded.mask, patch_size=4) == 0


def test_wide_and_tall_images_differ():
    """64x256 and 256x64 have as many tokens; positions must differ."""
    wide = cube_of(1, 2, 8, 32)
    flat = wide.pixels[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)  # patches equal when transposed
    wide = wide.with_pixels(flat)
    tall = Datacube(wide.pixels.transpose(2, 3).contiguous(), wide.time, wide.latlon, wide.gsd, wide.waves)
    with torch.no_grad():
        a, b = (MODEL.encoder(cube, mask_ratio=0.0, shuffle=False).tokens[0, 1:] for cube in (wide, tall))
    transposed = a.reshape(2, 8, -1).transpose(0, 1).reshape(16, -1)  # the wide image's patches in the tall one's order
    assert (transposed - b).abs().amax(1).min() > 1e-3


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
            count = sum(p.numel() for p in part.parameters()) / 1e6
            assert count == pytest.approx(millions, abs=0.051 if millions < 100 else 0.006)


def test_released_names_and_shapes(request):
    table = Path(__file__).resolve().parents[2] / "shared" / "reference" / "state_dict_large.tsv"
    if not table.is_file():
        pytest.skip("needs the table of released tensors beside the checkout, which is not part of the project")
    with torch.device("meta"):
        state = ClayMAE(ClayConfig.named("large")).state_dict()
    rows = list(csv.reader(table.open(), delimiter="\t"))[1:]
    assert dict(rows) == {f"model.{name}": "x".join(map(str, tensor.shape)) for name, tensor in state.items()}


def test_forward_reads_no_values():
    """On the meta device any copy to the CPU and any branch on a value would raise."""
    cube = cube_of(3, 4, 13, 22).to("meta")
    model = ClayMAE(MICRO).to("meta")
    for ratio in (0.0, 0.75):
        out = model(cube, mask_ratio=ratio)
        loss = reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=4)
        assert loss.device.type == "meta" and out.reconstruction.shape == (3, 24, 4 * 16)


def test_losses_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert float(representation_loss(a, torch.tensor([[3.0, 0.0], [1.0, 0.0]]))) == pytest.approx(0.5)
    pixels = torch.tensor([[[[1.0, 2.0, float("nan"), 4.0]]]])  # two patches of one row, padded to 2x2
    guess = torch.zeros(1, 2, 4)
    assert float(reconstruction_loss(guess, pixels, torch.tensor([[1.0, 0.0]]), patch_size=2)) == pytest.approx(1.5)
    assert float(reconstruction_loss(guess, pixels, torch.tensor([[0.0, 1.0]]), patch_size=2)) == pytest.approx(4.0)
    assert float(reconstruction_loss(guess, pixels, torch.zeros(1, 2), patch_size=2)) == pytest.approx((1.5 + 4) / 2)


@pytest.mark.parametrize("mask_ratio", [1.0, -0.1, 75])
def test_impossible_mask_ratio_is_refused(mask_ratio):
    with pytest.raises(ContractError, match="mask_ratio"):
        MODEL(cube_of(1, 2, 8, 8), mask_ratio=mask_ratio)


# --- cosine initialization ---

COSINE = ClayConfig.named("tiny", frequencies="geometric")


def kernels_of(model, sensor="naip"):
    with torch.no_grad():
        return model.encoder.patch_embedding.kernels(torch.from_numpy(SENSORS[sensor].waves()))[0]  # [D, C, P, P]


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_generators_learn_the_cosine_kernels(patch_size):
    model = ClayMAE(replace(COSINE, patch_size=patch_size))
    for layer in (model.encoder.patch_embedding, model.decoder.embed_to_pixels):
        assert set_kernels(layer) > 0.9
        waves = torch.from_numpy(SENSORS["naip"].waves()).float()
        with torch.no_grad():
            generated = layer.generate(waves)[0]
        assert F.cosine_similarity(generated.flatten(), cosine_kernels(layer, waves).flatten(), dim=0) > 0.95


def test_cosine_kernels_separate_colors_and_see_fine_detail():
    """A fine grating of one standard deviation moves a token as much as its position does; at random, hardly."""
    random, cosine = ClayMAE(COSINE), cosine_initialize(ClayMAE(COSINE))
    red, green, blue = range(3)
    rows = [F.normalize(kernels_of(model).transpose(0, 1).flatten(1), dim=1) for model in (random, cosine)]
    at_random, chosen = (r @ r.T for r in rows)  # cosines between the kernels of bands, [C, C]
    assert at_random[red, green] > 0.9 and at_random[green, blue] > 0.9
    assert chosen[red, green] < 0.9 and chosen[red, blue] < 0.6

    grating = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2) * 2.0 - 1
    norms = [(kernels_of(model) * grating).sum((1, 2, 3)).norm() for model in (random, cosine)]
    assert norms[1] > 5 and norms[1] > 5 * norms[0]


def test_the_first_attention_of_the_decoder_follows_distance():
    """A hidden patch attends to the patches beside it more than to far ones; nothing but queries and keys changes."""
    config = ClayConfig.named("tiny", frequencies="geometric")
    torch.manual_seed(0)
    plain = ClayMAE(config)
    local = attend_to_neighbors(copy.deepcopy(plain))
    before, after = plain.state_dict(), local.state_dict()
    name = "decoder.transformer.layers.0.0.to_qkv.weight"
    assert {n for n in before if not torch.equal(before[n], after[n])} == {name}
    assert torch.equal(before[name].chunk(3)[2], after[name].chunk(3)[2])
    code = position_code(8, 8, 96, 10.0, torch.zeros(1, 4), torch.zeros(1, 4), frequencies="geometric")
    distance = torch.cdist(*[torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))] * 2)
    ratio = {}
    for name, model in {"plain": plain, "local": local}.items():
        attention = model.decoder.transformer.layers[0][0]
        q, k, _ = rearrange(attention.to_qkv(attention.norm(code)), "1 N (t h d) -> t h N d", t=3, h=2)
        share = (q @ k.mT / 48**0.5).softmax(-1).mean(0)
        ratio[name] = (share[distance == 1].mean() / share[distance > 4].mean()).item()
    assert ratio["local"] > 5 * ratio["plain"], ratio


def test_cosine_initialization_is_repeatable_and_changes_only_the_kernels():
    before = torch.get_rng_state()
    a, b = (cosine_initialized(COSINE, seed=0).model.state_dict() for _ in range(2))
    plain = Clay.random(COSINE, seed=0).model.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    changed = {name for name in plain if not torch.equal(plain[name], a[name])}
    ends = ("fclayer.l1.weight", "fclayer.l1.bias", "weight_generator.fc_weight.weight")
    assert changed == {f"{p}.{e}" for p in ("encoder.patch_embedding", "decoder.embed_to_pixels") for e in ends}
