"""TOTALVI: RNA and surface proteins of the same cells (Gayoso et al. 2021)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from anndata import AnnData

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    MuDataCategoricalJointObsField,
    MuDataCategoricalObsField,
    MuDataLayerField,
    MuDataNumericalJointObsField,
    MuDataNumericalObsField,
    MuDataProteinLayerField,
    NumericalJointObsField,
    NumericalObsField,
    ProteinObsmField,
)
from pyrovi.data.registry import registry_state
from pyrovi.errors import DataError
from pyrovi.model import (
    expression,
    latent,
    minified,
    protein_parts,
    proteins,
    proteins_compared,
    query_proteins,
    reference,
)
from pyrovi.model.background import background_prior
from pyrovi.model.base import BaseModelClass
from pyrovi.model.registry_access import covariate_sizes
from pyrovi.model.scvi import SCVI
from pyrovi.model.setup import check_size_factor
from pyrovi.model.training import note_options
from pyrovi.module.totalvae import TOTALVAE

PANEL_KEY = "panel"
"""Registry key of the panels."""

EMPIRICAL_FROM = 10
"""Number of proteins above which the prior of the background is initialised by the data."""


class TOTALVI(BaseModelClass):
    """Joint latent space of RNA and proteins; background removed, missing proteins imputed.

    The generative story and its symbols are those of :class:`~pyrovi.module.totalvae.TOTALVAE`.

    A protein without a single count in a batch (or panel) is taken as not measured there. It takes
    no part in the likelihood of these cells, and is imputed by decoding in a batch that has it
    (``transform_batch=`` of the queries).

    Parameters
    ----------
    adata
        AnnData or MuData that was set up with :meth:`setup_anndata` or :meth:`setup_mudata`, or a
        registry.
    n_latent
        Latent dimensions.
    gene_dispersion, protein_dispersion, gene_likelihood, latent_distribution
        The story's options.
    empirical_protein_background_prior
        Whether to initialise the prior of each protein's background from its counts in each batch,
        by a mixture of two normal distributions of their logarithms
        (:func:`~pyrovi.model.background.background_moments`); else it begins at a log mean of 3 and
        a standard deviation of 1. It is learned in both cases. ``None``: for more than 10 proteins.
    override_missing_proteins
        Take proteins without counts in a batch as measured zeros. ``None`` takes them as not
        measured and warns, ``False`` does not warn.
    use_observed_lib_size
        Whether the library size of RNA is the observed total. In the paper it is latent.
    kwargs
        Further options of :class:`~pyrovi.module.totalvae.TOTALVAE`.

    Warns
    -----
    UserWarning
        If proteins were not measured in some batch.

    References
    ----------
    Gayoso, Steier, Lopez, Regier, Nazor, Streets, Yosef: Joint probabilistic modeling of
    single-cell multi-omic data with totalVI. Nature Methods 18, 272-282 (2021).

    Examples
    --------
    >>> TOTALVI.setup_anndata(adata, protein_expression_obsm_key="proteins", batch_key="batch")
    >>> model = TOTALVI(adata)
    >>> model.train()
    >>> rna, protein = model.get_normalized_expression(n_samples=25)
    """

    def __init__(
        self,
        adata: Any = None,
        registry: dict[str, Any] | None = None,
        n_latent: int = 20,
        gene_dispersion: Literal["gene", "gene-batch"] = "gene",
        protein_dispersion: Literal["protein", "protein-batch"] = "protein",
        gene_likelihood: Literal["nb", "zinb"] = "nb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        empirical_protein_background_prior: bool | None = None,
        override_missing_proteins: bool | None = None,
        use_observed_lib_size: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(registry if adata is None else adata)
        stats = self.summary_stats
        has_size_factor = self.has_field(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        measured = self._measured(override_missing_proteins)
        moments: tuple[Any, Any] = (None, None)
        if not use_observed_lib_size and not has_size_factor:
            moments = self._library_moments(stats.n_batch)
        background: tuple[Any, Any] = (None, None)
        if empirical_protein_background_prior is None:
            empirical_protein_background_prior = stats.n_proteins > EMPIRICAL_FROM
        if empirical_protein_background_prior and self._adata_manager is not None:
            background = background_prior(self, measured, self._panel_key)
        self.module = TOTALVAE(
            n_vars=stats.n_vars,
            n_proteins=stats.n_proteins,
            n_batch=stats.n_batch,
            measured=measured,
            n_latent=n_latent,
            **covariate_sizes(self),
            gene_dispersion=gene_dispersion,
            protein_dispersion=protein_dispersion,
            gene_likelihood=gene_likelihood,
            latent_distribution=latent_distribution,
            use_size_factor_key=has_size_factor,
            use_observed_lib_size=use_observed_lib_size,
            library_log_means=moments[0],
            library_log_vars=moments[1],
            background_log_means=background[0],
            background_log_sds=background[1],
            **kwargs,
        )

    # ------------------------------------------------------------------ data

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        protein_expression_obsm_key: str,
        protein_names_uns_key: str | None = None,
        batch_key: str | None = None,
        panel_key: str | None = None,
        layer: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Declare which parts of an AnnData the model uses.

        Parameters
        ----------
        adata
            The data; only an id is written, to ``adata.uns``.
        protein_expression_obsm_key
            Key of ``obsm`` with raw protein counts: a data frame, whose columns are the names, or
            an array.
        protein_names_uns_key
            Key of ``uns`` with the names of the proteins.
        batch_key
            Column of ``obs``.
        panel_key
            Column of ``obs`` with the panel of antibodies of each cell. What is not measured, and
            the prior of the background, then go by panel; by default by batch.
        layer
            Layer with raw RNA counts; ``None`` for ``X``.
        size_factor_key
            Column of ``obs`` with positive size factors of RNA, instead of the observed totals.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``obs`` to correct for.

        Raises
        ------
        DataError, MissingKeyError
            If the data are not raw counts, or a column is missing.
        """
        arguments = locals()
        check_size_factor(adata, size_factor_key)
        panel = CategoricalObsField(PANEL_KEY, panel_key)
        batch = CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer),
            batch,
            *([] if panel_key is None else [panel]),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
            ProteinObsmField(
                REGISTRY_KEYS.PROTEIN_EXP_KEY,
                protein_expression_obsm_key,
                batch_field=batch if panel_key is None else panel,
                colnames_uns_key=protein_names_uns_key,
            ),
        ]
        cls.register(adata, fields, arguments)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        rna_layer: str | None = None,
        protein_layer: str | None = None,
        batch_key: str | None = None,
        panel_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        modalities: Mapping[str, str] | None = None,
    ) -> None:
        """Declare which parts of a MuData the model uses.

        Parameters
        ----------
        mdata
            The data; only an id is written, to ``mdata.uns``.
        rna_layer, protein_layer
            Layers with raw counts; ``None`` for ``X``.
        batch_key, panel_key, size_factor_key
            Columns of ``obs``, as in :meth:`setup_anndata`.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``obs`` to correct for.
        modalities
            Argument of this method -> modality that it is in, e.g.
            ``{"rna_layer": "rna", "protein_layer": "protein"}``. Both layers need one; columns are
            those of ``mdata.obs`` unless theirs is named.

        Raises
        ------
        DataError, MissingKeyError
            If the data are not raw counts, or a modality, layer or column is missing.
        """
        arguments = locals()
        where = _modalities(modalities)
        if size_factor_key is not None:
            owner = where.get("size_factor_key")
            check_size_factor(mdata if owner is None else mdata[owner], size_factor_key)

        def categorical(key: str, column: str | None, argument: str) -> Any:
            return MuDataCategoricalObsField(key, column, mod_key=where.get(argument))

        batch = categorical(REGISTRY_KEYS.BATCH_KEY, batch_key, "batch_key")
        panel = categorical(PANEL_KEY, panel_key, "panel_key")
        fields = [
            MuDataLayerField(REGISTRY_KEYS.X_KEY, rna_layer, mod_key=where["rna_layer"]),
            batch,
            *([] if panel_key is None else [panel]),
            MuDataNumericalObsField(
                REGISTRY_KEYS.SIZE_FACTOR_KEY,
                size_factor_key,
                mod_key=where.get("size_factor_key"),
                required=False,
            ),
            MuDataCategoricalJointObsField(
                REGISTRY_KEYS.CAT_COVS_KEY,
                categorical_covariate_keys,
                mod_key=where.get("categorical_covariate_keys"),
            ),
            MuDataNumericalJointObsField(
                REGISTRY_KEYS.CONT_COVS_KEY,
                continuous_covariate_keys,
                mod_key=where.get("continuous_covariate_keys"),
            ),
            MuDataProteinLayerField(
                REGISTRY_KEYS.PROTEIN_EXP_KEY,
                protein_layer,
                mod_key=where["protein_layer"],
                batch_field=batch if panel_key is None else panel,
            ),
        ]
        cls.register(mdata, fields, arguments, method_name="setup_mudata")

    @property
    def protein_names(self) -> Any:
        """Names of the proteins, in the order the model knows them."""
        return protein_parts.protein_names(self)

    @property
    def _panel_key(self) -> str:
        has_panels = PANEL_KEY in self.registry["field_registries"]
        return PANEL_KEY if has_panels else REGISTRY_KEYS.BATCH_KEY

    def _measured(self, override: bool | None) -> np.ndarray:
        """Which proteins are measured in each panel, shape ``(n_panel, n_proteins)``."""
        mask = registry_state(self.registry, REGISTRY_KEYS.PROTEIN_EXP_KEY)["protein_batch_mask"]
        measured = np.stack([mask[str(code)] for code in range(len(mask))]).astype(bool)
        if override:
            return np.ones_like(measured)
        if override is None and self._adata_manager is not None and not measured.all():
            names = registry_state(self.registry, self._panel_key)["categorical_mapping"]
            lacking = [
                f"{n} ({(~m).sum()})" for n, m in zip(names, measured, strict=True) if ~m.all()
            ]
            warnings.warn(
                "Proteins without a count in a batch or panel are taken as not measured there: "
                f"{', '.join(lacking)} (numbers of proteins). If they were measured, pass "
                "override_missing_proteins=True; False is for silence.",
                UserWarning,
                stacklevel=3,
            )
        return measured

    _library_moments: ClassVar[Any] = SCVI._library_moments

    # ------------------------------------------------------------------ training

    def train(
        self,
        max_epochs: int | None = None,
        *,
        method: str = "svi",
        adversarial_classifier: bool | None = None,
        **options: Any,
    ) -> None:
        """Fit the model; see :meth:`BaseModelClass.train` for all options.

        By default the learning rate is 0.004, falls when the validation ELBO has stopped improving,
        and training stops when it does not improve any more; minibatches have 256 cells.

        Parameters
        ----------
        max_epochs
            Epochs at most.
        method
            ``"svi"`` or another one.
        adversarial_classifier
            Whether a classifier of batches that the encoder has to mislead is trained beside the
            model (:class:`~pyrovi.train.AdversarialTrainingPlan`), so that batches mix in the
            latent space although some lack proteins. ``None``: if they do.
        options
            Further options.

        Raises
        ------
        TrainingError
            If an adversary is asked for and there is one batch.
        """
        given = {**options}
        if max_epochs is not None:
            given["max_epochs"] = max_epochs
        if adversarial_classifier is not None:
            given["adversarial_classifier"] = adversarial_classifier
        if method != "svi":
            super().train(method=method, **given)
            return
        before, several = self._training, self.summary_stats.n_batch > 1
        plan = dict(options.pop("plan_kwargs", None) or {})
        if options.get("lr") is None:
            options.pop("lr", None)
            plan.setdefault("lr", 4e-3)
        options.setdefault("batch_size", 256)
        if _holds_out(options):
            options.setdefault("early_stopping", True)
            plan.setdefault("reduce_lr_on_plateau", plan.get("lr_decay", 1) == 1)
        if adversarial_classifier is None:
            adversarial_classifier = self.module.lacks_proteins and several
        if adversarial_classifier and options.get("training_plan") is None:
            from pyrovi.train import AdversarialTrainingPlan

            options["training_plan"] = AdversarialTrainingPlan
            plan.setdefault("n_categories", self.summary_stats.n_batch)
        super().train(max_epochs, plan_kwargs=plan, **options)
        note_options(self, given, before)

    # ------------------------------------------------------------------ queries

    get_latent_representation = latent.get_latent_representation
    get_latent_library_size = expression.get_latent_library_size
    get_normalized_expression = proteins.get_normalized_expression
    get_protein_foreground_probability = proteins.get_protein_foreground_probability
    get_protein_background_mean = proteins.get_protein_background_mean
    get_likelihood_parameters = proteins.get_likelihood_parameters
    posterior_predictive_sample = proteins.posterior_predictive_sample
    differential_expression = proteins_compared.differential_expression
    get_feature_correlation_matrix = proteins_compared.get_feature_correlation_matrix
    minify_adata = minified.minify_adata
    load_query_data: ClassVar[Any] = classmethod(reference.load_query_data)
    prepare_query_anndata = staticmethod(query_proteins.prepare_query_anndata)


