"""Checks of a whole object before its fields are registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anndata import AnnData

from pyrovi.data.checks import check_paired, check_unique_names
from pyrovi.data.containers import preview
from pyrovi.data.fields.base import AnnDataField, AnyData
from pyrovi.data.fields.mudata import MuDataField, is_mudata
from pyrovi.errors import DataError

_TRANSFER_OPTIONS = ("extend_categories", "allow_missing_labels")


def check_transfer_options(options: Mapping[str, bool], *, has_source: bool) -> None:
    """Options of a transfer must be known, and need a registry to transfer from.

    Raises
    ------
    TypeError
        Naming the options found and those there are.
    """
    unknown = [name for name in options if name not in _TRANSFER_OPTIONS]
    if unknown or (options and not has_source):
        raise TypeError(
            f"Got the transfer options {preview(options)}. Expected "
            f"{' or '.join(_TRANSFER_OPTIONS)}, together with `source_registry=`."
        )


@dataclass(frozen=True)
class AnnDataManagerValidationCheck:
    """Which checks of the whole object run at registration.

    Parameters
    ----------
    check_unique_names
        Observation and variable names must be unique.
    check_fully_paired_mudata
        All modalities of a MuData must hold the same observations in the same order.
    """

    check_unique_names: bool = True
    check_fully_paired_mudata: bool = True

    def __call__(self, adata: AnyData, fields: Sequence[AnnDataField]) -> None:
        """Check an object that is to carry ``fields``.

        Raises
        ------
        DataError
            If fields and data are not of one kind (AnnData or MuData), there are no observations,
            names are not unique, or modalities are not paired.
        """
        multimodal = is_mudata(adata)
        if not (multimodal or isinstance(adata, AnnData)):
            raise DataError(
                f"The data are a {type(adata).__name__}. Expected an AnnData or a MuData: wrap a "
                "matrix, AnnData(X)."
            )
        for field in fields:
            if isinstance(field, MuDataField) != multimodal:
                given, form = ("a MuData", "MuData") if multimodal else ("an AnnData", "plain")
                raise DataError(
                    f"The field {field.registry_key!r} is a {type(field).__name__}, the data are "
                    f"{given}. Expected fields and data of one kind: use the {form} form of the "
                    "field."
                )
        if adata.n_obs == 0:
            raise DataError(
                "The data have no observations (n_obs=0). Expected at least one: check how the "
                "object was subset."
            )
        if self.check_unique_names:
            check_unique_names(adata.obs_names, "mdata" if multimodal else "adata", "obs_names")
            for name, part in adata.mod.items() if multimodal else [("", adata)]:
                owner = f"mdata[{name!r}]" if multimodal else "adata"
                check_unique_names(part.var_names, owner, "var_names")
        if multimodal and self.check_fully_paired_mudata:
            check_paired(adata)
