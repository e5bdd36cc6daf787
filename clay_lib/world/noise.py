"""Hashes and gradient noise at world coordinates: a function of place and seed alone.

Noise has about zero mean and unit variance. An octave that a pixel cannot resolve fades out, so that a fine and a
coarse sensor sample the same field at their own resolution. On an axis-aligned grid (x [1, W], y [H, 1]) an octave is
two small matrix products; any other points (x, y of one shape) are gathered one by one.
"""

from __future__ import annotations

import numpy as np

_SPREAD_2D, _SPREAD_3D = 0.235, 0.19  # standard deviation of one octave before scaling, measured
_ODD = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5, 0xB55A4F09)
_STEP = 1.93  # ratio of the wavelengths of two octaves; not 2, so that their lattices do not coincide


def hashed(*keys, seed: int) -> np.ndarray:
    """Pseudorandom uint32 from integer keys (broadcast) and the seed."""
    h = np.asarray([(seed * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF], np.uint32)
    for key, odd in zip(keys, _ODD, strict=False):
        h = h + np.asarray(key).astype(np.int64).astype(np.uint32) * np.uint32(odd)
    for shift, odd in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finalizer of MurmurHash3
        h ^= h >> np.uint32(shift)
        h *= np.uint32(odd)
    h ^= h >> np.uint32(16)
    return h


def uniform(*keys, seed: int) -> np.ndarray:
    """Float32 in [0, 1) from integer keys."""
    return (hashed(*keys, seed=seed) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def smoothstep(low, high, x):
    """0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def _fade(t):
    return t * t * t * (t * (t * 6 - 15) + 10)


def fbm(x, y, wavelength: float, *, seed: int, octaves: int = 4, gain: float = 0.5, pixel: float = 0.0) -> np.ndarray:
    """Octaves of gradient noise at x, y in meters, float32; features of the first are about `wavelength` long.

    pixel: ground sampling distance, m; octaves shorter than 5 pixels fade, shorter than 2.5 are left out.
    """
    shape = np.broadcast_shapes(np.shape(x), np.shape(y))
    k = np.arange(octaves)
    length = wavelength / _STEP**k
    amplitude = gain**k / (_SPREAD_2D * np.sqrt((gain ** (2 * k)).sum()))
    if pixel:
        amplitude = amplitude * np.clip(length / pixel / 2.5 - 1, 0, 1)
    k = k[amplitude > 0]
    if not len(k):
        return np.zeros(shape, np.float32)
    offset = uniform(k, np.array([[1], [2]]), seed=seed).astype(np.float64) * 64
    length, amplitude = length[k], amplitude[k].astype(np.float32)
    if np.ndim(x) == 2 and shape[0] == np.size(y) and shape[1] == np.size(x):
        return _on_grid(np.ravel(x), np.ravel(y), length, offset, amplitude, seed)
    total = np.zeros(shape, np.float32)
    for n in k:
        total += amplitude[n] * _at_points(x / length[n] + offset[0, n], y / length[n] + offset[1, n], n, seed)
    return total


def _gradient(i, j, octave, seed):
    """A random direction and length for every node; with equal lengths the lattice would be visible."""
    h = hashed(i, j, octave, seed=seed)
    angle = (h >> np.uint32(12)).astype(np.float32) * np.float32(2 * np.pi * 2**-20)
    length = (h & np.uint32(4095)).astype(np.float32) * np.float32(1.5 / 4096) + np.float32(0.25)
    return np.cos(angle) * length, np.sin(angle) * length


def _on_grid(x, y, length, offset, amplitude, seed):
    """All octaves on the grid y x x as one matrix product: weights along y, times gradients, times weights along x."""
    i, count_i, wx, lx = _axes(x, length, offset[0])
    j, count_j, wy, ly = _axes(y, length, offset[1])
    rows, columns = np.cumsum(count_j), np.cumsum(count_i)
    blocks = [(slice(r - m, r), slice(c - n, c)) for r, m, c, n in zip(rows, count_j, columns, count_i, strict=True)]
    octave = np.repeat(np.arange(len(length)), count_j * count_i)
    gx, gy = _gradient(np.concatenate([np.tile(i[c], m) for (_, c), m in zip(blocks, count_j, strict=True)]),
                       np.concatenate([np.repeat(j[r], n) for (r, _), n in zip(blocks, count_i, strict=True)]), octave, seed)  # fmt: skip
    gx, gy, at = gx * amplitude[octave], gy * amplitude[octave], 0
    right = np.empty((2, len(j), len(x)), np.float32)
    for (r, c), m, n in zip(blocks, count_j, count_i, strict=True):
        right[0, r] = gx[at : at + m * n].reshape(m, n) @ lx[c]
        right[1, r] = gy[at : at + m * n].reshape(m, n) @ wx[c]
        at += m * n
    return np.concatenate([wy, ly]).T @ right.reshape(-1, len(x))


def _axes(t, length, offset):
    """Lattices of all octaves along one axis t [n]: node numbers [M], counts by octave [K], and for each
    point [M, n] the weights of its two nodes and weights times distances."""
    u = t / length[:, None] + offset[:, None]
    low = np.floor(u)
    f = (u - low).astype(np.float32)
    start = low.min(1)
    k = (low - start[:, None]).astype(np.intp)
    counts = k.max(1) + 2
    first = np.cumsum(counts) - counts
    nodes = np.arange(counts.sum()) + np.repeat(start.astype(np.int64) - first, counts)
    at, w = (k + first[:, None]) * len(t) + np.arange(len(t)), _fade(f)
    weight, lever = np.zeros((2, len(nodes) * len(t)), np.float32)
    weight[at], weight[at + len(t)] = 1 - w, w
    lever[at], lever[at + len(t)] = (1 - w) * f, w * (f - 1)
    return nodes, counts, weight.reshape(-1, len(t)), lever.reshape(-1, len(t))


def _at_points(u, v, octave, seed):
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    f, g = (u - i).astype(np.float32), (v - j).astype(np.float32)
    a, b = _fade(f), _fade(g)
    total = 0.0
    for di, wi in ((0, 1 - a), (1, a)):
        for dj, wj in ((0, 1 - b), (1, b)):
            gx, gy = _gradient(i + di, j + dj, octave, seed)
            total = total + wi * wj * (gx * (f - di) + gy * (g - dj))
    return total


def sphere_noise(lat, lon, wavelength: float, *, seed: int, octaves: int = 3) -> np.ndarray:
    """Noise on the sphere at degrees lat, lon, without seams; wavelength: km."""
    lat, lon = np.broadcast_arrays(np.radians(lat), np.radians(lon))
    point = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]) * 6371.0
    corner = np.array(list(np.ndindex(2, 2, 2))).reshape(8, 3, *[1] * lat.ndim)
    total = 0.0
    for k in range(octaves):
        p = point / (wavelength / 2**k) + 100.0
        low = np.floor(p)
        f = p - low
        node = low.astype(np.int64) + corner
        z = 2 * uniform(*np.moveaxis(node, 1, 0), 1, seed=seed + k) - 1
        angle = 2 * np.pi * uniform(*np.moveaxis(node, 1, 0), 2, seed=seed + k)
        flat = np.sqrt(1 - z * z)
        away, w = f - corner, _fade(f)
        dot = flat * np.cos(angle) * away[:, 0] + flat * np.sin(angle) * away[:, 1] + z * away[:, 2]
        total = total + 0.5**k * (np.where(corner == 1, w, 1 - w).prod(1) * dot).sum(0)
    return (total / (_SPREAD_3D * sum(0.25**k for k in range(octaves)) ** 0.5)).astype(np.float32)
