"""How well the guide's local posterior fits each observation. Functions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi.errors import ModelError
from pyrovi.model.marginal import diagnose_weights, local_weights, log_mean
from pyrovi.module.ledger import Role
from pyrovi.module.stored import StoredDraws
from pyrovi.posterior.pareto import khat_threshold

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

FEWEST_DRAWS = 200
"""Fewest draws that a Pareto shape is estimated from."""


def local_fit(
    model: BaseModelClass,
    *,
    num_inner: int = 500,
    num_samples: int = 1,
    adata: Any = None,
    indices: Any = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Diagnose the guide's posterior of the local latents, observation by observation.

    Draws of the guide are weighed by :math:`p(x_n, z \mid g) / q(z \mid x_n, g)`. If the guide is
    the posterior, all weights of an observation are equal; if it misses parts of it, a few weights
    dominate, and the tail of their distribution is heavy: its Pareto shape :math:`\hat k` is large.

    Parameters
    ----------
    num_inner
        Draws ``K`` of the locals, at least 200.
    num_samples
        Draws of the globals; with several, the result is the median over (at most 10 of) them.
    adata, indices, batch_size, seed
        As in :meth:`sample_posterior`.

    Returns
    -------
    pandas.DataFrame
        One row for each observation, indexed by its name, ready to be joined to ``adata.obs``:
        ``khat``; ``ess``, the effective number of the ``K`` draws; ``threshold``, the largest
        :math:`\hat k` with which ``K`` draws are reliable, ``min(1 - 1/log10(K), 0.7)``; ``good``,
        whether :math:`\hat k` is not above it; and ``log_marginal``, the importance-weighted
        estimate of :math:`\log p(x_n \mid g)` in nats (averaged over the draws of the globals).

    Raises
    ------
    ModelError
        If the model has no continuous local latents that a guide draws, the guide gives them single
        values, or ``num_inner`` is below 200.

    References
    ----------
    Yao, Vehtari, Simpson, Gelman: Yes, but did it work? Evaluating variational inference. ICML
    (2018).

    Vehtari, Simpson, Gelman, Yao, Gabry: Pareto smoothed importance sampling. Journal of Machine
    Learning Research 25, 1-58 (2024).

    Examples
    --------
    >>> fit = model.local_fit()
    >>> fit["good"].mean()
    >>> adata.obs["khat"] = fit["khat"]
    """
    import pandas as pd

    require_locals(model)
    if num_inner < FEWEST_DRAWS:
        raise ModelError(
            f"num_inner must be at least {FEWEST_DRAWS} for the tail of the weights to be seen, "
            f"got {num_inner}."
        )
    manager, positions, _ = model.loader(adata, indices)
    parts = []
    for weights in local_weights(
        model,
        manager,
        positions,
        num_samples=num_samples,
        num_inner=num_inner,
        batch_size=batch_size,
        seed=seed,
    ):
        parts.append((*diagnose_weights(weights)[:2], log_mean(weights).mean(0)))
    khat, ess, marginal = (np.concatenate(part) for part in zip(*parts, strict=True))
    threshold = khat_threshold(num_inner)
    return pd.DataFrame(
        {
            "khat": khat,
            "ess": ess,
            "threshold": threshold,
            "good": khat <= threshold,
            "log_marginal": marginal,
        },
        index=pd.Index(np.asarray(manager.obs_names[positions]), name="obs"),
    )


def require_locals(model: BaseModelClass) -> None:
    """Refuse models without continuous local latents that a guide draws.

    Raises
    ------
    ModelError
        Naming what the model has.
    """
    if not model.sites.names(Role.LOCAL):
        raise ModelError(
            "The model has no latent with a value per observation that a guide draws; its latents "
            f"are: {', '.join(model.sites.names(Role.GLOBAL, Role.ENUMERATED)) or 'none'}. There "
            "is no local posterior to diagnose."
        )
    if isinstance(model.module.posterior, StoredDraws):
        raise ModelError(
            "The posterior of this model is a set of stored draws (of MCMC or a point estimate), "
            "not a guide with a density, so there are no importance weights to diagnose. For MCMC "
            "look at its convergence: criticism.diagnose(model)."
        )
