"""Figures of images, reconstructions and embeddings as points.

Arrays may be NumPy or torch (on the CPU); no file is read and no model is called.
"""

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
from clay_lib.figures.style import ERROR, INK, MAGNITUDE, MARKERS, MISSING, as_array, class_colors, rgb, styled
from clay_lib.sensors import SENSORS, Sensor


def show_row(
    images: Sequence,
    titles: Sequence[str] = (),
    *,
    gsd: float | Sequence[float] | None = None,
    cmap: str | None = None,
    limits: tuple[float, float] | None = None,
    label: str | None = None,
    columns: int | None = None,
    size: float = 2.4,
    title: str | None = None,
) -> Figure:
    """Images [H, W, 3] or grids [H, W] side by side, without axes.

    gsd: meters per pixel, one for all or one each, draws a scale bar. cmap, limits and label apply to the grids, which
    share one color bar if label names their quantity and unit. columns: images in a row.
    """
    images = [np.asarray(image) for image in images]
    columns = min(columns or len(images), len(images))
    rows = math.ceil(len(images) / columns)
    gsds = [gsd] * len(images) if gsd is None or np.isscalar(gsd) else list(gsd)
    grids = [image for image in images if image.ndim == 2]
    if grids and limits is None:
        limits = min(np.nanmin(grid) for grid in grids), max(np.nanmax(grid) for grid in grids)
    figsize = (size * columns + (0.8 if label else 0), (size + 0.35) * rows + (0.3 if title else 0))
    with styled():
        fig, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False)
        colored = None
        for i, ax in enumerate(axes.flat):
            ax.set_axis_off()
            if i >= len(images):
                continue
            drawn = _draw(ax, images[i], cmap, limits)
            colored = drawn if images[i].ndim == 2 else colored
            if i < len(titles):
                ax.set_title(titles[i], loc="center", fontsize=10)
            if gsds[i]:
                scale_bar(ax, images[i].shape[1] * gsds[i])
        if label and colored is not None:
            fig.colorbar(colored, ax=axes, label=label, shrink=0.85, pad=0.01)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def scale_bar(ax, width_m: float) -> None:
    """A labeled bar at the lower left of an axes whose data are width_m meters wide."""
    meters = round_length(width_m)
    text = f"{meters / 1000:g} km" if meters >= 1000 else f"{meters:g} m"
    outline = [withStroke(linewidth=3, foreground="black", alpha=0.6)]  # for bright ground

    def above(points):  # x as a share of the axes, y in points from its lower edge: the same bar at any aspect
        return offset_copy(ax.transAxes, fig=ax.figure, y=points, units="points")

    bar = [0.05, 0.05 + meters / width_m], [0, 0]
    ax.plot(*bar, transform=above(8), color="white", lw=3, solid_capstyle="butt", path_effects=outline, zorder=6)
    ax.text(0.05, 0, text, transform=above(11), color="white", fontsize=9, va="bottom", path_effects=outline, zorder=6)


def round_length(width_m: float) -> float:
    """The longest 1, 2 or 5 x 10^k meters within 30 % of the width."""
    goal = 0.3 * width_m
    power = 10.0 ** math.floor(math.log10(goal))
    return next(step * power for step in (5, 2, 1) if step * power <= goal)


def reconstruction(
    original,
    mask,
    reconstruction,
    error=None,
    *,
    sensor: str | Sensor,
    gsd: float | None,
    scores: Mapping[str, float] | None = None,
    bands: Sequence[str] | None = None,
    normalized: bool = False,
    in_decibel: bool | None = None,
    units: str | None = None,
    valid=None,
) -> Figure:
    """Four panels: the input, what the encoder saw, the reconstruction with visible patches pasted in, and the error.

    original, reconstruction: [C, H, W], both native or both normalized. mask [H, W]: True where masked. error [H, W] or
    [C, H, W]: by default the absolute difference in the units of the arrays, mean over bands; units: label of its bar.
    scores: {name: number}, printed in the title. All images share the original's stretch.
    """
    sensor = SENSORS.resolve(sensor)
    original = as_array(original, (3,), "original [C, H, W]").astype(np.float32)
    predicted = as_array(reconstruction, (3,), "reconstruction [C, H, W]").astype(np.float32)
    masked = as_array(mask, (2,), "mask [H, W]").astype(bool)
    if predicted.shape != original.shape or masked.shape != original.shape[1:]:
        found, expected = f"shape {predicted.shape}, mask {masked.shape}", f"the original's {original.shape}"
        raise ContractError("reconstruction", found, expected, "padding that was not cropped, or a mask of patches")
    valid = np.ones_like(masked) if valid is None else np.asarray(valid, bool)
    error = np.abs(predicted - original) if error is None else as_array(error, (2, 3), "error [H, W] or [C, H, W]")
    error = np.where(masked & valid, error.mean(axis=0) if error.ndim == 3 else error, np.nan)
    if units is None:
        in_db = sensor.decibel and (in_decibel or np.nanmedian(original) < 0)
        units = "standard deviations" if normalized else "dB" if in_db else "native numbers"

    def image(pixels, shown):
        return rgb(pixels, sensor, bands, like=original, normalized=normalized, in_decibel=in_decibel, valid=shown)

    panels = [
        ("input", image(original, valid)),
        (f"seen by the encoder ({1 - masked[valid].mean():.0%})", image(original, valid & ~masked)),
        ("reconstruction", image(np.where(masked, predicted, original), valid)),
        ("absolute error, mean of bands", error),
    ]
    heading = "   ".join(f"{name} {value:.3g}" for name, value in (scores or {}).items())
    top = float(np.nanpercentile(error, 99)) if np.isfinite(error).any() else 1.0
    with styled():
        aspect = original.shape[1] / original.shape[2]
        width = min(2.6, max(2.0, 4.5 / aspect))  # inches a panel: tall scenes become narrow, not huge
        height = width * aspect + (0.95 if heading else 0.4)
        fig, axes = plt.subplots(1, 4, figsize=(4 * width + 1.0, height))
        for ax, (name, panel) in zip(axes, panels, strict=True):
            ax.set_axis_off()
            drawn = _draw(ax, panel, ERROR, (0, top))
            ax.set_title(name, loc="center", fontsize=10)
        if gsd:
            scale_bar(axes[0], original.shape[2] * gsd)
        fig.colorbar(drawn, ax=axes[3], label=units, shrink=0.9, extend="max", pad=0.02)
        if heading:
            fig.suptitle(heading, x=0.01, ha="left", fontsize=11)
    return fig


