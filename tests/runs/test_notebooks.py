"""Every notebook: a pair of the same cells, fit to be read, and running from its first cell to its last."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from clay_lib.runs import notebooks
from clay_lib.runs.notebooks import is_done, list_notebooks, read_parameters, read_script

SCRIPTS = list_notebooks()
each = pytest.mark.parametrize(
    "script",
    SCRIPTS or [pytest.param(None, marks=pytest.mark.skip(reason="notebooks/ holds no NN_*.py script"))],
    ids=lambda script: script.stem if script else "none",
)
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|usr/lib|opt|mnt)/[\w.-]+")


@each
def test_paired_notebook_holds_the_same_cells(script):
    paired = script.with_suffix(".ipynb")
    assert paired.is_file(), f"{paired.name} is missing: make notebooks"
    seen, source = nbformat.read(paired, as_version=4), read_script(script)
    nbformat.validate(seen)

    def cells(notebook):
        return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]

    assert cells(seen) == cells(source), "script and notebook differ: make notebooks"
    assert seen.metadata.kernelspec.name == "python3"


@each
def test_links_lead_to_files_that_a_reader_in_jupyterlab_and_of_the_gallery_has(script):
    prose = "".join(line for line in script.read_text().splitlines(True) if line.startswith("#"))
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert re.fullmatch(r"(exercises/)?\d\d_\w+\.ipynb", link) and (script.parent / link).is_file(), link


@each
def test_paired_notebook_shows_outputs_and_is_small_and_clean(script):
    paired = script.with_suffix(".ipynb")
    assert paired.stat().st_size < 1_000_000
    outputs = [o for c in nbformat.read(paired, as_version=4).cells for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs), "no picture in its outputs: make notebooks"
    assert not any(o.output_type == "error" for o in outputs)
    for output in outputs:
        text = "".join(
            [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
        )
        found = MACHINE.search(re.sub(r"data:[\w/+-]+;base64,[\w+/=]+", "", text))
        assert not found, f"a path of one machine: {found and found[0]}"


@each
def test_opens_with_its_title_and_plain_parameters(script):
    notebook = read_script(script)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S", first.source)
    assert "?" in first.source and "you will see" in first.source.lower(), "the question, and what will be seen"
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])]
    assert tagged and len(tagged) == 1 and tagged[0] <= 4, "one cell tagged `parameters`, near the top"
    assert "out" in read_parameters(notebook)
    header = jupytext.read(script).metadata
    assert header.get("kernelspec", {}).get("name") == "python3", "the header lost its kernelspec"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> dict[str, notebooks.RunResult]:
    """One run of all notebooks under the profile smoke, going on after a failure so that each tells its own."""
    out = tmp_path_factory.mktemp("smoke")
    return {r.name: r for r in notebooks.run_profile("smoke", out=out, keep_going=True, timeout=300)}


@each
def test_runs_under_the_smoke_profile(script, smoke):
    result = smoke[script.stem]
    assert result.ok, f"{result.failed_cell}: {result.error}"
    assert is_done(Path(result.notebook))
    assert any(Path(result.notebook).with_suffix("").glob("*.png")), "it wrote no picture for the gallery"


@pytest.mark.slow
@each
def test_gives_the_same_numbers_twice(script, smoke, again):
    first, second = (
        {k: v for k, v in run[script.stem].metrics.items() if not re.search(r"\bms\b|_ms$|second", k)}
        for run in (smoke, again)
    )
    assert first and first == second


@pytest.fixture(scope="module")
def again(smoke, tmp_path_factory) -> dict[str, notebooks.RunResult]:
    """The second run of all notebooks."""
    out = tmp_path_factory.mktemp("again")
    return {r.name: r for r in notebooks.run_profile("smoke", out=out, keep_going=True, timeout=300)}
