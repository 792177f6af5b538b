from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp
from tests.model.planted import planted_adata, planted_model

from pyrovi.errors import MissingKeyError, ModelError


@pytest.fixture(scope="module")
def model():
    return planted_model(planted_adata(n=40)[0])


@pytest.mark.parametrize("dof", [None, 3.0])
def test_densities_are_those_of_the_mixture(model, dof):
    mean, variance = model.get_latent_representation(return_dist=True)
    table = model.differential_abundance(sample_key="group", dof=dof)
    assert table.columns.tolist() == ["a", "b"]
    assert table.index.tolist() == list(model.adata.obs_names)
    cells = np.flatnonzero(model.adata.obs["group"] == "b")
    component = stats.norm if dof is None else stats.t(dof)
    scale = np.sqrt(variance[cells])
    terms = component.logpdf((mean[:, None] - mean[cells]) / scale) - np.log(scale)
    exact = logsumexp(terms.sum(-1), axis=1) - np.log(len(cells))
    np.testing.assert_allclose(table["b"], exact, rtol=1e-4, atol=1e-4)


def test_aggregated_posterior_is_the_average_of_the_draws(model):
    mixture = model.get_aggregated_posterior(indices=[0, 3, 5], dof=None)
    draws = model.sample_posterior("z", indices=[0, 3, 5], num_samples=3000)["z"].values
    np.testing.assert_allclose(mixture.mean, draws.mean((0, 1)), atol=0.1)
    np.testing.assert_allclose(mixture.variance, draws.reshape(-1, 3).var(0), rtol=0.1)


def test_fewer_cells_are_a_repeatable_choice(model):
    options = {"sample_key": "group", "num_cells_posterior": 5}
    first = model.differential_abundance(**options)
    assert first.equals(model.differential_abundance(**options))
    assert not first.equals(model.differential_abundance(sample_key="group"))


def test_wrong_options_are_refused(model):
    with pytest.raises(MissingKeyError, match="sample_key=None"):
        model.differential_abundance()
    with pytest.raises(ModelError, match="at least 1"):
        model.differential_abundance(sample_key="group", num_cells_posterior=0)
    with pytest.raises(ModelError, match="dof must be positive"):
        model.get_aggregated_posterior(dof=0)
