"""The manager: registers the fields of a model on one object and hands out their data."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyrovi.data.containers import preview
from pyrovi.data.fields.base import JSON, AnnDataField, AnyData
from pyrovi.data.identity import new_id
from pyrovi.data.registry import (
    FORMAT,
    AttrDict,
    check_registry,
    field_registry,
    register_field,
    registry_data_registry,
    registry_state,
    registry_summary_stats,
    registry_var_names,
    to_json,
)
from pyrovi.data.sources import is_fork_safe
from pyrovi.data.validation import AnnDataManagerValidationCheck, check_transfer_options
from pyrovi.errors import MissingKeyError, NotSetUpError, RegistryError

if TYPE_CHECKING:
    from torch.utils.data import Dataset


class AnnDataManager:
    """Fields of a model, registered on one AnnData or MuData.

    Parameters
    ----------
    fields
        The fields; their registry keys must differ.
    setup_method_args
        ``{"model_name": ..., "setup_method_name": ..., "setup_args": {...}}``, of JSON values:
        what is needed to repeat the setup.
    validation_checks
        Checks of the whole object; ``None`` for all.

    Notes
    -----
    Registration writes one thing into the object, an id in ``uns`` (``"_pyrovi_uuid"``); a transfer
    to other data writes nothing. It reads everything else, and keeps no copy: data are taken from
    the object when they are asked for. A subset or copy carries the id along, but is another object
    and is never taken for this one.
    """

    def __init__(
        self,
        fields: Sequence[AnnDataField] | None = None,
        setup_method_args: Mapping[str, Any] | None = None,
        validation_checks: AnnDataManagerValidationCheck | None = None,
    ) -> None:
        self.fields: list[AnnDataField] = []
        self.validation_checks = validation_checks or AnnDataManagerValidationCheck()
        self._adata: AnyData = None
        self._uuid: str | None = None
        self._n_obs = 0
        self._field_registries: JSON = {}
        self._transfer_kwargs: dict[str, bool] = {}
        self._setup: JSON = {"model_name": None, "setup_method_name": None, "setup_args": {}}
        self.update_setup_method_args(setup_method_args or {})
        for field in fields or []:
            if any(field.registry_key == other.registry_key for other in self.fields):
                raise RegistryError(
                    f"Two fields have the registry key {field.registry_key!r}. Expected one "
                    "field per key: rename one of them."
                )
            self.fields.append(field)

    # ------------------------------------------------------------------ registration

    def register_fields(
        self,
        adata: AnyData,
        source_registry: Mapping[str, Any] | None = None,
        *,
        write_id: bool = True,
        **transfer_kwargs: bool,
    ) -> None:
        """Register all fields on an object.

        Parameters
        ----------
        adata
            AnnData or MuData. On a view the id makes AnnData turn it into an actual copy.
        source_registry
            Registry to transfer from: the object must match it.
        write_id
            Write an id to ``adata.uns``. A transfer never does: it leaves the object, and a view a
            view, as it is.
        **transfer_kwargs
            ``extend_categories``, ``allow_missing_labels``; only with a source registry.

        Raises
        ------
        DataError, MissingKeyError
            If the data are not what a field needs.
        RegistryError
            If fields are registered already, or the data do not match the source.
        TypeError
            For transfer options without a source, or unknown ones.
        """
        if self._adata is not None:
            raise RegistryError(
                "This manager has registered its fields already. Expected one object per manager: "
                "make a new AnnDataManager, or use `transfer_fields` for other data."
            )
        check_transfer_options(transfer_kwargs, has_source=source_registry is not None)
        if source_registry is not None:
            check_registry(source_registry)
        self.validation_checks(adata, self.fields)
        registries = {
            field.registry_key: register_field(field, adata, source_registry, transfer_kwargs)
            for field in self.fields
        }
        registry_summary_stats({"n_obs": int(adata.n_obs), "field_registries": registries})
        # Nothing is kept or written before everything has passed.
        self._field_registries = registries
        self._transfer_kwargs = dict(transfer_kwargs)
        self._uuid = new_id(adata, write=write_id and source_registry is None)
        self._n_obs = int(adata.n_obs)
        self._adata = adata

    def register_new_fields(self, fields: Sequence[AnnDataField]) -> None:
        """Register further fields on the same object.

        Raises
        ------
        RegistryError
            If a field of that name is registered already.
        """
        adata = self.adata
        together = AnnDataManager([*self.fields, *fields]).fields  # refuses equal keys
        self.validation_checks(adata, together)
        added = {f.registry_key: register_field(f, adata) for f in fields}
        registries = {**self._field_registries, **added}
        registry_summary_stats({"n_obs": int(adata.n_obs), "field_registries": registries})
        self.fields = together
        self._field_registries = registries

    def transfer_fields(self, adata_target: AnyData, **kwargs: bool) -> AnnDataManager:
        """Manager of other data that match this one's registry.

        Parameters
        ----------
        adata_target
            The other data: same variables, known categories.
        **kwargs
            ``extend_categories``, ``allow_missing_labels``.

        Raises
        ------
        RegistryError
            If the data do not match; the message tells how, and what to do.
        """
        manager = AnnDataManager(self.fields, self._setup, self.validation_checks)
        manager.register_fields(adata_target, self.registry, **kwargs)
        return manager

    def validate(self) -> None:
        """Check that the object still is what was registered.

        Raises
        ------
        DataError, RegistryError
            If observations, variables or categories have changed since.
        """
        adata = self.adata
        registered = self.summary_stats.n_obs
        if adata.n_obs != registered:
            raise RegistryError(
                f"The data have {adata.n_obs} observations, but were registered with {registered}."
                " Expected them unchanged: run `setup_anndata` again."
            )
        self.validation_checks(adata, self.fields)
        for field in self.fields:
            field.transfer_field(
                self._field_registries[field.registry_key]["state_registry"],
                adata,
                allow_missing_labels=self._transfer_kwargs.get("allow_missing_labels", False),
            )

    def update_setup_method_args(self, setup_method_args: Mapping[str, Any]) -> None:
        """Update ``model_name``, ``setup_method_name``, or single entries of ``setup_args``.

        Entries that are none of these are taken as setup arguments.

        Raises
        ------
        RegistryError
            If a value has no JSON form.
        """
        update = to_json(dict(setup_method_args), "setup_method_args")
        for name in ("model_name", "setup_method_name"):
            if name in update:
                self._setup[name] = update.pop(name)
        self._setup["setup_args"].update(update.pop("setup_args", {}))
        self._setup["setup_args"].update(update)

    # ------------------------------------------------------------------ what is registered

    @property
    def adata(self) -> AnyData:
        """The registered AnnData or MuData.

        Raises
        ------
        NotSetUpError
            If no object is registered.
        """
        if self._adata is None:
            raise NotSetUpError(
                "This manager has no data. Expected registered data: call `register_fields(adata)`."
            )
        return self._adata

    @property
    def adata_uuid(self) -> str:
        """Id of this registration."""
        self.adata  # noqa: B018  (raises if nothing is registered)
        assert self._uuid is not None
        return self._uuid

    @property
    def registry(self) -> JSON:
        """The registry: plain JSON, a copy (see :mod:`pyrovi.data.registry`)."""
        return copy.deepcopy(
            {
                "format": FORMAT,
                **self._setup,
                "uuid": self.adata_uuid,
                "n_obs": self._n_obs,
                "field_registries": self._field_registries,
            }
        )

    @property
    def data_registry(self) -> AttrDict:
        """Where each field that holds data lives: ``attr_name``, ``attr_key``, ``mod_key``."""
        return registry_data_registry({"field_registries": self._field_registries})

    @property
    def summary_stats(self) -> AttrDict:
        """Sizes by name (``n_obs``, ``n_vars``, ``n_batch``, ...), as attributes or items."""
        self.adata  # noqa: B018
        return registry_summary_stats(
            {"n_obs": self._n_obs, "field_registries": self._field_registries}
        )

    @property
    def n_obs(self) -> int:
        """Number of observations."""
        return int(self.adata.n_obs)

    @property
    def obs_names(self) -> pd.Index:
        """Names of the observations."""
        return self.adata.obs_names

    @property
    def var_names(self) -> pd.Index:
        """Names of the variables of ``X``, or else of the first field that is a layer.

        Raises
        ------
        MissingKeyError
            If no field is a layer.
        """
        return registry_var_names({"field_registries": self._field_registries})

    def has_field(self, key: str) -> bool:
        """Whether a field of this name is registered and holds data."""
        return key in self.data_registry

    @property
    def fork_safe(self) -> bool:
        """Whether a forked process can read the data of all fields."""
        return all(is_fork_safe(self.get_from_registry(key)) for key in self.data_registry)

    def get_from_registry(self, key: str) -> Any:
        """Data of a field, two-dimensional with one row per observation (or variable).

        A layer or array is returned as the very object the AnnData holds; codes are computed.

        Raises
        ------
        MissingKeyError
            If no field of that name is registered, or it is empty.
        """
        adata = self.adata
        entry = field_registry({"field_registries": self._field_registries}, key)
        field = next(field for field in self.fields if field.registry_key == key)
        if field.is_empty:
            raise MissingKeyError(
                f"The field {key!r} is empty: no key was given for it in the setup. Fields with "
                f"data: {preview(self.data_registry, 20)}. Set the data up again and name its key."
            )
        return field.get_field_data(adata, entry["state_registry"])

    def get_state_registry(self, key: str) -> AttrDict:
        """State of a field; categories and column names are arrays.

        Raises
        ------
        MissingKeyError
            If no field of that name is registered.
        """
        return registry_state({"field_registries": self._field_registries}, key)

    def create_torch_dataset(
        self,
        indices: Any = None,
        data_and_attributes: list[str] | Mapping[str, Any] | None = None,
        load_sparse_tensor: bool = False,
    ) -> Dataset[Any]:
        """Torch dataset of the registered data.

        Parameters
        ----------
        indices
            Observations to take (integers, or a boolean mask); ``None`` for all.
        data_and_attributes
            Names of the tensors, or names with their types; ``None`` for all.
        load_sparse_tensor
            Give sparse data as sparse tensors.
        """
        # The one look upwards in the package: by name, at call time.
        loaders = importlib.import_module("pyrovi.dataloaders")
        dataset = loaders.AnnTorchDataset(
            self, getitem_tensors=data_and_attributes, load_sparse_tensor=load_sparse_tensor
        )
        if indices is None:
            return dataset
        import torch.utils.data

        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        return torch.utils.data.Subset(dataset, indices)

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print the registry as tables.

        Parameters
        ----------
        hide_state_registries
            Leave the states (categories, names) out.
        """
        from pyrovi.data.view import print_registry

        print_registry(self.registry, hide_state_registries=hide_state_registries)

    def view_setup_method_args(self) -> None:
        """Print the arguments of the setup."""
        from pyrovi.data.view import print_setup

        print_setup(self._setup)

    def __repr__(self) -> str:
        on = "no data" if self._adata is None else f"{self._n_obs} observations"
        return f"AnnDataManager({preview([f.registry_key for f in self.fields], 20)}; {on})"
