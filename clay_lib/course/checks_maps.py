"""Checks of the exercises of 05: rows of numbers to an image, the plain guess, the map of patches in its place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from rasterio.transform import Affine

from clay_lib.course.checking import Mistake, attempt, compare, right


def check_image_of_rows(fn: Callable) -> None:
    """fn(rows [L, C*P*P], C, P, H, W) -> image [C, H, W], what pads it cut off."""
    _check_image(fn, 3, 4, 7, 10)
    for (C, P, H, W), reason in {
        (3, 4, 8, 12): "8 rows of pixels are 2 patches and no further one: -(-H // P) rounds up, H // P + 1 gives 3",
        (3, 4, 9, 9): "9 rows of pixels reach into a third patch: round up, -(-H // P); round(H / P) gives 2",
        (3, 4, 11, 6): "the grid has 3 rows and 2 columns: count its rows from H, not from the number of patches",
        (
            2,
            5,
            7,
            12,
        ): "the numbers of bands and of pixels a patch are others than before: take C and P as they are given",
    }.items():
        try:
            _check_image(fn, C, P, H, W)
        except Mistake as mistake:
            raise Mistake(
                f"Another size does not come out, C = {C}, P = {P}, H = {H}, W = {W}. Mind that {reason}. ({mistake})"
            ) from None
    right("From rows of numbers to an image of any size: the decoder's answer, ready to be looked at.")


def _check_image(fn: Callable, C: int, P: int, H: int, W: int) -> None:
    h, w = -(-H // P), -(-W // P)
    rows = torch.randn(h * w, C * P * P, generator=torch.Generator().manual_seed(4))

    def image(cut, **sizes):
        return rearrange(rows, cut, **sizes)[:, :H, :W]

    whole = image("(h w) (C p q) -> C (h p) (w q)", h=h, C=C, p=P)
    compare(
        attempt(fn, rows, C, P, H, W),
        whole,
        axes="C H W",
        slips={
            "The padding is still there: cut the image to H rows and W columns.": rearrange(
                rows, "(h w) (C p q) -> C (h p) (w q)", h=h, C=C, p=P
            ),
            "Each row is read with the bands last. The decoder gives all pixels of the first band, then of the second: "
            "(C p q).": image("(h w) (p q C) -> C (h p) (w q)", h=h, C=C, p=P),
            "The patches are set column by column. They come row by row: (h w).": image(
                "(w h) (C p q) -> C (h p) (w q)", h=h, C=C, p=P
            ),
            "Rows and columns are swapped inside the patches.": image("(h w) (C q p) -> C (h p) (w q)", h=h, C=C, p=P),
            "Pixels of different patches are interleaved: the patch number comes first, (h p), not (p h).": image(
                "(h w) (C p q) -> C (p h) (q w)", h=h, C=C, p=P
            ),
            "The grid's rows are cut off: its last patches reach beyond the image, so round up, -(-H // P).": image(
                "(h w) (C p q) -> C (h p) (w q)", h=h - 1, C=C, p=P
            )
            if h % 2 == 0
            else whole,
        },
        what="the image",
    )


def check_plain_guess(fn: Callable) -> None:
    """fn(image [C, H, W], hidden [H, W] bool) -> the image with hidden pixels at their band's visible mean."""
    draw = torch.Generator().manual_seed(5)
    image = torch.randn(3, 4, 6, generator=draw) + torch.tensor([0.0, 2, 5])[:, None, None]
    hidden = torch.rand(4, 6, generator=draw) < 0.5
    visible = torch.stack([band[~hidden].mean() for band in image])[:, None, None]
    zeroed = (image * ~hidden).mean((1, 2), keepdim=True)

    def filled(with_what):
        return torch.where(hidden, with_what, image)

    compare(
        attempt(fn, image, hidden),
        filled(visible),
        axes="C H W",
        slips={
            "The mean is over all pixels, hidden ones too. The guess may look at visible pixels only.": filled(
                image.mean((1, 2), keepdim=True)
            ),
            "This is the mean of the hidden pixels, which nobody could know.": filled(
                torch.stack([band[hidden].mean() for band in image])[:, None, None]
            ),
            "One mean serves all bands. Each band has a mean of its own.": filled(image[:, ~hidden].mean()),
            "This is the median of the visible pixels; their mean is wanted.": filled(
                torch.stack([band[~hidden].median() for band in image])[:, None, None]
            ),
            "Hidden pixels count as zeros in the mean: divide by the number of visible pixels.": filled(zeroed),
            "The visible pixels are replaced and the hidden ones kept: the other way round.": torch.where(
                hidden, image, visible
            ),
            "Every pixel is replaced: keep the visible ones as they are.": visible.expand_as(image),
        },
        what="the pixels",
    )
    right("The floor that every reconstruction has to beat.")


def check_patch_transform(fn: Callable) -> None:
    """fn(transform (a, b, c, d, e, f), patch) -> the transform of a grid with one cell a patch."""
    for P, given in (
        (8, (10.0, 0.5, 600_000.0, -0.25, -10.0, 5_400_000.0)),
        (6, (20.0, -1.5, 310_000.0, 0.75, -30.0, 4_100_000.0)),
    ):
        _check_transform(fn, P, *given)
    right("Same corner, cells P times as large: a map of patches lies where its image lies.")


def _check_transform(fn: Callable, P: int, *given: float) -> None:
    a, b, c, d, e, f = given
    found = attempt(fn, given, P)
    if isinstance(found, (Affine, tuple)) and tuple(found[6:]) == (0, 0, 1):
        found = found[:6]  # the last row of an Affine
    compare(
        found,
        torch.tensor((a * P, b * P, c, d * P, e * P, f), dtype=torch.float64),
        slips={
            "The corner is scaled too: c and f are metres on the ground, and the map begins where the image begins.": [
                v * P for v in given
            ],
            "Only a and e are scaled: b and d turn the grid, and are metres a cell as well.": (
                a * P,
                b,
                c,
                d,
                e * P,
                f,
            ),
            "The cells have become smaller: a patch is larger than a pixel, so multiply.": (
                a / P,
                b / P,
                c,
                d / P,
                e / P,
                f,
            ),  # fmt: skip
            "The corner has moved by half a patch: c and f belong to the upper left corner, not to the middle of a cell.": (
                a * P,
                b * P,
                c + (a + b) * P / 2,
                d * P,
                e * P,
                f + (d + e) * P / 2,
            ),  # fmt: skip
            "The corner has moved by half a pixel: c and f belong to the upper left corner, not to the middle of a pixel.": (
                a * P,
                b * P,
                c + (a + b) / 2,
                d * P,
                e * P,
                f + (d + e) / 2,
            ),  # fmt: skip
            "The corner has moved back by half a pixel: c and f belong to the upper left corner already.": (
                a * P,
                b * P,
                c - (a + b) / 2,
                d * P,
                e * P,
                f - (d + e) / 2,
            ),  # fmt: skip
            "The corner has moved from the middle of a pixel to that of a patch: c and f belong to the upper left corner, "
            "of the image and of the map.": (
                a * P,
                b * P,
                c + (a + b) * (P - 1) / 2,
                d * P,
                e * P,
                f + (d + e) * (P - 1) / 2,
            ),  # fmt: skip
            "The order is that of GDAL, (c, a, b, f, d, e); here it is (a, b, c, d, e, f).": (
                c,
                a * P,
                b * P,
                f,
                d * P,
                e * P,
            ),  # fmt: skip
            "This is the image's own transform: its cells are pixels, those of the map are patches.": given,
        },
        rtol=1e-9,
        what=f"the six numbers (patches of {P})",
    )
