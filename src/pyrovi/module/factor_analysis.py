r"""Linear Gaussian factor models: PPCA and factor analysis, with their exact posterior as guide."""

from __future__ import annotations

from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.option_checks import check_sizes

Noise = Literal["isotropic", "diagonal"]


class FactorAnalysisModule(PyroBaseModule):
    r"""Factors with linear effects and Gaussian noise.

    For observation :math:`n` with :math:`k` factors and :math:`D` variables:

    .. math::
        z_n &\sim \mathrm{Normal}(0, I_k) \\
        x_n &\sim \mathrm{Normal}(W z_n + \mu, \Psi)

    :math:`\Psi = \mathrm{diag}(\psi)` in factor analysis (``"diagonal"``) and
    :math:`\sigma^2 I` in probabilistic principal component analysis (``"isotropic"``).
    :math:`W, \mu, \Psi` are parameters. The guide is the posterior itself,

    .. math::
        q(z_n \mid x_n) = \mathrm{Normal}(M^{-1} W^\top \Psi^{-1} (x_n - \mu), M^{-1}), \qquad
        M = I + W^\top \Psi^{-1} W,

    a function of the same parameters. So the ELBO of every single draw is the marginal likelihood
    :math:`\log \mathrm{Normal}(x_n; \mu, W W^\top + \Psi)`, whatever the draw, and its gradient is
    that of maximum likelihood: only the choice of a minibatch adds noise.

    Parameters
    ----------
    n_vars, n_latent
        Numbers of variables :math:`D` and of factors :math:`k`, which has to be smaller.
    noise
        ``"isotropic"`` or ``"diagonal"``.
    centre, scale
        Offsets and units of the variables, shape ``(D,)``; 0 and 1 unless given. Training starts at
        this offset and steps in these units, so that it does not matter in which ones the data are;
        the maximum of the likelihood does not depend on them. The sites are in the data's units.

    Raises
    ------
    ModelError
        If the noise is unknown, or the number of factors does not fit.

    References
    ----------
    Tipping & Bishop (1999), *Probabilistic principal component analysis*. Roweis & Ghahramani
    (1999), *A unifying review of linear Gaussian models*.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        n_vars: int,
        n_latent: int = 10,
        *,
        noise: Noise = "diagonal",
        centre: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        if noise not in ("isotropic", "diagonal"):
            raise ModelError(f"noise must be 'isotropic' or 'diagonal', got {noise!r}.")
        check_sizes(n_latent=n_latent, n_vars=n_vars)
        if n_latent >= n_vars:
            raise ModelError(f"n_latent must be less than the {n_vars} variables, got {n_latent}.")
        self.n_vars, self.n_latent, self.noise = n_vars, n_latent, noise
        self.site_dims = {"W": ("var", "factor"), "mu": ("var",), "psi": ("var",)}
        self.site_dims |= {"z": ("factor",), "loc": ("var",), "X": ("var",)}
        scale = _or(scale, torch.ones(n_vars))
        if noise == "isotropic":  # one variance for all, so one unit
            scale = scale.square().mean().sqrt().expand(n_vars).clone()
        self.register_buffer("centre", _or(centre, torch.zeros(n_vars)))
        self.register_buffer("scale", scale)
        # in units of the scale: a tenth of the variance is random factors', the rest noise
        self.standard_W = nn.Parameter(torch.randn(n_vars, n_latent) * (0.1 / n_latent) ** 0.5)
        self.standard_mu = nn.Parameter(torch.zeros(n_vars))
        self.log_psi = nn.Parameter(torch.zeros(n_vars if noise == "diagonal" else ()))

    # ------------------------------------------------------------------ the story

    def model(self, X: Tensor) -> None:
        """The generative story; see the class."""
        W, mu, psi = self.values()
        W = pyro.deterministic("W", W, event_dim=2)
        mu = pyro.deterministic("mu", mu, event_dim=1)
        psi = pyro.deterministic("psi", psi, event_dim=1)
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(self.n_latent), 1.0).to_event(1))
            loc = pyro.deterministic("loc", z @ W.mT + mu, event_dim=1)
            pyro.sample("X", dist.Normal(loc, psi.sqrt()).to_event(1), obs=X)

    def guide(self, X: Tensor) -> None:
        """The posterior of the factors given the parameters."""
        W, mu, psi = self.values()
        weighted = W / psi[:, None]
        M = torch.eye(self.n_latent, dtype=W.dtype, device=W.device) + W.mT @ weighted
        M = (M + M.mT) / 2  # symmetric to the last digit, as the distribution asks for
        L = torch.linalg.cholesky(M)
        mean = torch.cholesky_solve(((X - mu) @ weighted).mT, L).mT
        with self.obs_plate():
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=M))

    # ------------------------------------------------------------------ its parameters

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`W` of shape ``(D, k)``, :math:`\mu` and :math:`\psi` of shape ``(D,)``."""
        W = self.scale[:, None] * self.standard_W
        return W, self.centre + self.scale * self.standard_mu, self.scale**2 * self.log_psi.exp()

    @torch.no_grad()
    def set_values(self, W: Tensor, mu: Tensor, psi: Tensor) -> None:
        r"""Put the parameters at given values, in the data's units.

        Parameters
        ----------
        W, mu, psi
            Shapes ``(D, k)``, ``(D,)`` and ``(D,)``; isotropic noise takes the mean of ``psi``.
        """
        if self.noise == "isotropic":
            psi = psi.mean()
        self.standard_W.copy_(W / self.scale[:, None])
        self.standard_mu.copy_((mu - self.centre) / self.scale)
        log_psi = (psi / self.scale**2).log()
        self.log_psi.copy_(log_psi if self.noise == "diagonal" else log_psi[0])

    @torch.no_grad()
    def use_principal_axes(self) -> None:
        r"""Rotate the factors so that the columns of :math:`W` are orthogonal, the largest first.

        The likelihood does not depend on the rotation. Signs are such that the largest loading of
        each factor is positive.
        """
        W, _, _ = self.values()
        U, S, _ = torch.linalg.svd(W.double(), full_matrices=False)
        largest = U.abs().argmax(0)
        sign = U[largest, torch.arange(self.n_latent, device=U.device)].sign()
        self.standard_W.copy_(U * S * sign / self.scale[:, None])


def _or(given: Tensor | None, default: Tensor) -> Tensor:
    return default if given is None else torch.as_tensor(given, dtype=torch.float32)
