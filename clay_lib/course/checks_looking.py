"""Checks of the exercises of 06: the mean of valid patches, the most alike chips, colours from embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from clay_lib.course.checking import Mistake, as_tensor, attempt, compare, expect_shape, require, right


def check_patch_mean(fn: Callable) -> None:
    """fn(tokens [B, 1 + L, D], class token first, valid [B, L] bool) -> mean of the valid patches' tokens [B, D]."""
    draw = torch.Generator().manual_seed(6)
    tokens = torch.randn(2, 7, 4, generator=draw)
    valid = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 1]]).bool()
    patches, weight = tokens[:, 1:], valid[..., None].float()
    right_one = (patches * weight).sum(1) / weight.sum(1)
    with_class = torch.cat([torch.ones(2, 1, 1), weight], dim=1)
    compare(
        attempt(fn, tokens, valid),
        right_one,
        axes="B D",
        slips={
            "The class token is among the patches: leave out tokens[:, 0].": (tokens * with_class).sum(1)
            / with_class.sum(1),
            "All patches count; those that are not valid have to be left out.": patches.mean(1),
            "All tokens count: leave out the class token, and the patches that are not valid.": tokens.mean(1),
            "The sum of the valid patches is divided by the number of all patches: divide by the number of valid ones.": (
                patches * weight
            ).mean(1),
            "This is the sum; the mean is wanted.": (patches * weight).sum(1),
            "The mask is used the other way round: True means valid.": (patches * (1 - weight)).sum(1)
            / (1 - weight).sum(1),
            "All chips together are divided by: each chip has its own number of valid patches.": (patches * weight).sum(
                1
            )
            / weight.sum(),
        },
        what="the means",
    )
    right("One vector a chip, and no patch in it that was not measured.")


def check_most_alike(fn: Callable) -> None:
    """fn(vectors [N, D], k) -> [N, k] indices of the k most alike others, by cosine, the most alike first."""
    draw = torch.Generator().manual_seed(7)
    vectors = torch.randn(9, 5, generator=draw) * torch.linspace(0.3, 4, 9)[:, None]
    k = 3

    def ranked(likeness, itself=False):
        likeness = likeness if itself else likeness.clone().fill_diagonal_(-torch.inf)
        return likeness.argsort(dim=1, descending=True)[:, :k]

    unit = F.normalize(vectors, dim=1)
    cosine, distance = unit @ unit.T, torch.cdist(vectors, vectors)
    compare(
        attempt(fn, vectors, k),
        ranked(cosine),
        axes="N k",
        slips={
            "Each chip is its own neighbour: take it out before ranking.": ranked(cosine, itself=True),
            "Ranked by the dot product, long vectors win: bring each to length one first.": ranked(vectors @ vectors.T),
            "Ranked by the dot product, and each chip may be its own neighbour.": ranked(
                vectors @ vectors.T, itself=True
            ),
            "Ranked by distance; by cosine only the direction counts: bring each vector to length one first.": ranked(
                -distance
            ),
            "These are the least alike: sort from the largest cosine down.": (-cosine).argsort(dim=1, descending=True)[
                :, :k
            ],
            "The right neighbours, but the least alike of them first.": ranked(cosine).flip(1),
            "The vectors are normalised along the wrong axis: each chip's vector, a row, gets length one.": ranked(
                F.normalize(vectors, dim=0) @ F.normalize(vectors, dim=0).T
            ),
        },
        what="the neighbours",
    )
    compare(attempt(fn, vectors, 2), ranked(cosine)[:, :2], axes="N k", what="the neighbours for k = 2")
    right("By direction alone, and nobody is a neighbour of itself.")


def check_three_colours(fn: Callable) -> None:
    """fn(patches [h, w, D]) -> [h, w, 3], the first three principal components; the sign of each is free."""
    rng = np.random.default_rng(8)
    patches = rng.normal(size=(5, 6, 7)) * np.array([5, 3, 2, 1, 0.5, 0.3, 0.1]) + np.array([0, 0, 9, 4, 0, 0, 0])
    flat = patches.reshape(30, 7)

    def parts(x, keep=slice(0, 3)):
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        return (x @ vt.T)[:, keep]

    found = as_tensor(attempt(fn, patches)).double()
    centred = flat - flat.mean(0)
    if found.shape == (30, 3):
        raise Mistake("The patches are still in one row: bring them back to [h, w, 3].")
    expect_shape(found, (5, 6, 3), "h w 3")
    found = found.reshape(30, 3).numpy()

    def same(wanted) -> bool:
        signs = np.where((found * wanted).sum(0) < 0, -1, 1)  # never 0, or zeros would do for an answer
        return bool(np.allclose(found, wanted * signs, rtol=1e-3, atol=1e-3))

    wanted = parts(centred)
    slips = {
        "The patches are not centred: without taking off their mean, the first direction is that mean.": parts(flat),
        "These are the last three directions, in which the patches differ least: take the largest.": parts(
            centred, slice(None, -4, -1)
        ),
        "The components come from the smallest to the largest: the first is the direction of most spread.": wanted[
            :, ::-1
        ],
        "Each component is brought to the same spread; here they keep their own.": wanted / wanted.std(0),
        "Each component is brought to the same spread (whitened); here they keep their own.": wanted
        / wanted.std(0, ddof=1),
        "Each component is brought to length one (they are what svd gives first); multiply by the singular values.": wanted
        / np.linalg.norm(wanted, axis=0),
        "The numbers of an embedding are brought to the same spread first: only their mean is taken off.": parts(
            centred / centred.std(0)
        ),
        "These are the first three numbers of each embedding, not directions of spread.": flat[:, :3],
        "The patches are not centred by feature but by patch: take off the mean patch, over all h and w.": parts(
            flat - flat.mean(1, keepdims=True)
        ),
    }
    for mistake, slipped in slips.items():
        require(same(wanted) or not same(slipped), mistake)
    require(same(wanted), "These are not the first three principal components of the patches, up to their signs.")
    right("Three directions of most spread: scaled to 0..1 they are red, green and blue.")
