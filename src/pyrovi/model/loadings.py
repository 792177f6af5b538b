"""Loadings of the variables on latent factors, under the variables' names. Functions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pyrovi.model.base import BaseModelClass


def factor_names(n_factors: int) -> list[str]:
    """Names ``Z_0``, ``Z_1``, ... of the factors."""
    return [f"Z_{i}" for i in range(n_factors)]


def loadings_frame(model: BaseModelClass, loadings: Any) -> pd.DataFrame:
    """Loadings of shape ``(n_vars, n_factors)`` as a table: variables in rows, factors in columns.

    Parameters
    ----------
    loadings
        Tensor of the module.
    """
    values = np.asarray(loadings.detach().cpu())
    return pd.DataFrame(values, index=model.var_names, columns=factor_names(values.shape[1]))
