r"""Enumerated sites: discrete local latents that training sums out.

Given the continuous latents of an observation, the joint density of its discrete latents and data
is a finite table :math:`p(x_n, k_1, k_2, \ldots \mid z_n, g)`. Its sum is the marginal likelihood;
normalised, it is the exact posterior of the discrete latents.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.handlers import Substitute
from pyrovi.module.ledger import Role
from pyrovi.module.plates import OBS_PLATE
from pyrovi.posterior.density import (
    local_nodes,
    log_density,
    obs_dim,
    own_scale,
    per_observation,
)


class DiscreteTable:
    """The model with its other latents given and every enumerated site summed out or drawn.

    Parameters
    ----------
    module
        The pair.
    minibatch
        The observations.
    values
        Values of the latents that are not enumerated.
    scaled
        Weight the densities by the scales that the story gives them, as the objective does: the
        sum over the enumerated sites by their common one.

    Raises
    ------
    ModelError
        If an enumerated site does not stand in the observation plate alone.
    """

    def __init__(
        self,
        module: PyroBaseModule,
        minibatch: Minibatch,
        values: dict[str, Tensor],
        *,
        scaled: bool = False,
    ) -> None:
        self.n = minibatch.n
        self.nesting = module.ledger.max_plate_nesting
        model = poutine.enum(module.run_model, first_available_dim=-1 - self.nesting)
        with Substitute(values):
            self.trace = poutine.trace(model).get_trace(minibatch)
        names = [name for name in module.ledger.names(Role.ENUMERATED) if name not in values]
        self.dims = {name: _enumerated_dim(name, self.trace.nodes[name]) for name in names}
        if len(set(self.dims.values())) < len(names):
            raise ModelError(
                "Enumerated sites under pyro.markov cannot be queried: sites along a chain need a "
                "forward-backward pass. Name the other sites."
            )
        #: log densities that vary with an enumerated site, shape (*enumerated, n), and the others
        self.dependent: dict[str, Tensor] = {}
        self.independent: dict[str, Tensor] = {}
        self._scale: Any = 1.0
        for observed in (False, True):
            for name, node in local_nodes(self.trace, observed=observed):
                values_ = log_density(node)
                scale = own_scale(node, minibatch) if scaled else 1.0
                if values_.dim() > self.nesting:
                    terms = per_observation(node, values_, self.n, self.nesting)
                    self.dependent[name] = terms
                    self._scale = scale
                else:
                    terms = per_observation(node, scale_and_mask(values_, scale), self.n)
                    self.independent[name] = terms

    def joint(self, without: Collection[str] = ()) -> Tensor:
        """The table, of shape ``(*enumerated, n)``, without the terms of some sites."""
        terms = [term for name, term in self.dependent.items() if name not in without]
        shape = torch.broadcast_shapes(*(term.shape for term in self.dependent.values()))
        return torch.stack([term.expand(shape) for term in terms]).sum(0)

    def marginal(self, without: Collection[str] = ()) -> Tensor:
        """Logarithm of the sum of the table, shape ``(n,)``."""
        return self.joint(without).reshape(-1, self.n).logsumexp(0)

    def density(self, *, observed: bool) -> Tensor:
        """Sum of the log densities of the local sites, shape ``(n,)``.

        What depends on an enumerated site is summed out with it, and counts as observed.
        """
        marginal = self.marginal() * self._scale
        total = marginal if observed else torch.zeros_like(marginal)
        for name, term in self.independent.items():
            if self.trace.nodes[name]["is_observed"] == observed:
                total = total + term
        return total

    def likelihood(self, site: str) -> Tensor:
        """Log-likelihood of an observed site, the enumerated ones summed out, shape ``(n,)``."""
        if site in self.independent:
            return self.independent[site]
        observed = {n for n in self.dependent if self.trace.nodes[n]["is_observed"]}
        return self.marginal(observed - {site}) - self.marginal(observed)

    def probabilities(self, site: str) -> Tensor:
        """Posterior probabilities of the values of an enumerated site, shape ``(n, K)``."""
        joint = self.joint()
        sizes = joint.shape[:-1]
        axis = len(sizes) + self.nesting + self.dims[site]
        logits = joint.movedim(axis, 0).reshape(sizes[axis], -1, self.n).logsumexp(1)
        return logits.softmax(0).T

    def draw(self) -> dict[str, Tensor]:
        """Draw the enumerated sites from their exact joint posterior."""
        joint = self.joint()
        sizes = joint.shape[:-1]
        logits = joint.reshape(-1, self.n).T
        choice = torch.distributions.Categorical(logits=logits).sample()
        drawn = {}
        for name, dim in self.dims.items():
            axis = len(sizes) + self.nesting + dim
            position = choice // sizes[axis + 1 :].numel() % sizes[axis]
            node: Any = self.trace.nodes[name]
            event_shape = node["fn"].event_shape
            support = node["fn"].enumerate_support(expand=False).reshape(-1, *event_shape)
            batch_dims = -(obs_dim(node) or -1)
            drawn[name] = support[position].reshape(self.n, *(1,) * (batch_dims - 1), *event_shape)
        return drawn


def enumerates(module: PyroBaseModule, values: Collection[str]) -> bool:
    """Whether a model has enumerated sites that are not among the given values."""
    return any(name not in values for name in module.ledger.names(Role.ENUMERATED))


def _enumerated_dim(name: str, node: Any) -> int:
    plates = [frame.name for frame in node["cond_indep_stack"] if frame.vectorized]
    if plates != [OBS_PLATE]:
        raise ModelError(
            f"Enumerated site {name!r} stands in the plates {plates}; only discrete sites that "
            "have one value per observation (in the observation plate alone) can be queried."
        )
    if "_enumerate_dim" not in node["infer"]:
        raise ModelError(
            f"Site {name!r} is enumerated one value after the other, which queries cannot do; use "
            'infer={"enumerate": "parallel"}.'
        )
    return int(node["infer"]["_enumerate_dim"])
