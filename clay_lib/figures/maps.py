"""Maps: rasters at their true place on a leafmap map without a tile server, and the same layers as a static figure.

A layer becomes a PNG in a data URL, warped to web Mercator, in which Leaflet stretches an overlay linearly; so it covers
its footprint in any Jupyter, local or remote, with or without a network.
"""

import base64
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine, array_bounds
from rasterio.warp import Resampling, calculate_default_transform, reproject, transform_bounds

from clay_lib.errors import ContractError
from clay_lib.figures.images import scale_bar
from clay_lib.figures.style import MAGNITUDE, png, styled
from clay_lib.sensors import METERS_PER_DEGREE

MERCATOR, DEGREES = "EPSG:3857", "EPSG:4326"
OUTLINES = ("#E69F00", "#56B4E9", "#F0E442")
LARGEST, SMALLEST = 2048, 512  # pixels along an overlay's longer side: a small file, and sharp patch edges


@dataclass(frozen=True, eq=False)
class Layer:
    """One raster on a map: values [H, W, 3 or 4] colors (0..1 or 8 bit), or [H, W] numbers drawn with cmap.

    valid [H, W]: False is transparent, as NaN is. limits: of the color scale; label: quantity and unit beside it.
    """

    name: str
    values: np.ndarray
    crs: str
    transform: Sequence[float]
    cmap: str | None = None
    limits: tuple[float, float] | None = None
    label: str | None = None
    valid: np.ndarray | None = None
    opacity: float = 1.0


def overlay(
    values: np.ndarray,
    crs: str,
    transform: Sequence[float],
    cmap: str | None = None,
    *,
    limits: tuple[float, float] | None = None,
    valid: np.ndarray | None = None,
) -> tuple[str, tuple[tuple[float, float], tuple[float, float]]]:
    """(data URL of a PNG, ((south, west), (north, east)) in degrees), ready for an ipyleaflet ImageOverlay."""
    image, box = _warp(_rgba(values, cmap, limits, valid), crs, transform, MERCATOR)
    west, south, east, north = transform_bounds(MERCATOR, DEGREES, *box)
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), ((south, west), (north, east))


def show_on_map(
    layers: Sequence[Layer],
    *,
    basemap: str | None = None,
    height: str = "480px",
    outlines: Mapping | None = None,
    still: Figure | None = None,
):
    """A leafmap.Map (ipyleaflet) of the layers, the first at the bottom, with a layer list and opacity sliders.

    basemap: a name that leafmap knows ("OpenStreetMap"); its tiles need a network, so none is drawn by default.
    outlines: {name: GeoDataFrame} drawn as lines above all layers, the first in orange, the second in blue.
    still: shown instead where no kernel runs, such as `static_map` of the same layers; it is closed.
    """
    import ipyleaflet  # with leafmap about five seconds
    import ipywidgets
    import leafmap.leafmap as leafmap

    overlays = [overlay(v.values, v.crs, v.transform, v.cmap, limits=v.limits, valid=v.valid) for v in layers]
    corners = np.array([box for _, box in overlays])
    (south, west), (north, east) = corners[:, 0].min(axis=0), corners[:, 1].max(axis=0)
    controls = ("draw", "measure", "toolbar", "attribution", "search", "layers")
    leaflet = leafmap.Map(
        center=[float(south + north) / 2, float(west + east) / 2],
        zoom=_zoom(west, south, east, north),
        max_zoom=24,
        height=height,
        scroll_wheel_zoom=True,
        zoom_snap=0.25,
        **{f"{control}_control": False for control in controls},
    )
    leaflet.layers = ()  # drop leafmap's network tiles; remove() would close them and break to_html
    if basemap is not None:
        leaflet.add_basemap(basemap)
    added = []
    for layer, (url, box) in zip(layers, overlays, strict=True):
        added.append(ipyleaflet.ImageOverlay(url=url, bounds=box, name=layer.name, opacity=layer.opacity))
        leaflet.add(added[-1])
    for (name, frame), color in zip((outlines or {}).items(), OUTLINES, strict=False):
        line = dict(color=color, weight=2.5, opacity=1, fill=False)
        data = frame[["geometry"]].to_crs(DEGREES).__geo_interface__
        leaflet.add(ipyleaflet.GeoJSON(data=data, style=line, name=name))
    leaflet.add(ipyleaflet.LayersControl(position="topright"))
    sliders = []
    for layer in added[1:] or added:  # the bottom layer needs none
        slider = ipywidgets.FloatSlider(
            value=layer.opacity, min=0, max=1, step=0.05, description=layer.name, tooltip="opacity", readout=False,
            style={"description_width": "130px"}, layout=ipywidgets.Layout(width="270px"),
        )  # fmt: skip
        ipywidgets.jslink((slider, "value"), (layer, "opacity"))  # linked in the browser: works in saved pages too
        sliders.append(slider)
    leaflet.add(ipyleaflet.WidgetControl(widget=ipywidgets.VBox(sliders), position="bottomright"))
    if still is not None:
        image, widget = base64.b64encode(png(still)).decode(), leaflet._repr_mimebundle_
        leaflet._repr_mimebundle_ = lambda **options: {**widget(**options), "image/png": image}
    return leaflet


