"""Small model/guide pairs with known answers, and the data and models to run them with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor

from pyrovi.data.fields import CategoricalObsField, LayerField
from pyrovi.dataloaders import Minibatch
from pyrovi.model.base import BaseModelClass
from pyrovi.module import PyroBaseModule


def example(n_vars: int = 3, n_obs: int = 10, **more: int) -> Callable[[int], Minibatch]:
    """Example minibatches with X (n, n_vars), batch (n, 1) and further columns."""

    def make(n: int) -> Minibatch:
        tensors = {"X": torch.ones(n, n_vars), "batch": torch.zeros(n, 1, dtype=torch.int64)}
        tensors |= {name: torch.ones(n, size) for name, size in more.items()}
        return Minibatch(tensors, torch.arange(n), n_obs)

    return make


class Pair(PyroBaseModule):
    """A pair of plain functions; the guide may be a Pyro guide."""

    def __init__(self, model: Any, guide: Any = None, site_dims: Any = None) -> None:
        super().__init__()
        self.model = model
        self.guide = guide or (lambda: None)
        if site_dims is not None:
            self.site_dims = site_dims


def materialised(
    model: Any, guide: Any = None, n_vars: int = 3, n_obs: int = 10, **kwargs: Any
) -> Pair:
    pair = Pair(model, guide, **kwargs)
    pair.materialise(example(n_vars, n_obs))
    return pair


class Given(BaseModelClass):
    """A model of any module."""

    @classmethod
    def setup_anndata(cls, adata: Any) -> None:
        fields = [
            LayerField("X", None, is_count_data=False),
            CategoricalObsField("batch", "batch" if "batch" in adata.obs else None),
        ]
        cls.register(adata, fields, {})

    def __init__(self, adata: Any, module: PyroBaseModule) -> None:
        super().__init__(adata)
        self.module = module


def given(X: np.ndarray, module: PyroBaseModule, **obs: Any) -> Given:
    """A model of a module on an array."""
    adata = anndata.AnnData(np.asarray(X, dtype=np.float32))
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene{i}" for i in range(adata.n_vars)]
    for name, values in obs.items():
        adata.obs[name] = values
    Given.setup_anndata(adata)
    return Given(adata, module)


class Mean(PyroBaseModule):
    """mu ~ N(0, prior_sd); x_n ~ N(mu, sd). The guide is Normal(loc, scale)."""

    prior_sd, sd = 2.0, 1.5

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(loc))
        self.log_scale = torch.nn.Parameter(torch.tensor(scale).log())

    def model(self, X: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, self.prior_sd))
        with self.obs_plate():
            pyro.deterministic("twice", 2 * mu + 0 * X[:, 0])
            pyro.sample("X", dist.Normal(mu, self.sd).expand([1]).to_event(1), obs=X)

    def guide(self) -> None:
        pyro.sample("mu", dist.Normal(self.loc, self.log_scale.exp()))

    @classmethod
    def exact_posterior(cls, X: np.ndarray) -> tuple[float, float]:
        variance = 1 / (1 / cls.prior_sd**2 + len(X) / cls.sd**2)
        return float(variance * X.sum() / cls.sd**2), math.sqrt(variance)

    @classmethod
    def log_evidence(cls, X: np.ndarray) -> float:
        n = len(X)
        covariance = cls.sd**2 * np.eye(n) + cls.prior_sd**2
        return float(stats.multivariate_normal(np.zeros(n), covariance).logpdf(X[:, 0]))


class Factors(PyroBaseModule):
    """z_n ~ N(0, I); x_n ~ N(W z_n, sd^2 I). The guide is exact, or off by factors."""

    sd = 0.7

    def __init__(self, n_vars: int = 4, widen: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("W", torch.randn(2, n_vars, generator=torch.manual_seed(3)))
        self.widen, self.shift = widen, shift
        self.site_dims = {"z": ("factor",), "loc": ("var",), "X": ("var",)}

    def model(self, X: Tensor) -> None:
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = pyro.deterministic("loc", z @ self.W, event_dim=1)
            pyro.sample("X", dist.Normal(loc, self.sd).to_event(1), obs=X)

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        covariance = torch.linalg.inv(torch.eye(2) + self.W @ self.W.T / self.sd**2)
        return X @ self.W.T @ covariance / self.sd**2, covariance

    def guide(self, X: Tensor) -> None:
        loc, covariance = self.moments(X)
        with self.obs_plate():
            fn = dist.MultivariateNormal(loc + self.shift, covariance * self.widen**2)
            pyro.sample("z", fn)

    def log_marginal(self, X: np.ndarray) -> np.ndarray:
        W = self.W.double().numpy()
        covariance = W.T @ W + self.sd**2 * np.eye(W.shape[1])
        return stats.multivariate_normal(np.zeros(W.shape[1]), covariance).logpdf(X)

    def simulate(self, n: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        W = self.W.double().numpy()
        return rng.normal(size=(n, 2)) @ W + self.sd * rng.normal(size=(n, W.shape[1]))


class Hierarchy(PyroBaseModule):
    """mu ~ N(0, 2); z_n ~ N(mu, 1); x_n ~ N(z_n, 0.5), with the exact posterior as its guide."""

    prior_sd, between, within = 2.0, 1.0, 0.5

    def __init__(self, X: np.ndarray) -> None:
        super().__init__()
        variance = self.between**2 + self.within**2
        posterior = 1 / (1 / self.prior_sd**2 + len(X) / variance)
        self.register_buffer("loc", torch.tensor(posterior * X.sum() / variance).float())
        self.register_buffer("scale", torch.tensor(posterior).sqrt().float())

    def model(self, X: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, self.prior_sd))
        pyro.deterministic("negative", -mu)
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(mu, self.between))
            pyro.deterministic("offset", mu + 0 * z)
            pyro.sample("X", dist.Normal(z[..., None], self.within).to_event(1), obs=X)

    def guide(self, X: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(self.loc, self.scale))
        precision = 1 / self.between**2 + 1 / self.within**2
        with self.obs_plate():
            mean = (mu / self.between**2 + X[:, 0] / self.within**2) / precision
            pyro.sample("z", dist.Normal(mean, precision**-0.5))

    @classmethod
    def log_evidence(cls, X: np.ndarray) -> float:
        n = len(X)
        covariance = (cls.between**2 + cls.within**2) * np.eye(n) + cls.prior_sd**2
        return float(stats.multivariate_normal(np.zeros(n), covariance).logpdf(X[:, 0]))
