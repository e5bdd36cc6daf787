"""Checks of notebooks 06, 08 and 12: similar chips, maps of embeddings, small embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import normalize, pad

from clay_lib.course.checks.engine import Check, as_tensor, attempt, normal, number

# ---- 06: chip vectors, similar chips, colors


def patch_mean(tokens, valid, *, cls=0.0, count=lambda weight: weight.sum(1)):
    """tokens [B, 1 + L, D], class token first, valid [B, L] bool -> mean of the valid patches [B, D]."""
    weight = pad(valid.float(), (1, 0), value=cls)[..., None]  # [B, 1 + L, 1]
    return (tokens * weight).sum(1) / count(weight)


check_patch_mean = Check(
    reference=patch_mean,
    cases=[(normal(6, 2, 7, 4), torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 1]]).bool())],
    axes="B D",
    mistakes={
        "The class token is among the patches: leave out tokens[:, 0].": dict(cls=1.0),
        "All patches count: those that are not valid have to be left out.": lambda tokens, valid: tokens[:, 1:].mean(1),
        "Divide by the number of valid patches.": [dict(count=lambda weight: 6), dict(count=lambda weight: 1)],
        "The mask is used the other way round: True means valid.": lambda tokens, valid: patch_mean(tokens, ~valid),
    },
    praise="One vector a chip, and no patch in it that was not measured.",
)


def cosines(vectors):
    return normalize(vectors, dim=1) @ normalize(vectors, dim=1).T


def most_similar(vectors, k, *, similarity=cosines, itself=False):
    """vectors [N, D] -> indices [N, k] of the most similar others by cosine, the most similar first."""
    scores = similarity(vectors)
    return (scores if itself else scores.fill_diagonal_(-torch.inf)).argsort(dim=1, descending=True)[:, :k]


OF_MANY_LENGTHS = normal(7, 9, 5) * torch.linspace(0.3, 4, 9)[:, None]

check_most_similar = Check(
    reference=most_similar,
    cases=[(OF_MANY_LENGTHS, 3)],
    axes="N k",
    mistakes={
        "Each chip is its own neighbor: take it out before ranking.": dict(itself=True),
        "Long vectors win by the dot product: normalize each to length one.": dict(similarity=lambda v: v @ v.T),
        "By cosine only the direction counts, not the distance.": dict(similarity=lambda v: -torch.cdist(v, v)),
        "Sort from the largest cosine down.": lambda vectors, k: most_similar(vectors, k).flip(1),
    },
    edge_cases={"Another k": (OF_MANY_LENGTHS, 2)},
    praise="By direction alone, and no chip is a neighbor of itself.",
)


def _unsigned(answer) -> torch.Tensor:
    """Components [..., 3], whose signs are free, each with the sign that makes its largest value positive."""
    components = torch.atleast_2d(as_tensor(answer).double())
    columns = components.reshape(-1, components.shape[-1])
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    return components * torch.where(largest < 0, -1.0, 1.0)


def three_colors(patches, *, center=lambda rows: rows.mean(0), keep=slice(0, 3), spread=lambda components: 1):
    """patches [h, w, D] -> their first three principal components [h, w, 3]."""
    rows = patches.reshape(-1, patches.shape[-1])
    rows = rows - center(rows)
    components = (rows @ np.linalg.svd(rows, full_matrices=False)[2].T)[:, keep]
    return (components / spread(components)).reshape(*patches.shape[:2], 3)


check_three_colors = Check(
    reference=three_colors,
    cases=[(normal(8, 5, 6, 7).numpy() * [5, 3, 2, 1, 0.5, 0.3, 0.1] + [0, 0, 9, 4, 0, 0, 0],)],
    read=_unsigned,
    axes="h w 3",
    quantity="the first three principal components",
    rtol=1e-3,
    atol=1e-3,
    mistakes={
        "The patches are not centered: subtract their mean first.": dict(center=lambda rows: 0),
        "These are the last three directions, in which the patches differ least.": dict(keep=slice(None, -4, -1)),
        "Components keep their own spread: do not scale them.": dict(spread=lambda components: components.std(0)),
        "The patches are still in one row: reshape to [h, w, 3].": lambda patches: three_colors(patches).reshape(-1, 3),
    },
    praise="Three directions of most spread: scaled to 0..1 they are red, green and blue.",
)

# ---- 08: maps of embeddings


def tile_of(x, y, gsd, size, anchor, *, cut=np.floor, side=lambda gsd, size: gsd * size):
    """x, y [N] in meters -> column and row [N, 2] of each point's tile, counted from the anchor."""
    return cut((np.stack([x, y], axis=1) - anchor) / side(gsd, size))


