"""Data larger than memory: opening them, and putting them into a random order once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.abc import CSCDataset
from anndata.io import read_elem, sparse_dataset, write_elem
from numpy.typing import NDArray

from pyrovi._lazy import require
from pyrovi.data.containers import preview
from pyrovi.data.sources import SHUFFLED, ArraySource, CellSource, CSRSource, disk_source
from pyrovi.errors import DataError, MissingKeyError

_PIECE_BYTES = 2**26
"""Rows that are scattered at a time."""

_BIN_BYTES = 2**27
"""Rows that are shuffled in memory at a time."""

_CHUNK_VALUES = 2**17
"""Values in a chunk of the written store."""

_ARRAYS = ("data", "indices", "lengths", "places")


def open_store(path: str | os.PathLike[str]) -> anndata.AnnData:
    """Open an AnnData whose matrices stay on disk.

    Parameters
    ----------
    path
        An ``.h5ad`` file (``X`` stays on disk) or a ``.zarr`` folder (``X`` and the layers do).

    Returns
    -------
    AnnData
        To be set up and trained on like one in memory.

    Raises
    ------
    DataError
        If there is no such file, or its name has another ending.
    """
    where = Path(path)
    if _suffix(where, exists=True) == ".h5ad":
        return anndata.read_h5ad(where, backed="r")
    with _root(where) as group:
        names = set(group)
        layers = group["layers"] if "layers" in names else {}
        return anndata.AnnData(
            _matrix(group["X"]) if "X" in names else None,
            layers={name: _matrix(layers[name]) for name in layers},
            **{
                name: read_elem(group[name])
                for name in ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")
                if name in names
            },
        )


def shuffled_store(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    layer: str | None = None,
    seed: int | None = None,
) -> Path:
    """Write the observations of one or several files into one store, in a random order.

    Files are usually sorted, by donor or by batch. Training from disk reads neighbours together, so
    that its minibatches are the more like draws from all observations, the less neighbours are
    alike; in the store that is written here they are independent draws. The order is a uniformly
    random permutation, a pure function of the seed. About 0.5 GB of memory is used, and disk space
    for a second copy while it runs; nothing is left behind if it fails.

    Parameters
    ----------
    paths
        One or more ``.h5ad`` files or ``.zarr`` folders with the same variables in the same order;
        their matrices may be CSR or dense.
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
        If a file does not exist, variables differ, names of observations repeat, a matrix is stored
        by column, or ``out`` exists.
    MissingKeyError
        If a file lacks the layer.
    MissingExtraError
        If zarr is needed and not installed.
    """
    from pyrovi._rng import generator  # imports torch

    files = [Path(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not files:
        raise DataError("paths is empty; name at least one .h5ad file or .zarr folder")
    target = Path(out)
    _suffix(target, exists=False)
    with ExitStack() as stack:
        roots = [stack.enter_context(_root(file)) for file in files]
        sources = [source_of(root, file, layer) for root, file in zip(roots, files, strict=True)]
        var = common_var(roots, files)
        obs = joined_obs(roots, files)
        n_rows = [source.shape[0] for source in sources]
        if sum(n_rows) != len(obs) or any(source.shape[1] != len(var) for source in sources):
            raise DataError(
                f"The matrices have {n_rows} rows, expected {len(obs)} in all, and "
                f"{[source.shape[1] for source in sources]} columns, expected {len(var)} each: a "
                "file is damaged"
            )
        order = generator("shuffled store", seed=seed).permutation(len(obs))
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
        )
        dtype = np.result_type(*(source.source.dtype for source in sources))
        bins = _scatter(sources, np.argsort(order), dtype, Path(scratch))
        written = Path(scratch) / target.name
        with _root(written, mode="w") as root:
            root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            write_elem(root, "obs", obs.iloc[order])
            write_elem(root, "var", var)
            _gather(bins, root, (len(obs), len(var)), dtype)
        written.rename(target)
    return target


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


def _suffix(path: Path, *, exists: bool) -> str:
    if path.suffix not in (".h5ad", ".zarr"):
        raise DataError(f"{path} ends in {path.suffix!r}, expected '.h5ad' or '.zarr'")
    if path.exists() != exists:
        problem = "does not exist" if exists else "exists already; remove it or write elsewhere"
        raise DataError(f"{path} {problem}")
    if not exists and not path.resolve().parent.is_dir():
        raise DataError(f"The folder of {path} does not exist; create it first")
    return path.suffix


@contextmanager
def _root(path: Path, mode: str = "r") -> Iterator[Any]:
    """Root group of a store, open."""
    if _suffix(path, exists=mode == "r") == ".h5ad":
        with h5py.File(path, mode) as file:
            yield file
    else:
        zarr = require("zarr", "zarr")
        # Format 2 is what every anndata reads.
        options = {} if mode == "r" else {"zarr_format": 2}
        yield zarr.open_group(path, mode=mode, **options)


def _matrix(node: Any) -> Any:
    """Matrix on disk: a sparse dataset, or the array itself."""
    return sparse_dataset(node) if "shape" in node.attrs else node


def source_of(root: Any, path: Path, layer: str | None) -> ArraySource | CSRSource:
    """Matrix of a store."""
    layers = root.get("layers", {})
    group, key = (root, "X") if layer is None else (layers, layer)
    if key not in group:
        raise MissingKeyError(
            f"{path} has no {'X' if layer is None else f'layer {layer!r}'}; "
            f"it has the layers {list(layers)}"
        )
    matrix = _matrix(group[key])
    if isinstance(matrix, CSCDataset):
        raise DataError(
            f"The matrix of {path} is stored by column (CSC), which cannot be read by rows within "
            "bounded memory; write it as CSR first: `adata.X = adata.X.tocsr()`"
        )
    source = disk_source(matrix)
    if source is None:
        raise DataError(f"The matrix of {path} is a {type(matrix).__name__}, expected CSR or dense")
    return source


def common_var(roots: Sequence[Any], files: Sequence[Path]) -> pd.DataFrame:
    """``var`` of the first file, whose names all others must have."""
    first: pd.DataFrame = read_elem(roots[0]["var"])
    for root, file in zip(roots[1:], files[1:], strict=True):
        names = read_elem(root["var"]).index
        if names.equals(first.index):
            continue
        missing, extra = first.index.difference(names), names.difference(first.index)
        detail = (
            f"it lacks {preview(missing)} and has besides {preview(extra)}"
            if len(missing) or len(extra)
            else "they are in another order"
        )
        raise DataError(
            f"The variables of {file} are not those of {files[0]}: {detail}. Write all files with "
            "the same variables in the same order, e.g. `adata[:, var_names]`."
        )
    return first


def joined_obs(roots: Sequence[Any], files: Sequence[Path]) -> pd.DataFrame:
    """``obs`` of all files, one after the other, with the columns that all share."""
    tables = [anndata.AnnData(obs=read_elem(root["obs"])) for root in roots]
    obs: pd.DataFrame = (
        anndata.concat(tables, join="inner").obs if len(tables) > 1 else tables[0].obs
    )
    repeated = obs.index[obs.index.duplicated()]
    if len(repeated):
        raise DataError(
            f"{len(repeated)} names of observations appear more than once in "
            f"{preview(map(str, files))}, such as {repeated[0]!r}. Expected unique names: prefix "
            "them with the name of the file, e.g. `adata.obs_names = 'sample1_' + adata.obs_names`."
        )
    return obs