def static_map(layers: Sequence[Layer], *, size: float = 4.2, outlines: Mapping | None = None) -> Figure:
    """The same layers as a figure: a panel each, two in a row, opaque, on one common extent; degrees, scale bar, north arrow.

    outlines: as in `show_on_map`; a column "rank" is written into them.
    """
    outlines = outlines or {}
    warped = [_warp(_rgba(v.values, v.cmap, v.limits, v.valid), v.crs, v.transform, DEGREES) for v in layers]
    boxes = np.array([box for _, box in warped])
    west, south, east, north = *boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)
    squeeze = math.cos(math.radians((south + north) / 2))  # a degree of longitude over one of latitude, on the ground
    columns = min(2, len(layers))
    rows = math.ceil(len(layers) / columns)
    aspect = (north - south) / ((east - west) * squeeze)
    figsize = ((size + 0.7) * columns, (size * min(aspect, 1.6) + 0.5) * rows)
    arrow = dict(color="white", fontsize=9, linespacing=1, bbox=_label_box(0.3))
    with styled():
        fig, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False)
        for ax, layer, (image, box) in zip(axes.flat, layers, warped, strict=False):
            ax.imshow(image, extent=(box[0], box[2], box[1], box[3]))
            ax.set(xlim=(west, east), ylim=(south, north), aspect=1 / squeeze, title=layer.name)
            ax.spines[:].set_visible(True)
            _degree_ticks(ax)
            _draw_outlines(ax, outlines)
            scale_bar(ax, (east - west) * squeeze * METERS_PER_DEGREE)
            ax.text(0.965, 0.965, "▲\nN", transform=ax.transAxes, ha="right", va="top", **arrow)
            if layer.label and np.ndim(layer.values) == 2:
                norm = plt.Normalize(*_range(layer.values, layer.limits))
                colors = plt.cm.ScalarMappable(norm, layer.cmap or MAGNITUDE)
                fig.colorbar(colors, ax=ax, label=layer.label, shrink=0.85, pad=0.02)
        for ax in axes.flat[len(layers) :]:
            ax.set_axis_off()
        if outlines:
            lines = [plt.Line2D([], [], color=color, lw=2) for color in OUTLINES[: len(outlines)]]
            fig.legend(lines, list(outlines), loc="outside lower left", ncols=len(outlines))
    fig.draw_without_rendering()  # the layout needs a first pass to know the width of the color bars' numbers
    return fig


def _label_box(pad: float) -> dict:
    return dict(boxstyle=f"square,pad={pad}", fc="black", ec="none", alpha=0.55)


def _draw_outlines(ax, outlines: Mapping) -> None:
    for frame, color in zip(outlines.values(), OUTLINES, strict=False):
        frame = frame.to_crs(DEGREES)
        for width, ink in ((3.2, "black"), (1.8, color)):  # a dark rim keeps the line visible on any image
            frame.boundary.plot(ax=ax, color=ink, linewidth=width, aspect=None)
        ax.set(xlabel="", ylabel="")  # remove geopandas' own
        text = dict(color="white", fontsize=7, ha="center", va="center", bbox=_label_box(0.1))
        for shape, rank in zip(frame.geometry, frame.get("rank", ()), strict=False):
            ax.annotate(rank, shape.representative_point().coords[0], **text)


