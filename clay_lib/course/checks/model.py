"""Checks of notebooks 01 to 03: tokens from pixels, position and time codes, masks."""

import math
from collections.abc import Callable
from datetime import datetime

import torch
from einops import rearrange, repeat

from clay_lib.course.checks.engine import check, normal, number, require, whole_number
from clay_lib.embedding import PatchEmbedding

# ---- 01: wavelengths, tokens, the part of each band in a token


@check(
    cases=[()],
    mistakes={
        "These are nanometers. The model reads micrometers: 1 um is 1000 nm.": ("])", "]) * 1000"),
        "The order is from near infrared to blue: the pixels begin with blue.": ("])", "]).flip(0)"),
    },
    praise="Five wavelengths in micrometers, in the order of the pixels' bands.",
)
def check_wavelengths():
    """The drone camera -> the wavelengths of its bands [C], um."""
    return torch.tensor([0.450, 0.550, 0.660, 0.735, 0.845])


def _no_convolution(answer: Callable) -> None:
    code = getattr(answer, "__code__", None)
    used = code and any("conv" in name.lower() for name in code.co_names)
    require(not used, "The tokens are right, but made by a convolution of torch: use reshapes and one matrix product.")


@check(
    cases=[(normal(1, 2, 3, 8, 12), normal(2, 5, 3, 4, 4), normal(3, 5))],
    mistakes={
        "The bias is missing: it is added once to every token.": ("+ bias", ""),
        "The tokens come column by column; they come row by row, (h w).": ("(h w)", "(w h)"),
        "Pixels and kernels are flattened in different orders: both are (C p q).": ("w) (C p q)", "w) (p q C)"),
        "This is a mean; a token is the sum over bands and pixels.": ("+ bias", "/ 48 + bias"),
    },
    rule=_no_convolution,
    praise="Pixels times kernels, summed over bands and pixels of a patch, plus the bias: a convolution by hand.",
)
def check_tokens(pixels, weight, bias):
    """pixels [B, C, H, W], weight [D, C, P, P], bias [D] -> tokens [B, L, D], row by row."""
    rows = rearrange(pixels, "B C (h p) (w q) -> B (h w) (C p q)", p=4, q=4)
    return rows @ rearrange(weight, "D C p q -> D (C p q)").T + bias


def _embedding() -> PatchEmbedding:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        embedding = PatchEmbedding(6, patch_size=4).requires_grad_(False)
        embedding.weight_generator.fc_bias.bias += torch.randn(6)  # untrained it is near zero and would not show
    return embedding


@check(
    cases=[(_embedding(), normal(1, 2, 3, 8, 12), torch.tensor([0.49, 0.665, 2.2]))],
    rtol=1e-3,
    mistakes={
        "Bands attend to each other: pass all wavelengths at once.": (
            "embedding.kernels(waves)",
            "torch.cat([embedding.kernels(wave[None])[0] for wave in waves], dim=1), None",
        ),
        "The bias is in every band's part, but belongs to none: leave it out.": (
            "(2))",
            "(2)) + embedding.kernels(waves)[1]",
        ),
        "The bands are summed: keep their axis, and sum only over the pixels.": ("->bcld", "->bld"),
    },
    praise="The parts of all bands and the bias add up to the tokens.",
)
def check_band_parts(embedding, pixels, waves):
    """A PatchEmbedding, pixels [B, C, H, W], waves [C] um -> each band's part in the tokens [B, C, L, D]."""
    weight, _ = embedding.kernels(waves)  # of all bands together: they attend to each other
    patches = rearrange(pixels, "B C (h p) (w q) -> B C (h w) (p q)", p=4, q=4)
    return torch.einsum("bcln,dcn->bcld", patches, weight.flatten(2))


# ---- 02: position and time codes


@check(
    cases=[(12, 10.0, 30.0), (5, 30.0, 10.0), (7, 0.6, 3.0), (11, 10.0, 30.0)],
    read=number,
    mistakes={
        "The two pixel sizes are swapped: coarser pixels need fewer columns.": ("gsd / other", "other / gsd"),
        "This is the same column at both pixel sizes. The code counts meters.": (" * gsd / other", ""),
        "These are meters. Divide them by the other pixel size to get columns.": (" / other", ""),
        "These are integers: codes lie between columns too.": ("column * gsd / other", "round(column * gsd / other)"),
    },
    praise="Equal meters, equal codes.",
)
def check_same_place(column, gsd, other):
    """A column and two pixel sizes, m -> the column of the same place at the other pixel size."""
    return column * gsd / other


