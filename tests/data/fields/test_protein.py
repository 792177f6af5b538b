from __future__ import annotations

import json
import warnings
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyrovi.data.fields import CategoricalObsField, ProteinLayerField, ProteinObsmField
from pyrovi.errors import DataError, UnseenCategoryError

PROTEINS = np.array([[1, 0, 2], [3, 0, 0], [0, 4, 0], [0, 5, 1], [2, 0, 0], [0, 0, 0]])
BATCH = ["a", "a", "b", "b", "c", "c"]
MASK = {"0": [True, False, True], "1": [False, True, True], "2": [True, False, False]}


def make(proteins: Any = PROTEINS, batch: list[str] = BATCH) -> anndata.AnnData:
    adata = anndata.AnnData(np.ones((len(batch), 2)))
    adata.obs["batch"] = batch
    adata.obsm["protein"] = proteins
    return adata


@pytest.fixture
def batch_field() -> CategoricalObsField:
    return CategoricalObsField("batch", "batch")


@pytest.mark.parametrize(
    "container", [np.asarray, sparse.csr_matrix, sparse.csc_array, pd.DataFrame]
)
def test_mask(container: Any, batch_field: CategoricalObsField) -> None:
    adata = make()
    if container is pd.DataFrame:
        adata.obsm["protein"] = pd.DataFrame(PROTEINS, index=adata.obs_names).add_prefix("p")
    else:
        adata.obsm["protein"] = container(PROTEINS)
    field = ProteinObsmField("proteins", "protein", batch_field=batch_field)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # rare batches are the business of the batch field
        state = field.register_field(adata)
    assert state["protein_batch_mask"] == MASK
    assert json.loads(json.dumps(state)) == state
    assert field.get_summary_stats(state) == {"n_proteins": 3}


def test_mask_matches_the_codes_of_the_batch_field(batch_field: CategoricalObsField) -> None:
    adata = make(batch=["z", "z", "b", "b", "c", "c"])
    field = ProteinObsmField("proteins", "protein", batch_field=batch_field)
    with pytest.warns(UserWarning, match="fewer than 3"):
        batch_state = batch_field.register_field(adata)
    mask = field.register_field(adata)["protein_batch_mask"]
    codes = batch_field.get_field_data(adata, batch_state).ravel()
    for code in np.unique(codes):
        assert mask[str(code)] == PROTEINS[codes == code].any(axis=0).tolist()


def test_without_mask() -> None:
    field = ProteinObsmField("proteins", "protein", use_batch_mask=False)
    assert "protein_batch_mask" not in field.register_field(make())
    with pytest.raises(DataError, match=r"'proteins'.*no batch field.*use_batch_mask=False"):
        ProteinObsmField("proteins", "protein")


def test_one_batch() -> None:
    field = ProteinObsmField("proteins", "protein", batch_field=CategoricalObsField("batch"))
    assert field.register_field(make())["protein_batch_mask"] == {"0": [True] * 3}


def test_transfer(batch_field: CategoricalObsField) -> None:
    field = ProteinObsmField("proteins", "protein", batch_field=batch_field)
    state = field.register_field(make())
    # Measured in the source: stays so although the few target cells show none of it.
    target = make(np.array([[0, 0, 0], [0, 1, 0]]), ["c", "a"])
    mask = field.transfer_field(state, target)["protein_batch_mask"]
    assert mask == {**MASK, "0": [True, True, True]}
    new = make(np.array([[0, 0, 3], [0, 1, 0]]), ["0", "a"])
    with pytest.raises(UnseenCategoryError, match="'0'"):
        field.transfer_field(state, new)
    extended = field.transfer_field(state, new, extend_categories=True)
    assert extended["protein_batch_mask"]["3"] == [False, False, True]
    assert extended["batch_mapping"] == ["a", "b", "c", "0"]


def test_counts_are_checked(batch_field: CategoricalObsField) -> None:
    field = ProteinObsmField("proteins", "protein", batch_field=batch_field)
    with pytest.raises(DataError, match=r"holds 0.5"):
        field.register_field(make(PROTEINS / 2))


def test_layer(batch_field: CategoricalObsField) -> None:
    adata = anndata.AnnData(PROTEINS, obs=pd.DataFrame({"batch": BATCH}, index=list("uvwxyz")))
    field = ProteinLayerField("proteins", batch_field=batch_field)
    state = field.register_field(adata)  # the last row is empty: a cell may have no protein
    assert state["protein_batch_mask"] == MASK
    assert state["column_names"] == ["0", "1", "2"]
    assert field.get_field_data(adata, state) is adata.X
    assert field.get_summary_stats(state) == {"n_proteins": 3}
    assert field.transfer_field(state, adata[2:]) == {**state, "n_obs": 4}
