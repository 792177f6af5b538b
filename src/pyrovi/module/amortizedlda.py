r"""LDA: latent Dirichlet allocation (Blei, Ng & Jordan 2003) with an encoder of the proportions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyrovi.distributions import Multinomial
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.option_checks import check_sizes
from pyrovi.module.plates import plate
from pyrovi.nn import Encoder

_INITIAL_SD = 0.1
"""Standard deviation of the guide of the topics at the start."""

_SPREAD = 0.5
"""Standard deviation of the topics around the overall log frequencies at the start."""


class LDA(PyroBaseModule):
    r"""Topic model of counts.

    For topics :math:`k = 1, \dots, K`, and for a cell (a document) :math:`n` with the total
    :math:`N_n = \sum_g x_{ng}` over genes (words) :math:`g = 1, \dots, G`:

    .. math::
        h^\beta_k &\sim \mathrm{Normal}(\mu(\eta), \sigma(\eta)), \qquad
            \beta_k = \mathrm{softmax}(h^\beta_k) \\
        h^\theta_n &\sim \mathrm{Normal}(\mu(\alpha), \sigma(\alpha)), \qquad
            \theta_n = \mathrm{softmax}(h^\theta_n) \\
        x_n &\sim \mathrm{Multinomial}(N_n, \theta_n \beta)

    The symbols are those of Blei et al.: :math:`\theta_n` are a cell's topic proportions,
    :math:`\beta_k` a topic's distribution over genes, :math:`\alpha` and :math:`\eta` the
    parameters of their Dirichlet priors. Both priors are replaced by their Laplace approximation in
    the softmax basis (Srivastava & Sutton 2017): for :math:`\mathrm{Dirichlet}(a)` of :math:`D`
    components,

    .. math::
        \mu_i = \log a_i - \frac1D \sum_j \log a_j, \qquad
        \sigma_i^2 = \frac1{a_i}\Big(1 - \frac2D\Big) + \frac1{D^2} \sum_j \frac1{a_j}.

    The topic of each single count is summed out, which leaves the multinomial.

    The guide is :math:`q(h^\beta) = \mathrm{Normal}(m, s)` for each entry, and
    :math:`q(h^\theta_n \mid x_n) = \mathrm{Normal}(m(x_n), s(x_n))` of an encoder that sees the
    relative frequencies :math:`x_n / N_n` and :math:`\log N_n`: proportions do not depend on the
    total, how well they are known does. All scales are standard deviations.

    Parameters
    ----------
    n_vars, n_topics
        Numbers of genes ``G`` and topics ``K``; at least 2.
    n_hidden, n_layers, dropout_rate
        Width, hidden layers and dropout of the encoder.
    cell_topic_prior, topic_feature_prior
        :math:`\alpha` and :math:`\eta`, positive: a number for a symmetric prior, or one for each
        topic (each gene). ``None``: ``1 / n_topics`` for both.
    log_frequencies
        Log of the overall relative frequencies of the genes, shape ``(n_vars,)``: where the guide
        of the topics starts, with noise. ``None``: at equal frequencies.

    Raises
    ------
    ModelError
        If a prior has the wrong length or is not positive, or there are fewer than two topics or
        genes.

    Notes
    -----
    Differences from scvi-tools' ``AmortizedLDA``: there the encoder's scale serves as a variance
    while results report another; the encoder sees raw counts; the scales of the topics start at
    their prior, whose standard deviation is larger than 4 with 20 topics; and the likelihood lacks
    the multinomial coefficient, so that it is no distribution of the counts.

    References
    ----------
    Blei, Ng, Jordan: Latent Dirichlet allocation. Journal of Machine Learning Research 3, 993-1022
    (2003).

    Srivastava, Sutton: Autoencoding variational inference for topic models. ICLR (2017).
    """

    default_lr = 1e-2

    def __init__(
        self,
        n_vars: int,
        n_topics: int = 20,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        *,
        cell_topic_prior: float | Sequence[float] | None = None,
        topic_feature_prior: float | Sequence[float] | None = None,
        log_frequencies: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        check_sizes(least=2, n_topics=n_topics, n_vars=n_vars)
        check_sizes(n_hidden=n_hidden, n_layers=n_layers)
        self.n_vars, self.n_topics = n_vars, n_topics
        self.site_dims = {"h_beta": ("var",), "beta": ("var",), "X": ("var",)}
        self.site_dims |= {"h_theta": ("topic",), "theta": ("topic",)}

        alpha = _concentration("cell_topic_prior", cell_topic_prior, n_topics, n_topics)
        eta = _concentration("topic_feature_prior", topic_feature_prior, n_vars, n_topics)
        for name, concentration in (("alpha", alpha), ("eta", eta)):
            mu, sigma = laplace_approximation(concentration)
            self.register_buffer(f"mu_{name}", mu)
            self.register_buffer(f"sigma_{name}", sigma)

        start = torch.zeros(n_vars)
        if log_frequencies is not None:
            start = torch.as_tensor(log_frequencies, dtype=torch.float32)
        noise = _SPREAD * torch.randn(n_topics, n_vars)
        self.h_beta_loc = nn.Parameter(start - start.mean() + noise)
        self.h_beta_log_scale = nn.Parameter(torch.full((n_topics, n_vars), np.log(_INITIAL_SD)))
        self.encoder = Encoder(
            n_vars + 1,
            n_topics,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
        )

    def model(self, X: Tensor) -> None:
        """The generative story; see the class."""
        with plate("topic", self.n_topics):
            h_beta = pyro.sample("h_beta", dist.Normal(self.mu_eta, self.sigma_eta).to_event(1))
            beta = pyro.deterministic("beta", h_beta.softmax(-1), event_dim=1)
        with self.obs_plate():
            prior = dist.Normal(self.mu_alpha, self.sigma_alpha).to_event(1)
            h_theta = pyro.sample("h_theta", prior)
            theta = pyro.deterministic("theta", h_theta.softmax(-1), event_dim=1)
            pyro.sample("X", Multinomial(X.sum(-1), theta @ beta), obs=X)

    def guide(self, X: Tensor) -> None:
        """Mean-field topics; each cell's counts tell its proportions."""
        with plate("topic", self.n_topics):
            scale = self.h_beta_log_scale.exp()
            pyro.sample("h_beta", dist.Normal(self.h_beta_loc, scale).to_event(1))
        with self.obs_plate():
            total = X.sum(-1, keepdim=True)
            # relative to equal frequencies, so that inputs are of order one for any number of genes
            frequencies = X / total.clamp(min=1.0) * self.n_vars
            loc, scale = self.encoder(torch.cat([frequencies, total.log1p()], -1))
            pyro.sample("h_theta", dist.Normal(loc, scale).to_event(1))

    def default_elbo(self) -> ELBO:
        """The KL of diagonal Gaussians has a closed form."""
        return TraceMeanField_ELBO(max_plate_nesting=1)


def laplace_approximation(concentration: Tensor) -> tuple[Tensor, Tensor]:
    """Normal approximation of a Dirichlet distribution in the softmax basis.

    Parameters
    ----------
    concentration
        Parameters of the Dirichlet distribution, shape ``(D,)``.

    Returns
    -------
    tuple of Tensor
        Means and **standard deviations**, shape ``(D,)``.

    References
    ----------
    MacKay: Choice of basis for Laplace approximation. Machine Learning 33, 77-86 (1998).
    """
    size, inverse = len(concentration), 1 / concentration
    mean = concentration.log() - concentration.log().mean()
    variance = inverse * (1 - 2 / size) + inverse.sum() / size**2
    return mean, variance.sqrt()


def _concentration(
    name: str, value: float | Sequence[float] | None, size: int, n_topics: int
) -> Tensor:
    given = torch.as_tensor(1 / n_topics if value is None else value, dtype=torch.float32)
    if given.shape not in ((), (size,)):
        raise ModelError(
            f"{name} has shape {tuple(given.shape)}; expected one number, or one for each of "
            f"{size} components."
        )
    if not bool(((given > 0) & given.isfinite()).all()):
        raise ModelError(f"{name} must be positive and finite, got {value}.")
    return given.expand(size)
