"""Pictures: arrays in, matplotlib Figure out. One palette, one style; no raster file and no model in sight.

Arrays may be NumPy or torch (on the CPU). Classes take Okabe and Ito's colours, magnitudes viridis or magma, signed
numbers a red-blue scale centred at zero; what is missing or hidden is light grey.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from clay_lib.contract import ContractError
from clay_lib.sensors import SENSORS, Sensor, to_decibel

# Okabe and Ito (2008), in an order that keeps neighbours apart, then four of Tol's muted scheme; points change their
# shape after the first eight, so that colour need not tell twelve classes apart alone.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
PALETTE += ("#882255", "#999999", "#332288", "#44AA99")
MARKERS = ("o", "^", "s", "D")
OURS, FLOOR, INK = PALETTE[0], "#9a9a9a", "#333333"
MISSING = 0.85  # light grey
MAGNITUDE, ERROR, SIGNED = "viridis", "magma", "RdBu_r"


def style():
    """The project's look, as a context: `with style(): ...`. Every function here uses it by itself."""
    return plt.rc_context(
        {
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "legend.fontsize": 9,
            "image.interpolation": "nearest",
        }
    )


def save(fig: Figure, path: str | Path) -> Path:
    """Writes a PNG that says neither date nor version, so that the same figure gives the same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, format="png", metadata={"Software": None})
    return path


def class_colours(names: Sequence) -> dict:
    """{name: colour} in order of first appearance, from the palette, repeating after twelve."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


# ---- pixels to colours ----


def rgb(
    pixels,
    sensor: str | Sensor,
    bands: Sequence[str] | None = None,
    *,
    stretch: tuple[float, float] | None = (2, 98),
    valid=None,
    like=None,
    normalised: bool = False,
    in_decibel: bool | None = None,
) -> np.ndarray:
    """Pixels [C, H, W] of one sensor as a picture [H, W, 3], float 0 to 1.

    stretch: percentiles that become black and white. Optical channels share one range above their own dark end, which
    takes haze away and keeps colour natural; radar is vv, vh and vv/vh in dB, each with its own range. None: a fixed
    range (8 bit 0 to 255, reflectance 0 to 0.3, fixed decibels), so pictures compare. like: pixels in the same form
    that lend their stretch (an original, to its reconstruction). valid [H, W]: False, like NaN, is grey.
    normalised: numbers in Clay's normalisation. in_decibel: None reads the sign of the median.
    """
    sensor = SENSORS.resolve(sensor)
    channels = _channels(pixels, sensor, bands, normalised, in_decibel)
    lender = channels if like is None else _channels(like, sensor, bands, normalised, in_decibel)
    known = np.isfinite(channels).all(axis=-1)
    if valid is not None:
        known &= np.asarray(valid, bool)
    usable = np.isfinite(lender).all(axis=-1)
    if like is None:
        usable &= known
    low, high = _limits(lender[usable], stretch, sensor)
    picture = np.clip((channels - low) / np.maximum(high - low, 1e-12), 0, 1)
    if not sensor.decibel and not _eight_bit(sensor):
        picture = picture ** (1 / 1.4)  # screens expect it of linear light; 8-bit photographs have it already
    return np.where(known[..., None], np.nan_to_num(picture), MISSING)


def _channels(pixels, sensor: Sensor, bands, normalised: bool, in_decibel: bool | None) -> np.ndarray:
    """[H, W, 3] of native numbers, dB for radar."""
    pixels = _array(pixels, (3,), "pixels [C, H, W]").astype(np.float32)
    names = [sensor.band_names[i] for i in sensor.indices(bands)]
    if len(names) != len(pixels):
        raise ContractError("pixels", found=f"{len(pixels)} bands", expected=f"{len(names)}: {names}", cause="a subset without bands=[...], or bands last instead of first")
    if normalised:
        pixels, in_decibel = sensor.denormalise(pixels, names, in_decibel=True), True
    if sensor.decibel:
        if in_decibel is None:
            in_decibel = bool(np.isfinite(pixels).any() and np.nanmedian(pixels) < 0)
        pixels = pixels if in_decibel else to_decibel(pixels)
        if {"vv", "vh"} <= set(names):
            vv, vh = pixels[names.index("vv")], pixels[names.index("vh")]
            return np.stack([vv, vh, vv - vh], axis=-1)
    shown = sensor.rgb if sensor.rgb and set(sensor.rgb) <= set(names) else (names * 3)[:3] if len(names) < 3 else names[:3]
    return np.stack([pixels[names.index(name)] for name in shown], axis=-1)


