"""Checks of notebooks 01 to 03: tokens from pixels, position and time codes, masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime

import torch
from einops import rearrange, repeat
from torch.overrides import TorchFunctionMode

from clay_lib.course.checks.engine import Check, attempt, normal, number, whole_number
from clay_lib.embedding import PatchEmbedding

# ---- 01: wavelengths, tokens, the part of each band in a token

CAMERA = torch.tensor([0.450, 0.550, 0.660, 0.735, 0.845])  # um: the drone camera of the exercise

check_wavelengths = Check(
    reference=lambda: CAMERA,
    cases=[()],
    axes="C",
    mistakes={
        "These are nanometers. The model reads micrometers: 1 um is 1000 nm.": lambda: CAMERA * 1000,
        "The order is from near infrared to blue: the pixels begin with blue.": lambda: CAMERA.flip(0),
    },
    praise="Five wavelengths in micrometers, in the order of the pixels' bands.",
)


def tokens(pixels, weight, bias, *, rows="B (h w) (C p q)", biases=1, divide=1):
    """pixels [B, C, H, W], weight [D, C, P, P], bias [D] -> tokens [B, L, D], row by row."""
    rows = rearrange(pixels, f"B C (h p) (w q) -> {rows}", p=4, q=4)
    return rows @ rearrange(weight, "D C p q -> D (C p q)").T / divide + biases * bias


class _Calls(TorchFunctionMode):
    """Records the names of the torch functions called within `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def _no_convolution(fn: Callable) -> Iterator[tuple[bool, str]]:
    with _Calls() as calls:
        attempt(fn, *check_tokens.cases[0])
    used = any("conv" in name for name in calls.names)
    yield not used, "The tokens are right, but a convolution of torch made them: use reshapes and one matrix product."


check_tokens = Check(
    reference=tokens,
    cases=[(normal(1, 2, 3, 8, 12), normal(2, 5, 3, 4, 4), normal(3, 5))],
    axes="B L D",
    mistakes={
        "The bias is missing: it is added once to every token.": dict(biases=0),
        "The bias is added once for every band; a token gets it once in all.": dict(biases=3),
        "The tokens come column by column; they come row by row, (h w).": dict(rows="B (w h) (C p q)"),
        "Pixels and kernels are flattened in different orders: both are (C p q).": dict(rows="B (h w) (p q C)"),
        "This is a mean; a token is the sum over bands and pixels.": [dict(divide=48), dict(divide=3)],
    },
    rules=_no_convolution,
    praise="Pixels times kernels, summed over bands and pixels of a patch, plus the bias: a convolution by hand.",
)


def band_parts(embedding, pixels, waves, *, together=True, biases=0):
    """A PatchEmbedding, pixels [B, C, H, W], waves [C] um -> each band's part in the tokens [B, C, L, D]."""
    weight, bias = embedding.kernels(waves)  # of all bands together: they attend to each other
    if not together:
        weight = torch.cat([embedding.kernels(wave[None])[0] for wave in waves], dim=1)
    patches = rearrange(pixels, "B C (h p) (w q) -> B C (h w) (p q)", p=4, q=4)
    return torch.einsum("bcln,dcn->bcld", patches, weight.flatten(2)) + biases * bias


def _embedding() -> list[tuple]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        embedding = PatchEmbedding(6, patch_size=4).requires_grad_(False)
        embedding.weight_generator.fc_bias.bias += torch.randn(6)  # untrained it is near zero and would not show
    return [(embedding, normal(1, 2, 3, 8, 12), torch.tensor([0.49, 0.665, 2.2]))]


check_band_parts = Check(
    reference=band_parts,
    cases=_embedding,
    axes="B C L D",
    rtol=1e-3,
    mistakes={
        "Bands attend to each other: pass all wavelengths at once.": dict(together=False),
        "The bias is in every band's part. It belongs to no band: leave it out.": [dict(biases=1), dict(biases=1 / 3)],
        "The bands are summed: keep their axis, and sum only over the pixels.": lambda *case: band_parts(*case).sum(1),
    },
    praise="The parts of all bands and the bias add up to the tokens.",
)

# ---- 02: position and time codes

check_same_place = Check(
    reference=lambda column, gsd, other: column * gsd / other,
    cases=[(12, 10.0, 30.0), (5, 30.0, 10.0), (7, 0.6, 3.0), (11, 10.0, 30.0)],
    read=number,
    mistakes={
        "The two pixel sizes are swapped: coarser pixels need fewer columns.": lambda column, a, b: column * b / a,
        "This is the same column at both pixel sizes. The code counts meters.": lambda column, a, b: column,
        "These are meters. Divide them by the other pixel size to get columns.": lambda column, a, b: column * a,
        "These are integers: codes lie between columns too.": lambda column, a, b: round(column * a / b),
    },
    praise="Equal meters, equal codes.",
)


def iso_week(date: datetime) -> int:
    return date.isocalendar().week


def week_code(date, *, week=iso_week, weeks=52, swap=False):
    """A datetime -> [2], sine and cosine of its ISO week on a circle of 52 weeks."""
    angle = torch.tensor(2 * math.pi * week(date) / weeks, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()] if swap else [angle.sin(), angle.cos()])


check_week_code = Check(
    reference=week_code,
    cases=[(datetime(2023, 6, 10, 10),), (datetime(2024, 12, 30),), (datetime(2021, 1, 2),), (datetime(2025, 9, 30),)],
    axes="sin|cos",
    atol=1e-4,
    mistakes={
        "Cosine comes first. Clay's order is sine, then cosine.": dict(swap=True),
        "The angle is in degrees; sine and cosine take radians: a turn is 2 pi.": dict(weeks=52 * 2 * math.pi / 360),
        "The factor 2 is missing: 52 weeks are a full turn, 2 pi.": dict(weeks=104),
        "You divide by 53: Clay divides the ISO week by 52.": dict(weeks=53),
        "You take week 53 for week 52: leave it, a little over a turn.": dict(week=lambda d: min(iso_week(d), 52)),
        "This is the day of the year: take the ISO week.": dict(week=lambda d: d.timetuple().tm_yday, weeks=365),
        "The ISO week is date.isocalendar().week, not strftime's %W.": dict(week=lambda d: int(d.strftime("%W"))),
    },
    praise="The week on its circle: week 52 and week 1 are neighbors.",
)


def grid_code(h, w, frequencies, *, order="(h w)", blocks=(0, 1, 2, 3)):
    """Rows, columns, frequencies [F] -> [h w, 4 F]: sin x | cos x | sin y | cos y, row by row; x is the column."""
    x = repeat(torch.arange(w), f"w -> {order} 1", h=h) * frequencies
    y = repeat(torch.arange(h), f"h -> {order} 1", w=w) * frequencies
    parts = [x.sin(), x.cos(), y.sin(), y.cos()]
    return torch.cat([parts[k] for k in blocks], dim=1)


check_grid_code = Check(
    reference=grid_code,
    cases=[(3, 4, torch.tensor([0.2, 0.55, 0.9, 1.3, 1.8]))],
    axes="L 4F",
    mistakes={
        "Rows and columns are swapped: x, the column, comes first, then y, the row.": dict(blocks=(2, 3, 0, 1)),
        "The tokens come column by column. They come row by row: x changes fastest.": dict(order="(w h)"),
        "Cosines come before sines: the order is sin x, cos x, sin y, cos y.": dict(blocks=(1, 0, 3, 2)),
        "The order is sin x, sin y, cos x, cos y: keep x together, then y.": dict(blocks=(0, 2, 1, 3)),
        "Only the columns are here: add sin y and cos y.": dict(blocks=(0, 1)),
    },
    praise="Every token of a grid that is not square has its column and its row.",
)

# ---- 03: the length of a sequence, masks, tokens back in their places


def sequence_length(height, width, patch_size, mask_ratio, *, side=math.ceil, hidden=int, cls=1):
    """Sides and patch size in pixels, the share hidden -> tokens in the encoder, with the class token."""
    patches = side(height / patch_size) * side(width / patch_size)
    return cls + patches - hidden(mask_ratio * patches)


check_sequence_length = Check(
    reference=sequence_length,
    cases=[(256, 256, 8, 0.75), (250, 130, 8, 0.6), (64, 100, 8, 0.95), (33, 33, 16, 0.0)],
    read=whole_number,
    mistakes={
        "The class token is missing: it is never hidden.": dict(cls=0),
        "Patches at the edge are lost: images are padded, so round the sides up.": dict(side=math.floor),
        "The number of hidden patches is cut off, int(ratio * L), not rounded.": dict(hidden=round),
        "These are the hidden patches; the encoder gets the others.": lambda *case: (
            sequence_length(*case[:3], 0, cls=0) - sequence_length(*case, cls=0)
        ),
        "The number of visible patches is cut off; that of the hidden ones should be.": dict(hidden=math.ceil),
    },
    praise="Sides rounded up to full patches, the hidden ones taken off, the class token added.",
)


def mask(draw, ratio, *, more=0):
    """draw [B, L], share hidden -> mask [B, L], 1 = hidden: the int(ratio L) patches with the smallest draws."""
    hidden = draw.argsort(dim=1)[:, : int(ratio * draw.shape[1]) + more]
    return torch.zeros_like(draw).scatter(1, hidden, 1.0)


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) ** 2  # squared: more draws below the ratio


check_mask = Check(
    reference=mask,
    cases=[(_draw(4, 3, 11), 0.6), (_draw(5, 2, 13), 0.6), (_draw(6, 4, 16), 0.75), (_draw(7, 2, 9), 0.3)],
    axes="B L",
    mistakes={
        "0 and 1 are swapped: 1 means hidden.": lambda draw, ratio: 1 - mask(draw, ratio),
        "You hide the patches with the largest draws; the smallest are hidden.": lambda draw, ratio: mask(-draw, ratio),
        "Draws below the ratio are another number of patches each time: sort.": lambda draw, ratio: (
            draw < ratio
        ).float(),
        "argsort gives the numbers of the patches in order, not the rank of each: scatter ones to these numbers.": (
            lambda draw, ratio: (draw.argsort(dim=1) < int(ratio * draw.shape[1])).float()
        ),
        "Each sample has an order of its own.": lambda draw, ratio: mask(draw[:1].expand(len(draw), -1), ratio),
        "One patch too many is hidden: int(ratio * L) cuts off, rounding and quantiles may not.": dict(more=1),
    },
    edge_cases={"With ratio 0 no patch is hidden: the mask is all zeros.": (_draw(7, 2, 9), 0.0)},
    praise="The same number hidden in every sample, at places of its own.",
)


def put_back(tokens, visible, mask_token, patches, *, places=lambda visible: visible, filler=1.0):
    """tokens [B, V, D], visible [B, V], mask_token [D], L -> [B, L, D]: tokens[b, i] at visible[b, i], else mask tokens."""
    B, _, D = tokens.shape
    every = repeat(filler * mask_token, "D -> B L D", B=B, L=patches)
    return every.scatter(1, repeat(places(visible), "B V -> B V D", D=D), tokens)


check_put_back = Check(
    reference=put_back,
    cases=[(normal(2, 2, 3, 4), _draw(2, 2, 7).argsort(dim=1)[:, :3], normal(3, 4), 7)],
    axes="B L D",
    mistakes={
        "The mask tokens stand behind the visible ones: each token goes to visible[b, i].": lambda tokens, _, filler, L: (
            torch.cat([tokens, filler.expand(len(tokens), L - tokens.shape[1], -1)], dim=1)
        ),
        "The hidden places hold zeros: they hold the mask token.": dict(filler=0.0),
        "tokens[b, i] belongs to visible[b, i], and that list is not sorted.": dict(places=lambda v: v.sort(1).values),
        "Every sample uses the places of the first one.": dict(places=lambda visible: visible[:1].expand_as(visible)),
    },
    praise="Visible tokens in their places, the mask token everywhere else.",
)
