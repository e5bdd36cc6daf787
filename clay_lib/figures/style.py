"""Figure style: palette, matplotlib settings, and pixels of any sensor as an RGB image.

Classes take Okabe and Ito's colors, magnitudes viridis or magma, signed numbers a red-blue scale centered at zero;
missing or masked pixels are light gray.
"""

import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from clay_lib.errors import ContractError
from clay_lib.files import atomic_write
from clay_lib.sensors import SENSORS, Sensor, to_decibel

# Okabe and Ito (2008), ordered so that neighbors differ, then four of Tol's muted scheme. Points change their marker
# after the first eight, so that color alone need not tell twelve classes apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
PALETTE += ("#882255", "#999999", "#332288", "#44AA99")
MARKERS = ("o", "^", "s", "D")
OURS, BASELINE, INK, GRID = PALETTE[0], "#9a9a9a", "#333333", "#e6e6e6"
BASELINE_TEXT = "#6b6b6b"  # dark enough to read, for names of baselines
MISSING = 0.85  # light gray
MAGNITUDE, ERROR, SIGNED = "viridis", "magma", "RdBu_r"

FIXED_RANGES = {"landsat-c2l1": (5000, 20000), "landsat-c2l2-sr": (7273, 18182)}  # DN of reflectance 0 and 0.3
MIN_RANGE = 0.2  # standard deviations of the sensor: a flat image stays flat instead of showing its noise


def styled():
    """The project's matplotlib settings as a context: `with styled(): ...`. Every function of figures uses it itself."""
    plt.draw_if_interactive()  # load the backend first: inside the context Jupyter's would lose its "show figures"
    _describe_in_notebooks()
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


def describe(fig: Figure) -> str:
    """Alternative text of a figure: its title, then the title, axes and legend of each panel."""
    parts = [fig.get_suptitle()]
    for ax in fig.axes:
        title = " ".join(filter(None, (ax.get_title(loc) for loc in ("left", "center", "right"))))
        axes = [f"{name}: {text}" for name, text in (("x", ax.get_xlabel()), ("y", ax.get_ylabel())) if text]
        parts.append(", ".join(filter(None, [title, *axes])))
    legends = [legend for owner in (*fig.axes, fig) for legend in owner.findobj(Legend)]
    names = dict.fromkeys(text.get_text() for legend in legends for text in legend.get_texts())
    text = ". ".join(dict.fromkeys([*filter(None, parts), *([f"Legend: {', '.join(names)}"] if names else [])]))
    return " ".join(text.split()) or "Figure"


def _describe_in_notebooks() -> None:
    """Let Jupyter store `describe` beside every figure, where exported pages look for alternative text."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if not getattr(shell, "display_formatter", None):
        return
    formatter = shell.display_formatter.formatters["image/png"]
    if Figure in formatter and not hasattr(draw := formatter.lookup_by_type(Figure), "described"):

        def described(fig):
            return draw(fig), {"alt": describe(fig)}

        described.described = True
        formatter.for_type(Figure, described)


def save(fig: Figure, path: str | Path) -> Path:
    """Write a PNG without date or version, so that the same figure gives the same bytes."""
    return atomic_write(path, lambda partial: fig.savefig(partial, format="png", metadata={"Software": None}))


def png(fig: Figure) -> bytes:
    """The figure as a PNG; it is closed, so that Jupyter does not show it a second time."""
    buffer = BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(fig)
    return buffer.getvalue()


def class_colors(names: Sequence) -> dict:
    """{name: color} in order of first appearance, from the palette, repeating after twelve."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


def components_to_rgb(components, valid=None) -> np.ndarray:
    """Principal components [..., 3] -> colors [..., 3], 0 to 1: each component from its 2nd to its 98th percentile.

    valid [...]: which cells set the stretch; NaN never does, and stays NaN.
    """
    components = as_array(components)
    known = np.isfinite(components).all(axis=-1)
    low, high = np.percentile(components[known if valid is None else known & valid], (2, 98), axis=0)
    return np.clip((components - low) / (high - low), 0, 1)


