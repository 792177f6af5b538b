"""Small data and models that the tests of models share, and a deep comparison of AnnData."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from pyrovi.data.synthetic import synthetic_iid
from pyrovi.model import SCVI

N_GENES = 12
SETUP = {
    "batch_key": "batch",
    "labels_key": "labels",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}
QUICK: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu"}


def make_data(batch_size: int = 30, seed: int = 0, **kwargs: Any) -> anndata.AnnData:
    """Counts with two batches, three labels, two donors, an age and a size factor."""
    adata = synthetic_iid(
        batch_size,
        n_genes=N_GENES,
        n_proteins=3,
        n_regions=0,
        dropout_ratio=0.3,
        seed=seed,
        **kwargs,
    )
    rng = np.random.default_rng(seed)
    adata.obs["donor"] = rng.choice(["d0", "d1"], adata.n_obs)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    adata.obs["size"] = rng.uniform(0.5, 2.0, adata.n_obs)
    return adata


def make_model(adata: anndata.AnnData | None = None, epochs: int = 1, **kwargs: Any) -> SCVI:
    """A small SCVI model, trained for a moment."""
    adata = make_data() if adata is None else adata
    SCVI.setup_anndata(adata, **SETUP)
    model = SCVI(adata, **{"n_hidden": 8, "n_latent": 3, **kwargs})
    if epochs:
        model.train(epochs, batch_size=16, **QUICK)
    return model


def state(model: Any) -> dict[str, np.ndarray]:
    """Copy of all parameters and buffers."""
    return {name: value.numpy().copy() for name, value in model.module.state_dict().items()}


def same_state(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def snapshot(adata: anndata.AnnData) -> anndata.AnnData:
    """Deep copy of everything."""
    return copy.deepcopy(adata.copy())


def assert_unchanged(adata: anndata.AnnData, before: anndata.AnnData) -> None:
    """All parts are as before: values, types, names, order of columns and keys."""
    for name in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(adata, name), getattr(before, name))
    _assert_same(adata.X, before.X)
    for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
        now, then = getattr(adata, name), getattr(before, name)
        assert list(now) == list(then), name
        for key in now:
            _assert_same(now[key], then[key])


def _assert_same(one: Any, two: Any) -> None:
    assert isinstance(one, type(two))  # parts of a view are of subclasses
    if isinstance(two, Mapping):
        assert list(one) == list(two)
        for key in two:
            _assert_same(one[key], two[key])
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, two)
    elif sparse.issparse(one):
        assert one.dtype == two.dtype
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(one, part), getattr(two, part))
    else:
        np.testing.assert_array_equal(one, two)
        assert getattr(one, "dtype", None) == getattr(two, "dtype", None)
