"""What the mini-world's surfaces reflect and scatter.

Every material is a row of one table [rows, C]: canopies (PROSAIL, by leaf state, soil and leaf area), water by
turbidity, snow by age, roofs, roads, rock, moss and lichen. Mixtures are made where the land is sampled.
Curves outside PROSAIL are drawn through control points after the shapes of published spectral libraries.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LEAVES = ("broadleaf", "conifer", "tropical", "grass", "autumn", "straw")
SOILS = ("humic", "loam", "laterite", "sand", "grey")
_LAI_NODES = (0.0, 0.15, 0.35, 0.7, 1.2, 2.0, 3.0, 4.5, 7.0)
LAI_LEVELS = 33
LAI_MAX = 7.0
WATER_LEVELS = SNOW_LEVELS = 65  # fine enough that the steps do not show

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
_AT = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.85, 1.00, 1.25, 1.65, 2.00, 2.20, 2.50)  # um
_SOIL = {  # dry reflectance at _AT
    "humic": (0.030, 0.035, 0.045, 0.058, 0.070, 0.082, 0.095, 0.110, 0.140, 0.180, 0.235, 0.280, 0.240, 0.235, 0.180),
    "loam": (0.050, 0.065, 0.085, 0.115, 0.150, 0.175, 0.195, 0.215, 0.250, 0.300, 0.355, 0.400, 0.340, 0.340, 0.270),
    "laterite": (
        0.028,
        0.038,
        0.056,
        0.090,
        0.145,
        0.178,
        0.200,
        0.215,
        0.230,
        0.290,
        0.350,
        0.380,
        0.310,
        0.290,
        0.220,
    ),
    "sand": (0.110, 0.150, 0.200, 0.270, 0.330, 0.365, 0.385, 0.400, 0.430, 0.460, 0.510, 0.540, 0.480, 0.490, 0.400),
    "grey": (0.100, 0.115, 0.135, 0.155, 0.172, 0.186, 0.198, 0.208, 0.225, 0.245, 0.275, 0.300, 0.265, 0.260, 0.215),
}
_OTHER = {
    "asphalt": (
        0.060,
        0.068,
        0.076,
        0.084,
        0.090,
        0.096,
        0.101,
        0.105,
        0.112,
        0.122,
        0.138,
        0.150,
        0.145,
        0.145,
        0.130,
    ),
    "concrete": (
        0.160,
        0.190,
        0.220,
        0.245,
        0.262,
        0.275,
        0.285,
        0.292,
        0.300,
        0.310,
        0.330,
        0.340,
        0.300,
        0.295,
        0.250,
    ),
    "tile": (0.055, 0.065, 0.080, 0.110, 0.200, 0.260, 0.285, 0.300, 0.315, 0.340, 0.380, 0.410, 0.390, 0.380, 0.340),
    "slate": (0.075, 0.085, 0.092, 0.098, 0.102, 0.106, 0.110, 0.114, 0.122, 0.134, 0.150, 0.165, 0.160, 0.158, 0.145),
    "metal": (0.380, 0.430, 0.460, 0.480, 0.490, 0.495, 0.495, 0.490, 0.480, 0.470, 0.460, 0.430, 0.400, 0.390, 0.360),
    "shingle": (
        0.075,
        0.090,
        0.108,
        0.128,
        0.148,
        0.162,
        0.174,
        0.184,
        0.200,
        0.222,
        0.255,
        0.275,
        0.250,
        0.245,
        0.210,
    ),
    "blueroof": (
        0.150,
        0.240,
        0.250,
        0.190,
        0.140,
        0.130,
        0.150,
        0.200,
        0.280,
        0.300,
        0.310,
        0.300,
        0.270,
        0.260,
        0.220,
    ),
    "rock": (0.090, 0.105, 0.125, 0.145, 0.162, 0.176, 0.188, 0.196, 0.208, 0.225, 0.252, 0.275, 0.255, 0.245, 0.205),
    "basalt": (0.050, 0.055, 0.062, 0.070, 0.078, 0.085, 0.090, 0.094, 0.102, 0.112, 0.126, 0.138, 0.132, 0.130, 0.120),
    "lichen": (0.130, 0.180, 0.240, 0.300, 0.310, 0.300, 0.330, 0.420, 0.480, 0.530, 0.560, 0.420, 0.280, 0.300, 0.180),
    "moss": (0.022, 0.028, 0.040, 0.075, 0.072, 0.065, 0.110, 0.210, 0.270, 0.310, 0.280, 0.180, 0.080, 0.110, 0.060),
    "brick": (0.050, 0.060, 0.075, 0.095, 0.150, 0.190, 0.215, 0.230, 0.250, 0.285, 0.330, 0.360, 0.330, 0.320, 0.280),
}
_WATER = {  # clear and deep, clear and shallow, sediment
    "clear": (
        0.038,
        0.034,
        0.024,
        0.014,
        0.006,
        0.004,
        0.003,
        0.002,
        0.001,
        0.001,
        0.0005,
        0.0005,
        0.0005,
        0.0005,
        0.0005,
    ),
    "algae": (0.020, 0.026, 0.042, 0.075, 0.055, 0.038, 0.045, 0.028, 0.018, 0.006, 0.002, 0.001, 0.001, 0.001, 0.001),
    "silt": (0.060, 0.075, 0.105, 0.150, 0.170, 0.175, 0.150, 0.085, 0.060, 0.025, 0.006, 0.003, 0.002, 0.002, 0.002),
}
_SNOW = {
    "fresh": (0.97, 0.97, 0.97, 0.965, 0.96, 0.95, 0.94, 0.93, 0.90, 0.78, 0.50, 0.15, 0.08, 0.14, 0.06),
    "ice": (0.56, 0.60, 0.60, 0.57, 0.50, 0.42, 0.34, 0.28, 0.18, 0.08, 0.03, 0.01, 0.01, 0.01, 0.01),
}
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
    """Reflectance [ROWS, C] on dry and on wet soil, bands centred on `waves` (um) with a Gaussian response,
    5 % of the wavelength wide (full width at half maximum).
    """
    grid = np.arange(0.4, 2.5005, 0.001)
    centre = np.clip(np.array(waves), grid[0], grid[-1])
    response = np.exp(-0.5 * ((grid[:, None] - centre) / (0.05 * centre / 2.355)) ** 2)
    response /= response.sum(0)
    dry, wet = (canopies @ response for canopies in _canopies())
    levels = LAI_MAX * np.linspace(0, 1, LAI_LEVELS) ** 2
    right = np.clip(np.searchsorted(_LAI_NODES, levels), 1, len(_LAI_NODES) - 1)
    nodes = np.array(_LAI_NODES)
    part = ((levels - nodes[right - 1]) / (nodes[right] - nodes[right - 1]))[:, None]
    rest = _curves(grid) @ response
    tables = []
    for nodes_seen in (dry, wet):
        fine = nodes_seen[:, :, right - 1] * (1 - part) + nodes_seen[:, :, right] * part
        tables.append(np.concatenate([fine.reshape(_FIRST_OTHER, -1), rest]).astype(np.float32))
    return tables[0], tables[1]


def _curve(points, grid):
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(_AT, points)(grid)


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
    from prosail import run_prosail  # slow to import: only where a world is observed

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
                        35.0, 5.0, 0.0, typelidf=2, rsoil0=ground,
                    )  # fmt: skip
    return out[0], out[1]


def backscatter(labels, leaf_area, wet, rough, built, frozen) -> np.ndarray:
    """Mean C-band backscatter gamma0 [2 (vv, vh), H, W] in dB before slopes and speckle.

    labels [H,W] land cover codes; leaf_area [H,W]; wet: soil moisture 0..1; rough [H,W], about zero mean, unit
    spread; built [H,W] share of buildings; frozen [H,W] share of snow. Levels after published C-band statistics.
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