def _modalities(modalities: Mapping[str, str] | None) -> Mapping[str, str]:
    if not isinstance(modalities, Mapping | None):
        raise DataError(
            f"modalities is a {type(modalities).__name__} ({modalities!r}). Expected a dictionary "
            "of the modality of each argument, e.g. "
            "{'rna_layer': 'rna', 'protein_layer': 'protein'}."
        )
    given = dict(modalities or {})
    known = (
        "rna_layer", "protein_layer", "batch_key", "panel_key", "size_factor_key",
        "categorical_covariate_keys", "continuous_covariate_keys",
    )  # fmt: skip
    missing = [name for name in known[:2] if name not in given]
    unknown = [name for name in given if name not in known]
    if missing or unknown:
        fault = f"lacks {missing[0]!r}" if missing else f"names {unknown[0]!r}"
        raise DataError(
            f"modalities={modalities!r} {fault}. Expected modalities of the arguments "
            f"{', '.join(known)}, the two layers at least, e.g. "
            "{'rna_layer': 'rna', 'protein_layer': 'protein'}."
        )
    return given


def _holds_out(options: Mapping[str, Any]) -> bool:
    """Whether training has validation observations."""
    split = options.get("datasplitter_kwargs") or {}
    indexing = split.get("external_indexing")
    if indexing is not None:
        return len(indexing) > 1 and indexing[1] is not None and len(indexing[1]) > 0
    validation = options.get("validation_size", split.get("validation_size"))
    train = options.get("train_size", split.get("train_size"))
    return bool(validation) if validation is not None else train is None or train < 1
