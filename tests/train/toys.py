"""Tiny models whose posteriors are known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from anndata import AnnData
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroParam

from pyrovi.data.fields import LayerField
from pyrovi.data.synthetic import synthetic_iid
from pyrovi.model import SCVI
from pyrovi.model.base import BaseModelClass
from pyrovi.module.base import PyroBaseModule


class MeanModule(PyroBaseModule):
    """mu ~ N(0, 1), x_n ~ N(mu, 1): mu | x ~ N(sum x / (N + 1), 1 / (N + 1))."""

    def __init__(self, n_vars: int):
        super().__init__()
        self.n_vars = n_vars
        self.loc = torch.nn.Parameter(torch.zeros(n_vars))
        self.scale = PyroParam(torch.full((n_vars,), 0.5), constraints.positive)

    def model(self, X):
        mu = pyro.sample("mu", dist.Normal(X.new_zeros(self.n_vars), 1.0).to_event(1))
        with self.obs_plate():
            pyro.sample("X", dist.Normal(mu, 1.0).to_event(1), obs=X)

    def guide(self, X):
        pyro.sample("mu", dist.Normal(self.loc, self.scale).to_event(1))


class PointModule(PyroBaseModule):
    """The same with a point estimate: nothing is random."""

    def __init__(self, n_vars: int):
        super().__init__()
        self.n_vars = n_vars
        self.guide = AutoDelta(self.model)

    model = MeanModule.model


class LocalModule(PyroBaseModule):
    """z_n ~ N(0, 1), x_n ~ N(z_n, 0.5): z_n | x_n ~ N(0.8 x_n, 0.2), one row of AutoNormal each."""

    def __init__(self):
        super().__init__()
        self.guide = AutoNormal(self.model)

    def model(self, X):
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(X.shape[-1]), 1.0).to_event(1))
            pyro.sample("X", dist.Normal(z, 0.5).to_event(1), obs=X)


class AmortisedModule(PyroBaseModule):
    """The same with an encoder x -> (w x, s)."""

    def __init__(self, n_vars: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(n_vars))
        self.scale = PyroParam(torch.ones(n_vars), constraints.positive)

    def model(self, X):
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(X.shape[-1]), 1.0).to_event(1))
            pyro.sample("X", dist.Normal(z, 0.5).to_event(1), obs=X)

    def guide(self, X):
        with self.obs_plate():
            pyro.sample("z", dist.Normal(self.weight * X, self.scale).to_event(1))


class _Toy(BaseModelClass):
    @classmethod
    def setup_anndata(cls, adata, **kwargs: Any):
        cls.register(adata, [LayerField("X", None, is_count_data=False)], {})


class Mean(_Toy):
    def __init__(self, adata, guide="normal"):
        super().__init__(adata)
        module = MeanModule if guide == "normal" else PointModule
        self.module = module(self.summary_stats.n_vars)


class Local(_Toy):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = LocalModule()


class Amortised(_Toy):
    def __init__(self, adata):
        super().__init__(adata)
        self.module = AmortisedModule(self.summary_stats.n_vars)


def normal_data(n: int = 24, n_vars: int = 2, shift: float = 1.0, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    return AnnData(rng.normal(shift, 1.0, (n, n_vars)).astype(np.float32))


def toy(cls: type, n: int = 24, n_vars: int = 2, *, seed: int = 0, **kwargs: Any) -> Any:
    adata = normal_data(n, n_vars, seed=seed)
    cls.setup_anndata(adata)
    return cls(adata, **kwargs)


def counts() -> AnnData:
    return synthetic_iid(batch_size=40, n_genes=12, n_proteins=2, n_regions=2)


def scvi(adata: AnnData | None = None, **kwargs: Any) -> SCVI:
    adata = counts() if adata is None else adata
    SCVI.setup_anndata(adata, batch_key="batch")
    return SCVI(adata, **{"n_hidden": 8, "n_latent": 2, "dropout_rate": 0.2, **kwargs})


QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def differ(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(first[name], second[name]) for name in first)


def optimizer_tensors(model: Any) -> dict[str, torch.Tensor]:
    state = model._training.state["optimizer"]["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, s in state.items() for k, v in s.items()}


def assert_same_training(first: Any, second: Any) -> None:
    """Parameters, optimiser state and history are equal to the last bit."""
    assert_same(parameters(first), parameters(second))
    assert_same(optimizer_tensors(first), optimizer_tensors(second))
    assert first._history == second._history
