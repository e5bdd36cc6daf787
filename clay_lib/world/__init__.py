"""The synthetic Earth: land, surface and spectra of any place, as each sensor would record it."""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"earth": "MiniWorld Place"})
