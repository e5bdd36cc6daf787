"""Checks of the exercises of 01: wavelengths, tokens, and each band's part in a token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch.overrides import TorchFunctionMode

from clay_lib.course.checking import as_tensor, attempt, compare, require, right
from clay_lib.embedding import PatchEmbedding

CAMERA = (0.450, 0.550, 0.660, 0.735, 0.845)  # um: the drone camera of the exercise


def check_wavelengths(waves) -> None:
    """The drone camera's wavelengths [5], um, from blue to near infrared."""
    wanted = torch.tensor(CAMERA)
    found = as_tensor(waves).float()
    compare(
        found,
        wanted,
        axes="C",
        slips={
            "These are nanometres, as the data sheet has them. The model reads micrometres: 1 um is 1000 nm.": wanted
            * 1000,
            "These are metres. The model reads micrometres: 1 um is 1000 nm.": wanted * 1e-6,
            "These are tenths of micrometres or the like: 450 nm are 0.450 um.": wanted * 10,
            "These are millimetres. The model reads micrometres: 1 um is 1000 nm.": wanted * 1e-3,
            "The wavelengths are right, but they come from near infrared to blue: the pixels come from blue on.": wanted.flip(
                0
            ),
        },
        what="the wavelengths",
    )
    right("Five wavelengths in micrometres, in the order of the pixels' bands.")


def check_tokens(fn: Callable) -> None:
    """fn(pixels [B, C, H, W], weight [D, C, P, P], bias [D]) -> tokens [B, L, D], row by row."""
    draw = torch.Generator().manual_seed(1)
    pixels, weight, bias = (torch.randn(*n, generator=draw) for n in ((2, 3, 8, 12), (5, 3, 4, 4), (5,)))

    def tokens(cut="B C (h p) (w q) -> B (h w) (C p q)", flat="D C p q -> D (C p q)"):
        return rearrange(pixels, cut, p=4, q=4) @ rearrange(weight, flat).T

    plain = tokens()
    with _Called() as called:
        found = attempt(fn, pixels, weight, bias)
    compare(
        found,
        plain + bias,
        axes="B L D",
        slips={
            "The bias is missing: it is added once to every token.": plain,
            "The bias is added once for every band; a token gets it once in all.": plain + 3 * bias,
            "The tokens come column by column. They have to come row by row: (h w), not (w h).": bias
            + tokens("B C (h p) (w q) -> B (w h) (C p q)"),
            "You took the mean over bands and pixels; a token is the sum.": plain / 48 + bias,
            "You took the mean over the bands; a token is the sum over bands and pixels.": plain / 3 + bias,
            "Pixels and kernels are flattened in different orders: both have to be (C p q).": bias
            + tokens("B C (h p) (w q) -> B (h w) (p q C)"),
            "Rows and columns are swapped inside the patch: p belongs to h, q to w, in pixels as in kernels.": bias
            + tokens("B C (h p) (w q) -> B (h w) (C q p)"),
        },
        what="the tokens",
    )
    require(
        not any("conv" in name for name in called.names),
        "The tokens are right, but a convolution of torch has made them. The exercise is to do without: cut the pixels into "
        "rows of numbers, one row a patch, and multiply.",
    )
    right("Pixels times kernels, summed over bands and pixels of a patch, plus the bias: a convolution by hand.")


class _Called(TorchFunctionMode):
    """The names of the torch functions that are called inside of `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def check_band_parts(fn: Callable) -> None:
    """fn(embedding, pixels [B, C, H, W], waves [C]) -> [B, C, L, D]: each band's part, without the bias."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        embedding = PatchEmbedding(6, patch_size=4).requires_grad_(False)
        embedding.weight_generator.fc_bias.bias += torch.randn(6)  # untrained it is near zero, and nobody would see it
        pixels, waves = torch.randn(2, 3, 8, 12), torch.tensor([0.49, 0.665, 2.2])
    weight, bias = embedding.kernels(waves)
    alone = torch.cat([embedding.kernels(wave[None])[0] for wave in waves], dim=1)
    patches = rearrange(pixels, "B C (h p) (w q) -> B C (h w) (p q)", p=4, q=4)

    def parts(kernels):
        return torch.einsum("bcln,dcn->bcld", patches, kernels.flatten(2))

    found, wanted = attempt(fn, embedding, pixels, waves), parts(weight)
    require(
        as_tensor(found).shape != (2, 6, 6),
        "The bands are summed: the shape is [B, L, D]. Keep an axis for them, [B, C, L, D], and sum only over the pixels.",
    )
    compare(
        found,
        wanted,
        axes="B C L D",
        slips={
            "You asked for each band's kernel on its own. The bands see each other when kernels are made: ask for all "
            "wavelengths at once.": parts(alone),
            "The bias is in every band's part. It belongs to no band: leave it out.": wanted + bias,
            "The bias is shared among the bands. It belongs to no band: leave it out.": wanted + bias / 3,
            "You took the mean over the pixels of a patch; a band's part is their sum.": wanted / 16,
        },
        rtol=1e-3,
        what="the parts",
    )
    right("The parts of all bands and the bias add up to the tokens.")
