"""Groups of cells that a differential analysis compares, by the data's own names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.errors import DataError, MissingKeyError, ModelError


@dataclass(frozen=True)
class Comparison:
    """Two groups of cells.

    Parameters
    ----------
    name1, name2
        What the groups are called.
    cells1, cells2
        Which cells they are, boolean of shape ``(n,)``.
    """

    name1: Any
    name2: Any
    cells1: NDArray[np.bool_]
    cells2: NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name, cells in ((self.name1, self.cells1), (self.name2, self.cells2)):
            if not cells.any():
                raise DataError(
                    f"Group {name!r} holds no cell, so there is nothing to compare "
                    f"{self.name1!r} and {self.name2!r} by; choose groups with cells."
                )
        if np.array_equal(self.cells1, self.cells2):
            raise DataError(
                f"Groups {self.name1!r} and {self.name2!r} are the same {int(self.cells1.sum())} "
                "cells; name two different groups."
            )


def comparisons(
    obs: pd.DataFrame,
    groupby: str | None,
    group1: Any,
    group2: Any,
    idx1: Any,
    idx2: Any,
) -> list[Comparison]:
    """Comparisons that the arguments of a differential analysis ask for.

    Parameters
    ----------
    obs
        Annotation of the cells.
    groupby
        Column of ``obs`` that holds the groups.
    group1
        A group, several, or ``None`` for each in turn.
    group2
        The group to compare with; ``None`` for all other cells.
    idx1, idx2
        Cells instead of named groups: positions, a boolean mask, or a query of ``obs``
        (``"n_genes > 200"``). ``idx2=None`` for all other cells.

    Raises
    ------
    MissingKeyError
        If a column or a group does not exist.
    DataError
        If a group is empty or is compared with itself.
    ModelError
        If both ways of naming groups are used, or neither.
    """
    if idx1 is not None:
        if groupby is not None or group1 is not None or group2 is not None:
            raise ModelError("Give either idx1 (and idx2) or groupby (and group1, group2).")
        first = _cells(obs, idx1, "idx1")
        second = ~first if idx2 is None else _cells(obs, idx2, "idx2")
        return [Comparison("idx1", "rest" if idx2 is None else "idx2", first, second)]
    if idx2 is not None:
        raise ModelError("idx2 was given without idx1; give idx1 too.")
    if groupby is None:
        raise ModelError(
            "Nothing says which cells to compare: give groupby (a column of obs) or idx1."
        )
    if groupby not in obs:
        raise MissingKeyError(
            f"groupby={groupby!r} is no column of obs; columns: {', '.join(map(str, obs.columns))}."
        )
    column = obs[groupby]
    several = isinstance(group1, (list, tuple, np.ndarray, pd.Index))
    names: Iterable[Any] = _present(column) if group1 is None else group1 if several else [group1]
    if group1 is None and group2 is not None:
        names = [name for name in names if name != group2]
    result = []
    for name in names:
        first = _members(column, name, groupby)
        second = ~first if group2 is None else _members(column, group2, groupby)
        result.append(Comparison(name, "Rest" if group2 is None else group2, first, second))
    if not result:
        raise DataError(f"obs[{groupby!r}] leaves no group to compare; name other groups.")
    return result


def _present(column: pd.Series) -> list[Any]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.remove_unused_categories().cat.categories.tolist()
    return sorted(column.dropna().unique().tolist())


def _members(column: pd.Series, name: Any, groupby: str) -> NDArray[np.bool_]:
    cells = np.asarray(column == name, dtype=bool)
    if not cells.any():
        raise MissingKeyError(
            f"There is no cell of group {name!r} in obs[{groupby!r}]; its groups are "
            f"{', '.join(map(repr, _present(column)))}."
        )
    return cells


def _cells(obs: pd.DataFrame, selection: Any, what: str) -> NDArray[np.bool_]:
    if isinstance(selection, str):
        selected: NDArray[np.bool_] = np.asarray(obs.eval(selection))
        if selected.dtype != np.bool_:
            raise DataError(
                f"{what}={selection!r} is not a condition on the columns of obs; write one such as "
                "\"cell_type == 'B'\"."
            )
        return selected
    cells = np.zeros(len(obs), dtype=bool)
    cells[resolve_indices(selection, len(obs), what)] = True
    return cells
