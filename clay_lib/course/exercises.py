"""Exercise notebooks, generated from tagged cells of the notebooks' percent scripts.

CONTRIBUTING.md shows the format. Running the script proves that the checks accept the solutions.
`notebooks/exercises/NN_name.ipynb` gets the same cells with stubs for solutions, hints and solutions folded, and the
imports that these cells use, so that it runs alone.
"""

import ast
import builtins
import re
import symtable
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clay_lib.course.flow import strip_of, write_strip
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, read_json
from clay_lib.runs.notebooks import NOTEBOOKS, list_notebooks, read_script

STARS = {"Easy": "★☆☆", "Medium": "★★☆", "Hard": "★★★"}
CODE_TAGS = ("given", "solution", "check")
STUB = "...  # your lines"
FORMAT = "`### Exercise 1: title`, `*Easy, 5 minutes*`, task, `**Hint.** ...`, then cells tagged solution and check"


@dataclass(frozen=True)
class Exercise:
    """One exercise of a script. cells: (tag, source) in order, tags from CODE_TAGS."""

    title: str  # "Exercise 1: a camera of your own"
    difficulty: str  # Easy, Medium or Hard
    minutes: int
    task: str
    hints: tuple[str, ...]
    cells: tuple[tuple[str, str], ...]

    @property
    def level(self) -> str:
        return f"{STARS[self.difficulty]} {self.difficulty.lower()}"


def exercises(out: str = "", *, overwrite: bool = False) -> int:
    """Write what is made from the notebooks' scripts: exercises, with stubs for solutions, and strips of the flow.

    Example: clay exercises

    Args:
        out: the folder to write to; empty: notebooks/exercises
        overwrite: replace notebooks whose exercises were done in place
    """
    folder = Path(out) if out else NOTEBOOKS / "exercises"
    for script in list_notebooks():
        write_strip(script)
        path, text = folder / f"{script.stem}.ipynb", exercise_text(script)
        if text is None:
            continue
        if not overwrite and any(cell.get("execution_count") for cell in read_json(path).get("cells", [])):
            found = f"a notebook with executed cells, {path}"
            cause = "exercises were done in place: rename the file to keep them, or pass --overwrite"
            raise ContractError("exercises", found, "one as it was generated, or none", cause)
        atomic_write(path, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))
        print(f"{path.name}: {len(read_exercises(script)[1])} exercises")
    return 0


def exercise_text(script: Path) -> str | None:
    """The exercise notebook of a script as the text of its file, the same every time; None: no exercises."""
    import nbformat

    notebook = exercise_notebook(script)
    return None if notebook is None else nbformat.writes(notebook) + "\n"


def exercise_notebook(script: Path, *, solved: bool = False):
    """The exercise notebook of a script in memory; solved: with the solutions in place of their stubs."""
    from nbformat import v4

    opening, blocks = read_exercises(script)
    if not blocks:
        return None
    notebook = read_script(script)
    sources = [source for _, source in [*opening, *(cell for e in blocks for cell in e.cells)]]
    imports = _imports(notebook, sources, script.name)
    cells = [v4.new_markdown_cell(_title(notebook, script, blocks), id="title")]
    cells += [v4.new_code_cell(imports, id="imports")] if imports else []
    cells += [v4.new_code_cell(given, id=f"given-{k}") for k, (_, given) in enumerate(opening, start=1)]
    for number, exercise in enumerate(blocks, start=1):
        cells += _exercise_cells(number, exercise, solved)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    # its own jupytext formats: those of the project would write a script beside it at every save
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "jupytext": {"formats": "ipynb"}}
    return v4.new_notebook(cells=cells, metadata=metadata)


def read_exercises(script: Path) -> tuple[list[tuple[str, str]], list[Exercise]]:
    """(given cells before the first exercise, the exercises), as (tag, source) and Exercise."""
    opening, blocks = [], []
    for cell in read_script(script).cells:
        tags = cell.metadata.get("tags", [])
        tag = next((t for t in CODE_TAGS if t in tags), None)
        if "exercise" in tags:
            blocks.append((cell.source, []))
        elif tag and blocks:
            blocks[-1][1].append((tag, cell.source))
        elif tag:
            opening.append((tag, cell.source))
    _require(all(tag == "given" for tag, _ in opening), script.name, "a solution or check before the first exercise")
    return opening, [_exercise(text, cells, script.name) for text, cells in blocks]


def _exercise(text: str, cells: list[tuple[str, str]], name: str) -> Exercise:
    head = re.match(r"#+ (?P<title>Exercise \d+: .+)\n+\*(?P<difficulty>\w+), (?P<minutes>\d+) minutes\*\n", text)
    _require(head and head["difficulty"] in STARS, name, f"an exercise that begins {text[:60]!r}")
    paragraphs = text[head.end() :].strip().split("\n\n")
    hints = tuple(p.removeprefix("**Hint.** ") for p in paragraphs if p.startswith("**Hint.** "))
    task = "\n\n".join(p for p in paragraphs if not p.startswith("**Hint.** "))
    tags = [tag for tag, _ in cells]
    _require(hints and "solution" in tags and "check" in tags, name, f"{head['title']} with {tags or 'no cells'}")
    return Exercise(head["title"], head["difficulty"], int(head["minutes"]), task, hints, tuple(cells))


