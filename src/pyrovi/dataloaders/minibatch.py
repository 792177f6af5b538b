"""A minibatch: named tensors of a set of observations, and the plate they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovi.errors import DataError, MissingKeyError

_REPLACEABLE = ("tensors", "indices", "n_obs")


class Minibatch(Mapping[str, Tensor]):
    """Named tensors of one set of observations.

    A mapping from registry keys to tensors; ``len()`` is the number of tensors and ``.n`` the
    number of observations.

    Parameters
    ----------
    tensors
        Registry key -> tensor. Tensors of observations have ``n`` rows; tensors of variables or of
        the whole data set have any shape.
    indices
        Positions of the observations in the registered AnnData, int64 of shape ``(n,)``.
    n_obs
        Size :math:`N` of the observation plate: the number of observations that the loader covers,
        over all ranks. A minibatch of ``n`` observations is scaled by ``n_obs / n``.

    Raises
    ------
    DataError
        If ``indices`` is not one-dimensional or ``n_obs`` is smaller than 1.
    """

    __slots__ = ("indices", "n_obs", "tensors")

    def __init__(self, tensors: Mapping[str, Tensor], indices: Tensor, n_obs: int) -> None:
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if indices.ndim != 1:
            raise DataError(
                f"indices of a minibatch must be one-dimensional, got shape {tuple(indices.shape)}"
            )
        if n_obs < 1:
            raise DataError(f"n_obs of a minibatch must be at least 1, got {n_obs}")
        self.tensors: dict[str, Tensor] = dict(tensors)
        self.indices = indices
        self.n_obs = int(n_obs)

    @property
    def n(self) -> int:
        """Number of observations in the minibatch."""
        return len(self.indices)

    def __getitem__(self, key: str) -> Tensor:
        try:
            return self.tensors[key]
        except KeyError:
            raise MissingKeyError(
                f"The minibatch has no tensor {key!r}; it has: {', '.join(self.tensors) or 'none'}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.tensors

    # Mapping would compare tensors elementwise and then ask for the truth of the result.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key}: {tuple(t.shape)}" for key, t in self.tensors.items())
        return f"Minibatch(n={self.n}, n_obs={self.n_obs}, {{{shapes}}})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.tensors, self.indices, self.n_obs))

    def to(self, device: str | torch.device, non_blocking: bool = False) -> Minibatch:
        """Move to a device; sparse CSR tensors become dense there.

        A sparse minibatch crosses the bus in its compressed form, which is the point of
        ``load_sparse_tensor=True``.

        Returns
        -------
        Minibatch
            A new minibatch; this one is left as it is.
        """
        return self.replace(
            tensors={
                key: _dense(tensor.to(device, non_blocking=non_blocking))
                for key, tensor in self.tensors.items()
            },
            indices=self.indices.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Minibatch:
        """Copy to page-locked memory (called by torch's DataLoader with ``pin_memory=True``).

        Sparse tensors are left pageable: torch cannot pin them.
        """
        return self.replace(
            tensors={
                key: tensor if _is_sparse(tensor) else tensor.pin_memory()
                for key, tensor in self.tensors.items()
            },
            indices=self.indices.pin_memory(),
        )

    def replace(self, **changes: Any) -> Minibatch:
        """Copy with some of ``tensors``, ``indices`` and ``n_obs`` replaced.

        Raises
        ------
        TypeError
            If another name is given.
        """
        unknown = set(changes) - set(_REPLACEABLE)
        if unknown:
            raise TypeError(
                f"Minibatch.replace takes {', '.join(_REPLACEABLE)}, got {sorted(unknown)}"
            )
        current: dict[str, Any] = {name: getattr(self, name) for name in _REPLACEABLE}
        return Minibatch(**{**current, **changes})


def _is_sparse(tensor: Tensor) -> bool:
    return tensor.layout != torch.strided


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if _is_sparse(tensor) else tensor
