"""SCVI: single-cell variational inference (Lopez et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from anndata import AnnData

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data.containers import row_sums
from pyrovi.data.fields import (
    AnnDataField,
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from pyrovi.errors import ModelError
from pyrovi.model import (
    abundance,
    denoised,
    differential,
    expression,
    latent,
    minified,
    query_data,
    reference,
)
from pyrovi.model.base import BaseModelClass
from pyrovi.model.registry_access import covariate_sizes
from pyrovi.model.setup import check_size_factor
from pyrovi.module.vae import VAE


class SCVI(BaseModelClass):
    """Latent space, batch correction, normalised expression and differential expression of counts.

    The generative story and its symbols are those of :class:`~pyrovi.module.vae.VAE`.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`, or a registry.
    n_hidden, n_latent, n_layers, dropout_rate
        Size of the networks.
    dispersion, gene_likelihood, latent_distribution, use_observed_lib_size
        The story's options.
    kwargs
        Further options of :class:`~pyrovi.module.vae.VAE`.

    References
    ----------
    Lopez, Regier, Cole, Jordan, Yosef: Deep generative modeling for single-cell transcriptomics.
    Nature Methods 15, 1053-1058 (2018).

    Examples
    --------
    >>> SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    >>> model = SCVI(adata, n_latent=10)
    >>> model.train()
    >>> adata.obsm["X_scVI"] = model.get_latent_representation()
    """

    """The model/guide pair, which a subclass may replace."""

    def __init__(
        self,
        adata: AnnData | dict[str, Any] | None = None,
        registry: dict[str, Any] | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        use_observed_lib_size: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(registry if adata is None else adata)
        kwargs.setdefault("log_variational", self._has_counts(gene_likelihood))
        stats = self.summary_stats
        has_size_factor = self.has_field(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        means, variances = (None, None)
        if not use_observed_lib_size and not has_size_factor:
            means, variances = self._library_moments(stats.n_batch)
        self.module = self._make_module(
            n_vars=stats.n_vars,
            n_batch=stats.n_batch,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            **covariate_sizes(self),
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            latent_distribution=latent_distribution,
            use_observed_lib_size=use_observed_lib_size,
            use_size_factor_key=has_size_factor,
            library_log_means=means,
            library_log_vars=variances,
            **kwargs,
        )

    def _make_module(self, **options: Any) -> VAE:
        return VAE(n_labels=self.summary_stats.n_labels, **options)

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        is_count_data: bool = True,
    ) -> None:
        """Declare which parts of an AnnData the model uses.

        Parameters
        ----------
        adata
            The data; only an id is written, to ``adata.uns``.
        layer
            Layer with raw counts; ``None`` for ``X``.
        batch_key, labels_key
            Columns of ``obs``.
        size_factor_key
            Column of ``obs`` with positive size factors, instead of the observed totals.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``obs`` to correct for.
        is_count_data
            Whether the values are raw counts, and are checked to be. ``False`` is for normalised
            values under ``gene_likelihood="normal"``; the encoder then sees them as they are.

        Raises
        ------
        DataError, MissingKeyError
            If the data are not raw counts, or a column is missing.
        """
        arguments = locals()
        check_size_factor(adata, size_factor_key)
        labels = CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key)
        cls.register(adata, count_fields(arguments, labels), arguments)

    def _has_counts(self, gene_likelihood: str) -> bool:
        """Whether the registered values are counts; others need a likelihood of their own."""
        field = self.registry["field_registries"][REGISTRY_KEYS.X_KEY]
        if field["tensor"]["kind"] == "counts":
            return True
        if gene_likelihood != "normal":
            raise ModelError(
                f"gene_likelihood={gene_likelihood!r} is for counts, but the data were set up with "
                "is_count_data=False. Set raw counts up, or use gene_likelihood='normal'."
            )
        return False

    def _library_moments(self, n_batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the log totals in each batch; given by the data at first use."""
        if self._adata_manager is None:
            return np.zeros(n_batch), np.ones(n_batch)  # a file that is loaded overwrites them
        counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        batch = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY))[:, 0]
        log_totals = np.log(row_sums(counts))
        groups = [log_totals[batch == b] for b in range(n_batch)]
        # a batch without cells here, or with equal totals, takes what all cells have
        mean, variance = log_totals.mean(), log_totals.var() or 1.0
        means = [g.mean() if len(g) else mean for g in groups]
        variances = [(g.var() if len(g) else 0.0) or variance for g in groups]
        return np.array(means), np.array(variances)

    get_latent_representation = latent.get_latent_representation
    get_normalized_expression = expression.get_normalized_expression
    get_likelihood_parameters = expression.get_likelihood_parameters
    get_latent_library_size = expression.get_latent_library_size
    get_batch_representation = expression.get_batch_representation
    posterior_predictive_sample = denoised.posterior_predictive_sample
    get_feature_correlation_matrix = denoised.get_feature_correlation_matrix
    differential_expression = differential.differential_expression
    get_aggregated_posterior = abundance.get_aggregated_posterior
    differential_abundance = abundance.differential_abundance
    minify_adata = minified.minify_adata
    load_query_data: ClassVar[Any] = classmethod(reference.load_query_data)
    prepare_query_anndata = staticmethod(query_data.prepare_query_anndata)


def count_fields(arguments: Mapping[str, Any], labels: CategoricalObsField) -> list[AnnDataField]:
    """Fields of a model of counts with labels.

    Parameters
    ----------
    arguments
        Arguments of :meth:`SCVI.setup_anndata`.
    labels
        The field of the labels.
    """
    keys = REGISTRY_KEYS
    return [
        LayerField(
            keys.X_KEY, arguments["layer"], is_count_data=arguments.get("is_count_data", True)
        ),
        CategoricalObsField(keys.BATCH_KEY, arguments["batch_key"]),
        labels,
        NumericalObsField(keys.SIZE_FACTOR_KEY, arguments.get("size_factor_key"), required=False),
        CategoricalJointObsField(keys.CAT_COVS_KEY, arguments["categorical_covariate_keys"]),
        NumericalJointObsField(keys.CONT_COVS_KEY, arguments["continuous_covariate_keys"]),
    ]
