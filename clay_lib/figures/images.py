"""Pictures: arrays in, matplotlib Figure out. One palette, one style; no raster file and no model in sight.

Arrays may be NumPy or torch (on the CPU). Every picture of the project is reached from here:
`rgb`, `style` and `save` come from colours.py, bars, curves, kernels and matrices from charts.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import offset_copy

from clay_lib.errors import ContractError
from clay_lib.figures.charts import bars_with_intervals, curves, kernels, matrix
from clay_lib.figures.style import (
    ERROR,
    INK,
    MAGNITUDE,
    MARKERS,
    MISSING,
    PALETTE,
    array,
    class_colours,
    rgb,
    save,
    style,
)
from clay_lib.sensors import SENSORS, Sensor

__all__ = [
    "MISSING",
    "PALETTE",
    "bars_with_intervals",
    "class_colours",
    "curves",
    "kernels",
    "land_cover",
    "matrix",
    "nice_length",
    "reconstruction",
    "rgb",
    "save",
    "scale_bar",
    "scatter",
    "scatter_thumbnails",
    "show_row",
    "style",
]


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
        fig, axes = plt.subplots(
            rows,
            columns,
            figsize=(size * columns + (0.8 if label else 0), (size + 0.35) * rows + (0.3 if title else 0)),
            squeeze=False,
        )
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
    text = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    outline = [withStroke(linewidth=3, foreground="black", alpha=0.6)]  # white on sand and on snow needs it

    def above(points):  # x in shares of the axes, y in points from its lower edge: the same bar on any shape of picture
        return offset_copy(ax.transAxes, fig=ax.figure, y=points, units="points")

    bar = [0.05, 0.05 + metres / width_m], [0, 0]
    ax.plot(*bar, transform=above(8), color="white", lw=3, solid_capstyle="butt", path_effects=outline, zorder=6)
    ax.text(0.05, 0, text, transform=above(11), color="white", fontsize=9, va="bottom", path_effects=outline, zorder=6)


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
    original = array(original, (3,), "original [C, H, W]").astype(np.float32)
    predicted = array(reconstruction, (3,), "reconstruction [C, H, W]").astype(np.float32)
    if predicted.shape != original.shape:
        raise ContractError(
            "reconstruction",
            f"shape {predicted.shape}",
            f"the original's {original.shape}",
            "padding that was not cropped back",
        )
    hidden = _hidden(masked_input, original.shape[1:])
    if error is None:
        error = np.abs(predicted - original)
    error = array(error, (2, 3), "error [H, W] or [C, H, W]")
    error = np.where(hidden, error.mean(axis=0) if error.ndim == 3 else error, np.nan)
    if units is None:
        units = (
            "standard deviations"
            if normalised
            else "dB"
            if sensor.decibel and (in_decibel or np.nanmedian(original) < 0)
            else "native numbers"
        )

    def picture(pixels, shown):
        return rgb(pixels, sensor, bands, like=original, normalised=normalised, in_decibel=in_decibel, valid=shown)

    everything = np.ones_like(hidden) if valid is None else np.asarray(valid, bool)
    error = np.where(everything, error, np.nan)
    panels = [
        ("input", picture(original, everything)),
        (f"seen by the encoder ({1 - hidden[everything].mean():.0%})", picture(original, everything & ~hidden)),
        ("reconstruction", picture(np.where(hidden, predicted, original), everything)),
        ("absolute error, mean of bands", error),
    ]
    with style():
        aspect = original.shape[1] / original.shape[2]
        wide = min(2.6, max(2.0, 4.5 / aspect))  # inches a panel: tall scenes become narrow ones, not posters
        tall = wide * aspect + (0.95 if title or scores else 0.4)
        fig, axes = plt.subplots(1, 4, figsize=(4 * wide + 1.0, tall))
        for ax, (name, image) in zip(axes, panels, strict=True):
            ax.set_axis_off()
            top = float(np.nanpercentile(error, 99)) if np.isfinite(error).any() else 1.0
            shown = _picture(ax, image, ERROR, (0, top))
            ax.set_title(name, loc="center", fontsize=10)
        if gsd:
            scale_bar(axes[0], original.shape[2] * gsd)
        fig.colorbar(shown, ax=axes[3], label=units, shrink=0.9, extend="max", pad=0.02)
        heading = [title] if title else []
        heading += ["   ".join(f"{name} {value:.3g}" for name, value in scores.items())] if scores else []
        if heading:
            fig.suptitle("    ".join(heading), x=0.01, ha="left", fontsize=11)
    return fig


def _hidden(masked, shape: tuple[int, int]) -> np.ndarray:
    """[H, W] bool, True where masked, from a mask of pixels or patches or from pixels with NaN."""
    masked = array(masked, (2, 3), "masked_input [C, H, W], [H, W] or [h, w]")
    if masked.ndim == 3:
        masked = np.isnan(masked).all(axis=0)
    high, wide = shape
    patch = math.ceil(high / masked.shape[0]), math.ceil(wide / masked.shape[1])
    if patch[0] != patch[1]:
        raise ContractError(
            "masked_input",
            f"shape {masked.shape}",
            f"{shape} pixels, or patches of them",
            "rows and columns swapped, or the mask of another image",
        )
    return np.kron(masked.astype(bool), np.ones(patch, bool))[:high, :wide]


def _picture(ax, image: np.ndarray, cmap=None, limits=None):
    if image.ndim == 3:
        return ax.imshow(np.clip(image, 0, 1) if image.dtype.kind == "f" else image)
    colours = plt.get_cmap(cmap or MAGNITUDE).with_extremes(bad=str(MISSING))
    low, high = limits or (None, None)
    return ax.imshow(np.ma.masked_invalid(image.astype(float)), cmap=colours, vmin=low, vmax=high)


def land_cover(labels, classes: Mapping[int, str], colours: Mapping[int, str] | None = None, ax=None) -> Figure:
    """Labels [H, W] in their colours, with a legend of the classes present, by size; unknown ids are grey."""
    labels = array(labels, (2,), "labels [H, W]")
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
        keys = [
            Patch(
                facecolor=colours.get(k, str(MISSING)),
                edgecolor=INK,
                lw=0.5,
                label=f"{classes[k]}  {share[k]:.0%}" if share[k] >= 0.005 else f"{classes[k]}  <1%",
            )
            for k in order
        ]
        ax.legend(handles=keys, loc="center left", bbox_to_anchor=(1.02, 0.5), borderaxespad=0)
    return fig


# ---- points ----


def scatter(
    xy, labels, *, colours: Mapping | None = None, title: str | None = None, legend: str | None = None, ax=None
) -> Figure:
    """Points xy [N, 2] (t-SNE: no units, so no ticks) coloured and shaped by their class, with counts in the legend."""
    xy, labels = array(xy, (2,), "xy [N, 2]"), np.asarray(labels)
    names = list(dict.fromkeys(labels.tolist())) if colours is None else [k for k in colours if (labels == k).any()]
    colours = colours or class_colours(sorted(names, key=str))
    with style():
        fig, ax = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(6.4, 4.6))
        for i, name in enumerate(k for k in colours if k in names):
            at = labels == name
            ax.scatter(
                *xy[at].T,
                s=_dot(len(xy)),
                marker=MARKERS[i // 8 % len(MARKERS)],
                color=colours[name],
                edgecolor="white",
                lw=0.4,
                label=f"{name}  ({at.sum()})",
            )
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
    xy, labels = array(xy, (2,), "xy [N, 2]"), np.asarray(edge_labels)
    if not len(xy) == len(images) == len(labels):
        raise ContractError(
            "images",
            f"{len(images)} images, {len(labels)} labels",
            f"{len(xy)}, one a point",
            "points were sampled after the images were listed",
        )
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
            ax.add_patch(
                Rectangle((x - half, y - half), 2 * half, 2 * half, color=colours[labels[i].item()], lw=0, zorder=2)
            )
            inner = half - edge
            ax.imshow(
                np.asarray(images[i]),
                extent=(x - inner, x + inner, y - inner, y + inner),
                zorder=3,
                interpolation="antialiased",
            )
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
