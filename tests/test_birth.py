"""Kernels at birth: what the generators are made to write, and what stays as it was."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from clay_lib import SENSORS, Clay, ClayConfig
from clay_lib.clay import cosine_initialized
from clay_lib.model import cosine_kernels, set_kernels

TINY = ClayConfig.named("tiny", frequencies="geometric")


@pytest.fixture(scope="module")
def clay():
    return cosine_initialized(TINY, seed=0)


def angles(clay, sensor):
    """Cosines between the kernels of a sensor's bands, [C, C]."""
    with torch.no_grad():
        kernels = clay.model.encoder.patch_embedding.kernels(torch.from_numpy(SENSORS[sensor].waves()))[0]
    rows = F.normalize(kernels.transpose(0, 1).flatten(1), dim=1)
    return rows @ rows.T


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_generators_write_the_cosine_kernels(patch_size):
    model = Clay.random(replace(TINY, patch_size=patch_size), seed=1).model
    for layer in (model.encoder.patch_embedding, model.decoder.embed_to_pixels):
        assert set_kernels(layer) > 0.9
        waves = torch.from_numpy(SENSORS["naip"].waves()).float()
        with torch.no_grad():
            written = layer.generate(waves)[0]
        assert F.cosine_similarity(written.flatten(), cosine_kernels(layer, waves).flatten(), dim=0) > 0.95


def test_colours_are_told_apart(clay):
    red, green, blue = range(3)
    at_random = angles(Clay.random(TINY, seed=0), "naip")
    assert at_random[red, green] > 0.9 and at_random[green, blue] > 0.9
    assert angles(clay, "naip")[red, green] < 0.9 and angles(clay, "naip")[red, blue] < 0.6


def test_fine_detail_reaches_the_tokens(clay):
    """A fine grating of one standard deviation moves a token as much as its position does; at random, hardly."""
    checks = torch.ones(8, 8).cumsum(0).add(torch.ones(8, 8).cumsum(1)).remainder(2) * 2 - 1
    pixels = checks.repeat(1, 4, 1, 1)
    waves = torch.from_numpy(SENSORS["naip"].waves())
    with torch.no_grad():
        norms = [
            float(m.encoder.patch_embedding(pixels, waves).sub(m.encoder.patch_embedding(0 * pixels, waves)).norm())
            for m in (clay.model, Clay.random(TINY, seed=0).model)
        ]
    assert norms[0] > 5 and norms[0] > 5 * norms[1]


def test_same_seed_same_weights_and_nothing_else_changes(clay):
    before = torch.get_rng_state()
    again, plain = cosine_initialized(TINY, seed=0).model.state_dict(), Clay.random(TINY, seed=0).model.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    changed = {name for name in plain if not torch.equal(plain[name], again[name])}
    assert all(torch.equal(tensor, again[name]) for name, tensor in clay.model.state_dict().items())
    ends = ("fclayer.l1.weight", "fclayer.l1.bias", "weight_generator.fc_weight.weight")
    assert changed == {f"{p}.{e}" for p in ("encoder.patch_embedding", "decoder.embed_to_pixels") for e in ends}
