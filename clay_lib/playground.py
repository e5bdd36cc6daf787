"""A playground for masking: hide more or less, drop bands, tell the model another place, date or pixel size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure

from clay_lib import plots
from clay_lib.contract import ContractError
from clay_lib.datacube import parse_when
from clay_lib.encoder import image_of, mask_of
from clay_lib.model import Clay
from clay_lib.sensors import SENSORS, Sensor
from clay_lib.touch import Touch, as_png, wide

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
            found=f"shape {pixels.shape}",
            expected=f"[{len(have)}, H, W], one image for each of {', '.join(have)}",
            cause="a chip that lacks some of the sensor's bands: name those it has in have=[...]",
        )
    some = pixels[[have.index(band) for band in bands]]
    cube = clay.cube(some, sensor, bands=bands, gsd=gsd, when=when, lat=lat, lon=lon, check=False)
    out = clay.model(cube, mask_ratio=mask_ratio, generator=torch.Generator(cube.pixels.device).manual_seed(seed))
    layout = dict(grid=out.encoded.grid, patch_size=clay.model.config.patch_size, size=cube.pixels.shape[-2:])
    original = cube.target[0].float().cpu().numpy()  # NaN where nothing was measured
    painted = image_of(out.reconstruction, **layout)[0].float().cpu().numpy()
    hidden = mask_of(out.encoded.mask, **layout)[0, 0].bool().cpu().numpy()
    truth, shown = original[:, hidden], original[:, ~hidden]
    if not (np.isfinite(truth).any() and np.isfinite(shown).any(axis=1).all()):
        return Rebuilt(original, painted, hidden, float("nan"), float("nan"))
    plain = np.nanmean(shown, axis=1)[:, None]
    error, floor = (float(np.nanmean(np.abs(guess - truth))) for guess in (painted[:, hidden], plain))
    return Rebuilt(original, painted, hidden, error, floor)


def show_rebuilt(made: Rebuilt, sensor: str | Sensor, *, bands=None, gsd: float | None = None) -> Figure:
    """Input, what was seen, reconstruction and error, with the error beside that of the visible mean."""
    scores = {"error of hidden pixels": made.error, "of the visible mean": made.floor}
    return plots.reconstruction(
        made.original, made.hidden, made.pixels, sensor=sensor, bands=bands, gsd=gsd, normalised=True, scores=scores
    )


def show_ratios(clay: Clay, pixels, sensor: str | Sensor, *, ratios: Sequence[float] = RATIOS, **told) -> Figure:
    """The still picture: one chip at several mask ratios, what is seen above what is rebuilt."""
    sensor = SENSORS.resolve(sensor)
    tries = [rebuild(clay, pixels, sensor, mask_ratio=ratio, **told) for ratio in ratios]
    look = dict(sensor=sensor, bands=told.get("bands") or told.get("have"), normalised=True, like=tries[0].original)
    seen = [plots.rgb(made.original, valid=~made.hidden, **look) for made in tries]
    whole = [plots.rgb(np.where(made.hidden, made.pixels, made.original), **look) for made in tries]
    titles = [f"{ratio:.0%} hidden" for ratio in ratios]
    titles += [f"rebuilt, error {made.error:.2f} (mean {made.floor:.2f})" for made in tries]
    gsd = told.get("gsd") or sensor.gsd
    fig = plots.show_row(seen + whole, titles, columns=len(ratios), gsd=gsd, size=2.3)
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
