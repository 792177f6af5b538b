"""LinearSCVI: a factor model of counts with interpretable loadings (Svensson et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pandas as pd
from anndata import AnnData

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data.fields import CategoricalObsField
from pyrovi.model import reference
from pyrovi.model.factor_start import start_at_principal_axes
from pyrovi.model.loadings import loadings_frame
from pyrovi.model.scvi import SCVI, count_fields
from pyrovi.model.training import train_with_defaults
from pyrovi.module.linear_vae import LinearVAE


class LinearSCVI(SCVI):
    """SCVI with a linear decoder: every latent variable has a loading for every gene.

    The generative story and its symbols are those of
    :class:`~pyrovi.module.linear_vae.LinearVAE`. Everything else is as in :class:`SCVI`.

    Parameters
    ----------
    adata
        Data that were set up with :meth:`setup_anndata`.
    registry
        Registry to make a model without data; given in the place of ``adata``.
    n_hidden, n_layers, dropout_rate
        Of the encoders.
    n_latent
        Number of latent variables.
    dispersion
        Inverse dispersion per ``"gene"``, ``"gene-batch"`` or ``"gene-label"``.
    gene_likelihood, latent_distribution
        As in :class:`~pyrovi.module.vae.VAE`.
    use_observed_lib_size
        Whether the library size is the observed total; it is latent by default.
    kwargs
        Further options of :class:`~pyrovi.module.linear_vae.LinearVAE`.

    Raises
    ------
    ModelError
        If an option is none of a linear decoder (``dispersion="gene-cell"``), or out of range.

    Notes
    -----
    Other implementations leave the number of labels out, so ``dispersion="gene-label"`` fails in
    them; and take ``"gene-cell"``, without a dispersion to use.

    Training begins with loadings along the principal axes of the counts. From random ones
    (``train(start=None)``) fits end in different optima, and find factors in another order, with
    other signs, and rotated: compare such loadings after
    :func:`~pyrovi.posterior.alignment.align`.

    References
    ----------
    Svensson, Gayoso, Yosef, Pachter: Interpretable factor models of single-cell RNA-seq via
    variational autoencoders. Bioinformatics 36, 3418-3421 (2020).

    Examples
    --------
    >>> LinearSCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    >>> model = LinearSCVI(adata, n_latent=10)
    >>> model.train()
    >>> model.get_loadings()["Z_0"].nlargest(20)
    """

    def __init__(
        self,
        adata: AnnData | dict[str, Any] | None = None,
        registry: dict[str, Any] | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson"] = "nb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        use_observed_lib_size: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            adata,
            registry,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            latent_distribution=latent_distribution,
            use_observed_lib_size=use_observed_lib_size,
            **kwargs,
        )

    module: LinearVAE

    def _make_module(self, **options: Any) -> LinearVAE:
        return LinearVAE(n_labels=self.summary_stats.n_labels, **options)

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
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
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``obs`` to correct for.

        Raises
        ------
        DataError, MissingKeyError
            If the data are not raw counts, or a column is missing.
        """
        arguments = locals()
        labels = CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key)
        cls.register(adata, count_fields(arguments, labels), arguments)

    starts: ClassVar[Mapping[str, Any]] = {"principal-axes": start_at_principal_axes}

    def train(self, max_epochs: int | None = None, **options: Any) -> None:
        """Fit the model; see :meth:`BaseModelClass.train` for all options.

        SVI begins with loadings along the main differences between cells
        (``start="principal-axes"``), so that fits with different seeds agree. Restarts
        (``n_restarts``) begin at random loadings instead, lest they agree for that reason alone.

        Parameters
        ----------
        max_epochs
            Epochs of this call.
        options
            Further options; ``start=None`` begins at random loadings.
        """
        if options.get("method", "svi") != "svi":
            super().train(max_epochs, **options)
            return
        given = options if max_epochs is None else {"max_epochs": max_epochs, **options}
        start = "principal-axes" if options.get("n_restarts", 1) == 1 else None
        train_with_defaults(self, given, {"start": start})

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: Any,
        *,
        freeze_batchnorm_decoder: bool = True,
        **options: Any,
    ) -> LinearSCVI:
        """As :meth:`SCVI.load_query_data`, keeping the loadings of the reference.

        Parameters
        ----------
        adata, reference_model, options
            As there.
        freeze_batchnorm_decoder
            Freeze the batch norm behind the loadings, whose scale is a part of them.
        """
        options["freeze_batchnorm_decoder"] = freeze_batchnorm_decoder
        query = reference.load_query_data(cls, adata, reference_model, **options)
        query.module.from_reference.fill_(True)
        return query

    def get_loadings(self) -> pd.DataFrame:
        """Loadings: genes in rows, latent variables ``Z_0``, ``Z_1``, ... in columns.

        The effect of each latent variable on the log proportion of each gene, up to a number that
        is the same for all genes of a column; see
        :meth:`~pyrovi.module.linear_vae.LinearVAE.loadings`.
        """
        module: Any = self.module
        return loadings_frame(self, module.loadings())
