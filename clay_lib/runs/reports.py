"""Sweep reports: one page that opens without a network, with ranking, effects, curves, failures and cost, and its
figures. reports.js draws what responds to the mouse, the keyboard and the filter."""

import html
import io
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clay_lib.errors import ContractError
from clay_lib.figures import charts
from clay_lib.figures.style import BASELINE, INK, OURS, styled
from clay_lib.files import read_json
from clay_lib.runs.gallery import Markup, article, data_url, head, table_html, write_page
from clay_lib.runs.notebooks import FIGURES, RUNS, read_reported
from clay_lib.runs.search import importance
from clay_lib.runs.tables import (
    best,
    comparable_rows,
    differences,
    matches,
    one_at_a_time,
    others_at,
    over_seeds,
    read_ledger,
    runs_without,
    values_of,
)

MAX_LEVELS = 9  # more numbers than this are drawn as a cloud, not as levels
LABEL_LENGTH = 28  # characters of a text in a label
SETTINGS = 12  # in the table and figure of the leading ones
PAIRS = 10  # heat maps at most; the parameters named first in the specification come first
MAX_RUNS, MAX_CURVES, MAX_POINTS = 2000, 500, 60  # on a page of 2 MB
BETTER = {"min": "lower is better", "max": "higher is better"}


# ---- the page


def write_report(runs: Path = RUNS, sweep: str | None = None) -> Path:
    """runs/SWEEP/report.html, or runs/report.html with every sweep that was started. Links lead to the notebooks."""
    runs = Path(runs)
    names = [sweep] if sweep else sorted(p.parent.name for p in runs.glob("*/sweep.json"))
    if not names or not (runs / names[0] / "sweep.json").is_file():
        cause = "start it first: clay sweep FILE.yaml"
        raise ContractError("report", f"no run of {sweep or 'any sweep'} in {runs}", "a started sweep", cause)
    page = (runs / sweep if sweep else runs) / "report.html"
    body = "".join(_section(runs, name, page.parent) for name in names)
    script = Path(__file__).with_name("reports.js").read_text(encoding="utf-8")
    return write_page(page, sweep or "Sweeps", body, note="Read from the runs' folders.", script=script)


def _section(runs: Path, name: str, home: Path) -> str:
    """One sweep. home: the page's folder, where its links begin."""
    summary, ledger = read_json(runs / name / "sweep.json"), read_ledger(runs, name)
    table = ledger[ledger["asked"]] if len(ledger) else ledger
    metrics = {metric: direction for metric, direction in summary["metrics"].items() if _has_values(table, metric)}
    parts = [_head(name, summary, table, len(ledger) - len(table))]
    if metrics:
        parts += _leaders(table, summary, metrics)
    else:
        parts.append(article("No results", "No finished run yet that has one of the metrics.", ""))
    names = [*summary["varied"], *filter(None, [summary["seed"]])]
    parts += [_failures(table, names, home), _explorer(table, names, metrics, home)] if len(table) else []
    parts += _effects(table, summary, metrics) if metrics else []
    specification = f"<pre>{html.escape(json.dumps(summary['specification'], indent=1))}</pre>"
    return "".join([*parts, article("The specification", "As it was written.", specification)])


def _has_values(table: pd.DataFrame, metric: str) -> bool:
    return f"metric {metric}" in table and values_of(table, metric).notna().any()


