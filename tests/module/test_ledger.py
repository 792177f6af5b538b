"""The site ledger knows every site, and refuses what Pyro would get silently wrong."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from anndata import AnnData
from pyro import poutine
from tests.module.stories import materialised
from torch import Tensor

from pyrovi.distributions import TruncatedNormal
from pyrovi.errors import ModelError
from pyrovi.module import PyroBaseModule, Role, obs_plate, plate


def many_sites(X: Tensor) -> None:
    with plate("factor", 2, dim=-2), plate("var", 3, dim=-1):
        W = pyro.sample("W", dist.Gamma(1.0, 1.0))
    pyro.deterministic("norm", W.square().sum().sqrt())
    pyro.sample("corr", dist.Dirichlet(torch.ones(4)))
    with obs_plate():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        rate = pyro.deterministic("rate", (z @ W).exp(), event_dim=1)
        pyro.deterministic("undeclared", rate * 2)
        pyro.deterministic("total", rate.sum(-1))
        pyro.sample("X", dist.Poisson(rate + c[..., None]).to_event(1), obs=X)


def guide_of_many(X: Tensor) -> None:
    with plate("factor", 2, dim=-2), plate("var", 3, dim=-1):
        pyro.sample("W", dist.Gamma(1.0, 1.0))
    pyro.sample("corr", dist.Dirichlet(torch.ones(4)))
    with obs_plate():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_roles_plates_dims_and_shapes() -> None:
    dims = {"z": ("latent",), "X": ("var",), "rate": ("var",)}
    ledger = materialised(many_sites, guide_of_many, site_dims=dims).ledger
    found = {n: (s.role, s.plates, s.dims, s.shape, s.event_dim) for n, s in ledger.items()}
    obs = ("obs",)
    assert found == {
        "W": (Role.GLOBAL, ("factor", "var"), ("factor", "var"), (2, 3), 0),
        "norm": (Role.DETERMINISTIC, (), (), (), 0),
        "corr": (Role.GLOBAL, (), ("corr_dim_0",), (4,), 1),
        "z": (Role.LOCAL, obs, ("obs", "latent"), ("obs", 2), 1),
        "c": (Role.ENUMERATED, obs, ("obs",), ("obs",), 0),
        "rate": (Role.DETERMINISTIC, obs, ("obs", "var"), ("obs", 3), 1),
        "undeclared": (Role.DETERMINISTIC, obs, ("obs", "undeclared_dim_0"), ("obs", 3), 1),
        "total": (Role.DETERMINISTIC, obs, ("obs",), ("obs",), 0),
        "X": (Role.OBSERVED, obs, ("obs", "var"), ("obs", 3), 1),
    }
    assert ledger["X"].obs_axis == -2
    assert ledger["corr"].obs_axis is None
    assert ledger.max_plate_nesting == 2
    assert repr(ledger).split("\n")[1].split()[:2] == ["W", "global"]
    assert [n for n in ledger if ledger[n].is_latent] == ["W", "corr", "z", "c"]


def test_supports_are_told_without_the_data() -> None:
    def story(X: Tensor) -> None:
        wide = pyro.sample(
            "wide", dist.Uniform(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1)
        )
        pyro.sample("cut", TruncatedNormal(torch.tensor(0.0), 1.0, 0.25))
        with obs_plate():
            trials = X.sum(-1) + 2
            pyro.sample("k", dist.Binomial(trials, wide[0] / 2), obs=X[..., 0].clamp(0, 2).round())
            pyro.sample("c", dist.Categorical(torch.ones(3)), obs=torch.zeros_like(trials))

    def guide(X: Tensor) -> None:
        pyro.sample("wide", dist.Uniform(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1))
        pyro.sample("cut", TruncatedNormal(torch.tensor(0.0), 1.0, 0.25))

    told = materialised(story, guide).ledger.to_frame()["support"].to_dict()
    integers = {"k": "integers from 0 to n", "c": "integers from 0 to 2"}
    assert told == {"wide": "(low, high)", "cut": "> 0.25", **integers}


def test_crossed_plates_and_broadcast_dimensions() -> None:
    def model(X: Tensor) -> None:
        with obs_plate(dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with plate("var", 3, dim=-1):
                pyro.sample("X", dist.Normal(a, 1.0), obs=X)

    def guide(X: Tensor) -> None:
        with obs_plate(dim=-2):
            pyro.sample("a", dist.Normal(0.0, 1.0))

    ledger = materialised(model, guide).ledger
    assert ledger["a"].dims == ("obs", None)
    assert ledger["a"].shape == ("obs", 1)
    assert ledger["X"].dims == ("obs", "var")
    assert ledger["X"].plates == ("obs", "var")


def test_event_dims_of_infer_name_dimensions() -> None:
    def model(X: Tensor) -> None:
        with obs_plate():
            fn = dist.Normal(torch.zeros(3), 1.0).to_event(1)
            pyro.sample("X", fn, obs=X, infer={"event_dims": ["var"]})

    assert materialised(model).ledger["X"].dims == ("obs", "var")


def test_unknown_site_and_resolution() -> None:
    ledger = materialised(many_sites, guide_of_many).ledger
    assert ledger.resolve(None, Role.GLOBAL) == ["W", "corr"]
    assert ledger.resolve("z") == ["z"]
    with pytest.raises(ModelError, match=r"sites is a AnnData.*by name: adata="):
        ledger.resolve(AnnData())  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"no site 'y'.*W, norm"):
        ledger["y"]


def outside(X: Tensor) -> None:
    pyro.sample("X", dist.Normal(0.0, 1.0).expand([len(X), 3]).to_event(2), obs=X)


def latent_outside(X: Tensor) -> None:
    pyro.sample("z", dist.Normal(torch.zeros(len(X)), 1.0).to_event(1))


def deterministic_outside(X: Tensor) -> None:
    pyro.deterministic("d", X[:, 0])


def factor_outside(X: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("likelihood", dist.Normal(mu, 1.0).log_prob(X).sum())


def observed_outside(X: Tensor) -> None:
    pyro.sample("total", dist.Poisson(4.0), obs=X.sum())


def foreign_plate(X: Tensor) -> None:
    with pyro.plate("others", 100, subsample_size=5, dim=-1):
        pyro.sample("w", dist.Normal(0.0, 1.0))


def missing_event(X: Tensor) -> None:
    with obs_plate():
        pyro.sample("Y", dist.Normal(torch.zeros(len(X), 1), 1.0))


def squeezed(X: Tensor) -> None:
    with obs_plate():
        pyro.deterministic("d", X[0] if len(X) == 2 else X)


def global_param(X: Tensor) -> None:
    pyro.param("theta", torch.tensor(1.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (outside, "'X' has one value per observation .* not inside the observation plate"),
        (latent_outside, "'z' has one value per observation .* not inside the observation plate"),
        (deterministic_outside, r"deterministic site 'd' .* other minibatches. Put the statement"),
        (factor_outside, "log density of 'likelihood' depends on the observations .* inside"),
        (observed_outside, "log density of 'total' depends on the observations .* inside"),
        (foreign_plate, r"'w' stands in the subsampled plate 'others' \(5 of 100\)"),
        (missing_event, "'Y' has more than one axis of the minibatch's size"),
        (squeezed, "'d' changes its number of dimensions"),
        (global_param, r"pyro.param\('theta'.*self.theta = PyroParam"),
    ],
)
def test_models_that_would_be_silently_wrong(model: Any, message: str) -> None:
    guide = (lambda: pyro.sample("mu", dist.Normal(0.0, 1.0))) if model is factor_outside else None
    with pytest.raises(ModelError, match=message):
        materialised(model, guide)
    assert not list(pyro.get_param_store())


def test_terms_of_global_sites_may_stand_outside_the_plate() -> None:
    """Their densities differ between draws, but not with the number of observations."""

    def model(X: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("ridge", -mu.square())
        pyro.sample("known", dist.Normal(mu, 1.0), obs=torch.tensor(0.5))
        pyro.factor("scaled", 10 * dist.Normal(mu, 1.0).log_prob(X[:, 0]).mean())
        with obs_plate():
            pyro.sample("X", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=X)

    ledger = materialised(model, lambda: pyro.sample("mu", dist.Normal(0.0, 1.0))).ledger
    assert ledger.names(Role.FACTOR) == ["ridge", "scaled"]
    assert ledger.names(Role.OBSERVED) == ["known", "X"]


def test_a_global_parameter_beside_attributes_of_the_module() -> None:
    class Both(PyroBaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = pyro.nn.PyroParam(torch.tensor(1.0))

        def model(self, X: Tensor) -> None:
            pyro.param("b", self.a.detach())

        def guide(self) -> None:
            pass

    from tests.module.stories import example

    with pytest.raises((ModelError, NotImplementedError), match=r"pyro.param"):
        Both().materialise(example())
    assert not list(pyro.get_param_store())


def test_the_process_wide_store_is_left_as_it_is() -> None:
    pyro.param("mine", torch.tensor(3.0))
    try:
        with pytest.raises(ModelError):
            materialised(global_param)
        materialised(many_sites, guide_of_many)
        assert list(pyro.get_param_store()) == ["mine"]
    finally:
        pyro.clear_param_store()


def one_local(X: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with obs_plate():
        z = pyro.sample("z", dist.Normal(w * torch.ones(2), 1.0).to_event(1))
        pyro.sample("X", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 3), 1.0).to_event(1), obs=X)


def make_guide(kind: str) -> Any:
    def guide(X: Tensor) -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))
        if kind == "missing":
            return
        if kind == "extra":
            pyro.sample("v", dist.Normal(0.0, 1.0))
        if kind == "auxiliary":
            pyro.sample("v", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        if kind == "outside":
            pyro.sample("z", dist.Normal(torch.zeros(len(X), 2), 1.0).to_event(1))
            return
        with obs_plate():
            fn = dist.Normal(torch.zeros(len(X), 2), 1.0).to_event(1)
            if kind == "event_dim":
                fn = dist.Normal(torch.zeros(len(X)), 1.0)
            pyro.sample("z", fn)

    return guide


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not draw 'z'"),
        ("extra", "draws 'v', which the model has no latent site"),
        ("outside", "'z' outside the observation plate"),
    ],
)
def test_guides_that_do_not_fit(kind: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        materialised(one_local, make_guide(kind))


def test_guides_that_fit() -> None:
    for kind in ("plain", "auxiliary"):
        assert materialised(one_local, make_guide(kind)).ledger["z"].role is Role.LOCAL


def test_event_dims_of_guide_and_model_have_to_agree() -> None:
    def guide(X: Tensor) -> None:
        with obs_plate(), poutine.block(hide_types=[]):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def model(X: Tensor) -> None:
        with obs_plate(dim=-2), plate("var", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match=r"'z' has 0 event dimension.* 1 in the guide"):
        materialised(model, guide)


def test_site_dims_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match=r"gives 2 name.*'z'.*1 dimension"):
        materialised(one_local, make_guide("plain"), site_dims={"z": ("a", "b")})
    with pytest.raises(ModelError, match="site_dims names 'y'"):
        materialised(one_local, make_guide("plain"), site_dims={"y": ("a",)})


def test_site_dims_may_name_the_plates_again() -> None:
    again = {"W": ("factor", "var"), "z": ("obs", "latent"), "rate": ("obs", "var")}
    sites = materialised(many_sites, guide_of_many, site_dims=again).ledger
    assert {n: sites[n].dims for n in again} == again
    with pytest.raises(ModelError, match=r"gives 2 name.*'W'.*0 dimension"):
        materialised(many_sites, guide_of_many, site_dims={"W": ("var", "factor")})