_FIXED = {"landsat-c2l1": (5000, 20000), "landsat-c2l2-sr": (7273, 18182)}  # DN of reflectance 0 and 0.3


def _eight_bit(sensor: Sensor) -> bool:
    return max(band.mean for band in sensor.bands) < 256


def _limits(values: np.ndarray, stretch, sensor: Sensor) -> tuple[np.ndarray, np.ndarray]:
    """(low [3], high [3]) of values [N, 3]."""
    if stretch is None or not len(values):
        if sensor.decibel:
            return np.array([-22.0, -28.0, 2.0]), np.array([0.0, -6.0, 14.0])
        dark, bright = _FIXED.get(sensor.name, (0, 255 if _eight_bit(sensor) else 3000))
        return np.full(3, float(dark)), np.full(3, float(bright))
    low, high = np.percentile(values, stretch, axis=0)
    if not sensor.decibel:
        high = low + np.percentile(values - low, stretch[1])
    return low, np.maximum(high, low + 1e-6)


# ---- rows of pictures ----


def show_row(
    images: Sequence,
    titles: Sequence[str] = (),
    *,
    scale_bar_m: float | None = None,
    gsd: float | Sequence[float] | None = None,
    cmap: str | None = None,
    limits: tuple[float, float] | None = None,
    label: str | None = None,
    columns: int | None = None,
    size: float = 2.4,
    title: str | None = None,
) -> Figure:
    """Pictures [H, W, 3] or grids [H, W] side by side, without axes.

    gsd: metres per pixel, one or one each: draws a scale bar (scale_bar_m long, else a round length). cmap, limits and
    label belong to the grids, which share one colour bar when label names their quantity and unit. columns: wraps.
    """
    images = [np.asarray(image) for image in images]
    columns = min(columns or len(images), len(images))
    rows = math.ceil(len(images) / columns)
    gsds = [gsd] * len(images) if gsd is None or np.isscalar(gsd) else list(gsd)
    flat = [image for image in images if image.ndim == 2]
    if flat and limits is None:
        limits = (min(np.nanmin(f) for f in flat), max(np.nanmax(f) for f in flat))
    with style():
        fig, axes = plt.subplots(rows, columns, figsize=(size * columns + (0.8 if label else 0), (size + 0.35) * rows + (0.3 if title else 0)), squeeze=False)
        drawn = None
        for i, ax in enumerate(axes.flat):
            ax.set_axis_off()
            if i >= len(images):
                continue
            shown = _picture(ax, images[i], cmap, limits)
            drawn = shown if images[i].ndim == 2 else drawn
            if i < len(titles):
                ax.set_title(titles[i], loc="center", fontsize=10)
            if gsds[i]:
                scale_bar(ax, images[i].shape[1] * gsds[i], metres=scale_bar_m)
        if label and drawn is not None:
            fig.colorbar(drawn, ax=axes, label=label, shrink=0.85, pad=0.01)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def scale_bar(ax, width_m: float, *, metres: float | None = None) -> None:
    """A labelled bar at the lower left of an axes whose data are width_m metres wide."""
    metres = metres or nice_length(width_m)
    x, y, long = 0.05, 0.05, metres / width_m
    text = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    ax.add_patch(Rectangle((x - 0.02, y - 0.025), max(long, 0.16) + 0.04, 0.13, transform=ax.transAxes, color="black", alpha=0.55, lw=0, zorder=5))
    ax.add_patch(Rectangle((x, y - 0.005), long, 0.016, transform=ax.transAxes, color="white", lw=0, zorder=6))
    ax.text(x, y + 0.025, text, transform=ax.transAxes, color="white", fontsize=8, va="bottom", ha="left", zorder=6)


