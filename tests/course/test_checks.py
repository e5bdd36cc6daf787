"""Checks accept the solution (tests/test_exercises.py) and name the mistake of each typical wrong answer."""

import math
import re

import numpy as np
import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from clay_lib.course import checking, checks
from clay_lib.course.checking import Mistake

right_waves = [0.450, 0.550, 0.660, 0.735, 0.845]


def conv(pixels, weight, bias):
    rows = F.unfold(pixels, weight.shape[-1], stride=weight.shape[-1]).mT  # no convolution, which the check would see
    return rows @ weight.flatten(1).T + (0 if bias is None else bias)


def parts(embedding, pixels, waves, weight=None):
    weight = embedding.kernels(waves)[0] if weight is None else weight
    each = [conv(pixels[:, [c]], weight[:, [c]], None) for c in range(len(waves))]
    return torch.stack(each, dim=1)


def torchs_conv(pixels, weight, bias):
    return F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).mT


WRONG_01 = {
    "nanometres": (checks.check_wavelengths, [450, 550, 660, 735, 845], "nanometres"),
    "from infrared to blue": (checks.check_wavelengths, right_waves[::-1], "from near infrared to blue"),
    "one band forgotten": (checks.check_wavelengths, right_waves[:3] + right_waves[4:], r"C is 4 instead of 5"),
    "by torch itself": (checks.check_tokens, torchs_conv, "a convolution of torch has made them"),
    "as words": (checks.check_wavelengths, ["450 nm"] * 5, "tensor of numbers is wanted, not a list"),
    "without the bias": (checks.check_tokens, lambda x, w, b: conv(x, w, None), "bias is missing"),
    "bias for each band": (checks.check_tokens, lambda x, w, b: conv(x, w, 3 * b), "added once for every band"),
    "column by column": (
        checks.check_tokens,
        lambda x, w, b: rearrange(F.conv2d(x, w, b, stride=4), "B D h w -> B (w h) D"),
        "column by column",
    ),
    "D before L": (
        checks.check_tokens,
        lambda x, w, b: rearrange(F.conv2d(x, w, b, stride=4), "B D h w -> B D (h w)"),
        r"\[2, 5, 6\], wanted is \[2, 6, 5\] \(B L D\): the axes are in another order",
    ),
    "the grid kept": (
        checks.check_tokens,
        lambda x, w, b: F.conv2d(x, w, b, stride=4),
        "all numbers are there, but on 4 axes, not 3",
    ),
    "a step of one pixel": (
        checks.check_tokens,
        lambda x, w, b: F.conv2d(x, w, b).flatten(2).mT,
        "L is 45 instead of 6",
    ),
    "kernels in another order": (
        checks.check_tokens,
        lambda x, w, b: rearrange(x, "B C (h p) (w q) -> B (h w) (p q C)", p=4, q=4) @ w.flatten(1).T + b,
        "flattened in different orders",
    ),
    "kernels made one by one": (
        checks.check_band_parts,
        lambda e, x, k: parts(e, x, k, torch.cat([e.kernels(w[None])[0] for w in k], dim=1)),
        "ask for all wavelengths at once",
    ),
    "with the bias": (
        checks.check_band_parts,
        lambda e, x, k: parts(e, x, k) + e.kernels(k)[1],
        "bias is in every band's part",
    ),
    "summed over bands": (checks.check_band_parts, lambda e, x, k: parts(e, x, k).sum(1), "The bands are summed"),
    "bands after patches": (checks.check_band_parts, lambda e, x, k: parts(e, x, k).transpose(1, 2), "another order"),
}


@pytest.mark.parametrize(("check", "answer", "words"), WRONG_01.values(), ids=WRONG_01)
def test_01_names_the_mistake(check, answer, words):
    with pytest.raises(Mistake, match=words):
        check(answer)


# ---- 02 and 03


