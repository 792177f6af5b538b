"""Data in every container, and tables in every format."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

import pyrovi as pv
from pyrovi.cli.files import read_data, write_table
from pyrovi.errors import DataError


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_annotated_data(tmp_path, suffix) -> None:
    adata = anndata.AnnData(np.eye(3, dtype=np.float32))
    path = tmp_path / f"cells{suffix}"
    (adata.write_h5ad if suffix == ".h5ad" else adata.write_zarr)(path)
    np.testing.assert_array_equal(read_data(path).X, adata.X)


def test_multimodal_data(tmp_path) -> None:
    mudata = pytest.importorskip("mudata")
    mdata = mudata.MuData({"rna": anndata.AnnData(np.eye(3, dtype=np.float32))})
    mdata.write_h5mu(tmp_path / "cells.h5mu")
    assert list(read_data(tmp_path / "cells.h5mu").mod) == ["rna"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_matrices_left_on_disk(tmp_path, suffix) -> None:
    adata = anndata.AnnData(np.eye(3, dtype=np.float32))
    path = tmp_path / f"cells{suffix}"
    (adata.write_h5ad if suffix == ".h5ad" else adata.write_zarr)(path)
    assert isinstance(read_data(path, backed=True).X, pv.data.StoredMatrix)
    (tmp_path / "cells.h5mu").touch()
    with pytest.raises(DataError, match=r"--backed .* not those of '.*cells.h5mu': leave it out"):
        read_data(tmp_path / "cells.h5mu", backed=True)


def test_other_files_are_refused(tmp_path) -> None:
    (tmp_path / "cells.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"unknown suffix; annotated data are \.h5ad"):
        read_data(tmp_path / "cells.csv")


def test_tables(tmp_path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    rows, columns = ["r0", "r1"], ["a", "b", "c"]
    for suffix in (".csv", ".npy", ".h5ad"):
        write_table(tmp_path / f"table{suffix}", values, rows, columns)
    np.testing.assert_array_equal(np.load(tmp_path / "table.npy"), values)
    frame = pd.read_csv(tmp_path / "table.csv", index_col=0)
    table = anndata.read_h5ad(tmp_path / "table.h5ad")
    np.testing.assert_array_equal(frame, values)
    np.testing.assert_array_equal(table.X, values)
    assert list(frame.index) == list(table.obs_names) == rows
    assert list(frame.columns) == list(table.var_names) == columns
