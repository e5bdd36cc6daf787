"""Appearance of each land cover on a date: trees, shrubs, grass, crops, towns, bare land, ice, water, wetland.

A painter takes the surface to paint on, a mask of its land cover [H, W], the land, the season, the sun, the kind of
soil [H, W] and its brightness [H, W]; it returns the relief that it adds [H, W] in meters, or None.
"""

from __future__ import annotations

import numpy as np

from clay_lib.world.land import crowns, parcels, streets
from clay_lib.world.noise import smoothstep, uniform
from clay_lib.world.spectra import LEAVES, OTHER, SOILS, canopy_row, snow_row, water_row

LEAF = {name: n for n, name in enumerate(LEAVES)}
SOIL = {name: n for n, name in enumerate(SOILS)}
FINE = 2.6  # m; smaller pixels resolve crowns, clumps, crop rows and waves
_ROOFS = ("tile", "tile", "brick", "brick", "shingle", "shingle", "slate", "slate", "concrete", "concrete", "metal", "blueroof")  # fmt: skip
ROOFS = np.array([OTHER[name] for name in _ROOFS])

# Leaf area and share of straw of crops over the year since sowing: winter cereal, summer crop, early summer crop,
# meadow (cut three times), catch crop then bare, fallow.
_DAY = np.linspace(0, 1, 74)


def _calendar(days, values):
    return np.interp(_DAY, days, values)


_CROP_LAI = np.stack([
    _calendar((0, 0.06, 0.12, 0.40, 0.55, 0.65, 0.74, 0.80, 0.81, 1), (0, 0.1, 0.8, 1.0, 3.8, 5.0, 3.0, 1.6, 0.35, 0.15)),
    _calendar((0, 0.55, 0.60, 0.72, 0.80, 0.92, 0.97, 0.98, 1), (0.1, 0.05, 0.3, 4.6, 5.2, 3.2, 1.6, 0.3, 0.1)),
    _calendar((0, 0.45, 0.50, 0.60, 0.72, 0.78, 0.82, 0.83, 1), (0.5, 0.2, 0.3, 3.6, 4.4, 2.4, 1.2, 0.1, 0.3)),
    _calendar((0, 0.35, 0.55, 0.62, 0.63, 0.72, 0.73, 0.85, 0.86, 1), (1.6, 1.2, 3.6, 4.2, 0.8, 3.6, 0.8, 3.4, 0.9, 1.6)),
    _calendar((0, 0.20, 0.30, 0.45, 0.47, 1), (0.4, 2.2, 2.6, 1.5, 0.0, 0.3)),
    _calendar((0, 0.3, 0.6, 0.8, 1), (0.2, 0.1, 0.6, 0.5, 0.2))
]).astype(np.float32)  # fmt: skip
_CROP_STRAW = np.stack([
    _calendar((0, 0.66, 0.76, 0.80, 0.90, 1), (0, 0, 0.9, 1, 0.8, 0.3)),
    _calendar((0, 0.1, 0.5, 0.85, 0.95, 1), (0.9, 0.5, 0, 0, 0.9, 0.9)),
    _calendar((0, 0.70, 0.80, 1), (0.2, 0, 0.9, 0.5)),
    _calendar((0, 0.3, 0.5, 0.75, 1), (0.1, 0.3, 0, 0.15, 0.1)),
    _calendar((0, 0.4, 0.6, 1), (0, 0, 0.5, 0.2)),
    _calendar((0, 0.5, 1), (0.4, 0.3, 0.6))
]).astype(np.float32)  # fmt: skip