def rgb(
    pixels,
    sensor: str | Sensor,
    bands: Sequence[str] | None = None,
    *,
    stretch: tuple[float, float] | None = (2, 98),
    valid=None,
    like=None,
    normalized: bool = False,
    in_decibel: bool | None = None,
) -> np.ndarray:
    """Pixels [C, H, W] of one sensor as an RGB image [H, W, 3], float 0 to 1.

    stretch: percentiles that become black and white. Optical channels share one range above their own dark end, which
    removes haze and keeps colors natural; radar is vv, vh and vv/vh in dB, each with its own range. None: a fixed
    range (8 bit 0 to 255, reflectance 0 to 0.3, fixed decibels), so that images compare. like: pixels in the same form
    whose stretch is used (an original, for its reconstruction). valid [H, W]: False, like NaN, is gray.
    normalized: numbers in Clay's normalization. in_decibel: None decides by the sign of the median.
    """
    sensor = SENSORS.resolve(sensor)
    channels = _channels(pixels, sensor, bands, normalized, in_decibel)  # [H, W, 3]
    reference = channels if like is None else _channels(like, sensor, bands, normalized, in_decibel)
    known = np.isfinite(channels).all(axis=-1)
    if valid is not None:
        known &= np.asarray(valid, bool)
    usable = known if like is None else np.isfinite(reference).all(axis=-1)
    low, high = _limits(reference[usable], stretch, sensor)
    image = np.clip((channels - low) / np.maximum(high - low, 1e-12), 0, 1)
    if not sensor.decibel and not _eight_bit(sensor):
        image = image ** (1 / 1.4)  # gamma for screens, of linear reflectance; 8-bit photographs have it already
    return np.where(known[..., None], np.nan_to_num(image), MISSING)


def _channels(pixels, sensor: Sensor, bands, normalized: bool, in_decibel: bool | None) -> np.ndarray:
    """[H, W, 3] of native numbers, dB for radar."""
    pixels = as_array(pixels, (3,), "pixels [C, H, W]").astype(np.float32)
    names = [sensor.band_names[i] for i in sensor.indices(bands)]
    if len(names) != len(pixels):
        cause = "a subset without bands=[...], or bands last instead of first"
        raise ContractError("pixels", f"{len(pixels)} bands", f"{len(names)}: {names}", cause)
    if normalized:
        pixels, in_decibel = sensor.denormalize(pixels, names, in_decibel=True), True
    if sensor.decibel:
        if in_decibel is None:
            in_decibel = bool(np.isfinite(pixels).any() and np.nanmedian(pixels) < 0)
        pixels = pixels if in_decibel else to_decibel(pixels)
        if {"vv", "vh"} <= set(names):
            vv, vh = pixels[names.index("vv")], pixels[names.index("vh")]
            return np.stack([vv, vh, vv - vh], axis=-1)
    return np.stack([pixels[names.index(name)] for name in natural_colors(sensor, names)], axis=-1)


def natural_colors(sensor: Sensor, names: Sequence[str]) -> Sequence[str]:
    """The three bands shown as red, green and blue: the sensor's own, or the first ones."""
    natural = sensor.rgb and set(sensor.rgb) <= set(names)
    return sensor.rgb if natural else ([*names] * 3)[:3]


def _eight_bit(sensor: Sensor) -> bool:
    return max(band.mean for band in sensor.bands) < 256


def _limits(values: np.ndarray, stretch, sensor: Sensor) -> tuple[np.ndarray, np.ndarray]:
    """(low [3], high [3]) of values [N, 3]."""
    if stretch is None or not len(values):
        if sensor.decibel:
            return np.array([-22.0, -28.0, 2.0]), np.array([0.0, -6.0, 14.0])
        dark, bright = FIXED_RANGES.get(sensor.name, (0, 255 if _eight_bit(sensor) else 3000))
        return np.full(3, float(dark)), np.full(3, float(bright))
    low, high = np.percentile(values, stretch, axis=0)
    if not sensor.decibel:
        least = MIN_RANGE * float(sensor.statistics()[1].mean())
        high = low + max(np.percentile(values - low, stretch[1]), least)
    return low, np.maximum(high, low + 1e-6)


def as_array(values, ndims: tuple[int, ...] = (), shape: str = "") -> np.ndarray:
    """NumPy from NumPy, lists or torch (on the CPU); ContractError unless it has one of `ndims` axes, as in `shape`."""
    values = np.asarray(values.detach() if hasattr(values, "detach") else values)
    if ndims and values.ndim not in ndims:
        cause = "a batch axis is still there, or one is missing"
        raise ContractError(shape.split(" ")[0], f"shape {values.shape}", shape, cause)
    return values
