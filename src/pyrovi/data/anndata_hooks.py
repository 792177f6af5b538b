"""What anndata has to be told of a type of matrices that it does not know.

anndata has no public way to add such a type; its dispatchers, used here, are those by which it
knows its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset
from anndata.io import sparse_dataset

from pyrovi.data import sources
from pyrovi.errors import DataError


@functools.cache
def teach_anndata(matrix: type) -> None:
    """Tell anndata how matrices of a type are subset, brought to memory and written.

    Parameters
    ----------
    matrix
        The type, with ``dtype``, ``select`` and ``to_memory``: a ``CSCDataset``, or a
        :class:`~pyrovi.data.CellSource`.

    Raises
    ------
    DataError
        If anndata has no such dispatchers (any more).
    """
    try:
        from anndata._core.file_backing import to_memory
        from anndata._core.index import _subset
        from anndata._core.views import as_view
        from anndata._io.specs.registry import _REGISTRY, IOSpec
        from anndata.compat import ZarrGroup

        _subset.register(matrix)(lambda stored, index: stored.select(*index))
        as_view.register(matrix)(lambda stored, *_, **__: stored)  # it cannot be written to
        to_memory.register(matrix)(lambda stored, *_, **__: stored.to_memory())
        by_column = issubclass(matrix, CSCDataset)
        spec = IOSpec("csc_matrix" if by_column else "csr_matrix", "0.1.0")
        for group in (h5py.Group, ZarrGroup):
            _REGISTRY.register_write(group, matrix, spec)(_write_whole if by_column else _write)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"anndata {version('anndata')} cannot be told how to handle matrices that stay on disk "
            f"({error}). Expected a version like 0.11 or 0.12: install one of these, or read the "
            "data into memory, anndata.read_h5ad(path)."
        ) from error


def _write(
    group: Any,
    key: str,
    matrix: Any,
    *,
    _writer: Any,
    dataset_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a matrix by pieces of its rows."""
    n_rows = matrix.shape[0]
    step = max(1, sources.READ_BYTES // matrix.row_bytes)
    starts = range(0, max(1, n_rows), step)
    pieces = (matrix.read(start, min(start + step, n_rows)) for start in starts)
    chunks = dataset_kwargs.get("chunks")
    if matrix.is_sparse and isinstance(chunks, tuple) and len(chunks) > 1:
        # those of a dense X, which anndata ignores for a sparse one in memory, too
        dataset_kwargs = {k: v for k, v in dataset_kwargs.items() if k != "chunks"}
    if not matrix.is_sparse:
        create = getattr(group, "create_array", group.create_dataset)  # zarr 3; zarr 2 and HDF5
        array = create(key, shape=matrix.shape, dtype=matrix.dtype, **dataset_kwargs)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for start, piece in zip(starts, pieces, strict=True):
            array[start : start + step] = piece
        return
    wide = n_rows * matrix.shape[1] > np.iinfo(np.int32).max  # so may be the number of values
    options = {**dataset_kwargs, **({"indptr_dtype": np.int64} if wide else {})}
    for start, piece in zip(starts, pieces, strict=True):
        rows = sp.csr_matrix(piece).astype(matrix.dtype, copy=False)
        if start == 0:
            _writer.write_elem(group, key, rows, dataset_kwargs=options)
        else:
            sparse_dataset(group[key]).append(rows)


def _write_whole(
    group: Any,
    key: str,
    matrix: Any,
    *,
    _writer: Any,
    dataset_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a matrix that cannot be read by pieces of its rows."""
    _writer.write_elem(group, key, matrix.to_memory(), dataset_kwargs=dataset_kwargs)
