r"""VAE: the model/guide pair of scVI (Lopez et al. 2018, Nature Methods 15:1053)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyrovi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.counts import (
    dispersion_of,
    sample_library,
    set_library_prior,
    split_codes,
)
from pyrovi.module.option_checks import check_choices, check_sizes
from pyrovi.nn import DecoderSCVI, Embedding, Encoder

_SMALLEST_RATE = 1e-8
"""Added to the rate of a count: softmax underflows to zero in float32."""

_CHOICES = {
    "dispersion": ("gene", "gene-batch", "gene-label", "gene-cell"),
    "gene_likelihood": ("zinb", "nb", "poisson", "normal"),
    "latent_distribution": ("normal", "ln"),
    "batch_representation": ("one-hot", "embedding"),
    "use_batch_norm": ("encoder", "decoder", "none", "both"),
    "use_layer_norm": ("encoder", "decoder", "none", "both"),
}


class _Seen(NamedTuple):
    """What the encoders see: features and covariates."""

    x: Tensor
    categorical: tuple[Tensor, ...]
    continuous: Tensor | None


class VAE(PyroBaseModule):
    r"""Variational autoencoder of counts.

    For cell :math:`n` with batch :math:`s_n`, and gene :math:`g`:

    .. math::
        z_n &\sim \mathrm{Normal}(0, I) \\
        l_n &= \log \textstyle\sum_g x_{ng}, \text{ or a given log size factor, or }
              l_n \sim \mathrm{Normal}(m_{s_n}, v_{s_n}^{1/2}) \\
        \rho_n &= \mathrm{softmax}(\mathrm{decoder}(z_n, s_n)) \\
        \mu_{ng} &= e^{l_n} \rho_{ng} \\
        x_{ng} &\sim \mathrm{ZINB}(\mu_{ng}, \theta_g, \pi_{ng})

    with the guide :math:`q(z_n \mid x_n) = \mathrm{Normal}(m(x_n), s(x_n))` (and another encoder
    for :math:`l_n` where it is latent). :math:`\theta` is the inverse dispersion: the variance of
    the negative binomial is :math:`\mu + \mu^2 / \theta`.

    Parameters
    ----------
    n_vars, n_batch, n_labels
        Numbers of genes, batches and labels.
    n_hidden, n_latent, n_layers, dropout_rate
        Width, latent dimensions, hidden layers of encoder and decoder, dropout of the encoder.
    n_cats_per_cov, n_continuous_cov
        Further covariates.
    dispersion
        Whether :math:`\theta` is per ``"gene"``, ``"gene-batch"``, ``"gene-label"`` or
        ``"gene-cell"`` (predicted by the decoder).
    gene_likelihood
        ``"zinb"``, ``"nb"``, ``"poisson"`` or ``"normal"``.
    latent_distribution
        ``"normal"``, or ``"ln"``: the decoder sees ``softmax(z)``. The site ``z`` is Gaussian in
        both cases; ``latent`` is what the decoder sees.
    log_variational
        Whether the encoder sees ``log1p(x)``.
    encode_covariates
        Whether the encoder sees batch and covariates.
    deeply_inject_covariates
        Whether covariates enter every layer, not only the first.
    batch_representation, batch_embedding_dim
        ``"one-hot"``, or ``"embedding"`` with so many dimensions.
    use_batch_norm, use_layer_norm
        ``"encoder"``, ``"decoder"``, ``"both"`` or ``"none"``.
    use_size_factor_key
        Whether a size factor is registered: the scale is then ``softplus``, not ``softmax``.
    use_observed_lib_size
        Whether :math:`l_n` is the observed log total.
    library_log_means, library_log_vars
        Mean and variance of the log totals in each batch, shape ``(n_batch,)``; needed where
        :math:`l_n` is latent.

    Raises
    ------
    ModelError
        If an option has an unknown value, or the library moments are missing.
    """

    def __init__(
        self,
        n_vars: int,
        n_batch: int = 1,
        n_labels: int = 1,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        *,
        n_cats_per_cov: list[int] | None = None,
        n_continuous_cov: int = 0,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        log_variational: bool = True,
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: Literal["one-hot", "embedding"] = "one-hot",
        batch_embedding_dim: int = 5,
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] = "both",
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] = "none",
        use_size_factor_key: bool = False,
        use_observed_lib_size: bool = True,
        library_log_means: np.ndarray | None = None,
        library_log_vars: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        check_choices(_CHOICES, locals())
        check_sizes(n_vars=n_vars, n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers)
        self.n_latent, self.n_batch, self.n_labels = n_latent, n_batch, n_labels
        self.dispersion, self.gene_likelihood = dispersion, gene_likelihood
        self.latent_distribution = latent_distribution
        self.log_variational, self.encode_covariates = log_variational, encode_covariates
        self.use_size_factor_key = use_size_factor_key
        self.latent_library = not use_observed_lib_size and not use_size_factor_key

        self.minified_sites = ("z", "l") if self.latent_library else ("z", "library")
        # a dimension is never called like a site: labelled results hold both under their names
        self.site_dims = {"z": ("latent_dim",), "latent": ("latent_dim",)}
        self.site_dims |= {"library": ("library_size",)}
        self.site_dims |= {"rho": ("var",), "mu": ("var",), "X": ("var",)}
        if self.latent_library:
            self.site_dims["l"] = ("library_size",)

        embedded = batch_representation == "embedding"
        self.batch_embedding = Embedding(n_batch, batch_embedding_dim) if embedded else None
        n_cats = ([] if embedded else [n_batch]) + list(n_cats_per_cov or [])
        n_extra = batch_embedding_dim if embedded else 0
        self.encoder = self._make_encoder(
            n_vars, n_latent, n_layers, n_hidden, n_cats, n_continuous_cov, n_extra, dropout_rate,
            deeply_inject_covariates, use_batch_norm, use_layer_norm,
        )  # fmt: skip
        self.decoder = self._make_decoder(
            n_latent + n_extra,
            n_vars,
            n_cat_list=n_cats,
            n_cont=n_continuous_cov,
            n_layers=n_layers,
            n_hidden=n_hidden,
            inject_covariates=deeply_inject_covariates,
            use_batch_norm=use_batch_norm in ("decoder", "both"),
            use_layer_norm=use_layer_norm in ("decoder", "both"),
            scale_activation="softplus" if use_size_factor_key else "softmax",
            cell_dispersion=dispersion == "gene-cell" and gene_likelihood != "poisson",
            zero_inflation=gene_likelihood == "zinb",
        )
        self.log_theta = self._make_log_theta(n_vars)
        if self.latent_library:
            self.library_encoder = self._make_encoder(
                n_vars, 1, 1, n_hidden, n_cats, n_continuous_cov, n_extra, dropout_rate,
                deeply_inject_covariates, use_batch_norm, use_layer_norm,
            )  # fmt: skip
            set_library_prior(self, library_log_means, library_log_vars)

    # ------------------------------------------------------------------ the story

    def model(
        self,
        X: Tensor,
        batch: Tensor,
        labels: Tensor,
        size_factor: Tensor | None = None,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> None:
        """The generative story; see the class."""
        with self.obs_plate():
            z = pyro.sample("z", dist.Normal(X.new_zeros(self.n_latent), 1.0).to_event(1))
            self._generate(
                z, X, batch, labels, size_factor, extra_categorical_covs, extra_continuous_covs
            )

    def guide(
        self,
        X: Tensor,
        batch: Tensor,
        extra_categorical_covs: Tensor | None = None,
        extra_continuous_covs: Tensor | None = None,
    ) -> None:
        """The amortised guide: each cell's counts tell its latent variables."""
        seen = self._seen(X, batch, extra_categorical_covs, extra_continuous_covs)
        with self.obs_plate():
            pyro.sample("z", self._posterior_of_z(seen))
            self._guide_library(seen)

    def default_elbo(self) -> ELBO:
        """The KL of diagonal Gaussians has a closed form."""
        return TraceMeanField_ELBO(max_plate_nesting=1)

    # ------------------------------------------------------------------ its parts

    def _generate(
        self,
        z: Tensor,
        X: Tensor,
        batch: Tensor,
        labels: Tensor,
        size_factor: Tensor | None,
        extra_categorical_covs: Tensor | None,
        extra_continuous_covs: Tensor | None,
    ) -> None:
        """The story from ``z`` on: library size, expression and counts."""
        latent = z.softmax(-1) if self.latent_distribution == "ln" else z
        latent = pyro.deterministic("latent", latent, event_dim=1)
        library = sample_library(self, X, batch, size_factor)

        inputs = torch.cat([latent, *_broadcast(latent, self._embedded(batch))], -1)
        categorical = self._categorical(batch, extra_categorical_covs)
        out = self.decoder(inputs, library, *categorical, cont=extra_continuous_covs)
        pyro.deterministic("rho", out.scale, event_dim=1)
        mu = pyro.deterministic("mu", out.rate, event_dim=1)
        theta = self._theta(out.r, batch, labels)
        pyro.sample("X", self._likelihood(mu, theta, out).to_event(1), obs=X)

    def _seen(
        self,
        X: Tensor,
        batch: Tensor,
        extra_categorical_covs: Tensor | None,
        extra_continuous_covs: Tensor | None,
    ) -> _Seen:
        """What the encoders see of the cells."""
        x = X.log1p() if self.log_variational else X
        if not self.encode_covariates:
            return _Seen(x, (), None)
        x = torch.cat([x, *self._embedded(batch)], -1)
        return _Seen(x, self._categorical(batch, extra_categorical_covs), extra_continuous_covs)

    def _posterior_of_z(self, seen: _Seen) -> Any:
        """The encoder of z."""
        loc, scale = self.encoder(seen.x, *seen.categorical, cont=seen.continuous)
        return dist.Normal(loc, scale).to_event(1)

    def _guide_library(self, seen: _Seen) -> None:
        if self.latent_library:
            loc, scale = self.library_encoder(seen.x, *seen.categorical, cont=seen.continuous)
            pyro.sample("l", dist.Normal(loc, scale).to_event(1))

    def _theta(self, predicted: Tensor | None, batch: Tensor, labels: Tensor) -> Tensor | None:
        """Inverse dispersion (standard deviation for the normal likelihood)."""
        if self.gene_likelihood == "poisson":
            return None
        if self.dispersion == "gene-cell":
            assert predicted is not None
            return predicted.exp()
        assert self.log_theta is not None
        if self.dispersion == "gene-label":
            return dispersion_of(self.log_theta, labels, self.n_labels)
        return dispersion_of(self.log_theta, batch, self.n_batch)

    def _likelihood(self, mu: Tensor, theta: Tensor | None, out: Any) -> Any:
        if self.gene_likelihood == "normal":
            assert theta is not None
            return Normal(mu, theta, normal_mu=out.scale)
        rate = mu + _SMALLEST_RATE
        if self.gene_likelihood == "poisson":
            return Poisson(rate, scale=out.scale)
        if self.gene_likelihood == "nb":
            return NegativeBinomial(mu=rate, theta=theta, scale=out.scale)
        return ZeroInflatedNegativeBinomial(
            mu=rate, theta=theta, zi_logits=out.dropout, scale=out.scale
        )

    def _embedded(self, batch: Tensor) -> list[Tensor]:
        return [] if self.batch_embedding is None else [self.batch_embedding(batch)]

    def _categorical(self, batch: Tensor, covariates: Tensor | None) -> tuple[Tensor, ...]:
        return split_codes(batch if self.batch_embedding is None else None, covariates)

    # ------------------------------------------------------------------ construction

    def _make_encoder(
        self, n_vars: int, n_output: int, n_layers: int, n_hidden: int, n_cats: list[int],
        n_cont: int, n_extra: int, dropout_rate: float, inject: bool, batch_norm: str,
        layer_norm: str,
    ) -> Encoder:  # fmt: skip
        encode = self.encode_covariates
        return Encoder(
            n_vars + (n_extra if encode else 0),
            n_output,
            n_cat_list=n_cats if encode else None,
            n_cont=n_cont if encode else 0,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
            inject_covariates=inject,
            use_batch_norm=batch_norm in ("encoder", "both"),
            use_layer_norm=layer_norm in ("encoder", "both"),
        )

    def _make_decoder(self, n_input: int, n_output: int, **options: Any) -> nn.Module:
        """The decoder, which a subclass may replace; options as :class:`DecoderSCVI` has them."""
        return DecoderSCVI(n_input, n_output, **options)

    def _make_log_theta(self, n_vars: int) -> nn.Parameter | None:
        """Log inverse dispersion; only where it is used, so that no parameter lies idle."""
        if self.gene_likelihood == "poisson" or self.dispersion == "gene-cell":
            return None
        columns = {"gene-batch": (self.n_batch,), "gene-label": (self.n_labels,)}
        return nn.Parameter(torch.randn(n_vars, *columns.get(self.dispersion, ())))


def _broadcast(like: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return [t.expand(*like.shape[:-1], t.shape[-1]) for t in tensors]
