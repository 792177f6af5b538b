"""Data: fields, the manager that registers them, and simulated data."""

from __future__ import annotations

from pyrovi.data import fields
from pyrovi.data.manager import AnnDataManager
from pyrovi.data.synthetic import synthetic_iid
from pyrovi.data.validation import AnnDataManagerValidationCheck

__all__ = ["AnnDataManager", "AnnDataManagerValidationCheck", "fields", "synthetic_iid"]
