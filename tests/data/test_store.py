"""shuffled_store: the same observations in a random order, or nothing at all."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrovi.data import StoredMatrix, open_store, shuffled_store, store
from pyrovi.data.sources import disk_source
from pyrovi.errors import DataError, MissingExtraError, MissingKeyError

N_OBS, N_VARS = 500, 12


def cells(first: int = 0, n_obs: int = N_OBS) -> anndata.AnnData:
    """Observations whose rows, names and columns of ``obs`` all tell their number."""
    number = np.arange(first, first + n_obs)
    x = np.random.default_rng(first).poisson(0.3, (n_obs, N_VARS)).astype(np.float32)
    x[:, 0] = number
    obs = pd.DataFrame(
        {"number": number, "type": pd.Categorical(np.where(number < 250, "a", f"b{first}"))},
        index=[f"cell{i}" for i in number],
    )
    var = pd.DataFrame({"length": np.arange(N_VARS)}, index=[f"gene{i}" for i in range(N_VARS)])
    return anndata.AnnData(sp.csr_matrix(x), obs=obs, var=var)


def write(adata: anndata.AnnData, path: Path) -> Path:
    adata.write_h5ad(path)
    return path


def same_cells(found: anndata.AnnData, expected: anndata.AnnData) -> None:
    number = found.obs["number"].to_numpy()
    assert sorted(number) == sorted(expected.obs["number"])
    assert found.var.equals(expected.var)
    back = expected[found.obs_names]
    np.testing.assert_array_equal(found.X[:].toarray(), back.X.toarray())
    np.testing.assert_array_equal(number, back.obs["number"])
    assert found.obs["type"].tolist() == back.obs["type"].tolist()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces, bins and chunks."""
    monkeypatch.setattr(store, "_PIECE_BYTES", 2000)
    monkeypatch.setattr(store, "_BIN_BYTES", 3000)
    monkeypatch.setattr(store, "_CHUNK_VALUES", 64)


@pytest.mark.parametrize("out", ["out.zarr", "out.h5ad"])
@pytest.mark.usefixtures("small_steps")
def test_the_observations_are_kept(out: str, tmp_path: Path) -> None:
    one, other = cells(n_obs=180), cells(180, 320)
    expected = anndata.concat([one, other], merge="same")
    other.X = other.X.toarray().astype(np.float64)  # dense and wider
    other.obs["only_here"] = 1.0
    files = [write(one, tmp_path / "1.h5ad"), write(other, tmp_path / "2.h5ad")]
    assert shuffled_store(files, tmp_path / out) == tmp_path / out
    opened = open_store(tmp_path / out)
    assert disk_source(opened.X) is not None
    assert opened.X.dtype == np.float64
    assert list(opened.obs) == ["number", "type"]
    same_cells(opened, expected)
    read = anndata.io.read_zarr if out == "out.zarr" else anndata.read_h5ad
    same_cells(read(tmp_path / out), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["1.h5ad", "2.h5ad", out])


