"""ContractError for wrong input, warnings at the caller's line, and checks of numbers."""

import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, get_args, get_type_hints


class ContractError(ValueError):
    """Wrong input: what was found, what was expected, and the likely cause.

    field: the name of the wrong value as the caller knows it ("pixels", "waves", "when", a path).
    found, expected: with shapes and units.
    cause: the likely mistake, and its fix.
    """

    def __init__(self, field: str, found: object, expected: object, cause: str):
        self.field, self.found, self.expected, self.cause = field, found, expected, cause
        super().__init__(f"{field}: found {found}; expected {expected}. Likely cause: {cause}")

    def __reduce__(self):  # keeps the fields when a worker process returns the error
        return type(self), (self.field, self.found, self.expected, self.cause)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning reported at the caller's line, outside this library and torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("clay_lib", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def first_line(error: Exception) -> str:
    """The first line of another library's message, which may be long or empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def number(field: str, value: object) -> float:
    """A finite float from an int, a float or a NumPy or torch scalar; text, bools and NaN are refused."""
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        out = float(value)
    except (TypeError, ValueError, RuntimeError):
        found = f"{value!r} ({type(value).__name__})"
        raise ContractError(field, found, "one number", "text, a list or a missing value instead of a number") from None
    if not math.isfinite(out):
        raise ContractError(field, value, "a finite number", "a division by zero or a missing value upstream")
    return out


@dataclass(frozen=True)
class Range:
    """Limits of a number, both included, for an annotation: `share: Annotated[float, Range(0, 1)]`."""

    low: float
    high: float = math.inf


Share, Count, NonNegative = Annotated[float, Range(0, 1)], Annotated[int, Range(1)], Annotated[float, Range(0)]


def check_ranges(values: Mapping, owner: object, where: str = "") -> None:
    """Refuse numbers that are not finite or outside the Range in their annotation. None means not set.

    owner: the function or dataclass whose arguments the values are. In a tuple, list or mapping every item is checked.
    """
    for name, hint in get_type_hints(owner, include_extras=True).items():
        limits, value = _range_of(hint), values.get(name)
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else [value]
        for item in items if limits else ():
            if item is not None and not (math.isfinite(item) and limits.low <= item <= limits.high):
                expected = f"{limits.low} to {limits.high}" if math.isfinite(limits.high) else f"at least {limits.low}"
                raise ContractError(f"configuration: {where}{name}", value, expected, "a typing mistake")


def _range_of(hint: object) -> Range | None:
    if isinstance(hint, Range):
        return hint
    return next((limits for part in get_args(hint) if (limits := _range_of(part))), None)