def _head(name: str, summary: Mapping, table: pd.DataFrame, other: int) -> str:
    count = table["status"].value_counts() if len(table) else {}
    done, failed, total = count.get("done", 0), count.get("failed", 0) + count.get("died", 0), len(summary["runs"])
    pruned, peak = count.get("pruned", 0), table["peak_mb"].max() if len(table) else np.nan
    facts = [
        (f"{done} of {total}", "runs done"),
        *([(f"{pruned}", "pruned")] if pruned else []),
        (f"{failed}", "failed"),
        (f"{table['seconds'].sum() / 60:.1f} min" if len(table) else "0 min", "of kernels"),
        (f"{peak:.0f} MB" if pd.notna(peak) else "–", "peak of a run"),
    ]
    seeds = f"with seeds in {summary['seed']}" if summary["seed"] else "without seeds"
    notes = [
        f"Notebook {summary['specification']['notebook']}. Varied: {', '.join(summary['varied']) or 'nothing'}, {seeds}."
    ]
    states = table.loc[table["status"] == "done", "library"].nunique() if len(table) else 0
    if states > 1:
        notes.append(f"The runs come from {states} different states of clay_lib, named in the table of all runs.")
    notes += runs_without(table, summary["metrics"]) if len(table) else []
    if other:
        notes.append(f"{other} runs of other settings or of an older notebook are kept in the folder and not shown.")
    state = "failed" if failed else "done" if done + pruned == total else "running"
    return head(html.escape(name), state, state, notes, facts)


def _leaders(table: pd.DataFrame, summary: Mapping, metrics: Mapping[str, str]) -> Iterator[str]:
    """The leading settings, and which parameters matter."""
    (first, direction), varied, seed = next(iter(metrics.items())), summary["varied"], summary["seed"]
    seeds, ranked, note = summary.get("confirmed") or [], table, ""
    again = table[table[f"parameter {seed}"].isin(seeds)] if seeds else table
    if seeds and _has_values(again, first):
        ranked = again
        note = " The best trials of the search ran again with new seeds; only these runs count here, since the best of"
        note += " many trials is partly luck."
    lead = best(ranked, first, direction, varied, seed)
    figure = _image(ranking(ranked, first, direction, varied, seed))
    order = "smallest" if direction == "min" else "largest"
    text = f"By {first}, the {order} first. {_ranking_note(lead)}{note}"
    lead = lead if lead["lost"].any() else lead.drop(columns=["lost", "compared", "diverged"])
    numbers = table_html(
        [*varied, first, *lead.columns[len(varied) + 1 :]], lead.head(SETTINGS).itertuples(index=False)
    )
    yield article("Leading settings", text, figure + numbers)
    finished = table[values_of(table, first).notna()]
    shares = importance(finished.sample(min(len(finished), 1000), random_state=0), first, varied)
    if shares:
        bars = "".join(
            f'<dt>{html.escape(name)}</dt><dd style="--share: {share:.4f}"><span>{share:.0%}</span></dd>'
            for name, share in shares.items()
        )
        text = f"Share of the differences in {first} that each parameter explains, alone and in combinations (fANOVA)."
        yield article("Which parameters matter", text, f"<dl class=bars>{bars}</dl>")


def _effects(table: pd.DataFrame, summary: Mapping, metrics: Mapping[str, str]) -> Iterator[str]:
    """A figure for each parameter, then one for each pair."""
    (first, direction), varied, seed = next(iter(metrics.items())), summary["varied"], summary["seed"]
    finished = table[values_of(table, first).notna()]
    base = one_at_a_time(finished, varied)
    if base is not None:
        text = "Every setting differs from one base in a single parameter. Differences are paired by seed, so that the "
        text += "effect of a seed cancels; the line is the 95 % t-interval. If it contains zero, the sign is open."
        yield article("Minus the base", text, _image(base_differences(table, first, direction, varied, base, seed)))
    if varied:
        rows = {name: table if base is None else others_at(table, base, name) for name in varied}
        figures = [_image(effect(rows[name], name, metrics, seed), name) for name in varied]
        over = "other settings and seeds" if base is None else "seeds, with everything else as in the base,"
        text = f"Blue: the mean over those {over} that every level has, with its 95 % interval. Gray: single runs."
        yield article("One parameter at a time", text, "".join(figures))
    levels = [name for name in varied if finished[f"parameter {name}"].nunique() <= MAX_LEVELS]
    pairs = list(itertools.combinations(levels, 2))[:PAIRS] if base is None else []
    if pairs:
        figures = [_image(pair(table, a, b, first, seed), f"{a} and {b}") for a, b in pairs]
        text = f"Mean {first} over those other settings and seeds that every cell has."
        yield article("Two parameters together", text, f"<div class=pair>{''.join(figures)}</div>")


