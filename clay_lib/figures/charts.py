"""Charts of numbers: bars, curves, convolution kernels, matrices, and the audit of labels."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from clay_lib.errors import ContractError
from clay_lib.figures import style

DASHES = ("-", "--", ":", "-.")


def bars_with_intervals(
    table: pd.DataFrame,
    *,
    label: str = "",
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    form: str = "{:.2f}",
) -> Figure:
    """Horizontal bars with intervals; columns name, value, low, high, kind ("baseline" is gray, the rest colored)."""
    kinds = [kind for kind in dict.fromkeys(table["kind"]) if kind != "baseline"]
    colors = {"baseline": style.BASELINE} if (table["kind"] == "baseline").any() else {}
    colors |= {kind: style.PALETTE[i % len(style.PALETTE)] for i, kind in enumerate(kinds)}
    with style.styled():
        fig, ax = plt.subplots(figsize=(7.2, 0.36 * len(table) + 1.1))
        at = np.arange(len(table))
        value, low, high = (table[c].to_numpy(float) for c in ("value", "low", "high"))
        ax.barh(at, value, color=[colors[k] for k in table["kind"]], height=0.7)
        errors = np.abs(np.stack([value - low, high - value]))
        ax.errorbar(value, at, xerr=errors, fmt="none", ecolor=style.INK, elinewidth=1.2, capsize=3)
        left, right = limits or (min(0.0, np.nanmin([value, low])), np.nanmax([value, high]))
        margin = 0.02 * (right - left)
        for y, v, h in zip(at, value, high, strict=True):
            x = max(v, h if np.isfinite(h) else v) + margin
            ax.text(x, y, form.format(v), va="center", fontsize=9, color=style.INK)
        ax.set(xlim=(left, right + 5 * margin), xlabel=label, title=title or "")
        ax.set_yticks(at, table["name"])
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        if len(colors) > 1:
            keys = [Patch(color=color, label=kind) for kind, color in colors.items()]
            fig.legend(handles=keys, loc="outside upper right", ncols=len(keys))
    return fig


def scores(table: pd.DataFrame, *, title: str = "") -> Figure:
    """A panel a probe, a row a feature set: dots with intervals for the spatial split, rings for the random one.

    table: as `evaluation.Evaluation.table`: features, kind, split, probe, score, low, high. Baselines are gray.
    """
    probes, names = list(dict.fromkeys(table["probe"])), list(dict.fromkeys(table["features"]))
    kinds = table.drop_duplicates("features").set_index("features")["kind"]
    names.sort(key=lambda name: kinds[name] != "baseline")  # baselines first
    split = next(s for s in ("blocks", "given", "random") if (table["split"] == s).any())
    with style.styled():
        size = (2.6 + 2.3 * len(probes), 0.32 * len(names) + 1.5)
        fig, axes = plt.subplots(1, len(probes), figsize=size, sharey=True, sharex=True, squeeze=False)
        for ax, probe in zip(axes[0], probes, strict=True):
            part = table[table["probe"] == probe].set_index(["features", "split"])
            for y, name in enumerate(names):
                row, color = part.loc[(name, split)], style.BASELINE_TEXT if kinds[name] == "baseline" else style.OURS
                ax.plot([row["low"], row["high"]], [y, y], color=color, lw=2)
                ax.plot(row["score"], y, "o", color=color, ms=6)
                if split != "random" and (name, "random") in part.index:
                    ax.plot(part.loc[(name, "random"), "score"], y, "o", mfc="none", mec=style.INK, ms=7, mew=1)
            metric = table["metric"].iloc[0]
            ax.set(title=probe, xlabel="balanced accuracy" if metric == "balanced" else metric)
            _grid(ax, "x")
        axes[0, 0].set_yticks(range(len(names)), names)
        axes[0, 0].invert_yaxis()
        split_name = {"blocks": "split by blocks", "given": "the given split", "random": "random split"}[split]
        keys = [
            Line2D([], [], color=color, marker="o", lw=2, label=f"{kind}, {split_name}")
            for color, kind in ((style.BASELINE_TEXT, "baseline"), (style.OURS, "model"))
        ]
        if split != "random" and (table["split"] == "random").any():
            keys.append(Line2D([], [], color=style.INK, marker="o", mfc="none", lw=0, label="random split"))
        fig.legend(handles=keys, loc="outside lower right", ncols=len(keys))
        if title:
            fig.suptitle(title, x=0.01, ha="left")
    return fig


def against_bytes(
    table: pd.DataFrame, *, ylabel: str, title: str = "", baseline: tuple[str, float] | None = None
) -> Figure:
    """Dots with intervals over the bytes of a vector (log2); columns name, bytes, value, low, high, kind (a color each).

    baseline: (name, level), a gray line.
    """
    kinds = list(dict.fromkeys(table["kind"]))
    with style.styled():
        fig, ax = plt.subplots(figsize=(7.6, 4.2))
        for k, kind in enumerate(kinds):
            part, color = table[table["kind"] == kind].sort_values("bytes"), style.PALETTE[k % len(style.PALETTE)]
            x = part["bytes"] * 2.0 ** (0.1 * (k - (len(kinds) - 1) / 2))  # equal bytes stand side by side
            ends = np.abs(np.stack([part["value"] - part["low"], part["high"] - part["value"]]))
            ax.errorbar(x, part["value"], yerr=ends, fmt="o-", color=color, lw=1.2, ms=6, capsize=3,
                        elinewidth=1.2, label=kind)  # fmt: skip
            for place, row in zip(x, part.itertuples(), strict=True):
                ax.annotate(row.name, (place, row.high), xytext=(0, 4), textcoords="offset points", rotation=90,
                            ha="center", va="bottom", fontsize=8, color=color)  # fmt: skip
        if baseline:
            ax.axhline(baseline[1], color=style.BASELINE, lw=1.2, ls="--", zorder=1)
            ax.annotate(baseline[0], (0.01, baseline[1]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                        textcoords="offset points", ha="left", fontsize=8, color=style.BASELINE_TEXT)  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.margins(x=0.06)
        top = 1.22 * table["high"].max() - 0.22 * ax.get_ylim()[0]
        ax.set(xlabel="bytes of a vector", ylabel=ylabel, title=title, ylim=(None, top))
        _grid(ax, "y")
        fig.legend(loc="outside lower right", ncols=len(kinds))
    return fig


def curves(
    frames: pd.DataFrame | Mapping[str, pd.DataFrame],
    x: str,
    y: str | Sequence[str],
    *,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str | None = None,
    log: bool = False,
    baselines: Mapping[str, float] | None = None,
) -> Figure:
    """Lines of y over x, one a frame (color) and column (dashes), labeled at their ends.

    Rows without a value (a Lightning log writes one metric a row) are dropped. baselines: {name: level}, gray.
    """
    frames = {"": frames} if isinstance(frames, pd.DataFrame) else dict(frames)
    columns = [y] if isinstance(y, str) else list(y)
    with style.styled():
        fig, ax = plt.subplots(figsize=(7.2, 3.8))
        ends, several = [], len(frames) > 1
        for i, (name, frame) in enumerate(frames.items()):
            for j, column in enumerate(columns):
                if column not in frame or x not in frame:
                    expected = f"columns {x!r} and {column!r}"
                    raise ContractError("frames", list(frame.columns), expected, "a metric that was never logged")
                line = frame[[x, column]].dropna().sort_values(x, kind="stable")
                color = style.PALETTE[(i if several else j) % len(style.PALETTE)]
                dashes, marker = DASHES[j % 4] if several else "-", "o" if len(line) < 12 else None
                ax.plot(line[x], line[column], color=color, ls=dashes, lw=1.8, marker=marker, ms=3.5)
                if len(line) and (not several or j == 0):
                    ends.append((float(line[column].iloc[-1]), str(name if several else column), color))
        if several and len(columns) > 1:
            keys = [Line2D([], [], color=style.INK, ls=DASHES[j % 4], label=column) for j, column in enumerate(columns)]
            ax.legend(handles=keys, loc="best")
        for name, level in (baselines or {}).items():
            ax.axhline(level, color=style.BASELINE, lw=1.2, ls="--", zorder=1)
            ends.append((float(level), name, style.BASELINE_TEXT))
        if log:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        named = ylabel or (columns[0] if len(columns) == 1 else "")
        ax.set(xlabel=xlabel or x, ylabel=named, title=title or "")
        _grid(ax, "y")
        if ends:
            _label_ends(ax, sorted(ends))
    return fig


def _grid(ax, axis: str) -> None:
    ax.grid(axis=axis, color=style.GRID, lw=0.8)
    ax.set_axisbelow(True)


def _label_ends(ax, ends: list[tuple[float, str, str]]) -> None:
    """Names (value, name, color) right of the lines' ends, pushed apart so that none overlaps another."""
    scale = ax.yaxis.get_transform().transform
    low, high = scale(np.array(ax.get_ylim()))
    heights = (scale(np.array([value for value, _, _ in ends])) - low) / (high - low)
    steps = 0.055 * np.arange(len(ends))  # a line of text, as a share of the axes' height
    upward = np.maximum.accumulate(heights - steps) + steps
    downward = np.minimum.accumulate((heights - steps)[::-1])[::-1] + steps
    for (_, name, color), share in zip(ends, (upward + downward) / 2, strict=True):
        ax.annotate(name, (1.01, share), xycoords="axes fraction", color=color, fontsize=9, va="center", ha="left")


