"""What is wrong with a batch that is normalised already: wavelengths, numbers, codes of place and time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from clay_lib.contract import ContractError
from clay_lib.contract_evidence import Finding, failed, told
from clay_lib.contract_rules import FEW
from clay_lib.contract_said import of_distance
from clay_lib.datacube import Datacube
from clay_lib.sensors import SENSORS, Sensor, check_wavelength


def inspect_cube(cube: Datacube | Mapping, sensor: str | Sensor | None = None) -> list[Finding]:
    """What is wrong with a batch that is normalised already: a Datacube, or the mapping that other Clay code makes."""
    if isinstance(cube, Mapping):
        cube = SimpleNamespace(**{str(k): v for k, v in cube.items()})
    try:
        sensor = None if sensor is None else SENSORS.resolve(sensor)
        pixels, time, latlon, waves = (
            torch.as_tensor(getattr(cube, name)).detach().cpu().double()
            for name in ("pixels", "time", "latlon", "waves")
        )
        Datacube(pixels, time, latlon, 1.0, torch.full((pixels.shape[1],) if pixels.ndim == 4 else (1,), 0.5))
        if waves.shape != (pixels.shape[1],):
            raise ContractError(
                "waves", found=tuple(waves.shape), expected=f"[{pixels.shape[1]}]", cause="bands dropped on one side"
            )
    except ContractError as error:
        return [told(error)]
    except Exception as error:
        return [failed("cube", cube, "pixels [B, C, H, W], time and latlon [B, 4], gsd, waves [C]", error)]
    found = [*_of_waves(waves.tolist(), sensor), *of_distance(getattr(cube, "gsd", None), sensor)]
    found += [*_of_normalised(pixels, waves, sensor), *_of_codes(time.numpy(), latlon.numpy())]
    return sorted(found, key=lambda f: f.level)


def _of_waves(waves: list[float], sensor: Sensor | None) -> Iterator[Finding]:
    for wave in waves:
        try:
            check_wavelength("waves", wave)
        except ContractError as error:
            yield told(error)
            return
    own = sensor.waves().tolist() if sensor else []
    if sensor and len(waves) == len(own) and not np.allclose(waves, own, rtol=0.05):
        order = np.allclose(sorted(waves), sorted(own), rtol=0.05)
        yield Finding(
            "warning", "waves", ", ".join(f"{w:g}" for w in waves), f"{', '.join(f'{w:g}' for w in own)} um",
            "another order than the sensor's: right only if the pixels follow it" if order else "another sensor's",
        )  # fmt: skip


def _of_normalised(pixels: Tensor, waves: Tensor, sensor: Sensor | None) -> Iterator[Finding]:
    """pixels [B, C, H, W]."""
    B, C, H, W = pixels.shape
    expected = "mean near 0 and spread near 1: (native - mean) / std"
    broken = ~pixels.isfinite()
    if broken.any():
        yield Finding(
            "error", "pixels", f"NaN or infinite in {float(broken.double().mean()):.1%} of the numbers", "finite numbers",
            "missing pixels: set them to 0, the band's mean",
        )  # fmt: skip
        pixels = pixels.nan_to_num(0, 0, 0)
    mean, spread = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    zero = (pixels == 0).all(0).all(-1).all(-1)
    numbers = f"mean {float(mean[mean.abs().argmax()]):.3g} and spread {float(spread.max()):.3g} in a band"
    if zero.all() and B * H * W >= FEW:
        yield Finding("error", "pixels", "zero in every pixel of every band", expected, "a batch that was never filled")
    elif mean.abs().max() > 30 or spread.max() > 30:
        yield Finding("error", "pixels", numbers, expected, "native numbers that were not normalised")
    elif mean.abs().median() > 10:
        yield Finding("warning", "pixels", numbers, expected, "statistics of another sensor")
    elif B * H * W >= FEW and spread.max() < 2e-3 and mean.abs().max() > 0.05:
        yield Finding(
            "error",
            "pixels",
            numbers,
            expected,
            "reflectance 0..1 normalised with the statistics of x 10000: 1 is tiny",
        )
    elif B * H * W >= FEW and C > 1 and pixels.min() >= 0 and pixels.max() <= 1 and mean.max() < 0.9:
        yield Finding(
            "warning", "pixels", f"all numbers from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}", expected,
            "reflectance or a picture scaled to 0..1 instead of normalised",
        )  # fmt: skip
    if zero.any() and not zero.all() and B * H * W >= FEW:
        band = int(zero.nonzero()[0])
        name = f"{band} ({float(waves[band]):g} um)"
        yield Finding(
            "warning", "pixels", f"zero in every pixel of band {name}", "measurements in every band",
            "a band that is missing: leave it out of pixels and waves",
        )  # fmt: skip


def _of_codes(time: np.ndarray, latlon: np.ndarray) -> Iterator[Finding]:
    """Sines and cosines [B, 4] of week and hour, latitude and longitude; zeros: unknown."""
    for name, code in (("time", time), ("latlon", latlon)):
        known = code[(code != 0).any(1)]
        length = np.hypot(known[:, ::2], known[:, 1::2])
        if not np.allclose(length, 1, atol=0.02):
            worst = known[np.abs(length - 1).max(1).argmax()]
            yield Finding(
                "error", name, np.array2string(worst, precision=3), "sine and cosine pairs of length 1, or four zeros",
                "raw numbers instead of their codes: see time_code and latlon_code",
            )  # fmt: skip
            continue
        turns = np.arctan2(known[:, ::2], known[:, 1::2]) / (2 * np.pi)
        if name == "latlon" and (known[:, 1] < -0.01).any():
            both = (known[:, 3] < -0.01).any()
            yield Finding(
                "error" if both else "warning", name, f"cos(lat) = {known[:, 1].min():.3g}", "latitudes within 90 degrees",
                "sines and cosines in another order" if both else "lon before lat: swapped, unless reading='as_trained'",
            )  # fmt: skip
        if name == "time":
            whole = {n: np.abs(turns * n - np.rint(turns * n)) < 0.02 for n in (52, 24)}
            if len(turns) and not whole[52][:, 0].all() and whole[24][:, 0].all() and whole[52][:, 1].all():
                yield Finding(
                    "warning", name, "an hour in the place of the week", "sin week, cos week, sin hour, cos hour",
                    "the two codes are swapped",
                )  # fmt: skip
