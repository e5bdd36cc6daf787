"""The checks of 11 and 12 name the mistake of each typical wrong answer and take right ones that are written otherwise;
that they accept the solutions is proved by tests/test_exercises.py."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F

from clay_lib.course import checks
from clay_lib.course.checking import Mistake


def frozen_to_the_end(depth, last, top, decay):
    rates = top * decay ** np.arange(depth)[::-1]
    rates[:-last] = 0  # with last = 0 the slice is empty
    return rates


def mean_iou(divide=lambda hit, has, said: hit / (has + said - hit), there=lambda has, said: has > 0, among=None):
    def fn(truth, said, count, ignore):
        known = truth != ignore
        hit = [((truth == k) & (said == k) & known).sum() for k in range(count)]
        has = [((truth == k) & known).sum() for k in range(count)]
        names = [((said == k) & (known if among is None else among(truth))).sum() for k in range(count)]
        return np.mean(
            [divide(i, h, s) if h + s else 0.0 for i, h, s in zip(hit, has, names, strict=True) if there(h, s)]
        )

    return fn


def placed(places):
    def fn(values, factor):
        n = len(values)
        return np.interp(places(np.arange(n * factor), n, factor), np.arange(n), values)

    return fn


def by_indices(values, factor):
    place = (np.arange(len(values) * factor) + 0.5) / factor - 0.5
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    return values[below] * (1 - (place - below)) + values[above] * (place - below)


def rounded(most=lambda bits: 2 ** (bits - 1) - 1, top=lambda x: np.abs(x).max(1, keepdims=True), whole=np.rint):
    def fn(vectors, bits):
        scale = top(vectors) / most(bits)
        scale = np.where(scale == 0, 1, scale)
        return whole(vectors / scale) * scale

    return fn


def zero_divided(vectors, bits):
    scale = np.abs(vectors).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    with np.errstate(invalid="ignore"):
        return np.rint(vectors / scale) * scale


def kept(fit=lambda train, test: train, centre=lambda train, test: train.mean(0), of=lambda train, test: test):
    def fn(train, test, k):
        axes = PCA(k).fit(fit(train, test)).components_
        return along(of(train, test) - centre(train, test), axes)

    return fn


def along(seen, axes):
    return ((seen @ axes.T) ** 2).sum() / (seen**2).sum()


def pairs(count):
    return lambda a, b: count(np.unpackbits(a[:, None], axis=2), np.unpackbits(b[None], axis=2)).sum(2)


WRONG = {
    "11 reversed": (
        checks.check_block_rates,
        lambda n, k, t, d: t * d ** np.arange(n) * (np.arange(n) < k),
        "first block",
    ),
    "11 none frozen": (checks.check_block_rates, lambda n, k, t, d: t * d ** np.arange(n)[::-1], "All blocks learn"),
    "11 learning ones only": (
        checks.check_block_rates,
        lambda n, k, t, d: t * d ** np.arange(k)[::-1],
        "belong before",
    ),
    "11 one step late": (
        checks.check_block_rates,
        lambda n, k, t, d: np.where(np.arange(n) < n - k, 0, t * d ** (n - np.arange(n))),
        "already learns decay times slower",
    ),
    "11 minus nought": (checks.check_block_rates, frozen_to_the_end, r"\[:-0\] is nothing"),
    "11 absent is nought": (checks.check_mean_iou, mean_iou(there=lambda h, s: True), "counts as 0"),
    "11 classes said": (checks.check_mean_iou, mean_iou(there=lambda h, s: h + s > 0), "over different classes"),
    "11 unlabelled said": (
        checks.check_mean_iou,
        mean_iou(among=lambda truth: np.ones_like(truth, bool)),
        "said of unlabelled pixels",
    ),
    "11 unlabelled as class 0": (
        checks.check_mean_iou,
        lambda t, s, n, i: mean_iou()(np.where(t == i, 0, t), s, n, i),
        "taken for class 0",
    ),
    "11 pixels that are right": (
        checks.check_mean_iou,
        lambda t, s, n, i: (t == s)[t != i].mean(),
        "the share of pixels that are right",
    ),
    "11 F1": (checks.check_mean_iou, mean_iou(lambda i, h, s: 2 * i / (h + s)), "This is F1"),
    "11 chip by chip": (
        checks.check_mean_iou,
        lambda t, s, n, i: np.mean([mean_iou()(a, b, n, i) for a, b in zip(t, s, strict=True)]),
        "chip by chip",
    ),
    "11 not a number": (
        checks.check_mean_iou,
        mean_iou(lambda i, h, s: i / (h + s - i) if h else np.nan, there=lambda h, s: True),
        "This is no number",
    ),
    "11 repeated": (checks.check_resized, np.repeat, "its own patch"),
    "11 no halves": (checks.check_resized, placed(lambda i, n, f: i / f), "the whole picture is shifted"),
    "11 half a pixel": (checks.check_resized, placed(lambda i, n, f: i / f - 0.5), "shifted by half a pixel"),
    "11 half a patch": (checks.check_resized, placed(lambda i, n, f: (i + 0.5) / f), "shifted by half a patch"),
    "11 stretched": (
        checks.check_resized,
        lambda v, f: F.interpolate(torch.tensor(v)[None, None], scale_factor=f, mode="linear", align_corners=True)[
            0, 0
        ],
        "the picture is stretched",
    ),
    "11 the last patch first": (checks.check_resized, by_indices, "mixed with the last patch"),
    "12 one scale": (checks.check_rounded, rounded(top=lambda x: np.abs(x).max()), "One scale serves all"),
    "12 a scale a number": (checks.check_rounded, rounded(top=lambda x: np.abs(x).max(0)), "each of the D numbers"),
    "12 signed": (checks.check_rounded, rounded(top=lambda x: x.max(1, keepdims=True)), "may be negative"),
    "12 cut off": (checks.check_rounded, rounded(whole=np.trunc), "cut off towards zero"),
    "12 all for positives": (checks.check_rounded, rounded(most=lambda b: 2**b - 1), "half of them negative"),
    "12 one too many": (checks.check_rounded, rounded(most=lambda b: 2 ** (b - 1)), "one less than 8"),
    "12 always int8": (checks.check_rounded, rounded(most=lambda b: 127), "always 127"),
    "12 zeros": (checks.check_rounded, zero_divided, "a vector of zeros is 0"),
    "12 of the training": (checks.check_variance_kept, kept(of=lambda train, test: train), "measure on test"),
    "12 fitted on test": (
        checks.check_variance_kept,
        kept(fit=lambda train, test: test, centre=lambda train, test: test.mean(0)),
        "fitted on the test vectors",
    ),
    "12 own mean": (checks.check_variance_kept, kept(centre=lambda train, test: test.mean(0)), "about their own mean"),
    "12 not centred": (checks.check_variance_kept, kept(centre=lambda train, test: 0), "from train alone"),
    "12 columns": (
        checks.check_variance_kept,
        lambda a, b, k: along(b - a.mean(0), np.linalg.svd(a - a.mean(0))[2].T[:k]),
        "its rows are the axes",
    ),
    "12 what is lost": (checks.check_variance_kept, lambda *a: 1 - kept()(*a), "share that is lost"),
    "12 not packed": (checks.check_bits, lambda x, m: (x > m).astype(np.uint8), "eight of them into one byte"),
    "12 one row": (checks.check_bits, lambda x, m: np.packbits(x > m), "needs axis=1"),
    "12 sign": (checks.check_bits, lambda x, m: np.packbits(x > 0, axis=1), "above `mean`"),
    "12 wide bytes": (checks.check_bits, lambda x, m: np.packbits(x > m, axis=1).astype(int), "should be uint8"),
    "12 bits that agree": (checks.check_differing, pairs(np.equal), "the bits that agree"),
    "12 bytes": (checks.check_differing, lambda a, b: (a[:, None] != b).sum(2), "Bytes that differ"),
    "12 both": (checks.check_differing, pairs(np.logical_and), "1 in both"),
    "12 less than nought": (checks.check_differing, pairs(np.subtract), "0 - 1 is 255"),
    "12 added up": (checks.check_differing, lambda a, b: (a[:, None] ^ b).sum(2), "added up as numbers"),
}


@pytest.mark.parametrize(("check", "answer", "words"), WRONG.values(), ids=WRONG)
def test_the_mistake_is_named(check, answer, words):
    with pytest.raises(Mistake, match=words):
        check(answer)


def rates_one_by_one(depth, last, top, decay):
    found = []
    for i in reversed(range(depth)):
        found.append(top if i >= depth - last else 0)
        top = top * decay
    return np.array(found)[::-1]  # reversed by a view, which torch would not take


def iou_of_a_table(truth, said, count, ignore):
    known = truth != ignore
    table = confusion_matrix(truth[known], said[known], labels=range(count))
    values = table.diagonal() / np.maximum(table.sum(0) + table.sum(1) - table.diagonal(), 1)
    return torch.tensor(values[table.sum(1) > 0].mean())


def bits_by_powers(vectors, mean):
    above = np.pad(vectors > mean, ((0, 0), (0, -vectors.shape[1] % 8))).reshape(len(vectors), -1, 8)
    return torch.tensor((above * 2 ** np.arange(7, -1, -1)).sum(2), dtype=torch.uint8)


RIGHT = {
    "11 rates one by one": (checks.check_block_rates, rates_one_by_one),
    "11 a table of scikit-learn": (checks.check_mean_iou, iou_of_a_table),
    "11 torch's own": (
        checks.check_resized,
        lambda v, f: F.interpolate(torch.tensor(v)[None, None].float(), scale_factor=f, mode="linear")[0, 0],
    ),
    "12 lists": (
        checks.check_rounded,
        lambda x, b: [[round(float(n / s)) * float(s) for n in v] for v in x for s in [np.abs(v).max() / (2 ** (b - 1) - 1) or 1]],
    ),
    "12 scikit-learn": (checks.check_variance_kept, kept()),
    "12 powers of two": (checks.check_bits, bits_by_powers),
    "12 counted bits": (checks.check_differing, lambda a, b: [[int(np.bitwise_count(x ^ y).sum()) for y in b] for x in a]),
}  # fmt: skip


@pytest.mark.parametrize(("check", "answer"), RIGHT.values(), ids=RIGHT)
def test_a_right_answer_written_otherwise_is_right(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
