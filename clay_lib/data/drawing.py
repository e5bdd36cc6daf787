"""Drawing of views from above: ground, shadows, roofs, roads, cars and tree crowns, in pixels of 0.25 m."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 1024  # pixels a side, of 0.25 m
METER = 4  # pixels
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

ASPHALT, CONCRETE, SOIL, SAND = (88, 88, 92), (176, 172, 164), (140, 112, 84), (214, 196, 158)
GRASS, DRY, LEAF, WATER, POOL = (92, 120, 62), (156, 144, 96), (52, 84, 44), (44, 72, 86), (96, 190, 210)
ROOFS = ((150, 92, 72), (120, 112, 108), (170, 160, 150), (92, 84, 82), (186, 150, 122), (208, 206, 202))
PAINTS = ((232, 232, 232), (40, 40, 44), (150, 152, 156), (170, 34, 34), (40, 66, 130), (196, 190, 170), (90, 96, 90))


class View:
    """An image [SIZE, SIZE] under one sun; what is drawn later lies above what was drawn before."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        angle = rng.uniform(0, 2 * np.pi)
        self.away = np.array([np.cos(angle), np.sin(angle)])  # from the sun: where shadows fall
        self.length = rng.uniform(0.3, 1.3)  # of a shadow, for a height of 1
        self.coarse, self.fine = fractal(rng, 2.2), fractal(rng, 1.0)
        self.image = Image.new("RGB", (SIZE, SIZE))

    def texture(self, color: Color, spread: float = 0.12, other: Color | None = None) -> Image.Image:
        """The color with fine and coarse noise; with `other`, patches of it."""
        rng, base = self.rng, np.broadcast_to(np.array(color, float), (SIZE, SIZE, 3))
        coarse = np.roll(self.coarse, rng.integers(0, SIZE, 2), (0, 1))
        fine = np.roll(self.fine, rng.integers(0, SIZE, 2), (0, 1))
        if other is not None:
            share = np.clip(0.5 + coarse * rng.uniform(0.3, 1.5), 0, 1)[..., None]
            base = base * share + np.array(other, float) * (1 - share)
        light = 1 + spread * (0.6 * fine + 0.4 * coarse)
        return Image.fromarray(np.clip(base * light[..., None], 0, 255).astype(np.uint8))

    def ground(self, color: Color, other: Color | None = None, spread: float = 0.12) -> None:
        self.image = self.texture(color, spread, other)

    def fill(self, draw: Callable[[ImageDraw.ImageDraw], None], texture: Image.Image, blur: float = 0.0) -> None:
        """Paste a texture where `draw` draws in white."""
        mask = Image.new("L", (SIZE, SIZE))
        draw(ImageDraw.Draw(mask))
        self.image.paste(texture, mask=mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask)

    def strip(self, points: np.ndarray, width: float, texture: Image.Image, blur: float = 0.0) -> None:
        """A band along points [n, 2], `width` pixels wide."""
        line = [tuple(p) for p in points]
        self.fill(lambda d: d.line(line, fill=255, width=int(width), joint="curve"), texture, blur)

    def spots(self, outlines: Iterable[np.ndarray], texture: Image.Image, blur: float = 0.0) -> None:
        """Areas within outlines [n, 2]."""
        polygons = [[tuple(p) for p in outline] for outline in outlines]
        self.fill(lambda d: [d.polygon(polygon, fill=255) for polygon in polygons], texture, blur)

    def shade(self, outlines: Iterable[tuple[np.ndarray, float]]) -> None:
        """Shadows of things: their outlines [n, 2] and heights in pixels."""
        shifts = np.linspace(0, 1, 4)[:, None] * self.length * self.away  # [4, 2]
        polygons = [outline + shift * height for outline, height in outlines for shift in shifts]
        if not polygons:
            return
        corner = np.floor(np.min([polygon.min(0) for polygon in polygons], 0) - 3).clip(0)
        size = (np.max([polygon.max(0) for polygon in polygons], 0) + 3).clip(0, SIZE) - corner
        if size.min() < 1:
            return  # beyond the view
        mask = Image.new("L", tuple(size.astype(int).tolist()))
        draw = ImageDraw.Draw(mask)
        for polygon in polygons:
            draw.polygon([tuple(p) for p in polygon - corner], fill=150)
        where = tuple(corner.astype(int).tolist())
        self.image.paste(Image.new("RGB", mask.size, (16, 18, 30)), where, mask.filter(ImageFilter.GaussianBlur(1)))

    def crowns(self, places: np.ndarray, radius: float, color: Color = LEAF, spread: float = 0.25) -> None:
        """Tree crowns at places [n, 2]: shadows, then bodies that are lighter towards the sun, with leaves."""
        if not len(places):
            return
        rng = self.rng
        radii = radius * np.exp(rng.normal(0, spread, len(places)))
        self.shade((ellipse(place, r, r), 1.5 * r) for place, r in zip(places, radii, strict=True))
        crowns, mask = self.image.copy(), Image.new("L", (SIZE, SIZE))
        draw, draw_mask = ImageDraw.Draw(crowns), ImageDraw.Draw(mask)
        for place, r in zip(places, radii, strict=True):
            own = np.array(color) * np.exp(rng.normal(0, 0.15)) + rng.normal(0, 6, 3)
            lumps = rng.normal(0, 0.3 * r, (3, 2))
            for at, size, light in ((0, 0.8, 0.6), (0.15, 0.65, 0.85), (0.3, 0.4, 1.15)):
                for lump in lumps:
                    middle = place + lump * (1 - at) - self.away * at * r
                    box = (*(middle - size * r), *(middle + size * r))
                    draw.ellipse(box, fill=to_rgb(own * light))
                    draw_mask.ellipse(box, fill=255)
        leaves = Image.fromarray(np.clip(128 + 34 * self.fine, 0, 255).astype(np.uint8))
        leaves = ImageChops.multiply(crowns, Image.merge("RGB", [leaves] * 3)).point(lambda v: min(2 * v, 255))
        self.image.paste(leaves, mask=mask)

    def scattered(self, count: int, clumped: bool = False) -> np.ndarray:
        """Places [n, 2], at random or where the coarse noise is high."""
        places = self.rng.uniform(0, SIZE, (count, 2))
        if clumped:
            x, y = np.clip(places.astype(int), 0, SIZE - 1).T
            places = places[self.coarse[y, x] > self.rng.uniform(-0.8, 0.6)]
        return places

    def roof(self, box: Box, height: float = 4 * METER, kind: str = "", color: Color | None = None) -> None:
        """A building: its shadow and a gabled, hipped or flat roof, with vents on flat ones."""
        rng = self.rng
        left, top, right, bottom = box
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)
        self.shade([(corners, height)])
        base = np.array(color if color is not None else ROOFS[rng.integers(len(ROOFS))]) * rng.uniform(0.8, 1.15)
        kind = kind or str(rng.choice(["gable", "hip", "hip", "flat"]))
        draw = ImageDraw.Draw(self.image)
        if kind == "flat":
            draw.polygon([tuple(p) for p in corners], fill=to_rgb(base), outline=to_rgb(base * 1.2))
            for x, y in (left, top) + rng.uniform(0.1, 0.85, (rng.integers(0, 9), 2)) * (right - left, bottom - top):
                side = rng.uniform(3, 9)
                draw.rectangle((x + 2, y + 2, x + side + 3, y + side + 3), fill=to_rgb(base * 0.5))
                draw.rectangle((x, y, x + side, y + side), fill=to_rgb(base * rng.uniform(0.8, 1.3)))
            return
        wide = right - left > bottom - top
        inset = min(right - left, bottom - top) / 2 if kind == "hip" else 0
        if wide:
            ridge = np.array([(left + inset, (top + bottom) / 2), (right - inset, (top + bottom) / 2)])
            faces = [(0, 1, ridge[1], ridge[0]), (2, 3, ridge[0], ridge[1]), (3, 0, ridge[0]), (1, 2, ridge[1])]
            normals = ((0, -1), (0, 1), (-1, 0), (1, 0))
        else:
            ridge = np.array([((left + right) / 2, top + inset), ((left + right) / 2, bottom - inset)])
            faces = [(3, 0, ridge[0], ridge[1]), (1, 2, ridge[1], ridge[0]), (0, 1, ridge[0]), (2, 3, ridge[1])]
            normals = ((-1, 0), (1, 0), (0, -1), (0, 1))
        for face, normal in zip(faces, normals, strict=True):
            points = [tuple(corners[p] if isinstance(p, int) else p) for p in face]
            draw.polygon(points, fill=to_rgb(base * (1 - 0.28 * float(np.dot(normal, self.away)))))

    def cars(self, places: np.ndarray, upright: bool, length: float = 4.6 * METER) -> None:
        """Cars (or longer vehicles) at places [n, 2], along y when upright."""
        rng, half = self.rng, np.array([0.9 * METER, length / 2])
        half = half if upright else half[::-1]
        self.shade((place + half * [[-1, -1], [1, -1], [1, 1], [-1, 1]], 1.4 * METER) for place in places)
        draw = ImageDraw.Draw(self.image)
        for place in places:
            paint = np.array(PAINTS[rng.integers(len(PAINTS))])
            draw.rounded_rectangle((*(place - half), *(place + half)), 2, fill=to_rgb(paint))
            for at in (-0.25, 0.45):  # the two windows
                center = place + (np.array([0, at]) if upright else np.array([at, 0])) * 2 * half
                size = half * ([0.75, 0.12] if upright else [0.12, 0.75])
                draw.rectangle((*(center - size), *(center + size)), fill=to_rgb(paint * 0.3))

    def road(self, points: np.ndarray, lanes: int = 2, marked: bool = True) -> None:
        """A road along points [n, 2], with an edge, lane markings and some cars when it is straight."""
        width = lanes * 3.4 * METER
        self.strip(points, width + 2.4 * METER, self.texture(CONCRETE))
        self.strip(points, width, self.texture(ASPHALT, 0.08))
        if not marked:
            return
        steps, tangent = _along(points, 1.0)
        normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
        draw = ImageDraw.Draw(self.image)
        for k in range(lanes + 1):
            side = steps + normal * (k - lanes / 2) * 3.2 * METER
            dashed = 0 < k < lanes
            paint = (220, 190, 90) if k == lanes / 2 else (225, 225, 220)
            period = 9 * METER
            for start in range(0, len(side) - 1, period if dashed else 20):
                part = side[start : start + (3 * METER if dashed else 21)]
                draw.line([tuple(p) for p in part], fill=paint, width=1)
        for k in range(lanes):
            number = self.rng.poisson(len(steps) / 400)
            at = self.rng.integers(0, len(steps), number)
            lane = steps[at] + normal[at] * (k + 0.5 - lanes / 2) * 3.2 * METER
            for upright in (True, False):
                self.cars(lane[(np.abs(tangent[at, 1]) > 0.7) == upright], upright)

    def done(self) -> Image.Image:
        """The view as a camera gives it: a little blur, noise and haze."""
        rng = self.rng
        pixels = np.asarray(self.image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2))), float)
        pixels = pixels * (1 + 0.04 * self.coarse[..., None]) + rng.normal(0, rng.uniform(1, 5), pixels.shape)
        haze = rng.uniform(0, 0.2)
        return Image.fromarray(np.clip(pixels * (1 - haze) + 150 * haze, 0, 255).astype(np.uint8))


