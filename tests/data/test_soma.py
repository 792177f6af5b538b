"""TileDB-SOMA: the rows of the experiment, trained on without being read into memory."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

import pyrovi as pv
from pyrovi.data import CellSource, open_soma
from pyrovi.data.sources import read_rows
from pyrovi.errors import DataError, MissingExtraError, MissingKeyError


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(MissingExtraError, match=r"pyrovi\[soma\]"):
        open_soma("nowhere")


def test_an_address_without_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    class SOMAError(Exception): ...

    def opened(uri: str) -> None:
        assert isinstance(uri, str), "TileDB takes no Path"
        raise SOMAError("Group does not exist.")

    fake = SimpleNamespace(SOMAError=SOMAError, Experiment=SimpleNamespace(open=opened))
    monkeypatch.setitem(sys.modules, "tiledbsoma", fake)
    with pytest.raises(DataError, match=r"'nowhere' is no TileDB-SOMA experiment .*does not exist"):
        open_soma(Path("nowhere"))


@pytest.fixture
def cells() -> anndata.AnnData:
    adata = pv.data.synthetic_iid(batch_size=60, n_genes=15, n_batches=2)
    adata.X = sp.csr_matrix(adata.X)
    return adata


@pytest.fixture
def uri(cells: anndata.AnnData, tmp_path: Path) -> str:
    pytest.importorskip("tiledbsoma")
    io = pytest.importorskip("tiledbsoma.io")
    plain = anndata.AnnData(cells.X, obs=cells.obs, var=cells.var)
    io.from_anndata(str(tmp_path / "soma"), plain, measurement_name="RNA")
    return str(tmp_path / "soma")


def test_rows_are_those_of_the_experiment(uri: str, cells: anndata.AnnData) -> None:
    adata = open_soma(uri)
    x = cells.X.toarray()
    assert isinstance(adata.X, CellSource)
    assert adata.obs_names.tolist() == cells.obs_names.tolist()
    assert adata.var_names.tolist() == cells.var_names.tolist()
    assert adata.obs["batch"].astype(str).tolist() == cells.obs["batch"].astype(str).tolist()
    for start, stop in ((0, 120), (3, 4), (50, 70), (7, 7)):
        np.testing.assert_array_equal(adata.X.read(start, stop).toarray(), x[start:stop])
    wanted = np.array([0, 5, 119])
    np.testing.assert_array_equal(read_rows(adata.X, wanted).toarray(), x[wanted])
    np.testing.assert_array_equal(adata.X[[9, 2, 2]].toarray(), x[[9, 2, 2]])
    np.testing.assert_array_equal(adata.X[10:20, 3:5].toarray(), x[10:20, 3:5])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(adata.X)).to_memory().toarray(), x)
    assert adata.X.row_bytes == 8 * cells.X.nnz // 120
    np.testing.assert_array_equal(adata[[9, 2], 3:5].to_memory().X.toarray(), x[[9, 2], 3:5])


def test_a_model_is_that_of_the_data_in_memory(uri: str, cells: anndata.AnnData) -> None:
    histories = []
    for adata in (cells, open_soma(uri)):
        pv.model.SCVI.setup_anndata(adata, batch_key="batch")
        model = pv.model.SCVI(adata, n_hidden=8, n_latent=2)
        model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
        histories.append(model.history["elbo_train"].to_numpy())
    np.testing.assert_array_equal(*histories)


def test_what_is_missing_is_named(uri: str) -> None:
    with pytest.raises(MissingKeyError, match=r"no measurement 'ATAC'; it has \['RNA'\]"):
        open_soma(uri, "ATAC")
    with pytest.raises(MissingKeyError, match=r"no matrix 'raw'; it has \['data'\]"):
        open_soma(Path(uri), matrix="raw")
    with pytest.raises(DataError, match="no TileDB-SOMA experiment"):
        open_soma(uri + "nowhere")
