"""Engine of the exercise checks: run an answer, compare it with the reference, and name the common mistake it makes."""

from __future__ import annotations

import copy
import inspect
import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

NOTHING_YET = "There is nothing here yet: write your lines in place of the dots."


class Mistake(AssertionError):
    """What is wrong with an answer and how to fix it. Jupyter shows the message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet. {self}"]


def require(holds: bool, mistake: str) -> None:
    """Mistake unless the condition holds."""
    if not holds:
        raise Mistake(mistake)


def as_tensor(answer) -> Tensor:
    """Tensors, arrays, numbers and lists of numbers as a tensor; Mistake for anything else."""
    require(answer is not ..., NOTHING_YET)
    require(answer is not None, "There is nothing here: the answer is None.")
    try:
        if hasattr(answer, "__array__") and not isinstance(answer, Tensor):
            answer = np.array(answer)  # a series too; a copy, since torch refuses views such as x[::-1]
        answer = torch.as_tensor(answer).detach()
    except (TypeError, ValueError, RuntimeError):
        if isinstance(answer, (list, tuple)) and answer and all(isinstance(a, Tensor) for a in answer):
            shapes = ", ".join(str(tuple(a.shape)) for a in answer[:3])
            found = f"{_kind(answer)} of {len(answer)} tensors ({shapes}): torch.stack or torch.cat joins them"
            raise Mistake(f"A tensor is expected, not {found}.") from None
        raise Mistake(f"A tensor of numbers is expected, not {_kind(answer)}.") from None
    if answer.is_complex():  # np.linalg.eig returns complex numbers with no imaginary part
        require(bool((answer.imag.abs() < 1e-9).all()), "These are complex numbers; real ones are expected.")
        answer = answer.real
    return answer


def number(answer) -> Tensor:
    """One number as a tensor []; tensors, arrays and series of one number count as the number."""
    value = as_tensor(answer)
    require(value.numel() == 1, f"One number is expected; this has the shape {list(value.shape)}.")
    require(value.dtype != torch.bool, "A number is expected, not a bool.")
    return value.double().reshape(())


def whole_number(answer) -> Tensor:
    """One whole number as a tensor []; 3.0 counts as 3."""
    value = number(answer)
    require(value == value.round(), f"A whole number is expected, not {value.item()}.")
    return value


def normal(seed: int, *shape: int) -> Tensor:
    """The same standard normal numbers every time, a tensor of this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """The check of one exercise: what a right answer does, and what to say about the wrong ones. Call it with the answer.

    An answer is right if it equals the reference on every case and every edge case, and follows the rules. If it does
    not, the first common mistake that gives the same result names what to fix; then come hints, then the difference.
    """

    reference: Callable  # the solution; its keyword-only options introduce common mistakes
    cases: Sequence[tuple] | Callable[[], Sequence[tuple]]  # arguments to try; an empty tuple: the answer is a value
    mistakes: Mapping[str, object]  # {what to fix: options of the reference, a wrong function, or a list of these}
    praise: str  # printed when the answer is right
    edge_cases: Mapping[str, tuple] = field(default_factory=dict)  # {what to fix: arguments where only this goes wrong}
    hints: Mapping[str, Callable] = field(default_factory=dict)  # {what to fix: test of (answer, expected)}
    rules: Callable[[Callable], Iterator[tuple[bool, str]]] | None = None  # answer -> pairs (does it hold, what to fix)
    read: Callable[[object], Tensor] = as_tensor  # what the answer returned -> the tensor that is compared
    axes: str = ""  # meaning of the expected axes, such as "B L D"
    quantity: str = "the values"  # as messages name what is compared
    rtol: float = 1e-4
    atol: float = 1e-5
    equal: Callable[[Tensor, Tensor], bool] | None = None  # instead of equality within the tolerances

    def __call__(self, answer) -> None:
        """Raise the Mistake of a wrong answer, or print one line of praise."""
        cases = self.cases() if callable(self.cases) else self.cases
        results = [self._result(answer, case) for case in cases]
        expected = [self.expected(case) for case in cases]
        wrong = [i for i, pair in enumerate(zip(results, expected, strict=True)) if not self._equal(*pair)]
        if wrong:
            raise Mistake(self._diagnosis(cases, results, wrong[0], expected[wrong[0]]))
        for note, case in self.edge_cases.items():
            try:
                result, target = self._result(answer, case), self.expected(case)
                require(self._equal(result, target), self._difference(result, target))
            except Mistake as mistake:
                raise Mistake(f"{note} ({_described(self.reference, case)}: {mistake})") from None
        for holds, mistake in self.rules(answer) if self.rules else ():
            require(holds, mistake)
        print(f"Right. {self.praise}")

    def expected(self, case: tuple, mistake: object = None) -> Tensor:
        """What the reference returns, or a common mistake, one of `mistakes`' values."""
        return self.read((mistake if callable(mistake) else partial(self.reference, **(mistake or {})))(*case))

    def _result(self, answer, case: tuple) -> Tensor:
        return self.read(attempt(answer, *case) if case else answer)

    def _equal(self, a: Tensor, b: Tensor) -> bool:
        if a.numel() == b.numel() == 1:
            a, b = a.reshape(()), b.reshape(())
        return a.shape == b.shape and (self.equal or partial(_close, rtol=self.rtol, atol=self.atol))(a, b)

    def _diagnosis(self, cases: Sequence[tuple], results: list[Tensor], first: int, expected: Tensor) -> str:
        """What to fix, from the first case that went wrong."""
        fits = {}  # {message: number of cases in which the mistake gives what the answer gave}
        for message, variants in self.mistakes.items():
            for variant in variants if isinstance(variants, list) else [variants]:
                if self._equal(results[first], self.expected(cases[first], variant)):
                    same = [self._equal(r, self.expected(c, variant)) for c, r in zip(cases, results, strict=True)]
                    if all(same) or expected.ndim:  # a single number may agree by accident
                        fits[message] = max(sum(same), fits.get(message, 0))
        if fits:
            return max(fits, key=fits.get)
        for message, applies in self.hints.items():
            if results[first].shape == expected.shape and applies(results[first], expected):
                return message
        text = self._difference(results[first], expected)
        return text if len(cases) == 1 else f"{text} (Tried with {_described(self.reference, cases[first])}.)"

    def _difference(self, got: Tensor, expected: Tensor) -> str:
        if expected.ndim == 0 and got.numel() == 1:
            got = got.reshape(())
        if got.shape != expected.shape:
            return shape_difference(got.shape, expected.shape, self.axes)
        return value_difference(got, expected, self.quantity, self.rtol, self.atol)


