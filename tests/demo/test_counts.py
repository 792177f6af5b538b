"""Counts come back exactly from log-normalised values, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from pyrovi.demo import recover_counts
from pyrovi.errors import DataError


@pytest.fixture
def counts() -> np.ndarray:
    made = np.random.default_rng(0).poisson(1.2, (40, 25))
    made[:, 0] = 1  # every cell has a gene with one count
    return made


def log_normalised(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float32)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_counts_are_recovered_exactly(counts, form) -> None:
    found = recover_counts(form(log_normalised(counts)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.toarray(), counts)


def test_the_values_given_stay_as_they_are(counts) -> None:
    values = sp.csr_matrix(log_normalised(counts))
    before = values.copy()
    recover_counts(values)
    assert (values != before).nnz == 0


def test_stored_zeros_are_no_counts(counts) -> None:
    values = sp.csr_matrix(log_normalised(counts))
    values.data[3] = 0.0
    expected = values.toarray() > 0
    np.testing.assert_array_equal(recover_counts(values).toarray() > 0, expected)


def test_a_value_between_integers_is_refused_by_place(counts) -> None:
    values = log_normalised(counts)
    values[7, 4] = np.log1p(2.4 * np.expm1(values[7, 0]))
    with pytest.raises(
        DataError, match=r"row 7, column 4, the value is 2\.400 times .* 0\.400 from"
    ):
        recover_counts(values)


def test_values_that_were_scaled_are_refused(counts) -> None:
    values = log_normalised(counts)
    with pytest.raises(DataError, match="negative or not finite"):
        recover_counts((values - values.mean(0)) / values.std(0).clip(1e-3))
    with pytest.raises(DataError, match="negative or not finite"):
        recover_counts(np.where(values > 5, np.nan, values))


def test_an_empty_cell_is_refused(counts) -> None:
    values = log_normalised(counts)
    values[5] = 0
    with pytest.raises(DataError, match=r"1 cell\(s\) have no non-zero value, first row 5"):
        recover_counts(values)


def test_bundled_cells_are_counts_with_cell_types() -> None:
    from pyrovi.demo import bundled_pbmc

    adata = bundled_pbmc()
    assert adata.shape == (700, 765)
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert adata.X.min() == 0
    assert (adata.X.tocsr()[:, :].max(1).toarray() >= 1).all()
    assert adata.obs["bulk_labels"].nunique() == 10
