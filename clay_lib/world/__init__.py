"""The mini-world, a synthetic Earth for work offline: land, weather and spectra of any place, imaged by every sensor.

`MiniWorld(seed).place(...)` picks a place of a land-cover class in a split, `.observe(...)` images it on a date, with
labels, clouds and leaf area; the same request always gives the same bits.
"""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"earth": "CLASSES CLASS_COLORS SPLITS Chip MiniWorld Place"})
