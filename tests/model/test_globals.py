"""Globals: drawn given the data that all minibatches share, and never a minibatch's own."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from tests.module.stories import Pair, given, materialised

from pyrovi.data.fields import LayerField, VarmField
from pyrovi.errors import ModelError
from pyrovi.model.base import BaseModelClass
from pyrovi.module import obs_plate, plate
from pyrovi.posterior.globals import CHUNK_BUDGET

X = np.random.default_rng(0).normal(3.0, 1.0, size=(60, 4)).astype(np.float32)


class WithLoadings(BaseModelClass):
    """The prior of the global site has its location in varm."""

    @classmethod
    def setup_anndata(cls, adata: Any) -> None:
        cls.register(
            adata, [LayerField("X", None, is_count_data=False), VarmField("M", "M")], locals()
        )

    def __init__(self, adata: Any) -> None:
        super().__init__(adata)

        def model(X: torch.Tensor, M: torch.Tensor) -> None:
            with plate("var", 4):
                w = pyro.sample("W", dist.Normal(M[:, 0], 0.1))
            pyro.deterministic("double", 2 * w)
            with obs_plate():
                pyro.sample("X", dist.Normal(w, 1.0).to_event(1), obs=X)

        def guide(M: torch.Tensor) -> None:
            with plate("var", 4):
                pyro.sample("W", dist.Normal(M[:, 0], 0.1))

        self.module = Pair(model, guide)


def with_loadings(value: float) -> anndata.AnnData:
    adata = anndata.AnnData(X.copy(), varm={"M": np.full((4, 1), value, np.float32)})
    WithLoadings.setup_anndata(adata)
    return adata


def test_globals_see_the_registered_data_of_the_variables() -> None:
    model = WithLoadings(with_loadings(50.0))
    for query in (model.sample_prior, model.sample_posterior):
        assert query("W", num_samples=200)["W"].values.mean() == pytest.approx(50, abs=0.03)
        found = query(["W", "double"], num_samples=20, batch_size=7)
        np.testing.assert_allclose(found["double"], 2 * found["W"], rtol=1e-6)
    # the guide is the prior: no KL, and the local terms are all of the bound
    assert model.get_elbo() == pytest.approx(model.get_elbo(return_mean=False).mean(), rel=1e-5)
    other = anndata.AnnData(X.copy(), varm={"M": np.full((4, 1), -7.0, np.float32)})
    for sites in ("W", ["W", "double"]):
        found = model.sample_posterior(sites, adata=other, num_samples=200)["W"]
        assert found.values.mean() == pytest.approx(-7, abs=0.03)


@pytest.mark.parametrize("which", ["guide", "model", "guide by a local draw", "model by a local"])
def test_a_global_latent_must_not_depend_on_the_minibatch(which: str) -> None:
    def model(X: torch.Tensor) -> None:
        if which != "model by a local":
            w = pyro.sample("w", dist.Normal(X.mean() if which == "model" else 0.0, 10.0))
        with obs_plate():
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        if which == "model by a local":
            w = pyro.sample("w", dist.Normal(z.mean(), 10.0))
        with obs_plate():
            pyro.sample("X", dist.Normal(w + z, 1.0), obs=X[:, 0])

    def guide(X: torch.Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Gamma(X[:, 0].exp(), 1.0))
        loc = {"guide": X.mean(), "guide by a local draw": z.mean()}.get(which, torch.tensor(0.0))
        pyro.sample("w", dist.Normal(loc, 1.0))

    part = which.split()[0]
    with pytest.raises(ModelError, match=f"'w' depends on the observations .* in the {part}"):
        materialised(model, guide)


def test_a_sampler_that_takes_more_noise_is_no_dependence() -> None:
    """A local gamma draw takes as much from the generator as its parameters want."""

    def model(X: torch.Tensor) -> None:
        with obs_plate():
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        w = pyro.sample("w", dist.Gamma(2.0, 1.0))
        with obs_plate():
            pyro.sample("X", dist.Normal(w + z, 1.0), obs=X[:, 0])

    def guide(X: torch.Tensor) -> None:
        with obs_plate():
            pyro.sample("z", dist.Gamma(X[:, 0] * 0.3, 1.0))
        pyro.sample("w", dist.Gamma(2.0, 1.0))

    assert materialised(model, guide).ledger["w"].role == "global"


def test_errors_at_construction_say_what_the_pair_was_run_on() -> None:
    def story(X: torch.Tensor) -> None:
        torch.linalg.cholesky(X.T @ X)

    with pytest.raises(ModelError, match=r"LinAlgError: linalg[\s\S]*synthetic minibatch") as info:
        materialised(story)
    assert isinstance(info.value.__cause__, torch.linalg.LinAlgError)


def local_mean(X: torch.Tensor) -> None:
    with obs_plate():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("X", dist.Normal(z[:, None].expand(X.shape), 1.0).to_event(1), obs=X)
    pyro.deterministic("zbar", z.mean(0))


def test_a_deterministic_of_the_minibatch_is_refused_not_that_of_the_first() -> None:
    def guide(X: torch.Tensor) -> None:
        with obs_plate():
            pyro.sample("z", dist.Normal(X.mean(1), 1e-3))

    model = given(X, Pair(local_mean, guide))
    with pytest.raises(ModelError, match=r"'zbar' .* is a function of the minibatch"):
        model.sample_posterior("zbar", num_samples=3, batch_size=10)
    whole = model.sample_posterior("zbar", num_samples=3, batch_size=60)["zbar"]
    np.testing.assert_allclose(whole, X.mean(), atol=0.01)


def test_queries_of_globals_do_not_read_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def story(X: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with obs_plate():
            pyro.deterministic("v", w[0] * X[:, 0])
            pyro.sample("X", dist.Normal(w.sum(), 1.0).expand([4]).to_event(1), obs=X)

    model = given(X, Pair(story, AutoNormal(story)))
    joint = model.sample_posterior(["w", "v"], num_samples=20)["w"].values
    runs: list[int] = []
    run = model.module.run_model
    monkeypatch.setattr(model.module, "run_model", lambda batch: runs.append(batch.n) or run(batch))
    draws = model.sample_posterior("w", num_samples=20)
    np.testing.assert_array_equal(draws["w"], joint)
    assert draws["w"].dims == ("draw", "w_dim_0")
    reduced = model.sample_posterior("w", num_samples=20, reduce=["mean", "sd", "q50"])["w"].values
    np.testing.assert_allclose(reduced[0], joint.mean(0), rtol=1e-5)
    np.testing.assert_allclose(reduced[2], np.median(joint, 0), rtol=1e-5)
    running = model.sample_posterior("w", num_samples=20, reduce=["sd", "mean"])["w"].values
    np.testing.assert_allclose(running[0], joint.std(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(running[1], joint.mean(0), rtol=1e-5)
    assert not runs


def wide(rows: int, columns: int) -> Any:
    def model(X: torch.Tensor) -> None:
        w = pyro.sample("W", dist.Normal(torch.zeros(rows, columns), 1.0).to_event(2))
        with obs_plate():
            pyro.sample("X", dist.Normal(w[0, 0], 1.0).expand([4]).to_event(1), obs=X)

    def guide() -> None:
        pyro.sample("W", dist.Normal(torch.ones(rows, columns), 2.0).to_event(2))

    return given(X, Pair(model, guide))


def test_globals_drawn_in_chunks_are_the_same_however_they_are_reduced() -> None:
    model = wide(CHUNK_BUDGET // 3000, 1000)  # three draws at a time
    draws = model.sample_posterior("W", num_samples=7)["W"].values
    assert len(np.unique(draws[:, 0, 0])) == 7
    assert draws.mean() == pytest.approx(1, abs=0.01)
    found = model.sample_posterior("W", num_samples=7, reduce=["mean", "sd"])["W"].values
    np.testing.assert_allclose(found[0], draws.mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[1], draws.std(0, ddof=1), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_memory_of_reduced_globals_is_bounded() -> None:
    import resource

    model = wide(2000, 500)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.sample_posterior("W", num_samples=250, reduce="mean")  # 1 GB of draws
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024
