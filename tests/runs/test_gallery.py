"""The gallery is one file that shows each run; notebooks in git get clean outputs."""

import base64
import io
import json
import re

import nbformat
import numpy as np
import pytest
from PIL import Image

from clay_lib import ContractError
from clay_lib.runs import gallery
from clay_lib.runs.notebooks import ROOT, run_notebook

SCRIPT = """# %% [markdown]
# # 01 · See <the> land
#
# **Question.** Is *land* $x$ visible?
#
# **You will see** one figure.

# %% tags=["parameters"]
out: str = ""

# %%
import base64, json, pathlib
png = base64.b64decode("{png}")
pathlib.Path(out, "1_fields_and_towns.png").write_bytes(png)
from clay_lib.runs.notebooks import ROOT
print(f"{{ROOT}}/clay_lib/sensors.yaml")
from IPython.display import Image, display
display(Image(png))
display({{"application/vnd.jupyter.widget-view+json": {{"model_id": "m"}}, "text/plain": "Map(center=[0, 0])"}}, raw=True)

# %%
pathlib.Path(out, "metrics.json").write_text(json.dumps({{"error": {{"naip": 0.123456, "s2": 2}}, "chips": 12345, "notes": None, "fine": True}}))
"""
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "notebooks").mkdir()
    script = folder / "notebooks/01_see_land.py"
    script.write_text(SCRIPT.format(png=PNG))
    assert run_notebook(script, folder / "runs", {}).ok
    bad = folder / "notebooks/02_break.py"
    bad.write_text(SCRIPT.format(png=PNG).replace("01 · See", "02 · Break") + "\n# %%\nraise ValueError('a < b')\n")
    assert not run_notebook(bad, folder / "runs", {}).ok
    return folder


def test_page_contains_everything_in_one_file(run):
    page = gallery.write_gallery(run / "runs", title="smoke").read_text()
    assert page.count(f"data:image/png;base64,{PNG}") == 2, "one figure per notebook, embedded"
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page), "nothing from a network"
    assert "See &lt;the&gt; land" in page and "Is land x visible?" in page and "fields and towns" in page
    for shown in ("0.1235", "12\u202f345", "yes", "<th colspan=2>error</th>", "<th>naip</th>", "1 of 2"):
        assert shown in page
    for linked in re.findall(r'href="([^"#]+)"', page):
        assert (run / "runs" / linked).is_file()
    exported = (run / "runs" / "01_see_land.html").read_text()
    assert not re.search(r"""src=["']?(https?:)?//""", exported), "the notebook's page needs no network either"
    assert re.search(r'<img alt="01 · See|alt="01 · See', exported), "the heading above a figure that has no text"
    assert "<title>See &lt;the&gt; land</title>" in exported and 'tabindex="0">' not in exported


def test_failed_notebook_shows_cell_and_message(run):
    good, bad = gallery.write_gallery(run / "runs", title="smoke").read_text().split("<article")[1:3]
    assert 'class="ok"' in good and "alarm" not in good
    assert 'class="bad"' in bad and "cell 5 of 5: raise ValueError" in bad and "ValueError: a &lt; b" in bad
    assert "Break &lt;the&gt; land" in bad, "the card's title is the notebook's own"


def test_interrupted_run_is_not_shown_as_done(run, tmp_path):
    notebook = nbformat.read(run / "runs/01_see_land.ipynb", as_version=4)
    notebook.metadata.papermill.end_time = None
    nbformat.write(notebook, tmp_path / "01_see_land.ipynb")
    assert "ended before its last cell" in gallery.write_gallery(tmp_path, title="cut").read_text()


def test_paired_notebooks_have_no_paths_widgets_or_timings(run):
    folder = run / "notebooks"
    with pytest.raises(ContractError, match="no complete run"):
        gallery.pair_notebooks(run / "runs", folder)
    (folder / "02_break.py").rename(folder / "x_break.py")
    (paired,) = gallery.pair_notebooks(run / "runs", folder)
    text = paired.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    shown = json.dumps([c.get("outputs", []) for c in notebook.cells])
    for noise in (str(ROOT), str(run), "papermill", "widget-view", "Map("):
        assert noise not in shown
    assert "papermill" not in text
    outputs = notebook.cells[2].outputs
    assert outputs[0].text == "clay_lib/sensors.yaml\n"
    assert base64.b64decode(outputs[1].data["image/png"]) == base64.b64decode(PNG)
    assert [c.metadata for c in notebook.cells] == [{}, {"tags": ["parameters"]}, {}, {}]
    script = folder / "01_see_land.py"
    script.write_text(script.read_text().replace("one figure", "a picture"))
    gallery.pair_notebooks(folder, folder)
    assert paired.read_text() == text.replace("one figure", "a picture"), "new prose, the same outputs"
    script.write_text(script.read_text().replace("12345", "12346"))
    with pytest.raises(ContractError, match="changed after the run"):
        gallery.pair_notebooks(run / "runs", folder)


def test_compressed_figure_keeps_the_colors_of_a_small_legend():
    """A photograph of a hundred thousand greens, and two small swatches, which must stay distinct."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (420, 420, 3), np.uint8) // [4, 1, 4] + np.array([0, 0, 60])
    photo[5:13, 5:20], photo[20:28, 5:20] = (0, 150, 160), (0, 207, 117)
    original = io.BytesIO()
    Image.fromarray(photo.astype(np.uint8)).save(original, "PNG")
    compressed = gallery._compress(base64.b64encode(original.getvalue()).decode())
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(compressed))).convert("RGB")).astype(int)
    assert len(compressed) < 0.7 * len(base64.b64encode(original.getvalue()))
    assert abs(decoded[8, 10] - (0, 150, 160)).max() < 30 and abs(decoded[24, 10] - (0, 207, 117)).max() < 30


def test_site_uses_finished_runs_else_the_shipped_outputs(run, tmp_path):
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for name, title in {"01_see_land": "See", "03_later": "Later"}.items():
        (notebooks / f"{name}.py").write_text(SCRIPT.format(png=PNG).replace("See", title))
        shipped = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {name[:2]} {title}\n\nWhy?")])
        nbformat.write(shipped, notebooks / f"{name}.ipynb")
    site = tmp_path / "site"
    gallery.write_site(str(run / "runs"), str(site), notebooks=notebooks)
    page = (site / "index.html").read_text()
    assert page.count('<article class="ok"') == 2 and "alarm" not in page.split("<main>")[1]
    assert PNG in page and "Later" in page
    for name in ("01_see_land", "03_later"):
        assert (site / f"{name}.html").is_file()
        assert str(run) not in (site / f"{name}.ipynb").read_text()
    assert "papermill" not in (site / "01_see_land.ipynb").read_text().replace("papermill_runs", "")