@check(
    cases=[(datetime(2023, 6, 10, 10),), (datetime(2024, 12, 30),), (datetime(2021, 1, 2),), (datetime(2025, 9, 30),)],
    atol=1e-4,
    mistakes={
        "Cosine comes first. Clay's order is sine, then cosine.": ("])", "]).flip(0)"),
        "The angle is in degrees; sine and cosine take radians: a turn is 2 pi.": ("2 * math.pi", "360"),
        "The factor 2 is missing: 52 weeks are a full turn, 2 pi.": ("2 * math.pi", "math.pi"),
        "This is the day of the year: take the ISO week.": ("isocalendar().week / 52", "timetuple().tm_yday / 365"),
    },
    praise="The week on its circle: week 52 and week 1 are neighbors.",
)
def check_week_code(date):
    """A datetime -> [sin and cos] of its ISO week on a circle of 52 weeks."""
    angle = torch.tensor(2 * math.pi * date.isocalendar().week / 52, dtype=torch.float64)
    return torch.stack([angle.sin(), angle.cos()])


@check(
    cases=[(3, 4, torch.tensor([0.2, 0.55, 0.9, 1.3, 1.8]))],
    mistakes={
        "Rows and columns are swapped: x, the column, comes first, then y, the row.": ("return", "x, y = y, x; return"),
        "The tokens come column by column. They come row by row: x changes fastest.": ("(h w)", "(w h)"),
        "The order is sin x, sin y, cos x, cos y: keep x together, then y.": ("x.cos(), y.sin()", "y.sin(), x.cos()"),
        "Only the columns are here: add sin y and cos y.": (", y.sin(), y.cos()", ""),
    },
    praise="Every token of a grid that is not square has its column and its row.",
)
def check_grid_code(h, w, frequencies):
    """Rows, columns, frequencies [F] -> [h w, 4 F]: sin x | cos x | sin y | cos y, row by row; x is the column."""
    x = repeat(torch.arange(w), "w -> (h w) 1", h=h) * frequencies
    y = repeat(torch.arange(h), "h -> (h w) 1", w=w) * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


# ---- 03: the length of a sequence, masks, tokens back in their places


@check(
    cases=[(256, 256, 8, 0.75), (250, 130, 8, 0.6), (64, 100, 8, 0.95), (33, 33, 16, 0.0)],
    read=whole_number,
    mistakes={
        "The class token is missing: it is never hidden.": ("1 + ", ""),
        "Patches at the edge are lost: images are padded, so round the sides up.": ("ceil", "floor"),
        "Round the number of hidden patches down, int(ratio * L).": ("int(", "round("),
        "These are the hidden patches; the encoder gets the others.": ("1 + patches - ", ""),
    },
    praise="Sides rounded up to full patches, the hidden ones taken off, the class token added.",
)
def check_sequence_length(height, width, patch_size, mask_ratio):
    """Sides and patch size in pixels, the share hidden -> tokens in the encoder, with the class token."""
    patches = math.ceil(height / patch_size) * math.ceil(width / patch_size)
    return 1 + patches - int(mask_ratio * patches)


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) ** 2  # squared: more draws below the ratio


@check(
    cases=[(_draw(4, 3, 11), 0.6), (_draw(5, 2, 13), 0.6), (_draw(6, 4, 16), 0.75), (_draw(7, 2, 9), 0.3)],
    mistakes={
        "0 and 1 are swapped: 1 means hidden.": ("return", "return 1 -"),
        "You hide the patches with the largest draws: hide the smallest.": ("draw.argsort", "(-draw).argsort"),
        "The number of draws below the ratio varies: sort them.": lambda draw, ratio: draw < ratio,
        "argsort gives the patches in order, not their ranks.": (
            "return",
            "return 1.0 * (draw.argsort(dim=1) < hidden.shape[1])  #",
        ),
    },
    edge_cases={"With ratio 0 no patch is hidden: the mask is all zeros.": (_draw(7, 2, 9), 0.0)},
    praise="The same number is hidden in every sample, each time in other places.",
)
def check_mask(draw, ratio):
    """draw [B, L], share hidden -> mask [B, L], 1 = hidden: the int(ratio L) patches with the smallest draws."""
    hidden = draw.argsort(dim=1)[:, : int(ratio * draw.shape[1])]
    return torch.zeros_like(draw).scatter(1, hidden, 1.0)


@check(
    cases=[(normal(2, 2, 3, 4), _draw(2, 2, 7).argsort(dim=1)[:, :3], normal(3, 4), 7)],
    mistakes={
        "The mask tokens stand behind the visible ones: each token goes to visible[b, i].": ("visible]", "range(3)]"),
        "Your hidden places hold zeros: put the mask token there.": ("= mask_token", "= 0 * mask_token"),
        "tokens[b, i] belongs to visible[b, i], and that list is not sorted.": ("visible]", "visible.sort(1).values]"),
        "Every sample uses the first one's places: use its own.": ("visible]", "visible[:1]]"),
    },
    praise="Visible tokens in their places, the mask token everywhere else.",
)
def check_put_back(tokens, visible, mask_token, patches):
    """tokens [B, V, D], visible [B, V], mask_token [D], L -> [B, L, D]: tokens[b, i] at visible[b, i], else mask tokens."""
    full = mask_token.repeat(len(tokens), patches, 1)
    full[torch.arange(len(tokens))[:, None], visible] = tokens
    return full