def _require(holds, name: str, found: str) -> None:
    if not holds:
        cause = "a tag or a line of the exercise format is missing; CONTRIBUTING.md shows it"
        raise ContractError(name, found, FORMAT, cause)


def stub(solution: str) -> str:
    """A solution cell without bodies of functions and right sides of assignments; signatures, docstrings, imports stay."""
    lines = solution.encode().split(b"\n")  # ast counts columns in bytes
    for node in reversed(ast.parse(solution).body):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            lines[node.body[0].end_lineno : node.end_lineno] = [f"    {STUB}".encode()]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            first, last = node.value.lineno - 1, node.value.end_lineno - 1
            before, after = lines[first][: node.value.col_offset], lines[last][node.value.end_col_offset :]
            lines[first : last + 1] = [before + b"..." + after]
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            found = ast.get_source_segment(solution, node).split("\n")[0]
            cause = "a docstring is missing, or code that belongs into a cell tagged given"
            raise ContractError("solution", found, "functions with docstrings, and assignments", cause)
    return b"\n".join(lines).decode()


def _exercise_cells(number: int, exercise: Exercise, solved: bool) -> Iterator:
    from nbformat import v4

    text = f"## {exercise.title}\n*{exercise.level}, {exercise.minutes} minutes*\n\n{exercise.task}"
    yield v4.new_markdown_cell(_fix_links(text), id=f"exercise-{number}")
    last_check = max(place for place, (tag, _) in enumerate(exercise.cells, start=1) if tag == "check")
    for place, (tag, source) in enumerate(exercise.cells, start=1):
        shown = stub(source) if tag == "solution" and not solved else source
        yield v4.new_code_cell(shown, id=f"exercise-{number}-{place}-{tag}")
        if place == last_check:
            solutions = "\n\n\n".join(source for tag, source in exercise.cells if tag == "solution")
            folds = [_fold("Hint", hint) for hint in exercise.hints]
            folds.append(_fold("Solution", f"```python\n{solutions}\n```"))
            yield v4.new_markdown_cell(_fix_links("\n\n".join(folds)), id=f"exercise-{number}-help")


def _fold(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _title(notebook, script: Path, blocks: list[Exercise]) -> str:
    first = notebook.cells[0].source
    heading = re.search(r"^# (.+)$", first, re.M)[1]
    question, strip = re.search(r"^> .+$", first, re.M), strip_of(script)
    return "\n".join(
        [
            f"# {heading}: exercises\n",
            *([f"{question[0]}\n"] if question else []),
            *([f"{_fix_links(strip[0])}\n"] if strip else []),
            f"They follow [{heading}](../{script.stem}.ipynb). About {sum(e.minutes for e in blocks)} minutes in all.\n",
            "| | difficulty | minutes |",
            "| --- | --- | --- |",
            *(f"| {e.title} | {e.level} | {e.minutes} |" for e in blocks),
            "",
            "Write your lines in place of the dots, run that cell, then the check below it: it says what to fix, or that",
            "your answer is right. Hints and the solution are folded under each check. To keep your work when the project",
            "is updated, save this notebook under a name of your own.",
        ]
    )


def _fix_links(text: str) -> str:
    """Links to other notebooks and to strips, from inside notebooks/exercises."""
    return re.sub(r"\]\((\d\d_\w+\.ipynb|flow/)", r"](../\1", text)


def _imports(notebook, cells: list[str], name: str) -> str:
    """The imports of a notebook that these cells use, in its order; an undefined name is an error."""
    used, defined = names_of("\n".join(cells))
    missing, lines, group = used - defined - set(dir(builtins)), [], None
    trees = [ast.parse(c.source) for c in notebook.cells if c.cell_type == "code"]
    for node in (n for tree in trees for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))):
        names = {alias.asname or alias.name.split(".")[0]: alias for alias in node.names}
        needed = {bound: alias for bound, alias in names.items() if bound in missing}
        if not needed:
            continue
        missing -= set(needed)
        node.names = list(needed.values())
        root = (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        kind = 0 if root in sys.stdlib_module_names else 2 if root == "clay_lib" else 1
        lines += ([""] if group not in (None, kind) else []) + [ast.unparse(node)]
        group = kind
    if missing:
        expected = "names that are imported, of cells tagged given, or of the exercises themselves"
        cause = "something that the notebook computed earlier: compute it again in a cell tagged given"
        raise ContractError(name, f"{sorted(missing)} in its exercises", expected, cause)
    return "\n".join(lines)


def names_of(source: str) -> tuple[set[str], set[str]]:
    """(global names that a piece of code reads, those that it sets)."""
    module = symtable.symtable(source, "cells", "exec")
    defined = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported()}
    used, tables = {s.get_name() for s in module.get_symbols() if s.is_referenced()}, [*module.get_children()]
    while tables:
        table = tables.pop()
        used |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and s.is_global()}
        tables += table.get_children()
    return used, defined