def attempt(fn: Callable, *args):
    """What the learner's function returns for copies of the arguments.

    Mistakes: not a function, stopped with an error (with the learner's own line), nothing returned, an argument
    changed in place.
    """
    require(fn is not ..., NOTHING_YET)
    hint = "pass its name without brackets, as in check(my_function)"
    require(callable(fn), f"The check needs the function itself, not {_kind(fn)}: {hint}.")
    passed = copy.deepcopy(args)
    try:
        result = fn(*passed)
    except NotImplementedError:
        raise Mistake(NOTHING_YET) from None
    except Exception as error:
        raise Mistake(_stopped(fn, error)) from error
    require(
        result is not None and result is not ...,
        "Your function returns nothing yet: end it with `return` and the result, indented like its other lines.",
    )
    for position, (before, after) in enumerate(zip(args, passed, strict=True), start=1):
        if isinstance(before, (Tensor, np.ndarray)):
            old, new = (np.asarray(a.detach() if isinstance(a, Tensor) else a) for a in (before, after))
            same = old.shape == new.shape and np.array_equal(old, new, equal_nan=True)
            method = "clone" if isinstance(before, Tensor) else "copy"
            require(same, f"Your function changes its argument number {position}: work on a copy, `x = x.{method}()`.")
    return result


# ---- messages


