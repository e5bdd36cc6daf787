"""What a run of notebooks shows for itself: one self-contained index.html, and each notebook as a page.

The page embeds its pictures, so it opens from disk without a network and can be mailed as one file.
"""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from clay_lib.errors import ContractError
from clay_lib.files import read_json
from clay_lib.runs.notebooks import NOTEBOOKS, PICTURES, ROOT, is_done, list_notebooks, read_script

HEADLINES = 10  # metrics shown before the fold


def page_of(title: str, runs: list[dict]) -> str:
    """The whole page. runs: what each card shows, as gallery.py reads it."""
    minutes = sum(r["seconds"] or 0 for r in runs) / 60
    peak = max((r["peak_mb"] or 0 for r in runs), default=0)
    failed = [r for r in runs if not r["ok"]]
    facts = [
        (f"{len(runs) - len(failed)} of {len(runs)}", "notebooks done"),
        *([(f"{minutes:.1f} min", "in all"), (f"{peak / 1024:.1f} GB", "peak memory")] if minutes else []),
        (f"{sum(len(r['pictures']) for r in runs)}", "pictures"),
    ]
    return _PAGE.format(
        title=html.escape(title),
        style=STYLE,
        script=_SCRIPT,
        state="failed" if failed else "done",
        facts="".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in facts),
        cards="".join(map(_card, runs)) or "<p class=empty>No notebook has run yet.</p>",
        when=time.strftime("%d %B %Y, %H:%M"),
    )


def _card(run: dict) -> str:
    text = {k: html.escape(str(run[k] or "")) for k in ("name", "title", "question", "failed_cell", "error", "export")}
    figures = "".join(_figure(*picture) for picture in run["pictures"])
    shown, folded = run["metrics"][:HEADLINES], run["metrics"][HEADLINES:]
    table = _table(shown)
    if folded:
        table += f"<details><summary>{len(folded)} more</summary>{_table(folded)}</details>"
    cost = [
        f"{run['seconds']:.0f} s" if run["seconds"] is not None else "",
        f"{run['peak_mb']:.0f} MB" if run["peak_mb"] else "",
        run["finished"] or "",
    ]
    alarm = (
        ""
        if run["ok"]
        else f"<div class=alarm><b>Stopped{' in ' + text['failed_cell'] if run['failed_cell'] else ''}</b><pre>{text['error']}</pre></div>"
    )
    return f"""
<article class="{"ok" if run["ok"] else "bad"}" id="{text["name"]}">
  <header><span class=number>{text["name"][:2]}</span><div><h2>{text["title"]}</h2><p>{text["question"]}</p></div></header>
  {alarm}
  <div class="body{"" if figures else " bare"}{"" if table else " solo"}"><div class=pictures>{figures}</div><aside>{table}</aside></div>
  <footer><span>{" · ".join(filter(None, cost))}</span><nav><a href="{text["export"]}">Read</a><a href="{text["name"]}.ipynb">Notebook</a></nav></footer>
</article>"""