def _range(values, limits) -> tuple[float, float]:
    if limits is not None:
        return limits
    values = np.asarray(values, float)
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _rgba(values, cmap, limits, valid) -> np.ndarray:
    """Numbers [H, W] or colors [H, W, 3 or 4] -> RGBA [H, W, 4] uint8; transparent where nothing is known."""
    values = np.asarray(values)
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 2:
        low, high = _range(values, limits)
        known = np.isfinite(values.astype(float))
        scaled = (np.where(known, values, low) - low) / max(high - low, 1e-12)
        image = np.array(plt.get_cmap(cmap or MAGNITUDE)(scaled, bytes=True))
    elif values.ndim == 3 and values.shape[-1] in (3, 4):
        known = np.isfinite(values.astype(float)).all(axis=-1)
        eight_bit = values if values.dtype == np.uint8 else np.round(np.clip(np.nan_to_num(values), 0, 1) * 255)
        image = np.full((*values.shape[:2], 4), 255, np.uint8)
        image[..., : values.shape[-1]] = eight_bit
    else:
        expected = "[H, W] numbers or [H, W, 3 or 4] colors"
        raise ContractError("values", f"shape {values.shape}", expected, "bands first: make an image with figures.rgb")
    image[~known if valid is None else ~(known & np.asarray(valid, bool))] = 0
    return image


def _warp(
    image: np.ndarray, crs: str, transform: Sequence[float], target: str
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """RGBA [H, W, 4] -> (RGBA on the target's grid, (left, bottom, right, top)); nearest: no mixed colors."""
    height, width = image.shape[:2]
    if crs is None or transform is None:
        found, cause = f"crs {crs}, transform {transform}", "no georeference: show the image with figures.show_row"
        raise ContractError("crs", found, "both: a map needs a place", cause)
    matrix = Affine(*tuple(transform)[:6])
    source = CRS.from_user_input(crs)
    box = array_bounds(height, width, matrix)
    _, columns, rows = calculate_default_transform(source, target, width, height, *box)
    # The grid's edges are those of the warped footprint itself, not rounded out to whole pixels.
    left, bottom, right, top = transform_bounds(source, target, *box, densify_pts=41)
    longer = max(columns, rows)
    factor = LARGEST / longer if longer > LARGEST else max(1.0, SMALLEST / longer)
    columns, rows = max(1, round(columns * factor)), max(1, round(rows * factor))
    grid = Affine((right - left) / columns, 0, left, 0, (bottom - top) / rows, top)
    out = np.zeros((4, rows, columns), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        reproject(
            np.ascontiguousarray(image.transpose(2, 0, 1)), out, src_transform=matrix, src_crs=source,
            dst_transform=grid, dst_crs=target, resampling=Resampling.nearest,
        )  # fmt: skip
    return out.transpose(1, 2, 0).copy(), (left, bottom, right, top)


def _zoom(west: float, south: float, east: float, north: float, pixels: int = 440) -> float:
    """The closest Leaflet zoom, in quarter steps, at which the box still fits into a square of screen pixels."""
    stretch = 1 / math.cos(math.radians((south + north) / 2))
    degrees = max(east - west, (north - south) * stretch, 1e-6)
    return float(np.clip(math.floor(4 * math.log2(360 * pixels / (256 * degrees))) / 4, 1, 23))


def _degree_ticks(ax) -> None:
    span = max(np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim()))
    places = int(np.clip(math.ceil(-math.log10(span / 3)) + 1, 0, 6))
    for axis, count, positive, negative in ((ax.xaxis, 2, "E", "W"), (ax.yaxis, 4, "N", "S")):
        axis.set_major_locator(MaxNLocator(count))
        axis.set_major_formatter(
            FuncFormatter(lambda v, _, p=positive, n=negative: f"{abs(v):.{places}f}° {p if v >= 0 else n}")
        )
    ax.tick_params(labelsize=8)
