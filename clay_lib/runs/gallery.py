"""The gallery: a run of notebooks as one self-contained page, and the outputs of the notebooks in git.

The page embeds its figures, so it opens from disk without a network and can be mailed as one file.
"""

import base64
import copy
import html
import io
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clay_lib.errors import ContractError
from clay_lib.files import atomic_write, make_folder, read_json
from clay_lib.runs.notebooks import FIGURES, NOTEBOOKS, ROOT, flatten, is_done, list_notebooks, read_script

MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}
ERROR_TAG = "papermill-error-cell-tag"  # papermill puts a cell above the first one when a run fails
WIDGET = "application/vnd.jupyter.widget-view+json"
LIVE = "live.html"  # beside the index, where `clay live` wrote it: the model itself in the browser
NO_ALT = 'alt="No description has been provided for this image"'  # nbconvert's
CONTRAST = """.jp-InputPrompt, .jp-OutputPrompt { color: #616161 !important; opacity: 1 !important }
.highlight .c1 { color: #2f6666 !important } .highlight :is(.o, .ow) { color: #7a1fc2 !important }
.highlight :is(.mi, .mf) { color: #006b00 !important } .jp-RenderedHTMLCommon a { text-decoration: underline !important }"""
METRICS_SHOWN = 10  # the others are folded

# ---- pages, also of the reports: one style and one template

# Enlarges a figure that is clicked, or has the focus when Enter is pressed.
_SCRIPT = """
const box = document.querySelector('dialog'), large = box.firstElementChild;
const enlarge = ({target, key}) => {
  if (key && key !== 'Enter') return;
  if (target.matches('figure img')) { large.src = target.src; large.alt = target.alt; box.showModal(); }
  else if (box.open) box.close();
};
for (const event of ['click', 'keydown']) document.addEventListener(event, enlarge);
"""

_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style>
{body}
<div class=end>Written {when}. {note}</div>
<dialog><img alt=""></dialog><script>{script}</script></html>
"""


class Markup(str):
    """Text that is HTML already."""


def write_page(path: Path, title: str, body: str, *, note: str = "", script: str = "") -> Path:
    """A page in one file, with its style. title, note: plain text; body: HTML; script: more JavaScript."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    when, title, note = time.strftime("%d %B %Y, %H:%M"), html.escape(title), html.escape(note)
    text = _PAGE.format(title=title, style=style, body=body, when=when, note=note, script=_SCRIPT + script)
    return atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))


def head(heading: str, badge: str, state: str, notes: Iterable[str], facts: Iterable[tuple[str, str]]) -> str:
    """The top of a page or of a sweep. heading: HTML; state: done, failed or running, the color of the badge."""
    paragraphs = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    cells = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in facts)
    title = f'<h1>{heading} <span class="badge {state}">{html.escape(badge)}</span></h1>'
    return f"<div class=top>{title}{paragraphs}<div class=facts>{cells}</div></div>"


def article(title: str, text: str, body: str, *, bad: bool = False) -> str:
    """A card with a heading, a line of plain text and HTML below."""
    heading = f"<header><div><h2>{title}</h2><p>{html.escape(text)}</p></div></header>"
    return f"<main><article{' class=bad' if bad else ''}>{heading}<div class=inside>{body}</div></article></main>"


def table_html(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table of numbers, texts and Markup; a dash for None and NaN."""

    def cell(value) -> str:
        if isinstance(value, Markup):
            return value
        if value is None or value != value:
            return "–"
        return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))

    titles = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<div class=wide><table class=sweep><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"


def data_url(content: bytes, mime: str) -> str:
    """A file's content as an address, so that the page needs no other file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


# ---- the gallery


def write_gallery(folder: Path, *, title: str) -> Path:
    """folder/index.html with a card for each executed notebook in folder, and an HTML export of each."""
    folder = Path(folder)
    _copy_folders(NOTEBOOKS, folder, "flow")
    return _write_index(folder, title, [_card(path, folder) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))])


