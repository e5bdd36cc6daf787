"""Images in native numbers in, embeddings and reconstructions out: the Clay class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from torch import Tensor

from clay_lib.checkpoint import load_model, save_model
from clay_lib.data.check import check_image
from clay_lib.data.chips import Chips
from clay_lib.data.images import open_image
from clay_lib.datacube import Datacube, When, as_valid, check_reading, make_datacube, per_chip
from clay_lib.encoder import MIN_VALID, Encoded, unpatchify, unpatchify_mask
from clay_lib.errors import warn
from clay_lib.model import ClayConfig, ClayMAE, cosine_initialize
from clay_lib.sensors import SENSORS, Sensor


@dataclass(frozen=True)
class Embedding:
    """Float32. A patch without enough measured pixels is NaN, and so is the class token of a chip that has no other."""

    chip: Tensor  # [B, D], class token
    patches: Tensor  # [B, h, w, D]
    valid: Tensor  # [B, h, w] bool, False where the patch was left out
    layers: dict[int, Embedding] = field(default_factory=dict)  # {block number as asked: the same after that block}

    @property
    def mean(self) -> Tensor:
        """[B, D], the mean of the valid patches; NaN where there is none."""
        return self.patches.mean((1, 2)) if self.valid.all() else self.patches.nanmean((1, 2))


@dataclass(frozen=True)
class Reconstruction:
    """Native numbers, as handed in; mask and valid are on the pixels' grid, patch by patch.

    Patches left out for their holes are painted like hidden ones, but are not in the mask: there is no truth there.
    """

    pixels: np.ndarray  # [B, C, H, W]; NaN for a chip of which nothing was visible
    mask: np.ndarray  # [B, H, W] bool, True where a valid patch was hidden from the encoder
    valid: np.ndarray  # [B, H, W] bool, False where the patch was left out


class Clay:
    """The front door: images in native numbers in, embeddings or reconstructions out.

    >>> clay = Clay.load("clay-v1.5.ckpt")
    >>> clay.embed(pixels, sensor="sentinel-2-l2a", when="2023-06-10T10:30", lat=-3.40, lon=34.07).chip
    """

    def __init__(self, model: ClayMAE, *, reading: str = "documented"):
        check_reading(reading)
        self.model, self.reading = model.eval(), reading

    @classmethod
    def load(
        cls,
        path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        reading: str = "documented",
        **changes,
    ) -> Clay:
        """From a released .ckpt, our .safetensors or "hub:owner/name/path"; strict. See checkpoint.load_model.

        dtype: bfloat16 or float16 for half the memory; embeddings come out as float32 all the same. reading: how place
        and hour are coded, "documented" or "as_trained" (datacube.READINGS), unless a call says otherwise.
        changes: values of ClayConfig that no shape tells (heads, decoder_heads, frequencies, mask_ratio).
        """
        return cls(load_model(path, dtype=dtype, **changes).to(device), reading=reading)

    @classmethod
    def random(cls, config: ClayConfig, *, seed: int = 0) -> Clay:
        """Untrained weights, the same ones for the same seed; torch's global generator is left as it was."""
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
        """Any image -> the normalised batch on the model's device.

        pixels: native numbers [C, H, W] or [B, C, H, W] as NumPy or torch of any kind of number, xarray, the path of a
        raster, or an images.Image. bands: a subset of the sensor's names in any order.
        when, lat, lon: one for all or one per chip. gsd: metres per pixel, one for all. What is said here wins over what
        the image says of itself, that over the sensor's own; what nobody says is coded as unknown.
        valid: True where something was measured, [H, W], [B, H, W] or [B, C, H, W]. nodata: the number that says that
        nothing was; NaN always says so. in_decibel: radar in dB already; None: if it looks so. reading: see `load`.
        check: hold the image against the sensor first (data.check.check_image): ContractError for what cannot
        be right, ContractWarning for what is unlikely.
        """
        sensor = SENSORS.resolve(sensor)
        image = open_image(pixels, sensor, bands=bands, nodata=nodata)
        native = image.pixels
        if valid is not None:
            native = np.where(as_valid(valid, native.shape), native, np.float32(np.nan))
        about = dict(
            bands=image.bands,
            when=image.when if when is None else when,
            lat=image.lat if lat is None and lon is None else lat,
            lon=image.lon if lat is None and lon is None else lon,
            gsd=image.gsd if gsd is None else gsd,
            in_decibel=image.in_decibel if in_decibel is None else in_decibel,
        )
        if check:
            _check(native, sensor, about)
        parameter = self.model.encoder.cls_token
        cube = make_datacube(native, sensor, reading=reading or self.reading, **about)
        return cube.to(parameter.device, parameter.dtype)

    @torch.inference_mode()
    def embed(
        self, pixels, sensor: str | Sensor, *, layers: Sequence[int] = (), min_valid: float = MIN_VALID, **about
    ) -> Embedding:
        """Class token [B, D] and patch tokens [B, h, w, D] with nothing masked, float32.

        pixels, sensor, about (bands, when, lat, lon, gsd, valid, nodata, in_decibel, reading, check): see `cube`.
        layers: numbers of inner blocks, from 0, or from -1 at the end, to have in `out.layers` too. Like `out` they
        have passed the final norm, so that the last block's is `out` itself.
        min_valid: patches of which a smaller share was measured are left out of the sequence. In the others, a hole
        takes the mean of its band in its patch (encoder.fill_holes). What lies under a hole never changes a number.
        """
        cube = self.cube(pixels, sensor, **about)
        encoded = self.model.encoder(cube, mask_ratio=0.0, shuffle=False, layers=layers, min_valid=min_valid)
        h, w = encoded.grid
        valid = torch.ones_like(encoded.mask, dtype=torch.bool) if encoded.valid is None else encoded.valid
        empty = _empty(encoded)

        def part(tokens: Tensor, layers: dict[int, Embedding]) -> Embedding:
            tokens = tokens.float()
            chip = tokens[:, 0] if empty is None else tokens[:, 0].masked_fill(empty[:, None], float("nan"))
            return Embedding(chip, encoded.patches(tokens), valid.unflatten(1, (h, w)), layers)

        return part(encoded.tokens, {k: part(tokens, {}) for k, tokens in encoded.layers.items()})

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
        **about,
    ) -> Reconstruction:
        """Hide a share of the patches and rebuild every patch; the same seed hides the same patches.

        Other arguments as `embed`. Of each chip's valid patches the share is hidden; the invalid ones are never seen.
        """
        sensor = SENSORS.resolve(sensor)
        image = open_image(pixels, sensor, bands=bands, nodata=nodata)
        in_decibel = image.in_decibel if in_decibel is None else in_decibel
        cube = self.cube(image, sensor, in_decibel=in_decibel, **about)
        generator = torch.Generator(cube.pixels.device).manual_seed(seed)
        out = self.model(cube, mask_ratio=mask_ratio, generator=generator, min_valid=min_valid)
        layout = dict(grid=out.encoded.grid, patch_size=self.model.config.patch_size, size=cube.pixels.shape[-2:])
        rebuilt = unpatchify(out.reconstruction, **layout).float().cpu().numpy()
        rebuilt = sensor.denormalize(rebuilt, image.bands, in_decibel=in_decibel)
        mask, empty = unpatchify_mask(out.encoded.mask, **layout)[:, 0].bool().cpu().numpy(), _empty(out.encoded)
        valid = np.ones_like(mask)
        if out.encoded.valid is not None:
            valid = unpatchify_mask(out.encoded.valid, **layout)[:, 0].cpu().numpy()
            rebuilt[empty.cpu().numpy()] = np.nan
        return Reconstruction(rebuilt, mask, valid)


