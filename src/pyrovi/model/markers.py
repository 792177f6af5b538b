"""Marker tables: which genes mark which cell types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from pyrovi.data.containers import preview
from pyrovi.errors import DataError

Markers: TypeAlias = pd.DataFrame | Mapping[str, Sequence[str]] | str
"""A table of genes x cell types, the CSV file of one, or the marker genes of each type."""


def marker_table(markers: Markers) -> pd.DataFrame:
    """A marker table with names as strings and entries 0 and 1, or an error.

    Parameters
    ----------
    markers
        Genes x cell types, with 1 where a gene marks a type, else 0; or a CSV file of such a table
        with the genes in its first column; or type -> list of its marker genes.

    Returns
    -------
    pandas.DataFrame
        A copy, in the order given.

    Raises
    ------
    DataError
        If it is nothing of these, is empty, names a gene or type twice, has other entries than 0
        and 1 (or false and true), a gene that marks nothing, or types with the same markers (or
        more than one without any).
    """
    markers = _as_frame(markers)
    made = markers.set_axis(markers.index.astype(str), axis=0)
    made = made.set_axis(markers.columns.astype(str), axis=1)
    for what, names in (("gene", made.index), ("cell type", made.columns)):
        if repeated := list(names[names.duplicated()].unique()):
            raise DataError(
                f"The marker table names {what}s more than once: {preview(repeated)}. Expected "
                "each once: merge or drop the others."
            )
    if len(made) == 0 or made.shape[1] < 2:
        raise DataError(
            f"The marker table has {len(made)} genes and {made.shape[1]} cell types. Expected at "
            "least one gene and two types (one may be without markers: all other cells)."
        )
    _check_entries(made)
    made = made.astype(np.int64)
    if idle := list(made.index[made.sum(axis=1) == 0]):
        raise DataError(
            f"Genes of the marker table mark no cell type: {preview(idle)}. They would tell "
            "nothing: drop their rows, `markers[markers.any(axis=1)]`."
        )
    alike = made.columns[made.T.duplicated(keep=False).to_numpy()]
    if len(alike):
        raise DataError(
            f"Cell types have the same markers as another: {preview(alike)}. No model could "
            "tell them apart: merge them, or give them markers of their own. (One type may have "
            "none: cells of no other type.)"
        )
    return made


def _as_frame(markers: Markers) -> pd.DataFrame:
    if isinstance(markers, pd.DataFrame):
        return markers
    if isinstance(markers, str):
        if not Path(markers).is_file():
            raise DataError(
                f"There is no file {str(markers)!r} of markers. Expected a CSV file: genes in the "
                "first column, then a column of zeros and ones for each cell type."
            )
        return pd.read_csv(markers, index_col=0)
    if isinstance(markers, Mapping) and not any(isinstance(v, str) for v in markers.values()):
        genes = list(dict.fromkeys(gene for listed in markers.values() for gene in listed))
        return pd.DataFrame(
            {kind: [int(gene in listed) for gene in genes] for kind, listed in markers.items()},
            index=genes,
        )
    raise DataError(
        f"The markers are {markers!r}. Expected a pandas.DataFrame of genes (index) x cell types "
        "(columns) with 1 where a gene marks a type, else 0; or a dictionary of the marker genes "
        "of each type, {type: [gene, ...]}; or a CSV file of such a table."
    )


def _check_entries(markers: pd.DataFrame) -> None:
    wrong = ~markers.isin([0, 1]).to_numpy()
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            f"The marker table holds {markers.iloc[row, column]!s} for gene "
            f"{markers.index[row]!r} and cell type {markers.columns[column]!r}. Expected 1 where "
            "a gene marks a type, and 0 elsewhere."
        )
