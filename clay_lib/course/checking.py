"""How a check of an exercise looks at an answer and what it says: a mistake in words, or one line of praise.

A check compares the learner's answer with the right one and, where it differs, with what typical slips would have
given: the slip that fits names the mistake. All inputs are small and fixed, so the same answer gets the same words.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor


class Mistake(AssertionError):
    """What is wrong with an answer, in words for the learner. Jupyter shows the words alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet. {self}"]


def right(what: str) -> None:
    """The one line of a check that was passed."""
    print(f"Right. {what}")


def require(fine: bool, mistake: str) -> None:
    """Mistake unless fine."""
    if not fine:
        raise Mistake(mistake)


def attempt(fn: Callable, *args, **options):
    """What the learner's function makes of copies of the arguments.

    Told as a Mistake: not a function, stopped with an error (with the learner's own line), nothing returned, an
    argument changed in place.
    """
    require(fn is not ..., "There is nothing here yet: write your lines in place of the dots.")
    require(
        callable(fn),
        f"The check wants the function itself and got {_kind(fn)}: pass its name without brackets, as in check(my_function).",
    )
    given, kept = [_copy(a) for a in args], [_copy(a) for a in args]
    try:
        got = fn(*given, **{name: _copy(value) for name, value in options.items()})
    except NotImplementedError:
        raise Mistake("There is nothing here yet: write your lines in place of the dots.") from None
    except Exception as error:
        raise Mistake(_told(fn, error)) from error
    require(
        got is not None and got is not ...,
        "Your function returns nothing yet: it has to end with `return` and the result, indented like its other lines.",
    )
    for number, (before, after) in enumerate(zip(kept, given, strict=True), start=1):
        if isinstance(before, (Tensor, np.ndarray)):
            one, other = (a.detach().numpy() if isinstance(a, Tensor) else a for a in (before, after))
            same = one.shape == other.shape and np.array_equal(one, other, equal_nan=True)
            copy = "clone" if isinstance(before, Tensor) else "copy"
            require(same, f"Your function changes its argument number {number}: work on a copy, `x = x.{copy}()`.")
    return got


def value(answer, kind: type = float):
    """The learner's answer as one int or float; tensors, arrays and series of one number count as the number, 3.0 as 3."""
    require(answer is not ..., "There is nothing here yet: write your answer in place of the dots.")
    require(answer is not None, "There is nothing here: the answer is None.")
    wanted = {int: "A whole number", float: "A number"}[kind]
    if hasattr(answer, "__array__"):
        shape = tuple(answer.shape)
        require(
            int(np.prod(shape)) == 1, f"{wanted} is wanted, and this is {_kind(answer)} of the shape {list(shape)}."
        )
        answer = answer.item()
    fits = isinstance(answer, (int, float)) and not isinstance(answer, bool)
    require(fits, f"{wanted} is wanted, not {_kind(answer)}.")
    if kind is int and isinstance(answer, float):
        require(answer.is_integer(), f"{wanted} is wanted, not {answer}.")
    return kind(answer)


def compare(
    got,
    wanted,
    *,
    slips: Mapping[str, object] | None = None,
    axes: str = "",
    rtol: float = 1e-4,
    atol: float = 1e-5,
    what: str = "the values",
) -> None:
    """Mistake unless `got` equals `wanted` [any shape] within the tolerances.

    slips: {mistake in words: what this slip would have given, a tensor or number}, tried in order.
    axes: the meaning of the axes of `wanted`, such as "B L D", for the message about a wrong shape.
    """
    wanted = torch.as_tensor(wanted)
    got = as_tensor(got)
    if wanted.ndim == 0 and got.numel() == 1:
        got = got.reshape(())
    if _close(got, wanted, rtol, atol):
        return
    for mistake, slipped in (slips or {}).items():
        if _close(got, torch.as_tensor(slipped), rtol, atol):
            raise Mistake(mistake)
    expect_shape(got, wanted.shape, axes)
    raise Mistake(_difference(got, wanted, what, rtol, atol))


def as_tensor(answer) -> Tensor:
    """Tensors, arrays, numbers and lists of numbers as a tensor; anything else is a Mistake."""
    require(answer is not ..., "There is nothing here yet: write your lines in place of the dots.")
    require(answer is not None, "There is nothing here: the answer is None.")
    try:
        if hasattr(answer, "__array__") and not isinstance(answer, Tensor):
            answer = np.array(answer)  # of series and the like too, and a copy: torch refuses x[::-1]
        answer = torch.as_tensor(answer).detach()
    except (TypeError, ValueError, RuntimeError):
        if isinstance(answer, (list, tuple)) and answer and all(isinstance(a, Tensor) for a in answer):
            shapes = ", ".join(str(tuple(a.shape)) for a in answer[:3])
            raise Mistake(
                f"A tensor is wanted, not {_kind(answer)} of {len(answer)} tensors ({shapes}): torch.stack or torch.cat joins them."
            ) from None
        raise Mistake(f"A tensor of numbers is wanted, not {_kind(answer)}.") from None
    if answer.is_complex():  # np.linalg.eig may give such, with nothing imaginary in them
        require(bool((answer.imag.abs() < 1e-9).all()), "These are complex numbers; real ones are wanted.")
        answer = answer.real
    return answer


