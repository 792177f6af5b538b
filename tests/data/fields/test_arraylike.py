from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyrovi.data.fields import ObsmField, VarmField
from pyrovi.errors import DataError, MissingKeyError, RegistryError

VALUES = np.array([[0.5, 1.0], [-2.0, 0.0], [3.0, 1.0]])


def make(block: Any = VALUES) -> anndata.AnnData:
    adata = anndata.AnnData(np.ones((3, 4)), obs=pd.DataFrame(index=["a", "b", "c"]))
    adata.obsm["block"] = block
    return adata


@pytest.mark.parametrize(
    "container", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array]
)
def test_data_are_the_very_object(container: Any) -> None:
    block = container(VALUES)
    adata = make(block)
    field = ObsmField("coords", "block")
    state = field.register_field(adata)
    assert field.get_field_data(adata, state) is block
    assert state == {"column_names": ["0", "1"], "is_count_data": False}
    assert field.get_summary_stats(state) == {"n_coords": 2}
    spec = {"shape": [2], "dtype": "float32", "kind": "continuous", "axis": "obs"}
    assert field.tensor_spec(state) == spec
    assert field.data_registry == {"attr_name": "obsm", "attr_key": "block", "mod_key": None}


def test_frame() -> None:
    frame = pd.DataFrame(VALUES, index=["a", "b", "c"], columns=["p", "q"])
    adata = make(frame)
    field = ObsmField("coords", "block")
    state = field.register_field(adata)
    assert state["column_names"] == ["p", "q"]
    data = field.get_field_data(adata, state)
    assert isinstance(data, np.ndarray)
    np.testing.assert_array_equal(data, VALUES)
    assert np.shares_memory(data, adata.obsm["block"].to_numpy())
    with pytest.raises(RegistryError, match=r"columns of adata\.obsm\['block'\].*another order"):
        field.transfer_field(state, make(frame[["q", "p"]]))
    with pytest.raises(RegistryError, match="missing 1: 'q'"):
        field.transfer_field(state, make(frame[["p"]]))
    assert field.transfer_field(state, make(frame + 1)) == state


def test_names_in_uns() -> None:
    adata = make()
    adata.uns["names"] = np.array(["p", "q"])
    field = ObsmField("coords", "block", colnames_uns_key="names")
    assert field.register_field(adata)["column_names"] == ["p", "q"]
    adata.uns["names"] = ["p"]
    with pytest.raises(DataError, match=r"adata\.uns\['names'\] has 1 names.*2 columns"):
        field.register_field(adata)
    del adata.uns["names"]
    with pytest.raises(MissingKeyError, match=r"'names' not found in adata\.uns"):
        field.register_field(adata)


def test_counts() -> None:
    field = ObsmField("peaks", "block", is_count_data=True)
    with pytest.raises(DataError, match=r"obsm\['block'\] holds 0\.5 in row 0 \('a'\), column 0"):
        field.register_field(make())
    state = field.register_field(make(np.array([[1, 0], [0, 0], [2, 1]])))  # empty rows are fine
    assert field.tensor_spec(state)["kind"] == "counts"
    with pytest.raises(DataError, match=r"nan.*impute"):
        ObsmField("x", "block").register_field(make(np.full((3, 2), np.nan)))


def test_missing_key() -> None:
    with pytest.raises(MissingKeyError, match=r"'other' not found in adata\.obsm.*'block'"):
        ObsmField("x", "other").register_field(make())


def test_varm() -> None:
    adata = make()
    adata.varm["loadings"] = np.arange(8.0).reshape(4, 2)
    field = VarmField("loadings", "loadings")
    state = field.register_field(adata)
    assert state == {"column_names": ["0", "1"], "is_count_data": False, "n_vars": 4}
    assert field.get_field_data(adata, state) is adata.varm["loadings"]
    assert field.tensor_spec(state)["shape"] == [4, 2]
    assert field.tensor_spec(state)["axis"] == "var"
    with pytest.raises(RegistryError, match="has 2 variables"):
        field.transfer_field(state, adata[:, :2])
    adata.varm["loadings"][2, 1] = np.inf
    with pytest.raises(DataError, match="inf in row 2"):
        field.validate_field(adata)
