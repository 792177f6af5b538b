r"""NegativeBinomialGLMM: counts regressed on conditions, with random effects of donors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovi.distributions import NegativeBinomial
from pyrovi.distributions.scale_posterior import ScalePosterior
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.counts import indicator_columns, split_codes
from pyrovi.module.guides.distributions import PathDerivative, full_rank_normal
from pyrovi.module.plates import plate
from pyrovi.nn import one_hot

SHARED, GENES = "_shared_on_real_line", "_genes_on_real_line"
"""Auxiliary sites of the guide: the coordinates of what genes share, and of what each has."""

_SMALLEST_MEAN = 1e-10
"""Added to the mean of a count: the exponential underflows to zero in float32."""


class NegativeBinomialGLMM(PyroBaseModule):
    r"""Negative binomial regression of counts with donor effects, in which genes share strength.

    For cell :math:`n` of donor :math:`d(n)` with size factor :math:`l_n` (relative to the mean) and
    design row :math:`x_n`, gene :math:`g` and coefficient :math:`k`:

    .. math::
        \alpha_g &\sim \mathrm{Normal}(\mu_\alpha, \sigma_\alpha) \\
        \theta_g &\sim \mathrm{LogNormal}(\log \theta_0, \kappa) \\
        \beta_{kg} &\sim \mathrm{StudentT}_\nu(0, \tau_k) \\
        \sigma_g &\sim \mathrm{LogNormal}(\log \sigma_0, \omega) \\
        u_{dg} &\sim \mathrm{Normal}(0, \sigma_g) \\
        \mu_{ng} &= l_n \exp(\alpha_g + x_n \cdot \beta_g + u_{d(n) g}) \\
        x_{ng} &\sim \mathrm{NB}(\mu_{ng}, \theta_g)

    with :math:`\mu_\alpha \sim \mathrm{Normal}(0, 3)` and log-normal priors of what is positive:
    medians 1.5 (:math:`\sigma_\alpha`), 5 (:math:`\theta_0`), 0.7 (:math:`\kappa`), 0.2
    (:math:`\tau_k`), 0.2 (:math:`\sigma_0`) and 0.4 (:math:`\omega`). They keep the scales of the
    hierarchy away from zero, where the posterior would be a funnel that neither a normal guide nor
    a Markov chain gets through (Chung et al. 2013). :math:`\theta` is the inverse dispersion: the
    variance is :math:`\mu + \mu^2 / \theta`. All effects are on the natural logarithmic scale.

    The design row has an indicator of every level of the condition but the reference, of every
    level but the first of batch and categorical covariates, and the standardised continuous
    covariates.

    The guide has the dependence structure of this posterior, in which genes are independent given
    what they share, and :math:`\sigma_g` depends on the effects of donors alone. On the real line
    (positive unknowns in logarithms),

    .. math::
        \phi &= (\mu_\alpha, \log \sigma_\alpha, \log \theta_0, \log \kappa, \log \tau,
                \log \sigma_0, \log \omega) \sim \mathrm{Normal}(m, S) \\
        r_g \mid \phi &\sim \mathrm{Normal}(m_g + C_g D^{-1} (\phi - m), S_g) \\
        \sigma_g \mid \phi, u_g &\sim p(\sigma_g \mid \sigma_0, \omega, u_g)

    with full covariances, where :math:`D` has the scales of :math:`S`. The last line is exact
    (:class:`~pyrovi.distributions.scale_posterior.ScalePosterior`), and :math:`r_g` is
    :math:`(\log \theta_g, \alpha_g, \beta_g, u_g)`, but that each of these is stretched about a
    constant by powers of the scales above it: :math:`u_{dg} - \hat u_{dg} = (r - \hat u_{dg})\,
    (\sigma_0 / \hat\sigma_0)^\rho (\theta_g / \hat\theta_g)^{\rho'}`, for example. The powers are
    trained: 0 is the centred parametrisation, which suits effects that the data tell of, and 1 the
    non-centred one, which suits those they do not (Gorinova et al. 2020). Within a gene, a
    condition that is constant within donors is strongly correlated with the effects of these
    donors; independent coordinates would understate the variance of :math:`\beta` and make false
    discoveries.

    What remains normal, :math:`r_g` given :math:`\phi`, is not quite so in the posterior, and less
    so the larger :math:`\omega` is: with few donors the guide takes standard deviations of donor
    effects for more alike than they are. Effects of conditions hardly change; for
    :math:`\sigma_g` and :math:`\omega` themselves NUTS is to be preferred.

    Parameters
    ----------
    n_vars, n_condition
        Numbers of genes and of levels of the condition.
    n_donor
        Number of donors; 0 leaves :math:`u` and :math:`\sigma` out.
    n_batch, n_cats_per_cov, n_continuous_cov
        Further terms of the design.
    reference
        Code of the level of the condition that the others are compared with.
    effect_df
        Degrees of freedom :math:`\nu` of the prior of effects. Few of them let large effects stand
        among many small ones; infinity is the normal distribution.
    size_factor_mean, continuous_means, continuous_sds
        What size factors are divided by, and continuous covariates are standardised by.

    Raises
    ------
    ModelError
        If there is nothing to compare, or an option is out of range.

    References
    ----------
    Gelman & Hill: Data analysis using regression and multilevel/hierarchical models. Cambridge
    University Press (2007).

    Crowell et al.: muscat detects subpopulation-specific state transitions from multi-sample
    multi-condition single-cell transcriptomics data. Nature Communications 11, 6077 (2020).

    Gorinova, Moore, Hoffman: Automatic reparameterisation of probabilistic programs. ICML (2020).

    Chung, Rabe-Hesketh, Dorie, Gelman, Liu: A nondegenerate penalized likelihood estimator for
    variance parameters in multilevel models. Psychometrika 78, 685-709 (2013).
    """

    size_factor_mean: Tensor
    continuous_means: Tensor
    continuous_sds: Tensor
    shared_origin: Tensor
    genes_origin: Tensor
    genes_base: Tensor

    def __init__(
        self,
        n_vars: int,
        n_condition: int,
        n_donor: int = 0,
        n_batch: int = 1,
        *,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        reference: int = 0,
        effect_df: float = 3.0,
        size_factor_mean: float = 1.0,
        continuous_means: np.ndarray | None = None,
        continuous_sds: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if n_condition < 2:
            raise ModelError(
                f"The condition has {n_condition} level. Expected at least two, to compare them."
            )
        if not effect_df > 0:
            raise ModelError(
                f"effect_df={effect_df!r}: expected positive degrees of freedom, 3 for heavy tails "
                "or math.inf for a normal prior."
            )
        self.n_vars, self.n_donor, self.n_batch = n_vars, n_donor, n_batch
        self.n_condition, self.reference, self.effect_df = n_condition, reference, effect_df
        self.n_cats_per_cov = tuple(n_cats_per_cov)
        self.n_coefficients = sum(n - 1 for n in (n_condition, n_batch, *n_cats_per_cov))
        self.n_coefficients += n_continuous_cov
        means = np.zeros(n_continuous_cov) if continuous_means is None else continuous_means
        sds = np.ones(n_continuous_cov) if continuous_sds is None else continuous_sds
        self.register_buffer("size_factor_mean", torch.tensor(size_factor_mean))
        self.register_buffer("continuous_means", torch.as_tensor(means, dtype=torch.float32))
        self.register_buffer("continuous_sds", torch.as_tensor(sds, dtype=torch.float32))
        self._make_guide()

    # ------------------------------------------------------------------ the story

    def model(
        self,
        X: Tensor,
        condition: Tensor,
        donor: Tensor,
        batch: Tensor,
        size_factor: Tensor,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> None:
        """The generative story; see the class."""
        var, coefficient = self._plates()

        def positive(name: str, median: float, spread: float) -> Tensor:
            return pyro.sample(name, dist.LogNormal(X.new_tensor(math.log(median)), spread))

        mu_alpha = pyro.sample("mu_alpha", dist.Normal(X.new_zeros(()), 3.0))
        sigma_alpha = positive("sigma_alpha", 1.5, 0.5)
        theta_0, kappa = positive("theta_0", 5.0, 1.5), positive("kappa", 0.7, 0.5)
        with coefficient:
            tau = positive("tau", 0.2, 1.0)
        with var:
            alpha = pyro.sample("alpha", dist.Normal(mu_alpha, sigma_alpha))
            theta = pyro.sample("theta", dist.LogNormal(theta_0.log(), kappa))
            with coefficient:
                beta = pyro.sample("beta", self._effect_prior(tau))
        terms = [alpha[None], beta]
        if self.n_donor:
            sigma_0, omega = positive("sigma_0", 0.2, 1.0), positive("omega", 0.4, 0.5)
            with var:
                sigma = pyro.sample("sigma", dist.LogNormal(sigma_0.log(), omega))
                with self._donor_plate():
                    terms.append(pyro.sample("u", dist.Normal(torch.zeros_like(sigma), sigma)))

        x = self.design(condition, donor, batch, extra_categorical_covs, extra_continuous_covs)
        l = size_factor / self.size_factor_mean
        with self.obs_plate():
            rate = l * (x @ torch.cat(terms, -2)).exp()
            mu = pyro.deterministic("mu", rate + _SMALLEST_MEAN, event_dim=1)
            pyro.sample("X", NegativeBinomial(mu=mu, theta=theta).to_event(1), obs=X)

    def guide(self) -> None:
        """The guide: a normal distribution of what genes share, and of each gene given that."""
        phi = pyro.sample(SHARED, self._shared_normal(), infer={"is_auxiliary": True})
        var, coefficient = self._plates()
        for name, value in self._by_name(phi).items():
            if name == "mu_alpha":
                pyro.sample(name, dist.Delta(value[0]))
            elif name == "tau":
                with coefficient:
                    _sample_exp(name, value[:, None])
            else:
                _sample_exp(name, value[0])

        with var:
            r = pyro.sample(GENES, self._gene_normals(phi), infer={"is_auxiliary": True})
            w, stretch = self._stretched(r, phi)
            _sample_exp("theta", w[0], stretch[0])
            (alpha, beta, *u), (d_alpha, d_beta, *d_u) = (self._terms(x[1:]) for x in (w, stretch))
            pyro.sample("alpha", dist.Delta(alpha[0], -d_alpha[0]))
            with coefficient:
                pyro.sample("beta", dist.Delta(beta, -d_beta))
            if self.n_donor:
                with self._donor_plate():
                    pyro.sample("u", dist.Delta(u[0], -d_u[0]))
                shared = self._by_name(phi)
                prior = shared["sigma_0"], shared["omega"].exp()
                squares = (u[0] ** 2).sum(-2)
                pyro.sample("sigma", ScalePosterior(squares, self.n_donor, *prior))

    # ------------------------------------------------------------------ its parts

    def design(
        self,
        condition: Tensor,
        donor: Tensor,
        batch: Tensor,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> Tensor:
        """Rows that alpha, the coefficients beta and the donor effects u are multiplied with.

        Parameters
        ----------
        condition, donor, batch, extra_categorical_covs
            Codes, shape ``(n, columns)``.
        extra_continuous_covs
            Numbers, shape ``(n, columns)``.

        Returns
        -------
        Tensor
            Shape ``(n, 1 + n_coefficients + n_donor)``; the first column is of ones.
        """
        others = [i for i in range(self.n_condition) if i != self.reference]
        indicators = one_hot(condition, self.n_condition)
        columns = [torch.ones_like(indicators[..., :1]), indicators[..., others]]
        codes = split_codes(batch, extra_categorical_covs)
        n_levels = [self.n_batch, *self.n_cats_per_cov]
        columns += indicator_columns(codes, n_levels, indicators.dtype)
        if extra_continuous_covs is not None:
            columns.append((extra_continuous_covs - self.continuous_means) / self.continuous_sds)
        if self.n_donor:
            columns.append(one_hot(donor, self.n_donor))
        return torch.cat(columns, -1)

    @contextmanager
    def with_constants(self, values: Mapping[str, int]) -> Iterator[None]:
        """Run the story with another number of donors.

        Raises
        ------
        ModelError
            If another number is to change, or the story has no donors.
        """
        if values.keys() - {"n_donor"} or not self.n_donor:
            named = ", ".join(f"{name}={n}" for name, n in values.items())
            raise ModelError(
                f"The data have levels that the model has not seen ({named}). Only of new donors "
                "is anything known, by those that were seen; effects of new conditions, batches "
                "and covariates are not. Leave these observations out."
            )
        before, self.n_donor = self.n_donor, values["n_donor"]
        try:
            yield
        finally:
            self.n_donor = before

    def _plates(self) -> tuple[Any, Any]:
        var = plate("var", self.n_vars, dim=-1)
        return var, plate("coefficient", self.n_coefficients, dim=-2)

    def _donor_plate(self) -> Any:
        return plate("donor", self.n_donor, dim=-2)

    def _effect_prior(self, tau: Tensor) -> Any:
        zero = torch.zeros_like(tau)
        if math.isinf(self.effect_df):
            return dist.Normal(zero, tau)
        return dist.StudentT(self.effect_df, zero, tau)

    # ------------------------------------------------------------------ the guide's parameters

    def _make_guide(self) -> None:
        """Parameters in the units of a start, :meth:`start_at`, which is near nothing as yet."""
        names = ["mu_alpha", "sigma_alpha", "theta_0", "kappa", "tau"]
        names += ["sigma_0", "omega"] if self.n_donor else []
        self._shared_sizes = {n: self.n_coefficients if n == "tau" else 1 for n in names}
        n_shared, n_terms = sum(self._shared_sizes.values()), 1 + self.n_coefficients + self.n_donor
        n_own, genes = 1 + n_terms, self.n_vars
        self.shared_loc = nn.Parameter(torch.zeros(n_shared))
        self.shared_log_scale = nn.Parameter(torch.full((n_shared,), math.log(0.1)))
        self.shared_lower = nn.Parameter(torch.zeros(n_shared, n_shared))
        # restarts begin elsewhere: within a fraction of the units
        self.genes_loc = nn.Parameter(0.1 * torch.randn(genes, n_own))
        self.genes_log_scale = nn.Parameter(torch.zeros(genes, n_own))
        self.genes_lower = nn.Parameter(torch.zeros(genes, n_own, n_own))
        self.genes_slope = nn.Parameter(torch.zeros(genes, n_own, n_shared))
        self.rho_kappa = nn.Parameter(torch.full((genes,), 0.5))
        self.rho_tau = nn.Parameter(torch.full((self.n_coefficients, genes), 0.5))
        if self.n_donor:
            self.rho_sigma = nn.Parameter(torch.full((self.n_donor, genes), 0.5))
        self.rho_theta = nn.Parameter(torch.zeros(n_terms, genes))
        # centres, in units of the start: that of alpha is there, of effects it is zero at first
        self.centres = nn.Parameter(torch.zeros(n_terms, genes))
        with torch.no_grad():
            self.centres[0] = 1.0
        self.register_buffer("shared_origin", torch.zeros(n_shared))
        self.register_buffer("genes_origin", torch.zeros(genes, n_own))
        self.register_buffer("genes_base", 0.1 * torch.eye(n_own).repeat(genes, 1, 1))

    @torch.no_grad()
    def start_at(self, shared: Mapping[str, Tensor], mean: Tensor, covariance: Tensor) -> None:
        """Take a normal approximation; the parameters of genes then move in units of it.

        Parameters
        ----------
        shared
            Name -> value on the real line, of the sites that genes share.
        mean, covariance
            Of what each gene has, on the real line and in the order of the class docstring; shapes
            ``(n_vars, size)`` and ``(n_vars, size, size)``.
        """
        self.shared_loc.copy_(torch.cat([shared[name].reshape(-1) for name in self._shared_sizes]))
        self.shared_origin.copy_(self.shared_loc)
        self.genes_origin.copy_(mean)
        self.genes_base.copy_(torch.linalg.cholesky(covariance))

    def _by_name(self, phi: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._shared_sizes, phi.split([*self._shared_sizes.values()]), strict=True))

    def _terms(self, values: Tensor) -> list[Tensor]:
        """Rows of alpha, beta and u."""
        sizes = [1, self.n_coefficients] + ([self.n_donor] if self.n_donor else [])
        return list(values.split(sizes, -2))

    def _shared_normal(self) -> Any:
        unit = len(self.shared_loc) ** -0.5  # as in guides.families.FullRank
        scale = self.shared_log_scale.exp()
        return full_rank_normal(self.shared_loc, scale, self.shared_lower * unit)

    def _gene_normals(self, phi: Tensor) -> Any:
        """Of each gene given what genes share; the density has no gradient by the parameters."""
        unit = self.genes_loc.shape[-1] ** -0.5
        identity = torch.eye(self.genes_loc.shape[-1], device=phi.device)
        lower = (self.genes_lower * unit).tril(-1) + identity

        def make(
            loc: Tensor, log_scale: Tensor, lower: Tensor, slope: Tensor, m: Tensor, log_s: Tensor
        ) -> Any:
            moved = loc + slope @ ((phi - m) / log_s.exp())
            mean = self.genes_origin + (self.genes_base @ moved[..., None])[..., 0]
            factor = self.genes_base @ (log_scale.exp()[..., None] * lower)
            return dist.MultivariateNormal(mean, scale_tril=factor)

        return PathDerivative(
            make,
            *(self.genes_loc, self.genes_log_scale, lower, self.genes_slope),
            *(self.shared_loc, self.shared_log_scale),
        )

    def _stretched(self, r: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Log theta and terms of every gene, and the logarithms of what they were stretched by.

        Both of shape ``(1 + n_terms, n_vars)``.
        """
        r, origin = r.mT, self.genes_origin.mT
        above = self._by_name(phi - self.shared_origin)
        rows = [self.rho_kappa[None] * above["kappa"], torch.zeros_like(r[:1])]
        rows.append(self.rho_tau * above["tau"][:, None])
        if self.n_donor:
            rows.append(self.rho_sigma * above["sigma_0"])
        of_theta, of_terms = torch.cat(rows).split([1, len(r) - 1])
        median = self._by_name(self.shared_origin)["theta_0"]
        log_theta = median + (r[:1] - median) * of_theta.exp()
        of_terms = of_terms + self.rho_theta * (log_theta - origin[:1])
        centre = self.centres * origin[1:]
        terms = centre + (r[1:] - centre) * of_terms.exp()
        return torch.cat([log_theta, terms]), torch.cat([of_theta, of_terms])


def _sample_exp(name: str, value: Tensor, stretch: Tensor | float = 0.0) -> None:
    """A positive site, of which the logarithm is given, and by what it was stretched."""
    pyro.sample(name, dist.Delta(value.exp(), -value - stretch))
