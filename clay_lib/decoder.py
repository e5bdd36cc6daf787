"""Decoder: visible tokens and mask tokens, put back in place -> pixels of every patch."""

import torch
from einops import repeat
from torch import Tensor, nn

from clay_lib.datacube import Datacube
from clay_lib.embedding import PixelHead
from clay_lib.encoder import Encoded
from clay_lib.position import position_code
from clay_lib.transformer import Transformer


class Decoder(nn.Module):
    """(Encoded, cube) -> [B, L, C*P*P]. Reads time, place, GSD and wavelengths of the cube, never its pixels."""

    def __init__(
        self,
        *,
        encoder_dim: int,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        mlp_ratio: float,
        patch_size: int,
        frequencies: str = "released",
    ):
        super().__init__()
        self.dim, self.frequencies = dim, frequencies
        self.enc_to_dec = nn.Identity() if encoder_dim == dim else nn.Linear(encoder_dim, dim)
        self.mask_patch = nn.Parameter(torch.randn(dim))
        self.transformer = Transformer(dim, depth=depth, heads=heads, dim_head=dim_head, mlp_ratio=mlp_ratio)
        self.embed_to_pixels = PixelHead(dim, patch_size=patch_size)

    def forward(self, encoded: Encoded, cube: Datacube) -> Tensor:
        tokens = self.enc_to_dec(encoded.tokens)  # [B, 1+V, d], d the decoder's width
        class_token, visible = tokens[:, :1], tokens[:, 1:]
        mask_patch = self.mask_patch.to(visible.dtype)
        if encoded.present is not None:  # the decoder sees patches left out for their holes as masked ones
            visible = torch.where(encoded.present[:, :, None], visible, mask_patch)
        masked = mask_patch.expand(*encoded.masked.shape, self.dim)  # [B, L-V, d]

        # Unshuffle: token k goes to the place of its patch in the image.
        places = repeat(torch.cat([encoded.visible, encoded.masked], dim=1), "B L -> B L d", d=self.dim)
        patches = torch.cat([visible, masked], dim=1)  # [B, L, d], in shuffled order
        patches = torch.empty_like(patches).scatter(1, places, patches)

        code = position_code(*encoded.grid, self.dim, cube.gsd, cube.time, cube.latlon, frequencies=self.frequencies)
        patches = patches + code.to(patches.dtype)  # [B, L, d], both
        out = self.transformer(torch.cat([class_token, patches], dim=1))  # [B, 1+L, d]
        return self.embed_to_pixels(out[:, 1:], cube.waves)  # [B, L, C*P*P]