def kernels(weights, *, band_names: Sequence[str], chosen: Sequence[int], title: str | None = None) -> Figure:
    """Patch-embedding kernels weights [D, C, P, P]: a row a band, a column a chosen kernel.

    Each kernel from minus to plus its own largest weight, so that weak ones show their pattern too.
    """
    weights = style.as_array(weights, (4,), "weights [D, C, P, P]").astype(float)[np.asarray(chosen)]
    names, tops = list(band_names), np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    scaled = weights / np.where(tops > 0, tops, 1.0)  # [n, C, P, P]
    P, gap = scaled.shape[-1], 1
    scaled = np.pad(scaled, [(0, 0), (0, 0), (0, gap), (0, gap)], constant_values=np.nan)
    sheet = scaled.transpose(1, 2, 0, 3).reshape(len(names) * (P + gap), -1)  # one image: hundreds of axes are slow
    with style.styled():
        height, width = sheet.shape
        fig, ax = plt.subplots(figsize=(0.08 * width + 2.2, 0.08 * height + 0.7))
        drawn = ax.imshow(sheet, cmap=style.SIGNED, vmin=-1, vmax=1)
        ax.set_xticks(np.arange(len(chosen)) * (P + gap) + (P - 1) / 2, [f"#{kernel}" for kernel in chosen])
        ax.set_yticks(np.arange(len(names)) * (P + gap) + (P - 1) / 2, names)
        ax.xaxis.tick_top()
        ax.tick_params(length=0, labelsize=9)
        ax.spines[:].set_visible(False)
        fig.colorbar(drawn, ax=ax, label="weight / largest of the kernel", shrink=0.8, pad=0.02)
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
    """A heat map of values [N, M]; names (rows) and columns on the axes; form ("{:.2f}") prints the value in each cell."""
    values = style.as_array(values, (2,), "values [N, M]").astype(float)
    N, M = values.shape
    columns = columns if columns is not None else names if N == M else None
    if signed and limits is None:
        limits = (-np.nanmax(np.abs(values)), np.nanmax(np.abs(values)))
    low, high = limits or (None, None)
    with style.styled():
        side = 4.2
        fig, ax = plt.subplots(figsize=(side * min(max(M / N, 0.6), 2) + 1.6, side + 0.4))
        cmap = plt.get_cmap(style.SIGNED if signed else style.MAGNITUDE).with_extremes(bad=str(style.MISSING))
        drawn = ax.imshow(np.ma.masked_invalid(values), cmap=cmap, vmin=low, vmax=high, aspect="auto")
        if names is not None:
            ax.set_yticks(range(N), names)
        else:
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        if columns is not None:
            ax.set_xticks(range(M), columns, rotation=45, ha="right", rotation_mode="anchor")
        else:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        for (i, j), value in np.ndenumerate(values) if form else ():
            if np.isfinite(value):
                brightness = np.dot(drawn.cmap(drawn.norm(value))[:3], (0.3, 0.59, 0.11))
                color = "black" if brightness > 0.5 else "white"
                ax.text(j, i, form.format(value), ha="center", va="center", fontsize=8, color=color)
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
        ax.spines[:].set_visible(False)
        fig.colorbar(drawn, ax=ax, label=label, pad=0.02)
    return fig


