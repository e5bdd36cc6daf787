"""Charts: bars, curves, kernels and matrices; numbers in, matplotlib Figure out. Reached through plots.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from clay_lib.errors import ContractError
from clay_lib.figures.style import FLOOR, INK, MAGNITUDE, MISSING, PALETTE, SIGNED, array, style


def bars_with_intervals(
    table: pd.DataFrame,
    *,
    label: str = "",
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    form: str = "{:.2f}",
) -> Figure:
    """Horizontal bars with intervals; columns name, value, low, high, kind ("baseline" is grey, the rest coloured)."""
    lacking = {"name", "value", "low", "high", "kind"} - set(table.columns)
    if lacking:
        raise ContractError(
            "table", list(table.columns), "columns name, value, low, high, kind", f"{sorted(lacking)} missing"
        )
    kinds = [k for k in dict.fromkeys(table["kind"]) if k != "baseline"]
    colours = {"baseline": FLOOR, **{k: PALETTE[i % len(PALETTE)] for i, k in enumerate(kinds)}}
    with style():
        fig, ax = plt.subplots(figsize=(7.2, 0.36 * len(table) + 1.1))
        at = np.arange(len(table))
        value, low, high = (table[c].to_numpy(float) for c in ("value", "low", "high"))
        ax.barh(at, value, color=[colours[k] for k in table["kind"]], height=0.7)
        ax.errorbar(
            value,
            at,
            xerr=np.abs(np.stack([value - low, high - value])),
            fmt="none",
            ecolor=INK,
            elinewidth=1.2,
            capsize=3,
        )
        left, right = limits or (min(0.0, np.nanmin([value, low])), np.nanmax([value, high]))
        room = 0.02 * (right - left)
        for y, v, h in zip(at, value, high, strict=True):
            ax.text(max(v, h if np.isfinite(h) else v) + room, y, form.format(v), va="center", fontsize=9, color=INK)
        ax.set_xlim(left, right + 5 * room)
        ax.set_yticks(at, table["name"])
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        ax.set_xlabel(label)
        ax.set_title(title or "")
        present = [k for k in colours if (table["kind"] == k).any()]
        if len(present) > 1:
            keys = [Patch(color=colours[k], label=k) for k in present]
            fig.legend(handles=keys, loc="outside upper right", ncols=len(keys))
    return fig


def scores(table: pd.DataFrame, *, title: str = "") -> Figure:
    """A panel a probe, a row a feature set: dots with intervals for the honest split, rings for the random one.

    table: as `evaluation.Evaluation.table`: features, kind, split, probe, score, low, high. Baselines are grey.
    """
    probes, names = list(dict.fromkeys(table["probe"])), list(dict.fromkeys(table["features"]))
    kinds = table.drop_duplicates("features").set_index("features")["kind"]
    names = [n for n in names if kinds[n] == "baseline"] + [n for n in names if kinds[n] != "baseline"]
    honest = next(s for s in ("blocks", "given", "random") if (table["split"] == s).any())
    with style():
        size = (2.6 + 2.3 * len(probes), 0.32 * len(names) + 1.5)
        fig, axes = plt.subplots(1, len(probes), figsize=size, sharey=True, sharex=True, squeeze=False)
        for ax, probe in zip(axes[0], probes, strict=True):
            part = table[table["probe"] == probe].set_index(["features", "split"])
            for y, name in enumerate(names):
                row, colour = part.loc[(name, honest)], "#6b6b6b" if kinds[name] == "baseline" else PALETTE[0]
                ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=2)
                ax.plot(row["score"], y, "o", color=colour, ms=6)
                if honest != "random" and (name, "random") in part.index:
                    ax.plot(part.loc[(name, "random"), "score"], y, "o", mfc="none", mec=INK, ms=7, mew=1)
            ax.set_title(probe)
            ax.set_xlabel({"balanced": "balanced accuracy"}.get(table["metric"].iloc[0], table["metric"].iloc[0]))
            ax.grid(axis="x", color="#e6e6e6", lw=0.8)
            ax.set_axisbelow(True)
        axes[0, 0].set_yticks(range(len(names)), names)
        axes[0, 0].invert_yaxis()
        told = {"blocks": "split by blocks", "given": "the given split", "random": "random split"}[honest]
        keys = [Line2D([], [], color=c, marker="o", lw=2, label=f"{w}, {told}")
                for c, w in (("#6b6b6b", "baseline"), (PALETTE[0], "model"))]  # fmt: skip
        if honest != "random" and (table["split"] == "random").any():
            keys.append(Line2D([], [], color=INK, marker="o", mfc="none", lw=0, label="random split"))
        fig.legend(handles=keys, loc="outside lower right", ncols=len(keys))
        if title:
            fig.suptitle(title, x=0.01, ha="left")
    return fig


def against_bytes(
    table: pd.DataFrame, *, ylabel: str, title: str = "", floor: tuple[str, float] | None = None
) -> Figure:
    """Dots with intervals over the bytes of a vector (log2), named; columns name, bytes, value, low, high, kind.

    kind: a colour each. floor: (name, level), a grey line.
    """
    kinds = list(dict.fromkeys(table["kind"]))
    with style():
        fig, ax = plt.subplots(figsize=(7.6, 4.2))
        for k, kind in enumerate(kinds):
            part, colour = table[table["kind"] == kind].sort_values("bytes"), PALETTE[k % len(PALETTE)]
            ends = np.abs(np.stack([part["value"] - part["low"], part["high"] - part["value"]]))
            ax.errorbar(part["bytes"], part["value"], yerr=ends, fmt="o-", color=colour, lw=1.2, ms=6, capsize=3,
                        elinewidth=1.2, label=kind)  # fmt: skip
            for row in part.itertuples():
                side = -1 if k == len(kinds) - 1 else 1  # the last family's names stand left, out of the others' way
                ax.annotate(row.name, (row.bytes, row.value), xytext=(6 * side, 5 if k % 2 else -12), fontsize=8,
                            ha="left" if side > 0 else "right", textcoords="offset points", color=colour)  # fmt: skip
        if floor:
            ax.axhline(floor[1], color=FLOOR, lw=1.2, ls="--", zorder=1)
            ax.annotate(floor[0], (0.01, floor[1]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                        textcoords="offset points", ha="left", fontsize=8, color="#6b6b6b")  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.margins(x=0.12)
        ax.set(xlabel="bytes of a vector", ylabel=ylabel)
        ax.set_title(title)
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
        ax.set_axisbelow(True)
        fig.legend(loc="outside lower right", ncols=len(kinds))
    return fig


_DASHES = ("-", "--", ":", "-.")


def curves(
    frames: pd.DataFrame | Mapping[str, pd.DataFrame],
    x: str,
    y: str | Sequence[str],
    *,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str | None = None,
    log: bool = False,
    floors: Mapping[str, float] | None = None,
) -> Figure:
    """Lines of y over x, one a frame (colour) and column (dashes), named at their ends; floors: {name: level}, grey.

    Rows without a value (a Lightning log writes one metric a row) are left out.
    """
    frames = {"": frames} if isinstance(frames, pd.DataFrame) else dict(frames)
    columns = [y] if isinstance(y, str) else list(y)
    with style():
        fig, ax = plt.subplots(figsize=(7.2, 3.8))
        ends, many = [], len(frames) > 1
        for i, (name, frame) in enumerate(frames.items()):
            for j, column in enumerate(columns):
                if column not in frame or x not in frame:
                    raise ContractError(
                        "frames", list(frame.columns), f"columns {x!r} and {column!r}", "a metric that was never logged"
                    )
                line = frame[[x, column]].dropna().sort_values(x, kind="stable")
                colour = PALETTE[(i if many else j) % len(PALETTE)]
                ax.plot(
                    line[x],
                    line[column],
                    color=colour,
                    ls=_DASHES[j % 4] if many else "-",
                    lw=1.8,
                    marker="o" if len(line) < 12 else None,
                    ms=3.5,
                )
                if len(line) and (not many or j == 0):
                    ends.append((float(line[column].iloc[-1]), str(name if many else column), colour))
        if many and len(columns) > 1:
            dashes = [Line2D([], [], color=INK, ls=_DASHES[j % 4], label=column) for j, column in enumerate(columns)]
            ax.legend(handles=dashes, loc="best")
        for name, level in (floors or {}).items():
            ax.axhline(level, color=FLOOR, lw=1.2, ls="--", zorder=1)
            ends.append((float(level), name, "#6b6b6b"))
        if log:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(xlabel or x)
        ax.set_ylabel(ylabel or (columns[0] if len(columns) == 1 else ""))
        ax.set_title(title or "")
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
        ax.set_axisbelow(True)
        _name_ends(ax, ends)
    return fig


def _name_ends(ax, ends) -> None:
    """Names right of the lines' ends, pushed apart so that none hides another."""
    if not ends:
        return
    ends = sorted(ends)
    scale = ax.yaxis.get_transform().transform
    low, high = scale(np.array(ax.get_ylim()))
    wanted = (scale(np.array([value for value, _, _ in ends])) - low) / (high - low)
    steps = 0.055 * np.arange(len(ends))  # a line of text, as a share of the axes' height
    upward = np.maximum.accumulate(wanted - steps) + steps
    downward = np.minimum.accumulate((wanted - steps)[::-1])[::-1] + steps
    for (_, name, colour), share in zip(ends, (upward + downward) / 2, strict=True):
        ax.annotate(name, (1.01, share), xycoords="axes fraction", color=colour, fontsize=9, va="center", ha="left")


