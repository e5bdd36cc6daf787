"""Engine of the exercise checks: run an answer, compare it with the reference, and name the common mistake it makes."""

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from traceback import extract_tb

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
            found = f"a {type(answer).__name__} of {len(answer)} tensors: torch.stack or torch.cat joins them"
            raise Mistake(f"A tensor is expected, not {found}.") from None
        raise Mistake(f"A tensor of numbers is expected, not a {type(answer).__name__}.") from None
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


@dataclass(frozen=True, eq=False)
class Check:
    """The check of one exercise: what a right answer does, and what to say about the wrong ones. Call it with the answer.

    An answer is right if it equals the reference on every case and every edge case, and follows the rule. If it does
    not, the common mistake that gives the same results names what to fix, or else the difference is described.
    """

    reference: Callable  # the solution; its docstring ends with the shape of the result, as in "-> tokens [B, L, D]"
    cases: Sequence[tuple]  # arguments to try; an empty tuple: the answer is a value
    mistakes: Mapping[str, object]  # {what to fix: (code of the reference, wrong code), a wrong function, or a list}
    praise: str  # printed when the answer is right
    edge_cases: Mapping[str, tuple] = field(default_factory=dict)  # {what to fix: arguments where only this goes wrong}
    rule: Callable[[Callable], None] = lambda answer: None  # raises the Mistake of an answer whose results are right
    read: Callable[[object], Tensor] = as_tensor  # what the answer returned -> the tensor that is compared
    rtol: float = 1e-4
    atol: float = 1e-5

    def __call__(self, answer) -> None:
        """Raise the Mistake of a wrong answer, or print one line of praise."""
        results = [self.read(attempt(answer, *case) if case else answer) for case in self.cases]
        for case, result in zip(self.cases, results, strict=True):
            if not self._equal(result, self.read(self.reference(*case))):
                raise Mistake(self._common_mistake(results) or self._difference(result, case))
        for note, case in self.edge_cases.items():
            try:
                result = self.read(attempt(answer, *case))
                if not self._equal(result, self.read(self.reference(*case))):
                    raise Mistake(self._difference(result, case))
            except Mistake as mistake:
                raise Mistake(f"{note}. {mistake}") from None
        self.rule(answer)
        print(f"Right. {self.praise}")

    def wrong_answers(self) -> Iterator[tuple[str, Callable]]:
        """(What to fix, a function with this mistake) for each common mistake: the reference with some code replaced."""
        for message, variants in self.mistakes.items():
            for variant in variants if isinstance(variants, list) else [variants]:
                yield message, variant if callable(variant) else self._edited(*variant)

    def _edited(self, right: str, wrong: str) -> Callable:
        """The reference with some of its code replaced."""
        _, code = inspect.getsource(self.reference).split("\ndef ", 1)
        scope = dict(self.reference.__globals__)
        exec(f"def {code}".replace(right, wrong), scope)
        return scope[self.reference.__name__]

    def _common_mistake(self, results: list[Tensor]) -> str | None:
        for message, wrong in self.wrong_answers():
            pairs = zip(results, self.cases, strict=True)
            if all(self._equal(result, self.read(wrong(*case))) for result, case in pairs):
                return message

    def _equal(self, a: Tensor, b: Tensor) -> bool:
        if a.numel() == b.numel() == 1:
            a, b = a.reshape(()), b.reshape(())
        return a.shape == b.shape and _close(a, b, self.rtol, self.atol)

    def _difference(self, got: Tensor, case: tuple) -> str:
        expected = self.read(self.reference(*case))
        axes = re.search(r"-> .*?\[(.*?)\]", self.reference.__doc__ or "")
        if expected.ndim == 0 and got.numel() == 1:
            got = got.reshape(())
        if got.shape != expected.shape:
            return shape_difference(got.shape, expected.shape, axes[1] if axes else "")
        text = value_difference(got, expected, self.rtol, self.atol)
        if not self.cases[1:] and not self.edge_cases:
            return text
        values = [list(value.shape) if hasattr(value, "shape") else value for value in case]
        names = inspect.signature(self.reference).parameters
        return f"{text} (Tried with {', '.join(f'{n} = {v}' for n, v in zip(names, values, strict=True))}.)"


def check(**parts) -> Callable[[Callable], Check]:
    """Decorator that makes the check of an exercise from its reference solution; parts: the fields of Check."""
    return partial(Check, **parts)