@pytest.mark.usefixtures("small_steps")
def test_the_order_is_random_and_repeatable(tmp_path: Path) -> None:
    source = write(cells(), tmp_path / "a.h5ad")
    orders = [
        open_store(shuffled_store(source, tmp_path / f"{i}.h5ad", seed=seed)).obs["number"]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()
    # A random permutation: no correlation with the old order, nor between neighbours.
    for order in orders[1:]:
        values = order.to_numpy(dtype=float)
        bound = 4 / np.sqrt(N_OBS)
        assert abs(np.corrcoef(values, np.arange(N_OBS))[0, 1]) < bound
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < bound


def test_a_shuffled_store_is_shuffled_again(tmp_path: Path) -> None:
    first = shuffled_store(write(cells(), tmp_path / "a.h5ad"), tmp_path / "1.zarr")
    same_cells(open_store(shuffled_store(first, tmp_path / "2.zarr", seed=1)), cells())
    source = disk_source(open_store(first).X)
    assert source is not None
    assert source.shuffled
    plain = disk_source(open_store(tmp_path / "a.h5ad").X)
    assert plain is not None
    assert not plain.shuffled


def test_a_layer(tmp_path: Path) -> None:
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 2
    source = write(adata, tmp_path / "a.h5ad")
    same_cells(open_store(shuffled_store(source, tmp_path / "b.zarr", layer="counts")), cells())
    with pytest.raises(MissingKeyError, match=r"no layer 'raw'; it has the layers \['counts'\]"):
        shuffled_store(source, tmp_path / "c.zarr", layer="raw")
    with pytest.raises(MissingKeyError, match=r"no layer 'raw'; it has the layers \[\]"):
        shuffled_store(tmp_path / "b.zarr", tmp_path / "c.zarr", layer="raw")


@pytest.mark.usefixtures("small_steps")
def test_subsets_and_raw_counts(tmp_path: Path) -> None:
    """Quality control, highly variable genes and counts in raw, of files and of data in memory."""
    one, other = cells(n_obs=180), cells(180, 320)
    other.X = other.X.tocsc()  # in memory
    expected = anndata.concat([one, other], merge="same")
    one.raw = one.copy()
    one.X = one.X * 0
    opened = open_store(write(one, tmp_path / "1.h5ad"))
    good = expected.obs["number"].to_numpy() % 3 != 0
    genes = ["gene7", "gene0", "gene2"]
    parts = [opened.raw.to_adata()[good[:180], genes], other[good[180:], genes]]
    out = shuffled_store(parts, tmp_path / "out.zarr")
    same_cells(open_store(out), expected[good, genes].copy())
    assert isinstance(opened.raw.X, StoredMatrix)  # it was not read for that
    backed = anndata.read_h5ad(tmp_path / "1.h5ad", backed="r")
    with pytest.raises(DataError, match=r"paths\[0\] is a subset .* pyrovi.data.open_store"):
        shuffled_store(backed[good[:180]], tmp_path / "no.zarr")
    with pytest.raises(DataError, match=r"variables of paths\[1\] are not those of paths\[0\]"):
        shuffled_store([opened, other[:, genes]], tmp_path / "no.zarr")
    backed.file.close()


def test_a_file_whose_matrix_lacks_rows(tmp_path: Path) -> None:
    source = write(cells(), tmp_path / "a.h5ad")
    with h5py.File(source, "r+") as file:
        file["X"].attrs["shape"] = [N_OBS - 1, N_VARS]
    with pytest.raises(DataError, match=r"shape \(499, 12\), expected 500 rows"):
        shuffled_store(source, tmp_path / "b.zarr")


def test_layers_of_a_zarr_store_stay_on_disk(tmp_path: Path) -> None:
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["place"] = np.zeros((N_OBS, 2))
    with pytest.warns(UserWarning, match="zarr"):
        adata.write_zarr(tmp_path / "a.zarr")
    opened = open_store(tmp_path / "a.zarr")
    assert disk_source(opened.layers["counts"]) is not None
    assert opened.obsm["place"].shape == (N_OBS, 2)
    same_cells(opened, cells())


def other_order(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[:, ::-1].copy()


def by_column(adata: anndata.AnnData) -> anndata.AnnData:
    adata.X = adata.X.tocsc()
    return adata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, 1:].copy(), "it lacks 'gene0' and has besides"),
        (other_order, "they are in another order"),
        (by_column, "stored by column"),
        (lambda a: cells(), "500 names of observations appear more than once .* such as 'cell0'"),
    ],
)
def test_files_that_do_not_fit(change: Any, message: str, tmp_path: Path) -> None:
    files = [write(cells(), tmp_path / "1.h5ad"), write(change(cells(N_OBS)), tmp_path / "2.h5ad")]
    with pytest.raises(DataError, match=message):
        shuffled_store(files, tmp_path / "out.zarr")
    assert len(list(tmp_path.iterdir())) == 2


def test_paths_that_do_not_fit(tmp_path: Path) -> None:
    source = write(cells(), tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="paths is empty"):
        shuffled_store([], tmp_path / "out.zarr")
    with pytest.raises(DataError, match=r"b.h5ad does not exist"):
        shuffled_store(tmp_path / "b.h5ad", tmp_path / "out.zarr")
    with pytest.raises(DataError, match=r"b.h5ad does not exist"):
        open_store(tmp_path / "b.h5ad")
    with pytest.raises(DataError, match=r"ends in '.loom', expected '.h5ad' or '.zarr'"):
        shuffled_store(source, tmp_path / "out.loom")
    with pytest.raises(DataError, match="exists already"):
        shuffled_store(source, source)
    with pytest.raises(DataError, match="create it first"):
        shuffled_store(source, tmp_path / "nowhere" / "out.zarr")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("step", ["_scatter", "_gather"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_nothing_half_written_is_left(
    step: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(cells(), tmp_path / "a.h5ad")
    real = getattr(store, step)

    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        raise error("no space left")

    monkeypatch.setattr(store, step, interrupted)
    with pytest.raises(error):
        shuffled_store(source, tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == [source]


def test_zarr_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(cells(), tmp_path / "a.h5ad")
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(MissingExtraError, match=r"pyrovi\[zarr\]"):
        shuffled_store(source, tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == [source]


def test_memory_does_not_grow_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PIECE_BYTES", 2**18)
    monkeypatch.setattr(store, "_BIN_BYTES", 2**18)
    peaks = {}
    for n_obs in (1000, 4000):
        x = sp.random(n_obs, 4000, 0.1, format="csr", dtype=np.float32, rng=0)
        source = write(anndata.AnnData(x), tmp_path / f"{n_obs}.h5ad")
        size = x.data.nbytes + x.indices.nbytes
        del x
        tracemalloc.start()
        shuffled_store(source, tmp_path / f"{n_obs}.zarr")
        peaks[n_obs] = tracemalloc.get_traced_memory()[1] / size
        tracemalloc.stop()
    # Four times the data in hardly more memory: only names and places grow.
    assert peaks[4000] < 0.4
    assert peaks[4000] < 0.5 * peaks[1000]


def test_a_store_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"paths\[0\].* no observations; expected at least one"):
        shuffled_store(cells()[[]], tmp_path / "out.zarr")
    assert not list(tmp_path.iterdir())
