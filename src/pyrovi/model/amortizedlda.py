"""AmortizedLDA: topics of counts (Blei, Ng & Jordan 2003; Srivastava & Sutton 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData

from pyrovi._constants import REGISTRY_KEYS
from pyrovi.data import AnnDataManager
from pyrovi.data.fields import LayerField
from pyrovi.model import topics
from pyrovi.model.base import BaseModelClass
from pyrovi.model.coords import model_coords
from pyrovi.module.amortizedlda import LDA
from pyrovi.posterior.labels import Coords


class AmortizedLDA(BaseModelClass):
    """Topics: distributions over genes that cells mix in different proportions.

    Cells are documents and genes are words. The generative story and its symbols are those of
    :class:`~pyrovi.module.amortizedlda.LDA`.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`, or a registry.
    n_topics, n_hidden, n_layers, dropout_rate
        Number of topics, and size of the encoder.
    cell_topic_prior, topic_feature_prior
        Parameters of the Dirichlet priors, of a cell's proportions and of a topic's genes; ``None``
        for ``1 / n_topics``.

    References
    ----------
    Blei, Ng, Jordan: Latent Dirichlet allocation. Journal of Machine Learning Research 3, 993-1022
    (2003).

    Srivastava, Sutton: Autoencoding variational inference for topic models. ICLR (2017).

    Examples
    --------
    >>> AmortizedLDA.setup_anndata(adata, layer="counts")
    >>> model = AmortizedLDA(adata, n_topics=20)
    >>> model.train()
    >>> topics = model.get_feature_by_topic()
    >>> adata.obsm["X_LDA"] = model.get_latent_representation()
    """

    def __init__(
        self,
        adata: AnnData | dict[str, Any] | None = None,
        registry: dict[str, Any] | None = None,
        n_topics: int = 20,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        cell_topic_prior: float | Sequence[float] | None = None,
        topic_feature_prior: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(registry if adata is None else adata)
        self.module = LDA(
            n_vars=self.summary_stats.n_vars,
            n_topics=n_topics,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            cell_topic_prior=cell_topic_prior,
            topic_feature_prior=topic_feature_prior,
            log_frequencies=self._log_frequencies(),
        )

    @classmethod
    def setup_anndata(cls, adata: AnnData, layer: str | None = None) -> None:  # type: ignore[override]
        """Declare which counts the model uses.

        Parameters
        ----------
        adata
            The data; only an id is written, to ``adata.uns``.
        layer
            Layer with raw counts; ``None`` for ``X``.

        Raises
        ------
        DataError, MissingKeyError
            If the data are not raw counts, or there is no such layer.
        """
        arguments = locals()
        cls.register(adata, [LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=True)], arguments)

    def _log_frequencies(self) -> np.ndarray | None:
        """Overall log frequencies of the genes; without data ``None``: a file has them."""
        if self._adata_manager is None:
            return None
        counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        sums = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() + 1.0
        return np.log(sums / sums.sum())

    def coords(self, manager: AnnDataManager, positions: np.ndarray) -> Coords:
        """Names of the dimensions' entries; topics are ``"topic_0"``, ``"topic_1"``, ..."""
        of_data = model_coords(self, manager, positions)
        names = np.asarray(topics.topic_names(self))
        return lambda dim: names if dim == "topic" else of_data(dim)

    get_latent_representation = topics.get_latent_representation
    get_feature_by_topic = topics.get_feature_by_topic
    get_perplexity = topics.get_perplexity
    get_completion_perplexity = topics.get_completion_perplexity
