"""Answers to the exercises: wrong ones beside the common mistakes, and right ones written in other ways."""

import numpy as np
import pytest
import torch
from einops import rearrange
from rasterio.transform import Affine
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from clay_lib.course import checks
from clay_lib.course.checks import Mistake
from clay_lib.course.checks.embeddings import unit

# ---- wrong


def at_most(draw, ratio):  # with ratio 0 the threshold is the last draw
    return (draw <= draw.sort(1).values[:, [int(ratio * draw.shape[1]) - 1]]).float()


def patches_of_eight(transform, P):
    a, b, c, d, e, f = transform
    return [8 * a, 8 * b, c, 8 * d, 8 * e, f]


def image_with(grid_rows):
    """The decoder's rows to an image, with another number of rows in the grid."""
    return lambda rows, C, P, H, W: rearrange(
        rows, "(h w) (C p q) -> C (h p) (w q)", h=grid_rows(rows, H, P), C=C, p=P
    )[:, :H, :W]


def frozen_to_the_end(depth, last, top, decay):
    rates = top * decay ** np.arange(depth)[::-1]
    rates[:-last] = 0  # with last = 0 the slice is empty
    return rates


def random_chips(blocks, share, seed):
    return np.random.default_rng(seed).random(len(blocks)) < share


def blocks_by(draw):
    """A split whose blocks are drawn by draw(rng, blocks, names, how many)."""

    def fn(blocks, share, seed):
        names = np.unique(blocks)
        return np.isin(blocks, draw(np.random.default_rng(seed), blocks, names, round(share * len(names))))

    return fn


def interval_of(mean, ends=(0.025, 0.975)):
    """The interval of mean(rng, hits of each place) over many draws."""

    def fn(hits, places, draws, seed):
        rng = np.random.default_rng(seed)
        of_place = [hits[places == name] for name in np.unique(places)]
        return np.quantile([mean(rng, of_place) for _ in range(draws)], ends)

    return fn


def by_place(rng, of_place):
    return np.concatenate([of_place[i] for i in rng.choice(len(of_place), len(of_place))]).mean()


