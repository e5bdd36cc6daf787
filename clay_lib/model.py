"""The model in whole: its sizes, the masked autoencoder, and the front door for people with an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from clay_lib.contract import ContractError, warn
from clay_lib.datacube import Datacube, When, as_valid, check_reading, make_datacube, per_chip
from clay_lib.decoder import Decoder
from clay_lib.encoder import MIN_VALID, Encoded, Encoder, image_of, mask_of
from clay_lib.position import check_ladder
from clay_lib.sensors import SENSORS, Sensor


@dataclass(frozen=True)
class ClayConfig:
    """Sizes of encoder and decoder; dim_head is per head, mlp_ratio the feed-forward's width over dim."""

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    dim_head: int = 64
    mlp_ratio: float = 4
    decoder_dim: int = 512
    decoder_depth: int = 4
    decoder_heads: int = 4
    decoder_dim_head: int = 64
    decoder_mlp_ratio: float = 4
    patch_size: int = 8  # pixels
    teacher_dim: int = 1024  # width of the teacher's class token
    mask_ratio: float = 0.75
    ladder: str = "released"  # or "geometric": see position.frequencies

    def __post_init__(self):
        for name in ("dim", "decoder_dim"):
            if getattr(self, name) % 4 or getattr(self, name) < 16:
                raise ContractError(
                    name,
                    found=getattr(self, name),
                    expected="a multiple of 4, at least 16",
                    cause="the position code holds four sin-cos quarters and eight numbers for time and place",
                )
        check_ladder(self.ladder)

    @classmethod
    def named(cls, size: str, **changes) -> ClayConfig:
        """tiny, small, base or large as released; changes replace single values."""
        if size not in _SIZES:
            raise ContractError("size", found=repr(size), expected=f"one of {list(_SIZES)}", cause="a misspelling")
        return replace(_SIZES[size], **changes)


_SIZES = {
    "tiny": ClayConfig(192, 6, 4, 48, 2, 96, 3, 2, 48, 2),
    "small": ClayConfig(384, 6, 6, 64, 2, 192, 4, 4, 64, 2),
    "base": ClayConfig(768, 12, 12, 64, 4, 512, 4, 4, 64, 4),
    "large": ClayConfig(),
}


@dataclass(frozen=True)
class Output:
    """What one pass of the autoencoder gives."""

    encoded: Encoded
    reconstruction: Tensor  # [B, L, C*P*P], normalised
    representation: Tensor  # [B, teacher_dim], the projected class token


class ClayMAE(nn.Module):
    """Encoder, decoder and the projection to the teacher's width. Parameter names are those of the release.

    encoder_only: no decoder and no projection (both None); embeds, but does not reconstruct.
    """

    def __init__(self, config: ClayConfig, encoder_only: bool = False):
        super().__init__()
        c = self.config = config
        shared = dict(patch_size=c.patch_size, ladder=c.ladder)
        self.encoder = Encoder(
            dim=c.dim, depth=c.depth, heads=c.heads, dim_head=c.dim_head, mlp_ratio=c.mlp_ratio, **shared
        )
        self.decoder = self.proj = None
        if encoder_only:
            return
        self.decoder = Decoder(
            encoder_dim=c.dim,
            dim=c.decoder_dim,
            depth=c.decoder_depth,
            heads=c.decoder_heads,
            dim_head=c.decoder_dim_head,
            mlp_ratio=c.decoder_mlp_ratio,
            **shared,
        )
        self.proj = nn.Linear(c.dim, c.teacher_dim)

    def forward(
        self,
        cube: Datacube,
        mask_ratio: float | None = None,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        min_valid: float = MIN_VALID,
    ) -> Output:
        """noise [B, L]: the draws that order the patches, so that masking can belong to a chip; None: by generator.

        Patches with holes (cube.valid, min_valid as in `Encoder.forward`) are never visible, and never in the mask, so
        that no loss scores them; single pixels that were not measured are NaN in cube.target.
        """
        if self.decoder is None:
            raise ContractError(
                "model",
                found="these weights hold the encoder alone",
                expected="a decoder and a projection, to reconstruct or to train on",
                cause="a file with the encoder alone; `embed` works with it, the rest needs the whole model's file",
            )
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        encoded = self.encoder(
            cube, mask_ratio=ratio, shuffle=shuffle, generator=generator, noise=noise, min_valid=min_valid
        )
        return Output(encoded, self.decoder(encoded, cube), self.proj(encoded.tokens[:, 0]))


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
        changes: values of ClayConfig that no shape tells (heads, decoder_heads, ladder, mask_ratio).
        """
        from clay_lib.checkpoint import load_model

        return cls(load_model(path, dtype=dtype, **changes).to(device), reading=reading)

    @classmethod
    def random(cls, config: ClayConfig, *, seed: int = 0) -> Clay:
        """Untrained weights, the same ones for the same seed; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(ClayMAE(config))

    def save(self, path, *, dtype: torch.dtype | None = None):
        """Weights and configuration as safetensors, for `Clay.load`; dtype float16 halves the file."""
        from clay_lib.checkpoint import save_model

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
        check: hold the image against the sensor first (contract_check.check_contract): ContractError for what cannot
        be right, ContractWarning for what is unlikely.
        """
        from clay_lib.images import open_image

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
        from clay_lib.images import open_image

        sensor = SENSORS.resolve(sensor)
        image = open_image(pixels, sensor, bands=bands, nodata=nodata)
        in_decibel = image.in_decibel if in_decibel is None else in_decibel
        cube = self.cube(image, sensor, in_decibel=in_decibel, **about)
        generator = torch.Generator(cube.pixels.device).manual_seed(seed)
        out = self.model(cube, mask_ratio=mask_ratio, generator=generator, min_valid=min_valid)
        layout = dict(grid=out.encoded.grid, patch_size=self.model.config.patch_size, size=cube.pixels.shape[-2:])
        rebuilt = image_of(out.reconstruction, **layout).float().cpu().numpy()
        rebuilt = sensor.denormalise(rebuilt, image.bands, in_decibel=in_decibel)
        mask, empty = mask_of(out.encoded.mask, **layout)[:, 0].bool().cpu().numpy(), _empty(out.encoded)
        valid = np.ones_like(mask)
        if out.encoded.valid is not None:
            valid = mask_of(out.encoded.valid, **layout)[:, 0].cpu().numpy()
            rebuilt[empty.cpu().numpy()] = np.nan
        return Reconstruction(rebuilt, mask, valid)


def _check(native: np.ndarray, sensor: Sensor, about: dict) -> None:
    """The contract check. Chips that lack a band or everything sit it out where others do not: a bad tile must not
    lose a batch. What of them there is to embed is embedded, and what is not is NaN."""
    from clay_lib.contract_check import check_contract

    bands = np.isfinite(native).any((2, 3))  # [B, C]
    asked = bands.all(1) if bands.all(1).any() else bands.any(1)
    if asked.any() and not asked.all():
        one_each = {k: np.array(per_chip(k, about[k], len(native)), object)[asked] for k in ("when", "lat", "lon")}
        native, about = native[asked], about | {k: values.tolist() for k, values in one_each.items()}
    if asked.any():
        check_contract(native, sensor, **about)


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
