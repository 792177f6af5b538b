r"""CellAssignModule: the pair of CellAssign (Zhang et al. 2019, Nature Methods 16:1007)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyrovi.distributions import NegativeBinomial, TruncatedNormal
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.counts import indicator_columns, split_codes
from pyrovi.module.guides import make_guide

_LARGEST_LOG_MU = 40.0
"""Bound of the logarithm of a mean: delta is an exponential in an exponential."""

_MOST_BASES = 14
"""Largest number of basis functions whose sum does not overflow in single precision."""

_SMALLEST_PHI = 1e-10
"""Added to the inverse dispersion: far from every centre the basis functions underflow."""

_SUMMED: Any = {"enumerate": "parallel", "category_dim": "cell_type"}


class CellAssignModule(PyroBaseModule):
    r"""Mixture of cell types that over-express known marker genes.

    For cell :math:`n` with size factor :math:`s_n` and covariates :math:`x_{np}`, gene :math:`g`
    and cell type :math:`c`, of which the marker table :math:`\rho` tells that
    :math:`\rho_{gc} = 1` if :math:`g` marks :math:`c`, and 0 otherwise:

    .. math::
        \pi &\sim \mathrm{Dirichlet}(\alpha, \ldots, \alpha) \\
        \bar\delta &\sim \mathrm{Normal}(1, 0.5), \qquad
              \sigma \sim \mathrm{LogNormal}(-1, 0.5) \\
        \log \delta_{gc} &\sim \mathrm{Normal}(\bar\delta, \sigma)
              \text{ above } \log \delta_\mathrm{min}, \text{ where } \rho_{gc} = 1 \\
        \beta_{g0} &\sim \mathrm{Normal}(0, 3), \qquad \beta_{gp} \sim \mathrm{Normal}(0, 1) \\
        \log a_i &\sim \mathrm{Normal}(0, 2), \qquad i = 1, \ldots, B \\
        c_n &\sim \mathrm{Categorical}(\pi) \\
        \log \mu_{ng} &= \log s_n + \beta_{g0} + \textstyle\sum_p x_{np} \beta_{gp}
              + \delta_{g c_n} \rho_{g c_n} \\
        \phi(\mu) &= \textstyle\sum_i a_i \exp\{-b (\mu - v_i)^2\} \\
        x_{ng} &\sim \mathrm{NB}(\mu_{ng}, \phi(\mu_{ng}))

    The centres :math:`v_1 = 0, \ldots, v_B` are equally far apart, :math:`v_B` is the largest
    count, and :math:`b = 1 / (2 (v_2 - v_1)^2)`. :math:`\phi` is the inverse dispersion: the
    variance is :math:`\mu + \mu^2 / \phi`. :math:`c_n` is summed out exactly, so what is maximised
    is a bound on the marginal likelihood of the counts.

    Parameters
    ----------
    rho
        Marker table of zeros and ones, shape ``(n_vars, n_types)``.
    max_count
        The last centre :math:`v_B`.
    n_batch, n_cats_per_cov, n_continuous_cov
        Covariates: all categories but the first of the batches and of each categorical covariate
        have a column :math:`x_{np}`, and each continuous covariate has one.
    mean_size_factor
        Mean of the given size factors, or of the total counts where none are given: what
        :math:`s_n = 1` stands for.
    base_expression
        Mean of each gene's counts over size factors, shape ``(n_vars,)``: :math:`\beta_{g0}`
        starts where these would be the means if all types were equally common.
    delta_min
        Least over-expression of a marker: natural logarithm of the fold change.
    dirichlet_concentration
        :math:`\alpha`.
    n_basis
        :math:`B`.
    guide
        Family of the guide (see :func:`~pyrovi.module.make_guide`).

    Attributes
    ----------
    markers
        Row (gene) and column (type) of each marker in the table, shape ``(2, n_markers)``: the
        order of the site ``log_delta``.

    Raises
    ------
    ModelError
        If an option is out of range.

    Notes
    -----
    Where this is not the paper's word for word:

    - The paper maximises over :math:`\beta`, :math:`a`, :math:`\bar\delta` and :math:`\sigma`; here
      they have the weak priors above, so that all have posteriors, and the story can be simulated.
    - The bound :math:`\delta_\mathrm{min}` truncates the prior of :math:`\delta`. The paper's
      implementations clip :math:`\delta` after every step instead, under a prior that knows of no
      bound.
    - Beyond :math:`v_B`, where the basis functions vanish and would leave a negative binomial with
      almost all of its mass at 0, however large its mean, :math:`\phi` keeps its value at
      :math:`v_B`.
    - Columns of reference categories are left out: against :math:`\beta_{g0}` they would not be
      identified.
    """

    default_lr = 5e-2

    def __init__(
        self,
        rho: np.ndarray,
        max_count: float,
        n_batch: int = 1,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        *,
        mean_size_factor: float = 1.0,
        base_expression: np.ndarray | None = None,
        delta_min: float = 2.0,
        dirichlet_concentration: float = 0.01,
        n_basis: int = 10,
        guide: Any = "normal",
    ) -> None:
        super().__init__()
        _check_options(max_count, delta_min, dirichlet_concentration, n_basis)
        self.n_vars, self.n_types = rho.shape
        self.n_batch, self.n_cats_per_cov = n_batch, tuple(n_cats_per_cov)
        self.n_covariates = sum(n - 1 for n in (n_batch, *n_cats_per_cov)) + n_continuous_cov
        self.delta_min, self.n_basis = float(delta_min), n_basis
        self.dirichlet_concentration = float(dirichlet_concentration)
        self.max_count = float(max_count)
        self.markers = np.stack(np.nonzero(rho))
        self.register_buffer("mean_size_factor", torch.tensor(float(mean_size_factor)))
        position = torch.as_tensor(self.markers[1] * self.n_vars + self.markers[0])
        self.register_buffer("position", position, persistent=False)

        self.site_dims = {"pi": ("cell_type",), "log_delta": ("marker",)}
        self.site_dims |= {"delta": ("cell_type", "var"), "log_a": ("basis",)}
        self.site_dims |= {"beta_0": ("var",), "mu": ("var",), "X": ("var",)}
        if self.n_covariates:
            self.site_dims["beta"] = ("covariate", "var")
        self.guide = make_guide(guide, self.model, init=self._initial_values(base_expression))

    # ------------------------------------------------------------------ the story

    def model(
        self,
        X: Tensor,
        total: Tensor | None = None,
        size_factor: Tensor | None = None,
        batch: Tensor | None = None,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> None:
        """The generative story; see the class."""
        alpha = X.new_full((self.n_types,), self.dirichlet_concentration)
        pi = pyro.sample("pi", dist.Dirichlet(alpha))
        delta = self._delta(X)
        beta_0 = pyro.sample("beta_0", dist.Normal(X.new_zeros(self.n_vars), 3.0).to_event(1))
        design = self._design(batch, extra_categorical_covs, extra_continuous_covs)
        covariates: Tensor | float = 0.0
        if design is not None:
            zeros = X.new_zeros(self.n_covariates, self.n_vars)
            covariates = design @ pyro.sample("beta", dist.Normal(zeros, 1.0).to_event(2))
        log_a = pyro.sample("log_a", dist.Normal(X.new_zeros(self.n_basis), 2.0).to_event(1))
        s = (total if size_factor is None else size_factor) / self.mean_size_factor
        with self.obs_plate():
            c = pyro.sample("c", dist.Categorical(pi), infer=_SUMMED)
            log_mu = s.log() + beta_0 + covariates + Vindex(delta)[..., c, :]
            mu = log_mu.clamp(max=_LARGEST_LOG_MU).exp()
            pyro.deterministic("mu", mu, event_dim=1)
            likelihood = NegativeBinomial(mu=mu, theta=self._phi(mu, log_a))
            pyro.sample("X", likelihood.to_event(1), obs=X)

    # ------------------------------------------------------------------ its parts

    def _delta(self, X: Tensor) -> Tensor:
        """Log fold changes of the markers, and 0 for the other genes, ``(n_types, n_vars)``."""
        delta_bar = pyro.sample("delta_bar", dist.Normal(X.new_tensor(1.0), 0.5))
        sigma = pyro.sample("sigma", dist.LogNormal(X.new_tensor(-1.0), 0.5))
        prior = TruncatedNormal(delta_bar, sigma, math.log(self.delta_min))
        shape = (len(self.position),)
        log_delta = pyro.sample("log_delta", prior.expand(shape).to_event(1))
        zeros = log_delta.new_zeros(*log_delta.shape[:-1], self.n_types * self.n_vars)
        delta = zeros.index_copy(-1, self.position, log_delta.exp())
        delta = delta.reshape(*delta.shape[:-1], self.n_types, self.n_vars)
        return pyro.deterministic("delta", delta, event_dim=2)

    def _phi(self, mu: Tensor, log_a: Tensor) -> Tensor:
        """Inverse dispersion at a mean."""
        # In units of the distance of the centres, which then are 0, ..., B - 1, b is 1/2, and
        # exp(-(t - i)^2 / 2) = exp(-t^2 / 2) exp(t)^i exp(-i^2 / 2): a polynomial in exp(t - m),
        # with m the middle of the centres lest powers overflow, in the place of B exponentials.
        last = self.n_basis - 1
        t = mu.clamp(max=self.max_count) * (last / self.max_count)
        i = torch.arange(self.n_basis, dtype=log_a.dtype, device=log_a.device)
        middle = 0.5 * last
        coefficients = (log_a - 0.5 * (i - middle).square())[..., None].exp()
        r = (t - middle).exp()
        phi = coefficients[..., last, :]
        for power in range(last - 1, -1, -1):
            phi = phi * r + coefficients[..., power, :]
        return phi * (-0.5 * (t - middle).square() - middle * (t - middle)).exp() + _SMALLEST_PHI

    def _design(
        self, batch: Tensor | None, categorical: Tensor | None, continuous: Tensor | None
    ) -> Tensor | None:
        """Columns of the covariates, shape ``(n, n_covariates)``; ``None`` without any."""
        if not self.n_covariates:
            return None
        has_batches = self.n_batch > 1
        codes = split_codes(batch if has_batches else None, categorical)
        n_levels = [self.n_batch] * has_batches + list(self.n_cats_per_cov)
        columns = indicator_columns(codes, n_levels, self.mean_size_factor.dtype)
        return torch.cat([*columns, *(() if continuous is None else (continuous,))], -1)

    def _initial_values(self, base_expression: np.ndarray | None) -> dict[str, Tensor]:
        """Over-expression as the prior has it, in types that are equally common."""
        low = math.log(self.delta_min)
        log_delta = (1 + 0.3 * torch.randn(len(self.position))).clamp(min=low + 0.1)
        values = {
            "pi": torch.randn(self.n_types).softmax(-1),
            "log_delta": log_delta,
            "log_a": torch.zeros(self.n_basis),
        }
        if base_expression is not None:
            share = np.bincount(self.markers[0], minlength=self.n_vars) / self.n_types
            fold = 1 + share * math.expm1(math.e)
            beta_0 = np.log(np.maximum(base_expression / fold, 1e-4))
            values["beta_0"] = torch.as_tensor(beta_0, dtype=torch.float32)
        return values


def _check_options(
    max_count: float, delta_min: float, dirichlet_concentration: float, n_basis: int
) -> None:
    positive = {"max_count": max_count, "delta_min": delta_min}
    positive["dirichlet_concentration"] = dirichlet_concentration
    for name, value in positive.items():
        if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
            raise ModelError(f"{name} must be a positive number, got {value!r}.")
    if not 2 <= n_basis <= _MOST_BASES:
        raise ModelError(f"n_basis must be between 2 and {_MOST_BASES}, got {n_basis!r}.")
