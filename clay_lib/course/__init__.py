"""Exercises, their checks, interactive widgets and the workshop kit."""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {})
