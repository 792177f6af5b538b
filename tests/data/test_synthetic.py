from __future__ import annotations

from typing import Any

import mudata
import numpy as np
import pytest
from scipy import sparse

from pyrovi.data import synthetic_iid
from pyrovi.errors import DataError


def test_layout() -> None:
    adata = synthetic_iid(batch_size=50, n_genes=12, n_proteins=7, n_regions=9, n_batches=3)
    assert adata.shape == (150, 12)
    assert adata.obs["batch"].value_counts().to_dict() == {f"batch_{i}": 50 for i in range(3)}
    assert set(adata.obs["labels"]) == {"label_0", "label_1", "label_2"}
    assert adata.obsm["protein_expression"].shape == (150, 7)
    assert len(adata.uns["protein_names"]) == 7
    assert adata.obsm["accessibility"].shape == (150, 9)
    assert adata.obs_names.is_unique
    assert "coordinates" not in adata.obsm


def test_distribution() -> None:
    adata = synthetic_iid(batch_size=500, n_genes=200, dropout_ratio=0.4)
    zero = 0.3**5  # probability that a negative binomial count is 0
    assert np.mean(adata.X == 0) == pytest.approx(0.4 + 0.6 * zero, abs=0.01)
    proteins = adata.obsm["protein_expression"]
    mean = 5 * 0.7 / 0.3
    assert proteins.mean() == pytest.approx(mean, rel=0.02)
    assert proteins.var() == pytest.approx(mean / 0.3, rel=0.05)


def test_seed_is_its_own() -> None:
    state = np.random.get_state()[1].copy()
    first, again, other = synthetic_iid(), synthetic_iid(), synthetic_iid(seed=1)
    np.testing.assert_array_equal(first.X, again.X)
    np.testing.assert_array_equal(first.obs["labels"], again.obs["labels"])
    assert not np.array_equal(first.X, other.X)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_no_observation_is_empty() -> None:
    adata = synthetic_iid(n_genes=2, dropout_ratio=0.95)
    assert (adata.X.sum(1) > 0).all()


@pytest.mark.parametrize("name", ["csr_matrix", "csc_matrix", "csr_array", "csc_array"])
def test_sparse_format(name: Any) -> None:
    adata = synthetic_iid(sparse_format=name)
    for matrix in (adata.X, adata.obsm["accessibility"]):
        assert type(matrix) is getattr(sparse, name)
    np.testing.assert_array_equal(adata.X.toarray(), synthetic_iid().X)


@pytest.mark.parametrize("return_mudata", [False, True])
def test_coordinates(return_mudata: bool) -> None:
    data = synthetic_iid(generate_coordinates=True, return_mudata=return_mudata)
    assert data.obsm["coordinates"].shape == (data.n_obs, 2)


def test_mudata() -> None:
    mdata, adata = synthetic_iid(return_mudata=True), synthetic_iid()
    assert isinstance(mdata, mudata.MuData)
    assert list(mdata.mod) == ["rna", "protein_expression", "accessibility"]
    np.testing.assert_array_equal(mdata["rna"].X, adata.X)
    np.testing.assert_array_equal(mdata["protein_expression"].X, adata.obsm["protein_expression"])
    assert mdata.obs["batch"].tolist() == adata.obs["batch"].tolist()
    assert list(synthetic_iid(return_mudata=True, n_regions=0).mod) == ["rna", "protein_expression"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0.*at least 1"),
        ({"dropout_ratio": 1.0}, r"dropout_ratio is 1\.0"),
        ({"sparse_format": "coo"}, "'coo'.*csr_matrix"),
    ],
)
def test_errors(options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        synthetic_iid(**options)
