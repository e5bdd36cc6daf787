"""ContractError, raised for wrong input: what was found, what was expected, and the likely cause."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping

SHARE, COUNT, SOME = (0, 1), (1, math.inf), (0, math.inf)  # ranges of `check_ranges`


class ContractError(ValueError):
    """Data handed to the library cannot be what it claims to be.

    field: what is wrong, in the caller's words ("pixels", "waves", "when", a path).
    found, expected: the evidence and the rule, with shapes and units.
    cause: the likely mistake behind it, and the fix.
    """

    def __init__(self, field: str, found: object, expected: object, cause: str):
        self.field, self.found, self.expected, self.cause = field, found, expected, cause
        super().__init__(f"{field}: found {found}; expected {expected}. Likely cause: {cause}")

    def __reduce__(self):  # keeps the fields when a worker process hands the error back
        return ContractError, (self.field, self.found, self.expected, self.cause)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that names the caller's own line, however many of this library's and torch's lie between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("clay_lib", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def number(field: str, value: object) -> float:
    """A finite float from an int, a float or a NumPy or torch scalar; text, bools and NaN are refused."""
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        out = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ContractError(
            field,
            f"{value!r} ({type(value).__name__})",
            "one number",
            "a text, a list or a missing value stands where a number belongs",
        ) from None
    if out != out or out in (float("inf"), float("-inf")):
        raise ContractError(field, value, "a finite number", "a division by zero or a missing value upstream")
    return out


def check_ranges(given: Mapping, ranges: Mapping[str, tuple[float, float]], where: str = "") -> None:
    """Refuse numbers that are not finite or outside their range, to which both ends belong; None is as good as unsaid."""
    for name, (low, high) in ranges.items():
        value = given[name]
        each = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else [value]
        for one in each:
            if one is not None and not (math.isfinite(one) and low <= one <= high):
                raise ContractError(
                    f"configuration: {where}{name}",
                    value,
                    f"{low} to {high}" if math.isfinite(high) else f"a number, at least {low}",
                    "a slip of the pen",
                )