def week_by(part, swap=False):
    def code(date):
        angle = torch.tensor(part(date))
        pair = [angle.sin(), angle.cos()]
        return torch.stack(pair[::-1] if swap else pair)

    return code


def grid(h, w, f, *, swap=False, turned=False, blocks=(0, 1, 2, 3)):
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="xy" if turned else "ij")
    x, y = ((y, x) if swap else (x, y)) if not turned else (x, y)
    x, y = x.flatten()[:, None] * f, y.flatten()[:, None] * f
    parts = [x.sin(), x.cos(), y.sin(), y.cos()]
    return torch.cat([parts[k] for k in blocks], dim=1)


def length(H, W, P, ratio, *, up=True, cls=1, hidden=int):
    patches = math.prod(math.ceil(n / P) if up else n // P for n in (H, W))
    return cls + patches - hidden(ratio * patches)


def masked(draw, ratio, *, numbers=None):
    n = int(ratio * draw.shape[1])
    order = draw.argsort(dim=1)
    return torch.zeros_like(draw).scatter(1, order[:, :n] if numbers is None else numbers(order, n), 1.0)


def back(tokens, visible, token, L):
    full = token.repeat(len(tokens), L, 1)
    full[torch.arange(len(tokens))[:, None], visible] = tokens
    return full


WEEKS = 2 * math.pi / 52
WRONG_02 = {
    "sizes swapped": (checks.check_same_place, lambda c, a, b: c * b / a, "two pixel sizes are swapped"),
    "metres": (checks.check_same_place, lambda c, a, b: c * a, "These are metres"),
    "the same column": (checks.check_same_place, lambda c, a, b: c, "same column at both"),
    "a text": (checks.check_same_place, lambda c, a, b: f"{c * a / b}", "A number is wanted, not a str"),
    "cosine first": (
        checks.check_week_code,
        week_by(lambda d: WEEKS * d.isocalendar().week, swap=True),
        "Cosine comes first",
    ),
    "degrees": (checks.check_week_code, week_by(lambda d: 360 / 52 * d.isocalendar().week), "in degrees"),
    "day of the year": (
        checks.check_week_code,
        week_by(lambda d: 2 * math.pi * d.timetuple().tm_yday / 365),
        "This is the day of the year",
    ),
    "week 53 as 52": (
        checks.check_week_code,
        week_by(lambda d: WEEKS * min(d.isocalendar().week, 52)),
        "You take week 53 for week 52",
    ),
    "strftime": (checks.check_week_code, week_by(lambda d: WEEKS * int(d.strftime("%W"))), "strftime's %W"),
    "a week as text": (checks.check_week_code, lambda d: "week 3", "tensor of numbers is wanted, not a str"),
    "a week as a dict": (checks.check_week_code, lambda d: {"sin": 0, "cos": 1}, "numbers is wanted, not a dict"),
    "a week of None": (checks.check_week_code, lambda d: [None, None], "tensor of numbers is wanted, not a list"),
    "whole columns": (checks.check_same_place, lambda c, a, b: round(c * a / b), "whole numbers, rounded"),
    "53 weeks": (checks.check_week_code, week_by(lambda d: 52 / 53 * WEEKS * d.isocalendar().week), "divide by 53"),
    "half a turn": (checks.check_week_code, week_by(lambda d: WEEKS / 2 * d.isocalendar().week), "factor 2 is missing"),
    "three numbers": (checks.check_week_code, lambda d: torch.zeros(3), "Two numbers are wanted"),
    "x and y swapped": (checks.check_grid_code, lambda *a: grid(*a, swap=True), "Rows and columns are swapped"),
    "column by column": (checks.check_grid_code, lambda *a: grid(*a, turned=True), "column by column"),
    "cosines first": (checks.check_grid_code, lambda *a: grid(*a, blocks=(1, 0, 3, 2)), "Cosines come before sines"),
    "sines together": (checks.check_grid_code, lambda *a: grid(*a, blocks=(0, 2, 1, 3)), "order is sin x, sin y"),
    "columns alone": (checks.check_grid_code, lambda *a: grid(*a, blocks=(0, 1)), "add sin y and cos y"),
    "a square": (checks.check_grid_code, lambda h, w, f: grid(3, 3, f), "L is 9 instead of 12"),
}
WRONG_03 = {
    "no class token": (checks.check_sequence_length, lambda *a: length(*a, cls=0), "class token is missing"),
    "sides cut": (checks.check_sequence_length, lambda *a: length(*a, up=False), "Patches at the edge are lost: "),
    "the visible cut off": (
        checks.check_sequence_length,
        lambda H, W, P, r: 1 + int((1 - r) * (length(H, W, P, 0) - 1)),
        "The number of visible patches is cut off",
    ),
    "by quantile": (
        checks.check_mask,
        lambda d, r: (d < d.quantile(r, 1, keepdim=True)).float(),
        "One patch too many is hidden, 8 of 13",
    ),
    "rounded up": (checks.check_mask, lambda d, r: masked(d, r, numbers=lambda o, n: o[:, : n + 1]), "7 of 11"),
    "all for ratio 0": (
        checks.check_mask,
        lambda d, r: (d <= d.sort(1).values[:, [int(r * d.shape[1]) - 1]]).float(),
        "With ratio 0 no patch is hidden",
    ),
    "rounded": (checks.check_sequence_length, lambda *a: length(*a, hidden=round), "cut off, int"),
    "the hidden ones": (
        checks.check_sequence_length,
        lambda H, W, P, r: int(r * length(H, W, P, 0, cls=0)),
        "These are the hidden patches",
    ),
    "a float": (checks.check_sequence_length, lambda H, W, P, r: H * W / P**2 * (1 - r), "whole number is wanted"),
    "inverted": (checks.check_mask, lambda d, r: 1 - masked(d, r), "0 and 1 are swapped"),
    "the largest": (checks.check_mask, lambda d, r: masked(-d, r), "largest draws"),
    "a threshold": (checks.check_mask, lambda d, r: (d < r).float(), "another number of patches"),
    "numbers for ranks": (checks.check_mask, lambda d, r: (d.argsort(1) < int(r * 11)).float(), "not the rank"),
    "one mask for all": (checks.check_mask, lambda d, r: masked(d[:1].expand(3, -1), r), "order of its own"),
    "numbers returned": (checks.check_mask, lambda d, r: d.argsort(1)[:, : int(r * 11)], "L is 6 instead of 11"),
    "appended": (
        checks.check_put_back,
        lambda t, v, m, L: torch.cat([t, m.expand(len(t), L - t.shape[1], -1)], 1),
        "stand behind the visible ones",
    ),
    "zeros": (checks.check_put_back, lambda t, v, m, L: back(t, v, 0 * m, L), "hidden places hold zeros"),
    "sorted": (checks.check_put_back, lambda t, v, m, L: back(t, v.sort(1)[0], m, L), "that list is not sorted"),
    "places of the first": (
        checks.check_put_back,
        lambda t, v, m, L: back(t, v[:1].expand(len(t), -1), m, L),
        "places of the first one",
    ),
    "hidden ones left out": (
        checks.check_put_back,
        lambda t, v, m, L: torch.stack([a[b.argsort()] for a, b in zip(t, v, strict=True)]),
        "hidden places are missing",
    ),
}


@pytest.mark.parametrize(
    ("check", "answer", "words"),
    [*WRONG_02.values(), *WRONG_03.values()],
    ids=[*(f"02 {name}" for name in WRONG_02), *(f"03 {name}" for name in WRONG_03)],
)
def test_02_and_03_name_the_mistake(check, answer, words):
    with pytest.raises(Mistake, match=words):
        check(answer)


# ---- what every check does


def stumbles(pixels, weight, bias):
    rows = pixels.flatten()
    return rows @ weight


def changes(pixels, weight, bias):
    pixels += 1
    return conv(pixels - 1, weight, bias)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (..., "nothing here yet"),
        (lambda x, w, b: None, "returns nothing yet"),
        (lambda x, w, b: ..., "returns nothing yet"),
        (torch.zeros(2, 6, 5), "wants the function itself and got a Tensor: pass its name without brackets"),
        (lambda x: x, "cannot be called as the exercise asks: .*takes 1 positional argument but 3 were given"),
        (stumbles, r"stops in line \d+ of its cell, `return rows @ weight`, with RuntimeError: Expected size"),
        (changes, "changes its argument number 1: work on a copy"),
        (lambda x, w, b: [t for t in conv(x, w, b)], "not a list of 2 tensors .*torch.stack"),
        (lambda x, w, b: 2.5 * conv(x, w, b), "all of the tokens are 2.5 times"),
        (lambda x, w, b: conv(x, w, b) + 7, r"all of the tokens are off by \+7"),
        (lambda x, w, b: conv(x, w, b) / 0, "not finite"),
        (lambda x, w, b: conv(x, w, b) + 3e-4, r"off by \+0.0003"),
        (lambda x, w, b: conv(x, w, b) * 1j, "complex numbers; real ones are wanted"),
        (lambda x, w, b: conv(x, w, b)[None], "an axis of length 1 is too many"),
        (lambda x, w, b: conv(x, w, b).abs(), r"differ in \d+ of 60 places; first at \[\d, \d, \d\]: yours"),
    ],
)
def test_every_check_tells_what_any_answer_can_get_wrong(answer, words):
    with pytest.raises(Mistake, match=words):
        checks.check_tokens(answer)


