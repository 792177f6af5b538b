"""Fields of minified data: the moments that they have in the place of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anndata import AnnData

from pyrovi.data.fields import LayerField, ObsmField, TotalField
from pyrovi.errors import DataError
from pyrovi.module.minified import moment_keys

if TYPE_CHECKING:
    from pyrovi.data.fields.base import AnnDataField

MINIFIED_KEY = "_pyrovi_minified"
"""Entry of ``uns`` that names the sites whose moments minified data have."""


def minified_fields(adata: Any, fields: list[AnnDataField]) -> list[AnnDataField]:
    """Further fields of minified data; those with counts are told that there are none.

    Parameters
    ----------
    adata
        Any data.
    fields
        Fields that a setup method is to register.

    Returns
    -------
    list
        Fields of the stored moments; empty for data with counts.
    """
    sites = adata.uns.get(MINIFIED_KEY) if isinstance(adata, AnnData) else None
    if sites is None:
        return []
    for field in fields:
        if isinstance(field, TotalField):
            raise DataError(
                f"The field {field.registry_key!r} sums counts, and these data are minified. Use "
                "the full data."
            )
        if isinstance(field, LayerField):
            field.allow_empty_obs = True
    keys = [key for site in sites for key in moment_keys(site) if key in adata.obsm]
    return [ObsmField(key, key) for key in keys]