def expect_shape(got: Tensor, shape, axes: str = "") -> None:
    """Mistake unless got has this shape; names axes in a wrong order, missing and added ones."""
    got_shape, shape = tuple(got.shape), tuple(shape)
    if got_shape == shape:
        return
    meaning = f" ({axes})" if axes else ""
    found = f"The shape is {list(got_shape)}, wanted is {list(shape)}{meaning}: "
    if sorted(got_shape) == sorted(shape):
        raise Mistake(found + "the axes are in another order.")
    if tuple(n for n in got_shape if n != 1) == tuple(n for n in shape if n != 1):
        raise Mistake(found + "an axis of length 1 is too many or missing.")
    if got.numel() == int(np.prod(shape)):
        how = "laid out differently" if len(got_shape) == len(shape) else f"on {len(got_shape)} axes, not {len(shape)}"
        raise Mistake(found + f"all numbers are there, but {how}.")
    if len(got_shape) < len(shape):
        raise Mistake(found + f"{len(shape) - len(got_shape)} axis too few; was one summed over or dropped?")
    if len(got_shape) > len(shape):
        raise Mistake(found + f"{len(got_shape) - len(shape)} axis too many; is one still to be summed over?")
    names = axes.split() or [f"axis {i}" for i in range(len(shape))]
    wrong = [f"{n} is {a} instead of {b}" for n, a, b in zip(names, got_shape, shape, strict=False) if a != b]
    raise Mistake(found + ", ".join(wrong) + ".")


# ---- words


def _difference(got: Tensor, wanted: Tensor, what: str, rtol: float, atol: float) -> str:
    a, b = got.double(), wanted.double()
    if not a.isfinite().all() and b.isfinite().all():
        if a.numel() == 1:
            return f"This is {a.item()}, not a finite number: a division by zero?"
        return f"The shape is right, but {int((~a.isfinite()).sum())} of {a.numel()} numbers are not finite: a division by zero?"
    if b.numel() == 1:
        mine, right_one = _apart(got.flatten()[0], wanted.flatten()[0])
        return f"This is {mine}; {what} should be {right_one}."
    if (
        b.numel() > 2 and b.max() > b.min()
    ):  # any two numbers are each other's multiple, and fewer than three say little
        factor = ((a * b).sum() / (b * b).sum()).item()
        times = f"{factor:.4g}"
        if abs(factor) > 1e-6 and times != "1" and _close(a, factor * b, max(rtol, 1e-6), atol):
            return f"The shape is right, but all of {what} are {times} times what they should be: a unit, a sign or a factor."
        shift = (a - b).mean().item()
        if _close(a - shift, b, rtol, max(atol, min(1e-3 * abs(shift), 1e-2 * b.std().item()))):
            return f"The shape is right, but all of {what} are off by {shift:+.4g}: something is added that should not be, or left out."
    off = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    place = tuple(off.nonzero()[0].tolist())
    mine, right_one = _apart(got[place], wanted[place])
    return (
        f"The shape is right, but {what} differ in {int(off.sum())} of {off.numel()} places; "
        f"first at {list(place)}: yours {mine}, wanted {right_one}."
    )


def _told(fn: Callable, error: Exception) -> str:
    """The learner's own line that an exception passed through, and the exception's words."""
    code = getattr(fn, "__code__", None)
    line, traceback = None, error.__traceback__
    while traceback:
        if code and traceback.tb_frame.f_code.co_filename == code.co_filename:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    words = str(error).strip().split("\n")[0] or "no more is said"
    if line is None:
        return f"Your function cannot be called as the exercise asks: {words}"
    text = linecache.getline(code.co_filename, line).strip()
    shown = f", `{text}`" if text else ""
    return f"Your function stops in line {line} of its cell{shown}, with {type(error).__name__}: {words}"


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    if a.shape != b.shape:
        return False
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)


def _copy(value):
    return value.clone() if isinstance(value, Tensor) else value.copy() if isinstance(value, np.ndarray) else value


def _apart(a: Tensor, b: Tensor) -> tuple[str, str]:
    """Two numbers in words, with as many digits as it takes to tell them apart, at least four."""
    for digits in (4, 6, 9, 17):
        words = [f"{v.item():.{digits}g}" if v.is_floating_point() else str(v.item()) for v in (a, b)]
        if words[0] != words[1]:
            break
    return words[0], words[1]


def _kind(answer) -> str:
    name = type(answer).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
