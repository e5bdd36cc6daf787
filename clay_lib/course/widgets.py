"""Interactive widgets: a playground for masking, and a slider over wavelength; without a kernel they show a figure, or
HTML that still answers to a slider or a click."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import einsum, rearrange
from matplotlib.figure import Figure
from PIL import Image

from clay_lib import figures
from clay_lib.clay import Clay
from clay_lib.data.images import open_image
from clay_lib.datacube import parse_when
from clay_lib.errors import ContractError
from clay_lib.figures.style import OURS, PALETTE, SIGNED, png
from clay_lib.sensors import SENSORS, Sensor


class Widget(ipywidgets.VBox):
    """A box of widgets with a still figure in the same output, and a page: HTML for places without a kernel.

    JupyterLab shows the widgets, an exported page the HTML. GitHub takes the scripts out of it, so that the still figure
    is in it too, as a PNG, which every viewer allows in HTML.
    """

    def __init__(self, children, still: Figure, page: str = ""):
        super().__init__(children)
        self.still = png(still)
        self._png = base64.b64encode(self.still).decode()
        small = Image.open(BytesIO(self.still)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
        small.save(buffer := BytesIO(), "PNG", optimize=True)  # a third of the bytes
        self.page = page.replace("{{still}}", f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        page = {"text/html": self.page} if self.page else {}
        return bundle and {**bundle, **page, "image/png": self._png}


def fill_page(file: str, data: Mapping, **texts: str) -> str:
    """The HTML of a file beside this one with its data and texts; `Widget` fills in the still figure."""
    page = Path(__file__).with_name(file).read_text(encoding="utf-8")
    for name, text in {**texts, "data": json.dumps(data).replace("<", "\\u003c")}.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    return page


def webp_url(image: np.ndarray | Figure) -> str:
    """An image [H, W, 3], 0 to 1, or a figure, which is closed, as the address of a WebP file in a page."""
    if isinstance(image, Figure):
        picture = Image.open(BytesIO(png(image))).convert("RGB")
        picture.thumbnail((800, 800))
    else:
        picture = Image.fromarray(np.uint8(255 * np.clip(np.asarray(image)[..., :3], 0, 1)))
    picture.save(buffer := BytesIO(), "WEBP", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_widget(name: str, **layout) -> ipywidgets.Image:
    """An empty PNG image with a CSS class."""
    image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(**layout))
    image.add_class(name)
    return image


def redrawn(name: str, controls: Sequence[ipywidgets.Widget], draw: Callable[[], Figure]) -> ipywidgets.Image:
    """An image that is drawn now, and again whenever a control changes."""
    image = image_widget(name, max_width="100%")

    def redraw(_=None):
        image.value = png(draw())

    for control in controls:
        control.observe(redraw, "value")
    redraw()
    return image


def _control(description: str, *, slider: bool = False) -> dict:
    """Options of a control: one width for all names; a slider redraws once the mouse lets go."""
    options = dict(style={"description_width": "9em"}, layout=ipywidgets.Layout(width="27em"))
    return dict(description=description, **options, **(dict(continuous_update=False) if slider else {}))


# ---- masking ----

RATIOS = (0.1, 0.25, 0.5, 0.6, 0.75, 0.85, 0.95)  # of the page's slider
GSDS = (0.6, 1.0, 3.0, 5.0, 10.0, 30.0, 100.0, 500.0)  # meters, from aerial cameras to MODIS
PLACES = {"the Amazon": (-3.0, -60.0), "the Sahara": (24.0, 10.0), "Greenland": (72.0, -40.0)}


@dataclass(frozen=True)
class Reconstruction:
    """A chip and its reconstruction. Errors are mean absolute differences over hidden pixels and all bands, in standard
    deviations; NaN where nothing is hidden."""

    original: np.ndarray  # [C, H, W] normalized, NaN where nothing was measured
    pixels: np.ndarray  # [C, H, W] normalized, every patch as the decoder gives it
    hidden: np.ndarray  # [H, W] bool
    error: float
    baseline: float  # error of the mean of each band's visible pixels


def reconstruct(
    clay: Clay,
    pixels,
    sensor: str | Sensor,
    *,
    available: Sequence[str] | None = None,
    bands: Sequence[str] | None = None,
    **options,
) -> Reconstruction:
    """Hide a share of the patches of a chip and reconstruct it.

    pixels [C, H, W]: native numbers of the `available` bands, by default all of the sensor's; bands: a subset of them.
    options: mask_ratio, seed, gsd (m), when, lat and lon (degrees) of `Clay.reconstruct`; the metadata may be wrong on
    purpose, so they are not checked.
    """
    sensor = SENSORS.resolve(sensor)
    available = list(available or sensor.band_names)
    bands, pixels = list(bands or available), np.asarray(pixels)
    if pixels.ndim != 3 or len(pixels) != len(available):
        expected = f"[{len(available)}, H, W], one image for each of {', '.join(available)}"
        cause = "a chip that lacks some of the sensor's bands: name those it has in available=[...]"
        raise ContractError("pixels", f"shape {pixels.shape}", expected, cause)
    image = open_image(pixels[[available.index(band) for band in bands]], sensor, bands=bands)
    rebuilt = clay.reconstruct(image, sensor, check=False, **options)
    both, hidden = (image.pixels[0], rebuilt.pixels[0]), rebuilt.mask[0]
    original, predicted = (sensor.normalize(x, bands, in_decibel=image.in_decibel) for x in both)
    truth, visible = original[:, hidden], original[:, ~hidden]
    error = baseline = float("nan")
    if np.isfinite(truth).any() and np.isfinite(visible).any(axis=1).all():
        error = float(np.nanmean(np.abs(predicted[:, hidden] - truth)))
        baseline = float(np.nanmean(np.abs(np.nanmean(visible, axis=1)[:, None] - truth)))
    return Reconstruction(original, predicted, hidden, error, baseline)


def show_reconstruction(
    result: Reconstruction, sensor: str | Sensor, *, bands=None, gsd: float | None = None
) -> Figure:
    """Input, visible patches, reconstruction and error, with the error beside that of the visible mean."""
    scores = {"error of hidden pixels": result.error, "of the visible mean": result.baseline}
    options = dict(sensor=sensor, bands=bands, gsd=gsd, normalized=True, scores=scores)
    return figures.reconstruction(result.original, result.hidden, result.pixels, **options)


def playground(
    clay: Clay,
    pixels,
    sensor: str | Sensor,
    *,
    available: Sequence[str] | None = None,
    gsd: float | None = None,
    when: str | None = None,
    lat: float | None = None,
    lon: float | None = None,
    mask_ratio: float = 0.75,
    seed: int = 0,
) -> Widget:
    """Controls over `reconstruct`: the share hidden, the bands, and the pixel size, date and place given to the model.

    pixels: one chip [C, H, W] in native numbers; available: its bands, if it lacks some of the sensor's; gsd, when,
    lat, lon: its own. Put it at the end of a cell.
    """
    sensor = SENSORS.resolve(sensor)
    available, gsd = tuple(available or sensor.band_names), float(gsd or sensor.gsd)
    own_place = {"its own": (lat, lon)} if lat is not None else {}
    places, dates = {**own_place, "unknown": (None, None), **PLACES}, _dates(when)
    sizes = [(f"{g:g} m", g) for g in sorted({*GSDS, gsd})]
    hidden = ipywidgets.FloatSlider(
        value=mask_ratio, min=0.05, max=0.95, step=0.05, readout_format=".0%", **_control("hidden", slider=True)
    )
    names = ipywidgets.SelectMultiple(options=available, value=available, rows=5, **_control("bands"))
    size = ipywidgets.SelectionSlider(options=sizes, value=gsd, **_control("pixel size", slider=True))
    place = ipywidgets.Dropdown(options=list(places), **_control("place"))
    date = ipywidgets.SelectionSlider(options=list(dates), **_control("date", slider=True))
    draw = ipywidgets.BoundedIntText(value=seed, min=0, max=999, **_control("seed of the mask"))

    def figure() -> Figure:
        bands = names.value or available
        metadata = dict(gsd=size.value, when=dates[date.value], lat=places[place.value][0], lon=places[place.value][1])
        options = dict(available=available, bands=bands, mask_ratio=hidden.value, seed=draw.value, **metadata)
        return show_reconstruction(reconstruct(clay, pixels, sensor, **options), sensor, bands=bands, gsd=gsd)

    image = redrawn("clay-playground", (hidden, names, size, place, date, draw), figure)
    left, right = ipywidgets.VBox([hidden, draw, names]), ipywidgets.VBox([size, date, place])
    controls = ipywidgets.HBox([left, right], layout=ipywidgets.Layout(flex_flow="row wrap"))
    own = dict(available=available, gsd=gsd, when=when, lat=lat, lon=lon, seed=seed)

    def still(ratio: float) -> Figure:
        result = reconstruct(clay, pixels, sensor, mask_ratio=ratio, **own)
        return show_reconstruction(result, sensor, bands=available, gsd=gsd)

    images = [webp_url(still(ratio)) for ratio in RATIOS]
    data = dict(images=images, first=RATIOS.index(0.75), values=[f"{ratio:.0%}" for ratio in RATIOS])
    alt = "A chip, its visible patches, the reconstruction and the error, by the share of hidden patches"
    page = fill_page("slider.html", data, name="share of hidden patches", alt=alt)
    return Widget([controls, image], still(mask_ratio), page)


def _dates(when: str | None) -> dict[str, str | None]:
    """{shown: date as `when`}: the chip's own, unknown, and the middle of each month at the same hour."""
    own = parse_when(when)
    dates: dict[str, str | None] = {"its own": when} if own else {}
    year, clock = (own.year, own.strftime("%H:%M")) if own else (2023, "12:00")
    months = {f"{year}-{month:02}": f"{year}-{month:02}-15T{clock}" for month in range(1, 13)}
    return dates | {"unknown": None} | months


