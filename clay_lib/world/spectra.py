"""Reflectance and radar backscatter of the mini-world's surfaces.

Every material is a row of one table [rows, C]: canopies (PROSAIL, by leaf state, soil and leaf area), water by
turbidity, snow by age, roofs, roads, rock, moss and lichen. surface.py mixes two of them at every point.
Curves outside PROSAIL run through control points that follow the shapes of published spectral libraries.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LEAVES = ("broadleaf", "conifer", "tropical", "grass", "autumn", "straw")
SOILS = ("humic", "loam", "laterite", "sand", "grey")
_LAI_NODES = (0.0, 0.15, 0.35, 0.7, 1.2, 2.0, 3.0, 4.5, 7.0)
LAI_LEVELS = 33
LAI_MAX = 7.0
WATER_LEVELS = SNOW_LEVELS = 65  # fine enough that no steps are visible

# PROSAIL leaf states: structure n, chlorophyll, carotenoids (ug/cm2), brown pigment, water, dry matter (g/cm2),
# mean leaf inclination (degrees)
_LEAF = {
    "broadleaf": (1.6, 46, 9, 0.0, 0.012, 0.006, 50),
    "conifer": (1.25, 60, 12, 0.12, 0.020, 0.022, 62),
    "tropical": (1.8, 68, 13, 0.05, 0.018, 0.010, 45),
    "grass": (1.5, 40, 9, 0.02, 0.011, 0.004, 62),
    "autumn": (1.7, 10, 14, 0.45, 0.008, 0.007, 50),
    "straw": (1.9, 2, 5, 0.75, 0.003, 0.006, 60),
}
# Control points of reflectance curves: wavelengths in um, and thousandths at these wavelengths.
# fmt: off
_AT = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.85, 1.00, 1.25, 1.65, 2.00, 2.20, 2.50)
_SOIL = {  # dry
    "humic":    ( 30,  35,  45,  58,  70,  82,  95, 110, 140, 180, 235, 280, 240, 235, 180),
    "loam":     ( 50,  65,  85, 115, 150, 175, 195, 215, 250, 300, 355, 400, 340, 340, 270),
    "laterite": ( 28,  38,  56,  90, 145, 178, 200, 215, 230, 290, 350, 380, 310, 290, 220),
    "sand":     (110, 150, 200, 270, 330, 365, 385, 400, 430, 460, 510, 540, 480, 490, 400),
    "grey":     (100, 115, 135, 155, 172, 186, 198, 208, 225, 245, 275, 300, 265, 260, 215),
}
_OTHER = {
    "asphalt":  ( 60,  68,  76,  84,  90,  96, 101, 105, 112, 122, 138, 150, 145, 145, 130),
    "concrete": (160, 190, 220, 245, 262, 275, 285, 292, 300, 310, 330, 340, 300, 295, 250),
    "tile":     ( 55,  65,  80, 110, 200, 260, 285, 300, 315, 340, 380, 410, 390, 380, 340),
    "slate":    ( 75,  85,  92,  98, 102, 106, 110, 114, 122, 134, 150, 165, 160, 158, 145),
    "metal":    (380, 430, 460, 480, 490, 495, 495, 490, 480, 470, 460, 430, 400, 390, 360),
    "shingle":  ( 75,  90, 108, 128, 148, 162, 174, 184, 200, 222, 255, 275, 250, 245, 210),
    "blueroof": (150, 240, 250, 190, 140, 130, 150, 200, 280, 300, 310, 300, 270, 260, 220),
    "rock":     ( 90, 105, 125, 145, 162, 176, 188, 196, 208, 225, 252, 275, 255, 245, 205),
    "basalt":   ( 50,  55,  62,  70,  78,  85,  90,  94, 102, 112, 126, 138, 132, 130, 120),
    "lichen":   (130, 180, 240, 300, 310, 300, 330, 420, 480, 530, 560, 420, 280, 300, 180),
    "moss":     ( 22,  28,  40,  75,  72,  65, 110, 210, 270, 310, 280, 180,  80, 110,  60),
    "brick":    ( 50,  60,  75,  95, 150, 190, 215, 230, 250, 285, 330, 360, 330, 320, 280),
}
_WATER = {  # clear and deep, clear and shallow, sediment
    "clear": ( 38,  34,  24,  14,   6,   4,   3,   2,   1,   1, 0.5, 0.5, 0.5, 0.5, 0.5),
    "algae": ( 20,  26,  42,  75,  55,  38,  45,  28,  18,   6,   2,   1,   1,   1,   1),
    "silt":  ( 60,  75, 105, 150, 170, 175, 150,  85,  60,  25,   6,   3,   2,   2,   2),
}
_SNOW = {
    "fresh": (970, 970, 970, 965, 960, 950, 940, 930, 900, 780, 500, 150,  80, 140,  60),
    "ice":   (560, 600, 600, 570, 500, 420, 340, 280, 180,  80,  30,  10,  10,  10,  10),
}
# fmt: on
_FIRST_OTHER = len(LEAVES) * len(SOILS) * LAI_LEVELS
OTHER = {name: np.int32(_FIRST_OTHER + n) for n, name in enumerate(_OTHER)}
_FIRST_WATER = _FIRST_OTHER + len(OTHER)
_FIRST_SNOW = _FIRST_WATER + WATER_LEVELS
ROWS = _FIRST_SNOW + SNOW_LEVELS


def canopy_row(leaf, soil, lai):
    """Row of a canopy: leaf and soil are positions in LEAVES and SOILS, lai the leaf area in m2/m2."""
    level = np.sqrt(np.clip(lai, 0, LAI_MAX) * np.float32(1 / LAI_MAX)) * np.float32(LAI_LEVELS - 1) + np.float32(0.5)
    return (np.asarray(leaf, np.int32) * len(SOILS) + soil) * LAI_LEVELS + level.astype(np.int32)


def water_row(turbidity):
    """turbidity 0 (clear, deep) .. 0.5 (green) .. 1 (silt)."""
    return _FIRST_WATER + np.rint(np.clip(turbidity, 0, 1) * (WATER_LEVELS - 1)).astype(np.int32)


def snow_row(age):
    """age 0 (fresh) .. 1 (bare glacier ice)."""
    return _FIRST_SNOW + np.rint(np.clip(age, 0, 1) * (SNOW_LEVELS - 1)).astype(np.int32)


@lru_cache(maxsize=64)
def table(waves: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance [ROWS, C] on dry and on wet soil, bands centered on `waves` (um) with a Gaussian response,
    5 % of the wavelength wide (full width at half maximum).
    """
    grid = np.arange(0.4, 2.5005, 0.001)
    center = np.clip(np.array(waves), grid[0], grid[-1])
    response = np.exp(-0.5 * ((grid[:, None] - center) / (0.05 * center / 2.355)) ** 2)
    response /= response.sum(0)
    dry, wet = (canopies @ response for canopies in _canopies())
    levels = LAI_MAX * np.linspace(0, 1, LAI_LEVELS) ** 2
    right = np.clip(np.searchsorted(_LAI_NODES, levels), 1, len(_LAI_NODES) - 1)
    nodes = np.array(_LAI_NODES)
    part = ((levels - nodes[right - 1]) / (nodes[right] - nodes[right - 1]))[:, None]
    rest = _curves(grid) @ response
    tables = []
    for canopies in (dry, wet):  # [leaves, soils, LAI nodes, C], interpolated to all levels
        fine = canopies[:, :, right - 1] * (1 - part) + canopies[:, :, right] * part
        tables.append(np.concatenate([fine.reshape(_FIRST_OTHER, -1), rest]).astype(np.float32))
    return tables[0], tables[1]


