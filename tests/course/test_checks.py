"""The engine of the exercise checks, and what holds for every check."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clay_lib.course import checks
from clay_lib.course.checks import Check, Mistake, engine
from clay_lib.datacube import time_code

tokens, week_code = checks.check_tokens.reference, checks.check_week_code.reference
EVERY = {name: getattr(checks, name) for name in checks.__all__ if name.startswith("check_")}


def answer_of(check, solution):
    return solution() if check.cases == [()] else solution  # one exercise asks for a value


@pytest.mark.parametrize("check", EVERY.values(), ids=EVERY)
def test_reference_is_right_and_every_mistake_is_named(check, capsys):
    check(answer_of(check, check.reference))
    assert capsys.readouterr().out == f"Right. {check.praise}\n"
    for message, wrong in check.wrong_answers():
        with pytest.raises(Mistake, match=f"^{re.escape(message)}$"):
            check(answer_of(check, wrong))


def test_references_agree_with_the_library():
    for (date,) in checks.check_week_code.cases:
        np.testing.assert_allclose(week_code(date), time_code(date.isoformat())[0, :2], atol=1e-6)


def test_convolution_is_refused():
    with pytest.raises(Mistake, match="made by a convolution of torch"):
        checks.check_tokens(lambda x, w, b: F.conv2d(x, w, b, stride=4).flatten(2).mT)


def stops(pixels, weight, bias):
    rows = pixels.flatten()
    return rows @ weight


def changes(pixels, weight, bias):
    pixels += 1
    return tokens(pixels - 1, weight, bias)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (..., "nothing here yet"),
        (lambda x, w, b: None, "returns nothing yet"),
        (torch.zeros(2, 6, 5), "needs the function itself, not a Tensor: pass its name without brackets"),
        (lambda x: x, "cannot be called as in the exercise: .*takes 1 positional argument but 3 were given"),
        (stops, r"stops in line \d+ of its cell, `return rows @ weight`, with RuntimeError: Expected size"),
        (changes, "changes its argument number 1: work on a copy"),
        (lambda x, w, b: [t for t in tokens(x, w, b)], "not a list of 2 tensors: torch.stack"),
        (lambda x, w, b: "words", "A tensor of numbers is expected, not a str"),
        (lambda x, w, b: 2.5 * tokens(x, w, b), "the values are 2.5 times"),
        (lambda x, w, b: tokens(x, w, b) + 7, r"the values are off by \+7"),
        (lambda x, w, b: tokens(x, w, b) / 0, "60 of 60 numbers are not finite"),
        (lambda x, w, b: tokens(x, w, b) * 1j, "complex numbers; real ones are expected"),
        (
            lambda x, w, b: tokens(x, w, b).mT,
            r"\[2, 5, 6\], expected \[2, 6, 5\] \(B, L, D\): the axes are in another order",
        ),
        (lambda x, w, b: tokens(x, w, b)[None], "an axis of length 1 too many"),
        (lambda x, w, b: F.conv2d(x, w, b, stride=4), "4 axes, not 3"),
        (lambda x, w, b: F.conv2d(x, w, b).flatten(2).mT, "L is 45 instead of 6"),
        (lambda x, w, b: tokens(x, w, b).abs(), r"differ in \d+ of 60 places; first at \[\d, \d, \d\]: yours"),
    ],
)
def test_general_mistakes_are_described(answer, message):
    with pytest.raises(Mistake, match=message):
        checks.check_tokens(answer)


def test_numpy_answers_and_single_numbers_count(capsys):
    checks.check_tokens(lambda x, w, b: tokens(x, w, b).numpy())
    checks.check_wavelengths(checks.check_wavelengths.reference().numpy())
    assert capsys.readouterr().out.count("Right. ") == 2
    threes = [3, 3.0, np.int64(3), np.array(3.0), np.array([3]), torch.tensor([3])]
    threes.append(torch.tensor(3.0, requires_grad=True))
    assert [engine.whole_number(three) for three in threes] == [3] * 7
    wrong = {3.5: "A whole number is expected, not 3.5", "3": "not a str", True: "not a bool", ...: "nothing here yet"}
    for answer, message in [*wrong.items(), (np.ones(2), r"One number is expected; this has the shape \[2\]")]:
        with pytest.raises(Mistake, match=message):
            engine.whole_number(answer)


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        (1.2, 2.4, r"^This is 1.2; it should be 2.4\.$"),  # of one or two numbers no factor is named
        (math.nan, 2.4, "1 of 1 numbers are not finite"),
        ([600_005.0, 1, 2], [600_000.0, 1, 2], "yours 600005, expected 600000"),
    ],
)
def test_values_are_shown_with_the_digits_that_differ(got, expected, message):
    got, expected = torch.tensor(got).double(), torch.tensor(expected).double()
    with pytest.raises(Mistake, match=message):
        Check(reference=lambda: expected, cases=[()], mistakes={}, praise="", rtol=1e-9, atol=0)(got)


def test_jupyter_shows_the_message_without_a_traceback(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.run_cell("from clay_lib.course import checks")
    shell.run_cell("def answer(x, w, b):\n    rows = x.flatten()\n    return rows.nothing\n")
    result = shell.run_cell("checks.check_tokens(answer)")
    shown = capsys.readouterr().out
    assert isinstance(result.error_in_exec, Mistake), "so that a run stops there"
    assert "Traceback" not in shown and "engine.py" not in shown
    assert re.search(r"^Not yet\. Your function stops in line 3 of its cell, `return rows\.nothing`", shown)
