"""Categorical covariates: checking codes, one-hot columns, and extensible embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrovi.errors import DataError, ModelError


def one_hot(index: Tensor, n_cat: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One-hot columns of category codes.

    Parameters
    ----------
    index
        Integer codes from 0 to ``n_cat - 1``, of shape ``(..., 1)``.
    n_cat
        Number of categories.
    dtype
        Type of the result.

    Returns
    -------
    Tensor
        Of shape ``(..., n_cat)``.

    Raises
    ------
    DataError
        If a code is out of range (on a GPU torch reports it as a device assertion, since looking
        would stall every call).
    ModelError
        If ``index`` is not an integer tensor with one column.
    """
    _check_codes("index", index)
    zeros = torch.zeros((*index.shape[:-1], n_cat), dtype=dtype, device=index.device)
    try:
        return zeros.scatter(-1, index, 1.0)
    except RuntimeError as error:
        if "out of bounds" not in str(error):
            raise
        raise _out_of_range("index", index, n_cat) from error


def code_columns(name: str, index: Tensor, columns: Tensor) -> Tensor:
    """Pick, for each code, one column of a matrix: a linear layer applied to the one-hot codes.

    Parameters
    ----------
    name
        What the codes are, for the error message.
    index
        Integer codes of shape ``(..., 1)``.
    columns
        Weights of shape ``(n_out, n_cat)``.

    Returns
    -------
    Tensor
        Of shape ``(..., n_out)``.

    Raises
    ------
    DataError
        If a code is out of range (see :func:`one_hot` for GPUs).
    ModelError
        If ``index`` is not an integer tensor with one column.
    """
    _check_codes(name, index)
    try:
        return functional.embedding(index.squeeze(-1), columns.transpose(0, 1))
    except IndexError as error:
        raise _out_of_range(name, index, columns.shape[-1]) from error


def _check_codes(name: str, index: Tensor) -> None:
    if index.is_floating_point() or index.ndim == 0 or index.shape[-1] != 1:
        raise ModelError(
            f"Categorical covariate {name}: expected integer codes of shape (..., 1), found "
            f"{index.dtype} of shape {tuple(index.shape)}."
        )


def _out_of_range(name: str, index: Tensor, n_cat: int) -> DataError:
    low, high = int(index.min()), int(index.max())
    return DataError(
        f"Categorical covariate {name}: codes must be between 0 and {n_cat - 1}, found codes from "
        f"{low} to {high}. Register the data that hold the new categories with the model first."
    )


class Embedding(nn.Module):
    """A learned vector per category, to which categories can be added later.

    Unlike :class:`torch.nn.Embedding`, rows that were frozen by :meth:`extend` are a buffer: no
    weight decay or momentum of an optimiser can move them, and they survive saving and copying.

    Parameters
    ----------
    num_embeddings
        Number of categories, frozen ones included.
    embedding_dim
        Length of a vector.
    n_frozen
        How many of the first categories are frozen.

    Raises
    ------
    ModelError
        If ``n_frozen`` is not between 0 and ``num_embeddings``.
    """

    frozen: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, n_frozen: int = 0) -> None:
        super().__init__()
        if not 0 <= n_frozen <= num_embeddings:
            raise ModelError(
                f"Embedding: n_frozen must be between 0 and num_embeddings={num_embeddings}, "
                f"found {n_frozen}."
            )
        self.embedding_dim = embedding_dim
        self.register_buffer("frozen", torch.zeros(n_frozen, embedding_dim))
        self.trainable = nn.Parameter(torch.randn(num_embeddings - n_frozen, embedding_dim))

    @property
    def num_embeddings(self) -> int:
        """Number of categories, frozen ones included."""
        return len(self.frozen) + len(self.trainable)

    @property
    def weight(self) -> Tensor:
        """All vectors, of shape ``(num_embeddings, embedding_dim)``."""
        return torch.cat([self.frozen, self.trainable]) if len(self.frozen) else self.trainable

    def forward(self, index: Tensor) -> Tensor:
        """Look up the vectors of category codes.

        Parameters
        ----------
        index
            Integer codes of shape ``(..., 1)``.

        Returns
        -------
        Tensor
            Of shape ``(..., embedding_dim)``.

        Raises
        ------
        DataError
            If a code is out of range (see :func:`one_hot` for GPUs).
        ModelError
            If ``index`` is not an integer tensor with one column.
        """
        return code_columns("of the embedding", index, self.weight.transpose(0, 1))

    def extend(self, init: int | Sequence[int], freeze_prev: bool = True) -> Embedding:
        """Return a new embedding with more categories at the end.

        Parameters
        ----------
        init
            The number of new categories, whose vectors are drawn from a standard normal; or the
            codes of existing categories whose vectors the new ones start from.
        freeze_prev
            Whether the vectors that exist now stay fixed in training.

        Raises
        ------
        ModelError
            If ``init`` is a negative number, or names a code that does not exist.
        """
        old = self.weight.detach()
        if isinstance(init, int):
            if init < 0:
                raise ModelError(f"Embedding.extend: init must not be negative, found {init}.")
            new = torch.randn(init, self.embedding_dim, dtype=old.dtype, device=old.device)
        else:
            unknown = [code for code in init if not 0 <= code < len(old)]
            if unknown:
                raise ModelError(
                    f"Embedding.extend: init names the codes {unknown}, but codes must be between "
                    f"0 and {len(old) - 1}."
                )
            new = old[list(init)]
        n_frozen = len(old) if freeze_prev else len(self.frozen)
        vectors = torch.cat([old, new])
        extended = Embedding(len(vectors), self.embedding_dim, n_frozen)
        extended.frozen = vectors[:n_frozen].clone()
        extended.trainable = nn.Parameter(vectors[n_frozen:].clone())
        return extended.train(self.training)
