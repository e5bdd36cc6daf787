"""The datacube that the model gets, as one figure: image, holes, place, histograms against the sensor's usual range."""

import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from clay_lib.figures import style
from clay_lib.figures.images import scale_bar
from clay_lib.sensors import Sensor, to_decibel

LARGEST = 1024  # pixels along the longer side of the image shown
LAND, HOLE = "#d9d9d9", style.PALETTE[3]


def datacube(
    pixels: np.ndarray,
    sensor: Sensor,
    bands: Sequence[str],
    *,
    lat=None,
    lon=None,
    gsd: float | None = None,
    in_decibel: bool = False,
    title: str = "",
) -> Figure:
    """Native numbers [B, C, H, W], NaN in holes: RGB and holes of the chip that was measured most, histograms of all.

    lat, lon: degrees, one or one a chip, None where unknown. gsd: meters, for the scale bar. The gray band of a
    histogram is the sensor's mean and standard deviation, by which the model's numbers are normalized.
    """
    B, C, H, W = pixels.shape
    chip = int(np.isfinite(pixels).mean((1, 2, 3)).argmax())
    step = math.ceil(max(H, W) / LARGEST)
    shown = pixels[chip, :, ::step, ::step]
    columns = 1 if C < 4 else math.ceil((C + 2) / 4)
    rows = math.ceil(C / columns)
    with style.styled():
        fig = plt.figure(figsize=(12.8, 7.2))
        left, right = fig.subfigures(1, 2, width_ratios=(5, 7), wspace=0.02)
        grid = left.add_gridspec(2, 2, height_ratios=(5, 2.2), width_ratios=(2.2, 4))
        image, holes, world = left.add_subplot(grid[0, :]), left.add_subplot(grid[1, 0]), left.add_subplot(grid[1, 1])
        image.imshow(style.rgb(shown, sensor, bands, in_decibel=in_decibel))
        radar = sensor.decibel and {"vv", "vh"} <= {*bands}
        colors = ", ".join(("vv", "vh", "vv/vh") if radar else style.natural_colors(sensor, bands))
        image.set_title(colors + (f"; chip {chip + 1} of {B}" if B > 1 else ""))
        if gsd:
            scale_bar(image, W * float(gsd))
        share = np.isnan(shown).mean(0)  # of the bands, [H, W]
        shade = np.where(share > 0, 0.3 + 0.7 * share, 0)  # a hole in one of many bands is visible too
        holes.imshow(shade, cmap=LinearSegmentedColormap.from_list("", ["white", HOLE]), vmin=0, vmax=1)
        holes.set_title(f"holes: {np.isnan(pixels).any(1).mean():.1%}")
        for ax in (image, holes):
            ax.set(xticks=[], yticks=[], anchor="N")
            ax.spines[:].set_visible(True)
        _world(world, lat, lon)
        axes = right.subplots(rows, columns, squeeze=False).flat
        for i, name in enumerate(bands):
            _histogram(axes[i], pixels[:, i], sensor, name, in_decibel)
        for ax in axes[C:]:
            ax.set_axis_off()
        units = "decibel" if sensor.decibel else "native numbers"
        right.suptitle(f"bands in {units}; gray: the sensor's mean ± one standard deviation", fontsize=10)
        fig.suptitle(title, x=0.01, ha="left")
    return fig


def _histogram(ax, values: np.ndarray, sensor: Sensor, name: str, in_decibel: bool) -> None:
    """Of all numbers of a band, on an axis that holds the sensor's usual range and 99 % of the numbers."""
    known = values.ravel()[:: max(1, values.size // 2**18)]
    known = known[np.isfinite(known)]
    if sensor.decibel and not in_decibel:
        known = to_decibel(known)
    (mean,), (std,) = sensor.statistics([name])
    low, high = np.percentile(known, (0.5, 99.5)) if known.size else (mean, mean)
    low, high = min(low, mean - 2 * std), max(high, mean + 2 * std)
    if not sensor.decibel and (known >= 0).all():
        low = max(low, 0)
    ax.axvspan(max(mean - std, low), mean + std, color=style.GRID, lw=0)
    ax.axvline(mean, color=style.BASELINE, lw=1.2, ls="--")
    width = (high - low) / 64
    if (known == np.rint(known)).all():  # bins that hold the same count of integers
        low, width = math.floor(low) - 0.5, math.ceil(width)
    ax.hist(known, bins=np.arange(low, high + width, width), color=style.OURS, histtype="stepfilled")
    ax.set(xlim=(low, high), yticks=[])
    ax.set_title(name if sensor.decibel else f"{name}  {sensor.waves([name])[0]:g} µm", fontsize=9)
    ax.spines["left"].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.locator_params(axis="x", nbins=4)


def _world(ax, lat, lon) -> None:
    """The places on an outline of the world, in degrees."""
    places = np.array([np.ravel(np.array(v, float)) for v in (lon, lat)])  # [2, B], NaN where unknown
    known = places[:, np.isfinite(places).all(0)]
    known[0] = (known[0] + 180) % 360 - 180
    for ring in _land():
        ax.fill(*ring.T, color=LAND, lw=0)
    ax.plot(*known, "o", ms=7, color=HOLE, mec="white", mew=1)
    ax.set(xlim=(-180, 180), ylim=(-90, 90), aspect=1, anchor="N")
    ax.set(xticks=range(-120, 121, 60), yticks=range(-60, 61, 30), axisbelow=True)
    ax.tick_params(labelbottom=False, labelleft=False, length=0)
    ax.grid(color=style.GRID, lw=0.6)
    ax.spines[:].set_visible(True)
    north_east = zip(known[::-1, :1].ravel(), ("NS", "EW"), strict=False)
    place = ", ".join(f"{abs(value):.2f}° {letters[int(value < 0)]}" for value, letters in north_east)
    more = f" and {known.shape[1] - 1} more" if known.shape[1] > 1 else ""
    ax.set_title(f"place: {place or 'unknown'}{more}")


@lru_cache(maxsize=1)
def _land() -> list[np.ndarray]:
    """Outlines of land, each [N, 2] in degrees, that bqplot ships (leafmap brings it); none without it."""
    import geopandas

    package = find_spec("bqplot")
    path = Path(package.origin).parent / "map_data" / "WorldMap.json" if package else Path()
    if not path.is_file():
        return []
    (land,) = geopandas.read_file(path, layer="TopoJSON").geometry
    return [np.array(part.exterior.coords) for part in land.geoms]
