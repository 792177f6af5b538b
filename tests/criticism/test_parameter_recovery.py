"""Recovery under exact posteriors is nominal; wrong ones and other rotations are told apart."""

from __future__ import annotations

from typing import ClassVar

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovi.criticism.factor_alignment import align_to_truth
from pyrovi.criticism.parameter_recovery import recovery
from pyrovi.data.fields import LayerField, NumericalObsField
from pyrovi.errors import DataError, ModelError
from pyrovi.model import BaseModelClass
from pyrovi.model.copies import fresh_copy
from pyrovi.model.truth import truth_of
from pyrovi.module import PyroBaseModule

N, G = 300, 400
NOISE = 0.5


class Conjugate(PyroBaseModule):
    """Means of variables and of observations, all with exact normal posteriors."""

    site_dims: ClassVar = {"mu": ("var",), "X": ("var",)}

    def __init__(self, n_vars: int, width: float) -> None:
        super().__init__()
        self.n_vars, self.width = n_vars, width
        self.register_buffer("mean", torch.zeros(n_vars))
        self.register_buffer("sd", torch.ones(n_vars))

    def model(self, X, y):
        mu = pyro.sample("mu", dist.Normal(X.new_full((self.n_vars,), 1.0), 2.0).to_event(1))
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_tensor(0.0), 1.0))
            pyro.sample("X", dist.Normal(mu, 10.0).to_event(1), obs=X)
            pyro.sample("y", dist.Normal(z, NOISE), obs=y.squeeze(-1))

    def guide(self, X, y):
        pyro.sample("mu", dist.Normal(self.mean, self.width * self.sd).to_event(1))
        with self.obs_plate():
            precision = 1 + 1 / NOISE**2
            mean = y.squeeze(-1) / NOISE**2 / precision
            pyro.sample("z", dist.Normal(mean, self.width * precision**-0.5))

    def fit(self, X: np.ndarray) -> None:
        precision = 1 / 4 + len(X) / 100
        mean = (1.0 / 4 + X.sum(0) / 100) / precision
        self.mean.copy_(torch.as_tensor(mean))
        self.sd.fill_(precision**-0.5)


class ConjugateModel(BaseModelClass):
    def __init__(self, adata, width: float = 1.0) -> None:
        super().__init__(adata)
        self.module = Conjugate(self.summary_stats.n_vars, width)

    @classmethod
    def setup_anndata(cls, adata) -> None:
        fields = [LayerField("X", None, is_count_data=False), NumericalObsField("y", "y")]
        cls.register(adata, fields, {})


def conjugate(width: float) -> tuple[ConjugateModel, anndata.AnnData]:
    obs = pd.DataFrame({"y": np.zeros(N)}, index=[f"cell_{i}" for i in range(N)])
    adata = anndata.AnnData(np.ones((N, G), dtype=np.float32), obs=obs)
    ConjugateModel.setup_anndata(adata)
    model = ConjugateModel(adata, width)
    simulated = model.simulate(seed=11)
    fit = fresh_copy(model, simulated)
    fit.module.fit(simulated.X)
    fit.is_trained = True
    return fit, simulated


@pytest.fixture(scope="module")
def exact():
    fit, simulated = conjugate(1.0)
    return fit, simulated, recovery(fit, simulated, num_samples=400)


@pytest.mark.parametrize("site", ["mu", "z"])
def test_exact_posteriors_are_nominal(exact, site: str) -> None:
    table = exact[2].table.loc[site]
    n = {"mu": G, "z": N}[site]
    assert table["values"] == n
    for probability in (0.5, 0.9):
        error = 4 * np.sqrt(probability * (1 - probability) / n)
        assert abs(table[f"coverage_{100 * probability:g}"] - probability) < error
    assert abs(table["z_mean"]) < 4 / np.sqrt(n)
    assert abs(table["z_sd"] - 1) < 4 / np.sqrt(2 * n)


def test_the_result_is_shown_in_short(exact) -> None:
    found = exact[2]
    text = repr(found)
    assert text.startswith("Recovery of 2 sites: ")
    held = round(float((found.table["coverage_90"] * found.table["values"]).sum()))
    assert f"{held} of {N + G} true values lie in their central 90% intervals" in text
    assert len(text.splitlines()) <= 5
    assert "<table" in found._repr_html_()


