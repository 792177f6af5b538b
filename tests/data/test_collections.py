"""Collections of annbatch: their rows, one after the other, without being read into memory."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

import pyrovi as pv
from pyrovi.data import CellSource, open_annbatch
from pyrovi.data.sources import read_rows
from pyrovi.errors import DataError

ENDS = [0, 10, 20, 30, 40, 50, 51, 60, 70, 80, 90, 120]
"""Ends of eleven parts, so that their numbers are not in the order of their names."""


@pytest.fixture
def cells() -> anndata.AnnData:
    adata = pv.data.synthetic_iid(batch_size=60, n_genes=15, n_batches=2)
    adata.X = sp.csr_matrix(adata.X)
    return anndata.AnnData(adata.X, obs=adata.obs, var=adata.var)


def as_zarr(cells: anndata.AnnData, folder: Path) -> Path:
    path = folder / "collection.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
    for number, (start, stop) in enumerate(itertools.pairwise(ENDS)):
        cells[start:stop].copy().write_zarr(path / f"dataset_{number}")
    return path


def as_files(cells: anndata.AnnData, folder: Path) -> Path:
    for number, (start, stop) in enumerate(itertools.pairwise(ENDS)):
        cells[start:stop].copy().write_h5ad(folder / f"dataset_{number}.h5ad")
    return folder


@pytest.mark.parametrize("write", [as_zarr, as_files])
def test_rows_are_those_of_the_parts(
    write: Callable[[anndata.AnnData, Path], Path], cells: anndata.AnnData, tmp_path: Path
) -> None:
    adata = open_annbatch(write(cells, tmp_path))
    x = cells.X.toarray()
    assert isinstance(adata.X, CellSource)
    assert adata.obs_names.tolist() == cells.obs_names.tolist()
    assert adata.var_names.tolist() == cells.var_names.tolist()
    assert adata.obs["batch"].astype(str).tolist() == cells.obs["batch"].astype(str).tolist()
    for start, stop in ((0, 120), (3, 4), (49, 52), (50, 70), (7, 7), (0, 50)):
        np.testing.assert_array_equal(adata.X.read(start, stop).toarray(), x[start:stop])
    wanted = np.array([0, 50, 119])
    np.testing.assert_array_equal(read_rows(adata.X, wanted).toarray(), x[wanted])
    np.testing.assert_array_equal(adata.X[[90, 2, 2]].toarray(), x[[90, 2, 2]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(adata.X)).to_memory().toarray(), x)
    np.testing.assert_array_equal(adata[[90, 2], [0, 4]].X.toarray(), x[np.ix_([90, 2], [0, 4])])
    np.testing.assert_array_equal(adata[:, [cells.var_names[3]]].X.toarray(), x[:, [3]])
    np.testing.assert_array_equal(adata.copy().X.to_memory().toarray(), x)
    adata[5:, 2:].write_h5ad(tmp_path / "part.h5ad")
    for found in (adata[5:, 2:].to_memory(), anndata.read_h5ad(tmp_path / "part.h5ad")):
        assert sp.issparse(found.X)
        np.testing.assert_array_equal(found.X.toarray(), x[5:, 2:])
    assert adata.X.shuffled == (write is as_zarr)
    assert abs(adata.X.row_bytes - 8 * cells.X.nnz / 120) < 2


def test_a_model_is_that_of_the_data_in_memory(cells: anndata.AnnData, tmp_path: Path) -> None:
    elbos = []
    for adata in (cells, open_annbatch(as_zarr(cells, tmp_path))):
        pv.model.SCVI.setup_anndata(adata, batch_key="batch")
        model = pv.model.SCVI(adata, n_hidden=8)
        model.train(2, batch_size=32, enable_progress_bar=False)
        elbos.append(model.history["elbo_train"].to_numpy())
    np.testing.assert_allclose(*elbos, rtol=1e-5)


def test_what_is_no_collection(cells: anndata.AnnData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        open_annbatch(tmp_path / "nowhere")
    with pytest.raises(DataError, match="neither"):
        open_annbatch(tmp_path)
    cells.write_zarr(tmp_path / "one.zarr")
    with pytest.raises(DataError, match="open_store"):
        open_annbatch(tmp_path / "one.zarr")
    folder = tmp_path / "differ"
    folder.mkdir()
    cells.write_h5ad(folder / "dataset_0.h5ad")
    cells[:, ::-1].copy().write_h5ad(folder / "dataset_1.h5ad")
    with pytest.raises(DataError, match="variables"):
        open_annbatch(folder)
    cells.write_h5ad(folder / "dataset_2.h5ad")
    (folder / "dataset_1.h5ad").unlink()
    with pytest.raises(DataError, match=r"\[0, 2\].*missing"):
        open_annbatch(folder)
    dense = tmp_path / "dense"
    dense.mkdir()
    anndata.AnnData(cells.X.toarray(), cells.obs, cells.var).write_h5ad(dense / "dataset_0.h5ad")
    with pytest.raises(DataError, match="dense"):
        open_annbatch(dense)
