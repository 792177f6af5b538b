"""Short constructors of fields: which piece of the data each argument of a story is.

``pv.from_pyro(story, data, fields={"X": pv.fields.layer("counts"), ...})`` gives the argument ``X``
of the story the layer ``counts``. The classes that do the work are in :mod:`pyrovi.data.fields`.
"""

from __future__ import annotations

from pyrovi.data.specs import FieldSpec, Kind

__all__ = ["FieldSpec", "array", "column", "layer", "obs", "obsm", "total", "varm"]


def layer(
    key: str | None = None, *, counts: bool | None = None, mod: str | None = None
) -> FieldSpec:
    """A layer of an AnnData, shape ``(n, n_vars)``.

    Parameters
    ----------
    key
        Key of ``adata.layers``; ``None`` for ``adata.X``.
    counts
        Whether the values are counts, and checked to be; ``None`` finds out: they are if all are
        non-negative integers.
    mod
        Modality of a MuData.
    """
    return FieldSpec("layer", key, _counts_kind(counts), mod)


def total(
    key: str | None = None, *, counts: bool | None = None, mod: str | None = None
) -> FieldSpec:
    """Row sums of a layer (library sizes), shape ``(n, 1)``.

    Simulated data carry the sums that they were simulated with, which are read in their place (see
    :class:`~pyrovi.data.fields.TotalField`).

    Parameters
    ----------
    key, counts, mod
        As in :func:`layer`.
    """
    return FieldSpec("total", key, _counts_kind(counts), mod)


def obs(key: str, *, kind: Kind | None = None, mod: str | None = None) -> FieldSpec:
    """A column of ``adata.obs``, shape ``(n, 1)``: numbers, or the codes of categories.

    Parameters
    ----------
    key
        Name of the column.
    kind
        ``"numbers"`` (floating), ``"integers"`` or ``"categories"`` (integer codes); ``None``: text
        and categorical columns are categories, all others numbers.
    mod
        Modality of a MuData; ``None`` for the ``obs`` of the MuData itself.
    """
    return FieldSpec("obs", key, kind, mod)


def obsm(key: str, *, counts: bool | None = None, mod: str | None = None) -> FieldSpec:
    """An array of ``adata.obsm``, shape ``(n, columns)``.

    Parameters
    ----------
    key
        Key of ``adata.obsm``.
    counts, mod
        As in :func:`layer`.
    """
    return FieldSpec("obsm", key, _counts_kind(counts), mod)


def varm(key: str, *, counts: bool | None = None, mod: str | None = None) -> FieldSpec:
    """An array of ``adata.varm``, shape ``(n_vars, columns)``: the same in every minibatch.

    Parameters
    ----------
    key
        Key of ``adata.varm``.
    counts, mod
        As in :func:`layer`.
    """
    return FieldSpec("varm", key, _counts_kind(counts), mod)


def column(key: str, *, kind: Kind | None = None) -> FieldSpec:
    """A column of a DataFrame (or of ``adata.obs``) as a vector, shape ``(n,)``.

    Parameters
    ----------
    key
        Name of the column.
    kind
        ``"numbers"`` (floating), ``"integers"`` or ``"categories"`` (integer codes, with
        ``n_<argument>`` categories); ``None``: text and categorical columns are categories, columns
        of integers are integers, all others numbers.
    """
    return FieldSpec("column", key, kind)


def array(key: str, *, kind: Kind | None = None) -> FieldSpec:
    """An array of a dict of arrays, in its own shape ``(n, ...)``; the first axis is observations.

    Parameters
    ----------
    key
        Name of the array.
    kind
        As in :func:`column`.
    """
    return FieldSpec("array", key, kind)


def _counts_kind(counts: bool | None) -> Kind | None:
    return None if counts is None else ("counts" if counts else "numbers")
