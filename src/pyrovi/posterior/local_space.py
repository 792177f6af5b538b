"""The local latents of each observation as one unconstrained vector, and its log density."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.ledger import Role
from pyrovi.posterior.density import observation_density
from pyrovi.posterior.discrete import DiscreteTable, enumerates
from pyrovi.posterior.stories import model_trace


class LocalSpace:
    """Unconstrained vectors of the continuous local latents of a minibatch.

    Parameters
    ----------
    module
        The pair.
    minibatch
        The observations.
    globals_
        One draw of the global sites.
    example
        A value of each local site, which tells the shapes.

    Raises
    ------
    ModelError
        If a local site is discrete, or its support depends on other sites.
    """

    def __init__(
        self,
        module: PyroBaseModule,
        minibatch: Minibatch,
        globals_: dict[str, Tensor],
        example: dict[str, Tensor],
    ) -> None:
        self.module, self.minibatch, self.globals = module, minibatch, globals_
        self.transforms = {}
        self._shapes: dict[str, torch.Size] = {}
        for name in module.ledger.names(Role.LOCAL):
            site = module.ledger[name]
            if site.support_varies or site.is_discrete:
                what = "has a support that depends on others" if site.support_varies else "discrete"
                raise ModelError(
                    f"The local latent {name!r} is {what}, so it cannot be mapped to real numbers. "
                    "A normal posterior needs continuous latents of fixed support."
                )
            self.transforms[name] = biject_to(site.support)
            self._shapes[name] = self._rows(name, self.transforms[name].inv(example[name])).shape

    def _rows(self, name: str, value: Tensor, event_dim: int = 0) -> Tensor:
        """Observations first; ``event_dim`` dimensions have been summed out."""
        axis = self.module.ledger[name].obs_axis
        assert axis is not None
        return value.movedim(axis + event_dim, 0)

    def flatten(self, values: dict[str, Tensor]) -> Tensor:
        """Values of the sites -> unconstrained vectors, shape ``(n, d)``."""
        n = self.minibatch.n
        parts = [
            self._rows(name, transform.inv(values[name])).reshape(n, -1)
            for name, transform in self.transforms.items()
        ]
        return torch.cat(parts, -1)

    def log_joint(self, vectors: Tensor) -> Tensor:
        """Log density of data and locals given the globals, as one of the vectors ``(n, d)``.

        Returns
        -------
        torch.Tensor
            Shape ``(n,)``; the Jacobian of the transforms included.
        """
        n, start = self.minibatch.n, 0
        values = dict(self.globals)
        jacobian = torch.zeros(n, dtype=vectors.dtype, device=vectors.device)
        for name, transform in self.transforms.items():
            shape, site = self._shapes[name], self.module.ledger[name]
            stop = start + shape[1:].numel()
            assert site.obs_axis is not None
            real = vectors[:, start:stop].reshape(shape).movedim(0, site.obs_axis)
            start = stop
            values[name] = transform(real)
            terms = transform.log_abs_det_jacobian(real, values[name])
            jacobian = jacobian + self._rows(name, terms, site.event_dim).reshape(n, -1).sum(-1)
        return self._density(values) + jacobian

    def _density(self, values: dict[str, Tensor]) -> Tensor:
        if enumerates(self.module, values):
            table = DiscreteTable(self.module, self.minibatch, values)
            return table.density(observed=True) + table.density(observed=False)
        trace = model_trace(self.module, self.minibatch, values)
        data = observation_density(trace, self.minibatch, observed=True)
        return data + observation_density(trace, self.minibatch)


def over_draws(space: LocalSpace, vectors: Tensor) -> Tensor:
    """Log density of each of many draws, differentiably: ``(K, n, d)`` to ``(K, n)``."""
    try:
        vectorised: Tensor = torch.func.vmap(space.log_joint)(vectors)
    except (RuntimeError, ValueError, NotImplementedError, TypeError):
        # what vmap cannot follow is run draw by draw; an error of the story itself is raised there
        return torch.stack([space.log_joint(vector) for vector in vectors])
    return vectorised
