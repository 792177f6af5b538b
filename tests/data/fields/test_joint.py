from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from pyrovi.data.fields import (
    CategoricalJointObsField,
    CategoricalJointVarField,
    NumericalJointObsField,
    NumericalJointVarField,
)
from pyrovi.errors import DataError, MissingKeyError, RegistryError, UnseenCategoryError


@pytest.fixture
def adata() -> anndata.AnnData:
    obs = pd.DataFrame(
        {
            "site": ["x", "y", "x"] * 3,
            "dose": [0, 1, 2] * 3,
            "age": np.linspace(0, 1, 9),
            "depth": np.arange(9),
            "smokes": [True, False, True] * 3,
        },
        index=[f"cell_{i}" for i in range(9)],
    )
    return anndata.AnnData(np.ones((9, 3)), obs=obs)


def test_categorical(adata: anndata.AnnData) -> None:
    field = CategoricalJointObsField("extra_categorical_covs", ["site", "dose"])
    state = field.register_field(adata)
    assert state == {
        "mappings": {"site": ["x", "y"], "dose": [0, 1, 2]},
        "field_keys": ["site", "dose"],
        "n_cats_per_key": [2, 3],
    }
    data = field.get_field_data(adata, state)
    assert data.dtype == np.int64
    assert data.tolist() == [[0, 0], [1, 1], [0, 2]] * 3
    assert field.get_summary_stats(state) == {"n_extra_categorical_covs": 2}
    assert field.tensor_spec(state)["shape"] == [2]
    assert field.tensor_spec(state)["kind"] == "categorical"
    assert field.data_registry["attr_key"] == ["site", "dose"]


def test_categorical_transfer(adata: anndata.AnnData) -> None:
    field = CategoricalJointObsField("covs", ["site", "dose"])
    adata.obs["dose"] += 1
    state = field.register_field(adata)
    target = adata[:3].copy()
    target.obs["dose"] = [0, 1, 6]
    with pytest.raises(UnseenCategoryError, match=r"adata\.obs\['dose'\] holds categories 0, 6"):
        field.transfer_field(state, target)
    extended = field.transfer_field(state, target, extend_categories=True)
    assert extended["mappings"] == {"site": ["x", "y"], "dose": [1, 2, 3, 0, 6]}
    assert extended["n_cats_per_key"] == [2, 5]
    assert field.get_field_data(target, extended)[:, 1].tolist() == [3, 0, 4]


def test_numerical(adata: anndata.AnnData) -> None:
    field = NumericalJointObsField("extra_continuous_covs", ["age", "depth", "smokes"])
    state = field.register_field(adata)
    assert state == {"columns": ["age", "depth", "smokes"]}
    data = field.get_field_data(adata, state)
    np.testing.assert_array_equal(data, adata.obs[["age", "depth", "smokes"]].to_numpy(float))
    assert data.dtype == np.float64
    assert field.get_summary_stats(state) == {"n_extra_continuous_covs": 3}
    assert field.tensor_spec(state)["shape"] == [3]
    assert field.transfer_field(state, adata[:2]) == state


@pytest.mark.parametrize("keys", [None, []])
@pytest.mark.parametrize("cls", [NumericalJointObsField, CategoricalJointObsField])
def test_empty(cls: type, keys: list[str] | None, adata: anndata.AnnData) -> None:
    field = cls("covs", keys)
    assert field.is_empty
    state = field.register_field(adata)
    assert field.get_summary_stats(state) == {"n_covs": 0}
    assert field.transfer_field(state, adata) == state == {}


def test_errors(adata: anndata.AnnData) -> None:
    with pytest.raises(DataError, match=r"string 'site'.*\['site'\]"):
        CategoricalJointObsField("covs", "site")
    with pytest.raises(DataError, match="more than once: 'site'"):
        CategoricalJointObsField("covs", ["site", "dose", "site"])
    with pytest.raises(MissingKeyError, match="'other' not found"):
        NumericalJointObsField("covs", ["age", "other"]).register_field(adata)
    adata.obs.loc["cell_4", "age"] = np.nan
    with pytest.raises(DataError, match=r"adata\.obs\['age'\] has 1 missing.*cell_4"):
        NumericalJointObsField("covs", ["depth", "age"]).register_field(adata)
    with pytest.raises(DataError, match=r"adata\.obs\['age'\] has 1 missing.*cell_4"):
        CategoricalJointObsField("covs", ["site", "age"]).register_field(adata)


def test_variables(adata: anndata.AnnData) -> None:
    adata.var["kind"] = ["a", "b", "a"]
    adata.var["chrom"] = [1, 1, 2]
    categorical = CategoricalJointVarField("kinds", ["kind", "chrom"])
    with pytest.warns(UserWarning, match="fewer than 3"):
        state = categorical.register_field(adata)
    assert categorical.get_field_data(adata, state).tolist() == [[0, 0], [1, 0], [0, 1]]
    assert categorical.tensor_spec(state)["shape"] == [3, 2]
    with pytest.raises(RegistryError, match="has 2 variables"):
        categorical.transfer_field(state, adata[:, :2])
    adata.var["length"] = [1.0, 2.0, 3.0]
    numerical = NumericalJointVarField("lengths", ["length", "chrom"])
    state = numerical.register_field(adata)
    assert numerical.get_field_data(adata, state).tolist() == [[1, 1], [2, 1], [3, 2]]
    assert numerical.tensor_spec(state) == {
        "shape": [3, 2],
        "dtype": "float32",
        "kind": "continuous",
        "axis": "var",
    }
    with pytest.raises(RegistryError, match="has 1 variables"):
        numerical.transfer_field(state, adata[:, :1])
