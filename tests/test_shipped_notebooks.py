"""Every notebook: script and .ipynb hold the same cells, are readable, and run from the first cell to the last."""

import re
from base64 import b64decode
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from PIL import Image

from clay_lib.files import read_yaml
from clay_lib.runs.notebooks import ROOT, RUNS, RunResult, is_done, list_notebooks, read_script
from clay_lib.runs.profiles import read_parameters, run_profile

SCRIPTS = list_notebooks()
each = pytest.mark.parametrize(
    "script",
    SCRIPTS or [pytest.param(None, marks=pytest.mark.skip(reason="notebooks/ holds no NN_*.py script"))],
    ids=lambda script: script.stem if script else "none",
)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|usr/lib|opt|mnt)/[\w.-]+")


@each
def test_paired_notebook_holds_the_same_cells(script):
    paired = script.with_suffix(".ipynb")
    assert paired.is_file(), f"{paired.name} is missing: make notebooks"
    notebook, source = nbformat.read(paired, as_version=4), read_script(script)
    nbformat.validate(notebook)

    def cells(notebook):
        return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]

    assert cells(notebook) == cells(source), "script and notebook differ: make notebooks"
    assert notebook.metadata.kernelspec.name == "python3"


@each
def test_links_lead_to_existing_notebooks(script):
    """In JupyterLab and in the gallery."""
    prose = "".join(line for line in script.read_text().splitlines(True) if line.startswith("#"))
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        known = re.fullmatch(r"(exercises/)?\d\d_\w+\.ipynb|flow/\w+\.png", link)
        assert known and (script.parent / link).is_file(), link


@each
def test_paired_notebook_has_outputs_and_is_small_and_clean(script):
    paired = script.with_suffix(".ipynb")
    assert paired.stat().st_size < 1_000_000
    outputs = [o for c in nbformat.read(paired, as_version=4).cells for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs), "no figure in its outputs: make notebooks"
    assert not any(o.output_type == "error" for o in outputs)
    for output in outputs:
        texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
        path = MACHINE_PATH.search(re.sub(r"data:[\w/+-]+;base64,[\w+/=]+", "", "".join(texts)))
        assert not path, f"a path of one machine: {path and path[0]}"


@each
def test_outputs_show_a_picture_where_no_script_runs(script):
    """GitHub takes scripts, frames and inputs out of HTML, and has no kernel for widgets."""
    outputs = [o for c in nbformat.read(script.with_suffix(".ipynb"), as_version=4).cells for o in c.get("outputs", [])]
    for output in outputs:
        data = output.get("data", {})
        page = re.sub(r"(?s)<(script|style|iframe)\b.*?</\1>|<input[^>]*>", "", data.get("text/html", ""))
        if re.match(r"\w*(Widget|Map|Figure|Box)\b", data.get("text/plain", "").lstrip("<")) or "<img" in page:
            pictures = [data["image/png"]] if "image/png" in data else []
            if page:
                assert not re.sub(r"<[^>]*>", "", page).strip(), "text of controls that do nothing"
                pictures += re.findall(r'<img src="data:image/\w+;base64,([^"]*)" alt="\w[^"]+"', page)
            assert len(pictures) == 1 + bool(page), output.get("data", {}).keys()
            for picture in pictures:
                image = np.asarray(Image.open(BytesIO(b64decode(picture))).convert("L"))
                assert image.shape[1] > 250 and image.std() > 5, "a blank picture"
        else:
            assert output.output_type == "stream" or re.search(r"</t[dh]>", page), "neither a figure nor a table"


@each
def test_notebook_opens_with_title_question_and_parameters(script):
    notebook = read_script(script)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S", first.source)
    assert "?" in first.source and "you will see" in first.source.lower(), "the question, and what will be seen"
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0] <= 4, "one cell tagged `parameters`, near the top"
    assert "out" in read_parameters(notebook)
    header = jupytext.read(script).metadata
    assert header.get("kernelspec", {}).get("name") == "python3", "the header lost its kernelspec"


def test_first_notebook_is_short():
    code = [cell.source.splitlines() for cell in read_script(SCRIPTS[0]).cells if cell.cell_type == "code"]
    assert max(map(len, code)) <= 12 and sum(len([*filter(None, lines)]) for lines in code) <= 60


@each
def test_stated_minutes_are_those_of_the_demo(script):
    minutes = read_yaml(RUNS / "profiles" / "demo.yaml")["minutes"][script.stem]
    assert re.search(rf"\| [^|]*\b{minutes} on two cores", read_script(script).cells[0].source)
    assert re.search(rf"notebooks/{script.stem}\.ipynb\) \|.*\| {minutes} \|", (ROOT / "README.md").read_text())


def run_all(out: Path, profile: str | Path = "smoke") -> dict[str, RunResult]:
    """One run of all notebooks under the profile, continued after a failure so that each has a result."""
    return {r.name: r for r in run_profile(profile, out=out, timeout=300)}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_all(tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two runs at the same time, one thread each."""
    folder = tmp_path_factory.mktemp("twice")
    profile = folder / "one_thread.yaml"
    profile.write_text("threads: 1\n" + (RUNS / "profiles" / "smoke.yaml").read_text())
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(run_all, [folder / "first", folder / "second"], [profile] * 2))


@each
def test_runs_under_the_smoke_profile(script, smoke):
    result = smoke[script.stem]
    assert result.ok, f"{result.failed_cell}: {result.error}"
    assert is_done(Path(result.notebook))
    assert any(Path(result.notebook).with_suffix("").glob("*.png")), "it wrote no figure for the gallery"


@pytest.mark.slow
@each
def test_gives_the_same_numbers_twice(script, two_runs):
    first, again = (
        {k: v for k, v in run[script.stem].metrics.items() if not re.search(r"\bms\b|_ms$|second", k)}
        for run in two_runs
    )
    assert first and first == again
