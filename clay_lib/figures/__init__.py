"""Figures and maps: arrays in, a matplotlib Figure or a leafmap Map out.

style.py has the palette, matplotlib settings and pixels as RGB images; images.py rows of images, reconstructions and
points; charts.py bars, curves, kernels and matrices; maps.py rasters at their place, interactive or as a figure.
"""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "style": "PALETTE class_colors components_to_rgb rgb save styled",
        "images": "class_image class_legend reconstruction scatter scatter_thumbnails show_row",
        "charts": "against_bytes bars_with_intervals curves kernels matrix",
        "maps": "Layer show_on_map static_map",
    },
)
