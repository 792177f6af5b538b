"""Files that commands read and write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._lazy import require
from pyrovi.errors import DataError, SaveLoadError

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".npy", ".h5ad")
"""Suffixes of the tables that :func:`write_table` can write."""


def read_data(path: Path, *, backed: bool = False) -> Any:
    """Read annotated data: ``.h5ad``, ``.h5mu`` or a ``.zarr`` folder.

    Parameters
    ----------
    path
        The file or folder.
    backed
        Leave the matrices on disk (not of ``.h5mu``).

    Raises
    ------
    DataError
        If there is no such file, it is none of these, or its matrices cannot be left on disk.
    """
    if not path.exists():
        raise DataError(f"There is no file {str(path)!r}.")
    if backed and path.suffix == ".h5mu":
        raise DataError(
            f"--backed leaves the matrices of .h5ad and .zarr on disk, not those of {str(path)!r}: "
            "leave it out, or write the modality to an .h5ad file."
        )
    try:
        return _reader(path, backed)(path)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read as {path.suffix} data: {error}") from error


def _reader(path: Path, backed: bool) -> Callable[[Path], Any]:
    import anndata

    if backed and path.suffix in (".h5ad", ".zarr"):
        from pyrovi.data import open_store

        return open_store
    if path.suffix == ".h5ad":
        return anndata.read_h5ad
    if path.suffix == ".zarr":
        return anndata.read_zarr
    if path.suffix == ".h5mu":
        return require("mudata", "mudata").read_h5mu
    raise DataError(
        f"{str(path)!r} has an unknown suffix; annotated data are .h5ad, .h5mu or .zarr."
    )


def check_table(path: Path) -> None:
    """Check the name of a table before the work begins.

    Raises
    ------
    SaveLoadError
        If the suffix is unknown, or the folder does not exist.
    """
    if path.suffix not in TABLES:
        raise SaveLoadError(
            f"{str(path)!r} has an unknown suffix; tables are {', '.join(TABLES)} (rows and "
            "columns are named in .csv and .h5ad)."
        )
    if not path.parent.is_dir():
        raise SaveLoadError(f"There is no folder {str(path.parent)!r} to write {path.name!r} to.")


def write_table(
    path: Path,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    labels: Sequence[str] | None = None,
) -> None:
    """Write a table: ``.csv``, ``.npy`` (numbers only) or ``.h5ad`` (as ``X``).

    Parameters
    ----------
    path
        The file.
    values, rows, columns
        Numbers, and the names of their rows and columns.
    labels
        A label of each row: the first column, ``label``, of ``.csv``; ``obs["label"]`` of
        ``.h5ad``.

    Raises
    ------
    SaveLoadError
        If it cannot be written.
    """
    import pandas as pd

    frame = pd.DataFrame(values, index=list(rows), columns=list(columns))
    obs = pd.DataFrame({} if labels is None else {"label": list(labels)}, index=frame.index)
    named = frame if labels is None else pd.concat([obs, frame], axis=1)
    writers: dict[str, Callable[[], Any]] = {
        ".csv": lambda: named.to_csv(path),
        ".npy": lambda: np.save(path, values),
        ".h5ad": lambda: _write_h5ad(frame, obs, path),
    }
    try:
        writers[path.suffix]()
    except OSError as error:
        raise SaveLoadError(f"Cannot write {str(path)!r}: {error}") from error


def _write_h5ad(frame: pd.DataFrame, obs: pd.DataFrame, path: Path) -> None:
    from anndata import AnnData

    AnnData(frame, obs=obs).write_h5ad(path)


def select_rows(adata: Any, positions: Path | None, names: Path | None) -> np.ndarray:
    """Positions of the observations that a file lists; all without a file.

    Parameters
    ----------
    adata
        The data.
    positions
        Text file with one position (from 0) a line.
    names
        Text file with one name of ``obs_names`` a line.

    Raises
    ------
    DataError
        If both are given, a line is no position, or a name is unknown.
    """
    if positions is not None and names is not None:
        raise DataError("Give either --indices or --obs-names, not both.")
    if names is not None:
        wanted = _lines(names)
        found = adata.obs_names.get_indexer(wanted)
        if (found < 0).any():
            missing = [name for name, at in zip(wanted, found, strict=True) if at < 0]
            raise DataError(
                f"{len(missing)} of the {len(wanted)} names in {str(names)!r} are not in "
                f"obs_names, e.g. {', '.join(map(repr, missing[:3]))}; obs_names look like "
                f"{adata.obs_names[0]!r}."
            )
        return found
    if positions is None:
        return np.arange(adata.n_obs)
    lines = _lines(positions)
    for number, line in enumerate(lines, start=1):
        if not line.isdecimal() or int(line) >= adata.n_obs:
            raise DataError(
                f"Entry {number} of {str(positions)!r} is {line!r}; expected a position from 0 to "
                f"{adata.n_obs - 1}."
            )
    return np.array([int(line) for line in lines], dtype=np.int64)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {str(path)!r}: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{str(path)!r} lists no observation.")
    return lines
