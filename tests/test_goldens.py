"""The released code's own numbers, for seven sensors, to 1e-5."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from clay_lib import ClayConfig, ClayMAE, Datacube
from clay_lib.checkpoint import load_released_state
from clay_lib.loss import reconstruction_loss

SENSORS = ["sentinel-2-l2a", "landsat-c2l1", "landsat-c2l2-sr", "naip", "linz", "sentinel-1-rtc", "modis"]
MICRO = ClayConfig(48, 2, 3, 16, 2, 32, 2, 2, 16, 2, patch_size=8, teacher_dim=32)


@pytest.fixture(scope="module")
def model(goldens):
    state = load_file(goldens / "clay_v1_5_micro.weights.safetensors")
    return load_released_state(ClayMAE(MICRO), state).eval()


@pytest.fixture(scope="module")
def cases(goldens):
    return load_file(goldens / "clay_v1_5_micro.cases.safetensors")


def close(ours, golden):
    torch.testing.assert_close(ours, golden, rtol=0, atol=1e-5 * float(golden.abs().max()))


def test_weights_file_states_this_configuration(goldens):
    with safe_open(goldens / "clay_v1_5_micro.weights.safetensors", "pt") as file:
        stated = file.metadata()
    assert stated and all(float(value) == getattr(MICRO, name) for name, value in stated.items())


@pytest.mark.parametrize("sensor", SENSORS)
@torch.inference_mode()
def test_every_tensor(model, cases, sensor):
    c = {name.split("/")[1]: tensor for name, tensor in cases.items() if name.startswith(sensor + "/")}
    cube = Datacube(**{name: c[name] for name in ("pixels", "time", "latlon", "gsd", "waves")})

    close(model.encoder(cube, mask_ratio=0.0, shuffle=False).tokens, c["tokens_unmasked_run"])
    out = model(cube, mask_ratio=0.75, shuffle=False)
    close(out.encoded.tokens, c["tokens_masked_run"])
    close(out.encoded.mask, c["mask"].float())
    close(out.reconstruction, c["reconstruction"])
    close(out.representation, c["representation"])
    loss = reconstruction_loss(out.reconstruction, cube.pixels, out.encoded.mask, patch_size=8)
    close(loss, c["reconstruction_loss"].reshape(()))
