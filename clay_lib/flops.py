"""Floating-point operations of one chip through the networks, on paper: a multiplication and an addition count as two.

Only matrix products count; norms, activations and position codes are a few per cent and bound by memory.
"""

from __future__ import annotations

from clay_lib.embedding import LATENT_TOKENS, WAVE_DIM
from clay_lib.model import ClayConfig

GENERATOR_HIDDEN = 2048  # of the layer that writes kernels from wavelengths


def transformer(N: int, *, dim: int, depth: int, inner: int, hidden: int) -> int:
    """Forward of `depth` blocks over N tokens. inner: width of all heads together, hidden: of the feed-forward."""
    linear = 2 * N * dim * (4 * inner + 2 * hidden)  # qkv and out, two layers of the feed-forward
    attention = 4 * N * N * inner  # q k and (q k) v
    return depth * (linear + attention)


def generator(bands: int, kernel: int, bias: int = 0) -> int:
    """Forward of the network that writes the kernels of a batch, once for all of its chips."""
    N, asked = LATENT_TOKENS + bands + 1, bands + 1  # latent tokens are attended to and no more
    code = 4 * bands * WAVE_DIM**2
    attention = 4 * (asked + N) * WAVE_DIM**2 + 4 * asked * N * WAVE_DIM
    forward = 4 * asked * WAVE_DIM * GENERATOR_HIDDEN
    return code + attention + forward + 2 * bands * WAVE_DIM * kernel + 2 * WAVE_DIM * bias


def student_parts(config: ClayConfig, *, bands: int, pixels: int, batch: int = 1) -> dict[str, float]:
    """Forward of one chip of `pixels` a side, by part; what a batch does once is shared out among its chips."""
    c, side = config, -(-pixels // config.patch_size)
    L = side**2
    V, patch = L - int(c.mask_ratio * L), bands * c.patch_size**2
    encoder = dict(dim=c.dim, depth=c.depth, inner=c.heads * c.dim_head, hidden=int(c.dim * c.mlp_ratio))
    decoder = dict(dim=c.decoder_dim, depth=c.decoder_depth, inner=c.decoder_heads * c.decoder_dim_head)
    decoder["hidden"] = int(c.decoder_dim * c.decoder_mlp_ratio)
    narrowed = 0 if c.dim == c.decoder_dim else 2 * (1 + V) * c.dim * c.decoder_dim
    kernels = generator(bands, c.dim * c.patch_size**2, c.dim) + generator(bands, c.decoder_dim * c.patch_size**2)
    return {
        "kernels from wavelengths": kernels / batch,
        "patch embedding": 2 * V * patch * c.dim,
        "encoder": transformer(1 + V, **encoder),
        "decoder": narrowed + transformer(1 + L, **decoder),
        "pixel head": 2 * L * c.decoder_dim * patch,
        "projection": 2 * c.dim * c.teacher_dim,
    }


def student_step(config: ClayConfig, *, bands: int, pixels: int, batch: int = 1) -> float:
    """Forward and backward of one chip: each product has two of its size behind it, but pixels need no gradient."""
    parts = student_parts(config, bands=bands, pixels=pixels, batch=batch)
    return 3 * sum(parts.values()) - parts["patch embedding"]


def vit(*, pixels: int, patch: int, dim: int, depth: int, registers: int = 0, mlp_ratio: float = 4) -> int:
    """Forward of one RGB image through a plain vision transformer with a class token, such as DINOv2."""
    L = (pixels // patch) ** 2
    tokens = dict(dim=dim, depth=depth, inner=dim, hidden=int(dim * mlp_ratio))
    return 2 * L * 3 * patch**2 * dim + transformer(L + 1 + registers, **tokens)


def dinov2_large(pixels: int = 518) -> int:
    """Forward of one image through the release's teacher, DINOv2 ViT-L/14 with four registers."""
    return vit(pixels=pixels, patch=14, dim=1024, depth=24, registers=4)


def vit_mae_step(config: ClayConfig, *, bands: int, pixels: int) -> float:
    """The same for a plain masked autoencoder (He et al. 2022) of this width, depth and patch; its decoder's heads
    share its whole width."""
    c, L = config, (pixels // config.patch_size) ** 2
    V, patch = L - int(c.mask_ratio * L), bands * c.patch_size**2
    encoder = transformer(1 + V, dim=c.dim, depth=c.depth, inner=c.dim, hidden=int(c.dim * c.mlp_ratio))
    hidden = int(c.decoder_dim * c.decoder_mlp_ratio)
    decoder = transformer(1 + L, dim=c.decoder_dim, depth=c.decoder_depth, inner=c.decoder_dim, hidden=hidden)
    embedding = 2 * L * patch * c.dim
    ends = 2 * (1 + V) * c.dim * c.decoder_dim + 2 * (1 + L) * c.decoder_dim * patch
    return 3 * (embedding + encoder + decoder + ends) - embedding