# ---- wavelengths ----
# Between two bands the image is interpolated; the kernel is not: the hypernetwork generates it for that wavelength.

SHOWN = 6  # kernels side by side
SHORTEST, LONGEST = 0.4, 2.4  # um
GRID = np.round(np.geomspace(SHORTEST, LONGEST, 73), 4).astype(np.float32)  # um, of the curve


@torch.inference_mode()
def kernels_at(clay: Clay, waves: Sequence[float]) -> np.ndarray:
    """Wavelengths [W], um -> kernels [W, D, P, P], each generated for that wavelength alone."""
    embedding, device = clay.model.encoder.patch_embedding, clay.model.encoder.cls_token.device
    kernels = [embedding.kernels(torch.tensor([float(wave)], device=device))[0][:, 0] for wave in waves]
    return torch.stack(kernels).float().cpu().numpy()


def pixels_at(pixels: np.ndarray, waves: np.ndarray, wave: float) -> np.ndarray:
    """Bands [C, H, W] at wavelengths [C] -> the image [H, W] at another one, linear between bands, constant beyond."""
    order = np.argsort(waves, kind="stable")
    weights = [np.interp(wave, waves[order], np.eye(len(waves))[order, band]) for band in range(len(waves))]
    return einsum(np.float32(weights), np.asarray(pixels, np.float32), "C, C H W -> H W")


