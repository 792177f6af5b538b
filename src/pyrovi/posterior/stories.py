"""Stories: what one draw of a minibatch is, for each kind of query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.handlers import Substitute, Uncondition
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.vectorise import Story


def latent_values(trace: poutine.Trace) -> dict[str, Tensor]:
    """Values of the latent sites of a guide trace."""
    return {
        name: node["value"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not isinstance(node["fn"], _Subsample)
        and not node["infer"].get("is_auxiliary")
    }


def guide_trace(
    module: PyroBaseModule, minibatch: Minibatch, values: dict[str, Tensor]
) -> poutine.Trace:
    """Run the guide with some sites given."""
    with Substitute(values):
        return poutine.trace(module.run_guide).get_trace(minibatch)


def model_trace(
    module: PyroBaseModule,
    minibatch: Minibatch,
    values: dict[str, Tensor],
    *,
    predictive: bool = False,
) -> poutine.Trace:
    """Run the model with the latent sites given; ``predictive`` samples the observed sites."""
    tracer = poutine.trace(module.run_model)
    with Substitute(values):
        if not predictive:
            return tracer.get_trace(minibatch)
        with Uncondition():
            return tracer.get_trace(minibatch)


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
        if set(sites) <= set(latents):
            return {name: latents[name] for name in sites}
        trace = model_trace(module, seen_by_model, latents, predictive=predictive)
        return {name: trace.nodes[name]["value"] for name in sites}

    return story


def prior_story(module: PyroBaseModule, minibatch: Minibatch, sites: Sequence[str]) -> Story:
    """One draw of the prior and the prior predictive distribution."""

    def story(values: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = model_trace(module, minibatch, values, predictive=True)
        return {name: trace.nodes[name]["value"] for name in sites}

    return story


def obs_dim(node: Any) -> int | None:
    """Batch dimension of the observation plate at a site; ``None`` outside of it."""
    return next((f.dim for f in node["cond_indep_stack"] if f.name == OBS_PLATE), None)
