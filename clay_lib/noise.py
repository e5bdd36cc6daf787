"""Hashes and gradient noise at world coordinates: the same number at the same metre, whoever asks.

Noise has about zero mean and unit spread. An octave that a pixel cannot resolve fades out, so a fine and
a coarse sensor see one field, each as sharply as it can. On an axis-aligned grid (x [1,W], y [H,1]) an
octave is two small matrix products; any other points (x, y of one shape) are gathered one by one.
"""

from __future__ import annotations

import numpy as np

_SPREAD_2D, _SPREAD_3D = 0.235, 0.19  # standard deviation of one octave before scaling, measured


def hashed(*keys, seed: int) -> np.ndarray:
    """uint32 that looks random and depends only on the integer keys (broadcast) and the seed."""
    h = np.asarray([(seed * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF], np.uint32)
    for key in keys:
        h = (h ^ np.asarray(key).astype(np.int64).astype(np.uint32)) * np.uint32(0x9E3779B1)
        h ^= h >> np.uint32(15)
        h *= np.uint32(0x85EBCA6B)
        h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def uniform(*keys, seed: int) -> np.ndarray:
    """Float32 in [0, 1) from integer keys."""
    return (hashed(*keys, seed=seed) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def smoothstep(low, high, x):
    """0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _fade(t):
    return t * t * t * (t * (t * 6 - 15) + 10)


def fbm(x, y, wavelength: float, *, seed: int, octaves: int = 4, gain: float = 0.5, pixel: float = 0.0) -> np.ndarray:
    """Octaves of gradient noise at metres x, y, the first with features about `wavelength` long.

    pixel: ground sampling distance, m; octaves shorter than twice that fade out. -> float32.
    """
    separable = np.ndim(x) == 2 and np.shape(x)[0] == 1 and np.shape(y)[1] == 1
    power = sum(gain ** (2 * k) for k in range(octaves))
    left, right, total = [], [], np.float32(0)
    for k in range(octaves):
        length = wavelength / 1.93**k
        seen = min(1.0, length / (2 * pixel) - 1) if pixel else 1.0
        if seen <= 0:
            break
        amplitude = np.float32(seen * gain**k / (_SPREAD_2D * power**0.5))
        key = (seed * 31 + k) & 0xFFFFFFFF
        u, v = x / length + (key * 40503 & 1023) / 16, y / length + (key * 60493 & 1023) / 16
        if separable:
            i, wx, lx = _axis(u.ravel())
            j, wy, ly = _axis(v.ravel())
            gx, gy = _gradient(i[None, :], j[:, None], key)
            left += [wy, ly]
            right += [(amplitude * gx) @ lx.T, (amplitude * gy) @ wx.T]
        else:
            total = total + amplitude * _octave_points(u, v, key)
    if left:
        return np.concatenate(left, 1) @ np.concatenate(right, 0)
    return np.zeros(np.broadcast_shapes(np.shape(x), np.shape(y)), np.float32) + total


def _gradient(i, j, seed):
    """A random direction and length for every node: equal lengths would show the lattice."""
    h = hashed(i, j, seed=seed)
    angle = (h >> np.uint32(12)).astype(np.float32) * np.float32(2 * np.pi * 2**-20)
    length = (h & np.uint32(4095)).astype(np.float32) * np.float32(1.5 / 4096) + np.float32(0.25)
    return np.cos(angle) * length, np.sin(angle) * length


def _axis(t):
    """Along one axis: the lattice nodes, each point's weight of its two nodes, and weight times distance."""
    low = np.floor(t)
    f = (t - low).astype(np.float32)
    first = low.min()
    k = (low - first).astype(np.intp)
    nodes = int(k.max()) + 2
    at = k + np.arange(0, len(t) * nodes, nodes)
    w = _fade(f)
    weight, lever = np.zeros((2, len(t), nodes), np.float32)
    weight.flat[at], weight.flat[at + 1] = 1 - w, w
    lever.flat[at], lever.flat[at + 1] = (1 - w) * f, w * (f - 1)
    return np.arange(nodes) + int(first), weight, lever


def _octave_points(u, v, seed):
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    f, g = (u - i).astype(np.float32), (v - j).astype(np.float32)
    a, b = _fade(f), _fade(g)
    total = 0.0
    for di, wi in ((0, 1 - a), (1, a)):
        for dj, wj in ((0, 1 - b), (1, b)):
            gx, gy = _gradient(i + di, j + dj, seed)
            total = total + wi * wj * (gx * (f - di) + gy * (g - dj))
    return total


def sphere_noise(lat, lon, wavelength: float, *, seed: int, octaves: int = 3) -> np.ndarray:
    """Noise over the whole globe at degrees lat, lon; wavelength in km. No seam, no pole."""
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
