"""Matrices that stay in their store: what anndata does with them is what it does in memory."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp

import pyrovi as pv
from pyrovi.data import CellSource, StoredMatrix, sources
from pyrovi.data.anndata_hooks import teach_anndata
from pyrovi.data.sources import MemorySource
from pyrovi.dataloaders.rows import as_rows
from pyrovi.errors import DataError, SaveLoadError

N_ROWS, N_COLUMNS = 90, 7


class Own:
    """A source of one's own: only what the protocol asks for."""

    shape = (N_ROWS, N_COLUMNS)
    row_bytes = 8 * N_COLUMNS
    chunk_rows = 1
    shuffled = False

    def __init__(self, x: np.ndarray, is_sparse: bool) -> None:
        self.x = x
        self.is_sparse = is_sparse
        self.was_read: list[tuple[int, int]] = []
        self.broken = False

    def read(self, start: int, stop: int) -> Any:
        if self.broken:
            raise OSError("the disk is gone")
        self.was_read.append((int(start), int(stop)))
        return sp.csr_matrix(self.x[start:stop]) if self.is_sparse else self.x[start:stop].copy()


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).poisson(0.7, (N_ROWS, N_COLUMNS)).astype(np.float32)


@pytest.fixture(params=[True, False], ids=["sparse", "dense"])
def adata(request: pytest.FixtureRequest, x: np.ndarray) -> anndata.AnnData:
    own = Own(x, request.param)
    assert isinstance(own, CellSource)
    return anndata.AnnData(StoredMatrix(own))


def dense(rows: Any) -> np.ndarray:
    return rows.toarray() if sp.issparse(rows) else np.asarray(rows)


