"""A sweep as one page that opens without a network: what leads, what each parameter does, what failed, what it cost."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clay_lib.errors import ContractError
from clay_lib.figures import charts
from clay_lib.figures.style import BASELINE, INK, MAGNITUDE, OURS, styled
from clay_lib.files import atomic_write, read_json
from clay_lib.runs.gallery import STYLE
from clay_lib.runs.notebooks import RUNS
from clay_lib.runs.tables import (
    best,
    differences,
    fair,
    lacking,
    one_at_a_time,
    others_at,
    over_seeds,
    read_ledger,
    values_of,
)

MANY = 9  # more numbers than this are a cloud, not levels
LONGEST = 28  # characters of a text in a label
BETTER = {"min": "lower is better", "max": "higher is better"}


def effect(table: pd.DataFrame, parameter: str, metrics: Mapping[str, str], seed: str | None = "seed") -> Figure:
    """One panel a metric {name: "min" | "max"} over one parameter: its mean with the 95 % interval over seeds.

    The mean is over those other settings and seeds that every level has; grey dots are the single runs. A parameter
    drawn at random, or whose levels have no other setting in common, is dots alone. Levels tell how many runs they lost.
    """
    with styled():
        fig, axes = plt.subplots(1, len(metrics), figsize=(4.6 * len(metrics), 3.3), squeeze=False)
        for ax, (metric, direction) in zip(axes[0], metrics.items(), strict=True):
            levels, lost = (over_seeds(table, metric, [parameter], seed)[name] for name in (parameter, "lost"))
            numeric = pd.api.types.is_numeric_dtype(levels) and not pd.api.types.is_bool_dtype(levels)
            names = list(levels)  # in order, as groups are
            ticks = [
                (f"{n:g}" if numeric else drawn(n)) + f"\n{k} lost" * (k > 0) for n, k in zip(names, lost, strict=True)
            ]
            at = np.array(names, float) if numeric else np.arange(len(names), dtype=float)
            runs, kept = table[values_of(table, metric).notna()], fair(table, metric, [parameter])
            means = over_seeds(kept, metric, [parameter], seed).set_index(parameter).reindex(names).astype(float)
            x = runs[f"parameter {parameter}"]
            ax.plot(
                x if numeric else x.map(names.index),
                runs[f"metric {metric}"],
                "o",
                color=BASELINE,
                alpha=0.45,
                ms=3.5,
                lw=0,
            )
            if not (numeric and len(means) > MANY):
                bars = (means["value"] - means["low"]).fillna(0)
                ax.errorbar(
                    at,
                    means["value"],
                    bars,
                    fmt="o-" if numeric else "o",
                    color=OURS,
                    ecolor=INK,
                    capsize=4,
                    ms=6,
                    lw=1.6,
                    elinewidth=1.2,
                )
                ax.set_xticks(at, ticks)
            if numeric and _wide(at):
                ax.set_xscale("log")
                if len(means) <= MANY:
                    ax.set_xticks(at, ticks, minor=False)
                    ax.set_xticks([], minor=True)
            elif not numeric:
                ax.set_xlim(-0.5, len(at) - 0.5)
            else:
                ax.margins(x=0.08)
            note = (
                _note(kept, runs, "no mean: its levels share no setting") if len(names) <= MANY or not numeric else ""
            )
            ax.set(xlabel=f"{parameter}{note}", title=f"{drawn(metric)} ({BETTER[direction]})")
            ax.grid(axis="y", color="#e6e6e6", lw=0.8)
            ax.set_axisbelow(True)
            if not numeric and max(len(drawn(n)) for n in names) * len(names) > 40:
                ax.tick_params(axis="x", rotation=25)
    return fig


def pair(table: pd.DataFrame, rows: str, columns: str, metric: str, seed: str | None = "seed") -> Figure:
    """The mean of a metric over two parameters: a heat map, or coloured dots where one of them was drawn at random.

    Of all else, seeds too, it is over what every cell has; a line under the axis tells where that is less than all.
    """
    runs, kept = table[values_of(table, metric).notna()], fair(table, metric, [rows, columns])
    means = over_seeds(table, metric, [rows, columns], seed)
    if len(kept):  # it holds every cell that has a value
        shared = over_seeds(kept, metric, [rows, columns], seed).set_index([rows, columns])["value"]
        means["value"] = shared.reindex(pd.MultiIndex.from_frame(means[[rows, columns]])).to_numpy()
    title, xlabel = f"Mean {drawn(metric)}", columns + _note(kept, runs, "not the same settings behind every mean")
    if all(means[name].nunique() <= MANY for name in (rows, columns)):
        grid = means.pivot(index=rows, columns=columns, values="value")
        names = [[drawn(value) for value in axis] for axis in (grid.index, grid.columns)]
        fig = charts.matrix(
            grid.to_numpy(), names=names[0], columns=names[1], label=drawn(metric), title=title,
            xlabel=xlabel, ylabel=rows, form="{:.3g}",
        )  # fmt: skip
        if max(map(len, names[1])) < 6:
            fig.axes[0].tick_params(axis="x", rotation=0)
            plt.setp(fig.axes[0].get_xticklabels(), ha="center", rotation_mode="default")
        return fig
    with styled():
        fig, ax = plt.subplots(figsize=(5.4, 4.2))
        shown = ax.scatter(means[columns].map(_plain), means[rows].map(_plain), c=means["value"], cmap=MAGNITUDE, s=46)
        for name, scale in ((columns, ax.set_xscale), (rows, ax.set_yscale)):
            if pd.api.types.is_numeric_dtype(means[name]) and _wide(means[name]):
                scale("log")
        ax.set(xlabel=xlabel, ylabel=rows, title=title)
        fig.colorbar(shown, ax=ax, label=drawn(metric), pad=0.02)
    return fig


def ranking(
    table: pd.DataFrame, metric: str, direction: str, by: Sequence[str], seed: str | None = "seed", most: int = 12
) -> Figure:
    """The leading settings: a dot for the mean, a line for the 95 % interval over seeds, grey dots for single runs.

    Settings that lost a run, by failing or with NaN, come last with a hollow dot.
    """
    lead = best(table, metric, direction, by, seed).head(most)
    runs = table[values_of(table, metric).notna()]
    with styled():
        fig, ax = plt.subplots(figsize=(7.6, 0.36 * len(lead) + 1.2))
        for y, row in enumerate(lead.to_dict("records")):
            same = np.logical_and.reduce([runs[f"parameter {k}"] == row[k] for k in by] or [np.ones(len(runs), bool)])
            ax.plot(
                runs.loc[same, f"metric {metric}"], np.full(same.sum(), y), "o", color=BASELINE, alpha=0.6, ms=3.5, lw=0
            )
            ax.plot([row["low"], row["high"]], [y, y], color=INK, lw=1.4)
            ax.plot(row["value"], y, "o", color=OURS, mfc="white" if row["lost"] else OURS, ms=6)
        ax.set_yticks(range(len(lead)), _names(lead, one_at_a_time(runs, by)))
        ax.set_ylim(len(lead) - 0.5, -0.5)
        ax.set(xlabel=f"{drawn(metric)} ({BETTER[direction]})", title="Leading settings")
        ax.grid(axis="x", color="#e6e6e6", lw=0.8)
        ax.set_axisbelow(True)
    return fig


def against(
    table: pd.DataFrame,
    metric: str,
    direction: str,
    by: Sequence[str],
    base: Mapping[str, object],
    seed: str | None = "seed",
    most: int = 12,
) -> Figure:
    """Each setting minus `base`, paired by seed: a dot for the mean, a line for the 95 % interval."""
    told = differences(table, metric, by, base, seed).head(most)
    with styled():
        fig, ax = plt.subplots(figsize=(7.6, 0.36 * len(told) + 1.3))
        for y, row in enumerate(told.to_dict("records")):
            ax.plot([row["low"], row["high"]], [y, y], color=INK, lw=1.4)
            ax.plot(row["value"], y, "o", color=OURS, ms=6)
        ax.axvline(0, color=BASELINE, ls="--", lw=1.2)
        ax.set_yticks(range(len(told)), _names(told, base if one_at_a_time(table, by) else None))
        ax.set_ylim(len(told) - 0.5, -0.5)
        ax.set(xlabel=f"difference in {drawn(metric)} ({BETTER[direction]})", title=f"Minus: {in_words(base)}")
        ax.grid(axis="x", color="#e6e6e6", lw=0.8)
        ax.set_axisbelow(True)
    return fig


def _names(settings: pd.DataFrame, base: Mapping[str, object] | None) -> list[str]:
    """The settings in words; where all differ from a base in one parameter, in that one alone."""
    by = [name for name in settings if name not in ("value", "low", "high", "seeds", "runs", "lost")]
    names = []
    for row in settings.to_dict("records"):
        setting = {k: row[k] for k in by if base is None or row[k] != base[k]}
        lost = f" ({row['lost']} lost)" if row["lost"] else ""
        names.append((in_words(setting) if setting or base is None else "the base") + lost)
    return names


def _note(kept: pd.DataFrame, runs: pd.DataFrame, none: str) -> str:
    """A second line for an axis, where a mean is not over all runs."""
    if len(kept) == len(runs):
        return ""
    return f"\nmean over the {len(kept)} of {len(runs)} runs that compare like with like" if len(kept) else f"\n{none}"


def in_words(setting: Mapping[str, object]) -> str:
    """{"rate": 0.1, "kind": "a"} -> "rate 0.1, kind a"."""
    return ", ".join(f"{drawn(name)} {drawn(value)}" for name, value in setting.items()) or "as given"


def drawn(value) -> str:
    """A value as a label: short, printable, and no formula to matplotlib whatever it holds."""
    if not isinstance(value, str):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(c if c.isprintable() else " " for c in value) or "(empty)"
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return text.replace("$", r"\$")


def _plain(value):
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else drawn(value)


def _wide(values) -> bool:
    """Whether numbers span so much that they want a logarithmic axis."""
    return values.min() > 0 and values.max() > 30 * values.min()


# ---- A sweep as one page that opens without a network: what leads, what each parameter does, what failed, ----

SETTINGS = 12  # in the table of the leading ones
PAIRS = 10  # heat maps at most; the parameters named first in the specification come first


def write_report(runs: Path = RUNS, sweep: str | None = None) -> Path:
    """runs/SWEEP/report.html, or runs/report.html with every sweep that has begun. Links lead to the notebooks."""
    runs = Path(runs)
    names = [sweep] if sweep else sorted(p.parent.name for p in runs.glob("*/sweep.json"))
    if not names or not (runs / names[0] / "sweep.json").is_file():
        raise ContractError(
            "report",
            f"no run of {sweep or 'any sweep'} in {runs}",
            "a sweep that has begun",
            "start it first: clay sweep FILE.yaml",
        )
    page = runs / sweep / "report.html" if sweep else runs / "report.html"
    body = "".join(_section(runs, name, page.parent) for name in names)
    text = _PAGE.format(
        title=html.escape(sweep or "Sweeps"), style=STYLE + _MORE, body=body, when=time.strftime("%d %B %Y, %H:%M")
    )
    return atomic_write(page, lambda part: part.write_text(text, encoding="utf-8"))


def _section(runs: Path, name: str, here: Path) -> str:
    told = read_json(runs / name / "sweep.json")
    every = read_ledger(runs, name)
    table = every[every["asked"]] if len(every) else every
    parts = [_head(name, told, table, len(every) - len(table))]
    known = {m: d for m, d in told["metrics"].items() if f"metric {m}" in table and values_of(table, m).notna().any()}
    if known:
        parts += _answers(table, told["varied"], told["seed"], known)
    else:
        parts.append("<article><header><p>No finished run yet that has one of the metrics.</p></header></article>")
    parts.append(_failures(table, told["varied"], told["seed"], here))
    parts.append(_runs(table, told, known, here))
    return "".join(parts)


def _head(name: str, told: Mapping, table: pd.DataFrame, other: int) -> str:
    count = table["status"].value_counts() if len(table) else {}
    wrong = count.get("failed", 0) + count.get("died", 0)
    facts = [
        (f"{count.get('done', 0)} of {len(told['runs'])}", "runs done"),
        (f"{wrong}", "failed"),
        (f"{table['seconds'].sum() / 60:.1f} min" if len(table) else "0 min", "of kernels"),
        (f"{table['peak_mb'].max():.0f} MB" if len(table) and table["peak_mb"].notna().any() else "–", "peak of a run"),
    ]
    notes = [
        f"Notebook {told['told']['notebook']}. Varied: {', '.join(told['varied']) or 'nothing'}"
        + (f", with seeds in {told['seed']}." if told["seed"] else ", without seeds.")
    ]
    states = table.loc[table["status"] == "done", "library"].nunique() if len(table) else 0
    if states > 1:
        notes.append(f"The runs come from {states} different states of clay_lib; the table below tells which.")
    notes += lacking(table, told["metrics"]) if len(table) else []
    if other:
        notes.append(f"{other} runs of other settings or of an older notebook are kept in the folder and not shown.")
    state = "failed" if wrong else "done" if count.get("done", 0) == len(told["runs"]) else "under way"
    return (
        f'<div class=top><h1>{html.escape(name)} <span class="badge {state.split()[0]}">{state}</span></h1>'
        + "".join(f"<p>{html.escape(note)}</p>" for note in notes)
        + "<div class=facts>" + "".join(f"<div><b>{v}</b><span>{k}</span></div>" for v, k in facts) + "</div></div>"
    )  # fmt: skip


def _answers(table: pd.DataFrame, varied: Sequence[str], seed: str | None, metrics: Mapping[str, str]) -> Iterator[str]:
    """The leading settings, then a picture a parameter, then one a pair."""

    first, direction = next(iter(metrics.items()))
    lead = best(table, first, direction, varied, seed)
    others = {m: over_seeds(table, m, varied, seed) for m in metrics if m != first}
    cost = table.assign(**{"metric seconds": table["seconds"]})
    others["seconds"] = over_seeds(cost, "seconds", varied, None)
    head = [*varied, first, "95 % interval", "seeds", *others]
    rows = []
    for row in lead.head(SETTINGS).to_dict("records"):
        same = [
            next(r["value"] for r in part.to_dict("records") if all(r[k] == row[k] for k in varied))
            for part in others.values()
        ]
        seeds = f"{row['seeds']}, {row['lost']} lost" if row["lost"] else row["seeds"]
        rows.append([*(row[k] for k in varied), row["value"], _interval(row), seeds, *same])
    several = lead["seeds"].max() > 1
    said = (
        "Intervals are Student's t over the means of the seeds, 95 %; with few seeds they are wide, as they should be. Where they overlap, the order may be luck."
        if several
        else "One seed a setting: nothing tells how much of a difference is luck."
    )
    if lead["lost"].any():
        said += " Settings that lost a run, which failed or has no number, stand below all others: the mean of those that came through flatters."
    ranked = ranking(table, first, direction, varied, seed)
    yield _article(
        "Leading settings",
        f"By {first}, the {'smallest' if direction == 'min' else 'largest'} first. {said}",
        _picture(ranked) + _table(head, rows),
    )
    done = table[values_of(table, first).notna()]
    base = one_at_a_time(done, varied)
    if base is not None:
        minus = _picture(against(table, first, direction, varied, base, seed))
        said = "Every setting differs from one base in a single parameter. Differences are taken seed by seed, so that what a seed does to both cancels; the line is the 95 % t-interval. One that holds zero leaves it open."
        yield _article("Minus the base", said, minus)
    rows_of = {name: table if base is None else others_at(table, base, name) for name in varied}
    figures = [_picture(effect(rows, name, metrics, seed), name) for name, rows in rows_of.items()]
    alike = "other settings and seeds" if base is None else "seeds, all else as in the base,"
    if figures:
        said = f"Blue: the mean over those {alike} that every level has, with its 95 % interval over seeds. Grey: single runs."
        yield _article("One parameter at a time", said, "".join(figures))
    pairs = list(itertools.combinations(varied, 2))[:PAIRS] if base is None else []
    if pairs:
        maps = [_picture(pair(table, a, b, first, seed), f"{a} and {b}") for a, b in pairs]
        said = f"Mean {first} over those other settings and seeds that every cell has."
        yield _article("Two parameters together", said, f"<div class=pair>{''.join(maps)}</div>")


def _failures(table: pd.DataFrame, varied: Sequence[str], seed: str | None, here: Path) -> str:
    wrong = table[table["status"].isin(["failed", "died"])] if len(table) else table
    if not len(wrong):
        return ""
    names = [*varied, *([seed] if seed else [])]
    rows = [
        [
            *(row[f"parameter {n}"] for n in names),
            row["status"],
            row["failed_cell"] or "–",
            row["error"],
            _links(row, here),
        ]
        for row in wrong.to_dict("records")
    ]
    return _article(
        "Failed runs",
        "Kept as they ended; --retry-failed runs them again.",
        _table([*names, "", "cell", "error", ""], rows),
        bad=True,
    )


def _runs(table: pd.DataFrame, told: Mapping, metrics: Mapping[str, str], here: Path) -> str:
    if not len(table):
        return ""
    names = [*told["varied"], *([told["seed"]] if told["seed"] else [])]
    rows = [
        [
            *(row[f"parameter {n}"] for n in names),
            row["status"],
            *(row[f"metric {m}"] for m in metrics),
            row["seconds"],
            row["peak_mb"],
            row["library"],
            _links(row, here),
        ]
        for row in table.sort_values([f"parameter {n}" for n in names], kind="stable").to_dict("records")
    ]
    text = _table([*names, "", *metrics, "seconds", "MB", "clay_lib", ""], rows)
    asked = html.escape(json.dumps(told["told"], indent=1))
    return _article(
        "All runs",
        "",
        f"<details><summary>{len(rows)} runs with their notebooks</summary>{text}</details><details><summary>The specification</summary><pre>{asked}</pre></details>",
    )


def _links(row: Mapping, here: Path) -> _Html:
    folder = Path(row["folder"])
    found = [(folder / f"{row['notebook']}.ipynb", "notebook"), (folder / "log.txt", "log")]
    return _Html(
        " ".join(
            f'<a href="{html.escape(Path(os.path.relpath(path, here)).as_posix())}">{what}</a>'
            for path, what in found
            if path.exists()
        )
    )


class _Html(str):
    """Text that is markup already."""


def _interval(row: Mapping) -> str:
    return f"{row['low']:.4g} to {row['high']:.4g}" if row["low"] == row["low"] else "–"


def _table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    def cell(value) -> str:
        if isinstance(value, _Html):
            return value
        if value is None or value != value:
            return "–"
        return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))

    titles = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<div class=wide><table class=sweep><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"


def _article(title: str, said: str, body: str, *, bad: bool = False) -> str:
    return f"<main><article{' class=bad' if bad else ''}><header><div><h2>{title}</h2><p>{html.escape(said)}</p></div></header><div class=inside>{body}</div></article></main>"


def _picture(figure, caption: str = "") -> str:
    import matplotlib.pyplot as plt

    drawn = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "clay"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # text stays text, and the browser has other fonts
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    data = base64.b64encode(drawn.getvalue().encode()).decode()
    return f'<img class=plot alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{data}">'


_MORE = """
.top p{font-size:1rem;max-width:85ch}.inside{padding:0 28px 24px}.wide{overflow-x:auto}
img.plot{display:block;max-width:100%;height:auto;margin:0 0 18px;background:#fff;border-radius:10px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(430px,100%),1fr));gap:18px}.pair img{width:100%;max-width:560px}
table.sweep{width:100%}table.sweep th{padding:.4em 1em .4em 0;vertical-align:bottom;border-bottom:1px solid var(--line)}table.sweep td{text-align:left;font-weight:400;padding:.4em 1em .4em 0;min-width:0;white-space:nowrap}
.bad table.sweep td{white-space:normal}table.sweep a{margin:0 .8em 0 0}pre{overflow-x:auto}main{padding-bottom:0}.badge.under{background:var(--clay)}
"""

_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style>
{body}
<div class=end>Written {when} from the runs' folders.</div></html>
"""