reference = {name: getattr(checks, name).reference for name in checks.__all__ if name.startswith("check_")}
code_of_grid, put_in_tiles, split = (reference[f"check_{name}"] for name in ("grid_code", "tile_of", "split"))
WRONG = {
    "one band forgotten": (checks.check_wavelengths, [0.450, 0.550, 0.660, 0.845], "C is 4 instead of 5"),
    "bands after patches": (
        checks.check_band_parts,
        lambda *case: reference["check_band_parts"](*case).transpose(1, 2),
        "another order",
    ),
    "three numbers": (checks.check_week_code, lambda date: torch.zeros(3), r"\[3\], expected \[2\] \(sin and cos\)"),
    "a square grid": (checks.check_grid_code, lambda h, w, f: code_of_grid(3, 3, f), "h w is 9 instead of 12"),
    "a length as float": (checks.check_sequence_length, lambda H, W, P, r: H * W / P**2 * (1 - r), "A whole number"),
    "all for ratio 0": (checks.check_mask, at_most, "With ratio 0 no patch is hidden"),
    "numbers of patches": (checks.check_mask, lambda d, r: d.argsort(1)[:, : int(r * 11)], "L is 6 instead of 11"),
    "visible tokens only": (checks.check_put_back, lambda t, v, m, L: t, "L is 3 instead of 7"),
    "another error": (checks.check_masked_error, lambda r, t, m: r.mean(), r"^This is \S+; it should be \S+\.$"),
    "one setting": (
        checks.check_rate,
        lambda step, *_: reference["check_rate"](step, 10, 110, 0.02),
        r"Tried with step = 0, warmup = 4",
    ),
    "patches of eight": (checks.check_patch_transform, patches_of_eight, "Another patch size.*patch = 6"),
    "always one more": (checks.check_image_of_rows, image_with(lambda rows, H, P: H // P + 1), r"H // P \+ 1 gives 3"),
    "sides rounded": (checks.check_image_of_rows, image_with(lambda rows, H, P: round(H / P)), r"round\(H / P\) gives"),
    "square image": (checks.check_image_of_rows, image_with(lambda rows, H, P: int(len(rows) ** 0.5)), "not from L"),
    "minus zero": (checks.check_block_rates, frozen_to_the_end, r"\[:-0\] is nothing"),
    "always three": (
        checks.check_most_similar,
        lambda v, k: reference["check_most_similar"](v, 3),
        "Another k.*k is 3 instead of 2",
    ),
    "zeros": (checks.check_three_colors, lambda p: np.zeros((5, 6, 3)), "the values differ"),
    "wide bytes": (checks.check_bits, lambda x, m: np.packbits(x > m, axis=1).astype(int), "should be uint8"),
    "always five": (checks.check_vote, lambda x, y, t, k: reference["check_vote"](x, y, t, 5), "With one neighbor"),
    "chips drawn": (checks.check_split, random_chips, "blocks have chips on both sides"),
    "training's share": (checks.check_split, lambda *case: ~split(*case), "took it for training"),
    "with replacement": (checks.check_split, blocks_by(lambda rng, b, names, n: rng.choice(names, n)), "replace=False"),
    "places for names": (checks.check_split, blocks_by(lambda rng, b, names, n: rng.permutation(n)), r"np.unique\(blo"),
    "one share": (checks.check_split, lambda blocks, share, seed: split(blocks, 0.3, seed), "share of 0.15 it should"),
    "one split": (checks.check_split, lambda blocks, share, seed: split(blocks, share, 5), "Every seed gives the same"),
    "numbers": (checks.check_split, lambda *case: split(*case) * 1, "True and False are expected"),
    "one interval": (
        checks.check_interval,
        lambda h, p, n, seed: interval_of(by_place)(h, p, n, 0),
        "Every seed gives",
    ),
    "each way": (checks.check_luck, lambda *case: np.ones(128, bool), "One number is expected"),
}


@pytest.mark.parametrize(("check", "answer", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_described(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)


# ---- right


def error_with_gradient(r, t, m):
    return (r.requires_grad_() - t)[m.bool()].abs().mean().reshape(1)


def folded(rows, C, P, H, W):
    return F.fold(rows.T[None], (-(-H // P) * P, -(-W // P) * P), P, stride=P)[0, :, :H, :W]


def rates_one_by_one(depth, last, top, decay):
    rates = []
    for i in reversed(range(depth)):
        rates.append(top if i >= depth - last else 0)
        top = top * decay
    return np.array(rates)[::-1]  # reversed by a view, which torch refuses


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


def rounded_one_by_one(vectors, bits):
    scales = [np.abs(v).max() / (2 ** (bits - 1) - 1) or 1 for v in vectors]
    return [[round(float(n / s)) * float(s) for n in v] for v, s in zip(vectors, scales, strict=True)]


def kept_of_sklearn(train, test, k):
    centered = test - train.mean(0)
    return ((centered @ PCA(k).fit(train).components_.T) ** 2).sum() / (centered**2).sum()


def bits_by_powers(vectors, mean):
    above = np.pad(vectors > mean, ((0, 0), (0, -vectors.shape[1] % 8))).reshape(len(vectors), -1, 8)
    return torch.tensor((above * 2 ** np.arange(7, -1, -1)).sum(2), dtype=torch.uint8)


def split_of_sklearn(blocks, share, seed):
    splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    return np.isin(np.arange(len(blocks)), next(splitter.split(blocks, groups=blocks))[1])


def interval_by_weights(hits, places, draws, seed):
    rows = np.random.default_rng(seed).choice(np.unique(places), (draws, len(set(places))))
    weights = [np.bincount(row, minlength=places.max() + 1)[places] for row in rows]
    return np.percentile([np.average(hits, weights=w) for w in weights], [2.5, 97.5]).tolist()


def front(score, cost):
    s, c = score.mean(1), cost.mean(1)
    return [not any((s > s[i]) & (c < c[i])) for i in range(len(s))]


def merged(table, one, other):
    both = table[table.setting == one].merge(table[table.setting == other], on="seed")
    difference = both.eval("error_x - error_y").to_numpy()
    return reference["check_seed_intervals"](difference[None])[0].tolist()


def place_codes(lat, lon):
    code = torch.stack([f(torch.deg2rad(v)) for v in (lat, lon) for f in (torch.sin, torch.cos)], 1)
    return torch.where((lat.isnan() | lon.isnan())[:, None], 0.0, code)


def moved(full, less):
    a, b = (np.stack([row / np.sqrt(row @ row) for row in x]) for x in (full, less))
    pairs, n = 1 - a @ b.T, len(a)
    return (1 - (a * b).sum(1)).mean() / ((pairs.sum() - np.trace(pairs)) / (n * (n - 1)))


RIGHT = {
    "with a gradient, one number in a row": (checks.check_masked_error, error_with_gradient),
    "an Affine": (checks.check_patch_transform, lambda t, P: Affine(*t) * Affine.scale(P)),
    "patch by patch": (checks.check_image_of_rows, folded),
    "rates one by one": (checks.check_block_rates, rates_one_by_one),
    "a table of scikit-learn": (checks.check_mean_iou, iou_of_a_table),
    "interpolation of torch": (checks.check_resized, enlarged),
    "complex components": (checks.check_three_colors, by_eig),
    "lists of tiles": (checks.check_tile_of, lambda *case: put_in_tiles(*case).astype(int).tolist()),
    "a sorted list": (checks.check_search, search_one_by_one),
    "single precision": (checks.check_blend, lambda *case: reference["check_blend"](*case).astype(np.float32)),
    "lists of numbers": (checks.check_rounded, rounded_one_by_one),
    "components of scikit-learn": (checks.check_variance_kept, kept_of_sklearn),
    "powers of two": (checks.check_bits, bits_by_powers),
    "counted bits": (checks.check_differing, lambda a, b: [[int(np.bitwise_count(x ^ y).sum()) for y in b] for x in a]),
    "votes of sklearn": (checks.check_vote, lambda x, y, t, k: KNeighborsClassifier(k).fit(x, y).predict(t)),
    "splits of sklearn": (checks.check_split, split_of_sklearn),
    "by weights": (checks.check_interval, interval_by_weights),
    "by place": (checks.check_interval, interval_of(by_place)),
    "a list": (checks.check_unbeaten, front),
    "merged": (checks.check_paired, merged),
    "chosen zeros": (checks.check_place_codes, place_codes),
    "by loops": (checks.check_moved, moved),
    "a tensor": (checks.check_luck, lambda *case: torch.tensor([reference["check_luck"](*case)])),
}


@pytest.mark.parametrize(("check", "answer"), RIGHT.values(), ids=RIGHT)
def test_other_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