def kernels(
    weights,
    *,
    band_names: Sequence[str] | None = None,
    count: int = 8,
    chosen: Sequence[int] | None = None,
    own_scale: bool = False,
    title: str | None = None,
) -> Figure:
    """Patch-embedding kernels weights [D, C, P, P]: a row a band, a column a kernel (the `count` strongest, or `chosen`).

    own_scale: each kernel from minus to plus its own largest weight, so that weak ones show their pattern too.
    """
    weights = array(weights, (4,), "weights [D, C, P, P]").astype(float)
    if chosen is None:
        chosen = np.sort(np.argsort(-(weights**2).sum(axis=(1, 2, 3)), kind="stable")[:count])
    chosen = np.asarray(chosen)
    names = list(band_names) if band_names is not None else [f"band {i}" for i in range(weights.shape[1])]
    tops = np.abs(weights[chosen]).max(axis=(1, 2, 3))
    tops = np.where(tops > 0, tops, 1.0) if own_scale else np.full(len(chosen), tops.max() or 1.0)
    drawn = weights[chosen] / tops[:, None, None, None]  # [n, C, P, P]
    P, gap = drawn.shape[-1], 1
    drawn = np.pad(drawn, [(0, 0), (0, 0), (0, gap), (0, gap)], constant_values=np.nan)
    sheet = drawn.transpose(1, 2, 0, 3).reshape(len(names) * (P + gap), -1)  # one picture: axes by the hundred are slow
    with style():
        high, wide = sheet.shape
        fig, ax = plt.subplots(figsize=(0.08 * wide + 2.2, 0.08 * high + 0.7))
        top = 1.0 if own_scale else tops[0]
        shown = ax.imshow(top * sheet, cmap=SIGNED, vmin=-top, vmax=top)
        ax.set_xticks(np.arange(len(chosen)) * (P + gap) + (P - 1) / 2, [f"#{kernel}" for kernel in chosen])
        ax.set_yticks(np.arange(len(names)) * (P + gap) + (P - 1) / 2, names)
        ax.xaxis.tick_top()
        ax.tick_params(length=0, labelsize=9)
        ax.spines[:].set_visible(False)
        label = "weight / largest of the kernel" if own_scale else "weight"
        fig.colorbar(shown, ax=ax, label=label, shrink=0.8, pad=0.02)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=11)
    return fig