POINTS = np.array([612_345.0, 645, -1_234, -20, 630]), np.array([47.0, -5_200_300, -8, 2_600, 630])

check_tile_of = Check(
    reference=tile_of,
    cases=[(*POINTS, 10.0, 64, (15.0, -25.0))],
    axes="N column|row",
    rtol=0,
    mistakes={
        "int() and astype(int) cut towards zero: np.floor goes down.": dict(cut=np.trunc),
        "The anchor is left out: tiles begin at the anchor, not at 0.": lambda *case: tile_of(*case[:4], (0, 0)),
        "A tile is `size` pixels of `gsd` meters each.": [dict(side=lambda g, n: n), dict(side=lambda g, n: g)],
        "Rows come first; the column, from x, is expected first.": lambda *case: tile_of(*case)[:, ::-1],
        "You count from the points, so a place has another number for every area: count from the anchor.": (
            lambda x, y, gsd, size, anchor: tile_of(x, y, gsd, size, (x.min(), y.min()))
        ),
    },
    praise="The same tile for the same place, whatever area is requested.",
)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def search(vectors, liked, disliked, k, *, unit=unit, share=0.5, mean=np.mean, exclude=True):
    """vectors [N, D], examples, counterexamples -> [k] rows by cosine with mean(liked) - mean(disliked) / 2."""
    rows = unit(vectors)
    scores = rows @ (mean(rows[liked], axis=0) - share * mean(rows[disliked], axis=0))
    if exclude:
        scores[[*liked, *disliked]] = -np.inf
    return np.argsort(-scores, kind="stable")[:k]


def _archive() -> np.ndarray:
    rng = np.random.default_rng(218)
    return (rng.normal(size=(16, 5)) + [2.0, 0.5, 0, 0, 0]) * np.exp(rng.normal(size=(16, 1)))


check_search = Check(
    reference=search,
    cases=[(_archive(), np.array([11, 2, 7]), np.array([5, 14]), 4)],
    axes="k",
    mistakes={
        "The examples are among the hits: take them out, right and wrong ones.": dict(exclude=False),
        "Subtract half of the wrong examples' mean, not all or nothing of it.": [dict(share=0), dict(share=1)],
        "The examples are added up: take the mean of the right and of the wrong ones.": dict(mean=np.sum),
        "Long vectors win: normalize every vector to length one first.": dict(unit=np.array),
        "The mean of all vectors is subtracted; leave it.": dict(unit=lambda v: unit(v - v.mean(0))),
    },
    praise="Each example, for or against, moves the query a little.",
)


def tent(n, first=0.5):
    """Distances [n] of the middles of cells from the nearer end."""
    return np.minimum(np.arange(n), np.arange(n)[::-1]) + first


def blend(tiles, corners, shape, *, ramp=tent, join=np.outer, known=np.isfinite, count=np.isfinite):
    """tiles [T, h, w], corners [T, 2] row and column, shape (H, W) -> [H, W], weighted means; NaN has no weight."""
    h, w = tiles.shape[1:]
    weight, total, weights = join(ramp(h), ramp(w)), np.zeros(shape), np.zeros(shape)
    for tile, (row, column) in zip(tiles, corners, strict=True):
        window = np.s_[row : row + h, column : column + w]
        total[window] += np.where(known(tile), weight * tile, 0)
        weights[window] += weight * count(tile)
    with np.errstate(invalid="ignore"):
        return total / weights