def test_any_selection_of_any_selection(adata: anndata.AnnData, x: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    mask, order, columns = rng.random(N_ROWS) < 0.5, rng.permutation(40), [6, 0, 0, 3]
    for rows, own in ((mask, x[mask]), (slice(80, 2, -3), x[80:2:-3]), ([4, 4, 1], x[[4, 4, 1]])):
        part, truth = adata[rows, columns], own[:, columns]
        assert isinstance(part.X, StoredMatrix)
        assert part.X.shape == truth.shape
        np.testing.assert_array_equal(dense(part.X.to_memory()), truth)
        np.testing.assert_array_equal(part.X.toarray(), truth)
        np.testing.assert_array_equal(dense(part.X.read(1, 3)), truth[1:3])
        np.testing.assert_array_equal(dense(part.X[:, 1]).ravel(), truth[:, 1])
        np.testing.assert_array_equal(dense(pickle.loads(pickle.dumps(part.X))[:]), truth)
        rows_again = as_rows("X", part.X)
        np.testing.assert_array_equal(dense(rows_again.take(np.array([2, 0]))), truth[[2, 0]])
    some = adata[: len(order)][order][order % 2 == 0]
    np.testing.assert_array_equal(dense(some.X[:]), x[order][order % 2 == 0])
    assert adata[:0].X.to_memory().shape == (0, N_COLUMNS)


def test_a_selection_is_not_read_before_it_is_needed(adata: anndata.AnnData) -> None:
    source = adata.X.source
    part = adata[40:60, [1, 2]].copy()
    part.X.read(3, 5)
    assert source.was_read[-1] == (43, 45)
    assert set(source.was_read[:-1]) <= {(0, 1)}  # for the type of the values


def test_what_a_selection_costs(x: np.ndarray) -> None:
    own = Own(x, True)
    part = StoredMatrix(own, columns=[0, 3])
    stored = np.count_nonzero(x[:, [0, 3]])
    assert part.row_bytes == pytest.approx(8 * stored / N_ROWS, abs=1.5)
    assert StoredMatrix(Own(x, False), columns=[0, 3]).row_bytes == 16
    own.shuffled, own.chunk_rows = True, 30
    assert StoredMatrix(own, rows=[0, 5, 6]).shuffled
    assert not StoredMatrix(own, rows=[5, 0, 6]).shuffled
    assert StoredMatrix(own, rows=np.arange(0, N_ROWS, 3)).chunk_rows == 10


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_it_is_written_by_pieces(
    form: str, adata: anndata.AnnData, x: np.ndarray, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sources, "READ_BYTES", 20 * adata.X.row_bytes)
    adata.layers["other"] = adata.X
    adata.raw = adata
    part = adata[10:, ::2]
    for data, truth in ((adata, x), (part, x[10:, ::2])):
        path = tmp_path / f"{len(truth)}.{form}"
        if form == "h5ad":
            data.write_h5ad(path)
            found = anndata.read_h5ad(path)
        else:
            data.write_zarr(path)
            found = anndata.io.read_zarr(path)
        assert sp.issparse(found.X) == adata.X.is_sparse
        assert found.X.dtype == np.float32
        np.testing.assert_array_equal(dense(found.X), truth)
        np.testing.assert_array_equal(dense(found.layers["other"]), truth)
        np.testing.assert_array_equal(dense(found.raw.X), x[-len(truth) :])
    assert max(stop - start for start, stop in adata.X.source.was_read) <= 32


def test_concat_is_one_long_store(adata: anndata.AnnData, x: np.ndarray) -> None:
    both = anndata.concat([adata, adata[:5]], index_unique="-")
    assert isinstance(both.X, StoredMatrix)
    np.testing.assert_array_equal(dense(both.X[85:95]), np.vstack([x[85:], x[:5]]))
    assert both.to_memory().shape == (95, N_COLUMNS)
    mixed = np.concatenate([both.X, StoredMatrix(MemorySource(x))], axis=0)
    np.testing.assert_array_equal(dense(mixed[90:100]), np.vstack([x[:5], x[:5]]))
    for wrong in (
        lambda: anndata.concat([adata, adata[:, :3]], join="outer", index_unique="-"),
        lambda: np.asarray(adata.X),
        lambda: np.log1p(adata.X),
    ):
        with pytest.raises((DataError, TypeError), match=r"in memory|extensions\.take"):
            wrong()
    with pytest.raises(DataError, match="same number of columns"):
        np.concatenate([adata.X, adata[:, :3].X], axis=0)
    reversed_ = adata[:, ::-1]
    with pytest.raises(DataError, match=r"same order: select them first, adata\[:, names\]"):
        anndata.concat([adata, reversed_], index_unique="-")
    in_memory = anndata.AnnData(np.ones((2, N_COLUMNS), np.float32))
    with pytest.raises(DataError, match="joins stores if all matrices stay on disk"):
        anndata.concat([adata, in_memory], index_unique="-")
    same_order = anndata.concat([adata, reversed_[:, adata.var_names]], index_unique="-")
    np.testing.assert_array_equal(dense(same_order.X[:]), np.vstack([x, x]))


def test_joined_rows_are_of_one_type(x: np.ndarray) -> None:
    parts = [StoredMatrix(MemorySource(x.astype(dtype))) for dtype in (np.int32, np.float32)]
    joined = np.concatenate(parts, axis=0)
    for rows in (joined[:3], joined[N_ROWS:], joined[N_ROWS - 1 : N_ROWS + 1], joined[:0]):
        assert rows.dtype == joined.dtype == np.float64


def test_a_failed_save_leaves_nothing(x: np.ndarray, tmp_path: Path) -> None:
    own = Own(x + 1, True)
    adata = anndata.AnnData(StoredMatrix(own))
    pv.model.SCVI.setup_anndata(adata)
    model = pv.model.SCVI(adata, n_hidden=4)
    model.save(tmp_path / "model", save_anndata=True)
    kept = anndata.read_h5ad(tmp_path / "model" / "adata.h5ad")
    np.testing.assert_array_equal(kept.X.toarray(), x + 1)
    own.broken = True
    with pytest.raises(SaveLoadError, match="the disk is gone"):
        model.save(tmp_path / "other", save_anndata=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("missing", ["_core.index._subset", "_io.specs.registry._REGISTRY"])
def test_an_unknown_anndata_is_named(missing: str, x: np.ndarray, monkeypatch: Any) -> None:
    monkeypatch.delattr(f"anndata.{missing}")
    teach_anndata.cache_clear()
    with pytest.raises(DataError, match=r"anndata \d.* cannot be told .* install one of these"):
        StoredMatrix(Own(x, True))


def test_what_the_constructor_selects(x: np.ndarray) -> None:
    own, mask = Own(x, True), np.zeros(N_ROWS, bool)
    mask[[7, 8]] = True
    for rows, truth in ((mask, x[7:9]), ([-1, 0], x[[-1, 0]]), ([], x[:0])):
        assert StoredMatrix(own, rows=rows).shape == truth.shape
        np.testing.assert_array_equal(StoredMatrix(own, rows=rows).toarray(), truth)
    for wrong in ([1.5], [N_ROWS], mask[:5]):
        with pytest.raises(DataError, match=r"rows of a StoredMatrix cannot be selected: .* 90"):
            StoredMatrix(own, rows=wrong)
    for matrix in (x, sp.csr_matrix(x)):
        with pytest.raises(DataError, match=r"lacks .is_sparse., .read.*CellSource"):
            StoredMatrix(matrix)


def test_it_cannot_be_written_to(adata: anndata.AnnData) -> None:
    part = adata[:3]
    with pytest.raises(DataError, match=r"cannot be written to.*to_memory\(\)"):
        part.X = np.zeros((3, N_COLUMNS))


def test_chunks_of_a_dense_matrix_do_not_hinder(
    adata: anndata.AnnData, x: np.ndarray, tmp_path: Path
) -> None:
    adata.write_zarr(tmp_path / "cells.zarr", chunks=(10, N_COLUMNS))
    np.testing.assert_array_equal(dense(anndata.io.read_zarr(tmp_path / "cells.zarr").X), x)


def test_a_source_has_columns(x: np.ndarray) -> None:
    vector = Own(x, False)
    vector.shape = (N_ROWS,)  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"shape \(90,\)"):
        StoredMatrix(vector)


# ---------------------------------------------------------------------- in a dict of arrays


def rates(X: Any, y: Any, *, n_X: int) -> None:
    with pv.plate("column", n_X, dim=-1):
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(rate).to_event(1), obs=X)


