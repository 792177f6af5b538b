"""Data larger than memory, put into a random order once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.abc import CSCDataset
from anndata.io import write_elem
from numpy.typing import NDArray

from pyrovi._lazy import require
from pyrovi.data.containers import preview
from pyrovi.data.opening import open_root, opened, store_path, store_suffix
from pyrovi.data.sources import SHUFFLED, CellSource, MemorySource, disk_source
from pyrovi.data.stored_matrix import StoredMatrix
from pyrovi.errors import DataError, MissingKeyError

Cells: TypeAlias = str | os.PathLike[str] | anndata.AnnData

_PIECE_BYTES = 2**26
"""Rows that are scattered at a time."""

_BIN_BYTES = 2**27
"""Rows that are shuffled in memory at a time."""

_CHUNK_VALUES = 2**17
"""Values in a chunk of the written store."""

_ARRAYS = ("data", "indices", "lengths", "places")


def shuffled_store(
    paths: Cells | Sequence[Cells],
    out: str | os.PathLike[str],
    *,
    layer: str | None = None,
    seed: int | None = None,
) -> Path:
    """Write the observations of one or several files into one store, in a random order.

    Files are usually sorted, by donor or by batch. Training from disk reads neighbours together, so
    that its minibatches are the more like draws from all observations, the less neighbours are
    alike; in the store that is written here they are independent draws. The order is a uniformly
    random permutation, a pure function of the seed.

    Matrices of any size take about 0.5 GB of memory, and disk space for a second copy while this
    runs; ``obs``, which is held whole, takes about 0.25 GB more per million observations with a few
    columns. Nothing is left behind if it fails.

    Parameters
    ----------
    paths
        One or more ``.h5ad`` files, ``.zarr`` folders or AnnData with the same variables in the
        same order; their matrices may be CSR or dense. A selection is an AnnData from
        :func:`open_store`: ``open_store(path)[cells, genes]``; so is the matrix in ``raw``:
        ``open_store(path).raw.to_adata()``.
    out
        What to write, ending in ``.zarr`` or ``.h5ad``: ``X`` (CSR), ``obs`` with the columns that
        all files share, and the ``var`` of the first file. Open it with :func:`open_store`.
    layer
        Key of ``layers`` that becomes ``X``; ``None`` takes ``X``.
    seed
        Root seed; ``None`` takes ``pyrovi.settings.seed``.

    Returns
    -------
    pathlib.Path
        ``out``.

    Raises
    ------
    DataError
        If a file does not exist or is damaged, variables differ, names of observations repeat, a
        matrix is stored by column, there are no observations, or ``out`` exists.
    MissingKeyError
        If a file lacks the layer.
    MissingExtraError
        If zarr is needed and not installed.
    """
    from pyrovi._rng import generator  # imports torch

    given = [paths] if isinstance(paths, str | os.PathLike | anndata.AnnData) else list(paths)
    if not given:
        raise DataError("paths is empty; name at least one .h5ad file or .zarr folder")
    target = store_path(out)
    store_suffix(target, exists=False)
    with ExitStack() as stack:
        parts = [_part(item, f"paths[{number}]", stack) for number, item in enumerate(given)]
        names = [name for name, _ in parts]
        cells = [adata for _, adata in parts]
        sources = [matrix_of(adata, name, layer) for name, adata in parts]
        var = common_var(cells, names)
        obs = joined_obs(cells, names)
        if not len(obs):
            raise DataError(f"{preview(names)} hold no observations; expected at least one.")
        order = generator("shuffled store", seed=seed).permutation(len(obs))
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
        )
        dtype = np.result_type(*(source.dtype for source in sources))
        bins = _scatter(sources, np.argsort(order), dtype, Path(scratch))
        written = Path(scratch) / target.name
        with _new_root(written) as root:
            root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            write_elem(root, "obs", obs.iloc[order])
            write_elem(root, "var", var)
            _gather(bins, root, (len(obs), len(var)), dtype)
        written.rename(target)
    return target


def _part(item: Cells, name: str, stack: ExitStack) -> tuple[str, anndata.AnnData]:
    """Observations to write, and how to call them in messages."""
    if isinstance(item, anndata.AnnData):
        if item.isbacked and item.is_view:
            raise DataError(
                f"{name} is a subset of an AnnData that anndata has opened, which would be read "
                "into memory. Expected one of pyrovi.data.open_store, whose subsets stay on disk."
            )
        return name, item
    path = store_path(item)
    root = open_root(path)
    if isinstance(root, h5py.File):
        stack.enter_context(root)
    return str(path), opened(root, path, whole=False)


def _scatter(
    sources: Sequence[CellSource], places: NDArray[np.int64], dtype: np.dtype[Any], folder: Path
) -> list[Path]:
    """First pass: append each row to the bin of its place; the bins, in the order of places."""
    total = sum(source.row_bytes * source.shape[0] for source in sources)
    size = -(-len(places) // max(1, -(-total // _BIN_BYTES)))
    bins = [folder / f"bin{number}" for number in range(-(-len(places) // size))]
    offset = 0
    for source in sources:
        step = max(1, _PIECE_BYTES // source.row_bytes)
        for start in range(0, source.shape[0], step):
            rows = sp.csr_matrix(source.read(start, min(start + step, source.shape[0])))
            own = places[offset : offset + rows.shape[0]]
            offset += rows.shape[0]
            sorting = np.argsort(own)
            rows, own = rows[sorting], own[sorting]
            edges = np.searchsorted(own, np.arange(len(bins) + 1) * size)
            for path, first, last in zip(bins, edges[:-1], edges[1:], strict=True):
                values = slice(rows.indptr[first], rows.indptr[last])
                arrays = {
                    "data": rows.data[values].astype(dtype, copy=False),
                    "indices": rows.indices[values].astype(np.int32, copy=False),
                    "lengths": np.diff(rows.indptr[first : last + 1]).astype(np.int64),
                    "places": own[first:last],
                }
                for name, array in arrays.items():
                    with path.with_suffix(f".{name}").open("ab") as file:
                        array.tofile(file)
    return bins


def _gather(bins: Sequence[Path], root: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    """Second pass: put the rows of each bin into the order of their places, and write them."""
    n_values = sum(path.with_suffix(".indices").stat().st_size for path in bins) // 4
    group = root.create_group("X")
    group.attrs.update(
        {
            "encoding-type": "csr_matrix",
            "encoding-version": "0.1.0",
            "shape": list(shape),
            SHUFFLED: True,
        }
    )
    data = _array(group, "data", n_values, dtype)
    indices = _array(group, "indices", n_values, np.dtype(np.int32))
    # One type for both where it can be: SciPy converts all indices at every access if they differ.
    narrow = n_values <= np.iinfo(np.int32).max
    indptr = _array(group, "indptr", shape[0] + 1, np.dtype(np.int32 if narrow else np.int64))
    ends = [np.zeros(1, dtype=np.int64)]
    types: dict[str, Any] = dict(zip(_ARRAYS, (dtype, np.int32, np.int64, np.int64), strict=True))
    for path in bins:
        part = {
            name: np.fromfile(path.with_suffix(f".{name}"), dtype=types[name]) for name in _ARRAYS
        }
        starts = np.concatenate([[0], np.cumsum(part["lengths"])])
        rows = sp.csr_matrix(
            (part["data"], part["indices"], starts), shape=(len(part["lengths"]), shape[1])
        )[np.argsort(part["places"])]
        first = int(ends[-1][-1])
        if rows.nnz:
            data[first : first + rows.nnz] = rows.data
            indices[first : first + rows.nnz] = rows.indices
        ends.append(rows.indptr[1:].astype(np.int64) + first)
        for name in _ARRAYS:
            path.with_suffix(f".{name}").unlink()
    indptr[:] = np.concatenate(ends)


def _array(group: Any, name: str, length: int, dtype: np.dtype[Any]) -> Any:
    chunks = (max(1, min(_CHUNK_VALUES, length)),)
    if isinstance(group, h5py.Group):
        return group.create_dataset(name, (length,), dtype=dtype, chunks=chunks, maxshape=(None,))
    return group.create_array(name, shape=(length,), dtype=dtype, chunks=chunks)


@contextmanager
def _new_root(path: Path) -> Iterator[Any]:
    if path.suffix == ".h5ad":
        with h5py.File(path, "w") as file:
            yield file
    else:  # format 2 is what every anndata reads
        yield require("zarr", "zarr").open_group(path, mode="w", zarr_format=2)


def matrix_of(adata: anndata.AnnData, name: str, layer: str | None) -> StoredMatrix:
    """Matrix of an AnnData, read by rows.

    Parameters
    ----------
    adata
        In memory or on disk.
    name
        How to call it in messages.
    layer
        Key of ``layers``; ``None`` for ``X``.

    Raises
    ------
    MissingKeyError
        If there is none.
    DataError
        If its rows cannot be read.
    """
    if (layer is not None and layer not in adata.layers) or (layer is None and adata.X is None):
        raise MissingKeyError(
            f"{name} has no {'X' if layer is None else f'layer {layer!r}'}; "
            f"it has the layers {list(adata.layers)}"
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    if isinstance(matrix, StoredMatrix):
        return matrix
    if isinstance(matrix, CSCDataset):
        raise DataError(
            f"The matrix of {name} is stored by column (CSC), which cannot be read by rows within "
            "bounded memory; write it as CSR first: `adata.X = adata.X.tocsr()`"
        )
    if sp.issparse(matrix) or isinstance(matrix, np.ndarray):
        return StoredMatrix(MemorySource(sp.csr_matrix(matrix) if sp.issparse(matrix) else matrix))
    source = disk_source(matrix)
    if source is None:
        raise DataError(f"The matrix of {name} is a {type(matrix).__name__}, expected CSR or dense")
    return StoredMatrix(source)


def common_var(cells: Sequence[anndata.AnnData], names: Sequence[str]) -> pd.DataFrame:
    """``var`` of the first AnnData, whose names all others must have."""
    first: pd.DataFrame = cells[0].var
    for adata, name in zip(cells[1:], names[1:], strict=True):
        if adata.var_names.equals(first.index):
            continue
        missing = first.index.difference(adata.var_names)
        extra = adata.var_names.difference(first.index)
        detail = (
            f"it lacks {preview(missing)} and has besides {preview(extra)}"
            if len(missing) or len(extra)
            else "they are in another order"
        )
        raise DataError(
            f"The variables of {name} are not those of {names[0]}: {detail}. Give all with the "
            "same variables in the same order, e.g. `open_store(path)[:, var_names]`."
        )
    return first.copy()


def joined_obs(cells: Sequence[anndata.AnnData], names: Sequence[str]) -> pd.DataFrame:
    """``obs`` of all AnnData, one after the other, with the columns that all share."""
    tables = [anndata.AnnData(obs=adata.obs) for adata in cells]
    obs: pd.DataFrame = (
        anndata.concat(tables, join="inner").obs if len(tables) > 1 else tables[0].obs
    )
    repeated = obs.index[obs.index.duplicated()]
    if len(repeated):
        raise DataError(
            f"{len(repeated)} names of observations appear more than once in "
            f"{preview(names)}, such as {repeated[0]!r}. Expected unique names: prefix "
            "them with the name of the file, e.g. `adata.obs_names = 'sample1_' + adata.obs_names`."
        )
    return obs
