"""Pictures of a sweep: what a parameter does, what two do together, which settings lead. Rows of the ledger in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clay_lib import charts
from clay_lib.colours import FLOOR, INK, MAGNITUDE, OURS, style
from clay_lib.sweep_table import best, differences, fair, one_at_a_time, over_seeds, values_of

MANY = 9  # more numbers than this are a cloud, not levels
LONGEST = 28  # characters of a text in a label
BETTER = {"min": "lower is better", "max": "higher is better"}


def effect(table: pd.DataFrame, parameter: str, metrics: Mapping[str, str], seed: str | None = "seed") -> Figure:
    """One panel a metric {name: "min" | "max"} over one parameter: its mean with the 95 % interval over seeds.

    The mean is over those other settings and seeds that every level has; grey dots are the single runs. A parameter
    drawn at random, or whose levels have no other setting in common, is dots alone. Levels tell how many runs they lost.
    """
    with style():
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
                color=FLOOR,
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
    with style():
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
    with style():
        fig, ax = plt.subplots(figsize=(7.6, 0.36 * len(lead) + 1.2))
        for y, row in enumerate(lead.to_dict("records")):
            same = np.logical_and.reduce([runs[f"parameter {k}"] == row[k] for k in by] or [np.ones(len(runs), bool)])
            ax.plot(
                runs.loc[same, f"metric {metric}"], np.full(same.sum(), y), "o", color=FLOOR, alpha=0.6, ms=3.5, lw=0
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
    with style():
        fig, ax = plt.subplots(figsize=(7.6, 0.36 * len(told) + 1.3))
        for y, row in enumerate(told.to_dict("records")):
            ax.plot([row["low"], row["high"]], [y, y], color=INK, lw=1.4)
            ax.plot(row["value"], y, "o", color=OURS, ms=6)
        ax.axvline(0, color=FLOOR, ls="--", lw=1.2)
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
