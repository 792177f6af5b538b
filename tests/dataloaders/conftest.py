"""Registered data that the loader tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data import AnnDataManager, fields

N_OBS, N_VARS = 53, 11


def counts(n_obs: int = N_OBS, n_vars: int = N_VARS) -> np.ndarray:
    """Counts in which no row equals another and no row is empty."""
    rng = np.random.default_rng(3)
    array = rng.poisson(0.7, size=(n_obs, n_vars)).astype(np.float32)
    array[:, 0] = np.arange(1, n_obs + 1)
    array[:, 1:] += np.eye(n_obs, n_vars - 1, dtype=np.float32)  # no empty column
    return array


def make_adata(x: Any) -> anndata.AnnData:
    n_obs, n_vars = x.shape
    obs = pd.DataFrame(
        {
            "batch": np.array(["a", "b", "c"])[np.arange(n_obs) % 3],
            "labels": np.array(["T", "B", "unknown", "T"])[np.arange(n_obs) % 4],
            "age": np.linspace(0.0, 1.0, n_obs),
        },
        index=[f"cell{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame(
        {"length": np.arange(n_vars, dtype=np.float64)}, index=[f"gene{i}" for i in range(n_vars)]
    )
    adata = anndata.AnnData(x, obs=obs, var=var)
    adata.obsm["protein"] = pd.DataFrame(
        np.arange(2.0 * n_obs).reshape(n_obs, 2), index=adata.obs_names, columns=["p0", "p1"]
    )
    return adata


def make_manager(adata: anndata.AnnData) -> AnnDataManager:
    manager = AnnDataManager(
        [
            fields.LayerField(REGISTRY_KEYS.X_KEY, None),
            fields.CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, "batch"),
            fields.LabelsWithUnlabeledObsField(REGISTRY_KEYS.LABELS_KEY, "labels", "unknown"),
            fields.NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, ["age"]),
            fields.ObsmField(REGISTRY_KEYS.PROTEIN_EXP_KEY, "protein"),
            fields.NumericalVarField("length", "length"),
        ]
    )
    manager.register_fields(adata)
    return manager


class SimpleManager:
    """The part of a manager that loaders read, over one container of any kind."""

    def __init__(self, x: Any) -> None:
        self.n_obs = x.shape[0]
        self._x = x
        tensor = {"shape": [x.shape[1]], "dtype": "float32", "kind": "counts", "axis": "obs"}
        self.registry = {"field_registries": {"X": {"tensor": tensor}}}

    def get_from_registry(self, key: str) -> Any:
        return self._x


@pytest.fixture
def x() -> np.ndarray:
    return counts()


@pytest.fixture
def adata(x: np.ndarray) -> anndata.AnnData:
    return make_adata(sp.csr_matrix(x))


@pytest.fixture
def manager(adata: anndata.AnnData) -> AnnDataManager:
    return make_manager(adata)


@pytest.fixture
def manager_of() -> Callable[[Any], Any]:
    """Manager of one container, registered as ``X``."""
    return SimpleManager


@pytest.fixture
def register() -> Callable[[anndata.AnnData], AnnDataManager]:
    """Manager of an AnnData with the columns of `make_adata`."""
    return make_manager


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Let this process pass for one of several ranks."""

    def pretend(rank: int, world: int) -> None:
        for module in ("distributed", "loader", "device_loader", "splitter", "samplers"):
            name = f"pyrovi.dataloaders.{module}.distributed_rank_and_size"
            monkeypatch.setattr(name, lambda: (rank, world))

    return pretend
