"""Heads: any bands, sizes and holes; values under a hole never change an output."""

import pytest
import torch

from clay_lib import SENSORS, Clay, ClayConfig, ContractError
from clay_lib.datacube import make_datacube
from clay_lib.heads.heads import ChipHead, DenseHead, extract_features, spread_layers

CONFIG = ClayConfig(32, 3, 2, 16, 2, 32, 1, 2, 16, 2)


@pytest.fixture(scope="module")
def clay():
    return Clay.random(CONFIG)


def pixels(batch=2, side=24, sensor="sentinel-2-l2a", seed=0):
    spec = SENSORS[sensor]
    mean, std = (torch.as_tensor(x).float().view(1, -1, 1, 1) for x in spec.statistics())
    draw = torch.randn(batch, len(spec.bands), side, side + 4, generator=torch.Generator().manual_seed(seed))
    return mean + 0.3 * std * draw


@pytest.mark.parametrize("sensor", ["sentinel-2-l2a", "naip", "modis"])
@pytest.mark.parametrize("upsampling", ["resize", "transposed"])
def test_every_pixel_has_an_output(clay, sensor, upsampling):
    """24 x 28 pixels: the last column of patches is padded, and the padding is cut off again."""
    features = extract_features(clay.model.encoder, make_datacube(pixels(sensor=sensor), sensor), (0, -1))
    assert features.patches.shape == (2, 2, 32, 3, 4) and features.valid.all()
    for bands in (0, len(SENSORS[sensor].bands)):
        head = DenseHead(32, 5, layers=2, width=16, bands=bands, upsampling=upsampling)
        assert head(features).shape == (2, 5, 24, 28)
    assert ChipHead(32, 3)(features).shape == (2, 3)


@pytest.mark.parametrize("patch_size", [4, 6, 16])
def test_other_patch_sizes(patch_size):
    encoder = Clay.random(ClayConfig(32, 1, 2, 16, 2, patch_size=patch_size)).model.encoder
    features = extract_features(encoder, make_datacube(pixels(), "sentinel-2-l2a"))
    assert DenseHead(32, 2, layers=1, patch_size=patch_size, width=16)(features).shape == (2, 2, 24, 28)


def test_features_equal_those_of_embed(clay):
    out = clay.embed(pixels(), "sentinel-2-l2a", layers=[0], check=False)
    features = extract_features(clay.model.encoder, make_datacube(pixels(), "sentinel-2-l2a"), (0, 2))
    torch.testing.assert_close(features.chip, out.chip)
    torch.testing.assert_close(features.mean, out.mean)
    torch.testing.assert_close(features.patches[:, 0].permute(0, 2, 3, 1), out.layers[0].patches)
    torch.testing.assert_close(features.patches[:, 1].permute(0, 2, 3, 1), out.patches)


def test_holes_never_change_an_output(clay):
    """NaN pixels, one chip all missing: finite outputs and gradients, equal whatever lies under the holes."""
    native = pixels()
    native[0, :, :8, :16], native[1] = float("nan"), float("nan")
    heads = [DenseHead(32, 2, layers=2, width=16, bands=10), ChipHead(32, 2)]
    encoder = clay.model.encoder.requires_grad_(True)
    features = extract_features(encoder, make_datacube(native, "sentinel-2-l2a"), (0, -1))
    assert features.valid[0].sum() == 10 and not features.valid[1].any() and (features.patches[1] == 0).all()
    scores = [head.eval()(features) for head in heads]
    assert all(s.isfinite().all() for s in scores)
    sum(s.square().mean() for s in scores).backward()
    for module in (encoder, *heads):
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())

    mask = ~native.isnan()
    other = torch.where(mask, native, 12345.0)
    again = extract_features(encoder, make_datacube(other, "sentinel-2-l2a", valid=mask), (0, -1))
    for head, score in zip(heads, scores, strict=True):
        torch.testing.assert_close(head(again), score)


def test_resizing_leaves_no_checkerboard(clay):
    """On a constant field a resizing head is constant far from the border; a transposed one leaves its grid."""
    features = extract_features(clay.model.encoder, make_datacube(pixels(1, 96), "sentinel-2-l2a"))
    constant = type(features)(features.chip, torch.ones_like(features.patches), features.valid, features.pixels)
    spread = {}
    for upsampling in ("resize", "transposed"):
        torch.manual_seed(0)
        output = DenseHead(32, 1, layers=1, width=16, upsampling=upsampling).eval()(constant)
        spread[upsampling] = output[..., 40:56, 40:56].std().item()
    assert spread["resize"] < 1e-6 < 1e-4 < spread["transposed"]


@pytest.mark.parametrize("upsampling", ["resize", "transposed"])
def test_selected_pixels_equal_those_of_the_full_output(clay, upsampling):
    """With bands, holes and padding: selecting pixels is the same as slicing the output."""
    native = pixels()
    native[0, :, :8, :16] = float("nan")
    features = extract_features(clay.model.encoder, make_datacube(native, "sentinel-2-l2a"), (0, -1))
    head = DenseHead(32, 3, layers=2, width=16, bands=10, upsampling=upsampling).eval()
    full = head(features)
    fourth, corner = (slice(1, None, 4), slice(3, None, 4)), (slice(0, 5), slice(20, None))
    for select in (fourth, corner, (slice(None), slice(27, None))):
        part = head(features, select=select)
        torch.testing.assert_close(part, full[:, :, *select])
        assert part.shape[-2:] == features.pixels[0, 0][select].shape


def test_layers_spread_evenly_and_misspellings():
    assert spread_layers(24) == (5, 11, 17, 23) and spread_layers(6, 3) == (1, 3, 5) and spread_layers(2) == (0, 1)
    with pytest.raises(ContractError, match="resize"):
        DenseHead(32, 2, upsampling="nearest")
