"""The model in whole: its sizes, the masked autoencoder, and the front door for people with an image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from clay_lib.contract import ContractError
from clay_lib.datacube import Datacube, make_datacube
from clay_lib.decoder import Decoder
from clay_lib.encoder import Encoded, Encoder, image_of, mask_of
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
    ) -> Output:
        """noise [B, L]: the draws that order the patches, so that masking can belong to a chip; None: by generator."""
        if self.decoder is None:
            raise ContractError(
                "model",
                found="these weights hold the encoder alone",
                expected="a decoder and a projection, to reconstruct or to train on",
                cause="a file with the encoder alone; `embed` works with it, the rest needs the whole model's file",
            )
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        encoded = self.encoder(cube, mask_ratio=ratio, shuffle=shuffle, generator=generator, noise=noise)
        return Output(encoded, self.decoder(encoded, cube), self.proj(encoded.tokens[:, 0]))


@dataclass(frozen=True)
class Embedding:
    chip: Tensor  # [B, D], class token
    patches: Tensor  # [B, h, w, D]


@dataclass(frozen=True)
class Reconstruction:
    """Native numbers, as handed in; the mask is on the pixels' grid."""

    pixels: np.ndarray  # [B, C, H, W]
    mask: np.ndarray  # [B, H, W] bool, True where the encoder saw nothing


class Clay:
    """The front door: images in native numbers in, embeddings or reconstructions out.

    >>> clay = Clay.load("clay-v1.5.ckpt")
    >>> clay.embed(pixels, sensor="sentinel-2-l2a", when="2023-06-10T10:30", lat=-3.40, lon=34.07).chip
    """

    def __init__(self, model: ClayMAE):
        self.model = model.eval()

    @classmethod
    def load(cls, path, *, device: str | torch.device | None = None, **changes) -> Clay:
        """From a released .ckpt, our .safetensors or "hub:owner/name/path"; strict. See checkpoint.load_model.

        changes: values of ClayConfig that no shape tells (heads, decoder_heads, ladder, mask_ratio).
        """
        from clay_lib.checkpoint import load_model

        return cls(load_model(path, **changes).to(device))

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

    def cube(self, pixels, sensor: str | Sensor, **place_and_time) -> Datacube:
        """The normalised batch on the model's device; arguments as `make_datacube`."""
        parameter = next(self.model.encoder.parameters())
        return make_datacube(pixels, sensor, **place_and_time).to(parameter.device, parameter.dtype)

    @torch.inference_mode()
    def embed(self, pixels, sensor: str | Sensor, **place_and_time) -> Embedding:
        """Class token [B, D] and patch tokens [B, h, w, D] with nothing masked, float32.

        pixels: native numbers, [C, H, W] or [B, C, H, W]. when, lat, lon, gsd, bands, in_decibel, reading: see
        `make_datacube`.
        """
        encoded = self.model.encoder(self.cube(pixels, sensor, **place_and_time), mask_ratio=0.0, shuffle=False)
        tokens = encoded.tokens.float()
        return Embedding(tokens[:, 0], rearrange(tokens[:, 1:], "B (h w) D -> B h w D", h=encoded.grid[0]))

    @torch.inference_mode()
    def reconstruct(
        self, pixels, sensor: str | Sensor, *, mask_ratio: float = 0.75, seed: int = 0, **place_and_time
    ) -> Reconstruction:
        """Hide a share of the patches and rebuild every patch; the same seed hides the same patches."""
        sensor = SENSORS.resolve(sensor)
        cube = self.cube(pixels, sensor, **place_and_time)
        generator = torch.Generator(cube.pixels.device).manual_seed(seed)
        out = self.model(cube, mask_ratio=mask_ratio, generator=generator)
        layout = dict(grid=out.encoded.grid, patch_size=self.model.config.patch_size, size=cube.pixels.shape[-2:])
        image = image_of(out.reconstruction, **layout).float().cpu().numpy()
        mask = mask_of(out.encoded.mask, **layout)[:, 0]
        bands, in_decibel = place_and_time.get("bands"), place_and_time.get("in_decibel", False)
        return Reconstruction(sensor.denormalise(image, bands, in_decibel=in_decibel), mask.bool().cpu().numpy())