def _curve(points, grid):
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(_AT, np.array(points) / 1000)(grid)


def _curves(grid):
    rows = [_curve(points, grid) for points in _OTHER.values()]
    clear, algae, silt = (_curve(_WATER[name], grid) for name in ("clear", "algae", "silt"))
    for t in np.linspace(0, 1, WATER_LEVELS):
        rows.append(clear + (algae - clear) * 2 * t if t <= 0.5 else algae + (silt - algae) * (2 * t - 1))
    fresh, ice = (_curve(_SNOW[name], grid) for name in ("fresh", "ice"))
    rows += [fresh * (1 - t) + ice * t for t in np.linspace(0, 1, SNOW_LEVELS)]
    return np.stack(rows)


@lru_cache(maxsize=1)
def _canopies() -> tuple[np.ndarray, np.ndarray]:
    """PROSAIL on dry and on wet soil: each [leaves, soils, LAI nodes, 2101]."""
    from prosail import run_prosail  # slow to import

    grid = np.arange(0.4, 2.5005, 0.001)
    water = np.exp(-0.5 * ((grid - 1.93) / 0.08) ** 2) + 0.6 * np.exp(-0.5 * ((grid - 1.45) / 0.06) ** 2)
    out = np.empty((2, len(LEAVES), len(SOILS), len(_LAI_NODES), len(grid)), np.float32)
    for s, soil in enumerate(SOILS):
        dry = _curve(_SOIL[soil], grid)
        for w, ground in enumerate((dry, dry * (0.58 - 0.12 * water))):
            out[w, :, s, 0] = ground
            for k, leaf in enumerate(LEAVES):
                n, chlorophyll, carotenoid, brown, leaf_water, dry_matter, angle = _LEAF[leaf]
                for i, lai in enumerate(_LAI_NODES[1:], 1):
                    out[w, k, s, i] = run_prosail(
                        n, chlorophyll, carotenoid, brown, leaf_water, dry_matter, lai, angle, 0.05,
                        35.0, 5.0, 0.0, typelidf=2, rsoil0=ground
                    )  # fmt: skip
    return out[0], out[1]


