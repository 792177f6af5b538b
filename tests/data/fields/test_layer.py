from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import zarr
from scipy import sparse

from pyrovi.data.fields import LayerField, TotalField
from pyrovi.errors import DataError, MissingKeyError, RegistryError

COUNTS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 0], [0, 2, 4]])


def make(matrix: Any = COUNTS, **kwargs: Any) -> anndata.AnnData:
    adata = anndata.AnnData(matrix, **kwargs)
    adata.obs_names = [f"cell_{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene_{i}" for i in range(adata.n_vars)]
    return adata


@pytest.mark.parametrize("layer", [None, "counts"])
@pytest.mark.parametrize(
    "container",
    [
        np.asarray,
        np.asfortranarray,
        sparse.csr_matrix,
        sparse.csc_matrix,
        sparse.csr_array,
        sparse.csc_array,
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint16, bool])
def test_data_are_the_very_object(container: Any, dtype: Any, layer: str | None) -> None:
    matrix = container(COUNTS.astype(dtype))
    adata = make(matrix if layer is None else None, **({} if layer is None else {"shape": (4, 3)}))
    if layer is not None:
        adata.layers[layer] = matrix
    field = LayerField("X", layer)
    state = field.register_field(adata)
    held = adata.X if layer is None else adata.layers[layer]
    assert field.get_field_data(adata, state) is held
    assert held is matrix
    assert state == {
        "n_obs": 4,
        "n_vars": 3,
        "column_names": ["gene_0", "gene_1", "gene_2"],
        "is_count_data": True,
    }


def test_description() -> None:
    field = LayerField("X", "counts", is_count_data=False)
    state = {"n_obs": 4, "n_vars": 3}
    assert field.data_registry == {"attr_name": "layers", "attr_key": "counts", "mod_key": None}
    assert LayerField("X").data_registry["attr_name"] == "X"
    assert field.get_summary_stats(state) == {"n_vars": 3, "n_cells": 4}
    assert LayerField("atac").get_summary_stats(state) == {"n_atac": 3}
    spec = {"shape": [3], "dtype": "float32", "kind": "continuous", "axis": "obs"}
    assert field.tensor_spec(state) == spec
    assert LayerField("X").tensor_spec(state)["kind"] == "counts"


def test_missing_layer_lists_what_there_is() -> None:
    adata = make(layers={"counts": COUNTS})
    with pytest.raises(MissingKeyError, match=r"'raw' not found in adata\.layers.*'counts'"):
        LayerField("X", "raw").validate_field(adata)
    adata.X = None
    with pytest.raises(MissingKeyError, match=r"adata\.X is empty.*layer=.*counts"):
        LayerField("X").validate_field(adata)


def test_normalised_values_are_refused_as_counts() -> None:
    adata = make(np.log1p(COUNTS), layers={"counts": COUNTS})
    message = r"adata\.X holds 1\.386.*row 0 \('cell_0'\), column 1 \('gene_1'\).*`layer=`"
    with pytest.raises(DataError, match=message):
        LayerField("X").register_field(adata)
    LayerField("X", "counts").register_field(adata)
    LayerField("X", is_count_data=False).register_field(adata)


def test_empty_observations_and_variables() -> None:
    values = COUNTS.copy()
    values[1] = 0
    with pytest.raises(DataError, match="1 observations without a single count: 'cell_1'"):
        LayerField("X").register_field(make(values))
    LayerField("X", allow_empty_obs=True).register_field(make(values))
    LayerField("X", is_count_data=False).register_field(make(values))
    values = COUNTS.copy()
    values[:, 2] = 0
    adata = make(values)[[0, 1, 3]].copy()
    with pytest.warns(UserWarning, match="1 variables without a single count: 'gene_2'"):
        state = LayerField("X").register_field(adata)
    with warnings.catch_warnings():  # in a query that is nothing unusual
        warnings.simplefilter("error")
        LayerField("X").transfer_field(state, adata)


def test_fragment_counts() -> None:
    adata = make(2 * COUNTS)
    with pytest.warns(UserWarning, match="counts of reads"):
        LayerField("X", check_fragment_counts=True).register_field(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LayerField("X").register_field(adata)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ([0, 2], r"adata\.var_names \(2 names\).*\(3 names\), missing 1: 'gene_1'\."),
        ([2, 1, 0], r"another order: position 0 is 'gene_2', not 'gene_0'.*model\.var_names"),
    ],
)
def test_transfer_wants_the_same_variables(select: list[int], message: str) -> None:
    field = LayerField("X")
    adata = make()
    state = field.register_field(adata)
    with pytest.raises(RegistryError, match=message):
        field.transfer_field(state, adata[:, select])
    assert field.transfer_field(state, adata[:2])["n_obs"] == 2


def test_transfer_names_extra_variables() -> None:
    field = LayerField("X")
    adata = make()
    state = field.register_field(adata[:, :2].copy())
    with pytest.raises(RegistryError, match=r"extra 1: 'gene_2'.*adata\[:, model\.var_names\]"):
        field.transfer_field(state, adata)
    other = adata.copy()
    other.var_names = ["a", "gene_1", "gene_2"]
    full = field.register_field(adata)
    with pytest.raises(RegistryError, match="missing 1: 'gene_0'; extra 1: 'a'"):
        field.transfer_field(full, other)


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_backed_file(container: Any, tmp_path: Path) -> None:
    make(container(COUNTS.astype(np.float32))).write_h5ad(tmp_path / "x.h5ad")
    adata = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    field = LayerField("X")
    state = field.register_field(adata)
    data = field.get_field_data(adata, state)
    assert not isinstance(data, np.ndarray)
    assert not sparse.issparse(data)
    assert data.shape == (4, 3)
    rows = data[1:3]
    np.testing.assert_array_equal(
        rows if isinstance(rows, np.ndarray) else rows.toarray(), COUNTS[1:3]
    )
    total = TotalField("library")
    np.testing.assert_array_equal(total.get_field_data(adata, state)[:, 0], COUNTS.sum(1))
    adata.file.close()


def test_backed_file_is_checked(tmp_path: Path) -> None:
    make(-COUNTS).write_h5ad(tmp_path / "x.h5ad")
    adata = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    with pytest.raises(DataError, match=r"adata\.X holds -3 in row 0 \('cell_0'\)"):
        LayerField("X").register_field(adata)
    adata.file.close()


@pytest.mark.parametrize("store", ["h5", "zarr"])
def test_sparse_dataset_as_layer(store: str, tmp_path: Path) -> None:
    group: Any = (
        h5py.File(tmp_path / "x.h5", "w")
        if store == "h5"
        else zarr.open_group(tmp_path / "x.zarr", mode="w")
    )
    anndata.io.write_elem(group, "m", sparse.csr_matrix(COUNTS))
    dataset = anndata.io.sparse_dataset(group["m"])
    adata = make(dataset)
    field = LayerField("X")
    data = field.get_field_data(adata, field.register_field(adata))
    assert data is dataset


def test_totals() -> None:
    adata = make(sparse.csr_array(COUNTS.astype(np.uint8)))
    field = TotalField("library")
    state = field.register_field(adata)
    assert field.get_field_data(adata, state).tolist() == [[4], [3], [1], [6]]
    assert field.get_summary_stats(state) == {}
    assert field.tensor_spec(state)["shape"] == [1]
