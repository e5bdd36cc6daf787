"""Checks of notebooks 06, 08 and 12: similar chips, maps of embeddings, small embeddings."""

import numpy as np
import torch
from torch.nn.functional import normalize

from clay_lib.course.checks.engine import as_tensor, check, normal, number, require

# ---- 06: chip vectors, similar chips, colors


@check(
    cases=[(normal(6, 2, 7, 4), torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 1]]).bool())],
    mistakes={
        "The class token is among the patches: leave out tokens[:, 0].": ("tokens[:, 1:]", "tokens[:, :-1]"),
        "You average all patches: leave out those that are not valid.": ("return", "return patches.mean(1)  #"),
        "Divide by the number of valid patches.": [("/ weight.sum(1)", "/ 6"), ("/ weight.sum(1)", "")],
        "The mask is used the other way round: True means valid.": ("valid[", "~valid["),
    },
    praise="One vector for each chip, from measured patches alone.",
)
def check_patch_mean(tokens, valid):
    """tokens [B, 1 + L, D], class token first, valid [B, L] bool -> mean of the valid patches [B, D]."""
    patches, weight = tokens[:, 1:], valid[..., None]
    return (patches * weight).sum(1) / weight.sum(1)


OF_MANY_LENGTHS = normal(7, 9, 5) * torch.linspace(0.3, 4, 9)[:, None]


@check(
    cases=[(OF_MANY_LENGTHS, 3)],
    mistakes={
        "Each chip is its own neighbor: take it out before ranking.": (".fill_diagonal_(-torch.inf)", ""),
        "Long vectors win by the dot product: normalize each to length one.": ("normalize(vectors, dim=1)", "vectors"),
        "By cosine only the direction counts, not the distance.": ("unit @ unit.T", "-torch.cdist(vectors, vectors)"),
        "Sort from the largest cosine down.": ("[:, :k]", "[:, :k].flip(1)"),
    },
    edge_cases={"Another k": (OF_MANY_LENGTHS, 2)},
    praise="By direction alone, and no chip is a neighbor of itself.",
)
def check_most_similar(vectors, k):
    """vectors [N, D] -> indices [N, k] of the most similar others by cosine, the most similar first."""
    unit = normalize(vectors, dim=1)
    scores = (unit @ unit.T).fill_diagonal_(-torch.inf)  # no chip is a neighbor of itself
    return scores.argsort(dim=1, descending=True)[:, :k]


def _unsigned(answer) -> torch.Tensor:
    """Components [..., 3], whose signs are free, each with the sign that makes its largest value positive."""
    components = torch.atleast_2d(as_tensor(answer).double())
    columns = components.reshape(-1, components.shape[-1])
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    return components * torch.where(largest < 0, -1.0, 1.0)


@check(
    cases=[(normal(8, 5, 6, 7).numpy() * [5, 3, 2, 1, 0.5, 0.3, 0.1] + [0, 0, 9, 4, 0, 0, 0],)],
    read=_unsigned,
    rtol=1e-3,
    atol=1e-3,
    mistakes={
        "The patches are not centered: subtract their mean first.": (" - rows.mean(0)", ""),
        "These are the last three directions, in which the patches differ least.": ("axes[:3]", "axes[:-4:-1]"),
        "Components keep their own spread: do not scale them.": ("rows @ axes[:3].T", "np.linalg.svd(rows)[0][:, :3]"),
        "The patches are still in one row: reshape to [h, w, 3].": (".reshape(*patches.shape[:2], 3)", ""),
    },
    praise="Three directions of most spread: scaled to 0..1 they are red, green and blue.",
)
def check_three_colors(patches):
    """patches [h, w, D] -> their first three principal components [h, w, 3]."""
    rows = patches.reshape(-1, patches.shape[-1])
    rows = rows - rows.mean(0)
    axes = np.linalg.svd(rows, full_matrices=False)[2]
    return (rows @ axes[:3].T).reshape(*patches.shape[:2], 3)


# ---- 08: maps of embeddings

POINTS = np.array([612_345.0, 645, -1_234, -20, 630]), np.array([47.0, -5_200_300, -8, 2_600, 630])