def nice_length(width_m: float) -> float:
    """The longest 1, 2 or 5 x 10^k metres within 30 % of the width."""
    goal = 0.3 * width_m
    power = 10.0 ** math.floor(math.log10(goal))
    return next(step * power for step in (5, 2, 1) if step * power <= goal)


def reconstruction(
    original,
    masked_input,
    reconstruction,
    error=None,
    *,
    sensor: str | Sensor,
    gsd: float | None,
    scores: Mapping[str, float] | None = None,
    bands: Sequence[str] | None = None,
    normalised: bool = False,
    in_decibel: bool | None = None,
    units: str | None = None,
    valid=None,
    title: str | None = None,
) -> Figure:
    """Four panels: the input, what the encoder saw, the reconstruction with visible patches pasted in, and the error.

    original, reconstruction: [C, H, W], both native or both normalised. masked_input: the mask, 1 = masked, as [H, W]
    or as the patch grid [h, w]; or pixels [C, H, W] with NaN where masked. error [H, W] or [C, H, W]: by default the
    absolute difference in the units of the arrays, mean over bands; units says them beside the colour bar.
    scores: {name: number}, printed under the title. All pictures share the original's stretch.
    """
    sensor = SENSORS.resolve(sensor)
    original = _array(original, (3,), "original [C, H, W]").astype(np.float32)
    predicted = _array(reconstruction, (3,), "reconstruction [C, H, W]").astype(np.float32)
    if predicted.shape != original.shape:
        raise ContractError("reconstruction", found=f"shape {predicted.shape}", expected=f"the original's {original.shape}", cause="padding that was not cropped back")
    hidden = _hidden(masked_input, original.shape[1:])
    if error is None:
        error = np.abs(predicted - original)
    error = _array(error, (2, 3), "error [H, W] or [C, H, W]")
    error = np.where(hidden, error.mean(axis=0) if error.ndim == 3 else error, np.nan)
    if units is None:
        units = "standard deviations" if normalised else "dB" if sensor.decibel and (in_decibel or np.nanmedian(original) < 0) else "native numbers"

    def picture(pixels, shown):
        return rgb(pixels, sensor, bands, like=original, normalised=normalised, in_decibel=in_decibel, valid=shown)

    everything = np.ones_like(hidden) if valid is None else np.asarray(valid, bool)
    error = np.where(everything, error, np.nan)
    panels = [
        ("input", picture(original, everything)),
        (f"seen by the encoder ({1 - hidden.mean():.0%})", picture(original, everything & ~hidden)),
        ("reconstruction", picture(np.where(hidden, predicted, original), everything)),
        ("absolute error, masked patches", error),
    ]
    with style():
        aspect = original.shape[1] / original.shape[2]
        fig, axes = plt.subplots(1, 4, figsize=(11.5, 2.55 * aspect + (0.95 if title or scores else 0.4)), width_ratios=(1, 1, 1, 1.0))
        for ax, (name, image) in zip(axes, panels, strict=True):
            ax.set_axis_off()
            top = float(np.nanpercentile(error, 99)) if np.isfinite(error).any() else 1.0
            shown = _picture(ax, image, ERROR, (0, top))
            ax.set_title(name, loc="center", fontsize=10)
        if gsd:
            scale_bar(axes[0], original.shape[2] * gsd)
        fig.colorbar(shown, ax=axes[3], label=f"mean over bands, {units}", shrink=0.9, extend="max", pad=0.02)
        heading = [title] if title else []
        heading += ["   ".join(f"{name} {value:.3g}" for name, value in scores.items())] if scores else []
        if heading:
            fig.suptitle("    ".join(heading), x=0.01, ha="left", fontsize=11)
    return fig


