r"""Proposals of local latents that are fitted to single observations, for importance weights.

An encoder serves all observations with one set of weights; where it misses the posterior of one,
importance weights of its draws are useless. Here a normal distribution :math:`N(m_n, L_n L_n^\top)`
of the unconstrained locals is fitted to the observation, given one draw of the globals. Given
another draw :math:`g_s` of them it follows by Newton steps of the evidence lower bound (Khan and
Lin 2017, "variational online Newton"),

.. math:: \Lambda = -E_q[\nabla^2_u \log p(x_n, u \mid g_s)], \quad
          m \leftarrow m + \Lambda^{-1} E_q[\nabla_u \log p(x_n, u \mid g_s)], \quad
          L L^\top \leftarrow \Lambda^{-1}

with the expected Hessian from gradients alone, by Stein's lemma; :math:`L` is any factor of the
covariance. One step is exact where the log density is quadratic. Draws are a little wider than the
fit, for its tails may be too thin.
"""

from __future__ import annotations

import math

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.ledger import Role, Site
from pyrovi.module.local_proposal import WIDER
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.engine import bounded_batch_size, draws_at_once
from pyrovi.posterior.local_space import LocalSpace, over_draws
from pyrovi.posterior.refine import LocalNormal, matched_noise
from pyrovi.posterior.stories import guide_trace, latent_values
from pyrovi.posterior.vectorise import map_draws

MEAN, FACTOR = "_mean", "_factor"

_START_DRAWS = 100
"""Draws of the guide whose moments a fit starts from, at least."""

_FIT_DRAWS = 16
"""Draws that the bound is optimised with; more if there are as many coordinates."""

_STEPS = 8
"""Newton steps given a draw of the globals."""

_FIRST_ROUNDS = 8
"""Most rounds of so many steps for the first draw, until means rest."""

_LONGEST = 5.0
"""Longest step of the mean: root mean square of its coordinates, in standard deviations."""

_FLATTEST, _SHARPEST = 0.25, 16.0
"""Limits of how much a step changes precisions: a log density need not be concave."""

MAX_COORDINATES = 50
"""Largest number of local coordinates of an observation that a full covariance is fitted to."""

_COPIES = 4
"""Tensors of the size of the largest site that gradients keep, about."""

_FACTOR_BUDGET = 2**24
"""Largest number of elements of the covariances of a minibatch, for all draws of the globals."""


def can_fit(module: PyroBaseModule) -> bool:
    """Whether a normal of the unconstrained locals can be fitted: continuous, and not too many."""
    sites = [module.ledger[name] for name in module.ledger.names(Role.LOCAL)]
    return (
        not isinstance(module.posterior, StoredDraws)
        and all(_is_mappable(site) for site in sites)
        and _coordinates(module) <= MAX_COORDINATES
    )


def _is_mappable(site: Site) -> bool:
    """Whether a site has an unconstrained value of as many dimensions."""
    if site.support_varies or site.is_discrete:
        return False
    try:
        transform = biject_to(site.support)
    except NotImplementedError:
        return False
    return bool(transform.domain.event_dim == transform.codomain.event_dim)


