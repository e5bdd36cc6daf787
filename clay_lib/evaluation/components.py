"""Principal components of embeddings, to shrink them or to show them in color."""

from dataclasses import dataclass

import numpy as np
from einops import rearrange

from clay_lib.errors import ContractError


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components. mean [D], axes [n, D], share [n]: explained part of the variance, all float32."""

    mean: np.ndarray
    axes: np.ndarray
    share: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """[..., D] -> [..., n]."""
        return (vectors - self.mean) @ self.axes.T

    def restore(self, values: np.ndarray) -> np.ndarray:
        """[..., n] -> [..., D]."""
        return values @ self.axes + self.mean


def fit_components(vectors: np.ndarray, count: int) -> Components:
    """The first principal components of vectors [M, D]; the largest entry of each axis is positive."""
    from sklearn.decomposition import PCA

    if not 1 <= count <= min(vectors.shape):
        expected = f"1 to {min(vectors.shape)}, for {len(vectors)} vectors [{vectors.shape[1]}]"
        raise ContractError("components", count, expected, "more components than numbers in a vector, or than vectors")
    fitted = PCA(count, svd_solver="full").fit(np.asarray(vectors, np.float64))
    axes = fitted.components_
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    return Components(*(np.asarray(v, np.float32) for v in (fitted.mean_, axes, fitted.explained_variance_ratio_)))


def principal_components(patches: np.ndarray, count: int = 3) -> np.ndarray:
    """Patch embeddings [B, h, w, D] -> their first components over all patches together, [B, h, w, count].

    Patches that were left out are NaN before and after.
    """
    flat = rearrange(np.asarray(patches), "B h w D -> (B h w) D")
    return fit_components(flat[np.isfinite(flat).all(axis=1)], count)(np.asarray(patches))