def _hidden(masked, shape: tuple[int, int]) -> np.ndarray:
    """[H, W] bool, True where masked, from a mask of pixels or patches or from pixels with NaN."""
    masked = _array(masked, (2, 3), "masked_input [C, H, W], [H, W] or [h, w]")
    if masked.ndim == 3:
        masked = np.isnan(masked).all(axis=0)
    high, wide = shape
    patch = math.ceil(high / masked.shape[0]), math.ceil(wide / masked.shape[1])
    if patch[0] != patch[1]:
        raise ContractError("masked_input", found=f"shape {masked.shape}", expected=f"{shape} pixels, or patches of them", cause="rows and columns swapped, or the mask of another image")
    return np.kron(masked.astype(bool), np.ones(patch, bool))[:high, :wide]


def _picture(ax, image: np.ndarray, cmap=None, limits=None):
    if image.ndim == 3:
        return ax.imshow(np.clip(image, 0, 1) if image.dtype.kind == "f" else image)
    colours = plt.get_cmap(cmap or MAGNITUDE).with_extremes(bad=str(MISSING))
    low, high = limits or (None, None)
    return ax.imshow(np.ma.masked_invalid(image.astype(float)), cmap=colours, vmin=low, vmax=high)


def land_cover(labels, classes: Mapping[int, str], colours: Mapping[int, str] | None = None, ax=None) -> Figure:
    """Labels [H, W] in their colours, with a legend of the classes present, by size; unknown ids are grey."""
    labels = _array(labels, (2,), "labels [H, W]")
    colours = dict(colours) if colours else {k: PALETTE[i % len(PALETTE)] for i, k in enumerate(classes)}
    present, counts = np.unique(labels, return_counts=True)
    picture = np.full((*labels.shape, 3), MISSING)
    for k in present:
        if k in colours:
            picture[labels == k] = to_rgb(colours[k])
    with style():
        fig, ax = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(5.2, 3.4))
        ax.imshow(picture)
        ax.set_axis_off()
        order = [int(k) for k in present[np.argsort(-counts)] if k in classes]
        share = dict(zip(present.tolist(), counts / labels.size, strict=True))
        keys = [Patch(facecolor=colours.get(k, str(MISSING)), edgecolor=INK, lw=0.5, label=f"{classes[k]}  {share[k]:.0%}" if share[k] >= 0.005 else f"{classes[k]}  <1%") for k in order]
        ax.legend(handles=keys, loc="center left", bbox_to_anchor=(1.02, 0.5), borderaxespad=0)
    return fig


# ---- points ----


