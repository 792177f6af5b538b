from __future__ import annotations

import json
import warnings
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from pyrovi.data.fields import (
    CategoricalObsField,
    CategoricalVarField,
    LabelsWithUnlabeledObsField,
    NumericalObsField,
    NumericalVarField,
)
from pyrovi.errors import DataError, MissingKeyError, RegistryError, UnseenCategoryError


def make(n_vars: int = 4, **obs: Any) -> anndata.AnnData:
    n_obs = len(next(iter(obs.values())))
    index = [f"cell_{i}" for i in range(n_obs)]
    return anndata.AnnData(np.ones((n_obs, n_vars)), obs=pd.DataFrame(obs, index=index))


def codes(field: Any, adata: anndata.AnnData, state: dict[str, Any]) -> list[int]:
    data = field.get_field_data(adata, state)
    assert data.dtype == np.int64
    assert data.shape == (len(data), 1)
    return data.ravel().tolist()


class TestCategorical:
    def test_codes_and_state(self) -> None:
        adata = make(batch=list("bab") * 3)
        field = CategoricalObsField("batch", "batch")
        state = field.register_field(adata)
        assert state == {"categorical_mapping": ["a", "b"], "original_key": "batch"}
        assert codes(field, adata, state) == [1, 0, 1] * 3
        assert field.get_summary_stats(state) == {"n_batch": 2}
        spec = {"shape": [1], "dtype": "int64", "kind": "categorical", "axis": "obs"}
        assert field.tensor_spec(state) == spec

    @pytest.mark.parametrize("values", [[3, 1, 3], [True, False, True], [3.0, 1.0, 3.0]])
    def test_state_survives_json(self, values: list[Any]) -> None:
        adata = make(batch=values * 3)
        field = CategoricalObsField("batch", "batch")
        state = json.loads(json.dumps(field.register_field(adata)))
        mapping = state["categorical_mapping"]
        assert [mapping[code] for code in codes(field, adata, state)] == values * 3

    def test_without_a_key_all_rows_are_one_category(self) -> None:
        adata = make(batch=["a"] * 3)
        field = CategoricalObsField("batch", None)
        state = field.register_field(adata)
        assert state == {"categorical_mapping": [0], "original_key": None}
        assert codes(field, adata, state) == [0, 0, 0]
        assert not field.is_empty
        assert field.transfer_field(state, adata) == state

    def test_transfer_keeps_the_codes_of_the_source(self) -> None:
        field = CategoricalObsField("batch", "batch")
        state = field.register_field(make(batch=["a", "b", "c"] * 3))
        target = make(batch=pd.Categorical(["c", "c"], categories=["z", "c"]))
        assert codes(field, target, field.transfer_field(state, target)) == [2, 2]

    @pytest.mark.parametrize("new", [0, 7])
    def test_unseen_category(self, new: int) -> None:
        # 0 is the case that a test for truth instead of membership lets pass in silence.
        field = CategoricalObsField("batch", "batch")
        state = field.register_field(make(batch=[1, 2] * 3))
        target = make(batch=[1, new])
        with pytest.raises(UnseenCategoryError, match=rf"adata\.obs\['batch'\].*category {new},"):
            field.transfer_field(state, target)
        extended = field.transfer_field(state, target, extend_categories=True)
        assert extended["categorical_mapping"] == [1, 2, new]
        assert field.get_summary_stats(extended) == {"n_batch": 3}
        assert state["categorical_mapping"] == [1, 2]  # the source is left alone

    def test_missing_column(self) -> None:
        with pytest.raises(MissingKeyError, match=r"'donor' not found in adata\.obs.*'batch'"):
            CategoricalObsField("batch", "donor").register_field(make(batch=["a"]))

    def test_two_columns_of_one_name(self) -> None:
        adata = make(batch=["a", "a"])
        adata.obs = pd.concat([adata.obs, adata.obs], axis=1)
        with pytest.raises(DataError, match="names 2 columns"):
            CategoricalObsField("batch", "batch").register_field(adata)

    def test_rare_categories_warn_once_and_only_in_setup(self) -> None:
        adata = make(batch=["a"] * 3 + ["b"])
        field = CategoricalObsField("batch", "batch")
        with pytest.warns(UserWarning, match="fewer than 3 rows: 'b'") as caught:
            state = field.register_field(adata)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            field.transfer_field(state, adata)
            field.get_field_data(adata, state)

    def test_variables(self) -> None:
        adata = make(batch=["a", "a"])
        adata.var["kind"] = ["x", "y", "x", "x"]
        field = CategoricalVarField("kind", "kind")
        with pytest.warns(UserWarning, match=r"adata\.var\['kind'\]"):
            state = field.register_field(adata)
        assert codes(field, adata, state) == [0, 1, 0, 0]
        assert field.tensor_spec(state)["shape"] == [4, 1]
        assert field.tensor_spec(state)["axis"] == "var"
        with pytest.raises(RegistryError, match=r"has 2 variables.*4 of the source"):
            field.transfer_field(state, adata[:, :2])


