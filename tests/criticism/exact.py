"""A factor model whose posterior, evidence and leave-one-out densities are known in closed form."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from tests.module.stories import Given, given
from torch import Tensor

from pyrovi.module import PyroBaseModule


class SharedMean(PyroBaseModule):
    """m ~ N(0, tau^2 I), z_n ~ N(0, I), x_n ~ N(m + z_n W, sd^2 I), with W known.

    The guide is the exact posterior: of m given all of X, of z_n given x_n and m. ``widen`` scales
    its standard deviation of z_n and ``shift`` its mean, for the observations of batch ``off``.
    """

    tau = 1.5

    def __init__(
        self,
        X: np.ndarray,
        W: np.ndarray,
        sd: float,
        widen: float = 1.0,
        shift: float = 0.0,
        off: int = 0,
    ) -> None:
        super().__init__()
        self.sd, self.widen, self.shift, self.off = sd, widen, shift, off
        loc, covariance = mean_posterior(X, W, sd, self.tau)
        self.register_buffer("W", torch.as_tensor(W).float())
        self.register_buffer("loc", torch.as_tensor(loc).float())
        self.register_buffer("tril", torch.as_tensor(np.linalg.cholesky(covariance)).float())
        self.site_dims = {"m": ("var",), "z": ("factor",), "X": ("var",)}

    def model(self, X: Tensor) -> None:
        d, n_vars = self.W.shape
        m = pyro.sample("m", dist.Normal(torch.zeros(n_vars), self.tau).to_event(1))
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(torch.zeros(d), 1.0).to_event(1))
            pyro.sample("X", dist.Normal(m + z @ self.W, self.sd).to_event(1), obs=X)

    def guide(self, X: Tensor, batch: Tensor) -> None:
        m = pyro.sample("m", dist.MultivariateNormal(self.loc, scale_tril=self.tril))
        d = len(self.W)
        precision = torch.eye(d) + self.W @ self.W.T / self.sd**2
        covariance = torch.linalg.inv(precision)
        off = (batch == self.off).to(X.dtype)
        loc = (X - m) @ self.W.T @ covariance / self.sd**2 + self.shift * off
        tril = torch.linalg.cholesky(covariance) * (1 + (self.widen - 1) * off)[..., None]
        with self.obs_plate():
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))


def mean_posterior(
    X: np.ndarray, W: np.ndarray, sd: float, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of m given the rows of X."""
    inverse = np.linalg.inv(marginal_covariance(W, sd))
    covariance = np.linalg.inv(np.eye(W.shape[1]) / tau**2 + len(X) * inverse)
    return covariance @ inverse @ X.sum(0), covariance


def marginal_covariance(W: np.ndarray, sd: float) -> np.ndarray:
    """Covariance of x_n given m."""
    return W.T @ W + sd**2 * np.eye(W.shape[1])


def exact_loo(X: np.ndarray, W: np.ndarray, sd: float, tau: float = SharedMean.tau) -> np.ndarray:
    """log p(x_n | all other observations), for each."""
    densities = []
    for n in range(len(X)):
        loc, covariance = mean_posterior(np.delete(X, n, 0), W, sd, tau)
        predictive = stats.multivariate_normal(loc, covariance + marginal_covariance(W, sd))
        densities.append(predictive.logpdf(X[n]))
    return np.array(densities)


def simulated(
    n: int = 300, n_vars: int = 8, d: int = 3, sd: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Data, loadings and noise of the model (as the model sees them: in single precision)."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(d, n_vars))
    m = SharedMean.tau * rng.normal(size=n_vars)
    X = m + rng.normal(size=(n, d)) @ W + sd * rng.normal(size=(n, n_vars))
    return X.astype(np.float32).astype(float), W.astype(np.float32).astype(float), sd


def exact_model(
    X: np.ndarray, W: np.ndarray, sd: float, fit_to: np.ndarray | None = None, **kwargs: object
) -> Given:
    """The model on X with its exact posterior (given ``fit_to``)."""
    obs = {"batch": kwargs.pop("batch")} if "batch" in kwargs else {}
    return given(X, SharedMean(X if fit_to is None else fit_to, W, sd, **kwargs), **obs)


def exact_conditional(X: np.ndarray, W: np.ndarray, sd: float, means: np.ndarray) -> np.ndarray:
    """log p(x_n | m_s) of shape (S, N)."""
    covariance = marginal_covariance(W, sd)
    return np.stack([stats.multivariate_normal(m, covariance).logpdf(X) for m in means])


class ExactFit(Given):
    """A model whose training is the exact solution, for tests that refit."""

    def __init__(self, adata: object, W: np.ndarray, sd: float) -> None:
        X = np.asarray(adata.adata.X if hasattr(adata, "adata") else adata.X, dtype=float)
        super().__init__(adata, SharedMean(np.zeros_like(X), W, sd))
        self._X, self._W, self._sd = X, W, sd
        self.trained_with: dict[str, object] = {}

    def train(self, **kwargs: object) -> None:  # type: ignore[override]
        loc, covariance = mean_posterior(self._X, self._W, self._sd, SharedMean.tau)
        self.module.loc.copy_(torch.as_tensor(loc))
        self.module.tril.copy_(torch.as_tensor(np.linalg.cholesky(covariance)))
        self.is_trained = True
        self.trained_with = kwargs