def backscatter(labels, leaf_area, wet, rough, built, frozen) -> np.ndarray:
    """Mean C-band backscatter gamma0 [2 (vv, vh), H, W] in dB before slopes and speckle.

    labels [H, W] land cover codes; leaf_area [H, W]; wet: soil moisture 0..1; rough [H, W], zero mean and unit
    variance; built [H, W] share of buildings; frozen [H, W] share of snow. Levels follow published C-band statistics.
    """
    # class: bare-ground vv, vh; full-canopy vv, vh; leaf area at which the canopy has closed
    levels = {
        10: (-11.5, -18.5, -7.5, -13.0, 3.0),
        20: (-13.0, -21.0, -9.0, -15.5, 2.5),
        30: (-14.5, -23.0, -10.5, -17.5, 4.0),
        40: (-12.5, -21.5, -9.5, -16.0, 4.0),
        50: (-10.0, -18.0, -8.0, -14.5, 3.0),
        60: (-17.0, -26.5, -11.0, -17.0, 4.0),
        70: (-11.0, -19.5, -11.0, -19.5, 4.0),
        80: (-21.0, -29.0, -21.0, -29.0, 4.0),
        90: (-14.5, -23.0, -8.5, -16.0, 4.0),
        95: (-9.0, -16.0, -7.0, -13.0, 3.5),
        100: (-14.0, -22.0, -11.5, -19.0, 3.0),
    }
    lookup = np.zeros((256, 5), np.float32)
    lookup[:, 4] = 1.0
    for code, row in levels.items():
        lookup[code] = row
    level = lookup[labels]
    closed = 1 - np.exp(-1.5 * leaf_area / level[..., 4])
    open_ground = (1 - closed) * (labels != 80) * (1 - frozen)
    out = []
    for n, swing in ((0, 1.6), (1, 1.2)):
        db = level[..., n] * (1 - closed) + level[..., n + 2] * closed
        db = db + open_ground * (3.5 - n) * (wet - 0.3) + swing * rough * (0.4 + 0.6 * (1 - closed))
        db = db + built * (9.0 - 2.0 * n) - frozen * (labels != 80) * 1.5
        out.append(db)
    return np.stack(out).astype(np.float32)
