"""Checks of the exercises: `checks.check_tokens(my_function)` says what to fix, or prints one line of praise.

Each check is data: a reference solution, the inputs that an answer is tried on, and the common mistakes, each as what to
fix and the change to the reference that makes this mistake. engine.py runs them; the checks are in model.py (notebooks
01 to 03), training.py (04, 05, 11), embeddings.py (06, 08, 12) and evaluation.py (07, 09, 10).
"""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "engine": "Check Mistake",
        "model": "check_wavelengths check_tokens check_band_parts check_same_place check_week_code check_grid_code "
        "check_sequence_length check_mask check_put_back",
        "training": "check_masked_error check_agreement check_rate check_patch_transform check_plain_guess "
        "check_image_of_rows check_block_rates check_mean_iou check_resized",
        "embeddings": "check_patch_mean check_most_similar check_three_colors check_tile_of check_search check_blend "
        "check_rounded check_variance_kept check_bits check_differing",
        "evaluation": "check_vote check_split check_interval check_seed_intervals check_unbeaten check_paired "
        "check_place_codes check_moved check_luck",
    },
)
