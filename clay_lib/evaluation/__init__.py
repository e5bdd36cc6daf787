"""Scores of frozen embeddings: baselines, probes, intervals, transfer to real images, ablations."""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {})
