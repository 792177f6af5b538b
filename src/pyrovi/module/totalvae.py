r"""TOTALVAE: the model/guide pair of totalVI (Gayoso et al. 2021, Nature Methods 18:272)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn import functional

from pyrovi.distributions import (
    NegativeBinomial,
    NegativeBinomialMixture,
    ZeroInflatedNegativeBinomial,
)
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.counts import (
    dispersion_of,
    sample_library,
    set_library_prior,
    split_codes,
)
from pyrovi.module.option_checks import check_choices, check_sizes
from pyrovi.nn import Encoder, SkipNetwork

_SMALLEST = 1e-8
"""Added to rates and scales that may underflow to zero in float32."""

_CHOICES = {
    "gene_dispersion": ("gene", "gene-batch"),
    "protein_dispersion": ("protein", "protein-batch"),
    "gene_likelihood": ("nb", "zinb"),
    "latent_distribution": ("normal", "ln"),
    "use_batch_norm": ("encoder", "decoder", "none", "both"),
    "use_layer_norm": ("encoder", "decoder", "none", "both"),
}


class TOTALVAE(PyroBaseModule):
    r"""Variational autoencoder of the RNA and protein counts of the same cells.

    For cell :math:`n` with batch :math:`s_n`, gene :math:`g` and protein :math:`t`:

    .. math::
        z_n &\sim \mathrm{Normal}(0, I) \\
        l_n &= \log \textstyle\sum_g x_{ng}, \text{ or a given log size factor, or }
              l_n \sim \mathrm{Normal}(m_{s_n}, v_{s_n}^{1/2}) \\
        \rho_n &= \mathrm{softmax}(f_\rho(z_n, s_n)), \qquad \mu_{ng} = e^{l_n} \rho_{ng} \\
        x_{ng} &\sim \mathrm{NB}(\mu_{ng}, \theta_g) \\
        \beta_{nt} &\sim \mathrm{LogNormal}(c_{t s_n}, d_{t s_n}) \\
        \alpha_n &= 1 + \mathrm{ReLU}(g_\alpha(z_n, s_n)) \\
        \pi_n &= \mathrm{sigmoid}(h_\pi(z_n, s_n)) \\
        y_{nt} &\sim \pi_{nt}\, \mathrm{NB}(\beta_{nt}, \phi_t)
                 + (1 - \pi_{nt})\, \mathrm{NB}(\alpha_{nt} \beta_{nt}, \phi_t)

    with the guide
    :math:`q(z_n, l_n, \beta_n) = q(z_n \mid x_n, y_n, s_n)\, q(l_n \mid x_n, y_n, s_n)\,
    q(\beta_n \mid z_n, s_n)`, normal, normal and log-normal. :math:`y_{nt}` is the observed site
    ``proteins``: protein counts are background (ambient antibodies, :math:`\beta`, with
    probability :math:`\pi`) or foreground, larger by the factor :math:`\alpha`; the Bernoulli
    variable :math:`v_{nt}` that says which is summed out. :math:`\theta` and :math:`\phi` are
    inverse dispersions, :math:`c` and :math:`d` are learned.

    A protein that was not measured in the batch (or panel) of a cell has no term: neither its
    counts nor its background enter the ELBO. Its background can still be drawn.

    Parameters
    ----------
    n_vars, n_proteins, n_batch
        Numbers of genes, proteins and batches.
    measured
        Which proteins are measured in each panel, shape ``(n_panel, n_proteins)``, boolean;
        ``None``: all in all. Where there are no panels, batches are panels.
    n_hidden, n_latent, n_layers_encoder, n_layers_decoder
        Width, latent dimensions and numbers of hidden layers.
    dropout_rate_encoder, dropout_rate_decoder
        Dropout of the networks.
    n_cats_per_cov, n_continuous_cov
        Further covariates.
    gene_dispersion, protein_dispersion
        Whether :math:`\theta` is per ``"gene"`` or ``"gene-batch"``, and :math:`\phi` per
        ``"protein"`` or ``"protein-batch"``.
    gene_likelihood
        ``"nb"``, or ``"zinb"``, with zero inflation predicted beside :math:`\pi`.
    latent_distribution
        ``"normal"``, or ``"ln"``: the networks see ``softmax(z)``, as in the paper. The site ``z``
        is Gaussian in both cases; ``latent`` is what the networks see.
    log_variational
        Whether the encoder sees logarithms of the counts.
    encode_covariates
        Whether the encoder sees batch and covariates.
    use_batch_norm, use_layer_norm
        ``"encoder"``, ``"decoder"``, ``"both"`` or ``"none"``.
    use_size_factor_key
        Whether a size factor is registered: :math:`\rho` is then ``softplus``, not ``softmax``.
    use_observed_lib_size
        Whether :math:`l_n` is the observed log total. In the paper it is latent.
    library_log_means, library_log_vars
        Mean and variance of the log totals in each batch, shape ``(n_batch,)``; needed where
        :math:`l_n` is latent.
    background_log_means, background_log_sds
        Initial :math:`c` and :math:`d`, shape ``(n_proteins, n_panel)``; ``None``: 3 and 1.

    Raises
    ------
    ModelError
        If an option has an unknown value, or the library moments are missing.

    Notes
    -----
    scvi-tools adds to the objective of the paper: a factor per protein and batch on both means,
    with a log-normal penalty (here the networks see the batch, and learn such factors without one),
    and a penalty of ``1e-3`` on the log probability of the background. Neither is part of the
    generative story, and neither is here.

    As there, the likelihood of the proteins is warmed up with the KL terms. Without its KL term the
    background would explain the proteins by itself, :math:`z` would not be asked, and some of that
    stays. After the warm-up, the objective is the ELBO of the story.
    """

    warmed_up = ("proteins",)
    follows_interventions = ("beta",)

    def __init__(
        self,
        n_vars: int,
        n_proteins: int,
        n_batch: int = 1,
        measured: np.ndarray | None = None,
        n_hidden: int = 256,
        n_latent: int = 20,
        n_layers_encoder: int = 2,
        n_layers_decoder: int = 1,
        dropout_rate_encoder: float = 0.2,
        dropout_rate_decoder: float = 0.2,
        *,
        n_cats_per_cov: list[int] | None = None,
        n_continuous_cov: int = 0,
        gene_dispersion: Literal["gene", "gene-batch"] = "gene",
        protein_dispersion: Literal["protein", "protein-batch"] = "protein",
        gene_likelihood: Literal["nb", "zinb"] = "nb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        log_variational: bool = True,
        encode_covariates: bool = True,
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        use_size_factor_key: bool = False,
        use_observed_lib_size: bool = True,
        library_log_means: np.ndarray | None = None,
        library_log_vars: np.ndarray | None = None,
        background_log_means: np.ndarray | None = None,
        background_log_sds: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        check_choices(_CHOICES, locals())
        check_sizes(n_vars=n_vars, n_hidden=n_hidden, n_latent=n_latent)
        check_sizes(n_layers_encoder=n_layers_encoder, n_layers_decoder=n_layers_decoder)
        self.n_latent, self.n_batch, self.n_proteins = n_latent, n_batch, n_proteins
        self.gene_likelihood, self.latent_distribution = gene_likelihood, latent_distribution
        self.log_variational, self.encode_covariates = log_variational, encode_covariates
        self.use_size_factor_key = use_size_factor_key
        self.latent_library = not use_observed_lib_size and not use_size_factor_key

        self.minified_sites = ("z", "l") if self.latent_library else ("z", "library")
        self.site_dims = {"z": ("latent_dim",), "latent": ("latent_dim",)}
        self.site_dims |= {"library": ("library_size",)}
        self.site_dims |= dict.fromkeys(("rho", "mu", "X"), ("var",))
        self.site_dims |= dict.fromkeys(("beta", "alpha", "pi", "proteins"), ("protein",))
        self.dim_fields = {"protein": "proteins"}
        if self.latent_library:
            self.site_dims["l"] = ("library_size",)

        if measured is None:
            measured = np.ones((n_batch, n_proteins), dtype=bool)
        self.register_buffer("measured", torch.as_tensor(measured), persistent=False)
        self.lacks_proteins = not bool(np.all(measured))

        n_cats = [n_batch, *(n_cats_per_cov or [])]
        covariates: dict[str, Any] = {"n_cat_list": n_cats, "n_cont": n_continuous_cov}

        def encoder(n_output: int, n_layers: int) -> Encoder:
            return Encoder(
                n_vars + n_proteins,
                n_output,
                **(covariates if encode_covariates else {}),
                n_layers=n_layers,
                n_hidden=n_hidden,
                dropout_rate=dropout_rate_encoder,
                use_batch_norm=use_batch_norm in ("encoder", "both"),
                use_layer_norm=use_layer_norm in ("encoder", "both"),
            )

        def decoder(*n_outputs: int) -> SkipNetwork:
            return SkipNetwork(
                n_latent,
                n_outputs,
                **covariates,
                n_layers=n_layers_decoder,
                n_hidden=n_hidden,
                dropout_rate=dropout_rate_decoder,
                use_batch_norm=use_batch_norm in ("decoder", "both"),
                use_layer_norm=use_layer_norm in ("decoder", "both"),
            )

        self.z_encoder = encoder(n_latent, n_layers_encoder)
        self.rho_decoder = decoder(n_vars)
        self.alpha_decoder = decoder(n_proteins)
        self.pi_decoder = decoder(n_proteins, *([n_vars] if gene_likelihood == "zinb" else []))
        self.beta_decoder = decoder(n_proteins, n_proteins)  # of the guide
        per_batch = (n_batch,) if gene_dispersion == "gene-batch" else ()
        self.log_theta = nn.Parameter(torch.randn(n_vars, *per_batch))
        per_batch = (n_batch,) if protein_dispersion == "protein-batch" else ()
        self.log_phi = nn.Parameter(2 * torch.rand(n_proteins, *per_batch))
        self._set_background_prior(background_log_means, background_log_sds)
        if self.latent_library:
            self.l_encoder = encoder(1, 1)
            set_library_prior(self, library_log_means, library_log_vars)

    # ------------------------------------------------------------------ the story

    def model(
        self,
        X: Tensor,
        proteins: Tensor,
        batch: Tensor,
        panel: Tensor | None = None,
        size_factor: Tensor | None = None,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> None:
        """The generative story; see the class."""
        s, cont = split_codes(batch, extra_categorical_covs), extra_continuous_covs
        panel = (batch if panel is None else panel)[..., 0]
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(self.n_latent), 1.0).to_event(1))
            latent = pyro.deterministic("latent", self._latent(z), event_dim=1)
            library = sample_library(self, X, batch, size_factor)

            (f_rho,) = self.rho_decoder(latent, *s, cont=cont)
            rho = functional.softplus(f_rho) if self.use_size_factor_key else f_rho.softmax(-1)
            rho = pyro.deterministic("rho", rho, event_dim=1)
            mu = pyro.deterministic("mu", library.exp() * rho, event_dim=1)

            c, d = self.c.T[panel], self.log_d.T[panel].exp()
            beta = pyro.sample("beta", self._if_measured(dist.LogNormal(c, d), panel).to_event(1))
            (g_alpha,) = self.alpha_decoder(latent, *s, cont=cont)
            alpha = pyro.deterministic("alpha", 1 + g_alpha.relu(), event_dim=1)
            h_pi, *zero_logits = self.pi_decoder(latent, *s, cont=cont)
            pyro.deterministic("pi", h_pi.sigmoid(), event_dim=1)

            theta = dispersion_of(self.log_theta, batch, self.n_batch)
            phi = dispersion_of(self.log_phi, batch, self.n_batch)
            x = self._gene_counts(mu + _SMALLEST, theta, *zero_logits)
            pyro.sample("X", x.to_event(1), obs=X)
            y = NegativeBinomialMixture(mu1=beta, mu2=beta * alpha, theta1=phi, mixture_logits=h_pi)
            pyro.sample("proteins", self._if_measured(y, panel).to_event(1), obs=proteins)

    def guide(
        self,
        X: Tensor,
        proteins: Tensor,
        batch: Tensor,
        panel: Tensor | None = None,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> None:
        """The amortised guide: the counts of a cell tell its latent variables."""
        s, cont = split_codes(batch, extra_categorical_covs), extra_continuous_covs
        panel = (batch if panel is None else panel)[..., 0]
        counts = torch.cat([self._scaled(X), self._scaled(proteins)], -1)
        encoded: dict[str, Any] = {"cont": cont} if self.encode_covariates else {}
        categories = s if self.encode_covariates else ()
        with self.obs_plate():
            z = pyro.sample(
                "z", dist.Normal(*self.z_encoder(counts, *categories, **encoded)).to_event(1)
            )
            if self.latent_library:
                loc, scale = self.l_encoder(counts, *categories, **encoded)
                pyro.sample("l", dist.Normal(loc, scale).to_event(1))
            loc, scale = self.beta_decoder(self._latent(z), *s, cont=cont)
            beta = dist.LogNormal(loc, functional.softplus(scale) + _SMALLEST)
            pyro.sample("beta", self._if_measured(beta, panel).to_event(1))

    def default_elbo(self) -> ELBO:
        r"""The KL terms of :math:`z, l` and (given :math:`z`) :math:`\beta` have closed forms."""
        return TraceMeanField_ELBO(max_plate_nesting=1)

    # ------------------------------------------------------------------ its parts

    def _latent(self, z: Tensor) -> Tensor:
        return z.softmax(-1) if self.latent_distribution == "ln" else z

    def _if_measured(self, fn: Any, panel: Tensor) -> Any:
        """The distribution, without a density for proteins that were not measured."""
        return fn.mask(self.measured[panel]) if self.lacks_proteins else fn

    def _gene_counts(self, mu: Tensor, theta: Tensor, zero_logits: Tensor | None = None) -> Any:
        if zero_logits is None:
            return NegativeBinomial(mu=mu, theta=theta)
        return ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zero_logits)

    def _scaled(self, counts: Tensor) -> Tensor:
        """Counts as the encoder sees them: relative to the mean of the cell, as logarithms."""
        relative = counts / (1 + counts.mean(-1, keepdim=True))
        return relative.log1p() if self.log_variational else relative

    # ------------------------------------------------------------------ construction

    def _set_background_prior(self, means: np.ndarray | None, sds: np.ndarray | None) -> None:
        shape = (self.n_proteins, len(self.measured))
        means = np.full(shape, 3.0) if means is None else means
        sds = np.ones(shape) if sds is None else sds
        self.c = nn.Parameter(torch.as_tensor(means, dtype=torch.float32))
        self.log_d = nn.Parameter(torch.as_tensor(sds, dtype=torch.float32).log())
