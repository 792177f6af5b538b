"""Division of observations into training, validation and test sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovi._rng import generator
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import DataError

DEFAULT_TRAIN_SIZE = 0.9
_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Disjoint positions of the training, validation and test observations (int64)."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_sizes(
    n_obs: int, train_size: float | None = None, validation_size: float | None = None
) -> tuple[int, int]:
    """Numbers of training and validation observations; the rest is for testing.

    Parameters
    ----------
    n_obs
        Number of observations.
    train_size
        Fraction in (0, 1] of the observations to train on, rounded up; ``None`` takes 0.9.
    validation_size
        Fraction in [0, 1) to validate on, rounded down; ``None`` takes all that are not trained on.

    Raises
    ------
    DataError
        If a fraction is out of range, they sum to more than 1, or no observation is left to train
        on.
    """
    train = DEFAULT_TRAIN_SIZE if train_size is None else float(train_size)
    if not 0 < train <= 1:
        raise DataError(f"train_size must be in (0, 1], got {train_size}")
    # Rounding first: 0.07 * 100 is a little more than 7 in floating point.
    n_train = min(n_obs, math.ceil(round(n_obs * train, 6)))
    if n_train == 0:
        raise DataError(
            f"No training observation is left of {n_obs} with train_size={train}; give more data"
        )
    if validation_size is None:
        return n_train, n_obs - n_train
    validation = float(validation_size)
    if not 0 <= validation < 1:
        raise DataError(f"validation_size must be in [0, 1), got {validation_size}")
    if train + validation > 1 + 1e-9:
        raise DataError(
            f"train_size={train} and validation_size={validation} sum to {train + validation:.6g}, "
            "expected at most 1"
        )
    return n_train, min(n_obs - n_train, math.floor(round(n_obs * validation, 6)))


def split_observations(
    positions: int | NDArray[np.int64],
    train_size: float | None = None,
    validation_size: float | None = None,
    shuffle: bool = True,
    *purpose: str,
    seed: int | None = None,
) -> Split:
    """Divide observations at random, or in their order.

    Parameters
    ----------
    positions
        Number of observations, or their positions.
    train_size, validation_size
        See :func:`split_sizes`.
    shuffle
        Whether to draw the sets at random; otherwise the first observations are for training, the
        next for validation, the last for testing.
    purpose
        Words that give this split a random stream of its own.
    seed
        Root seed; ``None`` takes ``pyrovi.settings.seed``.

    Returns
    -------
    Split
        Sets in increasing order; a pure function of the arguments and the seed.

    Raises
    ------
    DataError
        See :func:`split_sizes`.
    """
    order = np.asarray(positions, dtype=np.int64)
    if order.ndim == 0:
        order = np.arange(int(order), dtype=np.int64)
    n_train, n_validation = split_sizes(len(order), train_size, validation_size)
    if shuffle:
        order = generator("split", *purpose, seed=seed).permutation(order)
    train, validation, test = np.split(order, [n_train, n_train + n_validation])
    return Split(np.sort(train), np.sort(validation), np.sort(test))


def external_split(external_indexing: Sequence[Any], n_obs: int) -> Split:
    """Sets chosen by the caller.

    Parameters
    ----------
    external_indexing
        Up to three selections (positions or boolean masks): training, validation, test. ``None`` or
        an empty selection stands for no observations, except for training.
    n_obs
        Number of observations.

    Returns
    -------
    Split
        Copies of the selections in the order given. They need not cover all observations.

    Raises
    ------
    DataError
        If a position is out of range, appears twice in a set or in two sets, or there is nothing to
        train on.
    """
    if isinstance(external_indexing, np.ndarray | str) or not 1 <= len(external_indexing) <= 3:
        raise DataError(
            "external_indexing must be a list [train, validation, test] of one to three selections "
            f"of observations, got {type(external_indexing).__name__}"
        )
    sets = [np.empty(0, dtype=np.int64)] * 3
    owner = np.full(n_obs, -1)
    for number, selection in enumerate(external_indexing):
        what = f"external_indexing[{number}] ({_NAMES[number]})"
        if number > 0 and _is_nothing(selection, n_obs):
            continue
        if selection is None:
            raise DataError(f"{what} is None; give at least one training observation")
        positions = resolve_indices(selection, n_obs, what)
        values, counts = np.unique(positions, return_counts=True)
        if (counts > 1).any():
            raise DataError(
                f"{what} holds position {values[counts > 1][0]} {counts.max()} times; positions in "
                "a set must be unique"
            )
        taken = values[owner[values] >= 0]
        if len(taken):
            raise DataError(
                f"{what} shares {len(taken)} observations with the "
                f"{_NAMES[owner[taken[0]]]} set, such as position {taken[0]}; sets must be disjoint"
            )
        owner[values] = number
        sets[number] = positions
    return Split(*sets)


def _is_nothing(selection: Any, n_obs: int) -> bool:
    if selection is None:
        return True
    array = np.asarray(selection)
    if array.dtype == np.bool_ and array.shape == (n_obs,):
        return not array.any()
    return array.size == 0
