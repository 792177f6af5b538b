"""A linear regression whose best mean-field normal guide is known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from anndata import AnnData

from pyrovi.data.fields import LayerField, ObsmField
from pyrovi.model.base import BaseModelClass
from pyrovi.module.base import PyroBaseModule

SCALES = np.array([30.0, 0.007, 1.0, 1.0, 5.0, 0.1, 1.0, 2.0, 0.5, 10.0])
"""Standard deviations of the predictors: the coefficients' differ by a factor of 4,000."""


class RegressionModule(PyroBaseModule):
    """w ~ N(0, 100), y_n ~ N(x_n w, 1), with one normal distribution per coefficient as guide."""

    def __init__(self, n_predictors: int):
        super().__init__()
        self.w_loc = torch.nn.Parameter(torch.zeros(n_predictors))
        self.w_log_scale = torch.nn.Parameter(torch.full((n_predictors,), -2.3))

    def model(self, x, X):
        w = pyro.sample("w", dist.Normal(torch.zeros_like(self.w_loc), 100.0).to_event(1))
        with self.obs_plate():
            pyro.sample("X", dist.Normal((x @ w)[:, None], 1.0).to_event(1), obs=X)

    def guide(self, x, X):
        pyro.sample("w", dist.Normal(self.w_loc, self.w_log_scale.exp()).to_event(1))


class Regression(BaseModelClass):
    @classmethod
    def setup_anndata(cls, adata, **kwargs: Any):
        fields = [LayerField("X", None, is_count_data=False), ObsmField("x", "x")]
        cls.register(adata, fields, {})

    def __init__(self, adata):
        super().__init__(adata)
        self.module = RegressionModule(adata_width(self))

    def distance(self) -> tuple[float, float]:
        """Largest errors of the means, in standard deviations, and of log standard deviations."""
        x = np.asarray(self.adata.obsm["x"], dtype=np.float64)
        y = np.asarray(self.adata.X, dtype=np.float64)[:, 0]
        precision = x.T @ x + np.eye(x.shape[1]) / 100**2
        mean = np.linalg.solve(precision, x.T @ y)
        sd = 1 / np.sqrt(np.diag(precision))  # of the best independent normal distributions
        loc, log_scale = (
            p.detach().double().numpy() for p in (self.module.w_loc, self.module.w_log_scale)
        )
        return float(np.abs((loc - mean) / sd).max()), float(np.abs(log_scale - np.log(sd)).max())


def adata_width(model: BaseModelClass) -> int:
    return model.registry["field_registries"]["x"]["tensor"]["shape"][0]


def regression(
    n: int = 500, correlation: float = 0.0, scales: np.ndarray = SCALES, seed: int = 0
) -> Regression:
    """The model of simulated data; the first predictor is the constant."""
    rng = np.random.default_rng(seed)
    size = len(scales)
    shape = np.full((size, size), correlation) + (1 - correlation) * np.eye(size)
    x = rng.multivariate_normal(np.zeros(size), shape, n) * scales
    y = 3 + x @ (rng.normal(size=size) / scales) + rng.normal(size=n)
    x = np.column_stack([np.ones(n), x])
    adata = AnnData(y[:, None].astype(np.float32), obsm={"x": x.astype(np.float32)})
    Regression.setup_anndata(adata)
    return Regression(adata)
