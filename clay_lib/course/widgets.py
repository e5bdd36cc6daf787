"""A playground for masking: hide more or less, drop bands, tell the model another place, date or pixel size."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import einsum, rearrange
from matplotlib.figure import Figure

from clay_lib import figures
from clay_lib.clay import Clay
from clay_lib.datacube import parse_when
from clay_lib.encoder import unpatchify, unpatchify_mask
from clay_lib.errors import ContractError
from clay_lib.figures.style import OURS, PALETTE, SIGNED
from clay_lib.sensors import SENSORS, Sensor


class Touch(ipywidgets.VBox):
    """A box of widgets with a still picture of itself in the same output.

    JupyterLab shows the widgets. A saved notebook, an exported page and GitHub have no kernel, and show the picture.
    """

    def __init__(self, children, still: Figure):
        super().__init__(children)
        self.still = as_png(still)

    def _repr_mimebundle_(self, **kwargs):
        told = super()._repr_mimebundle_(**kwargs)
        return told and {**told, "image/png": base64.b64encode(self.still).decode()}


def as_png(fig: Figure) -> bytes:
    """The figure as PNG, and closed, so that Jupyter does not show it a second time."""
    buffer = BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(fig)
    return buffer.getvalue()


def wide(description: str, **more) -> dict:
    """How a control of a widget looks: a name of any length, one width, and no redraw before the mouse lets go."""
    look = dict(style={"description_width": "9em"}, layout=ipywidgets.Layout(width="27em"))
    return dict(description=description, **look, **more)


# ---- A playground for masking: hide more or less, drop bands, tell the model another place, date or pixel ----

RATIOS = (0.25, 0.5, 0.75, 0.9)  # of the still picture
GSDS = (0.6, 1.0, 3.0, 5.0, 10.0, 30.0, 100.0, 500.0)  # metres, from an aeroplane's camera to MODIS
ELSEWHERE = {"the Amazon": (-3.0, -60.0), "the Sahara": (24.0, 10.0), "Greenland": (72.0, -40.0)}


@dataclass(frozen=True)
class Rebuilt:
    """One try. Errors are mean absolute differences over hidden pixels and all bands; NaN where nothing is hidden."""

    original: np.ndarray  # [C, H, W] normalised
    pixels: np.ndarray  # [C, H, W] normalised, every patch as the decoder paints it
    hidden: np.ndarray  # [H, W] bool
    error: float  # standard deviations
    floor: float  # the same for the mean of the visible pixels of each band


@torch.inference_mode()
def rebuild(
    clay: Clay,
    pixels,
    sensor: str | Sensor,
    *,
    have: Sequence[str] | None = None,
    mask_ratio: float = 0.75,
    bands: Sequence[str] | None = None,
    gsd: float | None = None,
    when: str | None = None,
    lat: float | None = None,
    lon: float | None = None,
    seed: int = 0,
) -> Rebuilt:
    """Hide a share of the patches of a chip and rebuild it.

    pixels: [C, H, W] native numbers of the bands `have`, by default all of the sensor's; bands picks some of them.
    gsd, when, lat and lon are what the model is told, true or not, so nothing is checked against the image. The same
    seed hides the same patches.
    """
    sensor = SENSORS.resolve(sensor)
    have = list(have or sensor.band_names)
    bands, pixels = list(bands or have), np.asarray(pixels)
    if pixels.ndim != 3 or len(pixels) != len(have):
        raise ContractError(
            "pixels",
            f"shape {pixels.shape}",
            f"[{len(have)}, H, W], one image for each of {', '.join(have)}",
            "a chip that lacks some of the sensor's bands: name those it has in have=[...]",
        )
    some = pixels[[have.index(band) for band in bands]]
    cube = clay.cube(some, sensor, bands=bands, gsd=gsd, when=when, lat=lat, lon=lon, check=False)
    out = clay.model(cube, mask_ratio=mask_ratio, generator=torch.Generator(cube.pixels.device).manual_seed(seed))
    layout = dict(grid=out.encoded.grid, patch_size=clay.model.config.patch_size, size=cube.pixels.shape[-2:])
    original = cube.target[0].float().cpu().numpy()  # NaN where nothing was measured
    painted = unpatchify(out.reconstruction, **layout)[0].float().cpu().numpy()
    hidden = unpatchify_mask(out.encoded.mask, **layout)[0, 0].bool().cpu().numpy()
    truth, shown = original[:, hidden], original[:, ~hidden]
    if not (np.isfinite(truth).any() and np.isfinite(shown).any(axis=1).all()):
        return Rebuilt(original, painted, hidden, float("nan"), float("nan"))
    plain = np.nanmean(shown, axis=1)[:, None]
    error, floor = (float(np.nanmean(np.abs(guess - truth))) for guess in (painted[:, hidden], plain))
    return Rebuilt(original, painted, hidden, error, floor)


def show_rebuilt(made: Rebuilt, sensor: str | Sensor, *, bands=None, gsd: float | None = None) -> Figure:
    """Input, what was seen, reconstruction and error, with the error beside that of the visible mean."""
    scores = {"error of hidden pixels": made.error, "of the visible mean": made.floor}
    return figures.reconstruction(
        made.original, made.hidden, made.pixels, sensor=sensor, bands=bands, gsd=gsd, normalized=True, scores=scores
    )


def show_ratios(clay: Clay, pixels, sensor: str | Sensor, *, ratios: Sequence[float] = RATIOS, **told) -> Figure:
    """The still picture: one chip at several mask ratios, what is seen above what is rebuilt."""
    sensor = SENSORS.resolve(sensor)
    tries = [rebuild(clay, pixels, sensor, mask_ratio=ratio, **told) for ratio in ratios]
    look = dict(sensor=sensor, bands=told.get("bands") or told.get("have"), normalized=True, like=tries[0].original)
    seen = [figures.rgb(made.original, valid=~made.hidden, **look) for made in tries]
    whole = [figures.rgb(np.where(made.hidden, made.pixels, made.original), **look) for made in tries]
    titles = [f"{ratio:.0%} hidden" for ratio in ratios]
    titles += [f"rebuilt, error {made.error:.2f} (mean {made.floor:.2f})" for made in tries]
    gsd = told.get("gsd") or sensor.gsd
    fig = figures.show_row(seen + whole, titles, columns=len(ratios), gsd=gsd, size=2.3)
    for ax in fig.axes:
        ax.title.set_fontsize(9)
    return fig


def playground(
    clay: Clay,
    pixels,
    sensor: str | Sensor,
    *,
    have: Sequence[str] | None = None,
    gsd: float | None = None,
    when: str | None = None,
    lat: float | None = None,
    lon: float | None = None,
    mask_ratio: float = 0.75,
    seed: int = 0,
) -> Touch:
    """Sliders over `rebuild`: the share hidden, the bands, and what the model is told of pixel size, date and place.

    pixels: one chip [C, H, W] in native numbers; have: its bands, if it lacks some of the sensor's; gsd, when, lat, lon:
    its own. Put it at the end of a cell.
    """
    sensor = SENSORS.resolve(sensor)
    have, gsd = tuple(have or sensor.band_names), float(gsd or sensor.gsd)
    quiet = dict(continuous_update=False)  # one redraw a move
    ratio = ipywidgets.FloatSlider(
        value=mask_ratio, min=0.05, max=0.95, step=0.05, readout_format=".0%", **wide("hidden", **quiet)
    )
    names = ipywidgets.SelectMultiple(options=have, value=have, rows=5, **wide("bands"))
    sizes = sorted({*GSDS, gsd})
    size = ipywidgets.SelectionSlider(
        options=[(f"{g:g} m", g) for g in sizes], value=gsd, **wide("told pixel size", **quiet)
    )
    places = {"its own": (lat, lon)} if lat is not None else {}
    where = ipywidgets.Dropdown(options=[*places, "unknown", *ELSEWHERE], **wide("told place"))
    places |= {"unknown": (None, None), **ELSEWHERE}
    dates = _dates(when)
    date = ipywidgets.SelectionSlider(options=list(dates), **wide("told date", **quiet))
    draw = ipywidgets.BoundedIntText(value=seed, min=0, max=999, **wide("draw of the mask"))
    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
    picture.add_class("clay-playground")

    def redraw(_=None):
        bands = names.value or have
        place = dict(zip(("lat", "lon"), places[where.value], strict=True))
        told = dict(gsd=size.value, when=dates[date.value], **place)
        made = rebuild(clay, pixels, sensor, have=have, mask_ratio=ratio.value, bands=bands, seed=draw.value, **told)
        picture.value = as_png(show_rebuilt(made, sensor, bands=bands, gsd=gsd))

    for control in (ratio, names, size, where, date, draw):
        control.observe(redraw, "value")
    redraw()
    left, right = ipywidgets.VBox([ratio, draw, names]), ipywidgets.VBox([size, date, where])
    controls = ipywidgets.HBox([left, right], layout=ipywidgets.Layout(flex_flow="row wrap"))
    told = dict(have=have, gsd=gsd, when=when, lat=lat, lon=lon, seed=seed)
    return Touch([controls, picture], show_ratios(clay, pixels, sensor, **told))


def _dates(when: str | None) -> dict[str, str | None]:
    """{shown: date as `when`}: the chip's own, unknown, and the middle of each month at the same hour."""
    own = parse_when(when)
    dates: dict[str, str | None] = {"its own": when} if own else {}
    year, clock = (own.year, own.strftime("%H:%M")) if own else (2023, "12:00")
    months = {f"{year}-{month:02}": f"{year}-{month:02}-15T{clock}" for month in range(1, 13)}
    return dates | {"unknown": None} | months


