"""BaseModelClass: what a user holds. Owns a module and a registry."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from pyrovi.data import AnnDataManager
from pyrovi.data.registry import AttrDict, check_registry, registry_summary_stats
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.dataloaders.example import example_minibatches, fixed_tensors
from pyrovi.dataloaders.indices import resolve_indices
from pyrovi.dataloaders.minibatch import Minibatch
from pyrovi.errors import ModelError, NotSetUpError
from pyrovi.model import (
    amortization,
    arviz_export,
    copies,
    discrete,
    elbo_estimate,
    evidence,
    graph,
    local_fit,
    log_prior,
    marginal,
    persistence,
    posteriors,
    queries,
    registry_access,
    restarts,
    rows,
    simulation,
    start,
    summary,
    training,
)
from pyrovi.model.arguments import constructor_arguments
from pyrovi.model.coords import column_dims, model_coords
from pyrovi.model.setup import AnyData, register, registered_manager, transferred_manager
from pyrovi.module.base import PyroBaseModule
from pyrovi.module.ledger import SiteLedger

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.data.fields.base import AnnDataField
    from pyrovi.dataloaders import DataSplitter
    from pyrovi.posterior.engine import Loader
    from pyrovi.train import SVITrainingPlan

MODEL_CLASSES: dict[tuple[str, str], type[BaseModelClass]] = {}
"""Every model class that has been imported, by module and name: the only classes a saved model can
become."""


class BaseModelClass(ABC):
    """A model of annotated data.

    A subclass defines :meth:`setup_anndata` and ``__init__``, which assigns ``self.module``::

        class Factors(BaseModelClass):
            @classmethod
            def setup_anndata(cls, adata, layer=None):
                cls.register(adata, [LayerField("X", layer)], locals())

            def __init__(self, adata, n_factors=8):
                super().__init__(adata)
                self.module = FactorModule(self.summary_stats.n_vars, n_factors)

    Parameters
    ----------
    adata
        AnnData or MuData that was set up for this class, a registry (a mapping), which makes a
        model without data, or a manager of registered data.

    Attributes
    ----------
    train_indices, validation_indices, test_indices
        Positions of the observations of each set after training; ``None`` before.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls):
            MODEL_CLASSES[cls.__module__, cls.__name__] = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments, so that the model can be made again from a file."""
        self = super().__new__(cls)
        self._init_arguments = constructor_arguments(self, args, kwargs)
        return self

    def __init__(self, adata: AnyData | Mapping[str, Any] | AnnDataManager) -> None:
        self._init_arguments: dict[str, Any]
        self._adata_manager: AnnDataManager | None = None
        if isinstance(adata, Mapping):
            check_registry(adata)
            self._registry = copy.deepcopy(dict(adata))
        elif isinstance(adata, AnnDataManager):
            self._adata_manager = adata
            self._registry = adata.registry
        elif adata is None:
            raise NotSetUpError(
                f"{type(self).__name__} needs data: pass an AnnData that was set up with "
                f"{type(self).__name__}.setup_anndata(adata, ...), or a registry."
            )
        else:
            self._adata_manager = registered_manager(type(self), adata)
            self._registry = self._adata_manager.registry
        self._module: PyroBaseModule | None = None
        self._row_names: pd.Index | None = None
        self._history: dict[str, dict[int, float]] = {}
        self._training: training.TrainingRecord | None = None
        self._checked_data: tuple[Any, ...] = ()  # by check_possible
        self._restarts: list[dict[str, torch.Tensor]] = []
        self._restart_records: list[restarts.RestartRecord] = []
        self.is_trained = False
        self.train_indices: np.ndarray | None = None
        self.validation_indices: np.ndarray | None = None
        self.test_indices: np.ndarray | None = None

    # ------------------------------------------------------------------ data

    @classmethod
    @abstractmethod
    def setup_anndata(cls, adata: AnyData, **kwargs: Any) -> None:
        """Declare which parts of an AnnData the model uses."""

    @classmethod
    def register(
        cls,
        adata: AnyData,
        fields: Sequence[AnnDataField],
        arguments: Mapping[str, Any],
        method_name: str = "setup_anndata",
    ) -> None:
        """Register fields on an object: the last statement of a setup method.

        Parameters
        ----------
        adata
            AnnData or MuData.
        fields
            The fields; their registry keys are what ``model`` and ``guide`` can ask for.
        arguments
            Arguments of the setup method (``locals()``).
        method_name
            Name of the setup method.
        """
        register(cls, adata, fields, arguments, method_name)

    @property
    def adata_manager(self) -> AnnDataManager:
        """Manager of the model's own data.

        Raises
        ------
        NotSetUpError
            If the model was loaded without data.
        """
        if self._adata_manager is None:
            raise NotSetUpError(
                f"This {type(self).__name__} was made without data. Pass `adata=` to the query, or "
                "load the model with data: load(dir, adata)."
            )
        return self._adata_manager

    @property
    def adata(self) -> AnyData:
        """The model's own data."""
        return self.adata_manager.adata

    @property
    def registry(self) -> dict[str, Any]:
        """Description of all fields; with the arguments of the class it makes the model again."""
        return self._registry

    @property
    def summary_stats(self) -> AttrDict:
        """Sizes (``n_obs``, ``n_vars``, ``n_batch``, ...)."""
        return registry_summary_stats(self._registry)

    def has_field(self, key: str) -> bool:
        """Whether a field of this registry key holds data."""
        entry = self._registry["field_registries"].get(key)
        return entry is not None and entry["data_registry"].get("attr_name") is not None

    def view_anndata_setup(self, hide_state_registries: bool = False) -> None:
        """Print what is registered."""
        from pyrovi.data.view import print_registry

        print_registry(self._registry, hide_state_registries=hide_state_registries)

    @property
    def var_names(self) -> pd.Index:
        """Names of the variables, in the order the model knows them."""
        from pyrovi.data.registry import registry_var_names

        return registry_var_names(self._registry)

    def manager_of(self, adata: AnyData | AnnDataManager | None) -> AnnDataManager:
        """Manager of the data of a query: the model's own, or one transferred to ``adata``.

        A manager is returned as it is: a query of several steps matches its data only once. Data
        without the column of a partly labelled field count as not labelled.

        Raises
        ------
        RegistryError
            If ``adata`` does not match the registry.
        """
        if isinstance(adata, AnnDataManager):
            return adata
        if adata is None:
            return self.adata_manager
        if self._adata_manager is not None and adata is self._adata_manager.adata:
            return self._adata_manager
        return transferred_manager(type(self), adata, self._registry, allow_missing_labels=True)

    def loader(
        self, adata: AnyData | None = None, indices: Any = None
    ) -> tuple[AnnDataManager, np.ndarray, Loader]:
        """Manager, positions and loader of the observations of a query, in the order asked for.

        Per-observation parameters belong to names: observations whose ``obs_names`` the model
        knows have the rows that were fitted to those, whichever object they come in. Rows of others
        are fitted to them. Give other observations other names (``"0"``, ``"1"``, ... in order,
        as AnnData makes them up, count as unknown).
        """
        manager = self.manager_of(adata)
        positions = resolve_indices(indices, manager.n_obs)

        def make(batch_size: int) -> Iterable[Minibatch]:
            batches: Iterable[Minibatch] = AnnDataLoader(
                manager, positions, batch_size=batch_size, n_obs=self.n_obs_training
            )
            if posteriors.has_stored_locals(self):
                known = posteriors.stored_rows(self, manager)[positions]
                batches = posteriors.with_stored_rows(batches, known)
            tables = self.module.row_parameters
            if self.module.posterior is not None:  # the guide's are not looked at
                tables = tuple(name for name in tables if not name.startswith("guide."))
            if not tables:
                return batches
            row_of = rows.rows_of(self, manager)
            if manager is self._adata_manager and rows.in_order(row_of, self.summary_stats.n_obs):
                return batches
            from pyrovi.train.rows import minibatches_with_rows

            return minibatches_with_rows(self.module, batches, row_of)

        return manager, positions, make

    @property
    def n_obs_training(self) -> int:
        """Plate size ``N``: training observations, or all before training."""
        if self._training is not None:
            return self._training.n_obs
        return int(self.summary_stats.n_obs)

    # ------------------------------------------------------------------ module

    @property
    def module(self) -> PyroBaseModule:
        """The model/guide pair.

        Raises
        ------
        ModelError
            If ``__init__`` has not assigned it.
        """
        if self._module is None:
            raise ModelError(f"{type(self).__name__}.__init__ must assign self.module.")
        return self._module

    @module.setter
    def module(self, module: PyroBaseModule) -> None:
        manager = self._adata_manager
        fixed = {} if manager is None else fixed_tensors(manager)
        module.materialise(example_minibatches(self._registry, self.summary_stats.n_obs, fixed))
        module.name_dims(column_dims(self._registry))
        module.eval()
        self._module = module
        self._row_names = rows.names_of_rows(self)

    @property
    def sites(self) -> SiteLedger:
        """Every site of the model: role, plates, shape, support."""
        return self.module.ledger

    @property
    def device(self) -> torch.device:
        """Device of the module."""
        return self.module.device

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the module; ``"auto"`` is the first GPU, or the CPU without one."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.module.to(torch.device(device))

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Metric -> one-column DataFrame indexed by epoch, over all calls of ``train``.

        ``elbo_*``, ``reconstruction_loss_*``, ``kl_local_*`` and ``kl_global_*`` are losses per
        observation (the negative ELBO and its parts, un-annealed: lower is better), as in
        scvi-tools.
        """
        from pyrovi.train.loggers import history_frames

        return history_frames(self._history)

    coords = model_coords

    # ------------------------------------------------------------------ how it is trained

    def training_plan_class(self) -> type[SVITrainingPlan]:
        """Class of the training plan; a subclass whose objective has further terms names its own.

        ``model.train(plan_kwargs=)`` are its arguments.
        """
        from pyrovi.train import SVITrainingPlan

        return SVITrainingPlan

    def data_splitter_class(self) -> type[DataSplitter]:
        """Class that divides the data for training and makes the loaders."""
        from pyrovi.dataloaders import DataSplitter

        return DataSplitter

    def prepare_training(self) -> None:  # noqa: B027 (may be left as it is)
        """What a subclass does before each fit by SVI, restarts included; nothing by default."""

    def finish_training(self) -> None:  # noqa: B027 (may be left as it is)
        """What a subclass does after each fit by SVI, such as to calibrate what it predicts."""

    # ------------------------------------------------------------------ what a user does

    data_registry = property(registry_access.data_registry)
    get_from_registry = registry_access.get_from_registry
    get_state_registry = registry_access.get_state_registry
    get_anndata_manager = registry_access.get_anndata_manager
    get_setup_arg = registry_access.get_setup_arg
    get_var_names = registry_access.get_var_names
    transfer_fields = registry_access.transfer_fields
    load_registry = staticmethod(registry_access.load_registry)

    starts: ClassVar[Mapping[str, Callable[[Any, Any], Any]]] = start.STARTS
    """What ``train(start=)`` names -> function of the model and the positions of the training
    observations, which puts the parameters where training is to begin."""

    train = training.train
    restart_history = restarts.restart_history
    restarts = property(restarts.restarts)
    sample_posterior = queries.sample_posterior
    posterior_predictive = queries.posterior_predictive
    sample_prior = queries.sample_prior
    simulate = simulation.simulate
    fresh_copy = copies.fresh_copy
    log_likelihood = queries.log_likelihood
    marginal_log_likelihood = marginal.marginal_log_likelihood
    log_prior = log_prior.log_prior
    discrete_marginals = discrete.discrete_marginals
    local_fit = local_fit.local_fit
    amortization_gap = amortization.amortization_gap
    to_arviz = arviz_export.to_arviz
    render = graph.render
    summary = summary.summary
    get_elbo = evidence.get_elbo
    estimate_elbo = elbo_estimate.estimate_elbo
    get_marginal_ll = evidence.get_marginal_ll
    get_reconstruction_error = evidence.get_reconstruction_error
    save = persistence.save
    load: ClassVar[Any] = classmethod(persistence.load)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={_name(v)}" for k, v in self._init_arguments.items())
        trained = training.describe(self)
        sizes = ", ".join(f"{v} {k.removeprefix('n_')}" for k, v in self.summary_stats.items())
        return f"{type(self).__name__}({arguments})\n{trained}; {sizes}\n{self.sites!r}"


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", None) or repr(value)
