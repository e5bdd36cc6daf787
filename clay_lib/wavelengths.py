"""A slider over wavelength: the kernels that the hypernetwork writes for it, and what they answer to a chip.

At a wavelength between two bands the chip is interpolated between the images of these bands; the kernel is not
interpolated, the network writes it for that wavelength.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import einsum, rearrange
from matplotlib.figure import Figure

from clay_lib import plots
from clay_lib.colours import OURS, PALETTE, SIGNED
from clay_lib.contract import ContractError
from clay_lib.model import Clay
from clay_lib.sensors import SENSORS, Sensor
from clay_lib.touch import Touch, as_png, wide

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
            found=f"shape {shape} of {sensor.name}",
            expected=f"one chip [C, H, W] of at least {P} x {P} pixels with all bands of an optical sensor",
            cause="radar, which has no image between its bands, or a chip that lacks some",
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
    with plots.style():
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
        raise ContractError("wave", found=wave, expected=f"{SHORTEST} to {LONGEST} µm", cause="nanometres")
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
