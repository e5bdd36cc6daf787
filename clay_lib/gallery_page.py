"""The gallery's page: a card for each notebook with its question, pictures, numbers and cost, in one file of HTML."""

from __future__ import annotations

import base64
import html
import re
import time

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
