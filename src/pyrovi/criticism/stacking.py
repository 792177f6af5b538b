"""Stacking of predictive distributions: the best mixture of several models' predictions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrovi.errors import DataError


def stacking_weights(pointwise: ArrayLike) -> NDArray[np.float64]:
    r"""Weights of the mixture of predictions that predicts best.

    .. math:: \max_w \sum_n \log \sum_k w_k \, p_k(x_n), \qquad w_k \ge 0, \; \sum_k w_k = 1

    a concave problem. Unlike weights from the models' totals, models that predict the same share a
    weight, and one that is worse in total keeps some if it is better for some observations.

    Parameters
    ----------
    pointwise
        Log predictive densities, one row for each observation, one column for each model.

    Returns
    -------
    numpy.ndarray
        One weight for each model.

    Raises
    ------
    DataError
        If the table is not two-dimensional, is empty, or holds NaN or infinite values.

    References
    ----------
    Yao, Vehtari, Simpson, Gelman: Using stacking to average Bayesian predictive distributions.
    Bayesian Analysis 13, 917-1007 (2018).
    """
    from scipy.optimize import minimize

    table = np.asarray(pointwise, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise DataError(
            f"pointwise has shape {table.shape}, expected (observations, models), at least one of "
            "each."
        )
    if not np.isfinite(table).all():
        rows = int((~np.isfinite(table)).any(1).sum())
        raise DataError(
            f"{rows} observations have a log predictive density that is NaN or infinite; leave "
            "them out, or find out why a model gives them no probability."
        )
    num_models = table.shape[1]
    density = np.exp(table - table.max(1, keepdims=True))

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mixture = density @ weights
        return -float(np.log(mixture).mean()), -(density / mixture[:, None]).mean(0)

    # away from the corners no mixture is zero
    smallest = 1e-12
    found = minimize(
        loss,
        np.full(num_models, 1 / num_models),
        jac=True,
        method="SLSQP",
        bounds=[(smallest, 1.0)] * num_models,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    weights = np.where(found.x <= 2 * smallest, 0.0, found.x)
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised
