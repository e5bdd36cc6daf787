"""Hashes and gradient noise at world coordinates: the same number at the same metre, whoever asks.

Noise has about zero mean and unit spread. An octave that a pixel cannot resolve fades out, so a fine and
a coarse sensor see one field, each as sharply as it can. On an axis-aligned grid (x [1,W], y [H,1]) an
octave is two small matrix products; any other points (x, y of one shape) are gathered one by one.
"""

from __future__ import annotations

import numpy as np

_SPREAD_2D, _SPREAD_3D = 0.216, 0.187  # standard deviation of one octave before scaling, measured


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

    pixel: ground sampling distance, m; octaves shorter than twice that are left out. -> float32.
    """
    total, power = 0.0, sum(gain ** (2 * k) for k in range(octaves))
    shape = np.broadcast_shapes(np.shape(x), np.shape(y))
    separable = np.ndim(x) == 2 and np.shape(x)[0] == 1 and np.shape(y)[1] == 1
    for k in range(octaves):
        length = wavelength / 2**k
        seen = min(1.0, length / (2 * pixel) - 1) if pixel else 1.0
        if seen <= 0:
            break
        offset = uniform(np.arange(2), seed=seed * 31 + k)
        u, v = x / length + float(offset[0]) * 64, y / length + float(offset[1]) * 64
        total = total + seen * gain**k * (_octave_grid if separable else _octave_points)(u, v, seed * 31 + k)
    if np.isscalar(total):
        return np.zeros(shape, np.float32)
    return total * np.float32(1 / (_SPREAD_2D * power**0.5))


def _gradient(i, j, seed):
    angle = uniform(i, j, seed=seed) * np.float32(2 * np.pi)
    return np.cos(angle), np.sin(angle)


def _octave_grid(u, v, seed):
    def axis(t):  # weights of the nodes, and weights times distance: both [n, nodes]
        t = np.ravel(t)
        low = np.floor(t).astype(np.int64)
        first, n = low.min(), np.arange(len(t))
        weight = np.zeros((len(t), low.max() - first + 2), np.float32)
        lever = np.zeros_like(weight)
        f = (t - low).astype(np.float32)
        w = _fade(f)
        for step, part in ((0, 1 - w), (1, w)):
            weight[n, low - first + step] = part
            lever[n, low - first + step] = part * (f - step)
        return first + np.arange(weight.shape[1]), weight, lever

    i, wx, lx = axis(u)
    j, wy, ly = axis(v)
    gx, gy = _gradient(i[None, :], j[:, None], seed)
    return wy @ (gx @ lx.T) + ly @ (gy @ wx.T)


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
    lat, lon = np.radians(np.asarray(lat, float)), np.radians(np.asarray(lon, float))
    point = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]) * 6371.0
    total = 0.0
    for k in range(octaves):
        p = point / (wavelength / 2**k) + 100.0
        low = np.floor(p)
        f, low = p - low, low.astype(np.int64)
        w = _fade(f)
        for corner in np.ndindex(2, 2, 2):
            node = [low[n] + corner[n] for n in range(3)]
            z = 2 * uniform(*node, 1, seed=seed + k) - 1
            angle = 2 * np.pi * uniform(*node, 2, seed=seed + k)
            flat = np.sqrt(np.maximum(0, 1 - z * z))
            dot = flat * np.cos(angle) * (f[0] - corner[0]) + flat * np.sin(angle) * (f[1] - corner[1]) + z * (f[2] - corner[2])
            weight = 1.0
            for n in range(3):
                weight = weight * (w[n] if corner[n] else 1 - w[n])
            total = total + 0.5**k * weight * dot
    return (total / (_SPREAD_3D * sum(0.25**k for k in range(octaves)) ** 0.5)).astype(np.float32)