def _ranking_note(lead: pd.DataFrame) -> str:
    note = "One seed per setting: differences may be chance."
    if lead["seeds"].max() > 1:
        note = (
            "Intervals are Student's t over the means of the seeds, 95 %; with few seeds they are wide. Where they "
            "overlap, the order may be chance."
        )
    if lead["lost"].any() and lead["compared"].isna().all():
        note += " Runs failed, and some settings share no seed with others: those that lost a run stand below."
    elif lead["lost"].any():
        note += (
            " Where runs failed, settings are ranked by the column compared: each beside the others on the seeds that "
            "both have. Settings with a run that ended without a finite number (diverged) stand below all others."
        )
    return note


def _failures(table: pd.DataFrame, names: Sequence[str], home: Path) -> str:
    """Equal failures in one line, with the first of their runs."""
    failed = table[table["status"].isin(["failed", "died"])]
    if not len(failed):
        return ""
    rows = []
    for (cell, error), group in failed.groupby(["failed_cell", "error"], dropna=False, sort=False):
        first = group.iloc[0]
        log = Path(os.path.relpath(first["folder"], home), "log.txt").as_posix()
        link = Markup(f'<a href="{html.escape(log)}">log</a>')
        rows.append([len(group), cell, error, *(first[f"parameter {n}"] for n in names), link])
    body = table_html(["runs", "cell", "error", *(f"first: {name}" for name in names), ""], rows)
    return article("Failed runs", "Kept as they ended; --retry-failed runs them again.", body, bad=True)


def _explorer(table: pd.DataFrame, names: Sequence[str], metrics: Mapping[str, str], home: Path) -> str:
    """The data that reports.js draws: parallel coordinates, learning curves, two runs side by side, the table."""
    shown, note = table, f"{len(table):,} runs."
    if metrics:
        first, direction = next(iter(metrics.items()))
        shown = table.loc[values_of(table, first).sort_values(ascending=direction == "min").index]
    if len(shown) > MAX_RUNS:
        quarter = MAX_RUNS // 4
        others = np.random.default_rng(0).choice(len(shown) - quarter, MAX_RUNS - quarter, replace=False) + quarter
        shown = shown.iloc[[*range(quarter), *sorted(others)]]
        note = f"{MAX_RUNS:,} of {len(table):,} runs: the {quarter} best, and a random sample of the others."
    every = math.ceil(len(shown) / MAX_CURVES)
    note += f" Learning curves of every {every}th run." if every > 1 else ""
    kinds = {name: "parameter" for name in names} | dict(metrics) | {"seconds": "cost"}
    columns = [*(f"parameter {name}" for name in names), *(f"metric {name}" for name in metrics), "seconds"]
    runs = []
    for number, row in enumerate(shown.to_dict("records")):
        folder, values = Path(row["folder"]), [row[column] for column in columns]
        points = [] if number % every else list(read_reported(folder).items())
        points = points[:: -max(1, math.ceil(len(points) / MAX_POINTS))][::-1]  # the last one stays
        run = {
            "run": row["run"],
            "status": row["status"],
            "values": [None if isinstance(v, float) and not math.isfinite(v) else v for v in values],
            "curve": [point for point in points if math.isfinite(point[1])],
            "figures": sorted(path.name for path in folder.glob("*") if path.suffix in FIGURES),
            "library": row["library"],
        }
        runs.append(run)
    path = Path(os.path.relpath(Path(table["folder"].iloc[0]).parent, home)).as_posix()
    data = {"path": path, "notebook": f"{table['notebook'].iloc[0]}.ipynb", "columns": kinds, "runs": runs}
    text = json.dumps(data, separators=(",", ":"), default=str).replace("<", "\\u003c")
    return article("All runs", note, f'<div class=explorer><script type="application/json">{text}</script></div>')


def _image(figure: Figure, caption: str = "") -> str:
    svg = io.BytesIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "clay"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # text stays text, and the browser has other fonts
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return f'<img class=plot alt="{html.escape(caption)}" src="{data_url(svg.getvalue(), "image/svg+xml")}">'