def shape_difference(got: Sequence[int], expected: Sequence[int], axes: str = "") -> str:
    """How a wrong shape differs: axes in another order, missing, added, or of another length."""
    got, expected = tuple(got), tuple(expected)
    found = f"The shape is {list(got)}, expected {list(expected)}{f' ({axes})' if axes else ''}: "
    if sorted(got) == sorted(expected):
        return found + "the axes are in another order."
    if tuple(n for n in got if n != 1) == tuple(n for n in expected if n != 1):
        return found + "an axis of length 1 is too many or missing."
    if len(got) != len(expected):
        return found + f"{len(got)} axes, not {len(expected)}; is one to be summed over, kept or joined with another?"
    names = axes.split() or [f"axis {i}" for i in range(len(expected))]
    axes = zip(names, got, expected, strict=False)
    return found + ", ".join(f"{n} is {a} instead of {b}" for n, a, b in axes if a != b) + "."


def value_difference(got: Tensor, expected: Tensor, quantity: str, rtol: float, atol: float) -> str:
    """How values of the right shape differ: not finite, a constant factor or shift, or the first place that differs."""
    a, b = got.double(), expected.double()
    if not a.isfinite().all() and b.isfinite().all():
        return f"{int((~a.isfinite()).sum())} of {a.numel()} numbers are not finite: a division by zero?"
    if b.numel() == 1:
        yours, right = _digits(got.flatten()[0], expected.flatten()[0])
        return f"This is {yours}; {quantity} should be {right}."
    if b.numel() > 2 and b.max() > b.min():  # any two numbers are a multiple of each other
        factor = ((a * b).sum() / (b * b).sum()).item()
        if abs(factor) > 1e-6 and f"{factor:.4g}" != "1" and _close(a, factor * b, max(rtol, 1e-6), atol):
            return f"The shape is right, but {quantity} are {factor:.4g} times what they should be: a unit, a sign or a factor."
        shift = (a - b).mean().item()
        if _close(a - shift, b, rtol, max(atol, min(1e-3 * abs(shift), 1e-2 * b.std().item()))):
            return f"The shape is right, but {quantity} are off by {shift:+.4g}: a term too many, or one left out."
    off = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    place = tuple(off.nonzero()[0].tolist()) if off.any() else (0,) * off.ndim
    yours, right = _digits(got[place], expected[place])
    count = f"{int(off.sum())} of {off.numel()} places; first at {list(place)}"
    return f"The shape is right, but {quantity} differ in {count}: yours {yours}, expected {right}."


def _stopped(fn: Callable, error: Exception) -> str:
    """The learner's own line that an exception passed through, and the exception's message."""
    code = getattr(fn, "__code__", None)
    line, traceback = None, error.__traceback__
    while traceback:
        if code and traceback.tb_frame.f_code.co_filename == code.co_filename:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    message = str(error).strip().split("\n")[0] or "no message"
    if line is None:
        return f"Your function cannot be called as in the exercise: {message}"
    text = linecache.getline(code.co_filename, line).strip()
    shown = f", `{text}`" if text else ""
    return f"Your function stops in line {line} of its cell{shown}, with {type(error).__name__}: {message}"


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)


def _digits(a: Tensor, b: Tensor) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart, at least four."""
    for digits in (4, 6, 9, 17):
        texts = [f"{v.item():.{digits}g}" if v.is_floating_point() else str(v.item()) for v in (a, b)]
        if texts[0] != texts[1]:
            break
    return texts[0], texts[1]


def _described(reference: Callable, case: tuple) -> str:
    """The arguments of a case in short: numbers as they are, tensors and arrays by their shape."""
    names = inspect.signature(reference).parameters
    values = [list(v.shape) if hasattr(v, "shape") else v for v in case]
    return ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=False))


def _kind(answer) -> str:
    name = type(answer).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