# ---- A slider over wavelength: the kernels that the hypernetwork writes for it, and what they answer to a ----

SHOWN = 6  # kernels side by side
SHORTEST, LONGEST = 0.4, 2.4  # um
GRID = np.round(np.geomspace(SHORTEST, LONGEST, 73), 4).astype(np.float32)  # um, of the curve


@torch.inference_mode()
def kernels_at(clay: Clay, waves: Sequence[float]) -> np.ndarray:
    """Wavelengths [W], um -> kernels [W, D, P, P], each written for that wavelength alone."""
    embedding = clay.model.encoder.patch_embedding
    device = clay.model.encoder.cls_token.device
    made = [embedding.kernels(torch.tensor([float(wave)], device=device))[0][:, 0] for wave in waves]
    return torch.stack(made).float().cpu().numpy()


def pixels_at(pixels: np.ndarray, waves: np.ndarray, wave: float) -> np.ndarray:
    """Bands [C, H, W] at wavelengths [C] -> the image [H, W] at another wavelength, linear between its neighbours.

    Beyond the outermost bands it stays as they are.
    """
    order = np.argsort(waves, kind="stable")
    mix = [np.interp(wave, waves[order], np.eye(len(waves))[order, band]) for band in range(len(waves))]
    return einsum(np.float32(mix), np.asarray(pixels, np.float32), "C, C H W -> H W")


