"""The land of the mini-world: coordinates, climate, relief, water, land cover, parcels, streets, crowns.

World coordinates (x, y) are meters in the WGS84 UTM projection, x = easting + ZONE_STRIDE * zone and y the northing
from the equator (negative in the south). Climate and continents are seamless noise on the sphere; finer detail is noise
in the plane, so that the land changes at the border of two UTM zones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clay_lib.world.noise import fbm, hashed, smoothstep, sphere_noise, uniform

ZONE_STRIDE = 2_000_000.0
MODIS_RADIUS = 6371007.181  # m, sphere of the MODIS sinusoidal grid

# WGS84 by Krueger's series (Karney 2011, arXiv 1002.1417), third order in n: better than a centimeter
_F = 1 / 298.257223563
_N = _F / (2 - _F)
_RADIUS = 0.9996 * 6378137.0 / (1 + _N) * (1 + _N**2 / 4 + _N**4 / 64)
_ALPHA = (_N / 2 - 2 * _N**2 / 3 + 5 * _N**3 / 16, 13 * _N**2 / 48 - 3 * _N**3 / 5, 61 * _N**3 / 240)
_BETA = (_N / 2 - 2 * _N**2 / 3 + 37 * _N**3 / 96, _N**2 / 48 + _N**3 / 15, 17 * _N**3 / 480)
_DELTA = (2 * _N - 2 * _N**2 / 3 - 2 * _N**3, 7 * _N**2 / 3 - 8 * _N**3 / 5, 56 * _N**3 / 15)


def utm_zone(lon):
    """UTM zone number 1..60 of degrees east."""
    return np.floor((np.asarray(lon, float) + 180) / 6).astype(int) % 60 + 1


def to_world(lat, lon, zone=None):
    """Degrees WGS84 -> world (x, y); zone: the UTM zone to project into, by default the point's own."""
    zone = utm_zone(lon) if zone is None else zone
    phi, lam = np.radians(lat), np.radians((np.asarray(lon, float) - (6 * zone - 183) + 180) % 360 - 180)
    e = 2 * _N**0.5 / (1 + _N)
    t = np.sinh(np.arctanh(np.sin(phi)) - e * np.arctanh(e * np.sin(phi)))
    xi, eta = np.arctan2(t, np.cos(lam)), np.arctanh(np.sin(lam) / np.sqrt(1 + t * t))
    north, east = xi, eta
    for j, alpha in enumerate(_ALPHA, 1):
        north = north + alpha * np.sin(2 * j * xi) * np.cosh(2 * j * eta)
        east = east + alpha * np.cos(2 * j * xi) * np.sinh(2 * j * eta)
    return 500000.0 + _RADIUS * east + ZONE_STRIDE * zone, _RADIUS * north


def from_world(x, y):
    """World (x, y) -> degrees (lat, lon)."""
    zone = np.floor(np.asarray(x) / ZONE_STRIDE)
    xi, eta = np.asarray(y) / _RADIUS, (x - ZONE_STRIDE * zone - 500000.0) / _RADIUS
    a, b = xi, eta
    for j, beta in enumerate(_BETA, 1):
        a = a - beta * np.sin(2 * j * xi) * np.cosh(2 * j * eta)
        b = b - beta * np.cos(2 * j * xi) * np.sinh(2 * j * eta)
    chi = np.arcsin(np.sin(a) / np.cosh(b))
    lat = chi + sum(delta * np.sin(2 * j * chi) for j, delta in enumerate(_DELTA, 1))
    lon = np.degrees(np.arctan2(np.sinh(b), np.cos(a))) + 6 * zone - 183
    return np.degrees(lat), (lon + 180) % 360 - 180


@dataclass
class Land:
    """What does not change with the date, at points x, y. Arrays are [H, W] or broadcast to it."""

    x: np.ndarray
    y: np.ndarray
    pixel: float  # m; smaller detail is left out
    step: float  # m between points
    fold: int  # points in a sensor's pixel along each side
    seed: int
    lat: np.ndarray  # degrees
    temperature: np.ndarray  # annual mean at the ground, degrees C
    swing: np.ndarray  # half the difference between warmest and coldest month
    moisture: np.ndarray  # about zero mean, unit spread; above 0.5 forest, below -0.9 desert
    elevation: np.ndarray  # m
    river: np.ndarray  # zero on the river's axis, about 1e-3 per meter beside it
    patch: np.ndarray  # vegetation density noise, unit spread
    vigor: np.ndarray  # moisture plus patch plus valley
    labels: np.ndarray  # uint8 WorldCover codes

    def noise(self, wavelength, salt, octaves=3, gain=0.5, sharp=False):
        """Noise [H, W], once per pixel of the sensor and repeated within it; sharp: at every point."""
        fold = 1 if sharp else self.fold
        x, y = self.x.reshape(1, -1, fold).mean(-1), self.y.reshape(-1, fold, 1).mean(1)
        out = fbm(x, y, wavelength, seed=self.seed * 97 + salt, octaves=octaves, gain=gain, pixel=self.pixel)
        return out if fold == 1 else out.repeat(fold, 0).repeat(fold, 1)

    @property
    def shape(self):
        return self.labels.shape


