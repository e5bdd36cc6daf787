"""Checks of notebooks 06, 08 and 12: wrong answers beside the common mistakes, and right ones written in other ways."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from clay_lib.course import checks
from clay_lib.course.checks import Mistake
from clay_lib.course.checks.embeddings import blend, most_similar, tile_of, unit


def divided_by_zero(vectors, bits):
    scale = np.abs(vectors).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    with np.errstate(invalid="ignore"):
        return np.rint(vectors / scale) * scale


WRONG = {
    "always three": (checks.check_most_similar, lambda v, k: most_similar(v, 3), "k is 3 instead of 2"),
    "zeros": (checks.check_three_colors, lambda p: np.zeros((5, 6, 3)), "first three principal components differ"),
    "division by zero": (checks.check_rounded, divided_by_zero, "vector of zeros has the scale 0"),
    "wide bytes": (checks.check_bits, lambda x, m: np.packbits(x > m, axis=1).astype(int), "should be uint8"),
}


@pytest.mark.parametrize(("check", "answer", "message"), WRONG.values(), ids=WRONG)
def test_mistake_is_named(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)


def by_eig(patches):  # whose answer is complex
    flat = patches.reshape(-1, patches.shape[-1])
    return (patches - flat.mean(0)) @ np.linalg.eig(np.cov(flat.T) + 0j)[1][:, :3]


def search_one_by_one(v, right, wrong, k):
    query = 2 * unit(v)[right].mean(0) - unit(v)[wrong].mean(0)
    return sorted(set(range(len(v))) - {*right, *wrong}, key=lambda i: -np.dot(unit(v)[i], query))[:k]


def rounded_one_by_one(vectors, bits):
    scales = [np.abs(v).max() / (2 ** (bits - 1) - 1) or 1 for v in vectors]
    return [[round(float(n / s)) * float(s) for n in v] for v, s in zip(vectors, scales, strict=True)]


def kept_of_sklearn(train, test, k):
    centered = test - train.mean(0)
    return ((centered @ PCA(k).fit(train).components_.T) ** 2).sum() / (centered**2).sum()


def bits_by_powers(vectors, mean):
    above = np.pad(vectors > mean, ((0, 0), (0, -vectors.shape[1] % 8))).reshape(len(vectors), -1, 8)
    return torch.tensor((above * 2 ** np.arange(7, -1, -1)).sum(2), dtype=torch.uint8)


RIGHT = {
    "complex components": (checks.check_three_colors, by_eig),
    "lists of tiles": (checks.check_tile_of, lambda *case: tile_of(*case).astype(int).tolist()),
    "a sorted list": (checks.check_search, search_one_by_one),
    "single precision": (checks.check_blend, lambda *case: blend(*case).astype(np.float32)),
    "lists of numbers": (checks.check_rounded, rounded_one_by_one),
    "components of scikit-learn": (checks.check_variance_kept, kept_of_sklearn),
    "powers of two": (checks.check_bits, bits_by_powers),
    "counted bits": (checks.check_differing, lambda a, b: [[int(np.bitwise_count(x ^ y).sum()) for y in b] for x in a]),
}


@pytest.mark.parametrize(("check", "answer"), RIGHT.values(), ids=RIGHT)
def test_other_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