def response(kernels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Kernels [D, P, P] on the patches of an image [H, W] -> [D, h, w]; rows and columns that fill no patch are cut."""
    P = kernels.shape[-1]
    h, w = (side // P for side in image.shape)
    patches = rearrange(image[: h * P, : w * P], "(h p) (w q) -> h w p q", p=P, q=P)
    return einsum(kernels, patches, "D p q, h w p q -> D h w")


def similarity(kernels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine of kernels [D, P, P] with each of others [W, D, P, P] -> [W]."""
    flat = rearrange(others, "W D p q -> W (D p q)")
    return flat @ kernels.ravel() / (np.linalg.norm(flat, axis=1) * np.linalg.norm(kernels))


@dataclass(frozen=True, eq=False)
class KernelView:
    """What stays while the slider moves: the chip, the curve's kernels, and which kernels are shown."""

    clay: Clay
    sensor: Sensor
    pixels: np.ndarray  # [C, H, W] normalized
    table: np.ndarray  # [G, D, P, P], kernels at GRID
    shown: np.ndarray  # [SHOWN] indices of the kernels with the largest share of the energy, averaged over GRID


def kernel_view(clay: Clay, pixels, sensor: str | Sensor) -> KernelView:
    """pixels: one chip [C, H, W] in native numbers, all bands of an optical sensor."""
    sensor, P, shape = SENSORS.resolve(sensor), clay.model.config.patch_size, np.shape(pixels)
    if sensor.decibel or len(shape) != 3 or shape[0] != len(sensor.bands) or min(shape[1:]) < P:
        expected = f"one chip [C, H, W] of at least {P} x {P} pixels with all bands of an optical sensor"
        cause = "radar, which has no image between its bands, or a chip that lacks some"
        raise ContractError("pixels", f"shape {shape} of {sensor.name}", expected, cause)
    normalized = clay.cube(np.asarray(pixels), sensor, check=False).pixels[0].float().cpu().numpy()
    table = kernels_at(clay, GRID)
    energy = (table**2).sum(axis=(2, 3))
    share = (energy / energy.sum(axis=1, keepdims=True)).mean(axis=0)
    return KernelView(clay, sensor, normalized, table, np.argsort(-share, kind="stable")[:SHOWN])


def show_wavelengths(view: KernelView, waves: Sequence[float]) -> Figure:
    """For each wavelength a row: the strongest kernels, the chip, and the response of the first kernel.

    Above: the cosine of its kernels with those of all other wavelengths; marks are the sensors' bands. The kernels of a
    row share one scale, red above zero and blue below, up to the weight that the row names.
    """
    rows = len(waves)
    low, high = np.percentile(view.pixels, (2, 98))
    with figures.styled():
        fig = plt.figure(figsize=(9.4, 2.3 + 1.35 * rows))
        top, bottom = fig.subfigures(2, 1, height_ratios=(2.1, 1.35 * rows))
        _draw_curves(top.subplots(), view, waves)
        axes = bottom.subplots(rows, SHOWN + 2, squeeze=False, width_ratios=[1] * SHOWN + [1.35, 1.35])
        for row, wave in enumerate(waves):
            (kernels,) = kernels_at(view.clay, [wave])
            image = pixels_at(view.pixels, view.sensor.waves(), wave)
            limit = np.abs(kernels[view.shown]).max()
            for ax, number in zip(axes[row], view.shown, strict=False):
                ax.imshow(kernels[number], cmap=SIGNED, vmin=-limit, vmax=limit)
                ax.set_title(f"kernel {number}" if row == 0 else "", loc="center", fontsize=9)
            axes[row, -2].imshow(image, cmap="gray", vmin=low, vmax=high)
            first = response(kernels[view.shown[:1]], image)[0]
            axes[row, -1].imshow(first, cmap=SIGNED, vmin=-np.abs(first).max(), vmax=np.abs(first).max())
            axes[row, 0].set_ylabel(f"{wave:.3g} µm\n± {limit:.2g}", rotation=0, ha="right", va="center")
        axes[0, -2].set_title("the chip there", loc="center", fontsize=9)
        axes[0, -1].set_title(f"response of {view.shown[0]}", loc="center", fontsize=9)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    return fig


def _draw_curves(ax, view: KernelView, waves: Sequence[float]) -> None:
    lowest = 1.0
    for color, wave in zip(PALETTE if len(waves) > 1 else [OURS], waves, strict=False):
        cosines = similarity(kernels_at(view.clay, [wave])[0], view.table)
        ax.plot(GRID, cosines, color=color, lw=1.6, label=f"{wave:.3g} µm")
        ax.axvline(wave, color=color, lw=1, ls="--")
        lowest = min(lowest, float(cosines.min()))
    height = max(1 - lowest, 1e-3)
    for sensor in SENSORS.values():
        bands = sensor.waves()[sensor.waves() < GRID[-1]]
        own = sensor == view.sensor
        y = np.full(len(bands), lowest - height * (0.12 if own else 0.22))
        ax.scatter(bands, y, marker="|", s=40, lw=1.5, color="black" if own else "#9a9a9a")
    ax.set(xscale="log", xlabel=f"wavelength (µm); black: bands of {view.sensor.name}, gray: of the other sensors")
    ax.set(ylabel="cosine", title="Similarity of its kernels to those for other wavelengths")
    ax.set_xticks([0.4, 0.5, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.4], minor=False)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def wavelength_slider(clay: Clay, pixels, sensor: str | Sensor = "sentinel-2-l2a", *, wave: float = 0.62) -> Widget:
    """A slider over wavelength (um), for a chip [C, H, W] in native numbers of an optical sensor; last line of a cell.

    It begins at 0.62 um, where no sensor of the registry has a band.
    """
    if not SHORTEST <= wave <= LONGEST:
        raise ContractError("wave", wave, f"{SHORTEST} to {LONGEST} µm", "nanometers")
    view, options = kernel_view(clay, pixels, sensor), _control("wavelength (µm)", slider=True)
    slider = ipywidgets.FloatSlider(value=wave, min=SHORTEST, max=LONGEST, step=0.005, readout_format=".3f", **options)
    image = redrawn("clay-wavelengths", [slider], lambda: show_wavelengths(view, [slider.value]))
    return Widget([slider, image], show_wavelengths(view, [0.49, wave, 0.85, 1.6]))
