"""Data: fields, the manager that registers them, and simulated data."""

from __future__ import annotations

from pyrovi.data import fields
from pyrovi.data.collections import open_annbatch
from pyrovi.data.manager import AnnDataManager
from pyrovi.data.opening import open_store
from pyrovi.data.soma import open_soma
from pyrovi.data.sources import CellSource
from pyrovi.data.store import shuffled_store
from pyrovi.data.stored_matrix import StoredMatrix
from pyrovi.data.synthetic import synthetic_iid
from pyrovi.data.validation import AnnDataManagerValidationCheck

__all__ = [
    "AnnDataManager",
    "AnnDataManagerValidationCheck",
    "CellSource",
    "StoredMatrix",
    "fields",
    "open_annbatch",
    "open_soma",
    "open_store",
    "shuffled_store",
    "synthetic_iid",
]