def _draw(ax, image: np.ndarray, cmap=None, limits=None):
    if image.ndim == 3:
        return ax.imshow(np.clip(image, 0, 1) if image.dtype.kind == "f" else image)
    cmap = plt.get_cmap(cmap or MAGNITUDE).with_extremes(bad=str(MISSING))
    low, high = limits or (None, None)
    return ax.imshow(np.ma.masked_invalid(image.astype(float)), cmap=cmap, vmin=low, vmax=high)


def class_image(labels, colors: Mapping[int, str]) -> np.ndarray:
    """Class numbers [H, W] -> an image [H, W, 3] in their colors; numbers without a color are gray."""
    labels = as_array(labels, (2,), "labels [H, W]")
    image = np.full((*labels.shape, 3), to_rgb(str(MISSING)))
    for k, color in colors.items():
        image[labels == k] = to_rgb(color)
    return image


def class_legend(fig: Figure, labels, names: Sequence[str], colors: Mapping[int, str]) -> None:
    """A legend below a figure, of the classes that occur in labels (any shape)."""
    present = [int(k) for k in np.unique(labels) if k in colors and k < len(names)]
    keys = [Patch(facecolor=colors[k], edgecolor=INK, lw=0.5, label=names[k]) for k in present]
    fig.legend(handles=keys, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def scatter(
    xy, labels, *, colors: Mapping | None = None, title: str | None = None, legend: str | None = None, ax=None
) -> Figure:
    """Points xy [N, 2] (t-SNE: no units, so no ticks) colored and shaped by class, with counts in the legend."""
    xy, labels = as_array(xy, (2,), "xy [N, 2]"), np.asarray(labels)
    colors = colors or class_colors(sorted(set(labels.tolist()), key=str))
    with styled():
        fig, ax = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(6.4, 4.6))
        size = float(np.clip(12000 / max(len(xy), 1), 6, 60))
        present = [name for name in colors if (labels == name).any()]
        for i, name in enumerate(present):
            at = labels == name
            marker, text = MARKERS[i // 8 % len(MARKERS)], f"{name}  ({at.sum()})"
            ax.scatter(*xy[at].T, s=size, marker=marker, color=colors[name], edgecolor="white", lw=0.4, label=text)
        _remove_axes(ax, title)
        ax.legend(title=legend, loc="center left", bbox_to_anchor=(1.01, 0.5), markerscale=1.4, alignment="left")
    return fig


def scatter_thumbnails(
    xy,
    images: Sequence,
    edge_labels,
    *,
    colors: Mapping | None = None,
    across: int = 14,
    size: float = 8.0,
    title: str | None = None,
) -> Figure:
    """Chips as markers: each cell of a lattice, `across` cells wide, shows the chip whose point is nearest its center.

    Images never overlap, and each lies within half a cell of its true place. The frame's color is its class.
    xy [N, 2], images N of [H, W, 3], edge_labels [N]. Every point is also drawn as a faint dot.
    """
    xy, labels = as_array(xy, (2,), "xy [N, 2]"), np.asarray(edge_labels)
    colors = colors or class_colors(sorted(set(labels.tolist()), key=str))
    low, high = xy.min(axis=0), xy.max(axis=0)
    cell = max((high - low).max() / across, 1e-9)
    nodes = np.floor((xy - low) / cell).clip(0, across - 1).astype(int)
    centers = low + (nodes + 0.5) * cell
    chosen: dict[tuple[int, int], int] = {}
    for i in np.argsort(((xy - centers) ** 2).sum(axis=1), kind="stable"):
        chosen.setdefault(tuple(nodes[i]), int(i))
    span = (nodes.max(axis=0) + 1) * cell
    with styled():
        fig, ax = plt.subplots(figsize=(size + 1.7, size * span[1] / span[0] + 0.4))
        ax.scatter(*xy.T, s=6, c=[to_rgb(colors[k]) for k in labels.tolist()], alpha=0.35, lw=0)
        half, edge = 0.46 * cell, 0.055 * cell
        inner = half - edge
        for i in chosen.values():
            x, y = centers[i]
            color, extent = colors[labels[i].item()], (x - inner, x + inner, y - inner, y + inner)
            ax.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, color=color, lw=0, zorder=2))
            ax.imshow(np.asarray(images[i]), extent=extent, zorder=3, interpolation="antialiased")
        (left, bottom), (right, top) = low - 0.2 * cell, low + span + 0.2 * cell
        ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
        _remove_axes(ax, title)
        keys = [Patch(color=color, label=str(name)) for name, color in colors.items() if (labels == name).any()]
        fig.legend(handles=keys, loc="outside center right", alignment="left")
    return fig


def _remove_axes(ax, title: str | None) -> None:
    ax.set(xticks=[], yticks=[], title=title or "")
    ax.spines[:].set_visible(False)