def write_site(
    run: str = "papermill_runs/demo", out: str = "papermill_runs/gallery", *, notebooks: Path = NOTEBOOKS
) -> int:
    """Write the notebooks as a static site that opens from disk, without a network: pages, thumbnails, durations.

    A notebook that has not been run appears with the outputs that came with the repository.

    Args:
        run: the folder of a headless run
        out: the folder to write, which can be copied, zipped or put on any web server
        notebooks: the folder of the notebooks
    """
    import nbformat

    home = make_folder(out)
    cards = []
    for script in list_notebooks(Path(notebooks)):
        executed, paired = Path(run) / f"{script.stem}.ipynb", script.with_suffix(".ipynb")
        source = executed if is_done(executed) else paired
        if not source.is_file():
            continue
        cards.append(_card(source, home, ok=True))
        nbformat.write(clean_outputs(nbformat.read(source, as_version=4)), home / source.name)
    _copy_folders(Path(notebooks), home, "exercises", "flow")
    page = _write_index(home, "the notebooks", cards)
    size = sum(path.stat().st_size for path in home.iterdir() if path.is_file()) / 1e6
    print(f"{len(cards)} notebooks, {size:.0f} MB. Open {page}")
    return 0


def _copy_folders(notebooks: Path, home: Path, *names: str) -> None:
    """Folders that the notebooks refer to."""
    for source in (notebooks / name for name in names):
        if source.is_dir():
            shutil.copytree(source, home / source.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


def _write_index(folder: Path, title: str, cards: Sequence[tuple[str, dict]]) -> Path:
    articles, records = [article for article, _ in cards], [record for _, record in cards]
    minutes = sum(record.get("seconds") or 0 for record in records) / 60
    peak = max((record.get("peak_mb") or 0 for record in records), default=0) / 1024
    done = sum(record["ok"] for record in records)
    state = "done" if done == len(cards) else "failed"
    facts = [
        (f"{done} of {len(cards)}", "notebooks done"),
        *([(f"{minutes:.1f} min", "in total"), (f"{peak:.1f} GB", "peak memory")] if minutes else []),
        (str(sum(record["figures"] for record in records)), "figures"),
    ]
    notes = ["A foundation model of the Earth, taken apart and built again in notebooks."]
    top = head("Clay, <em>from scratch</em>", f"{title}: {state}", state, notes, facts)
    if (folder / LIVE).is_file():
        top += f"<div class=top><a href={LIVE}>Try the model in this browser</a></div>"
    body = "".join(articles) or "<p class=empty>No notebook has run yet.</p>"
    note = "Click a figure to enlarge it, or press Enter on it."
    return write_page(folder / "index.html", f"Clay, from scratch: {title}", f"{top}<main>{body}</main>", note=note)


def _table(metrics: list[tuple[str, str]]) -> str:
    """Name and value; numbers whose names share a beginning ("masked error / naip") stand under it."""
    rows, group = [], ""
    for name, value in metrics:
        parent, _, leaf = name.rpartition(" / ")
        if parent and parent != group:
            rows.append(f"<tr class=group><th colspan=2>{html.escape(parent)}</th></tr>")
        group = parent
        member = " class=member" if parent else ""
        rows.append(f"<tr{member}><th>{html.escape(leaf)}</th><td>{html.escape(value)}</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _figure(name: str, source: str) -> str:
    label = html.escape(re.sub(r"^\d+[_ -]*", "", name).replace("_", " "))
    return f'<figure><img tabindex=0 role=button alt="{label}" src="{source}"><figcaption>{label}</figcaption></figure>'


def _card(executed: Path, home: Path, *, ok: bool | None = None) -> tuple[str, dict]:
    """(HTML of a card, the run's record with `ok` and the number of its `figures`) of an executed notebook, which is also
    written as a page to `home`. ok: instead of the run's own state."""
    import nbformat  # here, since every worker of a sweep imports this module for its styles alone

    notebook, out = nbformat.read(executed, as_version=4), executed.with_suffix("")
    _export(notebook, home / f"{executed.stem}.html")
    record, metrics = read_json(out / "run.json"), [*_as_text(read_json(out / "metrics.json"))]
    if ok is None:
        ok = is_done(executed) and record.get("ok", True)
    files = [p for p in sorted(out.glob("*")) if p.suffix in FIGURES]
    figures = [(p.stem, data_url(p.read_bytes(), MIME[p.suffix])) for p in files] or [*_output_figures(notebook)]
    title, question = _opening(notebook)
    title, question, name = (html.escape(text) for text in (title or executed.stem, question, executed.stem))
    table = _table(metrics[:METRICS_SHOWN])
    if folded := metrics[METRICS_SHOWN:]:
        table += f"<details><summary>{len(folded)} more</summary>{_table(folded)}</details>"
    seconds, peak = record.get("seconds"), record.get("peak_mb")
    cost = [f"{seconds:.0f} s" if seconds is not None else "", f"{peak:.0f} MB" if peak else ""]
    alarm = ""
    if not ok:
        place = f" in {record['failed_cell']}" if record.get("failed_cell") else ""
        error = record.get("error") or "the run was ended before its last cell"
        alarm = f"<div class=alarm><b>Stopped{html.escape(place)}</b><pre>{html.escape(error)}</pre></div>"
    card = f"""
<article class="{"ok" if ok else "bad"}" id="{name}">
  <header><span class=number>{name[:2]}</span>
    <div><h2>{title}</h2><p>{question}</p></div></header>
  {alarm}
  <div class="body{"" if figures else " bare"}{"" if table else " solo"}">
    <div class=figures>{"".join(_figure(*figure) for figure in figures)}</div><aside>{table}</aside></div>
  <footer><span>{" · ".join(filter(None, [*cost, record.get("finished")]))}</span>
    <nav><a href="{name}.html">Read</a><a href="{name}.ipynb">Notebook</a></nav></footer>
</article>"""
    return card, record | {"ok": ok, "figures": len(figures)}


def _opening(notebook) -> tuple[str, str]:
    """Title and question from the first markdown cell."""
    cells = (c for c in notebook.cells if c.cell_type == "markdown" and ERROR_TAG not in c.metadata.get("tags", []))
    text = next((cell.source for cell in cells), "")
    heading = re.search(r"^#+\s+(?:\d+[\s.:·–-]*)?(.+)$", text, re.M)
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n|\n(?=[-*] )", text) if not p.lstrip().startswith("#")]
    questions = [p for p in paragraphs if re.match(r"[-*>\s_]*question", p, re.I)]
    question = next(iter([*questions, *paragraphs]), "")
    question = re.sub(r"^[-*>\s_]*(question[\s.:*_]*)?", "", question, flags=re.I)
    return heading.group(1).strip() if heading else "", re.sub(r"[*_`]|\$", "", " ".join(question.split()))


def _output_figures(notebook) -> Iterator[tuple[str, str]]:
    """Figures among the outputs, named by the heading above them."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next(iter(re.findall(r"^#+\s+(.+)$", cell.source, re.M)[::-1]), heading)
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                yield heading, data_url(base64.b64decode(png), "image/png")


def _as_text(metrics: dict) -> Iterator[tuple[str, str]]:
    """(name, value as text) of every number and short text."""
    for name, value in flatten(metrics):
        name = name.replace("_", " ")
        if isinstance(value, bool) or value is None:
            yield name, {True: "yes", False: "no", None: "–"}[value]
        elif isinstance(value, int):
            yield name, f"{value:,}".replace(",", "\u202f")
        elif isinstance(value, float):
            yield name, f"{value:.4g}"
        elif isinstance(value, str) and len(value) <= 60:
            yield name, value


def _export(notebook, path: Path) -> None:
    """The notebook as one HTML file. Live widgets need a server, so figures stand in their place.

    Nothing is fetched, MathJax included: a formula appears as it was typed.
    """
    from nbconvert import HTMLExporter

    offline = dict(require_js_url="", jquery_url="", mermaid_js_url="", mathjax_url="data:,")
    exporter = HTMLExporter(embed_images=True, **offline)
    notebook = clean_outputs(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [o for o in outputs if "image/png" in o.get("data", {}) and "text/html" not in o["data"]]
    texts = iter(html.escape(figure.metadata["image/png"]["alt"]) for figure in figures)
    about = {"path": str(NOTEBOOKS), "name": _opening(notebook)[0] or path.stem}  # where flow/ is; the title
    page = exporter.from_notebook_node(notebook, {"metadata": about})[0]
    page = page.replace(' tabindex="0">', ">")  # every cell would be a stop between two links
    page = re.sub(NO_ALT, lambda _: f'alt="{next(texts, "Figure")}"', page)  # its template reads no alternative text
    page = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', page)  # its neighbor as a page
    path.write_text(page.replace("</head>", f"<style>{CONTRAST}</style></head>", 1), encoding="utf-8")


# ---- the notebooks in git


def pair_notebooks(run: Path, folder: Path = NOTEBOOKS) -> list[Path]:
    """Write folder/NN_name.ipynb for every script in folder, with the outputs of the run in folder `run`.

    The cells come from the script, so a run of other code is refused (ContractError); its prose may have changed. Machine
    paths, live widgets, timings and papermill's own cells are removed from the outputs.
    """
    import jupytext
    import nbformat

    written = []
    for script in list_notebooks(folder):
        executed = Path(run) / f"{script.stem}.ipynb"
        if Path(run).resolve() != Path(folder).resolve() and not is_done(executed):
            cause = "run the demo profile first: make demo"
            raise ContractError("outputs", f"no complete run in {executed}", "a finished demo run", cause)
        notebook = read_script(script)
        cells = [c for c in clean_outputs(nbformat.read(executed, as_version=4)).cells if c.cell_type == "code"]
        cells = [c for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]
        code = [c for c in notebook.cells if c.cell_type == "code"]
        if [c.source for c in cells] != [c.source for c in code]:
            cause = "the script changed after the run: make demo again"
            raise ContractError("outputs", f"{executed} of other code", f"the code of {script.name}", cause)
        for cell, executed_cell in zip(code, cells, strict=True):
            cell.outputs, cell.execution_count = executed_cell.outputs, executed_cell.execution_count
        for number, cell in enumerate(notebook.cells, start=1):
            cell.id = f"cell-{number}"  # jupytext draws a random one, a diff each time
        paired = script.with_suffix(".ipynb")
        jupytext.write(notebook, paired, fmt="ipynb")
        written.append(paired)
    return written


def clean_outputs(notebook):
    """A copy without live widgets, machine paths and papermill's metadata; figures without alternative text get the
    heading above them."""
    import nbformat

    notebook = copy.deepcopy(notebook)
    for key in ("widgets", "papermill"):
        notebook.metadata.pop(key, None)
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next(iter(re.findall(r"^#+\s+(.+)$", cell.source, re.M)[::-1]), heading)
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r"(?m)^out = .*\n?", "", cell.source)  # where this machine keeps its results
        if cell.get("outputs"):
            cell.outputs = nbformat.from_dict(json.loads(_without_paths(json.dumps(cell.outputs))))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if data.pop(WIDGET, None) is not None and "image/png" not in data:
                data["text/plain"] = "(interactive: run this cell to use it)"
            if "image/png" in data:
                data["image/png"] = _compress(data["image/png"])
                output.metadata.setdefault("image/png", {}).setdefault("alt", heading or "Figure")
    return notebook


def _compress(png: str, limit: int = 150_000) -> str:
    """A base64 PNG above `limit` characters in 256 colors: a third of the bytes in git.

    The colors are chosen to cover all that occur, not by frequency, so that a legend's small squares keep theirs.
    """
    from PIL import Image

    if len(png) <= limit:
        return png
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(small, "PNG", optimize=True)
    return min(png, base64.b64encode(small.getvalue()).decode(), key=len)


def _without_paths(text: str) -> str:
    """Paths inside the repository become relative; a kernel's temporary file becomes <cell>."""
    text = text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    return re.sub(r"/[\w/.-]*/ipykernel_\d+/\d+\.py", "<cell>", text)


def pair(run: str = "papermill_runs/demo") -> int:
    """Write the .ipynb beside each script, with the outputs of a finished run.

    Args:
        run: the folder with the executed notebooks; `notebooks` itself, after a change of prose, keeps their outputs
    """
    for path in pair_notebooks(Path(run)):
        print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")
    return 0