# ---- an audit of labels ----


def highest_cosines(cosines: np.ndarray, limit: float) -> Figure:
    """Histogram of each test chip's highest cosine [M] to training; from `limit` on two chips are near-duplicates."""
    with style.styled():
        fig, ax = plt.subplots(figsize=(5.2, 3.2))
        edges = np.linspace(min(0.0, cosines.min()), 1, 51)
        duplicate = cosines >= limit
        ax.hist([cosines[~duplicate], cosines[duplicate]], edges, stacked=True, color=[style.BASELINE, style.OURS])
        ax.axvline(limit, color=style.INK, lw=1, ls="--")
        where = dict(xycoords=("data", "axes fraction"), va="top", ha="right")
        ax.annotate(f"{duplicate.sum()} near-duplicates ", (limit, 1.0), fontsize=9, **where)
        ax.set(title="The most similar training chip", xlabel="cosine, standardized features", ylabel="test chips")
    return fig


def reliability(confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray) -> Figure:
    """Accuracy over confidence of each bin [B]; a dot's area is its number of chips, the diagonal is calibrated."""
    with style.styled():
        fig, ax = plt.subplots(figsize=(4.2, 4.0))
        ax.plot([0, 1], [0, 1], color=style.BASELINE, lw=1.2, ls="--")
        ax.annotate("calibrated", (0.03, 0.06), color=style.BASELINE_TEXT, fontsize=9, rotation=45)
        ax.plot(confidence, accuracy, color=style.OURS, lw=1.2)
        ax.scatter(confidence, accuracy, 12 + 300 * count / count.sum(), color=style.OURS, alpha=0.8)
        ax.set(title="Reliability", xlabel="confidence of the probe", ylabel="share that is right")
        ax.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    return fig


def learning_curve(labels: np.ndarray, score: np.ndarray, low: np.ndarray, high: np.ndarray) -> Figure:
    """Accuracy over the number of labels (log2), with intervals; the band is that of all labels."""
    with style.styled():
        fig, ax = plt.subplots(figsize=(5.2, 3.2))
        ax.axhspan(low[-1], high[-1], color=style.BASELINE, alpha=0.25, lw=0)
        ax.errorbar(labels, score, np.abs([score - low, high - score]), fmt="o-", color=style.OURS, capsize=3, lw=1.4)
        ax.set_xscale("log", base=2)
        ax.set_xticks(labels, [f"{n:g}" for n in labels])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(title="How many labels are enough", xlabel="training labels", ylabel="accuracy on test chips")
    return fig
