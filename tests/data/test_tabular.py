"""DataFrames and dicts of arrays as annotated data."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from pyrovi.data.tabular import as_annotated, is_plain
from pyrovi.errors import DataError


def test_a_frame_keeps_its_columns_and_index() -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5], "g": ["a", "b"]}, index=["r1", "r2"])
    before = frame.copy(deep=True)
    adata = as_annotated(frame)
    assert list(adata.obs_names) == ["r1", "r2"]
    assert adata.obs["x"].tolist() == [1.5, 2.5]
    assert adata.obs["g"].tolist() == ["a", "b"]
    pd.testing.assert_frame_equal(frame, before)


def test_numbers_as_index_become_names() -> None:
    adata = as_annotated(pd.DataFrame({7: [1.0, 2.0]}, index=[10, 11]))
    assert list(adata.obs_names) == ["10", "11"]
    assert list(adata.obs.columns) == ["7"]


def test_arrays_go_where_their_axes_fit() -> None:
    cube = np.arange(24.0).reshape(2, 3, 4)
    adata = as_annotated({"y": [1, 2], "X": torch.ones(2, 5), "cube": cube})
    assert adata.obs["y"].tolist() == [1, 2]
    assert adata.obsm["X"].shape == (2, 5)
    np.testing.assert_array_equal(adata.obsm["cube"], cube)


def test_nothing_is_one_observation() -> None:
    assert as_annotated({}).n_obs == 1


def test_annotated_data_pass_through() -> None:
    adata = anndata.AnnData(np.ones((2, 2)))
    assert as_annotated(adata) is adata
    assert not is_plain(adata)


def test_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"different numbers of rows \(y: 2, x: 3\)"):
        as_annotated({"y": [1, 2], "x": [1, 2, 3]})


def test_a_single_value_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\['n'\] is the single value 8"):
        as_annotated({"n": 8})


def test_objects_are_refused() -> None:
    with pytest.raises(DataError, match="of dtype datetime64"):
        as_annotated({"t": np.array(["2020-01-01"], dtype="M8[D]")})
