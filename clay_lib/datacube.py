"""Datacube: the batch that the model takes, and the codes for time and place in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime

import numpy as np
import torch
from torch import Tensor

from clay_lib.errors import ContractError, number
from clay_lib.sensors import SENSORS, Sensor, check_wavelength

When = str | date | datetime | None

# The released weights were probably trained on (lon, lat) and 12:00 for every image, while the published tutorials
# feed (lat, lon) and the real hour. "documented" is the default everywhere; "as_trained" is the other reading.
READINGS = ("documented", "as_trained")


@dataclass(frozen=True)
class Datacube:
    """Normalized images of one sensor. Raises ContractError for shapes or values that do not fit together."""

    pixels: Tensor  # [B, C, H, W], (native - mean) / std
    time: Tensor  # [B, 4], sin week, cos week, sin hour, cos hour; zeros: unknown
    latlon: Tensor  # [B, 4], sin lat, cos lat, sin lon, cos lon; zeros: unknown
    gsd: float | Tensor  # meters per pixel, one number
    waves: Tensor  # [C], um
    valid: Tensor | None = None  # [B, 1 or C, H, W] bool, False where nothing was measured; [B, H, W] is accepted too

    def __post_init__(self):
        pixels = self.pixels
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or 0 in pixels.shape:
            found = f"shape {tuple(pixels.shape)}" if hasattr(pixels, "shape") else type(pixels).__name__
            raise ContractError("pixels", found, "a tensor [B, C, H, W]", "a chip without its batch axis")
        if not pixels.is_floating_point():
            raise ContractError("pixels", pixels.dtype, "floats", "native numbers that were not normalized")
        B, C, H, W = pixels.shape

        def on_device(name: str) -> Tensor:
            tensor = torch.as_tensor(getattr(self, name), device=pixels.device)
            object.__setattr__(self, name, tensor)
            return tensor

        waves = on_device("waves")
        if waves.shape != (C,):
            cause = "bands dropped from the pixels or from the wavelengths alone"
            raise ContractError("waves", f"{tuple(waves.shape)} for {C} bands", f"[{C}], one wavelength a band", cause)
        for name in ("time", "latlon"):
            if (shape := on_device(name).shape) != (B, 4):
                raise ContractError(name, tuple(shape), f"[{B}, 4]", "raw dates or degrees, not their codes")
        if self.valid is not None:
            valid = on_device("valid")
            valid = valid[:, None] if valid.shape == (B, H, W) else valid
            if valid.dtype != torch.bool or valid.shape not in ((B, 1, H, W), (B, C, H, W)):
                found = f"{str(valid.dtype).removeprefix('torch.')} {tuple(valid.shape)}"
                expected = f"bool [{B}, {H}, {W}] or [{B}, {C}, {H}, {W}]"
                raise ContractError("valid", found, expected, "the mask of another image, or of patches")
            object.__setattr__(self, "valid", valid)
        gsd = self.gsd
        if isinstance(gsd, Tensor):
            if gsd.numel() != 1:
                raise ContractError("gsd", tuple(gsd.shape), "one number a batch", "a list")
            gsd = gsd.to(pixels.device).reshape(())
        else:
            gsd = number("gsd", gsd.item() if isinstance(gsd, np.ndarray) and gsd.size == 1 else gsd)
        object.__setattr__(self, "gsd", gsd)
        if pixels.device.type == "cpu":  # on a GPU, checking values would cost a transfer
            for wave in waves.tolist():
                check_wavelength("waves", wave)
            if float(gsd) <= 0:
                raise ContractError("gsd", float(gsd), "meters, > 0", "a negative pixel height")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, chips: slice) -> Datacube:
        """Some of the chips."""
        parts = {name: getattr(self, name)[chips] for name in ("pixels", "time", "latlon")}
        return replace(self, **parts, valid=None if self.valid is None else self.valid[chips])

    def to(self, device=None, dtype: torch.dtype | None = None) -> Datacube:
        """On another device; dtype applies to the pixels alone, the codes stay float32."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in moved.items()}
        return Datacube(**(moved | {"pixels": moved["pixels"].to(dtype)}))

    def with_pixels(self, pixels: Tensor) -> Datacube:
        """The same place, date, bands and holes with other pixels [B, C, H, W]."""
        return replace(self, pixels=pixels)

    @property
    def target(self) -> Tensor:
        """Pixels [B, C, H, W] with NaN in the holes: the target of a reconstruction (the loss ignores NaN)."""
        return self.pixels if self.valid is None else self.pixels.masked_fill(~self.valid, float("nan"))


def make_datacube(
    pixels,
    sensor: str | Sensor,
    *,
    when: When | Sequence[When] = None,
    lat: float | Sequence[float] | None = None,
    lon: float | Sequence[float] | None = None,
    bands: Sequence[str] | None = None,
    gsd: float | Tensor | None = None,
    valid=None,
    in_decibel: bool = False,
    reading: str = "documented",
) -> Datacube:
    """Native numbers [C, H, W] or [B, C, H, W] of a sensor -> Datacube on the CPU.

    when, lat, lon: one for all, one per chip, or None for unknown (coded as zeros); when is UTC unless it has a time
    zone. gsd: meters, by default the sensor's own. valid: True where something was measured, [H, W], [B, H, W] or
    [B, C, H, W], for example an inverted cloud mask; NaN, infinite and masked pixels are holes too. Holes are zero in
    the cube, the band's mean, whatever value they had. A cube without holes has valid None.
    """
    sensor = SENSORS.resolve(sensor)
    pixels = as_numpy(pixels)
    if pixels.dtype.kind not in "iufb":
        raise ContractError("pixels", f"dtype {pixels.dtype}", "numbers", "text or objects in the array")
    if pixels.ndim == 3:
        pixels = pixels[None]
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise ContractError("pixels", f"shape {pixels.shape}", "[C, H, W] or [B, C, H, W]", "an empty or flat array")
    values = torch.from_numpy(sensor.normalize(pixels, bands, in_decibel=in_decibel))  # [B, C, H, W]
    measured = values.isfinite()
    if valid is not None:
        measured &= torch.from_numpy(as_valid(valid, values.shape))
    complete = bool(measured.all())
    return Datacube(
        pixels=values if complete else values.masked_fill(~measured, 0.0),
        time=time_code(when, len(values), reading=reading),
        latlon=latlon_code(lat, lon, len(values), reading=reading),
        gsd=sensor.gsd if gsd is None else gsd,
        waves=torch.from_numpy(sensor.waves(bands)),
        valid=None if complete else measured,
    )