def _table(metrics: list[tuple[str, str]]) -> str:
    """Name and value; numbers that share a beginning ("masked error / naip") stand under it."""
    rows, group = [], ""
    for name, value in metrics:
        over, _, leaf = name.rpartition(" / ")
        if over and over != group:
            rows.append(f"<tr class=group><th colspan=2>{html.escape(over)}</th></tr>")
        group = over
        rows.append(
            f"<tr{' class=member' if over else ''}><th>{html.escape(leaf)}</th><td>{html.escape(value)}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _figure(name: str, mime: str, data: bytes) -> str:
    label = html.escape(re.sub(r"^\d+[_ -]*", "", name).replace("_", " "))
    return f'<figure><img alt="{label}" src="data:{mime};base64,{base64.b64encode(data).decode()}"><figcaption>{label}</figcaption></figure>'


STYLE = """
:root{color-scheme:light dark;--paper:#f6f5f1;--card:#fff;--ink:#1c2321;--soft:#5d6864;--line:#e3e1da;--clay:#a4512d;--leaf:#1f6f5c;--bad:#b3261e;--badbg:#fdecea}
@media(prefers-color-scheme:dark){:root{--paper:#121614;--card:#1b211f;--ink:#e9ece8;--soft:#9aa6a1;--line:#2c3431;--clay:#e08f68;--leaf:#6cc3aa;--bad:#ff8a80;--badbg:#3a1d1b}}
*{box-sizing:border-box}html{scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.top,main,.end{max-width:1180px;margin:0 auto;padding:0 28px}
.top{padding-top:56px;padding-bottom:28px}.top h1{margin:0;font-size:clamp(2rem,4vw,3rem);line-height:1.1;letter-spacing:-.02em;font-weight:700}
.top h1 em{font-style:normal;color:var(--clay)}.top p{margin:.5em 0 0;color:var(--soft);font-size:1.1rem}
.badge{display:inline-block;vertical-align:middle;margin-left:.6em;padding:.15em .75em;border-radius:99px;font-size:.9rem;font-weight:600;letter-spacing:0;color:#fff;background:var(--leaf)}
.badge.failed{background:var(--bad)}@media(prefers-color-scheme:dark){.badge{color:#121614}}
.facts{display:flex;flex-wrap:wrap;gap:14px 48px;margin-top:28px}.facts b{display:block;font-size:1.7rem;line-height:1.2;font-variant-numeric:tabular-nums}.facts span{color:var(--soft);font-size:.92rem}
article{background:var(--card);border:1px solid var(--line);border-radius:18px;margin:0 0 28px;overflow:hidden;box-shadow:0 1px 2px rgb(0 0 0/.04),0 8px 24px rgb(0 0 0/.04)}
article.bad{border-color:var(--bad);box-shadow:0 0 0 1px var(--bad)}
article header{display:flex;gap:18px;padding:26px 28px 18px}.number{flex:none;font-weight:700;font-size:1.05rem;color:var(--clay);padding-top:.3em;font-variant-numeric:tabular-nums}
.bad .number{color:var(--bad)}h2{margin:0;font-size:1.5rem;line-height:1.25;letter-spacing:-.01em}header p{margin:.35em 0 0;color:var(--soft);max-width:75ch}
.alarm{margin:0 28px 18px;padding:14px 18px;border-radius:12px;background:var(--badbg);color:var(--bad);overflow-wrap:anywhere}.alarm pre{margin:.4em 0 0;white-space:pre-wrap;font:14px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace}
.body{display:grid;grid-template-columns:minmax(0,1fr) 290px;gap:28px;padding:0 28px 22px}.body.bare,.body.solo{grid-template-columns:1fr}.body.solo aside{display:none}.body.bare .pictures{display:none}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:14px;align-content:start}
figure{margin:0;cursor:zoom-in}figure:first-child{grid-column:1/-1}figure img{display:block;width:100%;height:130px;object-fit:contain;background:#fff;border:1px solid var(--line);border-radius:10px}
figure:first-child img{height:auto;max-height:460px}figcaption{margin-top:.35em;color:var(--soft);font-size:.85rem;text-align:center}
table{width:100%;border-collapse:collapse;font-size:.93rem}th{font-weight:400;text-align:left;color:var(--soft);padding:.42em .8em .42em 0;overflow-wrap:anywhere}td{text-align:right;font-weight:600;font-variant-numeric:tabular-nums;padding:.42em 0;min-width:5.5em;overflow-wrap:break-word}
tr+tr>*{border-top:1px solid var(--line)}tr.group th{color:var(--ink);font-weight:600;padding-top:.8em}tr.member th{padding-left:.9em}
details{margin-top:.5em;font-size:.9rem;color:var(--soft)}summary{cursor:pointer}
footer{display:flex;justify-content:space-between;flex-wrap:wrap;gap:10px;padding:13px 28px;border-top:1px solid var(--line);color:var(--soft);font-size:.92rem}
a{color:var(--leaf);font-weight:600;text-decoration:none;margin-left:22px}a:hover{text-decoration:underline}.end{padding-top:6px;padding-bottom:48px;color:var(--soft);font-size:.9rem}
dialog{border:0;padding:0;background:none;max-width:96vw;max-height:96vh}dialog img{display:block;max-width:96vw;max-height:94vh;background:#fff;border-radius:10px;cursor:zoom-out}dialog::backdrop{background:rgb(10 14 12/.82)}
@media(max-width:820px){.body{grid-template-columns:1fr}.top,main,.end{padding-left:16px;padding-right:16px}}
"""

_SCRIPT = """
const box=document.querySelector('dialog'),big=box.firstElementChild;
document.querySelectorAll('figure img').forEach(i=>i.onclick=()=>{big.src=i.src;big.alt=i.alt;box.showModal()});box.onclick=()=>box.close();
"""

_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>Clay, from scratch: {title}</title><style>{style}</style>
<div class=top><h1>Clay, <em>from scratch</em> <span class="badge {state}">{title}: {state}</span></h1>
<p>A foundation model of the Earth, taken apart and built again in notebooks.</p><div class=facts>{facts}</div></div>
<main>{cards}</main>
<div class=end>Written {when}. Click a picture to enlarge it.</div>
<dialog><img alt=""></dialog><script>{script}</script></html>
"""

# ---- Outputs for the notebooks in git: what a run printed and drew, put beside the cells of the scripts ----

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
                "outputs", f"no whole run in {executed}", "a finished demo run", "run the demo profile first: make demo"
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
                f"{executed} of other cells",
                f"the cells of {script.name}",
                "the script changed after the run: make demo again",
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


# ---- What a run of notebooks shows for itself: one self-contained index.html, and each notebook as a page ----

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