def _trees(out, at, land, season, sun, soil, brightness):
    stand = land.noise(1300, 110, 4, 0.6)
    opening = land.noise(520, 111, 5, 0.6)
    thick = np.clip(0.80 + 0.20 * opening + 0.12 * (land.vigor - 0.8), 0.12, 1.2)
    hot = (land.temperature > 19) & (land.moisture > 0.2)
    if not hot.all():  # managed forest: compartments of one age, some just cut
        p = parcels(land)
        age = uniform(p.ident, 5, seed=land.seed)
        young = np.where(age < 0.10, 0.12, np.where(age < 0.22, 0.5, np.where(age < 0.5, 0.85, 1.0)))
        thick = np.where(hot | (stand > 0.9), thick, thick * young * np.where(p.road < 3, 0.3, 1.0))
        stand = stand + np.where(hot, 0, 1.2 * (uniform(p.ident, 6, seed=land.seed) - 0.5))
    conifer = land.temperature + 4.5 * stand < 5.0
    tropical = hot & (land.temperature + stand > 19.5)
    evergreen = conifer | tropical
    wet = smoothstep(-0.7, 0.2, season.water + 0.3 * stand) if season.tropic > 0.5 else 1  # else leaves follow warmth
    leaf_on = np.where(evergreen, 1.0, smoothstep(5.5, 11.5, season.lagged + 1.2 * stand) * wet)
    lai = thick * np.where(conifer, 3.4, np.where(tropical, 5.6, 4.6)) * (0.12 + 0.88 * leaf_on)
    leaf = np.where(conifer, LEAF["conifer"], np.where(tropical, LEAF["tropical"], LEAF["broadleaf"]))
    turning = smoothstep(13.0, 7.0, season.lagged + 1.5 * stand) * season.falling * (0.55 + 0.45 * leaf_on)
    turning = np.where(evergreen, 0.12 * np.clip(stand, 0, 1), np.maximum(turning, (1 - leaf_on) * 0.9))
    fall = np.where(leaf_on > 0.25, LEAF["autumn"], LEAF["straw"])
    shade = np.clip(0.94 - 0.20 * thick + 0.09 * stand, 0.5, 1.15)
    if land.pixel <= FINE:
        inside, light, shaded, ident = crowns(land, 8.0, np.clip(0.25 + 0.65 * thick, 0, 1), 112, sun)
        lai = np.where(inside, lai * 1.15, 0.35 * lai + 0.3)
        shade = np.where(inside, light * (0.72 + 0.35 * ident), np.where(shaded, 0.42, 0.85))
        turning = np.clip(turning * (0.6 + 0.8 * ident), 0, 1)
    else:
        shade = shade * (1 + 0.05 * land.noise(60, 113, 3))
    a, b = canopy_row(leaf, soil, lai), canopy_row(fall, soil, np.minimum(lai, 3))
    out.put(at, a=a, b=b, mix=turning, shade=shade, leaf_area=lai)


def _shrubs(out, at, land, season, sun, soil, brightness):
    gully = np.exp(-((land.noise(900, 121, 5) * 6) ** 2)) * np.clip(0.5 + land.noise(500, 123, 2), 0, 1)
    cover = np.clip(0.34 + 0.20 * land.noise(300, 120, 6, 0.72) + 0.12 * land.vigor + 0.4 * gully, 0.04, 0.92)
    green = smoothstep(2, 10, season.lagged) * smoothstep(-1.4, 0.2, season.water) * 0.7 + 0.3
    herbs = np.clip(0.9 * smoothstep(-0.6, 0.5, season.water) * smoothstep(4, 10, season.now), 0.02, None)
    bush = 2.8 * green
    shade = brightness * (1 - 0.30 * cover)
    mix = 1 - cover
    if land.pixel <= FINE:
        inside, light, shaded, ident = crowns(land, 4.6, np.clip(1.35 * cover, 0, 1), 122, sun)
        mix = np.where(inside, 0.12 * ident, 1.0)
        shade = np.where(inside, 0.85 * light * (0.75 + 0.3 * ident), np.where(shaded, 0.5, brightness))
    a = canopy_row(LEAF["broadleaf"], soil, bush)
    b = canopy_row(np.where(season.water > 0, LEAF["grass"], LEAF["straw"]), soil, herbs)
    out.put(at, a=a, b=b, mix=mix, shade=shade, leaf_area=cover * bush + (1 - cover) * herbs)


def _grass(out, at, land, season, sun, soil, brightness):
    tuft = land.noise(520, 130, 7, 0.68)
    wash = np.exp(-((land.noise(1100, 131, 3) / 0.12) ** 2))  # swales stay green
    green = smoothstep(1.0, 9.0, season.lagged) * smoothstep(-0.95, 0.25, season.water + 0.22 * tuft + 0.5 * wash)
    lai = np.clip((0.7 + 2.4 * green) * (1 + 0.22 * tuft) + 0.5 * wash + 0.3 * land.vigor, 0.15, 5)
    a, b = canopy_row(LEAF["grass"], soil, lai), canopy_row(LEAF["straw"], soil, lai * 0.8)
    mix, shade = 1 - 0.92 * green, brightness * (1 + 0.06 * land.noise(60, 132, 6, 0.75))
    path = (np.abs(land.noise(330, 133, 2)) < 0.012) & (land.pixel <= 6)
    mix, lai = np.where(path, 1.0, mix), np.where(path, 0.1, lai)
    b = np.where(path, canopy_row(0, soil, lai), b)
    if land.pixel <= FINE:
        inside, light, shaded, ident = crowns(land, 17.0, np.clip(0.05 + 0.08 * land.vigor, 0.01, 0.2), 134, sun)
        a = np.where(inside, canopy_row(LEAF["broadleaf"], soil, 3.0), a)
        mix, lai = np.where(inside, 0.3 * mix, mix), np.where(inside, 3.0, lai)
        shade = np.where(inside, 0.8 * light, np.where(shaded, 0.5, shade))
    out.put(at, a=a, b=b, mix=mix, shade=shade, leaf_area=lai)


