"""Data: fields, the manager that registers them, and simulated data."""

from __future__ import annotations

from pyrovi.data import fields
from pyrovi.data.collections import open_annbatch
from pyrovi.data.manager import AnnDataManager
from pyrovi.data.soma import open_soma
from pyrovi.data.sources import CellSource
from pyrovi.data.store import open_store, shuffled_store
from pyrovi.data.synthetic import synthetic_iid
from pyrovi.data.validation import AnnDataManagerValidationCheck

__all__ = [
    "AnnDataManager",
    "AnnDataManagerValidationCheck",
    "CellSource",
    "fields",
    "open_annbatch",
    "open_soma",
    "open_store",
    "shuffled_store",
    "synthetic_iid",
]