def last_on_top(tiles, corners, shape):
    image = np.full(shape, np.nan)
    for tile, (row, column) in zip(tiles, corners, strict=True):
        image[row : row + tile.shape[0], column : column + tile.shape[1]] = tile
    return image


def _tiles() -> np.ndarray:
    tiles = normal(6, 5, 4, 6).numpy() + 3 * np.arange(1, 6)[:, None, None]
    tiles[1, 2, 1], tiles[3, 1, 4], tiles[2, 3, 3:5] = np.nan, np.nan, np.nan  # the second is in no other tile
    return tiles


check_blend = Check(
    reference=blend,
    cases=[(_tiles(), np.array([[0, 0], [0, 4], [2, 1], [3, 4], [4, 3]]), (8, 10))],
    axes="H W",
    mistakes={
        "All tiles count equally: weight cells by their distances from the edges.": dict(ramp=np.ones),
        "The last tile lies over the others: take their weighted mean.": last_on_top,
        "A corner is row, then column; here the two are swapped.": lambda t, c, shape: blend(t, c[:, ::-1], shape),
        "A cell that is NaN in one tile becomes NaN, though another tile has it.": dict(known=np.ones_like),
        "Where a tile is NaN it counts as 0: leave out its weight too.": dict(count=np.ones_like),
        "A cell's middle is half a cell from its edge: the border is lost.": dict(ramp=lambda n: tent(n, 0)),
        "Multiply the weights along rows and columns, no nearest of four edges.": dict(join=np.minimum.outer),
    },
    praise="Each tile fades out before it ends, so no edge of a tile shows.",
)

# ---- 12: small embeddings


def rounded(vectors, bits, *, largest=lambda bits: 2 ** (bits - 1) - 1, size=np.abs, axis=1, cut=np.rint):
    """vectors [N, D] -> as read back from whole numbers of `bits` bits and one scale a vector."""
    scale = size(vectors).max(axis, keepdims=True) / largest(bits)
    scale = np.where(scale == 0, 1, scale)
    return cut(vectors / scale) * scale


LONG_AND_SHORT = (normal(1, 4, 7).numpy() - [[0], [0.5], [0], [0]]) * [[1], [20], [0], [3]]

check_rounded = Check(
    reference=rounded,
    cases=[(LONG_AND_SHORT, 4), (LONG_AND_SHORT, 8)],
    axes="N D",
    mistakes={
        "One scale a vector: take the largest number along axis 1.": [dict(axis=None), dict(axis=0)],
        "Numbers are cut off or rounded down: np.rint takes the nearest.": [dict(cut=np.trunc), dict(cut=np.floor)],
        "A vector's largest number may be negative: use np.abs.": dict(size=np.array),
        "Half of the whole numbers are negative, and one is 0: the largest is 2 ** (bits - 1) - 1.": [
            dict(largest=lambda bits: 2**bits - 1),
            dict(largest=lambda bits: 2 ** (bits - 1)),
        ],
        "The largest whole number is always 127, that of 8 bits: make it of `bits`.": dict(largest=lambda bits: 127),
    },
    hints={"A vector of zeros has the scale 0: put 1 there before dividing.": lambda answer, _: answer.isnan().any()},
    praise="Nothing is off by more than half a scale, and every bit less doubles the scale.",
)


def variance_kept(train, test, k, *, fit=None, center=lambda train, test: train.mean(0), columns=False):
    """train [N, D], test [M, D] -> share of test's squares about train's mean on train's first k principal axes."""
    fit = train if fit is None else fit(train, test)
    axes = np.linalg.svd(fit - fit.mean(0))[2]
    centered = test - center(train, test)
    along = centered @ (axes.T if columns else axes)[:k].T
    return (along**2).sum() / (centered**2).sum()


