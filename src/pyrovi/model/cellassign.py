"""CellAssign: cell types from known marker genes (Zhang et al. 2019)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data import AnnDataManager
from pyrovi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
    TotalField,
)
from pyrovi.dataloaders import AnnDataLoader
from pyrovi.errors import DataError, ModelError, RegistryError
from pyrovi.model.base import BaseModelClass
from pyrovi.model.coords import model_coords
from pyrovi.model.markers import Markers, marker_table
from pyrovi.model.registry_access import covariate_sizes
from pyrovi.model.setup import check_size_factor
from pyrovi.module.cellassign import CellAssignModule

_TOTAL = "total"


class CellAssign(BaseModelClass):
    """Probabilities of cell types for each cell, from a table of marker genes.

    The generative story and its symbols are those of
    :class:`~pyrovi.module.cellassign.CellAssignModule`. Only the marker genes are read: the data
    may have others, and in any order.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`, or a registry.
    cell_type_markers
        Genes x cell types: 1 where a gene marks a type, else 0 (or a CSV file of that; or a
        dictionary ``{type: [gene, ...]}``). One type may be without markers: it stands for all
        other cells.
    delta_min
        Least over-expression of a marker in its type: natural logarithm of the fold change.
    dirichlet_concentration, n_basis
        Concentration of the prior of the proportions; number of basis functions of the dispersion.
    max_count
        Centre of the last basis function; ``None`` for the largest count of the data.
    guide
        Family of the guide of the parameters (see :func:`~pyrovi.module.make_guide`). Base
        expression and over-expression of a gene are correlated: the standard deviations of
        ``"normal"``, whose coordinates are independent, are too small. It is for tables of so many
        markers that ``"mvn"``, with the square of their number of parameters, is too slow.

    Raises
    ------
    DataError
        If the marker table cannot be used, or the data lack some of its genes.
    ModelError
        If an option is out of range.

    Notes
    -----
    Training maximises a bound on the marginal likelihood, with the types summed out exactly. The
    loss of the implementation in scvi-tools is the expected complete-data likelihood, with
    gradients also through the responsibilities and without their entropy: neither an EM step nor
    the marginal likelihood.

    References
    ----------
    Zhang, O'Flanagan, Chavez, ..., Shah: Probabilistic cell-type assignment of single-cell RNA-seq
    for tumor microenvironment profiling. Nature Methods 16, 1007-1015 (2019).

    Examples
    --------
    >>> CellAssign.setup_anndata(adata, layer="counts")
    >>> model = CellAssign(adata, markers)
    >>> model.train()
    >>> adata.obs["cell_type"] = model.predict().idxmax(axis=1)
    """

    def __init__(
        self,
        adata: AnnData | dict[str, Any] | None = None,
        cell_type_markers: Markers | None = None,
        registry: dict[str, Any] | None = None,
        delta_min: float = 2.0,
        dirichlet_concentration: float = 0.01,
        n_basis: int = 10,
        max_count: float | None = None,
        guide: str = "mvn",
    ) -> None:
        if cell_type_markers is None:
            raise DataError(
                "CellAssign needs cell_type_markers: a table of marker genes x cell types with 1 "
                "where a gene marks a type, else 0."
            )
        markers = marker_table(cell_type_markers)
        super().__init__(registry if adata is None else adata)
        self.cell_type_markers = markers
        self._read_only(list(markers.index))
        mean_size, base_expression, max_count = self._look_at_data(max_count)
        self._init_arguments |= {"cell_type_markers": markers, "max_count": max_count}
        # no file and no data can change them any more: copies on other data have the same story
        self.module = CellAssignModule(
            markers.to_numpy(),
            max_count,
            n_batch=self.summary_stats.n_batch,
            **covariate_sizes(self),
            mean_size_factor=mean_size,
            base_expression=base_expression,
            delta_min=delta_min,
            dirichlet_concentration=dirichlet_concentration,
            n_basis=n_basis,
            guide=guide,
        )

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        size_factor_key: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        layer: str | None = None,
        genes: Sequence[str] | None = None,
    ) -> None:
        """Declare which parts of an AnnData the model uses.

        Parameters
        ----------
        adata
            The data; only an id is written, to ``adata.uns``.
        size_factor_key
            Column of ``obs`` with positive size factors. Only ratios matter, also those of queried
            data to these: they have to be in the same units. ``None`` takes the total counts of a
            cell over *all* genes: then the data must not be reduced to the marker genes before, and
            queried data need the same genes.
        batch_key
            Column of ``obs`` of batches, whose base expression may differ.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``obs`` that base expression may depend on. Effects have a standard normal
            prior: standardise continuous ones.
        layer
            Layer with raw counts; ``None`` for ``X``.
        genes
            Genes to read; ``None`` for all. A model reduces its own registration to its markers.

        Raises
        ------
        DataError, MissingKeyError
            If the data are not raw counts, or a column is missing.
        """
        arguments = locals()
        check_size_factor(adata, size_factor_key)
        size = (
            TotalField(_TOTAL, layer)
            if size_factor_key is None
            else NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key)
        )
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, allow_empty_obs=True, var_names=genes),
            size,
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
        cls.register(adata, fields, arguments)

    def predict(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        *,
        num_samples: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        r"""Posterior probabilities of the cell types of each cell.

        .. math:: p(c_n = c \mid x) \approx \frac1S \sum_s p(c_n = c \mid x_n, \theta^{(s)})

        over draws of all parameters, given which the probabilities are exact.

        Parameters
        ----------
        adata
            Data to query, in training or not; ``None`` for the model's own.
        indices
            Cells (positions or a boolean mask); ``None`` for all.
        num_samples
            Number of draws ``S``; ``None`` for 250, or all stored draws.
        batch_size
            Largest number of cells at a time.
        seed
            Root seed; ``None`` for ``settings.seed``.

        Returns
        -------
        pandas.DataFrame
            Cells x cell types, under their names; rows sum to 1. ``idxmax(axis=1)`` is the most
            probable type of each cell.

        Raises
        ------
        RegistryError
            If the data lack a marker gene, or do not match the setup otherwise.
        """
        found = self.discrete_marginals(
            "c", adata, indices, num_samples=num_samples, batch_size=batch_size, seed=seed
        )
        table: Any = found["c"].to_pandas()
        return table.rename_axis(None).rename_axis(None, axis=1)

    def train(  # type: ignore[override]
        self, max_epochs: int | None = None, *, method: str = "svi", **options: Any
    ) -> None:
        """Fit the model; see :func:`pyrovi.model.training.train`, whose options it takes.

        By SVI the defaults are ``max_epochs=400``, ``batch_size=1024``, ``lr=0.05``,
        ``averaging=True`` and ``early_stopping=True`` (on ``elbo_validation``, with
        ``early_stopping_patience=15``); with ``train_size=1`` it is ``early_stopping="elbo"``,
        which needs no cells held out.
        """
        if method == "svi":
            max_epochs = 400 if max_epochs is None else max_epochs
            options = {**_DEFAULTS, **options}
            if options.get("train_size") == 1 and "early_stopping_monitor" not in options:
                options["early_stopping"] = options["early_stopping"] and "elbo"
        super().train(max_epochs, method=method, **options)

    def coords(  # type: ignore[override]
        self, manager: AnnDataManager, positions: np.ndarray
    ) -> Callable[[str], np.ndarray | None]:
        """Coordinate values by dimension name; see :func:`~pyrovi.model.coords.model_coords`."""
        known = model_coords(self, manager, positions)
        own = {
            "cell_type": np.asarray(self.cell_type_markers.columns),
            "marker": self._marker_names(),
            "covariate": np.asarray(self._covariate_names()),
        }
        return lambda dim: own[dim] if dim in own else known(dim)

    # ------------------------------------------------------------------ construction

    def _read_only(self, genes: list[str]) -> None:
        """Reduce the registration to some genes."""
        if self._registry["setup_args"].get("genes") == genes:
            return
        if self._adata_manager is None:
            raise RegistryError(
                "The registry is of other genes than those of the marker table. Expected the "
                "registry of a model with these markers, or data."
            )
        manager, registry = self._adata_manager, self._registry
        fields = [
            LayerField(field.registry_key, field.layer, var_names=genes)
            if field.registry_key == REGISTRY_KEYS.X_KEY and isinstance(field, LayerField)
            else field
            for field in manager.fields
        ]
        setup = {name: registry[name] for name in ("model_name", "setup_method_name")}
        setup["setup_args"] = {**registry["setup_args"], "genes": genes}
        reduced = AnnDataManager(fields, setup)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the setup has said it already
            reduced.register_fields(manager.adata, write_id=False)
        self._adata_manager, self._registry = reduced, reduced.registry

    def _look_at_data(self, max_count: float | None) -> tuple[float, np.ndarray | None, float]:
        """Mean size factor, mean of each gene's counts over size factors, and largest count."""
        manager = self._adata_manager
        if manager is None:
            if max_count is None:
                raise ModelError("Without data max_count= has to be given: the largest count.")
            return 1.0, None, max_count  # a file that is loaded overwrites them
        key = _TOTAL if self.has_field(_TOTAL) else REGISTRY_KEYS.SIZE_FACTOR_KEY
        mean_size = float(np.mean(manager.get_from_registry(key)))
        sums, largest = np.zeros(self.summary_stats.n_vars), 0.0
        for batch in AnnDataLoader(manager, batch_size=4096):
            X = batch[REGISTRY_KEYS.X_KEY]
            sums += (X / batch[key]).sum(0).double().numpy() * mean_size
            largest = max(largest, float(X.max()))
        if largest == 0:
            raise DataError(
                "The marker genes have no counts at all. Expected counts: check the layer, and "
                "that the marker table names the genes as adata.var_names do."
            )
        return mean_size, sums / manager.n_obs, largest if max_count is None else max_count

    def _state(self, key: str) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self.registry["field_registries"][key]["state_registry"]
        return state

    def _marker_names(self) -> np.ndarray:
        genes, types = self.cell_type_markers.index, self.cell_type_markers.columns
        pairs = self.module.markers.T  # type: ignore[union-attr]
        return np.array([f"{genes[g]} in {types[c]}" for g, c in pairs], dtype=object)

    def _covariate_names(self) -> list[str]:
        """Names of the columns of the design, in the module's order."""
        batch = self._state(REGISTRY_KEYS.BATCH_KEY)
        key = batch.get("original_key", REGISTRY_KEYS.BATCH_KEY)
        levels = {key: batch["categorical_mapping"]}
        levels |= self._state(REGISTRY_KEYS.CAT_COVS_KEY).get("mappings", {})
        names = [f"{name}: {level}" for name, known in levels.items() for level in known[1:]]
        return names + list(self._state(REGISTRY_KEYS.CONT_COVS_KEY).get("columns", []))


_DEFAULTS = {
    "batch_size": 1024,
    "averaging": True,
    "early_stopping": True,
    "early_stopping_patience": 15,
}
