"""Tests of several fits of one model."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from anndata import AnnData
from tests.train.toys import QUIET, Local, Mean, normal_data, parameters, toy

from pyrovi import settings
from pyrovi.data.fields import LayerField
from pyrovi.errors import ModelError, TrainingError
from pyrovi.model.base import BaseModelClass
from pyrovi.model.chains import in_chain, num_chains
from pyrovi.module.base import PyroBaseModule
from pyrovi.posterior.alignment import align
from pyrovi.posterior.convergence import rhat


class FactorModule(PyroBaseModule):
    """x_n ~ N(z_n W, s), z_n ~ N(0, I): W and z are known up to a rotation only."""

    site_dims: ClassVar = {"W": ("factor", "var"), "z": ("factor",), "X": ("var",)}

    def __init__(self, n_vars: int, n_factors: int = 2):
        super().__init__()
        self.n_factors = n_factors
        self.s_loc = torch.nn.Parameter(torch.zeros(()))
        self.s_log_scale = torch.nn.Parameter(torch.tensor(-3.0))
        self.W_loc = torch.nn.Parameter(torch.randn(n_factors, n_vars))
        self.W_log_scale = torch.nn.Parameter(torch.full((n_factors, n_vars), -3.0))
        self.encoder = torch.nn.Linear(n_vars, n_factors)
        self.z_log_scale = torch.nn.Parameter(torch.full((n_factors,), -1.0))

    def model(self, X):
        s = pyro.sample("s", dist.LogNormal(torch.zeros_like(self.s_loc), 1.0))
        W = pyro.sample("W", dist.Normal(torch.zeros_like(self.W_loc), 1.0).to_event(2))
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(self.n_factors), 1.0).to_event(1))
            pyro.sample("X", dist.Normal(z @ W, s).to_event(1), obs=X)

    def guide(self, X):
        pyro.sample("s", dist.LogNormal(self.s_loc, self.s_log_scale.exp()))
        pyro.sample("W", dist.Normal(self.W_loc, self.W_log_scale.exp()).to_event(2))
        with self.obs_plate():
            scale = self.z_log_scale.exp()
            pyro.sample("z", dist.Normal(self.encoder(X), scale).to_event(1))


class Factors(BaseModelClass):
    @classmethod
    def setup_anndata(cls, adata, **kwargs):
        cls.register(adata, [LayerField("X", None, is_count_data=False)], {})

    def __init__(self, adata):
        super().__init__(adata)
        self.module = FactorModule(self.summary_stats.n_vars)


def factor_data(n=100, n_vars=8):
    rng = np.random.default_rng(0)
    W = rng.normal(size=(2, n_vars))
    X = rng.normal(size=(n, 2)) @ W + rng.normal(size=(n, n_vars))
    return AnnData(X.astype(np.float32))


@pytest.fixture(scope="module")
def factors():
    adata = factor_data()
    Factors.setup_anndata(adata)
    model = Factors(adata)
    model.train(
        400, lr=0.15, n_restarts=4, num_workers=2, batch_size=None, train_size=1.0,
        plan_kwargs={"lr_decay": 0.01, "n_epochs_kl_warmup": 0}, averaging=True, **QUIET,
    )  # fmt: skip
    return model


def chains(model, sites, **options):
    parts = []
    for chain in range(num_chains(model)):
        with in_chain(model, chain):
            parts.append(model.sample_posterior(sites, num_samples=250, seed=chain, **options))
    return {name: np.stack([part[name].to_numpy() for part in parts]) for name in sites}


@pytest.mark.slow
def test_rhat_over_restarts_tells_identified_from_rotated_sites(factors):
    draws = chains(factors, ["s", "W"])
    assert rhat(draws["s"]).max() < 1.1
    assert np.median(rhat(draws["W"])) > 1.5
    cross = np.einsum("cdkv,cdkw->cdvw", draws["W"], draws["W"])
    assert np.median(rhat(cross)) < 1.1


@pytest.mark.slow
def test_alignment_makes_the_restarts_of_a_factor_model_agree(factors):
    draws = chains(factors, ["W", "z"], indices=np.arange(20))
    axes = {"W": 0, "z": 1}
    aligned = align(draws, axes, "rotation")
    before = draws["z"] @ draws["W"]
    np.testing.assert_allclose(aligned["z"] @ aligned["W"], before, atol=1e-4)
    assert np.median(rhat(draws["W"])) > 1.5
    assert np.median(rhat(aligned["W"])) < 1.1
    assert np.median(rhat(aligned["z"])) < 1.1


@pytest.mark.slow
def test_the_best_restart_is_the_model(factors):
    table = factors.restarts
    best = int(table["elbo"].to_numpy().argmax())
    assert list(table.index[table["best"]]) == [best]
    assert (table["behind"] >= 0).all()
    assert table["seed"].is_unique
    for name, value in factors.module.state_dict().items():
        assert torch.equal(value, factors._restarts[best][name])
    history = factors.restart_history(best)["elbo_train"]
    np.testing.assert_array_equal(history, factors.history["elbo_train"])
    assert not np.array_equal(factors.restart_history(1 - (best == 1))["elbo_train"], history)
    assert factors.get_elbo(num_samples=20) == pytest.approx(table["elbo"][best], abs=0.05)


@pytest.mark.slow
def test_restarts_are_saved(factors, tmp_path):
    factors.save(tmp_path / "model")
    loaded = Factors.load(tmp_path / "model", factors.adata)
    assert num_chains(loaded) == 4
    for one, two in zip(factors._restarts, loaded._restarts, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert loaded.restarts.equals(factors.restarts)


def test_processes_do_not_change_the_fits():
    fits = []
    for workers in (1, 3):
        model = toy(Mean)
        model.train(3, n_restarts=3, num_workers=workers, batch_size=8, **QUIET)
        fits.append(model)
    one, two = fits
    for first, second in zip(one._restarts, two._restarts, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert one.restarts.equals(two.restarts)


def test_the_first_restart_is_the_single_fit_and_the_split_is_shared():
    single, several = toy(Mean), toy(Mean)
    single.train(3, batch_size=8, **QUIET)
    several.train(3, n_restarts=2, num_workers=1, batch_size=8, **QUIET)
    np.testing.assert_array_equal(single.train_indices, several.train_indices)
    for name, value in parameters(single).items():
        assert torch.equal(value, several._restarts[0][name])
    assert settings.seed == 0


def test_all_restarts_go_on_together():
    whole, parts = toy(Mean), toy(Mean)
    plan = {"n_epochs_kl_warmup": 0}
    whole.train(4, n_restarts=2, num_workers=1, plan_kwargs=plan, batch_size=8, **QUIET)
    for _ in range(2):
        parts.train(2, n_restarts=2, num_workers=1, plan_kwargs=plan, batch_size=8, **QUIET)
    assert (parts.restarts["epochs"] == 4).all()
    for one, two in zip(whole._restarts, parts._restarts, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_going_on_with_one_drops_the_others():
    model = toy(Mean)
    model.train(2, n_restarts=2, num_workers=1, batch_size=8, **QUIET)
    with pytest.warns(UserWarning, match="best of the 2 restarts further; the others are dropped"):
        model.train(1, batch_size=8, **QUIET)
    assert num_chains(model) == 1
    assert model._training.epochs == 3
    with pytest.raises(ModelError, match="holds one fit"):
        _ = model.restarts


def test_rows_of_observations_have_restarts(tmp_path):
    adata = normal_data(20)
    adata.obs_names = [f"cell{i}" for i in range(20)]
    Local.setup_anndata(adata)
    model = Local(adata)
    model.train(2, n_restarts=2, num_workers=1, batch_size=10, **QUIET)
    model.save(tmp_path / "model")
    order = np.random.default_rng(0).permutation(20)
    loaded = Local.load(tmp_path / "model", adata[order].copy())
    for chain in range(2):
        with in_chain(model, chain), in_chain(loaded, chain):
            expected = model.sample_posterior("z", num_samples=200, reduce="mean")["z"]
            found = loaded.sample_posterior("z", num_samples=200, reduce="mean")["z"]
        aligned = found.sel(obs=expected["obs"])
        np.testing.assert_allclose(aligned, expected, atol=0.6)


def test_messages():
    model = toy(Mean)
    with pytest.raises(TrainingError, match="n_restarts must be at least 1, got 0"):
        model.train(1, n_restarts=0, **QUIET)
    with pytest.raises(TrainingError, match="Checkpoints are of one fit"):
        model.train(1, n_restarts=2, enable_checkpointing=True, **QUIET)
    model.train(1, **QUIET)
    with pytest.raises(TrainingError, match="is trained and holds one fit; 3 restarts"):
        model.train(1, n_restarts=3, **QUIET)
