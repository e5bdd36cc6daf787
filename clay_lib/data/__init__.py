"""Images in, chips out.

Any image (array, xarray, raster file or folder) is opened by `open_image` or `read_scene`, which decide which band is
which, which pixels were measured, in which units, where and when; `check_image` compares it to its sensor. Labeled sets,
chips of the synthetic Earth, splits without spatial leakage, chip stores and teacher targets are built on that.
"""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "label_files": "class_folders points_on_scene raster_pairs segmentation_sets",
        "chips": "Chips world_chips",
        "check": "Inspection check_image inspect_image",
        "images": "open_image",
        "labels": "IGNORE world_set",
        "georeference": "coarser",
        "rasters": "write_raster",
        "scenes": "crop cut_chips open_scene read_scene",
        "splits": "random_split spatial_blocks split_by_blocks",
        "store": "ChipStore write_chips",
    },
)
