"""The ELBO with its Monte-Carlo error. A function of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi.errors import ModelError
from pyrovi.model.draws import example_on_device, posterior_globals
from pyrovi.model.evidence import _minibatches
from pyrovi.module.ledger import Role
from pyrovi.posterior.bounds import elbo_story, global_kl_story
from pyrovi.posterior.globals import global_chunks

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


@dataclass(frozen=True)
class ElboEstimate:
    """Evidence lower bound per observation, in nats."""

    value: float
    """The estimate, as of :meth:`get_elbo`."""
    mcse: float
    """Its standard error from the finite number of draws of the latents."""
    se: float
    """Its standard error as the mean over a sample of observations of a population."""
    n_obs: int
    """Number of observations."""
    draws: NDArray[np.float64] = field(repr=False)
    """The value of each joint draw, shape ``(S,)``; their mean is the value."""

    def minus(self, other: ElboEstimate) -> tuple[float, float]:
        """Difference to another estimate, and its Monte-Carlo standard error.

        Parameters
        ----------
        other
            Estimate with as many draws. If both were made with the same seed, the noise is the same
            and cancels: checkpoints of one model that are close can be told apart.

        Raises
        ------
        ModelError
            If the numbers of draws differ.
        """
        if len(self.draws) != len(other.draws):
            raise ModelError(
                f"The estimates have {len(self.draws)} and {len(other.draws)} draws; compare those "
                "made with the same num_samples and seed."
            )
        return self.value - other.value, _standard_error(self.draws - other.draws)


def estimate_elbo(
    model: BaseModelClass,
    adata: Any = None,
    indices: Any = None,
    *,
    num_samples: int = 32,
    batch_size: int | None = None,
    seed: int | None = None,
) -> ElboEstimate:
    """Evidence lower bound per observation, with its Monte-Carlo error.

    Every draw is a joint one of all latents, so the error is that of the whole bound.

    Parameters
    ----------
    adata, indices, batch_size, seed
        As in :meth:`get_elbo`. The same seed gives the same noise (common random numbers).
    num_samples
        Number of draws, at least 2.

    Returns
    -------
    ElboEstimate
        Value and standard errors.

    Raises
    ------
    ModelError
        With fewer than two draws.
    """
    if num_samples < 2:
        raise ModelError(f"A Monte-Carlo error needs at least 2 draws, got {num_samples}.")
    manager = model.manager_of(adata)
    globals_ = posterior_globals(model, num_samples, seed, manager)
    totals, shared, locals_ = np.zeros(num_samples), np.zeros(num_samples), []
    for minibatch, run in _minibatches(model, manager, indices, batch_size, "bound", seed):
        values = run(elbo_story, minibatch, globals_, num_samples)
        local = (values["reconstruction"] - values["kl_local"]).double().cpu().numpy()
        totals += local.sum(1)
        shared += values["shared"].double().cpu().numpy() * minibatch.n
        locals_.append(local.mean(0))
    each = np.concatenate(locals_)
    n_obs = len(each)
    if model.sites.names(Role.GLOBAL):
        story = global_kl_story(model.module, example_on_device(model, manager))
        chunks = global_chunks(model.module, story, num_samples, seed=seed)
        cost = np.concatenate([c["kl_global"].double().cpu().numpy().ravel() for c in chunks])
    else:
        cost = np.zeros(num_samples)
    draws = totals / n_obs + (shared / n_obs - cost) / model.n_obs_training
    spread = _standard_error(each) if n_obs > 1 else float("nan")
    return ElboEstimate(float(draws.mean()), _standard_error(draws), spread, n_obs, draws)


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