def response(kernels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Kernels [D, P, P] on an image [H, W], patch by patch -> [D, h, w]; rows and columns that fill no patch are cut."""
    P = kernels.shape[-1]
    h, w = (side // P for side in image.shape)
    patches = rearrange(image[: h * P, : w * P], "(h p) (w q) -> h w p q", p=P, q=P)
    return einsum(kernels, patches, "D p q, h w p q -> D h w")


def likeness(kernels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine of kernels [D, P, P] with each of others [W, D, P, P] -> [W]."""
    flat = rearrange(others, "W D p q -> W (D p q)")
    return flat @ kernels.ravel() / (np.linalg.norm(flat, axis=1) * np.linalg.norm(kernels))


@dataclass(frozen=True, eq=False)
class Bench:
    """What stays while the slider moves: the chip, the curve's kernels, and which kernels are shown."""

    clay: Clay
    sensor: Sensor
    pixels: np.ndarray  # [C, H, W] normalised
    table: np.ndarray  # [G, D, P, P], kernels at GRID
    shown: np.ndarray  # [SHOWN] numbers of the kernels with the largest share of the weight, in the mean over GRID


def set_up(clay: Clay, pixels, sensor: str | Sensor) -> Bench:
    """pixels: one chip [C, H, W] in native numbers, all bands of an optical sensor."""
    sensor, P = SENSORS.resolve(sensor), clay.model.config.patch_size
    shape = np.shape(pixels)
    if sensor.decibel or len(shape) != 3 or shape[0] != len(sensor.bands) or min(shape[1:]) < P:
        raise ContractError(
            "pixels",
            f"shape {shape} of {sensor.name}",
            f"one chip [C, H, W] of at least {P} x {P} pixels with all bands of an optical sensor",
            "radar, which has no image between its bands, or a chip that lacks some",
        )
    normalised = clay.cube(np.asarray(pixels), sensor, check=False).pixels[0].float().cpu().numpy()
    table = kernels_at(clay, GRID)
    energy = (table**2).sum(axis=(2, 3))
    share = (energy / energy.sum(axis=1, keepdims=True)).mean(axis=0)
    return Bench(clay, sensor, normalised, table, np.argsort(-share, kind="stable")[:SHOWN])


def show_wavelengths(bench: Bench, waves: Sequence[float]) -> Figure:
    """For each wavelength a row: the strongest kernels, the chip, and what the first kernel answers to it.

    Above: how much the kernels for these wavelengths are like those for all others; marks are the sensors' bands.
    Each row's kernels share one scale, red above zero and blue below, up to the weight that the row names.
    """
    rows = len(waves)
    low, high = np.percentile(bench.pixels, (2, 98))
    with figures.styled():
        fig = plt.figure(figsize=(9.4, 2.3 + 1.35 * rows))
        top, bottom = fig.subfigures(2, 1, height_ratios=(2.1, 1.35 * rows))
        _curves(top.subplots(), bench, waves)
        axes = bottom.subplots(rows, SHOWN + 2, squeeze=False, width_ratios=[1] * SHOWN + [1.35, 1.35])
        for row, wave in enumerate(waves):
            (kernels,) = kernels_at(bench.clay, [wave])
            image = pixels_at(bench.pixels, bench.sensor.waves(), wave)
            most = np.abs(kernels[bench.shown]).max()
            for ax, number in zip(axes[row], bench.shown, strict=False):
                ax.imshow(kernels[number], cmap=SIGNED, vmin=-most, vmax=most)
                ax.set_title(f"kernel {number}" if row == 0 else "", loc="center", fontsize=9)
            axes[row, -2].imshow(image, cmap="gray", vmin=low, vmax=high)
            answer = response(kernels[bench.shown[:1]], image)[0]
            axes[row, -1].imshow(answer, cmap=SIGNED, vmin=-np.abs(answer).max(), vmax=np.abs(answer).max())
            axes[row, 0].set_ylabel(f"{wave:.3g} µm\n± {most:.2g}", rotation=0, ha="right", va="center")
        axes[0, -2].set_title("the chip there", loc="center", fontsize=9)
        axes[0, -1].set_title(f"answer of {bench.shown[0]}", loc="center", fontsize=9)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    return fig


def _curves(ax, bench: Bench, waves: Sequence[float]) -> None:
    lowest = 1.0
    for colour, wave in zip(PALETTE if len(waves) > 1 else [OURS], waves, strict=False):
        alike = likeness(kernels_at(bench.clay, [wave])[0], bench.table)
        ax.plot(GRID, alike, color=colour, lw=1.6, label=f"{wave:.3g} µm")
        ax.axvline(wave, color=colour, lw=1, ls="--")
        lowest = min(lowest, float(alike.min()))
    room = max(1 - lowest, 1e-3)
    for sensor in SENSORS.values():
        near = sensor.waves()[sensor.waves() < GRID[-1]]
        mine = sensor == bench.sensor
        height = np.full(len(near), lowest - room * (0.12 if mine else 0.22))
        ax.scatter(near, height, marker="|", s=40, lw=1.5, color="black" if mine else "#9a9a9a")
    ax.set(xscale="log", xlabel=f"wavelength (µm); black: bands of {bench.sensor.name}, grey: of the other sensors")
    ax.set(ylabel="cosine", title="How like its kernels are to those for other wavelengths")
    ax.set_xticks([0.4, 0.5, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.4], minor=False)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def wavelength_slider(clay: Clay, pixels, sensor: str | Sensor = "sentinel-2-l2a", *, wave: float = 0.62) -> Touch:
    """A slider over wavelength, for a chip [C, H, W] in native numbers of an optical sensor. The last line of a cell.

    It begins at 0.62 um, where no sensor of the registry has a band.
    """
    if not SHORTEST <= wave <= LONGEST:
        raise ContractError("wave", wave, f"{SHORTEST} to {LONGEST} µm", "nanometres")
    bench = set_up(clay, pixels, sensor)
    slider = ipywidgets.FloatSlider(
        value=wave,
        min=SHORTEST,
        max=LONGEST,
        step=0.005,
        readout_format=".3f",
        **wide("wavelength (µm)", continuous_update=False),
    )
    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
    picture.add_class("clay-wavelengths")

    def redraw(_=None):
        picture.value = as_png(show_wavelengths(bench, [slider.value]))

    slider.observe(redraw, "value")
    redraw()
    return Touch([slider, picture], show_wavelengths(bench, [0.49, wave, 0.85, 1.6]))