@check(
    cases=[(*POINTS, 10.0, 64, (15.0, -25.0))],
    rtol=0,
    mistakes={
        "int() and astype(int) round toward zero: np.floor rounds down.": ("np.floor", "np.trunc"),
        "The anchor is left out: tiles begin at the anchor, not at 0.": (" - anchor", ""),
        "A tile is `size` pixels of `gsd` meters each.": [("gsd * size", "size"), ("gsd * size", "gsd")],
        "You put the row first: the column, from x, comes first.": ("[x, y]", "[y, x]"),
    },
    praise="The same tile for the same place, whatever area is requested.",
)
def check_tile_of(x, y, gsd, size, anchor):
    """x, y [N] in meters -> column and row [N, 2] of each point's tile, counted from the anchor."""
    return np.floor((np.stack([x, y], axis=1) - anchor) / (gsd * size))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


ARCHIVE = (normal(1, 16, 5).numpy() + [2.0, 0.5, 0, 0, 0]) * normal(2, 16, 1).exp().numpy()


@check(
    cases=[(ARCHIVE, np.array([11, 2, 7]), np.array([5, 14]), 4)],
    mistakes={
        "The examples are among the hits: take them out, right and wrong ones.": ("*liked, *disliked", ""),
        "Subtract half of the wrong examples' mean, not all or none of it.": [("0.5", "0"), ("0.5", "1")],
        "You add up the examples: take the mean of the right and of the wrong ones.": (".mean(0)", ".sum(0)"),
        "Long vectors win: normalize every vector to length one first.": ("unit(vectors)", "vectors"),
    },
    praise="Each example, for or against, moves the query a little.",
)
def check_search(vectors, liked, disliked, k):
    """vectors [N, D], examples, counterexamples -> [k] rows by cosine with mean(liked) - mean(disliked) / 2."""
    rows = unit(vectors)
    scores = rows @ (rows[liked].mean(0) - 0.5 * rows[disliked].mean(0))
    scores[[*liked, *disliked]] = -np.inf
    return np.argsort(-scores, kind="stable")[:k]


def tent(n):
    """Distances [n] of the middles of cells from the nearer end."""
    return np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5


TILES = normal(6, 5, 4, 6).numpy() + 3 * np.arange(1, 6)[:, None, None]
TILES[1, 2, 1], TILES[3, 1, 4], TILES[2, 3, 3:5] = np.nan, np.nan, np.nan  # the second is in no other tile


@check(
    cases=[(TILES, np.array([[0, 0], [0, 4], [2, 1], [3, 4], [4, 3]]), (8, 10))],
    mistakes={
        "You weight all cells equally: weight by distance.": ("tent(h), tent(w)", "np.ones(h), np.ones(w)"),
        "A corner is row, then column; here the two are swapped.": ("(row, column)", "(column, row)"),
        "NaN in one tile makes the cell NaN: leave it out.": ("np.where(known, weight * tile, 0)", "weight * tile"),
        "Where a tile is NaN it counts as 0: leave out its weight too.": ("weight * known", "weight"),
    },
    praise="Each tile fades out before it ends, so no edge of a tile shows.",
)
def check_blend(tiles, corners, shape):
    """tiles [T, h, w], corners [T, 2] row and column, shape (H, W) -> [H, W], weighted means; NaN has no weight."""
    h, w = tiles.shape[1:]
    weight, total, weights = np.outer(tent(h), tent(w)), np.zeros(shape), np.zeros(shape)
    for tile, (row, column) in zip(tiles, corners, strict=True):
        window, known = np.s_[row : row + h, column : column + w], np.isfinite(tile)
        total[window] += np.where(known, weight * tile, 0)
        weights[window] += weight * known
    with np.errstate(invalid="ignore"):
        return total / weights


# ---- 12: small embeddings

LONG_AND_SHORT = (normal(1, 4, 7).numpy() - [[0], [0.5], [0], [0]]) * [[1], [20], [0], [3]]


