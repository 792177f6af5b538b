"""Likelihoods of counts and expression: all are Pyro distributions.

They can be sampled in a Pyro model, expanded by plates, masked and turned into events::

    pyro.sample("X", NegativeBinomial(mu=mu, theta=theta).to_event(1), obs=X)
"""

from pyrovi.distributions.beta_binomial import BetaBinomial
from pyrovi.distributions.log_pmf import (
    log_beta_binomial,
    log_mixture_nb,
    log_nb_logits,
    log_nb_positive,
    log_poisson,
    log_zinb_positive,
)
from pyrovi.distributions.mixture import NegativeBinomialMixture
from pyrovi.distributions.multinomial import Multinomial, log_multinomial_coefficient
from pyrovi.distributions.negative_binomial import NegativeBinomial, Poisson
from pyrovi.distributions.normal import Log1pNormal, Normal
from pyrovi.distributions.truncated_normal import TruncatedNormal
from pyrovi.distributions.zero_inflated import (
    ZeroInflatedGamma,
    ZeroInflatedLogNormal,
    ZeroInflatedNegativeBinomial,
)

__all__ = [
    "BetaBinomial",
    "Log1pNormal",
    "Multinomial",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Normal",
    "Poisson",
    "TruncatedNormal",
    "ZeroInflatedGamma",
    "ZeroInflatedLogNormal",
    "ZeroInflatedNegativeBinomial",
    "log_beta_binomial",
    "log_mixture_nb",
    "log_multinomial_coefficient",
    "log_nb_logits",
    "log_nb_positive",
    "log_poisson",
    "log_zinb_positive",
]
