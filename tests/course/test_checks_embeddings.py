"""Checks of notebooks 06, 08 and 12 name the mistake of wrong answers, and accept right ones written in other ways."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F

from clay_lib.course.checks import (
    Mistake,
    check_bits,
    check_blend,
    check_differing,
    check_most_alike,
    check_patch_mean,
    check_rounded,
    check_search,
    check_three_colours,
    check_tile_of,
    check_variance_kept,
)


def mean_with_class(tokens, valid):
    total = tokens[:, 0] + (tokens[:, 1:] * valid[..., None]).sum(1)
    return total / (1 + valid.sum(1, keepdim=True))


def ranked(similarity, k=None):
    return lambda v, count: similarity(v).argsort(dim=1, descending=True)[:, : k or count]


def cosines(v, itself=-torch.inf):
    scores = F.normalize(v, dim=1) @ F.normalize(v, dim=1).T
    return scores if itself is None else scores.fill_diagonal_(itself)


def components(patches, center=True, keep=slice(0, 3)):
    flat = patches.reshape(-1, patches.shape[-1])
    flat = flat - flat.mean(0) if center else flat
    return (flat @ np.linalg.svd(flat, full_matrices=False)[2][keep].T).reshape(*patches.shape[:2], 3)


WRONG_06 = {
    "class token too": (check_patch_mean, mean_with_class, "The class token is among the patches"),
    "all patches": (check_patch_mean, lambda t, v: t[:, 1:].mean(1), "not valid have to be left out"),
    "divided by all": (check_patch_mean, lambda t, v: (t[:, 1:] * v[..., None]).mean(1), "number of valid patches"),
    "itself": (check_most_alike, ranked(lambda v: cosines(v, itself=None)), "its own neighbor: take it out"),
    "dot product": (check_most_alike, ranked(lambda v: (v @ v.T).fill_diagonal_(-torch.inf)), "Long vectors"),
    "distance": (
        check_most_alike,
        ranked(lambda v: (-torch.cdist(v, v)).fill_diagonal_(-torch.inf)),
        "only the direction counts",
    ),
    "always three": (check_most_alike, ranked(cosines, 3), "k is 3 instead of 2"),
    "not centered": (check_three_colours, lambda p: components(p, center=False), "not centered"),
    "the last ones": (check_three_colours, lambda p: components(p, keep=slice(None, -4, -1)), "differ least"),
    "zeros": (check_three_colours, lambda p: np.zeros((*p.shape[:2], 3)), "first three principal components differ"),
    "flat": (check_three_colours, lambda p: components(p).reshape(-1, 3), r"to \[h, w, 3\]"),
}


def tile(cut=np.floor, side=lambda gsd, size: gsd * size, corner=lambda x, anchor: anchor):
    def fn(x, y, gsd, size, anchor):
        pairs = zip((x, y), anchor, strict=True)
        return np.stack([cut((v - corner(v, a)) / side(gsd, size)) for v, a in pairs], axis=1)

    return fn


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def hits(query, *, length_one=unit, exclude=True):
    def fn(vectors, right, wrong, k):
        rows = length_one(vectors)
        scores = rows @ query(rows, right, wrong)
        if exclude:
            scores[[*right, *wrong]] = -np.inf
        return np.argsort(-scores)[:k]

    return fn


def less(rows, right, wrong, share=0.5, mean=np.mean):
    return mean(rows[right], 0) - share * mean(rows[wrong], 0)


def tent(n, first=0.5):
    return np.minimum(np.arange(n), np.arange(n)[::-1]) + first


def blend(ramp=tent, join=np.outer, poison=False, zero=False):
    def fn(tiles, corners, shape):
        _, h, w = tiles.shape
        weight, total, weights = join(ramp(h), ramp(w)), np.zeros(shape), np.zeros(shape)
        for t, (row, column) in zip(tiles, corners, strict=True):
            window = np.s_[row : row + h, column : column + w]
            total[window] += t * weight if poison else np.nan_to_num(t * weight)
            weights[window] += weight * (1 if zero or poison else np.isfinite(t))
        return total / np.where(weights > 0, weights, np.nan)

    return fn


def painted_over(tiles, corners, shape):
    image = np.full(shape, np.nan)
    for t, (row, column) in zip(tiles, corners, strict=True):
        image[row : row + t.shape[0], column : column + t.shape[1]] = t
    return image


WRONG_08 = {
    "towards zero": (check_tile_of, tile(np.trunc), "cut towards zero"),
    "without the anchor": (check_tile_of, tile(corner=lambda v, a: 0), "The anchor is left out"),
    "from the points": (check_tile_of, tile(corner=lambda v, a: v.min()), "another number for every area"),
    "meters": (check_tile_of, tile(side=lambda gsd, size: size), "`size` pixels of `gsd` meters"),
    "examples among hits": (check_search, hits(less, exclude=False), "examples are among the hits"),
    "all of the wrong": (check_search, hits(lambda *a: less(*a, share=1)), "half of the wrong"),
    "long vectors": (check_search, hits(less, length_one=np.array), "Long vectors win"),
    "sums": (check_search, hits(lambda *a: less(*a, mean=np.sum)), "The examples are added up"),
    "centered": (check_search, hits(less, length_one=lambda v: unit(v - v.mean(0))), "of all vectors is subtracted"),
    "no weights": (check_blend, blend(np.ones), "All tiles count equally"),
    "painted over": (check_blend, painted_over, "The last tile lies over"),
    "NaN spreads": (check_blend, blend(poison=True), "though another tile has it"),
    "NaN is zero": (check_blend, blend(zero=True), "it counts as 0"),
    "column first": (check_blend, lambda t, c, s: blend()(t, c[:, ::-1], s), "here the two are swapped"),
    "no border": (check_blend, blend(lambda n: tent(n, 0)), "loses its border"),
    "the nearest edge": (check_blend, blend(join=np.minimum.outer), "nearest of four edges"),
}


def rounded(most=lambda bits: 2 ** (bits - 1) - 1, top=lambda x: np.abs(x).max(1, keepdims=True), cut=np.rint):
    def fn(vectors, bits):
        scale = top(vectors) / most(bits)
        scale = np.where(scale == 0, 1, scale)
        return cut(vectors / scale) * scale

    return fn


def zero_divided(vectors, bits):
    scale = np.abs(vectors).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    with np.errstate(invalid="ignore"):
        return np.rint(vectors / scale) * scale


def kept(fit=lambda train, test: train, center=lambda train, test: train.mean(0), of=lambda train, test: test):
    def fn(train, test, k):
        return along(of(train, test) - center(train, test), PCA(k).fit(fit(train, test)).components_)

    return fn


def along(centered, axes):
    return ((centered @ axes.T) ** 2).sum() / (centered**2).sum()


def pairs(count):
    return lambda a, b: count(np.unpackbits(a[:, None], axis=2), np.unpackbits(b[None], axis=2)).sum(2)


TEST_MEAN = dict(center=lambda train, test: test.mean(0))
WRONG_12 = {
    "one scale": (check_rounded, rounded(top=lambda x: np.abs(x).max()), "one scale for all vectors"),
    "a scale a number": (check_rounded, rounded(top=lambda x: np.abs(x).max(0)), "one a number"),
    "signed": (check_rounded, rounded(top=lambda x: x.max(1, keepdims=True)), "may be negative"),
    "cut off": (check_rounded, rounded(cut=np.trunc), "np.rint takes the nearest"),
    "all for positives": (check_rounded, rounded(most=lambda b: 2**b - 1), "numbers are negative"),
    "one too many": (check_rounded, rounded(most=lambda b: 2 ** (b - 1)), "and one is 0"),
    "always int8": (check_rounded, rounded(most=lambda b: 127), "always 127"),
    "division by zero": (check_rounded, zero_divided, "vector of zeros has the scale 0"),
    "of the training": (check_variance_kept, kept(of=lambda train, test: train), "measure on test"),
    "fitted on test": (check_variance_kept, kept(fit=lambda train, test: test, **TEST_MEAN), "fitted on test"),
    "own mean": (check_variance_kept, kept(**TEST_MEAN), "not test's own"),
    "zero mean": (check_variance_kept, kept(center=lambda train, test: 0), "not nothing"),
    "columns": (
        check_variance_kept,
        lambda a, b, k: along(b - a.mean(0), np.linalg.svd(a - a.mean(0))[2].T[:k]),
        "its rows are the axes",
    ),
    "what is lost": (check_variance_kept, lambda *a: 1 - kept()(*a), "share that is lost"),
    "not packed": (check_bits, lambda x, m: (x > m).astype(np.uint8), "eight of them into one byte"),
    "one row": (check_bits, lambda x, m: np.packbits(x > m), "needs axis=1"),
    "sign": (check_bits, lambda x, m: np.packbits(x > 0, axis=1), "above `mean`"),
    "wide bytes": (check_bits, lambda x, m: np.packbits(x > m, axis=1).astype(int), "should be uint8"),
    "bits that agree": (check_differing, pairs(np.equal), "the bits that agree"),
    "bytes": (check_differing, lambda a, b: (a[:, None] != b).sum(2), "Bytes that differ"),
    "both": (check_differing, pairs(np.logical_and), "1 in both"),
    "below zero": (check_differing, pairs(np.subtract), "0 - 1 is 255"),
    "bytes added up": (check_differing, lambda a, b: (a[:, None] ^ b).sum(2), "added up as numbers"),
}
WRONG = WRONG_06 | WRONG_08 | WRONG_12


@pytest.mark.parametrize(("check", "answer", "message"), WRONG.values(), ids=WRONG)
def test_the_mistake_is_named(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)


def by_eig(patches):  # whose answer is complex
    flat = patches.reshape(-1, patches.shape[-1])
    return (patches - flat.mean(0)) @ np.linalg.eig(np.cov(flat.T) + 0j)[1][:, :3]


def tiles_one_by_one(x, y, gsd, size, anchor):
    return [[(a - anchor[0]) // (gsd * size), (b - anchor[1]) // (gsd * size)] for a, b in zip(x, y, strict=True)]


def search_one_by_one(v, right, wrong, k):
    query = 2 * unit(v)[right].mean(0) - unit(v)[wrong].mean(0)
    return sorted(set(range(len(v))) - {*right, *wrong}, key=lambda i: -np.dot(unit(v)[i], query))[:k]


def rounded_one_by_one(vectors, bits):
    scales = [np.abs(v).max() / (2 ** (bits - 1) - 1) or 1 for v in vectors]
    return [[round(float(n / s)) * float(s) for n in v] for v, s in zip(vectors, scales, strict=True)]


def bits_by_powers(vectors, mean):
    above = np.pad(vectors > mean, ((0, 0), (0, -vectors.shape[1] % 8))).reshape(len(vectors), -1, 8)
    return torch.tensor((above * 2 ** np.arange(7, -1, -1)).sum(2), dtype=torch.uint8)


RIGHT = {
    "complex components": (check_three_colours, by_eig),
    "integer division": (check_tile_of, tiles_one_by_one),
    "a sorted list": (check_search, search_one_by_one),
    "single precision": (check_blend, lambda *case: blend()(*case).astype(np.float32)),
    "lists": (check_rounded, rounded_one_by_one),
    "components of scikit-learn": (check_variance_kept, kept()),
    "powers of two": (check_bits, bits_by_powers),
    "counted bits": (check_differing, lambda a, b: [[int(np.bitwise_count(x ^ y).sum()) for y in b] for x in a]),
}


@pytest.mark.parametrize(("check", "answer"), RIGHT.values(), ids=RIGHT)
def test_right_answers_written_in_other_ways_are_right(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