def test_numpy_answers_and_single_numbers_count(capsys):
    checks.check_tokens(lambda x, w, b: conv(x, w, b).numpy())
    checks.check_wavelengths(np.array(right_waves))
    assert capsys.readouterr().out.count("Right. ") == 2
    ones = (3, 3.0, np.int64(3), np.array(3.0), np.array([3]), torch.tensor([3]), torch.tensor(3.0, requires_grad=True))
    assert [checking.value(one, int) for one in ones] == [3] * 7
    for wrong, words in (
        (3.5, "A whole number is wanted, not 3.5"),
        (np.ones(2), r"and this is a ndarray of the shape \[2\]"),
        ("3", "not a str"),
        (True, "not a bool"),
        (..., "nothing here yet"),
    ):
        with pytest.raises(Mistake, match=words):
            checking.value(wrong, int)


def test_no_factor_is_read_into_one_or_two_numbers():
    for got, wanted, words in (
        (1.2, 2.4, r"^This is 1.2; the error should be 2.4\.$"),
        (float("nan"), 2.4, "not a finite number"),
        ([1.0, 3.0], [2.0, 6.0], r"differ in 2 of 2 places; first at \[0\]: yours 1, wanted 2"),
        ([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], "differ in 3 of 3 places"),
        ([600_005.0, 1, 2], [600_000.0, 1, 2], "yours 600005, wanted 600000"),
        ([1.00001, 2.00002, 3.00003], [1.0, 2.0, 3.0], "yours 1.00001, wanted 1"),
    ):
        with pytest.raises(Mistake, match=words):
            checking.compare(
                torch.tensor(got).double(), torch.tensor(wanted).double(), what="the error", rtol=1e-9, atol=0
            )


def test_jupyter_shows_the_words_without_a_traceback(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.run_cell("from clay_lib import checks")
    shell.run_cell("def mine(x, w, b):\n    rows = x.flatten()\n    return rows.nothing\n")
    result = shell.run_cell("checks.check_tokens(mine)")
    shown = capsys.readouterr().out
    assert isinstance(result.error_in_exec, Mistake), "so that a run stops there"
    assert "Traceback" not in shown and "checking.py" not in shown
    assert re.search(r"^Not yet\. Your function stops in line 3 of its cell, `return rows\.nothing`", shown)