def climate(lat, lon, seed: int):
    """(base elevation m, ruggedness 0..1, sea-level temperature C, swing C, moisture) at degrees lat, lon."""
    lat = np.asarray(lat, float)
    continent = sphere_noise(lat, lon, 4500, seed=seed * 7 + 1, octaves=5)
    rugged = smoothstep(0.0, 1.6, sphere_noise(lat, lon, 1800, seed=seed * 7 + 2, octaves=4))
    wander = sphere_noise(lat, lon, 2500, seed=seed * 7 + 3, octaves=3)
    rain = sphere_noise(lat, lon, 2600, seed=seed * 7 + 4, octaves=4)
    slant = np.abs(np.sin(np.radians(lat)))
    bands = 0.9 * np.exp(-((lat / 13) ** 2)) - 0.7 * np.exp(-(((np.abs(lat) - 25) / 8) ** 2))
    bands = bands + 0.35 * np.exp(-(((np.abs(lat) - 55) / 12) ** 2))
    base = 220 * (continent + 0.35)
    return base, rugged, 28 - 38 * slant**2 + 1.5 * wander, 2.5 + 15 * slant, 0.75 * rain + bands - 0.1


def _climate_on(x, y, seed):
    """Latitude and climate on the points: exact on scattered points, bilinear between 3 x 3 nodes on a grid."""
    if not (np.ndim(x) == 2 and x.shape[0] == 1 and y.shape[1] == 1):
        lat, lon = from_world(x, y)
        return (lat, *climate(lat, lon, seed))
    xs, ys = (t.min() + (np.ptp(t) + 1.0) * np.linspace(0, 1, 3) for t in (x, y))
    lat, lon = from_world(xs[None, :], ys[:, None])
    hat = [np.maximum(0, 1 - np.abs((t.reshape(-1, 1) - n) / (n[1] - n[0]))) for t, n in ((x, xs), (y, ys))]
    wx, wy = (weights.astype(np.float32) for weights in hat)  # [W, 3], [H, 3]
    return tuple(wy @ np.asarray(field, np.float32) @ wx.T for field in (lat, *climate(lat, lon, seed)))


def survey(x, y, *, seed: int, pixel: float = 0.0, step: float = 1.0, fold: int = 1) -> Land:
    """The land at world points x, y (x [1, W] and y [H, 1] for a grid, or two arrays of one shape)."""
    lat, base, rugged, warm, swing, moisture = _climate_on(x, y, seed)

    def noise(wavelength, salt, octaves, gain=0.5):
        return fbm(x, y, wavelength, seed=seed * 97 + salt, octaves=octaves, gain=gain, pixel=pixel)

    hills = noise(22000, 1, 5, 0.47)
    river = noise(14000, 2, 6, 0.45)
    near = np.exp(-((river * (1 / 0.3)) ** 2))
    height = 14 + 130 * smoothstep(-0.6, 1.2, noise(60000, 3, 2)) * (0.15 + rugged) + 750 * rugged * rugged
    height = height * (1 - 0.85 * near)
    ridged = 1.0 - 1.6 * np.abs(hills)
    folds = noise(3000, 12, 6, 0.46)  # spurs and gullies on the hills
    shape = hills * (1 - 0.7 * rugged) + ridged * 0.9 * rugged + 0.16 * (1 - 1.5 * np.abs(folds))
    elevation = base + height * shape + 900 * rugged * rugged
    temperature = warm - 0.0062 * np.maximum(elevation, 0)
    warmest = temperature + swing

    patch = noise(2600, 4, 6, 0.6)
    vigor = moisture + 0.42 * patch + 0.45 * near - 0.1 - 0.2 * folds * (height > 60)
    kind = noise(9000, 5, 5)
    wet = noise(6500, 6, 5) + 1.1 * near + 0.4 * np.clip(moisture, -1, 1)
    farm = noise(26000, 7, 3) + 0.25 * patch + 0.35
    town = noise(8500, 8, 4, 0.45) + 0.25 * near
    tundra = warmest + 1.2 * patch
    flat, cool, arable = height < 150, tundra < 9.5, vigor > -1.1

    labels = np.full(np.shape(elevation), 30, np.uint8)
    labels[kind > 0.25] = 20
    labels[(vigor > 0.42) & (warmest > 10.5)] = 10
    labels[(vigor < 0.42) & (warmest < 11.5)] = 30
    labels[vigor < -0.85] = 60
    labels[(farm > 0.3) & flat & (warmest > 14.5) & arable & ((patch < 1.1) | (vigor < 0.42)) & (vigor > -0.85)] = 40
    labels[cool] = 100
    labels[cool & (vigor < -0.9)] = 60
    labels[(wet > 1.55) & flat & (moisture > -0.5) & (warmest > 8)] = 90
    labels[(town > 1.7) & flat & (warmest > 12)] = 50
    labels[warmest + 0.5 * patch < 5.5] = 70
    tidal = (temperature > 19) & (elevation < 12)
    if tidal.any():
        tidal &= noise(18000, 9, 3) > -0.6
        labels[tidal] = 95
        labels[tidal & (np.abs(noise(900, 10, 4)) < 0.10 - 0.004 * np.clip(elevation, 0, 15))] = 80
    humid = moisture > -0.6
    width = 0.012 + 0.05 * smoothstep(-0.2, 1.2, moisture)
    labels[(np.abs(river) < width) & humid & (warmest > 5) & (height < 120)] = 80
    labels[(noise(7000, 11, 5) > 2.05 - 0.3 * np.clip(moisture, -1, 1)) & humid & (warmest > 4)] = 80
    labels[elevation < 0] = 80
    return Land(
        x, y, pixel, step, fold, seed, lat, temperature, swing, moisture, elevation, river, patch, vigor, labels
    )


