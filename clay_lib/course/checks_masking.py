"""Checks of the exercises of 03: the length of a sequence, masks, and tokens put back in their places."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import repeat

from clay_lib.course.checking import as_tensor, attempt, compare, require, right, value


def check_sequence_length(fn: Callable) -> None:
    """fn(height, width, patch_size, mask_ratio) -> tokens in the encoder's transformer, with the class token."""
    asked = [(256, 256, 8, 0.75), (250, 130, 8, 0.6), (64, 100, 8, 0.95), (33, 33, 16, 0.0)]
    found = torch.tensor([value(attempt(fn, *one), int) for one in asked])

    def lengths(sides=math.ceil, hidden=int, class_token=1, keep=lambda L, n: L - n):
        grids = [(sides(H / P) * sides(W / P), ratio) for H, W, P, ratio in asked]
        return torch.tensor([class_token + keep(L, hidden(ratio * L)) for L, ratio in grids])

    compare(
        found,
        lengths(),
        slips={
            "The class token is missing: it is never hidden.": lengths(class_token=0),
            "These are the hidden patches. The encoder gets the others.": lengths(class_token=0, keep=lambda L, n: n),
            "These are the hidden patches and the class token. The encoder gets the others.": lengths(
                keep=lambda L, n: n
            ),
            "Patches at the edge are lost: images are filled up to whole patches, so round the sides up.": lengths(
                math.floor
            ),
            "Patches at the edge are lost, and the class token is missing.": lengths(math.floor, class_token=0),
            "The number of hidden patches is cut off, int(ratio * L), not rounded.": lengths(hidden=round),
            "The number of visible patches is cut off; that of the hidden ones should be, int(ratio * L), and the others are "
            "visible.": torch.tensor(
                [1 + int((1 - r) * (math.ceil(H / P) * math.ceil(W / P))) for H, W, P, r in asked]
            ),
            "The number of hidden patches is cut off, not rounded, and the class token is missing.": lengths(
                hidden=round, class_token=0
            ),
        },
        what="the lengths",
    )
    right("Sides rounded up to whole patches, the hidden ones taken off, the class token added.")


def check_mask(fn: Callable) -> None:
    """fn(draw [B, L], ratio) -> mask [B, L], 1 where hidden: the int(ratio L) patches of the smallest draws."""
    generator = torch.Generator().manual_seed(4)
    for B, L, ratio in ((3, 11, 0.6), (2, 13, 0.6), (4, 16, 0.75), (2, 9, 0.3)):
        draw = torch.rand(B, L, generator=generator) ** 2  # squared: more below the ratio
        hidden = int(ratio * L)
        order = draw.argsort(dim=1)

        def mask(numbers, like=draw):
            return torch.zeros_like(like).scatter(1, numbers, 1.0)

        wanted = mask(order[:, :hidden])
        compare(
            attempt(fn, draw, ratio),
            wanted,
            axes="B L",
            slips={
                "0 and 1 are swapped: 1 means hidden.": 1 - wanted,
                "You hide the patches with the largest draws; the smallest are hidden.": mask(order[:, L - hidden :]),
                f"One patch too many is hidden, {hidden + 1} of {L}: int(ratio * L) cuts off and gives {hidden}. (Rounding "
                "and quantiles may give one more.)": mask(order[:, : hidden + 1]),
                "You compare draws with the ratio, so each sample hides another number of patches: sort, and count.": (
                    draw < ratio
                ).float(),
                "argsort gives the numbers of the patches in order, not the rank of each: scatter ones to these numbers.": (
                    order < hidden
                ).float(),
                "All samples have the first one's mask: each has an order of its own.": wanted[:1].expand(B, -1),
            },
            what=f"the masks (L = {L}, ratio {ratio})",
        )
    none = as_tensor(attempt(fn, draw, 0.0))
    require(not none.any(), "With ratio 0 no patch is hidden: the mask is all zeros, and yours is not.")
    right("The same number hidden in every sample, at places of its own.")


def check_put_back(fn: Callable) -> None:
    """fn(tokens [B, V, D], visible [B, V], mask_token [D], patches: int) -> [B, L, D] in row order."""
    draw = torch.Generator().manual_seed(2)
    B, L, V, D = 2, 7, 3, 4
    visible = torch.rand(B, L, generator=draw).argsort(dim=1)[:, :V]
    tokens, mask_token = torch.randn(B, V, D, generator=draw), torch.randn(D, generator=draw)

    def put(tokens, visible, filler=mask_token):
        return repeat(filler, "D -> B L D", B=B, L=L).scatter(1, repeat(visible, "B V -> B V D", D=D), tokens)

    wanted = put(tokens, visible)
    compare(
        attempt(fn, tokens, visible, mask_token, L),
        wanted,
        axes="B L D",
        slips={
            "The mask tokens stand behind the visible ones: each token has to go to its own place, visible[b, i].": put(
                tokens, torch.arange(V).expand(B, V)
            ),
            "The hidden places hold zeros: they hold the mask token.": put(tokens, visible, torch.zeros(D)),
            "The tokens are at the right places but in row order. tokens[b, i] belongs to visible[b, i], and that list is "
            "not sorted.": put(tokens, visible.sort(dim=1).values),
            "Every sample uses the places of the first one: visible[b] belongs to sample b.": put(
                tokens, visible[:1].expand(B, V)
            ),
            "These are only the tokens of the visible places, in another order: the hidden places are missing.": tokens.gather(
                1, repeat(visible.argsort(dim=1), "B V -> B V D", D=D)
            ),
        },
        what="the tokens",
    )
    right("Visible tokens in their places, the mask token everywhere else.")