def scatter(xy, labels, *, colours: Mapping | None = None, title: str | None = None, legend: str | None = None, ax=None) -> Figure:
    """Points xy [N, 2] (t-SNE: no units, so no ticks) coloured and shaped by their class, with counts in the legend."""
    xy, labels = _array(xy, (2,), "xy [N, 2]"), np.asarray(labels)
    names = list(dict.fromkeys(labels.tolist())) if colours is None else [k for k in colours if (labels == k).any()]
    colours = colours or class_colours(sorted(names, key=str))
    with style():
        fig, ax = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(6.4, 4.6))
        for i, name in enumerate(k for k in colours if k in names):
            at = labels == name
            ax.scatter(*xy[at].T, s=_dot(len(xy)), marker=MARKERS[i // 8 % len(MARKERS)], color=colours[name], edgecolor="white", lw=0.4, label=f"{name}  ({at.sum()})")
        _bare(ax, title)
        ax.legend(title=legend, loc="center left", bbox_to_anchor=(1.01, 0.5), markerscale=1.4, alignment="left")
    return fig


def scatter_thumbnails(
    xy,
    images: Sequence,
    edge_labels,
    *,
    colours: Mapping | None = None,
    across: int = 14,
    size: float = 8.0,
    title: str | None = None,
    legend: str | None = None,
) -> Figure:
    """Chips as marks: in each cell of a lattice `across` cells wide, the chip whose point lies nearest its centre.

    So pictures never overlap; each sits within half a cell of its true place. The frame's colour is its class.
    xy [N, 2], images N of [H, W, 3], edge_labels [N]. Every point is also there as a faint dot.
    """
    xy, labels = _array(xy, (2,), "xy [N, 2]"), np.asarray(edge_labels)
    if not len(xy) == len(images) == len(labels):
        raise ContractError("images", found=f"{len(images)} images, {len(labels)} labels", expected=f"{len(xy)}, one a point", cause="points were sampled after the images were listed")
    colours = colours or class_colours(sorted(set(labels.tolist()), key=str))
    low, high = xy.min(axis=0), xy.max(axis=0)
    cell = max((high - low).max() / across, 1e-9)
    nodes = np.floor((xy - low) / cell).clip(0, across - 1).astype(int)
    centres = low + (nodes + 0.5) * cell
    chosen: dict[tuple[int, int], int] = {}
    for i in np.argsort(((xy - centres) ** 2).sum(axis=1), kind="stable"):
        chosen.setdefault(tuple(nodes[i]), int(i))
    span = (nodes.max(axis=0) + 1) * cell
    with style():
        fig, ax = plt.subplots(figsize=(size + 1.7, size * span[1] / span[0] + 0.4))
        ax.scatter(*xy.T, s=6, c=[to_rgb(colours[k]) for k in labels.tolist()], alpha=0.35, lw=0)
        ax.set_xlim(low[0], low[0] + span[0])
        ax.set_ylim(low[1], low[1] + span[1])
        ax.set_aspect("equal")
        half, edge = 0.46 * cell, 0.055 * cell
        for i in chosen.values():
            x, y = centres[i]
            ax.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, color=colours[labels[i].item()], lw=0, zorder=2))
            inner = half - edge
            ax.imshow(np.asarray(images[i]), extent=(x - inner, x + inner, y - inner, y + inner), zorder=3, interpolation="antialiased")
        ax.set_xlim(low[0] - 0.2 * cell, low[0] + span[0] + 0.2 * cell)
        ax.set_ylim(low[1] - 0.2 * cell, low[1] + span[1] + 0.2 * cell)
        _bare(ax, title)
        keys = [Patch(color=colour, label=str(name)) for name, colour in colours.items() if (labels == name).any()]
        fig.legend(handles=keys, title=legend, loc="outside center right", alignment="left")
    return fig


def _bare(ax, title) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(title or "")


def _dot(count: int) -> float:
    return float(np.clip(12000 / max(count, 1), 6, 60))


# ---- numbers ----


