"""The checks of all exercises, by name: `checks.check_tokens(my_function)` says what to mend, or one line if all is well.

How a check looks and speaks is in checking.py, the checks are in a file for each topic.
"""

from clay_lib.checking import Mistake
from clay_lib.checks_embedding import check_band_parts, check_tokens, check_wavelengths

__all__ = [
    "Mistake",
    "check_band_parts",
    "check_tokens",
    "check_wavelengths",
]
