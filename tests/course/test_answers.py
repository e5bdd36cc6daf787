"""Answers to the exercises: what only a rule or an edge case finds, and right answers written in other ways."""

import numpy as np
import pytest
import torch
from rasterio.transform import Affine
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from clay_lib.course import checks
from clay_lib.course.checks import Mistake
from clay_lib.course.checks.embeddings import unit

split, paired = checks.check_split.reference, checks.check_seed_intervals.reference

# ---- wrong


def at_most(draw, ratio):  # with ratio 0 the threshold is the last draw
    return (draw <= draw.sort(1).values[:, [int(ratio * draw.shape[1]) - 1]]).float()


def patches_of_eight(transform, P):
    a, b, c, d, e, f = transform
    return [8 * a, 8 * b, c, 8 * d, 8 * e, f]


def frozen_to_the_end(depth, last, top, decay):
    rates = top * decay ** np.arange(depth)[::-1]
    rates[:-last] = 0  # with last = 0 the slice is empty
    return rates


def random_chips(blocks, share, seed):
    return np.random.default_rng(seed).random(len(blocks)) < share


def with_replacement(blocks, share, seed):
    names = np.unique(blocks)
    return np.isin(blocks, np.random.default_rng(seed).choice(names, round(share * len(names))))


def interval_by_weights(hits, places, draws, seed):
    rows = np.random.default_rng(seed).choice(np.unique(places), (draws, len(set(places))))
    weights = [np.bincount(row, minlength=places.max() + 1)[places] for row in rows]
    return np.percentile([np.average(hits, weights=w) for w in weights], [2.5, 97.5]).tolist()


@pytest.mark.parametrize(
    ("check", "answer", "message"),
    [
        (checks.check_mask, at_most, "With ratio 0 no patch is hidden"),
        (checks.check_patch_transform, patches_of_eight, "Another patch size.*patch = 6"),
        (checks.check_block_rates, frozen_to_the_end, r"\[:-0\] is nothing"),
        (checks.check_vote, lambda x, y, t, k: checks.check_vote.reference(x, y, t, 5), "With one neighbor"),
        (checks.check_split, random_chips, "blocks have chips on both sides"),
        (checks.check_split, with_replacement, "replace=False"),
        (checks.check_split, lambda *case: ~split(*case), "took it for training"),
        (checks.check_split, lambda blocks, share, seed: split(blocks, 0.3, seed), "share of 0.15 it should"),
        (checks.check_split, lambda blocks, share, seed: split(blocks, share, 5), "Every seed gives the same"),
        (checks.check_interval, lambda h, p, n, seed: interval_by_weights(h, p, n, 0), "Every seed gives"),
    ],
)
def test_what_only_a_rule_or_an_edge_case_finds_is_described(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)


# ---- right


def folded(rows, C, P, H, W):
    return F.fold(rows.T[None], (-(-H // P) * P, -(-W // P) * P), P, stride=P)[0, :, :H, :W]


def iou_of_a_table(truth, predicted, count, ignore):
    known = truth != ignore
    table = confusion_matrix(truth[known], predicted[known], labels=range(count))
    values = table.diagonal() / np.maximum(table.sum(0) + table.sum(1) - table.diagonal(), 1)
    return torch.tensor(values[table.sum(1) > 0].mean())


def enlarged(values, factor):
    row = torch.tensor(values)[None, None]
    return F.interpolate(row.float(), scale_factor=factor, mode="linear", align_corners=False)[0, 0]


def by_eig(patches):  # whose answer is complex
    flat = patches.reshape(-1, patches.shape[-1])
    return (patches - flat.mean(0)) @ np.linalg.eig(np.cov(flat.T) + 0j)[1][:, :3]


def search_one_by_one(v, right, wrong, k):
    query = 2 * unit(v)[right].mean(0) - unit(v)[wrong].mean(0)
    return sorted(set(range(len(v))) - {*right, *wrong}, key=lambda i: -np.dot(unit(v)[i], query))[:k]


def kept_of_sklearn(train, test, k):
    centered = test - train.mean(0)
    return ((centered @ PCA(k).fit(train).components_.T) ** 2).sum() / (centered**2).sum()


def bits_by_powers(vectors, mean):
    above = np.pad(vectors > mean, ((0, 0), (0, -vectors.shape[1] % 8))).reshape(len(vectors), -1, 8)
    return torch.tensor((above * 2 ** np.arange(7, -1, -1)).sum(2), dtype=torch.uint8)


def split_of_sklearn(blocks, share, seed):
    splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    return np.isin(np.arange(len(blocks)), next(splitter.split(blocks, groups=blocks))[1])


def merged(table, one, other):
    both = table[table.setting == one].merge(table[table.setting == other], on="seed")
    return paired(both.eval("error_x - error_y").to_numpy()[None])[0].tolist()


def moved(full, less):
    a, b = (np.stack([row / np.sqrt(row @ row) for row in x]) for x in (full, less))
    pairs, n = 1 - a @ b.T, len(a)
    return (1 - (a * b).sum(1)).mean() / ((pairs.sum() - np.trace(pairs)) / (n * (n - 1)))


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (checks.check_patch_transform, lambda t, P: Affine(*t) * Affine.scale(P)),
        (checks.check_image_of_rows, folded),
        (checks.check_mean_iou, iou_of_a_table),
        (checks.check_resized, enlarged),
        (checks.check_three_colors, by_eig),
        (checks.check_search, search_one_by_one),
        (checks.check_variance_kept, kept_of_sklearn),
        (checks.check_bits, bits_by_powers),
        (checks.check_differing, lambda a, b: [[int(np.bitwise_count(x ^ y).sum()) for y in b] for x in a]),
        (checks.check_vote, lambda x, y, t, k: KNeighborsClassifier(k).fit(x, y).predict(t)),
        (checks.check_split, split_of_sklearn),
        (checks.check_interval, interval_by_weights),
        (checks.check_paired, merged),
        (checks.check_moved, moved),
    ],
)
def test_other_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