def _crops(out, at, land, season, sun, soil, brightness):
    p = parcels(land)
    r = [uniform(p.ident, k, seed=land.seed * 97 + 140) for k in range(5)]
    warm = smoothstep(4, 16, land.temperature)
    kind = np.searchsorted((0.30, 0.55, 0.70, 0.82, 0.93), (r[0] + 0.25 * (warm - 0.5)) % 1.0)
    shift = np.where(season.tropic > 0.5, 0.45, 0.0) + 0.10 * (r[1] - 0.5)
    shift = shift + 0.03 * (8 - land.temperature).clip(-12, 12) / 8
    # The calendars begin when the winter cereal is sown (autumn, phase 0.78).
    step = (((season.phase - 0.78 - shift) % 1.0) * (len(_DAY) - 1)).astype(np.int32)
    grow = np.clip(0.75 + 0.3 * r[2] + 0.10 * land.noise(170, 141, 3) + 0.1 * land.patch, 0.3, 1.4)
    thirst = np.where(p.pivot, 0.1, np.where(land.moisture < -0.35, 1.0, smoothstep(-1.3, 0.0, season.water)))
    lai = _CROP_LAI[kind, step] * grow * (0.35 + 0.65 * thirst)
    straw = np.clip(_CROP_STRAW[kind, step] + 0.35 * (1 - thirst), 0, 1)
    shade = brightness * (0.86 + 0.28 * r[3])
    if land.pixel <= FINE:
        bare = np.exp(-lai / 2.5)
        for spacing, depth in ((3.0, 0.16), (1.5, 0.14)):
            visible = np.clip(spacing / (2.5 * land.pixel) - 0.4, 0, 1)
            shade = shade * (1 + depth * visible * bare * np.sin(2 * np.pi * p.across / spacing))
        tram = np.abs((p.across / 24) % 1 - 0.5) * 24 < 0.8
        lai = np.where(tram, 0.35 * lai, lai)
    a, b = canopy_row(LEAF["grass"], soil, lai), canopy_row(LEAF["straw"], soil, lai)
    hedge = (p.edge < 3.5) & (r[4] < 0.45 * (land.moisture > -0.2)) & (p.road > 5)
    margin = (p.edge < 2.5) & ~hedge
    track = p.road < 2.6
    lai = np.where(hedge, 3.5, np.where(margin, 1.2, lai))
    a = np.where(hedge, canopy_row(LEAF["broadleaf"], soil, 3.5), a)
    straw = np.where(hedge, 0.1, np.where(margin, 0.5, straw))
    shade = np.where(hedge, 0.72, shade)
    a = np.where(track, OTHER["concrete"], a)
    out.put(at, a=a, b=b, mix=np.where(track, 0.35, straw), shade=shade, leaf_area=np.where(track, 0, lai))


def _town(out, at, land, season, sun, soil, brightness):
    t = streets(land, sun)
    green = smoothstep(2, 10, season.lagged) * smoothstep(-1.2, 0.2, season.water)
    lawn = np.clip(0.4 + 2.2 * green + 0.4 * land.noise(60, 145, 3), 0.1, 4)
    a, b = canopy_row(LEAF["grass"], soil, lawn), canopy_row(LEAF["straw"], soil, lawn)
    mix, shade = 0.75 * (1 - green), brightness.copy()
    lai = lawn
    paved = (uniform(t.lot, 7, seed=land.seed) < 0.15 + 0.6 * t.built) & ~t.park
    a, mix = np.where(paved, OTHER["concrete"], a), np.where(paved, 0.45, mix)
    if land.pixel <= FINE:
        inside, light, shaded, ident = crowns(land, 9.0, np.where(t.park, 0.7, 0.5 - 0.35 * t.built), 146, sun)
        a = np.where(inside, canopy_row(LEAF["broadleaf"], soil, 0.6 + 3 * green), a)
        shade = np.where(inside, 0.8 * light, np.where(shaded | t.shade, 0.45, shade))
        lai = np.where(inside, 0.6 + 3 * green, lai)
    else:
        a = np.where(t.park, canopy_row(LEAF["broadleaf"], soil, 1 + 2.5 * green), a)
        shade = np.where(t.park, 0.8, 0.9 * shade)
    roof = ROOFS[(t.roof * len(ROOFS)).astype(np.int32)]
    ridge = 1 + 0.28 * t.side * (-np.sin(t.angle) * sun.east + np.cos(t.angle) * sun.north) * (land.pixel <= 6)
    roof_light = ridge * (0.85 + 0.3 * uniform(t.lot, 8, seed=land.seed))
    street_light = np.where(t.shade, 0.5, 1.0)
    for where, row, light in ((t.street, OTHER["asphalt"], street_light), (t.house, roof, roof_light)):
        a, shade = np.where(where, row, a), np.where(where, light, shade)
        mix, lai = np.where(where, 0, mix), np.where(where, 0, lai)
    out.put(at, a=a, b=b, mix=mix, shade=shade, leaf_area=lai, built=0.25 * t.built + 0.75 * t.house * t.built)