class TestNumerical:
    def test_column_is_not_copied(self) -> None:
        adata = make(size=np.array([0.5, 1.5]))
        field = NumericalObsField("size_factor", "size")
        state = field.register_field(adata)
        data = field.get_field_data(adata, state)
        assert data.shape == (2, 1)
        assert np.shares_memory(data, adata.obs["size"].to_numpy())
        assert state == {"original_key": "size"}
        assert field.get_summary_stats(state) == {}
        assert field.tensor_spec(state)["kind"] == "continuous"
        assert field.transfer_field(state, adata) == state

    def test_optional(self) -> None:
        field = NumericalObsField("size_factor", None, required=False)
        assert field.is_empty
        assert field.register_field(make(x=[1.0])) == {}
        assert field.data_registry == {}
        with pytest.raises(DataError, match=r"'size_factor' got no column.*required=False"):
            NumericalObsField("size_factor", None)

    def test_errors(self) -> None:
        adata = make(text=["a", "b"], gaps=[1.0, np.nan])
        with pytest.raises(DataError, match=r"adata\.obs\['text'\] has the type"):
            NumericalObsField("x", "text").register_field(adata)
        with pytest.raises(DataError, match=r"1 missing.*'cell_1'"):
            NumericalObsField("x", "gaps").register_field(adata)
        with pytest.raises(MissingKeyError, match="'other' not found"):
            NumericalObsField("x", "other").register_field(adata)

    def test_variables(self) -> None:
        adata = make(x=[1.0, 2.0])
        adata.var["length"] = np.arange(4.0)
        field = NumericalVarField("length", "length")
        state = field.register_field(adata)
        assert state == {"original_key": "length", "n_vars": 4}
        assert field.get_field_data(adata, state).tolist() == [[0], [1], [2], [3]]
        assert field.tensor_spec(state)["shape"] == [4, 1]
        with pytest.raises(RegistryError, match="has 3 variables"):
            field.transfer_field(state, adata[:, 1:])


class TestLabels:
    def test_unlabeled_code_is_last(self) -> None:
        adata = make(labels=["b", "?", "a"] * 3)
        field = LabelsWithUnlabeledObsField("labels", "labels", "?")
        state = field.register_field(adata)
        assert state == {
            "categorical_mapping": ["a", "b", "?"],
            "original_key": "labels",
            "unlabeled_category": "?",
        }
        assert codes(field, adata, state) == [1, 2, 0] * 3
        assert field.get_summary_stats(state) == {"n_labels": 3}

    def test_unlabeled_has_a_code_even_if_absent(self) -> None:
        adata = make(labels=["b", "a"] * 3)
        field = LabelsWithUnlabeledObsField("labels", "labels", "unknown")
        assert field.register_field(adata)["categorical_mapping"] == ["a", "b", "unknown"]

    def test_number_of_labels_one_and_true_are_different(self) -> None:
        adata = make(labels=[0, 1] * 3)
        field = LabelsWithUnlabeledObsField("labels", "labels", True)
        assert field.register_field(adata)["categorical_mapping"] == [0, 1, True]
        field = LabelsWithUnlabeledObsField("labels", "labels", 0)
        assert field.register_field(adata)["categorical_mapping"] == [1, 0]

    def test_without_a_column_nothing_is_labelled(self) -> None:
        adata = make(x=[1, 2])
        field = LabelsWithUnlabeledObsField("labels", None, "unknown")
        state = field.register_field(adata)
        assert state["categorical_mapping"] == ["unknown"]
        assert codes(field, adata, state) == [0, 0]
        assert field.transfer_field(state, adata) == state

    def test_transfer_may_miss_labels(self) -> None:
        field = LabelsWithUnlabeledObsField("labels", "labels", "?")
        state = field.register_field(make(labels=["b", "a", "?"] * 3))
        target = make(x=[1, 2])
        with pytest.raises(MissingKeyError, match=r"'labels' not found.*allow_missing_labels=True"):
            field.transfer_field(state, target)
        new = field.transfer_field(state, target, allow_missing_labels=True)
        assert codes(field, target, new) == [2, 2]
        assert new["categorical_mapping"] == state["categorical_mapping"]
        # The state of a target without labels still serves data that have them.
        labelled = make(labels=["a", "b"])
        again = field.transfer_field(new, labelled)
        assert codes(field, labelled, again) == [0, 1]

    def test_transfer_never_extends(self) -> None:
        field = LabelsWithUnlabeledObsField("labels", "labels", "?")
        state = field.register_field(make(labels=["b", "a", "?"] * 3))
        target = make(labels=["a", "new"])
        with pytest.raises(UnseenCategoryError, match=r"'new'.*cannot be extended.*'?'"):
            field.transfer_field(state, target, extend_categories=True)
