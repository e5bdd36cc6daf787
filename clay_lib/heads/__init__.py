"""Heads on the encoder: fine-tuning, prediction on rasters, export to other runtimes."""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {})