def _bare(out, at, land, season, sun, soil, brightness):
    sandy = smoothstep(-0.15, 0.15, land.noise(14000, 150, 5))
    bend = land.noise(2500, 151, 3)
    angle = 1.1
    u = (land.x % 1e6 * np.cos(angle) + land.y % 1e6 * np.sin(angle)).astype(np.float64)
    height = 0.0
    for length, tall, salt in ((380.0, 34.0, 152), (95.0, 5.0, 153), (14.0, 0.5, 154)):
        visible = np.clip(length / (3 * land.pixel) - 0.5, 0, 1)
        if visible > 0:
            t = (u + 0.55 * length * land.noise(3.5 * length, salt, 2) + 300 * bend) / length % 1.0
            crest = np.where(t < 0.68, t / 0.68, (1 - t) / 0.32)
            size = np.clip(0.6 + 0.5 * land.noise(6 * length, salt + 5, 2), 0.05, 1.5)
            height = height + visible * tall * crest**1.3 * size
    stone = land.noise(1500, 160, 7, 0.62)
    wadi = np.exp(-((land.noise(2200, 161, 6) * 9) ** 2)) + 0.6 * np.exp(-((land.noise(600, 162, 5) * 9) ** 2))
    bed = np.sin(land.elevation / 3.5 + 2.5 * land.noise(1200, 163, 3))  # strata show along the contours
    dune = sandy > 0.5
    sand = canopy_row(0, SOIL["sand"], np.zeros(land.shape, np.float32))
    a = np.where(dune, sand, np.where(stone + 0.3 * bed > 0.5, OTHER["basalt"], OTHER["rock"]))
    mix = np.where(dune, 0.25 * smoothstep(-0.5, 1.5, stone), np.clip(0.35 - 0.3 * stone + wadi, 0, 1))
    shade = np.where(dune, 1.0, 1 + 0.10 * stone + 0.08 * bed) * brightness
    if land.pixel <= FINE:
        inside, light, shaded, _ = crowns(land, 5.0, np.clip(0.10 + 0.12 * stone + 0.15 * bed, 0, 0.5), 164, sun)
        stones = np.where(inside, 1.1 * light, np.where(shaded, 0.6, 1 + 0.05 * land.noise(9, 169, 3)))
        shade = shade * np.where(dune, 1, stones)
    lai = np.where(dune, 0.0, 0.2 * wadi)
    out.put(at, a=a, b=canopy_row(LEAF["straw"], soil, lai), mix=mix, shade=shade, leaf_area=lai)
    return np.where(at, height * sandy, 0)


def _ice(out, at, land, season, sun, soil, brightness):
    drift = land.noise(900, 165, 5, 0.6)
    melt = smoothstep(-3, 8, season.now + 1.5 * drift)
    steep = np.abs(land.noise(1700, 166, 5, 0.6))
    rocky = smoothstep(1.7, 2.0, steep + 0.06 * np.clip(season.now, -5, 8))
    crack = np.abs(np.sin(2 * np.pi * (land.noise(1400, 167, 4) * 5))) < 0.07
    a = snow_row(0.1 + 0.55 * melt + 0.25 * melt * drift + 0.25 * crack * (land.pixel <= 12))
    out.put(at, a=a, b=np.int32(OTHER["rock"]), mix=rocky, shade=1 + 0.02 * drift, frozen=1 - rocky)
    return np.where(at, 5 * drift + 0.4 * land.noise(45, 168, 3), 0)


