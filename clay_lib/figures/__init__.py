"""Figures and maps: arrays in, matplotlib Figure or leafmap Map out."""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {})
