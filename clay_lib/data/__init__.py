"""Images in, chips out: readers for any image, the contract check, labels, chip stores and teacher targets."""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"images": "open_image", "check": "check_image", "chips": "Chips"})