@pytest.mark.parametrize("kind", ["own dense", "own sparse", "csr_matrix", "coo_array"])
def test_a_story_of_rows_in_a_store(kind: str, x: np.ndarray) -> None:
    makers = {"own dense": lambda v: Own(v, False), "own sparse": lambda v: Own(v, True)}
    make = makers.get(kind) or getattr(sp, kind)
    made, histories = make(x), []
    for data in (x, made):
        pv.settings.seed = 0
        model = pv.from_pyro(rates, {"X": data, "y": np.zeros(N_ROWS)}, guide="normal")
        model.train(15, lr=0.1, enable_progress_bar=False)
        histories.append(model.history["elbo_train"].to_numpy())
    np.testing.assert_array_equal(*histories)
    found = model.sample_posterior("rate", num_samples=200, reduce="mean")["rate"]
    exact = (1 + x.sum(0)) / (1 + N_ROWS)  # conjugate
    np.testing.assert_allclose(found, exact, atol=0.15)
    simulated = model.simulate(seed=0).obsm["X"]
    assert simulated.shape == x.shape
    assert sp.issparse(simulated) == (kind != "own dense")
    if isinstance(made, Own):
        assert made.was_read


def test_what_an_array_of_a_dict_cannot_be(x: np.ndarray) -> None:
    class Half:
        shape = (3, 2)

        def read(self, start: int, stop: int) -> None: ...

    with pytest.raises(DataError, match=r"is a Half.*CellSource \(it lacks 'is_sparse', 'row_b"):
        pv.from_pyro(rates, {"X": Half(), "y": np.zeros(3)})
    with pytest.raises(DataError, match=r"data\['X'\] is a NoneType. Expected an array"):
        pv.from_pyro(rates, {"X": None, "y": np.zeros(3)})
    bad = x.copy()
    bad[80, 3] = np.nan
    for data in (sp.csr_matrix(bad), Own(bad, True), Own(bad, False)):
        with pytest.raises(DataError, match=r"has nan at \(80, 3\)"):
            pv.from_pyro(rates, {"X": data, "y": np.zeros(N_ROWS)})
    with pytest.raises(DataError, match=r"different numbers of rows \(X: 90, y: 3\)"):
        pv.from_pyro(rates, {"X": Own(x, True), "y": np.zeros(3)})