def _rotate(x, y, angle):
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, c * y - s * x


def _regions(land: Land, size: float, salt: int):
    """Squares with warped edges: integer ids (i, j) and offsets in meters from their centers."""
    wx, wy = land.noise(size, salt, 3) * (0.16 * size), land.noise(size, salt + 1, 3) * (0.16 * size)
    i, j = np.floor((land.x + wx) / size), np.floor((land.y + wy) / size)
    dx, dy = land.x - (i + 0.5) * size, land.y - (j + 0.5) * size
    return i.astype(np.int64), j.astype(np.int64), dx.astype(np.float32), dy.astype(np.float32)


@dataclass
class Parcels:
    """Fields at the points of a Land, arrays [H, W]."""

    ident: np.ndarray  # uint32 hash, one a field
    edge: np.ndarray  # m to the field's border
    along: np.ndarray  # m along the rows
    across: np.ndarray  # m across the rows
    road: np.ndarray  # m to the nearest farm road
    pivot: np.ndarray  # bool: outside the circle of a center pivot


def parcels(land: Land) -> Parcels:
    """Fields: strips of a rotated grid, cut crosswise and some of them lengthwise; circles where it is dry."""
    i, j, dx, dy = _regions(land, 2800, 20)
    seed = land.seed * 97 + 30
    u, v = _rotate(dx, dy, np.pi * uniform(i, j, 0, seed=seed))
    size = 0.7 + 1.1 * uniform(i // 4, j // 4, 1, seed=seed)
    wide = (90 + 110 * uniform(i, j, 2, seed=seed)) * size
    long = (220 + 300 * uniform(i, j, 3, seed=seed)) * size
    a = np.floor(u / wide)
    w = v + long * uniform(i, j, a, 4, seed=seed)
    b = np.floor(w / long)
    fu, fv = u / wide - a, w / long - b
    halves = uniform(i, j, a, b, seed=seed) < 0.4
    half = halves & (fu > 0.5)
    left = np.where(halves, np.minimum(fu, np.abs(fu - 0.5)), fu)
    edge = np.minimum(np.minimum(left, 1 - fu) * wide, np.minimum(fv, 1 - fv) * long)
    ident = hashed(i, j, a, b, half, seed=seed)
    side = (a % 3 == 0) * fu * wide + (a % 3 != 0) * 1e3
    road = np.minimum(side, np.where((b % 3 == 0), fv * long, 1e3))
    outside = np.zeros(land.shape, bool)
    dry = np.broadcast_to(land.moisture < -0.35, land.shape)
    if dry.any():
        p, q = np.floor(u / 840), np.floor(v / 840)
        r = np.hypot(u - (p + 0.5) * 840, v - (q + 0.5) * 840)
        ident = np.where(dry, hashed(i, j, p, q, 7, seed=seed), ident)
        edge = np.where(dry, np.abs(400 - r), edge)
        outside = dry & (r > 400)
        road = np.where(dry, np.minimum(np.abs(u - p * 840), np.abs(v - q * 840)), road)
        u, v = np.where(dry, r, u), np.where(dry, 0, v)
    return Parcels(ident, edge, v, u, road, outside)


@dataclass
class Streets:
    """A town at the points of a Land, arrays [H, W]."""

    street: np.ndarray  # bool
    house: np.ndarray  # bool
    park: np.ndarray  # bool
    roof: np.ndarray  # 0..1, one number a house, similar within a quarter
    lot: np.ndarray  # uint32 hash, one a lot
    side: np.ndarray  # which face of the roof looks along +u, -1..1
    angle: np.ndarray  # of the street grid, radians
    shade: np.ndarray  # bool: ground in a house's shadow
    built: np.ndarray  # share of ground under roofs around here


def streets(land: Land, sun) -> Streets:
    """Street blocks of lots with a house each, lit by the sun (surface.Sun)."""
    i, j, dx, dy = _regions(land, 1500, 40)
    seed = land.seed * 97 + 50
    angle = np.pi * uniform(i, j, 0, seed=seed)
    dense = np.clip(0.45 + 0.30 * land.noise(1100, 44, 3), 0.1, 1)

    def plan(dx, dy):
        u, v = _rotate(dx, dy, angle)
        long, wide = 130.0, 76.0
        a, b = np.floor(u / long), np.floor(v / wide)
        pu, pv = u - a * long, v - b * wide
        big = uniform(i, j, a, b, 9, seed=seed) < smoothstep(0.45, 0.95, dense) - 0.05
        park = uniform(i, j, a, b, 10, seed=seed) < 0.07
        street = np.minimum(np.minimum(pu, long - pu), np.minimum(pv, wide - pv)) < 4.5
        avenue = np.minimum(np.where(a % 4 == 0, pu, 99), np.where(b % 5 == 0, pv, 99)) < 16
        street = street | avenue
        lot_u = np.where(big, long / 2, 26.0)
        lot_v = np.where(big, wide, wide / 2)
        m, n = np.floor(pu / lot_u), np.floor(pv / lot_v)
        lot = hashed(i, j, a, b, m, n, seed=seed)
        r1, r2, r3 = (uniform(lot, k, seed=seed) for k in (1, 2, 3))
        cu, cv = pu - (m + 0.5) * lot_u, pv - (n + 0.5) * lot_v
        half_u = np.where(big, 18 + 10 * r1, 5 + 4.5 * r1 + 3 * dense)
        half_v = np.where(big, 17 + 10 * r2, 5 + 4 * r2 + 3 * dense)
        within = (np.abs(cu - 1.5 * (r2 - 0.5)) < half_u) & (np.abs(cv - 6 * (r3 - 0.5) * ~big) < half_v)
        house = within & (r3 < 0.55 + 0.6 * dense) & ~park
        return street, house & ~street, park, lot, np.clip(cv / half_v * 2, -1, 1)

    street, house, park, lot, side = plan(dx, dy)
    own, quarter = uniform(lot, 4, seed=seed), uniform(i, j, 11, seed=seed)
    roof = np.where(uniform(lot, 5, seed=seed) < 0.65, 0.8 * quarter + 0.1 * own, own)
    shade = np.zeros(land.shape, bool)
    if land.pixel <= 5:
        for height in (3.0, 6.0):
            shade |= plan(dx + sun.east * sun.shadow * height, dy + sun.north * sun.shadow * height)[1]
    return Streets(street, house, park, roof, lot, side, angle, shade & ~house, dense)


def crowns(land: Land, size: float, cover, salt: int, sun):
    """Crowns on a jittered grid: (inside bool, light 0.5..1.4 of the crown's face, shaded ground bool, ident).

    size: m between crowns; cover [H, W]: share of nodes with a crown, 0..1; sun: surface.Sun; for pixels that resolve them.
    """
    seed = land.seed * 97 + salt

    def nearest(x, y):
        i, j = np.floor(x / size).astype(np.int64), np.floor(y / size).astype(np.int64)
        best = np.full(land.shape, 9.0, np.float32)
        at = [np.zeros(land.shape, np.float32) for _ in range(3)]
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                p, q = i + di, j + dj
                h = hashed(p, q, seed=seed)
                r = [((h >> np.uint32(8 * k)) & np.uint32(255)).astype(np.float32) / 255 for k in range(4)]
                ox = (x - (p + r[0]) * size).astype(np.float32)
                oy = (y - (q + r[1]) * size).astype(np.float32)
                radius = size * (0.42 + 0.26 * r[2])
                d = np.where(r[3] < cover, np.sqrt(ox * ox + oy * oy) / radius, 9)
                better = d < best
                best = np.where(better, d, best)
                for old, new in zip(at, (ox / radius, oy / radius, r[2]), strict=True):
                    np.copyto(old, new, where=better)
        return best, at

    d, (ox, oy, ident) = nearest(land.x, land.y)
    inside = d < 1
    light = 1.0 + 0.45 * (ox * sun.east + oy * sun.north) - 0.12 * d**2
    ground, _ = nearest(land.x + sun.east * sun.shadow * size * 0.45, land.y + sun.north * sun.shadow * size * 0.45)
    return inside, np.clip(light, 0.4, 1.5), (ground < 1) & ~inside, ident