def _two_areas() -> tuple[np.ndarray, np.ndarray]:
    mix = normal(2, 6, 6).numpy() * [3, 2, 1.5, 1, 0.6, 0.4]
    train = normal(3, 30, 6).numpy() @ mix.T + 2
    return train, normal(4, 11, 6).numpy() @ (mix + 0.6 * normal(5, 6, 6).numpy()).T + 2 + normal(9, 6).numpy()


check_variance_kept = Check(
    reference=variance_kept,
    cases=[(*_two_areas(), k) for k in (1, 2, 4)],
    read=number,
    quantity="the share",
    mistakes={
        "This is the share of train: measure on test.": lambda train, _, k: variance_kept(train, train, k),
        "The components are fitted on test: fit on train.": lambda _, test, k: variance_kept(test, test, k),
        "Subtract the mean of train from test too.": [
            dict(center=lambda _, test: test.mean(0)),
            dict(center=lambda *_: 0),
        ],
        "The columns of svd's third result are taken: its rows are the axes.": dict(columns=True),
        "This is the share that is lost: give the share that is kept.": lambda *case: 1 - variance_kept(*case),
    },
    praise="Measured on vectors that the components have not seen, as every vector added to the archive will be.",
)


def to_bits(vectors, mean, *, axis=1):
    """vectors [N, D], mean [D] -> uint8 [N, ceil(D / 8)], one bit a number: 1 above the mean."""
    return np.packbits(vectors > mean, axis=axis)


def _one_byte(fn: Callable) -> Iterator[tuple[bool, str]]:
    size = as_tensor(attempt(fn, *check_bits.cases[0])).element_size()
    yield size == 1, f"The bytes are right, but each is kept in {size}: they should be uint8."


check_bits = Check(
    reference=to_bits,
    cases=[(normal(3, 5, 19).numpy() + np.float32(0.3), normal(4, 19).numpy())],
    axes="N bytes",
    mistakes={
        "Every number takes a byte: np.packbits puts eight into one.": lambda vectors, mean: vectors > mean,
        "np.packbits needs axis=1, to go along each vector.": [dict(axis=None), dict(axis=0)],
        "A bit is 1 where the number is above `mean`, not above 0.": lambda vectors, mean: to_bits(vectors, 0),
        "The bits are the wrong way round: 1 above the mean, 0 below.": lambda vectors, mean: to_bits(-vectors, -mean),
    },
    rules=_one_byte,
    praise="19 numbers in 3 bytes; as float32 they take 76.",
)


def differing(a, b, *, differ=np.not_equal):
    """a uint8 [N, K], b uint8 [M, K] -> [N, M], the number of bits in which each of a differs from each of b."""
    return differ(np.unpackbits(a, axis=1)[:, None], np.unpackbits(b, axis=1)).sum(2)


BYTES = np.random.default_rng(4).integers(0, 256, (9, 3), dtype=np.uint8)

check_differing = Check(
    reference=differing,
    cases=[(BYTES[:5], BYTES[[3, 5, 6, 7]])],
    axes="N M",
    mistakes={
        "These are the bits that agree: count those that differ.": dict(differ=np.equal),
        "Bytes that differ are counted: count their bits.": lambda a, b: (a[:, None] != b).sum(2),
        "The bytes of a ^ b are added up as numbers: count the bits in them.": lambda a, b: (a[:, None] ^ b).sum(2),
        "Bits that are 1 in both (&) are counted: count those that differ (^).": dict(differ=np.logical_and),
        "Bits are subtracted as uint8, where 0 - 1 is 255: compare them, with ^ or !=.": dict(differ=np.subtract),
    },
    praise="A search by these reads one bit where it read thirty-two.",
)
