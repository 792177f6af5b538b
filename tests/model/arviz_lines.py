"""What the tests of exports share: one way to read containers of both ArviZ lines, and models."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

import pyrovi as pv
from pyrovi.module import PyroBaseModule

IS_TREE = int(version("arviz").split(".")[0]) >= 1
"""Whether ArviZ is of the 1.x line, whose container is xarray's DataTree."""


def dataset(container: Any, group: str) -> xr.Dataset:
    return container[group].to_dataset() if IS_TREE else container[group]


def group_names(container: Any) -> list[str]:
    return list(container.children) if IS_TREE else list(container.groups())


def table() -> pd.DataFrame:
    """Four groups of observations with a slope and group effects."""
    rng = np.random.default_rng(0)
    group = np.repeat(["u", "v", "w", "x"], 6)
    x = rng.normal(size=24).astype(np.float32)
    effect = np.repeat([0.5, -0.5, 1.0, 0.0], 6)
    y = (effect + 0.8 * x + 0.7 * rng.normal(size=24)).astype(np.float32)
    return pd.DataFrame({"x": x, "y": y, "group": group}, index=[f"row{i}" for i in range(24)])


def groups(x: Tensor, y: Tensor, group: Tensor) -> None:
    """Regression with group effects; the observed site has another name than its column."""
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pv.plate("group", 4):
        a = pyro.sample("a", dist.Normal(0.0, tau))
    with pv.obs_plate():
        pyro.sample("response", dist.Normal(a[group] + b * x, s), obs=y)


def log_joint(data: pd.DataFrame, draws: xr.Dataset) -> xr.DataArray:
    """Log density of data and unconstrained latents of :func:`groups`, with SciPy."""
    d = {name: draws[name].to_numpy().astype(float) for name in ("s", "tau", "b", "a")}
    codes = data["group"].astype("category").cat.codes.to_numpy()
    mean = d["a"][..., codes] + d["b"][..., None] * data["x"].to_numpy().astype(float)
    density = stats.norm(mean, d["s"][..., None]).logpdf(data["y"].to_numpy().astype(float))
    prior = stats.lognorm(0.5).logpdf(d["s"]) + stats.halfnorm().logpdf(d["tau"])
    prior += stats.norm(0, 2).logpdf(d["b"])
    prior += stats.norm(0, d["tau"][..., None]).logpdf(d["a"]).sum(-1)
    jacobian = np.log(d["s"]) + np.log(d["tau"])  # both are exponentials of their coordinates
    return xr.DataArray(density.sum(-1) + prior + jacobian, dims=("chain", "draw"))


class Positive(PyroBaseModule):
    """log m ~ N(0, 2), x_n ~ N(log m, 1), with the exact posterior as the guide."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        precision = 0.25 + len(values)
        self.register_buffer("loc", torch.tensor(values.sum() / precision).float())
        self.register_buffer("scale", torch.tensor(precision**-0.5).float())

    def model(self, x: Tensor) -> None:
        m = pyro.sample("m", dist.LogNormal(0.0, 2.0))
        with self.obs_plate():
            pyro.sample("x", dist.Normal(m.log(), 1.0), obs=x)

    def guide(self) -> None:
        pyro.sample("m", dist.LogNormal(self.loc, self.scale))

    @staticmethod
    def evidence(values: np.ndarray) -> float:
        covariance = np.eye(len(values)) + 4.0
        return float(stats.multivariate_normal(np.zeros(len(values)), covariance).logpdf(values))


def positive_model(n: int = 12) -> tuple[Any, np.ndarray]:
    values = np.random.default_rng(3).normal(0.7, 1.0, n).astype(np.float32).astype(float)
    fields = {"x": pv.fields.column("x")}
    frame = pd.DataFrame({"x": values.astype(np.float32)}, index=[f"o{i}" for i in range(n)])
    return pv.from_pyro(Positive(values), frame, fields=fields), values