# ---- figures: rows of the ledger in


def effect(table: pd.DataFrame, parameter: str, metrics: Mapping[str, str], seed: str | None = "seed") -> Figure:
    """One panel a metric {name: "min" | "max"} over one parameter: its mean with the 95 % interval over seeds.

    The mean is over those other settings and seeds that every level has; gray dots are single runs. A parameter
    drawn at random, or whose levels have no other setting in common, is shown as dots alone.
    """
    with styled():
        fig, axes = plt.subplots(1, len(metrics), figsize=(4.6 * len(metrics), 3.3), squeeze=False)
        for ax, (metric, direction) in zip(axes[0], metrics.items(), strict=True):
            _effect_panel(ax, table, parameter, metric, seed)
            ax.set_title(f"{label(metric)} ({BETTER[direction]})")
            ax.grid(axis="y", color="#e6e6e6", lw=0.8)
            ax.set_axisbelow(True)
    return fig


def _effect_panel(ax, table: pd.DataFrame, parameter: str, metric: str, seed: str | None) -> None:
    levels, lost = (over_seeds(table, metric, [parameter], seed)[name] for name in (parameter, "lost"))
    numeric = pd.api.types.is_numeric_dtype(levels) and not pd.api.types.is_bool_dtype(levels)
    levels = list(levels)  # in order, as groups are
    as_levels = len(levels) <= MAX_LEVELS
    runs, common = table[values_of(table, metric).notna()], comparable_rows(table, metric, [parameter])
    x = runs[f"parameter {parameter}"]
    x = x if numeric else x.map(levels.index)
    ax.plot(x, runs[f"metric {metric}"], "o", color=BASELINE, alpha=0.45, ms=3.5, lw=0, rasterized=len(x) > MAX_CURVES)
    at = np.array(levels, float) if numeric else np.arange(len(levels), dtype=float)
    names = [f"{level:g}" if numeric else label(level) for level in levels]
    ticks = [name + f"\n{count} lost" * (count > 0) for name, count in zip(names, lost, strict=True)]
    if as_levels or not numeric:
        means = over_seeds(common, metric, [parameter], seed).set_index(parameter).reindex(levels).astype(float)
        half = (means["value"] - means["low"]).fillna(0)
        line = dict(fmt="o-" if numeric else "o", color=OURS, ecolor=INK, capsize=4, ms=6, lw=1.6, elinewidth=1.2)
        ax.errorbar(at, means["value"], half, **line)
        ax.set_xticks(at, ticks)
    if numeric and at.min() > 0 and at.max() > 30 * at.min():
        ax.set_xscale("log")
        if as_levels:
            ax.set_xticks(at, ticks, minor=False)
            ax.set_xticks([], minor=True)
    elif numeric:
        ax.margins(x=0.08)
    else:
        ax.set_xlim(-0.5, len(at) - 0.5)
        if max(map(len, names)) * len(names) > 40:
            ax.tick_params(axis="x", rotation=25)
    note = _note(common, runs, "no mean: its levels share no setting") if as_levels or not numeric else ""
    ax.set_xlabel(f"{parameter}{note}")


def pair(table: pd.DataFrame, rows: str, columns: str, metric: str, seed: str | None = "seed") -> Figure:
    """The mean of a metric over two parameters, as a heat map.

    The mean is over those other settings and seeds that every cell has; a line under the axis says so if that is
    less than all.
    """
    runs, common = table[values_of(table, metric).notna()], comparable_rows(table, metric, [rows, columns])
    means = over_seeds(table, metric, [rows, columns], seed)
    if len(common):  # it has every cell that has a value
        shared = over_seeds(common, metric, [rows, columns], seed).set_index([rows, columns])["value"]
        means["value"] = shared.reindex(pd.MultiIndex.from_frame(means[[rows, columns]])).to_numpy()
    title, xlabel = f"Mean {label(metric)}", columns + _note(common, runs, "not the same settings behind every mean")
    grid = means.pivot(index=rows, columns=columns, values="value")
    names = [[label(value) for value in axis] for axis in (grid.index, grid.columns)]
    text = dict(label=label(metric), title=title, xlabel=xlabel, ylabel=rows, form="{:.3g}")
    fig = charts.matrix(grid.to_numpy(), names=names[0], columns=names[1], **text)
    if max(map(len, names[1])) < 6:
        fig.axes[0].tick_params(axis="x", rotation=0)
        plt.setp(fig.axes[0].get_xticklabels(), ha="center", rotation_mode="default")
    return fig


