"""Photographs and dead leaves as aerial chips: other images than the mini-world's, for a learned teacher to judge.

Heavy crops with changed colors of a few photographs teach a student most of what its teacher knows of the world (Asano
and Saeed 2023, "The augmented image prior"). Dead leaves, shapes that cover each other with sizes of a power law, have
the statistics of natural images (Lee et al. 2001), and train vision models too (Baradad et al. 2021). Here some of them
lie in rows with one direction, as roofs, cars and trees do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageStat

from clay_lib.data.chips import Chips
from clay_lib.data.makers import MakerOutput
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS

PACKAGE = "scikit-learn"  # ships two photographs, CC-BY: see its datasets/images/README.txt
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif")
LEAVES = 0.3  # share of chips with dead leaves
SMALLEST = 20  # side of a crop in pixels of the photograph
FLAT, TRIES = 16, 4  # standard deviation below which a crop is drawn again, so often at most
CHANNELS = {"red", "green", "blue", "nir"}


@dataclass(frozen=True)
class PhotographMaker:
    """`count` chips of crops of photographs, and of dead leaves in their colors, without place and date.

    folder: of photographs, or "scikit-learn" for the two of that package. sensor: naip or linz; near infrared is a
    random mixture of the three colors.
    """

    sensor: str
    count: int
    size: int = 64
    folder: str = PACKAGE
    seed: int = 0

    def __post_init__(self):
        if not CHANNELS.issuperset(SENSORS[self.sensor].band_names):
            raise ContractError("sensor", self.sensor, "naip or linz", "a sensor with bands that photographs lack")

    def __len__(self) -> int:
        return self.count

    @property
    def recipe(self) -> str:
        pixels = [hashlib.sha256(image.tobytes()).hexdigest() for image in photographs(self.folder)]
        spec = [self.seed, pixels, hashlib.sha256(Path(__file__).read_bytes()).hexdigest()]
        return f"photographs{self.seed}-{hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:8]}"

    def part(self, numbers: range) -> Callable[[], MakerOutput]:
        return partial(_make, self, numbers)


@lru_cache(maxsize=2)
def photographs(folder: str = PACKAGE) -> list[Image.Image]:
    """RGB images of a folder, or those that scikit-learn ships; their shorter side is 400 to 800 pixels."""
    if folder == PACKAGE:
        from sklearn.datasets import load_sample_images

        return [Image.fromarray(image) for image in load_sample_images().images]
    paths = [path for path in sorted(Path(folder).glob("*")) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ContractError(
            "photographs", f"no image in {folder}", f"one of {SUFFIXES}, or {PACKAGE}", "another folder"
        )
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    small = [path.name for path, image in zip(paths, images, strict=True) if min(image.size) < 4 * SMALLEST]
    if small:
        raise ContractError("photographs", small, f"at least {4 * SMALLEST} pixels a side", "thumbnails")
    return images


def _make(maker: PhotographMaker, numbers: range) -> MakerOutput:
    images, bands, pixels = photographs(maker.folder), SENSORS[maker.sensor].band_names, []
    for number in numbers:
        rng = np.random.default_rng([maker.seed, number, maker.size, *maker.sensor.encode()])
        draw = dead_leaves if rng.random() < LEAVES else crop
        rgb = change_colors(np.asarray(draw(images, maker.size, rng), np.float32) / 255, rng)
        nir = rgb @ rng.dirichlet((1, 2, 1)) * rng.uniform(0.8, 1.6)
        planes = dict(zip(("red", "green", "blue", "nir"), (*np.moveaxis(rgb, -1, 0), nir), strict=True))
        pixels.append(np.rint(255 * np.clip([planes[name] for name in bands], 0, 1)).astype(np.uint8))
    n, unknown = len(pixels), np.full(len(pixels), np.nan)
    labels, when = np.zeros((n, maker.size, maker.size), np.uint8), np.full(n, "")
    chips = Chips(maker.sensor, np.stack(pixels), labels, unknown, unknown, when)
    return MakerOutput(chips, [None] * n, ["train"] * n, maker.folder)


def crop(images: list[Image.Image], size: int, rng: np.random.Generator) -> Image.Image:
    """A window of a photograph, turned, stretched and of any scale, as size x size pixels; few of them are flat."""
    for _ in range(TRIES):
        window = _window(images, size, rng)
        if ImageStat.Stat(window.convert("L")).stddev[0] > FLAT:
            break
    return window


def _window(images: list[Image.Image], size: int, rng: np.random.Generator) -> Image.Image:
    areas = np.array([image.width * image.height for image in images], float)
    image = images[rng.choice(len(images), p=areas / areas.sum())]
    side = np.exp(rng.uniform(np.log(SMALLEST), np.log(0.65 * min(image.size))))
    stretch, angle = np.exp(rng.uniform(-0.25, 0.25)), rng.uniform(0, 2 * np.pi)
    corners = side / 2 * np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * [stretch, 1 / stretch]
    cos, sin = np.cos(angle), np.sin(angle)
    corners = corners @ [[cos, sin], [-sin, cos]]
    margin = np.abs(corners).max(0)
    low, high = margin, np.maximum(np.array(image.size) - margin, margin + 1)
    corners = corners + rng.uniform(low, high)
    fine = max(size, int(np.ceil(side)))
    window = image.transform((fine, fine), Image.Transform.QUAD, tuple(corners.ravel()), Image.Resampling.BICUBIC)
    return window.resize((size, size), Image.Resampling.LANCZOS)


def dead_leaves(images: list[Image.Image], size: int, rng: np.random.Generator) -> Image.Image:
    """Shapes over a crop, of its colors or of another crop's texture; at random, or in rows of equal ones."""
    side = 2 * size
    image = crop(images, size, rng).resize((side, side), Image.Resampling.BICUBIC)
    other = crop(images, size, rng).resize((side, side), Image.Resampling.BICUBIC)
    palette = np.asarray(other).reshape(-1, 3)
    rows = rng.random() < 0.5
    if rows:
        step = rng.uniform(0.06, 0.4, 2) * side
        y, x = (np.arange(-side, side, each) for each in step)
        places = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
        places = places + rng.normal(0, rng.uniform(0, 0.15), places.shape) * step.min()
        places = places[rng.random(len(places)) < rng.uniform(0.4, 1.0)][:400]
        radii = np.exp(rng.normal(0, rng.uniform(0, 0.2), (len(places), 1))) * step[::-1] * rng.uniform(0.2, 0.5, 2)
    else:
        places = rng.uniform(-0.6, 0.6, (int(rng.integers(5, 120)), 2)) * side
        longest = side * 0.02 * rng.random((len(places), 1)) ** (-1 / rng.uniform(1, 3))  # a power law
        radii = np.minimum(longest, side / 3) * np.hstack([np.ones_like(longest), rng.uniform(0.3, 1.0, longest.shape)])
    turn, kind, textured = rng.uniform(0, np.pi), rng.integers(3), rng.random() < 0.4
    turns = np.full(len(places), turn) if rows or rng.random() < 0.4 else rng.uniform(0, np.pi, len(places))
    colors = palette[rng.integers(len(palette), size=len(places) if rng.random() < 0.6 else 1)]
    places = places @ _rotation(turn) + side / 2
    dark = tuple((palette.min(0) // 2).tolist())
    draw, shadow = ImageDraw.Draw(image), rng.normal(0, 0.02, 2) * side * (rng.random() < 0.6)
    for k, (place, radius, angle) in enumerate(zip(places, radii, turns, strict=True)):
        corners = _outline(kind if kind < 2 else k % 2) * radius @ _rotation(angle) + place
        if shadow.any():
            draw.polygon([tuple(p) for p in corners + shadow], fill=dark)
        if textured and k % 2:
            mask = Image.new("L", image.size)
            ImageDraw.Draw(mask).polygon([tuple(p) for p in corners], fill=255)
            image.paste(other, mask=mask)
        else:
            draw.polygon([tuple(p) for p in corners], fill=tuple(colors[k % len(colors)].tolist()))
    return image.resize((size, size), Image.Resampling.BOX)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _outline(kind: int) -> np.ndarray:
    """Corners [n, 2] of a rectangle (0) or an ellipse (1) of half width 1."""
    angle = np.arange(16) * np.pi / 8
    return (
        np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
        if kind == 0
        else np.stack([np.cos(angle), np.sin(angle)], 1)
    )


def change_colors(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """RGB [H, W, 3], 0 to 1: hue turned, saturation, contrast, brightness and gamma changed; may leave 0 to 1."""
    gray = rgb.mean(-1, keepdims=True)
    angle = rng.normal(0, 0.5) if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    third = (1 - cos) / 3
    a, b = third - sin / np.sqrt(3), third + sin / np.sqrt(3)
    turn = np.array([[cos + third, a, b], [b, cos + third, a], [a, b, cos + third]])  # around gray
    color = (rgb - gray) @ turn.T * rng.uniform(0.2, 1.3)
    contrast, level = np.exp(rng.normal(0, 0.35)), rng.normal(0.42, 0.1)
    bright = np.clip(gray, 1e-3, 1) ** np.exp(rng.normal(0, 0.25))
    return (bright - bright.mean() + color) * contrast + level
