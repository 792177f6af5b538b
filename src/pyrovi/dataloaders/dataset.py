"""The fields of a registered AnnData as a torch Dataset: one slice per minibatch."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pyrovi.data.sources import is_fork_safe
from pyrovi.dataloaders.arguments import check_manager
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.dataloaders.rows import BackedRows, Rows, as_rows
from pyrovi.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from pyrovi.data import AnnDataManager

BUFFER_BYTES = 2**27
"""Size of the observations on disk that are held in memory at a time; as many are being read."""

READ_AT_ONCE = 2**23
"""Size of the observations in memory that are made dense in one go, if a minibatch is smaller."""

_BLOCK_ROWS = 128
_LEAST_BLOCKS = 16


class AnnTorchDataset(Dataset[dict[str, Any]]):
    """Rows of the registered fields of an AnnData or MuData.

    Indexing takes a whole minibatch at once. Fields of observations are sliced in the order asked;
    fields of variables or of the whole data set are returned whole (do not modify them in place).

    Parameters
    ----------
    manager
        Manager with a registered AnnData or MuData. The dataset keeps the containers, not the
        manager, so that worker processes receive only what they read.
    getitem_tensors
        Fields to return: names, or a mapping of names to dtypes. ``None`` returns every field of
        observations and variables with the dtype of its registry entry (codes int64, the rest
        float32).
    load_sparse_tensor
        Whether fields stored as sparse matrices become torch sparse CSR tensors, which
        :meth:`pyrovi.dataloaders.Minibatch.to` makes dense on the device.

    Attributes
    ----------
    keys
        Names of the returned fields, in the order of the items.

    Raises
    ------
    MissingKeyError
        If a field is not registered.
    DataError
        If there is no manager, or a field has not one row per observation or is not numeric.

    Notes
    -----
    Items are dicts of ndarrays of shape ``(n, n_columns)`` (``(n, 1)`` for codes), or sparse CSR
    tensors.
    """

    def __init__(
        self,
        manager: AnnDataManager,
        getitem_tensors: Sequence[str] | Mapping[str, DTypeLike] | None = None,
        load_sparse_tensor: bool = False,
    ) -> None:
        check_manager(manager)
        specs = {
            name: entry["tensor"]
            for name, entry in manager.registry["field_registries"].items()
            if entry["tensor"] is not None  # an empty field: no column was given for it
        }
        if isinstance(getitem_tensors, str):
            raise DataError(
                f"getitem_tensors must be a list or a mapping of names, got the string "
                f"{getitem_tensors!r}; write [{getitem_tensors!r}]"
            )
        if getitem_tensors is None:
            # Fields of uns may be text; they are returned only when asked for.
            names = [name for name, spec in specs.items() if spec["axis"] != "uns"]
        else:
            names = list(getitem_tensors)
        dtypes = dict(getitem_tensors) if isinstance(getitem_tensors, Mapping) else {}
        self.load_sparse_tensor = load_sparse_tensor
        if load_sparse_tensor:
            _silence_sparse_warnings()  # here too: tensors of workers are rebuilt in this process
        self.keys = names
        self._n_obs = int(manager.n_obs)
        self._rows: dict[str, Rows] = {}
        self._whole: dict[str, NDArray[Any]] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            if name not in specs:
                raise MissingKeyError(
                    f"The field {name!r} is not registered; registered: {', '.join(specs)}. Add it "
                    "in the setup."
                )
            spec = specs[name]
            data = manager.get_from_registry(name)
            self._dtypes[name] = np.dtype(dtypes.get(name) or tensor_dtype(spec))
            self._shapes[name] = tuple(spec["shape"])
            if self._dtypes[name].kind not in "biuf":
                raise DataError(
                    f"Field {name!r} is of dtype {spec['dtype']}, expected numbers; leave it out "
                    "of getitem_tensors"
                )
            if spec["axis"] == "obs":
                self._rows[name] = self._checked_rows(name, data)
            else:
                dense = data.toarray() if sp.issparse(data) else data
                self._whole[name] = np.array(dense, dtype=self._dtypes[name])

    def _checked_rows(self, name: str, data: Any) -> Rows:
        rows = as_rows(name, data)
        if rows.shape[0] != self._n_obs:
            raise DataError(
                f"Field {name!r} has {rows.shape[0]} rows, expected one for each of the "
                f"{self._n_obs} registered observations; was the AnnData changed after setup?"
            )
        return rows

    @property
    def data(self) -> dict[str, Any]:
        """The containers that are sliced, and the fields that are returned whole."""
        return {
            name: self._rows[name].source if name in self._rows else self._whole[name]
            for name in self.keys
        }

    @property
    def obs_keys(self) -> list[str]:
        """Names of the fields with one row per observation."""
        return list(self._rows)

    @property
    def bytes_per_row(self) -> int:
        """Size of one observation, all fields dense."""
        sizes = (math.prod(self._shapes[k]) * self._dtypes[k].itemsize for k in self._rows)
        return sum(sizes)

    @property
    def on_disk(self) -> bool:
        """Whether a field is read from disk."""
        return bool(self._stored)

    @property
    def fork_safe(self) -> bool:
        """Whether the fields can be read in a forked process."""
        return all(is_fork_safe(rows.stored) for rows in self._stored.values())

    @property
    def _stored(self) -> dict[str, BackedRows]:
        return {name: rows for name, rows in self._rows.items() if isinstance(rows, BackedRows)}

    def buffer_sizes(self) -> tuple[int, int]:
        """Observations in a block that is read in one go, and blocks in a buffer.

        The fields on disk of a buffer take :data:`BUFFER_BYTES` as they are stored. Blocks are
        small, for good mixing, but not smaller than what storage hands out at once; if all storage
        is in a random order they are large, for speed. A buffer always holds several.
        """
        stored = [rows.stored for rows in self._stored.values()]
        n_rows = max(1, BUFFER_BYTES // max(1, sum(source.row_bytes for source in stored)))
        wanted = max([_BLOCK_ROWS, *(source.chunk_rows for source in stored)])
        largest = max(1, n_rows // _LEAST_BLOCKS)
        block = largest if all(source.shuffled for source in stored) else min(wanted, largest)
        return block, n_rows // block

    def loaded(self, positions: NDArray[np.int64]) -> AnnTorchDataset:
        """The same fields, with some observations of those on disk in memory.

        Parameters
        ----------
        positions
            The observations, in any order; no others can be taken.
        """
        own = copy.copy(self)
        wanted = np.sort(positions)  # np.unique hashes, which takes as long as reading
        wanted = wanted[np.diff(wanted, prepend=-1) > 0]
        own._rows = {
            name: rows.loaded(wanted) if isinstance(rows, BackedRows) else rows
            for name, rows in self._rows.items()
        }
        return own

    def __len__(self) -> int:
        return self._n_obs

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any]) -> dict[str, Any]:
        rows = self._positions(index)
        return {
            name: self._take(name, rows) if name in self._rows else self._whole[name]
            for name in self.keys
        }

    def _positions(self, index: Any) -> NDArray[np.int64]:
        if isinstance(index, slice):
            return np.arange(self._n_obs, dtype=np.int64)[index]
        if isinstance(index, np.ndarray) and index.dtype == np.int64 and index.ndim == 1:
            return index
        array = np.atleast_1d(np.asarray(index))
        if array.dtype == np.bool_:
            return resolve_indices(array, self._n_obs, "index")
        return array.astype(np.int64)

    def _take(self, name: str, index: NDArray[np.int64]) -> Any:
        rows, dtype = self._rows[name], self._dtypes[name]
        if rows.is_sparse and self.load_sparse_tensor:
            return _sparse_csr_tensor(rows.take(index).astype(dtype, copy=False))
        return rows.dense(index, dtype).reshape(-1, *self._shapes[name])


class MinibatchDataset(Dataset[Minibatch]):
    """Minibatches of an :class:`AnnTorchDataset`, indexed by arrays of positions.

    Parameters
    ----------
    rows
        The fields.
    n_obs
        Size of the observation plate that the minibatches carry.
    as_numpy
        Whether items are plain dicts of ndarrays instead.
    """

    def __init__(self, rows: AnnTorchDataset, n_obs: int, as_numpy: bool = False) -> None:
        self.rows = rows
        self.n_obs = n_obs
        self.as_numpy = as_numpy

    def __len__(self) -> int:
        return len(self.rows)

    def loaded(self, indices: Sequence[NDArray[np.int64]]) -> MinibatchDataset:
        """Dataset of some minibatches, whose observations are read from disk now.

        Parameters
        ----------
        indices
            Positions of each minibatch.
        """
        return MinibatchDataset(
            self.rows.loaded(np.concatenate(indices)), self.n_obs, self.as_numpy
        )

    def __getitem__(self, index: NDArray[np.int64]) -> Any:
        items = self.rows[index]
        return items if self.as_numpy else self._minibatch(_tensors(items), index)

    def in_turn(self, indices: Iterable[NDArray[np.int64]]) -> Iterator[Any]:
        """Minibatches, several of which are read in one go: they are slices of what was read.

        Parameters
        ----------
        indices
            Positions of each minibatch.
        """
        if self.rows.load_sparse_tensor:  # these cannot be sliced
            yield from map(self.__getitem__, indices)
            return
        for group in grouped(indices, max(1, READ_AT_ONCE // max(1, self.rows.bytes_per_row))):
            items = self.rows[np.concatenate(group)]
            if not self.as_numpy:
                items = _tensors(items)
            sliced, end = set(self.rows.obs_keys), 0
            for index in group:
                start, end = end, end + len(index)
                own = {k: v[start:end] if k in sliced else v for k, v in items.items()}
                yield own if self.as_numpy else self._minibatch(own, index)

    def _minibatch(self, tensors: dict[str, Tensor], index: NDArray[np.int64]) -> Minibatch:
        return Minibatch(tensors, torch.as_tensor(index), self.n_obs)


def _tensors(items: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in items.items()
    }


def grouped(batches: Iterable[NDArray[np.int64]], limit: int) -> Iterator[list[NDArray[np.int64]]]:
    """Runs of consecutive minibatches of at most ``limit`` observations, of at least one each."""
    group: list[NDArray[np.int64]] = []
    size = 0
    for batch in batches:
        if group and size + len(batch) > limit:
            yield group
            group, size = [], 0
        group.append(batch)
        size += len(batch)
    if group:
        yield group


def tensor_dtype(spec: Mapping[str, Any]) -> str:
    """Type of a field's tensor; floating ones have torch's default type if that is double."""
    double = torch.get_default_dtype() == torch.float64
    return "float64" if double and spec["dtype"] == "float32" else str(spec["dtype"])


@functools.cache
def _silence_sparse_warnings() -> None:
    # torch says once per process that CSR tensors are in beta and that it does not check those it
    # rebuilds from workers. Users can do nothing about either.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), [], (1, 1))


def _sparse_csr_tensor(matrix: Any) -> Tensor:
    _silence_sparse_warnings()
    if not matrix.has_canonical_format:
        matrix.sum_duplicates()  # torch requires sorted unique columns; the matrix is our own copy
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr),
        torch.from_numpy(matrix.indices),
        torch.from_numpy(matrix.data),
        size=matrix.shape,
        check_invariants=False,  # SciPy's hold
    )