def bars_with_intervals(
    table: pd.DataFrame,
    *,
    label: str = "",
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    form: str = "{:.2f}",
) -> Figure:
    """Horizontal bars with intervals; table columns name, value, low, high, kind ("floor" is grey, the rest coloured)."""
    lacking = {"name", "value", "low", "high", "kind"} - set(table.columns)
    if lacking:
        raise ContractError("table", found=list(table.columns), expected="columns name, value, low, high, kind", cause=f"{sorted(lacking)} missing")
    kinds = [k for k in dict.fromkeys(table["kind"]) if k != "floor"]
    colours = {"floor": FLOOR, **{k: PALETTE[i % len(PALETTE)] for i, k in enumerate(kinds)}}
    with style():
        fig, ax = plt.subplots(figsize=(7.2, 0.36 * len(table) + 1.1))
        at = np.arange(len(table))
        value, low, high = (table[c].to_numpy(float) for c in ("value", "low", "high"))
        ax.barh(at, value, color=[colours[k] for k in table["kind"]], height=0.7)
        ax.errorbar(value, at, xerr=np.abs(np.stack([value - low, high - value])), fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        left, right = limits or (min(0.0, np.nanmin(low)), np.nanmax(high))
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
    """Lines of y over x, one a frame (colour) and column (dashes), each named at its end; floors: {name: level}, grey.

    Rows without a value (a Lightning log writes one metric a row) are left out.
    """
    frames = {"": frames} if isinstance(frames, pd.DataFrame) else dict(frames)
    columns = [y] if isinstance(y, str) else list(y)
    with style():
        fig, ax = plt.subplots(figsize=(7.2, 3.8))
        ends = []
        for i, (name, frame) in enumerate(frames.items()):
            for j, column in enumerate(columns):
                if column not in frame or x not in frame:
                    raise ContractError("frames", found=list(frame.columns), expected=f"columns {x!r} and {column!r}", cause="a metric that was never logged")
                line = frame[[x, column]].dropna().sort_values(x, kind="stable")
                many = len(frames) > 1
                colour = PALETTE[(i if many else j) % len(PALETTE)]
                ax.plot(line[x], line[column], color=colour, ls=("-", "--", ":", "-.")[j % 4] if many else "-", lw=1.8, marker="o" if len(line) < 12 else None, ms=3.5)
                if len(line):
                    ends.append((float(line[column].iloc[-1]), " ".join(part for part in (name, column if len(columns) > 1 or not name else "") if part), colour))
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


def kernels(weights, *, band_names: Sequence[str] | None = None, count: int = 8, title: str | None = None) -> Figure:
    """Patch-embedding kernels weights [D, C, P, P]: a row a band, a column a kernel (the `count` strongest)."""
    weights = _array(weights, (4,), "weights [D, C, P, P]").astype(float)
    strongest = np.sort(np.argsort(-(weights**2).sum(axis=(1, 2, 3)), kind="stable")[:count])
    names = list(band_names) if band_names is not None else [f"band {i}" for i in range(weights.shape[1])]
    top = np.abs(weights[strongest]).max() or 1.0
    with style():
        wide, high = len(strongest), weights.shape[1]
        fig, axes = plt.subplots(high, wide, figsize=(0.72 * wide + 2.2, 0.72 * high + 0.7), squeeze=False)
        for row in range(high):
            for column, kernel in enumerate(strongest):
                ax = axes[row, column]
                shown = ax.imshow(weights[kernel, row], cmap=SIGNED, vmin=-top, vmax=top)
                ax.set_xticks([])
                ax.set_yticks([])
                ax.spines[:].set_visible(False)
                if column == 0:
                    ax.set_ylabel(names[row], rotation=0, ha="right", va="center", fontsize=9)
                if row == 0:
                    ax.set_title(f"#{kernel}", loc="center", fontsize=9)
        fig.colorbar(shown, ax=axes, label="weight", shrink=0.8, pad=0.02)
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
    values = _array(values, (2,), "values [N, M]").astype(float)
    rows, wide = values.shape
    columns = columns if columns is not None else names if rows == wide else None
    if signed and limits is None:
        limits = (-np.nanmax(np.abs(values)), np.nanmax(np.abs(values)))
    with style():
        square = 4.2
        fig, ax = plt.subplots(figsize=(square * min(max(wide / rows, 0.6), 2) + 1.6, square + 0.4))
        colours = plt.get_cmap(SIGNED if signed else MAGNITUDE).with_extremes(bad=str(MISSING))
        shown = ax.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=limits and limits[0], vmax=limits and limits[1], aspect="auto")
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
                tone = shown.cmap(shown.norm(value))[:3]
                ax.text(j, i, form.format(value), ha="center", va="center", fontsize=8, color="black" if np.dot(tone, (0.3, 0.59, 0.11)) > 0.5 else "white")
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
        ax.spines[:].set_visible(False)
        fig.colorbar(shown, ax=ax, label=label, pad=0.02)
    return fig


def _array(values, ndims: tuple[int, ...], what: str) -> np.ndarray:
    values = np.asarray(values.detach() if hasattr(values, "detach") else values)
    if values.ndim not in ndims:
        raise ContractError(what.split(" ")[0], found=f"shape {values.shape}", expected=what, cause="a batch axis is still there, or one is missing")
    return values
