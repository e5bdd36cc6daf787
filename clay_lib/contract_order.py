"""Are the bands in the order they are named in? The spectra of land, water, snow and cloud tell.

Each pixel's spectrum is held against mixtures of a few materials at the named wavelengths. Where it fits badly, and
another order of the same bands fits far better, the names are wrong. Three visible bands alone hold too little for
that: there only red and blue are told apart, by what is bright and what varies.

Thresholds: chosen so that no right image alarms, of 11 satellite and aerial files, 500 aerial pictures and 900 chips of
the mini-world. The price: a wrong order goes unnoticed over water, cloud or grey towns, BGR in most aerial pictures.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np

SPECTRA = 128  # pixels held against the materials
CAMERA_GAMMA = 1.4  # 8-bit cameras: reflectance is about 0.6 (x / 255) ** 1.4
FIT, GAIN = 0.6, 0.03  # another order must fit this many times better, and by so many radians
CAMERA_FIT, CAMERA_GAIN = 0.5, 0.05  # stretched by hand, so with more room

_AT = (0.44, 0.49, 0.56, 0.665, 0.705, 0.74, 0.78, 0.865, 1.24, 1.61, 2.2)  # um
_MATERIALS = {  # reflectance in per cent at _AT, round numbers after published spectral libraries
    "leaves": (2, 2.5, 6, 2.5, 9, 25, 38, 45, 42, 20, 9),
    "grass": (4, 5, 10, 7, 14, 24, 32, 38, 40, 28, 15),
    "needles": (1.5, 2, 3.5, 2.2, 5, 13, 20, 24, 20, 11, 4.5),
    "straw": (6, 8, 14, 20, 24, 27, 29, 33, 42, 42, 30),
    "red soil": (5, 7, 11, 18, 20, 22, 24, 27, 36, 42, 36),
    "sand": (12, 16, 23, 32, 34, 36, 38, 41, 48, 53, 47),
    "dark soil": (3.5, 4.5, 6, 8.5, 10, 11, 12, 15, 22, 28, 24),
    "concrete": (14, 17, 20, 22, 22.5, 23, 23.5, 24, 26, 28, 26),
    "clear water": (5, 4.5, 3.5, 1.2, 0.8, 0.6, 0.5, 0.4, 0.1, 0.1, 0.1),
    "green water": (3, 4, 7, 3.5, 2.5, 1.5, 1.2, 0.8, 0.2, 0.1, 0.1),
    "silty water": (6, 8, 12, 14, 12, 8, 7, 5, 1, 0.6, 0.5),
    "snow": (95, 95, 95, 93, 92, 91, 90, 86, 55, 12, 10),
    "cloud": (55, 55, 55, 56, 56, 56, 56, 57, 55, 45, 35),
}


def better_order(reflectance: np.ndarray, waves: np.ndarray, *, top: bool, camera: bool) -> list[int] | None:
    """Where in [C, N] the band of each of the waves [C] (um) seems to lie, or None: the order as named is credible.

    top: seen through the whole atmosphere, so with blue haze. camera: the numbers are a stretched picture's.
    """
    fit, gain = (CAMERA_FIT, CAMERA_GAIN) if camera else (FIT, GAIN)
    seen = _unit(reflectance[:, :: max(1, reflectance.shape[1] // SPECTRA)].T)
    library = _library(tuple(np.round(waves.tolist(), 3)), top)
    named = _misfit(seen, library)
    if named < gain:
        return None
    orders = _orders(waves)
    few = seen[::8][:, np.array(orders)]  # [n, orders, C]
    best = orders[int(_angles(few, library).mean(0).argmin())]
    other = _misfit(seen[:, best], library)
    return best if other < fit * named and named - other > gain else None


def red_is_blue(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> bool:
    """Whether "red" behaves as blue does. Each [N], 0 to 255 as a picture would show it.

    On land what is bright is warm (soil, roofs, sand) and red varies more than blue, which haze fills up. All three
    signs must be plainly the other way round, and the bright not green: leaves say nothing of red and blue.
    """
    light = (red + green + blue) / 3
    bright = light >= np.percentile(light, 80)
    if np.ptp(np.percentile(green, (5, 95))) < 20:
        return False
    warmth = np.log((np.median(red[bright]) + 8) / (np.median(blue[bright]) + 8))
    slope = np.mean((light - light.mean()) * (red - blue)) / light.var()
    spread = np.log((np.ptp(np.percentile(red, (5, 95))) + 8) / (np.ptp(np.percentile(blue, (5, 95))) + 8))
    green_most = np.median(green[bright]) >= np.median(blue[bright])
    return bool(not green_most and warmth < -0.07 and slope < -0.07 and spread < -0.11)


def _orders(waves: np.ndarray) -> list[list[int]]:
    """The slips people make: reversed, sorted by wavelength, one too far, two exchanged."""
    own = list(range(len(waves)))
    slips = [own[::-1], np.argsort(waves).tolist(), np.argsort(np.argsort(waves)).tolist()]
    slips += [own[1:] + own[:1], own[-1:] + own[:-1]]
    for i, j in combinations(own, 2):
        swapped = own.copy()
        swapped[i], swapped[j] = j, i
        slips.append(swapped)
    return [order for n, order in enumerate(slips) if order != own and order not in slips[:n]]


def _misfit(seen: np.ndarray, library: np.ndarray) -> float:
    return float(_angles(seen, library).mean())


def _angles(seen: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Radians [...] between unit spectra [..., C] and the nearest of the library [M, C]."""
    return np.arccos(np.clip((seen @ library.T).max(-1), -1, 1))


def _unit(spectra: np.ndarray) -> np.ndarray:
    root = np.sqrt(np.clip(spectra, 1e-3, None)).astype(np.float32)  # so that dark bands count too
    return root / np.linalg.norm(root, axis=1, keepdims=True)


@lru_cache(maxsize=16)
def _library(waves: tuple[float, ...], top: bool) -> np.ndarray:
    """Unit vectors [M, C]: mixtures of two materials under three strengths of haze."""
    pure = np.array([np.interp(waves, _AT, np.array(row) / 100) for row in _MATERIALS.values()])
    i, j = np.array([*combinations(range(len(pure)), 2)]).T
    share = np.linspace(0.2, 0.8, 4)[:, None, None]
    mixed = np.concatenate([pure, (share * pure[i] + (1 - share) * pure[j]).reshape(-1, len(waves))])
    haze = 0.02 * (np.array(waves) / 0.5) ** -4.0
    return np.concatenate([_unit(mixed * (1 - 0.05 * h) + h * haze) for h in ((2, 4, 6) if top else (0, 1, 3))])