def as_numpy(values) -> np.ndarray:
    """An array from lists, NumPy, or torch on any device with or without gradient; masked values become NaN."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, np.ma.MaskedArray):
        return values.astype(np.promote_types(values.dtype, np.float32)).filled(np.nan)
    return np.asarray(values)


def as_valid(valid, shape: tuple[int, int, int, int]) -> np.ndarray:
    """A mask, True or 1 where measured, [H, W], [B, H, W] or [B, C, H, W] -> bool [B, C, H, W].

    For a single chip [C, H, W] is accepted too. Class codes are refused.
    """
    B, C, H, W = shape
    valid = as_numpy(valid)
    if valid.dtype.kind not in "iufb" or not np.isin(valid, (0, 1)).all():
        found, expected = f"{valid.dtype} with other values than 0 and 1", "True where something was measured"
        cause = "the classes of a scene classification: compare them first, for example np.isin(scl, [4, 5, 6, 7])"
        raise ContractError("valid", found, expected, cause)
    if valid.shape == (B, H, W):
        valid = valid[:, None]
    if valid.shape not in ((H, W), (B, 1, H, W), (B, C, H, W)) and not (B == 1 and valid.shape == (C, H, W)):
        expected = f"[{H}, {W}], [{B}, {H}, {W}] or [{B}, {C}, {H}, {W}]"
        cause = "the mask of another image, of patches, or at another resolution"
        raise ContractError("valid", f"shape {valid.shape}", expected, cause)
    return np.array(np.broadcast_to(valid.astype(bool), shape))


def time_code(when: When | Sequence[When], batch: int = 1, *, reading: str = "documented") -> Tensor:
    """[B, 4]: sin w, cos w, sin h, cos h with w = 2 pi ISO week / 52 and h = 2 pi hour / 24; None gives zeros.

    A date without an hour counts as noon.
    """
    check_reading(reading)
    rows = []
    for time in map(parse_when, per_chip("when", when, batch)):
        if time is None:
            rows.append([0.0] * 4)
            continue
        hour = 12 if reading == "as_trained" else time.hour
        w, h = 2 * math.pi * time.isocalendar().week / 52, 2 * math.pi * hour / 24
        rows.append([math.sin(w), math.cos(w), math.sin(h), math.cos(h)])
    return torch.tensor(rows)


def latlon_code(lat, lon, batch: int = 1, *, reading: str = "documented") -> Tensor:
    """[B, 4]: sin lat, cos lat, sin lon, cos lon, from degrees; None gives zeros."""
    check_reading(reading)
    rows = []
    for place in zip(per_chip("lat", lat, batch), per_chip("lon", lon, batch), strict=True):
        if place == (None, None):
            rows.append([0.0] * 4)
            continue
        for name, value, limit in zip(("lat", "lon"), place, (90, 360), strict=True):
            if value is None:
                raise ContractError(name, None, "both lat and lon, or neither", "one of the two is missing")
            if abs(number(name, value)) > limit:
                cause = "lat and lon are swapped, or meters in a projection"
                raise ContractError(name, value, f"degrees, -{limit} to {limit}", cause)
        order = place if reading == "documented" else reversed(place)
        rows.append([f(math.radians(float(v))) for v in order for f in (math.sin, math.cos)])
    return torch.tensor(rows)


def parse_when(when: When) -> datetime | None:
    """A time in UTC, naive; times with another zone are converted. A date alone becomes its noon."""
    if when is None:
        return None
    if isinstance(when, datetime):
        return when.astimezone(UTC).replace(tzinfo=None) if when.tzinfo else when
    if isinstance(when, date):
        return datetime(when.year, when.month, when.day, 12)
    text = str(when).strip()
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        expected = "ISO 8601, for example 2023-06-10T10:30"
        raise ContractError("when", repr(when), expected, "another date format") from None
    return parse_when(time) if len(text) > 10 else time.replace(hour=12)


def per_chip(name: str, value, batch: int) -> list:
    """A value for each chip of the batch, from one for all or one each."""
    if hasattr(value, "to_numpy"):  # a column of a table, a coordinate of an xarray
        value = value.to_numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind == "M":
        value = value.astype("datetime64[us]")  # tolist would turn nanoseconds into integers
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    values = list(value) if isinstance(value, (list, tuple)) else [value] * batch
    if len(values) != batch:
        raise ContractError(name, f"{len(values)} values", f"one, or {batch}: one a chip", "a list of another batch")
    return values


def check_reading(reading: str) -> None:
    if reading not in READINGS:
        raise ContractError("reading", repr(reading), f"one of {READINGS}", "a misspelling")