def _check(native: np.ndarray, sensor: Sensor, about: dict) -> None:
    """The contract check. Chips that lack a band or everything sit it out where others do not: a bad tile must not
    lose a batch. What of them there is to embed is embedded, and what is not is NaN."""
    bands = np.isfinite(native).any((2, 3))  # [B, C]
    asked = bands.all(1) if bands.all(1).any() else bands.any(1)
    if asked.any() and not asked.all():
        one_each = {k: np.array(per_chip(k, about[k], len(native)), object)[asked] for k in ("when", "lat", "lon")}
        native, about = native[asked], about | {k: values.tolist() for k, values in one_each.items()}
    if asked.any():
        check_image(native, sensor, **about)


def _empty(encoded: Encoded) -> Tensor | None:
    """[B] bool, chips without one valid patch, which are warned of; None where there are no holes."""
    if encoded.valid is None:
        return None
    empty = ~encoded.valid.any(dim=1)
    if empty.any():
        warn(
            f"chips {empty.nonzero()[:, 0].tolist()} of {len(empty)} have no patch with enough measured pixels: "
            "their outcome is NaN"
        )
    return empty


# ---- Products of a trained model: embeddings of chips or of an area, and how well hidden patches are rebu ----


def batches(chips: Chips, size: int):
    """Slices of at most `size` chips, in order."""
    for start in range(0, len(chips), size):
        yield chips[start : start + size]


