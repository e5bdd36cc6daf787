"""Compression: embeddings in fewer bytes, and what is left of them.

    small = shrink(vectors, "PCA-64 int8", fit_on=train_vectors)
    small.vectors, small.bytes                     # what a reader gets back, and what a vector takes on disk

Forms: float32, float16, int8 (one scale a vector), PCA-K (the first K principal components, float32), PCA-K float16
and PCA-K int8. The components themselves are stored once for all vectors and are not counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from clay_lib.contract import ContractError
from clay_lib.vectors import to_int8

NUMBERS = {"float32": 4, "float16": 2, "int8": 1}  # bytes of one number
SCALE = 4  # bytes: int8 keeps one float32 a vector


@dataclass(frozen=True, eq=False)
class Shrunk:
    """Vectors as they come back from a form."""

    form: str
    vectors: np.ndarray  # [N, D] float32, multiplied out
    bytes: int  # a vector


def shrink(vectors: np.ndarray, form: str, *, fit_on: np.ndarray | None = None) -> Shrunk:
    """[N, D] -> the vectors that a reader of this form gets, multiplied out to D numbers again.

    Multiplied out, since a probe that standardises the components themselves would make the weakest, which are noise,
    as loud as the strongest. Distances are the same either way.

    fit_on: [M, D], vectors that choose the principal components; by default `vectors`. They need no labels, but fit
    them on training vectors where a score is to be told.
    """
    found = re.fullmatch(r"(?:PCA-(\d+))? ?(float32|float16|int8)?", form)
    vectors = np.asarray(vectors, np.float32)
    dim = int(found[1]) if found and found[1] else vectors.shape[1]
    most = min(vectors.shape[1], len(vectors if fit_on is None else fit_on))  # there are no more components
    if not form or not found or (found[1] and not 1 <= dim <= most):
        expected = f"float32, float16, int8, PCA-K, PCA-K float16 or PCA-K int8 with K up to {most}"
        raise ContractError("form", found=form, expected=expected, cause="more components than numbers or vectors")
    kind, axes = found[2] or "float32", None
    if found[1]:
        mean, axes = principal_axes(vectors if fit_on is None else fit_on, dim)
        vectors = (vectors - mean) @ axes.T
    back = from_int8(*to_int8(vectors)) if kind == "int8" else vectors.astype(kind).astype(np.float32)
    size = dim * NUMBERS[kind] + (SCALE if kind == "int8" else 0)
    return Shrunk(form, back if axes is None else back @ axes + mean, size)


def from_int8(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 [N, D] and scale [N], as `vectors.to_int8` made them -> float32 [N, D]."""
    return values.astype(np.float32) * np.asarray(scale, np.float32)[:, None]


def principal_axes(vectors: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and the first `dim` principal axes [dim, D] of vectors [M, D], float32; signs are fixed."""
    from sklearn.decomposition import PCA

    fitted = PCA(dim, svd_solver="full").fit(np.asarray(vectors, np.float64))
    return fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32)


def neighbours_kept(vectors: np.ndarray, small: np.ndarray, *, k: int = 10) -> np.ndarray:
    """[N] share of each vector's k nearest others, by cosine, that are among its k nearest after shrinking as well."""
    a, b = (_nearest(x, k) for x in (vectors, small))
    return (a[:, :, None] == b[:, None]).any(2).mean(1)


def _nearest(x: np.ndarray, k: int) -> np.ndarray:
    if not 1 <= k < len(x):
        raise ContractError("k", found=k, expected=f"1 to {len(x) - 1}", cause="fewer vectors than neighbours")
    x = np.asarray(x, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    like = x @ x.T
    np.fill_diagonal(like, -np.inf)
    return np.argsort(-like, axis=1, kind="stable")[:, :k]
