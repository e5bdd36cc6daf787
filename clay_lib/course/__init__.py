"""Course: interactive widgets, exercises and their checks, and the kit for a workshop without a network.

`from clay_lib.course import checks` in an exercise; `playground`, `wavelength_slider` and `chip_map.chip_map` are the
last line of a cell.
"""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "widgets": "playground wavelength_slider",
        "chip_map": "ChipMap agreement neighbors refit scene_background show_map world_background write_map",
        "checks": "Check Mistake",
    },
)
