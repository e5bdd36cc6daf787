"""Principal components: ordered by variance, the same for the same vectors, and NaN where a patch was left out."""

import numpy as np
import pytest

from clay_lib import ContractError
from clay_lib.evaluation.components import fit_components, principal_components


def test_components_of_patches_are_ordered_by_variance():
    patches = np.random.default_rng(0).normal(size=(2, 3, 5, 8)) * np.array([9, 5, 3, 1, 1, 1, 1, 1])
    components = principal_components(patches)
    assert components.shape == (2, 3, 5, 3) and (np.diff(components.reshape(-1, 3).std(0)) < 0).all()
    patches[0, 1, 2:4] = np.nan  # patches left out are neither fitted nor projected
    components = principal_components(patches)
    assert np.isnan(components[0, 1, 2:4]).all() and np.isnan(components).sum() == 6
    np.testing.assert_allclose(np.delete(components.reshape(-1, 3), [7, 8], 0).mean(0), 0, atol=1e-5)


def test_components_restore_vectors_and_have_fixed_signs():
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    pca = fit_components(vectors, 6)
    np.testing.assert_allclose(pca.restore(pca(vectors)), vectors, atol=1e-5)
    assert pca.share.sum() == pytest.approx(1) and (pca.axes.max(1) == np.abs(pca.axes).max(1)).all()
    with pytest.raises(ContractError, match="1 to 6"):
        fit_components(vectors, 7)
