"""Encoder: pixels -> patch tokens -> position code -> masking -> class token and visible tokens -> transformer.

Holes (cube.valid) are treated like masked patches: a patch with too few measured pixels is left out of the sequence.
The encoder was trained on a quarter of its tokens, so it is used to shorter sequences, but not to patches of zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from clay_lib.datacube import Datacube
from clay_lib.embedding import PatchEmbedding
from clay_lib.errors import ContractError, number
from clay_lib.position import position_code
from clay_lib.transformer import Transformer

MIN_VALID = 0.5  # share of a patch's numbers that must have been measured for the encoder to see it


@dataclass(frozen=True)
class Encoded:
    """The encoder's output. L counts the patches of the padded image, V the visible ones.

    With holes, V is the largest number of visible patches in a chip. The rows of the other chips end in empty slots:
    zeros in `tokens`, False in `present`, and in `visible` the index of a patch that is not visible, so that `visible`
    and `masked` together still hold every patch once.
    """

    tokens: Tensor  # [B, 1+V, D], class token first
    visible: Tensor  # [B, V] indices of the visible patches, in the order of the tokens
    masked: Tensor  # [B, L-V] indices of the others
    mask: Tensor  # [B, L], 1 = masked; patches left out for their holes are not masked: there is nothing to predict
    grid: tuple[int, int]  # (h, w), h w = L
    valid: Tensor | None = None  # [B, L] bool, False: left out for its holes; None: no holes
    present: Tensor | None = None  # [B, V] bool, False: an empty slot; None: there is none
    layers: dict[int, Tensor] = field(default_factory=dict)  # {block number: [B, 1+V, D]}, after the final norm

    def patches(self, tokens: Tensor | None = None) -> Tensor:
        """Visible patches of tokens [B, 1+V, D] (default: the last layer's) in place, [B, h, w, D]; NaN elsewhere."""
        patches = (self.tokens if tokens is None else tokens)[:, 1:]
        if self.present is not None:
            patches = patches.masked_fill(~self.present[:, :, None], float("nan"))
        canvas = patches.new_full((*self.mask.shape, patches.shape[-1]), float("nan"))  # [B, L, D]
        index = repeat(self.visible, "B V -> B V D", D=patches.shape[-1])
        return rearrange(canvas.scatter(1, index, patches), "B (h w) D -> B h w D", h=self.grid[0])


class Encoder(nn.Module):
    """cube -> Encoded. Any number of bands, any H and W (padded to the patch size), mask ratio 0 to 0.95."""

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        mlp_ratio: float,
        patch_size: int,
        frequencies: str = "released",
    ):
        super().__init__()
        self.patch_size, self.dim, self.frequencies = patch_size, dim, frequencies
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.patch_embedding = PatchEmbedding(dim, patch_size=patch_size)
        self.transformer = Transformer(dim, depth=depth, heads=heads, dim_head=dim_head, mlp_ratio=mlp_ratio)

    def forward(
        self,
        cube: Datacube,
        mask_ratio: float = 0.0,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        *,
        layers: Sequence[int] = (),
        min_valid: float = MIN_VALID,
    ) -> Encoded:
        """layers: blocks, counted from 0 or from the end, whose tokens are returned too, after the final norm.

        min_valid: the share of a patch's numbers that must be valid in the cube; a patch without any is never visible.
        Chips of one batch may have different holes: each gives the same result as alone, up to rounding.
        """
        pixels, valid, min_valid = cube.pixels, None, check_share(min_valid)
        if cube.valid is not None:
            pixels, share = fill_holes(pixels, cube.valid, self.patch_size)
            valid = (share > 0) & (share >= min_valid - 1e-6)  # [B, L]
        pixels = pad_to_patches(pixels, self.patch_size)
        h, w = (side // self.patch_size for side in pixels.shape[-2:])

        # Choose the visible patches: [B, V] of L.
        options = dict(mask_ratio=mask_ratio, shuffle=shuffle, generator=generator, noise=noise)
        if valid is None:
            visible, masked, mask = random_mask(len(pixels), h * w, device=pixels.device, **options)
            present = None
        else:
            visible, masked, mask, present = mask_around_holes(valid, **options)

        # Embed only those: [B, V, D], and add their position codes.
        code = position_code(h, w, self.dim, cube.gsd, cube.time, cube.latlon, frequencies=self.frequencies)
        if valid is None and visible.shape[1] == h * w and not shuffle:  # all of them, in order
            tokens = self.patch_embedding(pixels, cube.waves)
        else:
            tokens, code = self.patch_embedding(pixels, cube.waves, visible), gather_tokens(code, visible)
        tokens = tokens + code.to(tokens.dtype)

        # Prepend the class token: [B, 1+V, D].
        class_token = repeat(self.cls_token, "1 1 D -> B 1 D", B=len(tokens)).to(tokens.dtype)
        tokens = torch.cat([class_token, tokens], dim=1)
        tokens, inner = self._transform(tokens, present, self._block_numbers(layers))
        return Encoded(tokens, visible, masked, mask, (h, w), valid, present, inner)

    def _transform(self, tokens: Tensor, present: Tensor | None, layers: dict[int, int]):
        """Tokens after the last block and {requested number: tokens after that block}, normed; zeros in empty slots."""
        slots = None if present is None else F.pad(present, (1, 0), value=True)  # [B, 1+V], the class token is present
        keys = None if slots is None else rearrange(slots, "B N -> B 1 1 N")

        def finish(normed: Tensor) -> Tensor:
            return normed if slots is None else normed.masked_fill(~slots[:, :, None], 0.0)

        if not layers:
            return finish(self.transformer(tokens, keys)), {}
        outputs = [finish(self.transformer.norm(x)) for x in self.transformer.outputs(tokens, keys)]
        return outputs[-1], {requested: outputs[k] for requested, k in layers.items()}

    def _block_numbers(self, layers: Sequence[int]) -> dict[int, int]:
        """{number as requested, perhaps negative: number from 0}."""
        depth = len(self.transformer.layers)
        layers = [layers] if isinstance(layers, int) else getattr(layers, "tolist", lambda: list(layers))()
        if any(isinstance(k, bool) or not isinstance(k, int) or not -depth <= k < depth for k in layers):
            expected = f"block numbers from {-depth} to {depth - 1}"
            raise ContractError("layers", layers, expected, "counting from 1, or a model of another depth")
        return {k: k % depth for k in layers}


# --- masking ---


def random_mask(batch: int, length: int, *, mask_ratio: float, shuffle: bool, device=None, generator=None, noise=None):
    """Random split of the patches: (visible [B, V], masked [B, L-V], mask [B, L] with 1 = masked).

    The first int(mask_ratio L) of each sample's own random order are masked; without shuffling the order is
    row-major, so that the top rows are masked. noise [B, L]: random numbers that define the order; None: drawn here.
    """
    _check_ratio(mask_ratio)
    if shuffle:
        noise = torch.rand(batch, length, device=device, generator=generator) if noise is None else noise
        order = noise.argsort(dim=1)
    else:
        order = repeat(torch.arange(length, device=device), "L -> B L", B=batch)
    masked, visible = order.tensor_split([int(mask_ratio * length)], dim=1)
    mask = torch.zeros(batch, length, device=device).scatter(1, masked, 1.0)
    return visible, masked, mask


def mask_around_holes(valid: Tensor, *, mask_ratio: float, shuffle: bool, generator=None, noise=None):
    """`random_mask` among the valid patches [B, L] alone: (visible, masked, mask, present), as in `Encoded`.

    int(mask_ratio n) of a chip's n valid patches are masked. Invalid ones are neither visible nor in the mask.
    """
    B, L = valid.shape
    _check_ratio(mask_ratio)
    if not shuffle:
        noise = torch.arange(L, device=valid.device, dtype=torch.float32).expand(B, L)
    elif noise is None:
        noise = torch.rand(B, L, device=valid.device, generator=generator)
    rank = noise.masked_fill(~valid, float("inf")).argsort(dim=1, stable=True).argsort(dim=1)  # valid patches first
    counts = valid.sum(1).tolist()
    masked_counts = torch.tensor([int(mask_ratio * n) for n in counts], device=valid.device)[:, None]
    mask = valid & (rank < masked_counts)
    order = (rank + L * mask + 2 * L * ~valid).argsort(dim=1)  # visible, then masked, then invalid
    visible_counts = [n - int(mask_ratio * n) for n in counts]
    V = max(visible_counts)
    visible, masked = order.tensor_split([V], dim=1)
    if min(visible_counts) == V:
        return visible, masked, mask.float(), None
    slots = torch.arange(V, device=valid.device)
    present = slots < torch.tensor(visible_counts, device=valid.device)[:, None]  # [B, V]
    return visible, masked, mask.float(), present


def _check_ratio(mask_ratio: float) -> None:
    if not 0 <= mask_ratio < 1:
        raise ContractError("mask_ratio", mask_ratio, "0 <= ratio < 1", "a percentage, or no visible patch left")


def check_share(min_valid: float) -> float:
    """min_valid as a share from 0 to 1."""
    share = number("min_valid", min_valid)
    if not 0 <= share <= 1:
        raise ContractError("min_valid", min_valid, "a share from 0 to 1", "a percentage")
    return share


def fill_holes(pixels: Tensor, valid: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Pixels [B, C, H, W] and valid [B, 1 or C, H, W] -> (pixels without holes, measured share of each patch [B, L]).

    A hole takes the mean of its band's measured pixels in its patch. Where the patch has none it takes zero, the
    band's mean on Earth, which the encoder saw in training whenever a band was dropped. The share is over all pixels
    and bands of a patch; pixels that only pad the image count neither as measured nor as missing.
    """
    valid = valid.expand_as(pixels)
    known = pixels.masked_fill(~valid, 0.0).to(torch.promote_types(pixels.dtype, torch.float32))
    # ceil_mode: a window over the edge is divided by the number of pixels that it really has. [B, C, h, w] both.
    share, mean = (F.avg_pool2d(x, patch_size, ceil_mode=True) for x in (valid.to(known.dtype), known))
    mean = mean / share.clamp(min=patch_size**-2)  # of the measured pixels only
    mean = repeat(mean, "B C h w -> B C (h p) (w q)", p=patch_size, q=patch_size)
    filled = torch.where(valid, pixels, mean[..., : pixels.shape[-2], : pixels.shape[-1]].to(pixels.dtype))
    return filled, rearrange(share.mean(1), "B h w -> B (h w)")


# --- patches ---


def pad_to_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> H and W rounded up to the patch size, by repeating the last row and column."""
    bottom, right = -pixels.shape[-2] % patch_size, -pixels.shape[-1] % patch_size
    return F.pad(pixels, (0, right, 0, bottom), mode="replicate") if bottom or right else pixels


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """tokens [B, L, D], indices [B, V] -> [B, V, D]."""
    return tokens.gather(1, repeat(indices, "B V -> B V D", D=tokens.shape[-1]))


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """Pixels [B, C, H, W] -> [B, L, C*P*P], bands outermost, after padding."""
    pixels = pad_to_patches(pixels, patch_size)
    return rearrange(pixels, "B C (h p) (w q) -> B (h w) (C p q)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, *, grid: tuple[int, int], patch_size: int, size: tuple[int, int]) -> Tensor:
    """The inverse: patches [B, L, C*P*P] -> pixels [B, C, H, W], cropped back to size = (H, W)."""
    image = rearrange(patches, "B (h w) (C p q) -> B C (h p) (w q)", h=grid[0], w=grid[1], p=patch_size, q=patch_size)
    return image[..., : size[0], : size[1]]


def unpatchify_mask(mask: Tensor, *, grid: tuple[int, int], patch_size: int, size: tuple[int, int]) -> Tensor:
    """A mask of patches [B, L] on the pixels' grid, [B, 1, H, W], cropped like `unpatchify`."""
    return unpatchify(repeat(mask, "B L -> B L n", n=patch_size**2), grid=grid, patch_size=patch_size, size=size)
