"""Protein counts, with a mask of the proteins that were not measured in a batch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

from pyrovi.data.containers import AnyMatrix, nonzero_by_group
from pyrovi.data.fields.arraylike import ObsmField
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData
from pyrovi.data.fields.layer import LayerField
from pyrovi.errors import DataError


class BatchMask:
    """Which proteins are measured in which batch: those that are not all zero in it.

    Parameters
    ----------
    batch_field
        Categorical field of ``obs`` that gives the batches.
    parent
        Data the batch field reads; ``None`` for the data of the protein field. In a MuData the two
        may live in different modalities.
    """

    def __init__(self, batch_field: AnnDataField, parent: AnyData = None) -> None:
        self.batch_field = batch_field
        self.parent = parent

    def compute(
        self,
        adata: AnyData,
        matrix: AnyMatrix,
        source: Mapping[str, Any] | None = None,
        extend_categories: bool = False,
    ) -> JSON:
        """State of the mask: ``protein_batch_mask`` (code as a string -> one boolean per protein).

        On a transfer a protein counts as measured if it was in the source or is in the target.
        ``batch_mapping`` keeps the categories, so that a transfer gives batches the same codes.
        """
        data = adata if self.parent is None else self.parent
        if source is None:
            with warnings.catch_warnings():  # the batch field itself warns of rare batches
                warnings.simplefilter("ignore", UserWarning)
                state = self.batch_field.register_field(data)
            known: Mapping[str, Any] = {}
        else:
            known = source["protein_batch_mask"]
            state = self.batch_field.transfer_field(
                {"categorical_mapping": source["batch_mapping"]},
                data,
                extend_categories=extend_categories,
            )
        mapping = state["categorical_mapping"]
        codes = self.batch_field.get_field_data(data, state).ravel()
        measured = nonzero_by_group(matrix, codes, len(mapping))
        mask = {
            str(code): [bool(new or old) for new, old in zip(row, known[str(code)], strict=True)]
            if str(code) in known
            else [bool(new) for new in row]
            for code, row in enumerate(measured)
        }
        return {"protein_batch_mask": mask, "batch_mapping": list(mapping)}


def _make_mask(
    registry_key: str, use_batch_mask: bool, batch_field: AnnDataField | None
) -> BatchMask | None:
    if not use_batch_mask:
        return None
    if batch_field is None:
        raise DataError(
            f"The field {registry_key!r} shall mask proteins by batch, but got no batch field "
            "(None). Expected the field of the batches: pass `batch_field=`, or switch the mask "
            "off with `use_batch_mask=False`."
        )
    return BatchMask(batch_field)


class _MaskedByBatch(AnnDataField):
    """Adds the batch mask to the state of the field it is mixed into."""

    mask: BatchMask | None

    def bind(self, parent: AnyData) -> AnnDataField:
        if self.mask is None:
            return self
        bound = copy.copy(self)
        bound.mask = BatchMask(self.mask.batch_field, parent)
        return bound

    def register_field(self, adata: AnyData) -> JSON:
        state = super().register_field(adata)  # type: ignore[safe-super]
        if self.mask is not None:
            state |= self.mask.compute(adata, self.get_field_data(adata, state))
        return state

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: AnyData,
        *,
        extend_categories: bool = False,
        allow_missing_labels: bool = False,
    ) -> JSON:
        state = super().transfer_field(  # type: ignore[safe-super]
            state_registry, adata_target, extend_categories=extend_categories
        )
        if self.mask is not None:
            matrix = self.get_field_data(adata_target, state)
            state |= self.mask.compute(adata_target, matrix, state_registry, extend_categories)
        return state


class ProteinObsmField(_MaskedByBatch, ObsmField):
    """Protein counts in ``adata.obsm``.

    Parameters
    ----------
    registry_key
        Name of the tensor.
    obsm_key
        Key of ``adata.obsm``.
    use_batch_mask
        Whether to find the proteins that were not measured in a batch (all zero in it).
    batch_field
        Field that gives the batches; needed for the mask.
    colnames_uns_key, is_count_data
        As in :class:`~pyrovi.data.fields.ObsmField`.

    Notes
    -----
    State: as :class:`~pyrovi.data.fields.ObsmField`; with the mask also ``protein_batch_mask``
    (code of the batch, as a string -> list of booleans, False where not measured) and
    ``batch_mapping``.
    """

    def __init__(
        self,
        registry_key: str,
        obsm_key: str,
        use_batch_mask: bool = True,
        batch_field: AnnDataField | None = None,
        colnames_uns_key: str | None = None,
        is_count_data: bool = True,
    ) -> None:
        super().__init__(registry_key, obsm_key, colnames_uns_key, is_count_data)
        self.mask = _make_mask(registry_key, use_batch_mask, batch_field)


class ProteinLayerField(_MaskedByBatch, LayerField):
    """Protein counts in a layer or ``X`` of their own AnnData (a modality of a MuData).

    Parameters
    ----------
    registry_key
        Name of the tensor.
    layer
        Key of ``layers``; ``None`` for ``X``.
    use_batch_mask, batch_field
        As in :class:`ProteinObsmField`.
    is_count_data
        Whether the values are counts. Observations without any are accepted.

    Notes
    -----
    State: as :class:`~pyrovi.data.fields.LayerField`, and the mask's as in
    :class:`ProteinObsmField`.
    """

    def __init__(
        self,
        registry_key: str,
        layer: str | None = None,
        use_batch_mask: bool = True,
        batch_field: AnnDataField | None = None,
        is_count_data: bool = True,
    ) -> None:
        super().__init__(registry_key, layer, is_count_data, allow_empty_obs=True)
        self.mask = _make_mask(registry_key, use_batch_mask, batch_field)
