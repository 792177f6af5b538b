"""What has to hold of a model for draws from its prior."""

from __future__ import annotations

from collections.abc import Container

from pyrovi.errors import ModelError
from pyrovi.module.ledger import Role, SiteLedger
from pyrovi.module.plates import OBS_PLATE


def check_prior_draws(ledger: SiteLedger, given: Container[str] = ()) -> None:
    """Refuse to draw from a prior that cannot be drawn from.

    Parameters
    ----------
    ledger
        The sites of the model.
    given
        Names of the latent sites whose values are known.

    Raises
    ------
    ModelError
        Naming the sites with a flat prior, or the factors that belong to the prior.
    """
    if improper := [name for name in ledger.improper if name not in given]:
        one = len(improper) == 1
        raise ModelError(
            f"{_named('Site', improper)} {'has an' if one else 'have'} improper "
            f"prior{'' if one else 's'} (dist.ImproperUniform), from which nothing can be drawn. "
            f"Give {'it a proper one' if one else 'them proper ones'}, e.g. dist.Normal(0, 10), or "
            "dist.HalfNormal(10) for what is positive."
        )
    factors = prior_factors(ledger)
    if factors and any(name not in given for name in ledger.names(Role.GLOBAL)):
        raise ModelError(
            f"{_named('Factor', factors)} (pyro.factor) outside the observation plate "
            f"{'is' if len(factors) == 1 else 'are'} part of the prior, but a term of the density "
            "cannot be drawn from: draws of the sites alone would leave it out. Write it as a "
            "distribution in pyro.sample, e.g. pyro.sample('mu', dist.Normal(3, 0.1)); posterior "
            "queries need no change."
        )


def prior_factors(ledger: SiteLedger) -> list[str]:
    """Names of the ``pyro.factor`` terms that belong to the prior.

    These are the terms outside the observation plate; inside they belong to the likelihood. Of a
    story that observes nothing and has none inside, they are the only place for data, so they are
    its likelihood.
    """
    factors = ledger.names(Role.FACTOR)
    outside = [name for name in factors if OBS_PLATE not in ledger[name].plates]
    has_data = bool(ledger.names(Role.OBSERVED)) or len(outside) < len(factors)
    return outside if has_data else []


def _named(word: str, names: list[str]) -> str:
    return f"{word}{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"
