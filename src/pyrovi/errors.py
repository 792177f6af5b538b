"""Typed errors of pyrovi.

Every error derives from :class:`PyroviError` and from the closest built-in exception, so both
``except pyrovi.errors.DataError`` and ``except ValueError`` catch it. Messages name the thing, the
value found, what was expected and the fix.
"""

from __future__ import annotations


class PyroviError(Exception):
    """Base class of every error raised on purpose by pyrovi."""


class DataError(PyroviError, ValueError):
    """The data are not what a field or model can work with (counts, shapes, names, ...)."""


class RegistryError(PyroviError, ValueError):
    """Data do not match the registry of a model, or a registry is malformed."""


class UnseenCategoryError(RegistryError):
    """A categorical column holds a category that the registry does not know."""


class MissingKeyError(PyroviError, KeyError):
    """A key (of ``obs``, ``layers``, the registry, ...) does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class NotSetUpError(PyroviError, ValueError):
    """An AnnData is used with a model class it was not set up for."""


class ModelError(PyroviError, ValueError):
    """A model/guide pair breaks a contract (signature, plates, sites)."""


class SaveLoadError(PyroviError, ValueError):
    """A saved model cannot be written, or is truncated, foreign, newer or unsafe."""


class TrainingError(PyroviError, RuntimeError):
    """Training cannot start or go on."""


class InferenceError(TrainingError):
    """Inference has failed on these data: a loss is not finite, no mode or no start is found."""


class NoStartError(ModelError, InferenceError):
    """No point of finite density is found to begin at."""


class MissingExtraError(PyroviError, ImportError):
    """An optional dependency is needed; the message names the extra that installs it."""
