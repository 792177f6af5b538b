"""Every automatic guide that Pyro exports finds a known posterior, or is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer import autoguide
from tests.module.stories import Given, Mean, Pair, example, given, materialised
from tests.module.test_autoguides import local, only_global
from torch import Tensor

import pyrovi as pv
from pyrovi.errors import ModelError
from pyrovi.module import obs_plate

EXPORTED = sorted(name for name in autoguide.__all__ if name.startswith("Auto"))

flow = functools.partial(transforms.iterated, 1, transforms.affine_autoregressive, hidden_dims=[4])


def handwritten(story: Any) -> Any:
    return lambda X: pyro.sample(
        "mu", dist.Normal(*map(torch.tensor, Mean.exact_posterior(data())))
    )


def listed(story: Any) -> autoguide.AutoGuideList:
    guide = autoguide.AutoGuideList(story)
    guide.append(autoguide.AutoNormal(story))
    return guide


class Messenger(autoguide.AutoMessenger):
    def get_posterior(self, name: str, prior: Any) -> Any:
        return prior


MAKE: dict[str, Callable[[Any], Any]] = {
    "AutoIAFNormal": lambda story: autoguide.AutoIAFNormal(story, hidden_dim=[4]),
    "AutoNormalizingFlow": lambda story: autoguide.AutoNormalizingFlow(story, flow),
    "AutoCallable": lambda story: autoguide.AutoCallable(story, handwritten(story)),
    "AutoGuideList": listed,
    "AutoMessenger": Messenger,
}
REFUSED = {
    "AutoContinuous": "abstract class",
    "AutoDiscreteParallel": "discrete sites need no guide",
    "AutoGuide": "abstract class",
    "AutoHierarchicalNormalMessenger": "runs the model inside the guide",
    "AutoLaplaceApproximation": "AutoMultivariateNormal",
    "AutoMessenger": "runs the model inside the guide",
    "AutoNormalMessenger": "Use AutoNormal in the place",
    "AutoRegressiveMessenger": "runs the model inside the guide",
}


def data() -> np.ndarray:
    return np.random.default_rng(1).normal(1.0, 2.0, size=(30, 1)).astype(np.float32)


def make(name: str, story: Any) -> Any:
    return MAKE.get(name, getattr(autoguide, name))(story)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_finds_a_conjugate_posterior_or_is_refused(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]):
            materialised(only_global, make(name, only_global), n_vars=1)
        return
    model = given(data(), Pair(only_global, make(name, only_global)))
    if name != "AutoCallable":  # which has no parameters: it is the posterior
        model.train(
            max_epochs=150, batch_size=10, train_size=1.0, lr=0.03, enable_progress_bar=False,
            plan_kwargs={
                "n_epochs_kl_warmup": 0,
                "loss_fn": pyro.infer.Trace_ELBO(num_particles=4),
                "optim": pyro.optim.ExponentialLR(
                    {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.98}
                ),
            },
        )  # fmt: skip
    draws = model.sample_posterior("mu", num_samples=4_000)["mu"].values
    loc, scale = Mean.exact_posterior(data())
    assert draws.mean() == pytest.approx(loc, abs=0.2 * scale)
    if name != "AutoDelta":
        assert draws.std() == pytest.approx(scale, rel=0.3)
        assert model.get_elbo(num_samples=2_000) * 30 == pytest.approx(
            Mean.log_evidence(data()), abs=0.15
        )


class Saved(Given):
    def __init__(self, adata: Any, guide: str = "AutoStructured") -> None:
        super().__init__(adata, Pair(only_global, make(guide, only_global)))


@pytest.mark.parametrize(
    "name", ["AutoStructured", "AutoGaussian", "AutoIAFNormal", "AutoNormalizingFlow"]
)
def test_comes_back_from_a_file(name: str, tmp_path: Any) -> None:
    adata = given(data(), Pair(only_global, make("AutoNormal", only_global))).adata
    Saved.setup_anndata(adata)
    model = Saved(adata, name)
    model.train(max_epochs=3, train_size=1.0, lr=0.1, enable_progress_bar=False)
    model.save(tmp_path / "model")
    again = pv.load(tmp_path / "model", adata=adata)
    for one in ("mu",):
        first, second = (m.sample_posterior(one, num_samples=20)[one] for m in (model, again))
        np.testing.assert_array_equal(first.values, second.values)


@pytest.mark.parametrize("name", ["AutoStructured", "AutoGaussian", "AutoIAFNormal"])
def test_joint_guides_of_local_sites_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"cannot be used for the local site\(s\) 'z'"):
        materialised(local, make(name, local), n_vars=1)


def test_a_joint_guide_inside_a_guide_is_refused_for_local_sites() -> None:
    class Inner(Pair):
        def __init__(self) -> None:
            super().__init__(local)
            del self.guide
            self.part = autoguide.AutoDiagonalNormal(local)
            self.part.create_plates = lambda *_: obs_plate()
            self.guide = self.run_part

        def run_part(self, X: Tensor) -> None:
            self.part(X)

    with pytest.raises(ModelError, match="AutoDiagonalNormal cannot be used for the local"):
        Inner().materialise(example(1))


# ---------------------------------------------------------------------- supports


def triangle(X: Tensor) -> None:
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(torch.zeros(()), 1 - a))
    with obs_plate():
        pyro.sample("X", dist.Normal(a + b, 1.0).expand([1]).to_event(1), obs=X)


def reparametrised(X: Tensor) -> None:
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    u = pyro.sample("u", dist.Uniform(0.0, 1.0))
    b = pyro.deterministic("b", u * (1 - a))
    with obs_plate():
        pyro.sample("X", dist.Normal(a + b, 1.0).expand([1]).to_event(1), obs=X)


@pytest.mark.parametrize("name", ["AutoNormal", "AutoStructured", "AutoGaussian", "AutoGuideList"])
def test_a_support_that_depends_on_a_site_is_refused_under_an_automatic_guide(name: str) -> None:
    with pytest.raises(ModelError, match=r"support of site 'b' depends.*u \* \(1 - a\)"):
        materialised(triangle, make(name, triangle), n_vars=1)
    materialised(reparametrised, make(name, reparametrised), n_vars=1)


def test_a_support_that_depends_on_a_site_is_noted_for_guides_written_by_hand() -> None:
    def guide() -> None:
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        pyro.sample("b", dist.Uniform(torch.zeros(()), 1 - a))

    ledger = materialised(triangle, guide, n_vars=1).ledger
    assert ledger["b"].support_varies
    assert not ledger["a"].support_varies


def test_a_support_that_is_trained_is_refused() -> None:
    class Wide(Pair):
        def __init__(self) -> None:
            super().__init__(self.story)
            self.high = torch.nn.Parameter(torch.tensor(2.0))
            self.guide = autoguide.AutoNormal(self.story)

        def story(self, X: Tensor) -> None:
            mu = pyro.sample("mu", dist.Uniform(torch.zeros(()), self.high))
            with obs_plate():
                pyro.sample("X", dist.Normal(mu, 1.0).expand([1]).to_event(1), obs=X)

    with pytest.raises(ModelError, match="support of site 'mu' depends"):
        Wide().materialise(example(1))


def test_constant_supports_do_not_vary() -> None:
    def story(X: Tensor) -> None:
        a = pyro.sample("a", dist.Beta(torch.ones(3), 2.0).to_event(1))
        pyro.sample("b", dist.Dirichlet(a))
        pyro.sample("c", dist.LogNormal(a[0], 1.0))
        pyro.sample("e", dist.Uniform(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1))
        pyro.sample("f", dist.LKJCholesky(3, 1.0))
        with obs_plate():
            pyro.sample("X", dist.Normal(0.0, 1.0).expand([1]).to_event(1), obs=X)

    ledger = materialised(story, autoguide.AutoNormal(story), n_vars=1).ledger
    assert not any(site.support_varies for site in ledger.values())


def test_an_improper_prior_need_not_be_drawn_from() -> None:
    def story(X: Tensor) -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), (1,)))
        with obs_plate():
            pyro.sample("X", dist.Normal(mu, 1.0).to_event(1), obs=X)

    def guide() -> None:
        pyro.sample("mu", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    assert not materialised(story, guide, n_vars=1).ledger["mu"].support_varies


def test_local_sites_of_bounded_support() -> None:
    def story(X: Tensor) -> None:
        with obs_plate():
            u = pyro.sample("u", dist.Uniform(-1.0, 4.0))
            pyro.sample("X", dist.Normal(u[..., None], 0.1).to_event(1), obs=X)

    X = np.random.default_rng(0).uniform(0, 3, (20, 1)).astype(np.float32)
    model = given(X, Pair(story, autoguide.AutoNormal(story)))
    model.train(max_epochs=80, batch_size=7, train_size=1.0, lr=0.2, enable_progress_bar=False)
    u = model.sample_posterior("u", num_samples=50, reduce="mean")["u"].values
    assert u == pytest.approx(X[:, 0], abs=0.35)