@check(
    cases=[(LONG_AND_SHORT, 4), (LONG_AND_SHORT, 8)],
    mistakes={
        "One scale a vector: take the largest number along axis 1.": [("axis=1", "axis=None"), ("axis=1", "axis=0")],
        "A vector's largest number may be negative: use np.abs.": ("np.abs(vectors)", "vectors"),
        "A vector of zeros has the scale 0: put 1 there before dividing.": ("scale == 0] = 1", "scale == 0] = np.nan"),
        "Half of the numbers are negative: the largest is 2 ** (bits - 1) - 1.": ("(bits - 1) - 1)", "bits - 1)"),
    },
    praise="Nothing is off by more than half a scale, and every bit less doubles the scale.",
)
def check_rounded(vectors, bits):
    """vectors [N, D] -> as read back from whole numbers of `bits` bits and one scale a vector."""
    scale = np.abs(vectors).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1
    return np.rint(vectors / scale) * scale


MIX = normal(2, 6, 6).numpy() * [3, 2, 1.5, 1, 0.6, 0.4]
TRAIN = normal(3, 30, 6).numpy() @ MIX.T + 2
TEST = normal(4, 11, 6).numpy() @ (MIX + 0.6 * normal(5, 6, 6).numpy()).T + 2 + normal(9, 6).numpy()  # another area


@check(
    cases=[(TRAIN, TEST, k) for k in (1, 2, 4)],
    read=number,
    mistakes={
        "This is the share of train: measure on test.": ("along =", "test = train; along ="),
        "The components are fitted on test: fit on train.": ("mean =", "train = test; mean ="),
        "Subtract the mean of train from test too.": [("test - mean", "test - test.mean(0)"), ("test - mean", "test")],
        "You take columns of svd's third result: the axes are its rows.": ("[2][:k]", "[2].T[:k]"),
    },
    praise="Measured on vectors that the components have not seen, as every vector added to the archive will be.",
)
def check_variance_kept(train, test, k):
    """train [N, D], test [M, D] -> share of test's squares about train's mean on train's first k principal axes."""
    mean = train.mean(0)
    axes = np.linalg.svd(train - mean)[2][:k]
    along = (test - mean) @ axes.T
    return (along**2).sum() / ((test - mean) ** 2).sum()


def _bytes(answer) -> torch.Tensor:
    packed = as_tensor(answer)
    require(packed.element_size() == 1, f"Each number takes {packed.element_size()} bytes: the bytes should be uint8.")
    return packed


@check(
    cases=[(normal(3, 5, 19).numpy() + np.float32(0.3), normal(4, 19).numpy())],
    read=_bytes,
    mistakes={
        "Every number takes a byte: np.packbits puts eight into one.": lambda vectors, mean: vectors > mean,
        "np.packbits needs axis=1, to go along each vector.": [(", axis=1", ""), ("axis=1", "axis=0")],
        "A bit is 1 where the number is above `mean`, not above 0.": ("> mean", "> 0"),
        "The bits are the wrong way round: 1 above the mean, 0 below.": ("vectors > mean", "vectors < mean"),
    },
    praise="19 numbers in 3 bytes; as float32 they take 76.",
)
def check_bits(vectors, mean):
    """vectors [N, D], mean [D] -> uint8 [N, ceil(D / 8)], one bit a number: 1 above the mean."""
    return np.packbits(vectors > mean, axis=1)


BYTES = np.random.default_rng(4).integers(0, 256, (9, 3), dtype=np.uint8)


@check(
    cases=[(BYTES[:5], BYTES[[3, 5, 6, 7]])],
    mistakes={
        "These are the bits that agree: count those that differ.": ("!=", "=="),
        "You count bytes that differ: count their bits.": lambda a, b: (a[:, None] != b).sum(2),
        "The bytes of a ^ b are added up as numbers: count the bits in them.": lambda a, b: (a[:, None] ^ b).sum(2),
        "You subtract bits as uint8, where 0 - 1 is 255: compare them, with ^ or !=.": ("!=", "-"),
    },
    praise="A search with these reads one bit instead of thirty-two.",
)
def check_differing(a, b):
    """a uint8 [N, K], b uint8 [M, K] -> [N, M], the number of bits in which each of a differs from each of b."""
    differ = np.unpackbits(a, axis=1)[:, None] != np.unpackbits(b, axis=1)  # [N, M, 8 K]
    return differ.sum(2)
