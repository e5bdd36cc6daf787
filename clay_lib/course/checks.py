"""The checks of all exercises, by name: `checks.check_tokens(my_function)` says what to mend, or one line if all is well.

How a check looks and speaks is in checking.py, the checks are in a file for each topic.
"""

from clay_lib.course.checking import Mistake
from clay_lib.course.checks_areas import check_blend, check_search, check_tile_of
from clay_lib.course.checks_bytes import check_bits, check_differing, check_rounded, check_variance_kept
from clay_lib.course.checks_embedding import check_band_parts, check_tokens, check_wavelengths
from clay_lib.course.checks_heads import check_block_rates, check_mean_iou, check_resized
from clay_lib.course.checks_looking import check_most_alike, check_patch_mean, check_three_colours
from clay_lib.course.checks_maps import check_image_of_rows, check_patch_transform, check_plain_guess
from clay_lib.course.checks_masking import check_mask, check_put_back, check_sequence_length
from clay_lib.course.checks_metadata import check_luck, check_moved, check_place_codes
from clay_lib.course.checks_position import check_grid_code, check_same_place, check_week_code
from clay_lib.course.checks_probing import check_interval, check_split, check_vote
from clay_lib.course.checks_sweeps import check_paired, check_seed_intervals, check_unbeaten
from clay_lib.course.checks_training import check_agreement, check_masked_error, check_rate

__all__ = [
    "Mistake",
    "check_agreement",
    "check_band_parts",
    "check_bits",
    "check_blend",
    "check_block_rates",
    "check_differing",
    "check_grid_code",
    "check_image_of_rows",
    "check_interval",
    "check_luck",
    "check_mask",
    "check_masked_error",
    "check_mean_iou",
    "check_most_alike",
    "check_moved",
    "check_paired",
    "check_patch_mean",
    "check_patch_transform",
    "check_place_codes",
    "check_plain_guess",
    "check_put_back",
    "check_rate",
    "check_resized",
    "check_rounded",
    "check_same_place",
    "check_search",
    "check_seed_intervals",
    "check_sequence_length",
    "check_split",
    "check_three_colours",
    "check_tile_of",
    "check_tokens",
    "check_unbeaten",
    "check_variance_kept",
    "check_vote",
    "check_wavelengths",
    "check_week_code",
]
