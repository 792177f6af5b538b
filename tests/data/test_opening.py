"""open_store: matrices stay on disk, whichever the file, and broken files are named."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def edited(cells: anndata.AnnData, path: Path, edit: Callable[[h5py.File], Any]) -> Path:
    cells.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def put(file: h5py.File, name: str, value: Any) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=value).attrs.update(attributes)


DAMAGED_ENTRIES: dict[str, Callable[[h5py.File], Any]] = {
    "X cannot be read": lambda file: file["X"].attrs.pop("shape"),
    "X cannot be read .*IORegistryError": lambda file: file["X"].attrs.pop("encoding-type"),
    "X cannot be read .*'data'": lambda file: file.pop("X/data"),
    r"layers\['dense'\] has the shape": lambda file: put(
        file, "layers/dense", np.ones((120, 15, 2))
    ),
    "layers cannot be read": lambda file: put(file, "layers", np.eye(3)),
    "raw cannot be read": lambda file: file.pop("raw/X"),
    "obs cannot be read": lambda file: file.pop("obs/_index"),
    "the AnnData cannot be read .*'accessibility'": lambda file: put(
        file, "obsm/accessibility", np.ones((119, 2))
    ),
}


@pytest.mark.parametrize("told", DAMAGED_ENTRIES)
def test_a_damaged_entry_is_named(told: str, cells: anndata.AnnData, tmp_path: Path) -> None:
    path = edited(cells, tmp_path / "edited.h5ad", DAMAGED_ENTRIES[told])
    with pytest.raises(DataError, match=rf"edited\.h5ad is damaged.*{told}"):
        open_store(path)
    cells.write_h5ad(path)  # the file is not held open
    same(open_store(path).to_memory(), cells)


def last_column_lost(file: h5py.File) -> None:
    file["X/indices"][-1] = 15


DAMAGED_ROWS: dict[str, Callable[[h5py.File], Any]] = {
    r"it has \['data', 'indices'\]": lambda file: file.pop("X/indptr"),
    "120, 15.* indptr must": lambda file: put(file, "X/indptr", file["X/indptr"][:9]),
    "with 9 values .* indptr must": lambda file: put(file, "X/data", file["X/data"][:9]),
    "with 8 values .* indptr must": lambda file: put(file, "X/indices", file["X/indices"][:8]),
    "begin at 0, never fall": lambda file: file["X/indptr"].write_direct(np.zeros(121, np.int32)),
    "15 columns .* from 0 to 15": last_column_lost,
}


@pytest.mark.parametrize("told", DAMAGED_ROWS)
def test_damaged_rows_are_not_read(told: str, cells: anndata.AnnData, tmp_path: Path) -> None:
    adata = open_store(edited(cells, tmp_path / "edited.h5ad", DAMAGED_ROWS[told]))
    with pytest.raises(DataError, match=rf"edited\.h5ad/X.*{told}"):
        adata.X[:]


@pytest.mark.parametrize(
    ("form", "part"),
    [
        (np.asarray, slice(None)),
        (np.asarray, slice(5)),
        (sp.csr_matrix, slice(None)),
        (sp.csr_matrix, slice(5)),
        (sp.csc_matrix, slice(None)),  # of which a part is in memory
    ],
)
def test_a_zarr_store_written_onto_itself_is_an_error(
    form: Callable[[Any], Any], part: slice, tmp_path: Path
) -> None:
    path = tmp_path / "cells.zarr"
    anndata.AnnData(form(np.ones((60, 5), np.float32))).write_zarr(path)
    adata = open_store(path)
    if part != slice(None):
        adata = adata[part]
    with pytest.raises(DataError, match=r"cells\.zarr/X was .* write to another path"):
        adata.write_zarr(path)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_a_store_that_is_gone_is_not_zeros(form: Callable[[Any], Any], tmp_path: Path) -> None:
    path, ones = tmp_path / "cells.zarr", form(np.ones((60, 5), np.float32))
    anndata.AnnData(ones).write_zarr(path)
    adata = open_store(path)
    assert adata.X[:].sum() == 300
    shutil.rmtree(path)
    with pytest.raises(DataError, match=r"cells\.zarr/X was removed after it was opened"):
        adata.X[:]
    anndata.AnnData(2 * ones).write_zarr(path)
    with pytest.raises(DataError, match=r"cells\.zarr/X was written anew after it was opened"):
        adata.X[:]
    assert open_store(path).X[:].sum() == 600


def test_a_closed_file_is_named(cells: anndata.AnnData, tmp_path: Path) -> None:
    adata = open_store(tmp_path / "cells.h5ad")
    adata.X.source.source.group.file.close()
    for matrix in (adata.X, adata.layers["dense"]):
        with pytest.raises(DataError, match="its file is closed"):
            matrix[:3]
    with pytest.raises(DataError, match="path of a store is None"):
        open_store(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FILES)
def test_what_is_stored_by_column(name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).poisson(1.0, (40, 6)).astype(np.float32)
    cells = anndata.AnnData(sp.csc_matrix(x))
    cells.raw = cells.copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells.write_zarr(tmp_path / "cells.zarr")
    adata = open_store(tmp_path / name)
    again = pickle.loads(pickle.dumps(adata.raw.X))
    for matrix in (adata.raw.to_adata().X, adata.copy().X, again):
        assert not isinstance(matrix, sp.csc_matrix)  # nothing is read
        np.testing.assert_array_equal(matrix.to_memory().toarray(), x)
    np.testing.assert_array_equal(adata[3:9, ::2].X.toarray(), x[3:9, ::2])
    with pytest.raises(DataError, match=r"\(40, 6\), stored by column .*to_memory\(\)"):
        np.asarray(adata.X)
    adata.write_h5ad(tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    for matrix in (found.X, found.raw.X):
        assert matrix.format == "csc"
        np.testing.assert_array_equal(matrix.toarray(), x)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("shape", [(5, 0), (0, 5)])
def test_what_has_no_values(
    form: Callable[[Any], Any], shape: tuple[int, int], tmp_path: Path
) -> None:
    anndata.AnnData(form(np.zeros(shape, np.float32))).write_h5ad(tmp_path / "none.h5ad")
    adata = open_store(tmp_path / "none.h5ad")
    some = adata[: shape[0] // 2]
    for part, size in ((adata, shape), (some, (shape[0] // 2, shape[1]))):
        part.write_h5ad(tmp_path / "out.h5ad")
        assert part.to_memory().X.shape == size == anndata.read_h5ad(tmp_path / "out.h5ad").X.shape
