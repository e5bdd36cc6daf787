"""Checks of notebooks 01 to 03: wrong answers beside the common mistakes, which test_checks.py tries."""

import pytest
import torch

from clay_lib.course import checks
from clay_lib.course.checks import Mistake
from clay_lib.course.checks.model import band_parts, grid_code


def at_most(draw, ratio):  # with ratio 0 the threshold is the last draw
    return (draw <= draw.sort(1).values[:, [int(ratio * draw.shape[1]) - 1]]).float()


def below_quantile(draw, ratio):  # which hides the right number of 11 patches, but not of 13
    return (draw < draw.quantile(ratio, dim=1, keepdim=True)).float()


WAVES = [0.450, 0.550, 0.660, 0.845]
WRONG = {
    "one band forgotten": (checks.check_wavelengths, WAVES, "C is 4 instead of 5"),
    "bands after patches": (checks.check_band_parts, lambda *a: band_parts(*a).transpose(1, 2), "another order"),
    "three numbers": (checks.check_week_code, lambda date: torch.zeros(3), r"\[3\], expected \[2\] \(sin|cos\)"),
    "a square": (checks.check_grid_code, lambda h, w, f: grid_code(3, 3, f), "L is 9 instead of 12"),
    "a length as float": (checks.check_sequence_length, lambda H, W, P, r: H * W / P**2 * (1 - r), "A whole number"),
    "all for ratio 0": (checks.check_mask, at_most, "With ratio 0 no patch is hidden"),
    "a quantile": (checks.check_mask, below_quantile, "quantiles may not"),
    "ranks of 11": (checks.check_mask, lambda d, r: (d.argsort(1) < int(r * 11)).float(), "not the rank of each"),
    "numbers of patches": (checks.check_mask, lambda d, r: d.argsort(1)[:, : int(r * 11)], "L is 6 instead of 11"),
    "visible tokens only": (checks.check_put_back, lambda t, v, m, L: t, "L is 3 instead of 7"),
}


@pytest.mark.parametrize(("check", "answer", "message"), WRONG.values(), ids=WRONG)
def test_mistake_is_named(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)
