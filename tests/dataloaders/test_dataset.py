"""AnnTorchDataset: the registered fields, sliced per minibatch."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data import AnnDataManager, fields
from pyrovi.dataloaders import AnnTorchDataset
from pyrovi.errors import DataError, MissingKeyError

INDEX = np.array([7, 3, 3, 52, 0])


def test_all_fields_by_default(
    manager: AnnDataManager, adata: anndata.AnnData, x: np.ndarray
) -> None:
    dataset = AnnTorchDataset(manager)
    item = dataset[INDEX]
    assert len(dataset) == len(x)
    assert (
        dataset.keys
        == list(item)
        == ["X", "batch", "labels", "extra_continuous_covs", "proteins", "length"]
    )
    expected = {
        "X": x[INDEX],
        "batch": (INDEX % 3)[:, None],
        "labels": np.array([1, 0, 2, 1])[INDEX % 4][:, None],  # B, T, unknown
        "extra_continuous_covs": adata.obs[["age"]].to_numpy()[INDEX].astype(np.float32),
        "proteins": adata.obsm["protein"].to_numpy()[INDEX],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(item[name], value, err_msg=name)
    dtypes = {name: value.dtype for name, value in item.items()}
    assert dtypes.pop("batch") == dtypes.pop("labels") == np.int64
    assert set(dtypes.values()) == {np.dtype(np.float32)}


def test_variable_fields_are_never_sliced_by_observations(manager: AnnDataManager) -> None:
    dataset = AnnTorchDataset(manager)
    assert dataset.obs_keys == dataset.keys[:-1]
    whole = np.arange(11, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(dataset[[1, 0]]["length"], whole)


@pytest.mark.parametrize(
    ("index", "positions"), [(3, [3]), (slice(50, None), [50, 51, 52]), ([4, 1], [4, 1])]
)
def test_kinds_of_index(manager: AnnDataManager, x: np.ndarray, index: Any, positions: Any) -> None:
    np.testing.assert_array_equal(AnnTorchDataset(manager)[index]["X"], x[positions])


def test_masks(manager: AnnDataManager, x: np.ndarray) -> None:
    mask = np.arange(53) > 50
    np.testing.assert_array_equal(AnnTorchDataset(manager)[mask]["X"], x[51:])
    with pytest.raises(DataError, match="mask of length 52"):
        AnnTorchDataset(manager)[mask[1:]]


def test_iteration_ends_at_the_last_observation(manager: AnnDataManager) -> None:
    assert len(list(AnnTorchDataset(manager, ["X", "batch"]))) == 53


def test_chosen_fields_and_dtypes(manager: AnnDataManager) -> None:
    assert AnnTorchDataset(manager, ["batch"]).keys == ["batch"]
    item = AnnTorchDataset(manager, {"X": np.float64, "batch": np.float32})[INDEX]
    assert [value.dtype for value in item.values()] == [np.float64, np.float32]


@pytest.mark.parametrize("to_sparse", [sp.csr_matrix, sp.csc_array])
def test_sparse_tensors_hold_the_same_values(
    x: np.ndarray, to_sparse: Any, manager_of: Callable[[Any], Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = AnnTorchDataset(manager_of(to_sparse(x)), load_sparse_tensor=True)[INDEX]["X"]
    assert tensor.layout == torch.sparse_csr
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.to_dense().numpy(), x[INDEX])


def test_sparse_tensor_of_duplicate_unsorted_entries(manager_of: Callable[[Any], Any]) -> None:
    matrix = sp.csr_matrix(([1.0, 2.0, 4.0, 8.0], [2, 0, 2, 1], [0, 3, 4]), shape=(2, 3))
    tensor = AnnTorchDataset(manager_of(matrix), load_sparse_tensor=True)[[1, 0]]["X"]
    assert tensor.to_dense().tolist() == [[0.0, 8.0, 0.0], [2.0, 0.0, 5.0]]
    assert tensor.values().numel() == 3
    assert matrix.nnz == 4


def test_items_do_not_share_memory_with_the_data(x: np.ndarray, adata: anndata.AnnData) -> None:
    adata.X = x.copy()
    manager = AnnDataManager([fields.LayerField("X", None), fields.VarmField("load", "load")])
    adata.varm["load"] = np.ones((x.shape[1], 2), dtype=np.float32)
    manager.register_fields(adata)
    item = AnnTorchDataset(manager)[slice(None)]
    for value in item.values():
        value += 1
    np.testing.assert_array_equal(adata.X, x)
    assert (adata.varm["load"] == 1).all()


def test_it_carries_only_what_it_reads(manager: AnnDataManager) -> None:
    """Spawned workers receive the dataset by pickle: the whole AnnData must not go along."""
    manager.adata.layers["other"] = np.zeros((53, 20_000, 1))[:, :11, 0]
    small = len(pickle.dumps(AnnTorchDataset(manager, ["batch"])))
    assert small < 10_000
    copied = pickle.loads(pickle.dumps(AnnTorchDataset(manager)))
    np.testing.assert_array_equal(copied[INDEX]["X"], AnnTorchDataset(manager)[INDEX]["X"])


def test_backed_data_survive_pickling(
    adata: anndata.AnnData,
    x: np.ndarray,
    tmp_path: Path,
    register: Callable[[anndata.AnnData], AnnDataManager],
) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    dataset = AnnTorchDataset(register(anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")))
    copied = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copied[INDEX]["X"], x[INDEX])


def test_what_is_sliced_is_the_data_of_the_anndata(manager: AnnDataManager) -> None:
    dataset = AnnTorchDataset(manager)
    assert dataset.data["X"] is manager.adata.X
    assert dataset.data["length"].shape == (11, 1)


def test_fields_that_cannot_be_loaded(manager: AnnDataManager) -> None:
    with pytest.raises(MissingKeyError, match="'size_factor' is not registered; registered: X, b"):
        AnnTorchDataset(manager, ["X", REGISTRY_KEYS.SIZE_FACTOR_KEY])
    with pytest.raises(DataError, match=r"the string 'X'; write \['X'\]"):
        AnnTorchDataset(manager, "X")


def test_text_in_uns_is_skipped_unless_asked_for(adata: anndata.AnnData) -> None:
    adata.uns["kind"] = "latent"
    manager = AnnDataManager([fields.LayerField("X", None), fields.StringUnsField("kind", "kind")])
    manager.register_fields(adata)
    assert AnnTorchDataset(manager).keys == ["X"]
    with pytest.raises(DataError, match="'kind' is of dtype str, expected numbers"):
        AnnTorchDataset(manager, ["kind"])


def test_rows_must_match_the_observations(x: np.ndarray, manager_of: Callable[[Any], Any]) -> None:
    manager = manager_of(x)
    manager.n_obs = 50
    with pytest.raises(DataError, match="'X' has 53 rows, expected one for each of the 50"):
        AnnTorchDataset(manager)
