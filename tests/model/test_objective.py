"""get_elbo is the bound that training maximises; the history records its negative."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from tests.module.stories import Pair, given
from torch import Tensor

from pyrovi.errors import ModelError
from pyrovi.module import obs_plate

X = np.random.default_rng(0).normal(3.0, 1.0, size=(20, 4)).astype(np.float32)
OPTIONS: dict[str, Any] = {
    "train_size": 1.0,
    "lr": 1e-12,
    "batch_size": 20,
    "enable_progress_bar": False,
    "accelerator": "cpu",
}


class Fixed(Pair):
    """A guide of points, so that the bound has no noise; ``mean_field`` for closed-form KL."""

    def __init__(self, model: Any, guide: Any = None, mean_field: bool = False) -> None:
        super().__init__(model, guide or self._points)
        self.p = torch.nn.Parameter(torch.tensor(0.7))
        self.mean_field = mean_field

    def _points(self, X: Tensor) -> None:
        pyro.sample("w", dist.Delta(self.p))
        with obs_plate():
            pyro.sample("z", dist.Delta(X.mean(1) * self.p))

    def default_elbo(self) -> Any:
        return TraceMeanField_ELBO() if self.mean_field else super().default_elbo()


def story(
    extra: Callable[..., None] = lambda *_: None, mask: Any = None, scale: float = 1.0
) -> Any:
    def model(X: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with obs_plate():
            with poutine.mask(mask=True if mask is None else mask(X)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=scale):
                loc = (z + w)[:, None].expand(X.shape)
                pyro.sample("X", dist.Normal(loc, 1.0).to_event(1), obs=X)
        extra(X, w, z)

    return model


def factors(X: Tensor, w: Tensor, z: Tensor) -> None:
    pyro.factor("outside", -600 * w)
    with obs_plate():
        pyro.factor("inside", -z.square())


def anchor(X: Tensor, w: Tensor, z: Tensor) -> None:
    pyro.sample("anchor", dist.Normal(w, 0.1), obs=torch.tensor(2.0))


STORIES = {
    "plain": story(),
    "factors": story(factors),
    "observed outside": story(anchor),
    "masked latent": story(mask=lambda X: X[:, 0] > 3),
    "scaled likelihood": story(scale=0.1),
}


def trained(model: Any, **options: Any) -> tuple[Any, float]:
    fitted = given(X, model)
    fitted.train(1, plan_kwargs={"n_epochs_kl_warmup": 0}, **{**OPTIONS, **options})
    return fitted, -fitted.history["elbo_train"].iloc[-1].item()


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("batch_size", [6, 20])
def test_it_is_the_negative_of_the_history(name: str, batch_size: int) -> None:
    model, recorded = trained(Fixed(STORIES[name]))
    found = model.get_elbo(num_samples=2, batch_size=batch_size)
    assert found == pytest.approx(recorded, rel=1e-5)


def normals(X: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.7, 0.5))
    with obs_plate():
        pyro.sample("z", dist.Normal(X.mean(1), 0.5))


def test_closed_forms_are_taken_where_training_takes_them() -> None:
    masked = STORIES["masked latent"]

    def kl(mean_field: bool) -> np.ndarray:
        model = given(X, Fixed(masked, normals, mean_field))
        parts = [model.get_elbo(num_samples=9_000, return_mean=False)]
        parts.append(
            -model.get_reconstruction_error(num_samples=9_000, return_mean=False)[
                "reconstruction_loss"
            ]
        )
        return parts[1] - parts[0]

    # TraceMeanField_ELBO weighs the KL by the mask of the guide (none); Trace_ELBO masks the prior
    loc, sd = X.mean(1), 0.5
    exact = -np.log(sd) + (sd**2 + loc**2 - 1) / 2
    np.testing.assert_allclose(kl(True), exact, rtol=1e-4)
    negative_entropy = -0.5 * np.log(2 * np.pi * np.e * sd**2)
    np.testing.assert_allclose(kl(False), np.where(X[:, 0] > 3, exact, negative_entropy), atol=0.15)


def test_marginal_likelihood_is_masked_but_not_scaled() -> None:
    plain = given(X, Fixed(STORIES["plain"])).get_marginal_ll(n_mc_samples=2)
    scaled = given(X, Fixed(STORIES["scaled likelihood"])).get_marginal_ll(n_mc_samples=2)
    masked = given(X, Fixed(STORIES["masked latent"])).get_marginal_ll(n_mc_samples=2)
    assert scaled == pytest.approx(plain, rel=1e-6)
    assert masked > plain + 0.1


def test_scales_and_enumerated_sites() -> None:
    @pyro.infer.config_enumerate
    def model(X: Tensor) -> None:
        with obs_plate(), poutine.scale(scale=0.3):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))
            loc = torch.tensor([0.0, 4.0])[k]
            pyro.sample("X", dist.Normal(loc, 1.0), obs=X[:, 0])

    class Kept(Pair):
        def __init__(self) -> None:
            super().__init__(model)
            self.p = torch.nn.Parameter(torch.tensor(0.0))

    fitted = given(X, Kept())
    recorded = fitted.module.default_elbo().loss(
        fitted.module.run_model, fitted.module.run_guide, next(iter(fitted.loader()[2](20)))
    )
    assert fitted.get_elbo(num_samples=2, batch_size=6) == pytest.approx(-recorded / 20, rel=1e-5)
    assert set(fitted.sample_posterior(num_samples=3)) == {"k"}


def test_factors_have_a_role_of_their_own_and_no_value() -> None:
    model = given(X, Fixed(STORIES["factors"]))
    assert model.sites["inside"].role == model.sites["outside"].role == "factor"
    assert set(model.posterior_predictive(num_samples=2)) == {"X"}
    assert set(model.log_likelihood(num_samples=2)) == {"X"}
    for query in (model.sample_prior, partial(model.to_arviz, groups=["prior_predictive"])):
        with pytest.raises(ModelError, match=r"'outside' \(pyro\.factor\) .* part of the prior"):
            query(num_samples=2)
    model.to_arviz(num_samples=2, groups=["posterior"])
    with pytest.raises(ModelError, match=r"'inside' is a pyro\.factor term"):
        model.sample_posterior("inside")


def test_log_likelihood_is_of_observed_sites_per_observation() -> None:
    model = given(X, Fixed(STORIES["observed outside"]))
    assert set(model.log_likelihood(num_samples=2)) == {"X"}

    def only_factor(X: Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("f", -((z - X[:, 0]) ** 2))

    def guide(X: Tensor) -> None:
        with obs_plate():
            pyro.sample("z", dist.Normal(X[:, 0], 1.0))

    model = given(X, Pair(only_factor, guide))
    with pytest.raises(ModelError, match="no observed site with a value per observation"):
        model.log_likelihood(num_samples=2)
    model.to_arviz(num_samples=2)