def ranking(table: pd.DataFrame, metric: str, direction: str, by: Sequence[str], seed: str | None = "seed") -> Figure:
    """The leading settings: a dot for the mean, a line for the 95 % interval over seeds, gray dots for single runs.

    Settings that lost a run have a hollow dot.
    """
    lead = best(table, metric, direction, by, seed).head(SETTINGS)
    runs = table[values_of(table, metric).notna()]
    fig = _intervals(lead, one_at_a_time(runs, by), "Leading settings", f"{label(metric)} ({BETTER[direction]})")
    for y, row in enumerate(lead.to_dict("records")):
        x = runs.loc[matches(runs, {name: row[name] for name in by}), f"metric {metric}"]
        fig.axes[0].plot(x, np.full(len(x), y), "o", color=BASELINE, alpha=0.6, ms=3.5, lw=0, zorder=1)
    return fig


def base_differences(
    table: pd.DataFrame,
    metric: str,
    direction: str,
    by: Sequence[str],
    base: Mapping[str, object],
    seed: str | None = "seed",
) -> Figure:
    """Each setting minus `base`, paired by seed: a dot for the mean, a line for the 95 % interval."""
    rows = differences(table, metric, by, base, seed).head(SETTINGS)
    xlabel = f"difference in {label(metric)} ({BETTER[direction]})"
    fig = _intervals(rows, base if one_at_a_time(table, by) else None, f"Minus: {describe(base)}", xlabel)
    fig.axes[0].axvline(0, color=BASELINE, ls="--", lw=1.2)
    return fig


def _intervals(rows: pd.DataFrame, base: Mapping[str, object] | None, title: str, xlabel: str) -> Figure:
    """A dot with an interval for each setting; where all differ from a base in one parameter, named by that one."""
    with styled():
        fig, ax = plt.subplots(figsize=(7.6, 0.36 * len(rows) + 1.25))
        names = []
        for y, row in enumerate(rows.to_dict("records")):
            value, low, high, lost = (row.pop(key) for key in ("value", "low", "high", "lost"))
            ax.plot([low, high], [y, y], color=INK, lw=1.4)
            ax.plot(value, y, "o", color=OURS, mfc="white" if lost else OURS, ms=6)
            setting = {k: v for k, v in row.items() if k not in ("seeds", "runs", "compared", "diverged")}
            setting = setting if base is None else {k: v for k, v in setting.items() if v != base[k]}
            name = "the base" if base is not None and not setting else describe(setting)
            names.append(name + f" ({lost} lost)" * bool(lost))
        ax.set_yticks(range(len(rows)), names)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set(xlabel=xlabel, title=title)
        ax.grid(axis="x", color="#e6e6e6", lw=0.8)
        ax.set_axisbelow(True)
    return fig


def _note(common: pd.DataFrame, runs: pd.DataFrame, none: str) -> str:
    """A second line for an axis, where a mean is not over all runs."""
    if len(common) == len(runs):
        return ""
    return f"\nmean over the {len(common)} of {len(runs)} comparable runs" if len(common) else f"\n{none}"


def describe(setting: Mapping[str, object]) -> str:
    """{"rate": 0.1, "kind": "a"} -> "rate 0.1, kind a"."""
    return ", ".join(f"{label(name)} {label(value)}" for name, value in setting.items()) or "as given"


def label(value) -> str:
    """A value as a label: short, printable, and never read as a formula by matplotlib."""
    if not isinstance(value, str):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(c if c.isprintable() else " " for c in value) or "(empty)"
    text = text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 3]}..."
    return text.replace("$", r"\$")