def embed_chips(clay: Clay, chips: Chips, *, batch_size: int = 64, **reading) -> dict[str, np.ndarray]:
    """{"class token": [N, D], "patch mean" of the valid ones: [N, D]} with nothing masked, float32.

    reading: what `Clay.embed` takes besides place and date, for chips cut from a file: bands, gsd, in_decibel.
    """
    parts = batches(chips, batch_size)
    made = [clay.embed(part.pixels, chips.sensor, **part.place_and_time, **reading) for part in parts]
    return {
        "class token": np.concatenate([out.chip.cpu().numpy() for out in made]),
        "patch mean": np.concatenate([out.mean.cpu().numpy() for out in made]),
    }


@torch.inference_mode()
def reconstruction_scores(
    clay: Clay, chips: Chips, *, mask_ratio: float = 0.75, seed: int = 0, batch_size: int = 64
) -> pd.DataFrame:
    """Mean absolute error of hidden pixels per band, beside that of guessing each chip's visible mean of the band.

    One row a band: sensor, band, error, mean_error (both in standard deviations of the sensor's published statistics),
    ratio = error / mean_error, and native_error in the sensor's native numbers (dB for radar).
    """
    sensor = SENSORS[chips.sensor]
    generator = torch.Generator(clay.model.proj.weight.device).manual_seed(seed)
    sums = torch.zeros(2, len(sensor.bands), dtype=torch.float64)
    for part in batches(chips, batch_size):
        cube = clay.cube(part.pixels, sensor, **part.place_and_time)
        out = clay.model(cube, mask_ratio=mask_ratio, generator=generator)
        layout = {"grid": out.encoded.grid, "patch_size": clay.model.config.patch_size, "size": cube.pixels.shape[-2:]}
        hidden = unpatchify_mask(out.encoded.mask, **layout)  # [B, 1, H, W]
        measured = 1.0 if cube.valid is None else cube.valid.float()  # holes are neither guessed from nor scored
        hidden, shown = hidden * measured, (1 - hidden) * measured
        guess = (cube.pixels * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp(min=1)
        for k, rebuilt in enumerate((unpatchify(out.reconstruction, **layout), guess)):
            error = ((rebuilt - cube.pixels).abs() * hidden).sum((2, 3)) / hidden.sum((2, 3)).clamp(min=1)
            sums[k] += error.sum(0).cpu()
    error, mean_error = (sums / len(chips)).numpy()
    table = pd.DataFrame({"sensor": sensor.name, "band": sensor.band_names, "error": error, "mean_error": mean_error})
    return table.assign(ratio=error / mean_error, native_error=error * sensor.statistics()[1])


def principal_components(patches: np.ndarray, count: int = 3) -> np.ndarray:
    """Patch embeddings [B, h, w, D] -> their first components over all patches together, [B, h, w, count].

    Patches that were left out are NaN before and after.
    """
    from sklearn.decomposition import PCA

    flat = rearrange(patches, "B h w D -> (B h w) D")
    known = np.isfinite(flat).all(axis=1)
    parts = np.full((len(flat), count), np.nan, flat.dtype)
    parts[known] = PCA(count, random_state=0).fit_transform(flat[known])
    return rearrange(parts, "(B h w) n -> B h w n", h=patches.shape[1], w=patches.shape[2])


def cosine_initialized(config: ClayConfig, seed: int = 0) -> Clay:
    """An untrained model with a cosine basis as the kernels of both ends; the same weights for the same seed."""
    clay = Clay.random(config, seed=seed)
    cosine_initialize(clay.model)
    return clay