def attempt(fn: Callable, *args):
    """What the learner's function returns for copies of the arguments.

    Mistakes: not a function, stopped with an error (with the learner's own line), nothing returned, an argument
    changed in place.
    """
    require(fn is not ..., NOTHING_YET)
    hint = "pass its name without brackets, as in check(my_function)"
    require(callable(fn), f"The check needs the function itself, not a {type(fn).__name__}: {hint}.")
    passed = copy.deepcopy(args)
    try:
        result = fn(*passed)
    except NotImplementedError:
        raise Mistake(NOTHING_YET) from None
    except Exception as error:
        raise Mistake(_stopped(fn, error)) from error
    hint = "end it with `return` and the result, indented like its other lines"
    require(result is not None and result is not ..., f"Your function returns nothing yet: {hint}.")
    for position, (before, after) in enumerate(zip(args, passed, strict=True), start=1):
        if isinstance(before, (Tensor, np.ndarray)):
            same = np.array_equal(as_tensor(before), as_tensor(after), equal_nan=True)
            method = "clone" if isinstance(before, Tensor) else "copy"
            require(same, f"Your function changes its argument number {position}: work on a copy, `x = x.{method}()`.")
    return result


def shape_difference(got: Sequence[int], expected: Sequence[int], axes: str = "") -> str:
    """How a wrong shape differs: axes in another order, missing, added, or of another length. axes: "B, L, D"."""
    got, expected = tuple(got), tuple(expected)
    found = f"The shape is {list(got)}, expected {list(expected)}{f' ({axes})' if axes else ''}: "
    if sorted(got) == sorted(expected):
        return found + "the axes are in another order."
    if tuple(n for n in got if n != 1) == tuple(n for n in expected if n != 1):
        return found + "there is an axis of length 1 too many or too few."
    if len(got) != len(expected):
        return found + f"{len(got)} axes, not {len(expected)}; is one to be summed over, kept or joined with another?"
    lengths = zip(axes.split(", ") if axes else range(len(got)), got, expected, strict=True)
    return found + ", ".join(f"{name} is {a} instead of {b}" for name, a, b in lengths if a != b) + "."


def value_difference(got: Tensor, expected: Tensor, rtol: float, atol: float) -> str:
    """How values of the right shape differ: not finite, a constant factor or shift, or the first place that differs."""
    a, b = got.double(), expected.double()
    if not a.isfinite().all() and b.isfinite().all():
        return f"{int((~a.isfinite()).sum())} of {a.numel()} numbers are not finite: a division by zero?"
    if b.numel() == 1:
        return "This is {}; it should be {}.".format(*_digits(got.flatten()[0], expected.flatten()[0]))
    if b.numel() > 2 and b.max() > b.min():  # any two numbers are a multiple of each other
        factor = ((a * b).sum() / (b * b).sum()).item()
        if abs(factor) > 1e-6 and f"{factor:.4g}" != "1" and _close(a, factor * b, max(rtol, 1e-6), atol):
            return f"The shape is right, but the values are {factor:.4g} times what they should be: a unit, a sign or a factor."
        shift = (a - b).mean().item()
        if _close(a - shift, b, rtol, max(atol, min(1e-3 * abs(shift), 1e-2 * b.std().item()))):
            return f"The shape is right, but the values are off by {shift:+.4g}: a term too many, or one left out."
    off = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    place = tuple(off.nonzero()[0].tolist())
    yours, right = _digits(got[place], expected[place])
    count = f"{int(off.sum())} of {off.numel()} places; first at {list(place)}"
    return f"The shape is right, but the values differ in {count}: yours {yours}, expected {right}."


def _stopped(fn: Callable, error: Exception) -> str:
    """The learner's own line that an exception passed through, and the exception's message."""
    code, message = getattr(fn, "__code__", None), str(error).strip().split("\n")[0] or "no message"
    own = [frame for frame in extract_tb(error.__traceback__) if code and frame.filename == code.co_filename]
    if not own:
        return f"Your function cannot be called as in the exercise: {message}"
    shown = f", `{own[-1].line}`" if own[-1].line else ""
    return f"Your function stops in line {own[-1].lineno} of its cell{shown}, with {type(error).__name__}: {message}"


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)


def _digits(a: Tensor, b: Tensor) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart, at least four."""
    for digits in (4, 6, 9, 17):
        texts = [f"{v.item():.{digits}g}" if v.is_floating_point() else str(v.item()) for v in (a, b)]
        if texts[0] != texts[1]:
            break
    return texts[0], texts[1]
