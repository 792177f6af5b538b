"""open_store: matrices stay on disk, whichever the file, and broken files are named."""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

import pyrovi as pv
from pyrovi.data import StoredMatrix, open_store, shuffled_store
from pyrovi.errors import DataError

FILES = ("cells.h5ad", "cells.zarr")


@pytest.fixture
def cells(tmp_path: Path) -> anndata.AnnData:
    adata = pv.data.synthetic_iid(batch_size=60, n_genes=15, n_batches=2)
    adata.X = sp.csr_matrix(adata.X)
    adata.layers["dense"] = adata.X.toarray() + 1
    adata.raw = anndata.AnnData(adata.X * 2, obs=adata.obs, var=adata.var)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata.write_zarr(tmp_path / "cells.zarr")
    return adata


def same(found: anndata.AnnData, expected: anndata.AnnData) -> None:
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(found.layers["dense"], expected.layers["dense"])
    np.testing.assert_array_equal(found.raw.X.toarray(), expected.raw.X.toarray())
    np.testing.assert_array_equal(found.obsm["accessibility"], expected.obsm["accessibility"])
    assert found.obs.equals(expected.obs)
    assert found.var_names.equals(expected.var_names)


@pytest.mark.parametrize("name", FILES)
def test_all_matrices_stay_on_disk(name: str, cells: anndata.AnnData, tmp_path: Path) -> None:
    opened = open_store(tmp_path / name)
    part = opened[np.arange(120) % 3 > 0, ["gene_9", "gene_2"]]
    expected = cells[np.arange(120) % 3 > 0, ["gene_9", "gene_2"]]
    for adata, truth in ((opened, cells), (part, expected), (part[::-2], expected[::-2])):
        for matrix in (adata.X, adata.layers["dense"], adata.raw.X):
            assert isinstance(matrix, StoredMatrix)
        same(adata.to_memory(), truth.copy())
    assert isinstance(part.copy().X, StoredMatrix)
    assert isinstance(opened.raw.to_adata()[:, :3].X, StoredMatrix)


@pytest.mark.parametrize("name", FILES)
def test_a_model_of_a_part_is_that_of_the_part_in_memory(
    name: str, cells: anndata.AnnData, tmp_path: Path
) -> None:
    results = []
    for whole in (cells, open_store(tmp_path / name)):
        part = whole[np.arange(120) % 3 > 0, 2:12]
        pv.settings.seed = 1
        pv.model.SCVI.setup_anndata(part, layer="dense", batch_key="batch")
        model = pv.model.SCVI(part, n_hidden=4, n_latent=2)
        model.train(1, accelerator="cpu", enable_progress_bar=False)
        others = whole[5:25, 2:12]  # still a view: queries write nothing
        results.append(model.get_latent_representation(others))
    assert isinstance(part.X, StoredMatrix)
    assert others.is_view
    np.testing.assert_array_equal(*results)


def test_what_has_no_matrix_or_raw(tmp_path: Path) -> None:
    adata = anndata.AnnData(obs={"x": [1, 2]}, var={"y": [1, 2, 3]})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata.write_zarr(tmp_path / "cells.zarr")
    for name in FILES:
        opened = open_store(tmp_path / name)
        assert opened.X is None
        assert opened.raw is None
        assert opened.shape == (2, 3)


def test_broken_stores_are_named(cells: anndata.AnnData, tmp_path: Path) -> None:
    whole = (tmp_path / "cells.h5ad").read_bytes()
    (tmp_path / "text.h5ad").write_text("no data")
    (tmp_path / "half.h5ad").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "text.zarr").mkdir()
    (tmp_path / "text.zarr" / ".zgroup").write_text("{no json")
    for name in ("text.h5ad", "half.h5ad", "empty.zarr", "text.zarr"):
        for opening in (open_store, lambda path: shuffled_store(path, tmp_path / "out.zarr")):
            with pytest.raises(DataError, match=rf"{name} cannot be opened .*copy or write"):
                opening(tmp_path / name)
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["table"] = np.eye(3)
    with pytest.raises(DataError, match=r"no obs or no var \(it has \['table'\]\)"):
        open_store(tmp_path / "other.h5ad")
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["obs"] = file["var"] = np.zeros(3, dtype=[("index", "S3")])
    with pytest.raises(DataError, match=r"format of anndata before 0\.7"):
        open_store(tmp_path / "old.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file["layers/dense"]
        file["layers"].create_dataset("dense", data=np.eye(3))
    with pytest.raises(DataError, match=r"damaged: layers\['dense'\] has the shape \(3, 3\)"):
        open_store(tmp_path / "cells.h5ad")
