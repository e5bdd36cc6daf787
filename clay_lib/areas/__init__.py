"""From a place and dates to vectors and maps: archives, reading, embedding, rasters, search."""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"area": "embed_area"})