def _water(out, at, land, season, sun, soil, brightness):
    depth = np.maximum(-land.elevation, 0)
    plume = 0.6 + 0.35 * land.noise(20000, 171, 2) + 0.22 * land.noise(1800, 172, 6, 0.6) + 0.3 * season.weather.rain
    silt = 0.06 + 0.75 * np.exp(-depth / 5) * np.clip(plume, 0.1, 1.2) + 0.04 * land.noise(5000, 176, 4)
    wind = 1 + 0.10 * land.noise(700, 173, 5, 0.6)
    if land.pixel <= FINE:
        swell = 2 * np.pi * ((land.x % 1e5 * 0.8 + land.y % 1e5 * 0.6) / 22 + land.noise(160, 174, 2))
        wind = wind + 0.07 * np.sin(swell) + 0.05 * land.noise(9, 175, 3)
    out.put(at, a=water_row(silt), shade=np.clip(wind, 0.5, 1.7))


def _wetland(out, at, land, season, sun, soil, brightness):
    sedge = land.noise(330, 180, 5, 0.6)
    channel = np.abs(land.noise(1000, 181, 4))
    pool = smoothstep(0.65, 0.9, land.noise(300, 182, 5))
    wet = 0.25 * smoothstep(0.0, 1.2, season.water + 0.4 * sedge)
    flood = np.clip(smoothstep(0.10, 0.05, channel) + pool + wet, 0, 1)
    green = smoothstep(2, 10, season.lagged)
    lai = np.clip((0.5 + 2.8 * green) * (1 + 0.3 * sedge), 0.2, 5.5)
    leaf = np.where(green * (1 + 0.15 * sedge) > 0.5, LEAF["grass"], LEAF["straw"])
    clump = 1 + 0.12 * land.noise(40, 183, 6, 0.8)
    a, b = canopy_row(leaf, SOIL["humic"], lai), water_row(0.35 + 0.1 * sedge)
    out.put(at, a=a, b=b, mix=flood, shade=np.clip(0.9 * clump + 0.12 * sedge, 0.4, 1.4), leaf_area=lai * (1 - flood))


def _mangroves(out, at, land, season, sun, soil, brightness):
    creek = np.abs(land.noise(900, 10, 4))  # the same creeks as in the land cover
    mud = smoothstep(0.20, 0.13, creek) + smoothstep(1.3, 1.7, land.noise(600, 185, 5))
    thick = np.clip(1 + 0.22 * land.noise(300, 186, 4, 0.6), 0.3, 1.5)
    lai, shade = 4.2 * thick, 0.74 + 0.06 * land.noise(60, 187, 3)
    if land.pixel <= FINE:
        inside, light, shaded, ident = crowns(land, 5.0, np.clip(0.9 * thick, 0, 1), 188, sun)
        lai = np.where(inside, lai, 0.6)
        shade = np.where(inside, light * (0.66 + 0.25 * ident), np.where(shaded, 0.4, 0.8))
    a = canopy_row(LEAF["tropical"], SOIL["grey"], lai)
    b = canopy_row(0, np.full_like(soil, SOIL["grey"]), np.zeros(land.shape, np.float32))
    mud = np.clip(mud, 0, 1)
    out.put(at, a=a, b=b, mix=mud, shade=np.where(mud > 0.5, 0.62, shade), leaf_area=lai * (1 - mud))


def _tundra(out, at, land, season, sun, soil, brightness):
    mottle = land.noise(420, 190, 6, 0.68)
    pale = smoothstep(-0.5, 0.9, mottle + 0.5 * land.noise(5000, 191, 3))
    stone = smoothstep(0.9, 1.4, land.noise(240, 192, 5, 0.65))
    net = smoothstep(0.10, 0.04, np.abs(land.noise(60, 193, 2))) * (land.pixel <= 6)  # frost polygons
    a = np.where(stone > 0.5, OTHER["rock"], OTHER["moss"])
    green = smoothstep(0, 8, season.lagged)
    shade = (0.85 + 0.25 * green) * (1 - 0.25 * net) * brightness * (1 + 0.06 * land.noise(12, 194, 4, 0.7))
    mix = np.clip(0.75 * pale * (1 - 0.6 * stone), 0, 1)
    out.put(at, a=a, b=np.int32(OTHER["lichen"]), mix=mix, shade=shade, leaf_area=0.6 * (1 - stone) * green)


PAINTERS = {  # by WorldCover code
    10: _trees, 20: _shrubs, 30: _grass, 40: _crops, 50: _town, 60: _bare, 70: _ice, 80: _water, 90: _wetland,
    95: _mangroves, 100: _tundra,
}  # fmt: skip