def matrix(
    values,
    *,
    names: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    label: str = "cosine similarity",
    signed: bool = False,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
    xlabel: str = "",
    ylabel: str = "",
    form: str | None = None,
) -> Figure:
    """A heat map of values [N, M]; names (rows) and columns on the axes; form ("{:.2f}") prints small ones in cells."""
    values = array(values, (2,), "values [N, M]").astype(float)
    rows, wide = values.shape
    columns = columns if columns is not None else names if rows == wide else None
    if signed and limits is None:
        limits = (-np.nanmax(np.abs(values)), np.nanmax(np.abs(values)))
    with style():
        square = 4.2
        fig, ax = plt.subplots(figsize=(square * min(max(wide / rows, 0.6), 2) + 1.6, square + 0.4))
        colours = plt.get_cmap(SIGNED if signed else MAGNITUDE).with_extremes(bad=str(MISSING))
        shown = ax.imshow(
            np.ma.masked_invalid(values),
            cmap=colours,
            vmin=limits and limits[0],
            vmax=limits and limits[1],
            aspect="auto",
        )
        if names is not None:
            ax.set_yticks(range(rows), names)
        else:
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        if columns is not None:
            ax.set_xticks(range(wide), columns, rotation=45, ha="right", rotation_mode="anchor")
        else:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if form:
            for (i, j), value in np.ndenumerate(values):
                if not np.isfinite(value):
                    continue
                tone = shown.cmap(shown.norm(value))[:3]
                ax.text(
                    j,
                    i,
                    form.format(value),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if np.dot(tone, (0.3, 0.59, 0.11)) > 0.5 else "white",
                )
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
        ax.spines[:].set_visible(False)
        fig.colorbar(shown, ax=ax, label=label, pad=0.02)
    return fig
