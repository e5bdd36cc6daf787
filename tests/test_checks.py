"""Checks accept the solution (tests/test_exercises.py) and name the mistake of each typical wrong answer."""

import re

import numpy as np
import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from clay_lib import checking, checks
from clay_lib.checking import Mistake

right_waves = [0.450, 0.550, 0.660, 0.735, 0.845]


def conv(pixels, weight, bias):
    return rearrange(F.conv2d(pixels, weight, bias, stride=weight.shape[-1]), "B D h w -> B (h w) D")


def parts(embedding, pixels, waves, weight=None):
    weight = embedding.kernels(waves)[0] if weight is None else weight
    each = [conv(pixels[:, [c]], weight[:, [c]], None) for c in range(len(waves))]
    return torch.stack(each, dim=1)


WRONG_01 = {
    "nanometres": (checks.check_wavelengths, [450, 550, 660, 735, 845], "nanometres"),
    "from infrared to blue": (checks.check_wavelengths, right_waves[::-1], "from near infrared to blue"),
    "one band forgotten": (checks.check_wavelengths, right_waves[:3] + right_waves[4:], r"C is 4 instead of 5"),
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
    assert [checking.value(v, int) for v in (3, np.int64(3), torch.tensor([3]))] == [3, 3, 3]
    for wrong, words in (
        (3.5, "A whole number is wanted, not a float"),
        (True, "not a bool"),
        (..., "nothing here yet"),
    ):
        with pytest.raises(Mistake, match=words):
            checking.value(wrong, int)


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
