"""Images in, chips out: readers for any image, the contract check, labels, chip stores and teacher targets."""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "chips": "Chips world_chips",
        "check": "check_image",
        "images": "open_image",
        "labels": "class_folders points_on_scene raster_pairs world_set",
        "rasters": "coarser read_scene write_raster",
        "scenes": "crop cut_chips open_scene",
        "splits": "random_split spatial_blocks split_by_blocks",
        "store": "ChipStore write_chips",
    },
)
