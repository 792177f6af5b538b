"""What the data of a regression have to tell: designs of full rank, and donors to compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data import AnnDataManager
from pyrovi.errors import DataError
from pyrovi.module.hierarchical_glm import NegativeBinomialGLMM

if TYPE_CHECKING:
    from pyrovi.model.hierarchical_glm import HierarchicalGLM

_KEYS = ("condition", "donor", "batch", "extra_categorical_covs", "extra_continuous_covs")


def design_rows(module: NegativeBinomialGLMM, manager: AnnDataManager) -> np.ndarray:
    """Design of all observations, ``(n, 1 + n_coefficients + n_donor)``."""
    registered = manager.registry["field_registries"]
    held = [k for k in _KEYS if registered[k]["tensor"] is not None]
    tensors = {}
    for key in held:
        values = np.asarray(manager.get_from_registry(key))
        dtype = torch.float32 if values.dtype.kind == "f" else torch.int64
        tensors[key] = torch.as_tensor(values, dtype=dtype)
    with torch.no_grad():
        return module.design(**tensors).double().numpy()


def standardisation(manager: AnnDataManager) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the continuous covariates.

    Raises
    ------
    DataError
        If one does not vary.
    """
    values = np.asarray(manager.get_from_registry(REGISTRY_KEYS.CONT_COVS_KEY), dtype=np.float64)
    means, sds = values.mean(0), values.std(0)
    if (constant := np.flatnonzero(sds == 0)).size:
        names = manager.registry["setup_args"]["continuous_covariate_keys"]
        raise DataError(
            f"The covariate {names[constant[0]]!r} has the same value {means[constant[0]]:g} in "
            "all observations, so it has no effect to estimate. Leave it out of "
            "continuous_covariate_keys."
        )
    return means, sds


def check_identified(model: HierarchicalGLM, manager: AnnDataManager) -> None:
    """Refuse designs whose effects only the priors would tell apart.

    Parameters
    ----------
    model
        The model.
    manager
        Its data.

    Raises
    ------
    DataError
        If terms of the design are linear combinations of others, or donors of effects.
    """
    module = model.module
    assert isinstance(module, NegativeBinomialGLMM)
    rows = design_rows(module, manager)
    products = rows.T @ rows / len(rows)
    n_fixed = 1 + module.n_coefficients
    rank = _rank(products[:n_fixed, :n_fixed])
    if rank < n_fixed:
        names = model.coefficient_names
        twice = sorted({name for name in names if names.count(name) > 1})
        fault = (
            f"{', '.join(twice)} is named twice, as two terms of the design"
            if twice
            else "some of them go together in all observations (a condition that is also a batch, "
            "a covariate that follows from others)"
        )
        raise DataError(
            f"The effects of {', '.join(dict.fromkeys(names))} cannot be told apart: {fault}. "
            "Leave one of those out."
        )
    if not module.n_donor:
        return
    if _rank(products) == rank:
        raise DataError(
            f"The {module.n_donor} donors of {model.get_setup_arg('donor_key')!r} cannot be told "
            "from the conditions: no condition has two donors, and no donor two conditions, so an "
            "effect of a condition cannot be told from a difference between donors. Expected at "
            "least two donors in one of the conditions."
        )


def _rank(products: np.ndarray) -> int:
    scale = np.sqrt(np.maximum(products.diagonal(), 1e-12))
    return int(np.linalg.matrix_rank(products / np.outer(scale, scale), tol=1e-6, hermitian=True))