def test_values_are_those_of_the_conjugate_model(exact) -> None:
    fit, simulated, found = exact
    mu = found.pointwise["mu"]
    np.testing.assert_allclose(mu["truth"], truth_of(simulated)["mu"])
    np.testing.assert_allclose(mu["sd"], fit.module.sd, rtol=0.15)
    np.testing.assert_allclose(mu["mean"], fit.module.mean, atol=4.5 * fit.module.sd[0] / 20)
    np.testing.assert_allclose(mu["prior_sd"], 2.0, rtol=0.1)
    exact_contraction = 1 - (1 / (1 / 4 + N / 100)) / 4
    assert found.table.loc["mu", "contraction"] == pytest.approx(exact_contraction, abs=0.01)
    exact_contraction = 1 - 1 / (1 + 1 / NOISE**2)
    assert found.table.loc["z", "contraction"] == pytest.approx(exact_contraction, abs=0.02)
    error = (mu["mean"] - mu["truth"]).to_numpy()
    assert found.table.loc["mu", "bias"] == pytest.approx(error.mean())
    assert found.table.loc["mu", "rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert list(mu["var"].values) == list(simulated.var_names)


def test_intervals_are_those_of_the_draws(exact) -> None:
    fit, _, found = exact
    draws = fit.sample_posterior("mu", num_samples=400)["mu"].to_numpy()
    np.testing.assert_allclose(
        found.pointwise["mu"]["lower_90"], np.quantile(draws, 0.05, axis=0), rtol=1e-4, atol=1e-5
    )


def test_too_narrow_posteriors_are_seen() -> None:
    fit, simulated = conjugate(0.4)
    table = recovery(fit, simulated, probability=0.9).table
    assert (table["coverage_90"] < 0.65).all()
    assert (table["z_sd"] > 2).all()


def test_truth_as_arrays_and_in_another_order(exact) -> None:
    fit, simulated, found = exact
    truth = truth_of(simulated)
    shuffled = truth.isel(obs=np.random.default_rng(0).permutation(N))
    again = recovery(fit, shuffled, num_samples=400)
    pd.testing.assert_frame_equal(again.table, found.table)
    arrays = recovery(fit, {"mu": truth["mu"].to_numpy()}, num_samples=400)
    pd.testing.assert_frame_equal(arrays.table, found.table.loc[["mu"]])


def test_wrong_requests_are_explained(exact) -> None:
    fit, simulated, _ = exact
    with pytest.raises(DataError, match="carry no truth"):
        recovery(fit, anndata.AnnData(np.ones((2, 2))))
    with pytest.raises(ModelError, match="truth has no value of 'z'"):
        recovery(fit, {"mu": np.zeros(G)}, sites="z")
    with pytest.raises(ModelError, match=r"'mu' has shape \(3,\); the posterior has \(400,\)"):
        recovery(fit, {"mu": np.zeros(3)})
    with pytest.raises(ModelError, match="No global site with the dimension 'factor'"):
        recovery(fit, simulated, align="rotation")
    with pytest.raises(ModelError, match="align must be one of"):
        recovery(fit, simulated, align="mirror")
    with pytest.raises(ModelError, match="'W' was not compared"):
        recovery(fit, simulated, num_samples=5).plot("W")


F, P = 3, 20


class Factors(PyroBaseModule):
    """A guide that draws the truth, but turned by another matrix in every draw."""

    site_dims: ClassVar = {"W": ("factor", "var"), "z": ("factor",), "X": ("var",)}

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("W", torch.zeros(F, P))

    def model(self, X):
        W = pyro.sample("W", dist.Normal(X.new_zeros(F, P), 1.0).to_event(2))
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(F), 1.0).to_event(1))
            pyro.sample("X", dist.Normal(z @ W, 0.1).to_event(1), obs=X)

    def guide(self, X):
        g = torch.randn(F, F)
        if self.kind == "rotation":
            turn = torch.linalg.qr(g).Q
        else:
            turn = torch.eye(F)[g[0].argsort()]
            if self.kind == "signed_permutation":
                turn = turn * g[1].sign()
        W = pyro.sample("W", dist.Normal(turn @ self.W, 0.05).to_event(2))
        with self.obs_plate():
            gram = W @ W.T / 0.01 + torch.eye(F)
            mean = torch.linalg.solve(gram, W @ X.T / 0.01).T
            pyro.sample("z", dist.Normal(mean, 0.05).to_event(1))


class FactorsModel(BaseModelClass):
    def __init__(self, adata, kind: str) -> None:
        super().__init__(adata)
        self.module = Factors(kind)

    @classmethod
    def setup_anndata(cls, adata) -> None:
        cls.register(adata, [LayerField("X", None, is_count_data=False)], {})


@pytest.mark.parametrize("kind", ["rotation", "permutation", "signed_permutation"])
def test_factors_are_compared_whatever_their_rotation(kind: str) -> None:
    adata = anndata.AnnData(np.ones((40, P), dtype=np.float32))
    FactorsModel.setup_anndata(adata)
    model = FactorsModel(adata, kind)
    simulated = model.simulate(seed=3)
    fit = fresh_copy(model, simulated)
    fit.module.W.copy_(torch.as_tensor(truth_of(simulated)["W"].to_numpy()))
    fit.is_trained = True
    plain = recovery(fit, simulated, num_samples=100).table
    assert plain.loc["W", "rmse"] > 0.5
    found = recovery(fit, simulated, num_samples=100, align=kind).table
    assert list(found.index) == ["W", "z", "W'W"]
    assert found.loc["W", "rmse"] < 0.02
    assert found.loc["z", "rmse"] < 0.1
    assert found.loc["W'W", "correlation"] > 0.999
    assert found.loc["W'W", "values"] == P * (P + 1) // 2


def test_alignment_equals_scipy() -> None:
    import xarray as xr
    from scipy.linalg import orthogonal_procrustes

    rng = np.random.default_rng(0)
    draws, truth = rng.normal(size=(5, P, F)), rng.normal(size=(P, F))
    found = align_to_truth(
        xr.DataArray(draws, dims=("draw", "var", "factor"), name="W"),
        xr.DataArray(truth, dims=("var", "factor")),
        "factor",
        "rotation",
    )
    aligned = found.apply(xr.DataArray(draws, dims=("draw", "var", "factor"))).to_numpy()
    for draw, result in zip(draws, aligned, strict=True):
        matrix, _ = orthogonal_procrustes(draw, truth)
        np.testing.assert_allclose(result, draw @ matrix, atol=1e-10)


def test_figure(exact) -> None:
    made = exact[2].plot()
    assert [axes.get_title(loc="left") for axes in made.axes] == [
        "mu", "z", "What was learned, and how well",
    ]  # fmt: skip
    mu = exact[2].pointwise["mu"]
    scatters = [c for c in made.axes[0].collections if hasattr(c, "get_sizes")]
    points = np.concatenate([c.get_offsets() for c in scatters])
    shown = points[np.argsort(points[:, 0])]
    order = np.argsort(mu["truth"].to_numpy())
    np.testing.assert_allclose(shown[:, 0], mu["truth"].to_numpy()[order])
    np.testing.assert_allclose(shown[:, 1], mu["mean"].to_numpy()[order])
