"""Stories: what one draw of a minibatch is, for each kind of query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro import poutine
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import PyroviError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.handlers import Substitute, Uncondition, is_latent
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.discrete import DiscreteTable, enumerates
from pyrovi.posterior.prior_draws import check_prior_draws
from pyrovi.posterior.vectorise import Story


def latent_values(trace: poutine.Trace) -> dict[str, Tensor]:
    """Values of the latent sites of a guide trace."""
    nodes: Mapping[str, Any] = trace.nodes
    return {
        name: node["value"]
        for name, node in nodes.items()
        if is_latent(node) and not node["infer"].get("is_auxiliary")
    }


def values_of(trace: poutine.Trace, sites: Sequence[str]) -> dict[str, Tensor]:
    """Values of some sites of a trace."""
    nodes: Mapping[str, Any] = trace.nodes
    return {name: nodes[name]["value"] for name in sites}


def guide_trace(
    module: PyroBaseModule, minibatch: Minibatch, values: dict[str, Tensor]
) -> poutine.Trace:
    """Run the guide with some sites given."""
    with Substitute(values):
        return _traced(module.run_guide, minibatch)


def intervened_latents(
    module: PyroBaseModule, minibatch: Minibatch, latents: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The latents of a draw under an intervention.

    Parameters
    ----------
    module
        The pair.
    minibatch
        The observations with other covariates.
    latents
        The draw, given the observations as they were.

    Returns
    -------
    dict
        The same, apart from what the module lets follow covariates: that is drawn anew.
    """
    if not module.follows_interventions:
        return latents
    kept = {k: v for k, v in latents.items() if k not in module.follows_interventions}
    return latent_values(guide_trace(module, minibatch, kept))


def proposal_trace(
    module: PyroBaseModule, minibatch: Minibatch, values: dict[str, Tensor]
) -> poutine.Trace:
    """Run the guide to propose locals for importance weights: their density has to be known.

    Draws that are merely stored are proposed anew, from normals that match them.
    """
    if not isinstance(module.posterior, StoredDraws):
        return guide_trace(module, minibatch, values)
    with module.posterior.proposing(module.ledger):
        return guide_trace(module, minibatch, values)


def model_trace(
    module: PyroBaseModule,
    minibatch: Minibatch,
    values: dict[str, Tensor],
    *,
    predictive: bool = False,
) -> poutine.Trace:
    """Run the model with the latent sites given; ``predictive`` samples the observed sites."""
    with Substitute(values):
        if not predictive:
            return _traced(module.run_model, minibatch)
        with Uncondition():
            return _traced(module.run_model, minibatch)


def _traced(function: Callable[[Minibatch], Any], minibatch: Minibatch) -> poutine.Trace:
    try:
        return poutine.trace(function).get_trace(minibatch)
    except PyroviError as error:
        # Pyro puts the shapes of all sites behind the message, which says what there is to say
        said = error.__cause__
        raise (said if isinstance(said, PyroviError) else error) from None


def posterior_story(
    module: PyroBaseModule,
    minibatch: Minibatch,
    sites: Sequence[str],
    *,
    predictive: bool,
    model_minibatch: Minibatch | None = None,
) -> Story:
    """One joint posterior draw: locals from the guide given the globals, then the model.

    Parameters
    ----------
    module
        The fitted pair.
    minibatch
        The observations.
    sites
        Sites to return.
    predictive
        Sample the observed sites too.
    model_minibatch
        What the model sees, if not the same as the guide: an intervention on covariates.
    """
    seen_by_model = minibatch if model_minibatch is None else model_minibatch

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = latent_values(guide_trace(module, minibatch, values))
        if model_minibatch is not None:
            latents = intervened_latents(module, model_minibatch, latents)
        if set(sites) <= set(latents):
            return {name: latents[name] for name in sites}
        if enumerates(module, latents):
            latents |= DiscreteTable(module, minibatch, latents).draw()
        trace = model_trace(module, seen_by_model, latents, predictive=predictive)
        return values_of(trace, sites)

    return story


def prior_story(module: PyroBaseModule, minibatch: Minibatch, sites: Sequence[str]) -> Story:
    """One draw of the prior and the prior predictive distribution."""

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        check_prior_draws(module.ledger, values)
        trace = model_trace(module, minibatch, values, predictive=True)
        return values_of(trace, sites)

    return story
