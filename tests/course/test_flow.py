"""Strips of the flow: those in git are those that the notebooks name."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clay_lib import ContractError
from clay_lib.course.flow import PLACES, draw_strip, strip_of
from clay_lib.figures.style import png
from clay_lib.runs.notebooks import NOTEBOOKS, list_notebooks


def drawn(steps):
    return np.asarray(Image.open(BytesIO(png(draw_strip(steps)))).convert("RGB"), float)


@pytest.mark.parametrize("script", list_notebooks(), ids=lambda script: script.stem)
def test_every_notebook_shows_where_it_stands(script):
    markdown, path, steps = strip_of(script)
    assert path == f"flow/{script.stem}.png" and script.with_suffix(".ipynb").read_text().count(markdown) == 1
    stored = np.asarray(Image.open(NOTEBOOKS / path).convert("RGB"), float)
    assert abs(stored - drawn(steps)).mean() < 1, "make exercises, and commit it"
    assert abs(stored - drawn(["image"] if steps != ["image"] else ["loss"])).mean() > 3, "another step is in color"


def test_a_misspelled_step_raises_and_all_steps_occur(tmp_path):
    assert set().union(*(strip_of(script)[2] for script in list_notebooks())) == set(PLACES)
    script = tmp_path / "01_tokens.py"
    script.write_text("# %% [markdown]\n# ![Where this notebook stands: stride](flow/01_tokens.png)\n")
    with pytest.raises(ContractError, match="stride"):
        strip_of(script)
