"""HTML pages of runs: one style and one template for the gallery and the reports. A page opens without a network."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from clay_lib.files import atomic_write

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
