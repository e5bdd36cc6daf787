"""Aerial views, drawn: streets, roofs, cars, boats, courts, crop rows and crowns; images for a learned teacher.

The mini-world has spectra, dates and sensors, and few objects. These views are the reverse: RGB at 0.25 m, without place
and date, with the objects in which aerial images differ most from it. Crops of them train as those of photographs do
(`photographs.py`), so a view needs no turning and no change of color here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clay_lib.cluster import progress_bar
from clay_lib.data.drawing import (
    ASPHALT,
    CONCRETE,
    DRY,
    GRASS,
    LEAF,
    METER,
    PAINTS,
    POOL,
    ROOFS,
    SAND,
    SIZE,
    SOIL,
    WATER,
    Box,
    Color,
    View,
    ellipse,
    grid,
    to_rgb,
    winding,
)
from clay_lib.errors import ContractError
from clay_lib.files import atomic_write

Range = tuple[float, float]


def _houses(view: View, *, width: Range, depth: Range, size: float, trees: int, pools: float) -> None:
    """Blocks of houses of `size` m along streets, on lots of width x depth m, with drives, pools and trees."""
    rng = view.rng
    width, depth = (rng.uniform(*extent) * METER for extent in (width, depth))
    view.ground(GRASS, DRY, 0.15)
    street = 2 * depth + 12 * METER
    blocks = np.arange(-rng.uniform(0, street), SIZE + street, street)
    for y in blocks:
        view.road(np.array([(-20.0, y), (SIZE + 20.0, y)]), 2, marked=rng.random() < 0.3)
    if rng.random() < 0.7:
        x = rng.uniform(0.2, 0.8) * SIZE
        view.road(np.array([(x, -20.0), (x, SIZE + 20.0)]), 2, marked=False)
    draw, crowns = ImageDraw.Draw(view.image), []
    for y in blocks:
        for sign in (-1, 1):
            for x in np.arange(-rng.uniform(0, width), SIZE, width):
                half = size * METER * rng.uniform(0.8, 1.25, 2) / 2
                center = np.array([x + width / 2, y + sign * (9 * METER + half[1] + rng.uniform(0, 2) * METER)])
                lane = center[0] + half[0] * 0.5
                draw.rectangle((lane - 6, min(y, center[1]), lane + 6, max(y, center[1])), fill=CONCRETE)
                if rng.random() < pools:
                    pool = center + [0, sign * (half[1] + 5 * METER)]
                    draw.rounded_rectangle((*(pool - 14), *(pool + [14, 9])), 6, fill=POOL, outline=CONCRETE, width=3)
                view.roof((*(center - half), *(center + half)), 5 * METER)
                if rng.random() < 0.5:  # a wing
                    wing = center + half * rng.choice([-0.5, 0.5], 2)
                    view.roof((*(wing - half * 0.6), *(wing + half * 0.6)), 4 * METER)
                crowns += [center + rng.normal(0, 0.6, 2) * [width, depth] for _ in range(rng.poisson(trees))]
                if rng.random() < 0.5:
                    view.cars(np.array([[lane, (y + center[1]) / 2]]), upright=True)
    view.crowns(np.array(crowns), rng.uniform(2, 4) * METER)


def _trailers(view: View) -> None:
    """Mobile homes: long light boxes side by side along lanes."""
    rng = view.rng
    view.ground(DRY, CONCRETE)
    for y in np.arange(-20, SIZE, 34 * METER):
        view.road(np.array([(-20.0, y), (SIZE + 20.0, y)]), 2, marked=False)
        for x in np.arange(rng.uniform(0, 40), SIZE, rng.uniform(8, 11) * METER):
            for low, high in ((7, 17), (18, 29)):
                color = ROOFS[rng.choice([2, 5, 4])]
                view.roof((x, y + low * METER, x + 4.5 * METER, y + high * METER), 3 * METER, "gable", color)
    view.crowns(view.scattered(60), 2.5 * METER)


def _lot(view: View, box: Box, occupied: float) -> None:
    """A parking lot: asphalt, stalls with lines, cars."""
    rng, draw = view.rng, ImageDraw.Draw(view.image)
    stall, row = 2.7 * METER, 17 * METER
    for y in np.arange(box[1] + 4, box[3] - row + 1, row):
        for x in np.arange(box[0] + 4, box[2] - stall, stall):
            draw.line((x, y, x, y + 10.5 * METER), fill=(215, 215, 210))
        draw.line((box[0] + 4, y + 5.2 * METER, box[2], y + 5.2 * METER), fill=(215, 215, 210))
        places = grid(stall, 5.3 * METER, (box[0] + 4 + stall / 2, y + 2.6 * METER, box[2] - stall, y + 9 * METER))
        places = places[rng.random(len(places)) < occupied] + rng.normal(0, 0.5, 2)
        view.cars(places, upright=True)


def _parking(view: View) -> None:
    rng = view.rng
    view.ground(ASPHALT, None, 0.08)
    _lot(view, (0, 0, SIZE, SIZE), rng.uniform(0.1, 1.0))
    if rng.random() < 0.5:
        view.crowns(grid(26 * METER, 34 * METER, (rng.uniform(0, 99), 13 * METER, SIZE, SIZE)), 1.8 * METER)
    if rng.random() < 0.5:
        edge = rng.uniform(0.5, 0.8) * SIZE
        view.roof((edge, 0, SIZE, SIZE * rng.uniform(0.4, 1)), 8 * METER, "flat", (205, 202, 196))


def _downtown(view: View) -> None:
    """High flat roofs between wide streets."""
    rng = view.rng
    view.ground(CONCRETE, ASPHALT)
    step = rng.uniform(60, 100) * METER
    for at in np.arange(rng.uniform(0, step) - step, SIZE + step, step):
        view.road(np.array([(-20.0, at), (SIZE + 20.0, at)]), int(rng.integers(2, 5)))
        view.road(np.array([(at, -20.0), (at, SIZE + 20.0)]), int(rng.integers(2, 5)))
        for y in np.arange(-step, SIZE + step, step):
            split = rng.uniform(0.35, 0.65)
            for left, right in ((14, split * step / METER - 2), (split * step / METER, step / METER - 14)):
                box = (at + left * METER, y + 14 * METER, at + right * METER, y + step - 14 * METER)
                if rng.random() < 0.85:
                    view.roof(box, rng.uniform(6, 40) * METER, "flat")
                else:
                    _lot(view, box, 0.7)
    view.crowns(view.scattered(40), 2.5 * METER)


def _industry(view: View) -> None:
    """Large flat halls, yards with containers and lorries, storage tanks."""
    rng = view.rng
    view.ground(ASPHALT, DRY, 0.1)
    for x in np.arange(rng.uniform(-200, 0), SIZE, 360):
        for y in np.arange(rng.uniform(-200, 0), SIZE, 330):
            width, height = rng.uniform(120, 310), rng.uniform(100, 280)
            kind = rng.random()
            if kind < 0.55:
                view.roof((x, y, x + width, y + height), 9 * METER, "flat", ROOFS[rng.choice([2, 5, 1])])
                view.cars(grid(16, 60, (x, y + height + 34, x + width, y + height + 60)), True, 12 * METER)
            elif kind < 0.75:
                for place in grid(2.6 * METER, 6.4 * METER, (x, y, x + width, y + height)):
                    if rng.random() < 0.8:
                        paint = np.array(PAINTS[rng.integers(len(PAINTS))]) * 0.8
                        view.roof((*place, *(place + [2.4 * METER, 6 * METER])), 2.6 * METER, "flat", paint)
            else:
                radius = rng.uniform(8, 18) * METER
                for place in grid(2.5 * radius, 2.5 * radius, (x + radius, y + radius, x + 330, y + 300)):
                    view.shade([(ellipse(place, radius, radius), 8 * METER)])
                    draw = ImageDraw.Draw(view.image)
                    for size, light in ((1.0, 225), (0.93, 205), (0.2, 180)):
                        draw.ellipse(
                            (*(place - size * radius), *(place + size * radius)), fill=(light, light, light - 4)
                        )


def _freeway(view: View) -> None:
    """A divided road of many lanes, often with a ramp or another road across it."""
    rng = view.rng
    view.ground(GRASS, DRY)
    view.crowns(view.scattered(250, clumped=True), 3 * METER)
    line = winding(rng, 0.05)
    apart, lanes = rng.uniform(9, 14) * METER, int(rng.integers(2, 5))
    view.fill(lambda d: d.line([tuple(p) for p in line], fill=255, width=int(3 * apart)), view.texture(DRY), 4)
    for sign in (-1, 1):
        view.road(line + [sign * (apart / 2 + lanes * 1.7 * METER), 0], lanes)
    if rng.random() < 0.5:
        view.road(winding(rng, 0.12), 1)
    if rng.random() < 0.5:
        y = rng.uniform(0.2, 0.8) * SIZE
        across = np.array([(-20.0, y), (SIZE + 20.0, y + rng.uniform(-200, 200))])
        view.shade([(np.concatenate([across, across[::-1] + [0, 14 * METER]]), 6 * METER)])
        view.road(across, 4)


def _crossing(view: View) -> None:
    rng = view.rng
    view.ground(GRASS, CONCRETE)
    for _ in range(5):
        corner = rng.uniform(0, SIZE, 2)
        view.roof((*corner, *(corner + rng.uniform(60, 200, 2))), 6 * METER)
    middle = rng.uniform(0.35, 0.65, 2) * SIZE
    lanes = rng.integers(2, 7, 2)
    view.road(np.array([(-20.0, middle[1]), (SIZE + 20.0, middle[1])]), int(lanes[0]))
    view.road(np.array([(middle[0], -20.0), (middle[0], SIZE + 20.0)]), int(lanes[1]))
    half = lanes[::-1] * 1.7 * METER
    draw = ImageDraw.Draw(view.image)
    draw.rectangle((*(middle - half), *(middle + half)), fill=ASPHALT)
    for at in np.arange(-half[0], half[0], 9):
        draw.rectangle(
            (middle[0] + at, middle[1] - half[1] - 14, middle[0] + at + 4, middle[1] - half[1] - 2), (230,) * 3
        )
    view.crowns(view.scattered(40, clumped=True), 2.5 * METER)


def _airport(view: View) -> None:
    """A runway and an apron with aircraft."""
    rng = view.rng
    view.ground(DRY, GRASS, 0.08)
    apron = rng.uniform(0.3, 0.6) * SIZE
    view.fill(lambda d: d.rectangle((apron, 0, SIZE, SIZE), fill=255), view.texture(CONCRETE, 0.05))
    x = rng.uniform(0.1, 0.9) * apron
    view.fill(lambda d: d.rectangle((x - 45, 0, x + 45, SIZE), fill=255), view.texture(ASPHALT, 0.05))
    draw = ImageDraw.Draw(view.image)
    for y in range(0, SIZE, 90):
        draw.rectangle((x - 2, y, x + 2, y + 50), fill=(230, 230, 226))
    step = rng.uniform(30, 56) * METER
    for place in grid(step, step, (apron + step / 2, step / 2, SIZE, SIZE)):
        if rng.random() < 0.7:
            _aircraft(view, place, step * rng.uniform(0.25, 0.42))
    view.roof((SIZE - 90, 0, SIZE, SIZE * rng.uniform(0.3, 1)), 10 * METER, "flat")


def _aircraft(view: View, place: np.ndarray, half: float) -> None:
    """An aircraft of half length `half` pixels: body, swept wings, tail."""
    rng = view.rng
    body = np.array([(0, -1), (0.09, -0.85), (0.09, 0.8), (0, 1), (-0.09, 0.8), (-0.09, -0.85)])
    wings = np.array([(0, -0.3), (0.95, 0.25), (0.95, 0.36), (0, 0.15), (-0.95, 0.36), (-0.95, 0.25)])
    tail = np.array([(0, 0.7), (0.36, 0.92), (0.36, 1), (0, 0.92), (-0.36, 1), (-0.36, 0.92)])
    turn = rng.choice([0, np.pi / 2, np.pi, -np.pi / 2]) + rng.normal(0, 0.15)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    parts = [part @ rotation * half + place for part in (wings, tail, body)]
    view.shade((part, 4 * METER) for part in parts)
    draw = ImageDraw.Draw(view.image)
    for part, light in zip(parts, (205, 215, 240), strict=True):
        draw.polygon([tuple(p) for p in part], fill=(light, light, light))


def _harbor(view: View) -> None:
    """Piers with boats on dark water beside a quay."""
    rng = view.rng
    view.ground(WATER, (30, 56, 66), 0.06)
    quay = rng.uniform(0, 0.3) * SIZE
    draw = ImageDraw.Draw(view.image)
    for x in np.arange(quay, SIZE, rng.uniform(34, 50) * METER):
        for y in np.arange(20, SIZE, rng.uniform(4.5, 7) * METER):
            for sign in (-1, 1):
                if rng.random() < 0.75:
                    long, half = rng.uniform(8, 15) * METER, rng.uniform(1.4, 2.1) * METER
                    near = x + sign * 2 * METER
                    end = near + sign * long
                    hull = [(near, y - half), (near + 0.7 * (end - near), y - half), (end, y)]
                    hull += [(near + 0.7 * (end - near), y + half), (near, y + half)]
                    draw.polygon(hull, fill=(228, 226, 222), outline=(150, 150, 150))
                    cabin = sorted((near + 0.2 * (end - near), near + 0.5 * (end - near)))
                    draw.rectangle((cabin[0], y - half / 2, cabin[1], y + half / 2), fill=(70, 80, 100))
        draw.rectangle((x - 1.4 * METER, 0, x + 1.4 * METER, SIZE), fill=(168, 156, 138))
    view.fill(lambda d: d.rectangle((0, 0, quay, SIZE), fill=255), view.texture(CONCRETE))
    _lot(view, (0, 0, quay, SIZE), 0.6)


def _beach(view: View) -> None:
    """Sea, breaking waves, sand, and dunes or a promenade."""
    rng = view.rng
    view.ground((52, 98, 112), (34, 72, 96), 0.08)
    shore = winding(rng, 0.04)
    shore[:, 0] += rng.uniform(-0.2, 0.2) * SIZE

    def beyond(offset: float) -> list[np.ndarray]:
        return [np.concatenate([shore + [offset, 0], [(3 * SIZE, SIZE + 40), (3 * SIZE, -40)]])]

    view.spots(beyond(-30), view.texture((96, 140, 140)), 20)
    for _ in range(rng.integers(2, 7)):
        wave = (
            shore
            + [rng.uniform(-250, 0), 0]
            + np.stack([8 * np.sin(shore[:, 1] / rng.uniform(20, 60)), 0 * shore[:, 1]], 1)
        )
        foam = [tuple(p) for p in wave]
        view.fill(
            lambda d, foam=foam: d.line(foam, fill=170, width=int(rng.uniform(4, 14))), view.texture((235,) * 3, 0.3), 2
        )
    view.spots(beyond(0), view.texture((178, 158, 124)), 3)
    view.spots(beyond(rng.uniform(15, 40)), view.texture(SAND, 0.06), 6)
    view.spots(beyond(rng.uniform(120, 400)), view.texture(GRASS, 0.2, SAND), 8)
    if rng.random() < 0.3:
        view.roof((SIZE - 220, 200, SIZE - 60, 600), 8 * METER)


def _forest(view: View) -> None:
    rng = view.rng
    view.ground((44, 62, 36), DRY if rng.random() < 0.4 else None)
    view.crowns(view.scattered(int(rng.uniform(600, 2600))), rng.uniform(2, 5) * METER, _greens(rng))


def _greens(rng: np.random.Generator) -> Color:
    return to_rgb(np.array(LEAF) + rng.normal(0, 14, 3) + rng.uniform(-10, 40) * np.array([1, 0.6, 0.1]))


def _shrubs(view: View) -> None:
    """Dry land with scattered shrubs."""
    rng = view.rng
    view.ground(SOIL if rng.random() < 0.5 else (188, 168, 136), DRY, 0.1)
    places = view.scattered(int(rng.uniform(500, 3500)), clumped=rng.random() < 0.5)
    view.crowns(places, rng.uniform(0.8, 2) * METER, (86, 88, 58), 0.4)


def _orchard(view: View) -> None:
    rng = view.rng
    view.ground(SOIL, GRASS)
    step = rng.uniform(5, 9) * METER
    places = grid(step, step * rng.choice([1, 1, 0.55, 1.4]))
    places = places[rng.random(len(places)) < rng.uniform(0.85, 1)]
    view.crowns(places + rng.normal(0, 1.5, places.shape), step * rng.uniform(0.26, 0.48), _greens(rng), 0.1)


def _crops(view: View) -> None:
    """Fields with machine rows in several directions, tracks, hedges and wheel marks."""
    rng = view.rng
    view.ground(SOIL)
    edges = [0, *sorted(rng.uniform(0.1, 0.9, rng.integers(0, 3)) * SIZE), SIZE]
    y, x = np.mgrid[:SIZE, :SIZE]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        ripe = rng.uniform(0, 1)
        plant = np.array(GRASS) * (1 - ripe) + np.array((196, 176, 112)) * ripe
        bare = np.array(SOIL) * rng.uniform(0.7, 1.3) * (1 - 0.7 * rng.random()) + plant * 0.35
        angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
        phase = (x * np.cos(angle) + y * np.sin(angle)) / (rng.choice([0.8, 1.5, 3, 6, 9]) * METER)
        share = np.clip(0.5 + rng.uniform(0.2, 1.2) * np.sin(2 * np.pi * phase) + 0.3 * view.coarse, 0, 1)[..., None]
        pixels = (plant * share + bare * (1 - share)) * (1 + 0.08 * view.fine[..., None])
        field = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        view.fill(lambda d, box=(low + 6, 0, high - 6, SIZE): d.rectangle(box, fill=255), field, 1)
        for at in np.arange(low + rng.uniform(0, 99), high, rng.uniform(80, 200)):
            ImageDraw.Draw(view.image).line((at, 0, at, SIZE), fill=to_rgb(bare * 0.9), width=2)
    if rng.random() < 0.3:
        circle = ellipse(rng.uniform(0.3, 0.7, 2) * SIZE, *[rng.uniform(0.3, 0.6) * SIZE] * 2)
        view.spots([circle], view.texture(GRASS), 2)
    if len(edges) > 2 and rng.random() < 0.5:
        hedge = np.stack([np.full(80, edges[1]), rng.uniform(0, SIZE, 80)], 1)
        view.crowns(hedge + rng.normal(0, 5, hedge.shape), 2.5 * METER)


def _river(view: View) -> None:
    rng = view.rng
    view.ground(GRASS, DRY)
    line, width = winding(rng, 0.12), rng.uniform(20, 70) * METER
    view.strip(line, width * 1.3, view.texture(SAND, 0.1, SOIL), 6)
    color = to_rgb(np.array(WATER) * rng.uniform(0.7, 1.4) + rng.uniform(0, 50) * np.array([1, 0.9, 0.4]))
    view.strip(line, width, view.texture(color, 0.05), 3)
    places = view.scattered(int(rng.uniform(100, 1600)))
    at = np.interp(places[:, 1], line[:, 1], line[:, 0])
    view.crowns(places[np.abs(places[:, 0] - at) > 0.6 * width], rng.uniform(2, 4) * METER, _greens(rng))
    if rng.random() < 0.3:
        y = rng.uniform(0.2, 0.8) * SIZE
        view.road(np.array([(-20.0, y), (SIZE + 20.0, y)]), 2)


def _golf(view: View) -> None:
    """Fairways, greens, bunkers and ponds between trees."""
    rng = view.rng
    view.ground((98, 122, 66), DRY, 0.1)
    for _ in range(3):
        fairway, mown = winding(rng, 0.12), view.texture((118, 156, 76), 0.05)
        view.strip(fairway, rng.uniform(100, 190), mown, 5)
    for _ in range(int(rng.integers(4, 12))):
        place, half = rng.uniform(0, SIZE, 2), rng.uniform(12, 50, 2)
        blobs = [ellipse(place + rng.normal(0, 0.5, 2) * half, *half) for _ in range(3)]
        color = ((150, 190, 100), (226, 214, 182), (226, 214, 182), WATER)[rng.integers(4)]
        view.spots(blobs, view.texture(color, 0.04), 2)
    view.crowns(view.scattered(int(rng.uniform(80, 500)), clumped=True), rng.uniform(2, 4) * METER, _greens(rng))


def _sports(view: View) -> None:
    """Ball fields, a track, tennis courts and pools in a park."""
    rng = view.rng
    view.ground(GRASS, DRY, 0.1)
    for corner in grid(440, 440, (rng.uniform(-200, 40), rng.uniform(-200, 40), SIZE, SIZE)):
        kind, draw = rng.integers(4), ImageDraw.Draw(view.image)
        x, y = corner
        if kind == 0:  # baseball
            draw.pieslice((x - 300, y - 300, x + 300, y + 300), 0, 90, fill=(104, 138, 70))
            draw.pieslice((x - 130, y - 130, x + 130, y + 130), 0, 90, fill=(186, 142, 100))
            draw.rectangle((x + 14, y + 14, x + 84, y + 84), fill=(110, 146, 74))
            draw.ellipse((x + 40, y + 40, x + 58, y + 58), fill=(186, 142, 100))
        elif kind == 1:  # a track around a field
            draw.rounded_rectangle((x, y, x + 300, y + 420), 150, fill=(172, 84, 66))
            draw.rounded_rectangle((x + 34, y + 34, x + 266, y + 386), 116, fill=(100, 140, 72))
            draw.rectangle((x + 70, y + 100, x + 230, y + 320), outline=(226, 226, 220), width=2)
            draw.line((x + 70, y + 210, x + 230, y + 210), fill=(226, 226, 220), width=2)
        elif kind == 2:  # tennis
            color = ((60, 110, 90), (54, 84, 130), (150, 92, 76))[rng.integers(3)]
            for left, top in grid(72, 140, (x, y, x + 300, y + 300)):
                draw.rectangle((left, top, left + 70, top + 136), fill=to_rgb(np.array(color) * 0.85))
                draw.rectangle((left + 14, top + 20, left + 56, top + 116), fill=color, outline=(232,) * 3)
                draw.line((left + 14, top + 68, left + 56, top + 68), fill=(232,) * 3, width=2)
        else:
            draw.rectangle((x, y, x + 160, y + 260), fill=CONCRETE)
            draw.rectangle((x + 30, y + 30, x + 130, y + 230), fill=POOL)
    view.crowns(view.scattered(150, clumped=True), 3 * METER, _greens(rng))


def _water(view: View) -> None:
    rng = view.rng
    view.ground(to_rgb(np.array(WATER) * rng.uniform(0.6, 1.6)), None, rng.uniform(0.03, 0.15))
    if rng.random() < 0.5:
        island = [ellipse(rng.uniform(0, SIZE, 2), *rng.uniform(80, 400, 2)) for _ in range(3)]
        view.spots(island, view.texture(DRY, 0.2, GRASS), 10)


KINDS: dict[str, Callable[[View], None]] = {
    "suburb": partial(_houses, width=(15, 24), depth=(24, 34), size=13, trees=2, pools=0.15),
    "old_town": partial(_houses, width=(10, 14), depth=(18, 24), size=9, trees=1, pools=0.02),
    "villas": partial(_houses, width=(30, 50), depth=(40, 60), size=18, trees=8, pools=0.3),
    "trailers": _trailers,
    "parking": _parking,
    "downtown": _downtown,
    "industry": _industry,
    "freeway": _freeway,
    "crossing": _crossing,
    "airport": _airport,
    "harbor": _harbor,
    "beach": _beach,
    "forest": _forest,
    "shrubs": _shrubs,
    "orchard": _orchard,
    "crops": _crops,
    "river": _river,
    "golf": _golf,
    "sports": _sports,
    "water": _water,
}


def aerial_view(kind: str, seed: int = 0) -> Image.Image:
    """RGB image of 1024 x 1024 pixels of 0.25 m; the same kind and seed give the same image.

    Raises ContractError for a kind that is not in KINDS.
    """
    if kind not in KINDS:
        raise ContractError("kind of view", kind, f"one of {', '.join(KINDS)}", "a misspelled name")
    view = View(np.random.default_rng([seed, *kind.encode()]))
    KINDS[kind](view)
    return view.done()


def aerial(folder: str, count: int = 6, *, seed: int = 0) -> int:
    """Write aerial views, drawn, as images of 1024 px: training images for `clay chips --photographs FOLDER`.

    Example: clay aerial papermill_runs/views

    Args:
        folder: of the images; those that are there are kept
        count: views of each of 20 kinds, such as suburb, harbor, orchard and freeway
        seed: number of the first view
    """
    if count < 1 or seed < 0:
        raise ContractError("count, seed", (count, seed), ">= 1, >= 0", "a typing mistake")
    views = [(kind, number) for kind in KINDS for number in range(seed, seed + count)]
    for kind, number in progress_bar(iterable=views, desc="views", unit="view"):
        path = Path(folder) / f"{kind}-{number:03d}.png"
        if not path.exists():
            atomic_write(path, lambda partial, view=(kind, number): aerial_view(*view).save(partial, "PNG"))
    return 0