def fractal(rng: np.random.Generator, slope: float) -> np.ndarray:
    """Noise [SIZE, SIZE] of mean 0 and spread 1 whose amplitude falls with frequency to the power of slope / 2."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE))
    frequency[0, 0] = np.inf
    phase = np.exp(2j * np.pi * rng.random(frequency.shape))
    noise = np.fft.irfft2(phase * frequency ** (-slope / 2 - 0.2), s=(SIZE, SIZE))
    return (noise - noise.mean()) / noise.std()


def to_rgb(color: np.ndarray) -> Color:
    return tuple(np.clip(color, 0, 255).astype(int).tolist())


def ellipse(center: np.ndarray, a: float, b: float) -> np.ndarray:
    angle = np.arange(32) * np.pi / 16
    return np.stack([center[0] + a * np.cos(angle), center[1] + b * np.sin(angle)], 1)


def _along(points: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 2] every `step` pixels along a line, and unit tangents [n, 2]."""
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    at = np.arange(0, length[-1], step)
    line = np.stack([np.interp(at, length, points[:, k]) for k in (0, 1)], 1)
    tangent = np.gradient(line, axis=0)
    return line, tangent / np.maximum(np.hypot(*tangent.T)[:, None], 1e-6)


def winding(rng: np.random.Generator, bend: float) -> np.ndarray:
    """A winding line [n, 2] from one side of the view to the other."""
    y = np.linspace(-40, SIZE + 40, 60)
    waves = sum(rng.normal(0, bend / k) * np.sin(2 * np.pi * (k * y / SIZE / 1.5 + rng.random())) for k in (1, 2, 3))
    return np.stack([rng.uniform(0.25, 0.75) * SIZE + waves * SIZE, y], 1)


def grid(step_x: float, step_y: float, box: Box = (0, 0, SIZE, SIZE)) -> np.ndarray:
    """Places [n, 2] in rows and columns."""
    x, y = np.arange(box[0], box[2], step_x), np.arange(box[1], box[3], step_y)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
