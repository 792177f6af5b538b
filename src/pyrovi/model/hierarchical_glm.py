"""HierarchicalGLM: effects of conditions on counts, with random effects of donors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
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
from pyrovi.errors import MissingKeyError, ModelError, TrainingError
from pyrovi.model import effects, shrinkage
from pyrovi.model.base import BaseModelClass
from pyrovi.model.coords import model_coords
from pyrovi.model.glm_design import check_identified, standardisation
from pyrovi.model.glm_start import start_near_posterior
from pyrovi.model.new_observations import predict_new
from pyrovi.model.registry_access import covariate_sizes
from pyrovi.model.setup import check_size_factor
from pyrovi.model.training import train_with_defaults
from pyrovi.model.training_data import training_batch_size
from pyrovi.module.hierarchical_glm import NegativeBinomialGLMM
from pyrovi.posterior.labels import Coords

CONDITION, DONOR = "condition", "donor"

STEPS = 2000
"""Steps in which the guide finds its optimum from where it begins."""

BATCH_SIZE = 1024
"""Cells per minibatch: a step of fewer costs nearly as much, and learns less."""


class HierarchicalGLM(BaseModelClass):
    """Effects of conditions on counts, with random effects of donors and shrinkage across genes.

    The generative story and its symbols are those of
    :class:`~pyrovi.module.hierarchical_glm.NegativeBinomialGLMM`. Cells of a donor are no
    independent replicates of a condition that all of them have: the donors are. A test that takes
    cells for replicates calls differences between donors effects of the condition.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`, or a registry.
    effect_df
        Degrees of freedom of the prior of effects: 3 lets large effects stand among many small
        ones; ``None`` is a normal prior.

    Raises
    ------
    DataError
        If the effects cannot be told from one another or from differences between donors.
    MissingKeyError
        If the reference level does not exist.

    References
    ----------
    Crowell et al.: muscat detects subpopulation-specific state transitions from multi-sample
    multi-condition single-cell transcriptomics data. Nature Communications 11, 6077 (2020).

    Examples
    --------
    >>> HierarchicalGLM.setup_anndata(adata, condition_key="treatment", donor_key="donor")
    >>> model = HierarchicalGLM(adata)
    >>> model.train()
    >>> effects = model.get_effects(fdr=0.05)
    """

    def __init__(
        self,
        adata: AnnData | dict[str, Any] | None = None,
        registry: dict[str, Any] | None = None,
        effect_df: float | None = 3.0,
    ) -> None:
        super().__init__(registry if adata is None else adata)  # type: ignore[arg-type]
        stats = self.summary_stats
        manager = self._adata_manager
        means, sds, size = None, None, 1.0
        if manager is not None:  # else a file that is loaded overwrites them
            size = float(np.mean(manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY)))
            if stats.get("n_extra_continuous_covs"):
                means, sds = standardisation(manager)
        self.module = NegativeBinomialGLMM(
            stats.n_vars,
            stats.n_condition,
            stats.n_donor if self.has_donors else 0,
            stats.n_batch,
            **covariate_sizes(self),
            reference=self.conditions.index(self.reference),
            effect_df=math.inf if effect_df is None else effect_df,
            size_factor_mean=size,
            continuous_means=means,
            continuous_sds=sds,
        )
        if manager is not None:
            check_identified(self, manager)

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        condition_key: str,
        donor_key: str | None = None,
        layer: str | None = None,
        reference: str | int | bool | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Declare which parts of an AnnData the model uses.

        Parameters
        ----------
        adata
            The data; only an id is written, to ``adata.uns``.
        condition_key
            Column of ``obs`` with the condition whose effects are asked for.
        donor_key
            Column of ``obs`` with the donors (or samples), within conditions or across them.
            ``None`` is for observations that are donors themselves, counts summed up over the cells
            of each: what differs between donors is then in the dispersion. Do not leave it out for
            cells.
        layer
            Layer with raw counts; ``None`` for ``X``.
        reference
            Level of the condition that the others are compared with; ``None`` for the first one.
        batch_key
            Column of ``obs`` with batches.
        size_factor_key
            Column of ``obs`` with positive size factors; ``None`` for the total counts. Needed for
            a selection of genes whose totals do not stand for those of all genes. Only ratios
            between observations matter.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``obs`` that counts are regressed on, too. Continuous ones are standardised:
            their effects are those of one standard deviation.

        Raises
        ------
        DataError, MissingKeyError
            If the data are not raw counts, or a column is missing.
        """
        arguments = locals()
        check_size_factor(adata, size_factor_key)
        size_factor: Any = TotalField(REGISTRY_KEYS.SIZE_FACTOR_KEY, layer)
        if size_factor_key is not None:
            size_factor = NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key)
        fields = [
            # of a selection of genes a cell may have no counts, if its size is known otherwise
            LayerField(REGISTRY_KEYS.X_KEY, layer, allow_empty_obs=size_factor_key is not None),
            CategoricalObsField(CONDITION, condition_key),
            CategoricalObsField(DONOR, donor_key),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            size_factor,
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
        cls.register(adata, fields, arguments)

    # ------------------------------------------------------------------ names

    @property
    def has_donors(self) -> bool:
        """Whether observations are of donors that have effects."""
        return self.get_setup_arg("donor_key") is not None

    @property
    def conditions(self) -> list[Any]:
        """Levels of the condition, in the order of their codes."""
        return list(self.get_state_registry(CONDITION)["categorical_mapping"])

    @property
    def reference(self) -> Any:
        """Level of the condition that the others are compared with.

        Raises
        ------
        MissingKeyError
            If the one that was asked for does not exist.
        """
        levels, asked = self.conditions, self.get_setup_arg("reference")
        if asked is None:
            return levels[0]
        if asked not in levels:
            raise MissingKeyError(
                f"reference={asked!r} is no level of the condition; there are: "
                f"{', '.join(map(repr, levels))}. Set the data up with one of these."
            )
        return asked

    @property
    def coefficient_names(self) -> list[str]:
        """Names of the coefficients: ``"<column>[<level>]"``, or the column if continuous."""
        setup, states = self.registry["setup_args"], self.registry["field_registries"]
        others = [level for level in self.conditions if level != self.reference]
        names = [f"{setup['condition_key']}[{level}]" for level in others]
        batches = states[REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"]
        names += [f"{setup['batch_key']}[{level}]" for level in batches[1:]]
        mappings = states[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"].get("mappings", {})
        names += [f"{key}[{level}]" for key, levels in mappings.items() for level in levels[1:]]
        return names + list(setup["continuous_covariate_keys"] or [])

    def coords(self, manager: AnnDataManager, positions: np.ndarray) -> Coords:
        """Coordinate values by dimension name; see :func:`~pyrovi.model.coords.model_coords`."""
        known = model_coords(self, manager, positions)
        names = np.asarray(self.coefficient_names)
        return lambda dim: names if dim == "coefficient" else known(dim)

    # ------------------------------------------------------------------ training and prediction

    starts: ClassVar[Mapping[str, Any]] = {"quasi-likelihood": start_near_posterior}

    def train(self, max_epochs: int | None = None, *, method: str = "svi", **options: Any) -> None:
        """Fit the model; see :meth:`BaseModelClass.train` for all options.

        By default all cells are trained on, in minibatches of 1024 and about 2000 steps, whose rate
        falls, and the parameters are averaged; there is no KL warm-up. The guide starts at a fit by
        penalised quasi-likelihood (``start="quasi-likelihood"``). For a handful of genes,
        ``method="nuts"`` gives draws of the exact posterior.

        Parameters
        ----------
        max_epochs
            Epochs; ``None``: as many as make up these steps.
        method
            ``"svi"``, ``"nuts"`` or ``"pathfinder"``. ``"map"`` and ``"laplace"`` are refused
            where there are donors: the mode of a hierarchical model is where all are alike.
        options
            Further options of the method; they replace the defaults above. ``plan_kwargs`` are
            joined with those of the defaults.

        Raises
        ------
        TrainingError
            If the method looks for the mode, or as there.
        """
        if method in ("map", "laplace") and self.has_donors:
            raise TrainingError(
                f"method={method!r} finds the mode of the posterior, which is where all donors are "
                "alike: it tells nothing of them. Use 'svi', 'nuts' or 'pathfinder'."
            )
        given = options if max_epochs is None else {"max_epochs": max_epochs, **options}
        if method != "svi":
            super().train(method=method, **given)
            return
        from pyrovi.train.scaled_adam import ScaledAdam

        size = training_batch_size(options.get("batch_size", BATCH_SIZE))
        n_obs = self.adata_manager.n_obs
        steps_per_epoch = 1 if size is None else math.ceil(n_obs / size)
        plan = {
            "optim": ScaledAdam,
            "lr": 0.05,
            "eps": 1e-12,
            "lr_decay": 0.02,
            "n_epochs_kl_warmup": 0,
        }
        if "optim" in (options.get("plan_kwargs") or {}):
            plan = {"n_epochs_kl_warmup": 0}
        defaults: dict[str, Any] = {
            "batch_size": size if size is None or size < n_obs else None,
            "max_epochs": math.ceil(STEPS / steps_per_epoch),
            "averaging": True,
            "start": "quasi-likelihood",
            "plan_kwargs": plan,
        }
        if not {"train_size", "datasplitter_kwargs"} & options.keys():
            defaults["train_size"] = 1.0
        train_with_defaults(self, given, defaults)

    def posterior_predictive(
        self, sites: Any = None, *, adata: Any = None, new_levels: bool = False, **options: Any
    ) -> Any:
        r"""As :meth:`BaseModelClass.posterior_predictive`, for new donors as well.

        Parameters
        ----------
        sites, adata, options
            As there.
        new_levels
            Whether the data may have donors that the model has not seen. Their effects are drawn
            from the distribution of donors, :math:`u \sim \mathrm{Normal}(0, \\sigma_g)`.
        """
        if not new_levels:
            return super().posterior_predictive(sites, adata=adata, **options)
        if adata is None:
            raise ModelError("new_levels=True is for new data; pass them, adata=.")
        return predict_new(self, sites, adata=adata, new_levels=True, **options)

    get_effects = effects.get_effects
    donor_effects = effects.donor_effects
    no_pooling_effects = shrinkage.no_pooling_effects
    plot_shrinkage = shrinkage.plot_shrinkage
