"""What a run of notebooks shows for itself: one self-contained index.html, and each notebook as a page.

The page embeds its pictures, so it opens from disk without a network and can be mailed as one file.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from clay_lib.files import read_json
from clay_lib.gallery_page import page_of
from clay_lib.pairing import calm
from clay_lib.runner import NOTEBOOKS, PICTURES, is_done, list_notebooks

MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}
ERROR_MARKER = "papermill-error-cell-tag"  # papermill puts a cell above the first one when a run fails


def write_gallery(folder: Path, *, title: str) -> Path:
    """folder/index.html with a card for each executed notebook in folder, and an HTML export of each."""
    folder = Path(folder)
    return _write_page(folder, title, [_read(path, folder) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))])


def write_site(
    run: str = "papermill_runs/demo", out: str = "papermill_runs/gallery", *, notebooks: Path = NOTEBOOKS
) -> int:
    """Write the walk as a static site that opens from disk, without a network: pages, thumbnails, times, notebooks.

    A notebook that has not been run appears with the outputs that came with the repository.

    Args:
        run: the folder of a headless run
        out: the folder to write, which can be copied, zipped or put on any web server
        notebooks: the walk
    """
    import nbformat

    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    runs = []
    for script in list_notebooks(Path(notebooks)):
        executed, paired = Path(run) / f"{script.stem}.ipynb", script.with_suffix(".ipynb")
        ran = is_done(executed)
        if not ran and not paired.is_file():
            continue
        source = executed if ran else paired
        runs.append(_read(source, home, whole=True))
        nbformat.write(calm(nbformat.read(source, as_version=4)), home / source.name)
    exercises = Path(notebooks) / "exercises"  # the pages link to them
    if exercises.is_dir():
        shutil.copytree(exercises, home / "exercises", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    page = _write_page(home, "the walk", runs)
    size = sum(path.stat().st_size for path in home.iterdir() if path.is_file()) / 1e6
    print(f"{len(runs)} notebooks, {size:.0f} MB. Open {page}")
    return 0


def _write_page(folder: Path, title: str, runs: list[dict]) -> Path:
    page = folder / "index.html"
    page.write_text(page_of(title, runs), encoding="utf-8")
    return page


def _read(executed: Path, home: Path, *, whole: bool | None = None) -> dict:
    """All that one card shows, from what the run left on disk; the notebook as a page goes to `home`."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    out = executed.with_suffix("")
    told = read_json(out / "run.json")
    heading, question = _opening(notebook)
    pictures = [(p.stem, MIME[p.suffix], p.read_bytes()) for p in sorted(out.glob("*")) if p.suffix in PICTURES]
    done = whole if whole is not None else is_done(executed) and told.get("ok", True)
    return {
        "name": executed.stem,
        "title": heading or executed.stem,
        "question": question,
        "pictures": pictures or list(_output_pictures(notebook)),
        "metrics": list(flatten(_headline(read_json(out / "metrics.json")))),
        "seconds": told.get("seconds"),
        "peak_mb": told.get("peak_mb"),
        "finished": told.get("finished"),
        "ok": done,
        "failed_cell": told.get("failed_cell"),
        "error": told.get("error") or (None if done else "the run was ended before its last cell"),
        "export": _export(notebook, home / f"{executed.stem}.html").name,
    }


def _opening(notebook) -> tuple[str, str]:
    """(title, question) of the first markdown cell: its heading, and the paragraph that says "Question"."""
    text = next(
        (
            c.source
            for c in notebook.cells
            if c.cell_type == "markdown" and ERROR_MARKER not in c.metadata.get("tags", [])
        ),
        "",
    )
    heading = re.search(r"^#+\s+(?:\d+[\s.:·–-]*)?(.+)$", text, re.M)
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n|\n(?=[-*] )", text) if not p.lstrip().startswith("#")]
    asked = next(
        (p for p in paragraphs if re.match(r"[-*>\s_]*question", p, re.I)), paragraphs[0] if paragraphs else ""
    )
    asked = re.sub(r"^[-*>\s_]*(question[\s.:*_]*)?", "", asked, flags=re.I)
    return heading.group(1).strip() if heading else "", re.sub(r"[*_`]|\$", "", " ".join(asked.split()))


def _output_pictures(notebook) -> Iterator[tuple[str, str, bytes]]:
    """Pictures among the outputs, under the heading they stand below."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next(iter(re.findall(r"^#+\s+(.+)$", cell.source, re.M)[::-1]), heading)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                yield heading, "image/png", base64.b64decode(data["image/png"])


def _headline(metrics: dict) -> dict:
    return metrics["headline"] if isinstance(metrics.get("headline"), dict) else metrics


def flatten(metrics: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, value as text) of every number and short text in a nested mapping, names joined by " / "."""
    for key, value in metrics.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name} / ")
        elif isinstance(value, bool) or value is None:
            yield name, {True: "yes", False: "no", None: "–"}[value]
        elif isinstance(value, int):
            yield name, f"{value:,}".replace(",", "\u202f")
        elif isinstance(value, float):
            yield name, f"{value:.4g}"
        elif isinstance(value, str) and len(value) <= 60:
            yield name, value


def _export(notebook, path: Path) -> Path:
    """The notebook as one HTML file. Live widgets need a server, so their still pictures stand for them.

    Nothing is fetched, MathJax neither: a formula would appear as it was typed.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        embed_images=True, require_js_url="", jquery_url="", mermaid_js_url="", mathjax_url="data:,"
    )
    path.write_text(exporter.from_notebook_node(calm(notebook))[0], encoding="utf-8")
    return path