def fitted_batch_size(module: PyroBaseModule, num_samples: int, wanted: int) -> int:
    """Batch size that keeps what :class:`FittedProposal` computes within memory."""
    dim = max(1, _coordinates(module))
    size = bounded_batch_size(module.ledger.values(), _COPIES * max(_FIT_DRAWS, 2 * dim), wanted)
    return max(1, min(size, _FACTOR_BUDGET // (num_samples * dim**2)))


def _coordinates(module: PyroBaseModule) -> int:
    """Local coordinates of an observation, at most (a simplex has one fewer than elements)."""
    sites = (module.ledger[name] for name in module.ledger.names(Role.LOCAL))
    return sum(math.prod(n for n in site.shape if isinstance(n, int)) for site in sites)


class FittedProposal:
    """Normals fitted to the observations of a minibatch.

    Parameters
    ----------
    module
        The fitted pair.
    minibatch
        The observations.
    globals_
        Draws of the globals, site -> ``(S, ...)``; the fit is to the first.
    """

    def __init__(
        self, module: PyroBaseModule, minibatch: Minibatch, globals_: dict[str, Tensor]
    ) -> None:
        self._module, self._minibatch = module, minibatch
        first = {name: draws[0] for name, draws in globals_.items()}
        with torch.no_grad():
            self._example = self._guided(first)
            space = self._space(first)
            dim = space.flatten(self._example).shape[-1]
            start = map_draws(
                lambda _: {"u": space.flatten(self._guided(first))},
                {},
                max(_START_DRAWS, 2 * dim),
                draws_at_once(module, minibatch.n),
                module,
            )
            self._mean, self._factor = LocalNormal(start["u"]).moments()
            self._noise = matched_noise(_FIT_DRAWS, self._mean)[:, 0]
            with pyro.validation_enabled(False):
                for _ in range(_FIRST_ROUNDS):
                    before = self._mean
                    self._mean, self._factor = self._newton(space, _STEPS)
                    if bool(((self._mean - before).abs() <= self._close()).all()):
                        break

    @property
    def num_draws(self) -> int:
        """Number of draws that expectations are taken over."""
        return len(self._noise)

    def given(self, globals_: dict[str, Tensor]) -> dict[str, Tensor]:
        """Story: mean ``(n, d)`` and factor ``(n, d, d)`` of the covariance given the globals."""
        mean, factor = self._newton(self._space(globals_), _STEPS)
        return {MEAN: mean, FACTOR: factor}

    def _close(self) -> Tensor:
        """A hundredth of the standard deviation of every coordinate."""
        return 0.01 * self._factor.square().sum(-1).sqrt()

    def _newton(self, space: LocalSpace, steps: int) -> tuple[Tensor, Tensor]:
        mean, factor = self._mean, self._factor

        def total(vectors: Tensor) -> Tensor:
            return over_draws(space, vectors).sum()

        for _ in range(steps):
            noisy = torch.einsum("nij,kj->kni", factor, self._noise)
            gradients = torch.func.grad(total)(mean + noisy)
            whitened = torch.einsum("nji,knj->kni", factor, gradients)
            # where a density overflows the normal stays as it is
            known = whitened.isfinite().all(0).all(-1)[:, None]
            whitened = whitened.where(known, 0.0)
            precision = -torch.einsum("ki,knj->nij", self._noise, whitened) / len(self._noise)
            values, vectors = torch.linalg.eigh((precision + precision.mT) / 2)
            values = values.where(known, 1.0).clamp_min(_FLATTEST)
            newton = torch.einsum("nji,knj->ni", vectors, whitened) / len(whitened) / values
            length = newton.square().mean(-1, keepdim=True).sqrt()
            arrives = length <= _LONGEST  # else it must not shrink before it is there
            newton = newton * (_LONGEST / length.clamp_min(_LONGEST))
            mean = mean + torch.einsum("nij,njk,nk->ni", factor, vectors, newton)
            scale = values.clamp_max(_SHARPEST).where(arrives, values.clamp_max(1.0)).rsqrt()
            factor = factor @ (vectors * scale[:, None])
        return mean, factor

    def weight(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Story: log importance weights of draws of :meth:`given`, a little wider, ``(n,)``."""
        mean, factor = values[MEAN], values[FACTOR]
        noise = torch.randn_like(mean)
        vectors = mean + WIDER * torch.einsum("nij,nj->ni", factor, noise)
        standard = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)
        log_scale = torch.linalg.slogdet(WIDER * factor)[1]
        joint = self._space(values).log_joint(vectors)
        return {"log_weight": joint - (standard - log_scale)}

    def _guided(self, globals_: dict[str, Tensor]) -> dict[str, Tensor]:
        """A draw of the guide's locals."""
        latents = latent_values(guide_trace(self._module, self._minibatch, globals_))
        return {name: latents[name] for name in self._module.ledger.names(Role.LOCAL)}

    def _space(self, globals_: dict[str, Tensor]) -> LocalSpace:
        known = {name: value for name, value in globals_.items() if name not in (MEAN, FACTOR)}
        return LocalSpace(self._module, self._minibatch, known, self._example)
