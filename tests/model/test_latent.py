"""Latent representations are the encoder's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from tests.module.stories import Factors, Pair, given
from tests.module.test_autoguides import local

from pyrovi.data.synthetic import synthetic_iid
from pyrovi.errors import ModelError
from pyrovi.model.latent import guide_moments
from pyrovi.model.scvi import SCVI


def scvi(**options: Any) -> SCVI:
    adata = synthetic_iid(batch_size=15, n_genes=12)
    SCVI.setup_anndata(adata, batch_key="batch")
    return SCVI(adata, n_hidden=8, n_latent=3, **options)


def encoded(model: SCVI) -> tuple[np.ndarray, np.ndarray]:
    X = torch.as_tensor(np.asarray(model.adata.X), dtype=torch.float32)
    with torch.no_grad():
        loc, scale = model.module.encoder(X.log1p())
    return loc.numpy(), scale.square().numpy()


def test_means_and_variances_are_the_encoders() -> None:
    model = scvi()
    mean, variance = encoded(model)
    found = model.get_latent_representation(return_dist=True, batch_size=7)
    np.testing.assert_allclose(found[0], mean, atol=1e-5)
    np.testing.assert_allclose(found[1], variance, rtol=1e-4)
    np.testing.assert_allclose(model.get_latent_representation(), mean, atol=1e-5)
    order = [5, 2, 20]
    np.testing.assert_allclose(
        model.get_latent_representation(indices=order), mean[order], atol=1e-5
    )


def test_a_draw_instead_of_the_mean() -> None:
    model = scvi()
    mean, variance = encoded(model)
    draw = model.get_latent_representation(give_mean=False)
    z = ((draw - mean) / np.sqrt(variance)).ravel()
    assert abs(z.mean()) < 5 / len(z) ** 0.5
    assert z.std() == pytest.approx(1, abs=5 / (2 * len(z)) ** 0.5)


def test_logistic_normal_mean_is_that_of_the_softmax() -> None:
    model = scvi(latent_distribution="ln")
    mean, variance = encoded(model)
    found = model.get_latent_representation(mc_samples=4_000)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-4)
    noise = np.random.default_rng(0).normal(size=(4_000, *mean.shape))
    exp = np.exp(mean + np.sqrt(variance) * noise)
    np.testing.assert_allclose(found, (exp / exp.sum(-1, keepdims=True)).mean(0), atol=0.03)


def test_moments_of_other_guides() -> None:
    module = Factors()
    X = module.simulate(9).astype(np.float32)
    mean, variance = guide_moments(given(X, module), "z", batch_size=4)
    loc, covariance = module.moments(torch.as_tensor(X))
    np.testing.assert_allclose(mean, loc, atol=1e-5)
    np.testing.assert_allclose(variance, covariance.diag().expand(9, 2), rtol=1e-4)
    automatic = given(X[:, :1], Pair(local, AutoNormal(local, init_scale=0.5)))
    mean, variance = guide_moments(automatic, "z")
    loc = automatic.module.guide.locs.z.detach().numpy()
    np.testing.assert_allclose(mean, loc, atol=5 * 0.5 / 1000**0.5)
    np.testing.assert_allclose(variance, 0.25, rtol=0.25)


def test_only_local_latents_have_moments() -> None:
    module = Factors()
    model = given(module.simulate(5), module)
    with pytest.raises(ModelError, match=r"'X' is no latent.*z"):
        guide_moments(model, "X")
