"""Headless notebooks: runs, sweeps, reports, the gallery, pretraining and benchmarks."""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {})
