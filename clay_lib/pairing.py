"""Outputs for the notebooks in git: what a run printed and drew, put beside the cells of the scripts."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from pathlib import Path

from clay_lib.contract import ContractError
from clay_lib.runner import NOTEBOOKS, ROOT, is_done, list_notebooks, read_script

WIDGET = "application/vnd.jupyter.widget-view+json"


def pair_notebooks(run: Path, folder: Path = NOTEBOOKS) -> list[Path]:
    """Write folder/NN_name.ipynb for every script in folder, with the outputs of the executed notebooks in `run`.

    The cells come from the script, so a run of an older script is refused (ContractError). The outputs lose
    machine paths and live widgets; timings and papermill's own cells stay behind.
    """
    import jupytext
    import nbformat

    written = []
    for script in list_notebooks(folder):
        executed = Path(run) / f"{script.stem}.ipynb"
        if not is_done(executed):
            raise ContractError(
                "outputs",
                found=f"no whole run in {executed}",
                expected="a finished demo run",
                cause="run the demo profile first: make demo",
            )
        notebook = read_script(script)
        ran = [
            c
            for c in calm(nbformat.read(executed, as_version=4)).cells
            if "injected-parameters" not in c.metadata.get("tags", [])
        ]
        if [c.source for c in ran] != [c.source for c in notebook.cells]:
            raise ContractError(
                "outputs",
                found=f"{executed} of other cells",
                expected=f"the cells of {script.name}",
                cause="the script changed after the run: make demo again",
            )
        for number, (cell, seen) in enumerate(zip(notebook.cells, ran, strict=True), start=1):
            cell.id = f"cell-{number}"  # jupytext draws a random one, a diff each time
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = seen.outputs, seen.execution_count
        paired = script.with_suffix(".ipynb")
        jupytext.write(notebook, paired, fmt="ipynb")
        written.append(paired)
    return written


def calm(notebook):
    """A copy that holds no live widgets, no machine paths and no notes of papermill's."""
    import nbformat

    notebook = copy.deepcopy(notebook)
    for noise in ("widgets", "papermill"):
        notebook.metadata.pop(noise, None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r"(?m)^out = .*\n?", "", cell.source)  # where this machine keeps its results
        if cell.get("outputs"):
            cell.outputs = nbformat.from_dict(json.loads(_without_paths(json.dumps(cell.outputs))))
        for output in cell.get("outputs", []):
            if output.get("data", {}).pop(WIDGET, None) is not None:
                if "image/png" not in output.data:
                    output.data["text/plain"] = "(interactive: run this cell to use it)"
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _lighter(output.data["image/png"])
    return notebook


def _lighter(png: str, most: int = 150_000) -> str:
    """A base64 PNG above `most` characters in 256 colours: a third of the bytes in git.

    The colours are chosen to cover all that occur, not by how often they do, so that a legend's small squares keep theirs.
    """
    from PIL import Image

    if len(png) <= most:
        return png
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(small, "PNG", optimize=True)
    return min(png, base64.b64encode(small.getvalue()).decode(), key=len)


def _without_paths(text: str) -> str:
    """Paths inside the repository become relative; a kernel's temporary file becomes <cell>."""
    text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    return re.sub(r"/[\w/.-]*/ipykernel_\d+/\d+\.py", "<cell>", text)
