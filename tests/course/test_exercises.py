"""Exercise notebooks are generated from the notebooks, run alone, show no solution, and are what is in git."""

import contextlib
import io
import re

import nbformat
import pytest

from clay_lib import ContractError
from clay_lib.course import exercises
from clay_lib.course.checks import Mistake
from clay_lib.runs.notebooks import NOTEBOOKS, list_notebooks

SCRIPTS = [script for script in list_notebooks() if exercises.read_exercises(script)[1]]
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)

BRICKS = '''# %% [markdown]
# # 01 Bricks
#
# > **How many?**

# %%
import math
import torch, collections
from einops import rearrange, repeat

# %% tags=["given"]
WALL = torch.ones(2, 3)

# %% [markdown] tags=["exercise"]
# ### Exercise 1: count
# *Easy, 5 minutes*
#
# Count, as in [02](02_next.ipynb).
#
# **Hint.** One by one.
#
# **Hint.** With `numel`.

# %% tags=["solution"]
def count(wall):
    """wall [H, W] -> int."""
    # a reason
    return sum(1 for row in wall for _ in row)


area = count(WALL) * math.pi  # in cm2, µ

# %% tags=["check"]
assert count(WALL) == 6

# %% tags=["given"]
print(repeat(WALL, "h w -> h w c", c=2).shape)
'''


@pytest.fixture
def bricks(tmp_path):
    path = tmp_path / "01_bricks.py"
    path.write_text(BRICKS)
    return path


def test_stubs_hints_and_folded_solutions(bricks):
    notebook = exercises.exercise_notebook(bricks)
    nbformat.validate(notebook)
    cells = {c.id: c.source for c in notebook.cells}
    assert list(cells) == [
        "title", "imports", "given-1", "exercise-1", "exercise-1-1-solution", "exercise-1-2-check",
        "exercise-1-help", "exercise-1-3-given",
    ]  # fmt: skip
    assert cells["imports"] == "import math\n\nimport torch\nfrom einops import repeat", "only what is used"
    assert cells["exercise-1-1-solution"] == (
        'def count(wall):\n    """wall [H, W] -> int."""\n    ...  # your lines\n\n\narea = ...  # in cm2, µ'
    )
    assert "Hint" not in cells["exercise-1"] and "](../02_next.ipynb)" in cells["exercise-1"]
    folds = re.findall(r"<details><summary>(\w+)</summary>\n\n(.*?)\n\n</details>", cells["exercise-1-help"], re.S)
    assert [f[0] for f in folds] == ["Hint", "Hint", "Solution"]
    assert folds[0][1] == "One by one." and "return sum(1 for row" in folds[2][1]
    assert "| Exercise 1: count | ★☆☆ easy | 5 |" in cells["title"] and "> **How many?**" in cells["title"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count(WALL) * math.pi", "count(WALL) * walls_seen", "'walls_seen'"),
        ("*Easy, 5 minutes*", "Easy, 5 minutes", "Exercise 1: count"),
        ("*Easy, 5", "*Simple, 5", "Exercise 1: count"),
        ('tags=["check"]', 'tags=["checked"]', "'solution'"),
        ('    """wall [H, W] -> int."""\n', "", "def count"),
        ('tags=["given"]\nWALL', 'tags=["solution"]\nWALL', "before the first exercise"),
    ],
)
def test_script_that_breaks_the_format_raises(bricks, old, new, message):
    assert old in BRICKS
    bricks.write_text(BRICKS.replace(old, new))
    with pytest.raises(ContractError, match=re.escape(message)):
        exercises.exercise_notebook(bricks)


def test_executed_exercises_are_not_overwritten(bricks, tmp_path, monkeypatch):
    monkeypatch.setattr(exercises, "list_notebooks", lambda: [bricks])
    path = tmp_path / "out/01_bricks.ipynb"
    assert exercises.exercises(str(tmp_path / "out")) == 0
    before = path.read_text()
    assert exercises.exercises(str(tmp_path / "out")) == 0 and path.read_text() == before
    path.write_text(before.replace('"execution_count": null', '"execution_count": 3', 1))
    with pytest.raises(ContractError, match="executed cells"):
        exercises.exercises(str(tmp_path / "out"))
    assert exercises.exercises(str(tmp_path / "out"), overwrite=True) == 0 and path.read_text() == before


def test_saving_in_jupyter_writes_no_script_beside_it(bricks, tmp_path):
    jupytext = pytest.importorskip("jupytext", reason="saves pairs of notebooks")
    from jupytext.config import load_jupytext_config
    from jupytext.formats import long_form_multiple_formats

    path = tmp_path / "01_bricks_exercises.ipynb"
    path.write_text(exercises.exercise_text(bricks))
    config = load_jupytext_config(str(NOTEBOOKS))
    assert config.default_formats("notebooks/exercises/01_bricks.ipynb"), "the project pairs every notebook"
    notebook = jupytext.read(path, config=config)
    formats = long_form_multiple_formats(notebook.metadata["jupytext"]["formats"])
    assert [f["extension"] for f in formats] == [".ipynb"]


@each
def test_exercises_in_git_are_up_to_date(script):
    path = NOTEBOOKS / "exercises" / f"{script.stem}.ipynb"
    assert path.is_file() and path.read_text() == exercises.exercise_text(script), "make exercises, and commit it"


def test_every_notebook_has_exercises_and_they_have_theirs():
    assert {f"{number:02d}" for number in range(1, 13)} <= {script.stem[:2] for script in SCRIPTS}
    assert {p.stem for p in (NOTEBOOKS / "exercises").glob("*.ipynb")} == {script.stem for script in SCRIPTS}


@each
def test_at_least_three_exercises_with_a_task_and_a_check(script):
    _, blocks = exercises.read_exercises(script)
    assert len(blocks) >= 3
    assert [int(re.match(r"Exercise (\d+): ", e.title)[1]) for e in blocks] == list(range(1, len(blocks) + 1))
    for exercise in blocks:
        assert len(exercise.task) > 80 and 2 <= exercise.minutes <= 30
        assert any("checks.check_" in source for tag, source in exercise.cells if tag == "check")


@each
def test_solved_exercise_notebook_runs_alone_and_passes(script, monkeypatch):
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(NOTEBOOKS)
    names, output = {"__name__": "__main__"}, []
    for cell in exercises.exercise_notebook(script, solved=True).cells:
        if cell.cell_type == "code":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(cell.source, cell.id, "exec"), names)
            if cell.id.endswith("check"):
                output.append(out.getvalue())
    assert output and all(text.startswith("Right. ") and text.count("\n") == text.count("Right. ") for text in output)


@each
def test_every_check_rejects_the_stub(script):
    names = {"__name__": "__main__"}
    for cell in exercises.exercise_notebook(script).cells:
        if cell.id.endswith("check"):
            with pytest.raises(Mistake, match="nothing (here )?yet"):
                exec(compile(cell.source, cell.id, "exec"), names)
        elif cell.cell_type == "code":
            with contextlib.suppress(Exception):  # cells that use the answer
                exec(compile(cell.source, cell.id, "exec"), names)
