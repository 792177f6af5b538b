"""Bounds on the evidence of the training and the held-out observations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._rng import generator
from pyrovi.errors import ModelError
from pyrovi.module.ledger import Role

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

_FEWEST = 20
"""Fewest draws of the locals for each draw of the globals."""

MAX_OBSERVATIONS = 2_000
"""Most observations of a set that the bounds are averaged over; a seeded sample of larger sets."""


def evidence_bounds(
    model: BaseModelClass,
    *,
    num_samples: int = 10,
    importance_samples: int = 200,
    max_observations: int | None = MAX_OBSERVATIONS,
    seed: int | None = None,
) -> pd.DataFrame:
    """Lower bounds on the log evidence per observation, of each set of observations.

    Parameters
    ----------
    model
        A trained model with its data.
    num_samples
        Draws that the ELBO is averaged over.
    importance_samples
        Draws of the tighter, importance-weighted bound for each observation; where there are
        global latents they are divided among ``num_samples`` draws of these.
    max_observations
        Most observations of a set to use; ``None`` for all.
    seed
        Root seed.

    Returns
    -------
    pandas.DataFrame
        One row for each set (``training``, ``held out``, ``test``) that is not empty:
        ``observations`` used; ``elbo`` and its standard error over observations; ``importance``, a
        bound that lies between the ELBO and the log evidence; and their difference, ``gap``: what
        the guide loses at least.

    Raises
    ------
    ModelError
        If the model has not been trained.
    """
    import pandas as pd

    sets = {
        "training": model.train_indices,
        "held out": model.validation_indices,
        "test": model.test_indices,
    }
    if not model.is_trained or model.train_indices is None:
        raise ModelError("The model has not been trained; call model.train() first.")
    rows: dict[str, dict[str, Any]] = {}
    for name, indices in sets.items():
        if indices is None or len(indices) == 0:
            continue
        used = _sample(np.asarray(indices), max_observations, name, seed)
        elbo = model.get_elbo(indices=used, num_samples=num_samples, seed=seed)
        local = model.get_elbo(indices=used, num_samples=num_samples, return_mean=False, seed=seed)
        assert isinstance(local, np.ndarray)
        tighter = _importance(model, used, num_samples, importance_samples, seed)
        # the shared cost of the globals is part of both bounds
        shared = float(local.mean()) - float(elbo)
        rows[name] = {
            "observations": len(used),
            "elbo": float(elbo),
            "standard error": float(local.std(ddof=1) / np.sqrt(len(used)))
            if len(used) > 1
            else np.nan,
            "importance": tighter - shared,
            "gap": tighter - shared - float(elbo),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("set")


def _importance(
    model: BaseModelClass, used: np.ndarray, num_samples: int, draws: int, seed: int | None
) -> float:
    """Importance-weighted bound per observation, given globals that are averaged over."""
    if not model.sites.names(Role.GLOBAL):
        return float(model.get_marginal_ll(indices=used, n_mc_samples=draws, seed=seed))
    # the same draws of the globals as those of the ELBO, so that the difference is not their noise
    found = model.marginal_log_likelihood(
        num_samples=num_samples,
        num_inner=max(_FEWEST, draws // num_samples),
        indices=used,
        seed=seed,
    )
    return float(found["log_likelihood"].mean())


def _sample(indices: np.ndarray, size: int | None, name: str, seed: int | None) -> np.ndarray:
    if size is None or len(indices) <= size:
        return indices
    chosen = generator("evidence bounds", name, seed=seed).choice(len(indices), size, replace=False)
    return indices[np.sort(chosen)]
