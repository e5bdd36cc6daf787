"""The Clay class: load weights; check, embed and reconstruct images, one or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from clay_lib.checkpoint import load_model, save_model
from clay_lib.data.check import Inspection, check_image, inspect_image
from clay_lib.data.images import Image, open_image, with_metadata
from clay_lib.datacube import Datacube, When, check_reading, make_datacube, per_chip
from clay_lib.encoder import MIN_VALID, unpatchify, unpatchify_mask
from clay_lib.errors import ContractError, first_line, warn
from clay_lib.model import ClayConfig, ClayMAE, cosine_initialize
from clay_lib.onnx_encoder import load_onnx
from clay_lib.precision import arithmetic, check_precision, choose
from clay_lib.sensors import SENSORS, Sensor

if TYPE_CHECKING:
    import pandas as pd

    from clay_lib.data.chips import Chips

# Patches that pass through the encoder at once. A fixed number, since measuring finds nothing much faster. One thread of
# an AMD EPYC with AVX2, exact, processor time of a chip relative to this rule: tiny at 64 px (64 chips) 0.75 by 8, 1.05
# by 32, 0.96 by 128, 0.88 by 256; at 128 px (16 chips) 0.91 by 4, 1.05 by 32; at 256 px (4 chips) 0.97 by 1, 1.01 by 8;
# base at 64 px 1.07 by 8; noise 5 to 10 %. This takes 25 MB in tiny, 204 MB in large. The GPU's number is not measured.
TOKENS = {"cpu": 4096, "cuda": 65536}
CARD_SHARE = 0.125  # of a GPU's memory that they take at most, used or not: so results do not depend on what is free
BATCH = 64  # chips of a loop over many


@dataclass(frozen=True)
class Embedding:
    """Float32. A patch with too few measured pixels is NaN, and so is the class token if the chip has no other."""

    chip: Tensor  # [B, D], class token
    patches: Tensor  # [B, h, w, D]
    valid: Tensor  # [B, h, w] bool, False where the patch was left out
    layers: dict[int, Embedding] = field(default_factory=dict)  # {requested block number: the same after that block}
    precision: str = "exact"  # in which it was computed, one of precision.NAMES

    @property
    def mean(self) -> Tensor:
        """[B, D], the mean of the valid patches; NaN where there is none."""
        return self.patches.mean((1, 2)) if self.valid.all() else self.patches.nanmean((1, 2))


@dataclass(frozen=True)
class Reconstruction:
    """Pixels in native numbers; mask and valid are on the pixels' grid, constant within each patch.

    Patches left out for their holes are reconstructed like masked ones but are not in the mask: they have no original.
    """

    pixels: np.ndarray  # [B, C, H, W]; NaN for a chip without visible patches
    mask: np.ndarray  # [B, H, W] bool, True where a valid patch was masked
    valid: np.ndarray  # [B, H, W] bool, False where the patch was left out


class Clay:
    """Images in native numbers in, embeddings or reconstructions out.

    >>> clay = Clay.load("clay-v1.5.ckpt")
    >>> clay.embed(pixels, sensor="sentinel-2-l2a", when="2023-06-10T10:30", lat=-3.40, lon=34.07).chip
    """

    def __init__(self, model: ClayMAE, *, reading: str = "documented", precision: str | None = None):
        check_reading(reading)
        self.model, self.reading, self.precision = model.eval(), reading, check_precision(precision)

    @classmethod
    def load(
        cls,
        path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        reading: str = "documented",
        precision: str | None = None,
        **changes,
    ) -> Clay:
        """From a released .ckpt, our .safetensors, the name of shipped weights such as "clay-mini", or
        "hub:owner/name/path"; strict. See checkpoint.load_model.

        dtype: bfloat16 or float16 for half the memory; embeddings are still float32. reading: how place and hour are
        coded, "documented" or "as_trained" (datacube.READINGS), unless a call gives another.
        precision of embeddings: "auto", the fastest on this machine that agrees with float32 to a cosine of 0.9999,
        found by a short trial at the first large batch; "exact", float32; "fast", which may also be int8 (0.995); or
        one of precision.NAMES. None: CLAY_PRECISION of the environment, or auto. Reconstructions are always exact.
        changes: values of ClayConfig that shapes do not give (heads, decoder_heads, frequencies, mask_ratio).
        An .onnx file of `clay export` embeds in ONNX Runtime, on the CPU and in float32: faster than torch for single
        small chips (`clay bench onnx`), but for nothing else.
        """
        if str(path).endswith(".onnx"):
            if dtype or changes or device not in (None, "cpu") or precision not in (None, "auto", "exact"):
                found, expected = "device, dtype, precision or configuration given", "none of them for an ONNX file"
                raise ContractError("load", found, expected, "options of the weights it was exported from")
            return cls(load_onnx(path), reading=reading, precision="exact")
        model = load_model(path, dtype=dtype, **changes)
        try:
            model = model.to(device)
        except (AssertionError, RuntimeError) as error:  # torch's, of a name or a GPU that is not there
            cause = "a misspelled name, no GPU here, or torch without support for it: leave it out for the CPU"
            found = f"{device!r}: {first_line(error)}"
            raise ContractError("device", found, "a device of this machine, such as cpu", cause) from None
        return cls(model, reading=reading, precision=precision)

    @classmethod
    def random(cls, config: ClayConfig, *, seed: int = 0) -> Clay:
        """Untrained weights, the same ones for the same seed; torch's global generator is not advanced."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(ClayMAE(config))

    def save(self, path, *, dtype: torch.dtype | None = None):
        """Weights and configuration as safetensors, for `Clay.load`; dtype float16 halves the file."""
        return save_model(self.model, path, dtype=dtype)

    def cube(
        self,
        pixels,
        sensor: str | Sensor,
        *,
        bands: Sequence[str] | None = None,
        when: When | Sequence[When] = None,
        lat: float | Sequence[float] | None = None,
        lon: float | Sequence[float] | None = None,
        gsd: float | Tensor | None = None,
        valid=None,
        nodata: float | None = None,
        in_decibel: bool | None = None,
        reading: str | None = None,
        check: bool = True,
    ) -> Datacube:
        """Any image -> the normalized batch on the model's device.

        pixels: native numbers [C, H, W] or [B, C, H, W]: a NumPy array or torch tensor of any dtype, an xarray object,
        the path of a raster, or an images.Image. bands: a subset of the sensor's names in any order.
        when, lat, lon: one for all or one per chip. gsd: meters per pixel, one for all. Arguments take precedence over
        the image's own metadata, and these over the sensor's; what is not known is coded as zeros.
        valid: True where something was measured, [H, W], [B, H, W] or [B, C, H, W]. nodata: the number that marks
        missing pixels; NaN always does. in_decibel: radar is in dB already; None: detected. reading: see `load`.
        check: check the image against the sensor first (data.check.check_image): ContractError for what cannot be
        right, ContractWarning for what is unlikely.
        """
        sensor = SENSORS.resolve(sensor)
        arguments = dict(when=when, lat=lat, lon=lon, gsd=gsd, in_decibel=in_decibel)
        image = open_image(pixels, sensor, bands=bands, nodata=nodata, when=when, in_decibel=in_decibel)
        image = with_metadata(image, valid=valid, **arguments)
        if check:
            _check(image, sensor)
        parameter = self.model.encoder.cls_token
        cube = make_datacube(image.pixels, sensor, reading=reading or self.reading, **image.metadata)
        return cube.to(parameter.device, parameter.dtype)

    def check(self, pixels, sensor: str | Sensor, **metadata) -> Inspection:
        """How an image is read, the numbers that the model gets, and all errors and warnings; nothing is raised.

        The result displays itself in a notebook. pixels, metadata (bands, when, lat, lon, gsd, valid, nodata,
        in_decibel, and scale and offset of files): as for `cube`. The same as `clay check` and data.inspect_image.
        """
        return inspect_image(pixels, sensor, **metadata)

    def chips_at_once(self, height: int, width: int) -> int:
        """How many chips of this size in pixels pass through the encoder together unless a number is given."""
        device, side = self.model.encoder.cls_token.device, self.model.config.patch_size
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        return max(1, tokens_at_once(self.model.config, memory) // (-(-height // side) * -(-width // side)))

    @contextmanager
    def arithmetic(self, cube: Datacube) -> Iterator[str]:
        """Inside the `with` block, the encoder computes in the precision for this batch; yields its name."""
        name = choose(self.model.encoder, cube, self.precision)
        with arithmetic(self.model.encoder, name):
            yield name

    @torch.inference_mode()
    def embed(
        self, pixels, sensor: str | Sensor, *, layers: Sequence[int] = (), min_valid: float = MIN_VALID, **metadata
    ) -> Embedding:
        """Class token [B, D] and patch tokens [B, h, w, D] with nothing masked, float32.

        pixels, sensor, metadata (bands, when, lat, lon, gsd, valid, nodata, in_decibel, reading, check): see `cube`.
        layers: inner blocks to return in `out.layers` too, counted from 0, or from -1 at the end. Their tokens pass the
        final norm as those of `out` do, so that the last block gives `out` itself.
        min_valid: patches with a smaller measured share are left out of the sequence. In the others, a hole takes the
        mean of its band in its patch (encoder.fill_holes). Values under a hole never change the result.
        Any number of chips: they pass through the encoder `chips_at_once`.
        """
        cube, encoder = self.cube(pixels, sensor, **metadata), self.model.encoder
        count = self.chips_at_once(*cube.pixels.shape[-2:])
        options = dict(mask_ratio=0.0, shuffle=False, layers=layers, min_valid=min_valid)
        with self.arithmetic(cube) as precision:
            parts = [encoder(part, **options) for part in batches(cube, count)]
        valid = [torch.ones_like(part.mask, dtype=torch.bool) if part.valid is None else part.valid for part in parts]
        valid = rearrange(torch.cat(valid), "B (h w) -> B h w", h=parts[0].grid[0])
        empty = _empty_chips(valid)

        def embedding(tokens: list[Tensor], layers: dict[int, Embedding]) -> Embedding:
            tokens = [t.float() for t in tokens]  # [b, 1+V, D] each
            chip = torch.cat([t[:, 0] for t in tokens]).masked_fill(empty[:, None], float("nan"))
            patches = torch.cat([part.patches(t) for part, t in zip(parts, tokens, strict=True)])
            return Embedding(chip, patches, valid, layers, precision)

        inner = {k: embedding([part.layers[k] for part in parts], {}) for k in parts[0].layers}
        return embedding([part.tokens for part in parts], inner)

    @torch.inference_mode()
    def reconstruct(
        self,
        pixels,
        sensor: str | Sensor,
        *,
        mask_ratio: float = 0.75,
        seed: int = 0,
        min_valid: float = MIN_VALID,
        bands: Sequence[str] | None = None,
        nodata: float | None = None,
        in_decibel: bool | None = None,
        **metadata,
    ) -> Reconstruction:
        """Mask a share of the patches and reconstruct every patch; the same seed masks the same patches.

        Other arguments as for `embed`. The share is of each chip's valid patches; invalid ones are never visible.
        """
        sensor = SENSORS.resolve(sensor)
        image = open_image(pixels, sensor, bands=bands, nodata=nodata, when=metadata.get("when"), in_decibel=in_decibel)
        in_decibel = image.in_decibel if in_decibel is None else in_decibel
        cube = self.cube(image, sensor, in_decibel=in_decibel, **metadata)
        generator = torch.Generator(cube.pixels.device).manual_seed(seed)
        out = self.model(cube, mask_ratio=mask_ratio, generator=generator, min_valid=min_valid)
        layout = dict(grid=out.encoded.grid, patch_size=self.model.config.patch_size, size=cube.pixels.shape[-2:])
        rebuilt = unpatchify(out.reconstruction, **layout).float().cpu().numpy()  # [B, C, H, W]
        rebuilt = sensor.denormalize(rebuilt, image.bands, in_decibel=in_decibel)
        mask = unpatchify_mask(out.encoded.mask, **layout)[:, 0].bool().cpu().numpy()
        valid = np.ones_like(mask)
        if out.encoded.valid is not None:
            valid = unpatchify_mask(out.encoded.valid, **layout)[:, 0].cpu().numpy()
            rebuilt[_empty_chips(out.encoded.valid).cpu().numpy()] = np.nan
        return Reconstruction(rebuilt, mask, valid)


def cosine_initialized(config: ClayConfig, seed: int = 0) -> Clay:
    """An untrained model with a cosine basis as the kernels of both ends; the same weights for the same seed."""
    clay = Clay.random(config, seed=seed)
    cosine_initialize(clay.model)
    return clay


def _check(image: Image, sensor: Sensor) -> None:
    """Check only chips that have all bands, or if none has, those with any band: one bad tile does not stop a batch.

    Chips that are not checked are embedded too: their valid patches, with NaN in the rest.
    """
    bands = np.isfinite(image.pixels).any((2, 3))  # [B, C]
    checked = bands.all(1) if bands.all(1).any() else bands.any(1)  # [B]
    if checked.any() and not checked.all():
        each = {name: per_chip(name, getattr(image, name), len(checked)) for name in ("when", "lat", "lon")}
        each = {name: np.array(values, object)[checked].tolist() for name, values in each.items()}
        image = replace(image, pixels=image.pixels[checked], **each)
    if checked.any():
        check_image(image, sensor)


def _empty_chips(valid: Tensor) -> Tensor:
    """Valid patches [B, L] or [B, h, w] -> [B] bool, True for chips that have none, with a warning."""
    empty = ~valid.flatten(1).any(dim=1)
    if empty.any():
        chips = f"chips {empty.nonzero()[:, 0].tolist()} of {len(empty)}"
        warn(f"{chips} have no patch with enough measured pixels: their result is NaN")
    return empty


# --- many chips ---


def tokens_at_once(config: ClayConfig, card_memory: int | None = None) -> int:
    """Patches that pass through the encoder together: TOKENS, or what fits into CARD_SHARE of a GPU's memory, in bytes."""
    if card_memory is None:
        return TOKENS["cpu"]
    widest = max(2 * int(config.mlp_ratio * config.dim), 4 * config.heads * config.dim_head)  # feed-forward, attention
    return min(TOKENS["cuda"], int(CARD_SHARE * card_memory / (4 * (4 * config.dim + widest))))  # float32


def batches(chips: Chips | Datacube, size: int) -> Iterator:
    """Slices of at most `size` chips, of the same type, in order."""
    for start in range(0, len(chips), size):
        yield chips[start : start + size]


def embed_chips(clay: Clay, chips: Chips, **kwargs) -> dict[str, np.ndarray]:
    """{"class token": [N, D], "patch mean" of the valid ones: [N, D]} with nothing masked, float32.

    kwargs: arguments of `Clay.embed` for chips cut from a file (bands, gsd, in_decibel), except place and date.
    """
    parts = batches(chips, BATCH)  # one after another, since patch tokens take far more memory than their mean
    embeddings = [clay.embed(part.pixels, chips.sensor, **part.place_and_time, **kwargs) for part in parts]
    return {
        "class token": np.concatenate([embedding.chip.cpu().numpy() for embedding in embeddings]),
        "patch mean": np.concatenate([embedding.mean.cpu().numpy() for embedding in embeddings]),
    }


@torch.inference_mode()
def reconstruction_scores(clay: Clay, chips: Chips, *, mask_ratio: float = 0.75, seed: int = 0) -> pd.DataFrame:
    """Mean absolute error of masked pixels by band, beside that of predicting the band's mean over the visible pixels.

    One row a band: sensor, band, error, mean_error (both in standard deviations of the sensor's published statistics),
    ratio = error / mean_error, and native_error in the sensor's native numbers (dB for radar).
    """
    import pandas as pd

    sensor = SENSORS[chips.sensor]
    generator = torch.Generator(clay.model.proj.weight.device).manual_seed(seed)
    sums = torch.zeros(2, len(sensor.bands), dtype=torch.float64)  # of the model's errors and of the mean's
    for part in batches(chips, BATCH):
        cube = clay.cube(part.pixels, sensor, **part.place_and_time)
        out = clay.model(cube, mask_ratio=mask_ratio, generator=generator)
        layout = {"grid": out.encoded.grid, "patch_size": clay.model.config.patch_size, "size": cube.pixels.shape[-2:]}
        mask = unpatchify_mask(out.encoded.mask, **layout)  # [B, 1, H, W]
        measured = 1.0 if cube.valid is None else cube.valid.float()  # holes are neither averaged nor scored
        masked, visible = mask * measured, (1 - mask) * measured
        mean = (cube.pixels * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp(min=1)
        for k, prediction in enumerate((unpatchify(out.reconstruction, **layout), mean)):
            error = ((prediction - cube.pixels).abs() * masked).sum((2, 3)) / masked.sum((2, 3)).clamp(min=1)  # [B, C]
            sums[k] += error.sum(0).cpu()
    error, mean_error = (sums / len(chips)).numpy()
    table = pd.DataFrame({"sensor": sensor.name, "band": sensor.band_names, "error": error, "mean_error": mean_error})
    return table.assign(ratio=error / mean_error, native_error=error * sensor.statistics()[1])
